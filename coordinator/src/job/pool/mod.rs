//! The pool: who is registered, who lives, who is fit, and what one of them alone can read.

use std::collections::VecDeque;

use muster_platform::config::Config;
use muster_protocol::ids::{AttemptId, JobId, Phase, WorkerId};

use crate::job::forgiven;

mod contact;
mod fitness;
pub(crate) mod members;
mod owned;
pub(crate) mod owners;
pub mod policies;
mod stragglers;
mod watch;

use members::Workers;
use policies::limits::Limits;
use policies::ramp::{Ramp, Shed};
use watch::Watch;

/// First pause of a worker that says it is busy, in milliseconds: most likely it is about to read
/// the acknowledgement that frees its slot.
const BUSY_PAUSE_MS: u64 = 10;

/// The pool, as this leader remembers it.
#[derive(Debug)]
pub(crate) struct Pool {
    workers: Workers,
    /// Since when it is too small to work.
    too_few_since_ms: Option<u64>,
    watch: Watch,
    ramp: Ramp,
    /// Tasks whose worker died in a wave: they are given out again at a bounded rate.
    limited: VecDeque<(JobId, Phase, u32)>,
    limits: Limits,
}

impl Pool {
    pub(crate) fn new() -> Self {
        Self {
            workers: Workers::default(),
            too_few_since_ms: None,
            watch: Watch::default(),
            ramp: Ramp::new(),
            limited: VecDeque::new(),
            limits: Limits::default(),
        }
    }

    pub(crate) fn workers(&self) -> &Workers {
        &self.workers
    }

    /// Why the pool is too small to work, with numbers.
    pub(crate) fn too_few(&self, config: &Config) -> Option<String> {
        let (pool, counts) = (&config.pool, self.workers.counts());
        let share = u64::from(counts.there) * 100;
        if counts.alive == 0 {
            Some("no worker".to_owned())
        } else if counts.there < pool.min_workers {
            Some(format!(
                "{} workers of at least {} (pool.min_workers)",
                counts.there, pool.min_workers
            ))
        } else if share < u64::from(counts.part) * u64::from(pool.min_alive_percent) {
            Some(format!(
                "{} of {} workers live, {} % should (pool.min_alive_percent)",
                counts.there, counts.part, pool.min_alive_percent
            ))
        } else {
            None
        }
    }

    /// Since when that is so.
    pub(crate) fn too_few_since_ms(&self) -> Option<u64> {
        self.too_few_since_ms
    }

    /// The leader was not there for a while: that time counts against nobody.
    pub(crate) fn forgive(&mut self, now_ms: u64, missed_ms: u64) {
        self.workers.forgive(now_ms, missed_ms);
        self.too_few_since_ms =
            self.too_few_since_ms.map(|since_ms| forgiven(since_ms, now_ms, missed_ms));
    }

    /// A worker has an attempt.
    pub(crate) fn give(&mut self, worker: &WorkerId, job: &JobId, attempt: AttemptId) {
        self.workers.update(worker, |known| known.attempts.insert((job.clone(), attempt)));
    }

    /// It has it no more.
    pub(crate) fn take_from(&mut self, worker: &WorkerId, job: &JobId, attempt: AttemptId) {
        self.workers.update(worker, |known| known.attempts.remove(&(job.clone(), attempt)));
    }

    /// A worker took an attempt on: it is not busy any more.
    pub(crate) fn accepted(&mut self, worker: &WorkerId) {
        self.workers.update(worker, |known| known.busy = 0);
    }

    /// Gives a worker that cannot take more a short rest, longer each time; for how long, in
    /// milliseconds.
    pub(crate) fn pause(&mut self, worker: &WorkerId, longest_ms: u64) -> Option<u64> {
        self.workers.update(worker, |known| {
            known.paused = true;
            known.busy = known.busy.saturating_add(1);
            (BUSY_PAUSE_MS << known.busy.min(16)).min(longest_ms)
        })
    }

    pub(crate) fn unpause(&mut self, worker: &WorkerId) {
        self.workers.update(worker, |known| known.paused = false);
    }

    /// Whether a task whose worker died can be given out again now; in a wave of losses only so
    /// many a second can.
    pub(crate) fn admits_lost(&mut self, now_ms: u64) -> bool {
        self.ramp.take(now_ms)
    }

    /// It cannot: it waits for its turn.
    pub(crate) fn defer_lost(&mut self, job: &JobId, phase: Phase, index: u32) {
        self.limited.push_back((job.clone(), phase, index));
    }

    /// Why no new job is taken on, in a wave of losses.
    pub(crate) fn shed(&self, config: &Config, now_ms: u64) -> Option<Shed> {
        self.ramp.shed(&config.recovery, now_ms)
    }

    /// Requests a second that all workers together may make of stores that throttle.
    pub(crate) fn store_limit_per_s(&self) -> Option<u32> {
        self.limits.rate_per_s()
    }
}
