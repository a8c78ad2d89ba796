//! A pool in containers, on networks that are really cut: each scenario strikes a running job, then
//! holds its bytes, its journal and what it left against what they must be.
//!
//! They need a Docker engine, and images of this build. `deploy/test.sh` makes these and runs the
//! first scenario, or all with `--all`; where no engine answers it says that they were not run.
//! That is why they are marked `ignore`, which any other way of running tests shows, too.

mod engine;
mod pool;

use engine::Engine;
use muster_tests::harness::Sandbox;
use pool::{IMAGES, Pool, Size};
use serde_json::Value;

const ONE_SERVER: Size = Size { nats: 1, coordinators: 1, workers: 3 };
const CLUSTER: Size = Size { nats: 3, coordinators: 1, workers: 3 };

/// Plays a scenario on a pool with a job that has just begun, which must then succeed. The scenario
/// says what it cut.
#[track_caller]
fn play(size: Size, scenario: impl FnOnce(&mut Pool<'_>) -> &'static str) {
    let sandbox = Sandbox::new();
    let engine = Engine::connect(&sandbox, &IMAGES);
    let mut pool = Pool::with_job(&sandbox, &engine, size);
    let cut = scenario(&mut pool);
    pool.finish(cut);
}

fn tasks_done(status: &Value) -> Option<u64> {
    status["tasks_done"].as_u64()
}

#[test]
#[ignore = "needs Docker: deploy/test.sh runs it"]
fn a_worker_is_killed() {
    play(ONE_SERVER, |pool| {
        pool.wait_for_midst_of("sorting");
        pool.wait_for_work_of(0);
        pool.workers[0].kill();
        pool.wait_for_midst_of("merging");
        pool.wait_for_work_of(1);
        pool.workers[1].kill();
        pool.workers[0].start();
        "worker 0 was killed while it sorted, worker 1 while it merged; worker 0 came back"
    });
}

#[test]
#[ignore = "needs Docker: deploy/test.sh --all runs it"]
fn long_a_worker_is_paused() {
    play(ONE_SERVER, |pool| {
        pool.wait_for_midst_of("sorting");
        pool.wait_for_work_of(0);
        pool.workers[0].pause();
        pool.wait_for_loss_of(0);
        pool.workers[0].unpause();
        pool.wait_for_return_of(0);
        "worker 0 was paused while it sorted, until it was taken for lost, and went on"
    });
}

#[test]
#[ignore = "needs Docker: deploy/test.sh --all runs it"]
fn long_a_worker_is_cut_off_from_nats() {
    play(ONE_SERVER, |pool| {
        pool.wait_for_midst_of("sorting");
        pool.wait_for_work_of(0);
        pool.workers[0].leave(&pool.nats_network);
        pool.wait_for_loss_of(0);
        pool.workers[0].join(&pool.nats_network);
        pool.wait_for_return_of(0);
        "worker 0 had no way to NATS, but one to the store, while it sorted, until it was taken \
            for lost, and got it back"
    });
}

#[test]
#[ignore = "needs Docker: deploy/test.sh --all runs it"]
fn long_a_worker_is_cut_off_from_the_store() {
    play(ONE_SERVER, |pool| {
        pool.wait_for_midst_of("sorting");
        pool.wait_for_work_of(0);
        pool.workers[0].leave(&pool.store_network);
        // It lives and says so, but what it sends to the store is lost without a word.
        pool.wait_for_event("speculation-began", "slow on worker-0");
        pool.workers[0].join(&pool.store_network);
        pool.wait_for_return_of(0);
        "worker 0 had no way to the store, but one to NATS, while it sorted, until its task was \
            given to another, too, and got it back"
    });
}

#[test]
#[ignore = "needs Docker: deploy/test.sh --all runs it"]
fn long_a_worker_is_cut_off_from_both() {
    play(ONE_SERVER, |pool| {
        pool.wait_for_midst_of("merging");
        pool.wait_for_work_of(0);
        pool.workers[0].leave(&pool.nats_network);
        pool.workers[0].leave(&pool.store_network);
        pool.wait_for_loss_of(0);
        pool.workers[0].join(&pool.store_network);
        pool.workers[0].join(&pool.nats_network);
        pool.wait_for_return_of(0);
        "worker 0 had no network at all while it merged, until it was taken for lost, and got both \
            back"
    });
}

#[test]
#[ignore = "needs Docker: deploy/test.sh --all runs it"]
fn long_one_of_three_nats_servers_is_killed() {
    play(CLUSTER, |pool| {
        let before = pool.wait_for_midst_of("sorting");
        let lost = (pool.journal_leader() + 1) % pool.nats.len();
        pool.nats[lost].kill();
        pool.wait_for_progress(&before);
        "one of three NATS servers was killed while tasks were sorted, not the one that led the \
            journal's stream"
    });
}

#[test]
#[ignore = "needs Docker: deploy/test.sh --all runs it"]
fn long_the_nats_server_that_leads_the_journal_is_killed() {
    play(CLUSTER, |pool| {
        let before = pool.wait_for_midst_of("sorting");
        let lost = pool.journal_leader();
        pool.nats[lost].kill();
        pool.wait_for_progress(&before);
        assert_ne!(pool.journal_leader(), lost, "the lost server leads");
        "of three NATS servers the one that led the journal's stream was killed while tasks were \
            sorted"
    });
}

#[test]
#[ignore = "needs Docker: deploy/test.sh --all runs it"]
fn long_two_of_three_nats_servers_are_killed() {
    play(CLUSTER, |pool| {
        pool.wait_for_midst_of("sorting");
        let first = pool.journal_leader();
        let lost = [first, (first + 1) % pool.nats.len()];
        lost.iter().for_each(|server| pool.nats[*server].kill());
        let waits = |status: &Value, alert: &str| {
            let alerts = status["alerts"]
                .as_array()
                .is_some_and(|alerts| alerts.iter().any(|name| name == alert));
            alerts && status["waiting_for"].as_str().is_some_and(|why| why.starts_with("journal: "))
        };
        let stalled = pool
            .wait_for_status("waiting for the journal", |status| waits(status, "journal-failing"));
        // A write that takes too long has an alert of its own: so long, at least, nothing was
        // committed.
        let later = pool.wait_for_status("waiting on", |status| waits(status, "journal-slow"));
        assert_eq!(
            tasks_done(&later),
            tasks_done(&stalled),
            "without a quorum nothing can be committed: {later}"
        );
        lost.iter().for_each(|server| pool.nats[*server].start());
        pool.wait_for_nats();
        pool.wait_for_progress(&later);
        "two of three NATS servers were killed while tasks were sorted: no quorum, until they were \
            started again"
    });
}

#[test]
#[ignore = "needs Docker: deploy/test.sh --all runs it"]
fn long_each_of_three_nats_servers_is_restarted() {
    play(CLUSTER, |pool| {
        pool.wait_for_midst_of("sorting");
        for server in 0..pool.nats.len() {
            let before = pool.wait_for_status("known", |_| true);
            pool.nats[server].stop(30);
            pool.wait_for_progress(&before);
            pool.nats[server].start();
            pool.wait_for_nats();
            pool.wait_for_replicas();
        }
        "each of three NATS servers was stopped in its turn, and started again when the job had \
            got on without it"
    });
}

#[test]
#[ignore = "needs Docker: deploy/test.sh --all runs it"]
fn long_the_store_is_stopped() {
    play(ONE_SERVER, |pool| {
        for state in ["sorting", "merging"] {
            pool.wait_for_midst_of(state);
            pool.stop_store();
            pool.wait_for_status("waiting for its store", |status| {
                status["waiting_for"].as_str().is_some_and(|why| why.contains("store"))
            });
            pool.store.start();
            pool.wait_for_store();
        }
        "the store was stopped while tasks were sorted, and while they were merged, until the job \
            said that it waits, and started again"
    });
}

#[test]
#[ignore = "needs Docker: deploy/test.sh --all runs it"]
fn long_coordinators_are_killed_in_turn() {
    play(Size { coordinators: 2, ..ONE_SERVER }, |pool| {
        for state in ["sorting", "sorting", "merging"] {
            let before = pool.wait_for_midst_of(state);
            let leader = pool.leader();
            pool.coordinators[leader].kill();
            pool.wait_for_progress(&before);
            assert_ne!(pool.leader(), leader, "the killed coordinator leads");
            pool.coordinators[leader].start();
        }
        "the leading one of two coordinators was killed twice while tasks were sorted and once \
            while they were merged, each time started again when the other led"
    });
}

#[test]
#[ignore = "needs Docker: deploy/test.sh --all runs it"]
fn long_workers_are_replaced_one_after_the_other() {
    play(ONE_SERVER, |pool| {
        pool.wait_for_midst_of("sorting");
        for worker in 0..3 {
            pool.replace_worker(worker);
            pool.wait_for_return_of(worker);
        }
        "each of three workers was drained while the job ran, and a new container took its place"
    });
}
