//! A store whose calls are repeated when they fail in passing, under `[retry.store]` and
//! `[retry.throttle]`: for the coordinator, whose steps are made of many calls and would else begin
//! anew for each that fails. All calls of a store may be repeated.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::retry::Retry;
use crate::store::{Access, BlobMeta, Blobs, Completed, OpenUpload, PartAt};
use crate::survey::{Survey, Wanted};
use muster_protocol::error::Result;

/// A store that is asked again.
pub struct RetryingBlobs {
    inner: Arc<dyn Blobs>,
    retry: Retry,
}

impl RetryingBlobs {
    /// The store, asked again as `retry` says.
    pub fn new(inner: Arc<dyn Blobs>, retry: Retry) -> Self {
        Self { inner, retry }
    }
}

#[async_trait]
impl Blobs for RetryingBlobs {
    async fn list(&self, prefix: &str, limit: usize) -> Result<Vec<BlobMeta>> {
        self.retry.repeat(|| self.inner.list(prefix, limit)).await
    }

    async fn survey(&self, wanted: &Wanted) -> Result<Survey> {
        self.retry.repeat(|| self.inner.survey(wanted)).await
    }

    async fn head(&self, key: &str) -> Result<BlobMeta> {
        self.retry.repeat(|| self.inner.head(key)).await
    }

    async fn read(&self, key: &str, range: Range<u64>, access: Access) -> Result<Bytes> {
        self.retry.repeat(|| self.inner.read(key, range.clone(), access)).await
    }

    async fn put(&self, key: &str, bytes: Bytes) -> Result<()> {
        self.retry.repeat(|| self.inner.put(key, bytes.clone())).await
    }

    async fn open_upload(&self, key: &str) -> Result<String> {
        self.retry.repeat(|| self.inner.open_upload(key)).await
    }

    async fn upload_part(
        &self,
        key: &str,
        upload: &str,
        at: PartAt,
        data: Bytes,
    ) -> Result<String> {
        self.retry.repeat(|| self.inner.upload_part(key, upload, at, data.clone())).await
    }

    async fn complete_upload(
        &self,
        key: &str,
        upload: &str,
        tags: &[String],
        bytes: u64,
        sync: bool,
    ) -> Result<Completed> {
        self.retry.repeat(|| self.inner.complete_upload(key, upload, tags, bytes, sync)).await
    }

    async fn abort_upload(&self, key: &str, upload: &str) -> Result<()> {
        self.retry.repeat(|| self.inner.abort_upload(key, upload)).await
    }

    async fn list_uploads(&self, prefix: &str, limit: usize) -> Result<Vec<OpenUpload>> {
        self.retry.repeat(|| self.inner.list_uploads(prefix, limit)).await
    }

    async fn delete(&self, key: &str) -> Result<()> {
        self.retry.repeat(|| self.inner.delete(key)).await
    }

    async fn prune(&self, prefix: &str) -> Result<()> {
        self.retry.repeat(|| self.inner.prune(prefix)).await
    }

    async fn check_place(&self, key: &str) -> Result<()> {
        self.retry.repeat(|| self.inner.check_place(key)).await
    }

    async fn remove_folder(&self, key: &str) -> Result<()> {
        self.retry.repeat(|| self.inner.remove_folder(key)).await
    }
}
