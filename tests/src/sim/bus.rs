//! The simulated bus: what NATS does with messages, and what may become of them on the way.

use muster_common::ids::{Epoch, JobId, WorkerId};
use muster_common::names::Verb;
use muster_common::plan::JobSpec;
use muster_coordinator::job::io::Reply;

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
    Heartbeat(Vec<u8>),
    Register {
        from: Node,
        request: u64,
        frame: Vec<u8>,
    },
    Report {
        from: Node,
        request: u64,
        frame: Vec<u8>,
    },
    Command {
        from: Node,
        request: u64,
        worker: WorkerId,
        verb: Verb,
        frame: Vec<u8>,
    },
    /// An answer to a worker's request, or to a command.
    Answer {
        request: u64,
        frame: Vec<u8>,
    },
    Submit {
        from: Node,
        request: u64,
        spec: Box<JobSpec>,
    },
    Cancel {
        from: Node,
        request: u64,
        job: JobId,
    },
    Status {
        from: Node,
        request: u64,
        job: JobId,
    },
    Drain {
        from: Node,
        request: u64,
        worker: WorkerId,
    },
    /// A stand-by's question, and its answer.
    WhoLeads {
        from: Node,
        request: u64,
    },
    Leads {
        request: u64,
        epoch: Epoch,
    },
    ApiAnswer {
        request: u64,
        reply: Box<Reply>,
    },
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
        if let Message::Register { .. } = &message
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
