//! What was promised to be shown, each as a scenario with seeds: workers that die while sampling,
//! disks that are full, and how long a worker's death goes unnoticed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;
use std::time::{Duration, SystemTime};

use muster_protocol::ids::{AttemptId, Phase, TaskId};
use muster_tests::chaos::cases::Case;
use muster_tests::chaos::run::to_end;
use muster_tests::chaos::schedule::{Crew, Member, Service};
use muster_tests::chaos::stage::{Setup, Stage};
use muster_tests::chaos::watch::Watch;
use muster_tests::harness::data::{Dice, Keys, records};
use muster_tests::harness::journal::{self, Begin};
use muster_tests::harness::sandbox::files_below;
use muster_tests::harness::{Journal, Output, Sandbox, Weather, arg, oracle, wait};
use serde_json::Value;

const STALL: Weather = Weather::Stall { up: true, down: true };

/// Checks that a job has succeeded with the right bytes, that no committed task was repeated, and
/// that nothing is left of it but its OUTPUT, which is then removed.
#[track_caller]
fn assert_same_bytes(stage: &Stage<'_>, case: &Case, id: &str, status: &Value) {
    assert_eq!(status["state"], "succeeded", "{status}");
    case.output(stage, id).assert_is(&case.sorted);
    let begins = journal::begins_in(&stage.logs());
    Journal::read(&stage.nats.url()).work(id).assert_nothing_repeated(&begins, status);
    wait::until_empty("in scratch", || stage.bucket.list("scratch"));
    wait::until_empty("as open uploads", || stage.bucket.uploads());
    case.remove_output(stage, id);
}

/// Attempts of a job that a worker has begun.
fn begun(stage: &Stage<'_>, job: &str, worker: usize) -> Vec<Begin> {
    let name = format!("worker-{worker}");
    let begins = journal::begins_in(&stage.logs());
    begins.into_iter().filter(|begin| begin.job == job && begin.worker == name).collect()
}

/// Tasks of a job's phase of which workers began more than one attempt.
fn tried_again(stage: &Stage<'_>, job: &str, phase: Phase) -> usize {
    let mut attempts: BTreeMap<TaskId, BTreeSet<AttemptId>> = BTreeMap::new();
    for begin in journal::begins_in(&stage.logs()) {
        if begin.job == job && begin.attempt.task.phase == phase {
            attempts.entry(begin.attempt.task).or_default().insert(begin.attempt);
        }
    }
    attempts.values().filter(|attempts| attempts.len() > 1).count()
}

/// Ten workers, of which exactly three die while they sample. They come back before the next seed.
fn three_of_ten_die_while_sampling(seeds: std::ops::Range<u64>) {
    let sandbox = Sandbox::new();
    let mut stage = Stage::start(&sandbox, Setup::new(Crew { coordinators: 1, workers: 10 }));
    let watch = Watch::start(&stage.nats.url());
    // 20 sort tasks at least, so that there is a sample task for each worker.
    let cases = Case::all(&sandbox, &stage);
    let bucket_cases: Vec<&Case> =
        cases.iter().filter(|case| ["random", "by-host"].contains(&case.name)).collect();
    for seed in seeds {
        let mut dice = Dice::new(seed);
        let case = bucket_cases[dice.below(bucket_cases.len() as u64) as usize];
        let mut victims: Vec<usize> = Vec::new();
        while victims.len() < 3 {
            let victim = dice.below(10) as usize;
            if !victims.contains(&victim) {
                victims.push(victim);
            }
        }
        let id = format!("sampling-{seed}");
        (0..10).for_each(|worker| stage.weather(Member::Worker(worker), Service::Store, STALL));
        let mut killed = false;
        let status = to_end(&mut stage, &watch, case, &id, |stage, status| {
            let all_sample = || victims.iter().all(|victim| !begun(stage, &id, *victim).is_empty());
            if killed || status["state"] != "sampling" || !all_sample() {
                return;
            }
            victims.iter().for_each(|victim| stage.kill_for_good(Member::Worker(*victim)));
            (0..10).for_each(|worker| {
                stage.weather(Member::Worker(worker), Service::Store, Weather::Calm);
            });
            killed = true;
        });
        assert!(killed, "seed {seed}: {status}");
        let tried = tried_again(&stage, &id, Phase::Sample);
        assert!(
            tried >= 3,
            "each of the three had a sample task, of which only {tried} ran again: {status}"
        );
        assert_same_bytes(&stage, case, &id, &status);
        victims.iter().for_each(|victim| stage.start_anew(Member::Worker(*victim)));
    }
}

#[test]
fn three_of_ten_workers_die_while_sampling() {
    three_of_ten_die_while_sampling(0..2);
}

#[test]
fn long_three_of_ten_workers_die_while_sampling() {
    three_of_ten_die_while_sampling(0..20);
}

/// Five workers, of whose store and NATS calls 15 in 100 fail while they sort, shuffle and merge:
/// some do not happen, of some the answer is lost, some are throttled or time out. The
/// coordinators' calls fail as often, to the journal too.
#[expect(clippy::print_stdout, reason = "the figures are wanted, also where all is well")]
fn calls_fail(seeds: std::ops::Range<u64>) {
    let mut injected: BTreeMap<String, u64> = BTreeMap::new();
    for seed in seeds {
        let store = |phase: &str| {
            format!(
                "store:error,p=0.05{phase};store:lost-ack,p=0.05{phase};\
                 store:throttle,p=0.03{phase};store:timeout,p=0.02,ms=300{phase}"
            )
        };
        let bus = "bus:error,p=0.05;bus:drop,p=0.05;bus:lost-ack,p=0.05";
        let ledger = "ledger.append:error,p=0.05;ledger.append:lost-ack,p=0.05;\
                      ledger.append:timeout,p=0.05,ms=300";
        let workers =
            format!("seed={seed};{};{};{bus}", store(",phase=sort"), store(",phase=merge"));
        let coordinators = format!("seed={seed};{};{bus};{ledger}", store(""));
        let sandbox = Sandbox::new();
        let setup = Setup {
            faults: Some((workers, coordinators)),
            ..Setup::new(Crew { coordinators: 1, workers: 5 })
        };
        let mut stage = Stage::start(&sandbox, setup);
        let watch = Watch::start(&stage.nats.url());
        let cases = Case::all(&sandbox, &stage);
        let case = &cases[seed as usize % cases.len()];
        let id = format!("calls-{seed}");
        let status = to_end(&mut stage, &watch, case, &id, |_, _| {});
        assert_same_bytes(&stage, case, &id, &status);
        let told = status["recoveries"].as_array().cloned().unwrap_or_default();
        let retried = told
            .iter()
            .find(|kind| kind["kind"] == "retried-store")
            .and_then(|kind| kind["recovered"].as_u64());
        assert!(
            retried.is_some_and(|times| times > 0),
            "seed {seed}: what workers retried is told: {status}"
        );
        let here = stage.injected();
        assert!(
            here.values().sum::<u64>() >= 20,
            "seed {seed}: too few faults to show anything: {here:?}"
        );
        here.into_iter().for_each(|(label, count)| *injected.entry(label).or_default() += count);
    }
    let (store, other) = injected.iter().fold((0, 0), |(store, other), (label, count)| {
        if label.starts_with("store") { (store + count, other) } else { (store, other + count) }
    });
    println!("{} faults, none of which failed its job: {injected:?}", store + other);
    assert!(store > 0 && other > 0, "store and NATS calls failed: {injected:?}");
}

#[test]
fn calls_fail_in_shuffle_and_merge() {
    calls_fail(0..2);
}

#[test]
fn long_calls_fail_in_shuffle_and_merge() {
    calls_fail(0..20);
}

/// Each of three workers once flips a bit of a record that it has read and summed up, before
/// anything of the run has a checksum: no checksum of the run would ever tell.
#[test]
fn memory_damages_records_before_their_checksum() {
    let sandbox = Sandbox::new();
    let workers = "seed=1;memory.hold:flip,times=1".to_owned();
    let coordinators = "seed=1;store.head:delay,p=0.01,ms=1".to_owned();
    let setup = Setup {
        faults: Some((workers, coordinators)),
        ..Setup::new(Crew { coordinators: 1, workers: 3 })
    };
    let mut stage = Stage::start(&sandbox, setup);
    let watch = Watch::start(&stage.nats.url());
    for case in &Case::all(&sandbox, &stage) {
        let id = format!("memory-{}", case.name);
        let status = to_end(&mut stage, &watch, case, &id, |_, _| {});
        assert_same_bytes(&stage, case, &id, &status);
    }
    let flips = stage.injected().get("memory.hold:flip").copied().unwrap_or_default();
    let tried = tried_again(&stage, "memory-random", Phase::Sort);
    assert!(
        flips >= 2 && tried >= 1,
        "{flips} records were damaged, {tried} sort tasks of the first job tried again"
    );
}

/// A worker is killed in the midst of a task, with the settings that users have; how long it takes
/// until that task runs elsewhere.
#[test]
#[expect(clippy::print_stdout, reason = "the figure is wanted, also where it is within the bound")]
fn a_killed_workers_task_runs_elsewhere_within_eight_seconds() {
    let sandbox = Sandbox::new();
    let setup = Setup { profile: "production", ..Setup::new(Crew { coordinators: 1, workers: 3 }) };
    let mut stage = Stage::start(&sandbox, setup);
    let watch = Watch::start(&stage.nats.url());
    let cases = Case::all(&sandbox, &stage);
    let case = cases.iter().find(|case| case.name == "random").expect("it is there");
    for (round, phase) in ["sorting", "merging"].into_iter().enumerate() {
        let (id, victim) = (format!("recover-{round}"), round);
        let (mut lost, mut killed_at): (Option<Begin>, Option<SystemTime>) = (None, None);
        let status = to_end(&mut stage, &watch, case, &id, |stage, status| {
            if killed_at.is_some() || status["state"] != phase {
                return;
            }
            match &lost {
                // Its way to the store is closed: the task that it has now it keeps.
                None => {
                    stage.weather(Member::Worker(victim), Service::Store, STALL);
                    lost = begun(stage, &id, victim).pop();
                }
                Some(last) => {
                    let newest = begun(stage, &id, victim).pop().expect("it had one before");
                    let held = newest.attempt == last.attempt && is_under_way(stage, &id, &newest);
                    lost = Some(newest);
                    if held {
                        stage.kill_for_good(Member::Worker(victim));
                        killed_at = Some(now());
                        // What it had sent arrives now, and not when nobody looks for it any more.
                        stage.weather(Member::Worker(victim), Service::Store, Weather::Calm);
                    }
                }
            }
        });
        assert_same_bytes(&stage, case, &id, &status);
        let (lost, killed_at) = (lost.expect("it had a task"), killed_at.expect("it was killed"));
        let begins = journal::begins_in(&stage.logs());
        let again = begins.iter().find(|begin| {
            begin.job == id
                && begin.attempt.task == lost.attempt.task
                && begin.attempt != lost.attempt
                && begin.at > killed_at
        });
        let again = again.unwrap_or_else(|| panic!("{lost:?} ran nowhere else"));
        let took = again.at.duration_since(killed_at).expect("it was later");
        println!(
            "{phase}: {} ran elsewhere {} ms after its worker was killed",
            lost.attempt.task,
            took.as_millis()
        );
        assert!(
            took <= Duration::from_secs(8),
            "{phase}: {} ran elsewhere only after {took:?}",
            lost.attempt.task
        );
        stage.start_anew(Member::Worker(victim));
    }
}

/// Whether the journal has no result of the attempt's task yet.
fn is_under_way(stage: &Stage<'_>, job: &str, begin: &Begin) -> bool {
    !Journal::read(&stage.nats.url()).work(job).commits.contains_key(&begin.attempt.task)
}

#[expect(
    clippy::disallowed_methods,
    reason = "compared with the times in the logs of real processes"
)]
fn now() -> SystemTime {
    SystemTime::now()
}

/// A worker whose own disk is too small for its spills, beside one with room. In `sort` a split
/// does not fit into memory; in `merge` there are more runs than the memory has windows for.
fn a_temporary_disk_is_full(phase: &str, seeds: std::ops::Range<u64>) {
    for seed in seeds {
        let mut dice = Dice::new(seed);
        let sandbox = Sandbox::new();
        let size = format!("{}k", 64 + dice.below(512));
        let setup = Setup {
            worker_memory: "64MiB",
            small_disk: Some((0, size)),
            ..Setup::new(Crew { coordinators: 1, workers: 2 })
        };
        let mut stage = Stage::start(&sandbox, setup);
        let watch = Watch::start(&stage.nats.url());
        // A split larger than a chunk, or more runs than one merge takes at once, so that the
        // worker's own disk is needed.
        let (count, split, partition) = if phase == "sort" {
            (600_000, 60_000_000, 6_000_000)
        } else {
            (600_000, 200_000, 60_000_000)
        };
        let data = records(count, Keys::Random, seed);
        let case = Case::new(&sandbox, &data, split, partition);
        let id = format!("disk-{seed}");
        // The one with room comes when the other has found its disk full: else it might do all the
        // work.
        let full = |stage: &Stage<'_>| {
            let said = fs::read_to_string(stage.logs().join("worker-0.err")).expect("it logs");
            said.to_lowercase().contains("disk full")
        };
        stage.kill_for_good(Member::Worker(1));
        let mut relieved = false;
        let status = to_end(&mut stage, &watch, &case, &id, |stage, _| {
            if !relieved && full(stage) {
                stage.start_anew(Member::Worker(1));
                relieved = true;
            }
        });
        assert!(relieved, "seed {seed}: the disk of worker-0 was not full in {phase}: {status}");
        assert_eq!(status["state"], "succeeded", "seed {seed}: {status}");
        case.output(&stage, &id).assert_is(&case.sorted);
        wait::until_empty("in scratch", || files_below(&sandbox.path("scratch")));
    }
}

#[test]
fn a_temporary_disk_is_full_in_sort() {
    a_temporary_disk_is_full("sort", 0..1);
}

#[test]
fn a_temporary_disk_is_full_in_merge() {
    a_temporary_disk_is_full("merge", 0..1);
}

#[test]
fn long_temporary_disks_are_full() {
    a_temporary_disk_is_full("sort", 1..20);
    a_temporary_disk_is_full("merge", 1..20);
}

/// The disk of OUTPUT is full: in the sort where scratch lies there too, in the merge where it lies
/// elsewhere. The job fails, says why, and leaves nothing.
fn the_output_disk_is_full(seeds: std::ops::Range<u64>) {
    for seed in seeds {
        let mut dice = Dice::new(seed);
        let sandbox = Sandbox::new();
        let data = records(50_000 + dice.below(50_000) as usize, Keys::Random, seed);
        let (input, config) = (sandbox.file("in", &data), sandbox.small_tasks(300_000, 300_000));
        let (full, scratch) = (sandbox.path("full"), sandbox.path("scratch"));
        fs::create_dir_all(&full).expect("a folder can be made");
        for bucket in [None, Some(&scratch)] {
            // Not so little that the job is not begun.
            let kib = data.len() as u64 / 1024 * (92 + dice.below(6)) / 100;
            let script = r#"mount -t tmpfs -o "size=$1k" tmpfs "$2" || exit 99
                full=$2; left=$3; shift 3
                "$@"; code=$?; find "$full" -type f >"$left"; exit $code"#;
            let mut command: Command = sandbox.clean_command("unshare");
            if !rustix::process::geteuid().is_root() {
                command.arg("--map-root-user");
            }
            command
                .args(["--mount", "sh", "-c", script, "sh", &kib.to_string()])
                .arg(&full)
                .arg(sandbox.path("left"));
            command.arg(sandbox.muster().get_program()).args([
                "sort",
                arg(&input),
                "-o",
                "full/out",
                "--local=2",
            ]);
            command.args(["--format", "fixed:100", "-k", "0:10", "--config", arg(&config)]);
            if let Some(scratch) = bucket {
                command.arg("--bucket").arg(scratch);
            }
            let done = sandbox.run_command(command, wait::RUN_BOUND).expect_code(1);
            let said = done.stderr.to_lowercase();
            assert!(
                said.contains("space") || said.contains("full"),
                "seed {seed}: {}",
                done.stderr
            );
            assert_eq!(
                fs::read_to_string(sandbox.path("left")).expect("it is listed"),
                "",
                "seed {seed}"
            );
            assert_eq!(files_below(&scratch), Vec::<String>::new(), "seed {seed}");
            sandbox.assert_no_temporaries();
        }
        // Where there is room, the same job succeeds.
        let (_, output) = sandbox.sort_here(
            &sandbox.path("roomy"),
            [arg(&input), "--format", "fixed:100", "-k", "0:10", "--config", arg(&config)],
        );
        Output::assert_is(&output, &oracle::fixed(&data, 100, 0, 10));
    }
}

#[test]
fn an_output_disk_is_full() {
    the_output_disk_is_full(0..1);
}

#[test]
fn long_output_disks_are_full() {
    the_output_disk_is_full(1..20);
}
