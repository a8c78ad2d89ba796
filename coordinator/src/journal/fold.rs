//! Replay: entries into [`Durable`]; and snapshots: [`Durable`] into records that fold back to it.
//!
//! A snapshot is no second format. It is the shortest list of ordinary records that gives the same
//! state, cut into pieces of bounded size. A leader that dies while it writes one leaves pieces
//! that never become whole: they are passed over.

use muster_protocol::ids::{Epoch, JobId, WorkerId};
use muster_protocol::{Error, Result};

use super::record::{self, Entry, JobArchived, RECORD_BYTES_MAX, Record, digest};
use crate::job::ledger::durable::{Durable, DurableJob};

/// Size of one piece of a snapshot, in bytes as encoded; a single record that is larger, up to
/// [`RECORD_BYTES_MAX`], stands alone.
pub const SNAPSHOT_PIECE_BYTES_MAX: usize = 512 * 1024;

/// Workers whose work one record counts.
const WORKERS_A_RECORD: usize = 1000;

/// Folds entries in the order in which they stand.
#[derive(Debug, Default)]
pub struct Fold {
    durable: Durable,
    pieces: Vec<Record>,
    awaited: Option<(u64, u32)>,
    refused: Vec<String>,
}

impl From<Durable> for Fold {
    /// Goes on from a state.
    fn from(durable: Durable) -> Self {
        Self { durable, ..Self::default() }
    }
}

impl Fold {
    /// Folds one entry. Contradictions are passed over and kept for [`Fold::finish`].
    pub fn push(&mut self, entry: Entry) {
        let newest = self.durable.epoch;
        if entry.epoch < newest {
            // The fence makes this impossible; a stream that someone else wrote to is told apart by
            // it.
            self.refused.push(format!(
                "an entry of epoch {} stands after epoch {newest} began",
                entry.epoch
            ));
            return;
        }
        match entry.record {
            Record::Snapshot { id, part, of, records, .. } => {
                self.push_piece(id, part, of, records);
            }
            // It says nothing, between the pieces of a snapshot, too.
            Record::StillLeads => {}
            record => {
                self.awaited = None;
                self.pieces.clear();
                self.apply(&record);
            }
        }
    }

    fn apply(&mut self, record: &Record) {
        if let Err(why) = self.durable.apply(record) {
            self.refused.push(why);
        }
    }

    fn push_piece(&mut self, id: u64, part: u32, of: u32, records: Vec<Record>) {
        if part == 0 {
            self.pieces.clear();
        } else if self.awaited != Some((id, part)) {
            self.awaited = None;
            self.pieces.clear();
            return;
        }
        // Outside input: a number at its end has none after it, and no snapshot ends there.
        let Some(next) = part.checked_add(1).filter(|next| *next <= of) else {
            self.awaited = None;
            self.pieces.clear();
            return;
        };
        self.pieces.extend(records);
        self.awaited = Some((id, next));
        if next == of {
            self.awaited = None;
            self.durable = Durable::default();
            for record in std::mem::take(&mut self.pieces) {
                self.apply(&record);
            }
        }
    }

    /// The state, and what was passed over.
    pub fn finish(self) -> (Durable, Vec<String>) {
        (self.durable, self.refused)
    }
}

/// The shortest list of records that folds to this state.
pub fn compact(durable: &Durable) -> Vec<Record> {
    let mut records = Vec::new();
    if let Some(deployment) = &durable.deployment {
        records.push(Record::DeploymentCreated { deployment: deployment.clone() });
    }
    if durable.epoch > Epoch(0) {
        records.push(Record::EpochBegan { epoch: durable.epoch, nonce: durable.nonce });
    }
    for (id, job) in &durable.jobs {
        compact_job(id, job, &mut records);
    }
    let done: Vec<(WorkerId, u64)> =
        durable.done.iter().map(|(worker, count)| (worker.clone(), *count)).collect();
    let parts = (0..).zip(done.chunks(WORKERS_A_RECORD));
    records.extend(
        parts.map(|(part, done)| Record::WorkersDone { anew: part == 0, done: done.to_vec() }),
    );
    records
}

fn compact_job(id: &JobId, job: &DurableJob, records: &mut Vec<Record>) {
    if let (true, Some(ended)) = (job.cleaned, &job.ended) {
        records.push(Record::JobArchived(Box::new(JobArchived {
            submitted: job.submitted.clone(),
            partitions: job.partitions(),
            commit_decided: job.commit_decided,
            ended: ended.clone(),
            times: job.times.into(),
            run_totals: job.run_totals,
            part_totals: job.part_totals,
        })));
        return;
    }
    records.push(Record::JobSubmitted(Box::new(job.submitted.clone())));
    records
        .extend(job.histories().into_iter().map(|history| Record::JobHistory(Box::new(history))));
    if let Some(chosen) = &job.boundaries {
        records.push(Record::BoundariesChosen {
            job: id.clone(),
            splitters: chosen.splitters.clone(),
            partitions: chosen.partitions,
            took_ms: job.times.sample_ms,
        });
    }
    let runs = job.run_records().map(|run| Record::RunCommitted(Box::new(run)));
    let pinned = job.runs_pinned.as_ref().map(|list| Record::RunsPinned {
        job: id.clone(),
        runs: list.clone(),
        took_ms: job.times.sort_ms,
    });
    if job.runs_stale {
        records.extend(pinned.into_iter().chain(runs));
    } else {
        records.extend(runs.chain(pinned));
    }
    for revoked in &job.revoked {
        let (partition, attempt, upload) =
            (revoked.partition, revoked.attempt, revoked.upload.clone());
        records.push(Record::UploadOpened { job: id.clone(), partition, attempt, upload });
        records.push(Record::UploadRevoked { job: id.clone(), partition, attempt });
    }
    for open in job.uploads.values() {
        let (partition, attempt, upload) = (open.partition, open.attempt, open.upload.clone());
        records.push(Record::UploadOpened { job: id.clone(), partition, attempt, upload });
    }
    for part in job.parts.values() {
        let (partition, attempt, upload) = (part.partition, part.attempt, part.upload.clone());
        records.push(Record::UploadOpened { job: id.clone(), partition, attempt, upload });
        records.push(Record::PartCommitted(Box::new(part.clone())));
    }
    if let Some(manifest) = job.manifest.clone() {
        let took_ms = job.times.merge_ms;
        records.push(Record::CommitDecided { job: id.clone(), took_ms, manifest });
    }
    if let Some(ended) = &job.ended {
        records.push(Record::JobEnded(Box::new(ended.clone())));
    }
}

/// A snapshot as the records to append, in order.
///
/// # Errors
/// `Bug` where a record cannot be serialised, or is larger than records may be: no entry could hold
/// it.
pub fn snapshot(durable: &Durable, id: u64) -> Result<Vec<Record>> {
    let mut pieces: Vec<Vec<Record>> = vec![Vec::new()];
    let mut bytes = 0;
    for record in compact(durable) {
        let size = record::size(&record)?;
        if size > RECORD_BYTES_MAX {
            let kind = record.kind();
            return Err(Error::bug(format!(
                "a {kind} record of {size} bytes exceeds the limit of {RECORD_BYTES_MAX}"
            )));
        }
        if bytes > 0 && bytes + size > SNAPSHOT_PIECE_BYTES_MAX {
            pieces.push(Vec::new());
            bytes = 0;
        }
        bytes += size;
        if let Some(piece) = pieces.last_mut() {
            piece.push(record);
        }
    }
    let of = u32::try_from(pieces.len())
        .map_err(|_| Error::exhausted("a snapshot has more pieces than can be numbered"))?;
    Ok((0..)
        .zip(pieces)
        .map(|(part, records)| Record::Snapshot { id, part, of, digest: digest(&records), records })
        .collect())
}

#[cfg(test)]
#[path = "fold_tests.rs"]
mod tests;
