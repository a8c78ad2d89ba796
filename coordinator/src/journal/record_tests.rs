//! Golden bytes: journals that exist must stay readable for ever. A test that fails here means that the format has changed: make a new version instead.

use muster_common::ids::{Generation, Phase, TaskId};

use super::*;

fn attempt(phase: Phase, index: u32) -> AttemptId {
    AttemptId { task: TaskId { phase, index }, generation: Generation(0), epoch: Epoch(3), nonce: 0xabc }
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
    JobEndedV1 { job: job(), outcome: JobOutcomeV1::Failed, error: Some("why".to_owned()), retries: 2, took_ms: 9 }
}

/// Every variant, in its order.
fn records() -> Vec<RecordV1> {
    let totals = TotalsV1 { input: sums(1), kept: sums(2), dropped: sums(0), bytes: 5 };
    vec![
        RecordV1::DeploymentCreated { deployment: "d1".parse().expect("deployment id") },
        RecordV1::EpochBegan { epoch: Epoch(3), nonce: 300 },
        RecordV1::JobSubmitted(Box::new(submitted())),
        RecordV1::BoundariesChosen { job: job(), splitters: Some(blob("file:///b")), partitions: 3, took_ms: 1 },
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
        RecordV1::UploadOpened { job: job(), partition: 2, attempt: attempt(Phase::Merge, 2), upload: "u".to_owned() },
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
            times: TimesV1 { plan_ms: 1, sample_ms: 2, sort_ms: 3, merge_ms: 4, commit_ms: 5 },
            run_totals: totals,
            part_totals: totals,
        })),
        RecordV1::Snapshot { id: 5, part: 0, of: 2, records: vec![RecordV1::JobForgotten { job: job() }] },
    ]
}

/// The entries of version 1 as they were first written, in hexadecimal, one a line.
const GOLDEN_V1: &str = include_str!("golden/journal_v1.hex");

#[test]
fn journals_of_version_1_stay_readable() {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let entries: Vec<Entry> =
        records().into_iter().map(|record| Entry { epoch: Epoch(3), nonce: 0xffff_ffff_ffff_ffff, record }).collect();
    let written: Vec<String> = entries.iter().map(|entry| hex(&encode(entry).expect("encode"))).collect();
    if std::env::var_os("UPDATE_GOLDEN_JOURNAL").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/journal/golden/journal_v1.hex");
        std::fs::write(path, written.join("\n") + "\n").expect("write");
    }
    let golden: Vec<&str> = GOLDEN_V1.lines().collect();
    assert_eq!(written, golden);
    for (line, expected) in golden.iter().zip(entries) {
        let bytes: Vec<u8> =
            (0..line.len() / 2).map(|at| u8::from_str_radix(&line[2 * at..2 * at + 2], 16).expect("hex")).collect();
        assert_eq!(decode(&bytes).expect("decode"), expected);
    }
}

#[test]
fn what_is_no_entry_is_refused() {
    let sound =
        encode(&Entry { epoch: Epoch(1), nonce: 1, record: RecordV1::JobCleaned { job: job() } }).expect("encode");
    for end in 0..sound.len() {
        assert!(decode(&sound[..end]).is_err(), "cut at {end}");
    }
    let newer = [&[JOURNAL_VERSION + 1], &sound[1..]].concat();
    assert!(decode(&newer).expect_err("newer").message.contains("version 2"));
    assert!(decode(&[&sound[..], b"x"].concat()).is_err());
}

#[test]
fn a_record_that_is_too_large_is_a_bug() {
    let upload = "x".repeat(wire::MESSAGE_BYTES_MAX);
    let record = RecordV1::UploadOpened { job: job(), partition: 0, attempt: attempt(Phase::Merge, 0), upload };
    let error = encode(&Entry { epoch: Epoch(1), nonce: 1, record }).expect_err("too large");
    assert!(error.message.contains("upload-opened"), "{error}");
}
