//! `--http`: health, readiness and metrics of real processes before, during and after a job,
//! through the loss of NATS and of the leader.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use muster_tests::harness::data::{Keys, records};
use muster_tests::harness::watched::{self, Scrape};
use muster_tests::harness::{
    NatsServer, Output, Pool, Process, S3Server, Sandbox, arg, oracle, wait,
};
use rustix::process::Signal;

const BUCKET: &str = "data";
const RECORDS: usize = 5_000;
/// Looks at something that must stay as it is.
const LOOKS: u32 = 300;

/// Waits until a process says that it is ready, or that it is not, in this role.
#[track_caller]
fn wait_for(address: SocketAddr, status: u16, role: &str) {
    wait::until(&format!("{address} to answer {status} as {role}"), wait::START_BOUND, || {
        let (seen, body) = watched::ready(address);
        (seen == status && body["role"] == role).then_some(())
    });
}

/// Waits until the metrics are as wished; gives them.
#[track_caller]
fn scrape_until(address: SocketAddr, what: &str, wish: impl Fn(&Scrape) -> bool) -> Scrape {
    wait::until(what, wait::START_BOUND, || Some(Scrape::of(address)).filter(|scrape| wish(scrape)))
}

#[test]
fn metrics_tell_of_a_job_before_while_and_after_it_runs() {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    let bucket = s3.bucket(BUCKET);
    let mut pool = Pool::watched_on_bucket(&sandbox, 2, &s3, BUCKET);
    let data = records(RECORDS, Keys::Random, 1);
    bucket.put("in", &data);
    let (leader, worker) = (pool.coordinator_address(0), pool.worker_address(0));
    wait_for(leader, 200, "leader");
    wait_for(worker, 200, "worker");
    assert_eq!(watched::get(leader, "/healthz").status, 200);
    assert_eq!(
        (watched::get(leader, "/").status, watched::get(worker, "/metrics/x").status),
        (404, 404)
    );

    let before = scrape_until(leader, "two healthy workers", |seen| {
        seen.value("muster_workers{state=\"healthy\"}") == 2.0
    });
    for (series, expected) in [
        ("muster_leading", 1.0),
        ("muster_epoch", 1.0),
        ("muster_takeovers_total", 1.0),
        ("muster_nats_connected", 1.0),
        ("muster_slots", 2.0),
        ("muster_slots_free", 2.0),
        ("muster_workers_wanted", 0.0),
        ("muster_backlog_tasks", 0.0),
        ("muster_jobs{state=\"succeeded\"}", 0.0),
    ] {
        assert_eq!(before.value(series), expected, "{series}");
    }

    pool.slow_workers(Duration::from_millis(50));
    let config = sandbox.small_tasks(64 << 10, 64 << 10);
    let (from, to) = (bucket.url("in"), bucket.url("out"));
    let options =
        [&from, "-o", &to, "--format", "fixed:100", "-k", "0:10", "--config", arg(&config)];
    let sort = pool.start_sort("the-job-id", options);
    pool.hold_in_the_midst_of("the-job-id", "sorting");
    let during = scrape_until(leader, "tasks at work", |seen| {
        seen.value("muster_tasks{phase=\"sort\",state=\"running\"}") == 2.0
            && seen.value("muster_tasks{phase=\"sort\",state=\"done\"}") > 0.0
    });
    assert_eq!(during.value("muster_jobs{state=\"sorting\"}"), 1.0);
    assert_eq!(during.value("muster_slots_free"), 0.0);
    let backlog = during.value("muster_backlog_tasks");
    assert!(
        backlog > 0.0 && during.value("muster_workers_wanted") == backlog + 2.0,
        "{}",
        during.text()
    );
    assert!(during.value("muster_journal_append_seconds_count") > 0.0);
    let at_work = scrape_until(worker, "an attempt that runs", |seen| {
        seen.value("muster_attempts_running{phase=\"sort\"}") == 1.0
    });
    assert_eq!(at_work.value("muster_memory_limit_bytes"), f64::from(256 << 20));
    assert!(
        at_work.value("muster_memory_used_bytes") > 0.0 && at_work.value("muster_disk_bytes") > 0.0
    );

    pool.each_worker_gate(|gate| gate.open());
    pool.finish_sort(sort);
    Output::of_bucket(&bucket, "out").assert_is(&oracle::fixed(&data, 100, 0, 10));
    let after = scrape_until(leader, "the job to be counted", |seen| {
        seen.value("muster_jobs_ended_total{outcome=\"succeeded\"}") == 1.0
            && seen.value("muster_workers_wanted") == 0.0
    });
    assert_eq!(after.value("muster_records_sorted_total"), RECORDS as f64);
    assert_eq!(after.value("muster_sorted_bytes_total"), data.len() as f64);
    assert_eq!(after.value("muster_backlog_tasks"), 0.0);
    let committed = after.sum("muster_tasks_committed_total");
    assert!(
        after.value("muster_journal_appends_total") >= committed && committed > 0.0,
        "{}",
        after.text()
    );
    let read = scrape_until(worker, "what was read", |seen| {
        seen.value("muster_store_read_bytes_total{store=\"s3\"}") > 0.0
            && seen.value("muster_attempts_ended_total{outcome=\"done\"}") > 0.0
    });
    assert!(
        read.value("muster_store_calls_total{call=\"read\",outcome=\"ok\",store=\"s3\"}") > 0.0
    );
    for scrape in [&before, &during, &at_work, &after, &read] {
        assert!(scrape.series() < 400, "{} series", scrape.series());
        for name in ["the-job-id", "worker-0", "worker-1", BUCKET, "AKIA", ".run"] {
            assert!(
                !scrape.text().contains(&format!("{name}\"")),
                "{name} is a label:\n{}",
                scrape.text()
            );
        }
    }
}

#[test]
fn readiness_follows_nats_and_the_lead() {
    let sandbox = Sandbox::new();
    let mut pool = Pool::watched_on_folder(&sandbox, 1, "[http]\nstuck_ms = 500\n");
    let stand_by = pool.add_coordinator();
    let leader = pool.coordinator_address(0);
    let (second, worker) = (pool.coordinator_address(stand_by), pool.worker_address(0));
    wait_for(leader, 200, "leader");
    wait_for(second, 200, "stand_by");
    wait_for(worker, 200, "worker");
    let seen = Scrape::of(second);
    assert_eq!((seen.value("muster_leading"), seen.value("muster_epoch")), (0.0, 1.0));
    assert_eq!(seen.value("muster_workers{state=\"healthy\"}"), 0.0, "who stands by counts nobody");

    pool.nats.server(0).kill();
    for (address, role) in [(leader, "leader"), (second, "stand_by")] {
        wait_for(address, 503, role);
        assert_eq!(watched::ready(address).1["connected"], false);
        scrape_until(address, "the lost connection", |seen| {
            seen.value("muster_nats_connected") == 0.0
        });
    }
    wait_for(worker, 503, "unregistered");
    // Much longer than http.stuck_ms: who waits for NATS goes on living.
    for _ in 0..LOOKS {
        for address in [leader, second, worker] {
            let health = watched::get(address, "/healthz");
            assert_eq!(health.status, 200, "{address}: {health:?}");
        }
    }
    pool.nats.server(0).start_again(&sandbox);
    wait_for(worker, 200, "worker");
    let roles = || [leader, second].map(|address| watched::ready(address));
    wait::until(
        "both coordinators to be ready, and one of them to lead",
        wait::START_BOUND,
        || {
            let seen = roles();
            let leaders = seen.iter().filter(|(_, body)| body["role"] == "leader").count();
            (leaders == 1 && seen.iter().all(|(status, _)| *status == 200)).then_some(())
        },
    );

    let led = usize::from(roles()[1].1["role"] == "leader");
    pool.coordinator(led).kill();
    let left = [leader, second][1 - led];
    wait_for(left, 200, "leader");
    let seen = scrape_until(left, "the worker to be back", |seen| {
        seen.value("muster_workers{state=\"healthy\"}") == 1.0
    });
    assert_eq!(seen.value("muster_leading"), 1.0);
    assert!(seen.value("muster_epoch") >= 2.0 && seen.value("muster_takeovers_total") >= 1.0);
}

#[test]
fn it_serves_while_it_waits_for_nats_and_whatever_clients_do() {
    let sandbox = Sandbox::new();
    let mut nats = NatsServer::start(&sandbox);
    let url = nats.url();
    nats.kill();
    let mut command = sandbox.muster();
    command.args([
        "coordinator",
        "--profile",
        "testing",
        "--http",
        "0",
        "--bucket",
        "/tmp/x",
        "--nats",
        &url,
    ]);
    let mut process = Process::spawn("coordinator", command, &sandbox.logs());
    let address = wait::until("the address", wait::START_BOUND, || watched::address(&process));
    assert!(address.ip().is_loopback(), "{address}");
    wait_for(address, 503, "starting");
    assert_eq!(watched::get(address, "/healthz").status, 200);

    // Half requests, floods of connections, and nonsense.
    let mut held: Vec<TcpStream> = Vec::new();
    for at in 0..200_u32 {
        let Ok(mut stream) = TcpStream::connect(address) else { continue };
        let sent = match at % 3 {
            0 => stream.write_all(b"GET /met"),
            1 => stream.write_all(&[b'x'; 20_000]),
            _ => Ok(()),
        };
        // Refused in the midst of it is as good.
        drop(sent);
        held.push(stream);
    }
    assert_eq!(watched::get(address, "/healthz").status, 200);
    let mut posted = TcpStream::connect(address).expect("it takes connections");
    posted
        .write_all(b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        .expect("sent");
    let mut answer = String::new();
    posted.read_to_string(&mut answer).expect("answered");
    assert!(answer.starts_with("HTTP/1.1 405") && answer.contains("allow: GET, HEAD"), "{answer}");
    drop(held);

    nats.start_again(&sandbox);
    wait_for(address, 200, "leader");
    process.signal(Signal::TERM);
    process.wait(wait::START_BOUND);
}

#[test]
fn addresses_that_cannot_be_served_are_refused() {
    let sandbox = Sandbox::new();
    for role in ["coordinator", "worker"] {
        for address in ["nonsense", "1.2.3.4", "127.0.0.1:99999", "host:80"] {
            sandbox
                .run([role, "--http", address])
                .expect_code(2)
                .expect_error(&["--http", "IP:PORT"]);
        }
    }
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let refused = sandbox.run(["worker", "--nats", "nats://127.0.0.1:1", "--http", &address]);
    refused.expect_code(1).expect_error(&["cannot serve http", &address]);
}
