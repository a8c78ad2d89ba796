//! Outcomes within a sliding window of time, in ten buckets: bounded memory, whatever comes in.

const BUCKETS: usize = 10;

/// Counts what ended and what of it failed within the last `window_ms`. The oldest tenth leaves at
/// once, so between nine and ten tenths of the window are counted.
#[derive(Debug, Clone)]
pub struct Sliding {
    bucket_ms: u64,
    /// Number of the newest bucket: its time divided by `bucket_ms`.
    newest: u64,
    buckets: [Totals; BUCKETS],
}

/// What a window holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// What ended, failures included.
    pub ended: u32,
    /// What failed.
    pub failed: u32,
}

impl Totals {
    /// Failures in percent of what ended, rounded down; 0 where nothing ended.
    pub fn failed_percent(&self) -> u32 {
        let percent = u64::from(self.failed) * 100 / u64::from(self.ended.max(1));
        u32::try_from(percent).unwrap_or(100).min(100)
    }
}

impl Sliding {
    /// An empty window of this width.
    pub fn new(window_ms: u64) -> Self {
        Self {
            bucket_ms: (window_ms / BUCKETS as u64).max(1),
            newest: 0,
            buckets: [Totals::default(); BUCKETS],
        }
    }

    /// Counts so many outcomes. What claims to be older than the newest counts with the newest.
    pub fn record(&mut self, now_ms: u64, succeeded: u32, failed: u32) {
        let number = now_ms / self.bucket_ms;
        if number > self.newest {
            let gone = (number - self.newest).min(BUCKETS as u64);
            for past in 0..gone {
                self.buckets[slot(number - past)] = Totals::default();
            }
            self.newest = number;
        }
        let bucket = &mut self.buckets[slot(self.newest)];
        bucket.ended = bucket.ended.saturating_add(succeeded).saturating_add(failed);
        bucket.failed = bucket.failed.saturating_add(failed);
    }

    /// What the window holds now.
    pub fn totals(&self, now_ms: u64) -> Totals {
        let number = (now_ms / self.bucket_ms).max(self.newest);
        let oldest = (number + 1).saturating_sub(BUCKETS as u64);
        (oldest..=self.newest).fold(Totals::default(), |sum, number| {
            let bucket = self.buckets[slot(number)];
            Totals {
                ended: sum.ended.saturating_add(bucket.ended),
                failed: sum.failed.saturating_add(bucket.failed),
            }
        })
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.buckets = [Totals::default(); BUCKETS];
    }
}

fn slot(number: u64) -> usize {
    usize::try_from(number % BUCKETS as u64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_older_than_the_window_leaves_it() {
        let mut window = Sliding::new(1000);
        window.record(50, 3, 1);
        window.record(950, 0, 2);
        assert_eq!(window.totals(999), Totals { ended: 6, failed: 3 });
        assert_eq!(window.totals(1000), Totals { ended: 2, failed: 2 });
        assert_eq!(window.totals(1900), Totals::default());
        window.record(5000, 1, 0);
        assert_eq!(window.totals(5000), Totals { ended: 1, failed: 0 });
    }

    #[test]
    fn percent_of_nothing_is_nothing() {
        assert_eq!(Totals::default().failed_percent(), 0);
        assert_eq!(Totals { ended: 3, failed: 2 }.failed_percent(), 66);
        assert_eq!(Totals { ended: u32::MAX, failed: u32::MAX }.failed_percent(), 100);
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        /// Compared with a list of everything: at least the last nine tenths count, at most the
        /// whole window.
        #[test]
        fn counts_lie_between_nine_and_ten_tenths(
            steps in vec((0u64..400, any::<bool>()), 1..200),
            later in 0u64..1500,
        ) {
            let mut window = Sliding::new(1000);
            let (mut now, mut all) = (0, Vec::new());
            for (step, failed) in steps {
                now += step;
                window.record(now, u32::from(!failed), u32::from(failed));
                all.push((now, failed));
            }
            now += later;
            let count = |width: u64| {
                u32::try_from(all.iter().filter(|(at, _)| at + width > now).count()).unwrap()
            };
            let totals = window.totals(now);
            prop_assert!((count(900)..=count(1000)).contains(&totals.ended), "{totals:?}");
            prop_assert!(totals.failed <= totals.ended);
        }
    }
}
