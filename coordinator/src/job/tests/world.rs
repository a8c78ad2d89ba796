//! A small world around the machine: a journal, a store and workers that answer at once. Time moves
//! when it is told to.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use muster_kernel::format::Format;
use muster_kernel::proof::Sums;
use muster_kernel::spec::SortSpec;
use muster_platform::config::{Config, Profile};
use muster_protocol::api::{DeadLetter, JobState, JobStatus, Manifest};
use muster_protocol::ids::{AttemptId, Epoch, Incarnation, JobId, Phase, WorkerId};
use muster_protocol::plan::{BadInputs, BadRecords, JobSpec, PinnedObject, Plan, Sizing};
use muster_protocol::wire::{BlobRef, Outcome, RunAttempt, RunReply, WorkerState};
use muster_protocol::{Error, Result};

use super::fakes::{FakeWorker, Unacknowledged};
use crate::job::io::{
    Effect, Input, Listing, ManifestBytes, MeasuredBoundaries, Publication, Reply, ReplyTo,
    Unremoved,
};
use crate::job::ledger::durable::Durable;
use crate::job::{Machine, invariant};
use crate::journal::fold::Fold;
use crate::journal::record::{self, Entry, Record};

pub(super) const RECORD_BYTES: u64 = 10;

pub(super) fn job(id: &str) -> JobId {
    id.parse().expect("job id")
}

pub(super) fn worker(id: &str) -> WorkerId {
    id.parse().expect("worker id")
}

/// A request over the world's input: 300 records in two objects, splits of 100 records, three
/// partitions.
pub(super) fn spec(id: &str) -> JobSpec {
    JobSpec {
        job: job(id),
        inputs: vec!["/in".to_owned()],
        output: format!("/out-{id}"),
        bucket: None,
        sort: SortSpec::new(Format::fixed(RECORD_BYTES as u32)),
        auto_format: false,
        extension: "dat".to_owned(),
        overwrite: false,
        fsync: false,
        sizing: Sizing {
            partitions: Some(3),
            split_bytes: Some(100 * RECORD_BYTES),
            ..Sizing::default()
        },
        replica: None,
        bad_records: BadRecords::Fail,
        bad_inputs: BadInputs::Fail,
        settings: None,
    }
}

pub(super) fn config() -> Config {
    Config::profile(Profile::Production).expect("profile")
}

pub(super) struct World {
    pub machine: Machine,
    pub config: Config,
    pub now_ms: u64,
    pub journal: Vec<(u64, Entry)>,
    sequence: u64,
    pub inbox: VecDeque<Input>,
    asked: u64,
    pub reports: BTreeMap<ReplyTo, Unacknowledged>,
    /// Reports after which their worker goes no further.
    pub stop_after: BTreeSet<ReplyTo>,
    pub registrations: BTreeMap<ReplyTo, (WorkerId, Vec<AttemptId>)>,
    pub workers: BTreeMap<WorkerId, FakeWorker>,
    pub objects: BTreeMap<String, Vec<u8>>,
    pub uploads: BTreeSet<(String, String)>,
    /// What each job was published with last.
    pub publications: BTreeMap<JobId, Publication>,
    /// The manifest of each job that was to be published: always the same.
    pub manifests: BTreeMap<JobId, Vec<u8>>,
    pub letters: Vec<DeadLetter>,
    /// Second scratches that were cleaned.
    pub replicas_cleaned: Vec<String>,
    /// Runs that the store has lost.
    pub lost: BTreeSet<String>,
    /// What the splits of a job sum to, by the number of objects that are left out.
    pub sums: BTreeMap<(JobId, usize), Sums>,
    /// Input objects that cannot be read.
    pub broken: BTreeMap<u32, Error>,
    pub opened: BTreeSet<AttemptId>,
    pub completed: BTreeMap<String, String>,
    pub published: Vec<JobId>,
    pub replies: BTreeMap<ReplyTo, Reply>,
    pub specs: BTreeMap<JobId, JobSpec>,
    pub listing: Listing,
    /// Who was asked for files of its own, last.
    pub asked_for_files: Vec<WorkerId>,
    pub plans: BTreeMap<String, Arc<Plan>>,
    /// What samples say of the fullest partition, round by round, instead of the truth.
    pub fullest_percent: VecDeque<u32>,
    /// Errors that the next store calls of a kind (second word of their line) end in.
    pub store_fails: BTreeMap<&'static str, VecDeque<Error>>,
    /// What a clean-up cannot remove.
    pub unremoved: Unremoved,
    /// What people and workers report instead of the truth: applied to every outcome.
    pub lies: fn(&mut Outcome),
    /// Folding the whole journal after each step is too slow for large jobs.
    pub checks: bool,
    pub journal_holds: bool,
    /// Store calls of the coordinator's own are carried out, but end only when they are released.
    pub store_holds: bool,
    held_store: VecDeque<Input>,
    pub held_acks: VecDeque<Input>,
    /// Crash before carrying out effects after so many.
    pub crash_at: Option<u64>,
    pub effects: u64,
    pub crashes: u32,
    pub granted: Vec<(JobId, AttemptId)>,
    /// How many omissions each order carried.
    pub skips: Vec<usize>,
    pub limits: Vec<Option<u32>>,
    pub log: Vec<String>,
    pub aliases: BTreeMap<AttemptId, usize>,
}

impl World {
    pub(super) fn new(config: Config) -> Self {
        let mut world = Self {
            machine: Machine::new(config.clone(), None, first_durable()).expect("machine"),
            config,
            now_ms: 1_000,
            journal: Vec::new(),
            sequence: 0,
            inbox: VecDeque::new(),
            asked: 0,
            reports: BTreeMap::new(),
            stop_after: BTreeSet::new(),
            registrations: BTreeMap::new(),
            workers: BTreeMap::new(),
            objects: BTreeMap::new(),
            uploads: BTreeSet::new(),
            publications: BTreeMap::new(),
            manifests: BTreeMap::new(),
            letters: Vec::new(),
            replicas_cleaned: Vec::new(),
            lost: BTreeSet::new(),
            sums: BTreeMap::new(),
            broken: BTreeMap::new(),
            opened: BTreeSet::new(),
            completed: BTreeMap::new(),
            published: Vec::new(),
            replies: BTreeMap::new(),
            specs: BTreeMap::new(),
            listing: listing(&[150, 150]),
            asked_for_files: Vec::new(),
            plans: BTreeMap::new(),
            fullest_percent: VecDeque::new(),
            store_fails: BTreeMap::new(),
            unremoved: Unremoved::default(),
            lies: |_| {},
            checks: true,
            journal_holds: false,
            store_holds: false,
            held_store: VecDeque::new(),
            held_acks: VecDeque::new(),
            crash_at: None,
            effects: 0,
            crashes: 0,
            granted: Vec::new(),
            skips: Vec::new(),
            limits: Vec::new(),
            log: Vec::new(),
            aliases: BTreeMap::new(),
        };
        for record in first_records() {
            world.write(Epoch(1), record);
        }
        world.inbox.push_back(Input::Began { unix_ms: 7 });
        world
    }

    fn write(&mut self, epoch: Epoch, record: Record) -> u64 {
        self.sequence += 1;
        let entry = Entry { epoch, nonce: self.sequence, record };
        // As stored: what is folded later went through bytes.
        let stored = record::decode(&record::encode(&entry).expect("encode")).expect("decode");
        assert_eq!(stored, entry);
        self.journal.push((self.sequence, stored));
        self.sequence
    }

    pub(super) fn replay(&self) -> Durable {
        let mut fold = Fold::default();
        self.journal.iter().for_each(|(_, entry)| fold.push(entry.clone()));
        let (durable, refused) = fold.finish();
        assert_eq!(refused, Vec::<String>::new(), "the journal contradicts itself");
        durable
    }

    // --- people ---

    pub(super) fn ask(&mut self) -> ReplyTo {
        self.asked += 1;
        ReplyTo(self.asked)
    }

    pub(super) fn submit(&mut self, spec: JobSpec) -> ReplyTo {
        let to = self.ask();
        self.specs.insert(spec.job.clone(), spec.clone());
        self.inbox.push_back(Input::Submit { to, spec: Box::new(spec), unix_ms: 7 });
        self.pump();
        to
    }

    pub(super) fn cancel(&mut self, id: &str) -> ReplyTo {
        let to = self.ask();
        self.inbox.push_back(Input::Cancel { to, job: job(id) });
        self.pump();
        to
    }

    pub(super) fn status(&mut self, id: &str) -> Option<JobStatus> {
        let to = self.ask();
        self.inbox.push_back(Input::AskStatus { to, job: job(id) });
        self.pump();
        match self.replies.remove(&to) {
            Some(Reply::Job(status)) => Some(*status),
            _ => None,
        }
    }

    pub(super) fn refusal(&self, to: ReplyTo) -> Option<(usize, String)> {
        match self.replies.get(&to) {
            Some(Reply::Refused { code, error }) => Some((code.number(), error.message.clone())),
            _ => None,
        }
    }

    // --- time ---

    pub(super) fn tick(&mut self, by_ms: u64) {
        self.now_ms += by_ms;
        let ids: Vec<WorkerId> = self.workers.keys().cloned().collect();
        for id in ids {
            if self.workers[&id].registered.is_none() && !self.workers[&id].dead {
                self.register(&id);
            }
            self.report_again(&id);
            self.beat(&id, WorkerState::Active);
        }
        self.inbox.push_back(Input::Tick);
        self.pump();
    }

    /// Time passes in steps of a second.
    pub(super) fn pass(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.tick(1000);
        }
    }

    /// As [`World::settle`], with workers that hold nothing back any more.
    pub(super) fn settle_after_finishing(&mut self, id: &str) -> JobState {
        let ids: Vec<String> = self.workers.keys().map(ToString::to_string).collect();
        for worker in ids {
            self.hold(&worker, &[]);
            self.finish(&worker);
        }
        self.settle(id)
    }

    /// Until a job has ended and is cleaned.
    pub(super) fn settle(&mut self, id: &str) -> JobState {
        for _ in 0..200 {
            self.pump();
            let status = self.status(id);
            if let Some(status) = status.filter(|status| status.cleaned) {
                return status.state;
            }
            if !self.machine.durable().jobs.contains_key(&job(id)) {
                let spec = self.specs[&job(id)].clone();
                self.submit(spec);
            }
            self.tick(500);
        }
        panic!("job {id} does not end: {:?}\n{}", self.status(id), self.log.join("\n"));
    }

    // --- the machine and its effects ---

    pub(super) fn feed(&mut self, input: Input) {
        self.inbox.push_back(input);
        self.pump();
    }

    pub(super) fn pump(&mut self) {
        while let Some(input) = self.inbox.pop_front() {
            let effects = self.machine.step(self.now_ms, input);
            if self.checks
                && let Err(broken) = invariant::check(&self.machine)
            {
                panic!("{broken}\n{}", self.log.join("\n"));
            }
            for effect in effects {
                if self.crash_at == Some(self.effects) {
                    self.crash_at = None;
                    self.crash();
                    break;
                }
                self.effects += 1;
                self.perform(effect);
            }
            if self.checks
                && self.held_acks.is_empty()
                && !self.inbox.iter().any(|input| matches!(input, Input::Appended { .. }))
            {
                assert_eq!(
                    self.replay(),
                    *self.machine.durable(),
                    "the journal and the leader disagree\n{}",
                    self.log.join("\n")
                );
            }
        }
    }

    /// The coordinator is gone, and with it all that was on its way to it; another one begins.
    /// Workers hear of the new epoch and register again.
    pub(super) fn crash(&mut self) {
        self.crashes += 1;
        self.log.push("-- the coordinator is killed; another begins".to_owned());
        self.inbox.clear();
        self.held_acks.clear();
        self.held_store.clear();
        self.reports.clear();
        self.registrations.clear();
        let mut durable = self.replay();
        let epoch = Epoch(durable.epoch.0 + 1);
        let began = Record::EpochBegan { epoch, nonce: 1000 + epoch.0 };
        durable.apply(&began).expect("epoch");
        self.write(epoch, began);
        self.machine = Machine::new(self.config.clone(), None, durable).expect("machine");
        self.inbox.push_back(Input::Began { unix_ms: 7 });
        self.workers.values_mut().for_each(|fake| fake.registered = None);
        let living: Vec<WorkerId> =
            self.workers.values().filter(|fake| !fake.dead).map(|fake| fake.id.clone()).collect();
        for id in living {
            self.register(&id);
        }
    }

    pub(super) fn alias(&mut self, attempt: AttemptId) -> usize {
        let next = self.aliases.len() + 1;
        *self.aliases.entry(attempt).or_insert(next)
    }

    fn store(&mut self, kind: &str) -> Result<()> {
        self.store_fails.get_mut(kind).and_then(VecDeque::pop_front).map_or(Ok(()), Err)
    }

    fn perform(&mut self, effect: Effect) {
        let line = self.describe(&effect);
        self.log.push(line);
        match effect {
            Effect::Append { token, record } => {
                let sequence = self.write(self.machine.epoch(), *record);
                let ack = Input::Appended { token, sequence };
                if self.journal_holds {
                    self.held_acks.push_back(ack);
                } else {
                    self.inbox.push_back(ack);
                }
            }
            Effect::PurgeJournal { before } => {
                self.journal.retain(|(sequence, _)| *sequence >= before);
            }
            Effect::Reply { to, reply } => {
                match &reply {
                    Reply::Report(reply) => self.on_report_reply(to, reply),
                    Reply::Register(reply) => self.on_registered(to, reply),
                    _ => {}
                }
                self.replies.insert(to, reply);
            }
            Effect::SendRun { worker, run, .. } => self.run(&worker, &run),
            Effect::SendCancel { worker, cancel } => {
                let answered = self.workers.get(&worker).is_some_and(|fake| !fake.dead);
                if answered {
                    self.abandon(&worker, &cancel.attempt);
                }
                self.inbox.push_back(Input::CancelAnswered {
                    job: cancel.job,
                    attempt: cancel.attempt,
                    answered,
                });
            }
            Effect::SendDrain { .. }
            | Effect::Broadcast { .. }
            | Effect::Progress(_)
            | Effect::Event(_) => {}
            Effect::DeadLetter(letter) => self.letters.push(*letter),
            Effect::LimitStores(limits) => self.limits.push(limits.requests_per_s),
            Effect::ListInput { spec, offers, ticket, .. } => {
                self.asked_for_files = offers.into_iter().map(|offer| offer.worker).collect();
                let result = self.store("list").map(|()| self.listing.clone());
                self.inbox.push_back(Input::Listed { job: spec.job.clone(), ticket, result });
            }
            store => self.perform_on_store(store),
        }
    }

    fn perform_on_store(&mut self, effect: Effect) {
        let fails = self.store(match &effect {
            Effect::WriteObject { .. } => "write",
            Effect::PrepareCommit { .. } => "prepare",
            Effect::LoadPlan { .. } => "read",
            Effect::ChooseSplitters { .. } => "choose",
            Effect::AbortUpload { .. } => "abort",
            Effect::Publish { .. } => "publish",
            Effect::CleanUp { .. } => "clean",
            Effect::SweepLate { .. } => "sweep",
            _ => "",
        });
        let input = match effect {
            Effect::WriteObject { url, bytes, ticket } => Input::ObjectWritten {
                ticket,
                result: fails.map(|()| self.put(url.to_string(), bytes)),
            },
            Effect::PrepareCommit { publication, url, ticket, .. } => {
                let ManifestBytes::Made(bytes) = publication.manifest else {
                    panic!("a commit is prepared twice")
                };
                Input::ObjectWritten {
                    ticket,
                    result: fails.map(|()| self.put(url.to_string(), bytes)),
                }
            }
            Effect::LoadPlan { job, plan } => {
                let read = |bytes: &Vec<u8>| Plan::from_bytes(bytes).map(Arc::new);
                let found = self
                    .objects
                    .get(&plan.url)
                    .map_or_else(|| Err(Error::corrupt("the plan is gone")), read);
                Input::PlanLoaded { job, result: fails.and(found) }
            }
            Effect::LoadSamples { job, attempt, .. } => {
                Input::SamplesLoaded { job, attempt, result: fails.map(|()| Vec::new()) }
            }
            Effect::ChooseSplitters { job, samples, partitions, unique, url } => {
                let chosen = crate::job::flow::plan::splitters(samples, partitions, unique)
                    .expect("splitters");
                let (partitions, samples) = (chosen.splitters.len() as u32 + 1, chosen.samples);
                let fullest_percent = self.fullest_percent.pop_front().or(chosen.fullest_percent);
                let result = fails.map(|()| {
                    let splitters = Some(self.put(url.to_string(), vec![1]));
                    MeasuredBoundaries { splitters, partitions, samples, fullest_percent }
                });
                Input::SplittersChosen { job, result }
            }
            Effect::AbortUpload { job, url, upload } => {
                if fails.is_ok() {
                    self.uploads.remove(&(url.to_string(), upload.upload.clone()));
                }
                Input::UploadAborted { job, attempt: upload.attempt, result: fails }
            }
            Effect::Publish { job, publication } => {
                let manifest = match &publication.manifest {
                    ManifestBytes::Made(bytes) => bytes.clone(),
                    ManifestBytes::Stored(pointer) => self.objects[&pointer.url].clone(),
                };
                let before = self.manifests.entry(job.clone()).or_insert_with(|| manifest.clone());
                assert_eq!(
                    String::from_utf8_lossy(before),
                    String::from_utf8_lossy(&manifest),
                    "{job}"
                );
                if fails.is_ok() {
                    self.publications.insert(job.clone(), Publication::clone(&publication));
                    for part in publication.parts {
                        let open =
                            self.uploads.remove(&(part.url.to_string(), part.upload.clone()));
                        let before =
                            self.completed.insert(part.url.to_string(), part.upload.clone());
                        assert!(
                            open || before == Some(part.upload),
                            "{} is completed from an upload that is gone",
                            part.url
                        );
                    }
                    self.published.push(job.clone());
                }
                Input::Published { job, result: fails.map(|()| Unremoved::default()) }
            }
            Effect::CleanUp { job, leftovers } => {
                if fails.is_ok() {
                    self.replicas_cleaned.extend(leftovers.replica.iter().map(ToString::to_string));
                    let scratch = leftovers.scratch.to_string();
                    self.objects.retain(|url, _| !url.starts_with(&scratch));
                    for (url, upload) in leftovers.uploads {
                        self.uploads.remove(&(url.to_string(), upload));
                    }
                    let output = leftovers.output.to_string();
                    self.uploads.retain(|(url, _)| !url.starts_with(&output));
                }
                Input::Cleaned { job, result: fails.map(|()| self.unremoved.clone()) }
            }
            Effect::SweepLate { job, scratch } => {
                let before = self.objects.len();
                if fails.is_ok() {
                    self.objects.retain(|url, _| {
                        !scratch.iter().any(|scratch| url.starts_with(&scratch.to_string()))
                    });
                }
                Input::SweptLate {
                    job,
                    result: fails.map(|()| (before - self.objects.len()) as u64),
                }
            }
            other => panic!("not for the store: {other:?}"),
        };
        if self.store_holds {
            self.held_store.push_back(input);
        } else {
            self.inbox.push_back(input);
        }
    }

    /// What a job was published with.
    pub(super) fn manifest(&self, id: &str) -> Manifest {
        serde_json::from_slice(&self.manifests[&job(id)]).expect("manifest")
    }

    fn put(&mut self, url: String, bytes: Vec<u8>) -> BlobRef {
        let pointer = BlobRef { url: url.clone(), bytes: bytes.len() as u64, digest: 1 };
        self.objects.insert(url, bytes);
        pointer
    }

    fn run(&mut self, id: &WorkerId, run: &RunAttempt) {
        let RunAttempt { job, attempt, .. } = run.clone();
        self.skips.push(super::fakes::skipped(run).len());
        self.assert_not_committed(&job, &attempt);
        let Some(fake) = self.workers.get_mut(id).filter(|fake| !fake.dead) else {
            return self.inbox.push_back(Input::RunAnswered {
                worker: id.clone(),
                job,
                attempt,
                reply: Err(Error::retry("no answer")),
            });
        };
        if run.epoch < fake.epoch || run.incarnation != Incarnation(fake.incarnation) {
            let error = Error::invalid("another epoch or life");
            let reply = Ok(RunReply::Refused { error });
            return self.inbox.push_back(Input::RunAnswered {
                worker: id.clone(),
                job,
                attempt,
                reply,
            });
        }
        if let Some(reply) = fake.answers.take() {
            return self.inbox.push_back(Input::RunAnswered {
                worker: id.clone(),
                job,
                attempt,
                reply,
            });
        }
        let first = fake.held.insert(attempt, run.clone()).is_none();
        let holds = fake.holds.contains(&attempt.task.phase);
        if first {
            self.granted.push((job.clone(), attempt));
        }
        self.inbox.push_back(Input::RunAnswered {
            worker: id.clone(),
            job,
            attempt,
            reply: Ok(RunReply::Accepted),
        });
        if first && !holds {
            self.work(id, run);
        }
    }

    /// What is committed is never granted again.
    fn assert_not_committed(&self, job: &JobId, attempt: &AttemptId) {
        let durable = &self.machine.durable().jobs[job];
        let index = attempt.task.index;
        let committed = match attempt.task.phase {
            Phase::Sample => durable.boundaries.is_some(),
            Phase::Sort => durable.runs.contains_key(&index),
            Phase::Merge => durable.parts.contains_key(&index),
        };
        assert!(!committed, "{attempt} of job {job} is granted, but its task is committed");
        if self.checks && attempt.task.phase == Phase::Merge {
            for run in durable.runs.values() {
                assert!(
                    self.objects.contains_key(&run.url) || self.lost.contains(&run.url),
                    "the committed run {} is gone\n{}",
                    run.url,
                    self.log.join("\n")
                );
            }
        }
    }

    /// The store loses the committed run of a split.
    pub(super) fn lose_run(&mut self, id: &str, split: u32) {
        let run = self.machine.durable().jobs.get(&job(id)).and_then(|job| job.runs.get(&split));
        if let Some(url) = run.map(|run| run.url.clone()) {
            self.objects.remove(&url);
            self.lost.insert(url);
            self.log.push(format!("-- the run of split {split} is lost"));
        }
    }

    pub(super) fn release_store(&mut self) {
        self.store_holds = false;
        self.inbox.append(&mut self.held_store);
        self.pump();
    }

    pub(super) fn acknowledge_held(&mut self) {
        self.journal_holds = false;
        self.inbox.append(&mut self.held_acks);
        self.pump();
    }
}

fn first_records() -> [Record; 2] {
    [
        Record::DeploymentCreated { deployment: "d1".parse().expect("deployment") },
        Record::EpochBegan { epoch: Epoch(1), nonce: 42 },
    ]
}

fn first_durable() -> Durable {
    let mut durable = Durable::default();
    first_records().iter().for_each(|record| durable.apply(record).expect("apply"));
    durable
}

/// Objects of so many records.
pub(super) fn listing(records: &[u64]) -> Listing {
    let object = |(n, records): (usize, &u64)| PinnedObject {
        url: format!("file:///in/{n}"),
        bytes: records * RECORD_BYTES,
        version: "v".to_owned(),
    };
    Listing {
        objects: records.iter().enumerate().map(object).collect(),
        left_out: Vec::new(),
        warnings: Vec::new(),
        replaced: Vec::new(),
        uploads_before: Vec::new(),
        output_existed: false,
    }
}
