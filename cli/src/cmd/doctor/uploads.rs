//! Unfinished uploads into an OUTPUT. They are invisible, cost room, and bear no name that would
//! tell whose they are: a job aborts its own, but one whose opening came so late that nobody knew
//! of it stays. Found here, and aborted only where somebody says so and no job writes there.

use futures::{StreamExt, TryStreamExt, stream};
use muster_platform::store::{BlobUrl, OpenUpload};
use muster_platform::stores::Stores;
use muster_protocol::api::JobStatus;
use muster_protocol::{Error, ErrorKind, Result};

use super::finding::Finding;
use crate::client::Api;
use crate::output;

/// Uploads that one look may find.
const LISTED_MAX: usize = 100_000;
/// Aborted side by side.
const AT_ONCE: usize = 16;
const CHECK: &str = "output-uploads";

/// What was found below an OUTPUT.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) output: BlobUrl,
    pub(super) uploads: Vec<OpenUpload>,
    /// A job that writes there, whose they may be; or why nobody could be asked.
    pub(super) writer: Writer,
}

/// Who may have opened them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Writer {
    /// This job is at work there.
    Job(String),
    /// No job of the deployment that leads here.
    Nobody,
    /// No coordinator answers.
    Unknown(String),
}

/// Looks at an OUTPUT. The store is listed before the coordinator is asked, so that a job of which
/// anything was listed is known to it.
///
/// # Errors
/// The store's.
pub(super) async fn find(stores: &Stores, output: &BlobUrl, api: &Api) -> Result<Found> {
    let store = stores.open(output).await?;
    let uploads = store.list_uploads(output.key(), LISTED_MAX).await.map_err(|e| e.at(output))?;
    let writer = match api.jobs().await {
        Ok(jobs) => writer(output, &jobs),
        Err(error) => Writer::Unknown(error.message),
    };
    Ok(Found { output: output.clone(), uploads, writer })
}

fn writer(output: &BlobUrl, jobs: &[JobStatus]) -> Writer {
    let writes_there = |job: &&JobStatus| {
        let theirs: Option<BlobUrl> = job.output.parse().ok();
        !job.cleaned
            && theirs.is_some_and(|theirs| theirs.contains(output) || output.contains(&theirs))
    };
    jobs.iter().find(writes_there).map_or(Writer::Nobody, |job| Writer::Job(job.job.to_string()))
}

/// What they mean.
pub(super) fn judge(found: &Found) -> Finding {
    let count = found.uploads.len();
    if count == 0 {
        return Finding::ok(CHECK, format!("no unfinished upload into {}", found.output));
    }
    let some: Vec<String> =
        found.uploads.iter().take(3).map(|open| output::plain(&open.key).to_string()).collect();
    let seen =
        format!("{count} unfinished uploads into {}, like {}", found.output, some.join(", "));
    match &found.writer {
        Writer::Job(job) => Finding::ok(CHECK, format!("{seen}; job {job} is at work there")),
        Writer::Nobody => Finding::warning(
            CHECK,
            format!("{seen}; no job of this deployment writes there"),
            "they cost room: muster doctor --mend asks, and aborts them; a bucket rule for \
                incomplete uploads does so by itself",
        ),
        Writer::Unknown(why) => Finding::unknown(
            CHECK,
            format!("{seen}; {why}"),
            "whose they are only a coordinator can tell: start one, then look again",
        ),
    }
}

/// Aborts them, after asking once more who writes there.
///
/// # Errors
/// `Fenced` where a job does by now, `Retry` where nobody can tell; else the store's.
pub(super) async fn abort(stores: &Stores, found: &Found, api: &Api) -> Result<String> {
    let output = &found.output;
    match writer(output, &api.jobs().await?) {
        Writer::Nobody => {}
        other => {
            return Err(Error::new(
                ErrorKind::Fenced,
                format!("{output} is written to by now: {other:?}"),
            ));
        }
    }
    let store = stores.open(output).await?;
    let abort = |open: &OpenUpload| {
        let (store, open) = (store.clone(), open.clone());
        async move { store.abort_upload(&open.key, &open.upload).await }
    };
    stream::iter(found.uploads.iter().map(abort))
        .buffer_unordered(AT_ONCE)
        .try_collect::<()>()
        .await?;
    Ok(format!("{} unfinished uploads into {output} aborted", found.uploads.len()))
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    fn url(text: &str) -> BlobUrl {
        text.parse().expect("a URL")
    }

    fn job(id: &str, output: &str, cleaned: bool) -> JobStatus {
        let text = format!(
            r#"{{"job":"{id}","state":"sorting","phase":null,"tasks_done":0,"tasks_total":0,
                "bytes_done":0,"bytes_total":0,"input_bytes":0,"workers":0,"attempts_running":0,
                "retries":0,"repeated_tasks":0,"waiting_for":null,"error":null,
                "output":"{output}","parts":0,"sums":null,"dropped":null,
                "times":{{"plan_ms":0,"sample_ms":0,"sort_ms":0,"merge_ms":0,"commit_ms":0}},
                "cleaned":{cleaned},"submitted_unix_ms":0}}"#
        );
        serde_json::from_str(&text).expect("a job")
    }

    #[test]
    fn a_job_at_work_owns_what_lies_there() {
        let check = |jobs: &[JobStatus], expected: &Writer| {
            assert_eq!(&writer(&url("s3://data/out"), jobs), expected);
        };
        check(&[], &Writer::Nobody);
        check(
            &[job("a", "s3://data/out", true), job("b", "s3://data/outer", false)],
            &Writer::Nobody,
        );
        check(&[job("a", "s3://data/out", false)], &Writer::Job("a".to_owned()));
        check(&[job("a", "s3://data/out/deeper", false)], &Writer::Job("a".to_owned()));
        check(&[job("a", "s3://data/", false)], &Writer::Job("a".to_owned()));
    }

    #[test]
    fn what_nobody_writes_is_told() {
        let check = |count: usize, writer: Writer, expected: Level, word: &str| {
            let open = |at| OpenUpload { key: format!("out/part-{at}"), upload: "u".to_owned() };
            let found = Found {
                output: url("s3://data/out"),
                uploads: (0..count).map(open).collect(),
                writer,
            };
            let finding = judge(&found);
            assert_eq!(finding.level, expected, "{finding:?}");
            assert!(finding.seen.contains(word), "{finding:?}");
            assert_eq!(finding.level == Level::Ok, finding.advice.is_empty(), "{finding:?}");
        };
        check(0, Writer::Nobody, Level::Ok, "no unfinished upload");
        check(
            7,
            Writer::Nobody,
            Level::Warning,
            "7 unfinished uploads into s3://data/out, like out/part-0",
        );
        check(7, Writer::Job("j".to_owned()), Level::Ok, "job j");
        check(7, Writer::Unknown("no answer".to_owned()), Level::Unknown, "no answer");
    }
}
