//! The attempts that a worker is at: between its loop, which hears and tells, and the tasks. Begins
//! them, lets them go on, abandons them, and removes what does not count.

use std::collections::BTreeMap;
use std::sync::Arc;

use muster_platform::faults::Faults;
use muster_protocol::wire::{AttemptProgress, RunAttempt};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::attempt::{Input, Key};
use crate::tasks::{Context, Gate, Progress, Task};
use crate::transfer::Leftovers;

/// An attempt, until it is kept or cleaned up.
struct Work {
    cancel: CancellationToken,
    proceed: Option<oneshot::Sender<()>>,
    progress: Arc<Progress>,
    results: Leftovers,
}

/// See the module.
pub struct AtWork {
    context: Arc<Context>,
    works: BTreeMap<Key, Work>,
    /// Input bytes that attempts did which have ended.
    bytes_ended: u64,
}

impl AtWork {
    /// Nothing yet.
    pub fn new(context: Context) -> Self {
        Self { context: Arc::new(context), works: BTreeMap::new(), bytes_ended: 0 }
    }

    /// What all attempts share.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Begins an attempt: the future runs it to its end, and tells what the loop has to hear of it.
    /// `faults` are meant for this attempt, beside those of the stores.
    pub fn begin<T: Future<Output = ()> + Send + 'static>(
        &mut self,
        run: RunAttempt,
        faults: Option<Arc<Faults>>,
        tell: impl Fn(Input) -> T + Send + 'static,
    ) -> impl Future<Output = ()> + Send + 'static {
        let key = Key { job: run.job.clone(), attempt: run.attempt };
        let (cancel, progress) = (CancellationToken::new(), Arc::new(Progress::default()));
        let mut task = Task::new(self.context.clone(), run, cancel.clone(), progress.clone());
        if faults.is_some() {
            task.stores = task.stores.disturbed(faults);
        }
        let (proceed, allowed) = oneshot::channel();
        let work = Work { cancel, proceed: Some(proceed), progress, results: task.results.clone() };
        self.works.insert(key.clone(), work);
        attend(Arc::new(task), key, allowed, tell)
    }

    /// The leader knows of the attempt's upload.
    pub fn proceed(&mut self, key: &Key) {
        if let Some(proceed) = self.works.get_mut(key).and_then(|work| work.proceed.take()) {
            // Refused only by an attempt that has failed meanwhile, which says so itself.
            let _ = proceed.send(());
        }
    }

    /// The attempt is to end; it says when it has.
    pub fn abandon(&self, key: &Key) {
        if let Some(work) = self.works.get(key) {
            work.cancel.cancel();
        }
    }

    /// What the attempt made counts.
    pub fn keep(&mut self, key: &Key) {
        drop(self.forget(key));
    }

    /// What the attempt made does not count: the future removes it.
    pub fn clean_up(&mut self, key: &Key) -> Option<impl Future<Output = ()> + Send + 'static> {
        let work = self.forget(key)?;
        Some(async move { work.results.remove_all().await })
    }

    fn forget(&mut self, key: &Key) -> Option<Work> {
        let work = self.works.remove(key)?;
        self.bytes_ended = self.bytes_ended.saturating_add(work.progress.bytes_done());
        Some(work)
    }

    /// The attempts that run, or whose result is held.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &Key> {
        self.works.keys()
    }

    /// How far an attempt is.
    pub fn progress(&self, key: &Key) -> Option<AttemptProgress> {
        let progress = &self.works.get(key)?.progress;
        let (bytes_done, bytes_total) = (progress.bytes_done(), progress.bytes_total());
        Some(AttemptProgress {
            job: key.job.clone(),
            attempt: key.attempt,
            bytes_done,
            bytes_total,
        })
    }

    /// Input bytes that all attempts did, also those that have ended.
    pub fn bytes_done(&self) -> u64 {
        let running = self.works.values().map(|work| work.progress.bytes_done());
        running.fold(self.bytes_ended, u64::saturating_add)
    }
}

async fn attend<T: Future<Output = ()> + Send>(
    task: Arc<Task>,
    key: Key,
    proceed: oneshot::Receiver<()>,
    tell: impl Fn(Input) -> T + Send,
) {
    let (opened, mut announced) = oneshot::channel();
    let mut conclusion = Box::pin(task.conclude(Gate { opened, proceed }));
    let outcome = tokio::select! {
        biased;
        Ok(upload) = &mut announced => {
            tell(Input::Opened { key: key.clone(), upload }).await;
            conclusion.await
        }
        outcome = &mut conclusion => outcome,
    };
    tell(Input::Finished { key, outcome }).await;
}
