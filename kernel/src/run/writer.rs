//! Writes a run into a sink, block by block.

use xxhash_rust::xxh3::xxh3_64;

use super::RecordSink;
use super::index::{PARTITIONS_MAX, Piece, RunFooter, RunIndex};
use crate::blocks::{BLOCK_HEADER_BYTES, BLOCK_PAYLOAD_TARGET, BlockHeader};
use crate::error::KernelError;
use crate::format::Frame;
use crate::proof::{Sums, record_hash};

/// Where written bytes go: the writer appends to `buffer`, and the sink ships from it.
pub trait Sink {
    /// What can go wrong.
    type Error: From<KernelError>;

    /// The buffer to append to. It is the same, with the same contents, until `flushed` is called.
    fn buffer(&mut self) -> &mut Vec<u8>;

    /// Called after each whole block (about [`BLOCK_PAYLOAD_TARGET`] bytes, or one larger record):
    /// everything in the buffer is final now, and the sink may ship it and replace or clear the
    /// buffer.
    fn flushed(&mut self) -> Result<(), Self::Error>;
}

/// Writes partitions of stored records as a run.
#[derive(Debug)]
pub struct RunWriter<S> {
    sink: S,
    trailer_len: usize,
    index: RunIndex,
    /// Sums of all partitions before the open one.
    closed: Sums,
    /// Bytes of all blocks that are written.
    offset: u64,
    /// Where the open block begins in the sink's buffer, header first.
    block_start: usize,
    block_records: u32,
}

impl<S: Sink> RunWriter<S> {
    /// A writer of records of `frame`; the run is appended to what the sink's buffer holds.
    pub fn new(sink: S, frame: Frame) -> Self {
        Self {
            sink,
            trailer_len: frame.trailer_len(),
            index: RunIndex { pieces: Vec::new(), dropped: Sums::default(), file_bytes: 0 },
            closed: Sums::default(),
            offset: 0,
            block_start: 0,
            block_records: 0,
        }
    }

    /// Begins the next partition (the first one, too).
    ///
    /// # Panics
    /// Beyond [`PARTITIONS_MAX`] partitions.
    pub fn begin_partition(&mut self) -> Result<(), S::Error> {
        self.end_partition()?;
        assert!(self.index.partitions() < PARTITIONS_MAX, "more than {PARTITIONS_MAX} partitions");
        self.index.pieces.push(Piece { offset: self.offset, ..Piece::default() });
        Ok(())
    }

    /// Appends a stored record (lines: with their terminator) to the open partition.
    ///
    /// # Panics
    /// If no partition was begun.
    #[inline]
    pub fn push(&mut self, stored: &[u8]) -> Result<(), S::Error> {
        self.push_hashed(stored, record_hash(&stored[..stored.len() - self.trailer_len]))
    }

    #[inline]
    fn push_hashed(&mut self, stored: &[u8], hash: u64) -> Result<(), S::Error> {
        let held = match self.block_records {
            0 => 0,
            _ => self.sink.buffer().len() - self.block_start - BLOCK_HEADER_BYTES,
        };
        if self.block_records > 0 && held + stored.len() > BLOCK_PAYLOAD_TARGET {
            self.end_block()?;
        }
        let buffer = self.sink.buffer();
        if self.block_records == 0 {
            self.block_start = buffer.len();
            buffer.extend_from_slice(&[0; BLOCK_HEADER_BYTES]);
        }
        buffer.extend_from_slice(stored);
        self.block_records += 1;
        let piece =
            self.index.pieces.last_mut().expect("a partition is begun before records are pushed");
        piece.sums.add_hashed(stored.len() - self.trailer_len, hash);
        Ok(())
    }

    /// Counts records that `-u` dropped.
    pub fn add_dropped(&mut self, dropped: &Sums) {
        self.index.dropped.merge(dropped);
    }

    /// Sums of all records pushed so far.
    pub fn written(&self) -> Sums {
        self.index.pieces.last().map_or(self.closed, |piece| self.closed.plus(&piece.sums))
    }

    /// Sums of the open partition.
    pub fn partition_sums(&self) -> Sums {
        self.index.pieces.last().map(|piece| piece.sums).unwrap_or_default()
    }

    /// Bytes of the run so far, the open block apart.
    pub fn written_bytes(&self) -> u64 {
        self.offset
    }

    /// Ends the last partition, writes index and footer, and returns the sink with the index.
    pub fn finish(mut self) -> Result<(RunIndex, S), S::Error> {
        self.end_partition()?;
        let index = self.index.encode();
        let mut footer = RunFooter {
            index_bytes: index.len() as u32,
            index_offset: self.offset,
            index_checksum: xxh3_64(&index),
            file_bytes: 0,
        };
        footer.file_bytes = self.offset + (index.len() + RunFooter::LEN) as u64;
        self.index.file_bytes = footer.file_bytes;
        let buffer = self.sink.buffer();
        buffer.extend_from_slice(&index);
        buffer.extend_from_slice(&footer.encode());
        self.sink.flushed()?;
        Ok((self.index, self.sink))
    }

    fn end_partition(&mut self) -> Result<(), S::Error> {
        if self.block_records > 0 {
            self.end_block()?;
        }
        if let Some(piece) = self.index.pieces.last_mut() {
            piece.len = self.offset - piece.offset;
            self.closed.merge(&piece.sums);
        }
        Ok(())
    }

    #[cold]
    fn end_block(&mut self) -> Result<(), S::Error> {
        let buffer = self.sink.buffer();
        let (header, payload) = buffer[self.block_start..].split_at_mut(BLOCK_HEADER_BYTES);
        header.copy_from_slice(&BlockHeader::of(payload, self.block_records).encode());
        let payload_bytes = payload.len() as u32;
        if let Some(piece) = self.index.pieces.last_mut() {
            piece.block_payload_max = piece.block_payload_max.max(payload_bytes);
        }
        self.offset += u64::from(payload_bytes) + BLOCK_HEADER_BYTES as u64;
        self.block_records = 0;
        self.sink.flushed()
    }
}

impl<S: Sink> RecordSink for RunWriter<S> {
    type Error = S::Error;

    #[inline]
    fn push(&mut self, stored: &[u8], hash: u64) -> Result<(), S::Error> {
        self.push_hashed(stored, hash)
    }
}
