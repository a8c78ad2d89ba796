//! Time and randomness as ports. The rest of the program takes them as values, so that tests and
//! simulation can put their own in place.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Ends after a pause.
pub type Pause = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Where time and random numbers come from.
pub trait Clock: Send + Sync + 'static {
    /// Milliseconds on a clock that never goes back; its zero means nothing.
    fn now_ms(&self) -> u64;
    /// Milliseconds since the Unix epoch, for people and records; no decision depends on it.
    fn unix_ms(&self) -> u64;
    /// A fresh random number.
    fn random(&self) -> u64;
    /// A pause on the same clock: tokio's timer, where an implementation has none of its own.
    fn pause(&self, ms: u64) -> Pause {
        Box::pin(tokio::time::sleep(Duration::from_millis(ms)))
    }
}

/// What comes of something within so many milliseconds of a clock; nothing where it takes longer.
pub async fn within<T>(
    clock: &dyn Clock,
    bound_ms: u64,
    something: impl Future<Output = T>,
) -> Option<T> {
    let something = std::pin::pin!(something);
    match futures::future::select(something, clock.pause(bound_ms)).await {
        futures::future::Either::Left((came, _)) => Some(came),
        futures::future::Either::Right(_) => None,
    }
}

/// The machine's own clock and generator.
#[derive(Debug)]
pub struct SystemClock {
    start: std::time::Instant,
}

impl Default for SystemClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the adapter that everyone else uses instead"
    )]
    fn default() -> Self {
        Self { start: std::time::Instant::now() }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "this is the adapter that everyone else uses instead"
)]
impl Clock for SystemClock {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn unix_ms(&self) -> u64 {
        let since =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    fn random(&self) -> u64 {
        rand::random()
    }
}

/// A clock that stands still until it is moved, and numbers that are random no more.
#[derive(Debug, Default)]
pub struct ManualClock {
    now_ms: AtomicU64,
    drawn: AtomicU64,
}

impl ManualClock {
    /// Moves the clock forward.
    pub fn advance_ms(&self, by_ms: u64) {
        self.now_ms.fetch_add(by_ms, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now_ms(&self) -> u64 {
        self.now_ms.load(Ordering::SeqCst)
    }

    fn unix_ms(&self) -> u64 {
        1_700_000_000_000 + self.now_ms()
    }

    fn random(&self) -> u64 {
        // SplitMix64 over a counter: distinct, well spread, the same in every run.
        let mut z = self
            .drawn
            .fetch_add(1, Ordering::SeqCst)
            .wrapping_add(1)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
