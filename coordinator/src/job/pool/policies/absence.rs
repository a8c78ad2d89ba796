//! What the coordinator itself missed. While it was paused (SIGSTOP, a suspended host) or cut off
//! from NATS, silence says nothing about workers: that time counts for nobody.

use muster_platform::config::Detector as Settings;

/// Longest time between two looks, in ticks, that is no pause.
const TICKS_MAX: u64 = 3;

/// Watches the coordinator's own presence.
///
/// Call [`Absence::observe`] with every input, *before* the input or any detector is looked at, and
/// at least once a tick. What it returns goes to [`super::phi::Detector::forgive`] of every worker
/// where it is not 0.
#[derive(Debug, Clone)]
pub struct Absence {
    tick_ms: u64,
    seen_ms: u64,
    connected: bool,
    grace_until_ms: u64,
}

impl Absence {
    /// Present and connected at `now_ms`; looks come every `tick_ms`, in milliseconds, or more
    /// often.
    pub fn new(now_ms: u64, tick_ms: u64) -> Self {
        Self { tick_ms: tick_ms.max(1), seen_ms: now_ms, connected: true, grace_until_ms: 0 }
    }

    /// Milliseconds since the last look that count for nobody: all of them while cut off, those
    /// beyond one tick after a pause, and `grace_ms` after either.
    #[must_use = "goes to Detector::forgive of every worker"]
    pub fn observe(&mut self, settings: &Settings, now_ms: u64) -> u64 {
        let from_ms = self.seen_ms;
        self.seen_ms = from_ms.max(now_ms);
        let elapsed_ms = now_ms.saturating_sub(from_ms);
        if !self.connected {
            return elapsed_ms;
        }
        if elapsed_ms > TICKS_MAX * self.tick_ms {
            self.grace_until_ms = now_ms.saturating_add(settings.grace_ms);
            return elapsed_ms - self.tick_ms;
        }
        now_ms.min(self.grace_until_ms).saturating_sub(from_ms)
    }

    /// The connection to NATS was lost (`false`) or is there again (`true`). Returns what
    /// [`Absence::observe`] would.
    #[must_use = "goes to Detector::forgive of every worker"]
    pub fn connection(&mut self, settings: &Settings, now_ms: u64, connected: bool) -> u64 {
        let forgiven_ms = self.observe(settings, now_ms);
        if connected && !self.connected {
            self.grace_until_ms = now_ms.saturating_add(settings.grace_ms);
        }
        self.connected = connected;
        forgiven_ms
    }

    /// Whether the coordinator is cut off now.
    pub fn is_cut_off(&self) -> bool {
        !self.connected
    }
}

#[cfg(test)]
mod tests {
    use muster_platform::config::{Config, Profile};

    use super::*;

    fn settings() -> Settings {
        Config::profile(Profile::Production).expect("profile").detector
    }

    #[test]
    fn ordinary_ticks_forgive_nothing() {
        let mut absence = Absence::new(1000, 250);
        assert!((1..200).all(|tick| absence.observe(&settings(), 1000 + tick * 300) == 0));
    }

    #[test]
    fn a_pause_is_forgiven_but_for_one_tick_and_then_the_grace() {
        let mut absence = Absence::new(0, 250);
        assert_eq!(absence.observe(&settings(), 250), 0);
        assert_eq!(absence.observe(&settings(), 20_250), 19_750);
        let grace: u64 =
            (1..=40).map(|tick| absence.observe(&settings(), 20_250 + tick * 250)).sum();
        assert_eq!(grace, settings().grace_ms);
    }

    #[test]
    fn time_cut_off_is_forgiven_whole_and_then_the_grace() {
        let mut absence = Absence::new(0, 250);
        assert_eq!(absence.connection(&settings(), 100, false), 0);
        assert!(absence.is_cut_off());
        let cut_off: u64 =
            (1..=20).map(|tick| absence.observe(&settings(), 100 + tick * 250)).sum();
        assert_eq!(cut_off, 5000);
        assert_eq!(absence.connection(&settings(), 5200, true), 100);
        let grace: u64 = (1..=40).map(|tick| absence.observe(&settings(), 5200 + tick * 250)).sum();
        assert_eq!(grace, settings().grace_ms);
    }

    #[test]
    fn a_clock_that_goes_back_forgives_nothing() {
        let mut absence = Absence::new(1000, 250);
        assert_eq!(absence.observe(&settings(), 400), 0);
        assert_eq!(absence.observe(&settings(), 1200), 0);
    }
}
