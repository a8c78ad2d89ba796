use std::ffi::OsStr;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;

use super::*;
use crate::survey::Bounds;

const BOUNDS: Bounds = Bounds { objects: 1000, entries: 1000, depth: 8 };

fn look(wanted: &Wanted) -> Result<Survey> {
    survey(wanted, &AtomicBool::new(false))
}

/// What is found below `base`, and what is left out, each with a part of the reason.
fn check(base: &Path, wanted: &Wanted, expected: &[&str], omitted: &[(&str, &str)]) {
    let found = look(wanted).expect("survey");
    let prefix = format!("{}/", paths::key_of(base));
    let relative = |key: &str| key.strip_prefix(&prefix).expect("below the base").to_owned();
    assert_eq!(found.objects.iter().map(|meta| relative(&meta.key)).collect::<Vec<_>>(), expected);
    let told: Vec<(String, String)> =
        found.omitted.iter().map(|left| (relative(&left.key), left.why.clone())).collect();
    assert_eq!(
        told.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>(),
        omitted.iter().map(|(key, _)| *key).collect::<Vec<_>>()
    );
    for ((key, why), (_, part)) in told.iter().zip(omitted) {
        assert!(why.contains(part), "{key}: {why}");
    }
}

fn all(base: &Path) -> Wanted {
    Wanted::all(paths::key_of(base), BOUNDS)
}

#[test]
fn odd_entries_are_named_and_hidden_ones_are_not_looked_at() {
    let dir = tempfile::tempdir().expect("dir");
    let base = dir.path().canonicalize().expect("base");
    let sub = base.join("sub");
    fs::create_dir_all(sub.join("_hidden")).expect("folders");
    fs::create_dir(base.join(".git")).expect("folder");
    for path in ["a", "sub/b", "sub/_hidden/x", ".git/config", ".dot"] {
        fs::write(base.join(path), path).expect("file");
    }
    fs::write(base.join(OsStr::from_bytes(b"gr\xfcn")), "x").expect("file");
    symlink("nowhere", base.join("dangling")).expect("link");
    symlink("nowhere", base.join("_dangling")).expect("link");
    symlink("self", base.join("self")).expect("link");
    symlink("a", base.join("linked")).expect("link");
    symlink("/dev/null", base.join("null")).expect("link");
    symlink(".", base.join("loop1")).expect("link");
    symlink("..", sub.join("loop2")).expect("link");
    symlink("/", sub.join("root")).expect("link");
    symlink(base.join("sub"), base.join("also")).expect("link");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        base.join("pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .expect("pipe");
    let _listener = UnixListener::bind(base.join("sock")).expect("socket");
    let held = "a link to a folder that holds it";
    check(
        &base,
        &all(&base),
        &["a", "also/b", r"gr\xfcn", "linked", "sub/b"],
        &[
            ("also/loop2", held),
            ("also/root", held),
            ("dangling", "not there (nowhere)"),
            ("loop1", held),
            ("null", "a device"),
            ("pipe", "a pipe"),
            ("self", "symbolic links"),
            ("sock", "a socket"),
            ("sub/loop2", held),
            ("sub/root", held),
        ],
    );
    let pattern = |text: &str| Wanted::matching(paths::key_of(&base), text, BOUNDS).expect(text);
    check(&base, &pattern("?"), &["a"], &[]);
    check(&base, &pattern("d*"), &[], &[("dangling", "not there")]);
    check(&base, &pattern("s*/?"), &["sub/b"], &[("self", "symbolic links")]);
}

/// Two links to their own folder made a walk that never ended.
#[test]
fn links_that_go_round_end() {
    let dir = tempfile::tempdir().expect("dir");
    let base = dir.path().canonicalize().expect("base");
    for name in ["x", "y", "z"] {
        symlink(".", base.join(name)).expect("link");
    }
    fs::write(base.join("file"), "x").expect("file");
    let held = "a link to a folder that holds it";
    check(&base, &all(&base), &["file"], &[("x", held), ("y", held), ("z", held)]);
}

#[test]
fn a_look_through_folders_has_bounds_with_names() {
    let dir = tempfile::tempdir().expect("dir");
    let base = dir.path().canonicalize().expect("base");
    // Each folder links twice to the next, so that there are 2^30 ways to the last.
    for level in 0..30 {
        let folder = base.join(format!("{level}"));
        fs::create_dir(&folder).expect("folder");
        symlink(base.join(format!("{}", level + 1)), folder.join("a")).expect("link");
        symlink(base.join(format!("{}", level + 1)), folder.join("b")).expect("link");
    }
    let deep = Wanted::all(paths::key_of(&base), Bounds { depth: 64, ..BOUNDS });
    let error = look(&deep).expect_err("too many entries");
    assert!(
        error.kind == ErrorKind::Invalid && error.message.contains("store.entries_max"),
        "{error}"
    );
    let few = Wanted::all(paths::key_of(&base.join("29")), Bounds { entries: 0, ..BOUNDS });
    assert!(look(&few).expect_err("too many entries").message.contains("store.entries_max"));
    let nested = base.join("n/o/p");
    fs::create_dir_all(&nested).expect("folders");
    fs::write(nested.join("file"), "x").expect("file");
    let flat = Wanted::all(paths::key_of(&base.join("n")), Bounds { depth: 1, ..BOUNDS });
    check(&base.join("n"), &flat, &[], &[("o/p", "store.depth_max")]);
}

/// Whoever gave up must not leave a thread behind that goes on for hours.
#[test]
fn a_look_that_nobody_waits_for_ends() {
    let dir = tempfile::tempdir().expect("dir");
    let base = dir.path().canonicalize().expect("base");
    (0..2 * LOOK_EVERY).for_each(|n| fs::write(base.join(n.to_string()), "").expect("file"));
    let (interest, gone) = Interest::new();
    assert!(survey(&all(&base), &gone).is_ok());
    drop(interest);
    assert!(
        survey(&all(&base), &gone).is_err()
            || survey(&all(&base), &gone).expect("survey").objects.len() < 3
    );
}
