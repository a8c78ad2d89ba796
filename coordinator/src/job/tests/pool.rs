//! The pool under watch: silence, hangs, breakers, waves, alerts, limits, and what lists and
//! statuses show of them.

use muster_platform::config::Config;
use muster_protocol::api::{JobState, WorkerStatus};
use muster_protocol::ids::Phase;
use muster_protocol::wire::{Outcome, Register, RegisterReply, RunReply};
use muster_protocol::{Error, ErrorKind};

use super::cases::{error_of, reply_to, said};
use super::world::{World, config, job, listing, spec, worker};
use crate::job::io::{Input, Reply};

/// A pool of workers with one slot each, of which the first holds in a phase.
fn pool(config: Config, count: usize, phase: Phase) -> World {
    let mut world = World::new(config);
    for n in 1..=count {
        world.join(&format!("w{n}"), 1);
    }
    world.hold("w1", &[phase]);
    world
}

fn listed(world: &mut World, id: &str) -> WorkerStatus {
    let to = world.ask();
    world.feed(Input::AskWorkers { to });
    let Some(Reply::Workers(list)) = world.replies.remove(&to) else { panic!("no list") };
    list.into_iter().find(|status| status.id == worker(id)).expect("worker")
}

fn count(world: &World, text: &str) -> usize {
    world.log.iter().filter(|line| line.contains(text)).count()
}

#[test]
fn a_silent_worker_is_suspect_then_dead_then_back() {
    let mut world = pool(config(), 2, Phase::Sort);
    world.submit(spec("j1"));
    world.kill("w1");
    world.pass(4);
    assert_eq!(listed(&mut world, "w1").state, "degraded");
    assert!(said(&world, "worker-suspect") && !said(&world, "worker-lost"));
    world.pass(4);
    let status = listed(&mut world, "w1");
    assert!(
        status.state == "failed"
            && status.cause.is_some_and(|cause| cause.contains("nothing was heard"))
    );
    assert_eq!(world.settle("j1"), JobState::Succeeded);
    world.wake("w1");
    world.pass(1);
    assert!(said(&world, "worker-back: w1 is heard again after"), "{:#?}", world.log);
    assert_eq!(listed(&mut world, "w1").state, "healthy");
}

#[test]
fn what_was_taken_back_is_not_granted_again_to_the_same_life() {
    let mut world = pool(config(), 1, Phase::Sort);
    world.submit(spec("j1"));
    let held = world.held("w1")[0];
    world.kill("w1");
    world.pass(10);
    assert!(said(&world, "worker-lost"));
    world.worker_mut("w1").dead = false;
    // An order to abandon what it holds may be on its way.
    world.register(&worker("w1"));
    world.pump();
    assert!(!world.held("w1").contains(&held), "{:#?}", world.log);
    assert_eq!(world.settle_after_finishing("j1"), JobState::Succeeded);
}

#[test]
fn a_crashed_worker_is_dead_within_eight_seconds() {
    let mut world = pool(config(), 2, Phase::Sort);
    world.submit(spec("j1"));
    world.pass(30);
    world.kill("w1");
    let died_ms = world.now_ms;
    while !said(&world, "worker-lost") {
        world.tick(100);
    }
    let noticed_ms = world.now_ms - died_ms;
    assert!((5000..=8000).contains(&noticed_ms), "{noticed_ms} ms");
}

#[test]
fn a_suspect_gets_no_new_work_and_keeps_what_it_has() {
    let mut world = pool(config(), 1, Phase::Sort);
    world.submit(spec("j1"));
    world.kill("w1");
    world.pass(4);
    assert_eq!(world.status("j1").expect("status").attempts_running, 1);
    world.worker_mut("w1").dead = false;
    world.pass(1);
    assert!(said(&world, "worker-back") && !said(&world, "worker-lost"));
    assert_eq!(world.settle_after_finishing("j1"), JobState::Succeeded);
    assert_eq!(world.status("j1").expect("status").retries, 0);
}

#[test]
fn an_attempt_that_stands_still_is_taken_back_and_its_late_report_refused() {
    let mut config = config();
    config.speculation.slots_percent = 0;
    let mut world = pool(config, 2, Phase::Sort);
    world.submit(spec("j1"));
    let run = world.held_run("w1");
    let outcome = world.result(&run);
    world.pass(119);
    assert!(!said(&world, "attempt-hung"));
    world.pass(3);
    assert!(said(&world, "attempt-hung") && said(&world, "abandon   w1"), "{:#?}", world.log);
    let late = world.report(&worker("w1"), &job("j1"), run.attempt, outcome);
    world.pump();
    assert_eq!(reply_to(&world, late), "revoked");
    assert_eq!(world.settle_after_finishing("j1"), JobState::Succeeded);
    assert_eq!(world.status("j1").expect("status").retries, 1);
}

#[test]
fn nobody_hangs_who_says_what_for_or_who_progresses() {
    let mut config = config();
    config.speculation.slots_percent = 0;
    let mut world = pool(config, 2, Phase::Sort);
    world.submit(spec("j1"));
    world.worker_mut("w1").health.waiting_for = Some("store".to_owned());
    world.pass(200);
    world.worker_mut("w1").health.waiting_for = None;
    world.worker_mut("w1").bytes_done = 2;
    world.pass(100);
    assert!(!said(&world, "attempt-hung"));
    assert_eq!(listed(&mut world, "w1").waiting_for, None);
    assert_eq!(world.settle_after_finishing("j1"), JobState::Succeeded);
}

#[test]
fn a_job_whose_workers_all_wait_for_a_store_says_so() {
    let mut config = config();
    config.speculation.slots_percent = 0;
    let mut world = pool(config, 2, Phase::Sort);
    world.hold("w2", &[Phase::Sort]);
    world.submit(spec("j1"));
    assert!(!world.held("w1").is_empty() && !world.held("w2").is_empty());
    let waiting = |world: &mut World| world.status("j1").expect("status").waiting_for;
    let wait = |world: &mut World, id: &str, what: Option<&str>| {
        world.worker_mut(id).health.waiting_for = what.map(str::to_owned);
        world.pass(2);
    };
    wait(&mut world, "w1", Some("store s3://b"));
    assert_eq!(waiting(&mut world), None, "the other one works");
    let status = listed(&mut world, "w1");
    assert_eq!(
        (status.state.as_str(), status.cause.as_deref()),
        ("degraded", Some("it cannot reach its store"))
    );
    assert_eq!(listed(&mut world, "w2").state, "healthy");
    wait(&mut world, "w2", Some("store s3://b"));
    assert_eq!(waiting(&mut world).as_deref(), Some("store s3://b (all workers)"));
    world.pass(100);
    assert!(!said(&world, "slow-progress"), "the store is the cause, and named");
    assert_eq!(
        (count(&world, "worker-cut-off"), count(&world, "worker-store-back")),
        (2, 0),
        "once for each"
    );
    wait(&mut world, "w1", Some("storehouse"));
    wait(&mut world, "w2", None);
    assert_eq!(waiting(&mut world), None);
    assert_eq!((count(&world, "worker-cut-off"), count(&world, "worker-store-back")), (2, 2));
    assert_eq!(listed(&mut world, "w1").state, "healthy");
    assert_eq!(world.settle_after_finishing("j1"), JobState::Succeeded);
}

#[test]
fn a_job_without_attempts_waits_for_the_store_that_all_workers_wait_for() {
    let mut world = World::new(config());
    world.join("w1", 1);
    world.worker_mut("w1").health.waiting_for = Some("store".to_owned());
    world.worker_mut("w1").answers = Some(Ok(RunReply::Busy));
    world.tick(1000);
    world.submit(spec("j1"));
    let status = world.status("j1").expect("status");
    assert_eq!(
        (status.attempts_running, status.waiting_for.as_deref()),
        (0, Some("store (all workers)"))
    );
}

#[test]
fn a_worker_that_fails_again_and_again_gets_nothing_until_a_trial_succeeds() {
    let mut world = pool(config(), 1, Phase::Sort);
    world.listing = listing(&[2000]);
    world.submit(spec("j1"));
    let fail = |world: &mut World| {
        world.worker_mut("w1").fails = Some(Error::retry("no luck"));
        world.finish("w1");
    };
    (0..5).for_each(|_| fail(&mut world));
    assert!(said(&world, "breaker-open"), "{:#?}", world.log);
    assert_eq!(count(&world, "warning attempt-failed"), 5);
    let status = listed(&mut world, "w1");
    assert!(
        status.state == "failed"
            && status.cause.is_some_and(|cause| cause.contains("again and again"))
    );
    // The trial fails: twice as long; the next one succeeds.
    world.pass(6);
    assert_eq!((listed(&mut world, "w1").state.as_str(), world.held("w1").len()), ("degraded", 1));
    fail(&mut world);
    assert!(said(&world, "its trial failed; it gets no work for 10000 ms"), "{:#?}", world.log);
    assert_eq!(world.settle_after_finishing("j1"), JobState::Succeeded);
    assert!(said(&world, "its trial succeeded"));
    assert_eq!(listed(&mut world, "w1").state, "healthy");
}

#[test]
fn bad_input_is_not_the_workers_fault() {
    let mut world = pool(config(), 1, Phase::Merge);
    for n in 0..6 {
        world.worker_mut("w1").fails = Some(Error::invalid("malformed record"));
        let id = format!("j{n}");
        world.submit(spec(&id));
        assert_eq!(world.settle(&id), JobState::Failed);
    }
    assert!(!said(&world, "breaker-open"));
}

#[test]
fn a_wave_of_losses_is_recovered_from_slowly_and_sheds_new_jobs() {
    let mut world = World::new(config());
    for n in 0..10 {
        world.join(&format!("w{n}"), 1);
        world.hold(&format!("w{n}"), &[Phase::Sort]);
    }
    world.listing = listing(&[1000]);
    world.submit(spec("j1"));
    assert_eq!(world.status("j1").expect("status").attempts_running, 10);
    for n in 0..8 {
        world.kill(&format!("w{n}"));
    }
    world.join("w10", 16);
    while !said(&world, "wave-began") {
        world.tick(100);
    }
    let shed = world.submit(spec("j2"));
    let (code, text) = world.refusal(shed).expect("refused");
    assert!(
        code == 503 && text.contains("were lost lately") && text.contains("try again in"),
        "{code} {text}"
    );
    let at_first = world.granted.len();
    assert!(said(&world, "partition-suspected"));
    world.pass(40);
    assert!(said(&world, "wave-over"), "{:#?}", world.log);
    assert!(world.granted.len() > at_first);
    assert_eq!(world.settle_after_finishing("j1"), JobState::Succeeded);
    world.submit(spec("j2"));
    assert_eq!(world.settle("j2"), JobState::Succeeded);
}

#[test]
fn merges_whose_uploads_are_revoked_in_a_wave_recover_slowly_too() {
    let mut config = config();
    config.speculation.slots_percent = 0;
    let mut world = World::new(config);
    for n in 0..10 {
        world.join(&format!("w{n}"), 1);
        world.hold(&format!("w{n}"), &[Phase::Merge]);
    }
    world.listing = listing(&[1000]);
    let mut spec = spec("j1");
    spec.sizing.partitions = Some(10);
    world.submit(spec);
    (0..10).for_each(|n| world.open_uploads(&format!("w{n}")));
    assert_eq!(world.uploads.len(), 10);
    (0..8).for_each(|n| world.kill(&format!("w{n}")));
    world.join("w10", 16);
    world.hold("w10", &[Phase::Merge]);
    let before = world.granted.len();
    while count(&world, "worker-lost:") < 8 {
        world.tick(100);
    }
    assert_eq!(world.uploads.len(), 2, "what the lost ones had open is gone at once");
    assert!(world.granted.len() < before + 4, "{} at once", world.granted.len() - before);
    world.pass(30);
    assert_eq!(world.granted.len(), before + 8, "each goes out again");
    assert_eq!(world.settle_after_finishing("j1"), JobState::Succeeded);
}

#[test]
fn workers_cut_off_together_are_a_partition_and_heal() {
    let mut world = World::new(config());
    for n in 0..4 {
        world.join(&format!("w{n}"), 1);
    }
    for n in 0..3 {
        world.kill(&format!("w{n}"));
    }
    world.pass(5);
    assert!(said(&world, "3 of 4 workers fell silent together"), "{:#?}", world.log);
    for n in 0..3 {
        world.wake(&format!("w{n}"));
    }
    world.pass(2);
    assert!(
        said(&world, "partition-healed") && !said(&world, "partition-over"),
        "{:#?}",
        world.log
    );
    world.feed(Input::Connection { up: false });
    assert!(said(&world, "the coordinator's own connection to NATS is lost"));
}

#[test]
fn too_few_workers_are_waited_for_and_then_named() {
    let mut config = config();
    config.pool.min_workers = 3;
    let mut world = World::new(config);
    world.join("w1", 1);
    world.join("w2", 1);
    world.submit(spec("j1"));
    assert!(world.granted.is_empty());
    let waiting = world.status("j1").expect("status").waiting_for.expect("waits");
    assert!(waiting.contains("workers (2 workers of at least 3"), "{waiting}");
    world.pass(100);
    world.join("w3", 1);
    assert_eq!(world.settle("j1"), JobState::Succeeded);
    world.leave("w3");
    world.submit(spec("j2"));
    world.pass(302);
    assert_eq!(world.settle("j2"), JobState::Failed);
    let error = world.status("j2").and_then(|status| status.error).unwrap_or_default();
    assert!(
        error.contains("2 workers of at least 3 (pool.min_workers)")
            && error.contains("register_ms"),
        "{error}"
    );
}

#[test]
fn too_small_a_share_is_waited_for_and_drained_workers_do_not_count() {
    let mut config = config();
    config.pool.min_alive_percent = 60;
    let mut world = pool(config, 4, Phase::Sort);
    world.submit(spec("j1"));
    world.kill("w2");
    world.kill("w3");
    world.pass(9);
    let waiting = world.status("j1").expect("status").waiting_for.expect("waits");
    assert!(waiting.contains("2 of 4 workers live, 60 % should"), "{waiting}");
    let to = world.ask();
    world.feed(Input::Drain { to, worker: worker("w3") });
    assert_eq!(world.status("j1").expect("status").waiting_for, None);
    assert_eq!(world.settle_after_finishing("j1"), JobState::Succeeded, "two of three are enough");
}

#[test]
fn a_sort_that_ran_out_of_memory_gets_half_of_it() {
    let mut world = pool(config(), 1, Phase::Sort);
    world.listing = listing(&[100]);
    let mut spec = spec("j1");
    spec.sizing.partitions = Some(1);
    world.submit(spec);
    let mut halvings = vec![world.held_run("w1").memory_halvings];
    for _ in 0..3 {
        let run = world.held_run("w1");
        let error = Error::new(ErrorKind::OutOfMemory, "out of memory: 1048576 bytes were refused");
        world.report(&worker("w1"), &job("j1"), run.attempt, Outcome::Failed { error });
        world.pass(12);
        halvings.push(world.held_run("w1").memory_halvings);
    }
    assert_eq!(halvings, [0, 1, 2, 3]);
    assert_eq!(world.settle_after_finishing("j1"), JobState::Succeeded);
}

#[test]
fn a_sort_whose_worker_died_gets_half_the_memory_also_from_the_next_leader() {
    let mut world = pool(config(), 2, Phase::Sort);
    world.hold("w2", &[Phase::Sort]);
    world.listing = listing(&[100]);
    world.submit(spec("j1"));
    assert_eq!(world.held_run("w1").memory_halvings, 0);
    world.kill("w1");
    world.pass(9);
    assert_eq!(world.held_run("w2").memory_halvings, 1);
    world.forget_held("w2");
    world.crash();
    world.pump();
    world.pass(5);
    assert_eq!(world.held_run("w2").memory_halvings, 1);
    assert_eq!(world.settle_after_finishing("j1"), JobState::Succeeded);
}

#[test]
fn throttled_stores_are_shared() {
    let mut world = pool(config(), 2, Phase::Sort);
    world.submit(spec("j1"));
    world.pass(2);
    assert!(world.limits.is_empty());
    world.worker_mut("w1").health.throttled = 7;
    world.pass(2);
    assert_eq!(world.limits.first(), Some(&Some(200)), "of 400, for two workers");
    let waiting = world.status("j1").expect("status").waiting_for.expect("waits");
    assert!(waiting.contains("store"), "{waiting}");
    world.pass(40);
    assert_eq!(world.limits.last(), Some(&None));
    assert_eq!(world.status("j1").expect("status").waiting_for, None);
    assert_eq!(world.settle_after_finishing("j1"), JobState::Succeeded);
}

/// Started anew under its id, or only heard of again, a worker is not called down.
#[test]
fn a_worker_that_is_back_is_not_called_down() {
    let mut world = pool(config(), 3, Phase::Merge);
    for id in ["w2", "w3"] {
        world.kill(id);
    }
    world.pass(10);
    assert_eq!(listed(&mut world, "w2").alerts, ["worker-down"]);
    world.wake("w2");
    world.join("w3", 1);
    world.pass(1);
    for id in ["w2", "w3"] {
        let seen = listed(&mut world, id);
        assert!(seen.alerts.is_empty() && seen.state != "failed", "{seen:?}");
    }
    assert!(said(&world, "alert-cleared: worker-down of worker w3"), "{:#?}", world.log);
}

#[test]
fn an_outage_of_the_journal_is_told_when_it_is_over() {
    let mut world = pool(config(), 1, Phase::Merge);
    let stall = |world: &mut World, why: Option<&str>| {
        world.feed(Input::JournalStalled { why: why.map(str::to_owned) });
    };
    // A hiccup is none.
    stall(&mut world, Some("no quorum"));
    stall(&mut world, None);
    world.pass(10);
    assert!(!said(&world, "journal-back"), "{:#?}", world.log);
    stall(&mut world, Some("no quorum"));
    world.pass(30);
    stall(&mut world, Some("still none"));
    world.pass(30);
    assert!(!said(&world, "journal-back"), "it lasts");
    stall(&mut world, None);
    assert!(said(&world, "journal could not be written (still none)"), "{:#?}", world.log);
}

/// A server of a cluster is named as it goes, and as it comes back, and in between to those who ask
/// for a job.
#[test]
fn a_server_of_nats_that_is_away_is_named() {
    let mut world = pool(config(), 1, Phase::Sort);
    world.hold("w1", &[Phase::Sort]);
    world.submit(spec("j1"));
    let away = |names: &[&str]| Input::NatsServers {
        away: names.iter().map(|name| ((*name).to_owned(), "refused".to_owned())).collect(),
    };
    world.feed(away(&["b:4222"]));
    world.feed(away(&["b:4222", "c:4222"]));
    world.feed(away(&["c:4222"]));
    let told = |kind: &str| world.log.iter().filter(|line| line.contains(kind)).count();
    assert_eq!((told("nats-server-away"), told("nats-server-back")), (2, 1), "{:#?}", world.log);
    assert!(said(&world, "the NATS server b:4222 does not answer: refused"));
    assert_eq!(world.status("j1").expect("status").alerts, ["nats-server-away c:4222"]);
}

#[test]
fn alerts_come_and_go() {
    let mut world = pool(config(), 3, Phase::Merge);
    world.kill("w2");
    world.pass(10);
    assert!(said(&world, "alert-raised: worker-down of worker w2"), "{:#?}", world.log);
    assert_eq!(listed(&mut world, "w2").alerts, ["worker-down"]);
    world.wake("w2");
    world.pass(40);
    assert!(said(&world, "alert-cleared: worker-down of worker w2"), "{:#?}", world.log);
    assert!(listed(&mut world, "w2").alerts.is_empty());
    // A job that does not move, and a journal that does not answer.
    world.hold("w1", &[Phase::Sort]);
    world.hold("w2", &[Phase::Sort]);
    world.hold("w3", &[Phase::Sort]);
    world.submit(spec("j1"));
    world.pass(70);
    assert_eq!(world.status("j1").expect("status").alerts, ["slow-progress"]);
    world.journal_holds = true;
    world.finish("w1");
    world.pass(12);
    assert!(said(&world, "alert-raised: journal-slow of deployment"), "{:#?}", world.log);
    world.journal_holds = false;
    world.acknowledge_held();
    assert_eq!(world.settle_after_finishing("j1"), JobState::Succeeded);
    world.pass(1);
    assert!(said(&world, "alert-cleared: slow-progress of job j1"), "{:#?}", world.log);
}

#[test]
fn a_drained_worker_that_left_is_shown_until_it_is_forgotten() {
    let mut world = pool(config(), 2, Phase::Sort);
    let to = world.ask();
    world.feed(Input::Drain { to, worker: worker("w2") });
    assert!(
        matches!(world.replies.get(&to), Some(Reply::Worker(status)) if status.state == "draining")
    );
    world.leave("w2");
    assert_eq!(listed(&mut world, "w2").state, "drained");
    world.leave("w1");
    assert_eq!(listed(&mut world, "w1").state, "left");
    world.pass(3602);
    let to = world.ask();
    world.feed(Input::AskWorkers { to });
    assert!(matches!(world.replies.get(&to), Some(Reply::Workers(list)) if list.is_empty()));
    // It comes back as itself.
    world.join("w2", 1);
    assert_eq!(listed(&mut world, "w2").state, "healthy");
}

#[test]
fn a_late_joiner_gets_work_at_once() {
    let mut world = pool(config(), 1, Phase::Sort);
    world.submit(spec("j1"));
    let before = world.granted.len();
    world.join("w9", 4);
    assert!(world.granted.len() > before);
    assert_eq!(world.settle_after_finishing("j1"), JobState::Succeeded);
    assert!(error_of(&mut world).is_empty());
}

/// 10,000 workers beat and are watched; nobody is lost, and a tick is short work.
#[test]
fn ten_thousand_workers_are_watched() {
    let mut world = World::new(config());
    world.checks = false;
    for n in 0..10_000 {
        world.join(&format!("w{n}"), 2);
    }
    world.log.clear();
    world.pass(5);
    assert!(!said(&world, "worker-suspect"));
    for n in 0..100 {
        world.kill(&format!("w{n}"));
    }
    world.pass(75);
    assert_eq!(count(&world, "worker-lost"), 100);
}

#[test]
fn errors_that_pass_do_not_halve_memory() {
    let mut world = pool(config(), 1, Phase::Sort);
    world.submit(spec("j1"));
    // What counts is the kind of the error, not its words.
    for error in [
        Error::new(ErrorKind::Exhausted, "no space left on device /mnt/out of memory"),
        Error::retry("cannot read s3://data/its worker is dead: the connection broke off"),
    ] {
        let run = world.held_run("w1");
        world.report(&worker("w1"), &job("j1"), run.attempt, Outcome::Failed { error });
        world.pass(12);
        assert_eq!(world.held_run("w1").memory_halvings, 0);
    }
}

#[test]
fn what_needs_more_memory_goes_to_a_larger_worker_at_once_or_fails() {
    const MIB: u64 = 1 << 20;
    // A GiB each: 256 MiB for each of four tasks, and all of it for one.
    let mut world = World::new(config());
    world.join("w1", 4);
    world.join("w2", 4);
    world.hold("w1", &[Phase::Sort]);
    world.hold("w2", &[Phase::Sort]);
    world.listing = listing(&[100]);
    world.submit(spec("j1"));
    let needs = |world: &mut World, name: &str, task_bytes| {
        let run = world.held_run(name);
        let error =
            Error::new(ErrorKind::NeedsMemory { task_bytes }, "a record that needs --memory 3GiB");
        world.report(&worker(name), &job("j1"), run.attempt, Outcome::Failed { error });
        world.pass(12);
    };
    let first = if world.workers[&worker("w1")].held.is_empty() { "w2" } else { "w1" };
    world.join("w3", 1);
    world.hold("w3", &[Phase::Sort]);
    needs(&mut world, first, 600 * MIB);
    let run = world.held_run("w3");
    assert_eq!(run.memory_halvings, 0, "less at once is no help");
    assert_eq!(
        count(&world, "attempt-failed"),
        2,
        "one event and one record: no other small one has tried"
    );
    // So does the next leader decide.
    world.forget_held("w3");
    world.crash();
    world.pump();
    world.pass(5);
    assert!(!world.workers[&worker("w3")].held.is_empty());
    // Nobody has as much as that: it ends at once, with the words of who saw it.
    needs(&mut world, "w3", 3000 * MIB);
    assert_eq!(world.settle("j1"), JobState::Failed);
    let error = world.status("j1").and_then(|status| status.error).expect("an error");
    assert!(error.contains("cannot be done by any worker that is there"), "{error}");
    assert!(error.contains("worker w3") && error.contains("--memory 3GiB"), "{error}");
}

#[test]
fn a_flood_of_refusals_is_told_in_a_few_events_and_counted_exactly() {
    let mut world = pool(config(), 1, Phase::Sort);
    let flood = |world: &mut World, registrations: u32| {
        for _ in 0..registrations {
            let (to, sound) = (world.ask(), world.registration(&worker("w1")).expect("a worker"));
            world.feed(Input::Register { to, register: Box::new(Register { slots: 0, ..sound }) });
            let refused = matches!(
                world.replies.remove(&to),
                Some(Reply::Register(RegisterReply::Refused { .. }))
            );
            assert!(refused, "each is answered");
        }
    };
    flood(&mut world, 1000);
    assert_eq!(count(&world, "worker-refused"), 5);
    world.pass(11);
    assert!(
        said(&world, "worker-refused: 995 more registrations were refused meanwhile"),
        "{:#?}",
        world.log
    );
    world.pass(30);
    assert_eq!(count(&world, "worker-refused"), 6, "nothing more comes of it");
    flood(&mut world, 3);
    assert_eq!(count(&world, "worker-refused"), 9);
    assert_eq!(world.machine.tally().workers_refused, 1003);
}
