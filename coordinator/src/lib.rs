//! The coordinator leads jobs: it plans them, gives tasks to workers, decides what is committed, and keeps what it decided in a journal that only one leader can write.
//!
//! ```text
//!   NATS, stores, clock ──inputs──▶ driver ──▶ job::Machine (pure) ──effects──▶ driver ──▶ NATS, stores
//!                                                   │    ▲
//!                                          records  ▼    │ acknowledgements
//!                                              journal::writer ──▶ ledger (JetStream)
//! ```
//!
//! [`run`] lasts for the life of a process: it stands by ([`election`]) until nobody else leads, leads for a term, and stands by again when somebody has taken over. It can
//! be killed at any moment; whoever leads next goes on where the journal stands.

use std::sync::Arc;

use tokio::sync::watch;

use muster_common::adapters::faulty::FaultyLedger;
use muster_common::adapters::metered::Meter;
use muster_common::clock::Clock;
use muster_common::config::{self, Config};
use muster_common::faults::Faults;
use muster_common::ledger::Ledger;
use muster_common::retry::Retry;
use muster_common::store::{BlobUrl, Layer, Stores};
use muster_common::vitals::Vitals;
use muster_common::{ErrorKind, Result};

mod api;
mod driver;
pub mod election;
pub mod job;
pub mod journal;
pub mod membership;
mod metrics;
mod stand_by;

pub use driver::effects::{carry_out_listing, carry_out_on_stores};
pub use driver::fence::Fence;

use metrics::Meters;
use stand_by::{Elected, StandBy};

/// For how long a failing call of the store is repeated before the step it belongs to fails, in milliseconds.
const CALL_REPEAT_MS_MAX: u64 = 5000;

/// What a coordinator is told.
#[derive(Debug, Clone)]
pub struct CoordinatorOptions {
    /// All settings.
    pub config: Config,
    /// Where scratch goes unless a job names a bucket; else below its OUTPUT.
    pub bucket: Option<BlobUrl>,
    /// Faults to inject, where somebody asked for it.
    pub faults: Option<Arc<Faults>>,
    /// Where it tells how it is, where somebody watches it.
    pub vitals: Option<Arc<Vitals>>,
}

/// Stands by and leads in turn until `shutdown` becomes true (or its sender is gone). The streams must stand
/// ([`muster_common::adapters::journal::ensure_streams`]). Running jobs are left as they are: whoever leads next goes on with them.
///
/// # Errors
/// `Invalid` where the journal cannot be read by this build; `Bug` where a promise of our own is broken.
pub async fn run(
    client: async_nats::Client,
    ledger: Arc<dyn Ledger>,
    stores: Stores,
    clock: Arc<dyn Clock>,
    options: CoordinatorOptions,
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
    let mut stand_by = StandBy::new(own_client, ledger.clone(), clock.clone(), config, meters.clone());
    loop {
        let Some(elected) = stand_by.wait(&mut shutdown).await? else { return Ok(()) };
        let epoch = elected.writer.epoch();
        let term = Term {
            client: client.clone(),
            ledger: ledger.clone(),
            stores: stores.clone(),
            clock: clock.clone(),
            options: options.clone(),
            meters: meters.clone(),
        };
        match Box::pin(term.lead(elected, &mut shutdown)).await {
            Err(error) if matches!(error.kind, ErrorKind::Fenced | ErrorKind::Retry) => {
                tracing::warn!(%error, epoch = epoch.0, "stepped down");
                stand_by.stepped_down(epoch, &error).await;
            }
            outcome => return outcome,
        }
    }
}

/// The policies for single calls of the store. Steps are tried again as a whole, and look at the fence anew; within one, calls are repeated for a short time only.
fn within_a_step(config: &Config) -> config::Retry {
    let mut policies = config.retry.clone();
    for policy in [&mut policies.store, &mut policies.throttle] {
        policy.total_ms = CALL_REPEAT_MS_MAX.min(if policy.total_ms == 0 { u64::MAX } else { policy.total_ms });
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
}

impl Term {
    /// Leads until it is fenced or told to stop.
    async fn lead(self, elected: Elected, shutdown: &mut watch::Receiver<bool>) -> Result<()> {
        let Self { client, ledger, stores, clock, options, meters } = self;
        let Elected { writer, replayed, subscriptions, stalled, cause } = elected;
        let CoordinatorOptions { config, bucket, .. } = options;
        for refused in &replayed.refused {
            tracing::error!(refused, "a journal entry contradicts those before it and is passed over");
        }
        let mut machine = job::Machine::new(config.clone(), bucket, replayed.durable)?;
        machine.knows_snapshots(replayed.snapshots);
        tracing::info!(epoch = machine.epoch().0, deployment = %machine.deployment(), %cause, "leading");
        let parts = driver::Parts {
            client,
            ledger,
            stores,
            clock,
            config,
            machine,
            writer,
            stalled,
            subscriptions,
            cause,
            damage: replayed.damage,
            meters: meters.clone(),
        };
        let starting = meters.as_ref().map(|meters| meters.excuse());
        let driver = driver::Driver::start(parts).await?;
        drop(starting);
        Box::pin(driver.run(shutdown)).await
    }
}
