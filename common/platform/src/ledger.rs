//! The port to the journal's stream: an append-only list with compare-and-set appends. What stands
//! in it is the coordinator's business.
//!
//! The fence is the expected last sequence: a leader that is no longer the newest finds its next
//! append refused. An append whose answer was lost is *unknown*, never failed; the caller reads the
//! tail and looks for its own record. Adapters: [`crate::adapters::journal`] (JetStream) and
//! [`crate::adapters::memory`].

use async_trait::async_trait;
use bytes::Bytes;

use muster_protocol::error::Result;

/// What became of an append.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Appended {
    /// It stands under this sequence number.
    Applied {
        /// Its sequence number.
        sequence: u64,
    },
    /// Another record stands where this one was expected to go; nothing was written.
    Conflict,
    /// No answer, or one that does not say: it may stand or not.
    Unknown {
        /// What was seen instead of an answer.
        why: String,
    },
    /// The stream is full; nothing was written.
    Full {
        /// The server's words.
        why: String,
    },
}

/// The bytes that an adapter gives for an entry that no leader appended: it stands in the stream,
/// takes a sequence number, and says nothing. They are no record of any version.
pub const FOREIGN: Bytes = Bytes::from_static(&[0]);

/// One record as it stands in the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its sequence number; they grow, with gaps only where a prefix was purged.
    pub sequence: u64,
    /// Its bytes.
    pub bytes: Bytes,
}

/// How full the ledger is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Bytes that it holds.
    pub bytes: u64,
    /// Bytes that it may hold.
    pub bytes_max: u64,
}

impl Room {
    /// What it holds in percent of what it may.
    pub fn used_percent(self) -> u32 {
        let percent = u128::from(self.bytes) * 100 / u128::from(self.bytes_max.max(1));
        u32::try_from(percent).unwrap_or(u32::MAX)
    }
}

/// The journal's stream.
#[async_trait]
pub trait Ledger: Send + Sync + 'static {
    /// Everything from `first_sequence` on, in order, up to what stood there when the call began.
    ///
    /// # Errors
    /// `Retry` where the server does not answer.
    async fn read_from(&self, first_sequence: u64) -> Result<Vec<Entry>>;

    /// The sequence number of the newest record ever written; 0 where there is none.
    ///
    /// # Errors
    /// `Retry` where the server does not answer.
    async fn last_sequence(&self) -> Result<u64>;

    /// The newest record; none where nothing stands. Cheap, and never answered from a copy that may
    /// be behind.
    ///
    /// # Errors
    /// `Retry` where the server does not answer.
    async fn newest(&self) -> Result<Option<Entry>> {
        let last = self.last_sequence().await?;
        Ok(self.read_from(last).await?.pop())
    }

    /// Appends a record if the newest one is `expected_last`.
    async fn append(&self, expected_last: u64, bytes: Bytes) -> Appended;

    /// How full it is; none where it has no bound.
    ///
    /// # Errors
    /// `Retry` where the server does not answer.
    async fn room(&self) -> Result<Option<Room>> {
        Ok(None)
    }

    /// Removes everything before `first_kept`.
    ///
    /// # Errors
    /// `Retry` where the server does not answer.
    async fn purge_before(&self, first_kept: u64) -> Result<()>;
}
