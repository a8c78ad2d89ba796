//! The simulation's own tests: the same seed gives the same run, a crash at any effect costs
//! nothing, kept scripts stay as they are, and fresh seeds break nothing.

use muster_platform::clock::{Clock, SystemClock};
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

/// Fresh seeds for `MUSTER_SIM_SECONDS` (20 by default; `deploy/test.sh` says how long in CI), from
/// where the clock says.
#[test]
fn fresh_seeds_break_nothing() {
    let seconds =
        std::env::var("MUSTER_SIM_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(20);
    let clock = SystemClock::default();
    let from = clock.unix_ms() / 1000 * 1000;
    let mut many = Many::default();
    while clock.now_ms() < seconds * 1000 && many.broken.is_empty() {
        many.run(from + many.seeds);
    }
    assert!(many.broken.is_empty(), "{}", many.verdict());
    assert!(many.seeds > 0);
}

/// What is printed of many tests at once is cut in its midst: the seed must stand where it is seen.
#[test]
fn a_broken_seed_stands_first_and_last_in_few_words() {
    let long = "\u{e9}".repeat(10_000);
    let many =
        Many { broken: vec![(17, long), (18, "a\nb".to_owned())], seeds: 40, ..Many::default() };
    let verdict = many.verdict();
    assert!(
        verdict.starts_with("seeds [17, 18] of 40 are broken:\nseed 17: \u{e9}\u{e9}"),
        "{verdict}"
    );
    assert!(verdict.ends_with("\nseed 18: a b\nreplay with `sim replay 17`"), "{verdict}");
    assert!(verdict.chars().count() < 600 && verdict.lines().count() == 4, "{verdict}");
}

#[test]
fn many_seeds_reach_every_mark() {
    let mut many = Many::default();
    for seed in 0..3000 {
        many.run(seed);
    }
    assert!(many.broken.is_empty(), "{}", many.verdict());
    assert!(many.missed().is_empty(), "not reached: {:?}", many.missed());
}

#[test]
fn owners_of_one_output_never_meet_whatever_happens() {
    let (reach, broken) = sim::claims::many(0, 3000);
    assert_eq!(broken, None, "replay with `sim claims --replay SEED`");
    let missed: Vec<&str> =
        sim::claims::MARKS.into_iter().filter(|mark| !reach.contains_key(mark)).collect();
    assert!(missed.is_empty(), "not reached: {missed:?}");
}

#[test]
fn long_owners_of_one_output_never_meet_in_twenty_thousand_seeds() {
    assert_eq!(sim::claims::many(0, 20_000).1, None, "replay with `sim claims --replay SEED`");
}

#[test]
fn kept_scripts_hold() {
    let scripts = sim::script::kept().expect("scripts");
    assert!(scripts.len() >= 12, "{} scripts", scripts.len());
    for script in scripts {
        let (report, kept) = sim::script::play(&script, true);
        assert_eq!(kept, Ok(()), "{}: {}\n{}", script.name, script.about, report.trace);
    }
}

#[test]
fn what_a_script_does_not_mean_is_refused() {
    let sound =
        "# It shows.\njob j0\non record job-submitted: kill leader 1000\nexpect j0 succeeded\n";
    assert!(sim::script::Script::parse("sound", sound).is_ok());
    for (from, to) in [
        ("kill", "slay"),
        ("record", "recrod"),
        ("j0 succeeded", "j0"),
        ("job j0", "job j0 recrods=1"),
        ("# It shows.", ""),
    ] {
        let broken = sound.replacen(from, to, 1);
        assert!(sim::script::Script::parse("broken", &broken).is_err(), "{broken}");
    }
    let script =
        sim::script::Script::parse("other", &sound.replace("succeeded", "failed")).expect("script");
    assert_eq!(
        sim::script::play(&script, false).1,
        Err("job j0 is succeeded, not failed".to_owned())
    );
}

/// Each script that names a planted bug must find it, or it shows nothing.
#[cfg(feature = "planted-bugs")]
#[test]
fn kept_scripts_find_their_planted_bugs() {
    use muster_protocol::planted::{BUGS, plant};

    let scripts = sim::script::kept().expect("scripts");
    for (name, bug) in BUGS {
        let script = scripts.iter().find(|script| script.bug.as_deref() == Some(name));
        let script = script.unwrap_or_else(|| panic!("no script for '{name}'"));
        plant(Some(bug));
        let (report, kept) = sim::script::play(script, false);
        plant(None);
        assert!(
            kept.is_err() && report.violation.is_some(),
            "{}: '{name}' is not found: {kept:?}",
            script.name
        );
    }
}

#[cfg(feature = "planted-bugs")]
#[test]
fn long_every_planted_bug_is_found() {
    for (name, bug) in muster_protocol::planted::BUGS {
        assert!(sim::many::find(bug, 1000).is_some(), "{name}: not found within 1,000 seeds");
    }
}

#[cfg(feature = "planted-bugs")]
#[test]
fn planted_bugs_of_claims_are_found() {
    for (name, bug) in muster_protocol::planted::CLAIM_BUGS {
        assert!(sim::claims::find(bug, 1000).is_some(), "{name}: not found within 1,000 seeds");
    }
}
