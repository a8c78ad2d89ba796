//! The pool: who is registered, who lives, who has room.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use muster_common::api::WorkerStatus;
use muster_common::ids::{AttemptId, JobId, WorkerId};
use muster_common::wire::Register;
use muster_common::{Error, Result};

/// Most workers that are known at once, dead ones included.
pub(super) const WORKERS_MAX: usize = 20_000;
/// Most attempts that one worker may offer to run at once.
pub(super) const SLOTS_MAX: u32 = 4096;
const TEXT_BYTES_MAX: usize = 256;
const LABELS_MAX: usize = 64;
/// Heartbeats of the whole pool in a second are about this many.
const HEARTBEATS_A_SECOND: u64 = 1000;

/// The pool.
#[derive(Debug, Default)]
pub(super) struct Workers {
    all: BTreeMap<WorkerId, Worker>,
    /// Those with room, the most room first.
    free: BTreeSet<(Reverse<u32>, WorkerId)>,
    alive: u32,
}

/// One registered worker.
#[derive(Debug)]
pub(super) struct Worker {
    pub info: Register,
    pub alive: bool,
    pub draining: bool,
    pub heartbeat_ms: u64,
    pub heard_ms: u64,
    /// Sequence of the newest heartbeat; older ones say nothing new.
    pub sequence: Option<u64>,
    pub attempts: BTreeSet<(JobId, AttemptId)>,
    /// It said that it is busy: nothing for it until its pause is over.
    pub paused: bool,
    /// How often in a row it said so.
    pub busy: u32,
    pub rss_bytes: u64,
    pub tasks_done: u32,
    room: Option<u32>,
}

impl Worker {
    fn room(&self) -> Option<u32> {
        let running = u32::try_from(self.attempts.len()).unwrap_or(u32::MAX);
        let room = self.info.slots.saturating_sub(running);
        (room > 0 && self.alive && !self.draining && !self.paused).then_some(room)
    }

    pub(super) fn status(&self, now_ms: u64, interval_ms: u64) -> WorkerStatus {
        let silent_ms = now_ms.saturating_sub(self.heard_ms);
        let state = match (self.alive, self.draining) {
            (false, _) => "failed",
            (true, true) => "draining",
            (true, false) if silent_ms > 3 * interval_ms.max(self.heartbeat_ms) => "degraded",
            (true, false) => "healthy",
        };
        WorkerStatus {
            id: self.info.worker.clone(),
            state: state.to_owned(),
            host: self.info.host.clone(),
            slots: self.info.slots,
            running: u32::try_from(self.attempts.len()).unwrap_or(u32::MAX),
            memory_bytes: self.info.memory_bytes,
            rss_bytes: self.rss_bytes,
            last_heard_ms: silent_ms,
            tasks_done: self.tasks_done,
            program: self.info.program.clone(),
            labels: self.info.labels.clone(),
        }
    }
}

impl Workers {
    pub(super) fn get(&self, id: &WorkerId) -> Option<&Worker> {
        self.all.get(id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&WorkerId, &Worker)> {
        self.all.iter()
    }

    pub(super) fn alive(&self) -> u32 {
        self.alive
    }

    pub(super) fn free(&self) -> impl Iterator<Item = &WorkerId> {
        self.free.iter().map(|(_, id)| id)
    }

    /// Changes a worker and keeps the order of those with room.
    pub(super) fn update<R>(&mut self, id: &WorkerId, change: impl FnOnce(&mut Worker) -> R) -> Option<R> {
        let worker = self.all.get_mut(id)?;
        let was_alive = worker.alive;
        let result = change(worker);
        match (was_alive, worker.alive) {
            (false, true) => self.alive += 1,
            (true, false) => self.alive -= 1,
            _ => {}
        }
        let (before, after) = (worker.room, worker.room());
        worker.room = after;
        if before != after {
            before.map(|room| self.free.remove(&(Reverse(room), id.clone())));
            after.map(|room| self.free.insert((Reverse(room), id.clone())));
        }
        Some(result)
    }

    /// Takes a new worker, or a new life of a known one, in. What it held before must have been taken back.
    pub(super) fn admit(&mut self, register: Register, now_ms: u64, interval_ms: u64) -> Result<()> {
        self.remove(&register.worker);
        if self.all.len() >= WORKERS_MAX {
            let dead = self.all.iter().filter(|(_, worker)| !worker.alive).min_by_key(|(_, worker)| worker.heard_ms);
            let Some(dead) = dead.map(|(id, _)| id.clone()) else {
                return Err(Error::exhausted(format!("the pool has its limit of {WORKERS_MAX} workers")));
            };
            self.remove(&dead);
        }
        let id = register.worker.clone();
        let draining = register.draining;
        let spread_ms = self.all.len() as u64 * 1000 / HEARTBEATS_A_SECOND;
        let worker = Worker {
            info: Register { held: Vec::new(), ..register },
            alive: false,
            draining,
            heartbeat_ms: interval_ms.max(spread_ms),
            heard_ms: now_ms,
            sequence: None,
            attempts: BTreeSet::new(),
            paused: false,
            busy: 0,
            rss_bytes: 0,
            tasks_done: 0,
            room: None,
        };
        self.all.insert(id.clone(), worker);
        self.update(&id, |worker| worker.alive = true);
        Ok(())
    }

    pub(super) fn remove(&mut self, id: &WorkerId) {
        self.update(id, |worker| worker.alive = false);
        self.all.remove(id);
    }

    /// The leader was not there for a while: nobody's silence counts for that time.
    pub(super) fn forgive(&mut self, gap_ms: u64, now_ms: u64) {
        for worker in self.all.values_mut() {
            worker.heard_ms = worker.heard_ms.saturating_add(gap_ms).min(now_ms);
        }
    }

    /// Living workers that were silent for too long.
    pub(super) fn silent(&self, now_ms: u64, dead_after_ms: u64) -> Vec<WorkerId> {
        let dead =
            |worker: &Worker| now_ms.saturating_sub(worker.heard_ms) > dead_after_ms.max(5 * worker.heartbeat_ms);
        self.all.iter().filter(|(_, worker)| worker.alive && dead(worker)).map(|(id, _)| id.clone()).collect()
    }

    /// Checks that the order of free workers is that of their slots.
    pub(super) fn check(&self) -> std::result::Result<(), String> {
        let expected: BTreeSet<(Reverse<u32>, WorkerId)> =
            self.all.iter().filter_map(|(id, worker)| worker.room().map(|room| (Reverse(room), id.clone()))).collect();
        if expected != self.free {
            return Err(format!("free workers are {:?}, but should be {expected:?}", self.free));
        }
        let alive = self.all.values().filter(|worker| worker.alive).count();
        if alive != self.alive as usize {
            return Err(format!("{alive} workers live, but {} are counted", self.alive));
        }
        match self.all.iter().find(|(_, worker)| worker.attempts.len() > worker.info.slots as usize) {
            Some((id, worker)) => {
                Err(format!("worker {id} has {} attempts and {} slots", worker.attempts.len(), worker.info.slots))
            }
            None => Ok(()),
        }
    }
}

/// Checks what a worker says of itself.
///
/// # Errors
/// `Invalid`, with the value and the bound.
pub(super) fn validate(register: &Register) -> Result<()> {
    if register.slots == 0 || register.slots > SLOTS_MAX {
        return Err(Error::invalid(format!(
            "worker {} offers {} slots; 1 to {SLOTS_MAX} are allowed",
            register.worker, register.slots
        )));
    }
    let texts = [&register.program, &register.host]
        .into_iter()
        .chain(register.labels.iter().flat_map(|(key, value)| [key, value]));
    if register.labels.len() > LABELS_MAX || texts.into_iter().any(|text| text.len() > TEXT_BYTES_MAX) {
        let what = format!(
            "worker {} has more than {LABELS_MAX} labels, or one of more than {TEXT_BYTES_MAX} bytes",
            register.worker
        );
        return Err(Error::invalid(what));
    }
    Ok(())
}
