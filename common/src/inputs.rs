//! Inputs that workers offer of their own (`--input-dir`): how a request names them, and which files that means.
//!
//! `workers:/` is every file of every worker that offers folders, `workers:/PATH` what has that path below any of those folders, a file or a folder or a glob. The
//! order is by worker id, then by path, byte by byte. As elsewhere, names with a segment that begins with `_` or `.` are no input unless they are spelled out.

use globset::{GlobBuilder, GlobMatcher};

use crate::error::{Error, Result};
use crate::names;
use crate::plan::TEXT_BYTES_MAX;
use crate::store::is_normal;

/// What an INPUT begins with that means files of workers.
pub const SCHEME: &str = "workers:";
/// Most folders that one worker offers.
pub const FOLDERS_MAX: usize = 64;

/// The pattern of an INPUT that means files of workers; none for any other INPUT.
///
/// # Errors
/// `Invalid` where the pattern cannot be one.
pub fn of_workers(input: &str) -> Option<Result<Pattern>> {
    let rest = input.strip_prefix(SCHEME)?;
    let pattern = rest.strip_prefix('/').filter(|rest| !rest.starts_with('/'));
    let refused =
        || Error::invalid(format!("{input:?}: write workers:/ for all files that workers offer, or workers:/PATH"));
    Some(pattern.ok_or_else(refused).and_then(|text| Pattern::new(text).map_err(|e| e.at(format!("INPUT {input}")))))
}

/// Which files below a worker's folders are meant.
#[derive(Debug, Clone)]
pub struct Pattern {
    text: String,
    /// What lies in or below this folder may match.
    base: String,
    glob: Option<GlobMatcher>,
}

impl Pattern {
    /// Reads a pattern: empty for everything, else a path or a glob without `.` and `..`, relative to the folders.
    ///
    /// # Errors
    /// `Invalid`, saying what is wrong with it.
    pub fn new(text: &str) -> Result<Self> {
        let path = text.strip_suffix('/').unwrap_or(text);
        if text.len() > TEXT_BYTES_MAX {
            return Err(Error::invalid(format!("a pattern of {} bytes, the limit is {TEXT_BYTES_MAX}", text.len())));
        }
        if !path.is_empty() && !is_normal(path) || path.is_empty() && !text.is_empty() {
            return Err(Error::invalid(format!("{text:?} must be a path without empty, . and .. segments")));
        }
        let wild = path.find(['*', '?', '[', '{']);
        let base = wild.map_or(path, |at| path[..at].rsplit_once('/').map_or("", |(base, _)| base));
        let glob = wild.map(|_| GlobBuilder::new(text).literal_separator(true).build());
        let glob = glob.transpose().map_err(|e| Error::invalid(format!("not a valid pattern: {e}")))?;
        Ok(Self { text: text.to_owned(), base: base.to_owned(), glob: glob.map(|glob| glob.compile_matcher()) })
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether a file is meant, by its path below the folder that is offered.
    pub fn matches(&self, relative: &str) -> bool {
        if relative == self.text {
            return true;
        }
        let Some(rest) = below(relative, &self.base).filter(|rest| names::is_input_name(rest)) else { return false };
        !rest.is_empty() && self.glob.as_ref().is_none_or(|glob| glob.is_match(relative))
    }

    /// Whether a file that is meant may lie below this folder, which is given by its path below the folder that is offered.
    pub fn may_match_below(&self, relative: &str) -> bool {
        below(&self.base, relative).is_some()
            || below(relative, &self.base).is_some_and(names::is_input_name)
            || self.glob.is_some() && below(&self.text, relative).is_some()
    }
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

    #[test]
    fn only_what_begins_with_workers_is_meant() {
        let check = |input: &str, expected: Option<Result<&str, &str>>| {
            let found = of_workers(input).map(|read| read.map(|pattern| pattern.as_str().to_owned()));
            match (found, expected) {
                (None, None) => {}
                (Some(Ok(found)), Some(Ok(expected))) => assert_eq!(found, expected, "{input}"),
                (Some(Err(error)), Some(Err(part))) => assert!(error.message.contains(part), "{input}: {error}"),
                (found, expected) => panic!("{input}: {found:?}, not {expected:?}"),
            }
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
        check("workers:/[a", Some(Err("not a valid pattern")));
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
                folders.for_each(|folder| assert!(pattern.may_match_below(folder), "{pattern:?} in {folder}"));
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
    fn folders_without_a_match_are_left_alone() {
        let check = |pattern: &str, folder: &str, expected: bool| {
            assert_eq!(Pattern::new(pattern).expect("pattern").may_match_below(folder), expected, "{pattern} {folder}");
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
        check(".h/x", ".h", true);
    }
}
