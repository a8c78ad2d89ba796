//! Version 2 of the plan, frozen. The list of runs of that version is the newest.

use serde::{Deserialize, Serialize};

use muster_kernel::proof::Interval;
use muster_kernel::spec::SortSpec;

use super::{BadRecords, PinnedObject, Plan};
use crate::ids::JobId;

/// See [`super::Plan`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanV2 {
    /// The job.
    pub job: JobId,
    /// Format, keys and flags.
    pub sort: SortSpec,
    /// The input in order; an index into this list names an object from here on.
    pub objects: Vec<PinnedObject>,
    /// The input bytes of each sort task.
    pub splits: Vec<Vec<Interval>>,
    /// How many partitions are aimed at; fewer distinct keys than that give fewer.
    pub partitions: u32,
    /// Seed of the sampled ranges.
    pub sample_seed: u64,
    /// Samples to take of each split.
    pub samples_per_split: u32,
    /// URL of OUTPUT.
    pub output: String,
    /// Extension of the parts.
    pub extension: String,
    /// URL of this job's scratch.
    pub scratch: String,
    /// What stood in OUTPUT and goes after the commit, if it is still that version.
    pub replaced: Vec<PinnedObject>,
    /// Ids of the uploads into OUTPUT that were open already: they are somebody else's.
    pub uploads_before: Vec<String>,
    /// Whether output on a file system is synced before `_SUCCESS`.
    pub fsync: bool,
    /// Tries of one task before the job fails.
    pub attempts_max: u32,
    /// URL of this job's second scratch, where every run lies again.
    pub replica: Option<String>,
    /// What becomes of malformed records.
    pub bad_records: BadRecords,
    /// Settings of this job alone, as TOML.
    pub settings: Option<String>,
}

impl From<PlanV2> for Plan {
    fn from(plan: PlanV2) -> Self {
        let PlanV2 {
            job,
            sort,
            objects,
            splits,
            partitions,
            sample_seed,
            samples_per_split,
            output,
            extension,
            scratch,
            replaced,
            uploads_before,
            fsync,
            attempts_max,
            replica,
            bad_records,
            settings,
        } = plan;
        Self {
            job,
            sort,
            objects,
            splits,
            partitions,
            sample_seed,
            samples_per_split,
            output,
            extension,
            scratch,
            replaced,
            uploads_before,
            fsync,
            attempts_max,
            replica,
            bad_records,
            settings,
            left_out: Vec::new(),
        }
    }
}

/// The fields of [`PlanV2`] in their order, borrowed.
#[derive(Debug, Serialize)]
pub(super) struct PlanV2Ref<'a> {
    job: &'a JobId,
    sort: &'a SortSpec,
    objects: &'a [PinnedObject],
    splits: &'a [Vec<Interval>],
    partitions: u32,
    sample_seed: u64,
    samples_per_split: u32,
    output: &'a str,
    extension: &'a str,
    scratch: &'a str,
    replaced: &'a [PinnedObject],
    uploads_before: &'a [String],
    fsync: bool,
    attempts_max: u32,
    replica: Option<&'a str>,
    bad_records: BadRecords,
    settings: Option<&'a str>,
}

impl<'a> PlanV2Ref<'a> {
    /// None where the plan has what version 2 cannot say.
    pub(super) fn of(plan: &'a Plan) -> Option<Self> {
        let Plan {
            job,
            sort,
            objects,
            splits,
            partitions,
            sample_seed,
            samples_per_split,
            output,
            extension,
            scratch,
            replaced,
            uploads_before,
            fsync,
            attempts_max,
            replica,
            bad_records,
            settings,
            left_out,
        } = plan;
        if !left_out.is_empty() {
            return None;
        }
        Some(Self {
            job,
            sort,
            objects,
            splits,
            partitions: *partitions,
            sample_seed: *sample_seed,
            samples_per_split: *samples_per_split,
            output,
            extension,
            scratch,
            replaced,
            uploads_before,
            fsync: *fsync,
            attempts_max: *attempts_max,
            replica: replica.as_deref(),
            bad_records: *bad_records,
            settings: settings.as_deref(),
        })
    }
}
