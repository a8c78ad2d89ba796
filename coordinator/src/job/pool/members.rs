//! The pool: who is registered, who lives, who has room.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use muster_platform::config::Config;
use muster_platform::inputs::FOLDERS_MAX;
use muster_platform::store::BlobUrl;
use muster_protocol::api::WorkerStatus;
use muster_protocol::ids::{AttemptId, JobId, WorkerId};
use muster_protocol::wire::{Health, Register};
use muster_protocol::{Error, Result};

use crate::job::overlap;
use crate::job::pool::policies::breaker::{self, Breaker};
use crate::job::pool::policies::health::{self, Class, WorkerFigures};
use crate::job::pool::policies::phi::{self, Detector, Liveness};
use crate::job::pool::policies::sliding::Sliding;
use crate::job::pool::policies::speculation::Speed;

/// Most workers that are known at once, dead ones included.
pub(crate) const WORKERS_MAX: usize = 20_000;
/// Most attempts that one worker may offer to run at once.
pub(crate) const SLOTS_MAX: u32 = 4096;
const TEXT_BYTES_MAX: usize = 256;
/// How a worker that waits for a store begins to say so.
const STORE: &str = "store";
const LABELS_MAX: usize = 64;
/// Heartbeats of the whole pool in a second are about this many.
const HEARTBEATS_A_SECOND: u64 = 1000;

/// The pool.
#[derive(Debug, Default)]
pub(crate) struct Workers {
    all: BTreeMap<WorkerId, Worker>,
    /// Those with room, the most room first.
    free: BTreeSet<(Reverse<u32>, WorkerId)>,
    counts: Counts,
}

/// How many workers there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// That are not dead and have not left.
    pub alive: u32,
    /// Of them, those that are not draining.
    pub there: u32,
    /// That should be there: dead ones, too.
    pub part: u32,
}

impl Counts {
    fn add(&mut self, worker: &Worker) {
        self.alive += u32::from(worker.is_alive());
        self.there += u32::from(worker.is_alive() && worker.takes_part());
        self.part += u32::from(worker.takes_part());
    }

    fn take_away(&mut self, worker: &Worker) {
        self.alive -= u32::from(worker.is_alive());
        self.there -= u32::from(worker.is_alive() && worker.takes_part());
        self.part -= u32::from(worker.takes_part());
    }
}

/// One registered worker.
#[derive(Debug)]
pub(crate) struct Worker {
    pub info: Register,
    pub detector: Detector,
    pub breaker: Breaker,
    pub speed: Speed,
    /// What became of its attempts lately.
    pub ended: Sliding,
    pub draining: bool,
    /// It said that it ends. It stays in the list for a while, so that people see what became of
    /// it.
    pub left: bool,
    pub heartbeat_ms: u64,
    /// Sequence of the newest heartbeat; older ones say nothing new.
    pub sequence: Option<u64>,
    pub attempts: BTreeSet<(JobId, AttemptId)>,
    /// It said that it is busy: nothing for it until its pause is over.
    pub paused: bool,
    /// How often in a row it said so.
    pub busy: u32,
    /// What its newest heartbeat says.
    pub health: Health,
    /// How many attempts it may have at most, by its speed and its breaker, as of the last look.
    usable: u32,
    room: Option<u32>,
}

impl Worker {
    fn room(&self) -> Option<u32> {
        let running = u32::try_from(self.attempts.len()).unwrap_or(u32::MAX);
        let room = self.usable.min(self.info.slots).saturating_sub(running);
        (room > 0 && self.is_heard() && !self.draining && !self.paused).then_some(room)
    }

    /// Attempts that it could be given now.
    pub(crate) fn free_slots(&self) -> u32 {
        self.room.unwrap_or(0)
    }

    /// Its memory for each of the attempts that it runs at once.
    pub(crate) fn task_bytes(&self) -> u64 {
        self.info.memory_bytes / u64::from(self.info.slots.max(1))
    }

    /// Whether it is not dead and has not left.
    pub(crate) fn is_alive(&self) -> bool {
        self.detector.state() != Liveness::Dead
    }

    /// Whether it answers, as far as its heartbeats say.
    pub(crate) fn is_heard(&self) -> bool {
        matches!(self.detector.state(), Liveness::Healthy | Liveness::Rejoined)
    }

    /// Whether it counts among those that should be there: drained workers and those that left in
    /// good order do not.
    pub(crate) fn takes_part(&self) -> bool {
        !self.draining && !self.left
    }

    /// Looks again at how much it may be given: slow workers get less, one whose breaker is open
    /// gets nothing, and one that is on trial a single attempt.
    pub(crate) fn look(&mut self, config: &Config, now_ms: u64) -> Option<breaker::Change> {
        let change = self.breaker.poll(now_ms);
        let slots = self.speed.slots(&config.speculation, self.info.slots);
        let running = u32::try_from(self.attempts.len()).unwrap_or(u32::MAX);
        self.usable = match self.breaker.state() {
            breaker::State::Closed => slots,
            breaker::State::Open { .. } => 0,
            breaker::State::HalfOpen if self.breaker.admits(&config.breaker, now_ms) => {
                running.saturating_add(1)
            }
            breaker::State::HalfOpen => 0,
        };
        change
    }

    pub(crate) fn class(&self, config: &Config) -> Class {
        let waits = self.waits_for_store().is_some();
        health::class(
            self.detector.state(),
            self.breaker.state(),
            self.speed.is_slow(&config.speculation),
            waits,
        )
    }

    /// The store that it waits for, in its own words.
    pub(crate) fn waits_for_store(&self) -> Option<&str> {
        let named = |what: &str| {
            what == STORE || what.strip_prefix(STORE).is_some_and(|name| name.starts_with(' '))
        };
        self.health.waiting_for.as_deref().filter(|what| named(what))
    }

    /// What the rules of health look at; `disk_needed_bytes` is what its tasks may still spill.
    pub(crate) fn figures(
        &self,
        config: &Config,
        now_ms: u64,
        disk_needed_bytes: u64,
    ) -> WorkerFigures {
        WorkerFigures {
            liveness: self.detector.state(),
            silence_ms: self.detector.silence_ms(now_ms),
            errors: self.ended.totals(now_ms),
            slow: self.speed.is_slow(&config.speculation),
            speed_percent: self.speed.percent(),
            memory_used_bytes: self.health.rss_bytes,
            memory_bytes: self.info.memory_bytes,
            disk_free_bytes: (self.health.disk_total_bytes > 0)
                .then_some(self.health.disk_free_bytes),
            disk_needed_bytes,
            failures_in_a_row: self.breaker.failures_in_a_row(),
            critical: health::is_critical(&self.info.labels),
        }
    }

    /// Why it is not healthy.
    fn cause(&self, config: &Config, now_ms: u64) -> Option<String> {
        let silence_ms = self.detector.silence_ms(now_ms);
        match (self.detector.state(), self.breaker.state()) {
            _ if self.left => None,
            (Liveness::Dead, _) => Some(format!("nothing was heard of it for {silence_ms} ms")),
            (_, breaker::State::Open { until_ms }) => Some(format!(
                "its attempts failed again and again; a trial begins in {} ms",
                until_ms.saturating_sub(now_ms)
            )),
            (Liveness::Suspect, _) => Some(format!("silent for {silence_ms} ms")),
            (_, breaker::State::HalfOpen) => {
                Some("its attempts failed again and again; it is on trial".to_owned())
            }
            _ if self.speed.is_slow(&config.speculation) => {
                Some(format!("slow: {} % of the median rate", self.speed.percent()))
            }
            _ if self.waits_for_store().is_some() => Some("it cannot reach its store".to_owned()),
            _ => None,
        }
    }

    pub(crate) fn status(&self, config: &Config, now_ms: u64) -> WorkerStatus {
        let silent_ms = self.detector.silence_ms(now_ms);
        let state = match (self.left, self.is_alive(), self.draining) {
            (true, _, true) => "drained",
            (true, _, false) => "left",
            (false, true, true) => "draining",
            (false, ..) => self.class(config).as_str(),
        };
        let health = &self.health;
        WorkerStatus {
            id: self.info.worker.clone(),
            state: state.to_owned(),
            host: self.info.host.clone(),
            slots: self.info.slots,
            running: u32::try_from(self.attempts.len()).unwrap_or(u32::MAX),
            memory_bytes: self.info.memory_bytes,
            rss_bytes: health.rss_bytes,
            last_heard_ms: silent_ms,
            // The journal's to say.
            tasks_done: 0,
            program: self.info.program.clone(),
            labels: self.info.labels.clone(),
            cpu_permille: health.cpu_permille,
            bytes_per_s: health.bytes_per_s,
            disk_free_bytes: health.disk_free_bytes,
            disk_total_bytes: health.disk_total_bytes,
            errors_5min: health.errors_5min,
            store_retries: health.store_retries,
            throttled: health.throttled,
            waiting_for: health.waiting_for.clone(),
            mended: health.mended,
            cause: self.cause(config, now_ms),
            alerts: Vec::new(),
        }
    }
}

/// Keeps the order of those with room, where one has changed.
fn keep_order(free: &mut BTreeSet<(Reverse<u32>, WorkerId)>, id: &WorkerId, worker: &mut Worker) {
    let (before, after) = (worker.room, worker.room());
    worker.room = after;
    if before != after {
        before.map(|room| free.remove(&(Reverse(room), id.clone())));
        after.map(|room| free.insert((Reverse(room), id.clone())));
    }
}

/// What has changed about a worker since the last look.
#[derive(Debug)]
pub(crate) struct Look {
    pub liveness: Option<phi::Change>,
    pub breaker: Option<breaker::Change>,
}

impl Workers {
    pub(crate) fn get(&self, id: &WorkerId) -> Option<&Worker> {
        self.all.get(id)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&WorkerId, &Worker)> {
        self.all.iter()
    }

    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    pub(crate) fn free(&self) -> impl Iterator<Item = &WorkerId> {
        self.free.iter().map(|(_, id)| id)
    }

    /// Whether a worker can be given an attempt.
    pub(crate) fn has_room(&self, id: &WorkerId) -> bool {
        self.all.get(id).is_some_and(|worker| worker.room.is_some())
    }

    /// Changes a worker and keeps the order of those with room.
    pub(super) fn update<R>(
        &mut self,
        id: &WorkerId,
        change: impl FnOnce(&mut Worker) -> R,
    ) -> Option<R> {
        let worker = self.all.get_mut(id)?;
        self.counts.take_away(worker);
        let result = change(worker);
        self.counts.add(worker);
        keep_order(&mut self.free, id, worker);
        Some(result)
    }

    /// Takes a new worker, or a new life of a known one, in. What it held before must have been
    /// taken back.
    pub(super) fn admit(&mut self, register: Register, now_ms: u64, config: &Config) -> Result<()> {
        self.remove(&register.worker);
        if self.all.len() >= WORKERS_MAX {
            let dead = self.all.iter().filter(|(_, worker)| !worker.is_alive());
            let dead = dead.max_by_key(|(_, worker)| worker.detector.silence_ms(now_ms));
            let Some(dead) = dead.map(|(id, _)| id.clone()) else {
                return Err(Error::exhausted(format!(
                    "the pool has its limit of {WORKERS_MAX} workers"
                )));
            };
            self.remove(&dead);
        }
        let id = register.worker.clone();
        let draining = register.draining;
        let spread_ms = self.all.len() as u64 * 1000 / HEARTBEATS_A_SECOND;
        let heartbeat_ms = config.heartbeat.interval_ms.max(spread_ms);
        let worker = Worker {
            usable: register.slots,
            info: Register { held: Vec::new(), ..register },
            detector: Detector::new(now_ms, heartbeat_ms),
            breaker: Breaker::new(&config.breaker),
            speed: Speed::default(),
            ended: Sliding::new(config.alerts.error_window_ms),
            draining,
            left: false,
            heartbeat_ms,
            sequence: None,
            attempts: BTreeSet::new(),
            paused: false,
            busy: 0,
            health: Health::default(),
            room: None,
        };
        self.counts.add(&worker);
        self.all.insert(id.clone(), worker);
        self.update(&id, |_| ());
        Ok(())
    }

    pub(super) fn remove(&mut self, id: &WorkerId) {
        let Some(worker) = self.all.remove(id) else { return };
        self.counts.take_away(&worker);
        worker.room.map(|room| self.free.remove(&(Reverse(room), id.clone())));
    }

    /// The leader was not there for a while: nobody's silence counts for that time.
    pub(super) fn forgive(&mut self, now_ms: u64, gap_ms: u64) {
        for worker in self.all.values_mut() {
            worker.detector.forgive(now_ms, gap_ms);
        }
    }

    /// What silence, breakers and speed mean now: those that have changed.
    pub(super) fn look(&mut self, config: &Config, now_ms: u64) -> Vec<(WorkerId, Look)> {
        let mut changed = Vec::new();
        for (id, worker) in &mut self.all {
            self.counts.take_away(worker);
            let liveness = worker.detector.check(&config.detector, now_ms);
            let breaker = worker.look(config, now_ms);
            self.counts.add(worker);
            keep_order(&mut self.free, id, worker);
            if liveness.is_some() || breaker.is_some() {
                changed.push((id.clone(), Look { liveness, breaker }));
            }
        }
        changed
    }

    /// Slots of those that live and take part.
    pub(crate) fn slots(&self) -> u32 {
        let there = self.all.values().filter(|worker| worker.is_alive() && worker.takes_part());
        there.fold(0, |sum, worker| sum.saturating_add(worker.info.slots))
    }

    /// Forgets those that have left, or are dead, for long.
    pub(super) fn forget(&mut self, now_ms: u64, forget_ms: u64) -> Vec<WorkerId> {
        let gone =
            |worker: &Worker| !worker.is_alive() && worker.detector.silence_ms(now_ms) >= forget_ms;
        let gone: Vec<WorkerId> =
            self.all.iter().filter(|(_, worker)| gone(worker)).map(|(id, _)| id.clone()).collect();
        gone.iter().for_each(|id| self.remove(id));
        gone
    }

    /// Checks that the order of free workers is that of their slots.
    pub(crate) fn check(&self) -> std::result::Result<(), String> {
        let expected: BTreeSet<(Reverse<u32>, WorkerId)> = self
            .all
            .iter()
            .filter_map(|(id, worker)| worker.room().map(|room| (Reverse(room), id.clone())))
            .collect();
        if expected != self.free {
            return Err(format!("free workers are {:?}, but should be {expected:?}", self.free));
        }
        let mut counts = Counts::default();
        self.all.values().for_each(|worker| counts.add(worker));
        if counts != self.counts {
            return Err(format!("the pool is {counts:?}, but counted as {:?}", self.counts));
        }
        match self.all.iter().find(|(_, worker)| worker.attempts.len() > worker.info.slots as usize)
        {
            Some((id, worker)) => Err(format!(
                "worker {id} has {} attempts and {} slots",
                worker.attempts.len(),
                worker.info.slots
            )),
            None => Ok(()),
        }
    }
}

/// Checks what a worker says of itself.
///
/// # Errors
/// `Invalid`, with the value and the bound.
pub(crate) fn validate(register: &Register, shared: &[(String, String)]) -> Result<()> {
    let differs = |(name, ours): &(String, String)| {
        let theirs =
            register.settings.iter().find(|(known, _)| known == name).map(|(_, value)| value)?;
        (theirs != ours).then(|| format!("{name} is {theirs} there and {ours} here"))
    };
    if let Some(difference) = shared.iter().find_map(differs) {
        let text = format!(
            "worker {} on {} runs with other settings than the coordinator: {difference}; give \
                both the same --profile and --config",
            register.worker, register.host
        );
        return Err(Error::invalid(text));
    }
    if register.slots == 0 || register.slots > SLOTS_MAX {
        return Err(Error::invalid(format!(
            "worker {} offers {} slots; 1 to {SLOTS_MAX} are allowed",
            register.worker, register.slots
        )));
    }
    let texts = [&register.program, &register.host]
        .into_iter()
        .chain(register.labels.iter().flat_map(|(key, value)| [key, value]))
        .chain(register.settings.iter().flat_map(|(key, value)| [key, value]));
    if register.labels.len() > LABELS_MAX
        || register.settings.len() > LABELS_MAX
        || texts.into_iter().any(|text| text.len() > TEXT_BYTES_MAX)
    {
        let what = format!(
            "worker {} has more than {LABELS_MAX} labels, or one of more than {TEXT_BYTES_MAX} \
                bytes",
            register.worker
        );
        return Err(Error::invalid(what));
    }
    validate_folders(register)
}

/// Checks the folders that a worker offers: what lies in them is told apart by its path.
fn validate_folders(register: &Register) -> Result<()> {
    let (id, folders) = (&register.worker, &register.inputs);
    if folders.len() > FOLDERS_MAX {
        let count = folders.len();
        return Err(Error::invalid(format!(
            "worker {id} offers {count} input folders; at most {FOLDERS_MAX} are allowed"
        )));
    }
    let urls = folders
        .iter()
        .map(|folder| BlobUrl::of_worker(id, folder))
        .collect::<Result<Vec<BlobUrl>>>()?;
    for (at, folder) in urls.iter().enumerate() {
        if let Some(other) = urls.iter().skip(at + 1).find(|other| overlap(folder, other)) {
            return Err(Error::invalid(format!("the input folders {folder} and {other} overlap")));
        }
    }
    Ok(())
}
