//! The file system as an object store.
//!
//! A multipart upload is a hidden temporary file beside its target, `.NAME.<16 hex digits>.upload`,
//! and that name is its id: completing renames it, aborting removes it, so what was aborted cannot
//! be completed. Runs and parts are written and read with direct I/O where alignment allows,
//! because page cache for data that is read once costs more than the disk (fresh pages: 2.5 s of
//! kernel time for a GB, against 0.25 s direct, measured on a virtual machine); what direct I/O
//! cannot take goes through the cache.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use tokio::sync::Semaphore;

use super::changes::{Changes, Witness};
use super::folders::{self, Interest};
use crate::buffer::{ALIGN, Buffer, BufferPool, is_aligned};
use crate::paths::{key_of, path_of};
use crate::store::{Access, BlobMeta, Blobs, Completed, OpenUpload, PartAt};
use crate::survey::{Survey, Wanted};
use muster_protocol::error::{Error, ErrorKind, Result};

/// Reads below this size go through the page cache even where they are read once.
const DIRECT_BYTES_MIN: u64 = 256 * 1024;
/// File calls that run at once; disks gain nothing from more.
const CALLS_AT_ONCE: usize = 8;
/// Files that a search for uploads looks at, at most.
const OBJECTS_WALKED_MAX: usize = 10_000_000;
/// Deepest nesting of folders that a listing follows.
pub(super) const DEPTH_MAX: usize = 64;

/// All files of this machine, by absolute path. Keys lack the leading slash.
#[derive(Debug, Clone)]
pub struct LocalBlobs {
    buffers: BufferPool,
    /// Bounds the threads that file work takes: each has memory of its own, and a merge asks for a
    /// hundred ranges at once.
    turns: Arc<Semaphore>,
    /// What the temporary names of uploads begin with.
    mark: Option<u32>,
    changes: Changes,
}

impl LocalBlobs {
    /// A store whose reads come in buffers of this pool.
    pub fn new(buffers: BufferPool) -> Self {
        Self {
            buffers,
            turns: Arc::new(Semaphore::new(CALLS_AT_ONCE)),
            mark: None,
            changes: Changes::default(),
        }
    }

    /// The same, whose uploads bear a mark, so that they can be told from those of other processes.
    #[must_use]
    pub fn marked(self, mark: Option<u32>) -> Self {
        Self { mark, ..self }
    }

    /// The same, with a witness of every change that is made.
    pub fn seen_by(buffers: BufferPool, witness: Arc<dyn Witness>) -> Self {
        Self { changes: Changes::seen_by(witness), ..Self::new(buffers) }
    }
}

impl LocalBlobs {
    /// Runs file work off the async threads, a bounded number of calls at once.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let turn = self.turns.clone().acquire_owned().await;
        let turn = turn.map_err(|e| Error::bug(format!("file work is no longer taken: {e}")))?;
        // The turn goes with the work, not with the caller, who may be gone before the work ends.
        let done = tokio::task::spawn_blocking(move || {
            let done = work();
            drop(turn);
            done
        });
        done.await.map_err(|e| Error::bug(format!("file work did not end: {e}")))?
    }
}

/// Names the path and sorts the error by what can be done about it.
pub(super) fn file_error(path: &Path, doing: &str, error: &io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::NotFound => ErrorKind::NotFound,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            ErrorKind::Exhausted
        }
        io::ErrorKind::PermissionDenied
        | io::ErrorKind::ReadOnlyFilesystem
        | io::ErrorKind::NotADirectory
        | io::ErrorKind::IsADirectory
        | io::ErrorKind::InvalidInput
        | io::ErrorKind::InvalidFilename => ErrorKind::Invalid,
        // No wait undoes a chain of links that never ends, or makes a socket a file.
        _ if is_one_of(
            error,
            &[Errno::LOOP, Errno::NAMETOOLONG, Errno::NXIO, Errno::NODEV, Errno::OVERFLOW],
        ) =>
        {
            ErrorKind::Invalid
        }
        _ => ErrorKind::Retry,
    };
    Error::new(kind, format!("cannot {doing} {}: {error}", path.display()))
}

fn is_one_of(error: &io::Error, known: &[Errno]) -> bool {
    known.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

fn version_of(meta: &fs::Metadata) -> String {
    format!("{}.{:09}-{}-{}", meta.mtime(), meta.mtime_nsec(), meta.size(), meta.ino())
}

pub(super) fn blob_meta(key: &str, meta: &fs::Metadata) -> BlobMeta {
    let modified_ms =
        meta.mtime().saturating_mul(1000).saturating_add(meta.mtime_nsec() / 1_000_000);
    BlobMeta {
        key: key.to_owned(),
        bytes: meta.size(),
        version: version_of(meta),
        modified_unix_ms: u64::try_from(modified_ms).unwrap_or(0),
    }
}

fn meta_of(key: &str, path: &Path) -> Result<BlobMeta> {
    let meta = fs::metadata(path).map_err(|e| file_error(path, "look at", &e))?;
    if !meta.is_file() {
        if meta.is_dir() {
            return Err(Error::new(ErrorKind::NotFound, format!("{} is a folder", path.display())));
        }
        let what = folders::kind(meta.file_type());
        return Err(Error::invalid(format!(
            "{} is {what}, not a file that can be read from any place",
            path.display()
        )));
    }
    Ok(blob_meta(key, &meta))
}

fn walk(folder: &Path, depth: usize, limit: usize, found: &mut Vec<BlobMeta>) -> Result<()> {
    if depth > DEPTH_MAX {
        return Err(Error::exhausted(format!(
            "{} is nested deeper than {DEPTH_MAX} folders",
            folder.display()
        )));
    }
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e)
            if e.kind() == io::ErrorKind::NotFound || e.kind() == io::ErrorKind::NotADirectory =>
        {
            return Ok(());
        }
        Err(e) => return Err(file_error(folder, "list", &e)),
    };
    for entry in entries {
        let path = entry.map_err(|e| file_error(folder, "list", &e))?.path();
        // A link is what lies there; what it leads to is not.
        let meta = match fs::symlink_metadata(&path) {
            Ok(meta) => meta,
            // It went away between the listing and the look.
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(file_error(&path, "look at", &e)),
        };
        if meta.is_dir() {
            walk(&path, depth + 1, limit, found)?;
            continue;
        }
        found.push(blob_meta(&key_of(&path), &meta));
        if found.len() > limit {
            return Err(Error::exhausted(format!(
                "more than {limit} objects lie below {}",
                folder.display()
            )));
        }
    }
    Ok(())
}

/// The upload that a temporary file stands for, if its name is one that [`new_upload_name`] makes.
fn upload_of(key: &str) -> Option<OpenUpload> {
    let (folder, file) = key.rsplit_once('/').unwrap_or(("", key));
    let (name, hex) = file.strip_prefix('.')?.strip_suffix(".upload")?.rsplit_once('.')?;
    let target = if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") };
    is_nonce(hex).then(|| OpenUpload { key: target, upload: file.to_owned() })
}

fn is_nonce(hex: &str) -> bool {
    hex.len() == 16 && hex.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The uploads to a file itself, and all below it where it is a folder.
fn find_uploads(prefix: &str, limit: usize) -> Result<Vec<OpenUpload>> {
    let target = path_of(prefix);
    let mut found = Vec::new();
    walk(&target, 0, OBJECTS_WALKED_MAX, &mut found)?;
    let mut uploads: Vec<OpenUpload> =
        found.iter().filter_map(|meta| upload_of(&meta.key)).collect();
    let beside = target
        .parent()
        .and_then(|folder| fs::read_dir(folder).ok())
        .into_iter()
        .flatten()
        .flatten();
    let keys = beside.map(|entry| key_of(&entry.path()));
    uploads.extend(keys.filter_map(|key| upload_of(&key)).filter(|open| open.key == prefix));
    uploads.sort();
    if uploads.len() > limit {
        return Err(Error::exhausted(format!(
            "more than {limit} uploads are open below {}",
            target.display()
        )));
    }
    Ok(uploads)
}

/// The temporary file of an upload. The id comes from outside, so it must be one that
/// [`LocalBlobs::open_upload`] could have made for this very key.
fn upload_path(key: &str, upload: &str) -> Result<PathBuf> {
    let target = path_of(key);
    let name = target.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let hex = upload
        .strip_prefix('.')
        .and_then(|rest| rest.strip_prefix(name))
        .and_then(|rest| rest.strip_prefix('.'))
        .and_then(|rest| rest.strip_suffix(".upload"));
    if !hex.is_some_and(is_nonce) || name.is_empty() {
        return Err(Error::invalid(format!("{upload:?} is not an upload of {}", target.display())));
    }
    Ok(target.with_file_name(upload))
}

fn open_with(path: &Path, flags: OFlags) -> Result<File, Errno> {
    Ok(File::from(rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())?))
}

/// Whether a file system says that it does not do direct I/O, when a file is opened or not before
/// it is used (FUSE and network file systems do that).
fn refuses_direct(error: Errno) -> bool {
    matches!(error, Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS)
}

/// Opens past the page cache where asked and possible.
fn open_for(
    path: &Path,
    direct: bool,
    doing: &str,
    open: impl Fn(OFlags) -> Result<File, Errno>,
) -> Result<(File, bool)> {
    if direct {
        match open(OFlags::DIRECT) {
            Ok(file) => return Ok((file, true)),
            Err(e) if refuses_direct(e) => {}
            Err(e) => return Err(file_error(path, doing, &e.into())),
        }
    }
    let file = open(OFlags::empty()).map_err(|e| file_error(path, doing, &e.into()))?;
    Ok((file, false))
}

/// From here on through the page cache: what follows is no multiple of the alignment, or direct I/O
/// was refused.
fn use_cache(path: &Path, file: &File, doing: &str) -> Result<()> {
    let flags = rustix::fs::fcntl_getfl(file);
    let cleared = flags.and_then(|flags| rustix::fs::fcntl_setfl(file, flags - OFlags::DIRECT));
    cleared.map_err(|e| file_error(path, doing, &e.into()))
}

/// Writes all of `bytes`; past the page cache at first where the file was opened so.
fn write_at(
    path: &Path,
    file: &File,
    mut direct: bool,
    mut bytes: &[u8],
    mut offset: u64,
) -> Result<()> {
    while !bytes.is_empty() {
        let head = if direct { bytes.len() / ALIGN * ALIGN } else { bytes.len() };
        let written = if head == 0 {
            Err(Errno::INVAL)
        } else {
            rustix::io::pwrite(file, &bytes[..head], offset)
        };
        match written {
            Ok(0) => return Err(Error::retry(format!("{} takes no more bytes", path.display()))),
            Ok(n) => {
                bytes = &bytes[n..];
                offset += n as u64;
            }
            Err(Errno::INTR) => {}
            Err(e) if direct && refuses_direct(e) => {
                use_cache(path, file, "write")?;
                direct = false;
            }
            Err(e) => return Err(file_error(path, "write", &e.into())),
        }
    }
    Ok(())
}

fn write_part(changes: &Changes, path: &Path, at: PartAt, data: &[u8]) -> Result<()> {
    let direct = is_aligned(data) && at.offset.is_multiple_of(ALIGN as u64) && data.len() >= ALIGN;
    let (file, direct) = open_for(path, direct, "write", |flags| changes.open(path, flags))?;
    write_at(path, &file, direct, data, at.offset)
}

/// Reads until `buffer` holds `wanted` bytes or the file ends; past the page cache at first where
/// the file was opened so.
fn read_at(
    path: &Path,
    file: &File,
    mut direct: bool,
    buffer: &mut Buffer,
    wanted: usize,
    offset: u64,
) -> Result<()> {
    while buffer.len() < wanted {
        let (filled, at) = (buffer.len(), offset + buffer.len() as u64);
        let read = {
            let vec = buffer.vec_mut();
            let held = vec.len();
            // Never more than is wanted: direct I/O takes multiples of the alignment only.
            let spare = &mut vec.spare_capacity_mut()[..wanted - filled];
            let read = rustix::io::pread(file, spare, at).map(|(read, _)| read.len());
            // SAFETY: `pread` has initialised that many bytes at the front of the spare capacity.
            unsafe { vec.set_len(held + read.unwrap_or(0)) };
            read
        };
        match read {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(Errno::INTR) => {}
            // It is refused, or has stopped short of the end of an unaligned file and cannot go on
            // from there.
            Err(e) if direct && refuses_direct(e) => {
                use_cache(path, file, "read")?;
                direct = false;
            }
            Err(e) => return Err(file_error(path, "read", &e.into())),
        }
    }
    Ok(())
}

fn read_range(
    buffers: &BufferPool,
    path: &Path,
    range: Range<u64>,
    access: Access,
) -> Result<Bytes> {
    let bytes = range.end.saturating_sub(range.start);
    let direct = access == Access::Once && bytes >= DIRECT_BYTES_MIN;
    read_opened(buffers, path, range, || {
        open_for(path, direct, "read", |flags| open_with(path, OFlags::RDONLY | flags))
    })
}

/// Reads exactly a range of the file that `open` gives, which also says whether it is read past the
/// page cache.
pub(super) fn read_opened(
    buffers: &BufferPool,
    path: &Path,
    range: Range<u64>,
    open: impl FnOnce() -> Result<(File, bool)>,
) -> Result<Bytes> {
    let bytes = range.end.saturating_sub(range.start);
    if bytes == 0 {
        return Ok(Bytes::new());
    }
    let (file, direct) = open()?;
    let align = ALIGN as u64;
    let first = if direct { range.start / align * align } else { range.start };
    let wanted = if direct { (range.end - first).next_multiple_of(align) } else { bytes };
    let capacity =
        usize::try_from(wanted).map_err(|_| Error::bug(format!("a read of {wanted} bytes")))?;
    let mut buffer = buffers.try_take(capacity)?;
    read_at(path, &file, direct, &mut buffer, capacity, first)?;
    let skip = usize::try_from(range.start - first).unwrap_or(usize::MAX);
    let end = skip.saturating_add(usize::try_from(bytes).unwrap_or(usize::MAX));
    if buffer.len() < end {
        let seen = first + buffer.len() as u64;
        return Err(Error::corrupt(format!(
            "{} ends at {seen}, but bytes up to {} were asked for",
            path.display(),
            range.end
        )));
    }
    Ok(Bytes::from_owner(buffer).slice(skip..end))
}

fn sync_with_folder(path: &Path) -> Result<()> {
    let synced = |path: &Path| {
        File::open(path).and_then(|file| file.sync_all()).map_err(|e| file_error(path, "sync", &e))
    };
    synced(path)?;
    path.parent().map_or(Ok(()), synced)
}

fn complete(
    changes: &Changes,
    key: &str,
    upload: &str,
    bytes: u64,
    sync: bool,
) -> Result<Completed> {
    let (temporary, target) = (upload_path(key, upload)?, path_of(key));
    match Changes::look(&temporary) {
        Ok(stat) if u64::try_from(stat.st_size) == Ok(bytes) => {}
        Ok(stat) => {
            let why = format!(
                "the upload of {} has {} bytes, not {bytes}",
                target.display(),
                stat.st_size
            );
            return Err(Error::corrupt(why));
        }
        // The answer to an earlier completion may have been lost. A file does not tell of which
        // upload it was made: inodes are used again.
        Err(e)
            if e.kind() == io::ErrorKind::NotFound
                && meta_of(key, &target).is_ok_and(|meta| meta.bytes == bytes) =>
        {
            return Ok(Completed::Unsure);
        }
        Err(e) => return Err(file_error(&temporary, "complete the upload", &e)),
    }
    if sync {
        sync_with_folder(&temporary)?;
    }
    changes.rename(&temporary, &target)?;
    if sync {
        sync_with_folder(&target)?;
    }
    Ok(Completed::Now)
}

fn put_whole(changes: &Changes, key: &str, bytes: &[u8], mark: Option<u32>) -> Result<()> {
    let target = path_of(key);
    let temporary = target.with_file_name(new_upload_name(&target, mark));
    let file = changes.create(&temporary)?;
    let written = write_at(&temporary, &file, false, bytes, 0)
        .and_then(|()| changes.rename(&temporary, &target));
    if written.is_err() {
        // The write's own error is what counts; a leftover temporary is hidden and named like an
        // upload.
        drop(changes.remove(&temporary));
    }
    written
}

fn new_upload_name(target: &Path, mark: Option<u32>) -> String {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    #[expect(
        clippy::disallowed_methods,
        reason = "an adapter's temporary names need no seed: nothing depends on them"
    )]
    let nonce: u64 = rand::random();
    let nonce = mark.map_or(nonce, |mark| u64::from(mark) << 32 | nonce & u64::from(u32::MAX));
    format!(".{name}.{nonce:016x}.upload")
}

#[async_trait]
impl Blobs for LocalBlobs {
    async fn list(&self, prefix: &str, limit: usize) -> Result<Vec<BlobMeta>> {
        let folder = path_of(prefix);
        self.blocking(move || {
            let mut found = Vec::new();
            walk(&folder, 0, limit, &mut found)?;
            found.sort_unstable_by(|a, b| a.key.cmp(&b.key));
            Ok(found)
        })
        .await
    }

    async fn survey(&self, wanted: &Wanted) -> Result<Survey> {
        let (interest, gone) = Interest::new();
        let wanted = wanted.clone();
        let surveyed = self.blocking(move || folders::survey(&wanted, &gone)).await;
        drop(interest);
        surveyed
    }

    async fn head(&self, key: &str) -> Result<BlobMeta> {
        let key = key.to_owned();
        self.blocking(move || meta_of(&key, &path_of(&key))).await
    }

    async fn read(&self, key: &str, range: Range<u64>, access: Access) -> Result<Bytes> {
        let (path, buffers) = (path_of(key), self.buffers.clone());
        self.blocking(move || read_range(&buffers, &path, range, access)).await
    }

    async fn put(&self, key: &str, bytes: Bytes) -> Result<()> {
        let (key, mark, changes) = (key.to_owned(), self.mark, self.changes.clone());
        self.blocking(move || put_whole(&changes, &key, &bytes, mark)).await
    }

    async fn open_upload(&self, key: &str) -> Result<String> {
        let (target, mark, changes) = (path_of(key), self.mark, self.changes.clone());
        self.blocking(move || {
            let name = new_upload_name(&target, mark);
            changes.create(&target.with_file_name(&name))?;
            Ok(name)
        })
        .await
    }

    async fn upload_part(
        &self,
        key: &str,
        upload: &str,
        at: PartAt,
        data: Bytes,
    ) -> Result<String> {
        let (path, changes) = (upload_path(key, upload)?, self.changes.clone());
        self.blocking(move || write_part(&changes, &path, at, &data).map(|()| at.index.to_string()))
            .await
    }

    async fn complete_upload(
        &self,
        key: &str,
        upload: &str,
        _tags: &[String],
        bytes: u64,
        sync: bool,
    ) -> Result<Completed> {
        let (key, upload, changes) = (key.to_owned(), upload.to_owned(), self.changes.clone());
        self.blocking(move || complete(&changes, &key, &upload, bytes, sync)).await
    }

    async fn abort_upload(&self, key: &str, upload: &str) -> Result<()> {
        let (path, changes) = (upload_path(key, upload)?, self.changes.clone());
        self.blocking(move || changes.remove(&path)).await
    }

    async fn list_uploads(&self, prefix: &str, limit: usize) -> Result<Vec<OpenUpload>> {
        let prefix = prefix.trim_matches('/').to_owned();
        self.blocking(move || find_uploads(&prefix, limit)).await
    }

    async fn delete(&self, key: &str) -> Result<()> {
        let (path, changes) = (path_of(key), self.changes.clone());
        self.blocking(move || changes.remove(&path)).await
    }

    async fn prune(&self, prefix: &str) -> Result<()> {
        let (folder, changes) = (path_of(prefix), self.changes.clone());
        self.blocking(move || changes.prune(&folder, 0)).await
    }

    async fn check_place(&self, key: &str) -> Result<()> {
        let path = path_of(key);
        self.blocking(move || Changes::check_place(&path)).await
    }

    async fn remove_folder(&self, key: &str) -> Result<()> {
        let (folder, changes) = (path_of(key), self.changes.clone());
        self.blocking(move || changes.remove_folder(&folder).map(drop)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, LocalBlobs, String) {
        let dir = tempfile::tempdir().expect("temp dir");
        let root = dir.path().to_str().expect("utf-8").trim_start_matches('/').to_owned();
        (dir, LocalBlobs::new(BufferPool::new(1 << 20)), root)
    }

    #[tokio::test]
    async fn passes_the_suite() {
        let (_dir, store, root) = store();
        crate::conformance::blobs(&store, &root).await;
    }

    #[tokio::test]
    async fn what_is_no_file_is_named() {
        let (_dir, store, root) = store();
        let pipe = path_of(&format!("{root}/pipe"));
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, Mode::RUSR, 0)
            .expect("pipe");
        let odd = [
            (format!("{root}/pipe"), "is a pipe, not a file"),
            ("dev/null".to_owned(), "is a device, not a file"),
        ];
        for (key, words) in odd {
            let error = store.head(&key).await.expect_err(&key);
            assert!(error.kind == ErrorKind::Invalid && error.message.contains(words), "{error}");
        }
        assert_eq!(store.head(&root).await.expect_err("a folder").kind, ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn reads_directly_what_was_written_directly() {
        let (_dir, store, root) = store();
        let key = format!("{root}/big");
        let pool = BufferPool::new(0);
        let data: Vec<u8> = (0..3_000_001_u32).map(|n| (n % 251) as u8).collect();
        let upload = store.open_upload(&key).await.expect("open");
        let cut = 2 * 1024 * 1024;
        for (index, bytes) in [&data[..cut], &data[cut..]].into_iter().enumerate() {
            let mut buffer = pool.take(bytes.len());
            buffer.vec_mut().extend_from_slice(bytes);
            let at = PartAt { index: index as u32, offset: (index * cut) as u64 };
            store.upload_part(&key, &upload, at, buffer.into()).await.expect("part");
        }
        store.complete_upload(&key, &upload, &[], data.len() as u64, true).await.expect("complete");
        for range in [0..3_000_001_u64, 5..2_999_999, 4096..1_000_000, 2_900_000..3_000_001, 7..8] {
            let expected = &data[range.start as usize..range.end as usize];
            assert_eq!(
                store.read(&key, range.clone(), Access::Once).await.expect("read"),
                expected,
                "{range:?}"
            );
        }
        let beyond =
            store.read(&key, 0..3_000_002, Access::Once).await.expect_err("beyond the end");
        assert_eq!(beyond.kind, ErrorKind::Corrupt);
    }

    /// What an application sees of a file system that takes O_DIRECT and refuses the first call:
    /// here a place in the file that no device takes past the page cache.
    #[test]
    fn direct_io_that_is_refused_at_the_first_call_goes_through_the_cache() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("file");
        let pool = BufferPool::new(0);
        let data: Vec<u8> = (0..300_001_u32).map(|n| (n % 251) as u8).collect();
        fs::write(&path, [0; 3]).expect("write");
        let open = |flags| open_with(&path, flags | OFlags::DIRECT).expect("opens for direct I/O");
        write_at(&path, &open(OFlags::WRONLY), true, &data, 3).expect("written all the same");
        assert_eq!(fs::read(&path).expect("read")[3..], data);
        let mut buffer = pool.take(data.len());
        read_at(&path, &open(OFlags::RDONLY), true, &mut buffer, data.len(), 3)
            .expect("read all the same");
        assert_eq!(&*buffer, data);
        // Any other trouble is none that the cache helps with.
        for (error, refuses) in [
            (Errno::INVAL, true),
            (Errno::OPNOTSUPP, true),
            (Errno::IO, false),
            (Errno::NOSPC, false),
        ] {
            assert_eq!(refuses_direct(error), refuses, "{error}");
        }
    }

    #[tokio::test]
    async fn foreign_upload_ids_are_refused() {
        let (_dir, store, root) = store();
        for id in
            ["../x", "victim", ".a.0123456789abcdef.upload/..", ".b.0123456789abcdef.upload", ""]
        {
            let error = store.abort_upload(&format!("{root}/a"), id).await.expect_err(id);
            assert_eq!(error.kind, ErrorKind::Invalid, "{id}");
        }
    }
}
