//! The job machine: facts and the time go in, effects come out. It opens no socket, reads no clock
//! and draws nothing at random, so a conversation with it is the same every time it is held.
//!
//! Its rooms:
//!
//! ```text
//! law      what may follow what
//! ledger/  what the journal says; records out, acknowledgements in
//! pool/    members, silence, owners, stragglers, and the policies behind them
//! tasks/   grants, attempts, reports, lineage
//! flow/    submit, stages, barriers, commit, end, clean-up, take-over
//! view/    status, figures, alerts, letters, recoveries: what people see
//! ```
//!
//! **Persist before tell.** A decision leaves as [`Effect::Append`]. Nothing else happens until
//! [`Input::Appended`] is back; then the record is folded into [`ledger::durable::Durable`], by the
//! same function that replays the journal, and what follows from it goes out. What only this leader
//! knows (tasks, workers) may be lost at any time.

use std::collections::BTreeSet;
use std::sync::Arc;

use muster_platform::config::Config;
use muster_platform::store::BlobUrl;
use muster_protocol::api::Event;
use muster_protocol::ids::{AttemptId, DeploymentId, Epoch, JobId, Phase, WorkerId};
use muster_protocol::{Error, Result};

pub mod flow;
pub mod invariant;
pub mod io;
pub mod law;
pub mod ledger;
mod outages;
pub mod pool;
mod tasks;
#[cfg(test)]
mod tests;
pub mod view;

use flow::Flow;
use flow::active::Active;
use flow::jobs::Jobs;
use io::{Effect, Input, RefusalCode, Reply, ReplyTo};
use law::Step;
use ledger::durable::Durable;
use outages::Outages;
use pool::Pool;
use pool::policies::absence::Absence;
use view::View;
use view::tally::Counted;

/// Most jobs that run at once.
pub const JOBS_MAX: usize = 1000;

/// The machine of one leader.
#[derive(Debug)]
pub struct Machine {
    config: Config,
    bucket: Option<BlobUrl>,
    deployment: DeploymentId,
    epoch: Epoch,
    nonces: Nonces,
    /// What is left to chance in pauses; a stream of its own, so that a pause does not change a
    /// nonce.
    jitter: Nonces,
    now_ms: u64,
    /// The Unix time of the machine's zero, for people.
    unix_zero_ms: u64,
    absence: Option<Absence>,
    /// How much time has been forgiven so far: the leader was not there.
    forgiven_ms: u64,
    jobs: Jobs,
    flow: Flow,
    ledger: ledger::Pending,
    outages: Outages,
    pool: Pool,
    timers: BTreeSet<(u64, Timer)>,
    /// When this leader began.
    led_since_ms: u64,
    counters: Counters,
    view: View,
    out: Vec<Effect>,
}

/// What should not happen, counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Records that contradicted the state.
    pub illegal: u64,
    /// Messages of an old epoch, of a former life of a worker, or about attempts that do not count.
    pub foreign: u64,
    /// Messages that break the protocol.
    pub violations: u64,
}

/// Something to do at a time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    /// The grace after a take-over is over.
    GraceEnds,
    /// An order to run was not answered.
    Resend(JobId, AttemptId),
    /// A task that failed can be tried again.
    Requeue(JobId, Phase, u32),
    /// A worker that was busy can be asked again.
    Unpause(WorkerId),
    /// A step with the store is tried again.
    Store(JobId),
    /// A revoked upload is aborted again.
    Abort(JobId, AttemptId),
    /// Workers that do not confirm that they let go are no longer waited for.
    LetGo(JobId),
    /// The scratch of a job that was cleaned is looked at once more.
    SweepLate(JobId),
}

/// Numbers that tell attempts and objects apart: SplitMix64 from the nonce that the epoch drew when
/// it began.
#[derive(Debug)]
struct Nonces(u64);

impl Nonces {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

impl Machine {
    /// The machine of the leader whose epoch the journal began last. [`Input::Began`] starts it.
    ///
    /// # Errors
    /// `Bug` where the journal has no deployment.
    pub fn new(config: Config, bucket: Option<BlobUrl>, durable: Durable) -> Result<Self> {
        let deployment = durable
            .deployment
            .clone()
            .ok_or_else(|| Error::bug("the journal names no deployment"))?;
        Ok(Self {
            config,
            bucket,
            deployment,
            epoch: durable.epoch,
            nonces: Nonces(durable.nonce),
            jitter: Nonces(!durable.nonce),
            now_ms: 0,
            unix_zero_ms: 0,
            absence: None,
            forgiven_ms: 0,
            flow: Flow::new(&durable),
            jobs: Jobs::new(durable),
            ledger: ledger::Pending::default(),
            outages: Outages::none(),
            pool: Pool::new(),
            timers: BTreeSet::new(),
            led_since_ms: 0,
            counters: Counters::default(),
            view: View::new(),
            out: Vec::new(),
        })
    }

    /// The leader's term.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Which deployment it leads.
    pub fn deployment(&self) -> &DeploymentId {
        &self.deployment
    }

    /// What the journal says.
    pub fn durable(&self) -> &Durable {
        self.jobs.durable()
    }

    /// The jobs that have not ended, or are just ending, with their OUTPUTs.
    pub fn outputs(&self) -> Vec<(JobId, BlobUrl)> {
        let works = |active: &Active| {
            !matches!(active.step(), Step::Stopping | Step::Cleaning | Step::Closing)
        };
        self.jobs
            .at_work()
            .iter()
            .filter(|(_, job)| works(job))
            .map(|(id, job)| (id.clone(), job.output.clone()))
            .collect()
    }

    /// Whether the journal knows a job.
    pub fn knows(&self, job: &JobId) -> bool {
        self.jobs.durable().jobs.contains_key(job)
    }

    /// Whether a job is being planned.
    pub fn plans(&self, job: &JobId) -> bool {
        self.flow.planning().contains_key(job)
    }

    /// What should not happen, counted.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// When the next timer is due, on the clock that `step` is given.
    pub fn next_due_ms(&self) -> Option<u64> {
        self.timers.first().map(|(due_ms, _)| *due_ms)
    }

    /// Takes one fact and gives what follows from it, in order. `now_ms` is a clock that never goes
    /// back.
    pub fn step(&mut self, now_ms: u64, input: Input) -> Vec<Effect> {
        self.pass_time(now_ms, &input);
        match input {
            Input::Began { unix_ms } => self.take_over(unix_ms),
            Input::Tick => self.tick(),
            Input::Connection { up } => self.connection(up),
            Input::JournalStalled { why } => self.journal_stalls(why),
            Input::StoresAway { away } => self.outages.stores(away),
            Input::NatsServers { away } => self.nats_servers(away),
            Input::JournalRoom { used_percent } => self.outages.journal_room(used_percent),
            Input::Appended { token, sequence } => self.appended(token, sequence),
            Input::Submit { to, spec, unix_ms } => self.submit(to, *spec, unix_ms),
            Input::AskStatus { to, job } => self.ask_status(to, &job),
            Input::AskJobs { to } => self.ask_jobs(to),
            Input::AskWorkers { to } => self.ask_workers(to),
            Input::Cancel { to, job } => self.cancel(to, &job),
            Input::Drain { to, worker } => self.drain(to, &worker),
            Input::Register { to, register } => self.register(to, *register),
            Input::Report { to, report } => self.report(to, *report),
            Input::AskPhase { to, query } => self.ask_phase(to, &query.job),
            Input::Heartbeat(heartbeat) => self.heartbeat(*heartbeat),
            Input::Recoveries(recoveries) => self.recoveries_told(*recoveries),
            Input::RunAnswered { worker, job, attempt, reply } => {
                self.run_answered(&worker, &job, &attempt, reply);
            }
            Input::CancelAnswered { job, attempt, answered } => {
                self.cancel_answered(&job, &attempt, answered);
            }
            Input::Listed { job, ticket, result } => self.listed(&job, ticket, result),
            Input::ObjectWritten { ticket, result } => self.object_written(ticket, result),
            Input::PlanLoaded { job, result } => self.plan_loaded(&job, result),
            Input::SamplesLoaded { job, attempt, result } => {
                self.samples_loaded(&job, &attempt, result);
            }
            Input::SplittersChosen { job, result } => self.splitters_chosen(&job, result),
            Input::UploadAborted { job, attempt, result } => {
                self.upload_aborted(&job, &attempt, result);
            }
            Input::Published { job, result } => self.published(&job, result),
            Input::Cleaned { job, result } => self.cleaned(&job, result),
            Input::SweptLate { job, result } => self.swept_late(&job, result),
        }
        self.schedule();
        self.publish_urgent();
        std::mem::take(&mut self.out)
    }

    /// Time goes by. What of it the leader missed (a stopped process, a suspended machine, a lost
    /// connection) counts against nobody.
    fn pass_time(&mut self, now_ms: u64, input: &Input) {
        self.now_ms = self.now_ms.max(now_ms);
        let (now_ms, interval_ms) = (self.now_ms, self.config.heartbeat.interval_ms);
        let absence = self.absence.get_or_insert_with(|| Absence::new(now_ms, interval_ms));
        let missed_ms = match input {
            Input::Connection { up } => absence.connection(&self.config.detector, now_ms, *up),
            _ => absence.observe(&self.config.detector, now_ms),
        };
        if missed_ms == 0 {
            return;
        }
        self.forgiven_ms = self.forgiven_ms.saturating_add(missed_ms);
        self.pool.forgive(now_ms, missed_ms);
        for (_, job) in self.jobs.at_work_mut() {
            job.forgive(now_ms, missed_ms);
        }
    }

    /// A clock that stands still while the leader is away: progress is measured by it.
    fn fair_ms(&self) -> u64 {
        self.now_ms.saturating_sub(self.forgiven_ms)
    }

    fn tick(&mut self) {
        while let Some((due_ms, _)) = self.timers.first()
            && *due_ms <= self.now_ms
        {
            if let Some((_, timer)) = self.timers.pop_first() {
                self.due(timer);
            }
        }
        self.tell_refusals();
        self.watch_pool();
        self.watch_owners();
        self.watch_phases();
        self.tell_broken();
        if self.flow.is_retention_due(self.now_ms) {
            self.forget_old();
        }
        self.publish_news();
    }

    fn due(&mut self, timer: Timer) {
        match timer {
            Timer::GraceEnds => self.end_grace(),
            Timer::Resend(job, attempt) => self.resend(&job, &attempt),
            Timer::Requeue(job, phase, index) => self.requeue(&job, phase, index),
            Timer::Unpause(worker) => self.pool.unpause(&worker),
            Timer::Store(job) => self.retry_store_step(&job),
            Timer::Abort(job, attempt) => self.abort_revoked(&job, &attempt),
            Timer::LetGo(job) => self.stop_waiting(&job),
            Timer::SweepLate(job) => self.sweep_late(&job),
        }
    }

    /// The Unix time in milliseconds; only people read it.
    fn unix_ms(&self) -> u64 {
        self.unix_zero_ms.saturating_add(self.now_ms)
    }

    fn after(&mut self, pause_ms: u64, timer: Timer) {
        self.timers.insert((self.now_ms.saturating_add(pause_ms), timer));
    }

    fn reply(&mut self, to: ReplyTo, reply: Reply) {
        self.out.push(Effect::Reply { to, reply });
    }

    fn refuse(&mut self, to: ReplyTo, code: RefusalCode, error: Error) {
        self.view.count(Counted::RequestRefused(code));
        self.reply(to, Reply::Refused { code, error });
    }

    fn event(&mut self, job: Option<&JobId>, severity: &str, kind: &str, text: impl Into<String>) {
        let event = Event {
            unix_ms: 0,
            epoch: self.epoch.0,
            job: job.cloned(),
            severity: severity.to_owned(),
            kind: kind.to_owned(),
            text: Error::bug(text).message,
        };
        self.out.push(Effect::Event(event));
    }
}

/// A time since when something is so, where the leader itself was away for a while.
fn forgiven(since_ms: u64, now_ms: u64, missed_ms: u64) -> u64 {
    since_ms.saturating_add(missed_ms).min(now_ms)
}

/// Two OUTPUTs that are one, or lie in one another.
pub(crate) fn overlap(a: &BlobUrl, b: &BlobUrl) -> bool {
    a.contains(b) || b.contains(a)
}

/// A plan that many may hold.
type SharedPlan = Arc<muster_protocol::plan::Plan>;
