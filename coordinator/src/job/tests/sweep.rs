//! The crash-point sweep: one small job; the coordinator is killed before each effect in turn, another takes over, and the job ends as if nothing had happened.

use muster_common::api::JobState;

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
