//! The adapters behind the ports: thin, and the only places that know NATS, S3 or a file system.

pub mod bounded;
pub mod changes;
pub mod events;
pub mod faulty;
mod folders;
pub mod journal;
pub mod local;
pub mod memory;
pub mod metered;
pub mod nats;
pub mod own_files;
pub mod processes;
pub mod refusals;
pub mod retrying;
pub mod s3;
pub mod servers;
pub mod territory;
