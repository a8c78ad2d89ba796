//! The machine's tests: readable conversations with golden output, an exhaustive crash sweep, and
//! single cases. All of them run in [`world`], which checks the invariants after every step and
//! that folding the journal gives exactly the leader's durable state.

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

/// A plan of nothing, to be filled in.
pub(super) fn empty_plan() -> muster_protocol::plan::Plan {
    muster_protocol::plan::Plan {
        job: world::job("j1"),
        sort: muster_kernel::spec::SortSpec::new(muster_kernel::format::Format::lines(b'\n')),
        objects: Vec::new(),
        splits: Vec::new(),
        partitions: 1,
        sample_seed: 0,
        samples_per_split: 1,
        output: "file:///out".to_owned(),
        extension: "txt".to_owned(),
        scratch: "file:///out/_muster/d1/j1".to_owned(),
        replaced: Vec::new(),
        uploads_before: Vec::new(),
        fsync: false,
        attempts_max: 1,
        replica: None,
        bad_records: muster_protocol::plan::BadRecords::Fail,
        settings: None,
        left_out: Vec::new(),
    }
}
