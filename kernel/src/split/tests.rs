use super::*;
use crate::proof::tiles;

const LINES: Format = Format::lines(b'\n');

#[test]
fn splits_are_even_contiguous_and_complete() {
    let check = |sizes: &[u64], format: &Format, split_bytes, expect: &[&[(u32, u64, u64)]]| {
        let splits = plan_splits(sizes, format, split_bytes);
        let shown: Vec<Vec<_>> = splits
            .iter()
            .map(|split| split.iter().map(|i| (i.object, i.begin, i.end)).collect())
            .collect();
        assert_eq!(shown, expect.iter().map(|split| split.to_vec()).collect::<Vec<_>>());
        assert_eq!(tiles(&splits.concat(), sizes), Ok(()));
    };
    check(&[], &LINES, 10, &[]);
    check(&[0, 0], &LINES, 10, &[]);
    check(&[10], &LINES, 10, &[&[(0, 0, 10)]]);
    check(&[11], &LINES, 10, &[&[(0, 0, 6)], &[(0, 6, 11)]]);
    check(&[2, 0, 3, 1, 4], &LINES, 5, &[&[(0, 0, 2), (2, 0, 3)], &[(3, 0, 1), (4, 0, 4)]]);
    check(&[2, 6], &LINES, 4, &[&[(0, 0, 2), (1, 0, 2)], &[(1, 2, 6)]]);
    let fixed = Format::fixed(3);
    check(&[12], &fixed, 5, &[&[(0, 0, 3)], &[(0, 3, 6)], &[(0, 6, 12)]]);
    check(&[3, 6], &fixed, 2, &[&[(0, 0, 3)], &[(1, 0, 3)], &[(1, 3, 6)]]);
    check(
        &[7],
        &LINES,
        0,
        &[
            &[(0, 0, 1)],
            &[(0, 1, 2)],
            &[(0, 2, 3)],
            &[(0, 3, 4)],
            &[(0, 4, 5)],
            &[(0, 5, 6)],
            &[(0, 6, 7)],
        ],
    );
    for (sizes, split) in
        [(vec![1u64 << 50, 7, 0, 1 << 40], 1u64 << 40), (vec![5; 100], 7), (vec![999_999, 3], 1000)]
    {
        for format in [&LINES, &fixed] {
            assert_eq!(tiles(&plan_splits(&sizes, format, split).concat(), &sizes), Ok(()));
        }
    }
}
