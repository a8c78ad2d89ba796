//! `muster coordinator`: connects, waits for NATS, stands by or leads.

use std::sync::Arc;
use std::time::Duration;

use async_nats::Client;
use muster_coordinator::{Claimant, CoordinatorOptions};
use muster_platform::adapters::journal::{JetStreamLedger, ensure_streams};
use muster_platform::adapters::nats;
use muster_platform::adapters::processes;
use muster_platform::adapters::servers::Servers;
use muster_platform::buffer::BufferPool;
use muster_platform::clock::SystemClock;
use muster_platform::config::Config;
use muster_platform::stores::Stores;
use muster_protocol::ErrorKind;

use crate::args::CoordinatorArgs;
use crate::cmd;
use crate::exit::Exit;
use crate::nats_context;

/// Idle buffers of a process that reads plans and manifests only.
const IDLE_BYTES_MAX: usize = 16 << 20;

/// Pause between tries to make the streams.
const STREAMS_PAUSE: Duration = Duration::from_secs(1);

/// Stands by or leads until it is asked to end. A leader that is asked to resigns, so that a
/// stand-by goes on at once.
pub(crate) async fn run(args: CoordinatorArgs) -> Result<(), Exit> {
    cmd::log(args.settings.log_format, "info");
    let config = cmd::settings(&args.settings, &args.nats)?;
    let settings = nats_context::find_or_default(&args.nats).map_err(|e| Exit::usage(e.message))?;
    let bucket = args.bucket.as_deref().map(cmd::blob_url).transpose()?;
    let faults = cmd::faults(args.faults.as_deref(), &config, "coordinator")?;
    let scratch =
        bucket.as_ref().map_or_else(|| "below each job's OUTPUT".to_owned(), ToString::to_string);
    let http = args.http.http.map_or_else(|| "none".to_owned(), |address| address.to_string());
    tracing::info!(
        nats = %settings.public_url(),
        namespace = config.namespace,
        profile = ?args.settings.profile,
        %scratch,
        %http,
        "coordinator starts"
    );
    tracing::debug!(?config, "settings");
    let vitals = cmd::watched("coordinator", &args.http, &config).await?;
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let lead = async {
        let client = nats::connect_waiting(&settings, &config, "muster coordinator").await?;
        if let Some(vitals) = &vitals {
            vitals.connects_by(&client);
        }
        streams_waiting(&client, &config).await?;
        let ledger = Arc::new(JetStreamLedger::new(&client, &config));
        let stores = Stores::new(BufferPool::new(IDLE_BYTES_MAX), &config.store);
        let claimant = Claimant::new(processes::own(false, None), |what| tracing::warn!("{what}"));
        let (faults, servers) = (faults.clone(), Servers::of(&settings));
        let options = CoordinatorOptions {
            config: config.clone(),
            bucket,
            faults,
            servers,
            vitals,
            claimant,
        };
        let clock = Arc::new(SystemClock::default());
        Box::pin(muster_coordinator::run(client, ledger, stores, clock, options, stopped)).await
    };
    tokio::pin!(lead);
    let led = tokio::select! {
        led = &mut lead => led,
        _ = cmd::end_signal() => {
            stop.send_replace(true);
            // The journal holds everything that counts; ending is only a matter of leaving
            // politely.
            tokio::time::timeout(Duration::from_secs(5), lead).await.unwrap_or(Ok(()))
        }
    };
    if let Some(faults) = &faults {
        faults.log_counts();
    }
    Ok(led?)
}

/// Makes the streams, and waits for a JetStream that does not answer yet as it waits for NATS.
async fn streams_waiting(client: &Client, config: &Config) -> muster_protocol::Result<()> {
    let mut told = String::new();
    loop {
        match ensure_streams(client, config).await {
            Err(error) if error.kind == ErrorKind::Retry => {
                if told != error.message {
                    tracing::warn!(%error, "waiting for NATS");
                    told = error.message;
                }
                tokio::time::sleep(STREAMS_PAUSE).await;
            }
            made => return made,
        }
    }
}
