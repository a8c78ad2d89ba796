//! What stands between attempts and a store: a limit of requests, a gate that shuts while the store
//! is away, and second requests for reads that take too long.
//!
//! ```text
//! call ──▶ gate (shut? wait, one trial at a time) ──▶ limit (tokens) ──▶ store ──▶ answer
//!           ▲                                           ▲                            │
//!           └───────────────────────────────────────────┴──── both learn from it ────┘
//! ```
//!
//! While the gate is shut, waiting costs no tries: the work of the attempts pauses, within
//! `retry.store.total_ms`, and goes on by itself. Not the coordinator's breaker of workers: that
//! one looks back over minutes and hands its trials out as tasks, this one must try again within
//! seconds. Files have neither: a disk that fails is no better a second later.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use muster_platform::clock::Clock;
use muster_platform::config::Hedge;
use muster_platform::store::{
    Access, BlobMeta, Blobs, Completed, Layer, OpenUpload, PartAt, Scheme,
};
use muster_platform::survey::{Survey, Wanted};
use muster_protocol::{Error, ErrorKind, Result};

/// Failures in a row that shut the gate.
const FAILURES_MAX: u32 = 5;
/// How long the gate stays shut before a trial: at first, and at most; twice as long after each
/// that failed.
const SHUT_MS: u64 = 1000;
const SHUT_MAX_MS: u64 = 15_000;
/// The limit is halved, and raised, at most once in so long.
const STEP_MS: u64 = 1000;
/// Without a "slow down" for so long there is no limit any more.
const CALM_MS: u64 = 60_000;
/// A leader's limit that is not repeated for so long is over.
const LEADER_LIMIT_MS: u64 = 30_000;
/// Latencies that are remembered.
const LATENCIES: usize = 64;
/// Second requests at once, so that what they read stays small beside the windows.
const HEDGES_MAX: u32 = 2;

/// What is asked for to see whether a store answers; that it is not there is an answer, too.
const PROBE_KEY: &str = "_muster-probe";

/// The guards of a worker's stores.
pub(crate) struct Guards {
    hedge: Hedge,
    /// How long a call may wait for its store, in milliseconds; 0 is no bound.
    wait_max_ms: u64,
    clock: Arc<dyn Clock>,
    gates: Mutex<HashMap<Scheme, Arc<Gate>>>,
}

/// The guard of one store.
struct Gate {
    name: String,
    /// The store itself, to ask it whether it is back when nobody else does.
    store: Arc<dyn Blobs>,
    state: Mutex<State>,
    hedged: AtomicU64,
}

impl Guards {
    /// No store is guarded yet.
    pub(crate) fn new(hedge: Hedge, wait_max_ms: u64, clock: Arc<dyn Clock>) -> Self {
        Self { hedge, wait_max_ms, clock, gates: Mutex::default() }
    }

    /// The leader says how many requests a second each worker may make.
    pub(crate) fn limit(&self, requests_per_s: Option<u32>) {
        let now_ms = self.clock.now_ms();
        for gate in self.lock().values() {
            gate.lock().leader = requests_per_s.map(|limit| (f64::from(limit.max(1)), now_ms));
        }
    }

    /// The store that is waited for, if one is away.
    pub(crate) fn waiting_for(&self) -> Option<String> {
        let gates = self.lock();
        let mut away = gates.values().filter(|gate| gate.lock().shut.is_some());
        away.next().map(|gate| format!("store {}", gate.name))
    }

    /// For how long the store has been away that is away the longest, in milliseconds; 0 while all
    /// answer.
    pub(crate) fn away_ms(&self) -> u64 {
        let now_ms = self.clock.now_ms();
        let since = |gate: &Arc<Gate>| {
            gate.lock().shut.as_ref().map(|shut| now_ms.saturating_sub(shut.since_ms))
        };
        self.lock().values().filter_map(since).max().unwrap_or(0)
    }

    /// How many stores are away.
    pub(crate) fn away(&self) -> usize {
        self.lock().values().filter(|gate| gate.lock().shut.is_some()).count()
    }

    /// Whether a store that is away should be asked again, because nobody else does: work that
    /// would ask is not taken meanwhile.
    pub(crate) fn probe_due(&self) -> bool {
        let now_ms = self.clock.now_ms();
        self.lock().values().any(|gate| gate.lock().trial_is_due(now_ms))
    }

    /// Asks the stores whose trial is due whether they are back.
    pub(crate) async fn probe(&self) {
        let gates: Vec<Arc<Gate>> = self.lock().values().cloned().collect();
        for gate in gates {
            let now_ms = self.clock.now_ms();
            if !gate.lock().trial_is_due(now_ms) || gate.lock().admit(now_ms).is_err() {
                continue;
            }
            let pass = Pass { gate: &gate, answered: false };
            let error = gate.store.head(PROBE_KEY).await.err().map(|error| error.kind);
            pass.settle(self.clock.now_ms(), error);
        }
    }

    /// Second requests so far.
    pub(crate) fn hedged(&self) -> u64 {
        self.lock().values().map(|gate| gate.hedged.load(Ordering::Relaxed)).sum()
    }

    /// Answers "slow down" so far.
    pub(crate) fn throttled(&self) -> u64 {
        self.lock().values().map(|gate| gate.lock().throttled).sum()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Scheme, Arc<Gate>>> {
        self.gates.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Layer for Guards {
    fn over(&self, scheme: &Scheme, store: Arc<dyn Blobs>) -> Arc<dyn Blobs> {
        let name = match scheme {
            Scheme::File | Scheme::Worker { .. } => return store,
            Scheme::S3 { bucket } => format!("s3://{bucket}"),
            Scheme::Memory => "memory://".to_owned(),
        };
        let probed = store.clone();
        let new = || {
            Arc::new(Gate {
                name,
                store: probed,
                state: Mutex::default(),
                hedged: AtomicU64::new(0),
            })
        };
        let gate = self.lock().entry(scheme.clone()).or_insert_with(new).clone();
        let (hedge, clock, wait_max_ms) =
            (self.hedge.clone(), self.clock.clone(), self.wait_max_ms);
        Arc::new(Guarded { store, gate, hedge, clock, wait_max_ms })
    }
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is known of a store. Pure: time comes in.
#[derive(Debug, Default)]
struct State {
    failures: u32,
    shut: Option<Shut>,
    /// Requests a second that the store's own answers allow, where it has said "slow down".
    limit: Option<f64>,
    /// What the leader allows, and when it said so.
    leader: Option<(f64, u64)>,
    tokens: f64,
    filled_ms: u64,
    slowed_ms: u64,
    raised_ms: u64,
    throttled: u64,
    /// The second that is counted, its calls, and those of the one before.
    second: u64,
    calls: u32,
    calls_before: u32,
    latencies: VecDeque<u64>,
    reads: u64,
    hedges: u64,
    hedges_now: u32,
}

#[derive(Debug)]
struct Shut {
    since_ms: u64,
    until_ms: u64,
    for_ms: u64,
    /// Whether a trial is on its way.
    trial: bool,
}

impl State {
    /// Lets a call through, or says how long it waits before it asks again, in milliseconds.
    fn admit(&mut self, now_ms: u64) -> Result<(), u64> {
        if let Some(shut) = &self.shut
            && (shut.trial || now_ms < shut.until_ms)
        {
            return Err(shut.until_ms.saturating_sub(now_ms).clamp(20, 500));
        }
        self.take_token(now_ms)?;
        if let Some(shut) = &mut self.shut {
            shut.trial = true;
        }
        let second = now_ms / 1000;
        if second != self.second {
            self.calls_before = if second == self.second + 1 { self.calls } else { 0 };
            (self.second, self.calls) = (second, 0);
        }
        self.calls += 1;
        Ok(())
    }

    fn trial_is_due(&self, now_ms: u64) -> bool {
        self.shut.as_ref().is_some_and(|shut| !shut.trial && now_ms >= shut.until_ms)
    }

    fn take_token(&mut self, now_ms: u64) -> Result<(), u64> {
        self.leader =
            self.leader.filter(|(_, said_ms)| now_ms.saturating_sub(*said_ms) < LEADER_LIMIT_MS);
        let leader = self.leader.map(|(limit, _)| limit);
        let Some(limit) = [self.limit, leader].into_iter().flatten().reduce(f64::min) else {
            return Ok(());
        };
        let elapsed_ms = now_ms.saturating_sub(self.filled_ms).min(60_000);
        #[expect(clippy::cast_precision_loss, reason = "at most a minute")]
        let more = elapsed_ms as f64 * limit / 1000.0;
        self.tokens = (self.tokens + more).min(limit.max(1.0));
        self.filled_ms = now_ms;
        if self.tokens < 1.0 {
            let wait_ms = ((1.0 - self.tokens) * 1000.0 / limit).ceil();
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "between 1 and 1000"
            )]
            return Err(wait_ms.clamp(1.0, 1000.0) as u64);
        }
        self.tokens -= 1.0;
        Ok(())
    }

    /// Learns from an answer; whether the gate is shut now.
    fn settle(&mut self, now_ms: u64, name: &str, error: Option<ErrorKind>) -> bool {
        match error {
            Some(ErrorKind::Retry) => {
                self.failures = self.failures.saturating_add(1);
                match &mut self.shut {
                    Some(shut) => {
                        shut.trial = false;
                        shut.for_ms = (shut.for_ms * 2).min(SHUT_MAX_MS);
                        shut.until_ms = now_ms + shut.for_ms;
                    }
                    None if self.failures >= FAILURES_MAX => {
                        tracing::warn!(store = %name, failures = self.failures, "partition \
                            suspected: waiting for the store");
                        let (since_ms, until_ms) = (now_ms, now_ms + SHUT_MS);
                        self.shut =
                            Some(Shut { since_ms, until_ms, for_ms: SHUT_MS, trial: false });
                    }
                    None => {}
                }
            }
            // Whatever else it answers, it answers.
            answer => {
                self.failures = 0;
                if let Some(shut) = self.shut.take() {
                    tracing::info!(
                        store = %name,
                        after_ms = now_ms.saturating_sub(shut.since_ms),
                        "partition healed: the store answers"
                    );
                }
                self.adapt(now_ms, name, answer == Some(ErrorKind::Throttled));
            }
        }
        self.shut.is_some()
    }

    /// Halves the limit when the store says so, and raises it slowly while it does not.
    fn adapt(&mut self, now_ms: u64, name: &str, throttled: bool) {
        if throttled {
            self.throttled += 1;
            if self.limit.is_some() && now_ms.saturating_sub(self.slowed_ms) < STEP_MS {
                // The answers to what was sent before the limit was halved.
                return;
            }
            let seen = f64::from(self.calls.max(self.calls_before).max(1));
            let limit = (self.limit.map_or(seen, |limit| limit.min(seen)) / 2.0).max(1.0);
            tracing::warn!(store = %name, requests_per_s = limit, "the store asks for fewer \
                requests");
            (self.limit, self.slowed_ms, self.raised_ms) = (Some(limit), now_ms, now_ms);
        } else if let Some(limit) = self.limit {
            if now_ms.saturating_sub(self.slowed_ms) >= CALM_MS {
                self.limit = None;
            } else if now_ms.saturating_sub(self.raised_ms) >= STEP_MS {
                (self.limit, self.raised_ms) = (Some(limit + (limit / 20.0).max(1.0)), now_ms);
            }
        }
    }

    /// After how long a read is worth a second request, in milliseconds.
    fn hedge_after_ms(&self, hedge: &Hedge) -> Option<u64> {
        let known = self.latencies.len();
        if hedge.share_percent == 0
            || known < (hedge.samples_min as usize).clamp(1, LATENCIES)
            || self.shut.is_some()
        {
            return None;
        }
        let mut sorted: Vec<u64> = self.latencies.iter().copied().collect();
        sorted.sort_unstable();
        let at = (known * hedge.quantile_percent.min(100) as usize / 100).min(known - 1);
        let after_ms = sorted.get(at)?.saturating_mul(u64::from(hedge.factor_percent)) / 100;
        Some(after_ms.max(hedge.after_min_ms))
    }

    /// Whether a second request may go out; it counts then.
    fn begin_hedge(&mut self, hedge: &Hedge) -> bool {
        let share = (self.hedges + 1).saturating_mul(100)
            <= self.reads.saturating_mul(u64::from(hedge.share_percent));
        let may =
            share && self.hedges_now < HEDGES_MAX && self.limit.is_none() && self.leader.is_none();
        if may {
            self.hedges += 1;
            self.hedges_now += 1;
        }
        may
    }

    fn took(&mut self, ms: u64) {
        if self.latencies.len() >= LATENCIES {
            self.latencies.pop_front();
        }
        self.latencies.push_back(ms);
    }
}

/// A call that was let through. Dropped without an answer (the attempt was cancelled), it lets
/// another trial begin.
struct Pass<'a> {
    gate: &'a Gate,
    answered: bool,
}

impl Pass<'_> {
    fn settle(mut self, now_ms: u64, error: Option<ErrorKind>) -> bool {
        self.answered = true;
        self.gate.lock().settle(now_ms, &self.gate.name, error)
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if !self.answered
            && let Some(shut) = &mut self.gate.lock().shut
        {
            shut.trial = false;
        }
    }
}

/// A second request at work.
struct Hedging<'a>(&'a Gate);

impl Drop for Hedging<'_> {
    fn drop(&mut self) {
        self.0.lock().hedges_now -= 1;
    }
}

/// A store behind its guard.
struct Guarded {
    store: Arc<dyn Blobs>,
    gate: Arc<Gate>,
    hedge: Hedge,
    clock: Arc<dyn Clock>,
    wait_max_ms: u64,
}

impl Guarded {
    async fn admit(&self, since_ms: u64) -> Result<Pass<'_>> {
        loop {
            let now_ms = self.clock.now_ms();
            let Err(wait_ms) = self.gate.lock().admit(now_ms) else {
                return Ok(Pass { gate: &self.gate, answered: false });
            };
            let waited_ms = now_ms.saturating_sub(since_ms);
            if self.waited_too_long(waited_ms) {
                let name = &self.gate.name;
                return Err(Error::retry(format!(
                    "waited {waited_ms} ms for store {name} (retry.store.total_ms)"
                )));
            }
            self.clock.pause(wait_ms).await;
        }
    }

    fn waited_too_long(&self, waited_ms: u64) -> bool {
        self.wait_max_ms > 0 && waited_ms >= self.wait_max_ms
    }

    /// Makes a call when it may be made; again while the store is away, which is waited for here.
    async fn call<T, F: Future<Output = Result<T>>>(
        &self,
        mut call: impl FnMut() -> F,
    ) -> Result<T> {
        let since_ms = self.clock.now_ms();
        loop {
            let pass = self.admit(since_ms).await?;
            let result = call().await;
            let now_ms = self.clock.now_ms();
            let shut = pass.settle(now_ms, result.as_ref().err().map(|error| error.kind));
            let away = shut && matches!(&result, Err(error) if error.kind == ErrorKind::Retry);
            if !away || self.waited_too_long(now_ms.saturating_sub(since_ms)) {
                return result;
            }
        }
    }

    async fn read_once(&self, key: &str, range: &Range<u64>, access: Access) -> Result<Bytes> {
        self.call(|| async {
            let begin_ms = self.clock.now_ms();
            let result = self.store.read(key, range.clone(), access).await;
            if result.is_ok() {
                self.gate.lock().took(self.clock.now_ms().saturating_sub(begin_ms));
            }
            result
        })
        .await
    }
}

#[async_trait]
impl Blobs for Guarded {
    async fn list(&self, prefix: &str, limit: usize) -> Result<Vec<BlobMeta>> {
        self.call(|| self.store.list(prefix, limit)).await
    }

    async fn survey(&self, wanted: &Wanted) -> Result<Survey> {
        self.call(|| self.store.survey(wanted)).await
    }

    async fn head(&self, key: &str) -> Result<BlobMeta> {
        self.call(|| self.store.head(key)).await
    }

    async fn read(&self, key: &str, range: Range<u64>, access: Access) -> Result<Bytes> {
        let after_ms = {
            let mut state = self.gate.lock();
            state.reads += 1;
            state.hedge_after_ms(&self.hedge)
        };
        let mut first = std::pin::pin!(self.read_once(key, &range, access));
        let Some(after_ms) = after_ms else { return first.await };
        tokio::select! {
            biased;
            result = &mut first => return result,
            () = self.clock.pause(after_ms) => {}
        }
        if !self.gate.lock().begin_hedge(&self.hedge) {
            return first.await;
        }
        let _hedging = Hedging(&self.gate);
        let count = self.gate.hedged.fetch_add(1, Ordering::Relaxed) + 1;
        tracing::debug!(store = %self.gate.name, key, after_ms, count, "a read takes long: asking \
            a second time");
        // The first answer wins; an error is one only if the other has it, too.
        let mut second = std::pin::pin!(self.store.read(key, range.clone(), access));
        tokio::select! {
            result = &mut first => if result.is_ok() { result } else { second.await.or(result) },
            result = &mut second => if result.is_ok() { result } else { first.await },
        }
    }

    async fn put(&self, key: &str, bytes: Bytes) -> Result<()> {
        self.call(|| self.store.put(key, bytes.clone())).await
    }

    async fn open_upload(&self, key: &str) -> Result<String> {
        self.call(|| self.store.open_upload(key)).await
    }

    async fn upload_part(
        &self,
        key: &str,
        upload: &str,
        at: PartAt,
        data: Bytes,
    ) -> Result<String> {
        self.call(|| self.store.upload_part(key, upload, at, data.clone())).await
    }

    async fn complete_upload(
        &self,
        key: &str,
        upload: &str,
        tags: &[String],
        bytes: u64,
        sync: bool,
    ) -> Result<Completed> {
        self.call(|| self.store.complete_upload(key, upload, tags, bytes, sync)).await
    }

    async fn abort_upload(&self, key: &str, upload: &str) -> Result<()> {
        self.call(|| self.store.abort_upload(key, upload)).await
    }

    async fn list_uploads(&self, prefix: &str, limit: usize) -> Result<Vec<OpenUpload>> {
        self.call(|| self.store.list_uploads(prefix, limit)).await
    }

    async fn delete(&self, key: &str) -> Result<()> {
        self.call(|| self.store.delete(key)).await
    }

    async fn prune(&self, prefix: &str) -> Result<()> {
        self.call(|| self.store.prune(prefix)).await
    }
}

#[cfg(test)]
mod tests;
