//! A store whose calls are counted: how many of which kind, what came of them, how long they took,
//! and the bytes they moved. Laid around stores only where somebody watches.

use std::future::Future;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use bytes::Bytes;
use metrics::{Counter, Histogram};
use tokio::time::Instant;

use crate::store::{Access, BlobMeta, Blobs, Completed, Layer, OpenUpload, PartAt, Scheme};
use crate::survey::{Survey, Wanted};
use crate::vitals::{Family, Vitals};
use muster_protocol::error::{ErrorKind, Result};

const CALLS: Family = Family::new(
    "muster_store_calls_total",
    "Calls of stores, second ones of slow reads included, by what came of them",
);
const SECONDS: Family = Family::new(
    "muster_store_call_seconds",
    "How long calls of stores took, whatever came of them",
);
const READ: Family =
    Family::new("muster_store_read_bytes_total", "Bytes that were read from stores");
const WRITTEN: Family =
    Family::new("muster_store_written_bytes_total", "Bytes that were written to stores");

const CALL: [&str; 11] = [
    "list",
    "head",
    "read",
    "put",
    "open_upload",
    "upload_part",
    "complete_upload",
    "abort_upload",
    "list_uploads",
    "delete",
    "prune",
];
const OUTCOMES: [&str; 8] =
    ["ok", "retry", "throttled", "not_found", "invalid", "corrupt", "exhausted", "other"];
const STORES: [&str; 4] = ["file", "s3", "memory", "worker"];

/// Which call; places in [`CALL`].
#[derive(Debug, Clone, Copy)]
enum Call {
    List,
    Head,
    Read,
    Put,
    OpenUpload,
    UploadPart,
    CompleteUpload,
    AbortUpload,
    ListUploads,
    Delete,
    Prune,
}

/// The counters of a process's stores.
pub struct Meter {
    vitals: Arc<Vitals>,
    kinds: [OnceLock<Arc<Counters>>; STORES.len()],
}

/// The counters of one kind of store.
struct Counters {
    vitals: Arc<Vitals>,
    store: &'static str,
    calls: [[OnceLock<Counter>; OUTCOMES.len()]; CALL.len()],
    seconds: [OnceLock<Histogram>; CALL.len()],
    read: Counter,
    written: Counter,
}

impl Meter {
    /// Counts into these.
    pub fn new(vitals: Arc<Vitals>) -> Self {
        Self { vitals, kinds: Default::default() }
    }
}

impl Layer for Meter {
    fn over(&self, scheme: &Scheme, store: Arc<dyn Blobs>) -> Arc<dyn Blobs> {
        let kind = match scheme {
            Scheme::File => 0,
            Scheme::S3 { .. } => 1,
            Scheme::Memory => 2,
            Scheme::Worker { .. } => 3,
        };
        let new = || Arc::new(Counters::new(self.vitals.clone(), STORES[kind]));
        Arc::new(Metered { store, counters: self.kinds[kind].get_or_init(new).clone() })
    }
}

impl Counters {
    fn new(vitals: Arc<Vitals>, store: &'static str) -> Self {
        let labels = [("store", store)];
        let (read, written) = (vitals.counter(READ, &labels), vitals.counter(WRITTEN, &labels));
        Self {
            vitals,
            store,
            calls: Default::default(),
            seconds: Default::default(),
            read,
            written,
        }
    }

    fn count(&self, call: Call, outcome: usize, took: std::time::Duration) {
        let (at, word) = (call as usize, CALL[call as usize]);
        let labels = [("store", self.store), ("call", word), ("outcome", OUTCOMES[outcome])];
        self.calls[at][outcome].get_or_init(|| self.vitals.counter(CALLS, &labels)).increment(1);
        self.seconds[at]
            .get_or_init(|| self.vitals.histogram(SECONDS, &labels[..2]))
            .record(took.as_secs_f64());
    }
}

/// A store whose calls are counted.
struct Metered {
    store: Arc<dyn Blobs>,
    counters: Arc<Counters>,
}

impl Metered {
    async fn count<T>(&self, call: Call, doing: impl Future<Output = Result<T>>) -> Result<T> {
        // Nothing is decided by it, and milliseconds are too coarse for a disk: so not the clock's
        // port.
        let began = Instant::now();
        let result = doing.await;
        let outcome = match result.as_ref().err().map(|error| error.kind) {
            None => 0,
            Some(ErrorKind::Retry) => 1,
            Some(ErrorKind::Throttled) => 2,
            Some(ErrorKind::NotFound) => 3,
            Some(ErrorKind::Invalid) => 4,
            Some(ErrorKind::Corrupt) => 5,
            Some(ErrorKind::Exhausted | ErrorKind::OutOfMemory | ErrorKind::NeedsMemory { .. }) => {
                6
            }
            Some(ErrorKind::Fenced | ErrorKind::Bug | ErrorKind::Setup | ErrorKind::WorkerDied) => {
                7
            }
        };
        self.counters.count(call, outcome, began.elapsed());
        result
    }

    async fn write<T>(
        &self,
        call: Call,
        bytes: usize,
        doing: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let result = self.count(call, doing).await;
        if result.is_ok() {
            self.counters.written.increment(bytes as u64);
        }
        result
    }
}

#[async_trait]
impl Blobs for Metered {
    async fn list(&self, prefix: &str, limit: usize) -> Result<Vec<BlobMeta>> {
        self.count(Call::List, self.store.list(prefix, limit)).await
    }

    async fn survey(&self, wanted: &Wanted) -> Result<Survey> {
        self.count(Call::List, self.store.survey(wanted)).await
    }

    async fn head(&self, key: &str) -> Result<BlobMeta> {
        self.count(Call::Head, self.store.head(key)).await
    }

    async fn read(&self, key: &str, range: Range<u64>, access: Access) -> Result<Bytes> {
        let result = self.count(Call::Read, self.store.read(key, range, access)).await;
        if let Ok(bytes) = &result {
            self.counters.read.increment(bytes.len() as u64);
        }
        result
    }

    async fn put(&self, key: &str, bytes: Bytes) -> Result<()> {
        self.write(Call::Put, bytes.len(), self.store.put(key, bytes)).await
    }

    async fn open_upload(&self, key: &str) -> Result<String> {
        self.count(Call::OpenUpload, self.store.open_upload(key)).await
    }

    async fn upload_part(
        &self,
        key: &str,
        upload: &str,
        at: PartAt,
        data: Bytes,
    ) -> Result<String> {
        self.write(Call::UploadPart, data.len(), self.store.upload_part(key, upload, at, data))
            .await
    }

    async fn complete_upload(
        &self,
        key: &str,
        upload: &str,
        tags: &[String],
        bytes: u64,
        sync: bool,
    ) -> Result<Completed> {
        self.count(Call::CompleteUpload, self.store.complete_upload(key, upload, tags, bytes, sync))
            .await
    }

    async fn abort_upload(&self, key: &str, upload: &str) -> Result<()> {
        self.count(Call::AbortUpload, self.store.abort_upload(key, upload)).await
    }

    async fn list_uploads(&self, prefix: &str, limit: usize) -> Result<Vec<OpenUpload>> {
        self.count(Call::ListUploads, self.store.list_uploads(prefix, limit)).await
    }

    async fn delete(&self, key: &str) -> Result<()> {
        self.count(Call::Delete, self.store.delete(key)).await
    }

    async fn prune(&self, prefix: &str) -> Result<()> {
        self.count(Call::Prune, self.store.prune(prefix)).await
    }

    async fn check_place(&self, key: &str) -> Result<()> {
        self.count(Call::Head, self.store.check_place(key)).await
    }

    async fn remove_folder(&self, key: &str) -> Result<()> {
        self.count(Call::Prune, self.store.remove_folder(key)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::memory::MemoryBlobs;
    use crate::clock::ManualClock;
    use crate::conformance;

    fn metered() -> (Arc<Vitals>, Arc<dyn Blobs>) {
        let vitals =
            Vitals::new("worker", "1", 1000, Arc::new(ManualClock::default())).expect("vitals");
        let vitals = Arc::new(vitals);
        let store =
            Meter::new(vitals.clone()).over(&Scheme::Memory, Arc::new(MemoryBlobs::default()));
        (vitals, store)
    }

    #[tokio::test]
    async fn a_metered_store_passes_the_suite() {
        conformance::blobs(metered().1.as_ref(), "root").await;
    }

    #[tokio::test]
    async fn calls_are_counted_by_what_came_of_them() {
        let (vitals, store) = metered();
        store.put("a", Bytes::from_static(b"12345")).await.expect("put");
        store.read("a", 1..4, Access::Cached).await.expect("read");
        assert!(store.read("b", 1..4, Access::Cached).await.is_err());
        let text = String::from_utf8_lossy(&vitals.render()).into_owned();
        for line in [
            r#"muster_store_calls_total{store="memory",call="put",outcome="ok"} 1"#,
            r#"muster_store_calls_total{store="memory",call="read",outcome="ok"} 1"#,
            r#"muster_store_calls_total{store="memory",call="read",outcome="not_found"} 1"#,
            r#"muster_store_call_seconds_count{store="memory",call="read"} 2"#,
            r#"muster_store_read_bytes_total{store="memory"} 3"#,
            r#"muster_store_written_bytes_total{store="memory"} 5"#,
        ] {
            assert!(text.lines().any(|shown| shown == line), "{line} in {text}");
        }
        assert!(!text.contains("\"a\""), "no name of an object is a label: {text}");
    }
}
