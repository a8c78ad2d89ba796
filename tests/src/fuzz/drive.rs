//! Runs a target over its seeds and over inputs drawn from them, and bounds what each may cost.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use super::{Target, memory, mutate};
use crate::sim::dice::Dice;

/// Heap that one input may take, whatever it says: reserving up to a megabyte ahead is how serde
/// reads lists, and a pattern compiles to some.
pub const HELD_BYTES_MAX: usize = 32 << 20;
/// Heap that one input may take for each of its bytes: an empty element of a list is one byte on
/// the wire and some tens in memory.
pub const HELD_PER_BYTE_MAX: usize = 256;
/// How long one input may take, on a machine that has other things to do.
pub const TIME_MAX: Duration = Duration::from_secs(20);

/// What a target did.
#[derive(Debug, Clone, Copy, Default)]
pub struct Driven {
    /// Inputs that it read.
    pub executions: u64,
    /// The most heap that one of them took, in bytes; 0 where nobody counts ([`memory::Counting`]).
    pub held_bytes_max: usize,
}

/// Runs a target on all its seeds and on `runs` inputs that are drawn from `seed`. The same numbers
/// make the same inputs.
///
/// # Errors
/// What the target did wrong, with the input as hex.
pub fn drive(target: &Target, seed: u64, runs: u64) -> Result<Driven, String> {
    let seeds = (target.seeds)();
    let mut dice = Dice::of(seed, target.name);
    let mut driven = Driven::default();
    for input in &seeds {
        once(target, input, &mut driven)?;
    }
    for _ in 0..runs {
        once(target, &mutate::mutated(&mut dice, &seeds), &mut driven)?;
    }
    Ok(driven)
}

#[expect(clippy::disallowed_methods, reason = "real time is what is bounded")]
fn once(target: &Target, input: &[u8], driven: &mut Driven) -> Result<(), String> {
    let begun = Instant::now();
    let mut outcome = Ok(());
    let held = memory::peak_of(|| outcome = catch_unwind(AssertUnwindSafe(|| (target.run)(input))));
    let took = begun.elapsed();
    driven.executions += 1;
    driven.held_bytes_max = driven.held_bytes_max.max(held);
    let bound = HELD_BYTES_MAX + HELD_PER_BYTE_MAX * input.len();
    let wrong = match outcome {
        Err(panic) => {
            let said = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or(panic.downcast_ref::<&str>().copied());
            format!("panics: {}", said.unwrap_or("without a word"))
        }
        Ok(()) if held > bound => format!("holds {held} bytes, the bound is {bound}"),
        Ok(()) if took > TIME_MAX => format!("takes {took:?}, the bound is {TIME_MAX:?}"),
        Ok(()) => return Ok(()),
    };
    let shown: String =
        input.iter().take(mutate::INPUT_BYTES_MAX).map(|byte| format!("{byte:02x}")).collect();
    Err(format!(
        "target {}, input {}: {wrong}\ninput of {} bytes: {shown}",
        target.name,
        driven.executions,
        input.len()
    ))
}
