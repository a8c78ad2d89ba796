//! Progress of a job: one line that changes on a terminal, plain lines elsewhere, nothing where it
//! is not wanted. Everything goes to stderr.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};
use muster_platform::clock::{Clock, SystemClock};
use muster_protocol::api::{JobState, JobStatus};

use crate::output;
use crate::pace::{self, Pace, Speed};

/// Pause between plain lines of one phase.
const LINE_EVERY_MS: u64 = 5000;
/// Columns of a terminal that does not tell.
const COLUMNS: usize = 80;
/// Columns from which on a bar is drawn, and its own.
const BAR_FROM_COLUMNS: usize = 60;
const BAR_COLUMNS: usize = 20;

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
    last: Option<JobStatus>,
    pace: Pace,
    /// How many of the job's warnings have been said.
    pub(crate) warned: usize,
}

impl Progress {
    pub(crate) fn new(show: Show) -> Self {
        let terminal = show == Show::Auto && std::io::stderr().is_terminal();
        let bar = terminal.then(|| {
            let bar = ProgressBar::no_length();
            bar.set_style(
                ProgressStyle::with_template("{msg}")
                    .unwrap_or_else(|_| ProgressStyle::default_bar()),
            );
            bar
        });
        Self {
            lines: show == Show::Auto && !terminal,
            bar,
            clock: SystemClock::default(),
            last_line_ms: None,
            last: None,
            pace: Pace::default(),
            warned: 0,
        }
    }

    /// Whether anything is said before the end.
    pub(crate) fn is_shown(&self) -> bool {
        self.lines || self.bar.is_some()
    }

    /// Shows where the job stands now.
    pub(crate) fn update(&mut self, status: &JobStatus) {
        let now_ms = self.clock.now_ms();
        self.pace.observe(now_ms, status);
        let speed = self.pace.speed(now_ms);
        if let Some(bar) = &self.bar {
            bar.set_message(frame(status, speed, columns()));
        }
        let changed = self.last.as_ref().is_none_or(|last| last.state != status.state);
        let due = self.last_line_ms.is_none_or(|at| now_ms >= at + LINE_EVERY_MS);
        if self.lines && (changed || due) {
            output::error_line(&format!("{}: {}", status.state, items(status, speed).join(", ")));
            self.last_line_ms = Some(now_ms);
        }
        self.last = Some(status.clone());
    }

    /// Says something that is no progress, whatever else is shown: what is waited for.
    pub(crate) fn say(&self, text: &str) {
        let line = || output::error_line(&format!("muster: {}", output::plain(text)));
        match &self.bar {
            Some(bar) => bar.suspend(line),
            None => line(),
        }
    }

    /// Nobody says where the job stands: it is shown as it was, and as waiting.
    pub(crate) fn silent(&mut self) {
        if let Some(mut status) = self.last.clone() {
            status.waiting_for = Some("coordinator".to_owned());
            self.update(&status);
        }
    }

    /// Leaves the last frame, whole, and the cursor below it.
    pub(crate) fn finish(&self) {
        match &self.bar {
            Some(bar) if self.last.is_some() => bar.abandon(),
            Some(bar) => bar.finish_and_clear(),
            None => {}
        }
    }
}

/// Columns of the terminal that stderr is. The last one stays free, for some terminals wrap a line
/// that fills it.
fn columns() -> usize {
    let size = rustix::termios::tcgetwinsize(std::io::stderr());
    size.map_or(COLUMNS, |size| usize::from(size.ws_col)).max(2) - 1
}

/// One line of at most `columns` characters: what does not fit is left out, the least important
/// first.
fn frame(status: &JobStatus, speed: Speed, columns: usize) -> String {
    let mut line = status.state.to_string();
    let share = share(status);
    if let Some(share) = share.filter(|_| columns >= BAR_FROM_COLUMNS) {
        let done = (share * BAR_COLUMNS as f64) as usize;
        let head = if done < BAR_COLUMNS { ">" } else { "" };
        line = format!("{line:<10} [{:<BAR_COLUMNS$}]", "=".repeat(done) + head);
    }
    for (number, item) in items(status, speed).iter().enumerate() {
        let separator = if number == 0 { " " } else { ", " };
        if line.chars().count() + separator.len() + item.chars().count() > columns {
            break;
        }
        line.push_str(separator);
        line.push_str(item);
    }
    if line.chars().count() > columns { line.chars().take(columns).collect() } else { line }
}

/// How much of the phase at hand is done, where that can be said.
fn share(status: &JobStatus) -> Option<f64> {
    match status.state {
        JobState::Succeeded => Some(1.0),
        _ if status.bytes_total > 0 => {
            Some(status.bytes_done.min(status.bytes_total) as f64 / status.bytes_total as f64)
        }
        _ => None,
    }
}

/// What there is to say, the most important first.
fn items(status: &JobStatus, speed: Speed) -> Vec<String> {
    let mut items = Vec::new();
    let over = status.state.is_terminal();
    if let Some(share) = share(status) {
        items.push(format!("{:.0}%", (share * 100.0).floor()));
    }
    match (&status.waiting_for, speed) {
        (Some(what), _) => items.push(format!("waiting for {what}")),
        _ if over || status.bytes_total == 0 => {}
        (None, Speed::Moving(per_s)) => items.push(format!("{}/s", output::bytes(per_s as u64))),
        (None, Speed::Stalled(idle_ms)) => {
            let idle = if idle_ms < 120_000 {
                format!("{} s", idle_ms / 1000)
            } else {
                format!("{} min", idle_ms / 60_000)
            };
            items.push(format!("stalled for {idle}"));
        }
        (None, Speed::Unknown) => {}
    }
    if let Some(left_ms) = pace::left_ms(status, speed).filter(|_| status.waiting_for.is_none()) {
        items.push(format!("{} left", pace::about(left_ms)));
    }
    if !over && status.bytes_total > 0 {
        items.push(format!(
            "{} of {}",
            output::bytes(status.bytes_done),
            output::bytes(status.bytes_total)
        ));
    } else if status.input_bytes > 0 {
        items.push(format!("{} of input", output::bytes(status.input_bytes)));
    }
    if status.tasks_total > 0 && !over {
        items.push(format!("tasks {}/{}", status.tasks_done, status.tasks_total));
    }
    if !over {
        items.push(format!("workers {}", status.workers));
    }
    if status.retries > 0 {
        items.push(format!("retries {}", status.retries));
    }
    items
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pace::tests::status;

    fn check(status: &JobStatus, speed: Speed, columns: usize, expect: &str) {
        let frame = frame(status, speed, columns);
        assert_eq!(frame, expect, "{columns} columns");
        assert!(frame.chars().count() <= columns, "{columns} columns: {frame}");
    }

    #[test]
    fn a_frame_fits_the_terminal() {
        let (half, moving) = (status(JobState::Sorting, 500_000_000), Speed::Moving(50e6));
        let all = "sorting    [==========>         ] 50%, 50.0 MB/s, about 30 s left, 500 MB of \
            1.00 GB, tasks 1/3, workers 2";
        check(&half, moving, 199, all);
        check(
            &half,
            moving,
            79,
            "sorting    [==========>         ] 50%, 50.0 MB/s, about 30 s left",
        );
        check(&half, moving, 40, "sorting 50%, 50.0 MB/s, about 30 s left");
        check(&half, moving, 19, "sorting 50%");
        check(&half, moving, 5, "sorti");
    }

    #[test]
    fn what_is_not_known_is_not_said() {
        check(
            &status(JobState::Sorting, 0),
            Speed::Unknown,
            50,
            "sorting 0%, 0 B of 1.00 GB, tasks 1/3, workers 2",
        );
        let stalled = status(JobState::Merging, 999_999_999);
        check(
            &stalled,
            Speed::Stalled(42_900),
            50,
            "merging 99%, stalled for 42 s, 1.00 GB of 1.00 GB",
        );
        let waiting = JobStatus { waiting_for: Some("store: away".to_owned()), ..stalled };
        check(&waiting, Speed::Moving(1e6), 40, "merging 99%, waiting for store: away");
        let sampling = JobStatus { bytes_total: 0, ..status(JobState::Sampling, 0) };
        check(
            &sampling,
            Speed::Stalled(60_000),
            60,
            "sampling 1.00 GB of input, tasks 1/3, workers 2",
        );
        let ended = JobStatus { bytes_total: 0, tasks_total: 0, ..status(JobState::Succeeded, 0) };
        check(
            &ended,
            Speed::Unknown,
            80,
            "succeeded  [====================] 100%, 1.00 GB of input",
        );
    }
}
