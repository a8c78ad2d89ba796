//! Inputs that one worker alone can read (`--input-dir`): who is asked for them at submit, who may
//! have their tasks, and how long a job waits for a worker that is not there.
//!
//! Such a split goes to its owner and to nobody else: no second attempt elsewhere, no failover. Its
//! task waits while the owner is away, beside all other work, and within `phases.register_ms`. Once
//! its run is committed the owner is not needed any more, unless that run is lost.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;

use muster_common::ids::{AttemptId, JobId, Phase, TaskId, WorkerId};
use muster_common::plan::{JobSpec, PinnedObject, Plan};
use muster_common::planted::{self, Bug};
use muster_common::{Error, Result, inputs};

use crate::job::flow::active::Active;
use crate::job::forgiven;
use crate::job::io::{Listing, Offer, RefusalCode};
use crate::job::law::Step;
use crate::job::pool::members::Worker;
use crate::job::tasks::attempts::TakenBack;
use crate::job::tasks::table::{PhaseTasks, TaskState};
use crate::job::{Machine, SharedPlan};

/// Workers that are named with the number of their files.
const OWNERS_SHOWN: usize = 10;

/// Who may read the splits of a job.
#[derive(Debug, Default)]
pub(crate) struct Owners {
    /// All splits in order; empty where every worker can read all of them.
    groups: Vec<Group>,
    /// Since when an owner that is needed has not been there.
    absent: BTreeMap<WorkerId, u64>,
}

/// Splits that follow one another and have one owner, or none.
#[derive(Debug)]
struct Group {
    splits: Range<u32>,
    owner: Option<WorkerId>,
}

impl Owners {
    /// The owners that a plan names.
    ///
    /// # Errors
    /// `Invalid` where it names no worker that there can be.
    pub(crate) fn of(plan: &Plan) -> Result<Self> {
        let mut groups: Vec<Group> = Vec::new();
        for (split, _) in (0_u32..).zip(&plan.splits) {
            let owner = plan.owner(split).map(str::to_owned).map(WorkerId::try_from).transpose();
            let owner =
                owner.map_err(|e| Error::invalid(format!("the plan of job {}: {e}", plan.job)))?;
            match groups.last_mut().filter(|last| last.owner == owner) {
                Some(last) => last.splits.end = split + 1,
                None => groups.push(Group { splits: split..split + 1, owner }),
            }
        }
        if groups.iter().all(|group| group.owner.is_none()) {
            groups.clear();
        }
        Ok(Self { groups, absent: BTreeMap::new() })
    }

    /// Whether some splits of this phase have an owner. Merges have none: what they read lies in
    /// scratch.
    pub(crate) fn any(&self, phase: Phase) -> bool {
        !self.groups.is_empty() && phase != Phase::Merge && !planted::is(Bug::GrantAnywhere)
    }

    /// The worker that alone can do a task.
    pub(crate) fn of_task(&self, task: TaskId) -> Option<&WorkerId> {
        if !self.any(task.phase) {
            return None;
        }
        let at = self.groups.partition_point(|group| group.splits.end <= task.index);
        self.groups.get(at)?.owner.as_ref()
    }

    /// Waiting tasks that every worker can do.
    pub(crate) fn free_tasks<'a>(
        &'a self,
        tasks: &'a PhaseTasks,
    ) -> impl Iterator<Item = u32> + 'a {
        let any = self.any(tasks.phase);
        let whole = (!any).then_some(&(0..u32::MAX)).into_iter();
        let parts = self
            .groups
            .iter()
            .filter(move |group| any && group.owner.is_none())
            .map(|group| &group.splits);
        whole.chain(parts).flat_map(|splits| tasks.queue.range(splits.clone()).copied())
    }

    /// The first waiting task of each group that has an owner.
    pub(crate) fn owned_tasks<'a>(
        &'a self,
        tasks: &'a PhaseTasks,
    ) -> impl Iterator<Item = (u32, &'a WorkerId)> + 'a {
        let any = self.any(tasks.phase);
        self.groups.iter().filter(move |_| any).filter_map(|group| {
            let index = tasks.queue.range(group.splits.clone()).next()?;
            Some((*index, group.owner.as_ref()?))
        })
    }

    /// The leader itself was not there: that time counts against nobody.
    pub(crate) fn forgive(&mut self, now_ms: u64, missed_ms: u64) {
        for since_ms in self.absent.values_mut() {
            *since_ms = forgiven(*since_ms, now_ms, missed_ms);
        }
    }

    /// The owner that has been waited for longest, and since when.
    fn longest_absent(&self) -> Option<(&WorkerId, u64)> {
        self.absent.iter().min_by_key(|(_, since)| **since).map(|(owner, since)| (owner, *since))
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
        let Some(active) = self.active.get_mut(job) else { return Ok(()) };
        active.plan = Some(plan);
        active.owners = owners;
        let misplaced: Vec<(AttemptId, WorkerId)> = active
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
        let tasks = active.granted_from()?;
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
        self.runnable.iter().any(|(_, _, job)| {
            let Some(active) = self.active.get(job) else { return false };
            active
                .granted_from()
                .is_some_and(|tasks| active.owners.free_tasks(tasks).next().is_some())
        })
    }

    /// Notes which owners are waited for, and since when.
    pub(crate) fn watch_owners(&mut self) {
        let (now_ms, mut began) = (self.now_ms, Vec::new());
        for (job, active) in
            self.active.iter_mut().filter(|(_, active)| !active.owners.groups.is_empty())
        {
            let works = active.step() == Step::Working && !active.held_back;
            let tasks =
                active.repair.as_ref().map(|repair| &repair.tasks).or(active.tasks.as_ref());
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
            let text = self.both(&job).and_then(|(_, active)| self.owner_text(active, &owner));
            let text = text.unwrap_or_else(|| format!("worker {owner} ({why})"));
            self.event(
                Some(&job),
                "warning",
                "waiting-for-worker",
                format!("the job waits for {text}"),
            );
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

/// How many inputs of an owner are still to be read, and the first of them; none where that is
/// none.
fn unread(active: &Active, owner: &WorkerId) -> Option<(usize, String)> {
    let (plan, tasks) = (active.plan.as_ref()?, active.granted_from()?);
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
