//! The coordinator leads jobs: it plans them, gives tasks to workers, decides what is committed, and keeps what it decided in a journal that only one leader can write.
//!
//! ```text
//!   NATS, stores, clock ──inputs──▶ driver ──▶ job::Machine (pure) ──effects──▶ driver ──▶ NATS, stores
//!                                                   │    ▲
//!                                          records  ▼    │ acknowledgements
//!                                              journal::writer ──▶ ledger (JetStream)
//! ```
//!
//! [`run`] leads for one term: from beginning an epoch to being told to stop, or being fenced. It can be killed at any moment; the next one goes on where the journal stands.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use muster_common::Result;
use muster_common::clock::Clock;
use muster_common::config::Config;
use muster_common::ledger::Ledger;
use muster_common::store::{BlobUrl, Stores};

mod api;
mod driver;
pub mod job;
pub mod journal;

/// What a coordinator is told.
#[derive(Debug, Clone)]
pub struct CoordinatorOptions {
    /// All settings.
    pub config: Config,
    /// Where scratch goes unless a job names a bucket; else below its OUTPUT.
    pub bucket: Option<BlobUrl>,
}

/// Leads one term: reads the journal, begins an epoch, serves until `shutdown` becomes true (or its sender is gone). The streams must stand
/// ([`muster_common::adapters::journal::ensure_streams`]). Running jobs are left as they are: whoever leads next goes on with them.
///
/// # Errors
/// `Fenced` where another coordinator has begun a newer epoch; `Invalid` where the journal was written by a newer build; `Retry` where NATS does not take a subscription.
pub async fn run(
    client: async_nats::Client,
    ledger: Arc<dyn Ledger>,
    stores: Stores,
    clock: Arc<dyn Clock>,
    options: CoordinatorOptions,
    mut shutdown: watch::Receiver<bool>,
) -> Result<()> {
    let CoordinatorOptions { config, bucket } = options;
    let (stalled_sender, stalled) = watch::channel(None);
    let append_timeout = Duration::from_millis(config.journal.append_timeout_ms);
    let begin = journal::writer::JournalWriter::begin(ledger, clock.clone(), append_timeout, stalled_sender);
    let (writer, replayed) = tokio::select! {
        begun = begin => begun?,
        _ = shutdown.wait_for(|stop| *stop) => return Ok(()),
    };
    for refused in &replayed.refused {
        tracing::error!(refused, "a journal entry contradicts those before it and is passed over");
    }
    let machine = job::Machine::new(config.clone(), bucket, replayed.durable)?;
    tracing::info!(epoch = machine.epoch().0, deployment = %machine.deployment(), "leading");
    let parts = driver::Parts { client, stores, clock, config, machine, writer, stalled };
    driver::Driver::start(parts).await?.run(shutdown).await
}
