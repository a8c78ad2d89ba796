//! Two versions in one pool: a build, and the one before it, which writes the older journal and
//! speaks the older wire. Run by `deploy/test-upgrade.sh`, which builds both.

use std::time::Duration;

use muster_tests::harness::data::{Keys, records};
use muster_tests::harness::{
    Bucket, Gate, Output, Pool, Process, S3Server, Sandbox, arg, oracle, programs, wait,
};

const BUCKET: &str = "data";
const RECORDS: usize = 24_000;
const SMALL: usize = 100_000;
const DELAY: Duration = Duration::from_millis(40);

struct Scene<'a> {
    pool: Pool<'a>,
    bucket: Bucket,
    data: Vec<u8>,
    sort: Process,
}

impl<'a> Scene<'a> {
    /// A pool of the older build with three workers, and a job submitted by that build.
    fn of_the_older(sandbox: &'a Sandbox, s3: &S3Server) -> Self {
        let bucket = s3.bucket(BUCKET);
        let data = records(RECORDS, Keys::Skewed, 1);
        bucket.put("in", &data);
        let pool = Pool::on_bucket_by(programs::old_muster(), sandbox, 3, s3, BUCKET);
        pool.slow_workers(DELAY);
        let config = sandbox.small_tasks(SMALL, SMALL);
        let (from, to) = (bucket.url("in"), bucket.url("out"));
        let sort = pool.start_sort(
            "job",
            [&from, "-o", &to, "--format", "fixed:100", "-k", "0:10", "--config", arg(&config)],
        );
        Self { pool, bucket, data, sort }
    }

    #[track_caller]
    fn finish(self) {
        self.pool.each_worker_gate(Gate::open);
        self.pool.coordinator_gate().open();
        self.pool.finish_sort(self.sort);
        Output::of_bucket(&self.bucket, "out").assert_is(&oracle::fixed(&self.data, 100, 0, 10));
        wait::until_empty("in scratch", || self.bucket.list("scratch"));
        wait::until_empty("as open uploads", || self.bucket.uploads());
    }
}

/// The coordinator is replaced by a newer one, which reads the older journal; the workers stay,
/// then follow one after the other.
fn the_coordinator_goes_first(state: &str) {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    let mut scene = Scene::of_the_older(&sandbox, &s3);
    let before = scene.pool.hold_in_the_midst_of("job", state);
    scene.pool.kill_coordinator();
    scene.pool.program = programs::new_muster();
    scene.pool.start_coordinator();
    let after = wait::until("the newer coordinator to know the job", wait::RUN_BOUND, || {
        scene.pool.status("job")
    });
    assert_eq!(after["state"], before["state"], "{after}");
    assert!(
        after["tasks_done"].as_u64() >= before["tasks_done"].as_u64(),
        "{before} became {after}"
    );
    // Older workers, a newer coordinator: the job goes on.
    let done = after["tasks_done"].as_u64();
    scene.pool.each_worker_gate(Gate::open);
    scene.pool.slow_workers(DELAY);
    scene.pool.wait_for_status("job", "further on", |status| {
        status["state"] != state || status["tasks_done"].as_u64() > done
    });
    scene.pool.stop_worker(0, Duration::from_secs(60));
    scene.pool.start_worker(0);
    scene.finish();
}

#[test]
fn long_the_coordinator_is_upgraded_while_sorting() {
    the_coordinator_goes_first("sorting");
}

#[test]
fn long_the_coordinator_is_upgraded_while_merging() {
    the_coordinator_goes_first("merging");
}

/// The workers are replaced first, one after the other: newer workers, an older coordinator.
#[test]
fn long_the_workers_are_upgraded_first() {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    let mut scene = Scene::of_the_older(&sandbox, &s3);
    scene.pool.hold_in_the_midst_of("job", "sorting");
    scene.pool.each_worker_gate(Gate::open);
    scene.pool.slow_workers(DELAY);
    scene.pool.program = programs::new_muster();
    for worker in 0..3 {
        scene.pool.stop_worker(worker, Duration::from_secs(60));
        scene.pool.start_worker(worker);
    }
    scene.finish();
}

/// Back to the older build once the newer one has written: it cannot read the journal, says so, and
/// harms nothing.
#[test]
fn long_an_older_coordinator_refuses_a_newer_journal() {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    let bucket = s3.bucket(BUCKET);
    let data = records(RECORDS, Keys::Random, 2);
    bucket.put("in", &data);
    let mut pool = Pool::on_bucket_by(programs::new_muster(), &sandbox, 3, &s3, BUCKET);
    pool.slow_workers(DELAY);
    let config = sandbox.small_tasks(SMALL, SMALL);
    let (from, to) = (bucket.url("in"), bucket.url("out"));
    let sort = pool.start_sort(
        "job",
        [&from, "-o", &to, "--format", "fixed:100", "-k", "0:10", "--config", arg(&config)],
    );
    pool.hold_in_the_midst_of("job", "sorting");
    pool.kill_coordinator();
    pool.program = programs::old_muster();
    pool.start_coordinator();
    wait::until("the older coordinator to refuse", wait::RUN_BOUND, || pool.coordinator(0).poll());
    let said = pool.coordinator(0).stderr();
    assert!(said.contains("version"), "{said}");
    pool.program = programs::new_muster();
    pool.start_coordinator();
    Scene { pool, bucket, data, sort }.finish();
}
