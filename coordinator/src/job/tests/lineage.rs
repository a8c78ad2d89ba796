//! Single cases of lineage and of input that cannot be read.

use muster_protocol::api::JobState;
use muster_protocol::ids::{AttemptId, Generation, Phase};
use muster_protocol::plan::BadInputs;
use muster_protocol::wire::{DamageCause, Outcome};
use muster_protocol::{Error, ErrorKind};

use super::world::{World, config, job, spec, worker};
use crate::journal::fold::{Fold, compact};
use crate::journal::record::Entry;

/// A job whose merges are held: two slots of `w1`, one of `w2`.
fn merging() -> World {
    let mut world = World::new(config());
    world.join("w1", 2);
    world.join("w2", 1);
    world.hold("w1", &[Phase::Merge]);
    world.hold("w2", &[Phase::Merge]);
    world.submit(spec("j1"));
    world
}

fn run_of(world: &World, split: u32) -> AttemptId {
    world.machine.durable().jobs[&job("j1")].runs[&split].attempt
}

fn damaged(split: u32, run: AttemptId) -> Outcome {
    let error = Error::corrupt("block 3 has another checksum");
    Outcome::RunDamaged { split, run, cause: DamageCause::Store, error }
}

fn error_of(world: &mut World) -> String {
    world.status("j1").and_then(|status| status.error).unwrap_or_default()
}

fn release(world: &mut World) -> JobState {
    world.settle_after_finishing("j1")
}

#[test]
fn many_reports_of_one_loss_are_one_generation() {
    let mut world = merging();
    world.hold("w1", &[Phase::Sort, Phase::Merge]);
    let (run, held) = (run_of(&world, 1), world.held("w1"));
    world.journal_holds = true;
    for attempt in held {
        world.report(&worker("w1"), &job("j1"), attempt, damaged(1, run));
    }
    world.pump();
    world.acknowledge_held();
    let durable = &world.machine.durable().jobs[&job("j1")];
    assert_eq!(
        (durable.generation(1), durable.repeated, durable.runs.len()),
        (Generation(1), 1, 2)
    );
    assert_eq!(
        world.status("j1").expect("status").retries,
        0,
        "a merge that finds a lost run has not failed"
    );
    // The merge of w2 reads the old list, and may say the same after the repair.
    world.hold("w1", &[Phase::Merge]);
    world.finish("w1");
    let late = world.held("w2")[0];
    world.report(&worker("w2"), &job("j1"), late, damaged(1, run));
    world.pump();
    assert_eq!(release(&mut world), JobState::Succeeded);
    let status = world.status("j1").expect("status");
    assert_eq!((status.repeated_tasks, status.retries), (1, 0));
}

#[test]
fn a_run_that_is_lost_again_and_again_fails_the_job() {
    let mut world = merging();
    for _ in 0..=config().recovery.generations_max {
        world.pass(1);
        let Some(attempt) = world.held("w1").first().copied() else { break };
        let run = run_of(&world, 2);
        world.report(&worker("w1"), &job("j1"), attempt, damaged(2, run));
        world.pump();
    }
    assert_eq!(release(&mut world), JobState::Failed);
    let error = error_of(&mut world);
    for part in [
        "sort-00002",
        "recovery.generations_max 5",
        "block 3 has another checksum",
        ".run",
        "worker w",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn a_stale_report_without_excuse_counts_as_a_try() {
    let mut world = merging();
    let attempt = world.held("w1")[0];
    let mut run = run_of(&world, 1);
    run.nonce ^= 1;
    world.report(&worker("w1"), &job("j1"), attempt, damaged(1, run));
    world.pump();
    assert_eq!(world.status("j1").expect("status").retries, 1);
    assert_eq!(world.machine.durable().jobs[&job("j1")].repeated, 0);
    assert_eq!(release(&mut world), JobState::Succeeded);
}

#[test]
fn a_list_of_runs_that_is_written_while_the_job_is_cancelled_is_not_pinned() {
    let mut world = merging();
    let (attempt, run) = (world.held("w1")[0], run_of(&world, 1));
    world.report(&worker("w1"), &job("j1"), attempt, damaged(1, run));
    world.store_holds = true;
    world.pass(1);
    // The sort task is done anew; its new list of runs is being written.
    assert_eq!(world.machine.durable().jobs[&job("j1")].runs.len(), 3);
    world.journal_holds = true;
    world.cancel("j1");
    world.release_store();
    world.acknowledge_held();
    assert_eq!(world.machine.counters().illegal, 0);
    assert_eq!(release(&mut world), JobState::Cancelled);
}

#[test]
fn a_run_that_is_made_anew_must_sum_to_the_lost_one() {
    let mut world = merging();
    let (attempt, run) = (world.held("w1")[0], run_of(&world, 0));
    world.lies = |outcome| {
        if let Outcome::Sorted(run) = outcome {
            run.input.hash ^= 1;
            run.kept.hash ^= 1;
        }
    };
    world.report(&worker("w1"), &job("j1"), attempt, damaged(0, run));
    assert_eq!(release(&mut world), JobState::Failed);
    let error = error_of(&mut world);
    assert!(error.contains("sort-00000") && error.contains("the lost run read"), "{error}");
}

#[test]
fn a_snapshot_amid_a_repair_folds_to_the_same_state() {
    let mut world = merging();
    world.hold("w1", &[Phase::Sort, Phase::Merge]);
    world.hold("w2", &[Phase::Sort, Phase::Merge]);
    let check = |world: &World| {
        let durable = world.machine.durable();
        let mut fold = Fold::default();
        for (nonce, record) in (0..).zip(compact(durable)) {
            fold.push(Entry { epoch: durable.epoch, nonce, record });
        }
        let (folded, refused) = fold.finish();
        assert_eq!(refused, Vec::<String>::new());
        assert_eq!(folded, *durable);
        durable.jobs[&job("j1")].runs_stale
    };
    assert!(!check(&world));
    let (attempt, run) = (world.held("w1")[0], run_of(&world, 0));
    world.report(&worker("w1"), &job("j1"), attempt, damaged(0, run));
    world.pump();
    assert!(check(&world), "a run is missing");
    world.store_fails.entry("write").or_default().push_back(Error::retry("away"));
    world.hold("w1", &[Phase::Merge]);
    world.hold("w2", &[Phase::Merge]);
    world.finish("w1");
    assert!(check(&world), "the run stands again, and the list does not");
    world.pass(2);
    assert!(!check(&world));
    assert_eq!(release(&mut world), JobState::Succeeded);
}

#[test]
fn an_unreadable_object_fails_the_job_or_is_left_out() {
    let check = |policy: BadInputs, kind: ErrorKind| {
        let mut world = World::new(config());
        world.join("w1", 1);
        world.join("w2", 1);
        world.broken.insert(1, Error::new(kind, "no luck at all"));
        let mut spec = spec("j1");
        spec.bad_inputs = policy;
        world.submit(spec);
        let state = world.settle("j1");
        let error = error_of(&mut world);
        (state, world.status("j1").expect("status").retries, error)
    };
    let (state, retries, error) = check(BadInputs::Fail, ErrorKind::Retry);
    assert!(state == JobState::Failed && retries >= 4, "{retries}: {error}");
    assert!(error.contains("file:///in/1") && error.contains("worker w2 on host"), "{error}");
    let (state, _, error) = check(BadInputs::Fail, ErrorKind::Invalid);
    assert!(state == JobState::Failed && error.contains("file:///in/1"), "{error}");
    assert_eq!(check(BadInputs::Skip, ErrorKind::NotFound).0, JobState::Succeeded);
    let (state, retries, error) = check(BadInputs::Skip, ErrorKind::Retry);
    assert!(
        state == JobState::Succeeded && retries >= 3,
        "tried elsewhere first: {retries} {error}"
    );
}

#[test]
fn a_job_that_is_being_cancelled_gives_up_no_runs() {
    let mut world = World::new(config());
    world.join("w1", 1);
    world.join("w2", 1);
    world.hold("w2", &[Phase::Sort]);
    let mut spec = spec("j1");
    spec.bad_inputs = BadInputs::Skip;
    world.submit(spec);
    assert!(
        !world.machine.durable().jobs[&job("j1")].runs.is_empty(),
        "runs of w1 hold records of the object"
    );
    world.broken.insert(1, Error::new(ErrorKind::NotFound, "gone"));
    world.journal_holds = true;
    world.hold("w2", &[]);
    world.finish("w2");
    world.cancel("j1");
    // The omission stands before the end, and calls for nothing any more.
    world.acknowledge_held();
    assert_eq!(world.settle("j1"), JobState::Cancelled);
    assert!(
        world.log.iter().any(|line| line.contains("object-skipped")),
        "{}",
        world.log.join("\n")
    );
    assert_eq!(world.machine.durable().jobs[&job("j1")].repeated, 0);
}
