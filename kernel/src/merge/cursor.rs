//! One input of a merge: its current record, that record's key and window, and the record before
//! it.

use crate::entries::prefetch;
use crate::error::KernelError;
use crate::format::frame::Layout;
use crate::merge::reader::BlockReader;
use crate::merge::{MergeInput, Windows};
use crate::order::{Order, RawKey};
use crate::proof::{Sums, record_hash};
use crate::window::Windowing;

/// How far ahead of the current record the memory is asked for: too many streams for the processor
/// to guess.
const PREFETCH_BYTES: usize = 512;

/// Walks over the records of a piece.
pub(super) struct Cursor<W: Windows> {
    reader: BlockReader<W>,
    raw: Option<RawKey>,
    trailer_len: usize,
    /// What every key begins with; windows are taken behind it.
    shared: Vec<u8>,
    /// The current record within the payload.
    start: usize,
    end: usize,
    /// The record before it within the payload; none if it lay in an earlier block and its key was
    /// saved.
    previous: Option<(usize, usize)>,
    records_left: u32,
    window: u64,
    hash: u64,
    /// Encoded keys of the current and the previous record; with raw keys `previous_key` only holds
    /// a key across blocks.
    key: Vec<u8>,
    previous_key: Vec<u8>,
    ended: bool,
    sums: Sums,
}

impl<W: Windows> Cursor<W> {
    /// A cursor before the first record.
    pub(super) fn new(number: usize, input: MergeInput<W>, order: &Order, shared: Vec<u8>) -> Self {
        Self {
            reader: BlockReader::new(number, input.windows, input.piece),
            raw: order.raw_key(),
            trailer_len: order.frame().trailer_len(),
            shared,
            start: 0,
            end: 0,
            previous: None,
            records_left: 0,
            window: 0,
            hash: 0,
            key: Vec::new(),
            previous_key: Vec::new(),
            ended: false,
            sums: Sums::default(),
        }
    }

    /// Which input of the merge this is.
    pub(super) fn number(&self) -> usize {
        self.reader.number()
    }

    /// Records so far, the current one included.
    pub(super) fn records(&self) -> u64 {
        self.sums.records
    }

    /// Sums of the records so far; those of the whole piece once ended.
    pub(super) fn sums(&self) -> Sums {
        self.sums
    }

    #[inline(always)]
    pub(super) fn ended(&self) -> bool {
        self.ended
    }

    /// Window of the current key behind the shared start; the largest once ended.
    #[inline(always)]
    pub(super) fn window(&self) -> u64 {
        self.window
    }

    /// Stored bytes of the current record.
    #[inline(always)]
    pub(super) fn stored(&self) -> &[u8] {
        &self.reader.payload()[self.start..self.end]
    }

    /// Hash of the current record's body.
    #[inline(always)]
    pub(super) fn hash(&self) -> u64 {
        self.hash
    }

    /// Key of the current record.
    #[inline(always)]
    pub(super) fn key(&self) -> &[u8] {
        self.key_at(self.start, self.end, &self.key)
    }

    /// Key of the record before the current one, or of the last one once ended.
    pub(super) fn previous_key(&self) -> &[u8] {
        match self.previous {
            Some((start, end)) => self.key_at(start, end, &self.previous_key),
            None => &self.previous_key,
        }
    }

    #[inline(always)]
    fn key_at<'a>(&'a self, start: usize, end: usize, encoded: &'a [u8]) -> &'a [u8] {
        match self.raw {
            Some(RawKey::Line) => &self.reader.payload()[start..end - self.trailer_len],
            Some(RawKey::Range { offset, len }) => {
                &self.reader.payload()[start + offset..start + offset + len]
            }
            None => encoded,
        }
    }

    /// Goes to the next record, or to the end.
    #[inline(always)]
    pub(super) fn advance(
        &mut self,
        layout: impl Layout,
        order: &Order,
        windowing: Windowing,
    ) -> Result<(), W::Error> {
        self.previous = Some((self.start, self.end));
        if self.raw.is_none() {
            std::mem::swap(&mut self.key, &mut self.previous_key);
        }
        self.start = self.end;
        if self.records_left == 0 && !self.load_block()? {
            return Ok(());
        }
        self.records_left -= 1;
        self.load_record(layout, order, windowing)?;
        Ok(())
    }

    #[inline(always)]
    fn load_record(
        &mut self,
        layout: impl Layout,
        order: &Order,
        windowing: Windowing,
    ) -> Result<(), KernelError> {
        let payload = self.reader.payload();
        prefetch(payload, self.start + PREFETCH_BYTES);
        let Some(len) = layout.end(0, &payload[self.start..]) else {
            return Err(self.reader.corrupt("a block holds fewer records than it says"));
        };
        let end = self.start + len;
        let body = &payload[self.start..end - self.trailer_len];
        let hash = record_hash(body);
        let body_bytes = body.len();
        let key = match self.raw {
            Some(RawKey::Line) => body,
            Some(RawKey::Range { offset, len }) => &body[offset..offset + len],
            None => {
                order.key_into(body, &mut self.key);
                &self.key
            }
        };
        // Asked first: a comparison of no bytes is a call, and a slow one.
        if !self.shared.is_empty() && !key.starts_with(&self.shared) {
            let what = format!(
                "record {} of input {} lies outside of its partition",
                self.sums.records + 1,
                self.number()
            );
            return Err(KernelError::OutOfOrder { what });
        }
        self.window = windowing.window(key, self.shared.len());
        self.hash = hash;
        self.end = end;
        self.sums.add_hashed(body_bytes, hash);
        Ok(())
    }

    /// Loads the next block, keeping the previous key; at the end checks the piece's sums and
    /// returns `false`.
    #[cold]
    fn load_block(&mut self) -> Result<bool, W::Error> {
        if self.start != self.reader.payload().len() {
            return Err(self.reader.corrupt("a block holds more records than it says").into());
        }
        if let (Some((start, end)), true) =
            (self.previous.take(), self.raw.is_some() && self.sums.records > 0)
        {
            let mut saved = std::mem::take(&mut self.previous_key);
            saved.clear();
            saved.extend_from_slice(self.key_at(start, end, &[]));
            self.previous_key = saved;
        }
        (self.start, self.end) = (0, 0);
        if let Some(records) = self.reader.next_block()? {
            self.records_left = records;
            return Ok(true);
        }
        self.ended = true;
        self.window = u64::MAX;
        let expected = self.reader.piece().sums;
        if self.sums != expected {
            let what = format!("the piece of input {}", self.number());
            return Err(KernelError::SumsDiffer { what, expected, found: self.sums }.into());
        }
        Ok(false)
    }
}
