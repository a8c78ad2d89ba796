//! Places of a job: one place under two names is one place, and a store that refuses to delete or
//! to list uploads keeps nobody waiting.

#![expect(clippy::print_stdout, reason = "what cannot be run here is said")]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use muster_tests::harness::fake_s3::{error_body, reply};
use muster_tests::harness::sandbox::files_below;
use muster_tests::harness::{Bucket, Finished, Gate, S3Server, Sandbox, arg, oracle, wait};

/// Far less than a clean-up is tried for.
const SOON: Duration = Duration::from_secs(60);

/// A folder that appears at a second place, as long as this lives.
struct BindMount(PathBuf);

impl BindMount {
    /// None where this user may not mount.
    fn of(folder: &Path, at: PathBuf) -> Option<Self> {
        fs::create_dir(&at).expect("folder");
        let done =
            Command::new("mount").arg("--bind").arg(folder).arg(&at).output().expect("mount runs");
        done.status.success().then(|| Self(at))
    }
}

impl Drop for BindMount {
    fn drop(&mut self) {
        let done = Command::new("umount").arg(&self.0).status();
        assert!(done.is_ok_and(|status| status.success()), "{} stays mounted", self.0.display());
    }
}

#[track_caller]
fn refused(sandbox: &Sandbox, arguments: &[&str], words: &[&str]) {
    let mut command = sandbox.muster();
    command.current_dir(sandbox.path("")).args(["sort", "--local=1"]).args(arguments);
    sandbox.run_command(command, wait::RUN_BOUND).expect_code(1).expect_error(words);
}

#[test]
fn one_place_under_two_names_is_refused_and_left_as_it_is() {
    let sandbox = Sandbox::new();
    sandbox.file("d/a.txt", "b\na\n");
    sandbox.file("d/sub/b.txt", "d\nc\n");
    symlink("d", sandbox.path("link")).expect("link");
    symlink("d/sub", sandbox.path("deep")).expect("link");
    let before = files_below(&sandbox.path("d"));
    let both = ["OUTPUT", "overlaps INPUT"];
    refused(&sandbox, &["d", "-o", "link", "--overwrite"], &both);
    refused(&sandbox, &["d", "-o", "link/sorted"], &both);
    refused(&sandbox, &["link", "-o", "d/sorted"], &both);
    refused(&sandbox, &["d/a.txt", "-o", "link", "--overwrite"], &both);
    refused(&sandbox, &["d", "-o", "deep", "--overwrite"], &both);
    refused(&sandbox, &["d", "-o", "out", "--data-dir", "link/state"], &["--data-dir", "INPUT"]);
    refused(
        &sandbox,
        &["d", "-o", "out", "--replica", arg(&sandbox.path("link/again"))],
        &["--replica", "INPUT"],
    );
    match BindMount::of(&sandbox.path("d/sub"), sandbox.path("mounted")) {
        Some(_mounted) => {
            refused(&sandbox, &["d", "-o", "mounted", "--overwrite"], &both);
            refused(&sandbox, &["d", "-o", "mounted/sorted"], &both);
            refused(&sandbox, &["mounted", "-o", "deep/sorted"], &both);
        }
        None => println!("NOT RUN: bind mounts; this user may not mount"),
    }
    assert_eq!(files_below(&sandbox.path("d")), before);
    // A link to a place apart is as good as the place.
    fs::create_dir(sandbox.path("free")).expect("folder");
    symlink("free", sandbox.path("elsewhere")).expect("link");
    let (_, output) = sandbox.sort_here(&sandbox.path("elsewhere"), [arg(&sandbox.path("link"))]);
    output
        .assert_is(&oracle::gnu_sort(&[], &[sandbox.path("d/a.txt"), sandbox.path("d/sub/b.txt")]));
    assert!(sandbox.path("free/_SUCCESS").exists() && sandbox.path("elsewhere").is_symlink());
}

/// A bucket with input, and a gate before it.
struct Closed {
    sandbox: Sandbox,
    _server: S3Server,
    bucket: Bucket,
    gate: Gate,
}

impl Closed {
    fn new() -> Self {
        let sandbox = Sandbox::new();
        let server = S3Server::start(&sandbox);
        let bucket = server.bucket("data");
        let lines: String = (0..40_000).rev().map(|at| format!("line {at:06}\n")).collect();
        bucket.put("in/a.txt", lines.as_bytes());
        let gate = Gate::before(server.port());
        Self { sandbox, _server: server, bucket, gate }
    }

    fn sort<S: AsRef<OsStr>>(&self, options: &[S]) -> Finished {
        let mut command = self.sandbox.muster();
        command.args([
            "sort",
            "s3://data/in/",
            "-o",
            "s3://data/out",
            "--local=2",
            "--partitions=3",
            "--json",
        ]);
        command.args(options).envs(muster_tests::harness::s3::environment(&self.gate.endpoint()));
        self.sandbox.run_command(command, SOON)
    }

    /// Everything in OUTPUT but scratch.
    fn output(&self) -> Vec<String> {
        self.bucket.list("out/").into_iter().filter(|key| !key.contains("_muster/")).collect()
    }

    #[track_caller]
    fn assert_sorted(&self) {
        let parts: Vec<String> =
            self.output().into_iter().filter(|key| key.contains("/part-")).collect();
        let text: Vec<u8> = parts.iter().flat_map(|key| self.bucket.get(key)).collect();
        let lines: String = (0..40_000).map(|at| format!("line {at:06}\n")).collect();
        assert!(text == lines.as_bytes(), "{parts:?}: {} bytes", text.len());
    }
}

fn denied() -> Vec<u8> {
    reply(
        "403 Forbidden",
        "Content-Type: application/xml\r\n",
        &error_body("AccessDenied", "Access Denied."),
    )
}

#[test]
fn a_store_that_refuses_deletes_ends_with_what_is_left() {
    let closed = Closed::new();
    closed.gate.refuse(|line| line.starts_with("DELETE "), denied());
    let finished = closed.sort::<&str>(&[]).expect_code(0).expect_error(&[
        "not removed",
        "_muster/",
        "AccessDenied",
    ]);
    let warnings = finished.json()["warnings"].clone();
    assert!(warnings.to_string().contains("not removed"), "{warnings}");
    closed.assert_sorted();
    let left = closed.bucket.list("out/_muster/");
    assert!(!left.is_empty(), "what is said to be left is there");
    // The old result stays whole where it may not be replaced.
    let before = closed.output();
    closed.sort(&["--overwrite"]).expect_code(1).expect_error(&["cannot remove", "AccessDenied"]);
    closed.assert_sorted();
    assert_eq!(closed.output(), before);
}

#[test]
fn a_store_that_lists_no_uploads_is_sorted_into() {
    for (status, code) in
        [("403 Forbidden", "AccessDenied"), ("501 Not Implemented", "NotImplemented")]
    {
        let closed = Closed::new();
        let answer =
            reply(status, "Content-Type: application/xml\r\n", &error_body(code, "Not here."));
        closed.gate.refuse(|line| line.starts_with("GET ") && line.contains("?uploads"), answer);
        closed.sort::<&str>(&[]).expect_code(0).expect_error(&["open uploads", code]);
        closed.assert_sorted();
        assert!(closed.bucket.list("out/_muster/").is_empty(), "{code}");
    }
}
