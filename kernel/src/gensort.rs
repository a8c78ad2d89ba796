//! The sort benchmark's records, byte for byte as gensort 1.5 writes them, and hot keys besides.
//!
//! Place in the flow: `muster gen` calls [`Generator::fill`] for each buffer it writes; tests and
//! benchmarks make their input with it. [`crate::valsort`] sums and judges what comes out of a
//! sort.
//!
//! A record is a function of its number alone: record `n` is made from the states `X(n+1) ..=
//! X(n+10)` of one linear congruential generator modulo 2^128, and `X(n)` is reached from nothing
//! in at most 128 squarings of the step. So any range can be made on its own, by any worker, in any
//! order. Numbers are `u128`, as in gensort, and wrap around at 2^128, which is also the
//! generator's period.
//!
//! Never here: files, threads, a clock, or randomness from elsewhere.

use std::fmt;

/// Length of a record in bytes.
pub const RECORD_BYTES: usize = 100;
/// Length of a record's key in bytes; the record begins with it.
pub const KEY_BYTES: usize = 10;
/// How many records lend their keys to others under `--duplicates`: records 0 to 15.
pub const HOT_RECORDS: usize = 16;

/// What a record looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// 100 random bytes (gensort's default).
    Binary,
    /// Printable text that ends in CR LF (gensort `-a`): 10 random characters, the record's number
    /// in hex, filler.
    Ascii,
}

/// Makes records; cheap to copy, holds no position.
///
/// # Hot keys
///
/// gensort's own skew shares key *prefixes* and makes no two keys equal, so a sort that breaks on
/// equal keys passes it. `--duplicates PERCENT` is our addition: a hash of the record's number
/// chooses that share of the records, and each chosen one takes the key of one of the
/// [`HOT_RECORDS`] hot records, keeping the rest of its bytes. Hot record `i` is taken by about `1
/// / 2^(i+1)` of the chosen (the last two share what remains), so at 50 percent one key holds a
/// quarter of all records: more than a partition of any job that has five. Hot keys follow mode and
/// skew. At 0 percent the output is gensort's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Generator {
    mode: Mode,
    skew: bool,
    duplicates_percent: u8,
    hot_keys: [Key; HOT_RECORDS],
}

impl Generator {
    /// Records of `mode`, with skewed key prefixes if `skew` (gensort `-s`), and with
    /// `duplicates_percent` of them under hot keys (0 to 100).
    ///
    /// # Errors
    /// [`PercentTooLarge`] if `duplicates_percent` is above 100.
    pub fn new(mode: Mode, skew: bool, duplicates_percent: u8) -> Result<Self, PercentTooLarge> {
        if duplicates_percent > 100 {
            return Err(PercentTooLarge { percent: duplicates_percent });
        }
        let mut generator =
            Self { mode, skew, duplicates_percent, hot_keys: [[0; KEY_BYTES]; HOT_RECORDS] };
        let mut state = 0;
        for number in 0..HOT_RECORDS {
            state = next(state);
            generator.hot_keys[number] = generator.gensort_key(number as u128, state);
        }
        Ok(generator)
    }

    /// Fills `out` with the records `first`, `first + 1`, and so on.
    ///
    /// A call takes half a microsecond to find its place, so buffers of 64 KiB and more lose
    /// nothing by it.
    ///
    /// # Panics
    /// If `out` is not a whole number of records long.
    pub fn fill(&self, first: u128, out: &mut [u8]) {
        let (records, rest) = out.as_chunks_mut::<RECORD_BYTES>();
        assert!(
            rest.is_empty(),
            "the buffer holds {} bytes beyond its last whole record",
            rest.len()
        );
        match self.mode {
            Mode::Binary => self.fill_binary(first, records),
            Mode::Ascii => self.fill_ascii(first, records),
        }
    }

    /// Neighbours share nine of their ten states, so a record costs one step of the generator.
    fn fill_binary(&self, first: u128, records: &mut [Record]) {
        const OVERLAP: usize = PIECES - 1;
        const BATCH: usize = 64;

        // states[r + i] is piece i of the batch's record r, before masking; the last OVERLAP of
        // them begin the next batch.
        let mut states = [0; BATCH + OVERLAP];
        let mut state = state_after(first);
        for slot in &mut states[BATCH..] {
            state = next(state);
            *slot = state;
        }
        let mut number = first;
        for batch in records.chunks_mut(BATCH) {
            states.copy_within(BATCH.., 0);
            for slot in &mut states[OVERLAP..OVERLAP + batch.len()] {
                state = next(state);
                *slot = state;
            }
            for (record, pieces) in batch.iter_mut().zip(states.windows(PIECES)) {
                let (bytes, _) = record.as_chunks_mut::<PIECE_BYTES>();
                for ((bytes, piece), mask) in bytes.iter_mut().zip(pieces).zip(&PIECE_MASKS) {
                    *bytes = top_80_bits(piece ^ mask);
                }
                if self.skew || self.duplicates_percent > 0 {
                    record[..KEY_BYTES].copy_from_slice(&self.key(number, pieces[0]));
                }
                number = number.wrapping_add(1);
            }
        }
    }

    fn fill_ascii(&self, first: u128, records: &mut [Record]) {
        let mut state = state_after(first);
        let mut number = first;
        for record in records {
            state = next(state);
            record[..10].copy_from_slice(&self.key(number, state));
            record[10..12].copy_from_slice(b"  ");
            let (pairs, _) = record[12..44].as_chunks_mut::<2>();
            for (pair, byte) in pairs.iter_mut().zip(number.to_be_bytes()) {
                *pair = HEX_PAIRS[usize::from(byte)];
            }
            record[44..46].copy_from_slice(b"  ");
            let (quads, _) = record[46..98].as_chunks_mut::<4>();
            let mut nibbles = low(state) << 12;
            for quad in quads {
                *quad = HEX_QUADS[(nibbles >> 60) as usize];
                nibbles <<= 4;
            }
            record[98..].copy_from_slice(b"\r\n");
            number = number.wrapping_add(1);
        }
    }

    /// The key of the record with this number, whose first state is `state`.
    #[inline]
    fn key(&self, number: u128, state: u128) -> Key {
        if self.duplicates_percent > 0 {
            let hash = mix(number);
            // The share is decided by the high half of the hash, the choice of the hot record by
            // the low half.
            if ((hash >> 32) * 100) >> 32 < u64::from(self.duplicates_percent) {
                return self.hot_keys[(hash.trailing_zeros() as usize).min(HOT_RECORDS - 1)];
            }
        }
        self.gensort_key(number, state)
    }

    #[inline]
    fn gensort_key(&self, number: u128, state: u128) -> Key {
        match self.mode {
            Mode::Binary => {
                let mut key = top_80_bits(state);
                let bits = (low(state) >> 32) & 0x3F;
                if self.skew && (1..=48).contains(&bits) {
                    let own = u64::MAX >> bits;
                    let prefix = (high(state) & own) | (BINARY_PREFIXES[bit_length(number)] & !own);
                    key[..8].copy_from_slice(&prefix.to_be_bytes());
                }
                key
            }
            Mode::Ascii => {
                let mut key = ascii_key(state);
                let bytes = ((low(state) >> 32) & 7) as usize;
                if self.skew && bytes <= PREFIX_BYTES {
                    key[..bytes].copy_from_slice(&ASCII_PREFIXES[bit_length(number)][..bytes]);
                }
                key
            }
        }
    }
}

/// More than 100 percent of the records were asked to bear hot keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PercentTooLarge {
    /// What was asked for.
    pub percent: u8,
}

impl fmt::Display for PercentTooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the share of duplicates is {} percent; give 0 to 100", self.percent)
    }
}

impl std::error::Error for PercentTooLarge {}

type Record = [u8; RECORD_BYTES];
type Key = [u8; KEY_BYTES];

// The random number generator: X(0) = 0, X(n+1) = MULTIPLIER * X(n) + INCREMENT modulo 2^128.

const MULTIPLIER: u128 = 0x2360_ed05_1fc6_5da4_4385_df64_9fcc_f645;
const INCREMENT: u128 = 0x4a69_6d47_7261_7952_4950_2020_2020_2001;

#[inline]
const fn next(state: u128) -> u128 {
    MULTIPLIER.wrapping_mul(state).wrapping_add(INCREMENT)
}

/// `X(steps)`. The step is the map `x -> m*x + c`; composing it with itself doubles the steps, so
/// the bits of `steps` say which doublings to apply.
const fn state_after(steps: u128) -> u128 {
    let mut state = 0_u128;
    let (mut m, mut c) = (MULTIPLIER, INCREMENT);
    let mut left = steps;
    while left > 0 {
        if left & 1 == 1 {
            state = m.wrapping_mul(state).wrapping_add(c);
        }
        c = m.wrapping_mul(c).wrapping_add(c);
        m = m.wrapping_mul(m);
        left >>= 1;
    }
    state
}

#[inline]
const fn high(state: u128) -> u64 {
    (state >> 64) as u64
}

#[inline]
const fn low(state: u128) -> u64 {
    state as u64
}

// Binary records: ten pieces of 80 bits, the first of them the key.

const PIECES: usize = 10;
const PIECE_BYTES: usize = 10;

/// What each piece is XORed with, moved to the top 80 bits where the piece is.
const PIECE_MASKS: [u128; PIECES] = [
    0,
    0xF0E8_E4E2_E1D8_D4D2_D1CC << 48,
    0xCAC9_C6C5_C3B8_B4B2_B1AC << 48,
    0xAAA9_A6A5_A39C_9A99_9695 << 48,
    0x938E_8D8B_8778_7472_716C << 48,
    0x6A69_6665_635C_5A59_5655 << 48,
    0x534E_4D4B_473C_3A39_3635 << 48,
    0x332E_2D2B_271E_1D1B_170F << 48,
    0xC8C4_C2C1_9894_9291_8CE0 << 48,
    0x170F_332E_2D2B_271E_1D1B << 48,
];

/// In two halves, because whole 16-byte words went through memory: 9 to 12 GB/s of binary records a
/// core against 1.0 to 1.8.
#[inline]
fn top_80_bits(state: u128) -> [u8; PIECE_BYTES] {
    let mut bytes = [0; PIECE_BYTES];
    bytes[..8].copy_from_slice(&high(state).to_be_bytes());
    bytes[8..].copy_from_slice(&((low(state) >> 48) as u16).to_be_bytes());
    bytes
}

// ASCII records.

/// Ten digits in base 95, the lowest first, written from the blank on: eight of the state's high
/// half, two of its low half.
#[inline]
const fn ascii_key(state: u128) -> Key {
    let mut key = [0; KEY_BYTES];
    let mut rest = high(state);
    let mut at = 0;
    while at < KEY_BYTES {
        if at == 8 {
            rest = low(state);
        }
        key[at] = b' ' + (rest % 95) as u8;
        rest /= 95;
        at += 1;
    }
    key
}

const HEX_DIGITS: &[u8; 16] = b"0123456789ABCDEF";

const HEX_PAIRS: [[u8; 2]; 256] = {
    let mut pairs = [[0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        pairs[byte] = [HEX_DIGITS[byte >> 4], HEX_DIGITS[byte & 15]];
        byte += 1;
    }
    pairs
};

const HEX_QUADS: [[u8; 4]; 16] = {
    let mut quads = [[0; 4]; 16];
    let mut nibble = 0;
    while nibble < 16 {
        quads[nibble] = [HEX_DIGITS[nibble]; 4];
        nibble += 1;
    }
    quads
};

// Skew: some of the key's first bits (binary) or bytes (ASCII) are those of the unskewed record
// whose number is the bit length of this record's number.

const PREFIX_BYTES: usize = 6;
const BIT_LENGTHS: usize = 129;

/// The prefixes' 6 bytes, at the top of a word.
static BINARY_PREFIXES: [u64; BIT_LENGTHS] = {
    let mut prefixes = [0; BIT_LENGTHS];
    let mut state = 0;
    let mut number = 0;
    while number < BIT_LENGTHS {
        state = next(state);
        prefixes[number] = high(state) >> 16 << 16;
        number += 1;
    }
    prefixes
};

static ASCII_PREFIXES: [[u8; PREFIX_BYTES]; BIT_LENGTHS] = {
    let mut prefixes = [[0; PREFIX_BYTES]; BIT_LENGTHS];
    let mut state = 0;
    let mut number = 0;
    while number < BIT_LENGTHS {
        state = next(state);
        let [b0, b1, b2, b3, b4, b5, ..] = ascii_key(state);
        prefixes[number] = [b0, b1, b2, b3, b4, b5];
        number += 1;
    }
    prefixes
};

/// The number's length in bits as gensort counts it: a half that has any of its top four bits set
/// counts as full.
fn bit_length(number: u128) -> usize {
    let of_half = |half: u64| if half >> 60 == 0 { 64 - half.leading_zeros() as usize } else { 64 };
    match high(number) {
        0 => of_half(low(number)),
        half => 64 + of_half(half),
    }
}

/// SplitMix64's finalizer over both halves of the number. Frozen: it decides which records bear hot
/// keys, and so their checksums.
fn mix(number: u128) -> u64 {
    let finalize = |mut z: u64| {
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    finalize(finalize(high(number)).wrapping_add(low(number)).wrapping_add(0x9e37_79b9_7f4a_7c15))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::valsort::Checksum;
    use std::collections::HashMap;

    fn generator(mode: Mode, skew: bool, duplicates_percent: u8) -> Generator {
        Generator::new(mode, skew, duplicates_percent).expect("a percentage")
    }

    fn records(generator: &Generator, first: u128, count: usize) -> Vec<u8> {
        let mut out = vec![0xEE; count * RECORD_BYTES];
        generator.fill(first, &mut out);
        out
    }

    const ALL: [(Mode, bool); 4] =
        [(Mode::Binary, false), (Mode::Ascii, false), (Mode::Binary, true), (Mode::Ascii, true)];

    #[test]
    fn checksums_are_those_of_gensort() {
        fn check((mode, skew): (Mode, bool), count: usize, expect: &str) {
            let generator = generator(mode, skew, 0);
            let mut sum = Checksum::default();
            let mut buffer = vec![0; 1_000 * RECORD_BYTES];
            for first in (0..count).step_by(1_000) {
                generator.fill(first as u128, &mut buffer);
                buffer.chunks(RECORD_BYTES).for_each(|record| sum.add_record(record));
            }
            assert_eq!(sum.to_string(), expect, "{mode:?}, skew {skew}, {count} records");
        }
        check((Mode::Binary, false), 1_000, "1ea6370b955");
        check((Mode::Ascii, false), 1_000, "1f5dfb3631a");
        check((Mode::Binary, true), 1_000, "1e96301166b");
        check((Mode::Ascii, true), 1_000, "1eef17d1cac");
        check((Mode::Binary, false), 1_000_000, "7a0e0d4868cd4");
        check((Mode::Ascii, false), 1_000_000, "7a19cff467438");
        check((Mode::Binary, true), 1_000_000, "79f9a7e6de673");
    }

    #[test]
    fn record_0_bears_the_name_of_jim_gray() {
        assert_eq!(&records(&generator(Mode::Binary, false, 0), 0, 1)[..KEY_BYTES], b"JimGrayRIP");
        let ascii = records(&generator(Mode::Ascii, false, 0), 0, 1);
        assert_eq!(&ascii[..46], b"AsfAGHM5om  00000000000000000000000000000000  ");
        assert_eq!(&ascii[98..], b"\r\n");
    }

    #[test]
    fn ranges_made_apart_equal_one_pass() {
        for (mode, skew) in ALL {
            let generator = generator(mode, skew, 30);
            // Around the batch of 64, and across the ends of a 64-bit half and of the number
            // itself.
            for first in [0, 1, u128::from(u64::MAX) - 99, u128::MAX - 99] {
                let whole = records(&generator, first, 200);
                for cut in [0, 1, 9, 63, 64, 65, 100, 128, 199, 200] {
                    let mut parts = records(&generator, first, cut);
                    parts.extend(records(&generator, first.wrapping_add(cut as u128), 200 - cut));
                    assert_eq!(parts, whole, "{mode:?}, skew {skew}, from {first}, cut at {cut}");
                }
            }
        }
    }

    /// Every piece from its own skip-ahead, every text from `format!`: slow, and too plain to be
    /// wrong in the same way.
    fn naive_record(mode: Mode, number: u128) -> Vec<u8> {
        let states: Vec<u128> = (1..=10).map(|i| state_after(number.wrapping_add(i))).collect();
        if mode == Mode::Binary {
            return states
                .iter()
                .zip(PIECE_MASKS)
                .flat_map(|(x, mask)| (x ^ mask).to_be_bytes()[..10].to_vec())
                .collect();
        }
        let digits = |half: u64, count: u32| {
            (0..count).map(move |i| char::from(b' ' + (half / 95_u64.pow(i) % 95) as u8))
        };
        let key: String =
            digits((states[0] >> 64) as u64, 8).chain(digits(states[0] as u64, 2)).collect();
        let filler: String =
            format!("{:013X}", states[0] & ((1 << 52) - 1)).chars().flat_map(|c| [c; 4]).collect();
        format!("{key}  {number:032X}  {filler}\r\n").into_bytes()
    }

    #[test]
    fn far_records_equal_the_naive_ones() {
        for mode in [Mode::Binary, Mode::Ascii] {
            let generator = generator(mode, false, 0);
            for first in [
                0,
                1 << 40,
                u128::from(u64::MAX) - 35,
                1 << 64,
                0x1234_5678_9ABC_DEF0_0FED_CBA9_8765_4321,
                u128::MAX - 35,
            ] {
                let made = records(&generator, first, 70);
                for (i, record) in made.chunks(RECORD_BYTES).enumerate() {
                    let number = first.wrapping_add(i as u128);
                    assert_eq!(record, naive_record(mode, number), "{mode:?}, record {number}");
                }
            }
        }
    }

    #[test]
    fn skipping_ahead_equals_stepping() {
        let mut state = 0;
        for steps in 0..1_000 {
            assert_eq!(state_after(steps), state);
            state = next(state);
        }
        // One step beyond the last is the whole period.
        assert_eq!(next(state_after(u128::MAX)), 0);
    }

    #[test]
    fn bit_lengths_keep_the_quirk_of_gensort() {
        fn check(number: u128, expect: usize) {
            assert_eq!(bit_length(number), expect, "{number:#x}");
        }
        check(0, 0);
        check(1, 1);
        check(255, 8);
        check(256, 9);
        check((1 << 60) - 1, 60);
        check(1 << 60, 64);
        check(1 << 63, 64);
        check(1 << 64, 65);
        check((1 << 124) - 1, 124);
        check(1 << 124, 128);
        check(u128::MAX, 128);
    }

    #[test]
    fn skew_changes_key_prefixes_and_nothing_else() {
        for mode in [Mode::Binary, Mode::Ascii] {
            let plain = records(&generator(mode, false, 0), 0, 10_000);
            let skewed = records(&generator(mode, true, 0), 0, 10_000);
            let mut changed = 0;
            for (plain, skewed) in plain.chunks(RECORD_BYTES).zip(skewed.chunks(RECORD_BYTES)) {
                assert_eq!(plain[PREFIX_BYTES..], skewed[PREFIX_BYTES..]);
                changed += usize::from(plain != skewed);
            }
            assert!(changed > 6_000, "{mode:?}: {changed}");
        }
    }

    #[test]
    fn duplicates_are_the_share_asked_for_under_hot_keys() {
        const COUNT: usize = 100_000;
        for (mode, skew) in ALL {
            let plain = records(&generator(mode, skew, 0), 0, COUNT);
            let hot: Vec<&[u8]> = plain
                .chunks(RECORD_BYTES)
                .take(HOT_RECORDS)
                .map(|record| &record[..KEY_BYTES])
                .collect();
            for percent in [1_u8, 25, 100] {
                let made = records(&generator(mode, skew, percent), 0, COUNT);
                let mut taken: HashMap<&[u8], usize> = HashMap::new();
                for (made, plain) in made.chunks(RECORD_BYTES).zip(plain.chunks(RECORD_BYTES)) {
                    assert_eq!(made[KEY_BYTES..], plain[KEY_BYTES..]);
                    let key = &made[..KEY_BYTES];
                    if hot.contains(&key) {
                        *taken.entry(key).or_default() += 1;
                    } else {
                        assert_eq!(made, plain);
                    }
                }
                let share = taken.values().sum::<usize>() as f64 / COUNT as f64;
                assert!(
                    (share - f64::from(percent) / 100.0).abs() < 0.005,
                    "{mode:?}: {share} for {percent} percent"
                );
                let hottest = taken[hot[0]] as f64 / COUNT as f64;
                assert!(
                    (hottest - share / 2.0).abs() < 0.01,
                    "{mode:?}: hottest key {hottest} of {share}"
                );
            }
        }
    }

    /// The sum over `count` records from each of `firsts` on.
    fn sum_of(generator: &Generator, firsts: &[u128], count: usize) -> String {
        let mut sum = Checksum::default();
        for first in firsts {
            records(generator, *first, count)
                .chunks(RECORD_BYTES)
                .for_each(|record| sum.add_record(record));
        }
        sum.to_string()
    }

    #[test]
    fn skew_at_the_ends_of_both_halves_is_that_of_another_implementation() {
        // Sums over 100 records around 2^60, 2^64, 2^124 and 2^128, from a second implementation of
        // gensort's facts in another language.
        let firsts = [1 << 60, 1 << 64, 1 << 124, 0].map(|border: u128| border.wrapping_sub(50));
        for ((mode, skew), expect) in
            ALL.into_iter().zip(["ce351ee451", "cbc49b8767", "c71b5ea070", "c75242117d"])
        {
            assert_eq!(
                sum_of(&generator(mode, skew, 0), &firsts, 100),
                expect,
                "{mode:?}, skew {skew}"
            );
        }
    }

    #[test]
    fn duplicates_are_frozen() {
        for ((mode, skew), expect) in
            ALL.into_iter().zip(["1efe248426a", "1e9f46d6f91", "1f0d8e79085", "1ea8cdeabc2"])
        {
            assert_eq!(
                sum_of(&generator(mode, skew, 40), &[0], 1_000),
                expect,
                "{mode:?}, skew {skew}"
            );
        }
    }

    #[test]
    fn more_than_all_duplicates_are_refused() {
        let error = Generator::new(Mode::Binary, false, 101).expect_err("101 percent");
        assert_eq!(error.to_string(), "the share of duplicates is 101 percent; give 0 to 100");
    }

    #[test]
    fn an_empty_buffer_stays_so() {
        generator(Mode::Binary, false, 0).fill(7, &mut []);
        generator(Mode::Ascii, true, 9).fill(7, &mut []);
    }
}
