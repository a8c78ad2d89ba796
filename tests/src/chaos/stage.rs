//! The pool on which faults are played: servers, coordinators and workers as processes, each
//! process with a relay of its own before each service, and somebody who starts again what has
//! ended, as a supervisor would.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use muster_platform::faults::ENABLE_VARIABLE;
use rustix::process::Signal;

use super::schedule::{Crew, Fault, Member, Service, Step};
use crate::harness::sandbox::arg;
use crate::harness::{Bucket, NatsServer, Process, Relay, S3Server, Sandbox, Weather, process};

/// The bucket of inputs, outputs and scratch.
pub const BUCKET: &str = "data";
/// Added to each packet of a worker to the store, so that jobs last long enough to be struck.
const STORE_DELAY: Duration = Duration::from_millis(6);
/// A process that has ended by itself is started again after this pause, and so is a spare
/// coordinator while too few work.
const RESTART_MS: u64 = 1_500;
/// A task that is struck again and again is no sign of a task that cannot be done.
const SETTINGS: &str = "[tasks]\nattempts_max = 12\n";
/// What no process ever says, whatever happens to it.
const NEVER_SAID: [&str; 3] =
    ["panicked at", "an invariant of the job machine does not hold", "contradicts those before it"];

/// How a pool is set up.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Who belongs to it.
    pub crew: Crew,
    /// The profile of settings of all processes.
    pub profile: &'static str,
    /// `--memory` of each worker.
    pub worker_memory: &'static str,
    /// Faults that each worker, and each coordinator, is told to inject into itself (`--faults`).
    pub faults: Option<(String, String)>,
    /// A worker whose data folder is a file system of its own, and that one's size as mount(8)
    /// takes it.
    pub small_disk: Option<(usize, String)>,
}

impl Setup {
    /// What chaos is played on.
    pub fn new(crew: Crew) -> Self {
        Self { crew, profile: "testing", worker_memory: "256MiB", faults: None, small_disk: None }
    }
}

/// A running pool.
#[derive(Debug)]
pub struct Stage<'a> {
    sandbox: &'a Sandbox,
    /// Its NATS server.
    pub nats: NatsServer,
    s3: S3Server,
    /// The tests' own hand on the bucket, past all relays.
    pub bucket: Bucket,
    setup: Setup,
    nodes: BTreeMap<Member, Node>,
    begun: Instant,
    nats_up: bool,
    store_up: bool,
    /// What is to be healed, and when.
    heals: Vec<(u64, Fault)>,
    /// Faults that struck, by kind.
    pub struck: BTreeMap<&'static str, u64>,
    /// Processes that ended by themselves, by name of their role and exit code.
    pub exits: BTreeMap<String, u64>,
    log: File,
    read_to: BTreeMap<String, usize>,
}

#[derive(Debug)]
struct Node {
    name: String,
    process: Option<Process>,
    paused: bool,
    /// When it is to be started; nothing while it runs.
    start_ms: Option<u64>,
    nats: Relay,
    store: Relay,
    weather: [bool; 2],
}

impl Node {
    fn runs(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| process.poll().is_none())
    }

    fn relay(&self, service: Service) -> &Relay {
        match service {
            Service::Nats => &self.nats,
            Service::Store => &self.store,
        }
    }
}

impl<'a> Stage<'a> {
    /// Starts servers and processes. With one coordinator there is a spare one, which is started
    /// while the first does not work; more stand by for each other.
    #[track_caller]
    pub fn start(sandbox: &'a Sandbox, setup: Setup) -> Self {
        let crew = setup.crew;
        let (nats, s3) = (NatsServer::start(sandbox), S3Server::start(sandbox));
        let bucket = s3.bucket(BUCKET);
        sandbox.file("chaos.toml", SETTINGS);
        let slots = crew.coordinators.max(2);
        let members =
            (0..slots).map(Member::Coordinator).chain((0..crew.workers).map(Member::Worker));
        let nodes = members.map(|member| (member, Node::new(member, &nats, &s3))).collect();
        let log = File::create(sandbox.path("chaos.log")).expect("a log can be made");
        let mut stage = Self {
            sandbox,
            nats,
            s3,
            bucket,
            setup,
            nodes,
            begun: now(),
            nats_up: true,
            store_up: true,
            heals: Vec::new(),
            struck: BTreeMap::new(),
            exits: BTreeMap::new(),
            log,
            read_to: BTreeMap::new(),
        };
        let workers = (0..crew.workers).map(Member::Worker);
        for member in (0..crew.coordinators).map(Member::Coordinator).chain(workers) {
            stage.start_node(member);
        }
        stage
    }

    /// Milliseconds since the stage was set.
    pub fn now_ms(&self) -> u64 {
        self.begun.elapsed().as_millis() as u64
    }

    /// Writes a line into the log of what was done when.
    pub fn note(&mut self, text: &str) {
        let now_ms = self.now_ms();
        writeln!(self.log, "{:>9.3} {text}", now_ms as f64 / 1000.0)
            .expect("the log can be written");
    }

    /// A `muster` command of a user, past all relays.
    pub fn client(&self) -> Command {
        let mut command = self.sandbox.muster();
        command.env("NATS_URL", self.nats.url()).envs(self.s3.environment());
        command
    }

    /// Carries out a fault, unless what it strikes is down already; whether it did.
    pub fn strike(&mut self, step: &Step) -> bool {
        let done = match step.fault {
            Fault::Kill(member) => self.act_on(member, |node, _| {
                node.process.as_mut().expect("it runs").kill();
            }),
            Fault::Pause(member) => self.act_on(member, |node, _| {
                node.process.as_mut().expect("it runs").signal(Signal::STOP);
                node.paused = true;
            }),
            Fault::NatsCrash if self.nats_up => {
                self.nats.kill();
                self.nats_up = false;
                true
            }
            Fault::NatsPause if self.nats_up => {
                self.nats.signal(Signal::STOP);
                self.nats_up = false;
                true
            }
            Fault::StorePause if self.store_up => {
                self.s3.signal(Signal::STOP);
                self.store_up = false;
                true
            }
            Fault::NatsCrash | Fault::NatsPause | Fault::StorePause => false,
            Fault::Weather(member, service, weather) => {
                let node = self.nodes.get_mut(&member).expect("a member of the crew");
                let calm = !std::mem::replace(&mut node.weather[service as usize], true);
                if calm {
                    node.relay(service).set(weather);
                }
                calm
            }
            Fault::StoreOutage(weather) => {
                let calm = self.nodes.values().all(|node| !node.weather[Service::Store as usize]);
                if calm {
                    for node in self.nodes.values_mut() {
                        node.weather[Service::Store as usize] = true;
                        node.store.set(weather);
                    }
                }
                calm
            }
            Fault::Cut(member, service) => self.nodes[&member].relay(service).cut() > 0,
        };
        if done {
            let kind = step.fault.kind(step.lasts_ms);
            *self.struck.entry(kind).or_default() += 1;
            self.note(&format!("{kind}: {:?} for {} ms", step.fault, step.lasts_ms));
            let due_ms = self.now_ms() + step.lasts_ms;
            match step.fault {
                Fault::Kill(member) => {
                    self.nodes.get_mut(&member).expect("a member").start_ms = Some(due_ms);
                }
                Fault::Cut(..) => {}
                fault => self.heals.push((due_ms, fault)),
            }
        }
        done
    }

    fn act_on(&mut self, member: Member, act: impl FnOnce(&mut Node, Member)) -> bool {
        let node = self.nodes.get_mut(&member).expect("a member of the crew");
        let able = node.runs() && !node.paused;
        if able {
            act(node, member);
        }
        able
    }

    /// `kill -9` to processes that nobody starts again.
    ///
    /// # Panics
    /// Where one does not run.
    pub fn kill_for_good(&mut self, member: Member) {
        let node = self.nodes.get_mut(&member).expect("a member of the crew");
        assert!(node.runs(), "{} does not run", node.name);
        node.process.take().expect("it runs").kill();
        let killed = format!("{} is killed for good", node.name);
        self.note(&killed);
    }

    /// Starts a process that was killed for good.
    pub fn start_anew(&mut self, member: Member) {
        self.start_node(member);
    }

    /// Makes the weather between one process and one service.
    pub fn weather(&mut self, member: Member, service: Service, weather: Weather) {
        self.nodes[&member].relay(service).set(weather);
        self.note(&format!("{weather:?} between {member:?} and {service:?}"));
    }

    /// Heals what is due, and starts what has ended.
    pub fn tend(&mut self) {
        let now_ms = self.now_ms();
        let (due, rest) =
            std::mem::take(&mut self.heals).into_iter().partition(|(due_ms, _)| *due_ms <= now_ms);
        self.heals = rest;
        let due: Vec<(u64, Fault)> = due;
        due.into_iter().for_each(|(_, fault)| self.heal(fault));
        self.supervise(now_ms);
    }

    /// Heals everything, and starts everything that belongs to the crew.
    pub fn heal_all(&mut self) {
        self.note("everything is healed");
        std::mem::take(&mut self.heals).into_iter().for_each(|(_, fault)| self.heal(fault));
        for node in self.nodes.values_mut() {
            node.start_ms = node.start_ms.map(|_| 0);
        }
        self.tend();
    }

    fn heal(&mut self, fault: Fault) {
        match fault {
            Fault::Pause(member) => {
                let node = self.nodes.get_mut(&member).expect("a member of the crew");
                node.paused = false;
                if let Some(process) = &mut node.process {
                    process.signal(Signal::CONT);
                }
            }
            Fault::NatsCrash => {
                self.nats.start_again(self.sandbox);
                self.nats_up = true;
            }
            Fault::NatsPause => {
                self.nats.signal(Signal::CONT);
                self.nats_up = true;
            }
            Fault::StorePause => {
                self.s3.signal(Signal::CONT);
                self.store_up = true;
            }
            Fault::Weather(member, service, _) => {
                let node = self.nodes.get_mut(&member).expect("a member of the crew");
                node.weather[service as usize] = false;
                node.relay(service).set(Weather::Calm);
            }
            Fault::StoreOutage(_) => {
                for node in self.nodes.values_mut() {
                    node.weather[Service::Store as usize] = false;
                    node.store.set(Weather::Calm);
                }
            }
            Fault::Kill(_) | Fault::Cut(..) => {}
        }
        self.note(&format!("healed: {fault:?}"));
    }

    fn supervise(&mut self, now_ms: u64) {
        let mut ended = Vec::new();
        for node in self.nodes.values_mut() {
            let Some(status) = node.process.as_mut().and_then(Process::poll) else { continue };
            node.process = None;
            if node.start_ms.is_none() {
                let role = node.name.split('-').next().unwrap_or_default();
                ended.push((
                    node.name.clone(),
                    format!("{role} exit {}", process::exit_code(status)),
                ));
                node.start_ms = Some(now_ms + RESTART_MS);
            }
        }
        for (name, how) in ended {
            self.note(&format!("{name} has ended by itself: {how}"));
            *self.exits.entry(how).or_default() += 1;
        }
        self.call_in_coordinators(now_ms);
        let due: Vec<Member> = self
            .nodes
            .iter()
            .filter(|(_, node)| {
                node.process.is_none() && node.start_ms.is_some_and(|due_ms| due_ms <= now_ms)
            })
            .map(|(member, _)| *member)
            .collect();
        due.into_iter().for_each(|member| self.start_node(member));
    }

    /// Has another coordinator start soon while too few work, and none where enough do.
    fn call_in_coordinators(&mut self, now_ms: u64) {
        let wanted = self.setup.crew.coordinators;
        let slots = || (0..wanted.max(2)).map(Member::Coordinator);
        let working = slots()
            .filter(|member| self.nodes[member].process.is_some() && !self.nodes[member].paused)
            .count();
        let called = slots().filter(|member| self.nodes[member].start_ms.is_some()).count();
        if working >= wanted {
            slots().for_each(|member| self.nodes.get_mut(&member).expect("a slot").start_ms = None);
        } else if working + called < wanted {
            let idle = slots().find(|member| self.nodes[member].process.is_none());
            if let Some(member) = idle {
                self.nodes.get_mut(&member).expect("a slot").start_ms = Some(now_ms + RESTART_MS);
            }
        }
    }

    fn start_node(&mut self, member: Member) {
        let mut command = self.sandbox.muster();
        let node = &self.nodes[&member];
        match member {
            Member::Coordinator(_) => {
                command.args(["coordinator", "--bucket", &self.bucket.url("scratch"), "--config"]);
                command.arg(self.sandbox.path("chaos.toml"));
            }
            Member::Worker(_) => {
                command.args([
                    "worker",
                    "--id",
                    &node.name,
                    "--threads",
                    "1",
                    "--memory",
                    self.setup.worker_memory,
                ]);
            }
        }
        let data = self.sandbox.path(format!("data-{}", node.name));
        command.args(["--profile", self.setup.profile, "--data-dir"]).arg(&data);
        if let Some((workers, coordinators)) = &self.setup.faults {
            let spec = if matches!(member, Member::Worker(_)) { workers } else { coordinators };
            command.args(["--faults", spec]);
        }
        match &self.setup.small_disk {
            Some((index, size)) if member == Member::Worker(*index) => {
                fs::create_dir_all(&data).expect("a folder can be made");
                command = on_small_disk(self.sandbox, &data, size, &command);
            }
            _ => {}
        }
        if self.setup.faults.is_some() {
            command.env(ENABLE_VARIABLE, "1");
        }
        command
            .env("NATS_URL", format!("nats://127.0.0.1:{}", node.nats.port()))
            .envs(self.s3.environment())
            .env("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{}", node.store.port()));
        let process = Process::spawn(&node.name, command, &self.sandbox.logs());
        let started = format!("{} is started, process {}", node.name, process.id());
        let node = self.nodes.get_mut(&member).expect("a member of the crew");
        (node.process, node.start_ms, node.paused) = (Some(process), None, false);
        self.note(&started);
    }

    /// Faults that processes say they have injected into themselves, by place and kind.
    pub fn injected(&self) -> BTreeMap<String, u64> {
        let mut injected = BTreeMap::new();
        for node in self.nodes.values() {
            let text = fs::read(self.sandbox.logs().join(format!("{}.err", node.name)))
                .unwrap_or_default();
            for line in String::from_utf8_lossy(&text)
                .lines()
                .filter(|line| line.contains("injected a fault"))
            {
                let label = line.split(' ').find_map(|word| word.strip_prefix("fault="));
                *injected.entry(label.unwrap_or("?").trim_matches('"').to_owned()).or_default() +=
                    1;
            }
        }
        injected
    }

    /// Folders for spills beyond those of the workers that run.
    pub fn stale_spills(&self) -> Vec<String> {
        let mut stale = Vec::new();
        for worker in 0..self.setup.crew.workers {
            let name = format!("worker-{worker}");
            let folder = self.sandbox.path(format!("data-{name}/spill/{name}"));
            let lives: Vec<String> = fs::read_dir(&folder)
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| format!("{name}/{}", entry.file_name().to_string_lossy()))
                .collect();
            if lives.len() > 1 {
                stale.extend(lives);
            }
        }
        stale
    }

    /// Lines that should never be logged, among those that are new since the last look.
    pub fn bad_lines(&mut self) -> Vec<String> {
        let mut bad = Vec::new();
        for node in self.nodes.values() {
            let path = self.sandbox.logs().join(format!("{}.err", node.name));
            let text = fs::read(&path).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let from = self.read_to.insert(node.name.clone(), text.len()).unwrap_or(0);
            let new = text.get(from..).unwrap_or_default().lines();
            let never = new.filter(|line| NEVER_SAID.iter().any(|never| line.contains(never)));
            bad.extend(never.map(|line| format!("{}: {line}", node.name)));
        }
        bad
    }

    /// Where logs of processes lie.
    pub fn logs(&self) -> PathBuf {
        self.sandbox.logs()
    }

    /// A path in the sandbox, as an argument.
    pub fn path(&self, name: &str) -> String {
        arg(&self.sandbox.path(name)).to_owned()
    }
}

impl Node {
    fn new(member: Member, nats: &NatsServer, s3: &S3Server) -> Self {
        let (nats, store) = (Relay::before(nats.port()), Relay::before(s3.port()));
        let name = match member {
            Member::Coordinator(index) => format!("coordinator-{index}"),
            Member::Worker(index) => format!("worker-{index}"),
        };
        if matches!(member, Member::Worker(_)) {
            store.delay(STORE_DELAY);
        }
        Self {
            name,
            process: None,
            paused: false,
            start_ms: None,
            nats,
            store,
            weather: [false; 2],
        }
    }
}

/// The same command, for which alone `folder` is a file system of this size.
fn on_small_disk(sandbox: &Sandbox, folder: &Path, size: &str, command: &Command) -> Command {
    let mut wrapped = sandbox.clean_command("unshare");
    if !rustix::process::geteuid().is_root() {
        wrapped.arg("--map-root-user");
    }
    let script = r#"mount -t tmpfs -o "size=$1" tmpfs "$2" || exit 99; shift 2; exec "$@""#;
    wrapped.args(["--mount", "sh", "-c", script, "sh", size]).arg(folder);
    wrapped.arg(command.get_program()).args(command.get_args());
    wrapped
}

#[expect(
    clippy::disallowed_methods,
    reason = "plays with real processes, which know no clock port"
)]
fn now() -> Instant {
    Instant::now()
}
