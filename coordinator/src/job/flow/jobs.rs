//! All jobs: what the journal says of each, what this leader knows of those that it looks after,
//! and which of them have something to grant.

use std::collections::{BTreeMap, BTreeSet};

use muster_protocol::ids::{AttemptId, JobId, Phase};

use crate::job::flow::active::Active;
use crate::job::ledger::durable::{Durable, DurableJob};
use crate::job::tasks::table::{Attempt, PhaseTasks};
use crate::journal::record::Record;

/// The jobs.
#[derive(Debug)]
pub(crate) struct Jobs {
    durable: Durable,
    active: BTreeMap<JobId, Active>,
    /// Jobs with a task that can be granted, those with the fewest running attempts first, then in
    /// order of submission.
    runnable: BTreeSet<(u32, u64, JobId)>,
}

impl Jobs {
    pub(crate) fn new(durable: Durable) -> Self {
        Self { durable, active: BTreeMap::new(), runnable: BTreeSet::new() }
    }

    /// Folds a record that stands.
    ///
    /// # Errors
    /// Says what contradicts the journal.
    pub(crate) fn apply(&mut self, record: &Record) -> Result<(), String> {
        self.durable.apply(record)
    }

    pub(crate) fn durable(&self) -> &Durable {
        &self.durable
    }

    /// What the journal says of a job.
    pub(crate) fn known(&self, job: &JobId) -> Option<&DurableJob> {
        self.durable.jobs.get(job)
    }

    /// The jobs that have not ended, or are not cleaned.
    pub(crate) fn at_work(&self) -> &BTreeMap<JobId, Active> {
        &self.active
    }

    pub(crate) fn at_work_mut(&mut self) -> impl Iterator<Item = (&JobId, &mut Active)> {
        self.active.iter_mut()
    }

    pub(crate) fn active(&self, job: &JobId) -> Option<&Active> {
        self.active.get(job)
    }

    pub(crate) fn active_mut(&mut self, job: &JobId) -> Option<&mut Active> {
        self.active.get_mut(job)
    }

    /// Both sides of a job: what the journal says, and what this leader knows.
    pub(crate) fn both(&self, job: &JobId) -> Option<(&DurableJob, &Active)> {
        Some((self.durable.jobs.get(job)?, self.active.get(job)?))
    }

    pub(crate) fn both_mut(&mut self, job: &JobId) -> Option<(&DurableJob, &mut Active)> {
        Some((self.durable.jobs.get(job)?, self.active.get_mut(job)?))
    }

    pub(crate) fn tasks(&self, job: &JobId, phase: Phase) -> Option<&PhaseTasks> {
        self.active.get(job)?.tasks.of(phase)
    }

    pub(crate) fn tasks_mut(&mut self, job: &JobId, phase: Phase) -> Option<&mut PhaseTasks> {
        self.active.get_mut(job)?.tasks.of_mut(phase)
    }

    /// An attempt under way.
    pub(crate) fn attempt(&self, job: &JobId, attempt: &AttemptId) -> Option<&Attempt> {
        self.active.get(job)?.tasks.attempt(attempt)
    }

    pub(crate) fn attempt_mut(&mut self, job: &JobId, id: &AttemptId) -> Option<&mut Attempt> {
        self.active.get_mut(job)?.tasks.attempt_mut(id)
    }

    pub(crate) fn take_on(&mut self, job: JobId, active: Active) {
        self.active.insert(job, active);
    }

    pub(crate) fn let_go(&mut self, job: &JobId) -> Option<Active> {
        self.active.remove(job)
    }

    pub(crate) fn runnable(&self) -> &BTreeSet<(u32, u64, JobId)> {
        &self.runnable
    }

    /// Puts a job into, or out of, the order of those with something to grant.
    pub(crate) fn touch(&mut self, job: &JobId) {
        let Some(active) = self.active.get_mut(job) else { return };
        let after = active.may_run().then(|| active.tasks.running());
        let before = std::mem::replace(&mut active.runnable, after);
        if before != after {
            let order = active.order;
            before.map(|running| self.runnable.remove(&(running, order, job.clone())));
            after.map(|running| self.runnable.insert((running, order, job.clone())));
        }
    }
}
