//! The object store as the program sees it: blob URLs and the port [`Blobs`].
//!
//! A blob URL is `s3://bucket/key`, `file:///absolute/path`, or `worker://id/absolute/path` for a
//! file that one worker alone can read. Contracts that callers rely on: `put` and `complete_upload`
//! make an object appear whole or not at all; `complete_upload`, `abort_upload` and `delete` are
//! idempotent; an upload that was aborted can never be completed; every call that
//! [`crate::stores`] gives out ends within the time-outs of the settings. Adapters:
//! [`crate::adapters::local`], [`crate::adapters::s3`], [`crate::adapters::memory`];
//! [`crate::conformance`] is the suite that all pass.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::paths;
use crate::survey::{Survey, Wanted};
use muster_protocol::error::{Error, ErrorKind, Result};
use muster_protocol::ids::WorkerId;
use muster_protocol::plan::TEXT_BYTES_MAX;

/// Why a path is refused whose meaning hangs on links.
const NO_PARENTS: &str =
    "holds .., which means what the links before it make of it; name the resolved path";
/// Tries of a read that gives damaged bytes.
const DAMAGED_READS_MAX: u32 = 3;

/// Where an object, or all objects below a prefix, lie.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlobUrl {
    scheme: Scheme,
    /// Without leading slash; for files the absolute path less its slash, as [`crate::paths`]
    /// writes it.
    key: String,
}

/// Which store a blob URL means.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scheme {
    /// The file system of each process.
    File,
    /// A bucket that speaks S3.
    S3 {
        /// Its name.
        bucket: String,
    },
    /// An in-memory store, for tests.
    Memory,
    /// The file system of one worker, of which nobody else reads anything.
    Worker {
        /// Which worker.
        id: WorkerId,
    },
}

impl Scheme {
    /// Whether reading it reads a disk of this machine.
    pub fn is_on_disk(&self) -> bool {
        matches!(self, Scheme::File | Scheme::Worker { .. })
    }
}

impl BlobUrl {
    /// The store it lies in.
    pub fn scheme(&self) -> &Scheme {
        &self.scheme
    }

    /// The key within the store, without leading slash.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The URL of `relative` below this one.
    #[must_use]
    pub fn join(&self, relative: &str) -> Self {
        let base = self.key.trim_end_matches('/');
        let key = if base.is_empty() { relative.to_owned() } else { format!("{base}/{relative}") };
        Self { scheme: self.scheme.clone(), key }
    }

    /// The URL of another key in the same store.
    #[must_use]
    pub fn with_key(&self, key: impl Into<String>) -> Self {
        Self { scheme: self.scheme.clone(), key: key.into() }
    }

    /// The path, where this is a file URL.
    pub fn file_path(&self) -> Option<PathBuf> {
        (self.scheme == Scheme::File).then(|| paths::path_of(&self.key))
    }

    /// A path as URL; it must be absolute, and is cleaned of `.`. What `..` means depends on the
    /// links before it, so who knows them resolves it first.
    ///
    /// # Errors
    /// `Invalid` where it is relative or holds `..`.
    pub fn from_path(path: &Path) -> Result<Self> {
        let refuse = |why: &str| Error::invalid(format!("the path {} {why}", path.display()));
        if !path.is_absolute() {
            return Err(refuse(
                "is not absolute; in a pool every process must see it under the same absolute path",
            ));
        }
        if path.components().any(|component| component == Component::ParentDir) {
            return Err(refuse(NO_PARENTS));
        }
        let clean: PathBuf = path.components().collect();
        Ok(Self { scheme: Scheme::File, key: paths::key_of(&clean) })
    }

    /// What stands behind `file://`: a key with its slash.
    fn from_file_key(text: &str) -> Result<Self> {
        let segments = text.split('/').filter(|segment| !matches!(*segment, "" | "."));
        if segments.clone().any(|segment| segment == "..") {
            return Err(Error::invalid(format!("file://{text} {NO_PARENTS}")));
        }
        Ok(Self { scheme: Scheme::File, key: segments.collect::<Vec<_>>().join("/") })
    }

    /// The file at an absolute path of one worker.
    ///
    /// # Errors
    /// `Invalid` where the path is not absolute, not normalised (an empty, `.` or `..` segment), or
    /// longer than [`TEXT_BYTES_MAX`].
    pub fn of_worker(id: &WorkerId, path: &str) -> Result<Self> {
        let key =
            path.strip_prefix('/').filter(|key| path.len() <= TEXT_BYTES_MAX && is_normal(key));
        match key {
            Some(key) => {
                Ok(Self { scheme: Scheme::Worker { id: id.clone() }, key: key.to_owned() })
            }
            None => {
                let start: String = path.chars().take(200).collect();
                Err(Error::invalid(format!(
                    "{start:?} is no absolute and normalised path of worker {id}"
                )))
            }
        }
    }

    /// Whether `other` is this URL or lies below it.
    pub fn contains(&self, other: &BlobUrl) -> bool {
        let base = self.key.trim_end_matches('/');
        self.scheme == other.scheme
            && (base.is_empty()
                || other.key.trim_end_matches('/') == base
                || other.key.strip_prefix(base).is_some_and(|rest| rest.starts_with('/')))
    }

    /// The last segment of the key.
    pub fn name(&self) -> &str {
        self.key.trim_end_matches('/').rsplit('/').next().unwrap_or_default()
    }
}

impl fmt::Display for BlobUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.scheme {
            Scheme::File => write!(f, "file:///{}", self.key),
            Scheme::S3 { bucket } => write!(f, "s3://{bucket}/{}", self.key),
            Scheme::Memory => write!(f, "memory:///{}", self.key),
            Scheme::Worker { id } => write!(f, "worker://{id}/{}", self.key),
        }
    }
}

/// Whether a key has segments, none of which is empty, `.` or `..`, and no NUL byte.
pub fn is_normal(key: &str) -> bool {
    !key.contains('\0') && key.split('/').all(|segment| !matches!(segment, "" | "." | ".."))
}

impl FromStr for BlobUrl {
    type Err = Error;

    /// Takes an absolute path or a URL. Keys are taken as they stand, without percent-decoding.
    fn from_str(text: &str) -> Result<Self> {
        if text.contains('\0') {
            return Err(Error::invalid("a path or URL holds a NUL byte"));
        }
        if text.starts_with('/') {
            return Self::from_path(Path::new(text));
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(Error::invalid(format!("{text:?} is neither an absolute path nor a URL")));
        };
        // A file may have such a name; elsewhere it is a secret, which must not get into logs and
        // messages.
        if scheme != "file"
            && rest.split(['/', '?', '#']).next().is_some_and(|place| place.contains('@'))
        {
            return Err(Error::invalid(format!(
                "a {scheme}:// URL with a user or password (not shown): credentials of a store \
                    come from its environment (AWS_*) or a profile"
            )));
        }
        match scheme {
            "file" if rest.starts_with('/') => Self::from_file_key(rest),
            "file" => {
                Err(Error::invalid(format!("{text:?}: a file URL has no host; write file:///PATH")))
            }
            "s3" => {
                let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
                let sound = (3..=63).contains(&bucket.len())
                    && bucket.bytes().all(|b| {
                        b.is_ascii_lowercase() || b.is_ascii_digit() || b"-._".contains(&b)
                    });
                if !sound {
                    return Err(Error::invalid(format!(
                        "{text:?}: {bucket:?} is not a bucket name (3 to 63 of a-z 0-9 - . _)"
                    )));
                }
                if key.split('/').any(|segment| segment == ".." || segment == ".") {
                    return Err(Error::invalid(format!(
                        "{text:?}: a key may not hold . or .. segments"
                    )));
                }
                Ok(Self { scheme: Scheme::S3 { bucket: bucket.to_owned() }, key: key.to_owned() })
            }
            "memory" if rest.split('/').any(|segment| segment == ".." || segment == ".") => {
                Err(Error::invalid(format!("{text:?}: a key may not hold . or .. segments")))
            }
            "memory" => {
                Ok(Self { scheme: Scheme::Memory, key: rest.trim_start_matches('/').to_owned() })
            }
            "worker" => {
                let (id, _) = rest.split_once('/').unwrap_or((rest, ""));
                let worker = id.parse().map_err(|e| Error::invalid(format!("{text:?}: {e}")))?;
                Self::of_worker(&worker, &rest[id.len()..])
            }
            "gs" | "az" => Err(Error::invalid(format!(
                "{text:?}: {scheme}:// is not built yet; use s3://, file:// or a path"
            ))),
            _ => Err(Error::invalid(format!(
                "{text:?}: unknown scheme {scheme}://; use s3://, file:// or a path"
            ))),
        }
    }
}

impl Serialize for BlobUrl {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for BlobUrl {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// What a store says of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobMeta {
    /// Its key within the store.
    pub key: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// Tells versions apart: ETag, or modification time, size and inode.
    pub version: String,
    /// When it was written, by the store's clock, in milliseconds since the Unix epoch; 0 where the
    /// store does not tell. For people: nothing is decided by it.
    pub modified_unix_ms: u64,
}

/// How a range is going to be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// It may be in a cache and may be read again (input).
    Cached,
    /// It is read once (runs): where the store is a disk, past the page cache.
    Once,
}

/// A place in an open multipart upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartAt {
    /// Which part, from 0.
    pub index: u32,
    /// Where its first byte stands in the object.
    pub offset: u64,
}

/// A multipart upload that is neither completed nor aborted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct OpenUpload {
    /// The key that it would make appear.
    pub key: String,
    /// The store's id of it.
    pub upload: String,
}

/// What [`Blobs::complete_upload`] has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Completed {
    /// The object was made by this call.
    Now,
    /// The upload is gone, and an object of its length stands. It may be its object, where the
    /// answer to an earlier call was lost, or anybody's.
    Unsure,
}

/// The port to an object store. Keys are those of [`BlobUrl::key`].
#[async_trait]
pub trait Blobs: Send + Sync + 'static {
    /// What lies below a prefix, which is a folder; on a file system links are what lies there, not
    /// what they lead to. `a/b` holds `a/b/c` but neither `a/bc` nor `a/b` itself. In byte order of
    /// their keys.
    ///
    /// # Errors
    /// `Exhausted` beyond `limit` objects; else as [`Blobs::head`]. A prefix that nothing lies
    /// below gives an empty list.
    async fn list(&self, prefix: &str, limit: usize) -> Result<Vec<BlobMeta>>;

    /// The objects below a folder that are input, and what is left out because it cannot be. A
    /// folder that is not there holds none.
    ///
    /// # Errors
    /// `Exhausted` where more objects are meant than the bounds allow; `Invalid` beyond another
    /// bound, or where the folder itself cannot be listed; else as [`Blobs::head`].
    async fn survey(&self, wanted: &Wanted) -> Result<Survey>;

    /// An object's size and version.
    ///
    /// # Errors
    /// `NotFound` where there is none, `Invalid` where access is denied, `Retry` for passing
    /// trouble.
    async fn head(&self, key: &str) -> Result<BlobMeta>;

    /// Exactly the bytes of a range.
    ///
    /// # Errors
    /// As [`Blobs::head`]; `Corrupt` where the object ends before the range does.
    async fn read(&self, key: &str, range: Range<u64>, access: Access) -> Result<Bytes>;

    /// Writes a small object in one go, over whatever stands there.
    ///
    /// # Errors
    /// As [`Blobs::head`]; `Exhausted` where the store is full.
    async fn put(&self, key: &str, bytes: Bytes) -> Result<()>;

    /// Opens a multipart upload and gives its id. Nothing is visible before
    /// [`Blobs::complete_upload`].
    ///
    /// # Errors
    /// As [`Blobs::put`].
    async fn open_upload(&self, key: &str) -> Result<String>;

    /// Writes one part and gives its tag, over one of the same index that was written before. Parts
    /// may go side by side. All but the last are at least 5 MiB, and multiples of
    /// [`crate::buffer::ALIGN`].
    ///
    /// # Errors
    /// As [`Blobs::put`]; `NotFound` where the upload was aborted.
    async fn upload_part(&self, key: &str, upload: &str, at: PartAt, data: Bytes)
    -> Result<String>;

    /// Makes the object appear from its parts, which have `bytes` in all. Harmless where that has
    /// happened before. With `sync` it outlives a power loss. Where the name carries the attempt of
    /// its maker, whatever stands there is that attempt's; under any other name, [`Completed`] says
    /// whether to look at what stands.
    ///
    /// # Errors
    /// `NotFound` where the upload is gone and no object of that length stands; else as
    /// [`Blobs::put`].
    async fn complete_upload(
        &self,
        key: &str,
        upload: &str,
        tags: &[String],
        bytes: u64,
        sync: bool,
    ) -> Result<Completed>;

    /// Drops an upload; from then on it cannot be completed. Harmless where it is gone.
    ///
    /// # Errors
    /// As [`Blobs::head`].
    async fn abort_upload(&self, key: &str, upload: &str) -> Result<()>;

    /// The multipart uploads to keys at and below a prefix that were opened and neither completed
    /// nor aborted. Some stores (MinIO) list only those whose key is the prefix itself, so what
    /// this does not name may still be there.
    ///
    /// # Errors
    /// As [`Blobs::list`].
    async fn list_uploads(&self, prefix: &str, limit: usize) -> Result<Vec<OpenUpload>>;

    /// Removes an object. Harmless where there is none.
    ///
    /// # Errors
    /// As [`Blobs::head`].
    async fn delete(&self, key: &str) -> Result<()>;

    /// Removes what only hierarchical stores have: the empty folders at and below a prefix. Does
    /// nothing elsewhere.
    ///
    /// # Errors
    /// As [`Blobs::head`].
    async fn prune(&self, prefix: &str) -> Result<()>;

    /// Whether an object may be put under this key: nothing stands there, or an object does. On a
    /// file system a link or a folder may stand there instead, which is not replaced.
    ///
    /// # Errors
    /// `Invalid` where something else stands there; else as [`Blobs::head`].
    async fn check_place(&self, _key: &str) -> Result<()> {
        Ok(())
    }

    /// Removes one folder if it is empty, where folders are things of their own. Does nothing
    /// elsewhere.
    ///
    /// # Errors
    /// As [`Blobs::head`].
    async fn remove_folder(&self, _key: &str) -> Result<()> {
        Ok(())
    }
}

/// What can be laid around every store that is given out.
pub trait Layer: Send + Sync {
    /// The store of a scheme, with this around it.
    fn over(&self, scheme: &Scheme, store: Arc<dyn Blobs>) -> Arc<dyn Blobs>;
}

/// The stores that cannot be used at present, and why: told at the first failure of a request,
/// until one is answered. Clones share it.
#[derive(Debug, Clone)]
pub struct Troubles(Arc<watch::Sender<BTreeMap<String, String>>>);

impl Default for Troubles {
    fn default() -> Self {
        Self(Arc::new(watch::channel(BTreeMap::new()).0))
    }
}

impl Troubles {
    /// A request of this store has failed in passing.
    pub fn begin(&self, store: &str, why: &impl fmt::Display) {
        let why = why.to_string();
        self.0.send_if_modified(|away| {
            away.insert(store.to_owned(), why.clone()).as_ref() != Some(&why)
        });
    }

    /// This store has answered.
    pub fn end(&self, store: &str) {
        if !self.0.borrow().is_empty() {
            self.0.send_if_modified(|away| away.remove(store).is_some());
        }
    }

    /// The stores that are away (`s3://bucket`), each with the reason.
    pub fn list(&self) -> Vec<(String, String)> {
        self.0.borrow().iter().map(|(store, why)| (store.clone(), why.clone())).collect()
    }
}

/// Reads what may have been damaged on its way: again, a few times, as long as what comes is
/// [`ErrorKind::Corrupt`].
///
/// # Errors
/// The last one of `read`; the first of another kind.
pub async fn read_whole<T, F: Future<Output = Result<T>>>(
    mut read: impl FnMut() -> F,
) -> Result<T> {
    let mut tries = 1;
    loop {
        match read().await {
            Err(error) if error.kind == ErrorKind::Corrupt && tries < DAMAGED_READS_MAX => {
                tracing::warn!(%error, "reading it again");
                tries += 1;
            }
            read => return read,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_damaged_on_its_way_is_read_again() {
        let corrupt = || Error::corrupt("flipped");
        for (damaged, expected, tries) in [(0, Ok(7), 1), (2, Ok(7), 3), (3, Err(corrupt()), 3)] {
            let tried = std::cell::Cell::new(0);
            let read = read_whole(|| async {
                tried.set(tried.get() + 1);
                if tried.get() > damaged { Ok(7) } else { Err(corrupt()) }
            });
            assert_eq!((read.await, tried.get()), (expected, tries), "{damaged} damaged reads");
        }
        let tried = std::cell::Cell::new(0);
        let read = read_whole(|| async {
            tried.set(tried.get() + 1);
            Err::<(), _>(Error::retry("away"))
        });
        assert!(read.await.is_err() && tried.get() == 1, "other trouble has policies of its own");
    }

    #[test]
    fn urls_parse_and_print() {
        let check = |text: &str, expected: Option<&str>| {
            assert_eq!(
                text.parse::<BlobUrl>().ok().map(|url| url.to_string()).as_deref(),
                expected,
                "{text}"
            );
        };
        check("/a/b", Some("file:///a/b"));
        check("/a/./b//c/", Some("file:///a/b/c"));
        check("file:///a", Some("file:///a"));
        // Where b is a link, another file than the system would open.
        check("/a/b/../c", None);
        check("file:///a/b/..", None);
        // A name that looks like an escape, as path and as key.
        check(r"/a\xff", Some(r"file:///a\x5cxff"));
        check(r"file:///a\xff", Some(r"file:///a\xff"));
        check("s3://bucket/a/b", Some("s3://bucket/a/b"));
        check("s3://bucket", Some("s3://bucket/"));
        check("s3://bucket//a//b/", Some("s3://bucket//a//b/"));
        check("s3://B/a", None);
        check("s3://bucket/../a", None);
        check("memory:///../a", None);
        check("worker://w1/a/b", Some("worker://w1/a/b"));
        for text in [
            "worker://w1/a/../b",
            "worker://w1/a//b",
            "worker://w1/",
            "worker://w1",
            "worker:///a",
            "worker://w.1/a",
        ] {
            check(text, None);
        }
        check("gs://bucket/a", None);
        check("relative", None);
        check("file://host/a", None);
    }

    #[test]
    fn a_url_with_a_password_is_refused_without_being_shown() {
        for text in [
            "s3://KEY:hidden@bucket/a",
            "https://me:hidden@host:9000/b",
            "gs://hidden@b",
            "x://a:hidden@b?c",
        ] {
            let error = text.parse::<BlobUrl>().expect_err(text);
            assert!(
                !error.message.contains("hidden") && error.message.contains("AWS_*"),
                "{error}"
            );
        }
        assert_eq!(
            "file:///a@b".parse::<BlobUrl>().map(|url| url.to_string()).as_deref(),
            Ok("file:///a@b")
        );
        assert_eq!(
            "s3://bucket/a@b".parse::<BlobUrl>().map(|url| url.to_string()).as_deref(),
            Ok("s3://bucket/a@b")
        );
    }

    #[test]
    fn containment_is_by_segments() {
        let url = |text: &str| text.parse::<BlobUrl>().expect("url");
        assert!(url("/a/b").contains(&url("/a/b/c")));
        assert!(url("/a/b").contains(&url("/a/b")));
        assert!(!url("/a/b").contains(&url("/a/bc")));
        assert!(!url("s3://one").contains(&url("s3://two/a")));
        assert!(url("s3://one").contains(&url("s3://one/a")));
    }
}
