//! The table of failures names tests that exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Rows of the design's table of failures: none may go.
const ROWS_MIN: usize = 33;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace is above").to_owned()
}

/// Names of the functions below a folder that are tests.
fn tests_below(folder: &Path, into: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).expect("a folder of sources").flatten() {
        let path = entry.path();
        if path.is_dir() {
            tests_below(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("a source");
            let mut is_test = false;
            for line in text.lines().map(str::trim) {
                is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
                let name = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ");
                if let Some(name) = name.and_then(|rest| rest.split(['(', '<']).next()) {
                    if is_test {
                        into.insert(name.to_owned());
                    }
                    is_test = false;
                }
            }
        }
    }
}

#[test]
fn every_failure_names_tests_that_exist() {
    let mut known = BTreeSet::new();
    for part in [
        "cli/src",
        "common/platform/src",
        "common/protocol/src",
        "coordinator/src",
        "kernel/src",
        "kernel/tests",
        "worker/src",
        "tests/src",
        "tests/tests",
    ] {
        tests_below(&root().join(part), &mut known);
    }
    assert!(
        known.contains("every_failure_names_tests_that_exist"),
        "the sources were read: {}",
        known.len()
    );

    let table = fs::read_to_string(root().join("docs/FAILURES.md")).expect("the table");
    let rows: Vec<&str> = table.lines().filter(|line| line.starts_with("| ")).skip(1).collect();
    assert!(rows.len() >= ROWS_MIN, "{} rows", rows.len());
    for row in rows {
        let (failure, tests) = row.trim_matches('|').split_once(" | ").expect("two columns");
        let named: Vec<&str> = tests.split('`').skip(1).step_by(2).collect();
        assert!(!named.is_empty(), "no test of: {failure}");
        let unknown: Vec<&&str> = named.iter().filter(|name| !known.contains(**name)).collect();
        assert!(unknown.is_empty(), "{failure}: there are no such tests: {unknown:?}");
    }
}
