//! A pool: a NATS server, a coordinator and workers, each a process of its own, as a user would
//! start them.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use super::client::{self, Client};
use super::gate::Gate;
use super::journal::{self, Journal};
use super::nats::{Nats, NatsServer};
use super::process::Process;
use super::programs;
use super::s3::S3Server;
use super::sandbox::{Finished, Sandbox};
use super::users::Users;
use super::{wait, watched};

/// The profile with quick heartbeats.
const TESTING: &str = "testing";

/// Where a pool keeps its scratch, and how its processes get to the store.
#[derive(Debug)]
enum Store {
    /// A folder that all see.
    Folder(PathBuf),
    /// A bucket, each process with a gate before it: the coordinator's first, then the workers'.
    Bucket { url: String, environment: Vec<(&'static str, String)>, gates: Vec<Gate> },
}

/// A running pool. Its processes end with it.
#[derive(Debug)]
pub struct Pool<'a> {
    sandbox: &'a Sandbox,
    /// Its NATS server, or servers.
    pub nats: Nats,
    store: Store,
    profile: &'static str,
    /// Settings of coordinator and workers beside the profile.
    settings: Option<PathBuf>,
    /// The first, and those that were added to it.
    coordinators: Vec<Process>,
    workers: Vec<Process>,
    /// The folders that each worker offers as input.
    offers: Vec<Vec<PathBuf>>,
    client_environment: Vec<(&'static str, String)>,
    /// The NATS users, where each role has its own.
    users: Option<Users>,
    /// Faults that processes inject into themselves, by who they are.
    faults: Vec<(String, String)>,
    /// The `muster` that whatever is started next runs: this build's unless it is changed.
    pub program: PathBuf,
    /// Whether coordinators and workers are started with `--http`.
    watched: bool,
    /// Whether the first coordinator knows no server but the one that may be cut off.
    parts: bool,
}

impl<'a> Pool<'a> {
    /// Starts a pool on the file system, with its scratch in `<sandbox>/scratch`, and waits until
    /// all workers are registered.
    #[track_caller]
    pub fn on_folder(sandbox: &'a Sandbox, workers: usize) -> Self {
        Self::on_folder_offering(sandbox, vec![Vec::new(); workers])
    }

    /// The same with one worker for each of these lists of folders, which it offers as input.
    #[track_caller]
    pub fn on_folder_offering(sandbox: &'a Sandbox, offers: Vec<Vec<PathBuf>>) -> Self {
        let store = Store::Folder(sandbox.path("scratch"));
        Self::start(programs::muster(), sandbox, offers, store, Vec::new(), TESTING, None)
    }

    /// Starts a pool on a bucket, with its scratch below `s3://<bucket>/scratch`, and waits until
    /// all workers are registered.
    #[track_caller]
    pub fn on_bucket(sandbox: &'a Sandbox, workers: usize, s3: &S3Server, bucket: &str) -> Self {
        Self::on_bucket_with(sandbox, workers, s3, bucket, TESTING)
    }

    /// The same with one worker for each of these lists of folders, which it offers as input.
    #[track_caller]
    pub fn on_bucket_offering(
        sandbox: &'a Sandbox,
        offers: Vec<Vec<PathBuf>>,
        s3: &S3Server,
        bucket: &str,
    ) -> Self {
        let store = Self::before_bucket(offers.len(), s3, bucket);
        Self::start(programs::muster(), sandbox, offers, store, s3.environment(), TESTING, None)
    }

    /// The same with another `muster`.
    #[track_caller]
    pub fn on_bucket_by(
        program: PathBuf,
        sandbox: &'a Sandbox,
        workers: usize,
        s3: &S3Server,
        bucket: &str,
    ) -> Self {
        let store = Self::before_bucket(workers, s3, bucket);
        Self::start(
            program,
            sandbox,
            vec![Vec::new(); workers],
            store,
            s3.environment(),
            TESTING,
            None,
        )
    }

    /// The same with another profile than `testing`.
    #[track_caller]
    pub fn on_bucket_with(
        sandbox: &'a Sandbox,
        workers: usize,
        s3: &S3Server,
        bucket: &str,
        profile: &'static str,
    ) -> Self {
        let store = Self::before_bucket(workers, s3, bucket);
        Self::start(
            programs::muster(),
            sandbox,
            vec![Vec::new(); workers],
            store,
            s3.environment(),
            profile,
            None,
        )
    }

    /// The same on these servers, with settings (TOML) of coordinator and workers.
    #[track_caller]
    pub fn on_nats(
        nats: Nats,
        settings: &str,
        sandbox: &'a Sandbox,
        workers: usize,
        s3: &S3Server,
        bucket: &str,
    ) -> Self {
        let store = Self::before_bucket(workers, s3, bucket);
        let given = Some((nats, sandbox.file("pool.toml", settings)));
        Self::start(
            programs::muster(),
            sandbox,
            vec![Vec::new(); workers],
            store,
            s3.environment(),
            TESTING,
            given,
        )
    }

    /// The same on servers of two sides ([`Nats::of_two_sides`]): the first coordinator knows the
    /// lone one and nobody else, and all others know the two. Coordinators that are added have a
    /// gate of their own together.
    pub fn on_two_sides(
        nats: Nats,
        settings: &str,
        sandbox: &'a Sandbox,
        workers: usize,
        s3: &S3Server,
        bucket: &str,
    ) -> Self {
        let mut store = Self::before_bucket(workers, s3, bucket);
        if let Store::Bucket { gates, .. } = &mut store {
            gates.push(Gate::before(s3.port()));
        }
        let (offers, settings) =
            (vec![Vec::new(); workers], Some(sandbox.file("pool.toml", settings)));
        let pool = Self::unstarted(
            programs::muster(),
            sandbox,
            nats,
            offers,
            store,
            s3.environment(),
            TESTING,
            settings,
        );
        Self { parts: true, ..pool }.started()
    }

    /// The same where each role has a NATS user of its own.
    #[track_caller]
    pub fn with_users(
        nats: Nats,
        users: Users,
        settings: &str,
        sandbox: &'a Sandbox,
        workers: usize,
        s3: &S3Server,
        bucket: &str,
    ) -> Self {
        let (store, offers) = (Self::before_bucket(workers, s3, bucket), vec![Vec::new(); workers]);
        let settings = Some(sandbox.file("pool.toml", settings));
        let pool = Self::unstarted(
            programs::muster(),
            sandbox,
            nats,
            offers,
            store,
            s3.environment(),
            TESTING,
            settings,
        );
        Self { users: Some(users), ..pool }.started()
    }

    /// Starts a pool on a bucket whose processes serve health and metrics, each at a port of its
    /// own choice.
    #[track_caller]
    pub fn watched_on_bucket(
        sandbox: &'a Sandbox,
        workers: usize,
        s3: &S3Server,
        bucket: &str,
    ) -> Self {
        let store = Self::before_bucket(workers, s3, bucket);
        Self::watched(sandbox, workers, store, s3.environment(), "")
    }

    /// The same on the file system, with settings (TOML) of coordinator and workers.
    #[track_caller]
    pub fn watched_on_folder(sandbox: &'a Sandbox, workers: usize, settings: &str) -> Self {
        let store = Store::Folder(sandbox.path("scratch"));
        Self::watched(sandbox, workers, store, Vec::new(), settings)
    }

    #[track_caller]
    fn watched(
        sandbox: &'a Sandbox,
        workers: usize,
        store: Store,
        environment: Vec<(&'static str, String)>,
        settings: &str,
    ) -> Self {
        let nats = NatsServer::start(sandbox).into();
        let (offers, settings) =
            (vec![Vec::new(); workers], Some(sandbox.file("pool.toml", settings)));
        let pool = Self::unstarted(
            programs::muster(),
            sandbox,
            nats,
            offers,
            store,
            environment,
            TESTING,
            settings,
        );
        Self { watched: true, ..pool }.started()
    }

    fn before_bucket(workers: usize, s3: &S3Server, bucket: &str) -> Store {
        let gates = (0..=workers).map(|_| Gate::before(s3.port())).collect();
        Store::Bucket {
            url: format!("s3://{bucket}/scratch"),
            environment: s3.environment(),
            gates,
        }
    }

    #[track_caller]
    fn start(
        program: PathBuf,
        sandbox: &'a Sandbox,
        offers: Vec<Vec<PathBuf>>,
        store: Store,
        client_environment: Vec<(&'static str, String)>,
        profile: &'static str,
        given: Option<(Nats, PathBuf)>,
    ) -> Self {
        let (nats, settings) = match given {
            Some((nats, settings)) => (nats, Some(settings)),
            None => (NatsServer::start(sandbox).into(), None),
        };
        Self::unstarted(
            program,
            sandbox,
            nats,
            offers,
            store,
            client_environment,
            profile,
            settings,
        )
        .started()
    }

    #[expect(clippy::too_many_arguments, reason = "each is a field of what is made")]
    fn unstarted(
        program: PathBuf,
        sandbox: &'a Sandbox,
        nats: Nats,
        offers: Vec<Vec<PathBuf>>,
        store: Store,
        client_environment: Vec<(&'static str, String)>,
        profile: &'static str,
        settings: Option<PathBuf>,
    ) -> Self {
        Self {
            sandbox,
            nats,
            store,
            profile,
            settings,
            coordinators: Vec::new(),
            workers: Vec::new(),
            offers,
            client_environment,
            users: None,
            faults: Vec::new(),
            program,
            watched: false,
            parts: false,
        }
    }

    #[track_caller]
    fn started(mut self) -> Self {
        let workers = self.offers.len();
        self.add_coordinator();
        for index in 0..workers {
            let started = self.spawn_worker(index);
            self.workers.push(started);
        }
        self.wait_for_workers(workers);
        self
    }

    /// Where a coordinator serves health and metrics, once it does.
    #[track_caller]
    pub fn coordinator_address(&mut self, index: usize) -> SocketAddr {
        address_of(&mut self.coordinators[index])
    }

    /// Where a worker does.
    #[track_caller]
    pub fn worker_address(&mut self, index: usize) -> SocketAddr {
        address_of(&mut self.workers[index])
    }

    /// The gate between the coordinator and the bucket.
    pub fn coordinator_gate(&self) -> &Gate {
        &self.gates()[0]
    }

    /// The gate between a worker and the bucket.
    pub fn worker_gate(&self, index: usize) -> &Gate {
        &self.gates()[index + 1]
    }

    fn gates(&self) -> &[Gate] {
        match &self.store {
            Store::Bucket { gates, .. } => gates,
            Store::Folder(_) => panic!("a pool on a folder has no gates"),
        }
    }

    /// Calls each worker's gate.
    pub fn each_worker_gate(&self, act: impl Fn(&Gate)) {
        self.gates()[1..=self.offers.len()].iter().for_each(act);
    }

    /// `kill -9` to the coordinator.
    pub fn kill_coordinator(&mut self) {
        self.coordinators[0].kill();
    }

    /// Starts one more coordinator, behind the same gate, and gives its number: the first is 0.
    pub fn add_coordinator(&mut self) -> usize {
        let added = self.spawn_coordinator(self.coordinators.len());
        self.coordinators.push(added);
        self.coordinators.len() - 1
    }

    /// Faults (`--faults`) that a process injects into itself from its next start on:
    /// `coordinator`, for all of them, or `worker-0` and so on. The pool's settings must allow it;
    /// an empty text takes them back.
    pub fn inject(&mut self, who: &str, spec: &str) {
        self.faults.retain(|(known, _)| known != who);
        if !spec.is_empty() {
            self.faults.push((who.to_owned(), spec.to_owned()));
        }
    }

    /// One of the coordinators.
    pub fn coordinator(&mut self, index: usize) -> &mut Process {
        &mut self.coordinators[index]
    }

    fn spawn_coordinator(&self, index: usize) -> Process {
        let name =
            if index == 0 { "coordinator".to_owned() } else { format!("coordinator-{index}") };
        let mut command = self.sandbox.clean_command(&self.program);
        command
            .arg("coordinator")
            .arg("--data-dir")
            .arg(self.sandbox.path(format!("data-{name}")))
            .arg("--bucket");
        match &self.store {
            Store::Folder(path) => command.arg(path),
            Store::Bucket { url, .. } => command.arg(url),
        };
        let apart = self.parts && index == 0;
        self.common(
            &mut command,
            if self.parts && !apart { self.offers.len() + 1 } else { 0 },
            "coordinator",
        );
        if apart {
            command.env("NATS_URL", self.nats.lone_url());
        }
        Process::spawn(&name, command, &self.sandbox.logs())
    }

    /// Starts the coordinator again, in the same data folder.
    pub fn start_coordinator(&mut self) {
        self.coordinators[0] = self.spawn_coordinator(0);
    }

    /// `kill -9` to a worker.
    pub fn kill_worker(&mut self, index: usize) {
        self.workers[index].kill();
    }

    /// SIGTERM to a worker; gives its exit code when it has ended.
    ///
    /// # Panics
    /// When it has not within the bound.
    #[track_caller]
    pub fn stop_worker(&mut self, index: usize, bound: Duration) -> i32 {
        self.workers[index].signal(Signal::TERM);
        super::process::exit_code(self.workers[index].wait(bound))
    }

    /// Starts a worker again under its id, in the same data folder.
    pub fn start_worker(&mut self, index: usize) {
        self.workers[index] = self.spawn_worker(index);
    }

    fn spawn_worker(&self, index: usize) -> Process {
        let name = format!("worker-{index}");
        let mut command = self.sandbox.clean_command(&self.program);
        let data = self.sandbox.path(format!("data-{name}"));
        command
            .arg("worker")
            .args(["--id", &name, "--threads", "1", "--memory", "256MiB"])
            .arg("--data-dir")
            .arg(data);
        for folder in self.offers.get(index).into_iter().flatten() {
            command.arg("--input-dir").arg(folder);
        }
        self.common(&mut command, index + 1, &name);
        Process::spawn(&name, command, &self.sandbox.logs())
    }

    /// What a worker offers as input from its next start on.
    pub fn offer(&mut self, index: usize, folders: Vec<PathBuf>) {
        self.offers[index] = folders;
    }

    /// A user of this pool; somebody else where each role has a NATS user of its own.
    pub fn user(&self, who: &str) -> Client<'a> {
        let of_store =
            self.client_environment.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
        let mut environment = vec![("NATS_URL".to_owned(), self.nats.url())];
        environment.extend(of_store);
        environment.extend(self.users.iter().flat_map(|users| users.environment(who)));
        Client::new(self.sandbox, self.program.clone(), environment)
    }

    /// A `muster` command of a user of this pool.
    pub fn client<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        self.command_as("client", arguments)
    }

    /// The same by somebody else.
    pub fn command_as<S: AsRef<OsStr>>(
        &self,
        who: &str,
        arguments: impl IntoIterator<Item = S>,
    ) -> Command {
        self.user(who).command(arguments)
    }

    /// Runs such a command to its end.
    #[track_caller]
    pub fn run_as<S: AsRef<OsStr>>(
        &self,
        who: &str,
        arguments: impl IntoIterator<Item = S>,
    ) -> Finished {
        self.user(who).run(arguments)
    }

    /// Runs such a command to its end.
    #[track_caller]
    pub fn run<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Finished {
        self.run_as("client", arguments)
    }

    /// Starts a `muster sort` that waits for its job, with `--json` and this job id.
    pub fn start_sort<S: AsRef<OsStr>>(
        &self,
        job: &str,
        arguments: impl IntoIterator<Item = S>,
    ) -> Process {
        self.user("client").start_sort(job, arguments)
    }

    /// Waits for such a sort to succeed, and gives what it printed.
    ///
    /// # Panics
    /// Where it does not.
    #[track_caller]
    pub fn finish_sort(&self, sort: Process) -> Value {
        client::finish_sort(sort)
    }

    /// Runs a sort to its successful end.
    #[track_caller]
    pub fn sort<S: AsRef<OsStr>>(
        &self,
        job: &str,
        arguments: impl IntoIterator<Item = S>,
    ) -> Value {
        self.finish_sort(self.start_sort(job, arguments))
    }

    /// Checks that no finished work of a succeeded job was done again: by the journal, the workers'
    /// logs, and the job's own report.
    ///
    /// # Panics
    /// Where some was.
    #[track_caller]
    pub fn assert_nothing_repeated(&self, job: &str, report: &Value) {
        let begins = journal::begins_in(&self.sandbox.logs());
        self.journal().work(job).assert_nothing_repeated(&begins, report);
        let status = self.status(job).expect("an ended job stays known");
        assert_eq!(
            status["repeated_tasks"], report["repeated_tasks"],
            "status and report of {job}"
        );
    }

    /// What its journal holds, read as the coordinator's user where each role has its own.
    #[track_caller]
    pub fn journal(&self) -> Journal {
        let options =
            self.users.as_ref().map(|users| users.options("coordinator")).unwrap_or_default();
        Journal::read_with(&self.nats.url(), options)
    }

    /// Where a job stands, as `muster status` says; nothing while that cannot be asked.
    #[track_caller]
    pub fn status(&self, job: &str) -> Option<Value> {
        self.user("client").status(job)
    }

    /// Waits until a job's status is as wished.
    ///
    /// # Panics
    /// Where it is not within [`wait::RUN_BOUND`], or the job ends before.
    #[track_caller]
    pub fn wait_for_status(&self, job: &str, what: &str, wish: impl Fn(&Value) -> bool) -> Value {
        client::wait_for_status(job, what, || self.status(job), wish)
    }

    /// Waits until a state has begun and some, but not all, of its tasks are done; then holds every
    /// worker at its gate, so that it lasts. Workers should be slowed before
    /// ([`Pool::slow_workers`]), or the moment may pass unseen.
    #[track_caller]
    pub fn hold_in_the_midst_of(&self, job: &str, state: &str) -> Value {
        let midst = |status: &Value| client::is_in_the_midst_of(state, status);
        self.wait_for_status(job, &format!("in the midst of {state}"), midst);
        self.each_worker_gate(Gate::hold_all);
        let held = self.status(job).expect("the job's status can be asked");
        assert!(
            midst(&held),
            "{state} ended before the workers were held; more tasks or more delay are needed: \
                {held}"
        );
        held
    }

    /// Delays each request of every worker to the bucket.
    pub fn slow_workers(&self, delay: Duration) {
        self.each_worker_gate(|gate| gate.delay(delay));
    }

    /// Waits until so many workers are registered.
    #[track_caller]
    pub fn wait_for_workers(&mut self, count: usize) {
        wait::until(&format!("{count} workers to be registered"), wait::START_BOUND, || {
            self.coordinators[0].assert_running();
            self.workers.iter_mut().for_each(Process::assert_running);
            (self.user("client").workers()?.len() == count).then_some(())
        });
    }

    /// What coordinator and workers share: the profile, NATS, and the store behind their gate.
    fn common(&self, command: &mut Command, gate: usize, who: &str) {
        command.args(["--profile", self.profile]).env("NATS_URL", self.nats.url());
        if let Some(users) = &self.users {
            command.envs(users.environment(who));
        }
        if self.watched {
            command.args(["--http", "127.0.0.1:0"]);
        }
        if let Some(settings) = &self.settings {
            command.arg("--config").arg(settings);
        }
        for (_, spec) in self.faults.iter().filter(|(of, _)| of == who) {
            command.args(["--faults", spec]);
        }
        if let Store::Bucket { environment, gates, .. } = &self.store {
            command
                .envs(environment.iter().cloned())
                .env("AWS_ENDPOINT_URL", gates[gate].endpoint());
        }
    }
}

#[track_caller]
fn address_of(process: &mut Process) -> SocketAddr {
    wait::until(&format!("the http address of {}", process.name()), wait::START_BOUND, || {
        process.assert_running();
        watched::address(process)
    })
}
