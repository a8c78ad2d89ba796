//! Results computed without muster: by sort(1), by a plain stable sort, by a plain sum of CRC32s.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};

/// What `LC_ALL=C sort` makes of some files with these options.
///
/// # Panics
/// Where sort(1) is missing or refuses.
#[track_caller]
pub fn gnu_sort(options: &[&str], inputs: &[impl AsRef<Path>]) -> Vec<u8> {
    let mut command = Command::new("sort");
    command
        .env_clear()
        .env("LC_ALL", "C")
        .env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command
        .args(options)
        .arg("--")
        .args(inputs.iter().map(|path| path.as_ref().as_os_str() as &OsStr))
        .stdin(Stdio::null());
    let done = command.output().unwrap_or_else(|e| panic!("cannot run sort(1): {e}"));
    assert!(done.status.success(), "sort {options:?}: {}", String::from_utf8_lossy(&done.stderr));
    done.stdout
}

/// Fixed-length records in the order of `len` bytes at `offset`, equal keys as they stood.
///
/// # Panics
/// Where the length does not divide the data, or the key does not lie within a record.
pub fn fixed(bytes: &[u8], record: usize, offset: usize, len: usize) -> Vec<u8> {
    assert!(bytes.len().is_multiple_of(record) && offset + len <= record, "no such records");
    let mut records: Vec<&[u8]> = bytes.chunks(record).collect();
    records.sort_by(|a, b| a[offset..offset + len].cmp(&b[offset..offset + len]));
    records.concat()
}

/// The checksum of gensort and valsort: the sum of the CRC32 of each record, in lower-case hex.
pub fn gensort_checksum(bytes: &[u8]) -> String {
    let sum: u128 = bytes.chunks(100).map(|record| u128::from(crc32fast::hash(record))).sum();
    format!("{sum:x}")
}

/// Checks that two results are the same bytes; where not, shows the first difference.
///
/// # Panics
/// Where they differ.
#[track_caller]
pub fn assert_same_bytes(got: &[u8], want: &[u8], what: &str) {
    if got == want {
        return;
    }
    let place = got.iter().zip(want).position(|(a, b)| a != b).unwrap_or(got.len().min(want.len()));
    let around = |bytes: &[u8]| {
        let window = &bytes[place.saturating_sub(60)..bytes.len().min(place + 60)];
        window.escape_ascii().to_string()
    };
    panic!(
        "{what}: {} bytes, expected {}; the first difference is at byte {place}:\n  got      {}\n  \
            expected {}",
        got.len(),
        want.len(),
        around(got),
        around(want)
    );
}
