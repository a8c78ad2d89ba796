//! How jobs end: the commit is made visible, or everything is taken back; then nothing is left
//! (P8).
//!
//! A job that fails or is cancelled leaves OUTPUT as it was, because no part is visible before the
//! commit is decided. After the decision it can only go on: publishing is repeated until it
//! succeeds, by this leader or the next, and each of them writes the very manifest that was made
//! before the decision.

use muster_common::api::{
    JobState, KeyEncoding, Manifest, ManifestPart, PhaseTimes, QuarantineFile,
};
use muster_common::ids::AttemptId;
use muster_common::names;
use muster_common::planted::{self, Bug};
use muster_common::store::BlobUrl;
use muster_common::wire::{BlobRef, Broadcast, CancelAttempt};
use muster_common::{Error, ErrorKind, Result};
use muster_kernel::proof::Sums;
use muster_kernel::splitters::SAMPLE_KEY_MAX;

use super::active::{Active, Attempt, Stage, Waiters, settings_of};
use super::durable::DurableJob;
use super::io::{
    Effect, Leftovers, ManifestBytes, Publication, PublishedPart, RefusalCode, ReplyTo, Unremoved,
};
use super::status::{bad_places, recoveries, skipped_objects};
use super::{JOBS_MAX, JobId, Machine, SharedPlan, Timer};
use crate::journal::record::{JobEnded, JobOutcome, Record};
use crate::membership::health::Subject;

/// Pause between the last worker's word that it lets go and the clean-up, in milliseconds: it
/// removes what it made first.
const LET_GO_MS: u64 = 300;
/// Pause between two looks for ended jobs that are old, in milliseconds.
const RETENTION_MS: u64 = 60_000;
/// Tries of a late sweep; what it does not find in so many is for `doctor` to find.
const LATE_SWEEPS_MAX: u32 = 5;
/// Jobs of former leaders whose scratch a new one looks over.
const LATE_SWEPT_JOBS_MAX: usize = 100;
/// Version of the manifest.
const MANIFEST_VERSION: u32 = 1;

impl Machine {
    /// The commit is decided: what was made becomes visible.
    pub(super) fn publish(&mut self, job: &JobId) {
        let (Some(durable), Some(active)) = (self.durable.jobs.get(job), self.active.get_mut(job))
        else {
            return;
        };
        self.urgent.insert(job.clone());
        if active.stage != Stage::Publishing {
            active.begins(self.now_ms);
            active.tasks = None;
            active.repair = None;
        }
        let (Some(plan), Some(stored)) = (active.plan.clone(), durable.manifest.clone()) else {
            active.stage = Stage::AwaitingPlan;
            return self.touch(job);
        };
        active.stage = Stage::Publishing;
        let manifest = if planted::is(Bug::RemakeManifest) {
            manifest_bytes(durable, active, &plan).map(ManifestBytes::Made)
        } else {
            Ok(ManifestBytes::Stored(stored))
        };
        match manifest.map(|manifest| publication(durable, active, &plan, manifest)) {
            Ok(publication) => {
                self.touch(job);
                self.out
                    .push(Effect::Publish { job: job.clone(), publication: Box::new(publication) });
            }
            Err(error) => self.give_up_commit(job, error),
        }
    }

    pub(super) fn published(&mut self, job: &JobId, result: Result<Unremoved>) {
        let Some(active) =
            self.active.get_mut(job).filter(|active| active.stage == Stage::Publishing)
        else {
            return;
        };
        match result {
            Ok(unremoved) => {
                active.moved(self.now_ms);
                self.warn_of(job, &unremoved);
                self.end(job, JobOutcome::Succeeded, None, Waiters::default());
            }
            Err(error) => self.store_trouble(job, error),
        }
    }

    /// Ends a job whose decided commit the store has made impossible.
    pub(super) fn give_up_commit(&mut self, job: &JobId, error: Error) {
        self.event(Some(job), "error", "commit-impossible", error.message.clone());
        self.dead_letter(job, &error);
        self.end(job, JobOutcome::Failed, Some(error), Waiters::default());
    }

    /// Ends a job with a cause, unless its commit is decided, or about to be.
    pub(super) fn fail(&mut self, job: &JobId, error: Error) {
        if self.is_past_failing(job) {
            return;
        }
        self.event(Some(job), "error", "job-failing", error.message.clone());
        self.dead_letter(job, &error);
        self.end(job, JobOutcome::Failed, Some(error), Waiters::default());
    }

    fn is_past_failing(&self, job: &JobId) -> bool {
        let Some((durable, active)) = self.both(job) else { return true };
        let deciding = active.stage == Stage::Deciding && durable.state == JobState::Merging;
        durable.commit_decided || deciding || active.ending.is_some() || durable.ended.is_some()
    }

    fn end(&mut self, job: &JobId, outcome: JobOutcome, error: Option<Error>, waiters: Waiters) {
        let (Some(durable), Some(active)) = (self.durable.jobs.get(job), self.active.get_mut(job))
        else {
            return;
        };
        if !super::state::allowed(durable.state, super::durable::end_state(outcome)) {
            self.counters.illegal += 1;
            let text = format!("job {job} cannot go from {} to {:?}", durable.state, outcome);
            return self.event(Some(job), "error", "illegal-transition", text);
        }
        active.stage = Stage::Ending;
        let took_ms = if durable.commit_decided { active.elapsed_ms(self.now_ms) } else { 0 };
        // What a worker said may be longer than an error of our own.
        let error = error.map(|error| Error::new(error.kind, error.message).message);
        let record = JobEnded {
            job: job.clone(),
            outcome,
            error,
            retries: durable.retries,
            repeated: durable.repeated,
            recoveries: active.recoveries.sum(outcome == JobOutcome::Failed),
            took_ms,
            unix_ms: self.unix_ms(),
        };
        let token = self.append(Record::JobEnded(Box::new(record)), waiters);
        if let Some(active) = self.active.get_mut(job) {
            active.ending = Some(token);
        }
        self.touch(job);
    }

    pub(super) fn cancel(&mut self, to: ReplyTo, job: &JobId) {
        if self.planning.contains_key(job) {
            return self.cancel_planning(to, job);
        }
        let Some(durable) = self.durable.jobs.get(job) else {
            return self.refuse(
                to,
                RefusalCode::Unknown,
                Error::new(ErrorKind::NotFound, format!("job {job} is not known")),
            );
        };
        if durable.state == JobState::Cancelled {
            return self.ask_status(to, job);
        }
        if durable.state.is_terminal() {
            let text = format!("job {job} has {} already", durable.state);
            return self.refuse(to, RefusalCode::Conflict, Error::invalid(text));
        }
        if let Some(token) = self.active.get(job).and_then(|active| active.ending) {
            if let Some(dropped) = self.wait_for_record(token, to) {
                self.ask_status(dropped, job);
            }
            return;
        }
        if self.is_past_failing(job) {
            let text = format!("the commit of job {job} is decided; it can no longer be cancelled");
            return self.refuse(to, RefusalCode::Conflict, Error::invalid(text));
        }
        self.end(job, JobOutcome::Cancelled, None, Waiters::one(to));
    }

    /// The end stands in the journal.
    pub(super) fn ended(&mut self, ended: &JobEnded, waiters: Waiters) {
        let job = &ended.job;
        if let Some(active) = self.active.get_mut(job) {
            active.ending = None;
            active.moved(self.now_ms);
        }
        let (severity, text) = match (&ended.outcome, &ended.error) {
            (JobOutcome::Succeeded, _) => ("info", "succeeded".to_owned()),
            (JobOutcome::Cancelled, _) => ("warning", "cancelled".to_owned()),
            (JobOutcome::Failed, error) => {
                ("error", format!("failed: {}", error.as_deref().unwrap_or_default()))
            }
        };
        self.event(Some(job), severity, "job-ended", text);
        self.count_end(ended);
        self.out.push(Effect::Broadcast {
            job: job.clone(),
            broadcast: Broadcast::Ended { epoch: self.epoch },
        });
        for to in waiters.into_vec() {
            self.ask_status(to, job);
        }
        self.urgent.insert(job.clone());
        self.stop(job);
    }

    fn count_end(&mut self, ended: &JobEnded) {
        let tally = &mut self.tally;
        let how = match ended.outcome {
            JobOutcome::Succeeded => 0,
            JobOutcome::Failed => 1,
            JobOutcome::Cancelled => 2,
        };
        tally.jobs_ended[how] += 1;
        tally.recoveries(&ended.recoveries);
        if let Some(durable) =
            self.durable.jobs.get(&ended.job).filter(|_| ended.outcome == JobOutcome::Succeeded)
        {
            tally.records_sorted =
                tally.records_sorted.saturating_add(durable.run_totals.input.records);
            tally.bytes_sorted = tally.bytes_sorted.saturating_add(durable.submitted.input_bytes);
        }
    }

    /// Tells workers to let go of an ended job, and waits for them within a bound: what they write
    /// after the clean-up would stay.
    pub(super) fn stop(&mut self, job: &JobId) {
        let Some(active) = self.active.get_mut(job) else { return };
        active.stage = Stage::Stopping;
        let running: Vec<(AttemptId, muster_common::ids::WorkerId)> = active
            .running_attempts()
            .map(|Attempt { id, worker, .. }| (*id, worker.clone()))
            .collect();
        active.tasks = None;
        active.repair = None;
        active.losing.clear();
        active.skipping.clear();
        active.letting_go = running.iter().map(|(attempt, _)| *attempt).collect();
        let epoch = self.epoch;
        for (attempt, worker) in running {
            self.workers.update(&worker, |known| known.attempts.remove(&(job.clone(), attempt)));
            self.out.push(Effect::SendCancel {
                worker,
                cancel: CancelAttempt { epoch, job: job.clone(), attempt },
            });
        }
        self.touch(job);
        if self.active.get(job).is_some_and(Active::is_quiet) {
            self.clean_up(job);
        } else {
            self.after(self.config.heartbeat.dead_after_ms, Timer::LetGo(job.clone()));
        }
    }

    pub(super) fn cancel_answered(&mut self, job: &JobId, attempt: &AttemptId, answered: bool) {
        let Some(active) =
            self.active.get_mut(job).filter(|active| active.stage == Stage::Stopping && answered)
        else {
            return;
        };
        if active.letting_go.remove(attempt) && active.is_quiet() {
            self.after(LET_GO_MS, Timer::LetGo(job.clone()));
        }
    }

    /// An object of the coordinator's own is written, or is not.
    pub(super) fn wrote(&mut self, job: &JobId) {
        let Some(active) = self.active.get_mut(job) else { return };
        active.writing = active.writing.saturating_sub(1);
        if active.stage == Stage::Stopping && active.is_quiet() {
            self.after(LET_GO_MS, Timer::LetGo(job.clone()));
        }
    }

    pub(super) fn stop_waiting(&mut self, job: &JobId) {
        if self.active.get(job).is_some_and(|active| active.stage == Stage::Stopping) {
            self.clean_up(job);
        }
    }

    pub(super) fn clean_up(&mut self, job: &JobId) {
        let (Some(durable), Some(active)) = (self.durable.jobs.get(job), self.active.get_mut(job))
        else {
            return;
        };
        active.stage = Stage::Cleaning;
        active.letting_go.clear();
        let leftovers = leftovers(durable, active);
        self.out.push(Effect::CleanUp { job: job.clone(), leftovers: Box::new(leftovers) });
    }

    pub(super) fn cleaned(&mut self, job: &JobId, result: Result<Unremoved>) {
        let Some(active) =
            self.active.get_mut(job).filter(|active| active.stage == Stage::Cleaning)
        else {
            return;
        };
        match result {
            Ok(unremoved) => {
                active.stage = Stage::Closing;
                active.given_up = unremoved.count > 0;
                active.moved(self.now_ms);
                self.warn_of(job, &unremoved);
                self.append(Record::JobCleaned { job: job.clone() }, Waiters::default());
            }
            Err(error) => {
                let (lasted_ms, limit_ms) =
                    (active.failed_again(self.now_ms), active.config.phases.clean_ms);
                if lasted_ms > limit_ms {
                    return self.give_up_cleaning(job, lasted_ms, &error);
                }
                active.trouble = Some(error.message.clone());
                let pause_ms = active.config.retry.store.pause_ms(active.tries, self.jitter.next());
                if active.tries == 1 {
                    self.event(Some(job), "warning", "clean-up-failed", error.message);
                }
                self.after(pause_ms, Timer::Store(job.clone()));
            }
        }
    }

    /// Tells whoever follows the job what stays, now and when it is history.
    fn warn_of(&mut self, job: &JobId, unremoved: &Unremoved) {
        let Some(warning) = unremoved.warning() else { return };
        self.event(Some(job), "warning", "not-removed", warning.clone());
        if let Some(active) = self.active.get_mut(job) {
            active.warnings.push(warning);
        }
    }

    /// The store keeps the clean-up from ending: OUTPUT and the job's slot are free again all the
    /// same, and what is left is for people.
    fn give_up_cleaning(&mut self, job: &JobId, lasted_ms: u64, error: &Error) {
        let Some(active) = self.active.get_mut(job) else { return };
        let (limit_ms, scratch) = (active.config.phases.clean_ms, active.scratch.clone());
        active.given_up = true;
        active.stage = Stage::Closing;
        active.moved(self.now_ms);
        let text = format!(
            "it failed for {lasted_ms} ms, the limit is {limit_ms} ms (phases.clean_ms): {}; what \
                is left, in {scratch} and as open uploads, `muster doctor --mend` finds",
            error.message
        );
        active.warnings.push(format!("the clean-up was given up: {text}"));
        self.event(Some(job), "error", "clean-up-given-up", text);
        self.append(Record::JobCleaned { job: job.clone() }, Waiters::default());
    }

    /// Nothing is left, or nothing more can be done: the job is history, of which a bounded part is
    /// kept.
    pub(super) fn closed(&mut self, job: &JobId) {
        let active = self.active.remove(job);
        let given_up = active.as_ref().is_some_and(|active| active.given_up);
        if let Some(active) = active.filter(|active| !active.warnings.is_empty()) {
            self.warned.insert(job.clone(), active.warnings);
        }
        self.forget_alerts(&Subject::Job(job.clone()));
        if !given_up {
            self.event(Some(job), "info", "job-cleaned", "scratch and unfinished uploads are gone");
        }
        self.urgent.insert(job.clone());
        self.will_sweep_late(job.clone());
        self.forget_old();
    }

    /// The clean-ups of a former leader may not have been looked over: which of them is not known,
    /// so the newest are.
    pub(super) fn sweep_late_again(&mut self) {
        let cleaned = self.durable.jobs.iter().filter(|(_, job)| job.cleaned);
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
        if self.sweeping.len() < JOBS_MAX {
            self.sweeping.entry(job.clone()).or_default();
        }
        self.after(self.config.store.late_sweep_ms, Timer::SweepLate(job));
    }

    /// A request to the store may be on its way for longer than the worker lives that sent it, and
    /// longer than its job. What it makes bears the job's name in scratch, where nobody else has
    /// business; an upload into OUTPUT is not known by its name, and is left to `doctor`.
    pub(super) fn sweep_late(&mut self, job: &JobId) {
        let Some(durable) = self.durable.jobs.get(job).filter(|durable| durable.cleaned) else {
            self.sweeping.remove(job);
            return;
        };
        let submitted = &durable.submitted;
        let urls = std::iter::once(&submitted.scratch).chain(&submitted.replica);
        let scratch: Vec<BlobUrl> = urls.filter_map(|url| url.parse().ok()).collect();
        self.sweeping.entry(job.clone()).or_default();
        self.out.push(Effect::SweepLate { job: job.clone(), scratch });
    }

    pub(super) fn swept_late(&mut self, job: &JobId, result: Result<u64>) {
        let Some(tries) = self.sweeping.get_mut(job) else { return };
        match result {
            Err(_) if *tries + 1 < LATE_SWEEPS_MAX => {
                *tries += 1;
                let own =
                    self.durable.jobs.get(job).map(|durable| settings_of(durable, &self.config));
                let retry = own.as_ref().map_or(&self.config.retry, |own| &own.retry);
                let pause_ms = retry.store.pause_ms(*tries, self.jitter.next());
                self.after(pause_ms, Timer::SweepLate(job.clone()));
            }
            Err(error) => {
                self.sweeping.remove(job);
                self.event(Some(job), "warning", "late-sweep-failed", error.message);
            }
            Ok(found) => {
                self.sweeping.remove(job);
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
    pub(super) fn forget_old(&mut self) {
        self.retention_due_ms = self.now_ms.saturating_add(RETENTION_MS);
        let forgotten = |known: &JobId| {
            self.ledger
                .records()
                .any(|record| matches!(record, Record::JobForgotten { job } if job == known))
        };
        let mut closed: Vec<(u64, u64, JobId)> = self
            .durable
            .jobs
            .iter()
            .filter(|(known, job)| {
                job.cleaned && !forgotten(known) && !self.sweeping.contains_key(*known)
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
            self.warned.remove(&job);
            self.append(Record::JobForgotten { job }, Waiters::default());
        }
    }
}

/// What a commit makes visible.
pub(super) fn publication(
    durable: &DurableJob,
    active: &Active,
    plan: &SharedPlan,
    manifest: ManifestBytes,
) -> Publication {
    let extension = &durable.submitted.extension;
    let parts = durable.parts.values().map(|part| PublishedPart {
        url: active.output.join(&names::part_name(part.partition, extension)),
        upload: part.upload.clone(),
        tags: part.tags.clone(),
        bytes: part.bytes,
        checksum: part.checksum,
    });
    Publication {
        output: active.output.clone(),
        job: durable.submitted.job.clone(),
        parts: parts.collect(),
        quarantine: quarantine(durable, active),
        manifest,
        replaced: plan.replaced.clone(),
        overwrite: active.overwrite,
        plan: plan.clone(),
        sync: plan.fsync,
    }
}

/// The manifest as this leader would make it. Some of it is known to this leader alone (what was
/// got over, and in which time), so it is made once, before the commit is decided.
pub(super) fn manifest_bytes(
    durable: &DurableJob,
    active: &Active,
    plan: &SharedPlan,
) -> Result<Vec<u8>> {
    serde_json::to_vec_pretty(&manifest(durable, active, plan))
        .map_err(|e| Error::bug(format!("cannot write the manifest: {e}")))
}

/// The malformed records of each split, and where they go.
fn quarantine(durable: &DurableJob, active: &Active) -> Vec<(BlobRef, BlobUrl)> {
    let lines =
        durable.runs.iter().filter_map(|(split, run)| Some((split, run.quarantine.as_ref()?)));
    lines
        .map(|(split, lines)| (lines.clone(), active.output.join(&names::quarantine_path(*split))))
        .collect()
}

fn manifest(durable: &DurableJob, active: &Active, plan: &SharedPlan) -> Manifest {
    let kept_aside = durable.runs.iter().filter_map(|(split, run)| {
        let lines = run.quarantine.as_ref()?;
        let (name, checksum) = (names::quarantine_path(*split), format!("{:016x}", lines.digest));
        Some(QuarantineFile { name, bytes: lines.bytes, checksum })
    });
    let parts = durable.parts.values().map(|part| {
        let (key_encoding, [first_key, last_key]) =
            KeyEncoding::write([&part.first_key, &part.last_key], SAMPLE_KEY_MAX);
        ManifestPart {
            name: names::part_name(part.partition, &durable.submitted.extension),
            records: part.kept.records,
            bytes: part.bytes,
            first_key,
            last_key,
            key_encoding,
            checksum: format!("{:016x}", part.checksum),
            hash: format!("{:016x}", part.kept.hash),
        }
    });
    Manifest {
        version: MANIFEST_VERSION,
        job: durable.submitted.job.clone(),
        sort: plan.sort.clone(),
        parts: parts.collect(),
        sums: durable.part_totals.kept,
        input: durable.run_totals.input,
        dropped: dropped(durable),
        retries: durable.retries,
        repeated_tasks: durable.repeated,
        // The record of the decision says the same.
        times: PhaseTimes {
            merge_ms: active.merged_ms.max(durable.times.merge_ms),
            ..durable.times
        },
        skipped: durable.run_totals.skipped,
        bad_records: bad_places(durable, Some(active)),
        quarantine: kept_aside.collect(),
        skipped_objects: skipped_objects(durable, Some(active), usize::MAX),
        recoveries: recoveries(durable, Some(active)),
    }
}

/// What `-u` dropped, in sorting and in merging.
pub(super) fn dropped(durable: &DurableJob) -> Sums {
    durable.run_totals.dropped.plus(&durable.part_totals.dropped)
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
