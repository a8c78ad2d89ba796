//! What can go wrong in the kernel, by what the caller can do about it.
//!
//! `BadRecord` and `RecordTooLong` blame the input, `Budget` and `Memory` the memory, `Corrupt`,
//! `OutOfOrder` and `SumsDiffer` the stored bytes (or a bug), `InvalidSpec` the options. The kernel
//! knows positions and piece numbers, not objects or workers: the caller adds those.

use thiserror::Error;

use crate::proof::Sums;

/// The one error of this crate. Positions count bytes; each variant says from where.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum KernelError {
    /// The input holds something that is no record of its format. `position` is global when it
    /// comes from the sorter, and counts from the start of the object when it comes from
    /// [`crate::split::Cutter`].
    #[error("malformed record at byte {position}: {reason}")]
    BadRecord {
        /// First byte of the malformed record.
        position: u64,
        /// What is wrong with it.
        reason: BadRecord,
    },
    /// A record is longer than [`crate::format::RECORD_BYTES_MAX`].
    #[error(
        "the record at byte {position} is longer than the limit of {limit} bytes (is the format or \
            the terminator right?)"
    )]
    RecordTooLong {
        /// Global position of the record's first byte.
        position: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// A single record does not fit into the memory budget; more memory helps.
    #[error(
        "the record at byte {position} needs at least {needed} bytes of memory to be sorted, but \
            the budget is {budget} bytes"
    )]
    Budget {
        /// Global position of the record's first byte.
        position: u64,
        /// Bytes that it needs at least, bookkeeping included.
        needed: u64,
        /// The budget in bytes.
        budget: u64,
    },
    /// The system refused memory that the budget allows.
    #[error("out of memory: {needed} bytes were refused")]
    Memory {
        /// Bytes that were asked for.
        needed: u64,
    },
    /// Stored bytes are not what was written.
    #[error("corrupt: {what}")]
    Corrupt {
        /// Which structure, what was expected and what was found.
        what: String,
    },
    /// Records of a run are not in order, or lie outside their partition.
    #[error("out of order: {what}")]
    OutOfOrder {
        /// Which input, which record.
        what: String,
    },
    /// Records were lost, doubled or changed between two places that count them.
    #[error("sums differ in {what}: expected {expected}, found {found}")]
    SumsDiffer {
        /// Where the sums were compared.
        what: String,
        /// What an earlier step recorded.
        expected: Sums,
        /// What was counted here.
        found: Sums,
    },
    /// The options make no sense together or are not supported.
    #[error("{0}")]
    InvalidSpec(String),
}

impl KernelError {
    pub(crate) fn corrupt(what: impl Into<String>) -> Self {
        Self::Corrupt { what: what.into() }
    }
}

/// Why a record is malformed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BadRecord {
    /// A fixed-length object or piece ends within a record.
    #[error("the object ends within it: {found} bytes are left of a record of {len}")]
    Truncated {
        /// Bytes that are left.
        found: u64,
        /// Length of a record.
        len: u32,
    },
    /// A piece of a fixed-length object does not begin or end at a record boundary.
    #[error("offset {offset} is not a multiple of the record length {len}")]
    Misaligned {
        /// The offset in the object.
        offset: u64,
        /// Length of a record.
        len: u32,
    },
}
