//! Runs: what a sort task writes and merge tasks read. One object holds all partitions.
//!
//! ```text
//! blocks of partition 0 | blocks of partition 1 | … | index | footer
//! ```
//!
//! Blocks (`blocks.rs`) carry their own checksums; a partition begins on a new block, so a merge
//! reads one contiguous *piece*. The index tells where each piece lies and what it sums to; the
//! footer, of fixed length, where the index lies. Both are checksummed, and decoding trusts
//! nothing: wrong bytes are [`KernelError::Corrupt`](crate::error::KernelError), never a panic, and
//! never an allocation beyond the bytes at hand.
//!
//! The writer appends to the sink's own buffer, so record bytes are written once.

mod index;
mod writer;

pub use crate::blocks::{BLOCK_HEADER_BYTES, BLOCK_PAYLOAD_TARGET};
pub use index::{PARTITIONS_MAX, Piece, RunFooter, RunIndex};
pub use writer::{RunWriter, Sink};

use crate::error::KernelError;

/// Takes stored records in order.
pub trait RecordSink {
    /// What can go wrong.
    type Error: From<KernelError>;

    /// Takes the next stored record (lines: with their terminator) and the
    /// [`record_hash`](crate::proof::record_hash) of its body, which a merge has checked already.
    fn push(&mut self, stored: &[u8], hash: u64) -> Result<(), Self::Error>;
}

#[cfg(test)]
mod tests;
