//! What sort and merge share: writing a run as an object, and merging pieces of runs, in rounds
//! where memory does not allow them all at once.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use muster_kernel::error::KernelError;
use muster_kernel::merge::{MergeInput, Windows, merge};
use muster_kernel::order::Order;
use muster_kernel::proof::{Sums, Tally};
use muster_kernel::run::{BLOCK_HEADER_BYTES, Piece, RecordSink, RunIndex, RunWriter};
use muster_kernel::sort::LONG_RECORD_BYTES;
use muster_kernel::splitters::Splitter;
use muster_platform::retry;
use muster_platform::store::{Access, Scheme};
use muster_protocol::plan::PinnedRun;
use muster_protocol::wire::DamageCause;
use muster_protocol::{Error, ErrorKind, Result};

use super::{Counters, Task};
use crate::cache::{Job, missing_is_corrupt};
use crate::memory::{MergePlan, PartsPlan, WindowsPlan};
use crate::slots::Lease;
use crate::spills::LARGER_DISK;
use crate::transfer::{Leftovers, Link, Object, PartSink, Prefetch, Span, Upload};

/// A run that stands in a store.
#[derive(Clone)]
pub(super) struct RunObject {
    pub(super) object: Object,
    pub(super) index: Arc<RunIndex>,
}

/// A piece of a run, to be merged.
#[derive(Clone)]
pub(super) struct Source {
    /// Where it lies, the best first: more than one place where runs have replicas.
    pub(super) copies: Vec<Object>,
    pub(super) piece: Piece,
    /// The committed run that it is of; none for a spill, which is this worker's own.
    pub(super) run: Option<Arc<PinnedRun>>,
}

impl Source {
    /// A piece of a spill.
    pub(super) fn of_spill(spill: &RunObject, piece: Piece) -> Self {
        Self { copies: vec![spill.object.clone()], piece, run: None }
    }

    fn place(&self) -> String {
        self.copies.first().map(Object::to_string).unwrap_or_default()
    }
}

/// The splitters below and above a partition.
pub(super) type Bounds<'a> = (Option<&'a Splitter>, Option<&'a Splitter>);

/// The bounds of a partition.
pub(super) fn bounds(splitters: &[Splitter], partition: usize) -> Bounds<'_> {
    (partition.checked_sub(1).and_then(|below| splitters.get(below)), splitters.get(partition))
}

/// Writes one run as an object of each of `targets`: opens uploads, lets `fill` write the
/// partitions, completes. Blocking. What was opened stands in `leftovers` from its first moment.
pub(super) fn write_run(
    link: &Link,
    order: &Order,
    targets: &[Object],
    plan: PartsPlan,
    leftovers: &Leftovers,
    progress: Option<&Arc<AtomicU64>>,
    fill: impl FnOnce(&mut RunWriter<PartSink>) -> Result<()>,
) -> Result<RunObject> {
    let mut uploads = Vec::with_capacity(targets.len());
    for object in targets {
        let id = link.wait_out(open_upload(link, object, leftovers))?;
        uploads.push(Upload { object: object.clone(), id });
    }
    let mut writer = RunWriter::new(
        PartSink::new(link, uploads.clone(), plan)?.counting(progress),
        order.frame(),
    );
    fill(&mut writer)?;
    let (index, sink) = writer.finish()?;
    for (Upload { object, id }, uploaded) in uploads.iter().zip(sink.finish()?) {
        // Not cut short by a cancel: it must be known whether the object stands.
        let complete = || {
            object.store.complete_upload(object.key(), id, &uploaded.tags, uploaded.bytes, false)
        };
        link.wait_out(link.retry.call(object, complete))?;
        leftovers.completed(object);
    }
    let object =
        targets.first().ok_or_else(|| Error::bug("a run is to be written nowhere"))?.clone();
    Ok(RunObject { object, index: Arc::new(index) })
}

/// Writes a spill of about `bytes`: sees first that the disk has room, and where it is full all the
/// same cleans up and writes once more. Blocking.
pub(super) fn to_spill_disk<T>(
    task: &Task,
    target: &Object,
    bytes: u64,
    mut write: impl FnMut() -> Result<T>,
) -> Result<T> {
    let spills = &task.context.spills;
    let _room = spills.ensure_room(bytes)?;
    let full = |error: &Error| error.kind == ErrorKind::Exhausted;
    let (policy, mut tries) = (task.link.retry.policy(retry::Trouble::Disk).clone(), 1);
    loop {
        match write() {
            Err(error) if full(&error) && policy.allows(tries, 0) => {
                tracing::warn!(%error, "the disk of the spills is full: cleaning up, then once \
                    more");
                task.link.wait_out(async {
                    task.temporary.remove(target).await;
                    Ok(())
                })?;
                spills.clean();
                tries += 1;
            }
            Err(error) if full(&error) => {
                let why = format!("disk full: {}; {LARGER_DISK}", error.message);
                return Err(Error::exhausted(why));
            }
            written => return written,
        }
    }
}

/// Opens an upload and notes it. Not cut short by a cancel: an upload that nobody noted would stay
/// for ever.
pub(super) async fn open_upload(
    link: &Link,
    object: &Object,
    leftovers: &Leftovers,
) -> Result<String> {
    link.check()?;
    let upload = link.retry.call(object, || object.store.open_upload(object.key())).await?;
    leftovers.opened(object, &upload);
    Ok(upload)
}

/// The memory of a merge, divided between what it reads and what it writes.
#[derive(Debug, Clone, Copy)]
pub(super) struct MergeMemory {
    pub(super) windows: MergePlan,
    pub(super) parts: PartsPlan,
    /// Whether the memory of the slot's sorter is part of it.
    pub(super) whole_slot: bool,
}

impl MergeMemory {
    /// For a merge of `pieces` of `from` into an object of about `object_bytes` of `to`. Takes the
    /// whole slot where its I/O share is not enough.
    ///
    /// # Errors
    /// `NeedsMemory` where even two of the pieces hold records that are too long for it.
    pub(super) fn of(
        lease: &mut Lease,
        from: &Scheme,
        pieces: &[Piece],
        to: &Scheme,
        object_bytes: u64,
    ) -> Result<Self> {
        let blocks: Vec<usize> = pieces
            .iter()
            .map(|piece| piece.block_payload_max as usize + BLOCK_HEADER_BYTES)
            .collect();
        let largest = blocks.iter().copied().max().unwrap_or(0);
        let (from, to) = (lease.budget().sizes(from), lease.budget().sizes(to));
        let good = MergePlan::good_bytes(from, &blocks);
        let grown = if largest > LONG_RECORD_BYTES { 2 * largest } else { 0 };
        let memory = lease.memory_for(good.saturating_mul(5) / 3 + grown);
        let parts = PartsPlan::of(to, object_bytes, memory.saturating_sub(grown) / 5 * 2)
            .with_blocks_of(largest);
        let left = memory.saturating_sub(parts.bytes(largest));
        let windows = MergePlan::of(from, &blocks, left);
        if grown > 0 && windows.least_bytes > left {
            let needed = windows.least_bytes + parts.bytes(largest);
            let what = format!("merging records of up to {largest} bytes");
            return Err(lease
                .budget()
                .needs_memory(&what, needed, |budget| budget.slot_bytes >= needed));
        }
        Ok(Self { windows, parts, whole_slot: memory > lease.io_bytes() })
    }
}

/// Merges sources of one partition, in the order of their runs, into `out`. Blocking.
pub(super) fn merge_sources<O: RecordSink<Error = Error>>(
    link: &Link,
    order: &Order,
    bounds: Bounds<'_>,
    sources: &[Source],
    windows: WindowsPlan,
    progress: Option<&Arc<AtomicU64>>,
    out: &mut O,
) -> Result<Tally> {
    let inputs = sources.iter().map(|source| {
        Ok(MergeInput {
            windows: PieceWindows::open(link, source, windows, progress.cloned())?,
            piece: source.piece,
        })
    });
    merge(order, bounds, inputs.collect::<Result<_>>()?, out)
}

/// The windows of one source, from whichever of its copies holds. What does not hold is read once
/// more before the next copy is tried, so that it can be said whose fault it was. Only when every
/// copy has failed twice at one place is the run damaged.
struct PieceWindows {
    link: Link,
    source: Source,
    plan: WindowsPlan,
    progress: Option<Arc<AtomicU64>>,
    /// Which copy is read.
    copy: usize,
    prefetch: Prefetch,
    /// Bytes of the piece that were handed over.
    at: u64,
    trouble: Trouble,
    troubles: u32,
}

/// What went wrong at one place of a piece.
#[derive(Default)]
struct Trouble {
    /// Bytes of the piece before it.
    at: u64,
    /// Reads that failed there since the last that did not.
    reads: u32,
    /// Of the copy that is read now.
    of_copy: u32,
    /// The error of a copy whose store did not answer: that copy may be sound.
    away: Option<Error>,
}

/// Reads of one place of one copy before the next copy is tried.
const READS_OF_COPY: u32 = 2;
/// Places of one piece at which reads may fail; beyond that nothing of it can be relied on.
const TROUBLES_MAX: u32 = 100;

impl PieceWindows {
    fn open(
        link: &Link,
        source: &Source,
        plan: WindowsPlan,
        progress: Option<Arc<AtomicU64>>,
    ) -> Result<Self> {
        let prefetch = read_copy(link, source, 0, 0, plan, progress.clone())?;
        let (link, source) = (link.clone(), source.clone());
        Ok(Self {
            link,
            source,
            plan,
            progress,
            copy: 0,
            prefetch,
            at: 0,
            trouble: Trouble::default(),
            troubles: 0,
        })
    }

    /// Decides where to read on after a read from `at` failed or gave what does not hold, and
    /// begins there. `false` where nothing is left to try.
    fn try_again(&mut self, at: u64, reads_of_copy: u32, why: &Error) -> Result<bool> {
        if self.trouble.reads > 0 && self.trouble.at != at {
            self.settle();
        }
        if !matches!(why.kind, ErrorKind::Corrupt | ErrorKind::NotFound) {
            self.trouble.away = Some(why.clone());
        }
        self.troubles += 1;
        if self.troubles > TROUBLES_MAX {
            return Ok(false);
        }
        self.trouble.at = at;
        self.trouble.reads += 1;
        self.trouble.of_copy += 1;
        let copies = self.source.copies.len();
        if self.trouble.of_copy >= reads_of_copy {
            if self.trouble.reads >= READS_OF_COPY * copies as u32 || copies == 1 {
                return Ok(false);
            }
            let failed = self.copy;
            self.copy = (self.copy + 1) % copies;
            self.trouble.of_copy = 0;
            // Whatever the first copy was short of, both reads of this one are its own.
            self.trouble.reads = self.trouble.reads.max(READS_OF_COPY);
            let count = Counters::count(&self.link.findings.counters.from_replica);
            let (from, to) = (&self.source.copies[failed], &self.source.copies[self.copy]);
            tracing::warn!(%from, %to, error = %why, count, "reading a run from its other copy");
            if let Some(run) = &self.source.run {
                let (bad, good) = (&self.source.copies[failed], &self.source.copies[self.copy]);
                self.link.findings.copy_failed(run, bad, good, why);
            }
        } else {
            tracing::warn!(run = %self.source.copies[self.copy], error = %why, "reading a piece of \
                a run once more");
        }
        self.at = at;
        // Each copy was given its time: now the store is waited for as any other.
        if self.trouble.reads > READS_OF_COPY {
            self.source.copies[self.copy].patience_ms = None;
        }
        self.prefetch =
            read_copy(&self.link, &self.source, self.copy, at, self.plan, self.progress.clone())?;
        Ok(true)
    }

    /// The trouble is behind: what the second read of a copy mended had been damaged on its way.
    fn settle(&mut self) {
        if self.trouble.of_copy > 0 {
            let count = Counters::count(&self.link.findings.counters.read_again);
            let run = &self.source.copies[self.copy];
            tracing::warn!(%run, cause = ?DamageCause::Network, count, "bytes of a run were \
                damaged on their way, and read well again");
        }
        self.trouble = Trouble::default();
    }

    /// Every copy has failed: the run is damaged, if it is one, and if its stores answered.
    fn damaged(&self, error: Error) -> Error {
        if let Some(away) = &self.trouble.away {
            return away.clone();
        }
        let error = missing_is_corrupt(error, &self.source.copies[self.copy]);
        match &self.source.run {
            Some(run) if error.kind == ErrorKind::Corrupt => {
                self.link.findings.run_damaged(run, DamageCause::Store, error)
            }
            _ => error,
        }
    }
}

/// Begins to read a piece from `at` on.
fn read_copy(
    link: &Link,
    source: &Source,
    copy: usize,
    at: u64,
    plan: WindowsPlan,
    progress: Option<Arc<AtomicU64>>,
) -> Result<Prefetch> {
    let object = source
        .copies
        .get(copy)
        .ok_or_else(|| Error::bug("a piece of a run that lies nowhere"))?
        .clone();
    let range = source.piece.offset + at..source.piece.offset + source.piece.len;
    Ok(Prefetch::of(link, Span { object, range, access: Access::Once }, plan).counting(progress))
}

impl Windows for PieceWindows {
    type Buf = Bytes;
    type Error = Error;

    fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            let error = match self.prefetch.next_span() {
                Ok(window) => {
                    match &window {
                        Some(window) => self.at += window.len() as u64,
                        None => self.settle(),
                    }
                    return Ok(window);
                }
                Err(error) => error,
            };
            // A store that is away has been waited for already.
            let reads_of_copy = match error.kind {
                ErrorKind::Fenced | ErrorKind::Bug => return Err(error),
                ErrorKind::NotFound | ErrorKind::Corrupt => READS_OF_COPY,
                _ => 1,
            };
            if !self.try_again(self.at, reads_of_copy, &error)? {
                return Err(self.damaged(error.at(format!("the run {}", self.source.place()))));
            }
        }
    }

    fn rewind(&mut self, at: u64) -> Result<bool> {
        let run = &self.source.copies[self.copy];
        let error = Error::corrupt(format!(
            "the run {run}: a block from byte {} on does not hold",
            self.source.piece.offset + at
        ));
        if self.try_again(at, READS_OF_COPY, &error)? {
            return Ok(true);
        }
        Err(self.damaged(error))
    }
}

/// Merges whole runs, partition by partition, into an open run; returns what was dropped here.
/// Blocking.
pub(super) fn merge_runs(
    link: &Link,
    order: &Order,
    splitters: &[Splitter],
    runs: &[RunObject],
    windows: WindowsPlan,
    out: &mut RunWriter<PartSink>,
) -> Result<Sums> {
    let mut dropped = Sums::default();
    for partition in 0..=splitters.len() {
        out.begin_partition()?;
        let sources = sources_of(runs, partition);
        dropped.merge(
            &merge_sources(
                link,
                &order.after(out.written().records),
                bounds(splitters, partition),
                &sources,
                windows,
                None,
                out,
            )?
            .dropped,
        );
    }
    out.add_dropped(&dropped);
    Ok(dropped)
}

/// The pieces of a partition that hold anything, in the order of their runs.
fn sources_of(runs: &[RunObject], partition: usize) -> Vec<Source> {
    let pieces = runs.iter().filter_map(|run| {
        let piece =
            u32::try_from(partition).ok().and_then(|partition| run.index.piece(partition))?;
        Some(Source::of_spill(run, piece))
    });
    pieces.filter(|source| source.piece.len > 0).collect()
}

/// A spill that turns out damaged is this worker's own trouble: another try makes it anew. As
/// `Corrupt` it would blame a committed run. One that is out of order may be so by failing memory,
/// before its checksums were made; where it is our own bug, the task runs out of tries.
pub(super) fn spill_error(error: Error) -> Error {
    match error.kind {
        ErrorKind::Corrupt | ErrorKind::NotFound | ErrorKind::Bug => {
            Error::retry(format!("a spill on the worker's disk is damaged: {}", error.message))
        }
        _ => error,
    }
}

/// After a merge failed with nothing found: reads the sources one by one. One whose blocks all
/// hold, but not together, was written wrong. If all are sound, the bytes were damaged on their
/// way, and another try helps.
pub(super) fn find_damaged(
    link: &Link,
    order: &Order,
    bounds: Bounds<'_>,
    sources: &[Source],
    windows: WindowsPlan,
    error: Error,
) -> Error {
    // A run out of order is a bug of its writer, not of this reader.
    if !matches!(error.kind, ErrorKind::Corrupt | ErrorKind::Bug) || link.findings.has_any() {
        return error;
    }
    for source in sources {
        let alone = std::slice::from_ref(source);
        match merge_sources(link, order, bounds, alone, windows, None, &mut Nowhere) {
            Err(found) if matches!(found.kind, ErrorKind::Corrupt | ErrorKind::Bug) => {
                let found =
                    Error::corrupt(format!("the run {}: {}", source.place(), found.message));
                return match &source.run {
                    Some(run) => link.findings.run_damaged(run, DamageCause::Writer, found),
                    None => found,
                };
            }
            Err(found) if found.kind == ErrorKind::Fenced => return found,
            _ => {}
        }
    }
    match error.kind {
        ErrorKind::Corrupt => Error::retry(format!(
            "bytes of a run were damaged on their way, but read well again: {}",
            error.message
        )),
        _ => error,
    }
}

/// Takes records and does nothing with them.
pub(super) struct Nowhere;

impl RecordSink for Nowhere {
    type Error = Error;

    fn push(&mut self, _stored: &[u8], _hash: u64) -> Result<(), Error> {
        Ok(())
    }
}

/// An error of the sorter with the object and the offset that its global position means (P9).
pub(super) fn locate(job: &Job, error: KernelError) -> Error {
    let position = match &error {
        KernelError::BadRecord { position, .. }
        | KernelError::RecordTooLong { position, .. }
        | KernelError::Budget { position, .. } => *position,
        _ => return error.into(),
    };
    // Empty objects share their position with the one that follows: the last of them holds the
    // byte.
    let number = job
        .positions
        .partition_point(|&begin| begin <= position)
        .saturating_sub(1)
        .min(job.plan.objects.len().saturating_sub(1));
    let (Some(object), Some(begin)) = (job.plan.objects.get(number), job.positions.get(number))
    else {
        return error.into();
    };
    let offset = position.saturating_sub(*begin);
    let error = match error {
        KernelError::BadRecord { reason, .. } => {
            KernelError::BadRecord { position: offset, reason }
        }
        KernelError::RecordTooLong { limit, .. } => {
            KernelError::RecordTooLong { position: offset, limit }
        }
        KernelError::Budget { needed, budget, .. } => {
            KernelError::Budget { position: offset, needed, budget }
        }
        other => other,
    };
    Error::from(error).at(&object.url)
}
