//! Inputs that workers offer of their own (`--input-dir`): how a request names them, and which
//! files that means.
//!
//! `workers:/` is every file of every worker that offers folders, `workers:/PATH` what has that
//! path below any of those folders, a file or a folder or a glob. What exists at any worker is a
//! path, whatever characters its name has; only what does not exist is read as a glob (the leader
//! finds out). The order is by worker id, then by path, byte by byte. As elsewhere, names with a
//! segment that begins with `_` or `.` are no input unless they are spelled out.

use std::path::Path;

use muster_kernel::format::magic;

use crate::paths;
use crate::store::is_normal;
use crate::survey::{Levels, escaped, is_wild, unescaped, wild_at};
use muster_protocol::error::{Error, Result};
use muster_protocol::names;
use muster_protocol::plan::TEXT_BYTES_MAX;

/// What an INPUT begins with that means files of workers.
pub const SCHEME: &str = "workers:";
/// Most folders that one worker offers.
pub const FOLDERS_MAX: usize = 64;
/// First bytes of a text that are shown: as many as the longest magic number at the begin of a file
/// has.
const TEXT_HEAD_BYTES: usize = 16;

/// What an INPUT asks for that means files of workers, a path or a glob; none for any other INPUT.
///
/// # Errors
/// `Invalid` where it can be neither.
pub fn of_workers(input: &str) -> Option<Result<&str>> {
    let rest = input.strip_prefix(SCHEME)?;
    let text = rest.strip_prefix('/').filter(|rest| !rest.starts_with('/'));
    let refused = || {
        Error::invalid(format!(
            "{input:?}: write workers:/ for all files that workers offer, or workers:/PATH"
        ))
    };
    let checked = |text| check(text).map(|()| text).map_err(|e| e.at(format!("INPUT {input}")));
    Some(text.ok_or_else(refused).and_then(checked))
}

/// # Errors
/// `Invalid`, saying what is wrong with it, where nothing can have such a path or match such a
/// glob.
fn check(text: &str) -> Result<()> {
    let path = text.strip_suffix('/').unwrap_or(text);
    if text.len() > TEXT_BYTES_MAX {
        return Err(Error::invalid(format!(
            "a pattern of {} bytes, the limit is {TEXT_BYTES_MAX}",
            text.len()
        )));
    }
    if !path.is_empty() && !is_normal(path) || path.is_empty() && !text.is_empty() {
        return Err(Error::invalid(format!(
            "{text:?} must be a path without empty, . and .. segments"
        )));
    }
    Ok(())
}

/// Which files below a worker's folders are meant.
#[derive(Debug, Clone)]
pub struct Pattern {
    text: String,
    /// What lies in or below this folder may match; the path itself where it is no glob.
    base: String,
    /// What is meant below it; none where everything is.
    levels: Option<Levels>,
}

impl Pattern {
    /// Reads a pattern: empty for everything, else a path or a glob without `.` and `..`, relative
    /// to the folders. A backslash takes its meaning from a character.
    ///
    /// # Errors
    /// `Invalid`, saying what is wrong with it.
    pub fn new(text: &str) -> Result<Self> {
        check(text)?;
        let path = text.strip_suffix('/').unwrap_or(text);
        let Some(wild) = wild_at(path) else {
            return Ok(Self { text: text.to_owned(), base: unescaped(path), levels: None });
        };
        let base_bytes = path[..wild].rfind('/').unwrap_or(0);
        let levels = Levels::new(text[base_bytes..].trim_start_matches('/'))?;
        Ok(Self {
            text: text.to_owned(),
            base: unescaped(&path[..base_bytes]),
            levels: Some(levels),
        })
    }

    /// What has this very path, or lies below it, whatever characters it has.
    ///
    /// # Errors
    /// As [`Pattern::new`].
    pub fn of_path(path: &str) -> Result<Self> {
        Self::new(&escaped(path))
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether a file is meant, by its path below the folder that is offered.
    pub fn matches(&self, relative: &str) -> bool {
        match below(relative, &self.base) {
            Some("") => self.levels.is_none() && !self.text.ends_with('/'),
            Some(rest) => {
                names::is_input_name(rest)
                    && self.below_base(rest, |levels, rest, _| levels.means(rest))
            }
            None => false,
        }
    }

    /// Whether a file that is meant may lie below this folder, which is given by its path below the
    /// folder that is offered.
    pub fn may_match_below(&self, relative: &str) -> bool {
        let lies_above = below(&self.base, relative).is_some();
        let may =
            |rest: &str| names::is_input_name(rest) && self.below_base(rest, Levels::may_lie_below);
        lies_above || below(relative, &self.base).is_some_and(may)
    }

    /// Whether this is the path that is meant, or lies below it; of a glob, the folders that it
    /// begins with.
    pub fn holds(&self, relative: &str) -> bool {
        below(relative, &self.base).is_some()
    }

    /// Asks the pattern of a path below the base, by the name that it has in a file system, and the
    /// number of its names.
    fn below_base(&self, rest: &str, ask: impl Fn(&Levels, &Path, usize) -> bool) -> bool {
        let Some(levels) = &self.levels else { return true };
        let path = paths::path_of(rest);
        ask(levels, path.strip_prefix("/").unwrap_or(&path), rest.split('/').count())
    }
}

/// Whether a text means one path and no other, as a path and as a glob.
pub fn is_plain(text: &str) -> bool {
    !is_wild(text) && unescaped(text) == text
}

/// What of a file's first bytes tells what it is. Text is text by a few of them as well, and most
/// files are, so that a page names as many as it can.
pub fn telling(mut head: Vec<u8>) -> Vec<u8> {
    if magic::is_text(&head) {
        head.truncate(TEXT_HEAD_BYTES);
    }
    head
}

/// The rest of a path below a folder; empty for the folder itself.
fn below<'a>(path: &'a str, folder: &str) -> Option<&'a str> {
    match path.strip_prefix(folder)? {
        rest if folder.is_empty() || rest.is_empty() => Some(rest),
        rest => rest.strip_prefix('/'),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A worker shows less of what is text: that must be told in the same way, and stay text.
    #[test]
    fn less_of_a_file_tells_as_much() {
        let utf16: Vec<u8> =
            "several\r\nlines\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
        let utf32: Vec<u8> =
            "several\nlines".chars().flat_map(|c| u32::from(c).to_be_bytes()).collect();
        let (mut tar, mut text) = ([0_u8; 512], [b'a'; 512]);
        tar[..5].copy_from_slice(b"name\0");
        tar[148..156].copy_from_slice(b"000645\0 ");
        text[148..156].copy_from_slice(b"0141000\n");
        for head in [
            &b"\x1f\x8b\x08\0\0\0\0\0\0\x03"[..],
            b"BZh91AY&SY\x01",
            b"\x28\xb5\x2f\xfd\x24",
            b"PK\x03\x04\x14\0\0\0",
            b"PAR1\x15\0",
            b"ORC\x0a\x0b\xff\xfe",
            b"\xff\xfea\0",
            &utf16,
            &utf32,
            &tar,
            &text,
            b"",
            b"plain\n",
            b"BZh91AY\n",
            b"PAR1\nPAR2\n",
            b"ORCA\tgr\xc3",
            b"a\0b\0",
            b"gr\xfc\xdfe in latin-1\n",
        ] {
            let more = b"and a line that is longer than what is shown\n";
            for head in [head.to_vec(), [head, more].concat()] {
                let (bytes, less) = (head.len() as u64, telling(head.clone()));
                let told = |head: &[u8]| {
                    (magic::of(head, bytes).map(|known| known.what), magic::is_text(head))
                };
                assert_eq!(told(&less), told(&head), "{head:?}");
            }
        }
    }

    #[test]
    fn only_what_begins_with_workers_is_meant() {
        let check =
            |input: &str, expected: Option<Result<&str, &str>>| match (of_workers(input), expected)
            {
                (None, None) => {}
                (Some(Ok(found)), Some(Ok(expected))) => assert_eq!(found, expected, "{input}"),
                (Some(Err(error)), Some(Err(part))) => {
                    assert!(error.message.contains(part), "{input}: {error}");
                }
                (found, expected) => panic!("{input}: {found:?}, not {expected:?}"),
            };
        check("/in", None);
        check("file:///workers:/a", None);
        check("worker://w1/a", None);
        check("workers:/", Some(Ok("")));
        check("workers:/a/b*", Some(Ok("a/b*")));
        check("workers:/a/", Some(Ok("a/")));
        check("workers:", Some(Err("write workers:/")));
        check("workers://w1/a", Some(Err("write workers:/")));
        check("workers:/a/../b", Some(Err("without empty, . and .. segments")));
        check("workers:/a//b", Some(Err("without empty")));
        // A file may have such a name.
        check("workers:/[a", Some(Ok("[a")));
    }

    #[test]
    fn patterns_are_files_folders_and_globs() {
        let files = ["a", "b.log", "sub/c.log", "sub/deep/d.log", "sub/_x", ".h/e", "subway"];
        let check = |pattern: &str, expected: &[&str]| {
            let pattern = Pattern::new(pattern).expect("pattern");
            let found: Vec<&str> = files.into_iter().filter(|file| pattern.matches(file)).collect();
            assert_eq!(found, expected, "{pattern:?}");
            for file in found {
                let folders = file.match_indices('/').map(|(at, _)| &file[..at]);
                folders.for_each(|folder| {
                    assert!(pattern.may_match_below(folder), "{pattern:?} in {folder}");
                });
            }
        };
        check("", &["a", "b.log", "sub/c.log", "sub/deep/d.log", "subway"]);
        check("a", &["a"]);
        check("a/", &[]);
        check("sub", &["sub/c.log", "sub/deep/d.log"]);
        check("sub/", &["sub/c.log", "sub/deep/d.log"]);
        check("*.log", &["b.log"]);
        check("**/*.log", &["b.log", "sub/c.log", "sub/deep/d.log"]);
        check("sub/*", &["sub/c.log"]);
        check("sub/_x", &["sub/_x"]);
        check(".h", &[".h/e"]);
        check(".h/e", &[".h/e"]);
        check("none", &[]);
    }

    #[test]
    fn names_that_look_like_globs_are_written_with_backslashes() {
        let files = ["a[1]", "a1", "b[1]/x*", "b[1]/xy", "b1/xy", r"c\d"];
        let check = |pattern: Result<Pattern>, expected: &[&str]| {
            let pattern = pattern.expect("pattern");
            let found: Vec<&str> = files.into_iter().filter(|file| pattern.matches(file)).collect();
            assert_eq!(found, expected, "{pattern:?}");
            for file in found {
                let folders = file.match_indices('/').map(|(at, _)| &file[..at]);
                folders.for_each(|folder| {
                    assert!(pattern.may_match_below(folder), "{pattern:?} in {folder}");
                });
            }
        };
        check(Pattern::new("a[1]"), &["a1"]);
        check(Pattern::new(r"a\[1\]"), &["a[1]"]);
        check(Pattern::of_path("a[1]"), &["a[1]"]);
        check(Pattern::of_path("b[1]"), &["b[1]/x*", "b[1]/xy"]);
        check(Pattern::of_path("b[1]/"), &["b[1]/x*", "b[1]/xy"]);
        check(Pattern::of_path("b[1]/x*"), &["b[1]/x*"]);
        check(Pattern::new(r"b\[1\]/x*"), &["b[1]/x*", "b[1]/xy"]);
        check(Pattern::new("b[1]/x*"), &["b1/xy"]);
        check(Pattern::of_path(r"c\d"), &[r"c\d"]);
        assert!(
            Pattern::new("gr?n").expect("pattern").matches(r"gr\xfcn"),
            "a byte is no four characters"
        );
        assert!(
            Pattern::new("[a").expect_err("no pattern").message.contains("not a valid pattern")
        );
        assert!(Pattern::of_path("[a").expect("a path").matches("[a"));
        for (text, plain) in
            [("", true), ("a/b", true), (r"c\d", true), ("a[1]", false), (r"a\*", false)]
        {
            assert_eq!(is_plain(text), plain, "{text}");
        }
    }

    #[test]
    fn folders_without_a_match_are_left_alone() {
        let check = |pattern: &str, folder: &str, expected: bool| {
            assert_eq!(
                Pattern::new(pattern).expect("pattern").may_match_below(folder),
                expected,
                "{pattern} {folder}"
            );
        };
        check("", "a", true);
        check("", ".git", false);
        check("", "a/_x/b", false);
        check("a/b", "a", true);
        check("a/b", "a/b", true);
        check("a/b", "a/b/c", true);
        check("a/b", "c", false);
        check("a/b", "ab", false);
        check("a/*.log", "a", true);
        check("a/*.log", "b", false);
        check("a/*.log", "a/b", false);
        check("a/b*/*.log", "a/bc", true);
        check("*.log", "a", false);
        check("**/*.log", "a/b", true);
        check(".h/x", ".h", true);
    }

    #[test]
    fn what_lies_above_a_path_is_none_of_it() {
        let check = |path: &str, relative: &str, expected: bool| {
            assert_eq!(
                Pattern::of_path(path).expect("path").holds(relative),
                expected,
                "{path} {relative}"
            );
        };
        check("a/*.log", "a/*.log", true);
        check("a/*.log", "a/*.log/b", true);
        check("a/*.log", "a", false);
        check("a/*.log", "a/b.log", false);
        check("a/", "a", true);
        check("a/", "ab", false);
        check("", "a", true);
    }
}
