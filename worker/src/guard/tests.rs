use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use muster_platform::clock::{ManualClock, Pause};
use muster_platform::config::{Config, Profile};

use super::*;
use crate::testing::Shaky;

/// Time that passes only while something waits for it.
#[derive(Default)]
struct Waited {
    inner: Arc<ManualClock>,
    /// Pauses that are not shortened: those of hedges.
    real: bool,
}

impl Clock for Waited {
    fn now_ms(&self) -> u64 {
        self.inner.now_ms()
    }

    fn unix_ms(&self) -> u64 {
        self.inner.unix_ms()
    }

    fn random(&self) -> u64 {
        self.inner.random()
    }

    fn pause(&self, ms: u64) -> Pause {
        if self.real {
            return Box::pin(tokio::time::sleep(Duration::from_millis(ms)));
        }
        let inner = self.inner.clone();
        Box::pin(async move {
            tokio::task::yield_now().await;
            inner.advance_ms(ms);
        })
    }
}

fn hedge() -> Hedge {
    Config::profile(Profile::Testing).expect("settings").hedge
}

fn guarded(wait_max_ms: u64, real: bool) -> (Guards, Arc<Shaky>, Arc<dyn Blobs>) {
    let guards = Guards::new(hedge(), wait_max_ms, Arc::new(Waited { real, ..Waited::default() }));
    let shaky = Arc::new(Shaky::default());
    let store = guards.over(&Scheme::Memory, shaky.clone());
    (guards, shaky, store)
}

#[tokio::test]
async fn a_store_that_is_away_is_waited_for_without_a_failed_call() {
    let (guards, shaky, store) = guarded(600_000, false);
    store.put("a", Bytes::from_static(b"abc")).await.expect("put");
    shaky.failing_reads.store(12, Ordering::SeqCst);
    for _ in 0..FAILURES_MAX - 1 {
        store.read("a", 0..3, Access::Once).await.expect_err("the gate is open");
    }
    assert_eq!(guards.waiting_for(), None);
    assert_eq!(store.read("a", 0..3, Access::Once).await.expect("it came back"), "abc");
    assert_eq!((guards.waiting_for(), shaky.failing_reads.load(Ordering::SeqCst)), (None, 0));
}

#[tokio::test]
async fn the_wait_for_a_store_is_bounded_and_says_so() {
    let (guards, shaky, store) = guarded(20_000, false);
    shaky.away.store(true, Ordering::SeqCst);
    for _ in 0..FAILURES_MAX {
        let error = store.head("a").await.expect_err("away");
        assert_eq!(error.kind, ErrorKind::Retry);
    }
    assert_eq!(guards.waiting_for().as_deref(), Some("store memory://"));
    shaky.away.store(false, Ordering::SeqCst);
    assert_eq!(store.head("a").await.expect_err("none there").kind, ErrorKind::NotFound);
    assert_eq!(guards.waiting_for(), None, "an answer is an answer");
}

#[tokio::test]
async fn a_store_that_nobody_uses_is_found_to_be_back() {
    let (guards, shaky, store) = guarded(0, false);
    shaky.away.store(true, Ordering::SeqCst);
    while guards.waiting_for().is_none() {
        drop(tokio::time::timeout(Duration::from_millis(20), store.head("a")).await);
    }
    shaky.away.store(false, Ordering::SeqCst);
    while guards.waiting_for().is_some() {
        if guards.probe_due() {
            guards.probe().await;
        }
        guards.clock.pause(100).await;
    }
}

#[test]
fn a_shut_gate_lets_one_trial_through_at_a_time() {
    let mut state = State::default();
    for _ in 0..FAILURES_MAX {
        assert_eq!(state.admit(0), Ok(()));
        state.settle(0, "s", Some(ErrorKind::Retry));
    }
    assert!(state.admit(SHUT_MS - 1).is_err());
    assert_eq!(state.admit(SHUT_MS), Ok(()));
    assert!(state.admit(SHUT_MS).is_err(), "the trial is on its way");
    assert!(state.settle(SHUT_MS, "s", Some(ErrorKind::Retry)));
    assert!(state.admit(3 * SHUT_MS - 1).is_err(), "twice as long");
    assert_eq!(state.admit(3 * SHUT_MS), Ok(()));
    assert!(!state.settle(3 * SHUT_MS, "s", None));
    assert_eq!((state.admit(3 * SHUT_MS), state.admit(3 * SHUT_MS)), (Ok(()), Ok(())));
}

#[tokio::test]
async fn a_trial_that_was_cancelled_lets_another_begin() {
    let gate = Gate {
        name: "s".into(),
        store: Arc::new(Shaky::default()),
        state: Mutex::default(),
        hedged: AtomicU64::new(0),
    };
    for _ in 0..FAILURES_MAX {
        gate.lock().settle(0, "s", Some(ErrorKind::Retry));
    }
    assert_eq!(gate.lock().admit(SHUT_MS), Ok(()));
    drop(Pass { gate: &gate, answered: false });
    assert_eq!(gate.lock().admit(SHUT_MS), Ok(()));
}

/// Calls that are let through within a second, with answers of this kind.
fn calls(state: &mut State, second: u64, tries: u64, answer: Option<ErrorKind>) -> u64 {
    let through = (0..tries).filter(|try_| {
        let now_ms = second * 1000 + try_ * 1000 / tries;
        let admitted = state.admit(now_ms).is_ok();
        if admitted {
            state.settle(now_ms, "s", answer);
        }
        admitted
    });
    through.count() as u64
}

#[test]
fn throttling_halves_the_rate_and_calm_brings_it_back() {
    let mut state = State::default();
    assert_eq!(calls(&mut state, 1, 100, None), 100);
    calls(&mut state, 2, 100, Some(ErrorKind::Throttled));
    let halved = calls(&mut state, 3, 100, None);
    assert!((1..=60).contains(&halved), "{halved}");
    let later = (4..10).map(|second| calls(&mut state, second, 100, None)).last().expect("some");
    assert!(halved < later && later < 100, "{halved}, then {later}");
    calls(&mut state, 200, 100, None);
    assert_eq!(calls(&mut state, 201, 100, None), 100);
    assert!(state.throttled > 0);
}

#[test]
fn a_leaders_limit_holds_while_it_is_repeated() {
    let mut state = State { leader: Some((10.0, 1000)), ..State::default() };
    calls(&mut state, 1, 100, None);
    let through = calls(&mut state, 2, 100, None);
    assert!((9..=11).contains(&through), "{through}");
    assert_eq!(calls(&mut state, 32, 100, None), 100);
}

#[tokio::test]
async fn a_limit_of_the_leader_reaches_every_store() {
    let (guards, _, _store) = guarded(0, false);
    guards.limit(Some(7));
    assert_eq!(guards.lock()[&Scheme::Memory].lock().leader.map(|(limit, _)| limit), Some(7.0));
    guards.limit(None);
    assert_eq!(guards.lock()[&Scheme::Memory].lock().leader, None);
}

#[test]
fn second_requests_are_late_few_and_off_where_asked() {
    let hedge = Hedge {
        quantile_percent: 95,
        factor_percent: 300,
        after_min_ms: 50,
        samples_min: 20,
        share_percent: 5,
    };
    let mut state = State::default();
    (0..19).for_each(|ms| state.took(ms));
    assert_eq!(state.hedge_after_ms(&hedge), None, "too little is known");
    (0..80).for_each(|_| state.took(100));
    assert_eq!((state.hedge_after_ms(&hedge), state.latencies.len()), (Some(300), LATENCIES));
    assert_eq!(state.hedge_after_ms(&Hedge { share_percent: 0, ..hedge.clone() }), None);
    state.reads = 19;
    assert!(!state.begin_hedge(&hedge), "one in twenty");
    state.reads = 40;
    assert_eq!([(); 3].map(|()| state.begin_hedge(&hedge)), [true, true, false]);
    state.hedges_now = 0;
    assert!(!state.begin_hedge(&hedge));
}

/// A store whose first read of the next key never ends.
struct Slow {
    inner: Arc<Shaky>,
    hangs: AtomicU32,
}

#[async_trait]
impl Blobs for Slow {
    async fn list(&self, prefix: &str, limit: usize) -> Result<Vec<BlobMeta>> {
        self.inner.list(prefix, limit).await
    }

    async fn survey(&self, wanted: &Wanted) -> Result<Survey> {
        self.inner.survey(wanted).await
    }

    async fn head(&self, key: &str) -> Result<BlobMeta> {
        self.inner.head(key).await
    }

    async fn read(&self, key: &str, range: Range<u64>, access: Access) -> Result<Bytes> {
        if self
            .hangs
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1))
            .is_ok()
        {
            std::future::pending::<()>().await;
        }
        self.inner.read(key, range, access).await
    }

    async fn put(&self, key: &str, bytes: Bytes) -> Result<()> {
        self.inner.put(key, bytes).await
    }

    async fn open_upload(&self, key: &str) -> Result<String> {
        self.inner.open_upload(key).await
    }

    async fn upload_part(
        &self,
        key: &str,
        upload: &str,
        at: PartAt,
        data: Bytes,
    ) -> Result<String> {
        self.inner.upload_part(key, upload, at, data).await
    }

    async fn complete_upload(
        &self,
        key: &str,
        upload: &str,
        tags: &[String],
        bytes: u64,
        sync: bool,
    ) -> Result<Completed> {
        self.inner.complete_upload(key, upload, tags, bytes, sync).await
    }

    async fn abort_upload(&self, key: &str, upload: &str) -> Result<()> {
        self.inner.abort_upload(key, upload).await
    }

    async fn list_uploads(&self, prefix: &str, limit: usize) -> Result<Vec<OpenUpload>> {
        self.inner.list_uploads(prefix, limit).await
    }

    async fn delete(&self, key: &str) -> Result<()> {
        self.inner.delete(key).await
    }

    async fn prune(&self, prefix: &str) -> Result<()> {
        self.inner.prune(prefix).await
    }
}

#[tokio::test]
async fn a_read_that_hangs_is_overtaken_by_a_second_one() {
    let guards = Guards::new(hedge(), 0, Arc::new(Waited { real: true, ..Waited::default() }));
    let slow = Arc::new(Slow { inner: Arc::default(), hangs: AtomicU32::new(0) });
    let store = guards.over(&Scheme::Memory, slow.clone());
    store.put("a", Bytes::from_static(b"abc")).await.expect("put");
    for _ in 0..40 {
        store.read("a", 0..3, Access::Once).await.expect("read");
    }
    slow.hangs.store(1, Ordering::SeqCst);
    let read = tokio::time::timeout(Duration::from_secs(20), store.read("a", 0..3, Access::Once));
    assert_eq!(read.await.expect("overtaken").expect("read"), "abc");
    let gate = guards.lock()[&Scheme::Memory].clone();
    assert_eq!((gate.hedged.load(Ordering::Relaxed), gate.lock().hedges_now), (1, 0));
}

#[tokio::test]
async fn files_are_not_guarded() {
    let (guards, shaky, _) = guarded(0, false);
    let plain: Arc<dyn Blobs> = shaky;
    let store = guards.over(&Scheme::File, plain.clone());
    assert!(Arc::ptr_eq(&store, &plain));
}
