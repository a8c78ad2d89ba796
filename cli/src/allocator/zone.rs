//! Blocks of the size of I/O buffers, side by side in regions that are backed by huge pages.
//!
//! A disk is asked for a megabyte in one request where the memory lies in one piece, and in
//! hundreds of pieces where it lies in pages of 4 KiB: direct reads and writes took twice as long
//! (0.8 to 1.0 against 1.5 to 1.9 GB/s read, 1.3 to 1.8 against 2.7 to 3.0 GB/s written, on a
//! virtual disk). One mapping for each block would have no huge page where the block is smaller
//! than one or begins in its midst, so blocks are cut from regions, the lowest free place first,
//! and share their pages with their neighbours.
//!
//! A huge page goes back to the system as soon as no block lies in it, and no sooner: at each end
//! of a stretch of blocks up to 2 MiB may be held that nobody uses.

use std::collections::BTreeMap;
use std::ptr::null_mut;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::mm::{Advice, madvise, munmap};

use super::{MAPPED_ALIGN, map};

/// Blocks of this size and more are cut from regions...
pub(super) const BLOCK_BYTES_MIN: usize = 256 << 10;
/// ...but for those above this size: they are few, and grow by being moved, which only a mapping of
/// their own can without a copy.
pub(super) const BLOCK_BYTES_MAX: usize = 16 << 20;
/// What the system backs by one page where it is asked to: what it is on x86-64, and on ARM with
/// pages of 4 KiB. Where it is another size, less is given back at once.
const HUGE_PAGE: usize = 2 << 20;
/// The address space of a region; memory it takes only where blocks lie.
const REGION_BYTES: usize = 256 << 20;
const REGIONS_MAX: usize = 1024;

pub(super) struct Zone {
    held: Mutex<Held>,
}

/// Its map of free places takes small blocks, which are not cut from regions: nothing here asks for
/// what it holds locked.
struct Held {
    /// Where each region begins; the first `count` are there.
    regions: [usize; REGIONS_MAX],
    count: usize,
    /// Free places: where each begins, and its bytes. No two of them touch within a region.
    free: BTreeMap<usize, usize>,
}

impl Zone {
    pub(super) const fn new() -> Self {
        Self {
            held: Mutex::new(Held { regions: [0; REGIONS_MAX], count: 0, free: BTreeMap::new() }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A block, aligned to [`MAPPED_ALIGN`], whose bytes may be anything; null where the system
    /// refuses the addresses.
    pub(super) fn cut(&self, bytes: usize) -> *mut u8 {
        self.lock().cut(round_up(bytes, MAPPED_ALIGN)).map_or(null_mut(), |at| at as *mut u8)
    }

    /// Takes a block back, if it was cut here.
    ///
    /// # Safety
    /// Nobody uses the block any more, and it has so many bytes.
    pub(super) unsafe fn take_back(&self, block: *mut u8, bytes: usize) -> bool {
        let mut held = self.lock();
        let at = block as usize;
        if held.region_of(at).is_none() {
            return false;
        }
        // SAFETY: as the caller promises.
        unsafe { held.release(at, round_up(bytes, MAPPED_ALIGN)) };
        true
    }

    /// Makes a block that was cut here longer or shorter where it lies; whether that could be done,
    /// none where it was not cut here.
    ///
    /// # Safety
    /// The block has `from` bytes, and nobody uses those beyond `to`.
    pub(super) unsafe fn resize(&self, block: *mut u8, from: usize, to: usize) -> Option<bool> {
        let mut held = self.lock();
        let at = block as usize;
        let region = held.region_of(at)?;
        let (from, to) = (round_up(from, MAPPED_ALIGN), round_up(to, MAPPED_ALIGN));
        if to < from {
            // SAFETY: as the caller promises.
            unsafe { held.release(at + to, from - to) };
        }
        // One that grows on and on is moved to a mapping of its own while little is copied.
        let fits = to <= BLOCK_BYTES_MAX && at + to <= region + REGION_BYTES;
        Some(to <= from || fits && held.take(at + from, to - from))
    }
}

impl Held {
    fn region_of(&self, at: usize) -> Option<usize> {
        self.regions[..self.count]
            .iter()
            .copied()
            .find(|begin| (*begin..begin + REGION_BYTES).contains(&at))
    }

    fn cut(&mut self, bytes: usize) -> Option<usize> {
        let lowest = self.free.iter().find(|(_, len)| **len >= bytes).map(|(at, _)| *at);
        let at = match lowest {
            Some(at) => at,
            None => self.add_region()?,
        };
        self.take(at, bytes).then_some(at)
    }

    /// Takes the beginning of a free place, if there is one with so many bytes.
    fn take(&mut self, at: usize, bytes: usize) -> bool {
        let Some(len) = self.free.get(&at).copied().filter(|len| *len >= bytes) else {
            return false;
        };
        self.free.remove(&at);
        if len > bytes {
            self.free.insert(at + bytes, len - bytes);
        }
        true
    }

    fn add_region(&mut self) -> Option<usize> {
        let slot = self.regions.get_mut(self.count)?;
        let mapped = map(REGION_BYTES + HUGE_PAGE);
        if mapped.is_null() {
            return None;
        }
        let begin = round_up(mapped as usize, HUGE_PAGE);
        let (before, after) = (begin - mapped as usize, HUGE_PAGE - (begin - mapped as usize));
        for (at, bytes) in [(mapped as usize, before), (begin + REGION_BYTES, after)] {
            if bytes > 0 {
                // What cannot be given back is address space only.
                // SAFETY: a part of the mapping that was just made, which nobody will use.
                let _ = unsafe { munmap((at as *mut u8).cast(), bytes) };
            }
        }
        // Where the system knows no huge pages it refuses, and small ones do.
        // SAFETY: the mapping was just made and is nobody else's; the advice changes how it is
        // backed, not what it holds.
        let _ = unsafe { madvise((begin as *mut u8).cast(), REGION_BYTES, Advice::LinuxHugepage) };
        *slot = begin;
        self.count += 1;
        self.free.insert(begin, REGION_BYTES);
        Some(begin)
    }

    /// Makes a place free, and gives those of its pages back to the system that no block lies in
    /// any more.
    ///
    /// # Safety
    /// Nobody uses what lies there.
    unsafe fn release(&mut self, at: usize, bytes: usize) {
        let Some(region) = self.region_of(at) else { return };
        let (mut begin, mut end) = (at, at + bytes);
        if let Some((before, len)) =
            self.free.range(region..at).next_back().map(|(at, len)| (*at, *len))
            && before + len == at
        {
            begin = before;
        }
        if end < region + REGION_BYTES
            && let Some(len) = self.free.remove(&end)
        {
            end += len;
        }
        self.free.insert(begin, end - begin);
        let (from, to) = (round_down(at, HUGE_PAGE), round_up(at + bytes, HUGE_PAGE));
        let (from, to) = (from.max(round_up(begin, HUGE_PAGE)), to.min(round_down(end, HUGE_PAGE)));
        if from < to {
            // A system that does not take it back keeps it for the next block.
            // SAFETY: the range lies in a free place, which nobody uses; it reads as anything from
            // here on.
            let _ = unsafe { madvise((from as *mut u8).cast(), to - from, Advice::LinuxDontNeed) };
        }
    }
}

fn round_up(bytes: usize, to: usize) -> usize {
    bytes.next_multiple_of(to)
}

fn round_down(bytes: usize, to: usize) -> usize {
    bytes / to * to
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::tests::mapping;
    use super::*;

    const MIB: usize = 1 << 20;

    /// Writes to all of a block.
    fn fill(block: *mut u8, bytes: usize, with: u8) {
        // SAFETY: the test has cut the block with so many bytes.
        unsafe { block.write_bytes(with, bytes) };
    }

    fn holds(block: *mut u8, bytes: usize, byte: u8) -> bool {
        // SAFETY: the test has cut the block with so many bytes, and has written to them.
        unsafe { std::slice::from_raw_parts(block, bytes) }.iter().all(|found| *found == byte)
    }

    #[test]
    fn neighbours_share_huge_pages_which_go_back_when_the_last_leaves() {
        let zone = Zone::new();
        let blocks: Vec<*mut u8> = (0..8).map(|_| zone.cut(MIB + MAPPED_ALIGN)).collect();
        let begin = blocks[0] as usize;
        assert!(begin.is_multiple_of(HUGE_PAGE));
        for (at, block) in blocks.iter().enumerate() {
            assert_eq!(*block as usize, begin + at * (MIB + MAPPED_ALIGN), "one beside the other");
            fill(*block, MIB + MAPPED_ALIGN, at as u8);
        }
        let (resident, flags) = mapping(begin);
        let huge =
            flags.contains(" hg") || !Path::new("/sys/kernel/mm/transparent_hugepage").exists();
        assert!(huge && (8 * MIB..14 * MIB).contains(&resident), "{resident} {flags}");
        for (at, block) in blocks.iter().enumerate().skip(1) {
            assert!(holds(*block, MIB, at as u8), "{at}");
            // SAFETY: the block was cut with so many bytes and is not used below.
            assert!(unsafe { zone.take_back(*block, MIB + MAPPED_ALIGN) });
        }
        assert!(mapping(begin).0 <= HUGE_PAGE, "the pages of the others are given back");
        assert!(holds(blocks[0], MIB, 0));
        // SAFETY: as above.
        assert!(unsafe { zone.take_back(blocks[0], MIB + MAPPED_ALIGN) });
        assert_eq!(mapping(begin).0, 0);
        assert_eq!(zone.cut(MIB) as usize, begin, "the lowest place is the next");
        let mut foreign = [0_u8; 8];
        // SAFETY: it is not cut here, which is what is to be found.
        assert!(!unsafe { zone.take_back(foreign.as_mut_ptr(), 8) });
    }

    #[test]
    fn blocks_grow_into_free_places_and_shrink() {
        let zone = Zone::new();
        let first = zone.cut(MIB);
        fill(first, MIB, 1);
        // SAFETY: the block was cut with these bytes, and the test uses no more of it than it says.
        unsafe {
            assert_eq!(zone.resize(first, MIB, 3 * MIB), Some(true));
            let second = zone.cut(MIB);
            assert_eq!(second as usize, first as usize + 3 * MIB);
            assert_eq!(zone.resize(first, 3 * MIB, 4 * MIB), Some(false), "somebody lies there");
            assert_eq!(zone.resize(first, 3 * MIB, MIB), Some(true));
            assert_eq!(zone.cut(2 * MIB) as usize, first as usize + MIB);
            assert_eq!(zone.resize(null_mut(), MIB, 2 * MIB), None);
            let last = zone.cut(2 * MIB);
            assert_eq!(zone.resize(last, 2 * MIB, BLOCK_BYTES_MAX), Some(true));
            assert_eq!(
                zone.resize(last, BLOCK_BYTES_MAX, BLOCK_BYTES_MAX + 1),
                Some(false),
                "it is to have a mapping"
            );
        }
        assert!(holds(first, MIB, 1));
    }

    #[test]
    fn no_two_blocks_overlap_whatever_comes_and_goes() {
        let zone = Zone::new();
        let mut blocks: Vec<(*mut u8, usize, u8)> = Vec::new();
        let mut random = 88_172_645_463_325_252_u64;
        for step in 0..3000_u32 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let pick = random as usize;
            if pick.is_multiple_of(5) || blocks.len() < 20 {
                let bytes = BLOCK_BYTES_MIN + (pick >> 8) % (2 * MIB);
                let block = zone.cut(bytes);
                fill(block, bytes, step as u8);
                blocks.push((block, bytes, step as u8));
                continue;
            }
            let (block, bytes, with) = blocks.swap_remove((pick >> 8) % blocks.len());
            assert!(holds(block, bytes, with), "step {step}");
            // SAFETY: the block was cut with so many bytes, and is used no more where it is given
            // back.
            unsafe {
                let wanted = BLOCK_BYTES_MIN + (pick >> 40) % MIB;
                if pick.is_multiple_of(3) && zone.resize(block, bytes, wanted) == Some(true) {
                    fill(block, wanted, with);
                    blocks.push((block, wanted, with));
                } else {
                    assert!(zone.take_back(block, bytes));
                }
            }
        }
        let regions = zone.lock().count;
        let begin = zone.lock().regions[0];
        for (block, bytes, with) in blocks {
            assert!(holds(block, bytes, with));
            // SAFETY: as above.
            assert!(unsafe { zone.take_back(block, bytes) });
        }
        assert_eq!(zone.lock().free.values().sum::<usize>(), regions * REGION_BYTES);
        assert_eq!((zone.lock().free.len(), mapping(begin).0), (regions, 0));
    }
}
