//! The tasks of a job: where each stands, who has it, what a worker's word on it is worth, and what
//! is done anew.

use std::collections::{BTreeMap, BTreeSet};

use muster_kernel::proof::Sums;
use muster_kernel::splitters::Splitter;
use muster_protocol::ids::{AttemptId, Phase};

use crate::job::law::{Broken, RepairStep};

pub(crate) mod attempts;
mod grants;
pub(crate) mod left_out;
pub(crate) mod lineage;
mod reports;
pub(crate) mod table;

use table::{Attempt, PhaseTasks};

/// Sort tasks that are done anew while the job merges.
#[derive(Debug)]
pub(crate) struct Repair {
    /// All sort tasks; those whose run stands are done.
    pub tasks: PhaseTasks,
    /// Changes by [`Tasks::advance_repair`] alone.
    pub step: RepairStep,
    /// Under which the new list of runs is written.
    pub ticket: u64,
    /// What lost runs summed to, input first, as far as this leader has seen them: their successors
    /// must too.
    pub sums: BTreeMap<u32, (Sums, Sums)>,
}

/// What is at hand of one job.
#[derive(Debug, Default)]
pub(crate) struct Tasks {
    /// None while no stage is at hand.
    stage: Option<PhaseTasks>,
    /// Lost runs that are made again while the job merges.
    repair: Option<Repair>,
    /// Splits whose loss is on its way into the journal.
    losing: BTreeSet<u32>,
    /// Objects whose omission is on its way into the journal.
    skipping: BTreeSet<u32>,
    /// Merges under way that may read an older list of runs than the journal has.
    older_list: BTreeSet<AttemptId>,
    /// Merges whose worker died, and whose uploads are being revoked.
    bereaved: BTreeSet<AttemptId>,
    samples: Vec<Splitter>,
    /// How often the samples were too few or too uneven: the generation of the sample tasks.
    sampling_round: u32,
    broken: Broken,
}

impl Tasks {
    /// A stage begins.
    pub(crate) fn begin(&mut self, stage: PhaseTasks) {
        self.stage = Some(stage);
        self.samples = Vec::new();
        self.sampling_round = 0;
    }

    /// A round of sampling begins; what was sampled before is kept. Gives its number.
    pub(crate) fn sample_again(&mut self, stage: PhaseTasks) -> u32 {
        self.stage = Some(stage);
        self.sampling_round += 1;
        self.sampling_round + 1
    }

    /// The stage is over.
    pub(crate) fn close(&mut self) {
        self.stage = None;
        self.repair = None;
    }

    /// The job is over: nothing counts any more. Gives what was under way.
    pub(crate) fn drop_all(&mut self) -> BTreeSet<AttemptId> {
        let running = self.running_attempts().map(|attempt| attempt.id).collect();
        self.close();
        self.losing.clear();
        self.skipping.clear();
        running
    }

    /// The tasks of the stage at hand.
    pub(crate) fn stage(&self) -> Option<&PhaseTasks> {
        self.stage.as_ref()
    }

    pub(crate) fn stage_mut(&mut self) -> Option<&mut PhaseTasks> {
        self.stage.as_mut()
    }

    /// Whether runs that were lost are being made again.
    pub(crate) fn is_repairing(&self) -> bool {
        self.repair.is_some()
    }

    /// How far that is.
    pub(crate) fn advance_repair(&mut self, to: RepairStep) {
        if let Some(repair) = &mut self.repair {
            self.broken.check(repair.step, to);
            repair.step = to;
        }
    }

    /// The list of runs of a repair is written, under a ticket; whether there is one.
    pub(crate) fn pins_repair(&mut self, ticket: u64) -> bool {
        self.advance_repair(RepairStep::Pinning);
        self.repair.as_mut().map(|repair| repair.ticket = ticket).is_some()
    }

    /// Whether it was.
    pub(crate) fn awaits_list(&self, ticket: u64) -> bool {
        let awaits = |known: &Repair| known.step == RepairStep::Pinning && known.ticket == ticket;
        self.repair.as_ref().is_some_and(awaits)
    }

    /// A result stands.
    pub(crate) fn committed(&mut self, attempt: &AttemptId) {
        self.older_list.remove(attempt);
    }

    /// A former leader's attempt goes on: nobody knows which list of runs it reads.
    pub(crate) fn goes_on(&mut self, attempt: AttemptId) {
        if attempt.task.phase == Phase::Merge {
            self.older_list.insert(attempt);
        }
    }

    pub(crate) fn samples(&self) -> &[Splitter] {
        &self.samples
    }

    /// They have served.
    pub(crate) fn forget_samples(&mut self) {
        self.samples = Vec::new();
    }

    pub(crate) fn sampling_round(&self) -> u32 {
        self.sampling_round
    }

    /// A step against the law.
    pub(crate) fn broken(&self) -> Option<&str> {
        self.broken.why().or_else(|| self.all().find_map(|tasks| tasks.broken.why()))
    }

    /// The same, to be told once.
    pub(crate) fn take_broken(&mut self) -> Option<String> {
        self.broken.take().or_else(|| self.all_mut().find_map(|tasks| tasks.broken.take()))
    }

    pub(crate) fn running(&self) -> u32 {
        self.all().map(|tasks| tasks.running).sum()
    }

    pub(crate) fn running_attempts(&self) -> impl Iterator<Item = &Attempt> {
        self.all().flat_map(PhaseTasks::running_attempts)
    }

    /// The tasks of the stage at hand, and those of a repair beside it.
    pub(crate) fn all(&self) -> impl Iterator<Item = &PhaseTasks> {
        self.stage.iter().chain(self.repair.iter().map(|repair| &repair.tasks))
    }

    fn all_mut(&mut self) -> impl Iterator<Item = &mut PhaseTasks> {
        self.stage.iter_mut().chain(self.repair.iter_mut().map(|repair| &mut repair.tasks))
    }

    /// Those of them that are of one phase.
    pub(crate) fn of(&self, phase: Phase) -> Option<&PhaseTasks> {
        self.all().find(|tasks| tasks.phase == phase)
    }

    pub(crate) fn of_mut(&mut self, phase: Phase) -> Option<&mut PhaseTasks> {
        self.all_mut().find(|tasks| tasks.phase == phase)
    }

    /// The tasks that are granted at the moment: no merge begins while runs are missing.
    pub(crate) fn granted_from(&self) -> Option<&PhaseTasks> {
        self.repair.as_ref().map(|repair| &repair.tasks).or(self.stage.as_ref())
    }

    /// Whether the record of a loss or of an omission is on its way: what is to be done next
    /// depends on it.
    pub(crate) fn awaits_loss(&self) -> bool {
        !self.losing.is_empty() || !self.skipping.is_empty()
    }

    /// The attempt under way for a task, if it is this one.
    pub(crate) fn attempt_mut(&mut self, attempt: &AttemptId) -> Option<&mut Attempt> {
        self.of_mut(attempt.task.phase)?.attempt_mut(attempt)
    }

    pub(crate) fn attempt(&self, attempt: &AttemptId) -> Option<&Attempt> {
        self.of(attempt.task.phase)?.attempt(attempt)
    }

    /// A job that merges while runs are missing, or newer than their list, is being repaired.
    ///
    /// # Errors
    /// Says that it is not, or need not be.
    pub(crate) fn check_repair(&self, merging: bool, stale: bool) -> Result<(), String> {
        let needed = merging && (stale || !self.losing.is_empty());
        match &self.repair {
            Some(repair) if !merging || repair.tasks.phase != Phase::Sort => {
                Err("it does not merge and is being repaired".to_owned())
            }
            repair if repair.is_some() != needed => Err(format!(
                "repair needed: {needed}, under way: {}, losses on their way: {:?}",
                repair.is_some(),
                self.losing
            )),
            _ => Ok(()),
        }
    }
}
