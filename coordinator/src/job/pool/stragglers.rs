//! Attempts that do not get on. Where a task is expected to take much longer than a fresh attempt
//! would, another worker gets it too, and the first commit wins; one that stands still is taken
//! back.
//!
//! Rates come from the progress in heartbeats. Tasks that wait have the first claim on free slots,
//! and second attempts never hold more than their share of the pool.

use muster_protocol::ids::{AttemptId, JobId, Phase, TaskId, WorkerId};

use crate::job::flow::active::Active;
use crate::job::law::Step;
use crate::job::ledger::durable::DurableJob;
use crate::job::pool::policies::speculation::Running;
use crate::job::tasks::attempts::TakenBack;
use crate::job::tasks::table::{Attempt, PhaseTasks, TaskState};
use crate::job::view::tally::Counted;
use crate::job::{Machine, SharedPlan};

impl Machine {
    /// Looks for stragglers and gives them a second attempt.
    pub(crate) fn speculate(&mut self) {
        let slots = self.pool.workers.slots();
        let seconds = |active: &Active| active.tasks.all().map(|tasks| tasks.seconds).sum::<u32>();
        let mut speculating: u32 = self.jobs.at_work().values().map(seconds).sum();
        let all_wait = self.outages.journal_stalled().is_some()
            || self.pool.limits.rate_per_s().is_some()
            || !self.outages.is_connected();
        let may_begin =
            !self.free_tasks_wait() && !all_wait && self.pool.too_few(&self.config).is_none();
        let jobs: Vec<JobId> = self.jobs.at_work().keys().cloned().collect();
        for job in jobs {
            let chosen = self.stragglers(&job, slots, speculating);
            for id in chosen.into_iter().filter(|_| may_begin) {
                speculating += u32::from(self.begin_second(&job, &id));
            }
        }
    }

    /// Keeps the pace of a job's phase, and chooses the attempts that deserve a second one.
    fn stragglers(&mut self, job: &JobId, slots: u32, speculating: u32) -> Vec<AttemptId> {
        let fair_ms = self.fair_ms();
        let Some((durable, active)) = self.jobs.both_mut(job) else { return Vec::new() };
        // While runs are missing no merge begins, not even a second one.
        let repaired = active.tasks.is_repairing() || active.tasks.awaits_loss();
        if active.step() != Step::Working || active.held_back || repaired {
            return Vec::new();
        }
        let (plan, calm) = (active.plan.clone(), active.trouble().is_none());
        let settings = &active.config.speculation.clone();
        let Some(tasks) = active.tasks.stage_mut() else { return Vec::new() };
        let size = |task: TaskId| task_bytes(durable, plan.as_ref(), task);
        let running = tasks.running_attempts().map(|attempt| progress(attempt, fair_ms, size));
        tasks.pace = tasks.rates.pace(settings, tasks.total(), running);
        let Some(pace) = tasks.pace.filter(|_| calm) else { return Vec::new() };
        // What one worker alone can read has no second attempt elsewhere.
        let owners = &active.owners;
        let single = single_attempts(durable, tasks)
            .filter(|attempt| owners.of_task(attempt.id.task).is_none());
        let candidates = single.map(|attempt| (attempt.id, progress(attempt, fair_ms, size)));
        pace.choose(settings, slots, speculating, candidates)
    }

    fn begin_second(&mut self, job: &JobId, id: &AttemptId) -> bool {
        let Some(worker) = self.second_worker(job, id) else { return false };
        let Some(active) = self.jobs.active_mut(job) else { return false };
        active.second_began();
        self.view.count(Counted::SecondBegan(id.task.phase));
        let first =
            active.tasks.attempt(id).map(|attempt| attempt.worker.to_string()).unwrap_or_default();
        let text = format!(
            "{} is slow on {first}; {worker} gets a second attempt, and the first commit wins",
            id.task
        );
        self.event(Some(job), "info", "speculation-began", text);
        self.grant(job, id.task, &worker);
        true
    }

    /// A free worker for a second attempt: not the one that has the first, and one that has not
    /// failed the task if there is any.
    fn second_worker(&self, job: &JobId, id: &AttemptId) -> Option<WorkerId> {
        let tasks = self.jobs.active(job)?.tasks.stage()?;
        let first = &tasks.attempt(id)?.worker;
        if self.jobs.active(job)?.owners.of_task(id.task).is_some() {
            return None;
        }
        let history = tasks.history.get(&id.task.index);
        let tried = history.map(|history| history.tried.as_slice()).unwrap_or_default();
        let needs_bytes = history.map_or(0, |history| history.needs_bytes);
        let suits = move |id: &WorkerId| {
            self.pool.workers.get(id).is_some_and(|worker| worker.task_bytes() >= needs_bytes)
        };
        let others = || self.pool.workers.free().filter(|worker| *worker != first && suits(worker));
        others()
            .take(tried.len() + 1)
            .find(|worker| !tried.contains(worker))
            .or_else(|| others().next())
            .cloned()
    }

    /// The input of a task in bytes, where nobody has said so.
    pub(crate) fn size_of(&self, job: &JobId, task: TaskId) -> u64 {
        let Some((durable, active)) = self.jobs.both(job) else { return 0 };
        task_bytes(durable, active.plan.as_ref(), task)
    }

    /// Takes back attempts whose worker is heard while they do not get on. Where the journal or a
    /// store keeps everybody waiting, that is nobody's fault.
    pub(crate) fn find_hung(&mut self) {
        if self.outages.journal_stalled().is_some()
            || !self.outages.is_connected()
            || self.pool.limits.rate_per_s().is_some()
        {
            return;
        }
        let mut hung: Vec<(WorkerId, JobId, AttemptId, u64)> = Vec::new();
        for (id, worker) in self.pool.workers.iter() {
            if !worker.is_alive() || worker.health.waiting_for.is_some() {
                continue;
            }
            for (job, attempt) in &worker.attempts {
                let Some(active) =
                    self.jobs.active(job).filter(|active| active.trouble().is_none())
                else {
                    continue;
                };
                let hang_ms = active.config.speculation.hang_ms;
                if let Some(idle_ms) =
                    active.tasks.attempt(attempt).and_then(|attempt| self.hangs(attempt, hang_ms))
                {
                    hung.push((id.clone(), job.clone(), *attempt, idle_ms));
                }
            }
        }
        for (worker, job, attempt, idle_ms) in hung {
            let why = format!("it made no progress for {idle_ms} ms (speculation.hang_ms)");
            let text = format!("{attempt} on {worker}: {why}");
            self.event(Some(&job), "warning", "attempt-hung", text);
            self.take_back(&job, &attempt, &TakenBack::Lost(why));
            self.cancel_attempt(&worker, &job, &attempt);
        }
    }

    fn hangs(&self, attempt: &Attempt, hang_ms: u64) -> Option<u64> {
        if !attempt.accepted || attempt.recording.is_some() {
            return None;
        }
        let idle_ms = self.fair_ms().saturating_sub(attempt.progress_ms);
        // A byte that is read is half done; what comes then is ordering and writing, of which less
        // is heard.
        let all_read = attempt.bytes_total > 0 && attempt.bytes_done >= attempt.bytes_total / 2;
        let reading_ms = attempt.progress_ms.saturating_sub(attempt.began_ms);
        let writing_ms = if all_read { reading_ms.saturating_mul(WRITING_TIMES) } else { 0 };
        (idle_ms >= hang_ms.max(writing_ms)).then_some(idle_ms)
    }
}

/// Attempts that are alone at their task and not about to be committed. A merge beside whose upload
/// another stands open is none.
fn single_attempts<'a>(
    durable: &'a DurableJob,
    tasks: &'a PhaseTasks,
) -> impl Iterator<Item = &'a Attempt> {
    let open = |task: TaskId| durable.uploads_of(task.index).count();
    tasks
        .states
        .iter()
        .filter_map(move |state| match state {
            TaskState::Running { first, second: None } if first.recording.is_none() => {
                Some(&**first)
            }
            _ => None,
        })
        .filter(move |attempt| {
            attempt.id.task.phase != Phase::Merge
                || open(attempt.id.task) <= usize::from(attempt.upload.is_some())
        })
}

fn progress(attempt: &Attempt, fair_ms: u64, size: impl Fn(TaskId) -> u64) -> Running {
    Running {
        elapsed_ms: fair_ms.saturating_sub(attempt.began_ms),
        idle_ms: fair_ms.saturating_sub(attempt.progress_ms),
        bytes_done: attempt.bytes_done,
        bytes_total: if attempt.bytes_total > 0 {
            attempt.bytes_total
        } else {
            size(attempt.id.task)
        },
    }
}

fn task_bytes(durable: &DurableJob, plan: Option<&SharedPlan>, task: TaskId) -> u64 {
    match task.phase {
        Phase::Sample => 0,
        Phase::Sort => plan.map_or(0, |plan| plan.split_bytes(task.index)),
        Phase::Merge => durable.run_totals.bytes / u64::from(durable.partitions().max(1)),
    }
}

/// An attempt that has read all of its input may take so many times as long for the rest before it
/// hangs.
const WRITING_TIMES: u64 = 3;
