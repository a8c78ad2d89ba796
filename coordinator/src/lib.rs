//! The coordinator leads jobs: it plans them, gives tasks to workers, decides what is committed,
//! and keeps what it decided in a journal that only one leader can write.
//!
//! ```text
//!   NATS, stores, clock ─inputs─▶ driver ─▶ job::Machine (pure) ─effects─▶ driver ─▶ NATS, stores
//!                                                │    ▲
//!                                       records  ▼    │ acknowledgements
//!                                           journal::writer ──▶ ledger (JetStream)
//! ```
//!
//! [`run`] lasts for the life of a process: it stands by ([`election`]) until nobody else leads,
//! leads for a term, and stands by again when somebody has taken over. It can be killed at any
//! moment; whoever leads next goes on where the journal stands. A term that ends by a bug of ours
//! is over like any other, but this process then stands back for a while ([`StandBack`]): it, or a
//! stand-by, may meet the same bug in the same journal, and a loop of short terms would help
//! nobody.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use tokio::sync::watch;

use muster_platform::adapters::faulty::FaultyLedger;
use muster_platform::adapters::metered::Meter;
use muster_platform::adapters::processes;
use muster_platform::adapters::servers::Servers;
use muster_platform::claim::{Claims, Owner};
use muster_platform::clock::Clock;
use muster_platform::config::{self, Config};
use muster_platform::faults::Faults;
use muster_platform::ledger::Ledger;
use muster_platform::retry::{Retry, Trouble};
use muster_platform::store::{BlobUrl, Layer};
use muster_platform::stores::Stores;
use muster_platform::vitals::Vitals;
use muster_protocol::ids::DeploymentId;
use muster_protocol::names::Names;
use muster_protocol::{Error, ErrorKind, Result};

mod api;
mod driver;
pub mod election;
pub mod job;
pub mod journal;
mod metrics;
mod outbox;
mod stand_by;

pub use api::Call;
pub use driver::door::{Door, Kind, Letter, Outgoing};
pub use driver::effects::{carry_out_listing, carry_out_on_stores};
pub use driver::fence::Fence;

use metrics::Meters;
use outbox::{NatsStreams, Outbox, Streams};
use stand_by::{Elected, StandBy};

/// For how long a failing call of the store is repeated before the step it belongs to fails, in
/// milliseconds.
const CALL_REPEAT_MS_MAX: u64 = 5000;

/// How long a process stands back after a term that a bug ended, in milliseconds: at first, and at
/// most.
const STAND_BACK_MS: std::ops::RangeInclusive<u64> = 5_000..=300_000;

/// How long a process that ends waits for its streams to take what it has to tell: longer than a
/// pause between two tries.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(2500);

/// What a coordinator is told.
#[derive(Debug, Clone)]
pub struct CoordinatorOptions {
    /// All settings.
    pub config: Config,
    /// Where scratch goes unless a job names a bucket; else below its OUTPUT.
    pub bucket: Option<BlobUrl>,
    /// Faults to inject, where somebody asked for it.
    pub faults: Option<Arc<Faults>>,
    /// The NATS servers that it was told of: each is looked at, so that one that is gone has a
    /// name.
    pub servers: Servers,
    /// Where it tells how it is, where somebody watches it.
    pub vitals: Option<Arc<Vitals>>,
    /// Who it is that claims OUTPUTs.
    pub claimant: Claimant,
}

/// Who claims OUTPUTs for the jobs of a coordinator. Clones share what was claimed.
#[derive(Debug, Clone)]
pub struct Claimant {
    owner: Owner,
    say: fn(&str),
    claims: Arc<Mutex<Option<Claims>>>,
}

impl Claimant {
    /// This process; `say` tells people what of dead runs was removed.
    pub fn new(owner: Owner, say: fn(&str)) -> Self {
        Self { owner, say, claims: Arc::default() }
    }

    /// The claims of this process, once it has led.
    pub fn claims(&self) -> Option<Claims> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn lead(&self, deployment: &DeploymentId, clock: &Arc<dyn Clock>, config: &Config) -> Claims {
        let mut claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || {
            Claims::new(
                deployment.clone(),
                self.owner.clone(),
                processes::look,
                self.say,
                clock.clone(),
                config.claim.clone(),
            )
        };
        claims.get_or_insert_with(new).clone()
    }
}

/// Stands by and leads in turn until `shutdown` becomes true (or its sender is gone). The streams
/// must stand ([`muster_platform::adapters::journal::ensure_streams`]). Running jobs are left as
/// they
/// are: whoever leads next goes on with them.
///
/// # Errors
/// `Invalid` where the journal cannot be read by this build, `Corrupt` where it cannot be read at
/// all.
pub async fn run(
    client: async_nats::Client,
    ledger: Arc<dyn Ledger>,
    stores: Stores,
    clock: Arc<dyn Clock>,
    options: CoordinatorOptions,
    shutdown: watch::Receiver<bool>,
) -> Result<()> {
    let streams: Arc<dyn Streams> =
        Arc::new(NatsStreams { client: client.clone(), faults: options.faults.clone() });
    let names = Names::new(&options.config.namespace);
    let policy = options.config.retry.of(Trouble::Nats);
    let (outbox, _telling) = Outbox::start(names, &streams, policy, clock.clone());
    let outcome =
        Box::pin(terms(client, ledger, stores, clock, options, outbox.clone(), shutdown)).await;
    outbox.flush(FLUSH_TIMEOUT).await;
    outcome
}

async fn terms(
    client: async_nats::Client,
    ledger: Arc<dyn Ledger>,
    stores: Stores,
    clock: Arc<dyn Clock>,
    options: CoordinatorOptions,
    outbox: Outbox,
    mut shutdown: watch::Receiver<bool>,
) -> Result<()> {
    let ledger: Arc<dyn Ledger> = match &options.faults {
        Some(faults) => Arc::new(FaultyLedger::new(ledger, faults.clone())),
        None => ledger,
    };
    let meter = options.vitals.clone().map(|vitals| Arc::new(Meter::new(vitals)) as Arc<dyn Layer>);
    let retry = Retry::new(within_a_step(&options.config), clock.clone());
    let stores = stores.disturbed(options.faults.clone()).metered(meter).retrying(retry);
    let meters = options.vitals.clone().map(|vitals| Arc::new(Meters::new(vitals)));
    let (own_client, config) = (client.clone(), options.config.clone());
    let mut stand_by = StandBy::new(
        own_client,
        ledger.clone(),
        clock.clone(),
        config,
        meters.clone(),
        outbox.clone(),
    );
    let mut stand_back = StandBack::default();
    loop {
        let mut term = None;
        let turn = async {
            let Some(elected) = stand_by.wait(&mut shutdown).await? else { return Ok(()) };
            term = Some((elected.writer.epoch(), clock.now_ms()));
            let parts = Term {
                client: client.clone(),
                ledger: ledger.clone(),
                stores: stores.clone(),
                clock: clock.clone(),
                options: options.clone(),
                meters: meters.clone(),
                outbox: outbox.clone(),
            };
            Box::pin(parts.lead(elected, &mut shutdown)).await
        };
        let outcome = AssertUnwindSafe(Box::pin(turn)).catch_unwind().await;
        let (epoch, began_ms) = term.unwrap_or_else(|| (stand_by.epoch(), clock.now_ms()));
        match outcome
            .unwrap_or_else(|panic| Err(Error::bug(format!("a panic: {}", panic_text(&*panic)))))
        {
            Err(error) if matches!(error.kind, ErrorKind::Fenced | ErrorKind::Retry) => {
                tracing::warn!(%error, epoch = epoch.0, "stepped down");
                stand_by.stepped_down(epoch, &error);
            }
            Err(error) if error.kind == ErrorKind::Bug => {
                let pause_ms = stand_back.after_a_bug(clock.now_ms().saturating_sub(began_ms));
                stand_by.failed(epoch, &error, pause_ms);
                let _standing_back = meters.as_ref().map(|meters| meters.excuse());
                tokio::select! {
                    () = tokio::time::sleep(Duration::from_millis(pause_ms)) => {}
                    _ = shutdown.wait_for(|stop| *stop) => return Ok(()),
                }
            }
            outcome => return outcome,
        }
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a word")
}

/// How long to stand back after terms that ended by bugs: twice as long after each, until a term
/// has lasted.
#[derive(Debug, Default)]
struct StandBack {
    in_a_row: u32,
}

impl StandBack {
    /// The pause after one more such term, which lasted so long, in milliseconds.
    fn after_a_bug(&mut self, lasted_ms: u64) -> u64 {
        // A term that outlasts the longest pause has met another bug, or the same one by other
        // means.
        self.in_a_row =
            if lasted_ms > *STAND_BACK_MS.end() { 1 } else { self.in_a_row.saturating_add(1) };
        let doublings = self.in_a_row.saturating_sub(1).min(16);
        (*STAND_BACK_MS.start() << doublings).min(*STAND_BACK_MS.end())
    }
}

/// The policies for single calls of the store. Steps are tried again as a whole, and look at the
/// fence anew; within one, calls are repeated for a short time only.
fn within_a_step(config: &Config) -> config::Retry {
    let mut policies = config.retry.clone();
    for policy in [&mut policies.store, &mut policies.throttle] {
        policy.total_ms =
            CALL_REPEAT_MS_MAX.min(if policy.total_ms == 0 { u64::MAX } else { policy.total_ms });
    }
    policies
}

/// What one term needs.
struct Term {
    client: async_nats::Client,
    ledger: Arc<dyn Ledger>,
    stores: Stores,
    clock: Arc<dyn Clock>,
    options: CoordinatorOptions,
    meters: Option<Arc<Meters>>,
    outbox: Outbox,
}

impl Term {
    /// Leads until it is fenced or told to stop.
    async fn lead(self, elected: Elected, shutdown: &mut watch::Receiver<bool>) -> Result<()> {
        let Self { client, ledger, stores, clock, options, meters, outbox } = self;
        let Elected { writer, replayed, subscriptions, stalled, cause } = elected;
        let CoordinatorOptions { config, bucket, servers, claimant, .. } = options;
        for refused in &replayed.refused {
            tracing::error!(
                refused,
                "a journal entry contradicts those before it and is passed over"
            );
        }
        let mut machine = job::Machine::new(config.clone(), bucket, replayed.durable)?;
        machine.knows_snapshots(replayed.snapshots);
        tracing::info!(
            epoch = machine.epoch().0,
            deployment = %machine.deployment(),
            %cause,
            "leading"
        );
        let claims = claimant.lead(machine.deployment(), &clock, &config);
        let parts = driver::Parts {
            client,
            ledger,
            stores,
            clock,
            config,
            servers,
            machine,
            writer,
            stalled,
            subscriptions,
            cause,
            damage: replayed.damage,
            meters: meters.clone(),
            claims,
            outbox,
        };
        let starting = meters.as_ref().map(|meters| meters.excuse());
        let driver = Box::pin(driver::Driver::start(parts)).await?;
        drop(starting);
        Box::pin(driver.run(shutdown)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_meets_a_bug_stands_back_longer_each_time() {
        let mut stand_back = StandBack::default();
        let pauses: Vec<u64> = (0..8).map(|_| stand_back.after_a_bug(100)).collect();
        assert_eq!(pauses, [5_000, 10_000, 20_000, 40_000, 80_000, 160_000, 300_000, 300_000]);
        assert_eq!(stand_back.after_a_bug(300_001), 5_000, "after a term that lasted");
        for _ in 0..100 {
            stand_back.after_a_bug(0);
        }
        assert_eq!(stand_back.after_a_bug(0), 300_000);
    }

    #[test]
    fn a_panic_is_told_in_its_own_words() {
        let check =
            |panic: Box<dyn Any + Send>, expected: &str| assert_eq!(panic_text(&*panic), expected);
        check(Box::new("of a literal"), "of a literal");
        check(Box::new("of a text".to_owned()), "of a text");
        check(Box::new(7), "without a word");
    }
}
