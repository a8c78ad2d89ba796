//! A circuit breaker: whoever fails again and again gets nothing until a trial succeeds. One per
//! worker, and one per store.
//!
//! ```text
//!   Closed ──failures in a row, or a rate of failures──▶ Open ──its time is over──▶ HalfOpen
//!      ▲                                                  ▲                          │    │
//!      │                                                  └──the trial fails, twice──┘    │
//!      │                                                             the time             │
//!      └───────────────────────────the trial succeeds─────────────────────────────────────┘
//! ```
//!
//! Every start draws a [`Ticket`], and its outcome counts only in the state in which it was drawn:
//! what began before the breaker opened can neither close it nor open it anew.

use muster_platform::config::Breaker as Settings;

use super::sliding::{Sliding, Totals};

/// The states of a breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Work flows.
    Closed,
    /// Nothing is let through until then, in milliseconds of the caller's clock.
    Open {
        /// When a trial may begin.
        until_ms: u64,
    },
    /// One trial is let through.
    HalfOpen,
}

impl State {
    /// The state as it is shown.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Closed => "closed",
            State::Open { .. } => "open",
            State::HalfOpen => "half-open",
        }
    }
}

/// Why a breaker changed its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// So many failures in a row.
    InARow(u32),
    /// So many failures within the window.
    Rate(Totals),
    /// It was open for its time.
    TimeOver,
    /// The trial succeeded.
    TrialSucceeded,
    /// The trial failed.
    TrialFailed,
}

/// A transition, for an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// Before.
    pub from: State,
    /// Now.
    pub to: State,
    /// Why.
    pub cause: Cause,
}

/// Says in which state of its breaker something began. Kept with the attempt or call, and given
/// back with its outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ticket {
    term: u64,
    trial: u64,
}

/// A breaker. See the head of this file.
#[derive(Debug, Clone)]
pub struct Breaker {
    state: State,
    /// Counts up with each change of state.
    term: u64,
    in_a_row: u32,
    window: Sliding,
    /// How long it was open last, in milliseconds; 0 if it never was, or not lately.
    opened_ms: u64,
    closed_at_ms: u64,
    /// When the trial began, if one runs.
    trial_from_ms: Option<u64>,
    trials: u64,
}

impl Breaker {
    /// A closed breaker.
    pub fn new(settings: &Settings) -> Self {
        Self {
            state: State::Closed,
            term: 0,
            in_a_row: 0,
            window: Sliding::new(settings.window_ms),
            opened_ms: 0,
            closed_at_ms: 0,
            trial_from_ms: None,
            trials: 0,
        }
    }

    /// The state as of the last call that could change it.
    pub fn state(&self) -> State {
        self.state
    }

    /// Failures since the last success.
    pub fn failures_in_a_row(&self) -> u32 {
        self.in_a_row
    }

    /// Lets an open breaker become half-open when its time is over. Call it with every tick, so
    /// that the state is seen; [`Breaker::begin`] calls it too.
    pub fn poll(&mut self, now_ms: u64) -> Option<Change> {
        match self.state {
            State::Open { until_ms } if now_ms >= until_ms => {
                Some(self.turn(State::HalfOpen, Cause::TimeOver))
            }
            _ => None,
        }
    }

    /// Whether [`Breaker::begin`] would give a ticket now.
    pub fn admits(&self, settings: &Settings, now_ms: u64) -> bool {
        match self.state {
            State::Closed => true,
            State::Open { until_ms } => now_ms >= until_ms,
            State::HalfOpen => self.trial_is_free(settings, now_ms),
        }
    }

    /// Something is about to begin: a ticket where it may, and the change that this brings about.
    /// Each ticket must come back by [`Breaker::succeeded`], [`Breaker::failed`] or
    /// [`Breaker::abandoned`]; one that does not holds a half-open breaker up for `trial_ms` at
    /// most.
    pub fn begin(&mut self, settings: &Settings, now_ms: u64) -> (Option<Ticket>, Option<Change>) {
        let change = self.poll(now_ms);
        match self.state {
            State::Open { .. } => return (None, change),
            State::HalfOpen if !self.trial_is_free(settings, now_ms) => return (None, change),
            State::HalfOpen => {
                self.trials += 1;
                self.trial_from_ms = Some(now_ms);
            }
            State::Closed => {}
        }
        (Some(Ticket { term: self.term, trial: self.trials }), change)
    }

    /// What began with this ticket succeeded.
    pub fn succeeded(
        &mut self,
        settings: &Settings,
        now_ms: u64,
        ticket: Ticket,
    ) -> Option<Change> {
        if ticket.term != self.term {
            return None;
        }
        self.in_a_row = 0;
        match self.state {
            State::Closed => {
                self.window.record(now_ms, 1, 0);
                self.by_rate(settings, now_ms)
            }
            State::HalfOpen => {
                self.window.clear();
                self.closed_at_ms = now_ms;
                Some(self.turn(State::Closed, Cause::TrialSucceeded))
            }
            State::Open { .. } => None,
        }
    }

    /// What began with this ticket failed, by a fault of the worker or store: a cancelled attempt,
    /// bad input or a refused request is [`Breaker::abandoned`].
    pub fn failed(&mut self, settings: &Settings, now_ms: u64, ticket: Ticket) -> Option<Change> {
        if ticket.term != self.term {
            return None;
        }
        self.in_a_row = self.in_a_row.saturating_add(1);
        match self.state {
            State::Closed => {
                self.window.record(now_ms, 0, 1);
                if self.in_a_row >= settings.failures_max {
                    return Some(self.open(settings, now_ms, Cause::InARow(self.in_a_row)));
                }
                self.by_rate(settings, now_ms)
            }
            State::HalfOpen => Some(self.open(settings, now_ms, Cause::TrialFailed)),
            State::Open { .. } => None,
        }
    }

    /// What began with this ticket ended without a verdict (cancelled, handed back, lost with a
    /// worker that died): another trial may begin.
    pub fn abandoned(&mut self, ticket: Ticket) {
        if self.state == State::HalfOpen
            && ticket == (Ticket { term: self.term, trial: self.trials })
        {
            self.trial_from_ms = None;
        }
    }

    fn trial_is_free(&self, settings: &Settings, now_ms: u64) -> bool {
        self.trial_from_ms.is_none_or(|from_ms| now_ms.saturating_sub(from_ms) >= settings.trial_ms)
    }

    fn by_rate(&mut self, settings: &Settings, now_ms: u64) -> Option<Change> {
        let totals = self.window.totals(now_ms);
        let too_many =
            totals.ended >= settings.volume_min && totals.failed_percent() >= settings.rate_percent;
        too_many.then(|| self.open(settings, now_ms, Cause::Rate(totals)))
    }

    /// Twice as long as the last time, unless it has been closed for a whole window since.
    fn open(&mut self, settings: &Settings, now_ms: u64, cause: Cause) -> Change {
        let recovered = self.state == State::Closed
            && now_ms.saturating_sub(self.closed_at_ms) >= settings.window_ms;
        let doubled_ms = if recovered { 0 } else { self.opened_ms.saturating_mul(2) };
        self.opened_ms = doubled_ms.max(settings.open_ms).min(settings.open_max_ms);
        self.window.clear();
        self.turn(State::Open { until_ms: now_ms.saturating_add(self.opened_ms) }, cause)
    }

    fn turn(&mut self, to: State, cause: Cause) -> Change {
        self.term += 1;
        self.trial_from_ms = None;
        Change { from: std::mem::replace(&mut self.state, to), to, cause }
    }
}

#[cfg(test)]
#[path = "breaker_tests.rs"]
mod tests;
