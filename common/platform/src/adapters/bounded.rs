//! A store whose every call ends: within `store.call_timeout_ms`, a listing within
//! `store.list_timeout_ms`.
//!
//! What a call that took too long has done is unknown, as with a lost answer; callers repeat it,
//! and all calls may be repeated.

use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::config;
use crate::store::{Access, BlobMeta, Blobs, Completed, OpenUpload, PartAt};
use crate::survey::{Survey, Wanted};
use muster_protocol::error::{Error, Result};

/// A store within time-outs.
pub struct BoundedBlobs {
    inner: Arc<dyn Blobs>,
    call: Duration,
    list: Duration,
}

impl BoundedBlobs {
    /// The store within the time-outs of the settings.
    pub fn new(inner: Arc<dyn Blobs>, limits: &config::Store) -> Self {
        let (call, list) = (limits.call_timeout_ms, limits.list_timeout_ms);
        Self { inner, call: Duration::from_millis(call), list: Duration::from_millis(list) }
    }

    async fn within_call<T>(&self, key: &str, call: impl Future<Output = Result<T>>) -> Result<T> {
        within(self.call, "store.call_timeout_ms", key, call).await
    }

    async fn within_list<T>(
        &self,
        prefix: &str,
        call: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        within(self.list, "store.list_timeout_ms", prefix, call).await
    }
}

async fn within<T>(
    bound: Duration,
    setting: &str,
    key: &str,
    call: impl Future<Output = Result<T>>,
) -> Result<T> {
    tokio::time::timeout(bound, call).await.unwrap_or_else(|_| {
        Err(Error::retry(format!(
            "the store did not answer about {key} within {} ms ({setting})",
            bound.as_millis()
        )))
    })
}

#[async_trait]
impl Blobs for BoundedBlobs {
    async fn list(&self, prefix: &str, limit: usize) -> Result<Vec<BlobMeta>> {
        self.within_list(prefix, self.inner.list(prefix, limit)).await
    }

    async fn survey(&self, wanted: &Wanted) -> Result<Survey> {
        self.within_list(wanted.base(), self.inner.survey(wanted)).await
    }

    async fn head(&self, key: &str) -> Result<BlobMeta> {
        self.within_call(key, self.inner.head(key)).await
    }

    async fn read(&self, key: &str, range: Range<u64>, access: Access) -> Result<Bytes> {
        self.within_call(key, self.inner.read(key, range, access)).await
    }

    async fn put(&self, key: &str, bytes: Bytes) -> Result<()> {
        self.within_call(key, self.inner.put(key, bytes)).await
    }

    async fn open_upload(&self, key: &str) -> Result<String> {
        self.within_call(key, self.inner.open_upload(key)).await
    }

    async fn upload_part(
        &self,
        key: &str,
        upload: &str,
        at: PartAt,
        data: Bytes,
    ) -> Result<String> {
        self.within_call(key, self.inner.upload_part(key, upload, at, data)).await
    }

    async fn complete_upload(
        &self,
        key: &str,
        upload: &str,
        tags: &[String],
        bytes: u64,
        sync: bool,
    ) -> Result<Completed> {
        self.within_call(key, self.inner.complete_upload(key, upload, tags, bytes, sync)).await
    }

    async fn abort_upload(&self, key: &str, upload: &str) -> Result<()> {
        self.within_call(key, self.inner.abort_upload(key, upload)).await
    }

    async fn list_uploads(&self, prefix: &str, limit: usize) -> Result<Vec<OpenUpload>> {
        self.within_list(prefix, self.inner.list_uploads(prefix, limit)).await
    }

    async fn delete(&self, key: &str) -> Result<()> {
        self.within_call(key, self.inner.delete(key)).await
    }

    async fn prune(&self, prefix: &str) -> Result<()> {
        self.within_list(prefix, self.inner.prune(prefix)).await
    }

    async fn check_place(&self, key: &str) -> Result<()> {
        self.within_call(key, self.inner.check_place(key)).await
    }

    async fn remove_folder(&self, key: &str) -> Result<()> {
        self.within_list(key, self.inner.remove_folder(key)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::memory::MemoryBlobs;
    use crate::config::{Config, Profile};
    use crate::conformance;
    use muster_protocol::error::ErrorKind;

    fn limits() -> config::Store {
        Config::profile(Profile::Testing).expect("settings").store
    }

    #[tokio::test]
    async fn a_store_within_time_outs_passes_the_suite() {
        conformance::blobs(&BoundedBlobs::new(Arc::new(MemoryBlobs::default()), &limits()), "root")
            .await;
    }

    #[tokio::test]
    async fn a_call_that_never_ends_is_ended() {
        let limits = config::Store { call_timeout_ms: 20, ..limits() };
        let bounded = BoundedBlobs::new(Arc::new(MemoryBlobs::default()), &limits);
        let error = bounded
            .within_call("a", std::future::pending::<Result<()>>())
            .await
            .expect_err("no answer");
        assert_eq!(error.kind, ErrorKind::Retry);
        assert!(error.message.contains("store.call_timeout_ms"), "{error}");
    }
}
