//! How a job gets over its troubles, kind by kind: how often, whether it helped, and how long it took. For people; nothing is decided by it.
//!
//! A trouble of a task is over when the task is committed. What a former leader met with is known from the journal, but not when.

use std::collections::BTreeMap;

use muster_common::api;
use muster_common::ids::{Phase, TaskId};

use super::durable::DurableJob;
use crate::journal::record::Recovery;

const STORE: &str = "store-trouble";

/// The troubles of one job.
#[derive(Debug, Default)]
pub(super) struct Recoveries {
    kinds: BTreeMap<&'static str, Recovery>,
    /// What is not over, and since when.
    open: BTreeMap<TaskId, Vec<(&'static str, u64)>>,
    store_since_ms: Option<u64>,
}

impl Recoveries {
    /// As the journal knows them.
    pub(super) fn of(job: &DurableJob, now_ms: u64) -> Self {
        let mut recoveries = Self::default();
        for (task, failures) in &job.failures {
            failures.iter().for_each(|_| recoveries.trouble(*task, "attempt-failed", now_ms));
            let committed = match task.phase {
                Phase::Sample => job.boundaries.is_some(),
                Phase::Sort => job.runs.contains_key(&task.index),
                Phase::Merge => job.parts.contains_key(&task.index),
            };
            if committed {
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
    pub(super) fn trouble(&mut self, task: TaskId, kind: &'static str, now_ms: u64) {
        let known = self.kind(kind);
        known.attempts = known.attempts.saturating_add(1);
        self.open.entry(task).or_default().push((kind, now_ms));
    }

    /// A task is committed.
    pub(super) fn mended(&mut self, task: TaskId, now_ms: u64) {
        for (kind, since_ms) in self.open.remove(&task).unwrap_or_default() {
            self.close(kind, now_ms.saturating_sub(since_ms));
        }
    }

    /// A step of the coordinator's own with the store has to be tried again.
    pub(super) fn store_trouble(&mut self, now_ms: u64) {
        let known = self.kind(STORE);
        known.attempts = known.attempts.saturating_add(1);
        self.store_since_ms.get_or_insert(now_ms);
    }

    /// The step went well: all its tries are over.
    pub(super) fn store_mended(&mut self, now_ms: u64) {
        if let Some(since_ms) = self.store_since_ms.take() {
            let known = self.kind(STORE);
            let open = known.attempts.saturating_sub(known.recovered);
            known.recovered = known.attempts.saturating_sub(1);
            if open > 0 {
                self.close(STORE, now_ms.saturating_sub(since_ms));
            }
        }
    }

    /// All kinds. At the end of a job that failed, what is not over is given up.
    pub(super) fn sum(&self, failed: bool) -> Vec<Recovery> {
        let given_up = |known: &Recovery| if failed { known.attempts.saturating_sub(known.recovered) } else { 0 };
        self.kinds.values().map(|known| Recovery { given_up: given_up(known), ..known.clone() }).collect()
    }
}

/// As people see it.
pub(super) fn shown(recovery: &Recovery) -> api::Recovery {
    let Recovery { kind, attempts, recovered, given_up, took_ms_sum, took_ms_max } = recovery.clone();
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
        let figures: Vec<_> =
            sums.iter().map(|one| (one.kind.as_str(), one.attempts, one.recovered, one.given_up)).collect();
        assert_eq!(figures, [("attempt-failed", 2, 1, 1), ("worker-lost", 1, 1, 0)]);
        assert_eq!((sums[1].took_ms_sum, sums[1].took_ms_max), (100, 100));
        assert_eq!(recoveries.sum(false)[0].given_up, 0, "a job that goes on gives nothing up");
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
