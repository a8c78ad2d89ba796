//! The simulated journal: a list with compare-and-set appends, whose answers get lost, and which is
//! read by replicas that lag.
//!
//! What stands in it is the truth that everything else is compared with: each entry is folded as it
//! lands.

use std::pin::Pin;
use std::task::{Context, Poll};

use async_trait::async_trait;
use bytes::Bytes;

use muster_coordinator::job::ledger::durable::Durable;
use muster_coordinator::journal::fold::Fold;
use muster_coordinator::journal::record::{self, Record};
use muster_platform::ledger::{Appended, Entry, Ledger};
use muster_protocol::ids::Epoch;
use muster_protocol::{Error, Result};

use super::core::{Core, Event, MS, Node, Ops, S, Shared, Way};
use super::dice::Dice;
use super::exec::lock;
use super::script::{Fate, Happens};

/// Room for the newest entries that a lagging replica misses.
const STALE_MAX: u64 = 3;

/// A call.
#[expect(missing_docs, reason = "the names are those of the port")]
pub enum Call {
    Append { expected: u64, bytes: Bytes },
    Read { first: u64 },
    Last,
    Newest,
    Purge { before: u64 },
}

/// An answer.
#[expect(missing_docs, reason = "the names are those of the port")]
pub enum Answer {
    Appended(Appended),
    Entries(Result<Vec<Entry>>),
    Last(Result<u64>),
    Newest(Result<Option<Entry>>),
    Purged(Result<()>),
}

/// The journal's stream.
pub struct SimLedger {
    dice: Dice,
    ops: Ops<Call, Answer>,
    first: u64,
    entries: Vec<Bytes>,
    /// Everything that ever landed, folded.
    pub truth: Durable,
    /// The nonce of each entry, to tell one that was written twice.
    nonces: std::collections::BTreeSet<u64>,
    newest: Epoch,
    /// When the newest epoch began.
    pub newest_us: u64,
}

impl SimLedger {
    /// An empty stream.
    pub fn new(seed: u64) -> Self {
        Self {
            dice: Dice::of(seed, "ledger"),
            ops: Ops::default(),
            first: 0,
            entries: Vec::new(),
            truth: Durable::default(),
            nonces: std::collections::BTreeSet::new(),
            newest: Epoch(0),
            newest_us: 0,
        }
    }

    /// The newest epoch.
    pub fn newest(&self) -> Epoch {
        self.newest
    }

    /// The newest sequence number.
    pub fn last(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    /// What stands there, as a new leader would fold it.
    pub fn replay(&self) -> (Durable, Vec<String>) {
        let mut fold = Fold::default();
        for bytes in &self.entries {
            match record::decode(bytes) {
                Ok(entry) => fold.push(entry),
                Err(error) => return (Durable::default(), vec![error.message]),
            }
        }
        fold.finish()
    }

    fn read(&self, first: u64, missing: u64) -> Vec<Entry> {
        let numbered = (self.first + 1..).zip(&self.entries).filter(|(n, _)| *n >= first);
        let mut found: Vec<Entry> =
            numbered.map(|(sequence, bytes)| Entry { sequence, bytes: bytes.clone() }).collect();
        found.truncate(found.len().saturating_sub(usize::try_from(missing).unwrap_or_default()));
        found
    }
}

impl Core {
    fn begin_ledger(&mut self, node: Node, call: Call) -> u64 {
        let (applied, lost, late, full, fails) = (
            self.weights.append_applied,
            self.weights.append_lost,
            self.weights.append_late,
            self.weights.append_full,
            self.weights.ledger_fails,
        );
        let append = matches!(call, Call::Append { .. });
        let fate = self.append_fate(node, &call);
        let op = self.ledger.ops.begin((node, self.nodes[node].life), self.now_us, call);
        let dice = &mut self.ledger.dice;
        let go_us = dice.within(200, 3 * MS);
        let (applied, lost, late) = (dice.chance(applied), dice.chance(lost), dice.chance(late));
        let (full, fails, long_us) =
            (dice.chance(full), dice.chance(fails), dice.within(S, 12 * S));
        let unknown =
            || Answer::Appended(Appended::Unknown { why: "the answer was lost".to_owned() });
        let cut = self.is_cut(node, Way::NatsOut);
        match append {
            true if fate == Some(Fate::LoseCall) || (fate.is_none() && (cut || lost)) => {
                self.mark("unknown outcome not applied");
                self.answer_ledger(op, unknown(), 5 * MS);
            }
            true if full && fate.is_none() => {
                let answer = Answer::Appended(Appended::Full { why: "no room".to_owned() });
                self.answer_ledger(op, answer, go_us);
            }
            true if fate == Some(Fate::LoseAnswer) || (applied && fate.is_none()) => {
                self.mark("unknown outcome applied");
                self.preset(op, unknown());
                self.after(go_us, Event::LedgerApply(op));
            }
            true if fate.is_some() => {
                let delay_us =
                    if let Some(Fate::DelayUs(delay_us)) = fate { delay_us } else { go_us };
                self.after(delay_us, Event::LedgerApply(op));
            }
            true if late => {
                self.preset(op, unknown());
                self.after(long_us, Event::LedgerApply(op));
            }
            false if self.is_in_minority(node) => {
                self.mark("read from a minority");
                let newest = self.nodes[node].minority.1;
                let answer = self.minority_answer(op, newest);
                self.answer_ledger(op, answer, go_us);
            }
            false if cut || fails => {
                let answer = self.ledger_failure(op);
                self.answer_ledger(op, answer, 20 * MS);
            }
            _ => self.after(go_us, Event::LedgerApply(op)),
        }
        op
    }

    fn append_fate(&mut self, node: Node, call: &Call) -> Option<Fate> {
        let Call::Append { bytes, .. } = call else { return None };
        self.script.as_ref()?;
        let entry = record::decode(bytes).ok()?;
        self.meets(Happens::Append(entry.record.kind()), node).0
    }

    fn ledger_failure(&mut self, op: u64) -> Answer {
        let error = || Error::retry("the journal does not answer");
        match self.ledger.ops.get_mut(op).and_then(|op| op.call.as_ref()) {
            Some(Call::Read { .. }) => Answer::Entries(Err(error())),
            Some(Call::Last) => Answer::Last(Err(error())),
            Some(Call::Newest) => Answer::Newest(Err(error())),
            _ => Answer::Purged(Err(error())),
        }
    }

    /// As a minority of the servers answers, which has all up to this entry, and takes no part in
    /// what is decided since.
    fn minority_answer(&mut self, op: u64, newest: u64) -> Answer {
        let missing = self.ledger.last().saturating_sub(newest);
        let read = |first| self.ledger.read(first, missing);
        match self.ledger.ops.peek(op).and_then(|op| op.call.as_ref()) {
            Some(Call::Read { first }) => Answer::Entries(Ok(read(*first))),
            Some(Call::Last) => Answer::Last(Ok(newest)),
            Some(Call::Newest) => Answer::Newest(Ok(read(0).pop())),
            _ => Answer::Purged(Err(Error::retry("the journal has no quorum"))),
        }
    }

    fn preset(&mut self, op: u64, answer: Answer) {
        if let Some(op) = self.ledger.ops.get_mut(op) {
            op.answer = Some(answer);
        }
    }

    fn answer_ledger(&mut self, op: u64, answer: Answer, pause_us: u64) {
        if let Some(op) = self.ledger.ops.get_mut(op) {
            op.call = None;
            op.answer = Some(answer);
        }
        self.after(pause_us, Event::LedgerAnswer(op));
    }

    /// A call reaches the server.
    pub fn apply_ledger(&mut self, op: u64) {
        let Some((call, node)) =
            self.ledger.ops.get_mut(op).and_then(|op| Some((op.call.take()?, op.node)))
        else {
            return;
        };
        let stale = self.weights.stale_read;
        let answer = match call {
            Call::Append { expected, .. } if expected != self.ledger.last() => {
                self.mark("append conflict");
                Answer::Appended(Appended::Conflict)
            }
            Call::Append { bytes, .. } => {
                self.land(node, bytes);
                Answer::Appended(Appended::Applied { sequence: self.ledger.last() })
            }
            Call::Read { first } => {
                let missing = if self.ledger.dice.chance(stale) {
                    self.ledger.dice.within(1, STALE_MAX)
                } else {
                    0
                };
                let missing = if self.now_us < self.stale_until_us { STALE_MAX } else { missing };
                if missing > 0 {
                    self.mark("stale read");
                }
                Answer::Entries(Ok(self.ledger.read(first, missing)))
            }
            Call::Last => Answer::Last(Ok(self.ledger.last())),
            // Never answered by a replica that lags: the port says so.
            Call::Newest => Answer::Newest(Ok(self.ledger.read(self.ledger.last(), 0).pop())),
            Call::Purge { before } => {
                let ledger = &mut self.ledger;
                let gone = before.saturating_sub(ledger.first + 1).min(ledger.entries.len() as u64);
                ledger.entries.drain(..usize::try_from(gone).unwrap_or(usize::MAX));
                ledger.first += gone;
                Answer::Purged(Ok(()))
            }
        };
        let back_us = self.ledger.dice.within(200, 3 * MS);
        if let Some(op) = self.ledger.ops.get_mut(op) {
            op.answer.get_or_insert(answer);
        }
        self.after(back_us, Event::LedgerAnswer(op));
    }

    /// An answer reaches its caller; where its way back is cut, an append's outcome is unknown.
    pub fn answer_arrives(&mut self, op: u64) {
        let Some(node) = self.ledger.ops.get_mut(op).map(|op| op.node) else { return };
        if self.is_cut(node, Way::NatsIn)
            && !self.is_in_minority(node)
            && let Some(op) = self.ledger.ops.get_mut(op)
        {
            let error = || Error::retry("the journal does not answer");
            op.answer = op.answer.take().map(|answer| match answer {
                Answer::Appended(_) => {
                    Answer::Appended(Appended::Unknown { why: "no answer".to_owned() })
                }
                Answer::Entries(_) => Answer::Entries(Err(error())),
                Answer::Last(_) => Answer::Last(Err(error())),
                Answer::Newest(_) => Answer::Newest(Err(error())),
                Answer::Purged(_) => Answer::Purged(Err(error())),
            });
        }
        self.ledger.ops.arrive(op);
    }

    /// An entry lands. What it says must follow from what stood there.
    fn land(&mut self, node: Node, bytes: Bytes) {
        let entry = match record::decode(&bytes) {
            Ok(entry) => entry,
            Err(error) => {
                return self.violate(format!(
                    "an entry that cannot be read lands in the journal: {error}"
                ));
            }
        };
        self.ledger.entries.push(bytes);
        let sequence = self.ledger.last();
        let what = format!(
            "#{sequence} epoch {} {}",
            entry.epoch,
            super::checker::describe(&entry.record)
        );
        self.node_line(node, &what);
        if !self.ledger.nonces.insert(entry.nonce) {
            self.violate(format!("an entry is written twice: {what}"));
        }
        if entry.epoch < self.ledger.newest {
            let newest = self.ledger.newest;
            self.violate(format!(
                "authority: an entry of an old epoch lands after epoch {newest} began: {what}"
            ));
        }
        if entry.epoch > self.ledger.newest {
            (self.ledger.newest, self.ledger.newest_us) = (entry.epoch, self.now_us);
        }
        match &entry.record {
            Record::Snapshot { .. } => self.mark("snapshot"),
            record => {
                self.check_record(node, record);
                if let Err(why) = self.ledger.truth.apply(record) {
                    self.violate(format!(
                        "states: a record contradicts the journal: {why} ({what})"
                    ));
                }
            }
        }
        self.meets(Happens::Record(entry.record.kind()), node);
    }
}

/// A coordinator's connection to the journal.
pub struct LedgerPort {
    /// The world.
    pub shared: Shared,
    /// Whose.
    pub node: Node,
}

struct Calling {
    shared: Shared,
    node: Node,
    call: Option<Call>,
    op: u64,
}

impl Future for Calling {
    type Output = Option<Answer>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Answer>> {
        let shared = self.shared.clone();
        let core = &mut *lock(&shared);
        if let Some(call) = self.call.take() {
            self.op = core.begin_ledger(self.node, call);
        }
        core.ledger.ops.poll(self.op, context)
    }
}

impl LedgerPort {
    fn call(&self, call: Call) -> Calling {
        Calling { shared: self.shared.clone(), node: self.node, call: Some(call), op: 0 }
    }
}

fn bug<T>() -> Result<T> {
    Err(Error::bug("the simulated journal gave another answer than was asked for"))
}

#[async_trait]
impl Ledger for LedgerPort {
    async fn read_from(&self, first: u64) -> Result<Vec<Entry>> {
        match self.call(Call::Read { first }).await {
            Some(Answer::Entries(entries)) => entries,
            _ => bug(),
        }
    }

    async fn last_sequence(&self) -> Result<u64> {
        match self.call(Call::Last).await {
            Some(Answer::Last(last)) => last,
            _ => bug(),
        }
    }

    async fn newest(&self) -> Result<Option<Entry>> {
        match self.call(Call::Newest).await {
            Some(Answer::Newest(newest)) => newest,
            _ => bug(),
        }
    }

    async fn append(&self, expected: u64, bytes: Bytes) -> Appended {
        match self.call(Call::Append { expected, bytes }).await {
            Some(Answer::Appended(appended)) => appended,
            _ => Appended::Unknown {
                why: "the simulated journal gave another answer than was asked for".to_owned(),
            },
        }
    }

    async fn purge_before(&self, before: u64) -> Result<()> {
        match self.call(Call::Purge { before }).await {
            Some(Answer::Purged(purged)) => purged,
            _ => bug(),
        }
    }
}

impl Core {
    /// Who waits for a call, while somebody does.
    pub fn ledger_caller(&mut self, op: u64) -> Option<Node> {
        self.ledger.ops.get_mut(op).map(|op| op.node)
    }
}
