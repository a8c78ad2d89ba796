//! Processes that die in the midst of a job. In every case the job ends with the right bytes,
//! finished work is not repeated, and nothing is left over.
//!
//! Phases are hit by holding workers (or the coordinator) at a gate before the bucket, so that the
//! moment lasts until the test has done its deed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use muster_protocol::ids::{AttemptId, TaskId};
use muster_tests::harness::data::{Keys, records};
use muster_tests::harness::process::any_with_argument;
use muster_tests::harness::sandbox::{LOG_ATTEMPTS, files_below};
use muster_tests::harness::{
    Bucket, Gate, Output, Pool, Process, S3Server, Sandbox, arg, journal, oracle, process, wait,
};
use rustix::process::Signal;
use serde_json::Value;

const BUCKET: &str = "data";
/// About 24 sort tasks and as many merges of 2.4 MB.
const RECORDS: usize = 24_000;
const SMALL: usize = 100_000;
/// Added to each request of a worker, so that phases last for seconds.
const DELAY: Duration = Duration::from_millis(40);

fn begins_an_upload(request: &str) -> bool {
    request.starts_with("PUT ") || request.starts_with("POST ")
}

fn completes_an_upload(request: &str) -> bool {
    request.starts_with("POST ") && request.contains("uploadId=")
}

/// A job on a pool of three workers with a bucket, ready to be disturbed.
struct Scene<'a> {
    pool: Pool<'a>,
    bucket: Bucket,
    data: Vec<u8>,
    sort: Process,
}

impl<'a> Scene<'a> {
    /// Starts servers and pool, lets `prepare` set gates, and submits the job.
    fn start(sandbox: &'a Sandbox, s3: &S3Server, prepare: impl Fn(&Pool<'_>)) -> Self {
        let bucket = s3.bucket(BUCKET);
        let data = records(RECORDS, Keys::Skewed, 1);
        bucket.put("in", &data);
        let pool = Pool::on_bucket(sandbox, 3, s3, BUCKET);
        pool.slow_workers(DELAY);
        prepare(&pool);
        let config = sandbox.small_tasks(SMALL, SMALL);
        let (from, to) = (bucket.url("in"), bucket.url("out"));
        let sort = pool.start_sort(
            "job",
            [&from, "-o", &to, "--format", "fixed:100", "-k", "0:10", "--config", arg(&config)],
        );
        Self { pool, bucket, data, sort }
    }

    /// Opens all gates, and checks that the job succeeds with the right bytes and leaves nothing
    /// else. Gives its report.
    #[track_caller]
    fn finish(self) -> Value {
        self.pool.each_worker_gate(Gate::open);
        self.pool.coordinator_gate().open();
        let report = self.pool.finish_sort(self.sort);
        self.pool.assert_nothing_repeated("job", &report);
        Output::of_bucket(&self.bucket, "out").assert_is(&oracle::fixed(&self.data, 100, 0, 10));
        wait::until_empty("in scratch", || self.bucket.list("scratch"));
        wait::until_empty("as open uploads", || self.bucket.uploads());
        report
    }
}

/// Tasks of which workers began more than one attempt. Whether the first one counts as a retry
/// depends on who was quicker: the death's detector, or a second attempt of a task that is slow.
fn tried_again(sandbox: &Sandbox) -> usize {
    let mut attempts: BTreeMap<TaskId, BTreeSet<AttemptId>> = BTreeMap::new();
    for begin in journal::begins_in(&sandbox.logs()) {
        attempts.entry(begin.attempt.task).or_default().insert(begin.attempt);
    }
    attempts.values().filter(|attempts| attempts.len() > 1).count()
}

#[test]
fn a_worker_dies_while_sampling() {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    let mut scene = Scene::start(&sandbox, &s3, |pool| pool.worker_gate(0).hold_all());
    scene.pool.worker_gate(0).wait_for_request("worker 0 to sample", wait::RUN_BOUND);
    assert_eq!(scene.pool.status("job").unwrap()["state"], "sampling");
    scene.pool.kill_worker(0);
    let report = scene.finish();
    assert!(tried_again(&sandbox) > 0, "the dead worker's task ran nowhere else: {report}");
}

/// One whose way to the store is closed for good fails what it has, takes no more, and ends with a
/// code that supervisors restart; its tasks run elsewhere.
#[test]
fn a_worker_that_is_cut_off_from_its_store_ends() {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    let scene = Scene::start(&sandbox, &s3, |pool| pool.each_worker_gate(Gate::hold_all));
    let config = sandbox
        .file("cut-off.toml", "[worker]\nstore_wait_ms = 2000\n[retry.store]\ntotal_ms = 3000\n");
    let mut command = sandbox.muster();
    command.args([
        "worker",
        "--id",
        "cut-off",
        "--threads",
        "1",
        "--profile",
        "testing",
        "--config",
        arg(&config),
    ]);
    command
        .env("NATS_URL", scene.pool.nats.url())
        .envs(s3.environment())
        .env("AWS_ENDPOINT_URL", "http://127.0.0.1:9");
    let mut cut_off = Process::spawn("cut-off", command, &sandbox.logs());
    let ended = cut_off.wait(wait::RUN_BOUND);
    assert_eq!(process::exit_code(ended), 3, "{}", cut_off.stderr());
    cut_off.wait_for_log("worker.store_wait_ms", Duration::ZERO);
    scene.finish();
    assert!(tried_again(&sandbox) > 0, "what it had at hand ran nowhere else");
}

#[test]
fn a_worker_dies_while_sorting() {
    worker_dies("sorting");
}

#[test]
fn a_worker_dies_while_merging() {
    worker_dies("merging");
}

fn worker_dies(state: &str) {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    let mut scene = Scene::start(&sandbox, &s3, |_| {});
    scene.pool.hold_in_the_midst_of("job", state);
    // It holds a task, and stays with it at its gate.
    scene.pool.worker_gate(1).wait_for_request("worker 1 to be at work", wait::RUN_BOUND);
    scene.pool.kill_worker(1);
    let report = scene.finish();
    assert!(tried_again(&sandbox) > 0, "the dead worker's task ran nowhere else: {report}");
}

#[test]
fn a_worker_dies_while_the_job_commits() {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    let mut scene = Scene::start(&sandbox, &s3, |pool| {
        pool.coordinator_gate().hold_after(2, completes_an_upload);
    });
    scene
        .pool
        .coordinator_gate()
        .wait_for_request("the third part's upload to be completed", wait::RUN_BOUND);
    scene.pool.kill_worker(2);
    scene.finish();
}

#[test]
fn a_worker_that_comes_back_takes_part_again() {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    let mut scene = Scene::start(&sandbox, &s3, |_| {});
    scene.pool.hold_in_the_midst_of("job", "sorting");
    for worker in 0..3 {
        scene.pool.kill_worker(worker);
    }
    // Alone, and under its old id: without it the job could not end.
    scene.pool.start_worker(1);
    scene.finish();
}

#[test]
fn the_coordinator_dies_while_sampling() {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    let mut scene = Scene::start(&sandbox, &s3, |pool| pool.each_worker_gate(Gate::hold_all));
    scene.pool.worker_gate(0).wait_for_request("worker 0 to sample", wait::RUN_BOUND);
    assert_eq!(scene.pool.status("job").unwrap()["state"], "sampling");
    scene.pool.kill_coordinator();
    scene.pool.start_coordinator();
    scene.finish();
}

#[test]
fn the_coordinator_dies_while_sorting() {
    coordinator_dies("sorting");
}

#[test]
fn the_coordinator_dies_while_merging() {
    coordinator_dies("merging");
}

fn coordinator_dies(state: &str) {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    let mut scene = Scene::start(&sandbox, &s3, |_| {});
    let before = scene.pool.hold_in_the_midst_of("job", state);
    scene.pool.kill_coordinator();
    scene.pool.start_coordinator();
    let after = wait::until("the new coordinator to know the job", wait::RUN_BOUND, || {
        scene.pool.status("job")
    });
    assert_eq!(after["state"], before["state"], "{after}");
    assert!(
        after["tasks_done"].as_u64() >= before["tasks_done"].as_u64(),
        "committed tasks were forgotten: {before} became {after}"
    );
    scene.finish();
}

#[test]
fn the_coordinator_dies_while_the_job_commits() {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    // Two parts are there, the others are open uploads: the new coordinator must complete just
    // those.
    let mut scene = Scene::start(&sandbox, &s3, |pool| {
        pool.coordinator_gate().hold_after(2, completes_an_upload);
    });
    scene
        .pool
        .coordinator_gate()
        .wait_for_request("the third part's upload to be completed", wait::RUN_BOUND);
    assert!(Output::of_bucket(&scene.bucket, "out").success.is_none());
    scene.pool.kill_coordinator();
    scene.pool.coordinator_gate().open();
    scene.pool.start_coordinator();
    let report = scene.finish();
    assert_eq!(report["retries"], 0, "{report}");
}

#[test]
fn the_coordinator_dies_between_the_parts_and_success() {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    let mut scene = Scene::start(&sandbox, &s3, |pool| {
        pool.coordinator_gate()
            .hold(|request| begins_an_upload(request) && request.contains("_SUCCESS"));
    });
    scene.pool.coordinator_gate().wait_for_request("_SUCCESS to be written", wait::RUN_BOUND);
    scene.pool.kill_coordinator();
    let output = Output::of_bucket(&scene.bucket, "out");
    assert!(output.success.is_none() && !output.parts.is_empty());
    scene.pool.coordinator_gate().open();
    scene.pool.start_coordinator();
    scene.finish();
}

#[test]
fn the_coordinator_dies_again_and_again() {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    let mut scene = Scene::start(&sandbox, &s3, |_| {});
    for state in ["sorting", "merging"] {
        for _ in 0..2 {
            scene.pool.hold_in_the_midst_of("job", state);
            scene.pool.kill_coordinator();
            scene.pool.start_coordinator();
            scene.pool.each_worker_gate(Gate::open);
            scene.pool.slow_workers(DELAY);
        }
    }
    scene.finish();
}

#[test]
fn the_nats_server_dies_while_sorting() {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    let mut scene = Scene::start(&sandbox, &s3, |_| {});
    scene.pool.hold_in_the_midst_of("job", "sorting");
    scene.pool.nats.server(0).crash_and_restart(&sandbox);
    scene.finish();
}

#[test]
fn input_that_changes_under_a_job_fails_it() {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    let mut scene = Scene::start(&sandbox, &s3, |_| {});
    scene.pool.hold_in_the_midst_of("job", "sorting");
    scene.bucket.put("in", &records(RECORDS, Keys::Random, 2));
    scene.pool.each_worker_gate(Gate::open);
    let code = process::exit_code(scene.sort.wait(wait::RUN_BOUND));
    let said = scene.sort.stderr();
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("changed") && said.contains(&scene.bucket.url("in")), "{said}");
    wait::until_empty("in scratch", || scene.bucket.list("scratch"));
    wait::until_empty("as open uploads", || scene.bucket.uploads());
    Output::of_bucket(&scene.bucket, "out").assert_nothing();
}

/// A local run whose data lies in a bucket behind a gate.
fn local_run_on_a_bucket(
    sandbox: &Sandbox,
    s3: &S3Server,
    bucket: &Bucket,
    gate: &Gate,
) -> Command {
    let config = sandbox.small_tasks(SMALL, SMALL);
    let mut command = sandbox.muster();
    command.args([
        "sort",
        "--json",
        &bucket.url("in"),
        "-o",
        &bucket.url("out"),
        "--format",
        "fixed:100",
        "-k",
        "0:10",
        "--local=2",
    ]);
    command.arg("--config").arg(config).arg("--data-dir").arg(sandbox.path("data"));
    command.envs(s3.environment()).env("AWS_ENDPOINT_URL", gate.endpoint()).envs([LOG_ATTEMPTS]);
    command
}

#[test]
fn a_local_run_that_was_killed_resumes() {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    let (bucket, gate) = (s3.bucket(BUCKET), Gate::before(s3.port()));
    let data = records(RECORDS, Keys::Skewed, 1);
    bucket.put("in", &data);
    let data_dir = sandbox.path("data").display().to_string();

    // Once in the midst of the sort, once in the midst of the commit.
    for (pass_first, choice) in
        [(12, begins_an_upload as fn(&str) -> bool), (3, completes_an_upload)]
    {
        gate.hold_after(pass_first, choice);
        let mut run = Process::spawn(
            "run",
            local_run_on_a_bucket(&sandbox, &s3, &bucket, &gate),
            &sandbox.logs(),
        );
        gate.wait_for_request("the run to be in the midst of it", wait::RUN_BOUND);
        let second = sandbox
            .run_command(local_run_on_a_bucket(&sandbox, &s3, &bucket, &gate), wait::RUN_BOUND);
        assert_ne!(second.code, 0, "two runs share one data folder");
        second.expect_error(&[&data_dir]);
        run.kill();
        wait::until("the private server to die with the run", Duration::from_secs(10), || {
            (!any_with_argument(&data_dir)).then_some(())
        });
        assert!(Output::of_bucket(&bucket, "out").success.is_none());
        gate.open();
    }
    let done = sandbox
        .run_command(local_run_on_a_bucket(&sandbox, &s3, &bucket, &gate), wait::RUN_BOUND)
        .expect_code(0);
    sandbox.assert_nothing_repeated(&sandbox.path("data"), &done);
    Output::of_bucket(&bucket, "out").assert_is(&oracle::fixed(&data, 100, 0, 10));
    assert_eq!(bucket.uploads(), Vec::<String>::new());
    sandbox.assert_no_temporaries();
}

#[test]
fn a_local_run_on_files_that_was_killed_resumes() {
    let sandbox = Sandbox::new();
    let data = records(400_000, Keys::Random, 3);
    let (input, output, config) =
        (sandbox.file("in", &data), sandbox.path("out"), sandbox.small_tasks(128 << 10, 1 << 20));
    let command = || {
        let mut command = sandbox.muster();
        command.args([
            "sort",
            "--json",
            arg(&input),
            "-o",
            arg(&output),
            "--format",
            "fixed:100",
            "-k",
            "0:10",
        ]);
        command
            .arg("--local=2")
            .arg("--config")
            .arg(&config)
            .arg("--data-dir")
            .arg(sandbox.path("data"));
        command.envs([LOG_ATTEMPTS]);
        command
    };
    let runs =
        |folder: &Path| files_below(folder).iter().filter(|name| name.ends_with(".run")).count();
    let mut run = Process::spawn("run", command(), &sandbox.logs());
    wait::until("some of the 305 runs to be written", wait::RUN_BOUND, || {
        run.assert_running();
        (runs(&output) + runs(&sandbox.path("data")) >= 20).then_some(())
    });
    run.kill();
    assert!(
        !output.join("_SUCCESS").exists(),
        "it was quicker than its killer: more records are needed"
    );
    let done = sandbox.run_command(command(), wait::RUN_BOUND).expect_code(0);
    sandbox.assert_nothing_repeated(&sandbox.path("data"), &done);
    Output::of_folder(&output).assert_is(&oracle::fixed(&data, 100, 0, 10));
    sandbox.assert_no_temporaries();
}

/// A run on a bucket that gets a signal in the midst of it: how it ended, and what is in the bucket
/// then. With `nohup` it ignores SIGHUP from the start.
#[track_caller]
fn signalled(signal: Signal, nohup: bool) -> (i32, String, Vec<String>) {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    let (bucket, gate) = (s3.bucket(BUCKET), Gate::before(s3.port()));
    bucket.put("in", &records(RECORDS, Keys::Random, 4));
    let config = sandbox.small_tasks(SMALL, SMALL);
    let mut command = sandbox.clean_command("sh");
    let ignore = if nohup { "trap '' HUP; " } else { "" };
    command.args(["-c", &format!("{ignore}exec \"$@\""), "sh"]).arg(sandbox.muster().get_program());
    command.args([
        "sort",
        &bucket.url("in"),
        "-o",
        &bucket.url("out"),
        "--format",
        "fixed:100",
        "-k",
        "0:10",
    ]);
    command.args(["--local=2", "--config"]);
    command.arg(config).envs(s3.environment()).env("AWS_ENDPOINT_URL", gate.endpoint());
    gate.hold_after(12, begins_an_upload);
    let mut run = Process::spawn("run", command, &sandbox.logs());
    gate.wait_for_request("the run to be in the midst of it", wait::RUN_BOUND);
    run.signal(signal);
    gate.open();
    let code = process::exit_code(run.wait(Duration::from_secs(60)));
    assert_eq!(bucket.uploads(), Vec::<String>::new());
    sandbox.assert_no_temporaries();
    assert!(
        fs::read_dir(sandbox.path("tmp")).expect("folder").next().is_none(),
        "a folder stays in the temporary folder"
    );
    (code, run.stderr(), bucket.list(""))
}

#[test]
fn a_local_run_that_is_interrupted_cleans_up() {
    let (code, said, left) = signalled(Signal::INT, false);
    assert_eq!((code, left), (130, vec!["in".to_owned()]), "{said}");
}

/// A lost ssh: before, the run was killed, and left parts in OUTPUT and its folder in TMPDIR.
#[test]
fn a_local_run_whose_terminal_is_gone_cleans_up() {
    let (code, said, left) = signalled(Signal::HUP, false);
    assert_eq!((code, left), (130, vec!["in".to_owned()]), "{said}");
}

#[test]
fn a_local_run_under_nohup_outlives_its_terminal() {
    let (code, said, left) = signalled(Signal::HUP, true);
    assert_eq!(code, 0, "{said}");
    assert!(left.contains(&"out/_SUCCESS".to_owned()), "{left:?}");
}

/// The second time the store gives each part the tag that the old one has: nothing tells them
/// apart, and nothing needs to.
#[test]
fn the_same_sort_again_with_overwrite_succeeds() {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    let bucket = s3.bucket(BUCKET);
    let data = records(4_000, Keys::Random, 1);
    bucket.put("in/a", &data);
    let (from, to, config) =
        (bucket.url("in/"), bucket.url("out"), sandbox.small_tasks(SMALL, SMALL));
    for (turn, more) in
        [vec![], vec!["--overwrite"], vec!["--overwrite", "--fsync"]].into_iter().enumerate()
    {
        let job = format!("job-{turn}");
        let mut command = sandbox.muster();
        command.args([
            "sort",
            &from,
            "-o",
            &to,
            "--format",
            "fixed:100",
            "-k",
            "0:10",
            "--job-id",
            &job,
        ]);
        command.args(["--local=1", "--config", arg(&config)]).args(more).envs(s3.environment());
        sandbox.run_command(command, wait::RUN_BOUND).expect_code(0);
        let output = Output::of_bucket(&bucket, "out");
        output.assert_is(&oracle::fixed(&data, 100, 0, 10));
        assert!(output.parts.len() > 2, "{} parts", output.parts.len());
        assert_eq!(output.success.expect("a manifest")["job"], job.as_str());
        assert_eq!(bucket.uploads(), Vec::<String>::new());
    }
}

/// What only the first leader was told of is in the manifest of the one that publishes.
#[test]
fn a_take_over_at_the_commit_keeps_the_places_of_malformed_records() {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    let bucket = s3.bucket(BUCKET);
    let data = records(1_000, Keys::Random, 1);
    bucket.put("in", &[&data[..], b"torn"].concat());
    let mut pool = Pool::on_bucket(&sandbox, 1, &s3, BUCKET);
    pool.coordinator_gate()
        .hold(|request| begins_an_upload(request) && request.contains("_SUCCESS"));
    let (from, to) = (bucket.url("in"), bucket.url("out"));
    let sort = pool.start_sort(
        "job",
        [&from, "-o", &to, "--format", "fixed:100", "-k", "0:10", "--bad-records", "quarantine"],
    );
    pool.coordinator_gate().wait_for_request("_SUCCESS to be written", wait::RUN_BOUND);
    pool.kill_coordinator();
    pool.coordinator_gate().open();
    pool.start_coordinator();
    pool.finish_sort(sort);
    let manifest = Output::of_bucket(&bucket, "out").success.expect("a manifest");
    let places = manifest["bad_records"].as_array().expect("places");
    assert_eq!(places.len(), 1, "{manifest}");
    assert_eq!(
        (places[0]["object"].as_str(), places[0]["offset"].as_u64()),
        (Some(from.as_str()), Some(100_000))
    );
}

/// Somebody writes into OUTPUT while the job runs: without `--overwrite` that is seen before
/// anything changes there.
#[test]
fn an_object_that_comes_into_output_meanwhile_fails_the_job_and_stays() {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    let bucket = s3.bucket(BUCKET);
    bucket.put("in", &records(1_000, Keys::Random, 1));
    let pool = Pool::on_bucket(&sandbox, 1, &s3, BUCKET);
    pool.each_worker_gate(Gate::hold_all);
    let (from, to) = (bucket.url("in"), bucket.url("out"));
    let mut sort = pool.start_sort(
        "job",
        [&from, "-o", &to, "--format", "fixed:100", "-k", "0:10", "--partitions", "1"],
    );
    pool.worker_gate(0).wait_for_request("the worker to begin", wait::RUN_BOUND);
    // As long as the part is going to be.
    let theirs = vec![b'x'; 100_000];
    bucket.put("out/part-00000.bin", &theirs);
    pool.each_worker_gate(Gate::open);
    assert_eq!(process::exit_code(sort.wait(wait::RUN_BOUND)), 1, "{}", sort.stderr());
    assert!(
        sort.stderr().contains("part-00000.bin") && sort.stderr().contains("since"),
        "{}",
        sort.stderr()
    );
    assert_eq!(bucket.get("out/part-00000.bin"), theirs);
    wait::until("scratch to be removed", wait::RUN_BOUND, || {
        (bucket.list("out") == ["out/part-00000.bin"]).then_some(())
    });
    wait::until_empty("as open uploads", || bucket.uploads());
}
