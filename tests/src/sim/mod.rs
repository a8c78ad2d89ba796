//! The deterministic simulation: real machines, real journal writer, real tasks and real work with
//! the stores, one thing at a time with one queue of events; everything that may fail, fails as a
//! seed says. The same seed gives the same run.
//!
//! ```text
//! world ──────────────────▶ coordinator / worker ───▶ bus, ledger, store
//! (queue, faults, heal)     (the program's machines)  (simulated, with faults;
//!   │                                                  futures polled by exec)
//!   └── checker ◀── every entry, call, answer and step
//! ```

#![expect(
    clippy::cast_possible_truncation,
    reason = "numbers here are small by the way they are drawn"
)]

pub mod bus;
pub mod checker;
pub mod claims;
pub mod coordinator;
pub mod core;
pub mod crew;
pub mod dice;
pub mod exec;
pub mod faults;
pub mod inputs;
pub mod jobs;
pub mod ledger;
pub mod many;
pub mod oracle;
pub mod resign;
pub mod script;
pub mod store;
pub mod sweep;
pub mod trace;
pub mod worker;
pub mod world;

pub use world::{CrashAt, RunReport, Setting};

/// Runs one seed.
pub fn run(setting: &Setting) -> RunReport {
    world::World::new(setting).run()
}

/// The setting of a plain seed.
pub fn seed(seed: u64, traces: bool) -> Setting {
    Setting { seed, traces, weights: None, fixed: false, crash_at: None, script: None }
}
