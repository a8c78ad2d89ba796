//! The few kinds of error, told apart by what a caller can do about them.

use serde::{Deserialize, Serialize};

/// What can be done about an error. The order of the variants is sent and persisted: none is moved
/// or changed, and one that is new stands last, in a new version of whatever carries it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ErrorKind {
    /// Passing trouble: the same call may succeed later or elsewhere.
    Retry,
    /// Someone with a newer epoch decides now; stop.
    Fenced,
    /// The request, the options or the input cannot work; repeating it changes nothing.
    Invalid,
    /// Bytes that are not what they were: a checksum, a length or a sum differs.
    Corrupt,
    /// A bound was hit: memory, disk, attempts, time. The message names the bound.
    Exhausted,
    /// What was asked for is not there.
    NotFound,
    /// A promise of our own code is broken.
    Bug,
    /// Passing trouble of a kind of its own: a store asks for fewer requests.
    Throttled,
    /// The system refused memory that is this process's to use: less of it at once may do.
    OutOfMemory,
    /// A task needs more memory than its worker has for it: less at once is no help, a larger
    /// worker is.
    NeedsMemory {
        /// Memory of a worker for each of its tasks at once (`--memory` divided by `--threads`)
        /// with which it can be done, in bytes.
        task_bytes: u64,
    },
    /// The way in which this process reaches something cannot work: a name that nobody knows, a
    /// certificate, credentials, a clock. No wait mends it; another process may be set up better.
    Setup,
    /// The worker that was at it is dead: its memory may have killed it. A leader says so of an
    /// attempt; nobody sends it.
    WorkerDied,
}

impl ErrorKind {
    /// Whether another attempt, perhaps by another worker, makes sense.
    pub fn is_retryable(self) -> bool {
        self.is_passing()
            || self.is_of_memory()
            || matches!(
                self,
                ErrorKind::Corrupt | ErrorKind::Exhausted | ErrorKind::NotFound | ErrorKind::Setup
            )
            || self == ErrorKind::WorkerDied
    }

    /// Whether memory is what was short.
    pub fn is_of_memory(self) -> bool {
        matches!(self, ErrorKind::OutOfMemory | ErrorKind::NeedsMemory { .. })
    }

    /// Whether the same call at the same place may succeed a little later.
    pub fn is_passing(self) -> bool {
        matches!(self, ErrorKind::Retry | ErrorKind::Throttled)
    }
}

/// An error with its kind and one line of what, where and why. It is sent as it is, and never
/// changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// What a caller can do.
    pub kind: ErrorKind,
    /// One line: what, which object or worker, the limit and the value seen.
    pub message: String,
}

/// The result of everything that can fail here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Longest message that is kept, in bytes; what comes over the wire is cut to it.
pub const MESSAGE_BYTES_MAX: usize = 4096;

impl Error {
    /// An error of the given kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if message.len() > MESSAGE_BYTES_MAX {
            let cut =
                (0..=MESSAGE_BYTES_MAX).rev().find(|&at| message.is_char_boundary(at)).unwrap_or(0);
            message.truncate(cut);
        }
        Self { kind, message }
    }

    /// Passing trouble.
    pub fn retry(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Retry, message)
    }

    /// A store that asks for fewer requests.
    pub fn throttled(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Throttled, message)
    }

    /// A request, option or input that cannot work.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    /// Bytes that are not what they were.
    pub fn corrupt(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Corrupt, message)
    }

    /// A bound was hit.
    pub fn exhausted(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Exhausted, message)
    }

    /// A way to reach something that cannot work as this process is set up.
    pub fn setup(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Setup, message)
    }

    /// A broken promise of our own.
    pub fn bug(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Bug, message)
    }

    /// The same error with its place put before the message, where the message does not name it
    /// already.
    #[must_use]
    pub fn at(self, place: impl std::fmt::Display) -> Self {
        let place = place.to_string();
        if names(&self.message, &place) {
            return self;
        }
        Self::new(self.kind, format!("{place}: {}", self.message))
    }
}

/// Whether a message names a place as a whole, and not only one whose name begins or ends with it.
fn names(message: &str, place: &str) -> bool {
    let of_a_name = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || "/._-".contains(c));
    let mut found = message.match_indices(place);
    !place.is_empty()
        && found.any(|(at, _)| {
            let (before, after) = (&message[..at], &message[at + place.len()..]);
            // A full stop ends a sentence, or goes on within a name.
            let after =
                after.trim_start_matches('.').chars().next().filter(|_| !after.starts_with(". "));
            !of_a_name(before.chars().next_back()) && !of_a_name(after)
        })
}

impl From<muster_kernel::error::KernelError> for Error {
    fn from(error: muster_kernel::error::KernelError) -> Self {
        use muster_kernel::error::KernelError as K;
        let kind = match &error {
            K::BadRecord { .. } | K::RecordTooLong { .. } | K::InvalidSpec(_) => ErrorKind::Invalid,
            K::Memory { .. } => ErrorKind::OutOfMemory,
            // How much a worker needs for that is known to who divides its memory.
            K::Budget { .. } => ErrorKind::Exhausted,
            K::Corrupt { .. } | K::SumsDiffer { .. } => ErrorKind::Corrupt,
            K::OutOfOrder { .. } => ErrorKind::Bug,
        };
        Error::new(kind, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_named_once() {
        let at = |message: &str| Error::retry(message).at("s3://data/in").message;
        for named in [
            "cannot read s3://data/in: access denied",
            "s3://data/in",
            "of s3://data/in. Later",
            "(s3://data/in)",
        ] {
            assert_eq!(at(named), named);
        }
        for other in [
            "access denied",
            "cannot read s3://data/in2",
            "s3://data/in/a is gone",
            "s3://data/in.gz is gone",
            "",
        ] {
            assert_eq!(at(other), format!("s3://data/in: {other}"));
        }
        assert_eq!(Error::retry("gone").at("").message, ": gone");
    }
}
