//! Writes an object as a multipart upload, part by part, while the next part fills; into two stores
//! at once where every run lies twice.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use muster_kernel::run::Sink;
use muster_platform::buffer::{ALIGN, Buffer};
use muster_platform::store::PartAt;
use muster_protocol::{Error, Result};

use super::{Begun, Link, Object};
use crate::memory::{PART_SLACK_BYTES, PartsPlan};

/// Most parts of one object (S3's own limit).
const PARTS_MAX: u32 = 10_000;

/// An open upload.
#[derive(Clone)]
pub(crate) struct Upload {
    pub(crate) object: Object,
    /// The store's id of it.
    pub(crate) id: String,
}

/// What a finished upload has: everything that completing it takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Uploaded {
    /// The store's tags of the parts, in order.
    pub(crate) tags: Vec<String>,
    /// Bytes of all parts.
    pub(crate) bytes: u64,
}

/// The kernel's sink over an open upload. Parts are multiples of [`ALIGN`], the last one apart;
/// what is beyond stays for the next.
pub(crate) struct PartSink {
    link: Link,
    uploads: Vec<Upload>,
    plan: PartsPlan,
    buffer: Buffer,
    next: PartAt,
    /// Of each part its length and its writes, one for each upload.
    in_flight: VecDeque<(u64, Vec<Begun<String>>)>,
    /// By upload.
    tags: Vec<Vec<String>>,
    /// Whom it tells how many bytes stand.
    progress: Option<Arc<AtomicU64>>,
}

impl PartSink {
    /// A sink that writes the same bytes to all of `uploads`.
    pub(crate) fn new(link: &Link, uploads: Vec<Upload>, plan: PartsPlan) -> Result<Self> {
        Ok(Self {
            buffer: link.buffers.try_take(plan.part_bytes + PART_SLACK_BYTES)?,
            link: link.clone(),
            tags: vec![Vec::new(); uploads.len()],
            uploads,
            plan,
            next: PartAt { index: 0, offset: 0 },
            in_flight: VecDeque::new(),
            progress: None,
        })
    }

    /// Adds the bytes that stand to `progress`, where somebody wants to know.
    #[must_use]
    pub(crate) fn counting(mut self, progress: Option<&Arc<AtomicU64>>) -> Self {
        self.progress = progress.cloned();
        self
    }

    /// Ships what is left and waits for all parts; what each upload has. An empty object has one
    /// empty part.
    pub(crate) fn finish(mut self) -> Result<Vec<Uploaded>> {
        if !self.buffer.is_empty() || self.next.index == 0 {
            let last = std::mem::replace(&mut self.buffer, self.link.buffers.take(0));
            self.ship(last)?;
        }
        while !self.in_flight.is_empty() {
            self.settle_one()?;
        }
        let bytes = self.next.offset;
        Ok(self.tags.into_iter().map(|tags| Uploaded { tags, bytes }).collect())
    }

    fn ship(&mut self, part: Buffer) -> Result<()> {
        if self.next.index >= PARTS_MAX {
            let why = format!(
                "{} would have more than {PARTS_MAX} parts of {} bytes; more --memory helps",
                self.uploads.first().map(|upload| upload.object.to_string()).unwrap_or_default(),
                self.plan.part_bytes
            );
            return Err(Error::exhausted(why));
        }
        let at = self.next;
        self.next = PartAt { index: at.index + 1, offset: at.offset + part.len() as u64 };
        let (bytes, part) = (part.len() as u64, Bytes::from(part));
        let write = |upload: &Upload| {
            let (Upload { object, id }, part, retry) =
                (upload.clone(), part.clone(), self.link.retry.clone());
            self.link.begin(async move {
                retry
                    .call(&object, || object.store.upload_part(object.key(), &id, at, part.clone()))
                    .await
            })
        };
        self.in_flight.push_back((bytes, self.uploads.iter().map(write).collect()));
        Ok(())
    }

    fn settle_one(&mut self) -> Result<()> {
        let Some((bytes, writes)) = self.in_flight.pop_front() else { return Ok(()) };
        for (tags, task) in self.tags.iter_mut().zip(writes) {
            tags.push(self.link.wait(task.ended())?);
        }
        if let Some(progress) = &self.progress {
            progress.fetch_add(bytes, Ordering::Relaxed);
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
        let mut next = self.link.buffers.try_take(self.plan.part_bytes + PART_SLACK_BYTES)?;
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
