//! The one comparison (P3): how a record becomes key bytes that compare with memcmp, then shorter
//! first.
//!
//! Where the format allows it the key *is* a slice of the record and nothing is copied. Else it is
//! encoded: the `-k` keys one after the other (see `encode.rs`), then, for lines without `-s` and
//! `-u`, the whole line, descending under a global `-r`. Equal keys are decided by position, which
//! is never reversed and not part of the key. Fixed-length records have no last resort: key, then
//! position.

use crate::encode::{TextRules, complement, push_number, push_open_text, push_text};
use crate::error::KernelError;
use crate::fields::FieldFinder;
use crate::record::Format;
use crate::spec::{FieldKey, KeyDef, SortSpec};

/// A compiled [`SortSpec`].
#[derive(Clone, Debug)]
pub struct Order {
    format: Format,
    unique: bool,
    shape: KeyShape,
}

/// Where key bytes come from.
#[derive(Clone, Debug)]
pub(crate) enum KeyShape {
    /// The whole body of a line.
    Line,
    /// Bytes of a fixed-length record.
    Range { offset: usize, len: usize },
    /// Ranges of a fixed-length record one after the other, perhaps complemented; `len` bytes in
    /// all.
    Ranges { ranges: Vec<(usize, usize)>, reverse: bool },
    /// Fields of a line, encoded.
    Fields { components: Vec<Component>, tail: Tail },
}

#[derive(Clone, Debug)]
pub(crate) struct Component {
    finder: FieldFinder,
    value: Value,
    reverse: bool,
}

#[derive(Clone, Copy, Debug)]
enum Value {
    Text(TextRules),
    Number,
}

/// The last-resort comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tail {
    None,
    Line,
    LineReversed,
}

impl Order {
    /// Validates and compiles `spec`.
    pub fn new(spec: &SortSpec) -> Result<Self, KernelError> {
        spec.validate()?;
        let shape = match spec.format {
            Format::Lines { .. } => lines_shape(spec),
            Format::Fixed { len } => fixed_shape(spec, len as usize),
        };
        Ok(Self { format: spec.format.clone(), unique: spec.unique, shape })
    }

    /// How bytes divide into records.
    #[inline]
    pub fn format(&self) -> &Format {
        &self.format
    }

    /// Whether only the first of equal keys is kept (`-u`).
    #[inline]
    pub fn unique(&self) -> bool {
        self.unique
    }

    /// The comparison key of a record body (the record without its terminator). It borrows from the
    /// record where it can; else it is built in `scratch`, whose old contents are lost.
    #[inline]
    pub fn key<'a>(&self, body: &'a [u8], scratch: &'a mut Vec<u8>) -> &'a [u8] {
        match &self.shape {
            KeyShape::Line => body,
            KeyShape::Range { offset, len } => &body[*offset..offset + len],
            KeyShape::Ranges { ranges, reverse } => {
                ranges_key(ranges, *reverse, body, scratch);
                scratch
            }
            KeyShape::Fields { components, tail } => {
                match borrowed_field(components, *tail, body) {
                    Some(text) => text,
                    None => {
                        fields_key(components, *tail, body, scratch);
                        scratch
                    }
                }
            }
        }
    }

    /// The key of `body` in `out`, copied if need be.
    pub(crate) fn key_into(&self, body: &[u8], out: &mut Vec<u8>) {
        match &self.shape {
            KeyShape::Fields { components, tail } => fields_key(components, *tail, body, out),
            KeyShape::Ranges { ranges, reverse } => ranges_key(ranges, *reverse, body, out),
            KeyShape::Line => {
                out.clear();
                out.extend_from_slice(body);
            }
            KeyShape::Range { offset, len } => ranges_key(&[(*offset, *len)], false, body, out),
        }
    }

    /// The range of the body that is the key, where it is the same for every record; `None` where
    /// keys are encoded.
    #[inline]
    pub(crate) fn raw_key(&self) -> Option<RawKey> {
        match self.shape {
            KeyShape::Line => Some(RawKey::Line),
            KeyShape::Range { offset, len } => Some(RawKey::Range { offset, len }),
            KeyShape::Ranges { .. } | KeyShape::Fields { .. } => None,
        }
    }
}

/// A key that lies at the same place in every record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RawKey {
    /// The whole body of a line.
    Line,
    /// `len` bytes from `offset`.
    Range { offset: usize, len: usize },
}

fn fixed_shape(spec: &SortSpec, record_len: usize) -> KeyShape {
    let mut ranges: Vec<(usize, usize)> = spec
        .keys
        .iter()
        .filter_map(|key| match *key {
            KeyDef::Range { offset, len } => Some((offset as usize, len as usize)),
            KeyDef::Field(_) => None,
        })
        .collect();
    if ranges.is_empty() {
        ranges.push((0, record_len));
    }
    match ranges[..] {
        [(offset, len)] if !spec.global.reverse => KeyShape::Range { offset, len },
        _ => KeyShape::Ranges { ranges, reverse: spec.global.reverse },
    }
}

fn lines_shape(spec: &SortSpec) -> KeyShape {
    let mut keys: Vec<FieldKey> = spec
        .keys
        .iter()
        .filter_map(|key| match key {
            KeyDef::Field(field) => Some(field.inherit(&spec.global)),
            KeyDef::Range { .. } => None,
        })
        .collect();
    if keys.is_empty() && spec.global.any_but_reverse() {
        keys.push(FieldKey::whole_line(spec.global));
    }
    // Without any key the whole line is compared whatever -s and -u say.
    let tail = match (spec.stable || spec.unique) && !keys.is_empty() {
        true => Tail::None,
        false if spec.global.reverse => Tail::LineReversed,
        false => Tail::Line,
    };
    if keys.is_empty() && tail == Tail::Line {
        return KeyShape::Line;
    }
    let components = keys
        .iter()
        .map(|key| Component {
            finder: FieldFinder::new(key, spec.separator),
            value: match key.flags.numeric {
                true => Value::Number,
                false => Value::Text(TextRules {
                    fold_case: key.flags.fold_case,
                    dictionary: key.flags.dictionary,
                    nonprinting: key.flags.nonprinting,
                }),
            },
            reverse: key.flags.reverse,
        })
        .collect();
    KeyShape::Fields { components, tail }
}

fn ranges_key(ranges: &[(usize, usize)], reverse: bool, body: &[u8], out: &mut Vec<u8>) {
    out.clear();
    ranges.iter().for_each(|&(offset, len)| out.extend_from_slice(&body[offset..offset + len]));
    if reverse {
        complement(out);
    }
}

/// A single ascending text without letters and without last resort is a slice of the line.
fn borrowed_field<'a>(components: &[Component], tail: Tail, body: &'a [u8]) -> Option<&'a [u8]> {
    match components {
        [Component { finder, value: Value::Text(rules), reverse: false }]
            if tail == Tail::None && rules.is_plain() =>
        {
            Some(finder.find(body))
        }
        _ => None,
    }
}

fn fields_key(components: &[Component], tail: Tail, body: &[u8], out: &mut Vec<u8>) {
    out.clear();
    for (number, component) in components.iter().enumerate() {
        let text = component.finder.find(body);
        let last = tail == Tail::None && number + 1 == components.len();
        let start = out.len();
        match component.value {
            Value::Number => push_number(out, text),
            Value::Text(rules) if last && !component.reverse => push_open_text(out, text, rules),
            Value::Text(rules) => push_text(out, text, rules),
        }
        if component.reverse {
            complement(&mut out[start..]);
        }
    }
    match tail {
        Tail::None => {}
        Tail::Line => out.extend_from_slice(body),
        Tail::LineReversed => {
            let start = out.len();
            push_text(out, body, TextRules::default());
            complement(&mut out[start..]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::KeyFlags;

    fn spec(keys: &[&str]) -> SortSpec {
        let mut spec = SortSpec::new(Format::Lines { terminator: b'\n' });
        spec.keys = keys
            .iter()
            .map(|key| KeyDef::Field(FieldKey::parse(key).expect("a valid key")))
            .collect();
        spec
    }

    fn check(spec: &SortSpec, body: &[u8], expect: &[u8]) {
        let order = Order::new(spec).expect("a valid spec");
        assert_eq!(order.key(body, &mut Vec::new()), expect);
    }

    #[test]
    fn plain_lines_and_single_ranges_are_not_encoded() {
        check(&spec(&[]), b"a\0b", b"a\0b");
        check(&SortSpec { unique: true, ..spec(&[]) }, b"ab", b"ab");
        check(
            &SortSpec { stable: true, separator: Some(b','), ..spec(&["2,2"]) },
            b"a,b\0c,d",
            b"b\0c",
        );
        let mut fixed = SortSpec::new(Format::Fixed { len: 4 });
        check(&fixed, b"abcd", b"abcd");
        fixed.keys = vec![KeyDef::Range { offset: 1, len: 2 }];
        check(&fixed, b"abcd", b"bc");
        fixed.keys.push(KeyDef::Range { offset: 0, len: 1 });
        check(&fixed, b"abcd", b"bca");
        fixed.global.reverse = true;
        check(&fixed, b"abcd", &[!b'b', !b'c', !b'a']);
    }

    #[test]
    fn encoded_keys_end_with_the_line_unless_stable_or_unique() {
        let reverse = KeyFlags { reverse: true, ..KeyFlags::default() };
        check(&spec(&["2,2"]), b"a b", b" b\0\0a b");
        check(&SortSpec { stable: true, ..spec(&["2,2n"]) }, b"a 7", &[0x81, 0x81, 71, 0]);
        check(&SortSpec { unique: true, ..spec(&["1,1f", "2,2"]) }, b"a b", b"A\0\0 b");
        check(&SortSpec { global: reverse, stable: true, ..spec(&[]) }, b"a", &[!b'a', 0xFF, 0xFF]);
        check(
            &SortSpec { global: reverse, ..spec(&["1,1f"]) },
            b"a",
            &[b'A', 0, 0, !b'a', 0xFF, 0xFF],
        );
        check(
            &SortSpec { global: reverse, stable: true, ..spec(&["1,1"]) },
            b"a",
            &[!b'a', 0xFF, 0xFF],
        );
    }
}
