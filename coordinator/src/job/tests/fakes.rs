//! Workers that answer at once, unless they are told to hold.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use muster_kernel::proof::{Interval, Sums};
use muster_kernel::splitters::Splitter;
use muster_protocol::ids::{AttemptId, Epoch, Incarnation, JobId, Phase, WorkerId};
use muster_protocol::plan::{PinnedRuns, Plan};
use muster_protocol::wire::{
    AttemptProgress, DamageCause, Health, Heartbeat, HeldAttempt, MergedPart, Outcome, Register,
    RegisterReply, Report, ReportReply, RunAttempt, RunReply, SortedRun, Work, WorkerState,
};
use muster_protocol::{Error, ErrorKind, Result, names};

use super::world::{RECORD_BYTES, World, worker};
use crate::job::io::{Input, ReplyTo};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unacknowledged {
    pub worker: WorkerId,
    pub job: JobId,
    pub attempt: AttemptId,
    pub outcome: Outcome,
}

#[derive(Debug)]
pub(super) struct FakeWorker {
    pub id: WorkerId,
    pub incarnation: u64,
    pub epoch: Epoch,
    /// Under which epoch it is registered.
    pub registered: Option<Epoch>,
    pub slots: u32,
    /// The folders that it offers as input.
    pub inputs: Vec<String>,
    pub sequence: u64,
    /// Of which phases it accepts orders and then does nothing.
    pub holds: BTreeSet<Phase>,
    /// What it answers to orders, next time.
    pub answers: Option<Result<RunReply>>,
    /// Neither hears nor says anything.
    pub dead: bool,
    pub held: BTreeMap<AttemptId, RunAttempt>,
    /// What it would fail with, next time.
    pub fails: Option<Error>,
    /// What it says of itself in heartbeats, and how far it says that its attempts are.
    pub health: Health,
    pub bytes_done: u64,
}

pub(super) fn skipped(run: &RunAttempt) -> Vec<u32> {
    match &run.work {
        Work::Sample { skip } | Work::Sort { skip, .. } => skip.clone(),
        Work::Merge { .. } => Vec::new(),
    }
}

/// What a split reads, without objects that are left out.
fn read(plan: &Plan, split: u32, skip: &[u32]) -> (Vec<Interval>, Sums) {
    let pieces = plan.splits[split as usize]
        .iter()
        .filter(|piece| skip.binary_search(&piece.object).is_err());
    let intervals: Vec<Interval> = pieces.copied().collect();
    let bytes = intervals.iter().map(Interval::len).sum();
    (intervals, Sums { records: bytes / RECORD_BYTES, bytes, hash: u64::from(split) + 1 })
}

impl World {
    pub(super) fn join(&mut self, id: &str, slots: u32) {
        self.join_with(id, slots, &[]);
    }

    /// A worker, or a new life of one, that offers folders as input.
    pub(super) fn join_with(&mut self, id: &str, slots: u32, inputs: &[&str]) {
        let fake = FakeWorker {
            id: worker(id),
            incarnation: 1 + self.workers.get(&worker(id)).map_or(0, |old| old.incarnation),
            epoch: Epoch(0),
            registered: None,
            slots,
            inputs: inputs.iter().map(ToString::to_string).collect(),
            sequence: 0,
            holds: BTreeSet::new(),
            answers: None,
            dead: false,
            held: BTreeMap::new(),
            fails: None,
            health: Health::default(),
            bytes_done: 1,
        };
        self.workers.insert(worker(id), fake);
        self.register(&worker(id));
        self.pump();
    }

    pub(super) fn register(&mut self, id: &WorkerId) {
        let to = self.ask();
        let Some(register) = self.registration(id) else { return };
        let asked = register.held.iter().map(|held| held.attempt).collect();
        self.registrations.insert(to, (id.clone(), asked));
        self.inbox.push_back(Input::Register { to, register: Box::new(register) });
    }

    /// What a worker says when it registers.
    pub(super) fn registration(&self, id: &WorkerId) -> Option<Register> {
        let fake = self.workers.get(id)?;
        let held = fake
            .held
            .values()
            .map(|run| HeldAttempt { job: run.job.clone(), attempt: run.attempt })
            .collect();
        Some(Register {
            worker: id.clone(),
            incarnation: Incarnation(fake.incarnation),
            program: "test".to_owned(),
            host: "host".to_owned(),
            slots: fake.slots,
            memory_bytes: 1 << 30,
            labels: Vec::new(),
            draining: false,
            held,
            wire: muster_protocol::wire::WIRE_VERSION,
            settings: Vec::new(),
            inputs: fake.inputs.clone(),
        })
    }

    pub(super) fn kill(&mut self, id: &str) {
        self.worker_mut(id).dead = true;
        self.reports.retain(|_, report| report.worker != worker(id));
        self.log.push(format!("-- {id} is killed"));
    }

    pub(super) fn wake(&mut self, id: &str) {
        self.worker_mut(id).dead = false;
        self.finish(id);
    }

    pub(super) fn hold(&mut self, id: &str, phases: &[Phase]) {
        self.worker_mut(id).holds = phases.iter().copied().collect();
    }

    pub(super) fn worker_mut(&mut self, id: &str) -> &mut FakeWorker {
        self.workers.get_mut(&worker(id)).expect("worker")
    }

    /// What a worker holds, as it was ordered.
    pub(super) fn held_run(&self, id: &str) -> RunAttempt {
        self.workers[&worker(id)].held.values().next().expect("held").clone()
    }

    /// A worker reports on everything that it holds.
    pub(super) fn finish(&mut self, id: &str) {
        let runs: Vec<RunAttempt> = self.workers[&worker(id)].held.values().cloned().collect();
        for run in runs {
            self.work_again(&worker(id), &run);
        }
        self.pump();
    }

    /// A worker's held merges report their uploads, and go no further.
    pub(super) fn open_uploads(&mut self, id: &str) {
        let runs: Vec<RunAttempt> = self.workers[&worker(id)].held.values().cloned().collect();
        for run in runs.iter().filter(|run| run.attempt.task.phase == Phase::Merge) {
            let outcome = self.result(run);
            let to = self.report(&worker(id), &run.job, run.attempt, outcome);
            self.stop_after.insert(to);
        }
        self.pump();
    }

    /// A worker's first held merge, whose upload is open, is done.
    pub(super) fn finish_one(&mut self, id: &str) {
        let run = self.held_run(id);
        self.work_again(&worker(id), &run);
        self.pump();
    }

    pub(super) fn leave(&mut self, id: &str) {
        self.beat(&worker(id), WorkerState::Leaving);
        self.workers.remove(&worker(id));
        self.pump();
    }

    pub(super) fn held(&self, id: &str) -> Vec<AttemptId> {
        self.workers[&worker(id)].held.keys().copied().collect()
    }

    pub(super) fn forget_held(&mut self, id: &str) {
        self.worker_mut(id).held.clear();
    }

    pub(super) fn beat(&mut self, id: &WorkerId, state: WorkerState) {
        let Some(fake) =
            self.workers.get_mut(id).filter(|fake| !fake.dead && fake.registered.is_some())
        else {
            return;
        };
        fake.sequence += 1;
        let progress = |run: &RunAttempt| AttemptProgress {
            job: run.job.clone(),
            attempt: run.attempt,
            bytes_done: fake.bytes_done,
            bytes_total: 2 * RECORD_BYTES * 100,
        };
        self.inbox.push_back(Input::Heartbeat(Box::new(Heartbeat {
            worker: id.clone(),
            incarnation: Incarnation(fake.incarnation),
            epoch: fake.epoch,
            sequence: fake.sequence,
            state,
            attempts: fake.held.values().map(progress).collect(),
            health: fake.health.clone(),
        })));
    }

    /// A worker's report, as it is sent for the first time or again.
    pub(super) fn report(
        &mut self,
        id: &WorkerId,
        job: &JobId,
        attempt: AttemptId,
        mut outcome: Outcome,
    ) -> ReplyTo {
        (self.lies)(&mut outcome);
        let to = self.ask();
        let Some(fake) = self.workers.get(id) else { return to };
        let report = Report {
            epoch: fake.epoch,
            worker: id.clone(),
            incarnation: Incarnation(fake.incarnation),
            job: job.clone(),
            attempt,
            outcome: outcome.clone(),
        };
        self.reports
            .insert(to, Unacknowledged { worker: id.clone(), job: job.clone(), attempt, outcome });
        self.inbox.push_back(Input::Report { to, report: Box::new(report) });
        to
    }

    /// Does an attempt's work up to its next report.
    pub(super) fn work(&mut self, id: &WorkerId, run: &RunAttempt) {
        let fails = self.workers.get_mut(id).and_then(|fake| fake.fails.take());
        let outcome = match fails {
            Some(error) => Outcome::Failed { error },
            None if !self.objects.contains_key(&run.plan.url) => {
                Outcome::Failed { error: Error::corrupt("the plan is gone") }
            }
            None => self.result(run),
        };
        self.report(id, &run.job, run.attempt, outcome);
    }

    fn plan(&mut self, run: &RunAttempt) -> Arc<Plan> {
        let read = || Arc::new(Plan::from_bytes(&self.objects[&run.plan.url]).expect("plan"));
        self.plans.entry(run.plan.url.clone()).or_insert_with(read).clone()
    }

    pub(super) fn result(&mut self, run: &RunAttempt) -> Outcome {
        let plan = self.plan(run);
        let index = run.attempt.task.index;
        if let Some(trouble) = self.unreadable(run, &plan).or_else(|| self.damaged(run)) {
            return trouble;
        }
        match run.attempt.task.phase {
            Phase::Sample => {
                let samples = (0..plan.samples_per_split.min(5))
                    .map(|n| Splitter { key: vec![n as u8], position: u64::from(index) });
                Outcome::Sampled { samples: samples.collect() }
            }
            Phase::Sort => {
                let (intervals, input) = read(&plan, index, &skipped(run));
                let url = format!("{}/{}", plan.scratch, names::run_path(&run.attempt));
                self.objects.insert(url.clone(), Vec::new());
                Outcome::Sorted(Box::new(SortedRun {
                    url,
                    replica: None,
                    bytes: input.bytes,
                    index_digest: 1,
                    input,
                    kept: input,
                    dropped: Sums::default(),
                    skipped: Sums::default(),
                    quarantine: None,
                    bad_records: Vec::new(),
                    partition_bytes: Vec::new(),
                    intervals,
                    spills: 0,
                }))
            }
            Phase::Merge => {
                let upload = format!("u{}", self.alias(run.attempt));
                let url = format!("{}/{}", plan.output, names::part_name(index, &plan.extension));
                // Opened once; and one that is opened after the job's end by a worker that then
                // dies is nobody's to find.
                let ended = self.machine.durable().jobs.get(&run.job).is_none_or(|job| job.cleaned);
                if self.opened.insert(run.attempt) && !ended {
                    self.uploads.insert((url, upload.clone()));
                }
                Outcome::UploadOpened { upload }
            }
        }
    }

    /// An object of the split that cannot be read.
    fn unreadable(&self, run: &RunAttempt, plan: &Plan) -> Option<Outcome> {
        let skip = skipped(run);
        let pieces = plan
            .splits
            .get(run.attempt.task.index as usize)
            .filter(|_| run.attempt.task.phase != Phase::Merge)?;
        let object = pieces
            .iter()
            .map(|piece| piece.object)
            .find(|at| !skip.contains(at) && self.broken.contains_key(at))?;
        Some(Outcome::InputUnreadable { object, error: self.broken[&object].clone() })
    }

    /// A run of a merge's list that is not there.
    fn damaged(&self, run: &RunAttempt) -> Option<Outcome> {
        let Work::Merge { runs, .. } = &run.work else { return None };
        if self.lost.is_empty() {
            return None;
        }
        let list = PinnedRuns::from_bytes(self.objects.get(&runs.url)?).expect("list of runs");
        let (split, lost) =
            (0..).zip(&list.runs).find(|(_, run)| !self.objects.contains_key(&run.url))?;
        let error = Error::new(ErrorKind::NotFound, "no such object");
        Some(Outcome::RunDamaged { split, run: lost.attempt, cause: DamageCause::Store, error })
    }

    /// The part of a partition: the first gets the hash of everything, so that all of them sum to
    /// the input.
    pub(super) fn part(&mut self, run: &RunAttempt, upload: String) -> Outcome {
        if let Some(trouble) = self.damaged(run) {
            return trouble;
        }
        let plan = self.plan(run);
        let index = run.attempt.task.index;
        let durable = &self.machine.durable().jobs[&run.job];
        let partitions = u64::from(durable.partitions());
        let left_out: Vec<u32> = durable.skipped_objects.keys().copied().collect();
        let splits = durable.submitted.splits;
        let whole = || {
            (0..splits)
                .fold(Sums::default(), |sum, split| sum.plus(&read(&plan, split, &left_out).1))
        };
        let total = *self.sums.entry((run.job.clone(), left_out.len())).or_insert_with(whole);
        let share = total.records / partitions;
        let first = total.records - share * (partitions - 1);
        let records = if index == 0 { first } else { share };
        let kept = Sums {
            records,
            bytes: records * RECORD_BYTES,
            hash: if index == 0 { total.hash } else { 0 },
        };
        Outcome::Merged(MergedPart {
            upload,
            tags: vec!["t".to_owned()],
            bytes: kept.bytes,
            checksum: 1,
            kept,
            dropped: Sums::default(),
            first_key: index.to_be_bytes().to_vec(),
            last_key: index.to_be_bytes().to_vec(),
        })
    }

    pub(super) fn on_report_reply(&mut self, to: ReplyTo, reply: &ReportReply) {
        let Some(report) = self.reports.remove(&to) else { return };
        let Some(fake) = self.workers.get_mut(&report.worker).filter(|fake| !fake.dead) else {
            return;
        };
        match reply {
            ReportReply::Recorded { .. } if self.stop_after.remove(&to) => {}
            ReportReply::Recorded { .. } => {
                match (&report.outcome, fake.held.get(&report.attempt).cloned()) {
                    (Outcome::UploadOpened { upload }, Some(run)) => {
                        let merged = self.part(&run, upload.clone());
                        self.report(&report.worker, &report.job, report.attempt, merged);
                    }
                    _ => drop(fake.held.remove(&report.attempt)),
                }
            }
            ReportReply::Revoked { .. } => self.abandon(&report.worker, &report.attempt),
            // Said again when time has passed.
            ReportReply::Later => {}
            ReportReply::Reregister { .. } => {
                fake.registered = None;
                self.register(&report.worker);
            }
        }
    }

    pub(super) fn on_registered(&mut self, to: ReplyTo, reply: &RegisterReply) {
        let Some((id, asked)) = self.registrations.remove(&to) else { return };
        let Some(fake) = self.workers.get_mut(&id) else { return };
        if let RegisterReply::Accepted { epoch, regranted, .. } = reply {
            fake.epoch = *epoch;
            fake.registered = Some(*epoch);
            // Only what the leader was asked about: it may have granted more since.
            let dropped: Vec<AttemptId> =
                asked.into_iter().filter(|attempt| !regranted.contains(attempt)).collect();
            dropped.iter().for_each(|attempt| self.abandon(&id, attempt));
            let Some(fake) = self.workers.get_mut(&id) else { return };
            let runs: Vec<RunAttempt> = fake.held.values().cloned().collect();
            let holds = fake.holds.clone();
            runs.iter()
                .filter(|run| !holds.contains(&run.attempt.task.phase))
                .for_each(|run| self.work_again(&id, run));
        }
    }

    /// Reports again on everything that is done and has not been acknowledged.
    pub(super) fn report_again(&mut self, id: &WorkerId) {
        let Some(fake) =
            self.workers.get(id).filter(|fake| !fake.dead && fake.registered.is_some())
        else {
            return;
        };
        let reported: BTreeSet<AttemptId> =
            self.reports.values().map(|report| report.attempt).collect();
        let open = |run: &&RunAttempt| {
            !fake.holds.contains(&run.attempt.task.phase) && !reported.contains(&run.attempt)
        };
        let runs: Vec<RunAttempt> = fake.held.values().filter(open).cloned().collect();
        runs.iter().for_each(|run| self.work_again(id, run));
    }

    /// A worker removes what an attempt made that does not count, as it was told.
    pub(super) fn abandon(&mut self, id: &WorkerId, attempt: &AttemptId) {
        let Some(run) = self.workers.get_mut(id).and_then(|fake| fake.held.remove(attempt)) else {
            return;
        };
        let name = names::run_path(&run.attempt);
        self.objects.retain(|url, _| !url.ends_with(&name));
        let upload = format!("u{}", self.alias(*attempt));
        self.uploads.retain(|(_, open)| *open != upload);
    }

    /// A re-granted attempt goes on: a merge with a journalled upload reports on its part.
    fn work_again(&mut self, id: &WorkerId, run: &RunAttempt) {
        let open =
            self.machine.durable().jobs.get(&run.job).and_then(|job| job.upload(&run.attempt));
        match open.map(|upload| upload.upload.clone()) {
            _ if self.committed_part(run).is_some() => {
                let upload = self.committed_part(run).unwrap_or_default();
                let merged = self.part(run, upload);
                self.report(id, &run.job, run.attempt, merged);
            }
            Some(upload) if run.attempt.task.phase == Phase::Merge => {
                let merged = self.part(run, upload);
                self.report(id, &run.job, run.attempt, merged);
            }
            _ => self.work(id, run),
        }
    }

    fn committed_part(&self, run: &RunAttempt) -> Option<String> {
        let part = self.machine.durable().jobs.get(&run.job)?.parts.get(&run.attempt.task.index)?;
        (part.attempt == run.attempt).then(|| part.upload.clone())
    }
}
