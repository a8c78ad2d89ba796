//! The index and the footer of a run, as bytes and back.
//!
//! ```text
//! index:   partitions u32
//!          per partition: offset u64 | stored u64 | block max u32
//!                         records u64 | bytes u64 | hash u64
//!          dropped: 3 x u64
//! footer:  magic 8 | version u32 | index bytes u32 | index offset u64 | index checksum u64
//!          file bytes u64 | footer checksum u64
//! ```
//!
//! Little endian throughout. Golden bytes are tested: a change needs a new version.

use xxhash_rust::xxh3::xxh3_64;

use crate::blocks::BLOCK_HEADER_BYTES;
use crate::error::KernelError;
use crate::format::RECORD_BYTES_MAX;
use crate::proof::Sums;

/// Bound on the partitions of a run, and so of a job.
pub const PARTITIONS_MAX: u32 = 1 << 20;

const MAGIC: [u8; 8] = *b"mustrrun";
const VERSION: u32 = 1;
const ENTRY_BYTES: usize = 44;
const SUMS_BYTES: usize = 24;

/// One partition's bytes within a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Piece {
    /// Offset of its first block in the run object.
    pub offset: u64,
    /// Bytes of its blocks, headers included; 0 if it has no records.
    pub len: u64,
    /// Payload bytes of its largest block: what a reader may have to hold at once.
    pub block_payload_max: u32,
    /// Sums of its records.
    pub sums: Sums,
}

/// Where the pieces of a run lie and what they sum to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunIndex {
    pub(super) pieces: Vec<Piece>,
    pub(super) dropped: Sums,
    pub(super) file_bytes: u64,
}

impl RunIndex {
    /// Number of partitions.
    pub fn partitions(&self) -> u32 {
        self.pieces.len() as u32
    }

    /// The piece of a partition; `None` beyond the last.
    pub fn piece(&self, partition: u32) -> Option<Piece> {
        self.pieces.get(partition as usize).copied()
    }

    /// All pieces in partition order.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Sums of the records that `-u` dropped while the run was made.
    pub fn dropped(&self) -> Sums {
        self.dropped
    }

    /// Sums of all records in the run.
    pub fn kept(&self) -> Sums {
        self.pieces.iter().fold(Sums::default(), |sums, piece| sums.plus(&piece.sums))
    }

    /// Bytes of the whole run object.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// The checksum of the index as it is stored: what a footer says of it
    /// ([`RunFooter::index_digest`]).
    pub fn digest(&self) -> u64 {
        xxh3_64(&self.encode())
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(4 + self.pieces.len() * ENTRY_BYTES + SUMS_BYTES);
        out.extend_from_slice(&self.partitions().to_le_bytes());
        for piece in &self.pieces {
            out.extend_from_slice(&piece.offset.to_le_bytes());
            out.extend_from_slice(&piece.len.to_le_bytes());
            out.extend_from_slice(&piece.block_payload_max.to_le_bytes());
            push_sums(&mut out, &piece.sums);
        }
        push_sums(&mut out, &self.dropped);
        out
    }

    /// Decodes the index that `footer` describes. `bytes` are those at [`RunFooter::index_offset`],
    /// [`RunFooter::index_bytes`] of them.
    pub fn decode(bytes: &[u8], footer: &RunFooter) -> Result<Self, KernelError> {
        if bytes.len() as u64 != u64::from(footer.index_bytes) {
            let (found, expected) = (bytes.len(), footer.index_bytes);
            return Err(KernelError::corrupt(format!(
                "run index has {found} bytes, its footer says {expected}"
            )));
        }
        if xxh3_64(bytes) != footer.index_checksum {
            return Err(KernelError::corrupt("run index checksum does not match"));
        }
        let mut reader = Reader { bytes };
        let partitions = reader.u32()?;
        let expected = 4 + partitions as usize * ENTRY_BYTES + SUMS_BYTES;
        if partitions > PARTITIONS_MAX || bytes.len() != expected {
            return Err(KernelError::corrupt(format!(
                "run index of {} bytes says {partitions} partitions",
                bytes.len()
            )));
        }
        let mut pieces = Vec::with_capacity(partitions as usize);
        let mut offset = 0;
        for number in 0..partitions {
            let piece = Piece {
                offset: reader.u64()?,
                len: reader.u64()?,
                block_payload_max: reader.u32()?,
                sums: reader.sums()?,
            };
            check_piece(&piece, offset, footer.index_offset).map_err(|why| {
                KernelError::corrupt(format!("run index, partition {number}: {why}"))
            })?;
            offset += piece.len;
            pieces.push(piece);
        }
        if offset != footer.index_offset {
            return Err(KernelError::corrupt("run index does not cover the blocks"));
        }
        Ok(Self { pieces, dropped: reader.sums()?, file_bytes: footer.file_bytes })
    }
}

/// Pieces lie one after the other from the start of the run to its index.
fn check_piece(piece: &Piece, offset: u64, blocks_end: u64) -> Result<(), &'static str> {
    if piece.offset != offset || piece.len > blocks_end - offset {
        return Err("it does not follow the one before");
    }
    let empty = piece.len == 0;
    if empty != (piece.sums.records == 0) || empty != (piece.block_payload_max == 0) {
        return Err("its length and its number of records contradict each other");
    }
    if empty && piece.sums != Sums::default() {
        return Err("it is empty, but its sums are not");
    }
    let block_bytes = u64::from(piece.block_payload_max) + BLOCK_HEADER_BYTES as u64;
    if !empty
        && (block_bytes > piece.len || u64::from(piece.block_payload_max) > RECORD_BYTES_MAX + 1)
    {
        return Err("its largest block is too large");
    }
    Ok(())
}

/// The last [`RunFooter::LEN`] bytes of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunFooter {
    pub(super) index_bytes: u32,
    pub(super) index_offset: u64,
    pub(super) index_checksum: u64,
    pub(super) file_bytes: u64,
}

impl RunFooter {
    /// Bytes of a footer.
    pub const LEN: usize = 48;

    /// Where the index begins in the run object.
    pub fn index_offset(&self) -> u64 {
        self.index_offset
    }

    /// Bytes of the index; at most a few tens of megabytes ([`PARTITIONS_MAX`]).
    pub fn index_bytes(&self) -> u32 {
        self.index_bytes
    }

    /// Bytes of the whole run object.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// The checksum of the index.
    pub fn index_digest(&self) -> u64 {
        self.index_checksum
    }

    pub(super) fn encode(&self) -> [u8; Self::LEN] {
        let mut out = Vec::with_capacity(Self::LEN);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&self.index_bytes.to_le_bytes());
        out.extend_from_slice(&self.index_offset.to_le_bytes());
        out.extend_from_slice(&self.index_checksum.to_le_bytes());
        out.extend_from_slice(&self.file_bytes.to_le_bytes());
        out.extend_from_slice(&xxh3_64(&out).to_le_bytes());
        let mut footer = [0; Self::LEN];
        footer.copy_from_slice(&out);
        footer
    }

    /// Decodes the last [`RunFooter::LEN`] bytes of a run object of `file_bytes` bytes.
    pub fn decode(bytes: &[u8], file_bytes: u64) -> Result<Self, KernelError> {
        let wrong = |what: &str| Err(KernelError::corrupt(format!("run footer: {what}")));
        if bytes.len() != Self::LEN {
            return wrong(&format!("it has {} bytes instead of {}", bytes.len(), Self::LEN));
        }
        let (body, checksum) = bytes.split_at(Self::LEN - 8);
        if body[..8] != MAGIC {
            return wrong("this is no run of muster");
        }
        let mut reader = Reader { bytes: &body[8..] };
        let version = reader.u32()?;
        if checksum != xxh3_64(body).to_le_bytes() {
            return wrong("its checksum does not match");
        }
        if version != VERSION {
            return wrong(&format!("version {version} is not known here, only {VERSION} is"));
        }
        let footer = Self {
            index_bytes: reader.u32()?,
            index_offset: reader.u64()?,
            index_checksum: reader.u64()?,
            file_bytes: reader.u64()?,
        };
        let end = footer.index_offset.checked_add(u64::from(footer.index_bytes) + Self::LEN as u64);
        if footer.file_bytes != file_bytes || end != Some(file_bytes) {
            return wrong(&format!(
                "the object has {file_bytes} bytes, {} were written",
                footer.file_bytes
            ));
        }
        if footer.index_bytes as usize > 4 + PARTITIONS_MAX as usize * ENTRY_BYTES + SUMS_BYTES {
            return wrong("its index is too large");
        }
        Ok(footer)
    }
}

fn push_sums(out: &mut Vec<u8>, sums: &Sums) {
    out.extend_from_slice(&sums.records.to_le_bytes());
    out.extend_from_slice(&sums.bytes.to_le_bytes());
    out.extend_from_slice(&sums.hash.to_le_bytes());
}

/// Takes little-endian values off the front; too few bytes are an error.
struct Reader<'a> {
    bytes: &'a [u8],
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], KernelError> {
        match self.bytes.split_first_chunk::<N>() {
            Some((head, rest)) => {
                self.bytes = rest;
                Ok(*head)
            }
            None => Err(KernelError::corrupt("a run's index or footer ends too early")),
        }
    }

    fn u32(&mut self) -> Result<u32, KernelError> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, KernelError> {
        self.take().map(u64::from_le_bytes)
    }

    fn sums(&mut self) -> Result<Sums, KernelError> {
        Ok(Sums { records: self.u64()?, bytes: self.u64()?, hash: self.u64()? })
    }
}
