//! Which task goes to which worker, and what becomes of an attempt that ends without a result.
//!
//! Fair: the next task is that of the job with the fewest running attempts, earlier jobs first. It
//! goes to the worker with the most room that has not failed it yet; one whose input a single
//! worker can read goes to that worker alone (`owners.rs`). An attempt is only this leader's word:
//! it is not journalled, and lost with the leader unless its worker still holds it.

use std::collections::BTreeSet;

use muster_common::ids::{AttemptId, Generation, Phase, TaskId, WorkerId};
use muster_common::wire::{CancelAttempt, RunAttempt, RunReply, Work};
use muster_common::{Error, ErrorKind, Result};

use super::active::{Active, Attempt, History, TaskState, Waiters};
use super::durable::DurableJob;
use super::history::FAILURES_KEPT;
use super::io::Effect;
use super::letters::causes;
use super::workers::Worker;
use super::{JobId, Machine, Timer};
use crate::journal::record::{AttemptFailed, Record};

/// Orders to run one attempt that may go unanswered before it is taken back.
const SENT_MAX: u32 = 10;
/// First pause of a worker that says it is busy, in milliseconds: most likely it is about to read
/// the acknowledgement that frees its slot.
const BUSY_PAUSE_MS: u64 = 10;
/// Errors of one task that are kept to be named.
pub(super) const ERRORS_MAX: usize = 10;

/// Why an attempt is taken back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum TakenBack {
    /// Its worker says that it failed. Counts as a try.
    Failed(Error),
    /// Its worker died. Counts as a try: some tasks kill their workers.
    Died(String),
    /// It hangs, or its worker has lost it. Counts as a try.
    Lost(String),
    /// It never ran, or was handed back in good order. Does not count.
    HandedBack,
}

/// What is left out of a task's own split: nobody needs to know of the rest, and it may be much.
fn skipped_of(durable: &DurableJob, active: &Active, task: TaskId) -> Vec<u32> {
    let split = active.plan.as_ref().and_then(|plan| plan.splits.get(task.index as usize));
    if task.phase == Phase::Merge || durable.skipped_objects.is_empty() {
        return Vec::new();
    }
    let objects = split.into_iter().flatten().map(|piece| piece.object);
    let mut skip: Vec<u32> =
        objects.filter(|object| durable.skipped_objects.contains_key(object)).collect();
    skip.dedup();
    skip
}

/// Longest error that is journalled, in characters.
const ERROR_CHARS_MAX: usize = 300;

pub(super) fn cut_to_line(text: &str) -> String {
    text.chars()
        .map(|char| if char.is_control() { ' ' } else { char })
        .take(ERROR_CHARS_MAX)
        .collect()
}

impl Machine {
    /// Puts a job into, or out of, the order of those with something to grant.
    pub(super) fn touch(&mut self, job: &JobId) {
        let Some(active) = self.active.get_mut(job) else { return };
        let after = active.may_run().then(|| active.running());
        let before = std::mem::replace(&mut active.runnable, after);
        if before != after {
            let order = active.order;
            before.map(|running| self.runnable.remove(&(running, order, job.clone())));
            after.map(|running| self.runnable.insert((running, order, job.clone())));
        }
    }

    /// Grants what can be granted.
    pub(super) fn schedule(&mut self) {
        if self.too_few().is_some() {
            return;
        }
        while let Some((job, task, worker)) = self.next_grant() {
            if !self.revoke_before_grant(&job, task) {
                self.grant(&job, task, &worker);
            }
        }
    }

    /// The first task, in the order of fairness, that a worker with room may have.
    fn next_grant(&self) -> Option<(JobId, TaskId, WorkerId)> {
        self.workers.free().next()?;
        self.runnable.iter().find_map(|(_, _, job)| {
            let active = self.active.get(job)?;
            let tasks = active.granted_from()?;
            // A slot of theirs is the only one that such tasks can have.
            let owned = self.next_owned(active);
            let next = owned.or_else(|| {
                active.owners.free_tasks(tasks).find_map(|index| {
                    Some((index, self.worker_for(active.attempts_max, tasks.history.get(&index))?))
                })
            });
            next.map(|(index, worker)| (job.clone(), tasks.task(index), worker.clone()))
        })
    }

    /// A worker with room that has not failed the task; else any, as long as half of the task's
    /// tries are left. After that the task waits for one that has not failed it, where there is
    /// one: a worker whose own disk is full would use up all tries while the others are busy.
    fn worker_for(&self, attempts_max: u32, history: Option<&History>) -> Option<&WorkerId> {
        let first = self.workers.free().next()?;
        let Some(History { tries, tried, needs_bytes, .. }) = history else { return Some(first) };
        if *needs_bytes > 0 {
            // The others would only say again that it is too much for them.
            let suits = |id: &&WorkerId| {
                self.workers.get(id).is_some_and(|worker| worker.task_bytes() >= *needs_bytes)
            };
            return self.workers.free().find(suits);
        }
        let fresh =
            self.workers.free().take(tried.len() + 1).find(|worker| !tried.contains(worker));
        let untried = |(id, worker): (&WorkerId, &Worker)| {
            worker.is_alive() && worker.takes_part() && !tried.contains(id)
        };
        let wait = *tries >= attempts_max.div_ceil(2) && self.workers.iter().any(untried);
        fresh.or(if wait { None } else { Some(first) })
    }

    /// A merge task may have an upload left of an attempt that nobody holds any more. It is revoked
    /// before the task is granted again.
    fn revoke_before_grant(&mut self, job: &JobId, task: TaskId) -> bool {
        if task.phase != Phase::Merge {
            return false;
        }
        let open =
            self.durable.jobs.get(job).and_then(|durable| durable.uploads_of(task.index).next());
        let Some(attempt) = open.map(|upload| upload.attempt) else { return false };
        if let Some(tasks) =
            self.active.get_mut(job).and_then(|active| active.tasks_of_mut(task.phase))
        {
            tasks.revoke(task.index, attempt);
        }
        self.touch(job);
        // A rival's dismissal may have asked for it already, and the task waits for that.
        if !self.is_being_revoked(job, &attempt) {
            self.append(
                Record::UploadRevoked { job: job.clone(), partition: task.index, attempt },
                Waiters::default(),
            );
        }
        true
    }

    /// Gives a task that waits to a worker, or a second attempt of one that runs.
    pub(super) fn grant(&mut self, job: &JobId, task: TaskId, worker: &WorkerId) {
        let generation = self.generation(job, task);
        let id = AttemptId { task, generation, epoch: self.epoch, nonce: self.nonces.next() };
        let ticket = self.begin_with(worker);
        self.tally.attempts_begun[task.phase as usize] += 1;
        let fair_ms = self.fair_ms();
        let Some(active) = self.active.get_mut(job) else { return };
        let Some(tasks) = active.tasks_of_mut(task.phase) else { return };
        tasks.start(Attempt {
            id,
            worker: worker.clone(),
            accepted: false,
            sent: 0,
            seen_ms: self.now_ms,
            began_ms: fair_ms,
            progress_ms: fair_ms,
            bytes_done: 0,
            bytes_total: 0,
            ticket,
            upload: None,
            recording: None,
        });
        self.workers.update(worker, |known| known.attempts.insert((job.clone(), id)));
        self.touch(job);
        self.send_run(job, &id);
    }

    /// The generation in which a task is to be done now.
    pub(super) fn generation(&self, job: &JobId, task: TaskId) -> Generation {
        let durable = self.durable.jobs.get(job);
        match task.phase {
            Phase::Sample => self.sampling_generation(job),
            Phase::Sort => durable.map_or(Generation(0), |durable| durable.generation(task.index)),
            Phase::Merge => Generation(0),
        }
    }

    /// Sends the order to run an attempt that is under way.
    fn send_run(&mut self, job: &JobId, id: &AttemptId) {
        let (Some(durable), Some(active)) = (self.durable.jobs.get(job), self.active.get_mut(job))
        else {
            return;
        };
        let splitters = durable.boundaries.as_ref().and_then(|chosen| chosen.splitters.clone());
        let skip = skipped_of(durable, active, id.task);
        let work = match (id.task.phase, &durable.runs_pinned) {
            (Phase::Sample, _) => Work::Sample { skip },
            (Phase::Sort, _) => Work::Sort { splitters, skip },
            (Phase::Merge, Some(runs)) => Work::Merge { splitters, runs: runs.clone() },
            (Phase::Merge, None) => return,
        };
        let plan = durable.submitted.plan.clone();
        let tasks = active.tasks_of(id.task.phase);
        let history = tasks.and_then(|tasks| tasks.history.get(&id.task.index));
        let memory_halvings = history.map_or(0, |history| history.halvings);
        let Some(attempt) = active.attempt_mut(id) else { return };
        attempt.sent += 1;
        let worker = attempt.worker.clone();
        let Some((incarnation, peer)) =
            self.workers.get(&worker).map(|known| (known.info.incarnation, known.info.wire))
        else {
            return;
        };
        let run = RunAttempt {
            epoch: self.epoch,
            incarnation,
            job: job.clone(),
            attempt: *id,
            plan,
            work,
            memory_halvings,
        };
        self.out.push(Effect::SendRun { worker, peer, run: Box::new(run) });
    }

    pub(super) fn run_answered(
        &mut self,
        worker: &WorkerId,
        job: &JobId,
        id: &AttemptId,
        reply: Result<RunReply>,
    ) {
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
                self.event(
                    Some(job),
                    "warning",
                    "order-refused",
                    format!("worker {worker} refused {id}: {error}"),
                );
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
        let Some(attempt) = self
            .active
            .get(job)
            .and_then(|active| active.attempt(id))
            .filter(|attempt| !attempt.accepted)
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

    /// Ends an attempt that is under way without a result. One whose result is on its way into the
    /// journal stays: it counts whatever becomes of its worker.
    pub(super) fn take_back(&mut self, job: &JobId, id: &AttemptId, why: &TakenBack) {
        let (Some(durable), Some(active)) = (self.durable.jobs.get(job), self.active.get_mut(job))
        else {
            return;
        };
        let Some(tasks) = active.tasks_of_mut(id.task.phase) else { return };
        let Some(attempt) = tasks.attempt(id) else { return };
        if matches!(attempt.recording, Some(super::active::Recording::Journal(_))) {
            return;
        }
        let alone = tasks.rival(id).is_none();
        let journalled = durable.upload(id).is_some();
        let has_upload = id.task.phase == Phase::Merge && (journalled || attempt.upload.is_some());
        let limited = matches!(why, TakenBack::Died(_))
            && alone
            && !has_upload
            && !self.ramp.take(self.now_ms);
        let delayed = alone && matches!(why, TakenBack::Failed(_));
        let next = match (has_upload, delayed || limited) {
            (true, _) => TaskState::Revoking(*id),
            (false, true) => TaskState::Delayed,
            (false, false) => TaskState::Waiting,
        };
        let Some(attempt) = tasks.stop(id, next) else { return };
        active.news = true;
        active.older_list.remove(id);
        if has_upload && alone && matches!(why, TakenBack::Died(_)) {
            active.bereaved.insert(*id);
        }
        self.workers.update(&attempt.worker, |worker| worker.attempts.remove(&(job.clone(), *id)));
        self.end_with(job, &attempt, why);
        let exhausted = self.remember(job, id, &attempt.worker, why);
        if has_upload {
            self.append(
                Record::UploadRevoked { job: job.clone(), partition: id.task.index, attempt: *id },
                Waiters::default(),
            );
        } else if delayed {
            let tries = self.tries(job, id.task);
            let (phase, index) = (id.task.phase, id.task.index);
            let own = self.active.get(job).map(|active| active.config.clone());
            let retry = own.as_ref().map_or(&self.config.retry, |own| &own.retry);
            let pause_ms = retry.task.pause_ms(tries, self.jitter.next());
            self.after(pause_ms, Timer::Requeue(job.clone(), phase, index));
        } else if limited {
            self.watch.limited.push_back((job.clone(), id.task.phase, id.task.index));
        }
        self.touch(job);
        // While another attempt goes on, the tries of the task are not used up.
        if let Some(error) = exhausted.filter(|error| alone || error.kind != ErrorKind::Exhausted) {
            self.fail(job, error);
        }
    }

    /// The result of an attempt is about to count: whoever else is at its task lets go, and no
    /// other upload of its partition stays open.
    pub(super) fn dismiss_rivals(&mut self, job: &JobId, id: &AttemptId) {
        let tasks = self.active.get(job).and_then(|active| active.tasks_of(id.task.phase));
        let rival =
            tasks.and_then(|tasks| tasks.rival(id)).map(|rival| (rival.id, rival.worker.clone()));
        if let Some((rival, worker)) = rival {
            self.take_back(job, &rival, &TakenBack::HandedBack);
            self.cancel_attempt(&worker, job, &rival);
        }
        if id.task.phase != Phase::Merge {
            return;
        }
        let others = self
            .durable
            .jobs
            .get(job)
            .into_iter()
            .flat_map(|durable| durable.uploads_of(id.task.index));
        let open: Vec<AttemptId> = others
            .map(|upload| upload.attempt)
            .filter(|attempt| attempt != id && !self.is_being_revoked(job, attempt))
            .collect();
        for attempt in open {
            let partition = id.task.index;
            self.append(
                Record::UploadRevoked { job: job.clone(), partition, attempt },
                Waiters::default(),
            );
        }
    }

    fn is_being_revoked(&self, of: &JobId, upload: &AttemptId) -> bool {
        self.ledger.records().any(|record| {
            matches!(
                record,
                Record::UploadRevoked { job, attempt, .. } if job == of && attempt == upload
            )
        })
    }

    pub(super) fn tries(&self, job: &JobId, task: TaskId) -> u32 {
        let tasks = self.active.get(job).and_then(|active| active.tasks_of(task.phase));
        tasks.and_then(|tasks| tasks.history.get(&task.index)).map_or(0, |history| history.tries)
    }

    /// Notes what became of an attempt, and gives the error that ends the job if there were too
    /// many, or one that repeating does not mend.
    fn remember(
        &mut self,
        job: &JobId,
        attempt: &AttemptId,
        worker: &WorkerId,
        why: &TakenBack,
    ) -> Option<Error> {
        let task = attempt.task;
        let (kind, text) = match why {
            TakenBack::HandedBack => return None,
            TakenBack::Failed(error) => (error.kind, error.message.clone()),
            TakenBack::Died(how) => (ErrorKind::WorkerDied, format!("its worker is dead: {how}")),
            TakenBack::Lost(how) => (ErrorKind::Retry, how.clone()),
        };
        let (word, counted) = match why {
            TakenBack::Died(_) | TakenBack::Lost(_) => {
                ("worker-lost", &mut self.tally.attempts_lost)
            }
            _ => ("attempt-failed", &mut self.tally.attempts_failed),
        };
        counted[task.phase as usize] += 1;
        let host =
            self.workers.get(worker).map(|known| known.info.host.clone()).unwrap_or_default();
        let (now_ms, unix_ms) = (self.now_ms, self.unix_ms());
        let active = self.active.get_mut(job)?;
        let attempts_max = active.attempts_max;
        active.recoveries.trouble(task, word, now_ms);
        if active.failed_unix_ms.len() >= 2 * FAILURES_KEPT {
            let kept: BTreeSet<AttemptId> =
                self.durable.jobs.get(job)?.failures.iter().map(|known| known.attempt).collect();
            active.failed_unix_ms.retain(|attempt, _| kept.contains(attempt));
        }
        active.failed_unix_ms.insert(*attempt, unix_ms);
        let history = active.tasks_of_mut(task.phase)?.history.entry(task.index).or_default();
        history.tries += 1;
        history.heed_memory(task.phase, kind);
        let needs_bytes = history.needs_bytes;
        if !history.tried.contains(worker) {
            history.tried.push(worker.clone());
        }
        let named = format!("worker {worker} on {host}: {text}");
        if history.errors.len() < ERRORS_MAX {
            history.errors.push(named.clone());
        }
        let (tries, errors) = (history.tries, causes(&history.errors));
        if active.ending.is_none() {
            // Nobody waits for this record: it is there for the next leader, and for people.
            let error = muster_common::Error::new(kind, cut_to_line(&named)).message;
            let failed = AttemptFailed {
                job: job.clone(),
                attempt: *attempt,
                worker: worker.clone(),
                kind,
                error,
            };
            self.append(Record::AttemptFailed(Box::new(failed)), Waiters::default());
        }
        self.event(
            Some(job),
            "warning",
            "attempt-failed",
            format!("{task}, try {tries} of {attempts_max}: {named}"),
        );
        match why {
            TakenBack::Failed(error)
                if matches!(error.kind, ErrorKind::Invalid | ErrorKind::Bug) =>
            {
                Some(Error::new(error.kind, format!("{task} cannot be done: {named}")))
            }
            TakenBack::Failed(Error { kind: ErrorKind::NeedsMemory { .. }, .. })
                if !self.has_memory(needs_bytes) =>
            {
                Some(Error::exhausted(format!(
                    "{task} cannot be done by any worker that is there: {named}"
                )))
            }
            _ if tries >= attempts_max => Some(Error::exhausted(format!(
                "{task} failed {tries} times (tasks.attempts_max): {errors}"
            ))),
            _ => None,
        }
    }

    /// Whether a worker that is there, busy or not, has so much memory for each of its tasks.
    fn has_memory(&self, task_bytes: u64) -> bool {
        let has = |worker: &Worker| {
            worker.is_alive() && worker.takes_part() && worker.task_bytes() >= task_bytes
        };
        self.workers.iter().any(|(_, worker)| has(worker))
    }

    pub(super) fn requeue(&mut self, job: &JobId, phase: Phase, index: u32) {
        if let Some(tasks) = self.active.get_mut(job).and_then(|active| active.tasks_of_mut(phase))
        {
            tasks.requeue(index);
        }
        self.touch(job);
    }

    /// Aborts a revoked upload; the task can be granted again once the store has confirmed it.
    pub(super) fn abort_revoked(&mut self, job: &JobId, attempt: &AttemptId) {
        let Some((durable, active)) = self.both(job) else { return };
        let Some(tasks) = active.tasks_of(attempt.task.phase) else { return };
        if tasks.attempt(attempt).is_some() {
            return;
        }
        if let Some(upload) = durable.revoked.iter().rev().find(|upload| upload.attempt == *attempt)
        {
            let name =
                muster_common::names::part_name(upload.partition, &durable.submitted.extension);
            let (url, upload) = (active.output.join(&name), upload.clone());
            self.out.push(Effect::AbortUpload { job: job.clone(), url, upload });
        }
    }

    pub(super) fn upload_aborted(&mut self, job: &JobId, attempt: &AttemptId, result: Result<()>) {
        let Some(active) = self.active.get_mut(job) else { return };
        let tasks = active.tasks_of(attempt.task.phase);
        let tries = tasks
            .and_then(|tasks| tasks.history.get(&attempt.task.index))
            .map_or(0, |history| history.tries);
        let state = tasks.and_then(|tasks| tasks.state(attempt.task));
        let awaited = matches!(state, Some(TaskState::Revoking(revoked)) if revoked == attempt);
        match result {
            Ok(()) if awaited => {
                let (phase, index) = (attempt.task.phase, attempt.task.index);
                // Its upload had to go first; from here on it is a lost task like any other.
                if active.bereaved.remove(attempt) && !self.ramp.take(self.now_ms) {
                    active.tasks_of_mut(phase).into_iter().for_each(|tasks| tasks.delay(index));
                    self.watch.limited.push_back((job.clone(), phase, index));
                } else {
                    self.requeue(job, phase, index);
                }
            }
            Ok(()) => {
                active.bereaved.remove(attempt);
            }
            // A part that cannot be taken back must not be made again, and no wait gives the right
            // to do it.
            Err(error) if awaited && error.kind == ErrorKind::Invalid => {
                let text = format!(
                    "the upload of {} cannot be taken back: {}",
                    attempt.task, error.message
                );
                self.fail(job, Error::invalid(text));
            }
            Err(error) => {
                if awaited {
                    active.trouble = Some(error.message);
                }
                let pause_ms = active.config.retry.abort.pause_ms(tries + 1, self.jitter.next());
                self.after(pause_ms, Timer::Abort(job.clone(), *attempt));
            }
        }
    }
}
