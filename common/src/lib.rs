//! What coordinator, worker and command line share: identifiers, messages, names, settings, errors,
//! and the ports to clock and store with their adapters.

pub mod adapters;
pub mod api;
pub mod buffer;
pub mod claim;
pub mod clock;
pub mod config;
pub mod conformance;
pub mod error;
pub mod etag;
pub mod faults;
#[cfg(test)]
mod golden;
pub mod http;
pub mod ids;
pub mod inputs;
pub mod ledger;
pub mod names;
pub mod paths;
pub mod plan;
pub mod planted;
pub mod quiet;
pub mod retry;
pub mod rights;
pub mod store;
pub mod survey;
pub mod telemetry;
pub mod vitals;
pub mod wire;

pub use error::{Error, ErrorKind, Result};

/// 1 in builds that play the version after this one, of all that has a version: those with the
/// feature `next-version`. Else 0.
pub const NEXT: u8 = cfg!(feature = "next-version") as u8;
