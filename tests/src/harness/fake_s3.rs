//! A server that speaks as much S3 as a case needs: each request is answered by a function of the
//! test, and kept. For what no real server can be brought to say.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// A request, as far as tests look at it.
#[derive(Debug, Clone)]
pub struct Request {
    /// `METHOD /path?query`.
    pub line: String,
    /// Names in lower case, with their values.
    pub headers: Vec<(String, String)>,
    /// The first bytes of the body.
    pub body: Vec<u8>,
}

/// Bytes of a body that are kept.
const BODY_KEPT: u64 = 64 << 10;

/// What is sent back: the raw bytes of an answer. The connection ends with it.
pub type Reply = Vec<u8>;

/// The server. It listens until the test's process ends.
#[derive(Debug)]
pub struct FakeS3 {
    port: u16,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Request {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

impl FakeS3 {
    /// Answers by `answer`, on a port of its own.
    ///
    /// # Panics
    /// Where it cannot listen.
    pub fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a server can listen");
        let port = listener.local_addr().expect("it has an address").port();
        let requests: Arc<Mutex<Vec<Request>>> = Arc::default();
        let (kept, answer) = (requests.clone(), Arc::new(answer));
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (kept, answer) = (kept.clone(), answer.clone());
                thread::spawn(move || {
                    // A client that goes away in the midst is its own affair.
                    let _ = serve(&client, |request| {
                        kept.lock().unwrap_or_else(PoisonError::into_inner).push(request.clone());
                        answer(request)
                    });
                });
            }
        });
        Self { port, requests }
    }

    /// `http://127.0.0.1:port`.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// What it was asked so far.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// An answer of a status with a body; `headers` are lines that end in CR LF.
pub fn reply(status: &str, headers: &str, body: &str) -> Reply {
    let bytes = body.len();
    format!(
        "HTTP/1.1 {status}\r\n{headers}Content-Length: {bytes}\r\nConnection: close\r\n\r\n{body}"
    )
    .into_bytes()
}

/// The body of an error, as S3 writes it.
pub fn error_body(code: &str, message: &str) -> String {
    format!(
        "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{message}</Message>\
         <RequestId>REQUEST-ID</RequestId></Error>"
    )
}

fn serve(client: &TcpStream, answer: impl Fn(&Request) -> Reply) -> io::Result<()> {
    let mut reader = BufReader::new(client);
    let mut head = Vec::new();
    loop {
        let mut line = Vec::new();
        // What is no HTTP (the greeting of TLS) has no lines either; it is answered all the same.
        let count = reader.by_ref().take(8 << 10).read_until(b'\n', &mut line)?;
        if count == 0 {
            return Ok(());
        }
        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
        let in_http = !head.is_empty() || line.contains(" HTTP/1");
        if line.is_empty() || !in_http {
            break;
        }
        head.push(line);
    }
    let mut lines = head.into_iter();
    let line = lines.next().unwrap_or_default();
    let line = line.rsplit_once(' ').map_or(line.clone(), |(request, _)| request.to_owned());
    let header = |text: String| {
        let (name, value) = text.split_once(':')?;
        Some((name.to_ascii_lowercase(), value.trim().to_owned()))
    };
    let mut request =
        Request { line, headers: lines.filter_map(header).collect(), body: Vec::new() };
    let bytes =
        request.header("content-length").and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    let mut body = reader.take(bytes);
    body.by_ref().take(BODY_KEPT).read_to_end(&mut request.body)?;
    io::copy(&mut body, &mut io::sink())?;
    let mut reply = answer(&request);
    if request.line.starts_with("HEAD ") {
        // The answer to HEAD is a head.
        let end =
            reply.windows(4).position(|four| four == b"\r\n\r\n").map_or(reply.len(), |at| at + 4);
        reply.truncate(end);
    }
    (&mut &*client).write_all(&reply)
}
