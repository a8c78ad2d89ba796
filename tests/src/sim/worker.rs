//! A worker process in the simulation: the program's own machines ([`Attempts`], [`Presence`]) and
//! tasks ([`AtWork`]), between the simulated bus, clock and store.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::FutureExt;

use muster_coordinator::Kind;
use muster_platform::adapters::memory::MemoryBlobs;
use muster_platform::buffer::BufferPool;
use muster_platform::retry::Retry;
use muster_platform::store::{BlobUrl, Scheme};
use muster_platform::stores::Stores;
use muster_protocol::ids::{Incarnation, WorkerId};
use muster_protocol::names::{self, Verb};
use muster_protocol::wire::{
    self, Health, Heartbeat, LeaderBeat, Outcome, Register, RegisterReply, Report, ReportReply,
    RunAttempt, Work, WorkerState,
};
use muster_protocol::{Error, Result};
use muster_worker::at_work::AtWork;
use muster_worker::attempt::{Attempts, Effect, Input, Key};
use muster_worker::presence::{Admitted, Presence};
use muster_worker::{Budget, Context, Spills};

use super::bus::{self, Message};
use super::core::{Event, MS, Node, S, SimClock};
use super::exec::lock;
use super::faults::Harm;
use super::jobs::OFFERED;
use super::script::Happens;
use super::world::{Done, World};

/// How often its loop looks at the time, in microseconds.
const TICK_US: u64 = 50 * MS;
/// How long a supervisor takes to start it again.
const RESTART_US: u64 = 2 * S;
/// How long a leaving worker waits for its attempts to end.
const LEAVE_US: u64 = 5 * S;

/// Memory of a worker's windows and parts: for all at once, or so little that merges go in rounds.
const IO_BYTES: usize = 1 << 30;
const LITTLE_IO_MIB: u64 = 16;
/// Some have windows and parts of a page, so that objects have many.
const SHRUNK: u64 = 11;

/// What a request was about.
enum Asked {
    Register(Vec<Key>),
    Report(Key),
}

/// One life of a worker.
pub struct Life {
    incarnation: Incarnation,
    /// What it holds.
    pub attempts: Attempts,
    presence: Presence,
    work: AtWork,
    /// Reads of replicas so far.
    from_replica: u64,
    asked: BTreeMap<u64, Asked>,
    /// It ends now; until then it waits for its attempts.
    leaving_until_us: Option<u64>,
}

/// A worker.
pub struct Worker {
    /// Its place.
    pub node: Node,
    /// Its identity.
    pub id: WorkerId,
    slots: u32,
    /// The process, while it runs.
    pub life: Option<Life>,
    /// Nobody starts it again.
    pub gone: bool,
    /// It was told to end.
    pub stops: bool,
    /// It offers files of its own.
    pub offers: bool,
}

impl Worker {
    /// A worker that is not started.
    pub fn new(node: Node, id: WorkerId, slots: u32) -> Self {
        Self { node, id, slots, life: None, gone: false, stops: false, offers: false }
    }

    /// The subject on which it asks: every other has a user of its own, and asks under its id.
    fn form(&self, subject: &str) -> String {
        if self.node.is_multiple_of(2) {
            names::of_worker(subject, &self.id)
        } else {
            subject.to_owned()
        }
    }
}

impl World {
    /// Starts a worker's process.
    pub fn start_worker(&mut self, at: usize) {
        let worker = &self.workers[at];
        if worker.life.is_some() || worker.gone {
            return;
        }
        let Some(context) = self.context_of(at) else { return };
        let worker = &mut self.workers[at];
        let core = &mut *lock(&self.shared);
        let info = &mut core.nodes[worker.node];
        info.up = true;
        info.life += 1;
        let life = info.life;
        let incarnation = Incarnation(info.dice.next());
        let now_ms = core.local_ms(worker.node);
        core.node_line(worker.node, &"starts");
        core.after(0, Event::Tick { node: worker.node, life });
        worker.life = Some(Life {
            incarnation,
            attempts: Attempts::new(
                worker.id.clone(),
                incarnation,
                worker.slots,
                self.config.retry.nats.clone(),
            ),
            presence: Presence::new(worker.id.clone(), &self.config, now_ms),
            work: AtWork::new(context),
            from_replica: 0,
            asked: BTreeMap::new(),
            leaving_until_us: None,
        });
        worker.stops = false;
    }

    /// What the tasks of a new life share. The disk for its spills is its own, and gone with it.
    fn context_of(&self, at: usize) -> Option<Context> {
        let Worker { node, slots, .. } = self.workers[at];
        let (sorter_bytes, io_bytes, shrunk) = {
            let core = &mut *lock(&self.shared);
            // A chunk holds each record, however long.
            let powers = if core.oracle.has_long_records() { 16..=19 } else { 10..=15 };
            let dice = &mut core.nodes[node].dice;
            let little = ((LITTLE_IO_MIB + dice.below(8)) as usize) << 20;
            let io_bytes = dice.pick(&[IO_BYTES as u64, little as u64]) as usize;
            let shrunk = dice.pick(&[0, 0, 0, SHRUNK]) as u32;
            (2 << dice.within(*powers.start(), *powers.end()), io_bytes, shrunk)
        };
        let budget = Budget {
            memory_bytes: 1 << 30,
            beside_bytes: 0,
            slots,
            cache_bytes: 1 << 20,
            buffer_bytes: 1 << 30,
            slot_bytes: sorter_bytes + io_bytes,
            sorter_bytes,
            io_bytes,
            shrunk,
        };
        let clock = Arc::new(SimClock { shared: self.shared.clone(), node });
        let retry = Retry::new(self.config.retry.clone(), clock);
        let stores = self.stores[node].clone();
        stores.insert(Scheme::Memory, Arc::new(MemoryBlobs::default())).now_or_never()?;
        let spills = Spills::new("memory:///spill".parse::<BlobUrl>().ok()?);
        let context = Context::new(self.executor.crew(node), stores, retry, budget, slots, spills);
        Some(context.waiting_for_copies(self.config.store.replica_after_ms))
    }

    /// The process is gone, from one moment to the next.
    pub fn kill_worker(&mut self, at: usize, restart_us: Option<u64>) {
        let worker = &mut self.workers[at];
        let node = worker.node;
        if worker.life.take().is_none() {
            return;
        }
        self.executor.kill(node);
        let core = &mut *lock(&self.shared);
        core.nodes[node].up = false;
        core.nodes[node].paused_until_us = 0;
        core.node_line(node, &"is gone");
        if let Some(restart_us) = restart_us {
            core.after(restart_us, Event::Restart { node });
        }
    }

    pub(super) fn tick_worker(&mut self, at: usize) {
        let node = self.workers[at].node;
        let (now_us, now_ms) = {
            let core = lock(&self.shared);
            (core.now_us, core.local_ms(node))
        };
        if self.workers[at].stops {
            self.workers[at].stops = false;
            if let Some(life) = &mut self.workers[at].life {
                life.presence.stop(now_ms);
            }
            self.step_worker(at, Input::Stop, None);
        }
        self.step_worker(at, Input::Tick, None);
        let Some(life) = self.workers[at].life.as_mut() else { return };
        if let Some(until_us) = life.leaving_until_us {
            if life.attempts.is_idle() || now_us >= until_us {
                return self.end_worker(at);
            }
        } else {
            if life.presence.asks_admission(now_ms, &life.attempts) {
                self.ask_admission(at);
            }
            let Some(life) = self.workers[at].life.as_mut() else { return };
            if let Some(state) = life.presence.heartbeat_due(now_ms, &life.attempts) {
                self.beat(at, state);
            }
            let Some(life) = self.workers[at].life.as_mut() else { return };
            if life.presence.end(now_ms, &life.attempts).is_some() {
                self.leave(at);
            }
        }
        let core = &mut *lock(&self.shared);
        let (pause_us, life) = (TICK_US * core.nodes[node].slow.min(4), core.nodes[node].life);
        core.after(pause_us, Event::Tick { node, life });
    }

    fn leave(&mut self, at: usize) {
        if self.workers[at]
            .life
            .as_ref()
            .is_some_and(|life| life.attempts.running().next().is_some())
        {
            lock(&self.shared).mark("hand-back");
        }
        self.beat(at, WorkerState::Leaving);
        self.step_worker(at, Input::Leave, None);
        let now_us = lock(&self.shared).now_us;
        if let Some(life) = self.workers[at].life.as_mut() {
            life.leaving_until_us = Some(now_us + LEAVE_US);
        }
    }

    fn end_worker(&mut self, at: usize) {
        self.kill_worker(at, Some(RESTART_US));
    }

    fn step_worker(&mut self, at: usize, input: Input, reply: Option<(Node, u64)>) {
        let node = self.workers[at].node;
        let now_ms = lock(&self.shared).local_ms(node);
        let Some(life) = self.workers[at].life.as_mut() else { return };
        let effects = life.attempts.step(now_ms, input);
        for effect in effects {
            if !self.survives_worker_effect(at) {
                return;
            }
            self.carry_out_worker(at, effect, reply);
        }
    }

    fn carry_out_worker(&mut self, at: usize, effect: Effect, reply: Option<(Node, u64)>) {
        let node = self.workers[at].node;
        let now_ms = lock(&self.shared).local_ms(node);
        let Some(life) = self.workers[at].life.as_mut() else { return };
        match effect {
            Effect::AnswerRun(answer) => self.answer_command(node, reply, wire::encode(&answer)),
            Effect::Answer(answer) => self.answer_command(node, reply, wire::encode(&answer)),
            Effect::Start(run) => self.start_attempt(at, *run),
            Effect::Proceed(key) => life.work.proceed(&key),
            Effect::Abandon(key) => {
                life.work.abandon(&key);
                lock(&self.shared)
                    .node_line(node, &format!("abandons {} of {}", key.attempt, key.job));
            }
            Effect::CleanUp(key) => {
                if let Some(removal) = life.work.clean_up(&key) {
                    self.executor.spawn(node, removal);
                }
            }
            Effect::Keep(key) => life.work.keep(&key),
            Effect::Send(report) => self.send_report(at, &report),
            Effect::Register => life.presence.register_now(now_ms),
        }
    }

    fn answer_command(&mut self, node: Node, reply: Option<(Node, u64)>, frame: Result<Vec<u8>>) {
        if let (Some((to, request)), Ok(frame)) = (reply, frame) {
            lock(&self.shared).send(node, to, Message::Answer { request, frame });
        }
    }

    fn start_attempt(&mut self, at: usize, mut run: RunAttempt) {
        let node = self.workers[at].node;
        let Some(life) = self.workers[at].life.as_mut() else { return };
        let key = Key { job: run.job.clone(), attempt: run.attempt };
        let running = life.work.keys().len() + 1;
        let harm = {
            let core = &mut *lock(&self.shared);
            core.node_line(node, &format!("begins {} of {}", key.attempt, key.job));
            let (_, scripted) =
                core.meets(Happens::Begin(&key.attempt.task.phase.to_string()), node);
            let (exhaust, bad_memory, torn) =
                (core.weights.exhaust, core.weights.bad_memory, core.weights.torn_split);
            let dice = &mut core.nodes[node].dice;
            let harm = Harm {
                exhausts: dice.chance(exhaust) || scripted.exhausts,
                bad_memory: dice.chance(bad_memory) || scripted.bad_memory,
                torn_split: dice.chance(torn) || scripted.torn_split,
            };
            if harm.bad_memory {
                core.mark("bad memory");
            }
            if harm.torn_split {
                core.tear(&mut run);
            }
            if let Work::Merge { runs, .. } = &run.work {
                core.check_merge_begins(&run.job, &run.attempt, runs);
            }
            if running > 64 {
                core.violate(format!("bounds: a worker runs {running} attempts"));
            }
            harm
        };
        let faults = harm.faults(Arc::new(SimClock { shared: self.shared.clone(), node }));
        let done = self.done.clone();
        let tell = move |told| {
            lock(&done).push_back((node, Done::Attempt(told)));
            std::future::ready(())
        };
        let work = life.work.begin(run, faults, tell);
        self.executor.spawn_for(node, Some(Arc::new(key)), work);
    }

    /// An attempt has opened its upload, or has ended.
    pub(super) fn attempt_tells(&mut self, at: usize, told: Input) {
        let node = self.workers[at].node;
        let Some(life) = self.workers[at].life.as_mut() else { return };
        let from_replica = life.work.context().mended(0).from_replica;
        let before = std::mem::replace(&mut life.from_replica, from_replica);
        let mark = |is: bool, mark| {
            if is {
                lock(&self.shared).mark(mark);
            }
        };
        mark(from_replica > before, "replica fall-back");
        match &told {
            Input::Finished { key, outcome: Outcome::Failed { error } } => {
                let line = format!("{} fails: {error}", key.attempt);
                lock(&self.shared).node_line(node, &line);
            }
            Input::Finished { outcome: Outcome::Sorted(run), .. } => {
                mark(run.spills > 0, "spill");
                mark(run.quarantine.is_some(), "quarantine");
            }
            _ => {}
        }
        self.step_worker(at, told, None);
    }

    fn request(&mut self, at: usize, asked: Asked) -> u64 {
        self.requests += 1;
        let request = self.requests;
        let node = self.workers[at].node;
        if let Some(life) = self.workers[at].life.as_mut() {
            life.asked.insert(request, asked);
        }
        let core = &mut *lock(&self.shared);
        let time_out_us = core.local_us(node, self.config.nats.request_timeout_ms);
        let life = core.nodes[node].life;
        core.after(time_out_us, Event::Unanswered { node, life, request });
        request
    }

    fn ask_admission(&mut self, at: usize) {
        let Some(life) = self.workers[at].life.as_ref() else { return };
        let held = life.attempts.held();
        let asked =
            held.iter().map(|held| Key { job: held.job.clone(), attempt: held.attempt }).collect();
        let register = Register {
            worker: self.workers[at].id.clone(),
            incarnation: life.incarnation,
            program: "simulation".to_owned(),
            host: self.workers[at].id.to_string(),
            slots: self.workers[at].slots,
            memory_bytes: 1 << 30,
            labels: Vec::new(),
            draining: life.attempts.is_draining(),
            held,
            wire: wire::WIRE_VERSION,
            settings: Vec::new(),
            inputs: self.workers[at].offers.then(|| OFFERED.to_owned()).into_iter().collect(),
        };
        let request = self.request(at, Asked::Register(asked));
        let subject = self.workers[at].form(&self.names.register());
        self.send_letter(at, Kind::Register, subject, Some(request), wire::encode(&register));
    }

    fn send_report(&mut self, at: usize, report: &Report) {
        let key = Key { job: report.job.clone(), attempt: report.attempt };
        let request = self.request(at, Asked::Report(key));
        let samples =
            matches!(report.outcome, Outcome::Sampled { .. } | Outcome::SampledToScratch { .. });
        let shared = if samples { self.names.samples() } else { self.names.report() };
        let subject = self.workers[at].form(&shared);
        self.send_letter(at, Kind::Report, subject, Some(request), wire::encode(report));
    }

    fn send_letter(
        &mut self,
        at: usize,
        kind: Kind,
        subject: String,
        request: Option<u64>,
        frame: Result<Vec<u8>>,
    ) {
        let from = self.workers[at].node;
        let reply = request.map(|request| bus::inbox(&self.names, "worker", from, request));
        if let Ok(frame) = frame {
            self.send_to_leaders(from, &Message::Letter { kind, subject, reply, frame });
        }
    }

    fn beat(&mut self, at: usize, state: WorkerState) {
        let id = self.workers[at].id.clone();
        let Some(life) = self.workers[at].life.as_mut() else { return };
        let Some(epoch) = life.attempts.registered() else { return };
        let heartbeat = Heartbeat {
            worker: id,
            incarnation: life.incarnation,
            epoch,
            sequence: life.presence.next_sequence(),
            state,
            attempts: life.attempts.running().filter_map(|key| life.work.progress(key)).collect(),
            health: Health::default(),
        };
        let subject = self.names.heartbeat(&heartbeat.worker);
        self.send_letter(at, Kind::Heartbeat, subject, None, wire::encode(&heartbeat));
    }

    pub(super) fn worker_hears(&mut self, at: usize, message: Message) {
        let node = self.workers[at].node;
        let now_ms = lock(&self.shared).local_ms(node);
        let Some(life) = self.workers[at].life.as_mut() else { return };
        match message {
            Message::Beat(frame) => {
                let Ok(beat) = wire::decode::<LeaderBeat>(&frame) else { return };
                life.presence.heard(now_ms);
                if life.presence.note_deployment(&beat.deployment).is_some() {
                    self.step_worker(at, Input::NewDeployment, None);
                }
                self.step_worker(at, Input::Beat { epoch: beat.epoch }, None);
            }
            Message::Command { from, request, verb, frame, .. } => {
                if let (Verb::List, Ok(list)) = (verb, wire::decode(&frame)) {
                    life.presence.heard(now_ms);
                    let answer = self.offered(at, &list);
                    return self.answer_command(node, Some((from, request)), wire::encode(&answer));
                }
                if verb == Verb::Drain {
                    lock(&self.shared).mark("worker drained");
                }
                let input = match verb {
                    Verb::Run => wire::decode(&frame).map(|run| Input::Run(Box::new(run))),
                    Verb::Cancel => wire::decode(&frame).map(Input::Cancel),
                    Verb::Drain => wire::decode(&frame).map(Input::Drain),
                    _ => return,
                };
                life.presence.heard(now_ms);
                if let Ok(input) = input {
                    self.step_worker(at, input, Some((from, request)));
                }
            }
            Message::Answer { request, frame } => match life.asked.remove(&request) {
                Some(Asked::Register(asked)) => {
                    self.registered(at, asked, wire::decode::<RegisterReply>(&frame));
                }
                Some(Asked::Report(key)) => {
                    let reply = wire::decode::<ReportReply>(&frame).ok();
                    if matches!(reply, Some(ReportReply::Revoked { .. })) {
                        lock(&self.shared).mark("zombie report");
                    }
                    if let Some(life) = self.workers[at].life.as_mut() {
                        life.presence.heard(now_ms);
                    }
                    self.step_worker(at, Input::Answered { key, reply }, None);
                }
                None => {}
            },
            _ => {}
        }
    }

    pub(super) fn worker_unanswered(&mut self, at: usize, request: u64) {
        let Some(life) = self.workers[at].life.as_mut() else { return };
        match life.asked.remove(&request) {
            Some(Asked::Register(asked)) => {
                self.registered(at, asked, Err(Error::retry("no answer")));
            }
            Some(Asked::Report(key)) => {
                self.step_worker(at, Input::Answered { key, reply: None }, None);
            }
            None => {}
        }
    }

    fn registered(&mut self, at: usize, asked: Vec<Key>, reply: Result<RegisterReply>) {
        let node = self.workers[at].node;
        let (now_ms, random) = {
            let core = &mut *lock(&self.shared);
            (core.local_ms(node), core.nodes[node].dice.next())
        };
        let Some(life) = self.workers[at].life.as_mut() else { return };
        match life.presence.answered(now_ms, random, reply) {
            Ok(Some(Admitted { deployment, epoch, regranted, .. })) => {
                if life.attempts.registered() != Some(epoch) {
                    let core = &mut *lock(&self.shared);
                    core.node_line(
                        node,
                        &format!("is registered under epoch {epoch}, {} go on", regranted.len()),
                    );
                    if !regranted.is_empty() {
                        core.mark("re-grant");
                    }
                }
                let Some(life) = self.workers[at].life.as_mut() else { return };
                if life.presence.note_deployment(&deployment).is_some() {
                    self.step_worker(at, Input::NewDeployment, None);
                }
                self.step_worker(at, Input::Registered { epoch, asked, regranted }, None);
            }
            Ok(None) => {}
            // Its supervisor starts it again.
            Err(_) => self.leave(at),
        }
    }
}

thread_local! {
    /// Buffers of all processes.
    static BUFFERS: BufferPool = BufferPool::new(64 << 20);
}

/// A process's stores: its own connection to the one store, and a worker's own disk.
pub async fn own_stores(
    shared: super::core::Shared,
    node: Node,
    limits: &muster_platform::config::Store,
) -> Stores {
    let stores = Stores::new(BUFFERS.with(Clone::clone), limits);
    let scheme = muster_platform::store::Scheme::S3 { bucket: super::world::BUCKET.to_owned() };
    let name = lock(&shared).nodes[node].name.clone();
    let port =
        |base: String| Arc::new(super::store::StorePort { shared: shared.clone(), node, base });
    stores.insert(scheme, port(String::new())).await;
    if let Some(id) = name.parse::<WorkerId>().ok().filter(|_| name.starts_with('w')) {
        let disk = super::store::disk_key(&id, "/");
        stores.insert(muster_platform::store::Scheme::Worker { id }, port(disk)).await;
    }
    stores
}
