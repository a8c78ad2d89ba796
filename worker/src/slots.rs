//! The memory of the attempts that run at once. A slot keeps its sorter from one attempt to the
//! next, because fresh memory is the slowest resource.

use std::sync::{Arc, Mutex, PoisonError};

use muster_kernel::format::RECORD_BYTES_MAX;
use muster_kernel::order::Order;
use muster_kernel::sort::ChunkSorter;
use muster_platform::buffer::{BufferPool, Lent, advise_huge_pages, forget};
use muster_protocol::{Error, Result};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::memory::Budget;

/// All slots of a worker.
pub(crate) struct Slots {
    budget: Budget,
    limits: SorterLimits,
    buffers: BufferPool,
    permits: Arc<Semaphore>,
    idle: Mutex<Vec<Slot>>,
}

/// What sorters keep to beside their budget.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SorterLimits {
    /// The longest record.
    pub(crate) record_bytes_max: u64,
    /// Asked before every large block of memory.
    pub(crate) grant: fn(usize) -> bool,
}

impl Default for SorterLimits {
    fn default() -> Self {
        Self { record_bytes_max: RECORD_BYTES_MAX, grant: |_| true }
    }
}

#[derive(Default)]
struct Slot {
    sorter: Option<(Arc<Order>, ChunkSorter)>,
    /// While it has no sorter: the sorter's memory, as buffers.
    lent: Option<Lent>,
}

impl Slots {
    /// `count` slots of the budget's size, which read and write with these buffers; nothing is
    /// allocated yet.
    pub(crate) fn new(
        budget: Budget,
        count: u32,
        limits: SorterLimits,
        buffers: BufferPool,
    ) -> Self {
        Self {
            budget,
            limits,
            buffers,
            permits: Arc::new(Semaphore::new(count.max(1) as usize)),
            idle: Mutex::new((0..count.max(1)).map(|_| Slot::default()).collect()),
        }
    }

    /// A slot, as soon as one is free. It comes back when the lease is dropped.
    pub(crate) async fn lease(self: &Arc<Self>) -> Result<Lease> {
        let permit = self
            .permits
            .clone()
            .acquire_owned()
            .await
            .map_err(|_| Error::bug("the slots are closed"))?;
        let slot =
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        Ok(Lease { slot, slots: self.clone(), _permit: permit })
    }
}

/// A slot in use.
pub(crate) struct Lease {
    slot: Slot,
    slots: Arc<Slots>,
    _permit: OwnedSemaphorePermit,
}

impl Lease {
    /// An empty sorter for a job whose input objects take so many bytes of memory, its budget
    /// halved so many times: the one of the last attempt, where it sorts by the same order. It
    /// leaves the slot until [`Lease::keep_sorter`].
    pub(crate) fn take_sorter(
        &mut self,
        order: &Arc<Order>,
        lists_bytes: u64,
        halvings: u8,
    ) -> ChunkSorter {
        self.slot.lent = None;
        match self.slot.sorter.take() {
            Some((of, sorter)) if halvings == 0 && Arc::ptr_eq(&of, order) && sorter.is_empty() => {
                sorter
            }
            other => {
                drop(other);
                let budget =
                    Budget::halved(self.slots.budget.sorter_bytes_beside(lists_bytes), halvings);
                let limits = self.slots.limits;
                ChunkSorter::new(order.clone(), budget)
                    .with_memory_advice(advise_huge_pages)
                    .with_memory_release(forget)
                    .with_memory_grant(limits.grant)
                    .with_record_bytes_max(limits.record_bytes_max)
            }
        }
    }

    /// Puts an empty sorter back for the next attempt.
    pub(crate) fn keep_sorter(&mut self, order: &Arc<Order>, sorter: ChunkSorter) {
        self.slot.sorter = Some((order.clone(), sorter));
    }

    /// Memory for an attempt that needs `wanted_bytes`: the I/O share if that is enough, else the
    /// whole slot, at the price of the sorter.
    pub(crate) fn memory_for(&mut self, wanted_bytes: usize) -> usize {
        if wanted_bytes <= self.slots.budget.io_bytes {
            return self.slots.budget.io_bytes;
        }
        self.slot.sorter = None;
        if self.slot.lent.is_none() {
            self.slot.lent = Some(self.slots.buffers.lend(self.slots.budget.sorter_bytes));
        }
        self.slots.budget.slot_bytes
    }

    /// How the process's memory is divided.
    pub(crate) fn budget(&self) -> &Budget {
        &self.slots.budget
    }

    /// The I/O share.
    pub(crate) fn io_bytes(&self) -> usize {
        self.slots.budget.io_bytes
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let slot = std::mem::take(&mut self.slot);
        self.slots.idle.lock().unwrap_or_else(PoisonError::into_inner).push(slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_kernel::format::Format;
    use muster_kernel::spec::SortSpec;

    #[tokio::test]
    async fn a_sorter_serves_the_next_attempt_of_its_job() {
        let slots = Arc::new(Slots::new(
            Budget::of(64 << 20, 1),
            1,
            SorterLimits::default(),
            BufferPool::new(0),
        ));
        let order = Arc::new(Order::new(&SortSpec::new(Format::fixed(4))).expect("order"));
        let mut lease = slots.lease().await.expect("lease");
        let sorter = lease.take_sorter(&order, 1, 0);
        lease.keep_sorter(&order, sorter);
        assert_eq!(lease.memory_for(1), slots.budget.io_bytes);
        assert!(lease.slot.sorter.is_some());
        drop(lease);
        let mut lease = slots.lease().await.expect("lease");
        assert!(lease.slot.sorter.is_some());
        assert_eq!(lease.memory_for(usize::MAX), slots.budget.slot_bytes);
        assert!(lease.slot.sorter.is_none(), "a merge that needs it gets the sorter's memory");
    }
}
