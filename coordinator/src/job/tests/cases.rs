//! Single cases: bad reports, late reports, failures, bounds.

use muster_protocol::api::JobState;
use muster_protocol::ids::{AttemptId, Epoch, Generation, Phase, TaskId};
use muster_protocol::plan::JobSpec;
use muster_protocol::wire::{BlobRef, Outcome, ReportReply, RunReply};
use muster_protocol::{Error, ErrorKind};

use super::world::{World, config, job, listing, spec, worker};
use crate::job::io::{Input, Reply, ReplyTo};
use crate::journal::fold::{Fold, compact};
use crate::journal::record::{Entry, RECORD_BYTES_MAX, Record};

fn world(slots: u32) -> World {
    let mut world = World::new(config());
    world.join("w1", slots);
    world
}

/// A world in which a job holds in a phase.
fn holding(phase: Phase) -> World {
    let mut world = world(2);
    world.hold("w1", &[phase]);
    world.submit(spec("j1"));
    world
}

pub(super) fn reply_to(world: &World, to: ReplyTo) -> &'static str {
    match world.replies.get(&to) {
        Some(Reply::Report(ReportReply::Recorded { .. })) => "recorded",
        Some(Reply::Report(ReportReply::Revoked { .. })) => "revoked",
        Some(Reply::Report(ReportReply::Reregister { .. })) => "reregister",
        Some(Reply::Report(ReportReply::Later)) => "later",
        _ => "nothing",
    }
}

pub(super) fn error_of(world: &mut World) -> String {
    world.status("j1").and_then(|status| status.error).unwrap_or_default()
}

pub(super) fn said(world: &World, text: &str) -> bool {
    world.log.iter().any(|line| line.contains(text))
}

#[test]
fn a_job_is_cancelled_in_each_phase() {
    for phase in [Phase::Sample, Phase::Sort, Phase::Merge] {
        let mut world = holding(phase);
        world.open_uploads("w1");
        world.cancel("j1");
        assert_eq!(world.settle("j1"), JobState::Cancelled, "{phase}");
        assert!(
            world.published.is_empty() && world.uploads.is_empty() && world.objects.is_empty(),
            "{phase}"
        );
        assert!(world.held("w1").is_empty(), "{phase}: the worker still holds an attempt");
    }
}

#[test]
fn what_the_coordinator_writes_itself_is_waited_for() {
    let mut world = world(2);
    world.hold("w1", &[Phase::Sample]);
    world.submit(spec("j1"));
    world.store_holds = true;
    while !said(&world, "choose among") {
        world.finish("w1");
    }
    world.cancel("j1");
    world.pass(1);
    assert!(!said(&world, "clean up"), "the splitters may appear at any moment");
    world.release_store();
    assert_eq!(world.settle("j1"), JobState::Cancelled);
}

#[test]
fn a_decided_commit_is_not_cancelled() {
    let mut world = world(2);
    world.store_fails.entry("publish").or_default().push_back(Error::retry("away"));
    world.submit(spec("j1"));
    let refused = world.cancel("j1");
    let (code, text) = world.refusal(refused).expect("refused");
    assert!(code == 409 && text.contains("decided"), "{code} {text}");
    assert!(
        world.status("j1").expect("status").waiting_for.is_some_and(|what| what.contains("store"))
    );
    assert_eq!(world.settle("j1"), JobState::Succeeded);
    let refused = world.cancel("j1");
    assert_eq!(world.refusal(refused).map(|(code, _)| code), Some(409));
}

#[test]
fn a_job_is_cancelled_while_it_is_planned() {
    let mut world = World::new(config());
    let spec = spec("j1");
    let effects =
        world.machine.step(1, Input::Submit { to: ReplyTo(900), spec: Box::new(spec), unix_ms: 0 });
    assert_eq!(effects.len(), 1);
    world.cancel("j1");
    assert!(world.refusal(ReplyTo(900)).is_some_and(|(_, text)| text.contains("cancelled")));
    assert!(world.status("j1").is_none());
}

#[test]
fn the_same_request_is_the_same_job() {
    let mut world = holding(Phase::Sort);
    let again = world.submit(spec("j1"));
    assert!(matches!(
        world.replies.get(&again),
        Some(Reply::Job(status)) if status.state == JobState::Sorting
    ));
    let mut other = spec("j1");
    other.overwrite = true;
    let other = world.submit(other);
    assert_eq!(world.refusal(other).map(|(code, _)| code), Some(409));
    assert_eq!(world.machine.durable().jobs.len(), 1);
}

#[test]
fn requests_that_cannot_work_are_refused() {
    let check = |change: fn(&mut muster_protocol::plan::JobSpec), expected: &str| {
        let mut world = world(1);
        let mut spec = spec("j1");
        change(&mut spec);
        let to = world.submit(spec);
        let (code, text) = world.refusal(to).unwrap_or_else(|| panic!("not refused: {expected}"));
        assert!(code == 400 && text.contains(expected), "{code} {text}");
        assert!(world.machine.durable().jobs.is_empty());
    };
    check(|spec| spec.inputs.clear(), "inputs");
    check(|spec| spec.extension = "a/b".to_owned(), "extension");
    check(|spec| spec.sizing.partitions = Some(0), "partitions");
    check(|spec| spec.sizing.split_bytes = Some(0), "split_bytes");
    check(|spec| spec.output = "relative".to_owned(), "absolute");
    check(|spec| spec.output = "s3://bucket".to_owned(), "whole store");
    check(|spec| spec.output = "/b/_muster/x".to_owned(), "scratch");
    check(
        |spec| spec.sort.keys = vec![muster_kernel::spec::KeyDef::Range { offset: 8, len: 4 }],
        "does not lie within the record",
    );
    check(
        |spec| spec.sort.format = muster_kernel::format::Format::fixed(7),
        "which are no whole records of 7 bytes",
    );
}

#[test]
fn sums_that_do_not_add_up_fail_the_job() {
    let check = |lies: fn(&mut Outcome), expected: &str| {
        let mut world = world(2);
        world.lies = lies;
        world.submit(spec("j1"));
        assert_eq!(world.settle("j1"), JobState::Failed, "{expected}");
        let error = error_of(&mut world);
        assert!(error.contains(expected), "{expected}: {error}");
        assert!(
            world.published.is_empty() && world.uploads.is_empty() && world.objects.is_empty(),
            "{expected}"
        );
    };
    let lose_record = |outcome: &mut Outcome| {
        if let Outcome::Sorted(run) = outcome {
            run.kept.records -= 1;
        }
    };
    check(lose_record, "P1 (conservation)");
    let lose_bytes = |outcome: &mut Outcome| {
        if let Outcome::Sorted(run) = outcome {
            run.intervals.pop();
        }
    };
    check(lose_bytes, "P1 (conservation)");
    let forge_hash = |outcome: &mut Outcome| {
        if let Outcome::Merged(part) = outcome {
            part.kept.hash ^= 1;
        }
    };
    check(forge_hash, "P1 (conservation) is broken at the commit");
    let overlap = |outcome: &mut Outcome| {
        if let Outcome::Merged(part) = outcome {
            part.last_key = vec![9];
        }
    };
    check(overlap, "P2 (order)");
    let elsewhere = |outcome: &mut Outcome| {
        if let Outcome::Sorted(run) = outcome {
            run.url = "/etc/passwd".to_owned();
        }
    };
    check(elsewhere, "not below the job's scratch");
    let foreign_object = |outcome: &mut Outcome| {
        if let Outcome::Sorted(run) = outcome {
            run.intervals[0].object = 7;
        }
    };
    check(foreign_object, "not of split");
    let other_upload = |outcome: &mut Outcome| {
        if let Outcome::Merged(part) = outcome {
            part.upload.push('x');
        }
    };
    check(other_upload, "upload");
}

#[test]
fn a_gap_between_runs_is_found_at_the_barrier() {
    // Lines: a run may say that its split's last interval ended early, and only all runs together
    // show the gap.
    let mut world = world(2);
    world.lies = |outcome| {
        if let Outcome::Sorted(run) = outcome
            && let Some(last) = run.intervals.last_mut()
        {
            last.end -= 1;
            run.input.bytes = run.intervals.iter().map(|interval| interval.len()).sum();
            run.kept = run.input;
        }
    };
    let mut spec = spec("j1");
    spec.sort = muster_kernel::spec::SortSpec::new(muster_kernel::format::Format::lines(b'\n'));
    world.submit(spec);
    assert_eq!(world.settle("j1"), JobState::Failed);
    let error = error_of(&mut world);
    assert!(error.contains("were not read") && error.contains("file:///in/0"), "{error}");
}

#[test]
fn reports_are_worth_what_they_are() {
    let mut world = holding(Phase::Sort);
    let run = world.held_run("w1");
    let outcome = world.result(&run);
    let w1 = worker("w1");
    // On its way into the journal: the repeat waits for the same record.
    world.journal_holds = true;
    let first = world.report(&w1, &job("j1"), run.attempt, outcome.clone());
    let second = world.report(&w1, &job("j1"), run.attempt, outcome.clone());
    world.pump();
    assert_eq!(
        (reply_to(&world, first), reply_to(&world, second)),
        ("nothing", "nothing"),
        "nothing is told before it is durable"
    );
    world.acknowledge_held();
    assert_eq!((reply_to(&world, first), reply_to(&world, second)), ("recorded", "recorded"));
    let third = world.report(&w1, &job("j1"), run.attempt, outcome.clone());
    world.pump();
    assert_eq!(reply_to(&world, third), "recorded", "a repeat of what stands");
    // Another attempt of the committed task, of a job that nobody knows, of another phase.
    let mut check = |job_id: &str, change: fn(&mut AttemptId), expected: &str| {
        let mut attempt = run.attempt;
        change(&mut attempt);
        let to = world.report(&w1, &job(job_id), attempt, outcome.clone());
        world.pump();
        assert_eq!(reply_to(&world, to), expected, "{attempt}");
    };
    check("j1", |attempt| attempt.nonce += 1, "revoked");
    check("j9", |_| {}, "revoked");
    check("j1", |attempt| attempt.task.phase = Phase::Merge, "revoked");
    check("j1", |attempt| attempt.task.index = 99, "revoked");
    check("j1", |attempt| attempt.generation = Generation(1), "revoked");
    assert_eq!(world.settle_after_finishing("j1"), JobState::Succeeded);
}

#[test]
fn reports_of_strangers_make_them_register() {
    let mut world = holding(Phase::Sort);
    let run = world.held_run("w1");
    let outcome = world.result(&run);
    world.worker_mut("w1").epoch = Epoch(9);
    let old_epoch = world.report(&worker("w1"), &job("j1"), run.attempt, outcome.clone());
    world.pump();
    assert_eq!(reply_to(&world, old_epoch), "reregister");
    world.worker_mut("w1").incarnation += 1;
    let other_life = world.report(&worker("w1"), &job("j1"), run.attempt, outcome);
    world.pump();
    assert_eq!(reply_to(&world, other_life), "reregister");
}

#[test]
fn a_report_of_the_wrong_phase_is_not_believed() {
    let mut world = holding(Phase::Sort);
    let run = world.held_run("w1");
    let to = world.report(
        &worker("w1"),
        &job("j1"),
        run.attempt,
        Outcome::UploadOpened { upload: "u".to_owned() },
    );
    world.pump();
    assert_eq!(reply_to(&world, to), "revoked");
    assert_eq!(world.machine.counters().violations, 1);
    assert_eq!(world.settle_after_finishing("j1"), JobState::Succeeded);
}

/// As large as a message may be, a report would make a record that no entry holds, and end the
/// leader that believes it.
#[test]
fn a_report_that_makes_too_large_a_record_is_refused() {
    let mut world = world(1);
    world.lies = |outcome| {
        if let Outcome::Sorted(run) = outcome {
            run.url = format!("{}/{}", run.url, "x".repeat(RECORD_BYTES_MAX));
        }
    };
    world.submit(spec("j1"));
    assert_eq!(world.settle("j1"), JobState::Failed);
    let error = error_of(&mut world);
    assert!(
        error.contains("cannot be true") && error.contains(&format!("limit is {RECORD_BYTES_MAX}")),
        "{error}"
    );
    assert!(world.machine.counters().violations >= 4);
}

#[test]
fn a_task_that_fails_again_and_again_fails_the_job() {
    let mut world = world(1);
    world.join("w2", 1);
    world.lies = |outcome| {
        if let Outcome::Sorted(_) = outcome {
            *outcome = Outcome::Failed {
                error: Error::new(ErrorKind::Exhausted, "no space left on device"),
            };
        }
    };
    world.submit(spec("j1"));
    assert_eq!(world.settle("j1"), JobState::Failed);
    let error = error_of(&mut world);
    assert!(
        error.contains("failed 4 times")
            && error.contains("worker w1 on host")
            && error.contains("no space left"),
        "{error}"
    );
    assert!(error.contains("worker w2"), "another worker is tried: {error}");
    assert_eq!(error.matches("no space left").count(), 1, "a cause is said once: {error}");
    assert!(world.status("j1").expect("status").retries >= 3);
}

#[test]
fn a_worker_that_keeps_failing_does_not_use_up_the_tries_while_another_is_busy() {
    let mut world = world(1);
    world.join("w2", 1);
    world.hold("w2", &[Phase::Sort]);
    world.worker_mut("w1").fails =
        Some(Error::new(ErrorKind::Exhausted, "no space left on device"));
    world.submit(spec("j1"));
    world.pass(60);
    let status = world.status("j1").expect("status");
    assert_eq!(status.error, None, "half of the tries are kept for w2");
    assert!(status.retries >= 1, "w1 was tried again: {}", status.retries);
    assert_eq!(world.settle_after_finishing("j1"), JobState::Succeeded);
}

#[test]
fn an_error_that_repeating_does_not_mend_fails_the_job_at_once() {
    let mut world = world(1);
    world.worker_mut("w1").fails = Some(Error::invalid("file:///in/0: malformed record at byte 7"));
    world.submit(spec("j1"));
    assert_eq!(world.settle("j1"), JobState::Failed);
    let error = error_of(&mut world);
    assert!(
        error.contains("sample-00000")
            && error.contains("worker w1")
            && error.contains("malformed record at byte 7"),
        "{error}"
    );
}

#[test]
fn a_failed_attempt_goes_elsewhere() {
    let mut world = world(1);
    world.join("w2", 1);
    world.worker_mut("w1").fails = Some(Error::retry("connection reset"));
    world.submit(spec("j1"));
    assert_eq!(world.settle("j1"), JobState::Succeeded);
    assert_eq!(world.status("j1").expect("status").retries, 1);
}

#[test]
fn one_process_for_each_worker_id() {
    let mut world = holding(Phase::Sort);
    assert_eq!(world.held("w1").len(), 2);
    // The old process was heard just now: whoever comes next may be a second one.
    world.tick(1000);
    let before = world.granted.len();
    world.join("w1", 2);
    assert!(said(&world, "is taken by a live process"), "{:#?}", world.log);
    // It is silent (it was killed) and suspect: the new one gets in at once, and the tasks go out
    // again.
    world.kill("w1");
    world.pass(4);
    assert!(said(&world, "worker-suspect"), "{:#?}", world.log);
    world.join("w1", 2);
    assert!(world.granted.len() >= before + 2, "{:#?}", world.log);
    assert_eq!(world.settle("j1"), JobState::Succeeded);
}

#[test]
fn the_leaders_own_pause_kills_nobody() {
    let mut world = holding(Phase::Sort);
    world.now_ms += 60_000;
    world.feed(Input::Tick);
    assert!(!said(&world, "worker-lost"));
    assert_eq!(world.settle_after_finishing("j1"), JobState::Succeeded);
    assert_eq!(world.status("j1").expect("status").retries, 0);
}

#[test]
fn the_leaders_own_disconnection_kills_nobody() {
    let mut world = holding(Phase::Sort);
    world.feed(Input::Connection { up: false });
    world.worker_mut("w1").dead = true;
    world.pass(30);
    world.feed(Input::Connection { up: true });
    world.worker_mut("w1").dead = false;
    world.pass(1);
    assert!(!said(&world, "worker-lost"));
    assert_eq!(world.settle_after_finishing("j1"), JobState::Succeeded);
}

#[test]
fn a_busy_worker_is_asked_again() {
    let mut world = World::new(config());
    world.join("w1", 1);
    world.worker_mut("w1").answers = Some(Ok(RunReply::Busy));
    world.submit(spec("j1"));
    assert_eq!(world.settle("j1"), JobState::Succeeded);
    assert_eq!(
        world.status("j1").expect("status").retries,
        0,
        "it never ran, so it does not count"
    );
}

#[test]
fn an_unanswered_order_is_repeated() {
    let mut world = World::new(config());
    world.join("w1", 1);
    world.worker_mut("w1").answers = Some(Err(Error::retry("no answer")));
    world.submit(spec("j1"));
    world.pass(1);
    assert_eq!(world.settle("j1"), JobState::Succeeded);
    let same = world.log.iter().filter(|line| line.contains("sample-00000 (a1)")).count();
    assert_eq!(same, 2, "the same attempt is ordered twice: {:#?}", world.log);
}

#[test]
fn an_attempt_that_its_worker_forgot_is_lost() {
    let mut world = holding(Phase::Sort);
    world.hold("w1", &[]);
    world.forget_held("w1");
    world.pass(10);
    assert!(said(&world, "no longer knows of the attempt"));
    assert_eq!(world.settle("j1"), JobState::Succeeded);
}

#[test]
fn a_worker_that_leaves_hands_its_attempts_back() {
    let mut world = holding(Phase::Sort);
    world.leave("w1");
    assert!(
        world
            .status("j1")
            .expect("status")
            .waiting_for
            .is_some_and(|what| what.contains("workers"))
    );
    world.join("w2", 1);
    assert_eq!(world.settle("j1"), JobState::Succeeded);
    assert_eq!(world.status("j1").expect("status").retries, 0);
}

#[test]
fn a_draining_worker_gets_no_more() {
    let mut world = holding(Phase::Sort);
    world.feed(Input::Drain { to: ReplyTo(900), worker: worker("w1") });
    world.hold("w1", &[]);
    world.finish("w1");
    assert_eq!(world.status("j1").expect("status").tasks_done, 2);
    world.join("w2", 1);
    assert_eq!(world.settle("j1"), JobState::Succeeded);
}

#[test]
fn an_upload_that_cannot_be_aborted_holds_its_task_back() {
    let mut world = holding(Phase::Merge);
    world.open_uploads("w1");
    world.kill("w1");
    world
        .store_fails
        .entry("abort")
        .or_default()
        .extend([Error::retry("away"), Error::retry("away")]);
    world.join("w2", 2);
    world.pass(8);
    let aborts = world.log.iter().filter(|line| line.contains("abort the upload of")).count();
    assert!(aborts >= 3, "{:#?}", world.log);
    assert_eq!(world.settle("j1"), JobState::Succeeded);
    assert!(world.uploads.is_empty());
}

#[test]
fn an_upload_that_may_not_be_taken_back_fails_the_job() {
    let mut world = holding(Phase::Merge);
    world.open_uploads("w1");
    world.kill("w1");
    world.store_fails.entry("abort").or_default().push_back(Error::invalid("AccessDenied"));
    world.join("w2", 2);
    assert_eq!(world.settle("j1"), JobState::Failed);
    let error = error_of(&mut world);
    assert!(
        error.contains("merge-") && error.contains("cannot be taken back: AccessDenied"),
        "{error}"
    );
}

#[test]
fn what_could_not_be_removed_is_told_of_an_ended_job() {
    let mut world = world(2);
    world.unremoved.note(&"file:///out-j1/_muster/x", &Error::invalid("AccessDenied"));
    world.submit(spec("j1"));
    assert_eq!(world.settle("j1"), JobState::Succeeded);
    let status = world.status("j1").expect("status");
    assert!(status.cleaned && status.warnings.len() == 1, "{:?}", status.warnings);
    assert!(
        status.warnings[0].contains("not removed")
            && status.warnings[0].contains("_muster/x (AccessDenied)")
    );
}

#[test]
fn publishing_is_repeated_while_the_store_is_away() {
    let mut world = world(2);
    world.store_fails.entry("publish").or_default().extend((0..8).map(|_| Error::retry("503")));
    world.submit(spec("j1"));
    assert_eq!(world.settle("j1"), JobState::Succeeded);
}

#[test]
fn a_commit_that_cannot_be_carried_out_ends_with_its_cause() {
    let mut world = world(2);
    let gone =
        || Error::new(ErrorKind::NotFound, "file:///out-j1/part-00001.dat: the upload is gone");
    world.store_fails.entry("publish").or_default().extend((0..20).map(|_| gone()));
    world.submit(spec("j1"));
    assert_eq!(world.settle("j1"), JobState::Failed);
    let error = error_of(&mut world);
    assert!(
        error.contains("OUTPUT has no whole result") && error.contains("part-00001"),
        "{error}"
    );
}

/// What OUTPUT does not allow is seen before the commit is decided: nothing has changed there, and
/// nothing is left.
#[test]
fn a_commit_that_cannot_be_made_visible_is_not_decided() {
    let mut world = world(2);
    let foreign = || Error::invalid("file:///out-j1/part-00001.dat has come into OUTPUT since");
    world.store_fails.entry("prepare").or_default().extend([Error::retry("503"), foreign()]);
    world.submit(spec("j1"));
    assert_eq!(world.settle("j1"), JobState::Failed);
    let error = error_of(&mut world);
    assert!(error.contains("part-00001") && !error.contains("the commit is decided"), "{error}");
    assert!(world.publications.is_empty() && world.uploads.is_empty() && world.objects.is_empty());
    let decided =
        world.journal.iter().any(|(_, entry)| matches!(entry.record, Record::CommitDecided { .. }));
    assert!(!decided, "no record says so");
}

#[test]
fn a_commit_that_is_being_prepared_can_be_cancelled() {
    let mut world = world(2);
    world.store_fails.entry("prepare").or_default().extend((0..1000).map(|_| Error::retry("503")));
    world.submit(spec("j1"));
    world.pass(5);
    assert_eq!(world.status("j1").expect("status").state, JobState::Merging);
    world.cancel("j1");
    assert_eq!(world.settle("j1"), JobState::Cancelled);
    assert!(world.publications.is_empty() && world.uploads.is_empty() && world.objects.is_empty());
}

#[test]
fn a_commit_that_the_store_refuses_for_too_long_ends_with_its_cause() {
    let mut config = config();
    config.phases.commit_ms = 20_000;
    let mut world = World::new(config);
    world.join("w1", 2);
    world
        .store_fails
        .entry("publish")
        .or_default()
        .extend((0..1000).map(|_| Error::retry("503 of the store")));
    world.submit(spec("j1"));
    world.pass(15);
    assert_eq!(world.status("j1").expect("status").state, JobState::Committing, "it may pass yet");
    assert_eq!(world.settle("j1"), JobState::Failed);
    let error = error_of(&mut world);
    for part in ["OUTPUT has no whole result", "phases.commit_ms", "503 of the store"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert!(
        world.uploads.is_empty() && world.objects.is_empty(),
        "{:?} {:?}",
        world.uploads,
        world.objects
    );
}

#[test]
fn the_leaders_own_absence_does_not_end_a_commit() {
    let mut config = config();
    config.phases.commit_ms = 20_000;
    let mut world = World::new(config);
    world.join("w1", 2);
    world.store_fails.entry("publish").or_default().extend((0..4).map(|_| Error::retry("503")));
    world.submit(spec("j1"));
    world.now_ms += 60_000;
    world.feed(Input::Tick);
    assert_eq!(world.settle("j1"), JobState::Succeeded);
}

#[test]
fn a_clean_up_that_fails_for_too_long_is_given_up_and_its_output_is_free() {
    let mut config = config();
    config.phases.clean_ms = 20_000;
    let mut world = World::new(config);
    world.join("w1", 2);
    world
        .store_fails
        .entry("clean")
        .or_default()
        .extend((0..1000).map(|_| Error::retry("access to /out-j1 denied")));
    world.submit(spec("j1"));
    world.pass(15);
    assert!(!world.status("j1").expect("status").cleaned, "it may pass yet");
    assert_eq!(world.settle("j1"), JobState::Succeeded);
    for part in
        ["clean-up-given-up", "phases.clean_ms", "access to /out-j1 denied", "doctor --mend"]
    {
        assert!(said(&world, part), "{part}: {:#?}", world.log);
    }
    assert!(!said(&world, "unfinished uploads are gone"), "nobody knows that");
    world.store_fails.clear();
    let mut again = spec("j2");
    again.output = "/out-j1".to_owned();
    world.submit(again);
    assert_eq!(world.settle("j2"), JobState::Succeeded);
}

#[test]
fn a_job_waits_as_its_own_settings_say() {
    let slowly = |kind: &str| {
        format!(
            "[retry.{kind}]\nstrategy = \"fixed\"\npause_ms = 30000\npause_max_ms = 30000\n\
             jitter_percent = 0\n"
        )
    };
    let begin = |kind: &str, step: &'static str| {
        let mut world = world(2);
        let mut spec = spec("j1");
        spec.settings = Some(slowly(kind));
        if step == "task" {
            world.worker_mut("w1").fails = Some(Error::retry("once"));
        } else {
            world.store_fails.entry(step).or_default().push_back(Error::retry("once"));
        }
        world.submit(spec);
        world
    };
    for (kind, step) in
        [("store", "choose"), ("store", "publish"), ("store", "clean"), ("task", "task")]
    {
        let mut world = begin(kind, step);
        world.pass(28);
        assert!(
            !world.status("j1").expect("status").cleaned,
            "{kind} of {step}: the usual pause is short"
        );
        world.pass(8);
        assert_eq!(world.settle("j1"), JobState::Succeeded, "{kind} of {step}");
        assert!(world.now_ms < 50_000, "{kind} of {step}: {} ms", world.now_ms);
    }
}

#[test]
fn a_job_without_workers_ends() {
    let mut world = World::new(config());
    world.submit(spec("j1"));
    for _ in 0..110 {
        world.tick(2_400);
        world.tick(600);
    }
    assert_eq!(world.settle("j1"), JobState::Failed);
    let error = error_of(&mut world);
    assert!(error.contains("no worker") && error.contains("phases.register_ms"), "{error}");
}

#[test]
fn a_phase_that_does_not_move_ends() {
    let mut config = config();
    config.phases.sort_ms = 20_000;
    let mut world = World::new(config);
    world.join("w1", 1);
    world.hold("w1", &[Phase::Sort]);
    world.submit(spec("j1"));
    world.pass(25);
    assert_eq!(world.settle("j1"), JobState::Failed);
    assert!(error_of(&mut world).contains("phases.sort_ms"));
}

#[test]
fn a_shuffle_barrier_that_the_store_holds_up_has_a_bound_of_its_own() {
    let mut config = config();
    config.phases.shuffle_ms = 20_000;
    let mut world = World::new(config);
    world.join("w1", 1);
    world.hold("w1", &[Phase::Sort]);
    world.submit(spec("j1"));
    world.store_fails.entry("write").or_default().extend((0..1000).map(|_| Error::retry("503")));
    world.hold("w1", &[]);
    world.finish("w1");
    assert_eq!(world.settle("j1"), JobState::Failed);
    let error = error_of(&mut world);
    assert!(error.contains("phases.shuffle_ms") && error.contains("503"), "{error}");
}

#[test]
fn no_new_jobs_while_the_journal_is_stalled() {
    let mut world = world(1);
    world.feed(Input::JournalStalled { why: Some("full".to_owned()) });
    let to = world.submit(spec("j1"));
    assert_eq!(world.refusal(to).map(|(code, _)| code), Some(503));
    world.feed(Input::JournalStalled { why: None });
    world.submit(spec("j1"));
    assert_eq!(world.settle("j1"), JobState::Succeeded);
}

#[test]
fn a_job_that_is_being_planned_says_which_store_it_waits_for() {
    let mut world = world(1);
    world.store_holds = true;
    world.submit(JobSpec { output: "s3://data/out".to_owned(), ..spec("j1") });
    let waits = |world: &mut World| world.status("j1").expect("it is being planned").waiting_for;
    assert_eq!(waits(&mut world), None);
    let away =
        |store: &str| Input::StoresAway { away: vec![(store.to_owned(), "refused".to_owned())] };
    world.feed(away("s3://dat"));
    assert_eq!(waits(&mut world), None, "that of another job");
    world.feed(away("s3://data"));
    assert_eq!(waits(&mut world).as_deref(), Some("store s3://data: refused"));
    world.feed(Input::StoresAway { away: Vec::new() });
    assert_eq!(waits(&mut world), None);
}

#[test]
fn what_no_wait_mends_refuses_a_job_at_once() {
    let mut world = world(1);
    world
        .store_fails
        .entry("write")
        .or_default()
        .push_back(Error::setup("nobody knows the name store"));
    let to = world.submit(spec("j1"));
    assert_eq!(world.refusal(to), Some((400, "nobody knows the name store".to_owned())));
}

#[test]
fn ended_jobs_are_forgotten_in_order() {
    let mut config = config();
    config.journal.ended_jobs_max = 2;
    let mut world = World::new(config);
    world.join("w1", 4);
    for id in ["a", "b", "c", "d"] {
        world.submit(spec(id));
        assert_eq!(world.settle(id), JobState::Succeeded);
    }
    let known = |world: &World| -> Vec<String> {
        world.machine.durable().jobs.keys().map(ToString::to_string).collect()
    };
    assert_eq!(
        known(&world),
        ["a", "b", "c", "d"],
        "each is swept once more before it is forgotten"
    );
    let late_ms = world.config.store.late_sweep_ms;
    world.tick(late_ms);
    world.pass(61);
    assert_eq!(known(&world), ["c", "d"]);
    assert_eq!(world.log.iter().filter(|line| line.contains("came late")).count(), 4);
}

/// A world whose job has ended, been cleaned, and been given something since.
fn late_leftovers() -> (World, String) {
    let mut world = world(2);
    world.submit(spec("j1"));
    assert_eq!(world.settle("j1"), JobState::Succeeded);
    let scratch = world.machine.durable().jobs[&job("j1")].submitted.scratch.clone();
    let late = format!("{scratch}/sort-00000.g0.e1.0000000000000001.run");
    world.objects.insert(late.clone(), vec![1]);
    (world, late)
}

#[test]
fn what_comes_after_the_clean_up_goes_with_a_late_sweep() {
    let (mut world, late) = late_leftovers();
    let late_ms = world.config.store.late_sweep_ms;
    world.tick(late_ms - 1);
    assert!(world.objects.contains_key(&late));
    world.store_fails.entry("sweep").or_default().push_back(Error::retry("away"));
    world.tick(1);
    assert!(world.objects.contains_key(&late), "the store was away");
    world.pass(20);
    assert!(!world.objects.contains_key(&late) && said(&world, "late-leftovers"));
    let sweeps = |world: &World| world.log.iter().filter(|line| line.contains("came late")).count();
    let before = sweeps(&world);
    world.pass(20);
    assert_eq!(sweeps(&world), before, "once is enough");
}

#[test]
fn a_new_leader_looks_over_the_clean_up_of_the_one_before() {
    let (mut world, late) = late_leftovers();
    world.crash();
    world.pass(1);
    let late_ms = world.config.store.late_sweep_ms;
    world.tick(late_ms);
    assert!(!world.objects.contains_key(&late));
}

#[test]
fn a_late_sweep_gives_up_and_lets_the_job_be_forgotten() {
    let (mut world, late) = late_leftovers();
    let away = || Error::retry("away");
    world.store_fails.entry("sweep").or_default().extend((0..100).map(|_| away()));
    let late_ms = world.config.store.late_sweep_ms;
    world.tick(late_ms);
    world.pass(60);
    assert!(world.objects.contains_key(&late) && said(&world, "late-sweep-failed"));
    assert!(!world.machine.flow.sweeps());
}

#[test]
fn waiting_for_the_store_does_not_count_towards_giving_up_a_commit() {
    let mut world = world(2);
    let fails = world.store_fails.entry("publish").or_default();
    fails.extend((0..10).map(|_| Error::retry("503")));
    fails.extend(
        (1..crate::job::flow::stages::HOPELESS_TRIES_MAX).map(|_| Error::corrupt("flipped")),
    );
    world.submit(spec("j1"));
    assert_eq!(world.settle("j1"), JobState::Succeeded);
}

#[test]
fn a_compacted_journal_folds_to_the_same_state() {
    let mut world = world(1);
    world.join("w2", 1);
    world.hold("w2", &[Phase::Merge]);
    world.submit(spec("j1"));
    world.open_uploads("w2");
    world.kill("w2");
    world.pass(6);
    world.submit(spec("j2"));
    world.cancel("j2");
    assert_eq!(world.settle("j1"), JobState::Succeeded);
    let mut fold = Fold::default();
    for (_, entry) in &world.journal {
        fold.push(entry.clone());
        let (durable, _) = std::mem::take(&mut fold).finish();
        let mut again = Fold::default();
        for record in compact(&durable) {
            again.push(Entry { epoch: durable.epoch, nonce: 0, record });
        }
        let (compacted, refused) = again.finish();
        assert_eq!(
            (compacted, refused),
            (durable.clone(), Vec::new()),
            "after {}",
            entry.record.kind()
        );
        fold = Fold::from(durable);
    }
}

#[test]
fn illegal_records_are_refused_and_counted() {
    let mut world = holding(Phase::Sort);
    let mut durable = world.machine.durable().clone();
    let before = durable.clone();
    let check = |durable: &mut crate::job::ledger::durable::Durable, record: Record| {
        assert!(durable.apply(&record).is_err(), "{record:?}");
    };
    let attempt = AttemptId {
        task: TaskId { phase: Phase::Merge, index: 0 },
        generation: Generation(0),
        epoch: Epoch(1),
        nonce: 1,
    };
    let decided = |job| {
        let manifest = BlobRef { url: "file:///m".to_owned(), bytes: 1, digest: 2 };
        Record::CommitDecided { job, took_ms: 0, manifest }
    };
    check(&mut durable, decided(job("j1")));
    check(&mut durable, Record::JobCleaned { job: job("j1") });
    check(&mut durable, Record::JobForgotten { job: job("j1") });
    check(&mut durable, Record::EpochBegan { epoch: Epoch(1), nonce: 0 });
    check(&mut durable, Record::UploadRevoked { job: job("j1"), partition: 0, attempt });
    check(
        &mut durable,
        Record::UploadOpened { job: job("j1"), partition: 0, attempt, upload: "u".to_owned() },
    );
    check(
        &mut durable,
        Record::BoundariesChosen { job: job("j1"), splitters: None, partitions: 1, took_ms: 0 },
    );
    check(&mut durable, decided(job("nobody")));
    assert_eq!(durable, before, "a refused record changes nothing");
    world.feed(Input::Appended { token: 12_345, sequence: 1 });
    assert_eq!(world.machine.counters().violations, 1);
}

/// 100,000 tasks: the cost of a step does not grow with their number.
#[test]
fn a_hundred_thousand_tasks_are_led() {
    let mut config = config();
    config.journal.snapshot_after = 50_000;
    let mut world = World::new(config);
    world.checks = false;
    world.listing = listing(&[10_000_000]);
    world.join("w1", 64);
    let mut spec = spec("j1");
    spec.sizing.split_bytes = Some(2_000);
    spec.sizing.partitions = Some(50_000);
    world.submit(spec);
    assert_eq!(world.settle("j1"), JobState::Succeeded, "{}", error_of(&mut world));
    assert_eq!(world.granted.len(), 150_000);
}
