//! Splits: how input is divided among sort tasks.
//!
//! A split is a list of intervals of objects, contiguous in global position. Which records belong
//! to an interval is the format's business ([`crate::format`]). The interval that was *consumed*
//! may differ from the planned one, and it is the consumed ones that must tile the objects (P1).

use crate::format::Format;
use crate::proof::Interval;

/// Packs objects into splits of about `split_bytes`, in order: many small objects share a split, a
/// large one is cut, at record boundaries where records have a fixed length. Splits are even: their
/// number is the least that keeps to `split_bytes` (a record more for fixed ones), and their sizes
/// differ by rounding only. Empty objects are in no split.
pub fn plan_splits(object_sizes: &[u64], format: &Format, split_bytes: u64) -> Vec<Vec<Interval>> {
    let rules = format.rules();
    let total: u64 = object_sizes.iter().sum();
    let count = total.div_ceil(split_bytes.max(1));
    let target = total.div_ceil(count.max(1)).max(1);
    let mut splits = Vec::new();
    let mut split: Vec<Interval> = Vec::new();
    let mut cut = target;
    let mut base = 0;
    for (object, &size) in (0u32..).zip(object_sizes) {
        let mut begin = 0;
        while begin < size {
            let end = if cut >= base + size { size } else { rules.align(cut - base).max(begin) };
            if end > begin {
                split.push(Interval { object, begin, end });
                begin = end;
            }
            if base + end >= cut || end < size {
                cut += target;
                if !split.is_empty() {
                    splits.push(std::mem::take(&mut split));
                }
            }
        }
        base += size;
    }
    if !split.is_empty() {
        splits.push(split);
    }
    splits
}

/// Global position of each object's first byte: the sum of the sizes before it.
pub fn object_positions(object_sizes: &[u64]) -> Vec<u64> {
    object_sizes
        .iter()
        .scan(0, |position, size| {
            let here = *position;
            *position += size;
            Some(here)
        })
        .collect()
}

#[cfg(test)]
mod tests;
