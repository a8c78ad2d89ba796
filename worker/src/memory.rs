//! How a worker's memory is divided (P6).
//!
//! ```text
//! --memory = reserve (runtime, caches, fragmentation) + slots x slot
//! slot     = sorter (the chunk that is sorted) + I/O (windows that are read, parts that are written: an eighth of the memory over all slots)
//! ```
//!
//! Everything here is arithmetic: the same settings give the same sizes. A merge that needs more than the I/O share gives the slot's sorter back and has the whole slot.

use muster_common::buffer::ALIGN;
use muster_common::store::Scheme;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// What the runtime, the connections and the program's own structures take; most of it the heaps of some twenty threads, each rounded up to huge pages (measured).
const RUNTIME_BYTES: usize = 64 * MIB;
/// Share of the memory, as a divisor, that is left to fragmentation and caches.
const SLACK_DIVISOR: usize = 10;
/// Share of the memory, as a divisor, that is I/O buffers, in use or idle.
const BUFFERS_DIVISOR: u64 = 8;
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

/// A worker's memory, divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// For indexes of runs that are kept for the next merge.
    pub cache_bytes: usize,
    /// For one attempt.
    pub slot_bytes: usize,
    /// Of that, for the chunk that is sorted.
    pub sorter_bytes: usize,
    /// Of that, for windows and parts.
    pub io_bytes: usize,
}

impl Budget {
    /// Divides `memory_bytes` among `slots`.
    pub fn of(memory_bytes: u64, slots: u32) -> Self {
        let slots = slots.max(1) as usize;
        let memory = usize::try_from(memory_bytes).unwrap_or(usize::MAX);
        let reserve = (RUNTIME_BYTES + memory / SLACK_DIVISOR).min(memory / 3);
        let buffers = idle_buffer_bytes(memory_bytes);
        let sorter_bytes = (memory.saturating_sub(reserve + buffers) / slots).max(SORTER_BYTES_MIN);
        // Buffers come in size classes; what they are larger than asked for comes off here.
        let io_bytes = (buffers / 8 * 7 / slots).max(IO_BYTES_MIN);
        Self { cache_bytes: reserve / 16, slot_bytes: sorter_bytes + io_bytes, sorter_bytes, io_bytes }
    }

    /// What the chunk may take after memory was refused so many times: half as much each time, down to the least that works.
    pub(crate) fn halved_sorter_bytes(&self, halvings: u8) -> usize {
        let halved = self.sorter_bytes.checked_shr(u32::from(halvings)).unwrap_or(0);
        halved.max(SORTER_BYTES_MIN).min(self.sorter_bytes)
    }
}

/// Bytes that the process's buffer pool may keep idle: what a [`muster_common::buffer::BufferPool`] for this much memory is made with. All slots' I/O shares fit in it, so
/// buffers go from attempt to attempt and are never freed: what one thread frees and another asks for anew, allocators keep twice.
pub fn idle_buffer_bytes(memory_bytes: u64) -> usize {
    usize::try_from(memory_bytes / BUFFERS_DIVISOR).unwrap_or(usize::MAX)
}

/// What suits a kind of store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sizes {
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

fn sizes(scheme: &Scheme) -> Sizes {
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
    pub(crate) fn of(scheme: &Scheme, object_bytes: u64, budget_bytes: usize) -> Self {
        let sizes = sizes(scheme);
        let aim =
            usize::try_from(object_bytes.div_ceil(PARTS_AIM)).unwrap_or(usize::MAX).saturating_add(PART_SLACK_BYTES);
        // With its slack a part fills a buffer of the pool.
        let buffer_bytes = pool_size(aim.max(sizes.part_ideal).min(budget_bytes / 2));
        let part_bytes = buffer_bytes.saturating_sub(PART_SLACK_BYTES).max(sizes.part_min);
        let in_flight = (budget_bytes / (part_bytes + PART_SLACK_BYTES)).saturating_sub(1);
        Self { part_bytes, in_flight: in_flight.clamp(1, PARTS_IN_FLIGHT_MAX) }
    }

    /// The most memory that a sink of this plan holds, giant records apart.
    pub(crate) fn bytes(&self) -> usize {
        (self.in_flight + 1) * (self.part_bytes + PART_SLACK_BYTES)
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
    /// For one input that is read once through, within `budget_bytes`: one window in use, the others on their way.
    pub(crate) fn scan(scheme: &Scheme, budget_bytes: usize) -> Self {
        let sizes = sizes(scheme);
        let window_bytes = pool_size(budget_bytes / 3).clamp(sizes.window_min.min(64 * KIB), sizes.window_ideal);
        let in_flight = (budget_bytes / window_bytes).saturating_sub(1).clamp(1, sizes.in_flight_max);
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
}

impl MergePlan {
    /// For `inputs` whose largest block has `block_bytes`, within `budget_bytes`. Each input has a window in use, one on its way, and a block where windows cut it; one
    /// more pair of windows is alive for a moment while a block is put together.
    pub(crate) fn of(scheme: &Scheme, inputs: usize, block_bytes: usize, budget_bytes: usize) -> Self {
        let sizes = sizes(scheme);
        let inputs = inputs.max(1);
        let spare = budget_bytes.saturating_sub(2 * sizes.window_min);
        let fan_in = (spare / (2 * sizes.window_min + block_bytes)).clamp(2, FAN_IN_MAX);
        let merged = inputs.min(fan_in);
        let each = (budget_bytes / (merged + 1)).saturating_sub(block_bytes);
        let window_bytes = pool_size(each / 2).clamp(sizes.window_min, sizes.window_ideal);
        // Many inputs keep the store busy with one window each.
        let wanted = sizes.in_flight_max.div_ceil(merged);
        let ahead = (each / window_bytes).saturating_sub(1).clamp(1, wanted);
        Self { fan_in, windows: WindowsPlan { window_bytes, ahead_bytes: ahead * window_bytes } }
    }

    /// The memory with which `inputs` are merged in one round by windows of a good size, if not the best.
    pub(crate) fn good_bytes(scheme: &Scheme, inputs: usize, block_bytes: usize) -> usize {
        (inputs + 1).saturating_mul(2 * sizes(scheme).window_good + block_bytes)
    }
}

/// The largest size within `bytes` that fills a buffer of the pool: one of four for each power of two.
fn pool_size(bytes: usize) -> usize {
    let step = ((bytes / 2 + 1).next_power_of_two() / 4).max(ALIGN);
    bytes / step * step
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s3() -> Scheme {
        Scheme::S3 { bucket: "bucket".to_owned() }
    }

    #[test]
    fn the_parts_never_exceed_the_whole() {
        for memory_mib in [64_u64, 256, 512, 4096, 65_536] {
            for slots in [1, 2, 16] {
                let memory = memory_mib << 20;
                let budget = Budget::of(memory, slots);
                let used = budget.slot_bytes as u64 * u64::from(slots) + budget.cache_bytes as u64;
                assert!(used <= memory, "{memory_mib} MiB, {slots} slots: {used}");
                assert!(budget.io_bytes * slots as usize <= idle_buffer_bytes(memory).max(MIB * slots as usize));
                assert_eq!(budget.sorter_bytes + budget.io_bytes, budget.slot_bytes);
            }
        }
    }

    #[test]
    fn a_halved_chunk_has_a_floor() {
        let budget = Budget::of(64 << 20, 1);
        let halved: Vec<usize> = (0..=255).map(|halvings| budget.halved_sorter_bytes(halvings)).collect();
        assert_eq!((halved[0], halved[1]), (budget.sorter_bytes, budget.sorter_bytes / 2));
        assert!(halved[255] == SORTER_BYTES_MIN && halved.is_sorted_by(|a, b| a >= b));
        let tiny = Budget { sorter_bytes: 1000, ..budget };
        assert_eq!(tiny.halved_sorter_bytes(3), 1000);
    }

    #[test]
    fn parts_fit_their_budget_and_the_store() {
        let check = |scheme: &Scheme, object: u64, budget: usize, part_bytes: usize, in_flight: usize| {
            let plan = PartsPlan::of(scheme, object, budget);
            assert_eq!((plan.part_bytes, plan.in_flight), (part_bytes, in_flight), "{scheme:?} {object} {budget}");
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
            assert!(PartsPlan::of(&Scheme::File, 1 << 40, budget).bytes() <= budget, "{budget}");
        }
    }

    #[test]
    fn a_scan_reads_ahead_within_its_budget() {
        for budget in [MIB, 16 * MIB, 40 * MIB, 200 * MIB] {
            for scheme in [Scheme::File, s3()] {
                let plan = WindowsPlan::scan(&scheme, budget);
                assert!(plan.window_bytes + plan.ahead_bytes <= budget, "{scheme:?} {budget}: {plan:?}");
                assert!(plan.window_bytes.is_multiple_of(ALIGN));
            }
        }
    }

    #[test]
    fn a_merge_keeps_to_its_budget_and_goes_in_rounds() {
        let block = 64 * KIB;
        for inputs in [1, 2, 16, 100, 5000] {
            for budget in [4 * MIB, 40 * MIB, 400 * MIB] {
                let plan = MergePlan::of(&Scheme::File, inputs, block, budget);
                let merged = inputs.min(plan.fan_in);
                let used = merged * (plan.windows.window_bytes + plan.windows.ahead_bytes + block)
                    + 2 * plan.windows.window_bytes;
                assert!(used <= budget + 2 * MIB, "{inputs} {budget}: {plan:?} uses {used}");
            }
        }
        assert!(MergePlan::of(&Scheme::File, 100, block, 4 * MIB).fan_in < 100);
        assert_eq!(MergePlan::of(&Scheme::File, 16, block, 400 * MIB).windows.window_bytes, MIB);
        assert_eq!(MergePlan::of(&s3(), 100, block, MIB).fan_in, 2);
    }

    #[test]
    fn sizes_fill_buffers_of_the_pool() {
        for (bytes, expected) in
            [(4096, 4096), (5000, 4096), (MIB, MIB), (MIB + 1, MIB), (1_400_000, MIB + 256 * KIB), (7 * MIB, 7 * MIB)]
        {
            assert_eq!(pool_size(bytes), expected, "{bytes}");
        }
    }
}
