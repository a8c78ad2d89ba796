//! The small HTTP server of a long-running process: `/healthz`, `/readyz` and `/metrics`, and
//! nothing else. It shows [`Vitals`] and changes nothing.
//!
//! Whoever can reach it may be slow or hostile, so all has a bound: one request a connection, its
//! head within [`HEAD_TIME`] and [`HEAD_BYTES_MAX`], all of it within [`WHOLE_TIME`], and
//! [`CONNECTIONS_MAX`] connections, of which the oldest makes room for a new one: a request of a
//! probe or a scraper takes milliseconds, so it gets through while somebody else holds connections
//! open. No body is read.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

use crate::vitals::Vitals;
use muster_protocol::error::{Error, Result};

/// Connections at once.
pub const CONNECTIONS_MAX: usize = 64;
/// Bytes of a request's head; hyper takes no less.
pub const HEAD_BYTES_MAX: usize = 8192;
/// Fields of a request's head.
const HEAD_FIELDS_MAX: usize = 64;
/// How long a request's head may take.
pub const HEAD_TIME: Duration = Duration::from_secs(3);
/// How long a connection may last.
pub const WHOLE_TIME: Duration = Duration::from_secs(10);
/// Pause after a connection that could not be taken, most likely because the process has too many
/// files open.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// How often what histograms were given is summed up, where nobody asks for it.
const UPKEEP: Duration = Duration::from_secs(5);

const JSON: &str = "application/json";
const PLAIN: &str = "text/plain; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A server that listens.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    vitals: Arc<Vitals>,
}

impl Server {
    /// Listens at an address; at one of its own choice where the port is 0.
    ///
    /// # Errors
    /// `Invalid` where it cannot, with the address.
    pub async fn bind(address: SocketAddr, vitals: Arc<Vitals>) -> Result<Self> {
        let refuse =
            |e: std::io::Error| Error::invalid(format!("cannot serve http at {address}: {e}"));
        let listener = TcpListener::bind(address).await.map_err(refuse)?;
        let address = listener.local_addr().map_err(refuse)?;
        Ok(Self { listener, address, vitals })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until it is dropped.
    pub async fn serve(self) -> Infallible {
        let Self { listener, vitals, .. } = self;
        let mut tasks = JoinSet::new();
        let mut open: VecDeque<AbortHandle> = VecDeque::new();
        let mut upkeep = tokio::time::interval(UPKEEP);
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        open.retain(|connection| !connection.is_finished());
                        if open.len() >= CONNECTIONS_MAX && let Some(oldest) = open.pop_front() {
                            oldest.abort();
                        }
                        open.push_back(tasks.spawn(attend(stream, vitals.clone())));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "an http connection was not taken");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(_) = tasks.join_next() => {}
                _ = upkeep.tick() => vitals.upkeep(),
            }
        }
    }
}

/// One connection, to its end.
async fn attend(stream: TcpStream, vitals: Arc<Vitals>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = answer(request.method(), request.uri().path(), &vitals);
        async move { Ok::<_, Infallible>(answer) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEAD_FIELDS_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(WHOLE_TIME, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "an http request came to nothing"),
        Err(_) => tracing::debug!("an http client took too long"),
    }
}

/// What a request is answered with.
fn answer(method: &Method, path: &str, vitals: &Vitals) -> Response<Full<Bytes>> {
    if !matches!(path, "/healthz" | "/readyz" | "/metrics") {
        return response(
            StatusCode::NOT_FOUND,
            PLAIN,
            "there are /healthz, /readyz and /metrics\n",
        );
    }
    if !matches!(*method, Method::GET | Method::HEAD) {
        let mut refused = response(StatusCode::METHOD_NOT_ALLOWED, PLAIN, "only GET and HEAD\n");
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    match path {
        "/metrics" => response(StatusCode::OK, PROMETHEUS, vitals.render()),
        "/readyz" => {
            let standing = vitals.standing();
            let status =
                if standing.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            match serde_json::to_vec(&standing) {
                Ok(body) => response(status, JSON, body),
                Err(error) => response(StatusCode::INTERNAL_SERVER_ERROR, PLAIN, error.to_string()),
            }
        }
        _ => match vitals.stuck_ms() {
            None => response(StatusCode::OK, PLAIN, "alive\n"),
            Some(ms) => {
                let text =
                    format!("the main loop has not come round for {ms} ms (http.stuck_ms)\n");
                response(StatusCode::SERVICE_UNAVAILABLE, PLAIN, text)
            }
        },
    }
}

fn response(
    status: StatusCode,
    kind: &'static str,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::task::JoinHandle;

    struct Served {
        address: SocketAddr,
        vitals: Arc<Vitals>,
        clock: Arc<ManualClock>,
        task: JoinHandle<Infallible>,
    }

    impl Drop for Served {
        fn drop(&mut self) {
            self.task.abort();
        }
    }

    async fn serve() -> Served {
        let clock = Arc::new(ManualClock::default());
        let vitals =
            Arc::new(Vitals::new("coordinator", "1", 1000, clock.clone()).expect("vitals"));
        let server = Server::bind("127.0.0.1:0".parse().expect("address"), vitals.clone())
            .await
            .expect("bind");
        let address = server.address();
        Served { address, vitals, clock, task: tokio::spawn(server.serve()) }
    }

    async fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.expect("connect");
        stream.write_all(request.as_bytes()).await.expect("send");
        let mut answer = Vec::new();
        // What is refused in the midst of sending may end with a reset after the answer.
        drop(stream.read_to_end(&mut answer).await);
        String::from_utf8_lossy(&answer).into_owned()
    }

    #[tokio::test]
    async fn paths_and_methods_are_answered_as_they_should() {
        let served = serve().await;
        let check = async |line: &str, status: &str, words: &[&str]| {
            let answer = ask(served.address, &format!("{line} HTTP/1.1\r\nhost: x\r\n\r\n")).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{line}: {answer}");
            assert!(
                words.iter().all(|word| answer.contains(word)),
                "{line}: {words:?} in {answer}"
            );
            assert!(answer.contains("cache-control: no-store"), "{answer}");
        };
        check("GET /healthz", "200", &["alive"]).await;
        check("GET /healthz?probe=1", "200", &["alive"]).await;
        check("HEAD /healthz", "200", &["content-length: 6"]).await;
        check("GET /readyz", "503", &["application/json", r#""ready":false,"role":"starting""#])
            .await;
        check("GET /metrics", "200", &["version=0.0.4", "# TYPE muster_build_info gauge"]).await;
        check("GET /", "404", &["/metrics"]).await;
        check("GET /metrics/", "404", &[]).await;
        check("GET /%2e%2e/etc/passwd", "404", &[]).await;
        check("POST /metrics", "405", &["allow: GET, HEAD"]).await;
        check("DELETE /healthz", "405", &[]).await;
        check("POST /nowhere", "404", &[]).await;
    }

    #[tokio::test]
    async fn a_loop_that_is_stuck_is_told() {
        let served = serve().await;
        let health = async || ask(served.address, "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await;
        served.vitals.turn();
        assert!(health().await.starts_with("HTTP/1.1 200"));
        served.clock.advance_ms(1500);
        let stuck = health().await;
        assert!(
            stuck.starts_with("HTTP/1.1 503") && stuck.contains("1500 ms (http.stuck_ms)"),
            "{stuck}"
        );
        served.vitals.turn();
        assert!(health().await.starts_with("HTTP/1.1 200"));
    }

    #[tokio::test]
    async fn what_is_too_large_or_no_request_is_refused() {
        let served = serve().await;
        let long = "a".repeat(2 * HEAD_BYTES_MAX);
        let many: String = (0..=HEAD_FIELDS_MAX).map(|at| format!("f{at}: x\r\n")).collect();
        for request in [
            format!("GET /{long} HTTP/1.1\r\nhost: x\r\n\r\n"),
            format!("GET /healthz HTTP/1.1\r\nhost: x\r\nlong: {long}\r\n\r\n"),
            format!("GET /healthz HTTP/1.1\r\n{many}\r\n"),
            "\0\u{1}\u{2} nonsense\r\n\r\n".to_owned(),
        ] {
            let answer = ask(served.address, &request).await;
            assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
        }
        assert!(
            ask(served.address, "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.contains("alive")
        );
    }

    #[tokio::test]
    async fn one_request_a_connection() {
        let served = serve().await;
        let two = "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n".repeat(2);
        assert_eq!(ask(served.address, &two).await.matches("HTTP/1.1").count(), 1);
    }

    #[tokio::test]
    async fn connections_that_are_held_open_keep_nobody_out() {
        let served = serve().await;
        let mut held = Vec::new();
        for _ in 0..2 * CONNECTIONS_MAX {
            let mut stream = TcpStream::connect(served.address).await.expect("connect");
            stream.write_all(b"GET /heal").await.expect("send");
            held.push(stream);
        }
        assert!(
            ask(served.address, "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.contains("alive")
        );
        // The first to come was the first to make room.
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(HEAD_TIME / 2, held[0].read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "the oldest connection is still open");
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_never_ends_is_ended() {
        let served = serve().await;
        let mut stream = TcpStream::connect(served.address).await.expect("connect");
        stream.write_all(b"GET /healthz HTTP/1.1\r\nhost:").await.expect("send");
        let mut answer = Vec::new();
        let ended = tokio::time::timeout(WHOLE_TIME * 2, stream.read_to_end(&mut answer)).await;
        assert!(ended.is_ok(), "a client that sends half a request holds its connection for ever");
    }
}
