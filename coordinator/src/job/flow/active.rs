//! What the leader knows of a job beyond the journal: tasks of the phase at hand, their attempts,
//! and what it waits for. All of it is lost with the leader, and made again from the journal by the
//! next one.

use std::collections::BTreeSet;
use std::sync::Arc;

use muster_platform::config::Config;
use muster_platform::store::BlobUrl;
use muster_protocol::Result;
use muster_protocol::ids::AttemptId;
use muster_protocol::plan::{BadInputs, Plan};

use serde::Deserialize;

use crate::job::forgiven;
use crate::job::law::{Broken, Step};
use crate::job::ledger::durable::DurableJob;
use crate::job::pool::owners::Owners;
use crate::job::tasks::Tasks;
use crate::job::view::Told;

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
    step: Step,
    broken: Broken,
    /// What people are told of it.
    pub told: Told,
    /// None until it is read back after a take-over.
    pub plan: Option<Arc<Plan>>,
    /// Who alone can read which splits of the plan.
    pub owners: Owners,
    pub tasks: Tasks,
    /// How long merging had lasted when the manifest was made, which says so.
    pub(super) merged_ms: u64,
    /// Its place in the machine's order of runnable jobs, while it has one.
    pub runnable: Option<u32>,
    /// Taken over: nothing is granted before workers had time to register again.
    pub held_back: bool,
    /// Ended, and these workers have not confirmed that they let go.
    pub(super) letting_go: BTreeSet<AttemptId>,
    /// Objects of its own that the coordinator is writing to scratch.
    pub(super) writing: u32,
    /// The record of the end, while it is on its way.
    pub(super) ending: Option<u64>,
    /// When the phase, or the step after it, began.
    began_ms: u64,
    /// How long the phase had lasted when this leader took over.
    pub(super) before_ms: u64,
    /// When anything last moved.
    moved_ms: u64,
    /// Tries of the store step at hand.
    tries: u32,
    /// Those of them that failed in a way that does not pass.
    hopeless: u32,
    /// Since when it fails.
    failing_ms: Option<u64>,
    /// The clean-up was given up: what it leaves is for `doctor`.
    pub(super) given_up: bool,
    /// What the store step at hand waits for.
    trouble: Option<String>,
    /// Second attempts that were given out.
    speculations: u32,
    /// Attempts that failed since one succeeded.
    failures_in_a_row: u32,
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
            step: Step::Working,
            broken: Broken::default(),
            told: Told::of(job, now_ms),
            plan,
            owners,
            tasks: Tasks::default(),
            merged_ms: 0,
            runnable: None,
            held_back: false,
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
            speculations: 0,
            failures_in_a_row: 0,
        })
    }

    /// What happens to it at the moment.
    pub(crate) fn step(&self) -> Step {
        self.step
    }

    /// Whoever starts the next step says so here, and nowhere else.
    pub(crate) fn advance(&mut self, to: Step) {
        self.broken.check(self.step, to);
        self.step = to;
    }

    /// The list of runs is written, under a ticket: of the stage, or of a repair.
    pub(super) fn pins_runs(&mut self, ticket: u64) {
        self.writing += 1;
        if !self.tasks.pins_repair(ticket) {
            self.advance(Step::PinningRuns);
        }
    }

    /// A step against the law, of the job or of one of its tasks.
    pub(crate) fn broken(&self) -> Option<&str> {
        self.broken.why().or_else(|| self.tasks.broken())
    }

    /// The same, to be told once.
    pub(super) fn take_broken(&mut self) -> Option<String> {
        self.broken.take().or_else(|| self.tasks.take_broken())
    }

    /// Ended, and nobody writes to its scratch any more, as far as is known.
    pub(crate) fn is_quiet(&self) -> bool {
        self.letting_go.is_empty() && self.writing == 0
    }

    /// Whether it has something to grant.
    pub(crate) fn may_run(&self) -> bool {
        let waiting = self.tasks.granted_from().is_some_and(|tasks| !tasks.queue.is_empty());
        waiting
            && self.step == Step::Working
            && !self.held_back
            && self.plan.is_some()
            && !self.tasks.awaits_loss()
    }

    /// Milliseconds since the phase, or the step after it, began, under whichever leader.
    pub(crate) fn elapsed_ms(&self, now_ms: u64) -> u64 {
        self.before_ms.saturating_add(now_ms.saturating_sub(self.began_ms))
    }

    /// For how long something has been so, while the phase, or the step after it, lasted.
    pub(crate) fn meanwhile_ms(&self, now_ms: u64, since_ms: u64) -> u64 {
        now_ms.saturating_sub(since_ms.max(self.began_ms))
    }

    /// Milliseconds since anything last moved.
    pub(crate) fn idle_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.moved_ms)
    }

    /// A phase, or the step after it, begins under this leader.
    pub(crate) fn begins(&mut self, now_ms: u64) {
        self.began_ms = now_ms;
        if self.step == Step::Deciding {
            self.before_ms = 0;
            // Nobody can hold an attempt of a phase that begins only now.
            self.held_back = false;
        }
    }

    /// An attempt gets on.
    pub(crate) fn stirs(&mut self, now_ms: u64) {
        self.moved_ms = now_ms;
        self.told.news();
    }

    /// A step with the store went well, or another one begins.
    pub(crate) fn moved(&mut self, now_ms: u64) {
        (self.tries, self.hopeless) = (0, 0);
        self.failing_ms = None;
        self.told.recoveries.store_mended(now_ms);
        self.trouble = None;
        self.stirs(now_ms);
    }

    /// The leader itself was not there: that time counts against nobody.
    pub(crate) fn forgive(&mut self, now_ms: u64, missed_ms: u64) {
        self.moved_ms = forgiven(self.moved_ms, now_ms, missed_ms);
        self.failing_ms = self.failing_ms.map(|since_ms| forgiven(since_ms, now_ms, missed_ms));
        self.owners.forgive(now_ms, missed_ms);
    }

    /// The step with the store at hand failed once more: for how long it does by now, in
    /// milliseconds, and how often in a way that does not pass.
    pub(crate) fn store_failed(&mut self, now_ms: u64, passing: bool) -> (u64, u32) {
        self.tries = self.tries.saturating_add(1);
        self.hopeless += u32::from(!passing);
        (now_ms.saturating_sub(*self.failing_ms.get_or_insert(now_ms)), self.hopeless)
    }

    /// It is tried again after a pause, in milliseconds; and whether that is told, the first time.
    pub(crate) fn try_again(&mut self, why: String, jitter: u64) -> (u64, bool) {
        self.trouble = Some(why);
        (self.config.retry.store.pause_ms(self.tries, jitter), self.tries == 1)
    }

    /// What the store step at hand waits for.
    pub(crate) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// An upload waits for the store.
    pub(crate) fn waits(&mut self, why: String) {
        self.trouble = Some(why);
    }

    /// An attempt failed, or was lost.
    pub(crate) fn attempt_failed(&mut self) {
        self.failures_in_a_row = self.failures_in_a_row.saturating_add(1);
    }

    pub(crate) fn attempt_succeeded(&mut self) {
        self.failures_in_a_row = 0;
    }

    /// Attempts that failed since one succeeded.
    pub(crate) fn failures_in_a_row(&self) -> u32 {
        self.failures_in_a_row
    }

    pub(crate) fn second_began(&mut self) {
        self.speculations = self.speculations.saturating_add(1);
    }

    /// Second attempts that were given out.
    pub(crate) fn speculations(&self) -> u32 {
        self.speculations
    }

    /// The record of the end, while it is on its way.
    pub(crate) fn ending(&self) -> Option<u64> {
        self.ending
    }

    /// The clean-up is over; what it leaves is for `doctor`.
    pub(crate) fn cleaned(&mut self, now_ms: u64, given_up: bool) {
        self.given_up = given_up;
        self.advance(Step::Closing);
        self.moved(now_ms);
    }
}
