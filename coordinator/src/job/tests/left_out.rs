//! Malformed records, second scratches, settings of one job, and what people are told in the end.

use muster_kernel::proof::Sums;
use muster_protocol::api::JobState;
use muster_protocol::ids::Phase;
use muster_protocol::plan::{BadInputs, BadRecords};
use muster_protocol::wire::{BadRecord, BlobRef, Outcome};
use muster_protocol::{Error, ErrorKind};

use super::world::{World, config, job, listing, spec};
use crate::journal::fold::{Fold, compact};
use crate::journal::record::Entry;

/// What each split of the fakes below leaves out.
const BAD: Sums = Sums { records: 1, bytes: 10, hash: 1 };

fn world() -> World {
    let mut world = World::new(config());
    world.join("w1", 1);
    world.join("w2", 1);
    world
}

/// One record of each of the three splits is malformed.
fn leave_out(outcome: &mut Outcome) {
    match outcome {
        Outcome::Sorted(run) => {
            run.skipped = BAD;
            run.kept = run.input.minus(&BAD);
            let bad = BadRecord { object: 0, offset: 30, bytes: 10, reason: "no key".to_owned() };
            run.bad_records = vec![bad];
        }
        Outcome::Merged(part) if part.first_key == [0, 0, 0, 0] => {
            part.kept = part.kept.minus(&Sums { records: 3, bytes: 30, hash: 3 });
            part.bytes -= 30;
        }
        _ => {}
    }
}

fn keep_aside(outcome: &mut Outcome) {
    leave_out(outcome);
    if let Outcome::Sorted(run) = outcome {
        let url = run.url.replace(".run", ".bad.jsonl");
        run.quarantine = Some(BlobRef { url, bytes: 55, digest: 9 });
    }
}

fn end(policy: BadRecords, lies: fn(&mut Outcome)) -> (World, JobState) {
    let mut world = world();
    world.lies = lies;
    let mut spec = spec("j1");
    spec.bad_records = policy;
    world.submit(spec);
    let state = world.settle("j1");
    (world, state)
}

fn error_of(world: &mut World) -> String {
    world.status("j1").and_then(|status| status.error).unwrap_or_default()
}

#[test]
fn malformed_records_are_quarantined_with_the_commit() {
    let (mut world, state) = end(BadRecords::Quarantine, keep_aside);
    assert_eq!(state, JobState::Succeeded, "{}", error_of(&mut world));
    let publication = &world.publications[&job("j1")];
    let places: Vec<&str> = publication.quarantine.iter().map(|(_, to)| to.key()).collect();
    assert_eq!(
        places,
        ["00000", "00001", "00002"].map(|at| format!("out-j1/_quarantine/split-{at}.jsonl"))
    );
    assert!(publication.quarantine.iter().all(|(from, _)| from.url.ends_with(".bad.jsonl")));
    let manifest = world.manifest("j1");
    assert_eq!(
        (manifest.skipped.records, manifest.sums.records, manifest.input.records),
        (3, 297, 300)
    );
    assert_eq!(manifest.quarantine[1].name, "_quarantine/split-00001.jsonl");
    let place = &manifest.bad_records[0];
    assert_eq!(
        (place.object.as_str(), place.offset, place.reason.as_str()),
        ("file:///in/0", 30, "no key")
    );
    assert_eq!(world.status("j1").expect("status").skipped.records, 3, "also when it is history");
}

/// A job that has left records out, and has met with trouble on the way; its coordinator is killed
/// before effect `crash_at`, and the store is away when it is to be published.
fn take_over(crash_at: Option<u64>) -> World {
    let mut world = World::new(config());
    world.lies = leave_out;
    world.crash_at = crash_at;
    world.join("w1", 1);
    world.join("w2", 1);
    world.worker_mut("w2").fails = Some(Error::retry("connection reset"));
    world
        .store_fails
        .entry("publish")
        .or_default()
        .extend([Error::retry("503"), Error::retry("503")]);
    let mut spec = spec("j1");
    spec.bad_records = BadRecords::Skip;
    world.submit(spec);
    world
}

/// Whoever publishes, and however often it is tried, publishes the same manifest (the world
/// compares them), and it names what was left out.
#[test]
fn a_take_over_loses_no_malformed_record_and_changes_no_manifest() {
    let mut calm = take_over(None);
    assert_eq!(calm.settle("j1"), JobState::Succeeded, "{}", error_of(&mut calm));
    assert_eq!(calm.manifest("j1").bad_records.len(), 3);
    assert!(
        !calm.manifest("j1").recoveries.is_empty(),
        "its leader knows of trouble that the next would not"
    );
    for at in 0..calm.effects {
        let mut world = take_over(Some(at));
        assert_eq!(world.settle("j1"), JobState::Succeeded, "crash before effect {at}");
        assert_eq!(
            world.manifest("j1").bad_records,
            calm.manifest("j1").bad_records,
            "crash before effect {at}"
        );
    }
}

/// However many runs leave records out, and in whichever order they are committed, the journal's
/// state holds those that the job names, and hardly more.
#[test]
fn malformed_records_that_are_kept_are_bounded_and_the_first() {
    let mut world = world();
    world.listing = listing(&[3000]);
    world.checks = false;
    world.lies = |outcome| {
        leave_out(outcome);
        if let Outcome::Sorted(run) = outcome {
            let (first, bad) = (run.intervals[0].begin, Sums { records: 7, bytes: 70, hash: 7 });
            (run.skipped, run.kept) = (bad, run.input.minus(&bad));
            let bad = |at: u64| BadRecord {
                object: 0,
                offset: first + 10 * at,
                bytes: 10,
                reason: "x".repeat(1024),
            };
            // A worker says them in whichever order it likes.
            run.bad_records = (0..7).rev().map(bad).collect();
        }
    };
    world.hold("w1", &[Phase::Sort, Phase::Merge]);
    world.hold("w2", &[Phase::Sort, Phase::Merge]);
    let mut spec = spec("j1");
    (spec.bad_records, spec.sizing.split_bytes) = (BadRecords::Skip, Some(1000));
    world.submit(spec);
    let offsets = |world: &World| -> Vec<u64> {
        world.machine.durable().jobs[&job("j1")]
            .bad_records
            .values()
            .flatten()
            .map(|bad| bad.offset)
            .collect()
    };
    let expected = |splits: &[u64]| -> Vec<u64> {
        splits.iter().flat_map(|split| (0..7).map(move |at| 1000 * split + 10 * at)).collect()
    };
    world.finish("w2");
    assert_eq!(offsets(&world), expected(&[1]));
    // The others, the last first.
    for committed in 1..30 {
        assert_eq!(world.machine.durable().jobs[&job("j1")].runs.len(), committed);
        let id =
            if world.held("w1").iter().max() > world.held("w2").iter().max() { "w1" } else { "w2" };
        world.finish(id);
    }
    assert_eq!(offsets(&world), expected(&[0, 1, 2]));
    let places = world.status("j1").expect("status").bad_records;
    let named: Vec<u64> = places.iter().map(|place| place.offset).collect();
    assert_eq!(named, expected(&[0, 1, 2])[..20]);
    let (durable, mut fold) = (world.machine.durable().clone(), Fold::default());
    for record in compact(&durable) {
        fold.push(Entry { epoch: durable.epoch, nonce: 0, record });
    }
    assert_eq!(fold.finish(), (durable, Vec::new()), "a snapshot keeps them");
}

#[test]
fn what_is_left_out_must_be_allowed_and_conserve() {
    let check = |policy: BadRecords, lies: fn(&mut Outcome), expected: &str| {
        let (mut world, state) = end(policy, lies);
        let error = error_of(&mut world);
        assert_eq!(state == JobState::Succeeded, expected.is_empty(), "{expected}: {error}");
        assert!(error.contains(expected), "{expected}: {error}");
        assert_eq!(
            world.publications.contains_key(&job("j1")),
            expected.is_empty(),
            "a failed job quarantines nothing"
        );
    };
    check(BadRecords::Skip, leave_out, "");
    check(BadRecords::Fail, leave_out, "fails at the first");
    check(BadRecords::Quarantine, leave_out, "kept them aside: false");
    check(BadRecords::Skip, keep_aside, "kept them aside: true");
    let elsewhere = |outcome: &mut Outcome| {
        keep_aside(outcome);
        if let Outcome::Sorted(run) = outcome
            && let Some(lines) = &mut run.quarantine
        {
            lines.url = "file:///etc/passwd".to_owned();
        }
    };
    check(BadRecords::Quarantine, elsewhere, "malformed records at file:///etc/passwd");
    let forge = |outcome: &mut Outcome| {
        leave_out(outcome);
        if let Outcome::Sorted(run) = outcome {
            run.skipped.hash ^= 4;
        }
    };
    check(BadRecords::Skip, forge, "P1 (conservation)");
}

/// 100,000 objects of which 10,000 cannot be read: neither what a leader looks at nor what it sends
/// grows with their product.
#[test]
fn ten_thousand_objects_of_a_hundred_thousand_are_left_out() {
    const OBJECTS: u32 = 100_000;
    let mut world = World::new(config());
    world.checks = false;
    world.listing = listing(&vec![1; OBJECTS as usize]);
    // The first of each split, and another, so that a split is committed and given up between the
    // two of its neighbour.
    world.broken =
        (0..OBJECTS).step_by(10).map(|at| (at, Error::new(ErrorKind::NotFound, "gone"))).collect();
    world.join("w1", 8);
    let mut spec = spec("j1");
    (spec.bad_inputs, spec.sizing.split_bytes) = (BadInputs::Skip, Some(1005));
    world.submit(spec);
    assert_eq!(world.settle("j1"), JobState::Succeeded, "{}", error_of(&mut world));
    assert_eq!(world.manifest("j1").skipped_objects.len(), 10_000);
    let splits = world.machine.durable().jobs[&job("j1")].submitted.splits;
    let looked_at = world.machine.tally().intervals_looked_at;
    assert!(
        looked_at < 4 * u64::from(OBJECTS),
        "{looked_at} pieces of {splits} runs were looked at"
    );
    // A split of about a hundred objects has at most eleven of those, and the list grows by one
    // each time.
    let skips_max = world.skips.iter().max().copied().unwrap_or(0);
    assert!((10..=12).contains(&skips_max), "an order carries {skips_max} omissions");
}

#[test]
fn a_torn_last_record_is_one_that_may_be_left_out() {
    let mut torn = listing(&[150, 150]);
    torn.objects[1].bytes += 7;
    let mut world = world();
    world.listing = torn;
    world.lies = |outcome| {
        if let Outcome::Sorted(run) = outcome
            && run.input.bytes % 10 == 7
        {
            run.skipped = Sums { records: 1, bytes: 7, hash: 0 };
            run.input.records += 1;
        }
        if let Outcome::Sorted(run) = outcome {
            run.kept = run.input.minus(&run.skipped);
        }
        if let Outcome::Merged(part) = outcome {
            part.bytes = part.kept.bytes;
        }
    };
    let mut spec = spec("j1");
    let to = world.submit(spec.clone());
    assert!(
        world.refusal(to).is_some_and(|(_, text)| text.contains("--bad-records skip")),
        "named, with a way out"
    );
    spec.bad_records = BadRecords::Skip;
    world.submit(spec);
    assert_eq!(world.settle("j1"), JobState::Succeeded, "{}", error_of(&mut world));
    assert_eq!(world.status("j1").expect("status").skipped, Sums { records: 1, bytes: 7, hash: 0 });
}

#[test]
fn runs_may_lie_in_a_second_scratch() {
    let end = |lies: fn(&mut Outcome)| {
        let mut world = world();
        world.lies = lies;
        let mut spec = spec("j1");
        spec.replica = Some("/replica".to_owned());
        world.submit(spec);
        (world.settle("j1"), error_of(&mut world), world.replicas_cleaned)
    };
    let both = |outcome: &mut Outcome| {
        if let Outcome::Sorted(run) = outcome {
            run.replica = Some(run.url.replace("/out-j1/", "/replica/"));
        }
    };
    let (state, error, cleaned) = end(both);
    assert_eq!(
        (state, cleaned),
        (JobState::Succeeded, vec!["file:///replica/_muster/d1/j1".to_owned()]),
        "{error}"
    );
    let elsewhere = |outcome: &mut Outcome| {
        if let Outcome::Sorted(run) = outcome {
            run.replica = Some("file:///elsewhere".to_owned());
        }
    };
    let (state, error, _) = end(elsewhere);
    assert!(state == JobState::Failed && error.contains("second scratch"), "{error}");
    for place in ["/out-j1", "/out-j1/below"] {
        let mut world = world();
        let mut spec = spec("j1");
        spec.replica = Some(place.to_owned());
        let to = world.submit(spec);
        assert!(
            world.refusal(to).is_some_and(|(code, text)| code == 400 && text.contains("--replica")),
            "{place}"
        );
    }
}

#[test]
fn a_job_that_fails_leaves_its_history_as_a_dead_letter() {
    let mut world = world();
    world.lies = |outcome| {
        if let Outcome::Sorted(_) = outcome {
            *outcome = Outcome::Failed {
                error: Error::retry("connection reset at byte 7 of file:///in/0"),
            };
        }
    };
    world.submit(spec("j1"));
    assert_eq!(world.settle("j1"), JobState::Failed);
    assert_eq!(world.letters.len(), 1);
    let letter = &world.letters[0];
    assert!(letter.job == job("j1") && letter.error.contains("failed 4 times"), "{letter:?}");
    let of_task =
        letter.attempts.iter().filter(|attempt| letter.error.contains(&attempt.task)).count();
    assert_eq!(of_task, 4, "every attempt of the task that failed: {letter:?}");
    assert!(
        letter.attempts.iter().all(|attempt| attempt.kind == "retry" && attempt.unix_ms.is_some()),
        "{letter:?}"
    );
    assert!(
        letter
            .attempts
            .iter()
            .any(|attempt| attempt.error.contains("on host: connection reset at byte 7"))
    );
    let given_up: u32 =
        world.status("j1").expect("status").recoveries.iter().map(|kind| kind.given_up).sum();
    assert!(given_up >= 4, "{given_up}");
}

#[test]
fn how_troubles_were_got_over_is_told_at_the_end() {
    let mut world = world();
    world.worker_mut("w1").fails = Some(Error::retry("connection reset"));
    world.submit(spec("j1"));
    assert_eq!(world.settle("j1"), JobState::Succeeded);
    let told = world.status("j1").expect("status").recoveries;
    let figures: Vec<_> = told
        .iter()
        .map(|one| (one.kind.as_str(), one.attempts, one.recovered, one.given_up))
        .collect();
    assert_eq!(figures, [("attempt-failed", 1, 1, 0)]);
    assert_eq!(world.manifest("j1").recoveries, told);
}

#[test]
fn a_job_may_have_its_own_settings() {
    let mut world = world();
    let mut foreign = spec("j0");
    foreign.settings = Some("[journal]\nreplicas = 3\n".to_owned());
    let to = world.submit(foreign);
    assert!(
        world
            .refusal(to)
            .is_some_and(|(code, text)| code == 400 && text.contains("no setting of one job"))
    );
    world.lies = |outcome| {
        if let Outcome::Sorted(_) = outcome {
            *outcome = Outcome::Failed { error: Error::retry("no luck") };
        }
    };
    let mut own = spec("j1");
    own.settings = Some("[tasks]\nattempts_max = 2\n".to_owned());
    world.submit(own);
    assert_eq!(world.settle("j1"), JobState::Failed);
    assert!(error_of(&mut world).contains("failed 2 times"));
}

#[test]
fn ended_jobs_are_forgotten_when_they_are_old() {
    let mut config = config();
    config.journal.ended_age_ms = 120_000;
    config.store.late_sweep_ms = 100_000;
    let mut world = World::new(config);
    world.join("w1", 1);
    world.submit(spec("j1"));
    assert_eq!(world.settle("j1"), JobState::Succeeded);
    world.pass(60);
    assert!(world.status("j1").is_some());
    for _ in 0..5 {
        world.tick(40_000);
    }
    assert!(world.status("j1").is_none() && world.replay().jobs.is_empty());
}
