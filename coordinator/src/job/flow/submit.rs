//! From a client's request to a job: checked, listed, planned, journalled, answered.
//!
//! Until its first record stands a job is only [`Planning`]: a leader that dies forgets it, and the
//! client's repeat begins anew.

use std::sync::Arc;

use muster_kernel::proof::Sums;
use muster_protocol::api::{JobState, JobStatus, PhaseTimes};
use muster_protocol::ids::JobId;
use muster_protocol::plan::{JobSpec, Plan};
use muster_protocol::wire::BlobRef;
use muster_protocol::{Error, Result, names};

use crate::job::flow::active::Active;
use crate::job::flow::plan;
use crate::job::io::{Effect, Listing, Offer, Places, RefusalCode, Reply, ReplyTo};
use crate::job::ledger::Waiters;
use crate::job::{JOBS_MAX, Machine, SharedPlan, overlap};
use crate::journal::record::{JobSubmitted, Record};

/// A job on its way into the journal.
#[derive(Debug)]
pub(crate) struct Planning {
    pub spec: Arc<JobSpec>,
    pub places: Places,
    ticket: u64,
    step: Step,
    waiters: Waiters,
    began_ms: u64,
    unix_ms: u64,
    output_existed: bool,
    plan: Option<SharedPlan>,
    warnings: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Listing,
    Writing,
    Recording,
}

impl Machine {
    pub(crate) fn submit(&mut self, to: ReplyTo, spec: JobSpec, unix_ms: u64) {
        if let Some(known) = self.jobs.known(&spec.job) {
            return match same_request(&known.submitted.spec_json, &spec) {
                true => self.ask_status(to, &spec.job),
                false => self.refuse_other_request(to, &spec.job),
            };
        }
        if let Some(planning) = self.flow.planning.get_mut(&spec.job) {
            if *planning.spec != spec {
                return self.refuse_other_request(to, &spec.job);
            }
            if let Some(dropped) = planning.waiters.push(to) {
                self.refuse(
                    dropped,
                    RefusalCode::Later,
                    Error::retry("the job is still being planned; ask again"),
                );
            }
            return;
        }
        match self.admit(&spec) {
            Ok((places, offers)) => self.begin_planning(to, spec, (places, offers), unix_ms),
            Err((code, error)) => self.refuse(to, code, error),
        }
    }

    fn refuse_other_request(&mut self, to: ReplyTo, job: &JobId) {
        let text = format!(
            "job {job} is known with another request; choose another id, or repeat the very same \
                request"
        );
        self.refuse(to, RefusalCode::Conflict, Error::invalid(text));
    }

    /// Checks all that can be checked without a look at the stores.
    fn admit(&self, spec: &JobSpec) -> Result<(Places, Vec<Offer>), (RefusalCode, Error)> {
        let bad = |error| (RefusalCode::BadRequest, error);
        if let Some(why) = self.outages.journal_stalled() {
            return Err((
                RefusalCode::Later,
                Error::retry(format!("no new jobs while the journal is not written: {why}")),
            ));
        }
        if let Some(shed) = self.pool.shed(&self.config, self.now_ms) {
            return Err((RefusalCode::Later, Error::retry(shed.to_string())));
        }
        if self.flow.planning.len() + self.jobs.at_work().len() >= JOBS_MAX {
            return Err((
                RefusalCode::Later,
                Error::exhausted(format!("{JOBS_MAX} jobs run already")),
            ));
        }
        plan::validate(spec).map_err(bad)?;
        self.config.for_job(spec.settings.as_deref()).map_err(bad)?;
        let size = spec_json(spec).map_err(bad)?.len();
        if size > plan::SPEC_BYTES_MAX {
            let text = format!(
                "the request has {size} bytes, the limit is {}; name folders or globs",
                plan::SPEC_BYTES_MAX
            );
            return Err(bad(Error::invalid(text)));
        }
        let places = plan::places(spec, self.bucket.as_ref(), &self.deployment).map_err(bad)?;
        match self.claimed_by(&places) {
            Some((job, output)) => {
                let text = format!(
                    "OUTPUT {} is claimed by job {job} ({output}); wait for its end",
                    places.output
                );
                Err((RefusalCode::Conflict, Error::invalid(text)))
            }
            None => Ok((places, self.offers(spec)?)),
        }
    }

    /// The job whose OUTPUT overlaps this one's.
    fn claimed_by(&self, places: &Places) -> Option<(JobId, String)> {
        let planning =
            self.flow.planning.iter().map(|(job, planning)| (job, &planning.places.output));
        let active = self.jobs.at_work().iter().map(|(job, active)| (job, &active.output));
        let mut claims = planning.chain(active);
        claims
            .find(|(_, output)| overlap(output, &places.output))
            .map(|(job, output)| (job.clone(), output.to_string()))
    }

    fn begin_planning(
        &mut self,
        to: ReplyTo,
        spec: JobSpec,
        (places, offers): (Places, Vec<Offer>),
        unix_ms: u64,
    ) {
        let job = spec.job.clone();
        let spec = Arc::new(spec);
        let ticket = self.flow.tickets.issue(&job);
        self.out.push(Effect::ListInput {
            spec: spec.clone(),
            places: places.clone(),
            offers,
            ticket,
        });
        let planning = Planning {
            spec,
            places,
            ticket,
            step: Step::Listing,
            waiters: Waiters::one(to),
            began_ms: self.now_ms,
            unix_ms,
            output_existed: true,
            plan: None,
            warnings: Vec::new(),
        };
        self.flow.planning.insert(job, planning);
    }

    pub(crate) fn listed(&mut self, job: &JobId, ticket: u64, result: Result<Listing>) {
        self.flow.tickets.redeem(ticket);
        let listing = result.as_ref().ok();
        let asked = self.flow.planning.get(job).is_some_and(|planning| planning.ticket == ticket);
        if let Some(listing) = listing.filter(|_| asked) {
            self.tell_offers(job, listing);
            self.tell_left_out(job, listing);
        }
        let Some(planning) =
            self.flow.planning.get_mut(job).filter(|planning| planning.ticket == ticket)
        else {
            return;
        };
        let made = result.and_then(|mut listing| {
            planning.output_existed = listing.output_existed;
            planning.warnings = std::mem::take(&mut listing.warnings);
            plan::make(&planning.spec, &planning.places, listing, &self.config)
        });
        let encoded = made.and_then(|plan| Ok((plan.to_bytes()?, plan)));
        match encoded {
            Ok((bytes, plan)) => {
                let url = planning.places.scratch.join(&names::plan_path(self.nonces.next()));
                let ticket = self.flow.tickets.issue(job);
                planning.plan = Some(Arc::new(plan));
                planning.ticket = ticket;
                planning.step = Step::Writing;
                self.out.push(Effect::WriteObject { url, bytes, ticket });
            }
            Err(error) => self.give_up_planning(job, &error),
        }
    }

    fn give_up_planning(&mut self, job: &JobId, error: &Error) {
        let Some(planning) = self.flow.planning.remove(job) else { return };
        let code =
            if error.kind.is_passing() { RefusalCode::Later } else { RefusalCode::BadRequest };
        self.event(Some(job), "error", "submit-refused", error.message.clone());
        for to in planning.waiters.into_vec() {
            self.refuse(to, code, error.clone());
        }
    }

    /// The plan stands in scratch: the job can be journalled. `false` where the ticket is not that
    /// of a plan.
    pub(crate) fn plan_written(
        &mut self,
        job: &JobId,
        ticket: u64,
        result: &Result<BlobRef>,
    ) -> bool {
        let Some(planning) =
            self.flow.planning.get_mut(job).filter(|planning| planning.ticket == ticket)
        else {
            return false;
        };
        let record = match (result, &planning.plan) {
            (Ok(pointer), Some(plan)) => {
                record_of(planning, plan, pointer, self.flow.next_order, self.now_ms)
            }
            (Ok(_), None) => Err(Error::bug(format!("job {job} has no plan"))),
            (Err(error), _) => Err(error.clone()),
        };
        match record {
            Ok(record) => {
                self.flow.next_order += 1;
                planning.step = Step::Recording;
                let waiters = std::mem::take(&mut planning.waiters);
                planning.ticket = 0;
                self.append(Record::JobSubmitted(Box::new(record)), waiters);
            }
            Err(error) => self.give_up_planning(job, &error),
        }
        true
    }

    /// The job stands in the journal.
    pub(crate) fn submitted(&mut self, submitted: &JobSubmitted, waiters: Waiters) {
        let job = &submitted.job;
        let planning = self.flow.planning.remove(job);
        let Some(durable) = self.jobs.known(job) else { return };
        let known = planning.map(|planning| (planning.plan, planning.waiters, planning.warnings));
        let (plan, late, warnings) = known.unwrap_or_default();
        match Active::new(durable, plan, &self.config, self.now_ms) {
            Ok(mut active) => {
                warnings.into_iter().for_each(|warning| active.told.warn(warning));
                self.jobs.take_on(job.clone(), active);
            }
            Err(error) => self.event(Some(job), "error", "record-refused", error.message),
        }
        let (splits, bytes) = (submitted.splits, submitted.input_bytes);
        let text = format!("{bytes} bytes in {splits} splits for {}", submitted.output);
        self.event(Some(job), "info", "job-submitted", text);
        for to in waiters.into_vec().into_iter().chain(late.into_vec()) {
            self.ask_status(to, job);
        }
        self.enter(job);
    }

    /// A job that is only being planned. One whose record is on its way can no longer be stopped
    /// here.
    pub(crate) fn cancel_planning(&mut self, to: ReplyTo, job: &JobId) {
        let Some(planning) = self.flow.planning.get(job) else { return };
        if planning.step != Step::Listing {
            return self.refuse(
                to,
                RefusalCode::Later,
                Error::retry(format!("job {job} is just being journalled; ask again")),
            );
        }
        let status = JobStatus {
            state: JobState::Cancelled,
            cleaned: true,
            ..self.planning_status(job, planning)
        };
        self.reply(to, Reply::Job(Box::new(status)));
        self.give_up_planning(
            job,
            &Error::invalid(format!("job {job} was cancelled while it was planned")),
        );
    }

    /// The store that a job is planned with, where it does not answer.
    fn store_of(&self, spec: &JobSpec) -> Option<String> {
        let places =
            spec.inputs.iter().chain([&spec.output]).chain(&spec.bucket).chain(&spec.replica);
        let lies_in = |store: &str, url: &str| {
            url.strip_prefix(store).is_some_and(|rest| rest.starts_with('/'))
        };
        let (store, why) = self
            .outages
            .stores_away()
            .iter()
            .find(|(store, _)| places.clone().any(|url| lies_in(store, url)))?;
        Some(format!("store {store}: {why}"))
    }

    pub(crate) fn planning_status(&self, job: &JobId, planning: &Planning) -> JobStatus {
        JobStatus {
            job: job.clone(),
            state: JobState::Submitted,
            phase: None,
            tasks_done: 0,
            tasks_total: 0,
            bytes_done: 0,
            bytes_total: 0,
            input_bytes: planning.plan.as_ref().map_or(0, |plan| plan.input_bytes()),
            workers: self.pool.workers().counts().alive,
            attempts_running: 0,
            retries: 0,
            repeated_tasks: 0,
            speculations: 0,
            alerts: Vec::new(),
            waiting_for: self
                .outages
                .journal_stalled()
                .map(str::to_owned)
                .or_else(|| self.store_of(&planning.spec)),
            error: None,
            output: planning.places.output.to_string(),
            parts: 0,
            sums: None,
            dropped: None,
            times: PhaseTimes {
                plan_ms: self.now_ms.saturating_sub(planning.began_ms),
                ..PhaseTimes::default()
            },
            cleaned: false,
            submitted_unix_ms: planning.unix_ms,
            skipped: Sums::default(),
            bad_records: Vec::new(),
            skipped_objects: Vec::new(),
            skipped_objects_total: 0,
            recoveries: Vec::new(),
            warnings: planning.warnings.clone(),
        }
    }
}

fn spec_json(spec: &JobSpec) -> Result<String> {
    serde_json::to_string(spec)
        .map_err(|e| Error::bug(format!("a request cannot be written as JSON: {e}")))
}

/// Whether a repeat is the same request as the journalled one. One that a newer build wrote may
/// hold fields that this one does not know: then the text decides.
fn same_request(journalled: &str, repeat: &JobSpec) -> bool {
    match serde_json::from_str::<JobSpec>(journalled) {
        Ok(known) => known == *repeat,
        Err(_) => spec_json(repeat).is_ok_and(|text| text == journalled),
    }
}

fn record_of(
    planning: &Planning,
    plan: &Plan,
    pointer: &BlobRef,
    order: u64,
    now_ms: u64,
) -> Result<JobSubmitted> {
    let splits = u32::try_from(plan.splits.len()).map_err(|_| Error::invalid("too many splits"))?;
    Ok(JobSubmitted {
        job: plan.job.clone(),
        order,
        spec_json: spec_json(&planning.spec)?,
        output: plan.output.clone(),
        output_existed: planning.output_existed,
        extension: plan.extension.clone(),
        scratch: plan.scratch.clone(),
        plan: pointer.clone(),
        splits,
        partitions: plan.partitions,
        replica: plan.replica.clone(),
        input_bytes: plan.input_bytes(),
        attempts_max: plan.attempts_max,
        submitted_unix_ms: planning.unix_ms,
        took_ms: now_ms.saturating_sub(planning.began_ms),
    })
}
