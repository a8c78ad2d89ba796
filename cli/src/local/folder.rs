//! The folder of a local run: locked, and removed at the end where it is a temporary one.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use muster_common::ids::JobId;
use muster_common::plan::JobSpec;
use muster_common::{Error, Result};

/// Prefix of temporary folders; one that nobody holds the lock of belonged to a run that was killed.
const PREFIX: &str = "muster-local-";
const LOCK: &str = "lock";
const JOB: &str = "job.json";

/// A locked folder.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    temporary: Option<tempfile::TempDir>,
    _lock: File,
}

fn file_error(path: &Path, doing: &str, error: &std::io::Error) -> Error {
    Error::invalid(format!("cannot {doing} {}: {error}", path.display()))
}

fn lock(folder: &Path) -> Result<File> {
    let path = folder.join(LOCK);
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|e| file_error(&path, "open", &e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::invalid(format!("{} is in use by another run", folder.display()))),
        Err(TryLockError::Error(e)) => Err(file_error(&path, "lock", &e)),
    }
}

impl Folder {
    /// Opens the given folder, or a temporary one.
    pub(crate) fn open(data_dir: Option<&Path>) -> Result<Self> {
        let Some(dir) = data_dir else {
            remove_abandoned(&std::env::temp_dir());
            let made = tempfile::Builder::new().prefix(PREFIX).tempdir();
            let temporary = made.map_err(|e| file_error(&std::env::temp_dir(), "make a temporary folder in", &e))?;
            let path = temporary.path().to_owned();
            return Ok(Self { _lock: lock(&path)?, path, temporary: Some(temporary) });
        };
        fs::create_dir_all(dir).map_err(|e| file_error(dir, "make the folder", &e))?;
        let path = dir.canonicalize().map_err(|e| file_error(dir, "open", &e))?;
        Ok(Self { _lock: lock(&path)?, path, temporary: None })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the job the id of the run that this folder holds unfinished, if it is the same job; else keeps the job for a later resume.
    pub(crate) fn adopt_job(&self, spec: &mut JobSpec, job_id_given: bool) -> Result<()> {
        let path = self.path.join(JOB);
        match fs::read(&path) {
            Ok(bytes) => {
                let held: JobSpec = serde_json::from_slice(&bytes)
                    .map_err(|e| Error::invalid(format!("{} is not a job that can be resumed: {e}", path.display())))?;
                let wanted: JobId = if job_id_given { spec.job.clone() } else { held.job.clone() };
                if (JobSpec { job: wanted, ..spec.clone() }) != held {
                    let dir = self.path.display();
                    let why = format!(
                        "{dir} holds job {} of another command, unfinished; repeat that one or remove the folder",
                        held.job
                    );
                    return Err(Error::invalid(why));
                }
                *spec = held;
                Ok(())
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let bytes = serde_json::to_vec(spec).map_err(|e| Error::bug(format!("cannot encode a job: {e}")))?;
                let temporary = self.path.join("job.json.new");
                fs::write(&temporary, bytes)
                    .and_then(|()| fs::rename(&temporary, &path))
                    .map_err(|e| file_error(&path, "write", &e))
            }
            Err(e) => Err(file_error(&path, "read", &e)),
        }
    }

    /// The job has ended: the next command with this folder is a new one.
    pub(crate) fn forget_job(&self) -> Result<()> {
        let path = self.path.join(JOB);
        fs::remove_file(&path).map_err(|e| file_error(&path, "remove", &e))
    }

    /// Removes a temporary folder.
    pub(crate) fn close(self) {
        if let Some(temporary) = self.temporary
            && let Err(error) = temporary.close()
        {
            tracing::warn!(%error, "cannot remove a temporary folder");
        }
    }
}

/// Removes the temporary folders of runs that were killed. Only folders that carry our lock file, which nobody holds, count.
fn remove_abandoned(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX));
        if !ours || !path.join(LOCK).is_file() {
            continue;
        }
        let Ok(file) = File::options().write(true).open(path.join(LOCK)) else { continue };
        if file.try_lock().is_ok()
            && let Err(error) = fs::remove_dir_all(&path)
        {
            tracing::warn!(%error, folder = %path.display(), "cannot remove the folder of a run that was killed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_common::plan::{BadInputs, BadRecords, Sizing};
    use muster_kernel::record::Format;
    use muster_kernel::spec::SortSpec;

    fn spec(job: &str, output: &str) -> JobSpec {
        JobSpec {
            job: job.parse().expect("id"),
            inputs: vec!["/in".to_owned()],
            output: output.to_owned(),
            bucket: None,
            sort: SortSpec::new(Format::Lines { terminator: b'\n' }),
            auto_format: false,
            extension: "txt".to_owned(),
            overwrite: false,
            fsync: false,
            sizing: Sizing::default(),
            replica: None,
            bad_records: BadRecords::Fail,
            bad_inputs: BadInputs::Fail,
            settings: None,
        }
    }

    #[test]
    fn the_same_command_resumes_and_another_is_refused() {
        let dir = tempfile::tempdir().expect("dir");
        let folder = Folder::open(Some(dir.path())).expect("folder");
        assert!(Folder::open(Some(dir.path())).is_err(), "the lock is held");
        folder.adopt_job(&mut spec("first", "/out"), false).expect("new");
        let mut again = spec("second", "/out");
        folder.adopt_job(&mut again, false).expect("same");
        assert_eq!(again.job.as_str(), "first");
        assert!(folder.adopt_job(&mut spec("third", "/elsewhere"), false).is_err());
        assert!(folder.adopt_job(&mut spec("third", "/out"), true).is_err(), "another id was asked for");
        folder.forget_job().expect("forget");
        folder.adopt_job(&mut spec("third", "/elsewhere"), false).expect("new");
    }

    #[test]
    fn folders_of_killed_runs_are_removed() {
        let parent = tempfile::tempdir().expect("dir");
        let abandoned = parent.path().join(format!("{PREFIX}a"));
        let (held, foreign) = (parent.path().join(format!("{PREFIX}b")), parent.path().join("other"));
        for path in [&abandoned, &held, &foreign] {
            fs::create_dir(path).expect("dir");
            fs::write(path.join(LOCK), "").expect("file");
        }
        let _held = lock(&held).expect("lock");
        remove_abandoned(parent.path());
        assert_eq!([abandoned.exists(), held.exists(), foreign.exists()], [false, true, true]);
    }
}
