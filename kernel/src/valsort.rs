//! Judges whether records are in order, and sums them, as the sort benchmark's valsort does.
//!
//! Place in the flow: `muster verify` feeds each output part to a [`Validator`] of its own, in
//! parallel if it likes, joins the [`Summary`]s in the order of the parts with [`Summary::join`],
//! and prints the result. [`ChunkValidator`] does the same for a stream that is cut anywhere.
//!
//! What "in order" means is the caller's: a [`KeyOf`] gives the bytes of each record that are
//! compared, shorter first where one begins with the other. Everything else is valsort's: a record
//! is *unordered* if its key is below that of the record just before it (not of the highest so
//! far), and a *duplicate* if the keys are equal; records are counted from 0; the checksum is the
//! sum of the records' CRC32s. Two things differ: no records at all are in order here, where
//! valsort refuses an empty file, and a record need not have 100 bytes.
//!
//! Joining is associative and the empty summary changes nothing, so parts may be grouped at will,
//! as long as their order is kept.
//!
//! Never here: files, threads, or a comparison with the sums of the input (`muster verify
//! --against` does that).

use std::fmt;
use std::num::NonZeroUsize;
use std::ops::{Add, AddAssign};

/// The sum of the zlib CRC32s of a set of records, modulo 2^128; whatever their order, the sum is
/// the same.
///
/// Displayed as gensort and valsort do: lower-case hex without padding.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Checksum(pub u128);

impl Checksum {
    /// Adds one record, given without its terminator.
    #[inline]
    pub fn add_record(&mut self, record: &[u8]) {
        self.0 = self.0.wrapping_add(u128::from(crc32fast::hash(record)));
    }
}

impl Add for Checksum {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0.wrapping_add(other.0))
    }
}

impl AddAssign for Checksum {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// Finds, or makes, the bytes of a record that are compared.
pub trait KeyOf {
    /// The key of `record` (given without its terminator): a part of it, or bytes put into
    /// `scratch`, which is empty on entry.
    ///
    /// Must give some key for any bytes whatever: what is verified may be damaged.
    fn key<'a>(&self, record: &'a [u8], scratch: &'a mut Vec<u8>) -> &'a [u8];
}

impl<K: KeyOf + ?Sized> KeyOf for &K {
    #[inline]
    fn key<'a>(&self, record: &'a [u8], scratch: &'a mut Vec<u8>) -> &'a [u8] {
        (**self).key(record, scratch)
    }
}

/// The key is a range of the record's bytes, or what the record has of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyRange {
    /// First byte of the key, counted from 0.
    pub offset: usize,
    /// Its length in bytes.
    pub len: usize,
}

impl KeyRange {
    /// The first ten bytes: gensort's key.
    pub const GENSORT: Self = Self { offset: 0, len: 10 };
    /// All bytes of the record.
    pub const WHOLE: Self = Self { offset: 0, len: usize::MAX };
}

impl KeyOf for KeyRange {
    #[inline]
    fn key<'a>(&self, record: &'a [u8], _scratch: &'a mut Vec<u8>) -> &'a [u8] {
        let from = record.get(self.offset..).unwrap_or_default();
        &from[..self.len.min(from.len())]
    }
}

/// What is known of some records that stand one after the other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// How many records there are.
    pub records: u64,
    /// Their bytes, without terminators.
    pub bytes: u64,
    /// The sum of their CRC32s.
    pub checksum: Checksum,
    /// How many records have the same key as the record just before them.
    pub duplicate_keys: u64,
    /// How many records have a lower key than the record just before them.
    pub unordered: u64,
    /// The number, from 0, of the first such record.
    pub first_unordered: Option<u64>,
    /// The keys at both ends; none if there are no records.
    pub ends: Option<Ends>,
}

/// The keys of the first and of the last record of a row; these need not be the lowest and the
/// highest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ends {
    /// Key of the first record.
    pub first: Vec<u8>,
    /// Key of the last record.
    pub last: Vec<u8>,
}

impl Summary {
    /// Whether no record has a lower key than the one before it; true of no records.
    #[must_use]
    pub fn in_order(&self) -> bool {
        self.unordered == 0
    }

    /// The summary of these records followed by those of `next`; the two that meet at the border
    /// are compared as well.
    #[must_use]
    pub fn join(mut self, next: Self) -> Self {
        let border = self.records;
        self.first_unordered = self
            .first_unordered
            .or(next.first_unordered.map(|number| border.saturating_add(number)));
        if let (Some(here), Some(there)) = (&self.ends, &next.ends) {
            match here.last.cmp(&there.first) {
                std::cmp::Ordering::Less => {}
                std::cmp::Ordering::Equal => {
                    self.duplicate_keys = self.duplicate_keys.saturating_add(1);
                }
                std::cmp::Ordering::Greater => self.note_unordered(border),
            }
        }
        self.records = border.saturating_add(next.records);
        self.bytes = self.bytes.saturating_add(next.bytes);
        self.checksum += next.checksum;
        self.duplicate_keys = self.duplicate_keys.saturating_add(next.duplicate_keys);
        self.unordered = self.unordered.saturating_add(next.unordered);
        self.ends = match (self.ends, next.ends) {
            (Some(here), Some(there)) => Some(Ends { first: here.first, last: there.last }),
            (here, there) => here.or(there),
        };
        self
    }

    fn note_unordered(&mut self, number: u64) {
        self.unordered = self.unordered.saturating_add(1);
        self.first_unordered = Some(self.first_unordered.map_or(number, |first| first.min(number)));
    }
}

/// valsort's report, word for word, without a newline at the end. Like valsort it names duplicates
/// only where the records are in order.
impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(number) = self.first_unordered {
            writeln!(f, "First unordered record is record {number}")?;
        }
        writeln!(f, "Records: {}", self.records)?;
        writeln!(f, "Checksum: {}", self.checksum)?;
        if self.in_order() {
            writeln!(f, "Duplicate keys: {}", self.duplicate_keys)?;
            write!(f, "SUCCESS - all records are in order")
        } else {
            write!(f, "ERROR - there are {} unordered records", self.unordered)
        }
    }
}

/// Judges records that are given one by one.
#[derive(Debug, Clone)]
pub struct Validator<K> {
    key_of: K,
    scratch: Vec<u8>,
    summary: Summary,
}

impl<K: KeyOf> Validator<K> {
    /// Before the first record.
    pub fn new(key_of: K) -> Self {
        Self { key_of, scratch: Vec::new(), summary: Summary::default() }
    }

    /// Takes the next record, given without its terminator.
    #[inline]
    pub fn record(&mut self, record: &[u8]) {
        self.scratch.clear();
        let key = self.key_of.key(record, &mut self.scratch);
        let summary = &mut self.summary;
        match &mut summary.ends {
            None => summary.ends = Some(Ends { first: key.to_vec(), last: key.to_vec() }),
            Some(Ends { last, .. }) => {
                let order = last.as_slice().cmp(key);
                if order.is_ne() {
                    last.clear();
                    last.extend_from_slice(key);
                }
                match order {
                    std::cmp::Ordering::Less => {}
                    std::cmp::Ordering::Equal => summary.duplicate_keys += 1,
                    std::cmp::Ordering::Greater => summary.note_unordered(summary.records),
                }
            }
        }
        summary.records += 1;
        summary.bytes += record.len() as u64;
        summary.checksum.add_record(record);
    }

    /// What is known of the records so far.
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// What is known of all records.
    pub fn finish(self) -> Summary {
        self.summary
    }
}

/// How a stream of bytes divides into records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Records of so many bytes each.
    Fixed(NonZeroUsize),
    /// Records that end in a terminator, which is no part of them; the last one's may be missing.
    Delimited {
        /// The byte that ends a record.
        terminator: u8,
        /// The longest record, in bytes without the terminator, that is taken: what bounds the
        /// memory of a validator.
        record_bytes_max: usize,
    },
}

/// Judges a stream that is given in chunks, cut anywhere.
#[derive(Debug, Clone)]
pub struct ChunkValidator<K> {
    shape: Shape,
    validator: Validator<K>,
    /// The beginning of a record that the next chunk continues.
    carry: Vec<u8>,
}

impl<K: KeyOf> ChunkValidator<K> {
    /// Before the first chunk.
    pub fn new(shape: Shape, key_of: K) -> Self {
        Self { shape, validator: Validator::new(key_of), carry: Vec::new() }
    }

    /// Takes the next bytes of the stream.
    ///
    /// # Errors
    /// [`Malformed::RecordTooLong`]; a stream that gave an error is not to be fed further.
    pub fn feed(&mut self, chunk: &[u8]) -> Result<(), Malformed> {
        match self.shape {
            Shape::Fixed(record_bytes) => {
                self.feed_fixed(chunk, record_bytes.get());
                Ok(())
            }
            Shape::Delimited { terminator, record_bytes_max } => {
                self.feed_delimited(chunk, terminator, record_bytes_max)
            }
        }
    }

    /// What is known of all records. Where the last terminator is missing, the last record ends
    /// with the stream.
    ///
    /// # Errors
    /// [`Malformed::Torn`] if a record of fixed length is cut off by the end of the stream.
    pub fn finish(mut self) -> Result<Summary, Malformed> {
        if !self.carry.is_empty() {
            if let Shape::Fixed(record_bytes) = self.shape {
                let record = self.validator.summary.records;
                return Err(Malformed::Torn {
                    record,
                    bytes: self.carry.len(),
                    record_bytes: record_bytes.get(),
                });
            }
            self.validator.record(&self.carry);
        }
        Ok(self.validator.finish())
    }

    fn feed_fixed(&mut self, chunk: &[u8], record_bytes: usize) {
        let mut rest = chunk;
        if !self.carry.is_empty() {
            let missing = record_bytes - self.carry.len();
            let (head, tail) = rest.split_at(missing.min(rest.len()));
            self.carry.extend_from_slice(head);
            rest = tail;
            if self.carry.len() < record_bytes {
                return;
            }
            self.validator.record(&self.carry);
            self.carry.clear();
        }
        let records = rest.chunks_exact(record_bytes);
        self.carry.extend_from_slice(records.remainder());
        records.for_each(|record| self.validator.record(record));
    }

    fn feed_delimited(
        &mut self,
        chunk: &[u8],
        terminator: u8,
        record_bytes_max: usize,
    ) -> Result<(), Malformed> {
        let mut rest = chunk;
        while let Some(end) = position(terminator, rest) {
            self.check_length(end, record_bytes_max)?;
            if self.carry.is_empty() {
                self.validator.record(&rest[..end]);
            } else {
                self.carry.extend_from_slice(&rest[..end]);
                self.validator.record(&self.carry);
                self.carry.clear();
            }
            rest = &rest[end + 1..];
        }
        self.check_length(rest.len(), record_bytes_max)?;
        self.carry.extend_from_slice(rest);
        Ok(())
    }

    /// Whether the record that is carried over may be `more` bytes longer.
    fn check_length(&self, more: usize, record_bytes_max: usize) -> Result<(), Malformed> {
        if record_bytes_max - self.carry.len() < more {
            return Err(Malformed::RecordTooLong {
                record: self.validator.summary.records,
                record_bytes_max,
            });
        }
        Ok(())
    }
}

/// Where `byte` first occurs. Looks at 32 bytes at once, which the compiler turns into vector
/// compares.
fn position(byte: u8, bytes: &[u8]) -> Option<usize> {
    let (blocks, _) = bytes.as_chunks::<32>();
    let free = blocks
        .iter()
        .take_while(|block| !block.iter().fold(false, |found, b| found | (*b == byte)))
        .count()
        * 32;
    bytes[free..].iter().position(|b| *b == byte).map(|at| free + at)
}

/// The stream does not divide into records of its shape. Records are counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// The stream ends within a record of fixed length.
    Torn {
        /// The record's number.
        record: u64,
        /// How many of its bytes there are.
        bytes: usize,
        /// How many there should be.
        record_bytes: usize,
    },
    /// No terminator within the greatest length allowed.
    RecordTooLong {
        /// The record's number.
        record: u64,
        /// The greatest length allowed, in bytes.
        record_bytes_max: usize,
    },
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Torn { record, bytes, record_bytes } => {
                write!(f, "record {record}, the last, has {bytes} bytes instead of {record_bytes}")
            }
            Self::RecordTooLong { record, record_bytes_max } => {
                write!(f, "record {record} has no terminator within {record_bytes_max} bytes")
            }
        }
    }
}

impl std::error::Error for Malformed {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gensort::{Generator, Mode, RECORD_BYTES};

    /// Records of one byte, which is the key.
    fn letters(records: &str) -> Summary {
        let mut validator = Validator::new(KeyRange::WHOLE);
        records.as_bytes().chunks(1).for_each(|record| validator.record(record));
        validator.finish()
    }

    #[test]
    fn order_and_duplicates_are_counted_as_valsort_does() {
        fn check(records: &str, duplicate_keys: u64, unordered: u64, first_unordered: Option<u64>) {
            let summary = letters(records);
            let found = (summary.duplicate_keys, summary.unordered, summary.first_unordered);
            assert_eq!(found, (duplicate_keys, unordered, first_unordered), "{records:?}");
            assert_eq!(
                (summary.records, summary.bytes),
                (records.len() as u64, records.len() as u64)
            );
            assert_eq!(summary.in_order(), unordered == 0);
        }
        check("", 0, 0, None);
        check("a", 0, 0, None);
        check("abc", 0, 0, None);
        check("aabbb", 3, 0, None);
        check("aba", 0, 1, Some(2));
        check("ba", 0, 1, Some(1));
        check("cba", 0, 2, Some(1));
        // Compared with the record just before, not with the highest so far; equal keys that do not
        // touch are no duplicates.
        check("cabc", 0, 1, Some(1));
        check("abab", 0, 1, Some(2));
        check("bbaab", 2, 1, Some(2));
    }

    #[test]
    fn reports_are_those_of_valsort() {
        fn check(records: &str, expect: &str) {
            assert_eq!(letters(records).to_string(), expect);
        }
        check("", "Records: 0\nChecksum: 0\nDuplicate keys: 0\nSUCCESS - all records are in order");
        // zlib's CRC32 of "a" is e8b7be43.
        check(
            "a",
            "Records: 1\nChecksum: e8b7be43\nDuplicate keys: 0\nSUCCESS - all records are in order",
        );
        check(
            "aa",
            "Records: 2\nChecksum: 1d16f7c86\nDuplicate keys: 1\n\
             SUCCESS - all records are in order",
        );
        check(
            "aba",
            "First unordered record is record 2\nRecords: 3\nChecksum: 2432e6c7f\n\
             ERROR - there are 1 unordered records",
        );
    }

    #[test]
    fn every_division_of_every_short_row_joins_to_the_whole() {
        // All rows of up to five records over three keys, cut twice: empty parts, duplicates and
        // faults at and beside the borders.
        for len in 0..=5 {
            for row in 0..3_usize.pow(len) {
                let records: String =
                    (0..len).map(|i| ["a", "b", "c"][row / 3_usize.pow(i) % 3]).collect();
                let whole = letters(&records);
                for first in 0..=records.len() {
                    for second in first..=records.len() {
                        let [a, b, c] =
                            [&records[..first], &records[first..second], &records[second..]]
                                .map(letters);
                        assert_eq!(
                            a.clone().join(b.clone()).join(c.clone()),
                            whole,
                            "{records} at {first}, {second}"
                        );
                        assert_eq!(
                            a.join(b.join(c)),
                            whole,
                            "{records} at {first}, {second}, from the right"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn keys_are_ranges_of_the_record_or_what_there_is_of_them() {
        fn check(offset: usize, len: usize, expect: &[u8]) {
            assert_eq!(KeyRange { offset, len }.key(b"abcdef", &mut Vec::new()), expect);
        }
        check(0, 2, b"ab");
        check(4, 2, b"ef");
        check(4, 9, b"ef");
        check(6, 1, b"");
        check(7, 1, b"");
        check(usize::MAX, usize::MAX, b"");
    }

    #[test]
    fn a_key_may_be_made_in_the_scratch() {
        struct Reversed;
        impl KeyOf for Reversed {
            fn key<'a>(&self, record: &'a [u8], scratch: &'a mut Vec<u8>) -> &'a [u8] {
                scratch.extend(record.iter().map(|byte| !byte));
                scratch
            }
        }
        let mut validator = Validator::new(&Reversed);
        for record in ["cc", "bb", "bb", "aa"] {
            validator.record(record.as_bytes());
        }
        let summary = validator.finish();
        assert!(summary.in_order());
        assert_eq!((summary.duplicate_keys, summary.bytes), (1, 8));
    }

    #[test]
    fn generated_records_have_the_checksum_of_gensort_in_any_order() {
        let mut bytes = vec![0; 1_000 * RECORD_BYTES];
        Generator::new(Mode::Binary, false, 0).expect("a percentage").fill(0, &mut bytes);
        let mut records: Vec<&[u8]> = bytes.chunks(RECORD_BYTES).collect();
        let judge = |records: &[&[u8]]| {
            let mut validator = Validator::new(KeyRange::GENSORT);
            records.iter().for_each(|record| validator.record(record));
            validator.finish()
        };
        let unsorted = judge(&records);
        assert_eq!((unsorted.records, unsorted.bytes), (1_000, 100_000));
        assert_eq!(unsorted.checksum.to_string(), "1ea6370b955");
        assert!(unsorted.unordered > 400);

        records.sort_unstable();
        let sorted = judge(&records);
        let expect = "Records: 1000\nChecksum: 1ea6370b955\nDuplicate keys: 0\n\
                      SUCCESS - all records are in order";
        assert_eq!(sorted.to_string(), expect);
        assert_eq!(
            sorted.ends,
            Some(Ends { first: records[0][..10].to_vec(), last: records[999][..10].to_vec() })
        );
    }

    fn fixed(record_bytes: usize) -> Shape {
        Shape::Fixed(NonZeroUsize::new(record_bytes).expect("a length"))
    }

    fn lines(record_bytes_max: usize) -> Shape {
        Shape::Delimited { terminator: b'\n', record_bytes_max }
    }

    /// Feeds `stream` in chunks of every size and expects the same each time.
    fn check_chunks(shape: Shape, stream: &[u8], expect: &Result<Summary, Malformed>) {
        for size in 1..=stream.len().max(1) {
            let mut validator = ChunkValidator::new(shape, KeyRange::WHOLE);
            let fed = stream.chunks(size).try_for_each(|chunk| validator.feed(chunk));
            assert_eq!(
                &fed.and_then(|()| validator.finish()),
                expect,
                "{shape:?}, chunks of {size}"
            );
        }
    }

    fn judged(records: &[&str]) -> Summary {
        let mut validator = Validator::new(KeyRange::WHOLE);
        records.iter().for_each(|record| validator.record(record.as_bytes()));
        validator.finish()
    }

    #[test]
    fn chunks_may_be_cut_anywhere() {
        check_chunks(fixed(3), b"", &Ok(judged(&[])));
        check_chunks(fixed(3), b"aaabbbabcccc", &Ok(judged(&["aaa", "bbb", "abc", "ccc"])));
        check_chunks(fixed(1), b"abca", &Ok(judged(&["a", "b", "c", "a"])));
        check_chunks(
            fixed(3),
            b"aaabbbab",
            &Err(Malformed::Torn { record: 2, bytes: 2, record_bytes: 3 }),
        );

        check_chunks(lines(9), b"", &Ok(judged(&[])));
        check_chunks(lines(9), b"\n\n", &Ok(judged(&["", ""])));
        check_chunks(lines(9), b"a\nbb\n\nccc\n", &Ok(judged(&["a", "bb", "", "ccc"])));
        check_chunks(lines(9), b"a\nbb\nwithout", &Ok(judged(&["a", "bb", "without"])));
        check_chunks(lines(3), b"abc\nabc", &Ok(judged(&["abc", "abc"])));
        check_chunks(
            lines(3),
            b"abc\nabcd\n",
            &Err(Malformed::RecordTooLong { record: 1, record_bytes_max: 3 }),
        );
        check_chunks(
            lines(3),
            b"abc\nabcd",
            &Err(Malformed::RecordTooLong { record: 1, record_bytes_max: 3 }),
        );
    }

    #[test]
    fn a_byte_is_found_where_it_first_stands() {
        for len in 0..100 {
            for at in 0..len {
                let mut bytes = vec![b'x'; len];
                bytes[at..].fill(b'\n');
                assert_eq!(position(b'\n', &bytes), Some(at));
            }
            assert_eq!(position(b'\n', &vec![b'x'; len]), None);
        }
    }
}
