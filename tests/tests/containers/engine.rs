//! Containers and networks on this machine's Docker engine: testcontainers starts and removes them;
//! what it has no call for (a kill, a network that is taken away from a running container) goes
//! through the client that it hands on. A test is plain blocking code, so each call is waited for
//! here.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;

use futures::TryStreamExt;
use muster_tests::harness::{Sandbox, wait};
use testcontainers::bollard::Docker;
use testcontainers::bollard::errors::Error as DockerError;
use testcontainers::bollard::models::{
    NetworkConnectRequest, NetworkCreateRequest, NetworkDisconnectRequest,
};
use testcontainers::bollard::query_parameters::{
    KillContainerOptionsBuilder, ListContainersOptionsBuilder, ListNetworksOptionsBuilder,
    LogsOptionsBuilder, RemoveContainerOptionsBuilder,
};
use testcontainers::core::client::docker_client_instance;
use testcontainers::runners::AsyncRunner;
use testcontainers::{ContainerAsync, ContainerRequest, GenericImage, ImageExt};
use tokio::runtime::Runtime;

/// Names the process whose test made a container or network.
const PROCESS_LABEL: &str = "muster.tests.process";
/// Bytes of a log that are shown when a test fails.
const LOG_TAIL_BYTES: usize = 16 << 10;

/// The engine, and a test's own names on it.
#[derive(Debug)]
pub(crate) struct Engine {
    runtime: Runtime,
    docker: Docker,
    prefix: String,
}

impl Engine {
    /// Connects, and removes what tests that were killed have left.
    ///
    /// # Panics
    /// Where no engine answers, or one of the images is not there.
    #[track_caller]
    pub(crate) fn connect(sandbox: &Sandbox, images: &[&str]) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let docker = runtime.block_on(docker_client_instance()).unwrap_or_else(|e| {
            panic!("no Docker engine answers ({e}); deploy/test.sh leaves these tests out then")
        });
        for image in images {
            let found = runtime.block_on(docker.inspect_image(image));
            found.unwrap_or_else(|e| panic!("no image {image} ({e}); deploy/test.sh makes it"));
        }
        let folder = sandbox.path("");
        let folder =
            folder.file_name().expect("a sandbox has a name").to_string_lossy().to_lowercase();
        let engine = Self { runtime, docker, prefix: folder };
        engine.remove_abandoned();
        engine
    }

    /// A network of containers with no way out of this machine.
    ///
    /// # Panics
    /// Where it cannot be made.
    #[track_caller]
    pub(crate) fn network(&self, name: &str) -> Network<'_> {
        let name = format!("{}-{name}", self.prefix);
        let request = NetworkCreateRequest {
            name: name.clone(),
            internal: Some(true),
            labels: Some(HashMap::from([own_label()])),
            ..NetworkCreateRequest::default()
        };
        let made = self.runtime.block_on(self.docker.create_network(request));
        made.unwrap_or_else(|e| panic!("the network {name} cannot be made: {e}"));
        Network { engine: self, name }
    }

    /// The name of a container, by which others of its networks find it.
    pub(crate) fn host(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    /// Starts a container in its first network, then adds it to the others.
    ///
    /// # Panics
    /// Where it does not start.
    #[track_caller]
    pub(crate) fn start(
        &self,
        name: &str,
        request: ContainerRequest<GenericImage>,
        networks: &[&Network<'_>],
    ) -> Container<'_> {
        let (first, others) = networks.split_first().expect("a container has a network");
        let request = request
            .with_container_name(self.host(name))
            .with_network(&first.name)
            .with_labels([own_label()])
            .with_cap_drop("ALL")
            .with_security_opt("no-new-privileges");
        let inner = self
            .runtime
            .block_on(request.start())
            .unwrap_or_else(|e| panic!("{name} does not start: {e}"));
        let container = Container { engine: self, inner: Some(inner), name: name.to_owned() };
        others.iter().for_each(|network| container.join(network));
        container
    }

    /// Removes containers and networks whose process is gone.
    fn remove_abandoned(&self) {
        let gone = |labels: Option<&HashMap<String, String>>| {
            labels
                .and_then(|labels| labels.get(PROCESS_LABEL))
                .is_some_and(|process| !Path::new("/proc").join(process).exists())
        };
        let ours = HashMap::from([("label".to_owned(), vec![PROCESS_LABEL.to_owned()])]);
        self.runtime.block_on(async {
            let all = ListContainersOptionsBuilder::new().all(true).filters(&ours).build();
            for container in
                self.docker.list_containers(Some(all)).await.expect("containers can be listed")
            {
                if let Some(id) = container.id.filter(|_| gone(container.labels.as_ref())) {
                    let whole = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
                    // Another test may be at it, too.
                    let _ = self.docker.remove_container(&id, Some(whole)).await;
                }
            }
            let all = ListNetworksOptionsBuilder::new().filters(&ours).build();
            for network in
                self.docker.list_networks(Some(all)).await.expect("networks can be listed")
            {
                if let Some(id) = network.id.filter(|_| gone(network.labels.as_ref())) {
                    let _ = self.docker.remove_network(&id).await;
                }
            }
        });
    }
}

fn own_label() -> (String, String) {
    (PROCESS_LABEL.to_owned(), std::process::id().to_string())
}

/// A network that ends with the test; after the containers that are in it.
#[derive(Debug)]
pub(crate) struct Network<'a> {
    engine: &'a Engine,
    name: String,
}

impl Drop for Network<'_> {
    fn drop(&mut self) {
        let removed = self.engine.runtime.block_on(self.engine.docker.remove_network(&self.name));
        if !std::thread::panicking() {
            removed.unwrap_or_else(|e| panic!("the network {} cannot be removed: {e}", self.name));
        }
    }
}

/// A container that ends with the test.
#[derive(Debug)]
pub(crate) struct Container<'a> {
    engine: &'a Engine,
    /// Nothing while it is being removed.
    inner: Option<ContainerAsync<GenericImage>>,
    name: String,
}

impl Container<'_> {
    /// What it is called in logs.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    fn inner(&self) -> &ContainerAsync<GenericImage> {
        self.inner.as_ref().expect("it is not removed before it is dropped")
    }

    #[track_caller]
    fn done<T, E: std::fmt::Display>(
        &self,
        what: &str,
        doing: impl Future<Output = Result<T, E>>,
    ) -> T {
        self.engine
            .runtime
            .block_on(doing)
            .unwrap_or_else(|e| panic!("{} cannot be {what}: {e}", self.name))
    }

    /// Ends it as `kill -9` does, and waits until it is gone.
    #[track_caller]
    pub(crate) fn kill(&self) {
        let signal = KillContainerOptionsBuilder::new().signal("KILL").build();
        self.done("killed", self.engine.docker.kill_container(self.inner().id(), Some(signal)));
        wait::until(&format!("{} to die", self.name), wait::START_BOUND, || self.exit_code());
    }

    /// Asks it to end, and kills it where it has not within so many seconds; gives its exit code.
    #[track_caller]
    pub(crate) fn stop(&self, seconds: i32) -> i64 {
        self.done("stopped", self.inner().stop_with_timeout(Some(seconds)));
        wait::until(&format!("{} to end", self.name), wait::START_BOUND, || self.exit_code())
    }

    /// Starts it again, with the files that it has.
    #[track_caller]
    pub(crate) fn start(&self) {
        self.done("started", self.inner().start());
    }

    /// Stops its processes where they are.
    #[track_caller]
    pub(crate) fn pause(&self) {
        self.done("paused", self.inner().pause());
    }

    /// Lets them go on.
    #[track_caller]
    pub(crate) fn unpause(&self) {
        self.done("unpaused", self.inner().unpause());
    }

    /// Whether it runs, paused or not.
    #[track_caller]
    pub(crate) fn is_running(&self) -> bool {
        self.done("asked", self.inner().is_running())
    }

    /// How it ended, if it has.
    #[track_caller]
    pub(crate) fn exit_code(&self) -> Option<i64> {
        self.done("asked", self.inner().exit_code())
    }

    /// Takes a network away from it: packets to and from it are lost without a word.
    #[track_caller]
    pub(crate) fn leave(&self, network: &Network<'_>) {
        let request = NetworkDisconnectRequest {
            container: self.inner().id().to_owned(),
            force: Some(false),
        };
        self.done("cut off", self.engine.docker.disconnect_network(&network.name, request));
        assert_eq!(self.address(network), None, "{} is still in {}", self.name, network.name);
    }

    /// Gives it a network, or gives it back.
    #[track_caller]
    pub(crate) fn join(&self, network: &Network<'_>) {
        let request = NetworkConnectRequest {
            container: self.inner().id().to_owned(),
            endpoint_config: None,
        };
        self.done("connected", self.engine.docker.connect_network(&network.name, request));
    }

    /// Its address in a network, as long as it runs there.
    #[track_caller]
    pub(crate) fn address(&self, network: &Network<'_>) -> Option<IpAddr> {
        let inspect = self.engine.docker.inspect_container(self.inner().id(), None);
        let networks = self.done("inspected", inspect).network_settings?.networks?;
        networks.get(&network.name)?.ip_address.as_ref()?.parse().ok()
    }

    /// All that it has written to standard error, in all its lives.
    #[track_caller]
    pub(crate) fn log(&self) -> String {
        self.done("read", self.read_log())
    }

    async fn read_log(&self) -> Result<String, DockerError> {
        let options = LogsOptionsBuilder::new().stderr(true).build();
        let chunks: Vec<_> =
            self.engine.docker.logs(self.inner().id(), Some(options)).try_collect().await?;
        let bytes: Vec<u8> =
            chunks.into_iter().flat_map(|chunk| chunk.into_bytes().to_vec()).collect();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

impl Drop for Container<'_> {
    #[expect(clippy::print_stderr, reason = "the log of a test that fails is wanted")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self
                .engine
                .runtime
                .block_on(self.read_log())
                .unwrap_or_else(|e| format!("cannot be read: {e}"));
            let mut from = log.len().saturating_sub(LOG_TAIL_BYTES);
            while !log.is_char_boundary(from) {
                from += 1;
            }
            eprintln!("--- {}, last {} bytes ---\n{}", self.name, log.len() - from, &log[from..]);
        }
        if let Some(inner) = self.inner.take() {
            // Its own drop wants a runtime, too.
            let removed = self.engine.runtime.block_on(inner.rm());
            if !std::thread::panicking() {
                removed.unwrap_or_else(|e| panic!("{} cannot be removed: {e}", self.name));
            }
        }
    }
}
