//! The pool as the machine sees it: who joins, who is heard, who leaves. What silence means is
//! looked at in `watch.rs`.

use std::collections::BTreeSet;

use muster_platform::config;
use muster_protocol::ids::{AttemptId, JobId, WorkerId};
use muster_protocol::wire::{
    AttemptProgress, Drain, Heartbeat, HeldAttempt, JobRecoveries, PhaseReply, Register,
    RegisterReply, WorkerState,
};
use muster_protocol::{Error, ErrorKind};

use crate::job::Machine;
use crate::job::io::{Effect, RefusalCode, Reply, ReplyTo};
use crate::job::law::Step;
use crate::job::pool::members;
use crate::job::pool::policies::health::Subject;
use crate::job::pool::policies::phi::{self, Detector, Liveness};
use crate::job::tasks::attempts::TakenBack;
use crate::job::view::tally::Counted;

/// The event that says that a worker was not admitted.
const WORKER_REFUSED: &str = "worker-refused";
/// Heartbeat intervals that an attempt may be missing from its worker's heartbeats.
const MISSING_BEATS_MAX: u64 = 3;
/// Most orders to abandon that one heartbeat brings about; the next brings the rest.
const CANCELS_MAX: usize = 64;
/// Characters of what a worker waits for that are told.
pub(crate) const WAITING_CHARS_MAX: usize = 200;

impl Machine {
    pub(crate) fn register(&mut self, to: ReplyTo, register: Register) {
        match self.admit_worker(register) {
            Ok(reply) => self.reply(to, Reply::Register(reply)),
            Err(error) => {
                self.view.count(Counted::WorkerRefused);
                self.tell_refusals();
                if self.view.tells(self.now_ms, WORKER_REFUSED) {
                    self.event(None, "warning", WORKER_REFUSED, error.message.clone());
                }
                self.reply(to, Reply::Register(RegisterReply::Refused { error }));
            }
        }
    }

    /// How many refusals were not told one by one, where the time for that has come.
    pub(crate) fn tell_refusals(&mut self) {
        for (kind, suppressed) in self.view.untold(self.now_ms) {
            let text = format!("{suppressed} more registrations were refused meanwhile");
            self.event(None, "warning", kind, text);
        }
    }

    fn admit_worker(&mut self, register: Register) -> muster_protocol::Result<RegisterReply> {
        members::validate(&register, &self.config.shared())?;
        let id = register.worker.clone();
        let interval_ms = self.config.heartbeat.interval_ms;
        let held = register.held.clone();
        let same_life = match self.pool.workers.get(&id) {
            None => false,
            Some(known) if known.info.incarnation == register.incarnation => true,
            Some(known) => {
                let silent_ms = known.detector.silence_ms(self.now_ms);
                if matches!(known.detector.state(), Liveness::Healthy | Liveness::Rejoined) {
                    let (host, other) = (&known.info.host, &register.host);
                    let text = format!(
                        "worker id {id} is taken by a live process on {host} (heard {silent_ms} ms \
                            ago), so that on {other} cannot have it; give it another --id, or try \
                            again"
                    );
                    return Err(Error::retry(text));
                }
                self.take_all_back(&id, &TakenBack::Died("it was started anew".to_owned()));
                false
            }
        };
        if same_life {
            self.drop_unheld(&id, &register);
            let draining = register.draining;
            self.heard(&id);
            let (config, now_ms) = (&self.config, self.now_ms);
            self.pool.workers.update(&id, |worker| {
                worker.left = false;
                worker.draining |= draining;
                worker.info.slots =
                    register.slots.max(u32::try_from(worker.attempts.len()).unwrap_or(u32::MAX));
                worker.look(config, now_ms);
            });
        } else {
            let text = format!(
                "{id} on {} with {} slots and {} bytes of memory",
                register.host, register.slots, register.memory_bytes
            );
            self.pool.workers.admit(register, self.now_ms, &self.config)?;
            // Whatever was raised was about a process that is gone.
            self.forget_alerts(&Subject::Worker(id.clone()));
            self.event(None, "info", "worker-joined", text);
        }
        let mut goes_on = |held: &&HeldAttempt| {
            if same_life { self.still_runs(&id, held) } else { self.regrant(&id, held) }
        };
        let regranted: Vec<AttemptId> =
            held.iter().filter(|held| goes_on(held)).map(|held| held.attempt).collect();
        let heartbeat_ms =
            self.pool.workers.get(&id).map_or(interval_ms, |worker| worker.heartbeat_ms);
        Ok(RegisterReply::Accepted {
            deployment: self.deployment.clone(),
            epoch: self.epoch,
            heartbeat_ms,
            regranted,
        })
    }

    /// The same life registers again: what it had accepted and no longer holds is lost.
    fn drop_unheld(&mut self, id: &WorkerId, register: &Register) {
        let held: BTreeSet<(JobId, AttemptId)> =
            register.held.iter().map(|held| (held.job.clone(), held.attempt)).collect();
        let Some(worker) = self.pool.workers.get(id) else { return };
        let unheld: Vec<(JobId, AttemptId)> = worker.attempts.difference(&held).cloned().collect();
        for (job, attempt) in unheld {
            let accepted =
                self.jobs.attempt(&job, &attempt).is_some_and(|attempt| attempt.accepted);
            if accepted {
                self.take_back(&job, &attempt, &TakenBack::HandedBack);
            }
        }
    }

    /// Any message is a sign of life.
    pub(crate) fn heard(&mut self, id: &WorkerId) {
        self.hears(id, Detector::message);
    }

    /// `how`: a heartbeat with a new sequence also says how regular they are.
    fn hears(
        &mut self,
        id: &WorkerId,
        how: impl FnOnce(&mut Detector, &config::Detector, u64) -> Option<phi::Change>,
    ) {
        let (settings, now_ms) = (&self.config.detector, self.now_ms);
        let change =
            self.pool.workers.update(id, |worker| how(&mut worker.detector, settings, now_ms));
        change.flatten().iter().for_each(|change| self.liveness_changed(id, change));
    }

    pub(crate) fn heartbeat(&mut self, heartbeat: Heartbeat) {
        let Heartbeat { worker: id, incarnation, epoch, sequence, state, attempts, health } =
            heartbeat;
        let known = self
            .pool
            .workers
            .get(&id)
            .filter(|worker| worker.info.incarnation == incarnation && !worker.left);
        let Some(newest) = known.filter(|_| epoch == self.epoch).map(|worker| worker.sequence)
        else {
            self.counters.foreign += 1;
            return;
        };
        if newest.is_some_and(|newest| newest >= sequence) {
            return self.heard(&id);
        }
        self.hears(&id, Detector::heartbeat);
        let news = self.pool.workers.update(&id, |worker| {
            worker.sequence = Some(sequence);
            let waited = worker.waits_for_store().is_some();
            let before = std::mem::replace(&mut worker.health, health).throttled;
            // The first heartbeat that this leader sees speaks of what was before it.
            let more = newest.map_or(0, |_| worker.health.throttled.saturating_sub(before));
            let was_draining = worker.draining;
            worker.draining |= state == WorkerState::Draining;
            let waits = worker.waits_for_store().map(str::to_owned);
            (was_draining, more, waited, waits)
        });
        let (was_draining, more, waited, waits) = news.unwrap_or_default();
        self.pool.limits.throttled(more);
        self.store_heard_of(&id, waited, waits.as_deref());
        match state {
            WorkerState::Leaving => return self.left(&id),
            WorkerState::Active if was_draining => self.send_drain(&id),
            WorkerState::Active | WorkerState::Draining => {}
        }
        self.take_progress(&id, &attempts);
        self.find_missing(&id, &attempts);
    }

    /// A worker says what it retried for a job. Nothing is decided by it, so it is no sign of life
    /// either.
    pub(crate) fn recoveries_told(&mut self, told: JobRecoveries) {
        let known = self
            .pool
            .workers
            .get(&told.worker)
            .filter(|worker| worker.info.incarnation == told.incarnation);
        if known.is_none() || told.epoch != self.epoch {
            self.counters.foreign += 1;
            return;
        }
        if let Some(active) = self.jobs.active_mut(&told.job) {
            active.told.recoveries.told_by(told.worker, told.incarnation, &told.kinds);
            active.told.news();
        }
    }

    /// Tells people when a worker begins to wait for a store, and when it no longer does.
    fn store_heard_of(&mut self, id: &WorkerId, waited: bool, waits: Option<&str>) {
        match (waited, waits) {
            (false, Some(what)) => {
                let what: String = what.chars().take(WAITING_CHARS_MAX).collect();
                let text = format!("{id} lives, but waits for {what}");
                self.event(None, "warning", "worker-cut-off", text);
            }
            (true, None) => {
                self.event(None, "info", "worker-store-back", format!("{id} has its store again"));
            }
            (true, Some(_)) | (false, None) => {}
        }
    }

    fn take_progress(&mut self, id: &WorkerId, attempts: &[AttemptProgress]) {
        let mut cancelled = 0;
        for AttemptProgress { job, attempt, bytes_done, bytes_total } in attempts {
            let under_way = self.jobs.both_mut(job).filter(|(_, active)| {
                active.tasks.attempt(attempt).is_some_and(|attempt| attempt.worker == *id)
            });
            if let Some((durable, active)) = under_way {
                if let Some(attempt) = active.tasks.attempt_mut(attempt) {
                    attempt.accepted = true;
                    attempt.seen_ms = self.now_ms;
                    attempt.bytes_total = (*bytes_total).max(attempt.bytes_total);
                }
                // Outside input: more than there is to do would only spoil the sums for people.
                let bytes_done = (*bytes_done).min(durable.submitted.input_bytes);
                let fair_ms = self.now_ms.saturating_sub(self.forgiven_ms);
                let tasks = active.tasks.of_mut(attempt.task.phase);
                if tasks.is_some_and(|tasks| tasks.set_progress(attempt, bytes_done, fair_ms)) {
                    active.stirs(self.now_ms);
                    self.pool.ramp.succeeded();
                }
            } else if cancelled < CANCELS_MAX {
                cancelled += 1;
                self.cancel_attempt(id, job, attempt);
            }
        }
    }

    /// An attempt that its worker accepted, but has not spoken of for a while, is lost.
    fn find_missing(&mut self, id: &WorkerId, attempts: &[AttemptProgress]) {
        let Some(worker) = self.pool.workers.get(id) else { return };
        // One that is done is in no heartbeat, and its report may wait for an answer that was lost
        // before it is sent again.
        let limit_ms =
            MISSING_BEATS_MAX * worker.heartbeat_ms + self.config.nats.request_timeout_ms;
        let listed: BTreeSet<(&JobId, &AttemptId)> =
            attempts.iter().map(|progress| (&progress.job, &progress.attempt)).collect();
        let missing = |job: &JobId, attempt: &AttemptId| {
            let under_way = self.jobs.attempt(job, attempt);
            under_way.is_some_and(|attempt| {
                attempt.accepted
                    && attempt.recording.is_none()
                    && self.now_ms.saturating_sub(attempt.seen_ms) > limit_ms
            })
        };
        let lost: Vec<(JobId, AttemptId)> = worker
            .attempts
            .iter()
            .filter(|(job, attempt)| !listed.contains(&(job, attempt)) && missing(job, attempt))
            .cloned()
            .collect();
        for (job, attempt) in lost {
            self.take_back(
                &job,
                &attempt,
                &TakenBack::Lost("it no longer knows of the attempt".to_owned()),
            );
        }
    }

    /// It said that it ends. It stays in the list for a while; a message that was still under way
    /// brings nothing back.
    fn left(&mut self, id: &WorkerId) {
        self.take_all_back(id, &TakenBack::HandedBack);
        let (settings, now_ms) = (&self.config.detector, self.now_ms);
        self.pool.workers.update(id, |worker| {
            worker.left = true;
            worker.detector.declare_dead(settings, now_ms);
        });
        self.forget_alerts(&Subject::Worker(id.clone()));
        let text = format!("{id} has left; what it ran goes to others");
        self.event(None, "info", "worker-left", text);
    }

    pub(crate) fn take_all_back(&mut self, id: &WorkerId, why: &TakenBack) {
        let attempts: Vec<(JobId, AttemptId)> = self
            .pool
            .workers
            .get(id)
            .map(|worker| worker.attempts.iter().cloned().collect())
            .unwrap_or_default();
        for (job, attempt) in attempts {
            self.take_back(&job, &attempt, why);
        }
        // Those whose result is on its way into the journal do not need the worker any more.
        self.pool.workers.update(id, |worker| worker.attempts.clear());
    }

    pub(crate) fn drain(&mut self, to: ReplyTo, id: &WorkerId) {
        if self.pool.workers.update(id, |worker| worker.draining = true).is_none() {
            return self.refuse(
                to,
                RefusalCode::Unknown,
                Error::new(ErrorKind::NotFound, format!("worker {id} is not known")),
            );
        }
        self.send_drain(id);
        if let Some(worker) = self.pool.workers.get(id) {
            let status = self.worker_status(worker);
            self.reply(to, Reply::Worker(Box::new(status)));
        }
    }

    fn send_drain(&mut self, id: &WorkerId) {
        self.out.push(Effect::SendDrain { worker: id.clone(), drain: Drain { epoch: self.epoch } });
    }

    pub(crate) fn ask_phase(&mut self, to: ReplyTo, job: &JobId) {
        let epoch = self.epoch;
        let active = self.jobs.active(job).filter(|active| active.step() == Step::Working);
        let reply = match active.and_then(|active| active.tasks.stage()) {
            Some(tasks) => PhaseReply::Running { epoch, phase: tasks.phase },
            None => PhaseReply::Idle { epoch },
        };
        self.reply(to, Reply::Phase(reply));
    }
}
