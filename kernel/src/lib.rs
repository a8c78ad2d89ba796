//! The arithmetic of the sort: records and keys, run generation within a byte budget, the run
//! format, merging, and the sums that prove that nothing was lost. Pure: bytes in, bytes out; no
//! files, no network, no clock, no randomness, no threads.
//!
//! The way of the data, and where each step lives:
//!
//! ```text
//! object bytes ─▶ format::Cutter     which records are this split's
//!              ─▶ sort::ChunkSorter  order within a memory budget
//!              ─▶ run::RunWriter     blocks, index, footer
//!              ─▶ (bucket)
//!              ─▶ merge::merge       k runs to one partition
//!              ─▶ part::PartWriter   plain output
//! ```
//!
//! [`spec::SortSpec`] says what order is wanted, [`order::Order`] is its compiled form and the only
//! place that knows how a record becomes a byte-comparable key. [`splitters`] cut the order into
//! partitions. [`proof`] counts and sums (P1). [`mod@reference`] is the naive oracle of the tests
//! and of drills.

pub mod error;
pub mod format;
pub mod gensort;
pub mod loser_tree;
pub mod merge;
pub mod order;
pub mod part;
pub mod proof;
pub mod reference;
pub mod run;
pub mod select;
pub mod sort;
pub mod spec;
pub mod split;
pub mod splitters;
pub mod valsort;

mod blocks;
mod encode;
mod entries;
mod fields;
mod radix;
mod slab;
mod window;
