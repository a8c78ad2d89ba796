//! Every change that muster makes to a file system: what it makes, writes, renames and removes goes
//! through here, and nowhere else.
//!
//! A path is changed by its last name in a folder that is held open. Folders that are muster's own
//! (`_muster` and what lies in it, `_quarantine`) are gone into without following links, so that a
//! link which somebody puts in their place leads nowhere; above them a path may lead through links,
//! as its user means it. Nothing but a regular file is ever replaced, and no folder is removed that
//! is not empty.

use std::fmt::Debug;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::local::{DEPTH_MAX, file_error};
use muster_protocol::error::{Error, ErrorKind, Result};
use muster_protocol::names::{QUARANTINE_DIR, SCRATCH_DIR};

/// Tries of making a folder that another process may be removing as empty.
const FOLDER_TRIES_MAX: u32 = 5;

/// What is done to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// A new file comes to be.
    Create,
    /// A file is written to.
    Write,
    /// It gets another name, as `PutInPlace` says of that.
    TakeAway,
    /// What stood under this name, if anything, is replaced.
    PutInPlace,
    /// A file goes.
    Remove,
    /// A folder goes.
    RemoveFolder,
}

/// Is told of every change before it is made; for tests.
pub trait Witness: Debug + Send + Sync {
    /// What is about to happen to which path.
    fn see(&self, change: Change, path: &Path);
}

/// Makes the changes.
#[derive(Debug, Clone, Default)]
pub(super) struct Changes {
    witness: Option<Arc<dyn Witness>>,
}

/// A name in a folder that is held open.
struct At<'a> {
    folder: OwnedFd,
    name: &'a Path,
    path: &'a Path,
}

impl Changes {
    pub(super) fn seen_by(witness: Arc<dyn Witness>) -> Self {
        Self { witness: Some(witness) }
    }

    fn tell(&self, change: Change, path: &Path) {
        if let Some(witness) = &self.witness {
            witness.see(change, path);
        }
    }

    /// Makes a file that is not there yet, and the folders above it.
    pub(super) fn create(&self, path: &Path) -> Result<File> {
        let mut tries = 0;
        loop {
            // Another process may be removing the folder as empty.
            let again = |kind| kind == ErrorKind::NotFound && tries < FOLDER_TRIES_MAX;
            let created = At::in_new_folder(path).and_then(|at| {
                self.tell(Change::Create, path);
                let flags = OFlags::WRONLY
                    | OFlags::CREATE
                    | OFlags::EXCL
                    | OFlags::NOFOLLOW
                    | OFlags::CLOEXEC;
                let created =
                    rustix::fs::openat(&at.folder, at.name, flags, Mode::from_raw_mode(0o666));
                created.map(File::from).map_err(|e| at.error("create", e))
            });
            match created {
                Err(error) if again(error.kind) => tries += 1,
                created => return created,
            }
        }
    }

    /// Opens a file that muster has made, for writing.
    pub(super) fn open(&self, path: &Path, flags: OFlags) -> Result<File, Errno> {
        let at = At::of(path)?;
        self.tell(Change::Write, path);
        let flags = flags | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(File::from(rustix::fs::openat(&at.folder, at.name, flags, Mode::empty())?))
    }

    /// A file's state, without following a link.
    pub(super) fn look(path: &Path) -> Result<Stat, io::Error> {
        let at = At::of(path)?;
        Ok(rustix::fs::statat(&at.folder, at.name, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Whether a file may be put here: in the place of a regular file or of nothing.
    pub(super) fn check_place(path: &Path) -> Result<()> {
        match At::of(path) {
            Ok(at) => at.check(),
            Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(file_error(path, "look at", &e.into())),
        }
    }

    /// Gives a file the name of another in its folder, in the place of a regular file or of
    /// nothing.
    pub(super) fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        let at = At::of(to).map_err(|e| file_error(to, "put in place", &e.into()))?;
        at.check()?;
        self.tell(Change::TakeAway, from);
        self.tell(Change::PutInPlace, to);
        let name = from.file_name().unwrap_or_default();
        rustix::fs::renameat(&at.folder, name, &at.folder, at.name)
            .map_err(|e| at.error("put in place", e))
    }

    /// Removes a file, or a link by itself. Harmless where there is none.
    pub(super) fn remove(&self, path: &Path) -> Result<()> {
        let at = match At::of(path) {
            Ok(at) => at,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            Err(e) => return Err(file_error(path, "remove", &e.into())),
        };
        self.tell(Change::Remove, path);
        match rustix::fs::unlinkat(&at.folder, at.name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(at.error("remove", e)),
        }
    }

    /// Removes a folder if it is empty; says whether it is gone. A link to one is none.
    pub(super) fn remove_folder(&self, path: &Path) -> Result<bool> {
        let at = match At::of(path) {
            Ok(at) => at,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(true),
            Err(e) => return Err(file_error(path, "remove", &e.into())),
        };
        self.tell(Change::RemoveFolder, path);
        match rustix::fs::unlinkat(&at.folder, at.name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(true),
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR | Errno::BUSY) => Ok(false),
            Err(e) => Err(at.error("remove", e)),
        }
    }

    /// Removes the empty folders at and below a path, links left alone.
    pub(super) fn prune(&self, folder: &Path, depth: usize) -> Result<()> {
        let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
        for entry in entries.flatten() {
            if depth < DEPTH_MAX && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                self.prune(&entry.path(), depth + 1)?;
            }
        }
        self.remove_folder(folder).map(drop)
    }
}

impl<'a> At<'a> {
    fn of(path: &'a Path) -> Result<Self, Errno> {
        let (above, own, name) = parts(path);
        let open = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut folder = rustix::fs::open(above, open, Mode::empty())?;
        for name in own.components() {
            folder = rustix::fs::openat(
                &folder,
                name.as_os_str(),
                open | OFlags::NOFOLLOW,
                Mode::empty(),
            )?;
        }
        Ok(Self { folder, name, path })
    }

    /// Makes the folders above first.
    fn in_new_folder(path: &'a Path) -> Result<Self> {
        let (above, own, name) = parts(path);
        fs::create_dir_all(above).map_err(|e| file_error(above, "make the folder", &e))?;
        let failed =
            |e: Errno| file_error(path.parent().unwrap_or(path), "make the folder", &e.into());
        let open = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut folder = rustix::fs::open(above, open, Mode::empty()).map_err(failed)?;
        for name in own.components() {
            match rustix::fs::mkdirat(&folder, name.as_os_str(), Mode::from_raw_mode(0o777)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(e) => return Err(failed(e)),
            }
            let inner = rustix::fs::openat(
                &folder,
                name.as_os_str(),
                open | OFlags::NOFOLLOW,
                Mode::empty(),
            );
            folder = inner.map_err(|e| match e {
                Errno::NOTDIR | Errno::LOOP => Error::invalid(format!(
                    "{} leads through {:?}, which is a link or a file and none of muster's \
                        folders; move it away, or choose another place",
                    path.display(),
                    name.as_os_str()
                )),
                e => failed(e),
            })?;
        }
        Ok(Self { folder, name, path })
    }

    /// Nothing but a regular file is ever replaced.
    fn check(&self) -> Result<()> {
        match rustix::fs::statat(&self.folder, self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => Ok(()),
            Ok(_) => {
                let path = self.path.display();
                Err(Error::invalid(format!(
                    "{path} is a link or no file at all; it is left as it is"
                )))
            }
            Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(self.error("look at", e)),
        }
    }

    fn error(&self, doing: &str, error: Errno) -> Error {
        file_error(self.path, doing, &error.into())
    }
}

/// The folder up to which links may lead, the folders of muster's own below it, and the last name.
fn parts(path: &Path) -> (&Path, PathBuf, &Path) {
    let name = Path::new(path.file_name().unwrap_or_default());
    let folder = path.parent().unwrap_or(Path::new("/"));
    let names: Vec<Component<'_>> = folder.components().collect();
    let scratch = names.iter().rposition(|name| name.as_os_str() == SCRATCH_DIR);
    let quarantine = names
        .last()
        .is_some_and(|name| name.as_os_str() == QUARANTINE_DIR)
        .then(|| names.len() - 1);
    let Some(first) = scratch.or(quarantine) else { return (folder, PathBuf::new(), name) };
    let above = folder.ancestors().nth(names.len() - first).unwrap_or(Path::new("/"));
    (above, names[first..].iter().collect(), name)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn own_folders_begin_with_muster_or_quarantine() {
        for (path, above, own, name) in [
            ("/a/b/part-00000.txt", "/a/b", "", "part-00000.txt"),
            ("/a/_muster/d/j/x.run", "/a", "_muster/d/j", "x.run"),
            ("/a/_quarantine/split-00000.jsonl", "/a", "_quarantine", "split-00000.jsonl"),
            ("/_muster/x", "/", "_muster", "x"),
            ("/x", "/", "", "x"),
        ] {
            assert_eq!(
                parts(Path::new(path)),
                (Path::new(above), PathBuf::from(own), Path::new(name)),
                "{path}"
            );
        }
    }

    #[test]
    fn links_in_the_place_of_own_folders_lead_nowhere() {
        let dir = tempfile::tempdir().expect("dir");
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("important/d/j")).expect("folders");
        fs::write(at("important/d/j/x.run"), "kept").expect("file");
        fs::write(at("important/split-00000.jsonl"), "kept").expect("file");
        fs::create_dir(at("out")).expect("folder");
        symlink(at("important"), at("out/_muster")).expect("link");
        symlink(at("important"), at("out/_quarantine")).expect("link");
        let changes = Changes::default();
        for path in
            ["out/_muster/d/j/x.run", "out/_muster/d/j/new", "out/_quarantine/split-00000.jsonl"]
        {
            assert!(changes.create(&at(path)).is_err(), "{path}");
            assert!(changes.open(&at(path), OFlags::empty()).is_err(), "{path}");
            // Nothing of ours is there.
            assert!(changes.remove(&at(path)).is_ok(), "{path}");
            assert!(changes.remove_folder(&at(path)).is_ok(), "{path}");
        }
        assert!(!changes.remove_folder(&at("out/_muster")).expect("left"), "a link is no folder");
        changes.prune(&at("out"), 0).expect("pruned");
        assert_eq!(fs::read(at("important/d/j/x.run")).expect("kept"), b"kept");
        assert_eq!(fs::read(at("important/split-00000.jsonl")).expect("kept"), b"kept");
    }

    #[test]
    fn only_files_are_replaced() {
        let dir = tempfile::tempdir().expect("dir");
        let at = |name: &str| dir.path().join(name);
        fs::write(at("kept"), "kept").expect("file");
        let changes = Changes::default();
        for odd in ["link", "dangling", "folder"] {
            fs::write(at("new"), "new").expect("file");
            match odd {
                "link" => symlink(at("kept"), at(odd)).expect("link"),
                "dangling" => symlink(at("nowhere"), at(odd)).expect("link"),
                _ => fs::create_dir(at(odd)).expect("folder"),
            }
            for error in [Changes::check_place(&at(odd)), changes.rename(&at("new"), &at(odd))] {
                let error = error.expect_err(odd);
                assert!(
                    error.kind == ErrorKind::Invalid && error.message.contains("left as it is"),
                    "{error}"
                );
            }
            assert!(changes.open(&at(odd), OFlags::empty()).is_err(), "{odd}");
        }
        for free in ["kept", "not-there", "no/folder"] {
            Changes::check_place(&at(free)).expect(free);
        }
        changes.rename(&at("new"), &at("kept")).expect("a file is replaced");
        assert_eq!(fs::read(at("kept")).expect("read"), b"new");
        assert!(at("dangling").is_symlink() && !at("nowhere").exists());
    }
}
