//! Splitters: the values of the whole comparison key that cut the order into partitions.
//!
//! A splitter is (key, position), so equal keys may span partitions and a hot key swells none; with
//! `-u` positions are 0 and keys distinct, so equal keys are never divided. Partition `p` holds
//! what is at or after splitter `p - 1` and before splitter `p`.
//!
//! Keys are cut at [`SAMPLE_KEY_MAX`] bytes. A truncated key is still a value of the order, so it
//! is still a valid bound; only balance among keys that agree in their first 4 KiB suffers.
//!
//! ```text
//! stored (little endian):
//!   magic 8 | version u32 | count u32
//!   per splitter: position u64 | key length u32 | key
//!   XXH3-64 of all before
//! ```

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::error::KernelError;
use crate::format::SampleWindow;
use crate::order::Order;
use crate::run::PARTITIONS_MAX;

/// Key bytes that a splitter keeps at most.
pub const SAMPLE_KEY_MAX: usize = 4096;

/// Samples of a partition on average from which its fill can be told.
pub const MEASURED_MIN: u64 = 16;

const MAGIC: [u8; 8] = *b"mustrspl";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 16;
const CHECKSUM_BYTES: usize = 8;

/// A bound between two partitions, and a sample that may become one. It is sent as it is, and never
/// changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Splitter {
    // The derived order relies on this order of the fields.
    /// Comparison key, cut at [`SAMPLE_KEY_MAX`] bytes.
    pub key: Vec<u8>,
    /// Global position; decides among equal keys.
    pub position: u64,
}

/// Chooses at most `partitions - 1` strictly ascending splitters that divide the samples evenly.
/// Fewer distinct samples give fewer splitters. With `unique` positions become 0 and each distinct
/// key weighs the same.
pub fn choose(mut samples: Vec<Splitter>, partitions: u32, unique: bool) -> Vec<Splitter> {
    if unique {
        samples.iter_mut().for_each(|sample| sample.position = 0);
    }
    samples.sort_unstable();
    samples.dedup();
    let parts = u64::from(partitions.clamp(1, PARTITIONS_MAX));
    let count = samples.len() as u64;
    let mut chosen: Vec<Splitter> = (1..parts)
        .filter_map(|part| samples.get((part * count / parts) as usize).cloned())
        .collect();
    chosen.dedup();
    chosen
}

/// How full the fullest partition would be, in percent of the mean, if one half of the samples
/// chose the bounds and the other half were the data. The halves take turns in the order of
/// positions. None where fewer than [`MEASURED_MIN`] samples of the second half would fall to a
/// partition on average: chance alone would decide.
pub fn fullest_percent(samples: &[Splitter], partitions: u32, unique: bool) -> Option<u32> {
    let parts = u64::from(partitions.clamp(1, PARTITIONS_MAX));
    let mut halves = [Vec::new(), Vec::new()];
    let mut by_position: Vec<&Splitter> = samples.iter().collect();
    by_position.sort_unstable_by_key(|sample| sample.position);
    for (at, sample) in by_position.into_iter().enumerate() {
        let position = if unique { 0 } else { sample.position };
        halves[at % 2].push(Splitter { key: sample.key.clone(), position });
    }
    let [chooses, mut measures] = halves;
    measures.sort_unstable();
    measures.dedup();
    let count = measures.len() as u64;
    if parts == 1 || count < parts * MEASURED_MIN {
        return None;
    }
    let chosen = choose(chooses, partitions, unique);
    let ends = chosen
        .iter()
        .map(|bound| measures.partition_point(|sample| sample < bound))
        .chain([measures.len()]);
    let (fullest, _) = ends.fold((0, 0), |(fullest, begin), end| (fullest.max(end - begin), end));
    u32::try_from(fullest as u64 * 100 * parts / count).ok()
}

/// Checks that splitters ascend strictly, that keys are within [`SAMPLE_KEY_MAX`], and, with
/// `unique`, that positions are 0.
pub fn validate(splitters: &[Splitter], unique: bool) -> Result<(), KernelError> {
    let wrong = |number: usize, why: &str| {
        Err(KernelError::corrupt(format!("splitter {number} of {}: {why}", splitters.len())))
    };
    if splitters.len() >= PARTITIONS_MAX as usize {
        return wrong(PARTITIONS_MAX as usize, "there are too many");
    }
    for (number, splitter) in splitters.iter().enumerate() {
        if splitter.key.len() > SAMPLE_KEY_MAX {
            return wrong(number, "its key is too long");
        }
        if unique && splitter.position != 0 {
            return wrong(number, "it could divide equal keys, which -u forbids");
        }
        if number > 0 && splitters[number - 1] >= *splitter {
            return wrong(number, "it does not ascend");
        }
    }
    Ok(())
}

/// The stored form of `splitters`.
pub fn encode(splitters: &[Splitter]) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&(splitters.len() as u32).to_le_bytes());
    for splitter in splitters {
        out.extend_from_slice(&splitter.position.to_le_bytes());
        out.extend_from_slice(&(splitter.key.len() as u32).to_le_bytes());
        out.extend_from_slice(&splitter.key);
    }
    out.extend_from_slice(&xxh3_64(&out).to_le_bytes());
    out
}

/// Reads what [`encode`] wrote, and checks it as [`validate`] does, `unique` apart. Anything else
/// is [`KernelError::Corrupt`].
pub fn decode(bytes: &[u8]) -> Result<Vec<Splitter>, KernelError> {
    let wrong = |why: &str| KernelError::corrupt(format!("splitters: {why}"));
    if bytes.len() < HEADER_BYTES + CHECKSUM_BYTES || bytes[..8] != MAGIC {
        return Err(wrong("these are no splitters of muster"));
    }
    let (body, checksum) = bytes.split_at(bytes.len() - CHECKSUM_BYTES);
    if xxh3_64(body).to_le_bytes() != checksum {
        return Err(wrong("the checksum does not match"));
    }
    let mut rest = &body[8..];
    let version = take_u32(&mut rest).unwrap_or_default();
    if version != VERSION {
        return Err(wrong(&format!("version {version} is not known here, only {VERSION} is")));
    }
    let count = take_u32(&mut rest).unwrap_or_default();
    // Not reserved by `count`: it is only as trustworthy as the bytes that follow.
    let mut splitters = Vec::new();
    for _ in 0..count {
        splitters.push(take_splitter(&mut rest).ok_or_else(|| wrong("they end too early"))?);
    }
    if !rest.is_empty() {
        return Err(wrong("bytes are left over"));
    }
    validate(&splitters, false)?;
    Ok(splitters)
}

fn take_u32(rest: &mut &[u8]) -> Option<u32> {
    let (head, tail) = rest.split_first_chunk()?;
    *rest = tail;
    Some(u32::from_le_bytes(*head))
}

fn take_splitter(rest: &mut &[u8]) -> Option<Splitter> {
    let (position, tail) = rest.split_first_chunk()?;
    *rest = tail;
    let len = take_u32(rest)? as usize;
    let (key, tail) = rest.split_at_checked(len)?;
    *rest = tail;
    Some(Splitter { key: key.to_vec(), position: u64::from_le_bytes(*position) })
}

/// Takes at most `records_max` samples, evenly spread over the complete records of a window of raw
/// bytes. A record that begins before the window is skipped; so is one that ends after it. A window
/// within one long line gives none.
pub fn sample(
    order: &Order,
    bytes: &[u8],
    window: SampleWindow,
    records_max: usize,
) -> Vec<Splitter> {
    let records = order.format().rules().complete_records(bytes, window);
    let take = records.len().min(records_max);
    let mut scratch = Vec::new();
    (0..take)
        .map(|number| {
            // In the middle of each of `take` equal shares.
            let at = (2 * number + 1) * records.len() / (2 * take);
            let record = records[at].clone();
            let position = window.position + record.start as u64;
            let key = order.key(&bytes[record], &mut scratch);
            Splitter { key: key[..key.len().min(SAMPLE_KEY_MAX)].to_vec(), position }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Format;
    use crate::spec::SortSpec;

    fn splitter(key: &str, position: u64) -> Splitter {
        Splitter { key: key.into(), position }
    }

    #[test]
    fn splitters_divide_the_samples_evenly_and_ascend() {
        let check = |samples: &[&str], partitions, unique, expect: &[(&str, u64)]| {
            let samples =
                samples.iter().zip(0..).map(|(key, position)| splitter(key, position)).collect();
            let chosen = choose(samples, partitions, unique);
            assert_eq!(
                chosen,
                expect.iter().map(|&(key, position)| splitter(key, position)).collect::<Vec<_>>()
            );
            assert_eq!(validate(&chosen, unique), Ok(()));
        };
        check(&["d", "c", "b", "a"], 2, false, &[("c", 1)]);
        check(&["d", "c", "b", "a"], 4, false, &[("b", 2), ("c", 1), ("d", 0)]);
        check(&["a"; 4], 2, false, &[("a", 2)]);
        check(&["a"; 4], 2, true, &[("a", 0)]);
        check(&["a", "a", "a", "b"], 2, true, &[("b", 0)]);
        check(&["a", "b"], 9, false, &[("a", 0), ("b", 1)]);
        check(&[], 9, false, &[]);
        check(&["a", "b"], 1, false, &[]);
        check(&["a", "b"], 0, false, &[]);
    }

    #[test]
    fn the_fullest_partition_is_measured_by_other_samples_than_chose_it() {
        let check = |samples: &[Splitter],
                     partitions,
                     unique,
                     expect: Option<std::ops::RangeInclusive<u32>>| {
            let percent = fullest_percent(samples, partitions, unique);
            assert!(
                percent.map_or(expect.is_none(), |p| expect.is_some_and(|e| e.contains(&p))),
                "{percent:?}"
            );
        };
        let keys = |key: fn(u64) -> u64| -> Vec<Splitter> {
            (0..4096).map(|at| splitter(&format!("{:08}", key(at)), at)).collect()
        };
        check(&keys(|at| at), 16, false, Some(95..=105));
        check(
            &keys(|at| at.wrapping_mul(0x9e37_79b9_7f4a_7c15) % 99_999_989),
            16,
            false,
            Some(100..=160),
        );
        // One key alone is divided by position, or cannot be.
        check(&keys(|_| 7), 16, false, Some(95..=105));
        check(&keys(|_| 7), 16, true, None);
        // All that the one half has not seen falls to one partition.
        check(&keys(|at| if at % 2 == 0 { at } else { 90_000 + at }), 16, false, Some(1600..=1600));
        check(&keys(|at| at)[..2 * 16 * MEASURED_MIN as usize - 2], 16, false, None);
        check(&keys(|at| at), 1, false, None);
        check(&[], 4, false, None);
    }

    #[test]
    fn validate_refuses_what_does_not_ascend() {
        let check = |splitters: &[Splitter], unique, ok| {
            assert_eq!(validate(splitters, unique).is_ok(), ok);
        };
        check(&[splitter("a", 1), splitter("a", 2)], false, true);
        check(&[splitter("a", 1), splitter("a", 2)], true, false);
        check(&[splitter("a", 1), splitter("a", 1)], false, false);
        check(&[splitter("b", 0), splitter("a", 0)], false, false);
        check(&[splitter(&"a".repeat(SAMPLE_KEY_MAX + 1), 0)], false, false);
    }

    #[test]
    fn the_stored_form_is_fixed() {
        let splitters = [splitter("ab", 7), splitter("b", 0)];
        let mut golden = b"mustrspl\x01\0\0\0\x02\0\0\0".to_vec();
        golden.extend_from_slice(b"\x07\0\0\0\0\0\0\0\x02\0\0\0ab\0\0\0\0\0\0\0\0\x01\0\0\0b");
        golden.extend_from_slice(b"\x26\x44\xb5\x1b\xe2\xd7\x21\xbc");
        assert_eq!(encode(&splitters), golden);
        assert_eq!(decode(&golden), Ok(splitters.to_vec()));
        assert_eq!(decode(&encode(&[])), Ok(vec![]));
    }

    #[test]
    fn damage_is_noticed() {
        let bytes = encode(&[splitter("ab", 7), splitter("b", 0)]);
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(decode(&damaged).is_err(), "byte {at}");
            assert!(decode(&bytes[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn samples_are_whole_records() {
        let check = |format: Format,
                     bytes: &str,
                     object_offset,
                     at_object_end,
                     max,
                     expect: &[(&str, u64)]| {
            let order = Order::new(&SortSpec::new(format)).expect("a valid spec");
            let window = SampleWindow { position: 1000, object_offset, at_object_end };
            let expect: Vec<_> = expect.iter().map(|&(key, at)| splitter(key, 1000 + at)).collect();
            assert_eq!(sample(&order, bytes.as_bytes(), window, max), expect);
        };
        let lines = Format::lines(b'\n');
        check(lines.clone(), "ab\nc\nd", 0, false, 9, &[("ab", 0), ("c", 3)]);
        check(lines.clone(), "ab\nc\nd", 0, true, 9, &[("ab", 0), ("c", 3), ("d", 5)]);
        check(lines.clone(), "ab\nc\nd", 5, false, 9, &[("c", 3)]);
        check(lines.clone(), "ab\nc\nd\n", 0, true, 1, &[("c", 3)]);
        check(lines.clone(), "ab", 5, true, 9, &[]);
        check(lines, "", 0, true, 9, &[]);
        let fixed = Format::fixed(3);
        check(fixed.clone(), "abcdefgh", 0, false, 9, &[("abc", 0), ("def", 3)]);
        check(fixed.clone(), "abcdefgh", 4, false, 9, &[("cde", 2), ("fgh", 5)]);
        check(fixed, "a", 1, false, 9, &[]);
    }
}
