//! The folder of this worker's spills: who uses it, whether it has room, and what may be removed
//! when it has none.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use muster_platform::store::BlobUrl;
use muster_protocol::{Error, Result};

/// What helps where the disk of the spills is full.
pub(crate) const LARGER_DISK: &str = "name a folder on a larger disk with --data-dir (else TMPDIR \
    says where), or give more --memory, so that less is spilled";
/// Spare space beside what a spill needs, in percent of it.
const SPARE_PERCENT: u64 = 20;

/// The folder. Clones share it.
#[derive(Clone)]
pub struct Spills {
    /// Where spills go: used by nothing else.
    pub(crate) root: BlobUrl,
    shared: Arc<Shared>,
}

/// Room on the disk that a spill which is being written may take.
pub(crate) struct Room {
    bytes: u64,
    shared: Arc<Shared>,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.shared.reserved.fetch_sub(self.bytes, Ordering::SeqCst);
    }
}

struct Shared {
    /// Bytes that are reserved.
    reserved: AtomicU64,
    /// The subfolders of attempts that are at work.
    live: Mutex<HashSet<String>>,
    /// Whether this process alone lives under its worker's id, so that what stands beside the
    /// folder is of earlier lives.
    alone: AtomicBool,
    free: fn(&Path) -> Option<u64>,
}

impl Spills {
    /// A folder that nobody uses yet.
    pub fn new(root: BlobUrl) -> Self {
        Self::measured(root, free_bytes)
    }

    /// The same with another way to see how much is free.
    pub(crate) fn measured(root: BlobUrl, free: fn(&Path) -> Option<u64>) -> Self {
        Self {
            root,
            shared: Arc::new(Shared {
                reserved: AtomicU64::new(0),
                live: Mutex::default(),
                alone: AtomicBool::new(false),
                free,
            }),
        }
    }

    /// An attempt begins to use its subfolder.
    pub(crate) fn begin(&self, name: &str) {
        self.shared.live.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned());
    }

    /// An attempt has ended.
    pub(crate) fn end(&self, name: &str) {
        self.shared.live.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// From now on what earlier lives of this worker left may go.
    pub(crate) fn is_alone(&self) {
        self.shared.alone.store(true, Ordering::Relaxed);
    }

    /// Reserves `bytes` and some spare, until what is given is dropped; cleans up once if they do
    /// not fit beside what others have reserved. Blocking.
    pub(crate) fn ensure_room(&self, bytes: u64) -> Result<Room> {
        let needed = bytes.saturating_add(bytes / 100 * SPARE_PERCENT);
        let room = Room { bytes: needed, shared: self.shared.clone() };
        let before = self.shared.reserved.fetch_add(needed, Ordering::SeqCst);
        let Some(folder) = self.root.file_path() else { return Ok(room) };
        // What another is about to write is as good as gone; what it has written is counted twice
        // until it is done, which errs to the safe side.
        let needed = needed.saturating_add(before);
        let free = || (self.shared.free)(&folder).filter(|&free| free < needed);
        if free().is_none() {
            return Ok(room);
        }
        self.clean();
        match free() {
            None => Ok(room),
            Some(free) => Err(Error::exhausted(format!(
                "disk full: {} has {free} bytes free, a spill of {bytes} with {SPARE_PERCENT} % to \
                    spare needs {needed}; {LARGER_DISK}",
                folder.display()
            ))),
        }
    }

    /// Removes what nobody uses any more: subfolders of ended attempts, and folders of earlier
    /// lives. Blocking, best effort.
    pub(crate) fn clean(&self) {
        let Some(own) = self.root.file_path() else { return };
        for path in entries(&own) {
            // An attempt that begins meanwhile must not lose its new folder: it waits, for one
            // folder at most.
            let live = self.shared.live.lock().unwrap_or_else(PoisonError::into_inner);
            let name = path.file_name().and_then(|name| name.to_str());
            if name.is_none_or(|name| !live.contains(name)) {
                remove(&path, "an ended attempt");
            }
        }
        if self.shared.alone.load(Ordering::Relaxed)
            && let Some(parent) = own.parent()
        {
            for path in entries(parent).filter(|path| *path != own) {
                remove(&path, "an earlier life");
            }
        }
    }
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path())
}

fn remove(path: &Path, of: &str) {
    match std::fs::remove_dir_all(path) {
        Ok(()) => tracing::info!(path = %path.display(), "removed spills of {of}"),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "cannot remove spills of {of}");
        }
    }
}

fn free_bytes(folder: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(folder).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_protocol::ErrorKind;

    /// As much as the folder beside does not take of 1000 bytes.
    fn of_1000(own: &Path) -> Option<u64> {
        fn size(path: &Path) -> u64 {
            let meta = std::fs::symlink_metadata(path).expect("there");
            if meta.is_dir() { entries(path).map(|path| size(&path)).sum() } else { meta.len() }
        }
        Some(1000_u64.saturating_sub(size(own.parent().expect("a parent"))))
    }

    #[test]
    fn what_nobody_uses_makes_room() {
        let dir = tempfile::tempdir().expect("temp dir");
        let own = dir.path().join("2");
        let put = |path: &str, bytes: usize| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("folder");
            std::fs::write(path, vec![0; bytes]).expect("file");
        };
        put("1/a/spill", 300);
        put("2/live/spill", 100);
        put("2/ended/spill", 200);
        let spills = Spills::measured(BlobUrl::from_path(&own).expect("url"), of_1000);
        spills.begin("live");
        spills.ensure_room(300).expect("360 of 400");
        assert!(own.join("ended/spill").exists(), "not cleaned without need");
        spills.ensure_room(400).expect("480 of 600");
        assert!(
            !own.join("ended").exists()
                && own.join("live/spill").exists()
                && dir.path().join("1/a").exists()
        );
        let error = spills.ensure_room(600).err().expect("720 of 600");
        assert_eq!(error.kind, ErrorKind::Exhausted);
        assert!(error.message.starts_with("disk full") && error.kind.is_retryable(), "{error}");
        assert!(
            error.message.contains("--data-dir") && error.message.contains("TMPDIR"),
            "{error}"
        );
        spills.is_alone();
        spills.ensure_room(600).expect("720 of 900");
        assert!(!dir.path().join("1").exists() && own.join("live/spill").exists());
        spills.end("live");
        spills.ensure_room(800).expect("960 of 1000");
        assert!(!own.join("live").exists());
        // What one attempt is about to write is not there for another.
        let held = spills.ensure_room(500).expect("600 of 1000");
        assert!(spills.ensure_room(400).is_err(), "480 beside 600 of 1000");
        drop(held);
        spills.ensure_room(400).expect("480 of 1000");
    }
}
