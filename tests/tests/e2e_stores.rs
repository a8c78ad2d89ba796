//! What `muster sort` says of a store that cannot be used: at once where no wait helps, and what it waits for where one does.

use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use muster_tests::harness::fake_s3::{Request, error_body, reply};
use muster_tests::harness::{FakeS3, NatsServer, Process, Sandbox, arg, process, wait};
use rustix::process::Signal;

/// Far less than anything is waited for.
const AT_ONCE: Duration = Duration::from_secs(30);

/// Environment of a store that would do.
fn environment(endpoint: &str) -> Vec<(&'static str, String)> {
    vec![
        ("AWS_ENDPOINT_URL", endpoint.to_owned()),
        ("AWS_ACCESS_KEY_ID", "key".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "hidden".to_owned()),
    ]
}

/// A run here that is to end at once with a text of a few lines that has these words.
#[track_caller]
fn ends_at_once(sandbox: &Sandbox, change: &[(&str, &str)], endpoint: &str, words: &[&str]) {
    let mut command = sandbox.muster();
    command.args(["sort", "--local=1", "--quiet", "s3://data/in", "-o", "out"]).envs(environment(endpoint));
    command.envs(change.iter().copied());
    let done = sandbox.run_command(command, AT_ONCE).expect_code(1).expect_error(words);
    let text = &done.stderr;
    assert!(text.lines().count() <= 2 && !text.contains('<') && !text.contains("hidden"), "{change:?}:\n{text}");
    assert!(!text.contains("REQUEST-ID") && !text.contains("bug"), "{change:?}:\n{text}");
}

#[test]
fn settings_that_cannot_work_are_refused_by_name() {
    let sandbox = Sandbox::new();
    for (name, value, words) in [
        ("AWS_ENDPOINT_URL", "127.0.0.1:9000", "write http://127.0.0.1:9000"),
        ("AWS_ENDPOINT_URL_S3", "http://", "AWS_ENDPOINT_URL_S3"),
        ("AWS_REGION", "eu west", "AWS_REGION"),
        ("AWS_SESSION_TOKEN", "hidden\n", "session token"),
        ("HTTP_PROXY", "http://me:hidden@:::", "HTTP_PROXY"),
        ("AWS_SKIP_SIGNATURE", "perhaps", "AWS_SKIP_SIGNATURE"),
    ] {
        ends_at_once(&sandbox, &[(name, value)], "http://127.0.0.1:9", &[words]);
    }
}

#[test]
fn variables_that_are_no_text_are_refused() {
    let sandbox = Sandbox::new();
    let odd = std::ffi::OsStr::from_bytes(b"nats://\xff:4222");
    let input = sandbox.file("in", "b\na\n");
    for name in ["NATS_URL", "NATS_USER", "NATS_CREDS", "MUSTER_NAMESPACE"] {
        let mut command = sandbox.muster();
        command.args(["sort", arg(&input), "-o", "out"]).env(name, odd);
        sandbox.run_command(command, AT_ONCE).expect_code(2).expect_error(&[name, "UTF-8"]);
    }
    for name in ["AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_REGION"] {
        let mut command = sandbox.muster();
        command.args(["sort", "--local=1", "s3://data/in", "-o", "out"]).envs(environment("http://127.0.0.1:9"));
        command.env(name, odd);
        sandbox.run_command(command, AT_ONCE).expect_code(1).expect_error(&[name, "UTF-8"]);
    }
}

#[test]
fn what_no_wait_mends_ends_at_once() {
    let sandbox = Sandbox::new();
    let answers = |status: &'static str, headers: &'static str, code: &'static str| {
        FakeS3::start(move |_: &Request| reply(status, headers, &error_body(code, "The words of the store")))
    };
    for (status, headers, code, words) in [
        ("400 Bad Request", "", "ExpiredToken", ["the session token has expired", "ExpiredToken"]),
        ("403 Forbidden", "", "SignatureDoesNotMatch", ["AWS_SECRET_ACCESS_KEY", "The words of the store"]),
        ("403 Forbidden", "Date: Mon, 01 Jan 2024 00:00:00 GMT\r\n", "RequestTimeTooSkewed", ["clock", "ahead of"]),
        (
            "301 Moved Permanently",
            "x-amz-bucket-region: eu-north-1\r\n",
            "PermanentRedirect",
            ["eu-north-1", "AWS_REGION"],
        ),
        ("501 Not Implemented", "", "NotImplemented", ["does not have this call", "501"]),
    ] {
        let store = answers(status, headers, code);
        ends_at_once(&sandbox, &[], &store.endpoint(), &words);
    }
    let none =
        [("AWS_ACCESS_KEY_ID", ""), ("AWS_SECRET_ACCESS_KEY", ""), ("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")];
    ends_at_once(&sandbox, &none, "http://127.0.0.1:9", &["no credentials", "AWS_ACCESS_KEY_ID"]);
    ends_at_once(&sandbox, &[], "http://no-such-host.invalid:9000", &["nobody knows the name no-such-host.invalid"]);
    let plain = answers("400 Bad Request", "", "BadRequest");
    ends_at_once(&sandbox, &[], &plain.endpoint().replace("http", "https"), &["does not speak TLS"]);
    // What a server of TLS says to somebody who does not greet it.
    let secure = FakeS3::start(|_| b"\x15\x03\x03\x00\x02\x02\x46".to_vec());
    ends_at_once(&sandbox, &[], &secure.endpoint(), &["does not answer in HTTP"]);
}

#[test]
fn a_dead_endpoint_is_waited_for_and_named_and_an_interrupt_ends_the_wait() {
    let sandbox = Sandbox::new();
    for (name, value, words) in [
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9", "http://127.0.0.1:9"),
        ("HTTP_PROXY", "http://127.0.0.1:9", "by the proxy 127.0.0.1:9"),
    ] {
        let mut command = sandbox.muster();
        command.args(["sort", "--local=1", "--quiet", "s3://data/in", "-o", "out"]);
        command.envs(environment("http://127.0.0.1:1")).env(name, value);
        let mut run = Process::spawn(name, command, &sandbox.logs());
        let line = run.wait_for_log("waiting up to 60 s for store s3://data", wait::START_BOUND);
        assert!(line.contains(words) && line.contains("refused"), "{line}");
        run.signal(Signal::INT);
        assert_eq!(process::exit_code(run.wait(AT_ONCE)), 130);
        let text = run.stderr();
        assert!(text.contains("OUTPUT is as it was") && !text.contains("not known"), "{text}");
        sandbox.assert_no_temporaries();
    }
}

#[test]
fn nothing_is_signed_where_no_signature_is_wanted() {
    let sandbox = Sandbox::new();
    let input = sandbox.file("in", "b\na\n");
    let store = FakeS3::start(|request: &Request| {
        let empty = |root: &str| reply("200 OK", "", &format!("<?xml version=\"1.0\"?><{root}></{root}>"));
        match request.line.split_once(' ') {
            Some(("HEAD", _)) => reply("404 Not Found", "", ""),
            Some(("GET", path)) if path.contains("uploads") => empty("ListMultipartUploadsResult"),
            Some(("GET", path)) if path.contains("list-type") => empty("ListBucketResult"),
            _ => reply("501 Not Implemented", "", &error_body("NotImplemented", "It only reads")),
        }
    });
    let mut command = sandbox.muster();
    command.args(["sort", "--local=1", "--quiet", arg(&input), "-o", "s3://data/out"]);
    command.env("AWS_ENDPOINT_URL", store.endpoint()).env("AWS_SKIP_SIGNATURE", "true");
    sandbox.run_command(command, AT_ONCE).expect_code(1).expect_error(&["does not have this call"]);
    let asked = store.requests();
    assert!(asked.iter().any(|request| request.line.contains("uploads")), "{asked:?}");
    assert!(asked.iter().all(|request| request.header("authorization").is_none()), "{asked:?}");
}

#[test]
fn a_client_without_a_coordinator_says_so_and_ends_soon() {
    let sandbox = Sandbox::new();
    let (input, server) = (sandbox.file("in", "b\na\n"), NatsServer::start(&sandbox));
    let client = |name: &str| {
        let mut command = sandbox.muster();
        command.args(["sort", "--quiet", arg(&input), "-o", arg(&sandbox.path("out"))]).env("NATS_URL", server.url());
        Process::spawn(name, command, &sandbox.logs())
    };
    let (mut patient, mut interrupted) = (client("patient"), client("interrupted"));
    for run in [&patient, &interrupted] {
        run.wait_for_log("no coordinator is there; waiting up to 30 s", wait::START_BOUND);
    }
    interrupted.signal(Signal::INT);
    assert_eq!(process::exit_code(interrupted.wait(AT_ONCE)), 130);
    assert!(interrupted.stderr().contains("interrupted"), "{}", interrupted.stderr());
    assert_eq!(process::exit_code(patient.wait(wait::RUN_BOUND)), 3);
    let text = patient.stderr();
    assert!(text.contains("muster coordinator") && text.contains("--local"), "{text}");
}
