//! Splits: how input is divided among sort tasks, and which records of an object belong to which
//! piece.
//!
//! A split is a list of intervals of objects, contiguous in global position. A line belongs to the
//! interval that holds its first byte, so whoever reads an interval looks one byte back (is it a
//! line start?) and reads on past the end until its last line is complete. The interval that was
//! *consumed* then differs from the planned one, and it is the consumed ones that must tile the
//! objects (P1).

use std::ops::Range;

use memchr::memchr;

use crate::error::{BadRecord, KernelError};
use crate::proof::Interval;
use crate::record::Format;

/// Packs objects into splits of about `split_bytes`, in order: many small objects share a split, a
/// large one is cut, at record boundaries where records have a fixed length. Splits are even: their
/// number is the least that keeps to `split_bytes` (a record more for fixed ones), and their sizes
/// differ by rounding only. Empty objects are in no split.
pub fn plan_splits(object_sizes: &[u64], format: &Format, split_bytes: u64) -> Vec<Vec<Interval>> {
    let total: u64 = object_sizes.iter().sum();
    let count = total.div_ceil(split_bytes.max(1));
    let target = total.div_ceil(count.max(1)).max(1);
    let mut splits = Vec::new();
    let mut split: Vec<Interval> = Vec::new();
    let mut cut = target;
    let mut base = 0;
    for (object, &size) in (0u32..).zip(object_sizes) {
        let mut begin = 0;
        while begin < size {
            let end = if cut >= base + size { size } else { align(cut - base, format).max(begin) };
            if end > begin {
                split.push(Interval { object, begin, end });
                begin = end;
            }
            if base + end >= cut || end < size {
                cut += target;
                if !split.is_empty() {
                    splits.push(std::mem::take(&mut split));
                }
            }
        }
        base += size;
    }
    if !split.is_empty() {
        splits.push(split);
    }
    splits
}

fn align(offset: u64, format: &Format) -> u64 {
    match *format {
        Format::Lines { .. } => offset,
        Format::Fixed { len } => offset - offset % u64::from(len.max(1)),
    }
}

/// Global position of each object's first byte: the sum of the sizes before it.
pub fn object_positions(object_sizes: &[u64]) -> Vec<u64> {
    object_sizes
        .iter()
        .scan(0, |position, size| {
            let here = *position;
            *position += size;
            Some(here)
        })
        .collect()
}

/// What to do with pushed bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The part of the pushed bytes that belongs to the interval's records.
    pub take: Range<usize>,
    /// Whether no more bytes are needed.
    pub done: bool,
}

/// Finds the bytes of an interval's records in the bytes of its object. Push parser: read the
/// object from [`Cutter::read_from`] on and push what arrives until a [`Cut`] is done.
#[derive(Clone, Debug)]
pub struct Cutter {
    interval: Interval,
    object_bytes: u64,
    terminator: Option<u8>,
    /// Offset in the object of the next pushed byte.
    at: u64,
    consumed: Range<u64>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Looking for the terminator before the first record.
    Skipping,
    Taking,
    Done,
}

impl Cutter {
    /// A cutter for `interval` of an object of `object_bytes` bytes. Fixed-length records: an
    /// interval that is not aligned, or an object that is no multiple of the record length, is
    /// [`KernelError::BadRecord`] with an offset in the object.
    pub fn new(
        format: &Format,
        interval: Interval,
        object_bytes: u64,
    ) -> Result<Self, KernelError> {
        Self::of(format, interval, object_bytes, false)
    }

    /// The same for an object that may end within a record: what is left there belongs to the
    /// interval that ends with the object.
    pub fn lenient(
        format: &Format,
        interval: Interval,
        object_bytes: u64,
    ) -> Result<Self, KernelError> {
        Self::of(format, interval, object_bytes, true)
    }

    fn of(
        format: &Format,
        interval: Interval,
        object_bytes: u64,
        torn: bool,
    ) -> Result<Self, KernelError> {
        if interval.begin > interval.end || interval.end > object_bytes {
            let Interval { object, begin, end } = interval;
            return Err(KernelError::corrupt(format!(
                "plan: bytes {begin}..{end} of object {object}, which has {object_bytes}"
            )));
        }
        let terminator = match *format {
            Format::Lines { terminator } => Some(terminator),
            Format::Fixed { len } => {
                check_aligned(interval, object_bytes, len, torn)?;
                None
            }
        };
        let skips = terminator.is_some() && interval.begin > 0;
        let (begin, end) = (interval.begin, interval.end);
        let state = match (begin == end, skips) {
            (true, _) => State::Done,
            (false, true) => State::Skipping,
            (false, false) => State::Taking,
        };
        Ok(Self {
            interval,
            object_bytes,
            terminator,
            at: begin - u64::from(skips),
            consumed: begin..begin,
            state,
        })
    }

    /// Offset in the object of the first byte to push.
    pub fn read_from(&self) -> u64 {
        self.at
    }

    /// Whether no more bytes are needed; an empty interval needs none at all.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// The bytes of the object that belong to this interval's records, so far: complete once done.
    /// Empty when no record begins here.
    pub fn consumed(&self) -> Range<u64> {
        self.consumed.clone()
    }

    /// Looks at the next bytes of the object. Bytes after the object's end, or after done, are
    /// ignored.
    pub fn push(&mut self, bytes: &[u8]) -> Cut {
        let left = usize::try_from(self.object_bytes - self.at).unwrap_or(usize::MAX);
        let bytes = &bytes[..bytes.len().min(left)];
        let start = match self.state {
            State::Done => return Cut { take: 0..0, done: true },
            State::Taking => 0,
            State::Skipping => self.skip(bytes),
        };
        let mut end = start;
        if self.state == State::Taking {
            end = self.end_of_take(bytes, start);
            self.consumed.end += (end - start) as u64;
        }
        self.at += bytes.len() as u64;
        if self.at == self.object_bytes {
            self.state = State::Done;
        }
        Cut { take: start..end, done: self.state == State::Done }
    }

    /// Looks for the first record that begins in the interval; returns where it begins in `bytes`.
    fn skip(&mut self, bytes: &[u8]) -> usize {
        // A record begins after a terminator; it must begin before the interval's end, so the last
        // byte that matters is two before it.
        let relevant =
            usize::try_from(self.interval.end - 1 - self.at).unwrap_or(usize::MAX).min(bytes.len());
        let found = self.terminator.and_then(|terminator| memchr(terminator, &bytes[..relevant]));
        match found {
            Some(found) => {
                let begin = self.at + found as u64 + 1;
                self.consumed = begin..begin;
                self.state = State::Taking;
                found + 1
            }
            None => {
                if self.at + relevant as u64 == self.interval.end - 1 {
                    self.state = State::Done;
                }
                0
            }
        }
    }

    /// Where the taken bytes end in `bytes`, which are taken from `start` on.
    fn end_of_take(&mut self, bytes: &[u8], start: usize) -> usize {
        let Some(terminator) = self.terminator else {
            let left = usize::try_from(self.interval.end - self.at).unwrap_or(usize::MAX);
            if left <= bytes.len() {
                self.state = State::Done;
            }
            return left.min(bytes.len());
        };
        // The last record is the one that holds the interval's last byte.
        let last = usize::try_from((self.interval.end - 1).saturating_sub(self.at))
            .unwrap_or(usize::MAX)
            .max(start);
        let found = bytes.get(last..).and_then(|tail| memchr(terminator, tail));
        match found {
            Some(found) => {
                self.state = State::Done;
                last + found + 1
            }
            None => bytes.len(),
        }
    }
}

fn check_aligned(
    interval: Interval,
    object_bytes: u64,
    len: u32,
    torn: bool,
) -> Result<(), KernelError> {
    let over = object_bytes % u64::from(len);
    if over != 0 && !torn {
        let reason = BadRecord::Truncated { found: over, len };
        return Err(KernelError::BadRecord { position: object_bytes - over, reason });
    }
    for offset in [interval.begin, interval.end] {
        if offset % u64::from(len) != 0 && !(torn && offset == object_bytes) {
            return Err(KernelError::BadRecord {
                position: offset,
                reason: BadRecord::Misaligned { offset, len },
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
