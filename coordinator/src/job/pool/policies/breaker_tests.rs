use muster_platform::config::{Config, Profile};
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn settings() -> Settings {
    Config::profile(Profile::Production).expect("profile").breaker
}

fn outcome(breaker: &mut Breaker, now_ms: u64, good: bool) -> Option<Change> {
    let settings = settings();
    let ticket = breaker.begin(&settings, now_ms).0.expect("admitted");
    match good {
        true => breaker.succeeded(&settings, now_ms, ticket),
        false => breaker.failed(&settings, now_ms, ticket),
    }
}

fn opened(now_ms: u64) -> Breaker {
    let mut breaker = Breaker::new(&settings());
    let changes: Vec<_> = (0..5).filter_map(|_| outcome(&mut breaker, now_ms, false)).collect();
    let to = State::Open { until_ms: now_ms + 5000 };
    assert_eq!(changes, [Change { from: State::Closed, to, cause: Cause::InARow(5) }]);
    breaker
}

#[test]
fn failures_in_a_row_open_it_and_a_success_between_them_does_not() {
    opened(1000);
    let mut breaker = Breaker::new(&settings());
    for round in 0..3 {
        assert!((0..4).all(|_| outcome(&mut breaker, round * 60_000, false).is_none()));
        // The window is empty again at each round, so that the rate stays out of it.
        assert_eq!(outcome(&mut breaker, round * 60_000, true), None);
        assert_eq!(breaker.failures_in_a_row(), 0);
    }
    assert_eq!(breaker.state(), State::Closed);
}

#[test]
fn a_rate_of_failures_opens_it_once_there_is_volume() {
    let mut breaker = Breaker::new(&settings());
    for n in 0..9 {
        assert_eq!(outcome(&mut breaker, n, n % 2 == 0), None);
    }
    let change = outcome(&mut breaker, 9, false).expect("opens");
    assert_eq!(change.cause, Cause::Rate(Totals { ended: 10, failed: 5 }));
    // Spread over more than the window, the same never has the volume.
    let mut breaker = Breaker::new(&settings());
    assert!((0..200).all(|n| outcome(&mut breaker, n * 7000, n % 2 == 0).is_none()));
}

#[test]
fn open_admits_nothing_and_half_open_admits_one_trial() {
    let settings = settings();
    let mut breaker = opened(1000);
    assert_eq!(breaker.begin(&settings, 5999), (None, None));
    assert_eq!(breaker.poll(5999), None);
    let change = breaker.poll(6000).expect("half-open");
    assert_eq!((change.to, change.cause), (State::HalfOpen, Cause::TimeOver));
    assert!(breaker.admits(&settings, 6000));
    let trial = breaker.begin(&settings, 6000).0.expect("a trial");
    assert!(!breaker.admits(&settings, 6001));
    assert_eq!(breaker.begin(&settings, 6001), (None, None));
    breaker.abandoned(trial);
    let trial = breaker.begin(&settings, 6002).0.expect("another trial");
    let change = breaker.succeeded(&settings, 6003, trial).expect("closes");
    assert_eq!((change.to, change.cause), (State::Closed, Cause::TrialSucceeded));
    assert_eq!(breaker.failures_in_a_row(), 0);
}

#[test]
fn an_open_breaker_that_nobody_polls_becomes_half_open_with_the_next_start() {
    let mut breaker = opened(0);
    assert!(breaker.admits(&settings(), 5000));
    let (ticket, change) = breaker.begin(&settings(), 5000);
    assert!(ticket.is_some());
    assert_eq!(change.map(|change| change.to), Some(State::HalfOpen));
}

#[test]
fn each_failed_trial_doubles_the_time_up_to_its_bound() {
    let settings = settings();
    let mut breaker = opened(0);
    let mut waits = Vec::new();
    let mut now = 5000;
    for _ in 0..8 {
        let trial = breaker.begin(&settings, now).0.expect("a trial");
        let change = breaker.failed(&settings, now, trial).expect("opens");
        assert_eq!(change.cause, Cause::TrialFailed);
        let State::Open { until_ms } = change.to else { panic!("{change:?}") };
        waits.push((until_ms - now) / 1000);
        now = until_ms;
    }
    assert_eq!(waits, [10, 20, 40, 80, 160, 300, 300, 300]);
}

#[test]
fn one_that_opens_again_soon_goes_on_where_it_was_and_a_calm_window_starts_over() {
    let settings = settings();
    for (calm_ms, expected_ms) in [(settings.window_ms - 1, 10_000), (settings.window_ms, 5000)] {
        let mut breaker = opened(0);
        assert!(outcome(&mut breaker, 5000, true).is_some());
        let now = 5000 + calm_ms;
        let last = (0..5).filter_map(|_| outcome(&mut breaker, now, false)).last().expect("opens");
        assert_eq!(last.to, State::Open { until_ms: now + expected_ms });
    }
}

#[test]
fn what_began_before_it_opened_changes_nothing_any_more() {
    let settings = settings();
    let mut breaker = Breaker::new(&settings);
    let early = breaker.begin(&settings, 0).0.expect("closed");
    for _ in 0..5 {
        outcome(&mut breaker, 0, false);
    }
    assert_eq!(breaker.succeeded(&settings, 1, early), None);
    assert_eq!(breaker.state(), State::Open { until_ms: 5000 });
    breaker.poll(5000);
    breaker.abandoned(early);
    assert_eq!(breaker.succeeded(&settings, 5000, early), None);
    assert_eq!(breaker.failed(&settings, 5000, early), None);
    assert_eq!(breaker.state(), State::HalfOpen);
}

#[test]
fn a_trial_that_never_ends_holds_the_next_one_up_for_a_bounded_time_only() {
    let settings = settings();
    let mut breaker = opened(0);
    let lost = breaker.begin(&settings, 5000).0.expect("a trial");
    assert!(!breaker.admits(&settings, 5000 + settings.trial_ms - 1));
    assert!(breaker.begin(&settings, 5000 + settings.trial_ms).0.is_some());
    // It is not the trial any more, so that its end frees nothing.
    breaker.abandoned(lost);
    assert!(!breaker.admits(&settings, 5001 + settings.trial_ms));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens: only edges of the picture, never more than one trial at once, never open
    /// for longer than the bound, and after that always a way back.
    #[test]
    fn it_keeps_to_its_picture(steps in vec((0u64..4000, 0u8..8), 1..300)) {
        let settings = settings();
        let mut breaker = Breaker::new(&settings);
        let (mut now, mut tickets) = (0, Vec::new());
        for (pause, kind) in steps {
            now += pause;
            let before = breaker.state();
            let change = match kind {
                0..=2 => {
                    let admits = breaker.admits(&settings, now);
                    let (ticket, change) = breaker.begin(&settings, now);
                    prop_assert_eq!(admits, ticket.is_some());
                    tickets.extend(ticket);
                    change
                }
                3..=5 => tickets.pop().and_then(|ticket| breaker.failed(&settings, now, ticket)),
                6 => tickets.pop().and_then(|ticket| breaker.succeeded(&settings, now, ticket)),
                _ => {
                    if !tickets.is_empty() {
                        breaker.abandoned(tickets.remove(0));
                    }
                    breaker.poll(now)
                }
            };
            match change {
                None => prop_assert_eq!(before, breaker.state()),
                Some(change) => {
                    prop_assert_eq!((change.from, change.to), (before, breaker.state()));
                    let sound = matches!(
                        (change.from, change.to),
                        (State::Closed, State::Open { .. }) | (State::Open { .. }, State::HalfOpen)
                            | (State::HalfOpen, State::Open { .. } | State::Closed)
                    );
                    prop_assert!(sound, "{:?}", change);
                }
            }
            if let State::Open { until_ms } = breaker.state() {
                prop_assert!(until_ms <= now + settings.open_max_ms);
            }
        }
        prop_assert!(breaker.admits(&settings, now + settings.open_max_ms + settings.trial_ms));
    }
}
