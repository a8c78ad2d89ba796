//! Bounded waiting: the only clock of the harness.

use std::time::{Duration, Instant};

/// How long a process may take to start and answer.
pub const START_BOUND: Duration = Duration::from_secs(60);
/// How long one `muster` command may take.
pub const RUN_BOUND: Duration = Duration::from_secs(120);
/// Between two looks at something that is about to change.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// How long what a job leaves may take to be removed once the job has ended.
const CLEAN_UP_BOUND: Duration = Duration::from_secs(20);

/// Calls `look` until it gives something, at most for `bound`; then the test fails, saying what it
/// waited for.
///
/// # Panics
/// When the bound is reached.
#[track_caller]
pub fn until<T>(what: &str, bound: Duration, look: impl FnMut() -> Option<T>) -> T {
    match within(bound, look) {
        Some(found) => found,
        None => panic!("waited {} s in vain for {what}", bound.as_secs()),
    }
}

/// Waits until a listing is empty; where something stays, the test fails and shows it.
///
/// # Panics
/// Then.
#[track_caller]
pub fn until_empty(what: &str, mut list: impl FnMut() -> Vec<String>) {
    let mut last = Vec::new();
    let emptied = within(CLEAN_UP_BOUND, || {
        last = list();
        last.is_empty().then_some(())
    });
    assert!(emptied.is_some(), "left {what}: {last:?}");
}

#[expect(clippy::disallowed_methods, reason = "waits for real processes, which know no clock port")]
fn within<T>(bound: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let begin = Instant::now();
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if begin.elapsed() > bound {
            return None;
        }
        std::thread::sleep(LOOK_EVERY);
    }
}
