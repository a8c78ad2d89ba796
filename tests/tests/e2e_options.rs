//! The letters of sort(1), held against sort(1) itself: the same options on the same data give the
//! same bytes, also where equal keys span parts.

use std::path::PathBuf;

use muster_tests::harness::data::{for_nul_terminators, log_lines, odd_lines, table, words};
use muster_tests::harness::{Sandbox, arg, oracle};

/// Sorts with each list of options, by muster in many small tasks and by sort(1), and compares.
/// Gives how many parts each made.
#[track_caller]
fn check_all(files: &[(&str, Vec<u8>)], split_bytes: usize, lists: &[&[&str]]) -> Vec<usize> {
    let sandbox = Sandbox::new();
    let config = sandbox.small_tasks(split_bytes, split_bytes);
    let inputs: Vec<PathBuf> =
        files.iter().map(|(name, bytes)| sandbox.file(name, bytes)).collect();
    let check = |(number, options): (usize, &&[&str])| {
        let mut arguments: Vec<&str> = inputs.iter().map(|path| arg(path)).collect();
        arguments.extend(["--format", "lines", "--config", arg(&config)]);
        arguments.extend(*options);
        let output = sandbox.path(format!("out-{number}"));
        let (_, result) = sandbox.sort_here(&output, arguments);
        oracle::assert_same_bytes(
            &result.concatenated(),
            &oracle::gnu_sort(options, &inputs),
            &format!("sort {options:?}"),
        );
        result.assert_is(&result.concatenated());
        std::fs::remove_dir_all(output).expect("an output can be removed");
        result.parts.len()
    };
    lists.iter().enumerate().map(check).collect()
}

/// Few keys, many lines of each: every list that does not drop equal keys must come out in several
/// parts.
#[track_caller]
fn check_spanning(files: &[(&str, Vec<u8>)], split_bytes: usize, lists: &[&[&str]]) {
    for (parts, options) in check_all(files, split_bytes, lists).into_iter().zip(lists) {
        assert!(parts > 2, "sort {options:?} made {parts} parts only");
    }
}

fn numbers() -> Vec<(&'static str, Vec<u8>)> {
    vec![("a", table(1_500, ',', 1)), ("b", table(1_500, ',', 2))]
}

const SPLIT: usize = 6 << 10;

#[test]
fn whole_lines() {
    let lists: &[&[&str]] = &[&[], &["-r"], &["-s"], &["-s", "-r"]];
    check_spanning(&numbers(), SPLIT, lists);
    check_all(&[("odd", odd_lines(2_000, 3))], 256 << 10, &[&["-r"], &["-u"], &["-u", "-r"]]);
}

#[test]
fn whole_lines_by_number() {
    check_spanning(&numbers(), SPLIT, &[&["-n"], &["-nr"], &["-n", "-s"], &["-n", "-r", "-s"]]);
}

#[test]
fn unique_lines() {
    check_all(
        &numbers(),
        SPLIT,
        &[&["-u"], &["-u", "-r"], &["-n", "-u"], &["-n", "-u", "-r"], &["-u", "-s"]],
    );
}

#[test]
fn keys_between_separators() {
    check_spanning(
        &numbers(),
        SPLIT,
        &[
            &["-t", ",", "-k2,2"],
            &["-t,", "-k2,2", "-s"],
            &["-t,", "-k2"],
            &["-t,", "-k2.2,2.3"],
            &["-t,", "-k3"],
            &["-t,", "-r", "-k2,2"],
        ],
    );
}

#[test]
fn keys_by_number() {
    check_spanning(
        &numbers(),
        SPLIT,
        &[
            &["-t,", "-k1,1n"],
            &["-t,", "-k1,1n", "-s"],
            &["-t,", "-k3,3nr"],
            &["-t,", "-k3,3nr", "-s"],
            &["-t,", "-n", "-k3,3"],
            &["-t,", "-n", "-k3,3", "-k2,2r"],
        ],
    );
}

#[test]
fn several_keys() {
    check_spanning(
        &numbers(),
        SPLIT,
        &[
            &["-t,", "-k2,2", "-k1,1n"],
            &["-t,", "-k2,2r", "-k3,3n"],
            &["-t,", "-k3,3n", "-k2,2", "-s"],
            &["-t,", "-r", "-k3,3n", "-k2,2"],
            &["-t,", "-k2,3", "-k1,1nr"],
        ],
    );
}

#[test]
fn unique_keys_keep_the_first_line() {
    check_all(
        &numbers(),
        SPLIT,
        &[
            &["-t,", "-k2,2", "-u"],
            &["-t,", "-k1,1n", "-u"],
            &["-t,", "-k3,3n", "-k2,2", "-u"],
            &["-t,", "-k3,3nr", "-u"],
            &["-t,", "-k2,2", "-u", "-r"],
            &["-t,", "-k2,2", "-u", "-s"],
        ],
    );
}

#[test]
fn fields_between_blanks() {
    let files = [
        ("log", log_lines(2_000, 4)),
        ("blank", table(1_000, ' ', 5)),
        ("tab", table(500, '\t', 6)),
    ];
    check_spanning(
        &files,
        24 << 10,
        &[
            &["-k2,2"],
            &["-k2,2", "-s"],
            &["-k2"],
            &["-k3.2,4.1"],
            &["-k6,6n"],
            &["-k5,5nr", "-k2,2"],
            &["-k2b,2"],
            &["-b", "-k3"],
        ],
    );
    check_all(&files, 24 << 10, &[&["-k2,2", "-u"], &["-k6,6n", "-u"]]);
}

#[test]
fn lines_that_end_with_nul() {
    let files = [
        ("table", for_nul_terminators(table(2_000, ',', 7))),
        ("odd", for_nul_terminators(odd_lines(400, 8))),
    ];
    check_all(
        &files,
        64 << 10,
        &[
            &["-z"],
            &["-z", "-r"],
            &["-z", "-u"],
            &["-z", "-n"],
            &["-z", "-t,", "-k2,2", "-s"],
            &["-z", "-t,", "-k3,3nr", "-u"],
        ],
    );
}

#[test]
fn fields_that_are_missing_or_odd() {
    let files = [("odd", odd_lines(1_500, 9)), ("words", words(3_000, 10))];
    check_all(
        &files,
        256 << 10,
        &[
            &["-k2,2"],
            &["-k9"],
            &["-k1.30"],
            &["-t-", "-k2,2"],
            &["-t-", "-k2,2n", "-s"],
            &["-k1,1n", "-u"],
        ],
    );
}

#[test]
fn letters_that_fold_and_skip() {
    let files = [("words", words(4_000, 11)), ("table", table(500, ',', 12))];
    check_all(
        &files,
        16 << 10,
        &[
            &["-f"],
            &["-d"],
            &["-i"],
            &["-f", "-u"],
            &["-f", "-s"],
            &["-b"],
            &["-t,", "-k2,2f", "-s"],
            &["-df", "-u"],
        ],
    );
}

#[test]
fn a_hot_key_spans_parts() {
    let files = [("log", log_lines(12_000, 13))];
    let lists: &[&[&str]] =
        &[&["-k2,2"], &["-k2,2", "-s"], &["-s", "-k2,2", "-r"], &["-k5,5n", "-s"]];
    let parts = check_all(&files, 48 << 10, lists);
    // Six in ten lines have one host, two thirds of the rest are 200s: 1.2 MB in parts of 48 kB
    // cannot do without cutting that key.
    assert!(parts.iter().all(|parts| *parts >= 12), "{parts:?}");
}

/// The first of the order, wherever parts and chunks are cut: within the first part, at a bound,
/// over several parts, beyond the end; of equal keys, too, which of them are first is decided.
#[test]
fn the_first_so_many_are_kept() {
    let sandbox = Sandbox::new();
    let config = sandbox.small_tasks(16 << 10, 8 << 10);
    let inputs =
        [sandbox.file("log", log_lines(3_000, 21)), sandbox.file("words", words(3_000, 22))];
    let check = |options: &[&str], top: usize| {
        let mut arguments: Vec<&str> = inputs.iter().map(|path| arg(path)).collect();
        let count = top.to_string();
        arguments.extend(["--config", arg(&config), "--partitions", "5", "--top", &count]);
        arguments.extend(options);
        let output = sandbox.path("out");
        let (_, result) = sandbox.sort_here(&output, arguments);
        let all = oracle::gnu_sort(options, &inputs);
        let first: Vec<u8> =
            all.split_inclusive(|byte| *byte == b'\n').take(top).flatten().copied().collect();
        result.assert_is(&first);
        assert_eq!(result.parts.len(), 5, "as many parts as were asked for");
        std::fs::remove_dir_all(output).expect("an output can be removed");
    };
    for top in [1, 700, 5_000, 1_000_000] {
        check(&[], top);
        check(&["-u", "-k2,2"], top);
    }
    check(&["-r"], 2_000);
    check(&["-s", "-k2,2", "-r"], 2_000);
    check(&["-u", "-f", "-r"], 2_000);
}

#[test]
fn long_hundreds_of_megabytes_of_text() {
    let files = [("log", log_lines(3_000_000, 14)), ("words", words(5_000_000, 15))];
    let lists: &[&[&str]] =
        &[&[], &["-s", "-k2,2"], &["-k2,2"], &["-u", "-k2,2"], &["-k6,6nr", "-s"], &["-u"]];
    check_all(&files, 16 << 20, lists);
}
