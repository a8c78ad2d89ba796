//! The ledger on JetStream, and the streams of a deployment.
//!
//! Appends go out as plain requests with `Nats-Expected-Last-Sequence`, so that the server's own
//! error code decides: a client library folds one of the two codes of a lost race into "other". No
//! message id is sent: the expectation alone makes a repeat safe, and servers differ in which of
//! the two they check first.

use std::time::Duration;

use async_nats::jetstream::consumer::{DeliverPolicy, pull};
use async_nats::jetstream::stream::{
    self, DiscardPolicy, LastRawMessageErrorKind, RetentionPolicy, StorageType,
};
use async_nats::jetstream::{self, Context};
use async_nats::{Client, HeaderMap, RequestErrorKind};
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use serde::Deserialize;

use crate::config::Config;
use crate::ledger::{Appended, Entry, FOREIGN, Ledger, Room};
use muster_protocol::error::{Error, Result};
use muster_protocol::names::Names;

/// The header of every append by a leader, and of nothing else that can come into the stream:
/// JetStream keeps it. Whoever may ask JetStream for something, as clients may for events, can have
/// its answer sent to the journal's subject; such an entry must not stop those who read the
/// journal.
const EXPECTED: &str = "Nats-Expected-Last-Sequence";
/// Another sequence stands last (two codes: a single server's, and that of a clustered leader with
/// appends in flight).
const WRONG_LAST_SEQUENCE: [u64; 2] = [10_071, 10_164];
/// A message is larger than the stream takes.
const TOO_LARGE: u64 = 10_054;
/// By which a stream knows that it has a message already.
const MESSAGE_ID: &str = "Nats-Msg-Id";
/// The stream, the account or the disk is full.
const FULL: [u64; 3] = [10_023, 10_047, 10_077];
/// Longest wait for the next record while the journal is read.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The journal's stream on a JetStream server.
#[derive(Debug, Clone)]
pub struct JetStreamLedger {
    client: Client,
    context: Context,
    stream: String,
    subject: String,
    append_timeout: Duration,
}

#[derive(Deserialize)]
struct PublishReply {
    seq: Option<u64>,
    error: Option<ReplyError>,
}

#[derive(Deserialize)]
struct ReplyError {
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

fn passing(doing: &str, error: impl std::fmt::Display) -> Error {
    Error::retry(format!("cannot {doing}: {error}"))
}

/// What an entry says: the bytes that a leader appended, or that none did.
fn own(headers: Option<&HeaderMap>, bytes: Bytes) -> Bytes {
    if headers.is_some_and(|headers| headers.get(EXPECTED).is_some()) { bytes } else { FOREIGN }
}

fn context(client: &Client, config: &Config) -> Context {
    jetstream::context::ContextBuilder::new()
        .timeout(Duration::from_millis(config.nats.request_timeout_ms))
        .build(client.clone())
}

/// Makes the streams of a deployment where they do not stand yet: journal, events and dead letters.
///
/// # Errors
/// `Retry` where JetStream does not answer or refuses; the message names the stream.
pub async fn ensure_streams(client: &Client, config: &Config) -> Result<()> {
    let names = Names::new(&config.namespace);
    let context = context(client, config);
    let common = stream::Config {
        storage: StorageType::File,
        num_replicas: config.journal.replicas as usize,
        ..Default::default()
    };
    let journal = stream::Config {
        name: names.journal_stream(),
        subjects: vec![names.journal_subject()],
        retention: RetentionPolicy::Limits,
        discard: DiscardPolicy::New,
        max_bytes: i64::try_from(config.journal.bytes_max).unwrap_or(i64::MAX),
        description: Some("muster: what is committed, written by the leader only".to_owned()),
        ..common.clone()
    };
    let events = stream::Config {
        name: names.events_stream(),
        subjects: vec![names.deployment_event(), format!("{}.>", names.deployment_event())],
        discard: DiscardPolicy::Old,
        max_bytes: 64 << 20,
        max_age: 7 * DAY,
        description: Some("muster: history for people".to_owned()),
        ..common.clone()
    };
    let letters = stream::Config {
        name: names.dead_letters_stream(),
        subjects: vec![names.dead_letters()],
        discard: DiscardPolicy::Old,
        max_bytes: 64 << 20,
        max_age: 30 * DAY,
        description: Some("muster: tasks that failed everywhere".to_owned()),
        ..common
    };
    for wanted in [journal, events, letters] {
        let name = wanted.name.clone();
        let made = context.get_or_create_stream(wanted).await;
        made.map_err(|e| {
            passing(&format!("make the stream {name}; JetStream must be enabled and have room"), e)
        })?;
    }
    Ok(())
}

/// Puts a message into the stream of its subject, and waits for the stream to say that it has it.
/// Made again with the same id it is not stored twice, within the stream's duplicate window: two
/// minutes where nobody has set another.
///
/// # Errors
/// `Exhausted` where the message is too large for the server or the stream; `Retry` for all else,
/// which may mean that it is stored and the answer was lost.
pub async fn publish_stored(
    client: &Client,
    subject: &str,
    id: &str,
    bytes: Bytes,
    bound: Duration,
) -> Result<()> {
    let mut headers = HeaderMap::new();
    headers.insert(MESSAGE_ID, id);
    let request = client.request_with_headers(subject.to_owned(), headers, bytes);
    let message = match tokio::time::timeout(bound, request).await {
        Ok(Ok(message)) => message,
        Ok(Err(e)) if e.kind() == RequestErrorKind::MaxPayloadExceeded => {
            return Err(Error::exhausted(e.to_string()));
        }
        Ok(Err(e)) if e.kind() == RequestErrorKind::NoResponders => {
            return Err(Error::retry("no stream takes it".to_owned()));
        }
        Ok(Err(e)) => return Err(Error::retry(e.to_string())),
        Err(_) => return Err(Error::retry(format!("no answer within {} ms", bound.as_millis()))),
    };
    match serde_json::from_slice::<PublishReply>(&message.payload) {
        Ok(PublishReply { error: Some(error), .. }) if error.err_code == TOO_LARGE => {
            Err(Error::exhausted(error.description))
        }
        Ok(PublishReply { error: Some(error), .. }) => {
            Err(Error::retry(format!("{} (code {})", error.description, error.err_code)))
        }
        Ok(PublishReply { seq: Some(_), .. }) => Ok(()),
        Ok(_) => Err(Error::retry("an answer without sequence number")),
        Err(e) => Err(Error::retry(format!("an answer that cannot be read: {e}"))),
    }
}

impl JetStreamLedger {
    /// The ledger of a deployment, whose streams must stand.
    pub fn new(client: &Client, config: &Config) -> Self {
        let names = Names::new(&config.namespace);
        Self {
            client: client.clone(),
            context: context(client, config),
            stream: names.journal_stream(),
            subject: names.journal_subject(),
            append_timeout: Duration::from_millis(config.journal.append_timeout_ms),
        }
    }

    async fn stream(&self) -> Result<stream::Stream<()>> {
        let doing = format!("open the stream {}", self.stream);
        self.context.get_stream_no_info(&self.stream).await.map_err(|e| passing(&doing, e))
    }

    async fn read_up_to(&self, first: u64, last: u64) -> Result<Vec<Entry>> {
        let doing = || format!("read the stream {}", self.stream);
        let consumer = pull::OrderedConfig {
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: first.max(1) },
            ..Default::default()
        };
        let consumer = self
            .stream()
            .await?
            .create_consumer(consumer)
            .await
            .map_err(|e| passing(&doing(), e))?;
        let mut messages = consumer.messages().await.map_err(|e| passing(&doing(), e))?;
        let mut entries = Vec::new();
        loop {
            let next = tokio::time::timeout(READ_TIMEOUT, messages.next()).await;
            let message = match next {
                Ok(Some(message)) => message.map_err(|e| passing(&doing(), e))?,
                Ok(None) => return Err(passing(&doing(), "it ended early")),
                Err(_) => {
                    return Err(passing(
                        &doing(),
                        format!("no record for {} s", READ_TIMEOUT.as_secs()),
                    ));
                }
            };
            let sequence = message.info().map_err(|e| passing(&doing(), e))?.stream_sequence;
            let bytes = own(message.headers.as_ref(), message.payload.clone());
            entries.push(Entry { sequence, bytes });
            if sequence >= last {
                return Ok(entries);
            }
        }
    }
}

#[async_trait]
impl Ledger for JetStreamLedger {
    async fn read_from(&self, first_sequence: u64) -> Result<Vec<Entry>> {
        let info = self
            .stream()
            .await?
            .get_info()
            .await
            .map_err(|e| passing(&format!("ask for the stream {}", self.stream), e))?;
        let (first, last) =
            (first_sequence.max(info.state.first_sequence), info.state.last_sequence);
        if info.state.messages == 0 || first > last {
            Ok(Vec::new())
        } else {
            self.read_up_to(first, last).await
        }
    }

    async fn last_sequence(&self) -> Result<u64> {
        let info = self
            .stream()
            .await?
            .get_info()
            .await
            .map_err(|e| passing(&format!("ask for the stream {}", self.stream), e))?;
        Ok(info.state.last_sequence)
    }

    async fn newest(&self) -> Result<Option<Entry>> {
        let doing = || format!("read the newest record of {}", self.stream);
        // Not a direct get: the stream's leader answers, never a replica that lags.
        match self.stream().await?.get_last_raw_message_by_subject(&self.subject).await {
            Ok(message) => {
                let bytes = own(Some(&message.headers), message.payload);
                Ok(Some(Entry { sequence: message.sequence, bytes }))
            }
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(passing(&doing(), error)),
        }
    }

    async fn append(&self, expected_last: u64, bytes: Bytes) -> Appended {
        let mut headers = HeaderMap::new();
        headers.insert(EXPECTED, expected_last.to_string().as_str());
        let request = self.client.request_with_headers(self.subject.clone(), headers, bytes);
        let unknown = |why: String| Appended::Unknown { why };
        let message = match tokio::time::timeout(self.append_timeout, request).await {
            Ok(Ok(message)) => message,
            Ok(Err(e)) if e.kind() == RequestErrorKind::NoResponders => {
                return unknown("no stream took the record".to_owned());
            }
            Ok(Err(e)) => return unknown(e.to_string()),
            Err(_) => {
                return unknown(format!("no answer within {} ms", self.append_timeout.as_millis()));
            }
        };
        match serde_json::from_slice::<PublishReply>(&message.payload) {
            Ok(PublishReply { error: Some(error), .. })
                if WRONG_LAST_SEQUENCE.contains(&error.err_code) =>
            {
                Appended::Conflict
            }
            Ok(PublishReply { error: Some(error), .. }) if FULL.contains(&error.err_code) => {
                Appended::Full { why: error.description }
            }
            Ok(PublishReply { error: Some(error), .. }) => {
                unknown(format!("{} (code {})", error.description, error.err_code))
            }
            Ok(PublishReply { seq: Some(sequence), .. }) => Appended::Applied { sequence },
            Ok(_) => unknown("an answer without sequence number".to_owned()),
            Err(e) => unknown(format!("an answer that cannot be read: {e}")),
        }
    }

    async fn room(&self) -> Result<Option<Room>> {
        let doing = || format!("ask for the stream {}", self.stream);
        let info = self.stream().await?.get_info().await.map_err(|e| passing(&doing(), e))?;
        let bytes_max =
            u64::try_from(info.config.max_bytes).ok().filter(|bytes_max| *bytes_max > 0);
        Ok(bytes_max.map(|bytes_max| Room { bytes: info.state.bytes, bytes_max }))
    }

    async fn purge_before(&self, first_kept: u64) -> Result<()> {
        let purge = self.stream().await?.purge().sequence(first_kept).await;
        purge.map(drop).map_err(|e| passing(&format!("purge the stream {}", self.stream), e))
    }
}
