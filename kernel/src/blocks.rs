//! Blocks: the unit of checking within a run.
//!
//! ```text
//! payload bytes u32 | records u32 | checksum u64 | payload            (little endian)
//! ```
//!
//! The checksum is XXH3-64 of the payload, seeded with both counts, so that no byte of the header
//! goes unchecked. A block holds whole records: as many as fit [`BLOCK_PAYLOAD_TARGET`], or a
//! single larger one.

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Payload bytes at which a block is closed.
pub const BLOCK_PAYLOAD_TARGET: usize = 64 << 10;
/// Bytes of a block's header.
pub const BLOCK_HEADER_BYTES: usize = 16;

/// A block's header, decoded but not yet checked against a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockHeader {
    pub(crate) payload_bytes: u32,
    pub(crate) records: u32,
    pub(crate) checksum: u64,
}

impl BlockHeader {
    /// The header of `payload`, which holds `records` records.
    pub(crate) fn of(payload: &[u8], records: u32) -> Self {
        let payload_bytes = payload.len() as u32;
        Self { payload_bytes, records, checksum: block_checksum(payload, records) }
    }

    pub(crate) fn encode(&self) -> [u8; BLOCK_HEADER_BYTES] {
        let mut bytes = [0; BLOCK_HEADER_BYTES];
        bytes[..4].copy_from_slice(&self.payload_bytes.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.records.to_le_bytes());
        bytes[8..].copy_from_slice(&self.checksum.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; BLOCK_HEADER_BYTES]) -> Self {
        let [p0, p1, p2, p3, r0, r1, r2, r3, checksum @ ..] = *bytes;
        Self {
            payload_bytes: u32::from_le_bytes([p0, p1, p2, p3]),
            records: u32::from_le_bytes([r0, r1, r2, r3]),
            checksum: u64::from_le_bytes(checksum),
        }
    }
}

/// The checksum of a block.
pub(crate) fn block_checksum(payload: &[u8], records: u32) -> u64 {
    xxh3_64_with_seed(payload, u64::from(records) << 32 | payload.len() as u64)
}
