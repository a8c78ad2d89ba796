use std::sync::atomic::Ordering;
use std::time::Duration;

use muster_kernel::run::Sink;
use muster_platform::adapters::local::LocalBlobs;
use muster_platform::clock::ManualClock;
use muster_platform::store::Access;

use super::*;
use crate::crew::Tokio;
use crate::memory::{PartsPlan, WindowsPlan};
use crate::testing::{Shaky, retry};

const PLAN: PartsPlan = PartsPlan { part_bytes: 64 << 10, in_flight: 2 };

fn link() -> Link {
    Link {
        crew: Arc::new(Tokio::current()),
        cancel: CancellationToken::new(),
        retry: retry(),
        buffers: BufferPool::new(1 << 20),
        disk: Arc::new(Semaphore::new(2)),
        findings: Findings::default(),
    }
}

fn leftovers() -> Leftovers {
    Leftovers::new(Arc::new(ManualClock::default()))
}

fn object(store: Arc<dyn Blobs>, url: &str) -> Object {
    Object { store, url: Arc::new(url.parse().expect("url")), patience_ms: None }
}

fn data(bytes: usize) -> Vec<u8> {
    (0..bytes as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// Writes `data` in pieces of odd sizes and completes the upload.
async fn write(
    link: &Link,
    object: &Object,
    leftovers: &Leftovers,
    data: Vec<u8>,
) -> Result<Uploaded> {
    let upload = object.store.open_upload(object.key()).await?;
    leftovers.opened(object, &upload);
    let (link, target, id) = (link.clone(), object.clone(), upload.clone());
    let written = tokio::task::spawn_blocking(move || {
        let mut sink = PartSink::new(&link, vec![Upload { object: target, id }], PLAN)?;
        for piece in data.chunks(10_007) {
            sink.buffer().extend_from_slice(piece);
            sink.flushed()?;
        }
        Ok::<_, Error>(sink.finish()?.remove(0))
    });
    let uploaded = written.await.expect("blocking task")?;
    object
        .store
        .complete_upload(object.key(), &upload, &uploaded.tags, uploaded.bytes, false)
        .await?;
    leftovers.completed(object);
    Ok(uploaded)
}

async fn read_all(link: &Link, span: Span, plan: WindowsPlan) -> Result<Vec<u8>> {
    let link = link.clone();
    let reading = tokio::task::spawn_blocking(move || {
        let mut prefetch = Prefetch::of(&link, span, plan);
        let mut all = Vec::new();
        while let Some(bytes) = prefetch.next_span()? {
            all.extend_from_slice(&bytes);
        }
        Ok(all)
    });
    reading.await.expect("blocking task")
}

#[tokio::test]
async fn what_is_written_is_read_in_memory_and_on_disk() {
    let dir = tempfile::tempdir().expect("dir");
    let link = link();
    let local: Arc<dyn Blobs> = Arc::new(LocalBlobs::new(link.buffers.clone()));
    let memory: Arc<dyn Blobs> = Arc::new(Shaky::default());
    let plan = WindowsPlan { window_bytes: 32 << 10, ahead_bytes: 96 << 10 };
    for bytes in [0, 1, 4096, 64 << 10, 1_000_003] {
        let path = format!("{}/object-{bytes}", dir.path().display());
        for object in
            [object(local.clone(), &path), object(memory.clone(), &format!("memory:///{bytes}"))]
        {
            let data = data(bytes);
            let uploaded = write(&link, &object, &leftovers(), data.clone()).await.expect("write");
            assert_eq!(uploaded.bytes, bytes as u64);
            // Parts carry what is beyond a multiple of the alignment into the next: an object has a
            // few less than by its size.
            assert!(
                (1..=bytes / PLAN.part_bytes + 1).contains(&uploaded.tags.len()),
                "{bytes}: {:?}",
                uploaded.tags
            );
            for access in [Access::Cached, Access::Once] {
                let skip = bytes.min(1);
                let span =
                    Span { object: object.clone(), range: skip as u64..bytes as u64, access };
                assert!(
                    read_all(&link, span, plan).await.expect("read") == data[skip..],
                    "{object} {access:?}"
                );
            }
        }
    }
}

#[tokio::test]
async fn windows_cut_at_aligned_offsets_and_stay_few() {
    let store = Arc::new(Shaky::default());
    let link = link();
    store.inner.put("a", data(500_000).into()).await.expect("put");
    let span = Span {
        object: object(store.clone(), "memory:///a"),
        range: 5000..500_000,
        access: Access::Once,
    };
    let cuts: Vec<_> = windows(span.clone(), 40_000).map(|span| span.range).collect();
    assert_eq!((cuts[0].start, cuts.last().map(|cut| cut.end)), (5000, Some(500_000)));
    assert!(cuts.windows(2).all(|pair| pair[0].end == pair[1].start && pair[0].end % 4096 == 0));
    let plan = WindowsPlan { window_bytes: 36_864, ahead_bytes: 3 * 36_864 };
    read_all(&link, span, plan).await.expect("read");
    assert!(
        (1..=3).contains(&store.reading_max.load(Ordering::SeqCst)),
        "{}",
        store.reading_max.load(Ordering::SeqCst)
    );
}

#[tokio::test]
async fn passing_trouble_is_read_through_and_counted() {
    let store = Arc::new(Shaky::default());
    let link = link();
    store.inner.put("a", data(300_000).into()).await.expect("put");
    store.failing_reads.store(2, Ordering::SeqCst);
    let span = Span {
        object: object(store.clone(), "memory:///a"),
        range: 0..300_000,
        access: Access::Cached,
    };
    let all =
        read_all(&link, span, WindowsPlan { window_bytes: 65_536, ahead_bytes: 65_536 }).await;
    assert_eq!(all.expect("read"), data(300_000));
    assert_eq!(link.retry.retried(), 2);
}

#[tokio::test]
async fn a_failed_upload_is_aborted() {
    let store = Arc::new(Shaky::default());
    let (link, leftovers) = (link(), leftovers());
    store.failing_part.store(3, Ordering::SeqCst);
    let error = write(&link, &object(store.clone(), "memory:///a"), &leftovers, data(1_000_000))
        .await
        .expect_err("full");
    assert_eq!(error.kind, ErrorKind::Exhausted);
    assert_eq!(error.message, "memory:///a: the store is full");
    assert_eq!(store.inner.open_uploads(), 1);
    leftovers.remove_all().await;
    assert_eq!(store.contents().await, (vec![], 0));
    assert!(leftovers.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_removed_is_tried_again_and_stays_noted() {
    for (failing, left) in [(5, 0), (1000, 1)] {
        let store = Arc::new(Shaky::default());
        let leftovers = leftovers();
        let object = object(store.clone(), "memory:///a");
        leftovers.opened(&object, &store.open_upload("a").await.expect("open"));
        store.failing_aborts.store(failing, Ordering::SeqCst);
        leftovers.remove_all().await;
        assert_eq!(
            (store.inner.open_uploads(), leftovers.is_empty()),
            (left, left == 0),
            "{failing} failures"
        );
        store.failing_aborts.store(0, Ordering::SeqCst);
        leftovers.remove_all().await;
        assert_eq!(
            (store.inner.open_uploads(), leftovers.is_empty()),
            (0, true),
            "{failing} failures"
        );
    }
}

#[tokio::test]
async fn a_cancelled_upload_stops_waiting() {
    let store = Arc::new(Shaky::default());
    let (link, leftovers) = (link(), leftovers());
    store.hanging_part.store(1, Ordering::SeqCst);
    let cancel = link.cancel.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(20)).await;
        cancel.cancel();
    });
    let error = write(&link, &object(store.clone(), "memory:///a"), &leftovers, data(1_000_000))
        .await
        .expect_err("cancelled");
    assert_eq!(error, abandoned());
    leftovers.remove_all().await;
    assert_eq!(store.contents().await, (vec![], 0));
}

#[tokio::test]
async fn a_completed_object_is_removed_when_it_does_not_count() {
    let store = Arc::new(Shaky::default());
    let (link, leftovers) = (link(), leftovers());
    write(&link, &object(store.clone(), "memory:///a"), &leftovers, data(100))
        .await
        .expect("write");
    assert_eq!(store.contents().await, (vec!["a".to_owned()], 0));
    leftovers.remove_all().await;
    assert_eq!(store.contents().await, (vec![], 0));
}
