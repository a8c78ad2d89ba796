//! Whether this leader still leads, asked of the journal before it touches what a later leader may own.
//!
//! The append is the fence for everything that is decided. What a leader does to stores between two appends (completing, deleting, aborting) has no such guard of its own:
//! a process that is stopped in the midst of it and wakes after a take-over would go on by name. So each such step first asks for the journal's newest record, which must
//! be of this leader's epoch. An answer serves for [`REUSE_MS`] and never across a pause of this process.
//!
//! What remains is one store call that was let through just before the process was stopped and goes out when it wakes. `ARCHITECTURE.md` says why each is harmless, and
//! where one is not.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use futures::future::{self, Either};
use muster_common::claim::{Claims, Held, Permit};
use muster_common::clock::Clock;
use muster_common::ids::Epoch;
use muster_common::ledger::{Ledger, Room};
use muster_common::{Error, ErrorKind, Result};
use tokio::sync::watch;

use crate::journal::record::JOURNAL_VERSION;

/// So long one answer serves several steps, in milliseconds.
const REUSE_MS: u64 = 100;
/// Bounds of the pause between two questions that go unanswered.
const BACKOFF: std::ops::RangeInclusive<u64> = 50..=1000;

/// One leader's question. Cloning shares it. It relies on no runtime: whoever polls it drives it.
#[derive(Clone)]
pub struct Fence {
    shared: Arc<Shared>,
    /// What this leader claims OUTPUTs by; none where nobody else could want them.
    claims: Option<Claims>,
    /// The claim that is looked at with each question.
    held: Option<Held>,
}

/// Who leads may write the deployment's claims.
#[async_trait]
impl Permit for Fence {
    async fn permitted(&self) -> Result<()> {
        self.check_epoch().await
    }
}

struct Shared {
    ledger: Arc<dyn Ledger>,
    clock: Arc<dyn Clock>,
    epoch: Epoch,
    /// Bound of one question. An answer that took longer says nothing about now.
    timeout_ms: u64,
    confirmed: Mutex<Option<Moment>>,
    over: watch::Sender<Option<Error>>,
}

/// Both clocks: one of them stands still while a machine is suspended, the other may be set.
#[derive(Clone, Copy)]
struct Moment {
    now_ms: u64,
    unix_ms: u64,
}

impl Moment {
    fn is_within(self, bound_ms: u64, later: Moment) -> bool {
        later.now_ms.saturating_sub(self.now_ms) <= bound_ms && later.unix_ms.abs_diff(self.unix_ms) <= bound_ms
    }
}

impl Fence {
    /// Whose epoch it guards.
    pub(super) fn epoch(&self) -> Epoch {
        self.shared.epoch
    }

    /// Asks this ledger for a leader of this epoch; one question takes no longer than `timeout_ms`.
    pub fn new(ledger: Arc<dyn Ledger>, clock: Arc<dyn Clock>, epoch: Epoch, timeout_ms: u64) -> Self {
        let (over, _) = watch::channel(None);
        let confirmed = Mutex::new(None);
        let shared = Arc::new(Shared { ledger, clock, epoch, timeout_ms, confirmed, over });
        Self { shared, claims: None, held: None }
    }

    /// The fence of a leader that claims OUTPUTs.
    #[must_use]
    pub fn claiming(mut self, claims: Claims) -> Self {
        self.claims = Some(claims);
        self
    }

    /// What this leader claims OUTPUTs by.
    pub fn claims(&self) -> Option<&Claims> {
        self.claims.as_ref()
    }

    /// The same, which also looks at a claim on OUTPUT with each question.
    pub(super) fn holding(&self, held: Held) -> Self {
        Self { held: Some(held), ..self.clone() }
    }

    /// Becomes an error once it is known that somebody else leads.
    pub fn watch(&self) -> watch::Receiver<Option<Error>> {
        self.shared.over.subscribe()
    }

    /// The error, once it is known that somebody else leads.
    pub fn over(&self) -> Option<Error> {
        self.shared.over.borrow().clone()
    }

    /// Returns when this leader is known to lead, and to hold OUTPUT where that is asked too. Waits for a journal that does not answer: without it nothing may be touched.
    ///
    /// # Errors
    /// `Fenced` where somebody else has begun an epoch; `Invalid` where somebody else has taken OUTPUT.
    pub async fn check(&self) -> Result<()> {
        self.check_epoch().await?;
        match &self.held {
            Some(held) => held.check().await,
            None => Ok(()),
        }
    }

    async fn check_epoch(&self) -> Result<()> {
        let shared = &self.shared;
        let mut pause_ms = *BACKOFF.start();
        loop {
            if let Some(error) = self.over() {
                return Err(error);
            }
            let asked = shared.moment();
            if shared.confirmed().is_some_and(|confirmed| confirmed.is_within(REUSE_MS, asked)) {
                return Ok(());
            }
            match shared.ask().await {
                Ok(()) => {
                    if asked.is_within(shared.timeout_ms, shared.moment()) {
                        *shared.confirmed.lock().unwrap_or_else(PoisonError::into_inner) = Some(asked);
                        return Ok(());
                    }
                }
                Err(error) if error.kind == ErrorKind::Fenced => {
                    shared.over.send_replace(Some(error.clone()));
                    return Err(error);
                }
                Err(error) => {
                    if pause_ms == *BACKOFF.start() {
                        tracing::warn!(%error, epoch = shared.epoch.0, "waiting for the journal, to be sure to lead still");
                    }
                    shared.clock.pause(pause_ms).await;
                    pause_ms = (pause_ms * 2).min(*BACKOFF.end());
                }
            }
        }
    }

    /// How full the journal is; none where it does not say.
    pub(super) async fn journal_room(&self) -> Option<Room> {
        let shared = &self.shared;
        match future::select(shared.ledger.room(), shared.clock.pause(shared.timeout_ms)).await {
            Either::Left((Ok(room), _)) => room,
            Either::Left((Err(error), _)) => {
                tracing::debug!(%error, "the journal does not say how full it is");
                None
            }
            Either::Right(_) => None,
        }
    }

    /// The same, whatever was answered before.
    ///
    /// # Errors
    /// As [`Fence::check`].
    pub async fn check_anew(&self) -> Result<()> {
        *self.shared.confirmed.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.check().await
    }
}

impl Shared {
    fn moment(&self) -> Moment {
        Moment { now_ms: self.clock.now_ms(), unix_ms: self.clock.unix_ms() }
    }

    fn confirmed(&self) -> Option<Moment> {
        *self.confirmed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask(&self) -> Result<()> {
        let newest = match future::select(self.ledger.newest(), self.clock.pause(self.timeout_ms)).await {
            Either::Left((newest, _)) => newest?,
            Either::Right(_) => return Err(Error::retry("the journal does not answer")),
        };
        let newest = newest.ok_or_else(|| Error::retry("the journal shows no record"))?;
        let Epoch(own) = self.epoch;
        match epoch_of(&newest.bytes) {
            Some(epoch) if epoch == self.epoch => Ok(()),
            Some(epoch) if epoch < self.epoch => {
                Err(Error::retry(format!("the journal shows epoch {epoch}, which is before epoch {own}")))
            }
            Some(epoch) => Err(Error::new(
                ErrorKind::Fenced,
                format!("epoch {own} is over: epoch {epoch} has begun (entry {})", newest.sequence),
            )),
            None => Err(Error::new(
                ErrorKind::Fenced,
                format!("epoch {own} is over: entry {} is not of this build's making", newest.sequence),
            )),
        }
    }
}

/// The epoch, with which entries of every version begin.
fn epoch_of(bytes: &[u8]) -> Option<Epoch> {
    let (version, body) = bytes.split_first()?;
    if *version > JOURNAL_VERSION {
        return None;
    }
    postcard::take_from_bytes(body).ok().map(|(epoch, _)| epoch)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
    use std::time::Duration;

    use async_trait::async_trait;
    use bytes::Bytes;
    use muster_common::adapters::memory::MemoryLedger;
    use muster_common::clock::ManualClock;
    use muster_common::ledger::{Appended, Entry};

    use super::*;
    use crate::journal::record::{self, Record};

    /// A fence whose leader leads, with the ledger in which somebody else may begin.
    pub(crate) async fn leading() -> (Fence, Arc<CountingLedger>, Arc<ManualClock>) {
        let ledger = Arc::new(CountingLedger::default());
        let clock = Arc::new(ManualClock::default());
        ledger.begin(Epoch(4)).await;
        (Fence::new(ledger.clone(), clock.clone(), Epoch(4), 500), ledger, clock)
    }

    /// Counts questions, and can be away.
    #[derive(Default)]
    pub(crate) struct CountingLedger {
        inner: MemoryLedger,
        asked: AtomicU32,
        away: AtomicBool,
    }

    impl CountingLedger {
        pub(crate) async fn begin(&self, epoch: Epoch) {
            let entry = record::Entry { epoch, nonce: 1, record: Record::EpochBegan { epoch, nonce: 2 } };
            let bytes = record::encode(&entry).expect("encode").into();
            let last = self.inner.last_sequence().await.expect("last");
            assert!(matches!(self.inner.append(last, bytes).await, Appended::Applied { .. }));
        }
    }

    #[async_trait]
    impl Ledger for CountingLedger {
        async fn read_from(&self, first_sequence: u64) -> Result<Vec<Entry>> {
            self.inner.read_from(first_sequence).await
        }

        async fn last_sequence(&self) -> Result<u64> {
            self.inner.last_sequence().await
        }

        async fn newest(&self) -> Result<Option<Entry>> {
            self.asked.fetch_add(1, Ordering::SeqCst);
            if self.away.load(Ordering::SeqCst) {
                return Err(Error::retry("away"));
            }
            self.inner.newest().await
        }

        async fn append(&self, expected_last: u64, bytes: Bytes) -> Appended {
            self.inner.append(expected_last, bytes).await
        }

        async fn purge_before(&self, first_kept: u64) -> Result<()> {
            self.inner.purge_before(first_kept).await
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_serves_for_a_moment() {
        let (fence, ledger, clock) = leading().await;
        for _ in 0..5 {
            fence.check().await.expect("leads");
        }
        assert_eq!(ledger.asked.load(Ordering::SeqCst), 1);
        clock.advance_ms(REUSE_MS + 1);
        fence.check().await.expect("leads");
        assert_eq!(ledger.asked.load(Ordering::SeqCst), 2);
        fence.check_anew().await.expect("leads");
        assert_eq!(ledger.asked.load(Ordering::SeqCst), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_newer_epoch_ends_it_for_all() {
        let (fence, ledger, clock) = leading().await;
        let other = fence.clone();
        fence.check().await.expect("leads");
        ledger.begin(Epoch(5)).await;
        clock.advance_ms(10_000);
        let error = fence.check().await.expect_err("fenced");
        assert!(error.kind == ErrorKind::Fenced && error.message.contains("epoch 5"), "{error}");
        assert_eq!(other.check().await, Err(error.clone()));
        assert_eq!(*other.watch().borrow(), Some(error));
    }

    #[tokio::test(start_paused = true)]
    async fn an_entry_of_a_newer_build_ends_it_too() {
        let (fence, ledger, _) = leading().await;
        let last = ledger.last_sequence().await.expect("last");
        ledger.append(last, Bytes::from_static(&[JOURNAL_VERSION + 1, 4, 0])).await;
        assert_eq!(fence.check().await.expect_err("fenced").kind, ErrorKind::Fenced);
    }

    #[tokio::test(start_paused = true)]
    async fn without_an_answer_it_waits() {
        let (fence, ledger, _) = leading().await;
        ledger.away.store(true, Ordering::SeqCst);
        let waiting = tokio::time::timeout(Duration::from_secs(30), fence.check()).await;
        assert!(waiting.is_err(), "it lets nothing through");
        ledger.away.store(false, Ordering::SeqCst);
        fence.check().await.expect("leads");
    }
}
