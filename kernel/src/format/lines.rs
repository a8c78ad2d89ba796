//! Lines: bytes up to a terminator. A line belongs to the interval that holds its first byte, so
//! whoever reads an interval looks one byte back (is it a line start?) and reads on past the end
//! until its last line is complete.

use std::ops::Range;

use memchr::{memchr, memchr_iter};
use serde::{Deserialize, Serialize};

use super::{Cut, Cutter, Frame, Rules, SampleWindow, Torn};
use crate::error::{BadRecord, KernelError};
use crate::order::{Component, KeyShape, Tail};
use crate::proof::{Interval, Sums};
use crate::spec::{FieldKey, KeyDef, SortSpec};

/// Records end with `terminator`, which is not part of them; the last one of an object may lack it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lines {
    /// Usually `\n`; NUL with `-z`.
    pub terminator: u8,
}

impl Rules for Lines {
    fn told(&self) -> String {
        if self.terminator == 0 { "lines that end with NUL" } else { "lines" }.to_owned()
    }

    fn is_text(&self) -> bool {
        true
    }

    fn takes_wide_text(&self) -> bool {
        self.terminator == 0
    }

    fn align(&self, offset: u64) -> u64 {
        offset
    }

    fn check_object(&self, _: u64) -> Result<(), BadRecord> {
        Ok(())
    }

    fn cutter(
        &self,
        interval: Interval,
        object_bytes: u64,
        _: Torn,
    ) -> Result<Box<dyn Cutter>, KernelError> {
        Ok(Box::new(LineCutter::new(self.terminator, interval, object_bytes)))
    }

    fn sample_bytes(&self) -> u64 {
        0
    }

    fn complete_records(&self, bytes: &[u8], window: SampleWindow) -> Vec<Range<usize>> {
        let mut records = Vec::new();
        let mut start = if window.object_offset == 0 { Some(0) } else { None };
        for end in memchr_iter(self.terminator, bytes) {
            records.extend(start.map(|start| start..end));
            start = Some(end + 1);
        }
        let last = start.filter(|&start| window.at_object_end && start < bytes.len());
        records.extend(last.map(|start| start..bytes.len()));
        records
    }

    /// Each line has a terminator, but the last of an object need not.
    fn adds_up(&self, input: &Sums, _: &Sums, consumed: u64) -> bool {
        input.bytes <= consumed && consumed - input.bytes <= input.records
    }

    fn frame(&self) -> Frame {
        Frame::Terminated(self.terminator)
    }

    fn extension(&self) -> &'static str {
        "txt"
    }

    fn parse_key(&self, text: &str) -> Result<KeyDef, KernelError> {
        FieldKey::parse(text).map(KeyDef::Field)
    }

    fn validate(&self, spec: &SortSpec) -> Result<(), KernelError> {
        for (number, key) in (1..).zip(&spec.keys) {
            let KeyDef::Field(field) = key else {
                return Err(KernelError::InvalidSpec(format!(
                    "key {number} is OFFSET:LEN, which is for fixed-length records only"
                )));
            };
            let end_is_zero = matches!(field.end, Some((0, _)));
            if field.start_field == 0 || field.start_char == 0 || end_is_zero {
                return Err(KernelError::InvalidSpec(format!(
                    "key {number}: fields and characters count from 1"
                )));
            }
            field.inherit(&spec.global).flags.check_compatible()?;
        }
        if spec.keys.is_empty() { spec.global.check_compatible() } else { Ok(()) }
    }

    fn key_shape(&self, spec: &SortSpec) -> KeyShape {
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
        let components = keys.iter().map(|key| Component::new(key, spec.separator)).collect();
        KeyShape::Fields { components, tail }
    }
}

#[derive(Debug)]
struct LineCutter {
    terminator: u8,
    interval: Interval,
    object_bytes: u64,
    /// Offset in the object of the next pushed byte.
    at: u64,
    consumed: Range<u64>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Looking for the terminator before the first record.
    Skipping,
    Taking,
    Done,
}

impl LineCutter {
    fn new(terminator: u8, interval: Interval, object_bytes: u64) -> Self {
        let (begin, end) = (interval.begin, interval.end);
        let (at, state) = match begin {
            _ if begin == end => (begin, State::Done),
            0 => (0, State::Taking),
            _ => (begin - 1, State::Skipping),
        };
        Self { terminator, interval, object_bytes, at, consumed: begin..begin, state }
    }

    /// Looks for the first record that begins in the interval; returns where it begins in `bytes`.
    fn skip(&mut self, bytes: &[u8]) -> usize {
        // A record begins after a terminator; it must begin before the interval's end, so the last
        // byte that matters is two before it.
        let relevant =
            usize::try_from(self.interval.end - 1 - self.at).unwrap_or(usize::MAX).min(bytes.len());
        match memchr(self.terminator, &bytes[..relevant]) {
            Some(found) => {
                let begin = self.at + found as u64 + 1;
                self.consumed = begin..begin;
                self.state = State::Taking;
                found + 1
            }
            None => {
                if self.at + relevant as u64 == self.interval.end - 1 {
                    self.state = State::Done;
                }
                0
            }
        }
    }

    /// Where the taken bytes end in `bytes`, which are taken from `start` on.
    fn end_of_take(&mut self, bytes: &[u8], start: usize) -> usize {
        // The last record is the one that holds the interval's last byte.
        let last = usize::try_from((self.interval.end - 1).saturating_sub(self.at))
            .unwrap_or(usize::MAX)
            .max(start);
        match bytes.get(last..).and_then(|tail| memchr(self.terminator, tail)) {
            Some(found) => {
                self.state = State::Done;
                last + found + 1
            }
            None => bytes.len(),
        }
    }
}

impl Cutter for LineCutter {
    fn read_from(&self) -> u64 {
        self.at
    }

    fn is_done(&self) -> bool {
        self.state == State::Done
    }

    fn consumed(&self) -> Range<u64> {
        self.consumed.clone()
    }

    fn push(&mut self, bytes: &[u8]) -> Cut {
        let left = usize::try_from(self.object_bytes - self.at).unwrap_or(usize::MAX);
        let bytes = &bytes[..bytes.len().min(left)];
        let start = match self.state {
            State::Done => return Cut { take: 0..0, done: true },
            State::Taking => 0,
            State::Skipping => self.skip(bytes),
        };
        let mut end = start;
        if self.state == State::Taking {
            end = self.end_of_take(bytes, start);
            self.consumed.end += (end - start) as u64;
        }
        self.at += bytes.len() as u64;
        if self.at == self.object_bytes {
            self.state = State::Done;
        }
        Cut { take: start..end, done: self.state == State::Done }
    }
}
