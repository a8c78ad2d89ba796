//! From a request and its pinned input to a plan, and from samples to splitters. Arithmetic only:
//! the same request over the same input gives the same plan, whatever workers there are.

use std::collections::BTreeMap;

use muster_kernel::format::Format;
use muster_kernel::proof::Interval;
use muster_kernel::split::plan_splits;
use muster_kernel::splitters::{self, Splitter};
use muster_platform::config::Config;
use muster_platform::inputs;
use muster_platform::store::BlobUrl;
use muster_protocol::ids::DeploymentId;
use muster_protocol::plan::{
    BadRecords, INPUTS_MAX, JobSpec, PARTITIONS_MAX, Plan, TEXT_BYTES_MAX,
};
use muster_protocol::planted::{self, Bug};
use muster_protocol::{Error, Result, names, wire};

use crate::job::io::{Listing, Places};
use crate::job::overlap;

/// Most sort tasks of one job.
pub const SPLITS_MAX: usize = 200_000;
/// Most pieces of one split: what a task reports of them must fit into a message.
pub const PIECES_MAX: usize = 20_000;
/// Largest request as JSON, in bytes: it is kept in the journal.
pub const SPEC_BYTES_MAX: usize = 512 * 1024;
/// Most samples of one job; the coordinator holds them in memory.
pub const SAMPLES_MAX: u64 = 2_000_000;
/// Most tries of one task that a request may ask for.
pub const ATTEMPTS_MAX: u32 = 100;
/// Longest extension of the parts, in bytes.
const EXTENSION_BYTES_MAX: usize = 16;
/// The input is cut into about so many splits, and the output into about so many partitions, where
/// nothing else is asked for: enough for a pool of a few machines to share, few enough for requests
/// to stay a small part of the work.
const SHARES: u64 = 16;

/// Checks a request as far as it goes without a look at the stores.
///
/// # Errors
/// `Invalid`, naming the field and its bound.
pub fn validate(spec: &JobSpec) -> Result<()> {
    let invalid = |message: String| Err(Error::invalid(message));
    if spec.inputs.is_empty() || spec.inputs.len() > INPUTS_MAX {
        return invalid(format!("a job has 1 to {INPUTS_MAX} inputs, not {}", spec.inputs.len()));
    }
    let texts = spec.inputs.iter().chain([&spec.output]).chain(&spec.bucket).chain(&spec.replica);
    if let Some(long) = texts.clone().find(|text| text.len() > TEXT_BYTES_MAX) {
        let start: String = long.chars().take(40).collect();
        return invalid(format!(
            "{start}… has {} bytes, the limit is {TEXT_BYTES_MAX}",
            long.len()
        ));
    }
    if let Some(Err(error)) =
        spec.inputs.iter().filter_map(|text| inputs::of_workers(text)).find(Result::is_err)
    {
        return Err(error);
    }
    let sound = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let extension = &spec.extension;
    if extension.is_empty()
        || extension.len() > EXTENSION_BYTES_MAX
        || !extension.bytes().all(sound)
        || extension.starts_with('.')
    {
        return invalid(format!(
            "the extension {extension:?} must be 1 to {EXTENSION_BYTES_MAX} of a-z A-Z 0-9 - _ and \
                inner dots"
        ));
    }
    let sizing = &spec.sizing;
    if sizing.partitions.is_some_and(|partitions| partitions == 0 || partitions > partitions_max())
    {
        return invalid(format!("partitions must be 1 to {}", partitions_max()));
    }
    let sizes = [
        ("split_bytes", sizing.split_bytes),
        ("partition_bytes", sizing.partition_bytes),
        ("task_memory_bytes", sizing.task_memory_bytes),
        ("attempts_max", sizing.attempts_max.map(u64::from)),
    ];
    if let Some((name, _)) = sizes.iter().find(|(_, value)| *value == Some(0)) {
        return invalid(format!("{name} must be greater than 0"));
    }
    if sizing.attempts_max.is_some_and(|max| max > ATTEMPTS_MAX) {
        return invalid(format!("attempts_max must be at most {ATTEMPTS_MAX}"));
    }
    Ok(spec.sort.validate()?)
}

/// Most partitions that plan, part names and runs all allow.
fn partitions_max() -> u32 {
    PARTITIONS_MAX.min(muster_kernel::run::PARTITIONS_MAX)
}

/// Where a job reads and writes.
///
/// # Errors
/// `Invalid` where a URL cannot be read, or OUTPUT would lie in scratch.
pub fn places(
    spec: &JobSpec,
    bucket: Option<&BlobUrl>,
    deployment: &DeploymentId,
) -> Result<Places> {
    let output: BlobUrl = spec.output.parse()?;
    if output.key().is_empty() {
        return Err(Error::invalid(format!(
            "OUTPUT {output} is a whole store; name a folder or prefix in it"
        )));
    }
    let base = match &spec.bucket {
        Some(text) => text.parse()?,
        None => bucket.cloned().unwrap_or_else(|| output.clone()),
    };
    let scratch_root = base.join(names::SCRATCH_DIR);
    if scratch_root.contains(&output)
        || output.key().split('/').any(|segment| segment == names::SCRATCH_DIR)
    {
        return Err(Error::invalid(format!("OUTPUT {output} lies in scratch ({scratch_root})")));
    }
    let scratch = base.join(&names::scratch_path(deployment, &spec.job));
    let replica = match &spec.replica {
        Some(text) => {
            Some(text.parse::<BlobUrl>()?.join(&names::scratch_path(deployment, &spec.job)))
        }
        None => None,
    };
    for (what, taken) in [("scratch lies", &scratch), ("OUTPUT lies", &output)] {
        if let Some(replica) = replica.as_ref().filter(|replica| overlap(replica, taken)) {
            return Err(Error::invalid(format!(
                "--replica {replica} is where {what} already ({taken}); name another place"
            )));
        }
    }
    Ok(Places { output, scratch_root, scratch, replica })
}

/// Makes the plan.
///
/// # Errors
/// `Invalid` where the pinned input does not fit the request, or makes more tasks than are allowed.
pub fn make(spec: &JobSpec, places: &Places, listing: Listing, config: &Config) -> Result<Plan> {
    if spec.bad_records == BadRecords::Fail {
        let rules = spec.sort.format.rules();
        let mut objects = listing.objects.iter();
        if let Some(object) = objects.find(|object| rules.check_object(object.bytes).is_err()) {
            let (url, bytes) = (&object.url, object.bytes);
            return Err(Error::invalid(format!(
                "{url} has {bytes} bytes, which are no whole {}; --bad-records skip or \
                    quarantine leaves the rest of it out",
                spec.sort.format
            )));
        }
    }
    let sizes: Vec<u64> = listing.objects.iter().map(|object| object.bytes).collect();
    let total = sizes.iter().try_fold(0_u64, |sum, size| sum.checked_add(*size));
    let total = total.ok_or_else(|| Error::invalid("the input has more than 2^64 bytes"))?;
    let split_bytes = split_bytes(spec, config, total);
    if total / split_bytes > SPLITS_MAX as u64 {
        return Err(Error::invalid(format!(
            "splits of {split_bytes} bytes make more than {SPLITS_MAX} sort tasks of {total} bytes"
        )));
    }
    let splits =
        limit_pieces(split_by_owner(&listing, &spec.sort.format, split_bytes)?, PIECES_MAX);
    if splits.len() > SPLITS_MAX {
        return Err(Error::invalid(format!(
            "{} sort tasks are more than the limit of {SPLITS_MAX}",
            splits.len()
        )));
    }
    let partitions = partitions(spec, config, total);
    let own = config.for_job(spec.settings.as_deref())?;
    let attempts_max = spec.sizing.attempts_max.unwrap_or(own.tasks.attempts_max);
    Ok(Plan {
        job: spec.job.clone(),
        sort: spec.sort.clone(),
        // The same input gives the same samples, and so the same parts: the seed comes from the
        // plan itself.
        sample_seed: wire::digest(format!("{total}/{}/{partitions}", splits.len()).as_bytes()),
        samples_per_split: samples_per_split(partitions, splits.len(), config),
        objects: listing.objects,
        splits,
        partitions,
        output: places.output.to_string(),
        extension: spec.extension.clone(),
        scratch: places.scratch.to_string(),
        replaced: listing.replaced,
        uploads_before: listing.uploads_before,
        fsync: spec.fsync,
        attempts_max,
        replica: places.replica.as_ref().map(ToString::to_string),
        bad_records: spec.bad_records,
        settings: spec.settings.clone(),
        left_out: listing.left_out,
    })
}

/// Splits of about `split_bytes`, none of which holds objects that different workers alone can
/// read.
fn split_by_owner(
    listing: &Listing,
    format: &Format,
    split_bytes: u64,
) -> Result<Vec<Vec<Interval>>> {
    let mut splits = Vec::new();
    let mut base = 0_u32;
    for group in listing.objects.chunk_by(|a, b| a.owner() == b.owner()) {
        let sizes: Vec<u64> = group.iter().map(|object| object.units()).collect();
        for mut split in plan_splits(&sizes, format, split_bytes) {
            split.iter_mut().for_each(|piece| piece.object += base);
            splits.push(split);
        }
        let count = u32::try_from(group.len()).ok().and_then(|count| base.checked_add(count));
        base = count
            .ok_or_else(|| Error::invalid("the input has more objects than can be numbered"))?;
    }
    Ok(splits)
}

fn asked(by_request: Option<u64>, by_settings: u64) -> Option<u64> {
    by_request.or((by_settings > 0).then_some(by_settings))
}

fn split_bytes(spec: &JobSpec, config: &Config, total: u64) -> u64 {
    let sizes = &config.sizes;
    let wanted = match asked(spec.sizing.split_bytes, config.job.split_bytes) {
        Some(exactly) => exactly,
        None => {
            let share = total.div_ceil(SHARES).clamp(sizes.split_bytes_min, sizes.split_bytes_max);
            spec.sizing.task_memory_bytes.map_or(share, |memory| share.min(sortable_bytes(memory)))
        }
    };
    wanted.max(1)
}

/// Input bytes that a task sorts within its memory without spilling: a record of 100 bytes takes
/// about 160, with its entry, the room to sort entries in and buffers.
pub(crate) fn sortable_bytes(memory_bytes: u64) -> u64 {
    (memory_bytes / 16).saturating_mul(10).max(1)
}

fn partitions(spec: &JobSpec, config: &Config, total: u64) -> u32 {
    let sizes = &config.sizes;
    let bytes =
        asked(spec.sizing.partition_bytes, config.job.partition_bytes).unwrap_or_else(|| {
            total.div_ceil(SHARES).clamp(sizes.partition_bytes_min, sizes.partition_bytes_max)
        });
    let by_size = u32::try_from(total.div_ceil(bytes.max(1))).unwrap_or(u32::MAX);
    let wanted = spec.sizing.partitions.unwrap_or(by_size);
    // Without input there is nothing to divide: one part, which is empty.
    if total == 0 { 1 } else { wanted.clamp(1, partitions_max()) }
}

fn samples_per_split(partitions: u32, splits: usize, config: &Config) -> u32 {
    let wanted = u64::from(partitions) * u64::from(config.sizes.samples_per_partition);
    let each = wanted.min(SAMPLES_MAX).div_ceil((splits as u64).max(1));
    u32::try_from(each).unwrap_or(u32::MAX).max(1)
}

/// Cuts splits that have more than `pieces_max` pieces. They stay contiguous in position.
fn limit_pieces(splits: Vec<Vec<Interval>>, pieces_max: usize) -> Vec<Vec<Interval>> {
    let cut = |split: Vec<Interval>| -> Vec<Vec<Interval>> {
        if split.len() <= pieces_max {
            vec![split]
        } else {
            split.chunks(pieces_max).map(<[Interval]>::to_vec).collect()
        }
    };
    splits.into_iter().flat_map(cut).collect()
}

/// Splitters, and what speaks for them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    /// In ascending order.
    pub splitters: Vec<Splitter>,
    /// Samples among which they were chosen.
    pub samples: u64,
    /// What the samples say of the fullest partition ([`splitters::fullest_percent`]).
    pub fullest_percent: Option<u32>,
}

/// Chooses splitters out of samples and checks them.
///
/// # Errors
/// `Bug` where what was chosen does not ascend, or divides more than was asked for.
pub fn splitters(samples: Vec<Splitter>, partitions: u32, unique: bool) -> Result<Chosen> {
    let unique = unique && !planted::is(Bug::SplitEqualKeys);
    let fullest_percent = splitters::fullest_percent(&samples, partitions, unique);
    let found = samples.len() as u64;
    let chosen = splitters::choose(samples, partitions, unique);
    splitters::validate(&chosen, unique)
        .map_err(|e| Error::bug(format!("the chosen boundaries are wrong: {e}")))?;
    if chosen.len() >= partitions.max(1) as usize {
        return Err(Error::bug(format!(
            "{} boundaries were chosen for {partitions} partitions",
            chosen.len()
        )));
    }
    Ok(Chosen { splitters: chosen, samples: found, fullest_percent })
}

/// Whether what a sort task says it consumed can belong to its split: the objects of its pieces,
/// from where they begin, within the object. Whether all splits together consumed every byte once
/// is the barrier's question.
///
/// # Errors
/// Names the interval.
pub fn check_intervals(plan: &Plan, split: u32, intervals: &[Interval]) -> Result<(), String> {
    let pieces = plan.splits.get(split as usize).map(Vec::as_slice).unwrap_or_default();
    let mut first: BTreeMap<u32, u64> = BTreeMap::new();
    for piece in pieces {
        first
            .entry(piece.object)
            .and_modify(|begin| *begin = piece.begin.min(*begin))
            .or_insert(piece.begin);
    }
    for interval in intervals {
        let size = plan.objects.get(interval.object as usize).map_or(0, |object| object.units());
        let begins = first.get(&interval.object).is_some_and(|begin| *begin <= interval.begin);
        if !begins || interval.begin > interval.end || interval.end > size {
            let Interval { object, begin, end } = interval;
            return Err(format!(
                "bytes {begin}..{end} of object {object} are not of split {split}"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
