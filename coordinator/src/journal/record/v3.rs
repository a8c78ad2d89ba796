//! Version 3 of the journal: where malformed records stand, where the manifest is, and what a job's
//! troubles come to, in pieces of bounded size, are durable now.
//!
//! What is not here is as it was in version 2.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use muster_common::ErrorKind;
use muster_common::ids::{AttemptId, DeploymentId, Epoch, Generation, JobId, TaskId, WorkerId};
use muster_common::wire::{BadRecord, BlobRef};
use muster_kernel::proof::{Interval, Sums};

use super::v1::EntryV1;
use super::v2::{
    AttemptFailedV2, EntryV2, GenerationBeganV2, JobArchivedV2, JobEndedV2, JobHistoryV2,
    JobSubmittedV2, PartCommittedV2, RecordV2, RunCommittedV2,
};

/// One entry of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryV3 {
    /// The term of the leader that wrote it.
    pub epoch: Epoch,
    /// Drawn for this entry alone: after a lost acknowledgement the writer knows its own entry by
    /// it.
    pub nonce: u64,
    /// What happened.
    pub record: RecordV3,
}

/// A durable fact. The order of the variants and of their fields is part of the format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RecordV3 {
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
    RunCommitted(Box<RunCommittedV3>),
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
    /// What a snapshot keeps of a job's troubles, or a part of it.
    JobHistory(Box<JobHistoryV3>),
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
        /// Where the bytes of `_SUCCESS` are, which whoever publishes writes as they are; none in
        /// records of versions 1 and 2.
        manifest: Option<BlobRef>,
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
        records: Vec<RecordV3>,
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

/// See [`RecordV3::RunCommitted`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunCommittedV3 {
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
    /// The first of the malformed records that were left out, in order; not all of them.
    pub bad_records: Vec<BadRecord>,
}

/// See [`RecordV3::JobHistory`]. One job may have several, one after the other, each with other
/// tasks and objects: so each is small, however much there is to say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobHistoryV3 {
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
    pub failures: Vec<AttemptFailedV2>,
    /// The objects that are left out, and why.
    pub skipped_objects: Vec<(u32, String)>,
}

impl From<EntryV1> for EntryV3 {
    fn from(entry: EntryV1) -> Self {
        EntryV2::from(entry).into()
    }
}

impl From<EntryV2> for EntryV3 {
    fn from(entry: EntryV2) -> Self {
        let EntryV2 { epoch, nonce, record } = entry;
        Self { epoch, nonce, record: record.into() }
    }
}

impl From<RecordV2> for RecordV3 {
    fn from(record: RecordV2) -> Self {
        match record {
            RecordV2::DeploymentCreated { deployment } => Self::DeploymentCreated { deployment },
            RecordV2::EpochBegan { epoch, nonce } => Self::EpochBegan { epoch, nonce },
            RecordV2::JobSubmitted(submitted) => Self::JobSubmitted(submitted),
            RecordV2::BoundariesChosen { job, splitters, partitions, took_ms } => {
                Self::BoundariesChosen { job, splitters, partitions, took_ms }
            }
            RecordV2::RunCommitted(run) => Self::RunCommitted(Box::new((*run).into())),
            RecordV2::AttemptFailed(failed) => Self::AttemptFailed(Box::new(lifted(*failed))),
            RecordV2::GenerationBegan(began) => Self::GenerationBegan(began),
            RecordV2::ObjectSkipped { job, object, why } => {
                Self::ObjectSkipped { job, object, why }
            }
            RecordV2::JobHistory(history) => Self::JobHistory(Box::new((*history).into())),
            RecordV2::RunsPinned { job, runs, took_ms } => Self::RunsPinned { job, runs, took_ms },
            RecordV2::UploadOpened { job, partition, attempt, upload } => {
                Self::UploadOpened { job, partition, attempt, upload }
            }
            RecordV2::UploadRevoked { job, partition, attempt } => {
                Self::UploadRevoked { job, partition, attempt }
            }
            RecordV2::PartCommitted(part) => Self::PartCommitted(part),
            RecordV2::CommitDecided { job, took_ms } => {
                Self::CommitDecided { job, took_ms, manifest: None }
            }
            RecordV2::JobEnded(ended) => Self::JobEnded(ended),
            RecordV2::JobCleaned { job } => Self::JobCleaned { job },
            RecordV2::JobForgotten { job } => Self::JobForgotten { job },
            RecordV2::JobArchived(archived) => Self::JobArchived(archived),
            RecordV2::Snapshot { id, part, of, digest, records } => {
                let sound = super::digest(&records) == digest;
                let records: Vec<Self> = records.into_iter().map(Self::from).collect();
                let lifted = super::digest(&records);
                // A piece that was damaged stays one.
                Self::Snapshot {
                    id,
                    part,
                    of,
                    digest: if sound { lifted } else { !lifted },
                    records,
                }
            }
        }
    }
}

/// That a worker died was words in version 2, and is a kind.
fn lifted(failed: AttemptFailedV2) -> AttemptFailedV2 {
    let died = failed.kind == ErrorKind::Retry && failed.error.contains("its worker is dead");
    AttemptFailedV2 { kind: if died { ErrorKind::WorkerDied } else { failed.kind }, ..failed }
}

impl From<RunCommittedV2> for RunCommittedV3 {
    fn from(run: RunCommittedV2) -> Self {
        let RunCommittedV2 {
            job,
            split,
            attempt,
            worker,
            url,
            replica,
            bytes,
            index_digest,
            input,
            kept,
            dropped,
            skipped,
            quarantine,
            intervals,
        } = run;
        Self {
            job,
            split,
            attempt,
            worker,
            url,
            replica,
            bytes,
            index_digest,
            input,
            kept,
            dropped,
            skipped,
            quarantine,
            intervals,
            bad_records: Vec::new(),
        }
    }
}

impl From<JobHistoryV2> for JobHistoryV3 {
    fn from(history: JobHistoryV2) -> Self {
        let JobHistoryV2 { job, retries, repeated, generations, failures, skipped_objects } =
            history;
        let failures: Vec<AttemptFailedV2> = failures.into_iter().map(lifted).collect();
        let mut tries: BTreeMap<TaskId, u32> = BTreeMap::new();
        for failed in &failures {
            let tries = tries.entry(failed.attempt.task).or_default();
            *tries = tries.saturating_add(1);
        }
        Self {
            job,
            retries,
            repeated,
            generations,
            tries: tries.into_iter().collect(),
            failures,
            skipped_objects,
        }
    }
}
