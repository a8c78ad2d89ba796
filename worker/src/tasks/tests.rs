//! Whole small jobs through the task functions: plan, sample, sort, merge, compared with the kernel's oracle; and what happens when something is wrong.

use muster_common::buffer::BufferPool;
use muster_common::ids::{AttemptId, Epoch, Generation, Incarnation, Phase, TaskId};
use muster_common::plan::{PinnedObject, PinnedRun, PinnedRuns, Plan};
use muster_common::store::{Blobs, Scheme};
use muster_common::wire::{BlobRef, MergedPart, SortedRun};
use muster_common::{ErrorKind, ids::JobId};
use muster_kernel::proof::{Sums, tiles};
use muster_kernel::record::Format;
use muster_kernel::reference::sort_reference;
use muster_kernel::spec::SortSpec;
use muster_kernel::split::plan_splits;
use muster_kernel::splitters::{Splitter, choose};

use super::*;
use crate::testing::{Shaky, retry};

/// Memory that holds every split of these tests at once.
const AMPLE: Budget = Budget { cache_bytes: 1 << 20, slot_bytes: 64 << 20, sorter_bytes: 48 << 20, io_bytes: 16 << 20 };
/// Memory that makes every split spill and every merge go in rounds.
const TINY: Budget =
    Budget { cache_bytes: 1 << 10, slot_bytes: 320 << 10, sorter_bytes: 32 << 10, io_bytes: 256 << 10 };

/// A job over a bucket in memory, and the disk of its worker.
struct World {
    context: Arc<Context>,
    bucket: Arc<Shaky>,
    disk: Arc<Shaky>,
    plan: Plan,
    plan_ref: BlobRef,
    nonce: u64,
}

impl World {
    async fn new(spec: SortSpec, objects: &[Vec<u8>], split_bytes: u64, partitions: u32, budget: Budget) -> Self {
        let (bucket, disk) = (Arc::new(Shaky::default()), Arc::new(Shaky::default()));
        let stores = Stores::new(BufferPool::new(1 << 20));
        stores.insert(Scheme::Memory, bucket.clone()).await;
        stores.insert(Scheme::File, disk.clone()).await;
        let mut pinned = Vec::new();
        for (number, object) in objects.iter().enumerate() {
            let key = format!("in/{number:05}");
            bucket.put(&key, object.clone().into()).await.expect("put");
            let meta = bucket.head(&key).await.expect("head");
            pinned.push(PinnedObject { url: format!("memory:///{key}"), bytes: meta.bytes, version: meta.version });
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
        };
        let spills = "file:///spill".parse().expect("url");
        let context = Arc::new(Context::new(stores.clone(), retry(), budget, 2, spills));
        let plan_url = "memory:///scratch/plan".parse().expect("url");
        let plan_ref = stores.put_ref(&plan_url, plan.to_bytes().expect("plan")).await.expect("plan");
        Self { context, bucket, disk, plan, plan_ref, nonce: 0 }
    }

    async fn put(&self, name: &str, bytes: Vec<u8>) -> BlobRef {
        let url = format!("memory:///scratch/{name}").parse().expect("url");
        self.context.stores.put_ref(&url, bytes).await.expect("put")
    }

    fn task(&mut self, phase: Phase, index: u32, work: Work) -> (Arc<Task>, CancellationToken) {
        self.nonce += 1;
        let task = TaskId { phase, index };
        let attempt = AttemptId { task, generation: Generation(0), epoch: Epoch(1), nonce: self.nonce };
        let run = RunAttempt {
            epoch: Epoch(1),
            incarnation: Incarnation(1),
            job: job(),
            attempt,
            plan: self.plan_ref.clone(),
            work,
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
            match self.run(Phase::Sample, index, Work::Sample).await.0 {
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
            let (outcome, task) = self.run(Phase::Sort, index, Work::Sort { splitters: Some(splitters.clone()) }).await;
            match outcome {
                Outcome::Sorted(run) => runs.push((task.run.attempt, run)),
                other => panic!("{other:?}"),
            }
        }
        runs
    }

    async fn pin(&self, runs: &[(AttemptId, SortedRun)]) -> BlobRef {
        let pin = |(attempt, run): &(AttemptId, SortedRun)| PinnedRun {
            attempt: *attempt,
            url: run.url.clone(),
            bytes: run.bytes,
            index_digest: run.index_digest,
        };
        let runs = PinnedRuns { job: job(), runs: runs.iter().map(pin).collect() };
        self.put("runs", runs.to_bytes().expect("runs")).await
    }

    async fn complete(&self, partition: u32, part: &MergedPart) -> Vec<u8> {
        let key = format!("out/part-{partition:05}.txt");
        self.bucket.complete_upload(&key, &part.upload, &part.tags, part.bytes, false).await.expect("complete");
        let bytes =
            self.bucket.read(&key, 0..part.bytes, muster_common::store::Access::Cached).await.expect("read").to_vec();
        assert_eq!(muster_common::wire::digest(&bytes), part.checksum);
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
        let sum = |of: fn(&SortedRun) -> &Sums| runs.iter().fold(Sums::default(), |sums, run| sums.plus(of(run)));
        assert_eq!(sum(|run| &run.kept), kept.plus(&dropped));
        assert_eq!(sum(|run| &run.input), kept.plus(&dropped).plus(&sum(|run| &run.dropped)));
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

fn failure(outcome: Outcome) -> Error {
    match outcome {
        Outcome::Failed { error } => error,
        other => panic!("{other:?}"),
    }
}

fn lines(unique: bool) -> SortSpec {
    SortSpec { unique, ..SortSpec::new(Format::Lines { terminator: b'\n' }) }
}

/// Lines of many lengths, many doubled; the last one of an object lacks its terminator.
fn random_lines(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut data = Vec::new();
    while data.len() < bytes {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (key, len) = ((state >> 33) % 5000, (state >> 50) % 90);
        data.extend_from_slice(format!("{key:x}{}\n", "-".repeat(len as usize)).as_bytes());
    }
    data.pop();
    data
}

async fn check(spec: SortSpec, objects: &[Vec<u8>], split_bytes: u64, budget: Budget) -> (World, Vec<SortedRun>) {
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
    assert!(runs[0].partition_bytes.len() == 4 && runs[0].partition_bytes.iter().all(|&bytes| bytes > 0));
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
        check(SortSpec::new(Format::Fixed { len: 60 }), &[object.clone(), object[..60].to_vec()], 50_000, budget).await;
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
    world.bucket.put("in/00000", objects[0].clone().into()).await.expect("put");
    for work in [Work::Sample, Work::Sort { splitters: Some(splitters.clone()) }] {
        let error = failure(world.run(Phase::Sort, 0, work).await.0);
        assert_eq!(error.kind, ErrorKind::Invalid);
        assert!(error.message.starts_with("input changed during the job: memory:///in/00000"), "{error}");
    }
    world.bucket.delete("in/00000").await.expect("delete");
    let error = failure(world.run(Phase::Sort, 0, Work::Sort { splitters: Some(splitters) }).await.0);
    assert!(error.message.contains("memory:///in/00000: it is gone"), "{error}");
    assert_eq!(world.scratch().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_malformed_record_is_named_with_its_object() {
    let objects = [vec![b'a'; 40], vec![b'b'; 45]];
    let mut world = World::new(SortSpec::new(Format::Fixed { len: 10 }), &objects, 1000, 1, AMPLE).await;
    let error = failure(world.run(Phase::Sort, 0, Work::Sort { splitters: None }).await.0);
    assert_eq!(error.kind, ErrorKind::Invalid);
    assert!(error.message.contains("memory:///in/00001") && error.message.contains("byte 40"), "{error}");
}

/// A job that is sorted, and the change to be made to its first run before it is merged.
async fn merge_damaged(damage: impl AsyncFnOnce(&Shaky, &str, Vec<u8>)) -> (World, Error, String) {
    let mut world = World::new(lines(false), &[random_lines(100_000, 9)], 30_000, 1, AMPLE).await;
    let splitters = world.splitters().await;
    let runs = world.sort(&splitters).await;
    let runs_ref = world.pin(&runs).await;
    let url = runs[1].1.url.clone();
    let key = url.trim_start_matches("memory:///").to_owned();
    let bytes = world.bucket.read(&key, 0..runs[1].1.bytes, muster_common::store::Access::Once).await.expect("read");
    damage(&world.bucket, &key, bytes.to_vec()).await;
    let (outcome, _) = world.run(Phase::Merge, 0, Work::Merge { splitters: Some(splitters), runs: runs_ref }).await;
    (world, failure(outcome), url)
}

#[tokio::test]
async fn damaged_runs_are_named_and_leave_no_part() {
    async fn expect(damage: impl AsyncFnOnce(&Shaky, &str, Vec<u8>)) {
        let (world, error, url) = merge_damaged(damage).await;
        assert_eq!(error.kind, ErrorKind::Corrupt, "{error}");
        assert!(error.message.contains(&url), "{error}");
        assert_eq!(world.bucket.inner.open_uploads(), 0);
    }
    expect(async |bucket, key, _| bucket.delete(key).await.expect("delete")).await;
    expect(async |bucket, key, bytes| bucket.put(key, bytes[..1000].to_vec().into()).await.expect("put")).await;
    for at in [5, 10_000, 31_000] {
        expect(async |bucket, key, mut bytes| {
            let at = at.min(bytes.len() - 1);
            bytes[at] ^= 0x10;
            bucket.put(key, bytes.into()).await.expect("put");
        })
        .await;
    }
}

#[tokio::test]
async fn a_cancelled_or_failed_attempt_leaves_nothing() {
    let mut world = World::new(lines(false), &[random_lines(600_000, 10)], 600_000, 1, TINY).await;
    let splitters = world.splitters().await;
    let runs = world.sort(&splitters).await;
    let runs_ref = world.pin(&runs).await;
    let standing = world.scratch().await;
    let sort = Work::Sort { splitters: Some(splitters.clone()) };
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
    let (outcome, task) = world.run(Phase::Sort, 0, Work::Sort { splitters: None }).await;
    assert!(matches!(outcome, Outcome::Sorted(_)));
    assert_eq!(world.scratch().await.len(), 1);
    task.results.remove_all().await;
    assert_eq!(world.scratch().await, Vec::<String>::new());
    assert_eq!(task.progress.bytes_done.load(Ordering::Relaxed), task.progress.bytes_total.load(Ordering::Relaxed));
}
