//! What a leader listens to, and nobody else; and whether a message may say what it says: in whose
//! name it comes, and where its answer is to go.

use async_nats::{Client, Subject, Subscriber};
use futures::stream::{self, Select};

use muster_common::ids::WorkerId;
use muster_common::names::{self, Names};
use muster_common::{Error, Result};

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

/// Whether a message on a subject may speak for a worker. One that names a worker speaks for that
/// one alone: NATS lets a worker with a user of its own publish no other.
///
/// # Errors
/// `Invalid` where it may not.
pub(super) fn check_sender(names: &Names, subject: &str, worker: &WorkerId) -> Result<()> {
    let requests = [names.register(), names.samples(), names.report()];
    let may = requests
        .iter()
        .any(|shared| subject == shared || subject == names::of_worker(shared, worker));
    if may || subject == names.heartbeat(worker) || subject == names.recoveries(worker) {
        return Ok(());
    }
    Err(Error::invalid(format!("a message on {subject} speaks for worker {worker}")))
}

/// Where an answer goes.
///
/// # Errors
/// `Invalid` where nobody waits for one, or where it would go to what only a coordinator may write.
pub(super) fn check_reply(names: &Names, reply: Option<Subject>) -> Result<Subject> {
    let reply = reply.ok_or_else(|| Error::invalid("it has no reply subject"))?;
    if names.may_answer(&reply) {
        return Ok(reply);
    }
    Err(Error::invalid(format!("its answer would go to {reply}, which is for nobody to choose")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_that_names_a_worker_speaks_for_it_alone() {
        let names = Names::new("muster");
        let worker: WorkerId = "w1".parse().expect("id");
        for (subject, expected) in [
            ("muster.c.register", true),
            ("muster.c.report", true),
            ("muster.c.samples.w1", true),
            ("muster.c.register.w2", false),
            ("muster.w.w1.hb", true),
            ("muster.w.w2.hb", false),
            ("muster.w.w1.rec", true),
            ("muster.w.w2.rec", false),
            ("muster.w.w1.cmd.run", false),
            ("other.c.report", false),
        ] {
            assert_eq!(check_sender(&names, subject, &worker).is_ok(), expected, "{subject}");
        }
    }

    #[test]
    fn answers_go_to_inboxes() {
        let names = Names::new("muster");
        let check = |reply: Option<&str>| {
            check_reply(&names, reply.map(Subject::from)).map_err(|e| e.message)
        };
        assert!(check(Some("_INBOX.a.b")).is_ok());
        assert!(check(None).is_err_and(|error| error.contains("no reply subject")));
        assert!(check(Some("muster.journal")).is_err_and(|error| error.contains("muster.journal")));
    }
}
