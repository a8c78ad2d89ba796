//! `muster doctor` beside real servers: what is well is said to be, what is not is named, and only
//! what was confirmed is mended.

use std::time::Duration;

use muster_tests::harness::data::{Keys, records};
use muster_tests::harness::{NatsServer, Output, Pool, S3Server, Sandbox, arg, oracle};
use serde_json::Value;

/// Runs it with the settings that pools of tests have, and gives its report.
#[track_caller]
fn doctor(pool: &Pool<'_>, arguments: &[&str], code: i32) -> Value {
    pool.run([&["doctor", "--json", "--profile", "testing"], arguments].concat())
        .expect_code(code)
        .json()
}

/// All findings of a check, as `level: what was seen`.
fn findings(report: &Value, check: &str) -> Vec<String> {
    let all = report["findings"].as_array().expect("findings");
    let of_check = all
        .iter()
        .filter(|finding| finding["check"].as_str().is_some_and(|name| name.starts_with(check)));
    of_check
        .map(|finding| {
            format!(
                "{}: {}",
                finding["level"].as_str().unwrap_or("?"),
                finding["seen"].as_str().unwrap_or("?")
            )
        })
        .collect()
}

#[track_caller]
fn assert_found(report: &Value, check: &str, level: &str, words: &str) {
    let found = findings(report, check);
    assert!(
        found.iter().any(|finding| finding.starts_with(level) && finding.contains(words)),
        "no {level} of {check} that says {words:?} in {report:#}"
    );
}

#[test]
fn a_healthy_deployment_has_no_problem() {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    let bucket = s3.bucket("data");
    let mut pool = Pool::on_bucket(&sandbox, 2, &s3, "data");
    let scratch = bucket.url("scratch");
    let arguments = ["--bucket", &scratch, "--monitor", &pool.nats.server(0).monitor()];
    let report = doctor(&pool, &arguments, 0);
    assert_eq!(report["problems"], 0, "{report:#}");
    assert_found(&report, "nats-version", "ok", "nats-server 2.");
    assert_found(&report, "nats-sync", "ok", "always");
    assert_found(&report, "nats-permissions", "ok", "everything");
    assert_found(&report, "jetstream", "ok", "enabled");
    assert_found(&report, "stream-MUSTER_JOURNAL", "ok", "messages");
    assert_found(&report, "clock", "ok", "ms");
    assert_found(&report, "coordinator", "ok", "epoch 1");
    assert_found(&report, "workers", "ok", "2 healthy (100 %)");
    assert_found(&report, "bucket", "ok", "complete an upload");
    assert_found(&report, "leftovers", "ok", "nothing");
    assert_eq!(
        (bucket.list("scratch"), bucket.uploads()),
        (vec![], vec![]),
        "the doctor left something"
    );
    let text = pool.run(["doctor", "--profile", "testing"]).expect_code(0).stdout;
    assert!(text.contains("ok       nats-version") && text.contains("unknown  bucket"), "{text}");

    pool.kill_coordinator();
    let report = doctor(&pool, &arguments, 1);
    assert_found(&report, "coordinator", "problem", "no leader's beat");
    assert_found(&report, "leftovers", "unknown", "no coordinator");
    assert_eq!(report["problems"], 1, "{report:#}");
}

#[test]
fn scratch_that_nobody_knows_is_removed_when_confirmed_and_that_of_a_running_job_never() {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    let bucket = s3.bucket("data");
    let pool = Pool::on_bucket(&sandbox, 2, &s3, "data");
    let data = records(5_000, Keys::Random, 1);
    bucket.put("in", &data);
    let (from, to, config) =
        (bucket.url("in"), bucket.url("out"), sandbox.small_tasks(64 << 10, 64 << 10));
    pool.slow_workers(Duration::from_millis(50));
    let sort = pool.start_sort(
        "at-work",
        [&from, "-o", &to, "--format", "fixed:100", "-k", "0:10", "--config", arg(&config)],
    );
    pool.hold_in_the_midst_of("at-work", "sorting");
    let before = bucket.list("scratch");
    assert!(
        before.iter().any(|key| key.contains("at-work") && key.ends_with(".run")),
        "{before:?}"
    );

    let planted = "scratch/_muster/dother/long-gone/0.run";
    bucket.put(planted, b"orphaned");
    bucket.open_upload("scratch/_muster/dother/long-gone/1.run");
    let scratch = bucket.url("scratch");
    let report = doctor(&pool, &["--bucket", &scratch], 0);
    assert_found(
        &report,
        "leftovers",
        "warning",
        "_muster/dother/long-gone: 1 objects, 8 B, 1 open uploads",
    );
    assert_eq!(
        findings(&report, "leftovers").len(),
        1,
        "the running job's scratch is no leftover: {report:#}"
    );

    // Nobody to ask, and too fresh to be removed unasked.
    let mend =
        |more: &[&str]| doctor(&pool, &[&["--bucket", &scratch, "--mend"], more].concat(), 0);
    for more in [&[][..], &["--yes"]] {
        assert_eq!(mend(more)["mended"], Value::Array(Vec::new()));
        assert_eq!(bucket.get(planted), b"orphaned");
    }
    let report = mend(&["--yes", "--older-than", "0s"]);
    assert!(
        report["mended"][0].as_str().is_some_and(|what| what.contains("dother/long-gone")),
        "{report:#}"
    );
    let after: Vec<String> = bucket.list("scratch");
    let still: Vec<&String> = before.iter().filter(|key| after.contains(key)).collect();
    assert_eq!(still.len(), before.len(), "the running job lost some of {before:?}: {after:?}");
    assert!(!after.iter().any(|key| key.contains("dother")), "{after:?}");
    assert!(!bucket.uploads().iter().any(|key| key.contains("dother")), "{:?}", bucket.uploads());
    assert_found(&doctor(&pool, &["--bucket", &scratch], 0), "leftovers", "ok", "nothing");

    pool.each_worker_gate(|gate| gate.open());
    pool.finish_sort(sort);
    Output::of_bucket(&bucket, "out").assert_is(&oracle::fixed(&data, 100, 0, 10));
}

#[test]
fn unfinished_uploads_into_an_output_are_aborted_when_confirmed() {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    let bucket = s3.bucket("data");
    let pool = Pool::on_bucket(&sandbox, 1, &s3, "data");
    let output = bucket.url("out");
    assert_found(
        &doctor(&pool, &["--output", &output], 0),
        "output-uploads",
        "ok",
        "no unfinished upload",
    );
    bucket.open_upload("out/part-00000.bin");
    bucket.open_upload("other/part-00000.bin");
    let report = doctor(&pool, &["--output", &output], 0);
    assert_found(&report, "output-uploads", "warning", "1 unfinished uploads");
    assert_found(&report, "output-uploads", "warning", "out/part-00000.bin");
    // How old it is nobody knows, so --yes alone does not do it.
    assert_eq!(
        doctor(&pool, &["--output", &output, "--mend", "--yes"], 0)["mended"],
        Value::Array(Vec::new())
    );
    let report = doctor(&pool, &["--output", &output, "--mend", "--yes", "--older-than", "0s"], 0);
    assert!(
        report["mended"][0].as_str().is_some_and(|what| what.starts_with("1 unfinished uploads")),
        "{report:#}"
    );
    assert_eq!(
        bucket.uploads(),
        ["other/part-00000.bin"],
        "only what lay below --output was aborted"
    );
}

#[test]
fn missing_streams_are_made_when_confirmed() {
    let sandbox = Sandbox::new();
    let nats = NatsServer::start(&sandbox);
    let url = nats.url();
    let doctor = |more: &[&str]| {
        let arguments =
            [&["doctor", "--json", "--profile", "testing", "--nats", &url], more].concat();
        sandbox.run(arguments).expect_code(1).json()
    };
    let report = doctor(&["--mend"]);
    assert_found(&report, "stream-MUSTER_JOURNAL", "problem", "not there");
    assert_found(&report, "coordinator", "problem", "no leader's beat");
    assert_eq!(report["mended"], Value::Array(Vec::new()), "nobody was asked");
    let report = doctor(&["--mend", "--yes"]);
    assert_found(&report, "stream-MUSTER_JOURNAL", "ok", "has been made");
    assert_eq!(report["problems"], 1, "only the coordinator is missing now: {report:#}");
    sandbox.run(["events", "--nats", &url]).expect_code(0);
    sandbox
        .run(["doctor", "--nats", "nats://127.0.0.1:1"])
        .expect_code(3)
        .expect_error(&["127.0.0.1:1"]);
}
