//! What people should know about the pool: health classes with their shares, and alerts.
//!
//! A rule reads figures as bad, good, or neither. An alert is raised when it was bad for `raise_ms`
//! (at once where the rule is certain), and cleared when it was good for `clear_ms`; in between it
//! stays as it is, so that a figure at its limit does not flap. What comes out are transitions, to
//! be logged and sent as events; nothing is decided by them.

use std::collections::BTreeMap;
use std::fmt;

use muster_platform::config::Alerts as Settings;
use muster_protocol::ids::{JobId, WorkerId};

use super::breaker;
use super::phi::Liveness;
use super::sliding::Totals;

/// Memory must fall so far below its limit before it is good again, in percent of the whole.
const MEMORY_BAND_PERCENT: u32 = 5;
/// The journal must empty so far below its limit, in percent of the whole.
const JOURNAL_BAND_PERCENT: u32 = 5;
/// Free disk space must rise so far above its limit, in percent of the limit.
const DISK_BAND_PERCENT: u64 = 25;

/// How fit a worker is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// None of the below.
    Healthy,
    /// Suspect, slow, waiting for a store, or its breaker is half-open.
    Degraded,
    /// Dead, or its breaker is open.
    Failed,
}

impl Class {
    /// The class as it is shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Class::Healthy => "healthy",
            Class::Degraded => "degraded",
            Class::Failed => "failed",
        }
    }
}

/// The class of a worker.
pub fn class(liveness: Liveness, breaker: breaker::State, slow: bool, waits: bool) -> Class {
    match (liveness, breaker) {
        (Liveness::Dead, _) | (_, breaker::State::Open { .. }) => Class::Failed,
        (Liveness::Suspect, _) | (_, breaker::State::HalfOpen) => Class::Degraded,
        _ if slow || waits => Class::Degraded,
        (Liveness::Healthy | Liveness::Rejoined, breaker::State::Closed) => Class::Healthy,
    }
}

/// How many workers of a pool are in each class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Shares {
    /// Healthy ones.
    pub healthy: u32,
    /// Degraded ones.
    pub degraded: u32,
    /// Failed ones.
    pub failed: u32,
}

impl Shares {
    /// Counts a pool.
    pub fn count(classes: impl IntoIterator<Item = Class>) -> Self {
        let mut shares = Self::default();
        for class in classes {
            match class {
                Class::Healthy => shares.healthy += 1,
                Class::Degraded => shares.degraded += 1,
                Class::Failed => shares.failed += 1,
            }
        }
        shares
    }

    /// All of them.
    pub fn total(&self) -> u32 {
        self.healthy.saturating_add(self.degraded).saturating_add(self.failed)
    }

    /// One class in percent of all, rounded down; 0 in an empty pool.
    pub fn percent(&self, class: Class) -> u32 {
        let count = match class {
            Class::Healthy => self.healthy,
            Class::Degraded => self.degraded,
            Class::Failed => self.failed,
        };
        u32::try_from(u64::from(count) * 100 / u64::from(self.total().max(1))).unwrap_or(100)
    }
}

/// What is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// A worker is dead.
    WorkerDown,
    /// Too many attempts and store calls of a worker failed lately.
    HighErrorRate,
    /// A worker is slow beside the others, or a job does not progress.
    SlowProgress,
    /// A worker's memory is nearly used up.
    MemoryHigh,
    /// A worker's disk is nearly full.
    DiskLow,
    /// Writes to the journal take long.
    JournalSlow,
    /// Writes to the journal fail.
    JournalFailing,
    /// The journal's stream is nearly full.
    JournalFull,
    /// Records pile up before the journal.
    JournalBacklog,
    /// Tasks pile up before the pool.
    TaskBacklog,
    /// Attempts of a worker or of a job fail one after the other.
    TaskFailures,
}

impl Rule {
    /// All of them.
    pub const ALL: [Rule; 10] = [
        Rule::WorkerDown,
        Rule::HighErrorRate,
        Rule::SlowProgress,
        Rule::MemoryHigh,
        Rule::DiskLow,
        Rule::JournalSlow,
        Rule::JournalFailing,
        Rule::JournalBacklog,
        Rule::TaskBacklog,
        Rule::TaskFailures,
    ];

    /// The rule as it is shown and as alert ids begin.
    pub fn as_str(self) -> &'static str {
        match self {
            Rule::WorkerDown => "worker-down",
            Rule::HighErrorRate => "high-error-rate",
            Rule::SlowProgress => "slow-progress",
            Rule::MemoryHigh => "memory-high",
            Rule::DiskLow => "disk-low",
            Rule::JournalSlow => "journal-slow",
            Rule::JournalFailing => "journal-failing",
            Rule::JournalFull => "journal-full",
            Rule::JournalBacklog => "journal-backlog",
            Rule::TaskBacklog => "task-backlog",
            Rule::TaskFailures => "task-failures",
        }
    }

    /// What is certain, or has waited in its own figure, is raised at once.
    fn raise_ms(self, settings: &Settings) -> u64 {
        match self {
            Rule::WorkerDown
            | Rule::HighErrorRate
            | Rule::SlowProgress
            | Rule::JournalFailing
            | Rule::JournalFull
            | Rule::TaskFailures => 0,
            Rule::MemoryHigh
            | Rule::DiskLow
            | Rule::JournalSlow
            | Rule::JournalBacklog
            | Rule::TaskBacklog => settings.raise_ms,
        }
    }
}

/// How grave an alert is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Work goes on, with less.
    Warning,
    /// Work stands or is about to, or a worker labelled `critical` is concerned.
    Error,
}

impl Severity {
    /// The severity as it is shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Warning => "warning",
            Severity::Error => "error",
        }
    }
}

/// Whom an alert is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// The deployment as a whole.
    Deployment,
    /// A worker.
    Worker(WorkerId),
    /// A job.
    Job(JobId),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::Deployment => f.write_str("deployment"),
            Subject::Worker(worker) => write!(f, "worker {worker}"),
            Subject::Job(job) => write!(f, "job {job}"),
        }
    }
}

/// Something that people should know, as long as it is raised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alert {
    /// What is watched.
    pub rule: Rule,
    /// Whom it is about.
    pub subject: Subject,
    /// How grave it is.
    pub severity: Severity,
    /// The value seen and the limit, as of raising.
    pub text: String,
    /// When it was raised, in milliseconds of the caller's clock.
    pub raised_ms: u64,
}

impl Alert {
    /// Its name: the same for each time that this rule is raised about this subject.
    pub fn id(&self) -> String {
        match &self.subject {
            Subject::Deployment => self.rule.as_str().to_owned(),
            Subject::Worker(worker) => format!("{}:worker:{worker}", self.rule.as_str()),
            Subject::Job(job) => format!("{}:job:{job}", self.rule.as_str()),
        }
    }
}

/// An alert comes or goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transition {
    /// It is raised.
    Raised(Alert),
    /// It is cleared, after so many milliseconds.
    Cleared(Alert, u64),
}

/// What is known of a worker. A figure that is not known is 0 and raises nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerFigures {
    /// Of its detector.
    pub liveness: Liveness,
    /// Of its detector, in milliseconds.
    pub silence_ms: u64,
    /// Attempts and store calls within `error_window_ms`.
    pub errors: Totals,
    /// Whether it is slow ([`super::speculation::Speed::is_slow`]).
    pub slow: bool,
    /// Its speed in percent of the median ([`super::speculation::Speed::percent`]).
    pub speed_percent: u32,
    /// Memory in use, in bytes.
    pub memory_used_bytes: u64,
    /// Memory that it may use, in bytes.
    pub memory_bytes: u64,
    /// Free space of its data directory in bytes, where it is known.
    pub disk_free_bytes: Option<u64>,
    /// What its running tasks may still write there, in bytes.
    pub disk_needed_bytes: u64,
    /// Attempts that failed since its last success.
    pub failures_in_a_row: u32,
    /// Whether it bears the label `critical` ([`is_critical`]).
    pub critical: bool,
}

/// What is known of the deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeploymentFigures {
    /// The slowest of the last writes to the journal, those still under way included, in
    /// milliseconds.
    pub journal_write_ms: u64,
    /// Writes that failed since the last success.
    pub journal_failures_in_a_row: u32,
    /// How full the journal's stream is, in percent; 0 where it is not known.
    pub journal_used_percent: u32,
    /// Records that wait for the journal.
    pub journal_waiting: u32,
    /// Tasks that wait for a slot.
    pub tasks_waiting: u32,
    /// Slots of the living workers.
    pub slots: u32,
}

/// What is known of a running job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct JobFigures {
    /// Since any of its tasks progressed, in milliseconds; 0 while it waits for workers or for the
    /// store, which have their own words.
    pub idle_ms: u64,
    /// Attempts that failed since its last success.
    pub failures_in_a_row: u32,
}

/// Whether a worker's labels hold `critical` (`critical=true`, or with no value); `critical=false`
/// is none.
pub fn is_critical(labels: &[(String, String)]) -> bool {
    labels.iter().any(|(key, value)| key == "critical" && value != "false")
}

/// What a figure says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Good,
    Between,
    Bad,
}

impl Level {
    fn of(bad: bool, good: bool) -> Self {
        match (bad, good) {
            (true, _) => Level::Bad,
            (false, true) => Level::Good,
            (false, false) => Level::Between,
        }
    }
}

/// One reading of one rule; the text is only made when it is raised.
struct Reading<'a> {
    rule: Rule,
    severity: Severity,
    level: Level,
    text: &'a dyn Fn() -> String,
}

/// Where an alert stands. Subjects for which all is well have no entry.
#[derive(Debug, Clone)]
enum Entry {
    /// Bad since then, in milliseconds.
    Pending(u64),
    /// Raised, and good again since then, if it is.
    Raised(Alert, Option<u64>),
}

/// The alerts of a deployment. Give it the figures of all subjects with every tick, and say when a
/// subject is gone.
#[derive(Debug, Clone, Default)]
pub struct Alerts {
    entries: BTreeMap<(Subject, Rule), Entry>,
}

impl Alerts {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// Those that are raised, by subject.
    pub fn raised(&self) -> impl Iterator<Item = &Alert> {
        self.entries.values().filter_map(|entry| match entry {
            Entry::Raised(alert, _) => Some(alert),
            Entry::Pending(_) => None,
        })
    }

    /// Figures of a worker.
    pub fn worker(
        &mut self,
        settings: &Settings,
        now_ms: u64,
        worker: &WorkerId,
        figures: &WorkerFigures,
    ) -> Vec<Transition> {
        let f = figures;
        let severity = if f.critical { Severity::Error } else { Severity::Warning };
        let percent = f.errors.failed_percent();
        let volume = f.errors.ended >= settings.error_volume_min;
        let memory_above = |percent| above_percent(f.memory_used_bytes, percent, f.memory_bytes);
        let memory_good = settings.memory_percent.saturating_sub(MEMORY_BAND_PERCENT);
        let spare = u128::from(f.disk_needed_bytes) * u128::from(settings.disk_spare_percent) / 100;
        let needed = f.disk_needed_bytes.saturating_add(u64::try_from(spare).unwrap_or(u64::MAX));
        let disk_limit = needed.max(settings.disk_free_min_bytes);
        let disk_good = disk_limit.saturating_add(disk_limit / 100 * DISK_BAND_PERCENT);
        let free = f.disk_free_bytes;
        let reading = |rule, level, text| Reading { rule, severity, level, text };
        self.read_all(
            settings,
            now_ms,
            &Subject::Worker(worker.clone()),
            &[
                reading(
                    Rule::WorkerDown,
                    Level::of(f.liveness == Liveness::Dead, f.liveness == Liveness::Healthy),
                    &|| format!("nothing was heard of it for {} ms", f.silence_ms),
                ),
                reading(
                    Rule::HighErrorRate,
                    Level::of(
                        volume && percent >= settings.error_rate_percent,
                        f.errors.failed == 0 || percent < settings.error_rate_percent / 2,
                    ),
                    &|| {
                        format!(
                            "{} of {} failed lately ({percent} %)",
                            f.errors.failed, f.errors.ended
                        )
                    },
                ),
                reading(Rule::SlowProgress, Level::of(f.slow, !f.slow), &|| {
                    format!("it works at {} % of the median rate", f.speed_percent)
                }),
                reading(
                    Rule::MemoryHigh,
                    Level::of(memory_above(settings.memory_percent), !memory_above(memory_good)),
                    &|| {
                        format!(
                            "{} of {} bytes of memory are in use",
                            f.memory_used_bytes, f.memory_bytes
                        )
                    },
                ),
                reading(
                    Rule::DiskLow,
                    Level::of(
                        free.is_some_and(|free| free < disk_limit),
                        free.is_none_or(|free| free >= disk_good),
                    ),
                    &|| {
                        format!(
                            "{} bytes of disk are free, {disk_limit} should be",
                            free.unwrap_or(0)
                        )
                    },
                ),
                reading(
                    Rule::TaskFailures,
                    Level::of(
                        f.failures_in_a_row >= settings.task_failures,
                        f.failures_in_a_row == 0,
                    ),
                    &|| format!("its last {} attempts failed", f.failures_in_a_row),
                ),
            ],
        )
    }

    /// Figures of the deployment.
    pub fn deployment(
        &mut self,
        settings: &Settings,
        now_ms: u64,
        figures: &DeploymentFigures,
    ) -> Vec<Transition> {
        let f = figures;
        let tasks_limit = u64::from(f.slots.max(1)) * u64::from(settings.tasks_per_slot);
        let tasks = u64::from(f.tasks_waiting);
        let reading = |rule, severity, level, text| Reading { rule, severity, level, text };
        self.read_all(
            settings,
            now_ms,
            &Subject::Deployment,
            &[
                reading(
                    Rule::JournalSlow,
                    Severity::Warning,
                    Level::of(
                        f.journal_write_ms > settings.journal_write_ms,
                        f.journal_write_ms <= settings.journal_write_ms / 2,
                    ),
                    &|| format!("a write to the journal takes {} ms", f.journal_write_ms),
                ),
                reading(
                    Rule::JournalFailing,
                    Severity::Error,
                    Level::of(
                        f.journal_failures_in_a_row >= settings.journal_failures,
                        f.journal_failures_in_a_row == 0,
                    ),
                    &|| {
                        format!(
                            "the last {} writes to the journal failed",
                            f.journal_failures_in_a_row
                        )
                    },
                ),
                reading(
                    Rule::JournalFull,
                    Severity::Error,
                    Level::of(
                        f.journal_used_percent >= settings.journal_percent,
                        f.journal_used_percent
                            < settings.journal_percent.saturating_sub(JOURNAL_BAND_PERCENT),
                    ),
                    &|| {
                        format!(
                            "the journal's stream is full to {} % (journal.bytes_max)",
                            f.journal_used_percent
                        )
                    },
                ),
                reading(
                    Rule::JournalBacklog,
                    Severity::Warning,
                    Level::of(
                        f.journal_waiting >= settings.journal_backlog,
                        f.journal_waiting <= settings.journal_backlog / 2,
                    ),
                    &|| format!("{} records wait for the journal", f.journal_waiting),
                ),
                reading(
                    Rule::TaskBacklog,
                    Severity::Warning,
                    Level::of(tasks > tasks_limit, tasks <= tasks_limit / 2),
                    &|| format!("{tasks} tasks wait for {} slots", f.slots),
                ),
            ],
        )
    }

    /// Figures of a running job.
    pub fn job(
        &mut self,
        settings: &Settings,
        now_ms: u64,
        job: &JobId,
        figures: &JobFigures,
    ) -> Vec<Transition> {
        let f = figures;
        let reading =
            |rule, level, text| Reading { rule, severity: Severity::Warning, level, text };
        self.read_all(
            settings,
            now_ms,
            &Subject::Job(job.clone()),
            &[
                reading(
                    Rule::SlowProgress,
                    Level::of(
                        f.idle_ms >= settings.progress_stall_ms,
                        f.idle_ms < settings.progress_stall_ms,
                    ),
                    &|| format!("none of its tasks progressed for {} ms", f.idle_ms),
                ),
                reading(
                    Rule::TaskFailures,
                    Level::of(
                        f.failures_in_a_row >= settings.task_failures,
                        f.failures_in_a_row == 0,
                    ),
                    &|| format!("its last {} attempts failed", f.failures_in_a_row),
                ),
            ],
        )
    }

    /// A job ended, or a worker was drained or is forgotten: what was raised about it is cleared.
    pub fn forget(&mut self, now_ms: u64, subject: &Subject) -> Vec<Transition> {
        let from = (subject.clone(), Rule::WorkerDown);
        let known: Vec<_> = self
            .entries
            .range(from..)
            .map(|(key, _)| key)
            .take_while(|key| key.0 == *subject)
            .cloned()
            .collect();
        let gone = known.into_iter().filter_map(|key| self.entries.remove(&key));
        gone.filter_map(|entry| match entry {
            Entry::Raised(alert, _) => Some(cleared(alert, now_ms)),
            Entry::Pending(_) => None,
        })
        .collect()
    }

    fn read_all(
        &mut self,
        settings: &Settings,
        now_ms: u64,
        subject: &Subject,
        readings: &[Reading<'_>],
    ) -> Vec<Transition> {
        readings
            .iter()
            .filter_map(|reading| self.read(settings, now_ms, subject, reading))
            .collect()
    }

    fn read(
        &mut self,
        settings: &Settings,
        now_ms: u64,
        subject: &Subject,
        reading: &Reading<'_>,
    ) -> Option<Transition> {
        if self.entries.is_empty() && reading.level != Level::Bad {
            return None;
        }
        let key = (subject.clone(), reading.rule);
        let (next, transition) = match (self.entries.remove(&key), reading.level) {
            (None | Some(Entry::Pending(_)), Level::Good | Level::Between) => (None, None),
            (before @ (None | Some(Entry::Pending(_))), Level::Bad) => {
                let since_ms =
                    if let Some(Entry::Pending(since_ms)) = before { since_ms } else { now_ms };
                if now_ms.saturating_sub(since_ms) < reading.rule.raise_ms(settings) {
                    (Some(Entry::Pending(since_ms)), None)
                } else {
                    let (rule, severity, text) = (reading.rule, reading.severity, (reading.text)());
                    let alert =
                        Alert { rule, subject: subject.clone(), severity, text, raised_ms: now_ms };
                    (Some(Entry::Raised(alert.clone(), None)), Some(Transition::Raised(alert)))
                }
            }
            (Some(Entry::Raised(alert, _)), Level::Bad | Level::Between) => {
                (Some(Entry::Raised(alert, None)), None)
            }
            (Some(Entry::Raised(alert, good_ms)), Level::Good) => {
                let good_ms = good_ms.unwrap_or(now_ms);
                match now_ms.saturating_sub(good_ms) >= settings.clear_ms {
                    true => (None, Some(cleared(alert, now_ms))),
                    false => (Some(Entry::Raised(alert, Some(good_ms))), None),
                }
            }
        };
        next.map(|entry| self.entries.insert(key, entry));
        transition
    }
}

fn cleared(alert: Alert, now_ms: u64) -> Transition {
    let lasted_ms = now_ms.saturating_sub(alert.raised_ms);
    Transition::Cleared(alert, lasted_ms)
}

/// Whether a part is more than so many percent of the whole; not where the whole is unknown.
fn above_percent(part: u64, percent: u32, whole: u64) -> bool {
    whole > 0 && u128::from(part) * 100 > u128::from(whole) * u128::from(percent)
}

#[cfg(test)]
#[path = "health_tests.rs"]
mod tests;
