//! A job's way: a request becomes a plan, stages follow one another with barriers between them, and
//! in the end nothing is left but the result.

pub(crate) mod active;
pub(crate) mod barriers;
pub(crate) mod boundaries;
mod clean_up;
pub(crate) mod commit;
mod end;
pub(crate) mod jobs;
pub mod plan;
pub(crate) mod stages;
pub(crate) mod submit;
pub(crate) mod table;
mod take_over;
