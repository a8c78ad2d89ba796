//! The NATS servers of a list, looked at one by one. A client goes on with any of a cluster and
//! does not tell which of the others are gone: nobody would know before the next one goes, which
//! may be one too many.

use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::nats::NatsSettings;

/// Bound of the look at one server.
const LOOK: Duration = Duration::from_secs(2);
/// Most servers that are looked at.
const SERVERS_MAX: usize = 16;
/// Where NATS listens by custom.
const PORT: u16 = 4222;

/// Servers as somebody named them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Servers {
    /// Each as `host:port`.
    places: Vec<String>,
    /// Whether they greet: not where TLS comes first, nor over websockets.
    greet: bool,
}

impl Servers {
    /// Those of some settings.
    pub fn of(settings: &NatsSettings) -> Self {
        let public = settings.public_url();
        let urls = || public.split(',').map(str::trim).filter(|url| !url.is_empty());
        let websockets = urls().any(|url| url.starts_with("ws"));
        let mut places: Vec<String> = urls().filter_map(place_of).collect();
        places.dedup();
        places.truncate(SERVERS_MAX);
        Self { places, greet: !settings.tls_first && !websockets }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.places.len()
    }

    /// Whether one may go without the connection being lost.
    pub fn are_several(&self) -> bool {
        self.places.len() > 1
    }

    /// Those that do not answer, as `host:port`, with the reason.
    pub async fn away(&self) -> Vec<(String, String)> {
        let looks = self.places.iter().map(|place| async move {
            let why = match tokio::time::timeout(LOOK, self.look(place)).await {
                Ok(Ok(())) => return None,
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no answer within {} s", LOOK.as_secs()),
            };
            Some((place.clone(), why))
        });
        futures::future::join_all(looks).await.into_iter().flatten().collect()
    }

    async fn look(&self, place: &str) -> std::io::Result<()> {
        let mut stream = TcpStream::connect(place).await?;
        // A process that is stopped still takes connections; it says nothing.
        if self.greet && stream.read(&mut [0; 1]).await? == 0 {
            return Err(std::io::Error::other("it hangs up"));
        }
        Ok(())
    }
}

/// `host:port` of a URL.
fn place_of(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://").unwrap_or(("nats", url));
    let place = rest.split('/').next().filter(|place| !place.is_empty())?;
    let port = match scheme {
        "ws" => 80,
        "wss" => 443,
        _ => PORT,
    };
    let has_port = place.rsplit_once(':').is_some_and(|(host, port)| {
        !port.is_empty()
            && port.bytes().all(|byte| byte.is_ascii_digit())
            && (!host.contains(':') || host.ends_with(']'))
    });
    Some(if has_port { place.to_owned() } else { format!("{place}:{port}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_off_urls() {
        let check = |url: &str, expected: &[&str]| {
            let settings = NatsSettings { url: url.to_owned(), ..NatsSettings::default() };
            assert_eq!(Servers::of(&settings).places, expected, "{url}");
        };
        check("nats://a:1,b,tls://u:p@c:3", &["a:1", "b:4222", "c:3"]);
        check("nats://[::1]:4, nats://[::1] ,wss://d/path", &["[::1]:4", "[::1]:4222", "d:443"]);
        check("", &[]);
    }

    #[tokio::test]
    async fn one_that_is_gone_is_named_with_the_reason() {
        let greets = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let hangs_up = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let place = |listener: &tokio::net::TcpListener| {
            listener.local_addr().expect("an address").to_string()
        };
        let (there, ended, nowhere) = (place(&greets), place(&hangs_up), place(&gone));
        drop(gone);
        tokio::spawn(async move {
            use tokio::io::AsyncWriteExt;
            let (mut stream, _) = greets.accept().await.expect("a caller");
            stream.write_all(b"INFO {}\r\n").await.expect("said");
            drop(hangs_up.accept().await.expect("a caller"));
        });
        let url = format!("{there},{ended},{nowhere}");
        let servers = Servers::of(&NatsSettings { url, ..NatsSettings::default() });
        assert!(servers.are_several() && servers.count() == 3);
        let away = servers.away().await;
        assert_eq!(
            away.iter().map(|(place, _)| place.as_str()).collect::<Vec<_>>(),
            [ended, nowhere]
        );
        assert!(away[0].1.contains("hangs up") && away[1].1.contains("refused"), "{away:?}");
    }
}
