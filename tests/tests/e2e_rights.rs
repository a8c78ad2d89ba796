//! Every role with a NATS user of its own, as `deploy/nats/make.sh` makes them: whole jobs and
//! everything around them work within these rights, and what a role must not do the server refuses,
//! or the coordinator does.

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::{Client, ConnectOptions, Event};
use muster_platform::clock::{Clock, SystemClock};
use muster_protocol::ids::{Epoch, Incarnation, JobId};
use muster_protocol::wire::{self, Heartbeat, PhaseQuery, Register, WorkerState};
use muster_tests::harness::data::{Keys, records};
use muster_tests::harness::ports::Ports;
use muster_tests::harness::process::exit_code;
use muster_tests::harness::{
    Gate, Nats, NatsServer, Output, Pool, Process, S3Server, Sandbox, Users, arg, oracle, wait,
};
use rustix::process::Signal;

const SMALL: usize = 64 << 10;
const BUCKET: &str = "data";
const OWN: [&str; 4] = ["--worker", "worker-0", "--worker", "worker-1"];

/// One server where every role, and each of the workers, has a user of its own.
fn made(sandbox: &Sandbox, arguments: &[&str]) -> (NatsServer, Users) {
    let users = Users::make(sandbox, arguments);
    (NatsServer::made(sandbox, &users.file("server.conf")), users)
}

fn pool<'a>(sandbox: &'a Sandbox, s3: &S3Server, workers: usize) -> (Pool<'a>, Users) {
    let (server, users) = made(sandbox, &OWN);
    (Pool::with_users(server.into(), users.clone(), "", sandbox, workers, s3, BUCKET), users)
}

fn fixed<'a>(input: &'a str, output: &'a str, config: &'a str) -> [&'a str; 9] {
    [input, "-o", output, "--format", "fixed:100", "-k", "0:10", "--config", config]
}

/// Nobody was refused anything.
#[track_caller]
fn assert_nothing_refused(sandbox: &Sandbox) {
    for entry in std::fs::read_dir(sandbox.logs()).expect("logs") {
        let path = entry.expect("an entry").path();
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        let refused: Vec<&str> =
            text.lines().filter(|line| line.contains("refuses this user")).collect();
        assert!(refused.is_empty(), "{}: {refused:?}", path.display());
    }
}

#[test]
fn all_that_users_do_works_within_their_rights() {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    let bucket = s3.bucket(BUCKET);
    let data = records(5_000, Keys::Random, 1);
    bucket.put("in", &data);
    let (mut pool, users) = pool(&sandbox, &s3, 2);
    pool.add_coordinator();
    let mut follower =
        Process::spawn("follower", pool.client(["events", "--follow"]), &sandbox.logs());
    let (from, config) = (bucket.url("in"), sandbox.small_tasks(SMALL, SMALL));
    let sort = |job: &str| pool_sort(&pool, job, &from, &bucket.url(job), arg(&config));
    pool.slow_workers(Duration::from_millis(40));

    // A take-over in the midst of it, watched.
    let first = sort("first");
    pool.hold_in_the_midst_of("first", "sorting");
    let mut watcher = Process::spawn("watcher", pool.client(["watch", "first"]), &sandbox.logs());
    pool.kill_coordinator();
    pool.each_worker_gate(Gate::open);
    pool.coordinator(1).wait_for_log("leading", wait::RUN_BOUND);
    pool.finish_sort(first);
    assert_eq!(exit_code(watcher.wait(wait::RUN_BOUND)), 0, "{}", watcher.stderr());
    Output::of_bucket(&bucket, "first").assert_is(&oracle::fixed(&data, 100, 0, 10));
    pool.start_coordinator();

    let mut second = pool_sort(&pool, "second", &from, &bucket.url("second"), arg(&config));
    pool.slow_workers(Duration::from_millis(40));
    pool.hold_in_the_midst_of("second", "sorting");
    pool.run(["cancel", "second"]).expect_code(0);
    pool.each_worker_gate(Gate::open);
    assert_ne!(exit_code(second.wait(wait::RUN_BOUND)), 0);

    pool.run(["drain", "worker-1"]).expect_code(0);
    let scratch = bucket.url("scratch");
    let monitor = pool.nats.server(0).monitor();
    let doctor =
        ["doctor", "--json", "--profile", "testing", "--bucket", &scratch, "--monitor", &monitor];
    let report = pool.run_as("operator", doctor).expect_code(0).json();
    assert!(report.to_string().contains("can be client, operator; not worker"), "{report:#}");
    assert!(report.to_string().contains("always"), "{report:#}");
    pool.run(["jobs"]).expect_code(0);
    pool.run(["events", "first"]).expect_code(0);
    pool.run(["verify", &bucket.url("first"), "--format", "fixed:100", "-k", "0:10"])
        .expect_code(0);
    wait::until("the follower to hear of the take-over", wait::RUN_BOUND, || {
        let said = follower.stdout();
        (said.contains("took-over") && said.contains("second")).then_some(())
    });
    follower.signal(Signal::INT);
    follower.wait(wait::RUN_BOUND);
    let pinged = talk(&users, "operator", &pool.nats.url(), async |user| {
        user.client
            .request("$SRV.PING.muster", "".into())
            .await
            .expect("the service answers")
            .payload
    });
    assert!(String::from_utf8_lossy(&pinged).contains("muster"));
    assert_nothing_refused(&sandbox);
}

fn pool_sort(pool: &Pool<'_>, job: &str, from: &str, to: &str, config: &str) -> Process {
    pool.start_sort(job, fixed(from, to, config))
}

/// A client of our own with the user of somebody, and what the server has refused it.
struct User {
    client: Client,
    refused: Arc<Mutex<Vec<String>>>,
}

/// What one says and hears as a user.
fn talk<T>(users: &Users, who: &str, url: &str, conversation: impl AsyncFnOnce(&User) -> T) -> T {
    let environment: HashMap<String, String> = users.environment(who).into_iter().collect();
    let refused = Arc::new(Mutex::new(Vec::new()));
    let heard = refused.clone();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let options = ConnectOptions::new()
            .user_and_password(
                environment["NATS_USER"].clone(),
                environment["NATS_PASSWORD"].clone(),
            )
            .custom_inbox_prefix(
                environment.get("NATS_INBOX_PREFIX").map_or("_INBOX", String::as_str),
            )
            .event_callback(move |event| {
                if let Event::ServerError(error) = event {
                    heard.lock().expect("no panic").push(error.to_string());
                }
                std::future::ready(())
            });
        let client =
            options.connect(url).await.unwrap_or_else(|e| panic!("{who} cannot connect: {e}"));
        conversation(&User { client, refused }).await
    })
}

impl User {
    /// Waits until the server has refused something of these words.
    async fn refuses(&self, words: &str) {
        let refused = async {
            while !self.refused.lock().expect("no panic").iter().any(|said| said.contains(words)) {
                tokio::task::yield_now().await;
            }
        };
        let refused = tokio::time::timeout(wait::START_BOUND, refused).await;
        assert!(
            refused.is_ok(),
            "not refused: {words}; but {:?}",
            self.refused.lock().expect("no panic")
        );
    }

    /// The server refuses each of these publications.
    async fn may_not_publish(&self, subjects: &[&str]) {
        for subject in subjects {
            self.client.publish((*subject).to_owned(), "{}".into()).await.expect("handed over");
            self.client.flush().await.expect("flush");
            self.refuses(&format!("Publish to \"{subject}\"")).await;
        }
    }

    /// The server refuses each of these subscriptions.
    async fn may_not_subscribe(&self, subjects: &[&str]) {
        for subject in subjects {
            let _subscriber =
                self.client.subscribe((*subject).to_owned()).await.expect("handed over");
            self.client.flush().await.expect("flush");
            self.refuses(&format!("Subscription to \"{subject}\"")).await;
        }
    }
}

#[test]
fn a_worker_may_not_do_what_others_may() {
    let sandbox = Sandbox::new();
    let (server, users) = made(&sandbox, &OWN);
    talk(&users, "worker-0", &server.url(), async |user| {
        user.may_not_publish(&[
            "muster.c.leader",
            "muster.c.resigned",
            "muster.c.limits",
            "muster.c.register",
            "muster.c.samples",
            "muster.c.report",
            "muster.c.register.worker-1",
            "muster.c.samples.worker-1",
            "muster.c.report.worker-1",
            "muster.w.worker-1.hb",
            "muster.w.worker-1.cmd.run",
            "muster.w.worker-0.cmd.run",
            "muster.j.j1.bcast",
            "muster.p.j1",
            "muster.journal",
            "muster.e",
            "muster.e.j1",
            "muster.dlq.j1",
            "muster.api.submit",
            "muster.api.drain",
            "$JS.API.INFO",
            "$JS.API.STREAM.CREATE.MINE",
            "$JS.API.STREAM.PURGE.MUSTER_JOURNAL",
            "$JS.API.STREAM.MSG.GET.MUSTER_JOURNAL",
            "$JS.API.CONSUMER.CREATE.MUSTER_EVENTS",
            "$SRV.PING",
            "$SYS.REQ.SERVER.PING",
            "_INBOX_muster_worker.worker-1.a.b",
        ])
        .await;
        user.may_not_subscribe(&[
            ">",
            "muster.>",
            "muster.c.register",
            "muster.c.report",
            "muster.c.report.worker-1",
            "muster.w.*.hb",
            "muster.w.*.cmd.*",
            "muster.w.worker-1.cmd.*",
            "muster.api.submit",
            "muster.journal",
            "muster.p.j1",
            "_INBOX.>",
            "_INBOX_muster_coordinator.>",
            "_INBOX_muster_client.>",
            "_INBOX_muster_worker.>",
            "_INBOX_muster_worker.worker-1.>",
            "$JS.API.>",
            "$SYS.>",
        ])
        .await;
    });
}

#[test]
fn clients_and_coordinators_may_not_do_what_others_may() {
    let sandbox = Sandbox::new();
    let (server, users) = made(&sandbox, &OWN);
    let worker_and_leader = [
        "muster.w.worker-0.hb",
        "muster.c.register",
        "muster.c.register.worker-0",
        "muster.c.report.worker-0",
        "muster.c.samples",
        "muster.c.leader",
        "muster.w.worker-0.cmd.drain",
        "muster.j.j1.bcast",
        "muster.journal",
        "muster.e.j1",
        "$JS.API.STREAM.PURGE.MUSTER_JOURNAL",
        "$JS.API.STREAM.DELETE.MUSTER_EVENTS",
        "$JS.API.STREAM.MSG.GET.MUSTER_JOURNAL",
        "$JS.API.CONSUMER.CREATE.MUSTER_JOURNAL",
    ];
    let inboxes = [
        "_INBOX.>",
        "_INBOX_muster_coordinator.>",
        "_INBOX_muster_worker.>",
        "muster.w.*.cmd.*",
        "muster.c.report",
    ];
    talk(&users, "client", &server.url(), async |user| {
        user.may_not_publish(&worker_and_leader).await;
        user.may_not_publish(&[
            "$JS.API.STREAM.CREATE.MUSTER_JOURNAL",
            "$JS.API.INFO",
            "$SRV.PING",
        ])
        .await;
        user.may_not_subscribe(&inboxes).await;
        user.may_not_subscribe(&["_INBOX_muster_operator.>", "muster.c.leader"]).await;
    });
    talk(&users, "operator", &server.url(), async |user| {
        user.may_not_publish(&worker_and_leader).await;
        user.may_not_publish(&[
            "$JS.API.STREAM.CREATE.OTHER",
            "$JS.API.STREAM.UPDATE.MUSTER_JOURNAL",
        ])
        .await;
        user.may_not_subscribe(&inboxes).await;
    });
    talk(&users, "coordinator", &server.url(), async |user| {
        user.may_not_publish(&[
            "$JS.API.STREAM.CREATE.OTHER",
            "$JS.API.STREAM.UPDATE.MUSTER_JOURNAL",
            "$JS.API.STREAM.DELETE.MUSTER_JOURNAL",
            "$JS.API.STREAM.PURGE.MUSTER_EVENTS",
            "$JS.API.STREAM.LIST",
            "$SYS.REQ.SERVER.PING",
            "$SYS.REQ.ACCOUNT.MUSTER.CONNZ",
            "muster.c.register",
            "muster.w.worker-0.hb",
            "elsewhere",
        ])
        .await;
        user.may_not_subscribe(&[
            ">",
            "$SYS.>",
            "$JS.>",
            "_INBOX.>",
            "_INBOX_muster_client.>",
            "muster.journal",
        ])
        .await;
    });
}

#[test]
fn a_worker_that_speaks_for_another_is_not_heard() {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    drop(s3.bucket(BUCKET));
    let (mut pool, users) = pool(&sandbox, &s3, 2);
    let heartbeat = Heartbeat {
        worker: "worker-0".parse().expect("id"),
        incarnation: Incarnation(1),
        epoch: Epoch(1),
        sequence: 1_000,
        state: WorkerState::Leaving,
        attempts: Vec::new(),
        health: wire::Health::default(),
    };
    let register = Register {
        worker: heartbeat.worker.clone(),
        incarnation: Incarnation(1),
        program: String::new(),
        host: String::new(),
        slots: 1,
        memory_bytes: 1 << 30,
        labels: Vec::new(),
        draining: false,
        held: Vec::new(),
        wire: wire::WIRE_VERSION,
        settings: Vec::new(),
        inputs: Vec::new(),
    };
    let job: JobId = "j1".parse().expect("id");
    talk(&users, "worker-1", &pool.nats.url(), async |user| {
        let forged = wire::encode(&heartbeat).expect("encode");
        user.client.publish("muster.w.worker-1.hb", forged.into()).await.expect("handed over");
        let (forged, inbox) = (wire::encode(&register).expect("encode"), user.client.new_inbox());
        let asked = user
            .client
            .publish_with_reply("muster.c.register.worker-1", inbox, forged.into())
            .await;
        asked.expect("handed over");
        // What a leader may write is not where it answers.
        for reply in ["muster.journal", "$JS.API.STREAM.PURGE.MUSTER_JOURNAL"] {
            let question = wire::encode(&PhaseQuery { job: job.clone() }).expect("encode");
            user.client
                .publish_with_reply("muster.c.phase", reply, question.into())
                .await
                .expect("handed over");
        }
        user.client.flush().await.expect("flush");
    });
    for said in [
        "a message on muster.w.worker-1.hb speaks for worker worker-0",
        "a message on muster.c.register.worker-1 speaks for worker worker-0",
        "would go to muster.journal",
        "STREAM.PURGE",
    ] {
        pool.coordinator(0).wait_for_log(said, wait::RUN_BOUND);
    }
    let workers = pool.run(["workers"]).expect_code(0).stdout;
    assert!(workers.contains("2 workers: 2 healthy"), "{workers}");
    assert_nothing_refused(&sandbox);
}

#[test]
fn what_a_client_makes_jetstream_write_into_the_journal_is_passed_over() {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    let bucket = s3.bucket(BUCKET);
    let data = records(2_000, Keys::Random, 1);
    bucket.put("in", &data);
    let (mut pool, users) = pool(&sandbox, &s3, 1);
    let (from, to, config) =
        (bucket.url("in"), bucket.url("out"), sandbox.small_tasks(SMALL, SMALL));
    pool.slow_workers(Duration::from_millis(40));
    let sort = pool.start_sort("job", fixed(&from, &to, arg(&config)));
    pool.hold_in_the_midst_of("job", "sorting");
    talk(&users, "client", &pool.nats.url(), async |user| {
        let subject = "$JS.API.STREAM.INFO.MUSTER_EVENTS";
        user.client
            .publish_with_reply(subject, "muster.journal", "".into())
            .await
            .expect("handed over");
        user.client.flush().await.expect("flush");
    });
    pool.coordinator(0)
        .wait_for_log("not of a coordinator's making and is passed over", wait::RUN_BOUND);
    pool.each_worker_gate(Gate::open);
    let report = pool.finish_sort(sort);
    assert_eq!(report["records"], 2_000, "{report}");
    Output::of_bucket(&bucket, "out").assert_is(&oracle::fixed(&data, 100, 0, 10));
}

#[test]
fn who_lacks_a_right_is_told_which() {
    let sandbox = Sandbox::new();
    let (server, users) = made(&sandbox, &OWN);
    let start = |who: &str, arguments: &[&str]| {
        let mut command = sandbox.muster();
        command.args(arguments).env("NATS_URL", server.url()).envs(users.environment(who));
        command
    };
    let told = |who: &str, arguments: &[&str], code: i32, words: &[&str]| {
        sandbox
            .run_command(start(who, arguments), wait::RUN_BOUND)
            .expect_code(code)
            .expect_error(words);
    };
    told("worker-0", &["jobs"], 1, &["refuses this user", "muster.api.jobs", "muster rights"]);
    told("worker-0", &["events"], 1, &["refuses this user", "$JS.API.STREAM.INFO.MUSTER_EVENTS"]);
    told("worker-0", &["worker", "--id", "worker-1"], 2, &["NATS_INBOX_PREFIX", "worker-1"]);
    sandbox
        .run(["jobs", "--nats", &server.url()])
        .expect_code(3)
        .expect_error(&["authorization violation", "check user"]);
    for (name, who, arguments, said) in [
        ("w", "client", &["worker", "--id", "w"][..], "Publish to \"muster.c.register\""),
        ("c", "client", &["coordinator"], "Publish to \"$JS.API.STREAM.INFO.MUSTER_JOURNAL\""),
    ] {
        let process = Process::spawn(name, start(who, arguments), &sandbox.logs());
        let log = process.wait_for_log(said, wait::RUN_BOUND);
        assert!(log.contains("refuses this user"), "{log}");
    }
}

#[test]
fn over_tls_workers_share_a_user() {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    let bucket = s3.bucket(BUCKET);
    let data = records(2_000, Keys::Random, 1);
    bucket.put("in", &data);
    let (server, users) = made(&sandbox, &["--tls", "--host", "127.0.0.1"]);
    let pool = Pool::with_users(server.into(), users, "", &sandbox, 2, &s3, BUCKET);
    let (from, to, config) =
        (bucket.url("in"), bucket.url("out"), sandbox.small_tasks(SMALL, SMALL));
    pool.sort("job", fixed(&from, &to, arg(&config)));
    Output::of_bucket(&bucket, "out").assert_is(&oracle::fixed(&data, 100, 0, 10));
    assert_nothing_refused(&sandbox);
    // Who does not know the CA does not talk to the server.
    let mut stranger = pool.client(["jobs"]);
    stranger.env_remove("NATS_CA");
    sandbox.run_command(stranger, wait::RUN_BOUND).expect_code(3).expect_error(&["certificate"]);
}

#[test]
fn a_cluster_of_three_works_within_the_rights() {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    let bucket = s3.bucket(BUCKET);
    let data = records(5_000, Keys::Random, 1);
    bucket.put("in", &data);
    let ports = Ports::claim();
    let nodes: Vec<String> = (0..3)
        .map(|n| format!("n{}=127.0.0.1:{}:{}", n + 1, ports.port(n), ports.port(n + 3)))
        .collect();
    let mut arguments = vec!["--tls"];
    arguments.extend(nodes.iter().flat_map(|node| ["--node", node]));
    arguments.extend(OWN);
    let users = Users::make(&sandbox, &arguments);
    let files = ["n1.conf", "n2.conf", "n3.conf"].map(|name| users.file(name));
    let nats = Nats::made_cluster(&sandbox, [&files[0], &files[1], &files[2]], ports);
    let settings = std::fs::read_to_string(users.file("coordinator.toml")).expect("settings");
    let mut pool = Pool::with_users(nats, users, &settings, &sandbox, 2, &s3, BUCKET);
    let (from, to, config) =
        (bucket.url("in"), bucket.url("out"), sandbox.small_tasks(SMALL, SMALL));
    pool.slow_workers(Duration::from_millis(40));
    let sort = pool.start_sort("job", fixed(&from, &to, arg(&config)));
    pool.hold_in_the_midst_of("job", "sorting");
    pool.nats.server(0).kill();
    pool.each_worker_gate(Gate::open);
    pool.finish_sort(sort);
    Output::of_bucket(&bucket, "out").assert_is(&oracle::fixed(&data, 100, 0, 10));
    assert_nothing_refused(&sandbox);
}

#[test]
fn made_again_it_keeps_what_there_is() {
    let sandbox = Sandbox::new();
    let users = Users::make(&sandbox, &["--tls", "--worker", "a"]);
    let all = [
        "coordinator.env",
        "client.env",
        "worker-a.env",
        "sys.env",
        "ca.pem",
        "server.pem",
        "server.key",
    ];
    let read = |names: &[&str]| -> Vec<Vec<u8>> {
        names
            .iter()
            .map(|name| std::fs::read(users.file(name)).unwrap_or_else(|e| panic!("{name}: {e}")))
            .collect()
    };
    let before = read(&all);
    users.make_again(&sandbox, &["--tls", "--worker", "b"]).expect_code(0);
    assert_eq!(read(&all), before);
    assert!(users.file("worker-b.env").is_file() && !users.file("worker.env").exists());
    users.make_again(&sandbox, &["--tls", "--force"]).expect_code(0);
    let after = read(&all);
    assert!(
        before.iter().zip(&after).all(|(before, after)| before != after),
        "--force renews everything"
    );
    for name in all.iter().chain(&["server.conf", "users.conf", "ca.key"]) {
        let mode = std::fs::metadata(users.file(name)).expect("a file").permissions().mode();
        assert_eq!(mode & 0o077, 0, "{name} is for its owner alone");
    }
    for (arguments, words) in
        [(&["--worker", "a b"][..], "no worker's id"), (&["--nonsense"], "unknown argument")]
    {
        users.make_again(&sandbox, arguments).expect_code(2).expect_error(&[words]);
    }
}

#[test]
fn another_namespace_has_rights_of_its_own() {
    let sandbox = Sandbox::new();
    let (server, users) = made(&sandbox, &["--namespace", "team-a", "--worker", "w1"]);
    assert_eq!(users.variable("w1", "NATS_INBOX_PREFIX"), "_INBOX_team-a_worker.w1");
    let start = |who: &str, arguments: &[&str]| {
        let mut command = sandbox.muster();
        command.args(arguments);
        command.env("NATS_URL", server.url()).envs(users.environment(who));
        command
    };
    let _coordinator = Process::spawn(
        "coordinator",
        start("coordinator", &["coordinator", "--profile", "testing"]),
        &sandbox.logs(),
    );
    let worker =
        Process::spawn("worker", start("w1", &["worker", "--profile", "testing"]), &sandbox.logs());
    worker.wait_for_log("registered", wait::RUN_BOUND);
    let (input, output) = (sandbox.file("in", "b\na\n"), sandbox.path("out"));
    let sort = start("client", &["sort", arg(&input), "-o", arg(&output)]);
    sandbox.run_command(sort, wait::RUN_BOUND).expect_code(0);
    Output::of_folder(&output).assert_is(b"a\nb\n");
    sandbox.run_command(start("client", &["jobs"]), wait::RUN_BOUND).expect_code(0);
    assert_nothing_refused(&sandbox);
    talk(&users, "w1", &server.url(), async |user| {
        user.may_not_publish(&["muster.c.register.w1", "team-a.c.register", "team-a.journal"])
            .await;
    });
}

/// The roles that may see less are told what they see, and of the rest that it is not theirs to
/// see: a healthy pool has no problem whoever looks, and nobody waits for what the server has
/// refused.
#[test]
fn a_healthy_pool_has_no_problem_whoever_looks() {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    s3.bucket(BUCKET);
    let (mut pool, _users) = pool(&sandbox, &s3, 2);
    let looks = |pool: &Pool<'_>, who: &str, code: i32| {
        let clock = SystemClock::default();
        let done =
            pool.run_as(who, ["doctor", "--json", "--profile", "production"]).expect_code(code);
        assert!(clock.now_ms() < 8_000, "{who} waited for what was refused: {} ms", clock.now_ms());
        assert!(!done.stderr.contains("ERROR"), "{who}: {}", done.stderr);
        done.json()
    };
    let level = |report: &serde_json::Value, check: &str| {
        let findings = report["findings"].as_array().expect("findings").clone();
        let found = findings.iter().find(|finding| finding["check"] == check);
        found.and_then(|finding| finding["level"].as_str()).unwrap_or("none").to_owned()
    };
    for (who, coordinator, workers) in [
        ("client", "ok", "ok"),
        ("operator", "ok", "ok"),
        ("worker-0", "unknown", "none"),
        ("coordinator", "unknown", "none"),
    ] {
        let report = looks(&pool, who, 0);
        assert_eq!(report["problems"], 0, "{who}: {report:#}");
        assert_eq!(
            (level(&report, "coordinator").as_str(), level(&report, "workers").as_str()),
            (coordinator, workers),
            "{who}: {report:#}"
        );
    }
    let report = looks(&pool, "client", 0);
    for check in ["jetstream", "nats-permissions", "stream-MUSTER_JOURNAL", "clock"] {
        assert_eq!(level(&report, check), "unknown", "{check}: {report:#}");
    }
    // What is wrong is still told: silence is no refusal.
    pool.kill_coordinator();
    let report =
        pool.run_as("client", ["doctor", "--json", "--profile", "testing"]).expect_code(1).json();
    assert_eq!(level(&report, "coordinator"), "problem", "{report:#}");
}
