//! What must hold after every step. Tests ask after each; the driver asks in debug builds.

use std::collections::{BTreeMap, BTreeSet};

use muster_protocol::api::JobState;
use muster_protocol::ids::{AttemptId, JobId, Phase, WorkerId};

use crate::job::flow::active::Active;
use crate::job::flow::table::Stage;
use crate::job::law::{Step, steps_of};
use crate::job::ledger::durable::DurableJob;
use crate::job::tasks::table::{Attempt, PhaseTasks, Recording, TaskState};
use crate::job::{Machine, overlap};

/// Checks everything.
///
/// # Errors
/// Says what does not hold.
pub fn check(machine: &Machine) -> Result<(), String> {
    machine.pool.workers().check()?;
    check_claims(machine)?;
    let mut running: BTreeMap<WorkerId, BTreeSet<(JobId, AttemptId)>> = BTreeMap::new();
    for (id, active) in machine.jobs.at_work() {
        let durable = machine
            .jobs
            .known(id)
            .ok_or_else(|| format!("job {id} is active, but not in the journal"))?;
        check_state(id, durable, active)?;
        check_runnable(machine, id, active)?;
        let merging = durable.state == JobState::Merging && active.tasks.stage().is_some();
        let repair = active.tasks.check_repair(merging, durable.runs_stale);
        repair.map_err(|why| format!("job {id}, which is {}: {why}", durable.state))?;
        for tasks in active.tasks.all() {
            check_tasks(id, durable, tasks)?;
            for attempt in tasks.running_attempts() {
                if let Some(owner) =
                    active.owners.of_task(attempt.id.task).filter(|owner| **owner != attempt.worker)
                {
                    let worker = &attempt.worker;
                    return Err(format!(
                        "{} of job {id} runs on {worker}, but {owner} alone can read its input",
                        attempt.id
                    ));
                }
                running.entry(attempt.worker.clone()).or_default().insert((id.clone(), attempt.id));
            }
        }
    }
    for (id, durable) in &machine.jobs.durable().jobs {
        check_sums(id, durable)?;
        if !durable.cleaned && !machine.jobs.at_work().contains_key(id) {
            return Err(format!("job {id} is not cleaned, but nobody looks after it"));
        }
    }
    check_slots(machine, &running)
}

/// No OUTPUT belongs to two jobs.
fn check_claims(machine: &Machine) -> Result<(), String> {
    let planning = machine
        .flow
        .planning()
        .iter()
        .filter(|(job, _)| !machine.jobs.at_work().contains_key(*job))
        .map(|(job, planning)| (job, &planning.places.output));
    let active = machine.jobs.at_work().iter().map(|(job, active)| (job, &active.output));
    let claims: Vec<_> = planning.chain(active).collect();
    for (at, (job, output)) in claims.iter().enumerate() {
        if let Some((other, _)) =
            claims.iter().skip(at + 1).find(|(_, other)| overlap(output, other))
        {
            return Err(format!("jobs {job} and {other} both claim {output}"));
        }
    }
    Ok(())
}

fn check_state(id: &JobId, durable: &DurableJob, active: &Active) -> Result<(), String> {
    if let Some(why) = active.broken() {
        return Err(format!("job {id}: {why}"));
    }
    if !steps_of(durable.state).contains(&active.step()) {
        return Err(format!("job {id} is {} and at step {:?}", durable.state, active.step()));
    }
    if (active.step() == Step::Ending) != active.ending().is_some() {
        return Err(format!(
            "job {id} is at step {:?}, but the record of its end says otherwise",
            active.step()
        ));
    }
    let phase = active.tasks.stage().map(|tasks| tasks.phase);
    let expected = Stage::at(durable.state).map(|stage| stage.phase);
    let lagging = active.step() == Step::Ending;
    if phase != expected && !lagging {
        return Err(format!("job {id} is {} and has tasks of {phase:?}", durable.state));
    }
    Ok(())
}

fn check_runnable(machine: &Machine, id: &JobId, active: &Active) -> Result<(), String> {
    let may_run = active.may_run();
    let listed = active.runnable.is_some_and(|running| {
        machine.jobs.runnable().contains(&(running, active.order, id.clone()))
    });
    if may_run != listed || (may_run && active.runnable != Some(active.tasks.running())) {
        return Err(format!(
            "job {id} may run: {may_run}, is listed: {listed} as {:?}",
            active.runnable
        ));
    }
    Ok(())
}

/// At most two live attempts a task, one of them about to be committed, none after its commit, and
/// counts that are those of the tasks.
fn check_tasks(id: &JobId, durable: &DurableJob, tasks: &PhaseTasks) -> Result<(), String> {
    let (mut done, mut running, mut seconds, mut running_bytes) = (0, 0, 0, 0_u64);
    for (index, state) in (0..).zip(&tasks.states) {
        let committed = match tasks.phase {
            Phase::Sample => matches!(state, TaskState::Done),
            phase => (Stage::of(phase).committed)(durable, index),
        };
        if committed != matches!(state, TaskState::Done) {
            return Err(format!(
                "job {id}: {} is {state:?}, committed: {committed}",
                tasks.task(index)
            ));
        }
        if tasks.queue.contains(&index) != matches!(state, TaskState::Waiting) {
            return Err(format!(
                "job {id}: {} is {state:?} and the queue says otherwise",
                tasks.task(index)
            ));
        }
        match state {
            TaskState::Done => {
                done += 1;
                if tasks.phase == Phase::Merge && durable.uploads_of(index).next().is_some() {
                    return Err(format!(
                        "job {id}: {} is committed and has an open upload",
                        tasks.task(index)
                    ));
                }
            }
            TaskState::Running { first, second } => {
                seconds += u32::from(second.is_some());
                for attempt in state.attempts() {
                    running += 1;
                    running_bytes = running_bytes.saturating_add(attempt.bytes_done);
                    if attempt.id.task != tasks.task(index) {
                        return Err(format!(
                            "job {id}: {} has an attempt of {}",
                            tasks.task(index),
                            attempt.id.task
                        ));
                    }
                    check_upload(id, durable, &attempt.id, attempt.upload.as_deref())?;
                }
                check_rivals(id, first, second.as_deref())?;
            }
            TaskState::Waiting | TaskState::Delayed | TaskState::Revoking(_) => {}
        }
    }
    if (done, running, seconds) != (tasks.done, tasks.running, tasks.seconds)
        || running_bytes != tasks.running_bytes
    {
        return Err(format!(
            "job {id}: {done} done and {running} running, but {} and {} are counted",
            tasks.done, tasks.running
        ));
    }
    Ok(())
}

/// Two attempts of a task are two, and at most one of them is about to be committed.
fn check_rivals(id: &JobId, first: &Attempt, second: Option<&Attempt>) -> Result<(), String> {
    let Some(second) = second else { return Ok(()) };
    if first.id == second.id || (first.recording.is_some() && second.recording.is_some()) {
        return Err(format!("job {id}: {} and {} are both to be committed", first.id, second.id));
    }
    Ok(())
}

/// What the journal knows of the upload of an attempt under way is what the leader knows; and at
/// most one more is open, of an attempt that may still be re-granted.
fn check_upload(
    id: &JobId,
    durable: &DurableJob,
    attempt: &AttemptId,
    upload: Option<&str>,
) -> Result<(), String> {
    if attempt.task.phase != Phase::Merge {
        return Ok(());
    }
    let open = durable.uploads_of(attempt.task.index).count();
    match durable.upload(attempt) {
        Some(open) if Some(open.upload.as_str()) != upload => Err(format!(
            "job {id}: {attempt} runs with {upload:?}, but its upload is {}",
            open.upload
        )),
        _ if open > 2 => Err(format!("job {id}: {} has {open} open uploads", attempt.task)),
        _ => Ok(()),
    }
}

/// P1 in the journal: what is committed conserves, and totals are those of the tasks.
fn check_sums(id: &JobId, durable: &DurableJob) -> Result<(), String> {
    if durable.cleaned {
        return Ok(());
    }
    let mut kept = muster_kernel::proof::Sums::default();
    for run in durable.runs.values() {
        if run.kept.plus(&run.dropped).plus(&run.skipped) != run.input {
            return Err(format!("job {id}: run {} does not conserve", run.split));
        }
        kept.merge(&run.kept);
    }
    if kept != durable.run_totals.kept {
        return Err(format!(
            "job {id}: the runs hold {kept}, but {} are counted",
            durable.run_totals.kept
        ));
    }
    let parts = durable.part_totals.kept.plus(&durable.part_totals.dropped);
    if durable.commit_decided && parts != durable.run_totals.kept {
        return Err(format!("job {id}: committed {parts} out of {}", durable.run_totals.kept));
    }
    Ok(())
}

/// Workers have the attempts that jobs say they have. One whose result is on its way may have lost
/// its worker.
fn check_slots(
    machine: &Machine,
    running: &BTreeMap<WorkerId, BTreeSet<(JobId, AttemptId)>>,
) -> Result<(), String> {
    let recording = |job: &JobId, attempt: &AttemptId| {
        let attempt = machine.jobs.attempt(job, attempt);
        attempt.is_some_and(|attempt| matches!(attempt.recording, Some(Recording::Journal(_))))
    };
    for (id, attempts) in running {
        for (job, attempt) in attempts {
            let known = machine
                .pool
                .workers()
                .get(id)
                .is_some_and(|worker| worker.attempts.contains(&(job.clone(), *attempt)));
            if !known && !recording(job, attempt) {
                return Err(format!("{attempt} of job {job} runs on {id}, which does not have it"));
            }
        }
    }
    for (id, worker) in machine.pool.workers().iter() {
        let none = BTreeSet::new();
        let theirs = running.get(id).unwrap_or(&none);
        if let Some((job, attempt)) = worker.attempts.difference(theirs).next() {
            return Err(format!("worker {id} has {attempt} of job {job}, which does not run"));
        }
    }
    Ok(())
}
