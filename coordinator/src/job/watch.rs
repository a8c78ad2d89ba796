//! What the leader watches with every tick: silence and what it means, attempts that hang, waves of
//! losses, and what people should be told of.
//!
//! The policies are in [`crate::membership`]; here they are asked, and what they say becomes events
//! and attempts taken back. All of it is this leader's memory.

use std::collections::{BTreeMap, VecDeque};

use muster_common::api::WorkerStatus;
use muster_common::ids::{AttemptId, JobId, Phase, WorkerId};
use muster_common::wire::StoreLimits;
use muster_common::{Error, ErrorKind};

use super::Machine;
use super::active::{Active, Attempt, Stage};
use super::io::Effect;
use super::plan;
use super::pool::WAITING_CHARS_MAX;
use super::schedule::TakenBack;
use super::workers::{Look, Worker};
use crate::membership::breaker::{self, State, Ticket};
use crate::membership::health::{
    self, Alert, DeploymentFigures, JobFigures, Rule, Subject, Transition,
};
use crate::membership::phi::{self, Liveness};
use crate::membership::ramp;

/// Pause between two looks at what need not be looked at with every tick, in milliseconds.
const LOOK_MS: u64 = 1000;
/// An attempt that has read all of its input may take so many times as long for the rest before it
/// hangs.
const WRITING_TIMES: u64 = 3;
/// Workers that fall silent together make a partition likely, if they are so many at least; and
/// half of the pool.
const PARTITION_MIN: u32 = 2;
/// A dead worker counts as cut off for so many times the ceiling of its silence; then it is simply
/// gone.
const PARTITION_CEILINGS: u64 = 3;

/// What this leader remembers between two looks.
#[derive(Debug, Default)]
pub(super) struct Watch {
    looked_ms: u64,
    /// Tasks whose worker died in a wave: they are given out again at a bounded rate.
    pub limited: VecDeque<(JobId, Phase, u32)>,
    /// How many had fallen silent together, while they have not come back.
    partition: Option<u32>,
    /// What all living workers wait for, where that is a store.
    all_wait_for: Option<String>,
    /// Times in a row that the journal's writer could not write.
    journal_failures: u32,
    /// How full the journal's stream was when it was last asked.
    pub journal_used_percent: u32,
    /// Since when the journal cannot be written.
    outage_since_ms: Option<u64>,
    /// NATS servers that do not answer, and why.
    servers_away: Vec<(String, String)>,
}

/// Shortest outage of the journal that people are told of, in milliseconds.
const OUTAGE_MS_MIN: u64 = 1000;

impl Machine {
    /// Looks at everybody's silence, and at all that follows from time alone.
    pub(super) fn watch_pool(&mut self) {
        for (id, Look { liveness, breaker }) in self.workers.look(&self.config, self.now_ms) {
            breaker.iter().for_each(|change| self.breaker_changed(&id, change));
            liveness.iter().for_each(|change| self.liveness_changed(&id, change));
        }
        if let Some(change) = self.ramp.poll(&self.config.recovery, self.now_ms) {
            self.ramp_changed(&change);
        }
        self.give_out_limited();
        self.too_few_since_ms = match self.too_few() {
            Some(_) => self.too_few_since_ms.or(Some(self.now_ms)),
            None => None,
        };
        self.limit_stores();
        if self.now_ms.saturating_sub(self.watch.looked_ms) >= LOOK_MS {
            self.watch.looked_ms = self.now_ms;
            self.find_hung();
            self.speculate();
            self.watch_partition();
            self.watch.all_wait_for = store_of_all(self.workers.iter().map(|(_, worker)| worker));
            self.watch_health();
            for id in self.workers.forget(self.now_ms, self.config.pool.forget_ms) {
                self.forget_alerts(&Subject::Worker(id));
            }
        }
    }

    /// Why the pool is too small to work, with numbers.
    pub(super) fn too_few(&self) -> Option<String> {
        let (pool, counts) = (&self.config.pool, self.workers.counts());
        let share = u64::from(counts.there) * 100;
        if counts.alive == 0 {
            Some("no worker".to_owned())
        } else if counts.there < pool.min_workers {
            Some(format!(
                "{} workers of at least {} (pool.min_workers)",
                counts.there, pool.min_workers
            ))
        } else if share < u64::from(counts.part) * u64::from(pool.min_alive_percent) {
            Some(format!(
                "{} of {} workers live, {} % should (pool.min_alive_percent)",
                counts.there, counts.part, pool.min_alive_percent
            ))
        } else {
            None
        }
    }

    pub(super) fn liveness_changed(&mut self, id: &WorkerId, change: &phi::Change) {
        let silence_ms = change.silence_ms;
        let critical =
            self.workers.get(id).is_some_and(|worker| health::is_critical(&worker.info.labels));
        match (change.from, change.to) {
            (_, Liveness::Suspect) => {
                let text =
                    format!("nothing was heard of {id} for {silence_ms} ms; it gets no new work");
                self.event(None, "warning", "worker-suspect", text);
            }
            (_, Liveness::Dead) => {
                let severity = if critical { "error" } else { "warning" };
                let text = format!(
                    "nothing was heard of {id} for {silence_ms} ms; what it ran goes to others"
                );
                self.event(None, severity, "worker-lost", text);
                self.tally.workers_lost += 1;
                let alive = self.workers.counts().alive;
                if let Some(change) = self.ramp.lost(&self.config.recovery, self.now_ms, alive) {
                    self.ramp_changed(&change);
                }
                self.take_all_back(
                    id,
                    &TakenBack::Died(format!("nothing was heard of it for {silence_ms} ms")),
                );
            }
            (Liveness::Dead, _) => {
                let text = format!(
                    "{id} is heard again after {silence_ms} ms; what it ran has gone to others"
                );
                self.event(None, "info", "worker-back", text);
            }
            (Liveness::Suspect, _) => {
                self.event(
                    None,
                    "info",
                    "worker-back",
                    format!("{id} is heard again after {silence_ms} ms"),
                );
            }
            (Liveness::Healthy | Liveness::Rejoined, _) => {}
        }
    }

    fn breaker_changed(&mut self, id: &WorkerId, change: &breaker::Change) {
        let cause = match change.cause {
            breaker::Cause::InARow(failures) => {
                format!("{failures} of its attempts failed in a row")
            }
            breaker::Cause::Rate(totals) => {
                format!("{} of its last {} attempts failed", totals.failed, totals.ended)
            }
            breaker::Cause::TimeOver => "it may try again".to_owned(),
            breaker::Cause::TrialSucceeded => "its trial succeeded".to_owned(),
            breaker::Cause::TrialFailed => "its trial failed".to_owned(),
        };
        let (severity, kind, then) = match change.to {
            State::Open { until_ms } => {
                let pause_ms = until_ms.saturating_sub(self.now_ms);
                ("warning", "breaker-open", format!("it gets no work for {pause_ms} ms"))
            }
            State::HalfOpen => ("info", "breaker-half-open", "it gets one attempt".to_owned()),
            State::Closed => ("info", "breaker-closed", "it gets work again".to_owned()),
        };
        self.event(None, severity, kind, format!("{id}: {cause}; {then}"));
    }

    fn ramp_changed(&mut self, change: &ramp::Change) {
        match change {
            ramp::Change::WaveBegan { lost, of, rate_per_s } => {
                let text = format!(
                    "{lost} of {of} workers were lost lately; at first {rate_per_s} of their tasks \
                        a second go to others, and new jobs are refused"
                );
                self.event(None, "error", "wave-began", text);
            }
            ramp::Change::Rate { from_per_s, to_per_s } => {
                let text =
                    format!("{to_per_s} lost tasks a second go to others, after {from_per_s}");
                self.event(None, "info", "wave-rate", text);
            }
            ramp::Change::WaveOver { lost, lasted_ms } => {
                let text = format!("no worker was lost lately, after {lost} in {lasted_ms} ms");
                self.event(None, "info", "wave-over", text);
            }
        }
    }

    /// Shares what a store that throttles can bear among the workers.
    fn limit_stores(&mut self) {
        let alive = self.workers.counts().alive;
        let Some(say) = self.limits.poll(&self.config.limits, self.now_ms, alive) else { return };
        if say.turned {
            let (severity, kind, text) = match self.limits.rate_per_s() {
                Some(rate) => (
                    "warning",
                    "store-throttles",
                    format!("a store asks for fewer requests: {rate} a second at first"),
                ),
                None => (
                    "info",
                    "store-recovered",
                    "no store asks for fewer requests any more".to_owned(),
                ),
            };
            self.event(None, severity, kind, text);
        }
        let limits = StoreLimits { epoch: self.epoch, requests_per_s: say.worker_per_s };
        self.out.push(Effect::LimitStores(limits));
    }

    fn give_out_limited(&mut self) {
        while !self.watch.limited.is_empty() && self.ramp.take(self.now_ms) {
            if let Some((job, phase, index)) = self.watch.limited.pop_front() {
                self.requeue(&job, phase, index);
            }
        }
    }

    /// An attempt is about to be given to a worker: its breaker counts it.
    pub(super) fn begin_with(&mut self, id: &WorkerId) -> Option<Ticket> {
        let (config, now_ms) = (&self.config, self.now_ms);
        let (ticket, change) = self.workers.update(id, |worker| {
            let begun = worker.breaker.begin(&config.breaker, now_ms);
            worker.look(config, now_ms);
            begun
        })?;
        change.iter().for_each(|change| self.breaker_changed(id, change));
        ticket
    }

    /// An attempt ended without a result: whose fault it was decides what becomes of its worker.
    pub(super) fn end_with(&mut self, job: &JobId, attempt: &Attempt, why: &TakenBack) {
        let fault = match why {
            TakenBack::Failed(error) => is_the_workers(error),
            TakenBack::Lost(_) => true,
            TakenBack::Died(_) | TakenBack::HandedBack => false,
        };
        let (config, now_ms) = (&self.config, self.now_ms);
        let change = self.workers.update(&attempt.worker, |worker| {
            let change = match attempt.ticket {
                Some(ticket) if fault => worker.breaker.failed(&config.breaker, now_ms, ticket),
                Some(ticket) => {
                    worker.breaker.abandoned(ticket);
                    None
                }
                None => None,
            };
            if fault {
                worker.ended.record(now_ms, 0, 1);
            }
            worker.look(config, now_ms);
            change
        });
        change.flatten().iter().for_each(|change| self.breaker_changed(&attempt.worker, change));
        if *why == TakenBack::HandedBack {
            return;
        }
        if let Some(active) = self.active.get_mut(job) {
            active.failures_in_a_row = active.failures_in_a_row.saturating_add(1);
            let tasks = active.tasks_of(attempt.id.task.phase);
            let again =
                tasks.is_some_and(|tasks| tasks.history.contains_key(&attempt.id.task.index));
            if again {
                self.ramp.failed();
            }
        }
    }

    /// An attempt's result counts: its worker works well, and at some rate.
    pub(super) fn succeed_with(&mut self, job: &JobId, attempt: &Attempt) {
        let elapsed_ms = self.fair_ms().saturating_sub(attempt.began_ms);
        let said = attempt.bytes_total.max(attempt.bytes_done);
        let bytes = if said > 0 { said } else { self.size_of(job, attempt.id.task) };
        let Some(active) = self.active.get_mut(job) else { return };
        active.failures_in_a_row = 0;
        let pace = active.tasks_of_mut(attempt.id.task.phase).and_then(|tasks| {
            if bytes > 0 {
                tasks.rates.finished(bytes, elapsed_ms);
            }
            tasks.pace
        });
        self.ramp.succeeded();
        let (config, now_ms) = (&self.config, self.now_ms);
        let change = self.workers.update(&attempt.worker, |worker| {
            worker.attempts.remove(&(job.clone(), attempt.id));
            worker.ended.record(now_ms, 1, 0);
            if let Some(pace) = pace.filter(|_| bytes > 0) {
                let rate = crate::membership::speculation::rate(bytes, elapsed_ms);
                worker.speed.observe(rate, pace.median);
            }
            let change = attempt
                .ticket
                .and_then(|ticket| worker.breaker.succeeded(&config.breaker, now_ms, ticket));
            worker.look(config, now_ms);
            change
        });
        change.flatten().iter().for_each(|change| self.breaker_changed(&attempt.worker, change));
    }

    /// Takes back attempts whose worker is heard while they do not get on. Where the journal or a
    /// store keeps everybody waiting, that is nobody's fault.
    fn find_hung(&mut self) {
        if self.journal_stalled.is_some() || !self.connected || self.limits.rate_per_s().is_some() {
            return;
        }
        let mut hung: Vec<(WorkerId, JobId, AttemptId, u64)> = Vec::new();
        for (id, worker) in self.workers.iter() {
            if !worker.is_alive() || worker.health.waiting_for.is_some() {
                continue;
            }
            for (job, attempt) in &worker.attempts {
                let Some(active) = self.active.get(job).filter(|active| active.trouble.is_none())
                else {
                    continue;
                };
                let hang_ms = active.config.speculation.hang_ms;
                if let Some(idle_ms) =
                    active.attempt(attempt).and_then(|attempt| self.hangs(attempt, hang_ms))
                {
                    hung.push((id.clone(), job.clone(), *attempt, idle_ms));
                }
            }
        }
        for (worker, job, attempt, idle_ms) in hung {
            let why = format!("it made no progress for {idle_ms} ms (speculation.hang_ms)");
            self.event(
                Some(&job),
                "warning",
                "attempt-hung",
                format!("{attempt} on {worker}: {why}"),
            );
            self.take_back(&job, &attempt, &TakenBack::Lost(why));
            self.cancel_attempt(&worker, &job, &attempt);
        }
    }

    fn hangs(&self, attempt: &Attempt, hang_ms: u64) -> Option<u64> {
        if !attempt.accepted || attempt.recording.is_some() {
            return None;
        }
        let idle_ms = self.fair_ms().saturating_sub(attempt.progress_ms);
        // A byte that is read is half done; what comes then is ordering and writing, of which less
        // is heard.
        let all_read = attempt.bytes_total > 0 && attempt.bytes_done >= attempt.bytes_total / 2;
        let reading_ms = attempt.progress_ms.saturating_sub(attempt.began_ms);
        let writing_ms = if all_read { reading_ms.saturating_mul(WRITING_TIMES) } else { 0 };
        (idle_ms >= hang_ms.max(writing_ms)).then_some(idle_ms)
    }

    /// Many that fall silent together are more likely cut off than dead.
    fn watch_partition(&mut self) {
        let recent_ms = self.config.detector.ceiling_ms.saturating_mul(PARTITION_CEILINGS);
        let cut_off = |worker: &Worker| match worker.detector.state() {
            Liveness::Suspect => true,
            Liveness::Dead => worker.detector.silence_ms(self.now_ms) < recent_ms,
            Liveness::Healthy | Liveness::Rejoined => false,
        };
        let count = self
            .workers
            .iter()
            .filter(|(_, worker)| worker.takes_part() && cut_off(worker))
            .count();
        let (silent, part) = (u32::try_from(count).unwrap_or(u32::MAX), self.workers.counts().part);
        match self.watch.partition {
            None if silent >= PARTITION_MIN && silent.saturating_mul(2) >= part => {
                self.watch.partition = Some(silent);
                let text = format!(
                    "{silent} of {part} workers fell silent together: they, or the coordinator, \
                        may be cut off from NATS"
                );
                self.event(None, "warning", "partition-suspected", text);
            }
            Some(before) if silent == 0 => {
                self.watch.partition = None;
                let there = self.workers.counts().there;
                let text = format!(
                    "{there} of {part} workers are heard, after {before} had fallen silent together"
                );
                // Those that never came back were no partition.
                let (severity, kind) = if there >= part {
                    ("info", "partition-healed")
                } else {
                    ("warning", "partition-over")
                };
                self.event(None, severity, kind, text);
            }
            Some(before) => self.watch.partition = Some(before.max(silent)),
            None => {}
        }
    }

    pub(super) fn connection(&mut self, up: bool) {
        if up == self.connected {
            return;
        }
        self.connected = up;
        if up {
            self.event(
                None,
                "info",
                "partition-healed",
                "the coordinator's connection to NATS stands again",
            );
        } else {
            let text = "the coordinator's own connection to NATS is lost; nobody's silence counts \
                until it is back";
            self.event(None, "warning", "partition-suspected", text);
        }
    }

    pub(super) fn journal_stalls(&mut self, why: Option<String>) {
        self.watch.journal_failures =
            if why.is_some() { self.watch.journal_failures.saturating_add(1) } else { 0 };
        let before = std::mem::replace(&mut self.journal_stalled, why);
        match (before, &self.journal_stalled) {
            (None, Some(_)) => self.watch.outage_since_ms = Some(self.now_ms),
            (Some(why), None) => self.tell_outage(&why),
            _ => {}
        }
    }

    fn tell_outage(&mut self, why: &str) {
        let since_ms = self.watch.outage_since_ms.take().unwrap_or(self.now_ms);
        let lasted_ms = self.now_ms.saturating_sub(since_ms);
        if lasted_ms >= OUTAGE_MS_MIN {
            let text = format!(
                "for {lasted_ms} ms the journal could not be written ({why}); nothing was committed"
            );
            self.event(None, "warning", "journal-back", text);
        }
    }

    /// The servers of a NATS cluster that do not answer: each is named as it goes, and as it comes
    /// back.
    pub(super) fn nats_servers(&mut self, away: Vec<(String, String)>) {
        let before = std::mem::take(&mut self.watch.servers_away);
        let is_in =
            |list: &[(String, String)], server: &str| list.iter().any(|(known, _)| known == server);
        for (server, why) in away.iter().filter(|(server, _)| !is_in(&before, server)) {
            self.event(
                None,
                "warning",
                "nats-server-away",
                format!("the NATS server {server} does not answer: {why}"),
            );
        }
        for (server, _) in before.iter().filter(|(server, _)| !is_in(&away, server)) {
            self.event(
                None,
                "info",
                "nats-server-back",
                format!("the NATS server {server} answers again"),
            );
        }
        self.watch.servers_away = away;
    }

    /// Gives all figures to the rules; what is raised or cleared becomes an event.
    fn watch_health(&mut self) {
        let mut transitions = Vec::new();
        let deployment = self.deployment_figures();
        let (settings, now_ms) = (&self.config.alerts, self.now_ms);
        transitions.extend(self.alerts.deployment(settings, now_ms, &deployment));
        for (id, worker) in self.workers.iter().filter(|(_, worker)| !worker.left) {
            let figures = worker.figures(&self.config, now_ms, spill_bytes(&self.active, worker));
            transitions.extend(self.alerts.worker(settings, now_ms, id, &figures));
        }
        let jobs: Vec<(JobId, JobFigures)> = self
            .active
            .iter()
            .map(|(job, active)| (job.clone(), self.job_figures(job, active)))
            .collect();
        for (job, figures) in jobs {
            transitions.extend(self.alerts.job(settings, now_ms, &job, &figures));
        }
        self.tell_alerts(transitions);
    }

    /// The store that keeps all workers of a job waiting: those that are at work on it, or where
    /// there is none, all that live.
    pub(super) fn all_wait_for(&self, active: &Active) -> Option<String> {
        if active.running() == 0 {
            return self.watch.all_wait_for.clone();
        }
        store_of_all(
            active.running_attempts().filter_map(|attempt| self.workers.get(&attempt.worker)),
        )
    }

    fn deployment_figures(&mut self) -> DeploymentFigures {
        let waiting =
            |active: &Active| active.all_tasks().map(|tasks| tasks.queue.len()).sum::<usize>();
        let tasks_waiting: usize = self.active.values().map(waiting).sum();
        DeploymentFigures {
            journal_write_ms: self.ledger.slowest_ms(self.now_ms),
            journal_failures_in_a_row: self.watch.journal_failures,
            journal_used_percent: self.watch.journal_used_percent,
            journal_waiting: self.ledger.waiting(),
            tasks_waiting: u32::try_from(tasks_waiting).unwrap_or(u32::MAX),
            slots: self.workers.slots(),
        }
    }

    fn job_figures(&self, job: &JobId, active: &Active) -> JobFigures {
        let waits = self
            .durable
            .jobs
            .get(job)
            .is_some_and(|durable| self.waiting_for(durable, Some(active)).is_some());
        let works = active.stage == Stage::Working && !waits;
        let idle_ms = if works { self.now_ms.saturating_sub(active.moved_ms) } else { 0 };
        JobFigures { idle_ms, failures_in_a_row: active.failures_in_a_row }
    }

    /// Somebody is gone: what was raised about them is cleared.
    pub(super) fn forget_alerts(&mut self, subject: &Subject) {
        let cleared = self.alerts.forget(self.now_ms, subject);
        self.tell_alerts(cleared);
    }

    fn tell_alerts(&mut self, transitions: Vec<Transition>) {
        for transition in transitions {
            if let Transition::Raised(alert) = &transition {
                *self.tally.alerts_raised.entry(alert.rule).or_default() += 1;
            }
            let (alert, severity, kind, text) = match &transition {
                Transition::Raised(alert) => {
                    (alert, alert.severity.as_str(), "alert-raised", alert.text.clone())
                }
                Transition::Cleared(alert, lasted_ms) => {
                    (alert, "info", "alert-cleared", format!("after {lasted_ms} ms"))
                }
            };
            let job = if let Subject::Job(job) = &alert.subject { Some(job.clone()) } else { None };
            let text = format!("{} of {}: {text}", alert.rule.as_str(), alert.subject);
            self.event(job.as_ref(), severity, kind, text);
        }
    }

    /// Names of the alerts about a job and about the deployment.
    pub(super) fn alerts_of(&self, job: &JobId) -> Vec<String> {
        let about = |subject: &Subject| match subject {
            Subject::Deployment => true,
            Subject::Job(known) => known == job,
            Subject::Worker(_) => false,
        };
        let raised = self.alerts.raised().filter(|alert| about(&alert.subject));
        let servers =
            self.watch.servers_away.iter().map(|(server, _)| format!("nats-server-away {server}"));
        raised.map(|alert| alert.rule.as_str().to_owned()).chain(servers).collect()
    }

    pub(super) fn worker_status(&self, worker: &Worker) -> WorkerStatus {
        let about =
            |subject: &Subject| matches!(subject, Subject::Worker(id) if *id == worker.info.worker);
        // The alert stays raised for a while, lest it comes and goes; of one that is heard of again
        // it says nothing any more.
        let holds = |alert: &&Alert| alert.rule != Rule::WorkerDown || !worker.is_alive();
        let raised = self.alerts.raised().filter(|alert| about(&alert.subject)).filter(holds);
        let alerts = raised.map(|alert| alert.rule.as_str().to_owned()).collect();
        let done = self.durable.done.get(&worker.info.worker).copied().unwrap_or(0);
        let tasks_done = u32::try_from(done).unwrap_or(u32::MAX);
        WorkerStatus { alerts, tasks_done, ..worker.status(&self.config, self.now_ms) }
    }
}

/// What the running sort tasks of a worker may still spill, in bytes: those whose split does not
/// fit into their share of its memory.
fn spill_bytes(active: &BTreeMap<JobId, Active>, worker: &Worker) -> u64 {
    let fits = plan::sortable_bytes(worker.task_bytes());
    let sorts = worker.attempts.iter().filter(|(_, id)| id.task.phase == Phase::Sort);
    let running = sorts.filter_map(|(job, id)| active.get(job)?.attempt(id));
    running.filter(|attempt| attempt.bytes_total > fits).fold(0, |sum: u64, attempt| {
        sum.saturating_add(attempt.bytes_total.saturating_sub(attempt.bytes_done))
    })
}

/// What the first of these workers waits for, if each that lives waits for a store.
fn store_of_all<'a>(workers: impl Iterator<Item = &'a Worker>) -> Option<String> {
    let mut waits = workers.filter(|worker| worker.is_alive()).map(Worker::waits_for_store);
    let first = waits.next()??;
    waits.all(|what| what.is_some()).then(|| first.chars().take(WAITING_CHARS_MAX).collect())
}

/// Whether an attempt failed by a fault of its worker. Bad input, a store that is away or what
/// somebody else wrote is none.
fn is_the_workers(error: &Error) -> bool {
    match error.kind {
        ErrorKind::Retry
        | ErrorKind::Corrupt
        | ErrorKind::Exhausted
        | ErrorKind::OutOfMemory
        | ErrorKind::Bug
        | ErrorKind::Setup
        | ErrorKind::WorkerDied => true,
        ErrorKind::Fenced
        | ErrorKind::Invalid
        | ErrorKind::NotFound
        | ErrorKind::Throttled
        | ErrorKind::NeedsMemory { .. } => false,
    }
}
