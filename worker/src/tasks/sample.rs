//! Samples a split: reads small seeded ranges and takes the comparison keys of some records in
//! each. Same plan, same split, same samples.

use futures::{StreamExt, TryStreamExt};
use muster_kernel::format::SampleWindow;
use muster_kernel::proof::Interval;
use muster_kernel::splitters::{Splitter, encode, sample};
use muster_platform::store::Access;
use muster_protocol::ids::Generation;
use muster_protocol::wire::{INLINE_SAMPLES_BYTES_MAX, Outcome};
use muster_protocol::{Result, names};

use super::Task;
use crate::cache::Job;
use crate::transfer::{Object, Span, read};

/// Ranges of one split, in the first round of sampling.
const WINDOWS: u64 = 16;
/// Bytes of one range: some hundred records.
const WINDOW_BYTES: u64 = 16 << 10;
/// A range without a whole record is widened up to here, then given up; a multiple of this where
/// records have a fixed length.
const WINDOW_BYTES_MAX: u64 = 1 << 20;
/// Rounds after the first that still read more than the one before: a range grows to 16 MiB at
/// most.
const ROUND_MAX: u32 = 2;
/// Largest range that records of a fixed length may ask for.
const FIXED_WINDOW_BYTES_MAX: u64 = 64 << 20;
/// Ranges that are read side by side.
const IN_FLIGHT: usize = 4;
/// What a sample takes in a message beside its key, at most.
const SAMPLE_OVERHEAD_BYTES: usize = 16;

pub(super) async fn run(task: &Task) -> Result<Outcome> {
    let job = task.context.cache.job(&task.run.plan).await?;
    let split = task.split(&job)?;
    let objects = task.pinned_objects(&job).await?;
    let round = Round::of(task.run.attempt.generation, job.plan.samples_per_split);
    let seed = job.plan.sample_seed
        ^ u64::from(task.run.attempt.task.index).wrapping_mul(0xd134_2543_de82_ef95)
        ^ u64::from(task.run.attempt.generation.0).wrapping_mul(0xa076_1d64_78bd_642f);
    let window_bytes = window_bytes(&job);
    let in_flight =
        if window_bytes.max(round.window_bytes_max) > WINDOW_BYTES_MAX { 1 } else { IN_FLIGHT };
    let windows = choose_windows(&split, round.windows, window_bytes, seed);
    task.expect_bytes(windows.iter().map(Interval::len).sum());
    let per_window = round.samples_max.div_ceil(windows.len().max(1) as u64);
    let per_window = usize::try_from(per_window).unwrap_or(usize::MAX);
    let (job_ref, objects_ref, split_ref) = (&job, &objects, &split);
    let found: Vec<Vec<Splitter>> = futures::stream::iter(windows)
        .map(|window| async move {
            let at = split_ref
                .iter()
                .position(|interval| interval.object == window.object)
                .unwrap_or_default();
            sample_window(
                task,
                job_ref,
                &objects_ref[at],
                window,
                (per_window, round.window_bytes_max),
            )
            .await
        })
        .buffered(in_flight)
        .try_collect()
        .await?;
    let mut samples: Vec<Splitter> = found.into_iter().flatten().collect();
    // Ranges of a tiny split may overlap when widened; the stored form ascends strictly.
    samples.sort_unstable();
    samples.dedup();
    let samples = thin(samples, usize::try_from(round.samples_max).unwrap_or(usize::MAX));
    let message_bytes: usize =
        samples.iter().map(|sample| sample.key.len() + SAMPLE_OVERHEAD_BYTES).sum();
    if message_bytes <= INLINE_SAMPLES_BYTES_MAX {
        return Ok(Outcome::Sampled { samples });
    }
    let url = task.scratch_url(&job, &names::samples_path(&task.run.attempt))?;
    task.results.completed(&Object::open(&task.stores, url.clone()).await?);
    let bytes = encode(&samples);
    let samples = task.link.retry.call(&url, || task.stores.put_ref(&url, bytes.clone())).await?;
    Ok(Outcome::SampledToScratch { samples })
}

/// How much is read and taken in one round of sampling: where a round gave too little, the next one
/// looks at more places, and further at each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Round {
    windows: u64,
    window_bytes_max: u64,
    samples_max: u64,
}

impl Round {
    fn of(generation: Generation, samples_per_split: u32) -> Self {
        let round = generation.0.min(ROUND_MAX);
        Self {
            windows: WINDOWS << round,
            window_bytes_max: WINDOW_BYTES_MAX << (2 * round),
            samples_max: u64::from(samples_per_split) << round,
        }
    }
}

/// At most so many of them, evenly spread: every window gives at least one, and there may be more
/// windows than samples are wanted.
fn thin(samples: Vec<Splitter>, samples_max: usize) -> Vec<Splitter> {
    let found = samples.len();
    if found <= samples_max {
        return samples;
    }
    let kept = |at: usize| (at + 1) * samples_max / found > at * samples_max / found;
    samples.into_iter().enumerate().filter(|(at, _)| kept(*at)).map(|(_, sample)| sample).collect()
}

/// Bytes of a range: two records at least, where that is known.
fn window_bytes(job: &Job) -> u64 {
    job.order.format().rules().sample_bytes().clamp(WINDOW_BYTES, FIXED_WINDOW_BYTES_MAX)
}

/// One range in each of `count` equal shares of the split, at a seeded place; the whole split where
/// that is no more.
fn choose_windows(split: &[Interval], count: u64, window_bytes: u64, seed: u64) -> Vec<Interval> {
    let total: u64 = split.iter().map(Interval::len).sum();
    if total <= count * WINDOW_BYTES {
        return split.to_vec();
    }
    let mut state = seed;
    let mut windows: Vec<Interval> = (0..count)
        .filter_map(|share| {
            let (begin, end) = (total / count * share, total / count * (share + 1));
            let at =
                begin + split_mix(&mut state) % (end - begin).saturating_sub(window_bytes).max(1);
            window_at(split, at, window_bytes)
        })
        .collect();
    windows.dedup();
    windows
}

/// The range that begins `at` bytes into the split, moved forward where its interval ends too soon.
fn window_at(split: &[Interval], mut at: u64, window_bytes: u64) -> Option<Interval> {
    for interval in split {
        if at < interval.len() {
            let begin = (interval.begin + at)
                .min(interval.end.saturating_sub(window_bytes).max(interval.begin));
            return Some(Interval {
                object: interval.object,
                begin,
                end: (begin + window_bytes).min(interval.end),
            });
        }
        at -= interval.len();
    }
    None
}

/// Reads a range and samples it; widens it while it holds no whole record.
async fn sample_window(
    task: &Task,
    job: &Job,
    object: &Object,
    window: Interval,
    (records_max, widened_max): (usize, u64),
) -> Result<Vec<Splitter>> {
    let base = job.positions.get(window.object as usize).copied().unwrap_or_default();
    let object_bytes = task.pinned(job, window.object)?.bytes;
    let bytes_max = widened_max.max(window.len());
    let mut end = window.end;
    loop {
        let span =
            Span { object: object.clone(), range: window.begin..end, access: Access::Cached };
        let bytes =
            read(&task.link.retry, &span).await.map_err(|e| task.unreadable(window.object, e))?;
        let place = SampleWindow {
            position: base + window.begin,
            object_offset: window.begin,
            at_object_end: end == object_bytes,
        };
        let samples = sample(&job.order, &bytes, place, records_max);
        if !samples.is_empty() || end == object_bytes || end - window.begin >= bytes_max {
            // Nothing is written: what is read is done.
            for bytes in [&task.progress.bytes_read, &task.progress.bytes_written] {
                bytes.fetch_add(window.len(), std::sync::atomic::Ordering::Relaxed);
            }
            return Ok(samples);
        }
        end = (window.begin + 2 * (end - window.begin))
            .min(window.begin + bytes_max)
            .min(object_bytes);
    }
}

/// SplitMix64: seeded, and good enough for places in a file.
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interval(object: u32, begin: u64, end: u64) -> Interval {
        Interval { object, begin, end }
    }

    #[test]
    fn no_more_samples_than_are_wanted() {
        let samples = |count: u64| {
            (0..count).map(|position| Splitter { key: Vec::new(), position }).collect::<Vec<_>>()
        };
        for (found, wanted, expected) in [
            (0, 4, 0),
            (3, 4, 3),
            (4, 4, 4),
            (258, 256, 256),
            (1000, 256, 256),
            (7, 1, 1),
            (7, 0, 0),
        ] {
            assert_eq!(thin(samples(found), wanted).len(), expected, "{found} of {wanted}");
        }
    }

    #[test]
    fn small_splits_are_sampled_wholly() {
        let split = [interval(3, 5, 100), interval(4, 0, 7)];
        assert_eq!(choose_windows(&split, WINDOWS, WINDOW_BYTES, 1), split);
        assert_eq!(choose_windows(&[], WINDOWS, WINDOW_BYTES, 1), []);
    }

    #[test]
    fn windows_lie_within_the_split_one_in_each_share_and_are_seeded() {
        let split = [interval(0, 1000, 10_000_000), interval(1, 0, 10), interval(2, 0, 5_000_000)];
        let windows = choose_windows(&split, WINDOWS, WINDOW_BYTES, 7);
        assert_eq!(windows.len() as u64, WINDOWS);
        for window in &windows {
            let around = split
                .iter()
                .find(|interval| interval.object == window.object)
                .expect("an interval of the split");
            assert!(
                around.begin <= window.begin
                    && window.end <= around.end
                    && window.len() == WINDOW_BYTES.min(around.len()),
                "{window:?}"
            );
        }
        assert_eq!(windows, choose_windows(&split, WINDOWS, WINDOW_BYTES, 7));
        assert_ne!(windows, choose_windows(&split, WINDOWS, WINDOW_BYTES, 8));
        assert_eq!(choose_windows(&split, 4 * WINDOWS, WINDOW_BYTES, 7).len() as u64, 4 * WINDOWS);
    }

    #[test]
    fn later_rounds_look_at_more_places_and_further() {
        let round = |generation| Round::of(Generation(generation), 100);
        assert_eq!(round(0), Round { windows: 16, window_bytes_max: 1 << 20, samples_max: 100 });
        assert_eq!(round(1), Round { windows: 32, window_bytes_max: 4 << 20, samples_max: 200 });
        assert_eq!(round(2), Round { windows: 64, window_bytes_max: 16 << 20, samples_max: 400 });
        assert_eq!(round(9), round(2));
    }
}
