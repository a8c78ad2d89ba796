//! A TCP relay between one process and one server, or between two servers of a cluster, with
//! weather: it can refuse, stall, cut and, before a store, answer for the server.
//!
//! In a chaos one stands before each service of each process, so that a process can be cut off from
//! NATS alone or from the store alone, and in one direction only. A stalled direction holds its
//! bytes, as a network does that loses packets: once the weather is calm they go on, unless the
//! connection was given up meanwhile.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// What a relay does to what passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Weather {
    /// Nothing.
    #[default]
    Calm,
    /// Ends all connections and takes no new ones.
    Refuse,
    /// Holds what goes to the server (`up`), what comes from it (`down`), or both.
    Stall {
        /// From the process to the server.
        up: bool,
        /// From the server to the process.
        down: bool,
    },
    /// Ends each connection once so many bytes have passed in one direction: in the midst of a
    /// body.
    Snip {
        /// Bytes that still pass.
        after_bytes: usize,
    },
    /// Answers every HTTP request with 503.
    Busy,
}

/// A relay on a port of its own; it ends all connections when it is dropped.
#[derive(Debug)]
pub struct Relay {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    server: u16,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    weather: Weather,
    /// Added to each packet that a process sends, so that jobs last long enough to be disturbed.
    delay: Duration,
    /// Connections that stand, each with both of its ends.
    connections: Vec<(u64, TcpStream, TcpStream)>,
    opened: u64,
    closed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Up,
    Down,
}

const BUSY: &str = "<?xml version=\"1.0\"?><Error><Code>SlowDown</Code><Message>Reduce your \
    request rate.</Message></Error>";
/// How long a request that was answered by the relay may still send its body.
const DRAIN_BOUND: Duration = Duration::from_secs(1);

impl Relay {
    /// A calm relay before `127.0.0.1:server`.
    ///
    /// # Panics
    /// Where it cannot listen.
    pub fn before(server: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a relay can listen");
        let port = listener.local_addr().expect("it has an address").port();
        let shared = Arc::new(Shared { server, state: Mutex::default(), changed: Condvar::new() });
        let accepting = shared.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if accepting.lock().closed {
                    return;
                }
                let shared = accepting.clone();
                thread::spawn(move || shared.connect(&client));
            }
        });
        Self { port, shared }
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Changes the weather.
    pub fn set(&self, weather: Weather) {
        let mut state = self.shared.lock();
        state.weather = weather;
        if weather == Weather::Refuse {
            state.end_all();
        }
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Delays each packet of the process.
    pub fn delay(&self, delay: Duration) {
        self.shared.lock().delay = delay;
    }

    /// Ends the connections that stand now, and says how many; new ones are taken.
    pub fn cut(&self) -> usize {
        let mut state = self.shared.lock();
        let count = state.connections.len();
        state.end_all();
        count
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closed = true;
        state.weather = Weather::Calm;
        state.end_all();
        drop(state);
        self.shared.changed.notify_all();
        // Wakes the listener, so that it sees that it is closed.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl State {
    fn end_all(&mut self) {
        for (_, client, server) in self.connections.drain(..) {
            let _ = (client.shutdown(Shutdown::Both), server.shutdown(Shutdown::Both));
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Copies both directions until either side, or the weather, ends the connection.
    fn connect(&self, client: &TcpStream) {
        if self.lock().weather == Weather::Refuse {
            return;
        }
        let Ok(server) = TcpStream::connect(("127.0.0.1", self.server)) else { return };
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let (Ok(client_end), Ok(server_end)) = (client.try_clone(), server.try_clone()) else {
            return;
        };
        let mut state = self.lock();
        let id = state.opened;
        state.opened += 1;
        state.connections.push((id, client_end, server_end));
        drop(state);
        thread::scope(|scope| {
            scope.spawn(|| {
                let _ = self.copy(Direction::Down, &server, client);
                let _ = (client.shutdown(Shutdown::Both), server.shutdown(Shutdown::Both));
            });
            let _ = self.copy(Direction::Up, client, &server);
            let _ = (client.shutdown(Shutdown::Both), server.shutdown(Shutdown::Both));
        });
        self.lock().connections.retain(|(other, ..)| *other != id);
    }

    fn copy(
        &self,
        direction: Direction,
        mut from: &TcpStream,
        mut to: &TcpStream,
    ) -> io::Result<()> {
        let mut buffer = vec![0; 32 << 10];
        let mut snipped_bytes = 0;
        loop {
            let count = from.read(&mut buffer)?;
            if count == 0 {
                return Ok(());
            }
            match self.pass(direction) {
                Weather::Refuse => return Ok(()),
                Weather::Snip { after_bytes } if snipped_bytes + count > after_bytes => {
                    to.write_all(&buffer[..after_bytes.saturating_sub(snipped_bytes)])?;
                    return Ok(());
                }
                Weather::Snip { .. } => snipped_bytes += count,
                Weather::Busy if direction == Direction::Up && is_request(&buffer[..count]) => {
                    return refuse_busy(from);
                }
                Weather::Busy | Weather::Calm | Weather::Stall { .. } => snipped_bytes = 0,
            }
            to.write_all(&buffer[..count])?;
        }
    }

    /// Returns when a packet may go on, with the weather that it goes into.
    fn pass(&self, direction: Direction) -> Weather {
        let held = |weather| match weather {
            Weather::Stall { up, down } => {
                if direction == Direction::Up {
                    up
                } else {
                    down
                }
            }
            _ => false,
        };
        let mut state = self.lock();
        let delay = state.delay;
        while held(state.weather) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let weather = state.weather;
        drop(state);
        if direction == Direction::Up && !delay.is_zero() {
            thread::sleep(delay);
        }
        weather
    }
}

fn is_request(packet: &[u8]) -> bool {
    ["GET ", "PUT ", "POST ", "HEAD ", "DELETE "]
        .iter()
        .any(|method| packet.starts_with(method.as_bytes()))
}

/// Says that the store has too much to do, and lets the process finish what it was sending.
fn refuse_busy(mut client: &TcpStream) -> io::Result<()> {
    let length = BUSY.len();
    write!(
        client,
        "HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{BUSY}"
    )?;
    client.shutdown(Shutdown::Write)?;
    client.set_read_timeout(Some(DRAIN_BOUND))?;
    let mut rest = vec![0; 32 << 10];
    while client.read(&mut rest)? > 0 {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that sends back what it gets.
    fn echo() -> u16 {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || io::copy(&mut &stream, &mut &stream));
            }
        });
        port
    }

    fn client(relay: &Relay) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", relay.port())).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    /// Sends a text and reads as much; what came before the connection ended.
    fn exchange(mut stream: &TcpStream, text: &[u8]) -> Vec<u8> {
        let mut back = vec![0; text.len()];
        let _ = stream.write_all(text);
        let mut got = 0;
        while got < back.len() {
            match stream.read(&mut back[got..]) {
                Ok(0) | Err(_) => break,
                Ok(count) => got += count,
            }
        }
        back.truncate(got);
        back
    }

    #[test]
    fn each_weather_does_what_it_says() {
        let relay = Relay::before(echo());
        let calm = client(&relay);
        assert_eq!(exchange(&calm, b"hello"), b"hello");

        relay.set(Weather::Refuse);
        assert_eq!(exchange(&calm, b"hello"), b"");
        assert_eq!(exchange(&client(&relay), b"hello"), b"");

        relay.set(Weather::Snip { after_bytes: 3 });
        // What is cut off may take with it what was about to come back.
        let snipped = exchange(&client(&relay), b"hello");
        assert!(b"hel".starts_with(&snipped), "{}", snipped.escape_ascii());

        relay.set(Weather::Busy);
        let said = exchange(
            &client(&relay),
            &[b"GET /x HTTP/1.1\r\n\r\n".as_slice(), &[b'x'; 100]].concat(),
        );
        assert!(said.starts_with(b"HTTP/1.1 503"), "{}", said.escape_ascii());

        relay.set(Weather::Calm);
        let again = client(&relay);
        assert_eq!(exchange(&again, b"hello"), b"hello");
        assert!(relay.cut() > 0);
        assert_eq!(exchange(&again, b"hello"), b"");
    }

    #[test]
    fn a_stalled_direction_holds_its_bytes_until_it_is_calm() {
        for (up, down) in [(true, false), (false, true)] {
            let relay = Relay::before(echo());
            let stream = client(&relay);
            assert_eq!(exchange(&stream, b"a"), b"a");
            relay.set(Weather::Stall { up, down });
            stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            assert_eq!(exchange(&stream, b"b"), b"");
            relay.set(Weather::Calm);
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            assert_eq!(exchange(&stream, b"c"), b"b");
        }
    }
}
