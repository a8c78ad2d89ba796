//! The examples do what they say, as a user runs them.

use std::path::{Path, PathBuf};

use muster_tests::harness::wait::RUN_BOUND;
use muster_tests::harness::{Sandbox, arg, programs};

/// What an example prints; its folder.
#[track_caller]
fn run(sandbox: &Sandbox, name: &str) -> (String, PathBuf) {
    let folder = sandbox.path("folder");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(name);
    let mut command = sandbox.clean_command(script);
    let folders = [programs::muster(), programs::nats_server()]
        .map(|program| program.parent().expect("a folder").to_path_buf());
    let path = std::env::var_os("PATH").unwrap_or_default();
    let all = folders.into_iter().chain(std::env::split_paths(&path));
    command.env("PATH", std::env::join_paths(all).expect("no colons")).arg(arg(&folder));
    let finished = sandbox.run_command(command, RUN_BOUND);
    assert_eq!(finished.code, 0, "{}{}", finished.stdout, finished.stderr);
    (finished.stdout, folder)
}

#[test]
fn a_local_run_sorts_a_folder() {
    let (printed, _) = run(&Sandbox::new(), "local.sh");
    assert!(printed.starts_with("apple 10\nplum 7\npear 3\napple 2\ncherry 1\n"), "{printed}");
}

#[test]
fn a_pool_on_the_loopback_interface_sorts_numbers() {
    let sandbox = Sandbox::new();
    let (printed, folder) = run(&sandbox, "pool.sh");
    assert!(printed.contains("w1") && printed.contains("w2"), "{printed}");
    let sorted = std::fs::read_to_string(folder.join("sorted")).expect("the result");
    let expected: String = (1..=3000).map(|number| format!("{number}\n")).collect();
    assert_eq!(sorted, expected);
}
