//! Records on their way into the journal, and what follows when they stand.

pub mod durable;
pub mod history;

use std::collections::{BTreeMap, VecDeque};

use muster_protocol::wire::{Broadcast, ReportReply};

use crate::job::Machine;
use crate::job::io::{Effect, ReplyTo};
use crate::journal::fold;
use crate::journal::record::Record;

/// Records that were asked for and are not acknowledged.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    next_token: u64,
    sent: BTreeMap<u64, (Record, Waiters)>,
    /// When those went out, in the same order.
    sent_ms: VecDeque<(u64, u64)>,
    /// The slowest write since this was last asked, in milliseconds.
    slowest_ms: u64,
    /// Held until a snapshot is written, so that it misses nothing.
    held: VecDeque<(u64, Record, Waiters)>,
    since_snapshot: u64,
    snapshot: Snapshot,
    /// Where the newest whole snapshots begin, the oldest first.
    snapshots: VecDeque<u64>,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Snapshot {
    #[default]
    None,
    /// Records are held back until those on their way have arrived.
    Due,
    /// Its pieces are on their way; where the first of them stands.
    Writing { first: Option<u64> },
}

impl Pending {
    pub(crate) fn records(&self) -> impl Iterator<Item = &Record> {
        self.sent
            .values()
            .map(|(record, _)| record)
            .chain(self.held.iter().map(|(_, record, _)| record))
    }

    /// Records that are not acknowledged.
    pub(crate) fn waiting(&self) -> u32 {
        u32::try_from(self.sent.len() + self.held.len()).unwrap_or(u32::MAX)
    }

    /// The slowest write since this was last asked, one under way included, in milliseconds.
    pub(crate) fn slowest_ms(&mut self, now_ms: u64) -> u64 {
        let under_way_ms =
            self.sent_ms.front().map_or(0, |(_, sent_ms)| now_ms.saturating_sub(*sent_ms));
        std::mem::take(&mut self.slowest_ms).max(under_way_ms)
    }

    fn arrived(&mut self, token: u64, now_ms: u64) -> Option<(Record, Waiters)> {
        while let Some((_, sent_ms)) = self.sent_ms.pop_front_if(|(sent, _)| *sent <= token) {
            self.slowest_ms = self.slowest_ms.max(now_ms.saturating_sub(sent_ms));
        }
        self.sent.remove(&token)
    }

    fn waiters(&mut self, token: u64) -> Option<&mut Waiters> {
        match self.sent.get_mut(&token) {
            Some((_, waiters)) => Some(waiters),
            None => self
                .held
                .iter_mut()
                .find(|(held, _, _)| *held == token)
                .map(|(_, _, waiters)| waiters),
        }
    }
}

impl Machine {
    /// Asks for a record. What follows from it, answers to `waiters` among it, waits until it
    /// stands.
    pub(crate) fn append(&mut self, record: Record, waiters: Waiters) -> u64 {
        self.ledger.next_token += 1;
        let token = self.ledger.next_token;
        if self.ledger.snapshot == Snapshot::None {
            self.send_record(token, record, waiters);
        } else {
            self.ledger.held.push_back((token, record, waiters));
        }
        token
    }

    fn send_record(&mut self, token: u64, record: Record, waiters: Waiters) {
        self.out.push(Effect::Append { token, record: Box::new(record.clone()) });
        self.ledger.sent.insert(token, (record, waiters));
        self.ledger.sent_ms.push_back((token, self.now_ms));
    }

    /// The same, where nobody waits for it.
    pub(crate) fn record(&mut self, record: Record) {
        self.append(record, Waiters::default());
    }

    /// One more waits for a record on its way; the one that has waited longest makes room if they
    /// are too many.
    pub(crate) fn wait_for_record(&mut self, token: u64, to: ReplyTo) -> Option<ReplyTo> {
        match self.ledger.waiters(token) {
            Some(waiters) => waiters.push(to),
            None => Some(to),
        }
    }

    pub(crate) fn appended(&mut self, token: u64, sequence: u64) {
        let Some((record, waiters)) = self.ledger.arrived(token, self.now_ms) else {
            self.counters.violations += 1;
            return;
        };
        if let Record::Snapshot { part, of, .. } = record {
            self.snapshot_piece_stands(part, of, sequence);
        } else if let Err(why) = self.jobs.apply(&record) {
            self.counters.illegal += 1;
            let text = format!("a {} record contradicts the journal: {why}", record.kind());
            self.event(None, "error", "record-refused", text);
        } else {
            self.ledger.since_snapshot += 1;
            self.stands(record, waiters);
        }
        self.snapshot_if_due();
    }

    fn snapshot_if_due(&mut self) {
        if self.ledger.snapshot == Snapshot::None
            && self.ledger.since_snapshot >= self.config.journal.snapshot_after.max(1)
        {
            self.ledger.snapshot = Snapshot::Due;
        }
        if self.ledger.snapshot != Snapshot::Due || !self.ledger.sent.is_empty() {
            return;
        }
        let id = self.nonces.next();
        match fold::snapshot(self.jobs.durable(), id) {
            Ok(pieces) => {
                self.ledger.snapshot = Snapshot::Writing { first: None };
                for piece in pieces {
                    self.ledger.next_token += 1;
                    self.send_record(self.ledger.next_token, piece, Waiters::default());
                }
            }
            Err(error) => {
                self.event(None, "error", "snapshot-failed", error.message);
                self.end_snapshot();
            }
        }
    }

    fn snapshot_piece_stands(&mut self, part: u32, of: u32, sequence: u64) {
        if let Snapshot::Writing { first } = &mut self.ledger.snapshot {
            let first = *first.get_or_insert(sequence);
            if part + 1 == of {
                self.ledger.snapshots.push_back(first);
                self.shorten_journal();
                self.end_snapshot();
            }
        }
    }

    /// Removes what stands before the newest snapshots that are kept: where the last one is
    /// damaged, the one before serves.
    fn shorten_journal(&mut self) {
        let kept = self.config.journal.snapshots_kept.max(1) as usize;
        let surplus = self.ledger.snapshots.len().saturating_sub(kept);
        self.ledger.snapshots.drain(..surplus);
        if let Some(&before) =
            self.ledger.snapshots.front().filter(|_| self.ledger.snapshots.len() == kept)
        {
            self.out.push(Effect::PurgeJournal { before });
        }
    }

    /// Where the snapshots begin that stand in the journal already, the oldest first.
    pub fn knows_snapshots(&mut self, snapshots: Vec<u64>) {
        self.ledger.snapshots = snapshots.into();
    }

    fn end_snapshot(&mut self) {
        self.ledger.snapshot = Snapshot::None;
        self.ledger.since_snapshot = 0;
        for (token, record, waiters) in std::mem::take(&mut self.ledger.held) {
            self.send_record(token, record, waiters);
        }
    }

    /// A record stands and is folded: now others may know.
    fn stands(&mut self, record: Record, waiters: Waiters) {
        match record {
            Record::JobSubmitted(submitted) => self.submitted(&submitted, waiters),
            Record::BoundariesChosen { job, splitters, .. } => {
                let broadcast = Broadcast::Boundaries { epoch: self.epoch, splitters };
                self.out.push(Effect::Broadcast { job: job.clone(), broadcast });
                self.enter(&job);
            }
            Record::RunCommitted(run) => {
                self.commit_task(&run.job, &run.attempt);
                self.acknowledge(waiters, &ReportReply::Recorded { epoch: self.epoch });
                self.give_up_if_skipped(&run.job, run.split);
                self.advance(&run.job);
            }
            Record::RunsPinned { job, .. } => self.runs_stand_pinned(&job),
            Record::UploadOpened { job, attempt, .. } => {
                let lives = self.jobs.attempt(&job, &attempt).is_some();
                let epoch = self.epoch;
                let reply = if lives {
                    ReportReply::Recorded { epoch }
                } else {
                    ReportReply::Revoked { epoch }
                };
                self.acknowledge(waiters, &reply);
            }
            Record::UploadRevoked { job, attempt, .. } => self.abort_revoked(&job, &attempt),
            Record::PartCommitted(part) => {
                self.commit_task(&part.job, &part.attempt);
                self.acknowledge(waiters, &ReportReply::Recorded { epoch: self.epoch });
                self.advance(&part.job);
            }
            Record::CommitDecided { job, .. } => self.publish(&job),
            Record::JobEnded(ended) => self.ended(&ended, waiters),
            Record::JobCleaned { job } => self.closed(&job),
            // What follows from a failure did so at once; the record is for the next leader.
            Record::AttemptFailed(_) | Record::JobHistory(_) => {}
            Record::GenerationBegan(began) => self.run_is_lost(&began),
            Record::ObjectSkipped { job, object, .. } => self.object_is_skipped(&job, object),
            Record::JobForgotten { .. }
            | Record::DeploymentCreated { .. }
            | Record::EpochBegan { .. }
            | Record::JobArchived(_)
            | Record::WorkersDone { .. }
            | Record::StillLeads
            | Record::Snapshot { .. } => {}
        }
    }
}

/// Those who wait for one outcome, up to a bound: a client or worker that repeats itself is one of
/// them each time.
#[derive(Debug, Clone, Default)]
pub(crate) struct Waiters(Vec<ReplyTo>);

impl Waiters {
    const MAX: usize = 16;

    pub(crate) fn one(to: ReplyTo) -> Self {
        Self(vec![to])
    }

    /// The one that had to go for it, if there were too many.
    pub(crate) fn push(&mut self, to: ReplyTo) -> Option<ReplyTo> {
        self.0.push(to);
        (self.0.len() > Self::MAX).then(|| self.0.remove(0))
    }

    pub(crate) fn into_vec(self) -> Vec<ReplyTo> {
        self.0
    }
}
