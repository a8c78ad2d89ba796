//! What an attempt has put into stores and may have to take back.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use muster_common::Result;

use super::Object;

/// Bound of one removal with its repeats; what cannot be removed in time stays noted for the next
/// try, and is left to the leader after that.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause before a removal that failed in passing is tried again, and twice as long each time after
/// that.
const REMOVAL_PAUSE: Duration = Duration::from_millis(200);

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
    async fn remove(&self) -> Result<()> {
        let mut pause = REMOVAL_PAUSE;
        loop {
            match self.try_removing().await {
                Err(error) if error.kind.is_passing() => tokio::time::sleep(pause).await,
                removed => return removed,
            }
            pause = pause.saturating_mul(2);
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
#[derive(Clone, Default)]
pub(crate) struct Leftovers {
    list: Arc<Mutex<Vec<Leftover>>>,
}

impl Leftovers {
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
            match tokio::time::timeout(REMOVAL_TIMEOUT, leftover.remove()).await {
                Ok(Ok(())) => {
                    tracing::debug!(%object, "removed what an attempt left");
                    continue;
                }
                Ok(Err(error)) => {
                    tracing::warn!(%object, %error, "cannot remove what an attempt left");
                }
                Err(_) => tracing::warn!(%object, "removing what an attempt left took too long"),
            }
            self.lock().push(leftover);
        }
    }

    /// Removes what is noted of one object, best effort.
    pub(crate) async fn remove(&self, object: &Object) {
        let of_object: Vec<Leftover> =
            self.lock().extract_if(.., |leftover| leftover.object().url == object.url).collect();
        let removed = Self { list: Arc::new(Mutex::new(of_object)) };
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
