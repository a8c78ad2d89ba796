//! A real S3 server (SeaweedFS) that checks credentials, on claimed ports.

use std::fs;

use rustix::process::Signal;

use super::bucket::{Bucket, Credentials};
use super::ports::Ports;
use super::process::Process;
use super::sandbox::Sandbox;
use super::{programs, wait};

/// What the tests' own hand uses: it may do everything.
const ADMIN: (&str, &str) = ("adminkey", "adminsecret");
/// What muster gets: it may read, write and list, but makes no buckets.
const USER: (&str, &str) = ("musterkey", "mustersecret");

/// A server that ends with the test.
#[derive(Debug)]
pub struct S3Server {
    process: Process,
    endpoint: String,
    ports: Ports,
    sockets: Vec<String>,
}

impl S3Server {
    /// Starts one with its data in `<sandbox>/s3`, and waits until it serves a request.
    ///
    /// # Panics
    /// Where it does not within [`wait::START_BOUND`].
    #[track_caller]
    pub fn start(sandbox: &Sandbox) -> Self {
        let data = sandbox.path("s3");
        fs::create_dir_all(&data).expect("a folder can be made");
        let identities = sandbox.file("s3-identities.json", identities());
        let ports = Ports::claim();
        let mut command = sandbox.clean_command(programs::s3_server());
        command
            .args([
                "-logtostderr",
                "server",
                "-ip=127.0.0.1",
                "-ip.bind=127.0.0.1",
                "-filer",
                "-s3",
            ])
            .arg(format!("-dir={}", data.display()))
            .arg(format!("-master.port={}", ports.port(0)))
            .arg(format!("-volume.port={}", ports.port(1)))
            .arg(format!("-filer.port={}", ports.port(2)))
            .arg(format!("-s3.port={}", ports.port(3)))
            .arg(format!("-s3.config={}", identities.display()))
            .args([
                "-s3.port.iceberg=0",
                "-s3.port.lance=0",
                "-s3.autoCreateBucket=false",
                "-master.telemetry=false",
            ])
            // Small volumes, as many as the disk holds, so that a test's few files take little of
            // it.
            .args(["-master.volumeSizeLimitMB=256", "-volume.max=0", "-volume.minFreeSpace=1"]);
        let process = Process::spawn("s3", command, &sandbox.logs());
        let socket = |kind: &str, port: u16| format!("/tmp/seaweedfs-{kind}-{port}.sock");
        let mut server = Self {
            process,
            endpoint: format!("http://127.0.0.1:{}", ports.port(3)),
            // It makes these in /tmp whatever it is told, and a killed server leaves them.
            sockets: vec![
                socket("master-grpc", ports.port(0) + 10_000),
                socket("volume-grpc", ports.port(1) + 10_000),
                socket("filer-grpc", ports.port(2) + 10_000),
                socket("filer", ports.port(2)),
                socket("s3-grpc", ports.port(3) + 10_000),
                socket("s3", ports.port(3)),
            ],
            ports,
        };
        let probe = server.as_admin("probe");
        wait::until("the S3 server to make a bucket and keep an object", wait::START_BOUND, || {
            server.process.assert_running();
            (probe.try_create() && probe.try_put("probe", b"x")).then_some(())
        });
        server
    }

    /// `http://127.0.0.1:port`.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.ports.port(3)
    }

    /// Sends it a signal, if it still runs.
    pub fn signal(&mut self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Makes a bucket, and gives the tests' own hand on it.
    ///
    /// # Panics
    /// Where it cannot be made.
    #[track_caller]
    pub fn bucket(&self, name: &str) -> Bucket {
        let bucket = self.as_admin(name);
        assert!(bucket.try_create(), "the S3 server makes no bucket {name}");
        bucket
    }

    /// The environment by which muster reaches it.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        environment(&self.endpoint)
    }

    fn as_admin(&self, bucket: &str) -> Bucket {
        as_admin(&self.endpoint, bucket)
    }
}

/// Who may do what on a server for tests, as SeaweedFS reads it (`-s3.config`).
pub fn identities() -> String {
    let identity = |name: &str, (key, secret): (&str, &str), actions: &[&str]| {
        serde_json::json!({
            "name": name,
            "credentials": [{ "accessKey": key, "secretKey": secret }],
            "actions": actions,
        })
    };
    serde_json::json!({ "identities": [
        identity("admin", ADMIN, &["Admin", "Read", "Write", "List", "Tagging"]),
        identity("muster", USER, &["Read", "Write", "List"]),
    ] })
    .to_string()
}

/// The tests' own hand on a bucket of a server with these identities.
pub fn as_admin(endpoint: &str, bucket: &str) -> Bucket {
    Bucket::new(
        endpoint,
        bucket,
        Credentials { key: ADMIN.0.to_owned(), secret: ADMIN.1.to_owned() },
    )
}

/// The environment by which muster reaches such a server.
pub fn environment(endpoint: &str) -> Vec<(&'static str, String)> {
    vec![
        ("AWS_ENDPOINT_URL", endpoint.to_owned()),
        ("AWS_ALLOW_HTTP", "true".to_owned()),
        ("AWS_REGION", "us-east-1".to_owned()),
        ("AWS_ACCESS_KEY_ID", USER.0.to_owned()),
        ("AWS_SECRET_ACCESS_KEY", USER.1.to_owned()),
    ]
}

impl Drop for S3Server {
    fn drop(&mut self) {
        self.process.kill();
        for socket in &self.sockets {
            let _ = fs::remove_file(socket);
        }
    }
}
