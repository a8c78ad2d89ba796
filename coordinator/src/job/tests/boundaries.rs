//! Boundaries that are doubtful: more is sampled, then they are taken, or the job fails.

use muster_protocol::api::JobState;
use muster_protocol::ids::{Generation, Phase};

use super::cases::{error_of, said};
use super::world::{World, config, job, spec};

fn world() -> World {
    let mut world = World::new(config());
    world.join("w1", 1);
    world.join("w2", 1);
    world
}

/// The generations in which sample tasks were granted.
fn rounds(world: &World) -> Vec<u32> {
    let sampled = world.granted.iter().filter(|(_, attempt)| attempt.task.phase == Phase::Sample);
    sampled.map(|(_, attempt)| attempt.generation.0).collect()
}

#[test]
fn uneven_boundaries_are_chosen_anew_from_more_samples() {
    let mut world = world();
    world.fullest_percent = [900, 120].into();
    world.submit(spec("j1"));
    assert_eq!(world.settle("j1"), JobState::Succeeded);
    assert!(said(&world, "sampling-again"), "{}", world.log.join("\n"));
    let rounds = rounds(&world);
    let of = |round: u32| rounds.iter().filter(|seen| **seen == round).count();
    assert!(
        of(0) == of(1) && of(0) > 0 && rounds.len() == 2 * of(0),
        "each split once in each of two rounds: {rounds:?}"
    );
    assert!(
        world.objects.is_empty(),
        "what the first round chose is swept: {:?}",
        world.objects.keys()
    );
}

#[test]
fn boundaries_that_stay_uneven_fail_the_job() {
    let mut world = world();
    world.fullest_percent = [900; 9].into();
    world.submit(spec("j1"));
    assert_eq!(world.settle("j1"), JobState::Failed);
    let error = error_of(&mut world);
    assert!(error.contains("900 % of the mean") && error.contains("after 3 rounds"), "{error}");
    assert!(world.published.is_empty() && world.objects.is_empty());
}

#[test]
fn a_new_leader_samples_from_the_first_round_again() {
    let mut world = world();
    world.fullest_percent = [900, 900, 110].into();
    world.hold("w1", &[Phase::Sort]);
    world.hold("w2", &[Phase::Sort]);
    world.submit(spec("j1"));
    world.pass(3);
    let before = rounds(&world);
    assert_eq!(before.iter().max(), Some(&2), "three rounds before the sort: {before:?}");
    world.fullest_percent = [900, 110].into();
    world.hold("w1", &[Phase::Sample]);
    world.submit(spec("j2"));
    world.crash();
    world.pass(10);
    assert_eq!(world.settle_after_finishing("j1"), JobState::Succeeded);
    assert_eq!(world.settle_after_finishing("j2"), JobState::Succeeded);
    let of_second: Vec<Generation> = world
        .granted
        .iter()
        .filter(|(of, id)| *of == job("j2") && id.task.phase == Phase::Sample)
        .map(|(_, id)| id.generation)
        .collect();
    assert!(
        of_second.contains(&Generation(0)) && of_second.contains(&Generation(1)),
        "{of_second:?}"
    );
}
