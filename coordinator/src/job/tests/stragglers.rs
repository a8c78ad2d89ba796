//! Second attempts: when they begin, who wins, and what becomes of the loser.

use muster_protocol::api::JobState;
use muster_protocol::ids::{AttemptId, Phase};

use super::cases::{reply_to, said};
use super::world::{World, config, job, spec, worker};

/// Three workers of which the first holds in a phase; the others do the rest.
fn slow(phase: Phase) -> World {
    let mut world = World::new(config());
    for id in ["w1", "w2", "w3"] {
        world.join(id, 1);
    }
    world.hold("w1", &[phase]);
    world.submit(spec("j1"));
    world
}

/// Until the attempt that w1 holds has a second one, on a worker that holds it, too.
fn speculate(world: &mut World, phase: Phase) -> (AttemptId, AttemptId, String) {
    world.pass(2);
    world.hold("w2", &[phase]);
    world.hold("w3", &[phase]);
    world.pass(20);
    assert!(said(world, "speculation-began"), "{:#?}", world.log);
    let first = world.held_run("w1").attempt;
    let other =
        ["w2", "w3"].into_iter().find(|id| !world.held(id).is_empty()).expect("a second attempt");
    (first, world.held_run(other).attempt, other.to_owned())
}

#[test]
fn the_second_attempt_wins_and_the_first_is_abandoned() {
    for phase in [Phase::Sort, Phase::Merge] {
        let mut world = slow(phase);
        if phase == Phase::Merge {
            world.open_uploads("w1");
        }
        let (first, second, other) = speculate(&mut world, phase);
        assert_eq!((first.task, first == second), (second.task, false));
        let run = world.held_run("w1");
        world.hold(&other, &[]);
        world.finish(&other);
        assert!(world.held("w1").is_empty(), "{phase}: the loser is told to let go");
        let outcome = world.result(&run);
        let late = world.report(&worker("w1"), &job("j1"), first, outcome);
        world.pump();
        assert_eq!(reply_to(&world, late), "revoked", "{phase}");
        assert_eq!(world.settle_after_finishing("j1"), JobState::Succeeded);
        let status = world.status("j1").expect("status");
        assert_eq!((status.retries, status.repeated_tasks), (0, 0), "{phase}: nothing failed");
        assert!(world.uploads.is_empty(), "{phase}: {:?}", world.uploads);
    }
}

#[test]
fn the_first_attempt_wins_if_it_is_done_first() {
    for phase in [Phase::Sort, Phase::Merge] {
        let mut world = slow(phase);
        let (first, second, other) = speculate(&mut world, phase);
        world.open_uploads(&other);
        assert_eq!(world.status("j1").expect("status").speculations, 1);
        world.hold("w1", &[]);
        world.finish("w1");
        assert!(world.held(&other).is_empty(), "{phase}: {second} goes on beside {first}");
        assert_eq!(world.settle_after_finishing("j1"), JobState::Succeeded);
        assert!(world.uploads.is_empty(), "{phase}: {:?}", world.uploads);
    }
}

#[test]
fn while_one_result_is_on_its_way_the_other_waits() {
    let mut world = slow(Phase::Sort);
    let (first, second, other) = speculate(&mut world, Phase::Sort);
    let (run, rival) = (world.held_run("w1"), world.held_run(&other));
    world.journal_holds = true;
    let outcome = world.result(&run);
    let won = world.report(&worker("w1"), &job("j1"), first, outcome);
    world.pump();
    let outcome = world.result(&rival);
    let lost = world.report(&worker(&other), &job("j1"), second, outcome);
    world.pump();
    assert_eq!((reply_to(&world, won), reply_to(&world, lost)), ("nothing", "revoked"));
    world.journal_holds = false;
    world.acknowledge_held();
    assert_eq!(reply_to(&world, won), "recorded");
    assert_eq!(world.settle_after_finishing("j1"), JobState::Succeeded);
}

#[test]
fn a_worker_that_dies_leaves_the_other_attempt() {
    for (phase, dies_first) in
        [(Phase::Sort, true), (Phase::Merge, true), (Phase::Sort, false), (Phase::Merge, false)]
    {
        let mut world = slow(phase);
        let (_, _, other) = speculate(&mut world, phase);
        world.open_uploads("w1");
        world.open_uploads(&other);
        world.kill(if dies_first { "w1" } else { &other });
        world.pass(9);
        let status = world.status("j1").expect("status");
        assert!(
            status.retries == 1 && (1..=2).contains(&status.attempts_running),
            "{phase}: {status:?}"
        );
        assert_eq!(world.settle_after_finishing("j1"), JobState::Succeeded);
        assert!(world.uploads.is_empty(), "{phase}: {:?}", world.uploads);
    }
}

#[test]
fn both_attempts_go_on_under_the_next_leader() {
    for phase in [Phase::Sort, Phase::Merge] {
        for uploads in [0, 1, 2] {
            let mut world = slow(phase);
            let (_, _, other) = speculate(&mut world, phase);
            if uploads > 0 {
                world.open_uploads("w1");
            }
            if uploads > 1 {
                world.open_uploads(&other);
            }
            world.crash();
            world.pump();
            assert_eq!(
                world.status("j1").expect("status").attempts_running,
                2,
                "{phase}, {uploads} uploads"
            );
            assert_eq!(world.settle_after_finishing("j1"), JobState::Succeeded);
            assert!(world.uploads.is_empty(), "{phase}: {:?}", world.uploads);
        }
    }
}

#[test]
fn the_coordinator_may_crash_at_any_effect_of_a_race() {
    for phase in [Phase::Sort, Phase::Merge] {
        for at in 0..40 {
            let mut world = slow(phase);
            let (_, _, other) = speculate(&mut world, phase);
            world.open_uploads("w1");
            world.open_uploads(&other);
            world.crash_at = Some(world.effects + at);
            world.hold("w1", &[]);
            world.hold(&other, &[]);
            world.finish("w1");
            world.finish(&other);
            assert_eq!(
                world.settle_after_finishing("j1"),
                JobState::Succeeded,
                "{phase}, effect {at}"
            );
            assert!(world.uploads.is_empty() && world.completed.len() == 3, "{phase}, effect {at}");
            assert_eq!(world.machine.counters().illegal, 0, "{phase}, effect {at}");
        }
    }
}

#[test]
fn second_attempts_keep_to_their_share_and_can_be_turned_off() {
    let mut config = config();
    config.speculation.slots_percent = 0;
    let mut world = World::new(config);
    world.join("w1", 1);
    world.join("w2", 2);
    world.hold("w1", &[Phase::Sort]);
    world.submit(spec("j1"));
    world.pass(60);
    assert!(!said(&world, "speculation-began"));
    assert_eq!(world.settle_after_finishing("j1"), JobState::Succeeded);
}

#[test]
fn a_job_is_cancelled_while_two_attempts_run() {
    let mut world = slow(Phase::Merge);
    let (_, _, other) = speculate(&mut world, Phase::Merge);
    world.open_uploads("w1");
    world.open_uploads(&other);
    world.cancel("j1");
    assert_eq!(world.settle("j1"), JobState::Cancelled);
    assert!(
        world.uploads.is_empty() && world.held("w1").is_empty() && world.held(&other).is_empty()
    );
}

/// A worker that is slow beside the others is given less.
#[test]
fn a_slow_worker_is_degraded_and_gets_less() {
    let mut world = World::new(config());
    world.join("slow", 4);
    for id in ["w2", "w3", "w4"] {
        world.join(id, 1);
    }
    world.hold("slow", &[Phase::Sort]);
    for id in ["w2", "w3", "w4"] {
        world.hold(id, &[Phase::Sort]);
    }
    world.listing = super::world::listing(&[4000]);
    world.submit(spec("j1"));
    for _ in 0..30 {
        world.pass(1);
        for id in ["w2", "w3", "w4"] {
            world.finish(id);
        }
        if world.now_ms.is_multiple_of(8000) {
            world.finish("slow");
        }
    }
    assert!(
        world.held("slow").len() < 4,
        "a slow worker uses all of its slots\n{}",
        world.log.join("\n")
    );
    world.hold("slow", &[]);
    assert_eq!(world.settle_after_finishing("j1"), JobState::Succeeded);
}
