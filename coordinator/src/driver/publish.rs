//! Carries out a decided commit: the order in which OUTPUT changes, step by step. Every step may be repeated, by this leader or the next.
//!
//! 1. the old `_SUCCESS` goes, so that nobody takes a mixture for a whole;
//! 2. malformed records are copied to their quarantine;
//! 3. the parts' uploads are completed, over what has their names;
//! 4. the new `_SUCCESS` appears;
//! 5. what else stood there before goes.
//!
//! Before each of them the leader makes sure that it leads still: one that was paused in the midst of it must not go on after the next has come to the end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};

use muster_common::names::SUCCESS;
use muster_common::plan::PinnedObject;
use muster_common::store::{Access, BlobUrl, Blobs, PartAt, Stores, read_whole};
use muster_common::wire::{BlobRef, Digester};
use muster_common::{Error, ErrorKind, Result};

use super::fence::Fence;
use crate::job::io::{Publication, PublishedPart};

/// Uploads that are completed side by side.
const COMPLETIONS_AT_ONCE: usize = 8;
/// Bytes that are copied at once: as uploads want it, more than 5 MiB and aligned.
const PIECE_BYTES: u64 = 8 << 20;
/// Other calls to a store that go side by side.
pub(super) const AT_ONCE: usize = 16;

/// Makes the publication visible.
///
/// # Errors
/// `Fenced` where somebody else leads; else the first error of the store, naming the object. What has been done stays done; the next try goes on from there.
pub(super) async fn publish(stores: &Stores, fence: &Fence, publication: &Publication) -> Result<()> {
    let store = stores.open(&publication.output).await?;
    let success = publication.output.join(SUCCESS);
    if !stands(&store, &success, &publication.manifest).await? {
        remove_old(&store, fence, &success).await?;
        for (lines, to) in &publication.quarantine {
            read_whole(|| copy(stores, fence, lines, to, publication.sync)).await?;
        }
        complete(&store, fence, publication).await?;
        fence.check().await?;
        let put = put(stores, fence, &store, &success, &publication.manifest, publication.sync);
        put.await.map_err(|e| e.at(&success))?;
    }
    let kept: BTreeSet<String> = named(publication).chain([&success]).map(ToString::to_string).collect();
    let gone: Vec<&PinnedObject> = publication.replaced.iter().filter(|old| !kept.contains(&old.url)).collect();
    let mut unchanged = Vec::new();
    for old in gone {
        // What somebody has written there since is not what this job was allowed to replace.
        let url: BlobUrl = old.url.parse()?;
        if stands_as(&store, &url, &old.version).await? {
            unchanged.push(url);
        }
    }
    delete(&store, fence, unchanged).await
}

/// Where nothing stands, nothing is deleted: a call that goes out late could only hit what has appeared since. What does stand may be the next leader's by now, so an
/// earlier answer of the fence does not do.
async fn remove_old(store: &Arc<dyn Blobs>, fence: &Fence, success: &BlobUrl) -> Result<()> {
    match store.head(success.key()).await {
        Ok(_) => {
            fence.check_anew().await?;
            store.delete(success.key()).await.map_err(|e| e.at(success))
        }
        Err(error) if error.kind == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error.at(success)),
    }
}

/// Whether the very manifest stands already: then all that comes before it has been done. A store that does not say so is asked again: taken for "no", its silence would have
/// the job's own `_SUCCESS` deleted.
async fn stands(store: &Arc<dyn Blobs>, success: &BlobUrl, manifest: &[u8]) -> Result<bool> {
    let bytes = manifest.len() as u64;
    let stored = match store.head(success.key()).await {
        Ok(meta) if meta.bytes != bytes => return Ok(false),
        Ok(_) => store.read(success.key(), 0..bytes, Access::Cached).await,
        Err(error) => Err(error),
    };
    match stored {
        Ok(stored) => Ok(stored == manifest),
        Err(error) if error.kind == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error.at(success)),
    }
}

/// Whether this very version of an object stands.
async fn stands_as(store: &Arc<dyn Blobs>, url: &BlobUrl, version: &str) -> Result<bool> {
    match store.head(url.key()).await {
        Ok(meta) => Ok(meta.version == version),
        Err(error) if error.kind == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error.at(url)),
    }
}

async fn complete(store: &Arc<dyn Blobs>, fence: &Fence, publication: &Publication) -> Result<()> {
    let sync = publication.sync;
    let old: BTreeMap<&str, &str> =
        publication.replaced.iter().map(|old| (old.url.as_str(), old.version.as_str())).collect();
    let complete_one = |part: PublishedPart| {
        let (store, replaced) =
            (store.clone(), old.get(part.url.to_string().as_str()).map(|version| (*version).to_owned()));
        async move {
            let PublishedPart { url, upload, tags, bytes } = part;
            fence.check().await?;
            store.complete_upload(url.key(), &upload, &tags, bytes, sync).await.map_err(|e| e.at(&url))?;
            // A store that lost the upload sees an object of the right length and takes it for ours; the old version's name tells.
            match replaced {
                Some(version) if stands_as(&store, &url, &version).await? => Err(Error::corrupt(format!(
                    "{url}: the upload of the new part is gone, and the old object still stands"
                ))),
                _ => Ok(()),
            }
        }
    };
    stream::iter(publication.parts.clone().into_iter().map(complete_one))
        .buffer_unordered(COMPLETIONS_AT_ONCE)
        .try_collect::<()>()
        .await
}

/// What the publication makes appear, `_SUCCESS` apart.
fn named(publication: &Publication) -> impl Iterator<Item = &BlobUrl> {
    publication.parts.iter().map(|part| &part.url).chain(publication.quarantine.iter().map(|(_, to)| to))
}

/// Copies an object piece by piece, once. It appears only if its bytes are what the journal says they are.
async fn copy(stores: &Stores, fence: &Fence, from: &BlobRef, to: &BlobUrl, sync: bool) -> Result<()> {
    let source: BlobUrl = from.url.parse()?;
    let (reader, writer) = (stores.open(&source).await?, stores.open(to).await?);
    let upload = writer.open_upload(to.key()).await.map_err(|e| e.at(to))?;
    let copied = async {
        let (mut tags, mut digest, mut offset) = (Vec::new(), Digester::default(), 0);
        while offset < from.bytes {
            let end = from.bytes.min(offset + PIECE_BYTES);
            let bytes = reader.read(source.key(), offset..end, Access::Once).await.map_err(|e| e.at(&source))?;
            digest.update(&bytes);
            let at = PartAt { index: u32::try_from(tags.len()).unwrap_or(u32::MAX), offset };
            tags.push(writer.upload_part(to.key(), &upload, at, bytes).await.map_err(|e| e.at(to))?);
            offset = end;
        }
        if digest.finish() != from.digest {
            return Err(Error::corrupt(format!("{source} is not what was committed; it cannot be quarantined")));
        }
        fence.check().await?;
        writer.complete_upload(to.key(), &upload, &tags, from.bytes, sync).await.map_err(|e| e.at(to))
    };
    let copied = copied.await;
    if copied.is_err() {
        fence.check().await?;
        writer.abort_upload(to.key(), &upload).await.map_err(|e| e.at(to))?;
    }
    copied
}

/// Writes the manifest whole, as an upload of one part where it must outlive a power loss.
async fn put(
    stores: &Stores,
    fence: &Fence,
    store: &Arc<dyn Blobs>,
    url: &BlobUrl,
    bytes: &[u8],
    sync: bool,
) -> Result<()> {
    if !sync {
        return store.put(url.key(), bytes.to_vec().into()).await;
    }
    let upload = store.open_upload(url.key()).await?;
    let mut buffer = stores.buffers().take(bytes.len());
    buffer.vec_mut().extend_from_slice(bytes);
    let written = store.upload_part(url.key(), &upload, PartAt { index: 0, offset: 0 }, buffer.into()).await;
    let completed = async {
        let tag = written?;
        fence.check().await?;
        store.complete_upload(url.key(), &upload, &[tag], bytes.len() as u64, true).await
    };
    let completed = completed.await;
    if completed.is_err() {
        store.abort_upload(url.key(), &upload).await?;
    }
    completed
}

/// Deletes objects of one store, a bounded number at once.
pub(super) async fn delete(store: &Arc<dyn Blobs>, fence: &Fence, urls: Vec<BlobUrl>) -> Result<()> {
    let delete_one = |url: BlobUrl| {
        let store = store.clone();
        async move {
            fence.check().await?;
            store.delete(url.key()).await.map_err(|e| e.at(&url))
        }
    };
    stream::iter(urls.into_iter().map(delete_one)).buffer_unordered(AT_ONCE).try_collect::<()>().await
}

#[cfg(test)]
#[path = "publish_tests.rs"]
mod tests;
