//! The pool: who is registered, who lives, who is fit, and what one of them alone can read.

pub(crate) mod contact;
mod fitness;
pub(crate) mod members;
pub(crate) mod owners;
pub mod policies;
mod stragglers;
pub(crate) mod watch;
