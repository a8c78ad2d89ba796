//! Golden bytes: journals that exist must stay readable for ever. A test that fails here means that
//! the format has changed: make a new version instead.

use muster_common::error::ErrorKind;
use muster_common::ids::{Epoch, Generation, Phase, TaskId};
use muster_common::wire::{BadRecord, BlobRef, DamageCause};
use muster_kernel::proof::{Interval, Sums};

use super::v1::{
    EntryV1, JobArchivedV1, JobEndedV1, JobSubmittedV1, PartCommittedV1, RecordV1, RunCommittedV1,
    TotalsV1,
};
use super::v2::{EntryV2, JobHistoryV2, RecordV2};
use super::*;

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

fn blob(url: &str) -> BlobRef {
    BlobRef { url: url.to_owned(), bytes: 300, digest: 7 }
}

fn sums(records: u64) -> Sums {
    Sums { records, bytes: 10 * records, hash: 0x1234 }
}

fn submitted() -> JobSubmittedV1 {
    JobSubmittedV1 {
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
        input_bytes: 4,
        attempts_max: 5,
        submitted_unix_ms: 6,
        took_ms: 7,
    }
}

fn ended() -> JobEndedV1 {
    JobEndedV1 {
        job: job(),
        outcome: JobOutcome::Failed,
        error: Some("why".to_owned()),
        retries: 2,
        took_ms: 9,
    }
}

/// Every variant of version 1, in its order.
fn records_v1() -> Vec<RecordV1> {
    let totals = TotalsV1 { input: sums(1), kept: sums(2), dropped: sums(0), bytes: 5 };
    vec![
        RecordV1::DeploymentCreated { deployment: "d1".parse().expect("deployment id") },
        RecordV1::EpochBegan { epoch: Epoch(3), nonce: 300 },
        RecordV1::JobSubmitted(Box::new(submitted())),
        RecordV1::BoundariesChosen {
            job: job(),
            splitters: Some(blob("file:///b")),
            partitions: 3,
            took_ms: 1,
        },
        RecordV1::RunCommitted(Box::new(RunCommittedV1 {
            job: job(),
            split: 1,
            attempt: attempt(Phase::Sort, 1),
            url: "file:///r".to_owned(),
            bytes: 400,
            index_digest: 8,
            input: sums(3),
            kept: sums(2),
            dropped: sums(1),
            intervals: vec![Interval { object: 0, begin: 1, end: 300 }],
        })),
        RecordV1::RunsPinned { job: job(), runs: blob("file:///l"), took_ms: 2 },
        RecordV1::UploadOpened {
            job: job(),
            partition: 2,
            attempt: attempt(Phase::Merge, 2),
            upload: "u".to_owned(),
        },
        RecordV1::UploadRevoked { job: job(), partition: 2, attempt: attempt(Phase::Merge, 2) },
        RecordV1::PartCommitted(Box::new(PartCommittedV1 {
            job: job(),
            partition: 2,
            attempt: attempt(Phase::Merge, 2),
            upload: "u".to_owned(),
            tags: vec!["t".to_owned()],
            bytes: 20,
            checksum: 9,
            kept: sums(2),
            dropped: sums(0),
            first_key: vec![1],
            last_key: vec![2, 3],
        })),
        RecordV1::CommitDecided { job: job(), took_ms: 3 },
        RecordV1::JobEnded(Box::new(ended())),
        RecordV1::JobCleaned { job: job() },
        RecordV1::JobForgotten { job: job() },
        RecordV1::JobArchived(Box::new(JobArchivedV1 {
            submitted: submitted(),
            partitions: 3,
            commit_decided: false,
            ended: ended(),
            times: Times { plan_ms: 1, sample_ms: 2, sort_ms: 3, merge_ms: 4, commit_ms: 5 },
            run_totals: totals,
            part_totals: totals,
        })),
        RecordV1::Snapshot {
            id: 5,
            part: 0,
            of: 2,
            records: vec![RecordV1::JobForgotten { job: job() }],
        },
    ]
}

/// Every variant of version 2, in its order: those of version 1 lifted, with what is new filled in,
/// and those that are new.
fn records_v2() -> Vec<RecordV2> {
    let failed = |index| AttemptFailed {
        job: job(),
        attempt: attempt(Phase::Sort, index),
        worker: worker(),
        kind: ErrorKind::Corrupt,
        error: "why".to_owned(),
    };
    let mut records: Vec<RecordV2> = records_v1().into_iter().map(RecordV2::from).collect();
    for record in &mut records {
        match record {
            RecordV2::JobSubmitted(submitted) => submitted.replica = Some("file:///s2".to_owned()),
            RecordV2::RunCommitted(run) => {
                run.worker = Some(worker());
                run.replica = Some("file:///r2".to_owned());
                run.skipped = sums(4);
                run.quarantine = Some(blob("file:///q"));
            }
            RecordV2::PartCommitted(part) => part.worker = Some(worker()),
            RecordV2::JobEnded(ended) => {
                ended.repeated = 3;
                ended.unix_ms = 77;
                ended.recoveries = vec![Recovery {
                    kind: "store".to_owned(),
                    attempts: 4,
                    recovered: 3,
                    given_up: 1,
                    took_ms_sum: 500,
                    took_ms_max: 300,
                }];
            }
            _ => {}
        }
    }
    let history = JobHistoryV2 {
        job: job(),
        retries: 2,
        repeated: 1,
        generations: vec![(1, Generation(2))],
        failures: vec![failed(0)],
        skipped_objects: vec![(5, "unreadable".to_owned())],
    };
    let began = GenerationBegan {
        job: job(),
        split: 1,
        generation: Generation(2),
        lost: attempt(Phase::Sort, 1),
        cause: DamageCause::Store,
        why: "gone".to_owned(),
    };
    records.extend([
        RecordV2::AttemptFailed(Box::new(failed(1))),
        RecordV2::GenerationBegan(Box::new(began)),
        RecordV2::ObjectSkipped { job: job(), object: 5, why: "unreadable".to_owned() },
        RecordV2::JobHistory(Box::new(history)),
    ]);
    records
}

/// Every variant of version 3, in the order of version 2, with what is new filled in.
fn records_v3() -> Vec<Record> {
    let mut records: Vec<Record> = records_v2().into_iter().map(Record::from).collect();
    for record in &mut records {
        match record {
            Record::RunCommitted(run) => {
                run.bad_records = vec![BadRecord {
                    object: 1,
                    offset: 300,
                    bytes: 4,
                    reason: "no key".to_owned(),
                }];
            }
            Record::CommitDecided { manifest, .. } => *manifest = Some(blob("file:///m")),
            _ => {}
        }
    }
    records.extend([
        Record::WorkersDone { anew: true, done: vec![(worker(), 300)] },
        Record::StillLeads,
    ]);
    records
}

fn worker() -> WorkerId {
    "w1".parse().expect("worker id")
}

/// Entries as they were first written, in hexadecimal, one a line.
const GOLDEN_V1: &str = include_str!("golden/journal_v1.hex");
const GOLDEN_V2: &str = include_str!("golden/journal_v2.hex");
const GOLDEN_V3: &str = include_str!("golden/journal_v3.hex");
const NONCE: u64 = 0xffff_ffff_ffff_ffff;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(line: &str) -> Vec<u8> {
    (0..line.len() / 2)
        .map(|at| u8::from_str_radix(&line[2 * at..2 * at + 2], 16).expect("hex"))
        .collect()
}

/// A journal that a former build wrote is read, and means in this version what it meant in that
/// one.
#[test]
fn journals_of_version_1_stay_readable() {
    let golden: Vec<&str> = GOLDEN_V1.lines().collect();
    let entries: Vec<EntryV1> = records_v1()
        .into_iter()
        .map(|record| EntryV1 { epoch: Epoch(3), nonce: NONCE, record })
        .collect();
    let written: Vec<String> =
        entries.iter().map(|entry| hex(&wire::frame(1, entry).expect("encode"))).collect();
    assert_eq!(written, golden);
    for (line, expected) in golden.iter().zip(entries) {
        assert_eq!(decode(&unhex(line)).expect("decode"), Entry::from(expected));
    }
}

/// The same of version 2, which the release before wrote.
#[test]
fn journals_of_version_2_stay_readable() {
    let golden: Vec<&str> = GOLDEN_V2.lines().collect();
    let entries: Vec<EntryV2> = records_v2()
        .into_iter()
        .map(|record| EntryV2 { epoch: Epoch(3), nonce: NONCE, record })
        .collect();
    let written: Vec<String> =
        entries.iter().map(|entry| hex(&wire::frame(2, entry).expect("encode"))).collect();
    assert_eq!(written, golden);
    for (line, expected) in golden.iter().zip(entries) {
        let read = decode(&unhex(line)).expect("decode");
        if let Record::Snapshot { digest: found, records, .. } = &read.record {
            assert_eq!(*found, digest(records), "a sound piece stays one");
        }
        assert_eq!(read, Entry::from(expected));
    }
}

/// A damaged piece of version 2 is one in this version too.
#[test]
fn a_piece_of_version_2_whose_digest_is_wrong_stays_damaged() {
    let records = vec![RecordV2::JobForgotten { job: job() }];
    let piece = RecordV2::Snapshot { id: 1, part: 0, of: 1, digest: digest(&records) + 1, records };
    let Record::Snapshot { digest: found, records, .. } = Record::from(piece) else {
        panic!("a piece")
    };
    assert_ne!(found, digest(&records));
}

#[test]
fn journals_of_version_3_keep_their_bytes() {
    let entries: Vec<Entry> = records_v3()
        .into_iter()
        .map(|record| Entry { epoch: Epoch(3), nonce: NONCE, record })
        .collect();
    let written: Vec<String> =
        entries.iter().map(|entry| hex(&encode(entry).expect("encode"))).collect();
    if std::env::var_os("UPDATE_GOLDEN_JOURNAL").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/journal/record/golden/journal_v3.hex");
        std::fs::write(path, written.join("\n") + "\n").expect("write");
    }
    assert_eq!(written, GOLDEN_V3.lines().collect::<Vec<_>>());
    for (line, expected) in GOLDEN_V3.lines().zip(entries) {
        assert_eq!(decode(&unhex(line)).expect("decode"), expected);
    }
}

#[test]
fn what_is_no_entry_is_refused() {
    let sound =
        encode(&Entry { epoch: Epoch(1), nonce: 1, record: Record::JobCleaned { job: job() } })
            .expect("encode");
    for end in 0..sound.len() {
        assert!(decode(&sound[..end]).is_err(), "cut at {end}");
    }
    let newer = [&[JOURNAL_VERSION + 1], &sound[1..]].concat();
    assert!(decode(&newer).expect_err("newer").message.contains("version 4"));
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

#[test]
fn that_a_worker_died_is_a_kind_since_version_3() {
    let lifted = |kind, error: &str| {
        let (job, attempt, error) = (job(), attempt(Phase::Sort, 1), error.to_owned());
        let failed = AttemptFailed { job, attempt, worker: worker(), kind, error };
        match Record::from(RecordV2::AttemptFailed(Box::new(failed))) {
            Record::AttemptFailed(failed) => failed.kind,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(
        lifted(ErrorKind::Retry, "worker w1 on h: its worker is dead: nothing heard"),
        ErrorKind::WorkerDied
    );
    assert_eq!(lifted(ErrorKind::Retry, "worker w1 on h: no connection"), ErrorKind::Retry);
    assert_eq!(lifted(ErrorKind::Corrupt, "its worker is dead"), ErrorKind::Corrupt);
}
