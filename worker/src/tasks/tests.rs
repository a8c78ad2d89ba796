//! Whole small jobs through the task functions: plan, sample, sort, merge, compared with the
//! kernel's oracle; and what happens when something is wrong.

use muster_kernel::format::{Format, Frame};
use muster_kernel::proof::{Sums, tiles};
use muster_kernel::reference::sort_reference;
use muster_kernel::spec::SortSpec;
use muster_kernel::split::plan_splits;
use muster_kernel::splitters::{Splitter, choose};
use muster_platform::adapters::own_files::OwnFiles;
use muster_platform::buffer::BufferPool;
use muster_platform::clock::ManualClock;
use muster_platform::config::{Config, Profile};
use muster_platform::faults::Faults;
use muster_platform::store::{Blobs, Scheme};
use muster_protocol::ids::{AttemptId, Epoch, Generation, Incarnation, Phase, TaskId, WorkerId};
use muster_protocol::plan::{BadRecords, PinnedObject, PinnedRun, PinnedRuns, Plan};
use muster_protocol::wire::{BlobRef, DamageCause, MergedPart, SortedRun};
use muster_protocol::{ErrorKind, ids::JobId};

use super::*;
use crate::testing::{Shaky, retry};

/// Memory that holds every split of these tests at once.
const AMPLE: Budget = Budget {
    memory_bytes: 128 << 20,
    beside_bytes: 0,
    slots: 1,
    cache_bytes: 1 << 20,
    buffer_bytes: 16 << 20,
    slot_bytes: 64 << 20,
    sorter_bytes: 48 << 20,
    io_bytes: 16 << 20,
    shrunk: 0,
};
/// Memory that makes every split spill and every merge go in rounds.
const TINY: Budget = Budget {
    cache_bytes: 1 << 10,
    slot_bytes: 320 << 10,
    sorter_bytes: 32 << 10,
    io_bytes: 256 << 10,
    ..AMPLE
};

/// A job over a bucket in memory, and the disk of its worker.
struct World {
    context: Arc<Context>,
    bucket: Arc<Shaky>,
    /// Where replicas go.
    other: Arc<Shaky>,
    disk: Arc<Shaky>,
    plan: Plan,
    plan_ref: BlobRef,
    nonce: u64,
}

impl World {
    async fn new(
        spec: SortSpec,
        objects: &[Vec<u8>],
        split_bytes: u64,
        partitions: u32,
        budget: Budget,
    ) -> Self {
        let (bucket, other, disk) =
            (Arc::new(Shaky::default()), Arc::new(Shaky::default()), Arc::new(Shaky::default()));
        let stores = Stores::new(
            BufferPool::new(1 << 20),
            &Config::profile(Profile::Testing).expect("settings").store,
        );
        stores.insert(Scheme::Memory, bucket.clone()).await;
        stores.insert(Scheme::File, disk.clone()).await;
        stores.insert(Scheme::S3 { bucket: "other".to_owned() }, other.clone()).await;
        let mut pinned = Vec::new();
        for (number, object) in objects.iter().enumerate() {
            let key = format!("in/{number:05}");
            bucket.put(&key, object.clone().into()).await.expect("put");
            let meta = bucket.head(&key).await.expect("head");
            pinned.push(PinnedObject {
                url: format!("memory:///{key}"),
                bytes: meta.bytes,
                version: meta.version,
            });
        }
        let sizes: Vec<u64> = pinned.iter().map(|object| object.bytes).collect();
        let plan = Plan {
            job: job(),
            splits: plan_splits(&sizes, &spec.format, split_bytes),
            sort: spec,
            objects: pinned,
            partitions,
            sample_seed: 42,
            samples_per_split: 64,
            output: "memory:///out".to_owned(),
            extension: "txt".to_owned(),
            scratch: "memory:///scratch".to_owned(),
            replaced: Vec::new(),
            uploads_before: Vec::new(),
            fsync: false,
            attempts_max: 4,
            replica: None,
            bad_records: BadRecords::Fail,
            settings: None,
            left_out: Vec::new(),
        };
        let spills = Spills::new("file:///spill".parse().expect("url"));
        let context = Arc::new(Context::new(crew(), stores.clone(), retry(), budget, 2, spills));
        let plan_url = "memory:///scratch/plan".parse().expect("url");
        let plan_ref =
            stores.put_ref(&plan_url, plan.to_bytes().expect("plan")).await.expect("plan");
        Self { context, bucket, other, disk, plan, plan_ref, nonce: 0 }
    }

    /// Changes the plan.
    async fn replan(&mut self, change: impl FnOnce(&mut Plan)) {
        change(&mut self.plan);
        self.plan_ref = self.put("plan-2", self.plan.to_bytes().expect("plan")).await;
    }

    /// Does to the worker what a SPEC of faults says.
    fn disturb(&mut self, budget: Budget, spec: &str) {
        let Context { stores, retry, spills, .. } = &*self.context;
        let faults =
            Faults::new(spec.parse().expect("a spec"), "w1", Arc::new(ManualClock::default()));
        let stores = stores.clone().disturbed(Some(Arc::new(faults)));
        self.context =
            Arc::new(Context::new(crew(), stores, retry.clone(), budget, 2, spills.clone()));
    }

    /// Gives the worker other limits.
    fn limit(&mut self, budget: Budget, limits: SorterLimits) {
        let Context { stores, retry, spills, .. } = &*self.context;
        let (stores, retry, spills) = (stores.clone(), retry.clone(), spills.clone());
        self.context = Arc::new(Context::limited(crew(), stores, retry, budget, 2, spills, limits));
    }

    async fn put(&self, name: &str, bytes: Vec<u8>) -> BlobRef {
        let url = format!("memory:///scratch/{name}").parse().expect("url");
        self.context.stores.put_ref(&url, bytes).await.expect("put")
    }

    fn task(&mut self, phase: Phase, index: u32, work: Work) -> (Arc<Task>, CancellationToken) {
        self.nonce += 1;
        let task = TaskId { phase, index };
        let attempt =
            AttemptId { task, generation: Generation(0), epoch: Epoch(1), nonce: self.nonce };
        let run = RunAttempt {
            epoch: Epoch(1),
            incarnation: Incarnation(1),
            job: job(),
            attempt,
            plan: self.plan_ref.clone(),
            work,
            memory_halvings: 0,
        };
        let cancel = CancellationToken::new();
        (Arc::new(Task::new(self.context.clone(), run, cancel.clone(), Arc::default())), cancel)
    }

    /// Runs an attempt with a leader that lets every upload go on.
    async fn run(&mut self, phase: Phase, index: u32, work: Work) -> (Outcome, Arc<Task>) {
        let (task, _) = self.task(phase, index, work);
        (conclude(&task).await, task)
    }

    async fn sample(&mut self) -> Vec<Splitter> {
        let mut samples = Vec::new();
        for index in 0..self.plan.splits.len() as u32 {
            match self.run(Phase::Sample, index, Work::Sample { skip: Vec::new() }).await.0 {
                Outcome::Sampled { samples: more } => samples.extend(more),
                other => panic!("{other:?}"),
            }
        }
        choose(samples, self.plan.partitions, self.plan.sort.unique)
    }

    async fn splitters(&mut self) -> BlobRef {
        let splitters = self.sample().await;
        self.put("splitters", muster_kernel::splitters::encode(&splitters)).await
    }

    async fn sort(&mut self, splitters: &BlobRef) -> Vec<(AttemptId, SortedRun)> {
        let mut runs = Vec::new();
        for index in 0..self.plan.splits.len() as u32 {
            let (outcome, task) = self
                .run(
                    Phase::Sort,
                    index,
                    Work::Sort { splitters: Some(splitters.clone()), skip: Vec::new() },
                )
                .await;
            match outcome {
                Outcome::Sorted(run) => runs.push((task.run.attempt, *run)),
                other => panic!("{other:?}"),
            }
        }
        runs
    }

    async fn pin(&self, runs: &[(AttemptId, SortedRun)]) -> BlobRef {
        let pin = |(attempt, run): &(AttemptId, SortedRun)| PinnedRun {
            attempt: *attempt,
            url: run.url.clone(),
            replica: run.replica.clone(),
            bytes: run.bytes,
            index_digest: run.index_digest,
        };
        let runs = PinnedRuns { job: job(), runs: runs.iter().map(pin).collect() };
        self.put("runs", runs.to_bytes().expect("runs")).await
    }

    async fn complete(&self, partition: u32, part: &MergedPart) -> Vec<u8> {
        let key = format!("out/part-{partition:05}.txt");
        self.bucket
            .complete_upload(&key, &part.upload, &part.tags, part.bytes, false)
            .await
            .expect("complete");
        let bytes = self
            .bucket
            .read(&key, 0..part.bytes, muster_platform::store::Access::Cached)
            .await
            .expect("read")
            .to_vec();
        assert_eq!(muster_protocol::wire::digest(&bytes), part.checksum);
        bytes
    }

    /// The whole job; checks sums, intervals and leftovers on the way.
    async fn output(&mut self) -> (Vec<Vec<u8>>, Vec<SortedRun>) {
        let splitters = self.splitters().await;
        let runs = self.sort(&splitters).await;
        let runs_ref = self.pin(&runs).await;
        let intervals: Vec<_> = runs.iter().flat_map(|(_, run)| run.intervals.clone()).collect();
        let sizes: Vec<u64> = self.plan.objects.iter().map(|object| object.bytes).collect();
        assert_eq!(tiles(&intervals, &sizes), Ok(()));
        let mut parts = Vec::new();
        let (mut kept, mut dropped) = (Sums::default(), Sums::default());
        let partitions = runs.first().map_or(1, |(_, run)| run.partition_bytes.len() as u32);
        for partition in 0..partitions {
            let work = Work::Merge { splitters: Some(splitters.clone()), runs: runs_ref.clone() };
            match self.run(Phase::Merge, partition, work).await.0 {
                Outcome::Merged(part) => {
                    kept.merge(&part.kept);
                    dropped.merge(&part.dropped);
                    parts.push(self.complete(partition, &part).await);
                }
                other => panic!("{other:?}"),
            }
        }
        let runs: Vec<SortedRun> = runs.into_iter().map(|(_, run)| run).collect();
        let sum = |of: fn(&SortedRun) -> &Sums| {
            runs.iter().fold(Sums::default(), |sums, run| sums.plus(of(run)))
        };
        assert_eq!(sum(|run| &run.kept), kept.plus(&dropped));
        let left_out = sum(|run| &run.dropped).plus(&sum(|run| &run.skipped));
        assert_eq!(sum(|run| &run.input), kept.plus(&dropped).plus(&left_out));
        assert_eq!(self.disk.contents().await, (vec![], 0), "spills are gone");
        assert_eq!(self.bucket.inner.open_uploads(), 0);
        (parts, runs)
    }

    async fn scratch(&self) -> Vec<String> {
        self.bucket
            .contents()
            .await
            .0
            .into_iter()
            .filter(|key| key.ends_with(".run") || key.starts_with("out/"))
            .collect()
    }
}

fn crew() -> Arc<dyn Crew> {
    Arc::new(crate::crew::Tokio::current())
}

fn job() -> JobId {
    "j".parse().expect("id")
}

/// A leader that lets every upload go on.
async fn conclude(task: &Arc<Task>) -> Outcome {
    let (opened, announced) = oneshot::channel();
    let (allow, proceed) = oneshot::channel();
    tokio::spawn(async move {
        if announced.await.is_ok() {
            let _ = allow.send(());
        }
    });
    task.conclude(Gate { opened, proceed }).await
}

fn oracle_records(spec: &SortSpec, objects: &[Vec<u8>]) -> u64 {
    let sorted = sort_reference(spec, objects).expect("oracle");
    sorted.iter().filter(|&&byte| byte == b'\n').count() as u64
}

fn failure(outcome: Outcome) -> Error {
    match outcome {
        Outcome::Failed { error } => error,
        other => panic!("{other:?}"),
    }
}

fn lines(unique: bool) -> SortSpec {
    SortSpec { unique, ..SortSpec::new(Format::lines(b'\n')) }
}

/// Lines of many lengths, many doubled; the last one of an object lacks its terminator.
fn random_lines(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut data = Vec::new();
    while data.len() < bytes {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (key, len) = ((state >> 33) % 5000, (state >> 50) % 90);
        data.extend_from_slice(format!("{key:x}{}\n", "-".repeat(len as usize)).as_bytes());
    }
    data.pop();
    data
}

async fn check(
    spec: SortSpec,
    objects: &[Vec<u8>],
    split_bytes: u64,
    budget: Budget,
) -> (World, Vec<SortedRun>) {
    let expected = sort_reference(&spec, objects).expect("oracle");
    let mut world = World::new(spec, objects, split_bytes, 4, budget).await;
    let (parts, runs) = world.output().await;
    assert!(parts.concat() == expected, "the parts are not what the oracle says");
    (world, runs)
}

#[tokio::test]
async fn lines_are_sorted_in_ample_memory() {
    let objects = [random_lines(200_000, 1), vec![], random_lines(70, 2), random_lines(150_000, 3)];
    let (world, runs) = check(lines(false), &objects, 64_000, AMPLE).await;
    assert!(runs.len() > 4 && runs.iter().all(|run| run.spills == 0));
    assert!(
        runs[0].partition_bytes.len() == 4
            && runs[0].partition_bytes.iter().all(|&bytes| bytes > 0)
    );
    assert_eq!(world.disk.opened_like(""), 0);
}

#[tokio::test]
async fn spills_and_rounds_give_the_same_bytes() {
    for unique in [false, true] {
        let objects = [random_lines(300_000, 4), random_lines(300_000, 5)];
        let (world, runs) = check(lines(unique), &objects, 150_000, TINY).await;
        let chunks = 150_000 / TINY.sorter_bytes as u32 * 2;
        // More spills than chunks can be: the others hold what rounds have merged.
        assert!(
            runs.iter().all(|run| run.spills > chunks),
            "{:?}",
            runs.iter().map(|run| run.spills).collect::<Vec<_>>()
        );
        assert!(world.disk.opened_like("/round-1-") > 0, "runs were merged in rounds");
    }
}

#[tokio::test]
async fn fixed_records_are_sorted_with_and_without_spills() {
    let object: Vec<u8> = random_lines(200_000, 6).into_iter().take(199_980).collect();
    for budget in [AMPLE, TINY] {
        check(
            SortSpec::new(Format::fixed(60)),
            &[object.clone(), object[..60].to_vec()],
            50_000,
            budget,
        )
        .await;
    }
}

#[tokio::test]
async fn odd_inputs_are_sorted() {
    check(lines(false), &[b"b\na\n".to_vec()], 100, AMPLE).await;
    check(lines(false), &[b"b".to_vec(), b"\n\n".to_vec(), b"a\nb".to_vec()], 2, AMPLE).await;
    // One line that is longer than its split, and spans several.
    check(lines(false), &[[b"z".repeat(300_000), b"\na\n".to_vec()].concat()], 50_000, AMPLE).await;
}

#[tokio::test]
async fn samples_depend_on_nothing_but_the_plan() {
    let objects = [random_lines(900_000, 7)];
    let mut one = World::new(lines(false), &objects, 450_000, 4, AMPLE).await;
    let mut other = World::new(lines(false), &objects, 450_000, 4, TINY).await;
    let splitters = one.sample().await;
    assert_eq!((splitters.len(), &splitters), (3, &other.sample().await));
}

#[tokio::test]
async fn changed_input_fails_and_is_named() {
    let objects = [random_lines(50_000, 8)];
    let mut world = World::new(lines(false), &objects, 50_000, 2, AMPLE).await;
    let splitters = world.splitters().await;
    // Of the same length; the same bytes again would be the same version.
    let mut changed = objects[0].clone();
    changed[0] ^= 1;
    world.bucket.put("in/00000", changed.into()).await.expect("put");
    for work in [
        Work::Sample { skip: Vec::new() },
        Work::Sort { splitters: Some(splitters.clone()), skip: Vec::new() },
    ] {
        let error = failure(world.run(Phase::Sort, 0, work).await.0);
        assert_eq!(error.kind, ErrorKind::Invalid);
        assert!(
            error.message.starts_with("input changed during the job: memory:///in/00000"),
            "{error}"
        );
    }
    assert_eq!(world.scratch().await, Vec::<String>::new());
}

#[tokio::test]
async fn an_unreadable_input_is_named_and_can_be_left_out() {
    let objects = [random_lines(50_000, 8), random_lines(30_000, 9)];
    let mut world = World::new(lines(false), &objects, 100_000, 2, AMPLE).await;
    let splitters = world.splitters().await;
    world.bucket.delete("in/00001").await.expect("delete");
    let sort = |skip| Work::Sort { splitters: Some(splitters.clone()), skip };
    for (phase, work) in
        [(Phase::Sample, Work::Sample { skip: Vec::new() }), (Phase::Sort, sort(Vec::new()))]
    {
        match world.run(phase, 0, work).await.0 {
            Outcome::InputUnreadable { object: 1, error } => {
                assert!(error.message.contains("in/00001"), "{error}");
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(world.scratch().await, Vec::<String>::new());
    assert!(matches!(
        world.run(Phase::Sample, 0, Work::Sample { skip: vec![1] }).await.0,
        Outcome::Sampled { .. }
    ));
    match world.run(Phase::Sort, 0, sort(vec![1])).await.0 {
        Outcome::Sorted(run) => {
            assert_eq!(tiles(&run.intervals, &[objects[0].len() as u64]), Ok(()));
            assert_eq!(run.kept.records, oracle_records(&lines(false), &objects[..1]));
        }
        other => panic!("{other:?}"),
    }
    match world.run(Phase::Sort, 0, sort(vec![0, 1])).await.0 {
        Outcome::Sorted(run) => assert_eq!((run.kept, run.intervals), (Sums::default(), vec![])),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_store_that_is_away_is_no_fault_of_the_input() {
    let mut world = World::new(lines(false), &[random_lines(50_000, 8)], 100_000, 1, AMPLE).await;
    world.bucket.failing_reads.store(u32::MAX, Ordering::SeqCst);
    let error = failure(
        world.run(Phase::Sort, 0, Work::Sort { splitters: None, skip: Vec::new() }).await.0,
    );
    assert_eq!(error.kind, ErrorKind::Retry);
}

#[tokio::test]
async fn a_malformed_record_is_named_with_its_object() {
    let objects = [vec![b'a'; 40], vec![b'b'; 45]];
    let mut world = World::new(SortSpec::new(Format::fixed(10)), &objects, 1000, 1, AMPLE).await;
    let error = failure(
        world.run(Phase::Sort, 0, Work::Sort { splitters: None, skip: Vec::new() }).await.0,
    );
    assert_eq!(error.kind, ErrorKind::Invalid);
    assert!(
        error.message.contains("memory:///in/00001") && error.message.contains("byte 40"),
        "{error}"
    );
}

/// A malformed record: object, offset, bytes.
type Malformed = (u32, u64, Vec<u8>);

/// What a naive reader says: the sound records of each object, and the others.
fn naive(
    format: &Format,
    objects: &[Vec<u8>],
    record_bytes_max: usize,
) -> (Vec<Vec<u8>>, Vec<Malformed>) {
    let (mut sound, mut bad) = (Vec::new(), Vec::new());
    for (number, object) in (0..).zip(objects) {
        let mut kept = Vec::new();
        let mut offset = 0;
        let records: Vec<&[u8]> = match format.frame() {
            Frame::Terminated(terminator) => {
                object.split_inclusive(|&byte| byte == terminator).collect()
            }
            Frame::Fixed(len) => object.chunks(len as usize).collect(),
        };
        for record in records {
            let body = if matches!(format, Format::Lines(_)) {
                record.strip_suffix(b"\n").unwrap_or(record)
            } else {
                record
            };
            let torn = matches!(format.frame(), Frame::Fixed(len) if record.len() < len as usize);
            if torn || body.len() > record_bytes_max {
                bad.push((number, offset, body.to_vec()));
            } else {
                kept.extend_from_slice(record);
            }
            offset += record.len() as u64;
        }
        sound.push(kept);
    }
    (sound, bad)
}

fn unbase64(text: &str) -> Vec<u8> {
    const LETTERS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let letters: Vec<u32> =
        text.bytes().filter_map(|b| LETTERS.find(b as char)).map(|at| at as u32).collect();
    let groups = letters.chunks(4).flat_map(|group| {
        let word = (0..4).fold(0, |word, at| word << 6 | group.get(at).copied().unwrap_or(0));
        word.to_be_bytes()[1..group.len()].to_vec()
    });
    groups.collect()
}

#[tokio::test]
async fn malformed_records_are_left_out_and_kept() {
    let long = |len: usize| [vec![b'L'; len], b"\n".to_vec()].concat();
    let with_long = |seed: u64, lens: &[usize]| {
        let mut object = random_lines(60_000, seed);
        object.push(b'\n');
        for &len in lens {
            object.extend(long(len));
            object.extend(random_lines(20_000, seed + len as u64));
            object.push(b'\n');
        }
        object
    };
    let mut unended = with_long(3, &[4001]);
    unended.extend(vec![b'x'; 90_000]);
    let of_lines = [with_long(1, &[4001, 70_000, 4000]), long(5000), unended, vec![]];
    let of_fixed =
        [vec![b'b'; 4000], vec![b'a'; 40_017], b"short".to_vec(), random_lines(90_000, 8)];
    for (spec, objects, limit) in [
        (lines(false), &of_lines, 4000),
        (lines(true), &of_lines, 4000),
        (SortSpec::new(Format::fixed(100)), &of_fixed, 1 << 30),
    ] {
        for budget in [AMPLE, TINY] {
            for policy in [BadRecords::Skip, BadRecords::Quarantine] {
                let mut world = World::new(spec.clone(), objects, 30_000, 3, budget).await;
                world.replan(|plan| plan.bad_records = policy).await;
                world.limit(
                    budget,
                    SorterLimits { record_bytes_max: limit, ..SorterLimits::default() },
                );
                let (sound, bad) = naive(&spec.format, objects, limit as usize);
                let (parts, runs) = world.output().await;
                assert!(
                    parts.concat() == sort_reference(&spec, &sound).expect("oracle"),
                    "what is sound is sorted"
                );
                let mut skipped = Sums::default();
                bad.iter().for_each(|(_, _, body)| skipped.add(body));
                assert_eq!(
                    runs.iter().fold(Sums::default(), |sums, run| sums.plus(&run.skipped)),
                    skipped
                );
                let mut listed: Vec<_> = runs
                    .iter()
                    .flat_map(|run| &run.bad_records)
                    .map(|bad| (bad.object, bad.offset, bad.bytes))
                    .collect();
                listed.sort_unstable();
                let expected: Vec<_> = bad
                    .iter()
                    .map(|(object, at, body)| (*object, *at, body.len() as u64))
                    .collect();
                assert_eq!(listed, expected);
                let mut kept = Vec::new();
                for pointer in runs.iter().filter_map(|run| run.quarantine.as_ref()) {
                    let text =
                        world.context.stores.get_ref(pointer, 1 << 30).await.expect("quarantine");
                    for line in std::str::from_utf8(&text).expect("UTF-8").lines() {
                        let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
                        let object: u32 =
                            line["object"].as_str().expect("url")[14..].parse().expect("number");
                        let data = unbase64(line["data"].as_str().expect("data"));
                        assert_eq!(line["bytes"].as_u64(), Some(data.len() as u64));
                        assert!(line["reason"].as_str().is_some_and(|reason| !reason.is_empty()));
                        kept.push((object, line["offset"].as_u64().expect("offset"), data));
                    }
                }
                kept.sort_unstable();
                assert!(
                    kept == if policy == BadRecords::Quarantine { bad } else { vec![] },
                    "what is kept"
                );
            }
        }
    }
}

#[tokio::test]
async fn a_line_that_only_this_workers_memory_does_not_hold_is_not_malformed() {
    let object = [random_lines(10_000, 1), vec![b'x'; 60_000], b"\n".to_vec()].concat();
    let mut world = World::new(lines(false), &[object], 100_000, 1, TINY).await;
    world.replan(|plan| plan.bad_records = BadRecords::Skip).await;
    let error = failure(
        world.run(Phase::Sort, 0, Work::Sort { splitters: None, skip: Vec::new() }).await.0,
    );
    let ErrorKind::NeedsMemory { task_bytes } = error.kind else { panic!("{error:?}") };
    assert!(task_bytes > 0 && error.message.contains("memory:///in/00000"), "{error}");
    assert!(
        error.message.contains("the record of 60073 bytes at byte 9969")
            && error.message.contains("give --memory"),
        "{error}"
    );
    // Records of a fixed length are as long as they are: nothing is read to find out.
    let spec = SortSpec::new(Format::fixed(70_000));
    let mut world = World::new(spec, &[vec![b'x'; 140_000]], 140_000, 1, TINY).await;
    let error = failure(
        world.run(Phase::Sort, 0, Work::Sort { splitters: None, skip: Vec::new() }).await.0,
    );
    assert!(matches!(error.kind, ErrorKind::NeedsMemory { .. }), "{error:?}");
    assert!(error.message.contains("the record of 70000 bytes at byte 0"), "{error}");
}

#[tokio::test]
async fn long_records_are_sorted_spilled_and_merged_within_the_budget_or_say_what_they_need() {
    let line = |byte: u8, bytes: usize| [vec![byte; bytes], b"\n".to_vec()].concat();
    let object =
        [line(b'c', 3 << 20), random_lines(100_000, 3), line(b'b', 3 << 20), line(b'a', 3 << 20)]
            .concat();
    let budget = Budget { sorter_bytes: 16 << 20, slot_bytes: 32 << 20, ..AMPLE };
    let sort = || Work::Sort { splitters: None, skip: Vec::new() };
    let mut world =
        World::new(lines(false), std::slice::from_ref(&object), 1 << 30, 1, budget).await;
    match world.run(Phase::Sort, 0, sort()).await.0 {
        Outcome::Sorted(run) => assert!(run.spills >= 2, "{} spills", run.spills),
        other => panic!("{other:?}"),
    }
    // The sorter has room for one of them, but a merge of two has not.
    let narrow = Budget { slot_bytes: 17 << 20, io_bytes: 1 << 20, ..budget };
    let mut world = World::new(lines(false), &[object], 1 << 30, 1, narrow).await;
    let error = failure(world.run(Phase::Sort, 0, sort()).await.0);
    assert!(matches!(error.kind, ErrorKind::NeedsMemory { .. }), "{error:?}");
    assert!(error.message.contains("merging records of up to 314"), "{error}");
}

#[tokio::test]
async fn refused_memory_halves_the_chunk_or_ends_the_attempt_and_says_so() {
    let mut world =
        World::new(lines(false), &[random_lines(9_000_000, 1)], 10_000_000, 1, AMPLE).await;
    let sort = || Work::Sort { splitters: None, skip: Vec::new() };
    world.limit(AMPLE, SorterLimits { grant: |bytes| bytes <= 2 << 20, ..SorterLimits::default() });
    match world.run(Phase::Sort, 0, sort()).await.0 {
        Outcome::Sorted(run) => assert!(run.spills > 2, "{} spills", run.spills),
        other => panic!("{other:?}"),
    }
    world.limit(AMPLE, SorterLimits { grant: |_| false, ..SorterLimits::default() });
    let standing = world.scratch().await;
    let error = failure(world.run(Phase::Sort, 0, sort()).await.0);
    assert!(error.kind == ErrorKind::OutOfMemory && error.kind.is_retryable(), "{error}");
    assert_eq!((world.scratch().await, world.bucket.inner.open_uploads()), (standing, 0));
}

#[tokio::test]
async fn a_leader_can_ask_for_smaller_chunks() {
    let budget = Budget { sorter_bytes: 8 << 20, slot_bytes: 24 << 20, ..AMPLE };
    let mut world =
        World::new(lines(false), &[random_lines(4_000_000, 1)], 10_000_000, 1, budget).await;
    let mut spills = Vec::new();
    for halvings in [0, 2, 9] {
        let (task, _) =
            world.task(Phase::Sort, 0, Work::Sort { splitters: None, skip: Vec::new() });
        let Ok(mut task) = Arc::try_unwrap(task) else { panic!("shared") };
        task.run.memory_halvings = halvings;
        match conclude(&Arc::new(task)).await {
            Outcome::Sorted(run) => spills.push(run.spills),
            other => panic!("{other:?}"),
        }
    }
    assert!(spills[0] == 0 && 0 < spills[1] && spills[1] < spills[2], "{spills:?}");
}

#[tokio::test]
async fn a_full_spill_disk_is_cleaned_once_then_left_to_another_worker() {
    for failing in [1, u32::MAX] {
        let mut world =
            World::new(lines(false), &[random_lines(600_000, 10)], 600_000, 1, TINY).await;
        world.disk.full_parts.store(failing, Ordering::SeqCst);
        let outcome =
            world.run(Phase::Sort, 0, Work::Sort { splitters: None, skip: Vec::new() }).await.0;
        match (failing, outcome) {
            (1, Outcome::Sorted(run)) => assert!(run.spills > 0),
            (_, Outcome::Failed { error }) => {
                assert!(
                    failing > 1 && error.kind.is_retryable() && error.message.contains("disk full"),
                    "{error}"
                );
            }
            (_, other) => panic!("{other:?}"),
        }
        assert_eq!(world.disk.contents().await, (vec![], 0));
    }
}

/// A job that is sorted and about to be merged.
struct Sorted {
    world: World,
    runs: Vec<(AttemptId, SortedRun)>,
    merge: Work,
}

impl Sorted {
    async fn new(replica: bool, budget: Budget) -> Self {
        let mut world =
            World::new(lines(false), &[random_lines(100_000, 9)], 30_000, 1, budget).await;
        if replica {
            world.replan(|plan| plan.replica = Some("s3://other/scratch".to_owned())).await;
        }
        let splitters = world.splitters().await;
        let runs = world.sort(&splitters).await;
        let merge = Work::Merge { splitters: Some(splitters), runs: world.pin(&runs).await };
        Self { world, runs, merge }
    }

    fn key(&self) -> String {
        self.runs[1].1.url.trim_start_matches("memory:///").to_owned()
    }

    async fn damage(&self, store: &Shaky, key: &str, damage: &Damage) {
        let bytes = store.inner.head(key).await.expect("a run").bytes;
        let mut bytes = store
            .inner
            .read(key, 0..bytes, muster_platform::store::Access::Once)
            .await
            .expect("read")
            .to_vec();
        match *damage {
            Damage::Gone => return store.delete(key).await.expect("delete"),
            Damage::Short => bytes.truncate(1000),
            Damage::Flipped(at) => {
                let at = at.min(bytes.len() - 1);
                bytes[at] ^= 0x10;
            }
        }
        store.put(key, bytes.into()).await.expect("put");
    }

    async fn merge(&mut self) -> Outcome {
        let outcome = self.world.run(Phase::Merge, 0, self.merge.clone()).await.0;
        if !matches!(outcome, Outcome::Merged(_)) {
            assert_eq!(self.world.bucket.inner.open_uploads(), 0);
        }
        outcome
    }

    async fn expect_merged(&mut self) {
        let expected = sort_reference(&lines(false), &[random_lines(100_000, 9)]).expect("oracle");
        match self.merge().await {
            Outcome::Merged(part) => {
                assert!(self.world.complete(0, &part).await == expected, "the part differs");
            }
            other => panic!("{other:?}"),
        }
    }

    fn expect_damaged(&self, outcome: Outcome, expected: DamageCause) {
        match outcome {
            Outcome::RunDamaged { split, run, cause, error } => {
                assert_eq!((split, run, cause), (1, self.runs[1].0, expected), "{error}");
                assert!(error.message.contains(&self.runs[1].1.url), "{error}");
            }
            other => panic!("{other:?}"),
        }
    }
}

/// What becomes of a committed run.
#[derive(Debug)]
enum Damage {
    Gone,
    Short,
    Flipped(usize),
}

/// All kinds of it: in the first block, in a later one, in the index, in the footer.
const DAMAGES: [Damage; 6] = [
    Damage::Gone,
    Damage::Short,
    Damage::Flipped(5),
    Damage::Flipped(10_000),
    Damage::Flipped(30_100),
    Damage::Flipped(usize::MAX),
];

#[tokio::test]
async fn damaged_runs_are_named_and_leave_no_part() {
    for damage in &DAMAGES {
        for budget in [AMPLE, TINY] {
            let mut sorted = Sorted::new(false, budget).await;
            sorted.damage(&sorted.world.bucket, &sorted.key(), damage).await;
            let outcome = sorted.merge().await;
            sorted.expect_damaged(outcome, DamageCause::Store);
        }
    }
}

#[tokio::test]
async fn bytes_that_were_damaged_on_their_way_are_read_again() {
    // An index and a piece of each of four runs.
    for number in 1..=8 {
        let mut sorted = Sorted::new(false, AMPLE).await;
        sorted.world.bucket.flip_run_read.store(number, Ordering::SeqCst);
        sorted.expect_merged().await;
        let counted = sorted.world.context.counters.read_again.load(Ordering::Relaxed);
        assert_eq!(counted, 1, "read {number}");
    }
}

#[tokio::test]
async fn a_run_that_is_not_what_was_committed_is_its_writers_fault() {
    let mut sorted = Sorted::new(false, AMPLE).await;
    let other = sorted.runs[2].1.clone();
    // Sound in itself, and of the right length, but another run.
    sorted.runs[1].1 = SortedRun { bytes: other.bytes, ..sorted.runs[1].1.clone() };
    let key = other.url.trim_start_matches("memory:///");
    let bytes = sorted
        .world
        .bucket
        .read(key, 0..other.bytes, muster_platform::store::Access::Once)
        .await
        .expect("read");
    sorted.world.bucket.put(&sorted.key(), bytes).await.expect("put");
    let Work::Merge { splitters, .. } = sorted.merge.clone() else { unreachable!() };
    sorted.merge = Work::Merge { splitters, runs: sorted.world.pin(&sorted.runs).await };
    let outcome = sorted.merge().await;
    sorted.expect_damaged(outcome, DamageCause::Writer);
}

#[tokio::test]
async fn with_a_replica_no_single_damage_is_felt() {
    for damage in &DAMAGES {
        let mut sorted = Sorted::new(true, AMPLE).await;
        sorted.damage(&sorted.world.bucket, &sorted.key(), damage).await;
        sorted.expect_merged().await;
        let counters = &sorted.world.context.counters;
        assert_eq!(counters.from_replica.load(Ordering::Relaxed), 1, "{damage:?}");
        assert_eq!(counters.repaired.load(Ordering::Relaxed), 1, "{damage:?}");
        assert_eq!(sorted.world.bucket.inner.open_uploads(), 0);
        // The primary is whole again: it alone is enough now.
        sorted.world.other.delete(&sorted.key()).await.expect("delete");
        sorted.expect_merged().await;
    }
    let mut sorted = Sorted::new(true, AMPLE).await;
    sorted.damage(&sorted.world.other, &sorted.key(), &Damage::Flipped(usize::MAX)).await;
    sorted.expect_merged().await;
    sorted.damage(&sorted.world.bucket, &sorted.key(), &Damage::Flipped(9000)).await;
    // Each copy holds where the other does not.
    sorted.expect_merged().await;
    for store in [&sorted.world.bucket, &sorted.world.other] {
        sorted.damage(store, &sorted.key(), &Damage::Flipped(5)).await;
    }
    let outcome = sorted.merge().await;
    sorted.expect_damaged(outcome, DamageCause::Store);
}

#[tokio::test]
async fn a_store_that_gives_no_answer_is_not_waited_for_where_there_is_a_replica() {
    let after_ms = 20;
    let mut sorted = Sorted::new(true, AMPLE).await;
    let context = Arc::get_mut(&mut sorted.world.context).expect("nobody else holds it");
    context.replica_after_ms = after_ms;
    sorted.world.bucket.hanging_runs.store(true, Ordering::SeqCst);
    sorted.expect_merged().await;
    assert!(sorted.world.context.counters.from_replica.load(Ordering::Relaxed) >= 1);

    // The index is known by now; its pieces are had from the replica all the same.
    sorted.expect_merged().await;

    // With the other away as well, the first is waited for until it answers: here, once the other
    // has been asked.
    sorted.world.other.away.store(true, Ordering::SeqCst);
    let (bucket, counters) = (sorted.world.bucket.clone(), sorted.world.context.counters.clone());
    let asked = counters.from_replica.load(Ordering::Relaxed);
    let answers = tokio::spawn(async move {
        while counters.from_replica.load(Ordering::Relaxed) == asked {
            tokio::time::sleep(std::time::Duration::from_millis(after_ms / 10)).await;
        }
        bucket.hanging_runs.store(false, Ordering::SeqCst);
    });
    sorted.expect_merged().await;
    answers.await.expect("the other was asked");
}

#[tokio::test]
async fn a_replica_that_is_away_fails_the_sort_for_now() {
    for budget in [AMPLE, TINY] {
        let sorted = Sorted::new(true, budget).await;
        let mut world = sorted.world;
        let standing = (world.scratch().await, world.other.contents().await);
        world.other.away.store(true, Ordering::SeqCst);
        let error = failure(
            world.run(Phase::Sort, 0, Work::Sort { splitters: None, skip: Vec::new() }).await.0,
        );
        assert_eq!(error.kind, ErrorKind::Retry, "{error}");
        world.other.away.store(false, Ordering::SeqCst);
        assert_eq!((world.scratch().await, world.other.contents().await), standing);
        assert_eq!(world.disk.contents().await, (vec![], 0));
    }
}

#[tokio::test]
async fn a_cancelled_or_failed_attempt_leaves_nothing() {
    let mut world = World::new(lines(false), &[random_lines(600_000, 10)], 600_000, 1, TINY).await;
    let splitters = world.splitters().await;
    let runs = world.sort(&splitters).await;
    let runs_ref = world.pin(&runs).await;
    let standing = world.scratch().await;
    let sort = Work::Sort { splitters: Some(splitters.clone()), skip: Vec::new() };
    let merge = Work::Merge { splitters: Some(splitters), runs: runs_ref };
    world.bucket.hanging_part.store(1, Ordering::SeqCst);
    for (phase, work) in [(Phase::Sort, sort), (Phase::Merge, merge)] {
        let (task, cancel) = world.task(phase, 0, work.clone());
        tokio::spawn(async move {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            cancel.cancel();
        });
        assert_eq!(failure(conclude(&task).await), crate::transfer::abandoned());
        world.bucket.hanging_part.store(0, Ordering::SeqCst);
        world.bucket.failing_part.store(1, Ordering::SeqCst);
        assert_eq!(failure(world.run(phase, 0, work).await.0).kind, ErrorKind::Exhausted);
        assert_eq!(world.scratch().await, standing);
        assert_eq!(world.bucket.inner.open_uploads(), 0);
        assert_eq!(world.disk.contents().await, (vec![], 0));
        world.bucket.failing_part.store(0, Ordering::SeqCst);
        world.bucket.hanging_part.store(1, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn a_merge_waits_for_its_upload_to_be_recorded() {
    let mut world = World::new(lines(false), &[random_lines(10_000, 11)], 10_000, 1, AMPLE).await;
    let splitters = world.splitters().await;
    let runs = world.sort(&splitters).await;
    let work = Work::Merge { splitters: Some(splitters), runs: world.pin(&runs).await };
    let (task, _) = world.task(Phase::Merge, 0, work);
    let (opened, announced) = oneshot::channel();
    let (allow, proceed) = oneshot::channel();
    let merging = tokio::spawn(async move { task.conclude(Gate { opened, proceed }).await });
    let upload = announced.await.expect("an upload");
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    assert!(!merging.is_finished());
    allow.send(()).expect("a merge that waits");
    match merging.await.expect("task") {
        Outcome::Merged(part) => assert_eq!(part.upload, upload),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn results_of_an_attempt_that_does_not_count_go() {
    let mut world = World::new(lines(false), &[random_lines(10_000, 12)], 10_000, 1, AMPLE).await;
    let (outcome, task) =
        world.run(Phase::Sort, 0, Work::Sort { splitters: None, skip: Vec::new() }).await;
    assert!(matches!(outcome, Outcome::Sorted(_)));
    assert_eq!(world.scratch().await.len(), 1);
    task.results.remove_all().await;
    assert_eq!(world.scratch().await, Vec::<String>::new());
    assert_eq!(task.progress.bytes_done(), task.progress.bytes_total.load(Ordering::Relaxed));
}

/// What a plan names is read only where this worker offers it.
#[tokio::test]
async fn a_plan_leads_a_worker_nowhere_else() {
    let objects = [random_lines(50_000, 8)];
    let dir = tempfile::tempdir().expect("temp dir");
    let root = dir.path().canonicalize().expect("root");
    for name in ["own/a", "secret"] {
        let path = root.join(name);
        std::fs::create_dir_all(path.parent().expect("folder")).expect("folder");
        std::fs::write(path, &objects[0]).expect("file");
    }
    std::os::unix::fs::symlink("../secret", root.join("own/link")).expect("link");
    let mut world = World::new(lines(false), &objects, 50_000, 2, AMPLE).await;
    let clock = Arc::new(muster_platform::clock::ManualClock::default());
    let own = OwnFiles::new(&[root.join("own")], BufferPool::new(0), clock).expect("offers");
    let id: WorkerId = "w1".parse().expect("id");
    world.context.stores.insert(Scheme::Worker { id: id.clone() }, Arc::new(own.clone())).await;
    let url = |worker: &str, name: &str| format!("worker://{worker}{}/{name}", root.display());
    let a: BlobUrl = url("w1", "own/a").parse().expect("url");
    let meta = own.head(a.key()).await.expect("head");
    let mut pin = PinnedObject { url: a.to_string(), bytes: meta.bytes, version: meta.version };
    world.replan(|plan| plan.objects[0] = pin.clone()).await;
    let splitters = world.splitters().await;
    let sort = || Work::Sort { splitters: Some(splitters.clone()), skip: Vec::new() };
    assert!(matches!(world.run(Phase::Sort, 0, sort()).await.0, Outcome::Sorted(_)));
    for (url, expected) in [
        (url("w1", "secret"), "not below the folders that this worker offers"),
        (url("w1", "own/link"), "symbolic link"),
        (url("w2", "own/a"), "can be read by worker w2 alone"),
        (url("w1", "own/../secret"), "no absolute and normalised path"),
    ] {
        pin.url = url;
        world.replan(|plan| plan.objects[0] = pin.clone()).await;
        for (phase, work) in
            [(Phase::Sample, Work::Sample { skip: Vec::new() }), (Phase::Sort, sort())]
        {
            let error = match world.run(phase, 0, work).await.0 {
                Outcome::Failed { error } | Outcome::InputUnreadable { error, .. } => error,
                other => panic!("{}: {other:?}", pin.url),
            };
            assert!(
                error.kind == ErrorKind::Invalid && error.message.contains(expected),
                "{}: {error}",
                pin.url
            );
        }
    }
    pin.url = a.to_string();
    std::fs::write(root.join("own/a"), b"other\n").expect("file");
    world.replan(|plan| plan.objects[0] = pin.clone()).await;
    let error = failure(world.run(Phase::Sort, 0, sort()).await.0);
    assert!(error.message.starts_with("input changed during the job: worker://w1/"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_job_tries_as_often_as_its_own_settings_say() {
    for (settings, enough) in
        [(None, false), (Some("[retry.store]\nattempts_max = 200\ntotal_ms = 0\n"), true)]
    {
        let spec = SortSpec::new(Format::fixed(10));
        let mut world = World::new(spec, &[vec![7; 100]], 100, 2, AMPLE).await;
        world.replan(|plan| plan.settings = settings.map(str::to_owned)).await;
        // The plan itself is read by the worker's own settings.
        world.sample().await;
        world.bucket.failing_reads.store(50, Ordering::SeqCst);
        let outcome = world.run(Phase::Sample, 0, Work::Sample { skip: Vec::new() }).await.0;
        assert_eq!(matches!(outcome, Outcome::Sampled { .. }), enough, "{settings:?}: {outcome:?}");
    }
}

#[tokio::test]
async fn a_record_that_memory_damaged_before_its_checksum_costs_a_try() {
    let objects = [random_lines(50_000, 1)];
    let mut world = World::new(lines(false), &objects, 1 << 20, 1, AMPLE).await;
    world.disturb(AMPLE, "seed=3;memory.hold:flip,times=1");
    let sort = || Work::Sort { splitters: None, skip: Vec::new() };
    let (outcome, _) = world.run(Phase::Sort, 0, sort()).await;
    let Outcome::Failed { error } = outcome else { panic!("{outcome:?}") };
    assert!(error.kind == ErrorKind::Corrupt, "another try may help: {error}");
    assert!(!world.scratch().await.iter().any(|name| name.ends_with(".run")), "no run stands");
    let (outcome, _) = world.run(Phase::Sort, 0, sort()).await;
    assert!(matches!(outcome, Outcome::Sorted(_)), "{outcome:?}");
}

#[tokio::test]
async fn a_record_that_memory_damaged_in_a_spill_costs_a_try() {
    let objects = [random_lines(100_000, 1)];
    for seed in 0..20 {
        let mut world = World::new(lines(false), &objects, 1 << 20, 1, TINY).await;
        world.disturb(TINY, &format!("seed={seed};memory.hold:flip,times=1"));
        let sort = Work::Sort { splitters: None, skip: Vec::new() };
        let (outcome, _) = world.run(Phase::Sort, 0, sort).await;
        let Outcome::Failed { error } = outcome else { panic!("{outcome:?}") };
        assert!(error.kind.is_retryable(), "another try may help: {error}");
    }
}

#[tokio::test]
async fn what_was_retried_is_told_once_and_to_a_new_leader_again() {
    let world = World::new(lines(false), &[Vec::new()], 1 << 20, 1, AMPLE).await;
    let retry = world.context.retry_of(&job());
    assert!(world.context.recoveries_news().is_empty());
    let mut fails = true;
    let call = || {
        std::future::ready(if std::mem::take(&mut fails) {
            Err(Error::retry("reset"))
        } else {
            Ok(())
        })
    };
    retry.call(&"the store", call).await.expect("the second call succeeds");
    let news = world.context.recoveries_news();
    assert!(news.len() == 1 && news[0].0 == job() && !news[0].1.is_empty(), "{news:?}");
    assert!(world.context.recoveries_news().is_empty(), "it was told");
    world.context.tell_recoveries_anew();
    assert_eq!(world.context.recoveries_news(), news);
}

/// Before, a task that had read its split was as good as done, while it ordered and wrote for as
/// long again.
#[test]
fn a_byte_is_done_when_it_is_written() {
    let progress = Progress::default();
    let at = |read: u64, written: u64| {
        progress.bytes_read.store(read, Ordering::Relaxed);
        progress.bytes_written.store(written, Ordering::Relaxed);
        progress.bytes_done()
    };
    assert_eq!(at(50, 0), 0, "of nothing");
    progress.bytes_total.store(100, Ordering::Relaxed);
    // What is written has an index and a footer, too, and what is read runs on to the end of a
    // line.
    assert_eq!([at(0, 0), at(50, 0), at(100, 0), at(110, 60), at(100, 130)], [0, 25, 50, 80, 100]);
    progress.begin_anew();
    assert_eq!(progress.bytes_done(), 0);
}
