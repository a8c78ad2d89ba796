//! Conversations as text. A line that begins with `>` is what happens; below it stands what the
//! machine asks for. `UPDATE_GOLDEN=1` writes what is said now.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use muster_protocol::ids::Phase;
use muster_protocol::plan::BadInputs;
use muster_protocol::{Error, ErrorKind};

use super::world::{World, config, spec};

fn check(name: &str) {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("src/job/tests/scripts")
        .join(format!("{name}.txt"));
    let golden = std::fs::read_to_string(&path).expect("script");
    let said = play(&golden);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &said).expect("write");
    } else {
        assert_eq!(said, golden, "{name}: the conversation has changed");
    }
}

fn play(script: &str) -> String {
    let mut world = World::new(config());
    let mut said = String::new();
    for line in script.lines() {
        let gap = if said.is_empty() { "" } else { "\n" };
        if line.starts_with('#') {
            writeln!(said, "{gap}{line}").expect("write");
        }
        let Some(command) = line.strip_prefix("> ") else { continue };
        world.log.clear();
        act(&mut world, command);
        writeln!(said, "{gap}> {command}").expect("write");
        for line in std::mem::take(&mut world.log) {
            writeln!(said, "  {line}").expect("write");
        }
    }
    said
}

fn act(world: &mut World, command: &str) {
    let words: Vec<&str> = command.split_whitespace().collect();
    match words.as_slice() {
        ["begin"] => world.pump(),
        ["join", id, slots] => world.join(id, slots.parse().expect("slots")),
        ["submit", id] => drop(world.submit(spec(id))),
        ["submit", id, "to", output] => {
            let mut spec = spec(id);
            spec.output = (*output).to_owned();
            world.submit(spec);
        }
        ["cancel", id] => drop(world.cancel(id)),
        ["hold", id, phases @ ..] => {
            world.hold(id, &phases.iter().map(|name| phase(name)).collect::<Vec<_>>());
        }
        ["finish", id] => world.finish(id),
        ["open", id] => world.open_uploads(id),
        ["finish-one", id] => world.finish_one(id),
        ["kill", id] => world.kill(id),
        ["wake", id] => world.wake(id),
        ["submit", id, "skipping", "inputs"] => {
            let mut spec = spec(id);
            spec.bad_inputs = BadInputs::Skip;
            world.submit(spec);
        }
        ["lose-run", id, split] => world.lose_run(id, split.parse().expect("split")),
        ["unreadable", object, text @ ..] => {
            world.broken.insert(
                object.parse().expect("object"),
                Error::new(ErrorKind::NotFound, text.join(" ")),
            );
        }
        ["leave", id] => world.leave(id),
        ["restart"] => {
            world.crash();
            world.pump();
        }
        ["pass", seconds] => world.pass(seconds.parse().expect("seconds")),
        ["fail", id, text @ ..] => {
            world.worker_mut(id).fails = Some(Error::retry(text.join(" ")));
        }
        ["store-away", kinds @ ..] => {
            for kind in kinds {
                world
                    .store_fails
                    .entry(kind.to_string().leak())
                    .or_default()
                    .push_back(Error::retry("503 SlowDown"));
            }
        }
        _ => panic!("no such command: {command}"),
    }
}

fn phase(name: &str) -> Phase {
    match name {
        "sample" => Phase::Sample,
        "sort" => Phase::Sort,
        "merge" => Phase::Merge,
        _ => panic!("no such phase: {name}"),
    }
}

#[test]
fn happy_path() {
    check("happy_path");
}

#[test]
fn a_worker_dies_in_each_phase() {
    check("worker_dies");
}

#[test]
fn the_coordinator_restarts_in_each_phase() {
    check("coordinator_restarts");
}

#[test]
fn jobs_are_cancelled() {
    check("cancel");
}

#[test]
fn two_jobs_share_the_pool() {
    check("fair_share");
}

#[test]
fn runs_are_lost_while_merging() {
    check("lost_runs");
}

#[test]
fn an_input_object_cannot_be_read() {
    check("bad_inputs");
}

#[test]
fn the_store_is_away() {
    check("store_away");
}
