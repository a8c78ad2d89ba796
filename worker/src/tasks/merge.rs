//! Merges one partition out of every run into an output part. The part's upload is reported when it is opened and left open at the end: the coordinator completes it
//! with the commit, or aborts it.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use muster_common::names;
use muster_common::store::BlobUrl;
use muster_common::wire::{BlobRef, MergedPart, Outcome};
use muster_common::{Error, Result};
use muster_kernel::part::{PartSummary, PartWriter};
use muster_kernel::proof::{Sums, Tally};
use muster_kernel::run::Piece;
use muster_kernel::splitters::Splitter;

use super::runs::{
    Bounds, MergeMemory, Source, bounds, find_damaged, merge_sources, open_upload, spill_error, write_run,
};
use super::{Gate, Task};
use crate::cache::Job;
use crate::slots::Lease;
use crate::transfer::{Object, PartSink, Uploaded, abandoned};

/// Indexes that are read side by side.
const INDEXES_IN_FLIGHT: usize = 8;

pub(super) async fn run(task: &Arc<Task>, splitters: Option<&BlobRef>, runs: &BlobRef, gate: Gate) -> Result<Outcome> {
    let link = task.link.clone();
    let prepared = link.or_cancelled(async {
        let job = task.context.cache.job(&task.run.plan).await?;
        let splitters = task.context.cache.splitters(splitters, job.order.unique()).await?;
        let sources = sources(task, splitters.len(), runs).await?;
        let part = names::part_name(task.run.attempt.task.index, &job.plan.extension);
        let target = Object::open(&task.context.stores, job.plan.output.parse::<BlobUrl>()?.join(&part)).await?;
        Ok((job, splitters, sources, target, task.spill_root().await?))
    });
    let (job, splitters, sources, target, spill_root) = prepared.await?;
    task.expect_bytes(sources.iter().map(|source| source.piece.len).sum());
    let opening = (task.clone(), target.clone());
    let upload = tokio::task::spawn_blocking(move || open_upload(&opening.0.link, &opening.1, &opening.0.results));
    let upload = upload.await.map_err(|e| Error::bug(format!("opening an upload did not end: {e}")))??;
    // Nobody listens any more only when the attempt is being abandoned.
    drop(gate.opened.send(upload.clone()));
    let open = upload.clone();
    let merged = task.on_cpu(move |task, lease| {
        let merging = Merging { task, job: &job, splitters: &splitters, spill_root, rounds: 0 };
        merging.into_part(sources, target, open, lease)
    });
    let (summary, tally, uploaded) = merged.await?;
    link.or_cancelled(async { gate.proceed.await.map_err(|_| abandoned()) }).await?;
    tracing::info!(bytes = uploaded.bytes, records = summary.sums.records, "merged");
    Ok(Outcome::Merged(MergedPart {
        upload,
        tags: uploaded.tags,
        bytes: uploaded.bytes,
        checksum: summary.checksum,
        kept: tally.kept,
        dropped: tally.dropped,
        first_key: summary.first_key.unwrap_or_default(),
        last_key: summary.last_key.unwrap_or_default(),
    }))
}

/// The pieces of this partition that hold anything, in the order of their runs.
async fn sources(task: &Task, splitters: usize, runs: &BlobRef) -> Result<Vec<Source>> {
    let partition = task.run.attempt.task.index;
    if partition as usize > splitters {
        return Err(Error::invalid(format!("there are {splitters} splitters, so no partition {partition}")));
    }
    let pinned = task.context.cache.runs(runs).await?;
    if pinned.job != task.run.job {
        return Err(Error::invalid(format!("the runs of job {} are not those of job {}", pinned.job, task.run.job)));
    }
    let found: Vec<Source> = futures::stream::iter(pinned.runs.clone())
        .map(|run| async move {
            let object = Object::open(&task.context.stores, run.url.parse()?).await?;
            let index = task.context.cache.index(&run, &object).await?;
            let partitions = index.partitions();
            let piece = index.piece(partition).filter(|_| partitions as usize == splitters + 1);
            let piece = piece.ok_or_else(|| {
                Error::corrupt(format!("the run {object} has {partitions} partitions, the job has {}", splitters + 1))
            })?;
            Ok::<_, Error>(Source { object, piece })
        })
        .buffered(INDEXES_IN_FLIGHT)
        .try_collect()
        .await?;
    Ok(found.into_iter().filter(|source| source.piece.len > 0).collect())
}

/// A partition on its way to a part. Lives on a blocking thread.
struct Merging<'a> {
    task: &'a Task,
    job: &'a Job,
    splitters: &'a [Splitter],
    spill_root: Object,
    rounds: u32,
}

impl Merging<'_> {
    fn bounds(&self) -> Bounds<'_> {
        bounds(self.splitters, self.task.run.attempt.task.index as usize)
    }

    /// Merges in as many rounds as memory asks for. The tally is over all of them: kept in the part, dropped anywhere.
    fn into_part(
        mut self,
        sources: Vec<Source>,
        target: Object,
        upload: String,
        lease: &mut Lease,
    ) -> Result<(PartSummary, Tally, Uploaded)> {
        let expected = sources.iter().fold(Sums::default(), |sums, source| sums.plus(&source.piece.sums));
        let part_bytes = sources.iter().map(|source| source.piece.len).sum();
        let mut level = Level { sources, spilled: false };
        let mut dropped = Sums::default();
        let memory = loop {
            let memory = level.memory(lease, target.url.scheme(), part_bytes);
            if level.sources.len() <= memory.windows.fan_in {
                break memory;
            }
            let memory = level.memory(lease, self.spill_root.url.scheme(), part_bytes);
            level = self.round(&level, memory, &mut dropped)?;
        };
        let link = &self.task.link;
        let mut out = PartWriter::new(PartSink::new(link, target, upload, memory.parts), self.job.order.clone());
        let progress = (!level.spilled).then_some(&self.task.progress.bytes_done);
        let merged = merge_sources(
            link,
            &self.job.order,
            self.bounds(),
            &level.sources,
            memory.windows.windows,
            progress,
            &mut out,
        );
        let tally = merged.map_err(|e| self.blame(e, &level.sources, level.spilled, memory))?;
        let (summary, sink) = out.finish()?;
        let uploaded = sink.finish()?;
        let tally = Tally { kept: tally.kept, dropped: tally.dropped.plus(&dropped) };
        if tally.total() != expected || tally.kept != summary.sums || summary.bytes != uploaded.bytes {
            let partition = self.task.run.attempt.task.index;
            return Err(Error::bug(format!(
                "partition {partition} should hold {expected}, but {} were written and {} dropped",
                summary.sums, tally.dropped
            )));
        }
        Ok((summary, tally, uploaded))
    }

    /// Merges groups of sources into spills of one partition each.
    fn round(&mut self, level: &Level, memory: MergeMemory, dropped: &mut Sums) -> Result<Level> {
        self.rounds += 1;
        tracing::info!(
            runs = level.sources.len(),
            fan_in = memory.windows.fan_in,
            round = self.rounds,
            "merging in rounds"
        );
        let (link, order) = (&self.task.link, &self.job.order);
        let progress = (!level.spilled).then_some(&self.task.progress.bytes_done);
        let mut merged = Vec::new();
        for (number, group) in level.sources.chunks(memory.windows.fan_in).enumerate() {
            let url = self.spill_root.url.join(&format!("round-{}-{number:05}", self.rounds));
            let target = self.spill_root.sibling(url);
            let spill = write_run(link, order, target, memory.parts, &self.task.temporary, |out| {
                out.begin_partition()?;
                let tally = merge_sources(link, order, self.bounds(), group, memory.windows.windows, progress, out);
                dropped.merge(&tally.map_err(|e| self.blame(e, group, level.spilled, memory))?.dropped);
                Ok(())
            })?;
            let piece = spill.index.piece(0).unwrap_or_default();
            merged.push(Source { object: spill.object, piece });
            if level.spilled {
                for source in group {
                    // Early, for the sake of the disk; at the latest they go with the attempt.
                    drop(link.wait(source.object.store.delete(source.object.key())));
                }
            }
        }
        Ok(Level { sources: merged, spilled: true })
    }

    /// Says whose the damage is.
    fn blame(&self, error: Error, sources: &[Source], spilled: bool, memory: MergeMemory) -> Error {
        if spilled {
            return spill_error(error);
        }
        find_damaged(&self.task.link, &self.job.order, self.bounds(), sources, memory.windows.windows, error)
    }
}

/// What is to be merged next.
struct Level {
    sources: Vec<Source>,
    /// Whether these are spills of an earlier round.
    spilled: bool,
}

impl Level {
    fn memory(&self, lease: &mut Lease, to: &muster_common::store::Scheme, bytes: u64) -> MergeMemory {
        let pieces: Vec<Piece> = self.sources.iter().map(|source| source.piece).collect();
        let from = self.sources.first().map_or(to, |source| source.object.url.scheme());
        MergeMemory::of(lease, from, &pieces, to, bytes)
    }
}
