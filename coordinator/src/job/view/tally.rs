//! How often something has happened under this leader. Nothing is decided by it.

use std::collections::BTreeMap;

use muster_protocol::ids::Phase;

use crate::job::io::RefusalCode;
use crate::job::ledger::durable::DurableJob;
use crate::job::pool::policies::health::Rule;
use crate::journal::record::{JobEnded, JobOutcome, Recovery};

/// All phases, in their order; [`Tally`] counts some things by it.
pub const PHASES: [Phase; 3] = [Phase::Sample, Phase::Sort, Phase::Merge];

/// The kinds of trouble that recoveries are counted by.
pub const TROUBLES: [&str; 5] =
    ["worker-lost", "attempt-failed", "run-damaged", "input-unreadable", "store-trouble"];

/// Codes with which clients are refused.
pub const CODES: [RefusalCode; 4] =
    [RefusalCode::BadRequest, RefusalCode::Unknown, RefusalCode::Conflict, RefusalCode::Later];

/// How often something has happened since this leader's term began.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Attempts that were given out, by phase.
    pub attempts_begun: [u64; 3],
    /// Second attempts of slow tasks among them, by phase.
    pub speculations: [u64; 3],
    /// Attempts that failed, by phase.
    pub attempts_failed: [u64; 3],
    /// Attempts that were lost with their worker, or hung, by phase.
    pub attempts_lost: [u64; 3],
    /// Tasks that were committed, by phase.
    pub tasks_committed: [u64; 3],
    /// Committed tasks that had to be done anew, because what they made was lost.
    pub tasks_repeated: u64,
    /// Pieces of committed runs that were looked at for records of input objects that are left out.
    pub intervals_looked_at: u64,
    /// Workers that were taken for dead.
    pub workers_lost: u64,
    /// Registrations that were refused.
    pub workers_refused: u64,
    /// Requests of clients that were refused, in the order of [`CODES`].
    pub requests_refused: [u64; CODES.len()],
    /// Jobs that ended: succeeded, failed, cancelled.
    pub jobs_ended: [u64; 3],
    /// Input records of jobs that succeeded.
    pub records_sorted: u64,
    /// Input bytes of jobs that succeeded.
    pub bytes_sorted: u64,
    /// Troubles of ended jobs that were got over, in the order of [`TROUBLES`].
    pub recovered: [u64; TROUBLES.len()],
    /// Troubles of ended jobs that were not.
    pub given_up: [u64; TROUBLES.len()],
    /// Alerts that were raised.
    pub alerts_raised: BTreeMap<Rule, u64>,
}

/// Something that has happened.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Counted {
    AttemptBegan(Phase),
    SecondBegan(Phase),
    AttemptFailed(Phase),
    AttemptLost(Phase),
    TaskCommitted(Phase),
    TaskRepeated,
    IntervalsLookedAt(u64),
    WorkerLost,
    WorkerRefused,
    RequestRefused(RefusalCode),
    AlertRaised(Rule),
}

impl Tally {
    /// Counts it.
    pub(super) fn count(&mut self, what: Counted) {
        let (count, by) = match what {
            Counted::AttemptBegan(phase) => (&mut self.attempts_begun[phase as usize], 1),
            Counted::SecondBegan(phase) => (&mut self.speculations[phase as usize], 1),
            Counted::AttemptFailed(phase) => (&mut self.attempts_failed[phase as usize], 1),
            Counted::AttemptLost(phase) => (&mut self.attempts_lost[phase as usize], 1),
            Counted::TaskCommitted(phase) => (&mut self.tasks_committed[phase as usize], 1),
            Counted::TaskRepeated => (&mut self.tasks_repeated, 1),
            Counted::IntervalsLookedAt(count) => (&mut self.intervals_looked_at, count),
            Counted::WorkerLost => (&mut self.workers_lost, 1),
            Counted::WorkerRefused => (&mut self.workers_refused, 1),
            Counted::RequestRefused(code) => (&mut self.requests_refused[code as usize], 1),
            Counted::AlertRaised(rule) => (self.alerts_raised.entry(rule).or_default(), 1),
        };
        *count = count.saturating_add(by);
    }

    /// A job has ended.
    pub(super) fn ended(&mut self, ended: &JobEnded, job: Option<&DurableJob>) {
        let how = match ended.outcome {
            JobOutcome::Succeeded => 0,
            JobOutcome::Failed => 1,
            JobOutcome::Cancelled => 2,
        };
        self.jobs_ended[how] += 1;
        self.recoveries(&ended.recoveries);
        if let Some(job) = job.filter(|_| ended.outcome == JobOutcome::Succeeded) {
            self.records_sorted = self.records_sorted.saturating_add(job.run_totals.input.records);
            self.bytes_sorted = self.bytes_sorted.saturating_add(job.submitted.input_bytes);
        }
    }

    fn recoveries(&mut self, recoveries: &[Recovery]) {
        for recovery in recoveries {
            if let Some(at) = TROUBLES.iter().position(|kind| *kind == recovery.kind) {
                self.recovered[at] += u64::from(recovery.recovered);
                self.given_up[at] += u64::from(recovery.given_up);
            }
        }
    }
}
