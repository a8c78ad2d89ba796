//! Where the programs under test and the servers around them are. A missing one fails the test and
//! says how to get it: nothing is skipped.

use std::env;
use std::path::{Path, PathBuf};

/// The built `muster`: `MUSTER_BIN`, else the one that cargo put beside this test.
///
/// # Panics
/// Where there is none.
pub fn muster() -> PathBuf {
    if let Some(path) = env::var_os("MUSTER_BIN") {
        let path = PathBuf::from(path);
        assert!(path.is_file(), "MUSTER_BIN is {}, which is no file", path.display());
        return path;
    }
    let test = env::current_exe().expect("a test knows its own path");
    // target/<profile>/deps/<test>, or target/<profile>/<program>
    let folder = test.parent().expect("a program lies in a folder");
    let profile = if folder.ends_with("deps") {
        folder.parent().expect("deps lies in target/<profile>")
    } else {
        folder
    };
    let path = profile.join("muster");
    assert!(
        path.is_file(),
        "{} is missing: `cargo build --workspace --bins` builds it (or deploy/test.sh, which does \
            all); MUSTER_BIN names another",
        path.display()
    );
    path
}

/// The older of two builds of `muster` whose versions of wire and journal are neighbours:
/// `MUSTER_OLD_BIN`. `deploy/test-upgrade.sh` builds both.
///
/// # Panics
/// Where there is none.
pub fn old_muster() -> PathBuf {
    one_of_two("MUSTER_OLD_BIN")
}

/// The newer of the two: `MUSTER_NEW_BIN`.
///
/// # Panics
/// Where there is none.
pub fn new_muster() -> PathBuf {
    one_of_two("MUSTER_NEW_BIN")
}

fn one_of_two(variable: &str) -> PathBuf {
    let path = env::var_os(variable).map(PathBuf::from).unwrap_or_else(|| {
        panic!(
            "{variable} is not set: deploy/test-upgrade.sh builds two neighbouring versions of \
                muster and runs this test with them"
        )
    });
    assert!(path.is_file(), "{variable} is {}, which is no file", path.display());
    path
}

/// The nats-server: `MUSTER_NATS_SERVER`, else the one in `.tools/bin`, else the one on `PATH`.
///
/// # Panics
/// Where there is none.
pub fn nats_server() -> PathBuf {
    server("MUSTER_NATS_SERVER", "nats-server")
}

/// SeaweedFS's `weed`, an S3 server: `MUSTER_S3_SERVER`, else the one in `.tools/bin`, else the one
/// on `PATH`.
///
/// # Panics
/// Where there is none.
pub fn s3_server() -> PathBuf {
    server("MUSTER_S3_SERVER", "weed")
}

fn server(variable: &str, name: &str) -> PathBuf {
    let named = env::var_os(variable).map(PathBuf::from);
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/bin").join(name);
    let path = env::var_os("PATH").unwrap_or_default();
    let found = match named {
        Some(named) => Some(named),
        None => [fetched]
            .into_iter()
            .chain(env::split_paths(&path).map(|folder| folder.join(name)))
            .find(|path| path.is_file()),
    };
    match found {
        Some(found) if found.is_file() => found.canonicalize().unwrap_or(found),
        Some(found) => panic!("{variable} is {}, which is no file", found.display()),
        None => {
            panic!(
                "no {name} in .tools/bin or on PATH: `deploy/setup.sh --tests` gets it, {variable} \
                    names another"
            )
        }
    }
}
