//! Real chaos in small: processes are killed, paused and cut off by a seeded schedule, and every
//! job ends with the bytes of a calm run. `chaos run` plays it for longer.

use muster_tests::chaos::schedule::Crew;
use muster_tests::chaos::{Settings, play};
use muster_tests::harness::Sandbox;

#[track_caller]
fn check(jobs: usize, seed: u64, faults_min: u64) {
    let mut sandbox = Sandbox::new();
    let crew = Crew { coordinators: 2, workers: 4 };
    let report = play(&sandbox, &Settings { jobs, seed, crew, pause_ms: 350 });
    if !report.violations.is_empty() {
        sandbox.keep();
    }
    assert!(
        report.violations.is_empty(),
        "seed {seed}, logs in {}: {report}",
        sandbox.path("").display()
    );
    assert!(report.fault_count() >= faults_min, "too few faults to show anything: {report}");
    assert!(
        report.succeeded as usize + report.failed.len() == jobs && report.succeeded > 0,
        "{report}"
    );
}

#[test]
fn jobs_survive_chaos() {
    check(8, 1, 20);
}

#[test]
fn long_jobs_survive_more_chaos() {
    for seed in 2..6 {
        check(20, seed, 60);
    }
}
