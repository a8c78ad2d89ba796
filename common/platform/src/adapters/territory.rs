//! What a path of this machine leads to, so that one place under two names is seen to be one:
//! through links, bind mounts, and whatever else gives a folder a second name.
//!
//! Text does not tell: `link/out` may lie in the input, and a bind mount makes a folder appear
//! elsewhere without any link. So a path is resolved as the system resolves it, as far as it
//! exists; the table of mounts (`/proc/self/mountinfo`) says which part of which file system that
//! is; and folders are compared by device and inode besides, for file systems whose names differ
//! from what was asked for (letters of either case). Where the table cannot be read, the other two
//! decide.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use muster_protocol::error::{Error, ErrorKind, Result};

/// Links to nowhere that are followed from one path, as many as Linux follows.
const LINKS_MAX: u32 = 40;

/// A part of a file system: everything below `path`, which begins at the file system's own root.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Region {
    /// `major:minor`, as the table of mounts has it.
    device: Vec<u8>,
    path: PathBuf,
}

impl Region {
    fn covers(&self, other: &Region) -> bool {
        self.device == other.device && other.path.starts_with(&self.path)
    }
}

/// One line of the table of mounts.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    /// What of the file system is mounted.
    what: Region,
    /// Where it is mounted.
    at: PathBuf,
}

/// The mounts that this process sees.
#[derive(Debug, Default)]
pub struct Mounts(Vec<Mount>);

impl Mounts {
    /// Reads them; none where the system does not tell.
    pub fn read() -> Self {
        fs::read("/proc/self/mountinfo").map(|table| Self::parse(&table)).unwrap_or_default()
    }

    /// Lines are `ID PARENT MAJOR:MINOR ROOT MOUNT-POINT ...` (proc_pid_mountinfo(5)); what does
    /// not look so is passed over.
    fn parse(table: &[u8]) -> Self {
        let mount = |line: &[u8]| {
            let mut fields = line.split(|byte| *byte == b' ').skip(2);
            let (device, root, at) = (fields.next()?, fields.next()?, fields.next()?);
            let (path, at) = (unescaped(root), unescaped(at));
            // A namespace's file and its like have roots that are no paths.
            (path.is_absolute() && at.is_absolute())
                .then(|| Mount { what: Region { device: device.to_vec(), path }, at })
        };
        Self(table.split(|byte| *byte == b'\n').filter_map(mount).collect())
    }

    /// The part of a file system that an absolute path without links leads to.
    fn region(&self, real: &Path) -> Option<Region> {
        // Of two at one place the later one covers the earlier.
        let mount = self
            .0
            .iter()
            .filter(|mount| real.starts_with(&mount.at))
            .max_by_key(|mount| depth(&mount.at))?;
        let below = real.strip_prefix(&mount.at).ok()?;
        let path = if below.as_os_str().is_empty() {
            mount.what.path.clone()
        } else {
            mount.what.path.join(below)
        };
        Some(Region { device: mount.what.device.clone(), path })
    }

    /// What is mounted below an absolute path without links.
    fn below(&self, real: &Path) -> Vec<Region> {
        let inside = self.0.iter().filter(|mount| mount.at.starts_with(real) && mount.at != real);
        inside.map(|mount| mount.what.clone()).collect()
    }
}

fn depth(path: &Path) -> usize {
    path.components().count()
}

/// A path in the table of mounts: blanks, tabs, line ends and backslashes are written as `\` and
/// three octal digits.
fn unescaped(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let octal = after
            .get(..3)
            .filter(|digits| first == b'\\' && digits.iter().all(|d| (b'0'..=b'7').contains(d)));
        let value = octal.map(|digits| {
            digits.iter().fold(0_u32, |value, digit| value * 8 + u32::from(digit - b'0'))
        });
        match value.and_then(|value| u8::try_from(value).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

/// What a path leads to: itself and all below it, whether it exists already or not.
#[derive(Debug, Clone)]
pub struct Territory {
    /// Without links, as far as it exists.
    real: PathBuf,
    region: Option<Region>,
    /// What is mounted below it.
    mounted: Vec<Region>,
    /// Device and inode, where it exists.
    id: Option<(u64, u64)>,
    /// Device and inode of itself and of the folders above it, as far as they exist.
    line: Vec<(u64, u64)>,
}

impl Territory {
    /// Looks at an absolute path.
    ///
    /// # Errors
    /// `Invalid` where it is relative, leads round in links, or may not be looked at.
    pub fn of(path: &Path, mounts: &Mounts) -> Result<Self> {
        let real = resolve(path, LINKS_MAX)?;
        let ids = |path: &Path| fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
        let line = real.ancestors().filter_map(ids).collect();
        Ok(Self {
            region: mounts.region(&real),
            mounted: mounts.below(&real),
            id: ids(&real),
            line,
            real,
        })
    }

    /// Whether `other` is this place or lies below it, by whatever names.
    pub fn covers(&self, other: &Territory) -> bool {
        let regions = || self.region.iter().chain(&self.mounted);
        other.real.starts_with(&self.real)
            || other.region.as_ref().is_some_and(|theirs| regions().any(|ours| ours.covers(theirs)))
            || self.id.is_some_and(|id| other.line.contains(&id))
    }

    /// Whether one of the two covers the other.
    pub fn overlaps(&self, other: &Territory) -> bool {
        self.covers(other) || other.covers(self)
    }

    /// The path without links, as far as it exists.
    pub fn real(&self) -> &Path {
        &self.real
    }
}

/// The path without links. What does not exist is taken as it would be made: below what a link to
/// nowhere names, too.
fn resolve(path: &Path, links_left: u32) -> Result<PathBuf> {
    if !path.is_absolute() {
        return Err(Error::invalid(format!("the path {} is not absolute", path.display())));
    }
    let mut rest: Vec<Component<'_>> = Vec::new();
    let mut there = path;
    let base = loop {
        match fs::canonicalize(there) {
            Ok(real) => break real,
            Err(e)
                if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(e) => {
                let why = format!("cannot see where {} leads: {e}", path.display());
                return Err(Error::new(ErrorKind::Invalid, why));
            }
        }
        if let Ok(target) = fs::read_link(there) {
            if links_left == 0 {
                return Err(Error::invalid(format!(
                    "{} leads through more than {LINKS_MAX} links",
                    path.display()
                )));
            }
            let folder = there.parent().unwrap_or(Path::new("/"));
            break resolve(&folder.join(target), links_left - 1)?;
        }
        rest.extend(there.components().next_back());
        there = there.parent().unwrap_or(Path::new("/"));
    };
    Ok(rest.into_iter().rev().fold(base, |mut real, component| {
        match component {
            Component::Normal(name) => real.push(name),
            Component::ParentDir => drop(real.pop()),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
        real
    }))
}

/// Whether the last name of a path is a link; the folder that holds it may be known already.
pub fn is_link(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_symlink())
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;

    use super::*;

    fn of(path: &Path) -> Territory {
        Territory::of(path, &Mounts::read()).expect("a place")
    }

    #[test]
    fn links_give_one_place_many_names() {
        let dir = tempfile::tempdir().expect("dir");
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("d/sub")).expect("folders");
        symlink(at("d"), at("link")).expect("link");
        symlink("link", at("link2")).expect("link");
        symlink(at("not/yet"), at("dangling")).expect("link");
        let covers = |a: &str, b: &str| of(&at(a)).covers(&of(&at(b)));
        let cases = [
            ("d", "link", true),
            ("link2", "d", true),
            ("d", "link2/sub", true),
            ("d", "link/sorted/not/yet", true),
            ("link/sub", "d", false),
            ("d/sub", "link2/sub/x", true),
            // What is not there yet lies where it would be made.
            ("not", "dangling", true),
            ("not/yet", "dangling/below", true),
            ("d", "dangling", false),
            // A name that only begins alike.
            ("d", "dd", false),
            ("d/sub", "d/subway", false),
        ];
        for (a, b, expected) in cases {
            assert_eq!(covers(a, b), expected, "{a} {b}");
            assert_eq!(of(&at(b)).overlaps(&of(&at(a))), expected || covers(b, a), "{a} {b}");
        }
    }

    #[test]
    fn links_that_lead_round_are_refused() {
        let dir = tempfile::tempdir().expect("dir");
        symlink(dir.path().join("b"), dir.path().join("a")).expect("link");
        symlink(dir.path().join("a"), dir.path().join("b")).expect("link");
        let error =
            Territory::of(&dir.path().join("a/out"), &Mounts::default()).expect_err("a circle");
        assert!(error.kind == ErrorKind::Invalid && error.message.contains("a/out"), "{error}");
        let relative = Territory::of(Path::new("out"), &Mounts::default()).expect_err("relative");
        assert!(relative.message.contains("not absolute"), "{relative}");
    }

    /// A table as the system writes it: `/data/in` of a disk appears at `/srv/b`, another disk lies
    /// below `/data`.
    const TABLE: &[u8] = b"22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
        23 22 8:2 / /data rw - ext4 /dev/sda2 rw\n\
        24 22 8:2 /in /srv/b rw - ext4 /dev/sda2 rw\n\
        25 23 8:3 / /data/a\\040b rw - xfs /dev/sda3 rw\n\
        26 22 0:4 net:[4026531840] /run/netns/x rw - nsfs nsfs rw\n\
        27 22 8:2 /in /other/mount rw - ext4 /dev/sda2 rw\n\
        nonsense\n";

    fn by_table(path: &str) -> Territory {
        let (mounts, real) = (Mounts::parse(TABLE), PathBuf::from(path));
        let (region, mounted) = (mounts.region(&real), mounts.below(&real));
        Territory { region, mounted, real, id: None, line: Vec::new() }
    }

    #[test]
    fn mounts_give_one_place_many_names() {
        let cases = [
            ("/data/in", "/srv/b", true),
            ("/data/in", "/srv/b/out", true),
            ("/srv/b", "/data/in/x/y", true),
            ("/data", "/srv/b/out", true),
            ("/srv/b", "/data", false),
            ("/srv/b", "/data/inner", false),
            // A folder in which another has its second place.
            ("/srv", "/data/in/x", true),
            ("/other", "/srv/b/x", true),
            ("/data", "/data/a b/x", true),
            ("/data/a b", "/data/in", false),
            ("/srv", "/data/a b", false),
            ("/srv/b", "/other/mount/deep", true),
        ];
        for (a, b, expected) in cases {
            assert_eq!(by_table(a).covers(&by_table(b)), expected, "{a} {b}");
        }
    }

    #[test]
    fn a_folder_is_known_by_its_inode_too() {
        let dir = tempfile::tempdir().expect("dir");
        fs::create_dir(dir.path().join("d")).expect("folder");
        let mut other =
            Territory::of(&dir.path().join("d/new"), &Mounts::default()).expect("a place");
        // As on a file system that takes `D` for `d`.
        other.real = dir.path().join("D/new");
        let d = Territory::of(&dir.path().join("d"), &Mounts::default()).expect("a place");
        assert!(d.covers(&other) && !other.covers(&d));
    }

    #[test]
    fn names_in_the_table_are_escaped() {
        for (field, path) in [
            (&b"/a\\040b"[..], &b"/a b"[..]),
            (b"/a\\134040", b"/a\\040"),
            (b"/a\\", b"/a\\"),
            (b"/a\\04", b"/a\\04"),
            (b"/\\777", b"/\\777"),
            (b"/\\377", b"/\xff"),
        ] {
            assert_eq!(unescaped(field).as_os_str().as_bytes(), path);
        }
    }
}
