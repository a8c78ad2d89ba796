//! The tasks of a job: where each stands, who has it, what a worker's word on it is worth, and what
//! is done anew.

pub(crate) mod attempts;
mod grants;
pub(crate) mod left_out;
pub(crate) mod lineage;
mod reports;
pub(crate) mod table;
