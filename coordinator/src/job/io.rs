//! What the machine takes ([`Input`]) and what it asks for ([`Effect`]).
//!
//! The order that everything relies on: an effect which others can see (a reply, a command, a
//! published object) and which stands for a decision comes out only after [`Input::Appended`] has
//! come in for the record of that decision. The machine sees to it; the driver carries out what it
//! is given, in order.

use std::sync::Arc;

use muster_kernel::splitters::Splitter;
use muster_platform::store::BlobUrl;
use muster_protocol::api::{DeadLetter, Event, JobStatus, WorkerStatus};
use muster_protocol::ids::{AttemptId, JobId, WorkerId};
use muster_protocol::plan::{JobSpec, LeftOut, PinnedObject, Plan};
use muster_protocol::wire::{
    BlobRef, Broadcast, CancelAttempt, Drain, Heartbeat, JobRecoveries, PhaseQuery, PhaseReply,
    Register, RegisterReply, Report, ReportReply, RunAttempt, RunReply, StoreLimits,
};
use muster_protocol::{Error, Result};

use super::ledger::durable::Upload;
use crate::journal::record::Record;

/// Somebody who waits for an answer; the driver knows who.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReplyTo(pub u64);

/// A fact, or a request, that reaches the machine.
#[derive(Debug, Clone)]
pub enum Input {
    /// The epoch has begun and the journal is folded.
    Began {
        /// Now, milliseconds since the Unix epoch.
        unix_ms: u64,
    },
    /// Time has passed.
    Tick,
    /// The leader's own connection to NATS.
    Connection {
        /// Whether it stands.
        up: bool,
    },
    /// What the journal's writer waits for; `None` when it goes on.
    JournalStalled {
        /// In words.
        why: Option<String>,
    },
    /// The stores that do not answer this process at present.
    StoresAway {
        /// Each as `s3://bucket`, with the reason.
        away: Vec<(String, String)>,
    },
    /// The servers of a NATS cluster that do not answer at present.
    NatsServers {
        /// Each as `host:port`, with the reason.
        away: Vec<(String, String)>,
    },
    /// How full the journal's stream is, in percent.
    JournalRoom {
        /// Of what it may hold.
        used_percent: u32,
    },
    /// A record that was asked for stands in the journal.
    Appended {
        /// Of [`Effect::Append`].
        token: u64,
        /// Where it stands.
        sequence: u64,
    },
    /// A client's request to sort.
    Submit {
        /// Who waits.
        to: ReplyTo,
        /// The request.
        spec: Box<JobSpec>,
        /// Now, milliseconds since the Unix epoch.
        unix_ms: u64,
    },
    /// A client's question for one job.
    AskStatus {
        /// Who waits.
        to: ReplyTo,
        /// Which job.
        job: JobId,
    },
    /// A client's question for all jobs.
    AskJobs {
        /// Who waits.
        to: ReplyTo,
    },
    /// A client's question for all workers.
    AskWorkers {
        /// Who waits.
        to: ReplyTo,
    },
    /// A client's request to cancel a job.
    Cancel {
        /// Who waits.
        to: ReplyTo,
        /// Which job.
        job: JobId,
    },
    /// A client's request to drain a worker.
    Drain {
        /// Who waits.
        to: ReplyTo,
        /// Which worker.
        worker: WorkerId,
    },
    /// A worker's request to join.
    Register {
        /// Who waits.
        to: ReplyTo,
        /// The request.
        register: Box<Register>,
    },
    /// A worker's word on an attempt.
    Report {
        /// Who waits.
        to: ReplyTo,
        /// The word.
        report: Box<Report>,
    },
    /// A worker's question for a phase.
    AskPhase {
        /// Who waits.
        to: ReplyTo,
        /// The question.
        query: PhaseQuery,
    },
    /// A worker's sign of life.
    Heartbeat(Box<Heartbeat>),
    /// What a worker retried for a job by itself.
    Recoveries(Box<JobRecoveries>),
    /// What came back for [`Effect::SendRun`].
    RunAnswered {
        /// The worker that was asked.
        worker: WorkerId,
        /// The attempt's job.
        job: JobId,
        /// The attempt.
        attempt: AttemptId,
        /// Its answer; an error where none came.
        reply: Result<RunReply>,
    },
    /// What came back for [`Effect::SendCancel`].
    CancelAnswered {
        /// The attempt's job.
        job: JobId,
        /// The attempt.
        attempt: AttemptId,
        /// Whether an answer came.
        answered: bool,
    },
    /// What came of [`Effect::ListInput`].
    Listed {
        /// The job.
        job: JobId,
        /// Of the effect.
        ticket: u64,
        /// What was found.
        result: Result<Listing>,
    },
    /// What came of [`Effect::WriteObject`], or of [`Effect::PrepareCommit`].
    ObjectWritten {
        /// Of the effect.
        ticket: u64,
        /// A pointer to it.
        result: Result<BlobRef>,
    },
    /// What came of [`Effect::LoadPlan`].
    PlanLoaded {
        /// The job.
        job: JobId,
        /// The plan.
        result: Result<Arc<Plan>>,
    },
    /// What came of [`Effect::LoadSamples`].
    SamplesLoaded {
        /// The job.
        job: JobId,
        /// Whose samples.
        attempt: AttemptId,
        /// The samples.
        result: Result<Vec<Splitter>>,
    },
    /// What came of [`Effect::ChooseSplitters`].
    SplittersChosen {
        /// The job.
        job: JobId,
        /// What was chosen.
        result: Result<MeasuredBoundaries>,
    },
    /// What came of [`Effect::AbortUpload`].
    UploadAborted {
        /// The job.
        job: JobId,
        /// Whose upload.
        attempt: AttemptId,
        /// Whether it is gone.
        result: Result<()>,
    },
    /// What came of [`Effect::Publish`].
    Published {
        /// The job.
        job: JobId,
        /// Whether OUTPUT is whole, and what else stays in it.
        result: Result<Unremoved>,
    },
    /// What came of [`Effect::CleanUp`].
    Cleaned {
        /// The job.
        job: JobId,
        /// Whether all is gone that can be.
        result: Result<Unremoved>,
    },
    /// What came of [`Effect::SweepLate`].
    SweptLate {
        /// The job.
        job: JobId,
        /// How much was found, and is gone.
        result: Result<u64>,
    },
}

/// Boundaries as they were chosen and written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeasuredBoundaries {
    /// Where the splitters are; none for one partition.
    pub splitters: Option<BlobRef>,
    /// How many partitions they make.
    pub partitions: u32,
    /// Samples among which they were chosen.
    pub samples: u64,
    /// What the samples say of the fullest partition, in percent of the mean; none where they are
    /// too few to tell.
    pub fullest_percent: Option<u32>,
}

/// What stands in the stores before a job begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// The input in order.
    pub objects: Vec<PinnedObject>,
    /// Entries of the input that cannot be read, where the request leaves such out.
    pub left_out: Vec<LeftOut>,
    /// What whoever asked should know.
    pub warnings: Vec<String>,
    /// What stands in OUTPUT and would be replaced.
    pub replaced: Vec<PinnedObject>,
    /// Ids of the uploads into OUTPUT that are open already, as [`Plan::uploads_before`] has them.
    pub uploads_before: Vec<String>,
    /// Whether OUTPUT stands as a folder already.
    pub output_existed: bool,
}

/// A worker that offers folders of its own as input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Who.
    pub worker: WorkerId,
    /// Its host, for messages to people.
    pub host: String,
    /// The newest wire version that it speaks.
    pub peer: u8,
    /// The folders, as absolute paths.
    pub folders: Vec<String>,
}

/// Where a job reads and writes, as [`Effect::ListInput`] needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// OUTPUT.
    pub output: BlobUrl,
    /// The folder of all scratch in that bucket.
    pub scratch_root: BlobUrl,
    /// The job's own scratch.
    pub scratch: BlobUrl,
    /// The job's second scratch, where every run lies again.
    pub replica: Option<BlobUrl>,
}

/// What a decided commit makes visible.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publication {
    /// OUTPUT.
    pub output: BlobUrl,
    /// The job, as its manifest names it.
    pub job: JobId,
    /// The parts to complete.
    pub parts: Vec<PublishedPart>,
    /// Malformed records to be kept beside them: from scratch, to a place below OUTPUT.
    pub quarantine: Vec<(BlobRef, BlobUrl)>,
    /// The bytes of `_SUCCESS`.
    pub manifest: ManifestBytes,
    /// What stood in OUTPUT before; goes unless a part has taken its name.
    pub replaced: Vec<PinnedObject>,
    /// Whether the job may take the place of what stands in OUTPUT.
    pub overwrite: bool,
    /// The plan, whose objects must not lie where the job writes: a link may have come since it was
    /// made.
    pub plan: Arc<Plan>,
    /// Whether the store is asked to make it outlive a power loss.
    pub sync: bool,
}

/// What `_SUCCESS` holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ManifestBytes {
    /// These bytes: before the commit is decided, and of a journal whose decisions do not say where
    /// the manifest is.
    Made(Vec<u8>),
    /// What this points to, as it was journalled with the decision: every leader writes the same.
    Stored(BlobRef),
}

/// A part whose upload is whole and open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedPart {
    /// Where it will stand.
    pub url: BlobUrl,
    /// The store's id of the upload.
    pub upload: String,
    /// The store's tags of the upload's parts.
    pub tags: Vec<String>,
    /// Its length.
    pub bytes: u64,
    /// XXH3-64 of its bytes.
    pub checksum: u64,
}

/// What could not be removed, and will not be by trying again: the store refuses it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unremoved {
    /// How many things.
    pub count: u64,
    /// The first of them.
    pub first: Vec<String>,
    /// What the store said of the first.
    pub why: Option<String>,
}

impl Unremoved {
    /// Most things that are named.
    const NAMED_MAX: usize = 3;

    /// One thing more.
    pub fn note(&mut self, what: &dyn std::fmt::Display, error: &Error) {
        self.count += 1;
        if self.first.len() < Self::NAMED_MAX {
            self.first.push(what.to_string());
        }
        self.why.get_or_insert_with(|| error.message.clone());
    }

    /// Both together.
    pub fn join(&mut self, other: Unremoved) {
        self.count += other.count;
        let room = Self::NAMED_MAX.saturating_sub(self.first.len());
        self.first.extend(other.first.into_iter().take(room));
        self.why = self.why.take().or(other.why);
    }

    /// What to say of it; none where all is gone.
    pub fn warning(&self) -> Option<String> {
        let why = self.why.as_ref()?;
        let more = self.count.saturating_sub(self.first.len() as u64);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        Some(format!(
            "not removed, because the store refuses it: {}{more} ({why}); remove them by hand, or \
                give muster the right to delete and run `muster doctor --mend`",
            self.first.join(", ")
        ))
    }
}

/// What goes when a job has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftovers {
    /// The job's own scratch, all of which goes.
    pub scratch: BlobUrl,
    /// Its second scratch, all of which goes too.
    pub replica: Option<BlobUrl>,
    /// Where the plan is: the last thing to go.
    pub plan: BlobRef,
    /// OUTPUT, in which an attempt that nobody reported may have left an upload.
    pub output: BlobUrl,
    /// Number of partitions.
    pub partitions: u32,
    /// Uploads to abort: URL and the store's id.
    pub uploads: Vec<(BlobUrl, String)>,
    /// OUTPUT, where the job made that folder and it is to go if it is empty.
    pub empty_output: Option<BlobUrl>,
}

/// An answer to somebody who waits.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "each variant holds the message of its name")]
pub enum Reply {
    Register(RegisterReply),
    Report(ReportReply),
    Phase(PhaseReply),
    Job(Box<JobStatus>),
    Jobs(Vec<JobStatus>),
    Worker(Box<WorkerStatus>),
    Workers(Vec<WorkerStatus>),
    /// A client's request that is not granted.
    Refused {
        code: RefusalCode,
        error: Error,
    },
}

/// Why a client's request is not granted, as the control API's codes say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalCode {
    /// 400: it cannot work.
    BadRequest,
    /// 404: not known.
    Unknown,
    /// 409: it contradicts what stands.
    Conflict,
    /// 503: later.
    Later,
}

impl RefusalCode {
    /// The number on the wire.
    pub fn number(self) -> usize {
        match self {
            Self::BadRequest => 400,
            Self::Unknown => 404,
            Self::Conflict => 409,
            Self::Later => 503,
        }
    }

    /// The same as text.
    pub fn text(self) -> &'static str {
        match self {
            Self::BadRequest => "400",
            Self::Unknown => "404",
            Self::Conflict => "409",
            Self::Later => "503",
        }
    }
}

/// What the machine asks of the driver.
#[derive(Debug, Clone)]
pub enum Effect {
    /// Append a record; [`Input::Appended`] follows, in the order of the tokens.
    Append {
        /// Comes back.
        token: u64,
        /// The record.
        record: Box<Record>,
    },
    /// Remove the journal's entries before a sequence number.
    PurgeJournal {
        /// The first to stay.
        before: u64,
    },
    /// Answer somebody.
    Reply {
        /// Whom.
        to: ReplyTo,
        /// What.
        reply: Reply,
    },
    /// Order a worker to run an attempt.
    SendRun {
        /// Whom.
        worker: WorkerId,
        /// The newest wire version that it speaks.
        peer: u8,
        /// The order.
        run: Box<RunAttempt>,
    },
    /// Order a worker to abandon an attempt.
    SendCancel {
        /// Whom.
        worker: WorkerId,
        /// The order.
        cancel: CancelAttempt,
    },
    /// Order a worker to take no more work.
    SendDrain {
        /// Whom.
        worker: WorkerId,
        /// The order.
        drain: Drain,
    },
    /// Tell a job's workers and watchers.
    Broadcast {
        /// Which job.
        job: JobId,
        /// What.
        broadcast: Broadcast,
    },
    /// Tell all workers how much they may ask of the stores.
    LimitStores(StoreLimits),
    /// Publish a job's progress.
    Progress(Box<JobStatus>),
    /// Publish a line of history. Its time is the driver's to fill in.
    Event(Event),
    /// Publish the history of a job that fails.
    DeadLetter(Box<DeadLetter>),
    /// List and pin a job's input, and look at OUTPUT.
    ListInput {
        /// The request.
        spec: Arc<JobSpec>,
        /// Where it reads and writes.
        places: Places,
        /// The workers to ask, by id, where the request means files of theirs.
        offers: Vec<Offer>,
        /// Comes back.
        ticket: u64,
    },
    /// Write a small object to scratch.
    WriteObject {
        /// Where.
        url: BlobUrl,
        /// What.
        bytes: Vec<u8>,
        /// Comes back.
        ticket: u64,
    },
    /// Read a job's plan back.
    LoadPlan {
        /// Which job.
        job: JobId,
        /// Where it is.
        plan: BlobRef,
    },
    /// Read samples that were too large for a message.
    LoadSamples {
        /// Which job.
        job: JobId,
        /// Whose.
        attempt: AttemptId,
        /// Where they are.
        samples: BlobRef,
    },
    /// Choose splitters ([`super::flow::plan::splitters`]) and write them.
    ChooseSplitters {
        /// Which job.
        job: JobId,
        /// Out of these.
        samples: Vec<Splitter>,
        /// How many partitions are aimed at.
        partitions: u32,
        /// Whether equal keys must stay together.
        unique: bool,
        /// Where to write them.
        url: BlobUrl,
    },
    /// Abort a revoked upload.
    AbortUpload {
        /// Which job.
        job: JobId,
        /// Where the part would have stood.
        url: BlobUrl,
        /// The upload.
        upload: Upload,
    },
    /// See whether a commit can be made visible, and write its manifest to scratch.
    PrepareCommit {
        /// Which job.
        job: JobId,
        /// What is going to be published.
        publication: Box<Publication>,
        /// Where the manifest is to be kept until then.
        url: BlobUrl,
        /// Comes back.
        ticket: u64,
    },
    /// Make a decided commit visible.
    Publish {
        /// Which job.
        job: JobId,
        /// What.
        publication: Box<Publication>,
    },
    /// Remove what an ended job leaves.
    CleanUp {
        /// Which job.
        job: JobId,
        /// What.
        leftovers: Box<Leftovers>,
    },
    /// Remove what has come to the scratch of a job after its clean-up.
    SweepLate {
        /// Which job.
        job: JobId,
        /// Its scratch, and its second one.
        scratch: Vec<BlobUrl>,
    },
}
