//! What a record is: a terminated line or a fixed number of bytes.
//!
//! Two views of a record are kept apart everywhere: its *body* (what is compared, hashed and
//! counted) and its *stored* bytes (what runs and parts hold: the body and, for lines, the
//! terminator).

use serde::{Deserialize, Serialize};

/// The longest record body, in bytes.
pub const RECORD_BYTES_MAX: u64 = 1 << 30;

/// How bytes divide into records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Format {
    /// Records end with `terminator`, which is not part of them; the last one of an object may lack
    /// it.
    Lines {
        /// Usually `\n`; NUL with `-z`.
        terminator: u8,
    },
    /// Every record has `len` bytes.
    Fixed {
        /// Bytes of a record, 1 to [`RECORD_BYTES_MAX`].
        len: u32,
    },
}

impl Format {
    /// Bytes that are stored after each body: 1 for lines, 0 for fixed records.
    #[inline]
    pub fn terminator_len(&self) -> usize {
        match self {
            Self::Lines { .. } => 1,
            Self::Fixed { .. } => 0,
        }
    }

    /// The body of a stored record. `stored` must be a whole stored record.
    #[inline]
    pub fn body<'a>(&self, stored: &'a [u8]) -> &'a [u8] {
        &stored[..stored.len().saturating_sub(self.terminator_len())]
    }

    /// The stored length of the record that starts at `bytes[0]`, or `None` if `bytes` do not hold
    /// all of it.
    #[inline]
    pub fn stored_len(&self, bytes: &[u8]) -> Option<usize> {
        match *self {
            Self::Lines { terminator } => memchr::memchr(terminator, bytes).map(|at| at + 1),
            Self::Fixed { len } => (bytes.len() >= len as usize).then_some(len as usize),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_ends_after_its_terminator_or_its_length() {
        let lines = Format::Lines { terminator: b'\n' };
        assert_eq!(lines.stored_len(b"ab\ncd"), Some(3));
        assert_eq!(lines.stored_len(b"\n"), Some(1));
        assert_eq!(lines.stored_len(b"ab"), None);
        assert_eq!(lines.body(b"ab\n"), b"ab");
        let fixed = Format::Fixed { len: 3 };
        assert_eq!(fixed.stored_len(b"abcd"), Some(3));
        assert_eq!(fixed.stored_len(b"ab"), None);
        assert_eq!(fixed.body(b"abc"), b"abc");
    }
}
