//! Merges of small pieces: order, doubles, bounds, damage.

use super::*;
use crate::format::Format;
use crate::run::{RunWriter, Sink};
use crate::spec::SortSpec;

const LINES: Format = Format::lines(b'\n');

#[derive(Default)]
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

impl RecordSink for Keep {
    type Error = KernelError;

    fn push(&mut self, stored: &[u8], _hash: u64) -> Result<(), KernelError> {
        self.0.extend_from_slice(stored);
        Ok(())
    }
}

/// Windows of `step` bytes.
struct Steps {
    bytes: Vec<u8>,
    at: usize,
    step: usize,
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
}

/// A piece of the given lines, as they stand.
fn piece(lines: &str, step: usize) -> MergeInput<Steps> {
    let mut writer = RunWriter::new(Keep::default(), LINES.frame());
    writer.begin_partition().expect("the sink takes all");
    lines
        .split_inclusive('\n')
        .for_each(|line| writer.push(line.as_bytes()).expect("the sink takes all"));
    let (index, sink) = writer.finish().expect("the sink takes all");
    let piece = index.piece(0).expect("one partition");
    MergeInput {
        windows: Steps { bytes: sink.0[..piece.len as usize].to_vec(), at: 0, step },
        piece,
    }
}

fn order(unique: bool) -> Order {
    Order::new(&SortSpec { unique, ..SortSpec::new(LINES) }).expect("a valid spec")
}

fn run(
    unique: bool,
    bounds: (Option<&str>, Option<&str>),
    inputs: &[&str],
    step: usize,
) -> Result<(String, Tally), KernelError> {
    let splitter = |key: &str| Splitter { key: key.into(), position: 0 };
    let (lower, upper) = (bounds.0.map(splitter), bounds.1.map(splitter));
    let inputs = inputs.iter().map(|lines| piece(lines, step)).collect();
    let mut out = Keep::default();
    let tally = merge(&order(unique), (lower.as_ref(), upper.as_ref()), inputs, &mut out)?;
    Ok((String::from_utf8_lossy(&out.0).into_owned(), tally))
}

#[test]
fn merges_any_number_of_inputs_in_windows_of_any_size() {
    let check = |unique, inputs: &[&str], expect: &str, dropped| {
        for step in [1, 2, 17, 1000] {
            let (text, tally) = run(unique, (None, None), inputs, step).expect("sorted inputs");
            assert_eq!(
                (text.as_str(), tally.dropped.records),
                (expect, dropped),
                "{inputs:?} by {step}"
            );
            assert_eq!(tally.kept.records, expect.lines().count() as u64);
        }
    };
    check(false, &[], "", 0);
    check(false, &[""], "", 0);
    check(false, &["a\nb\n"], "a\nb\n", 0);
    check(false, &["", "a\nc\n", "", "b\n", "\n"], "\na\nb\nc\n", 0);
    check(false, &["a\na\n", "a\n"], "a\na\na\n", 0);
    check(true, &["a\na\nb\n", "a\nc\n", "c\n"], "a\nb\nc\n", 3);
    check(
        true,
        &["same long start 1\n", "same long start 1\nsame long start 2\n"],
        "same long start 1\nsame long start 2\n",
        1,
    );
}

#[test]
fn disorder_is_an_error() {
    let check = |bounds, inputs: &[&str], expect: &str| {
        for step in [3, 1000] {
            assert_eq!(
                run(false, bounds, inputs, step),
                Err(KernelError::OutOfOrder { what: expect.into() })
            );
        }
    };
    check((None, None), &["b\na\n"], "record 2 of input 0 comes before the one before it");
    check(
        (None, None),
        &["", "the same 2\nthe same 1\n", "z\n"],
        "record 2 of input 1 comes before the one before it",
    );
    check((Some("b"), None), &["c\n", "a\n"], "input 1 begins before its partition");
    check((None, Some("b")), &["a\nb\n"], "input 0 ends after its partition");
    check(
        (Some("key 1"), Some("key 5")),
        &["key 2\n", "kez\n"],
        "record 1 of input 1 lies outside of its partition",
    );
    assert!(run(false, (Some("key 1"), Some("key 5")), &["key 1\nkey 2\n", "key 49\n"], 7).is_ok());
}

/// Merges one damaged input.
fn damaged(change: impl Fn(&mut MergeInput<Steps>)) -> Result<Tally, KernelError> {
    let mut input = piece("a\nb\n", 5);
    change(&mut input);
    merge(&order(false), (None, None), vec![input], &mut Keep::default())
}

#[test]
fn a_piece_must_be_what_its_index_says() {
    assert!(damaged(|_| {}).is_ok());
    let corrupt = |result| matches!(result, Err(KernelError::Corrupt { .. }));
    assert!(corrupt(damaged(|input| input.windows.bytes.push(0))));
    assert!(corrupt(damaged(|input| input.windows.bytes.truncate(12))));
    assert!(corrupt(damaged(|input| input.windows.bytes.clear())));
    assert!(corrupt(damaged(|input| input.piece.block_payload_max = 3)));
    assert!(corrupt(damaged(|input| input.piece.len -= 1)));
    assert!(corrupt(damaged(|input| input.piece.len += 1)));
    let differ = |result| matches!(result, Err(KernelError::SumsDiffer { .. }));
    assert!(differ(damaged(|input| input.piece.sums.records += 1)));
    assert!(differ(damaged(|input| input.piece.sums.hash ^= 1)));
}

/// A record that bad memory has changed shows at the end of its block and piece alone: what is not
/// kept is read as well.
#[test]
fn a_piece_is_read_to_its_end_where_few_are_kept() {
    let spec = SortSpec { top: Some(1), ..SortSpec::new(LINES) };
    let first = Order::new(&spec).expect("a valid spec");
    let merged = |change: fn(&mut MergeInput<Steps>)| {
        let mut input = piece("a\nb\n", 5);
        change(&mut input);
        merge(&first, (None, None), vec![input], &mut Keep::default())
    };
    let tally = merged(|_| {}).expect("sorted");
    assert_eq!((tally.kept.records, tally.dropped.records), (1, 1));
    let differs = merged(|input| input.piece.sums.hash ^= 1);
    assert!(matches!(differs, Err(KernelError::SumsDiffer { .. })));
}

#[test]
fn a_block_whose_count_of_records_lies_is_corrupt() {
    use crate::blocks::{BLOCK_HEADER_BYTES, BlockHeader};
    for (records, ok) in [(2, true), (1, false), (3, false), (0, false)] {
        let result = damaged(|input| {
            let (header, payload) = input.windows.bytes.split_at_mut(BLOCK_HEADER_BYTES);
            header.copy_from_slice(&BlockHeader::of(payload, records).encode());
        });
        assert_eq!(result.is_ok(), ok, "{records} records");
        assert!(ok || matches!(result, Err(KernelError::Corrupt { .. })));
    }
}

/// Fails after a number of records.
struct Failing(u32);

impl RecordSink for Failing {
    type Error = KernelError;

    fn push(&mut self, _stored: &[u8], _hash: u64) -> Result<(), KernelError> {
        self.0 = self.0.checked_sub(1).ok_or(KernelError::InvalidSpec("cancelled".into()))?;
        Ok(())
    }
}

#[test]
fn an_error_of_the_sink_ends_the_merge() {
    let inputs = vec![piece("a\nb\n", 9), piece("c\n", 9)];
    let result = merge(&order(false), (None, None), inputs, &mut Failing(2));
    assert_eq!(result, Err(KernelError::InvalidSpec("cancelled".into())));
}

/// Windows that damage one byte for the first so many times that it is read.
struct Flaky {
    steps: Steps,
    damaged: usize,
    times: u32,
    rewinds_max: u32,
}

impl Windows for Flaky {
    type Buf = Vec<u8>;
    type Error = KernelError;

    fn next(&mut self) -> Result<Option<Vec<u8>>, KernelError> {
        let begin = self.steps.at;
        let mut window = self.steps.next()?;
        if let Some(bytes) = &mut window
            && self.times > 0
            && (begin..begin + bytes.len()).contains(&self.damaged)
        {
            self.times -= 1;
            bytes[self.damaged - begin] ^= 0x20;
        }
        Ok(window)
    }

    fn rewind(&mut self, at: u64) -> Result<bool, KernelError> {
        self.steps.at = at as usize;
        self.rewinds_max = self.rewinds_max.saturating_sub(1);
        Ok(self.rewinds_max > 0)
    }
}

#[test]
fn a_block_that_does_not_hold_is_read_again() {
    // Several blocks, so that some of the piece has gone out when the damage shows.
    let lines: String = (0..40_000).map(|n| format!("{n:08}\n")).collect();
    let len = piece(&lines, 1).windows.bytes.len();
    for step in [4096, 70_000, 1 << 20] {
        for damaged in [0, 3, 20, 66_000, 131_100, len - 1] {
            let flaky = |times| {
                let MergeInput { windows: steps, piece } = piece(&lines, step);
                vec![MergeInput { windows: Flaky { steps, damaged, times, rewinds_max: 4 }, piece }]
            };
            let mut out = Keep::default();
            merge(&order(false), (None, None), flaky(2), &mut out)
                .expect("the third time it holds");
            assert!(out.0 == lines.as_bytes(), "{damaged} by {step}");
            let error = merge(&order(false), (None, None), flaky(9), &mut Keep::default())
                .expect_err("never holds");
            assert!(matches!(error, KernelError::Corrupt { .. }), "{error}");
        }
    }
}
