//! The machine's tests: readable conversations with golden output, an exhaustive crash sweep, and single cases. All of them run in [`world`], which checks the
//! invariants after every step and that folding the journal gives exactly the leader's durable state.

mod boundaries;
mod cases;
mod fakes;
mod golden;
mod left_out;
mod lineage;
mod owners;
mod pool;
mod random;
mod scripts;
mod stragglers;
mod sweep;
mod world;
