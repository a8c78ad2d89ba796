//! Version 2 of the journal, frozen: what failed, what was lost and done again, and where runs lie
//! a second time became durable. Every record of version 1 has its counterpart here; [`super::v3`]
//! says what each of these became, and has what did not change from here.

use serde::{Deserialize, Serialize};

use muster_common::error::ErrorKind;
use muster_common::ids::{AttemptId, DeploymentId, Epoch, Generation, JobId, WorkerId};
use muster_common::wire::{BlobRef, DamageCause};
use muster_kernel::proof::{Interval, Sums};

use super::v1::{
    EntryV1, JobArchivedV1, JobEndedV1, JobSubmittedV1, PartCommittedV1, RecordV1, RunCommittedV1,
    TotalsV1,
};
use super::{JobOutcome, Times};

/// One entry of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryV2 {
    /// The term of the leader that wrote it.
    pub epoch: Epoch,
    /// Drawn for this entry alone: after a lost acknowledgement the writer knows its own entry by
    /// it.
    pub nonce: u64,
    /// What happened.
    pub record: RecordV2,
}

/// A durable fact. The order of the variants and of their fields is part of the format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RecordV2 {
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
    JobSubmitted(Box<JobSubmittedV2>),
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
    RunCommitted(Box<RunCommittedV2>),
    /// An attempt ended without a result.
    AttemptFailed(Box<AttemptFailedV2>),
    /// A committed run is lost: its task is done anew, under the next generation.
    GenerationBegan(Box<GenerationBeganV2>),
    /// An input object cannot be read and is left out as a whole.
    ObjectSkipped {
        /// Which job.
        job: JobId,
        /// Its number in the plan.
        object: u32,
        /// What is wrong with it.
        why: String,
    },
    /// What a snapshot keeps of a job's troubles.
    JobHistory(Box<JobHistoryV2>),
    /// The sort barrier is passed; stands again when runs were made anew.
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
    PartCommitted(Box<PartCommittedV2>),
    /// All parts are committed and the sums equal: from here on the job can only succeed.
    CommitDecided {
        /// Which job.
        job: JobId,
        /// Milliseconds since the leader began to merge.
        took_ms: u64,
    },
    /// Nothing follows for this job but clean-up.
    JobEnded(Box<JobEndedV2>),
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
    JobArchived(Box<JobArchivedV2>),
    /// A piece of a snapshot: the whole state as records. It counts once all pieces stand one after
    /// the other.
    Snapshot {
        /// Tells snapshots apart.
        id: u64,
        /// Which piece, from 0.
        part: u32,
        /// How many pieces.
        of: u32,
        /// XXH3-64 of the records as postcard: a damaged piece is told from a sound one.
        digest: u64,
        /// Records that, folded, give the state; none of them is a piece of a snapshot.
        #[serde(deserialize_with = "super::flat")]
        records: Vec<RecordV2>,
    },
}

/// See [`RecordV2::JobSubmitted`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSubmittedV2 {
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
    /// Where runs lie a second time: a URL of scratch in another store.
    pub replica: Option<String>,
    /// Size of the input.
    pub input_bytes: u64,
    /// Tries of one task before the job fails.
    pub attempts_max: u32,
    /// When it was submitted, milliseconds since the Unix epoch.
    pub submitted_unix_ms: u64,
    /// Milliseconds spent on listing and planning.
    pub took_ms: u64,
}

/// See [`RecordV2::RunCommitted`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunCommittedV2 {
    /// Which job.
    pub job: JobId,
    /// Which split.
    pub split: u32,
    /// The attempt that made it; its generation says how often the run was made before and lost.
    pub attempt: AttemptId,
    /// Who ran it; unknown in records of version 1.
    pub worker: Option<WorkerId>,
    /// Where the run stands.
    pub url: String,
    /// Where it stands a second time.
    pub replica: Option<String>,
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
    /// Sums of the malformed records that were left out.
    pub skipped: Sums,
    /// Where those records stand, to be quarantined with the commit of the job.
    pub quarantine: Option<BlobRef>,
    /// What was consumed of which object.
    pub intervals: Vec<Interval>,
}

/// See [`RecordV2::AttemptFailed`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptFailedV2 {
    /// Which job.
    pub job: JobId,
    /// Which attempt.
    pub attempt: AttemptId,
    /// Who ran it.
    pub worker: WorkerId,
    /// What could be done about it.
    pub kind: ErrorKind,
    /// What went wrong, cut to a line.
    pub error: String,
}

/// See [`RecordV2::GenerationBegan`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenerationBeganV2 {
    /// Which job.
    pub job: JobId,
    /// Which split.
    pub split: u32,
    /// The generation that begins.
    pub generation: Generation,
    /// The attempt whose run is lost.
    pub lost: AttemptId,
    /// Whose fault it was, as far as can be told.
    pub cause: DamageCause,
    /// What was seen.
    pub why: String,
}

/// See [`RecordV2::JobHistory`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobHistoryV2 {
    /// Which job.
    pub job: JobId,
    /// How many attempts ended without a result.
    pub retries: u32,
    /// How many committed tasks were given out anew.
    pub repeated: u32,
    /// The generations of splits that are not in their first.
    pub generations: Vec<(u32, Generation)>,
    /// The failures that still count.
    pub failures: Vec<AttemptFailedV2>,
    /// The objects that are left out, and why.
    pub skipped_objects: Vec<(u32, String)>,
}

/// See [`RecordV2::PartCommitted`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartCommittedV2 {
    /// Which job.
    pub job: JobId,
    /// Which partition.
    pub partition: u32,
    /// The attempt that made it.
    pub attempt: AttemptId,
    /// Who ran it; unknown in records of version 1.
    pub worker: Option<WorkerId>,
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

/// See [`RecordV2::JobEnded`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobEndedV2 {
    /// Which job.
    pub job: JobId,
    /// How.
    pub outcome: JobOutcome,
    /// Why, where it failed.
    pub error: Option<String>,
    /// Attempts that failed or were lost.
    pub retries: u32,
    /// Tasks that were done again after their commit.
    pub repeated: u32,
    /// Trouble that was met on the way, by kind.
    pub recoveries: Vec<RecoveryV2>,
    /// Milliseconds since the decision to commit; 0 where none was made.
    pub took_ms: u64,
    /// When, in milliseconds since the Unix epoch; 0 in records of version 1.
    pub unix_ms: u64,
}

/// How one kind of trouble went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveryV2 {
    /// A word: `worker-lost`, `store`, `run-damaged` …
    pub kind: String,
    /// How often it was tried to get over it.
    pub attempts: u32,
    /// How often that succeeded.
    pub recovered: u32,
    /// How often it was given up.
    pub given_up: u32,
    /// Milliseconds from trouble to recovery, in all.
    pub took_ms_sum: u64,
    /// The longest of them.
    pub took_ms_max: u64,
}

/// See [`RecordV2::JobArchived`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobArchivedV2 {
    /// How it began.
    pub submitted: JobSubmittedV2,
    /// Number of partitions.
    pub partitions: u32,
    /// Whether its commit had been decided.
    pub commit_decided: bool,
    /// How it ended.
    pub ended: JobEndedV2,
    /// How long its phases took.
    pub times: Times,
    /// Totals of its runs.
    pub run_totals: TotalsV2,
    /// Totals of its parts.
    pub part_totals: TotalsV2,
}

/// Sums over committed tasks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TotalsV2 {
    /// Of what was read; 0 for parts.
    pub input: Sums,
    /// Of what was written.
    pub kept: Sums,
    /// Of what `-u` dropped.
    pub dropped: Sums,
    /// Of the malformed records that were left out.
    pub skipped: Sums,
    /// Bytes written.
    pub bytes: u64,
}

impl From<EntryV1> for EntryV2 {
    fn from(entry: EntryV1) -> Self {
        let EntryV1 { epoch, nonce, record } = entry;
        Self { epoch, nonce, record: record.into() }
    }
}

impl From<RecordV1> for RecordV2 {
    fn from(record: RecordV1) -> Self {
        match record {
            RecordV1::DeploymentCreated { deployment } => Self::DeploymentCreated { deployment },
            RecordV1::EpochBegan { epoch, nonce } => Self::EpochBegan { epoch, nonce },
            RecordV1::JobSubmitted(submitted) => Self::JobSubmitted(Box::new((*submitted).into())),
            RecordV1::BoundariesChosen { job, splitters, partitions, took_ms } => {
                Self::BoundariesChosen { job, splitters, partitions, took_ms }
            }
            RecordV1::RunCommitted(run) => Self::RunCommitted(Box::new((*run).into())),
            RecordV1::RunsPinned { job, runs, took_ms } => Self::RunsPinned { job, runs, took_ms },
            RecordV1::UploadOpened { job, partition, attempt, upload } => {
                Self::UploadOpened { job, partition, attempt, upload }
            }
            RecordV1::UploadRevoked { job, partition, attempt } => {
                Self::UploadRevoked { job, partition, attempt }
            }
            RecordV1::PartCommitted(part) => Self::PartCommitted(Box::new((*part).into())),
            RecordV1::CommitDecided { job, took_ms } => Self::CommitDecided { job, took_ms },
            RecordV1::JobEnded(ended) => Self::JobEnded(Box::new((*ended).into())),
            RecordV1::JobCleaned { job } => Self::JobCleaned { job },
            RecordV1::JobForgotten { job } => Self::JobForgotten { job },
            RecordV1::JobArchived(archived) => Self::JobArchived(Box::new((*archived).into())),
            RecordV1::Snapshot { id, part, of, records } => {
                let records: Vec<Self> = records.into_iter().map(Self::from).collect();
                Self::Snapshot { id, part, of, digest: super::digest(&records), records }
            }
        }
    }
}

impl From<JobSubmittedV1> for JobSubmittedV2 {
    fn from(submitted: JobSubmittedV1) -> Self {
        let JobSubmittedV1 {
            job,
            order,
            spec_json,
            output,
            output_existed,
            extension,
            scratch,
            plan,
            splits,
            partitions,
            input_bytes,
            attempts_max,
            submitted_unix_ms,
            took_ms,
        } = submitted;
        Self {
            job,
            order,
            spec_json,
            output,
            output_existed,
            extension,
            scratch,
            plan,
            splits,
            partitions,
            replica: None,
            input_bytes,
            attempts_max,
            submitted_unix_ms,
            took_ms,
        }
    }
}

impl From<RunCommittedV1> for RunCommittedV2 {
    fn from(run: RunCommittedV1) -> Self {
        let RunCommittedV1 {
            job,
            split,
            attempt,
            url,
            bytes,
            index_digest,
            input,
            kept,
            dropped,
            intervals,
        } = run;
        Self {
            job,
            split,
            attempt,
            worker: None,
            url,
            replica: None,
            bytes,
            index_digest,
            input,
            kept,
            dropped,
            skipped: Sums::default(),
            quarantine: None,
            intervals,
        }
    }
}

impl From<PartCommittedV1> for PartCommittedV2 {
    fn from(part: PartCommittedV1) -> Self {
        let PartCommittedV1 {
            job,
            partition,
            attempt,
            upload,
            tags,
            bytes,
            checksum,
            kept,
            dropped,
            first_key,
            last_key,
        } = part;
        let worker = None;
        Self {
            job,
            partition,
            attempt,
            worker,
            upload,
            tags,
            bytes,
            checksum,
            kept,
            dropped,
            first_key,
            last_key,
        }
    }
}

impl From<JobEndedV1> for JobEndedV2 {
    fn from(ended: JobEndedV1) -> Self {
        let JobEndedV1 { job, outcome, error, retries, took_ms } = ended;
        Self {
            job,
            outcome,
            error,
            retries,
            repeated: 0,
            recoveries: Vec::new(),
            took_ms,
            unix_ms: 0,
        }
    }
}

impl From<JobArchivedV1> for JobArchivedV2 {
    fn from(archived: JobArchivedV1) -> Self {
        let JobArchivedV1 {
            submitted,
            partitions,
            commit_decided,
            ended,
            times,
            run_totals,
            part_totals,
        } = archived;
        Self {
            submitted: submitted.into(),
            partitions,
            commit_decided,
            ended: ended.into(),
            times,
            run_totals: run_totals.into(),
            part_totals: part_totals.into(),
        }
    }
}

impl From<TotalsV1> for TotalsV2 {
    fn from(totals: TotalsV1) -> Self {
        let TotalsV1 { input, kept, dropped, bytes } = totals;
        Self { input, kept, dropped, skipped: Sums::default(), bytes }
    }
}
