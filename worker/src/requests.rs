//! The worker's calls to NATS: each is bounded in time, because a client that has lost its server
//! queues calls and answers none.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use async_nats::{Client, RequestErrorKind, Subject, Subscriber};
use muster_platform::faults::{self, Faults};
use muster_protocol::names::{self, Names};
use muster_protocol::wire::{
    self, Heartbeat, JobRecoveries, Message, Outcome, Register, RegisterReply, Report, ReportReply,
    WIRE_VERSION,
};
use muster_protocol::{Error, ErrorKind, Result};

use crate::WorkerOptions;

/// Bound of handing a message to the client.
const PUBLISH_TIMEOUT: Duration = Duration::from_millis(500);

/// The subjects on which it asks and tells.
#[derive(Clone)]
pub(crate) struct Asking {
    register: String,
    samples: String,
    report: String,
    heartbeat: String,
    recoveries: String,
}

impl Asking {
    /// Those of a worker: with a NATS user of its own it asks under its id.
    pub(crate) fn of(options: &WorkerOptions, names: &Names) -> Self {
        let form = |subject: String| {
            if options.own_user { names::of_worker(&subject, &options.id) } else { subject }
        };
        Self {
            register: form(names.register()),
            samples: form(names.samples()),
            report: form(names.report()),
            heartbeat: names.heartbeat(&options.id),
            recoveries: names.recoveries(&options.id),
        }
    }
}

/// The subjects and the connection.
#[derive(Clone)]
pub(crate) struct Requests {
    client: Client,
    subjects: Arc<Asking>,
    timeout: Duration,
    /// The newest wire version that the leader is known to speak.
    peer: Arc<AtomicU8>,
    faults: Option<Arc<Faults>>,
}

impl Requests {
    pub(crate) fn new(
        client: Client,
        subjects: Asking,
        timeout: Duration,
        faults: Option<Arc<Faults>>,
    ) -> Self {
        Self {
            client,
            subjects: Arc::new(subjects),
            timeout,
            faults,
            peer: Arc::new(AtomicU8::new(WIRE_VERSION)),
        }
    }

    /// Asks the leader for admission, in a wire version. A leader that does not speak it passes the
    /// message over; the version of an answered one is used from then on.
    pub(crate) async fn register(&self, register: &Register, version: u8) -> Result<RegisterReply> {
        let reply = self.ask("register", self.subjects.register.clone(), version, register).await?;
        self.peer.store(version, Ordering::Relaxed);
        Ok(reply)
    }

    fn peer(&self) -> u8 {
        self.peer.load(Ordering::Relaxed)
    }

    /// Reports an outcome. Samples have a subject of their own.
    pub(crate) async fn report(&self, report: &Report) -> Result<ReportReply> {
        let is_samples =
            matches!(report.outcome, Outcome::Sampled { .. } | Outcome::SampledToScratch { .. });
        let (word, subject) = if is_samples {
            ("samples", &self.subjects.samples)
        } else {
            ("report", &self.subjects.report)
        };
        self.ask(word, subject.clone(), self.peer(), report).await
    }

    /// Tells who listens how the worker is.
    pub(crate) async fn heartbeat(&self, heartbeat: &Heartbeat) -> Result<()> {
        self.publish("heartbeat", self.subjects.heartbeat.as_str().into(), heartbeat).await
    }

    /// Tells who listens what was retried for a job.
    pub(crate) async fn recoveries(&self, recoveries: &JobRecoveries) -> Result<()> {
        self.publish("recoveries", self.subjects.recoveries.as_str().into(), recoveries).await
    }

    /// Answers a command.
    pub(crate) async fn answer<T: Message>(&self, reply: Subject, message: &T) -> Result<()> {
        self.publish("answer", reply, message).await
    }

    /// Listens to a subject.
    pub(crate) async fn subscribe(&self, subject: String) -> Result<Subscriber> {
        let subscribed =
            tokio::time::timeout(self.timeout, self.client.subscribe(subject.clone())).await;
        let subscribed = subscribed.map_err(|_| {
            Error::retry(format!("cannot listen to {subject}: NATS does not answer"))
        })?;
        subscribed.map_err(|e| Error::retry(format!("cannot listen to {subject}: {e}")))
    }

    /// Waits until what was published has left this process.
    pub(crate) async fn flush(&self) {
        if tokio::time::timeout(self.timeout, self.client.flush()).await.is_err() {
            tracing::warn!("NATS does not take the last messages");
        }
    }

    /// What faults make of a message; `word` is its name there.
    async fn fate(&self, word: &'static str) -> faults::Message {
        match &self.faults {
            Some(faults) => faults.message(word).await,
            None => faults::Message::Deliver,
        }
    }

    async fn publish<T: Message>(
        &self,
        word: &'static str,
        subject: Subject,
        message: &T,
    ) -> Result<()> {
        let bytes = wire::encode_for(self.peer(), message)?;
        match self.fate(word).await {
            faults::Message::Deliver => {}
            faults::Message::Twice => self.hand_over(subject.clone(), bytes.clone()).await?,
            faults::Message::Refused => {
                return Err(Error::retry("injected fault: the message is refused"));
            }
            faults::Message::Lost | faults::Message::AnswerLost => return Ok(()),
        }
        self.hand_over(subject, bytes).await
    }

    async fn hand_over(&self, subject: Subject, bytes: Vec<u8>) -> Result<()> {
        let published =
            tokio::time::timeout(PUBLISH_TIMEOUT, self.client.publish(subject, bytes.into())).await;
        let published = published
            .map_err(|_| Error::retry("waiting for NATS: a message could not be handed over"))?;
        published.map_err(|e| Error::retry(format!("a message could not be handed over: {e}")))
    }

    async fn ask<Q: Message, A: Message>(
        &self,
        word: &'static str,
        subject: String,
        peer: u8,
        question: &Q,
    ) -> Result<A> {
        let bytes = wire::encode_for(peer, question)?;
        let in_vain =
            |why: &str| Error::retry(format!("no answer on {subject}: injected fault: {why}"));
        let fate = self.fate(word).await;
        match fate {
            faults::Message::Deliver | faults::Message::AnswerLost => {}
            faults::Message::Twice => {
                let inbox = self.client.new_inbox();
                let twin =
                    self.client.publish_with_reply(subject.clone(), inbox, bytes.clone().into());
                // What becomes of the twin is nobody's concern.
                drop(tokio::time::timeout(PUBLISH_TIMEOUT, twin).await);
            }
            faults::Message::Refused => return Err(in_vain("the connection is broken")),
            faults::Message::Lost => {
                tokio::time::sleep(self.timeout).await;
                return Err(in_vain("the message is lost"));
            }
        }
        let asked =
            tokio::time::timeout(self.timeout, self.client.request(subject.clone(), bytes.into()))
                .await;
        let answer = asked.map_err(|_| {
            Error::retry(format!("no answer on {subject} within {:?}", self.timeout))
        })?;
        if fate == faults::Message::AnswerLost {
            return Err(in_vain("the answer is lost"));
        }
        let answer = answer.map_err(|e| match e.kind() {
            RequestErrorKind::NoResponders => {
                Error::new(ErrorKind::NotFound, format!("nobody listens to {subject}"))
            }
            _ => Error::retry(format!("no answer on {subject}: {e}")),
        })?;
        wire::decode(&answer.payload).map_err(|e| e.at(subject))
    }
}
