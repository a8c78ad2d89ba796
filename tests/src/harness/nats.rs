//! A real nats-server with JetStream that syncs before it acknowledges, on a port of its own choice.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use super::process::Process;
use super::sandbox::Sandbox;
use super::{programs, wait};

/// A server that ends with the test.
#[derive(Debug)]
pub struct NatsServer {
    process: Process,
    store: PathBuf,
    address: SocketAddr,
    monitor: SocketAddr,
}

impl NatsServer {
    /// Starts one with its store in `<sandbox>/nats`, and waits until it answers.
    ///
    /// # Panics
    /// Where it does not within [`wait::START_BOUND`].
    #[track_caller]
    pub fn start(sandbox: &Sandbox) -> Self {
        Self::start_on(sandbox, sandbox.path("nats/store"), None)
    }

    /// Starts one on a store that another server has left.
    #[track_caller]
    pub fn on_store(sandbox: &Sandbox, store: PathBuf) -> Self {
        Self::start_on(sandbox, store, None)
    }

    /// Ends it as a crash would, and starts it again on the same port and store.
    #[track_caller]
    pub fn crash_and_restart(&mut self, sandbox: &Sandbox) {
        self.kill();
        self.start_again(sandbox);
    }

    /// Ends it as a crash would.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again on the same port and store, and waits until it answers.
    #[track_caller]
    pub fn start_again(&mut self, sandbox: &Sandbox) {
        *self = Self::start_on(sandbox, self.store.clone(), Some(self.address.port()));
    }

    /// Sends it a signal, if it still runs.
    pub fn signal(&mut self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// What clients connect to.
    pub fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    /// `host:port` of its monitoring port.
    pub fn monitor(&self) -> String {
        self.monitor.to_string()
    }

    #[track_caller]
    fn start_on(sandbox: &Sandbox, store: PathBuf, port: Option<u16>) -> Self {
        let home = sandbox.path("nats");
        fs::create_dir_all(&home).expect("a folder can be made");
        let port = port.map_or("-1".to_owned(), |port| port.to_string());
        let settings = format!(
            "listen: \"127.0.0.1:{port}\"\nhttp: \"127.0.0.1:-1\"\nports_file_dir: {home:?}\njetstream {{ store_dir: {store:?}, sync_interval: always }}\n"
        );
        let config = sandbox.file("nats/nats.conf", settings);
        let mut command = sandbox.clean_command(programs::nats_server());
        command.arg("-c").arg(config);
        let mut process = Process::spawn("nats-server", command, &sandbox.logs());
        let ports: PathBuf = home.join(format!("nats-server_{}.ports", process.id()));
        let (address, monitor) = wait::until("nats-server to answer", wait::START_BOUND, || {
            process.assert_running();
            let address = announced(&ports, "nats", "nats://")?;
            let monitor = announced(&ports, "monitoring", "http://")?;
            greets(address).then_some((address, monitor))
        });
        Self { process, store, address, monitor }
    }
}

/// An address in a server's file of ports, once it is there and whole.
fn announced(ports: &PathBuf, kind: &str, scheme: &str) -> Option<SocketAddr> {
    let ports: Value = serde_json::from_slice(&fs::read(ports).ok()?).ok()?;
    ports[kind][0].as_str()?.strip_prefix(scheme)?.parse().ok()
}

/// Whether a NATS server says its INFO there.
fn greets(address: SocketAddr) -> bool {
    let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_secs(1)) else { return false };
    let mut line = String::new();
    stream.set_read_timeout(Some(Duration::from_secs(1))).is_ok()
        && BufReader::new(stream).read_line(&mut line).is_ok()
        && line.starts_with("INFO ")
}
