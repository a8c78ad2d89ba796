//! What comes from the wire and from the bucket, as bytes of any kind: the program must neither
//! panic nor hang on them, nor take memory beyond a bound, and what it accepts must hold together.
//!
//! Each target is a pure function in a file of its own; [`drive`] feeds it with inputs drawn from a
//! seed, some thousand in the ordinary suite, as many as wanted in the program `fuzz`. The first
//! inputs are real samples, golden bytes among them. Where a checksum would keep every mutated
//! input out, a target tries the bytes a second time with checksums made anew: whoever means harm
//! can compute them too.

pub mod drive;
pub mod faults;
pub mod journal;
pub mod json;
pub mod keys;
pub mod memory;
pub mod messages;
pub mod mutate;
pub mod names;
pub mod plans;
pub mod run_blocks;
pub mod run_index;
pub mod splitters;

/// Something that reads bytes of others.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name: that of its file.
    pub name: &'static str,
    /// Reads one input; panics where the program does, or where something does not hold.
    pub run: fn(&[u8]),
    /// Inputs to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All targets.
pub const TARGETS: [Target; 10] = [
    Target { name: "messages", run: messages::target, seeds: messages::seeds },
    Target { name: "plans", run: plans::target, seeds: plans::seeds },
    Target { name: "run_index", run: run_index::target, seeds: run_index::seeds },
    Target { name: "run_blocks", run: run_blocks::target, seeds: run_blocks::seeds },
    Target { name: "splitters", run: splitters::target, seeds: splitters::seeds },
    Target { name: "json", run: json::target, seeds: json::seeds },
    Target { name: "journal", run: journal::target, seeds: journal::seeds },
    Target { name: "keys", run: keys::target, seeds: keys::seeds },
    Target { name: "names", run: names::target, seeds: names::seeds },
    Target { name: "faults", run: faults::target, seeds: faults::seeds },
];

/// The bytes of hex digits; none where they are not.
fn unhex(hex: &str) -> Option<Vec<u8>> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok()).collect()
}

/// The golden bytes of everything that is sent or stored, by name.
fn golden() -> impl Iterator<Item = (&'static str, Vec<u8>)> {
    const V1: &str = include_str!("../../../common/protocol/src/golden/v1.txt");
    lines(V1)
}

/// Golden lines: a name and the bytes in hex.
fn lines(golden: &'static str) -> impl Iterator<Item = (&'static str, Vec<u8>)> {
    golden.lines().filter_map(|line| {
        let (name, hex) = line.split_once(' ')?;
        Some((name, unhex(hex)?))
    })
}

/// Takes a number of bytes off the front, as many as there are.
fn take<'a>(data: &mut &'a [u8], bytes: usize) -> &'a [u8] {
    let (head, rest) = data.split_at(bytes.min(data.len()));
    *data = rest;
    head
}

/// Takes one byte off the front; 0 where there is none.
fn byte(data: &mut &[u8]) -> u8 {
    take(data, 1).first().copied().unwrap_or_default()
}

/// Takes a piece off the front that says in two bytes how long it is.
fn piece<'a>(data: &mut &'a [u8]) -> &'a [u8] {
    let len = usize::from(byte(data)) | usize::from(byte(data)) << 8;
    take(data, len)
}

/// A piece as [`piece`] takes it.
fn push_piece(to: &mut Vec<u8>, piece: &[u8]) {
    let len = u16::try_from(piece.len()).expect("seeds are small");
    to.extend_from_slice(&len.to_le_bytes());
    to.extend_from_slice(piece);
}
