//! Runs attempts: reads splits, writes runs and parts, and tells the leader. Any number of workers
//! may live in one process, each with its share of memory.
//!
//! The way of an attempt, and where each step lives:
//!
//! ```text
//! command ─▶ driver ─▶ attempt (pure: accept? report? abandon?)
//!                         │ at_work: begin, go on, end, remove
//!                         ▼
//!               tasks::{sample, sort, merge} ─▶ outcome ─▶ driver ─▶ report
//!                 │ transfer: windows in, parts out
//!                 │ memory, slots: within how many bytes
//!                 └ crew: on which threads
//! ```
//!
//! A worker commits nothing. It writes only below names that carry its attempt's id, or into
//! uploads that the leader knows and completes; it knows no other worker and never looks at the
//! journal.

pub mod arrival;
pub mod at_work;
pub mod attempt;
mod cache;
pub mod crew;
mod driver;
mod guard;
mod health;
mod memory;
mod metrics;
pub mod presence;
mod requests;
mod slots;
mod spills;
mod tasks;
#[cfg(test)]
mod testing;
mod transfer;

use std::path::PathBuf;
use std::sync::Arc;

use muster_platform::clock::Clock;
use muster_platform::config::Config;
use muster_platform::faults::Faults;
use muster_platform::stores::Stores;
use muster_platform::vitals::Vitals;
use muster_protocol::Result;
use muster_protocol::ids::WorkerId;
use tokio_util::sync::CancellationToken;

pub use cache::Jobs;
pub use memory::Budget;
pub use spills::Spills;
pub use tasks::Context;

/// Who a worker is and what it may use.
#[derive(Debug, Clone)]
pub struct WorkerOptions {
    /// Its identity, which outlives the process.
    pub id: WorkerId,
    /// The effective settings.
    pub config: Config,
    /// Memory of this worker in bytes, its share of the runtime included: what it tells the leader.
    pub memory_bytes: u64,
    /// The memory of its process, divided among the tasks of all of the process's workers.
    pub budget: Budget,
    /// The jobs that the workers of this process know.
    pub jobs: Jobs,
    /// Attempts that it runs at once.
    pub threads: u32,
    /// `key=value` labels.
    pub labels: Vec<(String, String)>,
    /// Where spills go: a folder `spill/ID` below it is this worker's alone.
    pub data_dir: PathBuf,
    /// Host name, for messages to people.
    pub host: String,
    /// The program's version, for people.
    pub program: String,
    /// Folders whose files this worker alone can read and offers as input.
    pub input_dirs: Vec<PathBuf>,
    /// Whether it has a NATS user of its own, which may ask under its id alone: then the subjects
    /// of its requests bear that.
    pub own_user: bool,
    /// Faults to inject, where somebody asked for it.
    pub faults: Option<Arc<Faults>>,
    /// Where it tells how it is, where somebody watches it.
    pub vitals: Option<Arc<Vitals>>,
}

/// Why a worker ended, other than by an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It was told to stop, and did.
    Stopped,
    /// The leader told it to drain; it has finished what it had.
    Drained,
}

/// Runs a worker until it is stopped or drained. When `stop` is cancelled it finishes what it has
/// within `worker.drain_ms`, or hands it back.
///
/// # Errors
/// `Retry` where a supervisor should start it again: no coordinator was heard of for
/// `worker.coordinator_wait_ms`, or the connection to NATS is closed for good. `Invalid` where the
/// leader refuses this worker, for instance because another process lives under its id, or where
/// `data_dir` or one of `input_dirs` cannot be used.
pub async fn run(
    client: async_nats::Client,
    stores: Stores,
    clock: Arc<dyn Clock>,
    options: WorkerOptions,
    stop: CancellationToken,
) -> Result<Exit> {
    driver::Driver::new(client, stores, clock, options).await?.run(stop).await
}
