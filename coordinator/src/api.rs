//! The control API: a NATS micro service with JSON bodies. Each call becomes an input of the
//! machine, and the machine's answer goes back to whoever asked.
//!
//! The queue group bears the epoch, so that a paused leader's endpoints take no requests from those
//! of the next.

use async_nats::Client;
use async_nats::service::{Request, Service, ServiceExt};
use futures::StreamExt;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use muster_protocol::api::{JobQuery, WorkerQuery};
use muster_protocol::ids::Epoch;
use muster_protocol::names::{Names, SERVICE};
use muster_protocol::plan::JobSpec;
use muster_protocol::wire::MESSAGE_BYTES_MAX;
use muster_protocol::{Error, Result};

use crate::job::io::{Input, ReplyTo};

/// Requests that wait for the machine at most; the rest waits with the NATS client.
const QUEUED_MAX: usize = 256;

/// The calls, by their last token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "their names say it")]
pub enum Call {
    Submit,
    Status,
    Jobs,
    Cancel,
    Workers,
    Drain,
}

const CALLS: [(&str, Call); 6] = [
    ("submit", Call::Submit),
    ("status", Call::Status),
    ("jobs", Call::Jobs),
    ("cancel", Call::Cancel),
    ("workers", Call::Workers),
    ("drain", Call::Drain),
];

/// The running service. It must be stopped: dropping it ends its endpoints only.
pub(crate) struct ControlApi {
    service: Service,
    tasks: tokio::task::JoinSet<()>,
    pub(crate) requests: mpsc::Receiver<(Call, Request)>,
}

impl ControlApi {
    /// Starts the service under an epoch.
    ///
    /// # Errors
    /// `Retry` where NATS does not take it.
    pub(crate) async fn start(client: &Client, names: &Names, epoch: Epoch) -> Result<Self> {
        let trouble =
            |e: async_nats::Error| Error::retry(format!("cannot start the control API: {e}"));
        let queue = names.api_queue(epoch);
        let builder = client
            .service_builder()
            .description("Submits, shows and cancels sort jobs")
            .queue_group(queue);
        let service = builder.start(SERVICE, env!("CARGO_PKG_VERSION")).await.map_err(trouble)?;
        let group = service.group(names.api_root());
        let (sender, requests) = mpsc::channel(QUEUED_MAX);
        let mut api = Self { service, tasks: tokio::task::JoinSet::new(), requests };
        for (name, call) in CALLS {
            let mut endpoint = match group.endpoint(name).await {
                Ok(endpoint) => endpoint,
                Err(error) => {
                    // A service that is only dropped goes on to answer pings.
                    api.stop().await;
                    return Err(trouble(error));
                }
            };
            let sender = sender.clone();
            api.tasks.spawn(async move {
                while let Some(request) = endpoint.next().await {
                    if sender.send((call, request)).await.is_err() {
                        return;
                    }
                }
            });
        }
        Ok(api)
    }

    /// Ends the service in good order.
    pub(crate) async fn stop(mut self) {
        self.tasks.abort_all();
        if let Err(error) = self.service.stop().await {
            tracing::debug!(%error, "the control API did not stop in good order");
        }
    }
}

/// A request's body as an input.
///
/// # Errors
/// `Invalid` where it is too large or not what the call takes.
pub(crate) fn parse(call: Call, body: &[u8], to: ReplyTo, unix_ms: u64) -> Result<Input> {
    if body.len() > MESSAGE_BYTES_MAX {
        return Err(Error::invalid(format!(
            "a request of {} bytes exceeds the limit of {MESSAGE_BYTES_MAX}",
            body.len()
        )));
    }
    Ok(match call {
        Call::Submit => Input::Submit { to, spec: Box::new(json::<JobSpec>(body)?), unix_ms },
        Call::Status => Input::AskStatus { to, job: json::<JobQuery>(body)?.job },
        Call::Cancel => Input::Cancel { to, job: json::<JobQuery>(body)?.job },
        Call::Drain => Input::Drain { to, worker: json::<WorkerQuery>(body)?.worker },
        Call::Jobs => Input::AskJobs { to },
        Call::Workers => Input::AskWorkers { to },
    })
}

fn json<T: DeserializeOwned>(body: &[u8]) -> Result<T> {
    serde_json::from_slice(body)
        .map_err(|e| Error::invalid(format!("the request is not what this call takes: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_those_that_clients_have_the_right_to() {
        assert_eq!(CALLS.map(|(name, _)| name), muster_protocol::names::API_CALLS);
    }

    #[test]
    fn bodies_are_read_strictly() {
        let check = |call, body: &str, expected: Option<&str>| {
            let error = parse(call, body.as_bytes(), ReplyTo(1), 0).err().map(|e| e.message);
            assert_eq!(error.is_none(), expected.is_none(), "{body}: {error:?}");
            assert!(error.unwrap_or_default().contains(expected.unwrap_or_default()), "{body}");
        };
        check(Call::Status, r#"{"job":"j1"}"#, None);
        check(Call::Status, r#"{"job":"j.1"}"#, Some("job id"));
        check(Call::Status, r#"{"job":"j1","x":1}"#, Some("unknown field"));
        check(Call::Status, "", Some("EOF"));
        check(Call::Submit, "{}", Some("missing field"));
        check(Call::Jobs, "", None);
        check(Call::Drain, r#"{"worker":"w1"}"#, None);
    }
}
