//! When a leader last knew that it led: the moment at which an append was *sent* that the journal
//! then acknowledged. What the journal acknowledges a majority of its servers has taken, after the
//! very record that this leader knew as the newest; so nobody else had begun an epoch before that
//! moment.

use std::sync::{Mutex, PoisonError};

use muster_platform::clock::Clock;

/// A moment by both clocks: one of them stands still while a machine is suspended, the other may be
/// set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Of the clock that never goes back, in milliseconds.
    pub now_ms: u64,
    /// Since the Unix epoch, in milliseconds.
    pub unix_ms: u64,
}

impl Moment {
    /// Now.
    pub fn of(clock: &dyn Clock) -> Self {
        Self { now_ms: clock.now_ms(), unix_ms: clock.unix_ms() }
    }

    /// Whether a later moment is no more than so many milliseconds away, by either clock.
    pub fn is_within(self, bound_ms: u64, later: Moment) -> bool {
        later.now_ms.saturating_sub(self.now_ms) <= bound_ms
            && later.unix_ms.abs_diff(self.unix_ms) <= bound_ms
    }
}

/// What the writer of a journal tells those who ask whether its leader leads.
#[derive(Debug, Default)]
pub struct Standing(Mutex<Option<Moment>>);

impl Standing {
    /// An append that was sent then is acknowledged.
    pub fn confirm(&self, sent: Moment) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(sent);
    }

    /// When this leader last knew.
    pub fn confirmed(&self) -> Option<Moment> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it has known at a later millisecond.
    pub fn is_after(&self, moment: Moment) -> bool {
        self.confirmed().is_some_and(|confirmed| confirmed.now_ms > moment.now_ms)
    }

    /// Whether it has known since a moment.
    pub fn is_since(&self, moment: Moment) -> bool {
        self.confirmed().is_some_and(|confirmed| confirmed.now_ms >= moment.now_ms)
    }
}
