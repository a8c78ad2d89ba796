//! How a process's memory is divided (P6).
//!
//! ```text
//! --memory = runtime (program, threads, connections)
//!          + slack (caches, fragmentation)
//!          + buffers (windows that are read, parts that are written)
//!          + slots x sorter
//! slot     = sorter (the chunk that is sorted) + its share of the buffers
//! ```
//!
//! Everything here is arithmetic: the same settings give the same sizes. A merge that needs more
//! than its share of the buffers gives the slot's sorter back and has the whole slot. What is
//! counted is what is held: large blocks are mapped by themselves (the program's allocator), and
//! buffers come from one pool with one bound.

use muster_kernel::sort::LONG_RECORD_BYTES;
use muster_platform::buffer::ALIGN;
use muster_platform::store::Scheme;
use muster_protocol::plan::OBJECT_BYTES;
use muster_protocol::{Error, ErrorKind};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// What the runtime, the connections and the program's own structures take (measured: 17 to 25
/// MiB), and what is held for the moment in which the last merge of one sort gives way to the chunk
/// of the next (measured with two slots: 10 MiB, for blocks of both share huge pages)...
const RUNTIME_BYTES: usize = 34 * MIB;
/// ...and what each task at once adds, with the threads that read and write for it.
const RUNTIME_SLOT_BYTES: usize = 3 * MIB;
/// Share of the memory, as a divisor, that is left to fragmentation and caches.
const SLACK_DIVISOR: usize = 16;
/// Share of the memory, as a divisor, that is I/O buffers, in use or idle.
const BUFFERS_DIVISOR: usize = 8;
/// Least memory of one slot: a small chunk, and the smallest windows and parts of a merge of two.
const SORTER_BYTES_MIN: usize = MIB;
const IO_BYTES_MIN: usize = MIB;
/// Room beyond a part's size: a block with its header, before the sink ships.
pub(crate) const PART_SLACK_BYTES: usize = 128 * KIB;
/// An object is cut into at most so many parts while memory allows: reports carry a tag for each.
const PARTS_AIM: u64 = 256;
/// Smallest part that S3 takes, the last one apart.
const S3_PART_BYTES_MIN: usize = 5 * MIB;
/// Parts that travel at once, at most.
const PARTS_IN_FLIGHT_MAX: usize = 2;
/// Inputs of one merge, at most: beyond that the tree's own work outweighs a round.
pub(crate) const FAN_IN_MAX: usize = 4096;

/// A process's memory, divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Of the process, as it was given (`--memory`).
    pub memory_bytes: u64,
    /// Of that, what goes to others than its workers.
    pub beside_bytes: u64,
    /// Tasks of the process at once.
    pub slots: u32,
    /// For what is kept for the next attempt: plans, lists and indexes of runs.
    pub cache_bytes: usize,
    /// For all buffers, in use or idle: what the process's [`muster_platform::buffer::BufferPool`]
    /// is
    /// made with.
    pub buffer_bytes: usize,
    /// For one attempt.
    pub slot_bytes: usize,
    /// Of that, for the chunk that is sorted.
    pub sorter_bytes: usize,
    /// Of that, for windows and parts.
    pub io_bytes: usize,
    /// By so many powers of two windows and parts are smaller than what suits a store: none, but
    /// where little data is to have many of them.
    pub shrunk: u32,
}

impl Budget {
    /// Divides the memory of a process among its `slots`.
    pub fn of(memory_bytes: u64, slots: u32) -> Self {
        Self::beside(0, memory_bytes, slots)
    }

    /// The same where `beside_bytes` of the memory go to others.
    pub fn beside(beside_bytes: u64, memory_bytes: u64, slots: u32) -> Self {
        let slots = slots.max(1);
        let count = slots as usize;
        let memory =
            usize::try_from(memory_bytes.saturating_sub(beside_bytes)).unwrap_or(usize::MAX);
        let runtime =
            RUNTIME_BYTES.saturating_add(RUNTIME_SLOT_BYTES.saturating_mul(count)).min(memory / 2);
        let slack = memory / SLACK_DIVISOR;
        let buffers = memory / BUFFERS_DIVISOR;
        let sorter_bytes =
            (memory.saturating_sub(runtime + slack + buffers) / count).max(SORTER_BYTES_MIN);
        // Buffers come in size classes; what they are larger than asked for comes off here.
        let io_bytes = (buffers / 8 * 7 / count).max(IO_BYTES_MIN);
        Self {
            memory_bytes,
            beside_bytes,
            slots,
            cache_bytes: slack / 4,
            buffer_bytes: buffers.max(IO_BYTES_MIN * count),
            slot_bytes: sorter_bytes + io_bytes,
            sorter_bytes,
            io_bytes,
            shrunk: 0,
        }
    }

    /// The sizes of windows and parts of a store.
    pub(crate) fn sizes(&self, scheme: &Scheme) -> Sizes {
        let of = Sizes::from(scheme);
        let shrink = |bytes: usize| (bytes >> self.shrunk).max(ALIGN);
        Sizes {
            window_ideal: shrink(of.window_ideal),
            window_good: shrink(of.window_good),
            window_min: shrink(of.window_min),
            part_ideal: shrink(of.part_ideal),
            part_min: shrink(of.part_min),
            in_flight_max: of.in_flight_max,
        }
    }

    /// What the chunk may take after memory was refused so many times: half as much each time, down
    /// to the least that works.
    pub(crate) fn halved(sorter_bytes: usize, halvings: u8) -> usize {
        let halved = sorter_bytes.checked_shr(u32::from(halvings)).unwrap_or(0);
        halved.max(SORTER_BYTES_MIN).min(sorter_bytes)
    }

    /// Memory for the names and places of input objects beside what is sorted: half of the
    /// sorters'.
    pub fn lists_bytes_max(&self) -> u64 {
        (self.sorter_bytes as u64).saturating_mul(u64::from(self.slots)) / 2
    }

    /// Input objects that have room in it, at most.
    pub fn objects_max(&self) -> u64 {
        self.lists_bytes_max() / OBJECT_BYTES
    }

    /// The chunk of one task beside names and places of input objects that take so many bytes,
    /// beyond what is kept for them anyway.
    pub(crate) fn sorter_bytes_beside(&self, lists_bytes: u64) -> usize {
        let lists = lists_bytes.saturating_sub(self.cache_bytes as u64);
        let each = usize::try_from(lists / u64::from(self.slots)).unwrap_or(usize::MAX);
        self.sorter_bytes.saturating_sub(each).max(self.sorter_bytes / 2)
    }

    /// The least memory of a process like this one, but with so many slots, of which `fits` says
    /// that it does; to a MiB, and none where no process has as much.
    fn least_memory(&self, slots: u32, fits: &impl Fn(&Self) -> bool) -> Option<u64> {
        let of = |mib: u64| Self::beside(self.beside_bytes, mib << 20, slots);
        let enough = (0..=24).map(|power| 64_u64 << power).find(|mib| fits(&of(*mib)))?;
        let (mut low, mut high) = (0, enough);
        while low + 1 < high {
            let middle = low + (high - low) / 2;
            if fits(&of(middle)) { high = middle } else { low = middle }
        }
        Some(high << 20)
    }

    /// That `what` takes `needed` bytes, and with how much memory it can be done: with as much that
    /// `fits`.
    pub(crate) fn needs_memory(
        &self,
        what: &str,
        needed: usize,
        fits: impl Fn(&Self) -> bool,
    ) -> Error {
        let (given, threads) = (self.memory_bytes >> 20, self.slots);
        let Some(least) = self.least_memory(threads, &fits) else {
            return Error::invalid(format!(
                "{what} takes {needed} bytes of memory, which no process can have"
            ));
        };
        let alone = self.least_memory(1, &fits).filter(|_| threads > 1);
        let alone = alone
            .map(|bytes| format!(", or --threads 1 with --memory {}MiB", bytes >> 20))
            .unwrap_or_default();
        let message = format!(
            "{what} takes {needed} bytes of memory, more than a task has with --memory {given}MiB \
                and --threads {threads}: give --memory {}MiB{alone}",
            least >> 20
        );
        Error::new(ErrorKind::NeedsMemory { task_bytes: least / u64::from(threads) }, message)
    }
}

/// What suits a kind of store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sizes {
    /// A range that is large enough to be worth no more.
    window_ideal: usize,
    /// A range that is nearly as good; a merge that cannot have it takes the sorter's memory, too.
    window_good: usize,
    /// A range below which requests cost more than a round of merging.
    window_min: usize,
    part_ideal: usize,
    part_min: usize,
    /// Ranges of one input that are asked for at once, at most.
    in_flight_max: usize,
}

impl From<&Scheme> for Sizes {
    fn from(scheme: &Scheme) -> Self {
        match scheme {
            Scheme::S3 { .. } => Sizes {
                window_ideal: 8 * MIB,
                window_good: 4 * MIB,
                window_min: MIB,
                part_ideal: 8 * MIB,
                part_min: S3_PART_BYTES_MIN,
                in_flight_max: 8,
            },
            Scheme::File | Scheme::Memory | Scheme::Worker { .. } => Sizes {
                window_ideal: MIB,
                window_good: 256 * KIB,
                window_min: 64 * KIB,
                part_ideal: 4 * MIB,
                part_min: 64 * KIB,
                in_flight_max: 4,
            },
        }
    }
}

/// How an object is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PartsPlan {
    /// Bytes at which a part is shipped.
    pub(crate) part_bytes: usize,
    /// Parts that travel while the next one fills.
    pub(crate) in_flight: usize,
}

impl PartsPlan {
    /// For an object of about `object_bytes`, within `budget_bytes`.
    pub(crate) fn of(store: impl Into<Sizes>, object_bytes: u64, budget_bytes: usize) -> Self {
        let sizes = store.into();
        let aim = usize::try_from(object_bytes.div_ceil(PARTS_AIM))
            .unwrap_or(usize::MAX)
            .saturating_add(PART_SLACK_BYTES);
        // With its slack a part fills a buffer of the pool.
        let buffer_bytes = pool_size(aim.max(sizes.part_ideal).min(budget_bytes / 2));
        let part_bytes = buffer_bytes.saturating_sub(PART_SLACK_BYTES).max(sizes.part_min);
        let in_flight = (budget_bytes / (part_bytes + PART_SLACK_BYTES)).saturating_sub(1);
        Self { part_bytes, in_flight: in_flight.clamp(1, PARTS_IN_FLIGHT_MAX) }
    }

    /// The same for an object whose largest block has so many bytes: a part grows with a long
    /// record.
    #[must_use]
    pub(crate) fn with_blocks_of(self, block_bytes: usize) -> Self {
        if block_bytes <= LONG_RECORD_BYTES { self } else { Self { in_flight: 1, ..self } }
    }

    /// The most memory that a sink of this plan holds for an object whose largest block has so many
    /// bytes.
    pub(crate) fn bytes(&self, block_bytes: usize) -> usize {
        let grown = if block_bytes <= LONG_RECORD_BYTES { 0 } else { block_bytes };
        (self.in_flight + 1).saturating_mul(self.part_bytes + PART_SLACK_BYTES + grown)
    }
}

/// How a stream of ranges is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WindowsPlan {
    /// Bytes of one range.
    pub(crate) window_bytes: usize,
    /// Bytes that are asked for ahead of the range in use.
    pub(crate) ahead_bytes: usize,
}

impl WindowsPlan {
    /// For one input that is read once through, within `budget_bytes`: one window in use, the
    /// others on their way.
    pub(crate) fn scan(store: impl Into<Sizes>, budget_bytes: usize) -> Self {
        let sizes = store.into();
        let window_bytes =
            pool_size(budget_bytes / 3).clamp(sizes.window_min.min(64 * KIB), sizes.window_ideal);
        let in_flight =
            (budget_bytes / window_bytes).saturating_sub(1).clamp(1, sizes.in_flight_max);
        Self { window_bytes, ahead_bytes: in_flight * window_bytes }
    }
}

/// How a merge uses its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MergePlan {
    /// Inputs of one round, at most.
    pub(crate) fan_in: usize,
    /// How each of them is read when `fan_in` are merged.
    pub(crate) windows: WindowsPlan,
    /// What a merge of two takes at least; more than the budget where blocks are too large for it.
    pub(crate) least_bytes: usize,
}

impl MergePlan {
    /// For inputs whose largest blocks have so many bytes, within `budget_bytes`. Each input has a
    /// window in use, one on its way, and a block where windows cut it; one more pair of windows is
    /// alive for a moment while a block is put together.
    pub(crate) fn of(store: impl Into<Sizes>, blocks: &[usize], budget_bytes: usize) -> Self {
        let sizes = store.into();
        let mut held: Vec<usize> = blocks.iter().map(|bytes| held_of_block(*bytes)).collect();
        held.sort_unstable_by(|a, b| b.cmp(a));
        // Those with the largest blocks may be merged together.
        let taken = held.iter().scan(2 * sizes.window_min, |sum, bytes| {
            *sum = sum.saturating_add(2 * sizes.window_min + bytes);
            Some(*sum)
        });
        let fan_in = taken.clone().take_while(|sum| *sum <= budget_bytes).count();
        // Where all fit, more like the smallest might, too.
        let fan_in = if fan_in == held.len() { FAN_IN_MAX } else { fan_in.clamp(2, FAN_IN_MAX) };
        let least_bytes = taken.take(2).last().unwrap_or(0);
        let merged = held.len().clamp(1, fan_in);
        let blocks_bytes =
            held.iter().take(merged).fold(0_usize, |sum, bytes| sum.saturating_add(*bytes));
        let each = budget_bytes.saturating_sub(blocks_bytes) / (merged + 1);
        let window_bytes = pool_size(each / 2).clamp(sizes.window_min, sizes.window_ideal);
        // Many inputs keep the store busy with one window each.
        let wanted = sizes.in_flight_max.div_ceil(merged);
        let ahead = (each / window_bytes).saturating_sub(1).clamp(1, wanted);
        Self {
            fan_in,
            windows: WindowsPlan { window_bytes, ahead_bytes: ahead * window_bytes },
            least_bytes,
        }
    }

    /// The memory with which `inputs` are merged in one round by windows of a good size, if not the
    /// best.
    pub(crate) fn good_bytes(store: impl Into<Sizes>, blocks: &[usize]) -> usize {
        let window = 2 * store.into().window_good;
        blocks.iter().fold(window, |sum, bytes| sum.saturating_add(window + held_of_block(*bytes)))
    }
}

/// What an input holds beside its windows: a block; one that is a single long record also as the
/// record before the current one.
fn held_of_block(bytes: usize) -> usize {
    if bytes > LONG_RECORD_BYTES { bytes.saturating_mul(2) } else { bytes }
}

/// The largest size within `bytes` that fills a buffer of the pool: one of four for each power of
/// two.
fn pool_size(bytes: usize) -> usize {
    let step = ((bytes / 2 + 1).next_power_of_two() / 4).max(ALIGN);
    bytes / step * step
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shrunk_windows_and_parts_are_whole_pages() {
        let of = |shrunk| Budget { shrunk, ..Budget::of(1 << 30, 2) }.sizes(&s3());
        assert_eq!(of(0), Sizes::from(&s3()));
        assert_eq!((of(3).window_ideal, of(3).part_min), (MIB, S3_PART_BYTES_MIN / 8));
        let least = of(30);
        assert_eq!((least.window_ideal, least.window_min, least.part_min), (ALIGN, ALIGN, ALIGN));
    }

    fn s3() -> Scheme {
        Scheme::S3 { bucket: "bucket".to_owned() }
    }

    #[test]
    fn the_parts_never_exceed_the_whole() {
        for memory_mib in [64_u64, 256, 512, 4096, 65_536] {
            for slots in [1, 2, 16] {
                let memory = memory_mib << 20;
                let budget = Budget::of(memory, slots);
                let used = budget.sorter_bytes as u64 * u64::from(slots)
                    + (budget.buffer_bytes + budget.cache_bytes) as u64;
                // The runtime and fragmentation have something left.
                assert!(used <= memory / 64 * 61, "{memory_mib} MiB, {slots} slots: {used}");
                assert!(budget.io_bytes * slots as usize <= budget.buffer_bytes);
                assert_eq!(budget.sorter_bytes + budget.io_bytes, budget.slot_bytes);
            }
        }
    }

    #[test]
    fn what_a_process_needs_is_found_to_a_mib() {
        for slots in [1, 2, 16] {
            for wanted in [10 * MIB, 60 * MIB, 3000 * MIB] {
                let fits = |budget: &Budget| budget.sorter_bytes >= wanted;
                let own = Budget::beside(32 << 20, 128 << 20, slots);
                let of = |bytes| Budget::beside(own.beside_bytes, bytes, slots);
                let least = own.least_memory(slots, &fits).expect("some process has it");
                assert!(fits(&of(least)), "{slots} {wanted}: {least}");
                assert!(!fits(&of(least - (1 << 20))), "{slots} {wanted}: {least}");
                let error = own.needs_memory("a record", wanted, fits);
                assert_eq!(
                    error.kind,
                    ErrorKind::NeedsMemory { task_bytes: least / u64::from(slots) }
                );
                let named = [
                    format!("give --memory {}MiB", least >> 20),
                    format!("{wanted} bytes"),
                    "128MiB".to_owned(),
                ];
                assert!(named.iter().all(|part| error.message.contains(part)), "{error}");
                assert_eq!(
                    error.message.contains("--threads 1 with --memory"),
                    slots > 1,
                    "{error}"
                );
            }
        }
        let error = Budget::of(128 << 20, 1).needs_memory("a record", 7, |_| false);
        assert_eq!(error.kind, ErrorKind::Invalid);
    }

    #[test]
    fn the_names_of_many_objects_are_counted() {
        let budget = Budget::beside(32 << 20, 256 << 20, 2);
        let most = budget.objects_max();
        assert!((50_000..500_000).contains(&most), "{most}");
        assert_eq!(
            budget.sorter_bytes_beside(1000 * OBJECT_BYTES),
            budget.sorter_bytes,
            "few are kept in the caches"
        );
        let lists = most * OBJECT_BYTES;
        let beside = budget.sorter_bytes_beside(lists);
        assert!(beside < budget.sorter_bytes && beside >= budget.sorter_bytes / 2, "{beside}");
        assert!(
            2 * beside as u64 + lists
                <= 2 * budget.sorter_bytes as u64 + budget.cache_bytes as u64 + 1
        );
        assert_eq!(budget.sorter_bytes_beside(u64::MAX), budget.sorter_bytes / 2);
    }

    #[test]
    fn a_halved_chunk_has_a_floor() {
        let whole = 20 * MIB;
        let halved: Vec<usize> =
            (0..=255).map(|halvings| Budget::halved(whole, halvings)).collect();
        assert_eq!((halved[0], halved[1]), (whole, whole / 2));
        assert!(halved[255] == SORTER_BYTES_MIN && halved.is_sorted_by(|a, b| a >= b));
        assert_eq!(Budget::halved(1000, 3), 1000);
    }

    #[test]
    fn parts_fit_their_budget_and_the_store() {
        let check =
            |scheme: &Scheme, object: u64, budget: usize, part_bytes: usize, in_flight: usize| {
                let plan = PartsPlan::of(scheme, object, budget);
                assert_eq!(
                    (plan.part_bytes, plan.in_flight),
                    (part_bytes, in_flight),
                    "{scheme:?} {object} {budget}"
                );
            };
        let slack = PART_SLACK_BYTES;
        check(&Scheme::File, 1 << 20, 64 * MIB, 4 * MIB - slack, 2);
        check(&Scheme::File, 4 << 30, 64 * MIB, 16 * MIB - slack, 2);
        check(&Scheme::File, 1 << 30, MIB, 384 * KIB, 1);
        check(&s3(), 1 << 30, 64 * MIB, 8 * MIB - slack, 2);
        check(&s3(), 16 << 30, 64 * MIB, 32 * MIB - slack, 1);
        // Below what S3 takes the budget gives way, and nothing else does.
        check(&s3(), 1 << 30, MIB, 5 * MIB, 1);
        for budget in [2 * MIB, 20 * MIB, 100 * MIB] {
            assert!(
                PartsPlan::of(&Scheme::File, 1 << 40, budget).bytes(64 << 10) <= budget,
                "{budget}"
            );
        }
    }

    #[test]
    fn a_scan_reads_ahead_within_its_budget() {
        for budget in [MIB, 16 * MIB, 40 * MIB, 200 * MIB] {
            for scheme in [Scheme::File, s3()] {
                let plan = WindowsPlan::scan(&scheme, budget);
                assert!(
                    plan.window_bytes + plan.ahead_bytes <= budget,
                    "{scheme:?} {budget}: {plan:?}"
                );
                assert!(plan.window_bytes.is_multiple_of(ALIGN));
            }
        }
    }

    #[test]
    fn a_merge_keeps_to_its_budget_and_goes_in_rounds() {
        let block = 64 * KIB;
        for inputs in [1, 2, 16, 100, 5000] {
            for budget in [4 * MIB, 40 * MIB, 400 * MIB] {
                let plan = MergePlan::of(&Scheme::File, &vec![block; inputs], budget);
                let merged = inputs.min(plan.fan_in);
                let used = merged * (plan.windows.window_bytes + plan.windows.ahead_bytes + block)
                    + 2 * plan.windows.window_bytes;
                assert!(
                    used <= budget && plan.least_bytes <= budget,
                    "{inputs} {budget}: {plan:?} uses {used}"
                );
            }
        }
        assert!(MergePlan::of(&Scheme::File, &[block; 100], 4 * MIB).fan_in < 100);
        assert_eq!(MergePlan::of(&Scheme::File, &[block; 16], 400 * MIB).windows.window_bytes, MIB);
        assert_eq!(MergePlan::of(&s3(), &[block; 100], MIB).fan_in, 2);
        // One long record costs what it takes, and not as much for every input; it is held twice.
        let mut blocks = vec![block; 16];
        blocks[7] = 20 * MIB;
        let plan = MergePlan::of(&Scheme::File, &blocks, 60 * MIB);
        assert!(plan.fan_in >= 16 && plan.windows.window_bytes >= 256 * KIB, "{plan:?}");
        assert!((40 * MIB..41 * MIB).contains(&plan.least_bytes), "{plan:?}");
        assert!(MergePlan::of(&Scheme::File, &[20 * MIB; 3], 60 * MIB).least_bytes > 60 * MIB);
        assert_eq!(MergePlan::of(&Scheme::File, &[20 * MIB; 5], 130 * MIB).fan_in, 3);
        assert_eq!(MergePlan::of(&Scheme::File, &[], 4 * MIB).least_bytes, 0);
        let parts = PartsPlan::of(&Scheme::File, 1 << 30, 16 * MIB).with_blocks_of(20 * MIB);
        assert!(
            parts.bytes(20 * MIB) > 40 * MIB
                && parts.bytes(block) < 16 * MIB
                && parts.in_flight == 1,
            "{parts:?}"
        );
    }

    #[test]
    fn sizes_fill_buffers_of_the_pool() {
        for (bytes, expected) in [
            (4096, 4096),
            (5000, 4096),
            (MIB, MIB),
            (MIB + 1, MIB),
            (1_400_000, MIB + 256 * KIB),
            (7 * MIB, 7 * MIB),
        ] {
            assert_eq!(pool_size(bytes), expected, "{bytes}");
        }
    }
}
