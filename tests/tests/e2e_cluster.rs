//! NATS under a running job: a cluster of three servers that loses one, two, or each in its turn,
//! or falls into two sides, and a server whose JetStream has no room left. In every case the job
//! waits for what it needs, ends with the right bytes, and nothing that was committed is done
//! again.

use std::time::Duration;

use muster_coordinator::journal::record::Record;
use muster_tests::harness::data::{Keys, records};
use muster_tests::harness::nats::{LONE, MEMBERS};
use muster_tests::harness::{
    Bucket, Gate, Nats, NatsServer, Output, Pool, Process, S3Server, Sandbox, arg, oracle, wait,
};
use serde_json::Value;

const BUCKET: &str = "data";
/// About 24 sort tasks and as many merges of 2.4 MB.
const RECORDS: usize = 24_000;
const SMALL: usize = 100_000;
/// Added to each request of a worker, so that phases last for seconds.
const DELAY: Duration = Duration::from_millis(40);
const REPLICATED: &str = "[journal]\nreplicas = 3\n";
/// Of the journal whose server has little room.
const JOURNAL_BYTES: u64 = 8 << 20;
/// What muster reserves beside it, for events and dead letters, and a little more: where all is
/// reserved, another stream cannot even be made.
const OTHER_BYTES: u64 = 130 << 20;

/// A job on a pool of two workers with a bucket, ready to lose its NATS.
struct Scene<'a> {
    pool: Pool<'a>,
    bucket: Bucket,
    data: Vec<u8>,
    sort: Process,
}

impl<'a> Scene<'a> {
    /// Starts a pool on these servers, submits the job, and holds its workers in the midst of
    /// sorting.
    fn start(sandbox: &'a Sandbox, s3: &S3Server, nats: Nats, settings: &str) -> Self {
        let bucket = s3.bucket(BUCKET);
        let data = records(RECORDS, Keys::Skewed, 1);
        bucket.put("in", &data);
        let pool = Pool::on_nats(nats, settings, sandbox, 2, s3, BUCKET);
        pool.slow_workers(DELAY);
        let sort = sort(sandbox, &pool, &bucket, "job");
        Self { pool, bucket, data, sort }
    }

    /// Lets the workers go on, as slowly as before.
    fn go_on(&self) {
        self.pool.each_worker_gate(Gate::open);
        self.pool.slow_workers(DELAY);
    }

    /// Waits until the job says that it waits for the journal and the alert is raised; gives its
    /// status, which still tells of no failure.
    #[track_caller]
    fn wait_for_stall(&self, alert: &str) -> Value {
        let stalled = self.pool.wait_for_status("job", "waiting for the journal", |status| {
            let waits =
                status["waiting_for"].as_str().is_some_and(|why| why.starts_with("journal: "));
            let alerts = status["alerts"]
                .as_array()
                .is_some_and(|alerts| alerts.iter().any(|name| name == alert));
            waits && alerts
        });
        assert_eq!(
            (&stalled["state"], &stalled["error"]),
            (&Value::from("sorting"), &Value::Null),
            "{stalled}"
        );
        stalled
    }

    /// Nothing has come of the job since then.
    #[track_caller]
    fn assert_still(&mut self, stalled: &Value) {
        let now = self.pool.status("job").expect("the job's status can be asked");
        for field in ["state", "tasks_done", "error"] {
            assert_eq!(now[field], stalled[field], "{field}: {stalled} became {now}");
        }
        self.sort.assert_running();
    }

    /// Checks that the job succeeds with the right bytes and leaves nothing else.
    #[track_caller]
    fn finish(self) -> Pool<'a> {
        self.pool.each_worker_gate(Gate::open);
        let report = self.pool.finish_sort(self.sort);
        self.pool.assert_nothing_repeated("job", &report);
        Output::of_bucket(&self.bucket, "job").assert_is(&oracle::fixed(&self.data, 100, 0, 10));
        wait::until_empty("in scratch", || self.bucket.list("scratch"));
        wait::until_empty("as open uploads", || self.bucket.uploads());
        self.pool
    }
}

/// Submits a job whose output is named after it.
fn sort(sandbox: &Sandbox, pool: &Pool<'_>, bucket: &Bucket, job: &str) -> Process {
    let config = sandbox.small_tasks(SMALL, SMALL);
    let (from, to) = (bucket.url("in"), bucket.url(job));
    pool.start_sort(
        job,
        [&from, "-o", &to, "--format", "fixed:100", "-k", "0:10", "--config", arg(&config)],
    )
}

fn tasks_done(status: &Value) -> u64 {
    status["tasks_done"].as_u64().expect("a count")
}

#[test]
fn one_of_three_servers_is_lost_while_sorting() {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    let mut scene = Scene::start(&sandbox, &s3, Nats::cluster(&sandbox), REPLICATED);
    scene.pool.hold_in_the_midst_of("job", "sorting");
    let lost = scene.pool.nats.journal_leader();
    let place = format!("127.0.0.1:{}", scene.pool.nats.server(lost).port());
    scene.pool.nats.server(lost).kill();
    // It is named wherever somebody looks.
    scene.pool.wait_for_status("job", "without a server of its NATS", |status| {
        let alerts = status["alerts"].as_array().expect("alerts");
        alerts.iter().any(|alert| *alert == format!("nats-server-away {place}"))
    });
    scene
        .pool
        .coordinator(0)
        .wait_for_log(&format!("the NATS server {place} does not answer"), wait::RUN_BOUND);
    let looked = scene.pool.run(["doctor", "--profile", "testing"]);
    assert!(looked.stdout.contains(&format!("1 of 3 do not answer: {place}")), "{}", looked.stdout);
    scene.go_on();
    let mut pool = scene.finish();
    pool.nats.server(lost).start_again(&sandbox);
    pool.coordinator(0)
        .wait_for_log(&format!("the NATS server {place} answers again"), wait::RUN_BOUND);
    // The lost server may have led the stream of events, too: what happened until the others agreed
    // on the next follows, each in its place.
    let events = wait::until("the lost server in the job's history", wait::RUN_BOUND, || {
        let done = pool.run(["events", "job"]);
        let whole = ["nats-server-away", "job-ended"].iter().all(|kind| done.stdout.contains(kind));
        (done.code == 0 && whole).then_some(done.stdout)
    });
    let at = |kind: &str| events.find(kind).unwrap_or_else(|| panic!("no {kind}: {events}"));
    assert!(
        at("job-submitted") < at("nats-server-away") && at("nats-server-away") < at("job-ended"),
        "{events}"
    );
    pool.nats.server(lost).kill();
    assert_ne!(pool.nats.journal_leader(), lost, "the lost server leads");
}

#[test]
fn without_a_quorum_commits_wait_and_then_go_on() {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    let mut scene = Scene::start(&sandbox, &s3, Nats::cluster(&sandbox), REPLICATED);
    let held = scene.pool.hold_in_the_midst_of("job", "sorting");
    let first = scene.pool.nats.journal_leader();
    let lost = [first, (first + 1) % MEMBERS];
    for server in lost {
        scene.pool.nats.server(server).kill();
    }
    // What the workers finish now cannot be committed.
    scene.go_on();
    let stalled = scene.wait_for_stall("journal-failing");
    assert!(tasks_done(&stalled) < held["tasks_total"].as_u64().expect("a count"), "{stalled}");
    // A write that takes too long is told of by an alert of its own: so long, at least, nothing was
    // committed.
    let stalled = scene.wait_for_stall("journal-slow");
    scene.assert_still(&stalled);
    for server in lost {
        scene.pool.nats.server(server).start_again(&sandbox);
    }
    let pool = scene.finish();
    let events = wait::until("the outage in the job's history", wait::RUN_BOUND, || {
        let said = pool.run(["events", "job"]).stdout;
        said.contains("the journal could not be written").then_some(said)
    });
    assert!(events.contains("job-submitted"), "{events}");
}

#[test]
fn long_each_of_three_servers_restarts_in_its_turn() {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    let mut scene = Scene::start(&sandbox, &s3, Nats::cluster(&sandbox), REPLICATED);
    for (server, state) in ["sorting", "sorting", "merging"].into_iter().enumerate() {
        let held = scene.pool.hold_in_the_midst_of("job", state);
        scene.pool.nats.server(server).kill();
        scene.go_on();
        scene.pool.wait_for_status(
            "job",
            &format!("getting on without server {server}"),
            |status| status["state"] != held["state"] || tasks_done(status) > tasks_done(&held),
        );
        scene.pool.nats.server(server).start_again(&sandbox);
        scene.pool.nats.wait_for_replicas();
    }
    // Wherever they were connected, they have lost it.
    for name in ["coordinator", "worker-0", "worker-1"] {
        let log =
            std::fs::read_to_string(sandbox.logs().join(format!("{name}.err"))).expect("a log");
        assert!(
            log.contains("waiting for NATS: the connection was lost"),
            "{name} was never disturbed"
        );
    }
    scene.finish();
}

#[test]
fn the_journals_store_is_full_for_a_while() {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    let server = NatsServer::with_room_for(&sandbox, JOURNAL_BYTES + OTHER_BYTES);
    let settings = format!("[journal]\nbytes_max = {JOURNAL_BYTES}\n");
    let mut scene = Scene::start(&sandbox, &s3, server.into(), &settings);
    scene.pool.hold_in_the_midst_of("job", "sorting");
    scene.pool.nats.fill("FILLER");
    scene.go_on();
    let stalled = scene.wait_for_stall("journal-failing");
    let why = stalled["waiting_for"].as_str().unwrap_or_default();
    assert!(why.contains("the journal is full"), "{stalled}");
    scene.pool.coordinator(0).wait_for_log("journal-failing of deployment", wait::RUN_BOUND);

    // A new job is refused, and its client says why while it tries again.
    let late = sort(&sandbox, &scene.pool, &scene.bucket, "late");
    let said = late.wait_for_log("no new jobs while the journal is not written", wait::RUN_BOUND);
    assert!(said.contains("the journal is full"), "{said}");
    scene.pool.run(["status", "late"]).expect_code(1).expect_error(&["late"]);
    scene.assert_still(&stalled);

    scene.pool.nats.remove("FILLER");
    scene.pool.finish_sort(late);
    Output::of_bucket(&scene.bucket, "late").assert_is(&oracle::fixed(&scene.data, 100, 0, 10));
    scene.finish();
}

/// Of the three parts of a job whose leader is cut off while the last of them appears.
const THIRD: usize = 800_000;
/// From a partition to a leader on the majority's side: its servers choose leaders of JetStream and
/// of the journal after four to nine seconds, more where they do not agree at once, and a stand-by
/// waits until they have.
const TAKE_OVER_BOUND: Duration = Duration::from_secs(60);

fn completes_an_upload(request: &str) -> bool {
    request.starts_with("POST ") && request.contains("uploadId=")
}

/// What the first coordinator has asked its store to change, but for the renewals of its claim:
/// these ask nobody, for they must go on while the journal is away.
fn changes(pool: &Pool<'_>) -> Vec<String> {
    let mut changes = pool.coordinator_gate().changes();
    changes.retain(|request| !request.starts_with("PUT /data/job/_muster/claims/"));
    changes
}

/// A leader is cut off together with the server that leads the journal, just when a call of its
/// commit is under way. That server goes on answering what it is asked, but can take no record; the
/// other two follow another leader. The old one changes nothing but what that one call does,
/// neither while it is alone nor when the sides are joined again.
#[test]
fn a_leader_on_the_minority_side_changes_nothing_more() {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    let bucket = s3.bucket(BUCKET);
    let data = records(RECORDS, Keys::Random, 1);
    bucket.put("in", &data);
    let mut pool =
        Pool::on_two_sides(Nats::of_two_sides(&sandbox), REPLICATED, &sandbox, 2, &s3, BUCKET);
    let next = pool.add_coordinator();
    pool.coordinator(next).wait_for_log("standing by epoch=1", wait::START_BOUND);
    pool.nats.lead_alone();
    pool.coordinator_gate().hold_after(2, completes_an_upload);
    let config = sandbox.small_tasks(SMALL, THIRD);
    let (from, to) = (bucket.url("in"), bucket.url("job"));
    let job = pool.start_sort(
        "job",
        [&from, "-o", &to, "--format", "fixed:100", "-k", "0:10", "--config", arg(&config)],
    );
    let held = pool
        .coordinator_gate()
        .wait_for_request("the third part's upload to be completed", wait::RUN_BOUND);
    assert_eq!(pool.nats.journal_leader(), LONE, "the journal's stream has another leader by now");

    pool.nats.part();
    pool.coordinator(next).wait_for_log("leading epoch=2", TAKE_OVER_BOUND);
    let before = changes(&pool);
    assert!(before.contains(&held), "{held} is not among {before:?}");
    report(&format!(
        "the newest entry that the lone server shows is of epoch {:?}",
        pool.nats.newest_epoch_alone()
    ));
    // The one call that was let through before now goes out, and whatever the old leader would do
    // after it.
    pool.coordinator_gate().open();
    pool.coordinator(0).wait_for_log("waiting for the journal epoch=1", wait::RUN_BOUND);
    let ended = pool.finish_sort(job);
    report(&format!("and at the job's end of epoch {:?}", pool.nats.newest_epoch_alone()));
    let log = pool.coordinator(0).stderr();
    assert!(!log.contains("stepped down"), "it was not cut off: {log}");
    let since = changes(&pool).split_off(before.len());
    assert!(since.is_empty(), "since another leads it has changed: {since:?}");

    pool.nats.join();
    let why = pool.coordinator(0).wait_for_log("stepped down", wait::RUN_BOUND);
    assert!(why.contains("epoch 1 is over"), "{why}");
    pool.coordinator(0).wait_for_log("standing by epoch=2", wait::RUN_BOUND);
    let since = changes(&pool).split_off(before.len());
    assert!(since.is_empty(), "since another leads it has changed: {since:?}");
    pool.assert_nothing_repeated("job", &ended);
    Output::of_bucket(&bucket, "job").assert_is(&oracle::fixed(&data, 100, 0, 10));
    wait::until_empty("in scratch", || bucket.list("scratch"));
    wait::until_empty("as open uploads", || bucket.uploads());
    let journal = pool.journal();
    let epochs: Vec<u64> = journal.entries().iter().map(|(_, entry)| entry.epoch.0).collect();
    assert!(
        epochs.is_sorted() && epochs.last() == Some(&2),
        "terms of the journal's entries: {epochs:?}"
    );
    let begun = journal
        .entries()
        .iter()
        .filter(|(_, entry)| matches!(entry.record, Record::EpochBegan { .. }));
    assert_eq!(begun.count(), 2, "nobody else has tried to lead");
    // And it takes its turn again.
    pool.coordinator(next).kill();
    pool.coordinator(0).wait_for_log("leading epoch=3", wait::RUN_BOUND);
}

#[expect(clippy::print_stderr, reason = "figures of a test that passes are read with --no-capture")]
fn report(text: &str) {
    eprintln!("{text}");
}
