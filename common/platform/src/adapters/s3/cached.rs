//! Credentials that are kept while they hold, and fetched anew before they expire.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use object_store::CredentialProvider;
use object_store::aws::AwsCredential;
use tokio::sync::Mutex;

use super::failure::{Cause, Failure};
use super::settings::Keys;
use crate::clock::Clock;
use crate::store::Troubles;

/// How long before they expire credentials are fetched anew, in milliseconds; what holds for a
/// short time only, when a quarter of it is left.
const AHEAD_MS: u64 = 300_000;
/// Pause between tries while the former ones still hold, in milliseconds.
const AGAIN_MS: u64 = 10_000;

/// Whoever gives credentials.
#[async_trait]
pub(super) trait Source: fmt::Debug + Send + Sync + 'static {
    /// Who it is, in words.
    fn whence(&self) -> String;

    /// Fetches them, checked.
    async fn load(&self) -> Result<Loaded, Cause>;
}

/// Credentials as they come.
pub(super) struct Loaded {
    pub(super) keys: Keys,
    /// When they expire, in milliseconds since the Unix epoch; none where they do not.
    pub(super) expires_unix_ms: Option<u64>,
}

struct Held {
    credential: Arc<AwsCredential>,
    expires_unix_ms: u64,
    fetch_unix_ms: u64,
}

/// Credentials of a source.
pub(super) struct Cached<S> {
    source: S,
    clock: Arc<dyn Clock>,
    held: Mutex<Option<Held>>,
    given_before: AtomicBool,
    /// The store that they are for, and whom its absence is told.
    store: String,
    troubles: Troubles,
}

/// It is made of credentials.
impl<S: Source> fmt::Debug for Cached<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cached").field("source", &self.source).finish_non_exhaustive()
    }
}

impl<S: Source> Cached<S> {
    /// Nothing is fetched yet.
    pub(super) fn new(source: S, clock: Arc<dyn Clock>, store: String, troubles: Troubles) -> Self {
        Self {
            source,
            clock,
            held: Mutex::new(None),
            given_before: AtomicBool::new(false),
            store,
            troubles,
        }
    }

    async fn fetch(&self) -> Result<Held, Cause> {
        let Loaded { keys, expires_unix_ms } = self.source.load().await?;
        let now_unix_ms = self.clock.unix_ms();
        let expires_unix_ms = expires_unix_ms.unwrap_or(u64::MAX);
        let left_ms = expires_unix_ms.saturating_sub(now_unix_ms);
        if left_ms == 0 {
            let ago_s = (now_unix_ms - expires_unix_ms) / 1000;
            return Err(Cause::Profile {
                text: format!("what it gives has expired {ago_s} s ago"),
                passing: false,
            });
        }
        let Keys { id, secret, token } = keys;
        let credential = Arc::new(AwsCredential { key_id: id, secret_key: secret, token });
        let fetch_unix_ms = expires_unix_ms - AHEAD_MS.min(left_ms / 4);
        Ok(Held { credential, expires_unix_ms, fetch_unix_ms })
    }

    fn failed(&self, cause: Cause) -> object_store::Error {
        let answered_before = self.given_before.load(Ordering::Relaxed);
        let failure = Failure { whom: self.source.whence(), cause, answered_before };
        if failure.is_absence() {
            self.troubles.begin(&self.store, &failure);
        }
        object_store::Error::Generic { store: "S3", source: Box::new(failure) }
    }
}

#[async_trait]
impl<S: Source> CredentialProvider for Cached<S> {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let mut held = self.held.lock().await;
        let now_unix_ms = self.clock.unix_ms();
        if let Some(held) = held.as_ref()
            && now_unix_ms < held.fetch_unix_ms
        {
            return Ok(held.credential.clone());
        }
        match (self.fetch().await, held.as_mut()) {
            (Ok(fetched), _) => {
                self.given_before.store(true, Ordering::Relaxed);
                let credential = fetched.credential.clone();
                *held = Some(fetched);
                Ok(credential)
            }
            (Err(cause), Some(former)) if self.clock.unix_ms() < former.expires_unix_ms => {
                let failure = Failure { whom: self.source.whence(), cause, answered_before: true };
                tracing::warn!(%failure, "credentials that expire soon could not be fetched anew; \
                    the former ones hold a little longer");
                former.fetch_unix_ms = former.expires_unix_ms.min(self.clock.unix_ms() + AGAIN_MS);
                Ok(former.credential.clone())
            }
            (Err(cause), _) => Err(self.failed(cause)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;
    use crate::clock::ManualClock;

    /// Gives numbered keys that hold so long, until it is broken.
    #[derive(Debug)]
    struct Numbered {
        clock: Arc<ManualClock>,
        holds_ms: Option<u64>,
        given: Arc<AtomicU64>,
        broken: Arc<AtomicBool>,
    }

    #[async_trait]
    impl Source for Numbered {
        fn whence(&self) -> String {
            "the AWS profile \"dev\"".to_owned()
        }

        async fn load(&self) -> Result<Loaded, Cause> {
            if self.broken.load(Ordering::Relaxed) {
                return Err(Cause::Profile { text: "it is broken".to_owned(), passing: false });
            }
            let id = format!("key{}", self.given.fetch_add(1, Ordering::Relaxed));
            let expires_unix_ms = self.holds_ms.map(|holds_ms| self.clock.unix_ms() + holds_ms);
            Ok(Loaded {
                keys: Keys { id, secret: "hidden".to_owned(), token: None },
                expires_unix_ms,
            })
        }
    }

    struct Case {
        clock: Arc<ManualClock>,
        broken: Arc<AtomicBool>,
        cached: Cached<Numbered>,
        troubles: Troubles,
    }

    impl Case {
        fn new(holds_ms: Option<u64>) -> Self {
            let (clock, broken, troubles) =
                (Arc::new(ManualClock::default()), Arc::default(), Troubles::default());
            let source = Numbered {
                clock: clock.clone(),
                holds_ms,
                given: Arc::default(),
                broken: Arc::clone(&broken),
            };
            let cached =
                Cached::new(source, clock.clone(), "s3://data".to_owned(), troubles.clone());
            Self { clock, broken, cached, troubles }
        }

        async fn key(&self) -> Result<String, Failure> {
            match self.cached.get_credential().await {
                Ok(credential) => Ok(credential.key_id.clone()),
                Err(error) => Err(Failure::of(&error).expect("a failure").clone()),
            }
        }
    }

    #[tokio::test]
    async fn credentials_are_fetched_anew_before_they_expire() {
        let case = Case::new(Some(3_600_000));
        for (advance_ms, expected) in
            [(0, "key0"), (3_299_999, "key0"), (1, "key1"), (3_299_999, "key1"), (1, "key2")]
        {
            case.clock.advance_ms(advance_ms);
            assert_eq!(case.key().await.as_deref(), Ok(expected), "{advance_ms} ms later");
        }
        let short = Case::new(Some(60_000));
        for (advance_ms, expected) in [(0, "key0"), (44_999, "key0"), (1, "key1")] {
            short.clock.advance_ms(advance_ms);
            assert_eq!(short.key().await.as_deref(), Ok(expected), "{advance_ms} ms later");
        }
        let lasting = Case::new(None);
        assert_eq!(lasting.key().await.as_deref(), Ok("key0"));
        lasting.clock.advance_ms(u64::from(u32::MAX));
        assert_eq!(lasting.key().await.as_deref(), Ok("key0"), "they do not expire");
    }

    #[tokio::test]
    async fn while_the_former_hold_nothing_fails_and_then_it_is_waited_for() {
        let case = Case::new(Some(3_600_000));
        assert_eq!(case.key().await.as_deref(), Ok("key0"));
        case.broken.store(true, Ordering::Relaxed);
        case.clock.advance_ms(3_599_999);
        assert_eq!(case.key().await.as_deref(), Ok("key0"), "they hold a millisecond more");
        case.clock.advance_ms(1);
        let failure = case.key().await.expect_err("expired");
        assert_eq!(
            failure.kind(),
            muster_protocol::error::ErrorKind::Retry,
            "what has given some may do so again: {failure}"
        );
        assert_eq!(case.troubles.list().len(), 1, "it is told what is waited for");
        case.broken.store(false, Ordering::Relaxed);
        assert_eq!(case.key().await.as_deref(), Ok("key1"));
        // One that has never given any is set up wrongly.
        let never = Case::new(None);
        never.broken.store(true, Ordering::Relaxed);
        let failure = never.key().await.expect_err("broken");
        assert_eq!(failure.kind(), muster_protocol::error::ErrorKind::Setup);
        assert!(
            failure
                .to_string()
                .contains("the AWS profile \"dev\" gives no credentials: it is broken"),
            "{failure}"
        );
        // What has expired when it comes would only be refused by the store.
        let late = Case::new(Some(0));
        assert!(late.key().await.expect_err("expired").to_string().contains("has expired"));
        assert!(!format!("{:?}", case.cached).contains("hidden"));
    }
}
