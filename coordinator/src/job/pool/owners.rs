//! Inputs that one worker alone can read (`--input-dir`): who may have their tasks.
//!
//! Such a split goes to its owner and to nobody else: no second attempt elsewhere, no failover. Its
//! task waits while the owner is away, beside all other work, and within `phases.register_ms`. Once
//! its run is committed the owner is not needed any more, unless that run is lost.

use std::collections::BTreeMap;
use std::ops::Range;

use muster_protocol::ids::{Phase, TaskId, WorkerId};
use muster_protocol::plan::Plan;
use muster_protocol::planted::{self, Bug};
use muster_protocol::{Error, Result};

use crate::job::forgiven;
use crate::job::tasks::table::PhaseTasks;

/// Who may read the splits of a job.
#[derive(Debug, Default)]
pub(crate) struct Owners {
    /// All splits in order; empty where every worker can read all of them.
    pub(super) groups: Vec<Group>,
    /// Since when an owner that is needed has not been there.
    pub(super) absent: BTreeMap<WorkerId, u64>,
}

/// Splits that follow one another and have one owner, or none.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) splits: Range<u32>,
    pub(super) owner: Option<WorkerId>,
}

impl Owners {
    /// The owners that a plan names.
    ///
    /// # Errors
    /// `Invalid` where it names no worker that there can be.
    pub(crate) fn of(plan: &Plan) -> Result<Self> {
        let mut groups: Vec<Group> = Vec::new();
        for (split, _) in (0_u32..).zip(&plan.splits) {
            let owner = plan.owner(split).map(str::to_owned).map(WorkerId::try_from).transpose();
            let owner =
                owner.map_err(|e| Error::invalid(format!("the plan of job {}: {e}", plan.job)))?;
            match groups.last_mut().filter(|last| last.owner == owner) {
                Some(last) => last.splits.end = split + 1,
                None => groups.push(Group { splits: split..split + 1, owner }),
            }
        }
        if groups.iter().all(|group| group.owner.is_none()) {
            groups.clear();
        }
        Ok(Self { groups, absent: BTreeMap::new() })
    }

    /// Whether some splits of this phase have an owner. Merges have none: what they read lies in
    /// scratch.
    pub(crate) fn any(&self, phase: Phase) -> bool {
        !self.groups.is_empty() && phase != Phase::Merge && !planted::is(Bug::GrantAnywhere)
    }

    /// The worker that alone can do a task.
    pub(crate) fn of_task(&self, task: TaskId) -> Option<&WorkerId> {
        if !self.any(task.phase) {
            return None;
        }
        let at = self.groups.partition_point(|group| group.splits.end <= task.index);
        self.groups.get(at)?.owner.as_ref()
    }

    /// Waiting tasks that every worker can do.
    pub(crate) fn free_tasks<'a>(
        &'a self,
        tasks: &'a PhaseTasks,
    ) -> impl Iterator<Item = u32> + 'a {
        let any = self.any(tasks.phase);
        let whole = (!any).then_some(&(0..u32::MAX)).into_iter();
        let parts = self
            .groups
            .iter()
            .filter(move |group| any && group.owner.is_none())
            .map(|group| &group.splits);
        whole.chain(parts).flat_map(|splits| tasks.queue.range(splits.clone()).copied())
    }

    /// The first waiting task of each group that has an owner.
    pub(crate) fn owned_tasks<'a>(
        &'a self,
        tasks: &'a PhaseTasks,
    ) -> impl Iterator<Item = (u32, &'a WorkerId)> + 'a {
        let any = self.any(tasks.phase);
        self.groups.iter().filter(move |_| any).filter_map(|group| {
            let index = tasks.queue.range(group.splits.clone()).next()?;
            Some((*index, group.owner.as_ref()?))
        })
    }

    /// The leader itself was not there: that time counts against nobody.
    pub(crate) fn forgive(&mut self, now_ms: u64, missed_ms: u64) {
        for since_ms in self.absent.values_mut() {
            *since_ms = forgiven(*since_ms, now_ms, missed_ms);
        }
    }

    /// The owner that has been waited for longest, and since when.
    pub(super) fn longest_absent(&self) -> Option<(&WorkerId, u64)> {
        self.absent.iter().min_by_key(|(_, since)| **since).map(|(owner, since)| (owner, *since))
    }
}
