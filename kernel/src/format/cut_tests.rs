//! Every way to cut small objects must take each record once.

use super::*;
use crate::proof::tiles;

const LINES: Format = Format::lines(b'\n');

/// Cuts `begin..end` of `object`, pushing `step` bytes at a time; returns the taken bytes and the
/// consumed range.
fn cut(format: &Format, object: &[u8], begin: u64, end: u64, step: usize) -> (Vec<u8>, Range<u64>) {
    let mut cutter = format
        .cutter(Interval { object: 0, begin, end }, object.len() as u64, Torn::Refused)
        .expect("a valid interval");
    let mut taken = Vec::new();
    let mut rest = &object[cutter.read_from() as usize..];
    while !cutter.is_done() {
        let (now, later) = rest.split_at(step.min(rest.len()));
        let cut = cutter.push(now);
        taken.extend_from_slice(&now[cut.take]);
        assert_eq!(cut.done, cutter.is_done());
        rest = later;
    }
    (taken, cutter.consumed())
}

#[test]
fn a_record_belongs_to_the_piece_that_holds_its_first_byte() {
    let check = |begin, end, text: &str, consumed: Range<u64>| {
        for step in 1..10 {
            let expect = (text.as_bytes().to_vec(), consumed.clone());
            assert_eq!(
                cut(&LINES, b"ab\ncdef\n\ng", begin, end, step),
                expect,
                "{begin}..{end} by {step}"
            );
        }
    };
    check(0, 10, "ab\ncdef\n\ng", 0..10);
    check(0, 1, "ab\n", 0..3);
    check(0, 3, "ab\n", 0..3);
    check(0, 4, "ab\ncdef\n", 0..8);
    check(1, 3, "", 1..1);
    check(3, 4, "cdef\n", 3..8);
    check(4, 8, "", 4..4);
    check(4, 9, "\n", 8..9);
    check(9, 10, "g", 9..10);
    check(5, 5, "", 5..5);
}

#[test]
fn all_cuts_of_small_objects_tile_them() {
    for bits in 0..1u32 << 7 {
        for len in 0..=7 {
            let object: Vec<u8> =
                (0..len).map(|at| if bits >> at & 1 == 1 { b'\n' } else { b'x' }).collect();
            for split in 0..=len as u64 {
                for step in [1, 3, 9] {
                    let (mut taken, left) = cut(&LINES, &object, 0, split, step);
                    let (right_taken, right) = cut(&LINES, &object, split, len as u64, step);
                    taken.extend_from_slice(&right_taken);
                    assert_eq!(taken, object, "{object:?} at {split} by {step}");
                    let interval = |range: Range<u64>| Interval {
                        object: 0,
                        begin: range.start,
                        end: range.end,
                    };
                    assert_eq!(tiles(&[interval(left), interval(right)], &[len as u64]), Ok(()));
                }
            }
        }
    }
}

#[test]
fn fixed_records_must_be_aligned_and_whole() {
    let fixed = Format::fixed(3);
    assert_eq!(cut(&fixed, b"abcdefghi", 3, 6, 2), (b"def".to_vec(), 3..6));
    let check = |begin, end, bytes, position, reason| {
        let cutter = fixed.cutter(Interval { object: 0, begin, end }, bytes, Torn::Refused);
        assert_eq!(cutter.err(), Some(KernelError::BadRecord { position, reason }));
    };
    check(0, 10, 10, 9, BadRecord::Truncated { found: 1, len: 3 });
    check(1, 6, 9, 1, BadRecord::Misaligned { offset: 1, len: 3 });
    check(3, 5, 9, 5, BadRecord::Misaligned { offset: 5, len: 3 });
    assert!(fixed.cutter(Interval { object: 0, begin: 0, end: 12 }, 9, Torn::Refused).is_err());
}

#[test]
fn a_torn_end_belongs_to_the_last_interval_where_it_may() {
    let fixed = Format::fixed(3);
    for (begin, end, taken) in [(0, 3, "abc"), (3, 8, "defgh"), (6, 8, "gh"), (0, 8, "abcdefgh")] {
        let interval = Interval { object: 0, begin, end };
        let mut cutter = fixed.cutter(interval, 8, Torn::Taken).expect("may be torn");
        let object = b"abcdefgh";
        let cut = cutter.push(&object[cutter.read_from() as usize..]);
        assert_eq!((&object[begin as usize..][cut.take], cut.done), (taken.as_bytes(), true));
        assert_eq!(cutter.consumed(), begin..end);
    }
    for (begin, end) in [(0, 7), (1, 8), (4, 6)] {
        assert!(
            fixed.cutter(Interval { object: 0, begin, end }, 8, Torn::Taken).is_err(),
            "{begin}..{end}"
        );
    }
}
