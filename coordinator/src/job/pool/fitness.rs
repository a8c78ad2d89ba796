//! How workers do: what became of their attempts opens and shuts their breakers, and tells the fast
//! from the slow.

use muster_platform::config;
use muster_protocol::ids::{JobId, WorkerId};
use muster_protocol::{Error, ErrorKind};

use crate::job::Machine;
use crate::job::pool::members::Worker;
use crate::job::pool::policies::breaker::{self, State, Ticket};
use crate::job::pool::policies::speculation;
use crate::job::tasks::attempts::TakenBack;
use crate::job::tasks::table::Attempt;

impl Machine {
    pub(crate) fn breaker_changed(&mut self, id: &WorkerId, change: &breaker::Change) {
        let cause = match change.cause {
            breaker::Cause::InARow(failures) => {
                format!("{failures} of its attempts failed in a row")
            }
            breaker::Cause::Rate(totals) => {
                format!("{} of its last {} attempts failed", totals.failed, totals.ended)
            }
            breaker::Cause::TimeOver => "it may try again".to_owned(),
            breaker::Cause::TrialSucceeded => "its trial succeeded".to_owned(),
            breaker::Cause::TrialFailed => "its trial failed".to_owned(),
        };
        let (severity, kind, then) = match change.to {
            State::Open { until_ms } => {
                let pause_ms = until_ms.saturating_sub(self.now_ms);
                ("warning", "breaker-open", format!("it gets no work for {pause_ms} ms"))
            }
            State::HalfOpen => ("info", "breaker-half-open", "it gets one attempt".to_owned()),
            State::Closed => ("info", "breaker-closed", "it gets work again".to_owned()),
        };
        self.event(None, severity, kind, format!("{id}: {cause}; {then}"));
    }

    /// An attempt is about to be given to a worker: its breaker counts it.
    pub(crate) fn begin_with(&mut self, id: &WorkerId) -> Option<Ticket> {
        let mut ticket = None;
        self.judge_worker(id, |worker, settings, now_ms| {
            let (begun, change) = worker.breaker.begin(settings, now_ms);
            ticket = begun;
            change
        });
        ticket
    }

    /// An attempt ended without a result: whose fault it was decides what becomes of its worker.
    pub(crate) fn end_with(&mut self, job: &JobId, attempt: &Attempt, why: &TakenBack) {
        let fault = match why {
            TakenBack::Failed(error) => is_the_workers(error),
            TakenBack::Lost(_) => true,
            TakenBack::Died(_) | TakenBack::HandedBack => false,
        };
        self.judge_worker(&attempt.worker, |worker, settings, now_ms| {
            if fault {
                worker.ended.record(now_ms, 0, 1);
            }
            match attempt.ticket {
                Some(ticket) if fault => worker.breaker.failed(settings, now_ms, ticket),
                Some(ticket) => {
                    worker.breaker.abandoned(ticket);
                    None
                }
                None => None,
            }
        });
        if *why == TakenBack::HandedBack {
            return;
        }
        if let Some(active) = self.jobs.active_mut(job) {
            active.attempt_failed();
            let tasks = active.tasks.of(attempt.id.task.phase);
            let again =
                tasks.is_some_and(|tasks| tasks.history.contains_key(&attempt.id.task.index));
            if again {
                self.pool.ramp.failed();
            }
        }
    }

    /// An attempt's result counts: its worker works well, and at some rate.
    pub(crate) fn succeed_with(&mut self, job: &JobId, attempt: &Attempt) {
        let elapsed_ms = self.fair_ms().saturating_sub(attempt.began_ms);
        let said = attempt.bytes_total.max(attempt.bytes_done);
        let bytes = if said > 0 { said } else { self.size_of(job, attempt.id.task) };
        let Some(active) = self.jobs.active_mut(job) else { return };
        active.attempt_succeeded();
        let pace = active.tasks.of_mut(attempt.id.task.phase).and_then(|tasks| {
            if bytes > 0 {
                tasks.rates.finished(bytes, elapsed_ms);
            }
            tasks.pace
        });
        self.pool.ramp.succeeded();
        self.judge_worker(&attempt.worker, |worker, settings, now_ms| {
            worker.attempts.remove(&(job.clone(), attempt.id));
            worker.ended.record(now_ms, 1, 0);
            if let Some(pace) = pace.filter(|_| bytes > 0) {
                let rate = speculation::rate(bytes, elapsed_ms);
                worker.speed.observe(rate, pace.median);
            }
            worker.breaker.succeeded(settings, now_ms, attempt.ticket?)
        });
    }

    /// Tells a worker's breaker what happened, and looks at what that means.
    fn judge_worker(
        &mut self,
        id: &WorkerId,
        tell: impl FnOnce(&mut Worker, &config::Breaker, u64) -> Option<breaker::Change>,
    ) {
        let (config, now_ms) = (&self.config, self.now_ms);
        let change = self.pool.workers.update(id, |worker| {
            let change = tell(worker, &config.breaker, now_ms);
            worker.look(config, now_ms);
            change
        });
        change.flatten().iter().for_each(|change| self.breaker_changed(id, change));
    }
}

/// Whether an attempt failed by a fault of its worker. Bad input, a store that is away or what
/// somebody else wrote is none.
fn is_the_workers(error: &Error) -> bool {
    match error.kind {
        ErrorKind::Retry
        | ErrorKind::Corrupt
        | ErrorKind::Exhausted
        | ErrorKind::OutOfMemory
        | ErrorKind::Bug
        | ErrorKind::Setup
        | ErrorKind::WorkerDied => true,
        ErrorKind::Fenced
        | ErrorKind::Invalid
        | ErrorKind::NotFound
        | ErrorKind::Throttled
        | ErrorKind::NeedsMemory { .. } => false,
    }
}
