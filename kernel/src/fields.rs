//! Where a `-k` key lies within a line: `begfield` and `limfield` of GNU sort, over slices.

use memchr::memchr;

use crate::spec::FieldKey;

/// What sort(1) takes for a blank in the C locale; a newline counts too, which shows with `-z`
/// only.
#[inline]
pub(crate) fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n')
}

/// Finds one key in lines.
#[derive(Clone, Debug)]
pub(crate) struct FieldFinder {
    separator: Option<u8>,
    /// Fields and characters before the start.
    start: (u32, u32),
    start_skips_blanks: bool,
    /// Whole fields before the end and characters of the end field (0: the whole field is in the
    /// key).
    end: Option<(u32, u32)>,
    end_skips_blanks: bool,
}

impl FieldFinder {
    /// `key` must have been validated and have inherited the global letters.
    pub(crate) fn new(key: &FieldKey, separator: Option<u8>) -> Self {
        Self {
            separator,
            start: (key.start_field - 1, key.start_char - 1),
            start_skips_blanks: key.flags.ignore_leading_blanks,
            end: key.end.map(|(field, last)| (field - 1, last)),
            end_skips_blanks: key.end_ignore_blanks,
        }
    }

    /// The bytes of the key; an end before the start makes it empty.
    pub(crate) fn find<'a>(&self, line: &'a [u8]) -> &'a [u8] {
        let start = self.start_of(line);
        let end = self.end_of(line).max(start);
        &line[start..end]
    }

    fn start_of(&self, line: &[u8]) -> usize {
        let mut at = skip_fields(line, self.start.0, self.separator, true);
        if self.start_skips_blanks {
            at = skip_blanks(line, at);
        }
        line.len().min(at.saturating_add(self.start.1 as usize))
    }

    fn end_of(&self, line: &[u8]) -> usize {
        match self.end {
            None => line.len(),
            Some((fields, 0)) => skip_fields(line, fields.saturating_add(1), self.separator, false),
            Some((fields, chars)) => {
                let mut at = skip_fields(line, fields, self.separator, true);
                if self.end_skips_blanks {
                    at = skip_blanks(line, at);
                }
                line.len().min(at.saturating_add(chars as usize))
            }
        }
    }
}

fn skip_blanks(line: &[u8], from: usize) -> usize {
    from + line[from..].iter().take_while(|&&b| is_blank(b)).count()
}

/// The offset after `count` fields; `past_separator` also steps over the separator after the last
/// of them.
fn skip_fields(line: &[u8], count: u32, separator: Option<u8>, past_separator: bool) -> usize {
    let mut at = 0;
    let mut left = count;
    while at < line.len() && left > 0 {
        left -= 1;
        match separator {
            Some(separator) => match memchr(separator, &line[at..]) {
                None => at = line.len(),
                Some(found) => at += found + usize::from(left > 0 || past_separator),
            },
            None => {
                at = skip_blanks(line, at);
                at += line[at..].iter().take_while(|&&b| !is_blank(b)).count();
            }
        }
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(key: &str, separator: Option<u8>, line: &str, expect: &str) {
        let key = FieldKey::parse(key).expect("a valid key");
        let found = FieldFinder::new(&key, separator).find(line.as_bytes());
        assert_eq!(std::str::from_utf8(found), Ok(expect), "{key:?} of {line:?}");
    }

    #[test]
    fn keys_are_found_as_sort_finds_them() {
        check("1", None, " a b", " a b");
        check("1,1", None, " a b", " a");
        check("2", None, "a  b c", "  b c");
        check("2,2", None, "a  b c", "  b");
        check("2b,2", None, "a  b c", "b");
        check("2.2,2.3", None, "a  b c", " b");
        check("2.1b,2.1b", None, "a  b c", "b");
        check("5", None, "a b", "");
        check("2,2", Some(b','), "a,b,c", "b");
        check("2,3", Some(b','), "a,,c,d", ",c");
        check("2,2", Some(b','), "a,,c", "");
        check("3,3", Some(b','), "a,b,", "");
        check("3,2", Some(b','), "a,b,c", "");
        check("1.2,1.2", Some(b','), "abc,d", "b");
        check("1.3,2.1", Some(b','), "abc,de", "c,d");
        check("1.9,2", Some(b','), "abc,de", "");
    }
}
