//! Looks at NATS and at the coordinator: plain requests with bounds, whose answers are read
//! leniently. Changes nothing.

use std::time::Duration;

use async_nats::{Client, RequestErrorKind};
use futures::StreamExt;
use muster_platform::adapters::refusals::Refusals;
use muster_platform::clock::Clock;
use muster_protocol::names::{self, Names};
use muster_protocol::wire::{self, LeaderBeat};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::judge::{Beats, ClockDifference};
use super::rights::UserInfo;

/// Bound of one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);
/// Round trips that are measured.
const TRIPS: usize = 5;
/// Largest answer of a monitoring port that is read, in bytes.
const MONITOR_BYTES_MAX: u64 = 1 << 20;
/// Where servers have their monitoring port by custom.
const MONITOR_PORT: u16 = 8222;
const MONITOR_TIMEOUT: Duration = Duration::from_secs(1);

/// A connection to NATS, and what its server refuses it: what this user may not see is told at once
/// from what does not answer.
#[derive(Debug, Clone)]
pub(super) struct Nats {
    pub(super) client: Client,
    pub(super) refusals: Refusals,
}

impl Nats {
    /// What somebody gives, unless the server refuses the subject, or this user's inbox.
    async fn unless_refused<T>(
        &self,
        subject: &str,
        asking: impl Future<Output = T>,
    ) -> Result<T, String> {
        tokio::select! {
            biased;
            given = asking => Ok(given),
            refused = self.refusals.refused(&self.client, |refused| refused == subject) => {
                Err(refused.message)
            }
        }
    }
}

/// What a look came to.
#[derive(Debug)]
pub(super) enum Looked<T> {
    /// It is there.
    Seen(T),
    /// It is not there, and how we know.
    Absent(String),
    /// It cannot be seen from here, and why.
    Unknown(String),
}

/// JetStream's answer about an account.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Account {
    pub(super) storage: u64,
    pub(super) streams: u64,
    pub(super) limits: AccountLimits,
}

#[derive(Debug, Deserialize)]
#[serde(default)]
pub(super) struct AccountLimits {
    /// Negative where there is none.
    pub(super) max_storage: i64,
}

impl Default for AccountLimits {
    fn default() -> Self {
        Self { max_storage: -1 }
    }
}

/// JetStream's answer about a stream, as far as it matters here.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct StreamInfo {
    pub(super) config: StreamConfig,
    pub(super) state: StreamState,
    pub(super) cluster: Option<Cluster>,
    /// When the server answered.
    ts: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct StreamConfig {
    pub(super) storage: String,
    pub(super) discard: String,
    pub(super) num_replicas: u32,
    /// Negative where there is none.
    pub(super) max_bytes: i64,
    #[serde(rename = "max_age")]
    pub(super) max_age_ns: u64,
    pub(super) persist_mode: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct StreamState {
    pub(super) messages: u64,
    pub(super) bytes: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Cluster {
    pub(super) name: Option<String>,
    pub(super) leader: Option<String>,
    /// The other replicas than the leader.
    pub(super) replicas: Vec<Peer>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Peer {
    pub(super) name: String,
    pub(super) current: bool,
    pub(super) offline: bool,
}

impl StreamInfo {
    /// Servers that take part, as far as the answer tells: a server in no cluster names none.
    pub(super) fn servers(&self) -> usize {
        match &self.cluster {
            Some(cluster) if cluster.name.is_some() => 1 + cluster.replicas.len().max(1),
            _ => 1,
        }
    }

    pub(super) fn cluster_name(&self) -> &str {
        self.cluster.as_ref().and_then(|cluster| cluster.name.as_deref()).unwrap_or_default()
    }
}

/// When the server syncs what it has acknowledged.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Sync {
    Always,
    /// So many milliseconds later.
    Every(u64),
    /// It does not tell us, and why.
    Unknown(String),
}

/// One request; an answer that is an error of the API comes as one.
async fn ask<T: DeserializeOwned>(nats: &Nats, subject: &str) -> Looked<T> {
    #[derive(Deserialize)]
    struct Refusal {
        error: ApiError,
    }
    #[derive(Deserialize)]
    struct ApiError {
        #[serde(default)]
        code: u16,
        #[serde(default)]
        description: String,
    }
    let asking =
        tokio::time::timeout(REQUEST_TIMEOUT, nats.client.request(subject.to_owned(), "".into()));
    let answered = match nats.unless_refused(subject, asking).await {
        Ok(answered) => answered,
        Err(why) => return Looked::Unknown(why),
    };
    let reply = match answered {
        Ok(Ok(reply)) => reply,
        Ok(Err(e)) if e.kind() == RequestErrorKind::NoResponders => {
            return Looked::Absent(format!("nobody answers {subject}"));
        }
        Ok(Err(e)) => return Looked::Unknown(format!("the request {subject} failed: {e}")),
        Err(_) => {
            return Looked::Unknown(format!(
                "no answer to {subject} within {} s",
                REQUEST_TIMEOUT.as_secs()
            ));
        }
    };
    if let Ok(Refusal { error }) = serde_json::from_slice::<Refusal>(&reply.payload) {
        let text = format!("{} (code {})", error.description, error.code);
        // 404: not found; 503: JetStream is not enabled.
        return if matches!(error.code, 404 | 503) {
            Looked::Absent(text)
        } else {
            Looked::Unknown(text)
        };
    }
    match serde_json::from_slice(&reply.payload) {
        Ok(value) => Looked::Seen(value),
        Err(e) => Looked::Unknown(format!("the answer to {subject} cannot be read: {e}")),
    }
}

/// The account's use and limits.
pub(super) async fn account(nats: &Nats) -> Looked<Account> {
    ask(nats, names::ACCOUNT_INFO_REQUEST).await
}

/// One stream.
pub(super) async fn stream(nats: &Nats, name: &str) -> Looked<StreamInfo> {
    ask(nats, &names::stream_info_request(name)).await
}

/// What this user may do.
pub(super) async fn rights(nats: &Nats) -> Result<UserInfo, String> {
    #[derive(Deserialize)]
    struct Answer {
        data: UserInfo,
    }
    match ask::<Answer>(nats, names::USER_INFO_REQUEST).await {
        Looked::Seen(answer) => Ok(answer.data),
        Looked::Absent(why) | Looked::Unknown(why) => Err(why),
    }
}

/// How long requests to JetStream take, and how its clock differs from ours, by the quickest of
/// them.
pub(super) async fn trips(
    nats: &Nats,
    stream_name: &str,
    clock: &dyn Clock,
) -> (Vec<u64>, Option<ClockDifference>) {
    let (mut trips, mut best): (Vec<u64>, Option<ClockDifference>) = (Vec::new(), None);
    for _ in 0..TRIPS {
        let (began_ms, began_unix_ms) = (clock.now_ms(), clock.unix_ms());
        let looked = stream(nats, stream_name).await;
        let trip_ms = clock.now_ms().saturating_sub(began_ms);
        let info = match looked {
            Looked::Seen(info) => info,
            Looked::Absent(_) => {
                trips.push(trip_ms);
                continue;
            }
            Looked::Unknown(_) => break,
        };
        trips.push(trip_ms);
        if let Some(server_ms) = unix_ms(&info.ts) {
            let middle_ms = began_unix_ms + trip_ms / 2;
            let ahead_ms =
                i64::try_from(i128::from(server_ms) - i128::from(middle_ms)).unwrap_or(i64::MAX);
            let seen = ClockDifference { ahead_ms, give_or_take_ms: trip_ms / 2 + 1 };
            if best.is_none_or(|best| seen.give_or_take_ms < best.give_or_take_ms) {
                best = Some(seen);
            }
        }
    }
    (trips, best)
}

fn unix_ms(rfc3339: &str) -> Option<u64> {
    let time = humantime::parse_rfc3339_weak(rfc3339).ok()?;
    u64::try_from(time.duration_since(std::time::UNIX_EPOCH).ok()?.as_millis()).ok()
}

/// Listens to the leader's beat until one is heard, and for one interval more, so that a second
/// leader shows.
pub(super) async fn beats(
    nats: &Nats,
    names: &Names,
    clock: &dyn Clock,
    interval: Duration,
    bound: Duration,
) -> Beats {
    let mut beats = Beats::default();
    let subscribed =
        tokio::time::timeout(REQUEST_TIMEOUT, nats.client.subscribe(names.leader())).await;
    let mut messages = match subscribed {
        Ok(Ok(messages)) => messages,
        Ok(Err(e)) => {
            return Beats {
                deaf: Some(format!("cannot listen to {}: {e}", names.leader())),
                ..beats
            };
        }
        Err(_) => {
            return Beats { deaf: Some(format!("cannot listen to {}", names.leader())), ..beats };
        }
    };
    let began_ms = clock.now_ms();
    let mut left = bound;
    loop {
        let listened_ms = clock.now_ms();
        let listening = tokio::time::timeout(left, messages.next());
        let heard = match nats.unless_refused(&names.leader(), listening).await {
            Ok(heard) => heard,
            Err(why) => return Beats { deaf: Some(why), ..Beats::default() },
        };
        let Ok(Some(message)) = heard else { break };
        left =
            left.saturating_sub(Duration::from_millis(clock.now_ms().saturating_sub(listened_ms)));
        // What cannot be read is not a beat of a version that we know.
        let Ok(beat) = wire::decode::<LeaderBeat>(&message.payload) else { continue };
        if beats.heard.is_empty() {
            left = interval * 3 / 2;
        }
        beats.heard.push((beat.deployment, beat.epoch));
    }
    beats.waited_ms = clock.now_ms().saturating_sub(began_ms);
    beats
}

/// The server's sync setting: from its own account of it where this user may ask, else from its
/// monitoring port.
pub(super) async fn sync(nats: &Nats, monitor: Option<&str>, nats_url: &str) -> Sync {
    #[derive(Deserialize)]
    struct Answer {
        data: Jsz,
    }
    #[derive(Deserialize)]
    struct Jsz {
        config: JetStreamConfig,
    }
    if let Looked::Seen(Answer { data }) = ask(nats, names::JETSTREAM_SETTINGS_REQUEST).await {
        return data.config.sync();
    }
    let place = match monitor {
        Some(place) => place.to_owned(),
        None => format!("{}:{MONITOR_PORT}", host_of(nats_url)),
    };
    let text = match tokio::time::timeout(MONITOR_TIMEOUT, get(&place, "/varz")).await {
        Ok(Ok(text)) => text,
        Ok(Err(e)) => {
            return Sync::Unknown(format!(
                "not told to this user, and no monitoring port at {place}: {e}"
            ));
        }
        Err(_) => {
            return Sync::Unknown(format!("not told to this user, and nothing answers at {place}"));
        }
    };
    sync_of(&text, &nats.client.server_info().server_id, &place)
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct JetStreamConfig {
    #[serde(rename = "sync_interval")]
    sync_interval_ns: u64,
    sync_always: bool,
}

impl JetStreamConfig {
    fn sync(&self) -> Sync {
        match (self.sync_always, self.sync_interval_ns / 1_000_000) {
            (true, _) => Sync::Always,
            (false, 0) => Sync::Unknown("the server does not say how often it syncs".to_owned()),
            (false, ms) => Sync::Every(ms),
        }
    }
}

/// What `/varz` says, if it is that of the server we are connected to.
fn sync_of(varz: &str, server_id: &str, place: &str) -> Sync {
    #[derive(Deserialize)]
    struct Varz {
        server_id: String,
        #[serde(default)]
        jetstream: Option<JetStream>,
    }
    #[derive(Deserialize)]
    struct JetStream {
        #[serde(default)]
        config: JetStreamConfig,
    }
    match serde_json::from_str::<Varz>(varz) {
        Ok(varz) if varz.server_id != server_id => {
            Sync::Unknown(format!("the monitoring port {place} is another server's"))
        }
        Ok(Varz { jetstream: Some(jetstream), .. }) => jetstream.config.sync(),
        Ok(_) => Sync::Unknown(format!("the server at {place} says nothing of JetStream")),
        Err(e) => Sync::Unknown(format!("what {place} answers cannot be read: {e}")),
    }
}

/// The host of the first of some NATS URLs.
fn host_of(urls: &str) -> String {
    let first = urls.split(',').next().unwrap_or_default();
    let rest = first.split_once("://").map_or(first, |(_, rest)| rest);
    let place = rest.rsplit_once('@').map_or(rest, |(_, place)| place);
    let place = place.split('/').next().unwrap_or_default();
    match place.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host.to_owned(),
        _ => place.to_owned(),
    }
}

/// The body of a plain http answer.
async fn get(place: &str, path: &str) -> std::io::Result<String> {
    let mut stream = tokio::net::TcpStream::connect(place).await?;
    stream
        .write_all(
            format!("GET {path} HTTP/1.0\r\nHost: {place}\r\nConnection: close\r\n\r\n").as_bytes(),
        )
        .await?;
    let mut answer = Vec::new();
    stream.take(MONITOR_BYTES_MAX).read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
    body.ok_or_else(|| std::io::Error::other("no http answer"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sync_setting_is_read_of_the_right_server() {
        let varz = |config: &str| {
            format!(r#"{{"server_id":"A","jetstream":{{"config":{config},"stats":{{}}}}}}"#)
        };
        let check = |text: &str, expected: &Sync| {
            assert_eq!(&sync_of(text, "A", "h:1"), expected, "{text}");
        };
        check(&varz(r#"{"sync_interval":120000000000,"sync_always":true}"#), &Sync::Always);
        check(&varz(r#"{"sync_interval":120000000000}"#), &Sync::Every(120_000));
        for text in [&varz("{}"), r#"{"server_id":"B"}"#, r#"{"server_id":"A"}"#, "<html>"] {
            assert!(matches!(sync_of(text, "A", "h:1"), Sync::Unknown(_)), "{text}");
        }
    }

    #[test]
    fn hosts_are_found_in_urls() {
        for (url, expected) in [
            ("nats://h:4222", "h"),
            ("h", "h"),
            ("tls://u:p@h.example:1,nats://x", "h.example"),
            ("nats://[::1]:4222", "[::1]"),
        ] {
            assert_eq!(host_of(url), expected, "{url}");
        }
    }

    #[test]
    fn times_of_answers_are_read() {
        assert_eq!(unix_ms("2023-11-14T22:13:20.123456789Z"), Some(1_700_000_000_123));
        assert_eq!(unix_ms(""), None);
    }
}
