//! The one writer of the journal.
//!
//! Every append names the sequence number that it expects to be the newest. That is the whole
//! fence: a leader that somebody else has followed finds its next append refused. An answer that
//! was lost is *unknown*: the tail is read, and the writer looks for its own nonce. Only then is
//! the append made again, under the same expectation; so no record is ever written twice and none
//! is taken for lost that stands.
//!
//! Appends go one after the other in the order in which the machine asked for them. The writer
//! never gives up on trouble that may pass (it says what it waits for); it ends when it is fenced.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::channel::oneshot;
use futures::future::{self, Either};
use tokio::sync::{mpsc, watch};
use tracing::Instrument;

use muster_platform::clock::Clock;
use muster_platform::ledger::{Appended, Ledger};
use muster_protocol::ids::{DeploymentId, Epoch};
use muster_protocol::planted::{self, Bug};
use muster_protocol::{Error, ErrorKind, Result};

use super::record::{self, Entry, Record};
pub use super::replay::Replayed;
use super::replay::replay;
use super::standing::{Moment, Standing};
use crate::job::ledger::durable::Durable;

/// Longest pause between tries, in milliseconds.
const BACKOFF_MS_MAX: u64 = 2000;
/// Tries of a refused append whose cause cannot be seen before the writer calls itself fenced.
const UNSEEN_CONFLICTS_MAX: u32 = 10;

/// Writes the journal under one epoch.
pub struct JournalWriter {
    ledger: Arc<dyn Ledger>,
    clock: Arc<dyn Clock>,
    append_timeout: Duration,
    epoch: Epoch,
    last: u64,
    stalled: watch::Sender<Option<String>>,
    standing: Arc<Standing>,
}

/// A journal that was read, and in which nothing has been written yet.
pub struct Candidate {
    writer: JournalWriter,
    replayed: Replayed,
}

/// What the writer's task is asked for.
#[derive(Debug)]
pub enum Order {
    /// Append a record.
    Append {
        /// Comes back with the outcome.
        token: u64,
        /// The record.
        record: Box<Record>,
    },
    /// Make sure that this leader leads: append a record that says so, unless one that was sent
    /// after that is acknowledged.
    Ask {
        /// When the question came up.
        asked: Moment,
        /// Told when it is sure; dropped where it never will be.
        answer: oneshot::Sender<()>,
    },
    /// Remove what a snapshot has replaced.
    Purge {
        /// Everything before this sequence number.
        before: u64,
    },
}

/// What the writer's task answers.
#[derive(Debug)]
pub enum Written {
    /// The record stands.
    Applied {
        /// The order's.
        token: u64,
        /// Where it stands.
        sequence: u64,
    },
    /// Somebody else leads, or the record cannot be written at all. The task has ended.
    Stopped {
        /// Why.
        error: Error,
    },
}

impl JournalWriter {
    /// Reads the journal. Waits for a ledger that does not answer.
    ///
    /// # Errors
    /// As [`replay`](fn@replay): where the journal cannot be gone on from.
    pub async fn read(
        ledger: Arc<dyn Ledger>,
        clock: Arc<dyn Clock>,
        append_timeout: Duration,
        stalled: watch::Sender<Option<String>>,
    ) -> Result<Candidate> {
        let standing = Arc::default();
        let mut writer =
            Self { ledger, clock, append_timeout, epoch: Epoch(0), last: 0, stalled, standing };
        let replayed = writer.replay().await?;
        Ok(Candidate { writer, replayed })
    }

    /// Reads the journal and begins a new epoch at once.
    ///
    /// # Errors
    /// As [`JournalWriter::read`] and [`Candidate::begin`].
    pub async fn begin(
        ledger: Arc<dyn Ledger>,
        clock: Arc<dyn Clock>,
        append_timeout: Duration,
        stalled: watch::Sender<Option<String>>,
    ) -> Result<(Self, Replayed)> {
        Self::read(ledger, clock, append_timeout, stalled).await?.begin().await
    }

    /// The epoch that it writes under.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Where it says when its leader was last known to lead.
    pub fn standing(&self) -> Arc<Standing> {
        self.standing.clone()
    }

    async fn replay(&mut self) -> Result<Replayed> {
        let (entries, last) = self.read_whole().await;
        self.last = last;
        replay(entries)
    }

    /// The whole journal, and its newest sequence number. One that has entries and shows none is
    /// read from a replica that lags: whoever took it for empty would begin another deployment in
    /// it. However long that lasts, what tells it from one that was emptied by hand is the newest
    /// entry, with which no replica answers; and the number is asked for before, so that what
    /// somebody else appends meanwhile is a conflict.
    async fn read_whole(&self) -> (Vec<muster_platform::ledger::Entry>, u64) {
        let mut tries = 0;
        loop {
            let entries = self.entries_from(1).await;
            if let Some(newest) = entries.last() {
                let last = newest.sequence;
                return (entries, last);
            }
            let last = self.last_sequence().await;
            let trouble = match self.ledger.newest().await {
                Ok(None) => return (entries, last),
                Ok(Some(newest)) => {
                    format!("the journal's newest entry is {}, but it shows none", newest.sequence)
                }
                Err(error) => error.message,
            };
            self.wait(&mut tries, &trouble).await;
        }
    }

    async fn begin_epoch(&mut self, durable: &mut Durable) -> Result<()> {
        self.epoch = durable.epoch;
        let mut records = Vec::new();
        if durable.deployment.is_none() {
            let text = format!("d{:016x}", self.clock.random());
            let deployment: DeploymentId = text.parse().map_err(|e| Error::bug(format!("{e}")))?;
            records.push(Record::DeploymentCreated { deployment });
        }
        records.push(Record::EpochBegan {
            epoch: Epoch(durable.epoch.0 + 1),
            nonce: self.clock.random(),
        });
        for record in records {
            if let Record::EpochBegan { epoch, .. } = record {
                self.epoch = epoch;
            }
            self.append(&record).await?;
            durable.apply(&record).map_err(Error::bug)?;
        }
        Ok(())
    }

    /// Appends a record and gives its sequence number.
    ///
    /// # Errors
    /// `Fenced` where another record stands in its place; `Bug` where it is too large.
    pub async fn append(&mut self, record: &Record) -> Result<u64> {
        let mut nonce = self.clock.random();
        let mut bytes = self.encoded(nonce, record)?;
        let (mut tries, mut unseen) = (0, 0);
        loop {
            let sent = Moment::of(&*self.clock);
            let appending = self.ledger.append(self.last, bytes.clone());
            let late = self
                .clock
                .pause(u64::try_from(self.append_timeout.as_millis()).unwrap_or(u64::MAX));
            let appended = match future::select(appending, late).await {
                Either::Left((appended, _)) => Some(appended),
                Either::Right(_) => None,
            };
            let trouble = match appended {
                Some(Appended::Applied { sequence }) => {
                    self.standing.confirm(sent);
                    return Ok(self.applied(sequence));
                }
                Some(Appended::Full { why }) => format!("the journal is full: {why}"),
                Some(Appended::Conflict) if planted::is(Bug::SkipEpochCheck) => {
                    self.last = self.last_sequence().await;
                    continue;
                }
                Some(Appended::Conflict) => {
                    if let Some(sequence) = self.find_own(nonce).await? {
                        return Ok(self.applied(sequence));
                    }
                    unseen += 1;
                    if unseen >= UNSEEN_CONFLICTS_MAX {
                        return Err(
                            self.fenced("its newest sequence number is not the expected one")
                        );
                    }
                    "the journal refuses an append, but shows no other record".to_owned()
                }
                Some(Appended::Unknown { .. }) if planted::is(Bug::UnknownIsFailed) => {
                    return Err(Error::retry("an answer was lost"));
                }
                Some(Appended::Unknown { .. }) if planted::is(Bug::UnknownIsNew) => {
                    self.last = self.last_sequence().await;
                    nonce = self.clock.random();
                    bytes = self.encoded(nonce, record)?;
                    continue;
                }
                Some(Appended::Unknown { why }) => match self.find_own(nonce).await? {
                    Some(sequence) => return Ok(self.applied(sequence)),
                    None => format!("the journal does not answer: {why}"),
                },
                None => match self.find_own(nonce).await? {
                    Some(sequence) => return Ok(self.applied(sequence)),
                    None => format!(
                        "the journal has not answered for {} ms",
                        self.append_timeout.as_millis()
                    ),
                },
            };
            self.wait(&mut tries, &trouble).await;
        }
    }

    fn encoded(&self, nonce: u64, record: &Record) -> Result<Bytes> {
        Ok(record::encode(&Entry { epoch: self.epoch, nonce, record: record.clone() })?.into())
    }

    fn applied(&mut self, sequence: u64) -> u64 {
        self.last = sequence;
        self.stalled.send_if_modified(|stalled| stalled.take().is_some());
        sequence
    }

    fn fenced(&self, what: &str) -> Error {
        let Epoch(epoch) = self.epoch;
        Error::new(
            ErrorKind::Fenced,
            format!("epoch {epoch} is over: another coordinator writes the journal ({what})"),
        )
    }

    /// Reads what stands after the newest known record. `None` where nothing does.
    async fn find_own(&self, nonce: u64) -> Result<Option<u64>> {
        let tail = self.entries_from(self.last + 1).await;
        let Some(first) = tail.first() else { return Ok(None) };
        match record::decode(&first.bytes) {
            Ok(entry) if entry.nonce == nonce && entry.epoch == self.epoch => {
                Ok(Some(first.sequence))
            }
            Ok(entry) => {
                Err(self.fenced(&format!("entry {} is of epoch {}", first.sequence, entry.epoch)))
            }
            Err(error) => {
                Err(self.fenced(&format!("entry {} cannot be read: {error}", first.sequence)))
            }
        }
    }

    async fn entries_from(&self, first: u64) -> Vec<muster_platform::ledger::Entry> {
        let mut tries = 0;
        loop {
            match self.ledger.read_from(first).await {
                Ok(entries) => return entries,
                Err(error) => self.wait(&mut tries, &error.message).await,
            }
        }
    }

    async fn last_sequence(&self) -> u64 {
        let mut tries = 0;
        loop {
            match self.ledger.last_sequence().await {
                Ok(sequence) => return sequence,
                Err(error) => self.wait(&mut tries, &error.message).await,
            }
        }
    }

    async fn wait(&self, tries: &mut u32, trouble: &str) {
        if *tries == 0 {
            tracing::warn!(epoch = self.epoch.0, trouble, "waiting for the journal");
        }
        self.stalled.send_if_modified(|stalled| {
            stalled.replace(trouble.to_owned()).as_deref() != Some(trouble)
        });
        let full = (20_u64 << (*tries).min(10)).min(BACKOFF_MS_MAX);
        let pause_ms = full / 2 + self.clock.random() % (full / 2 + 1);
        *tries = tries.saturating_add(1);
        self.clock.pause(pause_ms).await;
    }

    async fn purge(&self, before: u64) {
        if let Err(error) = self.ledger.purge_before(before).await {
            // Harmless: the next snapshot purges again.
            tracing::warn!(before, %error, "the journal could not be shortened");
        }
    }

    /// Carries out orders until the sender is dropped or the writer is fenced.
    pub async fn serve(
        mut self,
        mut orders: mpsc::UnboundedReceiver<Order>,
        answers: mpsc::UnboundedSender<Written>,
    ) {
        while let Some(order) = orders.recv().await {
            let answer = match order {
                Order::Purge { before } => {
                    self.purge(before).await;
                    continue;
                }
                Order::Ask { asked, answer } => {
                    // One of the same millisecond may have been sent before the question came up.
                    let sure = self.standing.is_after(asked);
                    match if sure { Ok(0) } else { self.append(&Record::StillLeads).await } {
                        // Who asked may be gone.
                        Ok(_) => drop(answer.send(())),
                        Err(_) if planted::is(Bug::UnknownIsFailed) => {}
                        Err(error) => {
                            drop(answers.send(Written::Stopped { error }));
                            return;
                        }
                    }
                    continue;
                }
                Order::Append { token, record } => {
                    match self.append(&record).instrument(tracing::debug_span!("append")).await {
                        Ok(sequence) => Written::Applied { token, sequence },
                        Err(_) if planted::is(Bug::UnknownIsFailed) => continue,
                        Err(error) => Written::Stopped { error },
                    }
                }
            };
            let stop = matches!(answer, Written::Stopped { .. });
            if answers.send(answer).is_err() || stop {
                return;
            }
        }
    }
}

impl Candidate {
    /// What was read.
    pub fn replayed(&self) -> &Replayed {
        &self.replayed
    }

    /// Begins a new epoch, under which the writer writes from then on.
    ///
    /// # Errors
    /// `Fenced` where anything was appended since the journal was read: somebody else leads.
    pub async fn begin(mut self) -> Result<(JournalWriter, Replayed)> {
        self.writer.begin_epoch(&mut self.replayed.durable).await?;
        Ok((self.writer, self.replayed))
    }
}

#[cfg(test)]
#[path = "writer_tests.rs"]
mod tests;
