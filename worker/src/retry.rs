//! Store calls that are tried again: exponential backoff with jitter, for passing trouble only, within `store.attempts_max`.

use std::fmt::Display;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use muster_common::clock::Clock;
use muster_common::{Error, ErrorKind, Result};

const DELAY_MIN_MS: u64 = 100;
const DELAY_MAX_MS: u64 = 10_000;

/// How calls are tried again. Clones count together.
#[derive(Clone)]
pub(crate) struct Retry {
    attempts_max: u32,
    clock: Arc<dyn Clock>,
    retried: Arc<AtomicU64>,
}

impl Retry {
    /// At most `attempts_max` tries of each call.
    pub(crate) fn new(attempts_max: u32, clock: Arc<dyn Clock>) -> Self {
        Self { attempts_max, clock, retried: Arc::default() }
    }

    /// Errors that were tried again so far.
    pub(crate) fn retried(&self) -> u64 {
        self.retried.load(Ordering::Relaxed)
    }

    /// Makes a call until it succeeds, fails for good, or has been tried often enough; the error then names `place`.
    pub(crate) async fn call<T, F>(&self, place: &impl Display, mut call: impl FnMut() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let mut tries = 1;
        loop {
            let error = match call().await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            if error.kind != ErrorKind::Retry {
                return Err(error.at(place));
            }
            if tries >= self.attempts_max {
                let why = format!("{place}: {} (tried {tries} times, store.attempts_max)", error.message);
                return Err(Error::retry(why));
            }
            self.retried.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(%error, %place, tries, "waiting for the store");
            tokio::time::sleep(Duration::from_millis(delay_ms(tries, self.clock.random()))).await;
            tries += 1;
        }
    }
}

/// Doubles from [`DELAY_MIN_MS`] to [`DELAY_MAX_MS`]; the upper half of each is left to chance, so that a pool does not return in one wave.
pub(crate) fn delay_ms(tries: u32, random: u64) -> u64 {
    let ceiling = DELAY_MIN_MS.saturating_mul(1 << tries.saturating_sub(1).min(20)).min(DELAY_MAX_MS);
    ceiling / 2 + random % (ceiling / 2 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_common::clock::ManualClock;

    async fn check(kind: ErrorKind, fails: u32, expected_tries: u32, succeeds: bool) {
        let retry = Retry::new(3, Arc::new(ManualClock::default()));
        let mut tries = 0;
        let result = retry
            .call(&"place", || {
                tries += 1;
                let fail = tries <= fails;
                async move { if fail { Err(Error::new(kind, "no")) } else { Ok(()) } }
            })
            .await;
        assert_eq!((tries, result.is_ok()), (expected_tries, succeeds), "{kind:?}, {fails} failures");
        assert_eq!(retry.retried(), u64::from(expected_tries - 1));
    }

    #[tokio::test]
    async fn passing_trouble_is_tried_again_within_bounds() {
        check(ErrorKind::Retry, 0, 1, true).await;
        check(ErrorKind::Retry, 2, 3, true).await;
        check(ErrorKind::Retry, 3, 3, false).await;
        check(ErrorKind::Corrupt, 1, 1, false).await;
    }

    #[test]
    fn delays_grow_to_a_bound() {
        for (tries, ceiling) in [(1, 100), (2, 200), (8, 10_000), (40, 10_000)] {
            assert_eq!(delay_ms(tries, 0), ceiling / 2);
            assert!((0..50).all(|random| delay_ms(tries, random * 97) <= ceiling));
        }
    }
}
