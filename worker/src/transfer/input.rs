//! Reads ranges ahead of the thread that uses them, and hands them over in order.

use std::collections::VecDeque;
use std::iter::Peekable;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use muster_kernel::merge::Windows;
use muster_platform::buffer::ALIGN;
use muster_platform::clock;
use muster_platform::retry::Retry;
use muster_platform::store::Access;
use muster_protocol::{Error, Result};

use super::{Begun, Link, Object};
use crate::memory::WindowsPlan;

/// Ranges in flight at most, however small they are.
const IN_FLIGHT_MAX: usize = 16;

/// A range of an object that is to be read in one call.
#[derive(Clone)]
pub(crate) struct Span {
    pub(crate) object: Object,
    pub(crate) range: Range<u64>,
    pub(crate) access: Access,
}

/// Cuts a range into windows. All cuts lie at multiples of [`ALIGN`] in the object, as direct I/O
/// asks for.
pub(crate) fn windows(span: Span, window_bytes: usize) -> impl Iterator<Item = Span> + Send {
    let step = (window_bytes.max(ALIGN) / ALIGN * ALIGN) as u64;
    let Span { object, range, access } = span;
    let mut next = range.start;
    std::iter::from_fn(move || {
        if next >= range.end {
            return None;
        }
        let begin = next;
        next = (begin / ALIGN as u64 * ALIGN as u64 + step).min(range.end);
        Some(Span { object: object.clone(), range: begin..next, access })
    })
}

/// Spans, read in order, a bounded number of bytes ahead. Reading begins when it is made. Use it
/// from a thread that computes; dropping it ends what is in flight.
pub(crate) struct Prefetch {
    link: Link,
    spans: Peekable<Box<dyn Iterator<Item = Span> + Send>>,
    ahead_bytes: u64,
    in_flight: VecDeque<Reading>,
    in_flight_bytes: u64,
    progress: Option<Arc<AtomicU64>>,
}

struct Reading {
    bytes: u64,
    task: Begun<Bytes>,
}

impl Prefetch {
    /// Reads `spans` with `ahead_bytes` in flight: at least one span, at most [`IN_FLIGHT_MAX`].
    pub(crate) fn new(
        link: &Link,
        spans: impl Iterator<Item = Span> + Send + 'static,
        ahead_bytes: usize,
    ) -> Self {
        let spans: Box<dyn Iterator<Item = Span> + Send> = Box::new(spans);
        let mut prefetch = Self {
            link: link.clone(),
            spans: spans.peekable(),
            ahead_bytes: ahead_bytes as u64,
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            progress: None,
        };
        prefetch.fill();
        prefetch
    }

    /// Reads one range in windows.
    pub(crate) fn of(link: &Link, span: Span, plan: WindowsPlan) -> Self {
        Self::new(link, windows(span, plan.window_bytes), plan.ahead_bytes)
    }

    /// Adds the bytes that are handed over to `progress`, where somebody wants to know.
    #[must_use]
    pub(crate) fn counting(mut self, progress: Option<Arc<AtomicU64>>) -> Self {
        self.progress = progress;
        self
    }

    /// The bytes of the next span, or `None` after the last.
    pub(crate) fn next_span(&mut self) -> Result<Option<Bytes>> {
        self.link.check()?;
        self.fill();
        let Some(reading) = self.in_flight.pop_front() else { return Ok(None) };
        self.in_flight_bytes -= reading.bytes;
        let bytes = self.link.wait(reading.task.ended())?;
        self.fill();
        if bytes.len() as u64 != reading.bytes {
            return Err(Error::corrupt(format!(
                "a read of {} bytes gave {}",
                reading.bytes,
                bytes.len()
            )));
        }
        if let Some(progress) = &self.progress {
            progress.fetch_add(reading.bytes, Ordering::Relaxed);
        }
        Ok(Some(bytes))
    }

    fn fill(&mut self) {
        while let Some(span) = self.spans.peek() {
            let bytes = span.range.end - span.range.start;
            let affordable = self.in_flight_bytes + bytes <= self.ahead_bytes
                && self.in_flight.len() < IN_FLIGHT_MAX;
            if !affordable && !self.in_flight.is_empty() {
                return;
            }
            let Some(span) = self.spans.next() else { return };
            let (retry, disk) = (self.link.retry.clone(), self.link.disk.clone());
            let task = self.link.begin(async move {
                let on_disk = span.object.url.scheme().is_on_disk();
                let _turn = if on_disk { disk.acquire().await.ok() } else { None };
                read(&retry, &span).await
            });
            self.in_flight.push_back(Reading { bytes, task });
            self.in_flight_bytes += bytes;
        }
    }
}

impl Windows for Prefetch {
    type Buf = Bytes;
    type Error = Error;

    fn next(&mut self) -> Result<Option<Bytes>> {
        self.next_span()
    }
}

/// Reads one span, trying again as settings say.
pub(crate) async fn read(retry: &Retry, span: &Span) -> Result<Bytes> {
    let Span { object, range, access } = span;
    let reading = retry.call(object, || object.store.read(object.key(), range.clone(), *access));
    let Some(patience_ms) = object.patience_ms else { return reading.await };
    clock::within(&**retry.clock(), patience_ms, reading).await.unwrap_or_else(|| {
        Err(Error::retry(format!(
            "{object} was not read within {patience_ms} ms (store.replica_after_ms)"
        )))
    })
}
