//! How much all workers together may ask of a store that says "slow down": additive increase,
//! multiplicative decrease, as TCP shares a link (Chiu and Jain, 1989).
//!
//! No limit holds until a store throttles. Then each second with a throttled answer halves the
//! rate, each second without one adds a step. The limit is lifted once it was calm for long enough;
//! what a store bears is not remembered, because stores grow with their load.

use muster_platform::config::Limits as Settings;

/// Pause between two steps, in milliseconds.
const STEP_MS: u64 = 1000;
/// How often it is said that no limit holds any more: it is a hint, and hints get lost.
const LIFTED_TIMES: u32 = 3;

/// The limit of one deployment. Call [`Limits::poll`] with every tick.
#[derive(Debug, Clone, Default)]
pub struct Limits {
    /// Requests a second of all workers together; none where there is no limit.
    rate_per_s: Option<u32>,
    throttled: u64,
    throttled_ms: u64,
    stepped_ms: u64,
    /// How often it is still to be said that no limit holds.
    lifted: u32,
}

/// What workers are to be told now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Say {
    /// Requests a second of each worker; none where no limit holds any more.
    pub worker_per_s: Option<u32>,
    /// Whether a limit came or went.
    pub turned: bool,
}

impl Limits {
    /// Workers got so many answers "slow down".
    pub fn throttled(&mut self, answers: u64) {
        self.throttled = self.throttled.saturating_add(answers);
    }

    /// Requests a second of all workers together, while a limit holds.
    pub fn rate_per_s(&self) -> Option<u32> {
        self.rate_per_s
    }

    /// Time goes by: once a second, and only while there is something to say.
    pub fn poll(&mut self, settings: &Settings, now_ms: u64, workers: u32) -> Option<Say> {
        if now_ms.saturating_sub(self.stepped_ms) < STEP_MS {
            return None;
        }
        self.stepped_ms = now_ms;
        let throttled = std::mem::take(&mut self.throttled) > 0;
        if throttled {
            self.throttled_ms = now_ms;
        }
        let before = self.rate_per_s;
        self.rate_per_s = match before {
            None => throttled.then_some(settings.start_per_s),
            Some(rate) if throttled => Some((rate / 2).max(settings.min_per_s)),
            Some(_) if now_ms.saturating_sub(self.throttled_ms) >= settings.calm_ms => None,
            Some(rate) => Some(rate.saturating_add(settings.step_per_s)),
        };
        match (before, self.rate_per_s) {
            (None, None) if self.lifted == 0 => return None,
            (_, None) => {
                self.lifted = if before.is_some() { LIFTED_TIMES - 1 } else { self.lifted - 1 }
            }
            (_, Some(_)) => self.lifted = 0,
        }
        let worker_per_s = self.rate_per_s.map(|rate| (rate / workers.max(1)).max(1));
        Some(Say { worker_per_s, turned: before.is_some() != self.rate_per_s.is_some() })
    }
}

#[cfg(test)]
mod tests {
    use muster_platform::config::{Config, Profile};

    use super::*;

    fn settings() -> Settings {
        Config::profile(Profile::Production).expect("profile").limits
    }

    /// A second passes, with so many throttled answers.
    fn second(limits: &mut Limits, now_ms: &mut u64, throttled: u64) -> Option<Say> {
        limits.throttled(throttled);
        *now_ms += STEP_MS;
        limits.poll(&settings(), *now_ms, 10)
    }

    #[test]
    fn nothing_is_said_while_stores_are_well() {
        let (mut limits, mut now_ms) = (Limits::default(), 0);
        assert!((0..100).all(|_| second(&mut limits, &mut now_ms, 0).is_none()));
    }

    #[test]
    fn it_falls_by_halves_and_rises_by_steps() {
        let (settings, mut limits, mut now_ms) = (settings(), Limits::default(), 0);
        let first = second(&mut limits, &mut now_ms, 3).expect("a limit");
        assert_eq!((first.worker_per_s, first.turned), (Some(settings.start_per_s / 10), true));
        assert_eq!(limits.poll(&settings, now_ms + STEP_MS - 1, 10), None, "not twice in a second");
        second(&mut limits, &mut now_ms, 1);
        assert_eq!(limits.rate_per_s(), Some(settings.start_per_s / 2));
        second(&mut limits, &mut now_ms, 0);
        assert_eq!(limits.rate_per_s(), Some(settings.start_per_s / 2 + settings.step_per_s));
        for _ in 0..50 {
            second(&mut limits, &mut now_ms, 9);
        }
        assert_eq!(limits.rate_per_s(), Some(settings.min_per_s), "never below its least");
        assert!(second(&mut limits, &mut now_ms, 9).is_some_and(|say| say.worker_per_s >= Some(1)));
    }

    #[test]
    fn it_is_lifted_once_calm_and_that_is_said_a_few_times() {
        let (mut limits, mut now_ms) = (Limits::default(), 0);
        second(&mut limits, &mut now_ms, 1);
        let seconds = settings().calm_ms / STEP_MS;
        assert!((1..seconds).all(|_| {
            second(&mut limits, &mut now_ms, 0).is_some_and(|say| say.worker_per_s.is_some())
        }));
        let lifted = Some(Say { worker_per_s: None, turned: true });
        assert_eq!(second(&mut limits, &mut now_ms, 0), lifted);
        let again = std::iter::from_fn(|| second(&mut limits, &mut now_ms, 0)).count();
        assert_eq!(again, 2);
    }
}
