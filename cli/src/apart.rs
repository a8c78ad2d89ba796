//! A `--data-dir` is apart from what is read and from what is written, whatever names they are
//! given: what muster keeps there would be read as input, or stand in OUTPUT, and it empties
//! folders of its own in it.

use std::path::Path;

use muster_platform::adapters::territory::{Mounts, Territory};
use muster_platform::store::BlobUrl;
use muster_protocol::plan::JobSpec;
use muster_protocol::{Error, Result};

/// Folders in the data directory of a local run that muster empties.
const OWN: [&str; 2] = ["jetstream", "spill"];

/// Checks the data directory of a local run.
///
/// # Errors
/// `Invalid`, naming both places.
pub(crate) fn check_run(data_dir: &Path, spec: &JobSpec) -> Result<()> {
    let inputs = spec.inputs.iter().map(|input| ("INPUT", input));
    for (what, text) in inputs.chain([("OUTPUT", &spec.output)]) {
        // What is no path, or a pattern, is looked at where it is listed.
        let Some(path) = text.parse::<BlobUrl>().ok().and_then(|url| url.file_path()) else {
            continue;
        };
        check(data_dir, &OWN, (what, &path))?;
    }
    Ok(())
}

/// Checks the data directory of a worker, all of which is its own, against the folders that it
/// offers.
///
/// # Errors
/// `Invalid`, naming both places.
pub(crate) fn check_worker(data_dir: &Path, offered: &[std::path::PathBuf]) -> Result<()> {
    offered.iter().try_for_each(|folder| check(data_dir, &[""], ("--input-dir", folder)))
}

fn check(data_dir: &Path, own: &[&str], (what, path): (&str, &Path)) -> Result<()> {
    let mounts = Mounts::read();
    let of = |path: &Path| {
        Territory::of(&std::path::absolute(path).unwrap_or_else(|_| path.to_owned()), &mounts)
    };
    // What cannot be looked at is told of where it is opened.
    let (Ok(theirs), Ok(ours)) = (of(path), of(data_dir)) else { return Ok(()) };
    let (path, dir) = (path.display(), data_dir.display());
    if theirs.covers(&ours) {
        let why = if what == "OUTPUT" {
            "where parts alone may lie"
        } else {
            "where it would be read as input"
        };
        return Err(Error::invalid(format!(
            "--data-dir {dir} lies in {what} {path}, {why}; name a folder apart from it"
        )));
    }
    for name in own {
        if of(&data_dir.join(name)).is_ok_and(|own| own.covers(&theirs)) {
            return Err(Error::invalid(format!(
                "{what} {path} lies in a folder that muster empties, in --data-dir {dir}; name \
                    another --data-dir"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_data_dir_is_apart_from_what_is_read_and_written() {
        let dir = tempfile::tempdir().expect("dir");
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("in/deep")).expect("folders");
        fs::create_dir_all(at("data/spill")).expect("folders");
        symlink(at("in"), at("link")).expect("link");
        symlink(at("data"), at("to-data")).expect("link");
        for (data_dir, path, sound) in [
            ("data", "in", true),
            ("link/deep/state", "in", false),
            ("in", "link", false),
            ("link", "in/deep", true),
            ("data", "to-data/spill/x", false),
            ("to-data", "data/jetstream", false),
            ("data", "data/out", true),
            ("data", "data", false),
        ] {
            let checked = check(&at(data_dir), &OWN, ("OUTPUT", &at(path)));
            assert_eq!(checked.is_ok(), sound, "{data_dir} {path}: {checked:?}");
        }
        assert!(check_worker(&at("data"), &[at("in")]).is_ok());
        assert!(check_worker(&at("data"), &[at("in"), at("to-data/shared")]).is_err());
    }
}
