//! Golden bytes: journals that exist must stay readable for ever. A test that fails here means that
//! the format has changed: make a new version instead.
//!
//! `golden/v1.txt` has an entry of version 1 with each variant of a record, name and hex digits;
//! a second version gets a file and a test of its own. `UPDATE_GOLDEN=1 cargo nextest run
//! --workspace --lib stay_readable` writes the lines of what is new.

use muster_kernel::proof::{Interval, Sums};
use muster_protocol::error::ErrorKind;
use muster_protocol::every;
use muster_protocol::ids::{Epoch, Generation, Phase, TaskId};
use muster_protocol::wire::{BadRecord, BlobRef, DamageCause};

use super::*;

const GOLDEN: &str = include_str!("golden/v1.txt");
const NONCE: u64 = 0xffff_ffff_ffff_ffff;

fn attempt(phase: Phase, index: u32) -> AttemptId {
    AttemptId {
        task: TaskId { phase, index },
        generation: Generation(0),
        epoch: Epoch(3),
        nonce: 0xabc,
    }
}

fn job() -> JobId {
    "j1".parse().expect("job id")
}

fn worker() -> WorkerId {
    "w1".parse().expect("worker id")
}

fn blob(url: &str) -> BlobRef {
    BlobRef { url: url.to_owned(), bytes: 300, digest: 7 }
}

fn sums(records: u64) -> Sums {
    Sums { records, bytes: 10 * records, hash: 0x1234 }
}

fn submitted() -> JobSubmitted {
    JobSubmitted {
        job: job(),
        order: 1,
        spec_json: "{}".to_owned(),
        output: "file:///o".to_owned(),
        output_existed: true,
        extension: "txt".to_owned(),
        scratch: "file:///s".to_owned(),
        plan: blob("file:///p"),
        splits: 2,
        partitions: 3,
        replica: Some("file:///s2".to_owned()),
        input_bytes: 4,
        attempts_max: 5,
        submitted_unix_ms: 6,
        took_ms: 7,
    }
}

fn run_committed() -> RunCommitted {
    RunCommitted {
        job: job(),
        split: 1,
        attempt: attempt(Phase::Sort, 1),
        worker: worker(),
        url: "file:///r".to_owned(),
        replica: Some("file:///r2".to_owned()),
        bytes: 400,
        index_digest: 8,
        input: sums(3),
        kept: sums(2),
        dropped: sums(1),
        skipped: sums(4),
        quarantine: Some(blob("file:///q")),
        intervals: vec![Interval { object: 0, begin: 1, end: 300 }],
        bad_records: vec![BadRecord {
            object: 1,
            offset: 300,
            bytes: 4,
            reason: "no key".to_owned(),
        }],
    }
}

fn part_committed() -> PartCommitted {
    PartCommitted {
        job: job(),
        partition: 2,
        attempt: attempt(Phase::Merge, 2),
        worker: worker(),
        upload: "u".to_owned(),
        tags: vec!["t".to_owned()],
        bytes: 20,
        checksum: 9,
        kept: sums(2),
        dropped: sums(0),
        first_key: vec![1],
        last_key: vec![2, 3],
    }
}

fn attempt_failed() -> AttemptFailed {
    AttemptFailed {
        job: job(),
        attempt: attempt(Phase::Sort, 0),
        worker: worker(),
        kind: ErrorKind::Corrupt,
        error: "why".to_owned(),
    }
}

fn generation_began() -> GenerationBegan {
    GenerationBegan {
        job: job(),
        split: 1,
        generation: Generation(2),
        lost: attempt(Phase::Sort, 1),
        cause: DamageCause::Store,
        why: "gone".to_owned(),
    }
}

fn history() -> JobHistory {
    JobHistory {
        job: job(),
        retries: 2,
        repeated: 1,
        generations: vec![(1, Generation(2))],
        tries: vec![(TaskId { phase: Phase::Sort, index: 0 }, 1)],
        failures: vec![attempt_failed()],
        skipped_objects: vec![(5, "unreadable".to_owned())],
    }
}

fn ended(outcome: JobOutcome) -> JobEnded {
    JobEnded {
        job: job(),
        outcome,
        error: Some("why".to_owned()),
        retries: 2,
        repeated: 3,
        recoveries: vec![Recovery {
            kind: "store".to_owned(),
            attempts: 4,
            recovered: 3,
            given_up: 1,
            took_ms_sum: 500,
            took_ms_max: 300,
        }],
        took_ms: 9,
        unix_ms: 77,
    }
}

fn archived() -> JobArchived {
    let totals =
        Totals { input: sums(1), kept: sums(2), dropped: sums(0), skipped: sums(3), bytes: 5 };
    JobArchived {
        submitted: submitted(),
        partitions: 3,
        commit_decided: false,
        ended: ended(JobOutcome::Failed),
        times: Times { plan_ms: 1, sample_ms: 2, sort_ms: 3, merge_ms: 4, commit_ms: 5 },
        run_totals: totals,
        part_totals: totals,
    }
}

/// Every variant, in its order.
fn records() -> Vec<(&'static str, Record)> {
    let (job, partition, attempt) = (job(), 2, attempt(Phase::Merge, 2));
    let mut records = every!(Record {
        DeploymentCreated { deployment: "d1".parse().expect("deployment id") },
        EpochBegan { epoch: Epoch(3), nonce: 300 },
        JobSubmitted(Box::new(submitted())),
        BoundariesChosen {
            job: job.clone(),
            splitters: Some(blob("file:///b")),
            partitions: 3,
            took_ms: 1,
        },
        RunCommitted(Box::new(run_committed())),
        AttemptFailed(Box::new(attempt_failed())),
        GenerationBegan(Box::new(generation_began())),
        ObjectSkipped { job: job.clone(), object: 5, why: "unreadable".to_owned() },
        JobHistory(Box::new(history())),
        RunsPinned { job: job.clone(), runs: blob("file:///l"), took_ms: 2 },
        UploadOpened { job: job.clone(), partition, attempt, upload: "u".to_owned() },
        UploadRevoked { job: job.clone(), partition, attempt },
        PartCommitted(Box::new(part_committed())),
        CommitDecided { job: job.clone(), took_ms: 3, manifest: blob("file:///m") },
        JobEnded(Box::new(ended(JobOutcome::Failed))),
        JobCleaned { job: job.clone() },
        JobForgotten { job: job.clone() },
        JobArchived(Box::new(archived())),
        Snapshot {
            id: 5,
            part: 0,
            of: 2,
            digest: 6,
            records: vec![Record::JobForgotten { job: job.clone() }],
        },
        WorkersDone { anew: true, done: vec![(worker(), 300)] },
        StillLeads,
    });
    let outcomes = every!(JobOutcome { Succeeded, Failed, Cancelled });
    let ended = |(name, outcome)| (name, Record::JobEnded(Box::new(ended(outcome))));
    records.extend(outcomes.into_iter().map(ended));
    records
}

#[test]
fn journals_of_version_1_stay_readable() {
    let mut written = String::new();
    for (name, record) in records() {
        let entry = Entry { epoch: Epoch(3), nonce: NONCE, record };
        let bytes = entry.to_frame(1).expect("encode");
        assert_eq!(decode(&bytes), Ok(entry), "{name}");
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        written.push_str(&format!("{name} {hex}\n"));
    }
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/journal/record/golden/v1.txt");
        std::fs::write(path, &written).expect("write");
    }
    assert_eq!(written, GOLDEN, "what this build writes:\n{written}");
}

#[test]
fn what_is_no_entry_is_refused() {
    let sound =
        encode(&Entry { epoch: Epoch(1), nonce: 1, record: Record::JobCleaned { job: job() } })
            .expect("encode");
    for end in 0..sound.len() {
        assert!(decode(&sound[..end]).is_err(), "cut at {end}");
    }
    let newer = [&[3], &sound[1..]].concat();
    assert!(decode(&newer).expect_err("newer").message.contains("version 3"));
    assert!(decode(&[&sound[..], b"x"].concat()).is_err());
}

#[test]
fn a_record_that_is_too_large_is_a_bug() {
    let upload = "x".repeat(wire::MESSAGE_BYTES_MAX);
    let record = Record::UploadOpened {
        job: job(),
        partition: 0,
        attempt: attempt(Phase::Merge, 0),
        upload,
    };
    let error = encode(&Entry { epoch: Epoch(1), nonce: 1, record }).expect_err("too large");
    assert!(error.message.contains("upload-opened"), "{error}");
}

/// Read one within the other, pieces would go as deep as the bytes say.
#[test]
fn a_snapshot_within_a_snapshot_is_refused() {
    let piece = |records| Record::Snapshot { id: 1, part: 0, of: 1, digest: 0, records };
    let check = |record, sound| {
        let bytes = encode(&Entry { epoch: Epoch(1), nonce: 0, record }).expect("encode");
        assert_eq!(decode(&bytes).is_ok(), sound);
    };
    check(piece(vec![piece(Vec::new())]), false);
    check(piece(vec![piece(vec![piece(Vec::new())])]), false);
    check(piece(Vec::new()), true);
}
