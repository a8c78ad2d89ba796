//! What a NATS server has refused a connection for want of rights. The server tells it apart from
//! everything else, and whoever asked hears nothing: without this it would wait for an answer that
//! cannot come.

use std::sync::Arc;

use async_nats::{Client, ServerError};
use tokio::sync::watch;

use muster_protocol::error::{Error, ErrorKind};

/// Refusals that are kept; what is refused is repeated, so few are different.
const KEPT_MAX: usize = 64;
const VIOLATION: &str = "permissions violation";
/// What the inboxes of all clients begin with, unless somebody chose otherwise.
const INBOX: &str = "_INBOX";

/// How the error begins that a refusal becomes.
pub const REFUSES: &str = "the NATS server refuses this user";

/// Whether an error is that of a refusal: for want of rights, not of an answer.
pub fn is_refusal(error: &Error) -> bool {
    error.kind == ErrorKind::Invalid && error.message.starts_with(REFUSES)
}

/// One refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The subject that the user may not publish to or subscribe to.
    pub subject: String,
    /// The server's words.
    pub text: String,
}

/// What was refused so far. Clones share it.
#[derive(Debug, Clone)]
pub struct Refusals(Arc<watch::Sender<Vec<Refusal>>>);

impl Default for Refusals {
    fn default() -> Self {
        Self(Arc::new(watch::channel(Vec::new()).0))
    }
}

impl Refusal {
    /// The refusal that a server's error is, if it is one.
    fn of(error: &ServerError) -> Option<Self> {
        let ServerError::Other(text) = error else { return None };
        if !text.to_ascii_lowercase().contains(VIOLATION) {
            return None;
        }
        let subject = text.split('"').nth(1)?;
        Some(Self { subject: subject.to_owned(), text: text.clone() })
    }
}

impl Refusals {
    /// Takes a server's error, and says it in the log where it is a refusal. Gives whether it is
    /// one. Where answers go is for those to choose who ask, so `tells` bounds what is said of
    /// them.
    pub(super) fn take(
        &self,
        error: &ServerError,
        tells: impl FnOnce(&'static str) -> bool,
    ) -> bool {
        let Some(refusal) = Refusal::of(error) else { return false };
        let Refusal { subject, text } = &refusal;
        if subject.starts_with(INBOX) && text.contains("Publish") {
            // It may answer only through the server that the request came by, and within a time.
            if tells("refused answers") {
                tracing::warn!(
                    subject,
                    "the NATS server does not take an answer from this user: {text}"
                );
            }
        } else {
            tracing::error!(
                subject,
                "the NATS server refuses this user: {text}; `muster rights` lists what each role \
                    needs"
            );
        }
        self.0.send_if_modified(|kept| {
            let new = kept.len() < KEPT_MAX && !kept.contains(&refusal);
            if new {
                kept.push(refusal.clone());
            }
            new
        });
        true
    }

    /// Returns once a subject of interest was refused, or the inbox of this client, without which
    /// it hears no answer.
    pub async fn refused(&self, client: &Client, of_interest: impl Fn(&str) -> bool) -> Error {
        let inbox = client.new_inbox();
        let inboxes =
            inbox.rsplit_once('.').map_or(inbox.as_str(), |(prefix, _)| prefix).to_owned();
        let concerns = |refusal: &Refusal| {
            of_interest(&refusal.subject) || refusal.subject.starts_with(&inboxes)
        };
        let mut kept = self.0.subscribe();
        match kept
            .wait_for(|kept| kept.iter().any(concerns))
            .await
            .map(|kept| kept.iter().find(|r| concerns(r)).cloned())
        {
            Ok(Some(refusal)) => Error::invalid(format!(
                "{REFUSES}: {}; `muster rights` lists what each role needs",
                refusal.text
            )),
            // Nobody tells of refusals any more.
            _ => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_told_from_other_errors() {
        let check = |text: &str, subject: Option<&str>| {
            let refusal = Refusal::of(&ServerError::Other(text.to_owned()));
            assert_eq!(refusal.as_ref().map(|refusal| refusal.subject.as_str()), subject, "{text}");
        };
        check("Permissions Violation for Publish to \"muster.api.jobs\"", Some("muster.api.jobs"));
        check("Permissions Violation for Subscription to \"_INBOX.x.*\"", Some("_INBOX.x.*"));
        check("Permissions Violation for Subscription to \"a\" using queue \"q\"", Some("a"));
        check("maximum connections exceeded", None);
        assert_eq!(Refusal::of(&ServerError::AuthorizationViolation), None);
    }

    #[test]
    fn each_is_kept_once() {
        let refusals = Refusals::default();
        let error = ServerError::Other("Permissions Violation for Publish to \"a\"".to_owned());
        let tells = |_: &'static str| true;
        assert!(refusals.take(&error, tells) && refusals.take(&error, tells));
        assert_eq!(refusals.0.borrow().len(), 1);
        assert!(!refusals.take(&ServerError::AuthorizationViolation, tells));
    }
}
