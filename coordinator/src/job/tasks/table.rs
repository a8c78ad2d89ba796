//! The tasks of one phase: where each stands, its attempts under way, and what went wrong with it
//! so far. It lives as long as the phase, under one leader.

use std::collections::{BTreeMap, BTreeSet};

use muster_protocol::ErrorKind;
use muster_protocol::ids::{AttemptId, Phase, TaskId, WorkerId};

use crate::job::law::{Broken, ResultKind, TaskKind};
use crate::job::ledger::durable::DurableJob;
use crate::job::pool::policies::breaker::Ticket;
use crate::job::pool::policies::speculation::{Pace, Rates};

/// Errors of one task that are kept to be named.
pub(crate) const ERRORS_MAX: usize = 10;
/// How often the memory of a task is halved at most.
const HALVINGS_MAX: u8 = 3;

/// The tasks of one phase.
#[derive(Debug)]
pub(crate) struct PhaseTasks {
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
    pub broken: Broken,
}

/// Where a task stands.
#[derive(Debug)]
pub(crate) enum TaskState {
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
pub(crate) struct Attempt {
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
pub(crate) enum Recording {
    /// Under this token.
    Journal(u64),
    /// Samples that are read from scratch.
    Samples,
}

/// What went wrong with a task so far.
#[derive(Debug, Default)]
pub(crate) struct History {
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
    pub(crate) fn heed_memory(&mut self, phase: Phase, kind: ErrorKind) {
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
    pub(crate) fn new(phase: Phase, count: u32, done: impl Fn(u32) -> bool) -> Self {
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
            broken: Broken::default(),
        }
    }

    /// What the journal knows of failed attempts counts towards the bound of tries, whoever led
    /// then.
    pub(crate) fn recall(mut self, job: &DurableJob) -> Self {
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

    pub(crate) fn total(&self) -> u32 {
        u32::try_from(self.states.len()).unwrap_or(u32::MAX)
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.done == self.total()
    }

    pub(crate) fn task(&self, index: u32) -> TaskId {
        TaskId { phase: self.phase, index }
    }

    pub(crate) fn state(&self, task: TaskId) -> Option<&TaskState> {
        if task.phase == self.phase { self.states.get(task.index as usize) } else { None }
    }

    /// The attempts under way for a task.
    pub(crate) fn attempts_of(&self, task: TaskId) -> impl Iterator<Item = &Attempt> {
        self.state(task).into_iter().flat_map(TaskState::attempts)
    }

    pub(crate) fn attempt(&self, id: &AttemptId) -> Option<&Attempt> {
        self.attempts_of(id.task).find(|attempt| attempt.id == *id)
    }

    /// The other attempt under way for the task of this one.
    pub(crate) fn rival(&self, id: &AttemptId) -> Option<&Attempt> {
        self.attempts_of(id.task).find(|attempt| attempt.id != *id)
    }

    pub(crate) fn attempt_mut(&mut self, id: &AttemptId) -> Option<&mut Attempt> {
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
    pub(crate) fn start(&mut self, attempt: Attempt) {
        let index = attempt.id.task.index;
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
    pub(crate) fn stop(&mut self, id: &AttemptId, next: TaskState) -> Option<Attempt> {
        self.attempt(id)?;
        let attempt = match self.states.get_mut(id.task.index as usize)? {
            TaskState::Running { first, second: second @ Some(_) } => {
                self.seconds -= 1;
                let other = second.take()?;
                if other.id == *id { other } else { std::mem::replace(first, other) }
            }
            _ => match self.put(id.task.index, next)? {
                TaskState::Running { first, .. } => first,
                _ => return None,
            },
        };
        self.running -= 1;
        self.running_bytes = self.running_bytes.saturating_sub(attempt.bytes_done);
        Some(*attempt)
    }

    /// The result of a task is lost: it waits again.
    pub(crate) fn reopen(&mut self, index: u32) {
        if matches!(self.states.get(index as usize), Some(TaskState::Done)) {
            self.history.remove(&index);
            self.put(index, TaskState::Waiting);
        }
    }

    /// A task that was delayed or revoked can be granted again.
    pub(crate) fn requeue(&mut self, index: u32) {
        if matches!(
            self.states.get(index as usize),
            Some(TaskState::Delayed | TaskState::Revoking(_))
        ) {
            self.put(index, TaskState::Waiting);
        }
    }

    /// A revoked task whose upload is gone waits all the same.
    pub(crate) fn delay(&mut self, index: u32) {
        if matches!(self.states.get(index as usize), Some(TaskState::Revoking(_))) {
            self.put(index, TaskState::Delayed);
        }
    }

    /// A waiting task's former upload must go first.
    pub(crate) fn revoke(&mut self, index: u32, attempt: AttemptId) {
        self.put(index, TaskState::Revoking(attempt));
    }

    /// Moves a task on, and gives where it stood; the one place where that changes.
    fn put(&mut self, index: u32, state: TaskState) -> Option<TaskState> {
        let slot = self.states.get_mut(index as usize)?;
        let (from, to) = (slot.kind(), state.kind());
        self.broken.check(from, to);
        match from {
            TaskKind::Waiting => drop(self.queue.remove(&index)),
            TaskKind::Done => self.done -= 1,
            _ => {}
        }
        match to {
            TaskKind::Waiting => drop(self.queue.insert(index)),
            TaskKind::Done => self.done += 1,
            _ => {}
        }
        Some(std::mem::replace(slot, state))
    }

    /// The result of an attempt is here, and on its way into the journal.
    pub(crate) fn result_is_here(&mut self, id: &AttemptId, how: Recording) {
        let Some(attempt) = self.attempt_mut(id) else { return };
        let before = attempt.recording.replace(how);
        let kind = |recording: Option<Recording>| match recording {
            None => ResultKind::Awaited,
            Some(Recording::Samples) => ResultKind::Read,
            Some(Recording::Journal(_)) => ResultKind::Recorded,
        };
        self.broken.check(kind(before), kind(Some(how)));
    }

    pub(crate) fn set_progress(&mut self, id: &AttemptId, bytes_done: u64, fair_ms: u64) -> bool {
        let Some(attempt) = self.attempt_mut(id) else { return false };
        let before = std::mem::replace(&mut attempt.bytes_done, bytes_done);
        if bytes_done != before {
            attempt.progress_ms = fair_ms;
        }
        self.running_bytes = self.running_bytes.saturating_sub(before).saturating_add(bytes_done);
        bytes_done > before
    }

    pub(crate) fn running_attempts(&self) -> impl Iterator<Item = &Attempt> {
        self.states.iter().flat_map(TaskState::attempts)
    }
}

impl TaskState {
    fn kind(&self) -> TaskKind {
        match self {
            TaskState::Waiting => TaskKind::Waiting,
            TaskState::Delayed => TaskKind::Delayed,
            TaskState::Running { .. } => TaskKind::Running,
            TaskState::Revoking(_) => TaskKind::Revoking,
            TaskState::Done => TaskKind::Done,
        }
    }

    /// The attempts under way.
    pub(crate) fn attempts(&self) -> impl Iterator<Item = &Attempt> {
        let (first, second) = match self {
            TaskState::Running { first, second } => (Some(&**first), second.as_deref()),
            _ => (None, None),
        };
        first.into_iter().chain(second)
    }
}
