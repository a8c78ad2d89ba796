//! The harness itself: that its servers are real, that they check what they should, and that its
//! gates hold. Without this, a green test says little.

use std::process::Command;
use std::time::Duration;

use muster_tests::harness::bucket::Credentials;
use muster_tests::harness::data::{Keys, log_lines, odd_lines, records, table, words};
use muster_tests::harness::process::any_with_argument;
use muster_tests::harness::sandbox::files_below;
use muster_tests::harness::{Bucket, Gate, NatsServer, Output, Process, S3Server, Sandbox, oracle};

/// Publishes to a stream and reads back how many messages it holds.
async fn messages_after_publish(url: String) -> u64 {
    let client = async_nats::connect(url).await.expect("connect");
    let jetstream = async_nats::jetstream::new(client);
    let config = async_nats::jetstream::stream::Config {
        name: "PROBE".into(),
        subjects: vec!["probe".into()],
        ..Default::default()
    };
    let mut stream = jetstream.get_or_create_stream(config).await.expect("stream");
    jetstream.publish("probe", "x".into()).await.expect("publish").await.expect("acknowledged");
    stream.info().await.expect("info").state.messages
}

#[test]
fn the_nats_server_keeps_its_streams_over_a_crash() {
    let sandbox = Sandbox::new();
    let mut nats = NatsServer::start(&sandbox);
    let url = nats.url();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    assert_eq!(runtime.block_on(messages_after_publish(url.clone())), 1);
    nats.crash_and_restart(&sandbox);
    assert_eq!(nats.url(), url);
    assert_eq!(runtime.block_on(messages_after_publish(url)), 2);
}

#[test]
fn servers_end_with_what_started_them() {
    let sandbox = Sandbox::new();
    let mark = sandbox.path("nats").display().to_string();
    let nats = NatsServer::start(&sandbox);
    assert!(any_with_argument(&mark));
    drop(nats);
    assert!(!any_with_argument(&mark));
}

#[test]
fn the_s3_server_keeps_objects_and_checks_credentials() {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    let bucket = s3.bucket("data");
    let bytes = records(50_000, Keys::Random, 1);
    bucket.put("in/a", &bytes);
    bucket.put("in/b/c", b"");
    assert_eq!(bucket.list("in"), ["in/a", "in/b/c"]);
    assert!(bucket.get("in/a") == bytes);

    bucket.open_upload("out/part");
    assert_eq!(bucket.uploads(), ["out/part"]);
    assert_eq!(bucket.list("out"), Vec::<String>::new(), "an open upload is no object");

    let environment = s3.environment();
    let value = |name: &str| environment.iter().find(|(key, _)| *key == name).unwrap().1.clone();
    let user =
        Credentials { key: value("AWS_ACCESS_KEY_ID"), secret: value("AWS_SECRET_ACCESS_KEY") };
    let as_user = Bucket::new(s3.endpoint(), "data", user.clone());
    assert!(as_user.try_put("in/user", b"x"), "muster's user may write");
    assert!(
        !Bucket::new(s3.endpoint(), "new-bucket", user.clone()).try_put("x", b"x"),
        "a write makes no bucket"
    );
    assert!(
        !Bucket::new(s3.endpoint(), "new-bucket", user.clone()).try_create(),
        "muster's user makes no buckets"
    );
    let wrong = Credentials { secret: "wrong".into(), ..user };
    assert!(
        !Bucket::new(s3.endpoint(), "data", wrong).try_put("in/wrong", b"x"),
        "a wrong secret is refused"
    );
    bucket.delete("in/user");
    assert_eq!(bucket.list("in"), ["in/a", "in/b/c"]);
}

#[test]
fn a_gate_holds_what_it_is_told_to() {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    let bucket = s3.bucket("data");
    let gate = Gate::before(s3.port());
    let environment = s3.environment();
    let value = |name: &str| environment.iter().find(|(key, _)| *key == name).unwrap().1.clone();
    let user =
        Credentials { key: value("AWS_ACCESS_KEY_ID"), secret: value("AWS_SECRET_ACCESS_KEY") };
    let endpoint = gate.endpoint();
    gate.delay(Duration::from_millis(10));
    gate.hold(|request| request.starts_with("PUT "));
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            Bucket::new(&endpoint, "data", user.clone()).try_put("held", &vec![b'x'; 1 << 20])
        });
        let held = gate.wait_for_request("the write to be held", Duration::from_secs(10));
        assert_eq!(held, "PUT /data/held");
        assert_eq!(bucket.list(""), Vec::<String>::new());
        let through = Bucket::new(&endpoint, "data", user.clone());
        assert_eq!(through.list(""), Vec::<String>::new(), "other requests pass");
        gate.open();
        assert!(writer.join().unwrap());
    });
    assert_eq!(bucket.get("held").len(), 1 << 20);
}

#[test]
fn a_process_is_killed_by_its_id_and_its_output_kept() {
    let sandbox = Sandbox::new();
    let mut shell = Command::new("sh");
    shell.args(["-c", "echo said; echo complained >&2; exec sleep 60"]);
    let mut process = Process::spawn("sh", shell, &sandbox.logs());
    muster_tests::harness::wait::until("both lines", Duration::from_secs(5), || {
        (process.stdout() == "said\n" && process.stderr() == "complained\n").then_some(())
    });
    process.assert_running();
    process.kill();
    assert_eq!(muster_tests::harness::process::exit_code(process.poll().unwrap()), 128 + 9);
}

#[test]
fn the_oracles_agree_with_each_other() {
    let sandbox = Sandbox::new();
    // Ascending keys in a fixed format are also lines in order when the lines begin with them.
    let lines = log_lines(500, 3);
    let sorted = oracle::gnu_sort(&[], &[sandbox.file("log", &lines)]);
    let mut plain: Vec<&[u8]> = lines.split_inclusive(|b| *b == b'\n').collect();
    plain.sort_unstable();
    assert!(sorted == plain.concat());
    for keys in [Keys::Sorted, Keys::Equal] {
        let data = records(300, keys, 1);
        assert!(oracle::fixed(&data, 100, 0, 10) == data, "{keys:?} stays as it is");
    }
    assert!(
        oracle::fixed(&records(300, Keys::Reversed, 1), 100, 0, 8)
            != records(300, Keys::Reversed, 1)
    );
}

#[test]
fn the_data_is_what_it_says() {
    let random = records(1000, Keys::Random, 5);
    assert_eq!(random.len(), 100_000);
    assert!(random == records(1000, Keys::Random, 5) && random != records(1000, Keys::Random, 6));
    let hot = records(1000, Keys::Skewed, 5)
        .chunks(100)
        .filter(|record| record[..8] == (1u64 << 40).to_be_bytes())
        .count();
    assert!((850..950).contains(&hot), "{hot} of 1000 share the hot key");
    assert_eq!(log_lines(1000, 5).iter().filter(|b| **b == b'\n').count(), 1000);
    assert_eq!(words(1000, 5).iter().filter(|b| **b == b'\n').count(), 1000);
    assert_eq!(table(1000, ',', 5).iter().filter(|b| **b == b',').count(), 2000);
    let odd = odd_lines(1000, 5);
    assert_eq!(odd.iter().filter(|b| **b == b'\n').count(), 999);
    assert!(odd.contains(&0) && std::str::from_utf8(&odd).is_err());
}

#[test]
fn an_output_is_read_back_as_it_lies() {
    let sandbox = Sandbox::new();
    Output::of_folder(sandbox.path("nowhere")).assert_nothing();
    sandbox.file("out/part-00000.txt", "a\n");
    sandbox.file("out/part-00001.txt", "b\n");
    sandbox.file(
        "out/_SUCCESS",
        r#"{"parts":[{"name":"part-00000.txt","bytes":2},{"name":"part-00001.txt","bytes":2}]}"#,
    );
    Output::of_folder(sandbox.path("out")).assert_is(b"a\nb\n");
    sandbox.file("out/x/y", "");
    assert_eq!(Output::of_folder(sandbox.path("out")).others, ["x/y"]);
    assert_eq!(files_below(&sandbox.path("out")).len(), 4);
}
