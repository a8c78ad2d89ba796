//! The world: one thread, one queue of events ordered by time, and everybody in it.
//!
//! A run has a safety phase, in which whatever the seed draws goes wrong, and a liveness phase: a
//! core of processes is healed, the faults of the others become permanent, and every job must end
//! within a bound, succeeded or for a cause that the seed allows.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use futures::FutureExt;
use serde::Serialize;
use tokio::sync::watch;

use muster_coordinator::Call;
use muster_coordinator::job::io::{Input, RefusalCode, ReplyTo};
use muster_coordinator::journal::writer::{Candidate, JournalWriter, Replayed};
use muster_platform::config::{Config, Profile};
use muster_platform::stores::Stores;
use muster_protocol::api::{JobQuery, JobStatus, WorkerQuery};
use muster_protocol::ids::{Epoch, JobId, WorkerId};
use muster_protocol::names::Names;
use muster_protocol::plan::BadInputs;
use muster_protocol::wire::Report;
use muster_protocol::{ErrorKind, Result};
use muster_worker::attempt;

use super::bus::{self, Message};
use super::coordinator::{Coordinator, Role};
use super::core::{Core, Event, MS, Node, S, Shared, Way};
use super::dice::Dice;
use super::exec::{Executor, lock};
use super::faults::{Kind, Reach, Weights};
use super::inputs::Question;
use super::jobs::{Client, UNREADABLE, draw_clients, fixed_client, script_clients};
use super::script::{Act, Script, Whom};
use super::store::Unreadable;
use super::trace::Trace;
use super::worker::{Worker, own_stores};

/// The bucket of all jobs.
pub const BUCKET: &str = "sim";
/// A healed run must come to its end within this.
const LIVENESS_US: u64 = 240 * S;
/// After the last job is cleaned, those who were away come back and let go.
const SETTLE_US: u64 = 8 * S;
/// And at most so much longer until what they have begun has ended.
const UNSETTLED_US: u64 = 120 * S;
/// A run that takes more events than this goes in circles.
const EVENTS_MAX: u64 = 5_000_000;

/// What a process's future has come to.
pub enum Done {
    /// Work with the stores.
    Input(Box<Input>),
    /// A coordinator has begun an epoch, or not.
    Begun(Epoch, Box<Result<(JournalWriter, Replayed)>>, watch::Receiver<Option<String>>),
    /// A coordinator has read the journal, for the how-manieth time.
    Read(u64, Box<Result<Candidate>>, watch::Receiver<Option<String>>),
    /// A leader that was stopped has asked, and leads still.
    Leads,
    /// An attempt has opened its upload, or has ended.
    Attempt(attempt::Input),
    /// A leader asks a worker which files it offers.
    Ask(Box<Question>),
    /// A leader's last record is written, or refused.
    WriterEnded,
}

/// Causes of failure that a run may have.
#[derive(Debug, Clone, Default)]
pub struct Allowed {
    /// Words, one of which an error must hold.
    causes: Vec<String>,
}

impl Allowed {
    fn of(weights: &Weights, script: Option<&Script>) -> Self {
        let mut causes: Vec<String> =
            script.map(|script| script.causes.clone()).unwrap_or_default();
        let mut allow = |when: bool, words: &[&str]| {
            if when {
                causes.extend(words.iter().map(|word| (*word).to_owned()));
            }
        };
        allow(!weights.is_calm(), &["tasks.attempts_max"]);
        allow(
            weights.flip_read > 0 || weights.short_read > 0,
            &["has digest", "ended early", "do not match"],
        );
        allow(weights.rot > 0, &["generations_max", "repeated_max"]);
        allow(weights.kinds().contains(&Kind::ChangeInput), &["input changed during the job"]);
        allow(weights.bad_memory > 0, &["were read"]);
        allow(weights.torn_split > 0, &["conservation"]);
        Self { causes }
    }

    /// And these, which follow from the jobs and the settings.
    fn and(mut self, when: bool, words: &[&str]) -> Self {
        self.causes.extend(words.iter().filter(|_| when).map(|word| (*word).to_owned()));
        self
    }

    /// Whether an error is one of them.
    pub fn allows(&self, error: &str) -> bool {
        self.causes.iter().any(|cause| error.contains(cause.as_str()))
    }
}

/// Where a process is killed, for sweeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CrashAt {
    /// Before a coordinator's effect of this number.
    BeforeEffect(u64),
    /// After it.
    AfterEffect(u64),
    /// Before a worker's effect of this number, calls to the store among them.
    WorkerEffect(u64),
}

/// How a world is made.
#[derive(Debug, Clone)]
pub struct Setting {
    /// Its seed.
    pub seed: u64,
    /// Whether lines are kept.
    pub traces: bool,
    /// The faults; else what the seed draws.
    pub weights: Option<Weights>,
    /// The tiny fixed job of sweeps, instead of what the seed draws.
    pub fixed: bool,
    /// A crash of sweeps.
    pub crash_at: Option<CrashAt>,
    /// A script, which says who is there and what happens.
    pub script: Option<Script>,
}

/// What came of a run.
#[derive(Debug, Clone)]
pub struct RunReport {
    /// The first thing that must not happen.
    pub violation: Option<String>,
    /// The trace's hash.
    pub hash: u64,
    /// The trace's lines, where they were kept.
    pub trace: String,
    /// Marks.
    pub reach: Reach,
    /// Events that were handled.
    pub events: u64,
    /// Simulated time, in microseconds.
    pub time_us: u64,
    /// Effects of coordinators and workers.
    pub effects: (u64, u64),
    /// What could go wrong.
    pub weights: Weights,
    /// How the jobs have ended that were accepted.
    pub ends: BTreeMap<String, String>,
}

/// See the module.
pub struct World {
    /// What all share.
    pub shared: Shared,
    /// The settings of all processes.
    pub config: Config,
    /// The subjects of the deployment.
    pub names: Names,
    /// Their futures.
    pub executor: Executor,
    /// The coordinators.
    pub coordinators: Vec<Coordinator>,
    /// The workers.
    pub workers: Vec<Worker>,
    /// Each process's stores, by node.
    pub stores: Vec<Stores>,
    /// What futures have come to.
    pub done: Arc<Mutex<VecDeque<(Node, Done)>>>,
    /// Clients.
    pub clients: Vec<Client>,
    client_node: Node,
    /// Numbers of requests.
    pub requests: u64,
    /// Reports that wait for their answer.
    pub reports: BTreeMap<(Node, ReplyTo), Box<Report>>,
    /// Causes of failure that this run may have.
    pub allowed: Allowed,
    dice: Dice,
    kinds: Vec<Kind>,
    crash_at: Option<CrashAt>,
    armed: Option<(usize, u64, bool)>,
    effects: (u64, u64),
    healed: bool,
    heal_us: u64,
    events: u64,
}

thread_local! {
    static CONFIG: Option<Config> = Config::profile(Profile::Testing).ok();
}

fn config(dice: &mut Dice) -> Config {
    let mut config = CONFIG
        .with(Clone::clone)
        .unwrap_or_else(|| unreachable!("the embedded settings are sound"));
    config.journal.snapshot_after = dice.pick(&[5, 30, 20_000]);
    config.tasks.attempts_max = dice.pick(&[4, 8, 16]) as u32;
    config.heartbeat.interval_ms = 200;
    // Longer than the longest way of a call.
    config.store.late_sweep_ms = 30_000;
    config.worker.drain_ms = dice.pick(&[20, 300, 30_000]);
    config.speculation.runtime_min_ms = dice.pick(&[100, 300, 1000]);
    config.speculation.slots_percent = dice.pick(&[10, 50, 100]);
    config
}

/// Samples so few that more rounds of sampling are needed.
fn few_samples(config: &mut Config, samples: u32) {
    let sizes = &mut config.sizes;
    (sizes.partition_bytes_min, sizes.samples_per_partition) = (1, samples);
}

fn draw_sizes(config: &mut Config, dice: &mut Dice) {
    if dice.below(3) == 0 {
        few_samples(config, dice.pick(&[1, 2, 3, 8]) as u32);
        config.sizes.sampling_rounds_max = dice.pick(&[1, 2, 3, 3]) as u32;
    }
    config.sizes.partition_percent_max = dice.pick(&[400, 400, 400, 400, 400, 101, 101, 0]) as u32;
}

impl World {
    /// Makes the world of a setting.
    pub fn new(setting: &Setting) -> Self {
        let seed = setting.seed;
        let mut dice = Dice::of(seed, "world");
        let drawn = Weights::draw(&mut Dice::of(seed, "weights"));
        let weights = setting.weights.clone().unwrap_or(drawn);
        let (kinds, fault_events) = (weights.kinds(), weights.events);
        let allowed = Allowed::of(&weights, setting.script.as_ref());
        let loses_input = fault_events > 0 && kinds.contains(&Kind::LoseInput);
        let mut core = Core::new(seed, weights, Trace::new(setting.traces));
        let skews = dice.below(3) == 0 && !setting.fixed;
        let mut config = config(&mut dice);
        let (coordinators, workers) = match &setting.script {
            Some(script) => (script.coordinators, script.workers),
            None if setting.fixed => (1, 2),
            None => (dice.pick(&[1, 2, 2, 3]), dice.pick(&[1, 2, 3, 3, 5, 8, 12])),
        };
        if setting.script.is_some() {
            (config.journal.snapshot_after, config.tasks.attempts_max) = (20_000, 8);
        }
        match &setting.script {
            Some(Script { samples: Some(samples), .. }) => few_samples(&mut config, *samples),
            None if !setting.fixed => draw_sizes(&mut config, &mut Dice::of(seed, "sizes")),
            _ => {}
        }
        let mut world_coordinators = Vec::new();
        for at in 0..coordinators {
            let node = core.add_node(seed, &format!("c{}", at + 1), skews);
            world_coordinators.push(Coordinator::new(node));
        }
        let mut world_workers = Vec::new();
        for at in 0..workers {
            let name = format!("w{}", at + 1);
            let node = core.add_node(seed, &name, skews);
            let slots = if setting.fixed { 1 } else { dice.within(1, 3) as u32 };
            if let Ok(id) = name.parse() {
                world_workers.push(Worker::new(node, id, slots));
            }
        }
        let client_node = core.add_node(seed, "client", false);
        let clients = match &setting.script {
            Some(script) => script_clients(&mut core, script),
            None if setting.fixed => fixed_client(&mut core),
            None => {
                let ids: Vec<WorkerId> =
                    world_workers.iter().map(|worker| worker.id.clone()).collect();
                draw_clients(&mut core, seed, &ids)
            }
        };
        let owned = core.oracle.has_owners();
        if owned {
            // An owner that is lost for good is waited for, and must not be for longer than the run
            // may last.
            config.phases.register_ms = dice.pick(&[2_000, 10_000, 60_000]);
            if setting.script.is_some() {
                config.phases.register_ms = 4_000;
            }
        }
        for worker in &mut world_workers {
            worker.offers = core.oracle.owns(&worker.id);
        }
        let mut trouble = Dice::of(seed, "trouble");
        if fault_events > 0 && setting.script.is_none() && trouble.below(3) > 0 {
            let (within_us, long_us) =
                (trouble.pick(&[100 * MS, S]), trouble.pick(&[S, 6 * S, 20 * S]));
            core.oracle.loses_owner = Some((trouble.below(within_us), long_us));
        }
        core.oracle.spoils_repairs =
            core.weights.rot > 0 && setting.script.is_none() && trouble.below(4) > 0;
        let unreadable =
            loses_input || core.oracle.spoils_repairs || !core.store.unreadable.is_empty();
        let uneven = config.sizes.partition_percent_max > 0;
        let allowed = allowed
            .and(owned && setting.script.is_none(), &["no other can read", "(phases.register_ms)"])
            .and(unreadable && setting.script.is_none(), &UNREADABLE.map(|(_, text)| text))
            .and(uneven, &["rounds of sampling"]);
        for (at_us, act) in setting.script.iter().flat_map(Script::timed) {
            core.at(at_us, Event::Act(act));
        }
        core.script.clone_from(&setting.script);
        core.drawn = core.weights.clone();
        for (job, client) in clients.iter().enumerate() {
            core.at(client.submit_us, Event::Client { job });
        }
        for _ in 0..fault_events {
            let at_us = dice.within(200 * MS, 9 * S);
            core.at(at_us, Event::Fault);
        }
        let heal_us = 10 * S + dice.below(10 * S);
        core.at(heal_us, Event::Heal);
        let shared: Shared = Arc::new(Mutex::new(core));
        let nodes = lock(&shared).nodes.len();
        let stores = (0..nodes)
            .filter_map(|node| own_stores(shared.clone(), node, &config.store).now_or_never())
            .collect();
        let mut world = Self {
            shared,
            names: Names::new(&config.namespace),
            config,
            executor: Executor::default(),
            coordinators: world_coordinators,
            workers: world_workers,
            stores,
            done: Arc::default(),
            clients,
            client_node,
            requests: 0,
            reports: BTreeMap::new(),
            allowed,
            dice: Dice::of(seed, "faults"),
            kinds,
            crash_at: setting.crash_at,
            armed: None,
            effects: (0, 0),
            healed: false,
            heal_us,
            events: 0,
        };
        for at in 0..world.coordinators.len() {
            world.start_coordinator(at);
        }
        for at in 0..world.workers.len() {
            world.start_worker(at);
        }
        world
    }

    /// Runs to the end.
    pub fn run(mut self) -> RunReport {
        let mut settled_us = None;
        loop {
            self.settle();
            let now_us = lock(&self.shared).now_us;
            if lock(&self.shared).violation.is_some() {
                break;
            }
            if settled_us.is_none() && self.is_over() {
                self.heal();
                settled_us = Some(now_us + SETTLE_US);
            }
            let waited_us = settled_us.map(|settled_us| now_us.saturating_sub(settled_us));
            if waited_us.is_some_and(|waited_us| {
                waited_us > UNSETTLED_US || (waited_us > 0 && self.is_settled())
            }) {
                self.check_end();
                break;
            }
            if self.healed && settled_us.is_none() && now_us > self.heal_us + LIVENESS_US {
                let open = self.open_jobs();
                lock(&self.shared)
                    .violate(format!("liveness: {open:?} long after everything was healed"));
                break;
            }
            self.events += 1;
            if self.events > EVENTS_MAX {
                lock(&self.shared).violate("liveness: the run goes in circles".to_owned());
                break;
            }
            let Some(event) = lock(&self.shared).take_next() else { break };
            self.handle(event);
        }
        for at in 0..self.coordinators.len() {
            self.executor.kill(self.coordinators[at].node);
        }
        for at in 0..self.workers.len() {
            self.executor.kill(self.workers[at].node);
        }
        let core = &mut *lock(&self.shared);
        RunReport {
            violation: core.violation.take(),
            hash: core.trace.hash(),
            trace: core.trace.text(),
            reach: std::mem::take(&mut core.reach),
            events: self.events,
            time_us: core.now_us,
            effects: self.effects,
            weights: core.weights.clone(),
            ends: core
                .ledger
                .truth
                .jobs
                .iter()
                .map(|(id, job)| (id.to_string(), job.state.to_string()))
                .collect(),
        }
    }

    /// Lets futures go on, and hands what they come to to their processes, until nothing moves.
    fn settle(&mut self) {
        loop {
            self.executor.run();
            let next = lock(&self.done).pop_front();
            if let Some((node, done)) = next {
                self.take_done(node, done);
                continue;
            }
            let mut moved = false;
            for at in 0..self.coordinators.len() {
                moved |= self.take_written(at);
            }
            if !moved {
                return;
            }
        }
    }

    fn take_done(&mut self, node: Node, done: Done) {
        let coordinator = self.coordinators.iter().position(|coordinator| coordinator.node == node);
        let worker = self.workers.iter().position(|worker| worker.node == node);
        match (done, coordinator, worker) {
            (Done::Input(input), Some(at), _) => self.feed(at, *input),
            (Done::Begun(epoch, begun, stalled), Some(at), _) => {
                self.begun(at, epoch, *begun, stalled);
            }
            (Done::Read(reading, read, stalled), Some(at), _) => {
                self.journal_read(at, reading, *read, stalled);
            }
            (Done::Leads, Some(at), _) => self.leads_still(at),
            (Done::Attempt(told), _, Some(at)) => self.attempt_tells(at, told),
            (Done::Ask(question), Some(at), _) => self.ask_worker(at, *question),
            (Done::WriterEnded, Some(at), _) => self.writer_ended(at),
            _ => {}
        }
    }

    fn handle(&mut self, event: Event) {
        let node = match &event {
            Event::Tick { node, .. }
            | Event::Timer { node, .. }
            | Event::Unanswered { node, .. } => Some(*node),
            Event::Deliver { to, .. } => Some(*to),
            _ => None,
        };
        // A stopped process finds what has come for it when it goes on.
        if let Some(node) = node {
            let core = &mut *lock(&self.shared);
            if let Some(until_us) = core.paused_until(node) {
                return core.at(until_us, event);
            }
        }
        match event {
            Event::Tick { node, life } => self.tick(node, life),
            Event::StoreApply(op) => self.store_applies(op),
            Event::StoreAnswer(op) => {
                let core = &mut *lock(&self.shared);
                match core.store_caller(op).and_then(|node| core.paused_until(node)) {
                    Some(until_us) => core.at(until_us, Event::StoreAnswer(op)),
                    None => core.store_answers(op),
                }
            }
            Event::LedgerApply(op) => lock(&self.shared).apply_ledger(op),
            Event::LedgerAnswer(op) => {
                let core = &mut *lock(&self.shared);
                match core.ledger_caller(op).and_then(|node| core.paused_until(node)) {
                    Some(until_us) => core.at(until_us, Event::LedgerAnswer(op)),
                    None => core.answer_arrives(op),
                }
            }
            Event::Timer { timer, .. } => lock(&self.shared).timer_due(timer),
            Event::Deliver { to, message } => self.deliver(to, message),
            Event::Unanswered { node, life, request } => {
                if lock(&self.shared).nodes[node].life != life {
                    return;
                }
                match self.place(node) {
                    Place::Coordinator(at) => self.coordinator_unanswered(at, request),
                    Place::Worker(at) => self.worker_unanswered(at, request),
                    Place::Client => {}
                }
            }
            Event::Fault => self.fault(),
            Event::Act(act) => self.act(&act),
            Event::Restart { node } => match self.place(node) {
                Place::Coordinator(at) => self.start_coordinator(at),
                Place::Worker(at) => self.start_worker(at),
                Place::Client => {}
            },
            Event::Client { job } => self.client(job),
            Event::Heal => self.heal(),
        }
    }

    fn store_applies(&mut self, op: u64) {
        let caller = lock(&self.shared).store_caller(op);
        lock(&self.shared).apply_store(op);
        if let Some(Place::Worker(at)) = caller.map(|node| self.place(node)) {
            self.survives_worker_effect(at);
        }
    }

    fn tick(&mut self, node: Node, life: u32) {
        {
            let core = lock(&self.shared);
            if !core.nodes[node].up || core.nodes[node].life != life {
                return;
            }
        }
        match self.place(node) {
            Place::Coordinator(at) => self.tick_coordinator(at),
            Place::Worker(at) => self.tick_worker(at),
            Place::Client => {}
        }
    }

    fn deliver(&mut self, to: Node, message: Message) {
        {
            let core = lock(&self.shared);
            if core.is_cut(to, Way::NatsIn) || (to != self.client_node && !core.nodes[to].up) {
                return;
            }
        }
        match self.place(to) {
            Place::Coordinator(at) => self.coordinator_hears(at, message),
            Place::Worker(at) => self.worker_hears(at, message),
            Place::Client => self.client_hears(message),
        }
    }

    fn place(&self, node: Node) -> Place {
        let coordinators = self.coordinators.len();
        match node {
            at if at < coordinators => Place::Coordinator(at),
            at if at < coordinators + self.workers.len() => Place::Worker(at - coordinators),
            _ => Place::Client,
        }
    }

    /// Sends to all coordinators that lead, as a subject does.
    pub(super) fn send_to_leaders(&mut self, from: Node, message: &Message) {
        for coordinator in &self.coordinators {
            if matches!(coordinator.role, Some(Role::Leads(_))) {
                lock(&self.shared).send(from, coordinator.node, message.clone());
            }
        }
    }

    /// Sends to all processes but oneself.
    pub(super) fn send_to_all(&mut self, from: Node, message: &Message) {
        let nodes =
            self.coordinators.iter().map(|c| c.node).chain(self.workers.iter().map(|w| w.node));
        for to in nodes.filter(|to| *to != from) {
            lock(&self.shared).send(from, to, message.clone());
        }
    }

    // --- crashes at an effect ---

    /// Counts an effect of a coordinator; `false` where it dies before carrying it out.
    pub(super) fn survives_effect(&mut self, at: usize) -> bool {
        let number = self.effects.0;
        self.effects.0 += 1;
        let due = match (&mut self.armed, self.crash_at) {
            (Some((armed, left, _)), _) if *armed == at => {
                *left = left.saturating_sub(1);
                *left == 0
            }
            (_, Some(CrashAt::BeforeEffect(crash))) => crash == number,
            (_, Some(CrashAt::AfterEffect(crash))) => crash + 1 == number,
            _ => false,
        };
        if due {
            self.armed = None;
            self.kill_coordinator(at, Some(S));
        }
        !due
    }

    /// Counts an effect of a worker; `false` where it dies before carrying it out.
    pub(super) fn survives_worker_effect(&mut self, at: usize) -> bool {
        let number = self.effects.1;
        self.effects.1 += 1;
        let due = self.crash_at == Some(CrashAt::WorkerEffect(number));
        if due {
            self.kill_worker(at, Some(S));
        }
        !due
    }

    // --- faults ---

    fn fault(&mut self) {
        if self.healed {
            return;
        }
        let kind = self.dice.pick(&self.kinds);
        let coordinator =
            usize::try_from(self.dice.below(self.coordinators.len() as u64)).unwrap_or_default();
        let worker =
            usize::try_from(self.dice.below(self.workers.len() as u64)).unwrap_or_default();
        let (short_us, long_us) =
            (self.dice.within(100 * MS, 3 * S), self.dice.within(3 * S, 9 * S));
        let any = match self.dice.below(3) {
            0 => self.coordinators[coordinator].node,
            _ => self.workers[worker].node,
        };
        let while_us = if self.dice.below(2) == 0 { short_us } else { long_us };
        let steps = self.dice.within(1, 40);
        let until_us = lock(&self.shared).now_us + while_us;
        lock(&self.shared).line(&"fault", &format!("{kind:?} for {} ms", while_us / MS));
        match kind {
            Kind::CrashWorker => self.kill_worker(worker, Some(short_us)),
            Kind::StopWorker => self.workers[worker].stops = true,
            Kind::CrashCoordinator => self.kill_coordinator(coordinator, Some(while_us)),
            Kind::CrashAtEffect => self.armed = Some((coordinator, steps, true)),
            Kind::SecondLeader => {
                // It is wrong, or the one that leads is on a minority's side, and hears nothing of
                // it.
                let leads = self
                    .node_of(&Whom::Leader)
                    .filter(|node| *node != self.coordinators[coordinator].node);
                if let Some(leads) = leads.filter(|_| steps.is_multiple_of(2)) {
                    let core = &mut *lock(&self.shared);
                    core.cut_with_minority(leads, core.now_us + long_us);
                }
                self.usurp(coordinator);
            }
            Kind::ChangeInput => self.change_input(steps),
            Kind::Resign => {
                let leads =
                    self.node_of(&Whom::Leader).unwrap_or(self.coordinators[coordinator].node);
                self.resign(leads, while_us);
            }
            Kind::DrainWorker => self.ask_to_drain(worker),
            Kind::LoseInput => self.lose_input(steps),
            _ => {
                let (coordinator, worker) =
                    (self.coordinators[coordinator].node, self.workers[worker].node);
                let core = &mut *lock(&self.shared);
                let cut = |core: &mut Core, node: Node, ways: &[Way]| {
                    for way in ways {
                        core.nodes[node].cut_until_us[*way as usize] = until_us;
                    }
                };
                match kind {
                    Kind::PauseWorker => core.nodes[worker].paused_until_us = until_us,
                    Kind::PauseCoordinator => core.nodes[coordinator].paused_until_us = until_us,
                    Kind::SlowWorker => core.nodes[worker].slow = 20,
                    // A leader is cut off alone, or with the server that it is connected to.
                    Kind::CutNats if any == coordinator && steps.is_multiple_of(2) => {
                        core.cut_with_minority(coordinator, until_us);
                    }
                    Kind::CutNats => cut(core, any, &[Way::NatsIn, Way::NatsOut]),
                    Kind::CutStore => cut(core, any, &[Way::StoreIn, Way::StoreOut]),
                    Kind::CutNatsIn => cut(core, any, &[Way::NatsIn]),
                    Kind::CutNatsOut => cut(core, any, &[Way::NatsOut]),
                    Kind::CutStoreAnswers => cut(core, any, &[Way::StoreIn]),
                    Kind::RestartServer => core.server_away_until_us = until_us,
                    Kind::StoreAway => core.store_away_until_us = until_us,
                    _ => core.clogged_until_us = until_us,
                }
            }
        }
    }

    /// Somebody writes to the input of a job that is accepted. What stands there then is no longer
    /// what was pinned: the job may fail, but never mix the two.
    fn change_input(&mut self, steps: u64) {
        let core = &mut *lock(&self.shared);
        let runs = |client: &&Client| core.runs(&client.spec.job);
        let Some(client) = self.clients.iter().find(runs) else { return };
        let keys = core.oracle.keys_of(&client.spec.job);
        let Some(key) = keys.get(steps as usize % keys.len().max(1)) else { return };
        let mut bytes =
            core.store.objects.get(key).map(|object| object.bytes.to_vec()).unwrap_or_default();
        // Of the same length, or shorter by half.
        if steps.is_multiple_of(2) {
            bytes.truncate(bytes.len() / 2);
        } else {
            bytes.iter_mut().for_each(|byte| *byte = byte.wrapping_add(1));
        }
        core.store.place(key, bytes);
        core.mark("input changed");
    }

    /// An input object of a job that is accepted cannot be read any more; mostly of one that may
    /// leave it out.
    fn lose_input(&mut self, steps: u64) {
        let core = &mut *lock(&self.shared);
        let may = |client: &&Client| {
            core.runs(&client.spec.job)
                && (client.spec.bad_inputs == BadInputs::Skip || steps.is_multiple_of(4))
        };
        let Some(client) = self.clients.iter().find(may) else { return };
        let keys = core.oracle.keys_of(&client.spec.job);
        let Some(key) = keys.get(steps as usize % keys.len().max(1)) else { return };
        let (kind, _) = UNREADABLE[steps as usize / 2 % UNREADABLE.len()];
        core.store.unreadable.insert(key.clone(), Unreadable { kind, always: true });
    }

    /// Somebody asks for a worker to be drained.
    fn ask_to_drain(&mut self, worker: usize) {
        self.requests += 1;
        let (request, from, worker) =
            (self.requests, self.client_node, self.workers[worker].id.clone());
        self.call(from, request, Call::Drain, &WorkerQuery { worker });
    }

    fn call(&mut self, from: Node, request: u64, call: Call, body: &impl Serialize) {
        let reply = bus::inbox(&self.names, "client", from, request);
        match serde_json::to_vec(body) {
            Ok(body) => {
                self.send_to_leaders(from, &Message::Call { from, request, call, reply, body });
            }
            Err(error) => {
                lock(&self.shared).violate(format!("a call cannot be written: {error}"));
            }
        }
    }

    /// Does what a script says.
    fn act(&mut self, act: &Act) {
        lock(&self.shared).line(&"script", &format!("{act:?}"));
        let now_us = lock(&self.shared).now_us;
        let (whom, for_us) = match act {
            Act::Kill(whom, for_us) | Act::Pause(whom, for_us) | Act::Cut(whom, _, for_us) => {
                (whom, *for_us)
            }
            Act::Resign(whom, for_us) | Act::Isolate(whom, for_us) => (whom, *for_us),
            Act::Stop(whom) | Act::Slow(whom) | Act::Usurp(whom) | Act::Drain(whom) => (whom, 0),
            Act::Forbid(text) => {
                let core = &mut *lock(&self.shared);
                let keys = core.store.objects.keys().filter(|key| key.contains(text.as_str()));
                let keys: Vec<String> = keys.cloned().collect();
                for key in keys {
                    core.store
                        .unreadable
                        .insert(key, Unreadable { kind: ErrorKind::Invalid, always: true });
                }
                return;
            }
            Act::LoseRun(text) => {
                let store = &mut lock(&self.shared).store;
                let lost = store
                    .objects
                    .keys()
                    .filter(|key| key.ends_with(".run") && key.contains(text.as_str()));
                let lost: Vec<String> = lost.cloned().collect();
                for key in lost {
                    store.objects.remove(&key);
                    store.rotted.insert(key);
                }
                return;
            }
            Act::Cancel(job) => {
                if let Some(client) = self.clients.get_mut(*job) {
                    client.cancel_us = Some(now_us);
                    lock(&self.shared).after(0, Event::Client { job: *job });
                }
                return;
            }
            Act::StaleReads(for_us) => {
                lock(&self.shared).stale_until_us = now_us + for_us;
                return;
            }
        };
        let Some(node) = self.node_of(whom) else {
            return lock(&self.shared)
                .violate(format!("the script speaks of {whom:?}, who is not there"));
        };
        match (act, self.place(node)) {
            (Act::Kill(..), Place::Coordinator(at)) => self.kill_coordinator(at, Some(for_us)),
            (Act::Kill(..), Place::Worker(at)) => self.kill_worker(at, Some(for_us)),
            (Act::Usurp(_), Place::Coordinator(at)) => self.usurp(at),
            (Act::Resign(..), Place::Coordinator(_)) => self.resign(node, for_us),
            (Act::Drain(_), Place::Worker(at)) => self.ask_to_drain(at),
            (Act::Stop(_), Place::Worker(at)) => self.workers[at].stops = true,
            (Act::Slow(_), _) => lock(&self.shared).nodes[node].slow = 20,
            (Act::Pause(..), _) => lock(&self.shared).nodes[node].paused_until_us = now_us + for_us,
            (Act::Isolate(..), Place::Coordinator(_)) => {
                lock(&self.shared).cut_with_minority(node, now_us + for_us);
            }
            (Act::Cut(_, ways, _), _) => {
                for way in ways {
                    lock(&self.shared).nodes[node].cut_until_us[*way as usize] = now_us + for_us;
                }
            }
            _ => lock(&self.shared).violate(format!("the script cannot do that: {act:?}")),
        }
    }

    fn node_of(&self, whom: &Whom) -> Option<Node> {
        match whom {
            Whom::Named(name) => {
                lock(&self.shared).nodes.iter().position(|info| info.name == *name)
            }
            Whom::Node(node) => Some(*node),
            Whom::Caller => None,
            Whom::Leader => {
                let leads = |at: &usize| match &self.coordinators[*at].role {
                    Some(Role::Leads(leader)) => Some(leader.machine.epoch()),
                    _ => None,
                };
                let newest = (0..self.coordinators.len())
                    .filter(|at| leads(at).is_some())
                    .max_by_key(leads)?;
                Some(self.coordinators[newest].node)
            }
        }
    }

    /// The faults end for a core of processes, and become permanent for some of the others.
    fn heal(&mut self) {
        if std::mem::replace(&mut self.healed, true) {
            return;
        }
        {
            let core = &mut *lock(&self.shared);
            core.line(&"world", &"is healed");
            self.heal_us = core.now_us;
            core.weights = Weights::default();
            core.clogged_until_us = 0;
            core.server_away_until_us = 0;
            core.store_away_until_us = 0;
            let now_us = core.now_us;
            for info in &mut core.nodes {
                info.cut_until_us = [0; 4];
                info.slow = 1;
                info.paused_until_us = info.paused_until_us.min(now_us);
            }
        }
        self.armed = None;
        // A script says itself who is lost for good: nobody.
        let over = self.is_over() || lock(&self.shared).script.is_some();
        let core_worker =
            usize::try_from(self.dice.below(self.workers.len() as u64)).unwrap_or_default();
        let core_coordinator =
            usize::try_from(self.dice.below(self.coordinators.len() as u64)).unwrap_or_default();
        for at in 0..self.workers.len() {
            let lost = at != core_worker && self.dice.below(4) == 0 && !over;
            match (lost, self.dice.below(2)) {
                (true, 0) => {
                    self.kill_worker(at, None);
                    self.workers[at].gone = true;
                }
                (true, _) => {
                    let node = self.workers[at].node;
                    let info = &mut lock(&self.shared).nodes[node];
                    info.cut_until_us[Way::NatsIn as usize] = u64::MAX;
                    info.cut_until_us[Way::NatsOut as usize] = u64::MAX;
                }
                _ => self.start_worker(at),
            }
        }
        for at in 0..self.coordinators.len() {
            if at != core_coordinator && self.dice.below(4) == 0 && !over {
                self.kill_coordinator(at, None);
                self.coordinators[at].gone = true;
            } else {
                self.start_coordinator(at);
            }
        }
    }

    // --- clients ---

    fn client(&mut self, job: usize) {
        let (now_us, from) = (lock(&self.shared).now_us, self.client_node);
        let client = &self.clients[job];
        if client.refused.is_some() || self.is_closed(job) {
            return;
        }
        let cancels = client.cancel_us.is_some_and(|cancel_us| now_us >= cancel_us);
        self.requests += 1;
        let request = self.requests;
        let id = client.spec.job.clone();
        match (client.accepted, cancels) {
            (false, _) => self.call(from, request, Call::Submit, &client.spec.clone()),
            (true, true) => self.call(from, request, Call::Cancel, &JobQuery { job: id }),
            (true, false) => self.call(from, request, Call::Status, &JobQuery { job: id }),
        }
        self.clients[job].request = request;
        let pause_us = if self.clients[job].accepted { 2 * S } else { S };
        lock(&self.shared).after(pause_us, Event::Client { job });
    }

    fn client_hears(&mut self, message: Message) {
        let Message::CallAnswer { request, body } = message else { return };
        let Some(client) = self.clients.iter_mut().find(|client| client.request == request) else {
            return;
        };
        let is = |code: usize, of: RefusalCode| code == of.number();
        match body.map(|body| serde_json::from_slice::<JobStatus>(&body)) {
            Ok(Ok(status)) => {
                client.accepted = true;
                if status.state.is_terminal() {
                    client.cancel_us = None;
                }
            }
            Ok(Err(error)) => {
                lock(&self.shared).violate(format!("an answer cannot be read: {error}"));
            }
            Err((code, text)) if is(code, RefusalCode::BadRequest) && !client.accepted => {
                lock(&self.shared).line(&"client", &format!("is refused: {text}"));
                client.refused = Some(text);
            }
            Err((code, _)) if is(code, RefusalCode::Conflict) && client.accepted => {
                client.cancel_us = None;
            }
            Err(_) => {}
        }
    }

    fn is_closed(&self, job: usize) -> bool {
        let core = lock(&self.shared);
        let client = &self.clients[job];
        match core.ledger.truth.jobs.get(&client.spec.job) {
            Some(job) => job.cleaned,
            None => client.refused.is_some(),
        }
    }

    fn is_over(&self) -> bool {
        (0..self.clients.len()).all(|job| self.is_closed(job))
    }

    /// Whether no worker that runs is at work on anything, nothing is on its way to the store, and
    /// nothing waits there for a late sweep.
    fn is_settled(&self) -> bool {
        let busy = |worker: &Worker| worker.life.is_some() && self.executor.is_busy(worker.node);
        let core = &*lock(&self.shared);
        !self.workers.iter().any(busy)
            && !core.store.is_changing()
            && core.late_in_scratch().is_empty()
    }

    fn open_jobs(&self) -> Vec<String> {
        let core = lock(&self.shared);
        let open = self.clients.iter().filter_map(|client| {
            let job: &JobId = &client.spec.job;
            match core.ledger.truth.jobs.get(job) {
                Some(known) if known.cleaned => None,
                Some(known) => Some(format!("{job} is {}", known.state)),
                None => Some(format!("{job} is not accepted")),
            }
        });
        open.collect()
    }
}

enum Place {
    Coordinator(usize),
    Worker(usize),
    Client,
}
