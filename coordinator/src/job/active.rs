//! What the leader knows of a job beyond the journal: tasks of the phase at hand, their attempts, and what it waits for. All of it is lost with the leader, and
//! made again from the journal by the next one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use muster_common::Result;
use muster_common::ids::{AttemptId, Phase, TaskId, WorkerId};
use muster_common::plan::Plan;
use muster_common::store::BlobUrl;
use muster_kernel::splitters::Splitter;

use super::durable::DurableJob;
use super::io::ReplyTo;

/// An ended job holds its claim on OUTPUT for this many tries of its clean-up.
const CLEANING_TRIES_CLAIMED: u32 = 3;

/// What happens to a job at the moment. One thing at a time: whoever starts the next step sets the stage, so no effect goes out twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Tasks of a phase run.
    Working,
    /// Splitters are chosen and written.
    Choosing,
    /// The list of runs is written.
    PinningRuns,
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
    pub attempts_max: u32,
    pub stage: Stage,
    /// None until it is read back after a take-over.
    pub plan: Option<Arc<Plan>>,
    /// None while no phase is at hand.
    pub tasks: Option<PhaseTasks>,
    /// Its place in the machine's order of runnable jobs, while it has one.
    pub runnable: Option<u32>,
    /// Taken over: nothing is granted before workers had time to register again.
    pub held_back: bool,
    pub samples: Vec<Splitter>,
    /// Ended, and these workers have not confirmed that they let go.
    pub letting_go: BTreeSet<AttemptId>,
    /// Objects of its own that the coordinator is writing to scratch.
    pub writing: u32,
    /// The record of the end, while it is on its way.
    pub ending: Option<u64>,
    pub retries: u32,
    /// When the phase, or the step after it, began.
    pub began_ms: u64,
    /// How long the phase had lasted when this leader took over.
    pub before_ms: u64,
    /// When anything last moved.
    pub moved_ms: u64,
    /// Tries of the store step at hand.
    pub tries: u32,
    /// What the store step at hand waits for.
    pub trouble: Option<String>,
    /// When progress was last published, and whether there is news.
    pub published_ms: u64,
    pub news: bool,
}

impl Active {
    pub(super) fn new(job: &DurableJob, plan: Option<Arc<Plan>>, now_ms: u64) -> Result<Self> {
        let submitted = &job.submitted;
        Ok(Self {
            order: submitted.order,
            output: submitted.output.parse()?,
            scratch: submitted.scratch.parse()?,
            attempts_max: submitted.attempts_max,
            stage: Stage::Working,
            plan,
            tasks: None,
            runnable: None,
            held_back: false,
            samples: Vec::new(),
            letting_go: BTreeSet::new(),
            writing: 0,
            ending: None,
            retries: job.ended.as_ref().map_or(0, |ended| ended.retries),
            began_ms: now_ms,
            before_ms: 0,
            moved_ms: now_ms,
            tries: 0,
            trouble: None,
            published_ms: 0,
            news: false,
        })
    }

    /// Ended, but its leftovers cannot be removed: nobody else is kept waiting for that.
    pub(super) fn is_stuck_cleaning(&self) -> bool {
        self.stage == Stage::Cleaning && self.tries >= CLEANING_TRIES_CLAIMED
    }

    /// Ended, and nobody writes to its scratch any more, as far as is known.
    pub(super) fn is_quiet(&self) -> bool {
        self.letting_go.is_empty() && self.writing == 0
    }

    pub(super) fn running(&self) -> u32 {
        self.tasks.as_ref().map_or(0, |tasks| tasks.running)
    }

    /// The attempt under way for a task, if it is this one.
    pub(super) fn attempt_mut(&mut self, attempt: &AttemptId) -> Option<&mut Attempt> {
        self.tasks.as_mut()?.attempt_mut(attempt)
    }

    pub(super) fn attempt(&self, attempt: &AttemptId) -> Option<&Attempt> {
        self.tasks.as_ref()?.attempt(attempt)
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

    /// A step with the store went well, or another one begins.
    pub(super) fn moved(&mut self, now_ms: u64) {
        self.moved_ms = now_ms;
        self.tries = 0;
        self.trouble = None;
        self.news = true;
    }
}

/// The tasks of one phase.
#[derive(Debug)]
pub(super) struct PhaseTasks {
    pub phase: Phase,
    pub states: Vec<TaskState>,
    /// Tasks that are [`TaskState::Waiting`], in order.
    pub queue: BTreeSet<u32>,
    pub running: u32,
    pub done: u32,
    /// Input bytes that running attempts have done.
    pub running_bytes: u64,
    /// Of tasks that have met with trouble.
    pub history: BTreeMap<u32, History>,
}

/// Where a task stands.
#[derive(Debug)]
pub(super) enum TaskState {
    /// It can be granted.
    Waiting,
    /// It can be granted after a pause.
    Delayed,
    /// An attempt is under way.
    Running(Box<Attempt>),
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
    pub bytes_done: u64,
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
    /// Attempts that ran, failed or not.
    pub attempts: u32,
    pub errors: Vec<String>,
    pub tried: Vec<WorkerId>,
}

impl PhaseTasks {
    /// All tasks of a phase, of which some are done.
    pub(super) fn new(phase: Phase, count: u32, done: impl Fn(u32) -> bool) -> Self {
        let states: Vec<TaskState> =
            (0..count).map(|at| if done(at) { TaskState::Done } else { TaskState::Waiting }).collect();
        let queue: BTreeSet<u32> = (0..count).filter(|at| !done(*at)).collect();
        let done = count - u32::try_from(queue.len()).unwrap_or(count);
        Self { phase, states, queue, running: 0, done, running_bytes: 0, history: BTreeMap::new() }
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

    pub(super) fn attempt(&self, id: &AttemptId) -> Option<&Attempt> {
        match self.state(id.task)? {
            TaskState::Running(attempt) if attempt.id == *id => Some(attempt),
            _ => None,
        }
    }

    pub(super) fn attempt_mut(&mut self, id: &AttemptId) -> Option<&mut Attempt> {
        if id.task.phase != self.phase {
            return None;
        }
        match self.states.get_mut(id.task.index as usize)? {
            TaskState::Running(attempt) if attempt.id == *id => Some(attempt),
            _ => None,
        }
    }

    /// A waiting task gets an attempt.
    pub(super) fn start(&mut self, attempt: Attempt) {
        let index = attempt.id.task.index;
        self.queue.remove(&index);
        self.running += 1;
        self.put(index, TaskState::Running(Box::new(attempt)));
    }

    /// Ends the attempt under way and leaves the task in `next`.
    pub(super) fn stop(&mut self, id: &AttemptId, next: TaskState) -> Option<Attempt> {
        self.attempt(id)?;
        let slot = self.states.get_mut(id.task.index as usize)?;
        let TaskState::Running(attempt) = std::mem::replace(slot, next) else { return None };
        self.running -= 1;
        self.running_bytes = self.running_bytes.saturating_sub(attempt.bytes_done);
        match slot {
            TaskState::Done => self.done += 1,
            TaskState::Waiting => drop(self.queue.insert(id.task.index)),
            _ => {}
        }
        Some(*attempt)
    }

    /// A task that was delayed or revoked can be granted again.
    pub(super) fn requeue(&mut self, index: u32) {
        if matches!(self.states.get(index as usize), Some(TaskState::Delayed | TaskState::Revoking(_))) {
            self.put(index, TaskState::Waiting);
            self.queue.insert(index);
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

    pub(super) fn set_progress(&mut self, id: &AttemptId, bytes_done: u64) -> bool {
        let Some(attempt) = self.attempt_mut(id) else { return false };
        let before = std::mem::replace(&mut attempt.bytes_done, bytes_done);
        self.running_bytes = self.running_bytes.saturating_sub(before).saturating_add(bytes_done);
        bytes_done > before
    }

    pub(super) fn running_attempts(&self) -> impl Iterator<Item = &Attempt> {
        self.states.iter().filter_map(|state| match state {
            TaskState::Running(attempt) => Some(&**attempt),
            _ => None,
        })
    }
}

/// Those who wait for one outcome, up to a bound: a client or worker that repeats itself is one of them each time.
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
