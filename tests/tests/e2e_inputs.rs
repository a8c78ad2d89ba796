//! What INPUT may be: paths as the system reads them, names of all bytes, odd entries in folders,
//! and content that is no lines. What is found is compared with sort(1).

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use muster_tests::harness::fake_s3::{Request, error_body, reply};
use muster_tests::harness::{FakeS3, Finished, Output, S3Server, Sandbox, oracle, wait};
use serde_json::Value;

/// Far less than anything is waited for.
const AT_ONCE: Duration = Duration::from_secs(30);

/// `muster sort ARGUMENTS -o OUTPUT --local=1 --json` in a folder.
fn sort_in<S: AsRef<OsStr>>(
    sandbox: &Sandbox,
    folder: &Path,
    output: &Path,
    arguments: impl IntoIterator<Item = S>,
) -> Finished {
    let mut command = sandbox.muster();
    command
        .current_dir(folder)
        .arg("sort")
        .args(arguments)
        .arg("-o")
        .arg(output)
        .args(["--local=1", "--json"]);
    sandbox.run_command(command, wait::RUN_BOUND)
}

/// Sorts in a folder, and compares with what sort(1) makes of these files.
#[track_caller]
fn check_in(sandbox: &Sandbox, folder: &Path, arguments: &[&OsStr], files: &[PathBuf]) -> Value {
    let output = sandbox.path(format!("out-{}", sandbox_count(sandbox)));
    let report = sort_in(sandbox, folder, &output, arguments).expect_code(0).json();
    Output::of_folder(&output).assert_is(&oracle::gnu_sort(&[], files));
    report
}

/// How many outputs there are.
fn sandbox_count(sandbox: &Sandbox) -> usize {
    let entries = fs::read_dir(sandbox.path("")).expect("the sandbox");
    entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("out-"))
        .count()
}

fn os(texts: &[&'static str]) -> Vec<&'static OsStr> {
    texts.iter().copied().map(OsStr::new).collect()
}

#[test]
fn parent_folders_are_those_of_the_links_before_them() {
    let sandbox = Sandbox::new();
    let far = sandbox.file("far/x", "far\n");
    let near = sandbox.file("x", "near\n");
    fs::create_dir(sandbox.path("far/below")).expect("folder");
    symlink(sandbox.path("far/below"), sandbox.path("link")).expect("link");
    let here = sandbox.path("");
    check_in(&sandbox, &here, &os(&["link/../x"]), std::slice::from_ref(&far));
    check_in(&sandbox, &here, &os(&["link/../../x"]), &[near]);
    check_in(&sandbox, &sandbox.path("link"), &os(&["../*"]), &[far]);
    // So are those of OUTPUT.
    sort_in(&sandbox, &here, Path::new("link/../sorted"), ["x"]).expect_code(0);
    assert!(sandbox.path("far/sorted/_SUCCESS").exists() && !sandbox.path("sorted").exists());
    let none = sort_in(&sandbox, &here, Path::new("sorted"), ["none/../x"]);
    none.expect_code(2).expect_error(&["none/../x", "No such file"]);
}

#[test]
fn a_path_that_exists_is_a_path_whatever_its_characters() {
    let sandbox = Sandbox::new();
    let folder = sandbox.path("w[1]*{x}");
    let file = |name: &str| sandbox.file(folder.join(name), format!("{name}\n"));
    let (bracket, plain, star, brace) =
        (file("a[1].txt"), file("a1.txt"), file("b*"), file("{c,d}"));
    let nested = file("e[2]/f.txt");
    // What a pattern of the folder's name would match.
    sandbox.file("w1zx/a1.txt", "another\n");
    let check = |input: &'static str, files: &[&PathBuf]| {
        let files: Vec<PathBuf> = files.iter().map(|file| (*file).clone()).collect();
        check_in(&sandbox, &folder, &os(&[input]), &files);
    };
    check("a[1].txt", &[&bracket]);
    check("a1.txt", &[&plain]);
    check("a[0-9].txt", &[&plain]);
    check("a*.txt", &[&bracket, &plain]);
    check("b*", &[&star]);
    check("{c,d}", &[&brace]);
    check("e[2]", &[&nested]);
    check("e[2]/*.txt", &[&nested]);
    check("../w[1]*{x}/e[2]/f.txt", &[&nested]);
    check("./.", &[&bracket, &plain, &star, &brace, &nested]);
    let none = sort_in(&sandbox, &folder, Path::new("../none"), ["none.txt"]);
    none.expect_code(1).expect_error(&["none.txt is not there"]);
}

#[test]
fn names_of_all_bytes_are_sorted() {
    let sandbox = Sandbox::new();
    let name = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
    let folder = sandbox.path("in");
    let files: Vec<PathBuf> = [
        &b"gr\xfcn"[..],
        b"new\nline",
        b" blank ",
        br"back\slash",
        br"like \xff",
        b"\x7f\x1b[31m",
        b"%2f",
        b"q?*[",
        b"-dash",
    ]
    .iter()
    .enumerate()
    .map(|(at, bytes)| sandbox.file(folder.join(name(bytes)), format!("{}\nx\n", 9 - at)))
    .collect();
    let here = sandbox.path("");
    check_in(&sandbox, &here, &os(&["in"]), &files);
    // Named one by one, too.
    let each: Vec<&OsStr> = files.iter().map(|file| file.as_os_str()).collect();
    check_in(&sandbox, &here, &each, &files);
    // An OUTPUT of such a name.
    let output = sandbox.path(name(b"out-\xff"));
    sort_in(&sandbox, &here, &output, ["in"]).expect_code(0);
    Output::of_folder(&output).assert_is(&oracle::gnu_sort(&[], &files));
}

#[test]
fn odd_entries_are_named_and_bad_inputs_decides() {
    let sandbox = Sandbox::new();
    let files = [sandbox.file("in/a", "b\na\n"), sandbox.file("in/sub/b", "d\nc\n")];
    sandbox.file("in/.hidden/x", "hidden\n");
    symlink("nowhere", sandbox.path("in/dangling")).expect("link");
    symlink("nowhere", sandbox.path("in/_dangling")).expect("link");
    symlink("..", sandbox.path("in/sub/up")).expect("link");
    let _listener = UnixListener::bind(sandbox.path("in/sock")).expect("socket");
    let here = sandbox.path("");
    let refused = sort_in(&sandbox, &here, Path::new("out"), ["in"]).expect_code(1);
    let words = [
        "3 entries",
        "in/dangling (a link to what is not there (nowhere))",
        "in/sock (a socket)",
        "in/sub/up (a link to a folder",
        "--bad-inputs skip",
    ];
    assert!(!refused.expect_error(&words).stderr.contains("_dangling"));
    assert!(!sandbox.path("out").exists(), "a refused job leaves no OUTPUT");

    let mut command = sandbox.muster();
    command.current_dir(&here).args([
        "sort",
        "in",
        "-o",
        "said",
        "--local=1",
        "--bad-inputs",
        "skip",
    ]);
    let said = sandbox.run_command(command, wait::RUN_BOUND).expect_code(0);
    let said = said.expect_error(&[
        "3 entries of the input are left out",
        "in/dangling",
        "in/sock: a socket",
        "in/sub/up",
    ]);
    assert!(said.stdout.contains("in/sock: a socket"), "{}", said.stdout);

    let report = check_in(&sandbox, &here, &os(&["in", "--bad-inputs", "skip"]), &files);
    assert_eq!(report["skipped_objects"], 3, "{report}");
    let success = Output::of_folder(sandbox.path("out-0")).success.expect("it has succeeded");
    for (list, from) in
        [(&report["skipped"], "the report"), (&success["skipped_objects"], "_SUCCESS")]
    {
        let reasons: Vec<&str> = list
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|entry| entry["reason"].as_str())
            .collect();
        assert_eq!(
            reasons,
            [
                "a link to what is not there (nowhere)",
                "a socket",
                "a link to a folder that holds it"
            ],
            "{from}"
        );
    }
    // What no pattern means is nobody's trouble.
    check_in(&sandbox, &here, &os(&["in/?", "in/sub/?"]), &files);
}

/// Took 60 s with one such link, and never ended with two.
#[test]
fn links_that_go_round_end_at_once() {
    let sandbox = Sandbox::new();
    let file = sandbox.file("in/a", "b\na\n");
    for name in ["x", "y"] {
        symlink(".", sandbox.path("in").join(name)).expect("link");
    }
    symlink("self", sandbox.path("in/self")).expect("link");
    let run = |input: &str, more: &[&str]| {
        let mut command = sandbox.muster();
        command.args([&["sort", input, "-o", "out", "--local=1"], more].concat());
        sandbox.run_command(command, AT_ONCE)
    };
    run("in", &[]).expect_code(1).expect_error(&["3 entries", "in/self (cannot look at it"]);
    run("in/self", &[]).expect_code(1).expect_error(&["in/self", "symbolic links"]);
    run(&"n".repeat(300), &[]).expect_code(1).expect_error(&["File name too long"]);
    run("in", &["--bad-inputs", "skip"]).expect_code(0);
    Output::of_folder(sandbox.path("out")).assert_is(&oracle::gnu_sort(&[], &[file]));
}

#[test]
fn what_is_no_text_is_told_by_its_content() {
    let sandbox = Sandbox::new();
    sandbox.file("plain", "b\na\n");
    let here = sandbox.path("");
    let sh = |line: &str| {
        let mut command = sandbox.clean_command("sh");
        command.current_dir(&here).args(["-c", line]);
        sandbox.run_command(command, AT_ONCE).expect_code(0);
    };
    // Without the extensions that would tell.
    sh("gzip -c plain > g; bzip2 -c plain > b; tar -cf t plain; iconv -f utf-8 -t utf-16 plain > \
            u");
    sandbox.file("p", b"PAR1\x15\x04\x15\x10");
    for (input, words) in [
        ("g", ["gzip-compressed", "decompress it first (gzip -dc"]),
        ("b", ["bzip2-compressed", "decompress it first (bzip2 -dc"]),
        ("t", ["tar archive", "unpack it first (tar -xf"]),
        ("u", ["UTF-16", "convert it first (iconv -f UTF-16"]),
        ("p", ["Parquet", "write its rows as lines first"]),
    ] {
        let refused = sort_in(&sandbox, &here, Path::new("none"), ["plain", input])
            .expect_code(1)
            .expect_error(&words);
        assert!(
            !refused.stderr.contains("--format lines"),
            "a proof over garbage: {}",
            refused.stderr
        );
    }
    // Who insists is told what comes of it.
    let mut command = sandbox.muster();
    command.args(["sort", "g", "-o", "bytes", "--local=1", "--format", "lines"]);
    let warned = sandbox.run_command(command, wait::RUN_BOUND).expect_code(0);
    warned.expect_error(&["g is gzip-compressed", "cannot be decompressed"]);
    // A name alone says nothing of bytes, and text that begins like a magic number is text.
    let files = [
        sandbox.file("named.gz", "z\ny\n"),
        sandbox.file("begins", "BZh9 is how it begins\nPAR1\n"),
    ];
    check_in(&sandbox, &here, &os(&["named.gz", "begins"]), &files);
}

#[test]
fn keys_and_separators_of_lines_make_csv_lines() {
    let sandbox = Sandbox::new();
    let file = sandbox.file("table.csv", "b,10\na,9\nc,\"1\n");
    let here = sandbox.path("");
    let refused = sort_in(&sandbox, &here, Path::new("none"), ["table.csv"]).expect_code(1);
    refused.expect_error(&["CSV by its name", "--format lines", "-k, -t"]);
    for options in [&["-t,"][..], &["-k2"], &["-n"], &["-t,", "-k2,2n"], &["--format", "lines"]] {
        let output = sandbox.path(format!("out-{}", sandbox_count(&sandbox)));
        sort_in(&sandbox, &here, &output, [&["table.csv"][..], options].concat()).expect_code(0);
        let as_sort: Vec<&str> = options
            .iter()
            .copied()
            .filter(|option| !["--format", "lines"].contains(option))
            .collect();
        Output::of_folder(&output)
            .assert_is(&oracle::gnu_sort(&as_sort, std::slice::from_ref(&file)));
    }
}

/// Keys that a bucket may hold, as URLs write them, and what each object holds.
const KEYS: [(&str, &str); 7] = [
    ("in/plain", "b\n"),
    ("in/del%7F", "a\n"),
    ("in/%01%0Acontrol", "d\n"),
    ("in//twice", "c\n"),
    ("in/a+b%20c%26d", "e\n"),
    ("in/tail/", "f\n"),
    ("other/./dots", "g\n"),
];

/// Answers as a bucket with these objects, in pages of two.
fn bucket_of_odd_keys(request: &Request) -> Vec<u8> {
    let (method, target) = request.line.split_once(' ').unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let parameter = |name: &str| {
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs
            .filter(|(key, _)| *key == name)
            .map(|(_, value)| value.replace("%2F", "/"))
            .next()
            .unwrap_or_default()
    };
    let key = path.strip_prefix("/data/").unwrap_or_default();
    // A client escapes what it likes; the pluses and blanks of these keys are all that differs.
    let same = |known: &str| known.replace('+', "%2B") == key;
    match KEYS.iter().find(|(known, _)| same(known)) {
        _ if query.contains("list-type") => {
            let prefix = parameter("prefix");
            let below: Vec<_> =
                KEYS.iter().filter(|(known, _)| known.starts_with(&prefix)).collect();
            let begin = parameter("continuation-token").parse::<usize>().unwrap_or(0);
            let entry = |(known, bytes): &&(&str, &str)| {
                format!(
                    "<Contents><Key>{}</Key><Size>{}</Size><ETag>\"{}\"</ETag></Contents>",
                    known.replace('+', "%2B").replace("%20", "+"),
                    bytes.len(),
                    bytes.trim()
                )
            };
            let entries: String = below.iter().skip(begin).take(2).map(entry).collect();
            let more = begin + 2 < below.len();
            let next = if more {
                format!("<NextContinuationToken>{}</NextContinuationToken>", begin + 2)
            } else {
                String::new()
            };
            reply(
                "200 OK",
                "",
                &format!(
                    "<ListBucketResult><EncodingType>url</EncodingType>\
                     <IsTruncated>{more}</IsTruncated>{next}{entries}</ListBucketResult>"
                ),
            )
        }
        Some((_, bytes)) if matches!(method, "HEAD" | "GET") => {
            let headers = format!(
                "ETag: \"{}\"\r\nLast-Modified: Wed, 21 Oct 2015 07:28:00 GMT\r\n",
                bytes.trim()
            );
            let last = bytes.len() - 1;
            match request.header("range") {
                Some(range) => {
                    let (begin, end) = range
                        .strip_prefix("bytes=")
                        .and_then(|range| range.split_once('-'))
                        .unwrap_or_default();
                    let begin = begin.parse::<usize>().unwrap_or(0);
                    let end = end.parse::<usize>().map_or(last, |end| end.min(last));
                    let headers =
                        format!("{headers}Content-Range: bytes {begin}-{end}/{}\r\n", bytes.len());
                    reply("206 Partial Content", &headers, &bytes[begin..=end])
                }
                None => reply("200 OK", &headers, bytes),
            }
        }
        _ => reply("404 Not Found", "", &error_body("NoSuchKey", "There is none")),
    }
}

#[test]
fn keys_of_a_bucket_are_read_as_they_are() {
    let sandbox = Sandbox::new();
    let store = FakeS3::start(bucket_of_odd_keys);
    let run = |input: &str, output: &str, more: &[&str]| {
        let mut command = sandbox.muster();
        command.args([&["sort", input, "-o", output, "--local=1", "--json"], more].concat());
        command.env("AWS_ENDPOINT_URL", store.endpoint());
        command.env("AWS_ACCESS_KEY_ID", "key").env("AWS_SECRET_ACCESS_KEY", "secret");
        sandbox.run_command(command, wait::RUN_BOUND)
    };
    let check = |input: &str, output: &str, expected: &[u8]| {
        run(input, output, &[]).expect_code(0);
        Output::of_folder(sandbox.path(output)).assert_is(expected);
    };
    check("s3://data/in", "all", b"a\nb\nc\nd\ne\nf\n");
    check("s3://data/in//", "twice", b"c\n");
    check("s3://data/in//twice", "one", b"c\n");
    check("s3://data/in/p*", "glob", b"b\n");
    // What cannot be asked for is named; a pattern that does not mean it is not harmed.
    run("s3://data/other", "none", &[])
        .expect_code(1)
        .expect_error(&["other/./dots", ". or .. segments"]);
    run("s3://data/*/p*", "across", &[]).expect_code(0);
    let report = run("s3://data/other", "skipped", &["--bad-inputs", "skip"]).expect_code(0).json();
    assert_eq!(report["skipped_objects"], 1, "{report}");
}

/// One such key failed the whole listing.
#[test]
fn a_key_with_a_control_character_fails_no_listing() {
    let sandbox = Sandbox::new();
    let server = S3Server::start(&sandbox);
    let bucket = server.bucket("data");
    let files = [sandbox.file("a", "d\na\n"), sandbox.file("b", "c\nb\n")];
    bucket.put("in/plain", b"d\na\n");
    bucket.put_escaped("in/del%7F", b"c\nb\n");
    let mut command = sandbox.muster();
    command
        .args(["sort", &bucket.url("in"), "-o", &bucket.url("out"), "--local=1"])
        .envs(server.environment());
    sandbox.run_command(command, wait::RUN_BOUND).expect_code(0);
    Output::of_bucket(&bucket, "out/").assert_is(&oracle::gnu_sort(&[], &files));
}
