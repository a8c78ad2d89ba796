//! What workers offer of their own as input: asks each of them, page by page, and believes nothing that it did not register.

use std::collections::BTreeMap;
use std::future::Future;

use futures::future::{self, Either};
use futures::{StreamExt, TryStreamExt, stream};

use muster_common::clock::Clock;
use muster_common::ids::Epoch;
use muster_common::inputs::{self, Pattern};
use muster_common::plan::{JobSpec, OBJECTS_MAX, PinnedObject};
use muster_common::store::BlobUrl;
use muster_common::wire::{HEAD_BYTES_MAX, ListInputs, ListReply, LocalFile};
use muster_common::{Error, ErrorKind, Result};

use crate::job::io::Offer;

/// Workers that are asked side by side.
const ASKED_AT_ONCE: usize = 16;
/// Pause before a page is asked for again, in milliseconds.
const PAUSE_MS: u64 = 200;
/// Tries of one page.
const TRIES_MAX: u32 = 4;
/// Longest version of a file, in bytes.
const VERSION_BYTES_MAX: usize = 256;

/// The files that workers offer, for each INPUT that means some.
#[derive(Debug, Default)]
pub(super) struct Offered {
    /// By INPUT, in the order of the positions.
    pub(super) objects: BTreeMap<String, Vec<PinnedObject>>,
    /// The first bytes of each, or why it cannot be read, by URL.
    pub(super) heads: BTreeMap<String, Result<Vec<u8>>>,
}

/// Lists what `offers` have for the INPUTs of a request. `ask` sends one question to one worker; nothing takes longer than `bound_ms`. It relies on no runtime, only on
/// the clock's pauses.
///
/// # Errors
/// `NotFound` where nobody offers what an INPUT means; `Exhausted` where a worker does not answer, and `Corrupt` where it says what cannot be true, naming it.
pub(super) async fn list<F>(
    spec: &JobSpec,
    offers: &[Offer],
    epoch: Epoch,
    (clock, bound_ms): (&dyn Clock, u64),
    ask: impl Fn(Offer, ListInputs) -> F,
) -> Result<Offered>
where
    F: Future<Output = Result<ListReply>>,
{
    let listed = std::pin::pin!(list_unbounded(spec, offers, epoch, clock, ask));
    match future::select(listed, clock.pause(bound_ms)).await {
        Either::Left((listed, _)) => listed,
        Either::Right(_) => Err(Error::exhausted(format!(
            "workers did not list their input within {bound_ms} ms (store.list_timeout_ms)"
        ))),
    }
}

async fn list_unbounded<F>(
    spec: &JobSpec,
    offers: &[Offer],
    epoch: Epoch,
    clock: &dyn Clock,
    ask: impl Fn(Offer, ListInputs) -> F,
) -> Result<Offered>
where
    F: Future<Output = Result<ListReply>>,
{
    let mut offered = Offered::default();
    for input in &spec.inputs {
        let Some(pattern) = inputs::of_workers(input).transpose()? else { continue };
        if offered.objects.contains_key(input) {
            continue;
        }
        let (ask, pattern) = (&ask, &pattern);
        let lists =
            offers.iter().cloned().map(|offer| async move { files_of(&offer, pattern, epoch, clock, ask).await });
        let found: Vec<Vec<(BlobUrl, LocalFile)>> = stream::iter(lists).buffered(ASKED_AT_ONCE).try_collect().await?;
        let mut objects = Vec::new();
        for (url, file) in found.into_iter().flatten() {
            let LocalFile { bytes, version, head, .. } = file;
            let url = url.to_string();
            offered.heads.insert(url.clone(), head);
            objects.push(PinnedObject { url, bytes, version });
        }
        if objects.len() > OBJECTS_MAX {
            return Err(Error::invalid(format!("the input has more than {OBJECTS_MAX} objects")));
        }
        if objects.is_empty() {
            let asked: Vec<&str> = offers.iter().take(10).map(|offer| offer.worker.as_str()).collect();
            let text = format!(
                "INPUT {input} is not there: none of the workers that offer input has such a file ({})",
                asked.join(", ")
            );
            return Err(Error::new(ErrorKind::NotFound, text));
        }
        offered.objects.insert(input.clone(), objects);
    }
    Ok(offered)
}

/// Everything that one worker has.
async fn files_of<F>(
    offer: &Offer,
    pattern: &Pattern,
    epoch: Epoch,
    clock: &dyn Clock,
    ask: impl Fn(Offer, ListInputs) -> F,
) -> Result<Vec<(BlobUrl, LocalFile)>>
where
    F: Future<Output = Result<ListReply>>,
{
    let mut found: Vec<(BlobUrl, LocalFile)> = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let question = ListInputs { epoch, pattern: pattern.as_str().to_owned(), after: after.clone() };
        let (files, next) = page_of(offer, &question, clock, &ask).await?;
        let lied = |why: String| {
            Error::corrupt(format!(
                "worker {} on {}: its list of input cannot be true: {why}",
                offer.worker, offer.host
            ))
        };
        for file in files {
            let before = found.last().map(|(_, file)| file.path.as_str()).or(after.as_deref());
            let url = check_file(offer, pattern, before, &file).map_err(lied)?;
            found.push((url, file));
        }
        if found.len() > OBJECTS_MAX {
            return Err(Error::invalid(format!("worker {} offers more than {OBJECTS_MAX} files", offer.worker)));
        }
        match next {
            None => return Ok(found),
            Some(next) if after.as_ref().is_some_and(|after| next <= *after) => {
                return Err(lied(format!("it does not go on behind {next:?}")));
            }
            Some(next) if found.last().is_some_and(|(_, file)| file.path > next) => {
                return Err(lied(format!("it goes back to {next:?}")));
            }
            Some(next) => after = Some(next),
        }
    }
}

/// One page, asked for again where that may help.
async fn page_of<F>(
    offer: &Offer,
    question: &ListInputs,
    clock: &dyn Clock,
    ask: impl Fn(Offer, ListInputs) -> F,
) -> Result<(Vec<LocalFile>, Option<String>)>
where
    F: Future<Output = Result<ListReply>>,
{
    let mut tries = 1;
    loop {
        let error = match ask(offer.clone(), question.clone()).await {
            Ok(ListReply::Listed { files, next }) => return Ok((files, next)),
            Ok(ListReply::Refused { error }) | Err(error) => error,
        };
        if !error.kind.is_passing() || tries >= TRIES_MAX {
            // No passing trouble any more: whoever asked is to hear the worker's name, not to ask again.
            let kind = if error.kind.is_passing() { ErrorKind::Exhausted } else { error.kind };
            let place = format!("worker {} on {} does not list its input", offer.worker, offer.host);
            return Err(Error::new(kind, error.message).at(place));
        }
        tries += 1;
        clock.pause(PAUSE_MS).await;
    }
}

/// The URL of a file that a worker says it has.
fn check_file(offer: &Offer, pattern: &Pattern, before: Option<&str>, file: &LocalFile) -> Result<BlobUrl, String> {
    let LocalFile { path, version, head, .. } = file;
    let url = BlobUrl::of_worker(&offer.worker, path).map_err(|e| e.message)?;
    let below = |folder: &String| path.strip_prefix(folder.as_str()).and_then(|rest| rest.strip_prefix('/'));
    let Some(relative) = offer.folders.iter().find_map(below) else {
        return Err(format!("{path} is not below the folders that it registered"));
    };
    if !pattern.matches(relative) {
        return Err(format!("{path} was not asked for"));
    }
    if before.is_some_and(|before| before >= path.as_str()) {
        return Err(format!("{path} stands behind {}", before.unwrap_or_default()));
    }
    if version.is_empty() || version.len() > VERSION_BYTES_MAX {
        return Err(format!("{path} has a version of {} bytes", version.len()));
    }
    if head.as_ref().is_ok_and(|head| head.len() > HEAD_BYTES_MAX) {
        return Err(format!("{path} begins with more than {HEAD_BYTES_MAX} bytes"));
    }
    Ok(url)
}

#[cfg(test)]
#[path = "offers_tests.rs"]
mod tests;
