use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::FutureExt;
use muster_kernel::format::Format;
use muster_kernel::spec::SortSpec;

use super::judge::{Decision, Known, Life, Seen, Watch, decide};
use super::*;
use crate::adapters::memory::MemoryBlobs;
use crate::buffer::BufferPool;
use crate::clock::{Clock, Pause};
use crate::config::{self, Config, Profile};
use crate::store::{BlobUrl, Blobs, Scheme};
use crate::stores::Stores;
use muster_protocol::names;
use muster_protocol::plan::{BadRecords, PinnedObject, Plan};

const DEAD_AFTER_MS: u64 = 4000;

/// A clock that a pause moves on.
#[derive(Default)]
struct Pausing(Arc<AtomicU64>);

impl Clock for Pausing {
    fn now_ms(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
    fn unix_ms(&self) -> u64 {
        1_700_000_000_000 + self.now_ms()
    }
    fn random(&self) -> u64 {
        7
    }
    fn pause(&self, ms: u64) -> Pause {
        self.0.fetch_add(ms, Ordering::SeqCst);
        Box::pin(tokio::task::yield_now())
    }
}

fn id(text: &str) -> ClaimId {
    text.parse().expect("id")
}

fn claim(of: &str, ticket: u64) -> Claim {
    Claim {
        version: VERSION,
        id: id(of),
        ticket,
        beat: 1,
        owner: Owner { host: "h".to_owned(), run_here: true, ..Owner::default() },
        since_unix_ms: 1_700_000_000_000,
        overruled: Vec::new(),
        marks: vec!["0badcafe".to_owned()],
        publishing: None,
    }
}

fn seen(of: &str, ticket: u64, life: Life) -> Seen {
    Seen { id: id(of), claim: Some(claim(of, ticket)), life }
}

#[test]
fn a_claim_is_read_as_it_was_written_and_nothing_else_is() {
    let whole =
        Claim { overruled: vec![Ticket { id: id("d2.j2"), ticket: 3 }], ..claim("d1.j1", 4) };
    let bytes = whole.to_bytes().expect("bytes");
    assert!(bytes.len().is_multiple_of(FILL_BYTES), "{} bytes", bytes.len());
    assert_eq!(Claim::from_bytes(&id("d1.j1"), &bytes), Ok(whole.clone()));
    assert!(Claim::from_bytes(&id("d1.j2"), &bytes).is_err(), "its name says another job");
    let refused = |change: &dyn Fn(&mut Claim)| {
        let mut claim = whole.clone();
        change(&mut claim);
        assert!(
            Claim::from_bytes(&id("d1.j1"), &claim.to_bytes().expect("bytes")).is_err(),
            "{claim:?}"
        );
    };
    refused(&|claim| claim.version = 2);
    refused(&|claim| claim.ticket = u64::MAX);
    refused(&|claim| claim.owner.host = "h\u{1b}[2J".to_owned());
    refused(&|claim| claim.owner.host = "h".repeat(300));
    refused(&|claim| claim.marks = vec!["../../x".to_owned()]);
    refused(&|claim| claim.overruled = vec![Ticket { id: id("d2.j2"), ticket: 1 }; NAMED_MAX + 1]);
    for bytes in [&b""[..], b"{}", b"null", &[0xff; 100], &vec![b' '; 70_000]] {
        assert!(Claim::from_bytes(&id("d1.j1"), bytes).is_err());
    }
    for name in ["", "d1", "d1.", ".j1", "d1.j1.x", "../d1.j1", "d1.j 1"] {
        assert!(name.parse::<ClaimId>().is_err(), "{name}");
    }
    assert_eq!(names::claim_path(&id("d1.j1")), "_muster/claims/d1.j1.json");
    assert_eq!(names::claim_of("d1.j1.json"), Some(id("d1.j1")));
    for name in ["d1.j1", ".d1.j1.json.0123456789abcdef.upload", "sub/d1.j1.json", "notes.json"] {
        assert_eq!(names::claim_of(name), None, "{name}");
    }
}

#[test]
fn the_earliest_that_lives_holds_output() {
    let me = claim("m.j", 5);
    let check = |others: &[Seen], expected: Decision| {
        assert_eq!(decide(&me, others), expected, "{others:?}");
    };
    check(&[], Decision::Hold);
    check(&[seen("a.j", 4, Life::Lives)], Decision::Refuse(id("a.j")));
    check(&[seen("a.j", 5, Life::Lives)], Decision::Refuse(id("a.j")));
    check(&[seen("z.j", 5, Life::Lives), seen("a.j", 6, Life::Unknown)], Decision::Hold);
    check(&[seen("a.j", 4, Life::Unknown)], Decision::Wait);
    check(&[seen("z.j", 0, Life::Lives)], Decision::Wait);
    check(&[Seen { claim: None, ..seen("z.j", 1, Life::Unknown) }], Decision::Wait);
    check(&[Seen { claim: None, ..seen("z.j", 1, Life::Lives) }], Decision::Refuse(id("z.j")));
    let dead = seen("a.j", 4, Life::Dead);
    check(std::slice::from_ref(&dead), Decision::Overrule(vec![dead.ticket()]));
    check(&[dead.clone(), seen("b.j", 3, Life::Lives)], Decision::Refuse(id("b.j")));
    let over = Claim { overruled: vec![dead.ticket()], ..me.clone() };
    assert_eq!(
        decide(&over, &[Seen { life: Life::Lives, ..dead }]),
        Decision::Hold,
        "it finds out by itself"
    );
    assert_eq!(
        decide(&over, &[seen("a.j", 3, Life::Lives)]),
        Decision::Refuse(id("a.j")),
        "another claim of it"
    );
    for life in [Life::Lives, Life::Dead, Life::Unknown] {
        let mut by = seen("z.j", 9, life);
        by.claim = by
            .claim
            .map(|claim| Claim { overruled: vec![Ticket { id: id("m.j"), ticket: 5 }], ..claim });
        check(&[by], Decision::Lost(id("z.j")));
    }
}

#[test]
fn death_is_told_by_the_system_or_by_silence() {
    let here = Owner { run_here: true, ..Owner::default() };
    let pool = Owner::default();
    let mut watch = Watch::default();
    let mut life = |version: &str, owner: &Owner, known: Known, now_ms: u64| {
        watch.life(&id("a.j"), version, Some(owner), known, (now_ms, now_ms, DEAD_AFTER_MS))
    };
    assert_eq!(life("1", &here, Known::Gone, 0), Life::Dead);
    assert_eq!(life("1", &here, Known::There, 0), Life::Lives);
    // A pool's job goes on with its next leader.
    assert_eq!(life("1", &pool, Known::Gone, 0), Life::Unknown);
    assert_eq!(life("1", &pool, Known::Unknown, DEAD_AFTER_MS), Life::Unknown);
    assert_eq!(life("1", &pool, Known::Unknown, DEAD_AFTER_MS + 1), Life::Dead);
    assert_eq!(life("2", &pool, Known::Unknown, DEAD_AFTER_MS + 2), Life::Lives);
    assert_eq!(life("2", &pool, Known::Unknown, 2 * DEAD_AFTER_MS + 2), Life::Lives);
    assert_eq!(life("2", &pool, Known::Unknown, 2 * DEAD_AFTER_MS + 3), Life::Dead);
}

/// The simulation found it: a look that was answered after its process had slept for long made
/// every owner dead.
#[test]
fn the_sleep_of_whoever_looks_is_nobodys_silence() {
    let (mut watch, pool) = (Watch::default(), Owner::default());
    let mut life = |version: &str, asked_ms: u64, seen_ms: u64| {
        watch.life(
            &id("a.j"),
            version,
            Some(&pool),
            Known::Unknown,
            (asked_ms, seen_ms, DEAD_AFTER_MS),
        )
    };
    assert_eq!(life("1", 0, 10), Life::Unknown);
    assert_eq!(life("1", 250, 60_000), Life::Unknown, "asked before it slept, read after");
    assert_eq!(life("2", 60_000, 60_010), Life::Lives);
    assert_eq!(life("2", 60_010 + DEAD_AFTER_MS + 1, 70_000), Life::Dead);
}

struct Bench {
    stores: Stores,
    store: Arc<MemoryBlobs>,
    time: Arc<AtomicU64>,
    output: BlobUrl,
}

impl Bench {
    async fn new() -> Self {
        let stores = Stores::new(
            BufferPool::new(0),
            &Config::profile(Profile::Testing).expect("settings").store,
        );
        let store = Arc::new(MemoryBlobs::default());
        stores.insert(Scheme::Memory, store.clone()).await;
        Self { stores, store, time: Arc::default(), output: "memory:///out".parse().expect("url") }
    }

    fn claims(&self, deployment: &str, run_here: bool, known: Known) -> Claims {
        let owner = Owner { host: deployment.to_owned(), run_here, ..Owner::default() };
        let settings = config::Claim { renew_ms: 400, dead_after_ms: DEAD_AFTER_MS };
        let clock = Arc::new(Pausing(self.time.clone()));
        Claims::new(
            deployment.parse().expect("id"),
            owner,
            move |_, _| known,
            |_| {},
            clock,
            settings,
        )
    }

    async fn take(&self, claims: &Claims, job: &str) -> Result<()> {
        claims.take(&self.stores, &self.output, &job.parse().expect("id"), true, &()).await
    }

    async fn held(&self, claims: &Claims, job: &str) -> Result<Held> {
        claims.confirm(&self.stores, (&self.output, &job.parse().expect("id")), None, &()).await
    }

    async fn keys(&self) -> Vec<String> {
        self.store.list("out", 1000).await.expect("list").into_iter().map(|meta| meta.key).collect()
    }
}

#[tokio::test]
async fn an_owner_that_lives_keeps_others_out_and_is_named() {
    let bench = Bench::new().await;
    let (one, two) =
        (bench.claims("d1", true, Known::There), bench.claims("d2", true, Known::There));
    bench.take(&one, "j1").await.expect("nobody is there");
    let refused = bench.take(&two, "j2").await.expect_err("held");
    for word in ["job j1", "on host d1", "it is alive", "claim.dead_after_ms"] {
        assert!(refused.message.contains(word), "{word}: {refused}");
    }
    assert_eq!(
        bench.keys().await,
        ["out/_muster/claims/d1.j1.json"],
        "the refused one leaves nothing"
    );
    bench.held(&one, "j1").await.expect("held").check().await.expect("held");
    one.release(&bench.stores, &bench.output, &"j1".parse().expect("id"), &())
        .await
        .expect("release");
    bench.take(&two, "j2").await.expect("free");
}

#[tokio::test]
async fn of_two_at_once_one_has_it() {
    for _ in 0..50 {
        let bench = Bench::new().await;
        let (one, two) =
            (bench.claims("d1", true, Known::There), bench.claims("d2", true, Known::There));
        let (first, second) = tokio::join!(bench.take(&one, "j1"), bench.take(&two, "j2"));
        assert!(first.is_ok() != second.is_ok(), "{first:?} {second:?}");
    }
}

#[tokio::test]
async fn who_was_silent_too_long_has_lost_it_and_stops() {
    let bench = Bench::new().await;
    let (one, two) =
        (bench.claims("d1", false, Known::There), bench.claims("d2", true, Known::There));
    bench.take(&one, "j1").await.expect("nobody is there");
    let held = bench.held(&one, "j1").await.expect("held");
    bench.take(&two, "j2").await.expect("the other is silent");
    assert!(bench.time.load(Ordering::SeqCst) > DEAD_AFTER_MS, "it was waited for");
    let lost = held.check().await.expect_err("lost");
    assert!(lost.message.contains("job j2 of process 0 on host d2"), "{lost}");
    // It wakes and renews what is no longer there: that changes nothing.
    one.renew(&bench.stores, &bench.output, &"j1".parse().expect("id")).await.expect("renew");
    assert_eq!(bench.keys().await, ["out/_muster/claims/d2.j2.json"]);
    assert!(bench.held(&one, "j1").await.is_err());
    bench.held(&two, "j2").await.expect("held").check().await.expect("held");
}

#[tokio::test]
async fn what_a_dead_run_has_left_goes_and_nothing_else() {
    let bench = Bench::new().await;
    let dead = bench.claims("d1", true, Known::Gone);
    bench.take(&dead, "j1").await.expect("nobody is there");
    for key in [
        "_muster/d1/j1/plan",
        "_muster/d1/j2/plan",
        "_muster/claims/notes.json",
        "part-00000.txt",
        "mine",
    ] {
        bench.store.put(&format!("out/{key}"), b"x".to_vec().into()).await.expect("put");
    }
    bench.take(&bench.claims("d2", true, Known::Gone), "j9").await.expect("dead");
    let left = bench.keys().await;
    let expected = [
        "_muster/claims/d2.j9.json",
        "_muster/claims/notes.json",
        "_muster/d1/j2/plan",
        "mine",
        "part-00000.txt",
    ];
    assert_eq!(
        left,
        expected.map(|key| format!("out/{key}")),
        "parts that no manifest names are not touched"
    );
}

/// The plan of a job that replaces these.
fn replacing(replaced: Vec<PinnedObject>, uploads_before: Vec<String>) -> Plan {
    Plan {
        job: "j1".parse().expect("id"),
        sort: SortSpec::new(Format::lines(b'\n')),
        objects: Vec::new(),
        splits: Vec::new(),
        partitions: 2,
        sample_seed: 0,
        samples_per_split: 1,
        output: "memory:///out".to_owned(),
        extension: "txt".to_owned(),
        scratch: "memory:///out/_muster/d1/j1".to_owned(),
        replaced,
        uploads_before,
        fsync: false,
        attempts_max: 1,
        replica: None,
        bad_records: BadRecords::Fail,
        settings: None,
        left_out: Vec::new(),
    }
}

/// What stays of a dead run that was about to replace an older result, but for the claim of whoever
/// follows it: objects below OUTPUT, and open uploads.
async fn left_of_a_replacement(publishing: bool, whole: bool, plan: bool) -> [Vec<String>; 2] {
    let bench = Bench::new().await;
    let store = &bench.store;
    let put = |key: &str, bytes: &[u8]| {
        let key = format!("out/{key}");
        let bytes = bytes.to_vec();
        async move { store.put(&key, bytes.into()).await.expect("put") }
    };
    let mut replaced = Vec::new();
    for name in ["part-00000.txt", "part-00001.txt", "part-00007.csv", "_SUCCESS", "notes"] {
        put(name, b"old").await;
        let (url, key) = (format!("memory:///out/{name}"), format!("out/{name}"));
        let meta = store.head(&key).await.expect("head");
        replaced.push(PinnedObject { url, bytes: meta.bytes, version: meta.version });
    }
    let older = store.open_upload("out/part-00000.txt").await.expect("open");
    let dead = bench.claims("d1", true, Known::Gone);
    bench.take(&dead, "j1").await.expect("nobody is there");
    let plan = if plan { replacing(replaced, vec![older]).to_bytes() } else { Ok(vec![0; 9]) };
    put("_muster/d1/j1/plan.0123456789abcdef", &plan.expect("bytes")).await;
    let kept = bench.output.join("_muster/d1/j1/manifest");
    let kept = bench.stores.put_ref(&kept, b"not to be read".to_vec()).await.expect("put");
    let job = "j1".parse().expect("id");
    let kept = Some(&kept).filter(|_| publishing);
    dead.confirm(&bench.stores, (&bench.output, &job), kept, &()).await.expect("held");
    for key in ["out/part-00001.txt", "out/theirs"] {
        store.open_upload(key).await.expect("open");
    }
    // Since then somebody has written this one anew.
    put("part-00001.txt", b"somebody's").await;
    if !whole {
        store.delete("out/_SUCCESS").await.expect("delete");
    }
    bench.take(&bench.claims("d2", true, Known::Gone), "j9").await.expect("dead");
    let mut keys = bench.keys().await;
    keys.retain(|key| key != "out/_muster/claims/d2.j9.json");
    let mut open: Vec<String> =
        store.list_uploads("out", 10).await.expect("list").into_iter().map(|up| up.key).collect();
    open.sort();
    [keys, open]
}

#[tokio::test]
async fn what_a_dead_run_was_replacing_goes_once_nothing_names_it_any_more() {
    let check =
        async |(publishing, whole, plan): (bool, bool, bool), names: &[&str], uploads: &[&str]| {
            let [keys, open] = left_of_a_replacement(publishing, whole, plan).await;
            let below = |names: &[&str]| names.iter().map(|name| format!("out/{name}")).collect();
            let expected: [Vec<String>; 2] = [below(names), below(uploads)];
            assert_eq!([keys, open], expected, "{publishing} {whole} {plan}");
        };
    let (all, whole) = (
        ["notes", "part-00000.txt", "part-00001.txt", "part-00007.csv"],
        ["_SUCCESS", "notes", "part-00000.txt", "part-00001.txt", "part-00007.csv"],
    );
    let others = ["part-00000.txt", "theirs"];
    check((true, false, true), &["notes", "part-00001.txt"], &others).await;
    // The older result stands, or nothing says that it was about to go: somebody has taken its
    // `_SUCCESS` away.
    check((true, true, true), &whole, &others).await;
    check((false, true, true), &whole, &others).await;
    check((false, false, true), &all, &others).await;
    // Without a plan nobody knows what was older.
    let all_uploads = ["part-00000.txt", "part-00001.txt", "theirs"];
    check((true, false, false), &all, &all_uploads).await;
}

#[tokio::test]
async fn a_claim_that_cannot_be_read_is_watched_as_any_other() {
    let bench = Bench::new().await;
    for (name, bytes) in [("x.y", vec![b'{'; 10]), ("x.z", vec![b' '; 100_000])] {
        bench
            .store
            .put(&format!("out/_muster/claims/{name}.json"), bytes.into())
            .await
            .expect("put");
    }
    bench.take(&bench.claims("d1", true, Known::There), "j1").await.expect("nobody renews them");
    assert!(bench.time.load(Ordering::SeqCst) > DEAD_AFTER_MS);
    assert_eq!(bench.keys().await, ["out/_muster/claims/d1.j1.json"]);
}

/// The simulation found it: a ticket that was drawn before a long sleep came before that of whoever
/// held OUTPUT by then and knew nothing of it.
#[tokio::test]
async fn who_sleeps_while_it_draws_its_ticket_draws_again() {
    let bench = Bench::new().await;
    let put = |claim: &Claim| -> (String, Bytes) {
        (format!("out/{}", names::claim_path(&claim.id)), claim.to_bytes().expect("bytes").into())
    };
    let (old, newer) = (put(&claim("d9.j9", 1)), put(&claim("d2.j2", 5)));
    bench.store.put(&old.0, old.1).await.expect("put");
    let (store, time, looks) = (bench.store.clone(), bench.time.clone(), AtomicU64::new(0));
    let look = move |_: &Process, _: &Process| {
        // The second look is the one by which the ticket is drawn: meanwhile it is taken for dead
        // and removed, and one that has not seen it gets OUTPUT.
        if looks.fetch_add(1, Ordering::SeqCst) == 1 {
            time.fetch_add(10 * DEAD_AFTER_MS, Ordering::SeqCst);
            for key in ["out/_muster/claims/d1.j1.json", "out/_muster/claims/d9.j9.json"] {
                store.delete(key).now_or_never().expect("at once").expect("delete");
            }
            store.put(&newer.0, newer.1.clone()).now_or_never().expect("at once").expect("put");
        }
        Known::There
    };
    let owner = Owner { host: "d1".to_owned(), run_here: true, ..Owner::default() };
    let settings = config::Claim { renew_ms: 400, dead_after_ms: DEAD_AFTER_MS };
    let clock = Arc::new(Pausing(bench.time.clone()));
    let slept = Claims::new("d1".parse().expect("id"), owner, look, |_| {}, clock, settings);
    let refused = bench.take(&slept, "j1").await.expect_err("the other holds it");
    assert!(refused.message.contains("is held by job j2"), "{refused}");
    assert_eq!(bench.keys().await, ["out/_muster/claims/d2.j2.json"]);
}
