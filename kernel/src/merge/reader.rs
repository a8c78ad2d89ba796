//! Takes the windows of a piece apart into checked blocks.
//!
//! A block that lies within one window is used where it is; one that windows cut is assembled in a
//! buffer of the reader's own. Nothing a block's header says is trusted before the piece's entry in
//! the index bounds it.

use crate::blocks::{BLOCK_HEADER_BYTES, BlockHeader, block_checksum};
use crate::error::KernelError;
use crate::merge::Windows;
use crate::run::Piece;

/// Reads the blocks of one piece.
pub(super) struct BlockReader<W: Windows> {
    number: usize,
    windows: W,
    piece: Piece,
    window: Option<W::Buf>,
    /// Bytes of the window that are used up.
    used: usize,
    /// Bytes of the piece that are used up.
    read: u64,
    assembled: Vec<u8>,
    payload: Payload,
}

/// Why a block was not loaded.
enum Fault<E> {
    /// Its bytes could not be had.
    Windows(E),
    /// Its bytes are not what they should be.
    Bytes(KernelError),
}

impl<E> From<KernelError> for Fault<E> {
    fn from(why: KernelError) -> Self {
        Self::Bytes(why)
    }
}

/// Where the current block's payload is.
#[derive(Clone, Copy)]
enum Payload {
    Window { start: usize, end: usize },
    Assembled,
}

impl<W: Windows> BlockReader<W> {
    pub(super) fn new(number: usize, windows: W, piece: Piece) -> Self {
        Self {
            number,
            windows,
            piece,
            window: None,
            used: 0,
            read: 0,
            assembled: Vec::new(),
            payload: Payload::Assembled,
        }
    }

    /// Which input of the merge this is.
    pub(super) fn number(&self) -> usize {
        self.number
    }

    pub(super) fn piece(&self) -> &Piece {
        &self.piece
    }

    /// The current block's payload; empty before the first block.
    #[inline(always)]
    pub(super) fn payload(&self) -> &[u8] {
        match (self.payload, &self.window) {
            (Payload::Window { start, end }, Some(window)) => &window.as_ref()[start..end],
            _ => &self.assembled,
        }
    }

    /// Loads the next block and returns how many records it holds; `None` at the end of the piece.
    /// One that does not hold is asked for again.
    pub(super) fn next_block(&mut self) -> Result<Option<u32>, W::Error> {
        let begin = self.read;
        loop {
            let why = match self.load_block() {
                Ok(records) => return Ok(records),
                Err(Fault::Windows(error)) => return Err(error),
                Err(Fault::Bytes(why)) => why,
            };
            self.payload = Payload::Assembled;
            self.window = None;
            if !self.windows.rewind(begin)? {
                return Err(why.into());
            }
            (self.used, self.read) = (0, begin);
        }
    }

    fn load_block(&mut self) -> Result<Option<u32>, Fault<W::Error>> {
        self.payload = Payload::Assembled;
        self.assembled.clear();
        let left = self.piece.len - self.read;
        if left == 0 {
            return self.expect_end().map(|()| None);
        }
        let header = self.header()?;
        let payload_bytes = header.payload_bytes as usize;
        let bounded = header.payload_bytes <= self.piece.block_payload_max
            && BLOCK_HEADER_BYTES as u64 + u64::from(header.payload_bytes) <= left;
        if !bounded || header.records == 0 {
            return Err(self.corrupt("a block's header contradicts the index").into());
        }
        self.take_payload(payload_bytes)?;
        if block_checksum(self.payload(), header.records) != header.checksum {
            return Err(self.corrupt("a block's checksum does not match").into());
        }
        Ok(Some(header.records))
    }

    pub(super) fn corrupt(&self, why: &str) -> KernelError {
        let at = self.piece.offset + self.read;
        KernelError::corrupt(format!(
            "piece of input {}, before byte {at} of its run: {why}",
            self.number
        ))
    }

    fn header(&mut self) -> Result<BlockHeader, Fault<W::Error>> {
        let mut header = [0; BLOCK_HEADER_BYTES];
        let mut filled = 0;
        while filled < BLOCK_HEADER_BYTES {
            let available = self.available()?;
            let count = available.len().min(BLOCK_HEADER_BYTES - filled);
            header[filled..filled + count].copy_from_slice(&available[..count]);
            filled += count;
            self.consume(count);
        }
        Ok(BlockHeader::decode(&header))
    }

    fn take_payload(&mut self, payload_bytes: usize) -> Result<(), Fault<W::Error>> {
        if self.available()?.len() >= payload_bytes {
            self.payload = Payload::Window { start: self.used, end: self.used + payload_bytes };
            self.consume(payload_bytes);
            return Ok(());
        }
        // At most the largest block of the piece, which the index bounds.
        self.assembled.reserve_exact(payload_bytes);
        while self.assembled.len() < payload_bytes {
            self.available()?;
            let Some(window) = &self.window else { continue };
            let rest = &window.as_ref()[self.used..];
            let count = rest.len().min(payload_bytes - self.assembled.len());
            self.assembled.extend_from_slice(&rest[..count]);
            self.consume(count);
        }
        Ok(())
    }

    fn consume(&mut self, count: usize) {
        self.used += count;
        self.read += count as u64;
    }

    /// The unused bytes of the window, never empty; fetches the next one when there are none. Too
    /// few bytes are an error.
    fn available(&mut self) -> Result<&[u8], Fault<W::Error>> {
        while self.window.as_ref().is_none_or(|window| self.used >= window.as_ref().len()) {
            // Given back before the next is asked for: the caller may have no other.
            self.window = None;
            self.used = 0;
            self.window = self.windows.next().map_err(Fault::Windows)?;
            if self.window.is_none() {
                return Err(self.corrupt("it ends too early").into());
            }
        }
        Ok(self.window.as_ref().map_or(&[], |window| &window.as_ref()[self.used..]))
    }

    fn expect_end(&mut self) -> Result<(), Fault<W::Error>> {
        let mut rest = self.window.take().map_or(0, |window| window.as_ref().len() - self.used);
        self.used = 0;
        while rest == 0 {
            match self.windows.next().map_err(Fault::Windows)? {
                Some(window) => rest = window.as_ref().len(),
                None => return Ok(()),
            }
        }
        Err(self.corrupt("it is longer than its index says").into())
    }
}
