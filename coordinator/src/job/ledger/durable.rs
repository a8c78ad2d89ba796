//! What the journal says, folded: the only state that decides what is committed.
//!
//! [`Durable::apply`] is the one way in. The leader calls it when an append is acknowledged, a new
//! leader when it reads the journal; so both hold the same state (a test folds the journal of every
//! scripted conversation and compares). A record that contradicts the state is refused and changes
//! nothing.

use std::collections::{BTreeMap, VecDeque};

use muster_kernel::proof::Sums;
use muster_protocol::ErrorKind;
use muster_protocol::api::{JobState, PhaseTimes};
use muster_protocol::ids::{
    AttemptId, DeploymentId, Epoch, Generation, JobId, Phase, TaskId, WorkerId,
};
use muster_protocol::wire::{BadRecord, BlobRef};

use crate::job::law;
use crate::journal::record::{
    AttemptFailed, GenerationBegan, JobArchived, JobEnded, JobOutcome, JobSubmitted, PLACES_KEPT,
    PartCommitted, Record, RunCommitted, Totals,
};

/// Most revoked uploads of one partition that are kept, the last ones.
pub const REVOKED_KEPT: usize = 8;

/// Longest text of one, in bytes; what is made here is a line of 300 characters.
const TEXT_BYTES_MAX: usize = 4096;

/// Most workers whose work is counted.
pub const WORKERS_KEPT: usize = 20_000;

/// The folded journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Durable {
    /// Which deployment; none before the journal's first record.
    pub deployment: Option<DeploymentId>,
    /// The newest term.
    pub epoch: Epoch,
    /// What its leader drew when it began.
    pub nonce: u64,
    /// Every job that is not forgotten.
    pub jobs: BTreeMap<JobId, DurableJob>,
    /// How many sort and merge tasks each worker has had committed, of jobs that are forgotten,
    /// too. For people; of very many workers, those with the most.
    pub done: BTreeMap<WorkerId, u64>,
}

/// One job, as the journal knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DurableJob {
    /// How it began.
    pub submitted: JobSubmitted,
    /// Where it stands.
    pub state: JobState,
    /// The partitions, once they are fixed.
    pub boundaries: Option<Boundaries>,
    /// Generations of sort tasks that were given out anew after their commit, by split.
    pub generations: BTreeMap<u32, Generation>,
    /// Input objects that are left out, and why.
    pub skipped_objects: BTreeMap<u32, String>,
    /// How many attempts of a task ended without a result; those of a former generation do not
    /// count.
    pub tries: BTreeMap<TaskId, u32>,
    /// What became of them, in the order of their ends: of the job's last
    /// [`FAILURES_KEPT`].
    pub failures: VecDeque<Failure>,
    /// How many attempts ended without a result.
    pub retries: u32,
    /// How many committed tasks were given out anew.
    pub repeated: u32,
    /// Committed sort tasks by split; the malformed records that they name are in `bad_records`.
    pub runs: BTreeMap<u32, RunCommitted>,
    /// The first malformed records that committed runs have left out, by split: as many as a job
    /// names, and the rest of the last split's.
    pub bad_records: BTreeMap<u32, Vec<BadRecord>>,
    /// The list of pinned runs, once the barrier is passed.
    pub runs_pinned: Option<BlobRef>,
    /// Whether runs were lost, or made anew, since that list was written.
    pub runs_stale: bool,
    /// Open uploads of merges that are not committed, by partition and attempt: a task may have two
    /// attempts.
    pub uploads: BTreeMap<(u32, AttemptId), Upload>,
    /// Uploads that were revoked, in the order of their revocation: of each partition the last
    /// [`REVOKED_KEPT`]. Those before were aborted: a merge is not given out again while an upload
    /// of it is in doubt.
    pub revoked: Vec<Upload>,
    /// Committed merge tasks by partition.
    pub parts: BTreeMap<u32, PartCommitted>,
    /// Whether the commit is decided.
    pub commit_decided: bool,
    /// Where the bytes of `_SUCCESS` are, once it is and until the job is cleaned.
    pub manifest: Option<BlobRef>,
    /// How it ended.
    pub ended: Option<JobEnded>,
    /// Whether its scratch and unfinished uploads are gone.
    pub cleaned: bool,
    /// How long the phases took.
    pub times: PhaseTimes,
    /// Totals over `runs`.
    pub run_totals: Totals,
    /// Totals over `parts`.
    pub part_totals: Totals,
}

/// The partitions of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boundaries {
    /// Where the splitters are; none where there is one partition.
    pub splitters: Option<BlobRef>,
    /// Number of partitions.
    pub partitions: u32,
}

/// A merge attempt's upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upload {
    /// Which partition.
    pub partition: u32,
    /// Whose.
    pub attempt: AttemptId,
    /// The store's id of it.
    pub upload: String,
}

/// The state in which a job ends.
pub fn end_state(outcome: JobOutcome) -> JobState {
    match outcome {
        JobOutcome::Succeeded => JobState::Succeeded,
        JobOutcome::Failed => JobState::Failed,
        JobOutcome::Cancelled => JobState::Cancelled,
    }
}

impl Default for Durable {
    /// An empty journal: epoch 0 is nobody's.
    fn default() -> Self {
        Self {
            deployment: None,
            epoch: Epoch(0),
            nonce: 0,
            jobs: BTreeMap::new(),
            done: BTreeMap::new(),
        }
    }
}

impl Durable {
    /// Folds one record.
    ///
    /// # Errors
    /// Says what contradicts the state; nothing has changed then.
    pub fn apply(&mut self, record: &Record) -> Result<(), String> {
        match record {
            Record::DeploymentCreated { deployment } => match &self.deployment {
                Some(known) => {
                    Err(format!("deployment {deployment} begins in the journal of {known}"))
                }
                None => {
                    self.deployment = Some(deployment.clone());
                    Ok(())
                }
            },
            Record::EpochBegan { epoch, nonce } => self.begin_epoch(*epoch, *nonce),
            Record::JobSubmitted(submitted) => self.submit(submitted),
            Record::JobArchived(archived) => {
                let job = &archived.submitted.job;
                if self.jobs.contains_key(job) {
                    return Err(format!("job {job} is restored while it is known"));
                }
                self.jobs.insert(job.clone(), DurableJob::restore(archived));
                Ok(())
            }
            Record::JobForgotten { job } => {
                let known = self.job(job)?;
                if !known.cleaned {
                    return Err(format!("job {job} is forgotten before it is cleaned"));
                }
                self.jobs.remove(job);
                Ok(())
            }
            Record::StillLeads => Ok(()),
            Record::Snapshot { id, .. } => {
                Err(format!("snapshot {id} stands where a plain record belongs"))
            }
            Record::BoundariesChosen { job, .. }
            | Record::RunsPinned { job, .. }
            | Record::UploadOpened { job, .. }
            | Record::UploadRevoked { job, .. }
            | Record::CommitDecided { job, .. }
            | Record::JobCleaned { job } => self.job(job)?.apply(record),
            Record::AttemptFailed(failed) => self.job(&failed.job)?.apply(record),
            Record::GenerationBegan(began) => self.job(&began.job)?.apply(record),
            Record::ObjectSkipped { job, .. } => self.job(job)?.apply(record),
            Record::JobHistory(history) => self.job(&history.job)?.apply(record),
            Record::RunCommitted(run) => {
                self.job(&run.job)?.apply(record)?;
                self.count_done(&run.worker);
                Ok(())
            }
            Record::PartCommitted(part) => {
                self.job(&part.job)?.apply(record)?;
                self.count_done(&part.worker);
                Ok(())
            }
            Record::WorkersDone { anew, done } => {
                if *anew {
                    self.done.clear();
                }
                self.done.extend(done.iter().cloned());
                Ok(())
            }
            Record::JobEnded(ended) => self.job(&ended.job)?.apply(record),
        }
    }

    fn count_done(&mut self, worker: &WorkerId) {
        if !self.done.contains_key(worker)
            && self.done.len() >= WORKERS_KEPT
            && let Some(least) =
                self.done.iter().min_by_key(|(_, count)| **count).map(|(least, _)| least.clone())
        {
            self.done.remove(&least);
        }
        let count = self.done.entry(worker.clone()).or_default();
        *count = count.saturating_add(1);
    }

    fn job(&mut self, job: &JobId) -> Result<&mut DurableJob, String> {
        self.jobs.get_mut(job).ok_or_else(|| format!("job {job} is not known"))
    }

    fn begin_epoch(&mut self, epoch: Epoch, nonce: u64) -> Result<(), String> {
        if epoch <= self.epoch {
            return Err(format!("epoch {epoch} begins after epoch {}", self.epoch));
        }
        self.epoch = epoch;
        self.nonce = nonce;
        Ok(())
    }

    fn submit(&mut self, submitted: &JobSubmitted) -> Result<(), String> {
        if self.jobs.contains_key(&submitted.job) {
            return Err(format!("job {} is submitted a second time", submitted.job));
        }
        self.jobs.insert(submitted.job.clone(), DurableJob::new(submitted.clone()));
        Ok(())
    }
}

impl DurableJob {
    fn new(submitted: JobSubmitted) -> Self {
        let needs_samples = submitted.partitions > 1 && submitted.splits > 0;
        Self {
            state: if needs_samples { JobState::Sampling } else { JobState::Submitted },
            boundaries: None,
            generations: BTreeMap::new(),
            skipped_objects: BTreeMap::new(),
            tries: BTreeMap::new(),
            failures: VecDeque::new(),
            retries: 0,
            repeated: 0,
            runs: BTreeMap::new(),
            bad_records: BTreeMap::new(),
            runs_pinned: None,
            runs_stale: false,
            uploads: BTreeMap::new(),
            revoked: Vec::new(),
            parts: BTreeMap::new(),
            commit_decided: false,
            manifest: None,
            ended: None,
            cleaned: false,
            times: PhaseTimes { plan_ms: submitted.took_ms, ..PhaseTimes::default() },
            run_totals: Totals::default(),
            part_totals: Totals::default(),
            submitted,
        }
    }

    /// Number of partitions: fixed by the boundaries, aimed at before.
    pub fn partitions(&self) -> u32 {
        self.boundaries
            .as_ref()
            .map_or(self.submitted.partitions, |boundaries| boundaries.partitions)
    }

    /// What `-u` dropped, in sorting and in merging.
    pub fn dropped(&self) -> Sums {
        self.run_totals.dropped.plus(&self.part_totals.dropped)
    }

    /// Where the splitters are; none where there is one partition.
    pub fn splitters(&self) -> Option<BlobRef> {
        self.boundaries.as_ref()?.splitters.clone()
    }

    /// The open upload of an attempt.
    pub fn upload(&self, attempt: &AttemptId) -> Option<&Upload> {
        self.uploads
            .get(&(attempt.task.index, *attempt))
            .filter(|_| attempt.task.phase == Phase::Merge)
    }

    /// The open uploads of a partition.
    pub fn uploads_of(&self, partition: u32) -> impl Iterator<Item = &Upload> {
        let least = |partition: u32| {
            let task = TaskId { phase: Phase::Sample, index: 0 };
            (partition, AttemptId { task, generation: Generation(0), epoch: Epoch(0), nonce: 0 })
        };
        self.uploads
            .range(least(partition)..least(partition.saturating_add(1)))
            .map(|(_, upload)| upload)
    }

    /// The revoked uploads of a partition that are kept, the oldest first.
    pub fn revoked_of(&self, partition: u32) -> impl Iterator<Item = &Upload> {
        self.revoked.iter().filter(move |upload| upload.partition == partition)
    }

    /// Whether an attempt's upload was revoked, or may have been: where as many are kept as may be,
    /// there may have been others before.
    pub fn may_be_revoked(&self, attempt: &AttemptId) -> bool {
        let mut revoked = self.revoked_of(attempt.task.index);
        attempt.task.phase == Phase::Merge
            && (self.revoked_of(attempt.task.index).count() >= REVOKED_KEPT
                || revoked.any(|upload| upload.attempt == *attempt))
    }

    fn apply(&mut self, record: &Record) -> Result<(), String> {
        match record {
            Record::BoundariesChosen { splitters, partitions, took_ms, .. } => {
                self.step(JobState::Sorting)?;
                self.boundaries =
                    Some(Boundaries { splitters: splitters.clone(), partitions: *partitions });
                self.times.sample_ms = *took_ms;
                Ok(())
            }
            Record::AttemptFailed(failed) => self.note_failure(failed),
            Record::GenerationBegan(began) => self.begin_generation(began),
            Record::ObjectSkipped { object, why, .. } => self.skip_object(*object, why),
            Record::JobHistory(history) => self.restore_history(history),
            Record::RunCommitted(run) => self.commit_run(run),
            Record::RunsPinned { runs, took_ms, .. } => {
                if self.state != JobState::Merging {
                    self.step(JobState::Merging)?;
                    self.times.sort_ms = *took_ms;
                }
                self.runs_pinned = Some(runs.clone());
                // A snapshot that is taken amid a repair names the list before the runs.
                self.runs_stale = self.runs.len() < self.submitted.splits as usize;
                Ok(())
            }
            Record::UploadOpened { partition, attempt, upload, .. } => self.open_upload(Upload {
                partition: *partition,
                attempt: *attempt,
                upload: upload.clone(),
            }),
            Record::UploadRevoked { partition, attempt, .. } => {
                self.revoke_upload(*partition, attempt)
            }
            Record::PartCommitted(part) => self.commit_part(part),
            Record::CommitDecided { took_ms, manifest, .. } => {
                self.step(JobState::Committing)?;
                self.commit_decided = true;
                self.manifest = Some(manifest.clone());
                self.times.merge_ms = *took_ms;
                Ok(())
            }
            Record::JobEnded(ended) => {
                self.step(end_state(ended.outcome))?;
                self.times.commit_ms = ended.took_ms;
                // Records of failures may have stood between the decision and this one.
                let (retries, repeated) = (self.retries, self.repeated);
                self.ended = Some(JobEnded { retries, repeated, ..JobEnded::clone(ended) });
                Ok(())
            }
            Record::JobCleaned { job } => {
                if !self.state.is_terminal() {
                    return Err(format!("job {job} is cleaned while it is {}", self.state));
                }
                self.archive();
                Ok(())
            }
            other => Err(format!("a {} record is not about a job that runs", other.kind())),
        }
    }

    fn step(&mut self, to: JobState) -> Result<(), String> {
        if !law::allowed(self.state, to) {
            return Err(format!(
                "job {} cannot go from {} to {to}",
                self.submitted.job, self.state
            ));
        }
        self.state = to;
        Ok(())
    }

    /// Task by task nothing is asked of a job that is cleaned; a hundred ended jobs must not weigh
    /// as much as a hundred running ones.
    fn archive(&mut self) {
        self.cleaned = true;
        self.generations.clear();
        self.tries.clear();
        self.failures.clear();
        self.skipped_objects.clear();
        self.runs.clear();
        self.bad_records.clear();
        self.manifest = None;
        self.uploads.clear();
        self.revoked.clear();
        self.parts.clear();
        self.boundaries = Some(Boundaries { splitters: None, partitions: self.partitions() });
        self.runs_pinned = None;
        self.runs_stale = false;
    }

    /// Restores a cleaned job from its summary.
    fn restore(archived: &JobArchived) -> Self {
        let mut job = Self::new(archived.submitted.clone());
        job.boundaries = Some(Boundaries { splitters: None, partitions: archived.partitions });
        job.state = end_state(archived.ended.outcome);
        job.commit_decided = archived.commit_decided;
        job.retries = archived.ended.retries;
        job.repeated = archived.ended.repeated;
        job.ended = Some(archived.ended.clone());
        job.times = archived.times.into();
        job.run_totals = archived.run_totals;
        job.part_totals = archived.part_totals;
        job.cleaned = true;
        job
    }

    fn expect_state(&self, state: JobState, what: &str) -> Result<(), String> {
        if self.state == state {
            Ok(())
        } else {
            Err(format!("job {}: {what} while it is {}", self.submitted.job, self.state))
        }
    }

    fn commit_run(&mut self, run: &RunCommitted) -> Result<(), String> {
        if self.state != JobState::Merging {
            self.expect_state(JobState::Sorting, "a run is committed")?;
        }
        let (job, split) = (&run.job, run.split);
        if split >= self.submitted.splits || self.runs.contains_key(&split) {
            return Err(format!("job {job}: split {split} is committed twice or does not exist"));
        }
        let expected = self.generation(split);
        if run.attempt.generation != expected {
            let found = run.attempt.generation;
            return Err(format!(
                "job {job}: split {split} is committed in generation {found}, not {expected}"
            ));
        }
        let totals = &mut self.run_totals;
        totals.input.merge(&run.input);
        totals.kept.merge(&run.kept);
        totals.dropped.merge(&run.dropped);
        totals.skipped.merge(&run.skipped);
        totals.bytes = totals.bytes.saturating_add(run.bytes);
        self.runs.insert(split, RunCommitted { bad_records: Vec::new(), ..run.clone() });
        self.note_bad_records(split, &run.bad_records);
        self.runs_stale = self.state == JobState::Merging;
        Ok(())
    }

    /// Splits follow one another in the input, so what comes after as many as a job names is not
    /// asked for again: a run that is lost, and its places with it, is made anew of the same bytes.
    fn note_bad_records(&mut self, split: u32, places: &[BadRecord]) {
        if places.is_empty() {
            return;
        }
        self.bad_records.insert(split, places.to_vec());
        let mut before = 0;
        self.bad_records.retain(|_, places| {
            let kept = before < PLACES_KEPT;
            before += places.len();
            kept
        });
    }

    /// The committed runs as their records say it.
    pub fn run_records(&self) -> impl Iterator<Item = RunCommitted> {
        self.runs.iter().map(|(split, run)| RunCommitted {
            bad_records: self.bad_records.get(split).cloned().unwrap_or_default(),
            ..run.clone()
        })
    }

    /// The generation in which a sort task is to be done: 0 unless its committed run was lost.
    pub fn generation(&self, split: u32) -> Generation {
        self.generations.get(&split).copied().unwrap_or(Generation(0))
    }

    /// The committed run of a split is lost.
    fn begin_generation(&mut self, began: &GenerationBegan) -> Result<(), String> {
        if !matches!(self.state, JobState::Sorting | JobState::Merging) {
            return Err(format!("job {}: a run is lost while it is {}", began.job, self.state));
        }
        let split = began.split;
        let committed = self.runs.get(&split).is_some_and(|run| run.attempt == began.lost);
        if !committed || began.generation <= self.generation(split) {
            return Err(format!(
                "job {}: {} is not the run of split {split}",
                began.job, began.lost
            ));
        }
        let Some(lost) = self.runs.remove(&split) else { return Ok(()) };
        self.bad_records.remove(&split);
        let totals = &mut self.run_totals;
        totals.input = totals.input.minus(&lost.input);
        totals.kept = totals.kept.minus(&lost.kept);
        totals.dropped = totals.dropped.minus(&lost.dropped);
        totals.skipped = totals.skipped.minus(&lost.skipped);
        totals.bytes = totals.bytes.saturating_sub(lost.bytes);
        self.generations.insert(split, began.generation);
        self.runs_stale = self.state == JobState::Merging;
        self.repeated = self.repeated.saturating_add(1);
        // What failed in a former generation says nothing about this one.
        let task = TaskId { phase: Phase::Sort, index: split };
        if self.tries.remove(&task).is_some() {
            self.failures.retain(|failure| failure.attempt.task != task);
        }
        Ok(())
    }

    fn open_upload(&mut self, upload: Upload) -> Result<(), String> {
        self.expect_state(JobState::Merging, "an upload is opened")?;
        let (partition, key) = (upload.partition, (upload.partition, upload.attempt));
        if partition >= self.partitions()
            || self.parts.contains_key(&partition)
            || self.uploads.contains_key(&key)
        {
            let (job, attempt) = (&self.submitted.job, upload.attempt);
            return Err(format!(
                "job {job}: {attempt} has an upload, or partition {partition} is committed"
            ));
        }
        self.uploads.insert(key, upload);
        Ok(())
    }

    fn revoke_upload(&mut self, partition: u32, attempt: &AttemptId) -> Result<(), String> {
        match self.uploads.remove(&(partition, *attempt)) {
            Some(upload) => {
                self.revoked.push(upload);
                if self.revoked_of(partition).count() > REVOKED_KEPT
                    && let Some(oldest) =
                        self.revoked.iter().position(|upload| upload.partition == partition)
                {
                    self.revoked.remove(oldest);
                }
                Ok(())
            }
            None => Err(format!("{attempt} has no open upload for partition {partition}")),
        }
    }

    fn commit_part(&mut self, part: &PartCommitted) -> Result<(), String> {
        self.expect_state(JobState::Merging, "a part is committed")?;
        let key = (part.partition, part.attempt);
        if self.uploads.get(&key).is_none_or(|open| open.upload != part.upload) {
            return Err(format!(
                "job {}: part {} is committed without its upload",
                part.job, part.partition
            ));
        }
        let totals = &mut self.part_totals;
        totals.kept.merge(&part.kept);
        totals.dropped.merge(&part.dropped);
        totals.bytes = totals.bytes.saturating_add(part.bytes);
        self.uploads.remove(&key);
        self.parts.insert(part.partition, part.clone());
        Ok(())
    }
}

/// Most failed attempts of a job that are kept in words, the last ones; those before them are only
/// counted, task by task.
pub const FAILURES_KEPT: usize = 1000;

/// An attempt that ended without a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Which.
    pub attempt: AttemptId,
    /// Who ran it.
    pub worker: WorkerId,
    /// What could be done about it.
    pub kind: ErrorKind,
    /// What went wrong.
    pub error: String,
}

impl From<&AttemptFailed> for Failure {
    fn from(failed: &AttemptFailed) -> Self {
        let AttemptFailed { attempt, worker, kind, error, .. } = failed;
        Self {
            attempt: *attempt,
            worker: worker.clone(),
            kind: *kind,
            error: cut(error).to_owned(),
        }
    }
}

pub(super) fn cut(text: &str) -> &str {
    let end = (0..=TEXT_BYTES_MAX.min(text.len()))
        .rev()
        .find(|&at| text.is_char_boundary(at))
        .unwrap_or(0);
    &text[..end]
}
