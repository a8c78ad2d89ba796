//! The adapters against real servers: the same suites that the ones in memory pass.

use muster_platform::adapters::journal::{JetStreamLedger, ensure_streams};
use muster_platform::adapters::nats::{self, NatsSettings};
use muster_platform::adapters::s3::S3Blobs;
use muster_platform::config::{Config, Profile};
use muster_platform::conformance;
use muster_platform::store::Blobs;
use muster_protocol::ErrorKind;
use muster_tests::harness::{NatsServer, S3Server, Sandbox};

/// Runs a conversation on a runtime of its own: the harness brings its own, which may not stand
/// inside another.
fn block_on<T>(conversation: impl Future<Output = T>) -> T {
    tokio::runtime::Runtime::new().expect("runtime").block_on(conversation)
}

fn limits() -> muster_platform::config::Store {
    Config::profile(Profile::Testing).expect("settings").store
}

fn variables(s3: &S3Server) -> Vec<(String, String)> {
    s3.environment().into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

#[test]
fn a_bucket_passes_the_suite_of_stores() {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    drop(s3.bucket("suite"));
    let store =
        block_on(S3Blobs::from_variables("suite", &limits(), variables(&s3))).expect("settings");
    block_on(conformance::blobs(&store, "root"));
}

#[test]
fn a_bucket_that_is_not_there_is_said_to_be_missing() {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    let store =
        block_on(S3Blobs::from_variables("absent", &limits(), variables(&s3))).expect("settings");
    let error = block_on(store.put("a", bytes::Bytes::from_static(b"x"))).expect_err("no bucket");
    assert!(error.message.contains("absent"), "{error}");
    let wrong = variables(&s3).into_iter().map(|(name, value)| {
        if name.contains("SECRET") { (name, "wrong".to_owned()) } else { (name, value) }
    });
    let store = block_on(S3Blobs::from_variables("absent", &limits(), wrong)).expect("settings");
    assert_eq!(block_on(store.head("a")).expect_err("wrong secret").kind, ErrorKind::Setup);
}

#[test]
fn jetstream_passes_the_suite_of_ledgers() {
    let sandbox = Sandbox::new();
    let server = NatsServer::start(&sandbox);
    let config = Config::profile(Profile::Testing).expect("settings");
    let settings = NatsSettings { url: server.url(), ..NatsSettings::default() };
    block_on(async {
        let client = nats::connect(&settings, &config, "suite").await.expect("connect");
        ensure_streams(&client, &config).await.expect("streams");
        ensure_streams(&client, &config).await.expect("a second time");
        conformance::ledger(&JetStreamLedger::new(&client, &config)).await;
    });
}

#[test]
fn no_server_is_passing_trouble() {
    let config = Config::profile(Profile::Testing).expect("settings");
    let nowhere = NatsSettings { url: "nats://127.0.0.1:1".to_owned(), ..NatsSettings::default() };
    assert_eq!(
        block_on(nats::connect(&nowhere, &config, "suite")).expect_err("nobody listens").kind,
        ErrorKind::Retry
    );
}
