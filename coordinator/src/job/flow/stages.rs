//! From stage to stage: what begins when, and what is tried again.

use muster_protocol::api::JobState;
use muster_protocol::ids::{JobId, Phase};
use muster_protocol::wire::Broadcast;
use muster_protocol::{Error, ErrorKind, Result};

use crate::job::flow::active::Active;
use crate::job::flow::table::Stage;
use crate::job::io::Effect;
use crate::job::law::Step;
use crate::job::{Machine, SharedPlan, Timer};

/// Tries of a store step that meets trouble which will not pass, where giving up is worse than
/// trying.
pub(crate) const HOPELESS_TRIES_MAX: u32 = 5;

impl Machine {
    /// Goes on with a job from where the journal stands.
    pub(crate) fn enter(&mut self, job: &JobId) {
        let Some(state) = self.jobs.known(job).map(|durable| durable.state) else { return };
        match state {
            JobState::Submitted => self.skip_sampling(job),
            JobState::Sampling | JobState::Sorting | JobState::Merging => self.begin_stage(job),
            JobState::Committing => self.publish(job),
            JobState::Succeeded | JobState::Failed | JobState::Cancelled => self.stop(job),
        }
    }

    fn begin_stage(&mut self, job: &JobId) {
        let Some((durable, active)) = self.jobs.both_mut(job) else { return };
        let Some(stage) = Stage::at(durable.state).filter(|_| active.ending().is_none()) else {
            return;
        };
        let (phase, tasks) = (stage.phase, stage.open(durable));
        let (done, total) = (tasks.done, tasks.total());
        active.begins(self.now_ms);
        active.tasks.begin(tasks);
        active.advance(Step::Working);
        active.moved(self.now_ms);
        let again =
            if done > 0 { format!(", {done} of which are committed") } else { String::new() };
        self.event(Some(job), "info", "phase-began", format!("{phase}: {total} tasks{again}"));
        self.out.push(Effect::Broadcast {
            job: job.clone(),
            broadcast: Broadcast::PhaseBegins { epoch: self.epoch, phase },
        });
        self.view.is_urgent(job);
        (stage.begun)(self, job);
        self.jobs.touch(job);
        self.advance(job);
    }

    /// Uploads that a former leader revoked may still be open: it could have died before it aborted
    /// them. And it may have left a repair to be done.
    pub(crate) fn begin_merging(&mut self, job: &JobId) {
        let Some(durable) = self.jobs.known(job) else { return };
        let stale = durable.runs_stale;
        let open = |partition: u32| {
            durable.parts.contains_key(&partition) || durable.uploads_of(partition).next().is_some()
        };
        let again: Vec<_> =
            durable.revoked.iter().filter(|upload| !open(upload.partition)).cloned().collect();
        for upload in again {
            if let Some(tasks) =
                self.jobs.active_mut(job).and_then(|active| active.tasks.stage_mut())
            {
                tasks.revoke(upload.partition, upload.attempt);
            }
            self.abort_revoked(job, &upload.attempt);
        }
        if stale {
            self.begin_repair(job);
        }
    }

    /// Moves on if all tasks of the phase are done.
    pub(crate) fn advance(&mut self, job: &JobId) {
        let Some(active) = self.jobs.active(job) else { return };
        let complete =
            active.tasks.stage().filter(|tasks| tasks.is_complete()).map(|tasks| tasks.phase);
        if let (true, Some(plan)) = (active.tasks.is_repairing(), &active.plan) {
            let plan = plan.clone();
            return self.advance_repair(job, &plan);
        }
        if active.tasks.awaits_loss() || active.tasks.is_repairing() {
            return;
        }
        let (Step::Working, Some(phase), Some(plan)) =
            (active.step(), complete, active.plan.clone())
        else {
            return;
        };
        (Stage::of(phase).barrier)(self, job, &plan);
    }

    pub(crate) fn load_plan(&mut self, job: &JobId) {
        if let Some(durable) = self.jobs.known(job) {
            self.out
                .push(Effect::LoadPlan { job: job.clone(), plan: durable.submitted.plan.clone() });
        }
    }

    pub(crate) fn plan_loaded(&mut self, job: &JobId, result: Result<SharedPlan>) {
        let Some((durable, active)) = self.jobs.both_mut(job) else { return };
        let fits = |plan: &SharedPlan| {
            plan.job == *job && plan.splits.len() == durable.submitted.splits as usize
        };
        match result {
            Ok(plan) if fits(&plan) => {
                active.moved(self.now_ms);
                let stage = active.step();
                if let Err(error) = self.adopt_plan(job, plan) {
                    return self.store_trouble(job, error);
                }
                self.jobs.touch(job);
                if stage == Step::AwaitingPlan { self.publish(job) } else { self.advance(job) }
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
        let Some((durable, _)) = self.jobs.both(job) else { return };
        let decided = durable.commit_decided && durable.ended.is_none();
        let Some(active) = self.jobs.active_mut(job) else { return };
        let limit_ms = active.config.phases.commit_ms;
        let passing = error.kind.is_passing() || (decided && error.kind == ErrorKind::Exhausted);
        let (lasted_ms, hopeless) = active.store_failed(self.now_ms, passing);
        let too_long = decided && lasted_ms > limit_ms;
        if !too_long && (passing || (decided && hopeless < HOPELESS_TRIES_MAX)) {
            let (pause_ms, told) = active.try_again(error.message.clone(), self.jitter.next());
            active.told.recoveries.store_trouble(self.now_ms);
            active.told.news();
            if told {
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
        let Some(active) = self.jobs.active(job) else { return };
        let Some(plan) = active.plan.clone() else {
            return match active.step() {
                Step::Cleaning => self.clean_up(job),
                _ => self.load_plan(job),
            };
        };
        match active.step() {
            Step::Choosing => self.choose_splitters(job, &plan),
            Step::PinningRuns => self.pin_runs(job, &plan),
            Step::PreparingCommit => self.prepare_commit(job, &plan),
            Step::Publishing => self.publish(job),
            Step::Cleaning => self.clean_up(job),
            Step::Working => self.retry_pinning(job),
            Step::Deciding | Step::AwaitingPlan | Step::Ending | Step::Stopping | Step::Closing => {
            }
        }
    }

    /// Fails jobs whose phase has not moved for too long (P7).
    pub(crate) fn watch_phases(&mut self) {
        if !self.outages.is_connected() {
            return;
        }
        let stalled: Vec<(JobId, Error)> = self
            .jobs
            .at_work()
            .keys()
            .filter_map(|job| Some((job.clone(), self.stalled(job)?)))
            .collect();
        for (job, error) in stalled {
            self.fail(&job, error);
        }
    }

    /// Tells of steps against the law: bugs of ours, which only people can do something about.
    pub(crate) fn tell_broken(&mut self) {
        let broken =
            |(job, active): (&JobId, &mut Active)| Some((job.clone(), active.take_broken()?));
        for (job, why) in self.jobs.at_work_mut().filter_map(broken).collect::<Vec<_>>() {
            self.counters.illegal += 1;
            self.event(Some(&job), "error", "illegal-transition", why);
        }
    }

    fn stalled(&self, job: &JobId) -> Option<Error> {
        let (durable, active) = self.jobs.both(job)?;
        let steps = [Step::Working, Step::Choosing, Step::PinningRuns, Step::PreparingCommit];
        if !steps.contains(&active.step()) {
            return None;
        }
        if let Some(error) = self.owner_overdue(active) {
            return Some(error);
        }
        let phases = &active.config.phases;
        let stage = Stage::at(durable.state).unwrap_or(Stage::of(Phase::Sample));
        let (setting, limit_ms) = (stage.still_ms)(phases, active.step());
        let alone_ms = self
            .pool
            .too_few_since_ms()
            .map_or(0, |since_ms| active.meanwhile_ms(self.now_ms, since_ms));
        let still_ms = active.idle_ms(self.now_ms);
        let state = durable.state;
        let trouble =
            active.trouble().map(|trouble| format!(" (it waits for the store: {trouble})"));
        let trouble = trouble
            .or_else(|| Some(format!(" (it waits for {})", self.waiting_for_owner(active)?)));
        let trouble = trouble.unwrap_or_default();
        if alone_ms > phases.register_ms {
            let (few, limit_ms) =
                (self.pool.too_few(&self.config).unwrap_or_default(), phases.register_ms);
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
