//! Many seeds: a run over a range of them, what it reached, and the first that broke something.

use std::fmt::Write as _;

use super::faults::{MARKS, Reach};

/// Broken seeds that are told of one by one, and how much of each.
const TOLD_MAX: usize = 5;
const TOLD_CHARS_MAX: usize = 400;

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

    /// What broke, in few words: the seeds before all else, and how to see the first again at the
    /// end.
    pub fn verdict(&self) -> String {
        let seeds: Vec<u64> = self.broken.iter().map(|(seed, _)| *seed).collect();
        let mut text = format!("seeds {seeds:?} of {} are broken:\n", self.seeds);
        for (seed, violation) in self.broken.iter().take(TOLD_MAX) {
            let words: String = violation.split_whitespace().collect::<Vec<_>>().join(" ");
            let told: String = words.chars().take(TOLD_CHARS_MAX).collect();
            let _ = writeln!(text, "seed {seed}: {told}");
        }
        let _ = write!(text, "replay with `sim replay {}`", seeds.first().unwrap_or(&0));
        text
    }

    /// Marks that no seed reached.
    pub fn missed(&self) -> Vec<&'static str> {
        MARKS.iter().copied().filter(|mark| !self.reach.contains_key(mark)).collect()
    }
}

/// Runs seeds with a bug planted until one shows it; gives how many that took and what was seen.
#[cfg(feature = "planted-bugs")]
pub fn find(bug: muster_protocol::planted::Bug, seeds_max: u64) -> Option<(u64, String)> {
    muster_protocol::planted::plant(Some(bug));
    let mut many = Many::default();
    let found = (0..seeds_max).find(|seed| !many.run(*seed));
    muster_protocol::planted::plant(None);
    found.and_then(|seed| many.broken.pop().map(|(_, violation)| (seed + 1, violation)))
}
