//! Runs futures by hand: the very code that carries out effects in the real program, polled when
//! something that it waits for has come. No thread, no timer, no runtime.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use super::core::Node;

/// A lock that nobody else ever holds: there is one thread.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

type Work = Pin<Box<dyn Future<Output = ()>>>;

struct Awake {
    id: u64,
    ready: Arc<Mutex<Vec<u64>>>,
}

impl Wake for Awake {
    fn wake(self: Arc<Self>) {
        lock(&self.ready).push(self.id);
    }
}

struct Running {
    node: Node,
    work: Work,
    waker: Waker,
}

/// The futures of all processes.
#[derive(Default)]
pub struct Executor {
    next: u64,
    running: BTreeMap<u64, Running>,
    ready: Arc<Mutex<Vec<u64>>>,
}

impl Executor {
    /// Takes a process's future, and gives its number; it is polled with the next
    /// [`Executor::run`].
    pub fn spawn(&mut self, node: Node, work: impl Future<Output = ()> + 'static) -> u64 {
        self.next += 1;
        let id = self.next;
        let waker = Waker::from(Arc::new(Awake { id, ready: self.ready.clone() }));
        self.running.insert(id, Running { node, work: Box::pin(work), waker });
        lock(&self.ready).push(id);
        id
    }

    /// Polls what can go on, until nothing can.
    pub fn run(&mut self) {
        loop {
            let ready = std::mem::take(&mut *lock(&self.ready));
            if ready.is_empty() {
                return;
            }
            for id in ready {
                let Some(running) = self.running.get_mut(&id) else { continue };
                let waker = running.waker.clone();
                if let Poll::Ready(()) =
                    running.work.as_mut().poll(&mut Context::from_waker(&waker))
                {
                    self.running.remove(&id);
                }
            }
        }
    }

    /// Whether a process has a future that has not ended.
    pub fn is_busy(&self, node: Node) -> bool {
        self.running.values().any(|running| running.node == node)
    }

    /// A process is gone, and its futures with it.
    pub fn kill(&mut self, node: Node) {
        self.running.retain(|_, running| running.node != node);
    }

    /// A process ends in good order: one of its futures goes on.
    pub fn kill_but(&mut self, node: Node, kept: u64) {
        self.running.retain(|id, running| running.node != node || *id == kept);
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
