//! Golden bytes of everything that is sent or stored: what a former build wrote must be read by
//! every later one. A line of `golden/v1.txt` never changes; a new version of a message gets lines
//! of its own in `golden/v2.txt`, a third in `golden/v3.txt`.

use std::fmt::Debug;
use std::fmt::Write as _;

use muster_kernel::proof::{Interval, Sums};
use muster_kernel::record::Format;
use muster_kernel::spec::{KeyDef, SortSpec};
use muster_kernel::splitters::Splitter;

use crate::api::{KeyEncoding, Manifest, ManifestPart, PhaseTimes};
use crate::error::{Error, ErrorKind};
use crate::ids::{AttemptId, Epoch, Generation, Incarnation, Phase, TaskId};
use crate::plan::{
    BadInputs, BadRecords, JobSpec, LeftOut, PinnedObject, PinnedRun, PinnedRuns, Plan, Sizing,
};
use crate::retry::Recoveries;
use crate::wire::{
    self, AttemptProgress, BadRecord, BlobRef, Broadcast, CancelAttempt, CommandReply, DamageCause,
    Drain, Health, Heartbeat, HeldAttempt, JobRecoveries, LeaderBeat, ListInputs, ListReply,
    LocalFile, LocalOmitted, Mended, MergedPart, Message, Outcome, PhaseQuery, PhaseReply,
    Recovered, Register, RegisterReply, Report, ReportReply, RunAttempt, RunReply, SortedRun,
    StoreLimits, Work, WorkerState,
};

const V1: &str = include_str!("golden/v1.txt");
const V2: &str = include_str!("golden/v2.txt");
const V3: &str = include_str!("golden/v3.txt");

/// Collects the lines as this build writes them for a peer of one wire version, and checks that the
/// golden ones read back as the samples.
struct Lines {
    version: u8,
    golden: &'static str,
    written: String,
}

impl Lines {
    fn of(version: u8, golden: &'static str) -> Self {
        Self { version, golden, written: String::new() }
    }

    fn message<T: Message + PartialEq + Debug>(&mut self, name: &str, sample: &T) {
        self.line(name, &wire::encode_for(self.version, sample).expect("encodes"));
        let bytes = golden(self.golden, name);
        assert_eq!(&wire::decode::<T>(&bytes).expect(name), sample, "{name} reads back");
        for len in 0..bytes.len() {
            assert!(
                wire::decode::<T>(&bytes[..len]).is_err(),
                "{name} cut to {len} bytes is refused"
            );
        }
        assert!(
            wire::decode::<T>(&[&bytes[..], b"x"].concat()).is_err(),
            "{name} with more bytes is refused"
        );
    }

    fn line(&mut self, name: &str, bytes: &[u8]) {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(self.written, "{name} {hex}").expect("a string takes all");
    }
}

fn golden(golden: &str, name: &str) -> Vec<u8> {
    let hex = golden.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let hex = hex.unwrap_or_else(|| panic!("no golden line {name}"));
    (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex"))
        .collect()
}

fn attempt(phase: Phase) -> AttemptId {
    AttemptId {
        task: TaskId { phase, index: 7 },
        generation: Generation(1),
        epoch: Epoch(3),
        nonce: 0x0123_4567_89ab_cdef,
    }
}

fn blob(name: &str) -> BlobRef {
    BlobRef { url: format!("s3://bucket/{name}"), bytes: 300, digest: 0xfeed }
}

fn sums(records: u64) -> Sums {
    Sums { records, bytes: records * 99, hash: 0xabcd }
}

fn report(phase: Phase, outcome: Outcome) -> Report {
    Report {
        epoch: Epoch(3),
        worker: "w1".parse().expect("id"),
        incarnation: Incarnation(9),
        job: "j1".parse().expect("id"),
        attempt: attempt(phase),
        outcome,
    }
}

fn to_the_leader(lines: &mut Lines) {
    let held = HeldAttempt { job: "j1".parse().expect("id"), attempt: attempt(Phase::Merge) };
    let register = Register {
        worker: "w1".parse().expect("id"),
        incarnation: Incarnation(9),
        program: "0.1.0".into(),
        host: "host".into(),
        slots: 2,
        memory_bytes: 1 << 30,
        labels: vec![("zone".into(), "a".into())],
        draining: false,
        held: vec![held.clone()],
        wire: lines.version,
        settings: Vec::new(),
        inputs: Vec::new(),
    };
    lines.message("register", &register);
    let progress =
        AttemptProgress { job: held.job, attempt: held.attempt, bytes_done: 5, bytes_total: 10 };
    let heartbeat = Heartbeat {
        worker: "w1".parse().expect("id"),
        incarnation: Incarnation(9),
        epoch: Epoch(3),
        sequence: 12,
        state: WorkerState::Draining,
        attempts: vec![progress],
        health: Health { rss_bytes: 1, cpu_ms: 2, store_retries: 3, ..Health::default() },
    };
    lines.message("heartbeat", &heartbeat);
    let samples = vec![Splitter { key: b"key".to_vec(), position: 500 }];
    let run = SortedRun {
        url: "s3://bucket/run".into(),
        replica: None,
        bytes: 1000,
        index_digest: 77,
        input: sums(10),
        kept: sums(9),
        dropped: sums(1),
        skipped: Sums::default(),
        quarantine: None,
        bad_records: Vec::new(),
        partition_bytes: vec![600, 400],
        intervals: vec![Interval { object: 0, begin: 0, end: 1000 }],
        spills: 2,
    };
    let part = MergedPart {
        upload: "u1".into(),
        tags: vec!["t1".into(), "t2".into()],
        bytes: 1000,
        checksum: 88,
        kept: sums(9),
        dropped: sums(0),
        first_key: b"a".to_vec(),
        last_key: b"z".to_vec(),
    };
    for (name, phase, outcome) in [
        ("report-opened", Phase::Merge, Outcome::UploadOpened { upload: "u1".into() }),
        ("report-sampled", Phase::Sample, Outcome::Sampled { samples }),
        (
            "report-sampled-to-scratch",
            Phase::Sample,
            Outcome::SampledToScratch { samples: blob("samples") },
        ),
        ("report-sorted", Phase::Sort, Outcome::Sorted(Box::new(run))),
        ("report-merged", Phase::Merge, Outcome::Merged(part)),
        ("report-failed", Phase::Sort, Outcome::Failed { error: Error::corrupt("flipped") }),
    ] {
        lines.message(name, &report(phase, outcome));
    }
    lines.message("phase-query", &PhaseQuery { job: "j1".parse().expect("id") });
    lines.message("run-accepted", &RunReply::Accepted);
    lines.message("run-busy", &RunReply::Busy);
    lines.message("run-refused", &RunReply::Refused { error: Error::retry("old epoch") });
    lines.message("command-done", &CommandReply::Done);
    lines.message("command-refused", &CommandReply::Refused { error: Error::retry("old epoch") });
}

fn from_the_leader(lines: &mut Lines) {
    let (epoch, job) = (Epoch(3), || "j1".parse().expect("id"));
    lines.message(
        "leader-beat",
        &LeaderBeat { deployment: "d1".parse().expect("id"), epoch, sequence: 4 },
    );
    let accepted = RegisterReply::Accepted {
        deployment: "d1".parse().expect("id"),
        epoch,
        heartbeat_ms: 1000,
        regranted: vec![attempt(Phase::Sort)],
    };
    lines.message("register-accepted", &accepted);
    lines.message(
        "register-refused",
        &RegisterReply::Refused { error: Error::invalid("another process") },
    );
    for (name, phase, work) in [
        ("run-sample", Phase::Sample, Work::Sample { skip: Vec::new() }),
        (
            "run-sort",
            Phase::Sort,
            Work::Sort { splitters: Some(blob("splitters")), skip: Vec::new() },
        ),
        ("run-merge", Phase::Merge, Work::Merge { splitters: None, runs: blob("runs") }),
    ] {
        let run = RunAttempt {
            epoch,
            incarnation: Incarnation(9),
            job: job(),
            attempt: attempt(phase),
            plan: blob("plan"),
            work,
            memory_halvings: 0,
        };
        lines.message(name, &run);
    }
    lines.message("cancel", &CancelAttempt { epoch, job: job(), attempt: attempt(Phase::Sort) });
    lines.message("drain", &Drain { epoch });
    lines.message("report-recorded", &ReportReply::Recorded { epoch });
    lines.message("report-revoked", &ReportReply::Revoked { epoch });
    lines.message("report-reregister", &ReportReply::Reregister { epoch });
    lines.message("report-later", &ReportReply::Later);
    lines.message(
        "broadcast-boundaries",
        &Broadcast::Boundaries { epoch, splitters: Some(blob("splitters")) },
    );
    lines.message("broadcast-phase", &Broadcast::PhaseBegins { epoch, phase: Phase::Merge });
    lines.message("broadcast-ended", &Broadcast::Ended { epoch });
    lines.message("phase-running", &PhaseReply::Running { epoch, phase: Phase::Sort });
    lines.message("phase-idle", &PhaseReply::Idle { epoch });
}

fn in_scratch(lines: &mut Lines) {
    let object = PinnedObject { url: "s3://bucket/in".into(), bytes: 1000, version: "etag".into() };
    let plan = Plan {
        job: "j1".parse().expect("id"),
        sort: SortSpec {
            keys: vec![KeyDef::Range { offset: 0, len: 10 }],
            ..SortSpec::new(Format::Fixed { len: 100 })
        },
        objects: vec![object.clone()],
        splits: vec![vec![Interval { object: 0, begin: 0, end: 1000 }]],
        partitions: 2,
        sample_seed: 5,
        samples_per_split: 64,
        output: "s3://bucket/out".into(),
        extension: "bin".into(),
        scratch: "s3://bucket/_muster/d1/j1".into(),
        replaced: vec![object],
        uploads_before: vec!["u0".into()],
        fsync: true,
        attempts_max: 4,
        replica: None,
        bad_records: BadRecords::Fail,
        settings: None,
        left_out: Vec::new(),
    };
    lines.line("plan", &plan.to_bytes().expect("encodes"));
    assert_eq!(Plan::from_bytes(&golden(V1, "plan")).expect("plan"), plan);
    let run = PinnedRun {
        attempt: attempt(Phase::Sort),
        url: "s3://bucket/run".into(),
        replica: None,
        bytes: 1000,
        index_digest: 77,
    };
    let runs = PinnedRuns { job: "j1".parse().expect("id"), runs: vec![run] };
    lines.line("pinned-runs", &runs.to_bytes().expect("encodes"));
    assert_eq!(PinnedRuns::from_bytes(&golden(V1, "pinned-runs")).expect("runs"), runs);
}

fn in_json(lines: &mut Lines) {
    let spec = JobSpec {
        job: "j1".parse().expect("id"),
        inputs: vec!["s3://bucket/in".into()],
        output: "s3://bucket/out".into(),
        bucket: None,
        sort: SortSpec::new(Format::Lines { terminator: b'\n' }),
        auto_format: true,
        extension: "txt".into(),
        overwrite: false,
        fsync: true,
        sizing: Sizing { partitions: Some(4), ..Sizing::default() },
        replica: None,
        bad_records: BadRecords::Fail,
        bad_inputs: BadInputs::Fail,
        settings: None,
    };
    lines.line("json-submit", &serde_json::to_vec(&spec).expect("encodes"));
    assert_eq!(serde_json::from_slice::<JobSpec>(&golden(V1, "json-submit")).expect("json"), spec);
    let manifest = Manifest {
        version: 1,
        job: spec.job.clone(),
        sort: spec.sort.clone(),
        parts: vec![ManifestPart {
            name: "part-00000.txt".into(),
            records: 9,
            bytes: 900,
            first_key: "61".into(),
            last_key: "7a".into(),
            key_encoding: KeyEncoding::Hex,
            checksum: "0000000000000058".into(),
            hash: "000000000000abcd".into(),
        }],
        sums: sums(9),
        input: sums(10),
        dropped: sums(1),
        retries: 1,
        repeated_tasks: 0,
        times: PhaseTimes { plan_ms: 1, sample_ms: 2, sort_ms: 3, merge_ms: 4, commit_ms: 5 },
        skipped: Sums::default(),
        bad_records: Vec::new(),
        quarantine: Vec::new(),
        skipped_objects: Vec::new(),
        recoveries: Vec::new(),
    };
    // Of manifests of version 1, with keys in hex and sums as numbers, nothing is written any more.
    lines.line("json-manifest", &golden(V1, "json-manifest"));
    assert_eq!(
        serde_json::from_slice::<Manifest>(&golden(V1, "json-manifest")).expect("json"),
        manifest
    );
    let more = serde_json::to_string(&spec).expect("encodes").replacen('{', "{\"more\":1,", 1);
    assert!(serde_json::from_str::<JobSpec>(&more).is_err(), "unknown fields are refused");
}

/// The manifest of version 2: keys as text, sums as hex digits.
fn in_json_since_2(lines: &mut Lines) {
    let manifest = serde_json::from_slice::<Manifest>(&golden(V1, "json-manifest")).expect("json");
    let readable = |part: ManifestPart| ManifestPart {
        first_key: "a".into(),
        last_key: "z".into(),
        key_encoding: KeyEncoding::Text,
        ..part
    };
    let parts = manifest.parts.into_iter().map(readable).collect();
    let manifest = Manifest { version: 2, parts, ..manifest };
    lines.line("json-manifest", &serde_json::to_vec(&manifest).expect("encodes"));
    assert_eq!(
        serde_json::from_slice::<Manifest>(&golden(V2, "json-manifest")).expect("json"),
        manifest
    );
}

/// What is new in version 2, filled in.
fn new_in_2(lines: &mut Lines) {
    let register = Register {
        worker: "w1".parse().expect("id"),
        incarnation: Incarnation(9),
        program: "0.2.0".into(),
        host: "host".into(),
        slots: 2,
        memory_bytes: 1 << 30,
        labels: Vec::new(),
        draining: false,
        held: Vec::new(),
        wire: 2,
        settings: vec![("heartbeat.interval_ms".into(), "1000".into())],
        inputs: vec!["/data".into()],
    };
    lines.message("register", &register);
    let health = Health {
        rss_bytes: 1,
        cpu_ms: 2,
        store_retries: 3,
        cpu_permille: 4,
        memory_bytes: 5,
        disk_free_bytes: 6,
        disk_total_bytes: 7,
        bytes_per_s: 8,
        errors_5min: 9,
        throttled: 10,
        waiting_for: Some("store".into()),
        mended: Mended { hedged_reads: 11, read_again: 12, from_replica: 13, repaired: 14 },
    };
    let heartbeat = Heartbeat {
        worker: "w1".parse().expect("id"),
        incarnation: Incarnation(9),
        epoch: Epoch(3),
        sequence: 12,
        state: WorkerState::Active,
        attempts: Vec::new(),
        health,
    };
    lines.message("heartbeat", &heartbeat);
    let bad = BadRecord { object: 1, offset: 200, bytes: 7, reason: "torn".into() };
    let run = SortedRun {
        url: "s3://bucket/run".into(),
        replica: Some("s3://other/run".into()),
        bytes: 1000,
        index_digest: 77,
        input: sums(10),
        kept: sums(8),
        dropped: sums(1),
        skipped: sums(1),
        quarantine: Some(blob("bad")),
        bad_records: vec![bad],
        partition_bytes: vec![1000],
        intervals: vec![Interval { object: 0, begin: 0, end: 1000 }],
        spills: 0,
    };
    let lost = attempt(Phase::Sort);
    for (name, phase, outcome) in [
        ("report-sorted", Phase::Sort, Outcome::Sorted(Box::new(run))),
        (
            "report-run-damaged",
            Phase::Merge,
            Outcome::RunDamaged {
                split: 7,
                run: lost,
                cause: DamageCause::Store,
                error: Error::corrupt("flipped"),
            },
        ),
        (
            "report-input-unreadable",
            Phase::Sort,
            Outcome::InputUnreadable { object: 1, error: Error::retry("cannot read") },
        ),
    ] {
        lines.message(name, &report(phase, outcome));
    }
    let run = RunAttempt {
        epoch: Epoch(3),
        incarnation: Incarnation(9),
        job: "j1".parse().expect("id"),
        attempt: attempt(Phase::Sort),
        plan: blob("plan"),
        work: Work::Sort { splitters: None, skip: vec![1, 300] },
        memory_halvings: 2,
    };
    lines.message("run-sort", &run);
    lines.message("store-limits", &StoreLimits { epoch: Epoch(3), requests_per_s: Some(50) });
    let counts = Recoveries {
        attempts: 300,
        recovered: 2,
        given_up: 1,
        recovery_ms_sum: 5000,
        recovery_ms_max: 4000,
    };
    let recoveries = JobRecoveries {
        worker: "w1".parse().expect("id"),
        incarnation: Incarnation(9),
        epoch: Epoch(3),
        job: "j1".parse().expect("id"),
        kinds: vec![Recovered { trouble: "store".into(), counts }],
    };
    lines.message("job-recoveries", &recoveries);
    lines.message(
        "list-inputs",
        &ListInputs { epoch: Epoch(3), pattern: "*.txt".into(), after: Some("/data/0".into()) },
    );
    let file = LocalFile {
        path: "/data/a".into(),
        bytes: 10,
        version: "v".into(),
        head: Ok(b"head".to_vec()),
    };
    let closed =
        LocalFile { path: "/data/b".into(), head: Err(Error::invalid("no")), ..file.clone() };
    let omitted = LocalOmitted { path: "/data/c".into(), why: "a socket".into(), cut: true };
    let listed = ListReply::Listed {
        files: vec![file, closed],
        omitted: vec![omitted],
        next: Some("/data/b".into()),
    };
    lines.message("list-listed", &listed);
    lines.message("list-refused", &ListReply::Refused { error: Error::invalid("none") });
}

fn in_scratch_since_2(lines: &mut Lines) {
    let plan = Plan::from_bytes(&golden(V1, "plan")).expect("plan");
    let plan = Plan {
        replica: Some("s3://other/_muster/d1/j1".into()),
        bad_records: BadRecords::Quarantine,
        settings: Some("[phases]".into()),
        ..plan
    };
    lines.line("plan", &plan.to_bytes().expect("encodes"));
    assert_eq!(Plan::from_bytes(&golden(V2, "plan")).expect("plan"), plan);
    let runs = PinnedRuns::from_bytes(&golden(V1, "pinned-runs")).expect("runs");
    let with_replica = |run: PinnedRun| PinnedRun { replica: Some("s3://other/run".into()), ..run };
    let runs = PinnedRuns { runs: runs.runs.into_iter().map(with_replica).collect(), ..runs };
    lines.line("pinned-runs", &runs.to_bytes().expect("encodes"));
    assert_eq!(PinnedRuns::from_bytes(&golden(V2, "pinned-runs")).expect("runs"), runs);
}

#[test]
fn everything_sent_or_stored_keeps_its_bytes() {
    let mut lines = Lines::of(1, V1);
    to_the_leader(&mut lines);
    from_the_leader(&mut lines);
    in_scratch(&mut lines);
    in_json(&mut lines);
    assert_eq!(lines.written, V1, "what this build writes:\n{}", lines.written);
}

#[test]
fn what_version_2_brought_keeps_its_bytes() {
    let mut lines = Lines::of(2, V2);
    new_in_2(&mut lines);
    in_scratch_since_2(&mut lines);
    in_json_since_2(&mut lines);
    assert_eq!(lines.written, V2, "what this build writes:\n{}", lines.written);
}

#[test]
fn what_version_3_of_the_plan_brought_keeps_its_bytes() {
    let mut lines = Lines::of(3, V3);
    let plan = Plan::from_bytes(&golden(V2, "plan")).expect("plan");
    let plan = Plan {
        left_out: vec![LeftOut { url: "file:///in/odd".into(), why: "a socket".into() }],
        ..plan
    };
    lines.line("plan", &plan.to_bytes().expect("encodes"));
    assert_eq!(Plan::from_bytes(&golden(V3, "plan")).expect("plan"), plan);
    assert_eq!(lines.written, V3, "what this build writes:\n{}", lines.written);
}

/// What version 1 cannot say is refused or made plainer, never misread.
#[test]
fn an_old_peer_is_spoken_to_in_its_version() {
    let run = wire::decode::<RunAttempt>(&golden(V2, "run-sort")).expect("run");
    assert!(
        wire::encode_for(1, &run).expect_err("objects to leave out").message.contains("version 1")
    );
    let register = wire::decode::<Register>(&golden(V2, "register")).expect("register");
    assert!(
        wire::encode_for(1, &register).expect_err("input folders").message.contains("version 1")
    );
    let damaged = wire::decode::<Report>(&golden(V2, "report-run-damaged")).expect("report");
    let plain =
        wire::decode::<Report>(&wire::encode_for(1, &damaged).expect("encodes")).expect("report");
    assert_eq!(plain.outcome, Outcome::Failed { error: Error::corrupt("flipped") });
    let error = Error::new(ErrorKind::NeedsMemory { task_bytes: 7 }, "a record");
    let needs = Report { outcome: Outcome::Failed { error }, ..damaged };
    let read = |version| {
        wire::decode::<Report>(&wire::encode_for(version, &needs).expect("encodes"))
            .expect("report")
    };
    assert_eq!(read(wire::WIRE_VERSION), needs);
    assert_eq!(read(1).outcome, Outcome::Failed { error: Error::exhausted("a record") });
    assert!(wire::encode_for(1, &StoreLimits { epoch: Epoch(3), requests_per_s: None }).is_err());
}

#[test]
fn other_versions_and_oversized_messages_are_refused() {
    let mut bytes = golden(V1, "drain");
    bytes[0] = 3;
    assert!(wire::decode::<Drain>(&bytes).expect_err("version").message.contains("version 3"));
    assert!(wire::decode::<Drain>(&[]).is_err());
    assert!(
        wire::decode::<Drain>(&vec![1; wire::MESSAGE_BYTES_MAX + 1])
            .expect_err("size")
            .message
            .contains("limit")
    );
    // A length that no message can have must not be believed, let alone allocated.
    let hostile = [&[1_u8][..], &[0xff; 9], &[0x01]].concat();
    assert!(wire::unframe::<Vec<u64>>(1..=1, &hostile).is_err());
}
