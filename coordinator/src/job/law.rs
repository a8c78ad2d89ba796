//! The law: what may follow what. Whatever moves has its table here: a job as the journal knows it,
//! what this leader does with it at the moment, a repair, a task, a result on its way into the
//! journal. [`allowed`] reads the tables, and nobody else does.
//!
//! A record that would break the law is neither written nor folded. A step of this leader's own
//! that does is a bug: [`Broken`] keeps it, people are told, and every test fails by it.

use std::fmt::Debug;

use JobState::{Cancelled, Committing, Failed, Merging, Sampling, Sorting, Submitted, Succeeded};
use muster_protocol::api::JobState;

/// Something that moves by law.
pub trait Law: Copy + PartialEq + Debug + 'static {
    /// What may follow each; what is not listed is the end.
    const EDGES: &'static [(Self, &'static [Self])];
}

/// Whether one may follow the other.
pub fn allowed<T: Law>(from: T, to: T) -> bool {
    T::EDGES.iter().any(|(known, next)| *known == from && next.contains(&to))
}

/// The first step against the law.
#[derive(Debug, Default)]
pub(crate) struct Broken(Option<String>);

impl Broken {
    /// Checks a step that is about to be taken.
    pub(crate) fn check<T: Law>(&mut self, from: T, to: T) {
        if !allowed(from, to) {
            self.0.get_or_insert_with(|| format!("{from:?} is followed by {to:?}"));
        }
    }

    /// What it was.
    pub(crate) fn why(&self) -> Option<&str> {
        self.0.as_deref()
    }

    /// The same, once.
    pub(crate) fn take(&mut self) -> Option<String> {
        self.0.take()
    }
}

impl Law for JobState {
    const EDGES: &'static [(Self, &'static [Self])] = &[
        // One partition, or nothing to sort: no samples are needed.
        (Submitted, &[Sampling, Sorting, Failed, Cancelled]),
        (Sampling, &[Sorting, Failed, Cancelled]),
        (Sorting, &[Merging, Failed, Cancelled]),
        (Merging, &[Committing, Failed, Cancelled]),
        // It fails only where the store has lost what was committed: the decision stands, but
        // nobody can carry it out.
        (Committing, &[Succeeded, Failed]),
    ];
}

/// What happens to a job at the moment. One thing at a time, so no effect goes out twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Tasks of a stage run.
    Working,
    /// Splitters are chosen and written.
    Choosing,
    /// The list of runs is written.
    PinningRuns,
    /// OUTPUT is looked at, and the manifest is written to scratch.
    PreparingCommit,
    /// The record that ends a stage is on its way.
    Deciding,
    /// The commit is decided and waits for the plan.
    AwaitingPlan,
    /// The commit is made visible.
    Publishing,
    /// The record of the end is on its way.
    Ending,
    /// Ended; workers are told to let go.
    Stopping,
    /// Ended; scratch and uploads are removed.
    Cleaning,
    /// The record that nothing is left is on its way.
    Closing,
}

use Step::{
    AwaitingPlan, Choosing, Cleaning, Closing, Deciding, Ending, PinningRuns, PreparingCommit,
    Publishing, Stopping, Working,
};

impl Law for Step {
    /// A step with the store that failed follows itself.
    const EDGES: &'static [(Self, &'static [Self])] = &[
        // A leader that takes over begins here, wherever the job stands.
        (
            Working,
            &[
                Working,
                Choosing,
                PinningRuns,
                PreparingCommit,
                Deciding,
                AwaitingPlan,
                Ending,
                Stopping,
            ],
        ),
        // Working: more is sampled.
        (Choosing, &[Choosing, Working, Deciding, Ending]),
        (PinningRuns, &[PinningRuns, Deciding, Ending]),
        (PreparingCommit, &[PreparingCommit, Deciding, Ending]),
        (Deciding, &[Working, Publishing, Ending]),
        (AwaitingPlan, &[Publishing, Ending]),
        (Publishing, &[Publishing, Ending]),
        (Ending, &[Stopping]),
        (Stopping, &[Cleaning]),
        (Cleaning, &[Cleaning, Closing]),
    ];
}

/// What may happen to a job that stands so in the journal.
pub(crate) fn steps_of(state: JobState) -> &'static [Step] {
    match state {
        Submitted => &[Deciding, Ending],
        Sampling => &[Working, Choosing, Deciding, Ending],
        Sorting => &[Working, PinningRuns, Deciding, Ending],
        Merging => &[Working, PreparingCommit, Deciding, Ending],
        Committing => &[AwaitingPlan, Publishing, Ending],
        Succeeded | Failed | Cancelled => &[Stopping, Cleaning, Closing],
    }
}

/// How far a repair is: lost runs that are made again while the job merges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RepairStep {
    /// Runs are made.
    Sorting,
    /// The new list of runs is written.
    Pinning,
    /// Its record is on its way.
    Recording,
}

impl Law for RepairStep {
    /// Another run may be lost at any time, and the list cannot be written.
    const EDGES: &'static [(Self, &'static [Self])] = &[
        (Self::Sorting, &[Self::Sorting, Self::Pinning]),
        (Self::Pinning, &[Self::Sorting, Self::Recording]),
        (Self::Recording, &[Self::Sorting]),
    ];
}

/// Where a task stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TaskKind {
    /// It can be granted.
    Waiting,
    /// It can be granted after a pause.
    Delayed,
    /// An attempt is under way, or two.
    Running,
    /// Its last attempt's upload is being revoked.
    Revoking,
    /// Its result stands.
    Done,
}

impl Law for TaskKind {
    const EDGES: &'static [(Self, &'static [Self])] = &[
        // Revoking: a former leader left an upload open.
        (Self::Waiting, &[Self::Running, Self::Revoking]),
        (Self::Delayed, &[Self::Waiting]),
        (Self::Running, &[Self::Waiting, Self::Delayed, Self::Revoking, Self::Done]),
        // A former leader may have left several.
        (Self::Revoking, &[Self::Revoking, Self::Waiting, Self::Delayed]),
        // What it made is lost.
        (Self::Done, &[Self::Waiting]),
    ];
}

/// How far the result of an attempt is on its way into the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ResultKind {
    /// It is not here.
    Awaited,
    /// Samples are read from scratch.
    Read,
    /// Its record is on its way: it can no longer be taken back.
    Recorded,
}

impl Law for ResultKind {
    const EDGES: &'static [(Self, &'static [Self])] =
        &[(Self::Awaited, &[Self::Read, Self::Recorded])];
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [JobState; 8] =
        [Submitted, Sampling, Sorting, Merging, Committing, Succeeded, Failed, Cancelled];
    const STEPS: [Step; 11] = [
        Working,
        Choosing,
        PinningRuns,
        PreparingCommit,
        Deciding,
        AwaitingPlan,
        Publishing,
        Ending,
        Stopping,
        Cleaning,
        Closing,
    ];

    /// Everything is reached from the beginning, everything comes to an end, and an end stays.
    fn check<T: Law>(all: &[T], begin: T, ends: &[T]) {
        let reached = |from: T| {
            let mut seen = vec![from];
            let mut at = 0;
            while let Some(known) = seen.get(at).copied() {
                let next = all.iter().filter(|to| allowed(known, **to));
                let new: Vec<T> = next.filter(|to| !seen.contains(to)).copied().collect();
                seen.extend(new);
                at += 1;
            }
            seen
        };
        assert_eq!(reached(begin).len(), all.len(), "{begin:?} leads to {:?}", reached(begin));
        for from in all {
            let end = ends.contains(from);
            assert_eq!(all.iter().any(|to| allowed(*from, *to)), !end, "{from:?}");
            let comes_to_an_end = reached(*from).iter().any(|to| ends.contains(to));
            assert!(comes_to_an_end || ends.is_empty(), "{from:?}");
            let rows = T::EDGES.iter().filter(|(known, _)| known == from).count();
            assert_eq!(rows, usize::from(!end), "{from:?}");
        }
        let pairs = all.iter().flat_map(|from| all.iter().map(move |to| (*from, *to)));
        for (from, to) in pairs {
            let mut broken = Broken::default();
            broken.check(from, to);
            assert_eq!(broken.why().is_none(), allowed(from, to), "{from:?} to {to:?}");
        }
    }

    #[test]
    fn every_table_leads_from_its_beginning_to_its_end() {
        check(&STATES, Submitted, &[Succeeded, Failed, Cancelled]);
        check(&STEPS, Working, &[Closing]);
        let awaited = ResultKind::Awaited;
        check(
            &[awaited, ResultKind::Read, ResultKind::Recorded],
            awaited,
            &[ResultKind::Read, ResultKind::Recorded],
        );
    }

    #[test]
    fn a_repair_and_a_task_have_no_end_but_that_of_their_stage() {
        let steps = [RepairStep::Sorting, RepairStep::Pinning, RepairStep::Recording];
        check(&steps, RepairStep::Sorting, &[]);
        let kinds = [
            TaskKind::Waiting,
            TaskKind::Delayed,
            TaskKind::Running,
            TaskKind::Revoking,
            TaskKind::Done,
        ];
        check(&kinds, TaskKind::Waiting, &[]);
    }

    #[test]
    fn every_live_state_can_fail_and_a_decided_commit_is_not_cancelled() {
        assert!(STATES.into_iter().all(|state| state.is_terminal() || allowed(state, Failed)));
        assert!(!allowed(Committing, Cancelled));
    }

    /// What may happen in a state follows from what may happen in it, or in a state before.
    #[test]
    fn every_step_of_a_state_is_reached() {
        for state in STATES {
            let before = STATES.into_iter().filter(|from| allowed(*from, state));
            let known: Vec<Step> =
                before.chain([state]).flat_map(steps_of).copied().chain([Working]).collect();
            for step in steps_of(state) {
                assert!(known.iter().any(|from| allowed(*from, *step)), "{state}: {step:?}");
            }
        }
    }
}
