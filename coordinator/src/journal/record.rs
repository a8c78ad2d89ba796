//! What the journal holds, byte for byte.
//!
//! An entry is framed by version, like every message ([`muster_protocol::versions!`] says how a
//! version is added). One that was ever written never changes: a new need gets a new one, and
//! [`decode`] lifts what it reads to the newest, which is all that the rest of the program knows.
//! Entries of every version begin with the epoch ([`super::super::driver`]'s fence reads no more),
//! and golden bytes of every variant are kept in `golden/`.

use std::cell::Cell;

use serde::{Deserialize, Deserializer, Serialize};

use muster_protocol::api::PhaseTimes;
use muster_protocol::error::{Error, Result};
use muster_protocol::ids::{AttemptId, JobId, WorkerId};
use muster_protocol::wire::{self, MergedPart, Message, SortedRun};

#[cfg(any(test, feature = "next-version"))]
mod next;
pub mod v1;

pub use v1::{
    AttemptFailed, Entry, GenerationBegan, JobArchived, JobEnded, JobHistory, JobOutcome,
    JobSubmitted, PartCommitted, Record, Recovery, RunCommitted, Times, Totals,
};

// `next.rs` has two shapes of it.
#[cfg(not(any(test, feature = "next-version")))]
muster_protocol::versions! { Entry: 1 = Entry; }

/// The version that this build writes. It reads all up to it.
pub const JOURNAL_VERSION: u8 = 1 + muster_protocol::NEXT;

/// Largest record, as postcard. Whoever makes records of what others say refuses what is larger; so
/// an entry, and a piece of a snapshot that holds one record, is below the limit of messages.
pub const RECORD_BYTES_MAX: usize = wire::MESSAGE_BYTES_MAX - 64 * 1024;

/// Most malformed records that a job names one by one, and that one of its runs does.
pub const PLACES_KEPT: usize = 20;

impl From<PhaseTimes> for Times {
    fn from(times: PhaseTimes) -> Self {
        let PhaseTimes { plan_ms, sample_ms, sort_ms, merge_ms, commit_ms } = times;
        Self { plan_ms, sample_ms, sort_ms, merge_ms, commit_ms }
    }
}

impl From<Times> for PhaseTimes {
    fn from(times: Times) -> Self {
        let Times { plan_ms, sample_ms, sort_ms, merge_ms, commit_ms } = times;
        Self { plan_ms, sample_ms, sort_ms, merge_ms, commit_ms }
    }
}

impl RunCommitted {
    /// From a worker's report. Of the malformed records only so many are named as a job names in
    /// the end.
    pub fn new(job: JobId, attempt: AttemptId, worker: WorkerId, run: SortedRun) -> Self {
        let SortedRun {
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
            mut bad_records,
            ..
        } = run;
        bad_records.sort_by_key(|bad| (bad.object, bad.offset));
        bad_records.truncate(PLACES_KEPT);
        let split = attempt.task.index;
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
            bad_records,
        }
    }
}

impl PartCommitted {
    /// From a worker's report.
    pub fn new(job: JobId, attempt: AttemptId, worker: WorkerId, part: MergedPart) -> Self {
        let MergedPart { upload, tags, bytes, checksum, kept, dropped, first_key, last_key } = part;
        let partition = attempt.task.index;
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

impl Record {
    /// A word for logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::DeploymentCreated { .. } => "deployment-created",
            Self::EpochBegan { .. } => "epoch-began",
            Self::JobSubmitted(_) => "job-submitted",
            Self::BoundariesChosen { .. } => "boundaries-chosen",
            Self::RunCommitted(_) => "run-committed",
            Self::AttemptFailed(_) => "attempt-failed",
            Self::GenerationBegan(_) => "generation-began",
            Self::ObjectSkipped { .. } => "object-skipped",
            Self::JobHistory(_) => "job-history",
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
            Self::WorkersDone { .. } => "workers-done",
            Self::StillLeads => "still-leads",
        }
    }
}

thread_local! {
    /// Whether the records of a piece are being read.
    static IN_PIECE: Cell<bool> = const { Cell::new(false) };
}

/// Reads the records of a piece of a snapshot, none of which may be such a piece: reading one
/// within the other goes as deep as the bytes say, and the stack does not.
fn flat<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    if IN_PIECE.get() {
        return Err(serde::de::Error::custom("a snapshot within a snapshot"));
    }
    IN_PIECE.set(true);
    let records = Vec::deserialize(deserializer);
    IN_PIECE.set(false);
    records
}

/// The digest that a piece of a snapshot carries: XXH3-64 of its records as postcard.
pub fn digest<T: Serialize>(records: &[T]) -> u64 {
    // Records hold nothing that postcard cannot write; if it could not, the piece would not be
    // written either.
    postcard::to_stdvec(records).map_or(0, |bytes| wire::digest(&bytes))
}

/// How large a record is, as postcard.
///
/// # Errors
/// `Bug` where it cannot be serialised.
pub fn size(record: &Record) -> Result<usize> {
    let bytes = postcard::to_stdvec(record);
    bytes
        .map(|bytes| bytes.len())
        .map_err(|e| Error::bug(format!("a {} record cannot be sized: {e}", record.kind())))
}

/// An entry as it is stored.
///
/// # Errors
/// `Bug` where it is larger than a message may be: whoever makes records keeps them small.
pub fn encode(entry: &Entry) -> Result<Vec<u8>> {
    let bytes = entry.to_frame(JOURNAL_VERSION)?;
    if bytes.len() > wire::MESSAGE_BYTES_MAX {
        let (kind, limit) = (entry.record.kind(), wire::MESSAGE_BYTES_MAX);
        return Err(Error::bug(format!(
            "a {kind} record of {} bytes exceeds the limit of {limit}",
            bytes.len()
        )));
    }
    Ok(bytes)
}

/// Reads an entry of any known version.
///
/// # Errors
/// `Invalid` where it is malformed, or written by a newer build than this one.
pub fn decode(bytes: &[u8]) -> Result<Entry> {
    Entry::from_frame(bytes)
}

#[cfg(test)]
mod tests;
