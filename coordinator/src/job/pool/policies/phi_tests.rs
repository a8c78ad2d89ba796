use muster_platform::config::{Config, Profile};
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const TICK_MS: u64 = 250;

fn settings(profile: Profile) -> (Settings, u64) {
    let config = Config::profile(profile).expect("profile");
    (config.detector, config.heartbeat.interval_ms)
}

fn production() -> Settings {
    settings(Profile::Production).0
}

/// A small generator, so that many traces cost nothing.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound.max(1)
    }

    fn one_in(&mut self, chances: u64) -> bool {
        self.below(chances) == 0
    }
}

/// How heartbeats come in: the pause before the next one, for a nominal interval.
type Trace = fn(&mut Random, u64) -> u64;

const STEADY: Trace = |random, interval| interval + random.below(interval / 50);
const JITTERY: Trace = |random, interval| interval / 2 + random.below(interval);
/// Now and then three intervals late, after which the queued ones come at once.
const BURSTY: Trace = |random, interval| match random.one_in(20) {
    true => interval + random.below(3 * interval + 1),
    false if random.one_in(20) => random.below(interval / 10),
    false => interval + random.below(interval / 10),
};
/// A busy CPU: each one late by up to an interval, one in eight by up to three.
const BUSY: Trace = |random, interval| match random.one_in(8) {
    true => interval + random.below(3 * interval + 1),
    false => interval + random.below(interval),
};
const TRACES: [(&str, Trace); 4] =
    [("steady", STEADY), ("jittery", JITTERY), ("bursty", BURSTY), ("busy", BUSY)];

/// Plays a trace of so many heartbeats with a check each tick. Returns the detector, the time of
/// the last heartbeat, and whether it was ever taken for dead.
fn play(
    settings: &Settings,
    interval: u64,
    trace: Trace,
    seed: u64,
    beats: u32,
) -> (Detector, u64, bool) {
    let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5);
    let mut now = random.below(10_000);
    let mut detector = Detector::new(now, interval);
    let mut died = false;
    for _ in 0..beats {
        let next = now + trace(&mut random, interval);
        for tick in (now..next).step_by(usize::try_from(TICK_MS.min(interval)).unwrap()).skip(1) {
            detector.check(settings, tick);
            died |= detector.state() == Liveness::Dead;
        }
        detector.check(settings, next);
        died |= detector.state() == Liveness::Dead;
        detector.heartbeat(settings, next);
        now = next;
    }
    (detector, now, died)
}

/// Milliseconds from the last sign of life until it is dead, looked at each tick.
fn time_to_detect(settings: &Settings, detector: &mut Detector, from: u64) -> u64 {
    (from..)
        .step_by(50)
        .find(|now| {
            detector.check(settings, *now);
            detector.state() == Liveness::Dead
        })
        .expect("dead at last")
        - from
}

#[test]
fn nobody_who_is_merely_late_by_three_intervals_is_taken_for_dead() {
    for profile in [Profile::Production, Profile::Development, Profile::Testing] {
        let (settings, interval) = settings(profile);
        for (name, trace) in TRACES {
            for seed in 0..200 {
                let (_, _, died) = play(&settings, interval, trace, seed, 300);
                assert!(!died, "{profile:?} {name} seed {seed}");
            }
        }
    }
}

#[test]
fn phi_alone_learns_what_is_usual() {
    // Without the floor, history decides: a busy worker that is often late is not taken for dead
    // for it, a steady one is.
    let settings = &Settings { floor_ms: 1, ceiling_ms: 60_000, ..production() };
    let outcomes = |trace: Trace| {
        (0..50).map(move |seed| {
            let (detector, now, _) = play(settings, 200, trace, seed, 300);
            detector.phi(settings, now + 200 * 4 + settings.acceptable_pause_ms)
                >= f64::from(settings.dead_phi)
        })
    };
    assert!(outcomes(STEADY).all(|dead| dead));
    assert!(!outcomes(BUSY).any(|dead| dead));
}

#[test]
fn a_crash_is_noticed_within_eight_seconds_and_not_before_the_floor() {
    let settings = production();
    for (name, trace) in TRACES {
        for seed in 0..200 {
            let (mut detector, crashed, _) = play(&settings, 1000, trace, seed, 300);
            let took = time_to_detect(&settings, &mut detector, crashed);
            assert!(
                (settings.floor_ms..=settings.ceiling_ms + 50).contains(&took),
                "{name} seed {seed}: {took} ms"
            );
            assert!(took + TICK_MS < 8000, "{name} seed {seed}: {took} ms");
        }
    }
    // One that was regular is found at the floor; one that was not gets until the ceiling at most.
    let (mut detector, crashed, _) = play(&settings, 1000, STEADY, 1, 300);
    assert_eq!(time_to_detect(&settings, &mut detector, crashed), settings.floor_ms);
}

#[test]
fn one_that_never_sends_a_heartbeat_is_noticed_too() {
    let settings = production();
    let mut detector = Detector::new(500, 1000);
    let took = time_to_detect(&settings, &mut detector, 500);
    assert!((settings.floor_ms..=settings.ceiling_ms).contains(&took), "{took}");
}

#[test]
fn suspicion_comes_before_death_and_passes_with_any_message() {
    let settings = production();
    let (mut detector, now, _) = play(&settings, 1000, STEADY, 7, 50);
    assert_eq!(detector.check(&settings, now + 2900), None);
    let change = detector.check(&settings, now + 4000).expect("suspect");
    assert_eq!(
        (change.from, change.to, change.silence_ms),
        (Liveness::Healthy, Liveness::Suspect, 4000)
    );
    assert!(change.phi >= 3.0);
    let change = detector.message(&settings, now + 4500).expect("healthy");
    assert_eq!((change.from, change.to), (Liveness::Suspect, Liveness::Healthy));
}

#[test]
fn the_dead_come_back_on_probation() {
    let settings = production();
    let (mut detector, now, _) = play(&settings, 1000, STEADY, 7, 50);
    let change = detector.declare_dead(&settings, now + 10).expect("dead");
    assert_eq!((change.to, change.silence_ms), (Liveness::Dead, 10));
    assert_eq!(detector.check(&settings, now + 20), None, "only a message revives");
    let back = now + 60_000;
    let mean = detector.intervals.mean_and_deviation();
    assert_eq!(
        detector.heartbeat(&settings, back).map(|change| change.to),
        Some(Liveness::Rejoined)
    );
    assert_eq!(detector.intervals.mean_and_deviation(), mean, "the time of death is not fed");
    assert_eq!(detector.heartbeat(&settings, back + 1000), None);
    assert_eq!(detector.heartbeat(&settings, back + 2000), None);
    assert_eq!(
        detector.heartbeat(&settings, back + 3000).map(|change| change.to),
        Some(Liveness::Healthy)
    );
    // Without a probation it is seen as rejoined all the same, until the next heartbeat.
    let without = Settings { rejoin_beats: 0, ..settings };
    detector.declare_dead(&without, back + 3001);
    assert_eq!(
        detector.message(&without, back + 3002).map(|change| change.to),
        Some(Liveness::Rejoined)
    );
    assert_eq!(
        detector.heartbeat(&without, back + 4000).map(|change| change.to),
        Some(Liveness::Healthy)
    );
}

#[test]
fn other_messages_are_life_but_do_not_feed_the_window() {
    let settings = production();
    let (mut detector, now, _) = play(&settings, 1000, STEADY, 3, 300);
    let before = detector.intervals.mean_and_deviation();
    for later in (now..now + 60_000).step_by(10) {
        assert_eq!(detector.message(&settings, later), None);
    }
    assert_eq!(detector.intervals.mean_and_deviation(), before);
    assert_eq!(
        detector.check(&settings, now + 61_000),
        None,
        "heartbeats are missing, but it lives"
    );
}

#[test]
fn the_coordinators_own_absence_counts_for_nobody() {
    let settings = production();
    for (name, trace) in TRACES {
        let (mut detector, now, _) = play(&settings, 1000, trace, 5, 100);
        let before = detector.intervals.mean_and_deviation();
        // Paused for a minute. What queued up comes at once, after the first check or before.
        detector.check(&settings, now + 500);
        detector.forgive(now + 60_500, 60_000);
        assert_eq!(detector.silence_ms(now + 60_500), 500);
        assert_eq!(detector.check(&settings, now + 60_500), None, "{name}");
        for queued in 0..60 {
            assert_eq!(detector.heartbeat(&settings, now + 60_500 + queued), None, "{name}");
        }
        assert_eq!(detector.heartbeat(&settings, now + 61_400), None);
        assert_eq!(detector.intervals.mean_and_deviation(), before, "{name}: nothing of it is fed");
        // It feeds again, and a crash is noticed as ever.
        detector.heartbeat(&settings, now + 62_400);
        detector.heartbeat(&settings, now + 63_400);
        assert_ne!(detector.intervals.sum, 0);
        let took = time_to_detect(&settings, &mut detector, now + 63_400);
        assert!(took <= settings.ceiling_ms, "{name}: {took}");
    }
}

#[test]
fn forgiving_more_than_there_was_gives_no_credit() {
    let settings = production();
    let mut detector = Detector::new(1000, 1000);
    detector.forgive(2000, 3_600_000);
    assert_eq!(detector.deadline_ms(&settings), 2000 + settings.ceiling_ms);
    let took = time_to_detect(&settings, &mut detector, 2000);
    assert!(took <= settings.ceiling_ms);
}

#[test]
fn large_pools_with_long_intervals_get_bounds_to_match() {
    let settings = production();
    for seed in 0..50 {
        let (mut detector, now, died) = play(&settings, 10_000, BUSY, seed, 100);
        assert!(!died, "seed {seed}");
        let took = time_to_detect(&settings, &mut detector, now);
        assert!((50_000..=70_000).contains(&took), "{took}");
    }
    let mut detector = Detector::new(0, 1000);
    detector.set_interval(0, 10_000);
    assert_eq!(detector.check(&settings, 20_000), None);
    assert_eq!(detector.deadline_ms(&settings), 70_000);
}

#[test]
fn phi_is_near_the_normal_distribution_where_it_decides() {
    // -log10 of the upper tail, from a table.
    for (deviations, expected) in
        [(0.0, 0.301), (1.0, 0.7995), (2.0, 1.643), (3.0, 2.870), (4.0, 4.499), (5.0, 6.543)]
    {
        let got = phi(deviations);
        assert!((got - expected).abs() <= 0.12 * expected, "{deviations}: {got} for {expected}");
    }
    assert!(phi(1e6).is_finite() && phi(-1e6).abs() < 1e-9);
    assert!(phi(60.0) > phi(59.0), "no plateau far out in the tail");
}

#[test]
fn ten_thousand_workers_are_cheap() {
    let settings = production();
    let mut pool: Vec<Detector> = (0..10_000).map(|n| Detector::new(n % 1000, 1000)).collect();
    for second in 1..=250 {
        for (n, detector) in (0..).zip(&mut pool) {
            detector.heartbeat(&settings, second * 1000 + n % 1000);
        }
    }
    let bytes =
        |detector: &Detector| size_of::<Detector>() + detector.intervals.ring.capacity() * 4;
    assert!(pool.iter().map(bytes).sum::<usize>() < 16_000_000);
    assert!(pool.iter().all(|detector| detector.intervals.ring.len() == 200));
    assert!(pool.iter_mut().all(|detector| detector.check(&settings, 251_500).is_none()));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the history and the settings: phi is finite, not negative and never falls with
    /// silence; floor and ceiling hold.
    #[test]
    fn bounds_hold_for_any_history(
        steps in vec((0u64..200_000, 0u8..4), 0..400),
        interval in 0u64..20_000,
        window in 2u32..300,
        silences in (0u64..100_000, 0u64..100_000),
    ) {
        let settings = Settings { window, ..production() };
        let mut detector = Detector::new(0, interval);
        let mut now = 0;
        for (step, kind) in steps {
            let before = detector.state();
            now += if step % 3 == 0 { step } else { step % 2000 };
            let change = match kind {
                0 | 1 => detector.heartbeat(&settings, now),
                2 => detector.message(&settings, now),
                _ => {
                    detector.forgive(now, step % 700);
                    detector.check(&settings, now)
                }
            };
            let after = detector.state();
            prop_assert_eq!(
                change.map(|change| (change.from, change.to)),
                (before != after).then_some((before, after))
            );
            prop_assert!(change.is_none_or(|change| change.phi.is_finite()));
        }
        detector.message(&settings, now);
        let (short, long) = (silences.0.min(silences.1), silences.0.max(silences.1));
        let phi = |silence: u64| detector.phi(&settings, now + silence);
        let (less, more) = (phi(short), phi(long));
        prop_assert!(less.is_finite() && more.is_finite() && 0.0 <= less && less <= more);
        prop_assert!(detector.phi(&settings, u64::MAX).is_finite());
        let dead_at = |silence: u64| {
            let mut detector = detector.clone();
            detector.check(&settings, now + silence);
            detector.state() == Liveness::Dead
        };
        prop_assert!(!dead_at(settings.floor_ms.max(5 * interval) - 1));
        prop_assert!(dead_at(settings.ceiling_ms.max(7 * interval)));
    }

    /// The running sums are those of the last intervals, exactly.
    #[test]
    fn running_sums_are_exact(fed in vec(0u64..10_000_000, 0..500), window in 2u32..200) {
        let mut intervals = Intervals::expect(1000);
        let mut all: Vec<u64> = vec![750, 1250];
        for interval in fed {
            intervals.push(interval, window);
            all.push(interval.min(CEILING_MS_MAX));
        }
        let last = &all[all.len().saturating_sub(window as usize)..];
        prop_assert_eq!(intervals.sum, last.iter().sum::<u64>());
        prop_assert_eq!(intervals.squares, last.iter().map(|i| i * i).sum::<u64>());
        let (mean, deviation) = intervals.mean_and_deviation();
        let naive_mean = last.iter().sum::<u64>() as f64 / last.len() as f64;
        let naive_squares = last.iter().map(|i| (*i as f64 - naive_mean).powi(2)).sum::<f64>();
        let naive = naive_squares / last.len() as f64;
        prop_assert!((mean - naive_mean).abs() < 1e-6 * (1.0 + mean));
        prop_assert!((deviation - naive.sqrt()).abs() < 1e-6 * (1.0 + deviation));
    }
}
