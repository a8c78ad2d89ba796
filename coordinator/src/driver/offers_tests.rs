use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Mutex};

use muster_kernel::format::Format;
use muster_kernel::spec::SortSpec;
use muster_platform::adapters::own_files::{OwnFiles, Page};
use muster_platform::buffer::BufferPool;
use muster_platform::clock::SystemClock;
use muster_platform::config::{Config, Profile};
use muster_platform::stores::Stores;
use muster_protocol::plan::{BadInputs, BadRecords, Sizing};

use super::super::fence::tests::leading;
use super::super::listing::list_input;
use super::*;
use crate::job::flow::plan;

fn spec(inputs: &[&str]) -> JobSpec {
    JobSpec {
        job: "j1".parse().expect("job id"),
        inputs: inputs.iter().map(ToString::to_string).collect(),
        output: "memory:///out".to_owned(),
        bucket: None,
        sort: SortSpec::new(Format::lines(b'\n')),
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
        peer: muster_protocol::wire::WIRE_VERSION,
        folders: vec!["/data".to_owned(), "/more".to_owned()],
    }
}

fn file(path: &str) -> LocalFile {
    LocalFile {
        path: path.to_owned(),
        bytes: 4,
        version: "v".to_owned(),
        head: Ok(b"line".to_vec()),
    }
}

fn page(paths: &[&str], next: Option<&str>) -> Result<ListReply> {
    page_of_odd(paths, Vec::new(), next)
}

fn odd(path: &str, why: &str) -> LocalOmitted {
    LocalOmitted { path: path.to_owned(), why: why.to_owned(), cut: false }
}

fn page_of_odd(
    files: &[&str],
    omitted: Vec<LocalOmitted>,
    next: Option<&str>,
) -> Result<ListReply> {
    let files = files.iter().map(|path| file(path)).collect();
    Ok(ListReply::Listed { files, omitted, next: next.map(str::to_owned) })
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
    list(
        &spec(inputs),
        &[offer("w1"), offer("w2")],
        Epoch(1),
        (&SystemClock::default(), 60_000),
        ask,
    )
    .await
}

fn urls(offered: &Offered, input: &str) -> Vec<String> {
    offered.inputs[input].objects.iter().map(|object| object.url.clone()).collect()
}

#[tokio::test]
async fn all_pages_of_all_workers_by_id_then_by_path() {
    let pages = vec![
        page(&["/data/a", "/data/b"], Some("/data/b")),
        page(&[], Some("/data/x")),
        page(&["/more/a"], None),
    ];
    let offered = list_of(&["memory:///in", "workers:/"], pages).await.expect("listed");
    let expected =
        ["worker://w1/data/a", "worker://w1/data/b", "worker://w1/more/a", "worker://w2/data/z"];
    assert_eq!(urls(&offered, "workers:/"), expected);
    assert_eq!((offered.inputs.len(), offered.looks.len()), (1, 0));
}

#[tokio::test]
async fn what_cannot_be_true_is_not_believed() {
    let check = async |input: &str, pages: Vec<Result<ListReply>>, expected: &str| {
        let error = list_of(&[input], pages).await.expect_err(expected);
        assert!(
            error.message.contains("worker w1 on host") && error.message.contains(expected),
            "{expected}: {error}"
        );
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
    check(
        "workers:/",
        vec![page(&["/data/b"], Some("/data/b")), page(&["/data/a"], None)],
        "stands behind",
    )
    .await;
    check("workers:/", vec![page(&["/data/b"], Some("/data/a"))], "goes back").await;
    check(
        "workers:/",
        vec![page(&[], Some("/data/a")), page(&[], Some("/data/a"))],
        "does not go on",
    )
    .await;
    let long = LocalFile { version: "v".repeat(300), ..file("/data/a") };
    check(
        "workers:/",
        vec![Ok(ListReply::Listed { files: vec![long], omitted: Vec::new(), next: None })],
        "a version of 300 bytes",
    )
    .await;
    let long = LocalFile { head: Ok(vec![0; 513]), ..file("/data/a") };
    check(
        "workers:/",
        vec![Ok(ListReply::Listed { files: vec![long], omitted: Vec::new(), next: None })],
        "begins with more than",
    )
    .await;
}

#[tokio::test]
async fn what_is_said_of_odd_entries_is_bounded_and_checked() {
    let check = async |input: &str, omitted: Vec<LocalOmitted>, expected: &str| {
        let error =
            list_of(&[input], vec![page_of_odd(&[], omitted, None)]).await.expect_err(expected);
        assert!(
            error.message.contains("worker w1 on host") && error.message.contains(expected),
            "{expected}: {error}"
        );
        assert_eq!(error.kind, ErrorKind::Corrupt, "{error}");
    };
    for path in ["/etc/passwd", "/data", "/database/x"] {
        check("workers:/", vec![odd(path, "a pipe")], "not below the folders").await;
    }
    let long = format!("/data/{}", "x".repeat(TEXT_BYTES_MAX));
    for path in ["/data/../etc/passwd", "data/x", "/data//x", "/data/x/", "/data/x\0", &long] {
        check("workers:/", vec![odd(path, "a pipe")], "no absolute and normalised path").await;
    }
    check("workers:/sub", vec![odd("/data/other", "a pipe")], "was not asked for").await;
    check("workers:/sub/*.log", vec![odd("/data/sub/x", "a pipe")], "was not asked for").await;
    check("workers:/", vec![odd("/data/.hidden", "a pipe")], "was not asked for").await;
    let cut = |path: &str| vec![LocalOmitted { cut: true, ..odd(path, "a pipe") }];
    check("workers:/", cut("/data/x"), "not so long that it had to be cut").await;
    check(
        "workers:/",
        cut(&format!("/etc/{}", "x".repeat(TEXT_BYTES_MAX - 5))),
        "not below the folders",
    )
    .await;
    for why in ["", "a\x1b[31m", "a\nb", &"x".repeat(WHY_BYTES_MAX + 1)] {
        check("workers:/", vec![odd("/data/a", why)], "a reason of").await;
    }
    let far = "/data/".to_owned() + &"x".repeat(NEXT_BYTES_MAX);
    let error = list_of(&["workers:/"], vec![page_of_odd(&[], Vec::new(), Some(&far))])
        .await
        .expect_err("far");
    assert!(error.message.contains("goes on behind a path of 65542 bytes"), "{error}");
    let said = Error { kind: ErrorKind::Invalid, message: "x".repeat(100_000) };
    let files = vec![LocalFile { head: Err(said), ..file("/data/a") }];
    let offered = list_of(
        &["workers:/"],
        vec![Ok(ListReply::Listed { files, omitted: Vec::new(), next: None })],
    )
    .await;
    let look = &offered.expect("listed").looks["worker://w1/data/a"];
    assert!(
        look.as_ref()
            .is_err_and(|error| error.message.len() == muster_protocol::error::MESSAGE_BYTES_MAX)
    );
}

/// However they are spread over pages, and whatever is repeated.
#[tokio::test]
async fn more_odd_entries_than_a_job_leaves_out_are_refused_as_they_come() {
    let pages = |count: usize| {
        let places = (0..count).map(|at| format!("/data/{at:05}")).collect::<Vec<_>>();
        let pages: Vec<_> = places
            .chunks(3_000)
            .map(|chunk| {
                let last = chunk.last().filter(|last| **last != places[count - 1]);
                page_of_odd(
                    &[],
                    chunk.iter().map(|place| odd(place, "a pipe")).collect(),
                    last.map(String::as_str),
                )
            })
            .collect();
        pages
    };
    let offered =
        list_of(&["workers:/"], pages(OMITTED_MAX)).await.expect("as many as a job leaves out");
    assert_eq!(offered.inputs["workers:/"].left_out.len(), OMITTED_MAX);
    let error = list_of(&["workers:/"], pages(OMITTED_MAX + 1)).await.expect_err("one more");
    let words =
        ["more than 10000 entries that workers offer", "at last worker://w1/data/10000: a pipe"];
    assert!(
        error.kind == ErrorKind::Invalid && words.iter().all(|part| error.message.contains(part)),
        "{error}"
    );
    let again = (0..).map(|at| {
        page_of_odd(&[], vec![odd("/data/a", "a pipe"); 9], Some(&format!("/data/{at:09}")))
    });
    let error =
        list_of(&["workers:/"], again.take(2_000).collect()).await.expect_err("for ever the same");
    assert!(error.message.contains("more than 10000 entries"), "{error}");
}

#[tokio::test]
async fn what_is_kept_of_all_workers_together_has_one_bound() {
    let many = |offer: &Offer| {
        let id = offer.worker.as_str();
        (0..2_100).map(|at| odd(&format!("/data/{id}-{at:05}"), "a pipe")).collect::<Vec<_>>()
    };
    let ask = |offer: Offer, _: ListInputs| {
        let answer = page_of_odd(&[], many(&offer), None);
        async move { answer }
    };
    let offers: Vec<Offer> = (1..=9).map(|at| offer(&format!("w{at}"))).collect();
    let of = async |offers: &[Offer]| {
        list(&spec(&["workers:/"]), offers, Epoch(1), (&SystemClock::default(), 60_000), ask).await
    };
    assert_eq!(of(&offers[..4]).await.expect("few").inputs["workers:/"].left_out.len(), 8_400);
    let error = of(&offers).await.expect_err("many");
    assert!(
        error.message.contains("more than 10000 entries that workers offer cannot be input"),
        "{error}"
    );
}

#[tokio::test]
async fn words_for_very_many_unreadable_files_are_short() {
    let ask = |offer: Offer, _: ListInputs| {
        let closed = |at: usize| LocalFile {
            head: Err(Error {
                kind: ErrorKind::Invalid,
                message: format!("no right to it{}", "x".repeat(9_000)),
            }),
            ..file(&format!("/data/{}-{at:05}", offer.worker))
        };
        let files = (0..900).map(closed).collect();
        async move { Ok(ListReply::Listed { files, omitted: Vec::new(), next: None }) }
    };
    let offers = [offer("w1"), offer("w2")];
    let listed =
        list(&spec(&["workers:/"]), &offers, Epoch(1), (&SystemClock::default(), 60_000), ask)
            .await;
    let looks = listed.expect("listed").looks;
    let said: Vec<&Error> = looks.values().filter_map(|look| look.as_ref().err()).collect();
    assert!(
        said.len() == 1_800 && said.iter().all(|error| error.message.starts_with("no right to it"))
    );
    let full = said.iter().filter(|error| error.message.len() > SAID_BYTES_MAX).count();
    assert_eq!(full, SAID_IN_FULL_MAX);
    assert!(
        said.iter().all(|error| error.message.capacity() <= error::MESSAGE_BYTES_MAX),
        "as long as it was sent"
    );
}

#[tokio::test]
async fn odd_entries_of_all_workers_stand_in_the_order_of_their_places() {
    let pages = vec![
        page_of_odd(&["/data/b-x"], vec![odd("/data/z", "a pipe")], Some("/data/b/")),
        page_of_odd(&["/data/c"], vec![odd("/data/b", "cannot list it: Permission denied")], None),
    ];
    let offered = list_of(&["workers:/"], pages).await.expect("listed");
    assert_eq!(
        urls(&offered, "workers:/"),
        ["worker://w1/data/b-x", "worker://w1/data/c", "worker://w2/data/z"]
    );
    let left_out: Vec<&str> =
        offered.inputs["workers:/"].left_out.iter().map(|odd| odd.url.as_str()).collect();
    assert_eq!(left_out, ["worker://w1/data/b", "worker://w1/data/z"]);
    // One that is asked for by its very path is there.
    let offered =
        list_of(&["workers:/z"], vec![page_of_odd(&[], vec![odd("/data/z", "a pipe")], None)])
            .await;
    assert_eq!(offered.expect("listed").inputs["workers:/z"].left_out.len(), 1);
}

/// It was taken for a lie, and the whole job failed.
#[tokio::test]
async fn a_path_that_a_worker_had_to_cut_is_believed() {
    let dir = tempfile::tempdir().expect("temp dir");
    // Each byte of such a name takes four in its path.
    let long = [&[0xff; 246][..], b".txt"].concat();
    let (segment, mut root) = ("s".repeat(200), dir.path().canonicalize().expect("root"));
    (0..16).for_each(|_| root.push(&segment));
    std::fs::create_dir_all(root.join("d")).expect("folders");
    std::fs::write(root.join("d/a.txt"), "x").expect("file");
    std::fs::write(root.join("d").join(OsStr::from_bytes(&long)), "x").expect("file");
    let own = OwnFiles::new(&[root], BufferPool::new(0), Arc::new(SystemClock::default()))
        .expect("offers");
    let offers = [Offer { folders: own.folders(), ..offer("w1") }];
    let ask = |_: Offer, question: ListInputs| {
        let own = own.clone();
        async move {
            let Page { files, omitted, next } =
                own.page(Pattern::new(&question.pattern)?, question.after).await?;
            Ok(ListReply::Listed { files, omitted, next })
        }
    };
    let listed = list(
        &spec(&["workers:/d/*.txt"]),
        &offers,
        Epoch(1),
        (&SystemClock::default(), 60_000),
        ask,
    )
    .await;
    let found = &listed.expect("listed").inputs["workers:/d/*.txt"];
    let [LeftOut { url, why }] = &found.left_out[..] else { panic!("{:?}", found.left_out) };
    assert!(
        found.objects.len() == 1 && found.objects[0].url.ends_with("/d/a.txt"),
        "{:?}",
        found.objects
    );
    assert!(url.contains(r"/d/\xff\xff"), "{url}");
    assert!(why.contains("4096 that are carried"), "{why}");
}

/// Two workers that have these files below `/data`: what an INPUT finds.
async fn found(input: &str, files: [&[&str]; 2]) -> Result<Vec<String>> {
    let ask = |offer: Offer, question: ListInputs| {
        let pattern = Pattern::new(&question.pattern).expect("pattern");
        let at = usize::from(offer.worker.as_str() == "w2");
        let paths: Vec<String> = files[at]
            .iter()
            .filter(|name| pattern.matches(name))
            .map(|n| format!("/data/{n}"))
            .collect();
        let answer = page(&paths.iter().map(String::as_str).collect::<Vec<_>>(), None);
        async move { answer }
    };
    let offers = [offer("w1"), offer("w2")];
    let offered =
        list(&spec(&[input]), &offers, Epoch(1), (&SystemClock::default(), 60_000), ask).await?;
    Ok(urls(&offered, input)
        .iter()
        .map(|url| url.trim_start_matches("worker://").replace("/data/", ":"))
        .collect())
}

#[tokio::test]
async fn what_exists_at_any_worker_is_a_path_and_no_pattern() {
    let first: &[&str] = &["a1", "b2/xy", "b[2]/x*", "b[2]/xy", "d/a1.log"];
    let second: &[&str] = &["[e", "a1", "a[1]", "b[2]/z", "c1", "c{1,2}", r"f\g"];
    let check = async |input: &str, expected: Result<&[&str], &str>| match (
        found(&format!("workers:/{input}"), [first, second]).await,
        expected,
    ) {
        (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{input}"),
        (Err(error), Err(expected)) => {
            assert!(error.message.contains(expected), "{input}: {error}");
        }
        (found, expected) => panic!("{input}: {found:?}, not {expected:?}"),
    };
    check("a[1]", Ok(&["w2:a[1]"])).await;
    check(r"a\[1\]", Ok(&["w2:a[1]"])).await;
    check("a[0-9]", Ok(&["w1:a1", "w2:a1"])).await;
    check("a*", Ok(&["w1:a1", "w2:a1", "w2:a[1]"])).await;
    check("b[2]", Ok(&["w1:b[2]/x*", "w1:b[2]/xy", "w2:b[2]/z"])).await;
    check("b[2]/", Ok(&["w1:b[2]/x*", "w1:b[2]/xy", "w2:b[2]/z"])).await;
    check("b[2]/x*", Ok(&["w1:b[2]/x*"])).await;
    check("b[2]/?y", Ok(&["w1:b[2]/xy"])).await;
    check("b[0-9]/?y", Ok(&["w1:b2/xy"])).await;
    check("c{1,2}", Ok(&["w2:c{1,2}"])).await;
    check("c{1,3}", Ok(&["w2:c1"])).await;
    check("[e", Ok(&["w2:[e"])).await;
    check(r"f\g", Ok(&[r"w2:f\g"])).await;
    check("**/a?.log", Ok(&["w1:d/a1.log"])).await;
    check("[f", Err("not a valid pattern")).await;
    check("x[1]", Err("none of the workers")).await;
}

/// The files of another worker were lost where `--bad-inputs skip` left the folder out.
#[tokio::test]
async fn a_folder_above_that_one_worker_cannot_list_makes_no_path_of_a_pattern() {
    // `w1` cannot look into these of `/data`, and has these below `/more`; `w2` has those below
    // `/data`.
    let check = async |input: &str, closed: &[&str], files: [&[&str]; 2], expected: &[&str]| {
        let ask = |offer: Offer, question: ListInputs| {
            let pattern = Pattern::new(&question.pattern).expect("pattern");
            let first = offer.worker.as_str() == "w1";
            let (root, files) = if first { ("/more", files[0]) } else { ("/data", files[1]) };
            let meant: Vec<String> = files
                .iter()
                .filter(|name| pattern.matches(name))
                .map(|name| format!("{root}/{name}"))
                .collect();
            let meant: Vec<&str> = meant.iter().map(String::as_str).collect();
            let met =
                closed.iter().filter(|name| pattern.may_match_below(name) || pattern.matches(name));
            let omitted = met
                .map(|name| odd(&format!("/data/{name}"), "cannot list it: Permission denied"))
                .collect();
            let answer = match question.after {
                None if first => page_of_odd(&[], omitted, Some("/data/~")),
                _ => page(&meant, None),
            };
            async move { answer }
        };
        let offers = [offer("w1"), offer("w2")];
        let listed =
            list(&spec(&[input]), &offers, Epoch(1), (&SystemClock::default(), 60_000), ask).await;
        let found = &listed.expect(input).inputs[input];
        let urls = found
            .objects
            .iter()
            .map(|object| &object.url)
            .chain(found.left_out.iter().map(|odd| &odd.url));
        assert_eq!(urls.collect::<Vec<_>>(), expected, "{input}");
    };
    let closed = "worker://w1/data/logs";
    check(
        "workers:/logs/*.txt",
        &["logs"],
        [&[], &["logs/a.txt"]],
        &["worker://w2/data/logs/a.txt", closed],
    )
    .await;
    let sub = "worker://w1/data/sub";
    check(
        "workers:/sub/[ab]/x*",
        &["sub"],
        [&[], &["sub/a/x1"]],
        &["worker://w2/data/sub/a/x1", sub],
    )
    .await;
    // What comes behind such a folder is still a path.
    let both: [&[&str]; 2] = [&["logs/*.txt"], &["logs/a.txt"]];
    check("workers:/logs/*.txt", &["logs"], both, &["worker://w1/more/logs/*.txt", closed]).await;
    // What has the very path is there, even if it cannot be input.
    let itself = "worker://w1/data/logs/*.txt";
    check("workers:/logs/*.txt", &["logs/*.txt"], [&[], &["logs/a.txt"]], &[itself]).await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_does_not_answer_is_asked_again_and_then_named() {
    let away = || Err(Error::retry("no answer"));
    let offered = list_of(&["workers:/"], vec![away(), away(), page(&["/data/a"], None)])
        .await
        .expect("listed");
    assert_eq!(urls(&offered, "workers:/").len(), 2);
    let error = list_of(&["workers:/"], (0..9).map(|_| away()).collect()).await.expect_err("away");
    assert!(
        error.kind == ErrorKind::Exhausted
            && error.message.contains("worker w1 on host does not list its input"),
        "{error}"
    );
    let refused = Ok(ListReply::Refused { error: Error::invalid("no folder") });
    let error = list_of(&["workers:/"], vec![refused]).await.expect_err("refused");
    assert!(error.kind == ErrorKind::Invalid && error.message.contains("no folder"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_listing_has_a_bound() {
    let ask = |_: Offer, _: ListInputs| std::future::pending::<Result<ListReply>>();
    let listed = list(
        &spec(&["workers:/"]),
        &[offer("w1")],
        Epoch(1),
        (&SystemClock::default(), 600_000),
        ask,
    )
    .await;
    let error = listed.expect_err("bound");
    assert!(error.message.contains("600000 ms (store.list_timeout_ms)"), "{error}");
}

#[tokio::test]
async fn nothing_found_is_said() {
    let error = list_of(&["workers:/none"], Vec::new()).await.expect_err("nothing");
    assert!(error.kind == ErrorKind::NotFound && error.message.contains("w1, w2"), "{error}");
}

#[tokio::test]
async fn odd_entries_of_workers_fall_under_bad_inputs() {
    let stores = Stores::new(
        BufferPool::new(0),
        &Config::profile(Profile::Testing).expect("settings").store,
    );
    let (fence, _, _) = leading().await;
    let check = async |inputs: &[&str], files: &[&str], bad_inputs: BadInputs| {
        let spec = JobSpec { bad_inputs, ..spec(inputs) };
        let omitted = vec![odd("/data/sock", "a socket"), odd("/data/p", "a pipe")];
        let offered =
            list_of(inputs, vec![page_of_odd(files, omitted, None)]).await.expect("listed");
        let places = plan::places(&spec, None, &"d1".parse().expect("id")).expect("places");
        list_input(&stores, &fence, &spec, &places, (&[offer("w1"), offer("w2")], &offered)).await
    };
    let error =
        check(&["workers:/"], &["/data/a"], BadInputs::Fail).await.expect_err("odd entries");
    let words = [
        "2 entries of the input cannot be read",
        "worker://w1/data/p (a pipe), worker://w1/data/sock (a socket)",
        "--bad-inputs skip",
    ];
    words.iter().for_each(|part| assert!(error.message.contains(part), "{part}: {error}"));
    for files in [&["/data/a"][..], &[]] {
        let listing = check(&["workers:/"], files, BadInputs::Skip).await.expect("left out");
        let left_out: Vec<&str> = listing.left_out.iter().map(|odd| odd.url.as_str()).collect();
        assert_eq!(left_out, ["worker://w1/data/p", "worker://w1/data/sock"]);
        assert_eq!(listing.objects.len(), files.len() + 1);
    }
}

#[tokio::test]
async fn offered_files_are_checked_as_others_are() {
    let stores = Stores::new(
        BufferPool::new(0),
        &Config::profile(Profile::Testing).expect("settings").store,
    );
    let (fence, _, _) = leading().await;
    let check = async |files: Vec<LocalFile>, spec: JobSpec| {
        let listed = Ok(ListReply::Listed { files, omitted: Vec::new(), next: None });
        let offered = list_of(&["workers:/"], vec![listed]).await.expect("listed");
        let places = plan::places(&spec, None, &"d1".parse().expect("id")).expect("places");
        list_input(&stores, &fence, &spec, &places, (&[offer("w1"), offer("w2")], &offered)).await
    };
    let listing = check(vec![file("/data/a")], spec(&["workers:/"])).await.expect("listing");
    assert_eq!(
        listing.objects.iter().map(|object| object.owner()).collect::<Vec<_>>(),
        [Some("w1"), Some("w2")]
    );
    let closed = || LocalFile { head: Err(Error::invalid("Permission denied")), ..file("/data/a") };
    let error = check(vec![closed()], spec(&["workers:/"])).await.expect_err("closed");
    assert!(
        error.message.contains("worker://w1/data/a cannot be read: Permission denied"),
        "{error}"
    );
    let skips = JobSpec { bad_inputs: BadInputs::Skip, ..spec(&["workers:/"]) };
    assert_eq!(check(vec![closed()], skips).await.expect("the task finds out").objects.len(), 2);
    let zipped = LocalFile { head: Ok(b"\x1f\x8b\x08\0".to_vec()), ..file("/data/a") };
    let error = check(vec![zipped], spec(&["workers:/"])).await.expect_err("gzip");
    assert!(error.message.contains("gzip-compressed"), "{error}");
    // A tar archive is told by all of its header.
    let mut header = vec![0_u8; HEAD_BYTES_MAX];
    header[148..156].copy_from_slice(b"0000400\0");
    let packed = LocalFile { head: Ok(header), bytes: 10_240, ..file("/data/a") };
    let error = check(vec![packed], spec(&["workers:/"])).await.expect_err("tar");
    assert!(
        error.message.contains("worker://w1/data/a is a tar archive: unpack it first"),
        "{error}"
    );
    for output in ["/data/out", "/more", "/"] {
        let spec = JobSpec {
            output: output.to_owned(),
            bucket: Some("memory:///scratch".to_owned()),
            ..spec(&["workers:/"])
        };
        let Ok(places) = plan::places(&spec, None, &"d1".parse().expect("id")) else { continue };
        let listed =
            list_input(&stores, &fence, &spec, &places, (&[offer("w1")], &Offered::default()))
                .await;
        assert!(listed.expect_err(output).message.contains("which worker w1 offers as input"));
    }
}
