//! The stores of a process: opens the adapter that a URL asks for, once, and lays around it what
//! the process wants (faults, meters, guards, retries). The ports are [`crate::store`]'s, which
//! knows no adapter.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use muster_protocol::error::{Error, Result};
use muster_protocol::wire::{BlobRef, digest};
use tokio::sync::Mutex;

use crate::adapters::bounded::BoundedBlobs;
use crate::adapters::faulty::FaultyBlobs;
use crate::adapters::local::LocalBlobs;
use crate::adapters::memory::MemoryBlobs;
use crate::adapters::retrying::RetryingBlobs;
use crate::adapters::s3::S3Blobs;
use crate::buffer::BufferPool;
use crate::config;
use crate::faults::{Component as Disturbed, Faults, Scope};
use crate::retry::Retry;
use crate::store::{Access, BlobUrl, Blobs, Layer, Scheme, Troubles, read_whole};
use crate::survey::Bounds;

/// What is laid around every store that is given out.
#[derive(Clone)]
struct Layers {
    faults: Option<Arc<Faults>>,
    component: Disturbed,
    scope: Scope,
    meter: Option<Arc<dyn Layer>>,
    guard: Option<Arc<dyn Layer>>,
    retry: Option<Retry>,
}

/// The stores that a process has opened, each once. Cloning shares them; what is laid around them
/// belongs to the clone.
#[derive(Clone)]
pub struct Stores {
    opened: Arc<Mutex<HashMap<Scheme, Arc<dyn Blobs>>>>,
    buffers: BufferPool,
    limits: config::Store,
    layers: Layers,
    troubles: Troubles,
    /// What the temporary names of uploads on this machine's file system begin with.
    mark: Option<u32>,
    /// Memory for names and places of input objects.
    lists_bytes_max: u64,
}

impl Stores {
    /// No store opened yet; all of them will use `buffers` for what they read, and keep to these
    /// time-outs.
    pub fn new(buffers: BufferPool, limits: &config::Store) -> Self {
        let (component, scope) = (Disturbed::Store, Scope::default());
        let layers =
            Layers { faults: None, component, scope, meter: None, guard: None, retry: None };
        Self {
            opened: Arc::default(),
            buffers,
            limits: limits.clone(),
            layers,
            troubles: Troubles::default(),
            mark: None,
            lists_bytes_max: u64::MAX,
        }
    }

    /// The same stores, disturbed by faults.
    #[must_use]
    pub fn disturbed(mut self, faults: Option<Arc<Faults>>) -> Self {
        self.layers.faults = faults;
        self
    }

    /// The same stores, none of them opened yet, whose uploads on this machine's file system bear a
    /// mark: after the process is gone they can be told from others'.
    #[must_use]
    pub fn marked(self, mark: u32) -> Self {
        Self { mark: Some(mark), opened: Arc::default(), ..self }
    }

    /// The same stores, with every single call counted.
    #[must_use]
    pub fn metered(mut self, meter: Option<Arc<dyn Layer>>) -> Self {
        self.layers.meter = meter;
        self
    }

    /// The same stores, each behind a guard.
    #[must_use]
    pub fn guarded(mut self, guard: Arc<dyn Layer>) -> Self {
        self.layers.guard = Some(guard);
        self
    }

    /// The same stores, with every call repeated as `retry` says.
    #[must_use]
    pub fn retrying(mut self, retry: Retry) -> Self {
        self.layers.retry = Some(retry);
        self
    }

    /// The same stores as an attempt uses them, so that faults can be meant for it.
    #[must_use]
    pub fn of_attempt(&self, scope: Scope) -> Self {
        Self { layers: Layers { scope, ..self.layers.clone() }, ..self.clone() }
    }

    /// The same stores where they are a worker's own disk, so that faults can be meant for it.
    #[must_use]
    pub fn on_disk(&self) -> Self {
        Self {
            layers: Layers { component: Disturbed::Disk, ..self.layers.clone() },
            ..self.clone()
        }
    }

    /// The faults that disturb them.
    pub fn faults(&self) -> Option<&Arc<Faults>> {
        self.layers.faults.as_ref()
    }

    /// Puts a store in place of the one that its scheme would open, within the time-outs of the
    /// settings.
    pub async fn insert_bounded(&self, scheme: Scheme, store: Arc<dyn Blobs>) {
        let store = Arc::new(BoundedBlobs::new(store, &self.limits));
        self.insert(scheme, store).await;
    }

    /// Puts a store in place of the one that its scheme would open.
    pub async fn insert(&self, scheme: Scheme, store: Arc<dyn Blobs>) {
        self.opened.lock().await.insert(scheme, store);
    }

    /// Input objects of one job, at most.
    pub fn objects_max(&self) -> usize {
        usize::try_from(self.limits.objects_max).unwrap_or(usize::MAX)
    }

    /// How far a look for input goes.
    pub fn bounds(&self) -> Bounds {
        let depth = usize::try_from(self.limits.depth_max).unwrap_or(usize::MAX);
        Bounds { objects: self.objects_max(), entries: self.limits.entries_max, depth }
    }

    /// The same stores, for a process that has so many bytes of memory for names and places of
    /// input objects.
    #[must_use]
    pub fn with_lists_bytes_max(self, lists_bytes_max: u64) -> Self {
        Self { lists_bytes_max, ..self }
    }

    /// Memory for names and places of input objects, in bytes; no bound where none was set.
    pub fn lists_bytes_max(&self) -> u64 {
        self.lists_bytes_max
    }

    /// The stores that cannot be used at present.
    pub fn troubles(&self) -> &Troubles {
        &self.troubles
    }

    /// The buffers that reads and uploads share.
    pub fn buffers(&self) -> &BufferPool {
        &self.buffers
    }

    /// The store that a URL lies in. Credentials of S3 come from the usual `AWS_*` environment, or
    /// from a profile of the AWS tools.
    ///
    /// # Errors
    /// `Setup` where the environment's settings do not make a client.
    pub async fn open(&self, url: &BlobUrl) -> Result<Arc<dyn Blobs>> {
        let mut opened = self.opened.lock().await;
        if let Some(store) = opened.get(url.scheme()) {
            return Ok(self.layered(url.scheme(), store.clone()));
        }
        let store: Arc<dyn Blobs> = match url.scheme() {
            Scheme::File => Arc::new(LocalBlobs::new(self.buffers.clone()).marked(self.mark)),
            Scheme::S3 { bucket } => {
                Arc::new(S3Blobs::from_env(bucket, &self.limits, &self.troubles).await?)
            }
            Scheme::Memory => Arc::new(MemoryBlobs::default()),
            Scheme::Worker { id } => {
                return Err(Error::invalid(format!(
                    "{url} can be read by worker {id} alone; as INPUT write workers:/PATH"
                )));
            }
        };
        let store: Arc<dyn Blobs> = Arc::new(BoundedBlobs::new(store, &self.limits));
        opened.insert(url.scheme().clone(), store.clone());
        Ok(self.layered(url.scheme(), store))
    }

    fn layered(&self, scheme: &Scheme, store: Arc<dyn Blobs>) -> Arc<dyn Blobs> {
        let Layers { faults, component, scope, meter, guard, retry } = &self.layers;
        let store = match faults {
            Some(faults) => Arc::new(FaultyBlobs::new(store, faults.clone(), *component, *scope)),
            None => store,
        };
        let store = match meter {
            Some(meter) => meter.over(scheme, store),
            None => store,
        };
        let store = match guard {
            Some(guard) => guard.over(scheme, store),
            None => store,
        };
        match retry {
            Some(retry) => Arc::new(RetryingBlobs::new(store, retry.clone())),
            None => store,
        }
    }

    /// Writes bytes and returns a checked pointer to them.
    ///
    /// # Errors
    /// As [`Blobs::put`].
    pub async fn put_ref(&self, url: &BlobUrl, bytes: Vec<u8>) -> Result<BlobRef> {
        let digest = digest(&bytes);
        let pointer = BlobRef { url: url.to_string(), bytes: bytes.len() as u64, digest };
        self.open(url).await?.put(url.key(), bytes.into()).await.map_err(|e| e.at(url))?;
        Ok(pointer)
    }

    /// Reads what a pointer points to, and checks length and digest. What does not hold is read
    /// again: it may have been damaged on its way.
    ///
    /// # Errors
    /// `Corrupt` where they differ each time, `Invalid` beyond `bytes_max`; else as
    /// [`Blobs::read`].
    pub async fn get_ref(&self, pointer: &BlobRef, bytes_max: u64) -> Result<Bytes> {
        let url: BlobUrl = pointer.url.parse()?;
        if pointer.bytes > bytes_max {
            return Err(Error::invalid(format!(
                "{url} has {} bytes, more than the limit of {bytes_max}",
                pointer.bytes
            )));
        }
        let store = self.open(&url).await?;
        read_whole(|| async {
            let bytes = store
                .read(url.key(), 0..pointer.bytes, Access::Cached)
                .await
                .map_err(|e| e.at(&url))?;
            let digest = digest(&bytes);
            if digest != pointer.digest {
                return Err(Error::corrupt(format!(
                    "{url} has digest {digest:016x}, not {:016x}",
                    pointer.digest
                )));
            }
            Ok(bytes)
        })
        .await
    }
}
