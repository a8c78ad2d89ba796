//! The door of a leader: what it takes in of what others send, and in which shape an answer goes
//! out. A message is passed over that cannot be read, that speaks for another worker than its
//! subject may, or that wants its answer where nobody may choose. Those who wait for an answer the
//! machine knows by number only.
//!
//! Pure: the driver stands at it with NATS, the simulation with a bus of its own.

use std::collections::BTreeMap;

use async_nats::{Subject, service};
use bytes::Bytes;
use serde::Serialize;

use muster_protocol::ids::WorkerId;
use muster_protocol::names::{self, Names};
use muster_protocol::wire::{
    self, Heartbeat, JobRecoveries, MESSAGE_BYTES_MAX, PhaseQuery, Register, Report,
};
use muster_protocol::{Error, Result};

use crate::api::{self, Call};
use crate::job::io::{Effect, Input, RefusalCode, Reply, ReplyTo};

/// How long an answer may take, in milliseconds; those who ask repeat themselves long before.
const WAIT_MS_MAX: u64 = 60_000;
/// Most that wait at once; beyond, the oldest is forgotten.
const WAITING_MAX: usize = 100_000;

/// What is heard on a subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A worker asks for admission.
    Register,
    /// A worker reports an outcome, samples among them.
    Report,
    /// Somebody asks where a job stands, or who leads.
    Phase,
    /// A worker's sign of life.
    Heartbeat,
    /// What a worker retried by itself.
    Recoveries,
}

impl Kind {
    /// What a malformed one is called.
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Register | Kind::Report | Kind::Phase => "request",
            Kind::Heartbeat | Kind::Recoveries => "message of a worker",
        }
    }
}

/// A message as it came.
#[derive(Debug, Clone, Copy)]
pub struct Letter<'a> {
    /// On which subject.
    pub subject: &'a str,
    /// Where its answer is to go, where one is wanted.
    pub reply: Option<&'a Subject>,
    /// Its bytes.
    pub payload: &'a [u8],
}

/// Who waits for an answer; `C` is how a client is answered.
enum Asker<C> {
    /// A worker: postcard to a reply subject, in the version of the question.
    Worker {
        /// Where it listens.
        reply: Subject,
        /// The version.
        peer: u8,
    },
    /// A client of the control API: JSON.
    Client(C),
}

/// An answer on its way out.
pub enum Outgoing<C> {
    /// Postcard, to a subject.
    Worker(Subject, Result<Vec<u8>>),
    /// JSON, or an error of the service.
    Client(C, Result<Bytes, service::error::Error>),
}

/// See the module.
pub struct Door<C> {
    names: Names,
    next: u64,
    waiting: BTreeMap<ReplyTo, (u64, Asker<C>)>,
}

impl<C> Door<C> {
    /// Nobody waits yet.
    pub fn new(names: Names) -> Self {
        Self { names, next: 0, waiting: BTreeMap::new() }
    }

    /// What the machine takes in of a message.
    ///
    /// # Errors
    /// `Invalid`, or what reading it has met with, where it is passed over.
    pub fn hear(&mut self, now_ms: u64, kind: Kind, letter: Letter<'_>) -> Result<Input> {
        let Letter { subject, reply, payload } = letter;
        let speaks_for = |worker: &WorkerId| check_sender(&self.names, subject, worker);
        // What is only told has nobody to answer to.
        match kind {
            Kind::Heartbeat => {
                let heartbeat: Heartbeat = wire::decode(payload)?;
                speaks_for(&heartbeat.worker)?;
                return Ok(Input::Heartbeat(Box::new(heartbeat)));
            }
            Kind::Recoveries => {
                let told: JobRecoveries = wire::decode(payload)?;
                speaks_for(&told.worker)?;
                return Ok(Input::Recoveries(Box::new(told)));
            }
            Kind::Register | Kind::Report | Kind::Phase => {}
        }
        let reply = check_reply(&self.names, reply)?.clone();
        let peer = payload.first().copied().unwrap_or(wire::WIRE_VERSION_OLDEST);
        let asker = Asker::Worker { reply, peer };
        Ok(match kind {
            Kind::Register => {
                let register: Register = wire::decode(payload)?;
                speaks_for(&register.worker)?;
                Input::Register { to: self.admit(now_ms, asker), register: Box::new(register) }
            }
            Kind::Report => {
                let report: Report = wire::decode(payload)?;
                speaks_for(&report.worker)?;
                Input::Report { to: self.admit(now_ms, asker), report: Box::new(report) }
            }
            Kind::Phase | Kind::Heartbeat | Kind::Recoveries => {
                let query: PhaseQuery = wire::decode(payload)?;
                Input::AskPhase { to: self.admit(now_ms, asker), query }
            }
        })
    }

    /// What the machine takes in of a client's call, or else the answer that refuses it.
    ///
    /// # Errors
    /// `Invalid` where it is passed over.
    pub fn call(
        &mut self,
        (now_ms, unix_ms): (u64, u64),
        call: Call,
        letter: Letter<'_>,
        client: C,
    ) -> Result<Result<Input, Effect>> {
        check_reply(&self.names, letter.reply)?;
        let to = self.admit(now_ms, Asker::Client(client));
        Ok(api::parse(call, letter.payload, to, unix_ms).map_err(|error| {
            let reply = Reply::Refused { code: RefusalCode::BadRequest, error };
            Effect::Reply { to, reply }
        }))
    }

    fn admit(&mut self, now_ms: u64, asker: Asker<C>) -> ReplyTo {
        self.next += 1;
        let to = ReplyTo(self.next);
        self.waiting.insert(to, (now_ms, asker));
        if self.waiting.len() > WAITING_MAX {
            self.waiting.pop_first();
        }
        to
    }

    /// The machine's answer to somebody, where that one still waits.
    pub fn answer(&mut self, to: ReplyTo, reply: Reply) -> Option<Outgoing<C>> {
        Some(match self.waiting.remove(&to)?.1 {
            Asker::Worker { reply: subject, peer } => {
                Outgoing::Worker(subject, worker_bytes(peer, reply))
            }
            Asker::Client(client) => Outgoing::Client(client, client_bytes(reply)),
        })
    }

    /// Forgets those who have waited for too long: they come in the order in which they asked.
    pub fn expire(&mut self, now_ms: u64) {
        while let Some(oldest) = self.waiting.first_entry()
            && now_ms.saturating_sub(oldest.get().0) > WAIT_MS_MAX
        {
            oldest.remove();
        }
    }
}

fn worker_bytes(peer: u8, reply: Reply) -> Result<Vec<u8>> {
    match reply {
        Reply::Register(reply) => wire::encode_for(peer, &reply),
        Reply::Report(reply) => wire::encode_for(peer, &reply),
        Reply::Phase(reply) => wire::encode_for(peer, &reply),
        other => Err(Error::bug(format!("a worker was to be answered with {other:?}"))),
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
fn service_error(code: RefusalCode, message: &str) -> service::error::Error {
    let status = message.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    service::error::Error { status, code: code.number() }
}

/// Whether a message on a subject may speak for a worker. One that names a worker speaks for that
/// one alone: NATS lets a worker with a user of its own publish no other.
///
/// # Errors
/// `Invalid` where it may not.
fn check_sender(names: &Names, subject: &str, worker: &WorkerId) -> Result<()> {
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
fn check_reply<'a>(names: &Names, reply: Option<&'a Subject>) -> Result<&'a Subject> {
    let reply = reply.ok_or_else(|| Error::invalid("it has no reply subject"))?;
    if names.may_answer(reply) {
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
            check_reply(&names, reply.map(Subject::from).as_ref()).map(drop).map_err(|e| e.message)
        };
        assert!(check(Some("_INBOX.a.b")).is_ok());
        assert!(check(None).is_err_and(|error| error.contains("no reply subject")));
        assert!(check(Some("muster.journal")).is_err_and(|error| error.contains("muster.journal")));
    }
}
