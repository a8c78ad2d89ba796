//! What a drill does to its pool, and when: drawn from a seed, tied to the progress of the job and
//! not to the clock, so that every deed falls into it.

use std::fmt;

/// Progress of a whole job.
pub(super) const WHOLE: u32 = 1000;
/// Deeds fall between these, in thousandths of the job.
const FIRST: u32 = 40;
const LAST: u32 = 900;
/// How long a stopped or cut-off process stays so, in milliseconds: from a blink to beyond being
/// declared dead.
const SHORT_MS: u64 = 400;
const LONG_MS: u64 = 5000;

/// Whom something is done to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Victim {
    /// A worker, by its number.
    Worker(u32),
    /// The coordinator that leads.
    Leader,
}

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    /// `kill -9`; it is started again some time later.
    Kill,
    /// SIGSTOP, and SIGCONT after so many milliseconds.
    Stop(u64),
    /// Its connection to NATS is cut for so many milliseconds; it still reaches the store.
    Cut(u64),
}

/// One thing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Deed {
    /// At which progress of the job, in thousandths.
    pub(super) at: u32,
    pub(super) victim: Victim,
    pub(super) what: What,
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            What::Kill => f.write_str("kill -9"),
            What::Stop(ms) => write!(f, "stop for {ms} ms"),
            What::Cut(ms) => write!(f, "cut from NATS for {ms} ms"),
        }
    }
}

/// SplitMix64.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound.max(1)
    }
}

/// So many kills, every third of the leader, and half as many stops and cuts each, in the order of
/// their time.
pub(super) fn draw(seed: u64, kills: u32, workers: u32) -> Vec<Deed> {
    let mut dice = Dice(seed);
    let half = kills.div_ceil(2);
    let all = kills + half + half;
    let mut deeds: Vec<Deed> = (0..all)
        .map(|number| {
            let at = FIRST + u32::try_from(dice.below(u64::from(LAST - FIRST))).unwrap_or(0);
            let long = SHORT_MS + dice.below(LONG_MS - SHORT_MS);
            let worker = Victim::Worker(u32::try_from(dice.below(workers.into())).unwrap_or(0));
            let victim = if number % 3 == 2 { Victim::Leader } else { worker };
            let what = match number {
                number if number < kills => What::Kill,
                number if number < kills + half => What::Stop(long),
                _ => What::Cut(long),
            };
            Deed { at, victim, what }
        })
        .collect();
    deeds.sort_by_key(|deed| (deed.at, deed.victim));
    deeds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_deeds_and_all_kinds_of_them() {
        assert_eq!(draw(7, 4, 4), draw(7, 4, 4));
        assert_ne!(draw(7, 4, 4), draw(8, 4, 4));
        for seed in 0..200 {
            let deeds = draw(seed, 5, 3);
            let count = |of: fn(&What) -> bool| deeds.iter().filter(|deed| of(&deed.what)).count();
            assert_eq!(count(|what| *what == What::Kill), 5);
            assert_eq!(count(|what| matches!(what, What::Stop(_))), 3);
            assert_eq!(count(|what| matches!(what, What::Cut(_))), 3);
            assert!(
                deeds.iter().any(|deed| deed.victim == Victim::Leader && deed.what == What::Kill)
            );
            assert!(deeds.is_sorted_by_key(|deed| deed.at));
            assert!(deeds.iter().all(|deed| (FIRST..LAST).contains(&deed.at)));
            assert!(deeds.iter().all(|deed| !matches!(deed.victim, Victim::Worker(3..))));
        }
        assert_eq!(draw(7, 0, 4), []);
    }
}
