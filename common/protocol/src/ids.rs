//! Identifiers. Each is a type of its own, so that none can stand where another belongs; what comes
//! from outside is validated on the way in. All of them are persisted and sent as they are: their
//! fields, and the order of the phases, never change.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Longest identifier in bytes that a user or a peer may choose.
pub const ID_BYTES_MAX: usize = 64;

/// An identifier that breaks the rules of its kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{kind} {value:?} is not valid: 1 to {ID_BYTES_MAX} of the characters a-z A-Z 0-9 - _, not \
        beginning with - or _"
)]
pub struct InvalidId {
    kind: &'static str,
    value: String,
}

fn validate(kind: &'static str, value: &str) -> Result<(), InvalidId> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    let sound = (1..=ID_BYTES_MAX).contains(&value.len())
        && value.bytes().all(allowed)
        && value.as_bytes()[0].is_ascii_alphanumeric();
    if sound { Ok(()) } else { Err(InvalidId { kind, value: value.chars().take(80).collect() }) }
}

macro_rules! name_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The identifier as text, safe as one token of a NATS subject and as one segment of an
            /// object path.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(value: &str) -> Result<Self, InvalidId> {
                validate($kind, value)?;
                Ok(Self(value.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(value: String) -> Result<Self, InvalidId> {
                validate($kind, &value)?;
                Ok(Self(value))
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name_id!(
    /// One submitted sort. Chosen by the client, so that a repeated submit is harmless.
    JobId,
    "job id"
);
name_id!(
    /// A worker's stable identity: it outlives the process.
    WorkerId,
    "worker id"
);
name_id!(
    /// One namespace on one NATS account; minted when its journal begins.
    DeploymentId,
    "deployment id"
);

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

number_id!(
    /// A term of one coordinator. Epochs only grow; the journal hands them out.
    Epoch(u64)
);
number_id!(
    /// One life of a worker process; drawn at random when it starts.
    Incarnation(u64)
);
number_id!(
    /// How often a task has been given out anew because its committed result was lost; the first
    /// is 0.
    Generation(u32)
);

/// The phases in which tasks run, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Phase {
    /// Small seeded ranges of each split are read for splitters.
    Sample,
    /// Each split becomes a run.
    Sort,
    /// Each partition becomes a part.
    Merge,
}

impl Phase {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Sample => "sample",
            Phase::Sort => "sort",
            Phase::Merge => "merge",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A unit of one phase. The index is the split's in `Sample` and `Sort`, the partition's in
/// `Merge`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TaskId {
    /// The phase it belongs to.
    pub phase: Phase,
    /// Split or partition, from 0.
    pub index: u32,
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:05}", self.phase, self.index)
    }
}

/// One try of one task by one worker. The epoch is the one it was granted under at first; a
/// re-grant after a take-over keeps the id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AttemptId {
    /// What is tried.
    pub task: TaskId,
    /// Which generation of it.
    pub generation: Generation,
    /// The epoch of the first grant.
    pub epoch: Epoch,
    /// Tells attempts of one task, generation and epoch apart.
    pub nonce: u64,
}

impl fmt::Display for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.g{}.e{}.{:016x}", self.task, self.generation, self.epoch, self.nonce)
    }
}

/// Whose claim it is: a job of a deployment.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClaimId {
    /// The deployment.
    pub deployment: DeploymentId,
    /// The job.
    pub job: JobId,
}

impl fmt::Display for ClaimId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.deployment, self.job)
    }
}

impl FromStr for ClaimId {
    type Err = Error;

    /// Neither id may hold a dot, so this is unambiguous.
    fn from_str(text: &str) -> Result<Self> {
        let no_id = || {
            Error::invalid(format!(
                "{:?} names no claim",
                text.chars().take(80).collect::<String>()
            ))
        };
        let (deployment, job) = text.split_once('.').ok_or_else(no_id)?;
        Ok(Self {
            deployment: deployment.parse().map_err(|_| no_id())?,
            job: job.parse().map_err(|_| no_id())?,
        })
    }
}

impl TryFrom<String> for ClaimId {
    type Error = Error;
    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<ClaimId> for String {
    fn from(id: ClaimId) -> String {
        id.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_single_tokens() {
        for good in ["a", "job-1", "W_2", &"x".repeat(64)] {
            assert!(good.parse::<JobId>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "_a", "a.b", "a/b", "a b", "a*", "a>", "ä", &"x".repeat(65)] {
            assert!(bad.parse::<WorkerId>().is_err(), "{bad}");
            assert!(serde_json::from_value::<JobId>(bad.into()).is_err(), "{bad}");
        }
    }

    #[test]
    fn attempts_print_as_one_path_segment() {
        let task = TaskId { phase: Phase::Sort, index: 7 };
        let attempt = AttemptId { task, generation: Generation(1), epoch: Epoch(3), nonce: 0xabc };
        assert_eq!(attempt.to_string(), "sort-00007.g1.e3.0000000000000abc");
    }
}
