//! A run here that is killed (-9) while its result appears in the place of an older one. What then
//! stands in OUTPUT is a mixture, and nothing says that it is whole; the same command again makes
//! it whole, whether it finds what the killed one knew (`--data-dir`) or begins anew.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use muster_tests::harness::data::{Keys, records};
use muster_tests::harness::sandbox::files_below;
use muster_tests::harness::{Bucket, Gate, Output, Process, S3Server, Sandbox, arg, oracle, wait};
use rustix::process::Signal;
use serde_json::{Value, json};

const BUCKET: &str = "data";
/// Of both results; the older one has some more parts, which are to go.
const RECORDS: usize = 24_000;
const MORE_PARTS: usize = 5;
/// Parts on a file system, where each takes its place in less than a millisecond, and how often a
/// run may be quicker there than its killer.
const MANY_PARTS: usize = 300;
const TRIES: usize = 3;
const FEW_PARTS: usize = 24;
/// Parts that take their place in a bucket before the run is held.
const COMPLETED: usize = 3;

fn completes_a_part(request: &str) -> bool {
    request.starts_with("POST ") && request.contains("/out/part-") && request.contains("uploadId=")
}

fn sort(sandbox: &Sandbox, input: &str, output: &str, parts: usize, data: Option<&str>) -> Command {
    let config = sandbox.small_tasks(RECORDS * 100 / 8, RECORDS * 100 / FEW_PARTS);
    let mut command = sandbox.muster();
    command.args(["sort", "--json", input, "-o", output, "--overwrite", "--local=2"]);
    command.args(["--format", "fixed:100", "-k", "0:10", "--partitions", &parts.to_string()]);
    command.arg("--config").arg(config);
    if let Some(data) = data {
        command.arg("--data-dir").arg(sandbox.path(data));
    }
    command
}

/// Whether parts of both results stand in OUTPUT. No `_SUCCESS` may stand beside them then.
#[track_caller]
fn is_a_mixture(before: &Output, left: &Output) -> bool {
    let old: BTreeMap<&str, &[u8]> =
        before.parts.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    let stays = |(name, bytes): &&(String, Vec<u8>)| old.get(name.as_str()) == Some(&&bytes[..]);
    let stayed = left.parts.iter().filter(stays).count();
    let mixed = stayed > MORE_PARTS && stayed < left.parts.len();
    assert!(!mixed || left.success.is_none(), "beside a mixture stands {:?}", left.success);
    mixed
}

/// Runs the command that makes OUTPUT whole.
#[track_caller]
fn make_whole(sandbox: &Sandbox, command: Command) {
    let done = sandbox.run_command(command, wait::RUN_BOUND).expect_code(0);
    assert_eq!(done.json()["state"], "succeeded", "{}", done.stdout);
    sandbox.assert_no_temporaries();
}

/// An older result of small parts, as far as `--overwrite` asks for it.
fn older_result(sandbox: &Sandbox) -> Output {
    let names: Vec<String> =
        (0..MANY_PARTS + MORE_PARTS).map(|part| format!("part-{part:05}.bin")).collect();
    for name in &names {
        sandbox.file(format!("out/{name}"), format!("older {name}"));
    }
    let parts: Vec<Value> = names.iter().map(|name| json!({ "name": name })).collect();
    sandbox.file("out/_SUCCESS", json!({ "job": "older", "parts": parts }).to_string());
    Output::of_folder(sandbox.path("out"))
}

/// Kills a run that replaces files, and makes it again.
fn on_files(resumed: bool) {
    let sandbox = Sandbox::new();
    let new = records(RECORDS, Keys::Random, 2);
    let (input, output) = (sandbox.file("in", &new), sandbox.path("out"));
    let again = |number: usize| {
        let data = format!("data-{number}");
        let data = resumed.then_some(data.as_str());
        sort(&sandbox, arg(&input), arg(&output), MANY_PARTS, data)
    };
    let killed = (0..TRIES).find(|number| {
        let before = older_result(&sandbox);
        let mut run = Process::spawn("killed", again(*number), &sandbox.logs());
        wait::until("the first part to take its place", wait::RUN_BOUND, || {
            // Once its `_SUCCESS` is gone the older result is being replaced.
            let begun = !output.join("_SUCCESS").exists();
            let came = || {
                let first = fs::metadata(output.join(&before.parts[0].0)).map(|meta| meta.len());
                first.is_ok_and(|bytes| bytes != before.parts[0].1.len() as u64)
            };
            (begun && came() || run.poll().is_some()).then(|| run.signal(Signal::STOP))
        });
        run.kill();
        is_a_mixture(&before, &Output::of_folder(&output))
    });
    make_whole(&sandbox, again(killed.expect("it was quicker than its killer each time")));
    assert_whole_folder(&output, &new);
}

#[track_caller]
fn assert_whole_folder(output: &Path, data: &[u8]) {
    Output::of_folder(output).assert_is(&oracle::fixed(data, 100, 0, 10));
    let muster = files_below(&output.join("_muster"));
    assert!(!output.join("_muster").exists(), "left in OUTPUT: {muster:?}");
}

/// The same in a bucket, where the run is held before its fourth part.
fn in_a_bucket(data: Option<&str>) {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    let (bucket, gate) = (s3.bucket(BUCKET), Gate::before(s3.port()));
    let new = records(RECORDS, Keys::Random, 2);
    bucket.put("old", &records(RECORDS, Keys::Random, 1));
    bucket.put("in", &new);
    let to = bucket.url("out");
    let mut older = sort(&sandbox, &bucket.url("old"), &to, FEW_PARTS + MORE_PARTS, None);
    older.envs(s3.environment());
    sandbox.run_command(older, wait::RUN_BOUND).expect_code(0);
    let before = Output::of_bucket(&bucket, "out");

    let again = || {
        let mut command = sort(&sandbox, &bucket.url("in"), &to, FEW_PARTS, data);
        command.envs(s3.environment());
        command
    };
    gate.hold_after(COMPLETED, completes_a_part);
    let mut command = again();
    command.env("AWS_ENDPOINT_URL", gate.endpoint());
    let mut run = Process::spawn("killed", command, &sandbox.logs());
    gate.wait_for_request("one more part's upload to be completed", wait::RUN_BOUND);
    wait::until("the parts before it", wait::RUN_BOUND, || {
        (bucket.uploads().len() == FEW_PARTS - COMPLETED).then_some(())
    });
    run.kill();
    assert!(is_a_mixture(&before, &Output::of_bucket(&bucket, "out")), "it was held in time");
    // Not by the gate: what it holds is never carried out.
    make_whole(&sandbox, again());
    assert_whole_in_bucket(&bucket, &new);
}

#[track_caller]
fn assert_whole_in_bucket(bucket: &Bucket, data: &[u8]) {
    Output::of_bucket(bucket, "out").assert_is(&oracle::fixed(data, 100, 0, 10));
    assert_eq!(bucket.list("out/_muster"), Vec::<String>::new(), "left in OUTPUT");
    assert_eq!(bucket.uploads(), Vec::<String>::new(), "left as open uploads");
}

#[test]
fn a_run_that_is_killed_while_it_replaces_files_is_gone_on_with() {
    on_files(true);
}

#[test]
fn a_run_that_is_killed_while_it_replaces_files_is_made_anew() {
    on_files(false);
}

#[test]
fn a_run_that_is_killed_while_it_replaces_objects_is_gone_on_with() {
    in_a_bucket(Some("data"));
}

#[test]
fn a_run_that_is_killed_while_it_replaces_objects_is_made_anew() {
    in_a_bucket(None);
}
