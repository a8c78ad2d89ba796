//! Merges one partition out of every run into an output part. The part's upload is reported when it
//! is opened and left open at the end: the coordinator completes it with the commit, or aborts it.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use muster_kernel::order::Order;
use muster_kernel::part::{PartSummary, PartWriter};
use muster_kernel::proof::{Sums, Tally};
use muster_kernel::run::{Piece, RunIndex};
use muster_kernel::splitters::Splitter;
use muster_platform::store::{BlobUrl, Scheme};
use muster_protocol::names;
use muster_protocol::plan::PinnedRun;
use muster_protocol::planted::{self, Bug};
use muster_protocol::wire::{BlobRef, DamageCause, MergedPart, Outcome};
use muster_protocol::{Error, Result};

use super::runs::{
    Bounds, MergeMemory, Nowhere, Source, bounds, find_damaged, merge_sources, open_upload,
    spill_error, to_spill_disk, write_run,
};
use super::{Counters, Gate, Task, repair};
use crate::arrival::by_run;
use crate::cache::IndexError;
use crate::slots::Lease;
use crate::transfer::{Object, PartSink, Upload, Uploaded, abandoned};

/// Indexes that are read side by side.
const INDEXES_IN_FLIGHT: usize = 8;

pub(super) async fn run(
    task: &Arc<Task>,
    splitters: Option<&BlobRef>,
    runs: &BlobRef,
    gate: Gate,
) -> Result<Outcome> {
    let link = task.link.clone();
    let prepared = link.or_cancelled(async {
        let job = task.context.cache.job(&task.run.plan).await?;
        let splitters =
            task.context.cache.splitters(splitters, job.order.select().distinct).await?;
        let partition = task.run.attempt.task.index;
        let sources = sources(task, splitters.len(), runs, partition).await?;
        let mut before = Vec::new();
        if job.order.select().first.is_some() {
            for partition in 0..partition {
                before.push(self::sources(task, splitters.len(), runs, partition).await?);
            }
        }
        let part = names::part_name(task.run.attempt.task.index, &job.plan.extension);
        let target =
            Object::open(&task.stores, job.plan.output.parse::<BlobUrl>()?.join(&part)).await?;
        Ok((job, splitters, (before, sources), target, task.spill_root().await?))
    });
    let (job, splitters, (before, sources), target, spill_root) = prepared.await?;
    task.expect_bytes(sources.iter().map(|source| source.piece.len).sum());
    let upload = open_upload(&link, &target, &task.results).await?;
    // Nobody listens any more only when the attempt is being abandoned.
    drop(gate.opened.send(upload.clone()));
    let (open, order) = (upload.clone(), job.order.clone());
    let merged = task.on_cpu(move |task, lease| {
        let partition = task.run.attempt.task.index;
        let order = job.order.clone();
        let mut merging =
            Merging { task, order, partition, splitters: &splitters, spill_root, rounds: 0 };
        merging.leave_to_earlier(before, lease)?;
        merging.into_part(sources, target, open, lease)
    });
    let (summary, tally, uploaded) = merged.await?;
    // Before the report: as long as this task is not done its job is not, and nobody sweeps what is
    // written here.
    let repaired = async {
        repair::all(task, &order).await;
        Ok(())
    };
    link.or_cancelled(repaired).await?;
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

/// The pieces of a partition that hold anything, in the order of their runs.
async fn sources(
    task: &Task,
    splitters: usize,
    runs: &BlobRef,
    partition: u32,
) -> Result<Vec<Source>> {
    if partition as usize > splitters {
        return Err(Error::invalid(format!(
            "there are {splitters} splitters, so no partition {partition}"
        )));
    }
    let pinned = task.context.cache.runs(runs).await?;
    if pinned.job != task.run.job {
        return Err(Error::invalid(format!(
            "the runs of job {} are not those of job {}",
            pinned.job, task.run.job
        )));
    }
    let runs = pinned.runs.iter().skip(usize::from(planted::is(Bug::LeaveOutRun))).cloned();
    let found: Vec<(u32, Source)> = futures::stream::iter(runs)
        .map(|run| async move {
            let run = Arc::new(run);
            let (copies, index) = open_run(task, &run).await?;
            let partitions = index.partitions();
            let piece = index.piece(partition).filter(|_| partitions as usize == splitters + 1);
            let piece = piece.ok_or_else(|| {
                let (url, expected) = (&run.url, splitters + 1);
                let error = Error::corrupt(format!(
                    "the run {url} has {partitions} partitions, the job has {expected}"
                ));
                task.link.findings.run_damaged(&run, DamageCause::Writer, error)
            })?;
            Ok::<_, Error>((run.attempt.task.index, Source { copies, piece, run: Some(run) }))
        })
        .buffer_unordered(INDEXES_IN_FLIGHT)
        .try_collect()
        .await?;
    Ok(by_run(found).into_iter().filter(|source| source.piece.len > 0).collect())
}

/// Opens a committed run: its index, and its copies, the one that gave the index first. An index
/// that does not hold is read once more, then the next copy is asked.
async fn open_run(task: &Task, run: &PinnedRun) -> Result<(Vec<Object>, Arc<RunIndex>)> {
    let urls = [Some(&run.url), run.replica.as_ref()];
    let mut copies = Vec::new();
    let patience_ms = run.replica.is_some().then_some(task.context.replica_after_ms);
    for url in urls.into_iter().flatten() {
        copies.push(Object::open(&task.stores, url.parse()?).await?.within(patience_ms));
    }
    let (mut away, mut damaged): (Option<(usize, Error)>, _) = (None, None);
    for turn in 0..=copies.len() {
        let number = match &away {
            _ if turn < copies.len() => turn,
            // No copy is to be had. One that did not answer in time may be whole: it is waited for
            // as any object is.
            Some((number, _)) if copies[*number].patience_ms.is_some() => *number,
            _ => break,
        };
        if turn == copies.len() {
            copies[number].patience_ms = None;
        }
        let object = &copies[number];
        let mut first: Option<(DamageCause, Error)> = None;
        for _ in 0..2 {
            match task.context.cache.index(run, object).await {
                Ok(index) => {
                    if let Some((_, error)) = first {
                        let count = Counters::count(&task.link.findings.counters.read_again);
                        tracing::warn!(
                            run = %object,
                            %error,
                            cause = ?DamageCause::Network,
                            count,
                            "the index of a run read well again"
                        );
                    }
                    if number > 0 {
                        let count = Counters::count(&task.link.findings.counters.from_replica);
                        tracing::warn!(
                            from = %run.url,
                            to = %object,
                            count,
                            "reading a run from its other copy"
                        );
                    }
                    copies[number].patience_ms = patience_ms;
                    copies.swap(0, number);
                    return Ok((copies, index));
                }
                Err(IndexError::Away(error)) => {
                    away = Some((number, error));
                    break;
                }
                Err(IndexError::Damaged(cause, error)) => first = Some((cause, error)),
            }
        }
        damaged = damaged.or(first);
        if turn + 1 < copies.len()
            && let Some((_, error)) = &damaged
        {
            task.link.findings.copy_failed(run, object, &copies[number + 1], error);
        }
    }
    Err(match (away, damaged) {
        // Whoever does not answer may have it whole.
        (Some((_, error)), _) => error,
        (None, Some((cause, error))) => task.link.findings.run_damaged(run, cause, error),
        (None, None) => Error::bug(format!("the run {} lies nowhere", run.url)),
    })
}

/// A partition on its way to a part. Lives on a thread that computes.
struct Merging<'a> {
    task: &'a Task,
    order: Arc<Order>,
    partition: u32,
    splitters: &'a [Splitter],
    spill_root: Object,
    rounds: u32,
}

impl Merging<'_> {
    fn bounds(&self) -> Bounds<'_> {
        bounds(self.splitters, self.partition as usize)
    }

    /// Merges in as many rounds as memory asks for. The tally is over all of them: kept in the
    /// part, dropped anywhere.
    fn into_part(
        mut self,
        sources: Vec<Source>,
        target: Object,
        upload: String,
        lease: &mut Lease,
    ) -> Result<(PartSummary, Tally, Uploaded)> {
        let expected =
            sources.iter().fold(Sums::default(), |sums, source| sums.plus(&source.piece.sums));
        let (level, memory, dropped) = self.narrow(sources, target.url.scheme(), lease)?;
        let link = &self.task.link;
        let upload = Upload { object: target, id: upload };
        let sink = PartSink::new(link, vec![upload], memory.parts)?
            .counting(Some(&self.task.progress.bytes_written));
        let mut out = PartWriter::new(sink, self.order.clone());
        let progress = (!level.spilled).then_some(&self.task.progress.bytes_read);
        let merged = merge_sources(
            link,
            &self.order,
            self.bounds(),
            &level.sources,
            memory.windows.windows,
            progress,
            &mut out,
        );
        let tally = merged.map_err(|e| self.blame(e, &level.sources, level.spilled, memory))?;
        let (summary, sink) = out.finish()?;
        let uploaded = sink.finish()?.pop().ok_or_else(|| Error::bug("a part went nowhere"))?;
        let tally = Tally { kept: tally.kept, dropped: tally.dropped.plus(&dropped) };
        if tally.total() != expected
            || tally.kept != summary.sums
            || summary.bytes != uploaded.bytes
        {
            let partition = self.partition;
            return Err(Error::bug(format!(
                "partition {partition} should hold {expected}, but {} were written and {} dropped",
                summary.sums, tally.dropped
            )));
        }
        Ok((summary, tally, uploaded))
    }

    /// Where the first so many records are kept (`--top`): this partition keeps what the earlier
    /// ones leave of them. How many those keep is told by the runs' indexes, and under `-u`, where
    /// it depends on which keys of different runs are equal, by merging them to nowhere: no run
    /// holds more than is kept in all. So each merge finds out by itself, and none waits for
    /// another.
    fn leave_to_earlier(&mut self, before: Vec<Vec<Source>>, lease: &mut Lease) -> Result<()> {
        let own = self.partition;
        for (partition, sources) in (0..).zip(before) {
            let kept = if self.order.select().distinct {
                self.partition = partition;
                let to = self.spill_root.url.scheme().clone();
                let (level, memory, _) = self.narrow(sources, &to, lease)?;
                let (link, windows) = (&self.task.link, memory.windows.windows);
                let (bounds, sources) = (self.bounds(), &level.sources);
                merge_sources(link, &self.order, bounds, sources, windows, None, &mut Nowhere)
                    .map_err(|e| self.blame(e, sources, level.spilled, memory))?
                    .kept
                    .records
            } else {
                sources.iter().map(|source| source.piece.sums.records).sum()
            };
            self.order = Arc::new(self.order.after(kept).into_owned());
        }
        self.partition = own;
        Ok(())
    }

    /// Merges in rounds until so few are left as memory allows at once for an object of `to`; with
    /// what was dropped on the way.
    fn narrow(
        &mut self,
        sources: Vec<Source>,
        to: &Scheme,
        lease: &mut Lease,
    ) -> Result<(Level, MergeMemory, Sums)> {
        let bytes = sources.iter().map(|source| source.piece.len).sum();
        let mut level = Level { sources, spilled: false };
        let mut dropped = Sums::default();
        loop {
            let memory = level.memory(lease, to, bytes)?;
            if level.sources.len() <= memory.windows.fan_in {
                if planted::is(Bug::TiesBackwards) {
                    level.sources.reverse();
                }
                return Ok((level, memory, dropped));
            }
            let memory = level.memory(lease, self.spill_root.url.scheme(), bytes)?;
            level = self.round(&level, memory, &mut dropped)?;
        }
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
        let (link, order) = (&self.task.link, &self.order);
        let progress = (!level.spilled).then_some(&self.task.progress.bytes_read);
        let mut merged = Vec::new();
        for (number, group) in level.sources.chunks(memory.windows.fan_in).enumerate() {
            let url = self.spill_root.url.join(&format!("round-{}-{number:05}", self.rounds));
            let target = self.spill_root.sibling(url);
            let bytes = group.iter().map(|source| source.piece.len).sum();
            let (spill, of_group) = to_spill_disk(self.task, &target, bytes, || {
                let mut of_group = Sums::default();
                let targets = std::slice::from_ref(&target);
                let spill = write_run(
                    link,
                    order,
                    targets,
                    memory.parts,
                    &self.task.temporary,
                    None,
                    |out| {
                        out.begin_partition()?;
                        let tally = merge_sources(
                            link,
                            order,
                            self.bounds(),
                            group,
                            memory.windows.windows,
                            progress,
                            out,
                        );
                        of_group =
                            tally.map_err(|e| self.blame(e, group, level.spilled, memory))?.dropped;
                        Ok(())
                    },
                )?;
                Ok((spill, of_group))
            })?;
            dropped.merge(&of_group);
            let piece = spill.index.piece(0).unwrap_or_default();
            merged.push(Source::of_spill(&spill, piece));
            if level.spilled {
                for object in group.iter().flat_map(|source| &source.copies) {
                    // Early, for the sake of the disk; at the latest they go with the attempt.
                    drop(link.wait(object.store.delete(object.key())));
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
        find_damaged(
            &self.task.link,
            &self.order,
            self.bounds(),
            sources,
            memory.windows.windows,
            error,
        )
    }
}

/// What is to be merged next.
struct Level {
    sources: Vec<Source>,
    /// Whether these are spills of an earlier round.
    spilled: bool,
}

impl Level {
    fn memory(&self, lease: &mut Lease, to: &Scheme, bytes: u64) -> Result<MergeMemory> {
        let pieces: Vec<Piece> = self.sources.iter().map(|source| source.piece).collect();
        let from = self
            .sources
            .first()
            .and_then(|source| source.copies.first())
            .map_or(to, |object| object.url.scheme());
        MergeMemory::of(lease, from, &pieces, to, bytes)
    }
}
