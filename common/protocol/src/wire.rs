//! The messages between coordinator and workers.
//!
//! Each is framed by version (`versions.rs`): this one is spoken and the one before. [`encode_for`]
//! writes what the peer speaks, and [`decode`] reads either. Whatever arrives is outside input:
//! [`decode`] bounds it and never panics.
//!
//! [`BlobRef`], [`BadRecord`], [`DamageCause`] and [`Recovered`] with its counts lie within several
//! shapes, and the first three in the journal, too: they never change, but get a successor.

use serde::{Deserialize, Serialize};

use muster_kernel::proof::{Interval, Sums};
use muster_kernel::splitters::Splitter;

use crate::error::{Error, Result};
use crate::ids::{AttemptId, DeploymentId, Epoch, Incarnation, JobId, WorkerId};

#[cfg(any(test, feature = "next-version"))]
mod next;
mod recoveries;
mod versions;

pub use recoveries::Recoveries;
pub use versions::{Message, Shape, frame, to_oldest_frame, unframe, unknown};
pub(crate) use versions::{as_json, same_since_1};

use crate::NEXT;

/// The wire version that this build speaks.
pub const WIRE_VERSION: u8 = 1 + NEXT;
/// The oldest wire version that this build understands: the one before, once there is one.
pub const WIRE_VERSION_OLDEST: u8 = 1;
/// Largest control message, version byte included; below the 1 MiB that NATS allows by default,
/// headers included.
pub const MESSAGE_BYTES_MAX: usize = 960 * 1024;
/// Samples beyond this many bytes travel through scratch instead of the message.
pub const INLINE_SAMPLES_BYTES_MAX: usize = 256 * 1024;

/// First bytes of a file that a listing shows, at most: the whole header of a tar archive, which is
/// told by its sum.
pub const HEAD_BYTES_MAX: usize = 512;
/// Longest reason why an entry of a folder cannot be input, in bytes.
pub const WHY_BYTES_MAX: usize = 1024;
/// Longest place where a listing goes on, in bytes: a path whose names are escaped.
pub const NEXT_BYTES_MAX: usize = 64 << 10;

same_since_1!(
    LeaderBeat,
    RegisterReply,
    RunReply,
    CancelAttempt,
    Drain,
    CommandReply,
    ReportReply,
    Broadcast,
    PhaseQuery,
    PhaseReply,
    StoreLimits,
    ListInputs,
    ListReply,
    JobRecoveries,
);
// `next.rs` has two shapes of these.
#[cfg(not(any(test, feature = "next-version")))]
same_since_1!(Register, Heartbeat, RunAttempt, Report);

/// Frames a message for a peer of this build's own version.
///
/// # Errors
/// `Bug` where the message is larger than [`MESSAGE_BYTES_MAX`]: senders keep large things in
/// scratch.
pub fn encode<T: Message>(message: &T) -> Result<Vec<u8>> {
    encode_for(WIRE_VERSION, message)
}

/// Frames a message for a peer that speaks wire versions up to `peer`.
///
/// # Errors
/// As [`encode`], and `Invalid` where that version cannot say it.
pub fn encode_for<T: Message>(peer: u8, message: &T) -> Result<Vec<u8>> {
    bounded(message.to_frame(peer.min(WIRE_VERSION))?)
}

/// Frames a message for all who listen, or for somebody of unknown version: in the oldest that can
/// say it.
///
/// # Errors
/// As [`encode`].
pub fn encode_for_all<T: Message>(message: &T) -> Result<Vec<u8>> {
    bounded(to_oldest_frame(message, WIRE_VERSION_OLDEST, WIRE_VERSION)?)
}

fn bounded(frame: Vec<u8>) -> Result<Vec<u8>> {
    if frame.len() > MESSAGE_BYTES_MAX {
        return Err(Error::bug(format!(
            "a message of {} bytes exceeds the limit of {MESSAGE_BYTES_MAX}",
            frame.len()
        )));
    }
    Ok(frame)
}

/// Reads a framed message.
///
/// # Errors
/// `Invalid` where it is too large, of a version that this build does not speak, malformed, or
/// followed by more bytes.
pub fn decode<T: Message>(bytes: &[u8]) -> Result<T> {
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(Error::invalid(format!(
            "a message of {} bytes exceeds the limit of {MESSAGE_BYTES_MAX}",
            bytes.len()
        )));
    }
    T::from_frame(bytes)
}

/// The digest of stored control data: XXH3-64.
pub fn digest(bytes: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(bytes)
}

/// [`digest`] of bytes that come piece by piece.
#[derive(Clone, Default)]
pub struct Digester(xxhash_rust::xxh3::Xxh3);

impl Digester {
    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all of them.
    pub fn finish(&self) -> u64 {
        self.0.digest()
    }
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
    /// The newest wire version that it speaks.
    pub wire: u8,
    /// Settings on which both sides must agree, by name.
    pub settings: Vec<(String, String)>,
    /// Folders whose files only this worker can read and offers as input (`--input-dir`), as
    /// absolute paths.
    pub inputs: Vec<String>,
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
    /// CPU used since the last heartbeat, in thousandths of what it may use.
    pub cpu_permille: u32,
    /// Its memory budget in bytes.
    pub memory_bytes: u64,
    /// Free bytes of the disk that spills go to.
    pub disk_free_bytes: u64,
    /// Size of that disk in bytes.
    pub disk_total_bytes: u64,
    /// Input bytes done per second since the last heartbeat.
    pub bytes_per_s: u64,
    /// Errors of the last five minutes.
    pub errors_5min: u32,
    /// Answers "slow down" of stores since the process began.
    pub throttled: u64,
    /// What it waits for, where it does not get on.
    pub waiting_for: Option<String>,
    /// Troubles that it got over without anybody else.
    pub mended: Mended,
}

/// Troubles of reading that a worker got over by itself, since its process began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mended {
    /// Reads that took long and were asked for a second time.
    pub hedged_reads: u64,
    /// Pieces of runs that were damaged on their way and read well again.
    pub read_again: u64,
    /// Runs that were read from their replica.
    pub from_replica: u64,
    /// Copies of runs that were made anew from the other copy.
    pub repaired: u64,
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
    /// How often the memory for sorting is to be halved, because former attempts ran out of it.
    pub memory_halvings: u8,
}

/// The inputs of an attempt, beyond the plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Work {
    /// Read seeded ranges of the split, send keys.
    Sample {
        /// Numbers of the objects that are left out.
        skip: Vec<u32>,
    },
    /// Sort the split into a run.
    Sort {
        /// The splitters; none where the job has one partition.
        splitters: Option<BlobRef>,
        /// Numbers of the objects that are left out.
        skip: Vec<u32>,
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
    Sorted(Box<SortedRun>),
    /// The part's upload is whole and left open.
    Merged(MergedPart),
    /// It cannot be done here.
    Failed {
        /// Why, with object and place.
        error: Error,
    },
    /// A merge has met with a committed run that is missing or damaged, in every store that should
    /// have it.
    RunDamaged {
        /// The run's split.
        split: u32,
        /// The attempt that made it.
        run: AttemptId,
        /// Whose fault it is, as far as can be told.
        cause: DamageCause,
        /// What was seen.
        error: Error,
    },
    /// An input object cannot be read.
    InputUnreadable {
        /// Its number in the plan.
        object: u32,
        /// What is wrong with it.
        error: Error,
    },
}

/// Whose fault a damaged run is, as far as can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DamageCause {
    /// The store lost it, or gives other bytes every time it is read.
    Store,
    /// A second read gave the right bytes: they were damaged on the way.
    Network,
    /// Stored as written, and wrong: its checksums agree with each other, but not with what was
    /// committed.
    Writer,
}

/// A malformed record: where it stands, and why it is none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadRecord {
    /// Number of its object in the plan.
    pub object: u32,
    /// Offset of its first byte.
    pub offset: u64,
    /// Its length in bytes.
    pub bytes: u64,
    /// What is wrong with it.
    pub reason: String,
}

/// A run, as its maker reports it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SortedRun {
    /// Where it stands: a blob URL.
    pub url: String,
    /// Where it stands a second time.
    pub replica: Option<String>,
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
    /// Sums of the malformed records that were left out.
    pub skipped: Sums,
    /// Where those records stand as JSON lines, if they are to be quarantined.
    pub quarantine: Option<BlobRef>,
    /// The first of them.
    pub bad_records: Vec<BadRecord>,
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

/// How many requests to the stores each worker may make, while they throttle. A hint, repeated
/// while it holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreLimits {
    /// The leader's term.
    pub epoch: Epoch,
    /// Requests a second of each worker; none where there is no limit.
    pub requests_per_s: Option<u32>,
}

/// What one life of a worker has retried for a job so far, all in all: the next one makes up for
/// one that was lost. For people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRecoveries {
    /// Who.
    pub worker: WorkerId,
    /// Which life of it.
    pub incarnation: Incarnation,
    /// The epoch it is registered under.
    pub epoch: Epoch,
    /// The job.
    pub job: JobId,
    /// By kind.
    pub kinds: Vec<Recovered>,
}

/// What came of trouble of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovered {
    /// The name of a kind of trouble that is tried again; one that the leader does not know is
    /// passed over.
    pub trouble: String,
    /// Its counts.
    pub counts: Recoveries,
}

/// The leader's question which of its own files a worker offers as input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListInputs {
    /// The leader's term.
    pub epoch: Epoch,
    /// A path or glob below the worker's input folders (a pattern); empty for all
    /// files.
    pub pattern: String,
    /// Where the answer before ended: only paths behind it, in byte order, are asked for.
    pub after: Option<String>,
}

/// The answer to [`ListInputs`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ListReply {
    /// The next files.
    Listed {
        /// What is there, in byte order of the paths.
        files: Vec<LocalFile>,
        /// What of the folders between there and here cannot be input.
        omitted: Vec<LocalOmitted>,
        /// Where to go on, as [`ListInputs::after`]; none when this is all.
        next: Option<String>,
    },
    /// Refused, and why.
    Refused {
        /// Why.
        error: Error,
    },
}

/// A file that only one worker can read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalFile {
    /// Its absolute path.
    pub path: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// What its store tells versions apart by.
    pub version: String,
    /// Its first bytes, at most [`HEAD_BYTES_MAX`], or why it cannot be read.
    pub head: Result<Vec<u8>>,
}

/// An entry of a folder that only one worker can read, which may be meant and is no file that can
/// be input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalOmitted {
    /// Its absolute path, or the begin of one that is too long to be carried.
    pub path: String,
    /// Why it cannot be input, in at most [`WHY_BYTES_MAX`] without control characters.
    pub why: String,
    /// Whether the path is but a begin.
    pub cut: bool,
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
