//! Real servers, real processes, and independent computations to hold their results against.
//!
//! A test opens a [`Sandbox`], which owns every file it makes. Within it, it runs the built
//! `muster` program ([`Sandbox::muster`]), alone or as a [`Pool`] with a [`NatsServer`] or a
//! cluster of them and, where the data lies in a bucket, an [`S3Server`]. Where a test must hit a
//! certain moment, it does not sleep: it puts a [`Gate`] between a process and its store, and holds
//! requests there until it has done what it came for. What comes out is read back as an [`Output`]
//! and compared with what [`oracle`] computed; what was done on the way is read from the
//! [`Journal`].
//!
//! All waits are bounded ([`wait`]); every process ends with its test, even when the test is killed
//! ([`process`]); logs of a failed test are printed.

pub mod bucket;
pub mod client;
pub mod data;
pub mod fake_s3;
pub mod gate;
pub mod journal;
pub mod nats;
pub mod oracle;
pub mod output;
pub mod pool;
pub mod ports;
pub mod process;
pub mod programs;
pub mod relay;
pub mod s3;
pub mod sandbox;
pub mod users;
pub mod wait;
pub mod watched;

pub use bucket::Bucket;
pub use client::Client;
pub use fake_s3::FakeS3;
pub use gate::Gate;
pub use journal::Journal;
pub use nats::{Nats, NatsServer};
pub use output::Output;
pub use pool::Pool;
pub use process::Process;
pub use relay::{Relay, Weather};
pub use s3::S3Server;
pub use sandbox::{Finished, Sandbox, arg};
pub use users::Users;
