//! Between the async store and the threads that sort and merge: windows in, parts out.
//!
//! The CPU work runs on blocking threads and waits here for MiB-sized pieces of I/O. What is ahead
//! of it runs as tasks: [`Prefetch`] keeps reads in flight, [`PartSink`] keeps uploads in flight,
//! both within bytes that [`crate::memory`] has planned, so a slow store slows the CPU work and
//! fills no memory. Every wait ends when the attempt is cancelled. Neither type cleans up in the
//! store: what an attempt has opened is noted in [`Leftovers`], and whoever ends the attempt
//! removes it.

mod input;
mod leftovers;
mod output;

pub(crate) use input::{Prefetch, Span, read, windows};
pub(crate) use leftovers::Leftovers;
pub(crate) use output::{PartSink, Upload, Uploaded};

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use muster_common::buffer::BufferPool;
use muster_common::retry::Retry;
use muster_common::store::{BlobUrl, Blobs, Stores};
use muster_common::{Error, ErrorKind, Result};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::tasks::Findings;

/// One object and the store it lies in. Cloning is cheap.
#[derive(Clone)]
pub(crate) struct Object {
    pub(crate) store: Arc<dyn Blobs>,
    pub(crate) url: Arc<BlobUrl>,
    /// How long its store may take to give a range, tries and waits included, where the bytes can
    /// be had elsewhere.
    pub(crate) patience: Option<Duration>,
}

impl Object {
    /// The object at `url`, with its store opened.
    pub(crate) async fn open(stores: &Stores, url: BlobUrl) -> Result<Self> {
        Ok(Self { store: stores.open(&url).await?, url: Arc::new(url), patience: None })
    }

    /// Another object of the same store.
    pub(crate) fn sibling(&self, url: BlobUrl) -> Self {
        Self { store: self.store.clone(), url: Arc::new(url), patience: self.patience }
    }

    /// The same, waited for so long at most.
    pub(crate) fn within(mut self, patience: Option<Duration>) -> Self {
        self.patience = patience;
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

/// What a blocking thread needs to do I/O: where tasks run, how calls are retried, and whether the
/// attempt still counts.
#[derive(Clone)]
pub(crate) struct Link {
    pub(crate) handle: tokio::runtime::Handle,
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
    /// Waits for I/O; only from a blocking thread. Ends early, with [`abandoned`], when the attempt
    /// is cancelled.
    pub(crate) fn wait<T>(&self, io: impl Future<Output = Result<T>>) -> Result<T> {
        self.handle.block_on(self.or_cancelled(io))
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

/// What a spawned I/O task ended with.
fn joined<T>(result: Result<Result<T>, tokio::task::JoinError>) -> Result<T> {
    match result {
        Ok(result) => result,
        Err(e) if e.is_cancelled() => Err(abandoned()),
        Err(e) => Err(Error::bug(format!("an I/O task did not end: {e}"))),
    }
}

#[cfg(test)]
mod tests;
