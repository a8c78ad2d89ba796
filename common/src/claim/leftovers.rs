//! What a dead run here has left in OUTPUT, and its removal: its scratch, its unfinished uploads,
//! and parts that appeared before it died.
//!
//! Only what the dead owner's claim names is touched, and only by whoever holds OUTPUT. Its scratch
//! bears its ids; the temporary names of its uploads begin with its mark; parts must be, byte for
//! byte, what its manifest says, and no `_SUCCESS` may stand beside them.

use std::fmt;
use std::sync::Arc;

use bytesize::ByteSize;

use super::judge::Seen;
use super::{Claim, ClaimId};
use crate::api::Manifest;
use crate::error::{ErrorKind, Result};
use crate::names;
use crate::plan::PLAN_BYTES_MAX;
use crate::store::{Access, BlobMeta, BlobUrl, Blobs, OpenUpload, Scheme, Stores};
use crate::wire::{BlobRef, Digester};

/// Objects that one listing may give.
const LISTED_MAX: usize = 1_000_000;
/// Bytes of a part that are looked at at once.
const LOOK_BYTES: u64 = 1 << 20;

/// How much that is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Removed {
    /// Objects and unfinished uploads.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Removed {
    /// Whether there is nothing.
    pub fn is_nothing(&self) -> bool {
        self.objects == 0
    }

    fn add(&mut self, bytes: u64) {
        self.objects += 1;
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

impl fmt::Display for Removed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let files = if self.objects == 1 { "file" } else { "files" };
        write!(f, "{} {files} ({})", self.objects, ByteSize::b(self.bytes))
    }
}

/// What a dead owner has left.
struct Left {
    scratch: BlobUrl,
    in_scratch: Vec<BlobMeta>,
    uploads: Vec<(OpenUpload, u64)>,
    parts: Vec<BlobMeta>,
}

/// How much could be removed if the owner of this claim is dead.
///
/// # Errors
/// The first error of the store.
pub(super) async fn size(stores: &Stores, output: &BlobUrl, seen: &Seen) -> Result<Removed> {
    let Some(claim) = seen.claim.as_ref().filter(|claim| claim.owner.run_here) else {
        return Ok(Removed::default());
    };
    let left = find(stores, output, claim).await?;
    let mut size = Removed::default();
    left.in_scratch.iter().chain(&left.parts).for_each(|meta| size.add(meta.bytes));
    left.uploads.iter().for_each(|(_, bytes)| size.add(*bytes));
    Ok(size)
}

/// Removes what a dead run here has left. To be called by whoever holds OUTPUT and has overruled
/// it. The claim itself stays.
///
/// # Errors
/// The first error of the store. What is removed stays removed, and the next try goes on.
pub async fn remove_dead(stores: &Stores, output: &BlobUrl, seen: &Seen) -> Result<Removed> {
    let Some(claim) = seen.claim.as_ref().filter(|claim| claim.owner.run_here) else {
        return Ok(Removed::default());
    };
    let store = stores.open(output).await?;
    let left = find(stores, output, claim).await?;
    let mut removed = Removed::default();
    // Scratch goes last: the manifest in it says which parts are the dead one's.
    for meta in &left.parts {
        store.delete(&meta.key).await.map_err(|e| e.at(output))?;
        removed.add(meta.bytes);
    }
    for (open, bytes) in &left.uploads {
        store.abort_upload(&open.key, &open.upload).await.map_err(|e| e.at(output))?;
        removed.add(*bytes);
    }
    for meta in &left.in_scratch {
        store.delete(&meta.key).await.map_err(|e| e.at(output))?;
        removed.add(meta.bytes);
    }
    store.prune(left.scratch.key()).await.map_err(|e| e.at(output))?;
    Ok(removed)
}

async fn find(stores: &Stores, output: &BlobUrl, claim: &Claim) -> Result<Left> {
    let store = stores.open(output).await?;
    let ClaimId { deployment, job } = &claim.id;
    // Made of the ids, not read: a claim cannot point elsewhere.
    let scratch = output.join(&names::scratch_path(deployment, job));
    let in_scratch = store.list(scratch.key(), LISTED_MAX).await.map_err(|e| e.at(&scratch))?;
    let open = match store.list_uploads(output.key(), LISTED_MAX).await {
        Ok(open) => open,
        // Stores differ in who may list uploads; a rule of the bucket removes what stays.
        Err(error) if error.kind == ErrorKind::Invalid => Vec::new(),
        Err(error) => return Err(error.at(output)),
    };
    let mut uploads = Vec::new();
    for open in open.into_iter().filter(|open| is_marked(output, open, &scratch, &claim.marks)) {
        // On a file system an upload is a file beside its target, of that name.
        let beside = open
            .key
            .rsplit_once('/')
            .map_or_else(String::new, |(folder, _)| format!("{folder}/{}", open.upload));
        let bytes = if *output.scheme() == Scheme::File {
            store.head(&beside).await.map_or(0, |meta| meta.bytes)
        } else {
            0
        };
        uploads.push((open, bytes));
    }
    let parts = match &claim.publishing {
        Some(manifest) => parts(stores, &store, output, &scratch, manifest).await?,
        None => Vec::new(),
    };
    let temporary =
        |meta: &BlobMeta| uploads.iter().any(|(open, _)| meta.key.ends_with(&open.upload));
    let in_scratch = in_scratch.into_iter().filter(|meta| !temporary(meta)).collect();
    Ok(Left { scratch, in_scratch, uploads, parts })
}

/// Whether an upload is the dead one's: into its own scratch, or by its mark.
fn is_marked(output: &BlobUrl, open: &OpenUpload, scratch: &BlobUrl, marks: &[String]) -> bool {
    if scratch.contains(&output.with_key(open.key.clone())) {
        return true;
    }
    // `.NAME.<16 hex digits>.upload`
    let nonce = open
        .upload
        .strip_suffix(".upload")
        .and_then(|name| name.rsplit_once('.'))
        .map(|(_, nonce)| nonce);
    *output.scheme() == Scheme::File
        && nonce.is_some_and(|nonce| {
            nonce.len() == 16 && marks.iter().any(|mark| nonce.starts_with(mark.as_str()))
        })
}

/// Parts that appeared before their job died in the midst of its commit.
async fn parts(
    stores: &Stores,
    store: &Arc<dyn Blobs>,
    output: &BlobUrl,
    scratch: &BlobUrl,
    manifest: &BlobRef,
) -> Result<Vec<BlobMeta>> {
    let Some(url) = manifest.url.parse::<BlobUrl>().ok().filter(|url| scratch.contains(url)) else {
        return Ok(Vec::new());
    };
    let success = output.join(names::SUCCESS);
    match store.head(success.key()).await {
        // OUTPUT is whole: this job's, or still what stood there before.
        Ok(_) => return Ok(Vec::new()),
        Err(error) if error.kind == ErrorKind::NotFound => {}
        Err(error) => return Err(error.at(&success)),
    }
    let bytes = match stores.get_ref(manifest, PLAN_BYTES_MAX).await {
        Ok(bytes) => bytes,
        Err(error) if error.kind.is_passing() => return Err(error.at(&url)),
        Err(_) => return Ok(Vec::new()),
    };
    let Ok(manifest) = serde_json::from_slice::<Manifest>(&bytes) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for part in manifest.parts {
        let extension = part.name.rsplit_once('.').map_or("", |(_, extension)| extension);
        if part.name.contains('/') || !names::is_output_name(&part.name, extension) {
            continue;
        }
        let url = output.join(&part.name);
        let meta = match store.head(url.key()).await {
            Ok(meta) if meta.bytes == part.bytes => meta,
            Ok(_) => continue,
            Err(error) if error.kind == ErrorKind::NotFound => continue,
            Err(error) => return Err(error.at(&url)),
        };
        let (mut digest, mut offset) = (Digester::default(), 0);
        while offset < meta.bytes {
            let end = meta.bytes.min(offset + LOOK_BYTES);
            digest.update(
                &store.read(url.key(), offset..end, Access::Once).await.map_err(|e| e.at(&url))?,
            );
            offset = end;
        }
        if format!("{:016x}", digest.finish()) == part.checksum {
            found.push(meta);
        }
    }
    Ok(found)
}
