//! A sorted chunk on its way out: cut at the splitters, doubles dropped under `-u`, gathered record
//! by record into a run.

use crate::entries::{Keys, PREFETCH_AHEAD, Place};
use crate::error::KernelError;
use crate::order::Order;
use crate::proof::{Sums, Tally};
use crate::run::{RunWriter, Sink};
use crate::select::Picker;
use crate::sort::Segment;
use crate::splitters::Splitter;

/// The records of a chunk in order. Borrowed from the sorter, which is reset afterwards.
#[derive(Debug)]
pub struct SortedChunk<'a> {
    order: &'a Order,
    keys: Keys<'a>,
    entries: &'a [u128],
    segments: &'a [Segment],
    sums: Sums,
}

impl<'a> SortedChunk<'a> {
    pub(super) fn new(
        order: &'a Order,
        keys: Keys<'a>,
        entries: &'a [u128],
        segments: &'a [Segment],
        sums: Sums,
    ) -> Self {
        Self { order, keys, entries, segments, sums }
    }

    /// Sums of the records as they were fed.
    pub fn input_sums(&self) -> Sums {
        self.sums
    }

    /// Stored records in order, doubles included.
    pub fn records(&self) -> impl Iterator<Item = &'a [u8]> + '_ {
        self.entries.iter().map(|&entry| self.keys.record(entry))
    }

    /// Writes `splitters.len() + 1` partitions and reports what was kept and dropped; what was
    /// dropped is counted in the run, too. `splitters` must be valid
    /// ([`crate::splitters::validate`]). [`KernelError::SumsDiffer`] if what was written and
    /// dropped is not what was fed.
    pub fn write<S: Sink>(
        &self,
        splitters: &[Splitter],
        out: &mut RunWriter<S>,
    ) -> Result<Tally, S::Error> {
        let before = out.written();
        let mut dropped = Sums::default();
        let mut picker = self.order.select().picker();
        let mut begin = 0;
        for number in 0..=splitters.len() {
            let end = match splitters.get(number) {
                Some(splitter) => {
                    begin
                        + self.entries[begin..]
                            .partition_point(|&entry| self.is_before(entry, splitter))
                }
                None => self.entries.len(),
            };
            out.begin_partition()?;
            if picker.compares() {
                self.write_chosen(begin..end, &mut picker, out, &mut dropped)?;
            } else {
                let kept = begin + picker.take(end - begin);
                self.write_all(begin..kept, out)?;
                self.drop_all(kept..end, &mut dropped);
            }
            begin = end;
        }
        out.add_dropped(&dropped);
        let tally = Tally { kept: out.written().minus(&before), dropped };
        if tally.total() != self.sums {
            let what = "the chunk that was sorted".to_string();
            return Err(KernelError::SumsDiffer {
                what,
                expected: self.sums,
                found: tally.total(),
            }
            .into());
        }
        Ok(tally)
    }

    fn write_all<S: Sink>(
        &self,
        range: std::ops::Range<usize>,
        out: &mut RunWriter<S>,
    ) -> Result<(), S::Error> {
        let entries = &self.entries[range];
        for (at, &entry) in entries.iter().enumerate() {
            if let Some(&ahead) = entries.get(at + PREFETCH_AHEAD) {
                self.keys.prefetch(ahead);
            }
            out.push(self.keys.record(entry))?;
        }
        Ok(())
    }

    /// They are read all the same: what was fed must be here (P1).
    fn drop_all(&self, range: std::ops::Range<usize>, dropped: &mut Sums) {
        let frame = self.order.frame();
        for &entry in &self.entries[range] {
            dropped.add(frame.body(self.keys.record(entry)));
        }
    }

    fn write_chosen<S: Sink>(
        &self,
        range: std::ops::Range<usize>,
        picker: &mut Picker,
        out: &mut RunWriter<S>,
        dropped: &mut Sums,
    ) -> Result<(), S::Error> {
        let entries = &self.entries[range];
        let mut last_key = None;
        for (at, &entry) in entries.iter().enumerate() {
            if let Some(&ahead) = entries.get(at + PREFETCH_AHEAD) {
                self.keys.prefetch(ahead);
            }
            let key = self.keys.key(entry);
            if picker.keeps(last_key == Some(key)) {
                out.push(self.keys.record(entry))?;
                last_key = Some(key);
            } else {
                dropped.add(self.order.frame().body(self.keys.record(entry)));
            }
        }
        Ok(())
    }

    fn is_before(&self, entry: u128, splitter: &Splitter) -> bool {
        let ordering = self.keys.key(entry).cmp(splitter.key.as_slice());
        ordering.then_with(|| self.position(entry).cmp(&splitter.position)).is_lt()
    }

    /// Global position of the record's first byte.
    fn position(&self, entry: u128) -> u64 {
        match self.keys.place(entry) {
            Place::Position(position) => position,
            Place::Offset(offset) => {
                let after = self.segments.partition_point(|segment| segment.offset <= offset);
                let segment = self.segments[after.saturating_sub(1)];
                segment.position + (offset - segment.offset) as u64
            }
        }
    }
}
