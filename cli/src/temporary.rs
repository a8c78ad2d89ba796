//! Temporary folders that say whether their owner lives: each holds a lock file, locked for as long
//! as its process has the folder. What a killed process left is removed by the next one of its
//! kind.
//!
//! A lock file takes its name only when it is locked already. So a lock that nobody holds is one
//! whose owner is dead, however many processes begin at once.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use muster_platform::clock::{Clock, SystemClock};
use muster_protocol::{Error, Result};

const LOCK: &str = "lock";
/// The name of a lock file until it is locked.
const LOCK_NEW: &str = "lock.new";
/// A folder without a lock file that is older than this was left by a process that died between
/// making and locking it.
const UNLOCKED_AGE_S: u64 = 3600;

/// A folder that is removed in the end.
#[derive(Debug)]
pub(crate) struct Temporary {
    // Dropped in this order: the lock is held until the folder is gone.
    folder: tempfile::TempDir,
    _lock: File,
}

impl Temporary {
    /// Makes a folder below that for temporary files; `prefix` tells its kind, and those of the
    /// kind whose owners are dead are removed.
    pub(crate) fn make(prefix: &str) -> Result<Self> {
        Self::make_in(&std::env::temp_dir(), prefix)
    }

    fn make_in(parent: &Path, prefix: &str) -> Result<Self> {
        remove_abandoned(parent, prefix);
        let made = tempfile::Builder::new().prefix(prefix).tempdir_in(parent);
        let folder = made.map_err(|e| {
            let why = format!(
                "cannot make a temporary folder in {}: {e}; TMPDIR names another place",
                parent.display()
            );
            Error::invalid(why)
        })?;
        let lock = lock_new(folder.path())?;
        Ok(Self { folder, _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Removes it, and says so where that fails.
    pub(crate) fn close(self) {
        let Self { folder, _lock } = self;
        if let Err(error) = remove_locked(&folder.keep(), remove) {
            tracing::warn!(%error, "cannot remove a temporary folder");
        }
    }
}

/// Removes a folder whose lock is held, the lock last: who is killed amid this leaves a folder that
/// the next one can tell is nobody's.
fn remove_locked(folder: &Path, remove: impl Fn(&Path) -> io::Result<()>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name() != LOCK {
            remove(&entry.path())?;
        }
    }
    remove(&folder.join(LOCK))?;
    fs::remove_dir(folder)
}

/// Removes a file, or a folder with all that is in it.
fn remove(path: &Path) -> io::Result<()> {
    let is_folder = fs::symlink_metadata(path)?.is_dir();
    if is_folder { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

fn lock_new(folder: &Path) -> Result<File> {
    let (unnamed, path) = (folder.join(LOCK_NEW), folder.join(LOCK));
    let file_error = |doing: &str, e: &dyn std::fmt::Display| {
        Error::invalid(format!("cannot {doing} {}: {e}", path.display()))
    };
    let file = File::options()
        .create_new(true)
        .write(true)
        .open(&unnamed)
        .map_err(|e| file_error("make", &e))?;
    file.try_lock().map_err(|e| file_error("lock", &e))?;
    fs::rename(&unnamed, &path).map_err(|e| file_error("name", &e))?;
    Ok(file)
}

/// Removes the folders of a kind whose owners are dead. What cannot be looked at is left alone: it
/// may be another user's.
fn remove_abandoned(parent: &Path, prefix: &str) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let of_kind = entry.file_name().to_str().is_some_and(|name| name.starts_with(prefix));
        if !of_kind || !is_own_folder(&path) {
            continue;
        }
        // Held until the folder is gone, so that no two remove it at once.
        let removed = match abandoned(&path) {
            Some(Abandoned::Locked(_lock)) => remove_locked(&path, remove),
            // Whoever had it did not come further than this; anything else in it is not ours to
            // remove.
            Some(Abandoned::Begun) => {
                drop(fs::remove_file(path.join(LOCK_NEW)));
                fs::remove_dir(&path)
            }
            None => continue,
        };
        if let Err(error) = removed {
            tracing::warn!(%error, folder = %path.display(), "cannot remove the folder of a \
                process that was killed");
        }
    }
}

/// Whether it is a folder of this user, and no link to one.
fn is_own_folder(path: &Path) -> bool {
    let own = rustix::process::geteuid().as_raw();
    fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir() && meta.uid() == own)
}

/// A folder whose owner is dead.
enum Abandoned {
    /// Its lock is ours now.
    Locked(File),
    /// Its owner died before it was locked.
    Begun,
}

/// Whether nobody has the folder any more.
fn abandoned(folder: &Path) -> Option<Abandoned> {
    let path = folder.join(LOCK);
    match File::options().write(true).open(&path) {
        Ok(file) => {
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock | TryLockError::Error(_)) => return None,
            }
            // Somebody else may have removed the folder since it was opened, and even made another
            // of that name.
            let (opened, named) = (file.metadata().ok()?, fs::symlink_metadata(&path).ok()?);
            ((opened.dev(), opened.ino()) == (named.dev(), named.ino()))
                .then_some(Abandoned::Locked(file))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let changed_s = u64::try_from(fs::symlink_metadata(folder).ok()?.mtime()).ok()?;
            let age_s = (SystemClock::default().unix_ms() / 1000).saturating_sub(changed_s);
            (age_s > UNLOCKED_AGE_S).then_some(Abandoned::Begun)
        }
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;
    use std::sync::Barrier;
    use std::time::SystemTime;

    const KIND: &str = "muster-kind-";

    #[test]
    fn the_lock_goes_last() {
        let parent = tempfile::tempdir().expect("dir");
        let folder = parent.path().join("muster-kind-ending");
        fs::create_dir_all(folder.join("spill")).expect("folder");
        for name in [LOCK, "spill/a", "z"] {
            fs::write(folder.join(name), "").expect("file");
        }
        let killed = |path: &Path| match path.ends_with("spill") {
            true => Err(io::Error::other("killed")),
            false => remove(path),
        };
        remove_locked(&folder, killed).expect_err("killed");
        assert!(folder.join(LOCK).exists(), "the next one can tell");
        drop(Temporary::make_in(parent.path(), KIND).expect("the next one"));
        assert!(!folder.exists());
    }

    #[test]
    fn folders_of_killed_processes_are_removed() {
        let parent = tempfile::tempdir().expect("dir");
        let make = |name: &str| {
            let path = parent.path().join(name);
            fs::create_dir(&path).expect("dir");
            path
        };
        let dead = make("muster-kind-dead");
        fs::write(dead.join(LOCK), "").expect("lock");
        fs::write(dead.join("spill"), "x").expect("spill");
        let live = Temporary::make_in(parent.path(), KIND).expect("live");
        let (begun, other) = (make("muster-kind-begun"), make("other"));
        fs::write(other.join(LOCK), "").expect("lock");
        let (target, link) = (make("target"), parent.path().join("muster-kind-link"));
        fs::write(target.join(LOCK), "").expect("lock");
        std::os::unix::fs::symlink(&target, &link).expect("link");
        let (old, foreign) = (make("muster-kind-old"), make("muster-kind-foreign"));
        fs::write(old.join(LOCK_NEW), "").expect("lock");
        fs::write(foreign.join("worker-lock"), "").expect("file");
        for folder in [&old, &foreign] {
            File::open(folder).expect("open").set_modified(SystemTime::UNIX_EPOCH).expect("age");
        }

        remove_abandoned(parent.path(), KIND);
        let there = |path: &PathBuf| path.symlink_metadata().is_ok();
        assert_eq!([&dead, &old].map(there), [false, false], "their owners are dead");
        assert_eq!(
            [&live.path().to_owned(), &begun, &other, &target.join(LOCK), &link].map(there),
            [true; 5]
        );
        assert!(
            foreign.join("worker-lock").exists(),
            "what is in a folder without our lock is not ours"
        );

        let path = live.path().to_owned();
        live.close();
        assert!(!path.exists());
    }

    /// Before, a lock file had its name before it was locked, and whoever looked just then took its
    /// folder for a dead one's.
    #[test]
    fn processes_that_begin_at_once_leave_each_others_folders_alone() {
        const AT_ONCE: usize = 8;
        const ROUNDS: usize = 100;
        let parent = tempfile::tempdir().expect("dir");
        let begin = Barrier::new(AT_ONCE);
        let lost: usize = std::thread::scope(|scope| {
            let one = || {
                begin.wait();
                let rounds = (0..ROUNDS).map(|_| match Temporary::make_in(parent.path(), KIND) {
                    Ok(made) => usize::from(!made.path().join(LOCK).is_file()),
                    Err(_) => 1,
                });
                rounds.sum::<usize>()
            };
            let threads: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(one)).collect();
            threads.into_iter().map(|thread| thread.join().expect("a thread")).sum()
        });
        assert_eq!(lost, 0, "of {} folders", AT_ONCE * ROUNDS);
        assert_eq!(fs::read_dir(parent.path()).expect("list").count(), 0, "nothing is left");
    }
}
