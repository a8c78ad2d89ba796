//! Sorts a split into a run: records are held and sorted a chunk at a time; a split that is one
//! chunk is written straight to scratch, else every chunk is spilled to the worker's own disk and
//! the spills are merged into the run.

use std::sync::Arc;

use bytes::Bytes;
use muster_kernel::error::KernelError;
use muster_kernel::format::Cutter;
use muster_kernel::order::Order;
use muster_kernel::proof::{Interval, Sums};
use muster_kernel::run::Piece;
use muster_kernel::sort::ChunkSorter;
use muster_kernel::splitters::Splitter;
use muster_platform::retry::Trouble;
use muster_platform::store::{Access, BlobUrl, Scheme};
use muster_protocol::plan::memory_of;
use muster_protocol::planted::{self, Bug};
use muster_protocol::wire::{BlobRef, Outcome, SortedRun};
use muster_protocol::{Error, ErrorKind, Result};

use super::bad_records::{BadRecords, LeftOut};
use super::runs::{
    MergeMemory, RunObject, locate, merge_runs, spill_error, to_spill_disk, write_run,
};
use super::{Task, run_path};
use crate::cache::Job;
use crate::memory::{Budget, PartsPlan, WindowsPlan};
use crate::slots::Lease;
use crate::transfer::{Object, Prefetch, Span, read, windows};

/// First read beyond an interval's end, for the rest of its last line; each further one is twice as
/// long.
const OVERRUN_BYTES: u64 = 64 << 10;

pub(super) async fn run(task: &Arc<Task>, splitters: Option<&BlobRef>) -> Result<Outcome> {
    let link = task.link.clone();
    let prepared = link.or_cancelled(async {
        let job = task.context.cache.job(&task.run.plan).await?;
        let splitters =
            task.context.cache.splitters(splitters, job.order.select().distinct).await?;
        let objects = task.pinned_objects(&job).await?;
        let targets = targets(task, &job).await?;
        Ok((job, splitters, objects, targets, task.spill_root().await?))
    });
    let (job, splitters, objects, targets, spill_root) = prepared.await?;
    task.expect_bytes(task.split(&job)?.iter().map(Interval::len).sum());
    let quarantine =
        Object::open(&task.stores, task.scratch_url(&job, &BadRecords::path(task))?).await?;
    let work = Arc::new(Inputs {
        job: job.clone(),
        splitters,
        objects: objects.clone(),
        targets,
        quarantine,
        spill_root,
    });
    let memory = link.retry.policy(Trouble::Memory).clone();
    let (mut tries, mut halvings) = (1, task.run.memory_halvings);
    let sorted = loop {
        let inputs = work.clone();
        let sorted = task.on_cpu(move |task, lease| inputs.sort(task, lease, halvings)).await;
        match sorted {
            Err(error) if error.kind == ErrorKind::OutOfMemory && memory.allows(tries, 0) => {
                tries += 1;
                halvings = halvings.saturating_add(1);
                tracing::warn!(%error, halvings, "memory was refused: once more with a chunk of \
                    half the size");
                task.temporary.remove_all().await;
                task.results.remove_all().await;
                task.progress.begin_anew();
            }
            sorted => break sorted,
        }
    };
    let sorted = match sorted {
        // An object that ends too early has changed.
        Err(error) if error.kind == ErrorKind::Corrupt => {
            link.or_cancelled(task.check_pinned(&job, &objects)).await?;
            return Err(error);
        }
        sorted => sorted?,
    };
    task.link.or_cancelled(task.check_pinned(&job, &objects)).await?;
    tracing::info!(
        bytes = sorted.bytes,
        records = sorted.kept.records,
        spills = sorted.spills,
        "sorted"
    );
    Ok(Outcome::Sorted(Box::new(sorted)))
}

/// What a sort reads, and where it writes.
struct Inputs {
    job: Arc<Job>,
    splitters: Arc<Vec<Splitter>>,
    objects: Vec<Object>,
    targets: Vec<Object>,
    quarantine: Object,
    spill_root: Object,
}

impl Inputs {
    /// Sorts it all. Blocking.
    fn sort(&self, task: &Task, lease: &mut Lease, halvings: u8) -> Result<SortedRun> {
        let job = &self.job;
        let split = task.split(job)?;
        let mut sorter = lease.take_sorter(&job.order, memory_of(&job.plan.objects), halvings);
        let budget = *lease.budget();
        let sizes = budget.sizes(self.quarantine.url.scheme());
        let parts = PartsPlan::of(sizes, 0, budget.io_bytes / 8);
        let mut sorting = Sorting {
            task,
            job,
            splitters: &self.splitters,
            sorter: &mut sorter,
            budget,
            spill_root: self.spill_root.clone(),
            spills: Vec::new(),
            spills_made: 0,
            input: Sums::default(),
            bad: BadRecords::new(task, job, self.quarantine.clone(), parts, budget),
        };
        let intervals = sorting.consume(&split, &self.objects)?;
        let (run, spills, read, left_out) = sorting.into_run(&self.targets, lease)?;
        // A sorter that a failed attempt leaves half full is not kept, nor is one that is smaller
        // than it may be.
        if halvings == 0 {
            lease.keep_sorter(&job.order, sorter);
        }
        sorted_run(&run, self.targets.get(1), read, left_out, intervals, spills)
    }
}

/// Where the run goes: to scratch, and to the replica store where the job has one. Both stand
/// before the report.
async fn targets(task: &Task, job: &Job) -> Result<Vec<Object>> {
    let path = run_path(task);
    let mut targets = vec![Object::open(&task.stores, task.scratch_url(job, &path)?).await?];
    if let Some(replica) = &job.plan.replica {
        targets.push(Object::open(&task.stores, replica.parse::<BlobUrl>()?.join(&path)).await?);
    }
    Ok(targets)
}

/// The store whose parts must be the largest.
fn most_demanding(targets: &[Object]) -> &Scheme {
    let mut schemes = targets.iter().map(|target| target.url.scheme());
    let first = schemes.next().unwrap_or(&Scheme::Memory);
    schemes.find(|scheme| matches!(scheme, Scheme::S3 { .. })).unwrap_or(first)
}

/// The report of a run. What was kept and dropped must be what was sorted (P1).
fn sorted_run(
    run: &RunObject,
    replica: Option<&Object>,
    sorted: Sums,
    left_out: LeftOut,
    intervals: Vec<Interval>,
    spills: u32,
) -> Result<SortedRun> {
    let (kept, dropped) = (run.index.kept(), run.index.dropped());
    if kept.plus(&dropped) != sorted && !planted::is(Bug::DropSums) {
        // The next try is elsewhere: where it meets with the same it was no failing memory, and the
        // task runs out of tries.
        return Err(Error::corrupt(format!(
            "P1 (conservation) is broken: {} holds {kept} and drops {dropped}, but {sorted} were \
                read; this machine's memory is doubtful",
            run.object
        )));
    }
    Ok(SortedRun {
        url: run.object.to_string(),
        replica: replica.map(Object::to_string),
        bytes: run.index.file_bytes(),
        index_digest: run.index.digest(),
        input: sorted.plus(&left_out.sums),
        kept,
        dropped,
        skipped: left_out.sums,
        quarantine: left_out.quarantine,
        bad_records: left_out.listed,
        partition_bytes: run.index.pieces().iter().map(|piece| piece.len).collect(),
        intervals,
        spills,
    })
}

/// A split on its way through the sorter. Lives on a thread that computes.
struct Sorting<'a> {
    task: &'a Task,
    job: &'a Job,
    splitters: &'a [Splitter],
    sorter: &'a mut ChunkSorter,
    budget: Budget,
    spill_root: Object,
    /// Spills that are not merged yet, in input order.
    spills: Vec<RunObject>,
    spills_made: u32,
    /// Of what was sorted.
    input: Sums,
    bad: BadRecords<'a>,
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
            let torn = BadRecords::torn(self.job);
            let cutter = self.order().format().cutter(*interval, object_bytes, torn);
            let cutter = cutter.map_err(|e| Error::from(e).at(object))?;
            spans.push(Span {
                object: object.clone(),
                range: cutter.read_from()..interval.end,
                access: Access::Cached,
            });
            cutters.push(cutter);
        }
        let scheme = objects.first().map_or(&Scheme::Memory, |object| object.url.scheme());
        // Two fifths of the I/O share are for reading; the rest is for the run or the spills.
        let plan = WindowsPlan::scan(self.budget.sizes(scheme), self.budget.io_bytes / 5 * 2);
        let all = spans.clone().into_iter().flat_map(move |span| windows(span, plan.window_bytes));
        let mut input = Prefetch::new(&self.task.link, all, plan.ahead_bytes)
            .counting(Some(self.task.progress.bytes_read.clone()));
        let mut consumed = Vec::with_capacity(split.len());
        for (mut cutter, span) in cutters.into_iter().zip(spans) {
            let interval = split[consumed.len()];
            self.consume_interval(cutter.as_mut(), interval, &span, &mut input)?;
            let taken = cutter.consumed();
            consumed.push(Interval { object: interval.object, begin: taken.start, end: taken.end });
        }
        Ok(consumed)
    }

    fn consume_interval(
        &mut self,
        cutter: &mut dyn Cutter,
        interval: Interval,
        span: &Span,
        input: &mut Prefetch,
    ) -> Result<()> {
        let mut begun = false;
        let mut at = span.range.start;
        while at < span.range.end {
            let Some(bytes) =
                input.next_span().map_err(|e| self.task.unreadable(interval.object, e))?
            else {
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
            step = (step * 2).min(self.budget.io_bytes as u64 / 4).max(OVERRUN_BYTES);
            let beyond = Span { range, ..span.clone() };
            let bytes = self.task.link.wait(read(&self.task.link.retry, &beyond));
            let bytes = bytes.map_err(|e| self.task.unreadable(interval.object, e))?;
            self.take(cutter, interval, &bytes, &mut begun)?;
        }
        self.bad.end()?;
        loop {
            match self.sorter.end_object() {
                Ok(true) => return Ok(()),
                Ok(false) => self.spill()?,
                Err(error) if self.bad.takes(&error) => {
                    self.leave_out(interval, error)?;
                    return self.bad.end();
                }
                Err(error) => return Err(self.blame(interval, error)),
            }
        }
    }

    /// An error of the sorter with its place; where memory is what is short, with how much is
    /// needed.
    fn blame(&self, interval: Interval, error: KernelError) -> Error {
        match (error, self.order().frame().body_len()) {
            (KernelError::Budget { position, .. }, Some(len)) => {
                self.bad.needs_memory(interval.object, position - self.base(interval), len)
            }
            (error, _) => locate(self.job, error),
        }
    }

    /// Gives the sorter's open record up as malformed; the global position behind what is held of
    /// it.
    fn leave_out(&mut self, interval: Interval, why: KernelError) -> Result<u64> {
        let (position, held) = self.sorter.open_record();
        let behind = position + held.len() as u64;
        self.bad.begin(interval.object, position - self.base(interval), held, why)?;
        self.sorter.discard_open();
        Ok(behind)
    }

    /// Global position of the first byte of an interval's object.
    fn base(&self, interval: Interval) -> u64 {
        self.job.positions.get(interval.object as usize).copied().unwrap_or_default()
    }

    /// Feeds what belongs to the interval's records, spilling as the sorter fills.
    fn take(
        &mut self,
        cutter: &mut dyn Cutter,
        interval: Interval,
        bytes: &Bytes,
        begun: &mut bool,
    ) -> Result<()> {
        let cut = cutter.push(bytes);
        let mut rest = &bytes[cut.take];
        // Global position behind `rest`.
        let end = self.base(interval) + cutter.consumed().end;
        if !rest.is_empty() && !*begun {
            *begun = true;
            self.sorter.begin(self.base(interval) + cutter.consumed().start);
        }
        while !rest.is_empty() {
            if self.bad.is_open() {
                rest = self.bad.pass(rest)?;
                if !self.bad.is_open() {
                    self.sorter.begin(end - rest.len() as u64);
                }
                continue;
            }
            match self.sorter.feed(rest) {
                Ok(fed) => {
                    rest = &rest[fed..];
                    if !rest.is_empty() {
                        self.spill()?;
                    }
                }
                Err(error) if self.bad.takes(&error) => {
                    let behind = self.leave_out(interval, error)?;
                    let left = usize::try_from(end.saturating_sub(behind))
                        .unwrap_or(usize::MAX)
                        .min(rest.len());
                    rest = &rest[rest.len() - left..];
                }
                Err(error) => return Err(self.blame(interval, error)),
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
        let bytes = self.sorter.used_bytes() as u64;
        let target = self.next_spill();
        let parts = PartsPlan::of(
            self.budget.sizes(target.url.scheme()),
            bytes,
            self.budget.io_bytes / 5 * 3,
        );
        let task = self.task;
        let (spilled, input) = to_spill_disk(task, &target, bytes, || {
            self.write_chunk(std::slice::from_ref(&target), parts, false)
        })?;
        tracing::debug!(object = %spilled.object, bytes = spilled.index.file_bytes(), "spilled a \
            chunk");
        self.input.merge(&input);
        self.spills.push(spilled);
        Ok(())
    }

    /// Sorts and writes the chunk that is held, as the run or as a spill; returns its input sums,
    /// too. The sorter is empty then.
    fn write_chunk(
        &mut self,
        targets: &[Object],
        parts: PartsPlan,
        is_run: bool,
    ) -> Result<(RunObject, Sums)> {
        self.task.link.check()?;
        if let Some(random) = self.task.damaged_memory()? {
            self.sorter.flip_bit(random);
        }
        let leftovers = if is_run { &self.task.results } else { &self.task.temporary };
        let chunk = self.sorter.sort();
        let input = chunk.input_sums();
        let progress = is_run.then_some(&self.task.progress.bytes_written);
        let written = write_run(
            &self.task.link,
            &self.job.order,
            targets,
            parts,
            leftovers,
            progress,
            |out| match chunk.write(self.splitters, out) {
                Err(e) if e.kind == ErrorKind::Corrupt && planted::is(Bug::DropSums) => Ok(()),
                written => written.map(drop),
            },
        )?;
        self.sorter.reset();
        Ok((written, input))
    }

    /// Ends the split: the run, how often was spilled, the sums of what was sorted, and what was
    /// left out.
    fn into_run(
        mut self,
        targets: &[Object],
        lease: &mut Lease,
    ) -> Result<(RunObject, u32, Sums, LeftOut)> {
        if self.spills.is_empty() {
            let parts = PartsPlan::of(
                self.budget.sizes(most_demanding(targets)),
                self.sorter.used_bytes() as u64,
                self.budget.io_bytes,
            );
            let (run, input) = self.write_chunk(targets, parts, true)?;
            return Ok((run, 0, input, self.bad.finish()?));
        }
        if !self.sorter.is_empty() {
            self.spill()?;
        }
        let spills = self.spills_made;
        let run = self.merge_spills(targets, lease)?;
        Ok((run, spills, self.input, self.bad.finish()?))
    }

    /// Merges the spills, in rounds where they are more than memory allows at once, into the run.
    fn merge_spills(&mut self, targets: &[Object], lease: &mut Lease) -> Result<RunObject> {
        let run_bytes: u64 = self.spills.iter().map(|spill| spill.index.file_bytes()).sum();
        loop {
            let memory = self.merge_memory(lease, most_demanding(targets), run_bytes)?;
            if self.spills.len() <= memory.windows.fan_in {
                return self.merge_group(0..self.spills.len(), targets, memory, true);
            }
            let to_disk = self.spill_root.url.scheme().clone();
            let memory = self.merge_memory(lease, &to_disk, run_bytes)?;
            tracing::info!(
                spills = self.spills.len(),
                fan_in = memory.windows.fan_in,
                "merging spills in rounds"
            );
            let mut merged = Vec::new();
            for begin in (0..self.spills.len()).step_by(memory.windows.fan_in) {
                let group = begin..(begin + memory.windows.fan_in).min(self.spills.len());
                let target = self.next_spill();
                let bytes =
                    self.spills[group.clone()].iter().map(|spill| spill.index.file_bytes()).sum();
                let targets = std::slice::from_ref(&target);
                let write = || self.merge_group(group.clone(), targets, memory, false);
                merged.push(to_spill_disk(self.task, &target, bytes, write)?);
                for spill in &self.spills[group] {
                    // Early, for the sake of the disk; at the latest they go with the attempt.
                    drop(self.task.link.wait(spill.object.store.delete(spill.object.key())));
                }
            }
            self.spills = merged;
        }
    }

    /// The memory of a merge of the spills. The sorter, which is empty, gives up its own where that
    /// is needed.
    fn merge_memory(&mut self, lease: &mut Lease, to: &Scheme, bytes: u64) -> Result<MergeMemory> {
        // Each spill counts with its largest block.
        let largest = |run: &RunObject| {
            run.index
                .pieces()
                .iter()
                .copied()
                .max_by_key(|piece| piece.block_payload_max)
                .unwrap_or_default()
        };
        let pieces: Vec<Piece> = self.spills.iter().map(largest).collect();
        let memory = MergeMemory::of(lease, self.spill_root.url.scheme(), &pieces, to, bytes)?;
        if memory.whole_slot {
            self.sorter.release_memory();
        }
        Ok(memory)
    }

    fn merge_group(
        &self,
        group: std::ops::Range<usize>,
        targets: &[Object],
        memory: MergeMemory,
        is_run: bool,
    ) -> Result<RunObject> {
        let spills = &self.spills[group];
        let leftovers = if is_run { &self.task.results } else { &self.task.temporary };
        let link = &self.task.link;
        let progress = is_run.then_some(&self.task.progress.bytes_written);
        write_run(link, self.order(), targets, memory.parts, leftovers, progress, |out| {
            for spill in spills {
                out.add_dropped(&spill.index.dropped());
            }
            merge_runs(link, self.order(), self.splitters, spills, memory.windows.windows, out)
                .map(drop)
                .map_err(spill_error)
        })
    }
}
