//! Progress of a job: a bar on a terminal, plain lines elsewhere, nothing where it is not wanted. Everything goes to stderr.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use muster_common::api::{JobState, JobStatus};
use muster_common::clock::{Clock, SystemClock};

use crate::output;

/// Pause between plain lines of one phase.
const LINE_EVERY_MS: u64 = 5000;
/// Rates are averaged over about so long.
const RATE_WINDOW_MS: f64 = 3000.0;

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Show {
    /// As stderr allows.
    Auto,
    /// Not at all.
    Nothing,
}

/// Shows the progress of one job.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    lines: bool,
    clock: SystemClock,
    last_line_ms: Option<u64>,
    last_state: Option<JobState>,
    rate: Rate,
}

/// Bytes a second, smoothed.
#[derive(Debug, Default)]
struct Rate {
    at_ms: u64,
    bytes: u64,
    per_ms: f64,
}

impl Rate {
    fn observe(&mut self, now_ms: u64, bytes: u64) {
        let elapsed = now_ms.saturating_sub(self.at_ms) as f64;
        if bytes < self.bytes || self.at_ms == 0 {
            *self = Self { at_ms: now_ms, bytes, per_ms: 0.0 };
        } else if elapsed >= 100.0 {
            let seen = (bytes - self.bytes) as f64 / elapsed;
            let weight = if self.per_ms == 0.0 { 1.0 } else { (elapsed / RATE_WINDOW_MS).min(1.0) };
            *self = Self { at_ms: now_ms, bytes, per_ms: self.per_ms + weight * (seen - self.per_ms) };
        }
    }
}

impl Progress {
    pub(crate) fn new(show: Show) -> Self {
        let terminal = show == Show::Auto && std::io::stderr().is_terminal();
        let bar = terminal.then(|| {
            let bar = ProgressBar::new(0);
            let style = ProgressStyle::with_template("{prefix:>10} [{bar:30}] {msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        Self {
            lines: show == Show::Auto && !terminal,
            bar,
            clock: SystemClock::default(),
            last_line_ms: None,
            last_state: None,
            rate: Rate::default(),
        }
    }

    /// Shows where the job stands now.
    pub(crate) fn update(&mut self, status: &JobStatus) {
        let now_ms = self.clock.now_ms();
        if self.last_state != Some(status.state) {
            self.rate = Rate::default();
        }
        self.rate.observe(now_ms, status.bytes_done);
        if let Some(bar) = &self.bar {
            bar.set_prefix(status.state.to_string());
            bar.set_length(status.bytes_total.max(1));
            bar.set_position(status.bytes_done);
            bar.set_message(self.describe(status));
        }
        let due = self.last_line_ms.is_none_or(|at| now_ms >= at + LINE_EVERY_MS);
        if self.lines && (self.last_state != Some(status.state) || due) {
            output::error_line(&format!("{}: {}", status.state, self.describe(status)));
            self.last_line_ms = Some(now_ms);
        }
        self.last_state = Some(status.state);
    }

    /// Says something that is no progress, whatever else is shown: what is waited for.
    pub(crate) fn say(&self, text: &str) {
        let line = || output::error_line(&format!("muster: {}", output::plain(text)));
        match &self.bar {
            Some(bar) => bar.suspend(line),
            None => line(),
        }
    }

    /// Takes the bar away.
    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn describe(&self, status: &JobStatus) -> String {
        let mut parts = Vec::new();
        if status.bytes_total > 0 {
            parts.push(format!("{} of {}", output::bytes(status.bytes_done), output::bytes(status.bytes_total)));
        } else if status.input_bytes > 0 {
            parts.push(output::bytes(status.input_bytes));
        }
        if status.tasks_total > 0 {
            parts.push(format!("tasks {}/{}", status.tasks_done, status.tasks_total));
        }
        if self.rate.per_ms > 0.0 {
            parts.push(format!("{}/s", output::bytes((self.rate.per_ms * 1000.0) as u64)));
            let left_ms = status.bytes_total.saturating_sub(status.bytes_done) as f64 / self.rate.per_ms;
            parts.push(format!("{} left in this phase", output::seconds((left_ms as u64) / 1000 * 1000)));
        }
        parts.push(format!("workers {}", status.workers));
        if status.retries > 0 {
            parts.push(format!("retries {}", status.retries));
        }
        if let Some(what) = &status.waiting_for {
            parts.push(format!("waiting for {what}"));
        }
        parts.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_settle() {
        let mut rate = Rate::default();
        for n in 1..=50 {
            rate.observe(n * 200, n * 200_000);
        }
        assert!((rate.per_ms - 1000.0).abs() < 1.0, "{}", rate.per_ms);
        rate.observe(11_000, 0);
        assert_eq!(rate.per_ms, 0.0, "a new phase begins anew");
    }
}
