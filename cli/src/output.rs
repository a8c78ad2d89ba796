//! The only place that writes to stdout and stderr.

use std::io::{ErrorKind, Write};
use std::sync::OnceLock;

use serde::Serialize;

use crate::exit::Exit;

/// Why something could not be written to stdout, the first time.
static UNWRITTEN: OnceLock<String> = OnceLock::new();

/// One line on stdout.
pub(crate) fn line(text: &str) {
    noted(writeln!(std::io::stdout().lock(), "{text}"));
}

/// Lines as they are on stdout.
pub(crate) fn text(text: &str) {
    noted(write!(std::io::stdout().lock(), "{text}"));
}

/// A reader that went away (`| head`) is no error of ours; a full disk is told in the end, when the
/// work is done.
fn noted(written: std::io::Result<()>) {
    if let Err(error) = written
        && error.kind() != ErrorKind::BrokenPipe
    {
        drop(UNWRITTEN.set(error.to_string()));
    }
}

/// Whether all that was to stand on stdout stands there.
pub(crate) fn written() -> Result<(), Exit> {
    noted(std::io::stdout().lock().flush());
    match UNWRITTEN.get() {
        None => Ok(()),
        Some(why) => Err(Exit::failed(format!(
            "the work is done, but cannot be told on standard output: {why}"
        ))),
    }
}

/// One line on stderr.
pub(crate) fn error_line(text: &str) {
    drop(writeln!(std::io::stderr().lock(), "{text}"));
}

/// A value as JSON on stdout, on one line.
pub(crate) fn json(value: &impl Serialize) {
    match serde_json::to_string(value) {
        Ok(text) => line(&text),
        Err(error) => error_line(&format!("muster: cannot print JSON: {error}")),
    }
}

/// Text from elsewhere, without what could move a terminal's cursor.
pub(crate) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// `1.2 GB`: decimal, three digits.
pub(crate) fn bytes(count: u64) -> String {
    scaled(count as f64, &["B", "kB", "MB", "GB", "TB", "PB"])
}

/// `1.2 GB/s`, or a dash where no time has passed.
pub(crate) fn rate(count: u64, millis: u64) -> String {
    if millis == 0 {
        "-".to_owned()
    } else {
        format!("{}/s", bytes((count as f64 * 1000.0 / millis as f64) as u64))
    }
}

/// `1.25 s` or `3m 20s`.
pub(crate) fn seconds(millis: u64) -> String {
    if millis < 60_000 {
        format!("{:.2} s", millis as f64 / 1000.0)
    } else {
        humantime::format_duration(std::time::Duration::from_secs(millis / 1000)).to_string()
    }
}

/// A number in groups of three digits.
pub(crate) fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn scaled(mut value: f64, units: &[&str]) -> String {
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    let decimals = if unit == 0 || value >= 99.95 {
        0
    } else if value >= 9.995 {
        1
    } else {
        2
    };
    format!("{value:.decimals$} {}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_well() {
        assert_eq!(
            [bytes(0), bytes(999), bytes(1000), bytes(1_234_567), bytes(99_960_000)],
            ["0 B", "999 B", "1.00 kB", "1.23 MB", "100 MB"]
        );
        assert_eq!([grouped(7), grouped(1000), grouped(1_234_567)], ["7", "1,000", "1,234,567"]);
        assert_eq!([seconds(1250), seconds(200_000)], ["1.25 s", "3m 20s"]);
        assert_eq!(rate(1000, 0), "-");
    }
}
