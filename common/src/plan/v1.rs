//! Version 1 of plan and list of runs, frozen.

use serde::{Deserialize, Serialize};

use muster_kernel::proof::Interval;
use muster_kernel::spec::SortSpec;

use super::{BadRecords, PinnedObject, PinnedRun, PinnedRuns, Plan};
use crate::error::{Error, Result};
use crate::ids::{AttemptId, JobId};

/// See [`super::Plan`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanV1 {
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
}

/// See [`super::PinnedRuns`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinnedRunsV1 {
    /// The job.
    pub job: JobId,
    /// By split.
    pub runs: Vec<PinnedRunV1>,
}

/// See [`super::PinnedRun`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinnedRunV1 {
    /// The attempt that was committed.
    pub attempt: AttemptId,
    /// Where it stands.
    pub url: String,
    /// Its length.
    pub bytes: u64,
    /// The digest of its index.
    pub index_digest: u64,
}

impl From<PlanV1> for Plan {
    fn from(plan: PlanV1) -> Self {
        let PlanV1 {
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
        } = plan;
        let (replica, bad_records, settings, left_out) =
            (None, BadRecords::default(), None, Vec::new());
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
            left_out,
        }
    }
}

/// The fields of [`PlanV1`] in their order, borrowed: a plan of a million objects is written
/// without a second one.
#[derive(Debug, Serialize)]
pub(super) struct PlanV1Ref<'a> {
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
}

impl<'a> PlanV1Ref<'a> {
    /// None where the plan has what version 1 cannot say.
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
        if replica.is_some()
            || *bad_records != BadRecords::default()
            || settings.is_some()
            || !left_out.is_empty()
        {
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
        })
    }
}

impl From<PinnedRunsV1> for PinnedRuns {
    fn from(runs: PinnedRunsV1) -> Self {
        let lift = |run: PinnedRunV1| {
            let PinnedRunV1 { attempt, url, bytes, index_digest } = run;
            PinnedRun { attempt, url, replica: None, bytes, index_digest }
        };
        Self { job: runs.job, runs: runs.runs.into_iter().map(lift).collect() }
    }
}

impl TryFrom<PinnedRuns> for PinnedRunsV1 {
    type Error = Error;

    /// Refused where a run has a replica.
    fn try_from(runs: PinnedRuns) -> Result<Self> {
        let lower = |run: PinnedRun| {
            let PinnedRun { attempt, url, replica, bytes, index_digest } = run;
            match replica {
                None => Ok(PinnedRunV1 { attempt, url, bytes, index_digest }),
                Some(_) => Err(Error::invalid(format!("the run of {attempt} needs version 2"))),
            }
        };
        Ok(Self { job: runs.job, runs: runs.runs.into_iter().map(lower).collect::<Result<_>>()? })
    }
}
