//! A coordinator process in the simulation: the program's own machine, journal writer and work with
//! the stores, between the simulated bus, journal and store.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use muster_coordinator::election::{self, Answer, Cause, Election, Settings, Sign};
use muster_coordinator::job::io::{Effect, Input, Reply, ReplyTo};
use muster_coordinator::job::ledger::durable::DurableJob;
use muster_coordinator::job::{Machine, invariant};
use muster_coordinator::journal::writer::{Candidate, JournalWriter, Order, Replayed, Written};
use muster_coordinator::{Door, Fence, Kind, Letter, Outgoing};
use muster_protocol::ids::{AttemptId, Epoch, JobId, WorkerId};
use muster_protocol::names::Verb;
use muster_protocol::wire::{
    self, CommandReply, LeaderBeat, Outcome, PhaseQuery, PhaseReply, Report, ReportReply, RunReply,
};
use muster_protocol::{Error, Result};

use super::bus::{self, Message};
use super::core::{Event, MS, Node, SimClock, Way};
use super::exec::lock;
use super::inputs::Asking;
use super::ledger::LedgerPort;
use super::resign::Leaving;
use super::world::{Done, World};

/// The job that a stand-by asks for, which there is not.
const WHO_LEADS: &str = "who-leads";
/// Longest pause between two looks at the clock, in microseconds.
const TICK_US: u64 = 100 * MS;
/// The same, of one that stands by: several in the time that counts as a pause.
const STAND_BY_TICK_US: u64 = 30 * MS;
/// Most effects of one step.
const EFFECTS_MAX: usize = 10_000;

/// What a command was about.
pub(super) enum Command {
    /// An attempt.
    Run(WorkerId, JobId, AttemptId),
    /// The end of one.
    Cancel(JobId, AttemptId),
    /// The end of all.
    Drain,
    /// The files that it offers.
    List(Asking),
}

/// A term of leading.
pub struct Leader {
    /// The program's own.
    pub machine: Machine,
    /// What is to be written.
    pub orders: mpsc::UnboundedSender<Order>,
    /// What is.
    pub written: mpsc::UnboundedReceiver<Written>,
    /// The future that writes.
    pub writer: u64,
    stalled: watch::Receiver<Option<String>>,
    /// Clients are answered by node and number of their request.
    door: Door<(Node, u64)>,
    commands: BTreeMap<u64, Command>,
    /// Records that were asked for and are not acknowledged.
    pub unacknowledged: usize,
    beat_due_ms: u64,
    tick_due_ms: u64,
    /// Beats so far.
    pub beats: u64,
    connected: bool,
    fence: Fence,
    fence_due_ms: u64,
    looking: Arc<AtomicU64>,
    /// When it last looked at the clock, to notice that it was stopped.
    looked_ms: u64,
    /// It asks the journal whether it still leads; what has come for it meanwhile.
    asking: Option<Vec<Message>>,
}

/// What a coordinator does.
pub enum Role {
    /// It watches the leader.
    StandsBy,
    /// It reads the journal and begins an epoch.
    Begins,
    /// It leads.
    Leads(Box<Leader>),
    /// It has led, and was told to end.
    Resigns(Box<Leaving>),
}

/// A coordinator.
pub struct Coordinator {
    /// Its place.
    pub node: Node,
    /// What it does, while it runs.
    pub role: Option<Role>,
    /// The program's own; none while the process does not run.
    pub election: Option<Election>,
    /// What it has read of the journal, and how often it has begun to.
    read: Option<(Candidate, watch::Receiver<Option<String>>)>,
    readings: u64,
    question: Option<u64>,
    connected: bool,
    /// Why it tries to lead.
    pub cause: Option<Cause>,
    /// Nobody starts it again.
    pub gone: bool,
}

impl Coordinator {
    /// A coordinator that is not started.
    pub fn new(node: Node) -> Self {
        let (role, election, read, question) = (None, None, None, None);
        Self {
            node,
            role,
            election,
            read,
            readings: 0,
            question,
            connected: true,
            cause: None,
            gone: false,
        }
    }
}

impl World {
    /// The first of the coordinators that leads under the newest epoch.
    pub fn leader(&self) -> Option<&Leader> {
        let leaders = self.coordinators.iter().filter_map(|coordinator| match &coordinator.role {
            Some(Role::Leads(leader)) => Some(&**leader),
            _ => None,
        });
        leaders.max_by_key(|leader| leader.machine.epoch())
    }

    /// Starts a coordinator's process.
    pub fn start_coordinator(&mut self, at: usize) {
        let coordinator = &mut self.coordinators[at];
        if coordinator.role.is_some() || coordinator.gone {
            return;
        }
        let node = coordinator.node;
        let core = &mut *lock(&self.shared);
        core.nodes[node].up = true;
        core.nodes[node].life += 1;
        let (life, seed) = (core.nodes[node].life, core.nodes[node].dice.next());
        core.node_line(node, &"starts");
        core.after(0, Event::Tick { node, life });
        let settings = Settings {
            silence_ms: self.config.leader.silence_ms,
            beat_ms: self.config.heartbeat.interval_ms,
        };
        coordinator.election = Some(Election::new(settings, seed));
        coordinator.connected = true;
        coordinator.role = Some(Role::StandsBy);
    }

    /// The process is gone, from one moment to the next.
    pub fn kill_coordinator(&mut self, at: usize, restart_us: Option<u64>) {
        let coordinator = &mut self.coordinators[at];
        let node = coordinator.node;
        let Some(role) = coordinator.role.take() else { return };
        (coordinator.election, coordinator.read, coordinator.question) = (None, None, None);
        coordinator.readings += 1;
        self.executor.kill(node);
        drop(role);
        let core = &mut *lock(&self.shared);
        core.nodes[node].up = false;
        core.nodes[node].paused_until_us = 0;
        core.node_line(node, &"is gone");
        if let Some(restart_us) = restart_us {
            core.after(restart_us, Event::Restart { node });
        }
    }

    /// Its term, or its try, is over: it stands by again, with nothing of it.
    fn step_down(&mut self, at: usize, epoch: Epoch, error: &Error) {
        let node = self.coordinators[at].node;
        self.executor.kill(node);
        if let Some(fence) = self.fence_of(at) {
            self.executor.spawn(node, async move { fence.leave().await });
        }
        {
            let core = &mut *lock(&self.shared);
            core.node_line(node, &format!("steps down: {error}"));
            if error.kind == muster_protocol::ErrorKind::Fenced {
                core.mark("old leader fenced");
            }
        }
        self.coordinators[at].role = Some(Role::StandsBy);
        self.elect(at, election::Input::Lost { epoch });
    }

    pub(super) fn tick_coordinator(&mut self, at: usize) {
        let node = self.coordinators[at].node;
        let now_ms = lock(&self.shared).local_ms(node);
        match self.coordinators[at].role.as_ref().map(|role| matches!(role, Role::Leads(_))) {
            Some(false) if matches!(self.coordinators[at].role, Some(Role::StandsBy)) => {
                let up = !self.is_cut_off(node);
                let was_up = std::mem::replace(&mut self.coordinators[at].connected, up);
                let input = if up == was_up {
                    election::Input::Tick
                } else {
                    election::Input::Connection { up }
                };
                self.elect(at, input);
            }
            Some(true) if self.leads_surely(at, None) => self.look_at_clock(at, now_ms),
            _ => {}
        }
        if self.coordinators[at].role.is_some() {
            let core = &mut *lock(&self.shared);
            let life = core.nodes[node].life;
            let leads = matches!(self.coordinators[at].role, Some(Role::Leads(_)));
            core.after(if leads { TICK_US } else { STAND_BY_TICK_US }, Event::Tick { node, life });
        }
    }

    /// A fact for the election, and what follows.
    pub(super) fn elect(&mut self, at: usize, input: election::Input) {
        let node = self.coordinators[at].node;
        let now_ms = lock(&self.shared).local_ms(node);
        let Some(election) = self.coordinators[at].election.as_mut() else { return };
        for effect in election.step(now_ms, input) {
            match effect {
                election::Effect::Ask => self.ask_who_leads(at),
                election::Effect::ReadJournal => self.read_journal(at),
                election::Effect::Forget => {
                    self.coordinators[at].read = None;
                    self.coordinators[at].readings += 1;
                }
                election::Effect::Follow(epoch) => {
                    lock(&self.shared).node_line(node, &format!("stands by epoch {epoch}"));
                }
                election::Effect::Begin(cause) => {
                    self.coordinators[at].cause = Some(cause);
                    lock(&self.shared).node_line(node, &format!("tries to lead: {cause}"));
                    self.begin_epoch(at);
                }
            }
        }
    }

    /// On a subject that only leaders listen to; the server knows at once where there is none.
    fn ask_who_leads(&mut self, at: usize) {
        let node = self.coordinators[at].node;
        self.requests += 1;
        let request = self.requests;
        self.coordinators[at].question = Some(request);
        let leads = |other: &Coordinator| matches!(other.role, Some(Role::Leads(_) | Role::Begins));
        let nobody = !self.coordinators.iter().any(leads);
        let bound_ms = self.config.leader.silence_ms / 2;
        {
            let core = &mut *lock(&self.shared);
            let (life, bound_us) = (core.nodes[node].life, core.local_us(node, bound_ms));
            core.after(bound_us, Event::Unanswered { node, life, request });
        }
        if nobody && !self.is_cut_off(node) {
            let answer = Message::NoResponders { request };
            lock(&self.shared).after(2 * MS, Event::Deliver { to: node, message: answer });
        } else {
            let query = WHO_LEADS.parse().ok().map(|job| PhaseQuery { job });
            let frame = query.and_then(|query| wire::encode_for_all(&query).ok());
            let Some(frame) = frame else { return };
            let reply = Some(bus::inbox(&self.names, "coordinator", node, request));
            let (kind, subject) = (Kind::Phase, self.names.phase());
            self.send_to_leaders(node, &Message::Letter { kind, subject, reply, frame });
        }
    }

    fn read_journal(&mut self, at: usize) {
        let node = self.coordinators[at].node;
        self.coordinators[at].read = None;
        self.coordinators[at].readings += 1;
        let reading = self.coordinators[at].readings;
        let (sender, stalled) = watch::channel(None);
        let ledger = Arc::new(LedgerPort { shared: self.shared.clone(), node });
        let clock = Arc::new(SimClock { shared: self.shared.clone(), node });
        let append_timeout = Duration::from_millis(self.config.journal.append_timeout_ms);
        let done = self.done.clone();
        self.executor.spawn(node, async move {
            let read = JournalWriter::read(ledger, clock, append_timeout, sender).await;
            lock(&done).push_back((node, Done::Read(reading, Box::new(read), stalled)));
        });
    }

    pub(super) fn journal_read(
        &mut self,
        at: usize,
        reading: u64,
        read: Result<Candidate>,
        stalled: watch::Receiver<Option<String>>,
    ) {
        if self.coordinators[at].readings != reading || self.coordinators[at].election.is_none() {
            return;
        }
        match read {
            Ok(candidate) => {
                let found = &candidate.replayed().durable;
                let input = election::Input::JournalRead {
                    deployment: found.deployment.clone(),
                    epoch: found.epoch,
                };
                self.coordinators[at].read = Some((candidate, stalled));
                self.elect(at, input);
            }
            Err(error) => {
                lock(&self.shared)
                    .violate(format!("recovery: the journal cannot be read: {error}"));
            }
        }
    }

    pub(super) fn is_cut_off(&self, node: Node) -> bool {
        let core = lock(&self.shared);
        // Who is on the minority's side is connected, to servers that decide nothing.
        !core.is_in_minority(node)
            && (core.is_cut(node, Way::NatsIn) || core.is_cut(node, Way::NatsOut))
    }

    /// Appends an epoch after what was read.
    fn begin_epoch(&mut self, at: usize) {
        let node = self.coordinators[at].node;
        let Some((candidate, stalled)) = self.coordinators[at].read.take() else { return };
        self.coordinators[at].role = Some(Role::Begins);
        let epoch = candidate.replayed().durable.epoch;
        let done = self.done.clone();
        self.executor.spawn(node, async move {
            let begun = candidate.begin().await;
            lock(&done).push_back((node, Done::Begun(epoch, Box::new(begun), stalled)));
        });
    }

    /// It is made to take the leader for gone, whoever leads.
    pub(super) fn usurp(&mut self, at: usize) {
        let node = self.coordinators[at].node;
        if !matches!(self.coordinators[at].role, Some(Role::StandsBy)) {
            return;
        }
        lock(&self.shared).node_line(node, &"takes the leader for gone");
        self.coordinators[at].cause = None;
        self.coordinators[at].role = Some(Role::Begins);
        let ledger = Arc::new(LedgerPort { shared: self.shared.clone(), node });
        let clock = Arc::new(SimClock { shared: self.shared.clone(), node });
        let append_timeout = Duration::from_millis(self.config.journal.append_timeout_ms);
        let (sender, stalled) = watch::channel(None);
        let done = self.done.clone();
        self.executor.spawn(node, async move {
            let begun = JournalWriter::begin(ledger, clock, append_timeout, sender).await;
            lock(&done).push_back((node, Done::Begun(Epoch(0), Box::new(begun), stalled)));
        });
    }

    pub(super) fn begun(
        &mut self,
        at: usize,
        epoch: Epoch,
        begun: Result<(JournalWriter, Replayed)>,
        stalled: watch::Receiver<Option<String>>,
    ) {
        let node = self.coordinators[at].node;
        if !matches!(self.coordinators[at].role, Some(Role::Begins)) {
            return;
        }
        let (writer, replayed) = match begun {
            Ok(begun) => begun,
            Err(error) => return self.step_down(at, epoch, &error),
        };
        if !replayed.refused.is_empty() {
            lock(&self.shared).violate(format!(
                "recovery: the journal contradicts itself: {:?}",
                replayed.refused
            ));
        }
        let bad = |job: &DurableJob| !job.state.is_terminal() && !job.bad_records.is_empty();
        let bad_records = replayed.durable.jobs.values().any(bad);
        let machine = match Machine::new(self.config.clone(), None, replayed.durable) {
            Ok(machine) => machine,
            Err(error) => {
                return lock(&self.shared).violate(format!("recovery: no machine: {error}"));
            }
        };
        let others = self
            .coordinators
            .iter()
            .filter(|other| matches!(other.role, Some(Role::Leads(_))))
            .count();
        {
            let core = &mut *lock(&self.shared);
            core.node_line(node, &format!("leads under epoch {}", machine.epoch()));
            if machine.epoch().0 > 1 {
                core.mark("take-over");
            }
            if bad_records {
                core.mark("take-over with bad records");
            }
            if others > 0 {
                core.mark("two leaders at once");
            }
        }
        let (orders, taken) = mpsc::unbounded_channel();
        let (answers, written) = mpsc::unbounded_channel();
        let standing = writer.standing();
        let (writing, done) = (writer.serve(taken, answers), self.done.clone());
        let writer = self.executor.spawn(node, async move {
            writing.await;
            lock(&done).push_back((node, Done::WriterEnded));
        });
        self.note_succession(at);
        let looked_ms = lock(&self.shared).local_ms(node);
        let unix_ms = 1_700_000_000_000 + looked_ms;
        let ledger = Arc::new(LedgerPort { shared: self.shared.clone(), node });
        let clock = Arc::new(SimClock { shared: self.shared.clone(), node });
        let timeout_ms = self.config.leader.silence_ms / 2;
        let fence = Fence::new(ledger, (&orders, standing), clock, machine.epoch(), timeout_ms);
        {
            let core = &mut *lock(&self.shared);
            core.nodes[node].leads = Some(machine.epoch());
            core.fence_us = timeout_ms * MS;
        }
        let names = self.names.clone();
        self.coordinators[at].role = Some(Role::Leads(Box::new(Leader {
            machine,
            orders,
            written,
            writer,
            stalled,
            door: Door::new(names),
            commands: BTreeMap::new(),
            unacknowledged: 0,
            beat_due_ms: 0,
            tick_due_ms: 0,
            beats: 0,
            connected: true,
            fence,
            fence_due_ms: looked_ms + self.config.leader.silence_ms,
            looking: Arc::default(),
            looked_ms,
            asking: None,
        })));
        self.feed(at, Input::Began { unix_ms });
    }

    /// What a leader asks before it changes anything.
    pub(super) fn fence_of(&mut self, at: usize) -> Option<Fence> {
        self.leader_mut(at).map(|leader| leader.fence.clone())
    }

    fn leader_mut(&mut self, at: usize) -> Option<&mut Leader> {
        match &mut self.coordinators[at].role {
            Some(Role::Leads(leader)) => Some(leader),
            _ => None,
        }
    }

    /// What the writer has answered since the last look.
    pub(super) fn take_written(&mut self, at: usize) -> bool {
        let Some(leader) = self.leader_mut(at) else { return false };
        if let Some(error) = leader.fence.over() {
            let epoch = leader.machine.epoch();
            self.step_down(at, epoch, &error);
            return true;
        }
        if leader.stalled.has_changed().unwrap_or(false) {
            let why = leader.stalled.borrow_and_update().clone();
            self.feed(at, Input::JournalStalled { why });
            return true;
        }
        match leader.written.try_recv() {
            Ok(Written::Applied { token, sequence }) => {
                leader.unacknowledged = leader.unacknowledged.saturating_sub(1);
                self.feed(at, Input::Appended { token, sequence });
                true
            }
            Ok(Written::Stopped { error }) => {
                let epoch = leader.machine.epoch();
                self.step_down(at, epoch, &error);
                true
            }
            Err(_) => false,
        }
    }

    /// Whether it may go on. After a pause of its own it asks the journal first, and what has come
    /// for it waits for the answer.
    fn leads_surely(&mut self, at: usize, message: Option<&Message>) -> bool {
        let node = self.coordinators[at].node;
        let now_ms = lock(&self.shared).local_ms(node);
        let pause_ms = self.config.leader.silence_ms / 2;
        let done = self.done.clone();
        let Some(leader) = self.leader_mut(at) else { return false };
        if let Some(waiting) = &mut leader.asking {
            waiting.extend(message.cloned());
            return false;
        }
        let gap_ms = now_ms.saturating_sub(leader.looked_ms);
        leader.looked_ms = now_ms;
        if gap_ms <= pause_ms {
            return true;
        }
        leader.asking = Some(message.cloned().into_iter().collect());
        let fence = leader.fence.clone();
        self.executor.spawn(node, async move {
            // Where it is over, the fence says so itself.
            if fence.look().await.is_ok() {
                lock(&done).push_back((node, Done::Leads));
            }
        });
        lock(&self.shared)
            .node_line(node, &format!("was stopped for {gap_ms} ms: does it lead still?"));
        false
    }

    /// The journal says that it still leads: what waited is handled.
    pub(super) fn leads_still(&mut self, at: usize) {
        let node = self.coordinators[at].node;
        let now_ms = lock(&self.shared).local_ms(node);
        let Some(leader) = self.leader_mut(at) else { return };
        leader.looked_ms = now_ms;
        for message in leader.asking.take().unwrap_or_default() {
            self.coordinator_hears(at, message);
        }
    }

    fn look_at_clock(&mut self, at: usize, now_ms: u64) {
        let node = self.coordinators[at].node;
        let up = !self.is_cut_off(node);
        let (interval_ms, silence_ms) =
            (self.config.heartbeat.interval_ms, self.config.leader.silence_ms);
        let Some(leader) = self.leader_mut(at) else { return };
        if now_ms >= leader.beat_due_ms {
            leader.beat_due_ms = now_ms + interval_ms;
            let beat = LeaderBeat {
                deployment: leader.machine.deployment().clone(),
                epoch: leader.machine.epoch(),
                sequence: leader.beats,
            };
            leader.beats += 1;
            if let Ok(frame) = wire::encode(&beat) {
                self.send_to_all(node, &Message::Beat(frame));
            }
        }
        let Some(leader) = self.leader_mut(at) else { return };
        if now_ms >= leader.fence_due_ms && leader.looking.load(SeqCst) == 0 {
            leader.fence_due_ms = now_ms + silence_ms;
            let (fence, looking) = (leader.fence.clone(), leader.looking.clone());
            looking.store(1, SeqCst);
            self.executor.spawn(node, async move {
                drop(fence.look().await);
                looking.store(0, SeqCst);
            });
        }
        let Some(leader) = self.leader_mut(at) else { return };
        let due = leader.machine.next_due_ms().is_some_and(|due_ms| now_ms >= due_ms);
        if now_ms < leader.tick_due_ms && !due {
            return;
        }
        leader.tick_due_ms = now_ms + TICK_US / MS;
        leader.door.expire(now_ms);
        if up != leader.connected {
            leader.connected = up;
            if up {
                let fence = leader.fence.clone();
                self.executor.spawn(node, async move { drop(fence.look().await) });
            }
            self.feed(at, Input::Connection { up });
        }
        self.feed(at, Input::Tick);
    }

    /// Steps the machine and carries out what it asks for, as far as the process lives.
    pub(super) fn feed(&mut self, at: usize, input: Input) {
        let node = self.coordinators[at].node;
        let now_ms = lock(&self.shared).local_ms(node);
        let Some(leader) = self.leader_mut(at) else { return };
        let effects = leader.machine.step(now_ms, input);
        let broken = invariant::check(&leader.machine);
        if let Err(broken) = broken {
            lock(&self.shared).violate(format!("invariant: {broken}"));
        }
        if effects.len() > EFFECTS_MAX {
            lock(&self.shared).violate(format!("bounds: a step has {} effects", effects.len()));
        }
        for effect in effects {
            if !self.survives_effect(at) {
                return;
            }
            self.perform(at, effect);
        }
        self.check_leader(at);
    }

    fn perform(&mut self, at: usize, effect: Effect) {
        let node = self.coordinators[at].node;
        let retry_ms = self.config.tasks.command_retry_ms;
        match effect {
            Effect::Append { token, record } => {
                let Some(leader) = self.leader_mut(at) else { return };
                leader.unacknowledged += 1;
                // A writer that has ended says so by its last answer.
                drop(leader.orders.send(Order::Append { token, record }));
            }
            Effect::PurgeJournal { before } => {
                let Some(leader) = self.leader_mut(at) else { return };
                drop(leader.orders.send(Order::Purge { before }));
            }
            Effect::Reply { to, reply } => self.reply(at, to, reply),
            Effect::SendRun { worker, peer, run } => {
                let command = Command::Run(worker.clone(), run.job.clone(), run.attempt);
                self.note_grant(node, &worker, &run);
                self.command(
                    at,
                    &worker,
                    (Verb::Run, retry_ms),
                    wire::encode_for(peer, &*run),
                    command,
                );
            }
            Effect::SendCancel { worker, cancel } => {
                let command = Command::Cancel(cancel.job.clone(), cancel.attempt);
                self.command(at, &worker, (Verb::Cancel, retry_ms), wire::encode(&cancel), command);
            }
            Effect::SendDrain { worker, drain } => {
                self.command(
                    at,
                    &worker,
                    (Verb::Drain, retry_ms),
                    wire::encode(&drain),
                    Command::Drain,
                );
            }
            effect @ Effect::ListInput { .. } => self.list_input(at, effect),
            Effect::Event(event) => {
                let epoch = self.leader_mut(at).map(|leader| leader.machine.epoch());
                let core = &mut *lock(&self.shared);
                core.note_event(epoch.unwrap_or(Epoch(0)), event.kind.as_str(), event.job.as_ref());
                match event.kind.as_str() {
                    "worker-lost" => core.mark("worker declared dead"),
                    "worker-back" => core.mark("worker rejoined"),
                    "speculation-began" => {
                        let task = event.text.split(' ').next().unwrap_or_default().to_owned();
                        core.speculated.extend(event.job.clone().map(|job| (job, task)));
                    }
                    _ => {}
                }
                if event.severity != "info" || event.kind == "phase-began" {
                    let job = event.job.as_ref().map(|job| format!(" [{job}]")).unwrap_or_default();
                    core.node_line(node, &format!("{}{job}: {}", event.kind, event.text));
                }
            }
            Effect::Broadcast { .. }
            | Effect::Progress(_)
            | Effect::DeadLetter(_)
            | Effect::LimitStores(_) => {}
            other => {
                let (stores, done) = (self.stores[node].clone(), self.done.clone());
                let Some(fence) = self.leader_mut(at).map(|leader| leader.fence.clone()) else {
                    return;
                };
                self.executor.spawn(node, async move {
                    if let Some(input) =
                        muster_coordinator::carry_out_on_stores(&stores, &fence, other).await
                    {
                        lock(&done).push_back((node, Done::Input(Box::new(input))));
                    }
                });
            }
        }
    }

    fn note_grant(
        &mut self,
        node: Node,
        worker: &WorkerId,
        run: &muster_protocol::wire::RunAttempt,
    ) {
        self.check_grant(worker, run);
        lock(&self.shared)
            .node_line(node, &format!("grants {} of {} to {worker}", run.attempt, run.job));
    }

    /// Sends a command, which is waited for within a bound.
    pub(super) fn command(
        &mut self,
        at: usize,
        worker: &WorkerId,
        (verb, bound_ms): (Verb, u64),
        frame: Result<Vec<u8>>,
        command: Command,
    ) {
        let node = self.coordinators[at].node;
        let Ok(frame) = frame else { return };
        self.requests += 1;
        let request = self.requests;
        let Some(leader) = self.leader_mut(at) else { return };
        leader.commands.insert(request, command);
        let to = self.workers.iter().find(|known| known.id == *worker).map(|known| known.node);
        let core = &mut *lock(&self.shared);
        let (life, time_out_us) = (core.nodes[node].life, core.local_us(node, bound_ms));
        core.after(time_out_us, Event::Unanswered { node, life, request });
        if let Some(to) = to {
            core.send(
                node,
                to,
                Message::Command { from: node, request, worker: worker.clone(), verb, frame },
            );
        }
    }

    fn reply(&mut self, at: usize, to: ReplyTo, reply: Reply) {
        let node = self.coordinators[at].node;
        self.check_report_reply(node, to, &reply);
        self.check_api_answer(&reply);
        let Some(leader) = self.leader_mut(at) else { return };
        let (to, answer) = match leader.door.answer(to, reply) {
            Some(Outgoing::Worker(subject, Ok(frame))) => match bus::asker(&subject) {
                Some((to, request)) => (to, Message::Answer { request, frame }),
                None => return,
            },
            Some(Outgoing::Worker(_, Err(error))) => {
                let what = format!("an answer cannot be encoded: {error}");
                return lock(&self.shared).violate(what);
            }
            Some(Outgoing::Client((to, request), body)) => {
                let body = body.map_err(|error| (error.code, error.status));
                (to, Message::CallAnswer { request, body })
            }
            None => return,
        };
        lock(&self.shared).send(node, to, answer);
    }

    pub(super) fn coordinator_hears(&mut self, at: usize, message: Message) {
        let node = self.coordinators[at].node;
        let now_ms = lock(&self.shared).local_ms(node);
        match &message {
            Message::Beat(frame) => {
                let beat = wire::decode::<LeaderBeat>(frame).ok();
                let sign =
                    beat.map(|beat| Sign { deployment: Some(beat.deployment), epoch: beat.epoch });
                if matches!(self.coordinators[at].role, Some(Role::StandsBy)) {
                    self.elect(at, election::Input::Beat(sign));
                }
                return;
            }
            Message::Resigned(frame) => return self.hears_resignation(at, frame),
            Message::NoResponders { request } => {
                return self.who_leads(at, *request, Answer::Nobody);
            }
            Message::Answer { request, frame }
                if self.coordinators[at].question == Some(*request) =>
            {
                let answer = match wire::decode(frame) {
                    Ok(PhaseReply::Running { epoch, .. } | PhaseReply::Idle { epoch }) => {
                        Answer::Leads(epoch)
                    }
                    Err(_) => Answer::Silence,
                };
                return self.who_leads(at, *request, answer);
            }
            _ => {}
        }
        if !self.leads_surely(at, Some(&message)) {
            return;
        }
        let Some(leader) = self.leader_mut(at) else { return };
        let input = match message {
            Message::Letter { kind, subject, reply, frame } => {
                let letter = Letter { subject: &subject, reply: reply.as_ref(), payload: &frame };
                leader.door.hear(now_ms, kind, letter)
            }
            Message::Call { from, request, call, reply, body } => {
                let now = (now_ms, 1_700_000_000_000 + now_ms);
                let letter = Letter { subject: "", reply: Some(&reply), payload: &body };
                match leader.door.call(now, call, letter, (from, request)) {
                    Ok(Err(refusal)) => return self.perform(at, refusal),
                    Ok(Ok(input)) => Ok(input),
                    Err(error) => Err(error),
                }
            }
            Message::Answer { request, frame } => {
                if let Some(input) = self.command_answered(at, request, Some(&frame)) {
                    self.feed(at, input);
                }
                return;
            }
            _ => return,
        };
        match input {
            Ok(input) => {
                if let Input::Report { to, report } = &input {
                    self.note_race(report);
                    self.reports.insert((node, *to), report.clone());
                }
                self.feed(at, input);
            }
            Err(error) => {
                lock(&self.shared).violate(format!("a message is passed over: {error}"));
            }
        }
    }

    /// What has come of a stand-by's question.
    fn who_leads(&mut self, at: usize, request: u64, answer: Answer) {
        if self.coordinators[at].question == Some(request) {
            self.coordinators[at].question = None;
            self.elect(at, election::Input::Asked(answer));
        }
    }

    /// Whether both attempts of a task have come to a result.
    fn note_race(&mut self, report: &Report) {
        let core = &mut *lock(&self.shared);
        let (attempt, index) = (report.attempt, report.attempt.task.index);
        let Some(job) = core.ledger.truth.jobs.get(&report.job) else { return };
        let committed = match &report.outcome {
            Outcome::Sorted(_) => job.runs.get(&index).map(|run| run.attempt),
            Outcome::Merged(_) => job.parts.get(&index).map(|part| part.attempt),
            _ => None,
        };
        let other = committed
            .is_some_and(|other| other != attempt && other.generation == attempt.generation);
        if other && core.speculated.contains(&(report.job.clone(), attempt.task.to_string())) {
            core.mark("speculation race");
        }
    }

    pub(super) fn coordinator_unanswered(&mut self, at: usize, request: u64) {
        if self.leaves_at_last(at, request) {
            return;
        }
        if self.coordinators[at].question == Some(request) {
            return self.who_leads(at, request, Answer::Silence);
        }
        if let Some(input) = self.command_answered(at, request, None) {
            self.feed(at, input);
        }
    }

    fn command_answered(&mut self, at: usize, request: u64, frame: Option<&[u8]>) -> Option<Input> {
        let command = self.leader_mut(at)?.commands.remove(&request)?;
        let none = || Error::retry("the worker has not answered");
        Some(match command {
            Command::Run(worker, job, attempt) => {
                let reply = frame.map_or_else(|| Err(none()), wire::decode::<RunReply>);
                Input::RunAnswered { worker, job, attempt, reply }
            }
            Command::Cancel(job, attempt) => {
                let answered =
                    frame.is_some_and(|frame| wire::decode::<CommandReply>(frame).is_ok());
                Input::CancelAnswered { job, attempt, answered }
            }
            Command::Drain => return None,
            Command::List(asking) => {
                let reply = frame.map_or_else(|| Err(none()), wire::decode);
                drop(asking.send(reply));
                return None;
            }
        })
    }

    /// A worker's report is answered: what is called recorded must be.
    pub(super) fn check_report_reply(&mut self, node: Node, to: ReplyTo, reply: &Reply) {
        let Some(report) = self.reports.remove(&(node, to)) else { return };
        if let Reply::Report(ReportReply::Recorded { .. }) = reply {
            lock(&self.shared).check_recorded(&report);
        }
    }
}
