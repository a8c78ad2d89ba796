//! Recovery after a wave of losses: lost tasks are given out again slowly at first and faster as it
//! goes well, so that what lives is not overrun; meanwhile new jobs are refused.
//!
//! A single loss is no wave and costs no wait. A wave is over once no worker was lost for
//! `calm_ms`, whatever came of the recoveries, so it can hold nothing up for ever.

use std::collections::VecDeque;
use std::fmt;

use muster_platform::config::Recovery as Settings;

/// Losses that are remembered at most; more than any pool has workers.
const LOSSES_MAX: usize = 65_536;
/// One recovery in the units that the bucket counts in: a rate a second times milliseconds.
const TOKEN: u64 = 1000;

/// A transition, for an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Too many workers were lost within the window.
    WaveBegan {
        /// Lost within the window.
        lost: u32,
        /// Of so many.
        of: u32,
        /// Recoveries a second from now on.
        rate_per_s: u32,
    },
    /// Recoveries a second from now on: twice as many, or half as many.
    Rate {
        /// Before.
        from_per_s: u32,
        /// Now.
        to_per_s: u32,
    },
    /// Recoveries are no longer limited.
    WaveOver {
        /// Lost in all.
        lost: u32,
        /// How long it was, in milliseconds.
        lasted_ms: u64,
    },
}

/// Why a new job is refused now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shed {
    /// Workers lost in this wave.
    pub lost: u32,
    /// Of so many.
    pub of: u32,
    /// When it is worth another try, in milliseconds from now.
    pub retry_after_ms: u64,
}

impl fmt::Display for Shed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shed { lost, of, retry_after_ms } = self;
        let seconds = retry_after_ms.div_ceil(1000);
        write!(
            f,
            "{lost} of {of} workers were lost lately and running jobs recover first; try again in \
                {seconds} s"
        )
    }
}

/// The ramp of one deployment. Call [`Ramp::poll`] with every tick.
#[derive(Debug, Clone, Default)]
pub struct Ramp {
    losses: VecDeque<u64>,
    wave: Option<Wave>,
}

#[derive(Debug, Clone)]
struct Wave {
    began_ms: u64,
    last_loss_ms: u64,
    lost: u32,
    of: u32,
    rate_per_s: u32,
    bucket: u64,
    filled_ms: u64,
    step_from_ms: u64,
    succeeded: bool,
    failed: bool,
}

impl Ramp {
    /// No wave.
    pub fn new() -> Self {
        Self::default()
    }

    /// A worker was lost (died; one that was drained or left in good order is not lost). `alive` is
    /// how many still live.
    pub fn lost(&mut self, settings: &Settings, now_ms: u64, alive: u32) -> Option<Change> {
        if let Some(wave) = &mut self.wave {
            wave.lost = wave.lost.saturating_add(1);
            wave.of = wave.of.max(alive.saturating_add(wave.lost));
            wave.last_loss_ms = wave.last_loss_ms.max(now_ms);
            wave.failed = true;
            return None;
        }
        self.losses.retain(|at| now_ms.saturating_sub(*at) < settings.wave_window_ms);
        if self.losses.len() == LOSSES_MAX {
            self.losses.pop_front();
        }
        self.losses.push_back(now_ms);
        let lost = u32::try_from(self.losses.len()).unwrap_or(u32::MAX);
        let of = alive.saturating_add(lost);
        let share_exceeded =
            u64::from(lost) * 100 > u64::from(of) * u64::from(settings.wave_percent);
        if !share_exceeded || lost < settings.wave_losses_min {
            return None;
        }
        let rate_per_s = settings.rate_min_per_s.max(1);
        self.losses.clear();
        self.wave = Some(Wave {
            began_ms: now_ms,
            last_loss_ms: now_ms,
            lost,
            of,
            rate_per_s,
            bucket: TOKEN,
            filled_ms: now_ms,
            step_from_ms: now_ms,
            succeeded: false,
            failed: false,
        });
        Some(Change::WaveBegan { lost, of, rate_per_s })
    }

    /// Whether a lost task may be given out again now; counts it where it may. Without a wave it
    /// always may.
    #[must_use = "a recovery that was taken is counted"]
    pub fn take(&mut self, now_ms: u64) -> bool {
        let Some(wave) = &mut self.wave else { return true };
        wave.fill(now_ms);
        let may = wave.bucket >= TOKEN;
        if may {
            wave.bucket -= TOKEN;
        }
        may
    }

    /// When [`Ramp::take`] says yes next, if it would say no now: for a timer.
    pub fn next_ms(&self, now_ms: u64) -> Option<u64> {
        let mut wave = self.wave.clone()?;
        wave.fill(now_ms);
        let missing = TOKEN.saturating_sub(wave.bucket);
        (missing > 0).then(|| now_ms.saturating_add(missing.div_ceil(wave.rate_per_s.into())))
    }

    /// A task that was given out again runs (its worker reports progress) or is done.
    pub fn succeeded(&mut self) {
        if let Some(wave) = &mut self.wave {
            wave.succeeded = true;
        }
    }

    /// A task that was given out again was lost or failed again.
    pub fn failed(&mut self) {
        if let Some(wave) = &mut self.wave {
            wave.failed = true;
        }
    }

    /// Time goes by: the rate steps up or down, and the wave ends.
    pub fn poll(&mut self, settings: &Settings, now_ms: u64) -> Option<Change> {
        let wave = self.wave.as_mut()?;
        if now_ms.saturating_sub(wave.last_loss_ms) >= settings.calm_ms {
            let over = Change::WaveOver {
                lost: wave.lost,
                lasted_ms: now_ms.saturating_sub(wave.began_ms),
            };
            self.wave = None;
            return Some(over);
        }
        if now_ms.saturating_sub(wave.step_from_ms) < settings.step_ms {
            return None;
        }
        wave.step_from_ms = now_ms;
        let from_per_s = wave.rate_per_s;
        let outcome = (std::mem::take(&mut wave.succeeded), std::mem::take(&mut wave.failed));
        let wanted = match outcome {
            (_, true) => from_per_s / 2,
            (true, false) => from_per_s.saturating_mul(2),
            (false, false) => from_per_s,
        };
        let to_per_s = wanted.min(settings.rate_max_per_s).max(settings.rate_min_per_s).max(1);
        wave.fill(now_ms);
        wave.rate_per_s = to_per_s;
        (from_per_s != to_per_s).then_some(Change::Rate { from_per_s, to_per_s })
    }

    /// Whether a new job is refused now, and why: during a wave, until recoveries run at their full
    /// rate.
    pub fn shed(&self, settings: &Settings, now_ms: u64) -> Option<Shed> {
        let wave = self.wave.as_ref().filter(|wave| wave.rate_per_s < settings.rate_max_per_s)?;
        let calm_at_ms = wave.last_loss_ms.saturating_add(settings.calm_ms);
        Some(Shed {
            lost: wave.lost,
            of: wave.of,
            retry_after_ms: calm_at_ms.saturating_sub(now_ms),
        })
    }

    /// Recoveries a second; nothing where they are not limited.
    pub fn rate_per_s(&self) -> Option<u32> {
        self.wave.as_ref().map(|wave| wave.rate_per_s)
    }
}

impl Wave {
    /// The bucket holds what one second brings.
    fn fill(&mut self, now_ms: u64) {
        let rate = u64::from(self.rate_per_s);
        let elapsed_ms = now_ms.saturating_sub(self.filled_ms);
        self.bucket = self.bucket.saturating_add(elapsed_ms.saturating_mul(rate)).min(rate * TOKEN);
        self.filled_ms = self.filled_ms.max(now_ms);
    }
}

#[cfg(test)]
mod tests {
    use muster_platform::config::{Config, Profile};
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn settings() -> Settings {
        Config::profile(Profile::Production).expect("profile").recovery
    }

    /// Three of ten workers lost within two seconds.
    fn wave() -> Ramp {
        let mut ramp = Ramp::new();
        assert_eq!(ramp.lost(&settings(), 0, 9), None);
        assert_eq!(ramp.lost(&settings(), 1000, 8), None);
        let began = Change::WaveBegan { lost: 3, of: 10, rate_per_s: 2 };
        assert_eq!(ramp.lost(&settings(), 2000, 7), Some(began));
        ramp
    }

    fn taken(ramp: &mut Ramp, from_ms: u64, to_ms: u64) -> u32 {
        (from_ms..to_ms).filter(|now| ramp.take(*now)).count().try_into().unwrap()
    }

    #[test]
    fn losses_that_are_few_or_far_apart_are_no_wave() {
        let mut ramp = Ramp::new();
        assert!(
            (0..50).all(|n| ramp.lost(&settings(), n * 30_000, 9).is_none()),
            "two of eleven at a time"
        );
        let mut ramp = Ramp::new();
        assert!(
            (0..20).all(|n| ramp.lost(&settings(), n, 99 - n as u32).is_none()),
            "a fifth is not more than a fifth"
        );
        assert!(ramp.lost(&settings(), 20, 79).is_some());
        let mut ramp = Ramp::new();
        assert!((0..2).all(|n| ramp.lost(&settings(), 0, 1 - n).is_none()), "a pool of two");
        assert!((0..1000).all(|_| ramp.take(0)) && ramp.shed(&settings(), 0).is_none());
    }

    #[test]
    fn a_wave_begins_slowly_and_doubles_with_success() {
        let (settings, mut ramp) = (settings(), wave());
        let mut seen = Vec::new();
        for second in 2..12 {
            let now = second * 1000;
            seen.push(taken(&mut ramp, now, now + 1000));
            ramp.succeeded();
            let change = ramp.poll(&settings, now + 1000);
            assert_eq!(
                change.is_some(),
                ramp.rate_per_s() != Some(256) || second == 8,
                "{second}: {change:?}"
            );
        }
        assert!(seen[0] <= 3, "{seen:?}");
        assert!(seen.windows(2).all(|pair| pair[1] <= 2 * pair[0] + 2), "{seen:?}");
        assert!((250..=257).contains(seen.last().unwrap()), "{seen:?}");
    }

    #[test]
    fn failures_and_further_losses_slow_it_down_and_nothing_leaves_it_as_it_is() {
        let (settings, mut ramp) = (settings(), wave());
        for second in 3..6 {
            ramp.succeeded();
            assert!(ramp.poll(&settings, second * 1000).is_some());
        }
        assert_eq!(ramp.rate_per_s(), Some(16));
        assert_eq!(ramp.poll(&settings, 6000), None);
        ramp.succeeded();
        ramp.failed();
        assert_eq!(ramp.poll(&settings, 7000), Some(Change::Rate { from_per_s: 16, to_per_s: 8 }));
        assert_eq!(ramp.lost(&settings, 7100, 6), None);
        assert_eq!(ramp.poll(&settings, 8000), Some(Change::Rate { from_per_s: 8, to_per_s: 4 }));
    }

    #[test]
    fn new_jobs_are_refused_until_the_full_rate_or_the_end() {
        let (settings, mut ramp) = (settings(), wave());
        let shed = ramp.shed(&settings, 2000).expect("shed");
        assert_eq!(shed, Shed { lost: 3, of: 10, retry_after_ms: 30_000 });
        assert!(shed.to_string().contains("3 of 10"), "{shed}");
        for second in 3..=9 {
            assert!(ramp.shed(&settings, second * 1000).is_some());
            ramp.succeeded();
            ramp.poll(&settings, second * 1000);
        }
        assert_eq!((ramp.rate_per_s(), ramp.shed(&settings, 9000)), (Some(256), None));
    }

    #[test]
    fn it_ends_when_it_was_calm_long_enough_even_without_a_success() {
        let (settings, mut ramp) = (settings(), wave());
        ramp.lost(&settings, 5000, 6);
        assert_eq!(ramp.poll(&settings, 34_999), None);
        assert_eq!(
            ramp.poll(&settings, 35_000),
            Some(Change::WaveOver { lost: 4, lasted_ms: 33_000 })
        );
        assert!((0..1000).all(|_| ramp.take(35_000)));
        assert_eq!((ramp.shed(&settings, 35_000), ramp.rate_per_s()), (None, None));
        // What made this wave does not make the next.
        assert_eq!(ramp.lost(&settings, 36_000, 5), None);
    }

    #[test]
    fn it_says_when_the_next_recovery_may_begin() {
        let mut ramp = wave();
        assert_eq!(ramp.next_ms(2000), None);
        assert!(ramp.take(2000));
        let next = ramp.next_ms(2000).expect("wait");
        assert_eq!(next, 2500);
        assert!(!ramp.take(next - 1) && ramp.take(next));
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        /// Over any stretch of a wave no more is taken than one second's worth and what the highest
        /// rate of the stretch brings; the rate keeps its bounds.
        #[test]
        fn it_never_gives_more_than_its_rate(steps in vec((0u64..700, 0u8..4, 0u32..400), 1..200)) {
            let (settings, mut ramp) = (settings(), wave());
            let (mut now, mut budget, mut all) = (2000u64, 1000u64, 0u64);
            for (pause, kind, wanted) in steps {
                budget += pause * u64::from(ramp.rate_per_s().unwrap_or(0));
                now += pause;
                match kind {
                    0 => ramp.succeeded(),
                    1 => ramp.failed(),
                    2 => drop(ramp.lost(&settings, now, 5)),
                    _ => {}
                }
                let asked = (0..wanted).filter(|_| ramp.take(now)).count() as u64;
                let Some(rate) = ramp.rate_per_s() else { break };
                prop_assert!((settings.rate_min_per_s..=settings.rate_max_per_s).contains(&rate));
                prop_assert!(asked <= u64::from(rate));
                all += asked;
                prop_assert!(all * 1000 <= budget, "{all} of {budget}");
                ramp.poll(&settings, now);
            }
            ramp.poll(&settings, now + settings.calm_ms);
            prop_assert_eq!(ramp.rate_per_s(), None);
        }
    }
}
