//! Eight bytes of a key as one integer, so that most comparisons need no memory but a register.
//!
//! A window compares like the key bytes from some depth on. Keys of one length fill all eight bytes
//! with key. Keys of any length fill seven, zero-padded, and the last holds how many of the seven
//! are key, or 8 when the key goes on behind them: so a shorter key comes first, and equal windows
//! with a count below 8 mean equal keys.

use crate::order::{Order, RawKey};

/// How keys are cut into windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Windowing {
    /// All keys have this many bytes.
    Fixed(usize),
    /// Keys end where they end.
    Variable,
}

const KEY_GOES_ON: u64 = 8;

impl Windowing {
    pub(crate) fn of(order: &Order) -> Self {
        match order.raw_key() {
            Some(RawKey::Range { len, .. }) => Self::Fixed(len),
            Some(RawKey::Line) | None => Self::Variable,
        }
    }

    /// Key bytes that a window holds.
    #[inline]
    pub(crate) fn step(self) -> usize {
        match self {
            Self::Fixed(_) => 8,
            Self::Variable => 7,
        }
    }

    /// The window of `key` from `depth` on; a key that ends before `depth` has the smallest.
    #[inline(always)]
    pub(crate) fn window(self, key: &[u8], depth: usize) -> u64 {
        let rest = key.get(depth..).unwrap_or_default();
        let head = match rest.first_chunk::<8>() {
            Some(chunk) => u64::from_be_bytes(*chunk),
            None => short_window(rest),
        };
        match self {
            Self::Fixed(_) => head,
            Self::Variable if rest.len() > 7 => head & !0xFF | KEY_GOES_ON,
            Self::Variable => head & !0xFF | rest.len() as u64,
        }
    }

    /// Whether keys with this same window at `depth`, equal before it, are equal altogether.
    #[inline(always)]
    pub(crate) fn decides(self, window: u64, depth: usize) -> bool {
        match self {
            Self::Fixed(len) => depth + 8 >= len,
            Self::Variable => window & 0xFF != KEY_GOES_ON,
        }
    }
}

#[cold]
fn short_window(rest: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    bytes[..rest.len()].copy_from_slice(rest);
    u64::from_be_bytes(bytes)
}

/// Length of the common start of two byte strings.
pub(crate) fn common_len(a: &[u8], b: &[u8]) -> usize {
    let len = a.len().min(b.len());
    let (a, b) = (&a[..len], &b[..len]);
    // Whole chunks first: a byte at a time would make long equal lines slow.
    let chunks = a.chunks_exact(32).zip(b.chunks_exact(32)).take_while(|(a, b)| a == b).count();
    let from = chunks * 32;
    from + a[from..].iter().zip(&b[from..]).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cmp::Ordering;

    #[test]
    fn windows_compare_like_keys_and_decide_when_they_can() {
        let mut keys: Vec<Vec<u8>> =
            vec![b"".to_vec(), b"abcdefg".to_vec(), b"abcdefgh".to_vec(), b"abcdefg\0".to_vec()];
        for len in 0..10 {
            keys.push(vec![0; len]);
            keys.push(vec![0xFF; len]);
            keys.push(vec![b'a'; len]);
        }
        for (a, b) in keys.iter().flat_map(|a| keys.iter().map(move |b| (a, b))) {
            let (wa, wb) = (Windowing::Variable.window(a, 0), Windowing::Variable.window(b, 0));
            match wa.cmp(&wb) {
                Ordering::Equal => {
                    assert!(a == b || !Windowing::Variable.decides(wa, 0), "{a:?} {b:?}");
                }
                unequal => assert_eq!(unequal, a.cmp(b), "{a:?} {b:?}"),
            }
        }
        assert_eq!(Windowing::Variable.window(b"abc", 3), 0);
        assert_eq!(Windowing::Variable.window(b"abc", 9), 0);
        assert_eq!(
            Windowing::Fixed(10).window(b"0123456789", 8),
            u64::from_be_bytes(*b"89\0\0\0\0\0\0")
        );
        assert!(Windowing::Fixed(10).decides(0, 8) && !Windowing::Fixed(10).decides(0, 0));
    }

    #[test]
    fn common_len_finds_the_first_difference() {
        for at in 0..100 {
            let (a, mut b) = (vec![7; 100], vec![7; 100]);
            b[at] = 8;
            assert_eq!(common_len(&a, &b), at);
            assert_eq!(common_len(&a[..at], &a), at);
        }
    }
}
