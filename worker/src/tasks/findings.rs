//! What an attempt finds out about data that others made: a damaged run, an unreadable input. Such
//! an attempt ends with a report of its own, because another try of the same would meet with the
//! same; the leader decides what is made anew or left out.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use muster_protocol::plan::PinnedRun;
use muster_protocol::wire::{DamageCause, Mended, Outcome};
use muster_protocol::{Error, ErrorKind};

use crate::transfer::Object;

/// What went wrong on the way and was mended, since the process began.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Bytes of runs that were wrong and came right when they were read again.
    pub(crate) read_again: AtomicU64,
    /// Runs that were read from their replica.
    pub(crate) from_replica: AtomicU64,
    /// Copies of runs that were made anew from another copy.
    pub(crate) repaired: AtomicU64,
}

impl Counters {
    pub(crate) fn count(counter: &AtomicU64) -> u64 {
        counter.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The figures for people.
    pub(crate) fn mended(&self, hedged_reads: u64) -> Mended {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Mended {
            hedged_reads,
            read_again: of(&self.read_again),
            from_replica: of(&self.from_replica),
            repaired: of(&self.repaired),
        }
    }
}

/// The findings of one attempt. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct Findings {
    pub(crate) counters: Arc<Counters>,
    outcome: Arc<Mutex<Option<Outcome>>>,
    copies: Arc<Mutex<Vec<BadCopy>>>,
}

/// A copy of a run that can be made anew from another.
pub(crate) struct BadCopy {
    pub(crate) run: PinnedRun,
    pub(crate) bad: Object,
    pub(crate) good: Object,
}

impl Findings {
    /// Those of a new attempt.
    pub(crate) fn new(counters: Arc<Counters>) -> Self {
        Self { counters, ..Self::default() }
    }

    /// Notes that a committed run is damaged wherever it lies. Gives the error back, with which the
    /// attempt ends.
    pub(crate) fn run_damaged(&self, run: &PinnedRun, cause: DamageCause, error: Error) -> Error {
        let named = error.message.contains(&run.url);
        let error = if named { error } else { error.at(format!("the run {}", run.url)) };
        tracing::warn!(run = %run.url, ?cause, %error, "a committed run is damaged");
        let outcome = Outcome::RunDamaged {
            split: run.attempt.task.index,
            run: run.attempt,
            cause,
            error: error.clone(),
        };
        self.note(outcome);
        error
    }

    /// Notes that an input object cannot be read. Gives the error back, with which the attempt
    /// ends.
    pub(crate) fn input_unreadable(&self, object: u32, error: Error) -> Error {
        tracing::warn!(object, %error, "an input object cannot be read");
        self.note(Outcome::InputUnreadable { object, error: error.clone() });
        error
    }

    /// Notes that one copy of a run is missing or damaged where another may be sound.
    pub(crate) fn copy_failed(&self, run: &PinnedRun, bad: &Object, good: &Object, why: &Error) {
        if matches!(why.kind, ErrorKind::Corrupt | ErrorKind::NotFound) {
            let copy = BadCopy { run: run.clone(), bad: bad.clone(), good: good.clone() };
            self.copies.lock().unwrap_or_else(PoisonError::into_inner).push(copy);
        }
    }

    /// The copies that failed.
    pub(crate) fn take_bad_copies(&self) -> Vec<BadCopy> {
        std::mem::take(&mut *self.copies.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether anything was found.
    pub(crate) fn has_any(&self) -> bool {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// The first of them.
    pub(crate) fn take(&self) -> Option<Outcome> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn note(&self, outcome: Outcome) {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(outcome);
    }
}
