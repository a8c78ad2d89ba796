//! The simulation's own tests: the same seed gives the same run, a crash at any effect costs nothing, kept scripts stay as they are, and fresh seeds break nothing.

use muster_common::clock::{Clock, SystemClock};
use muster_tests::sim;
use muster_tests::sim::many::Many;

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in 0..40 {
        let [first, second] = [(); 2].map(|()| sim::run(&sim::seed(seed, false)));
        assert_eq!((first.hash, first.events), (second.hash, second.events), "seed {seed}");
    }
    let [one, other] = [1, 2].map(|seed| sim::run(&sim::seed(seed, false)).hash);
    assert_ne!(one, other);
}

#[test]
fn a_crash_at_any_effect_costs_nothing() {
    let swept = sim::sweep::sweep(1);
    assert!(swept.runs > 200, "{} runs", swept.runs);
    assert!(swept.broken.is_empty(), "{:#?}", swept.broken);
}

/// Fresh seeds for `MUSTER_SIM_SECONDS` (20 by default; CI gives two minutes), from where the clock says.
#[test]
fn fresh_seeds_break_nothing() {
    let seconds = std::env::var("MUSTER_SIM_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(20);
    let clock = SystemClock::default();
    let from = clock.unix_ms() / 1000 * 1000;
    let mut many = Many::default();
    while clock.now_ms() < seconds * 1000 && many.broken.is_empty() {
        many.run(from + many.seeds);
    }
    assert!(many.broken.is_empty(), "replay with `sim replay SEED`: {:?}", many.broken);
    assert!(many.seeds > 0);
}

#[test]
fn many_seeds_reach_every_mark() {
    let mut many = Many::default();
    for seed in 0..3000 {
        many.run(seed);
    }
    assert!(many.broken.is_empty(), "{:?}", many.broken);
    assert!(many.missed().is_empty(), "not reached: {:?}", many.missed());
}

#[cfg(feature = "planted-bugs")]
#[test]
fn long_every_planted_bug_is_found() {
    for (name, bug) in muster_common::planted::BUGS {
        assert!(sim::many::find(bug, 1000).is_some(), "{name}: not found within 1,000 seeds");
    }
}
