//! Reads the stream of events: history for people, one message at a time, however long it is.
//!
//! An event whose acknowledgement was lost, and whose stream was then away for longer than its
//! duplicate window, may stand there twice, under one id: it is read once.

use std::collections::VecDeque;
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::consumer::pull::{Ordered, OrderedConfig};
use async_nats::jetstream::consumer::{DeliverPolicy, ReplayPolicy};
use async_nats::jetstream::context::GetStreamErrorKind;
use async_nats::jetstream::{ContextBuilder, ErrorCode};
use futures::StreamExt;
use time::OffsetDateTime;

use crate::config::Config;
use muster_protocol::api::Event;
use muster_protocol::error::{Error, ErrorKind, Result};
use muster_protocol::ids::JobId;
use muster_protocol::names::Names;

/// Longest wait for an event that the server says is there.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// By which a repeat is known.
const MESSAGE_ID: &str = "Nats-Msg-Id";
/// So many ids are remembered: of each coordinator one event at most may be repeated, and only
/// those of the others stand between.
const IDS_MAX: usize = 1024;
/// Ids that are longer are none of ours.
const ID_BYTES_MAX: usize = 64;

/// What stands at one place of the stream.
#[derive(Debug)]
pub enum Entry {
    /// An event.
    Event(Event),
    /// Something that is no event of a version that this build can read, and why.
    Unreadable(Error),
}

/// The events of a job, with those of the deployment as a whole between them, or all that there
/// are, in the order in which they were said. Holds what the server sends ahead, never the history.
pub struct Events {
    messages: Ordered,
    /// How many of what stood there at the beginning are still to come, as the server counts.
    left: u64,
    stream: String,
    repeats: Repeats,
}

/// The ids of what was read last.
#[derive(Debug, Default)]
struct Repeats {
    ids: VecDeque<String>,
}

impl Repeats {
    /// Whether one with this id was read, which it is from now on.
    fn knows(&mut self, id: &str) -> bool {
        if id.len() > ID_BYTES_MAX {
            return false;
        }
        let known = self.ids.iter().any(|known| known == id);
        if !known {
            self.ids.truncate(IDS_MAX - 1);
            self.ids.push_front(id.to_owned());
        }
        known
    }
}

impl Events {
    /// Begins to read: everything that is kept, or what was said at `since_unix_ms` or later.
    ///
    /// # Errors
    /// `NotFound` where the stream is not there, `Retry` where JetStream does not answer or lets
    /// this user not read it.
    pub async fn open(
        client: &Client,
        config: &Config,
        job: Option<&JobId>,
        since_unix_ms: Option<u64>,
    ) -> Result<Self> {
        let names = Names::new(&config.namespace);
        let stream = names.events_stream();
        let timeout = Duration::from_millis(config.nats.request_timeout_ms);
        let context = ContextBuilder::new().timeout(timeout).build(client.clone());
        let handle = context.get_stream(&stream).await.map_err(|e| opening(&stream, &e))?;
        let deliver_policy = match since_unix_ms {
            Some(unix_ms) => DeliverPolicy::ByStartTime { start_time: at(unix_ms)? },
            None => DeliverPolicy::All,
        };
        let wanted = OrderedConfig {
            deliver_policy,
            replay_policy: ReplayPolicy::Instant,
            filter_subjects: job
                .map(|job| vec![names.event(job), names.deployment_event()])
                .unwrap_or_default(),
            ..Default::default()
        };
        let passing = |e: &dyn std::fmt::Display| {
            Error::retry(format!("cannot read the stream {stream}: {e}"))
        };
        let consumer = handle.create_consumer(wanted).await.map_err(|e| passing(&e))?;
        let left = consumer.cached_info().num_pending;
        let messages = consumer.messages().await.map_err(|e| passing(&e))?;
        Ok(Self { messages, left, stream, repeats: Repeats::default() })
    }

    /// The next event; none when all that stood there at the beginning, and what came meanwhile,
    /// has been read.
    ///
    /// # Errors
    /// `Retry` where the server does not send what it says is there.
    pub async fn next_kept(&mut self) -> Result<Option<Entry>> {
        while self.left > 0 {
            match tokio::time::timeout(READ_TIMEOUT, self.read()).await {
                Ok(read) => {
                    if let Some(entry) = read? {
                        return Ok(Some(entry));
                    }
                }
                Err(_) => {
                    let (stream, waited) = (&self.stream, READ_TIMEOUT.as_secs());
                    return Err(Error::retry(format!(
                        "the stream {stream} has {} more events, but sent none for {waited} s",
                        self.left
                    )));
                }
            }
        }
        Ok(None)
    }

    /// The next event, waiting for it as long as it takes.
    ///
    /// # Errors
    /// `Retry` where the reading ends.
    pub async fn next(&mut self) -> Result<Entry> {
        loop {
            if let Some(entry) = self.read().await? {
                return Ok(entry);
            }
        }
    }

    /// What comes next; none where it was read before.
    async fn read(&mut self) -> Result<Option<Entry>> {
        let trouble = |e: &dyn std::fmt::Display| {
            Error::retry(format!("cannot read the stream {}: {e}", self.stream))
        };
        let message = match self.messages.next().await {
            Some(message) => message.map_err(|e| trouble(&e))?,
            None => return Err(trouble(&"it ended")),
        };
        let info = message.info().map_err(|e| trouble(&e))?;
        self.left = info.pending;
        let id = message.headers.as_ref().and_then(|headers| headers.get(MESSAGE_ID));
        if id.is_some_and(|id| self.repeats.knows(id.as_str())) {
            return Ok(None);
        }
        Ok(Some(match serde_json::from_slice::<Event>(&message.payload) {
            Ok(event) => Entry::Event(event),
            Err(e) => Entry::Unreadable(Error::invalid(format!(
                "entry {} of the stream {} is no event that this version can read: {e}",
                info.stream_sequence, self.stream
            ))),
        }))
    }
}

fn opening(stream: &str, error: &async_nats::jetstream::context::GetStreamError) -> Error {
    match error.kind() {
        GetStreamErrorKind::JetStream(e) if e.error_code() == ErrorCode::STREAM_NOT_FOUND => {
            Error::new(
                ErrorKind::NotFound,
                format!(
                    "there is no stream {stream} on this NATS server: no coordinator was ever \
                        started there, or in another namespace"
                ),
            )
        }
        _ => Error::retry(format!(
            "cannot open the stream {stream}: {error}; JetStream must be enabled and this user may \
                read it"
        )),
    }
}

fn at(unix_ms: u64) -> Result<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(unix_ms) * 1_000_000)
        .map_err(|e| Error::invalid(format!("{unix_ms} ms is no time that can be asked for: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_that_stands_there_twice_is_read_once() {
        let mut repeats = Repeats::default();
        assert!(!repeats.knows("a") && !repeats.knows("b") && repeats.knows("a"));
        (0..IDS_MAX).for_each(|n| assert!(!repeats.knows(&n.to_string())));
        assert!(!repeats.knows("a"), "what is remembered is bounded");
        assert_eq!(repeats.ids.len(), IDS_MAX);
        let long = "x".repeat(ID_BYTES_MAX + 1);
        assert!(!repeats.knows(&long) && !repeats.knows(&long));
    }
}
