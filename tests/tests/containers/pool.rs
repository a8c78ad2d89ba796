//! A pool as the images run it: NATS servers in one network, a store in another, coordinators and
//! workers in both, each a container that can be cut off from either.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use muster_platform::faults::ENABLE_VARIABLE;
use muster_tests::harness::data::{Keys, records};
use muster_tests::harness::nats::{answers, greets, journal_copies, journal_leader};
use muster_tests::harness::{
    Bucket, Client, Journal, Output, Sandbox, arg, client, journal, oracle, programs, s3, wait,
};
use serde_json::Value;
use testcontainers::{ContainerRequest, GenericImage, ImageExt};

use crate::engine::{Container, Engine, Network};

const MUSTER: &str = "muster:tests";
const NATS: &str = "muster-nats:local";
const S3: &str = "muster-s3:local";
/// What the tests run.
pub(crate) const IMAGES: [&str; 3] = [MUSTER, NATS, S3];

const NATS_PORT: u16 = 4222;
const ROUTE_PORT: u16 = 6222;
const S3_PORT: u16 = 9000;
const BUCKET: &str = "data";
const SETTINGS: &str = "/etc/muster.toml";
/// So that a job lasts for many seconds: each call of a worker to the store takes so much longer.
const FAULTS: &str = "store:delay,ms=150";
/// 24 sort tasks, and about as many merges, of 2.4 MB.
const RECORDS: usize = 24_000;
const SMALL: usize = 100_000;
const JOB: &str = "job";
/// How long a server of SeaweedFS may take to end when it is asked to.
const STORE_GRACE_S: i32 = 20;
/// And a worker: more than it may take to finish or hand back what it has.
const WORKER_GRACE_S: i32 = 60;

/// How many of each there are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    /// NATS servers: one, or three that are a cluster.
    pub(crate) nats: usize,
    /// Coordinators, of which one leads.
    pub(crate) coordinators: usize,
    /// Workers.
    pub(crate) workers: usize,
}

/// A running pool with a job. Its containers end with it, and then its networks.
#[derive(Debug)]
pub(crate) struct Pool<'a> {
    sandbox: &'a Sandbox,
    engine: &'a Engine,
    /// What the tests' own hand wrote, and the job sorts.
    data: Vec<u8>,
    /// NATS servers.
    pub(crate) nats: Vec<Container<'a>>,
    /// The store.
    pub(crate) store: Container<'a>,
    /// Coordinators.
    pub(crate) coordinators: Vec<Container<'a>>,
    /// Workers. One that was replaced stays, ended, behind those of its size.
    pub(crate) workers: Vec<Container<'a>>,
    /// Where the NATS servers are.
    pub(crate) nats_network: Network<'a>,
    /// Where the store is.
    pub(crate) store_network: Network<'a>,
    replicas: usize,
}

impl<'a> Pool<'a> {
    /// Starts a pool, waits until all of its workers are registered, and submits its job.
    ///
    /// # Panics
    /// Where something does not start.
    #[track_caller]
    pub(crate) fn with_job(sandbox: &'a Sandbox, engine: &'a Engine, size: Size) -> Self {
        let (nats_network, store_network) = (engine.network("nats"), engine.network("store"));
        let nats = (0..size.nats)
            .map(|index| start_nats(engine, index, size.nats, &nats_network))
            .collect();
        let store = start_store(engine, &store_network);
        let mut pool = Self {
            sandbox,
            engine,
            data: records(RECORDS, Keys::Skewed, 1),
            nats,
            store,
            coordinators: Vec::new(),
            workers: Vec::new(),
            nats_network,
            store_network,
            replicas: size.nats,
        };
        pool.wait_for_nats();
        pool.wait_for_store();
        pool.bucket().put("in", &pool.data);
        for index in 0..size.coordinators {
            let arguments = [
                "coordinator",
                "--bucket",
                &format!("s3://{BUCKET}/scratch"),
                "--data-dir",
                "/tmp/data",
            ];
            let started = pool.start_muster(&format!("coordinator-{index}"), &arguments);
            pool.coordinators.push(started);
        }
        for index in 0..size.workers {
            let started = pool.start_worker(index, "");
            pool.workers.push(started);
        }
        wait::until("all workers to be registered", wait::START_BOUND, || {
            (pool.client().workers()?.len() == size.workers).then_some(())
        });
        pool.submit();
        pool
    }

    fn start_worker(&self, index: usize, life: &str) -> Container<'a> {
        let id = format!("worker-{index}");
        let arguments = [
            "worker",
            "--id",
            &id,
            "--threads",
            "1",
            "--memory",
            "256MiB",
            "--data-dir",
            "/tmp/data",
            "--faults",
            FAULTS,
        ];
        self.start_muster(&format!("{id}{life}"), &arguments)
    }

    /// Coordinator or worker, by the image's own entry point and user.
    fn start_muster(&self, name: &str, arguments: &[&str]) -> Container<'a> {
        let arguments =
            arguments.iter().copied().chain(["--profile", "testing", "--config", SETTINGS]);
        let endpoint = format!("http://{}:{S3_PORT}", self.engine.host("store"));
        let urls: Vec<String> = (0..self.nats.len())
            .map(|index| format!("nats://{}:{NATS_PORT}", nats_host(self.engine, index)))
            .collect();
        let mut request = image(MUSTER)
            .with_cmd(arguments)
            .with_copy_to(
                SETTINGS,
                format!("[journal]\nreplicas = {}\n", self.replicas).into_bytes(),
            )
            .with_env_var("NATS_URL", urls.join(","))
            .with_env_var(ENABLE_VARIABLE, "1")
            .with_env_var("RUST_BACKTRACE", "1");
        for (variable, value) in s3::environment(&endpoint) {
            request = request.with_env_var(variable, value);
        }
        self.engine.start(name, request, &[&self.nats_network, &self.store_network])
    }

    fn submit(&self) {
        let settings = self.sandbox.small_tasks(SMALL, SMALL);
        let (from, to) = (format!("s3://{BUCKET}/in"), format!("s3://{BUCKET}/out"));
        let arguments = [
            "sort",
            &from,
            "-o",
            &to,
            "--format",
            "fixed:100",
            "-k",
            "0:10",
            "--job-id",
            JOB,
            "--detach",
        ];
        let submitted =
            self.client().run(arguments.into_iter().chain(["--config", arg(&settings)]));
        submitted.expect_code(0);
    }

    /// A user on this machine, outside of all containers. Made anew for each look: what is started
    /// again may have another address.
    pub(crate) fn client(&self) -> Client<'a> {
        let mut environment = vec![("NATS_URL".to_owned(), self.nats_url())];
        let endpoint = self.store_endpoint().unwrap_or_default();
        environment.extend(
            s3::environment(&endpoint).into_iter().map(|(name, value)| (name.to_owned(), value)),
        );
        Client::new(self.sandbox, programs::muster(), environment)
    }

    /// All servers of NATS that run, as this machine reaches them.
    fn nats_url(&self) -> String {
        let running = self.nats.iter().filter_map(|server| self.nats_address(server));
        running.map(|address| format!("nats://{address}")).collect::<Vec<_>>().join(",")
    }

    fn nats_address(&self, server: &Container<'_>) -> Option<SocketAddr> {
        Some((server.address(&self.nats_network)?, NATS_PORT).into())
    }

    fn store_endpoint(&self) -> Option<String> {
        Some(format!(
            "http://{}",
            SocketAddr::from((self.store.address(&self.store_network)?, S3_PORT))
        ))
    }

    /// The tests' own hand on the bucket.
    fn bucket(&self) -> Bucket {
        s3::as_admin(&self.store_endpoint().expect("the store runs"), BUCKET)
    }

    /// Waits until every server that runs answers, and JetStream through it.
    #[track_caller]
    pub(crate) fn wait_for_nats(&self) {
        for server in &self.nats {
            wait::until(
                &format!("JetStream to answer through {}", server.name()),
                wait::START_BOUND,
                || {
                    let address = self.nats_address(server)?;
                    (greets(address) && answers(&format!("nats://{address}"))).then_some(())
                },
            );
        }
    }

    /// Waits until the store keeps an object of the bucket.
    #[track_caller]
    pub(crate) fn wait_for_store(&self) {
        wait::until("the store to keep an object", wait::START_BOUND, || {
            let bucket = s3::as_admin(&self.store_endpoint()?, BUCKET);
            (bucket.try_create() && bucket.try_put("probe", b"x")).then_some(())
        });
    }

    /// Which NATS server leads the stream of the journal.
    #[track_caller]
    pub(crate) fn journal_leader(&self) -> usize {
        wait::until("a leader of the journal's stream", wait::START_BOUND, || {
            let leader = journal_leader(&self.nats_url())?;
            self.nats.iter().position(|server| server.name() == leader)
        })
    }

    /// Waits until the journal stands on every server, so that another one may go.
    #[track_caller]
    pub(crate) fn wait_for_replicas(&self) {
        wait::until("the replicas of the journal's stream", wait::START_BOUND, || {
            (journal_copies(&self.nats_url()) == self.nats.len()).then_some(())
        });
    }

    /// Waits until the job's status is as wished; that it cannot be asked for a while is no
    /// failure.
    #[track_caller]
    pub(crate) fn wait_for_status(&self, what: &str, wish: impl Fn(&Value) -> bool) -> Value {
        client::wait_for_status(JOB, what, || self.client().status(JOB), wish)
    }

    /// Waits until some, but not all, tasks of a state are done.
    #[track_caller]
    pub(crate) fn wait_for_midst_of(&self, state: &str) -> Value {
        self.wait_for_status(&format!("in the midst of {state}"), |status| {
            client::is_in_the_midst_of(state, status)
        })
    }

    /// Waits until more of the job is done than in this status.
    #[track_caller]
    pub(crate) fn wait_for_progress(&self, since: &Value) -> Value {
        self.wait_for_status("further on", |status| {
            status["state"] != since["state"]
                || status["tasks_done"].as_u64() > since["tasks_done"].as_u64()
        })
    }

    /// Waits until a worker's status is as wished.
    #[track_caller]
    pub(crate) fn wait_for_worker(&self, index: usize, what: &str, wish: impl Fn(&Value) -> bool) {
        let id = format!("worker-{index}");
        wait::until(&format!("{id} to be {what}"), wait::RUN_BOUND, || {
            let listed = self.client().workers()?;
            listed.iter().any(|worker| worker["id"] == *id && wish(worker)).then_some(())
        });
    }

    /// Waits until a worker has an attempt under way.
    #[track_caller]
    pub(crate) fn wait_for_work_of(&self, index: usize) {
        self.wait_for_worker(index, "at work", |worker| worker["running"].as_u64() > Some(0));
    }

    /// Waits until a worker is taken for lost.
    #[track_caller]
    pub(crate) fn wait_for_loss_of(&self, index: usize) {
        self.wait_for_worker(index, "lost", |worker| worker["state"] == "failed");
    }

    /// Waits until a worker may have work again.
    #[track_caller]
    pub(crate) fn wait_for_return_of(&self, index: usize) {
        self.wait_for_worker(index, "healthy", |worker| {
            worker["state"] == "healthy" && worker["waiting_for"].is_null()
        });
    }

    /// Waits until an event of this kind tells of somebody.
    #[track_caller]
    pub(crate) fn wait_for_event(&self, kind: &str, who: &str) {
        wait::until(&format!("an event {kind} of {who}"), wait::RUN_BOUND, || {
            let told = self.client().run(["events", "--json"]);
            let told =
                told.stdout.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let mut told = told.filter(|event| event["kind"] == kind);
            told.any(|event| event["text"].as_str().is_some_and(|text| text.contains(who)))
                .then_some(())
        });
    }

    /// Which coordinator leads: the one whose log tells of the latest term, once that one runs.
    #[track_caller]
    pub(crate) fn leader(&self) -> usize {
        let term = |coordinator: &Container<'_>| {
            let log = coordinator.log();
            let led = log.lines().filter(|line| line.contains(" leading "));
            led.filter_map(|line| {
                line.split(' ').find_map(|word| word.strip_prefix("epoch=")?.parse::<u64>().ok())
            })
            .max()
        };
        wait::until("a coordinator to lead", wait::START_BOUND, || {
            let terms = self
                .coordinators
                .iter()
                .enumerate()
                .filter_map(|(index, each)| Some((term(each)?, index)));
            terms
                .max()
                .map(|(_, index)| index)
                .filter(|index| self.coordinators[*index].is_running())
        })
    }

    /// Drains a worker, and puts another container in its place once it has ended.
    #[track_caller]
    pub(crate) fn replace_worker(&mut self, index: usize) {
        let id = format!("worker-{index}");
        self.client().run(["drain", &id]).expect_code(0);
        let old = &self.workers[index];
        let code = wait::until(
            &format!("{id} to end"),
            Duration::from_secs(WORKER_GRACE_S as u64),
            || old.exit_code(),
        );
        assert_eq!(code, 0, "a drained worker has ended with an error");
        let new = self.start_worker(index, "-new");
        let old = std::mem::replace(&mut self.workers[index], new);
        self.workers.push(old);
    }

    /// Stops the store as its operator would.
    #[track_caller]
    pub(crate) fn stop_store(&self) {
        self.store.stop(STORE_GRACE_S);
    }

    /// Waits for the job to succeed; checks its bytes, that nothing that was committed was done
    /// again, and that nothing is left but its output. Tells what it cost.
    #[expect(clippy::print_stdout, reason = "what it cost is wanted, also where all is well")]
    #[track_caller]
    pub(crate) fn finish(&self, cut: &str) {
        let report = self.wait_for_status("succeeded", |status| status["state"] == "succeeded");
        let logs = self.sandbox.path("containers");
        fs::create_dir_all(&logs).expect("a folder can be made");
        for worker in &self.workers {
            fs::write(logs.join(format!("{}.err", worker.name())), worker.log())
                .expect("a log can be written");
        }
        let begins = journal::begins_in(&logs);
        let work = Journal::read(&self.nats_url()).work(JOB);
        work.assert_nothing_repeated(&begins, &report);
        let bucket = self.bucket();
        Output::of_bucket(&bucket, "out").assert_is(&oracle::fixed(&self.data, 100, 0, 10));
        wait::until_empty("in scratch", || bucket.list("scratch"));
        wait::until_empty("as open uploads", || bucket.uploads());
        for container in self.coordinators.iter().chain(&self.workers) {
            assert!(!container.log().contains("panicked at"), "{} panicked", container.name());
        }
        let committed = work.commits.len();
        let begun = begins
            .iter()
            .filter(|begin| begin.job == JOB && work.commits.contains_key(&begin.attempt.task));
        println!(
            "cut: {cut}. Of {committed} tasks {} were committed more than once; {} attempts were \
                begun beyond the first of each, {} ended without a result.",
            work.repeated_tasks(),
            begun.count().saturating_sub(committed),
            report["retries"],
        );
    }
}

fn image(name: &str) -> ContainerRequest<GenericImage> {
    let (name, tag) = name.split_once(':').expect("an image has a tag");
    GenericImage::new(name, tag).into()
}

fn nats_host(engine: &Engine, index: usize) -> String {
    engine.host(&format!("nats-{index}"))
}

fn start_nats<'a>(
    engine: &'a Engine,
    index: usize,
    of: usize,
    network: &Network<'a>,
) -> Container<'a> {
    let name = format!("nats-{index}");
    let mut settings = format!(
        "server_name: {name}\nlisten: \"0.0.0.0:{NATS_PORT}\"\n\
         jetstream {{ store_dir: /data, sync_interval: always }}\n"
    );
    if of > 1 {
        let routes: Vec<String> = (0..of)
            .map(|other| format!("nats-route://{}:{ROUTE_PORT}", nats_host(engine, other)))
            .collect();
        settings += &format!(
            "cluster {{ name: tests, listen: \"0.0.0.0:{ROUTE_PORT}\", routes: {routes:?} }}\n"
        );
    }
    let request = image(NATS)
        .with_cmd(["-c", "/etc/nats.conf"])
        .with_copy_to("/etc/nats.conf", settings.into_bytes());
    engine.start(&name, request, &[network])
}

/// As deploy/compose.yaml starts it: all but S3 within the container alone.
fn start_store<'a>(engine: &'a Engine, network: &Network<'a>) -> Container<'a> {
    let arguments = [
        "-logtostderr".to_owned(),
        "server".to_owned(),
        "-dir=/data".to_owned(),
        "-ip=127.0.0.1".to_owned(),
        "-ip.bind=127.0.0.1".to_owned(),
        "-s3".to_owned(),
        "-s3.ip.bind=0.0.0.0".to_owned(),
        format!("-s3.port={S3_PORT}"),
        "-s3.config=/etc/s3.json".to_owned(),
        "-s3.autoCreateBucket=false".to_owned(),
        "-s3.port.iceberg=0".to_owned(),
        "-s3.port.lance=0".to_owned(),
        "-master.volumeSizeLimitMB=256".to_owned(),
        "-master.volumePreallocate=false".to_owned(),
        "-master.telemetry=false".to_owned(),
        "-volume.max=0".to_owned(),
        "-volume.minFreeSpace=1".to_owned(),
        "-volume.preStopSeconds=1".to_owned(),
    ];
    let request =
        image(S3).with_cmd(arguments).with_copy_to("/etc/s3.json", s3::identities().into_bytes());
    engine.start("store", request, &[network])
}
