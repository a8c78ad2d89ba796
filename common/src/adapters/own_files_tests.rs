use std::fs;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::clock::ManualClock;

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
    for name in ["a/x.log", "a/x/deep/1", "a/x/2", "a/_hidden", "a/.git/config", "b/empty", "b/sub/y.log", "secret"] {
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
    let relative =
        |file: &LocalFile| file.path.strip_prefix(&format!("{}/", root.display())).expect("below").to_owned();
    page.files.iter().map(relative).collect()
}

#[tokio::test]
async fn files_are_listed_in_the_order_of_their_paths_and_links_are_not_followed() {
    let (_dir, root) = tree();
    let own = both(&root);
    assert_eq!(own.folders(), [root.join("a"), root.join("b")].map(|path| path.display().to_string()));
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
    assert_eq!((head.bytes, &head.version), (file.bytes, &file.version), "a listing pins what a reader finds");
}

#[tokio::test]
async fn pages_follow_one_another() {
    let (_dir, root) = tree();
    let own = own(&root, &["a", "b"], Arc::new(Hasty::default())).expect("offers");
    let (mut found, mut after, mut pages) = (Vec::new(), None, 0);
    loop {
        let page = own.page(Pattern::new("").expect("pattern"), after).await.expect("page");
        pages += 1;
        found.extend(page.files.into_iter().map(|file| file.path));
        after = page.next;
        if after.is_none() {
            break;
        }
        assert_eq!(after.as_ref(), found.last());
    }
    let all = ["a/x.log", "a/x/2", "a/x/deep/1", "b/empty", "b/sub/y.log"];
    assert_eq!(found, all.map(|name| root.join(name).display().to_string()));
    assert_eq!(pages, all.len());
}

#[tokio::test]
async fn nothing_outside_is_read() {
    let (_dir, root) = tree();
    let own = both(&root);
    let key = |name: &str| format!("{}/{name}", root.display()).trim_start_matches('/').to_owned();
    assert_eq!(&own.read(&key("a/x.log"), 0..7, Access::Cached).await.expect("read")[..], b"a/x.log");
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
            assert!(error.message.contains(expected) && error.kind == ErrorKind::Invalid, "{name}: {error}");
        }
    }
    assert_eq!(own.head("etc/passwd").await.expect_err("outside").kind, ErrorKind::Invalid);
    assert_eq!(own.head(&key("a/none")).await.expect_err("gone").kind, ErrorKind::NotFound);
    assert!(own.put(&key("a/new"), Bytes::new()).await.is_err() && own.delete(&key("a/x.log")).await.is_err());
}

/// The folder is walked into by way of a link that was put there after it was listed.
#[tokio::test]
async fn a_folder_that_becomes_a_link_leads_nowhere() {
    let (_dir, root) = tree();
    let own = both(&root);
    fs::rename(root.join("a/x"), root.join("moved")).expect("move");
    symlink(root.join("moved"), root.join("a/x")).expect("link");
    let key = format!("{}/a/x/2", root.display());
    assert!(own.head(key.trim_start_matches('/')).await.expect_err("link").message.contains("symbolic link"));
    assert_eq!(listed(&own, &root, "x").await, [""; 0]);
}

#[tokio::test]
async fn a_pipe_is_no_file() {
    let (_dir, root) = tree();
    let pipe = root.join("a/pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("pipe");
    let own = both(&root);
    assert!(!listed(&own, &root, "").await.contains(&"a/pipe".to_owned()));
    let key = pipe.display().to_string();
    assert!(own.read(key.trim_start_matches('/'), 0..1, Access::Cached).await.is_err());
}

#[test]
fn folders_that_cannot_be_offered_are_refused() {
    let (_dir, root) = tree();
    let check = |folders: &[&str], expected: &str| {
        let refused = own(&root, folders, Arc::new(ManualClock::default())).map(drop).expect_err(expected);
        assert!(refused.message.contains(expected) && refused.kind == ErrorKind::Invalid, "{folders:?}: {refused}");
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
