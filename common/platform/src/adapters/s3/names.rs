//! Looks up the names of hosts as the system does, but keeps apart what the system tells apart: a
//! name that nobody knows, and a name server that does not answer. The standard library makes one
//! text of both.

use std::fmt;
use std::net::IpAddr;

use dns_lookup::{AddrInfoHints, LookupErrorKind, SockType, getaddrinfo};
use object_store::client::{DnsError, DnsFuture, DnsResolver};

use super::failure::Cause;

/// The system's resolver.
#[derive(Debug)]
pub(super) struct SystemNames;

/// Why a name has no address.
#[derive(Debug)]
pub(super) struct NameError {
    host: String,
    /// Whether the answer is that there is no such name.
    unknown: bool,
    text: String,
}

impl NameError {
    pub(super) fn cause(&self) -> Cause {
        let host = self.host.clone();
        match self.unknown {
            true => Cause::NameUnknown { host },
            false => Cause::NamesUnavailable { host, text: self.text.clone() },
        }
    }
}

impl std::error::Error for NameError {}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the name {}: {}", self.host, self.text)
    }
}

impl DnsResolver for SystemNames {
    fn resolve(&self, host: &str) -> DnsFuture {
        let host = host.to_owned();
        Box::pin(async move {
            let looked_up = tokio::task::spawn_blocking(move || look_up(&host)).await;
            match looked_up.map_err(|e| Box::new(e) as DnsError)? {
                Ok(addresses) => Ok(addresses),
                Err(error) => Err(Box::new(error) as DnsError),
            }
        })
    }
}

fn look_up(host: &str) -> Result<Vec<IpAddr>, NameError> {
    let failed = |unknown: bool, text: String| NameError { host: host.to_owned(), unknown, text };
    let hints = AddrInfoHints { socktype: SockType::Stream.into(), ..AddrInfoHints::default() };
    let found = getaddrinfo(Some(host), None, Some(hints)).map_err(|error| {
        let unknown = matches!(error.kind(), LookupErrorKind::NoName | LookupErrorKind::NoData);
        failed(unknown, std::io::Error::from(error).to_string())
    })?;
    let mut addresses: Vec<IpAddr> =
        found.filter_map(|info| Some(info.ok()?.sockaddr.ip())).collect();
    if addresses.is_empty() {
        return Err(failed(true, "it has no address".to_owned()));
    }
    // A store behind one name has many addresses, and is asked by many clients.
    let turn = turn(addresses.len());
    addresses.rotate_left(turn);
    Ok(addresses)
}

#[expect(
    clippy::disallowed_methods,
    reason = "which of equal addresses comes first decides nothing"
)]
fn turn(count: usize) -> usize {
    rand::random::<u32>() as usize % count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_are_looked_up_and_what_nobody_knows_is_told() {
        let found = SystemNames.resolve("localhost").await.expect("addresses");
        assert!(found.iter().all(IpAddr::is_loopback) && !found.is_empty(), "{found:?}");
        let error = SystemNames.resolve("no such name").await.expect_err("no name has blanks");
        let error = error.downcast::<NameError>().expect("its own error");
        assert!(error.host == "no such name", "{error}");
    }
}
