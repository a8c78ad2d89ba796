//! A job's troubles, as far as they are durable: attempts that failed, runs that were made anew,
//! objects that were left out.
//!
//! They may be very many, so what is kept in words is bounded, the rest is counted; and a snapshot
//! says it in records each of which is small.

use muster_protocol::api::JobState;

use crate::job::ledger::durable::{DurableJob, FAILURES_KEPT, Failure, cut};
use crate::journal::record::{AttemptFailed, JobHistory};

/// Size at which a record of a snapshot's history is full, in bytes; what is one item larger goes
/// into the journal as well.
const HISTORY_BYTES: usize = 128 * 1024;
/// What an item of a history takes beside its text, and a number, in bytes, at most.
const ITEM_BYTES: usize = 96;
const NUMBER_BYTES: usize = 16;

impl DurableJob {
    pub(crate) fn note_failure(&mut self, failed: &AttemptFailed) -> Result<(), String> {
        if self.state.is_terminal() {
            return Err(format!("job {}: an attempt fails while it is {}", failed.job, self.state));
        }
        self.retries = self.retries.saturating_add(1);
        let tries = self.tries.entry(failed.attempt.task).or_default();
        *tries = tries.saturating_add(1);
        self.keep_failure(Failure::from(failed));
        Ok(())
    }

    fn keep_failure(&mut self, failure: Failure) {
        if self.failures.len() >= FAILURES_KEPT {
            self.failures.pop_front();
        }
        self.failures.push_back(failure);
    }

    /// Takes in what a snapshot says of this job's troubles; it may say it in several records, one
    /// after the other.
    pub(crate) fn restore_history(&mut self, history: &JobHistory) -> Result<(), String> {
        let (before, all) = ((self.retries, self.repeated), (history.retries, history.repeated));
        if (before != (0, 0) && before != all) || !self.runs.is_empty() {
            return Err(format!("job {}: its history is restored after it went on", history.job));
        }
        (self.retries, self.repeated) = all;
        self.generations.extend(history.generations.iter().copied());
        self.tries.extend(history.tries.iter().copied());
        self.skipped_objects.extend(
            history.skipped_objects.iter().map(|(object, why)| (*object, cut(why).to_owned())),
        );
        history.failures.iter().for_each(|failed| self.keep_failure(Failure::from(failed)));
        Ok(())
    }

    pub(crate) fn skip_object(&mut self, object: u32, why: &str) -> Result<(), String> {
        if !matches!(self.state, JobState::Submitted | JobState::Sampling | JobState::Sorting) {
            return Err(format!(
                "job {}: an object is left out while it is {}",
                self.submitted.job, self.state
            ));
        }
        self.skipped_objects.entry(object).or_insert_with(|| cut(why).to_owned());
        Ok(())
    }

    /// What a snapshot keeps of this job's troubles, in records of bounded size; none where there
    /// were none.
    pub fn histories(&self) -> Vec<JobHistory> {
        let calm = self.retries == 0 && self.repeated == 0 && self.skipped_objects.is_empty();
        if calm {
            return Vec::new();
        }
        let mut pages = Pages { job: self, full: Vec::new(), page: self.empty_history(), bytes: 0 };
        for (split, generation) in &self.generations {
            pages.room(NUMBER_BYTES).generations.push((*split, *generation));
        }
        for (task, tries) in &self.tries {
            pages.room(NUMBER_BYTES).tries.push((*task, *tries));
        }
        for failure in &self.failures {
            let Failure { attempt, worker, kind, error } = failure.clone();
            let job = self.submitted.job.clone();
            let bytes = ITEM_BYTES + job.as_str().len() + worker.as_str().len() + error.len();
            pages.room(bytes).failures.push(AttemptFailed { job, attempt, worker, kind, error });
        }
        for (object, why) in &self.skipped_objects {
            pages.room(NUMBER_BYTES + why.len()).skipped_objects.push((*object, why.clone()));
        }
        pages.full.push(pages.page);
        pages.full
    }

    fn empty_history(&self) -> JobHistory {
        JobHistory {
            job: self.submitted.job.clone(),
            retries: self.retries,
            repeated: self.repeated,
            generations: Vec::new(),
            tries: Vec::new(),
            failures: Vec::new(),
            skipped_objects: Vec::new(),
        }
    }
}

/// A history that is being cut into records.
struct Pages<'a> {
    job: &'a DurableJob,
    full: Vec<JobHistory>,
    page: JobHistory,
    bytes: usize,
}

impl Pages<'_> {
    /// The record that has room for so many bytes more.
    fn room(&mut self, bytes: usize) -> &mut JobHistory {
        if self.bytes > 0 && self.bytes + bytes > HISTORY_BYTES {
            self.full.push(std::mem::replace(&mut self.page, self.job.empty_history()));
            self.bytes = 0;
        }
        self.bytes += bytes;
        &mut self.page
    }
}
