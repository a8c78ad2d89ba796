//! Budgets, carried records, errors. What comes out in which order is tested with the whole path
//! (`tests/whole_path.rs`).

use super::*;
use crate::error::BadRecord;
use crate::format::Format;
use crate::spec::{FieldKey, KeyDef, SortSpec};

const LINES: Format = Format::lines(b'\n');

fn lines_sorter(budget_bytes: usize) -> ChunkSorter {
    ChunkSorter::new(
        Arc::new(Order::new(&SortSpec::new(LINES)).expect("a valid spec")),
        budget_bytes,
    )
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
        assert!(
            sorter.used_bytes() <= sorter.slab.budget_bytes(),
            "{} bytes used",
            sorter.used_bytes()
        );
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
                let input: String =
                    (0..100).map(|number| format!("{}\n", number * 37 % 100)).collect();
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
            matches!(
                error,
                KernelError::Budget { position: 72, budget: 1000, needed } if needed > 1000
            ),
            "{error}"
        );
    }
}

#[test]
fn a_sorter_gives_its_memory_back_and_goes_on() {
    for make in [lines_sorter, encoded_sorter] {
        let mut sorter = make(8 << 20);
        sorter.begin(0);
        assert_eq!(sorter.feed(b"b\na\nc"), Ok(5));
        assert!(sorter.slab.free() > 0);
        sorter.release_memory();
        assert!(sorter.is_empty() && sorter.records() == 0 && sorter.slab.free() == 0);
        sorter.begin(70);
        assert_eq!(sorter.feed(b"2\n1\n"), Ok(4));
        assert_eq!(sorted(&mut sorter), "1\n2\n");
    }
}

#[test]
fn a_truncated_fixed_record_is_named() {
    let order = Order::new(&SortSpec::new(Format::fixed(4))).expect("a valid spec");
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

/// Feeds all of it, leaving out what is too long; the lines that were taken and those that were
/// not, each as (position, length).
fn without_long_lines(
    sorter: &mut ChunkSorter,
    bytes: &[u8],
    step: usize,
) -> (Vec<String>, Vec<(u64, usize)>) {
    let (mut taken, mut left_out) = (Vec::new(), Vec::new());
    let mut keep = |sorter: &mut ChunkSorter| {
        taken.extend(sorted(sorter).lines().map(str::to_owned));
        sorter.reset();
    };
    let mut at = 0;
    sorter.begin(0);
    while at < bytes.len() {
        let end = (at + step).min(bytes.len());
        match sorter.feed(&bytes[at..end]) {
            Ok(fed) => {
                at += fed;
                if at < end {
                    keep(sorter);
                }
            }
            Err(KernelError::RecordTooLong { .. } | KernelError::Budget { .. }) => {
                let (position, held) = sorter.open_record();
                let behind = position as usize + held.len();
                assert_eq!(held, &bytes[position as usize..behind]);
                let len = memchr::memchr(b'\n', &bytes[behind..]).unwrap_or(bytes.len() - behind)
                    + held.len();
                left_out.push((position, len));
                sorter.discard_open();
                at = (position as usize + len + 1).min(bytes.len());
                sorter.begin(at as u64);
            }
            Err(other) => panic!("{other}"),
        }
    }
    while !sorter.end_object().expect("the last line fits") {
        keep(sorter);
    }
    keep(sorter);
    taken.sort_unstable();
    (taken, left_out)
}

#[test]
fn long_lines_are_left_out_wherever_reads_and_chunks_end() {
    let mut state = 7_u64;
    for round in 0..40 {
        let mut input = Vec::new();
        for _ in 0..60 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let len = if state >> 60 < 3 { 95 + (state >> 40) % 12 } else { (state >> 40) % 20 };
            input.extend(std::iter::repeat_n(b'a' + (state >> 35) as u8 % 26, len as usize));
            input.push(b'\n');
        }
        if round % 2 == 0 {
            input.pop();
        }
        let lines = || {
            input
                .split_inclusive(|&byte| byte == b'\n')
                .map(|line| line.strip_suffix(b"\n").unwrap_or(line))
        };
        let mut expected: Vec<String> = lines()
            .filter(|line| line.len() <= 100)
            .map(|line| String::from_utf8_lossy(line).into_owned())
            .collect();
        expected.sort_unstable();
        let mut position = 0;
        let mut long = Vec::new();
        for line in lines() {
            if line.len() > 100 {
                long.push((position, line.len()));
            }
            position += line.len() as u64 + 1;
        }
        for make in [lines_sorter, encoded_sorter] {
            for budget in [600, 1000, 1 << 20] {
                for step in [1, 7, 64, 5000] {
                    let mut sorter = make(budget).with_record_bytes_max(100);
                    let (taken, left_out) = without_long_lines(&mut sorter, &input, step);
                    assert_eq!(
                        (&taken, &left_out),
                        (&expected, &long),
                        "round {round}, budget {budget} by {step}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_torn_record_can_be_left_out() {
    let mut sorter = ChunkSorter::new(
        Arc::new(Order::new(&SortSpec::new(Format::fixed(3))).expect("a valid spec")),
        1000,
    );
    sorter.begin(0);
    assert_eq!(sorter.feed(b"defabcgh"), Ok(8));
    assert!(matches!(sorter.end_object(), Err(KernelError::BadRecord { position: 6, .. })));
    assert_eq!(sorter.open_record(), (6, &b"gh"[..]));
    sorter.discard_open();
    assert_eq!(sorter.end_object(), Ok(true));
    sorter.begin(8);
    assert_eq!(sorter.feed(b"aaa"), Ok(3));
    assert_eq!(sorted(&mut sorter), "aaaabcdef");
}

#[test]
fn refused_memory_is_an_error_or_an_earlier_chunk() {
    let mut sorter = lines_sorter(16 << 20).with_memory_grant(|_| false);
    sorter.begin(0);
    assert!(matches!(sorter.feed(b"a\n"), Err(KernelError::Memory { .. })));
    let mut sorter = lines_sorter(16 << 20).with_memory_grant(|bytes| bytes <= 1 << 20);
    sorter.begin(0);
    let input = b"some line\n".repeat(200_000);
    let taken = sorter.feed(&input).expect("what is held is written first");
    assert!(taken > 0 && taken < input.len());
}

#[test]
fn a_flipped_bit_of_a_held_record_is_noticed() {
    for make in [lines_sorter, encoded_sorter] {
        for seed in 1..2000_u64 {
            let mut sorter = make(1 << 20);
            sorter.begin(0);
            assert_eq!(sorter.feed(b"10\n2\nabc\n\n7\n").expect("records fit"), 12);
            assert!(sorter.end_object().expect("it fits"));
            sorter.flip_bit(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let chunk = sorter.sort();
            let mut sums = Sums::default();
            chunk.records().for_each(|record| sums.add(LINES.frame().body(record)));
            // A record without its terminator runs into the next: the blocks of the run then hold
            // fewer than they say.
            let terminators = chunk.records().flatten().filter(|byte| **byte == b'\n').count();
            assert!(sums != chunk.input_sums() || terminators < 5, "seed {seed}");
        }
    }
}

#[test]
fn a_long_record_counts_with_what_it_takes_where_it_is_written_and_merged() {
    const BYTES: usize = 3 << 20;
    let line = [vec![b'x'; BYTES], b"\n".to_vec()].concat();
    for make in [lines_sorter, encoded_sorter] {
        let budget = ChunkSorter::budget_for(&make(1).order, BYTES as u64) as usize;
        assert!(budget > 5 * BYTES);
        let mut sorter = make(budget);
        sorter.begin(0);
        assert_eq!(sorter.feed(&line), Ok(line.len()));
        let mut sorter = make(budget / 2);
        sorter.begin(0);
        let error = sorter.feed(&line).expect_err("there is room for it once, and no more");
        assert!(matches!(error, KernelError::Budget { position: 0, .. }), "{error}");
        // Without it, the others have all of the memory again.
        sorter.discard_open();
        sorter.begin(line.len() as u64);
        let short = b"1\n".repeat(budget / 2 / 64);
        assert_eq!(sorter.feed(&short), Ok(short.len()));
    }
}

#[test]
fn memory_that_is_free_is_released_before_a_long_record_is_written() {
    static RELEASED: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    let released = || RELEASED.swap(0, std::sync::atomic::Ordering::Relaxed);
    let mut sorter = lines_sorter(64 << 20).with_memory_release(|free| {
        RELEASED.fetch_add(free.len(), std::sync::atomic::Ordering::Relaxed);
    });
    sorter.begin(0);
    sorter.feed(b"b\na\n").expect("room");
    assert_eq!(sorted(&mut sorter), "a\nb\n");
    assert_eq!(released(), 0, "short records lie within I/O buffers");
    sorter.reset();
    let line = [vec![b'x'; 3 << 20], b"\n".to_vec()].concat();
    sorter.begin(4);
    assert_eq!(sorter.feed(&line), Ok(line.len()));
    sorter.sort();
    let free = released();
    assert!(free > 40 << 20, "{free} of 61 MiB");
    sorter.reset();
    sorter.sort();
    assert_eq!(released(), 0);
}
