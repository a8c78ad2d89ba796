//! What cannot work: a clear error on one line, the documented exit code (1 for what was found in
//! data or world, 2 for what was wrong in the command, 3 for nothing to connect to), nothing
//! half-written, nothing left over.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use muster_tests::harness::data::{Keys, log_lines, records};
use muster_tests::harness::ports::Ports;
use muster_tests::harness::sandbox::files_below;
use muster_tests::harness::{Finished, Output, Pool, S3Server, Sandbox, arg, oracle, wait};

/// Runs `muster sort ... -o out --local=2`; expects this exit code and an error with these words;
/// checks that nothing was left.
#[track_caller]
fn check(sandbox: &Sandbox, arguments: &[&str], code: i32, words: &[&str]) -> Finished {
    let mut all = vec!["sort", "-o", "out", "--local=2"];
    all.extend(arguments);
    let done = sandbox.run(all).expect_code(code).expect_error(words);
    assert_nothing_left(sandbox);
    done
}

#[track_caller]
fn assert_nothing_left(sandbox: &Sandbox) {
    Output::of_folder(sandbox.path("out")).assert_nothing();
    sandbox.assert_no_temporaries();
}

#[test]
fn a_missing_input() {
    let sandbox = Sandbox::new();
    check(&sandbox, &["no-such-file"], 1, &["no-such-file"]);
    let there = sandbox.file("there", "a\n");
    check(&sandbox, &[arg(&there), "no-such-file"], 1, &["no-such-file"]);
    check(&sandbox, &["no-such-*.log"], 1, &["no-such-*.log"]);
}

/// `muster` without the rights of root: who reads everything by two capabilities is without them
/// like any other user.
fn as_a_common_user(sandbox: &Sandbox) -> Command {
    let command = sandbox.muster();
    if !rustix::process::geteuid().is_root() {
        return command;
    }
    let program = command.get_program().to_owned();
    let mut command = sandbox.clean_command("setpriv");
    command
        .args(["--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all", "--"])
        .arg(program);
    command
}

#[test]
fn an_unreadable_file() {
    let sandbox = Sandbox::new();
    let secret = sandbox.file("in/secret", log_lines(100, 1));
    sandbox.file("in/open", log_lines(100, 2));
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o000)).unwrap();
    let mut command = as_a_common_user(&sandbox);
    command.args(["sort", "in", "-o", "out", "--local=2"]);
    let done = sandbox.run_command(command, wait::RUN_BOUND);
    done.expect_code(1).expect_error(&["secret", "permission denied"]);
    assert_nothing_left(&sandbox);
}

#[test]
fn an_input_that_is_no_file() {
    let sandbox = Sandbox::new();
    let _socket = UnixListener::bind(sandbox.path("socket")).unwrap();
    check(&sandbox, &["socket"], 1, &["socket"]);
}

#[test]
fn a_length_that_does_not_divide_the_file() {
    let sandbox = Sandbox::new();
    sandbox.file("in/whole", records(20, Keys::Random, 1));
    sandbox.file("in/torn", &records(20, Keys::Random, 2)[..1_950]);
    check(&sandbox, &["in", "--format", "fixed:100", "-k", "0:10"], 1, &["torn", "1950", "100"]);
}

#[test]
fn a_key_outside_the_record() {
    let sandbox = Sandbox::new();
    sandbox.file("in", records(20, Keys::Random, 1));
    for key in ["95:10", "100:1", "0:101"] {
        check(&sandbox, &["in", "--format", "fixed:100", "-k", key], 2, &["100"]);
    }
    check(&sandbox, &["in", "--format", "fixed:100", "-k", "0:0"], 2, &["0:0", "OFFSET:LEN"]);
}

#[test]
fn options_that_are_wrong() {
    let sandbox = Sandbox::new();
    sandbox.file("in", log_lines(100, 1));
    let unknown = sandbox.file("unknown.toml", "no_such_setting = 1\n");
    let cases: &[(&[&str], &[&str])] = &[
        (&["in", "--no-such-option"], &["--no-such-option"]),
        (&["in", "--format", "wide"], &["wide"]),
        (&["in", "--format", "fixed:0"], &["fixed"]),
        (&["in", "--format", "fixed:ten"], &["ten"]),
        (&["in", "--format", "lines", "-k", "0"], &["-k"]),
        (&["in", "--format", "lines", "-k", "1.x"], &["1.x"]),
        (&["in", "--format", "lines", "-k", "0:10"], &["0:10"]),
        (&["in", "-t", "ab", "-k1"], &["-t"]),
        (&["in", "--partitions", "0"], &["--partitions"]),
        (&["in", "--memory", "lots"], &["lots"]),
        (&["in", "--local=0"], &["--local"]),
        (&["in", "--config", arg(&unknown)], &["no_such_setting"]),
        (&["in", "--config", "no-such.toml"], &["no-such.toml"]),
        (&[], &["INPUT"]),
    ];
    for (arguments, words) in cases {
        check(&sandbox, arguments, 2, words);
    }
    sandbox.run(["sort", "in"]).expect_code(2).expect_error(&["output"]);
    sandbox.run(["no-such-command"]).expect_code(2).expect_error(&["no-such-command"]);
    sandbox.run(Vec::<&OsStr>::new()).expect_code(2);
}

#[test]
fn what_is_not_built_yet_is_refused_by_name() {
    let sandbox = Sandbox::new();
    sandbox.file("in", log_lines(100, 1));
    for format in ["csv", "tsv", "jsonl", "parquet"] {
        check(&sandbox, &["in", "--format", format], 2, &[format]);
    }
}

#[test]
fn compressed_input_is_not_sorted_as_bytes() {
    let sandbox = Sandbox::new();
    for (name, magic, word) in [
        ("log.gz", &b"\x1f\x8b\x08\0\0\0\0\0"[..], "gzip"),
        ("log.zst", b"\x28\xb5\x2f\xfd\x04\0", "zst"),
        ("plain-name", b"\x1f\x8b\x08\0\0\0\0\0", "gzip"),
        ("table.parquet", b"PAR1\x15\x04PAR1", "parquet"),
    ] {
        sandbox.file(name, magic);
        check(&sandbox, &[name], 1, &[name, word]);
    }
}

#[test]
fn nothing_to_connect_to() {
    let sandbox = Sandbox::new();
    sandbox.file("in", log_lines(100, 1));
    let url = format!("nats://127.0.0.1:{}", Ports::claim().port(0));
    for arguments in [
        &["sort", "in", "-o", "out", "--nats", &url][..],
        &["jobs", "--nats", &url],
        &["status", "x", "--nats", &url],
    ] {
        sandbox.run(arguments).expect_code(3).expect_error(&[&url]);
    }
    let mut by_environment = sandbox.muster();
    by_environment.args(["workers"]).env("NATS_URL", &url);
    sandbox.run_command(by_environment, wait::RUN_BOUND).expect_code(3);
    assert_nothing_left(&sandbox);
}

#[test]
fn no_nats_server_for_a_local_run() {
    let sandbox = Sandbox::new();
    sandbox.file("in", log_lines(100, 1));
    let mut command = sandbox.muster();
    command
        .args(["sort", "in", "-o", "out", "--local=2"])
        .env("PATH", sandbox.path("home"))
        .env_remove("MUSTER_NATS_SERVER");
    sandbox
        .run_command(command, wait::RUN_BOUND)
        .expect_code(1)
        .expect_error(&["nats-server", "install"]);
    assert_nothing_left(&sandbox);
}

#[test]
fn a_bucket_that_is_closed_or_missing() {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    let bucket = s3.bucket("data");
    bucket.put("in", &log_lines(500, 1));
    let input = sandbox.file("in", log_lines(500, 1));
    let run = |arguments: &[&str], change: (&str, &str)| {
        let mut command = sandbox.muster();
        command.args(["sort", "--local=2"]).args(arguments).envs(s3.environment());
        if !change.0.is_empty() {
            command.env(change.0, change.1);
        }
        let done = sandbox.run_command(command, wait::RUN_BOUND).expect_code(1);
        assert_nothing_left(&sandbox);
        assert!(
            !done.stderr.contains("mustersecret") && !done.stderr.contains("not-the-secret"),
            "a secret is shown:\n{}",
            done.stderr
        );
        done
    };
    let (inside, outside, file) = (bucket.url("in"), bucket.url("out"), arg(&input));
    let wrong = ("AWS_SECRET_ACCESS_KEY", "not-the-secret");
    run(&[&inside, "-o", "out"], wrong).expect_error(&[&inside, "denied"]);
    run(&[file, "-o", &outside], wrong).expect_error(&["s3://data", "denied"]);
    run(&["s3://no-such-bucket/in", "-o", "out"], ("", "")).expect_error(&["no-such-bucket"]);
    run(&[file, "-o", "s3://no-such-bucket/out"], ("", "")).expect_error(&["no-such-bucket"]);
    run(&[&bucket.url("no-such-key"), "-o", "out"], ("", "")).expect_error(&["no-such-key"]);
    assert_eq!(bucket.list(""), ["in"]);
    assert_eq!(bucket.uploads(), Vec::<String>::new());
}

#[test]
fn a_pool_names_what_it_cannot_read() {
    let sandbox = Sandbox::new();
    let pool = Pool::on_folder(&sandbox, 2);
    let torn = sandbox.file("torn", &records(20, Keys::Random, 2)[..1_950]);
    let output = sandbox.path("out");
    let output = arg(&output);
    pool.run(["sort", "/no/such/file", "-o", output])
        .expect_code(1)
        .expect_error(&["/no/such/file"]);
    let arguments = [
        "sort",
        arg(&torn),
        "-o",
        output,
        "--format",
        "fixed:100",
        "-k",
        "0:10",
        "--job-id",
        "torn",
    ];
    pool.run(arguments).expect_code(1).expect_error(&["torn", "1950"]);
    wait::until_empty("in scratch", || files_below(&sandbox.path("scratch")));
    assert_nothing_left(&sandbox);
}

#[test]
fn an_output_that_is_not_empty_stays_as_it_is() {
    let sandbox = Sandbox::new();
    sandbox.file("in", log_lines(100, 1));
    let kept = sandbox.file("out/precious", "mine");
    let done = sandbox.run(["sort", "in", "-o", "out", "--local=2"]).expect_code(1);
    done.expect_error(&["out", "not empty"]);
    assert_eq!(files_below(&sandbox.path("out")), ["precious"]);
    assert_eq!(fs::read(kept).unwrap(), b"mine");

    let file = sandbox.file("file", "mine");
    sandbox.run(["sort", "in", "-o", "file", "--local=2"]).expect_code(2).expect_error(&["file"]);
    assert_eq!(fs::read(file).unwrap(), b"mine");
    sandbox.assert_no_temporaries();
}

#[test]
fn an_output_within_the_input_or_around_it() {
    let sandbox = Sandbox::new();
    let input = sandbox.file("in/a", log_lines(100, 1));
    for output in ["in", "in/sorted", "."] {
        sandbox.run(["sort", "in", "-o", output, "--local=2"]).expect_code(1).expect_error(&["in"]);
        assert_eq!(files_below(&sandbox.path("in")), ["a"], "with the output {output}");
    }
    assert_eq!(fs::read(input).unwrap(), log_lines(100, 1));
}

/// Runs a sort whose folder `full` is a file system of its own, of so many KiB, and gives what it
/// left there. It is mounted for that command alone.
#[track_caller]
fn run_with_a_full_disk(sandbox: &Sandbox, kib: usize, arguments: &[&str]) -> (Finished, String) {
    let full = sandbox.path("full");
    fs::create_dir_all(&full).expect("a folder can be made");
    let script = r#"full=$1; left=$2; kib=$3; shift 3
        mount -t tmpfs -o "size=${kib}k" tmpfs "$full" || exit 99
        "$@"; code=$?
        find "$full" -type f >"$left"; exit $code"#;
    let left = sandbox.path("left");
    let mut command: Command = sandbox.clean_command("unshare");
    if rustix::process::geteuid().is_root() {
        command.arg("--mount");
    } else {
        command.args(["--map-root-user", "--mount"]);
    }
    command
        .args(["sh", "-c", script, "sh"])
        .args([&full, &left])
        .arg(kib.to_string())
        .arg(sandbox.muster().get_program());
    command.args(["sort", "--local=2"]).args(arguments);
    let done = sandbox.run_command(command, wait::RUN_BOUND);
    assert_ne!(done.code, 99, "no file system can be mounted here: {}", done.stderr);
    (done, fs::read_to_string(left).expect("what was left is listed"))
}

#[test]
fn a_full_disk_at_the_output() {
    let sandbox = Sandbox::new();
    let data = records(120_000, Keys::Random, 1);
    let (input, scratch) = (sandbox.file("in", &data), sandbox.path("scratch"));
    let common = [arg(&input), "-o", "full/out", "--format", "fixed:100", "-k", "0:10"];
    // What is clearly too little is not begun with.
    let (done, left) = run_with_a_full_disk(&sandbox, 4 << 10, &common);
    done.expect_code(1).expect_error(&[
        "not begun",
        "the output alone needs about 12",
        "full/out",
        "another OUTPUT",
    ]);
    assert_eq!(left, "");
    sandbox.assert_no_temporaries();
    for more in [&[][..], &["--bucket", arg(&scratch)]] {
        let (done, left) = run_with_a_full_disk(
            &sandbox,
            data.len() / 1024 * 95 / 100,
            &[&common[..], more].concat(),
        );
        let done = done.expect_code(1);
        let said = done.stderr.to_lowercase();
        assert!(
            said.contains("space") || said.contains("full") || said.contains("free"),
            "{}",
            done.stderr
        );
        assert_eq!(left, "", "{more:?}");
        assert_eq!(files_below(&scratch), Vec::<String>::new());
        sandbox.assert_no_temporaries();
    }
    // What fits is sorted there.
    let small = sandbox.file("small", &data[..1_000_000]);
    let (done, left) = run_with_a_full_disk(
        &sandbox,
        4 << 10,
        &[arg(&small), "-o", "full/out", "--bucket", arg(&scratch)],
    );
    done.expect_code(0);
    assert!(left.contains("full/out/_SUCCESS"), "{left}");
}

#[test]
fn a_failed_job_leaves_an_old_output_as_it_was() {
    let sandbox = Sandbox::new();
    let good = sandbox.file("good", records(2_000, Keys::Random, 1));
    sandbox.file("torn", &records(20, Keys::Random, 2)[..1_950]);
    let format = ["--format", "fixed:100", "-k", "0:10"];
    let (_, before) = sandbox.sort_here(Path::new("out"), [&["good"][..], &format].concat());
    sandbox
        .run([&["sort", "torn", "-o", "out", "--local=2", "--overwrite"][..], &format].concat())
        .expect_code(1)
        .expect_error(&["torn"]);
    let after = Output::of_folder(sandbox.path("out"));
    after.assert_is(&oracle::fixed(&fs::read(good).unwrap(), 100, 0, 10));
    assert!(after.parts == before.parts && after.success == before.success);
}

#[test]
fn torn_files_are_skipped_or_quarantined_and_counted() {
    for keep in [false, true] {
        let sandbox = Sandbox::new();
        let (whole, torn) = (records(2_000, Keys::Random, 1), records(1_000, Keys::Random, 2));
        sandbox.file("in/whole", &whole);
        let torn_path = sandbox.file("in/torn", &torn[..99_942]);
        let policy = if keep { "quarantine" } else { "skip" };
        let output = sandbox.path("out");
        let (report, _) = sandbox.sort_here(
            &output,
            ["in", "--format", "fixed:100", "-k", "0:10", "--bad-records", policy],
        );
        assert_eq!(report["skipped_records"], 1, "{report}");
        assert_eq!(report["records"], 2_999, "{report}");

        let mut there = Output::of_folder(&output);
        let success = there.success.as_ref().expect("it has succeeded").to_string();
        assert!(success.contains("torn"), "_SUCCESS says what was left out: {success}");
        let kept = std::mem::take(&mut there.others);
        there.assert_is(&oracle::fixed(&[&torn[..99_900], &whole].concat(), 100, 0, 10));
        if !keep {
            assert_eq!(kept, Vec::<String>::new());
            continue;
        }
        assert_eq!(kept.len(), 1, "{kept:?}");
        assert!(kept[0].starts_with("_quarantine/"), "{kept:?}");
        let line = fs::read_to_string(output.join(&kept[0])).unwrap();
        let line: serde_json::Value = serde_json::from_str(line.trim_end()).expect("one JSON line");
        assert!(
            line["object"].as_str().is_some_and(|object| object.ends_with(arg(&torn_path))),
            "{line}"
        );
        assert_eq!(line["offset"], 99_900, "{line}");
        let data = sandbox.file("data.b64", line["data"].as_str().expect("the bytes in base64"));
        let mut decode = sandbox.clean_command("base64");
        decode.arg("--decode").arg(&data);
        let bytes = decode.output().expect("base64 runs").stdout;
        assert_eq!(bytes, &torn[99_900..99_942]);
    }
}

#[test]
fn an_unreadable_file_can_be_left_out() {
    let sandbox = Sandbox::new();
    let secret = sandbox.file("in/secret", log_lines(100, 1));
    let open = sandbox.file("in/open", log_lines(100, 2));
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o000)).unwrap();
    let mut command = as_a_common_user(&sandbox);
    command.args(["sort", "in", "-o", "out", "--local=2", "--json", "--bad-inputs", "skip"]);
    let report = sandbox.run_command(command, wait::RUN_BOUND).expect_code(0).json();
    assert_eq!(report["skipped_objects"], 1, "{report}");
    let output = Output::of_folder(sandbox.path("out"));
    let success = output.success.as_ref().expect("it has succeeded").to_string();
    assert!(success.contains("secret"), "_SUCCESS names what was left out: {success}");
    output.assert_is(&oracle::gnu_sort(&[], &[&open]));
}

#[test]
fn too_few_files_may_be_open() {
    let sandbox = Sandbox::new();
    let input = sandbox.file("in", log_lines(100, 1));
    let run = |limits: &str| {
        let mut command = sandbox.clean_command("sh");
        command
            .args(["-c", &format!("{limits} && exec \"$@\""), "sh"])
            .arg(sandbox.muster().get_program());
        command.args(["sort", "in", "-o", "out", "--local=2"]);
        sandbox.run_command(command, wait::RUN_BOUND)
    };
    run("ulimit -n 100").expect_code(1).expect_error(&["may open 100 files", "ulimit -n"]);
    assert_nothing_left(&sandbox);
    // Where only the soft limit is low, it is raised.
    run("ulimit -S -n 100").expect_code(0);
    Output::of_folder(sandbox.path("out")).assert_is(&oracle::gnu_sort(&[], &[&input]));
}
