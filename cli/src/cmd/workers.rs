//! `muster workers` and `muster drain`.

use muster_protocol::api::WorkerStatus;
use muster_protocol::ids::{InvalidId, WorkerId};
use muster_protocol::wire::Mended;
use serde::Serialize;

use crate::args::{ClientArgs, DrainArgs};
use crate::cmd;
use crate::cmd::jobs::calling;
use crate::exit::Exit;
use crate::output;

/// How many workers are in which state.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Shares {
    pub(crate) total: usize,
    pub(crate) healthy: usize,
    pub(crate) degraded: usize,
    pub(crate) failed: usize,
    pub(crate) draining: usize,
    /// Healthy ones of all, in percent, rounded down; likewise the next two.
    healthy_percent: usize,
    degraded_percent: usize,
    failed_percent: usize,
}

impl Shares {
    pub(crate) fn of(workers: &[WorkerStatus]) -> Self {
        let count = |state: &str| workers.iter().filter(|worker| worker.state == state).count();
        let total = workers
            .iter()
            .filter(|worker| !matches!(worker.state.as_str(), "drained" | "left"))
            .count();
        let percent = |count: usize| (count * 100).checked_div(total).unwrap_or(0);
        let (healthy, degraded, failed) = (count("healthy"), count("degraded"), count("failed"));
        Self {
            total,
            healthy,
            degraded,
            failed,
            draining: count("draining"),
            healthy_percent: percent(healthy),
            degraded_percent: percent(degraded),
            failed_percent: percent(failed),
        }
    }
}

impl std::fmt::Display for Shares {
    /// `4 workers: 3 healthy (75 %), 1 degraded (25 %), 0 failed (0 %)`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { total, healthy, degraded, failed, draining, .. } = self;
        write!(
            f,
            "{total} workers: {healthy} healthy ({} %), {degraded} degraded ({} %), {failed} \
                failed ({} %)",
            self.healthy_percent, self.degraded_percent, self.failed_percent
        )?;
        if *draining > 0 { write!(f, ", {draining} draining") } else { Ok(()) }
    }
}

/// Lists workers.
pub(crate) async fn workers(args: ClientArgs) -> Result<(), Exit> {
    let workers = cmd::api_of(&args).await?.workers().await.map_err(calling)?;
    if args.json {
        output::json(&workers);
        return Ok(());
    }
    output::line(&row(&COLUMNS.map(str::to_owned), "HOST"));
    for worker in &workers {
        output::line(&line(worker));
    }
    output::line(&Shares::of(&workers).to_string());
    Ok(())
}

const COLUMNS: [&str; 11] = [
    "WORKER",
    "STATE",
    "TASKS",
    "DONE",
    "CPU",
    "USED",
    "MEMORY",
    "DISK FREE",
    "RATE",
    "ERRORS",
    "HEARD",
];
const WIDTHS: [usize; 11] = [24, 9, 7, 6, 6, 9, 9, 16, 10, 6, 9];

/// The first two columns to the left, figures to the right, and what has no width at the end.
fn row(cells: &[String; 11], rest: &str) -> String {
    let mut text = String::new();
    for (at, (cell, width)) in cells.iter().zip(WIDTHS).enumerate() {
        let cell = if at < 2 { format!("{cell:<width$} ") } else { format!("{cell:>width$} ") };
        text.push_str(&cell);
    }
    text.push(' ');
    text.push_str(rest);
    text
}

fn line(worker: &WorkerStatus) -> String {
    let disk = match (worker.disk_free_bytes, worker.disk_total_bytes) {
        (_, 0) => "-".to_owned(),
        (free, total) => {
            format!("{} ({} %)", output::bytes(free), u128::from(free) * 100 / u128::from(total))
        }
    };
    let rate = if worker.bytes_per_s == 0 {
        "-".to_owned()
    } else {
        output::rate(worker.bytes_per_s, 1000)
    };
    let cells = [
        worker.id.to_string(),
        output::plain(&worker.state),
        format!("{}/{}", worker.running, worker.slots),
        worker.tasks_done.to_string(),
        format!("{} %", worker.cpu_permille / 10),
        output::bytes(worker.rss_bytes),
        output::bytes(worker.memory_bytes),
        disk,
        rate,
        worker.errors_5min.to_string(),
        output::seconds(worker.last_heard_ms),
    ];
    let labels: Vec<String> = worker
        .labels
        .iter()
        .map(|(key, value)| output::plain(&format!(" {key}={value}")))
        .collect();
    let waiting =
        worker.waiting_for.as_ref().map(|what| format!(" (waiting for {})", output::plain(what)));
    let cause = worker.cause.as_ref().map(|why| format!(" ({})", output::plain(why)));
    let alerts: Vec<String> =
        worker.alerts.iter().map(|name| output::plain(&format!(" !{name}"))).collect();
    let notes = [
        labels.concat(),
        waiting.unwrap_or_default(),
        cause.unwrap_or_default(),
        mended(worker),
        alerts.concat(),
    ];
    row(&cells, &format!("{}{}", output::plain(&worker.host), notes.concat()))
}

/// What it got over by itself, where there was anything.
fn mended(worker: &WorkerStatus) -> String {
    let Mended { hedged_reads, read_again, from_replica, repaired } = worker.mended;
    let figures = [
        (hedged_reads, "slow reads asked twice"),
        (read_again, "pieces read again"),
        (from_replica, "runs from replicas"),
        (repaired, "copies repaired"),
    ];
    let said: Vec<String> = figures
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    if said.is_empty() { String::new() } else { format!(" ({})", said.join(", ")) }
}

/// Lets a worker finish and leave.
pub(crate) async fn drain(args: DrainArgs) -> Result<(), Exit> {
    let worker: WorkerId =
        args.worker.parse().map_err(|e: InvalidId| Exit::usage(e.to_string()))?;
    let status = cmd::api_of(&args.client).await?.drain(&worker).await.map_err(calling)?;
    if args.client.json {
        output::json(&status);
    } else {
        output::line(&format!(
            "{} is {}; it finishes {} running task(s) and takes no more",
            status.id, status.state, status.running
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(state: &str) -> WorkerStatus {
        let old = r#"{"id":"w1","state":"STATE","host":"h1","slots":2,"running":1,
            "memory_bytes":1000000000,"rss_bytes":200000000,"last_heard_ms":120,
            "tasks_done":7,"program":"0.1.0","labels":[["zone","a"]]}"#;
        serde_json::from_str(&old.replace("STATE", state))
            .expect("what an older coordinator sends is read")
    }

    #[test]
    fn shares_add_up() {
        let states =
            ["healthy", "healthy", "degraded", "failed", "draining", "drained", "left"].map(worker);
        let text = "5 workers: 2 healthy (40 %), 1 degraded (20 %), 1 failed (20 %), 1 draining";
        assert_eq!(Shares::of(&states).to_string(), text);
        assert_eq!(
            Shares::of(&[]).to_string(),
            "0 workers: 0 healthy (0 %), 0 degraded (0 %), 0 failed (0 %)"
        );
    }

    #[test]
    fn a_line_shows_every_figure() {
        let worker = WorkerStatus {
            cpu_permille: 875,
            bytes_per_s: 12_000_000,
            disk_free_bytes: 50_000_000_000,
            disk_total_bytes: 200_000_000_000,
            errors_5min: 3,
            waiting_for: Some("store".to_owned()),
            mended: Mended { hedged_reads: 2, repaired: 1, ..Mended::default() },
            cause: Some("slow: 20 % of the median rate".to_owned()),
            alerts: vec!["slow-progress".to_owned()],
            ..worker("degraded")
        };
        let words: Vec<String> = line(&worker).split_whitespace().map(str::to_owned).collect();
        let expected = "w1 degraded 1/2 7 87 % 200 MB 1.00 GB 50.0 GB (25 %) 12.0 MB/s 3 0.12 s h1 \
            zone=a (waiting for store) (slow: 20 % of the median rate) (2 slow reads asked twice, \
            1 copies repaired) !slow-progress";
        assert_eq!(words.join(" "), expected);
    }
}
