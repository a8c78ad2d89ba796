//! The kernel as a library: sorts lines in memory, as two splits would be on two machines, and
//! merges their runs. No file, no network, no thread.
//!
//!     cargo run -p muster-kernel --example kernel < FILE

use std::io::{Read, Write};
use std::sync::Arc;

use muster_kernel::error::KernelError;
use muster_kernel::format::Format;
use muster_kernel::merge::{MergeInput, Windows, merge};
use muster_kernel::order::Order;
use muster_kernel::part::PartWriter;
use muster_kernel::run::{Piece, RunWriter, Sink};
use muster_kernel::sort::ChunkSorter;
use muster_kernel::spec::SortSpec;

/// Bytes in memory, in place of an object in a bucket.
#[derive(Default)]
struct Memory(Vec<u8>);

impl Sink for Memory {
    type Error = KernelError;

    fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }

    fn flushed(&mut self) -> Result<(), KernelError> {
        Ok(())
    }
}

/// A piece of a run, read in one window.
struct Whole(Option<Vec<u8>>);

impl Windows for Whole {
    type Buf = Vec<u8>;
    type Error = KernelError;

    fn next(&mut self) -> Result<Option<Vec<u8>>, KernelError> {
        Ok(self.0.take())
    }
}

/// Sorts the lines of one split, whose first byte has the global position `position`, into a run of
/// one partition.
fn run_of(
    order: &Arc<Order>,
    split: &[u8],
    position: u64,
) -> Result<(Piece, Vec<u8>), KernelError> {
    let mut sorter = ChunkSorter::new(order.clone(), 64 << 20);
    sorter.begin(position);
    let taken = sorter.feed(split)?;
    assert_eq!(taken, split.len(), "this split fits into one chunk");
    sorter.end_object()?;
    let mut run = RunWriter::new(Memory::default(), order.frame());
    sorter.sort().write(&[], &mut run)?;
    let (index, bytes) = run.finish()?;
    Ok((index.piece(0).unwrap_or_default(), bytes.0))
}

/// The lines of all splits in order, each with a newline.
pub(crate) fn sorted(splits: &[&[u8]]) -> Result<Vec<u8>, KernelError> {
    let order = Arc::new(Order::new(&SortSpec::new(Format::lines(b'\n')))?);
    let (mut inputs, mut position) = (Vec::new(), 0);
    for split in splits {
        let (piece, bytes) = run_of(&order, split, position)?;
        let window = bytes[..piece.len as usize].to_vec();
        inputs.push(MergeInput { windows: Whole(Some(window)), piece });
        position += split.len() as u64;
    }
    let mut part = PartWriter::new(Memory::default(), order.clone());
    let tally = merge(&order, (None, None), inputs, &mut part)?;
    let (summary, bytes) = part.finish()?;
    // What went in came out (P1): the merge has checked it against the runs' own sums.
    assert_eq!(summary.sums, tally.kept);
    Ok(bytes.0)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut text = Vec::new();
    std::io::stdin().read_to_end(&mut text)?;
    // Two splits, cut behind a line.
    let middle = text.len() / 2;
    let cut = text[middle..]
        .iter()
        .position(|byte| *byte == b'\n')
        .map_or(text.len(), |at| middle + at + 1);
    let (first, second) = text.split_at(cut);
    std::io::stdout().write_all(&sorted(&[first, second])?)?;
    Ok(())
}
