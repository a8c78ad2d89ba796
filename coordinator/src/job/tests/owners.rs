//! Inputs that one worker alone can read: who gets their tasks, and what becomes of a job whose
//! owner is away.

use muster_platform::config::Config;
use muster_protocol::api::JobState;
use muster_protocol::ids::{AttemptId, Phase};
use muster_protocol::plan::{JobSpec, PinnedObject};
use muster_protocol::wire::{DamageCause, Outcome, WorkerState};
use muster_protocol::{Error, ErrorKind};

use super::cases::{error_of, reply_to, said};
use super::world::{RECORD_BYTES, World, config, job, listing, spec, worker};
use crate::job::io::{Input, Listing};

/// Files of so many records, each of a worker, or of nobody where the name is empty.
fn files(of: &[(&str, u64)]) -> Listing {
    let object = |(n, (owner, records)): (usize, &(&str, u64))| PinnedObject {
        url: if owner.is_empty() {
            format!("file:///in/{n}")
        } else {
            format!("worker://{owner}/data/{n}")
        },
        bytes: records * RECORD_BYTES,
        version: "v".to_owned(),
    };
    Listing { objects: of.iter().enumerate().map(object).collect(), ..listing(&[]) }
}

fn local(id: &str) -> JobSpec {
    JobSpec { inputs: vec!["workers:/".to_owned()], ..spec(id) }
}

/// A leader that has led for long enough to know its workers.
fn settled(config: Config) -> World {
    let mut world = World::new(config);
    world.pass(4);
    world
}

/// Two workers that offer `/data`, and one that does not. `w1` has splits 0 and 1, `w2` splits 2
/// to 4.
fn pool() -> World {
    let mut world = settled(config());
    world.join_with("w1", 1, &["/data"]);
    world.join_with("w2", 2, &["/data"]);
    world.join("w3", 4);
    world.listing = files(&[("w1", 150), ("w2", 100), ("w2", 150)]);
    world
}

fn sorted_by(world: &World) -> Vec<String> {
    let runs = &world.machine.durable().jobs[&job("j1")].runs;
    runs.values().map(|run| run.worker.to_string()).collect()
}

fn sorts(attempts: &[AttemptId]) -> Vec<u32> {
    attempts
        .iter()
        .filter(|attempt| attempt.task.phase == Phase::Sort)
        .map(|attempt| attempt.task.index)
        .collect()
}

/// A job that is in the midst of sorting: every owner holds what it was given.
fn sorting() -> World {
    let mut world = pool();
    for id in ["w1", "w2", "w3"] {
        world.hold(id, &[Phase::Sort]);
    }
    world.submit(local("j1"));
    world
}

fn waits(world: &mut World) -> String {
    world.status("j1").expect("status").waiting_for.unwrap_or_default()
}

#[test]
fn tasks_go_to_the_owner_and_merges_to_anybody() {
    let mut world = sorting();
    assert_eq!(world.asked_for_files, [worker("w1"), worker("w2")]);
    assert!(
        said(&world, "input-offered: files that workers offer: 1 of w1, 2 of w2"),
        "{:#?}",
        world.log
    );
    assert_eq!((sorts(&world.held("w1")), sorts(&world.held("w2"))), (vec![0], vec![2, 3]));
    assert!(world.held("w3").is_empty(), "it can read nothing of it");
    for id in ["w1", "w2", "w3"] {
        world.hold(id, &[Phase::Merge]);
    }
    world.finish("w1");
    world.finish("w2");
    let plan = world.plans.values().next().expect("plan").clone();
    let owners: Vec<&str> =
        (0..plan.splits.len() as u32).filter_map(|split| plan.owner(split)).collect();
    assert_eq!(sorted_by(&world), owners);
    assert_eq!(owners, ["w1", "w1", "w2", "w2", "w2"]);
    assert_eq!(world.settle_after_finishing("j1"), JobState::Succeeded);
    let merged = |attempt: &&(_, AttemptId)| attempt.1.task.phase == Phase::Merge;
    assert!(world.granted.iter().filter(merged).count() == 3);
}

#[test]
fn one_split_never_holds_what_two_workers_own() {
    let mut world = settled(config());
    for id in ["w1", "w2"] {
        world.join_with(id, 4, &["/data"]);
    }
    // Small files, which would fit into one split.
    world.listing = files(&[("w1", 1), ("w1", 2), ("w2", 1), ("", 3), ("", 1), ("w1", 1)]);
    world.submit(local("j1"));
    assert_eq!(world.settle("j1"), JobState::Succeeded);
    let plan = world.plans.values().next().expect("plan");
    let objects: Vec<Vec<u32>> =
        plan.splits.iter().map(|split| split.iter().map(|piece| piece.object).collect()).collect();
    assert_eq!(objects, [vec![0, 1], vec![2], vec![3, 4], vec![5]]);
}

#[test]
fn a_dead_owner_is_waited_for_by_name_and_goes_on_when_it_is_back() {
    let mut world = sorting();
    world.kill("w2");
    world.pass(9);
    assert!(
        said(
            &world,
            "warning waiting-for-worker: the job waits for worker w2, which alone can read 2 of \
                its inputs"
        ),
        "{:#?}",
        world.log
    );
    let text = waits(&mut world);
    assert!(text.contains("worker w2, which alone can read 2 of its inputs (it is dead"), "{text}");
    world.hold("w1", &[]);
    world.finish("w1");
    world.pass(120);
    assert_eq!(sorted_by(&world), ["w1", "w1"]);
    assert!(sorts(&world.held("w3")).is_empty() && sorts(&world.held("w1")).is_empty());
    world.join_with("w2", 2, &["/data"]);
    world.pass(1);
    assert!(!waits(&mut world).contains("worker w2"));
    assert_eq!(world.settle("j1"), JobState::Succeeded);
}

#[test]
fn an_owner_that_stays_away_fails_the_job_by_name() {
    let mut world = sorting();
    world.kill("w2");
    world.pass(300);
    assert!(!said(&world, "job-failing"));
    world.pass(20);
    assert_eq!(world.settle("j1"), JobState::Failed);
    let error = error_of(&mut world);
    for part in [
        "worker w2 was waited for",
        "it is dead",
        "worker://w2/data/1 and 1 more",
        "300000 ms (phases.register_ms)",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn the_bound_is_the_jobs_own_and_does_not_count_what_the_leader_missed() {
    let mut world = pool();
    world.hold("w2", &[Phase::Sort]);
    world.submit(JobSpec {
        settings: Some("[phases]\nregister_ms = 20000\n".to_owned()),
        ..local("j1")
    });
    world.kill("w2");
    world.pass(10);
    assert!(said(&world, "waiting-for-worker"), "{:#?}", world.log);
    world.now_ms += 3_600_000;
    world.tick(0);
    world.pass(5);
    assert!(!said(&world, "job-failing"), "{:#?}", world.log);
    world.pass(30);
    assert_eq!(world.settle("j1"), JobState::Failed);
}

#[test]
fn after_its_runs_an_owner_is_not_needed() {
    let mut world = pool();
    for id in ["w1", "w2", "w3"] {
        world.hold(id, &[Phase::Merge]);
    }
    world.submit(local("j1"));
    world.kill("w1");
    world.kill("w2");
    world.pass(20);
    assert!(
        !said(&world, "waiting-for-worker") && waits(&mut world).is_empty(),
        "{:#?}",
        world.log
    );
    world.hold("w3", &[]);
    world.finish("w3");
    assert_eq!(world.settle("j1"), JobState::Succeeded);
}

#[test]
fn a_lost_run_goes_back_to_its_owner() {
    let mut world = pool();
    for id in ["w1", "w2", "w3"] {
        world.hold(id, &[Phase::Merge]);
    }
    world.submit(local("j1"));
    world.kill("w2");
    let lost = world.machine.durable().jobs[&job("j1")].runs[&3].attempt;
    let merge = world.held("w3")[0];
    let error = Error::corrupt("block 3 has another checksum");
    world.report(
        &worker("w3"),
        &job("j1"),
        merge,
        Outcome::RunDamaged { split: 3, run: lost, cause: DamageCause::Store, error },
    );
    world.pass(20);
    let text = waits(&mut world);
    assert!(text.contains("worker w2, which alone can read 2 of its inputs"), "{text}");
    assert!(!sorts(&world.held("w3")).contains(&3) && !sorts(&world.held("w1")).contains(&3));
    world.join_with("w2", 2, &["/data"]);
    assert_eq!(world.settle_after_finishing("j1"), JobState::Succeeded);
    assert_eq!(world.status("j1").expect("status").repeated_tasks, 1);
    // The same without a return.
    let mut world = pool();
    for id in ["w1", "w2", "w3"] {
        world.hold(id, &[Phase::Merge]);
    }
    world.submit(local("j1"));
    world.kill("w2");
    world.lose_run("j1", 3);
    world.hold("w3", &[]);
    world.finish("w3");
    world.pass(330);
    assert_eq!(world.settle_after_finishing("j1"), JobState::Failed);
    let error = error_of(&mut world);
    assert!(
        error.contains("worker w2") && error.contains("worker://w2/data/1 and 1 more"),
        "{error}"
    );
}

#[test]
fn a_drained_owner_finishes_what_it_has_and_the_rest_waits_for_it() {
    let mut world = sorting();
    let to = world.ask();
    world.feed(Input::Drain { to, worker: worker("w2") });
    world.pass(2);
    assert_eq!(sorts(&world.held("w2")), [2, 3], "what it has it keeps");
    let text = waits(&mut world);
    assert!(text.contains("worker w2") && text.contains("it is draining"), "{text}");
    world.hold("w2", &[]);
    world.finish("w2");
    world.beat(&worker("w2"), WorkerState::Leaving);
    world.pump();
    world.kill("w2");
    world.pass(2);
    assert_eq!(sorted_by(&world), ["w2", "w2"]);
    assert!(waits(&mut world).contains("which alone can read 1 of its inputs (it was drained)"));
    world.join_with("w2", 2, &["/data"]);
    assert_eq!(world.settle_after_finishing("j1"), JobState::Succeeded);
    assert_eq!(world.status("j1").expect("status").retries, 0);
}

#[test]
fn other_jobs_go_on_and_have_second_attempts_meanwhile() {
    let mut world = sorting();
    world.kill("w2");
    world.pass(10);
    world.hold("w3", &[]);
    world.listing = listing(&[150, 150]);
    world.submit(spec("j2"));
    assert_eq!(world.settle("j2"), JobState::Succeeded);
    assert!(!world.machine.free_tasks_wait(), "the tasks of w2 keep nobody from a second attempt");
    assert_eq!(world.status("j1").expect("status").state, JobState::Sorting);
}

#[test]
fn a_slow_owner_gets_no_rival() {
    let mut config = config();
    config.speculation.samples_min = 1;
    config.speculation.slots_percent = 100;
    let mut world = settled(config);
    world.join_with("w1", 1, &["/data"]);
    world.join_with("w2", 1, &["/data"]);
    world.join("w3", 4);
    world.hold("w2", &[Phase::Sort]);
    world.listing = files(&[("w1", 1000), ("w2", 100)]);
    world.submit(local("j1"));
    world.pass(110);
    assert!(!said(&world, "speculation-began"), "{:#?}", world.log);
    assert_eq!(world.settle_after_finishing("j1"), JobState::Succeeded);
    assert_eq!(world.status("j1").expect("status").speculations, 0);
}

#[test]
fn a_new_leader_waits_for_the_owner_too_and_grants_nobody_else() {
    let mut world = sorting();
    world.kill("w2");
    world.forget_held("w2");
    world.crash();
    world.pump();
    world.pass(20);
    let text = waits(&mut world);
    assert!(
        text.contains("worker w2, which alone can read 2 of its inputs (it has not registered)"),
        "{text}"
    );
    world.join_with("w2", 2, &["/data"]);
    assert_eq!(world.settle_after_finishing("j1"), JobState::Succeeded);
    assert!(sorted_by_is_gone(&world));
}

fn sorted_by_is_gone(world: &World) -> bool {
    world.machine.durable().jobs[&job("j1")].cleaned
}

/// What a worker holds that it cannot have: it names an attempt of another one's task after a
/// take-over, before the new leader has read the plan.
#[test]
fn an_attempt_at_the_wrong_worker_is_taken_back_when_the_plan_is_there() {
    let mut world = sorting();
    let stolen = world.held_run("w2");
    world.worker_mut("w3").held.insert(stolen.attempt, stolen.clone());
    world.kill("w2");
    world.forget_held("w2");
    world.store_fails.entry("read").or_default().push_back(Error::retry("busy"));
    world.crash();
    world.pump();
    world.pass(20);
    assert!(sorts(&world.held("w3")).is_empty(), "{:#?}", world.log);
    world.join_with("w2", 2, &["/data"]);
    assert_eq!(world.settle_after_finishing("j1"), JobState::Succeeded);
}

#[test]
fn an_owner_that_offers_nothing_any_more_is_waited_for_and_named() {
    let mut world = sorting();
    world.kill("w2");
    world.pass(9);
    world.join("w2", 2);
    world.pass(2);
    let text = waits(&mut world);
    assert!(text.contains("it does not offer them any more (--input-dir)"), "{text}");
    assert!(sorts(&world.held("w2")).is_empty());
    world.pass(310);
    assert_eq!(world.settle_after_finishing("j1"), JobState::Failed);
    assert!(error_of(&mut world).contains("does not offer them any more"));
}

/// It is there, with other folders: its own check says so, and that is final.
#[test]
fn a_file_that_is_not_offered_any_more_fails_the_job() {
    let mut world = sorting();
    let attempt = world.held("w2")[0];
    let error =
        Error::invalid("/data/1 is not below the folders that this worker offers (--input-dir)");
    world.report(&worker("w2"), &job("j1"), attempt, Outcome::InputUnreadable { object: 1, error });
    world.pump();
    assert_eq!(world.settle_after_finishing("j1"), JobState::Failed);
    let error = error_of(&mut world);
    assert!(
        error.contains("worker w2")
            && error.contains("worker://w2/data/1")
            && error.contains("--input-dir"),
        "{error}"
    );
}

#[test]
fn a_request_is_refused_where_an_offer_would_be_missing() {
    let mut world = World::new(config());
    world.join("w1", 1);
    let refused = |world: &mut World| {
        let to = world.submit(local("j1"));
        world.refusal(to).expect("refused")
    };
    let (code, text) = refused(&mut world);
    assert!(code == 503 && text.contains("may still be registering"), "{code} {text}");
    world.pass(4);
    let (code, text) = refused(&mut world);
    assert!(code == 400 && text.contains("--input-dir"), "{code} {text}");
    world.join_with("w2", 1, &["/data"]);
    world.join_with("w3", 1, &["/data"]);
    world.kill("w3");
    world.pass(4);
    let (code, text) = refused(&mut world);
    assert!(
        code == 503 && text.contains("worker w3") && text.contains("was not heard"),
        "{code} {text}"
    );
    world.pass(5);
    let (code, text) = refused(&mut world);
    assert!(
        code == 400 && text.contains("worker w3") && text.contains("muster drain"),
        "{code} {text}"
    );
    let to = world.ask();
    world.feed(Input::Drain { to, worker: worker("w3") });
    world.listing = files(&[("w2", 150)]);
    world.submit(local("j1"));
    assert_eq!(world.asked_for_files, [worker("w2")], "one that was taken out is passed over");
    assert_eq!(world.settle("j1"), JobState::Succeeded);
    let to = world.ask();
    world.feed(Input::Drain { to, worker: worker("w2") });
    let to = world.submit(local("j2"));
    let (code, text) = world.refusal(to).expect("refused");
    assert!(
        code == 400 && text.contains("worker w2") && text.contains("is draining"),
        "{code} {text}"
    );
    let to = world.submit(JobSpec { inputs: vec!["workers:/../x".to_owned()], ..local("j3") });
    assert!(world.refusal(to).is_some_and(|(code, _)| code == 400));
}

#[test]
fn folders_that_cannot_be_are_refused_at_registration() {
    let check = |folders: &[&str], accepted: bool| {
        let mut world = World::new(config());
        world.join_with("w1", 1, folders);
        assert_eq!(world.workers[&worker("w1")].registered.is_some(), accepted, "{folders:?}");
    };
    check(&["/data", "/more/data", "/database"], true);
    for folders in [
        &["data"][..],
        &["/"],
        &["/data/"],
        &["/data/../etc"],
        &["/a//b"],
        &["/data", "/data/sub"],
        &["/a", "/a"],
    ] {
        check(folders, false);
    }
    let many: Vec<String> = (0..65).map(|n| format!("/in/{n}")).collect();
    check(&many.iter().map(String::as_str).collect::<Vec<_>>(), false);
}

#[test]
fn a_late_report_of_an_owner_that_was_given_up_is_refused() {
    let mut world = sorting();
    let run = world.held_run("w2");
    let outcome = world.result(&run);
    world.kill("w2");
    world.pass(9);
    world.worker_mut("w2").dead = false;
    let late = world.report(&worker("w2"), &job("j1"), run.attempt, outcome);
    world.pump();
    assert_eq!(reply_to(&world, late), "revoked");
    assert_eq!(world.settle_after_finishing("j1"), JobState::Succeeded);
}

#[test]
fn unreadable_files_of_workers_can_be_left_out() {
    let mut world = pool();
    world.broken.insert(1, Error::new(ErrorKind::NotFound, "no such file"));
    world.submit(JobSpec { bad_inputs: muster_protocol::plan::BadInputs::Skip, ..local("j1") });
    assert_eq!(world.settle("j1"), JobState::Succeeded);
    assert!(said(&world, "object-skipped"), "{:#?}", world.log);
}
