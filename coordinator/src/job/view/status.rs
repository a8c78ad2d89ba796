//! What people see: status, progress, the list of workers.

use muster_protocol::api::{BadPlace, JobState, JobStatus, Recovery, SkippedObject};
use muster_protocol::ids::JobId;
use muster_protocol::plan::LeftOut;
use muster_protocol::wire::BadRecord;
use muster_protocol::{Error, ErrorKind};

use crate::job::Machine;
use crate::job::flow::active::Active;
use crate::job::flow::table::Stage;
use crate::job::io::{Effect, RefusalCode, Reply, ReplyTo};
use crate::job::law::Step;
use crate::job::ledger::durable::DurableJob;
use crate::job::tasks::table::PhaseTasks;
use crate::job::view::recoveries::shown;
use crate::journal::record::PLACES_KEPT;

/// Most input objects that a status names as left out.
const SKIPPED_SHOWN: usize = 20;
/// Most entries of a list that is sent in one message.
const LIST_MAX: usize = 1000;

impl Machine {
    pub(crate) fn ask_status(&mut self, to: ReplyTo, job: &JobId) {
        let status = match self.flow.planning().get(job) {
            Some(planning) if !self.jobs.durable().jobs.contains_key(job) => {
                Some(self.planning_status(job, planning))
            }
            _ => self.status(job),
        };
        match status {
            Some(status) => self.reply(to, Reply::Job(Box::new(status))),
            None => {
                let text = format!(
                    "job {job} is not known (ended jobs are forgotten after {} others)",
                    self.config.journal.ended_jobs_max
                );
                self.refuse(to, RefusalCode::Unknown, Error::new(ErrorKind::NotFound, text));
            }
        }
    }

    /// All jobs, the newest first.
    pub(crate) fn ask_jobs(&mut self, to: ReplyTo) {
        let planning = self
            .flow
            .planning()
            .iter()
            .filter(|(job, _)| !self.jobs.durable().jobs.contains_key(*job));
        let mut jobs: Vec<JobStatus> =
            planning.map(|(job, planning)| self.planning_status(job, planning)).collect();
        let mut known: Vec<(u64, &JobId)> =
            self.jobs.durable().jobs.iter().map(|(id, job)| (job.submitted.order, id)).collect();
        known.sort_unstable_by(|a, b| b.cmp(a));
        jobs.extend(known.into_iter().filter_map(|(_, job)| self.status(job)));
        jobs.truncate(LIST_MAX);
        for job in &mut jobs {
            // A list says how many; which ones is the single job's to say.
            job.bad_records.clear();
            job.skipped_objects.clear();
            job.recoveries.clear();
            job.warnings.clear();
        }
        self.reply(to, Reply::Jobs(jobs));
    }

    pub(crate) fn ask_workers(&mut self, to: ReplyTo) {
        let mut workers: Vec<_> =
            self.pool.workers().iter().map(|(_, worker)| (!worker.is_alive(), worker)).collect();
        workers.sort_by_key(|(dead, _)| *dead);
        let list = workers
            .into_iter()
            .take(LIST_MAX)
            .map(|(_, worker)| self.worker_status(worker))
            .collect();
        self.reply(to, Reply::Workers(list));
    }

    /// What is known of a job.
    pub(crate) fn status(&self, job: &JobId) -> Option<JobStatus> {
        let durable = self.jobs.known(job)?;
        let active = self.jobs.active(job);
        let tasks = active.and_then(|active| active.tasks.stage());
        let (bytes_done, bytes_total) = bytes(durable, active);
        let mut times = durable.times;
        let elapsed_ms = active.map_or(0, |active| active.elapsed_ms(self.now_ms));
        match durable.state {
            JobState::Sampling => times.sample_ms = elapsed_ms,
            JobState::Sorting => times.sort_ms = elapsed_ms,
            JobState::Merging => times.merge_ms = elapsed_ms,
            JobState::Committing => times.commit_ms = elapsed_ms,
            _ => {}
        }
        let past_sorting = durable.runs_pinned.is_some() || durable.cleaned;
        Some(JobStatus {
            job: job.clone(),
            state: durable.state,
            phase: tasks.map(|tasks| tasks.phase),
            tasks_done: tasks.map_or(0, |tasks| tasks.done),
            tasks_total: tasks.map_or(0, PhaseTasks::total),
            bytes_done,
            bytes_total,
            input_bytes: durable.submitted.input_bytes,
            workers: self.pool.workers().counts().alive,
            attempts_running: active.map_or(0, |active| active.tasks.running()),
            retries: durable.retries,
            repeated_tasks: durable.repeated,
            speculations: active.map_or(0, Active::speculations),
            alerts: self.alerts_of(job),
            waiting_for: self.waiting_for(durable, active),
            error: durable.ended.as_ref().and_then(|ended| ended.error.clone()),
            output: durable.submitted.output.clone(),
            parts: durable.boundaries.as_ref().map_or(0, |chosen| chosen.partitions),
            sums: past_sorting.then_some(durable.run_totals.input),
            dropped: past_sorting.then(|| durable.dropped()),
            times,
            cleaned: durable.cleaned,
            submitted_unix_ms: durable.submitted.submitted_unix_ms,
            skipped: durable.run_totals.skipped,
            bad_records: bad_places(durable, active),
            skipped_objects: skipped_objects(durable, active, SKIPPED_SHOWN),
            skipped_objects_total: skipped_objects_total(durable, active),
            recoveries: recoveries(durable, active),
            warnings: match active {
                Some(active) => active.told.warnings().to_vec(),
                None => self.view.warnings_of(job),
            },
        })
    }

    pub(crate) fn waiting_for(
        &self,
        durable: &DurableJob,
        active: Option<&Active>,
    ) -> Option<String> {
        let active = active?;
        if let Some(why) = self.outages.journal_stalled() {
            return Some(format!("journal: {why}"));
        }
        if let Some(trouble) = active.trouble() {
            return Some(format!("store: {trouble}"));
        }
        let needs_workers = !durable.state.is_terminal() && active.step() == Step::Working;
        if let Some(few) = self.pool.too_few(&self.config).filter(|_| needs_workers) {
            return Some(format!("workers ({few})"));
        }
        if let Some(owner) = self.waiting_for_owner(active).filter(|_| needs_workers) {
            return Some(owner);
        }
        if let Some(what) = self.all_wait_for(active).filter(|_| needs_workers) {
            return Some(format!("{what} (all workers)"));
        }
        if let Some(rate) =
            self.pool.store_limit_per_s().filter(|_| needs_workers && active.tasks.running() > 0)
        {
            return Some(format!("store: it asks for fewer requests; {rate} a second are allowed"));
        }
        if needs_workers && active.held_back && active.tasks.running() == 0 {
            return Some("workers to register again after a take-over".to_owned());
        }
        None
    }

    /// Publishes the progress of jobs that have changed their state in this step.
    pub(crate) fn publish_urgent(&mut self) {
        for job in self.view.take_urgent() {
            self.publish_progress(&job);
        }
    }

    /// Publishes what is new, not more often than people can read.
    pub(crate) fn publish_news(&mut self) {
        let due = |active: &Active| active.told.is_due(self.now_ms);
        let jobs: Vec<JobId> = self
            .jobs
            .at_work()
            .iter()
            .filter(|(_, active)| due(active))
            .map(|(job, _)| job.clone())
            .collect();
        for job in jobs {
            self.publish_progress(&job);
        }
    }

    fn publish_progress(&mut self, job: &JobId) {
        let Some(status) = self.status(job) else { return };
        if let Some(active) = self.jobs.active_mut(job) {
            active.told.published(self.now_ms);
        }
        self.out.push(Effect::Progress(Box::new(status)));
    }
}

/// The first entries and objects of the input that are left out.
pub(crate) fn skipped_objects(
    durable: &DurableJob,
    active: Option<&Active>,
    most: usize,
) -> Vec<SkippedObject> {
    let plan = active.and_then(|active| active.plan.as_deref());
    let name = |at: u32| {
        let url =
            plan.and_then(|plan| plan.objects.get(at as usize)).map(|object| object.url.clone());
        url.unwrap_or_else(|| format!("object {at}"))
    };
    let listed = plan.map(|plan| plan.left_out.as_slice()).unwrap_or_default();
    let listed = listed
        .iter()
        .map(|LeftOut { url, why }| SkippedObject { object: url.clone(), reason: why.clone() });
    let later = durable.skipped_objects.iter();
    let later = later.map(|(at, why)| SkippedObject { object: name(*at), reason: why.clone() });
    listed.chain(later).take(most).collect()
}

/// How many are left out: what could not be input when it was listed, and what could not be read
/// since.
fn skipped_objects_total(durable: &DurableJob, active: Option<&Active>) -> u32 {
    let listed =
        active.and_then(|active| active.plan.as_deref()).map_or(0, |plan| plan.left_out.len());
    u32::try_from(listed + durable.skipped_objects.len()).unwrap_or(u32::MAX)
}

/// The first malformed records that were left out, with the names of their objects.
pub(crate) fn bad_places(durable: &DurableJob, active: Option<&Active>) -> Vec<BadPlace> {
    let objects =
        active.and_then(|active| active.plan.as_ref()).map(|plan| plan.objects.as_slice());
    let name = |at: u32| {
        objects.and_then(|objects| objects.get(at as usize)).map(|object| object.url.clone())
    };
    let place = |bad: &BadRecord| BadPlace {
        object: name(bad.object).unwrap_or_else(|| format!("object {}", bad.object)),
        offset: bad.offset,
        bytes: bad.bytes,
        reason: bad.reason.clone(),
    };
    durable.bad_records.values().flatten().take(PLACES_KEPT).map(place).collect()
}

/// What failed, and how it was got over: as journalled at the end, else as this leader knows.
pub(crate) fn recoveries(durable: &DurableJob, active: Option<&Active>) -> Vec<Recovery> {
    match (&durable.ended, active) {
        (Some(ended), _) => ended.recoveries.iter().map(shown).collect(),
        (None, Some(active)) => active.told.recoveries.sum(false).iter().map(shown).collect(),
        (None, None) => Vec::new(),
    }
}

/// Bytes done and bytes in all of the phase at hand.
fn bytes(durable: &DurableJob, active: Option<&Active>) -> (u64, u64) {
    let Some(tasks) = active.and_then(|active| active.tasks.stage()) else { return (0, 0) };
    let (done, total) = (Stage::of(tasks.phase).bytes)(durable);
    (done.saturating_add(tasks.running_bytes).min(total), total)
}
