//! What a worker's word is worth. Workers report, only this leader commits: a report is checked
//! against the attempt, the plan and the sums, becomes a record, and is acknowledged once the
//! record stands.

use muster_kernel::format::Format;
use muster_kernel::proof::Sums;
use muster_kernel::splitters::{SAMPLE_KEY_MAX, Splitter};
use muster_platform::store::BlobUrl;
use muster_protocol::ids::{AttemptId, JobId, Phase};
use muster_protocol::plan::{BadRecords, Plan};
use muster_protocol::planted::{self, Bug};
use muster_protocol::wire::{
    BadRecord, BlobRef, MergedPart, Outcome, Report, ReportReply, SortedRun,
};
use muster_protocol::{Error, ErrorKind, names};

use crate::job::Machine;
use crate::job::flow::boundaries::samples_max;
use crate::job::flow::plan::check_intervals;
use crate::job::flow::table::Stage;
use crate::job::io::{Effect, Reply, ReplyTo};
use crate::job::law::Step;
use crate::job::ledger::Waiters;
use crate::job::tasks::attempts::TakenBack;
use crate::job::tasks::lineage::Damage;
use crate::job::tasks::table::{Recording, TaskState};
use crate::job::view::tally::Counted;
use crate::journal::record::{self, PartCommitted, RECORD_BYTES_MAX, Record, RunCommitted};

/// Most bytes of keys that the samples of one job take in memory.
const SAMPLES_BYTES_MAX: u64 = 256 << 20;
/// Longest upload id, in bytes.
const UPLOAD_BYTES_MAX: usize = 2048;
/// Most places of malformed records in one report.
const PLACES_MAX: u64 = 1000;
/// Longest reason of one, in bytes.
const REASON_BYTES_MAX: usize = 1024;
/// Most parts of one upload, as S3 has it.
const TAGS_MAX: usize = 10_000;

impl Machine {
    pub(crate) fn report(&mut self, to: ReplyTo, report: Report) {
        let epoch = self.epoch;
        let known = self
            .pool
            .workers()
            .get(&report.worker)
            .is_some_and(|known| known.info.incarnation == report.incarnation && !known.left);
        if report.epoch != epoch || !known {
            self.counters.foreign += 1;
            return self.answer(to, ReportReply::Reregister { epoch });
        }
        self.heard(&report.worker);
        if self.is_recorded(&report) {
            return self.answer(to, ReportReply::Recorded { epoch });
        }
        let (job, id) = (&report.job, &report.attempt);
        let now_ms = self.now_ms;
        let Some(active) = self.jobs.active_mut(job) else { return self.revoke(to) };
        if let Some(attempt) = active.tasks.attempt_mut(id) {
            // Heartbeats speak of what runs; one that is done and not yet acknowledged is heard of
            // here.
            attempt.seen_ms = now_ms;
        }
        if active.ending().is_some()
            || (active.plan.is_none() && active.tasks.attempt(id).is_some())
        {
            return self.answer(to, ReportReply::Later);
        }
        let Some(attempt) = active
            .tasks
            .attempt(id)
            .filter(|attempt| attempt.worker == report.worker && active.step() == Step::Working)
        else {
            return if planted::is(Bug::AcceptSecondCommit) {
                self.judge(to, report);
            } else {
                self.revoke(to);
            };
        };
        let recording = attempt.recording;
        match recording {
            Some(Recording::Journal(token)) => {
                if let Some(dropped) = self.wait_for_record(token, to) {
                    self.answer(dropped, ReportReply::Later);
                }
            }
            Some(Recording::Samples) => self.answer(to, ReportReply::Recorded { epoch }),
            // The other attempt of its task is about to win: only if that came to nothing this one
            // counts.
            None if self.is_overtaken(job, id) => self.answer(to, ReportReply::Later),
            None => self.judge(to, report),
        }
    }

    fn is_overtaken(&self, job: &JobId, id: &AttemptId) -> bool {
        let tasks = self.jobs.tasks(job, id.task.phase);
        tasks.and_then(|tasks| tasks.rival(id)).is_some_and(|rival| rival.recording.is_some())
    }

    fn answer(&mut self, to: ReplyTo, reply: ReportReply) {
        self.reply(to, Reply::Report(reply));
    }

    fn revoke(&mut self, to: ReplyTo) {
        self.counters.foreign += 1;
        self.answer(to, ReportReply::Revoked { epoch: self.epoch });
    }

    /// Whether the result of an attempt counts already.
    pub(crate) fn is_committed(&self, job: &JobId, attempt: &AttemptId) -> bool {
        let on_its_way =
            || self.jobs.attempt(job, attempt).is_some_and(|attempt| attempt.recording.is_some());
        self.stands_in_journal(job, attempt) || on_its_way()
    }

    fn stands_in_journal(&self, job: &JobId, attempt: &AttemptId) -> bool {
        let index = attempt.task.index;
        self.jobs.known(job).is_some_and(|durable| match attempt.task.phase {
            Phase::Sample => false,
            Phase::Sort => durable.runs.get(&index).is_some_and(|run| run.attempt == *attempt),
            Phase::Merge => durable.parts.get(&index).is_some_and(|part| part.attempt == *attempt),
        })
    }

    /// A repeat of what stands in the journal. Whatever is said of an attempt that is committed,
    /// nobody may remove what it made.
    fn is_recorded(&self, report: &Report) -> bool {
        let Report { job, attempt, outcome, .. } = report;
        let open = self.jobs.known(job).and_then(|durable| durable.upload(attempt));
        match outcome {
            Outcome::UploadOpened { upload } if open.is_some() => {
                open.is_some_and(|open| open.upload == *upload)
            }
            _ => self.stands_in_journal(job, attempt),
        }
    }

    /// A first report on an attempt under way.
    fn judge(&mut self, to: ReplyTo, report: Report) {
        let Report { job, attempt, outcome, .. } = &report;
        let Outcome::Failed { error } = outcome else {
            return (Stage::of(attempt.task.phase).judge)(self, to, report);
        };
        let why = match error.kind {
            ErrorKind::Fenced => TakenBack::HandedBack,
            _ => TakenBack::Failed(error.clone()),
        };
        self.note(to);
        self.take_back(job, attempt, &why);
    }

    /// What is said is taken in, and needs no record that it would have to wait for.
    fn note(&mut self, to: ReplyTo) {
        self.answer(to, ReportReply::Recorded { epoch: self.epoch });
    }

    pub(crate) fn judge_samples(&mut self, to: ReplyTo, report: Report) {
        let Report { worker, job, attempt, outcome, .. } = report;
        match outcome {
            Outcome::Sampled { samples } => match self.take_samples(&job, &attempt, samples) {
                Ok(()) => {
                    self.note(to);
                    self.advance(&job);
                }
                Err(why) => self.violated(to, &job, &attempt, &why),
            },
            Outcome::SampledToScratch { samples } => {
                self.fetch_samples(to, &job, &attempt, samples);
            }
            Outcome::InputUnreadable { object, error } => {
                self.note(to);
                self.input_unreadable(&job, &attempt, &worker, (object, error));
            }
            _ => self.out_of_place(to, &job, &attempt),
        }
    }

    pub(crate) fn judge_run(&mut self, to: ReplyTo, report: Report) {
        let Report { worker, job, attempt, outcome, .. } = report;
        match outcome {
            Outcome::InputUnreadable { object, error } => {
                self.note(to);
                self.input_unreadable(&job, &attempt, &worker, (object, error));
            }
            Outcome::Sorted(run) if self.holds_skipped(&job, &run) => {
                self.answer(to, ReportReply::Revoked { epoch: self.epoch });
                self.take_back(&job, &attempt, &TakenBack::HandedBack);
            }
            Outcome::Sorted(run) => match self.check_run(&job, &attempt, &run) {
                Ok(()) => {
                    self.tell_bad_records(&job, &run);
                    let run = RunCommitted::new(job.clone(), attempt, worker, *run);
                    self.record_result(to, &job, &attempt, Record::RunCommitted(Box::new(run)));
                }
                Err(why) => self.violated(to, &job, &attempt, &why),
            },
            _ => self.out_of_place(to, &job, &attempt),
        }
    }

    pub(crate) fn judge_part(&mut self, to: ReplyTo, report: Report) {
        let Report { worker, job, attempt, outcome, .. } = report;
        match outcome {
            Outcome::RunDamaged { split, run, cause, error } => {
                self.note(to);
                self.run_damaged(&job, &attempt, Damage { split, run, cause, error });
            }
            Outcome::UploadOpened { upload } => self.open_upload(to, &job, &attempt, upload),
            Outcome::Merged(part) => match self.check_part(&job, &attempt, &part) {
                Ok(()) => {
                    let part = PartCommitted::new(job.clone(), attempt, worker, part);
                    self.record_result(to, &job, &attempt, Record::PartCommitted(Box::new(part)));
                }
                Err(why) => self.violated(to, &job, &attempt, &why),
            },
            _ => self.out_of_place(to, &job, &attempt),
        }
    }

    fn out_of_place(&mut self, to: ReplyTo, job: &JobId, attempt: &AttemptId) {
        let why = format!("the report is not one of the {} phase", attempt.task.phase);
        self.violated(to, job, attempt, &why);
    }

    /// A report that cannot be true: the attempt is not believed, and another one is made.
    fn violated(&mut self, to: ReplyTo, job: &JobId, attempt: &AttemptId, why: &str) {
        self.counters.violations += 1;
        self.answer(to, ReportReply::Revoked { epoch: self.epoch });
        self.take_back(
            job,
            attempt,
            &TakenBack::Failed(Error::corrupt(format!("its report cannot be true: {why}"))),
        );
    }

    fn record_result(&mut self, to: ReplyTo, job: &JobId, id: &AttemptId, record: Record) {
        match record::size(&record) {
            Ok(..=RECORD_BYTES_MAX) => {}
            Ok(bytes) => {
                let why =
                    format!("it makes a record of {bytes} bytes, the limit is {RECORD_BYTES_MAX}");
                return self.violated(to, job, id, &why);
            }
            Err(error) => return self.violated(to, job, id, &error.message),
        }
        self.dismiss_rivals(job, id);
        let token = self.append(record, Waiters::one(to));
        self.result_is_here(job, id, Recording::Journal(token));
    }

    fn result_is_here(&mut self, job: &JobId, id: &AttemptId, how: Recording) {
        let tasks = self.jobs.tasks_mut(job, id.task.phase);
        tasks.into_iter().for_each(|tasks| tasks.result_is_here(id, how));
    }

    fn plan_of(&self, job: &JobId) -> Result<&Plan, String> {
        self.jobs
            .active(job)
            .and_then(|active| active.plan.as_deref())
            .ok_or_else(|| format!("the plan of job {job} is not here"))
    }

    /// P1 as far as one task goes.
    fn check_run(&self, job: &JobId, attempt: &AttemptId, run: &SortedRun) -> Result<(), String> {
        let plan = self.plan_of(job)?;
        let (split, out) = (attempt.task.index, run.kept.plus(&run.dropped).plus(&run.skipped));
        if out != run.input && !planted::is(Bug::DropSums) {
            return Err(format!(
                "P1 (conservation): it read {}, but kept, dropped and skipped {out}",
                run.input
            ));
        }
        self.check_bad_records(job, plan, attempt, run)?;
        let lost =
            self.jobs.active(job).and_then(|active| active.tasks.repair.as_ref()?.sums.get(&split));
        if let Some((input, kept)) =
            lost.filter(|lost| **lost != (run.input, run.kept.plus(&run.dropped)))
        {
            let found = run.kept.plus(&run.dropped);
            return Err(format!(
                "P1 (conservation): it read {} and kept and dropped {found}, but the lost run read \
                    {input} and kept and dropped {kept}",
                run.input
            ));
        }
        check_intervals(plan, split, &run.intervals)?;
        let consumed =
            run.intervals.iter().fold(0_u64, |sum, interval| sum.saturating_add(interval.len()));
        check_sums(&plan.sort.format, &run.input, &run.skipped, consumed)?;
        self.check_in_scratch(job, &run.url)?;
        let replica = self.jobs.active(job).and_then(|active| active.replica.as_ref());
        match (&run.replica, replica) {
            (Some(url), None) => Err(format!("a replica at {url}, where none was asked for")),
            (Some(url), Some(replica))
                if !url.parse().is_ok_and(|url: BlobUrl| replica.contains(&url)) =>
            {
                Err(format!("{url} is not below the job's second scratch"))
            }
            _ => Ok(()),
        }
    }

    /// What was left out must be what the request allows to be left out, and stand where it
    /// belongs.
    fn check_bad_records(
        &self,
        job: &JobId,
        plan: &Plan,
        attempt: &AttemptId,
        run: &SortedRun,
    ) -> Result<(), String> {
        let (skipped, kept_aside) = (run.skipped.records > 0, run.quarantine.is_some());
        if plan.bad_records == BadRecords::Fail && run.skipped != Sums::default() {
            return Err(format!(
                "it left out {} malformed records of a job that fails at the first",
                run.skipped.records
            ));
        }
        if kept_aside != (skipped && plan.bad_records == BadRecords::Quarantine) {
            return Err(format!(
                "it left out {} records, and kept them aside: {kept_aside}",
                run.skipped.records
            ));
        }
        let expected = self
            .jobs
            .active(job)
            .map(|active| active.scratch.join(&names::bad_records_path(attempt)).to_string());
        if let Some(lines) =
            run.quarantine.as_ref().filter(|lines| Some(&lines.url) != expected.as_ref())
        {
            return Err(format!("malformed records at {}", lines.url));
        }
        let reason = |bad: &BadRecord| bad.reason.len() > REASON_BYTES_MAX;
        if run.bad_records.len() as u64 > run.skipped.records.min(PLACES_MAX)
            || run.bad_records.iter().any(reason)
        {
            return Err(format!(
                "{} places of {} malformed records",
                run.bad_records.len(),
                run.skipped.records
            ));
        }
        Ok(())
    }

    fn check_in_scratch(&self, job: &JobId, url: &str) -> Result<(), String> {
        let parsed: BlobUrl = url.parse().map_err(|e| format!("{e}"))?;
        let inside = self.jobs.active(job).is_some_and(|active| active.scratch.contains(&parsed));
        if inside { Ok(()) } else { Err(format!("{url} is not below the job's scratch")) }
    }

    fn check_part(
        &self,
        job: &JobId,
        attempt: &AttemptId,
        part: &MergedPart,
    ) -> Result<(), String> {
        let durable = self.jobs.known(job).ok_or("the job is not known")?;
        if durable.upload(attempt).is_none_or(|open| open.upload != part.upload) {
            return Err("its upload is not the one that it reported as opened".to_owned());
        }
        if part.first_key > part.last_key {
            return Err("P2 (order): its last key comes before its first".to_owned());
        }
        if part.first_key.len() > SAMPLE_KEY_MAX
            || part.last_key.len() > SAMPLE_KEY_MAX
            || part.tags.len() > TAGS_MAX
        {
            return Err(format!(
                "keys are longer than {SAMPLE_KEY_MAX} bytes, or there are more than {TAGS_MAX} \
                    parts"
            ));
        }
        let stored = part.kept.bytes.wrapping_add(
            part.kept
                .records
                .wrapping_mul(self.plan_of(job)?.sort.format.frame().trailer_len() as u64),
        );
        if stored == part.bytes {
            Ok(())
        } else {
            Err(format!("{} make {stored} bytes, not {}", part.kept, part.bytes))
        }
    }

    fn open_upload(&mut self, to: ReplyTo, job: &JobId, id: &AttemptId, upload: String) {
        let journalled = self.jobs.known(job).is_some_and(|durable| durable.upload(id).is_some());
        let Some(attempt) = self.jobs.attempt_mut(job, id) else {
            return;
        };
        if journalled || attempt.upload.as_ref().is_some_and(|known| *known != upload) {
            return self.violated(to, job, id, "it opened a second upload");
        }
        if upload.is_empty() || upload.len() > UPLOAD_BYTES_MAX {
            return self.violated(to, job, id, &format!("an upload id of {} bytes", upload.len()));
        }
        if attempt.upload.is_some() {
            // Its record is on its way; the worker's next repeat finds it there.
            return self.answer(to, ReportReply::Later);
        }
        attempt.upload = Some(upload.clone());
        let record = Record::UploadOpened {
            job: job.clone(),
            partition: id.task.index,
            attempt: *id,
            upload,
        };
        self.append(record, Waiters::one(to));
    }

    fn fetch_samples(&mut self, to: ReplyTo, job: &JobId, id: &AttemptId, samples: BlobRef) {
        let expected = self
            .jobs
            .active(job)
            .map(|active| active.scratch.join(&names::samples_path(id)).to_string());
        if expected.as_deref() != Some(&samples.url) {
            return self.violated(to, job, id, &format!("samples at {}", samples.url));
        }
        self.result_is_here(job, id, Recording::Samples);
        self.answer(to, ReportReply::Recorded { epoch: self.epoch });
        self.out.push(Effect::LoadSamples { job: job.clone(), attempt: *id, samples });
    }

    pub(crate) fn samples_loaded(
        &mut self,
        job: &JobId,
        id: &AttemptId,
        result: muster_protocol::Result<Vec<Splitter>>,
    ) {
        let taken = match result {
            Ok(samples) => self.take_samples(job, id, samples).map_err(Error::corrupt),
            Err(error) => Err(error),
        };
        match taken {
            Ok(()) => self.advance(job),
            Err(error) => self.take_back(job, id, &TakenBack::Failed(error)),
        }
    }

    /// A split's samples are here: its sample task is done. They are not journalled; a new leader
    /// samples again, and gets the same.
    fn take_samples(
        &mut self,
        job: &JobId,
        id: &AttemptId,
        samples: Vec<Splitter>,
    ) -> Result<(), String> {
        let samples_max = samples_max(self.plan_of(job)?, id.generation);
        if samples.len() > samples_max
            || samples.iter().any(|sample| sample.key.len() > SAMPLE_KEY_MAX)
        {
            return Err(format!(
                "{} samples, at most {samples_max} of at most {SAMPLE_KEY_MAX} bytes are wanted",
                samples.len()
            ));
        }
        self.dismiss_rivals(job, id);
        let splits =
            u64::from(self.jobs.known(job).map_or(1, |durable| durable.submitted.splits)).max(1);
        let Some(active) = self.jobs.active_mut(job) else { return Ok(()) };
        let Some(done) = active.tasks.stage_mut().and_then(|tasks| tasks.stop(id, TaskState::Done))
        else {
            return Ok(());
        };
        active.told.recoveries.mended(id.task, self.now_ms);
        active.tasks.samples.extend(thin(samples, SAMPLES_BYTES_MAX / splits));
        active.moved(self.now_ms);
        self.succeed_with(job, &done);
        self.jobs.touch(job);
        Ok(())
    }

    pub(crate) fn acknowledge(&mut self, waiters: Waiters, reply: &ReportReply) {
        for to in waiters.into_vec() {
            self.reply(to, Reply::Report(reply.clone()));
        }
    }

    /// The attempt's result stands: its task is done, its worker has room.
    pub(crate) fn commit_task(&mut self, job: &JobId, attempt: &AttemptId) {
        let task = attempt.task;
        self.dismiss_rivals(job, attempt);
        let Some(active) = self.jobs.active_mut(job) else { return };
        let Some(tasks) = active.tasks.of_mut(task.phase) else { return };
        let Some(done) = tasks.stop(attempt, TaskState::Done) else { return };
        active.tasks.committed(attempt);
        active.told.recoveries.mended(task, self.now_ms);
        active.moved(self.now_ms);
        self.succeed_with(job, &done);
        self.view.count(Counted::TaskCommitted(task.phase));
        self.jobs.touch(job);
    }
}

/// As many of a split's samples as fit into its share of memory, evenly spread. It depends on the
/// split alone, so the boundaries stay the same whoever answers first.
fn thin(samples: Vec<Splitter>, bytes_max: u64) -> Vec<Splitter> {
    let bytes: u64 = samples.iter().map(|sample| sample.key.len() as u64).sum();
    let every = usize::try_from(bytes.div_ceil(bytes_max.max(1))).unwrap_or(usize::MAX).max(1);
    samples.into_iter().step_by(every).collect()
}

/// Records and bytes that were read must be those of the bytes that were consumed.
fn check_sums(format: &Format, input: &Sums, skipped: &Sums, consumed: u64) -> Result<(), String> {
    if format.rules().adds_up(input, skipped, consumed) {
        Ok(())
    } else {
        Err(format!("P1 (conservation): {input} do not make the {consumed} bytes that it consumed"))
    }
}
