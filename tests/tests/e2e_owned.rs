//! What `--overwrite` may replace: what an earlier sort has made, and nothing of anybody else's.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use muster_tests::harness::sandbox::files_below;
use muster_tests::harness::{Output, Sandbox, arg, oracle, wait};

/// Sorts `in` into OUTPUT in a folder of the sandbox, with `--overwrite`; it is refused with these
/// words, and everything below the folder stays.
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
    refused(
        &sandbox,
        "photos",
        ".",
        &["must not replace", ".hidden/b.jpg", "and 1 more", "no _SUCCESS"],
    );
    // The result of another program, and one that claims what is not its own.
    sandbox.file("spark/_SUCCESS", "");
    sandbox.file("spark/part-00000.txt", "rows");
    refused(&sandbox, "", "spark", &["must not replace", "_SUCCESS", "part-00000.txt"]);
    sandbox.file(
        "forged/_SUCCESS",
        r#"{"job":"j","parts":[{"name":"../photos/a.jpg"},{"name":"notes"}]}"#,
    );
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
    let (_, output) = sandbox
        .sort_here(&sandbox.path("to-out"), [arg(&second), "--overwrite", "--partitions", "1"]);
    output.assert_is(&oracle::gnu_sort(&[], &[&second]));
    Output::of_folder(sandbox.path("out")).assert_is(&oracle::gnu_sort(&[], &[&second]));
    assert!(
        fs::read_dir(sandbox.path("out")).expect("out").count() <= parts
            && sandbox.path("to-out").is_symlink()
    );
}

/// A link under a name that the result itself gives: to nowhere, to somebody's file, to the very
/// bytes that the next sort makes, to a folder. It is seen before anything is sorted, and the old
/// `_SUCCESS` stays.
#[test]
fn a_link_in_a_parts_place_leaves_the_old_result_as_it_is() {
    let sandbox = Sandbox::new();
    let input = sandbox.file("in", "b\na\n");
    sandbox.file("important/part-00000.txt", "kept");
    for target in ["nowhere", "../important/part-00000.txt", "../same", "../important"] {
        let output = sandbox.path("out");
        sandbox.sort_here(&output, [arg(&input), "--partitions=2"]);
        fs::rename(output.join("part-00001.txt"), sandbox.path("same")).expect("moved");
        symlink(target, output.join("part-00001.txt")).expect("link");
        refused(&sandbox, "", "out", &["part-00001.txt", "is a link"]);
        assert_eq!(
            fs::read_link(output.join("part-00001.txt")).expect("a link"),
            Path::new(target)
        );
        assert_eq!(fs::read(sandbox.path("important/part-00000.txt")).expect("there"), b"kept");
        fs::remove_dir_all(&output).expect("removed");
    }
    // In the place of `_SUCCESS`, and of the folder of scratch.
    for (name, target) in [("_SUCCESS", "../manifest"), ("_muster", "../important")] {
        let output = sandbox.path("out");
        sandbox.sort_here(&output, [arg(&input)]);
        if name == "_SUCCESS" {
            fs::rename(output.join(name), sandbox.path("manifest")).expect("moved");
        }
        symlink(target, output.join(name)).expect("link");
        refused(&sandbox, "", "out", &[name]);
        assert_eq!(files_below(&sandbox.path("important")), ["part-00000.txt"], "{name}");
        fs::remove_dir_all(&output).expect("removed");
    }
}

/// An empty folder is no content; that no part can be put in its place is seen before anything of
/// the old result has gone.
#[test]
fn a_folder_in_a_parts_place_leaves_the_old_result_as_it_is() {
    let sandbox = Sandbox::new();
    let (input, output) = (sandbox.file("in", "b\na\n"), sandbox.path("out"));
    sandbox.sort_here(&output, [arg(&input), "--partitions=1"]);
    let before = fs::read(output.join("_SUCCESS")).expect("a manifest");
    fs::create_dir(output.join("part-00001.txt")).expect("folder");
    let sort =
        ["sort", "--local=1", arg(&input), "-o", arg(&output), "--partitions=2", "--overwrite"];
    sandbox.run(sort).expect_code(1).expect_error(&["part-00001.txt", "left as it is"]);
    assert_eq!(fs::read(output.join("_SUCCESS")).expect("still there"), before);
    assert_eq!(files_below(&output), ["_SUCCESS", "part-00000.txt"]);
    assert!(output.join("part-00001.txt").is_dir());
}
