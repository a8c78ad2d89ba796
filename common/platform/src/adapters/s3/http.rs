//! The http client of one bucket: that of `object_store`, with an eye on each answer.
//!
//! What is no success becomes a [`Failure`] here, before `object_store` makes words of it, and what
//! is learnt of the store's absence is told at the first failure, not when the repeats are over.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use hyper::header::{DATE, HeaderMap};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpResponseBody, HttpService,
    ReqwestConnector,
};

use super::failure::{Answer, Cause, Failure, is_error_body};
use super::names::SystemNames;
use super::settings;
use crate::clock::{Clock, SystemClock};
use crate::config;
use crate::store::Troubles;

/// Longest body of an error that is read, in bytes.
const ERROR_BYTES_MAX: usize = 64 << 10;
/// The header by which AWS says where a bucket is, to HEAD too.
const REGION_HEADER: &str = "x-amz-bucket-region";

/// Makes the client that `object_store` and the calls of our own share.
#[derive(Debug, Clone)]
pub(super) struct Connector {
    pub(super) watched: Arc<Watched>,
}

/// A client that looks at what it gets.
#[derive(Debug)]
pub(super) struct Watched {
    client: HttpClient,
    whom: String,
    store: String,
    answered: AtomicBool,
    troubles: Troubles,
}

/// Options of the client for an endpoint.
pub(super) fn options(endpoint: &str, limits: &config::Store) -> ClientOptions {
    ClientOptions::new()
        .with_timeout(Duration::from_millis(limits.request_timeout_ms))
        .with_connect_timeout(Duration::from_millis(limits.connect_timeout_ms))
        .with_allow_http(endpoint.starts_with("http://"))
        .with_dns_resolver(Arc::new(SystemNames))
}

impl Connector {
    /// The client of `store` at `endpoint`.
    ///
    /// # Errors
    /// That of the http client, where it cannot be made.
    pub(super) fn new(
        store: String,
        endpoint: &str,
        options: &ClientOptions,
        troubles: Troubles,
    ) -> object_store::Result<Self> {
        let whom = match settings::proxy_of(endpoint) {
            Some(proxy) => format!("{endpoint} by the proxy {proxy}"),
            None => endpoint.to_owned(),
        };
        let client = ReqwestConnector::default().connect(options)?;
        let watched = Watched { client, whom, store, answered: AtomicBool::new(false), troubles };
        Ok(Self { watched: Arc::new(watched) })
    }

    /// The client itself.
    pub(super) fn client(&self) -> HttpClient {
        HttpClient::new(Shared(self.watched.clone()))
    }
}

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(self.client())
    }
}

#[derive(Debug)]
struct Shared(Arc<Watched>);

#[async_trait]
impl HttpService for Shared {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let watched = &self.0;
        // It may say so in the body of a success.
        let slow = request.method() == hyper::Method::POST;
        let answered_before = watched.answered.load(Ordering::Relaxed);
        let failed = |cause: Cause| {
            let failure = Failure { whom: watched.whom.clone(), cause, answered_before };
            if failure.is_absence() {
                watched.troubles.begin(&watched.store, &failure);
            }
            Err(failure.into_http())
        };
        let response = match watched.client.execute(request).await {
            Ok(response) => response,
            Err(error) => return failed(Failure::of_transport(&error, error.kind())),
        };
        watched.answered.store(true, Ordering::Relaxed);
        let status = response.status();
        if status.is_success() && !slow {
            watched.troubles.end(&watched.store);
            return Ok(response);
        }
        let (parts, body) = response.into_parts();
        let body = match read(body).await {
            Ok(body) => body,
            Err(error) => return failed(Failure::of_transport(&error, error.kind())),
        };
        if status.is_success() && !is_error_body(&body) {
            watched.troubles.end(&watched.store);
            return Ok(HttpResponse::from_parts(parts, body.into()));
        }
        // An error in a success comes of a long call that failed in the midst.
        let number = if status.is_success() { 500 } else { status.as_u16() };
        let answer = Answer::new(number, &body);
        let region = parts
            .headers
            .get(REGION_HEADER)
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned);
        let answer =
            Answer { region: answer.region.or(region), ahead_s: ahead_s(&parts.headers), ..answer };
        if number < 500 {
            watched.troubles.end(&watched.store);
        }
        failed(Cause::Answer(answer))
    }
}

/// A whole body, cut to a bound.
///
/// # Errors
/// That of the transport, where it breaks off.
pub(super) async fn read(body: HttpResponseBody) -> Result<Vec<u8>, HttpError> {
    let mut bytes = Vec::new();
    let mut stream = body.bytes_stream();
    while let Some(chunk) = stream.next().await {
        bytes.extend_from_slice(&chunk?);
        if bytes.len() > ERROR_BYTES_MAX {
            bytes.truncate(ERROR_BYTES_MAX);
            break;
        }
    }
    Ok(bytes)
}

/// By how much this machine's clock is ahead of that of whoever answers, in seconds.
fn ahead_s(headers: &HeaderMap) -> Option<i64> {
    let date = httpdate::parse_http_date(headers.get(DATE)?.to_str().ok()?).ok()?;
    let theirs_s = date.duration_since(std::time::UNIX_EPOCH).ok()?.as_secs();
    let ours_s = SystemClock::default().unix_ms() / 1000;
    i64::try_from(i128::from(ours_s) - i128::from(theirs_s)).ok()
}
