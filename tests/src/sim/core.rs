//! What all parts of a run share: time, the queue of events, the links between processes and
//! services, and what must never happen.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BinaryHeap};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use muster_platform::clock::{Clock, Pause};

use super::bus::Message;
use super::dice::Dice;
use super::exec::lock;
use super::faults::{Harm, Reach, Weights};
use super::ledger::SimLedger;
use super::oracle::Oracle;
use super::script::{Act, Action, Fate, Happens, Script};
use super::store::SimStore;
use super::trace::Trace;

/// A process: its place in the list of all.
pub type Node = usize;

/// The core, as futures and processes hold it.
pub type Shared = Arc<Mutex<Core>>;

/// Microseconds in a millisecond.
pub const MS: u64 = 1000;
/// Microseconds in a second.
pub const S: u64 = 1_000_000;

/// So much longer a call to the store takes, at most, for who is cut off with a minority of the
/// servers, in microseconds: the next leader has time to come.
const FAR_US_MAX: u64 = 4 * S;

/// Something that happens at a time.
#[derive(Debug)]
#[expect(missing_docs, reason = "each says what happens; fields say to whom")]
pub enum Event {
    Tick { node: Node, life: u32 },
    StoreApply(u64),
    StoreAnswer(u64),
    LedgerApply(u64),
    LedgerAnswer(u64),
    Timer { timer: u64, node: Node },
    Deliver { to: Node, message: Message },
    Unanswered { node: Node, life: u32, request: u64 },
    Fault,
    Act(Act),
    Restart { node: Node },
    Client { job: usize },
    Heal,
}

struct Due {
    at_us: u64,
    order: u64,
    event: Event,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    /// The heap gives its greatest, which is to be the earliest.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at_us, other.order).cmp(&(self.at_us, self.order))
    }
}

/// One way between a process and a service, which may be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "their names say it")]
pub enum Way {
    NatsOut,
    NatsIn,
    StoreOut,
    StoreIn,
}

/// A process as the services see it.
#[derive(Debug)]
pub struct NodeInfo {
    /// For traces.
    pub name: String,
    /// Whether it runs.
    pub up: bool,
    /// Counts its lives.
    pub life: u32,
    /// Stopped (as by SIGSTOP) until then.
    pub paused_until_us: u64,
    /// Its clock: where it began, and how fast it goes.
    pub offset_ms: u64,
    rate_ppm: u64,
    /// Until when each [`Way`] is cut.
    pub cut_until_us: [u64; 4],
    /// Until when it is cut off together with a minority of the servers, and the newest entry of
    /// the journal that these have.
    pub minority: (u64, u64),
    /// The newest term that it has led.
    pub leads: Option<muster_protocol::ids::Epoch>,
    /// How many times longer everything takes.
    pub slow: u64,
    /// Its own random numbers.
    pub dice: Dice,
}

/// See the module.
pub struct Core {
    /// Now.
    pub now_us: u64,
    queue: BinaryHeap<Due>,
    order: u64,
    /// All processes.
    pub nodes: Vec<NodeInfo>,
    /// Messages that are on their way meet it.
    pub bus_dice: Dice,
    /// Leaders that change OUTPUT do.
    isolation_dice: Dice,
    /// Everything on the bus takes so much longer until then.
    pub clogged_until_us: u64,
    /// Neither bus nor journal answer until then.
    pub server_away_until_us: u64,
    /// The object store answers nobody until then.
    pub store_away_until_us: u64,
    /// How long the answer of a fence may take.
    pub fence_us: u64,
    /// Reads of the journal miss its newest entries until then.
    pub stale_until_us: u64,
    /// Tasks that were given a second attempt.
    pub speculated: std::collections::BTreeSet<(muster_protocol::ids::JobId, String)>,
    /// Reads whose answer is to be flipped.
    pub flips: std::collections::BTreeSet<u64>,
    /// What a script does.
    pub script: Option<Script>,
    /// How often what goes wrong.
    pub weights: Weights,
    /// The object store.
    pub store: SimStore,
    /// The journal.
    pub ledger: SimLedger,
    timers: BTreeMap<u64, (bool, Option<Waker>)>,
    next_timer: u64,
    /// The trace.
    pub trace: Trace,
    /// Marks.
    pub reach: Reach,
    /// What jobs must come to.
    pub oracle: Oracle,
    /// What the seed has drawn: the weights before everything was healed.
    pub drawn: Weights,
    /// When a leader last said that it resigns.
    pub resigned_us: u64,
    /// The first thing that must not happen, and did.
    pub violation: Option<String>,
}

impl Core {
    /// An empty world.
    pub fn new(seed: u64, weights: Weights, trace: Trace) -> Self {
        Self {
            now_us: 0,
            queue: BinaryHeap::new(),
            order: 0,
            nodes: Vec::new(),
            bus_dice: Dice::of(seed, "bus"),
            isolation_dice: Dice::of(seed, "isolation"),
            clogged_until_us: 0,
            server_away_until_us: 0,
            store_away_until_us: 0,
            fence_us: 0,
            stale_until_us: 0,
            speculated: std::collections::BTreeSet::new(),
            flips: std::collections::BTreeSet::new(),
            script: None,
            weights,
            store: SimStore::new(seed),
            ledger: SimLedger::new(seed),
            timers: BTreeMap::new(),
            next_timer: 0,
            trace,
            reach: Reach::new(),
            oracle: Oracle::default(),
            drawn: Weights::default(),
            resigned_us: 0,
            violation: None,
        }
    }

    /// Asks the script what is to be done with what goes out, and with an attempt. What it does to
    /// processes comes next.
    pub fn meets(&mut self, happens: Happens<'_>, caller: Node) -> (Option<Fate>, Harm) {
        let (mut fate, mut harm) = (None, Harm::default());
        for action in self.script.as_mut().map(|script| script.meets(happens)).unwrap_or_default() {
            match action {
                Action::Fate(of) => fate = Some(of),
                Action::Harm(of) => harm = of,
                Action::Act(act) => self.after(0, Event::Act(act.of_caller(caller))),
            }
        }
        (fate, harm)
    }

    /// Takes a process in.
    pub fn add_node(&mut self, seed: u64, name: &str, skews: bool) -> Node {
        let mut dice = Dice::of(seed, name);
        let rate_ppm = if skews { dice.within(900_000, 1_100_000) } else { 1_000_000 };
        let offset_ms = dice.within(1, 1_000_000);
        self.nodes.push(NodeInfo {
            name: name.to_owned(),
            up: false,
            life: 0,
            paused_until_us: 0,
            offset_ms,
            rate_ppm,
            cut_until_us: [0; 4],
            minority: (0, 0),
            leads: None,
            slow: 1,
            dice,
        });
        self.nodes.len() - 1
    }

    /// Plans an event.
    pub fn at(&mut self, at_us: u64, event: Event) {
        self.order += 1;
        self.queue.push(Due { at_us: at_us.max(self.now_us), order: self.order, event });
    }

    /// Plans an event after a while.
    pub fn after(&mut self, pause_us: u64, event: Event) {
        self.at(self.now_us.saturating_add(pause_us), event);
    }

    /// The next event; time moves to it.
    pub fn take_next(&mut self) -> Option<Event> {
        let due = self.queue.pop()?;
        self.now_us = due.at_us;
        self.trace.mix(due.at_us ^ due.order << 40);
        Some(due.event)
    }

    /// Whether a way of a process is cut.
    pub fn is_cut(&self, node: Node, way: Way) -> bool {
        let away = match way {
            Way::NatsOut | Way::NatsIn => self.server_away_until_us,
            Way::StoreOut | Way::StoreIn => self.store_away_until_us,
        };
        self.now_us < away
            || self
                .nodes
                .get(node)
                .is_some_and(|info| self.now_us < info.cut_until_us[way as usize])
    }

    /// A process is cut off for so long, with servers that answer reads as things stood, and take
    /// nothing.
    pub fn cut_with_minority(&mut self, node: Node, until_us: u64) {
        for way in [Way::NatsIn, Way::NatsOut] {
            self.nodes[node].cut_until_us[way as usize] = until_us;
        }
        self.nodes[node].minority = (until_us, self.ledger.last());
    }

    /// A call goes out that changes OUTPUT, and its leader may be cut off with a minority just
    /// then. Gives how much longer calls to the store take from there.
    pub fn isolates(&mut self, node: Node, changes_output: bool) -> u64 {
        let leads = self.nodes[node].leads == Some(self.ledger.newest());
        if changes_output
            && leads
            && !self.is_in_minority(node)
            && self.isolation_dice.chance(self.weights.isolate)
        {
            let for_us = self.isolation_dice.within(6 * S, 25 * S);
            self.node_line(node, &format!("is cut off with a minority for {} ms", for_us / MS));
            self.cut_with_minority(node, self.now_us + for_us);
        }
        let is_far = self.weights.isolate > 0 && self.is_in_minority(node);
        if is_far { self.isolation_dice.below(FAR_US_MAX) } else { 0 }
    }

    /// Whether a process is cut off together with a minority of the servers.
    pub fn is_in_minority(&self, node: Node) -> bool {
        self.nodes.get(node).is_some_and(|info| self.now_us < info.minority.0)
            && self.is_cut(node, Way::NatsIn)
            && self.is_cut(node, Way::NatsOut)
    }

    /// Whether a process does not run, or nobody can reach it.
    pub fn is_lost(&self, node: Node) -> bool {
        !self.nodes[node].up || self.is_cut(node, Way::NatsIn) || self.is_cut(node, Way::NatsOut)
    }

    /// What a process's own clock says.
    pub fn local_ms(&self, node: Node) -> u64 {
        let info = &self.nodes[node];
        info.offset_ms + self.now_us / MS * info.rate_ppm / 1_000_000
    }

    /// How long a pause on a process's clock lasts.
    pub fn local_us(&self, node: Node, ms: u64) -> u64 {
        ms.saturating_mul(MS).saturating_mul(1_000_000) / self.nodes[node].rate_ppm
    }

    /// When a process that is stopped goes on; none for one that runs.
    pub fn paused_until(&self, node: Node) -> Option<u64> {
        self.nodes.get(node).map(|info| info.paused_until_us).filter(|until| *until > self.now_us)
    }

    /// Notes a transition.
    pub fn line(&mut self, who: &dyn std::fmt::Display, what: &dyn std::fmt::Display) {
        self.trace.line(self.now_us, who, what);
    }

    /// Notes a transition of a process.
    pub fn node_line(&mut self, node: Node, what: &dyn std::fmt::Display) {
        let name = self.nodes[node].name.clone();
        self.trace.line(self.now_us, &name, what);
    }

    /// A mark is reached.
    pub fn mark(&mut self, mark: &'static str) {
        *self.reach.entry(mark).or_default() += 1;
    }

    /// Something must not be. The first such thing ends the run.
    pub fn violate(&mut self, what: impl Into<String>) {
        let what = what.into();
        self.line(&"VIOLATION", &what);
        self.violation.get_or_insert(what);
    }

    /// A timer is due.
    pub fn timer_due(&mut self, timer: u64) {
        if let Some((due, waker)) = self.timers.get_mut(&timer) {
            *due = true;
            if let Some(waker) = waker.take() {
                waker.wake();
            }
        }
    }
}

/// A process's clock, timers and random numbers.
pub struct SimClock {
    /// The world.
    pub shared: Shared,
    /// Whose.
    pub node: Node,
}

impl Clock for SimClock {
    fn now_ms(&self) -> u64 {
        lock(&self.shared).local_ms(self.node)
    }

    fn unix_ms(&self) -> u64 {
        1_700_000_000_000 + self.now_ms()
    }

    fn random(&self) -> u64 {
        lock(&self.shared).nodes[self.node].dice.next()
    }

    fn pause(&self, ms: u64) -> Pause {
        Box::pin(Sleep { shared: self.shared.clone(), node: self.node, ms, timer: None })
    }
}

struct Sleep {
    shared: Shared,
    node: Node,
    ms: u64,
    timer: Option<u64>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let shared = self.shared.clone();
        let core = &mut *lock(&shared);
        let Some(timer) = self.timer else {
            core.next_timer += 1;
            let timer = core.next_timer;
            self.timer = Some(timer);
            core.timers.insert(timer, (false, Some(context.waker().clone())));
            let pause_us = core.local_us(self.node, self.ms);
            core.after(pause_us, Event::Timer { timer, node: self.node });
            return Poll::Pending;
        };
        match core.timers.get_mut(&timer) {
            Some((false, waker)) => {
                *waker = Some(context.waker().clone());
                Poll::Pending
            }
            _ => Poll::Ready(()),
        }
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(timer) = self.timer {
            lock(&self.shared).timers.remove(&timer);
        }
    }
}

/// A call to a service, and its answer once it is there.
pub struct Op<C, A> {
    /// Who calls, in which life.
    pub node: Node,
    /// See there.
    pub life: u32,
    /// When it was sent.
    pub sent_us: u64,
    /// What, until it is carried out.
    pub call: Option<C>,
    /// What came of it, until the caller has it.
    pub answer: Option<A>,
    /// Whether the answer has arrived.
    pub arrived: bool,
    waker: Option<Waker>,
}

/// The calls to a service that are under way.
pub struct Ops<C, A> {
    next: u64,
    all: BTreeMap<u64, Op<C, A>>,
}

impl<C, A> Default for Ops<C, A> {
    fn default() -> Self {
        Self { next: 0, all: BTreeMap::new() }
    }
}

impl<C, A> Ops<C, A> {
    /// Takes a call in.
    pub fn begin(&mut self, (node, life): (Node, u32), sent_us: u64, call: C) -> u64 {
        self.next += 1;
        self.all.insert(
            self.next,
            Op { node, life, sent_us, call: Some(call), answer: None, arrived: false, waker: None },
        );
        self.next
    }

    /// A call that is still of interest to somebody, or not carried out.
    pub fn get_mut(&mut self, op: u64) -> Option<&mut Op<C, A>> {
        self.all.get_mut(&op)
    }

    /// The same, to be looked at.
    pub fn peek(&self, op: u64) -> Option<&Op<C, A>> {
        self.all.get(&op)
    }

    /// The answer arrives.
    pub fn arrive(&mut self, op: u64) {
        let Some(found) = self.all.get_mut(&op) else { return };
        found.arrived = true;
        if let Some(waker) = found.waker.take() {
            waker.wake();
        }
    }

    /// Calls that are not carried out.
    pub fn under_way(&self) -> impl Iterator<Item = &C> {
        self.all.values().filter_map(|op| op.call.as_ref())
    }

    /// The caller looks for its answer.
    pub fn poll(&mut self, op: u64, context: &mut Context<'_>) -> Poll<Option<A>> {
        match self.all.get_mut(&op) {
            Some(found) if found.arrived => {
                let answer = found.answer.take();
                // One that is still on its way to the service arrives there, whoever has given up
                // on it.
                if found.call.is_none() {
                    self.all.remove(&op);
                }
                Poll::Ready(answer)
            }
            Some(found) => {
                found.waker = Some(context.waker().clone());
                Poll::Pending
            }
            None => Poll::Ready(None),
        }
    }
}
