//! What people see. Nothing is decided here.

mod alerts;
pub mod figures;
pub(crate) mod letters;
pub(crate) mod recoveries;
pub(crate) mod status;
