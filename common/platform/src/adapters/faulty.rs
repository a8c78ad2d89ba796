//! Stores and ledgers that fail on purpose, around any other: see [`crate::faults`]. Without a
//! fault that applies they are what they wrap.

use std::future::Future;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::faults::{Component, Faults, Hit, Kind, Scope, Site};
use crate::ledger::{Appended, Entry, Ledger, Room};
use crate::store::{Access, BlobMeta, Blobs, Completed, OpenUpload, PartAt};
use crate::survey::{Survey, Wanted};
use muster_protocol::error::{Error, Result};

/// A store that fails on purpose.
pub struct FaultyBlobs {
    inner: Arc<dyn Blobs>,
    faults: Arc<Faults>,
    component: Component,
    scope: Scope,
}

impl FaultyBlobs {
    /// The store, disturbed as `component` (store or disk) in the work of `scope`.
    pub fn new(
        inner: Arc<dyn Blobs>,
        faults: Arc<Faults>,
        component: Component,
        scope: Scope,
    ) -> Self {
        Self { inner, faults, component, scope }
    }

    async fn meet(&self, site: Site, key: &str) -> Option<Hit> {
        self.faults.meet(site, self.scope, key).await
    }

    /// A call that either happens or not.
    async fn around<T>(
        &self,
        operation: &'static str,
        key: &str,
        call: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let site = Site::new(self.component, operation);
        match self.meet(site, key).await {
            None => call.await,
            Some(hit) if hit.kind == Kind::LostAck => {
                call.await?;
                Err(hit.error(site, key))
            }
            Some(hit) => Err(hit.error(site, key)),
        }
    }
}

/// Damages a copy, or gives it back whole where there is nothing to damage.
fn damaged(bytes: &[u8], hit: Hit) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let at = usize::try_from(hit.random % (bytes.len().max(1) as u64)).unwrap_or_default();
    match hit.kind {
        Kind::Truncate => bytes.truncate(at),
        _ => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << (hit.random >> 61);
            }
        }
    }
    bytes
}

fn is_damage(hit: Hit) -> bool {
    matches!(hit.kind, Kind::Flip | Kind::Truncate)
}

#[async_trait]
impl Blobs for FaultyBlobs {
    async fn list(&self, prefix: &str, limit: usize) -> Result<Vec<BlobMeta>> {
        self.around("list", prefix, self.inner.list(prefix, limit)).await
    }

    async fn survey(&self, wanted: &Wanted) -> Result<Survey> {
        self.around("list", wanted.base(), self.inner.survey(wanted)).await
    }

    async fn head(&self, key: &str) -> Result<BlobMeta> {
        self.around("head", key, self.inner.head(key)).await
    }

    async fn read(&self, key: &str, range: Range<u64>, access: Access) -> Result<Bytes> {
        let site = Site::new(self.component, "read");
        match self.meet(site, key).await {
            None => self.inner.read(key, range, access).await,
            Some(hit) if hit.kind == Kind::Flip => {
                let bytes = self.inner.read(key, range, access).await?;
                Ok(damaged(&bytes, hit).into())
            }
            // A store never gives less than it was asked for without saying so.
            Some(hit) => Err(hit.error(site, key)),
        }
    }

    async fn put(&self, key: &str, bytes: Bytes) -> Result<()> {
        let site = Site::new(self.component, "put");
        match self.meet(site, key).await {
            Some(hit) if is_damage(hit) => self.inner.put(key, damaged(&bytes, hit).into()).await,
            Some(hit) if hit.kind == Kind::LostAck => {
                self.inner.put(key, bytes).await?;
                Err(hit.error(site, key))
            }
            Some(hit) => Err(hit.error(site, key)),
            None => self.inner.put(key, bytes).await,
        }
    }

    async fn open_upload(&self, key: &str) -> Result<String> {
        self.around("open", key, self.inner.open_upload(key)).await
    }

    async fn upload_part(
        &self,
        key: &str,
        upload: &str,
        at: PartAt,
        data: Bytes,
    ) -> Result<String> {
        let site = Site::new(self.component, "part");
        match self.meet(site, key).await {
            Some(hit) if is_damage(hit) => {
                self.inner.upload_part(key, upload, at, damaged(&data, hit).into()).await
            }
            Some(hit) if hit.kind == Kind::LostAck => {
                self.inner.upload_part(key, upload, at, data).await?;
                Err(hit.error(site, key))
            }
            Some(hit) => Err(hit.error(site, key)),
            None => self.inner.upload_part(key, upload, at, data).await,
        }
    }

    async fn complete_upload(
        &self,
        key: &str,
        upload: &str,
        tags: &[String],
        bytes: u64,
        sync: bool,
    ) -> Result<Completed> {
        self.around("complete", key, self.inner.complete_upload(key, upload, tags, bytes, sync))
            .await
    }

    async fn abort_upload(&self, key: &str, upload: &str) -> Result<()> {
        self.around("abort", key, self.inner.abort_upload(key, upload)).await
    }

    async fn list_uploads(&self, prefix: &str, limit: usize) -> Result<Vec<OpenUpload>> {
        self.around("uploads", prefix, self.inner.list_uploads(prefix, limit)).await
    }

    async fn delete(&self, key: &str) -> Result<()> {
        self.around("delete", key, self.inner.delete(key)).await
    }

    async fn prune(&self, prefix: &str) -> Result<()> {
        self.around("prune", prefix, self.inner.prune(prefix)).await
    }

    async fn check_place(&self, key: &str) -> Result<()> {
        self.around("head", key, self.inner.check_place(key)).await
    }

    async fn remove_folder(&self, key: &str) -> Result<()> {
        self.around("prune", key, self.inner.remove_folder(key)).await
    }
}

/// A ledger that fails on purpose.
pub struct FaultyLedger {
    inner: Arc<dyn Ledger>,
    faults: Arc<Faults>,
}

impl FaultyLedger {
    /// The ledger, disturbed.
    pub fn new(inner: Arc<dyn Ledger>, faults: Arc<Faults>) -> Self {
        Self { inner, faults }
    }

    async fn around<T>(
        &self,
        operation: &'static str,
        call: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let site = Site::new(Component::Ledger, operation);
        match self.faults.meet(site, Scope::default(), "").await {
            None => call.await,
            Some(hit) if hit.kind == Kind::LostAck => {
                call.await?;
                Err(hit.error(site, "the journal"))
            }
            Some(hit) => Err(hit.error(site, "the journal")),
        }
    }
}

#[async_trait]
impl Ledger for FaultyLedger {
    async fn read_from(&self, first_sequence: u64) -> Result<Vec<Entry>> {
        self.around("read", self.inner.read_from(first_sequence)).await
    }

    async fn last_sequence(&self) -> Result<u64> {
        self.around("read", self.inner.last_sequence()).await
    }

    async fn newest(&self) -> Result<Option<Entry>> {
        self.around("read", self.inner.newest()).await
    }

    async fn append(&self, expected_last: u64, bytes: Bytes) -> Appended {
        let site = Site::new(Component::Ledger, "append");
        let Some(hit) = self.faults.meet(site, Scope::default(), "").await else {
            return self.inner.append(expected_last, bytes).await;
        };
        let Error { message: why, .. } = hit.error(site, "the journal");
        match hit.kind {
            Kind::Full => Appended::Full { why },
            Kind::LostAck => match self.inner.append(expected_last, bytes).await {
                Appended::Applied { .. } => Appended::Unknown { why },
                other => other,
            },
            // As a broken assertion would, without its lines on stderr.
            Kind::Bug => std::panic::resume_unwind(Box::new(why)),
            _ => Appended::Unknown { why },
        }
    }

    async fn room(&self) -> Result<Option<Room>> {
        self.around("read", self.inner.room()).await
    }

    async fn purge_before(&self, first_kept: u64) -> Result<()> {
        self.around("purge", self.inner.purge_before(first_kept)).await
    }
}
