use std::sync::atomic::AtomicUsize;

use bytes::Bytes;

use super::*;
use crate::adapters::faulty::{FaultyBlobs, FaultyLedger};
use crate::adapters::memory::{MemoryBlobs, MemoryLedger};
use crate::clock::ManualClock;
use crate::config::{Config, Profile};
use crate::conformance;
use crate::ledger::{Appended, Ledger};
use crate::store::{Access, Blobs, PartAt};

fn plan(spec: &str) -> FaultPlan {
    spec.parse().unwrap_or_else(|e| panic!("{spec}: {e}"))
}

fn at_work(spec: &str) -> Arc<Faults> {
    Arc::new(Faults::new(plan(spec), "w1", Arc::new(ManualClock::default())))
}

fn store(spec: &str) -> (Arc<MemoryBlobs>, FaultyBlobs) {
    let memory = Arc::new(MemoryBlobs::default());
    let scope = Scope { phase: Some(Phase::Sort), task: Some(3) };
    let faulty = FaultyBlobs::new(memory.clone(), at_work(spec), Component::Store, scope);
    (memory, faulty)
}

fn part(bytes: &'static [u8]) -> Bytes {
    Bytes::from_static(bytes)
}

const FIRST: PartAt = PartAt { index: 0, offset: 0 };

#[tokio::test]
async fn what_is_wrapped_without_a_fault_passes_the_suites() {
    conformance::blobs(&store("store:error,p=0").1, "root").await;
    conformance::blobs(&store("disk:error;store.read:error,phase=merge").1, "root").await;
    let ledger = FaultyLedger::new(Arc::new(MemoryLedger::default()), at_work("ledger:error,p=0"));
    conformance::ledger(&ledger).await;
}

#[tokio::test]
async fn each_error_is_of_its_kind_and_nothing_happens() {
    for (kind, expected) in [
        ("error", ErrorKind::Retry),
        ("throttle", ErrorKind::Throttled),
        ("full", ErrorKind::Exhausted),
    ] {
        let (memory, store) = store(&format!("store.put:{kind}"));
        let error = store.put("a", Bytes::from_static(b"x")).await.expect_err(kind);
        assert_eq!(error.kind, expected);
        assert!(error.message.contains(&format!("store.put:{kind}")), "{error}");
        assert_eq!(memory.head("a").await.expect_err("not written").kind, ErrorKind::NotFound);
    }
}

#[tokio::test]
async fn a_lost_acknowledgement_is_applied() {
    let (memory, store) =
        store("store.put:lost-ack;store.complete:lost-ack;store.part:lost-ack,times=1");
    assert_eq!(
        store.put("a", Bytes::from_static(b"x")).await.expect_err("lost").kind,
        ErrorKind::Retry
    );
    assert_eq!(memory.head("a").await.expect("written").bytes, 1);
    let upload = store.open_upload("b").await.expect("open");
    store.upload_part("b", &upload, FIRST, part(b"xyz")).await.expect_err("lost");
    let tag = store.upload_part("b", &upload, FIRST, part(b"xyz")).await.expect("once only");
    store.complete_upload("b", &upload, &[tag], 3, false).await.expect_err("lost");
    assert_eq!(memory.head("b").await.expect("completed").bytes, 3);
}

#[tokio::test]
async fn damage_touches_scratch_alone() {
    let whole = Bytes::from_static(b"0123456789");
    let bits =
        |seen: &[u8]| seen.iter().zip(&whole).map(|(a, b)| (a ^ b).count_ones()).sum::<u32>();
    let (memory, faulty) = store("store:flip");
    for (key, wrong) in [("out/part", 0), ("bucket/_muster/d/j/run", 1)] {
        memory.put(key, whole.clone()).await.expect("put");
        assert_eq!(
            bits(&faulty.read(key, 0..10, Access::Once).await.expect("read")),
            wrong,
            "{key} read"
        );
        faulty.put(key, whole.clone()).await.expect("put");
        assert_eq!(
            bits(&memory.read(key, 0..10, Access::Once).await.expect("read")),
            wrong,
            "{key} put"
        );
        let upload = faulty.open_upload(key).await.expect("open");
        let tag = faulty.upload_part(key, &upload, FIRST, whole.clone()).await.expect("part");
        faulty.complete_upload(key, &upload, &[tag], 10, false).await.expect("complete");
        assert_eq!(
            bits(&memory.read(key, 0..10, Access::Once).await.expect("read")),
            wrong,
            "{key} part"
        );
    }
    let (memory, faulty) = store("store.put:truncate;store.read:truncate");
    faulty.put("_muster/short", whole.clone()).await.expect("put");
    assert!(memory.head("_muster/short").await.expect("there").bytes < 10);
    let error = faulty.read("_muster/short", 0..1, Access::Once).await.expect_err("short");
    assert_eq!(error.kind, ErrorKind::Corrupt);
}

#[tokio::test]
async fn a_ledger_says_unknown_conflict_or_full() {
    let inner = Arc::new(MemoryLedger::default());
    let spec = "ledger.append:lost-ack,times=1;ledger.append:error,times=1;\
                ledger.append:full,times=1;ledger.read:error";
    let ledger = FaultyLedger::new(inner.clone(), at_work(spec));
    let append = |expected| ledger.append(expected, Bytes::from_static(b"r"));
    assert!(matches!(append(0).await, Appended::Unknown { .. }));
    assert_eq!(inner.last_sequence().await.expect("last"), 1, "it stands");
    assert!(matches!(append(1).await, Appended::Unknown { .. }));
    assert_eq!(inner.last_sequence().await.expect("last"), 1, "it does not stand");
    assert!(matches!(append(1).await, Appended::Full { .. }));
    assert_eq!(append(0).await, Appended::Conflict);
    assert_eq!(append(1).await, Appended::Applied { sequence: 2 });
    assert_eq!(ledger.read_from(1).await.expect_err("unreadable").kind, ErrorKind::Retry);
}

#[tokio::test]
async fn messages_meet_their_fate() {
    let check = async |kind: &str, expected: Message| {
        let faults = at_work(&format!("bus.report:{kind},times=1"));
        assert_eq!(faults.message("heartbeat").await, Message::Deliver);
        assert_eq!(faults.message("report").await, expected, "{kind}");
        assert_eq!(faults.message("report").await, Message::Deliver, "{kind} once");
    };
    check("drop", Message::Lost).await;
    check("duplicate", Message::Twice).await;
    check("lost-ack", Message::AnswerLost).await;
    check("error", Message::Refused).await;
}

/// Counts what a process would have done to itself.
#[derive(Clone, Default)]
struct Deeds(Arc<(AtomicUsize, AtomicU64)>);

impl Acts for Deeds {
    fn crash(&self) {
        self.0.0.fetch_add(1, Ordering::SeqCst);
    }

    fn pause(&self, ms: u64) {
        self.0.1.fetch_add(ms, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn a_process_crashes_and_pauses_where_it_is_told() {
    let deeds = Deeds::default();
    let spec = "crash,phase=sort,task=3,times=1;pause,phase=merge,ms=700;task.end:error";
    let faults =
        Faults::new(plan(spec), "w1", Arc::new(ManualClock::default())).with_acts(deeds.clone());
    let scope = |phase, task| Scope { phase: Some(phase), task: Some(task) };
    faults.step("begin", scope(Phase::Sort, 2)).await.expect("another task");
    assert_eq!(deeds.0.0.load(Ordering::SeqCst), 0);
    faults.step("begin", scope(Phase::Sort, 3)).await.expect("crashed");
    faults.step("begin", scope(Phase::Sort, 3)).await.expect("once only");
    faults.step("work", scope(Phase::Merge, 0)).await.expect("paused");
    assert_eq!((deeds.0.0.load(Ordering::SeqCst), deeds.0.1.load(Ordering::SeqCst)), (1, 700));
    faults.step("end", scope(Phase::Sample, 0)).await.expect_err("fails");
    let counts: Vec<(String, u64)> = faults.counts().into_iter().collect();
    let expected = [("task.begin:crash", 1), ("task.end:error", 1), ("task.work:pause", 1)];
    assert_eq!(counts, expected.map(|(label, count)| (label.to_owned(), count)));
}

#[tokio::test]
async fn memory_is_refused() {
    let faults = at_work("memory:refuse,phase=sort,times=1");
    let sort = Scope { phase: Some(Phase::Sort), task: None };
    assert!(!faults.refuses_memory(Scope::default()).await);
    assert!(faults.refuses_memory(sort).await);
    assert!(!faults.refuses_memory(sort).await);
}

#[tokio::test]
async fn rules_keep_to_worker_key_occasion_and_window() {
    let clock = Arc::new(ManualClock::default());
    let site = Site::new(Component::Store, "read");
    let hits = async |spec: &str, who: &str, key: &str, asked: usize| {
        let faults = Faults::new(plan(spec), who, clock.clone());
        let mut hits = 0;
        for _ in 0..asked {
            hits += usize::from(faults.meet(site, Scope::default(), key).await.is_some());
            clock.advance_ms(100);
        }
        hits
    };
    assert_eq!(hits("store:error,worker=w2", "w1", "a", 3).await, 0);
    assert_eq!(hits("store:error,worker=w2", "w2", "a", 3).await, 3);
    assert_eq!(hits("store:error,key=in/", "w1", "out/a", 3).await, 0);
    assert_eq!(hits("store:error,key=in/", "w1", "in/a", 3).await, 3);
    assert_eq!(hits("store:error,after=2", "w1", "a", 5).await, 3);
    assert_eq!(hits("store:error,after=2,times=2", "w1", "a", 9).await, 2);
    assert_eq!(hits("store:error,from=200,until=500", "w1", "a", 9).await, 3);
    let some = hits("seed=5;store:error,p=0.3", "w1", "a", 1000).await;
    assert!((200..400).contains(&some), "{some}");
}

#[tokio::test]
async fn the_same_seed_gives_the_same_draws_whatever_else_is_asked() {
    let draws = async |seed: u64, others: bool| {
        let faults = at_work(&format!("seed={seed};store:error,p=0.2;bus:drop,p=0.5"));
        let mut seen = Vec::new();
        for _ in 0..200 {
            if others {
                faults.message("report").await;
                faults.meet(Site::new(Component::Store, "put"), Scope::default(), "b").await;
            }
            seen.push(
                faults.meet(Site::new(Component::Store, "read"), Scope::default(), "a").await,
            );
        }
        seen
    };
    assert_eq!(draws(1, false).await, draws(1, true).await);
    assert_ne!(draws(1, false).await, draws(2, false).await);
}

#[test]
fn injection_is_refused_unless_it_is_enabled() {
    let clock = || Arc::new(ManualClock::default());
    let mut settings = Config::profile(Profile::Testing).expect("settings").faults;
    let error = Faults::begin("crash", &settings, false, "w1", clock()).expect_err("refused");
    assert!(
        error.message.contains(ENABLE_VARIABLE) && error.message.contains("faults.enabled"),
        "{error}"
    );
    Faults::begin("crash", &settings, true, "w1", clock()).expect("enabled by the environment");
    settings.enabled = true;
    Faults::begin("crash", &settings, false, "w1", clock()).expect("enabled by a setting");
    let error = Faults::begin("crush", &settings, false, "w1", clock()).expect_err("no such fault");
    assert!(error.message.starts_with("--faults: "), "{error}");
}

#[test]
fn specs_are_read_and_printed() {
    let check = |text: &str, printed: &str| {
        let read = plan(text);
        assert_eq!(read.to_string(), printed, "{text}");
        assert_eq!(plan(printed), read, "{printed}");
    };
    check("crash", "seed=0;task:crash");
    check(" seed=7 ; store.read:error , p=0.05 ", "seed=7;store.read:error,p=0.050000");
    check(
        "pause,phase=sort,task=3,times=1,ms=100",
        "seed=0;task:pause,ms=100,phase=sort,task=3,times=1",
    );
    check(
        "disk.write:full,p=.5,worker=w1;bus:drop",
        "seed=0;disk.write:full,p=0.500000,worker=w1;bus:drop",
    );
    check(
        "store:delay,key=a/b,after=3,from=10,until=20",
        "seed=0;store:delay,key=a/b,after=3,from=10,until=20",
    );
    check("store:delay,ms=1000,p=1", "seed=0;store:delay");
}

#[test]
fn specs_that_say_nothing_sensible_are_refused_by_name() {
    let many = ["crash"; 65].join(";");
    for (text, expected) in [
        ("", "no fault"),
        (";;", "no fault"),
        ("seed=x", "seed=x"),
        ("error", "SITE:KIND"),
        ("store", "SITE:KIND"),
        ("sore:error", "\"sore\""),
        ("store.reed:error", "\"reed\""),
        ("store.read:err", "SITE:KIND"),
        ("store.read:lost-ack", "makes no sense"),
        ("bus:full", "makes no sense"),
        ("task:drop", "makes no sense"),
        ("crash,p=2", "p=2"),
        ("crash,p=-1", "p=-1"),
        ("crash,p=0.0000001", "p=0.0000001"),
        ("crash,phase=shuffle", "phase=shuffle"),
        ("crash,ms=99999999", "ms=99999999"),
        ("crash,sometimes", "\"sometimes\""),
        ("crash,worker=", "worker="),
        (&many, "at most 64"),
    ] {
        let error = text.parse::<FaultPlan>().expect_err(text);
        assert_eq!(error.kind, ErrorKind::Invalid);
        assert!(error.message.contains(expected), "{text}: {error}");
    }
}

#[test]
fn a_seed_draws_a_plan_that_prints_and_reads() {
    for seed in 0..500 {
        let drawn = plan(&format!("seed={seed}"));
        assert_eq!(drawn, FaultPlan::from_seed(seed));
        assert!((4..=8).contains(&drawn.rules.len()), "{drawn}");
        assert_eq!(plan(&drawn.to_string()), drawn);
        assert!(drawn.rules.iter().all(|rule| rule.ppm <= 200_000), "rare: {drawn}");
    }
}

/// A dice of its own for texts that nobody would write.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        usize::try_from(mix(self.0) % bound as u64).expect("small")
    }
}

#[test]
fn no_text_makes_the_parser_panic_and_what_it_reads_it_prints() {
    const WORDS: &[&str] = &[
        "seed=",
        "store",
        "disk",
        "ledger",
        "bus",
        "task",
        "memory",
        ".",
        "read",
        "put",
        "write",
        "part",
        "append",
        "report",
        "begin",
        "alloc",
        "hold",
        ":",
        "error",
        "delay",
        "lost-ack",
        "throttle",
        "full",
        "flip",
        "crash",
        "pause",
        "drop",
        "refuse",
        ",",
        ";",
        "=",
        "p=",
        "0.5",
        "1",
        "0",
        "times=",
        "after=",
        "ms=",
        "phase=",
        "sort",
        "merge",
        "task=",
        "worker=",
        "key=",
        "from=",
        "until=",
        "é",
        "\0",
        " ",
        "18446744073709551615",
        "-1",
        "w1",
    ];
    let mut read = 0;
    for seed in 0..40_000 {
        let mut dice = Dice(seed);
        let text: String =
            (0..1 + dice.below(14)).map(|_| WORDS[dice.below(WORDS.len())]).collect();
        if let Ok(plan) = text.parse::<FaultPlan>() {
            read += 1;
            assert_eq!(plan.to_string().parse::<FaultPlan>().as_ref(), Ok(&plan), "{text}");
        }
    }
    assert!(read > 100, "only {read} of the texts were sound");
}

#[test]
fn sound_rules_round_trip_whatever_they_say() {
    let components = [
        Component::Store,
        Component::Disk,
        Component::Ledger,
        Component::Bus,
        Component::Task,
        Component::Memory,
    ];
    let sites = [
        "store",
        "store.part",
        "disk.write",
        "ledger.append",
        "bus.report",
        "task.end",
        "memory.alloc",
    ];
    assert!(components.iter().all(|component| {
        sites.iter().any(|site| site.parse::<Site>().expect("site").component == *component)
    }));
    for seed in 0..5_000 {
        let mut dice = Dice(seed);
        let mut rule =
            Rule::new(sites[dice.below(sites.len())].parse().expect("site"), Kind::Delay)
                .expect("fits");
        rule.ppm = u32::try_from(dice.below(1_000_001)).expect("small");
        rule.ms = dice.below(3_600_001) as u64;
        rule.phase =
            [None, Some(Phase::Sample), Some(Phase::Sort), Some(Phase::Merge)][dice.below(4)];
        rule.task = (dice.below(2) == 0).then(|| dice.below(1 << 31) as u32);
        rule.worker = (dice.below(2) == 0).then(|| format!("w{}", dice.below(100)));
        rule.key = (dice.below(2) == 0).then(|| "a/_b-c".to_owned());
        rule.times = (dice.below(2) == 0).then(|| dice.below(100) as u32);
        rule.after = dice.below(100) as u64;
        rule.from_ms = dice.below(10_000) as u64;
        rule.until_ms = (dice.below(2) == 0).then(|| dice.below(10_000) as u64);
        let plan = FaultPlan { seed, rules: vec![rule] };
        assert_eq!(plan.to_string().parse(), Ok(plan));
    }
}
