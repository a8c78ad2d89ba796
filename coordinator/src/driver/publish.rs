//! Carries out a decided commit: the order in which OUTPUT changes, step by step. Every step may be
//! repeated, by this leader or the next.
//!
//! 0. nobody else's object may stand where this job is going to write: that is seen before the
//!    commit is decided ([`prepare`]), and again before anything is touched;
//! 1. the old `_SUCCESS` goes, so that nobody takes a mixture for a whole;
//! 2. malformed records are copied to their quarantine;
//! 3. the parts' uploads are completed, over what has their names;
//! 4. the new `_SUCCESS` appears;
//! 5. what else stood there before goes.
//!
//! Before each of them the leader makes sure that it leads still: one that was paused in the midst
//! of it must not go on after the next has come to the end. Before 4 it asks anew. So whoever leads
//! next looks after the last moment at which its predecessor could have been let through to write a
//! `_SUCCESS`, and by then the old one was gone: what stands there under the old one's version was
//! written by nobody of this job, and what stands there under another is not removed.
//!
//! What stands under a part's name is judged by what that part must be, never by what stood there
//! before: an earlier try may have completed it, and the same bytes may have stood there all along.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};

use muster_platform::etag;
use muster_platform::store::{Access, BlobMeta, BlobUrl, Blobs, Completed, PartAt, read_whole};
use muster_platform::stores::Stores;
use muster_protocol::names::{QUARANTINE_DIR, SUCCESS};
use muster_protocol::plan::{PLAN_BYTES_MAX, PinnedObject};
use muster_protocol::planted::{self, Bug};
use muster_protocol::wire::{self, BlobRef, Digester};
use muster_protocol::{Error, ErrorKind, Result};

use super::apart::Ground;
use super::claims;
use super::fence::Fence;
use crate::job::io::{ManifestBytes, Publication, PublishedPart, Unremoved};

/// Uploads that are completed side by side.
const COMPLETIONS_AT_ONCE: usize = 8;
/// Bytes that are copied at once: as uploads want it, more than 5 MiB and aligned.
const PIECE_BYTES: u64 = 8 << 20;
/// Bytes of an object that are looked at at once, to see what it is.
const LOOK_BYTES: u64 = 1 << 20;
/// Other calls to a store that go side by side.
pub(super) const AT_ONCE: usize = 16;

/// Calls after which it is looked at how many of them the store has refused.
const CALLS_BETWEEN: usize = 256;
/// Refusals of a store after which the rest is not asked for.
const REFUSALS_MAX: u64 = 64;

/// An object that a publication makes appear.
struct Wanted<'a> {
    url: BlobUrl,
    bytes: u64,
    /// XXH3-64 of its bytes.
    checksum: u64,
    /// The tags of its upload's parts, where it has one already.
    tags: &'a [String],
}

/// What stands under the name of an object that is to appear.
#[derive(Debug, PartialEq, Eq)]
enum Standing {
    Nothing,
    /// The very bytes.
    Right,
    /// Something else.
    Other(BlobMeta),
}

/// Sees whether a commit can be made visible, and keeps its manifest until then.
///
/// # Errors
/// `Invalid` where somebody else's object stands where the job is going to write; `Fenced` where
/// somebody else leads; else the first error of the store.
pub(super) async fn prepare(
    stores: &Stores,
    fence: &Fence,
    publication: &Publication,
    url: &BlobUrl,
) -> Result<BlobRef> {
    let fence =
        &claims::holding(stores, fence, (&publication.output, &publication.job), None).await?;
    let store = stores.open(&publication.output).await?;
    let manifest = manifest(stores, publication).await?;
    Ground::check_again(&publication.plan).await?;
    refuse_foreign(&store, publication, &manifest).await?;
    fence.check().await?;
    stores.put_ref(url, manifest).await
}

/// Makes the publication visible, and says what of an older output it could not remove.
///
/// # Errors
/// `Fenced` where somebody else leads; else the first error of the store, naming the object. What
/// has been done stays done; the next try goes on from there.
pub(super) async fn publish(
    stores: &Stores,
    fence: &Fence,
    publication: &Publication,
) -> Result<Unremoved> {
    let kept = match &publication.manifest {
        ManifestBytes::Stored(pointer) => Some(pointer),
        ManifestBytes::Made(_) => None,
    };
    let fence =
        &claims::holding(stores, fence, (&publication.output, &publication.job), kept).await?;
    let store = stores.open(&publication.output).await?;
    let success = publication.output.join(SUCCESS);
    let manifest = manifest(stores, publication).await?;
    if !stands(&store, &success, &manifest).await? {
        Ground::check_again(&publication.plan).await?;
        refuse_foreign(&store, publication, &manifest).await?;
        let late = planted::is(Bug::RemoveSuccessLate);
        let name = success.to_string();
        let old = publication.replaced.iter().find(|old| old.url == name);
        if !late {
            remove_old(&store, fence, &success, old).await?;
        }
        for (lines, to) in &publication.quarantine {
            read_whole(|| copy(stores, fence, lines, to, publication.sync)).await?;
        }
        complete(&store, fence, publication).await?;
        if late {
            remove_old(&store, fence, &success, old).await?;
        }
        let put = put(stores, fence, &store, &success, &manifest, publication.sync);
        put.await.map_err(|e| e.at(&success))?;
    }
    let unremoved = remove_replaced(&store, fence, publication, &success).await?;
    let quarantine = publication.output.join(QUARANTINE_DIR);
    if publication.replaced.iter().any(|old| old.url.starts_with(&quarantine.to_string())) {
        fence.check().await?;
        store.remove_folder(quarantine.key()).await.map_err(|e| e.at(&quarantine))?;
    }
    Ok(unremoved)
}

/// The bytes of `_SUCCESS`: those that were kept when the commit was decided.
async fn manifest(stores: &Stores, publication: &Publication) -> Result<Vec<u8>> {
    match &publication.manifest {
        ManifestBytes::Made(bytes) => Ok(bytes.clone()),
        ManifestBytes::Stored(pointer) => {
            let read = stores.get_ref(pointer, PLAN_BYTES_MAX).await;
            Ok(read.map_err(|e| e.at("the manifest that was kept for the commit"))?.into())
        }
    }
}

/// What stood in OUTPUT before, and has neither been overwritten nor changed by somebody.
async fn remove_replaced(
    store: &Arc<dyn Blobs>,
    fence: &Fence,
    publication: &Publication,
    success: &BlobUrl,
) -> Result<Unremoved> {
    let mut kept: Vec<String> = wanted(publication).map(|wanted| wanted.url.to_string()).collect();
    kept.push(success.to_string());
    kept.sort_unstable();
    let gone: Vec<&PinnedObject> =
        publication.replaced.iter().filter(|old| kept.binary_search(&old.url).is_err()).collect();
    let mut unchanged = Vec::new();
    for old in gone {
        // What somebody has written there since is not what this job was allowed to replace.
        let url: BlobUrl = old.url.parse()?;
        if stands_as(store, &url, &old.version).await? {
            unchanged.push(url);
        }
    }
    remove(store, fence, unchanged).await
}

/// Everything that the publication makes appear, `_SUCCESS` apart.
fn wanted(publication: &Publication) -> impl Iterator<Item = Wanted<'_>> {
    let parts = publication.parts.iter().map(|part| Wanted {
        url: part.url.clone(),
        bytes: part.bytes,
        checksum: part.checksum,
        tags: &part.tags,
    });
    let quarantine = publication.quarantine.iter().map(|(lines, to)| Wanted {
        url: to.clone(),
        bytes: lines.bytes,
        checksum: lines.digest,
        tags: &[],
    });
    parts.chain(quarantine)
}

/// What stands where the job is going to write must be its own, from an earlier try, or what stood
/// there when it was submitted and may be replaced.
async fn refuse_foreign(
    store: &Arc<dyn Blobs>,
    publication: &Publication,
    manifest: &[u8],
) -> Result<()> {
    let pinned: BTreeMap<&str, &str> =
        publication.replaced.iter().map(|old| (old.url.as_str(), old.version.as_str())).collect();
    let success = Wanted {
        url: publication.output.join(SUCCESS),
        bytes: manifest.len() as u64,
        checksum: wire::digest(manifest),
        tags: &[],
    };
    let parts: Vec<Wanted<'_>> = wanted(publication).collect();
    let refuse_one = |wanted: Wanted<'_>| {
        let pinned =
            pinned.get(wanted.url.to_string().as_str()).map(|version| (*version).to_owned());
        let store = store.clone();
        let (url, bytes, checksum, tags) =
            (wanted.url, wanted.bytes, wanted.checksum, wanted.tags.to_vec());
        async move {
            let wanted = Wanted { url, bytes, checksum, tags: &tags };
            // A link to nowhere looks like nothing, and a link to the very bytes like them.
            store.check_place(wanted.url.key()).await.map_err(|e| e.at(&wanted.url))?;
            match standing(&store, &wanted, pinned.as_deref()).await? {
                Standing::Other(meta) if pinned.as_ref() != Some(&meta.version) => {
                    Err(Error::invalid(format!(
                        "{} ({} bytes) has come into OUTPUT since the job was submitted, and is \
                            not the job's; it is left as it is; sort into another OUTPUT",
                        wanted.url, meta.bytes
                    )))
                }
                _ => Ok(()),
            }
        }
    };
    // `_SUCCESS` first: whoever reads of two that collide should read of the one that says so.
    refuse_one(success).await?;
    stream::iter(parts.into_iter().map(refuse_one))
        .buffer_unordered(AT_ONCE)
        .try_collect::<()>()
        .await
}

/// What stands under an object's name. Whatever has the version that is `known` is something else,
/// without a look at it.
async fn standing(
    store: &Arc<dyn Blobs>,
    wanted: &Wanted<'_>,
    known: Option<&str>,
) -> Result<Standing> {
    let meta = match store.head(wanted.url.key()).await {
        Ok(meta) => meta,
        Err(error) if error.kind == ErrorKind::NotFound => return Ok(Standing::Nothing),
        Err(error) => return Err(error.at(&wanted.url)),
    };
    if meta.bytes != wanted.bytes || known == Some(meta.version.as_str()) {
        return Ok(Standing::Other(meta));
    }
    if etag::is_of_parts(&meta.version, wanted.tags) {
        return Ok(Standing::Right);
    }
    let checksum = read_whole(|| checksum(store, &wanted.url, meta.bytes)).await;
    match checksum {
        Ok(checksum) if checksum == wanted.checksum => Ok(Standing::Right),
        Ok(_) => Ok(Standing::Other(meta)),
        Err(error) => Err(error.at(&wanted.url)),
    }
}

async fn checksum(store: &Arc<dyn Blobs>, url: &BlobUrl, bytes: u64) -> Result<u64> {
    let (mut digest, mut offset) = (Digester::default(), 0);
    while offset < bytes {
        let end = bytes.min(offset + LOOK_BYTES);
        digest.update(&store.read(url.key(), offset..end, Access::Once).await?);
        offset = end;
    }
    Ok(digest.finish())
}

/// Removes the `_SUCCESS` that stood there when the job was submitted. Any other is left: this
/// job's own, which a deposed leader wrote just before, or somebody's. Where the old one does not
/// stand, nothing is deleted: a call that goes out late could only hit what has appeared since.
/// What does stand may be the next leader's by now, so an earlier answer of the fence does not do.
async fn remove_old(
    store: &Arc<dyn Blobs>,
    fence: &Fence,
    success: &BlobUrl,
    old: Option<&PinnedObject>,
) -> Result<()> {
    let Some(old) = old else { return Ok(()) };
    if !stands_as(store, success, &old.version).await? {
        return Ok(());
    }
    fence.check_anew().await?;
    let removed = store.delete(success.key()).await;
    removed.map_err(|e| {
        Error::new(e.kind, format!("the old {success} cannot be removed: {}", e.message))
    })
}

/// Whether the very manifest stands already: then all that comes before it has been done. A store
/// that does not say so is asked again: taken for "no", its silence would have the job's own
/// `_SUCCESS` deleted.
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
    let complete_one = |part: PublishedPart| {
        let store = store.clone();
        async move {
            let PublishedPart { url, upload, tags, bytes, checksum } = part;
            fence.check().await?;
            let completed = store.complete_upload(url.key(), &upload, &tags, bytes, sync).await;
            let standing = match completed {
                Ok(Completed::Now) => return Ok(()),
                Err(error) if error.kind != ErrorKind::NotFound => return Err(error.at(&url)),
                Ok(Completed::Unsure) => {
                    let wanted = Wanted { url: url.clone(), bytes, checksum, tags: &tags };
                    standing(&store, &wanted, None).await?
                }
                Err(_) => Standing::Nothing,
            };
            if standing == Standing::Right {
                Ok(())
            } else {
                Err(lost(&url, &upload, bytes, &standing))
            }
        }
    };
    stream::iter(publication.parts.clone().into_iter().map(complete_one))
        .buffer_unordered(COMPLETIONS_AT_ONCE)
        .try_collect::<()>()
        .await
}

/// Nothing brings a lost part back: runs may be gone by now, and their merge was told that its part
/// counts.
fn lost(url: &BlobUrl, upload: &str, bytes: u64, standing: &Standing) -> Error {
    let found = match standing {
        Standing::Other(meta) => {
            format!("an object of {} bytes with other contents stands in its place", meta.bytes)
        }
        Standing::Nothing | Standing::Right => {
            "nothing of its length stands in its place".to_owned()
        }
    };
    Error::corrupt(format!(
        "the part {url} is lost: the store no longer has its upload {upload} of {bytes} bytes, and \
            {found}. A rule of the bucket that aborts incomplete uploads, or somebody by hand, may \
            have removed it; sort again under another --job-id"
    ))
}

/// Copies an object piece by piece, once. It appears only if its bytes are what the journal says
/// they are.
async fn copy(
    stores: &Stores,
    fence: &Fence,
    from: &BlobRef,
    to: &BlobUrl,
    sync: bool,
) -> Result<()> {
    let source: BlobUrl = from.url.parse()?;
    let (reader, writer) = (stores.open(&source).await?, stores.open(to).await?);
    let copied = |upload: String| async {
        let upload = upload;
        let (mut tags, mut digest, mut offset) = (Vec::new(), Digester::default(), 0);
        while offset < from.bytes {
            let end = from.bytes.min(offset + PIECE_BYTES);
            let bytes = reader
                .read(source.key(), offset..end, Access::Once)
                .await
                .map_err(|e| e.at(&source))?;
            digest.update(&bytes);
            let at = PartAt { index: u32::try_from(tags.len()).unwrap_or(u32::MAX), offset };
            tags.push(
                writer.upload_part(to.key(), &upload, at, bytes).await.map_err(|e| e.at(to))?,
            );
            offset = end;
        }
        if digest.finish() != from.digest {
            return Err(Error::corrupt(format!(
                "{source} is not what was committed; it cannot be quarantined"
            )));
        }
        fence.check().await?;
        let completed = writer.complete_upload(to.key(), &upload, &tags, from.bytes, sync).await;
        match completed.map_err(|e| e.at(to))? {
            Completed::Now => Ok(()),
            Completed::Unsure => {
                let wanted = Wanted {
                    url: to.clone(),
                    bytes: from.bytes,
                    checksum: from.digest,
                    tags: &tags,
                };
                match standing(&writer, &wanted, None).await? {
                    Standing::Right => Ok(()),
                    _ => Err(Error::retry(format!("the upload to {to} is gone; it is made again"))),
                }
            }
        }
    };
    fence.own().write(&writer, to, copied).await
}

/// Writes the manifest whole, as an upload of one part where it must outlive a power loss. The
/// fence is asked anew right before it shows: an earlier answer may be of the time before another
/// began to lead, who may have seen the old `_SUCCESS` since.
async fn put(
    stores: &Stores,
    fence: &Fence,
    store: &Arc<dyn Blobs>,
    url: &BlobUrl,
    bytes: &[u8],
    sync: bool,
) -> Result<()> {
    if !sync {
        fence.check_anew().await?;
        return store.put(url.key(), bytes.to_vec().into()).await;
    }
    fence.check().await?;
    let mut buffer = stores.buffers().take(bytes.len());
    buffer.vec_mut().extend_from_slice(bytes);
    let write = |upload: String| async move {
        let at = PartAt { index: 0, offset: 0 };
        let tag = store.upload_part(url.key(), &upload, at, buffer.into()).await?;
        fence.check_anew().await?;
        match store.complete_upload(url.key(), &upload, &[tag], bytes.len() as u64, true).await? {
            Completed::Now => Ok(()),
            Completed::Unsure if stands(store, url, bytes).await? => Ok(()),
            Completed::Unsure => Err(Error::retry("its upload is gone; it is written again")),
        }
    };
    fence.own().write(store, url, write).await
}

/// Deletes objects of one store, a bounded number at once, and says which of them the store refuses
/// to delete.
pub(super) async fn remove(
    store: &Arc<dyn Blobs>,
    fence: &Fence,
    urls: Vec<BlobUrl>,
) -> Result<Unremoved> {
    let delete_one = |url: BlobUrl| {
        let store = store.clone();
        async move {
            fence.check().await?;
            let deleted = store.delete(url.key()).await;
            Ok::<_, Error>((url, deleted))
        }
    };
    let mut unremoved = Unremoved::default();
    let mut urls = urls.into_iter();
    loop {
        // Where nothing may be deleted, a million refusals say no more than a few.
        if unremoved.count >= REFUSALS_MAX {
            unremoved.count += urls.len() as u64;
            return Ok(unremoved);
        }
        let some: Vec<BlobUrl> = urls.by_ref().take(CALLS_BETWEEN).collect();
        if some.is_empty() {
            return Ok(unremoved);
        }
        let mut deleted = stream::iter(some.into_iter().map(delete_one)).buffer_unordered(AT_ONCE);
        while let Some((url, deleted)) = deleted.try_next().await? {
            refused(&mut unremoved, &url, deleted)?;
        }
    }
}

/// Notes what a store refuses for good. What may pass, and what ends this leader's part, is an
/// error.
pub(super) fn refused(
    unremoved: &mut Unremoved,
    what: &dyn std::fmt::Display,
    done: Result<()>,
) -> Result<()> {
    match done {
        Err(error) if matches!(error.kind, ErrorKind::Invalid | ErrorKind::Setup) => {
            unremoved.note(what, &error);
            Ok(())
        }
        done => done.map_err(|e| e.at(what)),
    }
}

#[cfg(test)]
#[path = "publish_tests.rs"]
mod tests;
