//! What is wrong now, by the rules of health: figures go in, what is raised or cleared becomes an
//! event.

use std::collections::BTreeMap;

use muster_protocol::api::WorkerStatus;
use muster_protocol::ids::{JobId, Phase};

use crate::job::Machine;
use crate::job::flow::active::Active;
use crate::job::flow::plan;
use crate::job::law::Step;
use crate::job::pool::members::Worker;
use crate::job::pool::policies::health::{
    Alert, DeploymentFigures, JobFigures, Rule, Subject, Transition,
};
use crate::job::view::tally::Counted;

impl Machine {
    /// Gives all figures to the rules; what is raised or cleared becomes an event.
    pub(crate) fn watch_health(&mut self) {
        let deployment = self.deployment_figures();
        let (settings, now_ms) = (&self.config.alerts, self.now_ms);
        let alerts = &mut self.view.alerts;
        let mut transitions = alerts.deployment(settings, now_ms, &deployment);
        for (id, worker) in self.pool.workers().iter().filter(|(_, worker)| !worker.left) {
            let figures =
                worker.figures(&self.config, now_ms, spill_bytes(self.jobs.at_work(), worker));
            transitions.extend(alerts.worker(settings, now_ms, id, &figures));
        }
        let jobs: Vec<(JobId, JobFigures)> = self
            .jobs
            .at_work()
            .iter()
            .map(|(job, active)| (job.clone(), self.job_figures(job, active)))
            .collect();
        for (job, figures) in jobs {
            transitions.extend(self.view.alerts.job(settings, now_ms, &job, &figures));
        }
        self.tell_alerts(transitions);
    }

    fn deployment_figures(&mut self) -> DeploymentFigures {
        let waiting =
            |active: &Active| active.tasks.all().map(|tasks| tasks.queue.len()).sum::<usize>();
        let tasks_waiting: usize = self.jobs.at_work().values().map(waiting).sum();
        DeploymentFigures {
            journal_write_ms: self.ledger.slowest_ms(self.now_ms),
            journal_failures_in_a_row: self.outages.journal_failures(),
            journal_used_percent: self.outages.journal_used_percent(),
            journal_waiting: self.ledger.waiting(),
            tasks_waiting: u32::try_from(tasks_waiting).unwrap_or(u32::MAX),
            slots: self.pool.workers().slots(),
        }
    }

    fn job_figures(&self, job: &JobId, active: &Active) -> JobFigures {
        let waits = self
            .jobs
            .known(job)
            .is_some_and(|durable| self.waiting_for(durable, Some(active)).is_some());
        let works = active.step() == Step::Working && !waits;
        let idle_ms = if works { active.idle_ms(self.now_ms) } else { 0 };
        JobFigures { idle_ms, failures_in_a_row: active.failures_in_a_row() }
    }

    /// Somebody is gone: what was raised about them is cleared.
    pub(crate) fn forget_alerts(&mut self, subject: &Subject) {
        let cleared = self.view.alerts.forget(self.now_ms, subject);
        self.tell_alerts(cleared);
    }

    fn tell_alerts(&mut self, transitions: Vec<Transition>) {
        for transition in transitions {
            if let Transition::Raised(alert) = &transition {
                self.view.count(Counted::AlertRaised(alert.rule));
            }
            let (alert, severity, kind, text) = match &transition {
                Transition::Raised(alert) => {
                    (alert, alert.severity.as_str(), "alert-raised", alert.text.clone())
                }
                Transition::Cleared(alert, lasted_ms) => {
                    (alert, "info", "alert-cleared", format!("after {lasted_ms} ms"))
                }
            };
            let job = if let Subject::Job(job) = &alert.subject { Some(job.clone()) } else { None };
            let text = format!("{} of {}: {text}", alert.rule.as_str(), alert.subject);
            self.event(job.as_ref(), severity, kind, text);
        }
    }

    /// Names of the alerts about a job and about the deployment.
    pub(crate) fn alerts_of(&self, job: &JobId) -> Vec<String> {
        let about = |subject: &Subject| match subject {
            Subject::Deployment => true,
            Subject::Job(known) => known == job,
            Subject::Worker(_) => false,
        };
        let raised = self.view.raised().filter(|alert| about(&alert.subject));
        let servers =
            self.outages.servers_away().map(|server| format!("nats-server-away {server}"));
        raised.map(|alert| alert.rule.as_str().to_owned()).chain(servers).collect()
    }

    pub(crate) fn worker_status(&self, worker: &Worker) -> WorkerStatus {
        let about =
            |subject: &Subject| matches!(subject, Subject::Worker(id) if *id == worker.info.worker);
        // The alert stays raised for a while, lest it comes and goes; of one that is heard of again
        // it says nothing any more.
        let holds = |alert: &&Alert| alert.rule != Rule::WorkerDown || !worker.is_alive();
        let raised = self.view.raised().filter(|alert| about(&alert.subject)).filter(holds);
        let alerts = raised.map(|alert| alert.rule.as_str().to_owned()).collect();
        let done = self.jobs.durable().done.get(&worker.info.worker).copied().unwrap_or(0);
        let tasks_done = u32::try_from(done).unwrap_or(u32::MAX);
        WorkerStatus { alerts, tasks_done, ..worker.status(&self.config, self.now_ms) }
    }
}

/// What the running sort tasks of a worker may still spill, in bytes: those whose split does not
/// fit into their share of its memory.
fn spill_bytes(active: &BTreeMap<JobId, Active>, worker: &Worker) -> u64 {
    let fits = plan::sortable_bytes(worker.task_bytes());
    let sorts = worker.attempts.iter().filter(|(_, id)| id.task.phase == Phase::Sort);
    let running = sorts.filter_map(|(job, id)| active.get(job)?.tasks.attempt(id));
    running.filter(|attempt| attempt.bytes_total > fits).fold(0, |sum: u64, attempt| {
        sum.saturating_add(attempt.bytes_total.saturating_sub(attempt.bytes_done))
    })
}
