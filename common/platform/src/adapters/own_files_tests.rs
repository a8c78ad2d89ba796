use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::clock::ManualClock;
use muster_protocol::error::ErrorKind;

/// A clock by which a page is over after every file.
#[derive(Default)]
struct Hasty(AtomicU64);

impl Clock for Hasty {
    fn now_ms(&self) -> u64 {
        self.0.fetch_add(PAGE_MS, Ordering::SeqCst)
    }

    fn unix_ms(&self) -> u64 {
        0
    }

    fn random(&self) -> u64 {
        0
    }
}

fn write(root: &Path, name: &str, bytes: &[u8]) {
    let path = root.join(name);
    fs::create_dir_all(path.parent().expect("folder")).expect("folder");
    fs::write(path, bytes).expect("file");
}

/// Two folders `in/a` and `in/b` that are offered, and a file beside them that is not.
fn tree() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("temp dir");
    let root = dir.path().canonicalize().expect("root").join("in");
    for name in [
        "a/x.log",
        "a/x/deep/1",
        "a/x/2",
        "a/_hidden",
        "a/.git/config",
        "b/empty",
        "b/sub/y.log",
        "secret",
    ] {
        write(&root, name, if name == "b/empty" { b"" } else { name.as_bytes() });
    }
    symlink(root.join("secret"), root.join("a/leaves")).expect("link");
    symlink("../../../..", root.join("a/up")).expect("link");
    symlink("x.log", root.join("a/inner")).expect("link");
    (dir, root)
}

fn own(root: &Path, folders: &[&str], clock: Arc<dyn Clock>) -> Result<OwnFiles> {
    let folders: Vec<PathBuf> = folders.iter().map(|folder| root.join(folder)).collect();
    OwnFiles::new(&folders, BufferPool::new(0), clock)
}

fn both(root: &Path) -> OwnFiles {
    own(root, &["b", "a"], Arc::new(ManualClock::default())).expect("offers")
}

async fn listed(own: &OwnFiles, root: &Path, pattern: &str) -> Vec<String> {
    let page = own.page(Pattern::new(pattern).expect("pattern"), None).await.expect("page");
    assert_eq!(page.next, None);
    let relative = |file: &LocalFile| {
        file.path.strip_prefix(&format!("{}/", root.display())).expect("below").to_owned()
    };
    page.files.iter().map(relative).collect()
}

#[tokio::test]
async fn files_are_listed_in_the_order_of_their_paths_and_links_are_not_followed() {
    let (_dir, root) = tree();
    let own = both(&root);
    assert_eq!(
        own.folders(),
        [root.join("a"), root.join("b")].map(|path| path.display().to_string())
    );
    // `x.log` comes before `x/`, because `.` comes before `/`.
    let all = ["a/x.log", "a/x/2", "a/x/deep/1", "b/empty", "b/sub/y.log"];
    assert_eq!(listed(&own, &root, "").await, all);
    assert_eq!(listed(&own, &root, "x").await, ["a/x/2", "a/x/deep/1"]);
    assert_eq!(listed(&own, &root, "**/*.log").await, ["a/x.log", "b/sub/y.log"]);
    assert_eq!(listed(&own, &root, "_hidden").await, ["a/_hidden"]);
    assert_eq!(listed(&own, &root, "leaves").await, [""; 0]);
    let page = own.page(Pattern::new("x.log").expect("pattern"), None).await.expect("page");
    let file = &page.files[0];
    assert_eq!((file.bytes, file.head.as_deref().map_err(drop)), (7, Ok(&b"a/x.log"[..])));
    let head = own.head(file.path.trim_start_matches('/')).await.expect("head");
    assert_eq!(
        (head.bytes, &head.version),
        (file.bytes, &file.version),
        "a listing pins what a reader finds"
    );
}

#[tokio::test]
async fn nothing_outside_is_read() {
    let (_dir, root) = tree();
    let own = both(&root);
    let key = |name: &str| format!("{}/{name}", root.display()).trim_start_matches('/').to_owned();
    assert_eq!(
        &own.read(&key("a/x.log"), 0..7, Access::Cached).await.expect("read")[..],
        b"a/x.log"
    );
    for (name, expected) in [
        ("secret", "not below the folders"),
        ("a", "not below the folders"),
        ("a/../secret", "not below the folders"),
        ("a/./x.log", "not below the folders"),
        ("ab/x", "not below the folders"),
        ("a/leaves", "symbolic link"),
        ("a/inner", "symbolic link"),
        ("a/up/etc/passwd", "symbolic link"),
    ] {
        let head = own.head(&key(name)).await.expect_err(name);
        let read = own.read(&key(name), 0..1, Access::Cached).await.expect_err(name);
        for error in [head, read] {
            assert!(
                error.message.contains(expected) && error.kind == ErrorKind::Invalid,
                "{name}: {error}"
            );
        }
    }
    assert_eq!(own.head("etc/passwd").await.expect_err("outside").kind, ErrorKind::Invalid);
    assert_eq!(own.head(&key("a/none")).await.expect_err("gone").kind, ErrorKind::NotFound);
    assert!(
        own.put(&key("a/new"), Bytes::new()).await.is_err()
            && own.delete(&key("a/x.log")).await.is_err()
    );
}

/// The folder is walked into by way of a link that was put there after it was listed.
#[tokio::test]
async fn a_folder_that_becomes_a_link_leads_nowhere() {
    let (_dir, root) = tree();
    let own = both(&root);
    fs::rename(root.join("a/x"), root.join("moved")).expect("move");
    symlink(root.join("moved"), root.join("a/x")).expect("link");
    let key = format!("{}/a/x/2", root.display());
    assert!(
        own.head(key.trim_start_matches('/'))
            .await
            .expect_err("link")
            .message
            .contains("symbolic link")
    );
    assert_eq!(listed(&own, &root, "x").await, [""; 0]);
}

fn pipe(path: &Path) {
    rustix::fs::mknodat(rustix::fs::CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
        .expect("pipe");
}

/// What is left out, relative to the root, each with a part of the reason.
#[track_caller]
fn check_omitted(root: &Path, found: &[LocalOmitted], expected: &[(&str, &str)]) {
    let mut found: Vec<(&str, &str)> =
        found.iter().map(|odd| (odd.path.as_str(), odd.why.as_str())).collect();
    found.sort_unstable();
    let relative =
        |path: &str| path.strip_prefix(&format!("{}/", root.display())).expect("below").to_owned();
    assert_eq!(
        found.iter().map(|(path, _)| relative(path)).collect::<Vec<_>>(),
        expected.iter().map(|(path, _)| *path).collect::<Vec<_>>()
    );
    for ((path, why), (_, part)) in found.iter().zip(expected) {
        assert!(why.contains(part), "{path}: {why}");
    }
}

#[tokio::test]
async fn what_is_no_file_is_named_and_never_opened() {
    let (_dir, root) = tree();
    pipe(&root.join("a/pipe"));
    let _listener = UnixListener::bind(root.join("a/x/sock")).expect("socket");
    for (target, link) in
        [("no\nwhere", "b/dangling"), ("self", "b/self"), ("sub", "b/folder"), ("no", "b/_hidden")]
    {
        symlink(target, root.join(link)).expect("link");
    }
    let own = both(&root);
    let check = async |pattern: &str, expected: &[(&str, &str)]| {
        let page = own.page(Pattern::new(pattern).expect("pattern"), None).await.expect("page");
        check_omitted(&root, &page.omitted, expected);
    };
    let all = [
        ("a/inner", "a link (x.log), and links in a folder that a worker offers are not followed"),
        ("a/leaves", "a link that leads out of the folder that is offered ("),
        ("a/pipe", "a pipe"),
        ("a/up", "a link that leads out of the folder that is offered (../../../..)"),
        ("a/x/sock", "a socket"),
        ("b/dangling", "a link to what is not there (no\u{fffd}where)"),
        ("b/folder", "a link (sub), and links"),
        ("b/self", "cannot look at it: Too many levels of symbolic links"),
    ];
    check("", &all).await;
    check("pipe", &all[2..3]).await;
    check("x", &all[4..5]).await;
    check("_hidden", &[("b/_hidden", "not there (no)")]).await;
    // What no pattern means is nobody's trouble; a link may lead to a folder in which lies what is
    // meant.
    check("?.log", &[]).await;
    check("p*", &all[2..3]).await;
    check("fold*/*.log", &all[6..7]).await;
    check("inn*/*.log", &[]).await;
    let key = root.join("a/pipe").display().to_string();
    assert!(own.read(key.trim_start_matches('/'), 0..1, Access::Cached).await.is_err());
}

#[tokio::test]
async fn pages_follow_one_another_with_what_cannot_be_input() {
    let (_dir, root) = tree();
    for name in ["a/m", "a/m-x", "a/m/2", "b/z"] {
        let path = root.join(name);
        fs::create_dir_all(path.parent().expect("folder")).expect("folder");
        if name == "a/m" { fs::create_dir(path).expect("folder") } else { pipe(&path) }
    }
    let deep = format!("a/m/{}", ["d"; DEPTH_MAX].join("/"));
    fs::create_dir_all(root.join(&deep)).expect("folders");
    write(&root, &format!("{deep}/lost"), b"too deep");
    pipe(&root.join("a/m/e"));
    let own = own(&root, &["a", "b"], Arc::new(Hasty::default())).expect("offers");
    let (mut files, mut omitted, mut after, mut pages) = (Vec::new(), Vec::new(), None, 0);
    loop {
        let page = own.page(Pattern::new("").expect("pattern"), after.clone()).await.expect("page");
        pages += 1;
        assert_eq!(page.files.len() + page.omitted.len(), 1, "one a page, by this clock");
        files.extend(page.files.into_iter().map(|file| file.path));
        omitted.extend(page.omitted);
        if page.next.is_none() {
            break;
        }
        assert!(page.next > after, "{:?} goes on behind {after:?}", page.next);
        after = page.next;
    }
    let all = ["a/x.log", "a/x/2", "a/x/deep/1", "b/empty", "b/sub/y.log"];
    assert_eq!(files, all.map(|name| root.join(name).display().to_string()));
    let links =
        [("a/inner", "a link"), ("a/leaves", "a link"), ("a/m-x", "a pipe"), ("a/m/2", "a pipe")];
    let rest = [
        (&*deep, "a folder deeper than 64 others"),
        ("a/m/e", "a pipe"),
        ("a/up", "a link"),
        ("b/z", "a pipe"),
    ];
    check_omitted(&root, &omitted, &[links, rest].concat());
    assert_eq!(pages, all.len() + links.len() + rest.len());
}

#[test]
fn what_goes_away_or_changes_while_it_is_listed_is_named() {
    let (_dir, root) = tree();
    let own = both(&root);
    let pattern = Pattern::new("").expect("pattern");
    let mut walk = Walk {
        folder: &own.folders[0],
        pattern: &pattern,
        after: None,
        page: Page { files: Vec::new(), omitted: Vec::new(), next: None },
        bytes: 0,
        looked: None,
        full: false,
        clock: &*own.clock,
        until_ms: u64::MAX,
    };
    let (file, folder) = (FileType::RegularFile, FileType::Directory);
    let seen = [
        ("gone", file),
        ("went/", folder),
        ("inner", file),
        ("x", file),
        ("x.log/", folder),
        ("x.log", file),
    ];
    walk.each(seen.map(|(name, what)| (name.to_owned(), what)).into(), "", 0).expect("walk");
    check_omitted(
        &root,
        &walk.page.omitted,
        &[
            ("a/gone", "it went away while its folder was listed"),
            ("a/inner", "a link (x.log)"),
            ("a/went", "it went away while its folder was listed"),
            ("a/x", "it became a folder"),
            ("a/x.log", "cannot list it: Not a directory"),
        ],
    );
    assert_eq!(walk.page.files.len(), 1);
}

/// Such a name failed the whole listing.
#[tokio::test]
async fn a_path_that_is_too_long_to_be_carried_is_named_as_far_as_it_is() {
    let (_dir, root) = tree();
    let long = [0xff; 250];
    let mut folder = root.join("b");
    (0..4).for_each(|_| folder.push(OsStr::from_bytes(&long)));
    fs::create_dir_all(&folder).expect("folders");
    fs::write(folder.join(OsStr::from_bytes(&long)), "x").expect("file");
    let own = both(&root);
    let page = own.page(
        Pattern::of_path(&paths::key_of(Path::new(OsStr::from_bytes(&long)))).expect("path"),
        None,
    );
    let page = page.await.expect("page");
    let [odd] = &page.omitted[..] else { panic!("{page:?}") };
    assert!(page.files.is_empty() && odd.path.len() == TEXT_BYTES_MAX, "{odd:?}");
    assert!(
        odd.path.starts_with(&format!("{}/b/", root.display()))
            && odd.why.contains("4096 that are carried")
    );
}

#[tokio::test]
async fn of_text_few_bytes_are_shown_and_of_all_else_as_many_as_tell_it() {
    let (_dir, root) = tree();
    write(&root, "b/text", "some line\n".repeat(200).as_bytes());
    write(&root, "b/other", &[0xff; 2000]);
    write(&root, "b/short", b"\x1f\x8b\x08");
    let page = both(&root).page(Pattern::new("*").expect("pattern"), None).await.expect("page");
    let shown = |name: &str| {
        let file = page.files.iter().find(|file| file.path.ends_with(name)).expect(name);
        file.head.as_ref().expect(name).len()
    };
    assert_eq!(
        (shown("b/text"), shown("b/other"), shown("b/short"), shown("b/empty")),
        (16, HEAD_BYTES_MAX, 3, 0)
    );
}

#[test]
fn folders_that_cannot_be_offered_are_refused() {
    let (_dir, root) = tree();
    let check = |folders: &[&str], expected: &str| {
        let refused =
            own(&root, folders, Arc::new(ManualClock::default())).map(drop).expect_err(expected);
        assert!(
            refused.message.contains(expected) && refused.kind == ErrorKind::Invalid,
            "{folders:?}: {refused}"
        );
    };
    check(&["none"], "No such file");
    check(&["secret"], "Not a directory");
    check(&["/"], "root of the file system");
    check(&["a", "b", "a/x"], "lies in, the input folder");
    check(&["a", "a"], "lies in, the input folder");
    check(&["a", "a/inner/.."], "");
}

#[tokio::test]
async fn names_of_all_bytes_are_offered_and_read() {
    let (_dir, root) = tree();
    for name in [&b"gr\xfcn"[..], br"gr\xfcn"] {
        fs::write(root.join("b").join(OsStr::from_bytes(name)), name).expect("file");
    }
    let own = both(&root);
    let found = listed(&own, &root, "gr*").await;
    assert_eq!(found, [r"b/gr\x5cxfcn", r"b/gr\xfcn"]);
    for (file, bytes) in found.iter().zip([&br"gr\xfcn"[..], b"gr\xfcn"]) {
        let key = format!("{}/{file}", root.display()).trim_start_matches('/').to_owned();
        let read = own.read(&key, 0..bytes.len() as u64, Access::Cached).await;
        assert_eq!(read.expect(file), bytes, "{file}");
    }
}
