//! What an attempt has put into stores and may have to take back.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use muster_platform::clock::{self, Clock};
use muster_protocol::Result;

use super::Object;

/// Bound of one removal with its repeats; what cannot be removed in time stays noted for the next
/// try, and is left to the leader after that. In milliseconds.
const REMOVAL_TIMEOUT_MS: u64 = 30_000;
/// Pause before a removal that failed in passing is tried again, and twice as long each time after
/// that. In milliseconds.
const REMOVAL_PAUSE_MS: u64 = 200;

/// Something in a store.
#[derive(Clone)]
pub(crate) enum Leftover {
    /// An object that stands.
    Object(Object),
    /// An upload that is open.
    Upload(Object, String),
}

impl Leftover {
    /// Removes it, however often the store fails in passing: what an attempt leaves after its job
    /// was cleaned, nobody else knows.
    async fn remove(&self, clock: &dyn Clock) -> Result<()> {
        let mut pause_ms = REMOVAL_PAUSE_MS;
        loop {
            match self.try_removing().await {
                Err(error) if error.kind.is_passing() => clock.pause(pause_ms).await,
                removed => return removed,
            }
            pause_ms = pause_ms.saturating_mul(2);
        }
    }

    async fn try_removing(&self) -> Result<()> {
        match self {
            Leftover::Object(object) => object.store.delete(object.key()).await,
            Leftover::Upload(object, upload) => {
                object.store.abort_upload(object.key(), upload).await
            }
        }
    }

    fn object(&self) -> &Object {
        match self {
            Leftover::Object(object) | Leftover::Upload(object, _) => object,
        }
    }
}

/// The list of an attempt's leftovers. Clones share it.
#[derive(Clone)]
pub(crate) struct Leftovers {
    clock: Arc<dyn Clock>,
    list: Arc<Mutex<Vec<Leftover>>>,
}

impl Leftovers {
    /// Nothing yet; `clock` says how long removing it may take.
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, list: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Leftover>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that an upload was opened.
    pub(crate) fn opened(&self, object: &Object, upload: &str) {
        self.lock().push(Leftover::Upload(object.clone(), upload.to_owned()));
    }

    /// Notes that the upload of an object was completed: the object stands instead.
    pub(crate) fn completed(&self, object: &Object) {
        let mut list = self.lock();
        list.retain(|leftover| leftover.object().url != object.url);
        list.push(Leftover::Object(object.clone()));
    }

    /// Removes everything that is noted, best effort: what fails is logged, and stays noted.
    pub(crate) async fn remove_all(&self) {
        let list = std::mem::take(&mut *self.lock());
        for leftover in list {
            let object = leftover.object();
            let removal = leftover.remove(&*self.clock);
            match clock::within(&*self.clock, REMOVAL_TIMEOUT_MS, removal).await {
                Some(Ok(())) => {
                    tracing::debug!(%object, "removed what an attempt left");
                    continue;
                }
                Some(Err(error)) => {
                    tracing::warn!(%object, %error, "cannot remove what an attempt left");
                }
                None => tracing::warn!(%object, "removing what an attempt left took too long"),
            }
            self.lock().push(leftover);
        }
    }

    /// Removes what is noted of one object, best effort.
    pub(crate) async fn remove(&self, object: &Object) {
        let of_object: Vec<Leftover> =
            self.lock().extract_if(.., |leftover| leftover.object().url == object.url).collect();
        let removed = Self { clock: self.clock.clone(), list: Arc::new(Mutex::new(of_object)) };
        removed.remove_all().await;
        self.lock().append(&mut removed.lock());
    }

    /// Forgets an object that stays.
    pub(crate) fn keep(&self, object: &Object) {
        self.lock().retain(|leftover| leftover.object().url != object.url);
    }

    /// Whether nothing is noted.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }
}
