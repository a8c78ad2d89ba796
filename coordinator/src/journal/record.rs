//! What the journal holds, byte for byte.
//!
//! An entry is framed like every message: a version byte, then postcard. Postcard does not describe itself, so what is defined here never changes: a new
//! need gets a new version (`EntryV2`, `RecordV2`), and [`decode`] lifts what it reads to the newest one. Golden bytes of every variant are kept below.

use serde::{Deserialize, Serialize};

use muster_common::api::PhaseTimes;
use muster_common::error::{Error, Result};
use muster_common::ids::{AttemptId, DeploymentId, Epoch, JobId};
use muster_common::wire::{self, BlobRef, MergedPart, SortedRun};
use muster_kernel::proof::{Interval, Sums};

/// The version that this build writes.
pub const JOURNAL_VERSION: u8 = 1;
/// The oldest version that this build reads.
pub const JOURNAL_VERSION_OLDEST: u8 = 1;

/// The newest version of a record; the rest of the program knows no other.
pub type Record = RecordV1;
/// The newest version of an entry.
pub type Entry = EntryV1;

/// One entry of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryV1 {
    /// The term of the leader that wrote it.
    pub epoch: Epoch,
    /// Drawn for this entry alone: after a lost acknowledgement the writer knows its own entry by it.
    pub nonce: u64,
    /// What happened.
    pub record: RecordV1,
}

/// A durable fact. The order of the variants and of their fields is part of the format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RecordV1 {
    /// The journal begins.
    DeploymentCreated {
        /// Minted for this journal.
        deployment: DeploymentId,
    },
    /// A coordinator has become the leader; entries of earlier epochs cannot follow.
    EpochBegan {
        /// Its term.
        epoch: Epoch,
        /// Seeds the numbers that tell this term's attempts and objects apart.
        nonce: u64,
    },
    /// A job is accepted and its plan stands.
    JobSubmitted(Box<JobSubmittedV1>),
    /// The partitions of a job are fixed.
    BoundariesChosen {
        /// Which job.
        job: JobId,
        /// Where the splitters are; none where there is one partition.
        splitters: Option<BlobRef>,
        /// Number of partitions.
        partitions: u32,
        /// Milliseconds since the leader began to sample.
        took_ms: u64,
    },
    /// A sort task is committed.
    RunCommitted(Box<RunCommittedV1>),
    /// The sort barrier is passed.
    RunsPinned {
        /// Which job.
        job: JobId,
        /// Where the list of pinned runs is.
        runs: BlobRef,
        /// Milliseconds since the leader began to sort.
        took_ms: u64,
    },
    /// A merge attempt has an open upload.
    UploadOpened {
        /// Which job.
        job: JobId,
        /// Which partition.
        partition: u32,
        /// Whose upload.
        attempt: AttemptId,
        /// The store's id of it.
        upload: String,
    },
    /// A merge attempt may no longer commit; its upload is to be aborted.
    UploadRevoked {
        /// Which job.
        job: JobId,
        /// Which partition.
        partition: u32,
        /// Whose upload.
        attempt: AttemptId,
    },
    /// A merge task is committed.
    PartCommitted(Box<PartCommittedV1>),
    /// All parts are committed and the sums equal: from here on the job can only succeed.
    CommitDecided {
        /// Which job.
        job: JobId,
        /// Milliseconds since the leader began to merge.
        took_ms: u64,
    },
    /// Nothing follows for this job but clean-up.
    JobEnded(Box<JobEndedV1>),
    /// Scratch and unfinished uploads of an ended job are gone.
    JobCleaned {
        /// Which job.
        job: JobId,
    },
    /// An ended job is no longer known.
    JobForgotten {
        /// Which job.
        job: JobId,
    },
    /// An ended and cleaned job in a snapshot: what stays known of it.
    JobArchived(Box<JobArchivedV1>),
    /// A piece of a snapshot: the whole state as records. It counts once all pieces stand one after the other.
    Snapshot {
        /// Tells snapshots apart.
        id: u64,
        /// Which piece, from 0.
        part: u32,
        /// How many pieces.
        of: u32,
        /// Records that, folded, give the state.
        records: Vec<RecordV1>,
    },
}

/// See [`RecordV1::JobSubmitted`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSubmittedV1 {
    /// Which job.
    pub job: JobId,
    /// Its place among all jobs, from 0.
    pub order: u64,
    /// The request as JSON.
    pub spec_json: String,
    /// URL of OUTPUT.
    pub output: String,
    /// Whether OUTPUT stood as a folder before.
    pub output_existed: bool,
    /// Extension of the parts.
    pub extension: String,
    /// URL of the job's scratch.
    pub scratch: String,
    /// Where the plan is.
    pub plan: BlobRef,
    /// Number of splits.
    pub splits: u32,
    /// Number of partitions that are aimed at.
    pub partitions: u32,
    /// Size of the input.
    pub input_bytes: u64,
    /// Tries of one task before the job fails.
    pub attempts_max: u32,
    /// When it was submitted, milliseconds since the Unix epoch.
    pub submitted_unix_ms: u64,
    /// Milliseconds spent on listing and planning.
    pub took_ms: u64,
}

/// See [`RecordV1::RunCommitted`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunCommittedV1 {
    /// Which job.
    pub job: JobId,
    /// Which split.
    pub split: u32,
    /// The attempt that made it.
    pub attempt: AttemptId,
    /// Where the run stands.
    pub url: String,
    /// Its length.
    pub bytes: u64,
    /// Digest of its index.
    pub index_digest: u64,
    /// Sums of what was read.
    pub input: Sums,
    /// Sums of what it holds.
    pub kept: Sums,
    /// Sums of what `-u` dropped.
    pub dropped: Sums,
    /// What was consumed of which object.
    pub intervals: Vec<Interval>,
}

impl RunCommittedV1 {
    /// From a worker's report.
    pub fn new(job: JobId, attempt: AttemptId, run: SortedRun) -> Self {
        let SortedRun { url, bytes, index_digest, input, kept, dropped, intervals, .. } = run;
        let split = attempt.task.index;
        Self { job, split, attempt, url, bytes, index_digest, input, kept, dropped, intervals }
    }
}

/// See [`RecordV1::PartCommitted`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartCommittedV1 {
    /// Which job.
    pub job: JobId,
    /// Which partition.
    pub partition: u32,
    /// The attempt that made it.
    pub attempt: AttemptId,
    /// The store's id of its open upload.
    pub upload: String,
    /// The store's tags of the upload's parts, in order.
    pub tags: Vec<String>,
    /// Its length.
    pub bytes: u64,
    /// XXH3-64 of its bytes.
    pub checksum: u64,
    /// Sums of what it holds.
    pub kept: Sums,
    /// Sums of what `-u` dropped.
    pub dropped: Sums,
    /// First comparison key, truncated.
    pub first_key: Vec<u8>,
    /// Last comparison key, truncated.
    pub last_key: Vec<u8>,
}

impl PartCommittedV1 {
    /// From a worker's report.
    pub fn new(job: JobId, attempt: AttemptId, part: MergedPart) -> Self {
        let MergedPart { upload, tags, bytes, checksum, kept, dropped, first_key, last_key } = part;
        let partition = attempt.task.index;
        Self { job, partition, attempt, upload, tags, bytes, checksum, kept, dropped, first_key, last_key }
    }
}

/// See [`RecordV1::JobEnded`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobEndedV1 {
    /// Which job.
    pub job: JobId,
    /// How.
    pub outcome: JobOutcomeV1,
    /// Why, where it failed.
    pub error: Option<String>,
    /// Attempts beyond the first of their task, as the leader counted them.
    pub retries: u32,
    /// Milliseconds since the decision to commit; 0 where none was made.
    pub took_ms: u64,
}

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobOutcomeV1 {
    /// OUTPUT is whole.
    Succeeded,
    /// It could not be done.
    Failed,
    /// Its user gave it up.
    Cancelled,
}

/// See [`RecordV1::JobArchived`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobArchivedV1 {
    /// How it began.
    pub submitted: JobSubmittedV1,
    /// Number of partitions.
    pub partitions: u32,
    /// Whether its commit had been decided.
    pub commit_decided: bool,
    /// How it ended.
    pub ended: JobEndedV1,
    /// How long its phases took.
    pub times: TimesV1,
    /// Totals of its runs.
    pub run_totals: TotalsV1,
    /// Totals of its parts.
    pub part_totals: TotalsV1,
}

/// Milliseconds spent in each phase.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names are those of PhaseTimes")]
pub struct TimesV1 {
    pub plan_ms: u64,
    pub sample_ms: u64,
    pub sort_ms: u64,
    pub merge_ms: u64,
    pub commit_ms: u64,
}

impl From<PhaseTimes> for TimesV1 {
    fn from(times: PhaseTimes) -> Self {
        let PhaseTimes { plan_ms, sample_ms, sort_ms, merge_ms, commit_ms } = times;
        Self { plan_ms, sample_ms, sort_ms, merge_ms, commit_ms }
    }
}

impl From<TimesV1> for PhaseTimes {
    fn from(times: TimesV1) -> Self {
        let TimesV1 { plan_ms, sample_ms, sort_ms, merge_ms, commit_ms } = times;
        Self { plan_ms, sample_ms, sort_ms, merge_ms, commit_ms }
    }
}

/// Sums over committed tasks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TotalsV1 {
    /// Of what was read; 0 for parts.
    pub input: Sums,
    /// Of what was written.
    pub kept: Sums,
    /// Of what `-u` dropped.
    pub dropped: Sums,
    /// Bytes written.
    pub bytes: u64,
}

impl RecordV1 {
    /// A word for logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::DeploymentCreated { .. } => "deployment-created",
            Self::EpochBegan { .. } => "epoch-began",
            Self::JobSubmitted(_) => "job-submitted",
            Self::BoundariesChosen { .. } => "boundaries-chosen",
            Self::RunCommitted(_) => "run-committed",
            Self::RunsPinned { .. } => "runs-pinned",
            Self::UploadOpened { .. } => "upload-opened",
            Self::UploadRevoked { .. } => "upload-revoked",
            Self::PartCommitted(_) => "part-committed",
            Self::CommitDecided { .. } => "commit-decided",
            Self::JobEnded(_) => "job-ended",
            Self::JobCleaned { .. } => "job-cleaned",
            Self::JobForgotten { .. } => "job-forgotten",
            Self::JobArchived(_) => "job-archived",
            Self::Snapshot { .. } => "snapshot",
        }
    }
}

/// An entry as it is stored.
///
/// # Errors
/// `Bug` where it is larger than a message may be: whoever makes records keeps them small.
pub fn encode(entry: &Entry) -> Result<Vec<u8>> {
    let bytes = wire::frame(JOURNAL_VERSION, entry)?;
    if bytes.len() > wire::MESSAGE_BYTES_MAX {
        let (kind, limit) = (entry.record.kind(), wire::MESSAGE_BYTES_MAX);
        return Err(Error::bug(format!("a {kind} record of {} bytes exceeds the limit of {limit}", bytes.len())));
    }
    Ok(bytes)
}

/// Reads an entry of any known version.
///
/// # Errors
/// `Invalid` where it is malformed, or written by a newer build than this one.
pub fn decode(bytes: &[u8]) -> Result<Entry> {
    // A second version is read by its own arm here: unframe its struct, then lift it.
    wire::unframe(JOURNAL_VERSION_OLDEST..=JOURNAL_VERSION, bytes)
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
