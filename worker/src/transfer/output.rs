//! Writes an object as a multipart upload, part by part, while the next part fills.

use std::collections::VecDeque;

use muster_common::buffer::{ALIGN, Buffer};
use muster_common::store::PartAt;
use muster_common::{Error, Result};
use muster_kernel::run::Sink;
use tokio_util::task::AbortOnDropHandle;

use super::{Link, Object, joined};
use crate::memory::{PART_SLACK_BYTES, PartsPlan};

/// Most parts of one object (S3's own limit).
const PARTS_MAX: u32 = 10_000;

/// What a finished upload has: everything that completing it takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Uploaded {
    /// The store's tags of the parts, in order.
    pub(crate) tags: Vec<String>,
    /// Bytes of all parts.
    pub(crate) bytes: u64,
}

/// The kernel's sink over an open upload. Parts are multiples of [`ALIGN`], the last one apart; what is beyond stays for the next.
pub(crate) struct PartSink {
    link: Link,
    object: Object,
    upload: String,
    plan: PartsPlan,
    buffer: Buffer,
    next: PartAt,
    in_flight: VecDeque<AbortOnDropHandle<Result<String>>>,
    tags: Vec<String>,
}

impl PartSink {
    /// A sink that writes to `upload` of `object`.
    pub(crate) fn new(link: &Link, object: Object, upload: String, plan: PartsPlan) -> Self {
        Self {
            buffer: link.buffers.take(plan.part_bytes + PART_SLACK_BYTES),
            link: link.clone(),
            object,
            upload,
            plan,
            next: PartAt { index: 0, offset: 0 },
            in_flight: VecDeque::new(),
            tags: Vec::new(),
        }
    }

    /// Ships what is left and waits for all parts. An empty object has one empty part.
    pub(crate) fn finish(mut self) -> Result<Uploaded> {
        if !self.buffer.is_empty() || self.next.index == 0 {
            let last = std::mem::replace(&mut self.buffer, self.link.buffers.take(0));
            self.ship(last)?;
        }
        while !self.in_flight.is_empty() {
            self.settle_one()?;
        }
        Ok(Uploaded { tags: self.tags, bytes: self.next.offset })
    }

    fn ship(&mut self, part: Buffer) -> Result<()> {
        if self.next.index >= PARTS_MAX {
            let why = format!(
                "{} would have more than {PARTS_MAX} parts of {} bytes; more --memory helps",
                self.object, self.plan.part_bytes
            );
            return Err(Error::exhausted(why));
        }
        let at = self.next;
        self.next = PartAt { index: at.index + 1, offset: at.offset + part.len() as u64 };
        let (object, upload) = (self.object.clone(), self.upload.clone());
        // The buffer is given away, so a part is tried once here; the S3 client has retries of its own, and a disk that fails once is not asked again.
        let task = self.link.handle.spawn(async move {
            object.store.upload_part(object.key(), &upload, at, part).await.map_err(|e| e.at(&object))
        });
        self.in_flight.push_back(AbortOnDropHandle::new(task));
        Ok(())
    }

    fn settle_one(&mut self) -> Result<()> {
        if let Some(task) = self.in_flight.pop_front() {
            let tag = self.link.wait(async { joined(task.await) })?;
            self.tags.push(tag);
        }
        Ok(())
    }

    #[cold]
    fn ship_full_part(&mut self) -> Result<()> {
        // Before another buffer is taken: no more than `in_flight` travel while this one waits.
        while self.in_flight.len() >= self.plan.in_flight {
            self.settle_one()?;
        }
        let cut = self.buffer.len() / ALIGN * ALIGN;
        let mut next = self.link.buffers.take(self.plan.part_bytes + PART_SLACK_BYTES);
        self.buffer.split_tail_into(cut, &mut next);
        let part = std::mem::replace(&mut self.buffer, next);
        self.ship(part)
    }
}

impl Sink for PartSink {
    type Error = Error;

    fn buffer(&mut self) -> &mut Vec<u8> {
        self.buffer.vec_mut()
    }

    fn flushed(&mut self) -> Result<()> {
        self.link.check()?;
        if self.buffer.len() >= self.plan.part_bytes { self.ship_full_part() } else { Ok(()) }
    }
}
