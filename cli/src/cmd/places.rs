//! From what is typed on the command line to URLs: a URL as it is, a path made absolute as the
//! system would read it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use muster_platform::paths;
use muster_platform::store::BlobUrl;
use muster_protocol::{Error, Result};

use crate::cmd::STANDARD;
use crate::exit::Exit;

/// What makes a name a pattern, or keeps one from being it.
const SPECIAL: &[u8] = b"*?[]{}\\";

/// An argument as URL.
pub(crate) fn url(argument: impl AsRef<OsStr>) -> Result<BlobUrl, Exit> {
    let argument = argument.as_ref();
    let parsed = match as_url(argument)? {
        Some(text) => text.parse(),
        None => {
            Absolute::of(Path::new(argument)).and_then(|path| BlobUrl::from_path(&path.whole()))
        }
    };
    parsed.map_err(|e| Exit::usage(e.message))
}

/// An INPUT as a request names it: a pattern stays one, and what the folder before it is called is
/// none.
pub(crate) fn input(argument: &OsStr) -> Result<String, Exit> {
    let named = match as_url(argument)? {
        Some(text) => text.parse::<BlobUrl>().map(|_| text.to_owned()),
        None => Absolute::of(Path::new(argument)).and_then(|path| path.as_input()),
    };
    named.map_err(|e| Exit::usage(e.message))
}

/// The argument, where it is a URL.
fn as_url(argument: &OsStr) -> Result<Option<&str>, Exit> {
    if argument == STANDARD {
        return Err(Exit::usage(
            "- (standard input or output) is not built yet: name a file or a folder; what is \
                really named - is ./-",
        ));
    }
    Ok(argument.to_str().filter(|text| text.contains("://")))
}

/// A path, as it is opened from here.
struct Absolute {
    /// Where it begins: the working folder, or what lies before the last `..`, resolved.
    folder: PathBuf,
    /// The rest, as it was typed, without `..`.
    rest: PathBuf,
}

impl Absolute {
    fn of(path: &Path) -> Result<Self> {
        let failed = |what: &Path, e: std::io::Error| {
            Error::invalid(format!("the path {}: {}: {e}", path.display(), what.display()))
        };
        if path.as_os_str().is_empty() {
            return Err(Error::invalid("an empty path; the working folder is ."));
        }
        let here = if path.is_absolute() {
            PathBuf::from("/")
        } else {
            std::env::current_dir().map_err(|e| {
                Error::invalid(format!(
                    "the path {}: the working folder cannot be found: {e}",
                    path.display()
                ))
            })?
        };
        let components: Vec<Component<'_>> = path.components().collect();
        let behind = components
            .iter()
            .rposition(|component| *component == Component::ParentDir)
            .map_or(0, |at| at + 1);
        let folder = if behind == 0 {
            here
        } else {
            // What .. means hangs on the links before it. Where nothing is there, the system would
            // find nothing either.
            let before = here.join(components[..behind].iter().collect::<PathBuf>());
            before.canonicalize().map_err(|e| failed(&before, e))?
        };
        let rest = components[behind..]
            .iter()
            .filter(|component| matches!(component, Component::Normal(_)));
        let mut rest: PathBuf = rest.collect();
        if path.as_os_str().as_bytes().ends_with(b"/") {
            rest.push("");
        }
        Ok(Self { folder, rest })
    }

    fn whole(&self) -> PathBuf {
        self.folder.join(&self.rest)
    }

    fn as_input(&self) -> Result<String> {
        let special = self.folder.as_os_str().as_bytes().iter().any(|byte| SPECIAL.contains(byte));
        let (folder, rest) = (BlobUrl::from_path(&self.folder)?, paths::key_of(&self.rest));
        Ok(match (folder.key(), rest.as_str()) {
            (_, "") => folder.to_string(),
            ("", _) => format!("file:///{rest}"),
            _ if special => format!("{folder}/./{rest}"),
            _ => format!("{folder}/{rest}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_path_is_what_the_system_would_open() {
        let dir = tempfile::tempdir().expect("dir");
        let base = dir.path().canonicalize().expect("base");
        std::fs::create_dir_all(base.join("far/below")).expect("folders");
        std::fs::create_dir_all(base.join("a[1]/b")).expect("folders");
        symlink(base.join("far/below"), base.join("link")).expect("link");
        let check = |typed: &str, expected: Option<&str>| {
            let found = input(base.join(typed).as_os_str()).ok();
            assert_eq!(
                found,
                expected.map(|expected| format!("file://{}/{expected}", base.display())),
                "{typed}"
            );
            if let Some(expected) = expected {
                let whole = url(base.join(typed)).expect("url");
                let expected = expected.trim_end_matches('/').replace("/./", "/");
                assert_eq!(whole.file_path(), Some(base.join(expected)), "{typed}");
            }
        };
        check("x", Some("x"));
        check("./x//y/", Some("x/y/"));
        check("*.txt", Some("*.txt"));
        // Not base/x: the link leads elsewhere.
        check("link/../x", Some("far/x"));
        check("link/../../x", Some("x"));
        check("none/../x", None);
        check("a[1]/../*", Some("*"));
        check("a[1]/b/../*.txt", Some("a[1]/./*.txt"));
        check("a[1]/*.txt", Some("a[1]/*.txt"));
    }

    #[test]
    fn names_may_have_any_bytes() {
        let name = OsString::from_vec(b"/d/gr\xfcn".to_vec());
        assert_eq!(input(&name).expect("input"), r"file:///d/gr\xfcn");
        assert_eq!(url(&name).expect("url").file_path(), Some(PathBuf::from(name)));
        assert_eq!(input("s3://bucket/a//b*".as_ref()).expect("input"), "s3://bucket/a//b*");
        for refused in ["", "-", "s3://x", "file:///a/../b", "gs://bucket/a"] {
            assert!(
                format!("{:?}", input(refused.as_ref()).expect_err(refused)).contains("code: 2"),
                "{refused}"
            );
        }
    }
}
