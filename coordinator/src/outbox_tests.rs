//! The outbox against streams that are away for a while, lose answers, or take nothing of a kind.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU32};

use muster_platform::clock::ManualClock;
use muster_platform::config::{Config, Profile};
use muster_platform::retry::Trouble;

use super::*;

/// Streams that know the ids of what they have. Each try takes a moment.
#[derive(Default)]
struct FakeStreams {
    /// Subjects that begin so are not taken.
    away: Mutex<Option<&'static str>>,
    /// Lose the answers to so many of the next that are stored.
    lose_answers: AtomicU32,
    /// Take nothing of more bytes, where there is a limit.
    bytes_max: Option<usize>,
    stored: Mutex<Vec<(String, serde_json::Value)>>,
    ids: Mutex<BTreeSet<String>>,
    tries: AtomicU32,
    /// More than one at a time was under way in one stream.
    overtaken: AtomicBool,
    under_way: Mutex<BTreeSet<bool>>,
}

const OF_EVENTS: &str = "muster.e";
const OF_LETTERS: &str = "muster.dlq";

#[async_trait]
impl Streams for FakeStreams {
    async fn store(&self, subject: &str, id: &str, bytes: Bytes) -> Result<()> {
        let of_events = subject.starts_with(OF_EVENTS);
        if !self.under_way.lock().expect("lock").insert(of_events) {
            self.overtaken.store(true, Ordering::SeqCst);
        }
        tokio::time::sleep(Duration::from_millis(3)).await;
        self.under_way.lock().expect("lock").remove(&of_events);
        self.tries.fetch_add(1, Ordering::SeqCst);
        if self.bytes_max.is_some_and(|bytes_max| bytes.len() > bytes_max) {
            return Err(Error::exhausted("too large"));
        }
        if self.away.lock().expect("lock").is_some_and(|away| subject.starts_with(away)) {
            return Err(Error::retry("no leader"));
        }
        if self.ids.lock().expect("lock").insert(id.to_owned()) {
            let told = serde_json::from_slice(&bytes).expect("JSON");
            self.stored.lock().expect("lock").push((subject.to_owned(), told));
        }
        let lost = self
            .lose_answers
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        lost.map_or(Ok(()), |_| Err(Error::retry("no answer")))
    }
}

struct Bench {
    streams: Arc<FakeStreams>,
    clock: Arc<ManualClock>,
    outbox: Outbox,
    _tasks: JoinSet<()>,
}

impl Bench {
    fn new(streams: FakeStreams) -> Self {
        let (streams, clock) = (Arc::new(streams), Arc::new(ManualClock::default()));
        let policy =
            Config::profile(Profile::Production).expect("settings").retry.of(Trouble::Nats).clone();
        let port: Arc<dyn Streams> = streams.clone();
        let (outbox, tasks) = Outbox::start(Names::new("muster"), &port, &policy, clock.clone());
        Self { streams, clock, outbox, _tasks: tasks }
    }

    fn away(&self, away: Option<&'static str>) {
        *self.streams.away.lock().expect("lock") = away;
    }

    /// Waits until so many tries were made.
    async fn tried(&self, tries: u32) {
        while self.streams.tries.load(Ordering::SeqCst) < tries {
            self.clock.pause(1).await;
        }
    }

    async fn flush(&self) {
        self.outbox.flush(Duration::from_secs(3600)).await;
        assert_eq!(
            (self.outbox.events.waiting(), self.outbox.letters.waiting()),
            (0, 0),
            "not all was told"
        );
        assert!(!self.streams.overtaken.load(Ordering::SeqCst), "one after another");
    }

    /// What is stored below a subject, each by its time and kind.
    fn stored(&self, below: &str) -> Vec<(u64, String)> {
        let stored = self.streams.stored.lock().expect("lock");
        let of_it = stored.iter().filter(|(subject, _)| subject.starts_with(below));
        let number = |told: &serde_json::Value| told["unix_ms"].as_u64().expect("a time");
        of_it
            .map(|(_, told)| (number(told), told["kind"].as_str().unwrap_or("letter").to_owned()))
            .collect()
    }

    fn text(&self, kind: &str) -> String {
        let stored = self.streams.stored.lock().expect("lock");
        let of_it = stored.iter().find(|(_, told)| told["kind"] == kind).expect("one of this kind");
        of_it.1["text"].as_str().expect("a text").to_owned()
    }
}

fn event(unix_ms: u64, text: &str) -> Event {
    let (severity, kind, text) = ("info".to_owned(), "test".to_owned(), text.to_owned());
    Event {
        unix_ms,
        epoch: 7,
        job: unix_ms.is_multiple_of(2).then(|| "j1".parse().expect("id")),
        severity,
        kind,
        text,
    }
}

fn letter(unix_ms: u64, error: &str) -> DeadLetter {
    let job = "j1".parse().expect("id");
    DeadLetter {
        unix_ms,
        epoch: 7,
        job,
        error: error.to_owned(),
        skipped_objects: vec![],
        attempts: vec![],
    }
}

fn of(kind: &str, times: impl IntoIterator<Item = u64>) -> Vec<(u64, String)> {
    times.into_iter().map(|unix_ms| (unix_ms, kind.to_owned())).collect()
}

#[tokio::test(start_paused = true)]
async fn what_happens_while_a_stream_is_away_comes_once_in_order_and_with_its_time() {
    let bench = Bench::new(FakeStreams::default());
    bench.outbox.event(&event(1, "before"));
    bench.flush().await;
    bench.away(Some("muster."));
    (2..6).for_each(|n| bench.outbox.event(&event(n, "while it is away")));
    bench.outbox.letter(&letter(6, "why"));
    bench.tried(10).await;
    assert_eq!(bench.stored(""), of("test", [1]));
    bench.outbox.event(&event(7, "later"));
    // What comes back first loses answers: the stream knows what it has.
    bench.streams.lose_answers.store(3, Ordering::SeqCst);
    bench.away(None);
    bench.flush().await;
    assert_eq!(bench.stored(OF_EVENTS), of("test", [1, 2, 3, 4, 5, 7]));
    assert_eq!(bench.stored(OF_LETTERS), of("letter", [6]));
}

#[tokio::test(start_paused = true)]
async fn one_stream_does_not_wait_for_another() {
    let bench = Bench::new(FakeStreams::default());
    for (away, below) in [(OF_LETTERS, OF_EVENTS), (OF_EVENTS, OF_LETTERS)] {
        bench.away(Some(away));
        bench.outbox.event(&event(1, ""));
        bench.outbox.letter(&letter(1, ""));
        while bench.stored(below).is_empty() {
            bench.clock.pause(1).await;
        }
        assert_eq!(bench.stored(away), []);
        bench.away(None);
        bench.flush().await;
        bench.streams.stored.lock().expect("lock").clear();
    }
}

#[tokio::test(start_paused = true)]
async fn beyond_the_bound_the_oldest_go_and_their_number_is_told_in_their_place() {
    let bench =
        Bench::new(FakeStreams { away: Mutex::new(Some("muster.")), ..FakeStreams::default() });
    let all = KEPT_MAX as u64 + 5;
    bench.outbox.event(&event(0, "the one under way"));
    bench.tried(1).await;
    (1..all).for_each(|n| bench.outbox.event(&event(n, "")));
    bench.tried(3).await;
    bench.away(None);
    bench.flush().await;
    let stored = bench.stored(OF_EVENTS);
    assert_eq!(stored[..3], [of("test", [0]), of("events-dropped", [1]), of("test", [6])].concat());
    assert_eq!((stored.len(), stored.last()), (KEPT_MAX + 1, of("test", [all - 1]).first()));
    assert!(
        bench.text("events-dropped").starts_with("5 events "),
        "{}",
        bench.text("events-dropped")
    );
    bench.outbox.event(&event(all, ""));
    bench.flush().await;
    assert_eq!(bench.stored(OF_EVENTS).len(), KEPT_MAX + 2, "they are told of once");
}

#[tokio::test(start_paused = true)]
async fn what_waits_is_bounded_in_bytes_too() {
    let bench =
        Bench::new(FakeStreams { away: Mutex::new(Some("muster.")), ..FakeStreams::default() });
    let text = "x".repeat(1 << 20);
    (1..=9).for_each(|n| bench.outbox.letter(&letter(n, &text)));
    assert_eq!(bench.outbox.letters.waiting(), 3, "of 4 MiB");
    bench.away(None);
    bench.flush().await;
    assert_eq!(bench.stored(OF_LETTERS), of("letter", [7, 8, 9]));
    assert_eq!(bench.stored(OF_EVENTS), of("letters-dropped", [1]));
    assert!(
        bench.text("letters-dropped").starts_with("6 dead letters "),
        "{}",
        bench.text("letters-dropped")
    );
}

#[tokio::test(start_paused = true)]
async fn what_no_stream_takes_holds_up_nothing_and_counts() {
    let bench = Bench::new(FakeStreams { bytes_max: Some(400), ..FakeStreams::default() });
    bench.outbox.event(&event(1, &"x".repeat(500)));
    bench.outbox.event(&event(2, ""));
    bench.outbox.event(&event(3, ""));
    bench.flush().await;
    assert_eq!(
        bench.stored(OF_EVENTS),
        [of("test", [2]), of("events-dropped", [1]), of("test", [3])].concat()
    );
}

#[tokio::test(start_paused = true)]
async fn a_deposed_leader_gives_up_after_a_while() {
    let back_within = |after_ms: u64| async move {
        let bench =
            Bench::new(FakeStreams { away: Mutex::new(Some("muster.")), ..FakeStreams::default() });
        (1..4).for_each(|n| bench.outbox.event(&event(n, "of the term")));
        bench.outbox.deposed();
        bench.outbox.event(&event(5, "that it is over"));
        bench.clock.advance_ms(after_ms);
        let tries = bench.streams.tries.load(Ordering::SeqCst);
        bench.tried(tries + 2).await;
        bench.away(None);
        bench.flush().await;
        bench.stored(OF_EVENTS)
    };
    assert_eq!(back_within(DEPOSED_MS - 1).await, of("test", [1, 2, 3, 5]));
    assert_eq!(
        back_within(DEPOSED_MS).await,
        [of("test", [5]), of("events-dropped", [1])].concat()
    );
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_process_waits_for_what_is_told_but_not_for_ever() {
    let bench =
        Bench::new(FakeStreams { away: Mutex::new(Some("muster.")), ..FakeStreams::default() });
    let began = tokio::time::Instant::now();
    bench.outbox.flush(Duration::from_millis(1500)).await;
    assert_eq!(began.elapsed(), Duration::ZERO, "there is nothing to wait for");
    bench.outbox.event(&event(1, ""));
    bench.outbox.flush(Duration::from_millis(1500)).await;
    assert_eq!((began.elapsed(), bench.stored("")), (Duration::from_millis(1500), vec![]));
    bench.away(None);
    bench.outbox.flush(Duration::from_secs(3600)).await;
    assert_eq!(bench.stored(""), of("test", [1]));
}
