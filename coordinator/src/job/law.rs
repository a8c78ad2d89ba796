//! The states of a job and the edges between them. The table is the law: [`allowed`] is asked
//! before a record is written and again when it is folded.

use muster_common::api::JobState;

use JobState::{Cancelled, Committing, Failed, Merging, Sampling, Sorting, Submitted, Succeeded};

/// Every allowed step of a job.
pub const EDGES: &[(JobState, JobState)] = &[
    (Submitted, Sampling),
    // One partition, or nothing to sort: no samples are needed.
    (Submitted, Sorting),
    (Submitted, Failed),
    (Submitted, Cancelled),
    (Sampling, Sorting),
    (Sampling, Failed),
    (Sampling, Cancelled),
    (Sorting, Merging),
    (Sorting, Failed),
    (Sorting, Cancelled),
    (Merging, Committing),
    (Merging, Failed),
    (Merging, Cancelled),
    (Committing, Succeeded),
    // Only where the store has lost what was committed: the decision stands, but nobody can carry
    // it out.
    (Committing, Failed),
];

/// Whether a job may go from one state to the other.
pub fn allowed(from: JobState, to: JobState) -> bool {
    EDGES.contains(&(from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [JobState; 8] =
        [Submitted, Sampling, Sorting, Merging, Committing, Succeeded, Failed, Cancelled];

    #[test]
    fn terminal_states_stay() {
        for from in ALL.into_iter().filter(|state| state.is_terminal()) {
            assert!(ALL.into_iter().all(|to| !allowed(from, to)), "{from}");
        }
    }

    #[test]
    fn a_decided_commit_is_not_cancelled() {
        assert!(!allowed(Committing, Cancelled));
    }

    #[test]
    fn every_state_but_the_first_is_reached_and_every_live_one_can_fail() {
        for state in ALL {
            assert!(state == Submitted || EDGES.iter().any(|&(_, to)| to == state), "{state}");
            assert!(state.is_terminal() || allowed(state, Failed), "{state}");
        }
    }
}
