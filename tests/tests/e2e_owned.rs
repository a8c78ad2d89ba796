//! What `--overwrite` may replace: what an earlier sort has made, and nothing of anybody else's.

use std::fs;
use std::os::unix::fs::symlink;

use muster_tests::harness::sandbox::files_below;
use muster_tests::harness::{Output, Sandbox, arg, oracle, wait};

/// Sorts `in` into OUTPUT in a folder of the sandbox, with `--overwrite`; it is refused with these words, and everything below the folder stays.
#[track_caller]
fn refused(sandbox: &Sandbox, folder: &str, output: &str, words: &[&str]) {
    let input = sandbox.file("in", "b\na\n");
    let before = files_below(&sandbox.path(""));
    let mut command = sandbox.muster();
    command.current_dir(sandbox.path(folder));
    command.args(["sort", "--local=1", arg(&input), "-o", output, "--overwrite"]);
    sandbox.run_command(command, wait::RUN_BOUND).expect_code(1).expect_error(words);
    assert_eq!(files_below(&sandbox.path("")), before);
}

#[test]
fn other_peoples_files_are_not_replaced() {
    let sandbox = Sandbox::new();
    sandbox.file("photos/a.jpg", "a picture");
    sandbox.file("photos/.hidden/b.jpg", "another");
    sandbox.file("photos/2024/c.jpg", "a third");
    sandbox.file("photos/2024/d.jpg", "a fourth");
    refused(&sandbox, "photos", ".", &["must not replace", ".hidden/b.jpg", "and 1 more", "no _SUCCESS"]);
    // The result of another program, and one that claims what is not its own.
    sandbox.file("spark/_SUCCESS", "");
    sandbox.file("spark/part-00000.txt", "rows");
    refused(&sandbox, "", "spark", &["must not replace", "_SUCCESS", "part-00000.txt"]);
    sandbox.file("forged/_SUCCESS", r#"{"job":"j","parts":[{"name":"../photos/a.jpg"},{"name":"notes"}]}"#);
    sandbox.file("forged/notes", "mine");
    refused(&sandbox, "", "forged", &["must not replace", "notes", "does not name"]);
}

#[test]
fn links_in_output_are_left_alone() {
    let sandbox = Sandbox::new();
    let input = sandbox.file("first", "d\nc\n");
    sandbox.file("important/part-00000.txt", "kept");
    sandbox.sort_here(&sandbox.path("out"), [arg(&input)]);
    symlink("../important", sandbox.path("out/backup")).expect("link");
    refused(&sandbox, "", "out", &["must not replace", "backup", "does not name"]);
    fs::remove_file(sandbox.path("out/backup")).expect("removed");
    symlink("nowhere", sandbox.path("out/part-00001.txt")).expect("link");
    refused(&sandbox, "", "out", &["must not replace", "part-00001.txt"]);
    assert!(sandbox.path("out/part-00001.txt").is_symlink());
    fs::remove_file(sandbox.path("out/part-00001.txt")).expect("removed");
    // An earlier result by itself is replaced, all of it, also through a link to OUTPUT.
    let parts = fs::read_dir(sandbox.path("out")).expect("out").count();
    symlink("out", sandbox.path("to-out")).expect("link");
    let second = sandbox.file("second", "z\ny\n");
    let (_, output) = sandbox.sort_here(&sandbox.path("to-out"), [arg(&second), "--overwrite", "--partitions", "1"]);
    output.assert_is(&oracle::gnu_sort(&[], &[&second]));
    Output::of_folder(sandbox.path("out")).assert_is(&oracle::gnu_sort(&[], &[&second]));
    assert!(fs::read_dir(sandbox.path("out")).expect("out").count() <= parts && sandbox.path("to-out").is_symlink());
}
