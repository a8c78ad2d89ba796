//! What a long-running process tells of itself to those who watch it: whether it lives, whether it
//! can serve, and its figures. [`crate::http`] shows them.
//!
//! A process that nobody watches has none of this: whoever would count holds an `Option`, and
//! `None` costs a look at it. Figures are pushed by those who have them (the adapters `metrics.rs`
//! of coordinator and worker); handles are made once and kept, so that counting is an atomic
//! addition. Labels take their values from fixed lists: no id of a job, a worker or an object is
//! ever one.

use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use async_nats::Client;
use async_nats::connection::State;
use bytes::Bytes;
use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{
    Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};
use serde::Serialize;

use crate::clock::Clock;
use muster_protocol::error::{Error, Result};

/// So long one rendering of the figures serves all who ask, in milliseconds: asking again and again
/// costs nothing.
const REUSE_MS: u64 = 100;
/// Upper bounds of all histograms, in seconds: from what a local disk takes to what no call may
/// take.
const SECONDS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];

const BUILD: Family = Family::new(
    "muster_build_info",
    "Always 1; its labels name the version and the role of this process",
);
const CONNECTED: Family =
    Family::new("muster_nats_connected", "Whether the connection to NATS stands (1) or not (0)");

/// A metric's name and what it counts. Names end with their unit, those of counters with `_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Family {
    name: &'static str,
    help: &'static str,
}

impl Family {
    /// A family by its name.
    pub const fn new(name: &'static str, help: &'static str) -> Self {
        Self { name, help }
    }
}

/// Labels of a metric: names and values, all of them from fixed lists.
pub type Labels<'a> = &'a [(&'static str, &'static str)];

/// What a process is to its deployment at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// It has not come so far; most likely it waits for NATS.
    Starting,
    /// A coordinator that would lead if nobody else did.
    StandBy,
    /// The coordinator that leads.
    Leader,
    /// A worker that is registered with a leader.
    Worker,
    /// A worker that no leader knows, or that has not heard of one for longer than
    /// `leader.silence_ms`.
    Unregistered,
}

/// Where a process stands, as `/readyz` says it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Standing {
    /// Whether it can do what it is there for: it has its place, and a connection.
    pub ready: bool,
    /// Its place.
    pub role: Role,
    /// The newest epoch that it knows; 0 before it knows one.
    pub epoch: u64,
    /// Whether its connection to NATS stands.
    pub connected: bool,
}

/// The vital signs of one process.
pub struct Vitals {
    clock: Arc<dyn Clock>,
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    connected: Gauge,
    /// The longest time between two turns of the main loop, in milliseconds.
    stuck_ms: u64,
    /// One more than the time of the last turn; 0 before the first.
    turned_ms: AtomicU64,
    excused: AtomicU32,
    link: OnceLock<Client>,
    place: Mutex<(Role, u64)>,
    rendered: Mutex<Option<(u64, Bytes)>>,
}

impl Vitals {
    /// Of a process that has just begun. `kind` is `coordinator` or `worker`; its main loop counts
    /// as stuck after `stuck_ms` milliseconds without a turn.
    ///
    /// # Errors
    /// `Bug` where the histograms' bounds are not accepted.
    pub fn new(
        kind: &'static str,
        version: &'static str,
        stuck_ms: u64,
        clock: Arc<dyn Clock>,
    ) -> Result<Self> {
        let builder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)
            .map_err(|e| Error::bug(format!("bounds of histograms: {e}")))?;
        let recorder = builder.build_recorder();
        let mut vitals = Self {
            handle: recorder.handle(),
            recorder,
            connected: Gauge::noop(),
            clock,
            stuck_ms,
            turned_ms: AtomicU64::new(0),
            excused: AtomicU32::new(0),
            link: OnceLock::new(),
            place: Mutex::new((Role::Starting, 0)),
            rendered: Mutex::new(None),
        };
        vitals.connected = vitals.gauge(CONNECTED, &[]);
        vitals.gauge(BUILD, &[("role", kind), ("version", version)]).set(1.0);
        Ok(vitals)
    }

    /// This is the connection to NATS; the first one that is given stays.
    pub fn connects_by(&self, client: &Client) {
        // It has been given already where this fails, and is the same.
        drop(self.link.set(client.clone()));
    }

    /// The process has this place now.
    pub fn takes(&self, role: Role, epoch: u64) {
        *lock(&self.place) = (role, epoch);
    }

    /// The main loop has come round. From the first time on it must do so again and again.
    pub fn turn(&self) {
        self.turned_ms.store(self.clock.now_ms().saturating_add(1), Ordering::Relaxed);
    }

    /// While what this gives lives, the main loop waits for somebody else (NATS, the journal) and
    /// is not stuck, however long it takes.
    pub fn excuse(&self) -> Excuse<'_> {
        self.excused.fetch_add(1, Ordering::Relaxed);
        Excuse(self)
    }

    /// For how long the main loop has not come round, in milliseconds, where that is longer than it
    /// may be.
    pub fn stuck_ms(&self) -> Option<u64> {
        let turned_ms = self.turned_ms.load(Ordering::Relaxed).checked_sub(1)?;
        let idle_ms = self.clock.now_ms().saturating_sub(turned_ms);
        (self.excused.load(Ordering::Relaxed) == 0 && idle_ms > self.stuck_ms).then_some(idle_ms)
    }

    /// Where the process stands.
    pub fn standing(&self) -> Standing {
        let (role, epoch) = *lock(&self.place);
        let connected =
            self.link.get().is_some_and(|client| client.connection_state() == State::Connected);
        let placed = matches!(role, Role::StandBy | Role::Leader | Role::Worker);
        Standing { ready: placed && connected, role, epoch, connected }
    }

    /// A counter.
    pub fn counter(&self, family: Family, labels: Labels<'_>) -> Counter {
        self.recorder.describe_counter(family.name.into(), None, family.help.into());
        self.recorder.register_counter(&key(family, labels), &METADATA)
    }

    /// A value that goes up and down.
    pub fn gauge(&self, family: Family, labels: Labels<'_>) -> Gauge {
        self.recorder.describe_gauge(family.name.into(), None, family.help.into());
        self.recorder.register_gauge(&key(family, labels), &METADATA)
    }

    /// Durations in seconds; the name must end with `_seconds`.
    pub fn histogram(&self, family: Family, labels: Labels<'_>) -> Histogram {
        self.recorder.describe_histogram(family.name.into(), None, family.help.into());
        self.recorder.register_histogram(&key(family, labels), &METADATA)
    }

    /// All figures as Prometheus reads them (text format 0.0.4).
    pub fn render(&self) -> Bytes {
        let now_ms = self.clock.now_ms();
        let mut rendered = lock(&self.rendered);
        if let Some((at_ms, text)) = rendered.as_ref()
            && now_ms.saturating_sub(*at_ms) < REUSE_MS
        {
            return text.clone();
        }
        self.connected.set(if self.standing().connected { 1.0 } else { 0.0 });
        let text = Bytes::from(self.handle.render());
        *rendered = Some((now_ms, text.clone()));
        text
    }

    /// Sums up what histograms were given; to be called now and then, because until then they keep
    /// every value.
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }
}

impl fmt::Debug for Vitals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vitals").field("place", &*lock(&self.place)).finish_non_exhaustive()
    }
}

/// See [`Vitals::excuse`].
pub struct Excuse<'a>(&'a Vitals);

impl Drop for Excuse<'_> {
    fn drop(&mut self) {
        self.0.turn();
        self.0.excused.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A counter that follows a count which begins anew now and then, as that of one leader's term
/// does.
#[derive(Debug)]
pub struct Following {
    counter: Counter,
    last: AtomicU64,
}

impl Following {
    /// Follows a count that stands at 0.
    pub fn new(counter: Counter) -> Self {
        Self { counter, last: AtomicU64::new(0) }
    }

    /// The count stands here now.
    pub fn follow(&self, count: u64) {
        let last = self.last.swap(count, Ordering::Relaxed);
        self.counter.increment(count.saturating_sub(last));
    }

    /// The count begins at 0 again.
    pub fn begin_anew(&self) {
        self.last.store(0, Ordering::Relaxed);
    }
}

/// A count as a gauge's value; exact up to 2^53.
#[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
pub fn value(count: u64) -> f64 {
    count as f64
}

const METADATA: Metadata<'static> = Metadata::new("muster", Level::INFO, None);

fn key(family: Family, labels: Labels<'_>) -> Key {
    let labels: Vec<Label> =
        labels.iter().map(|(name, value)| Label::from_static_parts(name, value)).collect();
    Key::from_parts(family.name, labels)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    fn begin() -> (Vitals, Arc<ManualClock>) {
        let clock = Arc::new(ManualClock::default());
        (Vitals::new("worker", "1.2.3", 1000, clock.clone()).expect("vitals"), clock)
    }

    #[test]
    fn a_loop_that_does_not_come_round_is_stuck() {
        let (vitals, clock) = begin();
        clock.advance_ms(5000);
        assert_eq!(vitals.stuck_ms(), None, "it has not begun");
        vitals.turn();
        clock.advance_ms(1000);
        assert_eq!(vitals.stuck_ms(), None);
        clock.advance_ms(1);
        assert_eq!(vitals.stuck_ms(), Some(1001));
        let excuse = vitals.excuse();
        clock.advance_ms(100_000);
        assert_eq!(vitals.stuck_ms(), None, "it waits for somebody else");
        drop(excuse);
        assert_eq!(vitals.stuck_ms(), None, "time begins when the wait is over");
        clock.advance_ms(1001);
        assert_eq!(vitals.stuck_ms(), Some(1001));
    }

    #[test]
    fn who_has_a_place_but_no_connection_is_not_ready() {
        let (vitals, _) = begin();
        assert_eq!(vitals.standing().role, Role::Starting);
        vitals.takes(Role::Leader, 7);
        let standing = vitals.standing();
        assert!(!standing.ready && !standing.connected);
        let text = serde_json::to_string(&standing).expect("JSON");
        assert_eq!(text, r#"{"ready":false,"role":"leader","epoch":7,"connected":false}"#);
    }

    #[test]
    fn figures_are_rendered_once_for_many_who_ask() {
        const JOBS: Family = Family::new("muster_test_jobs", "Jobs");
        let (vitals, clock) = begin();
        let jobs = vitals.gauge(JOBS, &[("state", "sorting")]);
        jobs.set(3.0);
        let text = vitals.render();
        let shown = String::from_utf8_lossy(&text).into_owned();
        assert!(
            shown.contains("# HELP muster_test_jobs Jobs\n# TYPE muster_test_jobs gauge\n"),
            "{shown}"
        );
        assert!(shown.contains("muster_test_jobs{state=\"sorting\"} 3\n"), "{shown}");
        assert!(
            shown.contains("muster_nats_connected 0\n") && shown.contains("version=\"1.2.3\""),
            "{shown}"
        );
        jobs.set(4.0);
        assert_eq!(vitals.render(), text);
        clock.advance_ms(REUSE_MS);
        assert_ne!(vitals.render(), text);
    }

    #[test]
    fn a_count_that_begins_anew_does_not_fall() {
        const ENDED: Family = Family::new("muster_test_total", "Counted");
        let (vitals, _) = begin();
        let ended = Following::new(vitals.counter(ENDED, &[]));
        ended.follow(5);
        ended.follow(7);
        ended.begin_anew();
        ended.follow(2);
        ended.follow(1);
        let shown = String::from_utf8_lossy(&vitals.render()).into_owned();
        assert!(shown.contains("\nmuster_test_total 9\n"), "{shown}");
    }

    #[test]
    fn durations_go_into_buckets() {
        const CALLS: Family = Family::new("muster_test_seconds", "Calls");
        let (vitals, _) = begin();
        let calls = vitals.histogram(CALLS, &[]);
        calls.record(0.003);
        vitals.upkeep();
        calls.record(5.0);
        let shown = String::from_utf8_lossy(&vitals.render()).into_owned();
        for line in [
            "muster_test_seconds_bucket{le=\"0.0025\"} 0",
            "muster_test_seconds_bucket{le=\"0.005\"} 1",
            "muster_test_seconds_bucket{le=\"+Inf\"} 2",
            "muster_test_seconds_count 2",
        ] {
            assert!(shown.lines().any(|shown| shown == line), "{line} in {shown}");
        }
    }
}
