//! Sorts entries: a key window, where the record lies, how long it is, packed into one integer.
//!
//! An entry is `window << 64 | offset << 32 | len`. Entries compare as integers; since offsets
//! ascend with the input position, equal windows stay in input order. Where equal windows do not
//! decide, the group is *refined*: the common start of its keys is skipped, the next windows are
//! taken, and the group is sorted again. Skipping makes long common prefixes cheap, taking windows
//! instead of comparing whole keys keeps skewed data fast (falling back to whole keys made it five
//! times slower), and an explicit stack bounds the depth.

use std::cmp::Ordering;

use crate::order::RawKey;
use crate::radix;
use crate::window::{Windowing, common_len};

/// Groups up to this size are sorted by comparing whole keys: refining them costs more than it
/// saves.
const SMALL_GROUP: usize = 24;
/// How many entries ahead the memory is asked for records. With all lines of a record and into the
/// second-level cache a gather takes 14 ns a record of 100 bytes; into the first-level cache, or
/// without the last line, 24; 8 ahead 26.
pub(crate) const PREFETCH_AHEAD: usize = 24;

/// What stands before each encoded key in the data: the record's global position (u64) and its
/// stored length (u32), little endian. The record itself stands before that.
pub(crate) const ENCODED_HEADER_BYTES: usize = 12;

#[inline(always)]
pub(crate) fn entry(window: u64, offset: usize, len: usize) -> u128 {
    debug_assert!(offset <= u32::MAX as usize && len <= u32::MAX as usize);
    u128::from(window) << 64 | (offset as u128) << 32 | len as u128
}

#[inline(always)]
fn window_of(entry: u128) -> u64 {
    (entry >> 64) as u64
}

#[inline(always)]
fn with_window(entry: u128, window: u64) -> u128 {
    entry & u128::from(u64::MAX) | u128::from(window) << 64
}

#[inline(always)]
fn offset_of(entry: u128) -> usize {
    (entry >> 32) as u32 as usize
}

#[inline(always)]
fn len_of(entry: u128) -> usize {
    entry as u32 as usize
}

/// Finds keys and records of entries in the chunk's data.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keys<'a> {
    pub(crate) data: &'a [u8],
    /// Where the key lies in the record; `None`: entries point at encoded keys.
    pub(crate) raw: Option<RawKey>,
    pub(crate) windowing: Windowing,
}

impl<'a> Keys<'a> {
    #[inline(always)]
    pub(crate) fn key(&self, entry: u128) -> &'a [u8] {
        let (offset, len) = (offset_of(entry), len_of(entry));
        match self.raw {
            Some(RawKey::Range { offset: skip, len }) => {
                &self.data[offset + skip..offset + skip + len]
            }
            // Without the terminator, which every stored line has.
            Some(RawKey::Line) => &self.data[offset..offset + len - 1],
            None => &self.data[offset..offset + len],
        }
    }

    /// The stored bytes of the record.
    #[inline(always)]
    pub(crate) fn record(&self, entry: u128) -> &'a [u8] {
        let (offset, len) = (offset_of(entry), len_of(entry));
        match self.raw {
            Some(_) => &self.data[offset..offset + len],
            None => {
                let header = offset - ENCODED_HEADER_BYTES;
                let mut stored_len = [0; 4];
                stored_len.copy_from_slice(&self.data[header + 8..offset]);
                &self.data[header - u32::from_le_bytes(stored_len) as usize..header]
            }
        }
    }

    /// Where the stored bytes of the record lie in the data.
    pub(crate) fn record_range(&self, entry: u128) -> std::ops::Range<usize> {
        let (record, offset) = (self.record(entry), offset_of(entry));
        let end =
            if self.raw.is_some() { offset + record.len() } else { offset - ENCODED_HEADER_BYTES };
        end - record.len()..end
    }

    /// Where a raw record starts in the data, or the position that was stored with an encoded key.
    pub(crate) fn place(&self, entry: u128) -> Place {
        let offset = offset_of(entry);
        match self.raw {
            Some(_) => Place::Offset(offset),
            None => {
                let mut position = [0; 8];
                let header = offset - ENCODED_HEADER_BYTES;
                position.copy_from_slice(&self.data[header..header + 8]);
                Place::Position(u64::from_le_bytes(position))
            }
        }
    }

    /// Asks the memory for a record that will soon be read.
    #[inline(always)]
    pub(crate) fn prefetch(&self, entry: u128) {
        let (offset, len) = (offset_of(entry), len_of(entry));
        prefetch(self.data, offset);
        prefetch(self.data, offset + len.min(64));
        prefetch(self.data, offset + len.min(128) - 1);
    }

    #[inline(always)]
    fn rest(&self, entry: u128, depth: usize) -> &'a [u8] {
        self.key(entry).get(depth..).unwrap_or_default()
    }

    fn compare_from(&self, a: u128, b: u128, depth: usize) -> Ordering {
        self.rest(a, depth).cmp(self.rest(b, depth)).then_with(|| offset_of(a).cmp(&offset_of(b)))
    }
}

/// Where an entry's record came from; see [`Keys::place`].
pub(crate) enum Place {
    Offset(usize),
    Position(u64),
}

/// Hints the processor to load the cache line of `data[at]`; a place outside is harmless.
#[inline(always)]
pub(crate) fn prefetch(data: &[u8], at: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a prefetch never faults, whatever the address, and changes nothing that a program
        // can see.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(data.as_ptr().wrapping_add(at).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (data, at);
}

/// A group whose entries are sorted by the windows at `depth` and whose equal windows from `at` on
/// are still to be refined.
struct Frame {
    at: usize,
    end: usize,
    depth: usize,
}

/// Sorts entries that hold the windows at depth 0 by (key, offset). In place, but for
/// [`radix::SCRATCH_ENTRIES`]; the stack grows with nesting only.
pub(crate) fn sort(entries: &mut [u128], keys: &Keys<'_>) {
    let mut scratch = Vec::new();
    radix::sort(entries, &mut scratch);
    let mut stack = vec![Frame { at: 0, end: entries.len(), depth: 0 }];
    while let Some(frame) = stack.last_mut() {
        let Some((begin, end)) = next_group(entries, frame.at, frame.end) else {
            stack.pop();
            continue;
        };
        frame.at = end;
        let depth = frame.depth;
        let group = &mut entries[begin..end];
        if keys.windowing.decides(window_of(group[0]), depth) {
            continue;
        }
        if let Some(depth) = refine(group, keys, depth + keys.windowing.step(), &mut scratch) {
            stack.push(Frame { at: begin, end, depth });
        }
    }
}

/// The next range in `from..end` of at least two entries with the same window.
fn next_group(entries: &[u128], from: usize, end: usize) -> Option<(usize, usize)> {
    let begin = from
        + entries[from..end]
            .windows(2)
            .position(|pair| window_of(pair[0]) == window_of(pair[1]))?;
    let window = window_of(entries[begin]);
    let len = entries[begin..end].iter().take_while(|&&entry| window_of(entry) == window).count();
    Some((begin, begin + len))
}

/// Sorts a group whose keys are equal before `depth`. Returns the depth at which equal windows
/// still have to be refined, if any.
fn refine(
    group: &mut [u128],
    keys: &Keys<'_>,
    depth: usize,
    scratch: &mut Vec<u128>,
) -> Option<usize> {
    if group.len() <= SMALL_GROUP {
        group.sort_unstable_by(|&a, &b| keys.compare_from(a, b, depth));
        return None;
    }
    let first = keys.rest(group[0], depth);
    let mut common = first.len();
    let mut all_equal = true;
    for (at, &entry) in group.iter().enumerate() {
        if let Some(&ahead) = group.get(at + PREFETCH_AHEAD) {
            prefetch(keys.data, offset_of(ahead) + depth);
        }
        let rest = keys.rest(entry, depth);
        let shared = common_len(&first[..common], rest);
        all_equal &= shared == first.len() && shared == rest.len();
        common = shared;
        if common == 0 {
            break;
        }
    }
    if all_equal && common == first.len() {
        return None; // Equal keys, and the windows' sort left them in input order.
    }
    let depth = depth + common;
    for at in 0..group.len() {
        if let Some(&ahead) = group.get(at + PREFETCH_AHEAD) {
            prefetch(keys.data, offset_of(ahead) + depth);
        }
        group[at] = with_window(group[at], keys.windowing.window(keys.key(group[at]), depth));
    }
    radix::sort(group, scratch);
    Some(depth)
}
