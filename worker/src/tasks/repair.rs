//! Makes a copy of a run anew from the other one, so that the next reader finds two again. Best
//! effort: within [`TIMEOUT_MS`], and what fails is logged.

use std::sync::Arc;

use muster_kernel::order::Order;
use muster_kernel::run::RunIndex;
use muster_platform::clock;
use muster_platform::store::{Access, PartAt};
use muster_protocol::Result;

use super::findings::BadCopy;
use super::runs::{Nowhere, Source, merge_sources};
use super::{Counters, Task};
use crate::cache::IndexError;
use crate::memory::WindowsPlan;
use crate::transfer::{Span, read};

/// Bound of all repairs of one attempt, whose report waits for them, in milliseconds.
const TIMEOUT_MS: u64 = 30_000;
/// Bytes that are copied at once: the smallest part that every store takes.
const PART_BYTES: u64 = 5 << 20;
/// Memory with which a new copy is read back.
const CHECK_BYTES: usize = 4 << 20;

/// Mends the copies that this attempt has found bad and no other attempt of this worker has mended.
pub(super) async fn all(task: &Arc<Task>, order: &Arc<Order>) {
    let repairs = async {
        for copy in task.link.findings.take_bad_copies() {
            if !task.context.begin_repair(&copy.bad.to_string()) {
                continue;
            }
            match Box::pin(mend(task, order, &copy)).await {
                Ok(()) => {
                    let count = Counters::count(&task.link.findings.counters.repaired);
                    tracing::info!(run = %copy.bad, from = %copy.good, count, "made a copy of a \
                        run anew");
                }
                Err(error) => {
                    tracing::warn!(run = %copy.bad, %error, "cannot make a copy of a run anew");
                }
            }
        }
    };
    if clock::within(&**task.link.retry.clock(), TIMEOUT_MS, repairs).await.is_none() {
        tracing::warn!("making copies of runs anew took too long");
    }
}

async fn mend(task: &Arc<Task>, order: &Arc<Order>, copy: &BadCopy) -> Result<()> {
    let BadCopy { run, bad, good } = copy;
    let of_index = |error: IndexError| match error {
        IndexError::Damaged(_, error) | IndexError::Away(error) => error,
    };
    task.context.cache.read_index(run, good).await.map_err(of_index)?;
    let retry = &task.link.retry;
    let upload = retry.call(bad, || bad.store.open_upload(bad.key())).await?;
    task.temporary.opened(bad, &upload);
    let mut tags = Vec::new();
    for (index, begin) in (0..).zip((0..run.bytes).step_by(PART_BYTES as usize)) {
        let range = begin..(begin + PART_BYTES).min(run.bytes);
        let bytes =
            read(retry, &Span { object: good.clone(), range, access: Access::Once }).await?;
        let at = PartAt { index, offset: begin };
        tags.push(
            retry
                .call(bad, || bad.store.upload_part(bad.key(), &upload, at, bytes.clone()))
                .await?,
        );
    }
    retry
        .call(bad, || bad.store.complete_upload(bad.key(), &upload, &tags, run.bytes, false))
        .await?;
    task.temporary.keep(bad);
    let (index, _) = task.context.cache.read_index(run, bad).await.map_err(of_index)?;
    let (link, order, bad) = (task.link.clone(), order.clone(), bad.clone());
    let reader = link.clone();
    let checked = link.compute(move || {
        let windows = WindowsPlan::scan(bad.url.scheme(), CHECK_BYTES);
        let pieces = RunIndex::pieces(&index).iter().filter(|piece| piece.len > 0);
        for &piece in pieces {
            let source = Source { copies: vec![bad.clone()], piece, run: None };
            merge_sources(&reader, &order, (None, None), &[source], windows, None, &mut Nowhere)?;
        }
        Ok(())
    });
    checked.await
}
