//! A sort that runs here: a private nats-server, a coordinator and workers, for the time of one
//! job.
//!
//! The folder with the server's store is locked. Without `--data-dir` it is a temporary one; with
//! it, a run that was killed is resumed by the same command: the journal knows what is committed,
//! and the job's id is kept beside it.

mod folder;
mod room;
pub(crate) mod server;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use muster_coordinator::{Claimant, CoordinatorOptions};
use muster_platform::adapters::journal::{JetStreamLedger, ensure_streams};
use muster_platform::adapters::nats;
use muster_platform::adapters::processes;
use muster_platform::adapters::servers::Servers;
use muster_platform::buffer::BufferPool;
use muster_platform::clock::{Clock, SystemClock};
use muster_platform::config::Config;
use muster_platform::stores::Stores;
use muster_protocol::api::{JobState, JobStatus};
use muster_protocol::plan::JobSpec;
use muster_protocol::{Error, ErrorKind, Result};
use muster_worker::{Budget, Jobs, WorkerOptions};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::client::Api;
use crate::cmd::jobs::calling;
use crate::cmd::watch::{to_end, warn};
use crate::exit::Exit;
use crate::local::folder::Folder;
use crate::local::room::Shortage;
use crate::local::server::PrivateServer;
use crate::output;
use crate::progress::Progress;
use crate::signals::EndSignals;

/// Of the memory, what the private server takes, which is a process of its own, and the coordinator
/// in this one.
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

/// What a run is made of while it lasts.
struct Parts {
    server: Option<PrivateServer>,
    running: JoinSet<Result<()>>,
    /// Ends the workers.
    stop: CancellationToken,
    /// Ends the coordinator.
    leave: watch::Sender<bool>,
}

impl Parts {
    async fn end(mut self) {
        self.stop.cancel();
        self.leave.send_replace(true);
        // A part that does not end in time ends with the process.
        let all = async { while self.running.join_next().await.is_some() {} };
        drop(tokio::time::timeout(STOP_TIMEOUT, all).await);
        if let Some(server) = self.server {
            server.stop().await;
        }
    }
}

/// What bears this process's mark: its stores, and its claim on OUTPUT.
struct Here {
    stores: Stores,
    claimant: Claimant,
}

impl Here {
    fn new(config: &Config, options: &LocalOptions) -> Self {
        let budget = options.budget();
        let mut limits = config.store.clone();
        limits.objects_max = limits.objects_max.min(budget.objects_max());
        let mark = SystemClock::default().random() as u32;
        Self {
            stores: Stores::new(BufferPool::new(budget.buffer_bytes), &limits)
                .marked(mark)
                .with_lists_bytes_max(budget.lists_bytes_max()),
            claimant: Claimant::new(processes::own(true, Some(mark)), |what| {
                output::error_line(&format!("muster: {what}"));
            }),
        }
    }

    /// What was claimed for a job that was refused, or never came to be, goes with this process.
    async fn withdraw(&self) {
        let Some(claims) = self.claimant.claims() else { return };
        match tokio::time::timeout(STOP_TIMEOUT, claims.withdraw_planned(&self.stores)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                output::error_line(&format!(
                    "muster: the claim on OUTPUT stays, until the next run: {error}"
                ));
            }
            Err(_) => {
                output::error_line(
                    "muster: the claim on OUTPUT stays, until the next run: the store does not \
                        answer",
                );
            }
        }
    }
}

/// Runs one job to its end, here.
pub(crate) async fn run(
    mut spec: JobSpec,
    config: &Config,
    options: &LocalOptions,
    progress: &mut Progress,
) -> Result<JobStatus, Exit> {
    // From here on no signal kills: what is made is removed.
    let mut signals = EndSignals::watch();
    crate::signals::outlive_file_size_limit();
    crate::open_files::make_room(options.workers.saturating_mul(options.slots()))?;
    if let Some(dir) = &options.data_dir {
        crate::apart::check_run(dir, &spec)?;
    }
    let folder = Folder::open(options.data_dir.as_deref())?;
    let other = folder.adopt_job(&mut spec, options.job_id_given)?;
    let (leave, left) = watch::channel(false);
    let mut parts =
        Parts { server: None, running: JoinSet::new(), stop: CancellationToken::new(), leave };
    let here = Here::new(config, options);
    let begun = tokio::select! {
        begun = begin(&folder, (&spec, other), config, options, (&mut parts, left), &here) => begun,
        _ = signals.next() => Err(Exit::interrupted("interrupted before the job began; OUTPUT is \
            as it was")),
    };
    let result = match begun {
        Ok(api) => tokio::select! {
            result = run_job(&api, &spec, config, (options, folder.path()), progress) => result,
            Some(ended) = parts.running.join_next() => Err(part_ended(ended)),
            _ = signals.next() => Err(interrupted(&api, &spec, options, &mut signals).await),
        },
        Err(exit) => Err(exit),
    };
    parts.end().await;
    here.withdraw().await;
    if result.is_ok() {
        folder.forget_job()?;
    }
    folder.close();
    result
}

/// Starts everything. The job of another command in the folder counts only if the journal there
/// knows it: one that was refused, or interrupted while it was planned, is given up.
async fn begin(
    folder: &Folder,
    (spec, other): (&JobSpec, Option<JobSpec>),
    config: &Config,
    options: &LocalOptions,
    (parts, left): (&mut Parts, watch::Receiver<bool>),
    here: &Here,
) -> Result<Api, Exit> {
    // Spawned on this thread, the process's first: the server dies with the thread that spawns it.
    let server = &*parts.server.insert(PrivateServer::start(folder.path()).await?);
    let stores = &here.stores;
    let client = nats::connect(&server.settings(), config, "muster sort").await?;
    ensure_streams(&client, config).await?;
    start_coordinator(server, config, here, left, &mut parts.running).await?;
    let api = Api::new(client, config, PATIENCE);
    if let Some(other) = other {
        match api.status(&other.job).await {
            Ok(status) if !status.state.is_terminal() => {
                return Err(folder.held_by_another(&other).into());
            }
            Err(error) if error.kind != ErrorKind::NotFound => return Err(error.into()),
            Ok(_) | Err(_) => folder.keep_job(spec)?,
        }
    }
    start_workers(server, folder, config, options, (stores, &parts.stop), &mut parts.running)
        .await?;
    Ok(api)
}

async fn run_job(
    api: &Api,
    spec: &JobSpec,
    config: &Config,
    (options, folder): (&LocalOptions, &Path),
    progress: &mut Progress,
) -> Result<JobStatus, Exit> {
    let status = api.submit(spec, &|what| progress.say(what)).await.map_err(calling)?;
    if progress.is_shown() {
        warn(&status, progress);
    }
    // What a run that is resumed has written is no longer free, nor needed.
    let fresh = matches!(status.state, JobState::Submitted | JobState::Sampling);
    let memory = (options.workers.saturating_mul(options.slots()), options.chunk_bytes());
    for shortage in room::shortages(spec, config, folder, memory, status.input_bytes) {
        match shortage {
            Shortage::Surely(text) if fresh => {
                api.cancel(&spec.job).await?;
                to_end(api, &spec.job, progress, true).await?;
                return Err(Exit::failed(format!("the job was not begun: {text}")));
            }
            Shortage::Surely(text) | Shortage::Perhaps(text) if progress.is_shown() => {
                output::error_line(&format!("muster: {text}"));
            }
            Shortage::Surely(_) | Shortage::Perhaps(_) => {}
        }
    }
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

/// Ctrl-C and its like: with a data directory the run can be resumed and stays as it is; without
/// one nothing would know of it, so it is cancelled and cleaned up. Who asks once more does not
/// wait for that.
async fn interrupted(
    api: &Api,
    spec: &JobSpec,
    options: &LocalOptions,
    signals: &mut EndSignals,
) -> Exit {
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
    let ended = tokio::select! {
        ended = tokio::time::timeout(CANCEL_TIMEOUT, cancelled) => ended,
        _ = signals.next() => {
            return Exit::interrupted(format!("interrupted twice; unfinished parts may be left in \
                {}", spec.output));
        }
    };
    match ended {
        Ok(Ok(_)) => {
            Exit::interrupted("interrupted; the job was cancelled and OUTPUT is as it was")
        }
        Ok(Err(error)) if error.kind == ErrorKind::NotFound => {
            Exit::interrupted("interrupted before the job began; OUTPUT is as it was")
        }
        Ok(Err(error)) => {
            Exit::interrupted(format!("interrupted; cancelling the job failed: {error}"))
        }
        Err(_) => {
            Exit::interrupted("interrupted; the job was cancelled, but cleaning up took too long")
        }
    }
}

async fn start_coordinator(
    server: &PrivateServer,
    config: &Config,
    here: &Here,
    left: watch::Receiver<bool>,
    parts: &mut JoinSet<Result<()>>,
) -> Result<()> {
    let client = nats::connect(&server.settings(), config, "muster coordinator").await?;
    let ledger = Arc::new(JetStreamLedger::new(&client, config));
    let claimant = here.claimant.clone();
    let options = CoordinatorOptions {
        config: config.clone(),
        bucket: None,
        faults: None,
        servers: Servers::default(),
        vitals: None,
        claimant,
    };
    let (stores, clock) = (here.stores.clone(), Arc::new(SystemClock::default()));
    parts.spawn(async move {
        let led = muster_coordinator::run(client, ledger, stores, clock, options, left);
        Box::pin(led).await
    });
    Ok(())
}

async fn start_workers(
    server: &PrivateServer,
    folder: &Folder,
    config: &Config,
    options: &LocalOptions,
    (stores, stop): (&Stores, &CancellationToken),
    parts: &mut JoinSet<Result<()>>,
) -> Result<()> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    let (budget, jobs) = (options.budget(), Jobs::default());
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
        let client =
            nats::connect(&server.settings(), config, &format!("muster worker local-{number}"))
                .await?;
        let (stores, clock, stop) = (stores.clone(), clock.clone(), stop.clone());
        parts.spawn(async move {
            muster_worker::run(client, stores, clock, worker, stop).await.map(drop)
        });
    }
    Ok(())
}
