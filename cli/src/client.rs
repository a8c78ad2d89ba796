//! A client of the control API: requests with bounds, and the errors of the micro service protocol.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_nats::{Client, RequestErrorKind};
use muster_platform::adapters::refusals::Refusals;
use muster_platform::clock::{Clock, SystemClock};
use muster_platform::config::Config;
use muster_protocol::api::{JobQuery, JobStatus, WorkerQuery, WorkerStatus};
use muster_protocol::ids::{JobId, WorkerId};
use muster_protocol::names::{DEFAULT_NAMESPACE, Names};
use muster_protocol::plan::JobSpec;
use muster_protocol::{Error, ErrorKind, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest pause between tries while there is no leader.
const RETRY_DELAY_MAX: Duration = Duration::from_secs(1);
const RETRY_DELAY_FIRST: Duration = Duration::from_millis(10);
/// Headers of the micro service protocol.
const ERROR_HEADER: &str = "Nats-Service-Error";
const ERROR_CODE_HEADER: &str = "Nats-Service-Error-Code";

/// How long a call waits where nobody listens at all. A take-over needs a few seconds, a restart by
/// a supervisor some more.
const NOBODY_PATIENCE: Duration = Duration::from_secs(30);
/// How often a request that is not answered yet is looked after.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Why nothing is heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Silence {
    /// Nobody listens.
    Nobody,
    /// Somebody may listen, but gives no answer.
    NoAnswer,
    /// It says "later", and why.
    Later,
}

/// Why one try of a call has no result.
enum Tried {
    /// Nobody listens.
    Nobody,
    /// The coordinator wants to be asked again.
    Later(Error),
    /// No answer came.
    Lost(Error),
    /// It is not granted.
    Refused(Error),
}

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

/// What has been said while a job is submitted, so that one cause makes one line.
#[derive(Debug, Default)]
struct Said {
    /// Whether the coordinator answers other requests meanwhile.
    answers: AtomicBool,
    /// Whether a store that is waited for was named.
    store: AtomicBool,
    /// What is waited for at present, as far as the coordinator has said.
    waits_for: Mutex<Option<String>>,
}

impl Said {
    /// What to say of a store (or the journal) that is waited for: once.
    fn of_store(&self, what: &str, patience_s: u64) -> Option<String> {
        let new = !self.store.swap(true, Ordering::Relaxed);
        new.then(|| format!("waiting up to {patience_s} s for {what}"))
    }

    /// What the coordinator says of the job while it is planned.
    fn heard(&self, waits_for: Option<&str>) {
        *self.waits_for.lock().unwrap_or_else(PoisonError::into_inner) =
            waits_for.map(str::to_owned);
    }

    /// The error of a wait that is given up: a coordinator that waits for a store is there, though
    /// it has no answer.
    fn given_up(&self, error: Error, patience_s: u64) -> Error {
        let waits_for = self.waits_for.lock().unwrap_or_else(PoisonError::into_inner).take();
        match waits_for.filter(|_| error.kind.is_passing()) {
            Some(what) => {
                Error::throttled(format!("given up after {patience_s} s of waiting for {what}"))
            }
            None => error,
        }
    }

    /// What to say of a silence.
    fn of_silence(&self, silence: Silence, text: &str, patience_s: u64) -> Option<String> {
        match silence {
            Silence::Nobody => Some(text.to_owned()),
            // "Later" because of a store that is away, which was said as soon as it was noticed.
            Silence::Later if self.store.load(Ordering::Relaxed) => None,
            Silence::Later => {
                Some(format!("the coordinator is asked again for up to {patience_s} s: {text}"))
            }
            // A request is answered when the job is planned: until then its silence is no news
            // while the coordinator answers others.
            Silence::NoAnswer if self.answers.load(Ordering::Relaxed) => None,
            Silence::NoAnswer => {
                Some(format!("the coordinator does not answer; waiting up to {patience_s} s"))
            }
        }
    }
}

impl Api {
    pub(crate) fn new(client: Client, config: &Config, patience: Duration) -> Self {
        let timeout = Duration::from_millis(config.nats.request_timeout_ms);
        Self {
            client,
            names: Names::new(&config.namespace),
            timeout,
            patience,
            refusals: Refusals::default(),
        }
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

    /// One call, repeated while there is no leader or it says "later", up to the patience. All
    /// calls are harmless to repeat.
    async fn call<Q: Serialize, A: DeserializeOwned>(&self, call: &str, query: &Q) -> Result<A> {
        self.call_telling(call, query, &|_, why| {
            tracing::warn!(error = why, "waiting for coordinator");
        })
        .await
    }

    /// As [`Api::call`]; `tell` is told of each silence once, and what is done about it.
    async fn call_telling<Q: Serialize, A: DeserializeOwned>(
        &self,
        call: &str,
        query: &Q,
        tell: &(impl Fn(Silence, &str) + Sync),
    ) -> Result<A> {
        let body = serde_json::to_vec(query)
            .map_err(|e| Error::bug(format!("cannot encode a request: {e}")))?;
        // Why a coordinator that is there said "later" last.
        let mut later = None;
        let attempts = async {
            let clock = SystemClock::default();
            let (mut delay, mut told, mut alone_since_ms) = (RETRY_DELAY_FIRST, None, None);
            loop {
                let tried = self.call_once(call, &body).await;
                let now_ms = clock.now_ms();
                match tried {
                    Ok(answer) => return Ok(answer),
                    Err(Tried::Refused(error)) => return Err(error),
                    Err(Tried::Later(error)) => {
                        if told != Some(Silence::Later) && delay >= RETRY_DELAY_MAX {
                            tell(Silence::Later, &error.message);
                            told = Some(Silence::Later);
                        }
                        (later, alone_since_ms) = (Some(error.message), None);
                    }
                    Err(Tried::Lost(error)) => {
                        later = None;
                        if told.is_none() && delay >= RETRY_DELAY_MAX {
                            tell(Silence::NoAnswer, &error.message);
                            told = Some(Silence::NoAnswer);
                        }
                    }
                    Err(Tried::Nobody) => {
                        later = None;
                        let alone_ms = now_ms.saturating_sub(*alone_since_ms.get_or_insert(now_ms));
                        let bound = NOBODY_PATIENCE.min(self.patience);
                        if u128::from(alone_ms) >= bound.as_millis() {
                            return Err(Error::retry(self.nobody(bound.as_secs())));
                        }
                        if told != Some(Silence::Nobody) && delay >= RETRY_DELAY_MAX {
                            let text = format!(
                                "no coordinator is there; waiting up to {} s for one",
                                bound.as_secs()
                            );
                            tell(Silence::Nobody, &text);
                            told = Some(Silence::Nobody);
                        }
                    }
                }
                tokio::time::sleep(delay).await;
                delay = (delay * 2).min(RETRY_DELAY_MAX);
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
                Err(match later {
                    Some(why) => Error::throttled(format!("given up after {waited} s: {why}")),
                    None => Error::retry(self.nobody(waited)),
                })
            }
        }
    }

    /// Submits a job; harmless to repeat. `tell` is told what it waits for, each thing once: a
    /// coordinator, or a store that does not answer.
    pub(crate) async fn submit(
        &self,
        spec: &JobSpec,
        tell: &(impl Fn(&str) + Sync),
    ) -> Result<JobStatus> {
        let query = JobQuery { job: spec.job.clone() };
        let query = serde_json::to_vec(&query)
            .map_err(|e| Error::bug(format!("cannot encode a request: {e}")))?;
        let (patience_s, said) = (self.patience.as_secs(), Said::default());
        let look = async {
            loop {
                tokio::time::sleep(LOOK_EVERY).await;
                let status: std::result::Result<JobStatus, Tried> =
                    self.call_once("status", &query).await;
                said.answers.store(
                    !matches!(status, Err(Tried::Nobody | Tried::Lost(_))),
                    Ordering::Relaxed,
                );
                // Whatever else it answers, the request itself will hear.
                let Ok(JobStatus { waiting_for, .. }) = status else { continue };
                said.heard(waiting_for.as_deref());
                if let Some(line) = waiting_for.and_then(|what| said.of_store(&what, patience_s)) {
                    tell(&line);
                }
            }
        };
        let silent = |silence: Silence, text: &str| {
            if let Some(line) = said.of_silence(silence, text, patience_s) {
                tell(&line);
            }
        };
        tokio::select! {
            result = self.call_telling("submit", spec, &silent) => {
                result.map_err(|e| said.given_up(e, patience_s))
            }
            never = look => never,
        }
    }

    /// That nobody has answered, and in which deployment, where that is not the usual one.
    fn nobody(&self, waited_s: u64) -> String {
        match self.names.namespace() {
            DEFAULT_NAMESPACE => {
                format!(
                    "no coordinator answered within {waited_s} s; start one with: muster \
                        coordinator"
                )
            }
            other => format!(
                "no coordinator of the namespace {other} answered within {waited_s} s; start one \
                    with: muster coordinator --namespace {other}"
            ),
        }
    }

    async fn call_once<A: DeserializeOwned>(
        &self,
        call: &str,
        body: &[u8],
    ) -> std::result::Result<A, Tried> {
        let request = self.client.request(self.names.api(call), body.to_vec().into());
        let lost = |why: String| Tried::Lost(Error::retry(why));
        let reply = match tokio::time::timeout(self.timeout, request).await {
            Ok(Ok(reply)) => reply,
            Ok(Err(e)) if e.kind() == RequestErrorKind::NoResponders => return Err(Tried::Nobody),
            Ok(Err(e)) => return Err(lost(format!("the request {call} failed: {e}"))),
            Err(_) => return Err(lost(format!("no answer to the request {call}"))),
        };
        let header = |name: &str| {
            reply.headers.as_ref().and_then(|headers| headers.get(name)).map(ToString::to_string)
        };
        if let Some(code) = header(ERROR_CODE_HEADER) {
            let message = header(ERROR_HEADER).unwrap_or_else(|| format!("error {code}"));
            let kind = match code.as_str() {
                "404" => ErrorKind::NotFound,
                "503" => return Err(Tried::Later(Error::throttled(message))),
                "500" => ErrorKind::Bug,
                _ => ErrorKind::Invalid,
            };
            return Err(Tried::Refused(Error::new(kind, message)));
        }
        serde_json::from_slice(&reply.payload).map_err(|e| {
            Tried::Refused(Error::invalid(format!("the answer to {call} cannot be read: {e}")))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_is_away_makes_one_line() {
        let said = Said::default();
        let later = |said: &Said| {
            said.of_silence(Silence::Later, "cannot list s3://data/in: no connection", 300)
        };
        assert_eq!(
            said.of_store("store s3://data: refused", 300).as_deref(),
            Some("waiting up to 300 s for store s3://data: refused")
        );
        assert_eq!(said.of_store("store s3://data: timed out", 300), None);
        assert_eq!(later(&said), None);
        // Of anything else "later" is told.
        let told = later(&Said::default()).expect("a line");
        assert!(
            told.starts_with("the coordinator is asked again for up to 300 s: cannot list"),
            "{told}"
        );
        // Who gives up says what it was that did not come.
        let given_up = |said: &Said, error: Error| said.given_up(error, 60).message;
        said.heard(Some("store s3://data: refused"));
        let words = "given up after 60 s of waiting for store s3://data: refused";
        assert_eq!(given_up(&said, Error::retry("no coordinator answered")), words);
        said.heard(None);
        assert_eq!(
            given_up(&said, Error::retry("no coordinator answered")),
            "no coordinator answered"
        );
        said.heard(Some("store s3://data: refused"));
        assert_eq!(given_up(&said, Error::invalid("no such bucket")), "no such bucket");
        let silent = |answers| {
            let said = Said { answers: AtomicBool::new(answers), ..Said::default() };
            said.of_silence(Silence::NoAnswer, "", 5).is_some()
        };
        assert_eq!([silent(true), silent(false)], [false, true]);
    }
}
