//! Input that one worker alone can read (`muster worker --input-dir`, `muster sort workers:/`): the
//! documented order, what a lost worker costs, and what is never read.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::Duration;

use muster_tests::harness::data::{Keys, log_lines, records};
use muster_tests::harness::sandbox::files_below;
use muster_tests::harness::{
    Bucket, Gate, Output, Pool, Process, S3Server, Sandbox, arg, oracle, process, wait,
};
use serde_json::Value;

const BUCKET: &str = "data";
const SMALL: usize = 100_000;
/// Records of each file: `worker-1` has two of them, the others one, so that it is the last to be
/// done with sorting.
const RECORDS: usize = 6_000;
/// Added to each request of a worker, so that phases last for seconds.
const DELAY: Duration = Duration::from_millis(40);

/// A job over what three workers offer, on a pool with a bucket.
struct Scene<'a> {
    pool: Pool<'a>,
    bucket: Bucket,
    /// The input in the documented order: by worker id, then by path.
    data: Vec<u8>,
    sort: Process,
}

impl<'a> Scene<'a> {
    fn start(sandbox: &'a Sandbox, s3: &S3Server, more_settings: &str) -> Self {
        let files = [("0/a", 1), ("1/a", 2), ("1/sub/b", 3), ("2/a", 4)];
        let data: Vec<Vec<u8>> =
            files.iter().map(|(_, seed)| records(RECORDS, Keys::Skewed, *seed)).collect();
        for ((name, _), bytes) in files.iter().zip(&data) {
            sandbox.file(format!("own/{name}"), bytes);
        }
        let offers = (0..3).map(|worker| vec![sandbox.path(format!("own/{worker}"))]).collect();
        let bucket = s3.bucket(BUCKET);
        let pool = Pool::on_bucket_offering(sandbox, offers, s3, BUCKET);
        pool.slow_workers(DELAY);
        let settings =
            format!("[job]\nsplit_bytes = {SMALL}\npartition_bytes = {SMALL}\n{more_settings}");
        let config = sandbox.file("job.toml", settings);
        let to = bucket.url("out");
        let arguments = [
            "workers:/",
            "-o",
            &to,
            "--format",
            "fixed:100",
            "-k",
            "0:10",
            "--config",
            arg(&config),
        ];
        let sort = pool.start_sort("job", arguments);
        Self { pool, bucket, data: data.concat(), sort }
    }

    /// Holds the job in the midst of a state, and takes `worker-1` away.
    fn kill_in_the_midst_of(&mut self, state: &str) {
        self.pool.hold_in_the_midst_of("job", state);
        self.pool.kill_worker(1);
    }

    /// Waits until all that is left to be done is what `worker-1` alone can do.
    fn wait_for_the_wait(&self) -> String {
        self.pool.each_worker_gate(Gate::open);
        let status = self.pool.wait_for_status("job", "waiting for worker-1", |status| {
            let waits = status["waiting_for"]
                .as_str()
                .is_some_and(|text| text.contains("worker worker-1, which alone can read"));
            waits && status["attempts_running"] == 0
        });
        status["waiting_for"].as_str().unwrap_or_default().to_owned()
    }

    #[track_caller]
    fn assert_clean(&self) {
        wait::until_empty("in scratch", || self.bucket.list("scratch"));
        wait::until_empty("as open uploads", || self.bucket.uploads());
    }

    /// Opens all gates, and checks that the job succeeds with the right bytes, repeats nothing but
    /// these many lost runs, and leaves nothing else.
    #[track_caller]
    fn finish(self, repeated: u64) {
        self.pool.each_worker_gate(Gate::open);
        let Self { pool, bucket, data, sort } = self;
        let report = pool.finish_sort(sort);
        assert_eq!(report["records"].as_u64(), Some(data.len() as u64 / 100), "{report}");
        assert_eq!(report["repeated_tasks"].as_u64(), Some(repeated), "{report}");
        if repeated == 0 {
            pool.assert_nothing_repeated("job", &report);
        }
        Output::of_bucket(&bucket, "out").assert_is(&oracle::fixed(&data, 100, 0, 10));
        wait::until_empty("in scratch", || bucket.list("scratch"));
        wait::until_empty("as open uploads", || bucket.uploads());
    }

    /// Waits for the job to fail, and gives what its client said.
    #[track_caller]
    fn fail(&mut self) -> String {
        let code = process::exit_code(self.sort.wait(wait::RUN_BOUND));
        let said = self.sort.stderr();
        assert_eq!(code, 1, "{said}");
        self.assert_clean();
        Output::of_bucket(&self.bucket, "out").assert_nothing();
        said
    }
}

#[test]
fn files_of_three_workers_by_id_then_by_path() {
    let sandbox = Sandbox::new();
    // Names in no order; `b.log` comes before `b/`, and hidden ones are no input.
    let of = |worker: usize, names: &[&str]| -> (PathBuf, Vec<PathBuf>) {
        let folder = sandbox.path(format!("own-{}", 9 - worker));
        let file = |name: &&str| {
            let lines = if *name == "empty" {
                Vec::new()
            } else {
                log_lines(700, name.len() as u64 + 10 * worker as u64)
            };
            sandbox.file(folder.join(name), lines)
        };
        let files = names.iter().map(file).collect();
        (folder, files)
    };
    let (first, mut files) = of(0, &["a", "b.log", "b/c", "b/d.log", "empty"]);
    let (second, more) = of(1, &["0", "zz/y.log"]);
    let (third, most) = of(2, &["a"]);
    files.extend(more);
    files.extend(most);
    sandbox.file(first.join("_hidden"), "not to be seen\n");
    sandbox.file(first.join("b/.git/x"), "not to be seen\n");
    let shared = sandbox.file("shared", log_lines(500, 99));
    let pool = Pool::on_folder_offering(&sandbox, vec![vec![first], vec![second], vec![third]]);
    let config = sandbox.small_tasks(20_000, 20_000);
    let config = arg(&config);

    let check = |job: &str, inputs: &[&str], options: &[&str], expected: &[PathBuf]| {
        let output = sandbox.path(job);
        let mut arguments = vec!["-o", arg(&output), "--config", config];
        arguments.extend(inputs.iter().chain(options));
        pool.sort(job, arguments);
        Output::of_folder(&output).assert_is(&oracle::gnu_sort(options, expected));
    };
    // What is equal by its key stays in the order of the input: the order of the files shows.
    check("stable", &["workers:/"], &["-s", "-k2,2"], &files);
    check("unique", &["workers:/"], &["-u", "-k2,2"], &files);
    check("whole", &["workers:/"], &[], &files);
    check("folder", &["workers:/b"], &["-s", "-k2,2"], &files[2..4]);
    check(
        "glob",
        &["workers:/**/*.log"],
        &["-s", "-k2,2"],
        &[&files[1..2], &files[3..4], &files[6..7]].concat(),
    );
    let mixed: Vec<PathBuf> = [&files[..], std::slice::from_ref(&shared), &files[5..6]].concat();
    check("mixed", &["workers:/", arg(&shared), "workers:/0"], &["-s", "-k2,2"], &mixed);
    let over = sandbox.path("own-9/out");
    pool.run(["sort", "workers:/", "-o", arg(&over)])
        .expect_code(1)
        .expect_error(&["overlaps", "worker-0"]);
    wait::until_empty("in scratch", || files_below(&sandbox.path("scratch")));
}

#[test]
fn odd_entries_of_workers_are_named_and_bad_inputs_decides() {
    let sandbox = Sandbox::new();
    let files = [sandbox.file("own/a", "b\na\n"), sandbox.file("own/sub/b", "d\nc\n")];
    let secret = sandbox.file("secret/lines", "a secret of this machine\n");
    let (own, out) = (sandbox.path("own"), sandbox.path("out"));
    for (target, link) in [
        (PathBuf::from("nowhere"), "dangling"),
        (secret, "leads"),
        (sandbox.path("secret"), "sub/up"),
    ] {
        symlink(target, own.join(link)).unwrap();
    }
    symlink("nowhere", own.join("_dangling")).unwrap();
    let _listener = UnixListener::bind(own.join("sock")).unwrap();
    let mut command = sandbox.clean_command("mkfifo");
    command.arg(own.join("sub/pipe"));
    sandbox.run_command(command, Duration::from_secs(60)).expect_code(0);
    let pool = Pool::on_folder_offering(&sandbox, vec![vec![own.clone()]]);

    let place = format!("worker://worker-0{}", own.canonicalize().unwrap().display());
    let dangling = format!("{place}/dangling (a link to what is not there (nowhere))");
    let words = [
        "5 entries of the input cannot be read",
        &dangling,
        "leads (a link that leads out of the folder",
        "sock (a socket)",
        "sub/pipe (a pipe)",
        "sub/up (a link that leads out",
        "--bad-inputs skip",
    ];
    for options in [&[][..], &["--bad-inputs", "fail"]] {
        let refused = pool
            .run([&["sort", "workers:/", "-o", arg(&out)][..], options].concat())
            .expect_code(1);
        assert!(!refused.expect_error(&words).stderr.contains("_dangling"));
        assert!(!out.exists(), "a refused job leaves no OUTPUT");
    }
    let skip = ["--bad-inputs", "skip"];
    let said = pool
        .run([&["sort", "workers:/", "-o", arg(&sandbox.path("said"))][..], &skip].concat())
        .expect_code(0);
    let named = [
        "5 entries of the input are left out",
        "own/dangling",
        "own/sock: a socket",
        "own/sub/pipe: a pipe",
    ];
    assert!(said.expect_error(&named).stdout.contains("own/sock: a socket"));

    let report = pool.sort("skips", [&["workers:/", "-o", arg(&out)][..], &skip].concat());
    let output = Output::of_folder(&out);
    let success = output.success.clone().expect("it has succeeded");
    output.assert_is(&oracle::gnu_sort(&[], &files));
    assert_eq!(report["skipped_objects"], 5, "{report}");
    for (list, from) in
        [(&report["skipped"], "the report"), (&success["skipped_objects"], "_SUCCESS")]
    {
        let entry = |entry: &Value| {
            let text = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
            (text("object"), text("reason"))
        };
        let list: Vec<(String, String)> =
            list.as_array().into_iter().flatten().map(entry).collect();
        assert_eq!(list.len(), 5, "{from}: {list:?}");
        for (name, reason) in [
            ("dangling", "a link to what is not there (nowhere)"),
            ("sock", "a socket"),
            ("sub/pipe", "a pipe"),
        ] {
            assert!(
                list.contains(&(format!("{place}/{name}"), reason.to_owned())),
                "{from}: {name} in {list:?}"
            );
        }
    }
    // One by itself, too; and what no pattern means is nobody's trouble.
    let none = sandbox.path("none");
    let refused = pool.run(["sort", "workers:/sub/up", "-o", arg(&none)]).expect_code(1);
    refused.expect_error(&["1 entry of the input", "sub/up (a link that leads out"]);
    pool.run(["sort", "workers:/?", "workers:/sub/?", "-o", arg(&none)]).expect_code(0);
    Output::of_folder(&none).assert_is(&oracle::gnu_sort(&[], &files));
}

#[test]
fn names_and_content_at_workers_are_judged_as_elsewhere() {
    let sandbox = Sandbox::new();
    let bracket = sandbox.file("own-1/a[1]", "bracket\n");
    let plain = [sandbox.file("own-0/a1", "plain\n"), sandbox.file("own-1/a1", "too\n")];
    let nested =
        [sandbox.file("own-0/d[1]/x*", "star\n"), sandbox.file("own-1/d[1]/xy", "no star\n")];
    sandbox.file("own-0/d1/x", "another\n");
    let lines = sandbox.file("packed/lines", "b\na\n");
    let sh = |line: &str| {
        let mut command = sandbox.clean_command("sh");
        command.current_dir(sandbox.path("packed")).args(["-c", line]);
        sandbox.run_command(command, Duration::from_secs(60)).expect_code(0);
    };
    // Without the extensions that would tell.
    sh("tar -cf t lines; gzip -c lines > g; iconv -f utf-8 -t utf-16 lines > u");
    let pool = Pool::on_folder_offering(
        &sandbox,
        vec![vec![sandbox.path("own-0"), sandbox.path("packed")], vec![sandbox.path("own-1")]],
    );
    let check = |job: &str, input: &str, files: &[PathBuf]| {
        let output = sandbox.path(job);
        pool.sort(job, [input, "-o", arg(&output)]);
        Output::of_folder(&output).assert_is(&oracle::gnu_sort(&[], files));
    };
    // What exists at one worker is a path at all of them.
    check("exact", "workers:/a[1]", std::slice::from_ref(&bracket));
    check("escaped", r"workers:/a\[1\]", std::slice::from_ref(&bracket));
    check("pattern", "workers:/a[0-9]", &plain);
    check("folder", "workers:/d[1]", &nested);
    check("below", "workers:/d[1]/*y", &nested[1..]);
    check("star", "workers:/d[1]/x*", &nested[..1]);

    let none = sandbox.path("none");
    for (input, words) in [
        ("workers:/t", ["packed/t is a tar archive", "unpack it first (tar -xf"]),
        ("workers:/g", ["packed/g is gzip-compressed", "decompress it first (gzip -dc"]),
        ("workers:/u", ["packed/u is UTF-16", "convert it first (iconv -f UTF-16"]),
    ] {
        pool.run(["sort", "workers:/lines", input, "-o", arg(&none)])
            .expect_code(1)
            .expect_error(&words);
    }
    let bytes = sandbox.path("bytes");
    pool.run(["sort", "workers:/t", "-o", arg(&bytes), "--format", "lines"])
        .expect_code(0)
        .expect_error(&["packed/t is a tar archive", "no archive any more"]);
    check("lines", "workers:/lines", &[lines]);
}

#[test]
fn fixed_records_of_three_workers() {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    Scene::start(&sandbox, &s3, "").finish(0);
}

#[test]
fn a_worker_that_dies_while_sorting_is_waited_for() {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    let mut scene = Scene::start(&sandbox, &s3, "");
    scene.kill_in_the_midst_of("sorting");
    let text = scene.wait_for_the_wait();
    assert!(text.contains("of its inputs") && text.contains("dead"), "{text}");
    // Another job goes on meanwhile.
    scene.bucket.put("other", &records(2_000, Keys::Random, 9));
    let (from, to) = (scene.bucket.url("other"), scene.bucket.url("other-out"));
    scene.pool.sort("other", [&*from, "-o", &to, "--format", "fixed:100", "-k", "0:10"]);
    scene.pool.start_worker(1);
    scene.finish(0);
}

#[test]
fn a_worker_that_does_not_come_back_fails_the_job_by_name() {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    let mut scene = Scene::start(&sandbox, &s3, "[phases]\nregister_ms = 3000\n");
    scene.kill_in_the_midst_of("sorting");
    scene.pool.each_worker_gate(Gate::open);
    let said = scene.fail();
    let file =
        format!("worker://worker-1{}", sandbox.path("own/1").canonicalize().unwrap().display());
    for part in ["worker worker-1 was waited for", &file, "phases.register_ms"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    // The pool is none the worse for it.
    scene.bucket.put("other", &records(2_000, Keys::Random, 9));
    let (from, to) = (scene.bucket.url("other"), scene.bucket.url("other-out"));
    scene.pool.sort("other", [&*from, "-o", &to, "--format", "fixed:100", "-k", "0:10"]);
}

#[test]
fn a_worker_that_dies_while_merging_is_not_needed_any_more() {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    let mut scene = Scene::start(&sandbox, &s3, "[phases]\nregister_ms = 3000\n");
    scene.kill_in_the_midst_of("merging");
    scene.finish(0);
}

#[test]
fn a_lost_run_is_made_again_by_the_worker_that_has_its_input() {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    let mut scene = Scene::start(&sandbox, &s3, "");
    scene.kill_in_the_midst_of("merging");
    // Splits 6 to 17 are of worker-1.
    let lost = |key: &String| {
        key.ends_with(".run") && (key.contains("sort-00007.") || key.contains("sort-00012."))
    };
    let lost: Vec<String> = scene.bucket.list("scratch").into_iter().filter(lost).collect();
    assert_eq!(lost.len(), 2, "{lost:?}");
    lost.iter().for_each(|key| scene.bucket.delete(key));
    scene.wait_for_the_wait();
    scene.pool.start_worker(1);
    scene.finish(2);
}

#[test]
fn a_coordinator_that_dies_leaves_each_task_to_its_worker() {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    let mut scene = Scene::start(&sandbox, &s3, "");
    scene.pool.hold_in_the_midst_of("job", "sorting");
    scene.pool.kill_coordinator();
    scene.pool.start_coordinator();
    scene.finish(0);
}

#[test]
fn a_file_that_changes_under_a_job_fails_it() {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    let mut scene = Scene::start(&sandbox, &s3, "");
    scene.pool.hold_in_the_midst_of("job", "sorting");
    fs::write(sandbox.path("own/1/sub/b"), records(RECORDS, Keys::Random, 8)).unwrap();
    scene.pool.each_worker_gate(Gate::open);
    let said = scene.fail();
    assert!(
        said.contains("changed") && said.contains("worker://worker-1/") && said.contains("sub/b"),
        "{said}"
    );
}

#[test]
fn a_folder_that_is_not_offered_any_more_fails_the_job() {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    let mut scene = Scene::start(&sandbox, &s3, "");
    scene.kill_in_the_midst_of("sorting");
    scene.wait_for_the_wait();
    sandbox.file("elsewhere/x", "x\n");
    scene.pool.offer(1, vec![sandbox.path("elsewhere")]);
    scene.pool.start_worker(1);
    let said = scene.fail();
    assert!(
        said.contains("worker-1") && said.contains("not below the folders that this worker offers"),
        "{said}"
    );
}

#[test]
fn what_cannot_work_is_refused_by_name() {
    let sandbox = Sandbox::new();
    let file = sandbox.file("in/file", "line\n");
    let out = sandbox.path("out");
    sandbox
        .run(["sort", "workers:/", "-o", arg(&out)])
        .expect_code(2)
        .expect_error(&["workers:/", "a run here has none"]);
    let pool = Pool::on_folder(&sandbox, 1);
    pool.run(["sort", "workers:/", "-o", arg(&out)]).expect_code(1).expect_error(&["--input-dir"]);
    pool.run(["sort", "workers:/a/../../etc", "-o", arg(&out)])
        .expect_code(2)
        .expect_error(&["segments"]);
    for (folder, expected) in
        [(file.clone(), "Not a directory"), (sandbox.path("none"), "No such file")]
    {
        let mut worker = pool.client([
            "worker",
            "--id",
            "other",
            "--profile",
            "testing",
            "--input-dir",
            arg(&folder),
        ]);
        worker.arg("--data-dir").arg(sandbox.path("data-other"));
        sandbox
            .run_command(worker, Duration::from_secs(60))
            .expect_code(1)
            .expect_error(&["input folder", expected]);
    }
    let mut worker = pool.client([
        "worker",
        "--id",
        "other",
        "--profile",
        "testing",
        "--input-dir",
        arg(&sandbox.path("in")),
    ]);
    worker.arg("--data-dir").arg(sandbox.path("in/data"));
    sandbox
        .run_command(worker, Duration::from_secs(60))
        .expect_code(1)
        .expect_error(&["would be read as input"]);
}
