//! Which task goes to which worker.
//!
//! Fair: the next task is that of the job with the fewest running attempts, earlier jobs first. It
//! goes to the worker with the most room that has not failed it yet; one whose input a single
//! worker can read goes to that worker alone (`pool/owners.rs`). An attempt is only this leader's
//! word: it is not journalled, and lost with the leader unless its worker still holds it.

use muster_protocol::Result;
use muster_protocol::ids::{AttemptId, Generation, JobId, Phase, TaskId, WorkerId};
use muster_protocol::wire::{RunAttempt, RunReply};

use crate::job::flow::active::Active;
use crate::job::flow::table::Stage;
use crate::job::io::Effect;
use crate::job::ledger::durable::DurableJob;
use crate::job::pool::members::Worker;
use crate::job::tasks::attempts::TakenBack;
use crate::job::tasks::table::{Attempt, History};
use crate::job::view::tally::Counted;
use crate::job::{Machine, Timer};
use crate::journal::record::Record;

/// Orders to run one attempt that may go unanswered before it is taken back.
const SENT_MAX: u32 = 10;

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

impl Machine {
    /// Grants what can be granted.
    pub(crate) fn schedule(&mut self) {
        if self.pool.too_few(&self.config).is_some() {
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
        self.pool.workers().free().next()?;
        self.jobs.runnable().iter().find_map(|(_, _, job)| {
            let active = self.jobs.active(job)?;
            let tasks = active.tasks.granted_from()?;
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
        let first = self.pool.workers().free().next()?;
        let Some(History { tries, tried, needs_bytes, .. }) = history else { return Some(first) };
        if *needs_bytes > 0 {
            // The others would only say again that it is too much for them.
            let suits = |id: &&WorkerId| {
                self.pool
                    .workers()
                    .get(id)
                    .is_some_and(|worker| worker.task_bytes() >= *needs_bytes)
            };
            return self.pool.workers().free().find(suits);
        }
        let fresh =
            self.pool.workers().free().take(tried.len() + 1).find(|worker| !tried.contains(worker));
        let untried = |(id, worker): (&WorkerId, &Worker)| {
            worker.is_alive() && worker.takes_part() && !tried.contains(id)
        };
        let wait = *tries >= attempts_max.div_ceil(2) && self.pool.workers().iter().any(untried);
        fresh.or(if wait { None } else { Some(first) })
    }

    /// A merge task may have an upload left of an attempt that nobody holds any more. It is revoked
    /// before the task is granted again.
    fn revoke_before_grant(&mut self, job: &JobId, task: TaskId) -> bool {
        if task.phase != Phase::Merge {
            return false;
        }
        let open = self.jobs.known(job).and_then(|durable| durable.uploads_of(task.index).next());
        let Some(attempt) = open.map(|upload| upload.attempt) else { return false };
        if let Some(tasks) = self.jobs.tasks_mut(job, task.phase) {
            tasks.revoke(task.index, attempt);
        }
        self.jobs.touch(job);
        // A rival's dismissal may have asked for it already, and the task waits for that.
        if !self.is_being_revoked(job, &attempt) {
            self.record(Record::UploadRevoked { job: job.clone(), partition: task.index, attempt });
        }
        true
    }

    /// Gives a task that waits to a worker, or a second attempt of one that runs.
    pub(crate) fn grant(&mut self, job: &JobId, task: TaskId, worker: &WorkerId) {
        let generation = self.generation(job, task);
        let id = AttemptId { task, generation, epoch: self.epoch, nonce: self.nonces.next() };
        let ticket = self.begin_with(worker);
        self.view.count(Counted::AttemptBegan(task.phase));
        let fair_ms = self.fair_ms();
        let Some(active) = self.jobs.active_mut(job) else { return };
        let Some(tasks) = active.tasks.of_mut(task.phase) else { return };
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
        self.pool.give(worker, job, id);
        self.jobs.touch(job);
        self.send_run(job, &id);
    }

    /// The generation in which a task is to be done now.
    pub(crate) fn generation(&self, job: &JobId, task: TaskId) -> Generation {
        let durable = self.jobs.known(job);
        match task.phase {
            Phase::Sample => self.sampling_generation(job),
            Phase::Sort => durable.map_or(Generation(0), |durable| durable.generation(task.index)),
            Phase::Merge => Generation(0),
        }
    }

    /// Sends the order to run an attempt that is under way.
    fn send_run(&mut self, job: &JobId, id: &AttemptId) {
        let Some((durable, active)) = self.jobs.both_mut(job) else { return };
        let skip = skipped_of(durable, active, id.task);
        let Some(work) = (Stage::of(id.task.phase).work)(durable, skip) else { return };
        let plan = durable.submitted.plan.clone();
        let tasks = active.tasks.of(id.task.phase);
        let history = tasks.and_then(|tasks| tasks.history.get(&id.task.index));
        let memory_halvings = history.map_or(0, |history| history.halvings);
        let Some(attempt) = active.tasks.attempt_mut(id) else { return };
        attempt.sent += 1;
        let worker = attempt.worker.clone();
        let Some((incarnation, peer)) =
            self.pool.workers().get(&worker).map(|known| (known.info.incarnation, known.info.wire))
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

    pub(crate) fn run_answered(
        &mut self,
        worker: &WorkerId,
        job: &JobId,
        id: &AttemptId,
        reply: Result<RunReply>,
    ) {
        let now_ms = self.now_ms;
        let attempt = self.jobs.attempt_mut(job, id).filter(|attempt| attempt.worker == *worker);
        match (reply, attempt) {
            (Ok(RunReply::Accepted), Some(attempt)) => {
                attempt.accepted = true;
                attempt.seen_ms = now_ms;
                self.pool.accepted(worker);
                if let Some(active) = self.jobs.active_mut(job) {
                    active.stirs(now_ms);
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
                let text = format!("worker {worker} refused {id}: {error}");
                self.event(Some(job), "warning", "order-refused", text);
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

    pub(crate) fn resend(&mut self, job: &JobId, id: &AttemptId) {
        let Some(attempt) = self.jobs.attempt(job, id).filter(|attempt| !attempt.accepted) else {
            return;
        };
        if attempt.recording.is_some() {
            return;
        }
        if attempt.sent < SENT_MAX {
            return self.send_run(job, id);
        }
        let worker = attempt.worker.clone();
        let text = format!("worker {worker} has not answered {SENT_MAX} orders to run {id}");
        self.event(Some(job), "warning", "order-unanswered", text);
        self.pause(&worker);
        self.take_back(job, id, &TakenBack::HandedBack);
    }

    /// Gives a worker that cannot take more a short rest, longer each time.
    fn pause(&mut self, worker: &WorkerId) {
        let longest_ms = self.config.tasks.command_retry_ms;
        let pause_ms = self.pool.pause(worker, longest_ms);
        if let Some(pause_ms) = pause_ms {
            self.after(pause_ms, Timer::Unpause(worker.clone()));
        }
    }
}
