//! The one writer of the journal.
//!
//! Every append names the sequence number that it expects to be the newest. That is the whole fence: a leader that somebody else has followed finds its next
//! append refused. An answer that was lost is *unknown*: the tail is read, and the writer looks for its own nonce. Only then is the append made again, under the same
//! expectation; so no record is ever written twice and none is taken for lost that stands.
//!
//! Appends go one after the other in the order in which the machine asked for them. The writer never gives up on trouble that may pass (it says what it waits for);
//! it ends when it is fenced.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use muster_common::clock::Clock;
use muster_common::ids::{DeploymentId, Epoch};
use muster_common::ledger::{Appended, Ledger};
use muster_common::{Error, ErrorKind, Result};

use super::fold::Fold;
use super::record::{self, Entry, Record};
use crate::job::durable::Durable;

/// Longest pause between tries, in milliseconds.
const BACKOFF_MS_MAX: u64 = 2000;
/// Tries of a refused append whose cause cannot be seen before the writer calls itself fenced.
const UNSEEN_CONFLICTS_MAX: u32 = 10;
/// Most epochs that may begin between reading the journal and beginning one's own.
const BEGIN_TRIES_MAX: u32 = 100;

/// Writes the journal under one epoch.
pub struct JournalWriter {
    ledger: Arc<dyn Ledger>,
    clock: Arc<dyn Clock>,
    append_timeout: Duration,
    epoch: Epoch,
    last: u64,
    stalled: watch::Sender<Option<String>>,
}

/// What a new leader finds.
#[derive(Debug)]
pub struct Replayed {
    /// The state that the journal gives, the new epoch included.
    pub durable: Durable,
    /// Entries that contradicted it and were passed over.
    pub refused: Vec<String>,
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
    /// Reads the journal and begins a new epoch, under which it writes from then on. Waits for a ledger that does not answer.
    ///
    /// # Errors
    /// `Invalid` where an entry cannot be read (a newer build wrote it); `Fenced` where others keep beginning epochs.
    pub async fn begin(
        ledger: Arc<dyn Ledger>,
        clock: Arc<dyn Clock>,
        append_timeout: Duration,
        stalled: watch::Sender<Option<String>>,
    ) -> Result<(Self, Replayed)> {
        let mut writer = Self { ledger, clock, append_timeout, epoch: Epoch(0), last: 0, stalled };
        for _ in 0..BEGIN_TRIES_MAX {
            let mut replayed = writer.replay().await?;
            match writer.begin_epoch(&mut replayed.durable).await {
                Ok(()) => return Ok((writer, replayed)),
                Err(error) if error.kind == ErrorKind::Fenced => {}
                Err(error) => return Err(error),
            }
        }
        Err(Error::new(ErrorKind::Fenced, format!("{BEGIN_TRIES_MAX} times another coordinator began an epoch first")))
    }

    /// The epoch that it writes under.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    async fn replay(&mut self) -> Result<Replayed> {
        let entries = self.read(1).await;
        self.last = match entries.last() {
            Some(entry) => entry.sequence,
            None => self.last_sequence().await,
        };
        let mut fold = Fold::default();
        for entry in entries {
            let sequence = entry.sequence;
            fold.push(record::decode(&entry.bytes).map_err(|e| e.at(format!("the journal's entry {sequence}")))?);
        }
        let (durable, refused) = fold.finish();
        Ok(Replayed { durable, refused })
    }

    async fn begin_epoch(&mut self, durable: &mut Durable) -> Result<()> {
        self.epoch = durable.epoch;
        let mut records = Vec::new();
        if durable.deployment.is_none() {
            let text = format!("d{:016x}", self.clock.random());
            let deployment: DeploymentId = text.parse().map_err(|e| Error::bug(format!("{e}")))?;
            records.push(Record::DeploymentCreated { deployment });
        }
        records.push(Record::EpochBegan { epoch: Epoch(durable.epoch.0 + 1), nonce: self.clock.random() });
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
        let nonce = self.clock.random();
        let bytes: Bytes = record::encode(&Entry { epoch: self.epoch, nonce, record: record.clone() })?.into();
        let (mut tries, mut unseen) = (0, 0);
        loop {
            let appended =
                tokio::time::timeout(self.append_timeout, self.ledger.append(self.last, bytes.clone())).await;
            let trouble = match appended {
                Ok(Appended::Applied { sequence }) => return Ok(self.applied(sequence)),
                Ok(Appended::Full { why }) => format!("the journal is full: {why}"),
                Ok(Appended::Conflict) => {
                    if let Some(sequence) = self.find_own(nonce).await? {
                        return Ok(self.applied(sequence));
                    }
                    unseen += 1;
                    if unseen >= UNSEEN_CONFLICTS_MAX {
                        return Err(self.fenced("its newest sequence number is not the expected one"));
                    }
                    "the journal refuses an append, but shows no other record".to_owned()
                }
                Ok(Appended::Unknown { why }) => match self.find_own(nonce).await? {
                    Some(sequence) => return Ok(self.applied(sequence)),
                    None => format!("the journal does not answer: {why}"),
                },
                Err(_) => match self.find_own(nonce).await? {
                    Some(sequence) => return Ok(self.applied(sequence)),
                    None => format!("the journal has not answered for {} ms", self.append_timeout.as_millis()),
                },
            };
            self.wait(&mut tries, &trouble).await;
        }
    }

    fn applied(&mut self, sequence: u64) -> u64 {
        self.last = sequence;
        self.stalled.send_if_modified(|stalled| stalled.take().is_some());
        sequence
    }

    fn fenced(&self, what: &str) -> Error {
        let Epoch(epoch) = self.epoch;
        Error::new(ErrorKind::Fenced, format!("epoch {epoch} is over: another coordinator writes the journal ({what})"))
    }

    /// Reads what stands after the newest known record. `None` where nothing does.
    async fn find_own(&self, nonce: u64) -> Result<Option<u64>> {
        let tail = self.read(self.last + 1).await;
        let Some(first) = tail.first() else { return Ok(None) };
        match record::decode(&first.bytes) {
            Ok(entry) if entry.nonce == nonce && entry.epoch == self.epoch => Ok(Some(first.sequence)),
            Ok(entry) => Err(self.fenced(&format!("entry {} is of epoch {}", first.sequence, entry.epoch))),
            Err(error) => Err(self.fenced(&format!("entry {} cannot be read: {error}", first.sequence))),
        }
    }

    async fn read(&self, first: u64) -> Vec<muster_common::ledger::Entry> {
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
        self.stalled.send_if_modified(|stalled| stalled.replace(trouble.to_owned()).as_deref() != Some(trouble));
        let full = (20_u64 << (*tries).min(10)).min(BACKOFF_MS_MAX);
        let pause_ms = full / 2 + self.clock.random() % (full / 2 + 1);
        *tries = tries.saturating_add(1);
        tokio::time::sleep(Duration::from_millis(pause_ms)).await;
    }

    async fn purge(&self, before: u64) {
        if let Err(error) = self.ledger.purge_before(before).await {
            // Harmless: the next snapshot purges again.
            tracing::warn!(before, %error, "the journal could not be shortened");
        }
    }

    /// Carries out orders until the sender is dropped or the writer is fenced.
    pub async fn serve(mut self, mut orders: mpsc::UnboundedReceiver<Order>, answers: mpsc::UnboundedSender<Written>) {
        while let Some(order) = orders.recv().await {
            let answer = match order {
                Order::Purge { before } => {
                    self.purge(before).await;
                    continue;
                }
                Order::Append { token, record } => match self.append(&record).await {
                    Ok(sequence) => Written::Applied { token, sequence },
                    Err(error) => Written::Stopped { error },
                },
            };
            let stop = matches!(answer, Written::Stopped { .. });
            if answers.send(answer).is_err() || stop {
                return;
            }
        }
    }
}

#[cfg(test)]
#[path = "writer_tests.rs"]
mod tests;
