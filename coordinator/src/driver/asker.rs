//! Who waits for which answer. The machine knows askers by number only.

use std::collections::BTreeMap;

use async_nats::{Client, Subject, service};
use bytes::Bytes;
use serde::Serialize;

use muster_common::error::Result;
use muster_common::wire::{self, MESSAGE_BYTES_MAX};

use crate::job::io::{RefusalCode, Reply, ReplyTo};

/// How long an answer may take, in milliseconds; those who ask repeat themselves long before.
const WAIT_MS_MAX: u64 = 60_000;
/// Most that wait at once; beyond, the oldest is forgotten.
const WAITING_MAX: usize = 100_000;

/// Where an answer goes.
pub(super) enum Asker {
    /// A worker: postcard to a reply subject, in the version of the question.
    Worker {
        /// Where it listens.
        reply: Subject,
        /// The version.
        peer: u8,
    },
    /// A client of the control API: JSON.
    Client(Box<service::Request>),
}

/// Those who wait.
#[derive(Default)]
pub(super) struct Askers {
    next: u64,
    waiting: BTreeMap<ReplyTo, (u64, Asker)>,
}

impl Askers {
    pub(super) fn admit(&mut self, now_ms: u64, asker: Asker) -> ReplyTo {
        self.next += 1;
        let to = ReplyTo(self.next);
        self.waiting.insert(to, (now_ms, asker));
        if self.waiting.len() > WAITING_MAX {
            self.waiting.pop_first();
        }
        to
    }

    pub(super) fn take(&mut self, to: ReplyTo) -> Option<Asker> {
        self.waiting.remove(&to).map(|(_, asker)| asker)
    }

    /// Forgets those who have waited for too long: they come in the order in which they asked.
    pub(super) fn expire(&mut self, now_ms: u64) {
        while let Some(oldest) = self.waiting.first_entry()
            && now_ms.saturating_sub(oldest.get().0) > WAIT_MS_MAX
        {
            oldest.remove();
        }
    }
}

impl Asker {
    /// Sends the answer. One that is lost is asked for again.
    pub(super) async fn answer(self, client: &Client, reply: Reply) {
        let sent = match self {
            Asker::Worker { reply: subject, peer } => match worker_bytes(peer, reply) {
                Ok(bytes) => client.publish(subject, bytes.into()).await,
                Err(error) => return tracing::error!(%error, "an answer could not be encoded"),
            },
            Asker::Client(request) => request.respond(client_bytes(reply)).await,
        };
        if let Err(error) = sent {
            tracing::debug!(%error, "an answer was not sent");
        }
    }
}

fn worker_bytes(peer: u8, reply: Reply) -> Result<Vec<u8>> {
    match reply {
        Reply::Register(reply) => wire::encode_for(peer, &reply),
        Reply::Report(reply) => wire::encode_for(peer, &reply),
        Reply::Phase(reply) => wire::encode_for(peer, &reply),
        other => {
            Err(muster_common::Error::bug(format!("a worker was to be answered with {other:?}")))
        }
    }
}

fn client_bytes(reply: Reply) -> Result<Bytes, service::error::Error> {
    match reply {
        Reply::Job(status) => json(&status),
        Reply::Jobs(list) => json_list(list),
        Reply::Worker(status) => json(&status),
        Reply::Workers(list) => json_list(list),
        Reply::Refused { code, error } => Err(service_error(code, &error.message)),
        other => Err(service_error(
            RefusalCode::Later,
            &format!("a client was to be answered with {other:?}"),
        )),
    }
}

fn json<T: Serialize>(value: &T) -> Result<Bytes, service::error::Error> {
    match serde_json::to_vec(value) {
        Ok(bytes) if bytes.len() <= MESSAGE_BYTES_MAX => Ok(bytes.into()),
        Ok(bytes) => Err(service_error(
            RefusalCode::Later,
            &format!("the answer has {} bytes, the limit is {MESSAGE_BYTES_MAX}", bytes.len()),
        )),
        Err(error) => Err(service_error(
            RefusalCode::Later,
            &format!("the answer cannot be written as JSON: {error}"),
        )),
    }
}

/// A list, cut to what fits into a message.
fn json_list<T: Serialize>(mut list: Vec<T>) -> Result<Bytes, service::error::Error> {
    loop {
        match json(&list) {
            Err(_) if list.len() > 1 => list.truncate(list.len() / 2),
            outcome => return outcome,
        }
    }
}

/// The protocol's error headers hold one line.
pub(super) fn service_error(code: RefusalCode, message: &str) -> service::error::Error {
    let status = message.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    service::error::Error { status, code: code.number() }
}
