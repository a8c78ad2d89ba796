//! Exit codes and the one line that goes with them: 0 succeeded, 1 failed or not in order, 2 wrong usage, 3 nothing to connect to, 130 interrupted.

use std::process::ExitCode;

use muster_common::{Error, ErrorKind};

use crate::output;

/// Why the program ends with something else than 0.
#[derive(Debug)]
pub(crate) struct Exit {
    code: u8,
    message: String,
}

impl Exit {
    /// The job failed, or data is not in order.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self { code: 1, message: message.into() }
    }

    /// The command line cannot work.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self { code: 2, message: message.into() }
    }

    /// There is nothing to connect to.
    pub(crate) fn unreachable(message: impl Into<String>) -> Self {
        Self { code: 3, message: message.into() }
    }

    /// Ctrl-C.
    pub(crate) fn interrupted(message: impl Into<String>) -> Self {
        Self { code: 130, message: message.into() }
    }

    /// Prints the line, if there is one, and gives the code.
    pub(crate) fn report(&self) -> ExitCode {
        if !self.message.is_empty() {
            output::error_line(&format!("muster: {}", self.message));
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
            let hint = "start a server, or say where one is: --nats URL, NATS_URL or a NATS context; muster sort --local needs none";
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
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    // Printing fails only where the terminal is gone; the exit code still tells.
    drop(error.print());
    ExitCode::from(if error.use_stderr() { 2 } else { 0 })
}
