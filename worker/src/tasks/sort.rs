//! Sorts a split into a run: records are held and sorted a chunk at a time; a split that is one chunk is written straight to scratch, else every chunk is spilled to
//! the worker's own disk and the spills are merged into the run.

use std::sync::Arc;

use bytes::Bytes;
use muster_common::store::{Access, Scheme};
use muster_common::wire::{BlobRef, Outcome, SortedRun};
use muster_common::{Error, Result};
use muster_kernel::order::Order;
use muster_kernel::proof::{Interval, Sums};
use muster_kernel::run::Piece;
use muster_kernel::sort::ChunkSorter;
use muster_kernel::split::Cutter;
use muster_kernel::splitters::Splitter;

use super::runs::{MergeMemory, RunObject, locate, merge_runs, spill_error, write_run};
use super::{Task, run_path};
use crate::cache::Job;
use crate::memory::{PartsPlan, WindowsPlan};
use crate::slots::Lease;
use crate::transfer::{Object, Prefetch, Span, read, windows};

/// First read beyond an interval's end, for the rest of its last line; each further one is twice as long.
const OVERRUN_BYTES: u64 = 64 << 10;

pub(super) async fn run(task: &Arc<Task>, splitters: Option<&BlobRef>) -> Result<Outcome> {
    let link = task.link.clone();
    let prepared = link.or_cancelled(async {
        let job = task.context.cache.job(&task.run.plan).await?;
        let splitters = task.context.cache.splitters(splitters, job.order.unique()).await?;
        let objects = task.pinned_objects(&job).await?;
        let target = Object::open(&task.context.stores, task.scratch_url(&job, &run_path(task))?).await?;
        Ok((job, splitters, objects, target, task.spill_root().await?))
    });
    let (job, splitters, objects, target, spill_root) = prepared.await?;
    task.expect_bytes(job.plan.split_bytes(task.run.attempt.task.index));
    let (of_job, read_objects) = (job.clone(), objects.clone());
    let sorted = task.on_cpu(move |task, lease| {
        let split = task.split(&of_job)?.to_vec();
        let mut sorter = lease.take_sorter(&of_job.order);
        let mut sorting = Sorting {
            task,
            job: &of_job,
            splitters: &splitters,
            sorter: &mut sorter,
            io_bytes: lease.io_bytes(),
            spill_root,
            spills: Vec::new(),
            spills_made: 0,
            input: Sums::default(),
        };
        let intervals = sorting.consume(&split, &read_objects)?;
        let (run, spills, input) = sorting.into_run(&target, lease)?;
        // A sorter that a failed attempt leaves half full is not kept.
        lease.keep_sorter(&of_job.order, sorter);
        sorted_run(&run, input, intervals, spills)
    });
    let sorted = sorted.await?;
    task.link.or_cancelled(task.check_pinned(&job, &objects)).await?;
    tracing::info!(bytes = sorted.bytes, records = sorted.kept.records, spills = sorted.spills, "sorted");
    Ok(Outcome::Sorted(sorted))
}

/// The report of a run. What was kept and dropped must be what was read (P1).
fn sorted_run(run: &RunObject, input: Sums, intervals: Vec<Interval>, spills: u32) -> Result<SortedRun> {
    let (kept, dropped) = (run.index.kept(), run.index.dropped());
    if kept.plus(&dropped) != input {
        return Err(Error::bug(format!("{} holds {kept} and drops {dropped}, but {input} were read", run.object)));
    }
    Ok(SortedRun {
        url: run.object.to_string(),
        bytes: run.index.file_bytes(),
        index_digest: run.index.digest(),
        input,
        kept,
        dropped,
        partition_bytes: run.index.pieces().iter().map(|piece| piece.len).collect(),
        intervals,
        spills,
    })
}

/// A split on its way through the sorter. Lives on a blocking thread.
struct Sorting<'a> {
    task: &'a Task,
    job: &'a Job,
    splitters: &'a [Splitter],
    sorter: &'a mut ChunkSorter,
    io_bytes: usize,
    spill_root: Object,
    /// Spills that are not merged yet, in input order.
    spills: Vec<RunObject>,
    spills_made: u32,
    input: Sums,
}

impl Sorting<'_> {
    fn order(&self) -> &Arc<Order> {
        &self.job.order
    }

    /// Feeds the split to the sorter and returns what was consumed of it.
    fn consume(&mut self, split: &[Interval], objects: &[Object]) -> Result<Vec<Interval>> {
        let mut cutters = Vec::with_capacity(split.len());
        let mut spans = Vec::with_capacity(split.len());
        for (interval, object) in split.iter().zip(objects) {
            let object_bytes = self.task.pinned(self.job, interval.object)?.bytes;
            let cutter =
                Cutter::new(self.order().format(), *interval, object_bytes).map_err(|e| Error::from(e).at(object))?;
            spans.push(Span {
                object: object.clone(),
                range: cutter.read_from()..interval.end,
                access: Access::Cached,
            });
            cutters.push(cutter);
        }
        let scheme = objects.first().map_or(&Scheme::Memory, |object| object.url.scheme());
        // Two fifths of the I/O share are for reading; the rest is for the run or the spills.
        let plan = WindowsPlan::scan(scheme, self.io_bytes / 5 * 2);
        let all = spans.clone().into_iter().flat_map(move |span| windows(span, plan.window_bytes));
        let mut input =
            Prefetch::new(&self.task.link, all, plan.ahead_bytes).counting(Some(self.task.progress.bytes_done.clone()));
        let mut consumed = Vec::with_capacity(split.len());
        for (mut cutter, span) in cutters.into_iter().zip(spans) {
            let interval = split[consumed.len()];
            self.consume_interval(&mut cutter, interval, &span, &mut input)?;
            let taken = cutter.consumed();
            consumed.push(Interval { object: interval.object, begin: taken.start, end: taken.end });
        }
        Ok(consumed)
    }

    fn consume_interval(
        &mut self,
        cutter: &mut Cutter,
        interval: Interval,
        span: &Span,
        input: &mut Prefetch,
    ) -> Result<()> {
        let mut begun = false;
        let mut at = span.range.start;
        while at < span.range.end {
            let Some(bytes) = input.next_span()? else {
                return Err(Error::bug(format!("the windows of {} end at byte {at}", span.object)));
            };
            at += bytes.len() as u64;
            self.take(cutter, interval, &bytes, &mut begun)?;
        }
        let object_bytes = self.task.pinned(self.job, interval.object)?.bytes;
        let mut step = OVERRUN_BYTES;
        while !cutter.is_done() && at < object_bytes {
            let range = at..(at + step).min(object_bytes);
            at = range.end;
            step = (step * 2).min(self.io_bytes as u64 / 4).max(OVERRUN_BYTES);
            let beyond = Span { range, ..span.clone() };
            let bytes = self.task.link.wait(read(&self.task.link.retry, &beyond))?;
            self.take(cutter, interval, &bytes, &mut begun)?;
        }
        while !self.sorter.end_object().map_err(|e| locate(self.job, e))? {
            self.spill()?;
        }
        Ok(())
    }

    /// Feeds what belongs to the interval's records, spilling as the sorter fills.
    fn take(&mut self, cutter: &mut Cutter, interval: Interval, bytes: &Bytes, begun: &mut bool) -> Result<()> {
        let cut = cutter.push(bytes);
        let mut rest = &bytes[cut.take];
        if !rest.is_empty() && !*begun {
            *begun = true;
            let base = self.job.positions.get(interval.object as usize).copied().unwrap_or_default();
            self.sorter.begin(base + cutter.consumed().start);
        }
        while !rest.is_empty() {
            let fed = self.sorter.feed(rest).map_err(|e| locate(self.job, e))?;
            rest = &rest[fed..];
            if !rest.is_empty() {
                self.spill()?;
            }
        }
        Ok(())
    }

    /// A new object among this attempt's spills.
    fn next_spill(&mut self) -> Object {
        self.spills_made += 1;
        self.spill_root.sibling(self.spill_root.url.join(&format!("spill-{:05}", self.spills_made)))
    }

    /// Writes the chunk that is held to disk and makes room for the next.
    fn spill(&mut self) -> Result<()> {
        let target = self.next_spill();
        let parts = PartsPlan::of(target.url.scheme(), self.sorter.used_bytes() as u64, self.io_bytes / 5 * 3);
        let (spilled, input) = self.write_chunk(target, parts, false)?;
        tracing::debug!(object = %spilled.object, bytes = spilled.index.file_bytes(), "spilled a chunk");
        self.input.merge(&input);
        self.spills.push(spilled);
        Ok(())
    }

    /// Sorts and writes the chunk that is held, as the run or as a spill; returns its input sums, too. The sorter is empty then.
    fn write_chunk(&mut self, target: Object, parts: PartsPlan, is_run: bool) -> Result<(RunObject, Sums)> {
        self.task.link.check()?;
        let leftovers = if is_run { &self.task.results } else { &self.task.temporary };
        let chunk = self.sorter.sort();
        let input = chunk.input_sums();
        let written = write_run(&self.task.link, &self.job.order, target, parts, leftovers, |out| {
            chunk.write(self.splitters, out).map(drop)
        })?;
        self.sorter.reset();
        Ok((written, input))
    }

    /// Ends the split: the run, how often was spilled, and the sums of what was read.
    fn into_run(mut self, target: &Object, lease: &mut Lease) -> Result<(RunObject, u32, Sums)> {
        if self.spills.is_empty() {
            let parts = PartsPlan::of(target.url.scheme(), self.sorter.used_bytes() as u64, self.io_bytes);
            let (run, input) = self.write_chunk(target.clone(), parts, true)?;
            return Ok((run, 0, input));
        }
        if !self.sorter.is_empty() {
            self.spill()?;
        }
        let spills = self.spills_made;
        let run = self.merge_spills(target, lease)?;
        Ok((run, spills, self.input))
    }

    /// Merges the spills, in rounds where they are more than memory allows at once, into the run.
    fn merge_spills(&mut self, target: &Object, lease: &mut Lease) -> Result<RunObject> {
        let run_bytes: u64 = self.spills.iter().map(|spill| spill.index.file_bytes()).sum();
        loop {
            let memory = self.merge_memory(lease, target.url.scheme(), run_bytes);
            if self.spills.len() <= memory.windows.fan_in {
                return self.merge_group(0..self.spills.len(), target.clone(), memory, true);
            }
            let memory = self.merge_memory(lease, self.spill_root.url.scheme(), run_bytes);
            tracing::info!(spills = self.spills.len(), fan_in = memory.windows.fan_in, "merging spills in rounds");
            let mut merged = Vec::new();
            for begin in (0..self.spills.len()).step_by(memory.windows.fan_in) {
                let group = begin..(begin + memory.windows.fan_in).min(self.spills.len());
                let target = self.next_spill();
                merged.push(self.merge_group(group.clone(), target, memory, false)?);
                for spill in &self.spills[group] {
                    // Early, for the sake of the disk; at the latest they go with the attempt.
                    drop(self.task.link.wait(spill.object.store.delete(spill.object.key())));
                }
            }
            self.spills = merged;
        }
    }

    fn merge_memory(&self, lease: &mut Lease, to: &Scheme, bytes: u64) -> MergeMemory {
        // Each spill counts with its largest block.
        let largest = |run: &RunObject| {
            run.index.pieces().iter().copied().max_by_key(|piece| piece.block_payload_max).unwrap_or_default()
        };
        let pieces: Vec<Piece> = self.spills.iter().map(largest).collect();
        MergeMemory::of(lease, self.spill_root.url.scheme(), &pieces, to, bytes)
    }

    fn merge_group(
        &self,
        group: std::ops::Range<usize>,
        target: Object,
        memory: MergeMemory,
        is_run: bool,
    ) -> Result<RunObject> {
        let spills = &self.spills[group];
        let leftovers = if is_run { &self.task.results } else { &self.task.temporary };
        let link = &self.task.link;
        write_run(link, self.order(), target, memory.parts, leftovers, |out| {
            for spill in spills {
                out.add_dropped(&spill.index.dropped());
            }
            merge_runs(link, self.order(), self.splitters, spills, memory.windows.windows, out)
                .map(drop)
                .map_err(spill_error)
        })
    }
}
