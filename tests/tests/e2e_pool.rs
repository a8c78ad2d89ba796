//! A pool as users run it: a NATS server, a coordinator and workers as processes of their own, on a
//! shared folder or a bucket.

use std::time::Duration;

use muster_tests::harness::data::{Keys, log_lines, records, words};
use muster_tests::harness::sandbox::files_below;
use muster_tests::harness::{Bucket, Output, Pool, Process, S3Server, Sandbox, arg, oracle, wait};
use serde_json::Value;

const SMALL: usize = 64 << 10;

/// Arguments of a sort of 100-byte records in small tasks.
fn fixed<'a>(input: &'a str, output: &'a str, config: &'a str) -> [&'a str; 9] {
    [input, "-o", output, "--format", "fixed:100", "-k", "0:10", "--config", config]
}

#[track_caller]
fn assert_clean(sandbox: &Sandbox) {
    wait::until_empty("in scratch", || files_below(&sandbox.path("scratch")));
}

#[track_caller]
fn assert_bucket_clean(bucket: &Bucket) {
    wait::until_empty("in scratch", || bucket.list("scratch"));
    wait::until_empty("as open uploads", || bucket.uploads());
}

#[test]
fn a_pool_on_a_shared_folder() {
    let sandbox = Sandbox::new();
    let data = records(10_000, Keys::Random, 1);
    let (input, output, config) =
        (sandbox.file("in", &data), sandbox.path("out"), sandbox.small_tasks(SMALL, SMALL));
    let pool = Pool::on_folder(&sandbox, 3);
    let report = pool.sort("j1", fixed(arg(&input), arg(&output), arg(&config)));
    Output::of_folder(&output).assert_is(&oracle::fixed(&data, 100, 0, 10));
    assert_eq!(report["records"].as_u64(), Some(10_000), "{report}");
    pool.assert_nothing_repeated("j1", &report);
    assert_clean(&sandbox);

    let status = pool.status("j1").expect("an ended job stays known");
    assert_eq!(
        (status["job"].as_str(), status["state"].as_str()),
        (Some("j1"), Some("succeeded")),
        "{status}"
    );
    assert!(status["error"].is_null(), "{status}");
    let jobs = pool.run(["jobs", "--json"]).expect_code(0).json();
    assert!(jobs.as_array().unwrap().iter().any(|job| job["job"] == "j1"), "{jobs}");
    let watched = pool.run(["watch", "j1", "--json"]).expect_code(0);
    assert_eq!(watched.json()["state"], "succeeded");
    let workers = pool.run(["workers", "--json"]).expect_code(0).json();
    let mut ids: Vec<&str> =
        workers.as_array().unwrap().iter().filter_map(|worker| worker["id"].as_str()).collect();
    ids.sort_unstable();
    assert_eq!(ids, ["worker-0", "worker-1", "worker-2"]);
    assert_eq!(
        (&status["pool"]["healthy"], &status["pool"]["total"]),
        (&3.into(), &3.into()),
        "{status}"
    );
    pool.run(["status", "no-such-job"]).expect_code(1).expect_error(&["no-such-job"]);
}

#[test]
fn two_deployments_on_one_server_do_not_see_each_other() {
    let sandbox = Sandbox::new();
    let pool = Pool::on_folder(&sandbox, 1);
    let started = |name: &str, arguments: &[&str]| {
        let mut command = pool.client(arguments);
        command
            .args(["--profile", "testing", "--data-dir", arg(&sandbox.path(name))])
            .env("MUSTER_NAMESPACE", "team-a");
        Process::spawn(name, command, &sandbox.logs())
    };
    let scratch = sandbox.path("scratch-team");
    let coordinator = started("team-coordinator", &["coordinator", "--bucket", arg(&scratch)]);
    let mut worker = started(
        "team-worker",
        &["worker", "--id", "team-worker", "--threads", "1", "--memory", "256MiB"],
    );
    worker.wait_for_log("registered", wait::START_BOUND);
    let mut lonely =
        Process::spawn("lonely", pool.client(["jobs", "--namespace", "team-b"]), &sandbox.logs());

    // The same job id in both, and what each shows of it.
    let team = |arguments: &[&str]| pool.run(arguments.iter().chain(&["--namespace", "team-a"]));
    let (input, ours, theirs) =
        (sandbox.file("in", "b\na\n"), sandbox.path("ours"), sandbox.path("theirs"));
    pool.run(["sort", arg(&input), "-o", arg(&ours), "--job-id", "same"]).expect_code(0);
    team(&["sort", arg(&input), "-o", arg(&theirs), "--job-id", "same"]).expect_code(0);
    team(&["sort", arg(&input), "-o", arg(&sandbox.path("more")), "--job-id", "team-only"])
        .expect_code(0);
    Output::of_folder(&ours).assert_is(b"a\nb\n");
    Output::of_folder(&theirs).assert_is(b"a\nb\n");
    let listed = |listed: Value, key: &str| -> Vec<String> {
        let each = listed.as_array().expect("a list").iter();
        let mut all: Vec<String> =
            each.map(|one| one[key].as_str().unwrap_or_default().to_owned()).collect();
        all.sort_unstable();
        all
    };
    assert_eq!(listed(pool.run(["jobs", "--json"]).json(), "job"), ["same"]);
    assert_eq!(listed(team(&["jobs", "--json"]).json(), "job"), ["same", "team-only"]);
    assert_eq!(listed(pool.run(["workers", "--json"]).json(), "id"), ["worker-0"]);
    assert_eq!(listed(team(&["workers", "--json"]).json(), "id"), ["team-worker"]);
    pool.run(["status", "team-only"]).expect_code(1).expect_error(&["team-only"]);
    team(&["watch", "team-only", "--json"]).expect_code(0);
    let events = |text: String| (text.contains("worker-0 on"), text.contains("team-worker on"));
    assert_eq!(events(pool.run(["events"]).expect_code(0).stdout), (true, false));
    assert_eq!(events(team(&["events"]).expect_code(0).stdout), (false, true));
    team(&["doctor", "--profile", "testing", "--bucket", arg(&scratch), "--json"]).json();

    // A worker that is drained ends with 0, which supervisors take for its end.
    team(&["drain", "worker-0"]).expect_code(1).expect_error(&["worker-0"]);
    pool.run(["drain", "team-worker"]).expect_code(1).expect_error(&["team-worker"]);
    team(&["drain", "team-worker"]).expect_code(0);
    assert!(worker.wait(wait::RUN_BOUND).success(), "{}", worker.stderr());

    let log = coordinator.stderr();
    let start = log
        .lines()
        .find(|line| line.contains("coordinator starts"))
        .expect("it says how it starts");
    for said in ["namespace=\"team-a\"", "profile=Testing", "scratch-team", "http=none"] {
        assert!(start.contains(said), "{said}: {start}");
    }
    assert!(!log.contains("Config {"), "{log}");
    assert!(
        log.contains("kind=\"first-leader\"") && !log.contains("took-over"),
        "nothing was taken over: {log}"
    );
    pool.run(["jobs", "--namespace", "Team.A"])
        .expect_code(2)
        .expect_error(&["Team.A", "a-z 0-9 -"]);
    assert_eq!(lonely.wait(wait::RUN_BOUND).code(), Some(3));
    assert!(
        lonely.stderr().contains("no coordinator of the namespace team-b"),
        "{}",
        lonely.stderr()
    );
}

#[test]
fn the_health_of_workers_is_shown() {
    let sandbox = Sandbox::new();
    let (input, output, config) = (
        sandbox.file("in", records(100_000, Keys::Random, 7)),
        sandbox.path("out"),
        sandbox.small_tasks(SMALL, SMALL),
    );
    let mut pool = Pool::on_folder(&sandbox, 2);
    let listed = || {
        pool.run(["workers", "--json"]).expect_code(0).json().as_array().expect("a list").clone()
    };
    let sort = pool.start_sort("j1", fixed(arg(&input), arg(&output), arg(&config)));
    let busy = |worker: &Value| {
        worker["cpu_permille"].as_u64() > Some(0) && worker["bytes_per_s"].as_u64() > Some(0)
    };
    let figures = wait::until("a worker at work to say so", wait::RUN_BOUND, || {
        listed().into_iter().find(busy)
    });
    let number =
        |name: &str| figures[name].as_u64().unwrap_or_else(|| panic!("{name} in {figures}"));
    assert!(
        number("disk_total_bytes") > number("disk_free_bytes") && number("disk_free_bytes") > 0,
        "{figures}"
    );
    assert_eq!((number("memory_bytes"), number("errors_5min")), (256 << 20, 0), "{figures}");
    assert!(number("rss_bytes") > 0 && figures["state"] == "healthy", "{figures}");
    pool.finish_sort(sort);

    pool.kill_worker(1);
    wait::until("the killed worker to be given up", wait::RUN_BOUND, || {
        let table = pool.run(["workers"]).expect_code(0).stdout;
        table
            .ends_with("2 workers: 1 healthy (50 %), 0 degraded (0 %), 1 failed (50 %)\n")
            .then_some(())
    });
    let status = pool.run(["status", "j1"]).expect_code(0).stdout;
    assert!(status.contains("1 failed (50 %)"), "{status}");
}

#[test]
fn a_million_records_through_a_bucket() {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    let bucket = s3.bucket("data");
    let pool = Pool::on_bucket(&sandbox, 3, &s3, "data");
    pool.run(["gen", "-n", "1000000", "--ascii", "--files", "4", "-o", &bucket.url("in")])
        .expect_code(0);
    let input: Vec<u8> = bucket.list("in").iter().flat_map(|key| bucket.get(key)).collect();
    assert_eq!(oracle::gensort_checksum(&input), "7a19cff467438");
    let (from, to, config) =
        (bucket.url("in"), bucket.url("out"), sandbox.small_tasks(8 << 20, 8 << 20));
    let report = pool.sort("million", fixed(&from, &to, arg(&config)));
    assert_eq!(report["records"], 1_000_000, "{report}");
    let output = Output::of_bucket(&bucket, "out");
    output.assert_is(&oracle::fixed(&input, 100, 0, 10));
    assert_eq!(oracle::gensort_checksum(&output.concatenated()), "7a19cff467438");
    assert_bucket_clean(&bucket);
    pool.run(["verify", &to, "--against", &bucket.url("out/_SUCCESS")]).expect_code(0);
}

#[test]
fn lines_of_many_objects_in_a_bucket() {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    let bucket = s3.bucket("logs");
    let pool = Pool::on_bucket(&sandbox, 2, &s3, "logs");
    let files: Vec<_> =
        (0..20).map(|day| (format!("in/day={day:02}/log"), log_lines(300, day))).collect();
    for (key, lines) in &files {
        bucket.put(key, lines);
    }
    bucket.put("in/day=00/_SUCCESS", b"not to be seen");
    bucket.put("in/empty", b"");
    bucket.put("in-other", b"a longer name is not below it\n");
    let copies: Vec<_> = files.iter().map(|(key, lines)| sandbox.file(key, lines)).collect();
    let config = sandbox.small_tasks(SMALL, SMALL);
    let config = arg(&config);
    pool.sort(
        "stable",
        [&bucket.url("in/"), "-o", &bucket.url("stable"), "-s", "-k2,2", "--config", config],
    );
    Output::of_bucket(&bucket, "stable").assert_is(&oracle::gnu_sort(&["-s", "-k2,2"], &copies));
    pool.sort(
        "some",
        [
            &bucket.url("in/day=0*/log"),
            "-o",
            &bucket.url("some"),
            "-u",
            "-k2,2",
            "--config",
            config,
        ],
    );
    Output::of_bucket(&bucket, "some")
        .assert_is(&oracle::gnu_sort(&["-u", "-k2,2"], &copies[..10]));
    pool.sort("none", [&bucket.url("in/empty"), "-o", &bucket.url("none"), "--format", "lines"]);
    Output::of_bucket(&bucket, "none").assert_is(b"");
    assert_bucket_clean(&bucket);
}

#[test]
fn from_a_folder_into_a_bucket_and_back() {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    let bucket = s3.bucket("mixed");
    let pool = Pool::on_bucket(&sandbox, 2, &s3, "mixed");
    let input = sandbox.file("in", words(30_000, 1));
    let (sorted, back, config) =
        (oracle::gnu_sort(&[], &[&input]), sandbox.path("back"), sandbox.small_tasks(SMALL, SMALL));
    let config = arg(&config);
    pool.sort("there", [arg(&input), "-o", &bucket.url("out"), "--config", config]);
    Output::of_bucket(&bucket, "out").assert_is(&sorted);
    pool.sort("back", [&bucket.url("out"), "-o", arg(&back), "-r", "--config", config]);
    Output::of_folder(&back).assert_is(&oracle::gnu_sort(&["-r"], &[&input]));
    assert_bucket_clean(&bucket);
}

#[test]
fn more_workers_than_tasks_and_more_tasks_than_workers() {
    for (workers, count, split) in [(5, 400, 1 << 20), (1, 20_000, 32 << 10)] {
        let sandbox = Sandbox::new();
        let data = records(count, Keys::Random, 2);
        let (input, output, config) =
            (sandbox.file("in", &data), sandbox.path("out"), sandbox.small_tasks(split, split));
        let pool = Pool::on_folder(&sandbox, workers);
        pool.sort("job", fixed(arg(&input), arg(&output), arg(&config)));
        Output::of_folder(&output).assert_is(&oracle::fixed(&data, 100, 0, 10));
        assert_clean(&sandbox);
    }
}

#[test]
fn several_jobs_at_once() {
    let sandbox = Sandbox::new();
    let config = sandbox.small_tasks(SMALL, SMALL);
    let pool = Pool::on_folder(&sandbox, 3);
    let jobs: Vec<_> = (0..4)
        .map(|number| {
            let data =
                records(6_000, if number % 2 == 0 { Keys::Random } else { Keys::Skewed }, number);
            let (input, output) = (
                sandbox.file(format!("in-{number}"), &data),
                sandbox.path(format!("out-{number}")),
            );
            let arguments = fixed(arg(&input), arg(&output), arg(&config));
            let sort = pool.start_sort(&format!("job-{number}"), arguments);
            (data, output, sort)
        })
        .collect();
    for (data, output, sort) in jobs {
        pool.finish_sort(sort);
        Output::of_folder(output).assert_is(&oracle::fixed(&data, 100, 0, 10));
    }
    assert_clean(&sandbox);
}

#[test]
fn one_output_is_for_one_job_at_a_time() {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    let bucket = s3.bucket("data");
    let pool = Pool::on_bucket(&sandbox, 2, &s3, "data");
    let data = records(2_000, Keys::Random, 3);
    bucket.put("in", &data);
    let (from, to, config) =
        (bucket.url("in"), bucket.url("out"), sandbox.small_tasks(SMALL, SMALL));
    pool.each_worker_gate(|gate| gate.hold_all());
    let first = pool.start_sort("first", fixed(&from, &to, arg(&config)));
    pool.wait_for_status("first", "sampling", |status| status["state"] == "sampling");
    let mut second = vec!["sort", "--job-id", "second"];
    second.extend(fixed(&from, &to, arg(&config)));
    pool.run(second).expect_code(1).expect_error(&["first", "out"]);
    pool.each_worker_gate(|gate| gate.open());
    pool.finish_sort(first);
    Output::of_bucket(&bucket, "out").assert_is(&oracle::fixed(&data, 100, 0, 10));
}

#[test]
fn a_job_submitted_twice_is_one_job() {
    let sandbox = Sandbox::new();
    let (input, output) = (sandbox.file("in", log_lines(3_000, 1)), sandbox.path("out"));
    let pool = Pool::on_folder(&sandbox, 2);
    let arguments = [arg(&input), "-o", arg(&output)];
    let first = pool.sort("same", arguments);
    let written = || std::fs::metadata(output.join("_SUCCESS")).unwrap().modified().unwrap();
    let before = written();
    let again = pool.sort("same", arguments);
    assert_eq!(first["records"], again["records"]);
    assert_eq!(written(), before, "the second submission did the job again");
    Output::of_folder(&output).assert_is(&oracle::gnu_sort(&[], &[&input]));
}

#[test]
fn a_detached_job_goes_on_without_its_client() {
    let sandbox = Sandbox::new();
    let (input, output) = (sandbox.file("in", log_lines(5_000, 2)), sandbox.path("out"));
    let pool = Pool::on_folder(&sandbox, 2);
    pool.run(["sort", arg(&input), "-o", arg(&output), "--detach", "--job-id", "alone"])
        .expect_code(0);
    pool.wait_for_status("alone", "succeeded", |status| status["state"] == "succeeded");
    Output::of_folder(&output).assert_is(&oracle::gnu_sort(&[], &[&input]));
    assert_clean(&sandbox);
}

#[test]
fn a_cancelled_job_leaves_nothing() {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    let bucket = s3.bucket("data");
    let pool = Pool::on_bucket(&sandbox, 2, &s3, "data");
    bucket.put("in", &records(5_000, Keys::Random, 4));
    let (from, to, config) =
        (bucket.url("in"), bucket.url("out"), sandbox.small_tasks(SMALL, SMALL));
    pool.slow_workers(Duration::from_millis(50));
    let mut sort = pool.start_sort("stopped", fixed(&from, &to, arg(&config)));
    pool.hold_in_the_midst_of("stopped", "merging");
    pool.run(["cancel", "stopped"]).expect_code(0);
    pool.each_worker_gate(|gate| gate.open());
    let code = muster_tests::harness::process::exit_code(sort.wait(Duration::from_secs(60)));
    assert_ne!(
        code,
        0,
        "the waiting client took a cancelled job for a success:\n{}",
        sort.stdout()
    );
    assert_eq!(pool.status("stopped").unwrap()["state"], "cancelled");
    assert_bucket_clean(&bucket);
    Output::of_bucket(&bucket, "out").assert_nothing();
    // The pool is none the worse for it.
    pool.sort("next", fixed(&from, &to, arg(&config)));
    Output::of_bucket(&bucket, "out").assert_is(&oracle::fixed(&bucket.get("in"), 100, 0, 10));
}

#[test]
fn a_second_worker_under_the_same_id_is_refused() {
    let sandbox = Sandbox::new();
    let pool = Pool::on_folder(&sandbox, 1);
    let mut twin =
        pool.client(["worker", "--id", "worker-0", "--profile", "testing", "--data-dir"]);
    twin.arg(sandbox.path("data-twin"));
    sandbox.run_command(twin, Duration::from_secs(60)).expect_code(1).expect_error(&["worker-0"]);
    let input = sandbox.file("in", words(1_000, 1));
    pool.sort("job", [arg(&input), "-o", arg(&sandbox.path("out"))]);
    Output::of_folder(sandbox.path("out")).assert_is(&oracle::gnu_sort(&[], &[&input]));
}

#[test]
fn settings_that_differ_are_refused_with_both_values() {
    let sandbox = Sandbox::new();
    let pool = Pool::on_folder(&sandbox, 1);
    // The pool has the profile `testing`.
    let mut other =
        pool.client(["worker", "--id", "worker-1", "--profile", "production", "--data-dir"]);
    other.arg(sandbox.path("data-other"));
    let refused = sandbox.run_command(other, Duration::from_secs(60)).expect_code(1);
    refused.expect_error(&["worker-1", "heartbeat.interval_ms is 1000 there and 200 here"]);
}

#[test]
fn a_worker_that_is_asked_to_stop_does_so_gracefully() {
    let sandbox = Sandbox::new();
    let data = records(10_000, Keys::Random, 5);
    let (input, output, config) =
        (sandbox.file("in", &data), sandbox.path("out"), sandbox.small_tasks(16 << 10, SMALL));
    let mut pool = Pool::on_folder(&sandbox, 2);
    let sort = pool.start_sort("job", fixed(arg(&input), arg(&output), arg(&config)));
    pool.wait_for_status("job", "under way", |status| status["tasks_done"].as_u64() > Some(0));
    assert_eq!(pool.stop_worker(0, Duration::from_secs(30)), 0);
    let report = pool.finish_sort(sort);
    pool.assert_nothing_repeated("job", &report);
    Output::of_folder(&output).assert_is(&oracle::fixed(&data, 100, 0, 10));
    assert_clean(&sandbox);
}

#[test]
fn the_control_api_is_a_micro_service() {
    let sandbox = Sandbox::new();
    let input = sandbox.file("in", words(1_000, 1));
    let pool = Pool::on_folder(&sandbox, 1);
    pool.sort("asked-for", [arg(&input), "-o", arg(&sandbox.path("out"))]);
    let asked = async {
        let client = async_nats::connect(pool.nats.url()).await.expect("connect");
        // The first is what `nats micro ls` sends.
        let mut answers = Vec::new();
        for (subject, payload) in
            [("$SRV.PING.muster", ""), ("muster.api.status", r#"{"job":"asked-for"}"#)]
        {
            let answer = client
                .request(subject, payload.into())
                .await
                .unwrap_or_else(|e| panic!("{subject}: {e}"));
            answers.push(serde_json::from_slice::<Value>(&answer.payload).expect("JSON"));
        }
        (answers.remove(0), answers.remove(0))
    };
    let (listed, status) = tokio::runtime::Runtime::new().unwrap().block_on(asked);
    assert_eq!(listed["name"], "muster", "{listed}");
    assert_eq!(status["state"], "succeeded", "{status}");
}

#[test]
fn worker_and_coordinator_wait_for_nats() {
    let sandbox = Sandbox::new();
    let ports = muster_tests::harness::ports::Ports::claim();
    let url = format!("nats://127.0.0.1:{}", ports.port(0));
    let start = |role: &str| {
        let mut command = sandbox.muster();
        command
            .args([role, "--nats", &url, "--profile", "testing", "--data-dir"])
            .arg(sandbox.path(format!("data-{role}")));
        Process::spawn(role, command, &sandbox.logs())
    };
    let mut waiting = [start("coordinator"), start("worker")];
    for process in &mut waiting {
        let name = process.name().to_owned();
        wait::until(&format!("{name} to say that it waits"), Duration::from_secs(30), || {
            process.assert_running();
            let said = format!("{}{}", process.stdout(), process.stderr()).to_lowercase();
            (said.contains("waiting") && said.contains("nats")).then_some(())
        });
    }
}
