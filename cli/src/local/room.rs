//! Whether the disks of a run here have room for it: sorted runs lie in scratch until the output is
//! whole, so about twice the input is needed in all, and what does not fit in memory is spilled.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use muster_platform::config::Config;
use muster_platform::store::BlobUrl;
use muster_protocol::plan::JobSpec;

use crate::output;

/// File systems that may keep a file in less than its length: their magic numbers (btrfs, ZFS,
/// bcachefs).
const MAY_COMPRESS: [u64; 3] = [0x9123_683e, 0x2fc1_2fc1, 0xca45_1a4e];
/// Into how many sort tasks an input is cut, within bounds.
const SHARES: u64 = 16;

/// A disk, as far as it counts here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Disk {
    device: u64,
    free: u64,
    /// Whether a file may take less of it than its length.
    may_compress: bool,
}

/// A folder on a disk, and what the disk has to take.
struct Need {
    disk: Disk,
    folder: PathBuf,
    runs: u64,
    parts: u64,
    spills: u64,
}

/// Where a run writes, and how much.
#[derive(Debug, Clone, Copy)]
struct Places<'a> {
    output: Option<&'a Path>,
    scratch: Option<&'a Path>,
    /// Of the private server and of what is spilled.
    data: &'a Path,
    input_bytes: u64,
    spill_bytes: u64,
    /// Whether the output may be far smaller than the input (`-u`).
    may_shrink: bool,
}

/// What is short.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Shortage {
    /// The job may fail for it.
    Perhaps(String),
    /// The job cannot end.
    Surely(String),
}

/// What to say of each disk that is too small for the job. `data` is the folder of the run, and
/// `sorted_bytes` what its tasks at once sort in memory.
pub(crate) fn shortages(
    spec: &JobSpec,
    config: &Config,
    data: &Path,
    (slots, sorter_bytes): (u32, u64),
    input_bytes: u64,
) -> Vec<Shortage> {
    let scratch = spec.bucket.as_ref().unwrap_or(&spec.output);
    let path = |url: &str| url.parse::<BlobUrl>().ok().and_then(|url| url.file_path());
    let (output, scratch) = (path(&spec.output), path(scratch));
    let share = input_bytes
        .div_ceil(SHARES)
        .clamp(config.sizes.split_bytes_min, config.sizes.split_bytes_max);
    let split = spec.sizing.split_bytes.unwrap_or(share).min(input_bytes);
    // Where memory was asked for, splits are made to fit it.
    let fits = spec.sizing.task_memory_bytes.is_some() && spec.sizing.split_bytes.is_none();
    let spills = if fits || split <= sorter_bytes / 16 * 10 {
        0
    } else {
        split.saturating_mul(u64::from(slots))
    };
    let places = Places {
        output: output.as_deref(),
        scratch: scratch.as_deref(),
        data,
        input_bytes,
        spill_bytes: spills.min(input_bytes),
        may_shrink: !spec.sort.select().keeps_all(),
    };
    judge(&places, look)
}

/// The disk on which a folder lies or will be made.
fn look(folder: &Path) -> Option<Disk> {
    let there =
        folder.ancestors().find_map(|folder| Some((folder, std::fs::metadata(folder).ok()?)));
    let (there, meta) = there?;
    let stat = rustix::fs::statvfs(there).ok()?;
    let may_compress =
        rustix::fs::statfs(there).is_ok_and(|stat| MAY_COMPRESS.contains(&(stat.f_type as u64)));
    Some(Disk {
        device: meta.dev(),
        free: stat.f_bavail.saturating_mul(stat.f_frsize),
        may_compress,
    })
}

fn judge(places: &Places<'_>, look: impl Fn(&Path) -> Option<Disk>) -> Vec<Shortage> {
    let Places { output, scratch, data, input_bytes, spill_bytes, may_shrink } = *places;
    let mut needs: Vec<Need> = Vec::new();
    for (folder, runs, parts, spills) in
        [(output, 0, input_bytes, 0), (scratch, input_bytes, 0, 0), (Some(data), 0, 0, spill_bytes)]
    {
        let Some((folder, disk)) = folder.and_then(|folder| Some((folder, look(folder)?))) else {
            continue;
        };
        match needs.iter_mut().find(|need| need.disk.device == disk.device) {
            Some(need) => {
                (need.runs, need.parts, need.spills) =
                    (need.runs + runs, need.parts + parts, need.spills + spills);
            }
            None => needs.push(Need { disk, folder: folder.to_owned(), runs, parts, spills }),
        }
    }
    needs.iter().filter_map(|need| need.shortage(may_shrink)).collect()
}

impl Need {
    fn shortage(&self, may_shrink: bool) -> Option<Shortage> {
        let Self { disk, folder, runs, parts, spills } = self;
        let (folder, free) = (folder.display(), output::bytes(disk.free));
        // A tenth less is clearly less: a listing counts line ends and records that are left out.
        if *parts / 10 * 9 > disk.free && !may_shrink && !disk.may_compress {
            let needed = output::bytes(*parts);
            return Some(Shortage::Surely(format!(
                "the output alone needs about {needed} on the disk of {folder}, and {free} are \
                    free there; make room, or name another OUTPUT"
            )));
        }
        let needed = runs.saturating_add(*parts).saturating_add(*spills);
        if needed <= disk.free {
            return None;
        }
        let all = [
            (*runs, "for sorted runs"),
            (*parts, "for the output"),
            (*spills, "for what does not fit in memory"),
        ];
        let all: Vec<_> = all.into_iter().filter(|(bytes, _)| *bytes > 0).collect();
        let what = match all[..] {
            [(_, what)] => what.to_owned(),
            _ => all
                .iter()
                .map(|(bytes, what)| format!("{} {what}", output::bytes(*bytes)))
                .collect::<Vec<_>>()
                .join(", "),
        };
        let mut advice = String::new();
        if *runs > 0 {
            advice.push_str("; --bucket names another place for sorted runs");
        }
        if *spills > 0 {
            advice.push_str(
                "; --memory SIZE makes tasks that fit, --data-dir or TMPDIR name \
                another place for spills",
            );
        }
        let needed = output::bytes(needed);
        Some(Shortage::Perhaps(format!(
            "about {needed} are needed on the disk of {folder} ({what}), {free} are free: the job \
                may fail for want of space{advice}"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1_000_000;

    /// One disk below /a with 150 MB free, another below /b with 50 MB, which compresses below /c.
    fn disks(folder: &Path) -> Option<Disk> {
        let disk = |device, free, may_compress| Some(Disk { device, free, may_compress });
        match folder.iter().nth(1)?.to_str()? {
            "a" => disk(1, 150 * MB, false),
            "b" => disk(2, 50 * MB, false),
            "c" => disk(3, 50 * MB, true),
            _ => None,
        }
    }

    fn text(shortage: &Shortage) -> &str {
        let (Shortage::Perhaps(text) | Shortage::Surely(text)) = shortage;
        text
    }

    fn places<'a>(scratch: Option<&'a str>, output: Option<&'a str>, mb: u64) -> Places<'a> {
        let (scratch, output) = (scratch.map(Path::new), output.map(Path::new));
        Places {
            output,
            scratch,
            data: Path::new("/x/tmp"),
            input_bytes: mb * MB,
            spill_bytes: 0,
            may_shrink: false,
        }
    }

    fn check(scratch: Option<&str>, output: Option<&str>, mb: u64, expect: &[&str]) {
        let told = judge(&places(scratch, output, mb), disks);
        assert_eq!(told.len(), expect.len(), "{told:?}");
        for (told, expected) in told.iter().zip(expect) {
            assert!(text(told).contains(expected), "{told:?}");
        }
    }

    #[test]
    fn twice_the_input_is_needed_where_runs_and_output_share_a_disk() {
        check(Some("/a/out"), Some("/a/out"), 75, &[]);
        let both = "about 152 MB are needed on the disk of /a/out (76.0 MB for sorted runs, 76.0 \
            MB for the output), 150 MB are free";
        check(Some("/a/out"), Some("/a/out"), 76, &[both]);
        check(Some("/a/scratch"), Some("/b/out"), 50, &[]);
        check(
            Some("/a/scratch"),
            Some("/b/out"),
            51,
            &["about 51.0 MB are needed on the disk of /b/out (for the output), 50.0 MB are free"],
        );
        check(
            Some("/b/scratch"),
            Some("/a/out"),
            51,
            &["/b/scratch (for sorted runs), 50.0 MB are free"],
        );
        check(Some("/b/scratch"), Some("/a/out"), 151, &["/a/out", "/b/scratch"]);
        // A bucket, and a disk that does not tell.
        check(None, None, 1000, &[]);
        check(None, Some("/b/out"), 51, &["/b/out"]);
        check(Some("/x/scratch"), Some("/x/out"), 1000, &[]);
    }

    #[test]
    fn an_output_without_room_is_refused_and_spills_count() {
        let all = |change: fn(&mut Places<'_>), places: &Places<'_>| {
            let mut places = *places;
            change(&mut places);
            judge(&places, disks)
        };
        let sure = |told: &[Shortage]| matches!(told, [Shortage::Surely(_)]);
        let small = places(None, Some("/b/out"), 56);
        assert!(
            sure(&judge(&small, disks)) && !sure(&judge(&places(None, Some("/b/out"), 55), disks)),
            "a tenth"
        );
        let told = judge(&small, disks);
        assert!(
            text(&told[0]).contains(
                "the output alone needs about 56.0 MB on the disk of /b/out, and 50.0 MB are free"
            ),
            "{told:?}"
        );
        assert!(!sure(&all(|places| places.may_shrink = true, &small)), "-u may leave little");
        assert!(!sure(&judge(&places(None, Some("/c/out"), 500), disks)), "it may be compressed");
        // Runs elsewhere are not the output's.
        assert!(!sure(&judge(&places(Some("/b/scratch"), Some("/a/out"), 100), disks)));
        let spilled = all(
            |places| (places.data, places.spill_bytes) = (Path::new("/b/tmp"), 51 * MB),
            &places(None, Some("/a/out"), 100),
        );
        assert_eq!(spilled.len(), 1, "{spilled:?}");
        for word in [
            "51.0 MB are needed on the disk of /b/tmp (for what does not fit in memory)",
            "--data-dir or TMPDIR",
        ] {
            assert!(text(&spilled[0]).contains(word), "{spilled:?}");
        }
        let together = all(
            |places| (places.data, places.spill_bytes) = (Path::new("/a/tmp"), 51 * MB),
            &places(None, Some("/a/out"), 100),
        );
        assert!(
            text(&together[0]).contains("100 MB for the output, 51.0 MB for what does not fit"),
            "{together:?}"
        );
    }

    #[test]
    fn a_folder_that_is_not_there_yet_will_be_on_its_parents_disk() {
        let dir = tempfile::tempdir().expect("dir");
        let device = std::fs::metadata(dir.path()).expect("meta").dev();
        let seen = look(&dir.path().join("not/yet")).map(|disk| disk.device);
        assert_eq!(seen, Some(device));
    }
}
