//! What stands in the stores before a job begins: its input, pinned with size and version, and what
//! is in OUTPUT.
//!
//! Objects come in the order of the arguments, those of one folder or glob in byte order of their
//! keys. Names with a segment that begins with `_` or `.` are no input, unless an argument names
//! the object itself. What workers offer of their own (`workers:/`) has been asked for before
//! (`offers.rs`): in the order of their ids, then of the paths.

use muster_platform::claim::Claims;
use muster_platform::inputs;
use muster_platform::store::BlobUrl;
use muster_platform::stores::Stores;
use muster_platform::survey::OMITTED_MAX;
use muster_protocol::plan::{
    BadInputs, JobSpec, LeftOut, OBJECTS_MAX, PinnedObject, UPLOADS_UNKNOWN, memory_of,
};
use muster_protocol::{Error, ErrorKind, Result};

use super::apart::Ground;
use super::claims;
use super::fence::Fence;
use super::formats;
use super::gather::{self, Expanded, is_folder, too_many};
use super::offers::Offered;
use super::owned;
use crate::job::io::{Listing, Offer, Places};

/// Entries that cannot be input which a refusal names.
const ODD_SHOWN: usize = 5;

/// Lists and pins.
///
/// # Errors
/// `Invalid` or `NotFound`, naming the argument or the object; `Retry` where the store does not
/// answer.
pub(super) async fn list_input(
    stores: &Stores,
    fence: &Fence,
    spec: &JobSpec,
    places: &Places,
    (offers, offered): (&[Offer], &Offered),
) -> Result<Listing> {
    let mut objects: Vec<PinnedObject> = Vec::new();
    let mut left_out: Vec<LeftOut> = Vec::new();
    let ground = Ground::look(places).await?;
    ground.check_offers(offers).await?;
    let run_here = fence.claims().is_some_and(Claims::is_run_here);
    for text in &spec.inputs {
        if inputs::of_workers(text).is_some() {
            let found = offered.inputs.get(text);
            let found =
                found.ok_or_else(|| Error::bug(format!("INPUT {text} was not asked for")))?;
            objects.extend(found.objects.iter().cloned());
            left_out.extend(found.left_out.iter().cloned());
            check_count(stores, &objects)?;
            continue;
        }
        let expanded = gather::expand(stores, text, spec.bad_inputs, run_here).await?;
        let Expanded { objects: found, left_out: odd, url, folder } = expanded;
        let urls = found.iter().map(|meta| url.with_key(meta.key.clone())).collect();
        ground.check_input(folder.as_ref(), urls).await?;
        left_out.extend(odd);
        objects.extend(found.into_iter().map(|meta| PinnedObject {
            url: url.with_key(meta.key).to_string(),
            bytes: meta.bytes,
            version: meta.version,
        }));
        check_count(stores, &objects)?;
    }
    decide(&left_out, spec.bad_inputs)?;
    let mut warnings = formats::look(stores, spec, &objects, offered).await?;
    refuse_object(stores, &places.output).await?;
    let output_existed = is_folder(&places.output).await.unwrap_or(true);
    claims::take(stores, fence, &places.output, &spec.job, output_existed).await?;
    // Only now it stays as it is seen.
    let looked = async {
        let replaced = owned::look_at_output(stores, spec, &places.output).await?;
        Ok((replaced, open_uploads(stores, &places.output, &mut warnings).await?))
    };
    match looked.await {
        Ok((replaced, uploads_before)) => {
            Ok(Listing { objects, left_out, warnings, replaced, uploads_before, output_existed })
        }
        Err(error) => {
            claims::withdraw(stores, fence, &spec.job).await?;
            Err(error)
        }
    }
}

/// What cannot be input ends the request, or is left out by name.
fn decide(left_out: &[LeftOut], bad_inputs: BadInputs) -> Result<()> {
    let first: Vec<String> = left_out
        .iter()
        .take(ODD_SHOWN)
        .map(|LeftOut { url, why }| format!("{url} ({why})"))
        .collect();
    if left_out.len() > OMITTED_MAX {
        let count = left_out.len();
        return Err(Error::invalid(format!(
            "{count} entries cannot be input, more than the {OMITTED_MAX} that a job leaves out: \
                {}",
            first.join(", ")
        )));
    }
    if left_out.is_empty() || bad_inputs == BadInputs::Skip {
        return Ok(());
    }
    let more = left_out.len() - first.len();
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    let entries =
        if left_out.len() == 1 { "1 entry" } else { &format!("{} entries", left_out.len()) };
    Err(Error::invalid(format!(
        "{entries} of the input cannot be read: {}{rest}; --bad-inputs skip leaves such entries \
            out and names them",
        first.join(", ")
    )))
}

fn check_count(stores: &Stores, objects: &[PinnedObject]) -> Result<()> {
    let limit = stores.objects_max();
    if objects.len() > limit {
        return Err(too_many(limit));
    }
    let (lists_bytes, room) = (memory_of(objects), stores.lists_bytes_max());
    if lists_bytes > room {
        let count = objects.len();
        return Err(Error::invalid(format!(
            "the names of the {count} input objects take about {lists_bytes} bytes of memory, more \
                than the {room} that --memory has room for in a run here; give more --memory, or \
                join small objects"
        )));
    }
    Ok(())
}

/// OUTPUT is a folder or prefix, not an object.
async fn refuse_object(stores: &Stores, output: &BlobUrl) -> Result<()> {
    // A tool may mark the folder by an empty object with a slash behind its name.
    match stores.open(output).await?.head(output.key().trim_end_matches('/')).await {
        Ok(_) => {
            Err(Error::invalid(format!("OUTPUT {output} is an object; name a folder or prefix")))
        }
        Err(error) if error.kind == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error.at(format!("OUTPUT {output}"))),
    }
}

/// The uploads into OUTPUT that are open before the job writes anything: whoever opened them, it
/// was not this job. A store that lists none for this user, or does not have the call, does not
/// keep a job from sorting; then what the job's own workers leave without a word stays.
async fn open_uploads(
    stores: &Stores,
    output: &BlobUrl,
    warnings: &mut Vec<String>,
) -> Result<Vec<String>> {
    let store = stores.open(output).await?;
    match store.list_uploads(output.key().trim_end_matches('/'), OBJECTS_MAX).await {
        Ok(listed) => Ok(listed.into_iter().map(|open| open.upload).collect()),
        Err(error) if error.kind == ErrorKind::Invalid => {
            warnings.push(format!(
                "open uploads below OUTPUT cannot be listed ({}); should a worker die, an \
                    unfinished upload of its may stay, invisible, until a rule of the bucket \
                    removes it",
                error.message
            ));
            Ok(vec![UPLOADS_UNKNOWN.to_owned()])
        }
        Err(error) => Err(error.at(format!("OUTPUT {output}"))),
    }
}

#[cfg(test)]
#[path = "listing_tests.rs"]
mod tests;
