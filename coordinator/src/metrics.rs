//! The coordinator's figures as metrics, for whoever watches this process (`--http`). The machine
//! yields numbers ([`Figures`], [`Tally`]); here they get their names. What is the leader's to say
//! is 0 while this process stands by, so that sums over all coordinators are those of the
//! deployment.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use metrics::{Counter, Gauge, Histogram};
use tokio::time::Instant;

use muster_platform::vitals::{Excuse, Family, Following, Labels, Role, Vitals, value};
use muster_protocol::ids::Epoch;

use crate::job::pool::policies::health::{Class, Rule};
use crate::job::view::figures::{Figures, STATES, TaskCounts};
use crate::job::view::tally::{CODES, PHASES, TROUBLES, Tally};
use crate::job::{Counters, Machine};

/// Pause between two looks at the machine's figures, in milliseconds.
const LOOK_MS: u64 = 500;

const fn family(name: &'static str, help: &'static str) -> Family {
    Family::new(name, help)
}

const LEADING: Family =
    family("muster_leading", "Whether this coordinator leads (1) or stands by (0)");
const EPOCH: Family = family("muster_epoch", "The newest epoch that this coordinator knows");
const TAKEOVERS: Family =
    family("muster_takeovers_total", "Terms that this coordinator began to lead");
const STEPDOWNS: Family = family(
    "muster_stepdowns_total",
    "Terms of this coordinator that somebody else, or trouble, ended",
);
const WORKERS: Family = family(
    "muster_workers",
    "Workers by how fit they are; dead ones until they are forgotten (pool.forget_ms)",
);
const DRAINING: Family =
    family("muster_workers_draining", "Living workers that take no more tasks");
const BREAKERS: Family =
    family("muster_breakers", "Living workers whose circuit breaker is not closed");
const WANTED: Family = family(
    "muster_workers_wanted",
    "Workers that the open tasks would keep busy, by the mean slots of a worker; 0 without a job: \
        for an autoscaler",
);
const SLOTS: Family =
    family("muster_slots", "Attempts that the living workers which take part can run at once");
const FREE: Family =
    family("muster_slots_free", "Of them, those that could be given an attempt now");
const BACKLOG: Family =
    family("muster_backlog_tasks", "Tasks of the pool that are not under way and not done");
const JOBS: Family =
    family("muster_jobs", "Known jobs by state; ended ones until they are forgotten");
const TASKS: Family = family("muster_tasks", "Tasks of the phases at hand, by where they stand");
const ATTEMPTS: Family =
    family("muster_attempts_begun_total", "Attempts that were given to workers");
const SECONDS: Family = family("muster_speculations_total", "Second attempts of slow tasks");
const FAILED: Family = family(
    "muster_attempts_failed_total",
    "Attempts that failed, hung, or were lost with their worker",
);
const COMMITTED: Family =
    family("muster_tasks_committed_total", "Tasks whose result was committed");
const REPEATED: Family = family(
    "muster_tasks_repeated_total",
    "Committed tasks that were done anew because what they made was lost",
);
const LOST: Family = family("muster_workers_lost_total", "Workers that were taken for dead");
const ENDED: Family = family("muster_jobs_ended_total", "Jobs that ended");
const RECORDS: Family =
    family("muster_records_sorted_total", "Input records of jobs that succeeded");
const BYTES: Family = family("muster_sorted_bytes_total", "Input bytes of jobs that succeeded");
const RECOVERIES: Family =
    family("muster_recoveries_total", "Troubles of ended jobs, by kind and by what came of them");
const REFUSED: Family =
    family("muster_messages_refused_total", "Messages that did not count, by why");
const REQUESTS: Family =
    family("muster_requests_refused_total", "Requests of clients that were refused, by code");
const RAISED: Family = family("muster_alerts_raised_total", "Alerts that were raised, by rule");
const ALERTS: Family = family("muster_alerts", "Alerts that are raised now, by rule");
const APPENDS: Family = family(
    "muster_journal_appends_total",
    "Records that this coordinator appended to the journal while it led",
);
const APPEND: Family = family(
    "muster_journal_append_seconds",
    "From the order to append a record until it stands in the journal",
);
const PENDING: Family =
    family("muster_journal_pending_records", "Records on their way into the journal");
const STALLED: Family =
    family("muster_journal_stalled", "Whether the journal takes nothing at the moment (1)");
const LIMIT: Family = family(
    "muster_store_limit_requests_per_second",
    "What all workers together may ask of stores that throttle; 0 is no limit",
);

/// The metrics of one coordinator process, over all of its terms.
pub(crate) struct Meters {
    vitals: Arc<Vitals>,
    leading: Gauge,
    epoch: Gauge,
    takeovers: Counter,
    stepdowns: Counter,
    standing: Standing,
    counts: Counts,
    appends: Counter,
    append: Histogram,
    malformed: Counter,
    /// Records on their way: their tokens, and since when.
    sent: Mutex<VecDeque<(u64, Instant)>>,
    looked_ms: AtomicU64,
}

/// What stands at some value while this process leads.
struct Standing {
    workers: [(Class, Gauge); 3],
    dead: Gauge,
    draining: Gauge,
    breakers: [Gauge; 2],
    wanted: Gauge,
    slots: Gauge,
    free: Gauge,
    backlog: Gauge,
    jobs: Vec<Gauge>,
    tasks: Vec<[Gauge; 4]>,
    alerts: Vec<(Rule, Gauge)>,
    pending: Gauge,
    stalled: Gauge,
    limit: Gauge,
}

/// What only grows, from term to term.
struct Counts {
    begun: Vec<Following>,
    seconds: Vec<Following>,
    failed: Vec<Following>,
    lost: Vec<Following>,
    committed: Vec<Following>,
    repeated: Following,
    workers_lost: Following,
    ended: Vec<Following>,
    records: Following,
    bytes: Following,
    recovered: Vec<Following>,
    given_up: Vec<Following>,
    /// Foreign messages, violations of the protocol, illegal records, refused registrations.
    refused: [Following; 4],
    requests: Vec<Following>,
    raised: Vec<(Rule, Following)>,
}

impl Meters {
    pub(crate) fn new(vitals: Arc<Vitals>) -> Self {
        let (standing, counts) = (Standing::new(&vitals), Counts::new(&vitals));
        Self {
            leading: vitals.gauge(LEADING, &[]),
            epoch: vitals.gauge(EPOCH, &[]),
            takeovers: vitals.counter(TAKEOVERS, &[]),
            stepdowns: vitals.counter(STEPDOWNS, &[]),
            standing,
            counts,
            appends: vitals.counter(APPENDS, &[]),
            append: vitals.histogram(APPEND, &[]),
            malformed: vitals.counter(REFUSED, &[("reason", "malformed")]),
            sent: Mutex::default(),
            looked_ms: AtomicU64::new(0),
            vitals,
        }
    }

    /// The loop at hand has come round.
    pub(crate) fn turn(&self) {
        self.vitals.turn();
    }

    /// The loop waits for NATS or the journal, and is not stuck.
    pub(crate) fn excuse(&self) -> Excuse<'_> {
        self.vitals.excuse()
    }

    /// This process stands by the leader of an epoch, or by nobody yet.
    pub(crate) fn stands_by(&self, epoch: Epoch) {
        self.vitals.takes(Role::StandBy, epoch.0);
        self.leading.set(0.0);
        self.epoch.set(value(epoch.0));
    }

    /// A term begins.
    pub(crate) fn leads(&self, epoch: Epoch) {
        self.takeovers.increment(1);
        self.counts.begin_anew();
        self.sent().clear();
        self.vitals.takes(Role::Leader, epoch.0);
        self.leading.set(1.0);
        self.epoch.set(value(epoch.0));
    }

    /// It is over; what had happened in it still counts.
    pub(crate) fn led(&self, machine: &Machine, by_force: bool) {
        if by_force {
            self.stepdowns.increment(1);
        }
        self.counts.follow(machine.tally(), machine.counters());
        self.standing.set(&Figures::default());
        self.stands_by(machine.epoch());
    }

    /// Takes the machine's figures over when it is time to.
    pub(crate) fn look(&self, now_ms: u64, machine: &Machine) {
        if now_ms.saturating_sub(self.looked_ms.load(Ordering::Relaxed)) >= LOOK_MS {
            self.looked_ms.store(now_ms, Ordering::Relaxed);
            self.standing.set(&machine.figures());
            self.counts.follow(machine.tally(), machine.counters());
        }
    }

    /// A message could not be read.
    pub(crate) fn malformed(&self) {
        self.malformed.increment(1);
    }

    /// A record goes to the journal.
    pub(crate) fn appends(&self, token: u64) {
        self.sent().push_back((token, Instant::now()));
    }

    /// It stands there.
    pub(crate) fn appended(&self, token: u64) {
        self.appends.increment(1);
        let mut sent = self.sent();
        while let Some((_, since)) = sent.pop_front_if(|(known, _)| *known <= token) {
            self.append.record(since.elapsed().as_secs_f64());
        }
    }

    fn sent(&self) -> std::sync::MutexGuard<'_, VecDeque<(u64, Instant)>> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Standing {
    fn new(vitals: &Vitals) -> Self {
        let classes = [Class::Healthy, Class::Degraded, Class::Failed];
        let tasks = |phase: &'static str| {
            ["queued", "delayed", "running", "done"]
                .map(|state| vitals.gauge(TASKS, &[("phase", phase), ("state", state)]))
        };
        Self {
            workers: classes
                .map(|class| (class, vitals.gauge(WORKERS, &[("state", class.as_str())]))),
            dead: vitals.gauge(WORKERS, &[("state", "dead")]),
            draining: vitals.gauge(DRAINING, &[]),
            breakers: ["open", "half_open"]
                .map(|state| vitals.gauge(BREAKERS, &[("state", state)])),
            wanted: vitals.gauge(WANTED, &[]),
            slots: vitals.gauge(SLOTS, &[]),
            free: vitals.gauge(FREE, &[]),
            backlog: vitals.gauge(BACKLOG, &[]),
            jobs: STATES
                .iter()
                .map(|state| vitals.gauge(JOBS, &[("state", state.as_str())]))
                .collect(),
            tasks: PHASES.iter().map(|phase| tasks(phase.as_str())).collect(),
            alerts: Rule::ALL
                .iter()
                .map(|rule| (*rule, vitals.gauge(ALERTS, &[("rule", rule.as_str())])))
                .collect(),
            pending: vitals.gauge(PENDING, &[]),
            stalled: vitals.gauge(STALLED, &[]),
            limit: vitals.gauge(LIMIT, &[]),
        }
    }

    fn set(&self, figures: &Figures) {
        for (class, gauge) in &self.workers {
            gauge.set(f64::from(figures.workers.get(class).copied().unwrap_or(0)));
        }
        self.dead.set(f64::from(figures.workers_dead));
        self.draining.set(f64::from(figures.workers_draining));
        self.breakers
            .iter()
            .zip(figures.breakers)
            .for_each(|(gauge, count)| gauge.set(f64::from(count)));
        self.wanted.set(f64::from(figures.workers_wanted));
        self.slots.set(f64::from(figures.slots));
        self.free.set(f64::from(figures.slots_free));
        self.backlog.set(f64::from(figures.backlog_tasks));
        self.jobs.iter().zip(figures.jobs).for_each(|(gauge, count)| gauge.set(f64::from(count)));
        for (gauges, TaskCounts { queued, delayed, running, done }) in
            self.tasks.iter().zip(figures.tasks)
        {
            gauges
                .iter()
                .zip([queued, delayed, running, done])
                .for_each(|(gauge, count)| gauge.set(f64::from(count)));
        }
        for (rule, gauge) in &self.alerts {
            gauge.set(f64::from(figures.alerts.get(rule).copied().unwrap_or(0)));
        }
        self.pending.set(f64::from(figures.journal_waiting));
        self.stalled.set(f64::from(u8::from(figures.journal_stalled)));
        self.limit.set(f64::from(figures.store_limit_per_s.unwrap_or(0)));
    }
}

impl Counts {
    fn new(vitals: &Vitals) -> Self {
        let count =
            |family: Family, labels: Labels<'_>| Following::new(vitals.counter(family, labels));
        let by_phase = |family: Family| {
            PHASES.iter().map(|phase| count(family, &[("phase", phase.as_str())])).collect()
        };
        let failed = |how: &'static str| {
            let of = |phase: &muster_protocol::ids::Phase| {
                count(FAILED, &[("phase", phase.as_str()), ("how", how)])
            };
            PHASES.iter().map(of).collect()
        };
        let troubles = |outcome: &'static str| {
            TROUBLES
                .iter()
                .map(|kind| count(RECOVERIES, &[("kind", kind), ("outcome", outcome)]))
                .collect()
        };
        Self {
            begun: by_phase(ATTEMPTS),
            seconds: by_phase(SECONDS),
            failed: failed("failed"),
            lost: failed("lost"),
            committed: by_phase(COMMITTED),
            repeated: count(REPEATED, &[]),
            workers_lost: count(LOST, &[]),
            ended: ["succeeded", "failed", "cancelled"]
                .map(|outcome| count(ENDED, &[("outcome", outcome)]))
                .into(),
            records: count(RECORDS, &[]),
            bytes: count(BYTES, &[]),
            recovered: troubles("recovered"),
            given_up: troubles("given_up"),
            refused: ["foreign", "violation", "illegal_record", "registration"]
                .map(|reason| count(REFUSED, &[("reason", reason)])),
            requests: CODES.iter().map(|code| count(REQUESTS, &[("code", code.text())])).collect(),
            raised: Rule::ALL
                .iter()
                .map(|rule| (*rule, count(RAISED, &[("rule", rule.as_str())])))
                .collect(),
        }
    }

    fn follow(&self, tally: &Tally, odd: Counters) {
        for (counters, counts) in [
            (&self.begun, &tally.attempts_begun),
            (&self.seconds, &tally.speculations),
            (&self.failed, &tally.attempts_failed),
            (&self.lost, &tally.attempts_lost),
            (&self.committed, &tally.tasks_committed),
            (&self.ended, &tally.jobs_ended),
        ] {
            follow_all(counters, counts);
        }
        follow_all(&self.recovered, &tally.recovered);
        follow_all(&self.given_up, &tally.given_up);
        follow_all(&self.requests, &tally.requests_refused);
        self.repeated.follow(tally.tasks_repeated);
        self.workers_lost.follow(tally.workers_lost);
        self.records.follow(tally.records_sorted);
        self.bytes.follow(tally.bytes_sorted);
        follow_all(
            &self.refused,
            &[odd.foreign, odd.violations, odd.illegal, tally.workers_refused],
        );
        for (rule, counter) in &self.raised {
            counter.follow(tally.alerts_raised.get(rule).copied().unwrap_or(0));
        }
    }

    /// The counts of another machine follow.
    fn begin_anew(&self) {
        let lists = [
            &self.begun[..],
            &self.seconds,
            &self.failed,
            &self.lost,
            &self.committed,
            &self.ended,
            &self.recovered,
            &self.given_up,
            &self.refused,
            &self.requests,
        ];
        lists.into_iter().flatten().for_each(Following::begin_anew);
        self.raised.iter().for_each(|(_, counter)| counter.begin_anew());
        [&self.repeated, &self.workers_lost, &self.records, &self.bytes]
            .into_iter()
            .for_each(Following::begin_anew);
    }
}

fn follow_all(counters: &[Following], counts: &[u64]) {
    counters.iter().zip(counts).for_each(|(counter, count)| counter.follow(*count));
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_platform::clock::ManualClock;

    fn meters() -> (Meters, Arc<Vitals>, Arc<ManualClock>) {
        let clock = Arc::new(ManualClock::default());
        let vitals =
            Arc::new(Vitals::new("coordinator", "1", 1000, clock.clone()).expect("vitals"));
        (Meters::new(vitals.clone()), vitals, clock)
    }

    #[track_caller]
    fn assert_shows(vitals: &Vitals, line: &str) {
        let text = String::from_utf8_lossy(&vitals.render()).into_owned();
        assert!(text.lines().any(|shown| shown == line), "{line} in {text}");
    }

    #[test]
    fn all_series_are_there_from_the_start() {
        let (_, vitals, _) = meters();
        for line in [
            "muster_leading 0",
            "muster_jobs{state=\"sorting\"} 0",
            "muster_tasks{phase=\"merge\",state=\"queued\"} 0",
            "muster_workers{state=\"healthy\"} 0",
            "muster_workers_wanted 0",
            "muster_alerts_raised_total{rule=\"worker-down\"} 0",
            "muster_recoveries_total{kind=\"run-damaged\",outcome=\"recovered\"} 0",
            "muster_messages_refused_total{reason=\"malformed\"} 0",
            "muster_requests_refused_total{code=\"409\"} 0",
            "muster_attempts_failed_total{phase=\"sort\",how=\"lost\"} 0",
        ] {
            assert_shows(&vitals, line);
        }
    }

    #[test]
    fn counts_go_on_from_term_to_term() {
        let (meters, vitals, clock) = meters();
        let tally = |committed| Tally { tasks_committed: [0, committed, 0], ..Tally::default() };
        meters.leads(Epoch(3));
        meters.counts.follow(&tally(5), Counters { foreign: 2, ..Counters::default() });
        meters.leads(Epoch(5));
        meters.counts.follow(&tally(1), Counters::default());
        for line in [
            "muster_tasks_committed_total{phase=\"sort\"} 6",
            "muster_messages_refused_total{reason=\"foreign\"} 2",
            "muster_takeovers_total 2",
            "muster_leading 1",
            "muster_epoch 5",
        ] {
            assert_shows(&vitals, line);
        }
        clock.advance_ms(1000);
        meters.stands_by(Epoch(6));
        assert_shows(&vitals, "muster_leading 0");
        assert_eq!((vitals.standing().role, vitals.standing().epoch), (Role::StandBy, 6));
    }

    #[test]
    fn appends_are_timed_until_they_stand() {
        let (meters, vitals, _) = meters();
        (1..=3).for_each(|token| meters.appends(token));
        meters.appended(1);
        meters.appended(2);
        meters.appended(77);
        for line in ["muster_journal_appends_total 3", "muster_journal_append_seconds_count 3"] {
            assert_shows(&vitals, line);
        }
        assert!(meters.sent().is_empty());
    }
}
