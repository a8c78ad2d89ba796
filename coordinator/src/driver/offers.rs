//! What workers offer of their own as input: asks each of them, page by page, and believes nothing
//! that it did not register.
//!
//! What all of them offer is one tree: what exists at any of them is a path, whatever characters
//! its name has, and only what exists at none is read as a pattern (`gather.rs` does the same for
//! stores).

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::future::{self, Either};
use futures::{StreamExt, TryStreamExt, stream};

use muster_kernel::format::Format;
use muster_kernel::format::magic::Known;
use muster_platform::clock::Clock;
use muster_platform::inputs::{self, Pattern};
use muster_platform::store::BlobUrl;
use muster_platform::survey::{OMITTED_MAX, escaped, is_wild, unescaped};
use muster_protocol::ids::Epoch;
use muster_protocol::plan::{JobSpec, LeftOut, OBJECTS_MAX, PinnedObject, TEXT_BYTES_MAX};
use muster_protocol::wire::{
    HEAD_BYTES_MAX, ListInputs, ListReply, LocalFile, LocalOmitted, NEXT_BYTES_MAX, WHY_BYTES_MAX,
};
use muster_protocol::{Error, ErrorKind, Result, error};

use super::formats;
use super::gather::join;
use crate::job::io::Offer;

/// Workers that are asked side by side.
const ASKED_AT_ONCE: usize = 16;
/// Pause before a page is asked for again, in milliseconds.
const PAUSE_MS: u64 = 200;
/// Tries of one page.
const TRIES_MAX: u32 = 4;
/// What is cut off a path beside what is too long, at most: part of a character, and dots at the
/// end.
const CUT_BYTES_MAX: usize = 16;
/// Files that cannot be read of which all that is said is kept.
const SAID_IN_FULL_MAX: usize = 1000;
/// What is kept of the words for each of the others, in bytes.
const SAID_BYTES_MAX: usize = 256;
/// What is shown of a path that is not believed, in bytes.
const SHOWN_BYTES_MAX: usize = 200;
/// Longest version of a file, in bytes.
const VERSION_BYTES_MAX: usize = 256;

/// What workers offer, for each INPUT that means some of it.
#[derive(Debug, Default)]
pub(super) struct Offered {
    pub(super) inputs: BTreeMap<String, Found>,
    /// By URL of a file: that it is not what the format says, or why it cannot be read. All others
    /// are as they should be.
    pub(super) looks: BTreeMap<String, Result<&'static Known>>,
}

/// What one INPUT finds.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// In the order of the positions.
    pub(super) objects: Vec<PinnedObject>,
    pub(super) left_out: Vec<LeftOut>,
}

/// Lists what `offers` have for the INPUTs of a request. `ask` sends one question to one worker;
/// nothing takes longer than `bound_ms`. It relies on no runtime, only on the clock's pauses.
///
/// # Errors
/// `NotFound` where nobody offers what an INPUT means; `Exhausted` where a worker does not answer,
/// and `Corrupt` where it says what cannot be true, naming it.
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
    let asking =
        Asking { offers, epoch, clock, ask, format: &spec.sort.format, kept: Kept::default() };
    for input in &spec.inputs {
        let Some(text) = inputs::of_workers(input).transpose()? else { continue };
        if offered.inputs.contains_key(input) {
            continue;
        }
        let pattern = asking.meaning(text).await.map_err(|e| e.at(format!("INPUT {input}")))?;
        let mut found = Found::default();
        for Seen { objects, left_out, looks } in asking.all(&pattern).await? {
            found.objects.extend(objects);
            found.left_out.extend(left_out);
            offered.looks.extend(looks);
        }
        if found.objects.is_empty() && found.left_out.is_empty() {
            let asked: Vec<&str> =
                offers.iter().take(10).map(|offer| offer.worker.as_str()).collect();
            let text = format!(
                "INPUT {input} is not there: none of the workers that offer input has such a file \
                    ({})",
                asked.join(", ")
            );
            return Err(Error::new(ErrorKind::NotFound, text));
        }
        offered.inputs.insert(input.clone(), found);
    }
    Ok(offered)
}

/// A page of what one worker has: each with its URL.
#[derive(Debug)]
struct Said {
    files: Vec<(BlobUrl, LocalFile)>,
    omitted: Vec<(BlobUrl, LocalOmitted)>,
    next: Option<String>,
}

/// What one worker has.
#[derive(Debug, Default)]
struct Seen {
    objects: Vec<PinnedObject>,
    left_out: Vec<LeftOut>,
    looks: Vec<(String, Result<&'static Known>)>,
}

/// Whom to ask, and how.
struct Asking<'a, A> {
    offers: &'a [Offer],
    epoch: Epoch,
    clock: &'a dyn Clock,
    ask: A,
    format: &'a Format,
    kept: Kept,
}

/// How much of what workers say is kept, of all of them and for all INPUTs together.
#[derive(Debug, Default)]
struct Kept {
    files: AtomicUsize,
    omitted: AtomicUsize,
    unreadable: AtomicUsize,
}

impl Kept {
    /// Counts a page, before any of it is kept.
    fn count(
        &self,
        files: &[(BlobUrl, LocalFile)],
        omitted: &[(BlobUrl, LocalOmitted)],
    ) -> Result<()> {
        if self.files.fetch_add(files.len(), Ordering::Relaxed) + files.len() > OBJECTS_MAX {
            return Err(Error::invalid(format!("the input has more than {OBJECTS_MAX} objects")));
        }
        let before = self.omitted.fetch_add(omitted.len(), Ordering::Relaxed);
        match omitted.get(OMITTED_MAX.saturating_sub(before)) {
            Some((url, LocalOmitted { why, .. })) => Err(Error::invalid(format!(
                "more than {OMITTED_MAX} entries that workers offer cannot be input, at last \
                    {url}: {why}"
            ))),
            None => Ok(()),
        }
    }

    /// Why a file cannot be read: all that is said of the first ones, and the begin of it of all
    /// others.
    fn words(&self, Error { kind, message }: &Error) -> Error {
        let before = self.unreadable.fetch_add(1, Ordering::Relaxed);
        let most =
            if before < SAID_IN_FULL_MAX { error::MESSAGE_BYTES_MAX } else { SAID_BYTES_MAX };
        // What is cut off is not to take memory.
        Error::new(*kind, &message[..message.floor_char_boundary(most)])
    }
}

impl<A, F> Asking<'_, A>
where
    A: Fn(Offer, ListInputs) -> F,
    F: Future<Output = Result<ListReply>>,
{
    /// What a request means by a text: a path where there is one, else a pattern below the folders
    /// that it begins with.
    async fn meaning(&self, text: &str) -> Result<Pattern> {
        let path = Pattern::of_path(text)?;
        if inputs::is_plain(text) || self.any(&path).await? {
            return Ok(path);
        }
        let (mut base, mut rest) = (String::new(), text);
        while let Some((segment, below)) = rest.split_once('/') {
            let folder = if !is_wild(segment) {
                unescaped(segment)
            } else if !segment.contains(['*', '?'])
                && self.any(&folder_at(&join(&base, segment))?).await?
            {
                // Brackets and braces are in names of folders, too.
                segment.to_owned()
            } else {
                break;
            };
            (base, rest) = (join(&base, &folder), below);
        }
        Pattern::new(&join(&escaped(&base), rest))
    }

    /// Whether anybody has something with this path, or below it. A folder above it that a worker
    /// cannot look into, or a link there, tells nothing of what others have.
    async fn any(&self, path: &Pattern) -> Result<bool> {
        let probes =
            self.offers.iter().cloned().map(|offer| async move { self.has(&offer, path).await });
        let found: Vec<bool> = stream::iter(probes).buffered(ASKED_AT_ONCE).try_collect().await?;
        Ok(found.contains(&true))
    }

    /// The same of one worker. Nothing is kept of what it says.
    async fn has(&self, offer: &Offer, path: &Pattern) -> Result<bool> {
        let mut after = None;
        loop {
            let Said { files, omitted, next } = self.said(offer, path, after).await?;
            if !files.is_empty() || omitted.iter().any(|(_, odd)| is_of_path(offer, path, odd)) {
                return Ok(true);
            }
            let Some(next) = next else { return Ok(false) };
            after = Some(next);
        }
    }

    /// What each worker has, by their ids.
    async fn all(&self, pattern: &Pattern) -> Result<Vec<Seen>> {
        let lists = self
            .offers
            .iter()
            .cloned()
            .map(|offer| async move { self.files_of(&offer, pattern).await });
        stream::iter(lists).buffered(ASKED_AT_ONCE).try_collect().await
    }

    async fn files_of(&self, offer: &Offer, pattern: &Pattern) -> Result<Seen> {
        let mut seen = Seen::default();
        let mut after = None;
        loop {
            let Said { files, omitted, next } = self.said(offer, pattern, after).await?;
            self.kept.count(&files, &omitted)?;
            files
                .into_iter()
                .for_each(|(url, file)| seen.take(self.format, &self.kept, &url, file));
            let named = |(url, odd): (BlobUrl, LocalOmitted)| LeftOut {
                url: url.to_string(),
                why: odd.why,
            };
            seen.left_out.extend(omitted.into_iter().map(named));
            let Some(next) = next else { break };
            after = Some(next);
        }
        seen.left_out.sort_unstable_by(|a, b| a.url.cmp(&b.url));
        Ok(seen)
    }

    /// What a worker says next, if it can be true.
    async fn said(&self, offer: &Offer, pattern: &Pattern, after: Option<String>) -> Result<Said> {
        let lied = |why: String| {
            Error::corrupt(format!(
                "worker {} on {}: its list of input cannot be true: {why}",
                offer.worker, offer.host
            ))
        };
        let question =
            ListInputs { epoch: self.epoch, pattern: pattern.as_str().to_owned(), after };
        let (files, omitted, next) = self.page_of(offer, &question).await?;
        let after = question.after;
        let mut said = Said { files: Vec::new(), omitted: Vec::new(), next };
        let mut last = after.clone();
        for file in files {
            let url = check_file(offer, pattern, last.as_deref(), &file).map_err(lied)?;
            last = Some(file.path.clone());
            said.files.push((url, file));
        }
        for odd in omitted {
            let url = check_omitted(offer, pattern, &odd).map_err(lied)?;
            said.omitted.push((url, odd));
        }
        match &said.next {
            Some(next) if next.len() > NEXT_BYTES_MAX => {
                Err(lied(format!("it goes on behind a path of {} bytes", next.len())))
            }
            Some(next) if after.as_ref().is_some_and(|after| next <= after) => {
                Err(lied(format!("it does not go on behind {next:?}")))
            }
            Some(next) if last.as_ref().is_some_and(|last| last > next) => {
                Err(lied(format!("it goes back to {next:?}")))
            }
            _ => Ok(said),
        }
    }

    /// One page, asked for again where that may help.
    async fn page_of(
        &self,
        offer: &Offer,
        question: &ListInputs,
    ) -> Result<(Vec<LocalFile>, Vec<LocalOmitted>, Option<String>)> {
        let mut tries = 1;
        loop {
            let error = match (self.ask)(offer.clone(), question.clone()).await {
                Ok(ListReply::Listed { files, omitted, next }) => {
                    return Ok((files, omitted, next));
                }
                Ok(ListReply::Refused { error }) | Err(error) => error,
            };
            if !error.kind.is_passing() || tries >= TRIES_MAX {
                // No passing trouble any more: whoever asked is to hear the worker's name, not to
                // ask again.
                let kind = if error.kind.is_passing() { ErrorKind::Exhausted } else { error.kind };
                let place =
                    format!("worker {} on {} does not list its input", offer.worker, offer.host);
                return Err(Error::new(kind, error.message).at(place));
            }
            tries += 1;
            self.clock.pause(PAUSE_MS).await;
        }
    }
}

impl Seen {
    fn take(&mut self, format: &Format, kept: &Kept, url: &BlobUrl, file: LocalFile) {
        let LocalFile { bytes, version, head, .. } = file;
        let object = PinnedObject { url: url.to_string(), bytes, version };
        // Of a million heads only what they tell is kept.
        let look = match head {
            Ok(head) => formats::known(format, &object, &head).map(Ok),
            Err(error) => Some(Err(kept.words(&error))),
        };
        self.looks.extend(look.map(|look| (object.url.clone(), look)));
        self.objects.push(object);
    }
}

/// What lies below a folder of this name.
fn folder_at(path: &str) -> Result<Pattern> {
    Pattern::of_path(&format!("{path}/"))
}

/// The URL of a file that a worker says it has.
fn check_file(
    offer: &Offer,
    pattern: &Pattern,
    before: Option<&str>,
    file: &LocalFile,
) -> Result<BlobUrl, String> {
    let LocalFile { path, version, head, .. } = file;
    let url = BlobUrl::of_worker(&offer.worker, path).map_err(|e| e.message)?;
    let relative = relative_to(offer, path)?;
    if !pattern.matches(relative) {
        return Err(format!("{} was not asked for", begin(path)));
    }
    if before.is_some_and(|before| before >= path.as_str()) {
        return Err(format!("{} stands behind {}", begin(path), begin(before.unwrap_or_default())));
    }
    if version.is_empty() || version.len() > VERSION_BYTES_MAX {
        return Err(format!("{} has a version of {} bytes", begin(path), version.len()));
    }
    if head.as_ref().is_ok_and(|head| head.len() > HEAD_BYTES_MAX) {
        return Err(format!("{} begins with more than {HEAD_BYTES_MAX} bytes", begin(path)));
    }
    Ok(url)
}

/// The URL of an entry that a worker says cannot be input. A folder has the place of what lies in
/// it, and a path that was cut that of a longer one, so they have no order.
fn check_omitted(offer: &Offer, pattern: &Pattern, odd: &LocalOmitted) -> Result<BlobUrl, String> {
    let LocalOmitted { path, why, cut } = odd;
    let url = BlobUrl::of_worker(&offer.worker, path).map_err(|e| e.message)?;
    let relative = relative_to(offer, path)?;
    if *cut && path.len() + CUT_BYTES_MAX < TEXT_BYTES_MAX {
        return Err(format!("{} is not so long that it had to be cut", begin(path)));
    }
    // The end of what was cut is unknown, and often all that a pattern tells.
    if !cut && !pattern.matches(relative) && !pattern.may_match_below(relative) {
        return Err(format!("{} was not asked for", begin(path)));
    }
    if why.is_empty() || why.len() > WHY_BYTES_MAX || why.contains(char::is_control) {
        return Err(format!(
            "{} cannot be input for a reason of {} bytes that is none",
            begin(path),
            why.len()
        ));
    }
    Ok(url)
}

/// As much of a path as leaves room for what is wrong with it.
fn begin(path: &str) -> &str {
    &path[..path.floor_char_boundary(SHOWN_BYTES_MAX)]
}

/// Whether what cannot be input has this very path or lies below it, and not above; what had to be
/// cut is longer than what is asked for.
fn is_of_path(offer: &Offer, path: &Pattern, odd: &LocalOmitted) -> bool {
    odd.cut || relative_to(offer, &odd.path).is_ok_and(|relative| path.holds(relative))
}

/// A path below the folders that a worker registered.
fn relative_to<'a>(offer: &Offer, path: &'a str) -> Result<&'a str, String> {
    let below = |folder: &String| {
        path.strip_prefix(folder.as_str()).and_then(|rest| rest.strip_prefix('/'))
    };
    let found = offer.folders.iter().find_map(below);
    found.ok_or_else(|| format!("{} is not below the folders that it registered", begin(path)))
}

#[cfg(test)]
#[path = "offers_tests.rs"]
mod tests;
