//! What stands in the stores before a job begins: its input, pinned with size and version, and what is in OUTPUT.
//!
//! Objects come in the order of the arguments, those of one folder or glob in byte order of their keys. Names with a segment that begins with `_` or `.` are no input,
//! unless an argument names the object itself. What workers offer of their own (`workers:/`) has been asked for before (`offers.rs`): in the order of their ids, then of
//! the paths.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use globset::{GlobBuilder, GlobMatcher};

use muster_common::inputs;
use muster_common::names::{self, SCRATCH_DIR};
use muster_common::plan::{BadInputs, JobSpec, OBJECT_BYTES, OBJECTS_MAX, PinnedObject};
use muster_common::store::{Access, BlobMeta, BlobUrl, Blobs, Stores, read_whole};
use muster_common::{Error, ErrorKind, Result};

use super::formats::refuse_other_formats;
use super::offers::Offered;
use crate::job::io::{Listing, Offer, Places};
use crate::job::overlap;

/// Objects of which a first byte is read, so that one that cannot be read is named at once. With more, the task that reads it names it.
const TRIED_MAX: usize = 1000;
const TRIED_AT_ONCE: usize = 16;

/// One argument's objects.
struct Expanded {
    objects: Vec<BlobMeta>,
    /// The folder that was listed, where the argument is one.
    folder: Option<BlobUrl>,
    url: BlobUrl,
}

/// Lists and pins.
///
/// # Errors
/// `Invalid` or `NotFound`, naming the argument or the object; `Retry` where the store does not answer.
pub(super) async fn list_input(
    stores: &Stores,
    spec: &JobSpec,
    places: &Places,
    (offers, offered): (&[Offer], &Offered),
) -> Result<Listing> {
    let mut objects: Vec<PinnedObject> = Vec::new();
    check_offered_folders(offers, places)?;
    for text in &spec.inputs {
        if inputs::of_workers(text).is_some() {
            let found = offered.objects.get(text);
            let found = found.ok_or_else(|| Error::bug(format!("INPUT {text} was not asked for")))?;
            objects.extend(found.iter().cloned());
            check_count(stores, &objects)?;
            continue;
        }
        let expanded = expand(stores, text).await?;
        check_overlap(&expanded, places)?;
        let Expanded { objects: found, url, .. } = expanded;
        objects.extend(found.into_iter().map(|meta| PinnedObject {
            url: url.with_key(meta.key).to_string(),
            bytes: meta.bytes,
            version: meta.version,
        }));
        check_count(stores, &objects)?;
    }
    // What may be left out is found unreadable by the task that reads it, which says so in the journal.
    if spec.bad_inputs == BadInputs::Fail {
        try_reading(stores, &objects, offered).await?;
    }
    if spec.auto_format {
        refuse_other_formats(stores, &objects, spec.bad_inputs, offered).await?;
    }
    let replaced = look_at_output(stores, spec, &places.output).await?;
    let uploads_before = open_uploads(stores, &places.output).await?;
    let output_existed = is_folder(&places.output).await.unwrap_or(true);
    Ok(Listing { objects, replaced, uploads_before, output_existed })
}

fn check_count(stores: &Stores, objects: &[PinnedObject]) -> Result<()> {
    let limit = stores.objects_max();
    if objects.len() > limit { Err(too_many(limit)) } else { Ok(()) }
}

fn too_many(limit: usize) -> Error {
    Error::invalid(format!(
        "the input has more than {limit} objects, the limit (store.objects_max, or what --memory has room for in a run here: {OBJECT_BYTES} bytes for each); give more --memory, or join small objects"
    ))
}

/// What lies below `base`, as far as it is not more than a job takes.
async fn listed(stores: &Stores, store: &Arc<dyn Blobs>, url: &BlobUrl, base: &str) -> Result<Vec<BlobMeta>> {
    let limit = stores.objects_max();
    store.list(base, limit).await.map_err(|e| {
        match e.kind {
            ErrorKind::Exhausted => Error::invalid(format!("{} ({})", too_many(limit), e.message)),
            _ => e,
        }
        .at(format!("INPUT {url}"))
    })
}

/// Paths mean the same to all processes of a pool, so an OUTPUT below a folder that a worker offers would be the next run's input.
fn check_offered_folders(offers: &[Offer], places: &Places) -> Result<()> {
    let output = &places.output;
    for offer in offers {
        for folder in &offer.folders {
            let folder: BlobUrl = folder.parse()?;
            if overlap(&folder, output) {
                let worker = &offer.worker;
                let text = format!(
                    "OUTPUT {output} overlaps {folder}, which worker {worker} offers as input; choose another OUTPUT"
                );
                return Err(Error::invalid(text));
            }
        }
    }
    Ok(())
}

/// Whether a path is a folder; none for what is no path.
async fn is_folder(url: &BlobUrl) -> Option<bool> {
    let path = url.file_path()?;
    Some(tokio::fs::metadata(path).await.is_ok_and(|meta| meta.is_dir()))
}

async fn expand(stores: &Stores, text: &str) -> Result<Expanded> {
    let url: BlobUrl = text.parse().map_err(|e: Error| e.at("INPUT"))?;
    let store = stores.open(&url).await?;
    if !text.ends_with('/') && !url.key().is_empty() {
        match store.head(url.key()).await {
            Ok(meta) => return Ok(Expanded { objects: vec![meta], folder: None, url }),
            Err(error) if error.kind == ErrorKind::NotFound => {}
            Err(error) => return Err(error.at(format!("INPUT {url}"))),
        }
    }
    match glob_base(url.key()) {
        Some(base) => expand_glob(stores, &store, url.clone(), base).await,
        None => expand_folder(stores, &store, url).await,
    }
}

/// The folder before the first segment with a wildcard; none where there is no wildcard.
fn glob_base(key: &str) -> Option<&str> {
    let first = key.find(['*', '?', '[', '{'])?;
    Some(key[..first].rsplit_once('/').map_or("", |(base, _)| base))
}

async fn expand_glob(stores: &Stores, store: &Arc<dyn Blobs>, url: BlobUrl, base: &str) -> Result<Expanded> {
    let matcher = matcher(url.key()).map_err(|e| e.at(format!("INPUT {url}")))?;
    let listed = listed(stores, store, &url, base).await?;
    let is_input = |meta: &BlobMeta| names::is_input_name(relative(&meta.key, base)) && matcher.is_match(&meta.key);
    let objects: Vec<BlobMeta> = listed.into_iter().filter(is_input).collect();
    if objects.is_empty() {
        return Err(not_there(&url, "no object matches it"));
    }
    Ok(Expanded { objects, folder: None, url })
}

fn matcher(pattern: &str) -> Result<GlobMatcher> {
    let glob = GlobBuilder::new(pattern).literal_separator(true).build();
    Ok(glob.map_err(|e| Error::invalid(format!("not a valid pattern: {e}")))?.compile_matcher())
}

async fn expand_folder(stores: &Stores, store: &Arc<dyn Blobs>, url: BlobUrl) -> Result<Expanded> {
    let base = url.key().trim_end_matches('/');
    let listed = listed(stores, store, &url, base).await?;
    let hidden = !listed.is_empty();
    let objects: Vec<BlobMeta> =
        listed.into_iter().filter(|meta| names::is_input_name(relative(&meta.key, base))).collect();
    if objects.is_empty() && is_folder(&url).await != Some(true) {
        let why = if hidden {
            "it holds only names that begin with _ or ."
        } else {
            "neither such an object nor anything below it"
        };
        return Err(not_there(&url, why));
    }
    Ok(Expanded { objects, folder: Some(url.clone()), url })
}

fn relative<'a>(key: &'a str, base: &str) -> &'a str {
    key.strip_prefix(base).unwrap_or(key).trim_start_matches('/')
}

fn not_there(url: &BlobUrl, why: &str) -> Error {
    let hint =
        if url.file_path().is_some() { "; in a pool every process must see a path under the same name" } else { "" };
    Error::new(ErrorKind::NotFound, format!("INPUT {url} is not there: {why}, as the coordinator sees it{hint}"))
}

/// OUTPUT must neither hold input nor be part of a folder that is read: the next run over the same folder would read this one's output.
fn check_overlap(expanded: &Expanded, places: &Places) -> Result<()> {
    let Places { output, scratch, replica, .. } = places;
    let refuse =
        |what: &BlobUrl| Err(Error::invalid(format!("OUTPUT {output} overlaps INPUT {what}; choose another OUTPUT")));
    if let Some(folder) = &expanded.folder
        && (folder.contains(output) || output.contains(folder))
    {
        return refuse(folder);
    }
    if let (Some(folder), Some(replica)) = (&expanded.folder, replica)
        && overlap(folder, replica)
    {
        return Err(Error::invalid(format!("--replica {replica} overlaps INPUT {folder}; name another place")));
    }
    let urls = expanded.objects.iter().map(|meta| expanded.url.with_key(meta.key.clone()));
    for object in urls {
        if output.contains(&object) || object.contains(output) {
            return refuse(&object);
        }
        if scratch.contains(&object) {
            return Err(Error::invalid(format!("INPUT {object} lies in the job's own scratch")));
        }
        if let Some(replica) = replica.as_ref().filter(|replica| overlap(replica, &object)) {
            return Err(Error::invalid(format!("--replica {replica} overlaps INPUT {object}; name another place")));
        }
    }
    Ok(())
}

async fn try_reading(stores: &Stores, objects: &[PinnedObject], offered: &Offered) -> Result<()> {
    let heads = objects.iter().filter_map(|object| Some((&object.url, offered.heads.get(&object.url)?)));
    for (url, head) in heads {
        head.as_ref().map_err(|e| e.clone().at(format!("INPUT {url} cannot be read")))?;
    }
    let try_one = |text: String| async move {
        let url: BlobUrl = text.parse()?;
        let store = stores.open(&url).await?;
        let read = read_whole(|| store.read(url.key(), 0..1, Access::Cached)).await;
        read.map(drop).map_err(|e| e.at(format!("INPUT {url} cannot be read")))
    };
    let tried: Vec<String> = objects
        .iter()
        .filter(|object| object.bytes > 0 && object.owner().is_none())
        .take(TRIED_MAX)
        .map(|object| object.url.clone())
        .collect();
    stream::iter(tried.into_iter().map(try_one)).buffer_unordered(TRIED_AT_ONCE).try_collect::<()>().await
}

/// What stands in OUTPUT, all of which a job that may overwrite replaces. Scratch and unfinished uploads do not count.
async fn look_at_output(stores: &Stores, spec: &JobSpec, output: &BlobUrl) -> Result<Vec<PinnedObject>> {
    let store = stores.open(output).await?;
    match store.head(output.key()).await {
        Ok(_) => return Err(Error::invalid(format!("OUTPUT {output} is an object; name a folder or prefix"))),
        Err(error) if error.kind == ErrorKind::NotFound => {}
        Err(error) => return Err(error.at(format!("OUTPUT {output}"))),
    }
    let base = output.key().trim_end_matches('/');
    let listed = store.list(base, OBJECTS_MAX).await.map_err(|e| e.at(format!("OUTPUT {output}")))?;
    let content = listed.into_iter().filter(|meta| is_content(relative(&meta.key, base)));
    let pin = |meta: BlobMeta| PinnedObject {
        url: output.with_key(meta.key).to_string(),
        bytes: meta.bytes,
        version: meta.version,
    };
    let replaced: Vec<PinnedObject> = content.map(pin).collect();
    match replaced.first() {
        Some(first) if !spec.overwrite => {
            let more = if replaced.len() > 1 { format!(" and {} more", replaced.len() - 1) } else { String::new() };
            Err(Error::invalid(format!(
                "OUTPUT {output} is not empty ({}{more}); choose another one, or replace it with --overwrite",
                first.url
            )))
        }
        _ => Ok(replaced),
    }
}

/// The uploads into OUTPUT that are open before the job writes anything: whoever opened them, it was not this job.
async fn open_uploads(stores: &Stores, output: &BlobUrl) -> Result<Vec<String>> {
    let store = stores.open(output).await?;
    let listed = store
        .list_uploads(output.key().trim_end_matches('/'), OBJECTS_MAX)
        .await
        .map_err(|e| e.at(format!("OUTPUT {output}")))?;
    Ok(listed.into_iter().map(|open| open.upload).collect())
}

fn is_content(relative: &str) -> bool {
    let name = relative.rsplit('/').next().unwrap_or(relative);
    let unfinished = name.starts_with('.') && name.ends_with(".upload");
    !unfinished && relative.split('/').next() != Some(SCRATCH_DIR)
}

#[cfg(test)]
#[path = "listing_tests.rs"]
mod tests;
