//! From stage to stage: what begins when, and what is tried again.

use muster_common::api::JobState;
use muster_common::ids::{JobId, Phase};
use muster_common::wire::Broadcast;
use muster_common::{Error, ErrorKind, Result};

use crate::job::flow::active::Stage;
use crate::job::io::Effect;
use crate::job::tasks::table::PhaseTasks;
use crate::job::{Machine, SharedPlan, Timer};

/// Tries of a store step that meets trouble which will not pass, where giving up is worse than
/// trying.
pub(crate) const HOPELESS_TRIES_MAX: u32 = 5;

impl Machine {
    /// Goes on with a job from where the journal stands.
    pub(crate) fn enter(&mut self, job: &JobId) {
        let Some(state) = self.durable.jobs.get(job).map(|durable| durable.state) else { return };
        match state {
            JobState::Submitted => self.skip_sampling(job),
            JobState::Sampling => self.begin_phase(job, Phase::Sample),
            JobState::Sorting => self.begin_phase(job, Phase::Sort),
            JobState::Merging => self.begin_phase(job, Phase::Merge),
            JobState::Committing => self.publish(job),
            JobState::Succeeded | JobState::Failed | JobState::Cancelled => self.stop(job),
        }
    }

    pub(crate) fn begin_phase(&mut self, job: &JobId, phase: Phase) {
        let (Some(durable), Some(active)) = (self.durable.jobs.get(job), self.active.get_mut(job))
        else {
            return;
        };
        if active.ending.is_some() {
            return;
        }
        let tasks = match phase {
            Phase::Sample => PhaseTasks::new(phase, durable.submitted.splits, |_| false),
            Phase::Sort => PhaseTasks::new(phase, durable.submitted.splits, |at| {
                durable.runs.contains_key(&at)
            }),
            Phase::Merge => {
                PhaseTasks::new(phase, durable.partitions(), |at| durable.parts.contains_key(&at))
            }
        };
        let tasks = tasks.recall(durable);
        let (done, total) = (tasks.done, tasks.total());
        let stale = durable.runs_stale;
        active.begins(self.now_ms);
        active.tasks = Some(tasks);
        active.samples = Vec::new();
        active.sampling_round = 0;
        active.stage = Stage::Working;
        active.moved(self.now_ms);
        let again =
            if done > 0 { format!(", {done} of which are committed") } else { String::new() };
        self.event(Some(job), "info", "phase-began", format!("{phase}: {total} tasks{again}"));
        self.out.push(Effect::Broadcast {
            job: job.clone(),
            broadcast: Broadcast::PhaseBegins { epoch: self.epoch, phase },
        });
        self.urgent.insert(job.clone());
        if phase == Phase::Merge {
            self.abort_revoked_again(job);
            if stale {
                self.begin_repair(job);
            }
        } else if phase == Phase::Sort {
            self.give_up_skipped(job);
        }
        self.touch(job);
        self.advance(job);
    }

    /// Uploads that a former leader revoked may still be open: it could have died before it aborted
    /// them.
    fn abort_revoked_again(&mut self, job: &JobId) {
        let Some(durable) = self.durable.jobs.get(job) else { return };
        let open = |partition: u32| {
            durable.parts.contains_key(&partition) || durable.uploads_of(partition).next().is_some()
        };
        let again: Vec<_> =
            durable.revoked.iter().filter(|upload| !open(upload.partition)).cloned().collect();
        for upload in again {
            if let Some(tasks) = self.active.get_mut(job).and_then(|active| active.tasks.as_mut()) {
                tasks.revoke(upload.partition, upload.attempt);
            }
            self.abort_revoked(job, &upload.attempt);
        }
    }

    /// Moves on if all tasks of the phase are done.
    pub(crate) fn advance(&mut self, job: &JobId) {
        let Some(active) = self.active.get(job) else { return };
        let complete =
            active.tasks.as_ref().filter(|tasks| tasks.is_complete()).map(|tasks| tasks.phase);
        if let (Some(_), Some(plan)) = (&active.repair, &active.plan) {
            let plan = plan.clone();
            return self.advance_repair(job, &plan);
        }
        if active.awaits_loss() || active.repair.is_some() {
            return;
        }
        let (Stage::Working, Some(phase), Some(plan)) =
            (active.stage, complete, active.plan.clone())
        else {
            return;
        };
        match phase {
            Phase::Sample => self.choose_splitters(job, &plan),
            Phase::Sort => self.pin_runs(job, &plan),
            Phase::Merge => self.prepare_commit(job, &plan),
        }
    }

    pub(crate) fn load_plan(&mut self, job: &JobId) {
        if let Some(durable) = self.durable.jobs.get(job) {
            self.out
                .push(Effect::LoadPlan { job: job.clone(), plan: durable.submitted.plan.clone() });
        }
    }

    pub(crate) fn plan_loaded(&mut self, job: &JobId, result: Result<SharedPlan>) {
        let (Some(durable), Some(active)) = (self.durable.jobs.get(job), self.active.get_mut(job))
        else {
            return;
        };
        let fits = |plan: &SharedPlan| {
            plan.job == *job && plan.splits.len() == durable.submitted.splits as usize
        };
        match result {
            Ok(plan) if fits(&plan) => {
                active.moved(self.now_ms);
                let stage = active.stage;
                if let Err(error) = self.adopt_plan(job, plan) {
                    return self.store_trouble(job, error);
                }
                self.touch(job);
                if stage == Stage::AwaitingPlan { self.publish(job) } else { self.advance(job) }
            }
            Ok(_) => self.store_trouble(
                job,
                Error::corrupt(format!("the stored plan is not that of job {job}")),
            ),
            Err(error) => self.store_trouble(job, error),
        }
    }

    /// A step with the store went wrong. Trouble that may pass is waited out, within the phase's
    /// bound; other trouble ends the job, unless its commit is decided: then giving up is the last
    /// resort. It is only given up here, where the store has just answered: no call of it is under
    /// way that could still publish something.
    pub(crate) fn store_trouble(&mut self, job: &JobId, error: Error) {
        let Some((durable, _)) = self.both(job) else { return };
        let decided = durable.commit_decided && durable.ended.is_none();
        let Some(active) = self.active.get_mut(job) else { return };
        let (lasted_ms, limit_ms) =
            (active.failed_again(self.now_ms), active.config.phases.commit_ms);
        let passing = error.kind.is_passing() || (decided && error.kind == ErrorKind::Exhausted);
        let too_long = decided && lasted_ms > limit_ms;
        active.hopeless += u32::from(!passing);
        if !too_long && (passing || (decided && active.hopeless < HOPELESS_TRIES_MAX)) {
            let pause_ms = active.config.retry.store.pause_ms(active.tries, self.jitter.next());
            active.recoveries.store_trouble(self.now_ms);
            active.trouble = Some(error.message.clone());
            active.news = true;
            if active.tries == 1 {
                self.event(Some(job), "warning", "store-trouble", error.message);
            }
            self.after(pause_ms, Timer::Store(job.clone()));
        } else if decided {
            let how_long = if too_long {
                format!(
                    "it failed for {lasted_ms} ms, the limit is {limit_ms} ms (phases.commit_ms): "
                )
            } else {
                String::new()
            };
            let text = format!(
                "the commit is decided, but cannot be carried out; OUTPUT has no whole result of \
                    this job: {how_long}{}",
                error.message
            );
            self.give_up_commit(job, Error::new(error.kind, text));
        } else {
            self.fail(job, error);
        }
    }

    pub(crate) fn retry_store_step(&mut self, job: &JobId) {
        let Some(active) = self.active.get(job) else { return };
        let Some(plan) = active.plan.clone() else {
            return match active.stage {
                Stage::Cleaning => self.clean_up(job),
                _ => self.load_plan(job),
            };
        };
        match active.stage {
            Stage::Choosing => self.choose_splitters(job, &plan),
            Stage::PinningRuns => self.pin_runs(job, &plan),
            Stage::PreparingCommit => self.prepare_commit(job, &plan),
            Stage::Publishing => self.publish(job),
            Stage::Cleaning => self.clean_up(job),
            Stage::Working => self.retry_pinning(job),
            Stage::Deciding
            | Stage::AwaitingPlan
            | Stage::Ending
            | Stage::Stopping
            | Stage::Closing => {}
        }
    }

    /// Fails jobs whose phase has not moved for too long (P7).
    pub(crate) fn watch_phases(&mut self) {
        if !self.connected {
            return;
        }
        let stalled: Vec<(JobId, Error)> =
            self.active.keys().filter_map(|job| Some((job.clone(), self.stalled(job)?))).collect();
        for (job, error) in stalled {
            self.fail(&job, error);
        }
    }

    fn stalled(&self, job: &JobId) -> Option<Error> {
        let (durable, active) = self.both(job)?;
        let steps = [Stage::Working, Stage::Choosing, Stage::PinningRuns, Stage::PreparingCommit];
        if !steps.contains(&active.stage) {
            return None;
        }
        if let Some(error) = self.owner_overdue(active) {
            return Some(error);
        }
        let phases = &active.config.phases;
        let (setting, limit_ms) = match durable.state {
            JobState::Sorting if active.stage == Stage::PinningRuns => {
                ("phases.shuffle_ms", phases.shuffle_ms)
            }
            JobState::Sorting => ("phases.sort_ms", phases.sort_ms),
            JobState::Merging => ("phases.merge_ms", phases.merge_ms),
            _ => ("phases.sample_ms", phases.sample_ms),
        };
        let alone_ms = self
            .too_few_since_ms
            .map_or(0, |since| self.now_ms.saturating_sub(since.max(active.began_ms)));
        let still_ms = self.now_ms.saturating_sub(active.moved_ms);
        let state = durable.state;
        let trouble =
            active.trouble.as_ref().map(|trouble| format!(" (it waits for the store: {trouble})"));
        let trouble = trouble
            .or_else(|| Some(format!(" (it waits for {})", self.waiting_for_owner(active)?)));
        let trouble = trouble.unwrap_or_default();
        if alone_ms > phases.register_ms {
            let (few, limit_ms) = (self.too_few().unwrap_or_default(), phases.register_ms);
            Some(Error::exhausted(format!(
                "{few} for {alone_ms} ms while {state}; the limit is {limit_ms} ms \
                    (phases.register_ms)"
            )))
        } else if still_ms > limit_ms {
            Some(Error::exhausted(format!(
                "no progress for {still_ms} ms while {state}{trouble}; the limit is {limit_ms} ms \
                    ({setting})"
            )))
        } else {
            None
        }
    }
}
