//! The folders of a file system, looked through for input.
//!
//! Links are followed, as their user means them, but never to a folder that holds them. What is
//! neither a file nor a folder, or cannot be looked at, is named; what is hidden is not looked at.
//! Names are those of one moment as far as a file system tells: a folder that changed while it was
//! read is read again.

use std::ffi::OsString;
use std::fs::{self, FileType, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;

use super::local::{blob_meta, file_error};
use crate::paths;
use crate::survey::{OMITTED_MAX, Omitted, Survey, Wanted};
use muster_protocol::error::{Error, ErrorKind, Result};

/// Readings of one folder that changes while it is read.
pub(super) const READINGS_MAX: u32 = 3;
/// Why a name that was read stands for nothing.
const WENT_AWAY: &str = "it went away while its folder was listed";
/// Entries between two looks at whether anybody still waits.
const LOOK_EVERY: u64 = 256;

/// Ends a survey when whoever waits for it no longer does.
pub(super) struct Interest(Arc<AtomicBool>);

impl Interest {
    /// As long as this lives, the flag is down.
    pub(super) fn new() -> (Self, Arc<AtomicBool>) {
        let gone = Arc::new(AtomicBool::new(false));
        (Self(gone.clone()), gone)
    }
}

impl Drop for Interest {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What of a folder is meant. A folder that is not there holds nothing.
pub(super) fn survey(wanted: &Wanted, gone: &AtomicBool) -> Result<Survey> {
    let base = paths::path_of(wanted.base());
    let real = match base.canonicalize() {
        Ok(real) => real,
        Err(e)
            if e.kind() == io::ErrorKind::NotFound || e.kind() == io::ErrorKind::NotADirectory =>
        {
            return Ok(Survey::default());
        }
        Err(e) => return Err(file_error(&base, "list", &e)),
    };
    let mut above = Vec::new();
    for folder in real.ancestors() {
        above.push(identity(&fs::metadata(folder).map_err(|e| file_error(folder, "look at", &e))?));
    }
    let mut walk = Walk { base, wanted, gone, above, looked: 0, survey: Survey::default() };
    walk.below(Path::new(""), 0)?;
    walk.survey.objects.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    walk.survey.omitted.sort_unstable();
    Ok(walk.survey)
}

/// Device and inode.
fn identity(meta: &Metadata) -> (u64, u64) {
    (meta.dev(), meta.ino())
}

struct Walk<'a> {
    base: PathBuf,
    wanted: &'a Wanted,
    gone: &'a AtomicBool,
    /// The folders in which the walk is, from the root on.
    above: Vec<(u64, u64)>,
    looked: u64,
    survey: Survey,
}

impl Walk<'_> {
    fn below(&mut self, relative: &Path, depth: usize) -> Result<()> {
        let folder = self.base.join(relative);
        let names = match self.names(&folder) {
            Ok(names) => names,
            Err(error) if depth == 0 => {
                let none =
                    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory);
                return if none { Ok(()) } else { Err(file_error(&folder, "list", &error)) };
            }
            Err(error) => return self.omit_failed(relative, "list", &error),
        };
        for name in names {
            self.count(&folder)?;
            self.entry(&relative.join(name), depth + 1)?;
        }
        Ok(())
    }

    /// The names in a folder that are not hidden, in no order.
    fn names(&mut self, folder: &Path) -> io::Result<Vec<OsString>> {
        let mut reading = 1;
        loop {
            let before = fs::metadata(folder)?;
            let mut names = Vec::new();
            for entry in fs::read_dir(folder)? {
                let name = entry?.file_name();
                match name.as_bytes() {
                    [b'_' | b'.', ..] => self.survey.hidden = true,
                    _ => names.push(name),
                }
                if names.len() as u64 > self.wanted.bounds().entries
                    || self.gone.load(Ordering::Relaxed)
                {
                    // The count of the entries says so.
                    return Ok(names);
                }
            }
            let after = fs::metadata(folder)?;
            let time = |meta: &Metadata| (meta.mtime(), meta.mtime_nsec());
            if time(&before) == time(&after) || reading == READINGS_MAX {
                return Ok(names);
            }
            reading += 1;
        }
    }

    fn count(&mut self, folder: &Path) -> Result<()> {
        self.looked += 1;
        let most = self.wanted.bounds().entries;
        if self.looked > most {
            let base = self.base.display();
            return Err(Error::invalid(format!(
                "more than {most} entries lie below {base}, at last in {}: the bound of one look \
                    through folders (store.entries_max)",
                folder.display()
            )));
        }
        if self.looked.is_multiple_of(LOOK_EVERY) && self.gone.load(Ordering::Relaxed) {
            return Err(Error::retry("nobody waits for this list any more"));
        }
        Ok(())
    }

    fn entry(&mut self, relative: &Path, depth: usize) -> Result<()> {
        let path = self.base.join(relative);
        let (means, may_hold) =
            (self.wanted.means(relative), self.wanted.may_lie_below(relative, depth));
        if !means && !may_hold {
            return Ok(());
        }
        let meta = match fs::metadata(&path) {
            Ok(meta) => meta,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return self.omit(relative, &nowhere(&path));
            }
            Err(error) => return self.omit_failed(relative, "look at", &error),
        };
        if meta.is_dir() {
            return if may_hold { self.folder(relative, &meta, depth) } else { Ok(()) };
        }
        if !means {
            return Ok(());
        }
        if !meta.is_file() {
            return self.omit(relative, kind(meta.file_type()));
        }
        self.survey.objects.push(blob_meta(&paths::key_of(&path), &meta));
        self.wanted.check_objects(&self.survey)
    }

    fn folder(&mut self, relative: &Path, meta: &Metadata, depth: usize) -> Result<()> {
        let identity = identity(meta);
        if self.above.contains(&identity) {
            return self.omit(relative, "a link to a folder that holds it");
        }
        let most = self.wanted.bounds().depth;
        if depth > most {
            return self
                .omit(relative, &format!("a folder deeper than {most} others (store.depth_max)"));
        }
        self.above.push(identity);
        let walked = self.below(relative, depth);
        self.above.pop();
        walked
    }

    fn omit_failed(&mut self, relative: &Path, doing: &str, error: &io::Error) -> Result<()> {
        let why = failed(&self.base.join(relative), doing, error)?;
        self.omit(relative, &why)
    }

    fn omit(&mut self, relative: &Path, why: &str) -> Result<()> {
        let key = paths::key_of(&self.base.join(relative));
        self.survey.omitted.push(Omitted { key, why: why.to_owned() });
        if self.survey.omitted.len() > OMITTED_MAX {
            let base = self.base.display();
            return Err(Error::invalid(format!(
                "more than {OMITTED_MAX} entries below {base} cannot be input, at last {}: {why}",
                self.base.join(relative).display()
            )));
        }
        Ok(())
    }
}

/// Why what cannot be looked at cannot be input.
///
/// # Errors
/// `Retry` where the trouble may pass.
pub(super) fn failed(path: &Path, doing: &str, error: &io::Error) -> Result<String> {
    if error.kind() == io::ErrorKind::NotFound {
        return Ok(WENT_AWAY.to_owned());
    }
    let damaged = [Errno::IO, Errno::UCLEAN]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()));
    let told = file_error(path, doing, error);
    if told.kind == ErrorKind::Retry && !damaged {
        return Err(told);
    }
    Ok(format!("cannot {doing} it: {error}"))
}

/// Why nothing is there where a name is.
fn nowhere(path: &Path) -> String {
    match fs::read_link(path) {
        Ok(target) => format!("a link to what is not there ({})", target.display()),
        Err(_) => WENT_AWAY.to_owned(),
    }
}

/// What an entry is that is neither file nor folder.
pub(super) fn kind(kind: FileType) -> &'static str {
    match kind {
        kind if kind.is_fifo() => "a pipe",
        kind if kind.is_socket() => "a socket",
        kind if kind.is_block_device() || kind.is_char_device() => "a device",
        _ => "neither a file nor a folder",
    }
}

#[cfg(test)]
#[path = "folders_tests.rs"]
mod tests;
