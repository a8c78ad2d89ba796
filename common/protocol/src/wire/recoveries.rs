//! How it went with trouble of one kind, as workers report it.

use serde::{Deserialize, Serialize};

/// What came of trouble of one kind. It is sent as it is, and never changes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recoveries {
    /// Tries beyond the first.
    pub attempts: u64,
    /// Things that succeeded after at least one failure.
    pub recovered: u64,
    /// Things that were given up.
    pub given_up: u64,
    /// Time from the first failure to the success, summed, in milliseconds.
    pub recovery_ms_sum: u64,
    /// The longest of these.
    pub recovery_ms_max: u64,
}
