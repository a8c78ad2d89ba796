//! Every setting, in the order in which a user meets them: what it does, its type, default, range,
//! and what the profiles say. `docs/default.toml` is made from it.

use serde::{Deserialize, Serialize};

use super::declare::{Section, Setting, Value, section, settings, value};
use crate::retry::Policy;

/// All sections, in the order of `docs/default.toml`.
pub(super) const SECTIONS: [Section; 30] = [
    GENERAL,
    Job::SECTION,
    Tasks::SECTION,
    Phases::SECTION,
    Worker::SECTION,
    Pool::SECTION,
    Store::SECTION,
    Claim::SECTION,
    STORE,
    THROTTLE,
    NATS,
    ABORT,
    TASK,
    DISK,
    MEMORY,
    INPUT,
    Journal::SECTION,
    Heartbeat::SECTION,
    Leader::SECTION,
    Detector::SECTION,
    Speculation::SECTION,
    Breaker::SECTION,
    Recovery::SECTION,
    Limits::SECTION,
    Alerts::SECTION,
    Faults::SECTION,
    Hedge::SECTION,
    Sizes::SECTION,
    Nats::SECTION,
    Http::SECTION,
];

const GENERAL: Section = Section {
    path: "",
    about: &[],
    settings: settings! {
        /// First token of all NATS subjects and, in capitals, of the stream names.
        user namespace: str = "muster";
    },
};

section! {
    /// Signs of life.
    Heartbeat "heartbeat"
    /// How often a worker sends a heartbeat, and the leader its beat, in milliseconds.
    user interval_ms: u64 = 1000 [development 500, testing 200, from 1];
    /// How long a worker that does not answer is waited for where a job has ended; and, three
    /// times, how long a worker takes "not yet" for an answer. In milliseconds.
    /// When silence means death is decided by [detector].
    expert dead_after_ms: u64 = 5000 [development 4000, testing 2000];
}

section! {
    /// Who leads when.
    Leader "leader"
    /// A stand-by takes over from a leader that nothing was heard of for so long, in milliseconds;
    /// from one whose connection has gone, after half of it.
    user silence_ms: u64 = 4000 [development 2500, testing 1000];
}

section! {
    /// When silence means death. Phi says how unlikely it is that a worker with this history of
    /// heartbeats is still alive: phi n is one chance in 10^n.
    Detector "detector"
    /// Silence shorter than this never makes a worker dead, in milliseconds; at least five
    /// heartbeat intervals, which large pools have longer.
    expert floor_ms: u64 = 5000 [development 3000, testing 1500, from 1];
    /// Silence of this length always does, in milliseconds; at least seven heartbeat intervals.
    expert ceiling_ms: u64 = 7000 [development 5000, testing 2500, to 3_600_000];
    /// Phi from which a silent worker is suspect, and gets no new work.
    expert suspect_phi: u32 = 3 [from 1];
    /// Phi from which it is dead, between floor and ceiling.
    expert dead_phi: u32 = 8 [to 1000];
    /// Pause on top of the usual interval that surprises nobody (a busy CPU, a slow disk), in
    /// milliseconds; at least two heartbeat intervals.
    expert acceptable_pause_ms: u64 = 2000 [development 1000, testing 800];
    /// Least standard deviation that is assumed, so that very regular heartbeats do not make a
    /// small delay look like death, in milliseconds.
    expert deviation_min_ms: u64 = 100 [development 50, testing 50, from 1];
    /// Intervals between heartbeats that are remembered of each worker.
    expert window: u32 = 200 [from 2, to 1000];
    /// Heartbeats after which a worker that came back from the dead is healthy.
    expert rejoin_beats: u32 = 3;
    /// Time after the coordinator itself was cut off or paused that still counts against no worker:
    /// they too must find their connection again. In milliseconds.
    expert grace_ms: u64 = 2000 [development 1000, testing 500];
}

section! {
    /// A worker that fails again and again gets nothing until a trial succeeds.
    Breaker "breaker"
    /// Failures in a row that open the breaker.
    expert failures_max: u32 = 5 [from 1];
    /// Or failures in percent of what ended within window_ms, once volume_min ended.
    expert rate_percent: u32 = 50 [from 1, to 100];
    expert volume_min: u32 = 10 [from 1];
    expert window_ms: u64 = 60_000 [testing 10_000, from 10];
    /// How long it stays open at first, in milliseconds; twice as long after each trial that fails,
    /// up to open_max_ms.
    expert open_ms: u64 = 5000 [development 2000, testing 500, from 1];
    expert open_max_ms: u64 = 300_000 [development 60_000, testing 5000];
    /// A trial without an outcome for so long no longer keeps the next one from beginning, in
    /// milliseconds.
    expert trial_ms: u64 = 600_000 [testing 30_000, from 1];
}

section! {
    /// Second attempts of slow tasks.
    Speculation "speculation"
    /// Slots in percent of the pool that second attempts may hold (one at least); 0 turns them off.
    user slots_percent: u32 = 10 [to 100];
    /// Tasks in percent of their phase that must be done before the rates count; or samples_min of
    /// them, whichever comes first.
    expert done_percent: u32 = 50 [to 100];
    expert samples_min: u32 = 5 [from 1];
    /// A second attempt begins where the first is expected to need more than this percent of the
    /// time of a fresh one.
    expert factor_percent: u32 = 150 [from 100, to 10_000];
    /// And has run for so long, in milliseconds.
    expert runtime_min_ms: u64 = 10_000 [development 5000, testing 1000];
    /// An attempt that did not progress for so long hangs, in milliseconds.
    expert hang_ms: u64 = 120_000 [testing 15_000];
    /// A worker is slow, and degraded, below this percent of the median rate.
    expert slow_percent: u32 = 50 [to 100];
}

section! {
    /// What is lost, and made again.
    Recovery "recovery"
    /// How often the run of one sort task may be lost, and made again from its input, before the
    /// job fails; and how often runs of one job may be lost in all.
    expert generations_max: u32 = 5;
    expert repeated_max: u32 = 1000;
    /// A wave: more than wave_percent of the workers, and wave_losses_min at least, lost within
    /// wave_window_ms.
    expert wave_percent: u32 = 20 [from 1, to 100];
    expert wave_losses_min: u32 = 3 [from 1];
    expert wave_window_ms: u64 = 60_000 [testing 10_000, from 10];
    /// Lost tasks that are given out again in a second: at first, and at most. The rate doubles
    /// with each step_ms in which a recovery succeeded and none failed.
    expert rate_min_per_s: u32 = 2 [testing 10, from 1];
    expert rate_max_per_s: u32 = 256 [to 1_000_000];
    expert step_ms: u64 = 1000 [testing 200, from 1];
    /// A wave is over when no worker was lost for so long, in milliseconds.
    expert calm_ms: u64 = 30_000 [testing 3000];
}

section! {
    /// What people are told of.
    Alerts "alerts"
    /// A condition must last so long before its alert is raised, and be gone so long before it is
    /// cleared, in milliseconds. What is certain (a dead worker, failures) is raised at once.
    expert raise_ms: u64 = 5000 [development 2000, testing 400];
    expert clear_ms: u64 = 30_000 [development 5000, testing 1000];
    /// high-error-rate: failures in percent of the attempts of a worker within error_window_ms,
    /// once error_volume_min ended.
    expert error_rate_percent: u32 = 20 [from 1, to 100];
    expert error_volume_min: u32 = 5 [from 1];
    expert error_window_ms: u64 = 300_000 [from 10];
    /// slow-progress: a job without progress for so long, in milliseconds (and a worker below
    /// speculation.slow_percent).
    user progress_stall_ms: u64 = 60_000 [testing 5000, from 1];
    /// memory-high: memory in use in percent of what the worker may have.
    user memory_percent: u32 = 90 [from 1, to 100];
    /// disk-low: free space of a worker's data directory is below what its tasks still need and so
    /// many percent more, or below so many bytes.
    expert disk_spare_percent: u32 = 20 [to 100];
    /// disk-low: so many free bytes are the least in any case.
    user disk_free_min_bytes: u64 = 268_435_456;
    /// journal-slow: one write takes longer than this, in milliseconds.
    expert journal_write_ms: u64 = 1000 [from 1];
    /// journal-failing: writes that failed in a row.
    expert journal_failures: u32 = 1 [from 1];
    /// journal-full: what the journal's stream holds, in percent of what it may
    /// (journal.bytes_max); it takes nothing more once it is full.
    expert journal_percent: u32 = 80;
    /// journal-backlog: records that wait to be written.
    expert journal_backlog: u32 = 1000 [from 1];
    /// task-backlog: tasks that wait, for each slot of the pool.
    expert tasks_per_slot: u32 = 1000 [from 1];
    /// task-failures: attempts of a worker or of a job that failed in a row.
    expert task_failures: u32 = 3 [from 1];
}

section! {
    /// How many workers are the least.
    Pool "pool"
    /// Workers without which nothing is given out; and workers that must live, in percent of those
    /// that took part (drained ones apart). 0 turns either off.
    /// Where there are too few for phases.register_ms, jobs that run fail.
    user min_workers: u32 = 0;
    user min_alive_percent: u32 = 0 [to 100];
    /// How long a worker that is dead or has left stays in the list, in milliseconds.
    expert forget_ms: u64 = 3_600_000;
}

section! {
    /// Requests a second of all workers together, once a store asks for fewer.
    Limits "limits"
    /// At first, and at least. Each second in which it asks again halves them, each other adds
    /// step_per_s.
    expert start_per_s: u32 = 400;
    expert min_per_s: u32 = 10 [from 1];
    expert step_per_s: u32 = 20 [from 1];
    /// The limit is lifted when no store asked for so long, in milliseconds.
    expert calm_ms: u64 = 30_000;
}

section! {
    /// The connection to NATS.
    Nats "nats"
    /// How long one request waits for its answer, in milliseconds.
    expert request_timeout_ms: u64 = 5000 [testing 2000, from 1];
    /// Pings find a half-open connection, in milliseconds.
    expert ping_interval_ms: u64 = 5000 [testing 2000];
    /// How long one try to connect to one server may take, in milliseconds. Where a host is gone
    /// nothing answers at all: below half of detector.floor_ms a worker tries another server
    /// of the cluster before its silence is taken for death.
    expert connect_timeout_ms: u64 = 2000 [from 1];
}

section! {
    /// The durable state of jobs.
    Journal "journal"
    /// How long one append waits for its acknowledgement before its outcome counts as unknown, in
    /// milliseconds.
    expert append_timeout_ms: u64 = 10_000 [testing 3000, from 1];
    /// Records after which a snapshot replaces what came before.
    expert snapshot_after: u64 = 20_000;
    /// Newest snapshots that are kept, with the records between them: where the last one is
    /// damaged, the one before serves.
    expert snapshots_kept: u32 = 2 [from 1];
    /// Size of the journal's stream in bytes; a full one refuses new jobs.
    user bytes_max: u64 = 1_073_741_824;
    /// Replicas of the streams: 1 on a single server, 3 in a cluster.
    user replicas: u32 = 1;
    /// Ended jobs that stay known to `muster jobs`.
    user ended_jobs_max: u32 = 100;
    /// And for how long after their end, in milliseconds; 0 is for ever. Their events stay as long
    /// as the stream of events keeps them.
    user ended_age_ms: u64 = 604_800_000;
}

section! {
    /// Single tasks.
    Tasks "tasks"
    /// Tries of one task before the job fails.
    user attempts_max: u32 = 4 [from 1];
    /// How long a new leader waits for workers to register again before it gives their tasks to
    /// others, in milliseconds.
    expert regrant_grace_ms: u64 = 3000 [development 2000, testing 1000];
    /// How long a command to a worker may go unanswered before it is sent again, in milliseconds.
    expert command_retry_ms: u64 = 1000 [testing 300, from 1];
}

section! {
    /// A phase that makes no progress for so long fails its job.
    Phases "phases"
    /// Workers that are waited for: too few of them ([pool]), or one that alone can read some of
    /// the input (--input-dir) and is dead, has left or is draining. In milliseconds, as all of
    /// these.
    user register_ms: u64 = 300_000;
    /// Sampling.
    expert sample_ms: u64 = 600_000;
    /// Sorting.
    user sort_ms: u64 = 1_800_000;
    /// The barrier between sort and merge: the list of runs is checked and written.
    expert shuffle_ms: u64 = 1_800_000;
    /// Merging.
    user merge_ms: u64 = 3_600_000;
    /// A commit that is decided, but fails again and again for so long, ends its job, in
    /// milliseconds.
    expert commit_ms: u64 = 3_600_000;
    /// A clean-up that fails for so long is given up, so that OUTPUT is free again, in
    /// milliseconds; `muster doctor --mend` finds what is left.
    expert clean_ms: u64 = 3_600_000;
}

section! {
    /// Calls of stores.
    Store "store"
    /// Making a connection, in milliseconds.
    expert connect_timeout_ms: u64 = 5000 [from 1];
    /// One request, its body included, in milliseconds; ranges and parts are small enough for it.
    user request_timeout_ms: u64 = 60_000 [testing 30_000, from 1];
    /// Requests that the S3 client repeats by itself within one call; beyond them [retry.store]
    /// decides.
    expert client_retries_max: u32 = 4;
    /// One call of a store, a disk included, with what its client repeats, in milliseconds.
    user call_timeout_ms: u64 = 120_000 [testing 60_000, from 1];
    /// How long after the clean-up of a job its scratch is looked at once more, in milliseconds:
    /// for what was on its way to the store when its worker died.
    expert late_sweep_ms: u64 = 300_000 [from 1];
    /// One listing, all its pages together, in milliseconds; that of the input which workers offer,
    /// too.
    expert list_timeout_ms: u64 = 600_000 [from 1];
    /// Where a run lies in a replica too, one copy is waited for so long, in milliseconds, before
    /// the other is read; if neither answers, [retry.store] decides.
    expert replica_after_ms: u64 = 10_000 [from 1];
    /// Input objects of one job, at most. A run on one machine takes as many as its --memory has
    /// room for, where that is fewer.
    user objects_max: u64 = 1_000_000 [from 1, to 1_000_000];
    /// Entries of folders that one look for input goes through, at most, and how deep it goes;
    /// links to folders are followed, never to one that holds them.
    expert entries_max: u64 = 10_000_000 [from 1];
    expert depth_max: u64 = 64 [from 1];
}

section! {
    /// A job's claim on OUTPUT, which lies in OUTPUT itself.
    Claim "claim"
    /// How often its owner changes it, in milliseconds, to show that it lives.
    expert renew_ms: u64 = 3000 [testing 400, from 1];
    /// Who wants OUTPUT takes it from an owner whose claim has not changed for so long, in
    /// milliseconds. A run on this machine whose process is gone is not waited for.
    user dead_after_ms: u64 = 30_000 [testing 4000];
}

section! {
    /// Second requests for ranges that a store (a disk apart) is slow to give; the first answer
    /// counts.
    Hedge "hedge"
    /// Reads in percent that may be asked for twice; 0 turns it off.
    expert share_percent: u32 = 5;
    /// A read is slow beyond factor_percent of what quantile_percent of the last 64 took, and
    /// after_min_ms at least, once samples_min are known.
    expert quantile_percent: u32 = 95;
    expert factor_percent: u32 = 300;
    expert after_min_ms: u64 = 200;
    expert samples_min: u32 = 20;
}

section! {
    /// Faults on purpose.
    Faults "faults"
    /// Whether `--faults` may damage and kill on purpose; the environment variable
    /// MUSTER_ENABLE_FAULTS=1 allows it, too.
    user enabled: bool = false;
}

section! {
    /// /healthz and its kin (--http ADDR).
    Http "http"
    /// /healthz (--http ADDR) says that the process is stuck where its main loop has not come round
    /// for so long, in milliseconds. Waiting for NATS or for the journal is no standstill.
    expert stuck_ms: u64 = 30_000 [from 1];
}

section! {
    /// How long a worker waits.
    Worker "worker"
    /// How long a worker waits for a coordinator or for NATS before it exits, in milliseconds.
    user coordinator_wait_ms: u64 = 300_000 [testing 60_000];
    /// How long a worker that has nothing left to do waits for a store that does not answer it
    /// before it exits, in milliseconds; 0 waits for ever.
    user store_wait_ms: u64 = 300_000;
    /// How long a stopping worker may take to finish what it has, in milliseconds.
    user drain_ms: u64 = 30_000;
}

section! {
    /// How input and output are divided.
    Sizes "sizes"
    /// Input bytes of one sort task: a sixteenth of the input within these bounds, and within a
    /// task's memory where that is known.
    expert split_bytes_min: u64 = 67_108_864 [from 1];
    expert split_bytes_max: u64 = 1_073_741_824;
    /// Output bytes of one partition: a sixteenth of the input within these bounds.
    expert partition_bytes_min: u64 = 67_108_864 [from 1];
    expert partition_bytes_max: u64 = 1_073_741_824;
    /// Samples of one partition on average.
    expert samples_per_partition: u32 = 256 [from 1];
    /// Where boundaries are doubtful, for want of samples or because the fullest partition would be
    /// more than partition_percent_max of the mean (0: however full), more is sampled:
    /// so many rounds in all. Partitions that are too uneven after the last of them fail the job.
    expert sampling_rounds_max: u32 = 3 [from 1];
    expert partition_percent_max: u32 = 400;
}

section! {
    /// One job, exactly.
    Job "job"
    /// Input bytes of one sort task and output bytes of one partition, exactly; 0 leaves them to
    /// [sizes].
    user split_bytes: u64 = 0;
    user partition_bytes: u64 = 0;
}

/// When what failed is tried again, by kind of trouble: the sections `[retry.<kind>]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "each is a kind of trouble, and a section below")]
pub struct Retry {
    pub store: Policy,
    pub throttle: Policy,
    pub nats: Policy,
    pub abort: Policy,
    pub task: Policy,
    pub disk: Policy,
    pub memory: Policy,
    pub input: Policy,
}

const STORE: Section = Section {
    path: "retry.store",
    about: &[
        " A store call that failed in passing. A coordinator's steps with the store have the bound",
        " of the phase instead of attempts_max and total_ms.",
        "",
        " How it is tried again, here and in all of [retry]. strategy: immediate, fixed, linear,",
        " exponential. pause_ms is the first pause, pause_max_ms the longest; jitter_percent of",
        " each is left to chance. attempts_max bounds the tries and total_ms the time from the",
        " first failure on; 0 is no bound of this kind.",
    ],
    settings: settings! {
        expert strategy: str = "exponential";
        expert pause_ms: u64 = 100 [testing 50];
        expert pause_max_ms: u64 = 10_000 [development 5000, testing 1000];
        expert jitter_percent: u32 = 50;
        user attempts_max: u32 = 6 [testing 8];
        expert total_ms: u64 = 600_000;
    },
};

const THROTTLE: Section = Section {
    path: "retry.throttle",
    about: &[" A store that asks for fewer requests (503, 429)."],
    settings: settings! {
        expert strategy: str = "exponential";
        expert pause_ms: u64 = 500 [testing 100];
        expert pause_max_ms: u64 = 20_000 [development 10_000, testing 2000];
        expert jitter_percent: u32 = 75;
        expert attempts_max: u32 = 16;
        expert total_ms: u64 = 600_000;
    },
};

const NATS: Section = Section {
    path: "retry.nats",
    about: &[
        " A report or a registration that was not acknowledged; worker.coordinator_wait_ms is the",
        " bound.",
    ],
    settings: settings! {
        expert strategy: str = "exponential";
        expert pause_ms: u64 = 100 [testing 50];
        expert pause_max_ms: u64 = 10_000 [development 5000, testing 1000];
        expert jitter_percent: u32 = 50;
        expert attempts_max: u32 = 0;
        expert total_ms: u64 = 0;
    },
};

const ABORT: Section = Section {
    path: "retry.abort",
    about: &[" A revoked upload that could not be aborted; the phase's time-out is the bound."],
    settings: settings! {
        expert strategy: str = "exponential";
        expert pause_ms: u64 = 200 [testing 50];
        expert pause_max_ms: u64 = 10_000 [testing 1000];
        expert jitter_percent: u32 = 50;
        expert attempts_max: u32 = 0;
        expert total_ms: u64 = 0;
    },
};

const TASK: Section = Section {
    path: "retry.task",
    about: &[" A task whose attempt failed; tasks.attempts_max is the bound."],
    settings: settings! {
        expert strategy: str = "exponential";
        expert pause_ms: u64 = 100 [testing 50];
        expert pause_max_ms: u64 = 10_000 [testing 1000];
        expert jitter_percent: u32 = 50;
        expert attempts_max: u32 = 0;
        expert total_ms: u64 = 0;
    },
};

const DISK: Section = Section {
    path: "retry.disk",
    about: &[
        " A worker's own disk that is full: once more after a clean-up, then the task goes",
        " elsewhere.",
    ],
    settings: settings! {
        expert strategy: str = "fixed";
        expert pause_ms: u64 = 1000 [testing 200];
        expert pause_max_ms: u64 = 1000;
        expert jitter_percent: u32 = 20;
        expert attempts_max: u32 = 2;
        expert total_ms: u64 = 60_000;
    },
};

const MEMORY: Section = Section {
    path: "retry.memory",
    about: &[" Memory that was refused: at once, with chunks of half the size."],
    settings: settings! {
        expert strategy: str = "immediate";
        expert pause_ms: u64 = 0;
        expert pause_max_ms: u64 = 0;
        expert jitter_percent: u32 = 0;
        expert attempts_max: u32 = 4;
        expert total_ms: u64 = 0;
    },
};

const INPUT: Section = Section {
    path: "retry.input",
    about: &[
        " An input object that does not read as it should: it may have been damaged on its way.",
    ],
    settings: settings! {
        expert strategy: str = "linear";
        expert pause_ms: u64 = 200 [testing 50];
        expert pause_max_ms: u64 = 2000;
        expert jitter_percent: u32 = 50;
        expert attempts_max: u32 = 3;
        expert total_ms: u64 = 60_000;
    },
};
