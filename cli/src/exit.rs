//! Exit codes and the one line that goes with them: 0 succeeded, 1 failed or not in order, 2 wrong
//! usage, 3 nothing to connect to, 130 interrupted.

use std::process::ExitCode;

use clap::error::{ContextKind, ErrorKind as UsageKind};
use muster_protocol::{Error, ErrorKind};
use serde::Serialize;

use crate::output;

/// Why the program ends with something else than 0.
#[derive(Debug)]
pub(crate) struct Exit {
    code: u8,
    message: String,
    /// Whether an object on stdout has told it already.
    told: bool,
}

/// What `--json` prints where nothing else has told how it ended.
#[derive(Serialize)]
struct Ended<'a> {
    error: &'a str,
    exit_code: u8,
}

impl Exit {
    fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), told: false }
    }

    /// The same, where an object on stdout has told it.
    pub(crate) fn told(self) -> Self {
        Self { told: true, ..self }
    }

    pub(crate) fn code(&self) -> u8 {
        self.code
    }

    /// The job failed, or data is not in order.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new(1, message)
    }

    /// The command line cannot work.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(2, message)
    }

    /// There is nothing to connect to.
    pub(crate) fn unreachable(message: impl Into<String>) -> Self {
        Self::new(3, message)
    }

    /// Ctrl-C.
    pub(crate) fn interrupted(message: impl Into<String>) -> Self {
        Self::new(130, message)
    }

    /// Prints the line, if there is one, with `json` an object too, and gives the code.
    pub(crate) fn report(&self, json: bool) -> ExitCode {
        if !self.message.is_empty() {
            output::error_line(&format!("muster: {}", self.message));
            if json && !self.told {
                output::json(&Ended { error: &self.message, exit_code: self.code });
            }
        }
        ExitCode::from(self.code)
    }
}

impl From<Error> for Exit {
    fn from(error: Error) -> Self {
        Self::failed(error.message)
    }
}

/// An error of a client that has to reach NATS first.
pub(crate) fn connecting(error: Error) -> Exit {
    match error.kind {
        ErrorKind::Retry => {
            let hint = "start a server, or say where one is: --nats URL, NATS_URL or a NATS \
                context; muster sort --local needs none";
            Exit::unreachable(format!("{}; {hint}", error.message))
        }
        _ => Exit::unreachable(error.message),
    }
}

/// What the design names and this version does not have.
pub(crate) fn not_built(what: &str) -> Exit {
    Exit::usage(format!("{what} is not built yet in this version"))
}

/// Prints clap's own message; help and version are no errors.
pub(crate) fn usage(mut error: clap::Error, json: bool) -> ExitCode {
    if error.kind() == UsageKind::UnknownArgument {
        // "use '-- -c'" would make a file name of an option.
        error.remove(ContextKind::Suggested);
    }
    // Printing fails only where the terminal is gone; the exit code still tells.
    drop(error.print());
    if !error.use_stderr() {
        return ExitCode::SUCCESS;
    }
    if json {
        let text = error.render().to_string();
        let why = text.trim_start_matches("error: ").split("\n\n").next().unwrap_or_default();
        let why = why.split_whitespace().collect::<Vec<_>>().join(" ");
        output::json(&Ended { error: &why, exit_code: 2 });
    }
    ExitCode::from(2)
}
