//! One module a command.

pub(crate) mod coordinator;
pub(crate) mod doctor;
pub(crate) mod drill;
pub(crate) mod events;
pub(crate) mod r#gen;
pub(crate) mod history;
pub(crate) mod jobs;
pub(crate) mod manual;
pub(crate) mod order;
pub(crate) mod places;
pub(crate) mod rights;
pub(crate) mod single_output;
pub(crate) mod sort;
pub(crate) mod verify;
pub(crate) mod watch;
pub(crate) mod worker;
pub(crate) mod workers;

pub(crate) use places::url as blob_url;

use std::sync::Arc;
use std::time::Duration;

use muster_platform::adapters::nats;
use muster_platform::adapters::refusals::Refusals;
use muster_platform::clock::SystemClock;
use muster_platform::config::{self, Config};
use muster_platform::faults::{self, Faults};
use muster_platform::http;
use muster_platform::telemetry;
use muster_platform::vitals::Vitals;

use crate::args::{ClientArgs, HttpArgs, LogFormat, NatsArgs, Profile, SettingsArgs};
use crate::client::Api;
use crate::environment;
use crate::exit::{self, Exit};
use crate::nats_context;
use crate::signals::EndSignals;

/// How long a client waits for a leader.
const CLIENT_PATIENCE: Duration = Duration::from_secs(15);

/// Standard input or output, where a path may stand.
pub(crate) const STANDARD: &str = "-";

/// Says which deployment is meant, unless `--namespace` does.
pub(crate) const NAMESPACE_VARIABLE: &str = "MUSTER_NAMESPACE";

/// Settings from file and profile, for the deployment that is meant.
pub(crate) fn settings(args: &SettingsArgs, nats: &NatsArgs) -> Result<Config, Exit> {
    let config = Config::load(profile(args.profile), args.config.as_deref());
    config.and_then(|config| in_namespace(config, nats)).map_err(|e| Exit::usage(e.message))
}

fn in_namespace(config: Config, nats: &NatsArgs) -> muster_protocol::Result<Config> {
    let namespace = match &nats.namespace {
        Some(namespace) => Some(namespace.clone()),
        None => environment::text(NAMESPACE_VARIABLE)?,
    };
    match namespace {
        Some(namespace) => config.in_namespace(&namespace),
        None => Ok(config),
    }
}

/// What profile and file say about single jobs: it goes with a job into a pool.
pub(crate) fn job_settings(args: &SettingsArgs) -> Result<Option<String>, Exit> {
    Config::job_settings(profile(args.profile), args.config.as_deref())
        .map_err(|e| Exit::usage(e.message))
}

fn profile(profile: Profile) -> config::Profile {
    match profile {
        Profile::Development => config::Profile::Development,
        Profile::Testing => config::Profile::Testing,
        Profile::Production => config::Profile::Production,
    }
}

/// The faults that a process of `who` is to inject into itself, where it is asked to.
pub(crate) fn faults(
    spec: Option<&str>,
    config: &Config,
    who: &str,
) -> Result<Option<Arc<Faults>>, Exit> {
    let Some(spec) = spec else { return Ok(None) };
    let enabled_here = std::env::var_os(faults::ENABLE_VARIABLE).is_some_and(|value| value == "1");
    let begun =
        Faults::begin(spec, &config.faults, enabled_here, who, Arc::new(SystemClock::default()));
    begun.map(Some).map_err(|e| Exit::usage(e.message))
}

/// Serves health and metrics of this process, where it is asked to; for as long as it lives.
pub(crate) async fn watched(
    kind: &'static str,
    args: &HttpArgs,
    config: &Config,
) -> Result<Option<Arc<Vitals>>, Exit> {
    let Some(address) = args.http else { return Ok(None) };
    let clock = Arc::new(SystemClock::default());
    let vitals =
        Arc::new(Vitals::new(kind, env!("CARGO_PKG_VERSION"), config.http.stuck_ms, clock)?);
    let server = http::Server::bind(address, vitals.clone()).await?;
    tracing::info!(address = %server.address(), "serving /healthz, /readyz and /metrics");
    tokio::spawn(server.serve());
    Ok(Some(vitals))
}

/// Logging to stderr.
pub(crate) fn log(format: LogFormat, level: &str) {
    let format = match format {
        LogFormat::Text => telemetry::LogFormat::Text,
        LogFormat::Json => telemetry::LogFormat::Json,
    };
    telemetry::init(format, level, std::io::stderr);
}

/// A connection for a command that only asks, with the settings that such commands use.
pub(crate) async fn connect(
    args: &NatsArgs,
) -> Result<(async_nats::Client, Config, Refusals), Exit> {
    let config = Config::profile(config::Profile::Production)?;
    let config = in_namespace(config, args).map_err(|e| Exit::usage(e.message))?;
    let settings = nats_context::find_or_default(args).map_err(|e| Exit::usage(e.message))?;
    let client = nats::connect(&settings, &config, "muster").await.map_err(exit::connecting)?;
    Ok((client, config, settings.refusals))
}

/// The control API, for a command that only asks.
pub(crate) async fn api(args: &NatsArgs) -> Result<Api, Exit> {
    let (client, config, refusals) = connect(args).await?;
    Ok(api_on(&client, &config, refusals))
}

/// The same on a connection that stands.
pub(crate) fn api_on(client: &async_nats::Client, config: &Config, refusals: Refusals) -> Api {
    Api::new(client.clone(), config, CLIENT_PATIENCE).heeding(refusals)
}

/// The control API, for a command that prints.
pub(crate) async fn api_of(args: &ClientArgs) -> Result<Api, Exit> {
    log(LogFormat::Text, "warn");
    api(&args.nats).await
}

/// The machine's cores, as far as this process may use them.
pub(crate) fn cores() -> u32 {
    std::thread::available_parallelism()
        .map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(1024))
}

/// Resolves when the process is asked to end (see [`crate::signals`]). Gives true for Ctrl-C and
/// its like.
pub(crate) async fn end_signal() -> bool {
    EndSignals::watch().next().await
}

/// What `what` would be, where it is one that this version does not have.
pub(crate) fn refuse(given: bool, what: &str) -> Result<(), Exit> {
    if given { Err(exit::not_built(what)) } else { Ok(()) }
}
