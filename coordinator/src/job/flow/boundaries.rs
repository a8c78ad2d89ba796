//! Boundaries: splitters are chosen among the samples and measured by them; where they are too few
//! or too uneven, more is sampled first.
//!
//! A round of sampling is the generation of its tasks: workers draw from other places, and more, in
//! each. Rounds are not journalled; a new leader begins with the first one again, gets the same
//! samples, and so comes to the same boundaries.

use muster_platform::config::Sizes;
use muster_protocol::ids::{Generation, JobId, Phase};
use muster_protocol::plan::Plan;
use muster_protocol::wire::Broadcast;
use muster_protocol::{Error, Result, names};

use crate::job::Machine;
use crate::job::io::{Effect, MeasuredBoundaries};
use crate::job::law::Step;
use crate::job::tasks::table::PhaseTasks;
use crate::journal::record::Record;

/// Samples of a partition below which nobody relies on its bounds, where there is enough input for
/// more.
const SAMPLES_ENOUGH: u64 = 8;
/// How many times as many samples the next round may take of a split.
const MORE: u32 = 2;

impl Machine {
    /// One partition needs no splitters.
    pub(crate) fn skip_sampling(&mut self, job: &JobId) {
        let Some(active) = self.jobs.active_mut(job) else { return };
        active.advance(Step::Deciding);
        self.record(Record::BoundariesChosen {
            job: job.clone(),
            splitters: None,
            partitions: 1,
            took_ms: 0,
        });
    }

    pub(crate) fn choose_splitters(&mut self, job: &JobId, plan: &Plan) {
        let nonce = self.nonces.next();
        let Some(active) = self.jobs.active_mut(job) else { return };
        active.advance(Step::Choosing);
        active.writing += 1;
        let url = active.scratch.join(&names::splitters_path(self.epoch, nonce));
        let samples = active.tasks.samples().to_vec();
        let (partitions, unique) = (plan.partitions, plan.sort.select().distinct);
        self.out.push(Effect::ChooseSplitters {
            job: job.clone(),
            samples,
            partitions,
            unique,
            url,
        });
    }

    pub(crate) fn splitters_chosen(&mut self, job: &JobId, result: Result<MeasuredBoundaries>) {
        self.wrote(job);
        let Some(active) =
            self.jobs.active_mut(job).filter(|active| active.step() == Step::Choosing)
        else {
            return;
        };
        let chosen = match result {
            Ok(chosen) => chosen,
            Err(error) => return self.store_trouble(job, error),
        };
        let Some(plan) = active.plan.clone() else { return };
        let rounds_max = active.config.sizes.sampling_rounds_max;
        let last = active.tasks.sampling_round() + 1 >= rounds_max;
        match Doubt::about(&chosen, plan.input_bytes(), plan.partitions, &active.config.sizes) {
            Some(doubt) if !last => self.sample_again(job, &doubt.text()),
            Some(doubt @ Doubt::Uneven { .. }) => {
                let text = format!("{}, after {rounds_max} rounds of sampling", doubt.text());
                self.fail(job, Error::exhausted(text));
            }
            doubt => {
                active.advance(Step::Deciding);
                active.tasks.forget_samples();
                active.moved(self.now_ms);
                let took_ms = active.elapsed_ms(self.now_ms);
                if let Some(doubt) = doubt {
                    self.event(Some(job), "warning", "boundaries-few", doubt.text());
                }
                let MeasuredBoundaries { splitters, partitions, .. } = chosen;
                self.record(Record::BoundariesChosen {
                    job: job.clone(),
                    splitters,
                    partitions,
                    took_ms,
                });
            }
        }
    }

    /// Another round. What was sampled before is kept; what was chosen of it stays in scratch,
    /// unnamed, until the job is cleaned up.
    fn sample_again(&mut self, job: &JobId, why: &str) {
        let Some((durable, _)) = self.jobs.both(job) else { return };
        let splits = durable.submitted.splits;
        let Some(active) = self.jobs.active_mut(job) else { return };
        let round = active.tasks.sample_again(PhaseTasks::new(Phase::Sample, splits, |_| false));
        active.advance(Step::Working);
        active.moved(self.now_ms);
        let text = format!("{why}: round {round} of sampling begins");
        self.event(Some(job), "warning", "sampling-again", text);
        let broadcast = Broadcast::PhaseBegins { epoch: self.epoch, phase: Phase::Sample };
        self.out.push(Effect::Broadcast { job: job.clone(), broadcast });
        self.view.is_urgent(job);
        self.jobs.touch(job);
        self.advance(job);
    }

    /// The generation of a job's sample tasks.
    pub(crate) fn sampling_generation(&self, job: &JobId) -> Generation {
        Generation(self.jobs.active(job).map_or(0, |active| active.tasks.sampling_round()))
    }

    /// Says where the parts came out far less even than the samples promised.
    pub(crate) fn measure_parts(&mut self, job: &JobId) {
        let Some((durable, active)) = self.jobs.both(job) else { return };
        let percent_max = u64::from(active.config.sizes.partition_percent_max);
        let parts = durable.parts.len() as u64;
        let fullest = durable.parts.values().max_by_key(|part| part.kept.bytes);
        let Some(fullest) = fullest.filter(|_| percent_max > 0) else { return };
        let (bytes, mean) = (fullest.kept.bytes, durable.part_totals.kept.bytes / parts.max(1));
        let small = mean < active.config.sizes.partition_bytes_min;
        if small || u128::from(bytes) * 100 <= u128::from(mean) * u128::from(percent_max) {
            return;
        }
        let text = format!(
            "part {} has {bytes} bytes, {parts} parts have {mean} on average",
            fullest.partition
        );
        self.event(Some(job), "warning", "parts-uneven", text);
    }
}

/// How many samples a worker may send of one split in a round of sampling.
pub(crate) fn samples_max(plan: &Plan, round: Generation) -> usize {
    let times = MORE.saturating_pow(round.0);
    plan.samples_per_split.saturating_mul(times) as usize
}

/// What speaks against boundaries.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Doubt {
    /// There are too few samples for so many partitions, and input enough for more.
    Few { samples: u64, partitions: u32 },
    /// One partition would be far fuller than the others.
    Uneven { fullest_percent: u32, percent_max: u32 },
}

impl Doubt {
    fn about(
        chosen: &MeasuredBoundaries,
        input_bytes: u64,
        partitions: u32,
        sizes: &Sizes,
    ) -> Option<Self> {
        let (samples, percent_max) = (chosen.samples, sizes.partition_percent_max);
        if let Some(fullest_percent) =
            chosen.fullest_percent.filter(|percent| percent_max > 0 && *percent > percent_max)
        {
            return Some(Self::Uneven { fullest_percent, percent_max });
        }
        let worth_it = input_bytes / u64::from(partitions.max(1)) >= sizes.partition_bytes_min;
        (worth_it && samples < SAMPLES_ENOUGH * u64::from(partitions))
            .then_some(Self::Few { samples, partitions })
    }

    fn text(&self) -> String {
        match self {
            Self::Few { samples, partitions } => {
                format!("only {samples} records were sampled for {partitions} partitions")
            }
            Self::Uneven { fullest_percent, percent_max } => format!(
                "by its samples the fullest partition would have {fullest_percent} % of the mean, \
                    the limit is {percent_max} % (sizes.partition_percent_max)"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use muster_platform::config::Config;

    use super::*;

    #[test]
    fn uneven_partitions_and_too_few_samples_are_doubted() {
        let sizes = Config::layered(&[]).expect("the defaults").sizes;
        let enough = sizes.partition_bytes_min;
        let check = |fullest_percent, samples, bytes: u64, expect: Option<&str>| {
            let chosen =
                MeasuredBoundaries { splitters: None, partitions: 4, fullest_percent, samples };
            let doubt = Doubt::about(&chosen, bytes, 4, &sizes).map(|doubt| doubt.text());
            assert_eq!(doubt.is_some(), expect.is_some(), "{doubt:?}");
            assert!(doubt.unwrap_or_default().contains(expect.unwrap_or_default()));
        };
        check(Some(100), 1000, 4 * enough, None);
        check(Some(400), 1000, 4 * enough, None);
        check(Some(401), 1000, 4 * enough, Some("401 % of the mean"));
        check(None, 32, 4 * enough, None);
        check(None, 31, 4 * enough, Some("only 31 records"));
        // A small input has no more to give, and nothing is lost where its parts are uneven.
        check(None, 0, 4 * enough - 1, None);
    }
}
