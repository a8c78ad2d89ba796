//! What a job is: the request, the plan made of it, and the list of pinned runs. Plan and list lie
//! in scratch; the journal carries their digests.

use serde::{Deserialize, Serialize};

use muster_kernel::proof::Interval;
use muster_kernel::spec::SortSpec;

use crate::NEXT;
use crate::error::{Error, Result};
use crate::ids::{AttemptId, JobId};
use crate::wire::{self, Message};

#[cfg(any(test, feature = "next-version"))]
mod next;

/// The newest version of [`Plan`] and [`PinnedRuns`] as they are stored. What an older version can
/// say is written in it, so that workers of the last build read it.
pub const PLAN_VERSION: u8 = 1 + NEXT;
/// The oldest of them.
pub const PLAN_VERSION_OLDEST: u8 = 1;
/// Largest plan or list of runs that is read back, in bytes.
pub const PLAN_BYTES_MAX: u64 = 256 << 20;
/// Most input objects of one job.
pub const OBJECTS_MAX: usize = 1_000_000;
/// Memory that one input object takes in a process that leads a job and works on it: names and
/// versions in its lists and plans, and the pieces of splits (measured while it sorts; while it
/// plans they take about 1,000, of memory that is not sorted in yet).
pub const OBJECT_BYTES: u64 = 600;
/// Longest name, as a URL, that this is for...
const NAME_BYTES: usize = 80;
/// ...and how often each byte beyond it is held (measured: 2.7).
const NAME_COPIES: u64 = 3;
/// Most partitions of one job; part names have five digits.
pub const PARTITIONS_MAX: u32 = 100_000;
/// Longest text field of a request, in bytes.
pub const TEXT_BYTES_MAX: usize = 4096;
/// Most INPUT arguments of one job.
pub const INPUTS_MAX: usize = 10_000;

/// A request to sort, as a client submits it (JSON in the control API).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobSpec {
    /// Chosen by the client; a repeat with the same id and request is the same job.
    pub job: JobId,
    /// Objects, folders, prefixes and globs, as absolute paths or URLs; `workers:/` and a path or
    /// glob for what workers offer of their own (`workers:/`).
    pub inputs: Vec<String>,
    /// The folder or prefix that parts go to, as an absolute path or URL.
    pub output: String,
    /// Where scratch goes; else the coordinator's bucket, else below `output`.
    pub bucket: Option<String>,
    /// Format, keys and flags.
    pub sort: SortSpec,
    /// Whether the format was left to muster (`--format auto`, read as lines): input that looks
    /// like another format is then refused by name.
    pub auto_format: bool,
    /// Extension of the parts, without the dot.
    pub extension: String,
    /// Whether an OUTPUT that is not empty may be replaced.
    pub overwrite: bool,
    /// Whether output on a file system is synced before `_SUCCESS`.
    pub fsync: bool,
    /// Sizes and bounds.
    pub sizing: Sizing,
    /// Where every run is to lie a second time, as an absolute path or URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replica: Option<String>,
    /// What becomes of malformed records.
    #[serde(default, skip_serializing_if = "is_default")]
    pub bad_records: BadRecords,
    /// What becomes of input objects that cannot be read.
    #[serde(default, skip_serializing_if = "is_default")]
    pub bad_inputs: BadInputs,
    /// Settings of this job alone, as TOML over the coordinator's own (sections `retry`, `phases`,
    /// `tasks`, `speculation`, `recovery`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settings: Option<String>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// What becomes of malformed records. Plans hold it: variants are added at the end, by a new
/// version of the plan.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BadRecords {
    /// The job fails and names the first.
    #[default]
    Fail,
    /// They are left out and counted.
    Skip,
    /// They are left out, counted, and kept below `<OUTPUT>/_quarantine/`.
    Quarantine,
}

/// What becomes of input objects that cannot be read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BadInputs {
    /// The job fails and names the first.
    #[default]
    Fail,
    /// They are left out as a whole, and named.
    Skip,
}

/// The sizes that shape a plan. All of them come from options, none from workers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sizing {
    /// How many partitions; else by `partition_bytes`.
    pub partitions: Option<u32>,
    /// Input bytes of one sort task; else from the input's size.
    pub split_bytes: Option<u64>,
    /// Output bytes of one partition; else from the input's size.
    pub partition_bytes: Option<u64>,
    /// Memory of one task in bytes that the splits should fit, where the client knows it.
    pub task_memory_bytes: Option<u64>,
    /// Tries of one task before the job fails.
    pub attempts_max: Option<u32>,
}

/// One input object, as it was when the job was planned. It lies within plans, and never changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinnedObject {
    /// Its blob URL.
    pub url: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// ETag, or modification time and inode: whatever its store tells versions apart by.
    pub version: String,
}

/// In place of ids of uploads: the store does not list them, or not for this user. No store gives
/// such an id.
pub const UPLOADS_UNKNOWN: &str = "*";

/// An entry of the input that cannot be read, seen when it was listed. It lies within plans, and
/// never changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// Its blob URL.
    pub url: String,
    /// Why it cannot be read.
    pub why: String,
}

/// Memory that the names and places of these objects take in a process that leads their job and
/// works on it, in bytes.
pub fn memory_of(objects: &[PinnedObject]) -> u64 {
    let long = |object: &PinnedObject| object.url.len().saturating_sub(NAME_BYTES) as u64;
    objects.iter().map(|object| OBJECT_BYTES + NAME_COPIES * long(object)).sum()
}

/// Everything that workers need to know of a job; made from options and pinned input alone, so the
/// same request over the same input gives the same parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The job.
    pub job: JobId,
    /// Format, keys and flags: as JSON, as in a [`JobSpec`].
    #[serde(with = "wire::as_json")]
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
    /// [`UPLOADS_UNKNOWN`] alone where the store does not tell.
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
    /// What the input holds besides `objects` and cannot be read.
    pub left_out: Vec<LeftOut>,
}

/// The runs that the merges of a job read: one for each split, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinnedRuns {
    /// The job.
    pub job: JobId,
    /// By split.
    pub runs: Vec<PinnedRun>,
}

/// One committed run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinnedRun {
    /// The attempt that was committed.
    pub attempt: AttemptId,
    /// Where it stands.
    pub url: String,
    /// Where it stands a second time.
    pub replica: Option<String>,
    /// Its length.
    pub bytes: u64,
    /// The digest of its index.
    pub index_digest: u64,
}

impl PinnedObject {
    /// The units that splits of it tile and its records have places in: bytes, as long as every
    /// format is read by ranges of bytes. A format of which that is not so (row groups, what is
    /// compressed as a whole) pins their number here.
    pub fn units(&self) -> u64 {
        self.bytes
    }

    /// The name of the worker that alone can read it; none where every process can.
    pub fn owner(&self) -> Option<&str> {
        self.url.strip_prefix("worker://")?.split('/').next()
    }
}

impl Plan {
    /// Whether it is known which uploads were open before the job began; if not, any upload that
    /// nobody of the job reported may be somebody else's.
    pub fn knows_uploads_before(&self) -> bool {
        self.uploads_before.iter().all(|upload| upload != UPLOADS_UNKNOWN)
    }

    /// The names below OUTPUT of all that a job with so many partitions may make there.
    pub fn output_names(&self, partitions: u32) -> impl Iterator<Item = String> {
        use crate::names;

        let parts = (0..partitions).map(|partition| names::part_name(partition, &self.extension));
        let splits = if self.bad_records == BadRecords::Quarantine { self.splits.len() } else { 0 };
        let quarantine = (0..u32::try_from(splits).unwrap_or(u32::MAX)).map(names::quarantine_path);
        parts.chain([names::SUCCESS.to_owned()]).chain(quarantine)
    }

    /// The name of the worker that alone can read a split; none where every worker can.
    pub fn owner(&self, split: u32) -> Option<&str> {
        let piece = self.splits.get(split as usize)?.first()?;
        self.objects.get(piece.object as usize)?.owner()
    }

    /// The global position of each object's first unit, and the number of all as last element.
    pub fn positions(&self) -> Vec<u64> {
        let mut positions = Vec::with_capacity(self.objects.len() + 1);
        let mut next = 0;
        for object in &self.objects {
            positions.push(next);
            next += object.units();
        }
        positions.push(next);
        positions
    }

    /// Input bytes in all.
    pub fn input_bytes(&self) -> u64 {
        self.objects.iter().map(|object| object.bytes).sum()
    }

    /// Input bytes of one split.
    pub fn split_bytes(&self, split: u32) -> u64 {
        self.splits
            .get(split as usize)
            .map_or(0, |pieces| pieces.iter().map(|piece| piece.end - piece.begin).sum())
    }

    /// As stored.
    ///
    /// # Errors
    /// `Bug` where it cannot be serialised.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        wire::to_oldest_frame(self, PLAN_VERSION_OLDEST, PLAN_VERSION)
    }

    /// Reads a stored plan and checks that its pieces lie within its objects, that its bytes can be
    /// summed up, and that no split mixes what different workers alone can read.
    ///
    /// # Errors
    /// `Invalid` where it is malformed.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let plan =
            Self::from_frame(bytes).map_err(|error| unknown_order(bytes).unwrap_or(error))?;
        for piece in plan.splits.iter().flatten() {
            let object = plan.objects.get(piece.object as usize);
            if !object.is_some_and(|object| piece.begin <= piece.end && piece.end <= object.units())
            {
                return Err(Error::invalid(format!(
                    "the plan of job {} names bytes that its objects do not have",
                    plan.job
                )));
            }
        }
        // Sizes are summed up from here on without another look.
        let all =
            plan.objects.iter().try_fold(0_u64, |sum, object| sum.checked_add(object.units()));
        let split = |pieces: &Vec<Interval>| {
            pieces
                .iter()
                .try_fold(0_u64, |sum, piece| sum.checked_add(piece.end - piece.begin))
                .is_some()
        };
        if all.is_none() || !plan.splits.iter().all(split) {
            return Err(Error::invalid(format!(
                "the plan of job {} is of more bytes than can be counted",
                plan.job
            )));
        }
        let owner = |piece: &Interval| {
            plan.objects.get(piece.object as usize).and_then(PinnedObject::owner)
        };
        let mixed =
            |split: &Vec<Interval>| split.windows(2).any(|pair| owner(&pair[0]) != owner(&pair[1]));
        if plan.splits.iter().any(mixed) {
            return Err(Error::invalid(format!(
                "the plan of job {} has a split that no single worker can read",
                plan.job
            )));
        }
        Ok(plan)
    }
}

/// Why a plan cannot be read, where it is for its sort specification: postcard's errors have no
/// words. Plans begin with the job and that.
fn unknown_order(frame: &[u8]) -> Option<Error> {
    let ((job, sort), _) = postcard::take_from_bytes::<(JobId, String)>(frame.get(1..)?).ok()?;
    let error = serde_json::from_str::<SortSpec>(&sort).err()?;
    Some(Error::invalid(format!("job {job} has an order that this build does not know: {error}")))
}

impl PinnedRuns {
    /// As stored.
    ///
    /// # Errors
    /// `Bug` where it cannot be serialised.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        wire::to_oldest_frame(self, PLAN_VERSION_OLDEST, PLAN_VERSION)
    }

    /// Reads a stored list.
    ///
    /// # Errors
    /// `Invalid` where it is malformed.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        Self::from_frame(bytes)
    }
}

wire::same_since_1!(PinnedRuns);
// `next.rs` has two shapes of it.
#[cfg(not(any(test, feature = "next-version")))]
wire::same_since_1!(Plan);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden;

    #[test]
    fn a_plan_of_more_bytes_than_can_be_counted_is_refused() {
        let plan = golden::plan();
        let huge = PinnedObject { bytes: u64::MAX, ..plan.objects[0].clone() };
        let whole = Interval { object: 0, begin: 0, end: u64::MAX };
        let check = |objects: &[&PinnedObject], split: Vec<Interval>, sound: bool| {
            let objects = objects.iter().map(|object| (*object).clone()).collect();
            let plan = Plan { objects, splits: vec![split], ..plan.clone() };
            let read = Plan::from_bytes(&plan.to_bytes().expect("encodes"));
            assert_eq!(read.is_ok(), sound, "{read:?}");
        };
        check(&[&huge], vec![whole], true);
        check(&[&huge, &plan.objects[0]], vec![whole], false);
        check(&[&huge], vec![whole, whole], false);
    }

    /// A build that passed over an option would sort otherwise than was asked for.
    #[test]
    fn an_option_that_this_build_does_not_know_is_refused_by_name() {
        let refused = |plan: &Plan, option: &str, newer: &str| {
            let mut bytes = plan.to_bytes().expect("encodes");
            let found = bytes.windows(option.len()).position(|text| text == option.as_bytes());
            let at = found.expect("an option");
            bytes[at..at + option.len()].copy_from_slice(newer.as_bytes());
            let error = Plan::from_bytes(&bytes).expect_err(newer);
            assert!(error.message.contains(newer.trim_matches('"')), "{newer}: {error}");
        };
        let ranges = golden::plan();
        let lines = Plan { sort: golden::sort(), ..ranges.clone() };
        for (plan, option, newer) in [
            (&lines, "\"stable\"", "\"random\""),
            (&lines, "\"numeric\"", "\"version\""),
            (&lines, "\"start_field\"", "\"start_newer\""),
            (&lines, "\"terminator\"", "\"terminates\""),
            (&lines, "\"Lines\"", "\"Pages\""),
            (&ranges, "\"offset\"", "\"newest\""),
            (&ranges, "\"Range\"", "\"Spans\""),
        ] {
            refused(plan, option, newer);
        }
    }

    #[test]
    fn what_an_older_version_can_say_is_written_in_it() {
        let plan = golden::plan();
        let plans = [
            (Plan { extension: "txt".into(), ..plan.clone() }, 1),
            (Plan { extension: next::EXTENSION.into(), ..plan }, 2),
        ];
        for (plan, version) in plans {
            let bytes = wire::to_oldest_frame(&plan, PLAN_VERSION_OLDEST, 2).expect("encodes");
            assert_eq!(bytes[0], version);
            assert_eq!(Plan::from_bytes(&bytes), Ok(plan));
        }
    }
}
