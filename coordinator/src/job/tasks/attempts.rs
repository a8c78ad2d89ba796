//! What becomes of an attempt that ends without a result, and of its task: tried again, at once or
//! after a pause, once its upload is gone; or given up.

use muster_protocol::ids::{AttemptId, JobId, Phase, TaskId, WorkerId};
use muster_protocol::wire::CancelAttempt;
use muster_protocol::{Error, ErrorKind, Result};

use crate::job::io::Effect;
use crate::job::pool::members::Worker;
use crate::job::tasks::table::{ERRORS_MAX, Recording, TaskState};
use crate::job::view::letters::causes;
use crate::job::view::tally::Counted;
use crate::job::{Machine, Timer};
use crate::journal::record::{AttemptFailed, Record};

/// Why an attempt is taken back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TakenBack {
    /// Its worker says that it failed. Counts as a try.
    Failed(Error),
    /// Its worker died. Counts as a try: some tasks kill their workers.
    Died(String),
    /// It hangs, or its worker has lost it. Counts as a try.
    Lost(String),
    /// It never ran, or was handed back in good order. Does not count.
    HandedBack,
}

/// Longest error that is journalled, in characters.
const ERROR_CHARS_MAX: usize = 300;

impl Machine {
    /// Tells a worker to abandon an attempt that does not count, unless its result does.
    pub(crate) fn cancel_attempt(&mut self, worker: &WorkerId, job: &JobId, attempt: &AttemptId) {
        if self.is_committed(job, attempt) {
            return;
        }
        let cancel = CancelAttempt { epoch: self.epoch, job: job.clone(), attempt: *attempt };
        self.out.push(Effect::SendCancel { worker: worker.clone(), cancel });
    }

    /// Ends an attempt that is under way without a result. One whose result is on its way into the
    /// journal stays: it counts whatever becomes of its worker.
    pub(crate) fn take_back(&mut self, job: &JobId, id: &AttemptId, why: &TakenBack) {
        let Some((durable, active)) = self.jobs.both_mut(job) else { return };
        let Some(tasks) = active.tasks.of_mut(id.task.phase) else { return };
        let Some(attempt) = tasks.attempt(id) else { return };
        if matches!(attempt.recording, Some(Recording::Journal(_))) {
            return;
        }
        let alone = tasks.rival(id).is_none();
        let journalled = durable.upload(id).is_some();
        let has_upload = id.task.phase == Phase::Merge && (journalled || attempt.upload.is_some());
        let limited = matches!(why, TakenBack::Died(_))
            && alone
            && !has_upload
            && !self.pool.admits_lost(self.now_ms);
        let delayed = alone && matches!(why, TakenBack::Failed(_));
        let next = match (has_upload, delayed || limited) {
            (true, _) => TaskState::Revoking(*id),
            (false, true) => TaskState::Delayed,
            (false, false) => TaskState::Waiting,
        };
        let Some(attempt) = tasks.stop(id, next) else { return };
        active.told.news();
        active.tasks.older_list.remove(id);
        if has_upload && alone && matches!(why, TakenBack::Died(_)) {
            active.tasks.bereaved.insert(*id);
        }
        self.pool.take_from(&attempt.worker, job, *id);
        self.end_with(job, &attempt, why);
        let exhausted = self.remember(job, id, &attempt.worker, why);
        if has_upload {
            self.record(Record::UploadRevoked {
                job: job.clone(),
                partition: id.task.index,
                attempt: *id,
            });
        } else if delayed {
            let tries = self.tries(job, id.task);
            let (phase, index) = (id.task.phase, id.task.index);
            let own = self.jobs.active(job).map(|active| active.config.clone());
            let retry = own.as_ref().map_or(&self.config.retry, |own| &own.retry);
            let pause_ms = retry.task.pause_ms(tries, self.jitter.next());
            self.after(pause_ms, Timer::Requeue(job.clone(), phase, index));
        } else if limited {
            self.pool.defer_lost(job, id.task.phase, id.task.index);
        }
        self.jobs.touch(job);
        // While another attempt goes on, the tries of the task are not used up.
        if let Some(error) = exhausted.filter(|error| alone || error.kind != ErrorKind::Exhausted) {
            self.fail(job, error);
        }
    }

    /// The result of an attempt is about to count: whoever else is at its task lets go, and no
    /// other upload of its partition stays open.
    pub(crate) fn dismiss_rivals(&mut self, job: &JobId, id: &AttemptId) {
        let tasks = self.jobs.tasks(job, id.task.phase);
        let rival =
            tasks.and_then(|tasks| tasks.rival(id)).map(|rival| (rival.id, rival.worker.clone()));
        if let Some((rival, worker)) = rival {
            self.take_back(job, &rival, &TakenBack::HandedBack);
            self.cancel_attempt(&worker, job, &rival);
        }
        if id.task.phase != Phase::Merge {
            return;
        }
        let others =
            self.jobs.known(job).into_iter().flat_map(|durable| durable.uploads_of(id.task.index));
        let open: Vec<AttemptId> = others
            .map(|upload| upload.attempt)
            .filter(|attempt| attempt != id && !self.is_being_revoked(job, attempt))
            .collect();
        for attempt in open {
            let partition = id.task.index;
            self.record(Record::UploadRevoked { job: job.clone(), partition, attempt });
        }
    }

    pub(crate) fn is_being_revoked(&self, of: &JobId, upload: &AttemptId) -> bool {
        self.ledger.records().any(|record| {
            matches!(
                record,
                Record::UploadRevoked { job, attempt, .. } if job == of && attempt == upload
            )
        })
    }

    pub(crate) fn tries(&self, job: &JobId, task: TaskId) -> u32 {
        let tasks = self.jobs.tasks(job, task.phase);
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
                ("worker-lost", Counted::AttemptLost(task.phase))
            }
            _ => ("attempt-failed", Counted::AttemptFailed(task.phase)),
        };
        self.view.count(counted);
        let host = self
            .pool
            .workers()
            .get(worker)
            .map(|known| known.info.host.clone())
            .unwrap_or_default();
        let (now_ms, unix_ms) = (self.now_ms, self.unix_ms());
        let (durable, active) = self.jobs.both_mut(job)?;
        let attempts_max = active.attempts_max;
        active.told.recoveries.trouble(task, word, now_ms);
        active.told.failed(*attempt, unix_ms, durable);
        let history = active.tasks.of_mut(task.phase)?.history.entry(task.index).or_default();
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
        if active.ending().is_none() {
            // Nobody waits for this record: it is there for the next leader, and for people.
            let error = muster_protocol::Error::new(kind, cut_to_line(&named)).message;
            let failed = AttemptFailed {
                job: job.clone(),
                attempt: *attempt,
                worker: worker.clone(),
                kind,
                error,
            };
            self.record(Record::AttemptFailed(Box::new(failed)));
        }
        let text = format!("{task}, try {tries} of {attempts_max}: {named}");
        self.event(Some(job), "warning", "attempt-failed", text);
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
        self.pool.workers().iter().any(|(_, worker)| has(worker))
    }

    pub(crate) fn requeue(&mut self, job: &JobId, phase: Phase, index: u32) {
        if let Some(tasks) = self.jobs.tasks_mut(job, phase) {
            tasks.requeue(index);
        }
        self.jobs.touch(job);
    }

    /// Aborts a revoked upload; the task can be granted again once the store has confirmed it.
    pub(crate) fn abort_revoked(&mut self, job: &JobId, attempt: &AttemptId) {
        let Some((durable, active)) = self.jobs.both(job) else { return };
        let Some(tasks) = active.tasks.of(attempt.task.phase) else { return };
        if tasks.attempt(attempt).is_some() {
            return;
        }
        if let Some(upload) = durable.revoked.iter().rev().find(|upload| upload.attempt == *attempt)
        {
            let name =
                muster_protocol::names::part_name(upload.partition, &durable.submitted.extension);
            let (url, upload) = (active.output.join(&name), upload.clone());
            self.out.push(Effect::AbortUpload { job: job.clone(), url, upload });
        }
    }

    pub(crate) fn upload_aborted(&mut self, job: &JobId, attempt: &AttemptId, result: Result<()>) {
        let Some(active) = self.jobs.active_mut(job) else { return };
        let tasks = active.tasks.of(attempt.task.phase);
        let tries = tasks
            .and_then(|tasks| tasks.history.get(&attempt.task.index))
            .map_or(0, |history| history.tries);
        let state = tasks.and_then(|tasks| tasks.state(attempt.task));
        let awaited = matches!(state, Some(TaskState::Revoking(revoked)) if revoked == attempt);
        match result {
            Ok(()) if awaited => {
                let (phase, index) = (attempt.task.phase, attempt.task.index);
                // Its upload had to go first; from here on it is a lost task like any other.
                if active.tasks.bereaved.remove(attempt) && !self.pool.admits_lost(self.now_ms) {
                    active.tasks.of_mut(phase).into_iter().for_each(|tasks| tasks.delay(index));
                    self.pool.defer_lost(job, phase, index);
                } else {
                    self.requeue(job, phase, index);
                }
            }
            Ok(()) => {
                active.tasks.bereaved.remove(attempt);
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
                    active.waits(error.message);
                }
                let pause_ms = active.config.retry.abort.pause_ms(tries + 1, self.jitter.next());
                self.after(pause_ms, Timer::Abort(job.clone(), *attempt));
            }
        }
    }
}

pub(crate) fn cut_to_line(text: &str) -> String {
    text.chars()
        .map(|char| if char.is_control() { ' ' } else { char })
        .take(ERROR_CHARS_MAX)
        .collect()
}
