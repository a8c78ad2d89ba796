//! The stages of a job, a row each: what its tasks are, what a result carries, what its barrier
//! does, and how long it may stand still. What follows a stage is the law's to say: the barrier's
//! record moves the job on in the journal, and [`Machine::enter`] begins what belongs to the new
//! state.

use muster_platform::config::Phases;
use muster_protocol::api::JobState;
use muster_protocol::ids::{JobId, Phase};
use muster_protocol::wire::{Report, Work};

use crate::job::io::ReplyTo;
use crate::job::law::Step;
use crate::job::ledger::durable::DurableJob;
use crate::job::tasks::table::PhaseTasks;
use crate::job::{Machine, SharedPlan};

/// A stage of a job.
pub(crate) struct Stage {
    pub phase: Phase,
    /// Where the job stands in the journal meanwhile.
    pub state: JobState,
    /// How many tasks it has.
    tasks: fn(&DurableJob) -> u32,
    /// Whether the result of a task stands.
    pub committed: fn(&DurableJob, u32) -> bool,
    /// What a worker is told to do; with it, which objects its task leaves out.
    pub work: fn(&DurableJob, Vec<u32>) -> Option<Work>,
    /// What a result carries, and what it is worth.
    pub judge: fn(&mut Machine, ReplyTo, Report),
    /// What must be made before a first task is granted.
    pub begun: fn(&mut Machine, &JobId),
    /// What is checked, and asked for, when all tasks are done.
    pub barrier: fn(&mut Machine, &JobId, &SharedPlan),
    /// Bytes done by committed tasks, and bytes in all.
    pub bytes: fn(&DurableJob) -> (u64, u64),
    /// How long nothing may move, and which setting says so.
    pub still_ms: fn(&Phases, Step) -> (&'static str, u64),
}

/// All stages in their order.
pub(crate) static STAGES: [Stage; 3] = [
    Stage {
        phase: Phase::Sample,
        state: JobState::Sampling,
        tasks: |durable| durable.submitted.splits,
        // Samples are not journalled, what is chosen of them is.
        committed: |durable, _| durable.boundaries.is_some(),
        work: |_, skip| Some(Work::Sample { skip }),
        judge: Machine::judge_samples,
        begun: |_, _| {},
        barrier: |machine, job, plan| machine.choose_splitters(job, plan),
        // It reads too little to count.
        bytes: |_| (0, 0),
        still_ms: |limits, _| ("phases.sample_ms", limits.sample_ms),
    },
    Stage {
        phase: Phase::Sort,
        state: JobState::Sorting,
        tasks: |durable| durable.submitted.splits,
        committed: |durable, split| durable.runs.contains_key(&split),
        work: |durable, skip| Some(Work::Sort { splitters: durable.splitters(), skip }),
        judge: Machine::judge_run,
        begun: Machine::give_up_skipped,
        barrier: |machine, job, plan| machine.pin_runs(job, plan),
        bytes: bytes_sorted,
        still_ms: |limits, step| match step {
            Step::PinningRuns => ("phases.shuffle_ms", limits.shuffle_ms),
            _ => ("phases.sort_ms", limits.sort_ms),
        },
    },
    Stage {
        phase: Phase::Merge,
        state: JobState::Merging,
        tasks: DurableJob::partitions,
        committed: |durable, partition| durable.parts.contains_key(&partition),
        work: |durable, _| {
            let (splitters, runs) = (durable.splitters(), durable.runs_pinned.clone()?);
            Some(Work::Merge { splitters, runs })
        },
        judge: Machine::judge_part,
        begun: Machine::begin_merging,
        barrier: |machine, job, plan| machine.prepare_commit(job, plan),
        bytes: bytes_merged,
        still_ms: |limits, _| ("phases.merge_ms", limits.merge_ms),
    },
];

impl Stage {
    /// The row of a phase.
    pub(crate) fn of(phase: Phase) -> &'static Self {
        &STAGES[phase as usize]
    }

    /// The stage that a job is in.
    pub(crate) fn at(state: JobState) -> Option<&'static Self> {
        STAGES.iter().find(|stage| stage.state == state)
    }

    /// Its tasks, as far as the journal knows of them.
    pub(crate) fn open(&self, durable: &DurableJob) -> PhaseTasks {
        let done = |at: u32| (self.committed)(durable, at);
        PhaseTasks::new(self.phase, (self.tasks)(durable), done).recall(durable)
    }
}

fn bytes_sorted(durable: &DurableJob) -> (u64, u64) {
    let read = durable.runs.values().flat_map(|run| &run.intervals);
    let read = read.fold(0_u64, |sum, piece| sum.saturating_add(piece.len()));
    (read, durable.submitted.input_bytes)
}

fn bytes_merged(durable: &DurableJob) -> (u64, u64) {
    let dropped = durable.part_totals.dropped.bytes;
    let bodies = durable.run_totals.kept.bytes;
    let written = durable.part_totals.kept.bytes;
    let total = durable.run_totals.bytes.max(bodies);
    // Terminators are in what workers report, not in sums: the runs' own length is the nearest
    // total.
    let scale = u128::from(total.saturating_sub(bodies)) * u128::from(written);
    let share = scale.checked_div(u128::from(bodies)).unwrap_or(0);
    let share = u64::try_from(share).unwrap_or(0);
    (written.saturating_add(dropped).saturating_add(share), total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_phase_and_state_has_its_row() {
        for (at, stage) in STAGES.iter().enumerate() {
            assert_eq!(stage.phase as usize, at);
            assert_eq!(Stage::of(stage.phase).state, stage.state);
            assert_eq!(Stage::at(stage.state).map(|row| row.phase), Some(stage.phase));
        }
    }
}
