//! What of OUTPUT a job may replace: what a job of muster has made there, and says so.
//!
//! The `_SUCCESS` that stands in OUTPUT is asked, and believed only as far as its names are of the
//! form that jobs give: nobody can make it name anything else. All other entries are somebody's,
//! hidden ones and links too. Scratch and unfinished uploads are muster's own, and no content.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use serde::Deserialize;

use muster_platform::store::{Access, BlobMeta, BlobUrl, Blobs, read_whole};
use muster_platform::stores::Stores;
use muster_protocol::names::{self, SCRATCH_DIR, SUCCESS};
use muster_protocol::plan::{JobSpec, OBJECTS_MAX, PinnedObject};
use muster_protocol::{Error, ErrorKind, Result};

use super::publish::AT_ONCE;

/// Largest `_SUCCESS` that is read, in bytes: it names each part, each bad record and each
/// omission, all of which have bounds.
const MANIFEST_BYTES_MAX: u64 = 256 << 20;
/// Entries that a refusal names.
const SHOWN: usize = 3;

/// What a manifest says of the objects of its job; whatever else it says does not count here.
#[derive(Deserialize)]
struct Named {
    #[serde(rename = "job")]
    _job: String,
    parts: Vec<Name>,
    #[serde(default)]
    quarantine: Vec<Name>,
}

#[derive(Deserialize)]
struct Name {
    name: String,
}

/// What stands in OUTPUT and goes: all of it made by an earlier job. Without `--overwrite` nothing
/// may stand there.
///
/// # Errors
/// `Invalid` where something stands there that must not go, naming the first of it; else as the
/// store says.
pub(super) async fn look_at_output(
    stores: &Stores,
    spec: &JobSpec,
    output: &BlobUrl,
) -> Result<Vec<PinnedObject>> {
    let store = stores.open(output).await?;
    let base = output.key().trim_end_matches('/');
    let listed =
        store.list(base, OBJECTS_MAX).await.map_err(|e| e.at(format!("OUTPUT {output}")))?;
    let content: Vec<BlobMeta> =
        listed.into_iter().filter(|meta| is_content(relative(&meta.key, base))).collect();
    let Some(first) = content.first() else { return Ok(Vec::new()) };
    if !spec.overwrite {
        let more = if content.len() > 1 {
            format!(" and {} more", content.len() - 1)
        } else {
            String::new()
        };
        return Err(Error::invalid(format!(
            "OUTPUT {output} is not empty ({}{more}); choose another one, or replace an earlier \
                result with --overwrite",
            output.with_key(first.key.clone())
        )));
    }
    let success = content.iter().find(|meta| relative(&meta.key, base) == SUCCESS);
    let made = match success {
        Some(success) => {
            made_by_a_job(&store, success).await.map_err(|e| e.at(format!("OUTPUT {output}")))?
        }
        None => BTreeSet::new(),
    };
    let foreign: Vec<&str> = content
        .iter()
        .map(|meta| relative(&meta.key, base))
        .filter(|name| !made.contains(*name))
        .collect();
    if !foreign.is_empty() {
        return Err(refuse(output, &foreign, made.is_empty()));
    }
    // A link under a name that the manifest gives is somebody's: what it leads to may lie anywhere.
    let places =
        content.iter().map(|meta| {
            let store = &store;
            async move {
                store.check_place(&meta.key).await.map_err(|e| e.at(format!("OUTPUT {output}")))
            }
        });
    stream::iter(places.collect::<Vec<_>>()).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
    let pin = |meta: BlobMeta| PinnedObject {
        url: output.with_key(meta.key).to_string(),
        bytes: meta.bytes,
        version: meta.version,
    };
    Ok(content.into_iter().map(pin).collect())
}

fn refuse(output: &BlobUrl, foreign: &[&str], no_result: bool) -> Error {
    let first: Vec<&str> = foreign.iter().take(SHOWN).copied().collect();
    let more = foreign.len() - first.len();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let why = match no_result {
        true => "there is no _SUCCESS of an earlier sort that names them",
        false => "the _SUCCESS of the earlier sort does not name them",
    };
    Error::invalid(format!(
        "OUTPUT {output} holds what --overwrite must not replace: {}{more}; {why}. Choose another \
            OUTPUT, or move them away",
        first.join(", ")
    ))
}

/// The names below OUTPUT that a `_SUCCESS` accounts for, its own among them; none where it is not
/// muster's.
async fn made_by_a_job(store: &Arc<dyn Blobs>, success: &BlobMeta) -> Result<BTreeSet<String>> {
    if success.bytes == 0 || success.bytes > MANIFEST_BYTES_MAX {
        return Ok(BTreeSet::new());
    }
    // Whatever lies there that is no file, a link among them, is none of muster's.
    let stands = match store.head(&success.key).await {
        Ok(meta) => meta.version == success.version,
        Err(error) if matches!(error.kind, ErrorKind::NotFound | ErrorKind::Invalid) => false,
        Err(error) => return Err(error),
    };
    if !stands {
        return Ok(BTreeSet::new());
    }
    let read = read_whole(|| store.read(&success.key, 0..success.bytes, Access::Cached)).await?;
    Ok(names_of(&read))
}

fn names_of(manifest: &[u8]) -> BTreeSet<String> {
    let Ok(Named { parts, quarantine, .. }) = serde_json::from_slice(manifest) else {
        return BTreeSet::new();
    };
    let named = parts
        .into_iter()
        .chain(quarantine)
        .map(|Name { name }| name)
        .filter(|name| names::is_of_a_job(name));
    named.chain([SUCCESS.to_owned()]).collect()
}

fn relative<'a>(key: &'a str, base: &str) -> &'a str {
    key.strip_prefix(base).unwrap_or(key).trim_start_matches('/')
}

fn is_content(relative: &str) -> bool {
    let name = relative.rsplit('/').next().unwrap_or(relative);
    let unfinished = name.starts_with('.') && name.ends_with(".upload");
    // The mark of the folder itself has no name in it.
    !unfinished && !relative.is_empty() && relative.split('/').next() != Some(SCRATCH_DIR)
}

#[cfg(test)]
#[path = "owned_tests.rs"]
mod tests;
