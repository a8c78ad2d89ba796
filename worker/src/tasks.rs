//! What an attempt does, from its command to its outcome. Each phase has a module; here is what they share: the context of the worker, the frame around every
//! attempt (its end is always an [`Outcome`], and what must not stay behind is removed), and the check that the input is still what was pinned.

pub(crate) mod merge;
pub(crate) mod runs;
pub(crate) mod sample;
pub(crate) mod sort;

#[cfg(test)]
mod tests;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::{FutureExt, StreamExt, TryStreamExt};
use muster_common::names;
use muster_common::store::{BlobUrl, Stores};
use muster_common::wire::{Outcome, RunAttempt, Work};
use muster_common::{Error, Result};
use tokio::sync::{Semaphore, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::cache::{Cache, Job};
use crate::memory::Budget;
use crate::retry::Retry;
use crate::slots::Slots;
use crate::transfer::{Leftovers, Link, Object};

/// Objects that are looked at side by side.
const HEADS_IN_FLIGHT: usize = 16;
/// Files that are read side by side for each attempt.
const DISK_READS_PER_SLOT: usize = 4;

/// What all attempts of a worker share.
pub(crate) struct Context {
    pub(crate) stores: Stores,
    pub(crate) retry: Retry,
    pub(crate) cache: Cache,
    pub(crate) slots: Arc<Slots>,
    /// Where spills go: a folder of this worker's own disk, used by nothing else.
    pub(crate) spills: BlobUrl,
    disk: Arc<Semaphore>,
}

impl Context {
    /// The context of a worker with this much memory.
    pub(crate) fn new(stores: Stores, retry: Retry, budget: Budget, slots: u32, spills: BlobUrl) -> Self {
        let cache = Cache::new(stores.clone(), retry.clone(), budget.cache_bytes);
        let disk = Arc::new(Semaphore::new(DISK_READS_PER_SLOT * slots.max(1) as usize));
        Self { stores, retry, cache, slots: Arc::new(Slots::new(budget, slots)), spills, disk }
    }
}

/// How far an attempt is.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    pub(crate) bytes_done: Arc<AtomicU64>,
    pub(crate) bytes_total: AtomicU64,
}

/// The meeting of a merge with the leader: it says that its upload is open, and goes on when that is recorded.
pub(crate) struct Gate {
    pub(crate) opened: oneshot::Sender<String>,
    pub(crate) proceed: oneshot::Receiver<()>,
}

/// One attempt at work.
pub(crate) struct Task {
    pub(crate) context: Arc<Context>,
    pub(crate) run: RunAttempt,
    pub(crate) link: Link,
    pub(crate) progress: Arc<Progress>,
    /// What counts if the attempt is committed, and is removed if not.
    pub(crate) results: Leftovers,
    /// What is removed in any case.
    temporary: Leftovers,
}

impl Task {
    /// An attempt, ready to run in the current runtime.
    pub(crate) fn new(
        context: Arc<Context>,
        run: RunAttempt,
        cancel: CancellationToken,
        progress: Arc<Progress>,
    ) -> Self {
        let link = Link {
            handle: tokio::runtime::Handle::current(),
            cancel,
            retry: context.retry.clone(),
            buffers: context.stores.buffers().clone(),
            disk: context.disk.clone(),
        };
        Self { context, run, link, progress, results: Leftovers::default(), temporary: Leftovers::default() }
    }

    /// Runs to the end. A failed or cancelled attempt has removed what it made; of a successful one [`Task::results`] tell what stands.
    pub(crate) async fn conclude(self: &Arc<Self>, gate: Gate) -> Outcome {
        let span = tracing::info_span!("attempt", job = %self.run.job, phase = %self.run.attempt.task.phase, task = %self.run.attempt.task,
            attempt = %self.run.attempt, epoch = %self.run.epoch);
        async {
            let result = AssertUnwindSafe(self.work(gate)).catch_unwind().await;
            let result = result.unwrap_or_else(|_| Err(Error::bug(format!("attempt {} panicked", self.run.attempt))));
            self.temporary.remove_all().await;
            self.prune_spills().await;
            match result {
                Ok(outcome) => outcome,
                Err(error) => {
                    self.results.remove_all().await;
                    tracing::warn!(%error, kind = ?error.kind, "the attempt failed");
                    Outcome::Failed { error }
                }
            }
        }
        .instrument(span)
        .await
    }

    async fn work(self: &Arc<Self>, gate: Gate) -> Result<Outcome> {
        match &self.run.work {
            Work::Sample => self.link.or_cancelled(sample::run(self)).await,
            Work::Sort { splitters } => sort::run(self, splitters.as_ref()).await,
            Work::Merge { splitters, runs } => merge::run(self, splitters.as_ref(), runs, gate).await,
        }
    }

    /// Runs CPU work on a thread of its own, with the slot's memory.
    async fn on_cpu<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self, &mut crate::slots::Lease) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let task = self.clone();
        let mut lease = self.link.or_cancelled(self.context.slots.lease()).await?;
        let span = tracing::Span::current();
        let joined = tokio::task::spawn_blocking(move || span.in_scope(|| work(&task, &mut lease))).await;
        joined.map_err(|e| Error::bug(format!("the work of attempt {} did not end: {e}", self.run.attempt)))?
    }

    /// The n-th spill of this attempt, in a store that is only this worker's.
    async fn spill_root(&self) -> Result<Object> {
        Object::open(&self.context.stores, self.context.spills.join(&self.run.attempt.to_string())).await
    }

    async fn prune_spills(&self) {
        let pruned = async {
            let root = self.spill_root().await?;
            root.store.prune(root.key()).await
        };
        if let Err(error) = pruned.await {
            tracing::warn!(%error, "cannot remove the folder of an attempt's spills");
        }
    }

    /// The place of this attempt's own object in the job's scratch.
    fn scratch_url(&self, job: &Job, relative: &str) -> Result<BlobUrl> {
        Ok(job.plan.scratch.parse::<BlobUrl>()?.join(relative))
    }

    /// The input bytes of this attempt's split.
    fn split<'a>(&self, job: &'a Job) -> Result<&'a [muster_kernel::proof::Interval]> {
        let index = self.run.attempt.task.index;
        let split = job.plan.splits.get(index as usize);
        split
            .map(Vec::as_slice)
            .ok_or_else(|| Error::invalid(format!("the plan of job {} has no split {index}", job.plan.job)))
    }

    /// Opens the pinned objects of the split, in its order, and checks that they are still what was pinned.
    async fn pinned_objects(&self, job: &Job) -> Result<Vec<Object>> {
        let mut objects: Vec<Object> = Vec::new();
        for interval in self.split(job)? {
            objects.push(Object::open(&self.context.stores, self.pinned(job, interval.object)?.url.parse()?).await?);
        }
        self.check_pinned(job, &objects).await?;
        Ok(objects)
    }

    fn pinned<'a>(&self, job: &'a Job, object: u32) -> Result<&'a muster_common::plan::PinnedObject> {
        job.plan
            .objects
            .get(object as usize)
            .ok_or_else(|| Error::invalid(format!("the plan of job {} has no object {object}", job.plan.job)))
    }

    /// Compares size and version of the split's objects with the plan.
    async fn check_pinned(&self, job: &Job, objects: &[Object]) -> Result<()> {
        let pairs: Vec<(u32, Object)> =
            self.split(job)?.iter().map(|interval| interval.object).zip(objects.iter().cloned()).collect();
        let checks = futures::stream::iter(pairs).map(|(number, object)| async move {
            let pinned = self.pinned(job, number)?;
            let changed = |how: String| Error::invalid(format!("input changed during the job: {}: {how}", pinned.url));
            let meta = match self.context.retry.call(&object, || object.store.head(object.key())).await {
                Ok(meta) => meta,
                Err(error) if error.kind == muster_common::ErrorKind::NotFound => {
                    return Err(changed("it is gone".to_owned()));
                }
                Err(error) => return Err(error),
            };
            if (meta.bytes, &meta.version) != (pinned.bytes, &pinned.version) {
                return Err(changed(format!(
                    "{} bytes, version {} were planned; {} bytes, version {} are there",
                    pinned.bytes, pinned.version, meta.bytes, meta.version
                )));
            }
            Ok(())
        });
        checks.buffer_unordered(HEADS_IN_FLIGHT).try_collect::<()>().await
    }

    fn expect_bytes(&self, bytes: u64) {
        self.progress.bytes_total.store(bytes, Ordering::Relaxed);
    }
}

/// The path of an attempt's run below the job's scratch.
fn run_path(task: &Task) -> String {
    names::run_path(&task.run.attempt)
}
