//! A leader that is told to end (SIGTERM): it takes no more in, lets what is on its way into the
//! journal arrive, says that it resigns, and is gone.

use muster_coordinator::election::{self, Cause, Sign};
use muster_protocol::wire::{self, LeaderBeat};

use super::bus::Message;
use super::coordinator::{Leader, Role};
use super::core::{Event, MS, Node};
use super::exec::lock;
use super::world::World;

/// How long the journal may take for its last records, as in the program.
const LEAVE_MS: u64 = 800;

/// What is left of a leader that resigns.
pub struct Leaving {
    beat: LeaderBeat,
    /// Its supervisor starts it again after so long.
    restart_us: u64,
    request: u64,
    /// Nobody reads it any more; the writer must not find it closed.
    _written: tokio::sync::mpsc::UnboundedReceiver<muster_coordinator::journal::writer::Written>,
}

impl World {
    /// A coordinator is told to end. One that does not lead has nothing to say.
    pub(super) fn resign(&mut self, node: Node, restart_us: u64) {
        let Some(at) = self.coordinators.iter().position(|coordinator| coordinator.node == node)
        else {
            return;
        };
        let leader = match self.coordinators[at].role.take() {
            Some(Role::Leads(leader)) => *leader,
            role => {
                self.coordinators[at].role = role;
                return self.kill_coordinator(at, Some(restart_us));
            }
        };
        let Leader { machine, orders, written, beats, writer, .. } = leader;
        self.executor.kill_but(node, writer);
        drop(orders);
        self.requests += 1;
        let request = self.requests;
        let beat = LeaderBeat {
            deployment: machine.deployment().clone(),
            epoch: machine.epoch(),
            sequence: beats,
        };
        self.coordinators[at].role =
            Some(Role::Resigns(Box::new(Leaving { beat, restart_us, request, _written: written })));
        let core = &mut *lock(&self.shared);
        core.node_line(node, &"is told to end");
        let (life, bound_us) = (core.nodes[node].life, core.local_us(node, LEAVE_MS));
        core.after(bound_us, Event::Unanswered { node, life, request });
    }

    /// The writer has written its last record.
    pub(super) fn writer_ended(&mut self, at: usize) {
        if let Some(Role::Resigns(leaving)) = &self.coordinators[at].role {
            let (beat, restart_us) = (leaving.beat.clone(), leaving.restart_us);
            self.say_resigned(at, &beat, restart_us);
        }
    }

    /// The writer takes too long; `false` where that was not what was waited for.
    pub(super) fn leaves_at_last(&mut self, at: usize, request: u64) -> bool {
        match &self.coordinators[at].role {
            Some(Role::Resigns(leaving)) if leaving.request == request => {
                let (beat, restart_us) = (leaving.beat.clone(), leaving.restart_us);
                self.say_resigned(at, &beat, restart_us);
                true
            }
            _ => false,
        }
    }

    fn say_resigned(&mut self, at: usize, beat: &LeaderBeat, restart_us: u64) {
        let node = self.coordinators[at].node;
        if !self.is_cut_off(node)
            && let Ok(frame) = wire::encode(beat)
        {
            {
                let core = &mut *lock(&self.shared);
                core.mark("leader resigned");
                core.node_line(node, &format!("resigns epoch {}", beat.epoch));
                core.resigned_us = core.now_us;
            }
            self.send_to_all(node, &Message::Resigned(frame));
        }
        self.kill_coordinator(at, Some(restart_us));
    }

    /// One that stands by hears of it.
    pub(super) fn hears_resignation(&mut self, at: usize, frame: &[u8]) {
        let Ok(beat) = wire::decode::<LeaderBeat>(frame) else { return };
        if matches!(self.coordinators[at].role, Some(Role::StandsBy)) {
            let sign = Sign { deployment: Some(beat.deployment), epoch: beat.epoch };
            self.elect(at, election::Input::Resigned(sign));
        }
    }

    /// An epoch is begun: because the leader resigned, and how soon?
    pub(super) fn note_succession(&mut self, at: usize) {
        let Some(Cause::Resigned { .. }) = self.coordinators[at].cause.take() else { return };
        let silence_us = self.config.leader.silence_ms * MS;
        let core = &mut *lock(&self.shared);
        core.mark("resignation followed");
        if core.now_us - core.resigned_us < silence_us / 2 {
            core.mark("resignation followed at once");
        }
    }
}
