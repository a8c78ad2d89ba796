//! What people are told for good, on its way into a stream: events and dead letters.
//!
//! A stream may be away for a while: the server that led it is lost, and the others take seconds to
//! agree on the next. So what is told waits here until the stream says that it has it. Whoever
//! tells only puts it in and goes on; a task for each stream sends one after another, in order,
//! each under an id by which the stream knows one that it has already. Of one alone it can be
//! unknown whether it is stored: the one under way.
//!
//! What waits is bounded in number and bytes. Beyond that the oldest go, in the log at once, and as
//! an event with their number when the stream is back.
//!
//! It belongs to the process, not to a term: what has happened has happened, whoever leads next.
//! What a deposed leader could not tell is given up after [`DEPOSED_MS`], because what it says of
//! the time when others led already helps nobody.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::Client;
use async_nats::connection::State;
use async_trait::async_trait;
use bytes::Bytes;
use serde::Serialize;
use tokio::sync::watch;
use tokio::task::JoinSet;

use muster_platform::adapters::journal::publish_stored;
use muster_platform::clock::Clock;
use muster_platform::faults::{self, Faults};
use muster_platform::retry::Policy;
use muster_protocol::api::{DeadLetter, Event};
use muster_protocol::names::Names;
use muster_protocol::{Error, ErrorKind, Result};

/// Messages to one stream that wait, at most.
const KEPT_MAX: usize = 10_000;
/// Their bytes, at most.
const KEPT_BYTES_MAX: usize = 4 << 20;
/// How long a stream may take to say that it has a message.
const STORE_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest pause between tries, in milliseconds, whatever the policy says: somebody may be waiting
/// to read what happened.
const PAUSE_MS_MAX: u64 = 2_000;
/// Shortest one, in milliseconds: without a connection a try ends at once.
const PAUSE_MS_MIN: u64 = 100;
/// For how long after its end a term that somebody else has ended tries to tell what it had to, in
/// milliseconds.
const DEPOSED_MS: u64 = 30_000;

/// Where messages are stored, as a port.
#[async_trait]
pub(crate) trait Streams: Send + Sync + 'static {
    /// Puts a message into the stream of its subject; one with an id that the stream has is not
    /// stored again.
    ///
    /// # Errors
    /// `Exhausted` where it can never be stored; all else may be tried again.
    async fn store(&self, subject: &str, id: &str, bytes: Bytes) -> Result<()>;
}

/// The streams on JetStream.
pub(crate) struct NatsStreams {
    pub(crate) client: Client,
    pub(crate) faults: Option<Arc<Faults>>,
}

#[async_trait]
impl Streams for NatsStreams {
    async fn store(&self, subject: &str, id: &str, bytes: Bytes) -> Result<()> {
        // Without a connection it would only queue up, once for each try.
        if self.client.connection_state() != State::Connected {
            return Err(Error::retry("there is no connection to NATS"));
        }
        let fate = match &self.faults {
            Some(faults) => faults.message("event").await,
            None => faults::Message::Deliver,
        };
        let publish = || publish_stored(&self.client, subject, id, bytes.clone(), STORE_TIMEOUT);
        match fate {
            faults::Message::Deliver => publish().await,
            faults::Message::Twice => {
                publish().await?;
                publish().await
            }
            faults::Message::AnswerLost => {
                publish().await?;
                Err(Error::retry("the answer is lost, on purpose"))
            }
            faults::Message::Lost | faults::Message::Refused => {
                Err(Error::retry("it is lost, on purpose"))
            }
        }
    }
}

/// What a process tells. Clones share what waits.
#[derive(Clone)]
pub(crate) struct Outbox {
    names: Names,
    clock: Arc<dyn Clock>,
    events: Arc<Lane>,
    letters: Arc<Lane>,
    /// Tells this process's messages from all others'.
    nonce: u64,
    told: Arc<AtomicU64>,
}

impl Outbox {
    /// With nothing in it yet; what is put in is sent as long as the tasks run.
    pub(crate) fn start(
        names: Names,
        streams: &Arc<dyn Streams>,
        policy: &Policy,
        clock: Arc<dyn Clock>,
    ) -> (Self, JoinSet<()>) {
        let policy =
            Policy { pause_max_ms: policy.pause_max_ms.min(PAUSE_MS_MAX), ..policy.clone() };
        let (events, letters) =
            (Arc::new(Lane::new("events")), Arc::new(Lane::new("dead letters")));
        let nonce = clock.random();
        let outbox = Self { names, clock, events, letters, nonce, told: Arc::default() };
        let mut tasks = JoinSet::new();
        for lane in [&outbox.events, &outbox.letters] {
            tasks.spawn(outbox.clone().deliver(lane.clone(), streams.clone(), policy.clone()));
        }
        (outbox, tasks)
    }

    /// Tells of something that has happened.
    pub(crate) fn event(&self, event: &Event) {
        if let Some(message) = self.event_message(event) {
            self.events.keep(message);
        }
    }

    /// Tells why a job has failed.
    pub(crate) fn letter(&self, letter: &DeadLetter) {
        let about = (letter.unix_ms, letter.epoch);
        if let Some(message) = self.message(self.names.dead_letter(&letter.job), about, letter) {
            self.letters.keep(message);
        }
    }

    /// The term is over because somebody else leads.
    pub(crate) fn deposed(&self) {
        let until_ms = self.clock.now_ms() + DEPOSED_MS;
        for lane in [&self.events, &self.letters] {
            lane.change(|queue| queue.expire(until_ms));
        }
    }

    /// Waits until nothing waits, within the bound.
    pub(crate) async fn flush(&self, bound: Duration) {
        let flushed = async {
            // What is missing of the letters becomes an event.
            self.letters.until_empty().await;
            self.events.until_empty().await;
        };
        if tokio::time::timeout(bound, flushed).await.is_err() {
            let (events, letters) = (self.events.waiting(), self.letters.waiting());
            tracing::warn!(
                events,
                letters,
                "this process ends, and its streams did not take all that it had to tell: what is \
                    missing there stands in this log alone"
            );
        }
    }

    fn event_message(&self, event: &Event) -> Option<Message> {
        let subject = event
            .job
            .as_ref()
            .map_or_else(|| self.names.deployment_event(), |job| self.names.event(job));
        self.message(subject, (event.unix_ms, event.epoch), event)
    }

    fn message(
        &self,
        subject: String,
        (unix_ms, epoch): (u64, u64),
        told: &impl Serialize,
    ) -> Option<Message> {
        match serde_json::to_vec(told) {
            Ok(bytes) => {
                let id =
                    format!("{:016x}-{}", self.nonce, self.told.fetch_add(1, Ordering::Relaxed));
                Some(Message {
                    id,
                    subject,
                    bytes: bytes.into(),
                    unix_ms,
                    epoch,
                    tried: false,
                    until_ms: None,
                })
            }
            Err(error) => {
                tracing::error!(%error, subject, "a message could not be written as JSON");
                None
            }
        }
    }

    /// Sends what waits in a lane, one after another, for as long as it takes.
    async fn deliver(self, lane: Arc<Lane>, streams: Arc<dyn Streams>, policy: Policy) {
        let what = lane.what;
        let mut waiting = lane.waiting.subscribe();
        let (mut tries, mut since_ms) = (0_u32, 0);
        loop {
            // The lane holds the sender, so that this never fails.
            let _ = waiting.wait_for(|waiting| *waiting > 0).await;
            let now_ms = self.clock.now_ms();
            let Some(message) = lane.change(|queue| queue.next(now_ms)) else { continue };
            match streams.store(&message.subject, &message.id, message.bytes).await {
                Ok(()) => {
                    if tries > 0 {
                        let after_ms = self.clock.now_ms().saturating_sub(since_ms);
                        tracing::info!(
                            what,
                            after_ms,
                            waiting = lane.waiting(),
                            "the stream is back"
                        );
                    }
                    tries = 0;
                    // In one step: nobody may find both lanes empty in between.
                    lane.change(|queue| {
                        if let Some(missing) = queue.stored(&message.id) {
                            self.tell_missing(&lane, queue, &missing);
                        }
                    });
                }
                Err(error) if error.kind == ErrorKind::Exhausted => {
                    tracing::error!(%error, what, "one is never stored; it stands in this log \
                        alone");
                    lane.change(|queue| queue.refused(&message.id));
                }
                Err(error) => {
                    if tries == 0 {
                        since_ms = now_ms;
                        tracing::warn!(%error, what, "the stream does not take what is told; it is \
                            kept, and follows");
                    }
                    tries = tries.saturating_add(1);
                    self.clock
                        .pause(policy.pause_ms(tries, self.clock.random()).max(PAUSE_MS_MIN))
                        .await;
                }
            }
        }
    }

    /// Says how much is missing of this lane, whose queue it is: of the events before all that
    /// follows.
    fn tell_missing(&self, lane: &Arc<Lane>, queue: &mut Queue, missing: &Missing) {
        let of_events = Arc::ptr_eq(lane, &self.events);
        let event = Event {
            unix_ms: missing.unix_ms,
            epoch: missing.epoch,
            job: None,
            severity: "warning".to_owned(),
            kind: if of_events { "events-dropped" } else { "letters-dropped" }.to_owned(),
            text: format!(
                "{} {} from this time on are missing: their stream did not take them in time; the \
                    log of this coordinator has what happened",
                missing.count, lane.what
            ),
        };
        match self.event_message(&event) {
            Some(message) if of_events => queue.put_first(message),
            Some(message) => self.events.keep(message),
            None => {}
        }
    }
}

/// What waits for one stream.
struct Lane {
    what: &'static str,
    queue: Mutex<Queue>,
    waiting: watch::Sender<usize>,
}

impl Lane {
    fn new(what: &'static str) -> Self {
        Self { what, queue: Mutex::default(), waiting: watch::Sender::new(0) }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Queue) -> T) -> T {
        let mut queue = self.lock();
        let changed = change(&mut queue);
        self.waiting.send_replace(queue.kept.len());
        changed
    }

    fn keep(&self, message: Message) {
        if self.change(|queue| queue.keep(message)) {
            let what = self.what;
            tracing::error!(
                what,
                "more wait for their stream than are kept ({KEPT_MAX}, {KEPT_BYTES_MAX} bytes); \
                    from now on the oldest stand in this log alone"
            );
        }
    }

    fn waiting(&self) -> usize {
        *self.waiting.borrow()
    }

    async fn until_empty(&self) {
        // As above.
        let _ = self.waiting.subscribe().wait_for(|waiting| *waiting == 0).await;
    }
}

/// A message, and what it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Message {
    id: String,
    subject: String,
    bytes: Bytes,
    unix_ms: u64,
    epoch: u64,
    /// It may be stored already.
    tried: bool,
    /// When it is given up.
    until_ms: Option<u64>,
}

/// How many were given up, and what the first of them was about.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Missing {
    count: u64,
    unix_ms: u64,
    epoch: u64,
}

/// What waits, the oldest first. Pure.
#[derive(Debug, Default)]
struct Queue {
    kept: VecDeque<Message>,
    bytes: usize,
    missing: Option<Missing>,
}

impl Queue {
    /// Keeps a message. Beyond the bound the oldest go, but not the one under way; `true` where the
    /// first goes.
    fn keep(&mut self, message: Message) -> bool {
        let whole = self.missing.is_none();
        self.bytes += message.bytes.len();
        self.kept.push_back(message);
        while self.kept.len() > KEPT_MAX || self.bytes > KEPT_BYTES_MAX {
            let oldest = usize::from(self.kept.front().is_some_and(|message| message.tried));
            if !self.lose(oldest) {
                break;
            }
        }
        whole && self.missing.is_some()
    }

    /// The one to send now.
    fn next(&mut self, now_ms: u64) -> Option<Message> {
        let is_over =
            |message: &Message| message.until_ms.is_some_and(|until_ms| now_ms >= until_ms);
        while self.kept.front().is_some_and(is_over) {
            self.lose(0);
        }
        let first = self.kept.front_mut()?;
        first.tried = true;
        Some(first.clone())
    }

    /// The stream has it; gives what is missing after it.
    fn stored(&mut self, id: &str) -> Option<Missing> {
        self.take_first(id);
        self.missing.take()
    }

    /// The stream will never have it.
    fn refused(&mut self, id: &str) {
        if self.kept.front().is_some_and(|first| first.id == id) {
            self.lose(0);
        }
    }

    /// Puts one before all others, where it stays until it is stored.
    fn put_first(&mut self, message: Message) {
        self.bytes += message.bytes.len();
        self.kept.push_front(Message { tried: true, ..message });
    }

    /// From then on, what waits now is given up.
    fn expire(&mut self, until_ms: u64) {
        self.kept
            .iter_mut()
            .for_each(|message| message.until_ms = message.until_ms.or(Some(until_ms)));
    }

    fn take_first(&mut self, id: &str) {
        if let Some(first) = self.kept.pop_front_if(|first| first.id == id) {
            self.bytes -= first.bytes.len();
        }
    }

    fn lose(&mut self, at: usize) -> bool {
        let Some(Message { bytes, unix_ms, epoch, .. }) = self.kept.remove(at) else {
            return false;
        };
        self.bytes -= bytes.len();
        self.missing.get_or_insert(Missing { count: 0, unix_ms, epoch }).count += 1;
        true
    }
}

#[cfg(test)]
#[path = "outbox_tests.rs"]
mod tests;
