//! The worker's loop: feeds beats, commands, answers and outcomes to [`crate::attempt`] and carries out its effects. Thin: it decides when to send a heartbeat, when to
//! ask for admission again, and when to end; what an attempt may do is decided there. Nothing in the loop waits for the network: requests are tasks, and come back as
//! events.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::{Client, Message, Subject};
use futures::StreamExt;
use muster_common::clock::Clock;
use muster_common::ids::{DeploymentId, Incarnation};
use muster_common::names::{Names, Verb};
use muster_common::store::{BlobUrl, Stores};
use muster_common::wire::{
    self, AttemptProgress, Heartbeat, LeaderBeat, Outcome, Register, RegisterReply, Report, ReportReply, RunAttempt,
    WorkerState,
};
use muster_common::{Error, ErrorKind, Result};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::attempt::{Attempts, Effect, Input, Key};
use crate::memory::{Budget, health};
use crate::requests::Requests;
use crate::retry::{Retry, delay_ms};
use crate::tasks::{Context, Gate, Progress, Task};
use crate::transfer::Leftovers;
use crate::{Exit, WorkerOptions};

/// How often the loop looks at the time.
const TICK: Duration = Duration::from_millis(50);
/// Events that may wait for the loop; attempts and requests wait beyond that.
const EVENTS_MAX: usize = 1024;
/// How long a leaving worker takes to remove what its abandoned attempts made.
const CLEAN_UP_TIMEOUT: Duration = Duration::from_secs(5);
/// Bounds of the heartbeat interval that a leader may set, in milliseconds.
const HEARTBEAT_MS: std::ops::RangeInclusive<u64> = 50..=60_000;

/// What comes back from tasks.
enum Event {
    Opened { key: Key, upload: String },
    Finished { key: Key, outcome: Outcome },
    Reported { key: Key, reply: Result<ReportReply> },
    Registered { asked: Vec<Key>, reply: Result<RegisterReply> },
}

/// An attempt as the loop knows it, until it is kept or cleaned up.
struct Work {
    cancel: CancellationToken,
    proceed: Option<oneshot::Sender<()>>,
    progress: Arc<Progress>,
    results: Leftovers,
}

/// How long a worker takes "not yet" for an answer, in times that a silent worker takes to be dead.
const REFUSED_DEAD_TIMES: u64 = 3;

/// When to ask for admission.
#[derive(Default)]
struct Admission {
    in_flight: bool,
    tries: u32,
    due_ms: u64,
    /// Since when leaders have been saying "not yet"; a former life of this worker may take so long to be forgotten, another live process never is.
    refused_since_ms: Option<u64>,
}

/// A worker at work.
pub(crate) struct Driver {
    options: WorkerOptions,
    clock: Arc<dyn Clock>,
    requests: Requests,
    names: Names,
    incarnation: Incarnation,
    context: Arc<Context>,
    attempts: Attempts,
    work: HashMap<Key, Work>,
    tasks: JoinSet<()>,
    events: (mpsc::Sender<Event>, mpsc::Receiver<Event>),
    deployment: Option<DeploymentId>,
    admission: Admission,
    heartbeat_ms: u64,
    heartbeat_due_ms: u64,
    sequence: u64,
    leader_heard_ms: u64,
    /// When a stopping worker gives up on finishing.
    stop_by_ms: Option<u64>,
}

impl Driver {
    /// A worker that has not said anything yet.
    pub(crate) async fn new(
        client: Client,
        stores: Stores,
        clock: Arc<dyn Clock>,
        options: WorkerOptions,
    ) -> Result<Self> {
        let incarnation = Incarnation(clock.random());
        let config = &options.config;
        let names = Names::new(&config.namespace);
        let timeout = Duration::from_millis(config.nats.request_timeout_ms);
        let budget = Budget::of(options.memory_bytes, options.threads);
        let retry = Retry::new(config.store.attempts_max, clock.clone());
        let spills = spill_folder(&options, incarnation).await?;
        tracing::info!(worker = %options.id, slots = options.threads, memory_bytes = options.memory_bytes, sorter_bytes = budget.sorter_bytes, "worker starts");
        Ok(Self {
            requests: Requests::new(client, names.clone(), timeout),
            names,
            context: Arc::new(Context::new(stores, retry, budget, options.threads, spills)),
            attempts: Attempts::new(options.id.clone(), incarnation, options.threads.max(1)),
            work: HashMap::new(),
            tasks: JoinSet::new(),
            events: mpsc::channel(EVENTS_MAX),
            deployment: None,
            admission: Admission::default(),
            heartbeat_ms: config.heartbeat.interval_ms,
            heartbeat_due_ms: 0,
            sequence: 0,
            leader_heard_ms: clock.now_ms(),
            stop_by_ms: None,
            incarnation,
            clock,
            options,
        })
    }

    /// Works until the end.
    pub(crate) async fn run(mut self, stop: CancellationToken) -> Result<Exit> {
        let mut beats = self.requests.subscribe(self.names.leader()).await?;
        let mut commands = self.requests.subscribe(self.names.commands(&self.options.id)).await?;
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let closed = || Error::retry("the connection to NATS is closed");
        let ended = loop {
            tokio::select! {
                beat = beats.next() => self.on_beat(&beat.ok_or_else(closed)?).await,
                command = commands.next() => self.on_command(command.ok_or_else(closed)?).await,
                event = self.events.1.recv() => if let Some(event) = event && let Err(error) = self.on_event(event).await { break Err(error) },
                _ = ticks.tick() => self.on_tick().await,
                () = stop.cancelled(), if self.stop_by_ms.is_none() => self.on_stop().await,
            }
            if let Some(ended) = self.end() {
                break ended;
            }
        };
        self.leave().await;
        tracing::info!(worker = %self.options.id, exit = ?ended, "worker ends");
        ended
    }

    /// Whether it is time to end.
    fn end(&self) -> Option<Result<Exit>> {
        let now_ms = self.clock.now_ms();
        let waited_ms = now_ms.saturating_sub(self.leader_heard_ms);
        let idle = self.attempts.is_idle();
        match self.stop_by_ms {
            Some(by_ms) => (idle || now_ms >= by_ms).then_some(Ok(Exit::Stopped)),
            None if idle && self.attempts.is_draining() => Some(Ok(Exit::Drained)),
            None if waited_ms >= self.options.config.worker.coordinator_wait_ms => Some(Err(Error::retry(format!(
                "no coordinator was heard of for {waited_ms} ms (worker.coordinator_wait_ms); is one running?"
            )))),
            None => None,
        }
    }

    async fn step(&mut self, input: Input, reply: Option<Subject>) {
        let effects = self.attempts.step(self.clock.now_ms(), input);
        for effect in effects {
            self.carry_out(effect, reply.as_ref()).await;
        }
    }

    async fn carry_out(&mut self, effect: Effect, reply: Option<&Subject>) {
        match effect {
            Effect::AnswerRun(answer) => self.answer(reply, &answer).await,
            Effect::Answer(answer) => self.answer(reply, &answer).await,
            Effect::Start(run) => self.start(*run),
            Effect::Proceed(key) => {
                if let Some(proceed) = self.work.get_mut(&key).and_then(|work| work.proceed.take()) {
                    // Refused only by an attempt that has failed meanwhile, which says so itself.
                    let _ = proceed.send(());
                }
            }
            Effect::Abandon(key) => {
                tracing::info!(job = %key.job, attempt = %key.attempt, "abandoning an attempt");
                if let Some(work) = self.work.get(&key) {
                    work.cancel.cancel();
                }
            }
            Effect::CleanUp(key) => {
                if let Some(work) = self.work.remove(&key) {
                    self.tasks.spawn(async move { work.results.remove_all().await });
                }
            }
            Effect::Keep(key) => drop(self.work.remove(&key)),
            Effect::Send(report) => self.send(*report),
            Effect::Register => self.admission.due_ms = self.clock.now_ms(),
        }
    }

    async fn answer<T: serde::Serialize>(&self, reply: Option<&Subject>, message: &T) {
        let Some(reply) = reply else { return };
        if let Err(error) = self.requests.answer(reply.clone(), message).await {
            tracing::warn!(%error, "a command goes unanswered");
        }
    }

    fn start(&mut self, run: RunAttempt) {
        let key = Key { job: run.job.clone(), attempt: run.attempt };
        tracing::info!(job = %key.job, phase = %run.attempt.task.phase, attempt = %key.attempt, epoch = %run.epoch, "attempt begins");
        let (cancel, progress) = (CancellationToken::new(), Arc::new(Progress::default()));
        let task = Arc::new(Task::new(self.context.clone(), run, cancel.clone(), progress.clone()));
        let (proceed, allowed) = oneshot::channel();
        let work = Work { cancel, proceed: Some(proceed), progress, results: task.results.clone() };
        self.work.insert(key.clone(), work);
        self.tasks.spawn(attend(task, key, allowed, self.events.0.clone()));
    }

    fn send(&mut self, report: Report) {
        let (requests, events) = (self.requests.clone(), self.events.0.clone());
        self.tasks.spawn(async move {
            let key = Key { job: report.job.clone(), attempt: report.attempt };
            let reply = requests.report(&report).await;
            // The loop has ended if nobody receives.
            drop(events.send(Event::Reported { key, reply }).await);
        });
    }

    async fn on_beat(&mut self, message: &Message) {
        let beat: LeaderBeat = match wire::decode(&message.payload) {
            Ok(beat) => beat,
            Err(error) => return tracing::warn!(%error, "a leader's beat cannot be read"),
        };
        self.leader_heard_ms = self.clock.now_ms();
        self.note_deployment(&beat.deployment).await;
        self.step(Input::Beat { epoch: beat.epoch }, None).await;
    }

    /// Another deployment than before means that the journal is another one: nothing of the old one counts.
    async fn note_deployment(&mut self, deployment: &DeploymentId) {
        let before = self.deployment.replace(deployment.clone());
        if let Some(before) = before.filter(|before| before != deployment) {
            tracing::warn!(%before, %deployment, "another deployment leads now; what was running is abandoned");
            self.step(Input::NewDeployment, None).await;
        }
    }

    async fn on_command(&mut self, message: Message) {
        let token = message.subject.rsplit('.').next().unwrap_or_default();
        let input = match Verb::from_token(token) {
            Some(Verb::Run) => wire::decode(&message.payload).map(|run| Input::Run(Box::new(run))),
            Some(Verb::Cancel) => wire::decode(&message.payload).map(Input::Cancel),
            Some(Verb::Drain) => wire::decode(&message.payload).map(Input::Drain),
            None => Err(Error::invalid(format!("{token:?} is no command"))),
        };
        match input {
            Ok(input) => {
                self.leader_heard_ms = self.clock.now_ms();
                self.step(input, message.reply).await;
            }
            Err(error) => tracing::warn!(%error, subject = %message.subject, "a command cannot be read"),
        }
    }

    async fn on_event(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Opened { key, upload } => self.step(Input::Opened { key, upload }, None).await,
            Event::Finished { key, outcome } => self.step(Input::Finished { key, outcome }, None).await,
            Event::Reported { key, reply: Ok(reply) } => {
                self.leader_heard_ms = self.clock.now_ms();
                self.step(Input::Answered { key, reply: Some(reply) }, None).await;
            }
            Event::Reported { key, reply: Err(error) } if error.kind == ErrorKind::Bug => {
                tracing::error!(%error, attempt = %key.attempt, "a report cannot be sent");
                self.step(Input::Unsendable { key, error }, None).await;
            }
            Event::Reported { key, reply: Err(error) } => {
                tracing::warn!(%error, attempt = %key.attempt, "a report was not acknowledged; it is sent again");
                self.step(Input::Answered { key, reply: None }, None).await;
            }
            Event::Registered { asked, reply } => self.on_registered(asked, reply).await?,
        }
        Ok(())
    }

    async fn on_registered(&mut self, asked: Vec<Key>, reply: Result<RegisterReply>) -> Result<()> {
        self.admission.in_flight = false;
        self.admission.tries += 1;
        self.admission.due_ms = self.clock.now_ms() + delay_ms(self.admission.tries, self.clock.random());
        match reply {
            Ok(RegisterReply::Accepted { deployment, epoch, heartbeat_ms, regranted }) => {
                tracing::info!(worker = %self.options.id, %epoch, %deployment, heartbeat_ms, regranted = regranted.len(), "registered");
                self.leader_heard_ms = self.clock.now_ms();
                if self.deployment.is_none() {
                    self.sweep_spills();
                }
                self.note_deployment(&deployment).await;
                self.admission.tries = 0;
                self.admission.refused_since_ms = None;
                self.heartbeat_ms = heartbeat_ms.clamp(*HEARTBEAT_MS.start(), *HEARTBEAT_MS.end());
                self.heartbeat_due_ms = 0;
                self.step(Input::Registered { epoch, asked, regranted }, None).await;
            }
            Ok(RegisterReply::Refused { error }) if error.kind.is_retryable() || error.kind == ErrorKind::Fenced => {
                tracing::warn!(%error, "not admitted yet");
                let now_ms = self.clock.now_ms();
                self.leader_heard_ms = now_ms;
                let since_ms = *self.admission.refused_since_ms.get_or_insert(now_ms);
                let bound_ms = REFUSED_DEAD_TIMES * self.options.config.heartbeat.dead_after_ms;
                if now_ms.saturating_sub(since_ms) > bound_ms {
                    return Err(Error::invalid(format!(
                        "worker {} was refused for {bound_ms} ms: {error}",
                        self.options.id
                    )));
                }
            }
            Ok(RegisterReply::Refused { error }) => {
                return Err(error.at(format!("worker {} was refused", self.options.id)));
            }
            Err(error) if error.kind == ErrorKind::Invalid => {
                tracing::warn!(%error, "the answer to a registration cannot be read");
            }
            Err(error) => {
                let waited_ms = self.clock.now_ms().saturating_sub(self.leader_heard_ms);
                tracing::warn!(%error, waited_ms, "waiting for coordinator");
            }
        }
        Ok(())
    }

    async fn on_tick(&mut self) {
        while self.tasks.try_join_next().is_some() {}
        let now_ms = self.clock.now_ms();
        self.step(Input::Tick, None).await;
        let admission = &self.admission;
        if self.attempts.registered().is_none() && !admission.in_flight && admission.due_ms <= now_ms {
            self.ask_admission();
        }
        if self.attempts.registered().is_some() && self.heartbeat_due_ms <= now_ms {
            self.heartbeat_due_ms = now_ms + self.heartbeat_ms;
            let state = if self.attempts.is_draining() { WorkerState::Draining } else { WorkerState::Active };
            self.heartbeat(state).await;
        }
    }

    fn ask_admission(&mut self) {
        self.admission.in_flight = true;
        let held = self.attempts.held();
        let asked = held.iter().map(|held| Key { job: held.job.clone(), attempt: held.attempt }).collect();
        let register = Register {
            worker: self.options.id.clone(),
            incarnation: self.incarnation,
            program: self.options.program.clone(),
            host: self.options.host.clone(),
            slots: self.options.threads.max(1),
            memory_bytes: self.options.memory_bytes,
            labels: self.options.labels.clone(),
            draining: self.attempts.is_draining(),
            held,
        };
        let (requests, events) = (self.requests.clone(), self.events.0.clone());
        self.tasks.spawn(async move {
            let reply = requests.register(&register).await;
            drop(events.send(Event::Registered { asked, reply }).await);
        });
    }

    async fn heartbeat(&mut self, state: WorkerState) {
        let Some(epoch) = self.attempts.registered() else { return };
        let attempts = self.attempts.running().filter_map(|key| {
            let progress = &self.work.get(key)?.progress;
            Some(AttemptProgress {
                job: key.job.clone(),
                attempt: key.attempt,
                bytes_done: progress.bytes_done.load(Ordering::Relaxed),
                bytes_total: progress.bytes_total.load(Ordering::Relaxed),
            })
        });
        let heartbeat = Heartbeat {
            worker: self.options.id.clone(),
            incarnation: self.incarnation,
            epoch,
            sequence: self.sequence,
            state,
            attempts: attempts.collect(),
            health: health(self.context.retry.retried()),
        };
        self.sequence += 1;
        if let Err(error) = self.requests.heartbeat(&heartbeat).await {
            tracing::warn!(%error, "a heartbeat was not sent");
        }
    }

    async fn on_stop(&mut self) {
        tracing::info!(worker = %self.options.id, "stopping: finishing what runs, taking no more");
        self.stop_by_ms = Some(self.clock.now_ms() + self.options.config.worker.drain_ms);
        self.step(Input::Stop, None).await;
        self.heartbeat_due_ms = 0;
    }

    /// Says so, abandons what is left, and removes what that leaves, within bounds.
    async fn leave(&mut self) {
        self.heartbeat(WorkerState::Leaving).await;
        self.step(Input::Leave, None).await;
        let cleaned = async {
            while !self.attempts.is_idle() {
                let Some(event) = self.events.1.recv().await else { return };
                if let Event::Finished { key, outcome } = event {
                    self.step(Input::Finished { key, outcome }, None).await;
                }
            }
        };
        if tokio::time::timeout(CLEAN_UP_TIMEOUT, cleaned).await.is_err() {
            tracing::warn!("abandoned attempts did not end in time; the leader removes what they made");
        }
        // The receiver is closed first: requests that still wait for their answer give it to nobody.
        self.events.1.close();
        let joined = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(CLEAN_UP_TIMEOUT, joined).await.is_err() {
            self.tasks.abort_all();
        }
        self.sweep_own_spills().await;
        self.requests.flush().await;
    }

    /// Removes what earlier lives of this worker left on its disk. Only once it is registered: until then another process might live under its id.
    fn sweep_spills(&mut self) {
        let (own, context) = (self.context.spills.clone(), self.context.clone());
        self.tasks.spawn(async move {
            let Some(own) = own.file_path() else { return };
            let swept = tokio::task::spawn_blocking(move || {
                for entry in
                    own.parent().and_then(|folder| std::fs::read_dir(folder).ok()).into_iter().flatten().flatten()
                {
                    if entry.path() != own && std::fs::remove_dir_all(entry.path()).is_ok() {
                        tracing::info!(path = %entry.path().display(), "removed spills of an earlier life");
                    }
                }
            });
            drop((swept.await, context));
        });
    }

    async fn sweep_own_spills(&self) {
        let pruned =
            async { self.context.stores.open(&self.context.spills).await?.prune(self.context.spills.key()).await };
        if let Err(error) = pruned.await {
            tracing::debug!(%error, "cannot remove the folder of spills");
        }
    }
}

/// Runs an attempt and tells the loop what becomes of it.
async fn attend(task: Arc<Task>, key: Key, proceed: oneshot::Receiver<()>, events: mpsc::Sender<Event>) {
    let (opened, mut announced) = oneshot::channel();
    let mut conclusion = Box::pin(task.conclude(Gate { opened, proceed }));
    let outcome = tokio::select! {
        Ok(upload) = &mut announced => {
            drop(events.send(Event::Opened { key: key.clone(), upload }).await);
            conclusion.await
        }
        outcome = &mut conclusion => outcome,
    };
    drop(events.send(Event::Finished { key, outcome }).await);
}

/// The folder for the spills of this life of the worker: its own, so that two lives never meet.
async fn spill_folder(options: &WorkerOptions, incarnation: Incarnation) -> Result<BlobUrl> {
    let folder = options.data_dir.join("spill").join(options.id.as_str()).join(format!("{:016x}", incarnation.0));
    let refuse = |e: std::io::Error| Error::invalid(format!("cannot use {} for spills: {e}", folder.display()));
    let absolute = std::path::absolute(&folder).map_err(refuse)?;
    tokio::fs::create_dir_all(&absolute).await.map_err(refuse)?;
    BlobUrl::from_path(&absolute)
}
