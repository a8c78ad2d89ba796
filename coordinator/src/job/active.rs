//! What the leader knows of a job beyond the journal: tasks of the phase at hand, their attempts,
//! and what it waits for. All of it is lost with the leader, and made again from the journal by the
//! next one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use muster_common::config::Config;
use muster_common::ids::{AttemptId, Phase, TaskId, WorkerId};
use muster_common::plan::{BadInputs, Plan};
use muster_common::store::BlobUrl;
use muster_common::{ErrorKind, Result};
use muster_kernel::proof::Sums;
use muster_kernel::splitters::Splitter;

use serde::Deserialize;

use super::durable::DurableJob;
use super::io::ReplyTo;
use super::owners::Owners;
use super::recoveries::Recoveries;
use super::schedule::ERRORS_MAX;
use crate::membership::breaker::Ticket;
use crate::membership::speculation::{Pace, Rates};

/// How often the memory of a task is halved at most.
const HALVINGS_MAX: u8 = 3;

/// What the machine needs of a request while its job runs. Fields that a newer build wrote are left
/// alone; a request that cannot be read asks for nothing special.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Asked {
    bad_inputs: BadInputs,
    overwrite: bool,
    settings: Option<String>,
}

impl Asked {
    fn of(spec_json: &str) -> Self {
        serde_json::from_str(spec_json).unwrap_or_default()
    }

    /// They were sound when the job was taken on; a build that knows them no longer goes by its
    /// own.
    fn settings(&self, config: &Config) -> Config {
        config.for_job(self.settings.as_deref()).unwrap_or_else(|_| config.clone())
    }
}

/// The coordinator's settings with those of a job over them.
pub(super) fn settings_of(job: &DurableJob, config: &Config) -> Config {
    Asked::of(&job.submitted.spec_json).settings(config)
}

/// What happens to a job at the moment. One thing at a time: whoever starts the next step sets the
/// stage, so no effect goes out twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Tasks of a phase run.
    Working,
    /// Splitters are chosen and written.
    Choosing,
    /// The list of runs is written.
    PinningRuns,
    /// OUTPUT is looked at, and the manifest is written to scratch.
    PreparingCommit,
    /// The record that ends a phase is on its way.
    Deciding,
    /// The commit is decided and waits for the plan.
    AwaitingPlan,
    /// The commit is made visible.
    Publishing,
    /// The record of the end is on its way.
    Ending,
    /// Ended; workers are told to let go.
    Stopping,
    /// Ended; scratch and uploads are removed.
    Cleaning,
    /// The record that nothing is left is on its way.
    Closing,
}

/// A job that has not ended, or is not cleaned.
#[derive(Debug)]
pub(super) struct Active {
    pub order: u64,
    pub output: BlobUrl,
    pub scratch: BlobUrl,
    pub replica: Option<BlobUrl>,
    pub attempts_max: u32,
    pub bad_inputs: BadInputs,
    /// Whether what stands in OUTPUT may go.
    pub overwrite: bool,
    /// The coordinator's settings with those of the job over them.
    pub config: Arc<Config>,
    pub stage: Stage,
    /// None until it is read back after a take-over.
    pub plan: Option<Arc<Plan>>,
    /// Who alone can read which splits of the plan.
    pub owners: Owners,
    /// None while no phase is at hand.
    pub tasks: Option<PhaseTasks>,
    /// Lost runs that are made again while the job merges.
    pub repair: Option<Repair>,
    /// Splits whose loss is on its way into the journal.
    pub losing: BTreeSet<u32>,
    /// Objects whose omission is on its way into the journal.
    pub skipping: BTreeSet<u32>,
    /// How long merging had lasted when the manifest was made, which says so.
    pub merged_ms: u64,
    /// When this leader heard of failed attempts.
    pub failed_unix_ms: BTreeMap<AttemptId, u64>,
    pub recoveries: Recoveries,
    /// What was told when the job was planned.
    pub warnings: Vec<String>,
    /// Merges under way that may read an older list of runs than the journal has.
    pub older_list: BTreeSet<AttemptId>,
    /// Merges whose worker died, and whose uploads are being revoked.
    pub bereaved: BTreeSet<AttemptId>,
    /// Its place in the machine's order of runnable jobs, while it has one.
    pub runnable: Option<u32>,
    /// Taken over: nothing is granted before workers had time to register again.
    pub held_back: bool,
    pub samples: Vec<Splitter>,
    /// How often the samples were too few or too uneven: the generation of the sample tasks.
    pub sampling_round: u32,
    /// Ended, and these workers have not confirmed that they let go.
    pub letting_go: BTreeSet<AttemptId>,
    /// Objects of its own that the coordinator is writing to scratch.
    pub writing: u32,
    /// The record of the end, while it is on its way.
    pub ending: Option<u64>,
    /// When the phase, or the step after it, began.
    pub began_ms: u64,
    /// How long the phase had lasted when this leader took over.
    pub before_ms: u64,
    /// When anything last moved.
    pub moved_ms: u64,
    /// Tries of the store step at hand.
    pub tries: u32,
    /// Those of them that failed in a way that does not pass.
    pub hopeless: u32,
    /// Since when it fails.
    pub failing_ms: Option<u64>,
    /// The clean-up was given up: what it leaves is for `doctor`.
    pub given_up: bool,
    /// What the store step at hand waits for.
    pub trouble: Option<String>,
    /// When progress was last published, and whether there is news.
    pub published_ms: u64,
    pub news: bool,
    /// Second attempts that were given out.
    pub speculations: u32,
    /// Attempts that failed since one succeeded.
    pub failures_in_a_row: u32,
}

impl Active {
    pub(super) fn new(
        job: &DurableJob,
        plan: Option<Arc<Plan>>,
        config: &Config,
        now_ms: u64,
    ) -> Result<Self> {
        let submitted = &job.submitted;
        let asked = Asked::of(&submitted.spec_json);
        let owners = plan.as_deref().map(Owners::of).transpose()?.unwrap_or_default();
        Ok(Self {
            order: submitted.order,
            output: submitted.output.parse()?,
            scratch: submitted.scratch.parse()?,
            replica: submitted.replica.as_deref().map(str::parse).transpose()?,
            attempts_max: submitted.attempts_max,
            bad_inputs: asked.bad_inputs,
            overwrite: asked.overwrite,
            config: Arc::new(asked.settings(config)),
            stage: Stage::Working,
            plan,
            owners,
            tasks: None,
            repair: None,
            losing: BTreeSet::new(),
            skipping: BTreeSet::new(),
            merged_ms: 0,
            failed_unix_ms: BTreeMap::new(),
            recoveries: Recoveries::of(job, now_ms),
            warnings: Vec::new(),
            older_list: BTreeSet::new(),
            bereaved: BTreeSet::new(),
            runnable: None,
            held_back: false,
            samples: Vec::new(),
            sampling_round: 0,
            letting_go: BTreeSet::new(),
            writing: 0,
            ending: None,
            began_ms: now_ms,
            before_ms: 0,
            moved_ms: now_ms,
            tries: 0,
            failing_ms: None,
            given_up: false,
            hopeless: 0,
            trouble: None,
            published_ms: 0,
            news: false,
            speculations: 0,
            failures_in_a_row: 0,
        })
    }

    /// Ended, and nobody writes to its scratch any more, as far as is known.
    pub(super) fn is_quiet(&self) -> bool {
        self.letting_go.is_empty() && self.writing == 0
    }

    pub(super) fn running(&self) -> u32 {
        self.all_tasks().map(|tasks| tasks.running).sum()
    }

    pub(super) fn running_attempts(&self) -> impl Iterator<Item = &Attempt> {
        self.all_tasks().flat_map(PhaseTasks::running_attempts)
    }

    /// The tasks of the phase at hand, and those of a repair beside it.
    pub(super) fn all_tasks(&self) -> impl Iterator<Item = &PhaseTasks> {
        self.tasks.iter().chain(self.repair.iter().map(|repair| &repair.tasks))
    }

    /// Those of them that are of one phase.
    pub(super) fn tasks_of(&self, phase: Phase) -> Option<&PhaseTasks> {
        self.all_tasks().find(|tasks| tasks.phase == phase)
    }

    pub(super) fn tasks_of_mut(&mut self, phase: Phase) -> Option<&mut PhaseTasks> {
        let repair = self.repair.as_mut().map(|repair| &mut repair.tasks);
        self.tasks.iter_mut().chain(repair).find(|tasks| tasks.phase == phase)
    }

    /// The tasks that are granted at the moment: no merge begins while runs are missing.
    pub(super) fn granted_from(&self) -> Option<&PhaseTasks> {
        self.repair.as_ref().map(|repair| &repair.tasks).or(self.tasks.as_ref())
    }

    /// Whether it has something to grant.
    pub(super) fn may_run(&self) -> bool {
        let waiting = self.granted_from().is_some_and(|tasks| !tasks.queue.is_empty());
        waiting
            && self.stage == Stage::Working
            && !self.held_back
            && self.plan.is_some()
            && !self.awaits_loss()
    }

    /// Whether the record of a loss or of an omission is on its way: what is to be done next
    /// depends on it.
    pub(super) fn awaits_loss(&self) -> bool {
        !self.losing.is_empty() || !self.skipping.is_empty()
    }

    /// The attempt under way for a task, if it is this one.
    pub(super) fn attempt_mut(&mut self, attempt: &AttemptId) -> Option<&mut Attempt> {
        self.tasks_of_mut(attempt.task.phase)?.attempt_mut(attempt)
    }

    pub(super) fn attempt(&self, attempt: &AttemptId) -> Option<&Attempt> {
        self.tasks_of(attempt.task.phase)?.attempt(attempt)
    }

    /// Milliseconds since the phase, or the step after it, began, under whichever leader.
    pub(super) fn elapsed_ms(&self, now_ms: u64) -> u64 {
        self.before_ms.saturating_add(now_ms.saturating_sub(self.began_ms))
    }

    /// A phase, or the step after it, begins under this leader.
    pub(super) fn begins(&mut self, now_ms: u64) {
        self.began_ms = now_ms;
        if self.stage == Stage::Deciding {
            self.before_ms = 0;
            // Nobody can hold an attempt of a phase that begins only now.
            self.held_back = false;
        }
    }

    /// The step with the store at hand failed once more: for how long it does by now, in
    /// milliseconds.
    pub(super) fn failed_again(&mut self, now_ms: u64) -> u64 {
        self.tries = self.tries.saturating_add(1);
        now_ms.saturating_sub(*self.failing_ms.get_or_insert(now_ms))
    }

    /// A step with the store went well, or another one begins.
    pub(super) fn moved(&mut self, now_ms: u64) {
        self.moved_ms = now_ms;
        (self.tries, self.hopeless) = (0, 0);
        self.failing_ms = None;
        self.recoveries.store_mended(now_ms);
        self.trouble = None;
        self.news = true;
    }
}

/// Sort tasks that are done anew while the job merges.
#[derive(Debug)]
pub(super) struct Repair {
    /// All sort tasks; those whose run stands are done.
    pub tasks: PhaseTasks,
    pub step: RepairStep,
    /// What lost runs summed to, input first, as far as this leader has seen them: their successors
    /// must too.
    pub sums: BTreeMap<u32, (Sums, Sums)>,
}

/// How far a repair is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RepairStep {
    /// Runs are made.
    Sorting,
    /// The new list of runs is written, under this ticket.
    Pinning(u64),
    /// Its record is on its way.
    Recording,
}

/// The tasks of one phase.
#[derive(Debug)]
pub(super) struct PhaseTasks {
    pub phase: Phase,
    pub states: Vec<TaskState>,
    /// Tasks that are [`TaskState::Waiting`], in order.
    pub queue: BTreeSet<u32>,
    /// Attempts under way, and how many of them are second ones.
    pub running: u32,
    pub seconds: u32,
    pub done: u32,
    /// Input bytes that running attempts have done.
    pub running_bytes: u64,
    /// Of tasks that have met with trouble.
    pub history: BTreeMap<u32, History>,
    /// How fast the finished attempts were, and what is usual now.
    pub rates: Rates,
    pub pace: Option<Pace>,
}

/// Where a task stands.
#[derive(Debug)]
pub(super) enum TaskState {
    /// It can be granted.
    Waiting,
    /// It can be granted after a pause.
    Delayed,
    /// An attempt is under way, or two: the first to be committed wins.
    Running {
        /// The one that began first, of those that live.
        first: Box<Attempt>,
        /// The one beside it.
        second: Option<Box<Attempt>>,
    },
    /// Its last attempt's upload is being revoked.
    Revoking(AttemptId),
    /// It is committed (samples: they are here).
    Done,
}

/// An attempt under way.
#[derive(Debug)]
pub(super) struct Attempt {
    pub id: AttemptId,
    pub worker: WorkerId,
    /// Whether the worker has said that it runs it.
    pub accepted: bool,
    /// How often the order went out.
    pub sent: u32,
    /// When it was last in a heartbeat, or accepted.
    pub seen_ms: u64,
    /// When it was given out, and when its progress last grew, on the clock that stands still while
    /// the leader is away.
    pub began_ms: u64,
    pub progress_ms: u64,
    pub bytes_done: u64,
    /// Its whole input, as its worker says; 0 until it does.
    pub bytes_total: u64,
    /// In which state of its worker's breaker it began; none for one that was re-granted.
    pub ticket: Option<Ticket>,
    /// Its upload, once its record is on its way.
    pub upload: Option<String>,
    /// The result is here and its record is on its way: it can no longer be taken back.
    pub recording: Option<Recording>,
}

/// How an attempt's result is on its way into the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Recording {
    /// Under this token.
    Journal(u64),
    /// Samples that are read from scratch.
    Samples,
}

/// What went wrong with a task so far.
#[derive(Debug, Default)]
pub(super) struct History {
    /// Attempts that failed or were lost with their worker.
    pub tries: u32,
    pub errors: Vec<String>,
    pub tried: Vec<WorkerId>,
    /// How often its memory is to be halved, because attempts ran out of it or may have died of it.
    pub halvings: u8,
    /// Memory of a worker for each of its tasks at once with which it can be done, as far as
    /// attempts have said so.
    pub needs_bytes: u64,
}

impl History {
    /// What an attempt that failed says about memory. One that needs more than its worker has can
    /// only be done by a larger one. A sort that ran out of memory which was its to use, or was
    /// lost with its worker, which memory may have killed, gets half of it the next time, up to a
    /// bound.
    pub(super) fn heed_memory(&mut self, phase: Phase, kind: ErrorKind) {
        if let ErrorKind::NeedsMemory { task_bytes } = kind {
            self.needs_bytes = self.needs_bytes.max(task_bytes);
        }
        if phase == Phase::Sort && matches!(kind, ErrorKind::OutOfMemory | ErrorKind::WorkerDied) {
            self.halvings = (self.halvings + 1).min(HALVINGS_MAX);
        }
    }
}

impl PhaseTasks {
    /// All tasks of a phase, of which some are done.
    pub(super) fn new(phase: Phase, count: u32, done: impl Fn(u32) -> bool) -> Self {
        let states: Vec<TaskState> = (0..count)
            .map(|at| if done(at) { TaskState::Done } else { TaskState::Waiting })
            .collect();
        let queue: BTreeSet<u32> = (0..count).filter(|at| !done(*at)).collect();
        let done = count - u32::try_from(queue.len()).unwrap_or(count);
        Self {
            phase,
            states,
            queue,
            running: 0,
            seconds: 0,
            done,
            running_bytes: 0,
            history: BTreeMap::new(),
            rates: Rates::default(),
            pace: None,
        }
    }

    /// What the journal knows of failed attempts counts towards the bound of tries, whoever led
    /// then.
    pub(super) fn recall(mut self, job: &DurableJob) -> Self {
        let first = TaskId { phase: self.phase, index: 0 };
        let last = TaskId { phase: self.phase, index: u32::MAX };
        for (task, tries) in job.tries.range(first..=last) {
            self.history.entry(task.index).or_default().tries = *tries;
        }
        for failure in
            job.failures.iter().filter(|failure| failure.attempt.task.phase == self.phase)
        {
            let history = self.history.entry(failure.attempt.task.index).or_default();
            if history.errors.len() < ERRORS_MAX {
                history.errors.push(failure.error.clone());
            }
            history.heed_memory(self.phase, failure.kind);
            if !history.tried.contains(&failure.worker) {
                history.tried.push(failure.worker.clone());
            }
        }
        self
    }

    pub(super) fn total(&self) -> u32 {
        u32::try_from(self.states.len()).unwrap_or(u32::MAX)
    }

    pub(super) fn is_complete(&self) -> bool {
        self.done == self.total()
    }

    pub(super) fn task(&self, index: u32) -> TaskId {
        TaskId { phase: self.phase, index }
    }

    pub(super) fn state(&self, task: TaskId) -> Option<&TaskState> {
        if task.phase == self.phase { self.states.get(task.index as usize) } else { None }
    }

    /// The attempts under way for a task.
    pub(super) fn attempts_of(&self, task: TaskId) -> impl Iterator<Item = &Attempt> {
        self.state(task).into_iter().flat_map(TaskState::attempts)
    }

    pub(super) fn attempt(&self, id: &AttemptId) -> Option<&Attempt> {
        self.attempts_of(id.task).find(|attempt| attempt.id == *id)
    }

    /// The other attempt under way for the task of this one.
    pub(super) fn rival(&self, id: &AttemptId) -> Option<&Attempt> {
        self.attempts_of(id.task).find(|attempt| attempt.id != *id)
    }

    pub(super) fn attempt_mut(&mut self, id: &AttemptId) -> Option<&mut Attempt> {
        if id.task.phase != self.phase {
            return None;
        }
        match self.states.get_mut(id.task.index as usize)? {
            TaskState::Running { first, .. } if first.id == *id => Some(first),
            TaskState::Running { second: Some(second), .. } if second.id == *id => Some(second),
            _ => None,
        }
    }

    /// A waiting task gets an attempt, or one that runs a second.
    pub(super) fn start(&mut self, attempt: Attempt) {
        let index = attempt.id.task.index;
        self.queue.remove(&index);
        self.running += 1;
        if let Some(TaskState::Running { second, .. }) = self.states.get_mut(index as usize) {
            self.seconds += 1;
            *second = Some(Box::new(attempt));
        } else {
            self.put(index, TaskState::Running { first: Box::new(attempt), second: None });
        }
    }

    /// Ends an attempt under way and leaves the task in `next`, unless another attempt goes on:
    /// then the task runs.
    pub(super) fn stop(&mut self, id: &AttemptId, next: TaskState) -> Option<Attempt> {
        self.attempt(id)?;
        let slot = self.states.get_mut(id.task.index as usize)?;
        let TaskState::Running { first, second } = std::mem::replace(slot, next) else {
            return None;
        };
        let attempt = match second {
            Some(second) => {
                let (ended, goes_on) =
                    if first.id == *id { (first, second) } else { (second, first) };
                *slot = TaskState::Running { first: goes_on, second: None };
                self.seconds -= 1;
                ended
            }
            None => first,
        };
        self.running -= 1;
        self.running_bytes = self.running_bytes.saturating_sub(attempt.bytes_done);
        match slot {
            TaskState::Done => self.done += 1,
            TaskState::Waiting => drop(self.queue.insert(id.task.index)),
            _ => {}
        }
        Some(*attempt)
    }

    /// The result of a task is lost: it waits again.
    pub(super) fn reopen(&mut self, index: u32) {
        if matches!(self.states.get(index as usize), Some(TaskState::Done)) {
            self.done -= 1;
            self.history.remove(&index);
            self.put(index, TaskState::Waiting);
            self.queue.insert(index);
        }
    }

    /// A task that was delayed or revoked can be granted again.
    pub(super) fn requeue(&mut self, index: u32) {
        if matches!(
            self.states.get(index as usize),
            Some(TaskState::Delayed | TaskState::Revoking(_))
        ) {
            self.put(index, TaskState::Waiting);
            self.queue.insert(index);
        }
    }

    /// A revoked task whose upload is gone waits all the same.
    pub(super) fn delay(&mut self, index: u32) {
        if matches!(self.states.get(index as usize), Some(TaskState::Revoking(_))) {
            self.put(index, TaskState::Delayed);
        }
    }

    /// A waiting task's former upload must go first.
    pub(super) fn revoke(&mut self, index: u32, attempt: AttemptId) {
        self.queue.remove(&index);
        self.put(index, TaskState::Revoking(attempt));
    }

    fn put(&mut self, index: u32, state: TaskState) {
        if let Some(slot) = self.states.get_mut(index as usize) {
            *slot = state;
        }
    }

    pub(super) fn set_progress(&mut self, id: &AttemptId, bytes_done: u64, fair_ms: u64) -> bool {
        let Some(attempt) = self.attempt_mut(id) else { return false };
        let before = std::mem::replace(&mut attempt.bytes_done, bytes_done);
        if bytes_done != before {
            attempt.progress_ms = fair_ms;
        }
        self.running_bytes = self.running_bytes.saturating_sub(before).saturating_add(bytes_done);
        bytes_done > before
    }

    pub(super) fn running_attempts(&self) -> impl Iterator<Item = &Attempt> {
        self.states.iter().flat_map(TaskState::attempts)
    }
}

impl TaskState {
    /// The attempts under way.
    pub(super) fn attempts(&self) -> impl Iterator<Item = &Attempt> {
        let (first, second) = match self {
            TaskState::Running { first, second } => (Some(&**first), second.as_deref()),
            _ => (None, None),
        };
        first.into_iter().chain(second)
    }
}

/// Those who wait for one outcome, up to a bound: a client or worker that repeats itself is one of
/// them each time.
#[derive(Debug, Clone, Default)]
pub(super) struct Waiters(Vec<ReplyTo>);

impl Waiters {
    const MAX: usize = 16;

    pub(super) fn one(to: ReplyTo) -> Self {
        Self(vec![to])
    }

    /// The one that had to go for it, if there were too many.
    pub(super) fn push(&mut self, to: ReplyTo) -> Option<ReplyTo> {
        self.0.push(to);
        (self.0.len() > Self::MAX).then(|| self.0.remove(0))
    }

    pub(super) fn into_vec(self) -> Vec<ReplyTo> {
        self.0
    }
}
