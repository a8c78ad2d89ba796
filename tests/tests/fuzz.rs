//! Each target of the fuzzing over its seeds and some thousand inputs drawn from them;
//! MUSTER_FUZZ_RUNS says how many. The program `fuzz` does more of the same.
#![expect(clippy::print_stdout, reason = "how many executions there were is a result")]

use std::fs;
use std::path::{Path, PathBuf};

use muster_tests::fuzz::drive::drive;
use muster_tests::fuzz::memory::Counting;
use muster_tests::fuzz::{TARGETS, Target, memory, messages as sent};

#[global_allocator]
static COUNTING: Counting = Counting;

const RUNS: u64 = 20_000;

fn holds(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target");
    let runs = std::env::var("MUSTER_FUZZ_RUNS")
        .map_or(RUNS, |runs| runs.parse().expect("MUSTER_FUZZ_RUNS is a number"));
    let driven = drive(target, 1, runs).unwrap_or_else(|wrong| panic!("{wrong}"));
    assert!(driven.held_bytes_max > 0, "nobody counts the heap");
    println!(
        "{name}: {} executions, at most {} bytes held",
        driven.executions, driven.held_bytes_max
    );
}

macro_rules! targets {
    ($($name:ident),* $(,)?) => {
        $(#[test]
        fn $name() {
            holds(stringify!($name));
        })*

        #[test]
        fn every_target_is_tried() {
            assert_eq!(TARGETS.map(|target| target.name), [$(stringify!($name)),*]);
        }
    };
}

targets!(messages, plans, run_index, run_blocks, splitters, json, journal, keys, names, faults);

/// Unit tests know a version more; this is the build that is handed out.
#[test]
fn golden_bytes_are_what_is_sent() {
    let seeds = sent::seeds();
    assert!(seeds.len() > 30, "{} golden messages", seeds.len());
    assert!(seeds.iter().all(|seed| sent::is_message(seed)));
}

#[test]
fn libfuzzer_has_every_target() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let read = |path: PathBuf| {
        fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    };
    let manifest = read(folder.join("Cargo.toml"));
    let entries: Vec<&str> =
        manifest.lines().filter_map(|line| line.strip_prefix("path = \"fuzz_targets/")).collect();
    assert_eq!(entries, TARGETS.map(|target| format!("{}.rs\"", target.name)));
    for Target { name, .. } in TARGETS {
        let source = read(folder.join("fuzz_targets").join(format!("{name}.rs")));
        assert!(
            source.contains(&format!("muster_tests::fuzz::{name}::target(data)")),
            "{name}: {source}"
        );
    }
}

#[test]
fn memory_is_counted() {
    let held = memory::peak_of(|| drop(std::hint::black_box(vec![0_u8; 1 << 20])));
    assert!((1 << 20..1 << 21).contains(&held), "{held}");
}
