//! What order the user asked for: the record format, the keys and the letters of sort(1). Data
//! only; [`crate::order::Order`] compiles it.
//!
//! Meaning is that of GNU sort 9.1 under `LC_ALL=C`. Types are plain, so that they travel, as JSON:
//! in requests, plans, the journal and manifests. So a new option is an optional field that is left
//! out where it says nothing (`#[serde(default, skip_serializing_if = ...)]`), or a new variant at
//! any place; nothing is renamed, and what a build does not know it refuses by name.

use serde::{Deserialize, Serialize};

use crate::error::KernelError;
use crate::format::Format;
use crate::select::Select;

mod parse;

/// Bound on the number of `-k` keys: as many fit into the request of a job, with room for its
/// inputs.
pub const KEYS_MAX: usize = 1000;

/// The wanted order and how records are told apart. Check it with [`SortSpec::validate`] before
/// use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SortSpec {
    /// How bytes divide into records.
    pub format: Format,
    /// The `-k` keys in order of weight; none means the whole record.
    pub keys: Vec<KeyDef>,
    /// Letters given outside of a key; keys without letters of their own inherit them.
    pub global: KeyFlags,
    /// `-t`: the byte between fields; `None` divides at the change from non-blank to blank.
    pub separator: Option<u8>,
    /// `-s`: no last-resort comparison of whole lines.
    pub stable: bool,
    /// `-u`: only the first of records with equal keys is kept.
    pub unique: bool,
    /// `--top`: no more than so many are kept, the first of the order; all of them, where it says
    /// nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top: Option<u64>,
}

/// One key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum KeyDef {
    /// Bytes `offset..offset + len` of a fixed-length record.
    Range {
        /// First byte, from 0.
        offset: u32,
        /// Number of bytes, at least 1.
        len: u32,
    },
    /// Fields of a line, as in sort(1).
    Field(FieldKey),
}

/// `-k F[.C][LETTERS][,F[.C][LETTERS]]` of sort(1). Fields and characters count from 1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FieldKey {
    /// Field in which the key starts, from 1.
    pub start_field: u32,
    /// Character of that field, from 1.
    pub start_char: u32,
    /// Last field (from 1) and last character (from 1; 0 is the field's end); `None` is the end of
    /// the line.
    pub end: Option<(u32, u32)>,
    /// Letters of this key. `ignore_leading_blanks` is the `b` of the start position.
    pub flags: KeyFlags,
    /// The `b` of the end position.
    pub end_ignore_blanks: bool,
}

/// The letters of sort(1) that change how a key compares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyFlags {
    /// `n`: by numeric value.
    pub numeric: bool,
    /// `r`: descending.
    pub reverse: bool,
    /// `b`: positions count from the first non-blank.
    pub ignore_leading_blanks: bool,
    /// `f`: lower case compares as upper case.
    pub fold_case: bool,
    /// `d`: only blanks, letters and digits count.
    pub dictionary: bool,
    /// `i`: only printable characters count.
    pub nonprinting: bool,
}

impl KeyFlags {
    /// Whether any letter but `r` is set: what sort(1) takes for "has an ordering of its own".
    pub(crate) fn any_but_reverse(&self) -> bool {
        self.numeric
            || self.ignore_leading_blanks
            || self.fold_case
            || self.dictionary
            || self.nonprinting
    }

    pub(crate) fn check_compatible(&self) -> Result<(), KernelError> {
        if self.numeric && (self.dictionary || self.nonprinting) {
            let other = if self.dictionary { 'd' } else { 'i' };
            return Err(KernelError::InvalidSpec(format!(
                "the letters '{other}' and 'n' are incompatible"
            )));
        }
        Ok(())
    }
}

impl FieldKey {
    /// The whole line under the given letters: what sort(1) makes of letters without `-k`.
    pub(crate) fn whole_line(flags: KeyFlags) -> Self {
        Self {
            start_field: 1,
            start_char: 1,
            end: None,
            flags,
            end_ignore_blanks: flags.ignore_leading_blanks,
        }
    }

    /// This key with the global letters, if it has none of its own.
    pub(crate) fn inherit(&self, global: &KeyFlags) -> Self {
        let mut key = self.clone();
        if !key.flags.any_but_reverse() && !key.flags.reverse && !key.end_ignore_blanks {
            key.flags = *global;
            key.end_ignore_blanks = global.ignore_leading_blanks;
        }
        key
    }
}

impl SortSpec {
    /// Plain order of whole records: lines end with `\n`.
    pub fn new(format: Format) -> Self {
        Self {
            format,
            keys: Vec::new(),
            global: KeyFlags::default(),
            separator: None,
            stable: false,
            unique: false,
            top: None,
        }
    }

    /// Which records of the order are kept.
    pub fn select(&self) -> Select {
        Select { distinct: self.unique, first: self.top }
    }

    /// Checks that everything fits together. The error is [`KernelError::InvalidSpec`] and names
    /// the key.
    pub fn validate(&self) -> Result<(), KernelError> {
        if self.keys.len() > KEYS_MAX {
            return Err(KernelError::InvalidSpec(format!(
                "{} keys are given, the limit is {KEYS_MAX}",
                self.keys.len()
            )));
        }
        self.format.rules().validate(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(spec: &SortSpec, expect: Result<(), &str>) {
        assert_eq!(spec.validate(), expect.map_err(|text| KernelError::InvalidSpec(text.into())));
    }

    #[test]
    fn ranges_must_lie_within_the_record() {
        let spec = |len, ranges: &[(u32, u32)]| SortSpec {
            keys: ranges.iter().map(|&(offset, len)| KeyDef::Range { offset, len }).collect(),
            ..SortSpec::new(Format::fixed(len))
        };
        check(&spec(100, &[]), Ok(()));
        check(&spec(100, &[(0, 10), (90, 10)]), Ok(()));
        check(
            &spec(100, &[(91, 10)]),
            Err("key 1 (91:10) does not lie within the record of 100 bytes"),
        );
        check(
            &spec(100, &[(0, 1), (5, 0)]),
            Err("key 2 (5:0) does not lie within the record of 100 bytes"),
        );
        check(
            &spec(100, &[(u32::MAX, u32::MAX)]),
            Err("key 1 (4294967295:4294967295) does not lie within the record of 100 bytes"),
        );
        check(&spec(0, &[]), Err("the record length 0 is not between 1 and 1073741824"));
    }

    #[test]
    fn letters_and_key_kinds_must_fit_the_format() {
        let lines = SortSpec::new(Format::lines(b'\n'));
        let numeric = KeyFlags { numeric: true, ..KeyFlags::default() };
        check(&SortSpec { global: numeric, ..lines.clone() }, Ok(()));
        let both = KeyFlags { dictionary: true, ..numeric };
        check(
            &SortSpec { global: both, ..lines.clone() },
            Err("the letters 'd' and 'n' are incompatible"),
        );
        let range = vec![KeyDef::Range { offset: 0, len: 1 }];
        check(
            &SortSpec { keys: range, ..lines },
            Err("key 1 is OFFSET:LEN, which is for fixed-length records only"),
        );
        let fixed = SortSpec::new(Format::fixed(4));
        let message = "of the letters of sort(1) only r, s and u apply to fixed-length records";
        check(&SortSpec { global: numeric, ..fixed.clone() }, Err(message));
        check(
            &SortSpec { separator: Some(b','), ..fixed.clone() },
            Err("a field separator (-t) is for lines only"),
        );
        let field = vec![KeyDef::Field(FieldKey::whole_line(KeyFlags::default()))];
        check(
            &SortSpec { keys: field, ..fixed },
            Err("key 1 must be OFFSET:LEN for fixed-length records"),
        );
    }
}
