//! The worker's side of the protocol as a pure machine: which attempts it holds, what it answers,
//! what it reports. `step(now, input)` gives effects.
//!
//! ```text
//! Run ──▶ Running ──Finished──▶ Reporting ──Recorded──▶ forgotten
//!            │  └─Opened─▶ (its own report, then Proceed)   │
//!            └─Cancel, Revoked, not re-granted─▶ Abandoned ─┴─Finished─▶ cleaned up, forgotten
//! ```
//!
//! Rules: an older epoch than the newest known is refused, and an answer that bears one is not
//! heard; a repeat of a known attempt changes nothing; a report is sent until it is acknowledged;
//! only the leader that a worker is registered with may let an attempt go on. An abandoned attempt
//! keeps its slot until its work has ended, because until then it has its memory. Never does I/O,
//! never reads a clock.

use std::collections::{BTreeMap, HashSet, VecDeque};

use muster_platform::retry::Policy;
use muster_protocol::ids::{AttemptId, Epoch, Incarnation, JobId, WorkerId};
use muster_protocol::wire::{
    CancelAttempt, CommandReply, Drain, HeldAttempt, Outcome, Report, ReportReply, RunAttempt,
    RunReply,
};
use muster_protocol::{Error, ErrorKind};

/// Ended attempts that are remembered, so that a late repeat does not start them again.
const ENDED_MAX: usize = 1000;

/// Which attempt of which job.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The job.
    pub job: JobId,
    /// The attempt.
    pub attempt: AttemptId,
}

/// What happens to a worker.
#[derive(Debug)]
#[expect(missing_docs, reason = "fields are what their variants say, by the names of the messages")]
pub enum Input {
    /// The leader says: run.
    Run(Box<RunAttempt>),
    /// The leader says: abandon.
    Cancel(CancelAttempt),
    /// The leader says: take no more.
    Drain(Drain),
    /// A leader's beat was heard.
    Beat { epoch: Epoch },
    /// Another deployment leads now: epochs begin anew, and nothing that was granted before counts.
    NewDeployment,
    /// A registration that named `asked` was accepted.
    Registered { epoch: Epoch, asked: Vec<Key>, regranted: Vec<AttemptId> },
    /// A running merge has opened its upload and waits to be let go on.
    Opened { key: Key, upload: String },
    /// An attempt's work has ended.
    Finished { key: Key, outcome: Outcome },
    /// A report was answered, or was not.
    Answered { key: Key, reply: Option<ReportReply> },
    /// A report cannot be sent, whoever listens.
    Unsendable { key: Key, error: Error },
    /// This process is to end: take no more.
    Stop,
    /// This process ends now: abandon everything.
    Leave,
    /// Time has passed.
    Tick,
}

/// What is to be done, in order.
#[derive(Debug, PartialEq, Eq)]
pub enum Effect {
    /// Answer the run command that was just stepped.
    AnswerRun(RunReply),
    /// Answer the other command that was just stepped.
    Answer(CommandReply),
    /// Begin an attempt.
    Start(Box<RunAttempt>),
    /// Let a merge finish its part.
    Proceed(Key),
    /// End an attempt's work; it ends with `Finished` all the same.
    Abandon(Key),
    /// Remove what an ended attempt left: it does not count.
    CleanUp(Key),
    /// Forget what an ended attempt left: it counts, and is the leader's now.
    Keep(Key),
    /// Send a report; the answer comes as `Answered`.
    Send(Box<Report>),
    /// Register, with [`Attempts::held`].
    Register,
}

#[derive(Debug)]
struct Held {
    stage: Stage,
    report: Option<Pending>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Running,
    Reporting,
    Abandoned,
}

/// A report on its way.
#[derive(Debug)]
struct Pending {
    outcome: Outcome,
    tries: u32,
    due_ms: u64,
    in_flight: bool,
}

impl Pending {
    fn new(outcome: Outcome) -> Self {
        Self { outcome, tries: 0, due_ms: 0, in_flight: false }
    }
}

/// The machine.
#[derive(Debug)]
pub struct Attempts {
    worker: WorkerId,
    /// When a report that was not acknowledged is sent again.
    repeat: Policy,
    incarnation: Incarnation,
    slots: usize,
    /// The newest epoch heard of.
    known: Epoch,
    /// The epoch it is registered under, if that is still the newest.
    registered: Option<Epoch>,
    draining: bool,
    /// Whether no work is taken for now, because a store is away.
    paused: bool,
    held: BTreeMap<Key, Held>,
    ended: VecDeque<Key>,
    ended_set: HashSet<Key>,
}

impl Attempts {
    /// A worker that has just started and knows no leader.
    pub fn new(worker: WorkerId, incarnation: Incarnation, slots: u32, repeat: Policy) -> Self {
        Self {
            worker,
            repeat,
            incarnation,
            slots: slots as usize,
            known: Epoch(0),
            registered: None,
            draining: false,
            paused: false,
            held: BTreeMap::new(),
            ended: VecDeque::new(),
            ended_set: HashSet::new(),
        }
    }

    /// What is held for the leader: running or unreported.
    pub fn held(&self) -> Vec<HeldAttempt> {
        let counts = self.held.iter().filter(|(_, held)| held.stage != Stage::Abandoned);
        counts.map(|(key, _)| HeldAttempt { job: key.job.clone(), attempt: key.attempt }).collect()
    }

    /// What runs and counts.
    pub fn running(&self) -> impl Iterator<Item = &Key> {
        self.held.iter().filter(|(_, held)| held.stage == Stage::Running).map(|(key, _)| key)
    }

    /// Whether nothing is held, not even work that is about to end.
    pub fn is_idle(&self) -> bool {
        self.held.is_empty()
    }

    /// Whether it takes no new work.
    pub fn is_draining(&self) -> bool {
        self.draining
    }

    /// Takes no new work for now, or takes it again.
    pub fn pause(&mut self, paused: bool) {
        self.paused = paused;
    }

    /// The epoch it is registered under.
    pub fn registered(&self) -> Option<Epoch> {
        self.registered
    }

    /// Takes an input at `now_ms` on the monotonic clock.
    pub fn step(&mut self, now_ms: u64, input: Input) -> Vec<Effect> {
        let mut effects = Vec::new();
        match input {
            Input::Run(run) => self.run(run, &mut effects),
            Input::Cancel(cancel) => self.cancel(cancel, &mut effects),
            Input::Drain(drain) => self.drain(&drain, &mut effects),
            Input::Beat { epoch } => {
                self.learn(epoch);
                if self.registered.is_none() {
                    effects.push(Effect::Register);
                }
            }
            Input::Registered { epoch, asked, regranted } => {
                self.admitted(now_ms, epoch, &asked, &regranted, &mut effects);
            }
            Input::Opened { key, upload } => {
                if let Some(held) =
                    self.held.get_mut(&key).filter(|held| held.stage == Stage::Running)
                {
                    held.report = Some(Pending::new(Outcome::UploadOpened { upload }));
                }
            }
            Input::Finished { key, outcome } => self.finished(key, outcome, &mut effects),
            Input::Answered { key, reply } => self.answered(now_ms, &key, reply, &mut effects),
            Input::Unsendable { key, error } => {
                if let Some(held) =
                    self.held.get_mut(&key).filter(|held| held.stage == Stage::Reporting)
                {
                    held.report = Some(Pending::new(Outcome::Failed { error }));
                    effects.push(Effect::CleanUp(key));
                }
            }
            Input::NewDeployment => {
                (self.known, self.registered) = (Epoch(0), None);
                self.abandon_all(&mut effects);
                effects.push(Effect::Register);
            }
            Input::Stop => self.draining = true,
            Input::Leave => {
                self.draining = true;
                self.abandon_all(&mut effects);
            }
            Input::Tick => {}
        }
        self.send_due(now_ms, &mut effects);
        effects
    }

    /// Notes an epoch. A newer one means that the worker is not registered any more.
    fn learn(&mut self, epoch: Epoch) {
        if epoch > self.known {
            self.known = epoch;
            self.registered = None;
        }
    }

    fn stale(&self, epoch: Epoch) -> Option<Error> {
        let known = self.known;
        (epoch < known).then(|| {
            Error::new(
                ErrorKind::Fenced,
                format!("epoch {epoch} is over: worker {} has heard of {known}", self.worker),
            )
        })
    }

    fn run(&mut self, run: Box<RunAttempt>, effects: &mut Vec<Effect>) {
        if let Some(error) = self.stale(run.epoch) {
            return effects.push(Effect::AnswerRun(RunReply::Refused { error }));
        }
        if run.incarnation != self.incarnation {
            let error = Error::invalid(format!("worker {} has started anew since", self.worker));
            return effects.push(Effect::AnswerRun(RunReply::Refused { error }));
        }
        self.learn(run.epoch);
        if self.registered.is_none() {
            effects.push(Effect::Register);
        }
        let key = Key { job: run.job.clone(), attempt: run.attempt };
        if self.held.contains_key(&key) || self.ended_set.contains(&key) {
            return effects.push(Effect::AnswerRun(RunReply::Accepted));
        }
        let busy = self.held.values().filter(|held| held.stage != Stage::Reporting).count();
        if self.draining || self.paused || busy >= self.slots {
            return effects.push(Effect::AnswerRun(RunReply::Busy));
        }
        self.held.insert(key, Held { stage: Stage::Running, report: None });
        effects.push(Effect::AnswerRun(RunReply::Accepted));
        effects.push(Effect::Start(run));
    }

    fn cancel(&mut self, cancel: CancelAttempt, effects: &mut Vec<Effect>) {
        if let Some(error) = self.stale(cancel.epoch) {
            return effects.push(Effect::Answer(CommandReply::Refused { error }));
        }
        self.learn(cancel.epoch);
        let key = Key { job: cancel.job, attempt: cancel.attempt };
        if self.held.contains_key(&key) {
            self.abandon(&key, effects);
        } else {
            // The order to run it may still be on its way.
            self.remember(key);
        }
        effects.push(Effect::Answer(CommandReply::Done));
    }

    fn drain(&mut self, drain: &Drain, effects: &mut Vec<Effect>) {
        if let Some(error) = self.stale(drain.epoch) {
            return effects.push(Effect::Answer(CommandReply::Refused { error }));
        }
        self.learn(drain.epoch);
        self.draining = true;
        effects.push(Effect::Answer(CommandReply::Done));
    }

    fn admitted(
        &mut self,
        now_ms: u64,
        epoch: Epoch,
        asked: &[Key],
        regranted: &[AttemptId],
        effects: &mut Vec<Effect>,
    ) {
        if epoch < self.known {
            // An old leader's answer: the newest one has yet to be asked.
            return effects.push(Effect::Register);
        }
        self.known = epoch;
        // Reports go on beside a registration that only confirms another: what its answer does not
        // name may be committed by now, and if it does not count, its report will be told so.
        let confirms = self.registered.replace(epoch) == Some(epoch);
        // Only what the leader was asked about: it may have granted more since.
        for key in asked.iter().filter(|key| !confirms && !regranted.contains(&key.attempt)) {
            self.abandon(key, effects);
        }
        for report in self.held.values_mut().filter_map(|held| held.report.as_mut()) {
            report.due_ms = now_ms;
            report.tries = 0;
            // The answer to what was sent to the old leader may never come; a report may be
            // repeated.
            report.in_flight = false;
        }
    }

    fn finished(&mut self, key: Key, outcome: Outcome, effects: &mut Vec<Effect>) {
        let Some(held) = self.held.get_mut(&key) else { return };
        if held.stage == Stage::Abandoned {
            self.forget(&key);
            return effects.push(Effect::CleanUp(key));
        }
        held.stage = Stage::Reporting;
        held.report = Some(Pending::new(outcome));
    }

    fn answered(
        &mut self,
        now_ms: u64,
        key: &Key,
        reply: Option<ReportReply>,
        effects: &mut Vec<Effect>,
    ) {
        let epoch = match &reply {
            Some(
                ReportReply::Recorded { epoch }
                | ReportReply::Revoked { epoch }
                | ReportReply::Reregister { epoch },
            ) => Some(*epoch),
            Some(ReportReply::Later) | None => None,
        };
        let heard = epoch.is_none_or(|epoch| epoch >= self.known);
        if let Some(epoch) = epoch {
            self.learn(epoch);
        }
        let Some(held) = self.held.get_mut(key) else { return };
        let Some(report) = held.report.as_mut().filter(|report| report.in_flight) else { return };
        report.in_flight = false;
        report.tries += 1;
        report.due_ms = now_ms + self.repeat.pause_ms(report.tries, key.attempt.nonce);
        match reply.filter(|_| heard) {
            Some(ReportReply::Recorded { .. }) => {
                held.report = None;
                match held.stage {
                    Stage::Running => effects.push(Effect::Proceed(key.clone())),
                    Stage::Reporting => {
                        self.forget(key);
                        effects.push(Effect::Keep(key.clone()));
                    }
                    Stage::Abandoned => {}
                }
            }
            Some(ReportReply::Revoked { .. }) => self.abandon(key, effects),
            Some(ReportReply::Reregister { .. }) => {
                self.registered = None;
                effects.push(Effect::Register);
            }
            Some(ReportReply::Later) | None => {}
        }
    }

    /// Ends what runs; removes what has ended but does not count.
    fn abandon(&mut self, key: &Key, effects: &mut Vec<Effect>) {
        let Some(held) = self.held.get_mut(key) else { return };
        held.report = None;
        match held.stage {
            Stage::Running => {
                held.stage = Stage::Abandoned;
                effects.push(Effect::Abandon(key.clone()));
            }
            Stage::Reporting => {
                self.forget(key);
                effects.push(Effect::CleanUp(key.clone()));
            }
            Stage::Abandoned => {}
        }
    }

    /// Ends everything without a word from the leader. A result that was reported may be committed
    /// already, with only the answer lost, so it stays; what does not count, the job's clean-up
    /// removes.
    fn abandon_all(&mut self, effects: &mut Vec<Effect>) {
        let keys: Vec<Key> = self.held.keys().cloned().collect();
        for key in keys {
            if self.held.get(&key).is_some_and(|held| held.stage == Stage::Reporting) {
                self.forget(&key);
                effects.push(Effect::Keep(key));
            } else {
                self.abandon(&key, effects);
            }
        }
    }

    fn forget(&mut self, key: &Key) {
        self.held.remove(key);
        self.remember(key.clone());
    }

    fn remember(&mut self, key: Key) {
        if self.ended_set.insert(key.clone()) {
            self.ended.push_back(key);
        }
        if self.ended.len() > ENDED_MAX
            && let Some(oldest) = self.ended.pop_front()
        {
            self.ended_set.remove(&oldest);
        }
    }

    /// Sends the reports that are due; without registration none is.
    fn send_due(&mut self, now_ms: u64, effects: &mut Vec<Effect>) {
        let Some(epoch) = self.registered else { return };
        for (key, held) in &mut self.held {
            let Some(report) =
                held.report.as_mut().filter(|report| !report.in_flight && report.due_ms <= now_ms)
            else {
                continue;
            };
            report.in_flight = true;
            effects.push(Effect::Send(Box::new(Report {
                epoch,
                worker: self.worker.clone(),
                incarnation: self.incarnation,
                job: key.job.clone(),
                attempt: key.attempt,
                outcome: report.outcome.clone(),
            })));
        }
    }
}

#[cfg(test)]
mod tests;
