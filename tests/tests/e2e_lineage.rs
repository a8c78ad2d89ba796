//! Sorted runs that the store loses or damages while a job merges: each is made again by the one
//! task that made it, or read from the replica. The bytes stay the same.

use std::time::Duration;

use muster_tests::harness::Journal;
use muster_tests::harness::data::{Keys, records};
use muster_tests::harness::{
    Bucket, Gate, Output, Pool, Process, S3Server, Sandbox, arg, journal, oracle, wait,
};
use serde_json::Value;

const BUCKET: &str = "data";
/// 24 sort tasks and about as many merges: in the midst of merging, merges that have not begun need
/// all runs.
const RECORDS: usize = 24_000;
const SMALL: usize = 100_000;
const DELAY: Duration = Duration::from_millis(40);

/// A job in the midst of merging, with every worker held before its next request to the bucket.
struct Merging<'a> {
    sandbox: &'a Sandbox,
    pool: Pool<'a>,
    bucket: Bucket,
    data: Vec<u8>,
    sort: Process,
}

impl<'a> Merging<'a> {
    fn start(sandbox: &'a Sandbox, s3: &S3Server, more: &[&str]) -> Self {
        let bucket = s3.bucket(BUCKET);
        let data = records(RECORDS, Keys::Skewed, 1);
        bucket.put("in", &data);
        let pool = Pool::on_bucket(sandbox, 3, s3, BUCKET);
        pool.slow_workers(DELAY);
        let config = sandbox.small_tasks(SMALL, SMALL);
        let (from, to) = (bucket.url("in"), bucket.url("out"));
        let mut arguments = vec![
            &*from,
            "-o",
            &to,
            "--format",
            "fixed:100",
            "-k",
            "0:10",
            "--config",
            arg(&config),
        ];
        arguments.extend(more);
        let sort = pool.start_sort("job", arguments);
        pool.hold_in_the_midst_of("job", "merging");
        Self { sandbox, pool, bucket, data, sort }
    }

    /// Keys of the runs that lie in scratch.
    fn runs(&self) -> Vec<String> {
        let runs: Vec<String> =
            self.bucket.list("scratch").into_iter().filter(|key| key.ends_with(".run")).collect();
        assert!(runs.len() >= 10, "{runs:?}");
        runs
    }

    #[track_caller]
    fn finish(self) -> Value {
        self.finish_and(|_| {})
    }

    /// Lets the job go on to its end, looks at the pool, checks the job's bytes and that nothing is
    /// left, and gives its report.
    #[track_caller]
    fn finish_and(self, look: impl FnOnce(&Pool<'_>)) -> Value {
        self.pool.each_worker_gate(Gate::open);
        let report = self.pool.finish_sort(self.sort);
        look(&self.pool);
        Output::of_bucket(&self.bucket, "out").assert_is(&oracle::fixed(&self.data, 100, 0, 10));
        wait::until_empty("in scratch", || self.bucket.list("scratch"));
        wait::until_empty("in the replica", || self.bucket.list("second"));
        wait::until_empty("as open uploads", || self.bucket.uploads());
        // Nothing but what was lost is done again: the report's count is that of the journal, and
        // no other committed task began again.
        let work = Journal::read(&self.pool.nats.url()).work("job");
        assert_eq!(
            report["repeated_tasks"].as_u64(),
            Some(work.repeated_tasks() as u64),
            "{report}"
        );
        let begins = journal::begins_in(&self.sandbox.logs());
        let late = work.begun_late(&begins);
        assert!(late.is_empty(), "began again without need: {late:?}");
        report
    }
}

#[test]
fn a_lost_run_is_made_again_while_merging() {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    let merging = Merging::start(&sandbox, &s3, &[]);
    let lost: Vec<String> = merging.runs().into_iter().step_by(5).collect();
    lost.iter().for_each(|key| merging.bucket.delete(key));
    let report = merging.finish();
    assert_eq!(
        report["repeated_tasks"].as_u64(),
        Some(lost.len() as u64),
        "lost: {lost:?}, {report}"
    );
}

#[test]
fn a_damaged_run_is_made_again_while_merging() {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    let merging = Merging::start(&sandbox, &s3, &[]);
    let damaged: Vec<String> = merging.runs().into_iter().step_by(5).collect();
    for (index, key) in damaged.iter().enumerate() {
        let mut bytes = merging.bucket.get(key);
        if index % 2 == 0 {
            bytes.iter_mut().step_by(100).for_each(|byte| *byte ^= 0x40);
        } else {
            bytes.truncate(bytes.len() / 2);
        }
        merging.bucket.put(key, &bytes);
    }
    let report = merging.finish();
    assert_eq!(
        report["repeated_tasks"].as_u64(),
        Some(damaged.len() as u64),
        "damaged: {damaged:?}, {report}"
    );
}

#[test]
fn a_replica_makes_up_for_a_lost_run() {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    let replica = format!("s3://{BUCKET}/second");
    let merging = Merging::start(&sandbox, &s3, &["--replica", &replica]);
    let runs = merging.runs();
    let copies = merging.bucket.list("second");
    assert!(copies.iter().filter(|key| key.ends_with(".run")).count() >= runs.len(), "{copies:?}");
    runs.iter().for_each(|key| merging.bucket.delete(key));
    let report = merging.finish_and(|pool| {
        wait::until("workers to say that they read from the replica", wait::RUN_BOUND, || {
            let workers = pool.run(["workers", "--json"]).json();
            let of = |worker: &Value| worker["mended"]["from_replica"].as_u64().unwrap_or(0);
            (workers.as_array()?.iter().map(of).sum::<u64>() > 0).then_some(())
        });
    });
    assert_eq!(report["repeated_tasks"], 0, "{report}");
}
