//! The pool as the machine sees it: who joins, who is heard, who has fallen silent.

use std::collections::BTreeSet;

use muster_common::ids::{AttemptId, JobId, WorkerId};
use muster_common::wire::{AttemptProgress, Drain, Heartbeat, PhaseReply, Register, RegisterReply, WorkerState};
use muster_common::{Error, ErrorKind};

use super::active::Stage;
use super::io::{Effect, RefusalCode, Reply, ReplyTo};
use super::schedule::TakenBack;
use super::{Machine, workers};

/// Heartbeat intervals that an attempt may be missing from its worker's heartbeats.
const MISSING_BEATS_MAX: u64 = 3;
/// Most orders to abandon that one heartbeat brings about; the next brings the rest.
const CANCELS_MAX: usize = 64;

impl Machine {
    pub(super) fn register(&mut self, to: ReplyTo, register: Register) {
        match self.admit_worker(register) {
            Ok(reply) => self.reply(to, Reply::Register(reply)),
            Err(error) => {
                self.event(None, "warning", "worker-refused", error.message.clone());
                self.reply(to, Reply::Register(RegisterReply::Refused { error }));
            }
        }
    }

    fn admit_worker(&mut self, register: Register) -> muster_common::Result<RegisterReply> {
        workers::validate(&register)?;
        let id = register.worker.clone();
        let interval_ms = self.config.heartbeat.interval_ms;
        let held = register.held.clone();
        let same_life = match self.workers.get(&id) {
            None => false,
            Some(known) if known.info.incarnation == register.incarnation => true,
            Some(known) => {
                let silent_ms = self.now_ms.saturating_sub(known.heard_ms);
                if known.alive && silent_ms < 2 * interval_ms.max(known.heartbeat_ms) {
                    let (host, other) = (&known.info.host, &register.host);
                    let text = format!(
                        "worker id {id} is taken by a live process on {host} (heard {silent_ms} ms ago), so that on {other} cannot have it; give it another --id, or try again"
                    );
                    return Err(Error::retry(text));
                }
                self.take_all_back(&id, &TakenBack::Lost("it was started anew"));
                false
            }
        };
        if same_life {
            self.drop_unheld(&id, &register);
            let (now_ms, draining) = (self.now_ms, register.draining);
            self.workers.update(&id, |worker| {
                worker.heard_ms = now_ms;
                worker.alive = true;
                worker.draining |= draining;
                worker.info.slots = register.slots.max(u32::try_from(worker.attempts.len()).unwrap_or(u32::MAX));
            });
        } else {
            let text = format!(
                "{id} on {} with {} slots and {} bytes of memory",
                register.host, register.slots, register.memory_bytes
            );
            self.workers.admit(register, self.now_ms, interval_ms)?;
            self.event(None, "info", "worker-joined", text);
        }
        let regranted: Vec<AttemptId> =
            held.iter().filter(|held| self.regrant(&id, held)).map(|held| held.attempt).collect();
        let heartbeat_ms = self.workers.get(&id).map_or(interval_ms, |worker| worker.heartbeat_ms);
        Ok(RegisterReply::Accepted { deployment: self.deployment.clone(), epoch: self.epoch, heartbeat_ms, regranted })
    }

    /// The same life registers again: what it had accepted and no longer holds is lost.
    fn drop_unheld(&mut self, id: &WorkerId, register: &Register) {
        let held: BTreeSet<(JobId, AttemptId)> =
            register.held.iter().map(|held| (held.job.clone(), held.attempt)).collect();
        let Some(worker) = self.workers.get(id) else { return };
        let unheld: Vec<(JobId, AttemptId)> = worker.attempts.difference(&held).cloned().collect();
        for (job, attempt) in unheld {
            let accepted = self
                .active
                .get(&job)
                .and_then(|active| active.attempt(&attempt))
                .is_some_and(|attempt| attempt.accepted);
            if accepted {
                self.take_back(&job, &attempt, &TakenBack::HandedBack);
            }
        }
    }

    /// Any message is a sign of life.
    pub(super) fn heard(&mut self, id: &WorkerId) {
        let now_ms = self.now_ms;
        let was_alive = self.workers.update(id, |worker| {
            worker.heard_ms = now_ms;
            std::mem::replace(&mut worker.alive, true)
        });
        if was_alive == Some(false) {
            self.event(None, "info", "worker-back", format!("{id} is heard again; what it ran has gone to others"));
        }
    }

    pub(super) fn heartbeat(&mut self, heartbeat: Heartbeat) {
        let Heartbeat { worker: id, incarnation, epoch, sequence, state, attempts, health } = heartbeat;
        let known = self.workers.get(&id).filter(|worker| worker.info.incarnation == incarnation);
        let Some(newest) = known.filter(|_| epoch == self.epoch).map(|worker| worker.sequence) else {
            self.counters.foreign += 1;
            return;
        };
        self.heard(&id);
        if newest.is_some_and(|newest| newest >= sequence) {
            return;
        }
        let was_draining = self.workers.update(&id, |worker| {
            worker.sequence = Some(sequence);
            worker.rss_bytes = health.rss_bytes;
            let before = worker.draining;
            worker.draining |= state != WorkerState::Active;
            before
        });
        match state {
            WorkerState::Leaving => return self.left(&id),
            WorkerState::Active if was_draining == Some(true) => self.send_drain(&id),
            WorkerState::Active | WorkerState::Draining => {}
        }
        self.take_progress(&id, &attempts);
        self.find_missing(&id, &attempts);
    }

    fn take_progress(&mut self, id: &WorkerId, attempts: &[AttemptProgress]) {
        let mut cancelled = 0;
        for AttemptProgress { job, attempt, bytes_done, .. } in attempts {
            let active = self.active.get_mut(job);
            let under_way =
                active.filter(|active| active.attempt(attempt).is_some_and(|attempt| attempt.worker == *id));
            if let Some(active) = under_way {
                if let Some(attempt) = active.attempt_mut(attempt) {
                    attempt.accepted = true;
                    attempt.seen_ms = self.now_ms;
                }
                // Outside input: more than there is to do would only spoil the sums for people.
                let bytes_done =
                    (*bytes_done).min(self.durable.jobs.get(job).map_or(0, |durable| durable.submitted.input_bytes));
                if active.tasks.as_mut().is_some_and(|tasks| tasks.set_progress(attempt, bytes_done)) {
                    active.moved_ms = self.now_ms;
                    active.news = true;
                }
            } else if cancelled < CANCELS_MAX {
                cancelled += 1;
                self.cancel_attempt(id, job, attempt);
            }
        }
    }

    /// An attempt that its worker accepted, but has not spoken of for a while, is lost.
    fn find_missing(&mut self, id: &WorkerId, attempts: &[AttemptProgress]) {
        let Some(worker) = self.workers.get(id) else { return };
        // One that is done is in no heartbeat, and its report may wait for an answer that was lost before it is sent again.
        let limit_ms = MISSING_BEATS_MAX * worker.heartbeat_ms + self.config.nats.request_timeout_ms;
        let listed: BTreeSet<(&JobId, &AttemptId)> =
            attempts.iter().map(|progress| (&progress.job, &progress.attempt)).collect();
        let missing = |job: &JobId, attempt: &AttemptId| {
            let under_way = self.active.get(job).and_then(|active| active.attempt(attempt));
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
            self.take_back(&job, &attempt, &TakenBack::Lost("it no longer knows of the attempt"));
        }
    }

    fn left(&mut self, id: &WorkerId) {
        self.take_all_back(id, &TakenBack::HandedBack);
        self.workers.remove(id);
        self.event(None, "info", "worker-left", format!("{id} has left; what it ran goes to others"));
    }

    fn take_all_back(&mut self, id: &WorkerId, why: &TakenBack) {
        let attempts: Vec<(JobId, AttemptId)> =
            self.workers.get(id).map(|worker| worker.attempts.iter().cloned().collect()).unwrap_or_default();
        for (job, attempt) in attempts {
            self.take_back(&job, &attempt, why);
        }
        // Those whose result is on its way into the journal do not need the worker any more.
        self.workers.update(id, |worker| worker.attempts.clear());
    }

    /// Declares those dead that were silent for too long. While the leader itself is cut off nobody is.
    pub(super) fn watch_pool(&mut self) {
        if self.connected {
            for id in self.workers.silent(self.now_ms, self.config.heartbeat.dead_after_ms) {
                self.workers.update(&id, |worker| worker.alive = false);
                self.event(
                    None,
                    "warning",
                    "worker-lost",
                    format!("nothing was heard of {id} for too long; what it ran goes to others"),
                );
                self.take_all_back(&id, &TakenBack::Lost("nothing was heard of it for too long"));
            }
        }
        self.no_workers_since_ms = match self.workers.alive() {
            0 => self.no_workers_since_ms.or(Some(self.now_ms)),
            _ => None,
        };
    }

    pub(super) fn connection(&mut self, up: bool) {
        if up && !self.connected {
            self.workers.forgive(self.now_ms, self.now_ms);
            self.event(None, "info", "nats-back", "the coordinator's connection to NATS stands again");
        }
        self.connected = up;
    }

    pub(super) fn drain(&mut self, to: ReplyTo, id: &WorkerId) {
        if self.workers.update(id, |worker| worker.draining = true).is_none() {
            return self.refuse(
                to,
                RefusalCode::Unknown,
                Error::new(ErrorKind::NotFound, format!("worker {id} is not known")),
            );
        }
        self.send_drain(id);
        if let Some(worker) = self.workers.get(id) {
            let status = worker.status(self.now_ms, self.config.heartbeat.interval_ms);
            self.reply(to, Reply::Worker(Box::new(status)));
        }
    }

    fn send_drain(&mut self, id: &WorkerId) {
        self.out.push(Effect::SendDrain { worker: id.clone(), drain: Drain { epoch: self.epoch } });
    }

    pub(super) fn ask_phase(&mut self, to: ReplyTo, job: &JobId) {
        let epoch = self.epoch;
        let active = self.active.get(job).filter(|active| active.stage == Stage::Working);
        let reply = match active.and_then(|active| active.tasks.as_ref()) {
            Some(tasks) => PhaseReply::Running { epoch, phase: tasks.phase },
            None => PhaseReply::Idle { epoch },
        };
        self.reply(to, Reply::Phase(reply));
    }
}
