//! What people see. Nothing is decided here.

use std::collections::{BTreeMap, BTreeSet};

use muster_platform::quiet::Quiet;
use muster_protocol::ids::{AttemptId, JobId};

use crate::job::ledger::durable::{DurableJob, FAILURES_KEPT};
use crate::job::pool::policies::health::{Alert, Alerts};
use crate::journal::record::JobEnded;

mod alerts;
pub mod figures;
pub(crate) mod letters;
pub(crate) mod recoveries;
pub(crate) mod status;
pub mod tally;

use recoveries::Recoveries;
use tally::{Counted, Tally};

/// Pause between two publications of a job's progress, in milliseconds.
const PROGRESS_MS: u64 = 500;

/// What is kept for people alone.
#[derive(Debug)]
pub(crate) struct View {
    tally: Tally,
    alerts: Alerts,
    /// What was to be said of jobs that are history now.
    warned: BTreeMap<JobId, Vec<String>>,
    /// Jobs whose progress is to be published at the end of this step.
    urgent: BTreeSet<JobId>,
    /// What is told of workers that are refused: each may ask as often as it likes.
    refusals: Quiet,
}

impl View {
    pub(crate) fn new() -> Self {
        Self {
            tally: Tally::default(),
            alerts: Alerts::new(),
            warned: BTreeMap::new(),
            urgent: BTreeSet::new(),
            refusals: Quiet::default(),
        }
    }

    pub(crate) fn count(&mut self, what: Counted) {
        self.tally.count(what);
    }

    pub(crate) fn ended(&mut self, ended: &JobEnded, job: Option<&DurableJob>) {
        self.tally.ended(ended, job);
    }

    /// Whether one more event of a kind that anybody can cause is told.
    pub(crate) fn tells(&mut self, now_ms: u64, kind: &'static str) -> bool {
        self.refusals.tells(now_ms, kind)
    }

    /// How many were not, where the time to say so has come.
    pub(crate) fn untold(&mut self, now_ms: u64) -> Vec<(&'static str, u32)> {
        self.refusals.over(now_ms)
    }

    /// A job's progress is published at the end of this step.
    pub(crate) fn is_urgent(&mut self, job: &JobId) {
        self.urgent.insert(job.clone());
    }

    /// A job is history, and what was said of it stays for those who ask.
    pub(crate) fn keep_warnings(&mut self, job: &JobId, told: Told) {
        if !told.warnings.is_empty() {
            self.warned.insert(job.clone(), told.warnings);
        }
    }

    pub(crate) fn forget_job(&mut self, job: &JobId) {
        self.warned.remove(job);
    }

    fn take_urgent(&mut self) -> BTreeSet<JobId> {
        std::mem::take(&mut self.urgent)
    }

    fn tally(&self) -> &Tally {
        &self.tally
    }

    fn raised(&self) -> impl Iterator<Item = &Alert> {
        self.alerts.raised()
    }

    fn warnings_of(&self, job: &JobId) -> Vec<String> {
        self.warned.get(job).cloned().unwrap_or_default()
    }
}

/// What people are told of one job.
#[derive(Debug)]
pub(crate) struct Told {
    pub recoveries: Recoveries,
    warnings: Vec<String>,
    /// When this leader heard of failed attempts.
    failed_unix_ms: BTreeMap<AttemptId, u64>,
    /// When progress was last published, and whether there is news.
    published_ms: u64,
    news: bool,
}

impl Told {
    pub(crate) fn of(job: &DurableJob, now_ms: u64) -> Self {
        Self {
            recoveries: Recoveries::of(job, now_ms),
            warnings: Vec::new(),
            failed_unix_ms: BTreeMap::new(),
            published_ms: 0,
            news: false,
        }
    }

    /// There is something new to be seen.
    pub(crate) fn news(&mut self) {
        self.news = true;
    }

    pub(crate) fn warn(&mut self, warning: String) {
        self.warnings.push(warning);
    }

    /// An attempt failed; as many are kept as the journal keeps.
    pub(crate) fn failed(&mut self, attempt: AttemptId, unix_ms: u64, job: &DurableJob) {
        if self.failed_unix_ms.len() >= 2 * FAILURES_KEPT {
            let kept: BTreeSet<AttemptId> =
                job.failures.iter().map(|known| known.attempt).collect();
            self.failed_unix_ms.retain(|attempt, _| kept.contains(attempt));
        }
        self.failed_unix_ms.insert(attempt, unix_ms);
    }

    fn failed_at(&self, attempt: &AttemptId) -> Option<u64> {
        self.failed_unix_ms.get(attempt).copied()
    }

    fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Whether there is news, and it is not published more often than people can read.
    fn is_due(&self, now_ms: u64) -> bool {
        self.news && now_ms.saturating_sub(self.published_ms) >= PROGRESS_MS
    }

    fn published(&mut self, now_ms: u64) {
        self.news = false;
        self.published_ms = now_ms;
    }
}
