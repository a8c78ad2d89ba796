//! What the leader knows of a job beyond the journal: tasks of the phase at hand, their attempts,
//! and what it waits for. All of it is lost with the leader, and made again from the journal by the
//! next one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use muster_common::Result;
use muster_common::config::Config;
use muster_common::ids::{AttemptId, Phase};
use muster_common::plan::{BadInputs, Plan};
use muster_common::store::BlobUrl;
use muster_kernel::splitters::Splitter;

use serde::Deserialize;

use crate::job::ledger::durable::DurableJob;
use crate::job::pool::owners::Owners;
use crate::job::tasks::lineage::Repair;
use crate::job::tasks::table::{Attempt, PhaseTasks};
use crate::job::view::recoveries::Recoveries;

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
pub(crate) fn settings_of(job: &DurableJob, config: &Config) -> Config {
    Asked::of(&job.submitted.spec_json).settings(config)
}

/// What happens to a job at the moment. One thing at a time: whoever starts the next step sets the
/// stage, so no effect goes out twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
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
pub(crate) struct Active {
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
    pub(crate) fn new(
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
    pub(crate) fn is_quiet(&self) -> bool {
        self.letting_go.is_empty() && self.writing == 0
    }

    pub(crate) fn running(&self) -> u32 {
        self.all_tasks().map(|tasks| tasks.running).sum()
    }

    pub(crate) fn running_attempts(&self) -> impl Iterator<Item = &Attempt> {
        self.all_tasks().flat_map(PhaseTasks::running_attempts)
    }

    /// The tasks of the phase at hand, and those of a repair beside it.
    pub(crate) fn all_tasks(&self) -> impl Iterator<Item = &PhaseTasks> {
        self.tasks.iter().chain(self.repair.iter().map(|repair| &repair.tasks))
    }

    /// Those of them that are of one phase.
    pub(crate) fn tasks_of(&self, phase: Phase) -> Option<&PhaseTasks> {
        self.all_tasks().find(|tasks| tasks.phase == phase)
    }

    pub(crate) fn tasks_of_mut(&mut self, phase: Phase) -> Option<&mut PhaseTasks> {
        let repair = self.repair.as_mut().map(|repair| &mut repair.tasks);
        self.tasks.iter_mut().chain(repair).find(|tasks| tasks.phase == phase)
    }

    /// The tasks that are granted at the moment: no merge begins while runs are missing.
    pub(crate) fn granted_from(&self) -> Option<&PhaseTasks> {
        self.repair.as_ref().map(|repair| &repair.tasks).or(self.tasks.as_ref())
    }

    /// Whether it has something to grant.
    pub(crate) fn may_run(&self) -> bool {
        let waiting = self.granted_from().is_some_and(|tasks| !tasks.queue.is_empty());
        waiting
            && self.stage == Stage::Working
            && !self.held_back
            && self.plan.is_some()
            && !self.awaits_loss()
    }

    /// Whether the record of a loss or of an omission is on its way: what is to be done next
    /// depends on it.
    pub(crate) fn awaits_loss(&self) -> bool {
        !self.losing.is_empty() || !self.skipping.is_empty()
    }

    /// The attempt under way for a task, if it is this one.
    pub(crate) fn attempt_mut(&mut self, attempt: &AttemptId) -> Option<&mut Attempt> {
        self.tasks_of_mut(attempt.task.phase)?.attempt_mut(attempt)
    }

    pub(crate) fn attempt(&self, attempt: &AttemptId) -> Option<&Attempt> {
        self.tasks_of(attempt.task.phase)?.attempt(attempt)
    }

    /// Milliseconds since the phase, or the step after it, began, under whichever leader.
    pub(crate) fn elapsed_ms(&self, now_ms: u64) -> u64 {
        self.before_ms.saturating_add(now_ms.saturating_sub(self.began_ms))
    }

    /// A phase, or the step after it, begins under this leader.
    pub(crate) fn begins(&mut self, now_ms: u64) {
        self.began_ms = now_ms;
        if self.stage == Stage::Deciding {
            self.before_ms = 0;
            // Nobody can hold an attempt of a phase that begins only now.
            self.held_back = false;
        }
    }

    /// The step with the store at hand failed once more: for how long it does by now, in
    /// milliseconds.
    pub(crate) fn failed_again(&mut self, now_ms: u64) -> u64 {
        self.tries = self.tries.saturating_add(1);
        now_ms.saturating_sub(*self.failing_ms.get_or_insert(now_ms))
    }

    /// A step with the store went well, or another one begins.
    pub(crate) fn moved(&mut self, now_ms: u64) {
        self.moved_ms = now_ms;
        (self.tries, self.hopeless) = (0, 0);
        self.failing_ms = None;
        self.recoveries.store_mended(now_ms);
        self.trouble = None;
        self.news = true;
    }
}
