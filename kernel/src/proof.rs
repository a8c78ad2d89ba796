//! Conservation (P1): counts, bytes and an order-free checksum of records, and the check that
//! intervals tile the input.
//!
//! The checksum is the wrapping sum of a 64-bit hash of each record's body, so it does not depend
//! on order and sums of parts add up to the sum of the whole. The hash is XXH3-64 with seed 0:
//! specified, the same on every platform, and the fastest of those measured here that notices any
//! flipped bit (`benches/kernel.rs`, group `record hash`, holds the comparison).

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use xxhash_rust::xxh3::xxh3_64;

/// Records, their bytes without terminators, and the wrapping sum of their hashes. It is persisted
/// and sent as it is, and never changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sums {
    /// Number of records.
    pub records: u64,
    /// Bytes of their bodies (terminators apart).
    pub bytes: u64,
    /// Sum of their hashes modulo 2^64. In JSON a text of 16 hex digits: readers that take numbers
    /// for floating ones (jq) would round it.
    #[serde(with = "hex_where_read")]
    pub hash: u64,
}

/// 64 bits that are a number between programs, and hex digits where people and their tools read.
mod hex_where_read {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &u64, to: S) -> Result<S::Ok, S::Error> {
        if to.is_human_readable() {
            to.collect_str(&format_args!("{value:016x}"))
        } else {
            to.serialize_u64(*value)
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
        if !from.is_human_readable() {
            return u64::deserialize(from);
        }
        let text = String::deserialize(from)?;
        let digits = text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let value = if digits { u64::from_str_radix(&text, 16).ok() } else { None };
        value.ok_or_else(|| D::Error::custom(format_args!("{text:?} is not at most 16 hex digits")))
    }
}

impl Sums {
    /// Counts one record.
    #[inline]
    pub fn add(&mut self, body: &[u8]) {
        self.add_hashed(body.len(), record_hash(body));
    }

    /// Counts one record whose hash is known.
    #[inline]
    pub fn add_hashed(&mut self, body_bytes: usize, hash: u64) {
        self.merge(&Sums { records: 1, bytes: body_bytes as u64, hash });
    }

    /// Adds what was counted elsewhere.
    #[inline]
    pub fn merge(&mut self, other: &Sums) {
        // Wrapping: these may come from stored bytes, and a sum that wrapped is noticed when it is
        // compared.
        self.records = self.records.wrapping_add(other.records);
        self.bytes = self.bytes.wrapping_add(other.bytes);
        self.hash = self.hash.wrapping_add(other.hash);
    }

    /// What is left without `earlier`, which was counted on the way to `self`.
    #[must_use]
    pub fn minus(&self, earlier: &Sums) -> Sums {
        Sums {
            records: self.records.wrapping_sub(earlier.records),
            bytes: self.bytes.wrapping_sub(earlier.bytes),
            hash: self.hash.wrapping_sub(earlier.hash),
        }
    }

    /// The sum of two.
    #[must_use]
    pub fn plus(mut self, other: &Sums) -> Sums {
        self.merge(other);
        self
    }
}

impl fmt::Display for Sums {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} records, {} bytes, checksum {:016x}", self.records, self.bytes, self.hash)
    }
}

/// The hash of one record's body. Persisted in sums: never change it without a new run version.
#[inline]
pub fn record_hash(body: &[u8]) -> u64 {
    xxh3_64(body)
}

/// The hash of a record, or of any bytes, that are not at hand at once; the same as [`record_hash`]
/// of all of them.
#[derive(Clone, Default)]
pub struct StreamHash {
    hash: xxhash_rust::xxh3::Xxh3,
    bytes: u64,
}

impl StreamHash {
    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
    }

    /// How many there were.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The hash of all of them.
    pub fn digest(&self) -> u64 {
        self.hash.digest()
    }
}

impl fmt::Debug for StreamHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamHash").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

/// What became of records that went through a step: written, or dropped as doubles by `-u`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Written on.
    pub kept: Sums,
    /// Dropped by `-u`.
    pub dropped: Sums,
}

impl Tally {
    /// Everything that went in.
    pub fn total(&self) -> Sums {
        self.kept.plus(&self.dropped)
    }
}

/// A range of one input object: `begin..end`, counted from the object's start in the units that
/// splits of it tile, which are bytes for the formats of today. It is persisted and sent as it is,
/// and never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Interval {
    /// Number of the object in the pinned listing.
    pub object: u32,
    /// First unit.
    pub begin: u64,
    /// One past the last.
    pub end: u64,
}

impl Interval {
    /// Units in the interval.
    pub fn len(&self) -> u64 {
        self.end.saturating_sub(self.begin)
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.end <= self.begin
    }
}

/// Why intervals do not tile their objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NotTiled {
    /// There are not so many objects.
    #[error("object {object} was read, but there are only {objects} objects")]
    NoObject {
        /// Its number.
        object: u32,
        /// How many there are.
        objects: usize,
    },
    /// An interval lies beyond its object.
    #[error(
        "bytes {}..{} of object {} were read, but it has {size} bytes",
        interval.begin, interval.end, interval.object
    )]
    Beyond {
        /// The interval.
        interval: Interval,
        /// What the object has.
        size: u64,
    },
    /// Nobody read this.
    #[error("bytes {}..{} of object {} were not read", .0.begin, .0.end, .0.object)]
    Missing(Interval),
    /// Two intervals hold this.
    #[error("byte {at} of object {object} was read twice")]
    Twice {
        /// Number of the object.
        object: u32,
        /// Where the second begins.
        at: u64,
    },
}

impl NotTiled {
    /// Number of the object concerned.
    pub fn object(&self) -> u32 {
        match self {
            Self::NoObject { object, .. } | Self::Twice { object, .. } => *object,
            Self::Beyond { interval, .. } | Self::Missing(interval) => interval.object,
        }
    }
}

/// Checks that `intervals`, in any order, cover every object from 0 to its size once. Empty
/// intervals are ignored, but must lie within their object.
///
/// # Errors
/// The object and the first byte that is missing or covered twice.
pub fn tiles(intervals: &[Interval], object_sizes: &[u64]) -> Result<(), NotTiled> {
    for &interval in intervals {
        let object = interval.object;
        let Some(&size) = object_sizes.get(object as usize) else {
            return Err(NotTiled::NoObject { object, objects: object_sizes.len() });
        };
        if interval.begin > interval.end || interval.end > size {
            return Err(NotTiled::Beyond { interval, size });
        }
    }
    let mut sorted: Vec<Interval> =
        intervals.iter().copied().filter(|interval| !interval.is_empty()).collect();
    sorted.sort_unstable();
    let mut rest = sorted.iter().peekable();
    for (object, &size) in (0..).zip(object_sizes) {
        let missing = |begin, end| Err(NotTiled::Missing(Interval { object, begin, end }));
        let mut covered = 0;
        while let Some(interval) = rest.next_if(|interval| interval.object == object) {
            if interval.begin > covered {
                return missing(covered, interval.begin);
            }
            if interval.begin < covered {
                return Err(NotTiled::Twice { object, at: interval.begin });
            }
            covered = interval.end;
        }
        if covered != size {
            return missing(covered, size);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_do_not_depend_on_order_or_grouping() {
        let mut whole = Sums::default();
        [&b"a"[..], b"bb", b"", b"a"].iter().for_each(|body| whole.add(body));
        let (mut left, mut right) = (Sums::default(), Sums::default());
        left.add(b"");
        left.add(b"a");
        right.add(b"a");
        right.add(b"bb");
        assert_eq!(left.plus(&right), whole);
        assert_eq!((whole.records, whole.bytes), (4, 4));
    }

    #[test]
    fn the_record_hash_is_xxh3_64_for_ever() {
        // Values of the specification (seed 0): the empty input, and one of each code path's
        // length.
        assert_eq!(record_hash(b""), 0x2d06_8005_38d3_94c2);
        assert_eq!(record_hash(b"a"), 0xe6c6_32b6_1e96_4e1f);
    }

    fn check(intervals: &[(u32, u64, u64)], sizes: &[u64], expect: Result<(), &str>) {
        let intervals: Vec<_> =
            intervals.iter().map(|&(object, begin, end)| Interval { object, begin, end }).collect();
        let tiles = tiles(&intervals, sizes).map_err(|why| why.to_string());
        assert_eq!(tiles, expect.map_err(String::from));
    }

    #[test]
    fn intervals_must_tile_every_object() {
        check(&[], &[], Ok(()));
        check(&[], &[0, 0], Ok(()));
        check(&[(1, 3, 5), (0, 0, 4), (1, 0, 3), (1, 2, 2)], &[4, 5], Ok(()));
        check(&[], &[1], Err("bytes 0..1 of object 0 were not read"));
        check(&[(0, 0, 2), (0, 3, 4)], &[4], Err("bytes 2..3 of object 0 were not read"));
        check(&[(0, 0, 2), (0, 1, 4)], &[4], Err("byte 1 of object 0 was read twice"));
        check(&[(0, 0, 4), (0, 0, 4)], &[4], Err("byte 0 of object 0 was read twice"));
        check(&[(0, 0, 5)], &[4], Err("bytes 0..5 of object 0 were read, but it has 4 bytes"));
        check(&[(0, 3, 2)], &[4], Err("bytes 3..2 of object 0 were read, but it has 4 bytes"));
        check(&[(2, 0, 0)], &[4], Err("object 2 was read, but there are only 1 objects"));
    }
}
