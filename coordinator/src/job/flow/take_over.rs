//! What a new leader makes of the journal. Committed tasks stay committed; every job goes on from
//! its last record. Workers that still hold attempts of the former epoch keep them, if they
//! register in time: for a while nothing is granted that somebody may be at work on.

use muster_protocol::api::PhaseTimes;
use muster_protocol::ids::{AttemptId, JobId, Phase, WorkerId};
use muster_protocol::wire::HeldAttempt;

use crate::job::flow::active::Active;
use crate::job::law::Step;
use crate::job::ledger::durable::DurableJob;
use crate::job::tasks::table::{Attempt, TaskState};
use crate::job::{Machine, Timer};

impl Machine {
    pub(crate) fn take_over(&mut self, unix_ms: u64) {
        self.unix_zero_ms = unix_ms.saturating_sub(self.now_ms);
        self.led_since_ms = self.now_ms;
        let open: Vec<JobId> = self
            .jobs
            .durable()
            .jobs
            .iter()
            .filter(|(_, job)| !job.cleaned)
            .map(|(id, _)| id.clone())
            .collect();
        let mut held_back = false;
        for job in &open {
            let Some(durable) = self.jobs.known(job) else { continue };
            let terminal = durable.state.is_terminal();
            let before_ms = in_phase_ms(durable, unix_ms);
            match Active::new(durable, None, &self.config, self.now_ms) {
                Ok(mut active) => {
                    held_back |= !terminal;
                    active.before_ms = before_ms;
                    active.held_back = !terminal;
                    self.jobs.take_on(job.clone(), active);
                }
                Err(error) => self.event(Some(job), "error", "record-refused", error.message),
            }
        }
        self.sweep_late_again();
        let text = format!("epoch {} of {}, {} open jobs", self.epoch, self.deployment, open.len());
        self.event(None, "info", "leader-began", text);
        if held_back {
            let grace_ms = self.config.tasks.regrant_grace_ms;
            self.after(grace_ms, Timer::GraceEnds);
        }
        for job in &open {
            if self.jobs.known(job).is_some_and(|durable| !durable.state.is_terminal()) {
                self.load_plan(job);
            }
            self.enter(job);
        }
    }

    pub(crate) fn end_grace(&mut self) {
        let jobs: Vec<JobId> = self.jobs.at_work().keys().cloned().collect();
        for job in jobs {
            if let Some(active) = self.jobs.active_mut(&job) {
                active.held_back = false;
                active.told.news();
            }
            self.jobs.touch(&job);
        }
    }

    /// Whether an attempt that a worker holds is still this leader's, who has let the same life of
    /// that worker in before. What it has taken back since stays taken back: an order to abandon it
    /// may be on its way, and would remove a result that counts by then.
    pub(crate) fn still_runs(&self, worker: &WorkerId, held: &HeldAttempt) -> bool {
        let HeldAttempt { job, attempt: id } = held;
        let runs = |active: &Active| {
            active.tasks.attempt(id).is_some_and(|attempt| attempt.worker == *worker)
        };
        self.is_committed(job, id) || self.jobs.active(job).is_some_and(runs)
    }

    /// Whether an attempt that a worker holds goes on under this epoch: nobody else has its task,
    /// and if it has an upload, the journal knows it as this attempt's. One whose result is
    /// committed goes on too, to be acknowledged: the acknowledgement was lost, and a worker that
    /// were told to abandon it would remove what counts.
    pub(crate) fn regrant(&mut self, worker: &WorkerId, held: &HeldAttempt) -> bool {
        let HeldAttempt { job, attempt: id } = held;
        if self.is_committed(job, id) {
            return true;
        }
        let (generation, fair_ms) = (self.generation(job, id.task), self.fair_ms());
        let Some((durable, active)) = self.jobs.both_mut(job) else { return false };
        if active.step() != Step::Working || id.epoch > self.epoch || id.generation != generation {
            return false;
        }
        if active.owners.of_task(id.task).is_some_and(|owner| owner != worker) {
            return false;
        }
        if let Some(attempt) = active.tasks.attempt(id) {
            return attempt.worker == *worker;
        }
        let Some(tasks) = active.tasks.of_mut(id.task.phase) else { return false };
        let room = self
            .pool
            .workers()
            .get(worker)
            .is_some_and(|known| known.attempts.len() < known.info.slots as usize);
        let index = id.task.index;
        let merges = id.task.phase == Phase::Merge;
        let open = durable.upload(id);
        // Without an upload of its own it must not begin beside one that nobody answers for.
        let answered = |first: Option<AttemptId>| {
            !merges
                || open.is_some()
                || durable.uploads_of(index).all(|upload| Some(upload.attempt) == first)
        };
        let may = match tasks.state(id.task) {
            Some(TaskState::Waiting) => answered(None),
            Some(TaskState::Running { first, second: None }) => {
                first.recording.is_none() && answered(Some(first.id))
            }
            _ => false,
        };
        if !room || !may || (open.is_none() && durable.may_be_revoked(id)) {
            return false;
        }
        tasks.start(Attempt {
            id: *id,
            worker: worker.clone(),
            accepted: true,
            sent: 0,
            seen_ms: self.now_ms,
            began_ms: fair_ms,
            progress_ms: fair_ms,
            bytes_done: 0,
            bytes_total: 0,
            ticket: None,
            upload: open.map(|upload| upload.upload.clone()),
            recording: None,
        });
        active.tasks.goes_on(*id);
        self.pool.give(worker, job, *id);
        self.jobs.touch(job);
        true
    }
}

/// How long the phase at hand has lasted: the time since the submission, less the phases before it.
/// For people only; clocks of two coordinators may differ.
fn in_phase_ms(durable: &DurableJob, unix_ms: u64) -> u64 {
    let PhaseTimes { plan_ms, sample_ms, sort_ms, merge_ms, .. } = durable.times;
    let since_ms = unix_ms.saturating_sub(durable.submitted.submitted_unix_ms);
    since_ms.saturating_sub(plan_ms + sample_ms + sort_ms + merge_ms)
}
