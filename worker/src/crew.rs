//! Who does the work of attempts, as a port: threads that compute and may wait, and tasks beside
//! them that move bytes. Here it is tokio; the simulation puts a crew in its place of which one
//! works at a time, in an order that follows from its seed.

use std::pin::Pin;

use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;

/// The port.
pub trait Crew: Send + Sync + 'static {
    /// Begins a task beside the caller. It ends by itself, or when what is given is dropped.
    fn begin(&self, task: Pin<Box<dyn Future<Output = ()> + Send>>) -> Box<dyn Send + Sync>;

    /// Runs `work` on a thread that may wait.
    fn compute(&self, work: Box<dyn FnOnce() + Send>);

    /// On such a thread: waits until a future has ended. One that has not when this comes back
    /// never will, for the process is gone.
    fn wait(&self, io: Pin<&mut dyn Future<Output = ()>>);
}

/// Tasks and threads of tokio.
pub(crate) struct Tokio(Handle);

impl Tokio {
    /// Those of the runtime that runs the caller.
    pub(crate) fn current() -> Self {
        Self(Handle::current())
    }
}

impl Crew for Tokio {
    fn begin(&self, task: Pin<Box<dyn Future<Output = ()> + Send>>) -> Box<dyn Send + Sync> {
        Box::new(AbortOnDropHandle::new(self.0.spawn(task)))
    }

    fn compute(&self, work: Box<dyn FnOnce() + Send>) {
        // Whoever waits for what it computes sees for itself that it has ended.
        drop(self.0.spawn_blocking(work));
    }

    fn wait(&self, io: Pin<&mut dyn Future<Output = ()>>) {
        self.0.block_on(io);
    }
}
