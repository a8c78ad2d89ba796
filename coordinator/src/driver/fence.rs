//! Whether this leader still leads, asked of the journal before it touches what a later leader may
//! own.
//!
//! The append is the fence for everything that is decided. What a leader does to stores between two
//! appends (completing, deleting, aborting) has no such guard of its own: a process that is stopped
//! in the midst of it and wakes after a take-over would go on by name. So each such step first
//! asks, by an append: a tiny record
//! ([`Record::StillLeads`](crate::journal::record::Record::StillLeads)) under the same guard as all
//! others, which a majority of the journal's servers must take. Reading will not do: the stream's
//! leader of before, cut off with its coordinator, answers reads for seconds while the others have
//! chosen another. Any record that is acknowledged serves as well
//! ([`standing`](crate::journal::standing)), one answer serves for [`REUSE_MS`], never across a
//! pause of this process, and one question is under way at a time; so the journal takes at most ten
//! such records a second, and only while stores are changed.
//!
//! To *notice* a take-over early, without changing anything, a leader also looks at the newest
//! record now and then ([`Fence::look`]).
//!
//! What remains is one store call that was let through just before the process was stopped and goes
//! out when it wakes. `docs/design/leader.md` says why each is harmless, and where one is not.

use std::sync::Arc;

use async_trait::async_trait;
use futures::channel::oneshot;
use futures::future::{self, Either};
use futures::lock::Mutex;
use muster_platform::claim::{Claims, Held, Permit};
use muster_platform::clock::Clock;
use muster_platform::ledger::{Ledger, Room};
use muster_protocol::ids::Epoch;
use muster_protocol::planted::{self, Bug};
use muster_protocol::{Error, ErrorKind, Result};
use tokio::sync::{mpsc, watch};

use super::own::OwnUploads;

use crate::journal::record::JOURNAL_VERSION;
use crate::journal::standing::{Moment, Standing};
use crate::journal::writer::Order;

/// So long one answer serves several steps, in milliseconds.
const REUSE_MS: u64 = 100;
/// Bounds of the pause between two looks that go unanswered.
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
        self.check_epoch(false).await
    }
}

struct Shared {
    ledger: Arc<dyn Ledger>,
    clock: Arc<dyn Clock>,
    epoch: Epoch,
    /// Bound of one question. An answer that took longer says nothing about now.
    timeout_ms: u64,
    standing: Arc<Standing>,
    /// The writer of the journal, as long as the leader has one.
    orders: mpsc::WeakUnboundedSender<Order>,
    /// One question at a time: who waits finds the answer that another one got.
    asking: Mutex<()>,
    over: watch::Sender<Option<Error>>,
    own: OwnUploads,
}

impl Fence {
    /// Whose epoch it guards.
    pub(super) fn epoch(&self) -> Epoch {
        self.shared.epoch
    }

    /// For a leader of this epoch: asks the writer of its journal, which takes these orders and
    /// says in `standing` when it last knew; looks at this ledger. One question takes no longer
    /// than `timeout_ms`.
    pub fn new(
        ledger: Arc<dyn Ledger>,
        (orders, standing): (&mpsc::UnboundedSender<Order>, Arc<Standing>),
        clock: Arc<dyn Clock>,
        epoch: Epoch,
        timeout_ms: u64,
    ) -> Self {
        let (over, _) = watch::channel(None);
        let (orders, asking) = (orders.downgrade(), Mutex::new(()));
        let own = OwnUploads::default();
        let shared = Arc::new(Shared {
            ledger,
            clock,
            epoch,
            timeout_ms,
            standing,
            orders,
            asking,
            over,
            own,
        });
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

    /// What this leader has opened and nobody else knows.
    pub(super) fn own(&self) -> &OwnUploads {
        &self.shared.own
    }

    /// The term is over and its tasks are ended: takes back what none but this leader can.
    pub async fn leave(&self) {
        self.shared.own.abort_all().await;
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

    /// Returns when this leader is known to lead, and to hold OUTPUT where that is asked too. Waits
    /// for a journal that does not answer: without it nothing may be touched.
    ///
    /// # Errors
    /// `Fenced` where somebody else has begun an epoch, or the term is over; `Invalid` where
    /// somebody else has taken OUTPUT.
    pub async fn check(&self) -> Result<()> {
        self.ask_both(false, || self.check_claim()).await
    }

    /// The same, whatever was answered before.
    ///
    /// # Errors
    /// As [`Fence::check`].
    pub async fn check_anew(&self) -> Result<()> {
        self.ask_both(true, || self.check_claim()).await
    }

    /// The claim first: its answer serves for as long as nobody else may take it, and a slow store
    /// may need that long for it. What it says of the epoch is fresh.
    async fn ask_both<F>(&self, anew: bool, claim: impl Fn() -> F) -> Result<()>
    where
        F: Future<Output = Result<()>>,
    {
        loop {
            claim().await?;
            let looked = self.shared.moment();
            self.check_epoch(anew).await?;
            // A journal that was away for longer has let the claim's answer grow old.
            if self.held.is_none() || looked.is_within(self.shared.timeout_ms, self.shared.moment())
            {
                return Ok(());
            }
        }
    }

    async fn check_claim(&self) -> Result<()> {
        match &self.held {
            Some(held) => held.check().await,
            None => Ok(()),
        }
    }

    async fn check_epoch(&self, anew: bool) -> Result<()> {
        let shared = &self.shared;
        let _one = shared.asking.lock().await;
        let known = |now: Moment| {
            shared.standing.confirmed().is_some_and(|confirmed| confirmed.is_within(REUSE_MS, now))
        };
        loop {
            if let Some(error) = self.over() {
                return Err(error);
            }
            let asked = shared.moment();
            if !anew && known(asked) || self.ask(asked).await? {
                return Ok(());
            }
        }
    }

    /// Asks by an append. `false` where the answer took too long to say anything about now.
    async fn ask(&self, asked: Moment) -> Result<bool> {
        let shared = &self.shared;
        if planted::is(Bug::FenceByReading) {
            self.look().await?;
            shared.standing.confirm(asked);
            return Ok(true);
        }
        let over = || {
            Error::new(
                ErrorKind::Fenced,
                format!("epoch {} is over: its journal is not written any more", shared.epoch),
            )
        };
        let (answer, answered) = oneshot::channel();
        // The leader itself holds the sender; without it nothing may go on.
        let orders = shared.orders.upgrade().ok_or_else(over)?;
        orders.send(Order::Ask { asked, answer }).map_err(|_| over())?;
        drop(orders);
        answered.await.map_err(|_| self.over().unwrap_or_else(over))?;
        Ok(shared.standing.is_since(asked) && asked.is_within(shared.timeout_ms, shared.moment()))
    }

    /// Looks whether somebody else is known to lead: by reading, which costs the journal nothing,
    /// and lets nothing through, because who is cut off may be answered with what was. Waits for a
    /// journal that does not answer.
    ///
    /// # Errors
    /// `Fenced` where somebody else has begun an epoch.
    pub async fn look(&self) -> Result<()> {
        let shared = &self.shared;
        let mut pause_ms = *BACKOFF.start();
        loop {
            if let Some(error) = self.over() {
                return Err(error);
            }
            match shared.newest_is_ours().await {
                Ok(()) => return Ok(()),
                Err(error) if error.kind == ErrorKind::Fenced => {
                    shared.over.send_replace(Some(error.clone()));
                    return Err(error);
                }
                Err(error) => {
                    if pause_ms == *BACKOFF.start() {
                        tracing::warn!(%error, epoch = shared.epoch.0, "waiting for the journal, \
                            to see who leads");
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
}

impl Shared {
    fn moment(&self) -> Moment {
        Moment::of(&*self.clock)
    }

    async fn newest_is_ours(&self) -> Result<()> {
        let newest =
            match future::select(self.ledger.newest(), self.clock.pause(self.timeout_ms)).await {
                Either::Left((newest, _)) => newest?,
                Either::Right(_) => return Err(Error::retry("the journal does not answer")),
            };
        let newest = newest.ok_or_else(|| Error::retry("the journal shows no record"))?;
        let Epoch(own) = self.epoch;
        match epoch_of(&newest.bytes) {
            Some(epoch) if epoch == self.epoch => Ok(()),
            Some(epoch) if epoch < self.epoch => Err(Error::retry(format!(
                "the journal shows epoch {epoch}, which is before epoch {own}"
            ))),
            Some(epoch) => Err(Error::new(
                ErrorKind::Fenced,
                format!("epoch {own} is over: epoch {epoch} has begun (entry {})", newest.sequence),
            )),
            None => Err(Error::new(
                ErrorKind::Fenced,
                format!(
                    "epoch {own} is over: entry {} is not of this build's making",
                    newest.sequence
                ),
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
    use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
    use std::time::Duration;

    use async_trait::async_trait;
    use bytes::Bytes;
    use muster_platform::adapters::memory::{MemoryBlobs, MemoryLedger};
    use muster_platform::buffer::BufferPool;
    use muster_platform::claim::Owner;
    use muster_platform::claim::judge::Known;
    use muster_platform::clock::ManualClock;
    use muster_platform::config::{Config, Profile};
    use muster_platform::ledger::{Appended, Entry};
    use muster_platform::store::Scheme;
    use muster_platform::stores::Stores;

    use super::*;
    use crate::journal::record::{self, Record};
    use crate::journal::writer::{JournalWriter, Written};

    /// A fence whose leader leads, with the ledger in which somebody else may begin. Its writer
    /// ends with the test's runtime.
    pub(crate) async fn leading() -> (Fence, Arc<CountingLedger>, Arc<ManualClock>) {
        let ledger = Arc::new(CountingLedger::default());
        let clock = ledger.clock.clone();
        let (stalled, _) = watch::channel(None);
        let timeout = Duration::from_millis(200);
        for _ in 0..3 {
            JournalWriter::begin(ledger.clone(), clock.clone(), timeout, stalled.clone())
                .await
                .expect("an epoch");
        }
        let (writer, _) = JournalWriter::begin(ledger.clone(), clock.clone(), timeout, stalled)
            .await
            .expect("an epoch");
        assert_eq!(writer.epoch(), Epoch(4));
        let (orders, taken) = mpsc::unbounded_channel();
        let (answers, written) = mpsc::unbounded_channel();
        let standing = writer.standing();
        let fence = Fence::new(ledger.clone(), (&orders, standing), clock.clone(), Epoch(4), 500);
        let over = fence.clone();
        tokio::spawn(async move {
            let mut written = written;
            let _orders = orders;
            writer.serve(taken, answers).await;
            // As the driver does, who ends the term.
            if let Ok(Written::Stopped { error }) = written.try_recv() {
                over.shared.over.send_replace(Some(error));
            }
        });
        ledger.asked.store(0, Ordering::SeqCst);
        clock.advance_ms(REUSE_MS + 1);
        (fence, ledger, clock)
    }

    /// Counts appends, and can be away, slow, or show to readers what was.
    #[derive(Default)]
    pub(crate) struct CountingLedger {
        inner: MemoryLedger,
        clock: Arc<ManualClock>,
        /// So long the next append takes.
        slow_ms: AtomicU64,
        asked: AtomicU32,
        away: AtomicBool,
        /// The entry that reads show as the newest; 0 is the newest.
        shows: AtomicU64,
    }

    impl CountingLedger {
        pub(crate) async fn begin(&self, epoch: Epoch) {
            let entry =
                record::Entry { epoch, nonce: 1, record: Record::EpochBegan { epoch, nonce: 2 } };
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
            if self.away.load(Ordering::SeqCst) {
                return Err(Error::retry("away"));
            }
            match self.shows.load(Ordering::SeqCst) {
                0 => self.inner.newest().await,
                stale => Ok(self
                    .inner
                    .read_from(1)
                    .await?
                    .into_iter()
                    .find(|entry| entry.sequence == stale)),
            }
        }

        async fn append(&self, expected_last: u64, bytes: Bytes) -> Appended {
            self.asked.fetch_add(1, Ordering::SeqCst);
            if self.away.load(Ordering::SeqCst) {
                return Appended::Unknown { why: "away".to_owned() };
            }
            self.clock.advance_ms(self.slow_ms.swap(0, Ordering::SeqCst));
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
        clock.advance_ms(1);
        fence.check_anew().await.expect("leads");
        assert_eq!(ledger.asked.load(Ordering::SeqCst), 3);
        // Many at once ask once.
        clock.advance_ms(REUSE_MS + 1);
        let all = futures::future::join_all((0..20).map(|_| fence.check())).await;
        assert!(all.iter().all(Result::is_ok));
        assert_eq!(ledger.asked.load(Ordering::SeqCst), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn an_epoch_that_begins_while_a_slow_store_is_asked_for_the_claim_is_seen() {
        let (fence, ledger, clock) = leading().await;
        let slow = || async {
            clock.advance_ms(10_000);
            ledger.begin(Epoch(5)).await;
            Ok(())
        };
        assert_eq!(fence.ask_both(true, slow).await.expect_err("fenced").kind, ErrorKind::Fenced);
    }

    /// What a pool, or a run here, claims OUTPUTs by.
    pub(crate) fn claims(clock: &Arc<ManualClock>, run_here: bool) -> Claims {
        let config = Config::profile(Profile::Testing).expect("settings");
        let owner = Owner { run_here, ..Owner::default() };
        let (id, look) = ("d1".parse().expect("id"), |_: &_, _: &_| Known::Unknown);
        Claims::new(id, owner, look, |_| {}, clock.clone(), config.claim)
    }

    /// A claim on OUTPUT that is held, so that it is looked at with each question.
    async fn held(clock: &Arc<ManualClock>) -> Held {
        let config = Config::profile(Profile::Testing).expect("settings");
        let stores = Stores::new(BufferPool::new(0), &config.store);
        stores.insert(Scheme::Memory, Arc::new(MemoryBlobs::default())).await;
        let claims = claims(clock, false);
        let (output, job) = ("memory:///out".parse().expect("url"), "j1".parse().expect("id"));
        claims.confirm(&stores, (&output, &job), None, &()).await.expect("nobody else wants it")
    }

    /// Somebody else may have taken OUTPUT while the journal was away.
    #[tokio::test(start_paused = true)]
    async fn a_claim_is_asked_for_again_after_a_journal_that_was_away() {
        let (fence, ledger, clock) = leading().await;
        let fence = fence.holding(held(&clock).await);
        let asked = AtomicU32::new(0);
        let claim = |lost_at: u32| {
            let asked = &asked;
            move || async move {
                match asked.fetch_add(1, Ordering::SeqCst) {
                    number if number == lost_at => Err(Error::invalid("OUTPUT is another's")),
                    _ => Ok(()),
                }
            }
        };
        let timeout_ms = fence.shared.timeout_ms;
        for (slow_ms, expect) in [(0, 1), (timeout_ms, 1), (timeout_ms + 1, 2), (60_000, 2)] {
            clock.advance_ms(REUSE_MS + 1);
            ledger.slow_ms.store(slow_ms, Ordering::SeqCst);
            asked.store(0, Ordering::SeqCst);
            fence.ask_both(true, claim(u32::MAX)).await.expect("leads and holds");
            assert_eq!(asked.load(Ordering::SeqCst), expect, "{slow_ms} ms");
        }
        ledger.slow_ms.store(timeout_ms + 1, Ordering::SeqCst);
        asked.store(0, Ordering::SeqCst);
        let lost = fence.ask_both(true, claim(1)).await.expect_err("it is another's by now");
        assert_eq!(lost.kind, ErrorKind::Invalid);
    }

    #[tokio::test(start_paused = true)]
    async fn a_newer_epoch_ends_it_for_all() {
        let (fence, ledger, clock) = leading().await;
        let other = fence.clone();
        fence.check().await.expect("leads");
        ledger.begin(Epoch(5)).await;
        clock.advance_ms(10_000);
        assert_eq!(fence.check().await.expect_err("fenced").kind, ErrorKind::Fenced);
        assert_eq!(other.check().await.expect_err("fenced").kind, ErrorKind::Fenced);
        assert_eq!(fence.check_anew().await.expect_err("fenced").kind, ErrorKind::Fenced);
    }

    /// The newest record that a leader is shown says nothing where a minority of the journal's
    /// servers shows it: nothing is let through.
    #[tokio::test(start_paused = true)]
    async fn what_a_minority_shows_lets_nothing_through() {
        let (fence, ledger, clock) = leading().await;
        fence.check().await.expect("leads");
        ledger.shows.store(ledger.last_sequence().await.expect("last"), Ordering::SeqCst);
        ledger.begin(Epoch(5)).await;
        clock.advance_ms(REUSE_MS + 1);
        fence.look().await.expect("whoever only looks sees nothing of it");
        assert_eq!(fence.check().await.expect_err("fenced").kind, ErrorKind::Fenced);
    }

    #[tokio::test(start_paused = true)]
    async fn who_looks_sees_a_newer_epoch_and_an_entry_of_a_newer_build() {
        let (fence, ledger, _) = leading().await;
        fence.look().await.expect("leads");
        ledger.begin(Epoch(5)).await;
        let error = fence.look().await.expect_err("fenced");
        assert!(error.kind == ErrorKind::Fenced && error.message.contains("epoch 5"), "{error}");
        assert_eq!(*fence.watch().borrow(), Some(error));
        let (fence, ledger, _) = leading().await;
        let last = ledger.last_sequence().await.expect("last");
        ledger.append(last, Bytes::from_static(&[JOURNAL_VERSION + 1, 4, 0])).await;
        assert_eq!(fence.look().await.expect_err("fenced").kind, ErrorKind::Fenced);
        assert_eq!(ledger.asked.load(Ordering::SeqCst), 1, "looking appends nothing");
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
