//! The NATS users of a deployment, as `deploy/nats/make.sh` makes them: one for each role, with its
//! rights and no more.

use std::fs;
use std::path::{Path, PathBuf};

use async_nats::ConnectOptions;

use super::sandbox::{Finished, Sandbox, arg};
use super::{programs, wait};

/// Where the script puts things, in a sandbox.
const FOLDER: &str = "made";

/// What the script has made.
#[derive(Debug, Clone)]
pub struct Users {
    folder: PathBuf,
}

impl Users {
    /// Runs the script, with the built `muster` on its `PATH`.
    ///
    /// # Panics
    /// Where it fails.
    #[track_caller]
    pub fn make(sandbox: &Sandbox, arguments: &[&str]) -> Self {
        let users = Self { folder: sandbox.path(FOLDER) };
        users.make_again(sandbox, arguments).expect_code(0);
        users
    }

    /// Runs the script on what it has made.
    #[track_caller]
    pub fn make_again(&self, sandbox: &Sandbox, arguments: &[&str]) -> Finished {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/nats/make.sh");
        let mut command = sandbox.clean_command(script);
        let path =
            command.get_envs().find(|(name, _)| *name == "PATH").and_then(|(_, value)| value);
        let path = path.expect("a command has a PATH").to_owned();
        let muster = programs::muster();
        let own = muster.parent().expect("a program lies in a folder").to_path_buf();
        let all = std::iter::once(own).chain(std::env::split_paths(&path));
        command.env("PATH", std::env::join_paths(all).expect("folders of PATH have no colon"));
        command.args(["--out", arg(&self.folder)]).args(arguments);
        sandbox.run_command(command, wait::START_BOUND)
    }

    /// A file that the script has made.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The environment with which `who` connects: a role, or a worker by its id, which has a user
    /// of its own or that of all.
    ///
    /// # Panics
    /// Where the script has made none.
    pub fn environment(&self, who: &str) -> Vec<(String, String)> {
        let own = self.file(&format!("worker-{who}.env"));
        let path = match who {
            "coordinator" | "client" | "operator" | "sys" => self.file(&format!("{who}.env")),
            _ if own.is_file() => own,
            _ => self.file("worker.env"),
        };
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        text.lines()
            .filter_map(|line| line.split_once('='))
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect()
    }

    /// One variable of it.
    ///
    /// # Panics
    /// Where it is not there.
    pub fn variable(&self, who: &str, name: &str) -> String {
        let found = self.environment(who).into_iter().find(|(key, _)| key == name);
        found.unwrap_or_else(|| panic!("no {name} for {who}")).1
    }

    /// How a client of our own connects as `who`.
    ///
    /// # Panics
    /// Where the script has made no such user.
    pub fn options(&self, who: &str) -> ConnectOptions {
        ConnectOptions::new()
            .user_and_password(self.variable(who, "NATS_USER"), self.variable(who, "NATS_PASSWORD"))
            .custom_inbox_prefix(self.variable(who, "NATS_INBOX_PREFIX"))
    }
}
