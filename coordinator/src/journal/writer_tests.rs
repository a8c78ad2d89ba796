//! The writer against a ledger that loses answers, and against a second leader.

use muster_platform::adapters::memory::{Lost, MemoryLedger};
use muster_platform::clock::ManualClock;
use muster_protocol::ids::JobId;

use std::sync::atomic::Ordering::SeqCst;

use super::*;

fn job(id: &str) -> JobId {
    id.parse().expect("job id")
}

fn forgotten(id: &str) -> Record {
    Record::JobForgotten { job: job(id) }
}

struct Bench {
    ledger: Arc<MemoryLedger>,
    clock: Arc<ManualClock>,
}

impl Bench {
    fn new() -> Self {
        Self { ledger: Arc::new(MemoryLedger::default()), clock: Arc::default() }
    }

    async fn read(&self) -> Result<Candidate> {
        let (stalled, _) = watch::channel(None);
        JournalWriter::read(
            self.ledger.clone(),
            self.clock.clone(),
            Duration::from_secs(1),
            stalled,
        )
        .await
    }

    async fn begin(&self) -> (JournalWriter, Replayed) {
        self.read().await.expect("read").begin().await.expect("begin")
    }

    async fn kinds(&self) -> Vec<String> {
        let entries = self.ledger.read_from(1).await.expect("read");
        entries
            .iter()
            .map(|entry| record::decode(&entry.bytes).expect("decode"))
            .map(|entry| format!("e{} {}", entry.epoch, entry.record.kind()))
            .collect()
    }
}

#[tokio::test(start_paused = true)]
async fn a_journal_begins_with_its_deployment_and_epochs_grow() {
    let bench = Bench::new();
    let (first, replayed) = bench.begin().await;
    assert_eq!(first.epoch(), Epoch(1));
    let deployment = replayed.durable.deployment.clone().expect("deployment");
    let (second, replayed) = bench.begin().await;
    assert_eq!(
        (second.epoch(), replayed.durable.deployment),
        (Epoch(2), Some(deployment)),
        "it is minted once"
    );
    assert_eq!(bench.kinds().await, ["e0 deployment-created", "e1 epoch-began", "e2 epoch-began"]);
}

#[tokio::test(start_paused = true)]
async fn the_older_leader_is_fenced() {
    let bench = Bench::new();
    let (mut old, _) = bench.begin().await;
    old.append(&forgotten("a")).await.expect("append");
    let (mut new, _) = bench.begin().await;
    let error = old.append(&forgotten("b")).await.expect_err("fenced");
    assert!(
        error.kind == ErrorKind::Fenced && error.message.contains("epoch 1 is over"),
        "{error}"
    );
    new.append(&forgotten("c")).await.expect("append");
    assert_eq!(bench.kinds().await.len(), 5);
}

#[tokio::test(start_paused = true)]
async fn of_two_that_read_the_same_journal_one_begins() {
    let bench = Bench::new();
    for epoch in [1, 2] {
        let (first, second) =
            (bench.read().await.expect("read"), bench.read().await.expect("read"));
        assert_eq!(first.begin().await.expect("begin").0.epoch(), Epoch(epoch));
        assert_eq!(second.begin().await.err().expect("beaten").kind, ErrorKind::Fenced);
    }
    assert_eq!(bench.kinds().await, ["e0 deployment-created", "e1 epoch-began", "e2 epoch-began"]);
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_is_neither_lost_nor_doubled() {
    let bench = Bench::new();
    let (mut writer, _) = bench.begin().await;
    for how in [Lost::Applied, Lost::NotApplied] {
        bench.ledger.lose_next(how);
        let before = bench.ledger.last_sequence().await.expect("last");
        let sequence = writer.append(&forgotten("a")).await.expect("append");
        assert_eq!(sequence, before + 1, "{how:?}");
        assert_eq!(
            bench.ledger.last_sequence().await.expect("last"),
            before + 1,
            "{how:?}: it stands once"
        );
    }
    for how in [Lost::NotApplied, Lost::NotApplied, Lost::Applied] {
        bench.ledger.lose_next(how);
    }
    let before = bench.ledger.last_sequence().await.expect("last");
    writer.append(&forgotten("b")).await.expect("append");
    assert_eq!(bench.ledger.last_sequence().await.expect("last"), before + 1);
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_after_a_take_over_is_a_fence() {
    let bench = Bench::new();
    let (mut old, _) = bench.begin().await;
    let _new = bench.begin().await;
    bench.ledger.lose_next(Lost::NotApplied);
    assert_eq!(old.append(&forgotten("a")).await.expect_err("fenced").kind, ErrorKind::Fenced);
}

#[tokio::test(start_paused = true)]
async fn the_beginning_of_an_epoch_survives_lost_answers() {
    for how in [Lost::Applied, Lost::NotApplied] {
        let bench = Bench::new();
        bench.ledger.lose_next(how);
        let (writer, replayed) = bench.begin().await;
        assert_eq!((writer.epoch(), replayed.durable.epoch), (Epoch(1), Epoch(1)));
        assert_eq!(bench.kinds().await.len(), 2, "{how:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_purged_journal_goes_on() {
    let bench = Bench::new();
    let (mut writer, replayed) = bench.begin().await;
    for piece in crate::journal::fold::snapshot(&replayed.durable, 1).expect("snapshot") {
        let first = writer.append(&piece).await.expect("append");
        bench.ledger.purge_before(first).await.expect("purge");
    }
    writer.append(&Record::EpochBegan { epoch: Epoch(7), nonce: 1 }).await.expect("append");
    let (next, after) = bench.begin().await;
    assert_eq!((next.epoch(), after.durable.deployment), (Epoch(8), replayed.durable.deployment));
    assert_eq!(bench.kinds().await, ["e1 snapshot", "e1 epoch-began", "e8 epoch-began"]);
}

#[tokio::test(start_paused = true)]
async fn a_journal_of_a_newer_build_is_refused() {
    let bench = Bench::new();
    bench.begin().await;
    let last = bench.ledger.last_sequence().await.expect("last");
    bench.ledger.append(last, Bytes::from_static(&[99, 1, 2])).await;
    let error = bench.read().await.err().expect("refused");
    assert!(
        error.kind == ErrorKind::Invalid
            && error.message.contains("entry 3")
            && error.message.contains("version 99"),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn the_writers_task_keeps_the_order_and_ends_when_fenced() {
    let bench = Bench::new();
    let (writer, _) = bench.begin().await;
    let (orders, taken) = mpsc::unbounded_channel();
    let (answers, mut written) = mpsc::unbounded_channel();
    let task = tokio::spawn(writer.serve(taken, answers));
    for token in 0..10 {
        orders.send(Order::Append { token, record: Box::new(forgotten("a")) }).expect("send");
    }
    for expected in 0..10 {
        assert!(matches!(
            written.recv().await,
            Some(Written::Applied { token, sequence })
                if token == expected && sequence == expected + 3
        ));
    }
    let _new = bench.begin().await;
    orders.send(Order::Append { token: 10, record: Box::new(forgotten("b")) }).expect("send");
    orders.send(Order::Append { token: 11, record: Box::new(forgotten("b")) }).expect("send");
    assert!(matches!(
        written.recv().await,
        Some(Written::Stopped { error }) if error.kind == ErrorKind::Fenced
    ));
    assert!(written.recv().await.is_none());
    task.await.expect("task");
}

/// A ledger whose first reads come from a replica that has nothing yet, and in which somebody else
/// may be quicker.
#[derive(Default)]
struct Lagging {
    inner: MemoryLedger,
    lags: std::sync::atomic::AtomicU32,
    races: std::sync::atomic::AtomicBool,
}

#[async_trait::async_trait]
impl Ledger for Lagging {
    async fn read_from(&self, first: u64) -> Result<Vec<muster_platform::ledger::Entry>> {
        let entries = self.inner.read_from(first).await?;
        let lags = self.lags.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok();
        Ok(if lags { Vec::new() } else { entries })
    }

    async fn last_sequence(&self) -> Result<u64> {
        self.inner.last_sequence().await
    }

    async fn newest(&self) -> Result<Option<muster_platform::ledger::Entry>> {
        let newest = self.inner.newest().await?;
        if self.races.swap(false, SeqCst) {
            let record = Record::DeploymentCreated { deployment: "d1".parse().expect("id") };
            let entry =
                record::encode(&Entry { epoch: Epoch(0), nonce: 1, record }).expect("encode");
            self.inner.append(self.inner.last_sequence().await?, entry.into()).await;
        }
        Ok(newest)
    }

    async fn append(&self, expected_last: u64, bytes: Bytes) -> Appended {
        self.inner.append(expected_last, bytes).await
    }

    async fn purge_before(&self, first_kept: u64) -> Result<()> {
        self.inner.purge_before(first_kept).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_lagging_replica_is_not_an_empty_journal() {
    let ledger = Arc::new(Lagging::default());
    let clock = Arc::new(ManualClock::default());
    let begin = || {
        let (stalled, _) = watch::channel(None);
        JournalWriter::begin(ledger.clone(), clock.clone(), Duration::from_secs(1), stalled)
    };
    let (_, first) = begin().await.expect("begin");
    for (lags, epoch) in [(3, 2), (100, 3)] {
        ledger.lags.store(lags, SeqCst);
        let (next, replayed) = begin().await.expect("begin");
        assert_eq!(
            (next.epoch(), &replayed.durable.deployment),
            (Epoch(epoch), &first.durable.deployment)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn of_two_that_find_the_journal_empty_one_makes_the_deployment() {
    let ledger = Arc::new(Lagging::default());
    ledger.races.store(true, SeqCst);
    let (stalled, _) = watch::channel(None);
    let clock = Arc::new(ManualClock::default());
    let begun = JournalWriter::begin(ledger.clone(), clock, Duration::from_secs(1), stalled).await;
    assert_eq!(begun.err().expect("beaten").kind, ErrorKind::Fenced);
    assert_eq!(ledger.last_sequence().await.expect("last"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_journal_that_was_emptied_by_hand_begins_anew() {
    let bench = Bench::new();
    let (_, first) = bench.begin().await;
    let last = bench.ledger.last_sequence().await.expect("last");
    bench.ledger.purge_before(last + 1).await.expect("purge");
    let (next, replayed) = bench.begin().await;
    assert_eq!(next.epoch(), Epoch(1));
    assert_ne!(replayed.durable.deployment, first.durable.deployment);
}
