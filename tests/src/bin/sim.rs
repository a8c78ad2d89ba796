//! The simulation by hand: `sim run --seeds N [--from S] [--seconds T]`, `sim replay SEED`, `sim
//! sweep`, `sim script [NAME]`, `sim claims`, `sim bugs` (with the feature `planted-bugs`).

#![expect(clippy::print_stdout, reason = "this is a command for people")]

use std::process::ExitCode;

use muster_platform::clock::{Clock, SystemClock};
use muster_tests::sim::many::Many;
use muster_tests::sim::{self, sweep::sweep};

/// Seeds within which every planted bug must show.
#[cfg(feature = "planted-bugs")]
const BUG_SEEDS_MAX: u64 = 1000;
/// Broken seeds after which a run gives up.
const BROKEN_MAX: usize = 20;
/// Seeds from which on every mark must have been reached.
const MARKED_SEEDS_MIN: u64 = 5000;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |name: &str| {
        let at = args.iter().position(|arg| arg == name)?;
        args.get(at + 1)?.parse::<u64>().ok()
    };
    let sound = match args.first().map(String::as_str) {
        Some("run") => {
            let seconds = number("--seconds");
            let seeds = number("--seeds").unwrap_or(if seconds.is_some() { u64::MAX } else { 100 });
            run(number("--from").unwrap_or(0), seeds, seconds)
        }
        Some("replay") => match args.get(1).and_then(|arg| arg.parse().ok()) {
            Some(seed) => replay(seed),
            None => usage(),
        },
        Some("sweep") => {
            let swept = sweep(1);
            swept.broken.iter().for_each(|(point, why)| println!("{point:?}: {why}"));
            println!("{} runs, {} broken", swept.runs, swept.broken.len());
            swept.broken.is_empty()
        }
        Some("script") => scripts(args.get(1).map(String::as_str)),
        Some("claims") => claims(
            number("--from").unwrap_or(0),
            number("--seeds").unwrap_or(1000),
            number("--replay"),
        ),
        Some("bugs") => bugs(),
        _ => usage(),
    };
    if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn usage() -> bool {
    println!(
        "sim run --seeds N [--from S] [--seconds T] | sim replay SEED | sim sweep | sim script \
            [NAME] | sim claims [--seeds N] [--from S] [--replay SEED] | sim bugs"
    );
    false
}

fn run(from: u64, seeds: u64, seconds: Option<u64>) -> bool {
    let clock = SystemClock::default();
    let mut many = Many::default();
    for seed in (from..).take(usize::try_from(seeds).unwrap_or(usize::MAX)) {
        if seconds.is_some_and(|seconds| clock.now_ms() >= seconds * 1000)
            || many.broken.len() >= BROKEN_MAX
        {
            break;
        }
        if !many.run(seed)
            && let Some((seed, violation)) = many.broken.last()
        {
            println!("seed {seed}: {violation}");
        }
    }
    let ms = clock.now_ms().max(1);
    let (seeds, events, simulated_s) = (many.seeds, many.events, many.simulated_s);
    println!(
        "{seeds} seeds from {from}, {events} events, {simulated_s} s of simulated time in {ms} ms: \
            {} seeds/s",
        seeds * 1000 / ms
    );
    many.reach.iter().for_each(|(mark, count)| println!("{count:>10} {mark}"));
    let missed = many.missed();
    if !missed.is_empty() {
        println!("not reached: {missed:?}");
    }
    many.broken.is_empty() && (missed.is_empty() || seeds < MARKED_SEEDS_MIN)
}

/// Owners of one OUTPUT, or one seed of them line by line.
fn claims(from: u64, seeds: u64, replay: Option<u64>) -> bool {
    if let Some(seed) = replay {
        let report = sim::claims::run(seed, true);
        report.trace.iter().for_each(|line| println!("{line}"));
        println!("{:?}", report.reach);
        return report.violation.is_none();
    }
    let clock = SystemClock::default();
    let (reach, broken) = sim::claims::many(from, seeds);
    println!("{seeds} seeds from {from} in {} ms", clock.now_ms());
    reach.iter().for_each(|(mark, count)| println!("{count:>10} {mark}"));
    broken.iter().for_each(|(seed, why)| println!("seed {seed}: {why}"));
    broken.is_none()
}

fn replay(seed: u64) -> bool {
    let report = sim::run(&sim::seed(seed, true));
    print!("{}", report.trace);
    println!("{:?}", report.weights);
    println!(
        "hash {:016x}, {} events, {} s",
        report.hash,
        report.events,
        report.time_us / 1_000_000
    );
    println!("{:?}", report.reach);
    if let Some(violation) = &report.violation {
        println!("VIOLATION {violation}");
    }
    report.violation.is_none()
}

/// Plays kept scripts; one that is named is shown line by line.
fn scripts(name: Option<&str>) -> bool {
    let scripts = match sim::script::kept() {
        Ok(scripts) => scripts,
        Err(error) => {
            println!("{error}");
            return false;
        }
    };
    let chosen = scripts.iter().filter(|script| name.is_none_or(|name| name == script.name));
    let kept = chosen.map(|script| {
        let (report, kept) = sim::script::play(script, name.is_some());
        print!("{}", report.trace);
        println!("{} s, {:?}", report.time_us / 1_000_000, report.reach);
        println!("{}: {}", script.name, kept.as_ref().err().map_or("holds", String::as_str));
        kept.is_ok()
    });
    kept.fold((false, true), |(_, all), one| (true, all && one)) == (true, true)
}

#[cfg(feature = "planted-bugs")]
fn bugs() -> bool {
    let found = muster_protocol::planted::BUGS.map(|(name, bug)| {
        let found = sim::many::find(bug, BUG_SEEDS_MAX);
        match &found {
            Some((seeds, violation)) => println!("{name}: found within {seeds} seeds: {violation}"),
            None => println!("{name}: NOT found within {BUG_SEEDS_MAX} seeds"),
        }
        found.is_some()
    });
    let of_claims = muster_protocol::planted::CLAIM_BUGS.map(|(name, bug)| {
        let found = sim::claims::find(bug, BUG_SEEDS_MAX);
        match &found {
            Some((seeds, violation)) => println!("{name}: found within {seeds} seeds: {violation}"),
            None => println!("{name}: NOT found within {BUG_SEEDS_MAX} seeds"),
        }
        found.is_some()
    });
    found.into_iter().chain(of_claims).all(|found| found)
}

#[cfg(not(feature = "planted-bugs"))]
fn bugs() -> bool {
    println!("bugs are planted in builds with --features planted-bugs only");
    false
}
