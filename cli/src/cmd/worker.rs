//! `muster worker`: a stable identity, a data directory, and the worker itself.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use muster_platform::adapters::nats;
use muster_platform::buffer::BufferPool;
use muster_platform::clock::{Clock, SystemClock};
use muster_platform::stores::Stores;
use muster_protocol::ids::{InvalidId, WorkerId};
use muster_protocol::names::Names;
use muster_worker::{Budget, Jobs, WorkerOptions};
use tokio_util::sync::CancellationToken;

use crate::apart;
use crate::args::WorkerArgs;
use crate::cmd;
use crate::environment;
use crate::exit::Exit;
use crate::memory;
use crate::nats_context;
use crate::temporary::Temporary;

const ID_FILE: &str = "worker-id";
/// The variable with the identity, where a file of settings holds all of a worker's NATS user.
const ID_VARIABLE: &str = "MUSTER_WORKER_ID";
const LOCK_FILE: &str = "worker-lock";
/// The least memory that a worker works with.
const MEMORY_BYTES_MIN: u64 = 64 << 20;
/// Prefix of temporary folders.
const PREFIX: &str = "muster-worker-";

/// The folder of a worker, locked; removed at the end where it is temporary.
#[derive(Debug)]
struct DataDir {
    path: PathBuf,
    _held: Held,
}

/// What says that the folder is in use.
#[derive(Debug)]
#[expect(dead_code, reason = "they are held, not looked at")]
enum Held {
    Temporary(Temporary),
    Kept(File),
}

/// Works until it is asked to end.
pub(crate) async fn run(args: WorkerArgs) -> Result<(), Exit> {
    cmd::log(args.settings.log_format, "info");
    let config = cmd::settings(&args.settings, &args.nats)?;
    let settings = nats_context::find_or_default(&args.nats).map_err(|e| Exit::usage(e.message))?;
    crate::open_files::make_room(args.threads.unwrap_or_else(cmd::cores))?;
    if let Some(dir) = &args.data_dir {
        apart::check_worker(dir, &args.input_dir)?;
    }
    let data_dir = open_data_dir(args.data_dir.as_deref())?;
    let clock = SystemClock::default();
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let named = environment::text(ID_VARIABLE).map_err(|e| Exit::usage(e.message))?;
    let id =
        identity(args.id.as_deref().or(named.as_deref()), args.data_dir.as_deref(), &host, &clock)?;
    let own_user =
        has_own_user(settings.inbox_prefix.as_deref(), &Names::new(&config.namespace), &id)?;
    let faults = cmd::faults(args.faults.as_deref(), &config, id.as_str())?;
    let vitals = cmd::watched("worker", &args.http, &config).await?;
    let memory_bytes = memory::resolve(args.memory, MEMORY_BYTES_MIN)?;
    let threads = args.threads.unwrap_or_else(cmd::cores);
    let options = WorkerOptions {
        id: id.clone(),
        config: config.clone(),
        memory_bytes,
        budget: Budget::of(memory_bytes, threads),
        jobs: Jobs::default(),
        threads,
        labels: args.labels,
        data_dir: data_dir.path.clone(),
        host,
        program: env!("CARGO_PKG_VERSION").to_owned(),
        input_dirs: args.input_dir,
        own_user,
        faults: faults.clone(),
        vitals: vitals.clone(),
    };
    tracing::info!(
        worker = %id,
        nats = %settings.public_url(),
        memory_bytes = options.memory_bytes,
        threads = options.threads,
        "connecting to NATS"
    );
    let stores = Stores::new(BufferPool::new(options.budget.buffer_bytes), &config.store);
    let stop = CancellationToken::new();
    let work = async {
        let client =
            nats::connect_waiting(&settings, &config, &format!("muster worker {id}")).await?;
        if let Some(vitals) = &vitals {
            vitals.connects_by(&client);
        }
        muster_worker::run(client, stores, Arc::new(clock), options, stop.clone()).await
    };
    tokio::pin!(work);
    let ended = tokio::select! {
        ended = &mut work => ended,
        _ = cmd::end_signal() => {
            stop.cancel();
            let bound = std::time::Duration::from_millis(config.worker.drain_ms + 5000);
            match tokio::time::timeout(bound, &mut work).await {
                Ok(ended) => ended,
                // It was still waiting for NATS, or a store does not answer: what it had is given
                // to others.
                Err(_) => return Ok(()),
            }
        }
    };
    if let Some(faults) = faults {
        faults.log_counts();
    }
    match ended {
        Ok(_) => Ok(()),
        Err(error) if error.kind == muster_protocol::ErrorKind::Retry => {
            Err(Exit::unreachable(error.message))
        }
        Err(error) => Err(error.into()),
    }
}

fn open_data_dir(given: Option<&Path>) -> Result<DataDir, Exit> {
    let Some(dir) = given else {
        let temporary = Temporary::make(PREFIX)?;
        return Ok(DataDir {
            path: temporary.path().to_owned(),
            _held: Held::Temporary(temporary),
        });
    };
    fs::create_dir_all(dir)
        .map_err(|e| Exit::failed(format!("cannot make the folder {}: {e}", dir.display())))?;
    let path = dir.to_owned();
    let lock_path = path.join(LOCK_FILE);
    let opened = File::options().create(true).truncate(false).write(true).open(&lock_path);
    let lock =
        opened.map_err(|e| Exit::failed(format!("cannot open {}: {e}", lock_path.display())))?;
    match lock.try_lock() {
        Ok(()) => Ok(DataDir { path, _held: Held::Kept(lock) }),
        Err(fs::TryLockError::WouldBlock) => {
            Err(Exit::failed(format!("{} is in use by another worker", path.display())))
        }
        Err(fs::TryLockError::Error(e)) => {
            Err(Exit::failed(format!("cannot lock {}: {e}", lock_path.display())))
        }
    }
}

/// The given name, else the one kept in the data directory, else a new one, which is kept where
/// there is a place to keep it.
fn identity(
    given: Option<&str>,
    data_dir: Option<&Path>,
    host: &str,
    clock: &dyn Clock,
) -> Result<WorkerId, Exit> {
    let invalid = |e: InvalidId| Exit::usage(e.to_string());
    if let Some(id) = given {
        return id.parse().map_err(invalid);
    }
    let kept = data_dir.map(|dir| dir.join(ID_FILE));
    if let Some(text) = kept.as_ref().and_then(|path| fs::read_to_string(path).ok()) {
        return text.trim().parse().map_err(invalid);
    }
    let readable: String =
        host.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(40).collect();
    let id: WorkerId =
        format!("w{}-{:08x}", readable.trim_start_matches('-'), clock.random() as u32)
            .parse()
            .map_err(invalid)?;
    if let Some(path) = kept {
        fs::write(&path, id.as_str()).map_err(|e| {
            Exit::failed(format!("cannot keep the worker's identity in {}: {e}", path.display()))
        })?;
    }
    Ok(id)
}

/// Whether the NATS user is this worker's own: its inbox is then, too. The server would refuse
/// every word of a worker that came with the user of another.
fn has_own_user(inbox: Option<&str>, names: &Names, id: &WorkerId) -> Result<bool, Exit> {
    let Some(inbox) = inbox else { return Ok(false) };
    let all = names.own_inboxes();
    match inbox.strip_prefix(&all).filter(|rest| rest.is_empty() || rest.starts_with('.')) {
        None => Ok(false),
        Some(_) if inbox == names.own_inbox(id) => Ok(true),
        Some(_) => Err(Exit::usage(format!(
            "the inbox prefix {inbox} (NATS_INBOX_PREFIX) is not that of worker {id}, {}: give \
                each worker its own user, and its id by --id or {ID_VARIABLE}",
            names.own_inbox(id)
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_platform::clock::ManualClock;

    #[test]
    fn an_identity_outlives_the_process() {
        let dir = tempfile::tempdir().expect("dir");
        let clock = ManualClock::default();
        let first = identity(None, Some(dir.path()), "host.example", &clock).expect("id");
        let second = identity(None, Some(dir.path()), "host.example", &clock).expect("id");
        assert_eq!(first, second);
        assert!(first.as_str().starts_with("whostexample-"));
        assert_eq!(
            identity(Some("given"), Some(dir.path()), "h", &clock).expect("id").as_str(),
            "given"
        );
        assert!(identity(Some("no.dots"), None, "h", &clock).is_err());
    }

    #[test]
    fn a_user_of_ones_own_is_told_by_the_inbox() {
        let names = Names::new("muster");
        let id: WorkerId = "w1".parse().expect("id");
        for (inbox, expected) in [
            (None, Some(false)),
            (Some("_INBOX"), Some(false)),
            (Some("_INBOX_muster_workers"), Some(false)),
            (Some("_INBOX_muster_worker.w1"), Some(true)),
            (Some("_INBOX_muster_worker.w2"), None),
            (Some("_INBOX_muster_worker"), None),
        ] {
            assert_eq!(has_own_user(inbox, &names, &id).ok(), expected, "{inbox:?}");
        }
    }

    #[test]
    fn a_data_dir_serves_one_worker() {
        let dir = tempfile::tempdir().expect("dir");
        let _first = open_data_dir(Some(dir.path())).expect("first");
        assert!(open_data_dir(Some(dir.path())).is_err());
    }
}
