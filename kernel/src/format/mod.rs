//! What a record is. Each format is a module here, and all that is particular to it stands there,
//! behind one seam ([`Rules`]) of three sides:
//!
//! - *entrance*: how an object is cut into splits that tile it, where records begin, what is
//!   malformed, how a sample is taken;
//! - *frame*: how a record lies in a run, and what is summed ([`Frame`]);
//! - *exit*: how a partition becomes an object.
//!
//! A format is asked once an object, a split or a window of bytes. What is done for each record
//! goes by the frame alone, so a new format costs the loops over records nothing.

use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::error::{BadRecord, KernelError};
use crate::order::KeyShape;
use crate::proof::{Interval, Sums};
use crate::spec::{KeyDef, SortSpec};

mod fixed;
pub(crate) mod frame;
mod lines;
pub mod magic;

pub use fixed::Fixed;
pub use frame::Frame;
pub use lines::Lines;

/// The longest record body, in bytes.
pub const RECORD_BYTES_MAX: u64 = 1 << 30;

/// How bytes divide into records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Format {
    /// Records that end with a terminator.
    Lines(Lines),
    /// Records of one length.
    Fixed(Fixed),
}

/// A format that the design names and that is not built yet.
struct Later {
    name: &'static str,
    told: &'static str,
    /// Of objects whose content does not tell, in lower case.
    extensions: &'static [&'static str],
}

const LATER: [Later; 5] = [
    Later { name: "csv", told: "CSV", extensions: &["csv"] },
    Later { name: "tsv", told: "TSV", extensions: &["tsv"] },
    Later { name: "jsonl", told: "JSON lines", extensions: &["jsonl", "ndjson"] },
    Later { name: "json", told: "JSON", extensions: &["json"] },
    Later { name: "parquet", told: "Parquet", extensions: &[] },
];

impl Format {
    /// Whether a name is that of a format which is not built yet.
    pub fn is_later(name: &str) -> bool {
        LATER.iter().any(|later| later.name == name)
    }

    /// What is not built yet and has this extension, in lower case; for people.
    pub fn later_by_extension(extension: &str) -> Option<&'static str> {
        LATER.iter().find(|later| later.extensions.contains(&extension)).map(|later| later.told)
    }

    /// What can be asked for, for help texts and refusals.
    pub const NAMES: &str = "lines, fixed:LEN (LEN in bytes)";

    /// Lines that end with `terminator`.
    pub const fn lines(terminator: u8) -> Self {
        Self::Lines(Lines { terminator })
    }

    /// Records of `len` bytes.
    pub const fn fixed(len: u32) -> Self {
        Self::Fixed(Fixed { len })
    }

    /// Reads a name as [`Format::NAMES`] has them; `terminator` is that of lines.
    pub fn parse(name: &str, terminator: u8) -> Option<Self> {
        match name.split_once(':') {
            None if name == "lines" => Some(Self::lines(terminator)),
            Some(("fixed", len)) => len.parse().ok().filter(|len| *len > 0).map(Self::fixed),
            _ => None,
        }
    }

    /// What the format says of itself: the one place that lists them all.
    pub fn rules(&self) -> &dyn Rules {
        match self {
            Self::Lines(lines) => lines,
            Self::Fixed(fixed) => fixed,
        }
    }

    /// How its records lie in a run.
    pub fn frame(&self) -> Frame {
        self.rules().frame()
    }

    /// A cutter for `interval` of an object of `object_bytes` bytes.
    ///
    /// # Errors
    /// [`KernelError::Corrupt`] where the interval is not of such an object; and as
    /// [`Rules::cutter`].
    pub fn cutter(
        &self,
        interval: Interval,
        object_bytes: u64,
        torn: Torn,
    ) -> Result<Box<dyn Cutter>, KernelError> {
        if interval.begin > interval.end || interval.end > object_bytes {
            let Interval { object, begin, end } = interval;
            return Err(KernelError::corrupt(format!(
                "plan: bytes {begin}..{end} of object {object}, which has {object_bytes}"
            )));
        }
        self.rules().cutter(interval, object_bytes, torn)
    }
}

/// For people.
impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.rules().told())
    }
}

/// What a format says of itself.
pub trait Rules: fmt::Debug {
    /// What its records are, for people.
    fn told(&self) -> String;

    /// Whether an object that is no text is worth a warning.
    fn is_text(&self) -> bool;

    /// Whether text of another encoding than ASCII's relatives keeps its records.
    fn takes_wide_text(&self) -> bool;

    // Entrance.

    /// The last place at or before `offset` where a split may begin.
    fn align(&self, offset: u64) -> u64;

    /// What is wrong with an object of so many bytes, whatever they are.
    fn check_object(&self, object_bytes: u64) -> Result<(), BadRecord>;

    /// A cutter for an interval that lies within its object.
    ///
    /// # Errors
    /// [`KernelError::BadRecord`], with an offset in the object, where records cannot lie so.
    fn cutter(
        &self,
        interval: Interval,
        object_bytes: u64,
        torn: Torn,
    ) -> Result<Box<dyn Cutter>, KernelError>;

    /// Bytes of a window that holds a few records, where that can be known; else 0.
    fn sample_bytes(&self) -> u64;

    /// Bodies of the records that lie wholly in a window of raw bytes.
    fn complete_records(&self, bytes: &[u8], window: SampleWindow) -> Vec<Range<usize>>;

    /// Whether records that were read can be all that lay in `consumed` bytes: `input` counts them
    /// all, `skipped` those among them that were left out.
    fn adds_up(&self, input: &Sums, skipped: &Sums, consumed: u64) -> bool;

    // Frame.

    /// How its records lie in a run.
    fn frame(&self) -> Frame;

    // Exit.

    /// What the names of parts end with, where nothing else is asked for.
    fn extension(&self) -> &'static str;

    // Keys.

    /// Reads the argument of one `-k`.
    ///
    /// # Errors
    /// [`KernelError::InvalidSpec`].
    fn parse_key(&self, text: &str) -> Result<KeyDef, KernelError>;

    /// Checks that format, keys and letters fit together.
    ///
    /// # Errors
    /// [`KernelError::InvalidSpec`], naming the key.
    fn validate(&self, spec: &SortSpec) -> Result<(), KernelError>;

    /// Where the comparison key of a valid specification comes from.
    fn key_shape(&self, spec: &SortSpec) -> KeyShape;
}

/// Whether an object may end within a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Torn {
    /// It is refused.
    Refused,
    /// What is left there belongs to the interval that ends with the object.
    Taken,
}

/// Where a window of raw bytes lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampleWindow {
    /// Global position of the window's first byte.
    pub position: u64,
    /// Offset of the window's first byte within its object.
    pub object_offset: u64,
    /// Whether the window ends where the object ends.
    pub at_object_end: bool,
}

/// What to do with pushed bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The part of the pushed bytes that belongs to the interval's records.
    pub take: Range<usize>,
    /// Whether no more bytes are needed.
    pub done: bool,
}

/// Finds the bytes of an interval's records in the bytes of its object. Push parser: read the
/// object from [`Cutter::read_from`] on and push what arrives until a [`Cut`] is done.
pub trait Cutter: fmt::Debug + Send {
    /// Offset in the object of the first byte to push.
    fn read_from(&self) -> u64;

    /// Whether no more bytes are needed; an empty interval needs none at all.
    fn is_done(&self) -> bool;

    /// The bytes of the object that belong to this interval's records, so far: complete once done.
    /// Empty when no record begins here.
    fn consumed(&self) -> Range<u64>;

    /// Looks at the next bytes of the object. Bytes after the object's end, or after done, are
    /// ignored.
    fn push(&mut self, bytes: &[u8]) -> Cut;
}

#[cfg(test)]
mod cut_tests;
