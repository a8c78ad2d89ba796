//! Input objects that cannot be read (`--bad-inputs`): the job fails and names the first, or leaves
//! them out as a whole, named, journalled and out of the sums.
//!
//! An object is left out only where every attempt that could mend it was made. Whoever has read
//! some of it by then has read it in vain: runs that hold records of it are made anew, so that no
//! record of it is in the output.

use std::ops::Range;

use muster_kernel::proof::Interval;
use muster_protocol::api::JobState;
use muster_protocol::ids::{AttemptId, JobId, WorkerId};
use muster_protocol::plan::{BadInputs, LeftOut, Plan};
use muster_protocol::planted::{self, Bug};
use muster_protocol::wire::{DamageCause, SortedRun};
use muster_protocol::{Error, ErrorKind};

use crate::job::Machine;
use crate::job::io::Listing;
use crate::job::tasks::attempts::{TakenBack, cut_to_line};
use crate::job::view::tally::Counted;
use crate::journal::record::Record;

/// Most objects that one job leaves out.
const SKIPPED_MAX: usize = 10_000;

impl Machine {
    /// An attempt cannot read an object of its split.
    pub(crate) fn input_unreadable(
        &mut self,
        job: &JobId,
        id: &AttemptId,
        worker: &WorkerId,
        (object, error): (u32, Error),
    ) {
        let Some((durable, active)) = self.jobs.both(job) else { return };
        if durable.skipped_objects.contains_key(&object) || active.tasks.skipping.contains(&object)
        {
            return self.take_back(job, id, &TakenBack::HandedBack);
        }
        let plan = active.plan.as_ref();
        let pieces =
            plan.and_then(|plan| plan.splits.get(id.task.index as usize)).into_iter().flatten();
        let named = pieces.clone().any(|piece| piece.object == object);
        let Some(url) = plan.and_then(|plan| plan.objects.get(object as usize)).filter(|_| named)
        else {
            let text = format!("its report cannot be true: object {object} is not of its split");
            return self.take_back(job, id, &TakenBack::Failed(Error::corrupt(text)));
        };
        let error = error.at(&url.url);
        let last = self.tries(job, id.task) + 1 >= active.attempts_max;
        let hopeless = error.kind == ErrorKind::NotFound || !error.kind.is_retryable();
        let early = matches!(durable.state, JobState::Sampling | JobState::Sorting);
        if active.bad_inputs != BadInputs::Skip
            || !early
            || error.kind == ErrorKind::Bug
            || !(last || hopeless)
        {
            return self.take_back(job, id, &TakenBack::Failed(error));
        }
        if durable.skipped_objects.len() + active.tasks.skipping.len() >= SKIPPED_MAX {
            let text = format!(
                "more than {SKIPPED_MAX} input objects cannot be read, at last {}",
                error.message
            );
            return self.fail(job, Error::exhausted(text));
        }
        let host = self
            .pool
            .workers()
            .get(worker)
            .map(|known| known.info.host.clone())
            .unwrap_or_default();
        let why = cut_to_line(&format!("worker {worker} on {host}: {}", error.message));
        if let Some(active) = self.jobs.active_mut(job) {
            active.tasks.skipping.insert(object);
        }
        self.record(Record::ObjectSkipped { job: job.clone(), object, why });
        self.take_back(job, id, &TakenBack::HandedBack);
    }

    /// Tells of what cannot be input, as it was seen when the input was listed.
    pub(crate) fn tell_left_out(&mut self, job: &JobId, listing: &Listing) {
        let Some(LeftOut { url, why }) = listing.left_out.first() else { return };
        let count = listing.left_out.len();
        let text =
            format!("{count} entries of the input are left out, the first of them {url}: {why}");
        self.event(Some(job), "warning", "object-skipped", text);
    }

    /// The omission stands.
    pub(crate) fn object_is_skipped(&mut self, job: &JobId, object: u32) {
        let Some((durable, active)) = self.jobs.both_mut(job) else { return };
        active.tasks.skipping.remove(&object);
        active.moved(self.now_ms);
        let why = durable.skipped_objects.get(&object).cloned().unwrap_or_default();
        let text = format!("an input object is left out: {why}");
        self.event(Some(job), "warning", "object-skipped", text);
        self.give_up_holders(job, object);
        self.jobs.touch(job);
        self.advance(job);
    }

    /// Committed runs that hold records of an object that is left out are made anew. Only the
    /// splits that read it are looked at: objects and omissions may be many.
    fn give_up_holders(&mut self, job: &JobId, object: u32) {
        let Some((durable, active)) = self.jobs.both(job) else { return };
        let Some(plan) = active.plan.as_deref() else { return self.give_up_skipped(job) };
        let runs = durable.runs.range(splits_of(plan, object));
        self.give_up(job, runs.map(|(split, _)| *split).collect());
    }

    /// The same for a run that was on its way when its object was left out.
    pub(crate) fn give_up_if_skipped(&mut self, job: &JobId, split: u32) {
        self.give_up(job, vec![split]);
    }

    /// The same for all runs: for a leader that takes over.
    pub(crate) fn give_up_skipped(&mut self, job: &JobId) {
        let Some(durable) = self.jobs.known(job) else { return };
        self.give_up(job, durable.runs.keys().copied().collect());
    }

    /// Of these splits' committed runs, those that hold records of what is left out are made anew.
    fn give_up(&mut self, job: &JobId, splits: Vec<u32>) {
        let Some(durable) = self.jobs.known(job) else { return };
        let nothing = durable.skipped_objects.is_empty() || planted::is(Bug::KeepSkipped);
        if nothing || durable.state != JobState::Sorting {
            return;
        }
        let mut looked_at = 0;
        let mut in_vain = |split: &u32| {
            let Some(run) = durable.runs.get(split) else { return false };
            run.intervals.iter().any(|interval| {
                looked_at += 1;
                durable.skipped_objects.contains_key(&interval.object)
            })
        };
        let in_vain: Vec<u32> = splits.into_iter().filter(|split| in_vain(split)).collect();
        self.view.count(Counted::IntervalsLookedAt(looked_at));
        for split in in_vain {
            self.lose_run(
                job,
                split,
                DamageCause::Store,
                "it holds records of an input object that is left out",
            );
        }
    }

    /// Whether a run holds records of an object that is left out, or about to be: its attempt began
    /// before that was known.
    pub(crate) fn holds_skipped(&self, job: &JobId, run: &SortedRun) -> bool {
        let Some((durable, active)) = self.jobs.both(job) else { return false };
        let skipped = |object: &u32| {
            durable.skipped_objects.contains_key(object) || active.tasks.skipping.contains(object)
        };
        run.intervals.iter().any(|interval| skipped(&interval.object))
    }
}

/// The splits that read an object: splits follow one another in the input.
fn splits_of(plan: &Plan, object: u32) -> Range<u32> {
    let first = plan
        .splits
        .partition_point(|split| split.last().is_some_and(|piece| piece.object < object));
    let reads = |split: &&Vec<Interval>| split.first().is_some_and(|piece| piece.object <= object);
    let count = plan.splits[first..].iter().take_while(reads).count();
    let number = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
    number(first)..number(first + count)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is found by bisection is what a look at every piece finds.
    #[test]
    fn an_object_is_read_by_the_splits_that_hold_a_piece_of_it() {
        let check = |sizes: &[u64], split_bytes: u64| {
            let format = muster_kernel::format::Format::lines(b'\n');
            let splits = muster_kernel::split::plan_splits(sizes, &format, split_bytes);
            let plan = Plan { splits, ..crate::job::tests::empty_plan() };
            // Of an empty object there is no piece, so nothing is ever left out of a run.
            for (object, _) in (0..).zip(sizes).filter(|(_, size)| **size > 0) {
                let found: Vec<u32> = splits_of(&plan, object).collect();
                let reads =
                    |split: &Vec<Interval>| split.iter().any(|piece| piece.object == object);
                let expected: Vec<u32> = (0..)
                    .zip(&plan.splits)
                    .filter(|(_, split)| reads(split))
                    .map(|(at, _)| at)
                    .collect();
                assert_eq!(
                    found, expected,
                    "object {object} of {sizes:?} in splits of {split_bytes}"
                );
            }
        };
        for split_bytes in [1, 2, 3, 5, 7, 100] {
            check(&[], split_bytes);
            check(&[10], split_bytes);
            check(&[0, 0, 3, 0, 1, 20, 0], split_bytes);
            check(&[4, 4, 4, 4, 4], split_bytes);
        }
    }
}
