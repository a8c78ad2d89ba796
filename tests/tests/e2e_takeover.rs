//! Two coordinators on one deployment: one leads, the other stands by. The leader is killed,
//! stopped and continued, or asked to end, in the midst of a job; the job goes on under the other,
//! ends with the same bytes, and nothing that was committed is done again.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use muster_coordinator::journal::record::{self, Record};
use muster_protocol::wire::MESSAGE_BYTES_MAX;
use muster_tests::harness::data::{Keys, records};
use muster_tests::harness::journal::Journal;
use muster_tests::harness::{
    Bucket, Gate, Output, Pool, Process, S3Server, Sandbox, arg, oracle, process, wait,
};
use rustix::process::Signal;
use serde_json::Value;

const BUCKET: &str = "data";
/// About 24 sort tasks and as many merges of 2.4 MB.
const RECORDS: usize = 24_000;
const SMALL: usize = 100_000;
/// Added to each request of a worker, so that phases last for seconds.
const DELAY: Duration = Duration::from_millis(40);
/// Sort tasks of the job whose attempts fail, and how many failures are waited for.
const SPLITS: usize = 900;
const FAILURES: u64 = 6_500;
/// What the design promises from the loss of a leader to progress under a stand-by.
const PROGRESS_BOUND: Duration = Duration::from_secs(10);

fn completes_an_upload(request: &str) -> bool {
    request.starts_with("POST ") && request.contains("uploadId=")
}

#[expect(clippy::disallowed_methods, reason = "compared with the times of the journal's stream")]
fn now() -> SystemTime {
    SystemTime::now()
}

/// A job on a pool of two coordinators and two workers with a bucket.
struct Scene<'a> {
    pool: Pool<'a>,
    bucket: Bucket,
    data: Vec<u8>,
    sort: Process,
}

impl<'a> Scene<'a> {
    /// Starts servers and pool, lets `prepare` set gates, and submits the job. Coordinator 0 leads,
    /// coordinator 1 stands by.
    fn start(
        sandbox: &'a Sandbox,
        s3: &S3Server,
        profile: &'static str,
        prepare: impl Fn(&Pool<'_>),
    ) -> Self {
        let bucket = s3.bucket(BUCKET);
        let data = records(RECORDS, Keys::Skewed, 1);
        bucket.put("in", &data);
        let mut pool = Pool::on_bucket_with(sandbox, 2, s3, BUCKET, profile);
        let second = pool.add_coordinator();
        pool.coordinator(second).wait_for_log("standing by", wait::START_BOUND);
        pool.slow_workers(DELAY);
        prepare(&pool);
        let config = sandbox.small_tasks(SMALL, SMALL);
        let (from, to) = (bucket.url("in"), bucket.url("out"));
        let options =
            ["--format", "fixed:100", "-k", "0:10", "--overwrite", "--config", arg(&config)];
        let sort = pool.start_sort("job", [from.as_str(), "-o", &to].into_iter().chain(options));
        Self { pool, bucket, data, sort }
    }

    fn open_gates(&self) {
        self.pool.each_worker_gate(Gate::open);
        self.pool.coordinator_gate().open();
    }

    /// How long after a moment the first task was committed, or the job ended, under this epoch or
    /// a later one.
    #[track_caller]
    fn progress_after(&self, moment: SystemTime, epoch: u64) -> Duration {
        let journal = Journal::read(&self.pool.nats.url());
        let made = |record: &Record| {
            matches!(
                record,
                Record::RunCommitted(_) | Record::PartCommitted(_) | Record::JobEnded(_)
            )
        };
        let first = journal
            .entries()
            .iter()
            .find(|(_, entry)| entry.epoch.0 >= epoch && made(&entry.record));
        let (at, entry) = first.expect("the journal shows progress");
        let took = at.duration_since(moment).expect("it came after");
        report(&format!(
            "progress {} ms after the leader was lost ({})",
            took.as_millis(),
            entry.record.kind()
        ));
        took
    }

    /// Waits for the job's success with the right bytes; nothing was done twice and nothing else is
    /// left. Gives its report and the pool.
    #[track_caller]
    fn finish(self) -> (Value, Pool<'a>) {
        self.open_gates();
        let report = self.pool.finish_sort(self.sort);
        self.pool.assert_nothing_repeated("job", &report);
        assert_output(&self.bucket, &self.data);
        (report, self.pool)
    }
}

#[track_caller]
fn assert_output(bucket: &Bucket, data: &[u8]) {
    let output = Output::of_bucket(bucket, "out");
    assert!(output.success.is_some(), "_SUCCESS is gone");
    output.assert_is(&oracle::fixed(data, 100, 0, 10));
    wait::until_empty("in scratch", || bucket.list("scratch"));
    wait::until_empty("as open uploads", || bucket.uploads());
}

#[expect(clippy::print_stderr, reason = "figures of a test that passes are read with --no-capture")]
fn report(text: &str) {
    eprintln!("{text}");
}

/// Replies to a ping of the control API's service.
fn services(pool: &Pool<'_>) -> usize {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        use futures::StreamExt;
        let client = async_nats::connect(pool.nats.url()).await.expect("connect");
        let mut replies = client.subscribe("replies").await.expect("subscribe");
        client.publish_with_reply("$SRV.PING.muster", "replies", "".into()).await.expect("publish");
        let mut count = 0;
        while let Ok(Some(_)) =
            tokio::time::timeout(Duration::from_millis(500), replies.next()).await
        {
            count += 1;
        }
        count
    })
}

/// The tasks that `muster workers` says each worker has done.
fn done_by_worker(pool: &Pool<'_>) -> Option<BTreeMap<String, u64>> {
    let workers = pool.user("client").workers()?;
    let done =
        |worker: &Value| Some((worker["id"].as_str()?.to_owned(), worker["tasks_done"].as_u64()?));
    workers.iter().map(done).collect()
}

fn leader_is_killed(state: &str) {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    let mut scene = Scene::start(&sandbox, &s3, "testing", |_| {});
    let before = scene.pool.hold_in_the_midst_of("job", state);
    let done_before = done_by_worker(&scene.pool).expect("the leader answers");
    let killed = now();
    scene.pool.kill_coordinator();
    scene.pool.each_worker_gate(Gate::open);
    scene.pool.coordinator(1).wait_for_log("leading epoch=2", PROGRESS_BOUND);
    // What each worker has done does not fall: it is in the journal.
    let registered = wait::until("both workers to register again", PROGRESS_BOUND, || {
        done_by_worker(&scene.pool).filter(|done| done.len() == done_before.len())
    });
    for (worker, done) in &done_before {
        assert!(registered[worker] >= *done, "{worker}: {done} became {}", registered[worker]);
    }
    assert!(done_before.values().sum::<u64>() > 0, "nothing was done before");
    let after =
        wait::until("the new leader to know the job", PROGRESS_BOUND, || scene.pool.status("job"));
    let done = |status: &Value| (status["state"] == state).then(|| status["tasks_done"].as_u64());
    assert!(
        done(&after).is_none_or(|after| after >= done(&before).flatten()),
        "{before} became {after}"
    );
    let text = scene.pool.coordinator(1).wait_for_log("took-over", PROGRESS_BOUND);
    assert!(text.contains("took over from epoch 1"), "{text}");
    scene.open_gates();
    wait::until("the job to end", wait::RUN_BOUND, || scene.sort.poll());
    assert!(scene.progress_after(killed, 2) <= PROGRESS_BOUND);
    let (_, pool) = scene.finish();
    // The job's history tells of the take-over, and its status what came of it.
    let events = pool.run(["events", "job"]).expect_code(0).stdout;
    assert!(events.contains("took-over") && events.contains("job-ended"), "{events}");
    let status = pool.run(["status", "job"]).expect_code(0).stdout;
    for words in ["records   24,000", "parts     ", "time      ", "sort "] {
        assert!(status.contains(words), "no {words:?} in {status}");
    }
}

#[test]
fn the_leader_is_killed_while_sorting() {
    leader_is_killed("sorting");
}

#[test]
fn the_leader_is_killed_while_merging() {
    leader_is_killed("merging");
}

#[test]
fn the_leader_is_killed_while_sampling() {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    let mut scene = Scene::start(&sandbox, &s3, "testing", |pool| pool.worker_gate(0).hold_all());
    scene.pool.worker_gate(0).wait_for_request("worker 0 to sample", wait::RUN_BOUND);
    assert_eq!(scene.pool.status("job").expect("status")["state"], "sampling");
    let killed = now();
    scene.pool.kill_coordinator();
    scene.open_gates();
    wait::until("the job to end", wait::RUN_BOUND, || scene.sort.poll());
    assert!(scene.progress_after(killed, 2) <= PROGRESS_BOUND);
    scene.finish();
}

#[test]
fn the_leader_is_killed_while_the_job_commits() {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    let mut scene = Scene::start(&sandbox, &s3, "testing", |pool| {
        pool.coordinator_gate().hold_after(2, completes_an_upload);
    });
    scene
        .pool
        .coordinator_gate()
        .wait_for_request("the third part's upload to be completed", wait::RUN_BOUND);
    let killed = now();
    scene.pool.kill_coordinator();
    scene.open_gates();
    wait::until("the job to end", wait::RUN_BOUND, || scene.sort.poll());
    assert!(scene.progress_after(killed, 2) <= PROGRESS_BOUND);
    scene.finish();
}

/// The promise as users get it: with the default settings.
#[test]
fn progress_within_ten_seconds_of_a_kill_by_default() {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    let mut scene = Scene::start(&sandbox, &s3, "production", |_| {});
    scene.pool.hold_in_the_midst_of("job", "sorting");
    let killed = now();
    scene.pool.kill_coordinator();
    scene.pool.each_worker_gate(Gate::open);
    wait::until("the job to end", wait::RUN_BOUND, || scene.sort.poll());
    let took = scene.progress_after(killed, 2);
    assert!(took <= PROGRESS_BOUND, "{took:?}");
    scene.finish();
}

/// A leader that is stopped for longer than its stand-by waits, and then goes on, changes nothing
/// any more: neither while the job runs nor later.
#[test]
fn a_leader_that_was_stopped_steps_down() {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    let mut scene = Scene::start(&sandbox, &s3, "testing", |_| {});
    scene.pool.hold_in_the_midst_of("job", "sorting");
    let stopped = now();
    scene.pool.coordinator(0).signal(Signal::STOP);
    scene.pool.coordinator(1).wait_for_log("leading epoch=2", PROGRESS_BOUND);
    // Only one answers, and it does so although the other one's subscriptions still stand.
    for _ in 0..5 {
        let status = scene.pool.status("job").expect("the new leader answers");
        assert_eq!(status["state"], "sorting", "{status}");
    }
    assert_eq!(services(&scene.pool), 1);
    scene.pool.coordinator(0).signal(Signal::CONT);
    let why = scene.pool.coordinator(0).wait_for_log("stepped down", PROGRESS_BOUND);
    assert!(why.contains("epoch 1 is over"), "{why}");
    scene.pool.coordinator(0).wait_for_log("standing by epoch=2", PROGRESS_BOUND);
    assert_eq!(services(&scene.pool), 1, "who stepped down offers no service");
    scene.open_gates();
    wait::until("the job to end", wait::RUN_BOUND, || scene.sort.poll());
    assert!(scene.progress_after(stopped, 2) <= PROGRESS_BOUND);
    let (_, mut pool) = scene.finish();
    // And it takes its turn again.
    pool.coordinator(1).kill();
    pool.coordinator(0).wait_for_log("leading epoch=3", PROGRESS_BOUND);
    assert_eq!(pool.status("job").expect("status")["state"], "succeeded");
    assert_eq!(services(&pool), 1);
}

/// Stopped in the midst of the commit, with calls to the store under way, and continued when the
/// next leader has come to the end of it.
#[test]
fn a_leader_that_was_stopped_while_committing_takes_nothing_away() {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    let mut scene = Scene::start(&sandbox, &s3, "testing", |pool| {
        pool.coordinator_gate().hold_after(2, completes_an_upload);
    });
    scene
        .pool
        .coordinator_gate()
        .wait_for_request("the third part's upload to be completed", wait::RUN_BOUND);
    scene.pool.coordinator(0).signal(Signal::STOP);
    scene.open_gates();
    let (_, mut pool) = scene_finish_stopped(scene);
    pool.coordinator(0).signal(Signal::CONT);
    pool.coordinator(0).wait_for_log("stepped down", PROGRESS_BOUND);
    pool.coordinator(0).wait_for_log("standing by epoch=2", PROGRESS_BOUND);
    let bucket = s3.bucket(BUCKET);
    assert_output(&bucket, &records(RECORDS, Keys::Skewed, 1));
}

/// Finishes a scene whose first coordinator is stopped.
#[track_caller]
fn scene_finish_stopped(scene: Scene<'_>) -> (Value, Pool<'_>) {
    let (report, pool) = scene.finish();
    assert!(report["records"].as_u64() == Some(RECORDS as u64), "{report}");
    (report, pool)
}

#[test]
fn a_leader_that_is_asked_to_end_resigns() {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    let mut scene = Scene::start(&sandbox, &s3, "testing", |_| {});
    scene.pool.hold_in_the_midst_of("job", "sorting");
    let asked = now();
    scene.pool.coordinator(0).signal(Signal::TERM);
    let ended = scene.pool.coordinator(0).wait(PROGRESS_BOUND);
    assert_eq!(process::exit_code(ended), 0);
    scene.pool.each_worker_gate(Gate::open);
    let cause = scene.pool.coordinator(1).wait_for_log("trying to lead", PROGRESS_BOUND);
    assert!(cause.contains("it has resigned"), "{cause}");
    scene.open_gates();
    wait::until("the job to end", wait::RUN_BOUND, || scene.sort.poll());
    assert!(scene.progress_after(asked, 2) <= PROGRESS_BOUND);
    scene.finish();
}

#[test]
fn of_several_that_start_at_once_one_leads() {
    let sandbox = Sandbox::new();
    let mut pool = Pool::on_folder(&sandbox, 1);
    pool.kill_coordinator();
    pool.start_coordinator();
    let count = 4;
    for _ in 1..count {
        pool.add_coordinator();
    }
    for index in 0..count {
        let what = format!("coordinator {index} to lead or to stand by");
        wait::until(&what, wait::START_BOUND, || {
            let log = pool.coordinator(index).stderr();
            (log.contains("leading epoch=2") || log.contains("standing by epoch=2")).then_some(())
        });
    }
    // The first one's log goes on from its former life, in which it led epoch 1.
    let leaders = (0..count)
        .filter(|&index| pool.coordinator(index).stderr().contains("leading epoch=2"))
        .count();
    assert_eq!(leaders, 1);
    assert_eq!(services(&pool), 1);
    let began = Journal::read(&pool.nats.url());
    let epochs = began
        .entries()
        .iter()
        .filter(|(_, entry)| matches!(entry.record, Record::EpochBegan { .. }))
        .count();
    assert_eq!(epochs, 2, "nobody was deposed");
}

#[test]
fn clients_and_workers_wait_for_a_coordinator() {
    let sandbox = Sandbox::new();
    let mut pool = Pool::on_folder(&sandbox, 1);
    let config = sandbox.file("impatient.toml", "[worker]\ncoordinator_wait_ms = 3000\n");
    let mut command = sandbox.muster();
    command.args(["worker", "--id", "impatient", "--profile", "testing", "--config", arg(&config)]);
    command.env("NATS_URL", pool.nats.url());
    let mut impatient = Process::spawn("impatient", command, &sandbox.logs());
    impatient.wait_for_log("registered", wait::START_BOUND);
    pool.kill_coordinator();
    let mut asks = Process::spawn("asks", pool.client(["workers", "--json"]), &sandbox.logs());
    asks.wait_for_log("waiting for coordinator", wait::START_BOUND);
    let ended = impatient.wait(wait::START_BOUND);
    assert_eq!(
        process::exit_code(ended),
        3,
        "a code that supervisors restart: {}",
        impatient.stderr()
    );
    impatient.wait_for_log("waiting for coordinator", Duration::ZERO);
    pool.start_coordinator();
    assert_eq!(process::exit_code(asks.wait(wait::START_BOUND)), 0, "{}", asks.stderr());
}

/// Attempts fail by the thousand, each with its words, and snapshots are taken all along: no entry
/// grows beyond what a message may be, and another leader reads all of it.
#[test]
fn thousands_of_failed_attempts_fit_into_snapshots() {
    const SETTINGS: &str = "[faults]\nenabled = true\n\
                            [journal]\nsnapshot_after = 400\n\
                            [tasks]\nattempts_max = 100\n\
                            [retry.task]\npause_ms = 1\npause_max_ms = 2\n\
                            [breaker]\nfailures_max = 100000\nvolume_min = 100000\n\
                            [recovery]\nwave_losses_min = 1000\n";
    let sandbox = Sandbox::new();
    let data = records(RECORDS, Keys::Random, 3);
    let (input, output) = (sandbox.file("in", &data), sandbox.path("out"));
    let mut pool = Pool::watched_on_folder(&sandbox, 3, SETTINGS);
    for worker in 0..3 {
        pool.inject(&format!("worker-{worker}"), "task.begin:error,p=0.9,phase=sort");
        pool.stop_worker(worker, wait::START_BOUND);
        pool.start_worker(worker);
    }
    let config = sandbox.small_tasks(RECORDS * 100 / SPLITS, RECORDS * 100 / 4);
    // Every failure bears the job's name.
    let job = "j".repeat(64);
    let options =
        ["-o", arg(&output), "--format", "fixed:100", "-k", "0:10", "--config", arg(&config)];
    let mut sort = pool.start_sort(&job, [arg(&input)].into_iter().chain(options));
    let retries = |status: &Value| status["retries"].as_u64().unwrap_or(0);
    pool.wait_for_status(&job, "failing by the thousand", |status| retries(status) > FAILURES);
    let before = pool.status(&job).expect("the leader answers");
    pool.kill_coordinator();
    pool.start_coordinator();
    let after =
        wait::until("the next leader to know the job", wait::RUN_BOUND, || pool.status(&job));
    assert!(retries(&after) >= retries(&before), "{before} became {after}");
    wait::until("the job to end", wait::RUN_BOUND, || sort.poll());
    pool.coordinator(0).assert_running();
    let ended = pool.finish_sort(sort);
    assert!(ended["retries"].as_u64() > Some(FAILURES), "{ended}");
    Output::of_folder(&output).assert_is(&oracle::fixed(&data, 100, 0, 10));
    let journal = Journal::read(&pool.nats.url());
    let pieces = journal.entries().iter().filter_map(|(_, entry)| match &entry.record {
        Record::Snapshot { records, .. } => Some(records),
        _ => None,
    });
    let failures = pieces.flatten().filter_map(|record| match record {
        Record::JobHistory(history) => history.failures.first(),
        _ => None,
    });
    let one = failures
        .map(|failed| record::size(&Record::AttemptFailed(Box::new(failed.clone()))))
        .next();
    let bytes = one.expect("a snapshot tells of failures").expect("a size") as u64 * FAILURES;
    assert!(
        bytes > MESSAGE_BYTES_MAX as u64,
        "as one entry they would be {bytes} bytes: too few to show anything"
    );
}

/// A leader whose own code is wrong steps down, says so, and is not led into the same by its
/// stand-by in a loop. Neither process ends.
#[test]
fn a_leader_that_meets_a_bug_steps_down_and_says_so() {
    let sandbox = Sandbox::new();
    let data = records(2_000, Keys::Random, 3);
    let (input, output) = (sandbox.file("in", &data), sandbox.path("out"));
    let mut pool = Pool::watched_on_folder(&sandbox, 1, "[faults]\nenabled = true\n");
    // Both meet it with the first record after the beginning of their terms, once each.
    pool.inject("coordinator", "ledger.append:bug,after=1,times=1");
    pool.kill_coordinator();
    pool.start_coordinator();
    let second = pool.add_coordinator();
    let sort = pool.start_sort(
        "job",
        [arg(&input), "-o", arg(&output), "--format", "fixed:100", "-k", "0:10"],
    );
    for index in [0, second] {
        pool.coordinator(index).wait_for_log("leader-failed", wait::RUN_BOUND);
    }
    let report = pool.finish_sort(sort);
    assert_eq!(report["records"], 2_000);
    Output::of_folder(&output).assert_is(&oracle::fixed(&data, 100, 0, 10));
    for index in [0, second] {
        pool.coordinator(index).assert_running();
    }
    let events = pool.run(["events", "--json"]).expect_code(0).stdout;
    let told = |line: &&str| {
        line.contains("\"leader-failed\"") && line.contains("does not try to lead for 5 s")
    };
    assert_eq!(events.lines().filter(told).count(), 2, "{events}");
    let epochs = Journal::read(&pool.nats.url());
    let begun = epochs
        .entries()
        .iter()
        .filter(|(_, entry)| matches!(entry.record, Record::EpochBegan { .. }))
        .count();
    assert!(begun <= 5, "{begun} terms began");
}
