//! A worker's figures as metrics, for whoever watches this process (`--http`). What stores are
//! asked for is counted where it is asked ([`muster_platform::adapters::metered`]).

use std::sync::Arc;

use metrics::{Counter, Gauge};

use muster_platform::vitals::{Family, Following, Role, Vitals, value};
use muster_protocol::ids::Phase;
use muster_protocol::wire::{Mended, Outcome};

use crate::health::Reading;

/// Pause between two looks at the figures, in milliseconds.
const LOOK_MS: u64 = 500;

const fn family(name: &'static str, help: &'static str) -> Family {
    Family::new(name, help)
}

const REGISTERED: Family =
    family("muster_registered", "Whether a leader that was heard lately knows this worker (1)");
const EPOCH: Family =
    family("muster_epoch", "The epoch of the leader with which this worker is registered");
const SLOTS: Family = family("muster_worker_slots", "Attempts that this worker can run at once");
const RUNNING: Family = family("muster_attempts_running", "Attempts that run");
const ENDED: Family =
    family("muster_attempts_ended_total", "Attempts that ended here, whether they count or not");
const INPUT: Family =
    family("muster_input_bytes_total", "Input bytes of attempts that this worker went through");
const RETRIES: Family = family(
    "muster_store_retries_total",
    "Calls of stores that were made again after passing trouble",
);
const THROTTLED: Family =
    family("muster_store_throttled_total", "Answers of stores that ask for fewer requests");
const HEDGED: Family =
    family("muster_store_hedged_reads_total", "Second requests for reads that took long");
const AWAY: Family = family(
    "muster_stores_away",
    "Stores that do not answer, so that what needs them waits (their gate is shut)",
);
const MENDED: Family =
    family("muster_reads_mended_total", "Reads of runs that went wrong and were got over here");
const LIMIT: Family =
    family("muster_memory_limit_bytes", "Memory that this worker may use (--memory)");
const USED: Family = family("muster_memory_used_bytes", "Resident memory of this process");
const DISK_FREE: Family = family("muster_disk_free_bytes", "Free bytes of the disk for spills");
const DISK: Family = family("muster_disk_bytes", "All bytes of the disk for spills");
const WAITING: Family = family("muster_waiting", "What this worker waits for (1)");

const PHASES: [Phase; 3] = [Phase::Sample, Phase::Sort, Phase::Merge];

/// What the driver knows at one moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen<'a> {
    pub(crate) reading: &'a Reading,
    /// Attempts that run, by phase.
    pub(crate) running: [u32; 3],
    pub(crate) stores_away: usize,
}

/// The metrics of one worker.
pub(crate) struct Meters {
    vitals: Arc<Vitals>,
    registered: Gauge,
    epoch: Gauge,
    running: Vec<Gauge>,
    done: Counter,
    failed: Counter,
    input: Following,
    retries: Following,
    throttled: Following,
    hedged: Following,
    mended: [Following; 3],
    away: Gauge,
    used: Gauge,
    disk_free: Gauge,
    disk: Gauge,
    waiting_store: Gauge,
    waiting_coordinator: Gauge,
    looked_ms: Option<u64>,
}

impl Meters {
    pub(crate) fn new(vitals: Arc<Vitals>, slots: u32, memory_bytes: u64) -> Self {
        vitals.gauge(SLOTS, &[]).set(f64::from(slots));
        vitals.gauge(LIMIT, &[]).set(value(memory_bytes));
        let ended = |outcome: &'static str| vitals.counter(ENDED, &[("outcome", outcome)]);
        let waiting = |what: &'static str| vitals.gauge(WAITING, &[("for", what)]);
        let follow = |family: Family| Following::new(vitals.counter(family, &[]));
        Self {
            registered: vitals.gauge(REGISTERED, &[]),
            epoch: vitals.gauge(EPOCH, &[]),
            running: PHASES
                .iter()
                .map(|phase| vitals.gauge(RUNNING, &[("phase", phase.as_str())]))
                .collect(),
            done: ended("done"),
            failed: ended("failed"),
            input: follow(INPUT),
            retries: follow(RETRIES),
            throttled: follow(THROTTLED),
            hedged: follow(HEDGED),
            mended: ["read_again", "from_replica", "repaired"]
                .map(|how| Following::new(vitals.counter(MENDED, &[("how", how)]))),
            away: vitals.gauge(AWAY, &[]),
            used: vitals.gauge(USED, &[]),
            disk_free: vitals.gauge(DISK_FREE, &[]),
            disk: vitals.gauge(DISK, &[]),
            waiting_store: waiting("store"),
            waiting_coordinator: waiting("coordinator"),
            looked_ms: None,
            vitals,
        }
    }

    /// The loop has come round; `epoch` is that of the leader which knows this worker, if one was
    /// heard lately.
    pub(crate) fn turn(&self, epoch: Option<u64>) {
        self.vitals.turn();
        let role = if epoch.is_some() { Role::Worker } else { Role::Unregistered };
        self.vitals.takes(role, epoch.unwrap_or(0));
        self.registered.set(f64::from(u8::from(epoch.is_some())));
        self.waiting_coordinator.set(f64::from(u8::from(epoch.is_none())));
        if let Some(epoch) = epoch {
            self.epoch.set(value(epoch));
        }
    }

    /// Whether it is time to look at the figures.
    pub(crate) fn is_due(&mut self, now_ms: u64) -> bool {
        let due =
            self.looked_ms.is_none_or(|looked_ms| now_ms.saturating_sub(looked_ms) >= LOOK_MS);
        if due {
            self.looked_ms = Some(now_ms);
        }
        due
    }

    /// An attempt has ended.
    pub(crate) fn ended(&self, outcome: &Outcome) {
        match outcome {
            Outcome::Sampled { .. }
            | Outcome::SampledToScratch { .. }
            | Outcome::Sorted(_)
            | Outcome::Merged(_) => {
                self.done.increment(1);
            }
            Outcome::Failed { .. }
            | Outcome::RunDamaged { .. }
            | Outcome::InputUnreadable { .. } => {
                self.failed.increment(1);
            }
            Outcome::UploadOpened { .. } => {}
        }
    }

    /// Takes the figures over.
    pub(crate) fn look(&self, seen: Seen<'_>) {
        let Seen { reading, running, stores_away } = seen;
        self.running.iter().zip(running).for_each(|(gauge, count)| gauge.set(f64::from(count)));
        let Mended { hedged_reads, read_again, from_replica, repaired } = reading.mended;
        for (counter, count) in [
            (&self.input, reading.bytes_done),
            (&self.retries, reading.store_retries),
            (&self.throttled, reading.throttled),
            (&self.hedged, hedged_reads),
            (&self.mended[0], read_again),
            (&self.mended[1], from_replica),
            (&self.mended[2], repaired),
        ] {
            counter.follow(count);
        }
        self.away.set(value(stores_away as u64));
        self.waiting_store.set(f64::from(u8::from(stores_away > 0)));
        self.used.set(value(reading.rss_bytes));
        self.disk_free.set(value(reading.disk_free_bytes));
        self.disk.set(value(reading.disk_total_bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_platform::clock::ManualClock;

    #[test]
    fn what_was_seen_is_shown() {
        let clock = Arc::new(ManualClock::default());
        let vitals = Arc::new(Vitals::new("worker", "1", 1000, clock.clone()).expect("vitals"));
        let mut meters = Meters::new(vitals.clone(), 4, 1 << 30);
        assert!(meters.is_due(0) && !meters.is_due(LOOK_MS - 1) && meters.is_due(LOOK_MS));
        meters.turn(Some(9));
        let mended = Mended { hedged_reads: 2, repaired: 1, ..Mended::default() };
        let reading =
            Reading { rss_bytes: 77, bytes_done: 1000, throttled: 5, mended, ..Reading::default() };
        meters.look(Seen { reading: &reading, running: [0, 2, 1], stores_away: 1 });
        meters.ended(&Outcome::Failed { error: muster_protocol::Error::retry("x") });
        let assert_shows = |lines: &[&str]| {
            clock.advance_ms(1000);
            let text = String::from_utf8_lossy(&vitals.render()).into_owned();
            for line in lines {
                assert!(text.lines().any(|shown| shown == *line), "{line} in {text}");
            }
        };
        assert_shows(&[
            "muster_registered 1",
            "muster_epoch 9",
            "muster_worker_slots 4",
            "muster_memory_limit_bytes 1073741824",
            "muster_memory_used_bytes 77",
            "muster_attempts_running{phase=\"sort\"} 2",
            "muster_attempts_ended_total{outcome=\"failed\"} 1",
            "muster_attempts_ended_total{outcome=\"done\"} 0",
            "muster_input_bytes_total 1000",
            "muster_store_throttled_total 5",
            "muster_store_hedged_reads_total 2",
            "muster_reads_mended_total{how=\"repaired\"} 1",
            "muster_stores_away 1",
            "muster_waiting{for=\"store\"} 1",
            "muster_waiting{for=\"coordinator\"} 0",
        ]);
        meters.turn(None);
        assert_shows(&[
            "muster_registered 0",
            "muster_epoch 9",
            "muster_waiting{for=\"coordinator\"} 1",
        ]);
        assert_eq!(vitals.standing().role, Role::Unregistered);
    }
}
