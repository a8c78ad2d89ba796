//! Real nats-servers with JetStream that sync before they acknowledge: one on ports of its own
//! choice, or three that are a cluster.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::TryStreamExt;
use muster_coordinator::journal::record;
use muster_protocol::names::{DEFAULT_NAMESPACE, Names};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::ports::Ports;
use super::process::Process;
use super::relay::{Relay, Weather};
use super::sandbox::Sandbox;
use super::{programs, wait};

/// Servers of a cluster.
pub const MEMBERS: usize = 3;
/// The one of them that a partition cuts off.
pub const LONE: usize = 0;
/// Where nobody listens.
const NOWHERE: &str = "127.0.0.1:1";
/// Of servers of two sides: everybody is let in to the one account, and who gives this name and
/// password to that in which the servers themselves are asked.
const SYSTEM: &str = "system";
/// Bound of one request to a server that may have no quorum.
const REQUEST_BOUND: Duration = Duration::from_secs(2);

/// A server that ends with the test.
#[derive(Debug)]
pub struct NatsServer {
    process: Process,
    setup: Setup,
    address: SocketAddr,
    monitor: SocketAddr,
}

/// What a server is started with, the first time and again.
#[derive(Debug, Clone)]
struct Setup {
    name: String,
    store: PathBuf,
    /// Nothing where it may choose.
    port: Option<u16>,
    /// Settings of JetStream, and others, beside those that all have.
    jetstream: String,
    more: String,
    /// A file of settings that somebody made, in place of those that all have.
    made: Option<String>,
}

impl NatsServer {
    /// Starts one with its store in `<sandbox>/nats`, and waits until it answers.
    ///
    /// # Panics
    /// Where it does not within [`wait::START_BOUND`].
    #[track_caller]
    pub fn start(sandbox: &Sandbox) -> Self {
        Self::on_store(sandbox, sandbox.path("nats/store"))
    }

    /// Starts one on a store that another server has left.
    #[track_caller]
    pub fn on_store(sandbox: &Sandbox, store: PathBuf) -> Self {
        Self::start_with(sandbox, Setup::single(store))
    }

    /// Starts one with settings that somebody made, on ports of its own choice.
    #[track_caller]
    pub fn made(sandbox: &Sandbox, settings: &Path) -> Self {
        Self::start_with(sandbox, Setup::made(sandbox, settings, None))
    }

    /// Starts one whose JetStream may write so many bytes, those reserved for streams among them.
    #[track_caller]
    pub fn with_room_for(sandbox: &Sandbox, bytes: u64) -> Self {
        let setup = Setup::single(sandbox.path("nats/store"));
        Self::start_with(
            sandbox,
            Setup { jetstream: format!(", max_file_store: {bytes}"), ..setup },
        )
    }

    /// Starts one that lets nobody in but this user.
    #[track_caller]
    pub fn with_user(sandbox: &Sandbox, user: &str, password: &str) -> Self {
        let more = format!("authorization {{ user: {user:?}, password: {password:?} }}\n");
        Self::start_with(sandbox, Setup { more, ..Setup::single(sandbox.path("nats/store")) })
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
        *self = Self::start_with(sandbox, Setup { port: Some(self.port()), ..self.setup.clone() });
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

    /// Streams beside muster's three, those of them that are missing, and consumers on any; or that
    /// it does not answer.
    pub fn strange_streams_and_consumers(&self) -> Vec<String> {
        let names = Names::new(DEFAULT_NAMESPACE);
        let mut missing = BTreeSet::from([
            names.journal_stream(),
            names.events_stream(),
            names.dead_letters_stream(),
        ]);
        let strange = ask(&self.url(), async |js| {
            let mut strange = Vec::new();
            let mut streams = js.stream_names();
            while let Some(name) = streams.try_next().await.ok()? {
                let stream = js.get_stream(&name).await.ok()?;
                let mut consumers = stream.consumer_names();
                while let Some(consumer) = consumers.try_next().await.ok()? {
                    strange.push(format!("consumer {consumer} of {name}"));
                }
                if !missing.remove(&name) {
                    strange.push(format!("stream {name}"));
                }
            }
            strange.extend(missing.iter().map(|name| format!("no stream {name}")));
            Some(strange)
        });
        strange.unwrap_or_else(|| vec!["JetStream does not answer".to_owned()])
    }

    #[track_caller]
    fn start_with(sandbox: &Sandbox, setup: Setup) -> Self {
        let (mut process, ports) = setup.spawn(sandbox);
        let (address, monitor) =
            wait::until(&format!("{} to answer", setup.name), wait::START_BOUND, || {
                process.assert_running();
                let address = announced(&ports, "nats")?;
                let monitor = announced(&ports, "monitoring")?;
                greets(address).then_some((address, monitor))
            });
        Self { process, setup, address, monitor }
    }
}

impl Setup {
    fn single(store: PathBuf) -> Self {
        let (jetstream, more) = (String::new(), String::new());
        Self { name: "nats-server".to_owned(), store, port: None, jetstream, more, made: None }
    }

    fn made(sandbox: &Sandbox, settings: &Path, port: Option<u16>) -> Self {
        let name = settings.file_stem().expect("a file has a name").to_string_lossy().into_owned();
        // Included files are looked for from where the one stands that includes them.
        let inside =
            settings.strip_prefix(sandbox.path("")).expect("the settings lie in the sandbox");
        let made = Some(format!("../{}", inside.display()));
        Self { name, port, made, ..Self::single(sandbox.path("nats/unused")) }
    }

    /// Starts the process; gives it with the file in which it will announce its ports.
    fn spawn(&self, sandbox: &Sandbox) -> (Process, PathBuf) {
        let Self { name, store, port, jetstream, more, made } = self;
        let home = sandbox.path("nats");
        fs::create_dir_all(&home).expect("a folder can be made");
        let port = port.map_or("-1".to_owned(), |port| port.to_string());
        let rest = match made {
            Some(made) => format!("include {made:?}\n"),
            None => format!(
                "jetstream {{ store_dir: {store:?}, sync_interval: always{jetstream} }}\n{more}"
            ),
        };
        // Of two settings of one name the later one counts.
        let settings = format!(
            "{rest}listen: \"127.0.0.1:{port}\"\nhttp: \"127.0.0.1:-1\"\nports_file_dir: {home:?}\n"
        );
        let config = sandbox.file(format!("nats/{name}.conf"), settings);
        let mut command = sandbox.clean_command(programs::nats_server());
        command.arg("-c").arg(config);
        let process = Process::spawn(name, command, &sandbox.logs());
        let ports = home.join(format!("nats-server_{}.ports", process.id()));
        (process, ports)
    }
}

/// The servers of a pool: one, or [`MEMBERS`] that are a cluster. Each may be lost and come back.
#[derive(Debug)]
pub struct Nats {
    servers: Vec<NatsServer>,
    /// Between the one that a partition cuts off and the others, each way; empty where none does.
    links: Vec<Relay>,
    /// Claimed as long as the servers may start again.
    _ports: Option<Ports>,
}

impl From<NatsServer> for Nats {
    fn from(server: NatsServer) -> Self {
        Self { servers: vec![server], links: Vec::new(), _ports: None }
    }
}

impl Nats {
    /// Starts a cluster, and waits until JetStream has its leader and every server knows it.
    ///
    /// # Panics
    /// Where it has none within [`wait::START_BOUND`].
    #[track_caller]
    pub fn cluster(sandbox: &Sandbox) -> Self {
        Self::cluster_by(sandbox, ("", ""), |_, to, listens| (listens[to], None))
    }

    /// Starts a cluster of which the server [`LONE`] can be cut off ([`Nats::part`]): whatever it
    /// and the others say to each other goes through relays. They are told to name nobody where a
    /// server or a client could reach them past these.
    ///
    /// # Panics
    /// As [`Nats::cluster`].
    #[track_caller]
    pub fn of_two_sides(sandbox: &Sandbox) -> Self {
        let hidden = format!(", no_advertise: true, advertise: {NOWHERE:?}");
        let users = format!(
            "accounts {{ ALL: {{ jetstream: enabled, users: [{{ user: all, password: all }}] }}\n\
             SYS: {{ users: [{{ user: {SYSTEM}, password: {SYSTEM} }}] }} }}\n\
             system_account: SYS\nno_auth_user: all\n"
        );
        Self::cluster_by(sandbox, (&hidden, &users), |from, to, listens| {
            let relay = ((from == LONE) != (to == LONE)).then(|| Relay::before(listens[to]));
            (relay.as_ref().map_or(listens[to], Relay::port), relay)
        })
    }

    /// A cluster whose servers reach each other at the ports that `route` gives, from one to the
    /// other, with what stands there before the ports that they listen on. Further settings of the
    /// cluster and of each server follow those that all have.
    #[track_caller]
    fn cluster_by(
        sandbox: &Sandbox,
        (of_cluster, of_server): (&str, &str),
        route: impl Fn(usize, usize, [u16; MEMBERS]) -> (u16, Option<Relay>),
    ) -> Self {
        let ports = Ports::claim();
        let listens = [0, 1, 2].map(|member| ports.port((MEMBERS + member) as u16));
        let mut links = Vec::new();
        let mut server = |member| {
            let name = format!("nats-{member}");
            let (store, port) =
                (sandbox.path(format!("nats/{name}")), Some(ports.port(member as u16)));
            let mut routes = Vec::new();
            for other in (0..MEMBERS).filter(|other| *other != member) {
                let (port, link) = route(member, other, listens);
                routes.push(format!("nats-route://127.0.0.1:{port}"));
                links.extend(link);
            }
            let listen = format!("127.0.0.1:{}", listens[member]);
            let cluster = format!(
                "cluster {{ name: tests, listen: {listen:?}, routes: {routes:?}{of_cluster} }}"
            );
            let more = format!("server_name: {name}\n{cluster}\n{of_server}");
            NatsServer::start_with(sandbox, Setup { name, port, more, ..Setup::single(store) })
        };
        let servers = (0..MEMBERS).map(&mut server).collect();
        let cluster = Self { servers, links, _ports: Some(ports) };
        cluster.wait_for_quorum();
        cluster
    }

    /// Starts three servers with settings that somebody made for these ports.
    #[track_caller]
    pub fn made_cluster(sandbox: &Sandbox, settings: [&Path; MEMBERS], ports: Ports) -> Self {
        let member = |(index, settings): (usize, &Path)| {
            NatsServer::start_with(
                sandbox,
                Setup::made(sandbox, settings, Some(ports.port(index as u16))),
            )
        };
        let servers = settings.into_iter().enumerate().map(member).collect();
        Self { servers, links: Vec::new(), _ports: Some(ports) }
    }

    /// Waits until JetStream answers through every server: that takes a leader, and a way to it.
    #[track_caller]
    pub fn wait_for_quorum(&self) {
        for server in &self.servers {
            let what = format!("JetStream to answer through {}", server.setup.name);
            wait::until(&what, wait::START_BOUND, || answers(&server.url()).then_some(()));
        }
    }

    /// What clients connect to: all of its servers; where one may be cut off, the others.
    pub fn url(&self) -> String {
        let first = if self.links.is_empty() { 0 } else { LONE + 1 };
        self.servers[first..].iter().map(NatsServer::url).collect::<Vec<_>>().join(",")
    }

    /// What reaches the server [`LONE`] alone.
    pub fn lone_url(&self) -> String {
        self.servers[LONE].url()
    }

    /// Cuts off the server [`LONE`] from the others: what they say to each other is held, until
    /// they are joined again.
    ///
    /// # Panics
    /// Where that cannot be done in this cluster.
    pub fn part(&self) {
        assert!(!self.links.is_empty(), "these servers were not started as two sides");
        self.links.iter().for_each(|link| link.set(Weather::Stall { up: true, down: true }));
    }

    /// Ends what [`Nats::part`] has begun: what was held goes on.
    pub fn join(&self) {
        self.links.iter().for_each(|link| link.set(Weather::Calm));
    }

    /// Has the server [`LONE`] lead JetStream itself and the stream of the journal. Once it is cut
    /// off it goes on answering reads for ten to twenty seconds, as it has seen no majority for so
    /// long; while it leads the stream alone, only until it misses the leader of the other
    /// (nats-server 2.15.1: 18 s and 6 to 8 s).
    ///
    /// # Panics
    /// Where it does not within [`wait::START_BOUND`].
    #[track_caller]
    pub fn lead_alone(&self) {
        let name = &self.servers[LONE].setup.name;
        let wish = json!({ "placement": { "preferred": name } });
        // Whoever lags behind is not preferred: then it is asked again.
        wait::until(&format!("{name} to lead JetStream"), wait::START_BOUND, || {
            let system = async_nats::ConnectOptions::with_user_and_password(
                SYSTEM.to_owned(),
                SYSTEM.to_owned(),
            );
            ask_as(system, &self.url(), async |js| {
                let told = js.client().request("$SYS.REQ.SERVER.PING.JSZ", "".into()).await.ok()?;
                let told: Value = serde_json::from_slice(&told.payload).ok()?;
                if told["data"]["meta_cluster"]["leader"] == **name {
                    return Some(());
                }
                js.request::<_, _, Value>("META.LEADER.STEPDOWN", &wish).await.ok()?;
                None
            })
        });
        let step_down =
            format!("STREAM.LEADER.STEPDOWN.{}", Names::new(DEFAULT_NAMESPACE).journal_stream());
        wait::until(&format!("{name} to lead the journal's stream"), wait::START_BOUND, || {
            if journal_leader(&self.url())? == *name {
                return Some(());
            }
            ask(&self.url(), async |js| {
                js.request::<_, _, Value>(step_down.clone(), &wish).await.ok()
            })?;
            None
        });
    }

    /// One of its servers, to be struck.
    pub fn server(&mut self, index: usize) -> &mut NatsServer {
        &mut self.servers[index]
    }

    /// Which server leads the stream of the journal.
    ///
    /// # Panics
    /// Where none does within [`wait::START_BOUND`].
    #[track_caller]
    pub fn journal_leader(&self) -> usize {
        wait::until("a leader of the journal's stream", wait::START_BOUND, || {
            let leader = journal_leader(&self.url())?;
            self.servers.iter().position(|server| server.setup.name == leader)
        })
    }

    /// The term of the entry that the server [`LONE`] shows as the journal's newest; nothing where
    /// it does not answer.
    pub fn newest_epoch_alone(&self) -> Option<u64> {
        let names = Names::new(DEFAULT_NAMESPACE);
        let newest = ask(&self.lone_url(), async |js| {
            let stream = js.get_stream_no_info(names.journal_stream()).await.ok()?;
            stream.get_last_raw_message_by_subject(&names.journal_subject()).await.ok()
        })?;
        record::decode(&newest.payload).ok().map(|entry| entry.epoch.0)
    }

    /// Waits until the journal stands on every server as its leader has it, so that another one may
    /// go.
    #[track_caller]
    pub fn wait_for_replicas(&self) {
        wait::until("the replicas of the journal's stream", wait::START_BOUND, || {
            (journal_copies(&self.url()) == self.servers.len()).then_some(())
        });
    }

    /// Makes a stream, and writes to it until JetStream has no room for anything more, in any
    /// stream.
    ///
    /// # Panics
    /// Where the stream cannot be made.
    #[track_caller]
    pub fn fill(&self, stream: &str) {
        let filled = ask(&self.url(), async |js| {
            let subjects = vec![stream.to_owned()];
            let config = async_nats::jetstream::stream::Config {
                name: stream.to_owned(),
                subjects,
                ..Default::default()
            };
            js.create_stream(config)
                .await
                .unwrap_or_else(|e| panic!("{stream} cannot be made: {e}"));
            for size in [512 << 10, 32 << 10, 1 << 10, 1] {
                while js
                    .publish(stream.to_owned(), vec![b'x'; size].into())
                    .await
                    .ok()?
                    .await
                    .is_ok()
                {}
            }
            Some(())
        });
        assert!(filled.is_some(), "{stream} cannot be written to");
    }

    /// Removes such a stream.
    ///
    /// # Panics
    /// Where it cannot.
    #[track_caller]
    pub fn remove(&self, stream: &str) {
        let removed = ask(&self.url(), async |js| js.delete_stream(stream).await.ok());
        assert!(removed.is_some_and(|removed| removed.success), "{stream} cannot be removed");
    }
}

/// Whether JetStream answers through this server: that takes a leader, and a way to it.
pub fn answers(url: &str) -> bool {
    ask(url, async |js| js.query_account().await.ok()).is_some()
}

/// The name of the server that leads the stream of the journal, where one does.
pub fn journal_leader(url: &str) -> Option<String> {
    journal_cluster(url)?.leader
}

/// Servers on which the journal stands as its leader has it, that one among them; none where nobody
/// leads.
pub fn journal_copies(url: &str) -> usize {
    journal_cluster(url).filter(|cluster| cluster.leader.is_some()).map_or(0, |cluster| {
        1 + cluster.replicas.iter().filter(|replica| replica.current && !replica.offline).count()
    })
}

fn journal_cluster(url: &str) -> Option<async_nats::jetstream::stream::ClusterInfo> {
    let stream = Names::new(DEFAULT_NAMESPACE).journal_stream();
    ask(url, async |js| js.get_stream(&stream).await.ok()?.get_info().await.ok()?.cluster)
}

/// One question to JetStream; nothing where no server is there.
fn ask<T>(
    url: &str,
    question: impl AsyncFnOnce(async_nats::jetstream::Context) -> Option<T>,
) -> Option<T> {
    ask_as(async_nats::ConnectOptions::new(), url, question)
}

fn ask_as<T>(
    who: async_nats::ConnectOptions,
    url: &str,
    question: impl AsyncFnOnce(async_nats::jetstream::Context) -> Option<T>,
) -> Option<T> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let client = who.connect(addresses(url)).await.ok()?;
        question(
            async_nats::jetstream::context::ContextBuilder::new()
                .timeout(REQUEST_BOUND)
                .build(client),
        )
        .await
    })
}

/// The servers of a URL as the program takes it, for a client of our own.
pub fn addresses(url: &str) -> Vec<String> {
    url.split(',').map(str::to_owned).collect()
}

/// An address in a server's file of ports, once it is there and whole.
fn announced(ports: &PathBuf, kind: &str) -> Option<SocketAddr> {
    let ports: Value = serde_json::from_slice(&fs::read(ports).ok()?).ok()?;
    ports[kind][0].as_str()?.split_once("://")?.1.parse().ok()
}

/// Whether a NATS server says its INFO there.
pub fn greets(address: SocketAddr) -> bool {
    let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_secs(1)) else {
        return false;
    };
    let mut line = String::new();
    stream.set_read_timeout(Some(Duration::from_secs(1))).is_ok()
        && BufReader::new(stream).read_line(&mut line).is_ok()
        && line.starts_with("INFO ")
}
