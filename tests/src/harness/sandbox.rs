//! A test's own folder, and `muster` run inside it with an environment that holds nothing of
//! whoever runs the tests.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::journal::{self, Journal};
use super::nats::NatsServer;
use super::output::Output;
use super::process::{self, Process};
use super::{programs, wait};

/// Environment with which a run on this machine logs the attempts of its workers, as a worker of a
/// pool always does.
pub const LOG_ATTEMPTS: (&str, &str) = ("MUSTER_LOG", "warn,muster_worker=info");

/// A folder that goes with the test (set `MUSTER_KEEP=1` to keep it), with `tmp/` as the temporary
/// folder of everything that runs in it.
#[derive(Debug)]
pub struct Sandbox {
    root: TempDir,
}

/// A command that has ended.
#[derive(Debug)]
pub struct Finished {
    /// Exit code; 128 and more for a signal.
    pub code: i32,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

impl Sandbox {
    /// A new, empty one.
    ///
    /// # Panics
    /// Where no folder can be made.
    #[expect(clippy::new_without_default, reason = "it makes a folder")]
    pub fn new() -> Self {
        let mut root = tempfile::Builder::new()
            .prefix("muster-test-")
            .tempdir()
            .expect("a temporary folder can be made");
        root.disable_cleanup(std::env::var_os("MUSTER_KEEP").is_some());
        for folder in ["tmp", "logs", "home"] {
            fs::create_dir(root.path().join(folder)).expect("a folder can be made");
        }
        Self { root }
    }

    /// Keeps the folder beyond the test.
    pub fn keep(&mut self) {
        self.root.disable_cleanup(true);
    }

    /// A path in it.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.root.path().join(name)
    }

    /// Writes a file in it, with the folders above, and gives its path.
    ///
    /// # Panics
    /// Where it cannot.
    pub fn file(&self, name: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).expect("a folder can be made");
        }
        fs::write(&path, bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        path
    }

    /// Settings (`--config`) that cut even small data into many tasks: input bytes of a sort task,
    /// output bytes of a partition.
    pub fn small_tasks(&self, split_bytes: usize, partition_bytes: usize) -> PathBuf {
        self.file(
            "small.toml",
            format!("[job]\nsplit_bytes = {split_bytes}\npartition_bytes = {partition_bytes}\n"),
        )
    }

    /// Where logs of processes lie.
    pub fn logs(&self) -> PathBuf {
        self.path("logs")
    }

    /// `muster` with an empty environment but for what it needs here; the working folder is the
    /// sandbox.
    pub fn muster(&self) -> Command {
        self.clean_command(programs::muster())
    }

    /// Any program, in the same environment.
    pub fn clean_command(&self, program: impl AsRef<OsStr>) -> Command {
        let nats_server = programs::nats_server();
        let mut folders =
            vec![nats_server.parent().expect("a program lies in a folder").to_path_buf()];
        folders.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
        let mut command = Command::new(program);
        command
            .current_dir(self.root.path())
            .env_clear()
            .env("PATH", std::env::join_paths(folders).expect("folders of PATH have no colon"))
            .env("HOME", self.path("home"))
            .env("XDG_CONFIG_HOME", self.path("home/.config"))
            .env("TMPDIR", self.path("tmp"))
            .env("LC_ALL", "C")
            .env("RUST_BACKTRACE", "1")
            .env("MUSTER_NATS_SERVER", nats_server);
        command
    }

    /// Runs `muster` with these arguments to its end.
    ///
    /// # Panics
    /// When it takes longer than [`wait::RUN_BOUND`].
    #[track_caller]
    pub fn run<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Finished {
        let mut command = self.muster();
        command.args(arguments);
        self.run_command(command, wait::RUN_BOUND)
    }

    /// Runs a command to its end.
    ///
    /// # Panics
    /// When it takes longer than `bound`.
    #[track_caller]
    pub fn run_command(&self, command: Command, bound: Duration) -> Finished {
        let logs = tempfile::Builder::new()
            .prefix("run-")
            .tempdir_in(self.logs())
            .expect("a folder can be made");
        let mut process = Process::spawn("muster", command, logs.path());
        let code = process::exit_code(process.wait(bound));
        Finished { code, stdout: process.stdout(), stderr: process.stderr() }
    }

    /// Runs `muster sort --json` on this machine, with two workers where `arguments` do not say
    /// otherwise, to its successful end. Checks the report against what lies in the folder `output`
    /// (relative to the sandbox), and that nothing else was left anywhere; gives both.
    ///
    /// # Panics
    /// Where something is not as it should be.
    #[track_caller]
    pub fn sort_here<S: AsRef<OsStr>>(
        &self,
        output: &Path,
        arguments: impl IntoIterator<Item = S>,
    ) -> (Value, Output) {
        let mut command = self.muster();
        command.args(["sort", "--json", "-o"]).arg(output).args(arguments);
        if !command.get_args().any(|argument| argument.to_string_lossy().starts_with("--local")) {
            command.arg("--local=2");
        }
        let done = self.run_command(command, wait::RUN_BOUND).expect_code(0);
        let (report, output) = (done.json(), Output::of_folder(self.path(output)));
        assert_eq!(report["state"], "succeeded", "{report}");
        assert_eq!(report["parts"].as_u64(), Some(output.parts.len() as u64), "{report}");
        self.assert_no_temporaries();
        (report, output)
    }

    /// Checks that no finished work was done again in a run on this machine that kept its state in
    /// `data_dir`, also when that took several commands, whose logs lie here. They must have run
    /// with [`LOG_ATTEMPTS`].
    ///
    /// # Panics
    /// Where some was.
    #[track_caller]
    pub fn assert_nothing_repeated(&self, data_dir: &Path, last: &Finished) {
        let report = last.json();
        let mut begins = journal::begins_in(&self.logs());
        begins.extend(journal::begins_of("the last run", &last.stderr));
        let nats = NatsServer::on_store(self, data_dir.join("jetstream"));
        let job = report["job"].as_str().expect("a report names its job");
        Journal::read(&nats.url()).work(job).assert_nothing_repeated(&begins, &report);
    }

    /// Checks that what ran here left nothing in its temporary folder, waiting a little for
    /// children that are ending.
    ///
    /// # Panics
    /// Where it did.
    #[track_caller]
    pub fn assert_no_temporaries(&self) {
        wait::until_empty("in the temporary folder", || files_below(&self.path("tmp")));
    }
}

impl Finished {
    /// Checks the exit code.
    ///
    /// # Panics
    /// Where it is another; all output is shown.
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Self {
        assert_eq!(
            self.code, code,
            "exit code\n--- stdout ---\n{}\n--- stderr ---\n{}",
            self.stdout, self.stderr
        );
        self
    }

    /// Checks that standard error has all of these words, whatever their case.
    ///
    /// # Panics
    /// Where one is missing.
    #[track_caller]
    pub fn expect_error(self, words: &[&str]) -> Self {
        let text = self.stderr.to_lowercase();
        for word in words {
            assert!(
                text.contains(&word.to_lowercase()),
                "the error does not say {word:?}:\n{}",
                self.stderr
            );
        }
        assert!(!text.contains("panicked"), "it panicked:\n{}", self.stderr);
        self
    }

    /// The last JSON value on standard output.
    ///
    /// # Panics
    /// Where there is none.
    #[track_caller]
    pub fn json(&self) -> Value {
        last_json(&self.stdout).unwrap_or_else(|| {
            panic!(
                "no JSON on stdout\n--- stdout ---\n{}\n--- stderr ---\n{}",
                self.stdout, self.stderr
            )
        })
    }
}

/// A path as an argument of a command.
///
/// # Panics
/// Where it is not valid UTF-8.
pub fn arg(path: &Path) -> &str {
    path.to_str().expect("a test's paths are UTF-8")
}

/// All of a text as JSON, else its last line that is.
pub fn last_json(text: &str) -> Option<Value> {
    serde_json::from_str(text)
        .ok()
        .or_else(|| text.lines().rev().find_map(|line| serde_json::from_str(line).ok()))
}

/// Paths of all files below a folder, relative to it, in order; none where there is no such folder.
pub fn files_below(folder: &Path) -> Vec<String> {
    fn walk(folder: &Path, prefix: &str, found: &mut Vec<String>) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                walk(&entry.path(), &format!("{name}/"), found);
            } else {
                found.push(name);
            }
        }
    }
    let mut found = Vec::new();
    walk(folder, "", &mut found);
    found.sort();
    found
}
