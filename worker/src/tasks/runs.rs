//! What sort and merge share: writing a run as an object, and merging pieces of runs, in rounds where memory does not allow them all at once.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use muster_common::store::{Access, Scheme};
use muster_common::{Error, ErrorKind, Result};
use muster_kernel::error::KernelError;
use muster_kernel::merge::{MergeInput, Windows, merge};
use muster_kernel::order::Order;
use muster_kernel::proof::{Sums, Tally};
use muster_kernel::run::{BLOCK_HEADER_BYTES, Piece, RecordSink, RunIndex, RunWriter};
use muster_kernel::splitters::Splitter;

use crate::cache::{Job, missing_is_corrupt};
use crate::memory::{MergePlan, PartsPlan, WindowsPlan};
use crate::slots::Lease;
use crate::transfer::{Leftovers, Link, Object, PartSink, Prefetch, Span};

/// A run that stands in a store.
#[derive(Clone)]
pub(super) struct RunObject {
    pub(super) object: Object,
    pub(super) index: Arc<RunIndex>,
}

/// A piece of a run, to be merged.
#[derive(Clone)]
pub(super) struct Source {
    pub(super) object: Object,
    pub(super) piece: Piece,
}

/// The splitters below and above a partition.
pub(super) type Bounds<'a> = (Option<&'a Splitter>, Option<&'a Splitter>);

/// The bounds of a partition.
pub(super) fn bounds(splitters: &[Splitter], partition: usize) -> Bounds<'_> {
    (partition.checked_sub(1).and_then(|below| splitters.get(below)), splitters.get(partition))
}

/// Writes one run as an object: opens an upload, lets `fill` write the partitions, completes. Blocking. What was opened stands in `leftovers` from its first moment.
pub(super) fn write_run(
    link: &Link,
    order: &Order,
    object: Object,
    plan: PartsPlan,
    leftovers: &Leftovers,
    fill: impl FnOnce(&mut RunWriter<PartSink>) -> Result<()>,
) -> Result<RunObject> {
    let upload = open_upload(link, &object, leftovers)?;
    let mut writer = RunWriter::new(PartSink::new(link, object.clone(), upload.clone(), plan), order.format());
    fill(&mut writer)?;
    let (index, sink) = writer.finish()?;
    let uploaded = sink.finish()?;
    // Not cut short by a cancel: it must be known whether the object stands.
    let complete = || object.store.complete_upload(object.key(), &upload, &uploaded.tags, uploaded.bytes, false);
    link.handle.block_on(link.retry.call(&object, complete))?;
    leftovers.completed(&object);
    Ok(RunObject { object, index: Arc::new(index) })
}

/// Opens an upload and notes it. Not cut short by a cancel: an upload that nobody noted would stay for ever.
pub(super) fn open_upload(link: &Link, object: &Object, leftovers: &Leftovers) -> Result<String> {
    link.check()?;
    let upload = link.handle.block_on(link.retry.call(object, || object.store.open_upload(object.key())))?;
    leftovers.opened(object, &upload);
    Ok(upload)
}

/// The memory of a merge, divided between what it reads and what it writes.
#[derive(Debug, Clone, Copy)]
pub(super) struct MergeMemory {
    pub(super) windows: MergePlan,
    pub(super) parts: PartsPlan,
}

impl MergeMemory {
    /// For a merge of `pieces` of `from` into an object of about `object_bytes` of `to`. Takes the whole slot where its I/O share is not enough.
    pub(super) fn of(lease: &mut Lease, from: &Scheme, pieces: &[Piece], to: &Scheme, object_bytes: u64) -> Self {
        let block_bytes =
            pieces.iter().map(|piece| piece.block_payload_max as usize + BLOCK_HEADER_BYTES).max().unwrap_or(0);
        let good = MergePlan::good_bytes(from, pieces.len(), block_bytes);
        let memory = lease.memory_for(good.saturating_mul(5) / 3);
        let parts = PartsPlan::of(to, object_bytes, memory / 5 * 2);
        let windows = MergePlan::of(from, pieces.len(), block_bytes, memory.saturating_sub(parts.bytes()));
        Self { windows, parts }
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
        let range = source.piece.offset..source.piece.offset + source.piece.len;
        let prefetch = Prefetch::of(link, Span { object: source.object.clone(), range, access: Access::Once }, windows);
        let prefetch = prefetch.counting(progress.cloned());
        MergeInput { windows: PieceWindows { object: source.object.clone(), prefetch }, piece: source.piece }
    });
    merge(order, bounds, inputs.collect(), out)
}

/// The windows of one source. That it is not there is damage, as is every other loss.
struct PieceWindows {
    object: Object,
    prefetch: Prefetch,
}

impl Windows for PieceWindows {
    type Buf = Bytes;
    type Error = Error;

    fn next(&mut self) -> Result<Option<Bytes>> {
        self.prefetch.next_span().map_err(|e| missing_is_corrupt(e, &self.object))
    }
}

/// Merges whole runs, partition by partition, into an open run; returns what `-u` dropped here. Blocking.
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
        dropped.merge(&merge_sources(link, order, bounds(splitters, partition), &sources, windows, None, out)?.dropped);
    }
    out.add_dropped(&dropped);
    Ok(dropped)
}

/// The pieces of a partition that hold anything, in the order of their runs.
fn sources_of(runs: &[RunObject], partition: usize) -> Vec<Source> {
    let pieces = runs.iter().filter_map(|run| {
        let piece = u32::try_from(partition).ok().and_then(|partition| run.index.piece(partition))?;
        Some(Source { object: run.object.clone(), piece })
    });
    pieces.filter(|source| source.piece.len > 0).collect()
}

/// A spill that turns out damaged is this worker's own trouble: another try makes it anew. As `Corrupt` it would blame a committed run.
pub(super) fn spill_error(error: Error) -> Error {
    match error.kind {
        ErrorKind::Corrupt | ErrorKind::NotFound => {
            Error::retry(format!("a spill on the worker's disk is damaged: {}", error.message))
        }
        _ => error,
    }
}

/// After a merge failed: reads the sources one by one and names the one that is damaged. If none is, the bytes were damaged on their way, and another try helps.
pub(super) fn find_damaged(
    link: &Link,
    order: &Order,
    bounds: Bounds<'_>,
    sources: &[Source],
    windows: WindowsPlan,
    error: Error,
) -> Error {
    if error.kind != ErrorKind::Corrupt {
        return error;
    }
    for source in sources {
        let alone = std::slice::from_ref(source);
        match merge_sources(link, order, bounds, alone, windows, None, &mut Nowhere) {
            Err(found) if found.kind == ErrorKind::Corrupt => return found.at(format!("the run {}", source.object)),
            Err(found) if found.kind == ErrorKind::Fenced => return found,
            _ => {}
        }
    }
    Error::retry(format!("bytes of a run were damaged on their way, but read well again: {}", error.message))
}

/// Takes records and does nothing with them.
struct Nowhere;

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
    // Empty objects share their position with the one that follows: the last of them holds the byte.
    let number = job
        .positions
        .partition_point(|&begin| begin <= position)
        .saturating_sub(1)
        .min(job.plan.objects.len().saturating_sub(1));
    let (Some(object), Some(begin)) = (job.plan.objects.get(number), job.positions.get(number)) else {
        return error.into();
    };
    let offset = position.saturating_sub(*begin);
    let error = match error {
        KernelError::BadRecord { reason, .. } => KernelError::BadRecord { position: offset, reason },
        KernelError::RecordTooLong { limit, .. } => KernelError::RecordTooLong { position: offset, limit },
        KernelError::Budget { needed, budget, .. } => KernelError::Budget { position: offset, needed, budget },
        other => other,
    };
    Error::from(error).at(&object.url)
}
