//! Which records of the order are kept: all of them, the first of those with equal keys, the first
//! so many, or both of these.

/// What is kept of records that come in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Select {
    /// Of records with equal keys only the first is kept (`-u`).
    pub distinct: bool,
    /// So many are kept at most; `None` is all.
    pub first: Option<u64>,
}

impl Select {
    /// Whether nothing is ever dropped.
    pub fn keeps_all(self) -> bool {
        self == Self::default()
    }

    /// For records that come in order.
    pub fn picker(self) -> Picker {
        Picker { distinct: self.distinct, left: self.first.unwrap_or(u64::MAX) }
    }
}

/// Decides record by record, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Picker {
    distinct: bool,
    left: u64,
}

impl Picker {
    /// Whether the next record is kept; `doubled` says that its key is that of the one before.
    #[inline(always)]
    pub fn keeps(&mut self, doubled: bool) -> bool {
        let keeps = self.left > 0 && !(doubled && self.distinct);
        self.left -= u64::from(keeps);
        keeps
    }

    /// Whether a key must be compared with the one before.
    pub fn compares(self) -> bool {
        self.distinct
    }

    /// Takes as many of `records` as are kept whatever their keys are, and says how many.
    pub fn take(&mut self, records: usize) -> usize {
        let taken = self.left.min(records as u64);
        self.left -= taken;
        taken as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_equals_and_the_first_so_many_are_kept() {
        let check = |distinct, first, doubled: &[bool], expect: &[bool]| {
            let mut picker = Select { distinct, first }.picker();
            let kept: Vec<bool> = doubled.iter().map(|&doubled| picker.keeps(doubled)).collect();
            assert_eq!(kept, expect, "{distinct} {first:?}");
        };
        let doubled = [false, true, false, true];
        check(false, None, &doubled, &[true; 4]);
        check(true, None, &doubled, &[true, false, true, false]);
        check(false, Some(3), &doubled, &[true, true, true, false]);
        check(true, Some(1), &doubled, &[true, false, false, false]);
        check(false, Some(0), &doubled, &[false; 4]);
    }

    #[test]
    fn a_picker_takes_no_more_than_is_left() {
        let mut picker = Select { distinct: false, first: Some(10) }.picker();
        assert_eq!((picker.take(7), picker.take(9), picker.take(1)), (7, 3, 0));
        assert_eq!(Select::default().picker().take(5), 5);
    }
}
