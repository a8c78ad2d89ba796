//! Run generation: takes the records of a split as they arrive, holds as many as the budget allows,
//! and writes them in order.
//!
//! A *chunk* is what is held at one time. The caller feeds bytes until the sorter is full or the
//! split ends, sorts, writes (a run, or a spill that is merged into the run later), resets, and
//! goes on. Records cost their bytes plus 16, and where keys are encoded ([`crate::order`]) the key
//! plus 12. Hashes and windows are taken while the bytes are still in the cache.
//!
//! A long record ([`LONG_RECORD_BYTES`]) is held more than once on its way: where it is written,
//! and where runs are merged. That is counted here, so that what a sorter takes in can also be
//! written and merged within the budget.
//!
//! Relies on positions that ascend from `begin` to `begin`: input order decides between equal keys.
//! Never allocates beyond the budget, up to one encoded key (before it is counted) and 128 KiB of
//! scratch while it sorts.

use std::mem::size_of;
use std::sync::Arc;

use crate::entries::{self, ENCODED_HEADER_BYTES, Keys};
use crate::error::KernelError;
use crate::format::RECORD_BYTES_MAX;
use crate::format::frame::{Layout, with_layout};
use crate::order::{Order, RawKey};
use crate::proof::{Sums, record_hash};
use crate::slab::{Growth, Slab};
use crate::window::Windowing;

mod chunk;

pub use chunk::SortedChunk;

/// Bytes that are copied and then scanned in one go: they stay in the second-level cache between
/// the two.
const STEP_BYTES: usize = 64 << 10;
/// A record beyond this size counts with what it takes elsewhere; shorter ones lie within I/O
/// buffers.
pub const LONG_RECORD_BYTES: usize = 1 << 20;
/// How often a long record is held beside the sorter: being written and on its way, or read from
/// two runs.
const LONG_RECORD_COPIES: usize = 4;
/// Offsets in a chunk are u32.
const CHUNK_BYTES_MAX: usize = u32::MAX as usize;

/// Sorts chunks of records within a byte budget, reusing its memory.
#[derive(Debug)]
pub struct ChunkSorter {
    order: Arc<Order>,
    windowing: Windowing,
    raw: Option<RawKey>,
    slab: Slab,
    /// Where contiguous input begins: (offset in the data, global position). Encoded chunks keep
    /// the open record's only.
    segments: Vec<Segment>,
    /// Start of the record that is not complete yet; all data behind it belongs to it.
    open: usize,
    sums: Sums,
    scratch: Vec<u8>,
    record_bytes_max: usize,
    /// Bytes of the longest record that is held, or of what is held of it; 0 where none is long.
    longest: usize,
    release: Option<fn(&mut [u8])>,
}

#[derive(Clone, Copy, Debug)]
struct Segment {
    offset: usize,
    position: u64,
}

/// What stopped a scan.
enum Scan {
    /// All that was given is consumed.
    Done,
    /// There is no room for the next entry.
    Full,
    /// The record that ends there, its terminator included, is too long.
    TooLong(usize),
}

impl ChunkSorter {
    /// An empty sorter that keeps to `budget_bytes`; memory is taken as it is needed.
    pub fn new(order: Arc<Order>, budget_bytes: usize) -> Self {
        Self {
            windowing: Windowing::of(&order),
            raw: order.raw_key(),
            order,
            slab: Slab::new(budget_bytes),
            segments: Vec::new(),
            open: 0,
            sums: Sums::default(),
            scratch: Vec::new(),
            record_bytes_max: RECORD_BYTES_MAX as usize,
            longest: 0,
            release: None,
        }
    }

    /// A budget with which a record of so many bytes can be sorted, whatever its key.
    pub fn budget_for(order: &Order, record_bytes: u64) -> u64 {
        let long = record_bytes > LONG_RECORD_BYTES as u64;
        let copies = if long { LONG_RECORD_COPIES as u64 } else { 0 };
        // An encoded key is about as long as the record at most; it grows beside the data, by
        // doubling, before it is put there.
        let keys = if order.raw_key().is_some() { 0 } else { 3 };
        record_bytes.saturating_mul(1 + copies + keys).saturating_add(4 * STEP_BYTES as u64)
    }

    /// Has every block of fresh memory passed to `advise` before its first use. `advise` must not
    /// write.
    ///
    /// On Linux with transparent huge pages on request, asking for them there (`madvise`) halves
    /// the time of [`SortedChunk::write`]: it reads records at random, and with 4 KiB pages nearly
    /// every one of them misses the processor's address cache.
    #[must_use]
    pub fn with_memory_advice(mut self, advise: fn(&mut [u8])) -> Self {
        self.slab.set_advice(advise);
        self
    }

    /// Has memory that is touched and free passed to `release`, which may forget what is there,
    /// when a long record is about to take as much elsewhere.
    #[must_use]
    pub fn with_memory_release(mut self, release: fn(&mut [u8])) -> Self {
        self.release = Some(release);
        self
    }

    /// Asks `grant` before every large block of memory; what it refuses counts as refused by the
    /// system.
    #[must_use]
    pub fn with_memory_grant(mut self, grant: fn(usize) -> bool) -> Self {
        self.slab.set_grant(grant);
        self
    }

    /// Takes no record whose body is longer than this; by default and at most [`RECORD_BYTES_MAX`].
    #[must_use]
    pub fn with_record_bytes_max(mut self, bytes: u64) -> Self {
        self.record_bytes_max = bytes.min(RECORD_BYTES_MAX) as usize;
        self
    }

    /// Global position and bytes of the record that is not complete: what is held of it. After
    /// [`KernelError::RecordTooLong`], [`KernelError::Budget`] or [`KernelError::BadRecord`] it is
    /// the one that the error blames, and what was fed reaches up to its end.
    pub fn open_record(&self) -> (u64, &[u8]) {
        (self.open_position(), &self.slab.bytes()[self.open..])
    }

    /// Forgets the record that is not complete. The next byte needs a [`ChunkSorter::begin`] of its
    /// own.
    pub fn discard_open(&mut self) {
        self.slab.truncate_bytes(self.open);
        if self.records() == 0 {
            self.longest = 0;
            self.slab.set_outside_bytes(self.overhead());
        }
    }

    /// Says that the next fed byte has global position `position`: the start of a contiguous
    /// interval, at a record boundary.
    ///
    /// # Panics
    /// If the record before it was not completed ([`ChunkSorter::end_object`]); that is a bug of
    /// the caller.
    pub fn begin(&mut self, position: u64) {
        assert_eq!(self.open, self.slab.bytes_len(), "an interval begins within a record");
        let offset = self.open;
        match self.segments.last_mut() {
            Some(last)
                if last.position + (offset - last.offset) as u64 == position
                    && self.raw.is_some() => {}
            Some(last) if last.offset == offset || self.raw.is_none() => {
                *last = Segment { offset, position }
            }
            _ => self.segments.push(Segment { offset, position }),
        }
        self.slab.set_outside_bytes(self.overhead());
    }

    /// Takes the next bytes and returns how many. Fewer than given means full: sort, write, reset,
    /// and feed the rest. Zero bytes taken by an empty sorter cannot happen: a record that does not
    /// fit alone is [`KernelError::Budget`], one above the limit [`KernelError::RecordTooLong`].
    pub fn feed(&mut self, bytes: &[u8]) -> Result<usize, KernelError> {
        let mut taken = 0;
        while taken < bytes.len() {
            let (step, scan) = match self.raw {
                Some(_) => self.feed_raw(&bytes[taken..])?,
                None => self.feed_encoded(&bytes[taken..])?,
            };
            taken += step;
            if matches!(scan, Scan::Full) && !self.make_room()? {
                break;
            }
        }
        Ok(taken)
    }

    /// Ends the object: completes a last line that has no terminator. `false` means full first:
    /// sort, write, reset, and call again. A part of a fixed-length record is
    /// [`KernelError::BadRecord`].
    pub fn end_object(&mut self) -> Result<bool, KernelError> {
        let found = self.slab.bytes_len() - self.open;
        if found == 0 {
            return Ok(true);
        }
        let closed_by =
            self.order.frame().closed_by(found as u64).map_err(|reason| {
                KernelError::BadRecord { position: self.open_position(), reason }
            })?;
        Ok(self.feed(&[closed_by])? == 1)
    }

    /// Whether no byte is held, not even of an incomplete record.
    pub fn is_empty(&self) -> bool {
        self.slab.bytes_len() == 0
    }

    /// Complete records held.
    pub fn records(&self) -> usize {
        self.slab.entries_len()
    }

    /// Bytes of memory that the held data takes.
    pub fn used_bytes(&self) -> usize {
        self.slab.bytes_len() + self.slab.entries_len() * size_of::<u128>() + self.overhead()
    }

    /// Flips one bit of one record that is held and summed up already, as failing memory would: for
    /// fault injection.
    pub fn flip_bit(&mut self, random: u64) {
        let (data, entries) = self.slab.split();
        let keys = Keys { data, raw: self.raw, windowing: self.windowing };
        let count = entries.len().max(1) as u64;
        let Some(entry) = entries.get((random % count) as usize) else { return };
        let record = keys.record_range(*entry);
        let at = record.start + ((random >> 20) % record.len().max(1) as u64) as usize;
        self.slab.flip(at, (random >> 61) as u32);
    }

    /// Sorts the complete records that are held.
    pub fn sort(&mut self) -> SortedChunk<'_> {
        if let Some(release) = self.release.filter(|_| self.longest > 0) {
            self.slab.release_free(release);
        }
        let (data, entries) = self.slab.split();
        let keys = Keys { data, raw: self.raw, windowing: self.windowing };
        entries::sort(entries, &keys);
        SortedChunk::new(&self.order, keys, entries, &self.segments, self.sums)
    }

    /// Forgets the records, keeps the memory, and carries over the bytes of an incomplete record.
    pub fn reset(&mut self) {
        let position = if self.segments.is_empty() { 0 } else { self.open_position() };
        self.slab.keep_tail(self.open);
        self.open = 0;
        self.longest =
            Some(self.slab.bytes_len()).filter(|&held| held > LONG_RECORD_BYTES).unwrap_or(0);
        self.segments.clear();
        self.segments.push(Segment { offset: 0, position });
        self.sums = Sums::default();
        // One giant record must not cost the following chunks its key's memory.
        if self.scratch.capacity() > STEP_BYTES {
            self.scratch = Vec::new();
        }
        self.slab.set_outside_bytes(self.overhead());
    }

    /// Gives its memory back; what it holds is forgotten. The next byte needs a
    /// [`ChunkSorter::begin`] of its own.
    pub fn release_memory(&mut self) {
        self.slab.clear();
        self.open = 0;
        self.segments.clear();
        self.reset();
    }

    /// Global position of the record that is not complete yet.
    fn open_position(&self) -> u64 {
        self.segments.last().map_or(0, |last| last.position + (self.open - last.offset) as u64)
    }

    /// Bytes beside the slab.
    fn overhead(&self) -> usize {
        self.segments.capacity() * size_of::<Segment>()
            + self.scratch.capacity()
            + LONG_RECORD_COPIES * self.longest
    }

    /// So much is held of the open record.
    #[inline]
    fn note_length(&mut self, bytes: usize) {
        if bytes > LONG_RECORD_BYTES && bytes > self.longest {
            self.longest = bytes;
            self.slab.set_outside_bytes(self.overhead());
        }
    }

    /// Bytes that may still be written to the slab, keeping room for one entry.
    fn room(&self) -> usize {
        self.slab
            .free()
            .saturating_sub(size_of::<u128>())
            .min(CHUNK_BYTES_MAX - self.slab.bytes_len().min(CHUNK_BYTES_MAX))
    }

    /// After a full scan: grows the memory. `Ok(false)` when the caller has to write first.
    fn make_room(&mut self) -> Result<bool, KernelError> {
        let refused = match self.slab.grow() {
            Growth::Grown => return Ok(true),
            Growth::Full => None,
            Growth::Refused(bytes) => Some(bytes),
        };
        if self.records() > 0 {
            return Ok(false);
        }
        if let Some(needed) = refused {
            return Err(KernelError::Memory { needed: needed as u64 });
        }
        let held = (self.slab.bytes_len() - self.open) as u64;
        let needed = held + (self.overhead() + size_of::<u128>()) as u64 + 1;
        let budget = self.slab.budget_bytes() as u64;
        Err(KernelError::Budget {
            position: self.open_position(),
            needed: needed.max(budget + 1),
            budget,
        })
    }

    fn check_length(&self, body_bytes: usize) -> Result<(), KernelError> {
        if body_bytes > self.record_bytes_max {
            return Err(self.too_long());
        }
        Ok(())
    }

    fn too_long(&self) -> KernelError {
        KernelError::RecordTooLong {
            position: self.open_position(),
            limit: self.record_bytes_max as u64,
        }
    }

    /// Raw keys: copies a step, then finds the records in the copy.
    fn feed_raw(&mut self, bytes: &[u8]) -> Result<(usize, Scan), KernelError> {
        let before = self.slab.bytes_len();
        let step = bytes.len().min(STEP_BYTES).min(self.room());
        self.slab.push_bytes(&bytes[..step]);
        let scan = with_layout!(self.order.frame(), layout => self.scan(before, layout));
        match scan {
            Scan::Done => {
                let held = self.slab.bytes_len() - self.open;
                self.check_length(held)?;
                self.note_length(held);
            }
            // What follows the last record that found room is given back.
            Scan::Full => self.slab.truncate_bytes(before.max(self.open)),
            Scan::TooLong(end) => {
                self.slab.truncate_bytes(end - self.trailer_len());
                return Err(self.too_long());
            }
        }
        let taken = self.slab.bytes_len() - before;
        Ok((taken, if step == 0 { Scan::Full } else { scan }))
    }

    fn scan(&mut self, from: usize, layout: impl Layout) -> Scan {
        let mut at = from;
        while let Some(found) = layout.end(at - self.open, &self.slab.bytes()[at..]) {
            at += found;
            if at - self.open > self.record_bytes_max + self.trailer_len() {
                return Scan::TooLong(at);
            }
            if !self.add_raw(at) {
                return Scan::Full;
            }
        }
        Scan::Done
    }

    fn trailer_len(&self) -> usize {
        self.order.frame().trailer_len()
    }

    /// Adds the record `open..end` of the data; `false` if there is no room for its entry.
    #[inline(always)]
    fn add_raw(&mut self, end: usize) -> bool {
        let stored = &self.slab.bytes()[self.open..end];
        let body = self.order.frame().body(stored);
        let key = match self.raw {
            Some(RawKey::Range { offset, len }) => &body[offset..offset + len],
            _ => body,
        };
        let entry = entries::entry(self.windowing.window(key, 0), self.open, stored.len());
        let hash = record_hash(body);
        let body_bytes = body.len();
        if !self.slab.push_entry(entry) {
            return false;
        }
        self.sums.add_hashed(body_bytes, hash);
        self.open = end;
        true
    }

    /// Encoded keys: finds one record in the input, copies it, and puts its key behind it.
    fn feed_encoded(&mut self, bytes: &[u8]) -> Result<(usize, Scan), KernelError> {
        let before = self.slab.bytes_len();
        let open_len = before - self.open;
        let end = self.order.frame().end(open_len, bytes);
        let (step, complete) = (end.unwrap_or(bytes.len()), end.is_some());
        self.check_length(open_len + step - if complete { self.trailer_len() } else { 0 })?;
        self.note_length(open_len + step.min(self.room()));
        let header = if complete { ENCODED_HEADER_BYTES } else { 0 };
        let room = self.room();
        if step + header > room {
            // An incomplete record may be taken in parts; of a complete one the terminator must
            // wait for its key's room.
            let part = if complete { 0 } else { room };
            self.slab.push_bytes(&bytes[..part]);
            return Ok((part, Scan::Full));
        }
        self.slab.push_bytes(&bytes[..step]);
        if complete && !self.add_encoded() {
            self.slab.truncate_bytes(before);
            return Ok((0, Scan::Full));
        }
        Ok((step, Scan::Done))
    }

    /// Adds the record that ends where the data ends; `false` if there is no room for its key.
    fn add_encoded(&mut self) -> bool {
        let position = self.open_position();
        let stored = &self.slab.bytes()[self.open..];
        let stored_len = stored.len();
        let body = self.order.frame().body(stored);
        let mut sums = Sums::default();
        sums.add(body);
        self.order.key_into(body, &mut self.scratch);
        self.slab.set_outside_bytes(self.overhead());
        let key_len = self.scratch.len();
        if key_len > u32::MAX as usize || self.room() < ENCODED_HEADER_BYTES + key_len {
            return false;
        }
        self.slab.push_bytes(&position.to_le_bytes());
        self.slab.push_bytes(&(stored_len as u32).to_le_bytes());
        let offset = self.slab.bytes_len();
        self.slab.push_bytes(&self.scratch);
        let window = self.windowing.window(&self.scratch, 0);
        if !self.slab.push_entry(entries::entry(window, offset, key_len)) {
            return false;
        }
        self.sums.merge(&sums);
        self.open = self.slab.bytes_len();
        self.segments.clear();
        self.segments.push(Segment { offset: self.open, position: position + stored_len as u64 });
        true
    }
}

#[cfg(test)]
mod tests;
