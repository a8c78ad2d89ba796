//! Why a request of S3 failed: what the transport, or the store's answer, says of it, as a kind and
//! in words for people.
//!
//! `object_store` keeps status, code and cause to itself, so [`super::http`] looks at each answer
//! before it does, and sends a [`Failure`] through it, which is found again among the sources of
//! its error ([`Failure::of`]). What no wait mends (a name that nobody knows, a certificate,
//! credentials, a clock) is [`ErrorKind::Setup`].

use std::error::Error as StdError;
use std::fmt;
use std::io;

use object_store::client::{HttpError, HttpErrorKind};
use quick_xml::Reader;
use quick_xml::events::Event;
use serde::Deserialize;

use super::names::NameError;
use muster_protocol::error::ErrorKind;

/// Characters of a store's message that are shown.
const MESSAGE_CHARS_MAX: usize = 300;
/// From here on a clock is worth mentioning, in seconds: S3 takes fifteen minutes.
const SKEW_MIN_S: u64 = 600;

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// Whom was asked: the endpoint, and the proxy where there is one.
    pub(super) whom: String,
    pub(super) cause: Cause,
    /// Whether that place has answered this process before: what worked once may work again.
    pub(super) answered_before: bool,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Cause {
    /// The host's name is not known.
    NameUnknown { host: String },
    /// Names cannot be looked up at present.
    NamesUnavailable { host: String, text: String },
    /// No connection came about.
    Unconnected { text: String },
    /// No connection, or no whole answer, within the time-out.
    TimedOut { connecting: bool },
    /// There is no agreement on TLS: a certificate, a version.
    Tls { text: String },
    /// https was spoken to something that does not.
    NoTls,
    /// http was spoken to something that does not.
    NoHttp,
    /// The connection broke off; `greeting` where it had just come about.
    Broken { text: String, greeting: bool },
    /// There is nothing to sign requests with.
    NoCredentials { text: String },
    /// A profile of the AWS tools gives no credentials; `passing` where whom it asks does not
    /// answer at present.
    Profile { text: String, passing: bool },
    /// The store has answered, but not with what was asked for.
    Answer(Answer),
    /// Anything else.
    Other { text: String },
}

/// An answer that is no success.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// S3's word for it; empty where it gives none, as to HEAD.
    pub(super) code: String,
    pub(super) message: String,
    /// The region that the bucket is in, where the store says so.
    pub(super) region: Option<String>,
    /// By how much this machine's clock is ahead of the store's, in seconds.
    pub(super) ahead_s: Option<i64>,
}

/// The body of an answer, as S3 writes it.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Body {
    code: String,
    message: String,
    region: Option<String>,
}

/// What an answer means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    Denied,
    Expired,
    BadToken,
    UnknownKey,
    BadSignature,
    Skewed,
    Region,
    NoBucket,
    NotFound,
    NotBuilt,
    SlowDown,
    Passing,
    Refused,
}

impl Answer {
    /// The answer of a status with such a body; the rest of it is set by whoever has the headers.
    pub(super) fn new(status: u16, body: &[u8]) -> Self {
        let text = String::from_utf8_lossy(body);
        let Body { code, message, region } = match is_error_body(body) {
            true => quick_xml::de::from_str(&text).unwrap_or_default(),
            // Whoever answers in HTML or in plain words is no S3, but may say something.
            false if text.trim_start().starts_with('<') => Body::default(),
            false => Body {
                message: text.lines().next().unwrap_or_default().to_owned(),
                ..Body::default()
            },
        };
        let plain = |text: &str| -> String {
            let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
            words.chars().filter(|c| !c.is_control()).take(MESSAGE_CHARS_MAX).collect()
        };
        Self { status, code: plain(&code), message: plain(&message), region, ahead_s: None }
    }

    fn meaning(&self) -> Meaning {
        match self.code.as_str() {
            "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired" => Meaning::Expired,
            "InvalidToken"
            | "InvalidSecurity"
            | "InvalidClientTokenId"
            | "UnrecognizedClientException" => Meaning::BadToken,
            "InvalidAccessKeyId" | "NotSignedUp" => Meaning::UnknownKey,
            "SignatureDoesNotMatch" => Meaning::BadSignature,
            "RequestTimeTooSkewed" | "RequestExpired" => Meaning::Skewed,
            "AuthorizationHeaderMalformed"
            | "PermanentRedirect"
            | "IllegalLocationConstraintException" => Meaning::Region,
            "NoSuchBucket" => Meaning::NoBucket,
            "NoSuchKey" | "NoSuchUpload" | "NoSuchVersion" => Meaning::NotFound,
            "NotImplemented" | "MethodNotAllowed" => Meaning::NotBuilt,
            "SlowDown"
            | "TooManyRequests"
            | "RequestLimitExceeded"
            | "Throttling"
            | "ThrottlingException"
            | "ServiceUnavailable" => Meaning::SlowDown,
            "RequestTimeout" | "InternalError" | "OperationAborted" | "IncompleteBody"
            | "BadDigest" => Meaning::Passing,
            _ => self.meaning_of_status(),
        }
    }

    fn meaning_of_status(&self) -> Meaning {
        let skewed = self.ahead_s.is_some_and(|ahead_s| ahead_s.unsigned_abs() > SKEW_MIN_S);
        match self.status {
            401 | 403 if skewed && self.code.is_empty() => Meaning::Skewed,
            401 | 403 => Meaning::Denied,
            404 => Meaning::NotFound,
            405 | 501 => Meaning::NotBuilt,
            429 | 503 => Meaning::SlowDown,
            408 | 409 | 416 | 425 => Meaning::Passing,
            400 if self.region.is_some() => Meaning::Region,
            300..=399 => Meaning::Region,
            400..=431 => Meaning::Refused,
            _ => Meaning::Passing,
        }
    }

    /// Whether nothing but the status is known of it, as of an answer to HEAD: another question may
    /// tell more.
    pub(super) fn is_mute(&self) -> bool {
        self.code.is_empty()
            && self.message.is_empty()
            && matches!(self.status, 301 | 307 | 400 | 401 | 403)
    }
}

/// Whether a body is an error as S3 writes one, whatever the status: a long call may have begun its
/// answer before it failed.
pub(super) fn is_error_body(body: &[u8]) -> bool {
    let mut reader = Reader::from_reader(body);
    loop {
        match reader.read_event() {
            Ok(Event::Start(element)) => return element.local_name().as_ref() == b"Error",
            Ok(Event::Eof | Event::Empty(_) | Event::End(_)) | Err(_) => return false,
            Ok(_) => {}
        }
    }
}

impl Failure {
    /// The failure among the sources of an error, if one is there.
    pub(super) fn of<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a Self> {
        sources(error).find_map(|source| source.downcast_ref::<Self>())
    }

    /// What a caller can do.
    pub(super) fn kind(&self) -> ErrorKind {
        // A name may go and come back with the machine that bears it, and a peer may break off in
        // the midst of a greeting.
        let once = if self.answered_before { ErrorKind::Retry } else { ErrorKind::Setup };
        match &self.cause {
            Cause::Profile { passing: true, .. } => ErrorKind::Retry,
            Cause::NoCredentials { .. } | Cause::Profile { .. } => once,
            Cause::NameUnknown { .. } | Cause::Tls { .. } | Cause::NoTls | Cause::NoHttp => once,
            Cause::NamesUnavailable { .. }
            | Cause::Unconnected { .. }
            | Cause::TimedOut { .. }
            | Cause::Broken { .. }
            | Cause::Other { .. } => ErrorKind::Retry,
            Cause::Answer(answer) => match answer.meaning() {
                Meaning::Expired
                | Meaning::BadToken
                | Meaning::UnknownKey
                | Meaning::BadSignature
                | Meaning::Skewed
                | Meaning::Region => ErrorKind::Setup,
                Meaning::Denied | Meaning::NoBucket | Meaning::NotBuilt | Meaning::Refused => {
                    ErrorKind::Invalid
                }
                Meaning::NotFound => ErrorKind::NotFound,
                Meaning::SlowDown => ErrorKind::Throttled,
                Meaning::Passing => ErrorKind::Retry,
            },
        }
    }

    /// Whether the store cannot be used at present: what is waited for, and said.
    pub(super) fn is_absence(&self) -> bool {
        self.kind().is_passing()
            && !matches!(&self.cause, Cause::Answer(answer) if answer.status < 500)
    }

    /// As what it goes through `object_store`, which repeats what it takes for a request that has
    /// done nothing.
    pub(super) fn into_http(self) -> HttpError {
        let kind = match (&self.cause, self.kind().is_passing()) {
            (_, false) => HttpErrorKind::Unknown,
            (Cause::TimedOut { connecting: false }, _) => HttpErrorKind::Timeout,
            (Cause::Broken { .. }, _) => HttpErrorKind::Interrupted,
            (Cause::Answer(answer), _) if matches!(answer.status, 409 | 416) => {
                HttpErrorKind::Unknown
            }
            (Cause::Other { .. }, _) => HttpErrorKind::Unknown,
            _ => HttpErrorKind::Connect,
        };
        HttpError::new(kind, self)
    }

    /// What the transport says.
    pub(super) fn of_transport(error: &(dyn StdError + 'static), kind: HttpErrorKind) -> Cause {
        let (mut unknown, mut last) = (None, String::new());
        for source in sources(error) {
            if let Some(name) = source.downcast_ref::<NameError>() {
                return name.cause();
            }
            if let Some(tls) = source.downcast_ref::<rustls::Error>() {
                return of_tls(tls);
            }
            if let Some(http) = source.downcast_ref::<hyper::Error>()
                && http.is_parse()
            {
                return Cause::NoHttp;
            }
            if let Some(io) = source.downcast_ref::<io::Error>() {
                unknown = unknown.or_else(|| of_io(io));
            }
            last = source.to_string();
        }
        let connecting = kind == HttpErrorKind::Connect;
        match (unknown, kind) {
            (Some(Cause::Broken { text, .. }), _) => Cause::Broken { text, greeting: connecting },
            (Some(cause), _) => cause,
            (None, HttpErrorKind::Timeout) => Cause::TimedOut { connecting: false },
            (None, _) if connecting => Cause::Unconnected { text: last },
            (None, HttpErrorKind::Request | HttpErrorKind::Interrupted) => {
                Cause::Broken { text: last, greeting: false }
            }
            (None, _) => Cause::Other { text: last },
        }
    }
}

/// An error and all that it comes of. An `io::Error` hides the error that it was made of, unless it
/// is asked for it.
pub(super) fn sources<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    fn below<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a (dyn StdError + 'static)> {
        match error.downcast_ref::<io::Error>() {
            Some(io) => io.get_ref().map(|inner| inner as &(dyn StdError + 'static)),
            None => error.source(),
        }
    }
    std::iter::successors(Some(error), |error| below(*error))
}

fn of_tls(error: &rustls::Error) -> Cause {
    use rustls::Error as E;
    match error {
        // What is no record of TLS at all.
        E::InvalidMessage(rustls::InvalidMessage::InvalidContentType) => Cause::NoTls,
        E::InvalidMessage(rustls::InvalidMessage::UnknownProtocolVersion) => Cause::NoTls,
        other => Cause::Tls { text: other.to_string() },
    }
}

fn of_io(error: &io::Error) -> Option<Cause> {
    use io::ErrorKind as K;
    let text = || error.to_string();
    match error.kind() {
        K::ConnectionRefused
        | K::HostUnreachable
        | K::NetworkUnreachable
        | K::AddrNotAvailable
        | K::NetworkDown => Some(Cause::Unconnected { text: text() }),
        K::TimedOut => Some(Cause::TimedOut { connecting: true }),
        K::ConnectionReset | K::ConnectionAborted | K::BrokenPipe | K::UnexpectedEof => {
            Some(Cause::Broken { text: text(), greeting: false })
        }
        _ => None,
    }
}

impl StdError for Failure {}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whom = &self.whom;
        match &self.cause {
            Cause::NameUnknown { host } => {
                write!(f, "nobody knows the name {host}; is {whom} right?")
            }
            Cause::NamesUnavailable { host, text } => {
                write!(f, "the name {host} cannot be looked up at present: {text}")
            }
            Cause::Unconnected { text } => write!(f, "no connection to {whom}: {text}"),
            Cause::TimedOut { connecting: true } => write!(f, "no connection to {whom} in time"),
            Cause::TimedOut { connecting: false } => write!(f, "no answer from {whom} in time"),
            Cause::Tls { text } => {
                write!(
                    f,
                    "no secure connection to {whom}: {text}; for a certificate of your own set \
                        SSL_CERT_FILE"
                )
            }
            Cause::NoTls => {
                write!(f, "{whom} does not speak TLS: is it http:// instead of https://?")
            }
            Cause::NoHttp => {
                write!(f, "{whom} does not answer in HTTP: is it https:// instead of http://?")
            }
            Cause::Broken { text, greeting: true } => {
                let other = if whom.starts_with("https") { "http" } else { "https" };
                write!(f, "{whom} breaks off the connection at once: {text}; is it {other}://?")
            }
            Cause::Broken { text, .. } => write!(f, "the connection to {whom} broke off: {text}"),
            Cause::NoCredentials { text } => write!(
                f,
                "no credentials: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not set, no AWS \
                    profile gives any, and {whom} gives none \
                 ({text}); set AWS_PROFILE to a profile of ~/.aws/config, or for a public bucket \
                 AWS_SKIP_SIGNATURE=true"
            ),
            Cause::Profile { text, .. } => write!(f, "{whom} gives no credentials: {text}"),
            Cause::Other { text } => write!(f, "a request to {whom} failed: {text}"),
            Cause::Answer(answer) => write!(f, "{answer} ({whom})"),
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.meaning() {
            Meaning::Denied => {
                f.write_str("access denied; check the credentials and the rights of their user: ")?;
            }
            Meaning::Expired => {
                f.write_str("the session token has expired; get new credentials: ")?;
            }
            Meaning::BadToken => {
                f.write_str("access denied; the session token (AWS_SESSION_TOKEN) is not valid: ")?;
            }
            Meaning::UnknownKey => {
                f.write_str(
                    "access denied; the store does not know this access key (AWS_ACCESS_KEY_ID): ",
                )?;
            }
            Meaning::BadSignature => {
                f.write_str(
                    "access denied; the secret key (AWS_SECRET_ACCESS_KEY) is not that of \
                    the access key: ",
                )?;
            }
            Meaning::Skewed => match self.ahead_s {
                Some(ahead_s) if ahead_s.unsigned_abs() > 60 => {
                    let by = humantime::format_duration(std::time::Duration::from_secs(
                        ahead_s.unsigned_abs(),
                    ));
                    let how = if ahead_s > 0 { "ahead of" } else { "behind" };
                    write!(
                        f,
                        "the clock of this machine is {by} {how} that of the store; set it: "
                    )?;
                }
                _ => f.write_str(
                    "the clock of this machine differs from that of the store; set it: ",
                )?,
            },
            Meaning::Region => match &self.region {
                Some(region) => {
                    write!(f, "the bucket is in the region {region:?}; set AWS_REGION to it: ")?;
                }
                None => f.write_str(
                    "this is not the place of the bucket; check AWS_REGION and AWS_ENDPOINT_URL: ",
                )?,
            },
            Meaning::NoBucket => f.write_str("there is no such bucket: ")?,
            Meaning::NotBuilt => f.write_str("the store does not have this call: ")?,
            Meaning::SlowDown => f.write_str("the store asks for fewer requests: ")?,
            Meaning::NotFound | Meaning::Passing | Meaning::Refused => {}
        }
        match hyper::StatusCode::from_u16(self.status) {
            Ok(status) => write!(f, "the store answers {status}")?,
            Err(_) => write!(f, "the store answers {}", self.status)?,
        }
        if !self.code.is_empty() {
            write!(f, ", {}", self.code)?;
        }
        if self.message.is_empty() { Ok(()) } else { write!(f, ": {}", self.message) }
    }
}

#[cfg(test)]
#[path = "failure_tests.rs"]
mod tests;
