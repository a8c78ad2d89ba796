//! What the stream of events says of a job, for those who ask about one: its own events, and those
//! of the deployment in its time.

use std::time::{Duration, UNIX_EPOCH};

use async_nats::Client;
use muster_platform::adapters::events::{Entry, Events};
use muster_platform::adapters::refusals::Refusals;
use muster_platform::config::Config;
use muster_protocol::api::Event;
use muster_protocol::ids::JobId;
use muster_protocol::names;

use crate::output;

/// The end of the year 9999, beyond which times are not written.
const MILLIS_MAX: u64 = 253_402_300_799_999;
/// How long after the end of a job an outage of its time may still be told of, in milliseconds.
const TOLD_LATE_MS: u64 = 10_000;
/// Longest look through the events for what became of a job.
const LOOK: Duration = Duration::from_secs(5);

/// A time as people read it.
pub(crate) fn time(unix_ms: u64) -> String {
    humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(unix_ms.min(MILLIS_MAX)))
        .to_string()
}

/// What became of a job that its coordinator does not know: the last word on it, if one is kept and
/// this user may read it.
pub(crate) async fn end_of(
    client: &Client,
    config: &Config,
    refusals: &Refusals,
    job: &JobId,
) -> Option<String> {
    let look = async {
        let mut events = Events::open(client, config, Some(job), None).await.ok()?;
        let mut last = None;
        while let Some(entry) = events.next_kept().await.ok()? {
            if let Entry::Event(event) = entry {
                last = told_end(job, &event).or(last);
            }
        }
        last
    };
    tokio::select! {
        last = tokio::time::timeout(LOOK, look) => last.ok().flatten(),
        _ = refusals.refused(client, names::is_jetstream_request) => None,
    }
}

fn told_end(job: &JobId, event: &Event) -> Option<String> {
    if event.job.as_ref() != Some(job) {
        return None;
    }
    let (at, text) = (time(event.unix_ms), output::plain(&event.text));
    match event.kind.as_str() {
        "submit-refused" => Some(format!("job {job} was refused at {at}: {text}")),
        "job-ended" => Some(format!("job {job} is no longer known; it ended at {at}: {text}")),
        _ => None,
    }
}

/// Which events belong to the history of a job: its own, and what happened to the deployment while
/// it was there.
#[derive(Debug)]
pub(crate) struct Scope {
    job: JobId,
    /// Whether its first event has come, or may have come before what is read, and its last one has
    /// not.
    lives: bool,
    /// When its first one happened, of those that are read.
    began_unix_ms: Option<u64>,
    /// When its last one happened.
    ended_unix_ms: Option<u64>,
}

impl Scope {
    /// Of a job whose events are read from the first one on, or from some time on.
    pub(crate) fn new(job: JobId, from_the_first: bool) -> Self {
        Self { job, lives: !from_the_first, began_unix_ms: None, ended_unix_ms: None }
    }

    /// Whether an event, of all in their order, is one of them.
    pub(crate) fn takes(&mut self, event: &Event) -> bool {
        match &event.job {
            Some(job) if *job == self.job => {
                if !self.is_before_its_end(event) {
                    self.lives = !matches!(event.kind.as_str(), "job-cleaned" | "submit-refused");
                    self.ended_unix_ms = (!self.lives).then_some(event.unix_ms);
                }
                self.began_unix_ms.get_or_insert(event.unix_ms);
                true
            }
            Some(_) => false,
            None => {
                let of_its_time =
                    self.lives || (self.is_after_its_begin(event) && self.is_before_its_end(event));
                (of_its_time && concerns_jobs(event)) || self.is_told_late(event)
            }
        }
    }
}

impl Scope {
    /// What a coordinator could not tell at once may come after what others told meanwhile.
    fn is_before_its_end(&self, event: &Event) -> bool {
        self.ended_unix_ms.is_some_and(|ended_unix_ms| event.unix_ms < ended_unix_ms)
    }

    fn is_after_its_begin(&self, event: &Event) -> bool {
        self.began_unix_ms.is_none_or(|began_unix_ms| event.unix_ms >= began_unix_ms)
    }

    /// An outage of the journal is told of when it is over, and the record that waited for that may
    /// have been the job's last.
    fn is_told_late(&self, event: &Event) -> bool {
        let late = |ended_unix_ms: u64| event.unix_ms.saturating_sub(ended_unix_ms) <= TOLD_LATE_MS;
        event.kind == "journal-back" && self.ended_unix_ms.is_some_and(late)
    }
}

/// Whether what is said of the deployment concerns the jobs that run: who leads, what was away, who
/// was lost. Who comes, stands by or is alone does not.
fn concerns_jobs(event: &Event) -> bool {
    let over = [
        "took-over",
        "partition-healed",
        "journal-back",
        "worker-back",
        "worker-store-back",
        "nats-server-back",
    ];
    event.severity != "info" || over.contains(&event.kind.as_str()) || event.kind == "alert-cleared"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(job: Option<&str>, severity: &str, kind: &str) -> Event {
        Event {
            unix_ms: 1_700_000_000_123,
            epoch: 1,
            job: job.map(|job| job.parse().expect("id")),
            severity: severity.to_owned(),
            kind: kind.to_owned(),
            text: "why".to_owned(),
        }
    }

    #[test]
    fn a_job_has_its_own_events_and_those_of_its_time() {
        let told = [
            (event(None, "warning", "stepped-down"), false),
            (event(Some("j1"), "info", "job-submitted"), true),
            (event(Some("j2"), "info", "job-submitted"), false),
            (event(None, "info", "worker-joined"), false),
            (event(None, "info", "took-over"), true),
            (event(None, "warning", "worker-lost"), true),
            (event(Some("j1"), "info", "job-ended"), true),
            (event(None, "warning", "journal-back"), true),
            (event(Some("j1"), "info", "job-cleaned"), true),
            (event(None, "info", "took-over"), false),
            (event(None, "warning", "journal-back"), true),
            (Event { unix_ms: 1_700_000_020_000, ..event(None, "warning", "journal-back") }, false),
        ];
        let mut scope = Scope::new("j1".parse().expect("id"), true);
        let taken: Vec<bool> = told.iter().map(|(event, _)| scope.takes(event)).collect();
        assert_eq!(taken, told.iter().map(|(_, expected)| *expected).collect::<Vec<_>>());
        let mut late = Scope::new("j1".parse().expect("id"), false);
        assert!(late.takes(&told[0].0), "it may have begun before");
    }

    /// A leader that was deposed tells what it had to when its stream is back.
    #[test]
    fn what_comes_late_is_of_the_time_when_it_happened() {
        let at =
            |after_ms: u64, event: Event| Event { unix_ms: 1_700_000_000_000 + after_ms, ..event };
        let told = [
            (at(100, event(Some("j1"), "info", "job-submitted")), true),
            (at(900, event(Some("j1"), "info", "job-cleaned")), true),
            (at(200, event(None, "warning", "worker-lost")), true),
            (at(300, event(Some("j1"), "info", "phase-began")), true),
            (at(900, event(None, "warning", "worker-lost")), false),
            (at(50, event(None, "warning", "worker-lost")), false),
        ];
        let mut scope = Scope::new("j1".parse().expect("id"), true);
        let taken: Vec<bool> = told.iter().map(|(event, _)| scope.takes(event)).collect();
        assert_eq!(taken, told.iter().map(|(_, expected)| *expected).collect::<Vec<_>>());
    }

    #[test]
    fn the_last_word_on_a_job_is_its_end() {
        let job: JobId = "j1".parse().expect("id");
        let check = |kind: &str, expected: Option<&str>| {
            assert_eq!(told_end(&job, &event(Some("j1"), "info", kind)).as_deref(), expected);
        };
        check("submit-refused", Some("job j1 was refused at 2023-11-14T22:13:20.123Z: why"));
        check(
            "job-ended",
            Some("job j1 is no longer known; it ended at 2023-11-14T22:13:20.123Z: why"),
        );
        check("phase-began", None);
        assert_eq!(told_end(&job, &event(Some("j2"), "info", "job-ended")), None);
    }
}
