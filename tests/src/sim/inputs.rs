//! Files that workers offer of their own: a leader's questions on their way, and a worker's
//! answers.

use futures::channel::oneshot;

use muster_coordinator::job::io::{Effect, Offer};
use muster_platform::inputs::Pattern;
use muster_protocol::names::Verb;
use muster_protocol::wire::{self, ListInputs, ListReply, LocalFile};
use muster_protocol::{Error, Result};

use super::coordinator::Command;
use super::core::SimClock;
use super::exec::lock;
use super::jobs::OFFERED;
use super::store::disk_key;
use super::world::{Done, World};

/// Files in one answer: so few that a worker with two of them is asked twice.
const PAGE: usize = 1;
/// Bytes of a file that are shown.
const HEAD_BYTES: usize = 16;

/// A question, and where its answer goes.
pub struct Question {
    /// Whom.
    pub offer: Offer,
    /// What.
    pub list: ListInputs,
    answer: Asking,
}

/// Where an answer goes.
pub type Asking = oneshot::Sender<Result<ListReply>>;

impl World {
    /// A leader lists the input of a request, with the program's own driver.
    pub(super) fn list_input(&mut self, at: usize, effect: Effect) {
        let node = self.coordinators[at].node;
        let (stores, done) = (self.stores[node].clone(), self.done.clone());
        let Some(fence) = self.fence_of(at) else { return };
        let clock = SimClock { shared: self.shared.clone(), node };
        let bound_ms = self.config.store.list_timeout_ms;
        self.executor.spawn(node, async move {
            let ask = |offer: Offer, list: ListInputs| {
                let (answer, answered) = oneshot::channel();
                lock(&done)
                    .push_back((node, Done::Ask(Box::new(Question { offer, list, answer }))));
                async move {
                    answered.await.unwrap_or_else(|_| Err(Error::retry("nobody leads any more")))
                }
            };
            let bound: (&dyn muster_platform::clock::Clock, u64) = (&clock, bound_ms);
            if let Some(input) =
                muster_coordinator::carry_out_listing(&stores, &fence, bound, effect, ask).await
            {
                lock(&done).push_back((node, Done::Input(Box::new(input))));
            }
        });
    }

    /// A question goes out.
    pub(super) fn ask_worker(&mut self, at: usize, question: Question) {
        let Question { offer, list, answer } = question;
        let frame = wire::encode_for(offer.peer, &list);
        let bound_ms = self.config.nats.request_timeout_ms;
        self.command(at, &offer.worker, (Verb::List, bound_ms), frame, Command::List(answer));
    }

    /// A worker's answer to it.
    pub(super) fn offered(&self, at: usize, list: &ListInputs) -> ListReply {
        let worker = &self.workers[at];
        let registered = worker.life.as_ref().and_then(|life| life.attempts.registered());
        if !worker.offers {
            return ListReply::Refused {
                error: Error::invalid(format!("worker {} offers no input", worker.id)),
            };
        }
        if registered.is_none_or(|epoch| list.epoch < epoch) {
            return ListReply::Refused {
                error: Error::retry(format!("worker {} is not registered", worker.id)),
            };
        }
        let pattern = match Pattern::new(&list.pattern) {
            Ok(pattern) => pattern,
            Err(error) => return ListReply::Refused { error },
        };
        let core = lock(&self.shared);
        let folder = disk_key(&worker.id, OFFERED);
        let of_folder = core.store.objects.range(folder.clone()..).map_while(|(key, object)| {
            let relative = key.strip_prefix(folder.as_str())?.strip_prefix('/')?;
            Some((relative, key, object))
        });
        let wanted = of_folder.filter(|(relative, ..)| pattern.matches(relative)).map(
            |(relative, key, object)| {
                let head =
                    match core.store.unreadable.get(key).filter(|unreadable| unreadable.always) {
                        Some(unreadable) => Err(unreadable.error(key)),
                        None => Ok(object.bytes.iter().copied().take(HEAD_BYTES).collect()),
                    };
                let (bytes, version) = (object.bytes.len() as u64, object.version.clone());
                LocalFile { path: format!("{OFFERED}/{relative}"), bytes, version, head }
            },
        );
        let mut files: Vec<LocalFile> = wanted
            .filter(|file| list.after.as_ref().is_none_or(|after| file.path > *after))
            .take(PAGE + 1)
            .collect();
        let more = files.len() > PAGE;
        files.truncate(PAGE);
        let next = files.last().filter(|_| more).map(|file| file.path.clone());
        ListReply::Listed { files, omitted: Vec::new(), next }
    }
}
