//! The one comparison (P3): how a record becomes key bytes that compare with memcmp, then shorter
//! first.
//!
//! Where the format allows it the key *is* a slice of the record and nothing is copied. Else it is
//! encoded: the `-k` keys one after the other (see `encode.rs`), then, for lines without `-s` and
//! `-u`, the whole line, descending under a global `-r`. Equal keys are decided by position, which
//! is never reversed and not part of the key. Fixed-length records have no last resort: key, then
//! position.

use std::borrow::Cow;

use crate::encode::{TextRules, complement, push_number, push_open_text, push_text};
use crate::error::KernelError;
use crate::fields::FieldFinder;
use crate::format::{Format, Frame};
use crate::select::Select;
use crate::spec::{FieldKey, SortSpec};

/// A compiled [`SortSpec`].
#[derive(Clone, Debug)]
pub struct Order {
    format: Format,
    frame: Frame,
    select: Select,
    shape: KeyShape,
}

/// Where key bytes come from.
#[derive(Clone, Debug)]
pub enum KeyShape {
    /// The whole body of a line.
    Line,
    /// Bytes of a fixed-length record.
    Range {
        /// First byte, from 0.
        offset: usize,
        /// Number of bytes.
        len: usize,
    },
    /// Ranges of a fixed-length record one after the other, perhaps complemented; `len` bytes in
    /// all.
    Ranges {
        /// First byte and number of bytes of each.
        ranges: Vec<(usize, usize)>,
        /// Whether the key is complemented, so that it descends.
        reverse: bool,
    },
    /// Fields of a line, encoded.
    Fields {
        /// In order of weight.
        components: Vec<Component>,
        /// What decides between lines whose fields are equal.
        tail: Tail,
    },
}

/// One encoded field of a key.
#[derive(Clone, Debug)]
pub struct Component {
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
pub enum Tail {
    /// Position alone.
    None,
    /// The whole line.
    Line,
    /// The whole line, descending.
    LineReversed,
}

impl Component {
    /// The field that `key` names, compared by the letters of `key`.
    pub(crate) fn new(key: &FieldKey, separator: Option<u8>) -> Self {
        let flags = &key.flags;
        let value = match flags.numeric {
            true => Value::Number,
            false => Value::Text(TextRules {
                fold_case: flags.fold_case,
                dictionary: flags.dictionary,
                nonprinting: flags.nonprinting,
            }),
        };
        Self { finder: FieldFinder::new(key, separator), value, reverse: flags.reverse }
    }
}

impl Order {
    /// Validates and compiles `spec`.
    pub fn new(spec: &SortSpec) -> Result<Self, KernelError> {
        spec.validate()?;
        let (frame, shape) = (spec.format.frame(), spec.format.rules().key_shape(spec));
        Ok(Self { format: spec.format.clone(), frame, select: spec.select(), shape })
    }

    /// How bytes divide into records.
    #[inline]
    pub fn format(&self) -> &Format {
        &self.format
    }

    /// How records lie in runs.
    #[inline]
    pub fn frame(&self) -> Frame {
        self.frame
    }

    /// Which records are kept.
    #[inline]
    pub fn select(&self) -> Select {
        self.select
    }

    /// The same order for records that come after `kept` others: where the first so many are kept,
    /// these keep what is left of them.
    pub fn after(&self, kept: u64) -> Cow<'_, Self> {
        match self.select.first {
            None => Cow::Borrowed(self),
            Some(first) => {
                let select = Select { first: Some(first.saturating_sub(kept)), ..self.select };
                Cow::Owned(Self { select, ..self.clone() })
            }
        }
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
    use crate::spec::{KeyDef, KeyFlags};

    fn spec(keys: &[&str]) -> SortSpec {
        let mut spec = SortSpec::new(Format::lines(b'\n'));
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
        let mut fixed = SortSpec::new(Format::fixed(4));
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
