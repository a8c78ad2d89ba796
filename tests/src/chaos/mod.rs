//! Real chaos: real processes and real servers under a seeded schedule of faults, job after job,
//! each held against the result of a calm run.
//!
//! [`schedule`] says what goes wrong and when (pure), [relays](crate::harness::relay) make
//! partitions and outages, [`stage`] holds the processes and carries faults out and heals them,
//! [`cases`] are the jobs, [`watch`] asks where they stand, and [`run`] plays rounds: jobs are
//! submitted while faults strike; then everything is healed, every job must end, and nothing may be
//! left.

pub mod cases;
pub mod run;
pub mod schedule;
pub mod stage;
pub mod watch;

pub use run::{Report, Settings, play};
