//! Histories as large as they get: every entry that a snapshot makes of them fits, and gives the
//! state back.

use muster_kernel::proof::{Interval, Sums};
use muster_protocol::ErrorKind;
use muster_protocol::ids::{AttemptId, Generation, Phase, TaskId};
use muster_protocol::wire::{BadRecord, BlobRef, DamageCause, MESSAGE_BYTES_MAX};

use super::super::record::{
    self, AttemptFailed, Entry, GenerationBegan, JobEnded, JobOutcome, JobSubmitted, PartCommitted,
    RunCommitted,
};
use super::*;
use crate::job::ledger::durable::FAILURES_KEPT;
use crate::job::ledger::durable::{REVOKED_KEPT, WORKERS_KEPT};

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn next(&mut self, below: u32) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        u32::try_from((z ^ (z >> 31)) % u64::from(below.max(1))).unwrap_or(0)
    }
}

fn job() -> JobId {
    "j".repeat(60).parse().expect("job id")
}

fn blob(url: &str) -> BlobRef {
    BlobRef { url: url.to_owned(), bytes: 1, digest: 2 }
}

fn attempt(phase: Phase, index: u32, generation: u32, nonce: u64) -> AttemptId {
    AttemptId {
        task: TaskId { phase, index },
        generation: Generation(generation),
        epoch: Epoch(1),
        nonce,
    }
}

fn submitted(splits: u32, partitions: u32) -> Record {
    Record::JobSubmitted(Box::new(JobSubmitted {
        job: job(),
        order: 0,
        spec_json: "x".repeat(500_000),
        output: "s3://b/o".to_owned(),
        output_existed: false,
        extension: "txt".to_owned(),
        scratch: "s3://b/s".to_owned(),
        plan: blob("s3://b/s/plan"),
        splits,
        partitions,
        replica: None,
        input_bytes: 9,
        attempts_max: 100,
        submitted_unix_ms: 1,
        took_ms: 1,
    }))
}

/// A journal, folded as it grows.
struct Journal {
    durable: Durable,
    nonce: u64,
    dice: Dice,
}

impl Journal {
    fn of(splits: u32, partitions: u32, seed: u64) -> Self {
        let mut journal = Self { durable: Durable::default(), nonce: 0, dice: Dice(seed) };
        journal.push(&Record::DeploymentCreated { deployment: "d1".parse().expect("id") });
        journal.push(&Record::EpochBegan { epoch: Epoch(1), nonce: 3 });
        journal.push(&submitted(splits, partitions));
        journal.push(&Record::BoundariesChosen {
            job: job(),
            splitters: None,
            partitions,
            took_ms: 1,
        });
        journal
    }

    #[track_caller]
    fn push(&mut self, record: &Record) {
        self.durable.apply(record).expect("a sound record");
    }

    fn job(&self) -> &DurableJob {
        &self.durable.jobs[&job()]
    }

    fn attempt(&mut self, phase: Phase, index: u32) -> AttemptId {
        self.nonce += 1;
        let generation = if phase == Phase::Sort { self.job().generation(index).0 } else { 0 };
        attempt(phase, index, generation, self.nonce)
    }

    fn fail(&mut self, phase: Phase, index: u32) {
        let worker = "w".repeat(60).parse().expect("worker id");
        let error = "\u{1F980}".repeat(300);
        let attempt = self.attempt(phase, index);
        let failed = AttemptFailed { job: job(), attempt, worker, kind: ErrorKind::Retry, error };
        self.push(&Record::AttemptFailed(Box::new(failed)));
    }

    fn commit_run(&mut self, split: u32, pieces: u32) {
        let worker =
            format!("{}-{}", "w".repeat(50), self.dice.next(2500)).parse().expect("worker id");
        self.commit(split, pieces, worker);
    }

    fn commit_run_by(&mut self, split: u32, worker: WorkerId) {
        self.commit(split, 1, worker);
    }

    fn commit(&mut self, split: u32, pieces: u32, worker: WorkerId) {
        let attempt = self.attempt(Phase::Sort, split);
        let places = (0..if pieces > 1 { 20 } else { 0 }).map(|at| BadRecord {
            object: at,
            offset: 1,
            bytes: 2,
            reason: "r".repeat(1024),
        });
        self.push(&Record::RunCommitted(Box::new(RunCommitted {
            job: job(),
            split,
            attempt,
            worker,
            url: "s3://b/s/run".to_owned(),
            replica: None,
            bytes: 3,
            index_digest: 4,
            input: Sums::default(),
            kept: Sums::default(),
            dropped: Sums::default(),
            skipped: Sums::default(),
            quarantine: None,
            intervals: (0..pieces)
                .map(|object| Interval { object, begin: u64::MAX - 1, end: u64::MAX })
                .collect(),
            bad_records: places.collect(),
        })));
    }

    fn lose_run(&mut self, split: u32) {
        let Some(run) = self.job().runs.get(&split) else { return };
        let (lost, generation) = (run.attempt, Generation(self.job().generation(split).0 + 1));
        let why = "\u{1F980}".repeat(300);
        let began =
            GenerationBegan { job: job(), split, generation, lost, cause: DamageCause::Store, why };
        self.push(&Record::GenerationBegan(Box::new(began)));
    }

    fn open(&mut self, partition: u32) -> AttemptId {
        let attempt = self.attempt(Phase::Merge, partition);
        self.push(&Record::UploadOpened {
            job: job(),
            partition,
            attempt,
            upload: "u".repeat(2048),
        });
        attempt
    }

    fn commit_part(&mut self, partition: u32) {
        let attempt = self.open(partition);
        self.push(&Record::PartCommitted(Box::new(PartCommitted {
            job: job(),
            partition,
            attempt,
            worker: "w".parse().expect("id"),
            upload: "u".repeat(2048),
            tags: vec!["t".repeat(34); 10_000],
            bytes: 1,
            checksum: 2,
            kept: Sums::default(),
            dropped: Sums::default(),
            first_key: vec![0; 1024],
            last_key: vec![1; 1024],
        })));
    }

    /// Every entry of a snapshot fits, in any term, and all of them together give the state.
    #[track_caller]
    fn check(&self) -> usize {
        let pieces = snapshot(&self.durable, u64::MAX).expect("a snapshot");
        let mut fold = Fold::default();
        for record in &pieces {
            let entry = Entry { epoch: Epoch(u64::MAX), nonce: u64::MAX, record: record.clone() };
            let bytes = record::encode(&entry).expect("it fits");
            assert!(bytes.len() <= MESSAGE_BYTES_MAX);
            let entry = record::decode(&bytes).expect("it is read");
            fold.push(Entry { epoch: Epoch(1), ..entry });
        }
        let (again, refused) = fold.finish();
        assert_eq!(refused, Vec::<String>::new());
        assert!(again == self.durable, "the snapshot gives another state");
        pieces.len()
    }
}

/// The reproduction: thousands of failed attempts, or of objects that are left out with a reason,
/// made one record that no message could hold.
#[test]
fn a_large_history_is_cut_into_records_that_fit() {
    let mut journal = Journal::of(1500, 2, 1);
    for at in 0..15_000 {
        journal.fail(Phase::Sort, at % 1500);
    }
    assert_eq!(journal.job().failures.len(), FAILURES_KEPT, "what is kept in words is bounded");
    assert_eq!(journal.job().tries.values().sum::<u32>(), 15_000, "and all are counted");
    assert!(journal.job().tries.values().all(|tries| *tries == 10));
    assert_eq!(journal.job().retries, 15_000);
    let last = attempt(Phase::Sort, 1499, 0, 15_000);
    assert_eq!(
        journal.job().failures.back().map(|failure| failure.attempt),
        Some(last),
        "the last are kept"
    );
    assert!(journal.check() > 2);

    let mut journal = Journal::of(4, 2, 1);
    for object in 0..10_000 {
        journal.push(&Record::ObjectSkipped { job: job(), object, why: "\u{1F980}".repeat(300) });
    }
    assert!(journal.check() > 10, "10,000 reasons of 1,200 bytes");
}

/// A property over histories: whatever happened, and however much of it, no entry exceeds the limit
/// and the fold of the snapshot is the state.
#[test]
fn whatever_happened_a_snapshot_fits_and_gives_the_state() {
    for seed in 0..12 {
        let mut dice = Dice(seed);
        let (splits, partitions) = (1 + dice.next(400), 1 + dice.next(12));
        let mut journal = Journal::of(splits, partitions + 1, seed);
        let rare = 1 + dice.next(40);
        for _ in 0..dice.next(6000) {
            let split = journal.dice.next(splits);
            match journal.dice.next(40) {
                0..20 => journal.fail(Phase::Sort, split),
                20..25 => journal.fail(Phase::Sample, split),
                25..30 => {
                    let object = journal.dice.next(20_000);
                    let why = "why ".repeat(journal.dice.next(300) as usize);
                    journal.push(&Record::ObjectSkipped { job: job(), object, why });
                }
                30..35 => journal.lose_run(split),
                _ if journal.job().runs.contains_key(&split) => {}
                _ => {
                    let pieces = if journal.dice.next(rare) == 0 { 20_000 } else { 3 };
                    journal.commit_run(split, pieces);
                }
            }
        }
        journal.check();
        if seed % 3 == 0 {
            for split in 0..splits {
                if !journal.job().runs.contains_key(&split) {
                    journal.commit_run(split, 1);
                }
            }
            journal.push(&Record::RunsPinned {
                job: job(),
                runs: blob("s3://b/s/runs"),
                took_ms: 2,
            });
            for _ in 0..600 {
                let partition = journal.dice.next(partitions);
                let attempt = journal.open(partition);
                journal.fail(Phase::Merge, partition);
                journal.push(&Record::UploadRevoked { job: job(), partition, attempt });
            }
            (0..partitions.min(4)).for_each(|partition| journal.commit_part(partition));
            journal.open(partitions);
            journal.check();
        }
    }
}

/// Uploads that were revoked again and again are bounded for each partition; one that may have been
/// forgotten counts as revoked.
#[test]
fn revoked_uploads_are_bounded() {
    let mut journal = Journal::of(1, 3, 5);
    journal.commit_run(0, 1);
    journal.push(&Record::RunsPinned { job: job(), runs: blob("s3://b/s/runs"), took_ms: 2 });
    let mut gone = Vec::new();
    for _ in 0..1000 {
        let attempt = journal.open(1);
        journal.push(&Record::UploadRevoked { job: job(), partition: 1, attempt });
        gone.push(attempt);
    }
    let one = journal.open(2);
    journal.push(&Record::UploadRevoked { job: job(), partition: 2, attempt: one });
    let kept: Vec<AttemptId> = journal.job().revoked_of(1).map(|upload| upload.attempt).collect();
    assert_eq!(kept, gone[1000 - REVOKED_KEPT..]);
    assert_eq!(journal.job().revoked.len(), REVOKED_KEPT + 1);
    assert!(gone.iter().all(|attempt| journal.job().may_be_revoked(attempt)));
    assert!(journal.job().may_be_revoked(&one));
    let never = journal.attempt(Phase::Merge, 2);
    assert!(!journal.job().may_be_revoked(&never));
    journal.check();
}

/// What each worker has done outlives its job, in as many records as it takes, and is bounded.
#[test]
fn what_workers_have_done_outlives_their_jobs() {
    let worker =
        |at: u32| format!("{}-{at}", "w".repeat(50)).parse::<WorkerId>().expect("worker id");
    let many = u32::try_from(WORKERS_KEPT).expect("a number") + 5;
    let mut journal = Journal::of(many, 2, 1);
    for split in 0..many {
        journal.commit_run_by(split, worker(split));
    }
    assert_eq!(journal.durable.done.len(), WORKERS_KEPT);
    journal.lose_run(3);
    journal.commit_run_by(3, worker(many - 1));
    assert_eq!(journal.durable.done[&worker(many - 1)], 2);
    assert!(journal.check() > 10);
    let failed = JobEnded {
        job: job(),
        outcome: JobOutcome::Failed,
        error: None,
        retries: 0,
        repeated: 0,
        recoveries: Vec::new(),
        took_ms: 0,
        unix_ms: 0,
    };
    journal.push(&Record::JobEnded(Box::new(failed)));
    journal.push(&Record::JobCleaned { job: job() });
    journal.push(&Record::JobForgotten { job: job() });
    assert_eq!(journal.durable.done[&worker(many - 1)], 2);
    journal.check();
}

/// A record that no entry can hold makes no snapshot that ends the leader.
#[test]
fn what_cannot_be_written_makes_no_snapshot() {
    let mut journal = Journal::of(1, 2, 1);
    journal.push(&Record::RunsPinned { job: job(), runs: blob("s3://b/s/runs"), took_ms: 2 });
    let upload = "u".repeat(RECORD_BYTES_MAX);
    let attempt = journal.attempt(Phase::Merge, 1);
    journal.push(&Record::UploadOpened { job: job(), partition: 1, attempt, upload });
    let error = snapshot(&journal.durable, 1).expect_err("too large");
    assert!(error.kind == ErrorKind::Bug && error.message.contains("upload-opened"), "{error}");
}
