//! Golden bytes of everything that is sent or stored: what a former build wrote must be read by
//! every later one. Each variant of each enum that lies within stands in them, so that none is
//! moved, and one that is new does not compile here ([`every!`]) before it has a line.
//!
//! `golden/v1.txt` is what this build writes in version 1, name and hex digits; a second version
//! gets a file and a test of its own. A line that stands there never changes. Lines that are new
//! are written by `UPDATE_GOLDEN=1 cargo nextest run --workspace --lib keeps_its_bytes`.

use std::fmt::Debug;
use std::fmt::Write as _;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use muster_kernel::format::Format;
use muster_kernel::proof::{Interval, Sums};
use muster_kernel::spec::{FieldKey, KeyDef, KeyFlags, SortSpec};
use muster_kernel::splitters::Splitter;

use crate::api::{
    BadPlace, KeyEncoding, Manifest, ManifestPart, PhaseTimes, QuarantineFile, Recovery,
    SkippedObject,
};
use crate::error::{Error, ErrorKind};
use crate::every;
use crate::ids::{AttemptId, Epoch, Generation, Incarnation, Phase, TaskId};
use crate::plan::{
    BadInputs, BadRecords, JobSpec, LeftOut, PinnedObject, PinnedRun, PinnedRuns, Plan, Sizing,
};
use crate::wire::{
    self, AttemptProgress, BadRecord, BlobRef, Broadcast, CancelAttempt, CommandReply, DamageCause,
    Drain, Health, Heartbeat, HeldAttempt, JobRecoveries, LeaderBeat, ListInputs, ListReply,
    LocalFile, LocalOmitted, Mended, MergedPart, Message, Outcome, PhaseQuery, PhaseReply,
    Recovered, Recoveries, Register, RegisterReply, Report, ReportReply, RunAttempt, RunReply,
    SortedRun, StoreLimits, Work, WorkerState,
};

const V1: &str = include_str!("golden/v1.txt");

/// Collects the lines as this build writes them in one version, and checks that they read back.
struct Lines {
    version: u8,
    written: String,
}

impl Lines {
    fn message<T: Message + PartialEq + Debug>(&mut self, name: &str, sample: &T) {
        let bytes = sample.to_frame(self.version).expect("encodes");
        self.line(name, &bytes);
        assert_eq!(&T::from_frame(&bytes).expect(name), sample, "{name} reads back");
        for len in 0..bytes.len() {
            assert!(T::from_frame(&bytes[..len]).is_err(), "{name} cut to {len} bytes is refused");
        }
        let more = [&bytes[..], b"x"].concat();
        assert!(T::from_frame(&more).is_err(), "{name} with more bytes is refused");
    }

    /// What lies within messages.
    fn part<T: Serialize>(&mut self, name: &str, sample: &T) {
        self.line(&format!("part-{name}"), &postcard::to_stdvec(sample).expect("encodes"));
    }

    fn json<T>(&mut self, name: &str, sample: &T)
    where
        T: Serialize + DeserializeOwned + PartialEq + Debug,
    {
        let bytes = serde_json::to_vec(sample).expect("encodes");
        self.line(name, &bytes);
        assert_eq!(&serde_json::from_slice::<T>(&bytes).expect(name), sample, "{name} reads back");
    }

    fn line(&mut self, name: &str, bytes: &[u8]) {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(self.written, "{name} {hex}").expect("a string takes all");
    }
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

fn report(outcome: Outcome) -> Report {
    Report {
        epoch: Epoch(3),
        worker: "w1".parse().expect("id"),
        incarnation: Incarnation(9),
        job: "j1".parse().expect("id"),
        attempt: attempt(Phase::Sort),
        outcome,
    }
}

fn run(work: Work) -> RunAttempt {
    RunAttempt {
        epoch: Epoch(3),
        incarnation: Incarnation(9),
        job: "j1".parse().expect("id"),
        attempt: attempt(Phase::Sort),
        plan: blob("plan"),
        work,
        memory_halvings: 2,
    }
}

/// Keys and flags of every kind.
pub(crate) fn sort() -> SortSpec {
    let flags = KeyFlags { numeric: true, reverse: true, ..KeyFlags::default() };
    let field = FieldKey {
        start_field: 2,
        start_char: 1,
        end: Some((2, 0)),
        flags,
        end_ignore_blanks: true,
    };
    SortSpec {
        keys: vec![KeyDef::Field(field)],
        separator: Some(b','),
        stable: true,
        ..SortSpec::new(Format::lines(b'\n'))
    }
}

/// A plan that has something of everything.
pub(crate) fn plan() -> Plan {
    let object = PinnedObject { url: "s3://bucket/in".into(), bytes: 1000, version: "etag".into() };
    Plan {
        job: "j1".parse().expect("id"),
        sort: SortSpec {
            keys: vec![KeyDef::Range { offset: 0, len: 10 }],
            ..SortSpec::new(Format::fixed(100))
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
        replica: Some("s3://other/_muster/d1/j1".into()),
        bad_records: BadRecords::Quarantine,
        settings: Some("[phases]".into()),
        left_out: vec![LeftOut { url: "file:///in/odd".into(), why: "a socket".into() }],
    }
}

fn within_messages(lines: &mut Lines) {
    let task_bytes = 300;
    for (name, kind) in every!(ErrorKind {
        Retry,
        Fenced,
        Invalid,
        Corrupt,
        Exhausted,
        NotFound,
        Bug,
        Throttled,
        OutOfMemory,
        NeedsMemory { task_bytes },
        Setup,
        WorkerDied,
    }) {
        lines.part(name, &kind);
    }
    for (name, phase) in every!(Phase { Sample, Sort, Merge }) {
        lines.part(name, &phase);
    }
    for (name, state) in every!(WorkerState { Active, Draining, Leaving }) {
        lines.part(name, &state);
    }
    for (name, cause) in every!(DamageCause { Store, Network, Writer }) {
        lines.part(name, &cause);
    }
    for (name, fate) in every!(BadRecords { Fail, Skip, Quarantine }) {
        lines.part(name, &fate);
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
        wire: 1,
        settings: vec![("heartbeat.interval_ms".into(), "1000".into())],
        inputs: vec!["/data".into()],
    };
    lines.message("Register", &register);
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
    let progress =
        AttemptProgress { job: held.job, attempt: held.attempt, bytes_done: 5, bytes_total: 10 };
    let heartbeat = Heartbeat {
        worker: "w1".parse().expect("id"),
        incarnation: Incarnation(9),
        epoch: Epoch(3),
        sequence: 12,
        state: WorkerState::Draining,
        attempts: vec![progress],
        health,
    };
    lines.message("Heartbeat", &heartbeat);
    let sorted = SortedRun {
        url: "s3://bucket/run".into(),
        replica: Some("s3://other/run".into()),
        bytes: 1000,
        index_digest: 77,
        input: sums(10),
        kept: sums(8),
        dropped: sums(1),
        skipped: sums(1),
        quarantine: Some(blob("bad")),
        bad_records: vec![BadRecord { object: 1, offset: 200, bytes: 7, reason: "torn".into() }],
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
    for (name, outcome) in every!(Outcome {
        UploadOpened { upload: "u1".into() },
        Sampled { samples: vec![Splitter { key: b"key".to_vec(), position: 500 }] },
        SampledToScratch { samples: blob("samples") },
        Sorted(Box::new(sorted)),
        Merged(part),
        Failed { error: Error::corrupt("flipped") },
        RunDamaged {
            split: 7,
            run: attempt(Phase::Sort),
            cause: DamageCause::Store,
            error: Error::corrupt("flipped"),
        },
        InputUnreadable { object: 1, error: Error::retry("cannot read") },
    }) {
        lines.message(name, &report(outcome));
    }
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
    lines.message("JobRecoveries", &recoveries);
    lines.message("PhaseQuery", &PhaseQuery { job: "j1".parse().expect("id") });
    let error = || Error::retry("old epoch");
    for (name, reply) in every!(RunReply { Accepted, Busy, Refused { error: error() } }) {
        lines.message(name, &reply);
    }
    for (name, reply) in every!(CommandReply { Done, Refused { error: error() } }) {
        lines.message(name, &reply);
    }
    let file = LocalFile {
        path: "/data/a".into(),
        bytes: 10,
        version: "v".into(),
        head: Ok(b"head".to_vec()),
    };
    let closed = LocalFile { path: "/data/b".into(), head: Err(error()), ..file.clone() };
    let omitted = LocalOmitted { path: "/data/c".into(), why: "a socket".into(), cut: true };
    for (name, reply) in every!(ListReply {
        Listed {
            files: vec![file, closed],
            omitted: vec![omitted],
            next: Some("/data/b".into()),
        },
        Refused { error: error() },
    }) {
        lines.message(name, &reply);
    }
}

fn from_the_leader(lines: &mut Lines) {
    let (epoch, job) = (Epoch(3), || "j1".parse().expect("id"));
    let beat = LeaderBeat { deployment: "d1".parse().expect("id"), epoch, sequence: 4 };
    lines.message("LeaderBeat", &beat);
    for (name, reply) in every!(RegisterReply {
        Accepted {
            deployment: "d1".parse().expect("id"),
            epoch,
            heartbeat_ms: 1000,
            regranted: vec![attempt(Phase::Sort)],
        },
        Refused { error: Error::invalid("another process") },
    }) {
        lines.message(name, &reply);
    }
    for (name, work) in every!(Work {
        Sample { skip: vec![3] },
        Sort { splitters: Some(blob("splitters")), skip: vec![1, 300] },
        Merge { splitters: None, runs: blob("runs") },
    }) {
        lines.message(name, &run(work));
    }
    let cancel = CancelAttempt { epoch, job: job(), attempt: attempt(Phase::Sort) };
    lines.message("CancelAttempt", &cancel);
    lines.message("Drain", &Drain { epoch });
    for (name, reply) in every!(ReportReply {
        Recorded { epoch },
        Revoked { epoch },
        Reregister { epoch },
        Later,
    }) {
        lines.message(name, &reply);
    }
    for (name, broadcast) in every!(Broadcast {
        Boundaries { epoch, splitters: Some(blob("splitters")) },
        PhaseBegins { epoch, phase: Phase::Merge },
        Ended { epoch },
    }) {
        lines.message(name, &broadcast);
    }
    let phase = Phase::Sort;
    for (name, reply) in every!(PhaseReply { Running { epoch, phase }, Idle { epoch } }) {
        lines.message(name, &reply);
    }
    lines.message("StoreLimits", &StoreLimits { epoch, requests_per_s: Some(50) });
    let list = ListInputs { epoch, pattern: "*.txt".into(), after: Some("/data/0".into()) };
    lines.message("ListInputs", &list);
}

fn in_scratch(lines: &mut Lines) {
    lines.message("Plan", &plan());
    let run = PinnedRun {
        attempt: attempt(Phase::Sort),
        url: "s3://bucket/run".into(),
        replica: Some("s3://other/run".into()),
        bytes: 1000,
        index_digest: 77,
    };
    let runs = PinnedRuns { job: "j1".parse().expect("id"), runs: vec![run] };
    lines.message("PinnedRuns", &runs);
}

fn in_json(lines: &mut Lines) {
    let spec = JobSpec {
        job: "j1".parse().expect("id"),
        inputs: vec!["s3://bucket/in".into()],
        output: "s3://bucket/out".into(),
        bucket: None,
        sort: SortSpec::new(Format::lines(b'\n')),
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
    lines.json("json-submit", &spec);
    let full = JobSpec {
        bucket: Some("s3://bucket".into()),
        sort: sort(),
        replica: Some("s3://other".into()),
        bad_records: BadRecords::Skip,
        bad_inputs: BadInputs::Skip,
        settings: Some("[phases]".into()),
        ..spec.clone()
    };
    lines.json("json-submit-full", &full);
    let manifest = Manifest {
        version: 1,
        job: spec.job,
        sort: spec.sort,
        parts: vec![ManifestPart {
            name: "part-00000.txt".into(),
            records: 9,
            bytes: 900,
            first_key: "a".into(),
            last_key: "z".into(),
            key_encoding: KeyEncoding::Text,
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
    lines.json("json-manifest", &manifest);
    let object = || "s3://bucket/in".to_owned();
    let full = Manifest {
        skipped: sums(2),
        bad_records: vec![BadPlace {
            object: object(),
            offset: 200,
            bytes: 7,
            reason: "torn".into(),
        }],
        quarantine: vec![QuarantineFile {
            name: "_quarantine/00000.jsonl".into(),
            bytes: 70,
            checksum: "0000000000000058".into(),
        }],
        skipped_objects: vec![SkippedObject { object: object(), reason: "closed".into() }],
        recoveries: vec![Recovery { kind: "store-trouble".into(), ..Recovery::default() }],
        ..manifest
    };
    lines.json("json-manifest-full", &full);
}

#[test]
fn everything_sent_or_stored_keeps_its_bytes() {
    let mut lines = Lines { version: 1, written: String::new() };
    within_messages(&mut lines);
    to_the_leader(&mut lines);
    from_the_leader(&mut lines);
    in_scratch(&mut lines);
    in_json(&mut lines);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/golden/v1.txt");
        std::fs::write(path, &lines.written).expect("writes");
    }
    assert_eq!(lines.written, V1, "what this build writes:\n{}", lines.written);
}

/// A message that the first version does not have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Added(String);

crate::versions! {
    Added: 2 = Added;
}

/// An older peer reads what it is told; what cannot be said in its version is refused, not misread.
#[test]
fn an_old_peer_is_spoken_to_in_its_version() {
    fn check<T: Message + PartialEq + Debug>(message: &T) {
        let [old, new] = [1, 2].map(|peer| message.to_frame(peer).expect("encodes"));
        assert_eq!((old[0], new[0]), (1, 2));
        for frame in [&old, &new] {
            assert_eq!(&T::from_frame(frame).expect("reads"), message);
        }
    }
    check(&report(Outcome::Failed { error: Error::corrupt("flipped") }));
    check(&run(Work::Merge { splitters: None, runs: blob("runs") }));
    let added = Added("said".into());
    let refused = added.to_frame(1).expect_err("version 1 has none");
    assert!(refused.message.contains("version 1 has no Added"), "{refused}");
    assert_eq!(Added::from_frame(&added.to_frame(2).expect("encodes")), Ok(added));
    let drain = Drain { epoch: Epoch(3) };
    assert_eq!(drain.to_frame(2), drain.to_frame(1), "what did not change is said as it was");
}

/// What is said to all is said in the oldest version that can say it.
#[test]
fn all_are_spoken_to_in_the_oldest_version_that_can_say_it() {
    let spoken = |frame: crate::Result<Vec<u8>>| frame.expect("encodes")[0];
    let run = run(Work::Merge { splitters: None, runs: blob("runs") });
    assert_eq!(spoken(wire::to_oldest_frame(&run, 1, 2)), 1);
    assert_eq!(spoken(wire::to_oldest_frame(&Added("said".into()), 1, 2)), 2);
}

#[test]
fn other_versions_and_oversized_messages_are_refused() {
    let mut bytes = wire::encode(&Drain { epoch: Epoch(3) }).expect("encodes");
    bytes[0] = 3;
    let error = wire::decode::<Drain>(&bytes).expect_err("version");
    assert_eq!(error.message, "version 3, but this build understands 1");
    assert!(wire::decode::<Drain>(&[]).is_err());
    assert!(
        wire::decode::<Drain>(&vec![1; wire::MESSAGE_BYTES_MAX + 1])
            .expect_err("size")
            .message
            .contains("limit")
    );
    // A length that no message can have must not be believed, let alone allocated.
    let hostile = [&[1_u8][..], &[0xff; 9], &[0x01]].concat();
    assert!(wire::unframe::<Vec<u64>>(&hostile).is_err());
}
