//! Reused I/O buffers.
//!
//! Fresh memory is the slowest resource of a virtual machine (first touch 0.4 to 2.3 GB/s against
//! 21 GB/s for a copy), so buffers go back to a pool when dropped. A buffer's data begins at a
//! multiple of [`ALIGN`], as direct I/O asks for.

use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use muster_protocol::error::{Error, ErrorKind, Result};

/// Alignment of a buffer's data in memory, and of the offsets and lengths that direct I/O takes.
pub const ALIGN: usize = 4096;

/// Asks the system to back a block of memory, not yet touched, with huge pages: fewer faults on
/// first touch, fewer misses of the address cache on random reads. Only advice: where the system
/// has none to give, or the block is smaller than one, nothing changes.
pub fn advise_huge_pages(memory: &mut [u8]) {
    #[cfg(target_os = "linux")]
    {
        let skipped = memory.as_ptr().align_offset(ALIGN).min(memory.len());
        let whole = &mut memory[skipped..];
        let len = whole.len() / ALIGN * ALIGN;
        if len > 0 {
            // Systems without huge pages refuse the advice, and do no worse than before.
            // SAFETY: the range lies within a borrowed slice and begins and ends at pages; this
            // advice changes how it is backed, not what it holds.
            let _ = unsafe {
                rustix::mm::madvise(
                    whole.as_mut_ptr().cast(),
                    len,
                    rustix::mm::Advice::LinuxHugepage,
                )
            };
        }
    }
}

/// Gives the pages of a block of memory back to the system; it stays usable, and what it held is
/// lost. Only advice: where the system takes nothing back, nothing changes.
pub fn forget(memory: &mut [u8]) {
    #[cfg(target_os = "linux")]
    {
        let skipped = memory.as_ptr().align_offset(ALIGN).min(memory.len());
        let whole = &mut memory[skipped..];
        let len = whole.len() / ALIGN * ALIGN;
        if len > 0 {
            // SAFETY: the range lies within a slice that is borrowed mutably and begins and ends at
            // pages; it reads as zeros or as it was from here on, which any slice of bytes may.
            let _ = unsafe {
                rustix::mm::madvise(
                    whole.as_mut_ptr().cast(),
                    len,
                    rustix::mm::Advice::LinuxDontNeed,
                )
            };
        }
    }
}

/// Buffers, kept for reuse while all of them, in use or idle, stay within a number of bytes.
/// Cloning shares the pool.
#[derive(Debug, Clone)]
pub struct BufferPool {
    held: Arc<Mutex<Held>>,
}

#[derive(Debug)]
struct Held {
    /// Buffers that nobody uses, the one given back last at the end.
    idle: Vec<Vec<u8>>,
    idle_bytes: usize,
    /// Of buffers in use.
    taken_bytes: usize,
    bytes_max: usize,
}

impl Held {
    /// Takes idle buffers out until all that is held and `more_bytes` stay within the bound, or
    /// none are left. The caller drops them, best without the lock.
    #[must_use]
    fn make_room(&mut self, more_bytes: usize) -> Vec<Vec<u8>> {
        let mut out = Vec::new();
        while self.taken_bytes + self.idle_bytes + more_bytes > self.bytes_max
            && !self.idle.is_empty()
        {
            let oldest = self.idle.remove(0);
            self.idle_bytes -= oldest.capacity();
            out.push(oldest);
        }
        out
    }
}

/// Room beyond the pool's own that it may use for a while: until this is dropped.
#[derive(Debug)]
pub struct Lent {
    bytes: usize,
    pool: BufferPool,
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut held = self.pool.lock();
        held.bytes_max -= self.bytes;
        let dropped = held.make_room(0);
        drop(held);
        drop(dropped);
    }
}

impl BufferPool {
    /// A pool that keeps no buffer which would bring all of its buffers, in use or idle, beyond
    /// `bytes_max` bytes. What is in use is bounded by those who take.
    pub fn new(bytes_max: usize) -> Self {
        Self {
            held: Arc::new(Mutex::new(Held {
                idle: Vec::new(),
                idle_bytes: 0,
                taken_bytes: 0,
                bytes_max,
            })),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the pool use `bytes` more, which the caller could use otherwise and does not.
    pub fn lend(&self, bytes: usize) -> Lent {
        self.lock().bytes_max += bytes;
        Lent { bytes, pool: self.clone() }
    }

    /// An empty buffer with room for `capacity` bytes of data. It may grow beyond, at the price of
    /// its alignment.
    pub fn take(&self, capacity: usize) -> Buffer {
        let needed = size_class(capacity) + ALIGN;
        let vec = self.reuse(needed).unwrap_or_else(|| Vec::with_capacity(needed));
        self.begin(vec)
    }

    /// The same for sizes that the system may refuse.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfMemory`].
    pub fn try_take(&self, capacity: usize) -> Result<Buffer> {
        let needed = size_class(capacity) + ALIGN;
        if let Some(vec) = self.reuse(needed) {
            return Ok(self.begin(vec));
        }
        let mut vec = Vec::new();
        vec.try_reserve_exact(needed).map_err(|_| {
            Error::new(
                ErrorKind::OutOfMemory,
                format!("out of memory: a buffer of {needed} bytes was refused"),
            )
        })?;
        Ok(self.begin(vec))
    }

    /// An idle buffer that fits. Where there is none, idle ones make room for a new one.
    fn reuse(&self, needed: usize) -> Option<Vec<u8>> {
        let mut held = self.lock();
        let fits = |vec: &Vec<u8>| vec.capacity() >= needed && vec.capacity() <= needed * 2;
        let fitting = held.idle.iter().enumerate().filter(|(_, vec)| fits(vec));
        let smallest = fitting.min_by_key(|(_, vec)| vec.capacity()).map(|(at, _)| at);
        let Some(at) = smallest else {
            let dropped = held.make_room(needed);
            drop(held);
            drop(dropped);
            return None;
        };
        let vec = held.idle.remove(at);
        held.idle_bytes -= vec.capacity();
        Some(vec)
    }

    fn begin(&self, mut vec: Vec<u8>) -> Buffer {
        let counted = vec.capacity();
        self.lock().taken_bytes += counted;
        vec.clear();
        let start = vec.as_ptr().align_offset(ALIGN).min(ALIGN - 1);
        vec.resize(start, 0);
        Buffer { vec, start, counted, pool: self.clone() }
    }

    fn give_back(&self, vec: Vec<u8>, counted: usize) {
        let mut held = self.lock();
        held.taken_bytes -= counted;
        let bytes = vec.capacity();
        if bytes > 0 && held.taken_bytes + held.idle_bytes + bytes <= held.bytes_max {
            held.idle_bytes += bytes;
            held.idle.push(vec);
        }
    }
}

/// The next of four sizes for each power of two. Without classes every odd size would be allocated
/// anew, and what the pool has no room for is freed on another thread than made it, where
/// allocators keep it: a worker of 256 MiB grew by 160 MiB in one merge phase.
fn size_class(capacity: usize) -> usize {
    let step = (capacity.max(1).next_power_of_two() / 8).max(ALIGN);
    capacity.div_ceil(step) * step
}

/// A growing run of bytes that goes back to its pool when dropped. Some bytes of padding stand
/// before the data, see [`Buffer::vec_mut`].
#[derive(Debug)]
pub struct Buffer {
    vec: Vec<u8>,
    start: usize,
    /// Its bytes as the pool counts them.
    counted: usize,
    pool: BufferPool,
}

impl Buffer {
    /// The vector to append data to. What it held when the buffer was taken is padding and must
    /// stay.
    pub fn vec_mut(&mut self) -> &mut Vec<u8> {
        &mut self.vec
    }

    /// Moves the data from `at` on to the front of `other`, which must be empty.
    pub fn split_tail_into(&mut self, at: usize, other: &mut Buffer) {
        other.vec.extend_from_slice(&self.vec[self.start + at..]);
        self.vec.truncate(self.start + at);
    }
}

impl Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.vec[self.start..]
    }
}

impl From<Buffer> for Bytes {
    /// Shared from here on; the last one gives the memory back to its pool.
    fn from(buffer: Buffer) -> Self {
        Bytes::from_owner(buffer)
    }
}

/// Whether data begins at a multiple of [`ALIGN`].
pub fn is_aligned(data: &[u8]) -> bool {
    data.as_ptr().align_offset(ALIGN) == 0
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.pool.give_back(std::mem::take(&mut self.vec), self.counted);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_reused() {
        let pool = BufferPool::new(1 << 20);
        let mut first = pool.take(10_000);
        assert!(is_aligned(&first) && first.is_empty());
        first.vec_mut().extend_from_slice(b"abc");
        assert_eq!(&*first, b"abc");
        let address = first.as_ptr();
        drop(first);
        let second = pool.take(9_000);
        assert_eq!(second.as_ptr(), address, "the idle buffer serves again");
        assert!(second.is_empty());
    }

    #[test]
    fn all_memory_of_a_pool_is_bounded_idle_or_not() {
        let pool = BufferPool::new(30_000);
        let held = |pool: &BufferPool| {
            let held = pool.lock();
            (held.taken_bytes, held.idle_bytes)
        };
        let taken: Vec<Buffer> = (0..4).map(|_| pool.take(4096)).collect();
        assert_eq!(held(&pool), (4 * 8192, 0), "who takes is not refused");
        drop(taken);
        assert_eq!(held(&pool), (0, 3 * 8192));
        // One of another size takes the place of those that do not fit.
        let large = pool.take(20_000);
        assert_eq!(held(&pool), (24_576, 0));
        let lent = pool.lend(10_000);
        drop(pool.take(4096));
        assert_eq!(held(&pool), (24_576, 8192));
        drop(lent);
        assert_eq!(held(&pool), (24_576, 0), "what was lent is given back");
        drop(large);
        let mut grown = pool.take(4096);
        grown.vec_mut().resize(50_000, 0);
        drop(grown);
        assert_eq!(held(&pool), (0, 0), "what has grown beyond the bound is not kept");
    }

    #[test]
    fn a_tail_moves_on() {
        let pool = BufferPool::new(0);
        let (mut a, mut b) = (pool.take(16), pool.take(16));
        a.vec_mut().extend_from_slice(b"headtail");
        a.split_tail_into(4, &mut b);
        assert_eq!((&*a, &*b), (&b"head"[..], &b"tail"[..]));
    }
}
