//! Random conversations: workers come, hang, die and wake, the store fails, the coordinator is
//! killed, jobs are cancelled, in an order that a seed decides. Then everything is healed, and
//! every job must end: succeeded whole, or failed or cancelled with nothing left.

use muster_platform::config::Config;
use muster_protocol::api::JobState;
use muster_protocol::ids::Phase;
use muster_protocol::plan::BadInputs;
use muster_protocol::{Error, ErrorKind};

use super::world::{World, config, job, spec};
use crate::job::Nonces;

const WORKERS: [&str; 3] = ["w1", "w2", "w3"];
const JOBS: [&str; 3] = ["j1", "j2", "j3"];
const STORE_CALLS: [&str; 7] = ["list", "write", "read", "choose", "abort", "publish", "clean"];

struct Dice(Nonces);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        (self.0.next() % bound as u64) as usize
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
}

fn act(world: &mut World, dice: &mut Dice) {
    let (id, name) = (dice.pick(&WORKERS), dice.pick(&JOBS));
    let known = world.workers.contains_key(&super::world::worker(id));
    match dice.below(18) {
        0 | 1 => {
            let mut spec = spec(name);
            spec.bad_inputs = if name == "j2" { BadInputs::Skip } else { BadInputs::Fail };
            world.submit(spec);
        }
        14 => world.lose_run(name, dice.below(3) as u32),
        15 if dice.below(3) == 0 => {
            let error =
                Error::new(dice.pick(&[ErrorKind::Retry, ErrorKind::NotFound]), "unreadable");
            world.broken.insert(dice.below(2) as u32, error);
        }
        2 => world.join(id, 1 + dice.below(3) as u32),
        3 if known => world.kill(id),
        4 if known => world.wake(id),
        5 | 6 if known => world.hold(id, &[dice.pick(&[Phase::Sample, Phase::Sort, Phase::Merge])]),
        7 if known => world.finish(id),
        8 if known => world.open_uploads(id),
        9 => world.crash_at = Some(world.effects + dice.below(20) as u64),
        10 => {
            let kind = dice.pick(&[ErrorKind::Retry, ErrorKind::Retry, ErrorKind::Exhausted]);
            world
                .store_fails
                .entry(dice.pick(&STORE_CALLS))
                .or_default()
                .push_back(Error::new(kind, "the store fails"));
        }
        11 if known => world.worker_mut(id).fails = Some(Error::retry("no luck")),
        12 if dice.below(4) == 0 => drop(world.cancel(name)),
        13 if known => world.leave(id),
        _ => {
            let by_ms = dice.pick(&[50, 300, 1000, 2000, 7000]);
            world.tick(by_ms);
        }
    }
}

fn heal(world: &mut World) {
    world.crash_at = None;
    world.store_fails.clear();
    world.broken.clear();
    let ids: Vec<String> = world.workers.keys().map(ToString::to_string).collect();
    for id in ids {
        world.worker_mut(&id).fails = None;
        world.hold(&id, &[]);
        world.wake(&id);
    }
    world.join("w9", 2);
}

/// Attempts that stand still are slow after a second and hang after three; two losses are a wave.
fn impatient() -> Config {
    let mut config = config();
    config.speculation.runtime_min_ms = 1000;
    config.speculation.hang_ms = 3000;
    config.speculation.samples_min = 1;
    config.recovery.wave_losses_min = 2;
    config.speculation.slots_percent = 50;
    config
}

fn check(seed: u64) -> (JobState, Seen) {
    let mut world = World::new(impatient());
    world.pump();
    let mut dice = Dice(Nonces(seed));
    for _ in 0..80 {
        act(&mut world, &mut dice);
    }
    heal(&mut world);
    let mut first = None;
    for name in
        JOBS.into_iter().filter(|name| world.specs.contains_key(&job(name))).collect::<Vec<_>>()
    {
        let state = world.settle(name);
        let output = format!("file:///out-{name}/");
        let parts = world.completed.keys().filter(|url| url.starts_with(&output)).count();
        let left: Vec<_> =
            world.uploads.iter().filter(|(url, _)| url.starts_with(&output)).cloned().collect();
        match state {
            JobState::Succeeded => assert_eq!(parts, 3, "seed {seed}, {name}"),
            JobState::Cancelled => assert_eq!(parts, 0, "seed {seed}, {name}"),
            _ => assert!(
                parts == 0 || world.status(name).is_some_and(|status| status.error.is_some()),
                "seed {seed}, {name}"
            ),
        }
        assert!(left.is_empty(), "seed {seed}, {name}: {left:?}\n{}", world.log.join("\n"));
        first = first.or(Some(state));
    }
    assert_eq!(world.machine.counters().illegal, 0, "seed {seed}: illegal transitions");
    let said = |kind: &str| world.log.iter().any(|line| line.contains(kind));
    let seen = Seen {
        second: said("speculation-began"),
        hung: said("attempt-hung"),
        wave: said("wave-began"),
    };
    (first.unwrap_or(JobState::Submitted), seen)
}

/// What a conversation met with.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    second: bool,
    hung: bool,
    wave: bool,
}

#[test]
fn jobs_end_whatever_happens() {
    let (mut states, seen): (Vec<JobState>, Vec<Seen>) = (0..500).map(check).unzip();
    let count = |what: fn(&Seen) -> bool| seen.iter().filter(|seen| what(seen)).count();
    let (second, hung, wave) =
        (count(|seen| seen.second), count(|seen| seen.hung), count(|seen| seen.wave));
    assert!(
        second > 10 && hung > 20 && wave > 5,
        "second attempts {second}, hung ones {hung}, waves {wave}"
    );
    states.sort_unstable();
    states.dedup();
    assert!(
        states.contains(&JobState::Succeeded)
            && states.contains(&JobState::Failed)
            && states.contains(&JobState::Cancelled),
        "{states:?}"
    );
}
