//! How jobs end: with a result, a cause or a request to cancel. The end is journalled; then workers
//! are told to let go, and are waited for within a bound.

use muster_protocol::api::JobState;
use muster_protocol::ids::{AttemptId, JobId};
use muster_protocol::wire::{Broadcast, CancelAttempt};
use muster_protocol::{Error, ErrorKind};

use crate::job::flow::active::Active;
use crate::job::io::{Effect, RefusalCode, ReplyTo};
use crate::job::law::{Step, allowed};
use crate::job::ledger::Waiters;
use crate::job::ledger::durable::end_state;
use crate::job::tasks::table::Attempt;
use crate::job::{Machine, Timer};
use crate::journal::record::{JobEnded, JobOutcome, Record};

/// Pause between the last worker's word that it lets go and the clean-up, in milliseconds: it
/// removes what it made first.
const LET_GO_MS: u64 = 300;

impl Machine {
    /// Ends a job with a cause, unless its commit is decided, or about to be.
    pub(crate) fn fail(&mut self, job: &JobId, error: Error) {
        if self.is_past_failing(job) {
            return;
        }
        self.event(Some(job), "error", "job-failing", error.message.clone());
        self.dead_letter(job, &error);
        self.end(job, JobOutcome::Failed, Some(error), Waiters::default());
    }

    fn is_past_failing(&self, job: &JobId) -> bool {
        let Some((durable, active)) = self.jobs.both(job) else { return true };
        let deciding = active.step() == Step::Deciding && durable.state == JobState::Merging;
        durable.commit_decided || deciding || active.ending().is_some() || durable.ended.is_some()
    }

    pub(crate) fn end(
        &mut self,
        job: &JobId,
        outcome: JobOutcome,
        error: Option<Error>,
        waiters: Waiters,
    ) {
        let Some((durable, active)) = self.jobs.both_mut(job) else { return };
        if !allowed(durable.state, end_state(outcome)) {
            self.counters.illegal += 1;
            let text = format!("job {job} cannot go from {} to {:?}", durable.state, outcome);
            return self.event(Some(job), "error", "illegal-transition", text);
        }
        active.advance(Step::Ending);
        let took_ms = if durable.commit_decided { active.elapsed_ms(self.now_ms) } else { 0 };
        // What a worker said may be longer than an error of our own.
        let error = error.map(|error| Error::new(error.kind, error.message).message);
        let record = JobEnded {
            job: job.clone(),
            outcome,
            error,
            retries: durable.retries,
            repeated: durable.repeated,
            recoveries: active.told.recoveries.sum(outcome == JobOutcome::Failed),
            took_ms,
            unix_ms: self.unix_ms(),
        };
        let token = self.append(Record::JobEnded(Box::new(record)), waiters);
        if let Some(active) = self.jobs.active_mut(job) {
            active.ending = Some(token);
        }
        self.jobs.touch(job);
    }

    pub(crate) fn cancel(&mut self, to: ReplyTo, job: &JobId) {
        if self.flow.planning.contains_key(job) {
            return self.cancel_planning(to, job);
        }
        let Some(durable) = self.jobs.known(job) else {
            return self.refuse(
                to,
                RefusalCode::Unknown,
                Error::new(ErrorKind::NotFound, format!("job {job} is not known")),
            );
        };
        if durable.state == JobState::Cancelled {
            return self.ask_status(to, job);
        }
        if durable.state.is_terminal() {
            let text = format!("job {job} has {} already", durable.state);
            return self.refuse(to, RefusalCode::Conflict, Error::invalid(text));
        }
        if let Some(token) = self.jobs.active(job).and_then(|active| active.ending) {
            if let Some(dropped) = self.wait_for_record(token, to) {
                self.ask_status(dropped, job);
            }
            return;
        }
        if self.is_past_failing(job) {
            let text = format!("the commit of job {job} is decided; it can no longer be cancelled");
            return self.refuse(to, RefusalCode::Conflict, Error::invalid(text));
        }
        self.end(job, JobOutcome::Cancelled, None, Waiters::one(to));
    }

    /// The end stands in the journal.
    pub(crate) fn ended(&mut self, ended: &JobEnded, waiters: Waiters) {
        let job = &ended.job;
        if let Some(active) = self.jobs.active_mut(job) {
            active.ending = None;
            active.moved(self.now_ms);
        }
        let (severity, text) = match (&ended.outcome, &ended.error) {
            (JobOutcome::Succeeded, _) => ("info", "succeeded".to_owned()),
            (JobOutcome::Cancelled, _) => ("warning", "cancelled".to_owned()),
            (JobOutcome::Failed, error) => {
                ("error", format!("failed: {}", error.as_deref().unwrap_or_default()))
            }
        };
        self.event(Some(job), severity, "job-ended", text);
        self.view.ended(ended, self.jobs.known(job));
        self.out.push(Effect::Broadcast {
            job: job.clone(),
            broadcast: Broadcast::Ended { epoch: self.epoch },
        });
        for to in waiters.into_vec() {
            self.ask_status(to, job);
        }
        self.view.is_urgent(job);
        self.stop(job);
    }

    /// Tells workers to let go of an ended job, and waits for them within a bound: what they write
    /// after the clean-up would stay.
    pub(crate) fn stop(&mut self, job: &JobId) {
        let Some(active) = self.jobs.active_mut(job) else { return };
        active.advance(Step::Stopping);
        let running: Vec<(AttemptId, muster_protocol::ids::WorkerId)> = active
            .tasks
            .running_attempts()
            .map(|Attempt { id, worker, .. }| (*id, worker.clone()))
            .collect();
        active.letting_go = active.tasks.drop_all();
        let epoch = self.epoch;
        for (attempt, worker) in running {
            self.pool.take_from(&worker, job, attempt);
            self.out.push(Effect::SendCancel {
                worker,
                cancel: CancelAttempt { epoch, job: job.clone(), attempt },
            });
        }
        self.jobs.touch(job);
        if self.jobs.active(job).is_some_and(Active::is_quiet) {
            self.clean_up(job);
        } else {
            self.after(self.config.heartbeat.dead_after_ms, Timer::LetGo(job.clone()));
        }
    }

    pub(crate) fn cancel_answered(&mut self, job: &JobId, attempt: &AttemptId, answered: bool) {
        let Some(active) =
            self.jobs.active_mut(job).filter(|active| active.step() == Step::Stopping && answered)
        else {
            return;
        };
        if active.letting_go.remove(attempt) && active.is_quiet() {
            self.after(LET_GO_MS, Timer::LetGo(job.clone()));
        }
    }

    /// An object of the coordinator's own is written, or is not.
    pub(crate) fn wrote(&mut self, job: &JobId) {
        let Some(active) = self.jobs.active_mut(job) else { return };
        active.writing = active.writing.saturating_sub(1);
        if active.step() == Step::Stopping && active.is_quiet() {
            self.after(LET_GO_MS, Timer::LetGo(job.clone()));
        }
    }

    pub(crate) fn stop_waiting(&mut self, job: &JobId) {
        if self.jobs.active(job).is_some_and(|active| active.step() == Step::Stopping) {
            self.clean_up(job);
        }
    }
}
