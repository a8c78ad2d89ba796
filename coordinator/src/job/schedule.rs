//! Which task goes to which worker, and what becomes of an attempt that ends without a result.
//!
//! Fair: the next task is that of the job with the fewest running attempts, earlier jobs first. It goes to the worker with the most room that has not failed it yet.
//! An attempt is only this leader's word: it is not journalled, and lost with the leader unless its worker still holds it.

use muster_common::ids::{AttemptId, Generation, Phase, TaskId, WorkerId};
use muster_common::wire::{CancelAttempt, RunAttempt, RunReply, Work};
use muster_common::{Error, ErrorKind, Result};

use super::active::{Attempt, Stage, TaskState, Waiters};
use super::io::Effect;
use super::{JobId, Machine, Timer};
use crate::journal::record::Record;

/// Orders to run one attempt that may go unanswered before it is taken back.
const SENT_MAX: u32 = 10;
/// First pause of a worker that says it is busy, in milliseconds: most likely it is about to read the acknowledgement that frees its slot.
const BUSY_PAUSE_MS: u64 = 10;
/// Errors of one task that are kept to be named.
const ERRORS_MAX: usize = 10;

/// Why an attempt is taken back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum TakenBack {
    /// Its worker says that it failed. Counts as a try.
    Failed(Error),
    /// Its worker died, or has lost it. Counts as a try: some tasks kill their workers.
    Lost(&'static str),
    /// It never ran, or was handed back in good order. Does not count.
    HandedBack,
}

impl Machine {
    /// Puts a job into, or out of, the order of those with something to grant.
    pub(super) fn touch(&mut self, job: &JobId) {
        let Some(active) = self.active.get_mut(job) else { return };
        let waiting = active.tasks.as_ref().is_some_and(|tasks| !tasks.queue.is_empty());
        let may_run = waiting && active.stage == Stage::Working && !active.held_back && active.plan.is_some();
        let after = may_run.then(|| active.running());
        let before = std::mem::replace(&mut active.runnable, after);
        if before != after {
            let order = active.order;
            before.map(|running| self.runnable.remove(&(running, order, job.clone())));
            after.map(|running| self.runnable.insert((running, order, job.clone())));
        }
    }

    /// Grants what can be granted.
    pub(super) fn schedule(&mut self) {
        while let Some((_, _, job)) = self.runnable.first().cloned() {
            let Some(first) = self.workers.free().next().cloned() else { return };
            let Some(active) = self.active.get(&job) else { return };
            let Some(tasks) = &active.tasks else { return };
            let Some(&index) = tasks.queue.first() else { return };
            let task = tasks.task(index);
            let tried = tasks.history.get(&index).map(|history| history.tried.as_slice()).unwrap_or_default();
            let fresh = self.workers.free().take(tried.len() + 1).find(|worker| !tried.contains(worker)).cloned();
            if !self.revoke_before_grant(&job, task) {
                self.grant(&job, task, &fresh.unwrap_or(first));
            }
        }
    }

    /// A merge task may have an upload left of an attempt that nobody holds any more. It is revoked before the task is granted again.
    fn revoke_before_grant(&mut self, job: &JobId, task: TaskId) -> bool {
        if task.phase != Phase::Merge {
            return false;
        }
        let open = self.durable.jobs.get(job).and_then(|durable| durable.uploads.get(&task.index));
        let Some(attempt) = open.map(|upload| upload.attempt) else { return false };
        if let Some(tasks) = self.active.get_mut(job).and_then(|active| active.tasks.as_mut()) {
            tasks.revoke(task.index, attempt);
        }
        self.touch(job);
        self.append(Record::UploadRevoked { job: job.clone(), partition: task.index, attempt }, Waiters::default());
        true
    }

    fn grant(&mut self, job: &JobId, task: TaskId, worker: &WorkerId) {
        let id = AttemptId { task, generation: Generation(0), epoch: self.epoch, nonce: self.nonces.next() };
        let Some(active) = self.active.get_mut(job) else { return };
        let Some(tasks) = active.tasks.as_mut() else { return };
        if tasks.history.get(&task.index).is_some_and(|history| history.attempts > 0) {
            active.retries = active.retries.saturating_add(1);
        }
        tasks.start(Attempt {
            id,
            worker: worker.clone(),
            accepted: false,
            sent: 0,
            seen_ms: self.now_ms,
            bytes_done: 0,
            upload: None,
            recording: None,
        });
        self.workers.update(worker, |known| known.attempts.insert((job.clone(), id)));
        self.touch(job);
        self.send_run(job, &id);
    }

    /// Sends the order to run an attempt that is under way.
    fn send_run(&mut self, job: &JobId, id: &AttemptId) {
        let (Some(durable), Some(active)) = (self.durable.jobs.get(job), self.active.get_mut(job)) else { return };
        let splitters = durable.boundaries.as_ref().and_then(|chosen| chosen.splitters.clone());
        let work = match (id.task.phase, &durable.runs_pinned) {
            (Phase::Sample, _) => Work::Sample,
            (Phase::Sort, _) => Work::Sort { splitters },
            (Phase::Merge, Some(runs)) => Work::Merge { splitters, runs: runs.clone() },
            (Phase::Merge, None) => return,
        };
        let plan = durable.submitted.plan.clone();
        let Some(attempt) = active.attempt_mut(id) else { return };
        attempt.sent += 1;
        let worker = attempt.worker.clone();
        let Some(incarnation) = self.workers.get(&worker).map(|known| known.info.incarnation) else { return };
        let run = RunAttempt { epoch: self.epoch, incarnation, job: job.clone(), attempt: *id, plan, work };
        self.out.push(Effect::SendRun { worker, run: Box::new(run) });
    }

    pub(super) fn run_answered(&mut self, worker: &WorkerId, job: &JobId, id: &AttemptId, reply: Result<RunReply>) {
        let now_ms = self.now_ms;
        let attempt = self
            .active
            .get_mut(job)
            .and_then(|active| active.attempt_mut(id))
            .filter(|attempt| attempt.worker == *worker);
        match (reply, attempt) {
            (Ok(RunReply::Accepted), Some(attempt)) => {
                attempt.accepted = true;
                attempt.seen_ms = now_ms;
                self.workers.update(worker, |known| known.busy = 0);
                if let Some(active) = self.active.get_mut(job) {
                    active.moved_ms = now_ms;
                    active.news = true;
                }
            }
            // Taken back in the meantime: unless its result stands, nobody is to work on it.
            (Ok(RunReply::Accepted), None) => self.cancel_attempt(worker, job, id),
            (Ok(RunReply::Busy), Some(attempt)) if !attempt.accepted => {
                self.pause(worker);
                self.take_back(job, id, &TakenBack::HandedBack);
            }
            (Ok(RunReply::Refused { error }), Some(attempt)) if !attempt.accepted => {
                self.counters.violations += 1;
                self.event(Some(job), "warning", "order-refused", format!("worker {worker} refused {id}: {error}"));
                self.pause(worker);
                self.take_back(job, id, &TakenBack::HandedBack);
            }
            (Err(_), Some(attempt)) if !attempt.accepted => {
                let pause_ms = self.config.tasks.command_retry_ms;
                self.after(pause_ms, Timer::Resend(job.clone(), *id));
            }
            _ => {}
        }
    }

    pub(super) fn resend(&mut self, job: &JobId, id: &AttemptId) {
        let Some(attempt) =
            self.active.get(job).and_then(|active| active.attempt(id)).filter(|attempt| !attempt.accepted)
        else {
            return;
        };
        if attempt.recording.is_some() {
            return;
        }
        if attempt.sent < SENT_MAX {
            return self.send_run(job, id);
        }
        let worker = attempt.worker.clone();
        self.event(
            Some(job),
            "warning",
            "order-unanswered",
            format!("worker {worker} has not answered {SENT_MAX} orders to run {id}"),
        );
        self.pause(&worker);
        self.take_back(job, id, &TakenBack::HandedBack);
    }

    /// Gives a worker that cannot take more a short rest, longer each time.
    fn pause(&mut self, worker: &WorkerId) {
        let longest_ms = self.config.tasks.command_retry_ms;
        let pause_ms = self.workers.update(worker, |known| {
            known.paused = true;
            known.busy = known.busy.saturating_add(1);
            (BUSY_PAUSE_MS << known.busy.min(16)).min(longest_ms)
        });
        if let Some(pause_ms) = pause_ms {
            self.after(pause_ms, Timer::Unpause(worker.clone()));
        }
    }

    /// Tells a worker to abandon an attempt that does not count, unless its result does.
    pub(super) fn cancel_attempt(&mut self, worker: &WorkerId, job: &JobId, attempt: &AttemptId) {
        if self.is_committed(job, attempt) {
            return;
        }
        let cancel = CancelAttempt { epoch: self.epoch, job: job.clone(), attempt: *attempt };
        self.out.push(Effect::SendCancel { worker: worker.clone(), cancel });
    }

    /// Ends an attempt that is under way without a result. One whose result is on its way into the journal stays: it counts whatever becomes of its worker.
    pub(super) fn take_back(&mut self, job: &JobId, id: &AttemptId, why: &TakenBack) {
        let (Some(durable), Some(active)) = (self.durable.jobs.get(job), self.active.get_mut(job)) else { return };
        let Some(tasks) = active.tasks.as_mut() else { return };
        let Some(attempt) = tasks.attempt(id) else { return };
        if matches!(attempt.recording, Some(super::active::Recording::Journal(_))) {
            return;
        }
        let journalled = durable.uploads.get(&id.task.index).is_some_and(|upload| upload.attempt == *id);
        let has_upload = id.task.phase == Phase::Merge && (journalled || attempt.upload.is_some());
        let delayed = matches!(why, TakenBack::Failed(_));
        let next = match (has_upload, delayed) {
            (true, _) => TaskState::Revoking(*id),
            (false, true) => TaskState::Delayed,
            (false, false) => TaskState::Waiting,
        };
        let Some(attempt) = tasks.stop(id, next) else { return };
        active.news = true;
        self.workers.update(&attempt.worker, |worker| worker.attempts.remove(&(job.clone(), *id)));
        let exhausted = self.remember(job, id.task, &attempt.worker, why);
        if has_upload {
            self.append(
                Record::UploadRevoked { job: job.clone(), partition: id.task.index, attempt: *id },
                Waiters::default(),
            );
        } else if delayed {
            let tries = self.tries(job, id.task);
            let (phase, index) = (id.task.phase, id.task.index);
            self.after(Self::backoff_ms(tries.saturating_sub(1)), Timer::Requeue(job.clone(), phase, index));
        }
        self.touch(job);
        if let Some(error) = exhausted {
            self.fail(job, error);
        }
    }

    fn tries(&self, job: &JobId, task: TaskId) -> u32 {
        let tasks = self.active.get(job).and_then(|active| active.tasks.as_ref());
        tasks.and_then(|tasks| tasks.history.get(&task.index)).map_or(0, |history| history.tries)
    }

    /// Notes what became of an attempt, and gives the error that ends the job if there were too many, or one that repeating does not mend.
    fn remember(&mut self, job: &JobId, task: TaskId, worker: &WorkerId, why: &TakenBack) -> Option<Error> {
        let text = match why {
            TakenBack::HandedBack => return None,
            TakenBack::Failed(error) => error.message.clone(),
            TakenBack::Lost(how) => (*how).to_owned(),
        };
        let host = self.workers.get(worker).map(|known| known.info.host.clone()).unwrap_or_default();
        let active = self.active.get_mut(job)?;
        let attempts_max = active.attempts_max;
        let history = active.tasks.as_mut()?.history.entry(task.index).or_default();
        history.tries += 1;
        history.attempts += 1;
        if !history.tried.contains(worker) {
            history.tried.push(worker.clone());
        }
        let named = format!("worker {worker} on {host}: {text}");
        if history.errors.len() < ERRORS_MAX {
            history.errors.push(named.clone());
        }
        let (tries, errors) = (history.tries, history.errors.join("; "));
        self.event(Some(job), "warning", "attempt-failed", format!("{task}, try {tries} of {attempts_max}: {named}"));
        match why {
            TakenBack::Failed(error) if matches!(error.kind, ErrorKind::Invalid | ErrorKind::Bug) => {
                Some(Error::new(error.kind, format!("{task} cannot be done: {named}")))
            }
            _ if tries >= attempts_max => {
                Some(Error::exhausted(format!("{task} failed {tries} times (tasks.attempts_max): {errors}")))
            }
            _ => None,
        }
    }

    pub(super) fn requeue(&mut self, job: &JobId, phase: Phase, index: u32) {
        if let Some(tasks) =
            self.active.get_mut(job).and_then(|active| active.tasks.as_mut()).filter(|tasks| tasks.phase == phase)
        {
            tasks.requeue(index);
        }
        self.touch(job);
    }

    /// Aborts a revoked upload; the task can be granted again once the store has confirmed it.
    pub(super) fn abort_revoked(&mut self, job: &JobId, attempt: &AttemptId) {
        let Some((durable, active)) = self.both(job) else { return };
        let revoking = active.tasks.as_ref().and_then(|tasks| tasks.state(attempt.task));
        if !matches!(revoking, Some(TaskState::Revoking(revoked)) if revoked == attempt) {
            return;
        }
        if let Some(upload) = durable.revoked.iter().rev().find(|upload| upload.attempt == *attempt) {
            let name = muster_common::names::part_name(upload.partition, &durable.submitted.extension);
            let (url, upload) = (active.output.join(&name), upload.clone());
            self.out.push(Effect::AbortUpload { job: job.clone(), url, upload });
        }
    }

    pub(super) fn upload_aborted(&mut self, job: &JobId, attempt: &AttemptId, result: Result<()>) {
        let Some(active) = self.active.get_mut(job) else { return };
        let tasks = active.tasks.as_ref();
        let tries = tasks.and_then(|tasks| tasks.history.get(&attempt.task.index)).map_or(0, |history| history.tries);
        match result {
            Ok(()) => self.requeue(job, attempt.task.phase, attempt.task.index),
            Err(error) => {
                active.trouble = Some(error.message);
                self.after(Self::backoff_ms(tries + 1), Timer::Abort(job.clone(), *attempt));
            }
        }
    }
}
