//! Credentials that are neither in the environment themselves nor come from a profile: of a role
//! that a web identity stands for, of a container, of an instance.
//!
//! `object_store` finds them; here their absence gets words of its own, in place of the address of
//! a metadata service that nobody has asked for, and what comes is checked before it goes into
//! headers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use object_store::aws::{AmazonS3Builder, AwsCredential, AwsCredentialProvider};
use object_store::{CredentialProvider, RetryConfig};

use super::failure::{Cause, Failure};
use super::settings::{Keys, Settings};
use muster_protocol::error::Result;

/// Requests that are repeated to find credentials, and for how long: where nothing answers there
/// are none.
const RETRIES_MAX: usize = 1;
const RETRY_TIMEOUT: Duration = Duration::from_secs(2);

/// Credentials of a source that may have none.
#[derive(Debug)]
pub(super) struct Found {
    source: AwsCredentialProvider,
    /// In words.
    whence: &'static str,
    given_before: AtomicBool,
}

/// Where credentials come from that are not among the settings. Nothing is sent yet.
///
/// # Errors
/// That of the client, where it cannot be made.
pub(super) fn elsewhere(settings: &Settings, region: &str) -> object_store::Result<Found> {
    let mut builder = AmazonS3Builder::new();
    for (key, value) in &settings.credentials {
        builder = builder.with_config(*key, value);
    }
    let retry = RetryConfig {
        max_retries: RETRIES_MAX,
        retry_timeout: RETRY_TIMEOUT,
        ..RetryConfig::default()
    };
    // A bucket of any name: only its credentials are wanted.
    let store = builder.with_bucket_name("none").with_region(region).with_retry(retry).build()?;
    let whence = if settings.credentials.is_empty() {
        "the metadata service of the machine"
    } else {
        "their source"
    };
    Ok(Found { source: store.credentials().clone(), whence, given_before: AtomicBool::new(false) })
}

impl Found {
    fn failed(&self, text: String) -> object_store::Error {
        let answered_before = self.given_before.load(Ordering::Relaxed);
        let cause = Cause::NoCredentials { text };
        let failure = Failure { whom: self.whence.to_owned(), cause, answered_before };
        object_store::Error::Generic { store: "S3", source: Box::new(failure) }
    }
}

#[async_trait]
impl CredentialProvider for Found {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let credential =
            self.source.get_credential().await.map_err(|error| self.failed(super::root(&error)))?;
        let AwsCredential { key_id, secret_key, token } = &*credential;
        let keys = Keys { id: key_id.clone(), secret: secret_key.clone(), token: token.clone() };
        let checked: Result<()> = keys.check(self.whence);
        checked.map_err(|error| self.failed(error.message))?;
        self.given_before.store(true, Ordering::Relaxed);
        Ok(credential)
    }
}
