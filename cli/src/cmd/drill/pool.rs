//! The processes of a drill: coordinators and workers, started as a user would, each with a wire of
//! its own to NATS. They die with this process.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use muster_platform::adapters::nats::NatsSettings;
use muster_platform::faults;
use muster_protocol::{Error, Result};
use rustix::process::{Pid, Signal};
use serde_json::Value;

use super::link::Link;
use super::schedule::Victim;
use crate::cmd;

/// Memory of one worker.
const WORKER_MEMORY: &str = "256MiB";

/// What all processes of a drill share.
#[derive(Debug, Clone)]
pub(super) struct Setting {
    /// The drill's own folder.
    pub(super) folder: PathBuf,
    /// Settings file for every process.
    pub(super) config: PathBuf,
    /// Scratch.
    pub(super) bucket: String,
    /// The server.
    pub(super) nats: NatsSettings,
}

impl Setting {
    /// A `muster` command with these settings, connected by `url`.
    pub(super) fn muster(&self, url: &str) -> Result<Command> {
        let program = std::env::current_exe()
            .map_err(|e| Error::bug(format!("cannot find this program: {e}")))?;
        let mut command = Command::new(program);
        command
            .stdin(Stdio::null())
            .env("NATS_URL", url)
            .env_remove("NATS_CONTEXT")
            .env_remove("NATS_PASSWORD");
        command.env_remove(faults::ENABLE_VARIABLE).env_remove(cmd::NAMESPACE_VARIABLE);
        // A user without a password is a token, as the nats command line has it.
        command.env("NATS_USER", self.nats.token.as_deref().unwrap_or_default());
        Ok(command)
    }
}

/// One process that can be killed, stopped and cut off.
struct Process {
    name: String,
    link: Link,
    child: Option<Child>,
}

/// All processes of one run.
pub(super) struct Pool {
    setting: Setting,
    faults: Option<String>,
    processes: BTreeMap<(bool, u32), Process>,
}

impl Pool {
    /// Starts coordinators and workers whose names begin with `name`, which inject `faults` into
    /// themselves.
    pub(super) async fn start(
        setting: &Setting,
        name: &str,
        coordinators: u32,
        workers: u32,
        faults: Option<String>,
    ) -> Result<Self> {
        let mut pool = Self { setting: setting.clone(), faults, processes: BTreeMap::new() };
        let server = setting.nats.url.trim_start_matches("nats://").to_owned();
        let all = (0..coordinators)
            .map(|number| (false, number))
            .chain((0..workers).map(|number| (true, number)));
        for (is_worker, number) in all {
            let role = if is_worker { "worker" } else { "coordinator" };
            let process = Process {
                name: format!("{name}-{role}-{number}"),
                link: Link::new(server.clone()).await?,
                child: None,
            };
            pool.processes.insert((is_worker, number), process);
            pool.spawn((is_worker, number))?;
        }
        Ok(pool)
    }

    fn spawn(&mut self, key: (bool, u32)) -> Result<()> {
        let Self { setting, faults, processes } = self;
        let Some(process) = processes.get_mut(&key) else { return Ok(()) };
        let mut command = setting.muster(&process.link.url())?;
        let data = setting.folder.join(&process.name);
        if key.0 {
            command.arg("worker").args([
                "--id",
                &process.name,
                "--threads",
                "1",
                "--memory",
                WORKER_MEMORY,
            ]);
        } else {
            command.args(["coordinator", "--bucket", &setting.bucket]);
        }
        command.arg("--data-dir").arg(data);
        command
            .args(["--profile", "testing", "--log-format", "json"])
            .arg("--config")
            .arg(&setting.config);
        if let Some(faults) = faults {
            command.args(["--faults", faults]);
        }
        let log = setting.folder.join(format!("{}.log", process.name));
        let trouble =
            |e: std::io::Error| Error::invalid(format!("cannot start {}: {e}", process.name));
        let log = File::options().create(true).append(true).open(log).map_err(trouble)?;
        command.stdout(Stdio::null()).stderr(log);
        end_with_us(&mut command);
        process.child = Some(command.spawn().map_err(trouble)?);
        Ok(())
    }

    /// Which process a victim is now.
    fn find(&self, victim: Victim) -> Option<(bool, u32)> {
        match victim {
            Victim::Worker(number) => Some((true, number)),
            Victim::Leader => {
                let coordinators = self.processes.iter().filter(|((is_worker, _), _)| !is_worker);
                let led = coordinators.map(|(key, process)| (self.epoch_of(process), *key));
                led.max().map(|(_, key)| key)
            }
        }
    }

    /// The newest term that a coordinator says it led.
    fn epoch_of(&self, process: &Process) -> u64 {
        let log = self.setting.folder.join(format!("{}.log", process.name));
        let leading =
            |line: Value| (line["message"] == "leading").then(|| line["epoch"].as_u64()).flatten();
        log_lines(&log).filter_map(leading).max().unwrap_or(0)
    }

    /// `kill -9`. Gives the name of who was hit; nothing where it is down already.
    pub(super) fn kill(&mut self, victim: Victim) -> Option<(String, (bool, u32))> {
        let key = self.find(victim)?;
        let process = self.processes.get_mut(&key)?;
        let mut child = process.child.take()?;
        end(&mut child);
        Some((process.name.clone(), key))
    }

    /// Starts a process again that was killed.
    pub(super) fn start_again(&mut self, key: (bool, u32)) -> Result<Option<String>> {
        match self.processes.get(&key) {
            Some(process) if process.child.is_none() => {
                let name = process.name.clone();
                self.spawn(key)?;
                Ok(Some(name))
            }
            _ => Ok(None),
        }
    }

    /// SIGSTOP or SIGCONT.
    pub(super) fn signal(&self, key: (bool, u32), signal: Signal) -> Option<String> {
        let process = self.processes.get(&key)?;
        let pid = Pid::from_child(process.child.as_ref()?);
        rustix::process::kill_process(pid, signal).ok()?;
        Some(process.name.clone())
    }

    /// Cuts or mends the wire to NATS.
    pub(super) fn set_cut(&self, key: (bool, u32), cut: bool) -> Option<String> {
        let process = self.processes.get(&key)?;
        process.link.set_cut(cut);
        Some(process.name.clone())
    }

    /// Who a victim is now, if it is up.
    pub(super) fn resolve(&self, victim: Victim) -> Option<(bool, u32)> {
        self.find(victim)
            .filter(|key| self.processes.get(key).is_some_and(|process| process.child.is_some()))
    }

    /// Processes that have ended by themselves since they were started; they are forgotten, so that
    /// they can be started again.
    pub(super) fn ended(&mut self) -> Vec<(String, (bool, u32))> {
        let ended = self.processes.iter_mut().filter_map(|(key, process)| {
            let gone = process.child.as_mut()?.try_wait().ok().flatten()?;
            process.child = None;
            Some((format!("{} ({gone})", process.name), *key))
        });
        ended.collect()
    }

    /// What the processes have injected into themselves, as `site:kind`.
    pub(super) fn injected(&self) -> BTreeMap<String, u64> {
        let mut counts = BTreeMap::new();
        for process in self.processes.values() {
            let log = self.setting.folder.join(format!("{}.log", process.name));
            let faults = log_lines(&log).filter(|line| line["message"] == "injected a fault");
            for fault in faults.filter_map(|line| line["fault"].as_str().map(str::to_owned)) {
                *counts.entry(fault).or_default() += 1;
            }
        }
        counts
    }

    /// Ends all of them.
    pub(super) fn stop(mut self) {
        self.processes.values_mut().filter_map(|process| process.child.as_mut()).for_each(end);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.processes.values_mut().filter_map(|process| process.child.as_mut()).for_each(end);
    }
}

fn end(child: &mut Child) {
    // Either call fails only where the process has ended already.
    drop(child.kill());
    drop(child.wait());
}

/// The lines of a log in JSON; a last one that is not whole is passed over.
fn log_lines(path: &Path) -> impl Iterator<Item = Value> + use<> {
    let text = std::fs::read(path).unwrap_or_default();
    let lines: Vec<Value> = text
        .split(|byte| *byte == b'\n')
        .filter_map(|line| serde_json::from_slice(line).ok())
        .collect();
    lines.into_iter()
}

/// Has the kernel kill the child when we end, and keeps Ctrl-C from it, which is for us.
fn end_with_us(command: &mut Command) {
    command.process_group(0);
    // SAFETY: the closure only makes one system call, which is safe between fork and exec.
    unsafe {
        command.pre_exec(|| {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
                .map_err(std::io::Error::from)
        });
    }
}
