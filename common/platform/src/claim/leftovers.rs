//! What a dead run here has left in OUTPUT, and its removal: its scratch, its unfinished uploads,
//! parts that appeared before it died, and parts of the older result that it was replacing.
//!
//! Only what the dead owner's claim names is touched, and only by whoever holds OUTPUT. Its scratch
//! bears its ids, and holds its plan. On a file system the temporary names of its uploads begin
//! with its mark; in a bucket they are those into its parts' names that its plan does not know as
//! older. Parts that it made must be, byte for byte, what its manifest says, and those that it was
//! replacing the very versions of its plan; either only where it had begun to publish and no
//! `_SUCCESS` stands beside them, so that they are neither its result nor the older one's.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use bytesize::ByteSize;
use futures::{StreamExt, TryStreamExt, stream};

use super::judge::Seen;
use super::{Claim, ClaimId};
use crate::store::{Access, BlobMeta, BlobUrl, Blobs, OpenUpload, Scheme};
use crate::stores::Stores;
use muster_protocol::api::Manifest;
use muster_protocol::error::{ErrorKind, Result};
use muster_protocol::names;
use muster_protocol::plan::{PARTITIONS_MAX, PLAN_BYTES_MAX, Plan};
use muster_protocol::wire::{BlobRef, Digester};

/// Objects that one listing may give.
const LISTED_MAX: usize = 1_000_000;
/// Bytes of a part that are looked at at once.
const LOOK_BYTES: u64 = 1 << 20;
/// Questions to a store that go side by side.
const AT_ONCE: usize = 16;

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
    /// Of its own result and of the older one.
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
    // Scratch goes last: plan and manifest in it say which parts and uploads are the dead one's.
    for meta in &left.parts {
        store.delete(&meta.key).await.map_err(|e| e.at(output))?;
        removed.add(meta.bytes);
    }
    if !left.parts.is_empty() {
        let quarantine = output.join(names::QUARANTINE_DIR);
        store.remove_folder(quarantine.key()).await.map_err(|e| e.at(output))?;
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
    let plans = plans(&store, claim, &scratch, &in_scratch).await?;
    let mut uploads = Vec::new();
    for open in uploads_of(&store, output, claim, &scratch, &plans).await? {
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
    let mut parts = match &claim.publishing {
        Some(manifest) if !is_whole(&store, output).await? => {
            let mut parts = parts(stores, &store, output, &scratch, manifest).await?;
            parts.extend(replaced(&store, output, &plans).await?);
            parts
        }
        _ => Vec::new(),
    };
    parts.sort_unstable_by(|one, other| one.key.cmp(&other.key));
    parts.dedup_by(|one, other| one.key == other.key);
    let temporary =
        |meta: &BlobMeta| uploads.iter().any(|(open, _)| meta.key.ends_with(&open.upload));
    let in_scratch = in_scratch.into_iter().filter(|meta| !temporary(meta)).collect();
    Ok(Left { scratch, in_scratch, uploads, parts })
}

/// The plans in the dead one's scratch: one, or two where a leader was followed while it planned.
/// What cannot be read as a plan of its job says nothing.
async fn plans(
    store: &Arc<dyn Blobs>,
    claim: &Claim,
    scratch: &BlobUrl,
    in_scratch: &[BlobMeta],
) -> Result<Vec<Plan>> {
    let mut plans = Vec::new();
    for meta in in_scratch {
        let name = meta.key.strip_prefix(scratch.key()).and_then(|rest| rest.strip_prefix('/'));
        if !name.is_some_and(names::is_plan) || meta.bytes > PLAN_BYTES_MAX {
            continue;
        }
        match store.read(&meta.key, 0..meta.bytes, Access::Once).await {
            Ok(bytes) => plans.extend(Plan::from_bytes(&bytes)),
            Err(error) if error.kind.is_passing() => return Err(error.at(scratch)),
            Err(_) => {}
        }
    }
    plans.retain(|plan: &Plan| plan.job == claim.id.job);
    Ok(plans)
}

/// The open uploads that are the dead one's. Stores differ in who may list uploads; where this one
/// may not, a rule of the bucket removes what stays.
async fn uploads_of(
    store: &Arc<dyn Blobs>,
    output: &BlobUrl,
    claim: &Claim,
    scratch: &BlobUrl,
    plans: &[Plan],
) -> Result<BTreeSet<OpenUpload>> {
    let mut own = BTreeSet::new();
    let known = plans.iter().all(Plan::knows_uploads_before);
    if *output.scheme() != Scheme::File && known {
        let names =
            plans.iter().flat_map(|plan| plan.output_names(plan.partitions.min(PARTITIONS_MAX)));
        own.extend(names.map(|name| output.join(&name).key().to_owned()));
    }
    // Some stores list open uploads by the whole key only, so each is asked for.
    let mut asked = vec![output.key().to_owned()];
    if matches!(output.scheme(), Scheme::S3 { .. }) {
        asked.extend(own.iter().cloned());
    }
    let ask = |key: String| {
        let store = store.clone();
        async move { store.list_uploads(&key, LISTED_MAX).await }
    };
    let open = stream::iter(asked.into_iter().map(ask)).buffer_unordered(AT_ONCE).try_fold(
        BTreeSet::new(),
        |mut all: BTreeSet<OpenUpload>, some| async move {
            all.extend(some);
            Ok(all)
        },
    );
    let mut open = match open.await {
        Ok(open) => open,
        Err(error) if error.kind == ErrorKind::Invalid => BTreeSet::new(),
        Err(error) => return Err(error.at(output)),
    };
    let before: BTreeSet<&String> = plans.iter().flat_map(|plan| &plan.uploads_before).collect();
    open.retain(|open| {
        is_marked(output, open, scratch, &claim.marks)
            || own.contains(&open.key) && !before.contains(&open.upload)
    });
    Ok(open)
}

/// Whether OUTPUT is whole: this job's result, or still what stood there before.
async fn is_whole(store: &Arc<dyn Blobs>, output: &BlobUrl) -> Result<bool> {
    let success = output.join(names::SUCCESS);
    match store.head(success.key()).await {
        Ok(_) => Ok(true),
        Err(error) if error.kind == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error.at(&success)),
    }
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

/// Parts and quarantined records that appeared before their job died in the midst of its commit.
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
    let bytes = match stores.get_ref(manifest, PLAN_BYTES_MAX).await {
        Ok(bytes) => bytes,
        Err(error) if error.kind.is_passing() => return Err(error.at(&url)),
        Err(_) => return Ok(Vec::new()),
    };
    let Ok(manifest) = serde_json::from_slice::<Manifest>(&bytes) else { return Ok(Vec::new()) };
    let files = manifest.parts.into_iter().map(|part| (part.name, part.bytes, part.checksum));
    let kept = manifest.quarantine.into_iter().map(|file| (file.name, file.bytes, file.checksum));
    let mut found = Vec::new();
    for (name, bytes, checksum) in files.chain(kept) {
        if !names::is_of_a_job(&name) {
            continue;
        }
        let url = output.join(&name);
        let meta = match store.head(url.key()).await {
            Ok(meta) if meta.bytes == bytes => meta,
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
        if format!("{:016x}", digest.finish()) == checksum {
            found.push(meta);
        }
    }
    Ok(found)
}

/// What is left of the older result whose `_SUCCESS` the dead one removed in order to replace it:
/// nothing else names these any more.
async fn replaced(
    store: &Arc<dyn Blobs>,
    output: &BlobUrl,
    plans: &[Plan],
) -> Result<Vec<BlobMeta>> {
    let mut wanted = BTreeSet::new();
    for plan in plans {
        for old in &plan.replaced {
            // OUTPUT may have had another name when it was planned.
            let name = old.url.strip_prefix(&plan.output).map(|name| name.trim_matches('/'));
            if let Some(name) = name.filter(|name| names::is_of_a_job(name)) {
                wanted.insert((output.join(name).key().to_owned(), old.version.as_str()));
            }
        }
    }
    let look = |(key, version): (String, &str)| {
        let (store, version) = (store.clone(), version.to_owned());
        async move {
            match store.head(&key).await {
                Ok(meta) => Ok((meta.version == version).then_some(meta)),
                // Something that no job makes has taken the place of it.
                Err(error) if matches!(error.kind, ErrorKind::NotFound | ErrorKind::Invalid) => {
                    Ok(None)
                }
                Err(error) => Err(error.at(output)),
            }
        }
    };
    let found: Vec<Option<BlobMeta>> =
        stream::iter(wanted.into_iter().map(look)).buffer_unordered(AT_ONCE).try_collect().await?;
    Ok(found.into_iter().flatten().collect())
}
