//! The folder of a local run: locked, and removed at the end where it is a temporary one.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use muster_protocol::ids::JobId;
use muster_protocol::plan::JobSpec;
use muster_protocol::{Error, Result};

use crate::temporary::Temporary;

/// Prefix of temporary folders.
const PREFIX: &str = "muster-local-";
const LOCK: &str = "lock";
const JOB: &str = "job.json";
/// The name of a job's file until it is whole.
const JOB_NEW: &str = "job.json.new";
/// Inputs of another command's job that an error names.
const INPUTS_SHOWN: usize = 3;

/// A locked folder.
#[derive(Debug)]
pub(crate) enum Folder {
    /// For one run.
    Temporary(Temporary),
    /// The user's, for as many runs as there may be.
    Kept { path: PathBuf, _lock: File },
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
        Err(TryLockError::WouldBlock) => {
            Err(Error::invalid(format!("{} is in use by another run", folder.display())))
        }
        Err(TryLockError::Error(e)) => Err(file_error(&path, "lock", &e)),
    }
}

impl Folder {
    /// Opens the given folder, or a temporary one.
    pub(crate) fn open(data_dir: Option<&Path>) -> Result<Self> {
        let Some(dir) = data_dir else { return Temporary::make(PREFIX).map(Self::Temporary) };
        fs::create_dir_all(dir).map_err(|e| file_error(dir, "make the folder", &e))?;
        let path = dir.canonicalize().map_err(|e| file_error(dir, "open", &e))?;
        Ok(Self::Kept { _lock: lock(&path)?, path })
    }

    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Temporary(temporary) => temporary.path(),
            Self::Kept { path, .. } => path,
        }
    }

    /// Gives the job the id of the run that this folder holds unfinished, if it is the same job;
    /// keeps the job for a later resume, if the folder holds none. To be called before the job is
    /// submitted: a run that is killed right after must find its job again.
    ///
    /// Gives the job of another command, if the folder holds one. Whether that one was ever taken
    /// on, the journal knows.
    pub(crate) fn adopt_job(
        &self,
        spec: &mut JobSpec,
        job_id_given: bool,
    ) -> Result<Option<JobSpec>> {
        let path = self.path().join(JOB);
        match fs::read(&path) {
            Ok(bytes) => {
                let held: JobSpec = serde_json::from_slice(&bytes).map_err(|e| {
                    let path = path.display();
                    Error::invalid(format!(
                        "{path} is not a job that can be resumed: {e}; remove it to give that job \
                            up, or use another --data-dir"
                    ))
                })?;
                let wanted: JobId = if job_id_given { spec.job.clone() } else { held.job.clone() };
                if (JobSpec { job: wanted, ..spec.clone() }) != held {
                    return Ok(Some(held));
                }
                *spec = held;
                Ok(None)
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                self.keep_job(spec).map(|()| None)
            }
            Err(e) => Err(file_error(&path, "read", &e)),
        }
    }

    /// Keeps the job for a later resume, in place of whatever the folder holds.
    pub(crate) fn keep_job(&self, spec: &JobSpec) -> Result<()> {
        let (path, new) = (self.path().join(JOB), self.path().join(JOB_NEW));
        let bytes = serde_json::to_vec(spec)
            .map_err(|e| Error::bug(format!("cannot encode a job: {e}")))?;
        fs::write(&new, bytes)
            .and_then(|()| fs::rename(&new, &path))
            .map_err(|e| file_error(&path, "write", &e))
    }

    /// That the folder holds an unfinished job which is not the one at hand.
    pub(crate) fn held_by_another(&self, held: &JobSpec) -> Error {
        let (dir, job) = (self.path().display(), &held.job);
        let inputs =
            held.inputs.iter().take(INPUTS_SHOWN).map(String::as_str).collect::<Vec<_>>().join(" ");
        let more = if held.inputs.len() > INPUTS_SHOWN { " ..." } else { "" };
        Error::invalid(format!(
            "{dir} holds the unfinished job {job} of another command: muster sort {inputs}{more} \
                -o {}; repeat that one with all its options to finish it, \
             or give this one another --data-dir (removing {dir} gives the unfinished job up)",
            held.output
        ))
    }

    /// The job has ended: the next command with this folder is a new one.
    pub(crate) fn forget_job(&self) -> Result<()> {
        let path = self.path().join(JOB);
        fs::remove_file(&path).map_err(|e| file_error(&path, "remove", &e))
    }

    /// Removes a temporary folder.
    pub(crate) fn close(self) {
        if let Self::Temporary(temporary) = self {
            temporary.close();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_kernel::format::Format;
    use muster_kernel::spec::SortSpec;
    use muster_protocol::plan::{BadInputs, BadRecords, Sizing};

    fn spec(job: &str, output: &str) -> JobSpec {
        JobSpec {
            job: job.parse().expect("id"),
            inputs: vec!["/in".to_owned()],
            output: output.to_owned(),
            bucket: None,
            sort: SortSpec::new(Format::lines(b'\n')),
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
        assert_eq!(folder.adopt_job(&mut again, false).expect("same"), None);
        assert_eq!(again.job.as_str(), "first");
        let mut other = spec("third", "/elsewhere");
        let held = folder.adopt_job(&mut other, false).expect("read").expect("another job");
        assert_eq!((held.job.as_str(), other.job.as_str()), ("first", "third"));
        let refused = folder.held_by_another(&held).message;
        assert!(
            refused.contains("job first") && refused.contains("muster sort /in -o /out;"),
            "{refused}"
        );
        assert!(
            folder.adopt_job(&mut spec("third", "/out"), true).expect("read").is_some(),
            "another id was asked for"
        );
        folder.keep_job(&other).expect("instead");
        assert_eq!(folder.adopt_job(&mut spec("fourth", "/elsewhere"), false).expect("same"), None);
        folder.forget_job().expect("forget");
        folder.adopt_job(&mut spec("third", "/elsewhere"), false).expect("new");
    }
}
