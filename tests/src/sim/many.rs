//! Many seeds: a run over a range of them, what it reached, and the first that broke something.

use super::faults::{MARKS, Reach};

/// What came of many seeds.
#[derive(Debug, Default)]
pub struct Many {
    /// Seeds that were run.
    pub seeds: u64,
    /// Events that were handled.
    pub events: u64,
    /// Simulated time, in seconds.
    pub simulated_s: u64,
    /// Marks.
    pub reach: Reach,
    /// Seeds that broke something, and what.
    pub broken: Vec<(u64, String)>,
}

impl Many {
    /// Runs one more seed; `false` where it broke something.
    pub fn run(&mut self, seed: u64) -> bool {
        let report = super::run(&super::seed(seed, false));
        self.seeds += 1;
        self.events += report.events;
        self.simulated_s += report.time_us / 1_000_000;
        for (mark, count) in report.reach {
            *self.reach.entry(mark).or_default() += count;
        }
        let sound = report.violation.is_none();
        self.broken.extend(report.violation.map(|violation| (seed, violation)));
        sound
    }

    /// Marks that no seed reached.
    pub fn missed(&self) -> Vec<&'static str> {
        MARKS.iter().copied().filter(|mark| !self.reach.contains_key(mark)).collect()
    }
}

/// Runs seeds with a bug planted until one shows it; gives how many that took and what was seen.
#[cfg(feature = "planted-bugs")]
pub fn find(bug: muster_common::planted::Bug, seeds_max: u64) -> Option<(u64, String)> {
    muster_common::planted::plant(Some(bug));
    let mut many = Many::default();
    let found = (0..seeds_max).find(|seed| !many.run(*seed));
    muster_common::planted::plant(None);
    found.and_then(|seed| many.broken.pop().map(|(_, violation)| (seed + 1, violation)))
}
