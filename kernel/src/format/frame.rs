//! How a record lies in memory, in a run and in a part of its own bytes: its *body* (what is
//! compared, hashed and counted), and behind it what tells where it ends. Together they are its
//! *stored* bytes.
//!
//! Everything that is done for each record knows frames alone, not formats. Loops over records are
//! compiled for each kind of frame ([`with_layout!`]).

use memchr::memchr;

use crate::error::BadRecord;

/// Where stored records end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Behind this byte, which is in no body.
    Terminated(u8),
    /// After so many bytes; all of them are body.
    Fixed(u32),
}

/// One kind of frame, for loops that are compiled for it alone.
pub(crate) trait Layout: Copy {
    /// Bytes behind each body.
    const TRAILER: usize;

    /// Where a record ends in `next`, of which `held` bytes came before; `None` if it goes on.
    fn end(self, held: usize, next: &[u8]) -> Option<usize>;
}

/// See [`Frame::Terminated`].
#[derive(Clone, Copy)]
pub(crate) struct Terminated(pub(crate) u8);

/// See [`Frame::Fixed`].
#[derive(Clone, Copy)]
pub(crate) struct Fixed(pub(crate) usize);

impl Layout for Terminated {
    const TRAILER: usize = 1;

    #[inline(always)]
    fn end(self, _: usize, next: &[u8]) -> Option<usize> {
        memchr(self.0, next).map(|at| at + 1)
    }
}

impl Layout for Fixed {
    const TRAILER: usize = 0;

    #[inline(always)]
    fn end(self, held: usize, next: &[u8]) -> Option<usize> {
        (held + next.len() >= self.0).then(|| self.0.saturating_sub(held))
    }
}

/// Evaluates an expression with `$layout` standing for the [`Layout`] of a frame.
macro_rules! with_layout {
    ($frame:expr, $layout:ident => $body:expr) => {
        match $frame {
            $crate::format::Frame::Terminated(byte) => {
                let $layout = $crate::format::frame::Terminated(byte);
                $body
            }
            $crate::format::Frame::Fixed(len) => {
                let $layout = $crate::format::frame::Fixed(len as usize);
                $body
            }
        }
    };
}
pub(crate) use with_layout;

impl Frame {
    /// Bytes that are stored behind each body.
    #[inline]
    pub fn trailer_len(self) -> usize {
        fn of<L: Layout>(_: L) -> usize {
            L::TRAILER
        }
        with_layout!(self, layout => of(layout))
    }

    /// The body of a stored record. `stored` must be a whole stored record.
    #[inline]
    pub fn body(self, stored: &[u8]) -> &[u8] {
        &stored[..stored.len().saturating_sub(self.trailer_len())]
    }

    /// Where a record ends in `next`, of which `held` bytes came before; `None` if it goes on.
    #[inline]
    pub fn end(self, held: usize, next: &[u8]) -> Option<usize> {
        with_layout!(self, layout => layout.end(held, next))
    }

    /// Bytes of every body, where they are known before a record is seen.
    pub fn body_len(self) -> Option<u64> {
        match self {
            Self::Terminated(_) => None,
            Self::Fixed(len) => Some(u64::from(len)),
        }
    }

    /// The byte that completes a record of which `found` bytes came before its object ended.
    ///
    /// # Errors
    /// Where it cannot be completed.
    pub fn closed_by(self, found: u64) -> Result<u8, BadRecord> {
        match self {
            Self::Terminated(byte) => Ok(byte),
            Self::Fixed(len) => Err(BadRecord::Truncated { found, len }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_ends_after_its_terminator_or_its_length() {
        let lines = Frame::Terminated(b'\n');
        assert_eq!(lines.end(0, b"ab\ncd"), Some(3));
        assert_eq!(lines.end(7, b"\n"), Some(1));
        assert_eq!(lines.end(0, b"ab"), None);
        assert_eq!(lines.body(b"ab\n"), b"ab");
        assert_eq!(lines.closed_by(2), Ok(b'\n'));
        let fixed = Frame::Fixed(3);
        assert_eq!(fixed.end(0, b"abcd"), Some(3));
        assert_eq!(fixed.end(1, b"bcd"), Some(2));
        assert_eq!(fixed.end(0, b"ab"), None);
        assert_eq!(fixed.end(1, b"b"), None);
        assert_eq!(fixed.body(b"abc"), b"abc");
        assert_eq!(fixed.closed_by(2), Err(BadRecord::Truncated { found: 2, len: 3 }));
    }
}
