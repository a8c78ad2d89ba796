//! What every process of muster stands on: the ports to clock, store and ledger with their adapters
//! (NATS, S3, file systems, memory), settings, retries, faults, claims, telemetry.

pub mod adapters;
pub mod buffer;
pub mod claim;
pub mod clock;
pub mod config;
pub mod conformance;
pub mod etag;
pub mod faults;
pub mod http;
pub mod inputs;
pub mod ledger;
pub mod paths;
pub mod quiet;
pub mod retry;
pub mod store;
pub mod stores;
pub mod survey;
pub mod telemetry;
pub mod vitals;
