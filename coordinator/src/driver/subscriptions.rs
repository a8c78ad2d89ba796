//! What a leader listens to, and nobody else.

use async_nats::{Client, Subscriber};
use futures::stream::{self, Select};

use muster_protocol::names::{self, Names};
use muster_protocol::{Error, Result};

use crate::stand_by::SUBSCRIBE_TIMEOUT;

/// Requests of workers that share a user, and of those that have one of their own.
type Requests = Select<Subscriber, Subscriber>;

/// The subscriptions of a leader.
pub(crate) struct Subscriptions {
    pub(super) register: Requests,
    pub(super) samples: Requests,
    pub(super) report: Requests,
    pub(super) phase: Subscriber,
    pub(super) heartbeats: Subscriber,
    pub(super) recoveries: Subscriber,
}

impl Subscriptions {
    /// Subscribes.
    ///
    /// # Errors
    /// `Retry` where NATS does not take a subscription.
    pub(crate) async fn new(client: &Client, names: &Names) -> Result<Self> {
        let requests = |subject: String| async move {
            let own = subscribe(client, names::of_any_worker(&subject)).await?;
            Ok::<_, Error>(stream::select(subscribe(client, subject).await?, own))
        };
        Ok(Self {
            register: requests(names.register()).await?,
            samples: requests(names.samples()).await?,
            report: requests(names.report()).await?,
            phase: subscribe(client, names.phase()).await?,
            heartbeats: subscribe(client, names.heartbeats()).await?,
            recoveries: subscribe(client, names.all_recoveries()).await?,
        })
    }
}

async fn subscribe(client: &Client, subject: String) -> Result<Subscriber> {
    match tokio::time::timeout(SUBSCRIBE_TIMEOUT, client.subscribe(subject.clone())).await {
        Ok(Ok(subscriber)) => Ok(subscriber),
        Ok(Err(error)) => Err(Error::retry(format!("cannot subscribe to {subject}: {error}"))),
        Err(_) => Err(Error::retry(format!("cannot subscribe to {subject} within 10 s"))),
    }
}
