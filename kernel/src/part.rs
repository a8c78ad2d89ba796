//! Output parts: the records of one partition, plain, with what a manifest says about them.
//!
//! Bytes are appended to the sink's buffer once; the checksum is taken over whole chunks of it
//! while they are still in the cache.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use crate::blocks::BLOCK_PAYLOAD_TARGET;
use crate::order::Order;
use crate::proof::Sums;
use crate::run::{RecordSink, Sink};

/// Bytes of the first and last key that a summary keeps.
pub const SUMMARY_KEY_MAX: usize = 256;

/// What a part holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartSummary {
    /// Sums of its records.
    pub sums: Sums,
    /// Bytes of the part, terminators included.
    pub bytes: u64,
    /// XXH3-64 (seed 0) of the part's bytes.
    pub checksum: u64,
    /// Comparison key of the first record, cut at [`SUMMARY_KEY_MAX`] bytes; `None` if the part is
    /// empty.
    pub first_key: Option<Vec<u8>>,
    /// Comparison key of the last record, cut likewise.
    pub last_key: Option<Vec<u8>>,
}

/// Writes one part.
pub struct PartWriter<S> {
    sink: S,
    order: Arc<Order>,
    trailer_len: usize,
    sums: Sums,
    bytes: u64,
    hasher: Xxh3,
    /// Where the bytes that are not hashed yet begin in the buffer, and the last record in it.
    chunk_start: usize,
    chunk_bytes: usize,
    last_bytes: usize,
    first_key: Option<Vec<u8>>,
    last_key: Option<Vec<u8>>,
}

impl<S: Sink> PartWriter<S> {
    /// A writer that appends to what the sink's buffer holds.
    pub fn new(sink: S, order: Arc<Order>) -> Self {
        Self {
            sink,
            trailer_len: order.frame().trailer_len(),
            order,
            sums: Sums::default(),
            bytes: 0,
            hasher: Xxh3::new(),
            chunk_start: 0,
            chunk_bytes: 0,
            last_bytes: 0,
            first_key: None,
            last_key: None,
        }
    }

    /// Bytes written so far.
    pub fn bytes(&self) -> u64 {
        self.bytes + self.chunk_bytes as u64
    }

    /// Sums of what was pushed so far.
    pub fn sums(&self) -> Sums {
        self.sums
    }

    /// Hands the last bytes to the sink and returns it with the summary.
    pub fn finish(mut self) -> Result<(PartSummary, S), S::Error> {
        self.end_chunk()?;
        let summary = PartSummary {
            sums: self.sums,
            bytes: self.bytes,
            checksum: self.hasher.digest(),
            first_key: self.first_key,
            last_key: self.last_key,
        };
        Ok((summary, self.sink))
    }

    #[cold]
    fn end_chunk(&mut self) -> Result<(), S::Error> {
        if self.chunk_bytes == 0 {
            return Ok(());
        }
        let chunk = &self.sink.buffer()[self.chunk_start..];
        self.hasher.update(chunk);
        let last = self.order.frame().body(&chunk[chunk.len() - self.last_bytes..]);
        self.last_key = Some(summary_key(&self.order, last));
        self.bytes += self.chunk_bytes as u64;
        self.chunk_bytes = 0;
        self.sink.flushed()
    }
}

fn summary_key(order: &Order, body: &[u8]) -> Vec<u8> {
    let mut scratch = Vec::new();
    let key = order.key(body, &mut scratch);
    key[..key.len().min(SUMMARY_KEY_MAX)].to_vec()
}

impl<S: Sink> RecordSink for PartWriter<S> {
    type Error = S::Error;

    #[inline]
    fn push(&mut self, stored: &[u8], hash: u64) -> Result<(), S::Error> {
        if self.chunk_bytes >= BLOCK_PAYLOAD_TARGET {
            self.end_chunk()?;
        }
        let buffer = self.sink.buffer();
        if self.chunk_bytes == 0 {
            self.chunk_start = buffer.len();
        }
        buffer.extend_from_slice(stored);
        self.chunk_bytes += stored.len();
        self.last_bytes = stored.len();
        self.sums.add_hashed(stored.len() - self.trailer_len, hash);
        if self.first_key.is_none() {
            self.first_key = Some(summary_key(&self.order, self.order.frame().body(stored)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::KernelError;
    use crate::format::Format;
    use crate::proof::record_hash;
    use crate::spec::SortSpec;
    use xxhash_rust::xxh3::xxh3_64;

    /// Ships what is flushed.
    #[derive(Default)]
    struct Shipped {
        buffer: Vec<u8>,
        shipped: Vec<u8>,
    }

    impl Sink for Shipped {
        type Error = KernelError;

        fn buffer(&mut self) -> &mut Vec<u8> {
            &mut self.buffer
        }

        fn flushed(&mut self) -> Result<(), KernelError> {
            self.shipped.append(&mut self.buffer);
            Ok(())
        }
    }

    fn check(lines: &[Vec<u8>], first: Option<&[u8]>, last: Option<&[u8]>) {
        let order = Order::new(&SortSpec::new(Format::lines(b'\n'))).expect("a valid spec");
        let mut part = PartWriter::new(Shipped::default(), Arc::new(order));
        let mut sums = Sums::default();
        for line in lines {
            sums.add(&line[..line.len() - 1]);
            part.push(line, record_hash(&line[..line.len() - 1])).expect("the sink takes all");
        }
        let bytes = part.bytes();
        let (summary, sink) = part.finish().expect("the sink takes all");
        assert_eq!(sink.shipped, lines.concat());
        let expect = PartSummary {
            sums,
            bytes: sink.shipped.len() as u64,
            checksum: xxh3_64(&sink.shipped),
            first_key: first.map(<[u8]>::to_vec),
            last_key: last.map(<[u8]>::to_vec),
        };
        assert_eq!((summary, bytes), (expect, sink.shipped.len() as u64));
    }

    #[test]
    fn a_part_is_its_records_and_its_summary_tells_them() {
        check(&[], None, None);
        check(&[b"ab\n".to_vec()], Some(b"ab"), Some(b"ab"));
        let long = [vec![b'z'; BLOCK_PAYLOAD_TARGET], b"\n".to_vec()].concat();
        check(
            &[b"\n".to_vec(), b"a\n".to_vec(), long.clone()],
            Some(b""),
            Some(&long[..SUMMARY_KEY_MAX]),
        );
        let many: Vec<_> =
            (0..10_000).map(|number| format!("{number:050}\n").into_bytes()).collect();
        check(&many, Some(&many[0][..50]), Some(&many[9_999][..50]));
    }
}
