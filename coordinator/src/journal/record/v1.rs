//! Version 1 of the journal, frozen: journals that were written with it are read for ever.
//! [`super::v2`] says what each record became.

use serde::{Deserialize, Serialize};

use muster_common::ids::{AttemptId, DeploymentId, Epoch, JobId};
use muster_common::wire::BlobRef;
use muster_kernel::proof::{Interval, Sums};

use super::{JobOutcome, Times};

/// One entry of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryV1 {
    /// The term of the leader that wrote it.
    pub epoch: Epoch,
    /// Drawn for this entry alone: after a lost acknowledgement the writer knows its own entry by
    /// it.
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
    /// A piece of a snapshot: the whole state as records. It counts once all pieces stand one after
    /// the other.
    Snapshot {
        /// Tells snapshots apart.
        id: u64,
        /// Which piece, from 0.
        part: u32,
        /// How many pieces.
        of: u32,
        /// Records that, folded, give the state.
        #[serde(deserialize_with = "super::flat")]
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

/// See [`RecordV1::JobEnded`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobEndedV1 {
    /// Which job.
    pub job: JobId,
    /// How.
    pub outcome: JobOutcome,
    /// Why, where it failed.
    pub error: Option<String>,
    /// Attempts beyond the first of their task, as the leader counted them.
    pub retries: u32,
    /// Milliseconds since the decision to commit; 0 where none was made.
    pub took_ms: u64,
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
    pub times: Times,
    /// TotalsV1 of its runs.
    pub run_totals: TotalsV1,
    /// TotalsV1 of its parts.
    pub part_totals: TotalsV1,
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
