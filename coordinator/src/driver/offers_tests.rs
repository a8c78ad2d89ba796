use std::sync::Mutex;

use muster_common::clock::SystemClock;
use muster_common::config::{Config, Profile};
use muster_common::plan::{BadInputs, BadRecords, Sizing};
use muster_common::store::Stores;
use muster_kernel::record::Format;
use muster_kernel::spec::SortSpec;

use super::super::fence::tests::leading;
use super::super::listing::list_input;
use super::*;
use crate::job::plan;

fn spec(inputs: &[&str]) -> JobSpec {
    JobSpec {
        job: "j1".parse().expect("job id"),
        inputs: inputs.iter().map(ToString::to_string).collect(),
        output: "memory:///out".to_owned(),
        bucket: None,
        sort: SortSpec::new(Format::Lines { terminator: b'\n' }),
        auto_format: true,
        extension: "txt".to_owned(),
        overwrite: false,
        fsync: false,
        sizing: Sizing::default(),
        replica: None,
        bad_records: BadRecords::Fail,
        bad_inputs: BadInputs::Fail,
        settings: None,
    }
}

fn offer(id: &str) -> Offer {
    Offer {
        worker: id.parse().expect("id"),
        host: "host".to_owned(),
        peer: 2,
        folders: vec!["/data".to_owned(), "/more".to_owned()],
    }
}

fn file(path: &str) -> LocalFile {
    LocalFile { path: path.to_owned(), bytes: 4, version: "v".to_owned(), head: Ok(b"line".to_vec()) }
}

fn page(paths: &[&str], next: Option<&str>) -> Result<ListReply> {
    Ok(ListReply::Listed { files: paths.iter().map(|path| file(path)).collect(), next: next.map(str::to_owned) })
}

/// Two workers; `w1` answers with these pages one after the other, `w2` with a single file.
async fn list_of(inputs: &[&str], pages: Vec<Result<ListReply>>) -> Result<Offered> {
    let pages = Mutex::new(pages.into_iter());
    let ask = |offer: Offer, question: ListInputs| {
        let answer = match offer.worker.as_str() {
            "w1" => pages.lock().expect("lock").next().unwrap_or_else(|| page(&[], None)),
            _ if question.pattern.is_empty() => page(&["/data/z"], None),
            _ => page(&[], None),
        };
        async move { answer }
    };
    list(&spec(inputs), &[offer("w1"), offer("w2")], Epoch(1), (&SystemClock::default(), 60_000), ask).await
}

fn urls(offered: &Offered, input: &str) -> Vec<String> {
    offered.objects[input].iter().map(|object| object.url.clone()).collect()
}

#[tokio::test]
async fn all_pages_of_all_workers_by_id_then_by_path() {
    let pages =
        vec![page(&["/data/a", "/data/b"], Some("/data/b")), page(&[], Some("/data/x")), page(&["/more/a"], None)];
    let offered = list_of(&["memory:///in", "workers:/"], pages).await.expect("listed");
    let expected = ["worker://w1/data/a", "worker://w1/data/b", "worker://w1/more/a", "worker://w2/data/z"];
    assert_eq!(urls(&offered, "workers:/"), expected);
    assert_eq!((offered.objects.len(), offered.heads.len()), (1, 4));
}

#[tokio::test]
async fn what_cannot_be_true_is_not_believed() {
    let check = async |input: &str, pages: Vec<Result<ListReply>>, expected: &str| {
        let error = list_of(&[input], pages).await.expect_err(expected);
        assert!(error.message.contains("worker w1 on host") && error.message.contains(expected), "{expected}: {error}");
        assert_eq!(error.kind, ErrorKind::Corrupt, "{error}");
    };
    for path in ["/etc/passwd", "/data", "/database/x"] {
        check("workers:/", vec![page(&[path], None)], "not below the folders").await;
    }
    for path in ["/data/../etc/passwd", "data/x", "/data//x", "/data/./x", "/data/x/"] {
        check("workers:/", vec![page(&[path], None)], "no absolute and normalised path").await;
    }
    check("workers:/sub", vec![page(&["/data/other"], None)], "was not asked for").await;
    check("workers:/", vec![page(&["/data/_hidden"], None)], "was not asked for").await;
    check("workers:/", vec![page(&["/data/b", "/data/a"], None)], "stands behind").await;
    check("workers:/", vec![page(&["/data/a", "/data/a"], None)], "stands behind").await;
    check("workers:/", vec![page(&["/data/b"], Some("/data/b")), page(&["/data/a"], None)], "stands behind").await;
    check("workers:/", vec![page(&["/data/b"], Some("/data/a"))], "goes back").await;
    check("workers:/", vec![page(&[], Some("/data/a")), page(&[], Some("/data/a"))], "does not go on").await;
    let long = LocalFile { version: "v".repeat(300), ..file("/data/a") };
    check("workers:/", vec![Ok(ListReply::Listed { files: vec![long], next: None })], "a version of 300 bytes").await;
    let long = LocalFile { head: Ok(vec![0; 17]), ..file("/data/a") };
    check("workers:/", vec![Ok(ListReply::Listed { files: vec![long], next: None })], "begins with more than").await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_does_not_answer_is_asked_again_and_then_named() {
    let away = || Err(Error::retry("no answer"));
    let offered = list_of(&["workers:/"], vec![away(), away(), page(&["/data/a"], None)]).await.expect("listed");
    assert_eq!(urls(&offered, "workers:/").len(), 2);
    let error = list_of(&["workers:/"], (0..9).map(|_| away()).collect()).await.expect_err("away");
    assert!(
        error.kind == ErrorKind::Exhausted && error.message.contains("worker w1 on host does not list its input"),
        "{error}"
    );
    let refused = Ok(ListReply::Refused { error: Error::invalid("no folder") });
    let error = list_of(&["workers:/"], vec![refused]).await.expect_err("refused");
    assert!(error.kind == ErrorKind::Invalid && error.message.contains("no folder"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_listing_has_a_bound() {
    let ask = |_: Offer, _: ListInputs| std::future::pending::<Result<ListReply>>();
    let listed = list(&spec(&["workers:/"]), &[offer("w1")], Epoch(1), (&SystemClock::default(), 600_000), ask).await;
    let error = listed.expect_err("bound");
    assert!(error.message.contains("600000 ms (store.list_timeout_ms)"), "{error}");
}

#[tokio::test]
async fn nothing_found_is_said() {
    let error = list_of(&["workers:/none"], Vec::new()).await.expect_err("nothing");
    assert!(error.kind == ErrorKind::NotFound && error.message.contains("w1, w2"), "{error}");
}

#[tokio::test]
async fn offered_files_are_checked_as_others_are() {
    let stores = Stores::new(
        muster_common::buffer::BufferPool::new(0),
        &Config::profile(Profile::Testing).expect("settings").store,
    );
    let (fence, _, _) = leading().await;
    let check = async |files: Vec<LocalFile>, spec: JobSpec| {
        let listed = Ok(ListReply::Listed { files, next: None });
        let offered = list_of(&["workers:/"], vec![listed]).await.expect("listed");
        let places = plan::places(&spec, None, &"d1".parse().expect("id")).expect("places");
        list_input(&stores, &fence, &spec, &places, (&[offer("w1"), offer("w2")], &offered)).await
    };
    let listing = check(vec![file("/data/a")], spec(&["workers:/"])).await.expect("listing");
    assert_eq!(listing.objects.iter().map(|object| object.owner()).collect::<Vec<_>>(), [Some("w1"), Some("w2")]);
    let closed = || LocalFile { head: Err(Error::invalid("Permission denied")), ..file("/data/a") };
    let error = check(vec![closed()], spec(&["workers:/"])).await.expect_err("closed");
    assert!(error.message.contains("worker://w1/data/a cannot be read: Permission denied"), "{error}");
    let skips = JobSpec { bad_inputs: BadInputs::Skip, ..spec(&["workers:/"]) };
    assert_eq!(check(vec![closed()], skips).await.expect("the task finds out").objects.len(), 2);
    let zipped = LocalFile { head: Ok(b"\x1f\x8b\x08\0".to_vec()), ..file("/data/a") };
    let error = check(vec![zipped], spec(&["workers:/"])).await.expect_err("gzip");
    assert!(error.message.contains("gzip-compressed"), "{error}");
    for output in ["/data/out", "/more", "/"] {
        let spec =
            JobSpec { output: output.to_owned(), bucket: Some("memory:///scratch".to_owned()), ..spec(&["workers:/"]) };
        let Ok(places) = plan::places(&spec, None, &"d1".parse().expect("id")) else { continue };
        let listed = list_input(&stores, &fence, &spec, &places, (&[offer("w1")], &Offered::default())).await;
        assert!(listed.expect_err(output).message.contains("which worker w1 offers as input"));
    }
}
