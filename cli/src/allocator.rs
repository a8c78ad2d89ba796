//! The allocator: mimalloc for what is small, the system itself for what is large, so that what the
//! program holds is what it counts (P6).
//!
//! Three things made a process of 256 MiB grow to 690 MiB while it merged, all of them memory that
//! nobody held any more:
//!
//! - An allocator keeps what one thread frees and another asks for anew. Large blocks are therefore
//!   the system's, and go back when freed: those of the size of I/O buffers (windows, parts) lie
//!   side by side in regions with huge pages ([`zone`]), others (the memory of sorters) are mapped
//!   each by itself.
//! - mimalloc asks for huge pages behind all of its memory. A page of 2 MiB stays whole as long as
//!   one block in it lives, and the system's collector fills holes that were given back
//!   ("khugepaged", which takes a page of 4 KiB as enough reason). So mimalloc's memory has small
//!   pages, also where the system would give huge ones unasked; who wants huge ones for a large
//!   block asks for them there.
//! - mimalloc gives back what is freed after a second; here at once.

use std::alloc::{GlobalAlloc, Layout};
use std::ffi::{c_int, c_void};
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::mm::{
    Advice, MapFlags, MremapFlags, ProtFlags, madvise, mmap_anonymous, mremap, munmap,
};

use zone::Zone;

mod zone;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// Where blocks of the size of I/O buffers lie.
static ZONE: Zone = Zone::new();

/// Blocks of this size and more are the system's.
const LARGE_BYTES: usize = 128 << 10;
/// What mappings are aligned to at least: the smallest page of all systems.
const MAPPED_ALIGN: usize = 4096;
/// The address space that mimalloc gets for small blocks; beyond it takes more by itself.
const ARENA_BYTES: usize = 1 << 30;

/// Options that the binding has no name for: their places in `mi_option_t` of mimalloc 3.
const PURGE_DELAY: c_int = 15;
const ALLOW_THP: c_int = 43;

/// See the module's header.
struct Allocator;

impl Allocator {
    /// mimalloc, set up before its first block.
    #[inline(always)]
    fn small() -> &'static mimalloc::MiMalloc {
        static SMALL: mimalloc::MiMalloc = mimalloc::MiMalloc;
        static IS_SET_UP: AtomicBool = AtomicBool::new(false);
        // The first block of a process is asked for while it has one thread. It would do no harm
        // twice.
        if !IS_SET_UP.load(Ordering::Relaxed) {
            IS_SET_UP.store(true, Ordering::Relaxed);
            set_up();
        }
        &SMALL
    }
}

#[inline(always)]
fn is_large(layout: Layout) -> bool {
    layout.size() >= LARGE_BYTES && layout.align() <= MAPPED_ALIGN
}

fn is_in_zone(bytes: usize) -> bool {
    (zone::BLOCK_BYTES_MIN..=zone::BLOCK_BYTES_MAX).contains(&bytes)
}

/// A large block, whose bytes may be anything.
fn cut_or_map(bytes: usize) -> *mut u8 {
    let cut = if is_in_zone(bytes) { ZONE.cut(bytes) } else { null_mut() };
    if cut.is_null() { map(bytes) } else { cut }
}

#[cold]
fn set_up() {
    // SAFETY: setting an option of the allocator is allowed at any time.
    unsafe {
        libmimalloc_sys::mi_option_set(PURGE_DELAY, 0);
        libmimalloc_sys::mi_option_set(ALLOW_THP, 0);
    }
    let arena = map(ARENA_BYTES);
    if arena.is_null() {
        return;
    }
    // Where the system knows no huge pages it refuses, and there is nothing to forbid.
    // SAFETY: the mapping was just made and is nobody else's; the advice changes how it is backed,
    // not what it holds.
    let _ = unsafe { madvise(arena.cast(), ARENA_BYTES, Advice::LinuxNoHugepage) };
    // SAFETY: the memory is mapped, zero, of small pages, and given away for good.
    unsafe {
        libmimalloc_sys::mi_manage_os_memory_ex(
            arena.cast(),
            ARENA_BYTES,
            true,
            false,
            true,
            -1,
            false,
            null_mut(),
        );
    }
}

/// Fresh memory, zero and untouched; null where the system refuses it.
fn map(bytes: usize) -> *mut u8 {
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: a new mapping at a place of the system's choice touches nothing that exists.
    let mapped =
        unsafe { mmap_anonymous(null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, flags) };
    mapped.map_or(null_mut(), <*mut c_void>::cast)
}

// SAFETY: a block is large or mimalloc's by its layout alone, which every later call about it
// repeats; where a large one lies its address tells. It is aligned to pages and as long as asked
// for.
unsafe impl GlobalAlloc for Allocator {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_large(layout) {
            cut_or_map(layout.size())
        } else {
            // SAFETY: as the caller promises.
            unsafe { Self::small().alloc(layout) }
        }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // Fresh mappings are zero, places in the zone are not.
        if is_large(layout) {
            map(layout.size())
        } else {
            // SAFETY: as the caller promises.
            unsafe { Self::small().alloc_zeroed(layout) }
        }
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: a block of this layout that its owner gives up.
        unsafe {
            if !is_large(layout) {
                Self::small().dealloc(block, layout);
            } else if !ZONE.take_back(block, layout.size()) {
                // A system that does not take its own memory back leaks it; nothing else can be
                // done here.
                let _ = munmap(block.cast(), layout.size());
            }
        }
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        // SAFETY: the caller promises that it is a size of a layout with this alignment.
        let wanted = unsafe { Layout::from_size_align_unchecked(bytes, layout.align()) };
        match (is_large(layout), is_large(wanted)) {
            // SAFETY: as the caller promises.
            (false, false) => unsafe { Self::small().realloc(block, layout, bytes) },
            // SAFETY: as the caller promises, who no longer uses what lies beyond.
            (true, true) => match unsafe { ZONE.resize(block, layout.size(), bytes) } {
                Some(true) => block,
                // SAFETY: as the caller promises.
                Some(false) => unsafe { self.moved(block, layout, wanted) },
                None => {
                    // SAFETY: the block was mapped with this length; nobody looks at its old place
                    // any more.
                    let moved =
                        unsafe { mremap(block.cast(), layout.size(), bytes, MremapFlags::MAYMOVE) };
                    moved.map_or(null_mut(), <*mut c_void>::cast)
                }
            },
            // SAFETY: as the caller promises.
            _ => unsafe { self.moved(block, layout, wanted) },
        }
    }
}

impl Allocator {
    /// A block of the wanted layout with what the old one holds, which is given up; null where
    /// there is no memory, and the old one stays.
    ///
    /// # Safety
    /// As of [`GlobalAlloc::realloc`].
    unsafe fn moved(&self, block: *mut u8, layout: Layout, wanted: Layout) -> *mut u8 {
        // SAFETY: the layout is of some size, as the caller promises.
        let Some(moved) = NonNull::new(unsafe { self.alloc(wanted) }) else { return null_mut() };
        // SAFETY: both blocks hold as many bytes, and one was just made.
        unsafe {
            moved.as_ptr().copy_from_nonoverlapping(block, layout.size().min(wanted.size()));
            self.dealloc(block, layout);
        }
        moved.as_ptr()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of the mapping that an address lies in: its bytes in memory, and whether huge pages are `hg`
    /// asked for or `nh` forbidden.
    pub(super) fn mapping(address: usize) -> (usize, String) {
        let maps = std::fs::read_to_string("/proc/self/smaps").expect("smaps");
        let mut found = None;
        for line in maps.lines() {
            let range = line.split(' ').next().and_then(|range| range.split_once('-'));
            if let Some((begin, end)) = range.and_then(|(begin, end)| {
                Some((usize::from_str_radix(begin, 16).ok()?, usize::from_str_radix(end, 16).ok()?))
            }) {
                found = (begin..end).contains(&address).then_some(0);
            }
            if let (Some(resident), Some(kib)) = (&mut found, line.strip_prefix("Rss:")) {
                *resident =
                    kib.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") << 10;
            }
            if let (Some(resident), Some(flags)) = (found, line.strip_prefix("VmFlags:")) {
                return (resident, flags.to_owned());
            }
        }
        (0, String::new())
    }

    #[test]
    fn the_options_have_their_places() {
        let _block = Box::new(1);
        // SAFETY: reading an option is allowed at any time.
        let value = |option| unsafe { libmimalloc_sys::mi_option_get(option) };
        assert_eq!((value(PURGE_DELAY), value(ALLOW_THP)), (0, 0));
        // The neighbours, by their defaults: a version with other options moves them.
        let (cross_thread, minimal_purge) = (value(ALLOW_THP - 1), value(ALLOW_THP + 1));
        assert_eq!(
            (value(PURGE_DELAY + 1), value(PURGE_DELAY + 3)),
            (0, 100),
            "use_numa_nodes, os_tag"
        );
        assert_eq!(
            (cross_thread, minimal_purge),
            (32, 0),
            "page_cross_thread_max_reclaim, minimal_purge_size"
        );
    }

    #[test]
    fn large_blocks_go_back_at_once_and_small_ones_have_small_pages() {
        let mut block = vec![1_u8; 64 << 20];
        let address = block.as_ptr() as usize;
        assert!(mapping(address).0 >= 64 << 20);
        block.truncate(1 << 20);
        block.shrink_to_fit();
        assert!(mapping(block.as_ptr() as usize).0 < 8 << 20, "the tail is given back");
        assert!(block.iter().all(|byte| *byte == 1));
        drop(block);
        assert!(mapping(address).0 < 8 << 20, "the block is given back");
        let small = Box::new([1_u8; 4096]);
        assert!(
            mapping(small.as_ptr() as usize).1.contains(" nh"),
            "no huge pages for small blocks"
        );
    }

    #[test]
    fn a_block_keeps_its_bytes_as_it_grows_and_shrinks_over_the_boundary() {
        let mut block: Vec<u8> = Vec::new();
        for round in 0..3 * LARGE_BYTES {
            block.push(round as u8);
        }
        for bytes in [LARGE_BYTES + 1, LARGE_BYTES, LARGE_BYTES - 1, 10] {
            block.truncate(bytes);
            block.shrink_to_fit();
            block.reserve_exact(1);
            assert!(
                block.len() == bytes
                    && block.iter().enumerate().all(|(at, byte)| *byte == at as u8),
                "{bytes}"
            );
        }
        let zeroed = vec![0_u8; LARGE_BYTES];
        assert!(zeroed.iter().all(|byte| *byte == 0));
        #[repr(align(65536))]
        struct Aligned([u8; 2 * LARGE_BYTES]);
        let aligned = Box::new(Aligned([7; 2 * LARGE_BYTES]));
        assert!(
            (&raw const *aligned as usize).is_multiple_of(65536) && aligned.0[LARGE_BYTES] == 7
        );
    }
}
