//! Which fault strikes whom, when and for how long: drawn from a seed, and nothing else. Carrying
//! it out is the [`stage`](super::stage)'s part.
//!
//! The weights of the classes are drawn first, and some classes are left out of some seeds, so that
//! rare combinations get room.

use crate::harness::Weather;
use crate::harness::data::Dice;

/// A process of the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Member {
    /// A coordinator, whichever of them leads.
    Coordinator(usize),
    /// A worker.
    Worker(usize),
}

/// What a process is cut off from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// The NATS server.
    Nats,
    /// The object store.
    Store,
}

/// Something that goes wrong, until it is healed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// `kill -9`; healed by starting it again.
    Kill(Member),
    /// SIGSTOP; healed by SIGCONT.
    Pause(Member),
    /// `kill -9` to the NATS server; healed by starting it on its store.
    NatsCrash,
    /// SIGSTOP to the NATS server.
    NatsPause,
    /// SIGSTOP to the object store.
    StorePause,
    /// The way of one process to one service has weather.
    Weather(Member, Service, Weather),
    /// The way of all processes to the store has weather.
    StoreOutage(Weather),
    /// All connections of one process to one service end at once.
    Cut(Member, Service),
}

/// One fault in its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Milliseconds since the step before.
    pub after_ms: u64,
    /// What.
    pub fault: Fault,
    /// Milliseconds until it is healed; 0 for one that needs no healing.
    pub lasts_ms: u64,
}

/// How many there are to strike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crew {
    /// Coordinators.
    pub coordinators: usize,
    /// Workers.
    pub workers: usize,
}

/// Faults without end.
#[derive(Debug, Clone)]
pub struct Schedule {
    dice: Dice,
    crew: Crew,
    weights: [u64; CLASSES],
    pause_ms: u64,
}

const CLASSES: usize = 10;
/// How often each class comes beside the others, before the seed has its say.
const USUAL: [u64; CLASSES] = [8, 8, 4, 3, 2, 2, 2, 10, 3, 4];
/// A worker of the `testing` profile is dead after 2 s of silence: a long pause outlasts that, a
/// short one does not.
const WORKER_PAUSE_MS: [(u64, u64); 2] = [(300, 1_500), (2_600, 5_000)];
/// A long pause of a coordinator outlasts the take-over by another.
const COORDINATOR_PAUSE_MS: [(u64, u64); 2] = [(300, 1_200), (5_000, 9_000)];

impl Schedule {
    /// The faults of a seed, on average so many milliseconds apart.
    pub fn new(seed: u64, crew: Crew, pause_ms: u64) -> Self {
        let mut dice = Dice::new(seed);
        let weights =
            USUAL.map(|usual| if dice.below(5) == 0 { 0 } else { usual * (1 + dice.below(4)) });
        // A seed in which nothing can happen shows nothing.
        let weights = if weights.iter().sum::<u64>() == 0 { USUAL } else { weights };
        Self { dice, crew, weights, pause_ms }
    }

    fn class(&mut self) -> usize {
        let mut left = self.dice.below(self.weights.iter().sum());
        for (class, weight) in self.weights.iter().enumerate() {
            if left < *weight {
                return class;
            }
            left -= weight;
        }
        unreachable!("the draw lies below the sum of all weights")
    }

    fn between(&mut self, (from, to): (u64, u64)) -> u64 {
        from + self.dice.below(to - from)
    }

    fn worker(&mut self) -> Member {
        Member::Worker(self.dice.below(self.crew.workers as u64) as usize)
    }

    fn coordinator(&mut self) -> Member {
        Member::Coordinator(self.dice.below(self.crew.coordinators as u64) as usize)
    }

    fn anybody(&mut self) -> Member {
        if self.dice.below(4) == 0 { self.coordinator() } else { self.worker() }
    }

    /// One long pause in three.
    fn pause_of(&mut self, short_and_long: [(u64, u64); 2]) -> u64 {
        let long = usize::from(self.dice.below(3) == 0);
        self.between(short_and_long[long])
    }

    fn store_weather(&mut self) -> Weather {
        match self.dice.below(4) {
            0 => Weather::Refuse,
            1 => Weather::Stall { up: self.dice.below(2) == 0, down: true },
            2 => Weather::Snip { after_bytes: self.between((1, 60_000)) as usize },
            _ => Weather::Busy,
        }
    }

    fn nats_weather(&mut self) -> Weather {
        match self.dice.below(4) {
            0 => Weather::Refuse,
            1 => Weather::Stall { up: true, down: true },
            2 => Weather::Stall { up: true, down: false },
            _ => Weather::Stall { up: false, down: true },
        }
    }
}

impl Iterator for Schedule {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        let after_ms = self.between((self.pause_ms / 4, self.pause_ms * 7 / 4));
        let (fault, lasts_ms) = match self.class() {
            0 => (Fault::Kill(self.worker()), self.between((200, 2_500))),
            1 => (Fault::Pause(self.worker()), self.pause_of(WORKER_PAUSE_MS)),
            2 => (Fault::Kill(self.coordinator()), self.between((200, 2_000))),
            3 => (Fault::Pause(self.coordinator()), self.pause_of(COORDINATOR_PAUSE_MS)),
            4 => (Fault::NatsCrash, self.between((50, 800))),
            5 => (Fault::NatsPause, self.between((300, 2_500))),
            6 => (Fault::StorePause, self.between((300, 2_500))),
            7 => {
                let service = if self.dice.below(2) == 0 { Service::Nats } else { Service::Store };
                let weather = if service == Service::Nats {
                    self.nats_weather()
                } else {
                    self.store_weather()
                };
                (Fault::Weather(self.anybody(), service, weather), self.between((300, 3_500)))
            }
            8 => (Fault::StoreOutage(self.store_weather()), self.between((300, 2_500))),
            _ => {
                let service = if self.dice.below(2) == 0 { Service::Nats } else { Service::Store };
                (Fault::Cut(self.anybody(), service), 0)
            }
        };
        Some(Step { after_ms, fault, lasts_ms })
    }
}

impl Fault {
    /// Under what it is counted; a pause or partition by whether it lasts so long that others must
    /// take it for an end.
    pub fn kind(&self, lasts_ms: u64) -> &'static str {
        match self {
            Fault::Kill(Member::Worker(_)) => "worker killed",
            Fault::Kill(Member::Coordinator(_)) => "coordinator killed",
            Fault::Pause(Member::Worker(_)) if lasts_ms < WORKER_PAUSE_MS[1].0 => "worker paused",
            Fault::Pause(Member::Worker(_)) => "worker paused beyond its death",
            Fault::Pause(Member::Coordinator(_)) if lasts_ms < COORDINATOR_PAUSE_MS[1].0 => {
                "coordinator paused"
            }
            Fault::Pause(Member::Coordinator(_)) => "coordinator paused beyond a take-over",
            Fault::NatsCrash => "NATS server killed",
            Fault::NatsPause => "NATS server paused",
            Fault::StorePause => "store paused",
            Fault::Weather(_, Service::Nats, Weather::Stall { up: true, down: true }) => {
                "process cut off from NATS"
            }
            Fault::Weather(_, Service::Nats, Weather::Stall { .. }) => {
                "process cut off from NATS one way"
            }
            Fault::Weather(_, Service::Nats, _) => "process refused by NATS",
            Fault::Weather(_, Service::Store, Weather::Stall { .. }) => {
                "process cut off from the store"
            }
            Fault::Weather(_, Service::Store, Weather::Snip { .. }) => "process's bodies cut",
            Fault::Weather(_, Service::Store, Weather::Busy) => "process throttled by the store",
            Fault::Weather(_, Service::Store, _) => "process refused by the store",
            Fault::StoreOutage(Weather::Stall { .. }) => "store hangs for all",
            Fault::StoreOutage(Weather::Snip { .. }) => "bodies cut for all",
            Fault::StoreOutage(Weather::Busy) => "store throttles all",
            Fault::StoreOutage(_) => "store refuses all",
            Fault::Cut(_, Service::Nats) => "connections to NATS ended",
            Fault::Cut(_, Service::Store) => "connections to the store ended",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const CREW: Crew = Crew { coordinators: 2, workers: 4 };

    fn steps(seed: u64, count: usize) -> Vec<Step> {
        Schedule::new(seed, CREW, 400).take(count).collect()
    }

    #[test]
    fn a_seed_gives_the_same_faults_and_another_seed_others() {
        assert_eq!(steps(1, 200), steps(1, 200));
        assert_ne!(steps(1, 200), steps(2, 200));
    }

    #[test]
    fn every_kind_and_every_member_comes_up_within_bounds() {
        let (mut kinds, mut members) = (BTreeSet::new(), BTreeSet::new());
        for step in (0..40).flat_map(|seed| steps(seed, 200)) {
            kinds.insert(step.fault.kind(step.lasts_ms));
            if let Fault::Kill(member)
            | Fault::Pause(member)
            | Fault::Weather(member, ..)
            | Fault::Cut(member, _) = step.fault
            {
                members.insert(member);
            }
            assert!((100..700).contains(&step.after_ms) && step.lasts_ms < 9_000, "{step:?}");
        }
        assert_eq!(kinds.len(), 22, "{kinds:?}");
        let (coordinators, workers) = ((0..2).map(Member::Coordinator), (0..4).map(Member::Worker));
        assert_eq!(members, coordinators.chain(workers).collect());
    }
}
