//! After the end: nothing is left (P8). Scratch and unfinished uploads are removed, what comes late
//! is swept, and of what is history a bounded part is kept.

use muster_platform::store::BlobUrl;
use muster_protocol::api::JobState;
use muster_protocol::ids::JobId;
use muster_protocol::{Error, Result, names};

use crate::job::flow::active::{Active, settings_of};
use crate::job::io::{Effect, Leftovers, Unremoved};
use crate::job::law::Step;
use crate::job::ledger::durable::DurableJob;
use crate::job::pool::policies::health::Subject;
use crate::job::{JOBS_MAX, Machine, Timer};
use crate::journal::record::Record;

/// Pause between two looks for ended jobs that are old, in milliseconds.
const RETENTION_MS: u64 = 60_000;

/// Tries of a late sweep; what it does not find in so many is for `doctor` to find.
const LATE_SWEEPS_MAX: u32 = 5;

/// Jobs of former leaders whose scratch a new one looks over.
const LATE_SWEPT_JOBS_MAX: usize = 100;

impl Machine {
    pub(crate) fn clean_up(&mut self, job: &JobId) {
        let Some((durable, active)) = self.jobs.both_mut(job) else { return };
        active.advance(Step::Cleaning);
        active.letting_go.clear();
        let leftovers = leftovers(durable, active);
        self.out.push(Effect::CleanUp { job: job.clone(), leftovers: Box::new(leftovers) });
    }

    pub(crate) fn cleaned(&mut self, job: &JobId, result: Result<Unremoved>) {
        let Some(active) =
            self.jobs.active_mut(job).filter(|active| active.step() == Step::Cleaning)
        else {
            return;
        };
        match result {
            Ok(unremoved) => {
                active.cleaned(self.now_ms, unremoved.count > 0);
                self.warn_of(job, &unremoved);
                self.record(Record::JobCleaned { job: job.clone() });
            }
            Err(error) => {
                let (lasted_ms, _) = active.store_failed(self.now_ms, true);
                let limit_ms = active.config.phases.clean_ms;
                if lasted_ms > limit_ms {
                    return self.give_up_cleaning(job, lasted_ms, &error);
                }
                let (pause_ms, told) = active.try_again(error.message.clone(), self.jitter.next());
                if told {
                    self.event(Some(job), "warning", "clean-up-failed", error.message);
                }
                self.after(pause_ms, Timer::Store(job.clone()));
            }
        }
    }

    /// Tells whoever follows the job what stays, now and when it is history.
    pub(crate) fn warn_of(&mut self, job: &JobId, unremoved: &Unremoved) {
        let Some(warning) = unremoved.warning() else { return };
        self.event(Some(job), "warning", "not-removed", warning.clone());
        if let Some(active) = self.jobs.active_mut(job) {
            active.told.warn(warning);
        }
    }

    /// The store keeps the clean-up from ending: OUTPUT and the job's slot are free again all the
    /// same, and what is left is for people.
    fn give_up_cleaning(&mut self, job: &JobId, lasted_ms: u64, error: &Error) {
        let Some(active) = self.jobs.active_mut(job) else { return };
        let (limit_ms, scratch) = (active.config.phases.clean_ms, active.scratch.clone());
        active.cleaned(self.now_ms, true);
        let text = format!(
            "it failed for {lasted_ms} ms, the limit is {limit_ms} ms (phases.clean_ms): {}; what \
                is left, in {scratch} and as open uploads, `muster doctor --mend` finds",
            error.message
        );
        active.told.warn(format!("the clean-up was given up: {text}"));
        self.event(Some(job), "error", "clean-up-given-up", text);
        self.record(Record::JobCleaned { job: job.clone() });
    }

    /// Nothing is left, or nothing more can be done: the job is history, of which a bounded part is
    /// kept.
    pub(crate) fn closed(&mut self, job: &JobId) {
        let active = self.jobs.let_go(job);
        let given_up = active.as_ref().is_some_and(|active| active.given_up);
        if let Some(active) = active {
            self.view.keep_warnings(job, active.told);
        }
        self.forget_alerts(&Subject::Job(job.clone()));
        if !given_up {
            self.event(Some(job), "info", "job-cleaned", "scratch and unfinished uploads are gone");
        }
        self.view.is_urgent(job);
        self.will_sweep_late(job.clone());
        self.forget_old();
    }

    /// The clean-ups of a former leader may not have been looked over: which of them is not known,
    /// so the newest are.
    pub(crate) fn sweep_late_again(&mut self) {
        let cleaned = self.jobs.durable().jobs.iter().filter(|(_, job)| job.cleaned);
        let mut jobs: Vec<(u64, JobId)> =
            cleaned.map(|(id, job)| (job.submitted.order, id.clone())).collect();
        jobs.sort_unstable();
        for (_, job) in jobs.into_iter().rev().take(LATE_SWEPT_JOBS_MAX) {
            self.will_sweep_late(job);
        }
    }

    /// From here on it is not forgotten, however many others end meanwhile, until it was swept;
    /// beyond a number of them the sweep is left out if it is.
    fn will_sweep_late(&mut self, job: JobId) {
        if self.flow.sweeping.len() < JOBS_MAX {
            self.flow.sweeping.entry(job.clone()).or_default();
        }
        self.after(self.config.store.late_sweep_ms, Timer::SweepLate(job));
    }

    /// A request to the store may be on its way for longer than the worker lives that sent it, and
    /// longer than its job. What it makes bears the job's name in scratch, where nobody else has
    /// business; an upload into OUTPUT is not known by its name, and is left to `doctor`.
    pub(crate) fn sweep_late(&mut self, job: &JobId) {
        let Some(durable) = self.jobs.known(job).filter(|durable| durable.cleaned) else {
            self.flow.sweeping.remove(job);
            return;
        };
        let submitted = &durable.submitted;
        let urls = std::iter::once(&submitted.scratch).chain(&submitted.replica);
        let scratch: Vec<BlobUrl> = urls.filter_map(|url| url.parse().ok()).collect();
        self.flow.sweeping.entry(job.clone()).or_default();
        self.out.push(Effect::SweepLate { job: job.clone(), scratch });
    }

    pub(crate) fn swept_late(&mut self, job: &JobId, result: Result<u64>) {
        let Some(tries) = self.flow.sweeping.get_mut(job) else { return };
        match result {
            Err(_) if *tries + 1 < LATE_SWEEPS_MAX => {
                *tries += 1;
                let own = self.jobs.known(job).map(|durable| settings_of(durable, &self.config));
                let retry = own.as_ref().map_or(&self.config.retry, |own| &own.retry);
                let pause_ms = retry.store.pause_ms(*tries, self.jitter.next());
                self.after(pause_ms, Timer::SweepLate(job.clone()));
            }
            Err(error) => {
                self.flow.sweeping.remove(job);
                self.event(Some(job), "warning", "late-sweep-failed", error.message);
            }
            Ok(found) => {
                self.flow.sweeping.remove(job);
                if found > 0 {
                    let text = format!(
                        "{found} objects and uploads came to its scratch after the clean-up, and \
                            are gone"
                    );
                    self.event(Some(job), "info", "late-leftovers", text);
                }
            }
        }
    }

    /// Forgets ended jobs beyond the number, or the age, that is kept.
    pub(crate) fn forget_old(&mut self) {
        self.flow.retention_due_ms = self.now_ms.saturating_add(RETENTION_MS);
        let forgotten = |known: &JobId| {
            self.ledger
                .records()
                .any(|record| matches!(record, Record::JobForgotten { job } if job == known))
        };
        let mut closed: Vec<(u64, u64, JobId)> = self
            .jobs
            .durable()
            .jobs
            .iter()
            .filter(|(known, job)| {
                job.cleaned && !forgotten(known) && !self.flow.sweeping.contains_key(*known)
            })
            .map(|(id, job)| {
                (
                    job.submitted.order,
                    job.ended.as_ref().map_or(0, |ended| ended.unix_ms),
                    id.clone(),
                )
            })
            .collect();
        closed.sort_unstable();
        let (journal, unix_ms) = (&self.config.journal, self.unix_ms());
        let surplus = closed.len().saturating_sub(journal.ended_jobs_max as usize);
        let age_ms = journal.ended_age_ms;
        let old = |ended_ms: u64| age_ms > 0 && unix_ms.saturating_sub(ended_ms) > age_ms;
        let gone: Vec<JobId> = (0..)
            .zip(closed)
            .filter(|(at, (_, ended_ms, _))| *at < surplus || old(*ended_ms))
            .map(|(_, (_, _, job))| job)
            .collect();
        for job in gone {
            self.view.forget_job(&job);
            self.record(Record::JobForgotten { job });
        }
    }
}

fn leftovers(durable: &DurableJob, active: &Active) -> Leftovers {
    let url = |partition: u32| {
        active.output.join(&names::part_name(partition, &durable.submitted.extension))
    };
    let succeeded = durable.state == JobState::Succeeded;
    let mut uploads: Vec<_> = durable
        .revoked
        .iter()
        .map(|upload| (url(upload.partition), upload.upload.clone()))
        .collect();
    uploads.extend(
        durable.uploads.values().map(|upload| (url(upload.partition), upload.upload.clone())),
    );
    if !succeeded {
        uploads
            .extend(durable.parts.values().map(|part| (url(part.partition), part.upload.clone())));
    }
    let empty_output =
        (!succeeded && !durable.submitted.output_existed).then(|| active.output.clone());
    Leftovers {
        scratch: active.scratch.clone(),
        replica: active.replica.clone(),
        plan: durable.submitted.plan.clone(),
        output: active.output.clone(),
        partitions: durable.partitions(),
        uploads,
        empty_output,
    }
}
