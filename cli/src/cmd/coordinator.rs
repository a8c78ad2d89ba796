//! `muster coordinator`: connects, waits for NATS, leads.

use std::sync::Arc;

use muster_common::adapters::journal::{JetStreamLedger, ensure_streams};
use muster_common::adapters::nats;
use muster_common::buffer::BufferPool;
use muster_common::clock::SystemClock;
use muster_common::store::Stores;
use muster_coordinator::CoordinatorOptions;

use crate::args::CoordinatorArgs;
use crate::cmd::{self, refuse};
use crate::exit::Exit;
use crate::nats_context;

/// Idle buffers of a process that reads plans and manifests only.
const IDLE_BYTES_MAX: usize = 16 << 20;

/// Leads jobs until it is asked to end.
pub(crate) async fn run(args: CoordinatorArgs) -> Result<(), Exit> {
    cmd::log(args.settings.log_format, "info");
    refuse(args.http.is_some(), "--http")?;
    refuse(args.faults.is_some(), "--faults")?;
    let config = cmd::settings(&args.settings)?;
    let settings = nats_context::find_or_default(&args.nats).map_err(|e| Exit::usage(e.message))?;
    let bucket = args.bucket.as_deref().map(cmd::blob_url).transpose()?;
    tracing::info!(nats = %settings.public_url(), ?config, "coordinator starts");
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let lead = async {
        let client = nats::connect_waiting(&settings, &config, "muster coordinator").await?;
        ensure_streams(&client, &config).await?;
        let ledger = Arc::new(JetStreamLedger::new(&client, &config));
        let stores = Stores::new(BufferPool::new(IDLE_BYTES_MAX));
        let options = CoordinatorOptions { config: config.clone(), bucket };
        muster_coordinator::run(client, ledger, stores, Arc::new(SystemClock::default()), options, stopped).await
    };
    tokio::pin!(lead);
    tokio::select! {
        led = &mut lead => return Ok(led?),
        _ = cmd::end_signal() => drop(stop.send_replace(true)),
    }
    // The journal holds everything that counts; ending is only a matter of leaving politely.
    match tokio::time::timeout(std::time::Duration::from_secs(5), lead).await {
        Ok(led) => Ok(led?),
        Err(_) => Ok(()),
    }
}
