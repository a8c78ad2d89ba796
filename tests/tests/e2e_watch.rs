//! Whoever asks about a job while no coordinator has an answer. The coordinator is the test's own
//! and says what it is told to, for a real one says "later" only as long as it has a reason.

use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use async_nats::HeaderMap;
use futures::StreamExt;
use muster_protocol::names::{DEFAULT_NAMESPACE, Names};
use muster_tests::harness::{NatsServer, Process, Sandbox, process, wait};
use serde_json::json;
use tokio::sync::oneshot;

/// What a line of progress says, whatever follows.
const SORTING: &str = "sorting: 50%, ";
const SILENT: &str = "sorting: 50%, waiting for coordinator";
/// What the client logs once for each call that has no answer: the field tells it from progress.
const CALL_WAITS: &str = "waiting for coordinator error=";

/// What a coordinator answers to whatever it is asked.
#[derive(Clone, Copy)]
enum Says {
    /// Where the job stands.
    State(&'static str),
    /// To be asked again.
    Later,
}

impl Says {
    fn answer(self) -> (HeaderMap, Vec<u8>) {
        let mut headers = HeaderMap::new();
        let Self::State(state) = self else {
            headers.insert("Nats-Service-Error-Code", "503");
            headers.insert("Nats-Service-Error", "the journal is stalled");
            return (headers, Vec::new());
        };
        let status = json!({
            "job": "j1", "state": state, "phase": "Sort", "tasks_done": 1, "tasks_total": 2,
            "bytes_done": 500, "bytes_total": 1000, "input_bytes": 1000, "workers": 1,
            "attempts_running": 1, "retries": 0, "repeated_tasks": 0, "waiting_for": null,
            "error": null, "output": "file:///out", "parts": 2, "sums": null, "dropped": null,
            "times": { "plan_ms": 0, "sample_ms": 0, "sort_ms": 0, "merge_ms": 0, "commit_ms": 0 },
            "cleaned": state == "succeeded", "submitted_unix_ms": 0
        });
        (headers, status.to_string().into_bytes())
    }
}

/// A coordinator that is there until it is dropped; then nobody listens.
struct Coordinator {
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Coordinator {
    /// One that listens when this returns.
    fn start(url: &str, says: Says) -> Self {
        let (end, ended) = oneshot::channel();
        let (listens, listening) = mpsc::channel();
        let url = url.to_owned();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                let client = async_nats::connect(url).await.expect("connect");
                let api = Names::new(DEFAULT_NAMESPACE).api("*");
                let mut asked = client.subscribe(api).await.expect("subscribe");
                client.flush().await.expect("flush");
                listens.send(()).expect("the test waits for it");
                let serve = async {
                    while let Some(request) = asked.next().await {
                        let (headers, body) = says.answer();
                        let to = request.reply.expect("a request wants an answer");
                        let answer = client.publish_with_headers(to, headers, body.into());
                        answer.await.expect("publish");
                    }
                };
                tokio::select! {
                    () = serve => panic!("the connection is gone"),
                    _ = ended => {}
                }
                client.drain().await.expect("drain");
            });
        });
        listening.recv_timeout(wait::START_BOUND).expect("it listens");
        Self { end: Some(end), thread: Some(thread) }
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        drop(self.end.take());
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(
            thread::panicking() || ended.is_some_and(|ended| ended.is_ok()),
            "the test's coordinator failed"
        );
    }
}

fn watch(sandbox: &Sandbox, nats: &NatsServer) -> Process {
    let mut command = sandbox.muster();
    command.args(["watch", "j1"]).env("NATS_URL", nats.url());
    Process::spawn("watch", command, &sandbox.logs())
}

#[test]
fn a_watch_says_that_no_coordinator_answers() {
    let sandbox = Sandbox::new();
    let nats = NatsServer::start(&sandbox);
    let coordinator = Coordinator::start(&nats.url(), Says::State("sorting"));
    let mut watch = watch(&sandbox, &nats);
    let line = watch.wait_for_log(SORTING, wait::START_BOUND);
    assert!(!line.contains("waiting for"), "it answers: {line}");
    drop(coordinator);
    watch.wait_for_log(SILENT, wait::START_BOUND);
    let _back = Coordinator::start(&nats.url(), Says::State("succeeded"));
    assert_eq!(process::exit_code(watch.wait(wait::START_BOUND)), 0, "{}", watch.stderr());
}

#[test]
fn later_for_the_whole_patience_ends_a_question_with_3_and_no_watch() {
    let sandbox = Sandbox::new();
    let nats = NatsServer::start(&sandbox);
    let coordinator = Coordinator::start(&nats.url(), Says::State("sorting"));
    let mut watch = watch(&sandbox, &nats);
    watch.wait_for_log(SORTING, wait::START_BOUND);
    drop(coordinator);
    let coordinator = Coordinator::start(&nats.url(), Says::Later);
    let mut command = sandbox.muster();
    command.args(["status", "j1"]).env("NATS_URL", nats.url());
    let asked = sandbox.run_command(command, wait::START_BOUND).expect_code(3);
    asked.expect_error(&["given up after", "the journal is stalled"]);
    // Its own question was given up too, and it has asked another.
    wait::until("the watch to ask again", wait::START_BOUND, || {
        watch.assert_running();
        (watch.stderr().matches(CALL_WAITS).count() >= 2).then_some(())
    });
    watch.wait_for_log(SILENT, Duration::ZERO);
    drop(coordinator);
    let _back = Coordinator::start(&nats.url(), Says::State("succeeded"));
    assert_eq!(process::exit_code(watch.wait(wait::START_BOUND)), 0, "{}", watch.stderr());
}
