//! Uploads that a leader opens for itself and names in no record: the manifest's, and those of
//! quarantined records. Nobody else knows them, so nobody else can abort them: their leader does,
//! at the latest when its term ends and its tasks are ended amid their work.

use std::sync::{Arc, Mutex, PoisonError};

use muster_platform::store::{BlobUrl, Blobs};
use muster_protocol::Result;

/// What is open of one leader's. Cloning shares it.
#[derive(Clone, Default)]
pub(super) struct OwnUploads(Arc<Mutex<Vec<Own>>>);

#[derive(Clone)]
struct Own {
    store: Arc<dyn Blobs>,
    url: BlobUrl,
    upload: String,
}

impl OwnUploads {
    /// Opens an upload, has `write` complete it, and aborts it where that fails, whoever leads by
    /// then.
    ///
    /// # Errors
    /// As `write` and opening do. What cannot be aborted is tried again at the end of the term.
    pub(super) async fn write<F>(
        &self,
        store: &Arc<dyn Blobs>,
        url: &BlobUrl,
        write: impl FnOnce(String) -> F,
    ) -> Result<()>
    where
        F: Future<Output = Result<()>>,
    {
        let upload = store.open_upload(url.key()).await.map_err(|e| e.at(url))?;
        let own = Own { store: store.clone(), url: url.clone(), upload: upload.clone() };
        self.open().push(own);
        let written = write(upload.clone()).await;
        if written.is_ok() {
            self.open().retain(|own| own.upload != upload);
        } else {
            self.abort(|own| own.upload == upload).await;
        }
        written
    }

    /// Aborts what is open still. A store that does not answer is not waited for: what is left
    /// there, `muster doctor --output` finds.
    pub(super) async fn abort_all(&self) {
        self.abort(|_| true).await;
    }

    async fn abort(&self, which: impl Fn(&Own) -> bool) {
        // Forgotten only when it is done: who is ended amid this leaves it to the end of the term.
        let found: Vec<Own> = self.open().iter().filter(|own| which(own)).cloned().collect();
        for Own { store, url, upload } in found {
            match store.abort_upload(url.key(), &upload).await {
                Ok(()) => self.open().retain(|own| own.upload != upload),
                Err(error) => {
                    tracing::warn!(%url, upload, %error, "an upload of this leader stays open");
                }
            }
        }
    }

    fn open(&self) -> std::sync::MutexGuard<'_, Vec<Own>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use muster_platform::adapters::memory::MemoryBlobs;
    use muster_protocol::Error;

    #[tokio::test]
    async fn what_is_ended_amid_its_work_is_taken_back_with_the_term() {
        let memory = Arc::new(MemoryBlobs::default());
        let store: Arc<dyn Blobs> = memory.clone();
        let url: BlobUrl = "memory:///out/_SUCCESS".parse().expect("url");
        let own = OwnUploads::default();
        let failed = own.write(&store, &url, |_| async { Err(Error::retry("no")) }).await;
        assert!(failed.is_err() && memory.open_uploads() == 0);
        let stuck = own.write(&store, &url, |_| std::future::pending());
        assert!(stuck.now_or_never().is_none());
        assert_eq!(memory.open_uploads(), 1, "its task has ended, and left it");
        own.abort_all().await;
        assert_eq!(memory.open_uploads(), 0);
    }
}
