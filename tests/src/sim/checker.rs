//! What must hold: after every entry of the journal, every call to the store, every answer and
//! every step of a leader; and at the end.

use muster_coordinator::job::io::Reply;
use muster_coordinator::job::ledger::durable::DurableJob;
use muster_coordinator::journal::record::{
    GenerationBegan, JobEnded, JobOutcome, PartCommitted, Record, RunCommitted,
};
use muster_kernel::run::{RunFooter, RunIndex};
use muster_platform::store::BlobUrl;
use muster_protocol::api::{JobState, Manifest};
use muster_protocol::ids::{Epoch, JobId, Phase, TaskId, WorkerId};
use muster_protocol::names;
use muster_protocol::wire::{Outcome, Report, RunAttempt};

use super::core::{Core, MS, Node, Way};
use super::exec::lock;
use super::jobs::UNREADABLE;
use super::store::{Call, Made};
use super::world::World;

/// The key of an object's URL.
pub(super) fn key_of(url: &str) -> String {
    url.parse::<BlobUrl>().map(|url| url.key().to_owned()).unwrap_or_default()
}

/// A record in a few words.
pub fn describe(record: &Record) -> String {
    match record {
        Record::RunCommitted(run) => format!("run-committed {} {}", run.job, run.attempt),
        Record::PartCommitted(part) => format!("part-committed {} {}", part.job, part.attempt),
        Record::UploadOpened { job, attempt, upload, .. } => {
            format!("upload-opened {job} {attempt} {upload}")
        }
        Record::UploadRevoked { job, attempt, .. } => format!("upload-revoked {job} {attempt}"),
        Record::EpochBegan { epoch, .. } => format!("epoch-began {epoch}"),
        Record::JobSubmitted(submitted) => format!("job-submitted {}", submitted.job),
        Record::BoundariesChosen { job, partitions, .. } => {
            format!("boundaries-chosen {job}, {partitions} partitions")
        }
        Record::RunsPinned { job, .. } => format!("runs-pinned {job}"),
        Record::CommitDecided { job, .. } => format!("commit-decided {job}"),
        Record::JobEnded(ended) => {
            let error =
                ended.error.as_deref().map(|error| format!(": {error}")).unwrap_or_default();
            format!("job-ended {} {:?}{error}", ended.job, ended.outcome)
        }
        Record::JobCleaned { job } | Record::JobForgotten { job } => {
            format!("{} {job}", record.kind())
        }
        other => other.kind().to_owned(),
    }
}

/// Store calls of one step that its leader was sure of: so long they may take, in microseconds.
const AUTHORITY_SLACK_US: u64 = 50 * MS;

impl Core {
    /// An entry lands: what it names must exist, and be what it says.
    pub(super) fn check_record(&mut self, _node: Node, record: &Record) {
        match record {
            Record::JobSubmitted(submitted) => self.check_submitted(submitted),
            Record::ObjectSkipped { job, object, .. } => self.check_left_out(job, *object),
            Record::RunCommitted(run) => {
                self.note_run(run);
                self.check_run(run);
            }
            Record::RunsPinned { job, runs, .. } => self.check_list(job, runs),
            Record::PartCommitted(part) => {
                self.check_sources(part);
                self.check_part(part);
            }
            Record::CommitDecided { job, .. } => self.check_decided(job),
            Record::UploadRevoked { .. } => self.mark("upload revoked"),
            Record::GenerationBegan(began) => self.note_generation(began),
            Record::JobEnded(ended) => self.note_end(ended),
            _ => {}
        }
    }

    fn note_generation(&mut self, began: &GenerationBegan) {
        let task = TaskId { phase: Phase::Sort, index: began.split };
        if self.oracle.owner_of(&began.job, task).is_some() {
            self.mark("owned run made anew");
        }
        let merging = self
            .ledger
            .truth
            .jobs
            .get(&began.job)
            .is_some_and(|job| job.state == JobState::Merging);
        if merging {
            self.spoil_repair(&began.job, began.split);
        }
        self.mark(if merging {
            "lineage re-run during merging"
        } else {
            "run made anew without what is left out"
        });
    }

    fn note_end(&mut self, ended: &JobEnded) {
        let error = ended.error.clone().unwrap_or_default();
        let merging = self
            .ledger
            .truth
            .jobs
            .get(&ended.job)
            .is_some_and(|job| job.state == JobState::Merging);
        let waited = self.oracle.get_mut(&ended.job).is_some_and(|known| known.waited);
        let tried =
            self.oracle.keys_of(&ended.job).iter().any(|key| self.store.tried.contains(key));
        let left_out = self.oracle.get_mut(&ended.job).is_some_and(|known| known.leaves_out());
        let owners = self.oracle.owners_of(&ended.job);
        let lost = |info: &(Node, &super::core::NodeInfo)| {
            owners.contains(&info.1.name) && self.is_lost(info.0)
        };
        let without = self.nodes.iter().enumerate().any(|info| lost(&info));
        match ended.outcome {
            JobOutcome::Succeeded => {
                self.mark("job succeeded");
                let marks = [
                    (waited, "owner came back"),
                    (without, "owner not needed any more"),
                    (tried && !left_out, "input read at another try"),
                ];
                marks.into_iter().filter(|(is, _)| *is).for_each(|(_, mark)| self.mark(mark));
            }
            JobOutcome::Failed => {
                self.mark("job failed");
                if UNREADABLE.iter().any(|(_, text)| error.contains(text)) {
                    self.mark(if merging {
                        "unreadable input in a repair"
                    } else {
                        "unreadable input fails the job"
                    });
                }
                if error.contains("no other can read") {
                    self.mark("owner lost for good");
                }
                if error.contains("rounds of sampling") {
                    self.mark("too uneven after all rounds");
                }
            }
            JobOutcome::Cancelled => self.mark("job cancelled"),
        }
    }

    /// What a leader tells people of a job.
    pub(super) fn note_event(&mut self, epoch: Epoch, kind: &str, job: Option<&JobId>) {
        let Some(known) = job.and_then(|job| self.oracle.get_mut(job)) else { return };
        match kind {
            "waiting-for-worker" => {
                known.waited = true;
                self.mark("owner waited for");
            }
            "sampling-again" => {
                known.sampled_again.insert(epoch);
                let leaders = known.sampled_again.len();
                self.mark("sampled again");
                if leaders > 1 {
                    self.mark("sampled again under two leaders");
                }
            }
            _ => {}
        }
    }

    fn check_run(&mut self, run: &RunCommitted) {
        let key = key_of(&run.url);
        if self.store.rotted.contains(&key) {
            return;
        }
        let stands =
            |key: &String| self.store.rotted.contains(key) || self.store.objects.contains_key(key);
        if let Some(url) = run.replica.as_ref().filter(|url| !stands(&key_of(url))) {
            return self
                .violate(format!("data: the replica {url} of a committed run does not stand"));
        }
        let sound = self.store.objects.get(&key).is_some_and(|object| {
            let footer_at = object.bytes.len().saturating_sub(RunFooter::LEN);
            object.bytes.len() as u64 == run.bytes
                && RunFooter::decode(&object.bytes[footer_at..], run.bytes).is_ok_and(|footer| {
                    footer.index_digest() == run.index_digest && self.reads(&object.bytes, &footer)
                })
        });
        if !sound {
            self.violate(format!(
                "data: the committed run {} does not exist as it is named",
                run.url
            ));
        }
    }

    fn reads(&self, bytes: &[u8], footer: &RunFooter) -> bool {
        let at = usize::try_from(footer.index_offset()).unwrap_or(usize::MAX).min(bytes.len());
        RunIndex::decode(&bytes[at..bytes.len() - RunFooter::LEN], footer).is_ok()
    }

    fn check_part(&mut self, part: &PartCommitted) {
        let whole = self.store.uploads.get(&part.upload).map(|open| {
            let whole = open.whole();
            (whole.len() as u64, muster_protocol::wire::digest(&whole))
        });
        if whole != Some((part.bytes, part.checksum)) {
            self.violate(format!(
                "data: part {} of {} is committed with {} bytes, but its upload {} holds {whole:?}",
                part.partition, part.job, part.bytes, part.upload
            ));
        }
    }

    /// A coordinator calls the store. Once another one has begun an epoch, the one before it may
    /// carry on what it was sure of by then, and no more: the answer of its fence serves for a
    /// bounded time, and a call that was let through may be one of a short step.
    pub(super) fn check_authority(&mut self, node: Node, call: &Call) {
        let changes = matches!(
            call,
            Call::Delete { .. } | Call::Abort { .. } | Call::Complete { .. } | Call::Put { .. }
        );
        let Some(epoch) = self.nodes[node].leads.filter(|_| changes) else { return };
        // An upload that it opened itself is known to nobody else, so it may always take it back.
        let process = (node, self.nodes[node].life);
        if let Call::Abort { upload, .. } = call
            && self.store.openers.get(upload) == Some(&process)
        {
            return;
        }
        let bound_us = self.fence_us + self.fence_us / 2 + AUTHORITY_SLACK_US;
        if epoch < self.ledger.newest() && self.now_us > self.ledger.newest_us + bound_us {
            let (name, since_ms) =
                (self.nodes[node].name.clone(), (self.now_us - self.ledger.newest_us) / MS);
            self.violate(format!(
                "authority: {name} of epoch {epoch} changes a store ({}), {since_ms} ms after \
                    another epoch began",
                brief(call)
            ));
        }
    }

    /// A call reaches the store: it must not take away what counts, nor show what is not decided.
    pub(super) fn check_store_call(&mut self, node: Node, call: &Call, late: bool) {
        let what = match call {
            Call::Delete { key } => self.why_keep(key),
            Call::Abort { upload, .. } => self.why_keep_open(upload),
            Call::Complete { key, upload, .. } => {
                let whole = || self.store.uploads.get(upload).map(super::store::Upload::whole);
                let visible =
                    self.why_not_visible(key, Some(upload)).or_else(|| self.why_mixed(key, upload));
                visible.or_else(|| self.why_other_manifest(key, &whole()?))
            }
            Call::Put { key, bytes } => {
                self.why_not_visible(key, None).or_else(|| self.why_other_manifest(key, bytes))
            }
            _ => None,
        };
        if let Call::Delete { key } | Call::Abort { key, .. } = call
            && self.of_cleaned_job(key)
            && self.nodes[node].name.starts_with('c')
        {
            self.mark("late sweep");
        }
        if let Call::Put { key, .. } | Call::Complete { key, .. } = call
            && late
            && self.is_manifest(key)
        {
            self.store.written_late.insert(key.clone());
        }
        // By name, long after it was right to do so: no store call of today makes sure of what it
        // meets. A second one meets what the first has left.
        if let Call::Delete { key } | Call::Put { key, .. } = call
            && late
            && (self.store.objects.contains_key(key) || self.store.changed_late.contains(key))
            && (what.is_some() || self.is_manifest(key))
            && self.ledger.truth.jobs.values().any(|job| job.commit_decided && is_output(job, key))
        {
            self.mark("late change of OUTPUT by name");
            self.store.changed_late.insert(key.clone());
            return;
        }
        if let Some(why) = what {
            let name = self.nodes[node].name.clone();
            self.violate(format!("data: {name} {}: {why}", brief(call)));
        }
    }

    /// Why an object must stay.
    fn why_keep(&self, key: &str) -> Option<String> {
        if self.store.foreign.contains(key) && self.replaced_by(key).is_none() {
            return Some("it is not this deployment's, or not yet replaced".to_owned());
        }
        for (id, job) in &self.ledger.truth.jobs {
            let is = |url: &str| key_of(url) == *key;
            let live = !job.state.is_terminal();
            let pinned = job.runs_pinned.iter().chain(&job.manifest).any(|kept| is(&kept.url));
            let visible = job.commit_decided && is_output(job, key) && self.is_manifest_of(key, id);
            if live && visible && self.newest_of_output(id, job) {
                return Some(format!("the manifest of job {id} is visible already"));
            }
            let splitters = job.boundaries.as_ref().and_then(|chosen| chosen.splitters.as_ref());
            let needed = is(&job.submitted.plan.url)
                || pinned
                || splitters.is_some_and(|splitters| is(&splitters.url))
                || job
                    .runs
                    .values()
                    .any(|run| is(&run.url) || run.replica.as_deref().is_some_and(is))
                || job
                    .runs
                    .values()
                    .any(|run| run.quarantine.as_ref().is_some_and(|lines| is(&lines.url)));
            if live && needed {
                return Some(format!("job {id} is {} and needs it", job.state));
            }
            if job.state == JobState::Succeeded
                && self.newest_of_output(id, job)
                && is_output(job, key)
            {
                return Some(format!("it is the output of job {id}, which has succeeded"));
            }
        }
        None
    }

    /// Whether no later job has taken this one's OUTPUT.
    fn newest_of_output(&self, id: &JobId, job: &DurableJob) -> bool {
        let later = |(other, theirs): (&JobId, &DurableJob)| {
            other != id
                && theirs.submitted.output == job.submitted.output
                && theirs.submitted.order > job.submitted.order
                && theirs.commit_decided
        };
        !self.ledger.truth.jobs.iter().any(later)
    }

    /// The job that may replace what stood in its OUTPUT.
    fn replaced_by(&self, key: &str) -> Option<&JobId> {
        let below = |job: &DurableJob| {
            let output = key_of(&job.submitted.output);
            key.strip_prefix(output.as_str()).is_some_and(|rest| rest.starts_with('/'))
        };
        self.ledger
            .truth
            .jobs
            .iter()
            .find(|(_, job)| job.commit_decided && below(job))
            .map(|(id, _)| id)
    }

    fn why_keep_open(&self, upload: &str) -> Option<String> {
        if self.store.foreign.contains(upload) {
            return Some("it was open before, and is somebody else's".to_owned());
        }
        let needed = |job: &DurableJob| {
            let ended = matches!(job.state, JobState::Failed | JobState::Cancelled);
            !ended && job.parts.values().any(|part| part.upload == upload)
        };
        let open = self.store.uploads.contains_key(upload);
        let found = self.ledger.truth.jobs.iter().find(|(_, job)| open && needed(job));
        found.map(|(id, job)| format!("it is a committed part of job {id}, which is {}", job.state))
    }

    fn why_not_visible(&self, key: &str, upload: Option<&String>) -> Option<String> {
        let of = |job: &&DurableJob| {
            let output = key_of(&job.submitted.output);
            let rest = key.strip_prefix(output.as_str()).and_then(|rest| rest.strip_prefix('/'));
            rest.is_some_and(|rest| names::is_output_name(rest, &job.submitted.extension))
        };
        let jobs: Vec<&DurableJob> = self.ledger.truth.jobs.values().filter(of).collect();
        if jobs.is_empty() {
            return None;
        }
        let may = |job: &&&DurableJob| {
            job.commit_decided
                && upload.is_none_or(|upload| {
                    // Parts are forgotten with the clean-up; whoever repeats a completion then
                    // finds it done.
                    job.cleaned
                        || job.parts.values().any(|part| part.upload == *upload)
                        || self.is_manifest(key)
                })
        };
        match jobs.iter().find(may) {
            Some(_) => None,
            None => Some("OUTPUT would change before the commit is decided".to_owned()),
        }
    }

    /// Whether the manifest that stands under a key is that of a job.
    fn is_manifest_of(&self, key: &str, job: &JobId) -> bool {
        let stands = self.store.objects.get(key).filter(|_| self.is_manifest(key));
        stands
            .and_then(|object| serde_json::from_slice::<Manifest>(&object.bytes).ok())
            .is_some_and(|of| of.job == *job)
    }

    /// Why `_SUCCESS` must not hold these bytes: each leader of a job writes those that the
    /// decision names.
    fn why_other_manifest(&self, key: &str, bytes: &[u8]) -> Option<String> {
        let manifest: Manifest =
            serde_json::from_slice(bytes).ok().filter(|_| self.is_manifest(key))?;
        let decided = self.ledger.truth.jobs.get(&manifest.job)?.manifest.as_ref()?;
        let same = muster_protocol::wire::digest(bytes) == decided.digest;
        (!same).then(|| {
            format!(
                "it is not the manifest that was kept when the commit of {} was decided",
                manifest.job
            )
        })
    }

    /// Why a part must not appear yet: beside the `_SUCCESS` of another job OUTPUT would look
    /// whole.
    fn why_mixed(&self, key: &str, upload: &str) -> Option<String> {
        let of = |job: &DurableJob| {
            job.commit_decided && job.parts.values().any(|part| part.upload == upload)
        };
        let (id, job) = self.ledger.truth.jobs.iter().find(|(_, job)| of(job))?;
        let success = format!("{}/{}", key_of(&job.submitted.output), names::SUCCESS);
        let open = self.store.uploads.contains_key(upload) && key != success;
        let stands =
            self.store.objects.contains_key(&success) && !self.is_manifest_of(&success, id);
        let late = [&self.store.changed_late, &self.store.written_late]
            .iter()
            .any(|keys| keys.contains(&success));
        let mixed = open && stands && !late;
        mixed.then(|| {
            format!("a part of job {id} would stand beside the _SUCCESS of what was there before")
        })
    }

    fn is_manifest(&self, key: &str) -> bool {
        key.ends_with(names::SUCCESS)
    }

    /// A worker is told that its report is recorded: the journal must say so.
    pub(super) fn check_recorded(&mut self, report: &Report) {
        let index = report.attempt.task.index;
        let Some(job) = self.ledger.truth.jobs.get(&report.job).filter(|job| !job.cleaned) else {
            return;
        };
        let upload = |upload: &str| {
            job.upload(&report.attempt).is_some_and(|open| open.upload == upload)
                || job.revoked.iter().any(|gone| gone.attempt == report.attempt)
                || job.parts.get(&index).is_some_and(|part| part.attempt == report.attempt)
        };
        let stands = match &report.outcome {
            Outcome::Sorted(_) => {
                let lost = job.generation(index) > report.attempt.generation;
                lost || job.runs.get(&index).is_some_and(|run| run.attempt == report.attempt)
            }
            Outcome::Merged(_) => {
                job.parts.get(&index).is_some_and(|part| part.attempt == report.attempt)
            }
            Outcome::UploadOpened { upload: id } => upload(id),
            Outcome::Sampled { .. }
            | Outcome::SampledToScratch { .. }
            | Outcome::Failed { .. }
            | Outcome::RunDamaged { .. }
            | Outcome::InputUnreadable { .. } => true,
        };
        if !stands {
            self.violate(format!(
                "recovery: the report on {} is acknowledged before its record stands",
                report.attempt
            ));
        }
    }
}

fn is_output(job: &DurableJob, key: &str) -> bool {
    let output = key_of(&job.submitted.output);
    let rest = key.strip_prefix(output.as_str()).and_then(|rest| rest.strip_prefix('/'));
    let part = |partition| names::part_name(partition, &job.submitted.extension);
    rest.is_some_and(|rest| {
        rest == names::SUCCESS || (0..job.partitions()).any(|partition| part(partition) == rest)
    })
}

fn brief(call: &Call) -> String {
    match call {
        Call::Delete { key } => format!("deletes {key}"),
        Call::Abort { key, upload } => format!("aborts {upload} of {key}"),
        Call::Complete { key, upload, .. } => format!("completes {upload} of {key}"),
        Call::Put { key, .. } => format!("writes {key}"),
        other => format!("{other:?}"),
    }
}

impl World {
    /// The newest leader holds what the journal says, whenever nothing of it is on its way.
    pub(super) fn check_leader(&mut self, at: usize) {
        let Some(super::coordinator::Role::Leads(leader)) = &self.coordinators[at].role else {
            return;
        };
        let core = &mut *lock(&self.shared);
        let newest = leader.machine.epoch() == core.ledger.truth.epoch;
        if newest && leader.unacknowledged == 0 && *leader.machine.durable() != core.ledger.truth {
            let (durable, truth) = (leader.machine.durable(), &core.ledger.truth);
            let differs: Vec<String> = truth
                .jobs
                .keys()
                .chain(durable.jobs.keys())
                .filter(|job| truth.jobs.get(job) != durable.jobs.get(job))
                .map(ToString::to_string)
                .collect();
            core.violate(format!(
                "recovery: the leader's state is not that of the journal: {differs:?}"
            ));
        }
        if leader.machine.counters().illegal > 0 {
            core.violate(
                "states: the leader met with a record that contradicts its state".to_owned(),
            );
        }
    }

    /// Nothing is granted by the newest leader that is committed already, and nothing by anybody to
    /// a worker that cannot read its input.
    pub(super) fn check_grant(&mut self, worker: &WorkerId, run: &RunAttempt) {
        let core = &mut *lock(&self.shared);
        let owner = core
            .oracle
            .owner_of(&run.job, run.attempt.task)
            .filter(|owner| *owner != worker.as_str());
        if let Some(owner) = owner.map(str::to_owned) {
            let what = format!(
                "{} of {} is granted to {worker}, but {owner} alone can read it",
                run.attempt, run.job
            );
            return core.violate(format!("authority: {what}"));
        }
        let truth = &core.ledger.truth;
        let Some(job) = truth.jobs.get(&run.job).filter(|_| run.epoch == truth.epoch) else {
            return;
        };
        let index = run.attempt.task.index;
        let committed = match run.attempt.task.phase {
            Phase::Sample => job.boundaries.is_some(),
            Phase::Sort => job.runs.contains_key(&index),
            Phase::Merge => job.parts.contains_key(&index),
        };
        if committed {
            core.violate(format!(
                "authority: {} of {} is granted, but its task is committed",
                run.attempt, run.job
            ));
        }
    }

    /// What a client is told of success must be so.
    pub(super) fn check_api_answer(&mut self, reply: &Reply) {
        let Reply::Job(status) = reply else { return };
        let core = &mut *lock(&self.shared);
        let known = core.ledger.truth.jobs.get(&status.job).map(|job| job.state);
        if status.state == JobState::Succeeded
            && known.is_some_and(|state| state != JobState::Succeeded)
        {
            core.violate(format!(
                "a client is told that {} has succeeded, but it is {known:?}",
                status.job
            ));
        }
    }

    /// The end: outputs, leftovers, and the journal as a new leader would read it.
    pub(super) fn check_end(&mut self) {
        let core = &mut *lock(&self.shared);
        let (replayed, refused) = core.ledger.replay();
        if !refused.is_empty() || replayed != core.ledger.truth {
            core.violate(format!(
                "recovery: the journal does not fold to what was written to it: {refused:?}"
            ));
        }
        for client in &self.clients {
            let Some(job) = core.ledger.truth.jobs.get(&client.spec.job).cloned() else { continue };
            if job.state == JobState::Succeeded {
                if core.newest_of_output(&client.spec.job, &job)
                    && let Err(why) = check_output(core, &client.spec.job, &job)
                {
                    core.violate(format!("job {}: {why}", client.spec.job));
                }
            } else if !job.commit_decided {
                check_rolled_back(core, client);
            }
            if job.state == JobState::Failed
                && let Some(error) = job.ended.as_ref().and_then(|ended| ended.error.clone())
                && !self.allowed.allows(&error)
                && !core.refused_for_a_late_success(&job, &error)
            {
                core.violate(format!(
                    "liveness: job {} failed without a cause in this run: {error}",
                    client.spec.job
                ));
            }
        }
        check_leftovers(core);
    }
}

impl Core {
    /// Whether a job has failed because a deposed leader's late write of the result before it came
    /// after it was submitted: its own version is not the one that it may replace.
    fn refused_for_a_late_success(&self, job: &DurableJob, error: &str) -> bool {
        let success = format!("{}/{}", key_of(&job.submitted.output), names::SUCCESS);
        let named = format!("{}/{}", job.submitted.output, names::SUCCESS);
        self.store.changed_late.contains(&success)
            && error.starts_with(&named)
            && error.contains("has come into OUTPUT since the job was submitted")
    }
}

fn check_output(core: &Core, id: &JobId, job: &DurableJob) -> Result<(), String> {
    let output = key_of(&job.submitted.output);
    let object = |name: &str| core.store.objects.get(&format!("{output}/{name}"));
    if core.store.changed_late.iter().any(|key| is_output(job, key)) {
        return Ok(());
    }
    let success = object(names::SUCCESS).ok_or("it has succeeded, but _SUCCESS is not there")?;
    let manifest: Manifest =
        serde_json::from_slice(&success.bytes).map_err(|e| format!("its manifest: {e}"))?;
    if manifest.job != job.submitted.job {
        return Err(format!("_SUCCESS is that of job {}", manifest.job));
    }
    let mut whole: Vec<u8> = Vec::new();
    for part in &manifest.parts {
        let object = object(&part.name).ok_or_else(|| format!("{} is not there", part.name))?;
        if object.bytes.len() as u64 != part.bytes {
            return Err(format!(
                "{} has {} bytes, not {}",
                part.name,
                object.bytes.len(),
                part.bytes
            ));
        }
        whole.extend_from_slice(&object.bytes);
    }
    core.check_expected(id, &manifest, &whole)?;
    let prefix = format!("{output}/");
    let parts: Vec<&str> = manifest.parts.iter().map(|part| part.name.as_str()).collect();
    let names = core.store.objects.keys().filter_map(|key| key.strip_prefix(&prefix));
    let scratch = |name: &&str| name.split('/').next() == Some(names::SCRATCH_DIR);
    let mut quarantined = 0;
    for file in &manifest.quarantine {
        let Some(found) =
            object(&file.name).filter(|object| object.bytes.len() as u64 == file.bytes)
        else {
            return Err(format!("{} is not there as the manifest names it", file.name));
        };
        quarantined += found.bytes.iter().filter(|byte| **byte == b'\n').count() as u64;
    }
    if !manifest.quarantine.is_empty() && quarantined != manifest.skipped.records {
        return Err(format!(
            "{quarantined} records are quarantined, {} were left out",
            manifest.skipped.records
        ));
    }
    let quarantined = |name: &str| manifest.quarantine.iter().any(|file| file.name == name);
    let belongs = |name: &str| name == names::SUCCESS || parts.contains(&name) || quarantined(name);
    match names.filter(|name| !scratch(name)).find(|name| !belongs(name)) {
        Some(name) => Err(format!("{name} lies in OUTPUT and is none of its parts")),
        None => Ok(()),
    }
}

/// A job that did not come to its commit has left OUTPUT as it was.
fn check_rolled_back(core: &mut Core, client: &super::jobs::Client) {
    let output = format!("{}/", key_of(&client.spec.output));
    let shared =
        core.ledger.truth.jobs.values().any(|job| {
            job.commit_decided && format!("{}/", key_of(&job.submitted.output)) == output
        });
    if shared {
        return;
    }
    let scratch = |key: &str| key.split('/').any(|segment| segment == names::SCRATCH_DIR);
    let found: Vec<(String, usize)> = core
        .store
        .objects
        .iter()
        .filter(|(key, _)| key.starts_with(&output) && !scratch(key))
        .map(|(key, object)| (key.clone(), object.bytes.len()))
        .collect();
    let before: Vec<(String, usize)> =
        client.before.iter().map(|(key, bytes)| (key.clone(), bytes.len())).collect();
    if found != before {
        core.violate(format!("job {}: OUTPUT was {before:?}, and is {found:?}", client.spec.job));
    }
}

/// Nothing is left of what a job knows: all of its scratch, and in OUTPUT what somebody made who is
/// still there.
fn check_leftovers(core: &mut Core) {
    let missing: Vec<String> = core
        .store
        .foreign
        .iter()
        .filter(|what| {
            !core.store.objects.contains_key(*what) && !core.store.uploads.contains_key(*what)
        })
        .filter(|what| core.replaced_by(what).is_none())
        .cloned()
        .collect();
    if !missing.is_empty() {
        core.violate(format!("data: what is not this deployment's is gone: {missing:?}"));
    }
    for (what, made) in core.late_in_scratch() {
        core.violate(format!("P8: {what} is left, made at {} us", made.at_us));
    }
    let uploads = core
        .store
        .uploads
        .iter()
        .filter(|(id, open)| !core.store.foreign.contains(*id) && !is_scratch(&open.key));
    let left: Vec<(String, Made)> =
        uploads.map(|(id, open)| (format!("{id} of {}", open.key), open.made)).collect();
    for (what, made) in left {
        let Some((node, life)) = made.by else { continue };
        // Whoever is cut off for good was never told; and who is dead, or never heard of it, cannot
        // take it back.
        let cut = core.is_cut(node, Way::NatsIn) || core.is_cut(node, Way::NatsOut);
        if cut || !core.nodes[node].up || core.nodes[node].life != life || !made.known {
            core.mark("orphan upload in OUTPUT");
        } else {
            let name = core.nodes[node].name.clone();
            core.violate(format!(
                "P8: {what} is left, made at {} us by {name}, which still runs",
                made.at_us
            ));
        }
    }
}

fn is_scratch(key: &str) -> bool {
    key.split('/').any(|segment| segment == names::SCRATCH_DIR)
}

impl Core {
    /// Whether a key lies in the scratch, or the second scratch, of a job that was cleaned.
    fn of_cleaned_job(&self, key: &str) -> bool {
        let inside = |url: &String| {
            key.strip_prefix(key_of(url).as_str()).is_some_and(|rest| rest.starts_with('/'))
        };
        let cleaned = self.ledger.truth.jobs.values().filter(|job| job.cleaned);
        cleaned
            .map(|job| &job.submitted)
            .any(|job| inside(&job.scratch) || job.replica.as_ref().is_some_and(inside))
    }

    /// What lies in the scratch of jobs that were cleaned, but for what somebody makes who is cut
    /// off for good and was never told.
    pub(super) fn late_in_scratch(&self) -> Vec<(String, Made)> {
        let objects =
            self.store.objects.iter().map(|(key, object)| (key, key.clone(), object.made));
        let uploads = self
            .store
            .uploads
            .iter()
            .map(|(id, open)| (&open.key, format!("{id} of {}", open.key), open.made));
        let told = |made: &Made| {
            made.by.is_none_or(|(node, _)| {
                !self.is_cut(node, Way::NatsIn) && !self.is_cut(node, Way::NatsOut)
            })
        };
        let left =
            objects.chain(uploads).filter(|(key, _, made)| self.of_cleaned_job(key) && told(made));
        left.map(|(_, what, made)| (what, made)).collect()
    }
}
