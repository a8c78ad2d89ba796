//! The one block of memory of a [`crate::sort::ChunkSorter`]: record bytes grow from its low end,
//! 16-byte entries from its high end.
//!
//! So data and entries share the budget in whatever proportion the records ask for, and nothing is
//! ever reserved for one that the other could use. The memory comes zeroed from the allocator,
//! which for large blocks means untouched: pages cost nothing until they are written, and they are
//! kept for the next chunk, because fresh memory is the slowest resource of virtual machines.

use std::alloc::{Layout, alloc_zeroed};
use std::mem::size_of;

const ENTRY_BYTES: usize = size_of::<u128>();
/// The first allocation. Small inputs never need more.
const FIRST_BYTES: usize = 1 << 20;
const GROWTH_FACTOR: usize = 8;

/// Bytes below, entries above; see the module's header.
#[derive(Debug)]
pub(crate) struct Slab {
    words: Vec<u128>,
    bytes_len: usize,
    entries_len: usize,
    /// Bytes of the budget that the owner uses elsewhere.
    outside_bytes: usize,
    budget_bytes: usize,
    advise: Option<fn(&mut [u8])>,
    grant: Option<fn(usize) -> bool>,
}

/// What came of asking for more memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Growth {
    /// There is more.
    Grown,
    /// The budget is reached.
    Full,
    /// The system refused so many bytes.
    Refused(usize),
}

impl Slab {
    /// An empty slab that will never hold more than `budget_bytes`.
    pub(crate) fn new(budget_bytes: usize) -> Self {
        Self {
            words: Vec::new(),
            bytes_len: 0,
            entries_len: 0,
            outside_bytes: 0,
            budget_bytes,
            advise: None,
            grant: None,
        }
    }

    /// Passes every fresh block of memory to `advise`.
    pub(crate) fn set_advice(&mut self, advise: fn(&mut [u8])) {
        self.advise = Some(advise);
    }

    /// Asks `grant` before every block of memory; what it refuses is not taken.
    pub(crate) fn set_grant(&mut self, grant: fn(usize) -> bool) {
        self.grant = Some(grant);
    }

    /// Counts `bytes` that the owner uses elsewhere against the budget.
    pub(crate) fn set_outside_bytes(&mut self, bytes: usize) {
        self.outside_bytes = bytes;
    }

    /// Bytes between the two ends that may be used.
    #[inline]
    pub(crate) fn free(&self) -> usize {
        let between =
            self.words.len() * ENTRY_BYTES - self.bytes_len - self.entries_len * ENTRY_BYTES;
        between.saturating_sub(self.outside_bytes)
    }

    pub(crate) fn budget_bytes(&self) -> usize {
        self.budget_bytes
    }

    #[inline]
    pub(crate) fn bytes_len(&self) -> usize {
        self.bytes_len
    }

    #[inline]
    pub(crate) fn entries_len(&self) -> usize {
        self.entries_len
    }

    /// Allocates the next larger size and moves what is there. The last step but one takes at most
    /// an eighth of the budget, so the old and the new pages together stay within it.
    pub(crate) fn grow(&mut self) -> Growth {
        let budget_words = self.budget_bytes / ENTRY_BYTES;
        if self.words.len() >= budget_words {
            return Growth::Full;
        }
        let wanted = (self.words.len() * GROWTH_FACTOR).max(FIRST_BYTES / ENTRY_BYTES);
        let words = if wanted * GROWTH_FACTOR > budget_words { budget_words } else { wanted };
        let Some(mut grown) = self.zeroed(words) else {
            return Growth::Refused(words * ENTRY_BYTES);
        };
        if let Some(advise) = self.advise {
            advise(as_bytes_mut(&mut grown));
        }
        let low = self.bytes_len.div_ceil(ENTRY_BYTES);
        grown[..low].copy_from_slice(&self.words[..low]);
        grown[words - self.entries_len..]
            .copy_from_slice(&self.words[self.words.len() - self.entries_len..]);
        self.words = grown;
        Growth::Grown
    }

    /// Untouched memory, unless it is refused.
    fn zeroed(&self, words: usize) -> Option<Vec<u128>> {
        if words == 0 {
            return Some(Vec::new());
        }
        let layout = Layout::array::<u128>(words).ok()?;
        if self.grant.is_some_and(|grant| !grant(layout.size())) {
            return None;
        }
        // SAFETY: the layout is not empty.
        let memory = unsafe { alloc_zeroed(layout) }.cast::<u128>();
        // SAFETY: memory of the global allocator with the layout of `words` values, all of them
        // initialised, as zeros are.
        (!memory.is_null()).then(|| unsafe { Vec::from_raw_parts(memory, words, words) })
    }

    /// Drops all that is held, and its memory.
    pub(crate) fn clear(&mut self) {
        self.words = Vec::new();
        (self.bytes_len, self.entries_len) = (0, 0);
    }

    /// Passes the memory between the two ends to `release`, which may forget what is there.
    pub(crate) fn release_free(&mut self, release: fn(&mut [u8])) {
        let (low, high) =
            (self.bytes_len.div_ceil(ENTRY_BYTES), self.words.len() - self.entries_len);
        if low < high {
            release(as_bytes_mut(&mut self.words[low..high]));
        }
    }

    /// The record bytes.
    #[inline]
    pub(crate) fn bytes(&self) -> &[u8] {
        &as_bytes(&self.words)[..self.bytes_len]
    }

    /// The record bytes and the entries, newest entry first.
    pub(crate) fn split(&mut self) -> (&[u8], &mut [u128]) {
        let boundary = self.words.len() - self.entries_len;
        let (low, high) = self.words.split_at_mut(boundary);
        (&as_bytes(low)[..self.bytes_len], high)
    }

    /// Flips one bit of the record bytes.
    pub(crate) fn flip(&mut self, at: usize, bit: u32) {
        if let Some(byte) = as_bytes_mut(&mut self.words)[..self.bytes_len].get_mut(at) {
            *byte ^= 1 << (bit % 8);
        }
    }

    /// Appends bytes; the caller has checked that `free()` suffices.
    #[inline]
    pub(crate) fn push_bytes(&mut self, bytes: &[u8]) {
        let end = self.bytes_len + bytes.len();
        assert!(bytes.len() <= self.free(), "the slab's ends met");
        as_bytes_mut(&mut self.words)[self.bytes_len..end].copy_from_slice(bytes);
        self.bytes_len = end;
    }

    /// Takes bytes back from the end.
    #[inline]
    pub(crate) fn truncate_bytes(&mut self, len: usize) {
        self.bytes_len = self.bytes_len.min(len);
    }

    /// Adds an entry; `false` if there is no room.
    #[inline(always)]
    pub(crate) fn push_entry(&mut self, entry: u128) -> bool {
        let at = self.words.len().wrapping_sub(self.entries_len + 1);
        if at.wrapping_mul(ENTRY_BYTES) < self.bytes_len + self.outside_bytes
            || at >= self.words.len()
        {
            return false;
        }
        self.words[at] = entry;
        self.entries_len += 1;
        true
    }

    /// Drops all entries and all bytes but those from `tail` on, which move to the start.
    pub(crate) fn keep_tail(&mut self, tail: usize) {
        as_bytes_mut(&mut self.words).copy_within(tail..self.bytes_len, 0);
        self.bytes_len -= tail;
        self.entries_len = 0;
    }
}

fn as_bytes(words: &[u128]) -> &[u8] {
    // SAFETY: u128 has no padding, every bit pattern is a valid u8, and a byte has no alignment to
    // keep.
    unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), std::mem::size_of_val(words)) }
}

fn as_bytes_mut(words: &mut [u128]) -> &mut [u8] {
    // SAFETY: as above, and every byte pattern is a valid u128.
    unsafe {
        std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), std::mem::size_of_val(words))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_meet_and_growth_keeps_them() {
        let budget = FIRST_BYTES * 20;
        let mut slab = Slab::new(budget);
        assert_eq!(slab.free(), 0);
        assert!(!slab.push_entry(1));
        assert_eq!(slab.grow(), Growth::Grown);
        assert_eq!(slab.free(), FIRST_BYTES);
        slab.push_bytes(b"abc");
        assert!(slab.push_entry(7) && slab.push_entry(8));
        assert_eq!((slab.grow(), slab.grow()), (Growth::Grown, Growth::Full));
        let (bytes, entries) = slab.split();
        assert_eq!((bytes, &*entries), (&b"abc"[..], &[8, 7][..]));
        assert_eq!(slab.free(), budget - 3 - 32);
        slab.push_bytes(&vec![1; slab.free() - 15]);
        assert!(!slab.push_entry(9));
        slab.truncate_bytes(slab.bytes_len() - 1);
        assert!(slab.push_entry(9) && !slab.push_entry(10));
        assert_eq!(slab.free(), 0);
        slab.keep_tail(1);
        assert_eq!((&slab.bytes()[..2], slab.entries_len()), (&b"bc"[..], 0));
    }

    #[test]
    fn a_tiny_budget_is_kept() {
        let mut slab = Slab::new(40);
        assert_eq!((slab.grow(), slab.grow()), (Growth::Grown, Growth::Full));
        assert_eq!(slab.free(), 32);
        let mut none = Slab::new(7);
        assert_eq!(none.grow(), Growth::Full);
    }

    #[test]
    fn what_is_released_lies_between_the_ends() {
        let mut slab = Slab::new(FIRST_BYTES);
        slab.release_free(|_| panic!("nothing is there"));
        assert_eq!(slab.grow(), Growth::Grown);
        slab.push_bytes(b"abc");
        assert!(slab.push_entry(7));
        slab.release_free(|free| {
            assert_eq!(free.len(), FIRST_BYTES - 32);
            free.fill(9);
        });
        let (bytes, entries) = slab.split();
        assert_eq!((bytes, &*entries), (&b"abc"[..], &[7][..]));
    }

    #[test]
    fn refused_memory_is_no_panic_and_leaves_what_is_there() {
        let mut slab = Slab::new(FIRST_BYTES * 20);
        slab.set_grant(|bytes| bytes <= FIRST_BYTES);
        assert_eq!(slab.grow(), Growth::Grown);
        slab.push_bytes(b"abc");
        assert_eq!(slab.grow(), Growth::Refused(FIRST_BYTES * 20));
        assert_eq!(slab.bytes(), b"abc");
    }
}
