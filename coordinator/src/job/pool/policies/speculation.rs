//! Stragglers: which running attempts deserve a second one elsewhere, which hang, and how fast a
//! worker is beside the others.
//!
//! Rates are compared, not durations: tasks of one phase differ in size, and a rate counts for
//! those that still run, too. A second attempt is worthwhile where the first is expected to need
//! much longer from now on than a fresh one would from its start. The first commit wins, whichever
//! it is.

use muster_platform::config::Speculation as Settings;

/// Finished attempts of a phase whose rates are remembered: the last ones.
const FINISHED_MAX: usize = 512;
/// Attempts of a worker after which its speed is believed.
const SPEED_SAMPLES_MIN: u32 = 3;
/// A single attempt says at most so much about a worker, in percent of the median.
const SPEED_PERCENT_MAX: u64 = 1000;

/// How far a running attempt is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Running {
    /// Since it was given out, in milliseconds.
    pub elapsed_ms: u64,
    /// Since its progress last grew, in milliseconds.
    pub idle_ms: u64,
    /// Of its input, in bytes.
    pub bytes_done: u64,
    /// Its whole input, in bytes.
    pub bytes_total: u64,
}

impl Running {
    /// Its rate so far, in bytes a second.
    pub fn rate(&self) -> u64 {
        rate(self.bytes_done, self.elapsed_ms)
    }

    /// Whether it hangs: no progress for `hang_ms`. Where everybody waits for the store this is
    /// nobody's fault; whoever asks must know that.
    pub fn hangs(&self, settings: &Settings) -> bool {
        self.idle_ms >= settings.hang_ms
    }
}

/// Bytes a second, rounded down.
pub fn rate(bytes: u64, elapsed_ms: u64) -> u64 {
    let rate = u128::from(bytes) * 1000 / u128::from(elapsed_ms.max(1));
    u64::try_from(rate).unwrap_or(u64::MAX)
}

/// Rates of the finished attempts of one phase of one job.
#[derive(Debug, Clone, Default)]
pub struct Rates {
    finished: Vec<u64>,
    oldest: usize,
    done: u32,
}

/// What is usual in a phase now: quantiles of the rates of finished and running attempts, in bytes
/// a second; never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// A tenth is slower.
    pub slow: u64,
    /// Half is slower.
    pub median: u64,
    /// Nine tenths are slower.
    pub fast: u64,
}

/// What is thought of a running attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It has not run for `runtime_min_ms`.
    TooEarly,
    /// It will end about as soon as a fresh one would, or sooner.
    OnPace,
    /// A second attempt is worthwhile.
    Straggler {
        /// What it is expected to need from now on, in milliseconds; `u64::MAX` where it stands
        /// still.
        remaining_ms: u64,
        /// What a fresh attempt would need, in milliseconds.
        fresh_ms: u64,
    },
}

impl Rates {
    /// An attempt finished its task: bytes of input, and how long it took.
    pub fn finished(&mut self, bytes: u64, elapsed_ms: u64) {
        let rate = rate(bytes, elapsed_ms);
        self.done = self.done.saturating_add(1);
        if self.finished.len() < FINISHED_MAX {
            self.finished.push(rate);
        } else {
            self.finished[self.oldest] = rate;
            self.oldest = (self.oldest + 1) % FINISHED_MAX;
        }
    }

    /// What is usual, or nothing until `done_percent` of the phase's tasks, or `samples_min` of
    /// them, are done (and one at least). Of the running attempts only those of `runtime_min_ms`
    /// count: the others say more about starting than about speed.
    pub fn pace(
        &self,
        settings: &Settings,
        tasks: u32,
        running: impl IntoIterator<Item = Running>,
    ) -> Option<Pace> {
        let share_done =
            u64::from(self.done) * 100 >= u64::from(tasks) * u64::from(settings.done_percent);
        if self.finished.is_empty() || !(share_done || self.done >= settings.samples_min) {
            return None;
        }
        let old = running
            .into_iter()
            .filter(|running| running.elapsed_ms >= settings.runtime_min_ms.max(1));
        let mut rates: Vec<u64> =
            self.finished.iter().copied().chain(old.map(|running| running.rate())).collect();
        rates.sort_unstable();
        let quantile = |tenths: usize| rates[(rates.len() - 1) * tenths / 10].max(1);
        Some(Pace { slow: quantile(1), median: quantile(5), fast: quantile(9) })
    }
}

impl Pace {
    /// What a fresh attempt would take at the median rate, in milliseconds; at least 1.
    pub fn fresh_ms(&self, bytes_total: u64) -> u64 {
        let fresh_ms = u128::from(bytes_total) * 1000 / u128::from(self.median.max(1));
        u64::try_from(fresh_ms).unwrap_or(u64::MAX).max(1)
    }

    /// Whether a second attempt is worthwhile.
    pub fn judge(&self, settings: &Settings, running: &Running) -> Verdict {
        if running.elapsed_ms < settings.runtime_min_ms {
            return Verdict::TooEarly;
        }
        let fresh_ms = self.fresh_ms(running.bytes_total);
        let bound_ms = u128::from(fresh_ms) * u128::from(settings.factor_percent) / 100;
        let bound_ms = u64::try_from(bound_ms).unwrap_or(u64::MAX);
        // One that stands still for as long as a fresh one would take is not saved by what it did
        // before; this includes one that never began, and one that does not end.
        let stands_still = running.idle_ms > bound_ms.max(settings.runtime_min_ms);
        let remaining_ms = match running.bytes_done {
            _ if stands_still => u64::MAX,
            0 => 0,
            done => {
                let left = running.bytes_total.saturating_sub(done);
                let remaining_ms =
                    u128::from(running.elapsed_ms) * u128::from(left) / u128::from(done);
                u64::try_from(remaining_ms).unwrap_or(u64::MAX)
            }
        };
        if remaining_ms > bound_ms {
            Verdict::Straggler { remaining_ms, fresh_ms }
        } else {
            Verdict::OnPace
        }
    }

    /// The attempts that should get a second one now, the slowest first (equal ones as they came):
    /// those that [`Pace::judge`] calls stragglers, within what `speculating` ones leave of
    /// [`slots_allowed`]. The caller leaves out what already has a second attempt, and gives out no
    /// more than there is room.
    pub fn choose<T>(
        &self,
        settings: &Settings,
        slots: u32,
        speculating: u32,
        candidates: impl IntoIterator<Item = (T, Running)>,
    ) -> Vec<T> {
        let allowed = slots_allowed(settings, slots).saturating_sub(speculating);
        if allowed == 0 {
            return Vec::new();
        }
        let judged = candidates.into_iter().filter_map(|(which, running)| {
            match self.judge(settings, &running) {
                Verdict::Straggler { remaining_ms, .. } => Some((remaining_ms, which)),
                Verdict::TooEarly | Verdict::OnPace => None,
            }
        });
        let mut stragglers: Vec<(u64, T)> = judged.collect();
        stragglers.sort_by_key(|(remaining_ms, _)| std::cmp::Reverse(*remaining_ms));
        stragglers
            .into_iter()
            .take(usize::try_from(allowed).unwrap_or(usize::MAX))
            .map(|(_, which)| which)
            .collect()
    }
}

/// Slots of a pool of so many that second attempts may hold: `slots_percent`, and one at least;
/// none where that is 0.
pub fn slots_allowed(settings: &Settings, slots: u32) -> u32 {
    if settings.slots_percent == 0 || slots == 0 {
        return 0;
    }
    let share = u64::from(slots) * u64::from(settings.slots_percent) / 100;
    u32::try_from(share).unwrap_or(slots).clamp(1, slots)
}

/// How fast a worker is beside the median of the phases that it worked in, in percent: a moving
/// average, in which the last attempt weighs a quarter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Speed {
    percent: Option<u32>,
    samples: u32,
}

impl Speed {
    /// An attempt of it ended, or runs for long enough to say something: its rate, and the median
    /// of its phase.
    pub fn observe(&mut self, rate: u64, median: u64) {
        let ratio = u128::from(rate) * 100 / u128::from(median.max(1));
        let ratio = u64::try_from(ratio).unwrap_or(u64::MAX).clamp(1, SPEED_PERCENT_MAX);
        let mixed =
            self.percent.map_or(ratio, |percent| (3 * u64::from(percent) + ratio) / 4).max(1);
        self.percent = u32::try_from(mixed).ok();
        self.samples = self.samples.saturating_add(1);
    }

    /// In percent of the median, once three attempts said something; 100 until then.
    pub fn percent(&self) -> u32 {
        self.percent.filter(|_| self.samples >= SPEED_SAMPLES_MIN).unwrap_or(100)
    }

    /// Whether it is slow: below `slow_percent`.
    pub fn is_slow(&self, settings: &Settings) -> bool {
        self.percent() < settings.slow_percent
    }

    /// How many of its slots should be used: all, or where it is slow a share like its speed, and
    /// one at least.
    pub fn slots(&self, settings: &Settings, slots: u32) -> u32 {
        if !self.is_slow(settings) || slots == 0 {
            return slots;
        }
        let share = (u64::from(slots) * u64::from(self.percent())).div_ceil(100);
        u32::try_from(share).unwrap_or(slots).clamp(1, slots)
    }
}

#[cfg(test)]
#[path = "speculation_tests.rs"]
mod tests;
