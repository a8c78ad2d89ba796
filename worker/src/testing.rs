//! A store in memory that fails, hangs and counts on request.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use muster_platform::adapters::memory::MemoryBlobs;
use muster_platform::clock::ManualClock;
use muster_platform::config::{Config, Profile};
use muster_platform::retry::Retry;
use muster_platform::store::{Access, BlobMeta, Blobs, Completed, OpenUpload, PartAt};
use muster_platform::survey::{Survey, Wanted};
use muster_protocol::{Error, ErrorKind, Result};

/// The store; its knobs are public.
#[derive(Debug, Default)]
pub(crate) struct Shaky {
    pub(crate) inner: MemoryBlobs,
    /// So many of the next reads fail with passing trouble.
    pub(crate) failing_reads: AtomicU32,
    /// Parts from this number on (from 1; 0 is never) fail for good.
    pub(crate) failing_part: AtomicU32,
    /// So many of the next parts find no room.
    pub(crate) full_parts: AtomicU32,
    /// Parts from this number on (from 1; 0 is never) never end.
    pub(crate) hanging_part: AtomicU32,
    /// Reads at this moment, and the most there were.
    reading: AtomicUsize,
    pub(crate) reading_max: AtomicUsize,
    /// So many of the next aborts fail with passing trouble.
    pub(crate) failing_aborts: AtomicU32,
    /// No call is answered.
    pub(crate) away: AtomicBool,
    /// Reads of runs never end.
    pub(crate) hanging_runs: AtomicBool,
    /// Of the reads of runs, the number (from 1; 0 is none) of the one that gives a wrong byte,
    /// once.
    pub(crate) flip_run_read: AtomicU32,
    /// Keys of the uploads that were opened.
    pub(crate) opened: Mutex<Vec<String>>,
}

impl Shaky {
    /// Uploads whose key holds `part` that were ever opened.
    pub(crate) fn opened_like(&self, part: &str) -> usize {
        self.opened.lock().expect("lock").iter().filter(|key| key.contains(part)).count()
    }

    /// Everything that stands or is open, for assertions on leftovers.
    pub(crate) async fn contents(&self) -> (Vec<String>, usize) {
        let listed = self.inner.list("", 10_000).await.expect("list");
        (listed.into_iter().map(|meta| meta.key).collect(), self.inner.open_uploads())
    }
}

/// Retries at once, as a paused runtime makes waiting free.
pub(crate) fn retry() -> Retry {
    let mut policies = Config::profile(Profile::Testing).expect("settings").retry;
    policies.store.attempts_max = 4;
    Retry::new(policies, Arc::new(ManualClock::default()))
}

impl Shaky {
    fn answers(&self) -> Result<()> {
        if self.away.load(Ordering::SeqCst) {
            Err(Error::retry("the store is away"))
        } else {
            Ok(())
        }
    }
}

#[async_trait]
impl Blobs for Shaky {
    async fn list(&self, prefix: &str, limit: usize) -> Result<Vec<BlobMeta>> {
        self.inner.list(prefix, limit).await
    }

    async fn survey(&self, wanted: &Wanted) -> Result<Survey> {
        self.inner.survey(wanted).await
    }

    async fn head(&self, key: &str) -> Result<BlobMeta> {
        self.answers()?;
        self.inner.head(key).await
    }

    async fn read(&self, key: &str, range: Range<u64>, access: Access) -> Result<Bytes> {
        self.answers()?;
        let now = self.reading.fetch_add(1, Ordering::SeqCst) + 1;
        self.reading_max.fetch_max(now, Ordering::SeqCst);
        tokio::task::yield_now().await;
        self.reading.fetch_sub(1, Ordering::SeqCst);
        let failing = self
            .failing_reads
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if failing.is_ok() {
            return Err(Error::retry("the store is busy"));
        }
        if key.ends_with(".run") && self.hanging_runs.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        let bytes = self.inner.read(key, range, access).await?;
        let left = |left: u32| left.checked_sub(1);
        let flips = key.ends_with(".run")
            && self.flip_run_read.fetch_update(Ordering::SeqCst, Ordering::SeqCst, left) == Ok(1);
        let mut bytes = bytes.to_vec();
        if flips && let Some(byte) = bytes.last_mut() {
            *byte ^= 1;
        }
        Ok(bytes.into())
    }

    async fn put(&self, key: &str, bytes: Bytes) -> Result<()> {
        self.answers()?;
        self.inner.put(key, bytes).await
    }

    async fn open_upload(&self, key: &str) -> Result<String> {
        self.answers()?;
        self.opened.lock().expect("lock").push(key.to_owned());
        self.inner.open_upload(key).await
    }

    async fn upload_part(
        &self,
        key: &str,
        upload: &str,
        at: PartAt,
        data: Bytes,
    ) -> Result<String> {
        self.answers()?;
        let reached = |knob: &AtomicU32| (1..=at.index + 1).contains(&knob.load(Ordering::SeqCst));
        if reached(&self.failing_part) {
            return Err(Error::new(ErrorKind::Exhausted, "the store is full"));
        }
        if self
            .full_parts
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1))
            .is_ok()
        {
            return Err(Error::new(ErrorKind::Exhausted, "no space left on device"));
        }
        if reached(&self.hanging_part) {
            std::future::pending::<()>().await;
        }
        self.inner.upload_part(key, upload, at, data).await
    }

    async fn complete_upload(
        &self,
        key: &str,
        upload: &str,
        tags: &[String],
        bytes: u64,
        sync: bool,
    ) -> Result<Completed> {
        self.answers()?;
        self.inner.complete_upload(key, upload, tags, bytes, sync).await
    }

    async fn abort_upload(&self, key: &str, upload: &str) -> Result<()> {
        if self
            .failing_aborts
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1))
            .is_ok()
        {
            return Err(Error::retry("the store is busy"));
        }
        self.inner.abort_upload(key, upload).await
    }

    async fn list_uploads(&self, prefix: &str, limit: usize) -> Result<Vec<OpenUpload>> {
        self.inner.list_uploads(prefix, limit).await
    }

    async fn delete(&self, key: &str) -> Result<()> {
        self.inner.delete(key).await
    }

    async fn prune(&self, prefix: &str) -> Result<()> {
        self.inner.prune(prefix).await
    }
}
