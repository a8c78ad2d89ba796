//! How a job gets over its troubles, kind by kind: how often, whether it helped, and how long it
//! took. For people; nothing is decided by it.
//!
//! A trouble of a task is over when the task is committed. What a former leader met with is known
//! from the journal, but not when.

use std::collections::BTreeMap;

use muster_platform::retry::{RecoveryStats, Trouble};
use muster_protocol::api;
use muster_protocol::ids::{Incarnation, Phase, TaskId, WorkerId};
use muster_protocol::wire::Recovered;

use crate::job::flow::table::Stage;
use crate::job::ledger::durable::DurableJob;
use crate::journal::record::Recovery;

const STORE: &str = "store-trouble";
/// Lives of workers whose counts are kept apart for one job; beyond that nothing more is taken in.
const LIVES_MAX: usize = 20_000;

/// The troubles of one job.
#[derive(Debug, Default)]
pub(crate) struct Recoveries {
    kinds: BTreeMap<&'static str, Recovery>,
    /// What is not over, and since when.
    open: BTreeMap<TaskId, Vec<(&'static str, u64)>>,
    store_since_ms: Option<u64>,
    /// What each life of a worker said last that it had retried by itself.
    told: BTreeMap<(WorkerId, Incarnation), RecoveryStats>,
}

impl Recoveries {
    /// As the journal knows them.
    pub(crate) fn of(job: &DurableJob, now_ms: u64) -> Self {
        let mut recoveries = Self::default();
        for (task, tries) in &job.tries {
            (0..*tries).for_each(|_| recoveries.trouble(*task, "attempt-failed", now_ms));
            if (Stage::of(task.phase).committed)(job, task.index) {
                recoveries.mended(*task, now_ms);
            }
        }
        for split in job.generations.keys() {
            let task = TaskId { phase: Phase::Sort, index: *split };
            recoveries.trouble(task, "run-damaged", now_ms);
            if job.runs.contains_key(split) {
                recoveries.mended(task, now_ms);
            }
        }
        recoveries
    }

    fn kind(&mut self, kind: &'static str) -> &mut Recovery {
        let none = || Recovery {
            kind: kind.to_owned(),
            attempts: 0,
            recovered: 0,
            given_up: 0,
            took_ms_sum: 0,
            took_ms_max: 0,
        };
        self.kinds.entry(kind).or_insert_with(none)
    }

    fn close(&mut self, kind: &'static str, took_ms: u64) {
        let known = self.kind(kind);
        known.recovered = known.recovered.saturating_add(1);
        known.took_ms_sum = known.took_ms_sum.saturating_add(took_ms);
        known.took_ms_max = known.took_ms_max.max(took_ms);
    }

    /// A task has to be tried again.
    pub(crate) fn trouble(&mut self, task: TaskId, kind: &'static str, now_ms: u64) {
        let known = self.kind(kind);
        known.attempts = known.attempts.saturating_add(1);
        self.open.entry(task).or_default().push((kind, now_ms));
    }

    /// A task is committed.
    pub(crate) fn mended(&mut self, task: TaskId, now_ms: u64) {
        for (kind, since_ms) in self.open.remove(&task).unwrap_or_default() {
            self.close(kind, now_ms.saturating_sub(since_ms));
        }
    }

    /// A step of the coordinator's own with the store has to be tried again.
    pub(crate) fn store_trouble(&mut self, now_ms: u64) {
        let known = self.kind(STORE);
        known.attempts = known.attempts.saturating_add(1);
        self.store_since_ms.get_or_insert(now_ms);
    }

    /// The step went well: all its tries are over.
    pub(crate) fn store_mended(&mut self, now_ms: u64) {
        if let Some(since_ms) = self.store_since_ms.take() {
            let known = self.kind(STORE);
            let open = known.attempts.saturating_sub(known.recovered);
            known.recovered = known.attempts.saturating_sub(1);
            if open > 0 {
                self.close(STORE, now_ms.saturating_sub(since_ms));
            }
        }
    }

    /// What a life of a worker has retried so far. Kinds that this build does not know are passed
    /// over.
    pub(crate) fn told_by(&mut self, worker: WorkerId, life: Incarnation, kinds: &[Recovered]) {
        let life = (worker, life);
        if !self.told.contains_key(&life) && self.told.len() >= LIVES_MAX {
            return;
        }
        let known = |kind: &Recovered| Some((Trouble::named(&kind.trouble)?, kind.counts));
        self.told.insert(life, kinds.iter().filter_map(known).collect());
    }

    /// What workers have retried by themselves, all in all.
    fn of_workers(&self) -> Vec<Recovery> {
        let mut all = RecoveryStats::default();
        self.told.values().for_each(|stats| all.merge(stats));
        let count = |of: u64| u32::try_from(of).unwrap_or(u32::MAX);
        let kinds = all.kinds().map(|(trouble, counts)| Recovery {
            kind: format!("retried-{}", trouble.name()),
            attempts: count(counts.attempts),
            recovered: count(counts.recovered),
            given_up: count(counts.given_up),
            took_ms_sum: counts.recovery_ms_sum,
            took_ms_max: counts.recovery_ms_max,
        });
        kinds.collect()
    }

    /// All kinds. At the end of a job that failed, what is not over is given up.
    pub(crate) fn sum(&self, failed: bool) -> Vec<Recovery> {
        let given_up = |known: &Recovery| {
            if failed { known.attempts.saturating_sub(known.recovered) } else { 0 }
        };
        let own = self
            .kinds
            .values()
            .map(|known| Recovery { given_up: given_up(known), ..known.clone() });
        own.chain(self.of_workers()).collect()
    }
}

/// As people see it.
pub(crate) fn shown(recovery: &Recovery) -> api::Recovery {
    let Recovery { kind, attempts, recovered, given_up, took_ms_sum, took_ms_max } =
        recovery.clone();
    api::Recovery { kind, attempts, recovered, given_up, took_ms_sum, took_ms_max }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TASK: TaskId = TaskId { phase: Phase::Sort, index: 3 };

    #[test]
    fn what_is_committed_is_recovered_from() {
        let mut recoveries = Recoveries::default();
        recoveries.trouble(TASK, "worker-lost", 100);
        recoveries.trouble(TASK, "attempt-failed", 150);
        recoveries.trouble(TaskId { index: 4, ..TASK }, "attempt-failed", 160);
        recoveries.mended(TASK, 200);
        let sums = recoveries.sum(true);
        let figures: Vec<_> = sums
            .iter()
            .map(|one| (one.kind.as_str(), one.attempts, one.recovered, one.given_up))
            .collect();
        assert_eq!(figures, [("attempt-failed", 2, 1, 1), ("worker-lost", 1, 1, 0)]);
        assert_eq!((sums[1].took_ms_sum, sums[1].took_ms_max), (100, 100));
        assert_eq!(recoveries.sum(false)[0].given_up, 0, "a job that goes on gives nothing up");
    }

    #[test]
    fn what_workers_retried_adds_up_and_a_repeat_changes_nothing() {
        let kind = |trouble: &str, attempts| Recovered {
            trouble: trouble.to_owned(),
            counts: muster_protocol::wire::Recoveries {
                attempts,
                recovered: attempts,
                given_up: 0,
                recovery_ms_sum: 10 * attempts,
                recovery_ms_max: attempts,
            },
        };
        let worker = |id: &str| id.parse::<WorkerId>().expect("id");
        let mut recoveries = Recoveries::default();
        recoveries.told_by(
            worker("w1"),
            Incarnation(1),
            &[kind("store", 1), kind("of-a-later-build", 9)],
        );
        recoveries.told_by(worker("w1"), Incarnation(1), &[kind("store", 3)]);
        recoveries.told_by(worker("w1"), Incarnation(1), &[kind("store", 3)]);
        recoveries.told_by(worker("w1"), Incarnation(2), &[kind("store", 4)]);
        recoveries.told_by(worker("w2"), Incarnation(1), &[kind("throttle", 5)]);
        let sums = recoveries.sum(true);
        let figures: Vec<_> = sums
            .iter()
            .map(|one| (one.kind.as_str(), one.attempts, one.took_ms_sum, one.took_ms_max))
            .collect();
        assert_eq!(figures, [("retried-store", 7, 70, 4), ("retried-throttle", 5, 50, 5)]);
    }

    #[test]
    fn tries_of_one_store_step_are_one_recovery_in_time() {
        let mut recoveries = Recoveries::default();
        recoveries.store_mended(5);
        recoveries.store_trouble(10);
        recoveries.store_trouble(20);
        recoveries.store_mended(40);
        let sums = recoveries.sum(false);
        assert_eq!((sums[0].attempts, sums[0].recovered, sums[0].took_ms_max), (2, 2, 30));
    }
}
