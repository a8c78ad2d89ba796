//! The messages between coordinator and workers, and how they are framed.
//!
//! A frame is one version byte, then postcard. Postcard does not describe itself, so a message type never changes in place: a new version gets a new type and a
//! new version byte, and golden bytes (`golden.rs`) keep the old ones readable. Whatever arrives is outside input: [`decode`] bounds it and never panics.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use muster_kernel::proof::{Interval, Sums};
use muster_kernel::splitters::Splitter;

use crate::error::{Error, Result};
use crate::ids::{AttemptId, DeploymentId, Epoch, Incarnation, JobId, WorkerId};

/// The wire version that this build speaks.
pub const WIRE_VERSION: u8 = 1;
/// The oldest wire version that this build understands.
pub const WIRE_VERSION_OLDEST: u8 = 1;
/// Largest control message, version byte included; below the 1 MiB that NATS allows by default, headers included.
pub const MESSAGE_BYTES_MAX: usize = 960 * 1024;
/// Samples beyond this many bytes travel through scratch instead of the message.
pub const INLINE_SAMPLES_BYTES_MAX: usize = 256 * 1024;

/// Frames a message.
///
/// # Errors
/// `Bug` where the message is larger than [`MESSAGE_BYTES_MAX`]: senders keep large things in scratch.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>> {
    let bytes = frame(WIRE_VERSION, message)?;
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(Error::bug(format!("a message of {} bytes exceeds the limit of {MESSAGE_BYTES_MAX}", bytes.len())));
    }
    Ok(bytes)
}

/// Reads a framed message.
///
/// # Errors
/// `Invalid` where it is too large, of a version that this build does not speak, malformed, or followed by more bytes.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(Error::invalid(format!(
            "a message of {} bytes exceeds the limit of {MESSAGE_BYTES_MAX}",
            bytes.len()
        )));
    }
    unframe(WIRE_VERSION_OLDEST..=WIRE_VERSION, bytes)
}

/// Frames anything versioned that is stored: a version byte, then postcard.
///
/// # Errors
/// `Bug` where the value cannot be serialised.
pub fn frame<T: Serialize>(version: u8, value: &T) -> Result<Vec<u8>> {
    postcard::to_extend(value, vec![version]).map_err(|e| Error::bug(format!("cannot encode a message: {e}")))
}

/// Reads what [`frame`] wrote, if its version is one of `versions`.
///
/// # Errors
/// `Invalid`, as [`decode`].
pub fn unframe<T: DeserializeOwned>(versions: std::ops::RangeInclusive<u8>, bytes: &[u8]) -> Result<T> {
    let Some((version, body)) = bytes.split_first() else {
        return Err(Error::invalid("an empty message"));
    };
    if !versions.contains(version) {
        return Err(Error::invalid(format!(
            "version {version}, but this build understands {} to {}",
            versions.start(),
            versions.end()
        )));
    }
    match postcard::take_from_bytes(body) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(Error::invalid(format!("{} bytes follow a message of {}", rest.len(), bytes.len()))),
        Err(e) => Err(Error::invalid(format!("a malformed message of {} bytes: {e}", bytes.len()))),
    }
}

/// The digest of stored control data: XXH3-64.
pub fn digest(bytes: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(bytes)
}

/// A pointer to bytes in scratch, with what they must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobRef {
    /// Where: a blob URL.
    pub url: String,
    /// Length in bytes.
    pub bytes: u64,
    /// XXH3-64 of the bytes.
    pub digest: u64,
}

/// The leader's sign of life, every beat interval on the leader subject.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaderBeat {
    /// Which deployment.
    pub deployment: DeploymentId,
    /// Its term.
    pub epoch: Epoch,
    /// Counts up from 0 within the term.
    pub sequence: u64,
}

/// A worker's request to join, or to join again after a new epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Register {
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

/// An attempt that a worker still has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldAttempt {
    /// The job it belongs to.
    pub job: JobId,
    /// Which attempt.
    pub attempt: AttemptId,
}

/// The answer to [`Register`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RegisterReply {
    /// Welcome.
    Accepted {
        /// The deployment.
        deployment: DeploymentId,
        /// The leader's term: everything the worker sends from now on carries it.
        epoch: Epoch,
        /// How often to send a heartbeat, in milliseconds.
        heartbeat_ms: u64,
        /// Of the held attempts, those that go on under this epoch; the others are to be abandoned.
        regranted: Vec<AttemptId>,
    },
    /// Not welcome, and why.
    Refused {
        /// Both values, where two differ.
        error: Error,
    },
}

/// What a worker says of itself, every heartbeat interval.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
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
    pub health: Health,
}

/// What a worker is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum WorkerState {
    /// Takes work.
    Active,
    /// Finishes what it has, takes no more.
    Draining,
    /// Ends now; what it had goes to others at once.
    Leaving,
}

/// How far an attempt is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptProgress {
    /// Its job.
    pub job: JobId,
    /// Which attempt.
    pub attempt: AttemptId,
    /// Input bytes done.
    pub bytes_done: u64,
    /// Input bytes in all.
    pub bytes_total: u64,
}

/// Figures of a worker process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Resident memory in bytes.
    pub rss_bytes: u64,
    /// CPU time used since the process began, in milliseconds.
    pub cpu_ms: u64,
    /// Store errors that were retried since the process began.
    pub store_retries: u64,
}

/// The leader's order to run an attempt. Repeating it is harmless.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunAttempt {
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
    pub work: Work,
}

/// The inputs of an attempt, beyond the plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Work {
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

/// The answer to [`RunAttempt`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RunReply {
    /// It runs, or has run already.
    Accepted,
    /// No free slot, or draining.
    Busy,
    /// Old epoch, other incarnation: the leader's picture is wrong.
    Refused {
        /// Why.
        error: Error,
    },
}

/// The leader's order to abandon an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelAttempt {
    /// The leader's term.
    pub epoch: Epoch,
    /// Which job.
    pub job: JobId,
    /// Which attempt.
    pub attempt: AttemptId,
}

/// The leader's order to take no more work and to leave when done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// The leader's term.
    pub epoch: Epoch,
}

/// The plain answer to [`CancelAttempt`] and [`Drain`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CommandReply {
    /// Done, or nothing to do.
    Done,
    /// Refused, and why.
    Refused {
        /// Why.
        error: Error,
    },
}

/// A worker's word on an attempt, repeated until it is acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
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
    pub outcome: Outcome,
}

/// What became of an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
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
    Sorted(SortedRun),
    /// The part's upload is whole and left open.
    Merged(MergedPart),
    /// It cannot be done here.
    Failed {
        /// Why, with object and place.
        error: Error,
    },
}

/// A run, as its maker reports it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SortedRun {
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

/// A part, as its maker reports it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MergedPart {
    /// The store's id of the open upload.
    pub upload: String,
    /// The store's tags of the upload's parts, in order.
    pub tags: Vec<String>,
    /// Its length.
    pub bytes: u64,
    /// XXH3-64 of its bytes.
    pub checksum: u64,
    /// Sums of its records.
    pub kept: Sums,
    /// Sums of the records that `-u` dropped here.
    pub dropped: Sums,
    /// First comparison key, truncated.
    pub first_key: Vec<u8>,
    /// Last comparison key, truncated.
    pub last_key: Vec<u8>,
}

/// The answer to [`Report`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReportReply {
    /// It is durable; the worker may forget it.
    Recorded {
        /// The leader's term.
        epoch: Epoch,
    },
    /// The attempt does not count (any more): abandon it and what it wrote.
    Revoked {
        /// The leader's term.
        epoch: Epoch,
    },
    /// The worker is not registered under this leader's epoch: register, then report again.
    Reregister {
        /// The leader's term.
        epoch: Epoch,
    },
    /// Not now: the journal does not answer. Report again.
    Later,
}

/// Announcements to a job's workers and watchers: hints only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Broadcast {
    /// Splitters stand.
    Boundaries {
        /// The leader's term.
        epoch: Epoch,
        /// Where they are.
        splitters: Option<BlobRef>,
    },
    /// A phase begins.
    PhaseBegins {
        /// The leader's term.
        epoch: Epoch,
        /// Which.
        phase: crate::ids::Phase,
    },
    /// The job ended: abandon its attempts.
    Ended {
        /// The leader's term.
        epoch: Epoch,
    },
}

/// A worker's question where a job stands, when it has missed a hint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseQuery {
    /// Which job.
    pub job: JobId,
}

/// The answer to [`PhaseQuery`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PhaseReply {
    /// Its tasks run in this phase.
    Running {
        /// The leader's term.
        epoch: Epoch,
        /// Which.
        phase: crate::ids::Phase,
    },
    /// No task of it runs (unknown, planning, committing or ended).
    Idle {
        /// The leader's term.
        epoch: Epoch,
    },
}
