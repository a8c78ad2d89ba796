//! Conversations: each line is an input and the effects that must follow, as short words.

use super::*;
use muster_platform::config::{Config, Profile};
use muster_protocol::ids::{Generation, Phase, TaskId};
use muster_protocol::wire::{BlobRef, Work};

use crate::Exit;
use crate::presence::Presence;

const INCARNATION: Incarnation = Incarnation(7);

fn repeat() -> Policy {
    Config::profile(Profile::Production).expect("settings").retry.nats
}

fn attempt(index: u32) -> AttemptId {
    AttemptId {
        task: TaskId { phase: Phase::Merge, index },
        generation: Generation(0),
        epoch: Epoch(1),
        nonce: 0,
    }
}

fn key(index: u32) -> Key {
    Key { job: "j".parse().expect("id"), attempt: attempt(index) }
}

fn run(epoch: u64, index: u32) -> Input {
    let plan = BlobRef { url: "memory:///plan".to_owned(), bytes: 0, digest: 0 };
    let (job, attempt) = (key(index).job, attempt(index));
    Input::Run(Box::new(RunAttempt {
        epoch: Epoch(epoch),
        incarnation: INCARNATION,
        job,
        attempt,
        plan,
        work: Work::Sample { skip: Vec::new() },
        memory_halvings: 0,
    }))
}

fn cancel(epoch: u64, index: u32) -> Input {
    Input::Cancel(CancelAttempt {
        epoch: Epoch(epoch),
        job: key(index).job,
        attempt: attempt(index),
    })
}

fn registered(epoch: u64, asked: &[u32], regranted: &[u32]) -> Input {
    let asked = asked.iter().map(|&index| key(index)).collect();
    Input::Registered {
        epoch: Epoch(epoch),
        asked,
        regranted: regranted.iter().map(|&index| attempt(index)).collect(),
    }
}

fn failed(index: u32) -> Input {
    Input::Finished { key: key(index), outcome: Outcome::Failed { error: Error::retry("no") } }
}

fn answered(index: u32, reply: Option<ReportReply>) -> Input {
    Input::Answered { key: key(index), reply }
}

fn recorded(epoch: u64) -> Option<ReportReply> {
    Some(ReportReply::Recorded { epoch: Epoch(epoch) })
}

fn word(effect: &Effect) -> String {
    let index = |key: &Key| key.attempt.task.index;
    match effect {
        Effect::AnswerRun(RunReply::Accepted) => "accepted".to_owned(),
        Effect::AnswerRun(RunReply::Busy) => "busy".to_owned(),
        Effect::AnswerRun(RunReply::Refused { .. })
        | Effect::Answer(CommandReply::Refused { .. }) => "refused".to_owned(),
        Effect::Answer(CommandReply::Done) => "done".to_owned(),
        Effect::Start(run) => format!("start {}", run.attempt.task.index),
        Effect::Proceed(key) => format!("proceed {}", index(key)),
        Effect::Abandon(key) => format!("abandon {}", index(key)),
        Effect::CleanUp(key) => format!("clean-up {}", index(key)),
        Effect::Keep(key) => format!("keep {}", index(key)),
        Effect::Send(report) => {
            let what = if matches!(report.outcome, Outcome::UploadOpened { .. }) {
                "opened"
            } else {
                "outcome"
            };
            format!("send {what} {} e{}", report.attempt.task.index, report.epoch)
        }
        Effect::Register => "register".to_owned(),
    }
}

/// A worker of two slots, one millisecond a line.
fn converse(script: Vec<(Input, &str)>) -> Attempts {
    let mut attempts = Attempts::new("w".parse().expect("id"), INCARNATION, 2, repeat());
    for (now_ms, (input, expected)) in (0..).zip(script) {
        let shown = format!("line {now_ms}: {input:?}");
        let effects: Vec<String> = attempts.step(now_ms, input).iter().map(word).collect();
        assert_eq!(effects.join(", "), expected, "{shown}");
    }
    attempts
}

#[test]
fn an_attempt_from_order_to_record() {
    let attempts = converse(vec![
        (Input::Beat { epoch: Epoch(1) }, "register"),
        (registered(1, &[], &[]), ""),
        (run(1, 0), "accepted, start 0"),
        (run(1, 0), "accepted"),
        (Input::Opened { key: key(0), upload: "u".to_owned() }, "send opened 0 e1"),
        (answered(0, recorded(1)), "proceed 0"),
        (failed(0), "send outcome 0 e1"),
        (answered(0, recorded(1)), "keep 0"),
        (run(1, 0), "accepted"),
        (answered(0, recorded(1)), ""),
    ]);
    assert!(attempts.is_idle());
}

#[test]
fn slots_bound_what_runs_and_draining_takes_no_more() {
    converse(vec![
        (registered(1, &[], &[]), ""),
        (run(1, 0), "accepted, start 0"),
        (run(1, 1), "accepted, start 1"),
        (run(1, 2), "busy"),
        (failed(0), "send outcome 0 e1"),
        (run(1, 2), "accepted, start 2"),
        (cancel(1, 2), "abandon 2, done"),
        // Abandoned work holds its slot until it has ended.
        (run(1, 3), "busy"),
        (failed(2), "clean-up 2"),
        (Input::Drain(Drain { epoch: Epoch(1) }), "done"),
        (run(1, 3), "busy"),
    ]);
}

#[test]
fn a_drained_worker_hands_back_what_it_has_not_finished_within_a_bound() {
    let config = Config::profile(Profile::Production).expect("settings");
    let bound_ms = config.worker.drain_ms;
    let drain = || (Input::Drain(Drain { epoch: Epoch(1) }), "done");
    let busy =
        converse(vec![(registered(1, &[], &[]), ""), (run(1, 0), "accepted, start 0"), drain()]);
    let mut presence = Presence::new("w".parse().expect("id"), &config, 0);
    assert!(presence.end(1000, &busy).is_none() && presence.end(999 + bound_ms, &busy).is_none());
    assert_eq!(presence.end(1000 + bound_ms, &busy), Some(Ok(Exit::Drained)));
    let idle = converse(vec![(registered(1, &[], &[]), ""), drain()]);
    assert_eq!(
        Presence::new("w".parse().expect("id"), &config, 0).end(1000, &idle),
        Some(Ok(Exit::Drained))
    );
}

#[test]
fn a_worker_that_waits_for_its_store_takes_no_more_and_goes_on_with_what_it_has() {
    let mut attempts =
        converse(vec![(registered(1, &[], &[]), ""), (run(1, 0), "accepted, start 0")]);
    let words = |effects: Vec<Effect>| effects.iter().map(word).collect::<Vec<_>>().join(", ");
    attempts.pause(true);
    assert_eq!(words(attempts.step(9, run(1, 1))), "busy");
    assert_eq!(words(attempts.step(9, run(1, 0))), "accepted");
    assert_eq!(words(attempts.step(9, failed(0))), "send outcome 0 e1");
    attempts.pause(false);
    assert_eq!(words(attempts.step(9, run(1, 1))), "accepted, start 1");
}

#[test]
fn old_epochs_are_refused_and_not_heard() {
    converse(vec![
        (registered(3, &[], &[]), ""),
        (run(2, 0), "refused"),
        (run(3, 0), "accepted, start 0"),
        (cancel(2, 0), "refused"),
        (Input::Drain(Drain { epoch: Epoch(2) }), "refused"),
        (failed(0), "send outcome 0 e3"),
        (answered(0, Some(ReportReply::Revoked { epoch: Epoch(2) })), ""),
        (registered(2, &[0], &[]), "register"),
        (Input::Beat { epoch: Epoch(2) }, ""),
    ]);
}

#[test]
fn another_life_is_not_meant() {
    let mut other = run(1, 0);
    if let Input::Run(run) = &mut other {
        run.incarnation = Incarnation(8);
    }
    converse(vec![(registered(1, &[], &[]), ""), (other, "refused")]);
}

#[test]
fn a_new_leader_regrants_or_the_attempt_ends() {
    let attempts = converse(vec![
        (registered(1, &[], &[]), ""),
        (run(1, 0), "accepted, start 0"),
        (run(1, 1), "accepted, start 1"),
        (failed(1), "send outcome 1 e1"),
        (Input::Beat { epoch: Epoch(2) }, "register"),
        (answered(1, None), ""),
        // Granted after the question was asked: not in it, so it stays.
        (run(2, 2), "register, accepted, start 2"),
        (registered(2, &[0, 1], &[1]), "abandon 0, send outcome 1 e2"),
        (answered(1, recorded(2)), "keep 1"),
        (failed(0), "clean-up 0"),
    ]);
    assert_eq!(attempts.running().map(|key| key.attempt.task.index).collect::<Vec<_>>(), [2]);
}

#[test]
fn a_registration_that_confirms_another_takes_nothing_away() {
    converse(vec![
        (registered(1, &[], &[]), ""),
        (run(1, 0), "accepted, start 0"),
        (registered(1, &[0], &[]), ""),
        (failed(0), "send outcome 0 e1"),
        (registered(2, &[0], &[]), "clean-up 0"),
    ]);
}

#[test]
fn reports_are_sent_until_acknowledged() {
    let mut attempts = converse(vec![
        (registered(1, &[], &[]), ""),
        (run(1, 0), "accepted, start 0"),
        (failed(0), "send outcome 0 e1"),
        (Input::Tick, ""),
        (answered(0, None), ""),
        (Input::Tick, ""),
    ]);
    let mut at = |now_ms, input| {
        attempts.step(now_ms, input).iter().map(word).collect::<Vec<_>>().join(", ")
    };
    assert_eq!(at(1000, Input::Tick), "send outcome 0 e1");
    assert_eq!(at(1001, answered(0, Some(ReportReply::Later))), "");
    assert_eq!(at(9000, Input::Tick), "send outcome 0 e1");
    assert_eq!(
        at(9001, answered(0, Some(ReportReply::Reregister { epoch: Epoch(1) }))),
        "register"
    );
    assert_eq!(at(20_000, Input::Tick), "", "not before it is registered again");
    assert_eq!(at(20_001, registered(1, &[0], &[0])), "send outcome 0 e1");
    assert_eq!(
        at(20_002, answered(0, Some(ReportReply::Revoked { epoch: Epoch(1) }))),
        "clean-up 0"
    );
}

#[test]
fn a_cancel_before_its_order_wins() {
    converse(vec![(registered(1, &[], &[]), ""), (cancel(1, 0), "done"), (run(1, 0), "accepted")]);
}

/// A committed run was deleted when its worker left before the answer to its report had arrived.
#[test]
fn a_reported_result_outlives_its_worker() {
    converse(vec![
        (registered(1, &[], &[]), ""),
        (run(1, 0), "accepted, start 0"),
        (run(1, 1), "accepted, start 1"),
        (failed(0), "send outcome 0 e1"),
        (Input::Leave, "keep 0, abandon 1"),
    ]);
}

#[test]
fn a_new_leader_hears_at_once_what_the_old_one_did_not_answer() {
    converse(vec![
        (registered(1, &[], &[]), ""),
        (run(1, 0), "accepted, start 0"),
        (failed(0), "send outcome 0 e1"),
        (registered(2, &[0], &[0]), "send outcome 0 e2"),
    ]);
}

#[test]
fn another_deployment_begins_anew() {
    converse(vec![
        (registered(9, &[], &[]), ""),
        (run(9, 0), "accepted, start 0"),
        (Input::NewDeployment, "abandon 0, register"),
        (registered(1, &[], &[]), ""),
        (failed(0), "clean-up 0"),
        (run(1, 1), "accepted, start 1"),
        (Input::Leave, "abandon 1"),
    ]);
}

#[test]
fn what_cannot_be_sent_fails() {
    let key = key(0);
    converse(vec![
        (registered(1, &[], &[]), ""),
        (run(1, 0), "accepted, start 0"),
        (failed(0), "send outcome 0 e1"),
        (
            Input::Unsendable { key, error: Error::bug("too large") },
            "clean-up 0, send outcome 0 e1",
        ),
        (answered(0, recorded(1)), "keep 0"),
    ]);
}

#[test]
fn memory_of_ended_attempts_is_bounded() {
    let mut attempts = Attempts::new("w".parse().expect("id"), INCARNATION, 1, repeat());
    for index in 0..ENDED_MAX as u32 + 10 {
        attempts.step(0, cancel(1, index));
    }
    assert_eq!((attempts.ended.len(), attempts.ended_set.len()), (ENDED_MAX, ENDED_MAX));
}
