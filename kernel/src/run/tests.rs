//! Golden bytes, and that no damage goes unnoticed.

use super::*;
use crate::format::Format;
use crate::merge::{MergeInput, Windows, merge};
use crate::order::Order;
use crate::proof::Sums;
use crate::spec::SortSpec;

const LINES: Format = Format::lines(b'\n');

struct Keep(Vec<u8>);

impl Sink for Keep {
    type Error = KernelError;

    fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }

    fn flushed(&mut self) -> Result<(), KernelError> {
        Ok(())
    }
}

/// Counts what it is given.
#[derive(Default)]
struct Count(u64);

impl RecordSink for Count {
    type Error = KernelError;

    fn push(&mut self, _stored: &[u8], _hash: u64) -> Result<(), KernelError> {
        self.0 += 1;
        Ok(())
    }
}

struct Whole(Option<Vec<u8>>);

impl Windows for Whole {
    type Buf = Vec<u8>;
    type Error = KernelError;

    fn next(&mut self) -> Result<Option<Vec<u8>>, KernelError> {
        Ok(self.0.take())
    }
}

fn write(partitions: &[&[&[u8]]]) -> (RunIndex, Vec<u8>) {
    let mut writer = RunWriter::new(Keep(Vec::new()), LINES.frame());
    for records in partitions {
        writer.begin_partition().expect("the sink takes all");
        records.iter().for_each(|record| writer.push(record).expect("the sink takes all"));
    }
    let mut dropped = Sums::default();
    dropped.add(b"a");
    writer.add_dropped(&dropped);
    let (index, sink) = writer.finish().expect("the sink takes all");
    (index, sink.0)
}

fn open(bytes: &[u8]) -> Result<RunIndex, KernelError> {
    let footer_at = bytes.len().saturating_sub(RunFooter::LEN);
    let footer = RunFooter::decode(&bytes[footer_at..], bytes.len() as u64)?;
    RunIndex::decode(&bytes[footer.index_offset() as usize..footer_at], &footer)
}

/// Reads the whole run: all its records, or the first thing that is wrong.
fn read(bytes: &[u8]) -> Result<u64, KernelError> {
    let order = Order::new(&SortSpec::new(LINES)).expect("a valid spec");
    let mut count = Count::default();
    for piece in open(bytes)?.pieces() {
        let blocks = bytes[piece.offset as usize..(piece.offset + piece.len) as usize].to_vec();
        merge(
            &order,
            (None, None),
            vec![MergeInput { windows: Whole(Some(blocks)), piece: *piece }],
            &mut count,
        )?;
    }
    Ok(count.0)
}

fn hex(bytes: &[u8]) -> String {
    let lines: Vec<String> = bytes
        .chunks(16)
        .map(|line| line.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" "))
        .collect();
    lines.join("\n")
}

#[test]
fn version_1_keeps_its_bytes() {
    let (index, bytes) = write(&[&[b"a\n", b"b\n"], &[], &[b"\n"]]);
    assert_eq!(hex(&bytes), include_str!("golden_v1.txt").trim_end());
    assert_eq!(open(&bytes), Ok(index));
}

#[test]
fn every_flipped_byte_and_every_cut_is_noticed() {
    let (_, bytes) = write(&[&[b"a\n", b"b\n"], &[], &[b"\n", b"x\n", b"yyyyyyyyyyyyyyyyyyyy\n"]]);
    assert_eq!(read(&bytes), Ok(5));
    for at in 0..bytes.len() {
        for mask in [1, 0x80, 0xFF] {
            let mut damaged = bytes.clone();
            damaged[at] ^= mask;
            assert!(read(&damaged).is_err(), "byte {at} ^ {mask:#x}");
        }
        assert!(read(&bytes[..at]).is_err(), "cut at {at}");
    }
}

#[test]
fn hostile_indexes_are_refused_without_trust() {
    let (_, bytes) = write(&[&[b"a\n"]]);
    let index_at = bytes.len() - RunFooter::LEN - 72;
    let footer = RunFooter::decode(&bytes[bytes.len() - RunFooter::LEN..], bytes.len() as u64)
        .expect("undamaged");
    // Each byte of the index in turn, with a checksum that matches the damage.
    for at in 0..72 {
        for value in [0, 1, 0x7F, 0xFF] {
            let mut index = bytes[index_at..index_at + 72].to_vec();
            if index[at] == value {
                continue;
            }
            index[at] = value;
            let footer = RunFooter { index_checksum: xxhash_rust::xxh3::xxh3_64(&index), ..footer };
            if let Ok(decoded) = RunIndex::decode(&index, &footer) {
                // What is left is the sums, which the readers of pieces and the barriers check.
                assert!(at >= 20, "byte {at} = {value}: {decoded:?}");
            }
        }
    }
}

#[test]
fn blocks_hold_about_their_target_or_one_larger_record() {
    let large = [vec![b'a'; 3 * BLOCK_PAYLOAD_TARGET], b"\n".to_vec()].concat();
    let small: &[u8] = &[[b'b'; 99].as_slice(), b"\n"].concat();
    let mut records: Vec<&[u8]> = vec![&large];
    records.extend(std::iter::repeat_n(small, 2000));
    let (index, bytes) = write(&[&records]);
    let piece = index.piece(0).expect("one partition");
    assert_eq!(piece.block_payload_max as usize, large.len());
    let small_blocks = 2000_usize.div_ceil(BLOCK_PAYLOAD_TARGET / 100);
    assert_eq!(
        piece.len as usize,
        large.len() + 2000 * 100 + (1 + small_blocks) * BLOCK_HEADER_BYTES
    );
    assert_eq!(read(&bytes), Ok(2001));
    assert_eq!(index.file_bytes(), bytes.len() as u64);
}
