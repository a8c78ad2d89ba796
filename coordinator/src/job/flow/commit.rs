//! The commit: it is decided once nothing speaks against it, and then made visible.
//!
//! A job that fails or is cancelled leaves OUTPUT as it was, because no part is visible before the
//! commit is decided. After the decision it can only go on: publishing is repeated until it
//! succeeds, by this leader or the next, and each of them writes the very manifest that was made
//! before the decision.

use muster_kernel::splitters::SAMPLE_KEY_MAX;
use muster_platform::store::BlobUrl;
use muster_protocol::api::{KeyEncoding, Manifest, ManifestPart, PhaseTimes, QuarantineFile};
use muster_protocol::ids::JobId;
use muster_protocol::planted::{self, Bug};
use muster_protocol::wire::BlobRef;
use muster_protocol::{Error, Result, names};

use crate::job::flow::active::Active;
use crate::job::flow::barriers::check_parts;
use crate::job::io::{Effect, ManifestBytes, Publication, PublishedPart, Unremoved};
use crate::job::law::Step;
use crate::job::ledger::Waiters;
use crate::job::ledger::durable::DurableJob;
use crate::job::view::status::{bad_places, recoveries, skipped_objects};
use crate::job::{Machine, SharedPlan};
use crate::journal::record::{JobOutcome, Record};

/// Version of the manifest.
const MANIFEST_VERSION: u32 = 1;

impl Machine {
    /// The commit is decided: what was made becomes visible.
    pub(crate) fn publish(&mut self, job: &JobId) {
        let Some((durable, active)) = self.jobs.both_mut(job) else { return };
        self.view.is_urgent(job);
        if active.step() != Step::Publishing {
            active.begins(self.now_ms);
            active.tasks.close();
        }
        let (Some(plan), Some(stored)) = (active.plan.clone(), durable.manifest.clone()) else {
            active.advance(Step::AwaitingPlan);
            return self.jobs.touch(job);
        };
        active.advance(Step::Publishing);
        let manifest = if planted::is(Bug::RemakeManifest) {
            manifest_bytes(durable, active, &plan).map(ManifestBytes::Made)
        } else {
            Ok(ManifestBytes::Stored(stored))
        };
        match manifest.map(|manifest| publication(durable, active, &plan, manifest)) {
            Ok(publication) => {
                self.jobs.touch(job);
                self.out
                    .push(Effect::Publish { job: job.clone(), publication: Box::new(publication) });
            }
            Err(error) => self.give_up_commit(job, error),
        }
    }

    pub(crate) fn published(&mut self, job: &JobId, result: Result<Unremoved>) {
        let Some(active) =
            self.jobs.active_mut(job).filter(|active| active.step() == Step::Publishing)
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
    pub(crate) fn give_up_commit(&mut self, job: &JobId, error: Error) {
        self.event(Some(job), "error", "commit-impossible", error.message.clone());
        self.dead_letter(job, &error);
        self.end(job, JobOutcome::Failed, Some(error), Waiters::default());
    }

    /// The last barrier: the parts sum to the runs and follow one another; nobody else's object is
    /// where they are to stand; and the manifest is kept, so that whoever publishes publishes the
    /// same. Only then the commit is decided.
    pub(crate) fn prepare_commit(&mut self, job: &JobId, plan: &SharedPlan) {
        let Some((durable, active)) = self.jobs.both_mut(job) else { return };
        active.merged_ms = active.elapsed_ms(self.now_ms);
        let manifest = check_parts(durable).and_then(|()| manifest_bytes(durable, active, plan));
        let manifest = match manifest {
            Ok(manifest) => ManifestBytes::Made(manifest),
            Err(error) => return self.fail(job, error),
        };
        active.advance(Step::PreparingCommit);
        active.writing += 1;
        let publication = Box::new(publication(durable, active, plan, manifest));
        let url = active.scratch.join(&names::manifest_path(self.epoch, self.nonces.next()));
        let ticket = self.flow.tickets.issue(job);
        self.out.push(Effect::PrepareCommit { job: job.clone(), publication, url, ticket });
    }

    pub(crate) fn decide(&mut self, job: &JobId, manifest: BlobRef) {
        let Some(active) = self.jobs.active_mut(job) else { return };
        active.advance(Step::Deciding);
        active.moved(self.now_ms);
        let took_ms = active.merged_ms;
        self.measure_parts(job);
        self.record(Record::CommitDecided { job: job.clone(), took_ms, manifest });
    }
}

/// What a commit makes visible.
pub(crate) fn publication(
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
pub(crate) fn manifest_bytes(
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
        dropped: durable.dropped(),
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
