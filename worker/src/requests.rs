//! The worker's calls to NATS: each is bounded in time, because a client that has lost its server queues calls and answers none.

use std::time::Duration;

use async_nats::{Client, Subject, Subscriber};
use muster_common::names::Names;
use muster_common::wire::{self, Heartbeat, Outcome, Register, RegisterReply, Report, ReportReply};
use muster_common::{Error, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bound of handing a message to the client.
const PUBLISH_TIMEOUT: Duration = Duration::from_millis(500);

/// The subjects and the connection.
#[derive(Clone)]
pub(crate) struct Requests {
    client: Client,
    names: Names,
    timeout: Duration,
}

impl Requests {
    pub(crate) fn new(client: Client, names: Names, timeout: Duration) -> Self {
        Self { client, names, timeout }
    }

    /// Asks the leader for admission.
    pub(crate) async fn register(&self, register: &Register) -> Result<RegisterReply> {
        self.ask(self.names.register(), register).await
    }

    /// Reports an outcome. Samples have a subject of their own.
    pub(crate) async fn report(&self, report: &Report) -> Result<ReportReply> {
        let is_samples = matches!(report.outcome, Outcome::Sampled { .. } | Outcome::SampledToScratch { .. });
        let subject = if is_samples { self.names.samples() } else { self.names.report() };
        self.ask(subject, report).await
    }

    /// Tells who listens how the worker is.
    pub(crate) async fn heartbeat(&self, heartbeat: &Heartbeat) -> Result<()> {
        self.publish(self.names.heartbeat(&heartbeat.worker).into(), heartbeat).await
    }

    /// Answers a command.
    pub(crate) async fn answer<T: Serialize>(&self, reply: Subject, message: &T) -> Result<()> {
        self.publish(reply, message).await
    }

    /// Listens to a subject.
    pub(crate) async fn subscribe(&self, subject: String) -> Result<Subscriber> {
        let subscribed = tokio::time::timeout(self.timeout, self.client.subscribe(subject.clone())).await;
        let subscribed =
            subscribed.map_err(|_| Error::retry(format!("cannot listen to {subject}: NATS does not answer")))?;
        subscribed.map_err(|e| Error::retry(format!("cannot listen to {subject}: {e}")))
    }

    /// Waits until what was published has left this process.
    pub(crate) async fn flush(&self) {
        if tokio::time::timeout(self.timeout, self.client.flush()).await.is_err() {
            tracing::warn!("NATS does not take the last messages");
        }
    }

    async fn publish<T: Serialize>(&self, subject: Subject, message: &T) -> Result<()> {
        let bytes = wire::encode(message)?;
        let published = tokio::time::timeout(PUBLISH_TIMEOUT, self.client.publish(subject, bytes.into())).await;
        let published = published.map_err(|_| Error::retry("waiting for NATS: a message could not be handed over"))?;
        published.map_err(|e| Error::retry(format!("a message could not be handed over: {e}")))
    }

    async fn ask<Q: Serialize, A: DeserializeOwned>(&self, subject: String, question: &Q) -> Result<A> {
        let bytes = wire::encode(question)?;
        let asked = tokio::time::timeout(self.timeout, self.client.request(subject.clone(), bytes.into())).await;
        let answer = asked.map_err(|_| Error::retry(format!("no answer on {subject} within {:?}", self.timeout)))?;
        let answer = answer.map_err(|e| Error::retry(format!("no answer on {subject}: {e}")))?;
        wire::decode(&answer.payload).map_err(|e| e.at(subject))
    }
}
