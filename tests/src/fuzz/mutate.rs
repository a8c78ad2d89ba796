//! Inputs made of others: bits turned, ends cut, pieces moved and spliced, and numbers made large
//! where lengths may stand.

use crate::sim::dice::Dice;

/// Longest input that is made.
pub const INPUT_BYTES_MAX: usize = 4096;

/// What stands where numbers are read wrong: in one byte, as a varint, and in four and eight bytes,
/// little endian.
const NUMBERS: [&[u8]; 16] = [
    &[0],
    &[0x7f],
    &[0x80],
    &[0xff],
    &[0xff, 0xff, 0x03],
    &[0xff, 0xff, 0xff, 0xff, 0x0f],
    &[0xfe, 0xff, 0xff, 0xff, 0x0f],
    &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
    &[0xff, 0xff, 0xff, 0xff],
    &[0xff, 0xff, 0xff, 0x7f],
    &[0, 0, 0, 0x80],
    &[0, 0, 0, 0],
    &[0xff; 8],
    &[0; 8],
    &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
    b"18446744073709551615",
];

fn below(dice: &mut Dice, bound: usize) -> usize {
    usize::try_from(dice.below(bound as u64)).unwrap_or_default()
}

/// Another input, of one seed or of several. `seeds` are not empty.
pub fn mutated(dice: &mut Dice, seeds: &[Vec<u8>]) -> Vec<u8> {
    if dice.chance(10_000) {
        return (0..below(dice, 256)).map(|_| dice.next().to_le_bytes()[0]).collect();
    }
    let seed = &seeds[below(dice, seeds.len())];
    let mut input = seed[..seed.len().min(INPUT_BYTES_MAX)].to_vec();
    for _ in 0..=below(dice, 4) {
        change(dice, &mut input, seeds);
    }
    input.truncate(INPUT_BYTES_MAX);
    input
}

fn change(dice: &mut Dice, input: &mut Vec<u8>, seeds: &[Vec<u8>]) {
    let at = below(dice, input.len() + 1);
    let range = {
        let end = at + below(dice, (input.len() - at).min(64) + 1);
        at..end
    };
    match dice.below(10) {
        0 | 1 => {
            if let Some(byte) = input.get_mut(at) {
                *byte ^= 1 << dice.below(8);
            }
        }
        2 => {
            if let Some(byte) = input.get_mut(at) {
                *byte = dice.next().to_le_bytes()[0];
            }
        }
        3 => input.truncate(at),
        4 => drop(input.drain(range)),
        5 => {
            let copied = input[range].to_vec();
            let to = below(dice, input.len() + 1);
            drop(input.splice(to..to, copied));
        }
        6 | 7 => {
            let number = dice.pick(&NUMBERS);
            // Over what stands there, or between it: what follows may then still be read.
            let over = at..(at + below(dice, number.len() + 1)).min(input.len());
            drop(input.splice(over, number.iter().copied()));
        }
        8 => {
            let other = &seeds[below(dice, seeds.len())];
            let from = below(dice, other.len() + 1);
            input.truncate(at);
            input.extend(other[from..].iter().take(INPUT_BYTES_MAX));
        }
        _ => {
            let drawn: Vec<u8> =
                (0..=below(dice, 8)).map(|_| dice.next().to_le_bytes()[0]).collect();
            drop(input.splice(at..at, drawn));
        }
    }
}
