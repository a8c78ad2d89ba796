//! Merges sorted pieces of runs into one sorted stream, and checks everything on the way.
//!
//! Checked: block checksums and counts, each piece's length and sums, that the output ascends (P2,
//! which also shows an input out of order) and lies within the partition's bounds, and that what
//! went out and what `-u` dropped is what came in (P1). Inputs are numbered by position: run
//! numbers break ties, so positions are not stored (P3).
//!
//! Keys of a partition share the common start of its two bounds; windows are taken behind it, which
//! keeps log lines apart that all begin with the same date. A block that does not hold is asked for
//! again ([`Windows::rewind`]) before the merge gives up: nothing of it has gone out yet. Memory:
//! one window of bytes for each input, and one block where windows cut blocks.

use crate::error::KernelError;
use crate::format::frame::{Layout, with_layout};
use crate::loser_tree::LoserTree;
use crate::order::Order;
use crate::proof::{Sums, Tally};
use crate::run::{Piece, RecordSink};
use crate::select::Picker;
use crate::splitters::Splitter;
use crate::window::{Windowing, common_len};

mod cursor;
mod reader;

use cursor::Cursor;

/// The bytes of one piece, in order, in windows of any size.
pub trait Windows {
    /// A window; dropping it gives its memory back.
    type Buf: AsRef<[u8]>;
    /// What can go wrong.
    type Error: From<KernelError>;

    /// The next bytes, or `None` after the last. May block. At most two windows are alive at a
    /// time, and none while this is called whose bytes were all used.
    fn next(&mut self) -> Result<Option<Self::Buf>, Self::Error>;

    /// The bytes from `at` on, counted from the start of the piece, do not hold what they should:
    /// begins again there, perhaps from another copy. `false` where there is nothing else to try;
    /// the merge then ends with the error. No window is alive.
    fn rewind(&mut self, at: u64) -> Result<bool, Self::Error> {
        let _ = at;
        Ok(false)
    }
}

/// One piece to merge.
#[derive(Clone, Copy, Debug)]
pub struct MergeInput<W> {
    /// The piece's bytes.
    pub windows: W,
    /// What the run's index says of it.
    pub piece: Piece,
}

/// Merges `inputs` into `out`. `inputs` are in the order of their runs, `bounds` the splitters
/// below and above the partition. Under `-u` only the first of equal keys is pushed, the others are
/// counted as dropped. An error of `out` or of an input's windows ends the merge at once, which is
/// also the way to cancel it.
pub fn merge<W, O>(
    order: &Order,
    bounds: (Option<&Splitter>, Option<&Splitter>),
    inputs: Vec<MergeInput<W>>,
    out: &mut O,
) -> Result<Tally, W::Error>
where
    W: Windows,
    O: RecordSink<Error = W::Error>,
{
    with_layout!(order.frame(), layout => {
        let mut merge = Merge::open(layout, order, bounds, inputs)?;
        while merge.step(out)? {}
        merge.finish()
    })
}

struct Merge<'a, W: Windows, L> {
    layout: L,
    order: &'a Order,
    bounds: (Option<&'a Splitter>, Option<&'a Splitter>),
    windowing: Windowing,
    /// Key bytes that all keys of the partition share and windows leave out.
    depth: usize,
    cursors: Vec<Cursor<W>>,
    tree: LoserTree,
    picker: Picker,
    /// The record that was pushed last: the one before the current of this cursor.
    last: Option<Last>,
    tally: Tally,
}

#[derive(Clone, Copy)]
struct Last {
    window: u64,
    input: usize,
}

impl<'a, W: Windows, L: Layout> Merge<'a, W, L> {
    fn open(
        layout: L,
        order: &'a Order,
        bounds: (Option<&'a Splitter>, Option<&'a Splitter>),
        inputs: Vec<MergeInput<W>>,
    ) -> Result<Self, W::Error> {
        let shared = match bounds {
            (Some(lower), Some(upper)) => &lower.key[..common_len(&lower.key, &upper.key)],
            _ => &[],
        };
        let windowing = Windowing::of(order);
        let mut cursors = Vec::with_capacity(inputs.len());
        for (number, input) in inputs.into_iter().enumerate() {
            let mut cursor = Cursor::new(number, input, order, shared.to_vec());
            cursor.advance(layout, order, windowing)?;
            cursors.push(cursor);
        }
        let windows: Vec<u64> = cursors.iter().map(Cursor::window).collect();
        let depth = shared.len();
        let tree = LoserTree::new(&windows, |a, b| is_before(&cursors, windowing, depth, a, b));
        Ok(Self {
            layout,
            order,
            bounds,
            windowing,
            depth,
            cursors,
            tree,
            picker: order.select().picker(),
            last: None,
            tally: Tally::default(),
        })
    }

    /// Emits one record; `false` when all inputs have ended. Where no more are kept they are read
    /// to their ends all the same: what an input holds shows there.
    #[inline(always)]
    fn step<O: RecordSink<Error = W::Error>>(&mut self, out: &mut O) -> Result<bool, W::Error> {
        let input = self.tree.winner() as usize;
        let window = self.tree.winner_window();
        let Some(cursor) = self.cursors.get(input).filter(|cursor| !cursor.ended()) else {
            return Ok(false);
        };
        let doubled = match self.last {
            Some(last) if last.window < window => false,
            None => {
                self.check_lower(cursor)?;
                false
            }
            Some(last) => self.compare_with_last(last, window, cursor)?,
        };
        let stored = cursor.stored();
        let body_bytes = stored.len() - L::TRAILER;
        if self.picker.keeps(doubled) {
            out.push(stored, cursor.hash())?;
            self.tally.kept.add_hashed(body_bytes, cursor.hash());
        } else {
            self.tally.dropped.add_hashed(body_bytes, cursor.hash());
        }
        self.last = Some(Last { window, input });
        self.cursors[input].advance(self.layout, self.order, self.windowing)?;
        let next = self.cursors[input].window();
        let (cursors, windowing, depth) = (&self.cursors, self.windowing, self.depth);
        self.tree.replace(next, |a, b| is_before(cursors, windowing, depth, a, b));
        Ok(true)
    }

    /// The windows do not show that the record follows the last one: whole keys must. Returns
    /// whether the keys are equal.
    fn compare_with_last(
        &self,
        last: Last,
        window: u64,
        cursor: &Cursor<W>,
    ) -> Result<bool, KernelError> {
        if last.window == window {
            if self.windowing.decides(window, self.depth) {
                return Ok(true);
            }
            match self.cursors[last.input].previous_key().cmp(cursor.key()) {
                std::cmp::Ordering::Less => return Ok(false),
                std::cmp::Ordering::Equal => return Ok(true),
                std::cmp::Ordering::Greater => {}
            }
        }
        Err(KernelError::OutOfOrder {
            what: format!(
                "record {} of input {} comes before the one before it",
                cursor.records(),
                cursor.number()
            ),
        })
    }

    fn check_lower(&self, first: &Cursor<W>) -> Result<(), KernelError> {
        match self.bounds.0 {
            Some(lower) if first.key() < lower.key.as_slice() => Err(KernelError::OutOfOrder {
                what: format!("input {} begins before its partition", first.number()),
            }),
            _ => Ok(()),
        }
    }

    /// Everything ascends, so it is enough to look at the last record.
    fn check_upper(&self) -> Result<(), KernelError> {
        let (Some(upper), Some(last)) = (self.bounds.1, self.last) else { return Ok(()) };
        let cursor = &self.cursors[last.input];
        let key = cursor.previous_key();
        if key > upper.key.as_slice() || upper.position == 0 && key == upper.key.as_slice() {
            return Err(KernelError::OutOfOrder {
                what: format!("input {} ends after its partition", cursor.number()),
            });
        }
        Ok(())
    }

    fn finish(self) -> Result<Tally, W::Error> {
        self.check_upper()?;
        let expected =
            self.cursors.iter().fold(Sums::default(), |sums, cursor| sums.plus(&cursor.sums()));
        if self.tally.total() != expected {
            let what = "the merged pieces".to_string();
            return Err(
                KernelError::SumsDiffer { what, expected, found: self.tally.total() }.into()
            );
        }
        Ok(self.tally)
    }
}

/// Whether input `a` comes before `b` when their windows are equal. Ended inputs come last.
#[inline]
fn is_before<W: Windows>(
    cursors: &[Cursor<W>],
    windowing: Windowing,
    depth: usize,
    a: u32,
    b: u32,
) -> bool {
    let (left, right) = (&cursors[a as usize], &cursors[b as usize]);
    if left.ended() || right.ended() {
        return (left.ended(), a) < (right.ended(), b);
    }
    if windowing.decides(left.window(), depth) {
        return a < b;
    }
    left.key().cmp(right.key()).then(a.cmp(&b)).is_lt()
}

#[cfg(test)]
mod tests;
