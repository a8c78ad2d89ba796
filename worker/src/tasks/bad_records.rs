//! Malformed records of a split: counted, listed, and where the job asks for it kept as JSON lines
//! in scratch, from where they are committed with their task.
//!
//! A record may be longer than memory, so nothing here holds one: bytes go through a hash and,
//! encoded, into an upload. Which records are malformed depends on the input alone, never on a
//! worker's memory.

use muster_kernel::error::KernelError;
use muster_kernel::format::Torn;
use muster_kernel::proof::{StreamHash, Sums};
use muster_kernel::run::Sink;
use muster_kernel::sort::ChunkSorter;
use muster_protocol::names;
use muster_protocol::plan::BadRecords as Policy;
use muster_protocol::wire::{BadRecord, BlobRef};
use muster_protocol::{Error, Result};

use super::Task;
use super::runs::{locate, open_upload};
use crate::cache::Job;
use crate::memory::{Budget, PartsPlan};
use crate::transfer::{Object, PartSink, Upload};

/// Malformed records of one split that its report lists.
const LISTED_MAX: usize = 32;
/// Bytes that are encoded in one go: a multiple of three.
const ENCODE_BYTES: usize = 48 << 10;

/// What was left out of a split.
#[derive(Debug, Default)]
pub(super) struct LeftOut {
    pub(super) sums: Sums,
    pub(super) listed: Vec<BadRecord>,
    pub(super) quarantine: Option<BlobRef>,
}

/// The malformed records of a split, as they come. Lives on a thread that computes.
pub(super) struct BadRecords<'a> {
    task: &'a Task,
    job: &'a Job,
    target: Object,
    parts: PartsPlan,
    budget: Budget,
    open: Option<Open>,
    left_out: LeftOut,
    quarantine: Option<Quarantine>,
}

/// The one whose end is not reached.
struct Open {
    record: BadRecord,
    hash: StreamHash,
    why: KernelError,
}

impl<'a> BadRecords<'a> {
    /// None yet; `target` is where they would be kept, by parts of `parts`.
    pub(super) fn new(
        task: &'a Task,
        job: &'a Job,
        target: Object,
        parts: PartsPlan,
        budget: Budget,
    ) -> Self {
        Self {
            task,
            job,
            target,
            parts,
            budget,
            open: None,
            left_out: LeftOut::default(),
            quarantine: None,
        }
    }

    /// The place of an attempt's quarantined records, below the job's scratch.
    pub(super) fn path(task: &Task) -> String {
        names::bad_records_path(&task.run.attempt)
    }

    /// What becomes of torn ends of objects.
    pub(super) fn torn(job: &Job) -> Torn {
        if job.plan.bad_records == Policy::Fail { Torn::Refused } else { Torn::Taken }
    }

    /// Whether malformed records are left out rather than refused.
    fn is_lenient(&self) -> bool {
        Self::torn(self.job) == Torn::Taken
    }

    /// Whether the record that an error blames is to be read to its end and left out. A line that
    /// this worker's memory does not hold is read to its end in any case: it may be too long for
    /// all, and else it can be said how much memory it needs.
    pub(super) fn takes(&self, error: &KernelError) -> bool {
        match error {
            KernelError::BadRecord { .. } | KernelError::RecordTooLong { .. } => self.is_lenient(),
            KernelError::Budget { .. } => self.job.order.frame().body_len().is_none(),
            _ => false,
        }
    }

    /// Whether a record has begun here whose end is not reached.
    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// A malformed record begins at `offset` of an object, with the bytes that are held of it.
    pub(super) fn begin(
        &mut self,
        object: u32,
        offset: u64,
        held: &[u8],
        why: KernelError,
    ) -> Result<()> {
        let reason = match &why {
            KernelError::BadRecord { reason, .. } => reason.to_string(),
            _ => format!(
                "it is longer than the limit of {} bytes",
                self.task.context.record_bytes_max
            ),
        };
        if self.job.plan.bad_records == Policy::Quarantine {
            let quarantine = match self.quarantine.take() {
                Some(quarantine) => quarantine,
                None => Quarantine::open(self.task, self.target.clone(), self.parts)?,
            };
            let url = &self.task.pinned(self.job, object)?.url;
            let quoted = |text: &str| serde_json::Value::from(text).to_string();
            let head = format!(
                r#"{{"object":{},"offset":{offset},"reason":{},"data":""#,
                quoted(url),
                quoted(&reason)
            );
            self.quarantine.insert(quarantine).write(head.as_bytes())?;
        }
        let record = BadRecord { object, offset, bytes: 0, reason };
        self.open = Some(Open { record, hash: StreamHash::default(), why });
        self.push(held)
    }

    /// More of its bytes, the terminator apart.
    fn push(&mut self, bytes: &[u8]) -> Result<()> {
        if let Some(open) = &mut self.open {
            open.hash.update(bytes);
        }
        match &mut self.quarantine {
            Some(quarantine) => quarantine.push(bytes),
            None => Ok(()),
        }
    }

    /// Goes on with the record that is open up to its end; what follows that, and nothing where it
    /// goes on.
    pub(super) fn pass<'b>(&mut self, bytes: &'b [u8]) -> Result<&'b [u8]> {
        let frame = self.job.order.frame();
        let held = self.open.as_ref().map_or(0, |open| open.hash.bytes());
        match frame.end(usize::try_from(held).unwrap_or(usize::MAX), bytes) {
            Some(end) => {
                self.push(frame.body(&bytes[..end]))?;
                self.end()?;
                Ok(&bytes[end..])
            }
            None => self.push(bytes).map(|()| &bytes[bytes.len()..]),
        }
    }

    /// The record that is open ends.
    pub(super) fn end(&mut self) -> Result<()> {
        let Some(Open { mut record, hash, why }) = self.open.take() else { return Ok(()) };
        record.bytes = hash.bytes();
        if let KernelError::Budget { position, .. } = why {
            let limit = self.task.context.record_bytes_max;
            if record.bytes <= limit {
                return Err(self.needs_memory(record.object, record.offset, record.bytes));
            }
            if !self.is_lenient() {
                return Err(locate(self.job, KernelError::RecordTooLong { position, limit }));
            }
        }
        tracing::warn!(
            object = record.object,
            offset = record.offset,
            bytes = record.bytes,
            reason = %record.reason,
            "left out a malformed record"
        );
        let bytes = usize::try_from(record.bytes)
            .map_err(|_| Error::bug("a record longer than memory can address"))?;
        self.left_out.sums.add_hashed(bytes, hash.digest());
        if let Some(quarantine) = &mut self.quarantine {
            quarantine.end_data()?;
            quarantine.write(format!("\",\"bytes\":{}}}\n", record.bytes).as_bytes())?;
        }
        if self.left_out.listed.len() < LISTED_MAX {
            self.left_out.listed.push(record);
        }
        Ok(())
    }

    /// A record of an object is too long for this worker's memory.
    pub(super) fn needs_memory(&self, object: u32, offset: u64, bytes: u64) -> Error {
        let url = match self.task.pinned(self.job, object) {
            Ok(pinned) => &pinned.url,
            Err(error) => return error,
        };
        let needed =
            usize::try_from(ChunkSorter::budget_for(&self.job.order, bytes)).unwrap_or(usize::MAX);
        let what = format!("{url}: sorting the record of {bytes} bytes at byte {offset}");
        self.budget.needs_memory(&what, needed, |budget| budget.sorter_bytes >= needed)
    }

    /// What was left out; what is kept of it stands then.
    pub(super) fn finish(mut self) -> Result<LeftOut> {
        if let Some(quarantine) = self.quarantine.take() {
            self.left_out.quarantine = Some(quarantine.finish(self.task)?);
        }
        Ok(self.left_out)
    }
}

/// The object that keeps them.
struct Quarantine {
    upload: Upload,
    sink: PartSink,
    hash: StreamHash,
    /// Bytes of the current record that do not fill a group of three yet.
    carried: Vec<u8>,
}

impl Quarantine {
    fn open(task: &Task, target: Object, parts: PartsPlan) -> Result<Self> {
        let id = task.link.wait_out(open_upload(&task.link, &target, &task.results))?;
        let upload = Upload { id, object: target };
        let sink = PartSink::new(&task.link, vec![upload.clone()], parts)?;
        Ok(Self { upload, sink, hash: StreamHash::default(), carried: Vec::new() })
    }

    fn write(&mut self, text: &[u8]) -> Result<()> {
        self.hash.update(text);
        self.sink.buffer().extend_from_slice(text);
        self.sink.flushed()
    }

    fn push(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(ENCODE_BYTES - self.carried.len()));
            bytes = later;
            self.carried.extend_from_slice(now);
            let whole = self.carried.len() / 3 * 3;
            let text = base64(&self.carried[..whole]);
            self.carried.drain(..whole);
            self.write(&text)?;
        }
        Ok(())
    }

    fn end_data(&mut self) -> Result<()> {
        let rest = std::mem::take(&mut self.carried);
        self.write(&base64(&rest))
    }

    fn finish(self, task: &Task) -> Result<BlobRef> {
        let (Upload { object, id }, link) = (&self.upload, &task.link);
        let uploaded = self
            .sink
            .finish()?
            .pop()
            .ok_or_else(|| Error::bug("malformed records went nowhere"))?;
        let complete = || {
            object.store.complete_upload(object.key(), id, &uploaded.tags, uploaded.bytes, false)
        };
        link.wait_out(link.retry.call(object, complete))?;
        task.results.completed(object);
        Ok(BlobRef { url: object.to_string(), bytes: uploaded.bytes, digest: self.hash.digest() })
    }
}

/// Standard Base64 with padding.
fn base64(bytes: &[u8]) -> Vec<u8> {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = Vec::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let at = |index: usize| u32::from(group.get(index).copied().unwrap_or(0));
        let word = at(0) << 16 | at(1) << 8 | at(2);
        for letter in 0..4 {
            let known = letter <= group.len();
            text.push(if known {
                LETTERS[(word >> (18 - 6 * letter) & 63) as usize]
            } else {
                b'='
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::base64;

    #[test]
    fn base64_is_that_of_rfc_4648() {
        let expected = ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"];
        for (len, expected) in expected.into_iter().enumerate() {
            assert_eq!(base64(&b"foobar"[..len]), expected.as_bytes());
        }
        assert_eq!(base64(&[0xfb, 0xff, 0xbf]), b"+/+/");
    }
}
