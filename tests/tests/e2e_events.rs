//! `muster events`: the history of jobs and of a deployment, as people and programs read it.

use std::time::Duration;

use muster_tests::harness::data::{Keys, records};
use muster_tests::harness::process::exit_code;
use muster_tests::harness::{NatsServer, Output, Pool, Process, Sandbox, arg, oracle, wait};
use rustix::process::Signal;
use serde_json::Value;

/// The lines of an export, each of which must be JSON.
#[track_caller]
fn export(pool: &Pool<'_>, arguments: &[&str]) -> Vec<Value> {
    let done = pool.run([&["events", "--json"], arguments].concat()).expect_code(0);
    done.stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}")))
        .collect()
}

fn kinds(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["kind"].as_str().expect("a kind")).collect()
}

/// A request that was refused is no job; what was wrong with it can be asked for all the same.
#[test]
fn a_refused_request_can_be_asked_for() {
    let sandbox = Sandbox::new();
    let pool = Pool::on_folder(&sandbox, 1);
    let (missing, output) = (sandbox.path("missing"), sandbox.path("out"));
    pool.run(["sort", "--job-id", "wrong", arg(&missing), "-o", arg(&output)]).expect_code(1);
    let asked = wait::until("the refusal to be told", wait::RUN_BOUND, || {
        let asked = pool.run(["status", "wrong"]).expect_code(1);
        asked.stderr.contains("was refused").then_some(asked)
    });
    asked.expect_error(&["job wrong was refused at", "missing"]);
    pool.run(["status", "never"]).expect_code(1).expect_error(&["never is not known"]);
}

#[test]
fn the_history_of_a_job_is_whole_and_in_order() {
    let sandbox = Sandbox::new();
    let data = records(5_000, Keys::Random, 1);
    let (input, output, config) =
        (sandbox.file("in", &data), sandbox.path("out"), sandbox.small_tasks(64 << 10, 64 << 10));
    let pool = Pool::on_folder(&sandbox, 2);
    let mut follow = Process::spawn(
        "follow",
        pool.client(["events", "j1", "--follow", "--json"]),
        &sandbox.logs(),
    );
    pool.sort(
        "j1",
        [
            arg(&input),
            "-o",
            arg(&output),
            "--format",
            "fixed:100",
            "-k",
            "0:10",
            "--config",
            arg(&config),
        ],
    );
    Output::of_folder(&output).assert_is(&oracle::fixed(&data, 100, 0, 10));

    let events = wait::until("the job's last event", wait::RUN_BOUND, || {
        let done = pool.run(["events", "j1", "--json"]);
        (done.code == 0 && done.stdout.contains("job-cleaned")).then(|| export(&pool, &["j1"]))
    });
    let mut wanted =
        ["job-submitted", "phase-began", "phase-began", "phase-began", "job-ended", "job-cleaned"]
            .iter()
            .peekable();
    for kind in kinds(&events) {
        wanted.next_if(|next| **next == kind);
    }
    assert_eq!(wanted.next(), None, "missing, or out of order: {events:#?}");
    let began: Vec<&str> = events
        .iter()
        .filter(|event| event["kind"] == "phase-began")
        .filter_map(|event| event["text"].as_str())
        .collect();
    assert!(
        began[0].starts_with("sample")
            && began[1].starts_with("sort")
            && began[2].starts_with("merge"),
        "{began:?}"
    );
    let times: Vec<u64> =
        events.iter().map(|event| event["unix_ms"].as_u64().expect("a time")).collect();
    assert!(times.is_sorted() && times[0] > 1_700_000_000_000, "{times:?}");
    assert!(
        events.iter().all(|event| event["job"] == "j1" && event["severity"].is_string()),
        "{events:#?}"
    );

    let all = export(&pool, &[]);
    let kinds = kinds(&all);
    assert!(
        kinds.contains(&"leader-began")
            && kinds.contains(&"worker-joined")
            && kinds.contains(&"job-ended"),
        "{kinds:?}"
    );
    assert_eq!(export(&pool, &["j1", "--since", "1h"]).len(), events.len());
    let shown = pool.run(["events", "j1"]).expect_code(0).stdout;
    assert_eq!(shown.lines().count(), events.len(), "{shown}");
    assert!(
        shown
            .lines()
            .next()
            .is_some_and(|line| line.contains(" info ") && line.contains("job-submitted")),
        "{shown}"
    );
    pool.run(["events", "no-such-job"]).expect_code(1).expect_error(&["no-such-job"]);

    wait::until("the follower to have seen it all", wait::RUN_BOUND, || {
        follow.assert_running();
        (follow.stdout().lines().count() == events.len()).then_some(())
    });
    follow.signal(Signal::INT);
    assert_eq!(exit_code(follow.wait(Duration::from_secs(20))), 130);
}

#[test]
fn events_say_where_there_are_none() {
    let sandbox = Sandbox::new();
    let nats = NatsServer::start(&sandbox);
    sandbox
        .run(["events", "--nats", &nats.url()])
        .expect_code(3)
        .expect_error(&["MUSTER_EVENTS", "coordinator"]);
    sandbox
        .run(["events", "--nats", "nats://127.0.0.1:1"])
        .expect_code(3)
        .expect_error(&["127.0.0.1:1"]);
}
