//! Stores and ledgers in memory, for tests.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;

use crate::etag;
use crate::ledger::{Appended, Entry, Ledger};
use crate::store::{Access, BlobMeta, Blobs, Completed, OpenUpload, PartAt};
use crate::survey::{Survey, Wanted};
use muster_protocol::error::{Error, ErrorKind, Result};

/// An object store in memory. As in S3 an object's version follows from its bytes: the same bytes,
/// the same version.
#[derive(Debug, Default)]
pub struct MemoryBlobs {
    inner: Mutex<Objects>,
}

#[derive(Debug, Default)]
struct Objects {
    /// Bytes and their version.
    objects: BTreeMap<String, (Bytes, String)>,
    uploads: HashMap<String, Upload>,
    counter: u64,
}

#[derive(Debug)]
struct Upload {
    key: String,
    parts: BTreeMap<u32, Vec<u8>>,
}

impl MemoryBlobs {
    fn lock(&self) -> MutexGuard<'_, Objects> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Uploads that are open, for assertions on leftovers.
    pub fn open_uploads(&self) -> usize {
        self.lock().uploads.len()
    }
}

fn not_found(what: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("{what} is not there"))
}

#[async_trait]
impl Blobs for MemoryBlobs {
    async fn list(&self, prefix: &str, limit: usize) -> Result<Vec<BlobMeta>> {
        let inside = |key: &str| {
            prefix.is_empty() || key.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'))
        };
        let inner = self.lock();
        let found: Vec<BlobMeta> = inner
            .objects
            .iter()
            .filter(|(key, _)| inside(key))
            .map(|(key, (bytes, version))| BlobMeta {
                key: key.clone(),
                bytes: bytes.len() as u64,
                version: version.clone(),
                modified_unix_ms: 0,
            })
            .collect();
        if found.len() > limit {
            Err(Error::exhausted(format!("more than {limit} objects lie below {prefix}")))
        } else {
            Ok(found)
        }
    }

    async fn survey(&self, wanted: &Wanted) -> Result<Survey> {
        wanted.choose(self.list(wanted.base(), usize::MAX).await?)
    }

    async fn head(&self, key: &str) -> Result<BlobMeta> {
        let inner = self.lock();
        let (bytes, version) = inner.objects.get(key).ok_or_else(|| not_found(key))?;
        let version = version.clone();
        Ok(BlobMeta {
            key: key.to_owned(),
            bytes: bytes.len() as u64,
            version,
            modified_unix_ms: 0,
        })
    }

    async fn read(&self, key: &str, range: Range<u64>, _access: Access) -> Result<Bytes> {
        let inner = self.lock();
        let (bytes, _) = inner.objects.get(key).ok_or_else(|| not_found(key))?;
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        if range.end > bytes.len() as u64 {
            let why = format!(
                "{key} ends at {}, but bytes up to {} were asked for",
                bytes.len(),
                range.end
            );
            return Err(Error::corrupt(why));
        }
        let at = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX);
        Ok(bytes.slice(at(range.start)..at(range.end)))
    }

    async fn put(&self, key: &str, bytes: Bytes) -> Result<()> {
        let version = etag::of_bytes(&bytes);
        self.lock().objects.insert(key.to_owned(), (bytes, version));
        Ok(())
    }

    async fn open_upload(&self, key: &str) -> Result<String> {
        let mut inner = self.lock();
        inner.counter += 1;
        let id = format!("upload-{}", inner.counter);
        inner.uploads.insert(id.clone(), Upload { key: key.to_owned(), parts: BTreeMap::new() });
        Ok(id)
    }

    async fn upload_part(
        &self,
        key: &str,
        upload: &str,
        at: PartAt,
        data: Bytes,
    ) -> Result<String> {
        let mut inner = self.lock();
        let found = inner.uploads.get_mut(upload).filter(|found| found.key == key);
        found.ok_or_else(|| not_found(upload))?.parts.insert(at.index, data.to_vec());
        Ok(etag::of_bytes(&data))
    }

    async fn complete_upload(
        &self,
        key: &str,
        upload: &str,
        tags: &[String],
        bytes: u64,
        _sync: bool,
    ) -> Result<Completed> {
        let mut inner = self.lock();
        if !inner.uploads.contains_key(upload) {
            let stands =
                inner.objects.get(key).is_some_and(|(stored, _)| stored.len() as u64 == bytes);
            return if stands { Ok(Completed::Unsure) } else { Err(not_found(upload)) };
        }
        let whole = |found: &Upload| {
            (0..tags.len() as u32).eq(found.parts.keys().copied()) && found.key == key
        };
        if !inner.uploads.get(upload).is_some_and(whole) {
            return Err(Error::invalid(format!("the parts of {upload} are not those of its tags")));
        }
        let data: Vec<u8> = inner
            .uploads
            .remove(upload)
            .into_iter()
            .flat_map(|found| found.parts.into_values())
            .flatten()
            .collect();
        if data.len() as u64 != bytes {
            return Err(Error::corrupt(format!(
                "the upload of {key} has {} bytes, not {bytes}",
                data.len()
            )));
        }
        let version = etag::of_parts(tags).unwrap_or_else(|| etag::of_bytes(&data));
        inner.objects.insert(key.to_owned(), (data.into(), version));
        Ok(Completed::Now)
    }

    async fn abort_upload(&self, _key: &str, upload: &str) -> Result<()> {
        self.lock().uploads.remove(upload);
        Ok(())
    }

    async fn list_uploads(&self, prefix: &str, limit: usize) -> Result<Vec<OpenUpload>> {
        let inside = |key: &str| {
            prefix.is_empty()
                || key
                    .strip_prefix(prefix)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let inner = self.lock();
        let below = inner.uploads.iter().filter(|(_, open)| inside(&open.key));
        let mut found: Vec<OpenUpload> = below
            .map(|(id, open)| OpenUpload { key: open.key.clone(), upload: id.clone() })
            .collect();
        found.sort();
        if found.len() > limit {
            Err(Error::exhausted(format!("more than {limit} uploads are open below {prefix}")))
        } else {
            Ok(found)
        }
    }

    async fn delete(&self, key: &str) -> Result<()> {
        self.lock().objects.remove(key);
        Ok(())
    }

    async fn prune(&self, _prefix: &str) -> Result<()> {
        Ok(())
    }
}

/// A ledger in memory that can be told to lose acknowledgements.
#[derive(Debug, Default)]
pub struct MemoryLedger {
    inner: Mutex<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    first: u64,
    entries: Vec<Bytes>,
    lose: Vec<Lost>,
}

/// How the answer to an append is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// The record stands, the answer does not arrive.
    Applied,
    /// Neither record nor answer arrive.
    NotApplied,
}

impl MemoryLedger {
    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the next append that finds no other such order end as [`Appended::Unknown`].
    pub fn lose_next(&self, how: Lost) {
        self.lock().lose.push(how);
    }
}

impl Entries {
    fn last(&self) -> u64 {
        self.first + self.entries.len() as u64
    }
}

#[async_trait]
impl Ledger for MemoryLedger {
    async fn read_from(&self, first_sequence: u64) -> Result<Vec<Entry>> {
        let inner = self.lock();
        let numbered = (inner.first + 1..).zip(&inner.entries);
        Ok(numbered
            .filter(|(n, _)| *n >= first_sequence)
            .map(|(sequence, bytes)| Entry { sequence, bytes: bytes.clone() })
            .collect())
    }

    async fn last_sequence(&self) -> Result<u64> {
        Ok(self.lock().last())
    }

    async fn newest(&self) -> Result<Option<Entry>> {
        let inner = self.lock();
        Ok(inner.entries.last().map(|bytes| Entry { sequence: inner.last(), bytes: bytes.clone() }))
    }

    async fn append(&self, expected_last: u64, bytes: Bytes) -> Appended {
        let mut inner = self.lock();
        let lost = inner.lose.pop();
        if lost == Some(Lost::NotApplied) {
            return Appended::Unknown { why: "the request was lost".to_owned() };
        }
        if inner.last() != expected_last {
            return Appended::Conflict;
        }
        inner.entries.push(bytes);
        match lost {
            Some(_) => Appended::Unknown { why: "the answer was lost".to_owned() },
            None => Appended::Applied { sequence: inner.last() },
        }
    }

    async fn purge_before(&self, first_kept: u64) -> Result<()> {
        let mut inner = self.lock();
        let gone = first_kept.saturating_sub(inner.first + 1).min(inner.entries.len() as u64);
        inner.entries.drain(..usize::try_from(gone).unwrap_or(usize::MAX));
        inner.first += gone;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn passes_the_suites() {
        crate::conformance::blobs(&MemoryBlobs::default(), "root").await;
        crate::conformance::ledger(&MemoryLedger::default()).await;
    }
}
