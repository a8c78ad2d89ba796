//! Looks at how the input begins: what cannot be read is told before anything is done, and what is
//! no lines and no records is refused (`--format auto`) or warned of. Its bytes would sort, and the
//! proof would hold, but nobody could read what comes out.

use futures::{StreamExt, stream};

use muster_kernel::format::Format;
use muster_kernel::format::magic::{self, Kind, Known};
use muster_kernel::spec::{KeyDef, SortSpec};
use muster_platform::store::{Access, BlobUrl, read_whole};
use muster_platform::stores::Stores;
use muster_protocol::plan::{BadInputs, JobSpec, PinnedObject};
use muster_protocol::wire::HEAD_BYTES_MAX;
use muster_protocol::{Error, Result};

use super::offers::Offered;

/// Objects of which the first bytes are read; of more, so many that are spread over all of them.
/// Names are looked at in all.
const HEADS_MAX: usize = 10_000;
const HEADS_AT_ONCE: usize = 32;

/// Looks at names and first bytes, and gives what there is to warn of. One that cannot be read is
/// passed over where such objects may be left out: the task that reads it says so in the journal.
///
/// # Errors
/// `Invalid`, naming the object, what it is and what to do instead; else as a read.
pub(super) async fn look(
    stores: &Stores,
    spec: &JobSpec,
    objects: &[PinnedObject],
    offered: &Offered,
) -> Result<Vec<String>> {
    let auto = spec.auto_format;
    if auto && !means_lines(&spec.sort) {
        let other = objects.iter().find_map(|object| {
            Some((object, Format::later_by_extension(&extension(&object.url)?)?))
        });
        if let Some((object, what)) = other {
            return Err(Error::invalid(format!(
                "INPUT {} is {what} by its name, which is not built yet; to sort its lines as they \
                    are, say --format lines, or a key or separator of lines (-k, -t)",
                object.url
            )));
        }
    }
    let mut found: Vec<(String, &Known)> = Vec::new();
    let looked_at: Vec<PinnedObject> = to_look_at(objects).cloned().collect();
    let looks = stream::iter(looked_at).map(|object| async move {
        let what = what(stores, &spec.sort.format, &object, offered).await;
        (object, what)
    });
    let mut looks = looks.buffered(HEADS_AT_ONCE);
    while let Some((object, what)) = looks.next().await {
        match what {
            Ok(what) => found.extend(what.map(|known| (object.url, known))),
            Err(_) if spec.bad_inputs == BadInputs::Skip => {}
            Err(error) => return Err(error.at(format!("INPUT {} cannot be read", object.url))),
        }
    }
    let Some((url, known)) = found.first() else { return Ok(Vec::new()) };
    let more = if found.len() > 1 {
        format!(" (and {} more like it)", found.len() - 1)
    } else {
        String::new()
    };
    match auto {
        true => {
            Err(Error::invalid(format!("INPUT {url} is {}{more}: {}", known.what, known.advice())))
        }
        false => Ok(vec![format!(
            "INPUT {url} is {}{more}: its raw bytes are sorted, as --format says, and {}; {}",
            known.what,
            known.harm(),
            known.advice()
        )]),
    }
}

/// Whether the request has what only lines have, as sort(1) knows it.
fn means_lines(sort: &SortSpec) -> bool {
    let flags = &sort.global;
    let letters = [
        flags.numeric,
        flags.ignore_leading_blanks,
        flags.fold_case,
        flags.dictionary,
        flags.nonprinting,
    ];
    sort.separator.is_some()
        || letters.into_iter().any(|given| given)
        || sort.format == Format::lines(0)
        || sort.keys.iter().any(|key| !matches!(key, KeyDef::Range { .. }))
}

fn extension(url: &str) -> Option<String> {
    let name = url.rsplit('/').next()?;
    Some(name.rsplit_once('.')?.1.to_ascii_lowercase())
}

/// Those that are not empty, or so many of them.
fn to_look_at(objects: &[PinnedObject]) -> impl Iterator<Item = &PinnedObject> {
    let every = objects.len().div_ceil(HEADS_MAX).max(1);
    objects.iter().filter(|object| object.bytes > 0).step_by(every)
}

/// What an object is, where it is not what the format says.
async fn what(
    stores: &Stores,
    format: &Format,
    object: &PinnedObject,
    offered: &Offered,
) -> Result<Option<&'static Known>> {
    if object.owner().is_some() {
        return offered.looks.get(&object.url).cloned().transpose();
    }
    let url: BlobUrl = object.url.parse()?;
    let store = stores.open(&url).await?;
    let start = 0..object.bytes.min(HEAD_BYTES_MAX as u64);
    let head = read_whole(|| store.read(url.key(), start.clone(), Access::Cached)).await?;
    Ok(known(format, object, &head))
}

/// The same by its first bytes.
pub(super) fn known(format: &Format, object: &PinnedObject, head: &[u8]) -> Option<&'static Known> {
    let rules = format.rules();
    let by_content = magic::of(head, object.bytes)
        .filter(|known| known.kind != Kind::Encoded || !rules.takes_wide_text());
    let by_name = || {
        let doubtful = rules.is_text() && !magic::is_text(head);
        doubtful.then(|| magic::by_extension(&extension(&object.url)?)).flatten()
    };
    by_content.or_else(by_name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_kernel::spec::KeyFlags;

    #[test]
    fn lines_are_meant_by_what_only_lines_have() {
        let lines = || SortSpec::new(Format::lines(b'\n'));
        let check =
            |sort: SortSpec, expected: bool| assert_eq!(means_lines(&sort), expected, "{sort:?}");
        check(lines(), false);
        check(SortSpec { unique: true, stable: true, ..lines() }, false);
        check(
            SortSpec { global: KeyFlags { reverse: true, ..KeyFlags::default() }, ..lines() },
            false,
        );
        check(
            SortSpec { global: KeyFlags { numeric: true, ..KeyFlags::default() }, ..lines() },
            true,
        );
        check(SortSpec { separator: Some(b','), ..lines() }, true);
        check(SortSpec::new(Format::lines(0)), true);
        let key = |text: &str| lines().format.rules().parse_key(text).expect("key");
        check(SortSpec { keys: vec![key("2,2")], ..lines() }, true);
        check(SortSpec { keys: vec![KeyDef::Range { offset: 0, len: 4 }], ..lines() }, false);
    }

    #[test]
    fn of_very_many_objects_some_are_looked_at() {
        let object =
            |n: usize| PinnedObject { url: n.to_string(), bytes: 1, version: String::new() };
        for count in [0, 1, HEADS_MAX, HEADS_MAX + 1, 35_000] {
            let objects: Vec<PinnedObject> = (0..count).map(object).collect();
            let looked: Vec<&PinnedObject> = to_look_at(&objects).collect();
            assert!(
                looked.len() <= HEADS_MAX && looked.len() >= count.min(HEADS_MAX / 2),
                "{count}"
            );
            assert!(count > HEADS_MAX || looked.len() == count, "{count}");
        }
    }
}
