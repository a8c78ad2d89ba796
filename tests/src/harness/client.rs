//! What a user of a pool does: `muster` commands against its NATS server and its store, wherever
//! these run.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use super::process::{self, Process};
use super::sandbox::{Finished, Sandbox};
use super::wait;

/// A user: a program, and the environment by which it reaches a pool.
#[derive(Debug)]
pub struct Client<'a> {
    sandbox: &'a Sandbox,
    program: PathBuf,
    environment: Vec<(String, String)>,
}

impl<'a> Client<'a> {
    /// A user whose environment is this and nothing else.
    pub fn new(sandbox: &'a Sandbox, program: PathBuf, environment: Vec<(String, String)>) -> Self {
        Self { sandbox, program, environment }
    }

    /// A `muster` command.
    pub fn command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = self.sandbox.clean_command(&self.program);
        command.args(arguments).envs(self.environment.iter().cloned());
        command
    }

    /// Runs such a command to its end.
    #[track_caller]
    pub fn run<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Finished {
        self.sandbox.run_command(self.command(arguments), wait::RUN_BOUND)
    }

    /// Starts a `muster sort` that waits for its job, with `--json` and this job id.
    pub fn start_sort<S: AsRef<OsStr>>(
        &self,
        job: &str,
        arguments: impl IntoIterator<Item = S>,
    ) -> Process {
        let mut command = self.command(["sort", "--json", "--job-id", job]);
        command.args(arguments);
        Process::spawn(job, command, &self.sandbox.logs())
    }

    /// Where a job stands, as `muster status` says; nothing while that cannot be asked.
    #[track_caller]
    pub fn status(&self, job: &str) -> Option<Value> {
        let done = self.run(["status", job, "--json"]);
        (done.code == 0).then(|| done.json())
    }

    /// The workers that `muster workers` lists, each as its status; nothing while that cannot be
    /// asked.
    #[track_caller]
    pub fn workers(&self) -> Option<Vec<Value>> {
        let listed = self.run(["workers", "--json"]);
        if listed.code == 0 { listed.json().as_array().cloned() } else { None }
    }
}

/// Waits for a sort that was started to succeed, and gives what it printed.
///
/// # Panics
/// Where it does not.
#[track_caller]
pub fn finish_sort(mut sort: Process) -> Value {
    let code = process::exit_code(sort.wait(wait::RUN_BOUND));
    let done = Finished { code, stdout: sort.stdout(), stderr: sort.stderr() }.expect_code(0);
    let report = done.json();
    assert_eq!(report["state"], "succeeded", "{report}");
    report
}

/// Waits until a job's status is as wished.
///
/// # Panics
/// Where it is not within [`wait::RUN_BOUND`], or the job ends before.
#[track_caller]
pub fn wait_for_status(
    job: &str,
    what: &str,
    status: impl Fn() -> Option<Value>,
    wish: impl Fn(&Value) -> bool,
) -> Value {
    wait::until(&format!("job {job} to be {what}"), wait::RUN_BOUND, || {
        let status = status()?;
        let ended = ["succeeded", "failed", "cancelled"].iter().any(|end| status["state"] == *end);
        assert!(wish(&status) || !ended, "job {job} ended before it was {what}: {status}");
        wish(&status).then_some(status)
    })
}

/// Whether some, but not all, tasks of a state are done.
pub fn is_in_the_midst_of(state: &str, status: &Value) -> bool {
    let count = |field: &str| status[field].as_u64().unwrap_or(0);
    status["state"] == state
        && count("tasks_done") > 0
        && count("tasks_done") < count("tasks_total")
}
