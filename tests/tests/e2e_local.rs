//! `muster sort` on one machine: a private server, a coordinator and workers that come and go with
//! the command.

use std::path::Path;

use muster_tests::harness::data::{Keys, log_lines, odd_lines, records, words};
use muster_tests::harness::process::{self, Process, any_with_argument};
use muster_tests::harness::sandbox::{LOG_ATTEMPTS, files_below};
use muster_tests::harness::{Output, Sandbox, arg, oracle, wait};
use rustix::process::Signal;

/// Bytes of a split and of a partition where a test wants many tasks of little data.
const SMALL: usize = 64 << 10;

/// Sorts fixed-length records in many tasks and compares with a plain stable sort. Gives the parts'
/// names and bytes.
#[track_caller]
fn check_fixed(data: &[u8], record: usize, key: (usize, usize), more: &[&str]) -> Output {
    let sandbox = Sandbox::new();
    let (input, config, output) =
        (sandbox.file("in.bin", data), sandbox.small_tasks(SMALL, SMALL), sandbox.path("out"));
    let (format, range) = (format!("fixed:{record}"), format!("{}:{}", key.0, key.1));
    let mut arguments =
        vec![arg(&input), "--format", &format, "-k", &range, "--config", arg(&config)];
    arguments.extend(more);
    let (report, result) = sandbox.sort_here(&output, arguments);
    result.assert_is(&oracle::fixed(data, record, key.0, key.1));
    assert_eq!(report["records"].as_u64(), Some((data.len() / record) as u64), "{report}");
    result
}

/// Sorts lines in many tasks and compares with sort(1).
#[track_caller]
fn check_lines(files: &[(&str, &[u8])], options: &[&str]) -> Output {
    check_lines_in_tasks(SMALL, files, options)
}

/// Sorts lines in tasks of so many bytes.
fn check_lines_in_tasks(task_bytes: usize, files: &[(&str, &[u8])], options: &[&str]) -> Output {
    let sandbox = Sandbox::new();
    let config = sandbox.small_tasks(task_bytes, task_bytes);
    let inputs: Vec<_> = files.iter().map(|(name, bytes)| sandbox.file(name, bytes)).collect();
    let mut arguments: Vec<&str> = inputs.iter().map(|path| arg(path)).collect();
    arguments.extend(["--format", "lines", "--config", arg(&config)]);
    arguments.extend(options);
    let (_, result) = sandbox.sort_here(&sandbox.path("out"), arguments);
    result.assert_is(&oracle::gnu_sort(options, &inputs));
    result
}

#[test]
fn fixed_records_in_random_order() {
    let output = check_fixed(&records(8_000, Keys::Random, 1), 100, (0, 10), &[]);
    assert!(output.parts.len() > 4, "{} parts of 800 kB", output.parts.len());
}

#[test]
fn fixed_records_already_in_order() {
    check_fixed(&records(8_000, Keys::Sorted, 2), 100, (0, 10), &[]);
}

#[test]
fn fixed_records_in_reverse() {
    check_fixed(&records(8_000, Keys::Reversed, 3), 100, (0, 10), &[]);
}

#[test]
fn equal_keys_keep_their_order_and_span_parts() {
    let output = check_fixed(&records(8_000, Keys::Equal, 4), 100, (0, 10), &[]);
    assert!(output.parts.len() > 4, "one hot key of 800 kB lies in {} parts", output.parts.len());
}

#[test]
fn skewed_keys_do_not_swell_a_part() {
    let output = check_fixed(&records(8_000, Keys::Skewed, 5), 100, (0, 10), &[]);
    let largest = output.parts.iter().map(|(_, bytes)| bytes.len()).max();
    assert!(
        largest < Some(4 * SMALL),
        "the largest part has {largest:?} bytes, {SMALL} are aimed at"
    );
}

#[test]
fn keys_within_the_record_and_odd_lengths() {
    let data = records(2_100, Keys::Random, 6);
    check_fixed(&data, 100, (90, 10), &[]);
    check_fixed(&data, 7, (3, 1), &[]);
    check_fixed(&data[..21_000], 1, (0, 1), &[]);
}

#[test]
fn each_task_is_done_once() {
    let sandbox = Sandbox::new();
    let (input, config) =
        (sandbox.file("in", records(8_000, Keys::Random, 14)), sandbox.small_tasks(SMALL, SMALL));
    let mut command = sandbox.muster();
    command.args([
        "sort",
        "--json",
        arg(&input),
        "-o",
        "out",
        "--format",
        "fixed:100",
        "-k",
        "0:10",
        "--local=2",
    ]);
    command
        .arg("--config")
        .arg(config)
        .arg("--data-dir")
        .arg(sandbox.path("data"))
        .envs([LOG_ATTEMPTS]);
    let done = sandbox.run_command(command, wait::RUN_BOUND).expect_code(0);
    assert_eq!(done.json()["retries"], 0, "{}", done.stdout);
    sandbox.assert_nothing_repeated(&sandbox.path("data"), &done);
}

#[test]
fn more_workers_than_tasks() {
    let sandbox = Sandbox::new();
    let data = records(500, Keys::Random, 7);
    let input = sandbox.file("in", &data);
    let (_, output) = sandbox.sort_here(
        &sandbox.path("out"),
        [arg(&input), "--local=6", "--format", "fixed:100", "-k", "0:10"],
    );
    output.assert_is(&oracle::fixed(&data, 100, 0, 10));
}

#[test]
fn more_tasks_than_workers() {
    check_fixed(&records(30_000, Keys::Random, 8), 100, (0, 10), &["--local=1"]);
}

#[test]
fn the_parts_are_the_same_however_many_workers_make_them() {
    let data = records(6_000, Keys::Skewed, 9);
    let [one, three] =
        ["--local=1", "--local=3"].map(|workers| check_fixed(&data, 100, (0, 10), &[workers]));
    assert!(one.parts == three.parts, "the same bytes, cut at different places");
}

#[test]
fn as_many_partitions_as_asked_for() {
    let output =
        check_fixed(&records(6_000, Keys::Random, 10), 100, (0, 10), &["--partitions", "5"]);
    assert_eq!(output.parts.len(), 5);
}

#[test]
fn lines_of_a_file() {
    check_lines(&[("log", &log_lines(6_000, 1))], &[]);
    check_lines(&[("words", &words(20_000, 1))], &[]);
}

#[test]
fn lines_that_parsers_stumble_over() {
    check_lines(&[("odd", &odd_lines(3_000, 2))], &[]);
}

#[test]
fn lines_of_many_files_some_without_a_last_newline() {
    let (log, odd) = (log_lines(2_000, 3), odd_lines(900, 4));
    check_lines(
        &[
            ("in/a", &odd),
            ("in/b", b""),
            ("in/c", &log),
            ("in/d", b"no newline"),
            ("in/e", b"\n"),
            ("in/f", &log),
        ],
        &[],
    );
}

#[test]
fn a_folder_is_read_with_what_is_below_it_but_not_what_is_hidden() {
    let sandbox = Sandbox::new();
    let seen = [
        sandbox.file("in/a", log_lines(300, 1)),
        sandbox.file("in/b/c", log_lines(300, 2)),
        sandbox.file("in/b/d/e", words(300, 3)),
    ];
    for hidden in ["in/_SUCCESS", "in/.hidden", "in/_old/part", "in/b/.git/x"] {
        sandbox.file(hidden, "not to be seen\n");
    }
    // Relative paths mean what they mean to any other command.
    let (_, output) = sandbox.sort_here(Path::new("out"), ["in"]);
    output.assert_is(&oracle::gnu_sort(&[], &seen));
}

#[test]
fn a_thousand_small_files_are_packed_into_few_tasks() {
    let sandbox = Sandbox::new();
    let lines = log_lines(6_000, 5);
    let mut chunks = lines.split_inclusive(|byte| *byte == b'\n');
    let files: Vec<_> = (0..1000)
        .map(|number| {
            sandbox.file(
                format!("in/{number:04}"),
                chunks.by_ref().take(6).collect::<Vec<_>>().concat(),
            )
        })
        .collect();
    let (_, output) =
        sandbox.sort_here(&sandbox.path("out"), [arg(&sandbox.path("in")), "-s", "-k2,2"]);
    output.assert_is(&oracle::gnu_sort(&["-s", "-k2,2"], &files));
    assert!(output.parts.len() < 5, "{} parts of 600 kB", output.parts.len());
}

#[test]
fn nothing_and_next_to_nothing() {
    for (lines, what) in [
        (&b""[..], "empty"),
        (b"\n", "one empty line"),
        (b"x", "one line without newline"),
        (b"b\na", "two lines"),
    ] {
        let sandbox = Sandbox::new();
        let input = sandbox.file("in", lines);
        let (report, output) =
            sandbox.sort_here(&sandbox.path("out"), [arg(&input), "--format", "lines"]);
        assert!(output.success.is_some(), "{what}");
        output.assert_is(&oracle::gnu_sort(&[], &[&input]));
        let expected = lines.split_inclusive(|byte| *byte == b'\n').count();
        assert_eq!(report["records"].as_u64(), Some(expected as u64), "{what}: {report}");
    }
    check_fixed(b"", 100, (0, 10), &[]);
    check_fixed(&records(1, Keys::Random, 1), 100, (0, 10), &[]);
}

#[test]
fn an_old_output_is_replaced_only_where_that_is_allowed() {
    let sandbox = Sandbox::new();
    let first = sandbox.file("first", log_lines(4_000, 1));
    let second = sandbox.file("second", words(500, 2));
    let (output, config) = (sandbox.path("out"), sandbox.small_tasks(SMALL, SMALL));
    let config = arg(&config);
    sandbox.sort_here(&output, [arg(&first), "--config", config]);
    let before = Output::of_folder(&output);
    assert!(before.parts.len() > 2);

    let refused =
        sandbox.run(["sort", arg(&second), "-o", arg(&output), "--local=2"]).expect_code(1);
    refused.expect_error(&["out", "--overwrite"]);
    Output::of_folder(&output).assert_is(&oracle::gnu_sort(&[], &[&first]));

    let (_, after) = sandbox.sort_here(&output, [arg(&second), "--overwrite", "--config", config]);
    after.assert_is(&oracle::gnu_sort(&[], &[&second]));
}

#[test]
fn the_private_server_goes_with_the_command() {
    let sandbox = Sandbox::new();
    let input = sandbox.file("in", words(1_000, 1));
    sandbox.sort_here(&sandbox.path("out"), [arg(&input)]);
    let folder = sandbox.path("").display().to_string();
    assert!(!any_with_argument(&folder), "a process that was started below {folder} still runs");
}

#[test]
fn gen_makes_gensorts_records_and_sorting_them_keeps_their_sum() {
    let sandbox = Sandbox::new();
    // The sums that the original gensort and valsort print for a million records.
    for (flags, sum) in [
        (&[][..], "7a0e0d4868cd4"),
        (&["--skew"], "79f9a7e6de673"),
        (&["--ascii"], "7a19cff467438"),
    ] {
        let file = sandbox.path("records");
        let mut arguments = vec!["gen", "-n", "1000000", "-o", arg(&file)];
        arguments.extend(flags);
        sandbox.run(arguments).expect_code(0);
        assert_eq!(oracle::gensort_checksum(&std::fs::read(&file).unwrap()), sum, "{flags:?}");
        if *flags != ["--ascii"] {
            std::fs::remove_file(file).unwrap();
        }
    }
    let input = sandbox.path("records");
    let (report, output) = sandbox
        .sort_here(&sandbox.path("out"), [arg(&input), "--format", "fixed:100", "-k", "0:10"]);
    // No two of these keys are equal, so whole lines have the same order.
    output.assert_is(&oracle::gnu_sort(&[], &[&input]));
    assert_eq!(report["records"], 1_000_000, "{report}");
    let verified = sandbox.run(["verify", arg(&sandbox.path("out"))]).expect_code(0);
    let said = format!("{}{}", verified.stdout, verified.stderr);
    assert!(
        said.contains("7a19cff467438") && said.contains("1000000"),
        "verify says neither sum nor count:\n{said}"
    );
}

#[test]
fn gen_in_all_its_modes() {
    let sandbox = Sandbox::new();
    let make = |name: &str, arguments: &[&str]| {
        let path = sandbox.path(name);
        let mut all = vec!["gen", "-o", arg(&path), "-n"];
        all.extend(arguments);
        sandbox.run(all).expect_code(0);
        path
    };
    let read = |path: &Path| std::fs::read(path).unwrap();
    for (flags, sum) in [
        (&["1000"][..], "1ea6370b955"),
        (&["1000", "--ascii"], "1f5dfb3631a"),
        (&["1000", "--skew"], "1e96301166b"),
        (&["1000", "--skew", "--ascii"], "1eef17d1cac"),
    ] {
        assert_eq!(oracle::gensort_checksum(&read(&make("mode", flags))), sum, "{flags:?}");
    }
    let whole = read(&make("whole", &["1000", "--ascii"]));
    let tail = read(&make("tail", &["600", "--ascii", "--seed-record", "400"]));
    assert!(tail == whole[40_000..], "--seed-record 400 begins with record 400");
    let folder = make("folder", &["1000", "--ascii", "--files", "7"]);
    let names = muster_tests::harness::sandbox::files_below(&folder);
    assert_eq!(names.len(), 7);
    let together: Vec<u8> = names.iter().flat_map(|name| read(&folder.join(name))).collect();
    assert!(together == whole, "the files one after the other are the one file");

    let doubled = read(&make("doubled", &["10000", "--duplicates", "30"]));
    let mut keys: Vec<&[u8]> = doubled.chunks(100).map(|record| &record[..10]).collect();
    keys.sort_unstable();
    let equal = keys.windows(2).filter(|pair| pair[0] == pair[1]).count();
    assert!(
        (2_000..4_000).contains(&equal),
        "{equal} of 10000 keys repeat another, about 30 % should"
    );
}

#[test]
fn verify_tells_order_from_disorder() {
    let sandbox = Sandbox::new();
    let data = records(2_000, Keys::Random, 11);
    let sorted = oracle::fixed(&data, 100, 0, 10);
    let (good, bad) = (sandbox.file("good", &sorted), sandbox.file("bad", &data));
    sandbox.run(["verify", arg(&good)]).expect_code(0);
    sandbox.run(["verify", arg(&bad)]).expect_code(1);

    let twice: Vec<u8> =
        sorted.chunks(100).flat_map(|record| [record, record]).flatten().copied().collect();
    let doubled = sandbox.run(["verify", arg(&sandbox.file("twice", twice))]).expect_code(0);
    assert!(
        format!("{}{}", doubled.stdout, doubled.stderr).contains("2000"),
        "2000 duplicates:\n{}{}",
        doubled.stdout,
        doubled.stderr
    );

    let output = sandbox.path("out");
    sandbox.sort_here(&output, [arg(&bad), "--format", "fixed:100", "-k", "0:10"]);
    let manifest = output.join("_SUCCESS");
    let verify = |path: &Path| sandbox.run(["verify", arg(path), "--against", arg(&manifest)]);
    verify(&output).expect_code(0);
    // In order, but not what the job wrote: one record is missing.
    let short = sandbox.file("short/part-00000.bin", &sorted[100..]);
    verify(short.parent().unwrap()).expect_code(1);
}

/// Before, a run that looked for what dead ones had left took the folder of one that was just
/// beginning.
#[test]
fn runs_that_begin_at_once_leave_each_other_alone() {
    let sandbox = Sandbox::new();
    let input = sandbox.file("in", "b\na\n");
    let dead = sandbox.file("tmp/muster-local-dead/spill/x", "of a run that was killed");
    sandbox.file("tmp/muster-local-dead/lock", "");
    let mut runs: Vec<Process> = (0..8)
        .map(|number| {
            let mut command = sandbox.muster();
            command.args(["sort", "--quiet", "--local=1", "--format", "lines", arg(&input), "-o"]);
            command.arg(sandbox.path(format!("out{number}")));
            Process::spawn(&format!("run{number}"), command, &sandbox.logs())
        })
        .collect();
    for (number, run) in runs.iter_mut().enumerate() {
        let code = process::exit_code(run.wait(wait::RUN_BOUND));
        assert_eq!((code, run.stderr().as_str()), (0, ""), "run {number}");
        Output::of_folder(sandbox.path(format!("out{number}"))).assert_is(b"a\nb\n");
    }
    assert!(!dead.exists(), "what a killed run left stays");
    sandbox.assert_no_temporaries();
}

/// Before, the folder held the job that was refused, and no other command could use it.
#[test]
fn a_refused_job_does_not_keep_its_data_dir() {
    let sandbox = Sandbox::new();
    let input = sandbox.file("in", "b\na\n");
    sandbox.file("full/other", "of somebody else");
    let sort = |output: &str| {
        let arguments = [
            "sort",
            "--json",
            "--local=1",
            "--data-dir",
            "data",
            "--format",
            "lines",
            arg(&input),
            "-o",
            output,
        ];
        sandbox.run(arguments)
    };
    let refused = sort("full").expect_code(1).expect_error(&["full"]);
    let told = refused.json();
    assert_eq!(told["exit_code"], 1, "{told}");
    assert!(told["error"].as_str().is_some_and(|error| error.contains("full")), "{told}");
    let done = sort("out").expect_code(0);
    assert_eq!(
        (&done.json()["state"], &done.json()["exit_code"]),
        (&"succeeded".into(), &0.into()),
        "{}",
        done.stdout
    );
    Output::of_folder(sandbox.path("out")).assert_is(b"a\nb\n");
}

#[test]
fn what_cannot_be_told_on_standard_output_or_error_is_no_crash() {
    let sandbox = Sandbox::new();
    let input = sandbox.file("in", "b\na\n");
    // Whose terminal is gone, or whose disk is full; nobody reads a pipe.
    for (output, redirect, code) in [
        ("o1", "2>/dev/full", 0),
        ("o2", ">/dev/full", 1),
        ("o3", ">&- 2>&-", 0),
        ("o4", "2>&1 | true; exit ${PIPESTATUS[0]}", 0),
    ] {
        let mut command = sandbox.clean_command("bash");
        let line = format!("\"$@\" -o {output} {redirect}");
        command.args(["-c", &line, "sh"]).arg(sandbox.muster().get_program());
        command
            .args(["sort", "--local=1", "--format", "lines", arg(&input)])
            .env("MUSTER_LOG", "info");
        let ended = sandbox.run_command(command, wait::RUN_BOUND).expect_code(code);
        assert!(!ended.stderr.contains("panicked"), "{redirect}: {}", ended.stderr);
        Output::of_folder(sandbox.path(output)).assert_is(b"a\nb\n");
    }
    let refused =
        sandbox.run(["sort", "--json", "-c", "in"]).expect_code(2).expect_error(&["muster verify"]);
    assert_eq!(refused.json()["exit_code"], 2, "{}", refused.stdout);
    let wrong = sandbox
        .run(["sort", "--json", "--nonsense", "in"])
        .expect_code(2)
        .expect_error(&["--nonsense"]);
    assert!(!wrong.stderr.contains("-- --nonsense"), "{}", wrong.stderr);
    let told = wrong.json()["error"].as_str().map(str::to_owned);
    assert_eq!(told.as_deref(), Some("unexpected argument '--nonsense' found"));
}

/// It used to leave its hidden uploads.
#[test]
fn generating_that_is_interrupted_leaves_nothing_unfinished() {
    let sandbox = Sandbox::new();
    for (signal, files) in [(Signal::INT, None), (Signal::TERM, Some("3")), (Signal::HUP, None)] {
        let mut command = sandbox.muster();
        command.args(["gen", "-n", "100000000", "-o", "made"]);
        command.args(files.into_iter().flat_map(|files| ["--files", files]));
        let mut run = Process::spawn("gen", command, &sandbox.logs());
        let uploads = || {
            files_below(&sandbox.path("."))
                .into_iter()
                .filter(|name| name.ends_with(".upload"))
                .count()
        };
        wait::until("an upload to be under way", wait::START_BOUND, || {
            run.assert_running();
            (uploads() > 0).then_some(())
        });
        run.signal(signal);
        assert_eq!(process::exit_code(run.wait(wait::RUN_BOUND)), 130);
        assert!(
            run.stderr().contains("interrupted; nothing unfinished is left"),
            "{}",
            run.stderr()
        );
        assert_eq!((uploads(), sandbox.path("made").is_file()), (0, false), "{signal:?}");
    }
}

/// Sorts with so much `--memory`, and gives the peak of what the process holds itself, in MiB.
fn peak_mib(sandbox: &Sandbox, memory: &str, arguments: &[&str]) -> u64 {
    let mut command = sandbox.muster();
    command
        .args(["sort", "--local=2", "--quiet", "--overwrite", "-o", "out", "--memory", memory])
        .args(arguments);
    let mut run = Process::spawn("sort", command, &sandbox.logs());
    let (status, mut peak_kib) = (format!("/proc/{}/status", run.id()), 0);
    let ended = wait::until("the sort to end", wait::RUN_BOUND, || {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let anon = text.lines().find_map(|line| {
            line.strip_prefix("RssAnon:")?.split_whitespace().next()?.parse().ok()
        });
        peak_kib = peak_kib.max(anon.unwrap_or(0));
        run.poll()
    });
    assert_eq!(process::exit_code(ended), 0, "{}", run.stderr());
    assert!(peak_kib > 0, "the process was never seen");
    peak_kib >> 10
}

#[test]
fn a_small_memory_is_kept_while_many_runs_are_merged() {
    let sandbox = Sandbox::new();
    let data = records(1_000_000, Keys::Random, 21);
    let (input, config) = (sandbox.file("in", &data), sandbox.small_tasks(2 << 20, 32 << 20));
    let peak = peak_mib(
        &sandbox,
        "128MiB",
        &[arg(&input), "--format", "fixed:100", "-k", "0:10", "--config", arg(&config)],
    );
    assert!(peak <= 128, "{peak} MiB");
    Output::of_folder(sandbox.path("out")).assert_is(&oracle::fixed(&data, 100, 0, 10));
}

#[test]
fn a_line_that_is_too_long_for_the_memory_says_with_how_much_it_works() {
    let sandbox = Sandbox::new();
    let mut lines = b"b\n".to_vec();
    lines.resize(lines.len() + (60 << 20), b'a');
    lines.extend(b"\nc\n");
    let input = sandbox.file("in", &lines);
    let sort = |memory: &str| {
        sandbox.run([
            "sort",
            arg(&input),
            "-o",
            "out",
            "--local=1",
            "--format",
            "lines",
            "--quiet",
            "--memory",
            memory,
        ])
    };
    let refused = sort("128MiB").expect_code(1).expect_error(&[
        "62914560 bytes",
        "in",
        "byte 2",
        "give --memory ",
    ]);
    let after = refused.stderr.split("give --memory ").nth(1).expect("an amount");
    let enough: String = after.chars().take_while(char::is_ascii_alphanumeric).collect();
    assert!(enough.ends_with("MiB"), "{}", refused.stderr);
    sort(&enough).expect_code(0);
    Output::of_folder(sandbox.path("out"))
        .assert_is(&oracle::gnu_sort(&[], std::slice::from_ref(&input)));
}

#[test]
fn verify_reads_order_and_sums_from_the_folder() {
    let sandbox = Sandbox::new();
    let input = sandbox.file("in", "c:1\na:10\nb:9\n");
    sandbox.sort_here(&sandbox.path("out"), [arg(&input), "-t:", "-k2,2nr", "--format", "lines"]);
    let manifest = std::fs::read_to_string(sandbox.path("out/_SUCCESS")).unwrap();
    let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    let hash = manifest["sums"]["hash"].as_str().map(str::len);
    assert_eq!(
        (hash, &manifest["parts"][0]["key_encoding"]),
        (Some(16), &"base64".into()),
        "{manifest}"
    );
    let verified = sandbox.run(["verify", "--json", "out"]).expect_code(0);
    let told = verified.json();
    let seen =
        (&told["records"], &told["in_order"], &told["matches_manifest"], &told["order_from"]);
    assert_eq!(seen, (&3.into(), &true.into(), &true.into(), &"manifest".into()), "{told}");
    sandbox
        .run(["verify", "out", "-t", ":", "-k2,2n"])
        .expect_code(1)
        .expect_error(&["not in order"]);
    // In order by itself, but not what the job made.
    sandbox.file("out/part-00000.txt", "a:10\nb:9\n");
    sandbox.run(["verify", "out"]).expect_code(1).expect_error(&["is not that of job"]);
}

#[test]
fn long_records_that_do_not_fit_in_memory() {
    let sandbox = Sandbox::new();
    let data = records(3_000_000, Keys::Random, 12);
    let input = sandbox.file("in", &data);
    let config = sandbox.small_tasks(256 << 20, 32 << 20);
    let arguments = [
        arg(&input),
        "--format",
        "fixed:100",
        "-k",
        "0:10",
        "--memory",
        "128MiB",
        "--config",
        arg(&config),
    ];
    let (_, output) = sandbox.sort_here(&sandbox.path("out"), arguments);
    output.assert_is(&oracle::fixed(&data, 100, 0, 10));
}

#[test]
fn long_lines_of_64_mib() {
    let long = 64 << 20;
    let mut lines = words(2_000, 13);
    for letter in [b'q', b'b', b'b'] {
        let end = lines.len() + long - 1;
        lines.resize(end, letter);
        lines.push(b'\n');
        lines.extend(words(2_000, u64::from(letter)));
    }
    // Smaller than the lines, so that some tasks lie wholly within one.
    check_lines_in_tasks(16 << 20, &[("long", &lines)], &[]);
}

/// With two inputs larger than all memory, in each form.
#[test]
fn long_memory_is_kept_in_every_form() {
    let sandbox = Sandbox::new();
    let input = sandbox.path("in");
    sandbox.run(["gen", "-n", "8000000", "--ascii", "-o", arg(&input)]).expect_code(0);
    let forms: [&[&str]; 3] = [
        &["--format", "fixed:100", "-k", "0:10"],
        &["--format", "lines"],
        &["--format", "lines", "-k", "2,2"],
    ];
    for form in forms {
        let mut sums = Vec::new();
        for memory in [128, 256, 512] {
            let peak =
                peak_mib(&sandbox, &format!("{memory}MiB"), &[&[arg(&input)], form].concat());
            assert!(peak <= memory, "{peak} MiB with {memory} MiB, {form:?}");
            let manifest =
                std::fs::read_to_string(sandbox.path("out/_SUCCESS")).expect("a manifest");
            let manifest: serde_json::Value = serde_json::from_str(&manifest).expect("JSON");
            sums.push(manifest["sums"].clone());
            sandbox.run(["verify", "out"]).expect_code(0);
        }
        assert!(sums.windows(2).all(|two| two[0] == two[1]), "{sums:?}");
    }
}
