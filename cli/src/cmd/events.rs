//! `muster events`: a job's history, or all of the deployment's, as it was said; nothing is read
//! from it but by people.

use std::time::Duration;

use async_nats::Client;
use muster_platform::adapters::events::{Entry, Events};
use muster_platform::clock::{Clock, SystemClock};
use muster_platform::config::Config;
use muster_protocol::api::Event;
use muster_protocol::ids::{InvalidId, JobId};
use muster_protocol::names;
use muster_protocol::{Error, ErrorKind};

use crate::args::{EventsArgs, LogFormat};
use crate::cmd;
use crate::cmd::history::{self, Scope};
use crate::exit::{self, Exit};
use crate::output;

/// Prints what is kept, then, where asked to, what comes.
pub(crate) async fn run(args: EventsArgs) -> Result<(), Exit> {
    cmd::log(LogFormat::Text, "warn");
    let job: Option<JobId> = args
        .job
        .as_deref()
        .map(|id| id.parse().map_err(|e: InvalidId| Exit::usage(e.to_string())))
        .transpose()?;
    let since_unix_ms =
        args.since.map(|back| SystemClock::default().unix_ms().saturating_sub(millis(back)));
    let (client, config, refusals) = cmd::connect(&args.client.nats).await?;
    tokio::select! {
        read = read(&client, &config, &args, job.as_ref(), since_unix_ms) => read,
        error = refusals.refused(&client, names::is_jetstream_request) => Err(error.into()),
    }
}

async fn read(
    client: &Client,
    config: &Config,
    args: &EventsArgs,
    job: Option<&JobId>,
    since_unix_ms: Option<u64>,
) -> Result<(), Exit> {
    let mut events = Events::open(client, config, job, since_unix_ms).await.map_err(opening)?;
    let scope = job.map(|job| Scope::new(job.clone(), since_unix_ms.is_none()));
    let mut printer =
        Printer { json: args.client.json, with_job: job.is_none(), scope, printed: 0 };
    while let Some(entry) = events.next_kept().await.map_err(exit::connecting)? {
        printer.print(entry);
    }
    if args.follow {
        return follow(events, printer).await;
    }
    match job {
        Some(job) if printer.printed == 0 => Err(Exit::failed(format!(
            "no events of job {job} are kept{}",
            if since_unix_ms.is_some() { " from that time on" } else { " (they go after 7 days)" }
        ))),
        _ => Ok(()),
    }
}

async fn follow(mut events: Events, mut printer: Printer) -> Result<(), Exit> {
    loop {
        tokio::select! {
            entry = events.next() => printer.print(entry.map_err(exit::connecting)?),
            _ = cmd::end_signal() => return Err(Exit::interrupted("")),
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// No stream means that there is no deployment to ask.
fn opening(error: Error) -> Exit {
    match error.kind {
        ErrorKind::NotFound => {
            Exit::unreachable(format!("{}; start one with: muster coordinator", error.message))
        }
        _ => exit::connecting(error),
    }
}

struct Printer {
    json: bool,
    /// Whether lines name the job: only where events of several are shown.
    with_job: bool,
    /// What belongs to the job whose history is asked for.
    scope: Option<Scope>,
    printed: u64,
}

impl Printer {
    fn print(&mut self, entry: Entry) {
        if let (Entry::Event(event), Some(scope)) = (&entry, &mut self.scope)
            && !scope.takes(event)
        {
            return;
        }
        match entry {
            Entry::Event(event) if self.json => output::json(&event),
            Entry::Event(event) => output::line(&line(&event, self.with_job)),
            Entry::Unreadable(error) => return tracing::warn!(%error, "passed over"),
        }
        self.printed += 1;
    }
}

fn line(event: &Event, with_job: bool) -> String {
    let time = history::time(event.unix_ms);
    let job = match (&event.job, with_job) {
        (_, false) => String::new(),
        (Some(job), true) => format!("{job:<20} "),
        (None, true) => format!("{:<20} ", "-"),
    };
    let (severity, kind) = (output::plain(&event.severity), output::plain(&event.kind));
    format!("{time} {severity:<7} {kind:<18} {job}{}", output::plain(&event.text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_show_time_severity_kind_and_text() {
        let event = |job: Option<&str>, text: &str| Event {
            unix_ms: 1_700_000_000_123,
            epoch: 1,
            job: job.map(|job| job.parse().expect("id")),
            severity: "info".to_owned(),
            kind: "phase-began".to_owned(),
            text: text.to_owned(),
        };
        let check = |event: Event, with_job: bool, expected: &str| {
            assert_eq!(line(&event, with_job), expected);
        };
        check(
            event(Some("j1"), "sort: 3 tasks"),
            false,
            "2023-11-14T22:13:20.123Z info    phase-began        sort: 3 tasks",
        );
        check(
            event(None, "a\u{1b}[2Jb\nc"),
            true,
            "2023-11-14T22:13:20.123Z info    phase-began        -                    \
                a\u{fffd}[2Jb\u{fffd}c",
        );
        let late = Event { unix_ms: u64::MAX, ..event(None, "") };
        assert!(line(&late, false).starts_with("9999-12-31T23:59:59"));
    }
}
