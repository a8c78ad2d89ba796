//! Carries out effects that take time: commands to workers, and work with the stores. Each ends in one input.

use std::sync::Arc;
use std::time::Duration;

use async_nats::Client;
use serde::Serialize;
use serde::de::DeserializeOwned;

use muster_common::error::{Error, Result};
use muster_common::ids::{AttemptId, JobId, WorkerId};
use muster_common::names::{Names, Verb};
use muster_common::plan::{PLAN_BYTES_MAX, Plan};
use muster_common::store::{BlobUrl, Stores};
use muster_common::wire::{self, BlobRef, CancelAttempt, CommandReply, RunAttempt, RunReply};
use muster_kernel::splitters::{self, Splitter};

use super::{clean, listing, publish};
use crate::job::io::{Effect, Input};
use crate::job::plan;

/// Largest object of samples that is read back, in bytes.
const SAMPLES_BYTES_MAX: u64 = 64 << 20;

/// What effects are carried out with. Cloning shares it.
#[derive(Clone)]
pub(super) struct Hands {
    pub(super) client: Client,
    pub(super) names: Names,
    pub(super) stores: Stores,
    pub(super) command_timeout: Duration,
}

impl Hands {
    /// Carries out one effect and gives what came of it; none for effects that nothing comes of.
    pub(super) async fn carry_out(self, effect: Effect) -> Option<Input> {
        Some(match effect {
            Effect::SendRun { worker, run } => self.send_run(worker, &run).await,
            Effect::SendCancel { worker, cancel } => self.send_cancel(&worker, cancel).await,
            Effect::SendDrain { worker, drain } => {
                let _: Result<CommandReply> = self.command(&worker, Verb::Drain, &drain).await;
                return None;
            }
            Effect::ListInput { spec, places, ticket } => {
                let result = listing::list_input(&self.stores, &spec, &places).await;
                Input::Listed { job: spec.job.clone(), ticket, result }
            }
            Effect::WriteObject { url, bytes, ticket } => {
                Input::ObjectWritten { ticket, result: self.stores.put_ref(&url, bytes).await }
            }
            Effect::LoadPlan { job, plan } => Input::PlanLoaded { result: self.load_plan(&plan).await, job },
            Effect::LoadSamples { job, attempt, samples } => {
                Input::SamplesLoaded { result: self.load_samples(&samples).await, job, attempt }
            }
            Effect::ChooseSplitters { job, samples, partitions, unique, url } => {
                Input::SplittersChosen { job, result: self.choose_splitters(samples, partitions, unique, &url).await }
            }
            Effect::AbortUpload { job, url, upload } => {
                let result = clean::abort(&self.stores, &url, &upload.upload).await;
                Input::UploadAborted { job, attempt: upload.attempt, result }
            }
            Effect::Publish { job, publication } => {
                Input::Published { job, result: publish::publish(&self.stores, &publication).await }
            }
            Effect::CleanUp { job, leftovers } => {
                Input::Cleaned { job, result: clean::clean_up(&self.stores, *leftovers).await }
            }
            Effect::Append { .. }
            | Effect::PurgeJournal { .. }
            | Effect::Reply { .. }
            | Effect::Broadcast { .. }
            | Effect::Progress(_)
            | Effect::Event(_) => return None,
        })
    }

    async fn send_run(&self, worker: WorkerId, run: &RunAttempt) -> Input {
        let reply: Result<RunReply> = self.command(&worker, Verb::Run, run).await;
        Input::RunAnswered { worker, job: run.job.clone(), attempt: run.attempt, reply }
    }

    async fn send_cancel(&self, worker: &WorkerId, cancel: CancelAttempt) -> Input {
        let reply: Result<CommandReply> = self.command(worker, Verb::Cancel, &cancel).await;
        Input::CancelAnswered { job: cancel.job, attempt: cancel.attempt, answered: reply.is_ok() }
    }

    /// A request to a worker. The bound is ours, not the client's: a request that waits for a connection would not count its own.
    async fn command<C: Serialize, R: DeserializeOwned>(
        &self,
        worker: &WorkerId,
        verb: Verb,
        command: &C,
    ) -> Result<R> {
        let bytes = wire::encode(command)?;
        let request = self.client.request(self.names.command(worker, verb), bytes.into());
        match tokio::time::timeout(self.command_timeout, request).await {
            Ok(Ok(message)) => wire::decode(&message.payload),
            Ok(Err(error)) => Err(Error::retry(format!("worker {worker} does not answer: {error}"))),
            Err(_) => Err(Error::retry(format!(
                "worker {worker} has not answered for {} ms",
                self.command_timeout.as_millis()
            ))),
        }
    }

    async fn load_plan(&self, pointer: &BlobRef) -> Result<Arc<Plan>> {
        Plan::from_bytes(&self.stores.get_ref(pointer, PLAN_BYTES_MAX).await?).map(Arc::new)
    }

    async fn load_samples(&self, pointer: &BlobRef) -> Result<Vec<Splitter>> {
        Ok(splitters::decode(&self.stores.get_ref(pointer, SAMPLES_BYTES_MAX).await?)?)
    }

    async fn choose_splitters(
        &self,
        samples: Vec<Splitter>,
        partitions: u32,
        unique: bool,
        url: &BlobUrl,
    ) -> Result<(Option<BlobRef>, u32)> {
        let chosen = tokio::task::spawn_blocking(move || plan::splitters(samples, partitions, unique)).await;
        let chosen = chosen.map_err(|e| Error::bug(format!("splitters could not be chosen: {e}")))??;
        if chosen.is_empty() {
            return Ok((None, 1));
        }
        let partitions =
            u32::try_from(chosen.len() + 1).map_err(|_| Error::bug("more splitters than can be numbered"))?;
        Ok((Some(self.stores.put_ref(url, splitters::encode(&chosen)).await?), partitions))
    }
}

/// What is reported where carrying out an effect ended in a panic: a bug of ours must not leave a job hanging.
pub(super) fn on_panic(effect: &Effect) -> Option<Input> {
    let bug = || Error::bug("the coordinator met with a bug; its log says where");
    let of = |job: &JobId| job.clone();
    Some(match effect {
        Effect::SendRun { worker, run } => {
            Input::RunAnswered { worker: worker.clone(), job: of(&run.job), attempt: run.attempt, reply: Err(bug()) }
        }
        Effect::SendCancel { cancel, .. } => cancel_unanswered(&cancel.job, &cancel.attempt),
        Effect::ListInput { spec, ticket, .. } => {
            Input::Listed { job: of(&spec.job), ticket: *ticket, result: Err(bug()) }
        }
        Effect::WriteObject { ticket, .. } => Input::ObjectWritten { ticket: *ticket, result: Err(bug()) },
        Effect::LoadPlan { job, .. } => Input::PlanLoaded { job: of(job), result: Err(bug()) },
        Effect::LoadSamples { job, attempt, .. } => {
            Input::SamplesLoaded { job: of(job), attempt: *attempt, result: Err(bug()) }
        }
        Effect::ChooseSplitters { job, .. } => Input::SplittersChosen { job: of(job), result: Err(bug()) },
        Effect::AbortUpload { job, upload, .. } => {
            Input::UploadAborted { job: of(job), attempt: upload.attempt, result: Err(bug()) }
        }
        Effect::Publish { job, .. } => Input::Published { job: of(job), result: Err(bug()) },
        Effect::CleanUp { job, .. } => Input::Cleaned { job: of(job), result: Err(bug()) },
        _ => return None,
    })
}

fn cancel_unanswered(job: &JobId, attempt: &AttemptId) -> Input {
    Input::CancelAnswered { job: job.clone(), attempt: *attempt, answered: false }
}
