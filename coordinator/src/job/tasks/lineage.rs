//! Lineage (P5): a committed run that is missing or damaged costs a new generation of the one sort
//! task that made it.
//!
//! A merge that meets with such a run reports it and is handed back. The loss is journalled once,
//! however many report it; then the split is sorted anew while merges that do not need the run go
//! on. None begins before the new runs stand, conserve what the lost ones held, and a new list of
//! runs is pinned.

use std::collections::BTreeMap;

use muster_common::Error;
use muster_common::api::JobState;
use muster_common::ids::{AttemptId, Generation, JobId, Phase, TaskId};
use muster_common::wire::DamageCause;
use muster_kernel::proof::Sums;

use crate::job::flow::barriers::{check_runs, pinned_runs};
use crate::job::flow::table::Stage;
use crate::job::io::Effect;
use crate::job::law::{RepairStep, Step};
use crate::job::ledger::Waiters;
use crate::job::tasks::attempts::{TakenBack, cut_to_line};
use crate::job::tasks::table::PhaseTasks;
use crate::job::view::figures::Counted;
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
        let Some((durable, active)) = self.both(job) else { return };
        let Damage { split, run, cause, error } = damage;
        let committed = durable.runs.get(&split).filter(|known| known.attempt == run);
        let Some(lost) = committed.filter(|_| !active.losing.contains(&split)) else {
            // Lost already, and known by others: its list of runs is an older one. One that reads
            // the newest list has no such excuse.
            let excused = active.repair.is_some() || active.older_list.contains(id);
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
        let (Some(durable), Some(active)) = (self.durable.jobs.get(job), self.active.get_mut(job))
        else {
            return;
        };
        let Some(run) = durable.runs.get(&split) else { return };
        // A job that is about to end needs no run any more: the record would come after that of the
        // end.
        if active.ending().is_some() || !active.losing.insert(split) {
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
            if let Some(repair) = self.active.get_mut(job).and_then(|active| active.repair.as_mut())
            {
                repair.sums.insert(split, sums);
            }
        }
        self.append(Record::GenerationBegan(Box::new(began)), Waiters::default());
        self.touch(job);
    }

    /// Makes what is missing, or newer than its list, the next thing to be done of a job that
    /// merges.
    pub(crate) fn begin_repair(&mut self, job: &JobId) {
        let (Some(durable), Some(active)) = (self.durable.jobs.get(job), self.active.get_mut(job))
        else {
            return;
        };
        if active.repair.is_none() {
            active.repair = Some(Repair {
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
        let Some(active) = self.active.get_mut(job) else { return };
        self.view.count(Counted::TaskRepeated);
        active.losing.remove(split);
        active.advance_repair(RepairStep::Sorting);
        if let Some(tasks) = active.tasks_of_mut(Phase::Sort) {
            tasks.reopen(*split);
        }
        active.moved(self.now_ms);
        let task = TaskId { phase: Phase::Sort, index: *split };
        self.event(
            Some(job),
            "warning",
            "run-lost",
            format!("{task} is done anew, as generation {generation}: {why}"),
        );
        self.touch(job);
        self.advance(job);
    }

    /// The barrier again, once nothing is missing: the runs tile the input and sum to it, and a new
    /// list of them is written.
    pub(crate) fn advance_repair(&mut self, job: &JobId, plan: &SharedPlan) {
        let (Some(durable), Some(active)) = (self.durable.jobs.get(job), self.active.get_mut(job))
        else {
            return;
        };
        let whole = active.step() == Step::Working && !active.awaits_loss();
        let Some(repair) =
            active.repair.as_mut().filter(|repair| whole && repair.tasks.is_complete())
        else {
            return;
        };
        if repair.step != RepairStep::Sorting {
            return;
        }
        match check_runs(durable, plan).and_then(|()| pinned_runs(job, durable)) {
            Ok(bytes) => {
                let ticket = self.tickets.issue(job);
                repair.ticket = ticket;
                active.advance_repair(RepairStep::Pinning);
                active.writes();
                let url = active
                    .scratch
                    .join(&muster_common::names::runs_path(self.epoch, self.nonces.next()));
                self.out.push(Effect::WriteObject { url, bytes, ticket });
            }
            Err(error) => self.fail(job, error),
        }
    }

    /// The new list could not be written: it is tried again.
    pub(crate) fn retry_pinning(&mut self, job: &JobId) {
        let Some(active) = self.active.get_mut(job) else { return };
        if active.repair.as_ref().is_some_and(|repair| repair.step == RepairStep::Pinning) {
            active.advance_repair(RepairStep::Sorting);
            self.advance(job);
        }
    }

    /// A list of runs is pinned: merging begins, or goes on with the runs that were made anew.
    pub(crate) fn runs_stand_pinned(&mut self, job: &JobId) {
        let Some(active) = self.active.get_mut(job) else { return };
        if active.tasks.as_ref().is_none_or(|tasks| tasks.phase != Phase::Merge) {
            return self.enter(job);
        }
        let older = active
            .tasks
            .iter()
            .flat_map(PhaseTasks::running_attempts)
            .map(|attempt| attempt.id)
            .collect();
        active.older_list = older;
        if active.losing.is_empty() {
            active.repair = None;
        } else {
            active.advance_repair(RepairStep::Sorting);
        }
        active.moved(self.now_ms);
        self.event(
            Some(job),
            "info",
            "runs-repaired",
            "all runs stand again; merging goes on with them",
        );
        self.touch(job);
        self.advance(job);
    }
}

/// Sort tasks that are done anew while the job merges.
#[derive(Debug)]
pub(crate) struct Repair {
    /// All sort tasks; those whose run stands are done.
    pub tasks: PhaseTasks,
    /// Changes by [`Active::advance_repair`] alone.
    pub step: RepairStep,
    /// Under which the new list of runs is written.
    pub ticket: u64,
    /// What lost runs summed to, input first, as far as this leader has seen them: their successors
    /// must too.
    pub sums: BTreeMap<u32, (Sums, Sums)>,
}
