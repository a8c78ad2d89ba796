//! A real nats-server with JetStream that syncs before it acknowledges, on a port of its own choice.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use super::process::Process;
use super::sandbox::Sandbox;
use super::{programs, wait};

/// A server that ends with the test.
#[derive(Debug)]
pub struct NatsServer {
    process: Process,
    address: SocketAddr,
}

impl NatsServer {
    /// Starts one with its store in `<sandbox>/nats`, and waits until it answers.
    ///
    /// # Panics
    /// Where it does not within [`wait::START_BOUND`].
    #[track_caller]
    pub fn start(sandbox: &Sandbox) -> Self {
        Self::start_on(sandbox, None)
    }

    /// Ends it as a crash would, and starts it again on the same port and store.
    #[track_caller]
    pub fn crash_and_restart(&mut self, sandbox: &Sandbox) {
        self.process.kill();
        *self = Self::start_on(sandbox, Some(self.address.port()));
    }

    /// What clients connect to.
    pub fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    #[track_caller]
    fn start_on(sandbox: &Sandbox, port: Option<u16>) -> Self {
        let home = sandbox.path("nats");
        fs::create_dir_all(&home).expect("a folder can be made");
        let port = port.map_or("-1".to_owned(), |port| port.to_string());
        let settings = format!(
            "listen: \"127.0.0.1:{port}\"\nports_file_dir: {home:?}\njetstream {{ store_dir: {:?}, sync_interval: always }}\n",
            home.join("store")
        );
        let config = sandbox.file("nats/nats.conf", settings);
        let mut command = sandbox.clean_command(programs::nats_server());
        command.arg("-c").arg(config);
        let mut process = Process::spawn("nats-server", command, &sandbox.logs());
        let ports: PathBuf = home.join(format!("nats-server_{}.ports", process.id()));
        let address = wait::until("nats-server to answer", wait::START_BOUND, || {
            process.assert_running();
            let address = announced(&ports)?;
            greets(address).then_some(address)
        });
        Self { process, address }
    }
}

/// The address in a server's file of ports, once it is there and whole.
fn announced(ports: &PathBuf) -> Option<SocketAddr> {
    let ports: Value = serde_json::from_slice(&fs::read(ports).ok()?).ok()?;
    ports["nats"][0].as_str()?.strip_prefix("nats://")?.parse().ok()
}

/// Whether a NATS server says its INFO there.
fn greets(address: SocketAddr) -> bool {
    let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_secs(1)) else { return false };
    let mut line = String::new();
    stream.set_read_timeout(Some(Duration::from_secs(1))).is_ok()
        && BufReader::new(stream).read_line(&mut line).is_ok()
        && line.starts_with("INFO ")
}
