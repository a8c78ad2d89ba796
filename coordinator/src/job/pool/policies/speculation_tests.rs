use muster_platform::config::{Config, Profile};
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const MB: u64 = 1_000_000;

fn settings() -> Settings {
    Config::profile(Profile::Production).expect("profile").speculation
}

fn running(elapsed_s: u64, done_mb: u64, total_mb: u64) -> Running {
    Running {
        elapsed_ms: elapsed_s * 1000,
        idle_ms: 0,
        bytes_done: done_mb * MB,
        bytes_total: total_mb * MB,
    }
}

/// Five tasks of 100 MB done in 20 s each.
fn pace() -> Pace {
    let mut rates = Rates::default();
    (0..5).for_each(|_| rates.finished(100 * MB, 20_000));
    rates.pace(&settings(), 100, []).expect("enough samples")
}

#[test]
fn rates_count_once_a_share_or_enough_samples_are_done() {
    let settings = settings();
    let mut rates = Rates::default();
    assert_eq!(rates.pace(&settings, 0, []), None, "nothing is done");
    rates.finished(100 * MB, 20_000);
    assert_eq!(rates.pace(&settings, 3, []), None, "a third");
    assert!(rates.pace(&settings, 2, []).is_some(), "half");
    (0..3).for_each(|_| rates.finished(100 * MB, 20_000));
    assert_eq!(rates.pace(&settings, 100, []), None, "four samples");
    rates.finished(100 * MB, 20_000);
    assert_eq!(
        rates.pace(&settings, 100, []),
        Some(Pace { slow: 5 * MB, median: 5 * MB, fast: 5 * MB })
    );
}

#[test]
fn quantiles_come_from_finished_and_running_attempts() {
    let mut rates = Rates::default();
    (1..=6).for_each(|n| rates.finished(n * MB, 1000));
    let slow = [running(20, 20, 100), running(10, 5, 100), running(9, 0, 100)];
    let pace = rates.pace(&settings(), 10, slow).expect("enough");
    // 0.5, 1, 1, 2, 3, 4, 5, 6: the attempt of 9 s does not count yet.
    assert_eq!(pace, Pace { slow: MB / 2, median: 2 * MB, fast: 5 * MB });
}

#[test]
fn what_is_a_straggler() {
    let straggler = |remaining_ms| Verdict::Straggler { remaining_ms, fresh_ms: 20_000 };
    let idle = |idle_s: u64, running: Running| Running { idle_ms: idle_s * 1000, ..running };
    for (what, attempt, expected) in [
        ("as fast as the others", running(10, 50, 100), Verdict::OnPace),
        ("slow but young", running(9, 1, 100), Verdict::TooEarly),
        ("a tenth of the speed", running(20, 10, 100), straggler(180_000)),
        ("a tenth of the speed, but nearly done", running(180, 90, 100), Verdict::OnPace),
        ("at the bound: 30 s remain", running(30, 50, 100), Verdict::OnPace),
        ("beyond the bound", running(31, 50, 100), straggler(31_000)),
        ("did not begin yet", idle(30, running(30, 0, 100)), Verdict::OnPace),
        ("never begins", idle(31, running(31, 0, 100)), straggler(u64::MAX)),
        ("stands still at nine tenths", idle(31, running(60, 90, 100)), straggler(u64::MAX)),
        ("read all and never ends", idle(31, running(60, 100, 100)), straggler(u64::MAX)),
        ("says more than all", running(60, 200, 100), Verdict::OnPace),
    ] {
        assert_eq!(pace().judge(&settings(), &attempt), expected, "{what}");
    }
}

#[test]
fn a_task_of_nothing_is_judged_by_standing_still() {
    let empty = Running { elapsed_ms: 10_000, idle_ms: 10_000, bytes_done: 0, bytes_total: 0 };
    assert_eq!(pace().judge(&settings(), &empty), Verdict::OnPace);
    let stuck = Running { elapsed_ms: 10_001, idle_ms: 10_001, ..empty };
    assert!(matches!(pace().judge(&settings(), &stuck), Verdict::Straggler { fresh_ms: 1, .. }));
}

#[test]
fn hanging_is_measured_by_progress_not_by_time() {
    let settings = settings();
    let long = running(100_000, 50, 100);
    assert!(!long.hangs(&settings));
    assert!(Running { idle_ms: settings.hang_ms, ..long }.hangs(&settings));
}

#[test]
fn second_attempts_hold_a_share_of_the_slots_and_one_at_least() {
    let settings = settings();
    for (slots, allowed) in
        [(0, 0), (1, 1), (9, 1), (10, 1), (19, 1), (20, 2), (1000, 100), (u32::MAX, 429_496_729)]
    {
        assert_eq!(slots_allowed(&settings, slots), allowed, "{slots}");
    }
    assert_eq!(slots_allowed(&Settings { slots_percent: 0, ..settings }, 1000), 0);
}

#[test]
fn the_slowest_come_first_within_the_share() {
    let settings = settings();
    let candidates = [
        ("fine", running(10, 50, 100)),
        ("slow", running(60, 20, 100)),
        ("slower", running(60, 10, 100)),
    ];
    assert_eq!(pace().choose(&settings, 20, 0, candidates), ["slower", "slow"]);
    assert_eq!(pace().choose(&settings, 20, 1, candidates), ["slower"]);
    assert_eq!(pace().choose(&settings, 10, 0, candidates), ["slower"]);
    assert!(pace().choose(&settings, 10, 1, candidates).is_empty());
}

#[test]
fn a_slow_worker_gets_less_and_one_bad_attempt_does_not_make_it_slow() {
    let settings = settings();
    let mut speed = Speed::default();
    assert_eq!((speed.percent(), speed.slots(&settings, 8)), (100, 8));
    (0..2).for_each(|_| speed.observe(1, 4));
    assert!(!speed.is_slow(&settings), "two attempts");
    speed.observe(1, 4);
    assert!(speed.is_slow(&settings));
    assert_eq!((speed.percent(), speed.slots(&settings, 8), speed.slots(&settings, 1)), (25, 2, 1));
    (0..3).for_each(|_| speed.observe(4, 4));
    assert!(!speed.is_slow(&settings), "it recovers: {speed:?}");
    speed.observe(0, 4);
    assert!(!speed.is_slow(&settings), "one bad attempt: {speed:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Any figures: no panic, no more than the share, and never one that a fresh attempt would not
    /// beat by the factor.
    #[test]
    fn choices_keep_their_bounds(
        finished in vec((any::<u64>(), any::<u64>()), 5..40),
        candidates in vec((any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>()), 0..60),
        slots in any::<u32>(),
        speculating in 0u32..50,
    ) {
        let settings = settings();
        let mut rates = Rates::default();
        finished.iter().for_each(|(bytes, elapsed_ms)| rates.finished(*bytes, *elapsed_ms));
        let candidates: Vec<Running> = candidates
            .into_iter()
            .map(|(elapsed_ms, idle_ms, bytes_done, bytes_total)| Running {
                elapsed_ms,
                idle_ms: idle_ms.min(elapsed_ms),
                bytes_done: bytes_done.min(bytes_total),
                bytes_total,
            })
            .collect();
        let pace = rates.pace(&settings, 100, candidates.iter().copied()).expect("enough");
        prop_assert!(0 < pace.slow && pace.slow <= pace.median && pace.median <= pace.fast);
        let numbered = candidates.iter().copied().enumerate();
        let chosen = pace.choose(&settings, slots, speculating, numbered);
        let allowed = slots_allowed(&settings, slots).saturating_sub(speculating) as usize;
        prop_assert!(chosen.len() <= allowed);
        for which in &chosen {
            let verdict = pace.judge(&settings, &candidates[*which]);
            let Verdict::Straggler { remaining_ms, fresh_ms } = verdict else {
                return Err(TestCaseError::fail("not a straggler"));
            };
            prop_assert!(remaining_ms > fresh_ms || fresh_ms == u64::MAX);
        }
    }

    /// More progress in the same time never makes a straggler of what was none.
    #[test]
    fn more_progress_is_never_worse(
        elapsed_s in 0u64..1000,
        done in 1u64..1000,
        more in 0u64..1000,
    ) {
        let less = running(elapsed_s, done, 1000);
        let better = running(elapsed_s, done + more, 1000);
        if !matches!(pace().judge(&settings(), &less), Verdict::Straggler { .. }) {
            let verdict = pace().judge(&settings(), &better);
            prop_assert!(!matches!(verdict, Verdict::Straggler { .. }), "{better:?}");
        }
    }

    /// The memory of rates is bounded, and old ones make room.
    #[test]
    fn old_rates_make_room(before in 0usize..2000) {
        let mut rates = Rates::default();
        (0..before).for_each(|_| rates.finished(1, 1_000_000));
        (0..FINISHED_MAX).for_each(|_| rates.finished(7 * MB, 1000));
        prop_assert_eq!(rates.finished.len(), FINISHED_MAX);
        let pace = rates.pace(&settings(), 1, []);
        prop_assert_eq!(pace.map(|pace| (pace.slow, pace.fast)), Some((7 * MB, 7 * MB)));
    }
}
