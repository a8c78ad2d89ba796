//! What is secret (passwords of NATS, keys of the store) is in no log, no answer, no metric and no
//! error, whichever way it was given and however things go wrong.

use std::process::Command;

use muster_tests::harness::data::{Keys, records};
use muster_tests::harness::{
    NatsServer, Output, Process, S3Server, Sandbox, oracle, wait, watched,
};

const USER: &str = "nats-user";
const PASSWORD: &str = "nats-password-4711";
const WRONG: &str = "wrong-secret-0815";

/// A pool whose NATS password stands in its URL, and all that it has said.
struct Scene<'a> {
    sandbox: &'a Sandbox,
    s3: S3Server,
    url: String,
    said: Vec<(String, String)>,
}

impl Scene<'_> {
    /// A command of muster, with NATS by its URL and the store by its environment; all of muster's
    /// own log lines are wanted.
    fn muster(&self, arguments: &[&str]) -> Command {
        let mut command = self.sandbox.muster();
        command.args(arguments).envs(self.s3.environment()).env("NATS_URL", &self.url);
        let ours =
            ["muster", "muster_platform", "muster_protocol", "muster_coordinator", "muster_worker"]
                .map(|name| format!("{name}=trace"));
        command.env("MUSTER_LOG", format!("info,{}", ours.join(",")));
        command
    }

    fn start(&self, name: &str, arguments: &[&str]) -> Process {
        Process::spawn(
            name,
            self.muster(&[arguments, &["--profile", "testing", "--http", "0"]].concat()),
            &self.sandbox.logs(),
        )
    }

    #[track_caller]
    fn run(&mut self, code: i32, command: Command) {
        let line = format!("{command:?}");
        let done = self.sandbox.run_command(command, wait::RUN_BOUND).expect_code(code);
        self.said.push((line, format!("{}{}", done.stdout, done.stderr)));
    }

    #[track_caller]
    fn assert_nothing_shown(&self, secrets: &[String]) {
        for (who, said) in &self.said {
            assert!(
                !said.is_empty(),
                "{who} has said nothing: this test would pass whatever it said"
            );
            for secret in secrets {
                assert!(!said.contains(secret.as_str()), "a secret was shown by {who}:\n{said}");
            }
        }
    }
}

#[test]
fn no_secret_is_shown() {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    let nats = NatsServer::with_user(&sandbox, USER, PASSWORD);
    let host = nats.url().trim_start_matches("nats://").to_owned();
    let bucket = s3.bucket("data");
    let data = records(2_000, Keys::Random, 1);
    bucket.put("in", &data);
    let (from, to, scratch) = (bucket.url("in"), bucket.url("out"), bucket.url("scratch"));
    let environment = s3.environment();
    let secret_key = environment
        .iter()
        .find(|(name, _)| *name == "AWS_SECRET_ACCESS_KEY")
        .map(|(_, value)| value.clone());
    let url = format!("nats://{USER}:{PASSWORD}@{host}");
    let mut scene = Scene { sandbox: &sandbox, s3, url, said: Vec::new() };

    let coordinator = scene.start("coordinator", &["coordinator", "--bucket", &scratch]);
    let worker =
        scene.start("worker", &["worker", "--id", "w1", "--threads", "1", "--memory", "256MiB"]);
    let address = |process: &Process| {
        wait::until("an address", wait::START_BOUND, || watched::address(process))
    };
    let addresses = [address(&coordinator), address(&worker)];
    wait::until("the worker to be registered", wait::START_BOUND, || {
        (watched::ready(addresses[1]).0 == 200).then_some(())
    });

    let sort = [
        "sort",
        &from,
        "-o",
        &to,
        "--format",
        "fixed:100",
        "-k",
        "0:10",
        "--json",
        "--job-id",
        "job",
    ];
    scene.run(0, scene.muster(&sort));
    Output::of_bucket(&bucket, "out").assert_is(&oracle::fixed(&data, 100, 0, 10));
    for arguments in [
        &["status", "job", "--json"][..],
        &["jobs", "--json"],
        &["workers", "--json"],
        &["events", "--json"],
        &["doctor", "--json", "--profile", "testing", "--bucket", &scratch, "--output", &to],
    ] {
        scene.run(0, scene.muster(arguments));
    }
    // Refused by NATS, by the store, and by muster itself.
    let wrong = |name: &str, value: &str, arguments: &[&str]| {
        let mut command = scene.muster(arguments);
        command.env(name, value);
        command
    };
    let refused = [
        (3, wrong("NATS_URL", &format!("nats://{USER}:{WRONG}@{host}"), &["jobs"])),
        (3, wrong("NATS_URL", &format!("nats://{WRONG}@127.0.0.1:1"), &["jobs", "--json"])),
        (
            1,
            wrong(
                "AWS_SECRET_ACCESS_KEY",
                WRONG,
                &["doctor", "--json", "--profile", "testing", "--bucket", &scratch],
            ),
        ),
        (
            1,
            wrong(
                "AWS_ENDPOINT_URL",
                &format!("http://me:{WRONG}@127.0.0.1:1"),
                &["verify", &from],
            ),
        ),
        (2, scene.muster(&["sort", &format!("s3://KEY:{WRONG}@data/in"), "-o", &to])),
        (2, scene.muster(&["coordinator", "--bucket", &format!("https://me:{WRONG}@host/b")])),
    ];
    for (code, command) in refused {
        // The command line itself is not muster's to hide.
        scene.run(code, command);
    }
    for (process, address) in [(&coordinator, addresses[0]), (&worker, addresses[1])] {
        scene.said.push((process.name().to_owned(), process.stderr()));
        scene.said.push((
            format!("metrics of {}", process.name()),
            watched::Scrape::of(address).text().to_owned(),
        ));
        scene.said.push((
            format!("readiness of {}", process.name()),
            watched::get(address, "/readyz").body,
        ));
    }
    let secrets = [PASSWORD.to_owned(), WRONG.to_owned(), secret_key.expect("a secret key")];
    scene.assert_nothing_shown(&secrets);
}
