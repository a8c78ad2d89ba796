//! Tries a bucket as jobs use it, under a name of its own that is removed again, and judges what
//! came of it.

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use muster_platform::clock::Clock;
use muster_platform::store::{Access, BlobUrl, Blobs, PartAt};
use muster_platform::stores::Stores;
use muster_protocol::names;
use muster_protocol::{Error, ErrorKind, Result};

use super::finding::Finding;
use crate::output;

/// Bytes of the object by which throughput is measured: two parts, the first as small as S3 allows.
const LARGE_BYTES: usize = 8 << 20;
const PART_BYTES: usize = 5 << 20;
const SMALL_BYTES: usize = 64 << 10;
/// Small requests that are timed.
const LATENCY_TRIES: usize = 5;
const LISTED_MAX: usize = 100;
/// Beyond these a store slows every task.
const LATENCY_SLOW_MS: u64 = 500;
const RATE_SLOW: u64 = 5 << 20;

/// One step of the probe.
#[derive(Debug)]
pub(super) struct Step {
    /// What was done: the right that it needs.
    pub(super) doing: &'static str,
    /// How long it took.
    pub(super) result: Result<u64>,
}

/// What the probe came to.
#[derive(Debug, Default)]
pub(super) struct Probe {
    pub(super) steps: Vec<Step>,
    pub(super) latency_ms: Option<u64>,
    pub(super) write_ms: Option<u64>,
    pub(super) read_ms: Option<u64>,
    /// The store's clock beyond ours, in milliseconds, to a second.
    pub(super) clock_ahead_ms: Option<i64>,
    /// What could not be removed again.
    pub(super) left: Vec<String>,
}

struct Prober<'a> {
    store: Arc<dyn Blobs>,
    clock: &'a dyn Clock,
    probe: Probe,
}

impl Prober<'_> {
    /// One step; later ones that need its value are left out where it fails.
    async fn step<T>(
        &mut self,
        doing: &'static str,
        call: impl Future<Output = Result<T>>,
    ) -> Option<T> {
        let began_ms = self.clock.now_ms();
        let outcome = call.await;
        let took_ms = self.clock.now_ms().saturating_sub(began_ms);
        let (result, value) = match outcome {
            Ok(value) => (Ok(took_ms), Some(value)),
            Err(error) => (Err(error), None),
        };
        self.probe.steps.push(Step { doing, result });
        value
    }

    fn last_ms(&self) -> Option<u64> {
        self.probe.steps.last().and_then(|step| step.result.as_ref().ok().copied())
    }
}

/// Tries everything, and removes what it made.
///
/// # Errors
/// `Invalid` where no client of the store can be made; what the store refuses stands in the probe.
pub(super) async fn probe(stores: &Stores, bucket: &BlobUrl, clock: &dyn Clock) -> Result<Probe> {
    let store = stores.open(bucket).await?;
    let folder = bucket.join(&names::probe_path(clock.random()));
    let key = |name: &str| folder.join(name).key().to_owned();
    let (small, large, dropped) = (key("small"), key("large"), key("dropped"));
    let mut prober = Prober { store: store.clone(), clock, probe: Probe::default() };
    try_small(&mut prober, &small).await;
    let whole = try_large(&mut prober, stores, &large).await;
    try_abort(&mut prober, &dropped).await;
    if whole {
        let listed =
            prober.step("list", async { store.list(folder.key(), LISTED_MAX).await }).await;
        if let Some(listed) = listed {
            let seen = listed.iter().filter(|meta| meta.key == small || meta.key == large).count();
            let missing =
                Error::corrupt(format!("{seen} of 2 objects that were just written are listed"));
            let result = if seen == 2 { Ok(0) } else { Err(missing) };
            prober.probe.steps.push(Step { doing: "list what was just written", result });
        }
    }
    for key in [&small, &large] {
        prober.step("delete", async { store.delete(key).await }).await;
    }
    drop(store.prune(folder.key()).await);
    // The folder above is muster's own too; it stays where anything else is in it.
    drop(store.prune(bucket.join(names::SCRATCH_DIR).key()).await);
    let objects = store.list(folder.key(), LISTED_MAX).await.unwrap_or_default();
    let uploads = store.list_uploads(folder.key(), LISTED_MAX).await.unwrap_or_default();
    prober.probe.left = objects
        .into_iter()
        .map(|meta| meta.key)
        .chain(uploads.into_iter().map(|open| open.key))
        .collect();
    Ok(prober.probe)
}

async fn try_small(prober: &mut Prober<'_>, key: &str) {
    let store = prober.store.clone();
    let bytes = Bytes::from(pattern(SMALL_BYTES));
    if prober.step("write", async { store.put(key, bytes.clone()).await }).await.is_none() {
        return;
    }
    let unix_ms = prober.clock.unix_ms();
    if let Some(meta) = prober.step("look", async { store.head(key).await }).await {
        if meta.modified_unix_ms > 0 {
            let ahead = i128::from(meta.modified_unix_ms) - i128::from(unix_ms);
            prober.probe.clock_ahead_ms = i64::try_from(ahead).ok();
        }
        let result = if meta.bytes == SMALL_BYTES as u64 {
            Ok(0)
        } else {
            Err(Error::corrupt(format!(
                "{} bytes were written, but {} are there",
                SMALL_BYTES, meta.bytes
            )))
        };
        prober.probe.steps.push(Step { doing: "look at what was just written", result });
    }
    let middle = 1000..3000_usize;
    let range = middle.start as u64..middle.end as u64;
    let read = prober
        .step("read a range", async { store.read(key, range.clone(), Access::Cached).await })
        .await;
    if let Some(read) = read {
        let result = if read == bytes[middle] {
            Ok(0)
        } else {
            Err(Error::corrupt("a range holds other bytes than were written"))
        };
        prober.probe.steps.push(Step { doing: "read the bytes that were written", result });
    }
    let mut times = Vec::new();
    for _ in 0..LATENCY_TRIES {
        let began_ms = prober.clock.now_ms();
        if store.read(key, 0..100, Access::Cached).await.is_err() {
            return;
        }
        times.push(prober.clock.now_ms().saturating_sub(began_ms));
    }
    times.sort_unstable();
    prober.probe.latency_ms = times.get(times.len() / 2).copied();
}

/// An upload of two parts; whether it stands at the end.
async fn try_large(prober: &mut Prober<'_>, stores: &Stores, key: &str) -> bool {
    let store = prober.store.clone();
    let Some(upload) = prober.step("open an upload", async { store.open_upload(key).await }).await
    else {
        return false;
    };
    let bytes = pattern(LARGE_BYTES);
    let put = async {
        let mut tags = Vec::new();
        for (index, at) in [0, PART_BYTES].into_iter().enumerate() {
            let part = &bytes[at..(at + PART_BYTES).min(LARGE_BYTES)];
            let mut buffer = stores.buffers().take(part.len());
            buffer.vec_mut().extend_from_slice(part);
            let place = PartAt { index: u32::try_from(index).unwrap_or(0), offset: at as u64 };
            tags.push(store.upload_part(key, &upload, place, buffer.into()).await?);
        }
        Ok(tags)
    };
    let tags = prober.step("upload parts", put).await;
    prober.probe.write_ms = prober.last_ms();
    prober.step("list uploads", async { store.list_uploads(key, LISTED_MAX).await }).await;
    let completed = match &tags {
        Some(tags) => {
            let complete = async {
                store.complete_upload(key, &upload, tags, LARGE_BYTES as u64, false).await
            };
            prober.step("complete an upload", complete).await.is_some()
        }
        None => false,
    };
    if !completed {
        prober.step("abort an upload", async { store.abort_upload(key, &upload).await }).await;
        return false;
    }
    let range = 0..LARGE_BYTES as u64;
    let read =
        prober.step("read", async { store.read(key, range.clone(), Access::Once).await }).await;
    prober.probe.read_ms = prober.last_ms();
    if let Some(read) = read {
        let result = if read == bytes {
            Ok(0)
        } else {
            Err(Error::corrupt("an upload holds other bytes than its parts"))
        };
        prober.probe.steps.push(Step { doing: "read the parts that were uploaded", result });
    }
    true
}

/// An aborted upload must never become whole: that is how a zombie is kept from committing.
async fn try_abort(prober: &mut Prober<'_>, key: &str) {
    let store = prober.store.clone();
    let Some(upload) = prober.step("open an upload", async { store.open_upload(key).await }).await
    else {
        return;
    };
    if prober
        .step("abort an upload", async { store.abort_upload(key, &upload).await })
        .await
        .is_none()
    {
        return;
    }
    let stands = match store.complete_upload(key, &upload, &["x".to_owned()], 1, false).await {
        Ok(_) => true,
        Err(_) => store.head(key).await.is_ok(),
    };
    let result = if stands {
        drop(store.delete(key).await);
        Err(Error::corrupt("an upload that was aborted could be completed"))
    } else {
        Ok(0)
    };
    prober.probe.steps.push(Step { doing: "refuse to complete an aborted upload", result });
}

/// Bytes that differ from place to place.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8 ^ (at / 251 % 256) as u8).collect()
}

/// What the probe means.
pub(super) fn judge(url: &str, probe: &Probe) -> Vec<Finding> {
    const CHECK: &str = "bucket";
    let mut findings = Vec::new();
    for step in &probe.steps {
        if let Err(error) = &step.result {
            findings.push(Finding::problem(
                format!("{CHECK}: {}", step.doing),
                error.message.clone(),
                advice(step.doing, error),
            ));
        }
    }
    if findings.is_empty() {
        let mut done: Vec<&str> = Vec::new();
        for step in &probe.steps {
            if !done.contains(&step.doing) {
                done.push(step.doing);
            }
        }
        findings.push(Finding::ok(CHECK, format!("{url}: {}", done.join(", "))));
    }
    findings.extend(speed(probe));
    if let Some(ahead_ms) = probe.clock_ahead_ms.filter(|ahead_ms| ahead_ms.unsigned_abs() > 60_000)
    {
        let seen = format!(
            "the store's clock is {} s {} this one",
            ahead_ms.unsigned_abs() / 1000,
            if ahead_ms > 0 { "ahead of" } else { "behind" }
        );
        findings.push(Finding::warning(
            "bucket-clock",
            seen,
            "signatures are refused from 15 minutes on: run an NTP client",
        ));
    }
    if !probe.left.is_empty() {
        let seen = format!("could not be removed again: {}", probe.left.join(", "));
        findings.push(Finding::problem(
            "bucket: delete",
            seen,
            "jobs would leave all their scratch: give this user the right to delete and to abort \
                uploads",
        ));
    }
    findings
}

fn speed(probe: &Probe) -> Option<Finding> {
    const CHECK: &str = "bucket-speed";
    let (latency_ms, write_ms, read_ms) = (probe.latency_ms?, probe.write_ms?, probe.read_ms?);
    let bytes = LARGE_BYTES as u64;
    let (write_ms, read_ms) = (write_ms.max(1), read_ms.max(1));
    let seen = format!(
        "{latency_ms} ms for a small read; one stream writes {} and reads {}",
        output::rate(bytes, write_ms),
        output::rate(bytes, read_ms)
    );
    let slow = latency_ms > LATENCY_SLOW_MS || bytes * 1000 / write_ms.max(read_ms) < RATE_SLOW;
    Some(if slow {
        Finding::warning(
            CHECK,
            seen,
            "the store will be what jobs wait for: run workers near it, on a faster network",
        )
    } else {
        Finding::ok(CHECK, seen)
    })
}

fn advice(doing: &str, error: &Error) -> String {
    match error.kind {
        ErrorKind::Retry => {
            "the store did not answer or is overloaded: check AWS_ENDPOINT_URL, the network and \
                the store"
                .to_owned()
        }
        ErrorKind::Corrupt => "jobs cannot rely on this store: use another".to_owned(),
        ErrorKind::Exhausted => "make room in the store".to_owned(),
        ErrorKind::Setup => "mend what is named: no wait helps, and jobs end at once".to_owned(),
        _ => {
            let right = match doing {
                "write"
                | "open an upload"
                | "upload parts"
                | "complete an \
                    upload" => "s3:PutObject",
                "look" | "read" | "read a range" => "s3:GetObject",
                "list" => "s3:ListBucket",
                "list uploads" => "s3:ListBucketMultipartUploads",
                "abort an upload" => "s3:AbortMultipartUpload",
                _ => "s3:DeleteObject",
            };
            format!(
                "create the bucket, or give this user its rights ({right}, or write access to \
                the folder)"
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;
    use muster_platform::buffer::BufferPool;
    use muster_platform::clock::SystemClock;
    use muster_platform::config::{Config, Profile};

    #[tokio::test]
    async fn a_sound_store_passes_and_keeps_nothing() {
        let dir = tempfile::tempdir().expect("dir");
        let stores = Stores::new(
            BufferPool::new(16 << 20),
            &Config::profile(Profile::Testing).expect("settings").store,
        );
        for bucket in
            [BlobUrl::from_path(dir.path()).expect("url"), "memory:///b".parse().expect("url")]
        {
            let probe = probe(&stores, &bucket, &SystemClock::default()).await.expect("probe");
            let findings = judge(&bucket.to_string(), &probe);
            assert!(
                findings.iter().all(|finding| finding.level <= Level::Warning),
                "{findings:#?}"
            );
            assert!(
                findings[0].seen.contains("upload parts") && findings[0].seen.contains("delete"),
                "{findings:#?}"
            );
            assert_eq!(
                stores
                    .open(&bucket)
                    .await
                    .expect("store")
                    .list(bucket.key(), 10)
                    .await
                    .expect("list"),
                []
            );
        }
        assert_eq!(std::fs::read_dir(dir.path()).expect("dir").count(), 0, "folders are left");
    }

    #[tokio::test]
    async fn a_folder_that_cannot_be_written_is_a_problem() {
        let dir = tempfile::tempdir().expect("dir");
        let file = dir.path().join("file");
        std::fs::write(&file, "x").expect("file");
        let stores = Stores::new(
            BufferPool::new(16 << 20),
            &Config::profile(Profile::Testing).expect("settings").store,
        );
        let bucket = BlobUrl::from_path(&file).expect("url");
        let probe = probe(&stores, &bucket, &SystemClock::default()).await.expect("probe");
        let findings = judge("x", &probe);
        assert!(
            findings.iter().any(|f| f.level == Level::Problem && f.check == "bucket: write"),
            "{findings:#?}"
        );
    }

    #[test]
    fn slow_stores_and_what_is_left_are_said() {
        let probe = |latency_ms, write_ms, left: &[&str]| Probe {
            latency_ms: Some(latency_ms),
            write_ms: Some(write_ms),
            read_ms: Some(100),
            left: left.iter().map(|text| (*text).to_owned()).collect(),
            ..Probe::default()
        };
        let levels = |probe: &Probe| judge("u", probe).iter().map(|finding| finding.level).max();
        assert_eq!(levels(&probe(10, 100, &[])), Some(Level::Ok));
        assert_eq!(levels(&probe(900, 100, &[])), Some(Level::Warning));
        assert_eq!(levels(&probe(10, 9_000, &[])), Some(Level::Warning));
        assert_eq!(levels(&probe(10, 100, &["k"])), Some(Level::Problem));
        let denied = Probe {
            steps: vec![Step {
                doing: "list uploads",
                result: Err(Error::invalid("access denied")),
            }],
            ..Probe::default()
        };
        let findings = judge("u", &denied);
        assert!(findings[0].advice.contains("s3:ListBucketMultipartUploads"), "{findings:?}");
    }
}
