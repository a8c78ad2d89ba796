//! A sort that runs here: a private nats-server, a coordinator and workers, for the time of one job.
//!
//! The folder with the server's store is locked. Without `--data-dir` it is a temporary one; with it, a run that was killed is resumed by the same command: the journal
//! knows what is committed, and the job's id is kept beside it.

mod folder;
pub(crate) mod server;

use std::sync::Arc;
use std::time::Duration;

use muster_common::adapters::journal::{JetStreamLedger, ensure_streams};
use muster_common::adapters::nats;
use muster_common::api::JobStatus;
use muster_common::buffer::BufferPool;
use muster_common::clock::{Clock, SystemClock};
use muster_common::config::Config;
use muster_common::plan::JobSpec;
use muster_common::store::Stores;
use muster_common::{Error, ErrorKind, Result};
use muster_coordinator::CoordinatorOptions;
use muster_worker::{Budget, Jobs, WorkerOptions};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::client::Api;
use crate::cmd;
use crate::cmd::watch::to_end;
use crate::exit::Exit;
use crate::local::folder::Folder;
use crate::local::server::PrivateServer;
use crate::progress::Progress;

/// Of the memory, what the private server takes, which is a process of its own, and the coordinator in this one.
const SERVER_BYTES: u64 = 32 << 20;
/// The least memory that a local run works with.
pub(crate) const MEMORY_BYTES_MIN: u64 = 128 << 20;
/// How long the parts may take to end when the job has.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a cancelled job may take to clean up after Ctrl-C.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the API may take to come up.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a local run is made of.
#[derive(Debug, Clone)]
pub(crate) struct LocalOptions {
    /// How many workers.
    pub(crate) workers: u32,
    /// Tasks at once over all workers.
    pub(crate) threads: u32,
    /// Memory of the whole run.
    pub(crate) memory_bytes: u64,
    /// Where state is kept; else in a temporary folder.
    pub(crate) data_dir: Option<std::path::PathBuf>,
    /// Whether the user chose the job's id.
    pub(crate) job_id_given: bool,
}

impl LocalOptions {
    /// The memory of this process, divided among the tasks of all workers.
    fn budget(&self) -> Budget {
        Budget::beside(SERVER_BYTES, self.memory_bytes, self.workers.saturating_mul(self.slots()))
    }

    /// Tasks of one worker at once.
    fn slots(&self) -> u32 {
        (self.threads / self.workers).max(1)
    }

    /// Memory in which one task sorts a chunk: what splits should fit, so that nothing is spilled.
    pub(crate) fn chunk_bytes(&self) -> u64 {
        self.budget().sorter_bytes as u64
    }
}

/// Runs one job to its end, here.
pub(crate) async fn run(
    mut spec: JobSpec,
    config: &Config,
    options: &LocalOptions,
    progress: &mut Progress,
) -> Result<JobStatus, Exit> {
    crate::open_files::make_room(options.workers.saturating_mul(options.slots()))?;
    let folder = Folder::open(options.data_dir.as_deref())?;
    folder.adopt_job(&mut spec, options.job_id_given)?;
    // Spawned on this thread, the process's first: the server dies with the thread that spawns it.
    let server = PrivateServer::start(folder.path()).await?;
    let stop = CancellationToken::new();
    let (leave, left) = watch::channel(false);
    let mut parts = JoinSet::new();
    let api = start_parts(&server, &folder, config, options, (&stop, left), &mut parts).await?;
    let result = tokio::select! {
        result = run_job(&api, &spec, progress) => result,
        Some(ended) = parts.join_next() => Err(part_ended(ended)),
        _ = cmd::end_signal() => Err(interrupted(&api, &spec, options).await),
    };
    stop.cancel();
    leave.send_replace(true);
    // A part that does not end in time ends with the process.
    drop(tokio::time::timeout(STOP_TIMEOUT, async { while parts.join_next().await.is_some() {} }).await);
    server.stop().await;
    if result.is_ok() {
        folder.forget_job()?;
    }
    folder.close();
    result
}

async fn run_job(api: &Api, spec: &JobSpec, progress: &mut Progress) -> Result<JobStatus, Exit> {
    let status = api.submit(spec, &|what| progress.say(what)).await?;
    progress.update(&status);
    Ok(to_end(api, &spec.job, progress, true).await?)
}

fn part_ended(ended: std::result::Result<Result<()>, tokio::task::JoinError>) -> Exit {
    match ended {
        Ok(Ok(())) => Exit::failed("a part of the local run ended early"),
        Ok(Err(error)) => error.into(),
        Err(error) => Exit::failed(format!("a part of the local run ended early: {error}")),
    }
}

/// Ctrl-C: with a data directory the run can be resumed and stays as it is; without one nothing would know of it, so it is cancelled and cleaned up.
async fn interrupted(api: &Api, spec: &JobSpec, options: &LocalOptions) -> Exit {
    if let Some(dir) = &options.data_dir {
        return Exit::interrupted(format!(
            "interrupted; the same command with --data-dir {} resumes it",
            dir.display()
        ));
    }
    let cancelled = async {
        let status = api.cancel(&spec.job).await?;
        // One that was only being planned is gone at once, and nobody knows it any more.
        if status.state.is_terminal() && status.cleaned {
            return Ok(status);
        }
        to_end(api, &spec.job, &mut Progress::new(crate::progress::Show::Nothing), true).await
    };
    match tokio::time::timeout(CANCEL_TIMEOUT, cancelled).await {
        Ok(Ok(_)) => Exit::interrupted("interrupted; the job was cancelled and OUTPUT is as it was"),
        Ok(Err(error)) if error.kind == ErrorKind::NotFound => {
            Exit::interrupted("interrupted before the job began; OUTPUT is as it was")
        }
        Ok(Err(error)) => Exit::interrupted(format!("interrupted; cancelling the job failed: {error}")),
        Err(_) => Exit::interrupted("interrupted; the job was cancelled, but cleaning up took too long"),
    }
}

async fn start_parts(
    server: &PrivateServer,
    folder: &Folder,
    config: &Config,
    options: &LocalOptions,
    (stop, left): (&CancellationToken, watch::Receiver<bool>),
    parts: &mut JoinSet<Result<()>>,
) -> Result<Api> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    let settings = server.settings();
    let client = nats::connect(&settings, config, "muster sort").await?;
    ensure_streams(&client, config).await?;
    let budget = options.budget();
    let mut limits = config.store.clone();
    limits.objects_max = limits.objects_max.min(budget.objects_max());
    let stores = Stores::new(BufferPool::new(budget.buffer_bytes), &limits);

    let leader = nats::connect(&settings, config, "muster coordinator").await?;
    let ledger = Arc::new(JetStreamLedger::new(&leader, config));
    let coordinator = CoordinatorOptions { config: config.clone(), bucket: None, faults: None, vitals: None };
    let (leader_stores, leader_clock) = (stores.clone(), clock.clone());
    parts.spawn(async move {
        let led = muster_coordinator::run(leader, ledger, leader_stores, leader_clock, coordinator, left);
        Box::pin(led).await
    });

    let jobs = Jobs::default();
    for number in 0..options.workers {
        let id = format!("local-{number}").parse().map_err(|e| Error::bug(format!("{e}")))?;
        // Nobody would start it again.
        let mut own = config.clone();
        own.worker.store_wait_ms = 0;
        let worker = WorkerOptions {
            id,
            config: own,
            memory_bytes: options.memory_bytes / u64::from(options.workers),
            budget,
            jobs: jobs.clone(),
            threads: options.slots(),
            labels: Vec::new(),
            data_dir: folder.path().join("spill"),
            host: "localhost".to_owned(),
            program: env!("CARGO_PKG_VERSION").to_owned(),
            input_dirs: Vec::new(),
            own_user: false,
            faults: None,
            vitals: None,
        };
        let client = nats::connect(&settings, config, &format!("muster worker local-{number}")).await?;
        let (stores, clock, stop) = (stores.clone(), clock.clone(), stop.clone());
        parts.spawn(async move { muster_worker::run(client, stores, clock, worker, stop).await.map(drop) });
    }
    Ok(Api::new(client, config, PATIENCE))
}
