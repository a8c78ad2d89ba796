//! One OUTPUT, several owners: runs here, pools of other deployments, dead ones and ones that only
//! slept.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use muster_tests::harness::data::{Keys, log_lines, records, words};
use muster_tests::harness::sandbox::files_below;
use muster_tests::harness::{
    Finished, Output, Pool, Process, S3Server, Sandbox, arg, oracle, process, wait,
};
use rustix::process::Signal;

/// Bytes of a split and of a partition where a run is to last for a while.
const SMALL: usize = 64 << 10;
/// Far less than an owner that lives is waited for.
const AT_ONCE: Duration = Duration::from_secs(60);

fn local<'a>(
    sandbox: &Sandbox,
    output: &Path,
    arguments: impl IntoIterator<Item = &'a str>,
) -> Command {
    let mut command = sandbox.muster();
    command.args(["sort", "--local=2", "-o"]).arg(output).args(arguments);
    command
}

fn finished(process: &mut Process) -> Finished {
    let code = process::exit_code(process.wait(wait::RUN_BOUND));
    Finished { code, stdout: process.stdout(), stderr: process.stderr() }
}

/// What is below `_muster` and hidden, which is to be nothing once all have ended.
fn hidden(output: &Path) -> Vec<String> {
    let hidden =
        |name: &String| name.starts_with('_') && name != "_SUCCESS" || name.starts_with('.');
    files_below(output).into_iter().filter(hidden).collect()
}

/// A run here that is killed once it has written into OUTPUT.
#[track_caller]
fn killed_in_the_midst(sandbox: &Sandbox, output: &Path, input: &Path, more: &[&str]) {
    let config = sandbox.small_tasks(SMALL, SMALL);
    let mut arguments =
        vec![arg(input), "--format", "fixed:100", "-k", "0:10", "--config", arg(&config)];
    arguments.extend(more);
    let mut run = Process::spawn("killed", local(sandbox, output, arguments), &sandbox.logs());
    wait::until("an unfinished part in OUTPUT", wait::RUN_BOUND, || {
        run.assert_running();
        let part = |name: &String| name.starts_with(".part-") && name.ends_with(".upload");
        files_below(output).iter().any(part).then_some(())
    });
    run.kill();
    assert!(!hidden(output).is_empty(), "something is left: {:?}", files_below(output));
}

/// The issue's own command, again and again: one succeeds with its bytes and the other says who
/// holds OUTPUT, or finds it not empty; or both come one after the other.
fn check_two_at_once(more: &[&str]) {
    let sandbox = Sandbox::new();
    let (a, b) = (sandbox.file("a", log_lines(3_000, 1)), sandbox.file("b", words(3_000, 2)));
    let wants = [oracle::gnu_sort(&[], &[&a]), oracle::gnu_sort(&[], &[&b])];
    for round in 0..6 {
        let output = sandbox.path(format!("out-{round}"));
        let start = |input: &PathBuf, partitions: &str| {
            let arguments =
                [arg(input), "--partitions", partitions].into_iter().chain(more.iter().copied());
            let logs = sandbox.path(format!("logs/{round}-{partitions}"));
            fs::create_dir_all(&logs).expect("a folder");
            Process::spawn("run", local(&sandbox, &output, arguments), &logs)
        };
        let (mut first, mut second) = (start(&a, "6"), start(&b, "2"));
        let ended = [finished(&mut first), finished(&mut second)];
        let result = Output::of_folder(&output);
        let succeeded: Vec<usize> = (0..2).filter(|run| ended[*run].code == 0).collect();
        for run in ended.iter().filter(|run| run.code != 0) {
            assert_eq!(run.code, 1, "{}", run.stderr);
            let refused =
                ["is held by job", "is not empty"].iter().any(|words| run.stderr.contains(words));
            assert!(refused && run.stderr.lines().count() <= 2, "{}", run.stderr);
        }
        assert!(
            !succeeded.is_empty(),
            "round {round}: both were refused:\n{}\n{}",
            ended[0].stderr,
            ended[1].stderr
        );
        assert!(
            !more.is_empty() || succeeded.len() == 1,
            "round {round}: both succeeded into one OUTPUT"
        );
        let whose = succeeded.iter().find(|run| result.concatenated() == wants[**run]);
        let whose = whose
            .unwrap_or_else(|| panic!("round {round}: OUTPUT is no run's: {:?}", result.success));
        result.assert_is(&wants[*whose]);
        assert!(hidden(&output).is_empty(), "round {round}: {:?}", hidden(&output));
    }
    sandbox.assert_no_temporaries();
}

#[test]
fn of_two_runs_into_one_output_one_has_it() {
    check_two_at_once(&[]);
}

#[test]
fn of_two_runs_that_overwrite_each_is_whole() {
    check_two_at_once(&["--overwrite"]);
}

#[test]
fn an_owner_that_lives_is_named_at_once() {
    let sandbox = Sandbox::new();
    let (input, other) = (
        sandbox.file("in", records(40_000, Keys::Random, 1)),
        sandbox.file("other", words(500, 2)),
    );
    let (output, config) = (sandbox.path("out"), sandbox.small_tasks(SMALL, SMALL));
    let arguments = [arg(&input), "--format", "fixed:100", "-k", "0:10", "--config", arg(&config)];
    let mut run = Process::spawn("first", local(&sandbox, &output, arguments), &sandbox.logs());
    wait::until("scratch in OUTPUT", wait::RUN_BOUND, || {
        let scratch =
            |name: &String| name.starts_with("_muster/") && !name.starts_with("_muster/claims/");
        files_below(&output).iter().any(scratch).then_some(())
    });
    run.signal(Signal::STOP);
    for more in [&[][..], &["--overwrite"]] {
        let arguments = [arg(&other)].into_iter().chain(more.iter().copied());
        let refused =
            sandbox.run_command(local(&sandbox, &output, arguments), AT_ONCE).expect_code(1);
        let process = format!("process {}", run.id());
        refused.expect_error(&["is held by job", &process, "it is alive"]);
    }
    run.signal(Signal::CONT);
    assert_eq!(finished(&mut run).code, 0);
    Output::of_folder(&output).assert_is(&oracle::fixed(
        &fs::read(&input).expect("input"),
        100,
        0,
        10,
    ));
    assert!(hidden(&output).is_empty(), "{:?}", hidden(&output));
}

#[test]
fn what_a_killed_run_left_is_removed_by_the_next_which_says_so() {
    let sandbox = Sandbox::new();
    let input = sandbox.file("in", records(60_000, Keys::Random, 1));
    let (output, other) = (sandbox.path("out"), sandbox.file("other", words(2_000, 2)));
    killed_in_the_midst(&sandbox, &output, &input, &[]);
    sandbox.file("out/_muster/claims/mine.txt", "a user's\n");
    sandbox.file("out/.part-00000.bin.0123456789abcdef.upload", "of somebody else");
    let done = sandbox
        .run_command(local(&sandbox, &output, [arg(&other)]), wait::RUN_BOUND)
        .expect_code(0);
    let said: Vec<&str> =
        done.stderr.lines().filter(|line| line.contains("that a dead run had left")).collect();
    assert!(said.len() == 1 && said[0].contains("files ("), "{}", done.stderr);
    let mut left = hidden(&output);
    left.sort();
    assert_eq!(
        left,
        [".part-00000.bin.0123456789abcdef.upload", "_muster/claims/mine.txt"],
        "what is not a dead run's"
    );
    for name in &left {
        fs::remove_file(output.join(name)).expect("remove");
    }
    Output::of_folder(&output).assert_is(&oracle::gnu_sort(&[], &[&other]));
}

#[test]
fn a_refused_run_leaves_no_claim() {
    let sandbox = Sandbox::new();
    let input = sandbox.file("in", b"0123456789");
    let output = sandbox.path("out");
    let torn = [arg(&input), "--format", "fixed:3"];
    sandbox.run_command(local(&sandbox, &output, torn), wait::RUN_BOUND).expect_code(1);
    assert!(!output.exists(), "{:?}", files_below(&output));
    sandbox.file("out/mine", "x");
    let refused = sandbox
        .run_command(local(&sandbox, &output, [arg(&input)]), wait::RUN_BOUND)
        .expect_code(1);
    refused.expect_error(&["is not empty"]);
    assert_eq!(files_below(&output), ["mine"]);
    assert!(!output.join("_muster").exists());
}

/// Two pools that know nothing of each other, and a run here, with one OUTPUT on the file system.
#[test]
fn pools_of_two_deployments_and_a_run_here_share_no_output() {
    let (one, two) = (Sandbox::new(), Sandbox::new());
    let (mut first, second) = (Pool::on_folder(&one, 1), Pool::on_folder(&two, 1));
    // Its job waits until there is a worker again.
    first.kill_worker(0);
    let (input, other) =
        (one.file("in", records(6_000, Keys::Random, 3)), one.file("other", words(2_000, 4)));
    let (output, config) = (one.path("out"), one.small_tasks(SMALL, SMALL));
    let fixed = ["--format", "fixed:100", "-k", "0:10"];
    let sort = [arg(&input), "-o", arg(&output), "--config", arg(&config)];
    let running = first.start_sort("j-first", sort.into_iter().chain(fixed));
    wait::until("the claim on OUTPUT", wait::RUN_BOUND, || {
        (!files_below(&output.join("_muster/claims")).is_empty()).then_some(())
    });
    let pool_refused =
        second.run(["sort", arg(&other), "-o", arg(&output), "--overwrite"]).expect_code(1);
    pool_refused.expect_error(&["is held by job j-first of deployment", "it is alive"]);
    let refused =
        one.run_command(local(&one, &output, [arg(&other), "--overwrite"]), AT_ONCE).expect_code(1);
    refused.expect_error(&["is held by job j-first of deployment", "it is alive"]);
    first.start_worker(0);
    first.finish_sort(running);
    wait::until_empty("in OUTPUT", || hidden(&output));
    Output::of_folder(&output).assert_is(&oracle::fixed(
        &fs::read(&input).expect("input"),
        100,
        0,
        10,
    ));
    second.sort("j-second", [arg(&other), "-o", arg(&output), "--overwrite"]);
    wait::until_empty("in OUTPUT", || hidden(&output));
    Output::of_folder(&output).assert_is(&oracle::gnu_sort(&[], &[&other]));
}

/// The leader of one deployment is stopped for longer than the bound; another takes OUTPUT; the
/// first wakes and changes nothing.
#[test]
fn a_deployment_that_slept_too_long_wakes_and_changes_nothing() {
    let (one, two) = (Sandbox::new(), Sandbox::new());
    let (mut first, second) = (Pool::on_folder(&one, 2), Pool::on_folder(&two, 1));
    let (input, other) =
        (one.file("in", records(60_000, Keys::Random, 5)), one.file("other", words(2_000, 6)));
    let (output, config) = (one.path("out"), one.small_tasks(SMALL, SMALL));
    let fixed = ["--format", "fixed:100", "-k", "0:10"];
    let sort = [arg(&input), "-o", arg(&output), "--config", arg(&config)];
    let mut running = first.start_sort("j-first", sort.into_iter().chain(fixed));
    wait::until("a part of it", wait::RUN_BOUND, || {
        files_below(&output).iter().any(|name| name.starts_with(".part-")).then_some(())
    });
    first.coordinator(0).signal(Signal::STOP);
    second.sort("j-second", [arg(&other), "-o", arg(&output)]);
    let want = oracle::gnu_sort(&[], &[&other]);
    let parts = |output: &Path| Output { others: Vec::new(), ..Output::of_folder(output) };
    parts(&output).assert_is(&want);
    first.coordinator(0).signal(Signal::CONT);
    let ended = finished(&mut running);
    assert_eq!(ended.code, 1, "{}", ended.stderr);
    parts(&output).assert_is(&want);
}

#[test]
fn two_deployments_share_no_output_in_a_bucket() {
    let (one, two) = (Sandbox::new(), Sandbox::new());
    let s3 = S3Server::start(&one);
    let bucket = s3.bucket("data");
    bucket.put("in", &records(30_000, Keys::Random, 7));
    bucket.put("other", &words(2_000, 8));
    let first = Pool::on_bucket(&one, 2, &s3, "data");
    let second = Pool::on_bucket(&two, 1, &s3, "data");
    first.slow_workers(Duration::from_millis(100));
    let (input, other, output) = (bucket.url("in"), bucket.url("other"), bucket.url("out"));
    let config = one.small_tasks(SMALL * 4, SMALL * 4);
    let fixed = ["--format", "fixed:100", "-k", "0:10", "--config", arg(&config)];
    let running =
        first.start_sort("j-first", [input.as_str(), "-o", &output].into_iter().chain(fixed));
    wait::until("the claim on OUTPUT", wait::RUN_BOUND, || {
        (!bucket.list("out/_muster/claims").is_empty()).then_some(())
    });
    let refused = second.run(["sort", other.as_str(), "-o", &output, "--overwrite"]).expect_code(1);
    refused.expect_error(&["is held by job j-first of deployment", "it is alive"]);
    first.slow_workers(Duration::ZERO);
    first.finish_sort(running);
    wait::until_empty("of claims", || bucket.list("out/_muster"));
    second.sort("j-second", [other.as_str(), "-o", &output, "--overwrite"]);
    wait::until_empty("of claims", || bucket.list("out/_muster"));
    let lines = one.file("lines", bucket.get("other"));
    Output::of_bucket(&bucket, "out").assert_is(&oracle::gnu_sort(&[], &[&lines]));
}

/// Without any NATS the doctor says who holds an OUTPUT, and what the dead have left there; it
/// removes that where it is asked to, and nothing beside an owner that lives.
#[test]
fn the_doctor_looks_at_an_output_without_nats() {
    let sandbox = Sandbox::new();
    let (input, output) =
        (sandbox.file("in", records(60_000, Keys::Random, 1)), sandbox.path("out"));
    let doctor = |more: &[&str]| {
        let arguments = ["doctor", "--json", "--profile", "testing", "--output", arg(&output)];
        sandbox.run(arguments.into_iter().chain(more.iter().copied())).expect_code(0).json()
    };
    let found = |report: &serde_json::Value, check: &str, level: &str, words: &str| {
        let all = report["findings"].as_array().expect("findings");
        let is = |finding: &&serde_json::Value| {
            finding["check"] == check
                && finding["level"] == level
                && finding["seen"].as_str().is_some_and(|seen| seen.contains(words))
        };
        assert!(
            all.iter().any(|finding| is(&finding)),
            "no {level} of {check} that says {words:?}: {report:#}"
        );
    };
    killed_in_the_midst(&sandbox, &output, &input, &[]);
    let report = doctor(&[]);
    found(&report, "output-claims", "warning", "which is dead and has left");
    found(&report, "nats", "unknown", "no server is named");
    found(&report, "memory", "ok", "this process may use");
    let mended = doctor(&["--mend", "--yes"]);
    assert!(
        mended["mended"][0].as_str().is_some_and(|what| what.contains("that a dead run had left")),
        "{mended:#}"
    );
    assert!(hidden(&output).is_empty(), "{:?}", hidden(&output));
    let report = doctor(&[]);
    found(&report, "output-claims", "ok", "nobody claims");
    found(&report, "output-leftovers", "ok", "nothing in");

    let config = sandbox.small_tasks(SMALL, SMALL);
    let arguments = [arg(&input), "--format", "fixed:100", "-k", "0:10", "--config", arg(&config)];
    let mut run = Process::spawn("living", local(&sandbox, &output, arguments), &sandbox.logs());
    wait::until("scratch in OUTPUT", wait::RUN_BOUND, || {
        let scratch =
            |name: &String| name.starts_with("_muster/") && !name.starts_with("_muster/claims/");
        files_below(&output).iter().any(scratch).then_some(())
    });
    run.signal(Signal::STOP);
    let report = doctor(&["--mend", "--yes"]);
    found(&report, "output-claims", "ok", "it is alive");
    assert_eq!(report["mended"], serde_json::json!([]), "{report:#}");
    run.signal(Signal::CONT);
    assert_eq!(finished(&mut run).code, 0);
    Output::of_folder(&output).assert_is(&oracle::fixed(
        &fs::read(&input).expect("input"),
        100,
        0,
        10,
    ));
}

/// Its scratch went with what the dead run had left, and OUTPUT is another's: there is nothing to
/// go on with, and nothing to change.
#[test]
fn a_run_that_is_resumed_after_another_took_its_output_fails_and_changes_nothing() {
    let sandbox = Sandbox::new();
    let (input, other) = (
        sandbox.file("in", records(60_000, Keys::Random, 1)),
        sandbox.file("other", words(2_000, 2)),
    );
    let (output, data) = (sandbox.path("out"), sandbox.path("data"));
    killed_in_the_midst(&sandbox, &output, &input, &["--data-dir", arg(&data)]);
    sandbox.run_command(local(&sandbox, &output, [arg(&other)]), wait::RUN_BOUND).expect_code(0);
    let want = oracle::gnu_sort(&[], &[&other]);
    Output::of_folder(&output).assert_is(&want);
    let config = sandbox.small_tasks(SMALL, SMALL);
    let same = [
        arg(&input),
        "--format",
        "fixed:100",
        "-k",
        "0:10",
        "--config",
        arg(&config),
        "--data-dir",
        arg(&data),
    ];
    let ended = sandbox.run_command(local(&sandbox, &output, same), wait::RUN_BOUND).expect_code(1);
    ended.expect_error(&["failed", "plan", "No such file"]);
    Output::of_folder(&output).assert_is(&want);
    assert!(hidden(&output).is_empty(), "{:?}", hidden(&output));
}
