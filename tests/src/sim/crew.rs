//! Who works for attempts in the simulation. What computes has a stack of its own (a coroutine),
//! because the program's own code waits in the midst of it: there it gives way to the executor,
//! which lets it go on when what it waits for has come. All of it is one thread, so that a seed
//! gives the same run each time, whoever else uses the machine.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::ptr;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};

use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, Yielder};
use muster_worker::crew::Crew;

use super::core::Node;
use super::exec::{Begun, Queue, lock};

/// With what a computation goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// It may look again at what it waits for.
    Look,
    /// Its process is gone, and nothing that it waits for comes any more.
    Gone,
}

/// A computation, as it sees itself.
struct Own {
    /// How it gives way; set with its first step.
    way: Cell<*const Yielder<Turn, ()>>,
    waker: Waker,
    gone: Cell<bool>,
}

type Stack = Coroutine<Turn, (), (), DefaultStack>;

thread_local! {
    /// Stacks of earlier computations, which serve again.
    static STACKS: RefCell<Vec<DefaultStack>> = const { RefCell::new(Vec::new()) };
    /// The computation whose turn it is.
    static OWN: RefCell<Option<Rc<Own>>> = const { RefCell::new(None) };
}

/// Something that computes, and waits in the midst of it.
pub(super) struct Computation {
    work: Option<Box<dyn FnOnce() + Send>>,
    begun: Option<(Rc<Own>, Stack)>,
}

impl Computation {
    /// It has not had a turn yet.
    pub(super) fn new(work: Box<dyn FnOnce() + Send>) -> Self {
        Self { work: Some(work), begun: None }
    }

    /// Gives it a turn; whether it has ended.
    pub(super) fn go_on(&mut self, waker: &Waker) -> bool {
        if let Some(work) = self.work.take() {
            self.begun = Some(begin(work, waker.clone()));
        }
        self.turn(Turn::Look)
    }

    fn turn(&mut self, turn: Turn) -> bool {
        let Some((own, coroutine)) = &mut self.begun else { return true };
        OWN.set(Some(own.clone()));
        let ended = coroutine.resume(turn).as_yield().is_none();
        OWN.set(None);
        if ended && let Some((_, coroutine)) = self.begun.take() {
            STACKS.with_borrow_mut(|stacks| stacks.push(coroutine.into_stack()));
        }
        ended
    }
}

fn begin(work: Box<dyn FnOnce() + Send>, waker: Waker) -> (Rc<Own>, Stack) {
    let own = Rc::new(Own { way: Cell::new(ptr::null()), waker, gone: Cell::new(false) });
    let within = own.clone();
    let stack = STACKS.with_borrow_mut(Vec::pop).unwrap_or_default();
    let coroutine = Coroutine::with_stack(stack, move |way: &Yielder<Turn, ()>, _| {
        within.way.set(way);
        // Who waits for what it computes sees that there is nothing; the panic has been told.
        drop(catch_unwind(AssertUnwindSafe(work)));
    });
    (own, coroutine)
}

impl Drop for Computation {
    /// Its process is gone: it comes to an end without anything that it has waited for.
    fn drop(&mut self) {
        while !self.turn(Turn::Gone) {}
    }
}

/// The crew of one process.
pub struct SimCrew {
    node: Node,
    queue: Arc<Mutex<Queue>>,
}

/// Ends what was begun when it is dropped.
struct Held {
    id: u64,
    queue: Arc<Mutex<Queue>>,
}

impl Drop for Held {
    fn drop(&mut self) {
        lock(&self.queue).drop_one(self.id);
    }
}

impl SimCrew {
    pub(super) fn new(node: Node, queue: Arc<Mutex<Queue>>) -> Self {
        Self { node, queue }
    }
}

impl Crew for SimCrew {
    fn begin(&self, task: Pin<Box<dyn Future<Output = ()> + Send>>) -> Box<dyn Send + Sync> {
        let id = lock(&self.queue).begin(self.node, Begun::Future(task));
        Box::new(Held { id, queue: self.queue.clone() })
    }

    fn compute(&self, work: Box<dyn FnOnce() + Send>) {
        lock(&self.queue).begin(self.node, Begun::Computation(work));
    }

    fn wait(&self, mut io: Pin<&mut dyn Future<Output = ()>>) {
        let Some(own) = OWN.with_borrow(Clone::clone) else { return };
        while !own.gone.get() {
            if io.as_mut().poll(&mut Context::from_waker(&own.waker)).is_ready() {
                return;
            }
            // SAFETY: `own` is the computation whose turn it is, so this runs on its stack, above
            // the frame that has lent the yielder for as long as the computation lasts, and has set
            // it before anything else.
            let way = unsafe { &*own.way.get() };
            own.gone.set(way.suspend(()) == Turn::Gone);
        }
    }
}
