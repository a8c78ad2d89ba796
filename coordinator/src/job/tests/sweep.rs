//! The crash-point sweep: one small job; the coordinator is killed before each effect in turn,
//! another takes over, and the job ends as if nothing had happened.

use muster_protocol::api::JobState;
use muster_protocol::ids::Phase;
use muster_protocol::plan::BadInputs;
use muster_protocol::{Error, ErrorKind};

use super::world::{World, config, job, listing, spec};

fn check_end(world: &mut World, what: &str) {
    assert_eq!(world.settle("j1"), JobState::Succeeded, "{what}");
    assert!(world.published.contains(&job("j1")), "{what}");
    assert_eq!(world.completed.len(), 3, "{what}: {:?}", world.completed);
    assert!(world.uploads.is_empty(), "{what}: uploads are left: {:?}", world.uploads);
    let left: Vec<&String> = world.objects.keys().filter(|url| !url.contains("/plan.")).collect();
    assert!(left.is_empty(), "{what}: scratch is left: {left:?}");
}

fn begin(slots: u32) -> World {
    let mut world = World::new(config());
    world.join("w1", slots);
    world.join("w2", slots);
    world
}

#[test]
fn a_crash_before_any_effect_costs_nothing() {
    let mut world = begin(1);
    world.submit(spec("j1"));
    check_end(&mut world, "without a crash");
    let effects = world.effects;
    assert!(effects > 60, "{effects}");
    for at in 0..effects {
        let mut world = World::new(config());
        world.crash_at = Some(at);
        world.join("w1", 1);
        world.join("w2", 1);
        world.submit(spec("j1"));
        check_end(&mut world, &format!("crash before effect {at}"));
    }
}

#[test]
fn two_crashes_cost_nothing() {
    for first in (20..100).step_by(7) {
        for second in (first + 1..first + 60).step_by(5) {
            let mut world = begin(2);
            world.crash_at = Some(first);
            world.submit(spec("j1"));
            world.crash_at = Some(second.max(world.effects));
            check_end(&mut world, &format!("crashes before effects {first} and {second}"));
        }
    }
}

#[test]
fn a_crash_while_snapshots_are_written_costs_nothing() {
    let mut config = config();
    config.journal.snapshot_after = 3;
    for at in 0..140 {
        let mut world = World::new(config.clone());
        world.crash_at = Some(at);
        world.join("w1", 2);
        world.submit(spec("j1"));
        check_end(&mut world, &format!("crash before effect {at}"));
    }
}

/// A job of two runs lost while it merges, up to its end; the coordinator is killed before effect
/// `crash_at`.
fn lose_runs(crash_at: Option<u64>) -> World {
    let mut world = begin(1);
    world.hold("w1", &[Phase::Merge]);
    world.hold("w2", &[Phase::Merge]);
    world.submit(spec("j1"));
    world.lose_run("j1", 0);
    world.lose_run("j1", 2);
    world.crash_at = crash_at.map(|at| world.effects + at);
    world.hold("w1", &[]);
    world.hold("w2", &[]);
    world.finish("w1");
    world.finish("w2");
    world
}

#[test]
fn a_crash_while_lost_runs_are_made_again_costs_nothing() {
    let mut world = lose_runs(None);
    let before = world.effects;
    check_end(&mut world, "without a crash");
    assert_eq!(world.status("j1").expect("status").repeated_tasks, 2);
    assert!(before > 20, "{before}");
    for at in 0..world.effects {
        let mut world = lose_runs(Some(at));
        check_end(&mut world, &format!("crash before effect {at} after the loss"));
        world.crash_at = None;
        assert_eq!(
            world.status("j1").expect("status").repeated_tasks,
            2,
            "crash before effect {at}"
        );
    }
}

fn skip_object(crash_at: Option<u64>) -> World {
    let mut world = World::new(config());
    world.crash_at = crash_at;
    world.join("w1", 1);
    world.join("w2", 1);
    world.hold("w2", &[Phase::Sort]);
    let mut spec = spec("j1");
    spec.bad_inputs = BadInputs::Skip;
    world.submit(spec);
    world.broken.insert(1, Error::new(ErrorKind::NotFound, "gone"));
    world.hold("w2", &[]);
    world.finish("w2");
    world
}

#[test]
fn a_crash_while_an_object_is_left_out_costs_nothing() {
    let mut world = skip_object(None);
    check_end(&mut world, "without a crash");
    assert!(world.status("j1").expect("status").repeated_tasks > 0, "runs held records of it");
    for at in 0..world.effects {
        let mut world = skip_object(Some(at));
        check_end(&mut world, &format!("crash before effect {at}"));
    }
}

#[test]
fn committed_tasks_are_not_repeated_without_need() {
    let mut world = begin(1);
    world.submit(spec("j1"));
    check_end(&mut world, "without a crash");
    assert_eq!(world.granted.len(), 3 + 3 + 3, "each task is granted once: {:?}", world.granted);
}

#[test]
fn empty_input_gives_one_empty_part() {
    let mut world = begin(1);
    world.listing = listing(&[0]);
    world.submit(spec("j1"));
    assert_eq!(world.settle("j1"), JobState::Succeeded);
    assert_eq!(world.completed.len(), 1);
    assert_eq!(world.granted.len(), 1, "one merge, which makes an empty part");
}
