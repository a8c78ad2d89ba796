//! One suite for every adapter of a port: what callers rely on, checked against memory, the file
//! system and real servers alike.
//!
//! These functions panic where an adapter breaks its contract; they are for tests only.

#![expect(clippy::unwrap_used, reason = "a broken contract ends the test")]

use bytes::Bytes;

use crate::buffer::BufferPool;
use crate::ledger::{Appended, Ledger};
use crate::store::{Access, Blobs, Completed, OpenUpload, PartAt};
use muster_protocol::error::ErrorKind;

/// Smallest part that S3 takes before the last.
const PART_BYTES: usize = 5 << 20;

fn buffer(bytes: &[u8]) -> Bytes {
    let mut buffer = BufferPool::new(0).take(bytes.len());
    buffer.vec_mut().extend_from_slice(bytes);
    buffer.into()
}

/// Checks an object store below `root`, which must be empty and is left empty.
///
/// # Panics
/// Where a contract of [`Blobs`] is broken.
pub async fn blobs(store: &dyn Blobs, root: &str) {
    whole_objects(store, root).await;
    listings(store, root).await;
    uploads(store, root).await;
    aborted_uploads(store, root).await;
    store.prune(root).await.unwrap();
    assert!(store.list(root, 10).await.unwrap().is_empty(), "the suite leaves nothing");
}

async fn whole_objects(store: &dyn Blobs, root: &str) {
    let key = format!("{root}/whole/object");
    assert_eq!(store.head(&key).await.unwrap_err().kind, ErrorKind::NotFound);
    assert_eq!(store.read(&key, 0..1, Access::Cached).await.unwrap_err().kind, ErrorKind::NotFound);
    store.put(&key, Bytes::from_static(b"0123456789")).await.unwrap();
    let meta = store.head(&key).await.unwrap();
    assert_eq!((meta.key.as_str(), meta.bytes), (key.as_str(), 10));
    assert_eq!(&store.read(&key, 2..5, Access::Cached).await.unwrap()[..], b"234");
    assert_eq!(&store.read(&key, 0..10, Access::Once).await.unwrap()[..], b"0123456789");
    assert!(store.read(&key, 4..4, Access::Once).await.unwrap().is_empty());
    assert_eq!(
        store.read(&key, 5..11, Access::Cached).await.unwrap_err().kind,
        ErrorKind::Corrupt,
        "no short reads"
    );
    store.put(&key, Bytes::from_static(b"other bytes")).await.unwrap();
    assert_ne!(
        store.head(&key).await.unwrap().version,
        meta.version,
        "a new object has a new version"
    );
    store.put(&key, Bytes::new()).await.unwrap();
    assert_eq!(store.head(&key).await.unwrap().bytes, 0);
    store.delete(&key).await.unwrap();
    store.delete(&key).await.unwrap();
    assert_eq!(store.head(&key).await.unwrap_err().kind, ErrorKind::NotFound);
}

async fn listings(store: &dyn Blobs, root: &str) {
    let names = ["l/a", "l/a.b", "l/b/c", "l/b/d", "lx"];
    for name in names {
        store.put(&format!("{root}/{name}"), Bytes::from_static(b"x")).await.unwrap();
    }
    let below = |found: Vec<crate::store::BlobMeta>| -> Vec<String> {
        found
            .into_iter()
            .map(|meta| meta.key.trim_start_matches(&format!("{root}/")).to_owned())
            .collect()
    };
    assert_eq!(
        below(store.list(&format!("{root}/l"), 10).await.unwrap()),
        ["l/a", "l/a.b", "l/b/c", "l/b/d"]
    );
    assert_eq!(below(store.list(&format!("{root}/l/b"), 10).await.unwrap()), ["l/b/c", "l/b/d"]);
    assert!(store.list(&format!("{root}/none"), 10).await.unwrap().is_empty());
    assert_eq!(store.list(&format!("{root}/l"), 3).await.unwrap_err().kind, ErrorKind::Exhausted);
    for name in names {
        store.delete(&format!("{root}/{name}")).await.unwrap();
    }
}

async fn uploads(store: &dyn Blobs, root: &str) {
    let key = format!("{root}/up/part-00000.txt");
    let (first, second) = (vec![b'a'; PART_BYTES], b"the rest".to_vec());
    let total = (first.len() + second.len()) as u64;
    let upload = store.open_upload(&key).await.unwrap();
    let last = PartAt { index: 1, offset: first.len() as u64 };
    let tag_last = store.upload_part(&key, &upload, last, buffer(&second)).await.unwrap();
    let tag_first = store
        .upload_part(&key, &upload, PartAt { index: 0, offset: 0 }, buffer(&first))
        .await
        .unwrap();
    assert_eq!(
        store.head(&key).await.unwrap_err().kind,
        ErrorKind::NotFound,
        "nothing shows before the end"
    );
    let tags = [tag_first, tag_last];
    assert_eq!(
        store.complete_upload(&key, &upload, &tags, total, false).await.unwrap(),
        Completed::Now
    );
    // Some stores remember for a while, and do it once more.
    store.complete_upload(&key, &upload, &tags, total, false).await.unwrap();
    assert_eq!(store.head(&key).await.unwrap().bytes, total);
    let seam = PART_BYTES as u64;
    assert_eq!(&store.read(&key, seam - 2..seam + 3, Access::Once).await.unwrap()[..], b"aathe");
    store.delete(&key).await.unwrap();

    let upload = store.open_upload(&key).await.unwrap();
    let tag = store
        .upload_part(&key, &upload, PartAt { index: 0, offset: 0 }, buffer(b""))
        .await
        .unwrap();
    store.complete_upload(&key, &upload, &[tag], 0, true).await.unwrap();
    assert_eq!(store.head(&key).await.unwrap().bytes, 0, "an empty object is an object");
    store.delete(&key).await.unwrap();
}

async fn aborted_uploads(store: &dyn Blobs, root: &str) {
    let key = format!("{root}/ab/object");
    let upload = store.open_upload(&key).await.unwrap();
    let at = PartAt { index: 0, offset: 0 };
    let tag = store.upload_part(&key, &upload, at, buffer(b"x")).await.unwrap();
    let open = OpenUpload { key: key.clone(), upload: upload.clone() };
    assert_eq!(
        store.list_uploads(&key, 10).await.unwrap(),
        [open],
        "an open upload is listed under its key"
    );
    store.abort_upload(&key, &upload).await.unwrap();
    assert_eq!(store.list_uploads(&key, 10).await.unwrap(), [], "an aborted one is not");
    store.abort_upload(&key, &upload).await.unwrap();
    assert!(
        store.complete_upload(&key, &upload, std::slice::from_ref(&tag), 1, false).await.is_err(),
        "an aborted upload cannot be completed"
    );
    assert!(store.upload_part(&key, &upload, at, buffer(b"y")).await.is_err(), "nor written to");
    assert_eq!(store.head(&key).await.unwrap_err().kind, ErrorKind::NotFound);
    store.put(&key, Bytes::from_static(b"z")).await.unwrap();
    let found = store.complete_upload(&key, &upload, std::slice::from_ref(&tag), 1, false).await;
    assert!(
        matches!(found, Ok(Completed::Unsure)),
        "an object of the same length may be anybody's: {found:?}"
    );
    assert!(
        store.complete_upload(&key, &upload, &[tag], 2, false).await.is_err(),
        "one of another length is not it"
    );
    assert_eq!(&store.read(&key, 0..1, Access::Once).await.unwrap()[..], b"z");
    store.delete(&key).await.unwrap();
}

/// Checks a ledger, which must be empty.
///
/// # Panics
/// Where a contract of [`Ledger`] is broken.
pub async fn ledger(ledger: &dyn Ledger) {
    assert_eq!(ledger.last_sequence().await.unwrap(), 0);
    assert!(ledger.read_from(1).await.unwrap().is_empty());
    assert_eq!(ledger.newest().await.unwrap(), None);
    let mut last = 0;
    for n in 0..5_u8 {
        match ledger.append(last, Bytes::from(vec![n; 3])).await {
            Appended::Applied { sequence } => {
                assert!(sequence > last);
                last = sequence;
            }
            other => panic!("append {n}: {other:?}"),
        }
    }
    assert_eq!(ledger.append(last - 1, Bytes::from_static(b"late")).await, Appended::Conflict);
    assert_eq!(ledger.append(0, Bytes::from_static(b"late")).await, Appended::Conflict);
    assert_eq!(ledger.append(last + 7, Bytes::from_static(b"early")).await, Appended::Conflict);
    let entries = ledger.read_from(1).await.unwrap();
    assert_eq!(entries.iter().map(|entry| entry.bytes[0]).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    assert_eq!(ledger.newest().await.unwrap().as_ref(), entries.last());
    let third = entries[2].sequence;
    assert_eq!(ledger.read_from(third).await.unwrap().len(), 3);
    ledger.purge_before(third).await.unwrap();
    assert_eq!(ledger.read_from(1).await.unwrap()[0].bytes[0], 2);
    assert_eq!(ledger.last_sequence().await.unwrap(), last, "numbers go on after a purge");
    assert_eq!(ledger.newest().await.unwrap().map(|entry| entry.sequence), Some(last));
    assert!(matches!(
        ledger.append(last, Bytes::from_static(b"\x05")).await,
        Appended::Applied { .. }
    ));
}
