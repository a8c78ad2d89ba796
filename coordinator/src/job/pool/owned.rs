//! Input that one worker alone can read: who is asked for it at submit, and how long a job waits
//! for a worker that is not there.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use muster_platform::inputs;
use muster_protocol::ids::{AttemptId, JobId, WorkerId};
use muster_protocol::plan::{JobSpec, PinnedObject};
use muster_protocol::{Error, Result};

use crate::job::flow::active::Active;
use crate::job::io::{Listing, Offer, RefusalCode};
use crate::job::law::Step;
use crate::job::pool::members::Worker;
use crate::job::pool::owners::Owners;
use crate::job::tasks::attempts::TakenBack;
use crate::job::tasks::table::TaskState;
use crate::job::{Machine, SharedPlan};

/// Workers that are named with the number of their files.
const OWNERS_SHOWN: usize = 10;

impl Machine {
    /// The workers that are asked which files they offer; nobody where the request does not ask for
    /// any. One that offers input and is not there is not passed over: its input would be missing
    /// without a word.
    pub(crate) fn offers(&self, spec: &JobSpec) -> Result<Vec<Offer>, (RefusalCode, Error)> {
        if !spec.inputs.iter().any(|text| inputs::of_workers(text).is_some()) {
            return Ok(Vec::new());
        }
        let left_ms =
            (self.led_since_ms + self.config.tasks.regrant_grace_ms).saturating_sub(self.now_ms);
        if left_ms > 0 {
            let text = format!(
                "this coordinator has just begun, and workers that offer input may still be \
                    registering; try again in {left_ms} ms"
            );
            return Err((RefusalCode::Later, Error::retry(text)));
        }
        let mut offers = Vec::new();
        for (id, worker) in
            self.pool.workers.iter().filter(|(_, worker)| !worker.info.inputs.is_empty())
        {
            if worker.left || (worker.draining && !worker.is_alive()) {
                continue;
            }
            if worker.draining || !worker.is_heard() {
                let silence_ms = worker.detector.silence_ms(self.now_ms);
                let (why, then) = match worker.draining {
                    true => ("is draining".to_owned(), "wait until it has left, or start it anew"),
                    false => (
                        format!("was not heard for {silence_ms} ms"),
                        "start it anew, or take it out with muster drain",
                    ),
                };
                let text = format!(
                    "worker {id} on {}, which offers input, {why}; {then}",
                    worker.info.host
                );
                // One that is dead may stay so: whoever asked should hear it at once.
                let passing = !worker.draining && worker.is_alive();
                return Err(match passing {
                    true => (RefusalCode::Later, Error::retry(text)),
                    false => (RefusalCode::BadRequest, Error::invalid(text)),
                });
            }
            let (host, folders) = (worker.info.host.clone(), worker.info.inputs.clone());
            offers.push(Offer { worker: id.clone(), host, peer: worker.info.wire, folders });
        }
        if offers.is_empty() {
            let text = "no worker offers input: start one with muster worker --input-dir DIR";
            return Err((RefusalCode::BadRequest, Error::invalid(text)));
        }
        Ok(offers)
    }

    /// Says whose files a job is going to sort.
    pub(crate) fn tell_offers(&mut self, job: &JobId, listing: &Listing) {
        let mut files: BTreeMap<&str, usize> = BTreeMap::new();
        listing
            .objects
            .iter()
            .filter_map(PinnedObject::owner)
            .for_each(|owner| *files.entry(owner).or_default() += 1);
        let shown: Vec<String> = files
            .iter()
            .take(OWNERS_SHOWN)
            .map(|(owner, count)| format!("{count} of {owner}"))
            .collect();
        if shown.is_empty() {
            return;
        }
        let more = files.len().saturating_sub(OWNERS_SHOWN);
        let rest = if more > 0 { format!(" and {more} more workers") } else { String::new() };
        let text = format!("files that workers offer: {}{rest}", shown.join(", "));
        self.event(Some(job), "info", "input-offered", text);
    }

    /// The plan of a job is here. Attempts that were re-granted before, to somebody who cannot read
    /// their input, are taken back.
    pub(crate) fn adopt_plan(&mut self, job: &JobId, plan: SharedPlan) -> Result<()> {
        let owners = Owners::of(&plan)?;
        let Some(active) = self.jobs.active_mut(job) else { return Ok(()) };
        active.plan = Some(plan);
        active.owners = owners;
        let misplaced: Vec<(AttemptId, WorkerId)> = active
            .tasks
            .running_attempts()
            .filter(|attempt| {
                active.owners.of_task(attempt.id.task).is_some_and(|owner| *owner != attempt.worker)
            })
            .map(|attempt| (attempt.id, attempt.worker.clone()))
            .collect();
        for (attempt, worker) in misplaced {
            self.counters.violations += 1;
            self.take_back(job, &attempt, &TakenBack::HandedBack);
            self.cancel_attempt(&worker, job, &attempt);
        }
        Ok(())
    }

    /// The first waiting task of a job whose owner has room, and its owner.
    pub(crate) fn next_owned<'a>(&self, active: &'a Active) -> Option<(u32, &'a WorkerId)> {
        let tasks = active.tasks.granted_from()?;
        let offers = |owner: &WorkerId| {
            self.pool.workers.get(owner).is_some_and(|worker| !worker.info.inputs.is_empty())
        };
        active
            .owners
            .owned_tasks(tasks)
            .find(|(_, owner)| self.pool.workers.has_room(owner) && offers(owner))
    }

    /// Whether tasks wait that any worker could do.
    pub(crate) fn free_tasks_wait(&self) -> bool {
        self.jobs.runnable().iter().any(|(_, _, job)| {
            let Some(active) = self.jobs.active(job) else { return false };
            active
                .tasks
                .granted_from()
                .is_some_and(|tasks| active.owners.free_tasks(tasks).next().is_some())
        })
    }

    /// Notes which owners are waited for, and since when.
    pub(crate) fn watch_owners(&mut self) {
        let (now_ms, mut began) = (self.now_ms, Vec::new());
        for (job, active) in
            self.jobs.at_work_mut().filter(|(_, active)| !active.owners.groups.is_empty())
        {
            let works = active.step() == Step::Working && !active.held_back;
            let tasks = active.tasks.granted_from();
            let waiting: Vec<WorkerId> = match tasks.filter(|_| works) {
                Some(tasks) => {
                    active.owners.owned_tasks(tasks).map(|(_, owner)| owner.clone()).collect()
                }
                None => Vec::new(),
            };
            let workers = &self.pool.workers;
            active
                .owners
                .absent
                .retain(|owner, _| works && why_absent(workers.get(owner), now_ms).is_some());
            for owner in waiting {
                let Some(why) = why_absent(workers.get(&owner), now_ms) else { continue };
                if let Entry::Vacant(entry) = active.owners.absent.entry(owner.clone()) {
                    entry.insert(now_ms);
                    active.told.news();
                    began.push((job.clone(), owner, why));
                }
            }
        }
        for (job, owner, why) in began {
            let text = self.jobs.both(&job).and_then(|(_, active)| self.owner_text(active, &owner));
            let text = text.unwrap_or_else(|| format!("worker {owner} ({why})"));
            let text = format!("the job waits for {text}");
            self.event(Some(&job), "warning", "waiting-for-worker", text);
        }
    }

    /// What a job waits for, where that is the owner of some of its input.
    pub(crate) fn waiting_for_owner(&self, active: &Active) -> Option<String> {
        let (owner, _) = active.owners.longest_absent()?;
        self.owner_text(active, owner)
    }

    fn owner_text(&self, active: &Active, owner: &WorkerId) -> Option<String> {
        let why = why_absent(self.pool.workers.get(owner), self.now_ms)?;
        let (count, _) = unread(active, owner)?;
        Some(format!("worker {owner}, which alone can read {count} of its inputs ({why})"))
    }

    /// Why a job fails that has waited for an owner for too long.
    pub(crate) fn owner_overdue(&self, active: &Active) -> Option<Error> {
        let limit_ms = active.config.phases.register_ms;
        let (owner, since_ms) = active.owners.longest_absent()?;
        let waited_ms = self.now_ms.saturating_sub(since_ms);
        let (count, first) = unread(active, owner).filter(|_| waited_ms > limit_ms)?;
        let why = why_absent(self.pool.workers.get(owner), self.now_ms)?;
        let more = if count > 1 { format!(" and {} more", count - 1) } else { String::new() };
        Some(Error::exhausted(format!(
            "worker {owner} was waited for {waited_ms} ms ({why}), and no other can read \
                {first}{more}; the limit is {limit_ms} ms (phases.register_ms)"
        )))
    }
}

/// Why nothing can be given to an owner; none where it is only busy.
fn why_absent(worker: Option<&Worker>, now_ms: u64) -> Option<String> {
    let Some(worker) = worker else { return Some("it has not registered".to_owned()) };
    let silence_ms = worker.detector.silence_ms(now_ms);
    match (worker.left, worker.is_alive(), worker.draining) {
        (true, _, true) => Some("it was drained".to_owned()),
        (true, _, false) => Some("it has left".to_owned()),
        (false, false, _) => {
            Some(format!("it is dead, nothing was heard of it for {silence_ms} ms"))
        }
        (false, true, true) => Some("it is draining".to_owned()),
        (false, true, false) if worker.info.inputs.is_empty() => {
            Some("it does not offer them any more (--input-dir)".to_owned())
        }
        (false, true, false) => None,
    }
}

/// How many inputs of an owner are still to be read, and the first of them; none where that is
/// none.
fn unread(active: &Active, owner: &WorkerId) -> Option<(usize, String)> {
    let (plan, tasks) = (active.plan.as_ref()?, active.tasks.granted_from()?);
    let groups = active.owners.groups.iter().filter(|group| group.owner.as_ref() == Some(owner));
    let splits = groups.flat_map(|group| group.splits.clone());
    let open = splits
        .filter(|split| !matches!(tasks.states.get(*split as usize), Some(TaskState::Done) | None));
    let mut objects: Vec<u32> = open
        .filter_map(|split| plan.splits.get(split as usize))
        .flatten()
        .map(|piece| piece.object)
        .collect();
    objects.sort_unstable();
    objects.dedup();
    let first = plan.objects.get(*objects.first()? as usize)?;
    Some((objects.len(), first.url.clone()))
}
