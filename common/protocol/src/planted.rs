//! Planted bugs, with which the simulation's checker is tried: each takes one promise's guard away.
//! They exist under the feature `planted-bugs` alone; without it [`is`] is always false, and the
//! compiler removes what depends on it.

/// A guard that is taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// The leader takes reports of any epoch.
    SkipEpochCheck,
    /// A task that is committed is committed again.
    AcceptSecondCommit,
    /// What a listing shows in OUTPUT is taken for the job's own.
    TrustListing,
    /// Nobody compares sums.
    DropSums,
    /// Nobody looks whether the intervals tile the input.
    DropTiling,
    /// An append whose answer was lost is taken for one that does not stand.
    UnknownIsFailed,
    /// An append whose answer was lost is made again, as another.
    UnknownIsNew,
    /// The clean-up removes all scratch that it finds, whosever job it is.
    CleanByAge,
    /// Equal keys are divided under `-u`.
    SplitEqualKeys,
    /// Runs that hold records of an input object that is left out stay as they are.
    KeepSkipped,
    /// A task whose input one worker alone can read goes to any worker.
    GrantAnywhere,
    /// A merge leaves out the first run of its list.
    LeaveOutRun,
    /// A merge takes runs in the order in which their indexes arrive, not in that of their numbers.
    RunsAsTheyArrive,
    /// The old `_SUCCESS` goes after the new parts stand, not before.
    RemoveSuccessLate,
    /// Whoever publishes makes the manifest of what it knows itself.
    RemakeManifest,
    /// Whoever wants OUTPUT does not wait for one that is just drawing its ticket.
    PassOverChoosing,
    /// An owner that was not watched yet counts as dead.
    SilenceIsDeath,
    /// An owner does not look at its claim again before it changes OUTPUT.
    NeverConfirm,
    /// What runs have written is removed before one's turn has come, beside owners that live.
    CleanBesideOwners,
    /// A merge decides ties between runs backwards.
    TiesBackwards,
    /// A leader that is to change a store reads who leads, where it ought to append.
    FenceByReading,
}

/// All of them, by name.
pub const BUGS: [(&str, Bug); 17] = [
    ("skip the epoch check", Bug::SkipEpochCheck),
    ("accept the second commit", Bug::AcceptSecondCommit),
    ("trust a listing", Bug::TrustListing),
    ("drop the sum check", Bug::DropSums),
    ("drop the tiling check", Bug::DropTiling),
    ("treat unknown as failed", Bug::UnknownIsFailed),
    ("retry an unknown as new", Bug::UnknownIsNew),
    ("clean up by age alone", Bug::CleanByAge),
    ("split equal keys under -u", Bug::SplitEqualKeys),
    ("keep runs of what is left out", Bug::KeepSkipped),
    ("give owned input to anybody", Bug::GrantAnywhere),
    ("leave out a run of the list", Bug::LeaveOutRun),
    ("take runs as they arrive", Bug::RunsAsTheyArrive),
    ("decide ties of a merge backwards", Bug::TiesBackwards),
    ("remove the old _SUCCESS late", Bug::RemoveSuccessLate),
    ("make the manifest anew", Bug::RemakeManifest),
    ("fence by reading", Bug::FenceByReading),
];

/// Those that the simulation of claims has to find, by name.
pub const CLAIM_BUGS: [(&str, Bug); 4] = [
    ("pass over one that draws its ticket", Bug::PassOverChoosing),
    ("take silence for death", Bug::SilenceIsDeath),
    ("never confirm a claim", Bug::NeverConfirm),
    ("clean up beside owners that live", Bug::CleanBesideOwners),
];

#[cfg(feature = "planted-bugs")]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Plants a bug in this thread, or takes it out again.
#[cfg(feature = "planted-bugs")]
pub fn plant(bug: Option<Bug>) {
    PLANTED.with(|planted| planted.set(bug));
}

/// Whether this bug is planted.
#[cfg(feature = "planted-bugs")]
pub fn is(bug: Bug) -> bool {
    PLANTED.with(|planted| planted.get() == Some(bug))
}

/// Whether this bug is planted: never.
#[cfg(not(feature = "planted-bugs"))]
pub const fn is(_bug: Bug) -> bool {
    false
}
