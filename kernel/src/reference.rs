//! The oracle: sorts as GNU sort 9.1 does under `LC_ALL=C`, by comparing pairs of records directly.
//!
//! Deliberately naive and deliberately without any of the kernel's keys: it shares the option types
//! with it and nothing else, so that an error in the encoding cannot hide in both. Tests compare
//! the kernel with it, and it with the system's `sort`.

use std::cmp::Ordering;

use crate::error::KernelError;
use crate::format::{Fixed, Format, Lines};
use crate::spec::{FieldKey, KeyDef, KeyFlags, SortSpec};

/// Sorts whole objects in memory: the stored bytes of all records, in order.
/// [`KernelError::InvalidSpec`] as [`crate::order::Order::new`]; a fixed-length object that ends
/// within a record is [`KernelError::Corrupt`].
pub fn sort_reference(spec: &SortSpec, objects: &[Vec<u8>]) -> Result<Vec<u8>, KernelError> {
    spec.validate()?;
    let mut records = Vec::new();
    for object in objects {
        match spec.format {
            Format::Lines(Lines { terminator }) => records.extend(lines(object, terminator)),
            Format::Fixed(Fixed { len }) => {
                let chunks = object.chunks_exact(len as usize);
                if !chunks.remainder().is_empty() {
                    return Err(KernelError::corrupt("an object ends within a record"));
                }
                records.extend(chunks);
            }
        }
    }
    // Stable, so that position decides last.
    records.sort_by(|a, b| compare(spec, a, b));
    if spec.unique {
        records.dedup_by(|later, first| compare(spec, first, later).is_eq());
    }
    let first = spec.select().first.and_then(|first| usize::try_from(first).ok());
    records.truncate(first.unwrap_or(usize::MAX));
    let mut sorted = Vec::new();
    for record in records {
        sorted.extend_from_slice(record);
        if let Format::Lines(Lines { terminator }) = spec.format {
            sorted.push(terminator);
        }
    }
    Ok(sorted)
}

fn lines(object: &[u8], terminator: u8) -> Vec<&[u8]> {
    let mut lines: Vec<&[u8]> = object.split(|&byte| byte == terminator).collect();
    if lines.last().is_some_and(|last| last.is_empty()) {
        lines.pop();
    }
    lines
}

fn compare(spec: &SortSpec, a: &[u8], b: &[u8]) -> Ordering {
    let reversed =
        |reverse: bool, ordering: Ordering| if reverse { ordering.reverse() } else { ordering };
    let mut keyed = false;
    for key in &spec.keys {
        keyed = true;
        let ordering = match key {
            KeyDef::Range { offset, len } => {
                let range = *offset as usize..(*offset + *len) as usize;
                reversed(spec.global.reverse, a[range.clone()].cmp(&b[range]))
            }
            KeyDef::Field(field) => compare_field(spec, field, a, b),
        };
        if ordering.is_ne() {
            return ordering;
        }
    }
    let plain = KeyFlags { reverse: false, ..spec.global } == KeyFlags::default();
    if !keyed && !plain {
        keyed = true;
        let blanks = |line: &[u8]| {
            line.iter().take_while(|&&b| spec.global.ignore_leading_blanks && is_blank(b)).count()
        };
        let ordering = compare_text(&spec.global, &a[blanks(a)..], &b[blanks(b)..]);
        let ordering = reversed(spec.global.reverse, ordering);
        if ordering.is_ne() {
            return ordering;
        }
    }
    let last_resort = match spec.format {
        Format::Fixed(_) => !keyed,
        Format::Lines(_) => !keyed || !spec.stable && !spec.unique,
    };
    if last_resort { reversed(spec.global.reverse, a.cmp(b)) } else { Ordering::Equal }
}

fn compare_field(spec: &SortSpec, key: &FieldKey, a: &[u8], b: &[u8]) -> Ordering {
    let inherits = key.flags == KeyFlags::default() && !key.end_ignore_blanks;
    let flags = if inherits { spec.global } else { key.flags };
    let end_blanks =
        if inherits { spec.global.ignore_leading_blanks } else { key.end_ignore_blanks };
    let part =
        |line| field_range(line, key, spec.separator, flags.ignore_leading_blanks, end_blanks);
    let ordering = compare_text(&flags, part(a), part(b));
    if flags.reverse { ordering.reverse() } else { ordering }
}

fn is_blank(byte: u8) -> bool {
    byte == b' ' || byte == b'\t' || byte == b'\n'
}

/// The key's bytes, byte by byte as the manual describes them.
fn field_range<'a>(
    line: &'a [u8],
    key: &FieldKey,
    separator: Option<u8>,
    blanks: bool,
    end_blanks: bool,
) -> &'a [u8] {
    let fields = field_bounds(line, separator);
    let skip = |mut at: usize, wanted: bool| {
        while wanted && at < line.len() && is_blank(line[at]) {
            at += 1;
        }
        at
    };
    let field_start =
        |number: u32| fields.get(number as usize - 1).map_or(line.len(), |field| field.0);
    let start = skip(field_start(key.start_field), blanks)
        .saturating_add(key.start_char as usize - 1)
        .min(line.len());
    let end = match key.end {
        None => line.len(),
        Some((field, 0)) => fields.get(field as usize - 1).map_or(line.len(), |field| field.1),
        Some((field, chars)) => {
            skip(field_start(field), end_blanks).saturating_add(chars as usize).min(line.len())
        }
    };
    &line[start..end.max(start)]
}

/// Start and end of every field. Without a separator a field begins with the blanks before it.
fn field_bounds(line: &[u8], separator: Option<u8>) -> Vec<(usize, usize)> {
    let mut bounds = Vec::new();
    let mut start = 0;
    for at in 0..line.len() {
        match separator {
            Some(separator) if line[at] == separator => {
                bounds.push((start, at));
                start = at + 1;
            }
            None if at > start && is_blank(line[at]) && !is_blank(line[at - 1]) => {
                bounds.push((start, at));
                start = at;
            }
            _ => {}
        }
    }
    bounds.push((start, line.len()));
    bounds
}

fn compare_text(flags: &KeyFlags, a: &[u8], b: &[u8]) -> Ordering {
    if flags.numeric {
        return compare_numbers(a, b);
    }
    let visible = |byte: &u8| match (flags.dictionary, flags.nonprinting) {
        (true, _) => is_blank(*byte) || byte.is_ascii_alphanumeric(),
        (false, true) => (32..127).contains(byte),
        (false, false) => true,
    };
    let shown = |text: &[u8]| -> Vec<u8> {
        let kept = text.iter().copied().filter(visible);
        if flags.fold_case {
            kept.map(|byte| byte.to_ascii_uppercase()).collect()
        } else {
            kept.collect()
        }
    };
    shown(a).cmp(&shown(b))
}

/// A number as sign, integer digits without leading zeros, and fraction digits without trailing
/// zeros.
fn parse_number(text: &[u8]) -> (bool, Vec<u8>, Vec<u8>) {
    let mut rest = text.iter().copied().skip_while(|&byte| is_blank(byte)).peekable();
    let negative = rest.next_if_eq(&b'-').is_some();
    let mut integer = Vec::new();
    while let Some(digit) = rest.next_if(u8::is_ascii_digit) {
        integer.push(digit);
    }
    let mut fraction = Vec::new();
    if rest.next_if_eq(&b'.').is_some() {
        while let Some(digit) = rest.next_if(u8::is_ascii_digit) {
            fraction.push(digit);
        }
    }
    let integer: Vec<u8> = integer.into_iter().skip_while(|&digit| digit == b'0').collect();
    while fraction.last() == Some(&b'0') {
        fraction.pop();
    }
    let zero = integer.is_empty() && fraction.is_empty();
    (negative && !zero, integer, fraction)
}

fn compare_numbers(a: &[u8], b: &[u8]) -> Ordering {
    let ((a_negative, a_integer, a_fraction), (b_negative, b_integer, b_fraction)) =
        (parse_number(a), parse_number(b));
    let magnitude = a_integer
        .len()
        .cmp(&b_integer.len())
        .then_with(|| a_integer.cmp(&b_integer))
        .then_with(|| a_fraction.cmp(&b_fraction));
    match (a_negative, b_negative) {
        (true, false) => Ordering::Less,
        (false, true) => Ordering::Greater,
        (false, false) => magnitude,
        (true, true) => magnitude.reverse(),
    }
}
