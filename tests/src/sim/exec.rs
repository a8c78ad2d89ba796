//! Runs futures by hand: the very code that carries out effects in the real program, polled when
//! something that it waits for has come. No thread, no timer, no runtime; what computes has a stack
//! of its own (`crew.rs`).

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use muster_worker::attempt::Key;

use super::core::Node;
use super::crew::{Computation, SimCrew};

/// A lock that nobody else ever holds: there is one thread.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The attempt on whose behalf something is done; none where it is for no single one.
pub type Behalf = Option<Arc<Key>>;

thread_local! {
    static BEHALF: RefCell<Behalf> = const { RefCell::new(None) };
}

/// On whose behalf something is done now.
pub fn behalf() -> Behalf {
    BEHALF.with_borrow(Clone::clone)
}

/// What goes on, when it is its turn.
pub(super) enum Work {
    /// Polled here.
    Future(Pin<Box<dyn Future<Output = ()>>>),
    /// On a stack of its own.
    Computation(Computation),
}

/// The same as crews begin it.
pub(super) enum Begun {
    Future(Pin<Box<dyn Future<Output = ()> + Send>>),
    Computation(Box<dyn FnOnce() + Send>),
}

/// What is to go on, and what crews have begun and dropped since it was last looked at.
#[derive(Default)]
pub(super) struct Queue {
    next: u64,
    ready: VecDeque<u64>,
    begun: Vec<(u64, Node, Behalf, Begun)>,
    dropped: Vec<u64>,
}

impl Queue {
    /// Begins work of a process on behalf of whoever does something now; gives its number.
    pub(super) fn begin(&mut self, node: Node, work: Begun) -> u64 {
        self.next += 1;
        self.begun.push((self.next, node, behalf(), work));
        self.ready.push_back(self.next);
        self.next
    }

    /// Nobody waits for it any more.
    pub(super) fn drop_one(&mut self, id: u64) {
        self.dropped.push(id);
    }
}

struct Awake {
    id: u64,
    queue: Arc<Mutex<Queue>>,
}

impl Wake for Awake {
    fn wake(self: Arc<Self>) {
        lock(&self.queue).ready.push_back(self.id);
    }
}

struct Running {
    node: Node,
    behalf: Behalf,
    work: Work,
    waker: Waker,
}

impl Running {
    /// Goes on as far as it can; whether it has ended.
    fn go_on(&mut self) -> bool {
        BEHALF.set(self.behalf.clone());
        let ended = match &mut self.work {
            Work::Future(future) => {
                future.as_mut().poll(&mut Context::from_waker(&self.waker)).is_ready()
            }
            Work::Computation(computation) => computation.go_on(&self.waker),
        };
        BEHALF.set(None);
        ended
    }
}

/// The futures and computations of all processes.
#[derive(Default)]
pub struct Executor {
    running: BTreeMap<u64, Running>,
    queue: Arc<Mutex<Queue>>,
}

impl Executor {
    /// Takes a process's future, and gives its number; it is polled with the next
    /// [`Executor::run`].
    pub fn spawn(&mut self, node: Node, work: impl Future<Output = ()> + 'static) -> u64 {
        self.spawn_for(node, None, work)
    }

    /// The same on behalf of an attempt, as all that it begins is.
    pub fn spawn_for(
        &mut self,
        node: Node,
        behalf: Behalf,
        work: impl Future<Output = ()> + 'static,
    ) -> u64 {
        let id = {
            let queue = &mut *lock(&self.queue);
            queue.next += 1;
            queue.ready.push_back(queue.next);
            queue.next
        };
        self.take(id, node, behalf, Work::Future(Box::pin(work)));
        id
    }

    fn take(&mut self, id: u64, node: Node, behalf: Behalf, work: Work) {
        let waker = Waker::from(Arc::new(Awake { id, queue: self.queue.clone() }));
        self.running.insert(id, Running { node, behalf, work, waker });
    }

    /// Who works for a process's attempts.
    pub fn crew(&self, node: Node) -> Arc<SimCrew> {
        Arc::new(SimCrew::new(node, self.queue.clone()))
    }

    /// Takes in what crews have begun and dropped.
    fn look(&mut self) {
        loop {
            let (begun, dropped) = {
                let queue = &mut *lock(&self.queue);
                (std::mem::take(&mut queue.begun), std::mem::take(&mut queue.dropped))
            };
            if begun.is_empty() && dropped.is_empty() {
                return;
            }
            for (id, node, behalf, work) in begun {
                let work = match work {
                    Begun::Future(future) => Work::Future(future),
                    Begun::Computation(work) => Work::Computation(Computation::new(work)),
                };
                self.take(id, node, behalf, work);
            }
            for id in dropped {
                self.running.remove(&id);
            }
        }
    }

    /// Lets go on what can, until nothing can.
    pub fn run(&mut self) {
        loop {
            self.look();
            let Some(id) = lock(&self.queue).ready.pop_front() else { return };
            if self.running.get_mut(&id).is_some_and(Running::go_on) {
                self.running.remove(&id);
            }
        }
    }

    /// Whether a process has work that has not ended.
    pub fn is_busy(&self, node: Node) -> bool {
        self.running.values().any(|running| running.node == node)
    }

    /// A process is gone, and its work with it.
    pub fn kill(&mut self, node: Node) {
        self.kill_but(node, 0);
    }

    /// A process ends in good order: one of its futures goes on.
    pub fn kill_but(&mut self, node: Node, kept: u64) {
        loop {
            // What ends may drop what else it has begun.
            self.look();
            let of_node = |(id, running): &(&u64, &Running)| running.node == node && **id != kept;
            let Some(id) = self.running.iter().find(of_node).map(|(id, _)| *id) else { return };
            self.running.remove(&id);
        }
    }
}

/// Something that is awaited and happens once.
#[derive(Debug, Default)]
pub struct Flag {
    inner: Mutex<(bool, Vec<Waker>)>,
}

impl Flag {
    /// It happens.
    pub fn set(&self) {
        let mut inner = lock(&self.inner);
        inner.0 = true;
        inner.1.drain(..).for_each(Waker::wake);
    }

    /// Whether it has happened.
    pub fn is_set(&self) -> bool {
        lock(&self.inner).0
    }

    /// Ends when it has happened.
    pub async fn wait(&self) {
        std::future::poll_fn(|context| {
            let mut inner = lock(&self.inner);
            if inner.0 {
                return Poll::Ready(());
            }
            // A future that waits for two things at once is polled for either: once is enough to be
            // told.
            if !inner.1.iter().any(|waker| waker.will_wake(context.waker())) {
                inner.1.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }
}
