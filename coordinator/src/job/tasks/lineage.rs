//! Lineage (P5): a committed run that is missing or damaged costs a new generation of the one sort
//! task that made it.
//!
//! A merge that meets with such a run reports it and is handed back. The loss is journalled once,
//! however many report it; then the split is sorted anew while merges that do not need the run go
//! on. None begins before the new runs stand, conserve what the lost ones held, and a new list of
//! runs is pinned.

use muster_protocol::Error;
use muster_protocol::api::JobState;
use muster_protocol::ids::{AttemptId, Generation, JobId, Phase, TaskId};
use muster_protocol::wire::DamageCause;

use crate::job::flow::table::Stage;
use crate::job::law::{RepairStep, Step};
use crate::job::tasks::Repair;
use crate::job::tasks::attempts::{TakenBack, cut_to_line};
use crate::job::tasks::table::PhaseTasks;
use crate::job::view::tally::Counted;
use crate::job::{Machine, SharedPlan};
use crate::journal::record::{GenerationBegan, Record};

/// What a merge says of a run.
pub(crate) struct Damage {
    pub split: u32,
    pub run: AttemptId,
    pub cause: DamageCause,
    pub error: Error,
}

fn describe(cause: DamageCause) -> &'static str {
    match cause {
        DamageCause::Store => "the store's fault",
        DamageCause::Network => "damaged on the way",
        DamageCause::Writer => "written wrong",
    }
}

impl Machine {
    /// A merge under way cannot read a run. Its own attempt is handed back; the loss counts if the
    /// run is the one that is committed.
    pub(crate) fn run_damaged(&mut self, job: &JobId, id: &AttemptId, damage: Damage) {
        let Some((durable, active)) = self.jobs.both(job) else { return };
        let Damage { split, run, cause, error } = damage;
        let committed = durable.runs.get(&split).filter(|known| known.attempt == run);
        let Some(lost) = committed.filter(|_| !active.tasks.losing.contains(&split)) else {
            // Lost already, and known by others: its list of runs is an older one. One that reads
            // the newest list has no such excuse.
            let excused = active.tasks.repair.is_some() || active.tasks.older_list.contains(id);
            let why = match excused {
                true => TakenBack::HandedBack,
                false => TakenBack::Failed(Error::corrupt(format!(
                    "its report cannot be true: {run} is not the run of split {split}"
                ))),
            };
            return self.take_back(job, id, &why);
        };
        let (url, maker, why) = (&lost.url, &lost.worker, describe(cause));
        let seen = format!("{url}, made by worker {maker}, {why}: {}", error.message);
        let recovery = &active.config.recovery;
        let generations_max = recovery.generations_max;
        let (generation, repeated) = (durable.generation(split).0, durable.repeated);
        if generation >= generations_max || repeated >= recovery.repeated_max {
            let task = TaskId { phase: Phase::Sort, index: split };
            let text = format!(
                "the run of {task} is lost after {generation} repeats of it and {repeated} in all \
                    (recovery.generations_max {generations_max}, recovery.repeated_max {}): {seen}",
                recovery.repeated_max
            );
            return self.fail(job, Error::exhausted(text));
        }
        self.lose_run(job, split, cause, &seen);
        self.take_back(job, id, &TakenBack::HandedBack);
    }

    /// Journals that a committed run does not count any more. Nothing is granted until that stands.
    pub(crate) fn lose_run(&mut self, job: &JobId, split: u32, cause: DamageCause, why: &str) {
        let Some((durable, active)) = self.jobs.both_mut(job) else { return };
        let Some(run) = durable.runs.get(&split) else { return };
        // A job that is about to end needs no run any more: the record would come after that of the
        // end.
        if active.ending().is_some() || !active.tasks.losing.insert(split) {
            return;
        }
        let began = GenerationBegan {
            job: job.clone(),
            split,
            generation: Generation(durable.generation(split).0 + 1),
            lost: run.attempt,
            cause,
            why: cut_to_line(why),
        };
        let sums = (run.input, run.kept.plus(&run.dropped));
        active.told.recoveries.trouble(
            TaskId { phase: Phase::Sort, index: split },
            "run-damaged",
            self.now_ms,
        );
        if durable.state == JobState::Merging {
            self.begin_repair(job);
            if let Some(repair) =
                self.jobs.active_mut(job).and_then(|active| active.tasks.repair.as_mut())
            {
                repair.sums.insert(split, sums);
            }
        }
        self.record(Record::GenerationBegan(Box::new(began)));
        self.jobs.touch(job);
    }

    /// Makes what is missing, or newer than its list, the next thing to be done of a job that
    /// merges.
    pub(crate) fn begin_repair(&mut self, job: &JobId) {
        let Some((durable, active)) = self.jobs.both_mut(job) else { return };
        if active.tasks.repair.is_none() {
            active.tasks.repair = Some(Repair {
                tasks: Stage::of(Phase::Sort).open(durable),
                step: RepairStep::Sorting,
                ticket: 0,
                sums: std::collections::BTreeMap::new(),
            });
        }
    }

    /// The loss stands: the task waits again.
    pub(crate) fn run_is_lost(&mut self, began: &GenerationBegan) {
        let GenerationBegan { job, split, generation, why, .. } = began;
        let Some(active) = self.jobs.active_mut(job) else { return };
        self.view.count(Counted::TaskRepeated);
        active.tasks.losing.remove(split);
        active.tasks.advance_repair(RepairStep::Sorting);
        if let Some(tasks) = active.tasks.of_mut(Phase::Sort) {
            tasks.reopen(*split);
        }
        active.moved(self.now_ms);
        let task = TaskId { phase: Phase::Sort, index: *split };
        let text = format!("{task} is done anew, as generation {generation}: {why}");
        self.event(Some(job), "warning", "run-lost", text);
        self.jobs.touch(job);
        self.advance(job);
    }

    /// The barrier again, once nothing is missing.
    pub(crate) fn advance_repair(&mut self, job: &JobId, plan: &SharedPlan) {
        let Some(active) = self.jobs.active(job) else { return };
        let whole = active.step() == Step::Working && !active.tasks.awaits_loss();
        let made =
            active.tasks.repair.as_ref().is_some_and(|repair| {
                repair.step == RepairStep::Sorting && repair.tasks.is_complete()
            });
        if whole && made {
            self.pin_runs(job, plan);
        }
    }

    /// The new list could not be written: it is tried again.
    pub(crate) fn retry_pinning(&mut self, job: &JobId) {
        let Some(active) = self.jobs.active_mut(job) else { return };
        if active.tasks.repair.as_ref().is_some_and(|repair| repair.step == RepairStep::Pinning) {
            active.tasks.advance_repair(RepairStep::Sorting);
            self.advance(job);
        }
    }

    /// A list of runs is pinned: merging begins, or goes on with the runs that were made anew.
    pub(crate) fn runs_stand_pinned(&mut self, job: &JobId) {
        let Some(active) = self.jobs.active_mut(job) else { return };
        if active.tasks.stage().is_none_or(|tasks| tasks.phase != Phase::Merge) {
            return self.enter(job);
        }
        let older = active
            .tasks
            .stage
            .iter()
            .flat_map(PhaseTasks::running_attempts)
            .map(|attempt| attempt.id)
            .collect();
        active.tasks.older_list = older;
        if active.tasks.losing.is_empty() {
            active.tasks.repair = None;
        } else {
            active.tasks.advance_repair(RepairStep::Sorting);
        }
        active.moved(self.now_ms);
        let text = "all runs stand again; merging goes on with them";
        self.event(Some(job), "info", "runs-repaired", text);
        self.jobs.touch(job);
        self.advance(job);
    }
}
