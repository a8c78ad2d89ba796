//! What a job must come to, worked out from its input alone, beside everything that the program
//! knows: what is read, what is left out, what each list of runs holds, and from which of them each
//! part was merged.

use std::collections::{BTreeMap, BTreeSet};

use muster_coordinator::journal::record::{JobSubmitted, PLACES_KEPT, PartCommitted, RunCommitted};
use muster_kernel::format::{Format, Frame};
use muster_kernel::proof::{StreamHash, Sums};
use muster_kernel::reference::sort_reference;
use muster_kernel::run::{RunFooter, RunIndex};
use muster_protocol::ErrorKind;
use muster_protocol::api::Manifest;
use muster_protocol::ids::{AttemptId, Epoch, JobId, TaskId, WorkerId};
use muster_protocol::plan::{BadInputs, BadRecords, JobSpec, PinnedRun, PinnedRuns, Plan};
use muster_protocol::wire::{BlobRef, RunAttempt, Work};

use super::checker::key_of;
use super::core::{Core, Event};
use super::jobs::TELLING_BYTES;
use super::script::{Act, Whom};
use super::store::Unreadable;

/// An input object, as it stands when the run begins.
#[derive(Debug, Clone)]
pub struct InputObject {
    /// Where the simulated store has it.
    pub key: String,
    /// How a plan names it.
    pub url: String,
    /// What it holds.
    pub bytes: Vec<u8>,
    /// Who alone can read it.
    pub owner: Option<WorkerId>,
}

/// A run that was committed.
#[derive(Debug)]
struct Committed {
    pinned: PinnedRun,
    input: Sums,
    out: Sums,
    /// What each of its pieces holds; unknown where no copy of it stands as it was written.
    pieces: Option<Vec<Sums>>,
}

/// A list of runs that was pinned.
#[derive(Debug)]
struct List {
    digest: u64,
    runs: BTreeMap<u32, PinnedRun>,
    /// What each partition of it holds, as far as that is known.
    partitions: Option<Vec<Sums>>,
}

/// A job.
#[derive(Debug)]
pub struct Known {
    spec: JobSpec,
    objects: Vec<InputObject>,
    plan: Option<Plan>,
    left_out: BTreeSet<u32>,
    runs: BTreeMap<AttemptId, Committed>,
    lists: BTreeMap<String, List>,
    newest_list: String,
    /// Which list each merge reads.
    merges: BTreeMap<AttemptId, String>,
    parts: BTreeMap<u32, AttemptId>,
    /// It has waited for an owner.
    pub waited: bool,
    /// Who has asked for more samples.
    pub sampled_again: BTreeSet<Epoch>,
}

/// All jobs of a run.
#[derive(Debug, Default)]
pub struct Oracle {
    jobs: BTreeMap<JobId, Known>,
    /// An owner of a job's input dies so long after the job is accepted, for so long, in
    /// microseconds.
    pub loses_owner: Option<(u64, u64)>,
    /// The input of runs that are lost while merging cannot be read any more, mostly.
    pub spoils_repairs: bool,
}

/// What a job's output must be, and its sums.
struct Expected {
    output: Vec<u8>,
    kept: Sums,
    input: Sums,
    malformed: Sums,
    /// Where malformed records are: object, offset, bytes.
    places: BTreeSet<(String, u64, u64)>,
}

impl Oracle {
    /// Notes what a client is going to ask for.
    pub fn expects(&mut self, spec: &JobSpec, objects: Vec<InputObject>) {
        let known = Known {
            spec: spec.clone(),
            objects,
            plan: None,
            left_out: BTreeSet::new(),
            runs: BTreeMap::new(),
            lists: BTreeMap::new(),
            newest_list: String::new(),
            merges: BTreeMap::new(),
            parts: BTreeMap::new(),
            waited: false,
            sampled_again: BTreeSet::new(),
        };
        self.jobs.insert(spec.job.clone(), known);
    }

    /// A job.
    pub fn get_mut(&mut self, job: &JobId) -> Option<&mut Known> {
        self.jobs.get_mut(job)
    }

    /// Where a job's input lies.
    pub fn keys_of(&self, job: &JobId) -> Vec<String> {
        let objects = self.jobs.get(job).map(|known| known.objects.as_slice()).unwrap_or_default();
        objects.iter().map(|object| object.key.clone()).collect()
    }

    /// Whether some job has records that are longer than most.
    pub fn has_long_records(&self) -> bool {
        let lengths = self.jobs.values().map(|known| known.spec.sort.format.frame().body_len());
        lengths.flatten().any(|len| len > TELLING_BYTES)
    }

    /// Whether some worker alone can read something.
    pub fn has_owners(&self) -> bool {
        self.jobs.values().flat_map(|known| &known.objects).any(|object| object.owner.is_some())
    }

    /// Whether this worker alone can read something.
    pub fn owns(&self, worker: &WorkerId) -> bool {
        self.jobs
            .values()
            .flat_map(|known| &known.objects)
            .any(|object| object.owner.as_ref() == Some(worker))
    }

    /// Who alone can do a sample or sort task, by the plan that was journalled.
    pub fn owner_of(&self, job: &JobId, task: TaskId) -> Option<&str> {
        if task.phase == muster_protocol::ids::Phase::Merge {
            return None;
        }
        self.jobs.get(job)?.plan.as_ref()?.owner(task.index)
    }

    /// Everybody who alone can read some of a job's input.
    pub fn owners_of(&self, job: &JobId) -> BTreeSet<String> {
        let objects = self
            .jobs
            .get(job)
            .and_then(|known| known.plan.as_ref())
            .map(|plan| plan.objects.as_slice());
        objects
            .unwrap_or_default()
            .iter()
            .filter_map(|object| object.owner().map(str::to_owned))
            .collect()
    }
}

impl Known {
    /// Whether some of its input is left out.
    pub fn leaves_out(&self) -> bool {
        !self.left_out.is_empty()
    }

    fn object(&self, url: &str) -> Option<&InputObject> {
        self.objects.iter().find(|object| object.url == url)
    }

    /// The pinned objects: number, and what was there.
    fn pinned(&self) -> impl Iterator<Item = (u32, &InputObject)> {
        let pinned = self.plan.iter().flat_map(|plan| &plan.objects);
        (0..).zip(pinned).filter_map(|(at, object)| Some((at, self.object(&object.url)?)))
    }

    /// How much of an object is records; the rest is malformed, where that may be left out.
    fn whole_bytes(&self, object: &InputObject) -> usize {
        match self.spec.sort.format.frame() {
            Frame::Fixed(len) if self.spec.bad_records != BadRecords::Fail => {
                object.bytes.len() / len as usize * len as usize
            }
            _ => object.bytes.len(),
        }
    }

    fn expected(&self) -> Expected {
        let (mut input, mut malformed, mut places) =
            (Sums::default(), Sums::default(), BTreeSet::new());
        let mut whole = Vec::new();
        for (_, object) in self.pinned().filter(|(at, _)| !self.left_out.contains(at)) {
            let (records, torn) = object.bytes.split_at(self.whole_bytes(object));
            input.merge(&sums_of(&self.spec.sort.format, records));
            if !torn.is_empty() {
                let mut hash = StreamHash::default();
                hash.update(torn);
                malformed.add_hashed(torn.len(), hash.digest());
                places.insert((object.url.clone(), records.len() as u64, torn.len() as u64));
            }
            whole.push(records.to_vec());
        }
        let output = sort_reference(&self.spec.sort, &whole).unwrap_or_default();
        let kept = sums_of(&self.spec.sort.format, &output);
        Expected { output, kept, input: input.plus(&malformed), malformed, places }
    }

    /// What the manifest says, and the output, must be what follows from the input.
    pub fn check(&self, manifest: &Manifest, output: &[u8]) -> Result<(), String> {
        let expected = self.expected();
        if output != expected.output {
            let (found, wanted) = (output.len(), expected.output.len());
            return Err(format!(
                "its output is not that of the reference ({found} bytes, {wanted} expected)"
            ));
        }
        let left_out: BTreeSet<&str> = self
            .pinned()
            .filter(|(at, _)| self.left_out.contains(at))
            .map(|(_, object)| object.url.as_str())
            .collect();
        let named: BTreeSet<&str> =
            manifest.skipped_objects.iter().map(|skipped| skipped.object.as_str()).collect();
        if named != left_out {
            return Err(format!("its manifest names {named:?} as left out, and {left_out:?} are"));
        }
        let said = (manifest.input, manifest.skipped, manifest.sums);
        if said != (expected.input, expected.malformed, expected.kept) {
            let Expected { input, malformed, kept, .. } = expected;
            return Err(format!(
                "the sums of its manifest are {said:?}, not {:?}",
                (input, malformed, kept)
            ));
        }
        if manifest.sums.plus(&manifest.dropped).plus(&manifest.skipped) != manifest.input {
            return Err("the sums of its manifest do not close".to_owned());
        }
        let places: Vec<_> = manifest
            .bad_records
            .iter()
            .map(|bad| (bad.object.clone(), bad.offset, bad.bytes))
            .collect();
        if places.iter().collect::<BTreeSet<_>>().len() != places.len() {
            return Err(format!("its manifest names a malformed record twice: {places:?}"));
        }
        if let Some(place) = places.iter().find(|place| !expected.places.contains(place)) {
            return Err(format!(
                "its manifest names a malformed record {place:?}, which there is not"
            ));
        }
        let named = expected.places.len().min(PLACES_KEPT);
        if places.len() == named {
            Ok(())
        } else {
            Err(format!(
                "its manifest names {} malformed records, not the first {named}",
                places.len()
            ))
        }
    }

    /// What each partition of a list holds, where all its runs are known.
    fn partitions_of(&self, runs: &BTreeMap<u32, PinnedRun>) -> Option<Vec<Sums>> {
        let mut partitions: Vec<Sums> = Vec::new();
        for run in runs.values() {
            let pieces = self.runs.get(&run.attempt)?.pieces.as_ref()?;
            partitions.resize(pieces.len(), Sums::default());
            partitions.iter_mut().zip(pieces).for_each(|(sum, piece)| sum.merge(piece));
        }
        Some(partitions)
    }
}

fn sums_of(format: &Format, stored: &[u8]) -> Sums {
    let mut sums = Sums::default();
    match format.frame() {
        Frame::Fixed(len) => stored.chunks(len as usize).for_each(|record| sums.add(record)),
        Frame::Terminated(terminator) => {
            let body = stored.strip_suffix(&[terminator]).unwrap_or(stored);
            let lines = body.split(|byte| *byte == terminator).filter(|_| !stored.is_empty());
            lines.for_each(|line| sums.add(line));
        }
    }
    sums
}

impl Core {
    /// A job is journalled: its plan stands, and pins the input as it is listed. Of workers that
    /// offer files all are there, or none.
    pub(super) fn check_submitted(&mut self, submitted: &JobSubmitted) {
        let stored =
            self.store.objects.get(&key_of(&submitted.plan.url)).map(|object| object.bytes.clone());
        let plan = stored.and_then(|bytes| Plan::from_bytes(&bytes).ok());
        let Some(known) = self.oracle.jobs.get_mut(&submitted.job) else { return };
        let Some(plan) = plan else {
            return self.violate(format!("data: the plan of job {} does not stand", submitted.job));
        };
        let pinned: Vec<(&str, u64)> =
            plan.objects.iter().map(|object| (object.url.as_str(), object.bytes)).collect();
        let listed = |object: &&InputObject| match &object.owner {
            None => true,
            Some(owner) => plan.objects.iter().any(|object| object.owner() == Some(owner.as_str())),
        };
        let expected: Vec<(&str, u64)> = known
            .objects
            .iter()
            .filter(listed)
            .map(|object| (object.url.as_str(), object.bytes.len() as u64))
            .collect();
        if pinned != expected {
            let what =
                format!("data: job {} is to sort {pinned:?}, not {expected:?}", submitted.job);
            return self.violate(what);
        }
        let owned = plan.objects.iter().any(|object| object.owner().is_some());
        known.plan = Some(plan);
        if owned {
            self.mark("files of workers");
        }
        let owner = self.oracle.owners_of(&submitted.job).pop_first();
        if let Some((owner, (pause_us, for_us))) = owner.zip(self.oracle.loses_owner) {
            self.after(pause_us, Event::Act(Act::Kill(Whom::Named(owner), for_us)));
        }
    }

    /// An input object is left out: it must be one that could not be read.
    pub(super) fn check_left_out(&mut self, job: &JobId, object: u32) {
        self.mark("input left out");
        let Some(known) = self.oracle.jobs.get_mut(job) else { return };
        known.left_out.insert(object);
        let allowed = known.spec.bad_inputs == BadInputs::Skip;
        let pinned =
            known.plan.as_ref().and_then(|plan| plan.objects.get(object as usize)).cloned();
        let Some((pinned, input)) =
            pinned.and_then(|pinned| Some((pinned.clone(), known.object(&pinned.url)?)))
        else {
            return self.violate(format!(
                "data: job {job} leaves out object {object}, which it does not have"
            ));
        };
        let torn = known.whole_bytes(input) < input.bytes.len();
        let key = input.key.clone();
        let changed =
            self.store.objects.get(&key).is_none_or(|found| found.version != pinned.version);
        if torn {
            self.mark("malformed records of what is left out");
        }
        if !allowed
            || !(self.store.unreadable.contains_key(&key) || changed || self.drawn.short_read > 0)
        {
            self.violate(format!("data: job {job} leaves out {}, which can be read", pinned.url));
        }
    }

    /// A run is committed: what its pieces hold is noted while it stands.
    pub(super) fn note_run(&mut self, run: &RunCommitted) {
        let copies = std::iter::once(&run.url).chain(&run.replica);
        let pieces = copies.filter_map(|url| {
            let bytes = &self.store.objects.get(&key_of(url))?.bytes;
            let footer_at = bytes.len().checked_sub(RunFooter::LEN)?;
            let footer = RunFooter::decode(&bytes[footer_at..], run.bytes).ok()?;
            let index = bytes.get(usize::try_from(footer.index_offset()).ok()?..footer_at)?;
            let index = RunIndex::decode(index, &footer).ok()?;
            let sound = footer.index_digest() == run.index_digest;
            sound.then(|| index.pieces().iter().map(|piece| piece.sums).collect::<Vec<_>>())
        });
        let pieces = pieces.into_iter().next();
        let pinned = PinnedRun {
            attempt: run.attempt,
            url: run.url.clone(),
            replica: run.replica.clone(),
            bytes: run.bytes,
            index_digest: run.index_digest,
        };
        let (input, out) = (run.input, run.kept.plus(&run.dropped).plus(&run.skipped));
        if let Some(known) = self.oracle.jobs.get_mut(&run.job) {
            known.runs.insert(run.attempt, Committed { pinned, input, out, pieces });
        }
    }

    /// A list of runs is pinned: one committed run of each split, which together hold the input;
    /// each partition what it held in every list before.
    pub(super) fn check_list(&mut self, job: &JobId, runs: &BlobRef) {
        let stored = self.store.objects.get(&key_of(&runs.url)).map(|object| object.bytes.clone());
        let decoded = stored.and_then(|bytes| PinnedRuns::from_bytes(&bytes).ok());
        let Some(known) = self.oracle.jobs.get_mut(job) else { return };
        let Some(decoded) = decoded.filter(|decoded| decoded.job == *job) else {
            return self.violate(format!("data: the list of runs {} does not stand", runs.url));
        };
        let again = !known.lists.is_empty();
        let splits = known.plan.as_ref().map_or(0, |plan| plan.splits.len());
        let listed: BTreeMap<u32, PinnedRun> =
            decoded.runs.iter().map(|run| (run.attempt.task.index, run.clone())).collect();
        let each = decoded.runs.len() == splits && listed.keys().copied().eq(0..splits as u32);
        let committed: Vec<&Committed> = listed
            .values()
            .filter_map(|run| {
                known.runs.get(&run.attempt).filter(|committed| committed.pinned == *run)
            })
            .collect();
        let wrong = if !each || committed.len() != splits {
            Some(format!(
                "data: the list of runs {} is not one committed run of each split",
                runs.url
            ))
        } else {
            let sum = |of: fn(&Committed) -> &Sums| {
                committed.iter().fold(Sums::default(), |sums, committed| sums.plus(of(committed)))
            };
            let (read, out, input) =
                (sum(|run| &run.input), sum(|run| &run.out), known.expected().input);
            (read != input || out != input).then(|| {
                format!(
                    "data: the list of runs {} reads {read} and holds {out} of {input}",
                    runs.url
                )
            })
        };
        let partitions = known.partitions_of(&listed);
        let before = known.lists.values().find_map(|list| list.partitions.clone());
        let uneven = before.zip(partitions.clone()).is_some_and(|(before, now)| before != now);
        known
            .lists
            .insert(runs.url.clone(), List { digest: runs.digest, runs: listed, partitions });
        known.newest_list.clone_from(&runs.url);
        if let Some(wrong) = wrong {
            self.violate(wrong);
        }
        if uneven {
            self.violate(format!(
                "P3: partitions of the list {} hold what they did not hold before",
                runs.url
            ));
        }
        if again {
            self.mark("pinned again");
        }
    }

    /// A merge begins: its list must be one that was pinned.
    pub(super) fn check_merge_begins(&mut self, job: &JobId, attempt: &AttemptId, list: &BlobRef) {
        let Some(known) = self.oracle.jobs.get_mut(job) else { return };
        let pinned = known.lists.get(&list.url).is_some_and(|known| known.digest == list.digest);
        known.merges.insert(*attempt, list.url.clone());
        if !pinned {
            self.violate(format!(
                "data: {attempt} of {job} merges a list that was not pinned: {}",
                list.url
            ));
        }
    }

    /// A merge reads from a run: it must be one that its list pins, or that one's replica.
    pub(super) fn check_run_read(&mut self, job: &JobId, attempt: &AttemptId, url: &str) {
        let Some(known) = self.oracle.jobs.get(job) else { return };
        let list = known.merges.get(attempt).and_then(|list| known.lists.get(list));
        let is = |run: &PinnedRun| run.url == url || run.replica.as_deref() == Some(url);
        if !list.is_some_and(|list| list.runs.values().any(is)) {
            self.violate(format!(
                "data: {attempt} of {job} reads {url}, which its list does not pin"
            ));
        }
    }

    /// Takes the last object off the order of a sort, as a worker does that leaves out the end of
    /// its split.
    pub(super) fn tear(&mut self, run: &mut RunAttempt) {
        let Work::Sort { skip, .. } = &mut run.work else { return };
        let plan = self.oracle.jobs.get(&run.job).and_then(|known| known.plan.as_ref());
        let split = plan.and_then(|plan| plan.splits.get(run.attempt.task.index as usize));
        let mut objects = split.into_iter().flatten().map(|interval| interval.object);
        let Some(last) = objects.rfind(|object| !skip.contains(object)) else { return };
        skip.push(last);
        self.mark("input torn");
    }

    /// A part is committed: it holds what the runs of the one list hold that its merge has read.
    pub(super) fn check_sources(&mut self, part: &PartCommitted) {
        let Some(known) = self.oracle.jobs.get_mut(&part.job) else { return };
        let url = known.merges.get(&part.attempt).cloned().unwrap_or_default();
        let list = known.lists.get(&url);
        let older = url != known.newest_list;
        let held = list.map(|list| {
            list.partitions.as_ref().map(|sums| {
                // Without input there are no runs, and one part.
                sums.get(part.partition as usize).copied().unwrap_or_default()
            })
        });
        let found = part.kept.plus(&part.dropped);
        known.parts.insert(part.partition, part.attempt);
        match held {
            None => self.violate(format!(
                "data: {} of {} was merged from no \
                list",
                part.attempt, part.job
            )),
            Some(Some(held)) if held != found => self.violate(format!(
                "data: {} of {} holds and drops {found}, but the runs of its list have {held} for \
                    it",
                part.attempt, part.job
            )),
            _ if older => self.mark("part of an older list"),
            _ => {}
        }
    }

    /// The commit is decided: every part that is going to be published was seen when it was
    /// committed.
    pub(super) fn check_decided(&mut self, job: &JobId) {
        let (Some(known), Some(durable)) =
            (self.oracle.jobs.get(job), self.ledger.truth.jobs.get(job))
        else {
            return;
        };
        let parts = durable.parts.iter().map(|(at, part)| (*at, part.attempt));
        let whole = durable.parts.keys().copied().eq(0..durable.partitions());
        if !whole || !parts.eq(known.parts.iter().map(|(at, attempt)| (*at, *attempt))) {
            self.violate(format!(
                "data: job {job} publishes parts that were not merged from a pinned list"
            ));
        }
    }

    /// A run was lost while merging: what it was made of may not be there any more either.
    pub(super) fn spoil_repair(&mut self, job: &JobId, split: u32) {
        let Some(known) =
            self.oracle.jobs.get(job).filter(|known| known.spec.bad_inputs == BadInputs::Skip)
        else {
            return;
        };
        let pieces = known.plan.as_ref().and_then(|plan| plan.splits.get(split as usize));
        let object = pieces
            .and_then(|pieces| pieces.iter().find(|piece| !known.left_out.contains(&piece.object)));
        let input = object.and_then(|piece| known.pinned().find(|(at, _)| *at == piece.object));
        if let Some(key) =
            input.map(|(_, input)| input.key.clone()).filter(|_| self.oracle.spoils_repairs)
        {
            self.store
                .unreadable
                .insert(key, Unreadable { kind: ErrorKind::Invalid, always: true });
        }
    }

    /// What a job's output must be.
    pub(super) fn check_expected(
        &self,
        job: &JobId,
        manifest: &Manifest,
        output: &[u8],
    ) -> Result<(), String> {
        let known = self.oracle.jobs.get(job).ok_or("nobody has asked for it")?;
        known.check(manifest, output)
    }

    /// Whether a job is accepted, and has not ended.
    pub(super) fn runs(&self, job: &JobId) -> bool {
        self.ledger.truth.jobs.get(job).is_some_and(|job| !job.state.is_terminal())
    }
}
