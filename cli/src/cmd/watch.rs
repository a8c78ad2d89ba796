//! Following a job: hints arrive as progress messages, and a status request settles what they say.

use std::time::Duration;

use futures::StreamExt;
use muster_protocol::Result;
use muster_protocol::api::{BadPlace, JobState, JobStatus, Recovery, SkippedObject};
use muster_protocol::ids::JobId;
use serde::Serialize;

use crate::client::Api;
use crate::exit::Exit;
use crate::output;
use crate::progress::Progress;

/// Pause between status requests where no hint comes.
const POLL_EVERY: Duration = Duration::from_secs(2);
/// How long an answer may take before it is said that there is none.
const SILENT_AFTER: Duration = Duration::from_secs(3);

/// Entries of the input that are named on stderr.
const OMITTED_SHOWN: usize = 10;

/// What `--json` prints at the end of a job.
#[derive(Serialize)]
struct Summary<'a> {
    job: &'a JobId,
    state: JobState,
    records: u64,
    bytes: u64,
    input_bytes: u64,
    dropped_records: u64,
    parts: u32,
    retries: u32,
    repeated_tasks: u32,
    skipped_records: u64,
    skipped_objects: u32,
    skipped: &'a [SkippedObject],
    warnings: &'a [String],
    recoveries: &'a [muster_protocol::api::Recovery],
    output: &'a str,
    checksum: String,
    times: muster_protocol::api::PhaseTimes,
    error: Option<&'a str>,
    exit_code: u8,
}

/// What was left out by name: the coordinator names it until the job is history.
#[derive(Default)]
struct LeftOut {
    records: Vec<BadPlace>,
    objects: Vec<SkippedObject>,
    objects_total: u32,
    warnings: Vec<String>,
}

impl LeftOut {
    /// Keeps what a status names, and gives it to a later one that no longer does.
    fn carry(&mut self, status: &mut JobStatus) {
        if status.cleaned {
            if status.bad_records.is_empty() {
                status.bad_records.clone_from(&self.records);
            }
            if status.skipped_objects_total < self.objects_total {
                status.skipped_objects.clone_from(&self.objects);
                status.skipped_objects_total = self.objects_total;
            }
            if status.warnings.is_empty() {
                status.warnings.clone_from(&self.warnings);
            }
        } else {
            self.records.clone_from(&status.bad_records);
            self.objects.clone_from(&status.skipped_objects);
            self.objects_total = status.skipped_objects_total;
            self.warnings.clone_from(&status.warnings);
        }
    }
}

/// Follows a job until it has ended and, where `cleaned` is asked for, until its scratch is gone
/// too. Survives the coordinator's absence.
///
/// # Errors
/// As a status request, except for passing trouble, which is waited out.
pub(crate) async fn to_end(
    api: &Api,
    job: &JobId,
    progress: &mut Progress,
    cleaned: bool,
) -> Result<JobStatus> {
    let over = |status: &JobStatus| status.state.is_terminal() && (status.cleaned || !cleaned);
    let mut left_out = LeftOut::default();
    let mut hints = api.client().subscribe(api.names().progress(job)).await.ok();
    loop {
        let asked = api.status(job);
        tokio::pin!(asked);
        let answer = loop {
            match tokio::time::timeout(SILENT_AFTER, &mut asked).await {
                Ok(answer) => break answer,
                Err(_) => progress.silent(),
            }
        };
        match answer {
            Ok(mut status) => {
                left_out.carry(&mut status);
                progress.update(&status);
                if over(&status) {
                    return Ok(status);
                }
            }
            Err(error) if error.kind.is_passing() => progress.silent(),
            Err(error) => return Err(error),
        }
        let pause = tokio::time::sleep(POLL_EVERY);
        tokio::pin!(pause);
        loop {
            let hint = async {
                match &mut hints {
                    Some(hints) => hints.next().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = &mut pause => break,
                message = hint => {
                    let Some(message) = message else { hints = None; continue };
                    // A hint that cannot be read is left alone: the next request asks anyway.
                    let read = serde_json::from_slice::<JobStatus>(&message.payload);
                    let Ok(mut status) = read else { continue };
                    left_out.carry(&mut status);
                    progress.update(&status);
                    if over(&status) {
                        break;
                    }
                }
            }
        }
    }
}

/// Says on stderr what has not been said yet of what whoever asked for a job should know.
fn warn_of_news(status: &JobStatus, warned: usize) {
    for warning in status.warnings.iter().skip(warned) {
        output::error_line(&format!("muster: {}", output::plain(warning)));
    }
}

/// Says on stderr what whoever asked for a job should know of its input.
pub(crate) fn warn(status: &JobStatus, progress: &mut Progress) {
    warn_of_news(status, progress.warned);
    progress.warned = status.warnings.len();
    let total = status.skipped_objects_total;
    if total > 0 {
        output::error_line(&format!(
            "muster: {} entries of the input are left out:",
            output::grouped(total.into())
        ));
        for SkippedObject { object, reason } in status.skipped_objects.iter().take(OMITTED_SHOWN) {
            output::error_line(&format!(
                "muster:   {}",
                output::plain(&format!("{object}: {reason}"))
            ));
        }
        if total as usize > OMITTED_SHOWN {
            output::error_line("muster:   and more; muster status and _SUCCESS name them");
        }
    }
}

/// Prints the closing summary, and fails where the job did not succeed.
///
/// Of its warnings, those are said of which `warned` does not know.
pub(crate) fn summarise(
    status: &JobStatus,
    json: bool,
    quiet: bool,
    warned: usize,
) -> Result<(), Exit> {
    if !quiet {
        warn_of_news(status, warned);
    }
    let cause = status.error.as_deref().unwrap_or("no cause was recorded");
    let ended = match status.state {
        JobState::Succeeded => Ok(()),
        JobState::Cancelled => Err(Exit::failed(format!(
            "job {} was cancelled; {} is as it was",
            status.job, status.output
        ))),
        _ => Err(Exit::failed(format!("job {} failed: {cause}", status.job))),
    };
    if json {
        print_json(status, ended.as_ref().map_or_else(Exit::code, |()| 0));
        return ended.map_err(Exit::told);
    }
    if !quiet && ended.is_ok() {
        print_text(status);
    }
    ended
}

fn print_json(status: &JobStatus, exit_code: u8) {
    let (sums, dropped) = (status.sums.unwrap_or_default(), status.dropped.unwrap_or_default());
    let kept = sums.minus(&dropped).minus(&status.skipped);
    output::json(&Summary {
        job: &status.job,
        state: status.state,
        records: kept.records,
        bytes: kept.bytes,
        input_bytes: status.input_bytes,
        dropped_records: dropped.records,
        parts: status.parts,
        retries: status.retries,
        repeated_tasks: status.repeated_tasks,
        skipped_records: status.skipped.records,
        skipped_objects: status.skipped_objects_total,
        skipped: &status.skipped_objects,
        warnings: &status.warnings,
        recoveries: &status.recoveries,
        output: &status.output,
        checksum: format!("{:x}", kept.hash),
        times: status.times,
        error: status.error.as_deref(),
        exit_code,
    });
}

fn print_text(status: &JobStatus) {
    let row = |name: &str, text: &str| output::line(&format!("{name:<9} {text}"));
    row("job", &format!("{} succeeded", status.job));
    print_results(status);
}

/// What came of an ended job: records, bytes, parts, times, and what it got over.
pub(crate) fn print_results(status: &JobStatus) {
    let (sums, dropped, times) =
        (status.sums.unwrap_or_default(), status.dropped.unwrap_or_default(), status.times);
    let kept = sums.minus(&dropped).minus(&status.skipped);
    let total_ms =
        times.plan_ms + times.sample_ms + times.sort_ms + times.merge_ms + times.commit_ms;
    let row = |name: &str, text: &str| output::line(&format!("{name:<9} {text}"));
    let uniques = if dropped.records > 0 {
        format!(", {} duplicates dropped", output::grouped(dropped.records))
    } else {
        String::new()
    };
    row("records", &format!("{}{uniques}", output::grouped(kept.records)));
    print_left_out(status, &row);
    row(
        "bytes",
        &format!(
            "{} read, rate {}",
            output::bytes(status.input_bytes),
            output::rate(status.input_bytes, total_ms)
        ),
    );
    if status.state == JobState::Succeeded {
        row("parts", &format!("{} in {}", status.parts, status.output));
    }
    let times = [
        ("plan", times.plan_ms),
        ("sample", times.sample_ms),
        ("sort", times.sort_ms),
        ("merge", times.merge_ms),
        ("commit", times.commit_ms),
    ];
    let times: Vec<String> =
        times.iter().map(|(name, millis)| format!("{name} {}", output::seconds(*millis))).collect();
    row("time", &format!("{} ({})", output::seconds(total_ms), times.join(", ")));
    row("retries", &format!("{}, repeated tasks {}", status.retries, status.repeated_tasks));
    for trouble in &status.recoveries {
        let Recovery { kind, attempts, recovered, given_up, took_ms_sum, took_ms_max } = trouble;
        let mean_ms = took_ms_sum / u64::from((*recovered).max(1));
        let times = format!(
            "{} on average, {} at most",
            output::seconds(mean_ms),
            output::seconds(*took_ms_max)
        );
        row(
            "recovery",
            &format!("{kind}: {recovered} of {attempts} recovered, {given_up} given up, {times}"),
        );
    }
    row(
        "proof",
        &format!(
            "count, order and checksum hold: {} records in and accounted for, checksum {:x}",
            output::grouped(sums.records),
            kept.hash
        ),
    );
}

/// What is not in the output, and where it stood.
fn print_left_out(status: &JobStatus, row: &impl Fn(&str, &str)) {
    if status.skipped.records > 0 {
        row("skipped", &format!("{} malformed records", output::grouped(status.skipped.records)));
        for BadPlace { object, offset, reason, .. } in &status.bad_records {
            row("", &format!("{object} at byte {offset}: {reason}"));
        }
    }
    if status.skipped_objects_total > 0 {
        row(
            "skipped",
            &format!("{} input objects", output::grouped(status.skipped_objects_total.into())),
        );
        for SkippedObject { object, reason } in &status.skipped_objects {
            row("", &format!("{object}: {reason}"));
        }
    }
}
