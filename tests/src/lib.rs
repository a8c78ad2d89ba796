//! How the whole of muster is tried: real servers and real processes ([`harness`]), against
//! computations that share no code with it.
//!
//! The tests themselves stand in `tests/*.rs`, one file a theme; those whose names begin with
//! `long_` run with `deploy/test.sh --all` only.

pub mod chaos;
pub mod fuzz;
pub mod harness;
pub mod sim;
