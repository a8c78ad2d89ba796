//! How fast a job gets on, and how long it may still take: pure, out of what was seen over the last
//! ten seconds.

use std::collections::VecDeque;

use muster_protocol::api::{JobState, JobStatus};

/// Rates are of about so long.
const WINDOW_MS: u64 = 10_000;
/// Of less no rate is told.
const SETTLED_MS: u64 = 3_000;
/// Without a byte for so long, nothing moves.
const STALLED_MS: u64 = 10_000;
/// A sight so soon after the last one takes its place.
const SIGHTS_APART_MS: u64 = 100;
/// Beyond this an estimate is no help.
const ESTIMATE_MAX_MS: u64 = 30 * 24 * 3_600_000;

/// What the last seconds say.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Speed {
    /// Nothing yet.
    Unknown,
    /// Bytes a second.
    Moving(f64),
    /// Nothing has moved for so many milliseconds.
    Stalled(u64),
}

/// The bytes of one phase over time.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    phase: Option<JobState>,
    /// When, and how many bytes were done by then; the first may be older than the window.
    sights: VecDeque<(u64, u64)>,
    moved_ms: u64,
}

impl Pace {
    /// Takes a look at a job. A new phase begins anew, and so does one that has lost what was done.
    pub(crate) fn observe(&mut self, now_ms: u64, status: &JobStatus) {
        let bytes = status.bytes_done;
        let last = self.sights.back().map(|(_, bytes)| *bytes);
        if self.phase != Some(status.state) || last.is_some_and(|last| bytes < last) {
            *self = Self { phase: Some(status.state), sights: VecDeque::new(), moved_ms: now_ms };
        } else if last.is_none_or(|last| bytes > last) {
            self.moved_ms = now_ms;
        }
        if self.sights.len() > 1
            && self
                .sights
                .back()
                .is_some_and(|(at, _)| now_ms.saturating_sub(*at) < SIGHTS_APART_MS)
        {
            self.sights.pop_back();
        }
        self.sights.push_back((now_ms, bytes));
        while self.sights.get(1).is_some_and(|(at, _)| now_ms.saturating_sub(*at) >= WINDOW_MS) {
            self.sights.pop_front();
        }
    }

    pub(crate) fn speed(&self, now_ms: u64) -> Speed {
        let idle_ms = now_ms.saturating_sub(self.moved_ms);
        let (Some(first), Some(last)) = (self.sights.front(), self.sights.back()) else {
            return Speed::Unknown;
        };
        if idle_ms >= STALLED_MS {
            return Speed::Stalled(idle_ms);
        }
        let (span_ms, bytes) = (now_ms.saturating_sub(first.0), last.1 - first.1);
        if span_ms < SETTLED_MS || bytes == 0 {
            Speed::Unknown
        } else {
            Speed::Moving(bytes as f64 * 1000.0 / span_ms as f64)
        }
    }
}

/// How long the whole job may still take at this speed: what is sorted is merged once more, about
/// as fast. None where that cannot be said.
pub(crate) fn left_ms(status: &JobStatus, speed: Speed) -> Option<u64> {
    let Speed::Moving(per_s) = speed else { return None };
    let in_phase = status.bytes_total.saturating_sub(status.bytes_done);
    let bytes = match status.state {
        JobState::Sorting => in_phase.saturating_add(status.input_bytes),
        JobState::Merging => in_phase,
        _ => return None,
    };
    let left_ms = bytes as f64 * 1000.0 / per_s;
    (bytes > 0 && left_ms < ESTIMATE_MAX_MS as f64).then_some(left_ms as u64)
}

/// `about 35 s`: no more precise than an estimate is.
pub(crate) fn about(millis: u64) -> String {
    let seconds = millis.div_ceil(1000);
    let (minutes, hours) = (seconds.div_ceil(60), seconds.div_ceil(3600));
    match seconds {
        0..=9 => "a few seconds".to_owned(),
        10..=55 => format!("about {} s", seconds.next_multiple_of(5)),
        56..=600 => format!("about {minutes} min"),
        601..=5400 => format!("about {} min", minutes.next_multiple_of(5)),
        5401..=172_800 => format!("about {hours} h"),
        _ => format!("about {} days", hours.div_ceil(24)),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A job that sorts a GB.
    pub(crate) fn status(state: JobState, bytes_done: u64) -> JobStatus {
        let json = serde_json::json!({
            "job": "j1", "state": state, "phase": "Sort", "tasks_done": 1, "tasks_total": 3,
            "bytes_done": bytes_done, "bytes_total": 1_000_000_000, "input_bytes": 1_000_000_000,
            "workers": 2, "attempts_running": 2, "retries": 0, "repeated_tasks": 0,
            "waiting_for": null, "error": null, "output": "file:///out", "parts": 4,
            "sums": null, "dropped": null,
            "times": { "plan_ms": 0, "sample_ms": 0, "sort_ms": 0, "merge_ms": 0, "commit_ms": 0 },
            "cleaned": false, "submitted_unix_ms": 0
        });
        serde_json::from_value(json).expect("a status")
    }

    /// What is said after these sights: seconds, and MB done by then.
    fn check(sights: &[(u64, u64)], now_s: u64, expect: Speed) {
        let mut pace = Pace::default();
        for (at_s, mb) in sights {
            pace.observe(at_s * 1000, &status(JobState::Sorting, mb * 1_000_000));
        }
        assert_eq!(pace.speed(now_s * 1000), expect, "{sights:?} at {now_s} s");
    }

    #[test]
    fn rates_are_of_the_last_ten_seconds() {
        let mb = |rate: f64| Speed::Moving(rate * 1e6);
        check(&[], 5, Speed::Unknown);
        check(&[(0, 0), (1, 50), (2, 100)], 2, Speed::Unknown);
        check(&[(0, 0), (1, 50), (2, 100), (4, 200)], 4, mb(50.0));
        check(&[(0, 0), (10, 10), (20, 20), (30, 520)], 30, mb(50.0));
        check(&[(0, 0), (4, 200)], 8, mb(25.0));
        check(&[(0, 0), (4, 0), (8, 0)], 9, Speed::Unknown);
        // The first bytes of a phase say nothing of the rest ("348 B/s, 6 days").
        check(&[(100, 0), (101, 1)], 102, Speed::Unknown);
    }

    #[test]
    fn what_does_not_move_is_stalled_and_what_was_lost_begins_anew() {
        check(&[(0, 0), (4, 200), (8, 200), (14, 200)], 14, Speed::Stalled(10_000));
        check(&[(0, 0), (4, 200), (13, 200)], 34, Speed::Stalled(30_000));
        check(&[(0, 0), (10, 0)], 10, Speed::Stalled(10_000));
        check(&[(0, 0), (10, 0), (11, 100)], 12, Speed::Moving(100e6 / 12.0));
        check(&[(0, 0), (4, 200), (5, 100)], 6, Speed::Unknown);
        check(&[(0, 0), (4, 200), (5, 100), (9, 300)], 9, Speed::Moving(50e6));
        let mut pace = Pace::default();
        pace.observe(0, &status(JobState::Sorting, 0));
        pace.observe(20_000, &status(JobState::Merging, 0));
        assert_eq!(pace.speed(20_000), Speed::Unknown, "a new phase has not stalled");
    }

    #[test]
    fn many_sights_are_as_good_as_few() {
        let mut pace = Pace::default();
        for n in 0..100_000_u64 {
            pace.observe(n, &status(JobState::Sorting, n * 1000));
        }
        assert!(pace.sights.len() <= 102, "{}", pace.sights.len());
        let Speed::Moving(rate) = pace.speed(99_999) else { panic!("it moves") };
        assert!((rate - 1e6).abs() < 2e4, "{rate}");
    }

    #[test]
    fn an_estimate_is_of_the_whole_job_or_none() {
        let left = |state, mb: u64, speed| left_ms(&status(state, mb * 1_000_000), speed);
        let moving = Speed::Moving(50e6);
        assert_eq!(
            left(JobState::Sorting, 500, moving),
            Some(30_000),
            "half a GB to sort, a GB to merge"
        );
        assert_eq!(left(JobState::Merging, 500, moving), Some(10_000));
        assert_eq!(left(JobState::Merging, 1000, moving), None, "not 0 s, for it has not ended");
        assert_eq!(left(JobState::Merging, 500, Speed::Unknown), None);
        assert_eq!(left(JobState::Merging, 500, Speed::Stalled(60_000)), None);
        assert_eq!(left(JobState::Sampling, 500, moving), None);
        assert_eq!(left(JobState::Sorting, 0, Speed::Moving(1.0)), None, "not 63 years");
    }

    #[test]
    fn an_estimate_is_no_more_precise_than_it_can_be() {
        for (seconds, expected) in [
            (0, "a few seconds"),
            (9, "a few seconds"),
            (11, "about 15 s"),
            (55, "about 55 s"),
            (57, "about 1 min"),
            (61, "about 2 min"),
            (600, "about 10 min"),
            (2000, "about 35 min"),
            (5400, "about 90 min"),
            (5401, "about 2 h"),
            (172_800, "about 48 h"),
            (172_801, "about 3 days"),
        ] {
            assert_eq!(about(seconds * 1000), expected, "{seconds} s");
        }
    }
}
