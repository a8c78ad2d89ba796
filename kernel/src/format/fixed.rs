//! Records of one length: they begin at its multiples, so an interval that does is read as it is.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::{Cut, Cutter, Frame, RECORD_BYTES_MAX, Rules, SampleWindow, Torn};
use crate::error::{BadRecord, KernelError};
use crate::order::KeyShape;
use crate::proof::{Interval, Sums};
use crate::spec::{KeyDef, SortSpec};

/// Every record has `len` bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fixed {
    /// Bytes of a record, 1 to [`RECORD_BYTES_MAX`].
    pub len: u32,
}

impl Fixed {
    /// The length, for arithmetic: never 0, though what is not validated yet may be.
    fn len(&self) -> u64 {
        u64::from(self.len.max(1))
    }
}

impl Rules for Fixed {
    fn told(&self) -> String {
        format!("records of {} bytes", self.len)
    }

    fn is_text(&self) -> bool {
        false
    }

    /// They may begin with anything, so a few bytes prove nothing.
    fn takes_wide_text(&self) -> bool {
        true
    }

    fn align(&self, offset: u64) -> u64 {
        offset - offset % self.len()
    }

    fn check_object(&self, object_bytes: u64) -> Result<(), BadRecord> {
        match object_bytes % self.len() {
            0 => Ok(()),
            found => Err(BadRecord::Truncated { found, len: self.len }),
        }
    }

    fn cutter(
        &self,
        interval: Interval,
        object_bytes: u64,
        torn: Torn,
    ) -> Result<Box<dyn Cutter>, KernelError> {
        if torn == Torn::Refused {
            self.check_object(object_bytes).map_err(|reason| KernelError::BadRecord {
                position: object_bytes - object_bytes % self.len(),
                reason,
            })?;
        }
        for offset in [interval.begin, interval.end] {
            if offset % self.len() != 0 && !(torn == Torn::Taken && offset == object_bytes) {
                let reason = BadRecord::Misaligned { offset, len: self.len };
                return Err(KernelError::BadRecord { position: offset, reason });
            }
        }
        Ok(Box::new(Whole { interval, at: interval.begin }))
    }

    fn sample_bytes(&self) -> u64 {
        2 * self.len()
    }

    fn complete_records(&self, bytes: &[u8], window: SampleWindow) -> Vec<Range<usize>> {
        let len = self.len();
        let skip = (len - window.object_offset % len) % len;
        let count = (bytes.len() as u64).saturating_sub(skip) / len;
        (0..count)
            .map(|number| (skip + number * len) as usize..(skip + (number + 1) * len) as usize)
            .collect()
    }

    fn adds_up(&self, input: &Sums, skipped: &Sums, consumed: u64) -> bool {
        // What was left out may be the torn end of an object.
        let whole = input.minus(skipped);
        input.bytes == consumed && whole.records.checked_mul(self.len()) == Some(whole.bytes)
    }

    fn frame(&self) -> Frame {
        Frame::Fixed(self.len)
    }

    fn extension(&self) -> &'static str {
        "bin"
    }

    fn parse_key(&self, text: &str) -> Result<KeyDef, KernelError> {
        KeyDef::parse_range(text)
    }

    fn validate(&self, spec: &SortSpec) -> Result<(), KernelError> {
        let invalid = |message: String| Err(KernelError::InvalidSpec(message));
        let len = self.len;
        if len == 0 || u64::from(len) > RECORD_BYTES_MAX {
            return invalid(format!(
                "the record length {len} is not between 1 and {RECORD_BYTES_MAX}"
            ));
        }
        if spec.separator.is_some() {
            return invalid("a field separator (-t) is for lines only".into());
        }
        if spec.global.any_but_reverse() {
            return invalid(
                "of the letters of sort(1) only r, s and u apply to fixed-length records".into(),
            );
        }
        for (number, key) in (1..).zip(&spec.keys) {
            let KeyDef::Range { offset, len: key_len } = *key else {
                return invalid(format!(
                    "key {number} must be OFFSET:LEN for fixed-length records"
                ));
            };
            let end = u64::from(offset) + u64::from(key_len);
            if key_len == 0 || end > u64::from(len) {
                return invalid(format!(
                    "key {number} ({offset}:{key_len}) does not lie within the record of {len} \
                        bytes"
                ));
            }
        }
        Ok(())
    }

    fn key_shape(&self, spec: &SortSpec) -> KeyShape {
        let mut ranges: Vec<(usize, usize)> = spec
            .keys
            .iter()
            .filter_map(|key| match *key {
                KeyDef::Range { offset, len } => Some((offset as usize, len as usize)),
                KeyDef::Field(_) => None,
            })
            .collect();
        if ranges.is_empty() {
            ranges.push((0, self.len as usize));
        }
        match ranges[..] {
            [(offset, len)] if !spec.global.reverse => KeyShape::Range { offset, len },
            _ => KeyShape::Ranges { ranges, reverse: spec.global.reverse },
        }
    }
}

/// Takes the interval's bytes as they are.
#[derive(Debug)]
struct Whole {
    interval: Interval,
    at: u64,
}

impl Cutter for Whole {
    fn read_from(&self) -> u64 {
        self.interval.begin
    }

    fn is_done(&self) -> bool {
        self.at == self.interval.end
    }

    fn consumed(&self) -> Range<u64> {
        self.interval.begin..self.at
    }

    fn push(&mut self, bytes: &[u8]) -> Cut {
        let left = usize::try_from(self.interval.end - self.at).unwrap_or(usize::MAX);
        let take = 0..bytes.len().min(left);
        self.at += take.len() as u64;
        Cut { take, done: self.is_done() }
    }
}
