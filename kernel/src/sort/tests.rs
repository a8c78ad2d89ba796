//! Budgets, carried records, errors. What comes out in which order is tested with the whole path (`tests/whole_path.rs`).

use super::*;
use crate::spec::{FieldKey, KeyDef, SortSpec};

const LINES: Format = Format::Lines { terminator: b'\n' };

fn lines_sorter(budget_bytes: usize) -> ChunkSorter {
    ChunkSorter::new(Arc::new(Order::new(&SortSpec::new(LINES)).expect("a valid spec")), budget_bytes)
}

fn encoded_sorter(budget_bytes: usize) -> ChunkSorter {
    let key = KeyDef::Field(FieldKey::parse("1,1n").expect("a valid key"));
    let spec = SortSpec { keys: vec![key], ..SortSpec::new(LINES) };
    ChunkSorter::new(Arc::new(Order::new(&spec).expect("a valid spec")), budget_bytes)
}

fn sorted(sorter: &mut ChunkSorter) -> String {
    sorter.sort().records().map(String::from_utf8_lossy).collect()
}

/// Feeds everything, emptying the sorter whenever it is full; returns the chunks.
fn chunks(sorter: &mut ChunkSorter, mut bytes: &[u8], step: usize) -> Vec<String> {
    let mut chunks = Vec::new();
    sorter.begin(1000);
    while !bytes.is_empty() {
        let now = &bytes[..step.min(bytes.len())];
        let taken = sorter.feed(now).expect("records fit");
        assert!(sorter.used_bytes() <= sorter.slab.budget_bytes(), "{} bytes used", sorter.used_bytes());
        bytes = &bytes[taken..];
        if taken < now.len() {
            chunks.push(sorted(sorter));
            sorter.reset();
        }
    }
    while !sorter.end_object().expect("records fit") {
        chunks.push(sorted(sorter));
        sorter.reset();
    }
    chunks.push(sorted(sorter));
    sorter.reset();
    assert!(sorter.is_empty() && sorter.records() == 0);
    chunks
}

#[test]
fn a_full_sorter_carries_the_incomplete_record() {
    for make in [lines_sorter, encoded_sorter] {
        for budget in [400, 500, 1000, 1 << 20] {
            for step in [1, 7, 64, 1000] {
                let input: String = (0..100).map(|number| format!("{}\n", number * 37 % 100)).collect();
                let chunks = chunks(&mut make(budget), input.trim_end().as_bytes(), step);
                assert!(chunks.len() > 1 || budget == 1 << 20);
                let mut lines: Vec<&str> = chunks.iter().flat_map(|chunk| chunk.lines()).collect();
                let mut expect: Vec<&str> = input.lines().collect();
                lines.sort_unstable();
                expect.sort_unstable();
                assert_eq!(lines, expect);
            }
        }
    }
}

#[test]
fn memory_is_reused_and_small_inputs_take_little() {
    let mut sorter = lines_sorter(1 << 40);
    sorter.begin(0);
    assert_eq!(sorter.feed(b"b\na\n"), Ok(4));
    assert!(sorter.slab.free() < 2 << 20);
    assert_eq!(sorted(&mut sorter), "a\nb\n");
}

#[test]
fn a_record_that_does_not_fit_alone_is_named() {
    for make in [lines_sorter, encoded_sorter] {
        let mut sorter = make(1000);
        sorter.begin(70);
        let line = [b"1\n".to_vec(), vec![b'x'; 2000]].concat();
        let taken = sorter.feed(&line).expect("the first line fits");
        assert!(taken < line.len() && sorter.records() == 1);
        sorter.sort();
        sorter.reset();
        let error = sorter.feed(&line[taken..]).expect_err("it cannot fit");
        assert!(
            matches!(error, KernelError::Budget { position: 72, budget: 1000, needed } if needed > 1000),
            "{error}"
        );
    }
}

#[test]
fn a_truncated_fixed_record_is_named() {
    let order = Order::new(&SortSpec::new(Format::Fixed { len: 4 })).expect("a valid spec");
    let mut sorter = ChunkSorter::new(Arc::new(order), 1 << 20);
    sorter.begin(100);
    assert_eq!(sorter.feed(b"bbbbaaaacc"), Ok(10));
    let reason = BadRecord::Truncated { found: 2, len: 4 };
    assert_eq!(sorter.end_object(), Err(KernelError::BadRecord { position: 108, reason }));
    assert_eq!(sorted(&mut sorter), "aaaabbbb");
}

#[test]
fn sums_are_those_of_the_chunk() {
    let mut sorter = lines_sorter(1 << 20);
    sorter.begin(0);
    assert_eq!(sorter.feed(b"b\n\na"), Ok(4));
    assert_eq!(sorter.end_object(), Ok(true));
    let mut expect = Sums::default();
    [&b"a"[..], b"b", b""].iter().for_each(|body| expect.add(body));
    assert_eq!(sorter.sort().input_sums(), expect);
    sorter.reset();
    assert_eq!(sorter.sort().input_sums(), Sums::default());
}
