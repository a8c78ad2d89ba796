//! The folders of which a worker offers the files as input (`--input-dir`), as a store that can
//! only be read.
//!
//! A plan, and so whoever writes one, names the files that a worker reads. So every path is
//! resolved by the kernel beneath one of the folders (`openat2`), anew with each call: `..`, an
//! absolute path or a symbolic link cannot lead out, whatever happens to the tree meanwhile. Links
//! below a folder are not followed at all: what they refer to inside the folder is offered under
//! its own name, and what lies outside is not offered. They are named as what cannot be input, as
//! is all else that is neither a file nor a folder, or cannot be looked at.

use std::ffi::OsStr;
use std::fs::File;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::folders::{READINGS_MAX, failed, kind};
use super::local::{DEPTH_MAX, LocalBlobs, blob_meta, file_error, read_opened};
use crate::buffer::BufferPool;
use crate::clock::Clock;
use crate::inputs::{self, FOLDERS_MAX, Pattern};
use crate::paths;
use crate::store::{Access, BlobMeta, Blobs, Completed, OpenUpload, PartAt, is_normal};
use crate::survey::{Survey, Wanted};
use muster_protocol::error::{Error, Result};
use muster_protocol::plan::TEXT_BYTES_MAX;
use muster_protocol::wire::{HEAD_BYTES_MAX, LocalFile, LocalOmitted, WHY_BYTES_MAX};

/// Bytes of a page of a listing, about: half of what a message may have.
const PAGE_BYTES_MAX: usize = muster_protocol::wire::MESSAGE_BYTES_MAX / 2;
/// What a file takes in a page beside its path, its version and its error, at most.
const FILE_OVERHEAD_BYTES: usize = 64;
/// A page ends after so long, so that its request is answered in time.
const PAGE_MS: u64 = 1000;
/// Longest path of a folder that is offered, in bytes: a path below it that is cut still lies below
/// it.
const FOLDER_BYTES_MAX: usize = TEXT_BYTES_MAX - 256;
/// Most entries of one folder.
const ENTRIES_MAX: usize = 1_000_000;
/// Tries of a resolution that a concurrent renaming disturbs.
const RESOLVE_TRIES_MAX: u32 = 16;

/// The folders, and how their files are read.
#[derive(Clone)]
pub struct OwnFiles {
    folders: Arc<[Folder]>,
    files: LocalBlobs,
    buffers: BufferPool,
    clock: Arc<dyn Clock>,
}

/// One folder that is offered.
#[derive(Debug, Clone)]
struct Folder {
    /// Without symbolic links.
    path: PathBuf,
    text: String,
}

/// Some of the files, in byte order of their paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// What is there.
    pub files: Vec<LocalFile>,
    /// What of the same stretch may be meant and cannot be input, in no order.
    pub omitted: Vec<LocalOmitted>,
    /// Behind which path to go on; none when this is all.
    pub next: Option<String>,
}

impl OwnFiles {
    /// Offers what lies in these folders.
    ///
    /// # Errors
    /// `Invalid` where one is no folder, cannot be read, lies in another one, is not valid UTF-8,
    /// where there are too many, or where the system cannot confine paths.
    pub fn new(folders: &[PathBuf], buffers: BufferPool, clock: Arc<dyn Clock>) -> Result<Self> {
        if folders.len() > FOLDERS_MAX {
            return Err(Error::invalid(format!(
                "{} input folders, at most {FOLDERS_MAX} are allowed",
                folders.len()
            )));
        }
        let mut opened =
            folders.iter().map(|path| Folder::open(path)).collect::<Result<Vec<Folder>>>()?;
        opened.sort_by_key(Folder::as_prefix);
        if let Some(pair) = opened.windows(2).find(|pair| pair[1].path.starts_with(&pair[0].path)) {
            let (outer, inner) = (&pair[0].text, &pair[1].text);
            return Err(Error::invalid(format!(
                "the input folder {inner} is, or lies in, the input folder {outer}"
            )));
        }
        let files = LocalBlobs::new(buffers.clone());
        Ok(Self { folders: opened.into(), files, buffers, clock })
    }

    /// The folders as absolute paths without symbolic links, in byte order.
    pub fn folders(&self) -> Vec<String> {
        self.folders.iter().map(|folder| folder.text.clone()).collect()
    }

    /// The next files that match, behind `after`, and what else there is in their place.
    ///
    /// # Errors
    /// `Invalid` where a folder that is offered cannot be listed; `Exhausted` where one is too
    /// large; `Retry` where the file system is in trouble.
    pub async fn page(&self, pattern: Pattern, after: Option<String>) -> Result<Page> {
        let own = self.clone();
        self.files
            .blocking(move || {
                let page = Page { files: Vec::new(), omitted: Vec::new(), next: None };
                let Some(first) = own.folders.first() else { return Ok(page) };
                let mut walk = Walk {
                    folder: first,
                    pattern: &pattern,
                    after: after.as_deref(),
                    page,
                    bytes: 0,
                    looked: None,
                    full: false,
                    clock: &*own.clock,
                    until_ms: own.clock.now_ms().saturating_add(PAGE_MS),
                };
                for folder in &*own.folders {
                    walk.folder = folder;
                    let entries = walk
                        .entries("")
                        .map_err(|e| file_error(&folder.path, "list", &e.into()))?;
                    walk.each(entries, "", 0)?;
                }
                let next = if walk.full { walk.looked } else { None };
                Ok(Page { next, ..walk.page })
            })
            .await
    }

    /// The folder that a key lies in, and its path below it.
    fn resolve(&self, key: &str) -> Result<(Folder, String)> {
        let path = format!("/{key}");
        let within = |folder: &Folder| {
            Some((folder.clone(), path.strip_prefix(&folder.as_prefix())?.to_owned()))
        };
        let found = self.folders.iter().find_map(within).filter(|_| is_normal(key));
        found.ok_or_else(|| {
            Error::invalid(format!(
                "{path} is not below the folders that this worker offers (--input-dir)"
            ))
        })
    }
}

impl Folder {
    fn open(path: &Path) -> Result<Self> {
        let refuse = |why: String| {
            Error::invalid(format!("cannot offer the input folder {}: {why}", path.display()))
        };
        let path = path.canonicalize().map_err(|e| refuse(e.to_string()))?;
        let text = path
            .to_str()
            .ok_or_else(|| refuse("its path is not valid UTF-8".to_owned()))?
            .to_owned();
        if path.parent().is_none() || text.len() > FOLDER_BYTES_MAX {
            return Err(refuse(
                "it must not be the root of the file system, nor have an overlong path".to_owned(),
            ));
        }
        let folder = Self { path, text };
        match folder.beneath(".", OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(_) => Ok(folder),
            Err(Errno::NOSYS | Errno::PERM) => Err(refuse(
                "openat2, which keeps paths inside, cannot be called: it needs Linux \
                    5.6 or newer, and a sandbox that allows it"
                    .to_owned(),
            )),
            Err(e) => Err(refuse(e.to_string())),
        }
    }

    /// What every path below it begins with.
    fn as_prefix(&self) -> String {
        format!("{}/", self.text)
    }

    /// Opens what has this path below the folder, and lies there.
    fn beneath(&self, relative: &str, flags: OFlags) -> Result<File, Errno> {
        let resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        self.opened(relative, flags, resolve)
    }

    fn opened(&self, relative: &str, flags: OFlags, resolve: ResolveFlags) -> Result<File, Errno> {
        let decoded = paths::path_of(relative);
        let relative = OsStr::from_bytes(&decoded.as_os_str().as_bytes()[1..]);
        let parent = rustix::fs::open(
            &self.path,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let mut tries = 1;
        loop {
            // A pipe that nobody writes to must not hold the thread; a mere look never does.
            let unheld =
                if flags.contains(OFlags::PATH) { OFlags::empty() } else { OFlags::NONBLOCK };
            let flags = flags | OFlags::CLOEXEC | unheld;
            match rustix::fs::openat2(&parent, relative, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) if tries < RESOLVE_TRIES_MAX => tries += 1,
                opened => return opened.map(File::from),
            }
        }
    }

    /// The same, with the error in words.
    fn open_beneath(&self, relative: &str, flags: OFlags) -> Result<File> {
        let path = self.path.join(relative);
        self.beneath(relative, flags).map_err(|e| match e {
            Errno::LOOP | Errno::XDEV => Error::invalid(format!(
                "{} is reached by a symbolic link, and those are not followed",
                path.display()
            )),
            e => file_error(&path, "open", &e.into()),
        })
    }

    /// What stands at a path; none where that is no regular file.
    fn look(&self, relative: &str) -> Result<Option<BlobMeta>> {
        let path = self.path.join(relative);
        let file = self.open_beneath(relative, OFlags::PATH)?;
        let meta = file.metadata().map_err(|e| file_error(&path, "look at", &e))?;
        let key = format!("{}{relative}", self.as_prefix());
        Ok(meta.is_file().then(|| blob_meta(key.trim_start_matches('/'), &meta)))
    }

    /// What stands at a path: a file, or why it is none that can be input.
    fn stands(&self, relative: &str) -> Result<Result<BlobMeta, Odd>, Errno> {
        let file = self.beneath(relative, OFlags::PATH | OFlags::NOFOLLOW)?;
        let meta = file.metadata().map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
        let what = meta.file_type();
        if what.is_file() {
            let key = format!("{}{relative}", self.as_prefix());
            return Ok(Ok(blob_meta(key.trim_start_matches('/'), &meta)));
        }
        if what.is_dir() {
            return Ok(Err(Odd::of("it became a folder while the one that holds it was listed")));
        }
        if !what.is_symlink() {
            return Ok(Err(Odd::of(kind(what))));
        }
        let target = rustix::fs::readlinkat(&file, "", Vec::new())?;
        let target = target.to_string_lossy();
        Ok(Err(match self.resolve_link(relative) {
            Ok(is_folder) => Odd {
                why: format!(
                    "a link ({target}), and links in a folder that a worker offers are not followed"
                ),
                may_lead: is_folder,
            },
            Err(Errno::NOENT) => {
                Odd { why: format!("a link to what is not there ({target})"), may_lead: true }
            }
            // It is not found out what is outside.
            Err(Errno::XDEV) => Odd {
                why: format!("a link that leads out of the folder that is offered ({target})"),
                may_lead: true,
            },
            Err(e) => return Err(e),
        }))
    }

    /// Whether a link refers to a folder, as far as it refers to what lies beneath.
    fn resolve_link(&self, relative: &str) -> Result<bool, Errno> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let file = self.opened(relative, OFlags::PATH, resolve)?;
        let meta = file.metadata().map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
        Ok(meta.is_dir())
    }

    fn read(&self, buffers: &BufferPool, relative: &str, range: Range<u64>) -> Result<Bytes> {
        let path = self.path.join(relative);
        read_opened(buffers, &path, range, || {
            let file = self.open_beneath(relative, OFlags::RDONLY)?;
            let meta = file.metadata().map_err(|e| file_error(&path, "look at", &e))?;
            if !meta.is_file() {
                return Err(Error::invalid(format!("{} is not a regular file", path.display())));
            }
            Ok((file, false))
        })
    }
}

/// What cannot be input.
struct Odd {
    why: String,
    /// Whether it might lead to a folder, in which lies what is meant.
    may_lead: bool,
}

impl Odd {
    fn of(why: &str) -> Self {
        Self { why: why.to_owned(), may_lead: false }
    }
}

/// A walk through the folders in byte order of the paths, from one path on, until a page is full.
struct Walk<'a> {
    folder: &'a Folder,
    pattern: &'a Pattern,
    after: Option<&'a str>,
    page: Page,
    bytes: usize,
    /// The last path that was decided on; that of a folder ends in a slash, by which it is sorted.
    looked: Option<String>,
    full: bool,
    clock: &'a dyn Clock,
    until_ms: u64,
}

impl Walk<'_> {
    fn below(&mut self, folder: &str, depth: usize) -> Result<()> {
        let place = format!("{}{folder}/", self.folder.as_prefix());
        if depth > DEPTH_MAX {
            self.omit(folder, place, &format!("a folder deeper than {DEPTH_MAX} others"));
            return Ok(());
        }
        match self.entries(folder) {
            Ok(entries) => self.each(entries, folder, depth),
            Err(error) => self.omit_failed(folder, place, "list", error),
        }
    }

    fn each(&mut self, entries: Vec<(String, FileType)>, folder: &str, depth: usize) -> Result<()> {
        if entries.len() > ENTRIES_MAX {
            let path = self.folder.path.join(folder);
            return Err(Error::exhausted(format!(
                "{} has more than {ENTRIES_MAX} entries",
                path.display()
            )));
        }
        for (name, what) in entries {
            if self.full {
                return Ok(());
            }
            let relative = if folder.is_empty() { name } else { format!("{folder}/{name}") };
            let path = format!("{}{relative}", self.folder.as_prefix());
            if what == FileType::Directory {
                let passed = self.after.is_some_and(|after| {
                    after == path || after > path.as_str() && !after.starts_with(&path)
                });
                let relative = relative.trim_end_matches('/');
                if !passed && self.pattern.may_match_below(relative) {
                    self.below(relative, depth + 1)?;
                }
            } else if self.after.is_none_or(|after| path.as_str() > after) {
                self.take(&relative, path, what)?;
            }
        }
        Ok(())
    }

    /// Names in the byte order of the paths that they begin, folders with a slash behind. Names are
    /// those of one moment as far as the file system tells.
    fn entries(&self, relative: &str) -> Result<Vec<(String, FileType)>, Errno> {
        let place = if relative.is_empty() { "." } else { relative };
        let opened = self.folder.beneath(place, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let changed = || rustix::fs::fstat(&opened).map(|meta| (meta.st_mtime, meta.st_mtime_nsec));
        let mut reading = 1;
        let mut entries = loop {
            let before = changed()?;
            let entries = self.read_entries(&opened, relative)?;
            if entries.len() > ENTRIES_MAX || before == changed()? || reading == READINGS_MAX {
                break entries;
            }
            reading += 1;
        };
        entries.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        Ok(entries)
    }

    fn read_entries(
        &self,
        opened: &File,
        relative: &str,
    ) -> Result<Vec<(String, FileType)>, Errno> {
        let mut entries = Vec::new();
        for entry in Dir::read_from(opened)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            // Bytes that are no UTF-8 are escaped, as in all keys of files.
            let name = paths::key_of(Path::new(OsStr::from_bytes(name.to_bytes())));
            match self.kind(relative, &name, entry.file_type()) {
                FileType::Directory => entries.push((format!("{name}/"), FileType::Directory)),
                what => entries.push((name, what)),
            }
            if entries.len() > ENTRIES_MAX {
                break;
            }
        }
        Ok(entries)
    }

    /// Some file systems do not say with the name what it stands for. What cannot be looked at is
    /// no folder, and is looked at again.
    fn kind(&self, folder: &str, name: &str, said: FileType) -> FileType {
        if said != FileType::Unknown {
            return said;
        }
        let relative = if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") };
        let meta = self
            .folder
            .beneath(&relative, OFlags::PATH | OFlags::NOFOLLOW)
            .map(|file| file.metadata());
        match meta {
            Ok(Ok(meta)) if meta.is_dir() => FileType::Directory,
            _ => FileType::Unknown,
        }
    }

    /// Takes what is no folder, if it is meant.
    fn take(&mut self, relative: &str, path: String, what: FileType) -> Result<()> {
        let means = self.pattern.matches(relative);
        let may_lead = matches!(what, FileType::Symlink | FileType::Unknown)
            && self.pattern.may_match_below(relative);
        if !means && !may_lead || !self.has_room() {
            return Ok(());
        }
        let meta = match self.folder.stands(relative) {
            Ok(Ok(meta)) if means => meta,
            Ok(Err(odd)) if means || odd.may_lead => {
                self.omit(relative, path, &odd.why);
                return Ok(());
            }
            Ok(_) => return Ok(()),
            Err(error) => return self.omit_failed(relative, path, "look at", error),
        };
        if path.len() > TEXT_BYTES_MAX {
            let why = format!(
                "its path has {} bytes, more than the {TEXT_BYTES_MAX} that are carried",
                path.len()
            );
            self.omit(relative, path, &why);
            return Ok(());
        }
        let range = 0..meta.bytes.min(HEAD_BYTES_MAX as u64);
        let head = self.folder.read(&BufferPool::new(0), relative, range);
        let head = head.map(|bytes| inputs::telling(bytes.to_vec()));
        let said = head.as_ref().map_or_else(|error| error.message.len(), Vec::len);
        self.bytes += path.len() + meta.version.len() + said + FILE_OVERHEAD_BYTES;
        self.looked = Some(path.clone());
        self.page.files.push(LocalFile { path, bytes: meta.bytes, version: meta.version, head });
        Ok(())
    }

    /// Whether the page takes one more; the first one is always taken.
    fn has_room(&mut self) -> bool {
        let late = self.looked.is_some() && self.clock.now_ms() >= self.until_ms;
        self.full |= late || self.bytes >= PAGE_BYTES_MAX;
        !self.full
    }

    /// What cannot be looked at is named; passing trouble is tried again by whoever asked.
    fn omit_failed(
        &mut self,
        relative: &str,
        place: String,
        doing: &str,
        error: Errno,
    ) -> Result<()> {
        let why = failed(&self.folder.path.join(relative), doing, &error.into())?;
        self.omit(relative, place, &why);
        Ok(())
    }

    fn omit(&mut self, relative: &str, place: String, why: &str) {
        if !self.has_room() {
            return;
        }
        let mut path = format!("{}{relative}", self.folder.as_prefix());
        let cut = path.len() > TEXT_BYTES_MAX;
        path.truncate(path.floor_char_boundary(TEXT_BYTES_MAX));
        // A name that is cut may be a dot.
        while !is_normal(path.trim_start_matches('/')) {
            path.pop();
        }
        let mut why: String = why
            .chars()
            .map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c })
            .collect();
        why.truncate(why.floor_char_boundary(WHY_BYTES_MAX));
        self.bytes += path.len() + why.len() + FILE_OVERHEAD_BYTES;
        // A folder that could be listed for the page before is no place to go on behind.
        if self.after.is_none_or(|after| place.as_str() > after) {
            self.looked = Some(place);
        }
        self.page.omitted.push(LocalOmitted { path, why, cut });
    }
}

/// Nothing is ever written to a folder that is offered.
fn only_read<T>() -> Result<T> {
    Err(Error::invalid("the folders that a worker offers as input are only read"))
}

#[async_trait]
impl Blobs for OwnFiles {
    async fn list(&self, _prefix: &str, _limit: usize) -> Result<Vec<BlobMeta>> {
        Err(Error::bug("the folders that a worker offers are listed page by page"))
    }

    async fn survey(&self, _wanted: &Wanted) -> Result<Survey> {
        Err(Error::bug("the folders that a worker offers are listed page by page"))
    }

    async fn head(&self, key: &str) -> Result<BlobMeta> {
        let (folder, relative) = self.resolve(key)?;
        self.files
            .blocking(move || {
                let path = folder.path.join(&relative);
                let found = folder.look(&relative)?;
                found.ok_or_else(|| {
                    Error::invalid(format!("{} is not a regular file", path.display()))
                })
            })
            .await
    }

    async fn read(&self, key: &str, range: Range<u64>, _access: Access) -> Result<Bytes> {
        let (folder, relative) = self.resolve(key)?;
        let buffers = self.buffers.clone();
        self.files.blocking(move || folder.read(&buffers, &relative, range)).await
    }

    async fn put(&self, _key: &str, _bytes: Bytes) -> Result<()> {
        only_read()
    }

    async fn open_upload(&self, _key: &str) -> Result<String> {
        only_read()
    }

    async fn upload_part(
        &self,
        _key: &str,
        _upload: &str,
        _at: PartAt,
        _data: Bytes,
    ) -> Result<String> {
        only_read()
    }

    async fn complete_upload(
        &self,
        _: &str,
        _: &str,
        _: &[String],
        _: u64,
        _: bool,
    ) -> Result<Completed> {
        only_read()
    }

    async fn abort_upload(&self, _key: &str, _upload: &str) -> Result<()> {
        only_read()
    }

    async fn list_uploads(&self, _prefix: &str, _limit: usize) -> Result<Vec<OpenUpload>> {
        Ok(Vec::new())
    }

    async fn delete(&self, _key: &str) -> Result<()> {
        only_read()
    }

    async fn prune(&self, _prefix: &str) -> Result<()> {
        only_read()
    }
}

#[cfg(test)]
#[path = "own_files_tests.rs"]
mod tests;
