//! What the machine asks for, as one line each: the text of the scripts.

use muster_protocol::wire::{Broadcast, RegisterReply};

use super::world::World;
use crate::job::io::{Effect, Reply, ReplyTo};
use crate::journal::record::Record;

impl World {
    pub(super) fn describe(&mut self, effect: &Effect) -> String {
        match effect {
            Effect::Append { record, .. } => format!("journal   {}", describe_record(record)),
            Effect::PurgeJournal { before } => format!("purge     before {before}"),
            Effect::Reply { to, reply } => self.describe_reply(*to, reply),
            Effect::SendRun { worker, run, .. } => {
                format!(
                    "run       {worker}: {} {} (a{})",
                    run.job,
                    run.attempt.task,
                    self.alias(run.attempt)
                )
            }
            Effect::SendCancel { worker, cancel } => {
                format!(
                    "abandon   {worker}: {} {} (a{})",
                    cancel.job,
                    cancel.attempt.task,
                    self.alias(cancel.attempt)
                )
            }
            Effect::SendDrain { worker, .. } => format!("drain     {worker}"),
            Effect::Broadcast { job, broadcast } => match broadcast {
                Broadcast::Boundaries { splitters, .. } => {
                    format!("tell      {job}: boundaries, splitters {}", splitters.is_some())
                }
                Broadcast::PhaseBegins { phase, .. } => format!("tell      {job}: {phase} begins"),
                Broadcast::Ended { .. } => format!("tell      {job}: ended"),
            },
            Effect::LimitStores(limits) => {
                format!("limit     {:?} a second", limits.requests_per_s)
            }
            Effect::Progress(status) => {
                let waiting = status
                    .waiting_for
                    .as_ref()
                    .map(|what| format!(", waiting for {what}"))
                    .unwrap_or_default();
                let cleaned = if status.cleaned { ", cleaned" } else { "" };
                format!(
                    "progress  {}: {} {}/{}{waiting}{cleaned}",
                    status.job, status.state, status.tasks_done, status.tasks_total
                )
            }
            Effect::DeadLetter(letter) => {
                format!("letter    {}: {} attempts", letter.job, letter.attempts.len())
            }
            Effect::Event(event) => {
                format!("event     {} {}: {}", event.severity, event.kind, event.text)
            }
            Effect::ListInput { spec, .. } => format!("store     {}: list input", spec.job),
            Effect::WriteObject { url, .. } => format!("store     write {}", kind_of(url.name())),
            Effect::LoadPlan { job, .. } => format!("store     {job}: read the plan"),
            Effect::LoadSamples { job, .. } => format!("store     {job}: read samples"),
            Effect::ChooseSplitters { job, samples, partitions, .. } => {
                format!(
                    "store     {job}: choose among {} samples for {partitions} partitions",
                    samples.len()
                )
            }
            Effect::AbortUpload { job, upload, .. } => {
                format!("store     {job}: abort the upload of a{}", self.alias(upload.attempt))
            }
            Effect::PrepareCommit { job, publication, url, .. } => {
                format!(
                    "store     {job}: prepare {} parts, write {}",
                    publication.parts.len(),
                    kind_of(url.name())
                )
            }
            Effect::Publish { job, publication } => {
                format!("store     {job}: publish {} parts", publication.parts.len())
            }
            Effect::SweepLate { job, .. } => format!("store     {job}: look for what came late"),
            Effect::CleanUp { job, leftovers } => {
                let prune = if leftovers.empty_output.is_some() { ", prune OUTPUT" } else { "" };
                format!(
                    "store     {job}: clean up, abort {} uploads{prune}",
                    leftovers.uploads.len()
                )
            }
        }
    }

    fn describe_reply(&self, to: ReplyTo, reply: &Reply) -> String {
        let whom = self
            .reports
            .get(&to)
            .map(|report| &report.worker)
            .or(self.registrations.get(&to).map(|(id, _)| id));
        let whom = whom.map_or("client", |id| id.as_str());
        let what = match reply {
            Reply::Register(RegisterReply::Accepted { epoch, regranted, .. }) => {
                format!("accepted in epoch {epoch}, {} re-granted", regranted.len())
            }
            Reply::Register(RegisterReply::Refused { error }) => format!("refused: {error}"),
            Reply::Report(reply) => {
                format!("{reply:?}").split(' ').next().unwrap_or_default().to_lowercase()
            }
            Reply::Phase(reply) => format!("{reply:?}"),
            Reply::Job(status) => format!("{} is {}", status.job, status.state),
            Reply::Jobs(list) => format!("{} jobs", list.len()),
            Reply::Worker(status) => format!("{} is {}", status.id, status.state),
            Reply::Workers(list) => format!("{} workers", list.len()),
            Reply::Refused { code, error } => format!("{}: {error}", code.number()),
        };
        format!("answer    {whom}: {what}")
    }
}

fn kind_of(name: &str) -> &str {
    name.split('.').next().unwrap_or(name)
}

fn describe_record(record: &Record) -> String {
    let kind = record.kind();
    match record {
        Record::JobSubmitted(submitted) => {
            format!("{kind} {}: {} splits", submitted.job, submitted.splits)
        }
        Record::BoundariesChosen { job, partitions, .. } => {
            format!("{kind} {job}: {partitions} partitions")
        }
        Record::AttemptFailed(failed) => format!("{kind} {}: {}", failed.job, failed.attempt.task),
        Record::GenerationBegan(began) => {
            format!("{kind} {}: {} g{}", began.job, began.split, began.generation)
        }
        Record::ObjectSkipped { job, object, .. } => format!("{kind} {job}: {object}"),
        Record::JobHistory(history) => format!("{kind} {}", history.job),
        Record::RunCommitted(run) => format!("{kind} {}: {}", run.job, run.split),
        Record::UploadOpened { job, partition, .. }
        | Record::UploadRevoked { job, partition, .. } => {
            format!("{kind} {job}: {partition}")
        }
        Record::PartCommitted(part) => format!("{kind} {}: {}", part.job, part.partition),
        Record::JobEnded(ended) => format!("{kind} {}: {:?}", ended.job, ended.outcome),
        Record::RunsPinned { job, .. }
        | Record::CommitDecided { job, .. }
        | Record::JobCleaned { job }
        | Record::JobForgotten { job } => {
            format!("{kind} {job}")
        }
        Record::WorkersDone { done, .. } => format!("done by {} workers", done.len()),
        Record::Snapshot { part, of, records, .. } => {
            format!("{kind} {} of {of}: {} records", part + 1, records.len())
        }
        Record::StillLeads
        | Record::DeploymentCreated { .. }
        | Record::EpochBegan { .. }
        | Record::JobArchived(_) => kind.to_owned(),
    }
}
