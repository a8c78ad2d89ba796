//! Whatever the sizes of splits, memory, reads and partitions: the output is what the oracle says
//! (P3), nothing is lost (P1).

#[path = "support/specs.rs"]
mod specs;
mod support;

use muster_kernel::format::{Format, Frame};
use muster_kernel::reference::sort_reference;
use muster_kernel::spec::SortSpec;
use proptest::collection::vec;
use proptest::prelude::*;
use support::{Sizes, job};

fn sizes() -> impl Strategy<Value = Sizes> {
    let budget = prop_oneof![1500..6000usize, Just(1 << 20)];
    (1..2000u64, budget, 1..300usize, 1..300usize, 1..8u32).prop_map(
        |(split_bytes, budget_bytes, read_step, window_step, partitions)| Sizes {
            split_bytes,
            budget_bytes,
            read_step,
            window_step,
            partitions,
        },
    )
}

fn lines_case() -> impl Strategy<Value = (SortSpec, Vec<Vec<u8>>)> {
    specs::lines_spec().prop_flat_map(|spec| {
        let Frame::Terminated(terminator) = spec.format.frame() else {
            unreachable!("a spec for lines")
        };
        (Just(spec), vec(specs::lines_object(terminator), 0..5))
    })
}

fn fixed_case() -> impl Strategy<Value = (SortSpec, Vec<Vec<u8>>)> {
    specs::fixed_spec().prop_flat_map(|spec| {
        let Frame::Fixed(len) = spec.format.frame() else {
            unreachable!("a spec for fixed-length records")
        };
        (Just(spec), vec(specs::fixed_object(len as usize), 0..5))
    })
}

fn check(spec: &SortSpec, objects: &[Vec<u8>], sizes: Sizes) {
    let expect = sort_reference(spec, objects).expect("a valid case");
    let outcome = job(spec, objects, sizes).expect("a valid case");
    let shown = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert_eq!(shown(&outcome.output), shown(&expect));
    assert!(outcome.output == expect);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 1500,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn lines_come_out_as_the_oracle_says((spec, objects) in lines_case(), sizes in sizes()) {
        check(&spec, &objects, sizes);
    }

    #[test]
    fn fixed_records_come_out_as_the_oracle_says(
        (spec, objects) in fixed_case(),
        sizes in sizes(),
    ) {
        check(&spec, &objects, sizes);
    }
}

#[test]
fn a_hot_key_is_divided_and_no_partition_swells() {
    let objects = vec![[b"hot\n".repeat(4000), b"cold\nhot\nhot\n".repeat(333)].concat()];
    let sizes = Sizes {
        split_bytes: 5000,
        budget_bytes: 20_000,
        read_step: 777,
        window_step: 999,
        partitions: 10,
    };
    let outcome = job(&SortSpec::new(Format::lines(b'\n')), &objects, sizes).expect("a valid case");
    let partitions = outcome.runs[0].index.partitions();
    assert_eq!(partitions, 10);
    for partition in 0..partitions {
        let records: u64 = outcome
            .runs
            .iter()
            .filter_map(|run| run.index.piece(partition))
            .map(|piece| piece.sums.records)
            .sum();
        assert!(
            (200..1000).contains(&records),
            "partition {partition} has {records} of 4999 records"
        );
    }
}

#[test]
fn long_equal_lines_are_not_quadratic() {
    let line = [vec![b'x'; 8 << 20], b"\n".to_vec()].concat();
    let objects = vec![line.repeat(8), line.repeat(4)];
    let sizes = Sizes {
        split_bytes: 1 << 30,
        budget_bytes: 48 << 20,
        read_step: 1 << 20,
        window_step: 3 << 20,
        partitions: 3,
    };
    let outcome = job(&SortSpec::new(Format::lines(b'\n')), &objects, sizes).expect("a valid case");
    assert_eq!(outcome.output.len(), line.len() * 12);
    assert!(outcome.spills > 1);
}

#[test]
fn nested_prefixes_and_runs_of_equal_keys_are_sorted() {
    let mut object = Vec::new();
    for len in (0..3000).rev() {
        object.extend(std::iter::repeat_n(b'a', len * 7919 % 3000));
        object.push(b'\n');
        object.extend_from_slice(
            format!("2024-01-01T00:00:{:02} same message\n", len % 7).as_bytes(),
        );
    }
    let spec = SortSpec::new(Format::lines(b'\n'));
    let sizes = Sizes {
        split_bytes: 1 << 30,
        budget_bytes: 64 << 20,
        read_step: 1 << 20,
        window_step: 1 << 20,
        partitions: 4,
    };
    check(&spec, &[object], sizes);
}

#[test]
fn a_large_chunk_takes_every_path_of_the_sort() {
    let mut state = 7u64;
    let mut object = Vec::new();
    for number in 0..60_000u64 {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let random = state >> 33;
        let line = match random % 5 {
            0 => format!(
                "2026-01-{:02} the same start of many lines, then {}\n",
                random % 28,
                random >> 20 & 7
            ),
            1 => format!("{:020}\n", random >> 8),
            2 => "hot\n".to_string(),
            3 => format!("{}{}\n", "a".repeat((random >> 8) as usize % 40), number % 3),
            _ => format!("-{}.{:03} {number}\n", random >> 16 & 0xFF, random & 0xFF),
        };
        object.extend_from_slice(line.as_bytes());
    }
    let sizes = Sizes {
        split_bytes: 1 << 20,
        budget_bytes: 64 << 20,
        read_step: 70_000,
        window_step: 9_999,
        partitions: 5,
    };
    let lines = SortSpec::new(Format::lines(b'\n'));
    let by_number = lines.format.rules().parse_key("1,1n").expect("a valid key");
    check(&lines, std::slice::from_ref(&object), sizes);
    check(&SortSpec { unique: true, ..lines.clone() }, std::slice::from_ref(&object), sizes);
    check(&SortSpec { keys: vec![by_number], ..lines }, &[object], sizes);
}
