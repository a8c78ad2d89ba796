//! Reads keys as users write them: `F[.C][LETTERS][,F[.C][LETTERS]]` as sort(1) does, and
//! `OFFSET:LEN`.

use super::{FieldKey, KeyDef, KeyFlags};
use crate::error::KernelError;

impl KeyDef {
    /// Reads `OFFSET:LEN`, both in bytes, the offset from 0.
    pub fn parse_range(text: &str) -> Result<Self, KernelError> {
        let number = |part: &str| {
            part.bytes().all(|b| b.is_ascii_digit()).then(|| part.parse().ok()).flatten()
        };
        let parsed =
            text.split_once(':').and_then(|(offset, len)| Some((number(offset)?, number(len)?)));
        match parsed {
            Some((offset, len)) if len > 0 => Ok(Self::Range { offset, len }),
            _ => Err(refuse(text, "OFFSET:LEN is expected, in bytes, such as 0:10")),
        }
    }
}

impl FieldKey {
    /// Reads `F[.C][LETTERS][,F[.C][LETTERS]]`.
    pub fn parse(text: &str) -> Result<Self, KernelError> {
        let mut rest = text.as_bytes();
        let mut flags = KeyFlags::default();
        let start_field = positive(
            number(&mut rest),
            text,
            "invalid number at field start",
            "field number is zero",
        )?;
        let start_char = if eat(&mut rest, b'.') {
            positive(
                number(&mut rest),
                text,
                "invalid number after '.'",
                "character offset is zero",
            )?
        } else {
            1
        };
        flags.ignore_leading_blanks = letters(&mut rest, &mut flags, text)?;
        let mut end = None;
        let mut end_ignore_blanks = false;
        if eat(&mut rest, b',') {
            let field = positive(
                number(&mut rest),
                text,
                "invalid number after ','",
                "field number is zero",
            )?;
            let last = if eat(&mut rest, b'.') {
                number(&mut rest).ok_or_else(|| refuse(text, "invalid number after '.'"))?
            } else {
                0
            };
            end = Some((field, last));
            end_ignore_blanks = letters(&mut rest, &mut flags, text)?;
        }
        if !rest.is_empty() {
            return Err(refuse(text, "stray character in field spec"));
        }
        Ok(Self { start_field, start_char, end, flags, end_ignore_blanks })
    }
}

impl KeyFlags {
    /// Sets the flag of one letter of sort(1). Letters that sort(1) knows and muster does not are
    /// refused by name.
    pub fn set(&mut self, letter: char) -> Result<(), KernelError> {
        match letter {
            'n' => self.numeric = true,
            'r' => self.reverse = true,
            'b' => self.ignore_leading_blanks = true,
            'f' => self.fold_case = true,
            'd' => self.dictionary = true,
            'i' => self.nonprinting = true,
            'g' | 'h' | 'M' | 'R' | 'V' => {
                return Err(KernelError::InvalidSpec(format!(
                    "the ordering '{letter}' of sort(1) is not built yet"
                )));
            }
            other => {
                return Err(KernelError::InvalidSpec(format!(
                    "'{other}' is no ordering of sort(1)"
                )));
            }
        }
        Ok(())
    }
}

fn refuse(text: &str, why: &str) -> KernelError {
    KernelError::InvalidSpec(format!("key '{text}': {why}"))
}

fn eat(rest: &mut &[u8], byte: u8) -> bool {
    match rest.split_first() {
        Some((&first, tail)) if first == byte => {
            *rest = tail;
            true
        }
        _ => false,
    }
}

/// Digits at the start of `rest`, as strtoumax() reads them for sort(1): behind blanks, with a plus
/// or without. A number too large for the type is as good as its maximum.
fn number(rest: &mut &[u8]) -> Option<u32> {
    while let [b' ' | b'\t'..=b'\r', tail @ ..] = *rest {
        *rest = tail;
    }
    eat(rest, b'+');
    let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
    let (head, tail) = rest.split_at(digits);
    *rest = tail;
    let value = head
        .iter()
        .fold(0u32, |value, b| value.saturating_mul(10).saturating_add(u32::from(b - b'0')));
    (digits > 0).then_some(value)
}

fn positive(value: Option<u32>, text: &str, missing: &str, zero: &str) -> Result<u32, KernelError> {
    match value {
        None => Err(refuse(text, missing)),
        Some(0) => Err(refuse(text, zero)),
        Some(value) => Ok(value),
    }
}

/// Reads letters up to a comma or a stray character. Returns whether `b` was among them; the others
/// go to `flags`.
fn letters(rest: &mut &[u8], flags: &mut KeyFlags, text: &str) -> Result<bool, KernelError> {
    let mut blanks = false;
    while let Some((&letter, tail)) = rest.split_first() {
        match letter {
            b'b' => blanks = true,
            b'a'..=b'z' | b'A'..=b'Z' => {
                flags.set(char::from(letter)).map_err(|e| refuse(text, &e.to_string()))?;
            }
            _ => break,
        }
        *rest = tail;
    }
    Ok(blanks)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Start field, start character, end, and letters (`B` is the `b` of the end).
    type Shown<'a> = (u32, u32, Option<(u32, u32)>, &'a str);

    fn check(text: &str, expect: Result<Shown<'_>, &str>) {
        let shown = FieldKey::parse(text).map(|key| {
            let letters: String = [
                (key.flags.numeric, 'n'),
                (key.flags.reverse, 'r'),
                (key.flags.ignore_leading_blanks, 'b'),
                (key.end_ignore_blanks, 'B'),
                (key.flags.fold_case, 'f'),
                (key.flags.dictionary, 'd'),
                (key.flags.nonprinting, 'i'),
            ]
            .iter()
            .filter_map(|&(set, letter)| set.then_some(letter))
            .collect();
            (key.start_field, key.start_char, key.end, letters)
        });
        let expect = expect
            .map(|(field, char, end, letters)| (field, char, end, String::from(letters)))
            .map_err(|why| KernelError::InvalidSpec(format!("key '{text}': {why}")));
        assert_eq!(shown, expect, "{text}");
    }

    #[test]
    fn field_keys_are_read_as_sort_does() {
        check("1", Ok((1, 1, None, "")));
        check("2,3nr", Ok((2, 1, Some((3, 0)), "nr")));
        check("2.3b,4.5bf", Ok((2, 3, Some((4, 5)), "bBf")));
        check("1di,1.0", Ok((1, 1, Some((1, 0)), "di")));
        check("99999999999", Ok((u32::MAX, 1, None, "")));
        check(" 1. +2,\t3", Ok((1, 2, Some((3, 0)), "")));
        check("1nn,2bb", Ok((1, 1, Some((2, 0)), "nB")));
        check("++1", Err("invalid number at field start"));
        check("-1", Err("invalid number at field start"));
        check("", Err("invalid number at field start"));
        check("0", Err("field number is zero"));
        check("1.0", Err("character offset is zero"));
        check("1.", Err("invalid number after '.'"));
        check("1,", Err("invalid number after ','"));
        check("1,0", Err("field number is zero"));
        check("1,2.", Err("invalid number after '.'"));
        check("1,2,3", Err("stray character in field spec"));
        check("1 ", Err("stray character in field spec"));
        check("1V", Err("the ordering 'V' of sort(1) is not built yet"));
        check("1x", Err("'x' is no ordering of sort(1)"));
    }

    #[test]
    fn ranges_are_offset_and_length() {
        assert_eq!(KeyDef::parse_range("0:10"), Ok(KeyDef::Range { offset: 0, len: 10 }));
        for bad in ["", "5", "5:", ":5", "1:0", "-1:2", "+1:2", "1:2:3", "1:99999999999"] {
            assert!(KeyDef::parse_range(bad).is_err(), "{bad}");
        }
    }
}
