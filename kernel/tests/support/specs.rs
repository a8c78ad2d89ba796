//! Random options and random data that make them matter.

#![allow(dead_code)] // Each test file uses what it needs.

use muster_kernel::format::Format;
use muster_kernel::spec::{FieldKey, KeyDef, KeyFlags, SortSpec};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

/// Letters, of which `n` never meets `d` or `i`.
pub(crate) fn flags() -> impl Strategy<Value = KeyFlags> {
    (any::<[bool; 3]>(), prop::option::weighted(0.5, 0..4u8)).prop_map(
        |([reverse, blanks, fold], kind)| KeyFlags {
            numeric: kind == Some(0),
            reverse,
            ignore_leading_blanks: blanks,
            fold_case: fold,
            dictionary: matches!(kind, Some(1 | 3)),
            nonprinting: matches!(kind, Some(2 | 3)),
        },
    )
}

fn field_key() -> impl Strategy<Value = FieldKey> {
    let end = prop::option::of((1..4u32, 0..4u32));
    let key_flags = prop_oneof![Just(KeyFlags::default()), flags()];
    (1..4u32, 1..4u32, end, key_flags, any::<bool>()).prop_map(
        |(start_field, start_char, end, flags, end_blanks)| FieldKey {
            start_field,
            start_char: if start_char == 3 { 1 } else { start_char },
            end,
            flags,
            end_ignore_blanks: end_blanks && end.is_some() && flags != KeyFlags::default(),
        },
    )
}

/// All options for lines.
pub(crate) fn lines_spec() -> impl Strategy<Value = SortSpec> {
    let keys = prop_oneof![2 => Just(vec![]), 3 => vec(field_key(), 1..3)];
    let global = prop_oneof![Just(KeyFlags::default()), flags()];
    let separator = prop::option::of(select(vec![b',', b'a', b'0', b' ']));
    let terminator = prop_oneof![3 => Just(b'\n'), 1 => Just(0)];
    let (stable, unique) = (any::<bool>(), prop::bool::weighted(0.3));
    (terminator, keys, global, separator, stable, unique, top()).prop_map(
        |(terminator, keys, global, separator, stable, unique, top)| SortSpec {
            format: Format::lines(terminator),
            keys: keys.into_iter().map(KeyDef::Field).collect(),
            global,
            separator,
            stable,
            unique,
            top,
        },
    )
}

/// Mostly all records, else the first few.
fn top() -> impl Strategy<Value = Option<u64>> {
    prop::option::weighted(0.25, 1..40u64)
}

/// All options for fixed-length records.
pub(crate) fn fixed_spec() -> impl Strategy<Value = SortSpec> {
    (1..24u32).prop_flat_map(|len| {
        let range = (0..len).prop_flat_map(move |offset| (Just(offset), 1..=len - offset));
        (vec(range, 0..3), any::<bool>(), any::<bool>(), top()).prop_map(
            move |(ranges, reverse, unique, top)| SortSpec {
                keys: ranges
                    .into_iter()
                    .map(|(offset, len)| KeyDef::Range { offset, len })
                    .collect(),
                global: KeyFlags { reverse, ..KeyFlags::default() },
                unique,
                top,
                ..SortSpec::new(Format::fixed(len))
            },
        )
    })
}

/// Lines that collide: few different bytes, numbers, blanks, long common starts; with NUL, high
/// bytes and newlines.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    // Not 0x80: GNU sort 9.1 takes that byte for a separator of thousands under -n, by mistake,
    // even where the locale has none.
    let odd = select(vec![0u8, 1, b'\n', b'\t', 0x7F, 0x81, 0xC3, 0xFF]);
    let texts = vec![
        "a", "b", "A", "aa", " ", "  ", ",", ",,", "-", ".", "0", "1", "10", "-1", "1.50", "0.5",
        "00", "z",
    ];
    prop_oneof![
        4 => select(texts).prop_map(|text| text.as_bytes().to_vec()),
        1 => vec(odd, 1..3),
        1 => Just(b"common start ".to_vec()),
    ]
}

/// An object of lines; the last may lack its terminator.
pub(crate) fn lines_object(terminator: u8) -> impl Strategy<Value = Vec<u8>> {
    let line = vec(piece(), 0..6).prop_map(|pieces| pieces.concat());
    let line = prop_oneof![4 => line.boxed(), 1 => Just(b"hot".to_vec()).boxed()];
    (vec(line, 0..40), any::<bool>()).prop_map(move |(lines, ended)| {
        let mut object = lines.join(&terminator);
        if ended && !lines.is_empty() {
            object.push(terminator);
        }
        object
    })
}

/// An object of records of `len` bytes.
pub(crate) fn fixed_object(len: usize) -> impl Strategy<Value = Vec<u8>> {
    let few = select(vec![0u8, b'a', 0xFF]);
    let byte = prop_oneof![few.clone(), any::<u8>()];
    prop_oneof![
        3 => vec(vec(few, len), 0..60).prop_map(|records| records.concat()),
        1 => vec(vec(byte, len), 0..60).prop_map(|records| records.concat()),
    ]
}
