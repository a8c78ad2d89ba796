//! `chaos run`: real processes and servers under seeded faults, for as many jobs as wanted. Ends
//! with a report, and with exit code 1 where something was not as it should be.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "it is a command")]

use std::process::ExitCode;

use muster_tests::chaos::schedule::Crew;
use muster_tests::chaos::{Settings, play};
use muster_tests::harness::Sandbox;

const USAGE: &str = "chaos run [--jobs N] [--seed S] [--workers N] [--coordinators N] [--pause-ms \
    MS]

  --jobs N          jobs in all, 200 if not said
  --seed S          seed of the faults, 1 if not said; the same seed strikes in the same order
  --workers N       workers, 4 if not said
  --coordinators N  coordinators at once, 2 if not said; beside a single one another is started
                    while it does not work
  --pause-ms MS     milliseconds between two faults on average, 350 if not said

MUSTER_BIN, MUSTER_NATS_SERVER and MUSTER_S3_SERVER name the programs; the sandbox of a run with
violations is kept.";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some(settings) = parse(&arguments) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let mut sandbox = Sandbox::new();
    let report = play(&sandbox, &settings);
    println!("seed {}: {report}", settings.seed);
    if report.violations.is_empty() {
        return ExitCode::SUCCESS;
    }
    sandbox.keep();
    println!("logs are kept in {}", sandbox.path("").display());
    ExitCode::FAILURE
}

fn parse(arguments: &[String]) -> Option<Settings> {
    let (command, options) = arguments.split_first()?;
    let mut settings =
        Settings { jobs: 200, seed: 1, crew: Crew { coordinators: 2, workers: 4 }, pause_ms: 350 };
    if command != "run" || !options.len().is_multiple_of(2) {
        return None;
    }
    for option in options.chunks(2) {
        let value: u64 = option[1].parse().ok()?;
        match option[0].as_str() {
            "--jobs" => settings.jobs = value as usize,
            "--seed" => settings.seed = value,
            "--workers" if value > 0 => settings.crew.workers = value as usize,
            "--coordinators" if value > 0 => settings.crew.coordinators = value as usize,
            "--pause-ms" if value >= 4 => settings.pause_ms = value,
            _ => return None,
        }
    }
    Some(settings)
}
