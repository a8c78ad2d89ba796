//! What the leader watches with every tick: silence and what it means, waves of losses, stores that
//! throttle, and whatever else keeps everybody waiting.
//!
//! The policies are in [`super::policies`]; here they are asked, and what they say becomes events
//! and attempts taken back. All of it is this leader's memory.

use muster_protocol::ids::WorkerId;
use muster_protocol::wire::StoreLimits;

use crate::job::Machine;
use crate::job::flow::active::Active;
use crate::job::io::Effect;
use crate::job::pool::contact::WAITING_CHARS_MAX;
use crate::job::pool::members::{Look, Worker};
use crate::job::pool::policies::health::{self, Subject};
use crate::job::pool::policies::phi::{self, Liveness};
use crate::job::pool::policies::ramp;
use crate::job::tasks::attempts::TakenBack;
use crate::job::view::tally::Counted;

/// Pause between two looks at what need not be looked at with every tick, in milliseconds.
const LOOK_MS: u64 = 1000;
/// Workers that fall silent together make a partition likely, if they are so many at least; and
/// half of the pool.
const PARTITION_MIN: u32 = 2;
/// A dead worker counts as cut off for so many times the ceiling of its silence; then it is simply
/// gone.
const PARTITION_CEILINGS: u64 = 3;

/// What this leader remembers between two looks.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    looked_ms: u64,
    /// How many had fallen silent together, while they have not come back.
    partition: Option<u32>,
    /// What all living workers wait for, where that is a store.
    all_wait_for: Option<String>,
}

impl Machine {
    /// Looks at everybody's silence, and at all that follows from time alone.
    pub(crate) fn watch_pool(&mut self) {
        for (id, Look { liveness, breaker }) in self.pool.workers.look(&self.config, self.now_ms) {
            breaker.iter().for_each(|change| self.breaker_changed(&id, change));
            liveness.iter().for_each(|change| self.liveness_changed(&id, change));
        }
        if let Some(change) = self.pool.ramp.poll(&self.config.recovery, self.now_ms) {
            self.ramp_changed(&change);
        }
        self.give_out_limited();
        self.pool.too_few_since_ms = match self.pool.too_few(&self.config) {
            Some(_) => self.pool.too_few_since_ms.or(Some(self.now_ms)),
            None => None,
        };
        self.limit_stores();
        if self.now_ms.saturating_sub(self.pool.watch.looked_ms) >= LOOK_MS {
            self.pool.watch.looked_ms = self.now_ms;
            self.find_hung();
            self.speculate();
            self.watch_partition();
            self.pool.watch.all_wait_for =
                store_of_all(self.pool.workers.iter().map(|(_, worker)| worker));
            self.watch_health();
            for id in self.pool.workers.forget(self.now_ms, self.config.pool.forget_ms) {
                self.forget_alerts(&Subject::Worker(id));
            }
        }
    }

    pub(crate) fn liveness_changed(&mut self, id: &WorkerId, change: &phi::Change) {
        let silence_ms = change.silence_ms;
        let critical = self
            .pool
            .workers
            .get(id)
            .is_some_and(|worker| health::is_critical(&worker.info.labels));
        match (change.from, change.to) {
            (_, Liveness::Suspect) => {
                let text =
                    format!("nothing was heard of {id} for {silence_ms} ms; it gets no new work");
                self.event(None, "warning", "worker-suspect", text);
            }
            (_, Liveness::Dead) => {
                let severity = if critical { "error" } else { "warning" };
                let text = format!(
                    "nothing was heard of {id} for {silence_ms} ms; what it ran goes to others"
                );
                self.event(None, severity, "worker-lost", text);
                self.view.count(Counted::WorkerLost);
                let alive = self.pool.workers.counts().alive;
                if let Some(change) = self.pool.ramp.lost(&self.config.recovery, self.now_ms, alive)
                {
                    self.ramp_changed(&change);
                }
                self.take_all_back(
                    id,
                    &TakenBack::Died(format!("nothing was heard of it for {silence_ms} ms")),
                );
            }
            (Liveness::Dead, _) => {
                let text = format!(
                    "{id} is heard again after {silence_ms} ms; what it ran has gone to others"
                );
                self.event(None, "info", "worker-back", text);
            }
            (Liveness::Suspect, _) => {
                let text = format!("{id} is heard again after {silence_ms} ms");
                self.event(None, "info", "worker-back", text);
            }
            (Liveness::Healthy | Liveness::Rejoined, _) => {}
        }
    }

    fn ramp_changed(&mut self, change: &ramp::Change) {
        match change {
            ramp::Change::WaveBegan { lost, of, rate_per_s } => {
                let text = format!(
                    "{lost} of {of} workers were lost lately; at first {rate_per_s} of their tasks \
                        a second go to others, and new jobs are refused"
                );
                self.event(None, "error", "wave-began", text);
            }
            ramp::Change::Rate { from_per_s, to_per_s } => {
                let text =
                    format!("{to_per_s} lost tasks a second go to others, after {from_per_s}");
                self.event(None, "info", "wave-rate", text);
            }
            ramp::Change::WaveOver { lost, lasted_ms } => {
                let text = format!("no worker was lost lately, after {lost} in {lasted_ms} ms");
                self.event(None, "info", "wave-over", text);
            }
        }
    }

    /// Shares what a store that throttles can bear among the workers.
    fn limit_stores(&mut self) {
        let alive = self.pool.workers.counts().alive;
        let Some(say) = self.pool.limits.poll(&self.config.limits, self.now_ms, alive) else {
            return;
        };
        if say.turned {
            let (severity, kind, text) = match self.pool.limits.rate_per_s() {
                Some(rate) => (
                    "warning",
                    "store-throttles",
                    format!("a store asks for fewer requests: {rate} a second at first"),
                ),
                None => (
                    "info",
                    "store-recovered",
                    "no store asks for fewer requests any more".to_owned(),
                ),
            };
            self.event(None, severity, kind, text);
        }
        let limits = StoreLimits { epoch: self.epoch, requests_per_s: say.worker_per_s };
        self.out.push(Effect::LimitStores(limits));
    }

    fn give_out_limited(&mut self) {
        while !self.pool.limited.is_empty() && self.pool.ramp.take(self.now_ms) {
            if let Some((job, phase, index)) = self.pool.limited.pop_front() {
                self.requeue(&job, phase, index);
            }
        }
    }

    /// Many that fall silent together are more likely cut off than dead.
    fn watch_partition(&mut self) {
        let recent_ms = self.config.detector.ceiling_ms.saturating_mul(PARTITION_CEILINGS);
        let cut_off = |worker: &Worker| match worker.detector.state() {
            Liveness::Suspect => true,
            Liveness::Dead => worker.detector.silence_ms(self.now_ms) < recent_ms,
            Liveness::Healthy | Liveness::Rejoined => false,
        };
        let count = self
            .pool
            .workers
            .iter()
            .filter(|(_, worker)| worker.takes_part() && cut_off(worker))
            .count();
        let (silent, part) =
            (u32::try_from(count).unwrap_or(u32::MAX), self.pool.workers.counts().part);
        match self.pool.watch.partition {
            None if silent >= PARTITION_MIN && silent.saturating_mul(2) >= part => {
                self.pool.watch.partition = Some(silent);
                let text = format!(
                    "{silent} of {part} workers fell silent together: they, or the coordinator, \
                        may be cut off from NATS"
                );
                self.event(None, "warning", "partition-suspected", text);
            }
            Some(before) if silent == 0 => {
                self.pool.watch.partition = None;
                let there = self.pool.workers.counts().there;
                let text = format!(
                    "{there} of {part} workers are heard, after {before} had fallen silent together"
                );
                // Those that never came back were no partition.
                let (severity, kind) = if there >= part {
                    ("info", "partition-healed")
                } else {
                    ("warning", "partition-over")
                };
                self.event(None, severity, kind, text);
            }
            Some(before) => self.pool.watch.partition = Some(before.max(silent)),
            None => {}
        }
    }

    /// The store that keeps all workers of a job waiting: those that are at work on it, or where
    /// there is none, all that live.
    pub(crate) fn all_wait_for(&self, active: &Active) -> Option<String> {
        if active.tasks.running() == 0 {
            return self.pool.watch.all_wait_for.clone();
        }
        store_of_all(
            active
                .tasks
                .running_attempts()
                .filter_map(|attempt| self.pool.workers.get(&attempt.worker)),
        )
    }
}

/// What the first of these workers waits for, if each that lives waits for a store.
fn store_of_all<'a>(workers: impl Iterator<Item = &'a Worker>) -> Option<String> {
    let mut waits = workers.filter(|worker| worker.is_alive()).map(Worker::waits_for_store);
    let first = waits.next()??;
    waits.all(|what| what.is_some()).then(|| first.chars().take(WAITING_CHARS_MAX).collect())
}
