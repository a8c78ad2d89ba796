//! Merging what may be blocks: bytes of any kind as pieces of runs, in windows of a few bytes, with
//! a second try where the reader asks for one. What a merge accepts came out in order, and is all
//! that went in.
//!
//! An input: a byte of choices, the length of windows, then up to four pieces.

use muster_kernel::error::KernelError;
use muster_kernel::format::Format;
use muster_kernel::merge::{MergeInput, Windows, merge};
use muster_kernel::order::Order;
use muster_kernel::proof::Sums;
use muster_kernel::run::{BLOCK_HEADER_BYTES, Piece, RecordSink};
use muster_kernel::spec::SortSpec;
use muster_kernel::splitters::Splitter;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::run_index::run_of;
use super::{byte, piece, push_piece};

const PIECES_MAX: usize = 4;
const UNIQUE: u8 = 1;
const FIXED: u8 = 2;
const KEYED: u8 = 4;
const SEALED: u8 = 8;
const BOUNDED: u8 = 16;

/// Windows of one length; the first rewind is granted.
struct Steps {
    bytes: Vec<u8>,
    at: usize,
    step: usize,
    rewinds: u32,
}

impl Windows for Steps {
    type Buf = Vec<u8>;
    type Error = KernelError;

    fn next(&mut self) -> Result<Option<Vec<u8>>, KernelError> {
        let end = self.bytes.len().min(self.at + self.step);
        let window = self.bytes[self.at..end].to_vec();
        self.at = end;
        Ok((!window.is_empty()).then_some(window))
    }

    fn rewind(&mut self, at: u64) -> Result<bool, KernelError> {
        self.rewinds += 1;
        self.at = usize::try_from(at).expect("within the piece").min(self.bytes.len());
        Ok(self.rewinds == 1)
    }
}

/// What came out.
struct Out<'a> {
    order: &'a Order,
    sums: Sums,
    last: Option<Vec<u8>>,
}

impl RecordSink for Out<'_> {
    type Error = KernelError;

    fn push(&mut self, stored: &[u8], _hash: u64) -> Result<(), KernelError> {
        let body = self.order.frame().body(stored);
        let mut scratch = Vec::new();
        let key = self.order.key(body, &mut scratch);
        if let Some(last) = &self.last {
            assert!(last.as_slice() <= key, "keys ascend");
            assert!(!self.order.select().distinct || last.as_slice() < key, "equal keys come once");
        }
        self.last = Some(key.to_vec());
        self.sums.add(body);
        Ok(())
    }
}

/// Merges bytes.
pub fn target(mut data: &[u8]) {
    let choices = byte(&mut data);
    let step = usize::from(byte(&mut data)).max(1);
    let spec = spec(choices);
    let order = Order::new(&spec).expect("a valid order");
    let mut inputs = Vec::new();
    while inputs.len() < PIECES_MAX && !data.is_empty() {
        let mut bytes = piece(&mut data).to_vec();
        if choices & SEALED != 0 {
            seal(&mut bytes);
        }
        let piece = described(&bytes, &spec.format);
        inputs.push(MergeInput { windows: Steps { bytes, at: 0, step, rewinds: 0 }, piece });
    }
    let expected = inputs.iter().fold(Sums::default(), |sums, input| sums.plus(&input.piece.sums));
    let bound =
        |key: &[u8]| (choices & BOUNDED != 0).then(|| Splitter { key: key.to_vec(), position: 0 });
    let (lower, upper) = (bound(b"b"), bound(b"bz"));
    let mut out = Out { order: &order, sums: Sums::default(), last: None };
    if let Ok(tally) = merge(&order, (lower.as_ref(), upper.as_ref()), inputs, &mut out) {
        assert_eq!(tally.total(), expected);
        assert_eq!(tally.kept, out.sums);
        if let (Some(upper), Some(last)) = (&upper, &out.last) {
            assert!(*last < upper.key, "the last record is before its bound");
        }
    }
}

fn spec(choices: u8) -> SortSpec {
    let mut spec = SortSpec::new(Format::lines(b'\n'));
    if choices & FIXED != 0 {
        spec = SortSpec::new(Format::fixed(4));
    }
    spec.unique = choices & UNIQUE != 0;
    if choices & KEYED != 0 {
        let text = if choices & FIXED != 0 { "1:2" } else { "2,2n" };
        spec.keys = vec![spec.format.rules().parse_key(text).expect("a key")];
    }
    spec
}

/// Where the blocks of a piece lie, as far as their headers say so.
fn blocks(bytes: &[u8]) -> impl Iterator<Item = (usize, usize, u32)> + '_ {
    let number = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let mut at = 0;
    std::iter::from_fn(move || {
        let (payload_bytes, records) = (number(at)? as usize, number(at + 4)?);
        let begin = at + BLOCK_HEADER_BYTES;
        let end = begin.checked_add(payload_bytes).filter(|end| *end <= bytes.len())?;
        at = end;
        Some((begin, end, records))
    })
}

/// Checksums that fit.
fn seal(bytes: &mut [u8]) {
    let found: Vec<_> = blocks(bytes).collect();
    for (begin, end, records) in found {
        let payload = &bytes[begin..end];
        let checksum = xxh3_64_with_seed(payload, u64::from(records) << 32 | payload.len() as u64);
        bytes[begin - 8..begin].copy_from_slice(&checksum.to_le_bytes());
    }
}

/// What an index would say of these bytes: sums that fit, if they are blocks of records.
fn described(bytes: &[u8], format: &Format) -> Piece {
    let mut sums = Sums::default();
    let mut block_payload_max = 0;
    for (begin, end, _) in blocks(bytes) {
        let mut rest = &bytes[begin..end];
        block_payload_max = block_payload_max.max(u32::try_from(rest.len()).unwrap_or(u32::MAX));
        while let Some(len) = format.frame().end(0, rest) {
            sums.add(format.frame().body(&rest[..len]));
            rest = &rest[len..];
        }
    }
    Piece { offset: 0, len: bytes.len() as u64, block_payload_max, sums }
}

/// Merges that succeed.
pub fn seeds() -> Vec<Vec<u8>> {
    let lines: [&[&[u8]]; 3] = [&[b"b 1\n", b"b 2\n", b"b 30\n"], &[b"b 2\n", b"b 3 x\n"], &[]];
    let fixed: [&[&[u8]]; 2] = [&[b"aaaa", b"abba"], &[b"aaab", b"bbbb", b"bbbb"]];
    let mut seeds = Vec::new();
    for choices in 0..=31 {
        let of_fixed = choices & FIXED != 0;
        let format = if of_fixed { Format::fixed(4) } else { Format::lines(b'\n') };
        let runs: &[&[&[u8]]] = if of_fixed { &fixed } else { &lines };
        let mut seed = vec![choices, 7 * choices + 1];
        for records in runs {
            let (index, bytes) = run_of(&format, &[records]);
            let piece = index.piece(0).expect("one partition");
            push_piece(&mut seed, &bytes[..usize::try_from(piece.len).expect("a small piece")]);
        }
        seeds.push(seed);
    }
    // Several blocks in a piece.
    let mut seed = vec![SEALED, 5];
    let blocks: Vec<u8> = [&b"a\nb\n"[..], b"c\n"]
        .iter()
        .flat_map(|records| {
            run_of(&Format::lines(b'\n'), &[&[records]]).1[..16 + records.len()].to_vec()
        })
        .collect();
    push_piece(&mut seed, &blocks);
    seeds.push(seed);
    seeds
}
