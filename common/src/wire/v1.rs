//! Wire version 1, frozen: the messages whose shape version 2 changed.
//!
//! Upwards every message of version 1 means something in version 2. Downwards a worker leaves out
//! what the old leader does not know; an order that version 1 cannot express is refused instead of
//! being misread.

use serde::{Deserialize, Serialize};

use muster_kernel::proof::{Interval, Sums};
use muster_kernel::splitters::Splitter;

use super::{
    AttemptProgress, BlobRef, Health, Heartbeat, HeldAttempt, MergedPart, Outcome, Register,
    Report, RunAttempt, SortedRun, Work, WorkerState,
};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{AttemptId, Epoch, Incarnation, JobId, WorkerId};

/// See [`super::Register`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisterV1 {
    /// Who.
    pub worker: WorkerId,
    /// Which life of it.
    pub incarnation: Incarnation,
    /// The program's version, for people.
    pub program: String,
    /// Host name, for messages to people.
    pub host: String,
    /// Attempts it can run at once.
    pub slots: u32,
    /// Its memory budget in bytes.
    pub memory_bytes: u64,
    /// `key=value` labels.
    pub labels: Vec<(String, String)>,
    /// Whether it takes no new work.
    pub draining: bool,
    /// What it runs or holds unreported.
    pub held: Vec<HeldAttempt>,
}

/// See [`super::Heartbeat`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatV1 {
    /// Who.
    pub worker: WorkerId,
    /// Which life of it.
    pub incarnation: Incarnation,
    /// The epoch it is registered under.
    pub epoch: Epoch,
    /// Counts up from 0 within the incarnation.
    pub sequence: u64,
    /// Joining, leaving, or neither.
    pub state: WorkerState,
    /// What runs.
    pub attempts: Vec<AttemptProgress>,
    /// How the process is.
    pub health: HealthV1,
}

/// See [`super::Health`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthV1 {
    /// Resident memory in bytes.
    pub rss_bytes: u64,
    /// CPU time used since the process began, in milliseconds.
    pub cpu_ms: u64,
    /// Store errors that were retried since the process began.
    pub store_retries: u64,
}

/// See [`super::RunAttempt`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunAttemptV1 {
    /// The leader's term; an older one than the worker knows is refused.
    pub epoch: Epoch,
    /// For whom it is meant; another life of the worker refuses it.
    pub incarnation: Incarnation,
    /// Which job.
    pub job: JobId,
    /// Which attempt.
    pub attempt: AttemptId,
    /// The journalled plan of the job ([`crate::plan::Plan`]).
    pub plan: BlobRef,
    /// What is to be done; split and partition are the attempt's task index.
    pub work: WorkV1,
}

/// See [`super::Work`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum WorkV1 {
    /// Read seeded ranges of the split, send keys.
    Sample,
    /// Sort the split into a run.
    Sort {
        /// The splitters; none where the job has one partition.
        splitters: Option<BlobRef>,
    },
    /// Merge the partition out of every run.
    Merge {
        /// The splitters; none where the job has one partition.
        splitters: Option<BlobRef>,
        /// The pinned runs ([`crate::plan::PinnedRuns`]).
        runs: BlobRef,
    },
}

/// See [`super::Report`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportV1 {
    /// The epoch it is registered under.
    pub epoch: Epoch,
    /// Who.
    pub worker: WorkerId,
    /// Which life of it.
    pub incarnation: Incarnation,
    /// Which job.
    pub job: JobId,
    /// Which attempt.
    pub attempt: AttemptId,
    /// What happened.
    pub outcome: OutcomeV1,
}

/// See [`super::Outcome`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum OutcomeV1 {
    /// A merge attempt has opened its upload; it goes on when this is acknowledged.
    UploadOpened {
        /// The store's id of it.
        upload: String,
    },
    /// The split's samples, in the message.
    Sampled {
        /// Truncated comparison keys with positions.
        samples: Vec<Splitter>,
    },
    /// The split's samples, in scratch (an encoded list of splitters).
    SampledToScratch {
        /// Where.
        samples: BlobRef,
    },
    /// The run stands in scratch.
    Sorted(SortedRunV1),
    /// The part's upload is whole and left open.
    Merged(MergedPart),
    /// It cannot be done here.
    Failed {
        /// Why, with object and place.
        error: Error,
    },
}

/// See [`super::SortedRun`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SortedRunV1 {
    /// Where it stands: a blob URL.
    pub url: String,
    /// Its length.
    pub bytes: u64,
    /// The digest of its index, as its footer carries it.
    pub index_digest: u64,
    /// Sums of the input that was read.
    pub input: Sums,
    /// Sums of the records in the run.
    pub kept: Sums,
    /// Sums of the records that `-u` dropped.
    pub dropped: Sums,
    /// Stored bytes of each partition, in order.
    pub partition_bytes: Vec<u64>,
    /// Exactly what was consumed of which pinned object.
    pub intervals: Vec<Interval>,
    /// Chunks spilled to local disk on the way; 0 where the split fitted the memory.
    pub spills: u32,
}

impl From<RegisterV1> for Register {
    fn from(register: RegisterV1) -> Self {
        let RegisterV1 {
            worker,
            incarnation,
            program,
            host,
            slots,
            memory_bytes,
            labels,
            draining,
            held,
        } = register;
        let (settings, inputs) = (Vec::new(), Vec::new());
        Self {
            worker,
            incarnation,
            program,
            host,
            slots,
            memory_bytes,
            labels,
            draining,
            held,
            wire: 1,
            settings,
            inputs,
        }
    }
}

impl TryFrom<Register> for RegisterV1 {
    type Error = Error;

    fn try_from(register: Register) -> Result<Self> {
        let Register {
            worker,
            incarnation,
            program,
            host,
            slots,
            memory_bytes,
            labels,
            draining,
            held,
            ..
        } = register;
        if !register.inputs.is_empty() {
            return Err(Error::invalid(format!(
                "a leader of wire version 1 knows nothing of the input that worker {worker} offers"
            )));
        }
        Ok(Self { worker, incarnation, program, host, slots, memory_bytes, labels, draining, held })
    }
}

impl From<HealthV1> for Health {
    fn from(health: HealthV1) -> Self {
        let HealthV1 { rss_bytes, cpu_ms, store_retries } = health;
        Self { rss_bytes, cpu_ms, store_retries, ..Self::default() }
    }
}

impl From<HeartbeatV1> for Heartbeat {
    fn from(heartbeat: HeartbeatV1) -> Self {
        let HeartbeatV1 { worker, incarnation, epoch, sequence, state, attempts, health } =
            heartbeat;
        Self { worker, incarnation, epoch, sequence, state, attempts, health: health.into() }
    }
}

impl TryFrom<Heartbeat> for HeartbeatV1 {
    type Error = Error;

    fn try_from(heartbeat: Heartbeat) -> Result<Self> {
        let Heartbeat { worker, incarnation, epoch, sequence, state, attempts, health } = heartbeat;
        let Health { rss_bytes, cpu_ms, store_retries, .. } = health;
        let health = HealthV1 { rss_bytes, cpu_ms, store_retries };
        Ok(Self { worker, incarnation, epoch, sequence, state, attempts, health })
    }
}

impl From<RunAttemptV1> for RunAttempt {
    fn from(run: RunAttemptV1) -> Self {
        let RunAttemptV1 { epoch, incarnation, job, attempt, plan, work } = run;
        let work = match work {
            WorkV1::Sample => Work::Sample { skip: Vec::new() },
            WorkV1::Sort { splitters } => Work::Sort { splitters, skip: Vec::new() },
            WorkV1::Merge { splitters, runs } => Work::Merge { splitters, runs },
        };
        Self { epoch, incarnation, job, attempt, plan, work, memory_halvings: 0 }
    }
}

impl TryFrom<RunAttempt> for RunAttemptV1 {
    type Error = Error;

    fn try_from(run: RunAttempt) -> Result<Self> {
        // A smaller chunk is advice that an old worker may miss; objects to leave out are not.
        let RunAttempt { epoch, incarnation, job, attempt, plan, work, memory_halvings: _ } = run;
        let work = match work {
            Work::Sample { skip } if skip.is_empty() => WorkV1::Sample,
            Work::Sort { splitters, skip } if skip.is_empty() => WorkV1::Sort { splitters },
            Work::Merge { splitters, runs } => WorkV1::Merge { splitters, runs },
            Work::Sample { .. } | Work::Sort { .. } => {
                return Err(Error::invalid(format!(
                    "a worker of wire version 1 cannot leave objects out of {attempt}"
                )));
            }
        };
        Ok(Self { epoch, incarnation, job, attempt, plan, work })
    }
}

impl From<SortedRunV1> for SortedRun {
    fn from(run: SortedRunV1) -> Self {
        let SortedRunV1 {
            url,
            bytes,
            index_digest,
            input,
            kept,
            dropped,
            partition_bytes,
            intervals,
            spills,
        } = run;
        Self {
            url,
            replica: None,
            bytes,
            index_digest,
            input,
            kept,
            dropped,
            skipped: Sums::default(),
            quarantine: None,
            bad_records: Vec::new(),
            partition_bytes,
            intervals,
            spills,
        }
    }
}

impl From<ReportV1> for Report {
    fn from(report: ReportV1) -> Self {
        let ReportV1 { epoch, worker, incarnation, job, attempt, outcome } = report;
        let outcome = match outcome {
            OutcomeV1::UploadOpened { upload } => Outcome::UploadOpened { upload },
            OutcomeV1::Sampled { samples } => Outcome::Sampled { samples },
            OutcomeV1::SampledToScratch { samples } => Outcome::SampledToScratch { samples },
            OutcomeV1::Sorted(run) => Outcome::Sorted(Box::new(run.into())),
            OutcomeV1::Merged(part) => Outcome::Merged(part),
            OutcomeV1::Failed { error } => Outcome::Failed { error },
        };
        Self { epoch, worker, incarnation, job, attempt, outcome }
    }
}

impl TryFrom<Report> for ReportV1 {
    type Error = Error;

    fn try_from(report: Report) -> Result<Self> {
        let Report { epoch, worker, incarnation, job, attempt, outcome } = report;
        let outcome = match outcome {
            Outcome::UploadOpened { upload } => OutcomeV1::UploadOpened { upload },
            Outcome::Sampled { samples } => OutcomeV1::Sampled { samples },
            Outcome::SampledToScratch { samples } => OutcomeV1::SampledToScratch { samples },
            Outcome::Sorted(run) => OutcomeV1::Sorted(old_run(*run)?),
            Outcome::Merged(part) => OutcomeV1::Merged(part),
            // What an old leader can make of it: the attempt has failed.
            Outcome::Failed { error }
            | Outcome::RunDamaged { error, .. }
            | Outcome::InputUnreadable { error, .. } => {
                OutcomeV1::Failed { error: old_error(error) }
            }
        };
        Ok(Self { epoch, worker, incarnation, job, attempt, outcome })
    }
}

/// An error as an old leader knows it: a bound was hit.
fn old_error(error: Error) -> Error {
    let kind = if error.kind.is_of_memory() { ErrorKind::Exhausted } else { error.kind };
    Error { kind, ..error }
}

fn old_run(run: SortedRun) -> Result<SortedRunV1> {
    let SortedRun {
        url,
        replica,
        bytes,
        index_digest,
        input,
        kept,
        dropped,
        skipped,
        partition_bytes,
        intervals,
        spills,
        ..
    } = run;
    if replica.is_some() || skipped != Sums::default() {
        return Err(Error::invalid(
            "a leader of wire version 1 knows neither replicas nor skipped records",
        ));
    }
    Ok(SortedRunV1 {
        url,
        bytes,
        index_digest,
        input,
        kept,
        dropped,
        partition_bytes,
        intervals,
        spills,
    })
}
