//! How a worker is: the figures of its heartbeats. Readings in, figures out; only [`Reading::take`]
//! looks at the process and its disk.

use std::path::Path;

use muster_protocol::wire::{Health, Mended};

/// Errors are counted in so many slots of so many milliseconds: five minutes in all.
const SLOTS: usize = 30;
const SLOT_MS: u64 = 10_000;

/// What is read at one moment. Counters only grow.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Reading {
    /// On the worker's clock.
    pub(crate) now_ms: u64,
    /// Resident memory of the process.
    pub(crate) rss_bytes: u64,
    /// CPU time of the process.
    pub(crate) cpu_ms: u64,
    /// Free and all bytes of the disk for spills; zeros where it does not tell.
    pub(crate) disk_free_bytes: u64,
    pub(crate) disk_total_bytes: u64,
    /// Input bytes done by all attempts so far, ended ones included.
    pub(crate) bytes_done: u64,
    /// Attempts that run.
    pub(crate) running: usize,
    /// Store errors that were retried so far.
    pub(crate) store_retries: u64,
    /// How often stores said "slow down" so far.
    pub(crate) throttled: u64,
    pub(crate) mended: Mended,
}

impl Reading {
    /// Of this process, with the disk below `folder`; zeros where the system does not tell.
    pub(crate) fn take(now_ms: u64, folder: &Path) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let disk = rustix::fs::statvfs(folder).ok();
        let bytes = |blocks: u64, size: u64| blocks.saturating_mul(size);
        Self {
            now_ms,
            rss_bytes: rss_bytes(&read("/proc/self/status")),
            cpu_ms: cpu_ms(&read("/proc/self/stat")),
            disk_free_bytes: disk.as_ref().map_or(0, |disk| bytes(disk.f_bavail, disk.f_frsize)),
            disk_total_bytes: disk.as_ref().map_or(0, |disk| bytes(disk.f_blocks, disk.f_frsize)),
            ..Self::default()
        }
    }
}

/// Shortest time that shares and rates are measured over, in milliseconds: ten ticks of the CPU's
/// clock.
const MEASURED_MS_MIN: u64 = 100;

/// How long after a retry a standstill is the store's: the longest call and the longest pause
/// before it (`store.call_timeout_ms`, `[retry.throttle]`).
const RETRYING_MS: u64 = 150_000;

/// What is between two heartbeats.
#[derive(Debug)]
pub(crate) struct Gauge {
    /// Cores that its work may use: no more than it has threads for.
    cores: u64,
    memory_bytes: u64,
    last: Option<Reading>,
    cpu_permille: u32,
    bytes_per_s: u64,
    errors: Errors,
    /// The store was in trouble, and nothing has moved since.
    stalled: bool,
    /// When a store error was retried last.
    retried_ms: Option<u64>,
}

impl Gauge {
    /// Of a worker with this memory budget, which does so many tasks at once, on so many cores.
    pub(crate) fn new(cores: usize, threads: u32, memory_bytes: u64) -> Self {
        Self {
            cores: (cores.max(1) as u64).min(u64::from(threads.max(1))),
            memory_bytes,
            last: None,
            cpu_permille: 0,
            bytes_per_s: 0,
            errors: Errors::default(),
            stalled: false,
            retried_ms: None,
        }
    }

    /// An attempt has failed.
    pub(crate) fn failed(&mut self, now_ms: u64) {
        self.errors.add(now_ms, 1);
    }

    /// The figures for a heartbeat; shares and rates are over the time since the one before.
    pub(crate) fn figures(&mut self, reading: Reading) -> Health {
        let mut measured = true;
        if let Some(last) = &self.last {
            let since_ms = reading.now_ms.saturating_sub(last.now_ms);
            let cpu_ms = reading.cpu_ms.saturating_sub(last.cpu_ms);
            let bytes = reading.bytes_done.saturating_sub(last.bytes_done);
            let retries = reading.store_retries.saturating_sub(last.store_retries);
            measured = since_ms >= MEASURED_MS_MIN;
            if measured {
                let permille = cpu_ms.saturating_mul(1000) / since_ms.saturating_mul(self.cores);
                // Ticks of the CPU's clock are coarse: a short interval may seem to have more than
                // there is.
                self.cpu_permille = u32::try_from(permille.min(1000)).unwrap_or(1000);
                self.bytes_per_s = u64::try_from(u128::from(bytes) * 1000 / u128::from(since_ms))
                    .unwrap_or(u64::MAX);
            }
            self.errors.add(reading.now_ms, u32::try_from(retries).unwrap_or(u32::MAX));
            if retries > 0 {
                self.retried_ms = Some(reading.now_ms);
            }
            // One retry excuses no more than what a call may take: after that whoever does not move
            // hangs.
            let lately =
                self.retried_ms.is_some_and(|at| reading.now_ms.saturating_sub(at) <= RETRYING_MS);
            let stalls = self.stalled || retries > 0;
            self.stalled = reading.running > 0 && bytes == 0 && stalls && lately;
        }
        let health = Health {
            rss_bytes: reading.rss_bytes,
            cpu_ms: reading.cpu_ms,
            store_retries: reading.store_retries,
            cpu_permille: self.cpu_permille,
            memory_bytes: self.memory_bytes,
            disk_free_bytes: reading.disk_free_bytes,
            disk_total_bytes: reading.disk_total_bytes,
            bytes_per_s: self.bytes_per_s,
            errors_5min: self.errors.count(reading.now_ms),
            throttled: reading.throttled,
            waiting_for: self.stalled.then(|| "store".to_owned()),
            mended: reading.mended,
        };
        // Of two readings that are too near to one another the later one says nothing: the next is
        // measured from the earlier.
        self.last = match self.last.take().filter(|_| !measured) {
            Some(last) => Some(Reading {
                now_ms: last.now_ms,
                cpu_ms: last.cpu_ms,
                bytes_done: last.bytes_done,
                ..reading
            }),
            None => Some(reading),
        };
        health
    }
}

/// Counts of errors by time: a ring, of which each slot holds [`SLOT_MS`].
#[derive(Debug, Default)]
struct Errors {
    counts: [u32; SLOTS],
    /// Number of the newest slot, counted from the clock's zero.
    newest: u64,
}

impl Errors {
    fn add(&mut self, now_ms: u64, errors: u32) {
        self.turn(now_ms);
        let count = &mut self.counts[slot_at(self.newest)];
        *count = count.saturating_add(errors);
    }

    /// Those of the last five minutes, to a slot.
    fn count(&mut self, now_ms: u64) -> u32 {
        self.turn(now_ms);
        self.counts.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// Empties the slots whose time has come round again.
    fn turn(&mut self, now_ms: u64) {
        let newest = now_ms / SLOT_MS;
        let passed = newest.saturating_sub(self.newest).min(SLOTS as u64);
        for number in newest.saturating_sub(passed) + 1..=newest {
            self.counts[slot_at(number)] = 0;
        }
        self.newest = self.newest.max(newest);
    }
}

fn slot_at(number: u64) -> usize {
    (number % SLOTS as u64) as usize
}

fn rss_bytes(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line
        .and_then(|line| line.split_whitespace().next())
        .and_then(|text| text.parse::<u64>().ok());
    kib.unwrap_or(0).saturating_mul(1024)
}

/// User and system time: fields 14 and 15, counted from 1, of which the second is a name in
/// parentheses that may hold anything.
fn cpu_ms(stat: &str) -> u64 {
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u64 = after_name
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|text| text.parse::<u64>().ok())
        .sum();
    ticks.saturating_mul(1000) / rustix::param::clock_ticks_per_second().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_and_rates_are_of_the_last_interval() {
        let mut gauge = Gauge::new(2, 2, 1 << 30);
        let at = |now_ms, cpu_ms, bytes_done| Reading {
            now_ms,
            cpu_ms,
            bytes_done,
            running: 1,
            ..Reading::default()
        };
        let mut check = |reading: Reading, cpu_permille: u32, bytes_per_s: u64| {
            let health = gauge.figures(reading.clone());
            assert_eq!(
                (health.cpu_permille, health.bytes_per_s),
                (cpu_permille, bytes_per_s),
                "{reading:?}"
            );
            assert_eq!((health.memory_bytes, health.cpu_ms), (1 << 30, reading.cpu_ms));
        };
        check(at(5000, 9000, 700), 0, 0);
        check(at(6000, 10_000, 1700), 500, 1000);
        check(at(6500, 10_100, 1700), 100, 0);
        // Nothing has passed, or too little: the last figures still hold, and nothing of it is
        // lost.
        check(at(6500, 10_100, 1700), 100, 0);
        check(at(6550, 10_100, 1750), 100, 0);
        check(at(6600, 90_000, 1800), 1000, 1000);
        // Counters that fall (a process cannot, a bug could) are no wrap-around.
        check(at(7600, 0, 0), 0, 0);
    }

    /// On a machine of many cores one busy thread is one core of many; of a worker that may use no
    /// more than that, it is all.
    #[test]
    fn the_cpu_is_that_which_a_worker_may_use() {
        for (cores, threads, busy_ms, permille) in
            [(64, 1, 900, 900), (64, 4, 2000, 500), (2, 16, 1000, 500), (0, 0, 500, 500)]
        {
            let mut gauge = Gauge::new(cores, threads, 0);
            let at = |now_ms, cpu_ms| Reading { now_ms, cpu_ms, ..Reading::default() };
            gauge.figures(at(1000, 0));
            assert_eq!(
                gauge.figures(at(2000, busy_ms)).cpu_permille,
                permille,
                "{cores} cores, {threads} threads"
            );
        }
    }

    #[test]
    fn errors_are_forgotten_after_five_minutes() {
        let mut errors = Errors::default();
        errors.add(1_000, 2);
        errors.add(9_999, 1);
        errors.add(10_000, 4);
        for (now_ms, expected) in
            [(10_000, 7), (299_999, 7), (300_000, 4), (309_999, 4), (310_000, 0)]
        {
            assert_eq!(errors.count(now_ms), expected, "{now_ms}");
        }
        errors.add(400_000, u32::MAX);
        errors.add(400_000, 9);
        assert_eq!(errors.count(400_000), u32::MAX);
        assert_eq!(errors.count(u64::MAX), 0, "a long pause empties it");
        errors.add(0, 5);
        assert_eq!(errors.count(u64::MAX), 5, "a clock that went back loses nothing");
    }

    #[test]
    fn retries_and_failed_attempts_are_errors() {
        let mut gauge = Gauge::new(1, 1, 0);
        let at = |now_ms, store_retries| Reading { now_ms, store_retries, ..Reading::default() };
        assert_eq!(
            gauge.figures(at(0, 3)).errors_5min,
            0,
            "what was before the first heartbeat is not dated"
        );
        gauge.failed(500);
        assert_eq!(gauge.figures(at(1000, 5)).errors_5min, 3);
        assert_eq!(gauge.figures(at(2000, 5)).errors_5min, 3);
        assert_eq!(gauge.figures(at(400_000, 5)).errors_5min, 0);
    }

    #[test]
    fn a_store_in_trouble_is_waited_for_until_something_moves() {
        let mut gauge = Gauge::new(1, 1, 0);
        let mut at = |now_ms, store_retries, bytes_done, running| {
            gauge
                .figures(Reading {
                    now_ms,
                    store_retries,
                    bytes_done,
                    running,
                    ..Reading::default()
                })
                .waiting_for
        };
        assert_eq!(at(0, 0, 0, 1), None);
        assert_eq!(at(1000, 0, 0, 1), None, "slow is not in trouble");
        assert_eq!(at(2000, 1, 0, 1).as_deref(), Some("store"));
        assert_eq!(at(3000, 1, 0, 1).as_deref(), Some("store"), "it pauses before the next try");
        assert_eq!(at(4000, 2, 10, 1), None);
        assert_eq!(at(5000, 3, 10, 1).as_deref(), Some("store"));
        assert_eq!(at(6000, 3, 10, 0), None, "nothing runs");
        assert_eq!(at(7000, 4, 10, 1).as_deref(), Some("store"));
        assert_eq!(at(7000 + RETRYING_MS, 4, 10, 1).as_deref(), Some("store"));
        assert_eq!(at(7001 + RETRYING_MS, 4, 10, 1), None, "no call takes so long: it hangs");
    }

    #[test]
    fn the_process_and_its_disk_are_seen() {
        assert_eq!(rss_bytes("Name:\tx\nVmRSS:\t  12 kB\n"), 12 * 1024);
        assert_eq!(rss_bytes(""), 0);
        let tick_ms = 1000 / rustix::param::clock_ticks_per_second();
        assert_eq!(cpu_ms("1 (a) b) S 1 2 3 4 5 6 7 8 9 10 30 12 0"), 42 * tick_ms);
        let reading = Reading::take(7, Path::new("/"));
        assert!(
            reading.rss_bytes > 0 && reading.disk_total_bytes > reading.disk_free_bytes,
            "{reading:?}"
        );
        let nowhere = Reading::take(7, Path::new("/no/such/folder"));
        assert_eq!((nowhere.disk_free_bytes, nowhere.disk_total_bytes), (0, 0));
    }
}
