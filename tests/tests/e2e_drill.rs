//! `muster drill` itself: a small one that passes, and what it says.

use muster_tests::harness::Sandbox;
use serde_json::Value;

#[test]
fn a_drill_kills_stops_and_cuts_and_proves_the_same_bytes() {
    let sandbox = Sandbox::new();
    let done = sandbox.run([
        "drill",
        "-n",
        "20000",
        "--workers",
        "3",
        "--coordinators",
        "2",
        "--kills",
        "3",
        "--seconds",
        "4",
        "--seed",
        "11",
        "--json",
    ]);
    let report = done.expect_code(0).json();
    assert_eq!(report["passed"], true, "{report}");
    let claims = report["proof"].as_array().expect("claims");
    let names: Vec<&Value> = claims.iter().map(|claim| &claim["name"]).collect();
    assert_eq!(names, ["records", "checksum", "order", "bytes", "left over"]);
    let count = |word: &str| -> u64 {
        let deeds = report["deeds"].as_object().expect("deeds");
        deeds
            .iter()
            .filter(|(what, _)| what.ends_with(word))
            .filter_map(|(_, times)| times.as_u64())
            .sum()
    };
    assert!(count("killed") > 0 && count("stopped") > 0 && count("cut off") > 0, "{report}");
    assert!(report["injected_total"].as_u64() > Some(0), "{report}");
    let timeline = report["timeline"].as_array().expect("timeline");
    for kind in ["deed", "event", "job"] {
        assert!(timeline.iter().any(|moment| moment["kind"] == kind), "no {kind} in {report}");
    }
}

#[test]
fn a_drill_without_deeds_is_a_job_with_faults_alone() {
    let sandbox = Sandbox::new();
    let arguments = [
        "drill",
        "-n",
        "5000",
        "--workers",
        "2",
        "--coordinators",
        "1",
        "--kills",
        "0",
        "--seconds",
        "1",
        "--seed",
        "3",
    ];
    let done = sandbox.run(arguments).expect_code(0);
    assert!(done.stdout.contains("Proof: the same bytes"), "{}", done.stdout);
}

#[test]
fn faults_are_refused_unless_they_are_enabled() {
    let sandbox = Sandbox::new();
    for role in ["worker", "coordinator"] {
        let done =
            sandbox.run([role, "--nats", "nats://127.0.0.1:1", "--faults", "crash"]).expect_code(2);
        assert!(done.stderr.contains("MUSTER_ENABLE_FAULTS=1"), "{}", done.stderr);
    }
}
