//! A look at what an INPUT that is no single object finds: which objects below a folder it means,
//! and what of it cannot be input.
//!
//! Names that begin with `_` or `.` are no input, and what lies below them is not looked at.

use std::path::Path;

use globset::{GlobBuilder, GlobMatcher};

use crate::store::BlobMeta;
use muster_protocol::error::{Error, Result};

/// How far a survey goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Objects that are meant, at most (`store.objects_max`).
    pub objects: usize,
    /// Entries of folders that are looked at, at most (`store.entries_max`).
    pub entries: u64,
    /// Folders within folders, at most (`store.depth_max`).
    pub depth: usize,
}

/// Which objects below a folder are meant.
#[derive(Debug, Clone)]
pub struct Wanted {
    base: String,
    /// One pattern for each level of folders, of which the last is for the objects; none where all
    /// are meant.
    levels: Option<Levels>,
    bounds: Bounds,
}

/// A pattern, level by level.
#[derive(Debug, Clone)]
pub(crate) struct Levels {
    whole: GlobMatcher,
    /// What the folders at each depth match that may hold what is meant; none where that does not
    /// follow from the pattern (a group that holds a slash).
    folders: Option<Vec<GlobMatcher>>,
    /// The depth from which any folder may: that of a `**`.
    any_from: Option<usize>,
}

/// An entry that cannot be input.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Omitted {
    /// Its key within the store.
    pub key: String,
    /// Why it cannot be input.
    pub why: String,
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Survey {
    /// The objects that are meant, in byte order of their keys.
    pub objects: Vec<BlobMeta>,
    /// What may be meant and is no object that can be read, in byte order of the keys; at most
    /// [`OMITTED_MAX`] and one.
    pub omitted: Vec<Omitted>,
    /// Whether names that begin with `_` or `.` were passed over.
    pub hidden: bool,
}

/// Entries that one job leaves out because they cannot be input, at most.
pub const OMITTED_MAX: usize = 10_000;

/// What makes a name a pattern, where no backslash stands before it.
const WILD: [char; 4] = ['*', '?', '[', '{'];
/// What a backslash takes its meaning from in a pattern.
const SPECIAL: [char; 7] = ['*', '?', '[', ']', '{', '}', '\\'];

/// Where a text begins to be a pattern; none where it is a name.
pub fn wild_at(text: &str) -> Option<usize> {
    let mut escaped = false;
    let wild = text.char_indices().find(|(_, c)| {
        let wild = !escaped && WILD.contains(c);
        escaped = *c == '\\' && !escaped;
        wild
    });
    wild.map(|(at, _)| at)
}

/// Whether a text is a pattern.
pub fn is_wild(text: &str) -> bool {
    wild_at(text).is_some()
}

/// A name without the backslashes that keep it from being a pattern.
pub fn unescaped(text: &str) -> String {
    let mut name = String::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match chars.peek() {
            Some(next) if c == '\\' && SPECIAL.contains(next) => name.extend(chars.next()),
            _ => name.push(c),
        }
    }
    name
}

/// A name as a pattern writes it.
pub fn escaped(name: &str) -> String {
    let mut text = String::new();
    for c in name.chars() {
        if SPECIAL.contains(&c) {
            text.push('\\');
        }
        text.push(c);
    }
    text
}

impl Wanted {
    /// Everything below a folder.
    pub fn all(base: impl Into<String>, bounds: Bounds) -> Self {
        Self { base: base.into(), levels: None, bounds }
    }

    /// What matches a pattern, relative to the folder; `*` and its like match no slash, `**` does.
    ///
    /// # Errors
    /// `Invalid` where it is no pattern.
    pub fn matching(base: impl Into<String>, pattern: &str, bounds: Bounds) -> Result<Self> {
        Ok(Self { base: base.into(), levels: Some(Levels::new(pattern)?), bounds })
    }

    /// The key of the folder.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// How far the survey goes.
    pub fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// Whether an object is meant, by its path below the folder. Hidden names are the caller's to
    /// pass over.
    pub fn means(&self, relative: &Path) -> bool {
        self.levels.as_ref().is_none_or(|levels| levels.means(relative))
    }

    /// Whether something that is meant may lie below a folder, which is given by its path below the
    /// base and the number of names in that.
    pub fn may_lie_below(&self, relative: &Path, depth: usize) -> bool {
        self.levels.as_ref().is_none_or(|levels| levels.may_lie_below(relative, depth))
    }

    /// What of a whole listing below the base is meant. For stores that know no folders.
    ///
    /// # Errors
    /// `Exhausted` beyond the bound of objects.
    pub fn choose(&self, listed: impl IntoIterator<Item = BlobMeta>) -> Result<Survey> {
        let mut survey = Survey::default();
        for meta in listed {
            let Some(relative) = relative(&meta.key, &self.base) else { continue };
            if relative.split('/').any(|segment| matches!(segment, "." | "..")) {
                // Not hidden: no client of a store can ask for it.
                if self.means(Path::new(relative)) {
                    let why = "a key with . or .. segments, which cannot be asked for".to_owned();
                    survey.omitted.push(Omitted { key: meta.key, why });
                }
            } else if is_hidden(relative) {
                survey.hidden = true;
            } else if self.means(Path::new(relative)) {
                survey.objects.push(meta);
            }
            self.check_objects(&survey)?;
        }
        survey.objects.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        survey.omitted.sort_unstable();
        survey.omitted.truncate(OMITTED_MAX + 1);
        Ok(survey)
    }

    /// # Errors
    /// `Exhausted` beyond the bound of objects.
    pub(crate) fn check_objects(&self, survey: &Survey) -> Result<()> {
        let most = self.bounds.objects;
        if survey.objects.len() > most {
            return Err(Error::exhausted(format!(
                "more than {most} objects lie below {}",
                self.base
            )));
        }
        Ok(())
    }
}

impl Levels {
    /// # Errors
    /// `Invalid` where it is no pattern.
    pub(crate) fn new(pattern: &str) -> Result<Self> {
        let whole = matcher(pattern)
            .map_err(|e| Error::invalid(format!("{pattern:?} is not a valid pattern: {e}")))?;
        let segments: Vec<&str> = pattern.split('/').collect();
        let above = &segments[..segments.len() - 1];
        let levels = (1..=above.len()).map(|depth| matcher(&above[..depth].join("/")));
        let folders = levels.collect::<Result<Vec<_>, _>>().ok();
        let any_from = segments.iter().position(|segment| segment.contains("**"));
        Ok(Self { whole, folders, any_from })
    }

    /// As [`Wanted::means`].
    pub(crate) fn means(&self, relative: &Path) -> bool {
        self.whole.is_match(relative)
    }

    /// As [`Wanted::may_lie_below`].
    pub(crate) fn may_lie_below(&self, relative: &Path, depth: usize) -> bool {
        let Some(folders) = &self.folders else { return true };
        match self.any_from {
            // A `**` may stand for no folder at all, so the patterns before it decide, and nothing
            // behind it.
            Some(any) if depth > any => {
                any == 0
                    || folders.get(any - 1).is_none_or(|glob| matches_start(glob, relative, any))
            }
            _ => depth >= 1 && folders.get(depth - 1).is_some_and(|glob| glob.is_match(relative)),
        }
    }
}

/// Whether the first `depth` names of a path match.
fn matches_start(glob: &GlobMatcher, path: &Path, depth: usize) -> bool {
    let start: std::path::PathBuf = path.components().take(depth).collect();
    glob.is_match(start)
}

fn matcher(pattern: &str) -> Result<GlobMatcher, globset::Error> {
    Ok(GlobBuilder::new(pattern).literal_separator(true).build()?.compile_matcher())
}

/// The rest of a key below a folder; none where it does not lie there.
pub fn relative<'a>(key: &'a str, base: &str) -> Option<&'a str> {
    let rest = if base.is_empty() { Some(key) } else { key.strip_prefix(base)?.strip_prefix('/') };
    rest.filter(|rest| !rest.is_empty())
}

/// Whether a segment of a path begins with `_` or `.`.
fn is_hidden(relative: &str) -> bool {
    !muster_protocol::names::is_input_name(relative)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { objects: 10, entries: 10, depth: 10 };

    #[test]
    fn a_pattern_means_objects_and_the_folders_that_may_hold_them() {
        let check = |pattern: &str, objects: &[&str], folders: &[&str], not: &[&str]| {
            let wanted = Wanted::matching("in", pattern, BOUNDS).expect(pattern);
            objects.iter().for_each(|object| {
                assert!(wanted.means(Path::new(object)), "{pattern} means {object}");
            });
            let below =
                |folder: &str| wanted.may_lie_below(Path::new(folder), folder.split('/').count());
            folders
                .iter()
                .for_each(|folder| assert!(below(folder), "{pattern} may lie below {folder}"));
            not.iter().for_each(|folder| {
                assert!(!below(folder), "{pattern} does not lie below {folder}");
            });
        };
        check("*.log", &["a.log", ".log"], &[], &["a", "a.log", "a/b"]);
        check("a*/b?.log", &["ab/bc.log"], &["a", "ab"], &["b", "a/b", "ab/bc.log"]);
        check("**/*.log", &["a.log", "a/b/c.log"], &["a", "a/b/c"], &[]);
        check("a*/**/x", &["a/x", "ab/c/d/x"], &["a", "ab/c", "ab/c/d"], &["b", "b/a"]);
        check("a/**", &["a/b", "a/b/c"], &["a", "a/b"], &["b", "b/c"]);
        check("{a,b/c}/x", &["a/x", "b/c/x"], &["a", "b", "b/c", "d"], &[]);
        check(r"a\[1\]/*", &["a[1]/x"], &["a[1]"], &["a1"]);
        let error = Wanted::matching("in", "[a", BOUNDS).expect_err("no pattern");
        assert!(error.message.contains("not a valid pattern"), "{error}");
    }

    #[test]
    fn backslashes_keep_a_name_from_being_a_pattern() {
        for (text, wild, name) in [
            ("plain", false, "plain"),
            ("a*", true, "a*"),
            (r"a\*", false, "a*"),
            (r"a\\*", true, r"a\*"),
            (r"a\[1\]", false, "a[1]"),
            ("a]}", false, "a]}"),
            (r"a\b\", false, r"a\b\"),
            (r"a\xff", false, r"a\xff"),
        ] {
            assert_eq!((is_wild(text), unescaped(text)), (wild, name.to_owned()), "{text}");
        }
        for name in ["plain", "a*", "[1]{x}?", r"a\b\", r"\\*", r"gr\xfc", "]}"] {
            assert!(!is_wild(&escaped(name)) && unescaped(&escaped(name)) == name, "{name}");
        }
    }

    #[test]
    fn of_a_listing_what_is_hidden_or_not_meant_is_passed_over() {
        let meta = |key: &str| BlobMeta {
            key: key.to_owned(),
            bytes: 1,
            version: String::new(),
            modified_unix_ms: 0,
        };
        let keys = ["in/b", "in/a.log", "in/_x", "in/c/.d/e", "inside", "in//f"].map(meta);
        let dots = Wanted::all("in", BOUNDS)
            .choose(["in/./a", "in/b/../c", "in/.d"].map(meta))
            .expect("survey");
        assert_eq!(
            dots.omitted.iter().map(|omitted| omitted.key.as_str()).collect::<Vec<_>>(),
            ["in/./a", "in/b/../c"]
        );
        let logs =
            Wanted::matching("in", "*.log", BOUNDS).expect("pattern").choose(["in/./a"].map(meta));
        assert!(logs.expect("survey").omitted.is_empty(), "what is not meant is nobody's trouble");
        let check = |wanted: &Wanted, expected: &[&str]| {
            let survey = wanted.choose(keys.clone()).expect("survey");
            assert_eq!(
                survey.objects.iter().map(|meta| meta.key.as_str()).collect::<Vec<_>>(),
                expected
            );
            assert!(survey.hidden && survey.omitted.is_empty());
        };
        check(&Wanted::all("in", BOUNDS), &["in//f", "in/a.log", "in/b"]);
        check(&Wanted::matching("in", "*.log", BOUNDS).expect("pattern"), &["in/a.log"]);
        let few = Wanted::all("in", Bounds { objects: 2, ..BOUNDS });
        assert_eq!(
            few.choose(keys).expect_err("too many").kind,
            muster_protocol::ErrorKind::Exhausted
        );
    }
}
