//! The jobs of the chaos: several kinds of data and options, small, in many tasks, each with the
//! result that a plain computation and a calm run gave.

use std::path::PathBuf;

use super::stage::Stage;
use crate::harness::data::{Keys, log_lines, records, table, words};
use crate::harness::{Output, Sandbox, oracle};

/// Where a job's input, output and scratch lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In the bucket.
    Bucket,
    /// In a folder that all processes see.
    Folder,
}

/// One kind of job.
#[derive(Debug)]
pub struct Case {
    /// What it is called, in names of files and in messages.
    pub name: &'static str,
    /// Where its data lies.
    pub place: Place,
    options: &'static [&'static str],
    settings: PathBuf,
    /// The right bytes, by a computation that shares no code with muster.
    pub sorted: Vec<u8>,
    /// Names and bytes of the parts of a calm run; none before there was one.
    pub calm: Option<Vec<(String, Vec<u8>)>>,
}

const FIXED: &[&str] = &["--format", "fixed:100", "-k", "0:10"];

impl Case {
    /// All kinds, with their inputs in place.
    pub fn all(sandbox: &Sandbox, stage: &Stage<'_>) -> Vec<Case> {
        let make = |name: &'static str,
                    place,
                    options: &'static [&'static str],
                    data: Vec<u8>,
                    task_bytes: usize| {
            let local = sandbox.file(format!("in/{name}"), &data);
            if place == Place::Bucket {
                stage.bucket.put(&format!("in/{name}"), &data);
            }
            let settings = sandbox.file(
                format!("{name}.toml"),
                format!("[job]\nsplit_bytes = {task_bytes}\npartition_bytes = {task_bytes}\n"),
            );
            let sorted = if options == FIXED {
                oracle::fixed(&data, 100, 0, 10)
            } else {
                oracle::gnu_sort(options, &[&local])
            };
            Case { name, place, options, settings, sorted, calm: None }
        };
        vec![
            make("random", Place::Bucket, FIXED, records(30_000, Keys::Random, 1), 200_000),
            make("skewed", Place::Bucket, FIXED, records(20_000, Keys::Skewed, 2), 150_000),
            make("by-host", Place::Bucket, &["-s", "-k2,2"], log_lines(40_000, 3), 300_000),
            make("unique", Place::Bucket, &["-u"], words(400_000, 4), 250_000),
            make(
                "numbers",
                Place::Bucket,
                &["-t,", "-k3,3n", "-k1,1nr"],
                table(150_000, ',', 5),
                150_000,
            ),
            make("equal", Place::Folder, FIXED, records(50_000, Keys::Equal, 6), 250_000),
            make("reverse", Place::Folder, &["-r"], log_lines(60_000, 7), 300_000),
        ]
    }

    /// One of 100-byte records in a folder, with input bytes of a sort task and output bytes of a
    /// partition.
    pub fn new(sandbox: &Sandbox, data: &[u8], split_bytes: usize, partition_bytes: usize) -> Self {
        sandbox.file("in/records", data);
        let settings =
            format!("[job]\nsplit_bytes = {split_bytes}\npartition_bytes = {partition_bytes}\n");
        Case {
            name: "records",
            place: Place::Folder,
            options: FIXED,
            settings: sandbox.file("records.toml", settings),
            sorted: oracle::fixed(data, 100, 0, 10),
            calm: None,
        }
    }

    /// Arguments of `muster` that submit it.
    pub fn arguments(&self, stage: &Stage<'_>, job: &str) -> Vec<String> {
        let (input, output) = (format!("in/{}", self.name), format!("out/{job}"));
        let mut arguments: Vec<String> =
            ["sort", "--detach", "--json", "--job-id", job].map(str::to_owned).into();
        match self.place {
            Place::Bucket => {
                arguments.extend([
                    stage.bucket.url(&input),
                    "-o".into(),
                    stage.bucket.url(&output),
                ]);
            }
            Place::Folder => {
                arguments.extend([stage.path(&input), "-o".into(), stage.path(&output)]);
                arguments.extend(["--bucket".into(), stage.path("scratch")]);
            }
        }
        if self.options != FIXED {
            arguments.extend(["--format".into(), "lines".into()]);
        }
        arguments.extend(self.options.iter().map(|option| (*option).to_owned()));
        arguments.extend(["--config".into(), self.settings.to_string_lossy().into_owned()]);
        arguments
    }

    /// What a job left in its OUTPUT.
    pub fn output(&self, stage: &Stage<'_>, job: &str) -> Output {
        match self.place {
            Place::Bucket => Output::of_bucket(&stage.bucket, &format!("out/{job}")),
            Place::Folder => Output::of_folder(stage.path(&format!("out/{job}"))),
        }
    }

    /// Removes a job's OUTPUT.
    pub fn remove_output(&self, stage: &Stage<'_>, job: &str) {
        match self.place {
            Place::Bucket => {
                stage
                    .bucket
                    .list(&format!("out/{job}"))
                    .iter()
                    .for_each(|key| stage.bucket.delete(key));
            }
            Place::Folder => {
                // A job that failed may have made none.
                let _ = std::fs::remove_dir_all(stage.path(&format!("out/{job}")));
            }
        }
    }
}
