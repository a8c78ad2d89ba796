//! A client of the control API: requests with bounds, and the errors of the micro service protocol.

use std::time::Duration;

use async_nats::{Client, RequestErrorKind};
use muster_common::adapters::refusals::Refusals;
use muster_common::api::{JobQuery, JobStatus, WorkerQuery, WorkerStatus};
use muster_common::config::Config;
use muster_common::ids::{JobId, WorkerId};
use muster_common::names::{DEFAULT_NAMESPACE, Names};
use muster_common::plan::JobSpec;
use muster_common::{Error, ErrorKind, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest pause between tries while there is no leader.
const RETRY_DELAY_MAX: Duration = Duration::from_secs(1);
const RETRY_DELAY_FIRST: Duration = Duration::from_millis(10);
/// Headers of the micro service protocol.
const ERROR_HEADER: &str = "Nats-Service-Error";
const ERROR_CODE_HEADER: &str = "Nats-Service-Error-Code";

/// The control API of one namespace.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    client: Client,
    names: Names,
    timeout: Duration,
    /// How long a request may wait for a leader.
    patience: Duration,
    refusals: Refusals,
}

impl Api {
    pub(crate) fn new(client: Client, config: &Config, patience: Duration) -> Self {
        let timeout = Duration::from_millis(config.nats.request_timeout_ms);
        Self { client, names: Names::new(&config.namespace), timeout, patience, refusals: Refusals::default() }
    }

    /// Ends a call at once where the server refuses what it needs.
    pub(crate) fn heeding(self, refusals: Refusals) -> Self {
        Self { refusals, ..self }
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    pub(crate) fn names(&self) -> &Names {
        &self.names
    }

    /// Submits a job; harmless to repeat.
    pub(crate) async fn submit(&self, spec: &JobSpec) -> Result<JobStatus> {
        self.call("submit", spec).await
    }

    pub(crate) async fn status(&self, job: &JobId) -> Result<JobStatus> {
        self.call("status", &JobQuery { job: job.clone() }).await
    }

    pub(crate) async fn jobs(&self) -> Result<Vec<JobStatus>> {
        self.call("jobs", &()).await
    }

    pub(crate) async fn cancel(&self, job: &JobId) -> Result<JobStatus> {
        self.call("cancel", &JobQuery { job: job.clone() }).await
    }

    pub(crate) async fn workers(&self) -> Result<Vec<WorkerStatus>> {
        self.call("workers", &()).await
    }

    pub(crate) async fn drain(&self, worker: &WorkerId) -> Result<WorkerStatus> {
        self.call("drain", &WorkerQuery { worker: worker.clone() }).await
    }

    /// One call, repeated while there is no leader or it says "later", up to the patience. All calls are harmless to repeat.
    async fn call<Q: Serialize, A: DeserializeOwned>(&self, call: &str, query: &Q) -> Result<A> {
        let body = serde_json::to_vec(query).map_err(|e| Error::bug(format!("cannot encode a request: {e}")))?;
        // Why a coordinator that is there said "later" last.
        let mut later = None;
        let attempts = async {
            let mut delay = RETRY_DELAY_FIRST;
            let mut told = false;
            loop {
                match self.call_once(call, &body).await {
                    Err(error) if error.kind.is_passing() => {
                        later = (error.kind == ErrorKind::Throttled).then(|| error.message.clone());
                        if !told && delay >= RETRY_DELAY_MAX {
                            tracing::warn!(%error, "waiting for coordinator");
                            told = true;
                        }
                        tokio::time::sleep(delay).await;
                        delay = (delay * 2).min(RETRY_DELAY_MAX);
                    }
                    result => return result,
                }
            }
        };
        let subject = self.names.api(call);
        let refused = self.refusals.refused(&self.client, |refused| refused == subject);
        let patient = async {
            tokio::select! {
                result = attempts => result,
                error = refused => Err(error),
            }
        };
        match tokio::time::timeout(self.patience, patient).await {
            Ok(result) => result,
            Err(_) => {
                let waited = self.patience.as_secs();
                Err(Error::retry(match later {
                    Some(why) => format!("the coordinator has refused the request {call} for {waited} s: {why}"),
                    None => self.nobody(waited),
                }))
            }
        }
    }

    /// That nobody has answered, and in which deployment, where that is not the usual one.
    fn nobody(&self, waited_s: u64) -> String {
        match self.names.namespace() {
            DEFAULT_NAMESPACE => {
                format!("no coordinator answered within {waited_s} s; start one with: muster coordinator")
            }
            other => format!(
                "no coordinator of the namespace {other} answered within {waited_s} s; start one with: muster coordinator --namespace {other}"
            ),
        }
    }

    async fn call_once<A: DeserializeOwned>(&self, call: &str, body: &[u8]) -> Result<A> {
        let request = self.client.request(self.names.api(call), body.to_vec().into());
        let reply = match tokio::time::timeout(self.timeout, request).await {
            Ok(Ok(reply)) => reply,
            Ok(Err(e)) if e.kind() == RequestErrorKind::NoResponders => {
                return Err(Error::retry("no coordinator is there"));
            }
            Ok(Err(e)) => return Err(Error::retry(format!("the request {call} failed: {e}"))),
            Err(_) => return Err(Error::retry(format!("no answer to the request {call}"))),
        };
        let header = |name: &str| reply.headers.as_ref().and_then(|headers| headers.get(name)).map(ToString::to_string);
        if let Some(code) = header(ERROR_CODE_HEADER) {
            let message = header(ERROR_HEADER).unwrap_or_else(|| format!("error {code}"));
            let kind = match code.as_str() {
                "404" => ErrorKind::NotFound,
                "503" => ErrorKind::Throttled,
                "500" => ErrorKind::Bug,
                _ => ErrorKind::Invalid,
            };
            return Err(Error::new(kind, message));
        }
        serde_json::from_slice(&reply.payload)
            .map_err(|e| Error::invalid(format!("the answer to {call} cannot be read: {e}")))
    }
}
