//! Feeds the readers of outside bytes with inputs drawn from a seed: `fuzz [--runs N] [--seed N]
//! [TARGET...]`. Prints the executions of each target; ends with 1 where one does what it must not,
//! after the input that made it do so. `fuzz --write-seeds DIR [TARGET...]` only writes the inputs
//! that each begins with, into a folder for each.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use muster_tests::fuzz::drive::drive;
use muster_tests::fuzz::memory::Counting;
use muster_tests::fuzz::{TARGETS, Target};

#[global_allocator]
static COUNTING: Counting = Counting;

const RUNS: u64 = 100_000;

struct Wish {
    runs: u64,
    seed: u64,
    write_seeds: Option<PathBuf>,
    targets: Vec<Target>,
}

fn wish(mut arguments: impl Iterator<Item = String>) -> Result<Wish, String> {
    let mut wish = Wish { runs: RUNS, seed: 1, write_seeds: None, targets: Vec::new() };
    while let Some(argument) = arguments.next() {
        let mut number = || {
            let value = arguments.next().ok_or(format!("{argument} needs a number"))?;
            value.parse().map_err(|_| format!("{argument} needs a number, not {value:?}"))
        };
        match argument.as_str() {
            "--runs" => wish.runs = number()?,
            "--seed" => wish.seed = number()?,
            "--write-seeds" => {
                wish.write_seeds =
                    Some(arguments.next().ok_or("--write-seeds needs a folder")?.into());
            }
            name => {
                let known = TARGETS.iter().find(|target| target.name == name);
                let names = TARGETS.map(|target| target.name).join(", ");
                wish.targets.push(*known.ok_or(format!("no target {name}; there are {names}"))?);
            }
        }
    }
    if wish.targets.is_empty() {
        wish.targets = TARGETS.to_vec();
    }
    Ok(wish)
}

/// Writes the inputs that a target begins with, as `DIR/<target>/seed-<number>`.
fn write_seeds(folder: &Path, target: &Target) -> io::Result<()> {
    let folder = folder.join(target.name);
    fs::create_dir_all(&folder)?;
    (target.seeds)()
        .iter()
        .enumerate()
        .try_for_each(|(at, seed)| fs::write(folder.join(format!("seed-{at}")), seed))
}

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "its output is its result")]
fn main() -> ExitCode {
    let wish = match wish(std::env::args().skip(1)) {
        Ok(wish) => wish,
        Err(wrong) => {
            eprintln!("{wrong}");
            return ExitCode::from(2);
        }
    };
    if let Some(folder) = &wish.write_seeds {
        let written = wish.targets.iter().try_for_each(|target| write_seeds(folder, target));
        return written.map_or_else(
            |error| {
                eprintln!("cannot write seeds below {}: {error}", folder.display());
                ExitCode::from(1)
            },
            |()| ExitCode::SUCCESS,
        );
    }
    let mut executions = 0;
    for target in &wish.targets {
        match drive(target, wish.seed, wish.runs) {
            Ok(driven) => {
                executions += driven.executions;
                println!(
                    "{:12} {:>12} executions, at most {:>9} bytes held",
                    target.name, driven.executions, driven.held_bytes_max
                );
            }
            Err(wrong) => {
                eprintln!("{wrong}");
                return ExitCode::from(1);
            }
        }
    }
    println!("{:12} {executions:>12} executions", "all");
    ExitCode::SUCCESS
}
