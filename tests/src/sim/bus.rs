//! The simulated bus: what NATS does with messages, and what may become of them on the way.

use async_nats::Subject;
use bytes::Bytes;

use muster_coordinator::{Call, Kind};
use muster_protocol::ids::WorkerId;
use muster_protocol::names::{Names, Verb};

use super::core::{Core, Event, MS, Node, S, Way};
use super::script::{Fate, Happens};

/// What is sent. Frames are real ones: they are written and read by the program's own code.
#[derive(Debug, Clone)]
#[expect(
    missing_docs,
    reason = "each is a message of its name; a request bears a number and whom to answer"
)]
pub enum Message {
    Beat(Vec<u8>),
    /// The last beat of a leader that resigns.
    Resigned(Vec<u8>),
    /// To whoever leads, from a worker or a stand-by.
    Letter {
        kind: Kind,
        subject: String,
        reply: Option<Subject>,
        frame: Vec<u8>,
    },
    /// A client's call to whoever leads; `from` and `request` stand for its reply subject.
    Call {
        from: Node,
        request: u64,
        call: Call,
        reply: Subject,
        body: Vec<u8>,
    },
    Command {
        from: Node,
        request: u64,
        worker: WorkerId,
        verb: Verb,
        frame: Vec<u8>,
    },
    /// An answer to a letter, or to a command.
    Answer {
        request: u64,
        frame: Vec<u8>,
    },
    /// Nobody listens on the subject of a letter.
    NoResponders {
        request: u64,
    },
    /// The answer to a call: JSON, or an error's code and text.
    CallAnswer {
        request: u64,
        body: Result<Bytes, (usize, String)>,
    },
}

/// Where an answer to a process's request goes.
pub fn inbox(names: &Names, role: &str, from: Node, request: u64) -> Subject {
    format!("{}.{from}.{request}", names.inbox(role)).into()
}

/// Whose request an answer's subject means.
pub fn asker(reply: &Subject) -> Option<(Node, u64)> {
    let mut tokens = reply.rsplit('.');
    let request = tokens.next()?.parse().ok()?;
    Some((tokens.next()?.parse().ok()?, request))
}

impl Core {
    /// Sends a message; it may be lost, doubled or late.
    pub fn send(&mut self, from: Node, to: Node, message: Message) {
        let weights = &self.weights;
        let (lose, double, late) = (weights.lose, weights.double, weights.late);
        let dice = &mut self.bus_dice;
        let (lost, doubled) = (dice.chance(lose), dice.chance(double));
        let delays: Vec<u64> = (0..=u32::from(doubled)).map(|_| delay_us(dice, late)).collect();
        if lost || self.is_cut(from, Way::NatsOut) {
            return;
        }
        if let Message::Letter { kind: Kind::Register, .. } = &message
            && let (Some(fate), _) = self.meets(Happens::Register, from)
        {
            if let Fate::DelayUs(delay_us) = fate {
                self.after(delay_us, Event::Deliver { to, message });
            }
            return;
        }
        let slow = self.nodes[from].slow.max(self.nodes[to].slow);
        let clogged = if self.now_us < self.clogged_until_us { 400 } else { 1 };
        for delay_us in delays {
            self.after(delay_us * slow * clogged, Event::Deliver { to, message: message.clone() });
        }
    }
}

/// Most messages take a moment, so that two of them may change places; a few take seconds.
fn delay_us(dice: &mut super::dice::Dice, late: u32) -> u64 {
    match dice.chance(late) {
        true => dice.within(500 * MS, 6 * S),
        false => dice.within(100, 2 * MS),
    }
}
