//! What an attempt does, from its command to its outcome. Each phase has a module; here is what
//! they share: the context of the worker, the frame around every attempt (its end is always an
//! [`Outcome`], and what must not stay behind is removed), and the check that the input is still
//! what was pinned.

mod bad_records;
mod findings;
pub(crate) mod merge;
mod repair;
pub(crate) mod runs;
pub(crate) mod sample;
pub(crate) mod sort;

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures::{FutureExt, StreamExt, TryStreamExt};
use muster_kernel::proof::Interval;
use muster_platform::faults::Scope;
use muster_platform::retry::{RecoveryStats, Retry};
use muster_platform::store::BlobUrl;
use muster_platform::stores::Stores;
use muster_protocol::ids::JobId;
use muster_protocol::names;
use muster_protocol::wire::{Mended, Outcome, RunAttempt, Work};
use muster_protocol::{Error, ErrorKind, Result};
use tokio::sync::{Semaphore, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::cache::{Cache, Job, Jobs};
use crate::crew::Crew;
use crate::memory::Budget;
use crate::slots::{Slots, SorterLimits};
use crate::spills::Spills;
use crate::transfer::{Leftovers, Link, Object};

pub(crate) use findings::{Counters, Findings};

/// Jobs whose retries are counted apart at once; those of older ones remain in the worker's sum.
const JOBS_COUNTED_MAX: usize = 64;
/// Repaired copies of runs that are remembered.
const REPAIRS_KNOWN_MAX: usize = 1024;
/// Objects that are looked at side by side.
const HEADS_IN_FLIGHT: usize = 16;
/// How long one copy of a run is waited for unless settings say otherwise, in milliseconds.
const REPLICA_AFTER_MS: u64 = 10_000;
/// Files that are read side by side for each attempt.
const DISK_READS_PER_SLOT: usize = 4;

/// The retries of one job, which count apart.
struct JobRetry {
    job: JobId,
    retry: Retry,
    /// The counts that the leader was last told.
    told: RecoveryStats,
}

/// What all attempts of a worker share.
pub struct Context {
    crew: Arc<dyn Crew>,
    pub(crate) stores: Stores,
    pub(crate) retry: Retry,
    pub(crate) cache: Cache,
    pub(crate) slots: Arc<Slots>,
    pub(crate) spills: Spills,
    /// The longest record that is one.
    pub(crate) record_bytes_max: u64,
    /// The retries of each of the jobs that this worker saw last.
    jobs: Mutex<VecDeque<JobRetry>>,
    pub(crate) counters: Arc<Counters>,
    /// URLs of copies of runs that were or are made anew, the oldest first.
    repaired: Mutex<VecDeque<String>>,
    disk: Arc<Semaphore>,
    /// How long one copy of a run is waited for where there is another.
    pub(crate) replica_after_ms: u64,
}

impl Context {
    /// The context of a worker with this much memory.
    pub fn new(
        crew: Arc<dyn Crew>,
        stores: Stores,
        retry: Retry,
        budget: Budget,
        slots: u32,
        spills: Spills,
    ) -> Self {
        Self::limited(crew, stores, retry, budget, slots, spills, SorterLimits::default())
    }

    /// The same with other limits.
    pub(crate) fn limited(
        crew: Arc<dyn Crew>,
        stores: Stores,
        retry: Retry,
        budget: Budget,
        slots: u32,
        spills: Spills,
        limits: SorterLimits,
    ) -> Self {
        let cache = Cache::new(stores.clone(), retry.clone(), budget.cache_bytes);
        let disk = Arc::new(Semaphore::new(DISK_READS_PER_SLOT * slots.max(1) as usize));
        let slots = Arc::new(Slots::new(budget, slots, limits, stores.buffers().clone()));
        let record_bytes_max = limits.record_bytes_max;
        Self {
            crew,
            stores,
            retry,
            cache,
            slots,
            spills,
            record_bytes_max,
            jobs: Mutex::default(),
            counters: Arc::default(),
            repaired: Mutex::default(),
            disk,
            replica_after_ms: REPLICA_AFTER_MS,
        }
    }

    /// The same, with the jobs that others of this process know.
    pub(crate) fn sharing(mut self, jobs: Jobs) -> Self {
        self.cache = self.cache.sharing(jobs);
        self
    }

    /// The same with another patience with the copies of runs.
    #[must_use]
    pub fn waiting_for_copies(mut self, replica_after_ms: u64) -> Self {
        self.replica_after_ms = replica_after_ms;
        self
    }

    /// Whether a copy of a run is to be made anew by who asks: nobody here has tried yet.
    fn begin_repair(&self, url: &str) -> bool {
        let mut repaired = self.repaired.lock().unwrap_or_else(PoisonError::into_inner);
        if repaired.iter().any(|known| known == url) {
            return false;
        }
        if repaired.len() >= REPAIRS_KNOWN_MAX {
            repaired.pop_front();
        }
        repaired.push_back(url.to_owned());
        true
    }

    /// The retries of one job, which count apart.
    pub(crate) fn retry_of(&self, job: &JobId) -> Retry {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = jobs.iter().find(|known| known.job == *job) {
            return known.retry.clone();
        }
        if jobs.len() >= JOBS_COUNTED_MAX {
            jobs.pop_front();
        }
        let retry = self.retry.counting_apart();
        jobs.push_back(JobRetry {
            job: job.clone(),
            retry: retry.clone(),
            told: RecoveryStats::default(),
        });
        retry
    }

    /// What was retried for which jobs, where that has changed since it was last asked for.
    pub(crate) fn recoveries_news(&self) -> Vec<(JobId, RecoveryStats)> {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let news = jobs.iter_mut().filter_map(|known| {
            let stats = known.retry.stats();
            if stats == known.told {
                return None;
            }
            known.told.clone_from(&stats);
            Some((known.job.clone(), stats))
        });
        news.collect()
    }

    /// What went wrong on the way and was mended, for people.
    pub fn mended(&self, hedged_reads: u64) -> Mended {
        self.counters.mended(hedged_reads)
    }

    /// A new leader knows nothing of what the former one was told.
    pub(crate) fn tell_recoveries_anew(&self) {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.iter_mut().for_each(|known| known.told = RecoveryStats::default());
    }
}

fn scope(run: &RunAttempt) -> Scope {
    Scope { phase: Some(run.attempt.task.phase), task: Some(run.attempt.task.index) }
}

/// How far an attempt is.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// What was read of the input, or of the runs.
    pub(crate) bytes_read: Arc<AtomicU64>,
    /// What stands of the run, or of the part.
    pub(crate) bytes_written: Arc<AtomicU64>,
    bytes_total: AtomicU64,
}

impl Progress {
    /// A byte is done when it is written; to have read it is half of that.
    pub(crate) fn bytes_done(&self) -> u64 {
        let total = self.bytes_total();
        let so_far = |bytes: &AtomicU64| bytes.load(Ordering::Relaxed).min(total);
        so_far(&self.bytes_read).midpoint(so_far(&self.bytes_written))
    }

    /// What is to be done in all; 0 until that is known.
    pub(crate) fn bytes_total(&self) -> u64 {
        self.bytes_total.load(Ordering::Relaxed)
    }

    /// All of it is to be done once more.
    fn begin_anew(&self) {
        self.bytes_read.store(0, Ordering::Relaxed);
        self.bytes_written.store(0, Ordering::Relaxed);
    }
}

/// The meeting of a merge with the leader: it says that its upload is open, and goes on when that
/// is recorded.
pub(crate) struct Gate {
    pub(crate) opened: oneshot::Sender<String>,
    pub(crate) proceed: oneshot::Receiver<()>,
}

/// One attempt at work.
pub(crate) struct Task {
    pub(crate) context: Arc<Context>,
    /// The stores as this attempt uses them.
    pub(crate) stores: Stores,
    pub(crate) run: RunAttempt,
    pub(crate) link: Link,
    pub(crate) progress: Arc<Progress>,
    /// What counts if the attempt is committed, and is removed if not.
    pub(crate) results: Leftovers,
    /// What is removed in any case.
    temporary: Leftovers,
}

impl Task {
    /// An attempt, ready to run.
    pub(crate) fn new(
        context: Arc<Context>,
        run: RunAttempt,
        cancel: CancellationToken,
        progress: Arc<Progress>,
    ) -> Self {
        let link = Link {
            crew: context.crew.clone(),
            cancel,
            retry: context.retry_of(&run.job),
            buffers: context.stores.buffers().clone(),
            disk: context.disk.clone(),
            findings: Findings::new(context.counters.clone()),
        };
        let stores = context.stores.of_attempt(scope(&run));
        let leftovers = || Leftovers::new(context.retry.clock().clone());
        let (results, temporary) = (leftovers(), leftovers());
        Self { context, stores, run, link, progress, results, temporary }
    }

    /// Runs to the end. A failed or cancelled attempt has removed what it made; of a successful one
    /// [`Task::results`] tell what stands.
    pub(crate) async fn conclude(self: &Arc<Self>, gate: Gate) -> Outcome {
        let span = tracing::info_span!(
            "attempt",
            job = %self.run.job,
            phase = %self.run.attempt.task.phase,
            task = %self.run.attempt.task,
            attempt = %self.run.attempt,
            epoch = %self.run.epoch
        );
        async {
            let spills = self.run.attempt.to_string();
            self.context.spills.begin(&spills);
            let result = AssertUnwindSafe(self.work(gate)).catch_unwind().await;
            let result = result.unwrap_or_else(|_| {
                Err(Error::bug(format!("attempt {} panicked", self.run.attempt)))
            });
            self.temporary.remove_all().await;
            self.prune_spills().await;
            self.context.spills.end(&spills);
            match result {
                Ok(outcome) => outcome,
                Err(error) => {
                    self.results.remove_all().await;
                    tracing::warn!(%error, kind = ?error.kind, "the attempt failed");
                    let found =
                        self.link.findings.take().filter(|_| error.kind != ErrorKind::Fenced);
                    found.unwrap_or(Outcome::Failed { error })
                }
            }
        }
        .instrument(span)
        .await
    }

    async fn work(self: &Arc<Self>, gate: Gate) -> Result<Outcome> {
        self.follow_settings().await?;
        self.step("begin").await?;
        let outcome = self.work_undisturbed(gate).await?;
        self.step("end").await?;
        Ok(outcome)
    }

    /// Tries again as the job's own settings say. They are in its plan, which has to be read first.
    async fn follow_settings(&self) -> Result<()> {
        let job = self.link.or_cancelled(self.context.cache.job(&self.run.plan)).await?;
        if let Err(error) = self.link.retry.follow(job.plan.settings.as_deref()) {
            // They were sound when the job was taken on; a build that knows them no longer goes by
            // its own.
            tracing::warn!(%error, "the job's own settings are passed over");
        }
        Ok(())
    }

    /// A point at which faults can be injected.
    async fn step(&self, step: &'static str) -> Result<()> {
        match self.stores.faults() {
            Some(faults) => self.link.or_cancelled(faults.step(step, scope(&self.run))).await,
            None => Ok(()),
        }
    }

    async fn work_undisturbed(self: &Arc<Self>, gate: Gate) -> Result<Outcome> {
        match &self.run.work {
            Work::Sample { .. } => self.link.or_cancelled(sample::run(self)).await,
            Work::Sort { splitters, .. } => sort::run(self, splitters.as_ref()).await,
            Work::Merge { splitters, runs } => {
                merge::run(self, splitters.as_ref(), runs, gate).await
            }
        }
    }

    /// Runs CPU work on a thread of its own, with the slot's memory.
    async fn on_cpu<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self, &mut crate::slots::Lease) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.step("work").await?;
        if let Some(faults) = self.stores.faults()
            && faults.refuses_memory(scope(&self.run)).await
        {
            let why = "out of memory: injected fault memory.alloc:refuse";
            return Err(Error::new(ErrorKind::OutOfMemory, why));
        }
        let task = self.clone();
        let mut lease = self.link.or_cancelled(self.context.slots.lease()).await?;
        let span = tracing::Span::current();
        self.link.compute(move || span.in_scope(|| work(&task, &mut lease))).await
    }

    /// Whether a record that is held is to be damaged on purpose. Blocking.
    fn damaged_memory(&self) -> Result<Option<u64>> {
        let Some(faults) = self.stores.faults() else { return Ok(None) };
        self.link.wait(async { Ok(faults.damages_memory(scope(&self.run)).await) })
    }

    /// The n-th spill of this attempt, in a store that is only this worker's.
    async fn spill_root(&self) -> Result<Object> {
        Object::open(
            &self.stores.on_disk(),
            self.context.spills.root.join(&self.run.attempt.to_string()),
        )
        .await
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

    /// The input bytes of this attempt's split, without the objects that are to be left out.
    fn split(&self, job: &Job) -> Result<Vec<Interval>> {
        let index = self.run.attempt.task.index;
        let split = job.plan.splits.get(index as usize);
        let split = split.ok_or_else(|| {
            Error::invalid(format!("the plan of job {} has no split {index}", job.plan.job))
        });
        let skip: &[u32] = match &self.run.work {
            Work::Sample { skip } | Work::Sort { skip, .. } => skip,
            Work::Merge { .. } => &[],
        };
        let skip: BTreeSet<u32> = skip.iter().copied().collect();
        Ok(split?.iter().filter(|interval| !skip.contains(&interval.object)).copied().collect())
    }

    /// Opens the pinned objects of the split, in its order, and checks that they are still what was
    /// pinned.
    async fn pinned_objects(&self, job: &Job) -> Result<Vec<Object>> {
        let mut objects: Vec<Object> = Vec::new();
        for interval in self.split(job)? {
            objects.push(
                Object::open(&self.stores, self.pinned(job, interval.object)?.url.parse()?).await?,
            );
        }
        self.check_pinned(job, &objects).await?;
        Ok(objects)
    }

    fn pinned<'a>(
        &self,
        job: &'a Job,
        object: u32,
    ) -> Result<&'a muster_protocol::plan::PinnedObject> {
        job.plan.objects.get(object as usize).ok_or_else(|| {
            Error::invalid(format!("the plan of job {} has no object {object}", job.plan.job))
        })
    }

    /// Compares size and version of the split's objects with the plan.
    async fn check_pinned(&self, job: &Job, objects: &[Object]) -> Result<()> {
        let pairs: Vec<(u32, Object)> = self
            .split(job)?
            .iter()
            .map(|interval| interval.object)
            .zip(objects.iter().cloned())
            .collect();
        let checks = futures::stream::iter(pairs).map(|(number, object)| async move {
            let pinned = self.pinned(job, number)?;
            let changed = |how: String| {
                // It says more than whatever reading it has met with.
                drop(self.link.findings.take());
                Error::invalid(format!("input changed during the job: {}: {how}", pinned.url))
            };
            let meta = match self.link.retry.call(&object, || object.store.head(object.key())).await
            {
                Ok(meta) => meta,
                Err(error) => return Err(self.unreadable(number, error)),
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

    /// An error of reading an input object. Where trying again cannot help, the attempt ends by
    /// naming the object; a store that is away is no fault of the object.
    fn unreadable(&self, object: u32, error: Error) -> Error {
        match error.kind {
            ErrorKind::NotFound | ErrorKind::Invalid | ErrorKind::Corrupt => {
                self.link.findings.input_unreadable(object, error)
            }
            _ => error,
        }
    }

    fn expect_bytes(&self, bytes: u64) {
        self.progress.bytes_total.store(bytes, Ordering::Relaxed);
    }
}

/// The path of an attempt's run below the job's scratch.
fn run_path(task: &Task) -> String {
    names::run_path(&task.run.attempt)
}
