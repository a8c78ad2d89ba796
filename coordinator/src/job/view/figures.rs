//! What the machine counts for those who watch it: how things stand ([`Figures`]), and how often
//! something has happened under this leader ([`Tally`]). Numbers alone: who shows them, and how, is
//! the adapter's business (`metrics.rs`). Nothing is decided by them.

use std::collections::BTreeMap;

use muster_protocol::api::JobState;

use crate::job::Machine;
use crate::job::flow::active::Active;
use crate::job::law::Step;
use crate::job::pool::policies::breaker::State;
use crate::job::pool::policies::health::{Class, Rule};
use crate::job::tasks::table::PhaseTasks;
use crate::job::view::tally::Tally;

/// All states of a job, in their order.
pub const STATES: [JobState; 8] = [
    JobState::Submitted,
    JobState::Sampling,
    JobState::Sorting,
    JobState::Merging,
    JobState::Committing,
    JobState::Succeeded,
    JobState::Failed,
    JobState::Cancelled,
];

/// Tasks of one phase, over all jobs that are in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TaskCounts {
    /// They wait for a worker.
    pub queued: u32,
    /// They wait for something else: a pause after a failure, or an upload that is being revoked.
    pub delayed: u32,
    /// An attempt, or two, are under way.
    pub running: u32,
    /// They are committed.
    pub done: u32,
}

/// How things stand.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Figures {
    /// Known jobs, ended ones included, in the order of [`STATES`].
    pub jobs: [u32; STATES.len()],
    /// Tasks, in the order of [`PHASES`].
    pub tasks: [TaskCounts; 3],
    /// Living workers that are healthy, degraded or failed (their breaker is open).
    pub workers: BTreeMap<Class, u32>,
    /// Living workers that take no more.
    pub workers_draining: u32,
    /// Workers that are taken for dead and not forgotten yet.
    pub workers_dead: u32,
    /// Living workers whose breaker is open, and half open.
    pub breakers: [u32; 2],
    /// Attempts that the living workers which take part can run at once.
    pub slots: u32,
    /// Of them, those that could be given an attempt now.
    pub slots_free: u32,
    /// Tasks that are not under way: what more workers could begin with.
    pub backlog_tasks: u32,
    /// See [`wanted`].
    pub workers_wanted: u32,
    /// Records on their way into the journal.
    pub journal_waiting: u32,
    /// Whether the journal takes nothing at the moment.
    pub journal_stalled: bool,
    /// Requests a second that all workers together may make of stores that throttle; none without a
    /// limit.
    pub store_limit_per_s: Option<u32>,
    /// Alerts that are raised now.
    pub alerts: BTreeMap<Rule, u32>,
}

/// What [`wanted`] looks at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Demand {
    /// Whether any job needs workers.
    pub at_work: bool,
    /// Whether one of them is between two phases, or still being planned.
    pub between: bool,
    /// Tasks of the phases at hand that are not committed.
    pub open: u32,
    /// Workers that live and take part.
    pub there: u32,
    /// Their slots.
    pub slots: u32,
    /// The least number of workers with which anything is given out.
    pub least: u32,
}

/// How many workers there should be, for something that adds and removes them: those that the open
/// tasks keep busy, by the slots that a worker of this pool has on average (one where there is
/// none). 0 without a job at work. A job between two phases holds the pool as it is: it would be
/// sent away just before it is needed.
pub fn wanted(demand: Demand) -> u32 {
    if !demand.at_work {
        return 0;
    }
    let slots_each = demand.slots.checked_div(demand.there).unwrap_or(1).max(1);
    let busy = demand.open.div_ceil(slots_each);
    let held = if demand.between { demand.there } else { 0 };
    busy.max(held).max(demand.least).max(1)
}

impl PhaseTasks {
    fn counts(&self) -> TaskCounts {
        let queued = u32::try_from(self.queue.len()).unwrap_or(u32::MAX);
        let running = self.running.saturating_sub(self.seconds);
        let others = queued.saturating_add(running).saturating_add(self.done);
        TaskCounts {
            queued,
            delayed: self.total().saturating_sub(others),
            running,
            done: self.done,
        }
    }
}

impl Machine {
    /// How often something has happened under this leader.
    pub fn tally(&self) -> &Tally {
        self.view.tally()
    }

    /// How things stand now. Takes time with the number of workers and jobs, not with that of
    /// tasks.
    pub fn figures(&self) -> Figures {
        let mut figures = Figures {
            journal_waiting: self.ledger.waiting(),
            journal_stalled: self.outages.journal_stalled().is_some(),
            store_limit_per_s: self.pool.store_limit_per_s(),
            slots: self.pool.workers().slots(),
            ..Figures::default()
        };
        self.count_jobs(&mut figures);
        self.count_workers(&mut figures);
        for alert in self.view.raised() {
            *figures.alerts.entry(alert.rule).or_default() += 1;
        }
        figures
    }

    fn count_jobs(&self, figures: &mut Figures) {
        let planning = self
            .flow
            .planning()
            .keys()
            .filter(|job| !self.jobs.durable().jobs.contains_key(*job))
            .count();
        let mut count = |state: JobState| {
            let at = STATES.iter().position(|known| *known == state).unwrap_or(0);
            figures.jobs[at] += 1;
        };
        (0..planning).for_each(|_| count(JobState::Submitted));
        self.jobs.durable().jobs.values().for_each(|job| count(job.state));
        let counts = self.pool.workers().counts();
        let mut demand = Demand {
            at_work: planning > 0,
            between: planning > 0,
            open: 0,
            there: counts.there,
            slots: figures.slots,
            least: self.config.pool.min_workers,
        };
        for (job, active) in self.jobs.at_work() {
            let state = self.jobs.known(job).map(|durable| durable.state);
            if state.is_some_and(|state| state < JobState::Committing) {
                demand.at_work = true;
                demand.between |= active.step() != Step::Working || active.tasks.stage().is_none();
            }
            figures.take_tasks(active, &mut demand);
        }
        figures.workers_wanted = wanted(demand);
    }

    fn count_workers(&self, figures: &mut Figures) {
        for (_, worker) in self.pool.workers().iter().filter(|(_, worker)| !worker.left) {
            if !worker.is_alive() {
                figures.workers_dead += 1;
                continue;
            }
            *figures.workers.entry(worker.class(&self.config)).or_default() += 1;
            figures.workers_draining += u32::from(worker.draining);
            match worker.breaker.state() {
                State::Closed => {}
                State::Open { .. } => figures.breakers[0] += 1,
                State::HalfOpen => figures.breakers[1] += 1,
            }
            figures.slots_free = figures.slots_free.saturating_add(worker.free_slots());
        }
    }
}

impl Figures {
    fn take_tasks(&mut self, active: &Active, demand: &mut Demand) {
        for tasks in active.tasks.all() {
            let (counts, sum) = (tasks.counts(), &mut self.tasks[tasks.phase as usize]);
            sum.queued += counts.queued;
            sum.delayed += counts.delayed;
            sum.running += counts.running;
            sum.done += counts.done;
            let idle = counts.queued.saturating_add(counts.delayed);
            self.backlog_tasks = self.backlog_tasks.saturating_add(idle);
            demand.open = demand.open.saturating_add(idle).saturating_add(counts.running);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::view::tally::{CODES, PHASES};

    #[test]
    fn as_many_workers_are_wanted_as_there_is_work_for() {
        let check = |(at_work, between): (bool, bool), open, (there, slots), least, expected| {
            let demand = Demand { at_work, between, open, there, slots, least };
            assert_eq!(wanted(demand), expected, "{demand:?}");
        };
        check((false, false), 0, (5, 10), 3, 0);
        check((true, false), 100, (5, 10), 0, 50);
        check((true, false), 101, (5, 10), 0, 51);
        // Nobody is there yet: one slot each is assumed until the first of them says more.
        check((true, false), 7, (0, 0), 0, 7);
        check((true, false), 0, (0, 0), 0, 1);
        check((true, false), 2, (5, 20), 3, 3);
        check((true, true), 0, (5, 10), 0, 5);
        check((true, true), 100, (5, 10), 0, 50);
        check((true, false), u32::MAX, (1, 1), 0, u32::MAX);
    }

    #[test]
    fn places_in_the_lists_are_those_of_the_counts() {
        for (at, phase) in PHASES.into_iter().enumerate() {
            assert_eq!(phase as usize, at);
        }
        for (at, code) in CODES.into_iter().enumerate() {
            assert_eq!(code as usize, at);
        }
        assert!(STATES.is_sorted());
    }
}
