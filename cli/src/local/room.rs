//! Whether the disks of a run here have room for it: sorted runs lie in scratch until the output is whole, so about twice the input is needed in all.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use muster_common::plan::JobSpec;
use muster_common::store::BlobUrl;

use crate::output;

/// A disk, as far as it counts here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Disk {
    device: u64,
    free: u64,
}

/// A disk, a folder on it, and what it has to take.
struct Need {
    disk: Disk,
    folder: PathBuf,
    runs: u64,
    parts: u64,
}

/// What to say of each disk that is too small for the job.
pub(crate) fn shortages(spec: &JobSpec, input_bytes: u64) -> Vec<String> {
    let scratch = spec.bucket.as_ref().unwrap_or(&spec.output);
    let path = |url: &str| url.parse::<BlobUrl>().ok().and_then(|url| url.file_path());
    judge(path(scratch).as_deref(), path(&spec.output).as_deref(), input_bytes, look)
}

/// The disk on which a folder lies or will be made.
fn look(folder: &Path) -> Option<Disk> {
    let there = folder.ancestors().find_map(|folder| Some((folder, std::fs::metadata(folder).ok()?)));
    let (there, meta) = there?;
    let stat = rustix::fs::statvfs(there).ok()?;
    Some(Disk { device: meta.dev(), free: stat.f_bavail.saturating_mul(stat.f_frsize) })
}

fn judge(
    scratch: Option<&Path>,
    output: Option<&Path>,
    input_bytes: u64,
    look: impl Fn(&Path) -> Option<Disk>,
) -> Vec<String> {
    let mut needs: Vec<Need> = Vec::new();
    for (folder, runs, parts) in [(output, 0, input_bytes), (scratch, input_bytes, 0)] {
        let Some((folder, disk)) = folder.and_then(|folder| Some((folder, look(folder)?))) else { continue };
        match needs.iter_mut().find(|need| need.disk.device == disk.device) {
            Some(need) => (need.runs, need.parts) = (need.runs + runs, need.parts + parts),
            None => needs.push(Need { disk, folder: folder.to_owned(), runs, parts }),
        }
    }
    let short = needs.iter().filter(|need| need.runs.saturating_add(need.parts) > need.disk.free);
    let told = short.map(|Need { disk, folder, runs, parts }| {
        let (needed, free) = (output::bytes(runs + parts), output::bytes(disk.free));
        let what = match (runs, parts) {
            (0, _) => "for the output".to_owned(),
            (_, 0) => "for sorted runs".to_owned(),
            (runs, parts) => format!("{} for sorted runs, {} for the output", output::bytes(*runs), output::bytes(*parts)),
        };
        let advice = if *runs > 0 { "; --bucket names another place for sorted runs" } else { "" };
        format!("about {needed} are needed on the disk of {} ({what}), {free} are free: the job may fail for want of space{advice}", folder.display())
    });
    told.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One disk below /a with 150 MB free, another below /b with 50 MB.
    fn disks(folder: &Path) -> Option<Disk> {
        match folder.iter().nth(1)?.to_str()? {
            "a" => Some(Disk { device: 1, free: 150_000_000 }),
            "b" => Some(Disk { device: 2, free: 50_000_000 }),
            _ => None,
        }
    }

    fn check(scratch: Option<&str>, output: Option<&str>, mb: u64, expect: &[&str]) {
        let told = judge(scratch.map(Path::new), output.map(Path::new), mb * 1_000_000, disks);
        assert_eq!(told.len(), expect.len(), "{told:?}");
        for (told, expected) in told.iter().zip(expect) {
            assert!(told.contains(expected), "{told}");
        }
    }

    #[test]
    fn twice_the_input_is_needed_where_runs_and_output_share_a_disk() {
        check(Some("/a/out"), Some("/a/out"), 75, &[]);
        let both = "about 152 MB are needed on the disk of /a/out (76.0 MB for sorted runs, 76.0 MB for the output), 150 MB are free";
        check(Some("/a/out"), Some("/a/out"), 76, &[both]);
        check(Some("/a/scratch"), Some("/b/out"), 50, &[]);
        check(
            Some("/a/scratch"),
            Some("/b/out"),
            51,
            &["about 51.0 MB are needed on the disk of /b/out (for the output), 50.0 MB are free"],
        );
        check(Some("/b/scratch"), Some("/a/out"), 51, &["/b/scratch (for sorted runs), 50.0 MB are free"]);
        check(Some("/b/scratch"), Some("/a/out"), 151, &["/a/out", "/b/scratch"]);
        // A bucket, and a disk that does not tell.
        check(None, None, 1000, &[]);
        check(None, Some("/b/out"), 51, &["/b/out"]);
        check(Some("/x/scratch"), Some("/x/out"), 1000, &[]);
    }

    #[test]
    fn a_folder_that_is_not_there_yet_will_be_on_its_parents_disk() {
        let dir = tempfile::tempdir().expect("dir");
        let device = std::fs::metadata(dir.path()).expect("meta").dev();
        let seen = look(&dir.path().join("not/yet")).map(|disk| disk.device);
        assert_eq!(seen, Some(device));
    }
}
