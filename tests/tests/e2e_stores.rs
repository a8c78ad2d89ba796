//! What `muster sort` says of a store that cannot be used: at once where no wait helps, and what it
//! waits for where one does.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use muster_tests::harness::fake_s3::{Request, error_body, reply};
use muster_tests::harness::{
    Bucket, FakeS3, Finished, NatsServer, Output, Process, S3Server, Sandbox, arg, process, wait,
};
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
    command
        .args(["sort", "--local=1", "--quiet", "s3://data/in", "-o", "out"])
        .envs(environment(endpoint));
    command.envs(change.iter().copied());
    let done = sandbox.run_command(command, AT_ONCE).expect_code(1).expect_error(words);
    let text = &done.stderr;
    assert!(
        text.lines().count() <= 2 && !text.contains('<') && !text.contains("hidden"),
        "{change:?}:\n{text}"
    );
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
        command
            .args(["sort", "--local=1", "s3://data/in", "-o", "out"])
            .envs(environment("http://127.0.0.1:9"));
        command.env(name, odd);
        sandbox.run_command(command, AT_ONCE).expect_code(1).expect_error(&[name, "UTF-8"]);
    }
}

#[test]
fn what_no_wait_mends_ends_at_once() {
    let sandbox = Sandbox::new();
    let answers = |status: &'static str, headers: &'static str, code: &'static str| {
        FakeS3::start(move |_: &Request| {
            reply(status, headers, &error_body(code, "The words of the store"))
        })
    };
    for (status, headers, code, words) in [
        ("400 Bad Request", "", "ExpiredToken", ["the session token has expired", "ExpiredToken"]),
        (
            "403 Forbidden",
            "",
            "SignatureDoesNotMatch",
            ["AWS_SECRET_ACCESS_KEY", "The words of the store"],
        ),
        (
            "403 Forbidden",
            "Date: Mon, 01 Jan 2024 00:00:00 GMT\r\n",
            "RequestTimeTooSkewed",
            ["clock", "ahead of"],
        ),
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
    let none = [
        ("AWS_ACCESS_KEY_ID", ""),
        ("AWS_SECRET_ACCESS_KEY", ""),
        ("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9"),
    ];
    ends_at_once(&sandbox, &none, "http://127.0.0.1:9", &["no credentials", "AWS_ACCESS_KEY_ID"]);
    ends_at_once(
        &sandbox,
        &[],
        "http://no-such-host.invalid:9000",
        &["nobody knows the name no-such-host.invalid"],
    );
    let plain = answers("400 Bad Request", "", "BadRequest");
    ends_at_once(
        &sandbox,
        &[],
        &plain.endpoint().replace("http", "https"),
        &["does not speak TLS"],
    );
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
    // It takes claims on OUTPUT, and nothing else.
    let claims = Mutex::new(BTreeMap::<String, Vec<u8>>::new());
    let store = FakeS3::start(move |request: &Request| {
        let mut claims = claims.lock().unwrap_or_else(PoisonError::into_inner);
        let list = |root: &str, of: &str| {
            reply("200 OK", "", &format!("<?xml version=\"1.0\"?><{root}>{of}</{root}>"))
        };
        let when = "Last-Modified: Sat, 28 Nov 2026 12:00:00 GMT\r\nETag: \"e\"\r\n";
        match request.line.split_once(' ') {
            Some(("GET", path)) if path.contains("?uploads") => {
                list("ListMultipartUploadsResult", "")
            }
            Some(("GET", path)) if path.contains("list-type") && path.contains("claims") => {
                let entry = |(path, body): (&String, &Vec<u8>)| {
                    let (key, size) = (path.trim_start_matches("/data/"), body.len());
                    format!(
                        "<Contents><Key>{key}</Key>\
                         <LastModified>2026-11-28T12:00:00.000Z</LastModified>\
                         <ETag>\"e\"</ETag><Size>{size}</Size></Contents>"
                    )
                };
                list("ListBucketResult", &claims.iter().map(entry).collect::<String>())
            }
            Some(("GET", path)) if path.contains("list-type") => list("ListBucketResult", ""),
            Some(("GET" | "HEAD", path)) => match claims.get(path) {
                Some(body) => {
                    let last = body.len().saturating_sub(1);
                    // A claim is read whole.
                    let headers = format!("{when}Content-Range: bytes 0-{last}/{}\r\n", body.len());
                    let status = if request.header("range").is_some() {
                        "206 Partial Content"
                    } else {
                        "200 OK"
                    };
                    reply(status, &headers, &String::from_utf8_lossy(body))
                }
                None => reply("404 Not Found", "", &error_body("NoSuchKey", "Nothing is there")),
            },
            Some(("PUT", path)) if path.contains("/claims/") => {
                claims.insert(path.to_owned(), request.body.clone());
                reply("200 OK", when, "")
            }
            Some(("DELETE", path)) => {
                claims.remove(path);
                reply("204 No Content", "", "")
            }
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
        command
            .args(["sort", "--quiet", arg(&input), "-o", arg(&sandbox.path("out"))])
            .env("NATS_URL", server.url());
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

/// Files of the AWS tools in the home of a sandbox, and a bucket that has something to sort.
struct Profiles {
    sandbox: Sandbox,
    s3: S3Server,
    bucket: Bucket,
    key: (String, String),
}

impl Profiles {
    fn new(config: impl Fn(&str, &str, &str) -> String) -> Self {
        let sandbox = Sandbox::new();
        let s3 = S3Server::start(&sandbox);
        let bucket = s3.bucket("data");
        bucket.put("in/a", b"b\nc\na\n");
        let environment = s3.environment();
        let value = |name: &str| {
            environment.iter().find(|(known, _)| *known == name).expect(name).1.clone()
        };
        let key = (value("AWS_ACCESS_KEY_ID"), value("AWS_SECRET_ACCESS_KEY"));
        sandbox.file("home/.aws/config", config(s3.endpoint(), &key.0, &key.1));
        Self { sandbox, s3, bucket, key }
    }

    fn sort(&self, output: &str, set: &[(&str, &str)]) -> Finished {
        let mut command = self.sandbox.muster();
        command.args(["sort", "--local=1", "--quiet", "--format", "lines", "s3://data/in", "-o"]);
        command.arg(format!("s3://data/{output}")).envs(set.iter().copied());
        self.sandbox.run_command(command, wait::RUN_BOUND)
    }

    #[track_caller]
    fn sorts(&self, output: &str, set: &[(&str, &str)]) {
        let done = self.sort(output, set).expect_code(0);
        assert!(done.stderr.is_empty(), "{}", done.stderr);
        Output::of_bucket(&self.bucket, output).assert_is(b"a\nb\nc\n");
    }

    #[track_caller]
    fn fails(&self, set: &[(&str, &str)], words: &[&str]) {
        let done = self.sort("nothing", set).expect_code(1).expect_error(words);
        let text = &done.stderr;
        assert!(
            text.lines().count() <= 2 && !text.contains(&self.key.1) && !text.contains("hidden"),
            "{text}"
        );
    }
}

#[test]
fn a_profile_is_all_that_a_run_needs_and_the_environment_goes_before_it() {
    let profiles = Profiles::new(|endpoint, id, secret| {
        format!(
            "[profile pool]\nregion = eu-north-1\nendpoint_url = {endpoint}\n\
             aws_access_key_id = {id}\naws_secret_access_key = {secret}\n\
             [profile wrong]\nendpoint_url = http://127.0.0.1:9\naws_access_key_id = {id}\n\
             aws_secret_access_key = hidden\n\
             [default]\nregion = eu-west-3\n"
        )
    });
    let (endpoint, (id, secret)) = (profiles.s3.endpoint(), &profiles.key);
    profiles.sorts("by-profile", &[("AWS_PROFILE", "pool")]);
    let keys = [("AWS_ACCESS_KEY_ID", id.as_str()), ("AWS_SECRET_ACCESS_KEY", secret.as_str())];
    profiles.sorts(
        "keys",
        &[("AWS_PROFILE", "wrong"), ("AWS_ENDPOINT_URL", endpoint), keys[0], keys[1]],
    );
    profiles.sorts("elsewhere", &[("AWS_PROFILE", "pool"), ("AWS_CONFIG_FILE", "~/.aws/config")]);
    let environment = ("AWS_ENDPOINT_URL", endpoint);
    profiles.fails(&[("AWS_PROFILE", "wrong"), environment], &["SignatureDoesNotMatch"]);
    profiles.fails(
        &[("AWS_PROFILE", "pool"), keys[0], ("AWS_SECRET_ACCESS_KEY", "hidden")],
        &["SignatureDoesNotMatch"],
    );
    profiles.fails(
        &[("AWS_PROFILE", "pol")],
        &["no AWS profile \"pol\"", ".aws/config", "default, pool, wrong"],
    );
    profiles.fails(
        &[("AWS_PROFILE", "pool"), ("AWS_CONFIG_FILE", "logs")],
        &["AWS_CONFIG_FILE", "no regular file"],
    );
    // A local file needs nothing of all that.
    let (input, output) = (profiles.sandbox.file("in", "b\na\n"), profiles.sandbox.path("out"));
    let mut command = profiles.sandbox.muster();
    command.args(["sort", "--local=1", arg(&input), "-o", arg(&output)]).env("AWS_PROFILE", "pol");
    profiles.sandbox.run_command(command, wait::RUN_BOUND).expect_code(0);
}

#[test]
fn credentials_come_from_a_process_once_a_run() {
    let profiles = Profiles::new(|endpoint, _, _| {
        format!(
            "[profile pool]\nendpoint_url = {endpoint}\ncredential_process = ./keys\n\
             [profile broken]\nendpoint_url = {endpoint}\n\
             credential_process = echo 'nobody is here' >&2; exit 4\n\
             [profile garbage]\nendpoint_url = {endpoint}\ncredential_process = echo hidden\n"
        )
    });
    let (id, secret) = &profiles.key;
    let keys = format!(
        r#"{{"Version":1,"AccessKeyId":"{id}","SecretAccessKey":"{secret}",
            "Expiration":"2099-01-01T00:00:00Z"}}"#
    );
    let script = profiles
        .sandbox
        .file("keys", format!("#!/bin/sh\necho asked >>asked\nprintf '%s' '{keys}'\n"));
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("a program");
    profiles.sorts("out", &[("AWS_PROFILE", "pool")]);
    let asked = fs::read_to_string(profiles.sandbox.path("asked")).expect("it was asked");
    assert_eq!(asked.lines().count(), 1, "one process of muster asks once");
    profiles.fails(
        &[("AWS_PROFILE", "broken")],
        &["the AWS profile \"broken\"", "exit status: 4", "nobody is here"],
    );
    profiles
        .fails(&[("AWS_PROFILE", "garbage")], &["the AWS profile \"garbage\"", "could not parse"]);
}

/// The services that give credentials are asked over our own http client.
#[test]
fn credentials_come_from_a_login_and_from_a_role() {
    let role = "arn:aws:iam::123456789012:role/r";
    let profiles = Profiles::new(|endpoint, id, secret| {
        format!(
            "[profile login]\nsso_session = corp\nsso_account_id = 123456789012\n\
             sso_role_name = r\nservices = here\n\
             [profile role]\nrole_arn = {role}\nsource_profile = base\nservices = here\n\
             [profile base]\naws_access_key_id = {id}\naws_secret_access_key = {secret}\n\
             [sso-session corp]\nsso_region = eu-west-1\n\
             sso_start_url = https://example.com/start\n\
             [services here]\ns3 =\n  endpoint_url = {endpoint}\n"
        )
    });
    let (id, secret) = profiles.key.clone();
    let service = FakeS3::start(move |request: &Request| match request.line.as_str() {
        line if line.starts_with("GET /federation/credentials?") => {
            let given = format!(
                r#"{{"roleCredentials":{{"accessKeyId":"{id}","secretAccessKey":"{secret}",
                    "sessionToken":"","expiration":4070908800000}}}}"#
            );
            reply("200 OK", "Content-Type: application/json\r\n", &given)
        }
        _ => {
            let given = format!(
                "<AccessKeyId>{id}</AccessKeyId><SecretAccessKey>{secret}</SecretAccessKey>\
                 <SessionToken></SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration>"
            );
            let result =
                format!("<AssumeRoleResult><Credentials>{given}</Credentials></AssumeRoleResult>");
            let body = format!(
                "<AssumeRoleResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
                 {result}</AssumeRoleResponse>"
            );
            reply("200 OK", "Content-Type: text/xml\r\n", &body)
        }
    });
    let endpoint = service.endpoint();
    // Named by the hash of the session's name, as `aws sso login` leaves it.
    let cache = "home/.aws/sso/cache/ee0bfd2552fbd840c02cc48b6e823320543c450f.json";
    let token = |expires: &str| {
        format!(
            r#"{{"accessToken":"hidden","expiresAt":"{expires}","region":"eu-west-1",
                "startUrl":"https://example.com/start"}}"#
        )
    };
    let login = [("AWS_PROFILE", "login"), ("AWS_ENDPOINT_URL_SSO", endpoint.as_str())];
    profiles.fails(&login, &["the AWS profile \"login\"", "aws sso login --profile login"]);
    profiles.sandbox.file(cache, token("2020-01-01T00:00:00Z"));
    profiles.fails(&login, &["expired", "aws sso login --profile login"]);
    assert!(service.requests().is_empty(), "nobody was asked: {:?}", service.requests());
    profiles.sandbox.file(cache, token("2099-01-01T00:00:00Z"));
    profiles.sorts("by-login", &login);
    let asked = service.requests();
    assert!(
        asked.len() == 1 && asked[0].header("x-amz-sso_bearer_token") == Some("hidden"),
        "{asked:?}"
    );
    profiles
        .sorts("by-role", &[("AWS_PROFILE", "role"), ("AWS_ENDPOINT_URL_STS", endpoint.as_str())]);
    assert_eq!(service.requests().len(), 2);
    let dead = [("AWS_PROFILE", "role"), ("AWS_ENDPOINT_URL_STS", "http://no-such-host.invalid")];
    profiles
        .fails(&dead, &["the AWS profile \"role\"", "nobody knows the name no-such-host.invalid"]);
}
