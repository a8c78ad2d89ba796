//! A gate between a process and its object store: a TCP relay that can make requests slow, or hold
//! them back.
//!
//! It is how a test hits a moment without sleeping: a worker whose upload is held is certainly in
//! the midst of that task, and stays there until the test has killed it. What a gate looks at is
//! the first line of each HTTP request, which a client writes at the head of a packet.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::wait;

/// Says of a request line, such as `PUT /bucket/key?partNumber=1`, whether it is meant.
pub type Choice = fn(&str) -> bool;

/// A relay to one server; it opens when it is dropped.
#[derive(Debug)]
pub struct Gate {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Which requests are held; none where the gate is open.
    held: Option<Choice>,
    /// Requests of that choice that still pass before the others are held.
    pass_first: usize,
    /// Requests that are answered here, with these bytes; the connection ends with that.
    refused: Option<(Choice, Vec<u8>)>,
    /// Time that each request is delayed by.
    delay: Duration,
    /// Requests that stand before the gate, each with the number that it drew. One passes when it
    /// is taken out of here, so that what an opened gate lets through is not taken for a request
    /// that a gate closed right after holds.
    waiting: Vec<(u64, String)>,
    /// The next number.
    number: u64,
    /// Requests that change something, whether they have passed or not.
    changes: Vec<String>,
    /// No new connections, and those there are end.
    closed: bool,
}

impl Gate {
    /// An open gate before `127.0.0.1:port`.
    ///
    /// # Panics
    /// Where it cannot listen.
    pub fn before(port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a gate can listen");
        let gate = Self {
            port: listener.local_addr().expect("it has an address").port(),
            shared: Arc::default(),
        };
        let shared = gate.shared.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if shared.lock().closed {
                    return;
                }
                let shared = shared.clone();
                thread::spawn(move || shared.relay(&client, port));
            }
        });
        gate
    }

    /// What a client connects to instead of the server.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Delays each request from now on.
    pub fn delay(&self, delay: Duration) {
        self.shared.lock().delay = delay;
    }

    /// Holds the requests of this choice from now on, until it is opened.
    pub fn hold(&self, choice: Choice) {
        self.hold_after(0, choice);
    }

    /// Lets so many requests of this choice pass, then holds those that follow.
    pub fn hold_after(&self, pass_first: usize, choice: Choice) {
        self.shared.change(|state| {
            (state.held, state.pass_first) = (Some(choice), pass_first);
            state.waiting.retain(|(_, request)| choice(request));
        });
    }

    /// Answers the requests of this choice, which have no body, with the raw bytes of an answer,
    /// from now on.
    pub fn refuse(&self, choice: Choice, answer: Vec<u8>) {
        self.shared.change(|state| state.refused = Some((choice, answer)));
    }

    /// Holds every request.
    pub fn hold_all(&self) {
        self.hold(|_| true);
    }

    /// Lets through what is held, and all that follows, without delay.
    pub fn open(&self) {
        self.shared.change(|state| {
            (state.held, state.delay) = (None, Duration::ZERO);
            state.waiting.clear();
        });
    }

    /// Requests that have come to it and would change something, in their order.
    pub fn changes(&self) -> Vec<String> {
        self.shared.lock().changes.clone()
    }

    /// Waits until a request stands before the gate, and gives its first line.
    ///
    /// # Panics
    /// Where none comes within the bound.
    #[track_caller]
    pub fn wait_for_request(&self, what: &str, bound: Duration) -> String {
        wait::until(what, bound, || {
            self.shared.lock().waiting.first().map(|(_, request)| request.clone())
        })
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.shared.change(|state| {
            (state.held, state.closed) = (None, true);
            state.waiting.clear();
        });
        // Wakes the listener, so that it sees that it is closed.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    /// Copies both directions until either side ends.
    fn relay(&self, client: &TcpStream, port: u16) {
        let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else { return };
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        thread::scope(|scope| {
            scope.spawn(|| {
                let _ = io::copy(&mut &server, &mut &*client);
                let _ = client.shutdown(Shutdown::Both);
            });
            let _ = self.requests(client, &server);
            let _ = server.shutdown(Shutdown::Both);
        });
    }

    fn requests(&self, mut client: &TcpStream, mut server: &TcpStream) -> io::Result<()> {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let count = client.read(&mut buffer)?;
            if count == 0 {
                return Ok(());
            }
            if let Some(request) = request_line(&buffer[..count]) {
                self.pass(&request);
                let refused = self.lock().refused.clone().filter(|(choice, _)| choice(&request));
                if let Some((_, answer)) = refused {
                    return client.write_all(&answer);
                }
            }
            if self.lock().closed {
                return Ok(());
            }
            server.write_all(&buffer[..count])?;
        }
    }

    /// Returns when a request may go on.
    fn pass(&self, request: &str) {
        let mut state = self.lock();
        if !["GET", "HEAD"].iter().any(|method| request.starts_with(method)) {
            state.changes.push(request.to_owned());
        }
        let delay = state.delay;
        if state.held.is_some_and(|choice| choice(request)) && state.pass_first > 0 {
            state.pass_first -= 1;
        } else if state.held.is_some_and(|choice| choice(request)) {
            let number = state.number;
            state.number += 1;
            state.waiting.push((number, request.to_owned()));
            while state.waiting.iter().any(|(waiting, _)| *waiting == number) {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
        drop(state);
        thread::sleep(delay);
    }
}

/// `METHOD /path?query` where a packet begins with a request.
fn request_line(packet: &[u8]) -> Option<String> {
    let line = packet.split(|byte| *byte == b'\r').next()?;
    let line = std::str::from_utf8(line.get(..line.len().min(4096))?).ok()?;
    let (request, version) = line.rsplit_once(' ')?;
    let method = request.split(' ').next()?;
    (version.starts_with("HTTP/1") && ["GET", "PUT", "POST", "HEAD", "DELETE"].contains(&method))
        .then(|| request.to_owned())
}
