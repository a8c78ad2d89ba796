//! Turns parts of a record into bytes that compare with memcmp as the part should compare.
//!
//! Every component but an open last one is *prefix-free*: none is the start of another. So
//! components can be joined, and a descending component is simply the complement of its bytes.
//!
//! - text: the bytes, NUL as `00 FF`, and `00 00` at the end; an *open* text (ascending and last)
//!   is the bare bytes
//! - number: sign, exponent, digits in pairs, a zero at the end; equal values are equal bytes
//!   whatever their leading or trailing zeros

use crate::fields::is_blank;

/// How a text component compares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TextRules {
    /// `f`
    pub(crate) fold_case: bool,
    /// `d`
    pub(crate) dictionary: bool,
    /// `i`
    pub(crate) nonprinting: bool,
}

impl TextRules {
    pub(crate) fn is_plain(&self) -> bool {
        *self == Self::default()
    }

    /// The byte as it compares, or `None` if it does not count. `d` outweighs `i`, as in sort(1).
    #[inline]
    fn apply(&self, byte: u8) -> Option<u8> {
        let counts = if self.dictionary {
            is_blank(byte) || byte.is_ascii_alphanumeric()
        } else {
            !self.nonprinting || matches!(byte, b' '..=b'~')
        };
        counts.then_some(if self.fold_case { byte.to_ascii_uppercase() } else { byte })
    }
}

/// Appends a text component that is not the last one, or is descending.
pub(crate) fn push_text(out: &mut Vec<u8>, text: &[u8], rules: TextRules) {
    if rules.is_plain() {
        let mut rest = text;
        while let Some(nul) = memchr::memchr(0, rest) {
            out.extend_from_slice(&rest[..=nul]);
            out.push(0xFF);
            rest = &rest[nul + 1..];
        }
        out.extend_from_slice(rest);
    } else {
        for byte in text.iter().filter_map(|&byte| rules.apply(byte)) {
            out.push(byte);
            if byte == 0 {
                out.push(0xFF);
            }
        }
    }
    out.extend_from_slice(&[0, 0]);
}

/// Appends an ascending text component after which nothing follows.
pub(crate) fn push_open_text(out: &mut Vec<u8>, text: &[u8], rules: TextRules) {
    if rules.is_plain() {
        out.extend_from_slice(text);
    } else {
        out.extend(text.iter().filter_map(|&byte| rules.apply(byte)));
    }
}

const NEGATIVE: u8 = 0x7F;
const ZERO: u8 = 0x80;
const POSITIVE: u8 = 0x81;
/// Exponents up to this fit one byte.
const SHORT_EXPONENT_MAX: i64 = 100;

/// Appends the value of the number at the start of `text`: blanks, `-`, digits, `.`, digits;
/// anything else, and nothing, is zero.
pub(crate) fn push_number(out: &mut Vec<u8>, text: &[u8]) {
    let start = text.iter().position(|&b| !is_blank(b)).unwrap_or(text.len());
    let (negative, unsigned) = match text[start..].split_first() {
        Some((b'-', rest)) => (true, rest),
        _ => (false, &text[start..]),
    };
    let digits_at = |from: &[u8]| from.iter().take_while(|b| b.is_ascii_digit()).count();
    let (integer, rest) = unsigned.split_at(digits_at(unsigned));
    let fraction = match rest.split_first() {
        Some((b'.', rest)) => &rest[..digits_at(rest)],
        _ => &[],
    };
    let significant = |digits: &[u8]| digits.iter().position(|&b| b != b'0');
    // The value is 0.DIGITS * 10^exponent, where the first digit is not zero.
    let (integer, fraction, exponent) = match (significant(integer), significant(fraction)) {
        (Some(at), _) => (&integer[at..], fraction, (integer.len() - at) as i64),
        (None, Some(at)) => (&[][..], &fraction[at..], -(at as i64)),
        (None, None) => return out.push(ZERO),
    };
    out.push(if negative { NEGATIVE } else { POSITIVE });
    let magnitude = out.len();
    push_exponent(out, exponent);
    push_digits(out, integer, fraction);
    if negative {
        complement(&mut out[magnitude..]);
    }
}

/// One byte for the usual exponents; a leading 0 or 255 and four more for the others. Records are
/// at most 2^30 bytes, so they suffice.
fn push_exponent(out: &mut Vec<u8>, exponent: i64) {
    if exponent.abs() <= SHORT_EXPONENT_MAX {
        out.push((0x80 + exponent) as u8);
    } else {
        out.push(if exponent < 0 { 0x00 } else { 0xFF });
        out.extend_from_slice(&((exponent + (1 << 31)) as u32).to_be_bytes());
    }
}

/// Pairs of digits as 1 to 100, without trailing zero digits, then 0.
fn push_digits(out: &mut Vec<u8>, integer: &[u8], fraction: &[u8]) {
    let trimmed = |digits: &[u8]| digits.iter().rposition(|&b| b != b'0').map_or(0, |at| at + 1);
    let (integer_len, fraction_len) = match trimmed(fraction) {
        0 => (trimmed(integer), 0),
        len => (integer.len(), len),
    };
    let mut digits =
        integer[..integer_len].iter().chain(&fraction[..fraction_len]).map(|b| b - b'0');
    while let Some(tens) = digits.next() {
        out.push(tens * 10 + digits.next().unwrap_or(0) + 1);
    }
    out.push(0);
}

/// Turns ascending bytes into descending ones and back.
pub(crate) fn complement(bytes: &mut [u8]) {
    bytes.iter_mut().for_each(|byte| *byte = !*byte);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        push_text(&mut out, text, TextRules::default());
        out
    }

    fn number(text: &str) -> Vec<u8> {
        let mut out = Vec::new();
        push_number(&mut out, text.as_bytes());
        out
    }

    /// Every pair of `groups` must compare as their places in the list; texts of one group must be
    /// equal.
    fn check_ascending(groups: &[&[&str]], encode: fn(&str) -> Vec<u8>) {
        for (i, left) in groups.iter().enumerate() {
            for (j, right) in groups.iter().enumerate() {
                for (a, b) in left.iter().flat_map(|a| right.iter().map(move |b| (a, b))) {
                    assert_eq!(encode(a).cmp(&encode(b)), i.cmp(&j), "{a:?} against {b:?}");
                    let prefix = i != j && encode(b).starts_with(&encode(a));
                    assert!(!prefix, "{a:?} begins {b:?}");
                }
            }
        }
    }

    #[test]
    fn text_ascends_and_is_prefix_free() {
        let groups = [
            &[""][..],
            &["\0"],
            &["\0\0"],
            &["\0a"],
            &["\u{1}"],
            &["a"],
            &["a\0"],
            &["a\0b"],
            &["aa"],
            &["b"],
        ];
        check_ascending(&groups, |s| text(s.as_bytes()));
        assert!(text(&[0xFF]) > text(&[0xFE, 0xFF]) && text(&[0xFF, 0xFF]) > text(&[0xFF]));
    }

    #[test]
    fn numbers_ascend_by_value() {
        let huge = format!("1{}", "0".repeat(300));
        let minus_huge = format!("-{huge}");
        let tiny = format!("0.{}1", "0".repeat(300));
        let groups = [
            &[minus_huge.as_str()][..],
            &["-1000"],
            &["-100.5"],
            &["-100", "-0100.00", " -100x"],
            &["-99"],
            &["-1.01"],
            &["-1"],
            &["-.5", "-0.50"],
            &["0", "", "-", "-0", "0.0", "x", "+5", ".", "-.", "- 1", " \t"],
            &[tiny.as_str()],
            &["0.001"],
            &["0.01", ".01", ".0100"],
            &["0.1"],
            &["0.11"],
            &["1", "01", "1.", "1.0", "\t 1", "1e5", "1,000", "1.-5"],
            &["1.5", "1.50.7"],
            &["2"],
            &["9.99"],
            &["10"],
            &["99"],
            &["100"],
            &["101"],
            &[huge.as_str()],
        ];
        check_ascending(&groups, number);
    }

    #[test]
    fn rules_choose_and_fold_bytes() {
        let open = |rules: TextRules| {
            let mut out = Vec::new();
            push_open_text(&mut out, b"a-B \x01\xC3z", rules);
            out
        };
        assert_eq!(open(TextRules { fold_case: true, ..TextRules::default() }), b"A-B \x01\xC3Z");
        assert_eq!(open(TextRules { dictionary: true, ..TextRules::default() }), b"aB z");
        assert_eq!(open(TextRules { nonprinting: true, ..TextRules::default() }), b"a-B z");
    }
}
