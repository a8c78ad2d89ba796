//! Carries out effects that take time: commands to workers, and work with the stores. Each ends in
//! one input.

use std::sync::Arc;
use std::time::Duration;

use async_nats::Client;

use muster_kernel::splitters::{self, Splitter};
use muster_platform::clock::Clock;
use muster_platform::faults;
use muster_platform::store::BlobUrl;
use muster_platform::stores::Stores;
use muster_protocol::error::{Error, Result};
use muster_protocol::ids::{AttemptId, JobId, WorkerId};
use muster_protocol::names::{Names, Verb};
use muster_protocol::plan::{PLAN_BYTES_MAX, Plan};
use muster_protocol::wire::{
    self, BlobRef, CancelAttempt, CommandReply, ListInputs, ListReply, Message, RunAttempt,
    RunReply,
};

use super::fence::Fence;
use super::{clean, listing, offers, publish};
use crate::job::flow::plan::{self, Chosen};
use crate::job::io::{Effect, Input, MeasuredBoundaries, Offer};

/// Largest object of samples that is read back, in bytes.
const SAMPLES_BYTES_MAX: u64 = 64 << 20;

/// How long workers are waited for.
#[derive(Clone, Copy)]
pub(super) struct Timeouts {
    /// One command.
    pub(super) command: Duration,
    /// One page of a listing.
    pub(super) page: Duration,
    /// All listings of one request, in milliseconds.
    pub(super) listing_ms: u64,
}

/// What effects are carried out with. Cloning shares it.
#[derive(Clone)]
pub(super) struct Hands {
    pub(super) client: Client,
    pub(super) names: Names,
    pub(super) stores: Stores,
    pub(super) timeouts: Timeouts,
    pub(super) clock: Arc<dyn Clock>,
    /// Asked before each step that changes a store.
    pub(super) fence: Fence,
}

impl Hands {
    /// Carries out one effect and gives what came of it; none for effects that nothing comes of.
    pub(super) async fn carry_out(self, effect: Effect) -> Option<Input> {
        Some(match effect {
            Effect::SendRun { worker, peer, run } => self.send_run(worker, peer, &run).await,
            Effect::SendCancel { worker, cancel } => self.send_cancel(&worker, cancel).await,
            Effect::SendDrain { worker, drain } => {
                let frame = wire::encode_for_all(&drain);
                let _: Result<CommandReply> = self.command(&worker, Verb::Drain, frame).await;
                return None;
            }
            effect @ Effect::ListInput { .. } => {
                let ask = |offer: Offer, question: ListInputs| {
                    let hands = &self;
                    async move {
                        let (page, worker) = (hands.timeouts.page, &offer.worker);
                        let frame = wire::encode_for(offer.peer, &question);
                        hands.command_within(page, worker, Verb::List, frame).await
                    }
                };
                let bound = (&*self.clock, self.timeouts.listing_ms);
                return carry_out_listing(&self.stores, &self.fence, bound, effect, ask).await;
            }
            Effect::ChooseSplitters { job, samples, partitions, unique, url } => {
                let chosen = tokio::task::spawn_blocking(move || {
                    plan::splitters(samples, partitions, unique)
                })
                .await;
                let chosen =
                    chosen.map_err(|e| Error::bug(format!("splitters could not be chosen: {e}")));
                Input::SplittersChosen {
                    job,
                    result: write_splitters(&self.stores, &self.fence, chosen.flatten(), &url)
                        .await,
                }
            }
            effect => return carry_out_on_stores(&self.stores, &self.fence, effect).await,
        })
    }

    /// What faults make of a message; `word` is its name there.
    pub(super) async fn fate(&self, word: &'static str) -> faults::Message {
        match self.stores.faults() {
            Some(faults) => faults.message(word).await,
            None => faults::Message::Deliver,
        }
    }

    async fn send_run(&self, worker: WorkerId, peer: u8, run: &RunAttempt) -> Input {
        let frame = wire::encode_for(peer, run);
        let reply: Result<RunReply> = self.command(&worker, Verb::Run, frame).await;
        Input::RunAnswered { worker, job: run.job.clone(), attempt: run.attempt, reply }
    }

    async fn send_cancel(&self, worker: &WorkerId, cancel: CancelAttempt) -> Input {
        let frame = wire::encode_for_all(&cancel);
        let reply: Result<CommandReply> = self.command(worker, Verb::Cancel, frame).await;
        Input::CancelAnswered { job: cancel.job, attempt: cancel.attempt, answered: reply.is_ok() }
    }

    async fn command<R: Message>(
        &self,
        worker: &WorkerId,
        verb: Verb,
        frame: Result<Vec<u8>>,
    ) -> Result<R> {
        self.command_within(self.timeouts.command, worker, verb, frame).await
    }

    /// A request to a worker. The bound is ours, not the client's: a request that waits for a
    /// connection would not count its own.
    async fn command_within<R: Message>(
        &self,
        bound: Duration,
        worker: &WorkerId,
        verb: Verb,
        frame: Result<Vec<u8>>,
    ) -> Result<R> {
        let bytes = frame?;
        let unheard = |why: &str| {
            Error::retry(format!("worker {worker} does not answer: injected fault: {why}"))
        };
        let fate = self.fate("command").await;
        match fate {
            faults::Message::Deliver | faults::Message::AnswerLost => {}
            faults::Message::Twice => {
                let first =
                    self.client.request(self.names.command(worker, verb), bytes.clone().into());
                // What becomes of the first is nobody's concern: a repeat is harmless.
                drop(tokio::time::timeout(bound, first).await);
            }
            faults::Message::Refused => return Err(unheard("the connection is broken")),
            faults::Message::Lost => {
                tokio::time::sleep(bound).await;
                return Err(unheard("the message is lost"));
            }
        }
        let request = self.client.request(self.names.command(worker, verb), bytes.into());
        match tokio::time::timeout(bound, request).await {
            Ok(Ok(_)) if fate == faults::Message::AnswerLost => Err(unheard("the answer is lost")),
            Ok(Ok(message)) => wire::decode(&message.payload),
            Ok(Err(error)) => {
                Err(Error::retry(format!("worker {worker} does not answer: {error}")))
            }
            Err(_) => Err(Error::retry(format!(
                "worker {worker} has not answered for {} ms",
                bound.as_millis()
            ))),
        }
    }
}

/// Lists what a request means, in the stores and of what workers offer of their own: `ask` puts one
/// question to one of them. None for all other effects. It relies on no runtime: whoever polls it
/// drives it, and the clock's pauses.
pub async fn carry_out_listing<F>(
    stores: &Stores,
    fence: &Fence,
    bound: (&dyn Clock, u64),
    effect: Effect,
    ask: impl Fn(Offer, ListInputs) -> F,
) -> Option<Input>
where
    F: Future<Output = Result<ListReply>>,
{
    let Effect::ListInput { spec, places, offers, ticket } = effect else { return None };
    let result = match offers::list(&spec, &offers, fence.epoch(), bound, ask).await {
        Ok(offered) => {
            listing::list_input(stores, fence, &spec, &places, (&offers, &offered)).await
        }
        Err(error) => Err(error),
    };
    Some(Input::Listed { job: spec.job.clone(), ticket, result })
}

/// Carries out an effect that needs nothing but the stores, and gives what came of it; none for all
/// others. It relies on no runtime: whoever polls it drives it. Whatever changes a store asks the
/// fence first; once that is over, what comes out is no input for anybody.
pub async fn carry_out_on_stores(stores: &Stores, fence: &Fence, effect: Effect) -> Option<Input> {
    Some(match effect {
        Effect::WriteObject { url, bytes, ticket } => {
            Input::ObjectWritten { ticket, result: write(stores, fence, &url, bytes).await }
        }
        Effect::LoadPlan { job, plan } => {
            Input::PlanLoaded { result: load_plan(stores, &plan).await, job }
        }
        Effect::LoadSamples { job, attempt, samples } => {
            Input::SamplesLoaded { result: load_samples(stores, &samples).await, job, attempt }
        }
        Effect::ChooseSplitters { job, samples, partitions, unique, url } => {
            let chosen = plan::splitters(samples, partitions, unique);
            Input::SplittersChosen {
                job,
                result: write_splitters(stores, fence, chosen, &url).await,
            }
        }
        Effect::AbortUpload { job, url, upload } => {
            let result = clean::abort(stores, fence, &url, &upload.upload).await;
            Input::UploadAborted { job, attempt: upload.attempt, result }
        }
        Effect::PrepareCommit { publication, url, ticket, .. } => Input::ObjectWritten {
            ticket,
            result: publish::prepare(stores, fence, &publication, &url).await,
        },
        Effect::Publish { job, publication } => {
            Input::Published { job, result: publish::publish(stores, fence, &publication).await }
        }
        Effect::CleanUp { job, leftovers } => {
            Input::Cleaned { result: clean::clean_up(stores, fence, &job, *leftovers).await, job }
        }
        Effect::SweepLate { job, scratch } => {
            Input::SweptLate { job, result: clean::sweep_late(stores, fence, &scratch).await }
        }
        Effect::ListInput { .. }
        | Effect::Append { .. }
        | Effect::PurgeJournal { .. }
        | Effect::Reply { .. }
        | Effect::SendRun { .. }
        | Effect::SendCancel { .. }
        | Effect::SendDrain { .. }
        | Effect::Broadcast { .. }
        | Effect::LimitStores(_)
        | Effect::Progress(_)
        | Effect::DeadLetter(_)
        | Effect::Event(_) => return None,
    })
}

async fn write(stores: &Stores, fence: &Fence, url: &BlobUrl, bytes: Vec<u8>) -> Result<BlobRef> {
    fence.check().await?;
    stores.put_ref(url, bytes).await
}

async fn load_plan(stores: &Stores, pointer: &BlobRef) -> Result<Arc<Plan>> {
    Plan::from_bytes(&stores.get_ref(pointer, PLAN_BYTES_MAX).await?).map(Arc::new)
}

async fn load_samples(stores: &Stores, pointer: &BlobRef) -> Result<Vec<Splitter>> {
    Ok(splitters::decode(&stores.get_ref(pointer, SAMPLES_BYTES_MAX).await?)?)
}

/// Writes what was chosen: where it is (none for one partition), and how many partitions it makes.
async fn write_splitters(
    stores: &Stores,
    fence: &Fence,
    chosen: Result<Chosen>,
    url: &BlobUrl,
) -> Result<MeasuredBoundaries> {
    let Chosen { splitters: chosen, samples, fullest_percent } = chosen?;
    let partitions = u32::try_from(chosen.len() + 1)
        .map_err(|_| Error::bug("more splitters than can be numbered"))?;
    let splitters = match chosen.as_slice() {
        [] => None,
        chosen => Some(write(stores, fence, url, splitters::encode(chosen)).await?),
    };
    Ok(MeasuredBoundaries { splitters, partitions, samples, fullest_percent })
}

/// What is reported where carrying out an effect ended in a panic: a bug of ours must not leave a
/// job hanging.
pub(super) fn on_panic(effect: &Effect) -> Option<Input> {
    let bug = || Error::bug("the coordinator met with a bug; its log says where");
    let of = |job: &JobId| job.clone();
    Some(match effect {
        Effect::SendRun { worker, run, .. } => Input::RunAnswered {
            worker: worker.clone(),
            job: of(&run.job),
            attempt: run.attempt,
            reply: Err(bug()),
        },
        Effect::SendCancel { cancel, .. } => cancel_unanswered(&cancel.job, &cancel.attempt),
        Effect::ListInput { spec, ticket, .. } => {
            Input::Listed { job: of(&spec.job), ticket: *ticket, result: Err(bug()) }
        }
        Effect::WriteObject { ticket, .. } | Effect::PrepareCommit { ticket, .. } => {
            Input::ObjectWritten { ticket: *ticket, result: Err(bug()) }
        }
        Effect::LoadPlan { job, .. } => Input::PlanLoaded { job: of(job), result: Err(bug()) },
        Effect::LoadSamples { job, attempt, .. } => {
            Input::SamplesLoaded { job: of(job), attempt: *attempt, result: Err(bug()) }
        }
        Effect::ChooseSplitters { job, .. } => {
            Input::SplittersChosen { job: of(job), result: Err(bug()) }
        }
        Effect::AbortUpload { job, upload, .. } => {
            Input::UploadAborted { job: of(job), attempt: upload.attempt, result: Err(bug()) }
        }
        Effect::Publish { job, .. } => Input::Published { job: of(job), result: Err(bug()) },
        Effect::CleanUp { job, .. } => Input::Cleaned { job: of(job), result: Err(bug()) },
        Effect::SweepLate { job, .. } => Input::SweptLate { job: of(job), result: Err(bug()) },
        _ => return None,
    })
}

fn cancel_unanswered(job: &JobId, attempt: &AttemptId) -> Input {
    Input::CancelAnswered { job: job.clone(), attempt: *attempt, answered: false }
}
