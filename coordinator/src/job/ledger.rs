//! Records on their way into the journal, and what follows when they stand.

use std::collections::{BTreeMap, VecDeque};

use muster_common::ids::TaskId;
use muster_common::wire::{Broadcast, ReportReply};

use super::active::Waiters;
use super::io::{Effect, Reply, ReplyTo};
use super::{JobId, Machine, Phase};
use crate::journal::fold;
use crate::journal::record::Record;

/// Records that were asked for and are not acknowledged.
#[derive(Debug, Default)]
pub(super) struct Pending {
    next_token: u64,
    sent: BTreeMap<u64, (Record, Waiters)>,
    /// Held until a snapshot is written, so that it misses nothing.
    held: VecDeque<(u64, Record, Waiters)>,
    since_snapshot: u64,
    snapshot: Snapshot,
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
    pub(super) fn records(&self) -> impl Iterator<Item = &Record> {
        self.sent.values().map(|(record, _)| record).chain(self.held.iter().map(|(_, record, _)| record))
    }

    fn waiters(&mut self, token: u64) -> Option<&mut Waiters> {
        match self.sent.get_mut(&token) {
            Some((_, waiters)) => Some(waiters),
            None => self.held.iter_mut().find(|(held, _, _)| *held == token).map(|(_, _, waiters)| waiters),
        }
    }
}

impl Machine {
    /// Asks for a record. What follows from it, answers to `waiters` among it, waits until it stands.
    pub(super) fn append(&mut self, record: Record, waiters: Waiters) -> u64 {
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
    }

    /// One more waits for a record on its way; the one that has waited longest makes room if they are too many.
    pub(super) fn wait_for_record(&mut self, token: u64, to: ReplyTo) -> Option<ReplyTo> {
        match self.ledger.waiters(token) {
            Some(waiters) => waiters.push(to),
            None => Some(to),
        }
    }

    pub(super) fn appended(&mut self, token: u64, sequence: u64) {
        let Some((record, waiters)) = self.ledger.sent.remove(&token) else {
            self.counters.violations += 1;
            return;
        };
        if let Record::Snapshot { part, of, .. } = record {
            self.snapshot_piece_stands(part, of, sequence);
        } else if let Err(why) = self.durable.apply(&record) {
            self.counters.illegal += 1;
            self.event(
                None,
                "error",
                "record-refused",
                format!("a {} record contradicts the journal: {why}", record.kind()),
            );
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
        match fold::snapshot(&self.durable, id) {
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
                self.out.push(Effect::PurgeJournal { before: first });
                self.end_snapshot();
            }
        }
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
                self.begin_phase(&job, Phase::Sort);
            }
            Record::RunCommitted(run) => {
                self.commit_task(&run.job, &run.attempt);
                self.acknowledge(waiters, &ReportReply::Recorded { epoch: self.epoch });
                self.advance(&run.job);
            }
            Record::RunsPinned { job, .. } => self.begin_phase(&job, Phase::Merge),
            Record::UploadOpened { job, attempt, .. } => {
                let lives = self.active.get(&job).is_some_and(|active| active.attempt(&attempt).is_some());
                let epoch = self.epoch;
                let reply = if lives { ReportReply::Recorded { epoch } } else { ReportReply::Revoked { epoch } };
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
            Record::JobForgotten { .. }
            | Record::DeploymentCreated { .. }
            | Record::EpochBegan { .. }
            | Record::JobArchived(_)
            | Record::Snapshot { .. } => {}
        }
    }

    pub(super) fn acknowledge(&mut self, waiters: Waiters, reply: &ReportReply) {
        for to in waiters.into_vec() {
            self.reply(to, Reply::Report(reply.clone()));
        }
    }

    /// The attempt's result stands: its task is done, its worker has room.
    fn commit_task(&mut self, job: &JobId, attempt: &muster_common::ids::AttemptId) {
        let task: TaskId = attempt.task;
        let Some(active) = self.active.get_mut(job) else { return };
        let Some(tasks) = active.tasks.as_mut().filter(|tasks| tasks.phase == task.phase) else { return };
        let Some(done) = tasks.stop(attempt, super::active::TaskState::Done) else { return };
        active.moved(self.now_ms);
        self.workers.update(&done.worker, |worker| {
            worker.attempts.remove(&(job.clone(), *attempt));
            worker.tasks_done = worker.tasks_done.saturating_add(1);
        });
        self.touch(job);
    }
}
