//! The connection to NATS: settings, how to wait for a server, and which servers will do.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_nats::{Client, ConnectError, ConnectErrorKind, ConnectOptions, Event};

use crate::adapters::refusals::Refusals;
use crate::clock::{Clock, SystemClock};
use crate::config::Config;
use crate::telemetry::Bounded;
use muster_protocol::error::{Error, ErrorKind, Result};

/// The oldest nats-server that will do. What is used today (`sync_interval: always`, ordered
/// consumers, appends with an expected sequence) came by 2.10; 2.12 is the oldest line that is
/// promised to work, so that atomic batches and message TTLs may be relied on.
pub const SERVER_VERSION_OLDEST: (u32, u32) = (2, 12);
/// Longest pause between tries to connect.
const RECONNECT_DELAY_MAX_MS: u64 = 2000;
/// Messages that a subscription holds before it drops; control traffic is a few thousand a second
/// at most.
const SUBSCRIPTION_CAPACITY: usize = 65_536;

/// Where NATS is and who we are there. `Debug` masks the secrets.
#[derive(Clone, Default)]
pub struct NatsSettings {
    /// Server URLs, separated by commas.
    pub url: String,
    /// User name.
    pub user: Option<String>,
    /// Password.
    pub password: Option<String>,
    /// Token, in place of user and password.
    pub token: Option<String>,
    /// Credentials file.
    pub creds: Option<PathBuf>,
    /// NKEY seed file.
    pub nkey: Option<PathBuf>,
    /// Client certificate.
    pub cert: Option<PathBuf>,
    /// Client key.
    pub key: Option<PathBuf>,
    /// Root certificates.
    pub ca: Option<PathBuf>,
    /// Prefix of reply subjects.
    pub inbox_prefix: Option<String>,
    /// Whether TLS comes before the protocol's greeting.
    pub tls_first: bool,
    /// What servers refuse to connections of these settings.
    pub refusals: Refusals,
}

impl std::fmt::Debug for NatsSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let masked = |secret: &Option<String>| secret.as_ref().map(|_| "***");
        f.debug_struct("NatsSettings")
            .field("url", &self.public_url())
            .field("user", &self.user)
            .field("password", &masked(&self.password))
            .field("token", &masked(&self.token))
            .field("creds", &self.creds)
            .field("nkey", &self.nkey)
            .field("ca", &self.ca)
            .finish_non_exhaustive()
    }
}

impl NatsSettings {
    /// The URL without the secrets that it may hold, in one line.
    pub fn public_url(&self) -> String {
        let plain =
            |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
        let one = |url: &str| match url.trim().split_once("://") {
            Some((scheme, rest)) => {
                format!("{scheme}://{}", rest.rsplit_once('@').map_or(rest, |(_, host)| host))
            }
            None => url.rsplit_once('@').map_or(url, |(_, host)| host).trim().to_owned(),
        };
        let all = self.url.split(',').map(one).collect::<Vec<_>>().join(",");
        all.chars().map(plain).collect()
    }

    fn listener(&self) -> impl Fn(Event) -> std::future::Ready<()> + Send + Sync + 'static {
        let refusals = self.refusals.clone();
        let (clock, bounded) = (SystemClock::default(), Mutex::new(Bounded::default()));
        move |event| {
            let tells = |kind| {
                bounded.lock().unwrap_or_else(PoisonError::into_inner).tells(clock.now_ms(), kind)
            };
            log_event(&event, &refusals, tells);
            std::future::ready(())
        }
    }

    /// User and password, or a token alone, as the first of the URLs holds them. They come before
    /// those that are given apart, as with the nats command line; async-nats passes over them.
    fn user_in_url(&self) -> Option<(String, Option<String>)> {
        let decoded = |text: &str| {
            percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
        };
        self.url.split(',').find_map(|url| {
            let place = url.split_once("://").map_or(url, |(_, rest)| rest).trim();
            let (user, _) = place.rsplit_once('@')?;
            Some(match user.split_once(':') {
                Some((user, password)) => (decoded(user), Some(decoded(password))),
                None => (decoded(user), None),
            })
        })
    }

    fn unreadable(path: &std::path::Path, error: &std::io::Error) -> Error {
        Error::invalid(format!(
            "cannot read the NATS credentials or certificate in {}: {error}",
            path.display()
        ))
    }

    async fn options(&self, config: &Config, name: &str) -> Result<ConnectOptions> {
        let mut options = ConnectOptions::new()
            .name(name)
            .connection_timeout(Duration::from_millis(config.nats.connect_timeout_ms))
            .ping_interval(Duration::from_millis(config.nats.ping_interval_ms))
            .request_timeout(Some(Duration::from_millis(config.nats.request_timeout_ms)))
            .subscription_capacity(SUBSCRIPTION_CAPACITY)
            .reconnect_delay_callback(reconnect_delay)
            .event_callback(self.listener());
        options = match (self.user_in_url(), (&self.user, &self.password), &self.token) {
            (Some((user, Some(password))), ..) => options.user_and_password(user, password),
            (Some((token, None)), ..) => options.token(token),
            (None, _, Some(token)) => options.token(token.clone()),
            (None, (Some(user), Some(password)), None) => {
                options.user_and_password(user.clone(), password.clone())
            }
            (None, ..) => options,
        };
        if let Some(path) = &self.creds {
            options =
                options.credentials_file(path).await.map_err(|e| Self::unreadable(path, &e))?;
        }
        if let Some(path) = &self.nkey {
            let seed =
                tokio::fs::read_to_string(path).await.map_err(|e| Self::unreadable(path, &e))?;
            options = options.nkey(seed.trim().to_owned());
        }
        // The client reads them with each connection, and takes one that is not there for a server
        // that is not there.
        for path in [&self.ca, &self.cert, &self.key].into_iter().flatten() {
            tokio::fs::read(path).await.map_err(|e| Self::unreadable(path, &e))?;
        }
        if self.cert.is_some() != self.key.is_some() {
            return Err(Error::invalid(
                "of a NATS client certificate and its key (NATS_CERT, NATS_KEY) one is set alone",
            ));
        }
        if let Some(path) = &self.ca {
            options = options.add_root_certificates(path.clone()).require_tls(true);
        }
        if let (Some(cert), Some(key)) = (&self.cert, &self.key) {
            options = options.add_client_certificate(cert.clone(), key.clone());
        }
        if let Some(prefix) = &self.inbox_prefix {
            check_inbox_prefix(prefix)?;
            options = options.custom_inbox_prefix(prefix);
        }
        Ok(if self.tls_first { options.tls_first() } else { options })
    }

    async fn try_connect(&self, config: &Config, name: &str) -> Result<Client> {
        // What the client does not know it cannot log.
        let addresses: Vec<String> =
            self.public_url().split(',').map(|url| url.trim().to_owned()).collect();
        let options = self.options(config, name).await?;
        options.connect(addresses).await.map_err(|e| self.connect_error(&e))
    }

    fn connect_error(&self, error: &ConnectError) -> Error {
        let kind = match error.kind() {
            ConnectErrorKind::ServerParse
            | ConnectErrorKind::Authentication
            | ConnectErrorKind::AuthorizationViolation => ErrorKind::Invalid,
            _ => ErrorKind::Retry,
        };
        let hint = match error.kind() {
            ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
                "; check user, password, token or credentials file"
            }
            _ => "",
        };
        Error::new(kind, format!("cannot connect to NATS at {}: {error}{hint}", self.public_url()))
    }
}

/// Connects once, for clients: no server is an answer too.
///
/// # Errors
/// `Retry` where nothing answers, `Invalid` where the server refuses us or is too old.
pub async fn connect(settings: &NatsSettings, config: &Config, name: &str) -> Result<Client> {
    let client = settings.try_connect(config, name).await?;
    check_server(&client)?;
    Ok(client)
}

/// Connects once, to whatever version of server there is: for those who want to say what is wrong
/// with it.
///
/// # Errors
/// As [`connect`], but for the version.
pub async fn connect_to_any(
    settings: &NatsSettings,
    config: &Config,
    name: &str,
) -> Result<Client> {
    settings.try_connect(config, name).await
}

/// Connects, and waits for a server as long as it takes; for workers and coordinators. The caller
/// bounds it by dropping the future.
///
/// # Errors
/// `Invalid` where the server refuses us or is too old.
pub async fn connect_waiting(
    settings: &NatsSettings,
    config: &Config,
    name: &str,
) -> Result<Client> {
    let mut attempt = 0;
    loop {
        match connect(settings, config, name).await {
            Err(error) if error.kind == ErrorKind::Retry => {
                if attempt % 10 == 0 {
                    tracing::warn!(%error, "waiting for NATS");
                }
                attempt += 1;
                tokio::time::sleep(reconnect_delay(attempt)).await;
            }
            result => return result,
        }
    }
}

/// A prefix that makes no sound subjects would leave every request without an answer.
fn check_inbox_prefix(prefix: &str) -> Result<()> {
    let sound = |token: &str| {
        !token.is_empty() && !token.contains(|c: char| c.is_whitespace() || c == '*' || c == '>')
    };
    if prefix.split('.').all(sound) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "the inbox prefix {prefix:?} (NATS_INBOX_PREFIX, or of the NATS context) is no subject"
    )))
}

/// Exponential from 50 ms to two seconds, each with jitter, so that a pool does not return in one
/// wave.
fn reconnect_delay(attempts: usize) -> Duration {
    let exponent = u32::try_from(attempts.min(8)).unwrap_or(8);
    let ceiling_ms = (25 << exponent).min(RECONNECT_DELAY_MAX_MS);
    #[expect(
        clippy::disallowed_methods,
        reason = "jitter of a connection needs no seed: nothing depends on it"
    )]
    let random: u64 = rand::random();
    Duration::from_millis(ceiling_ms / 2 + random % (ceiling_ms / 2 + 1))
}

/// `tells` bounds what somebody else can bring about again and again.
fn log_event(event: &Event, refusals: &Refusals, tells: impl FnOnce(&'static str) -> bool) {
    match event {
        Event::Connected => tracing::info!("connected to NATS"),
        Event::Disconnected => tracing::warn!("waiting for NATS: the connection was lost"),
        Event::SlowConsumer(subscription) => {
            if tells("dropped messages") {
                tracing::warn!(subscription, "messages were dropped: this process is too slow");
            }
        }
        Event::ServerError(error) if refusals.take(error, tells) => {}
        Event::ServerError(error) => tracing::warn!(%error, "the NATS server reports an error"),
        Event::ClientError(error) => tracing::warn!(%error, "the NATS client reports an error"),
        other => tracing::info!(event = %other, "NATS connection"),
    }
}

fn check_server(client: &Client) -> Result<()> {
    let info = client.server_info();
    let (major, minor) = SERVER_VERSION_OLDEST;
    if !is_new_enough(&info.version) {
        return Err(Error::invalid(format!(
            "nats-server {} is too old: {major}.{minor} or newer is needed",
            info.version
        )));
    }
    Ok(())
}

/// Whether a server of this version will do.
pub fn is_new_enough(version: &str) -> bool {
    let mut numbers = version.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= SERVER_VERSION_OLDEST
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_masked() {
        let settings = NatsSettings {
            url: "nats://me:hidden@host:4222,other:4222".to_owned(),
            password: Some("hidden".to_owned()),
            token: Some("hidden".to_owned()),
            ..NatsSettings::default()
        };
        assert_eq!(settings.public_url(), "nats://host:4222,other:4222");
        assert!(!format!("{settings:?}").contains("hidden"));
        let url = |url: &str| {
            NatsSettings { url: url.to_owned(), ..NatsSettings::default() }.public_url()
        };
        // As a file leaves it that was made by `echo`.
        assert_eq!(url("nats://me:hidden@host:4222\n"), "nats://host:4222");
        assert_eq!(url("one:4222, tls://two:4222\r\n"), "one:4222,tls://two:4222");
        assert_eq!(
            url("nats://ho\nst\u{1b}[31m"),
            "nats://ho\\nst\\u{1b}[31m",
            "one line, and no colour"
        );
    }

    #[test]
    fn a_user_in_the_url_is_heard() {
        let check = |url: &str, expected: Option<(&str, Option<&str>)>| {
            let found =
                NatsSettings { url: url.to_owned(), ..NatsSettings::default() }.user_in_url();
            let expected =
                expected.map(|(user, password)| (user.to_owned(), password.map(str::to_owned)));
            assert_eq!(found, expected, "{url}");
        };
        check("nats://host:4222", None);
        check("nats://me:hidden@host:4222", Some(("me", Some("hidden"))));
        check("me:a%40b%3Ac@host", Some(("me", Some("a@b:c"))));
        check("nats://one, tls://token@two", Some(("token", None)));
        check("nats://me:a:b@c@host", Some(("me", Some("a:b@c"))));
    }

    #[tokio::test]
    async fn errors_of_connecting_show_no_secret() {
        let config = Config::profile(crate::config::Profile::Testing).expect("settings");
        for url in [
            "nats://me:hidden@127.0.0.1:1",
            "nats://hidden@127.0.0.1:1",
            "nats://me:hidden@ho st",
            "me:hidden@[::",
            "x",
        ] {
            let settings = NatsSettings {
                url: url.to_owned(),
                password: Some("hidden".to_owned()),
                token: Some("hidden".to_owned()),
                ..NatsSettings::default()
            };
            let error = connect(&settings, &config, "test").await.expect_err(url);
            assert!(!error.message.contains("hidden"), "{error}");
        }
    }

    #[tokio::test]
    async fn files_of_a_connection_that_are_not_there_are_named() {
        let config = Config::profile(crate::config::Profile::Testing).expect("settings");
        let missing = Some(PathBuf::from("/no/such/file"));
        let with = |change: fn(&mut NatsSettings, Option<PathBuf>)| {
            let mut settings =
                NatsSettings { url: "nats://127.0.0.1:1".to_owned(), ..NatsSettings::default() };
            change(&mut settings, missing.clone());
            settings
        };
        for settings in [
            with(|settings, path| settings.ca = path),
            with(|settings, path| settings.cert = path),
            with(|settings, path| settings.key = path),
            with(|settings, path| settings.creds = path),
            with(|settings, path| settings.nkey = path),
        ] {
            let error = connect(&settings, &config, "test").await.expect_err("a file is missing");
            assert!(
                error.kind == ErrorKind::Invalid && error.message.contains("/no/such/file"),
                "{error}"
            );
        }
        let mut alone = with(|_, _| ());
        alone.cert = Some(PathBuf::from("/dev/null"));
        let error =
            connect(&alone, &config, "test").await.expect_err("a certificate without its key");
        assert!(error.kind == ErrorKind::Invalid && error.message.contains("NATS_KEY"), "{error}");
    }

    #[test]
    fn old_servers_are_told_by_their_version() {
        for (version, expected) in [
            ("2.11.9", false),
            ("2.12.0", true),
            ("2.15.1-RC.1", true),
            ("3.0", true),
            ("", false),
            ("x.y", false),
        ] {
            assert_eq!(is_new_enough(version), expected, "{version:?}");
        }
    }

    #[test]
    fn inbox_prefixes_are_subjects() {
        for (prefix, expected) in [
            ("_INBOX", true),
            ("_INBOX_muster_worker.w1", true),
            ("", false),
            ("a.", false),
            ("a..b", false),
            ("a.*", false),
            ("a b", false),
            (">", false),
        ] {
            assert_eq!(check_inbox_prefix(prefix).is_ok(), expected, "{prefix:?}");
        }
    }

    #[test]
    fn delays_grow_to_a_bound() {
        for attempts in 0..40 {
            let delay = reconnect_delay(attempts).as_millis();
            assert!(delay <= u128::from(RECONNECT_DELAY_MAX_MS), "{attempts}: {delay}");
        }
        assert!(reconnect_delay(20).as_millis() >= u128::from(RECONNECT_DELAY_MAX_MS) / 2);
    }
}
