use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;

use muster_kernel::format::Format;
use muster_kernel::spec::SortSpec;
use muster_platform::adapters::memory::MemoryBlobs;
use muster_platform::buffer::BufferPool;
use muster_platform::config::{Config, Profile};
use muster_platform::store::{Blobs, Scheme};
use muster_protocol::plan::{BadInputs, BadRecords, Sizing};

use super::super::fence::tests::{claims, leading};
use super::*;
use crate::job::flow::plan;

async fn stores(keys: &[&str]) -> Stores {
    let stores = Stores::new(
        BufferPool::new(0),
        &Config::profile(Profile::Testing).expect("settings").store,
    );
    let memory = MemoryBlobs::default();
    for key in keys {
        memory.put(key, key.as_bytes().to_vec().into()).await.expect("put");
    }
    stores.insert(Scheme::Memory, Arc::new(memory)).await;
    stores
}

fn spec(inputs: &[&str], output: &str, overwrite: bool) -> JobSpec {
    JobSpec {
        job: "j1".parse().expect("job id"),
        inputs: inputs.iter().map(ToString::to_string).collect(),
        output: output.to_owned(),
        bucket: None,
        sort: SortSpec::new(Format::lines(b'\n')),
        auto_format: false,
        extension: "txt".to_owned(),
        overwrite,
        fsync: false,
        sizing: Sizing::default(),
        replica: None,
        bad_records: BadRecords::Fail,
        bad_inputs: BadInputs::Fail,
        settings: None,
    }
}

async fn list(keys: &[&str], spec: &JobSpec) -> Result<Listing> {
    let places = plan::places(spec, None, &"d1".parse().expect("deployment id")).expect("places");
    let (fence, _, _) = leading().await;
    list_input(&stores(keys).await, &fence, spec, &places, (&[], &Offered::default())).await
}

/// A run here has no coordinator that its user knows of, and nobody who must see the same.
#[tokio::test]
async fn a_run_here_reads_nothing_of_a_pool_where_its_input_is_not_there() {
    for (input, pool) in [
        ("memory:///none", ", as the coordinator sees it"),
        (
            "/none/x",
            ", as the coordinator sees it; in a pool every process must see a path under \
            the same name",
        ),
    ] {
        for (run_here, seen) in [(false, pool), (true, "")] {
            let spec = spec(&[input], "memory:///out", false);
            let places = plan::places(&spec, None, &"d1".parse().expect("id")).expect("places");
            let (fence, _, clock) = leading().await;
            let fence = fence.claiming(claims(&clock, run_here));
            let (stores, offered) = (stores(&[]).await, Offered::default());
            let found = list_input(&stores, &fence, &spec, &places, (&[], &offered)).await;
            let said = found.expect_err("it is not there").message;
            let end = format!("is not there: neither such an object nor anything below it{seen}");
            assert!(said.ends_with(&end), "{said}");
        }
    }
}

async fn check(keys: &[&str], inputs: &[&str], expected: Result<&[&str], &str>) {
    match (list(keys, &spec(inputs, "memory:///out", false)).await, expected) {
        (Ok(listing), Ok(expected)) => {
            let found: Vec<&str> = listing
                .objects
                .iter()
                .map(|object| object.url.trim_start_matches("memory:///"))
                .collect();
            assert_eq!(found, expected, "{inputs:?}");
        }
        (Err(error), Err(expected)) => {
            assert!(error.message.contains(expected), "{inputs:?}: {error}");
        }
        (found, expected) => panic!("{inputs:?}: {found:?}, not {expected:?}"),
    }
}

const KEYS: [&str; 7] =
    ["in/a.log", "in/b.txt", "in/sub/c.log", "in/_hidden", "in/.dot/x", "other/a.log", "only/_x"];

#[tokio::test]
async fn inputs_are_objects_folders_and_globs() {
    check(&KEYS, &["memory:///in"], Ok(&["in/a.log", "in/b.txt", "in/sub/c.log"])).await;
    check(&KEYS, &["memory:///in/"], Ok(&["in/a.log", "in/b.txt", "in/sub/c.log"])).await;
    check(&KEYS, &["memory:///in/b.txt", "memory:///in/a.log"], Ok(&["in/b.txt", "in/a.log"]))
        .await;
    check(&KEYS, &["memory:///in/*.log"], Ok(&["in/a.log"])).await;
    check(&KEYS, &["memory:///*/a.log"], Ok(&["in/a.log", "other/a.log"])).await;
    check(&KEYS, &["memory:///in/**/*.log"], Ok(&["in/a.log", "in/sub/c.log"])).await;
    check(&KEYS, &["memory:///in/_hidden"], Ok(&["in/_hidden"])).await;
    check(&KEYS, &["memory:///in/a.log", "memory:///in/a.log"], Ok(&["in/a.log", "in/a.log"]))
        .await;
}

#[tokio::test]
async fn what_is_not_there_is_named() {
    check(&KEYS, &["memory:///nowhere"], Err("memory:///nowhere is not there")).await;
    check(&KEYS, &["memory:///in/*.csv"], Err("no object matches")).await;
    check(&KEYS, &["memory:///only"], Err("begin with _ or .")).await;
    check(&KEYS, &["memory:///in/[a"], Err("not a valid pattern")).await;
    check(&KEYS, &["memory:///in/a.log/"], Err("is not there")).await;
}

#[tokio::test]
async fn output_must_be_apart_and_empty() {
    let check = async |keys: &[&str], spec: JobSpec, expected: &str| match list(keys, &spec).await {
        Ok(listing) => assert_eq!(
            (listing.replaced.len().to_string().as_str(), expected),
            (expected, expected)
        ),
        Err(error) => {
            assert!(
                !expected.is_empty() && error.message.contains(expected),
                "{expected}: {error}"
            );
        }
    };
    check(&KEYS, spec(&["memory:///in"], "memory:///in/out", false), "overlaps").await;
    check(&KEYS, spec(&["memory:///in/sub"], "memory:///in", false), "overlaps").await;
    check(&KEYS, spec(&["memory:///in/a.log"], "memory:///in", false), "overlaps").await;
    check(&KEYS, spec(&["memory:///in/*.log"], "memory:///in/out", false), "0").await;
    check(&KEYS, spec(&["memory:///in"], "memory:///other/a.log", false), "is an object").await;
    check(&KEYS, spec(&["memory:///in"], "memory:///other", false), "is not empty").await;
    check(
        &KEYS,
        spec(&["memory:///in"], "memory:///other", true),
        "must not replace: a.log; there is no _SUCCESS",
    )
    .await;
    check(
        &["in/a", "out/_muster/d0/j0/x", "out/.part-00000.txt.0011223344556677.upload"],
        spec(&["memory:///in"], "memory:///out", false),
        "0",
    )
    .await;
}

#[tokio::test]
async fn what_cannot_be_read_is_named() {
    let url: BlobUrl = "memory:///in/gone".parse().expect("url");
    let gone = PinnedObject { url: url.to_string(), bytes: 5, version: "v".to_owned() };
    let (stores, spec) = (stores(&[]).await, spec(&[], "memory:///out", false));
    let error =
        formats::look(&stores, &spec, &[gone], &Offered::default()).await.expect_err("unreadable");
    assert!(error.message.contains("memory:///in/gone cannot be read"), "{error}");
}

#[tokio::test]
async fn more_objects_than_memory_has_room_for_are_refused_with_the_number() {
    let mut limits = Config::profile(Profile::Testing).expect("settings").store;
    limits.objects_max = 2;
    let stores = Stores::new(BufferPool::new(0), &limits);
    let memory = MemoryBlobs::default();
    for key in ["in/a", "in/b", "in/c"] {
        memory.put(key, b"x".to_vec().into()).await.expect("put");
    }
    stores.insert(Scheme::Memory, Arc::new(memory)).await;
    let check = async |inputs: &[&str], sound: bool| {
        let spec = spec(inputs, "memory:///out", false);
        let places =
            plan::places(&spec, None, &"d1".parse().expect("deployment id")).expect("places");
        let (fence, _, _) = leading().await;
        match list_input(&stores, &fence, &spec, &places, (&[], &Offered::default())).await {
            Ok(listing) => assert!(sound && listing.objects.len() == 2, "{inputs:?}"),
            Err(error) => {
                let named = ["more than 2 objects", "--memory", "store.objects_max"]
                    .map(|part| error.message.contains(part));
                assert!(
                    !sound && error.kind == ErrorKind::Invalid && named == [true; 3],
                    "{inputs:?}: {error}"
                );
            }
        }
    };
    check(&["memory:///in/a", "memory:///in/b"], true).await;
    check(&["memory:///in/a", "memory:///in/b", "memory:///in/c"], false).await;
    check(&["memory:///in"], false).await;
    check(&["memory:///in/*"], false).await;
    // Long names take more than short ones: a run here has so much memory for all of them.
    let long = format!("long/{}", "n".repeat(800));
    let memory = MemoryBlobs::default();
    memory.put(&long, b"x".to_vec().into()).await.expect("put");
    stores.insert(Scheme::Memory, Arc::new(memory)).await;
    for (room, sound) in [(3_000, true), (2_500, false)] {
        let stores = stores.clone().with_lists_bytes_max(room);
        let spec = spec(&["memory:///long"], "memory:///out", false);
        let places =
            plan::places(&spec, None, &"d1".parse().expect("deployment id")).expect("places");
        let (fence, _, _) = leading().await;
        let listed = list_input(&stores, &fence, &spec, &places, (&[], &Offered::default())).await;
        let refused = listed
            .err()
            .map(|error| (error.kind, error.message.contains("more than the 2500 that --memory")));
        assert_eq!(refused, (!sound).then_some((ErrorKind::Invalid, true)), "{room}");
    }
}

/// Lists files below a folder.
async fn list_files(
    base: &Path,
    inputs: &[&str],
    bad_inputs: BadInputs,
    auto_format: bool,
) -> Result<Listing> {
    let output = format!("{}/out", base.display());
    let inputs: Vec<String> =
        inputs.iter().map(|input| format!("{}/{input}", base.display())).collect();
    let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
    let spec = JobSpec { bad_inputs, auto_format, ..spec(&inputs, &output, false) };
    list(&[], &spec).await
}

fn below(base: &Path, url: &str) -> String {
    url.strip_prefix(&format!("file://{}/", base.display())).expect("below the base").to_owned()
}

async fn check_files(base: &Path, inputs: &[&str], expected: Result<&[&str], &str>) {
    match (list_files(base, inputs, BadInputs::Fail, false).await, expected) {
        (Ok(listing), Ok(expected)) => {
            let found: Vec<String> =
                listing.objects.iter().map(|object| below(base, &object.url)).collect();
            assert_eq!(found, expected, "{inputs:?}");
        }
        (Err(error), Err(expected)) => {
            assert!(error.message.contains(expected), "{inputs:?}: {error}");
        }
        (found, expected) => panic!("{inputs:?}: {found:?}, not {expected:?}"),
    }
}

#[tokio::test]
async fn what_exists_is_a_path_and_no_pattern() {
    let dir = tempfile::tempdir().expect("dir");
    let base = dir.path().canonicalize().expect("base");
    for path in [
        "a[1].txt",
        "a1.txt",
        "x*y",
        "xzy",
        "d[1]/b.txt",
        "d[1]/c.txt",
        "d1/b.txt",
        "{e,f}/x",
        "e/x",
        "p{q",
        r"r\s",
    ] {
        let path = base.join(path);
        std::fs::create_dir_all(path.parent().expect("folder")).expect("folder");
        std::fs::write(path, "x").expect("file");
    }
    check_files(&base, &["a[1].txt"], Ok(&["a[1].txt"])).await;
    check_files(&base, &["a[0-9].txt"], Ok(&["a1.txt"])).await;
    check_files(&base, &["x*y"], Ok(&["x*y"])).await;
    check_files(&base, &["x?y"], Ok(&["x*y", "xzy"])).await;
    check_files(&base, &[r"a\[1\].txt"], Ok(&["a[1].txt"])).await;
    check_files(&base, &["p{q"], Ok(&["p{q"])).await;
    check_files(&base, &["p{r"], Err("not a valid pattern")).await;
    check_files(&base, &[r"r\s"], Ok(&[r"r\s"])).await;
    // A folder is one, too, alone and before a pattern.
    check_files(&base, &["d[1]"], Ok(&["d[1]/b.txt", "d[1]/c.txt"])).await;
    check_files(&base, &["d[1]/*.txt"], Ok(&["d[1]/b.txt", "d[1]/c.txt"])).await;
    check_files(&base, &["{e,f}/x"], Ok(&["{e,f}/x"])).await;
    check_files(&base, &["{e,f}/*"], Ok(&["{e,f}/x"])).await;
    check_files(&base, &["[de]*/[bx]*"], Ok(&["d1/b.txt", "d[1]/b.txt", "e/x"])).await;
    // What a client says is its working folder.
    check_files(&base, &["d[1]/./[b]*"], Ok(&["d[1]/b.txt"])).await;
    check_files(&base, &["d[1]/./none.txt"], Err("is not there")).await;
    check_files(&base, &["d[1]/none.txt"], Err("is not there")).await;
    check_files(&base, &["a1.txt/"], Err("is not there")).await;
    // So are keys.
    let keys = ["in/a[1].log", "in/a1.log", "in/b[1]/x", "in/b1/x"];
    check(&keys, &["memory:///in/a[1].log"], Ok(&["in/a[1].log"])).await;
    check(&keys, &["memory:///in/b[1]"], Ok(&["in/b[1]/x"])).await;
    check(&keys, &["memory:///in/b[1]/*"], Ok(&["in/b[1]/x"])).await;
    check(&keys, &["memory:///in/[ab]1*"], Ok(&["in/a1.log"])).await;
}

#[tokio::test]
async fn what_cannot_be_input_fails_the_job_or_is_left_out_by_name() {
    let dir = tempfile::tempdir().expect("dir");
    let base = dir.path().canonicalize().expect("base");
    std::fs::create_dir(base.join("in")).expect("folder");
    for name in ["a", "b"] {
        std::fs::write(base.join("in").join(name), "x").expect("file");
    }
    symlink("nowhere", base.join("in/dangling")).expect("link");
    symlink(".", base.join("in/loop")).expect("link");
    // A pattern means files, so it does not care for folders.
    for (inputs, named, odd) in [
        ("in", "2 entries of the input cannot be read", &["in/dangling", "in/loop"][..]),
        ("in/*", "1 entry of the input cannot be read", &["in/dangling"]),
    ] {
        let error =
            list_files(&base, &[inputs], BadInputs::Fail, false).await.expect_err("refused");
        let named = [named, "in/dangling (a link to what is not there", "--bad-inputs skip"];
        assert!(named.iter().all(|part| error.message.contains(part)), "{error}");
        assert_eq!(
            error.message.contains("in/loop (a link to a folder that holds it)"),
            odd.len() == 2,
            "{error}"
        );
        let listing = list_files(&base, &[inputs], BadInputs::Skip, false).await.expect("skipped");
        let urls: Vec<String> =
            listing.objects.iter().map(|object| below(&base, &object.url)).collect();
        let left_out: Vec<String> =
            listing.left_out.iter().map(|left_out| below(&base, &left_out.url)).collect();
        assert_eq!(urls, ["in/a", "in/b"]);
        assert_eq!(left_out, odd);
    }
    check_files(&base, &["in/[ab]"], Ok(&["in/a", "in/b"])).await;
    // Named by itself, one that stands there can be left out; what is not there cannot.
    std::os::unix::net::UnixListener::bind(base.join("in/sock")).expect("socket");
    let listing =
        list_files(&base, &["in/a", "in/sock"], BadInputs::Skip, false).await.expect("skipped");
    assert_eq!((listing.objects.len(), listing.left_out.len()), (1, 1));
    assert!(list_files(&base, &["in/a", "in/none"], BadInputs::Skip, false).await.is_err());
}

#[tokio::test]
async fn content_that_is_no_lines_is_refused_or_warned_of() {
    let dir = tempfile::tempdir().expect("dir");
    let base = dir.path().canonicalize().expect("base");
    let gzip = b"\x1f\x8b\x08\0\0\0\0\0\0\x03rest";
    for (name, bytes) in [
        ("plain.txt", &b"b\na\n"[..]),
        ("named.gz", b"lines all the same\n"),
        ("packed", gzip),
        ("x.csv", b"a,b\n"),
    ] {
        std::fs::write(base.join(name), bytes).expect("file");
    }
    let warnings = async |inputs: &[&str], auto: bool| {
        list_files(&base, inputs, BadInputs::Fail, auto).await.map(|listing| listing.warnings)
    };
    assert_eq!(warnings(&["plain.txt", "named.gz"], true).await, Ok(Vec::new()));
    let error = warnings(&["plain.txt", "packed"], true).await.expect_err("refused");
    assert!(
        error
            .message
            .contains("packed is gzip-compressed: decompress it first (gzip -dc FILE > PLAIN)"),
        "{error}"
    );
    assert!(!error.message.contains("--format lines"), "{error}");
    let warned = warnings(&["plain.txt", "packed"], false).await.expect("sorted as they are");
    assert!(
        warned.len() == 1
            && warned[0].contains("packed is gzip-compressed")
            && warned[0].contains("cannot be decompressed"),
        "{warned:?}"
    );
    let error = warnings(&["x.csv"], true).await.expect_err("refused");
    assert!(error.message.contains("CSV") && error.message.contains("--format lines"), "{error}");
    // A separator is for lines, as sort(1) has it.
    let spec = JobSpec {
        auto_format: true,
        ..spec(&[&format!("{}/x.csv", base.display())], "/none/out", false)
    };
    let spec = JobSpec { sort: SortSpec { separator: Some(b','), ..spec.sort.clone() }, ..spec };
    assert_eq!(list(&[], &spec).await.map(|listing| listing.objects.len()), Ok(1));
}

/// A job over files, with links, as a client would send it.
async fn list_paths(
    inputs: &[&Path],
    output: &Path,
    change: impl FnOnce(&mut JobSpec),
) -> Result<Listing> {
    let stores = Stores::new(
        BufferPool::new(0),
        &Config::profile(Profile::Testing).expect("settings").store,
    );
    let text = |path: &Path| path.to_str().expect("utf-8").to_owned();
    let mut spec = spec(&[], &text(output), true);
    spec.inputs = inputs.iter().map(|path| text(path)).collect();
    change(&mut spec);
    let places = plan::places(&spec, None, &"d1".parse().expect("deployment id"))?;
    let (fence, _, _) = leading().await;
    list_input(&stores, &fence, &spec, &places, (&[], &Offered::default())).await
}

#[tokio::test]
async fn one_place_under_two_names_is_one_place() {
    use std::os::unix::fs::symlink;
    let dir = tempfile::tempdir().expect("dir");
    let at = |name: &str| dir.path().join(name);
    std::fs::create_dir_all(at("d/sub")).expect("folders");
    std::fs::create_dir_all(at("free")).expect("folder");
    std::fs::create_dir_all(at("files")).expect("folder");
    std::fs::write(at("d/a.txt"), "b\na\n").expect("file");
    std::fs::write(at("d/sub/b.txt"), "b\na\n").expect("file");
    symlink(at("d"), at("link")).expect("link");
    symlink(at("d/a.txt"), at("files/a.txt")).expect("link");
    let refused = async |input: &str, output: &str, words: &str| {
        let error = list_paths(&[&at(input)], &at(output), |_| {}).await.expect_err(output);
        assert!(
            error.kind == ErrorKind::Invalid && error.message.contains(words),
            "{input} {output}: {error}"
        );
    };
    refused("d", "link", "overlaps INPUT").await;
    refused("d", "link/sorted", "overlaps INPUT").await;
    refused("link", "d/sorted", "lead to").await;
    refused("d/sub", "link", "overlaps INPUT").await;
    refused("d/a.txt", "link", "overlaps INPUT").await;
    // A link to a file that lies in OUTPUT.
    refused("files", "d", "overlaps INPUT").await;
    refused("files/a.txt", "link", "overlaps INPUT").await;
    assert_eq!(
        list_paths(&[&at("link")], &at("free/out"), |_| {}).await.expect("apart").objects.len(),
        2
    );
    assert_eq!(
        list_paths(&[&at("files")], &at("d/sorted"), |_| {}).await.expect("apart").objects.len(),
        1
    );
    let text = |name: &str| at(name).to_str().expect("utf-8").to_owned();
    let replica =
        list_paths(&[&at("d")], &at("free/out"), |spec| spec.replica = Some(text("link/again")))
            .await;
    assert!(
        replica.expect_err("replica").message.contains("--replica"),
        "the replica lies in the input"
    );
    symlink(at("free"), at("free2")).expect("link");
    let replica =
        list_paths(&[&at("d")], &at("free/out"), |spec| spec.replica = Some(text("free2/out")))
            .await;
    assert!(
        replica.expect_err("replica").message.contains("where scratch lies already"),
        "the replica is scratch"
    );
}

#[tokio::test]
async fn a_link_that_comes_while_a_job_runs_is_seen_before_output_changes() {
    let dir = tempfile::tempdir().expect("dir");
    let at = |name: &str| dir.path().join(name);
    std::fs::create_dir_all(at("d")).expect("folder");
    std::fs::write(at("d/a.txt"), "b\na\n").expect("file");
    let text = |name: &str| at(name).to_str().expect("utf-8").to_owned();
    let mut spec = spec(&[], &text("out"), true);
    spec.inputs = vec![text("d")];
    let listing = list_paths(&[&at("d")], &at("out"), |_| {}).await.expect("apart");
    let places = plan::places(&spec, None, &"d1".parse().expect("deployment id")).expect("places");
    let plan =
        plan::make(&spec, &places, listing, &Config::profile(Profile::Testing).expect("settings"));
    let plan = plan.expect("a plan");
    Ground::check_again(&plan).await.expect("nothing has changed");
    std::os::unix::fs::symlink(at("d"), at("out")).expect("link");
    let error = Ground::check_again(&plan).await.expect_err("OUTPUT leads to the input now");
    assert!(
        error.kind == ErrorKind::Invalid && error.message.contains("overlaps INPUT"),
        "{error}"
    );
}
