//! What people see: status, progress, the list of workers.

use muster_common::api::{JobState, JobStatus};
use muster_common::ids::{JobId, Phase};
use muster_common::{Error, ErrorKind};

use super::Machine;
use super::active::{Active, Stage};
use super::durable::DurableJob;
use super::finish::dropped;
use super::io::{Effect, RefusalCode, Reply, ReplyTo};

/// Pause between two publications of a job's progress, in milliseconds.
const PROGRESS_MS: u64 = 500;
/// Most entries of a list that is sent in one message.
const LIST_MAX: usize = 1000;

impl Machine {
    pub(super) fn ask_status(&mut self, to: ReplyTo, job: &JobId) {
        let status = match self.planning.get(job) {
            Some(planning) if !self.durable.jobs.contains_key(job) => Some(self.planning_status(job, planning)),
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
    pub(super) fn ask_jobs(&mut self, to: ReplyTo) {
        let planning = self.planning.iter().filter(|(job, _)| !self.durable.jobs.contains_key(*job));
        let mut jobs: Vec<JobStatus> = planning.map(|(job, planning)| self.planning_status(job, planning)).collect();
        let mut known: Vec<(u64, &JobId)> =
            self.durable.jobs.iter().map(|(id, job)| (job.submitted.order, id)).collect();
        known.sort_unstable_by(|a, b| b.cmp(a));
        jobs.extend(known.into_iter().filter_map(|(_, job)| self.status(job)));
        jobs.truncate(LIST_MAX);
        self.reply(to, Reply::Jobs(jobs));
    }

    pub(super) fn ask_workers(&mut self, to: ReplyTo) {
        let interval_ms = self.config.heartbeat.interval_ms;
        let mut workers: Vec<_> = self.workers.iter().map(|(_, worker)| (!worker.alive, worker)).collect();
        workers.sort_by_key(|(dead, _)| *dead);
        let list =
            workers.into_iter().take(LIST_MAX).map(|(_, worker)| worker.status(self.now_ms, interval_ms)).collect();
        self.reply(to, Reply::Workers(list));
    }

    /// What is known of a job.
    pub(super) fn status(&self, job: &JobId) -> Option<JobStatus> {
        let durable = self.durable.jobs.get(job)?;
        let active = self.active.get(job);
        let tasks = active.and_then(|active| active.tasks.as_ref());
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
        let retries = durable.ended.as_ref().map(|ended| ended.retries).or(active.map(|active| active.retries));
        Some(JobStatus {
            job: job.clone(),
            state: durable.state,
            phase: tasks.map(|tasks| tasks.phase),
            tasks_done: tasks.map_or(0, |tasks| tasks.done),
            tasks_total: tasks.map_or(0, super::active::PhaseTasks::total),
            bytes_done,
            bytes_total,
            input_bytes: durable.submitted.input_bytes,
            workers: self.workers.alive(),
            attempts_running: active.map_or(0, Active::running),
            retries: retries.unwrap_or(0),
            repeated_tasks: 0,
            waiting_for: self.waiting_for(durable, active),
            error: durable.ended.as_ref().and_then(|ended| ended.error.clone()),
            output: durable.submitted.output.clone(),
            parts: durable.boundaries.as_ref().map_or(0, |chosen| chosen.partitions),
            sums: past_sorting.then_some(durable.run_totals.input),
            dropped: past_sorting.then(|| dropped(durable)),
            times,
            cleaned: durable.cleaned,
            submitted_unix_ms: durable.submitted.submitted_unix_ms,
        })
    }

    fn waiting_for(&self, durable: &DurableJob, active: Option<&Active>) -> Option<String> {
        let active = active?;
        if let Some(why) = &self.journal_stalled {
            return Some(format!("journal: {why}"));
        }
        if let Some(trouble) = &active.trouble {
            return Some(format!("store: {trouble}"));
        }
        let needs_workers = !durable.state.is_terminal() && active.stage == Stage::Working;
        if needs_workers && self.workers.alive() == 0 {
            return Some("workers".to_owned());
        }
        if needs_workers && active.held_back && active.running() == 0 {
            return Some("workers to register again after a take-over".to_owned());
        }
        None
    }

    /// Publishes the progress of jobs that have changed their state in this step.
    pub(super) fn publish_urgent(&mut self) {
        for job in std::mem::take(&mut self.urgent) {
            self.publish_progress(&job);
        }
    }

    /// Publishes what is new, not more often than people can read.
    pub(super) fn publish_news(&mut self) {
        let due = |active: &Active| active.news && self.now_ms.saturating_sub(active.published_ms) >= PROGRESS_MS;
        let jobs: Vec<JobId> =
            self.active.iter().filter(|(_, active)| due(active)).map(|(job, _)| job.clone()).collect();
        for job in jobs {
            self.publish_progress(&job);
        }
    }

    fn publish_progress(&mut self, job: &JobId) {
        let Some(status) = self.status(job) else { return };
        if let Some(active) = self.active.get_mut(job) {
            active.news = false;
            active.published_ms = self.now_ms;
        }
        self.out.push(Effect::Progress(Box::new(status)));
    }
}

/// Bytes done and bytes in all of the phase at hand. Sampling reads too little to count.
fn bytes(durable: &DurableJob, active: Option<&Active>) -> (u64, u64) {
    let Some(tasks) = active.and_then(|active| active.tasks.as_ref()) else { return (0, 0) };
    let (done, total) = match tasks.phase {
        Phase::Sample => return (0, 0),
        Phase::Sort => {
            let read = durable
                .runs
                .values()
                .fold(0_u64, |sum, run| run.intervals.iter().fold(sum, |sum, piece| sum.saturating_add(piece.len())));
            (read, durable.submitted.input_bytes)
        }
        Phase::Merge => {
            let dropped = durable.part_totals.dropped.bytes;
            let bodies = durable.run_totals.kept.bytes;
            let written = durable.part_totals.kept.bytes;
            // Terminators are in what workers report, not in sums: the runs' own length is the nearest total.
            let scale = durable.run_totals.bytes.max(bodies).saturating_sub(bodies);
            let share = if bodies == 0 {
                0
            } else {
                u64::try_from(u128::from(scale) * u128::from(written) / u128::from(bodies)).unwrap_or(0)
            };
            (written.saturating_add(dropped).saturating_add(share), durable.run_totals.bytes.max(bodies))
        }
    };
    (done.saturating_add(tasks.running_bytes).min(total), total)
}
