//! A whole job in memory: cut, sort with spills, write runs, merge, write parts, with the checks
//! that the job's barriers make.

#![allow(dead_code)] // Each test file uses what it needs.

use std::sync::Arc;

use muster_kernel::error::KernelError;
use muster_kernel::format::{SampleWindow, Torn};
use muster_kernel::merge::{MergeInput, Windows, merge};
use muster_kernel::order::Order;
use muster_kernel::part::PartWriter;
use muster_kernel::proof::{Interval, Sums, Tally, tiles};
use muster_kernel::run::{Piece, RunFooter, RunIndex, RunWriter, Sink};
use muster_kernel::sort::ChunkSorter;
use muster_kernel::spec::SortSpec;
use muster_kernel::split::{object_positions, plan_splits};
use muster_kernel::splitters::{self, Splitter};

/// Ships what is flushed.
#[derive(Debug, Default)]
pub(crate) struct Shipped {
    buffer: Vec<u8>,
    pub(crate) shipped: Vec<u8>,
}

impl Sink for Shipped {
    type Error = KernelError;

    fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }

    fn flushed(&mut self) -> Result<(), KernelError> {
        self.shipped.append(&mut self.buffer);
        Ok(())
    }
}

/// Windows of at most `step` bytes.
pub(crate) struct Steps {
    pub(crate) bytes: Vec<u8>,
    pub(crate) at: usize,
    pub(crate) step: usize,
}

impl Windows for Steps {
    type Buf = Vec<u8>;
    type Error = KernelError;

    fn next(&mut self) -> Result<Option<Vec<u8>>, KernelError> {
        let end = self.bytes.len().min(self.at + self.step);
        let window = self.bytes[self.at..end].to_vec();
        self.at = end;
        Ok((!window.is_empty()).then_some(window))
    }
}

/// A run as an object.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) bytes: Vec<u8>,
    pub(crate) index: RunIndex,
}

impl Run {
    /// Takes the run from the sink and reads its index back, as another worker would.
    pub(crate) fn open(bytes: Vec<u8>) -> Result<Self, KernelError> {
        let file_bytes = bytes.len() as u64;
        let footer_at = bytes.len().checked_sub(RunFooter::LEN);
        let footer_at = footer_at.ok_or(KernelError::Corrupt { what: "too short".into() })?;
        let footer = RunFooter::decode(&bytes[footer_at..], file_bytes)?;
        let index_at = footer.index_offset() as usize;
        let index =
            RunIndex::decode(&bytes[index_at..index_at + footer.index_bytes() as usize], &footer)?;
        Ok(Self { bytes, index })
    }

    pub(crate) fn input(&self, partition: u32, step: usize) -> MergeInput<Steps> {
        let piece: Piece = self.index.piece(partition).expect("the partition exists");
        let bytes = self.bytes[piece.offset as usize..(piece.offset + piece.len) as usize].to_vec();
        MergeInput { windows: Steps { bytes, at: 0, step }, piece }
    }
}

/// Sizes of everything that may not matter for the result.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) split_bytes: u64,
    pub(crate) budget_bytes: usize,
    pub(crate) read_step: usize,
    pub(crate) window_step: usize,
    pub(crate) partitions: u32,
}

/// What came out.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) output: Vec<u8>,
    pub(crate) runs: Vec<Run>,
    pub(crate) spills: usize,
    pub(crate) input: Sums,
    pub(crate) tally: Tally,
}

pub(crate) fn job(
    spec: &SortSpec,
    objects: &[Vec<u8>],
    sizes: Sizes,
) -> Result<Outcome, KernelError> {
    let order = Arc::new(Order::new(spec)?);
    let object_sizes: Vec<u64> = objects.iter().map(|object| object.len() as u64).collect();
    let splitters = choose_splitters(&order, objects, sizes);
    let mut outcome = Outcome {
        output: Vec::new(),
        runs: Vec::new(),
        spills: 0,
        input: Sums::default(),
        tally: Tally::default(),
    };
    let mut consumed = Vec::new();
    let mut sorter = ChunkSorter::new(order.clone(), sizes.budget_bytes);
    for split in plan_splits(&object_sizes, &spec.format, sizes.split_bytes) {
        let mut task = SortTask {
            order: &order,
            splitters: &splitters,
            sorter: &mut sorter,
            spills: Vec::new(),
            sums: Sums::default(),
        };
        for interval in split {
            consumed.push(task.take(objects, interval, sizes.read_step)?);
        }
        let (run, spills) = task.finish(sizes.window_step)?;
        outcome.spills += spills;
        outcome.tally.dropped.merge(&run.index.dropped());
        outcome.input.merge(&run.index.kept());
        outcome.input.merge(&run.index.dropped());
        outcome.runs.push(run);
    }
    assert_eq!(tiles(&consumed, &object_sizes), Ok(()));
    for partition in 0..=splitters.len() {
        let bounds =
            (partition.checked_sub(1).map(|below| &splitters[below]), splitters.get(partition));
        let inputs =
            outcome.runs.iter().map(|run| run.input(partition as u32, sizes.window_step)).collect();
        let mut part = PartWriter::new(Shipped::default(), order.clone());
        let tally = merge(&order.after(outcome.tally.kept.records), bounds, inputs, &mut part)?;
        let (summary, sink) = part.finish()?;
        assert_eq!(summary.sums, tally.kept);
        outcome.tally.kept.merge(&tally.kept);
        outcome.tally.dropped.merge(&tally.dropped);
        outcome.output.extend_from_slice(&sink.shipped);
    }
    assert_eq!(outcome.tally.total(), outcome.input, "conservation");
    Ok(outcome)
}

pub(crate) fn choose_splitters(order: &Order, objects: &[Vec<u8>], sizes: Sizes) -> Vec<Splitter> {
    let object_sizes: Vec<u64> = objects.iter().map(|object| object.len() as u64).collect();
    let mut samples = Vec::new();
    for (object, position) in objects.iter().zip(object_positions(&object_sizes)) {
        let window = SampleWindow { position, object_offset: 0, at_object_end: true };
        samples.extend(splitters::sample(order, object, window, 50));
    }
    let chosen = splitters::choose(samples, sizes.partitions, order.select().distinct);
    assert_eq!(splitters::validate(&chosen, order.select().distinct), Ok(()));
    splitters::decode(&splitters::encode(&chosen)).expect("what was encoded")
}

struct SortTask<'a> {
    order: &'a Order,
    splitters: &'a [Splitter],
    sorter: &'a mut ChunkSorter,
    spills: Vec<Run>,
    sums: Sums,
}

impl SortTask<'_> {
    fn take(
        &mut self,
        objects: &[Vec<u8>],
        interval: Interval,
        read_step: usize,
    ) -> Result<Interval, KernelError> {
        let object = &objects[interval.object as usize];
        let position: u64 =
            objects[..interval.object as usize].iter().map(|object| object.len() as u64).sum();
        let mut cutter =
            self.order.format().cutter(interval, object.len() as u64, Torn::Refused)?;
        let mut rest = &object[cutter.read_from() as usize..];
        let mut begun = false;
        while !cutter.is_done() {
            let (now, later) = rest.split_at(read_step.min(rest.len()));
            rest = later;
            let mut taken = &now[cutter.push(now).take];
            if !taken.is_empty() && !begun {
                self.sorter.begin(position + cutter.consumed().start);
                begun = true;
            }
            while !taken.is_empty() {
                let count = self.sorter.feed(taken)?;
                taken = &taken[count..];
                if !taken.is_empty() {
                    self.spill()?;
                }
            }
        }
        while !self.sorter.end_object()? {
            self.spill()?;
        }
        let consumed = cutter.consumed();
        Ok(Interval { object: interval.object, begin: consumed.start, end: consumed.end })
    }

    fn spill(&mut self) -> Result<(), KernelError> {
        assert!(self.sorter.records() > 0);
        let mut writer = RunWriter::new(Shipped::default(), self.order.frame());
        let chunk = self.sorter.sort();
        let tally = chunk.write(self.splitters, &mut writer)?;
        assert_eq!(tally.total(), chunk.input_sums());
        self.sums.merge(&chunk.input_sums());
        let (index, sink) = writer.finish()?;
        let run = Run::open(sink.shipped)?;
        assert_eq!(run.index, index);
        self.spills.push(run);
        self.sorter.reset();
        Ok(())
    }

    /// One run of all spills, and how many spills there were.
    fn finish(mut self, window_step: usize) -> Result<(Run, usize), KernelError> {
        if self.spills.is_empty() || self.sorter.records() > 0 {
            if self.sorter.records() == 0 {
                self.sorter.reset();
                let mut writer = RunWriter::new(Shipped::default(), self.order.frame());
                self.sorter.sort().write(self.splitters, &mut writer)?;
                self.spills.push(Run::open(writer.finish()?.1.shipped)?);
            } else {
                self.spill()?;
            }
        }
        assert!(self.sorter.is_empty());
        let spills = self.spills.len();
        if spills == 1 {
            return Ok((self.spills.remove(0), 1));
        }
        let mut writer = RunWriter::new(Shipped::default(), self.order.frame());
        for partition in 0..=self.splitters.len() {
            let bounds = (
                partition.checked_sub(1).map(|below| &self.splitters[below]),
                self.splitters.get(partition),
            );
            let inputs =
                self.spills.iter().map(|run| run.input(partition as u32, window_step)).collect();
            writer.begin_partition()?;
            let order = self.order.after(writer.written().records);
            let tally = merge(&order, bounds, inputs, &mut writer)?;
            assert_eq!(writer.partition_sums(), tally.kept);
            writer.add_dropped(&tally.dropped);
        }
        self.spills.iter().for_each(|run| writer.add_dropped(&run.index.dropped()));
        let run = Run::open(writer.finish()?.1.shipped)?;
        assert_eq!(run.index.kept().plus(&run.index.dropped()), self.sums);
        Ok((run, spills))
    }
}
