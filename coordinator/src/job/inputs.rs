//! Input objects that cannot be read (`--bad-inputs`): the job fails and names the first, or leaves them out as a whole, named, journalled and out of the sums.
//!
//! An object is left out only where every attempt that could mend it was made. Whoever has read some of it by then has read it in vain: runs that hold records of it are made
//! anew, so that no record of it is in the output.

use muster_common::api::JobState;
use muster_common::ids::{AttemptId, JobId, WorkerId};
use muster_common::plan::BadInputs;
use muster_common::planted::{self, Bug};
use muster_common::wire::{DamageCause, SortedRun};
use muster_common::{Error, ErrorKind};

use super::Machine;
use super::active::Waiters;
use super::schedule::{TakenBack, cut_to_line};
use crate::journal::record::Record;

/// Most objects that one job leaves out.
const SKIPPED_MAX: usize = 10_000;

impl Machine {
    /// An attempt cannot read an object of its split.
    pub(super) fn input_unreadable(
        &mut self,
        job: &JobId,
        id: &AttemptId,
        worker: &WorkerId,
        (object, error): (u32, Error),
    ) {
        let Some((durable, active)) = self.both(job) else { return };
        if durable.skipped_objects.contains_key(&object) || active.skipping.contains(&object) {
            return self.take_back(job, id, &TakenBack::HandedBack);
        }
        let plan = active.plan.as_ref();
        let pieces = plan.and_then(|plan| plan.splits.get(id.task.index as usize)).into_iter().flatten();
        let named = pieces.clone().any(|piece| piece.object == object);
        let Some(url) = plan.and_then(|plan| plan.objects.get(object as usize)).filter(|_| named) else {
            let text = format!("its report cannot be true: object {object} is not of its split");
            return self.take_back(job, id, &TakenBack::Failed(Error::corrupt(text)));
        };
        let error = error.at(&url.url);
        let last = self.tries(job, id.task) + 1 >= active.attempts_max;
        let hopeless = error.kind == ErrorKind::NotFound || !error.kind.is_retryable();
        let early = matches!(durable.state, JobState::Sampling | JobState::Sorting);
        if active.bad_inputs != BadInputs::Skip || !early || error.kind == ErrorKind::Bug || !(last || hopeless) {
            return self.take_back(job, id, &TakenBack::Failed(error));
        }
        if durable.skipped_objects.len() + active.skipping.len() >= SKIPPED_MAX {
            let text = format!("more than {SKIPPED_MAX} input objects cannot be read, at last {}", error.message);
            return self.fail(job, Error::exhausted(text));
        }
        let host = self.workers.get(worker).map(|known| known.info.host.clone()).unwrap_or_default();
        let why = cut_to_line(&format!("worker {worker} on {host}: {}", error.message));
        if let Some(active) = self.active.get_mut(job) {
            active.skipping.insert(object);
        }
        self.append(Record::ObjectSkipped { job: job.clone(), object, why }, Waiters::default());
        self.take_back(job, id, &TakenBack::HandedBack);
    }

    /// The omission stands.
    pub(super) fn object_is_skipped(&mut self, job: &JobId, object: u32) {
        let (Some(durable), Some(active)) = (self.durable.jobs.get(job), self.active.get_mut(job)) else { return };
        active.skipping.remove(&object);
        // Runs that were made before may have told of malformed records in it, which go with the rest of it.
        active.bad_records.retain(|(of, _), _| *of != object);
        active.moved(self.now_ms);
        let why = durable.skipped_objects.get(&object).cloned().unwrap_or_default();
        self.event(Some(job), "warning", "object-skipped", format!("an input object is left out: {why}"));
        self.give_up_skipped(job, None);
        self.touch(job);
        self.advance(job);
    }

    /// Committed runs that hold records of an object that is left out are made anew: one of them, or all.
    pub(super) fn give_up_skipped(&mut self, job: &JobId, split: Option<u32>) {
        let Some(durable) = self.durable.jobs.get(job) else { return };
        let nothing = durable.skipped_objects.is_empty() || planted::is(Bug::KeepSkipped);
        if nothing || durable.state != JobState::Sorting {
            return;
        }
        let skipped = |object: u32| durable.skipped_objects.contains_key(&object);
        let in_vain: Vec<u32> = durable
            .runs
            .iter()
            .filter(|(at, _)| split.is_none_or(|split| split == **at))
            .filter(|(_, run)| run.intervals.iter().any(|interval| skipped(interval.object)))
            .map(|(at, _)| *at)
            .collect();
        for split in in_vain {
            self.lose_run(job, split, DamageCause::Store, "it holds records of an input object that is left out");
        }
    }

    /// Whether a run holds records of an object that is left out, or about to be: its attempt began before that was known.
    pub(super) fn holds_skipped(&self, job: &JobId, run: &SortedRun) -> bool {
        let Some((durable, active)) = self.both(job) else { return false };
        let skipped = |object: &u32| durable.skipped_objects.contains_key(object) || active.skipping.contains(object);
        run.intervals.iter().any(|interval| skipped(&interval.object))
    }
}
