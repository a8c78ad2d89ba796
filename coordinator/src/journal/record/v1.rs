//! Version 1 of the journal. It never changes: see [`super`].

use serde::{Deserialize, Serialize};

use muster_kernel::proof::{Interval, Sums};
use muster_protocol::ErrorKind;
use muster_protocol::ids::{AttemptId, DeploymentId, Epoch, Generation, JobId, TaskId, WorkerId};
use muster_protocol::wire::{BadRecord, BlobRef, DamageCause};

/// One entry of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The term of the leader that wrote it.
    pub epoch: Epoch,
    /// Drawn for this entry alone: after a lost acknowledgement the writer knows its own entry by
    /// it.
    pub nonce: u64,
    /// What happened.
    pub record: Record,
}

/// A durable fact. The order of the variants and of their fields is part of the format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
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
    JobSubmitted(Box<JobSubmitted>),
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
    RunCommitted(Box<RunCommitted>),
    /// An attempt ended without a result.
    AttemptFailed(Box<AttemptFailed>),
    /// A committed run is lost: its task is done anew, under the next generation.
    GenerationBegan(Box<GenerationBegan>),
    /// An input object cannot be read and is left out as a whole.
    ObjectSkipped {
        /// Which job.
        job: JobId,
        /// Its number in the plan.
        object: u32,
        /// What is wrong with it.
        why: String,
    },
    /// What a snapshot keeps of a job's troubles, or a part of it.
    JobHistory(Box<JobHistory>),
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
    PartCommitted(Box<PartCommitted>),
    /// All parts are committed and the sums equal: from here on the job can only succeed.
    CommitDecided {
        /// Which job.
        job: JobId,
        /// Milliseconds since the leader began to merge.
        took_ms: u64,
        /// Where the bytes of `_SUCCESS` are, which whoever publishes writes as they are.
        manifest: BlobRef,
    },
    /// Nothing follows for this job but clean-up.
    JobEnded(Box<JobEnded>),
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
    JobArchived(Box<JobArchived>),
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
        records: Vec<Record>,
    },
    /// What a snapshot keeps of the work of each worker, or a part of it. It stands after all that
    /// it counts.
    WorkersDone {
        /// Whether it is the first of them: what was counted before does not count.
        anew: bool,
        /// How many sort and merge tasks of each are, or were, committed.
        done: Vec<(WorkerId, u64)>,
    },
    /// A leader has asked whether it still leads: that this stands says so, and nothing else.
    StillLeads,
}

/// See [`Record::JobSubmitted`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSubmitted {
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

/// See [`Record::RunCommitted`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunCommitted {
    /// Which job.
    pub job: JobId,
    /// Which split.
    pub split: u32,
    /// The attempt that made it; its generation says how often the run was made before and lost.
    pub attempt: AttemptId,
    /// Who ran it.
    pub worker: WorkerId,
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
    /// The first of the malformed records that were left out, in order; not all of them.
    pub bad_records: Vec<BadRecord>,
}

/// See [`Record::AttemptFailed`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptFailed {
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

/// See [`Record::GenerationBegan`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenerationBegan {
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

/// See [`Record::JobHistory`]. One job may have several, one after the other, each with other
/// tasks and objects: so each is small, however much there is to say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobHistory {
    /// Which job.
    pub job: JobId,
    /// How many attempts ended without a result.
    pub retries: u32,
    /// How many committed tasks were given out anew.
    pub repeated: u32,
    /// The generations of splits that are not in their first.
    pub generations: Vec<(u32, Generation)>,
    /// How many attempts of a task ended without a result, of those that still count.
    pub tries: Vec<(TaskId, u32)>,
    /// The last of those, in the order in which they ended.
    pub failures: Vec<AttemptFailed>,
    /// The objects that are left out, and why.
    pub skipped_objects: Vec<(u32, String)>,
}

/// See [`Record::PartCommitted`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartCommitted {
    /// Which job.
    pub job: JobId,
    /// Which partition.
    pub partition: u32,
    /// The attempt that made it.
    pub attempt: AttemptId,
    /// Who ran it.
    pub worker: WorkerId,
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

/// See [`Record::JobEnded`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobEnded {
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
    pub recoveries: Vec<Recovery>,
    /// Milliseconds since the decision to commit; 0 where none was made.
    pub took_ms: u64,
    /// When, in milliseconds since the Unix epoch.
    pub unix_ms: u64,
}

/// How one kind of trouble went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovery {
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

/// See [`Record::JobArchived`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobArchived {
    /// How it began.
    pub submitted: JobSubmitted,
    /// Number of partitions.
    pub partitions: u32,
    /// Whether its commit had been decided.
    pub commit_decided: bool,
    /// How it ended.
    pub ended: JobEnded,
    /// How long its phases took.
    pub times: Times,
    /// Totals of its runs.
    pub run_totals: Totals,
    /// Totals of its parts.
    pub part_totals: Totals,
}

/// Sums over committed tasks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
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

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobOutcome {
    /// OUTPUT is whole.
    Succeeded,
    /// It could not be done.
    Failed,
    /// Its user gave it up.
    Cancelled,
}

/// Milliseconds spent in each phase.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names are those of PhaseTimes")]
pub struct Times {
    pub plan_ms: u64,
    pub sample_ms: u64,
    pub sort_ms: u64,
    pub merge_ms: u64,
    pub commit_ms: u64,
}
