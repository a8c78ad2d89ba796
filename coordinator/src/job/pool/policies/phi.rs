//! When silence means death: a phi-accrual failure detector after Hayashibara, Défago, Yared and
//! Katayama (2004), in the form that Akka and Cassandra gave it.
//!
//! A window of the last intervals between heartbeats gives their mean and deviation. Phi of a
//! silence is -log10 of the chance that a heartbeat comes even later than this, under a normal
//! distribution around the mean and an acceptable pause. A floor and a ceiling bound what a strange
//! history can do: no worker is dead before `floor_ms` of silence, each is after `ceiling_ms`.
//!
//! Any message counts as life, but only heartbeats feed the window: other messages would make it
//! look as if heartbeats came thick and fast. Intervals are measured by arrival, so workers' clocks
//! do not matter. Time in which the coordinator itself was away is forgiven ([`Detector::forgive`],
//! [`super::absence::Absence`]).

use muster_platform::config::Detector as Settings;

/// Large pools have longer heartbeat intervals than settings are made for: floor, ceiling and
/// acceptable pause are at least so many of them.
const FLOOR_INTERVALS: u64 = 5;
const CEILING_INTERVALS: u64 = 7;
const PAUSE_INTERVALS: u64 = 2;
/// Longest ceiling in milliseconds. With at most 1000 intervals in a window, the sum of their
/// squares stays within 64 bits.
const CEILING_MS_MAX: u64 = 3_600_000;
const WINDOW_MAX: usize = 1000;

/// What the detector holds of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Liveness {
    /// Heard in time.
    Healthy,
    /// Silent for longer than its history explains. It gets no new work and keeps what it has.
    Suspect,
    /// Silent for too long, or it said so. Its attempts go to others. Only a message from it
    /// changes this.
    Dead,
    /// Was dead and is heard again; healthy after `rejoin_beats` heartbeats.
    Rejoined,
}

impl Liveness {
    /// The state as it is shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Liveness::Healthy => "healthy",
            Liveness::Suspect => "suspect",
            Liveness::Dead => "dead",
            Liveness::Rejoined => "rejoined",
        }
    }
}

/// A transition of one worker.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Change {
    /// Before.
    pub from: Liveness,
    /// Now.
    pub to: Liveness,
    /// The silence that led to it, or that it ended, in milliseconds.
    pub silence_ms: u64,
    /// Phi of that silence; always finite.
    pub phi: f64,
}

/// Watches one worker. At most `window` intervals of four bytes each are kept.
#[derive(Debug, Clone)]
pub struct Detector {
    state: Liveness,
    interval_ms: u64,
    heard_ms: u64,
    /// Arrival of the last heartbeat, unless what lies between it and the next says nothing.
    beat_ms: Option<u64>,
    /// Intervals that began earlier are not fed: after an absence of the coordinator, what had
    /// queued up arrives at once.
    feed_from_ms: u64,
    probation: u32,
    intervals: Intervals,
}

impl Detector {
    /// A worker that was heard at `now_ms` and will send a heartbeat every `interval_ms`.
    pub fn new(now_ms: u64, interval_ms: u64) -> Self {
        let interval_ms = interval_ms.clamp(1, CEILING_MS_MAX / CEILING_INTERVALS);
        Self {
            state: Liveness::Healthy,
            interval_ms,
            heard_ms: now_ms,
            beat_ms: None,
            feed_from_ms: 0,
            probation: 0,
            intervals: Intervals::expect(interval_ms),
        }
    }

    /// The state as of the last call that could change it.
    pub fn state(&self) -> Liveness {
        self.state
    }

    /// How long nothing was heard, in milliseconds, forgiven time apart.
    pub fn silence_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.heard_ms)
    }

    /// When it is dead at the latest if nothing is heard or forgiven until then.
    pub fn deadline_ms(&self, settings: &Settings) -> u64 {
        self.heard_ms.saturating_add(self.ceiling_ms(settings))
    }

    /// A heartbeat came in. Repeated or overtaken ones (by sequence) are [`Detector::message`]s.
    pub fn heartbeat(&mut self, settings: &Settings, now_ms: u64) -> Option<Change> {
        let before_ms = self.beat_ms.replace(now_ms);
        if self.state == Liveness::Dead {
            return self.message(settings, now_ms);
        }
        if let Some(before_ms) = before_ms.filter(|before_ms| *before_ms >= self.feed_from_ms) {
            let interval_ms = now_ms.saturating_sub(before_ms).min(self.ceiling_ms(settings));
            self.intervals.push(interval_ms, settings.window);
        }
        self.probation = self.probation.saturating_sub(1);
        self.message(settings, now_ms)
    }

    /// Any other message came in: it is alive.
    pub fn message(&mut self, settings: &Settings, now_ms: u64) -> Option<Change> {
        let silence_ms = self.silence_ms(now_ms);
        self.heard_ms = self.heard_ms.max(now_ms);
        if self.state == Liveness::Dead {
            self.probation = settings.rejoin_beats;
            self.feed_from_ms = self.feed_from_ms.max(now_ms);
            return self.turn(settings, Liveness::Rejoined, silence_ms);
        }
        self.turn(settings, self.living(), silence_ms)
    }

    /// What its silence means now. Call it for every worker at least every half second; it is cheap
    /// for those that were heard lately.
    pub fn check(&mut self, settings: &Settings, now_ms: u64) -> Option<Change> {
        let silence_ms = self.silence_ms(now_ms);
        self.turn(settings, self.judge(settings, silence_ms), silence_ms)
    }

    /// It said that it ends, or somebody saw it die: no need to wait. A message that was still
    /// under way would make it rejoin: whoever tells lives apart by incarnation drops those.
    pub fn declare_dead(&mut self, settings: &Settings, now_ms: u64) -> Option<Change> {
        self.turn(settings, Liveness::Dead, self.silence_ms(now_ms))
    }

    /// `gap_ms` before `now_ms` the coordinator was paused or cut off: that time counts for nobody
    /// and is not fed. Queued messages that arrive within one interval after it are not fed either.
    /// To be called before any message or check that comes after the gap.
    pub fn forgive(&mut self, now_ms: u64, gap_ms: u64) {
        self.heard_ms = self.heard_ms.max(self.heard_ms.saturating_add(gap_ms).min(now_ms));
        self.beat_ms = None;
        self.feed_from_ms = self.feed_from_ms.max(now_ms.saturating_add(self.interval_ms));
    }

    /// From `now_ms` on it sends heartbeats at this interval: what was learnt of the old one is
    /// forgotten.
    pub fn set_interval(&mut self, now_ms: u64, interval_ms: u64) {
        let fresh = Detector::new(now_ms, interval_ms);
        if fresh.interval_ms != self.interval_ms {
            self.interval_ms = fresh.interval_ms;
            self.intervals = fresh.intervals;
            self.beat_ms = None;
            self.feed_from_ms = self.feed_from_ms.max(now_ms);
        }
    }

    /// How unlikely it is that a living worker is silent until `now_ms`: phi n is one chance in
    /// 10^n. Finite, not negative, and never falls as silence grows.
    pub fn phi(&self, settings: &Settings, now_ms: u64) -> f64 {
        self.phi_of(settings, self.silence_ms(now_ms))
    }

    fn phi_of(&self, settings: &Settings, silence_ms: u64) -> f64 {
        let (mean_ms, deviation_ms) = self.intervals.mean_and_deviation();
        let expected_ms = mean_ms + self.pause_ms(settings) as f64;
        let deviation_ms = deviation_ms.max(settings.deviation_min_ms.max(1) as f64);
        phi((silence_ms as f64 - expected_ms) / deviation_ms)
    }

    fn judge(&self, settings: &Settings, silence_ms: u64) -> Liveness {
        if self.state == Liveness::Dead || silence_ms >= self.ceiling_ms(settings) {
            return Liveness::Dead;
        }
        let late = silence_ms >= self.floor_ms(settings);
        // Within the acceptable pause phi is below 0.31: most workers need no logarithm.
        if !late && silence_ms <= self.pause_ms(settings) {
            return self.living();
        }
        let phi = self.phi_of(settings, silence_ms);
        match late {
            true if phi >= f64::from(settings.dead_phi) => Liveness::Dead,
            true => Liveness::Suspect,
            false if phi >= f64::from(settings.suspect_phi) => Liveness::Suspect,
            false => self.living(),
        }
    }

    fn living(&self) -> Liveness {
        if self.probation > 0 { Liveness::Rejoined } else { Liveness::Healthy }
    }

    fn turn(&mut self, settings: &Settings, to: Liveness, silence_ms: u64) -> Option<Change> {
        let from = std::mem::replace(&mut self.state, to);
        (from != to).then(|| Change {
            from,
            to,
            silence_ms,
            phi: self.phi_of(settings, silence_ms),
        })
    }

    fn floor_ms(&self, settings: &Settings) -> u64 {
        settings.floor_ms.max(FLOOR_INTERVALS * self.interval_ms)
    }

    fn ceiling_ms(&self, settings: &Settings) -> u64 {
        settings.ceiling_ms.max(CEILING_INTERVALS * self.interval_ms).min(CEILING_MS_MAX)
    }

    fn pause_ms(&self, settings: &Settings) -> u64 {
        settings.acceptable_pause_ms.max(PAUSE_INTERVALS * self.interval_ms)
    }
}

/// -log10 of the chance that a standard normal variable is greater than `deviations`, by the
/// logistic approximation that Akka and Cassandra use, P(X > y) = 1 / (1 + e^a) with a = y
/// (1.5976 + 0.070566 y²). Taken as ln(1 + e^a) in a form that neither overflows nor rounds the
/// tail to 0.
fn phi(deviations: f64) -> f64 {
    let a = deviations * (1.5976 + 0.070_566 * deviations * deviations);
    (a.max(0.0) + (-a.abs()).exp().ln_1p()) / std::f64::consts::LN_10
}

/// A ring of the last intervals in milliseconds, with running sums.
#[derive(Debug, Clone)]
struct Intervals {
    ring: Vec<u32>,
    oldest: usize,
    sum: u64,
    squares: u64,
}

impl Intervals {
    /// Before anything is known: two intervals, a quarter below and above what is expected, as Akka
    /// begins.
    fn expect(interval_ms: u64) -> Self {
        let mut intervals = Self { ring: Vec::new(), oldest: 0, sum: 0, squares: 0 };
        for first_ms in [interval_ms - interval_ms / 4, interval_ms + interval_ms / 4] {
            intervals.push(first_ms, 2);
        }
        intervals
    }

    fn push(&mut self, interval_ms: u64, window: u32) {
        let window = usize::try_from(window).unwrap_or(WINDOW_MAX).clamp(2, WINDOW_MAX);
        let interval_ms = interval_ms.min(CEILING_MS_MAX);
        let kept = u32::try_from(interval_ms).unwrap_or(u32::MAX);
        if self.ring.len() < window {
            self.ring.push(kept);
        } else {
            let gone = u64::from(std::mem::replace(&mut self.ring[self.oldest], kept));
            self.oldest = (self.oldest + 1) % self.ring.len();
            self.sum -= gone;
            self.squares -= gone * gone;
        }
        self.sum += interval_ms;
        self.squares += interval_ms * interval_ms;
    }

    fn mean_and_deviation(&self) -> (f64, f64) {
        let count = self.ring.len().max(1) as u128;
        let (sum, squares) = (u128::from(self.sum), u128::from(self.squares));
        // Count² times the variance, in whole numbers: no cancellation, never below 0.
        let spread = (count * squares).saturating_sub(sum * sum);
        (sum as f64 / count as f64, (spread as f64).sqrt() / count as f64)
    }
}

#[cfg(test)]
#[path = "phi_tests.rs"]
mod tests;
