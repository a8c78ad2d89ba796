//! A job's way: a request becomes a plan, stages follow one another with barriers between them, and
//! in the end nothing is left but the result.

use std::collections::BTreeMap;

use muster_protocol::ids::JobId;

use crate::job::ledger::durable::Durable;

pub(crate) mod active;
pub(crate) mod barriers;
pub(crate) mod boundaries;
mod clean_up;
pub(crate) mod commit;
mod end;
pub(crate) mod jobs;
pub mod plan;
pub(crate) mod stages;
pub(crate) mod submit;
pub(crate) mod table;
mod take_over;

use submit::Planning;

/// What the way of jobs takes beyond the jobs themselves.
#[derive(Debug, Default)]
pub(crate) struct Flow {
    /// Jobs on their way into the journal.
    planning: BTreeMap<JobId, Planning>,
    next_order: u64,
    tickets: Tickets,
    /// Cleaned jobs whose scratch is to be swept once more, and how often that has failed. Until it
    /// has ended they are not forgotten, so that nobody takes their names.
    sweeping: BTreeMap<JobId, u32>,
    /// When ended jobs are looked through for old ones.
    retention_due_ms: u64,
}

impl Flow {
    pub(crate) fn new(durable: &Durable) -> Self {
        let orders = durable.jobs.values().map(|job| job.submitted.order + 1);
        Self { next_order: orders.max().unwrap_or(0), ..Self::default() }
    }

    pub(crate) fn planning(&self) -> &BTreeMap<JobId, Planning> {
        &self.planning
    }

    #[cfg(test)]
    pub(crate) fn sweeps(&self) -> bool {
        !self.sweeping.is_empty()
    }

    pub(crate) fn is_retention_due(&self, now_ms: u64) -> bool {
        now_ms >= self.retention_due_ms
    }
}

/// Numbers the objects that are written, and knows for whom.
#[derive(Debug, Default)]
struct Tickets {
    next: u64,
    waiting: BTreeMap<u64, JobId>,
}

impl Tickets {
    fn issue(&mut self, job: &JobId) -> u64 {
        self.next += 1;
        self.waiting.insert(self.next, job.clone());
        self.next
    }

    fn redeem(&mut self, ticket: u64) -> Option<JobId> {
        self.waiting.remove(&ticket)
    }
}
