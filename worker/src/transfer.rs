//! Between the async store and the threads that sort and merge: windows in, parts out.
//!
//! The CPU work runs on threads of the crew and waits here for MiB-sized pieces of I/O. What is
//! ahead of it runs as tasks beside it: [`Prefetch`] keeps reads in flight, [`PartSink`] keeps
//! uploads in flight, both within bytes that [`crate::memory`] has planned, so a slow store slows
//! the CPU work and fills no memory. Every wait ends when the attempt is cancelled. Neither type
//! cleans up in the store: what an attempt has opened is noted in [`Leftovers`], and whoever ends
//! the attempt removes it.

mod input;
mod leftovers;
mod output;

pub(crate) use input::{Prefetch, Span, read, windows};
pub(crate) use leftovers::Leftovers;
pub(crate) use output::{PartSink, Upload, Uploaded};

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use muster_platform::buffer::BufferPool;
use muster_platform::retry::Retry;
use muster_platform::store::{BlobUrl, Blobs};
use muster_platform::stores::Stores;
use muster_protocol::{Error, ErrorKind, Result};
use tokio::sync::{Semaphore, oneshot};
use tokio_util::sync::CancellationToken;

use crate::crew::Crew;
use crate::tasks::Findings;

/// One object and the store it lies in. Cloning is cheap.
#[derive(Clone)]
pub(crate) struct Object {
    pub(crate) store: Arc<dyn Blobs>,
    pub(crate) url: Arc<BlobUrl>,
    /// How long its store may take to give a range, tries and waits included, where the bytes can
    /// be had elsewhere.
    pub(crate) patience_ms: Option<u64>,
}

impl Object {
    /// The object at `url`, with its store opened.
    pub(crate) async fn open(stores: &Stores, url: BlobUrl) -> Result<Self> {
        Ok(Self { store: stores.open(&url).await?, url: Arc::new(url), patience_ms: None })
    }

    /// Another object of the same store.
    pub(crate) fn sibling(&self, url: BlobUrl) -> Self {
        Self { store: self.store.clone(), url: Arc::new(url), patience_ms: self.patience_ms }
    }

    /// The same, waited for so long at most.
    pub(crate) fn within(mut self, patience_ms: Option<u64>) -> Self {
        self.patience_ms = patience_ms;
        self
    }

    pub(crate) fn key(&self) -> &str {
        self.url.key()
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.url.fmt(f)
    }
}

/// What an attempt needs to compute and to do I/O: who does it, how calls are retried, and whether
/// the attempt still counts.
#[derive(Clone)]
pub(crate) struct Link {
    pub(crate) crew: Arc<dyn Crew>,
    pub(crate) cancel: CancellationToken,
    pub(crate) retry: Retry,
    pub(crate) buffers: BufferPool,
    /// Turns at reading files. Each such read holds a thread, and threads cost memory of their own
    /// (2 MiB of heap each, measured).
    pub(crate) disk: Arc<Semaphore>,
    /// What is wrong with others' data.
    pub(crate) findings: Findings,
}

impl Link {
    /// Computes on a thread of its own, which may wait.
    pub(crate) async fn compute<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (tell, ended) = oneshot::channel();
        // Nobody listens to an attempt whose process ends.
        self.crew.compute(Box::new(move || drop(tell.send(work()))));
        ended.await.unwrap_or_else(|_| Err(Error::bug("a computation did not end")))
    }

    /// Begins I/O beside the caller.
    pub(crate) fn begin<T: Send + 'static>(
        &self,
        io: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Begun<T> {
        let (tell, ended) = oneshot::channel();
        let task = self.crew.begin(Box::pin(async move { drop(tell.send(io.await)) }));
        Begun { ended, _task: task }
    }

    /// Waits for I/O; only from a thread that computes. Ends early, with [`abandoned`], when the
    /// attempt is cancelled.
    pub(crate) fn wait<T>(&self, io: impl Future<Output = Result<T>>) -> Result<T> {
        self.wait_out(self.or_cancelled(io))
    }

    /// The same for I/O that a cancel does not cut short: it must be known what came of it.
    pub(crate) fn wait_out<T>(&self, io: impl Future<Output = Result<T>>) -> Result<T> {
        let mut ended = None;
        self.crew.wait(std::pin::pin!(async { ended = Some(io.await) }));
        ended.unwrap_or_else(|| Err(abandoned()))
    }

    /// The same for async code.
    pub(crate) async fn or_cancelled<T>(&self, io: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(abandoned()),
            result = io => result,
        }
    }

    /// An error once the attempt is cancelled.
    pub(crate) fn check(&self) -> Result<()> {
        if self.cancel.is_cancelled() { Err(abandoned()) } else { Ok(()) }
    }
}

/// The error with which a cancelled attempt ends. It is not reported: whoever cancelled knows.
pub(crate) fn abandoned() -> Error {
    Error::new(ErrorKind::Fenced, "the attempt was abandoned")
}

/// I/O that was begun beside; dropping it ends it.
pub(crate) struct Begun<T> {
    ended: oneshot::Receiver<Result<T>>,
    _task: Box<dyn Send + Sync>,
}

impl<T> Begun<T> {
    /// What it ended with.
    pub(crate) async fn ended(self) -> Result<T> {
        self.ended.await.unwrap_or_else(|_| Err(Error::bug("an I/O task did not end")))
    }
}

#[cfg(test)]
mod tests;
