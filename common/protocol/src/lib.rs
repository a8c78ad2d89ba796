//! What processes of muster say to each other and keep: identifiers, names, rights, messages, plans
//! and the control API, with their versions. Pure: it opens nothing, waits for nothing, and knows
//! of the other crates the kernel's types alone.

pub mod api;
pub mod error;
#[cfg(test)]
mod golden;
pub mod ids;
pub mod names;
pub mod plan;
pub mod planted;
pub mod rights;
pub mod wire;

pub use error::{Error, ErrorKind, Result};

/// 1 in builds that play the version after this one, of all that has a version: those with the
/// feature `next-version`. Else 0.
pub const NEXT: u8 = cfg!(feature = "next-version") as u8;
