//! What the journal says, folded: the only state that decides what is committed.
//!
//! [`Durable::apply`] is the one way in. The leader calls it when an append is acknowledged, a new leader when it reads the journal; so both hold the same state
//! (a test folds the journal of every scripted conversation and compares). A record that contradicts the state is refused and changes nothing.

use std::collections::BTreeMap;

use muster_common::api::{JobState, PhaseTimes};
use muster_common::ids::{AttemptId, DeploymentId, Epoch, JobId};
use muster_common::wire::BlobRef;

use super::state;
use crate::journal::record::{
    JobArchivedV1, JobEndedV1, JobOutcomeV1, JobSubmittedV1, PartCommittedV1, Record, RunCommittedV1,
    TotalsV1 as Totals,
};

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
}

/// One job, as the journal knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DurableJob {
    /// How it began.
    pub submitted: JobSubmittedV1,
    /// Where it stands.
    pub state: JobState,
    /// The partitions, once they are fixed.
    pub boundaries: Option<Boundaries>,
    /// Committed sort tasks by split.
    pub runs: BTreeMap<u32, RunCommittedV1>,
    /// The list of pinned runs, once the barrier is passed.
    pub runs_pinned: Option<BlobRef>,
    /// Open uploads of merges that are not committed, by partition.
    pub uploads: BTreeMap<u32, Upload>,
    /// Uploads that were revoked, in the order of their revocation.
    pub revoked: Vec<Upload>,
    /// Committed merge tasks by partition.
    pub parts: BTreeMap<u32, PartCommittedV1>,
    /// Whether the commit is decided.
    pub commit_decided: bool,
    /// How it ended.
    pub ended: Option<JobEndedV1>,
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
pub fn end_state(outcome: JobOutcomeV1) -> JobState {
    match outcome {
        JobOutcomeV1::Succeeded => JobState::Succeeded,
        JobOutcomeV1::Failed => JobState::Failed,
        JobOutcomeV1::Cancelled => JobState::Cancelled,
    }
}

impl Default for Durable {
    /// An empty journal: epoch 0 is nobody's.
    fn default() -> Self {
        Self { deployment: None, epoch: Epoch(0), nonce: 0, jobs: BTreeMap::new() }
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
                Some(known) => Err(format!("deployment {deployment} begins in the journal of {known}")),
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
            Record::Snapshot { id, .. } => Err(format!("snapshot {id} stands where a plain record belongs")),
            Record::BoundariesChosen { job, .. }
            | Record::RunsPinned { job, .. }
            | Record::UploadOpened { job, .. }
            | Record::UploadRevoked { job, .. }
            | Record::CommitDecided { job, .. }
            | Record::JobCleaned { job } => self.job(job)?.apply(record),
            Record::RunCommitted(run) => self.job(&run.job)?.apply(record),
            Record::PartCommitted(part) => self.job(&part.job)?.apply(record),
            Record::JobEnded(ended) => self.job(&ended.job)?.apply(record),
        }
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

    fn submit(&mut self, submitted: &JobSubmittedV1) -> Result<(), String> {
        if self.jobs.contains_key(&submitted.job) {
            return Err(format!("job {} is submitted a second time", submitted.job));
        }
        self.jobs.insert(submitted.job.clone(), DurableJob::new(submitted.clone()));
        Ok(())
    }
}

impl DurableJob {
    fn new(submitted: JobSubmittedV1) -> Self {
        let needs_samples = submitted.partitions > 1 && submitted.splits > 0;
        Self {
            state: if needs_samples { JobState::Sampling } else { JobState::Submitted },
            boundaries: None,
            runs: BTreeMap::new(),
            runs_pinned: None,
            uploads: BTreeMap::new(),
            revoked: Vec::new(),
            parts: BTreeMap::new(),
            commit_decided: false,
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
        self.boundaries.as_ref().map_or(self.submitted.partitions, |boundaries| boundaries.partitions)
    }

    fn apply(&mut self, record: &Record) -> Result<(), String> {
        match record {
            Record::BoundariesChosen { splitters, partitions, took_ms, .. } => {
                self.step(JobState::Sorting)?;
                self.boundaries = Some(Boundaries { splitters: splitters.clone(), partitions: *partitions });
                self.times.sample_ms = *took_ms;
                Ok(())
            }
            Record::RunCommitted(run) => self.commit_run(run),
            Record::RunsPinned { runs, took_ms, .. } => {
                self.step(JobState::Merging)?;
                self.runs_pinned = Some(runs.clone());
                self.times.sort_ms = *took_ms;
                Ok(())
            }
            Record::UploadOpened { partition, attempt, upload, .. } => {
                self.open_upload(Upload { partition: *partition, attempt: *attempt, upload: upload.clone() })
            }
            Record::UploadRevoked { partition, attempt, .. } => self.revoke_upload(*partition, attempt),
            Record::PartCommitted(part) => self.commit_part(part),
            Record::CommitDecided { took_ms, .. } => {
                self.step(JobState::Committing)?;
                self.commit_decided = true;
                self.times.merge_ms = *took_ms;
                Ok(())
            }
            Record::JobEnded(ended) => {
                self.step(end_state(ended.outcome))?;
                self.times.commit_ms = ended.took_ms;
                self.ended = Some(JobEndedV1::clone(ended));
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
        if !state::allowed(self.state, to) {
            return Err(format!("job {} cannot go from {} to {to}", self.submitted.job, self.state));
        }
        self.state = to;
        Ok(())
    }

    /// Task by task nothing is asked of a job that is cleaned; a hundred ended jobs must not weigh as much as a hundred running ones.
    fn archive(&mut self) {
        self.cleaned = true;
        self.runs.clear();
        self.uploads.clear();
        self.revoked.clear();
        self.parts.clear();
        self.boundaries = Some(Boundaries { splitters: None, partitions: self.partitions() });
        self.runs_pinned = None;
    }

    /// Restores a cleaned job from its summary.
    fn restore(archived: &JobArchivedV1) -> Self {
        let mut job = Self::new(archived.submitted.clone());
        job.boundaries = Some(Boundaries { splitters: None, partitions: archived.partitions });
        job.state = end_state(archived.ended.outcome);
        job.commit_decided = archived.commit_decided;
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

    fn commit_run(&mut self, run: &RunCommittedV1) -> Result<(), String> {
        self.expect_state(JobState::Sorting, "a run is committed")?;
        if run.split >= self.submitted.splits || self.runs.contains_key(&run.split) {
            return Err(format!("job {}: split {} is committed twice or does not exist", run.job, run.split));
        }
        let totals = &mut self.run_totals;
        totals.input.merge(&run.input);
        totals.kept.merge(&run.kept);
        totals.dropped.merge(&run.dropped);
        totals.bytes = totals.bytes.saturating_add(run.bytes);
        self.runs.insert(run.split, run.clone());
        Ok(())
    }

    fn open_upload(&mut self, upload: Upload) -> Result<(), String> {
        self.expect_state(JobState::Merging, "an upload is opened")?;
        let partition = upload.partition;
        if partition >= self.partitions()
            || self.parts.contains_key(&partition)
            || self.uploads.contains_key(&partition)
        {
            return Err(format!("job {}: partition {partition} has an upload or is committed", self.submitted.job));
        }
        self.uploads.insert(partition, upload);
        Ok(())
    }

    fn revoke_upload(&mut self, partition: u32, attempt: &AttemptId) -> Result<(), String> {
        match self.uploads.remove(&partition) {
            Some(upload) if upload.attempt == *attempt => {
                self.revoked.push(upload);
                Ok(())
            }
            Some(other) => {
                let text = format!("the upload of {} cannot be revoked as that of {attempt}", other.attempt);
                self.uploads.insert(partition, other);
                Err(text)
            }
            None => Err(format!("partition {partition} has no open upload")),
        }
    }

    fn commit_part(&mut self, part: &PartCommittedV1) -> Result<(), String> {
        self.expect_state(JobState::Merging, "a part is committed")?;
        let open = self.uploads.get(&part.partition);
        if !open.is_some_and(|open| open.attempt == part.attempt && open.upload == part.upload) {
            return Err(format!("job {}: part {} is committed without its upload", part.job, part.partition));
        }
        let totals = &mut self.part_totals;
        totals.kept.merge(&part.kept);
        totals.dropped.merge(&part.dropped);
        totals.bytes = totals.bytes.saturating_add(part.bytes);
        self.uploads.remove(&part.partition);
        self.parts.insert(part.partition, part.clone());
        Ok(())
    }
}
