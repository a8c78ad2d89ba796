//! The worker's loop: feeds beats, commands, answers and outcomes to [`crate::attempt`] and carries
//! out its effects. Thin: what an attempt may do is decided there; when to send a heartbeat, when
//! to ask for admission again and when to end, in [`crate::presence`]. Nothing in the loop waits
//! for the network: requests are tasks, and come back as events.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, Message, Subject};
use futures::StreamExt;
use muster_platform::adapters::metered::Meter;
use muster_platform::adapters::own_files::{OwnFiles, Page};
use muster_platform::clock::Clock;
use muster_platform::inputs::Pattern;
use muster_platform::retry::{RecoveryStats, Retry};
use muster_platform::store::{BlobUrl, Layer, Scheme};
use muster_platform::stores::Stores;
use muster_platform::telemetry::Bounded;
use muster_protocol::ids::{DeploymentId, Incarnation, JobId};
use muster_protocol::names::{Names, Verb};
use muster_protocol::wire::{
    self, Health, Heartbeat, JobRecoveries, LeaderBeat, ListInputs, ListReply, Outcome, Recovered,
    Register, RegisterReply, Report, ReportReply, RunAttempt, StoreLimits, WorkerState,
};
use muster_protocol::{Error, ErrorKind, Result};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::at_work::AtWork;
use crate::attempt::{Attempts, Effect, Input, Key};
use crate::crew::Tokio;
use crate::guard::Guards;
use crate::health::{Gauge, Reading};
use crate::metrics::{Meters, Seen};
use crate::presence::{Admitted, Presence};
use crate::requests::{Asking, Requests};
use crate::spills::Spills;
use crate::tasks::Context;
use crate::{Exit, WorkerOptions};

/// How often the loop looks at the time.
const TICK: Duration = Duration::from_millis(50);
/// Events that may wait for the loop; attempts and requests wait beyond that.
const EVENTS_MAX: usize = 1024;
/// Pages of its own input that are listed side by side.
const LISTINGS_AT_ONCE: usize = 4;
/// How long a leaving worker takes to remove what its abandoned attempts made.
const CLEAN_UP_TIMEOUT: Duration = Duration::from_secs(5);

/// What comes back from tasks.
enum Event {
    /// From an attempt: that its upload is open, or that it has ended.
    Attempt(Input),
    Reported {
        key: Key,
        reply: Result<ReportReply>,
    },
    Registered {
        asked: Vec<Key>,
        reply: Result<RegisterReply>,
    },
}

/// A worker at work.
pub(crate) struct Driver {
    options: WorkerOptions,
    clock: Arc<dyn Clock>,
    requests: Requests,
    names: Names,
    incarnation: Incarnation,
    guards: Arc<Guards>,
    attempts: Attempts,
    work: AtWork,
    tasks: JoinSet<()>,
    /// Requests to the coordinator that wait for their answer.
    asking: JoinSet<()>,
    events: (mpsc::Sender<Event>, mpsc::Receiver<Event>),
    presence: Presence,
    gauge: Gauge,
    /// The folders that this worker offers as input, and a turn at listing them: each takes a
    /// thread and memory.
    own_files: Option<OwnFiles>,
    listing: Arc<Semaphore>,
    /// Where somebody watches this process.
    meters: Option<Meters>,
    /// What is logged of messages that cannot be read.
    bounded: Bounded,
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
        let budget = options.budget;
        let retry = Retry::new(config.retry.clone(), clock.clone());
        let meter =
            options.vitals.clone().map(|vitals| Arc::new(Meter::new(vitals)) as Arc<dyn Layer>);
        let meters = options
            .vitals
            .clone()
            .map(|vitals| Meters::new(vitals, options.threads.max(1), options.memory_bytes));
        let stores = stores.disturbed(options.faults.clone()).metered(meter);
        let guards =
            Arc::new(Guards::new(config.hedge.clone(), config.retry.store.total_ms, clock.clone()));
        let stores = stores.guarded(guards.clone());
        let spills = spill_folder(&options, incarnation).await?;
        let own_files = offer_input(&stores, &options, clock.clone()).await?;
        tracing::info!(
            worker = %options.id,
            slots = options.threads,
            memory_bytes = options.memory_bytes,
            sorter_bytes = budget.sorter_bytes,
            "worker starts"
        );
        let crew = Arc::new(Tokio::current());
        let spills = Spills::new(spills);
        let context = Context::new(crew, stores, retry, budget, options.threads, spills)
            .sharing(options.jobs.clone())
            .waiting_for_copies(config.store.replica_after_ms);
        Ok(Self {
            requests: Requests::new(
                client,
                Asking::of(&options, &names),
                timeout,
                options.faults.clone(),
            ),
            names,
            guards,
            attempts: Attempts::new(
                options.id.clone(),
                incarnation,
                options.threads.max(1),
                config.retry.nats.clone(),
            ),
            work: AtWork::new(context),
            tasks: JoinSet::new(),
            asking: JoinSet::new(),
            events: mpsc::channel(EVENTS_MAX),
            presence: Presence::new(options.id.clone(), config, clock.now_ms()),
            gauge: Gauge::new(
                std::thread::available_parallelism().map_or(1, usize::from),
                options.threads,
                options.memory_bytes,
            ),
            own_files,
            listing: Arc::new(Semaphore::new(LISTINGS_AT_ONCE)),
            meters,
            bounded: Bounded::default(),
            incarnation,
            clock,
            options,
        })
    }

    /// Works until the end.
    pub(crate) async fn run(mut self, stop: CancellationToken) -> Result<Exit> {
        let mut beats = self.requests.subscribe(self.names.leader()).await?;
        let mut commands = self.requests.subscribe(self.names.commands(&self.options.id)).await?;
        let mut limits = self.requests.subscribe(self.names.limits()).await?;
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let closed = || Error::retry("the connection to NATS is closed");
        let ended = loop {
            tokio::select! {
                beat = beats.next() => self.on_beat(&beat.ok_or_else(closed)?).await,
                command = commands.next() => self.on_command(command.ok_or_else(closed)?).await,
                limits = limits.next() => self.on_limits(&limits.ok_or_else(closed)?),
                event = self.events.1.recv() => {
                    if let Some(event) = event
                        && let Err(error) = self.on_event(event).await
                    {
                        break Err(error);
                    }
                }
                _ = ticks.tick() => self.on_tick().await,
                () = stop.cancelled(), if !self.presence.is_stopping() => self.on_stop().await,
            }
            if let Some(ended) = self.presence.end(self.clock.now_ms(), &self.attempts) {
                break ended;
            }
            if let Some(error) = self.cut_off_from_store() {
                break Err(error);
            }
        };
        self.leave().await;
        tracing::info!(worker = %self.options.id, exit = ?ended, "worker ends");
        ended
    }

    /// Where a store has not answered for too long and nothing is left to do: a supervisor may
    /// start it where the store can be reached.
    fn cut_off_from_store(&self) -> Option<Error> {
        let (away_ms, wait_ms) = (self.guards.away_ms(), self.options.config.worker.store_wait_ms);
        let over = wait_ms > 0 && away_ms >= wait_ms && self.attempts.is_idle();
        over.then(|| {
            let what = self.guards.waiting_for().unwrap_or_default();
            Error::retry(format!(
                "the {what} has not answered for {away_ms} ms (worker.store_wait_ms)"
            ))
        })
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
            Effect::Proceed(key) => self.work.proceed(&key),
            Effect::Abandon(key) => {
                tracing::info!(job = %key.job, attempt = %key.attempt, "abandoning an attempt");
                self.work.abandon(&key);
            }
            Effect::CleanUp(key) => {
                if let Some(removal) = self.work.clean_up(&key) {
                    self.tasks.spawn(removal);
                }
            }
            Effect::Keep(key) => self.work.keep(&key),
            Effect::Send(report) => self.send(*report),
            Effect::Register => self.presence.register_now(self.clock.now_ms()),
        }
    }

    async fn answer<T: wire::Message>(&self, reply: Option<&Subject>, message: &T) {
        let Some(reply) = reply else { return };
        if let Err(error) = self.requests.answer(reply.clone(), message).await {
            tracing::warn!(%error, "a command goes unanswered");
        }
    }

    fn start(&mut self, run: RunAttempt) {
        tracing::info!(
            job = %run.job,
            phase = %run.attempt.task.phase,
            attempt = %run.attempt,
            epoch = %run.epoch,
            "attempt begins"
        );
        let events = self.events.0.clone();
        let tell = move |input| {
            let events = events.clone();
            // The loop has ended if nobody receives.
            async move { drop(events.send(Event::Attempt(input)).await) }
        };
        self.tasks.spawn(self.work.begin(run, None, tell));
    }

    fn send(&mut self, report: Report) {
        let (requests, events) = (self.requests.clone(), self.events.0.clone());
        let recoveries = self.recoveries();
        self.asking.spawn(async move {
            // Before the report, which may be the job's last.
            tell_recoveries(&requests, recoveries).await;
            let key = Key { job: report.job.clone(), attempt: report.attempt };
            let reply = requests.report(&report).instrument(tracing::debug_span!("report")).await;
            // The loop has ended if nobody receives.
            drop(events.send(Event::Reported { key, reply }).await);
        });
    }

    async fn on_beat(&mut self, message: &Message) {
        let beat: LeaderBeat = match wire::decode(&message.payload) {
            Ok(beat) => beat,
            Err(error) => return self.unreadable("leader's beat", message, &error),
        };
        self.presence.heard(self.clock.now_ms());
        self.note_deployment(&beat.deployment).await;
        self.step(Input::Beat { epoch: beat.epoch }, None).await;
    }

    async fn note_deployment(&mut self, deployment: &DeploymentId) {
        if let Some(before) = self.presence.note_deployment(deployment) {
            tracing::warn!(%before, %deployment, "another deployment leads now; what was running \
                is abandoned");
            self.step(Input::NewDeployment, None).await;
        }
    }

    fn on_limits(&mut self, message: &Message) {
        match wire::decode::<StoreLimits>(&message.payload) {
            Ok(limits) if self.attempts.registered().is_some_and(|epoch| limits.epoch >= epoch) => {
                self.guards.limit(limits.requests_per_s);
            }
            Ok(limits) => {
                tracing::debug!(epoch = %limits.epoch, "limits of another leader are not heard");
            }
            Err(error) => self.unreadable("limit of the stores", message, &error),
        }
    }

    async fn on_command(&mut self, message: Message) {
        let token = message.subject.rsplit('.').next().unwrap_or_default();
        let input = match Verb::from_token(token) {
            Some(Verb::Run) => wire::decode(&message.payload).map(|run| Input::Run(Box::new(run))),
            Some(Verb::Cancel) => wire::decode(&message.payload).map(Input::Cancel),
            Some(Verb::Drain) => wire::decode(&message.payload).map(Input::Drain),
            Some(Verb::List) => return self.on_list(message).await,
            None => Err(Error::invalid(format!("{token:?} is no command"))),
        };
        match input {
            Ok(input) => {
                self.presence.heard(self.clock.now_ms());
                self.step(input, message.reply).await;
            }
            Err(error) => self.unreadable("command", &message, &error),
        }
    }

    fn unreadable(&mut self, what: &'static str, message: &Message, error: &Error) {
        if self.bounded.tells(self.clock.now_ms(), what) {
            tracing::warn!(%error, subject = %message.subject, "a {what} cannot be read");
        }
    }

    /// Says which files it offers; the answer is made beside the loop, for a disk may be slow.
    async fn on_list(&mut self, message: Message) {
        let list: ListInputs = match wire::decode(&message.payload) {
            Ok(list) => list,
            Err(error) => return self.unreadable("command", &message, &error),
        };
        self.presence.heard(self.clock.now_ms());
        let (own, turn) = match self.may_list(&list) {
            Ok(may) => may,
            Err(error) => {
                return self.answer(message.reply.as_ref(), &ListReply::Refused { error }).await;
            }
        };
        let requests = self.requests.clone();
        self.tasks.spawn(async move {
            let listed = match Pattern::new(&list.pattern) {
                Ok(pattern) => own.page(pattern, list.after).await,
                Err(error) => Err(error),
            };
            let answer = match listed {
                Ok(Page { files, omitted, next }) => ListReply::Listed { files, omitted, next },
                Err(error) => ListReply::Refused { error },
            };
            drop(turn);
            let Some(reply) = message.reply else { return };
            if let Err(error) = requests.answer(reply, &answer).await {
                tracing::warn!(%error, "a command goes unanswered");
            }
        });
    }

    /// What there is to list, and a turn at it.
    fn may_list(&self, list: &ListInputs) -> Result<(OwnFiles, OwnedSemaphorePermit)> {
        let id = &self.options.id;
        let Some(own) = &self.own_files else {
            return Err(Error::invalid(format!("worker {id} offers no input (--input-dir)")));
        };
        if self.attempts.registered().is_none_or(|epoch| list.epoch < epoch) {
            return Err(Error::retry(format!(
                "worker {id} is not registered in epoch {}",
                list.epoch
            )));
        }
        let turn = self.listing.clone().try_acquire_owned();
        Ok((
            own.clone(),
            turn.map_err(|_| Error::retry(format!("worker {id} is busy with other listings")))?,
        ))
    }

    async fn on_event(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Attempt(input) => {
                if let Input::Finished { outcome, .. } = &input {
                    if let Outcome::Failed { .. } = outcome {
                        self.gauge.failed(self.clock.now_ms());
                    }
                    if let Some(meters) = &self.meters {
                        meters.ended(outcome);
                    }
                }
                self.step(input, None).await;
            }
            Event::Reported { key, reply: Ok(reply) } => {
                self.presence.heard(self.clock.now_ms());
                self.step(Input::Answered { key, reply: Some(reply) }, None).await;
            }
            Event::Reported { key, reply: Err(error) } if error.kind == ErrorKind::Bug => {
                tracing::error!(%error, attempt = %key.attempt, "a report cannot be sent");
                self.step(Input::Unsendable { key, error }, None).await;
            }
            Event::Reported { key, reply: Err(error) } => {
                tracing::warn!(%error, attempt = %key.attempt, "a report was not acknowledged; it \
                    is sent again");
                self.step(Input::Answered { key, reply: None }, None).await;
            }
            Event::Registered { asked, reply } => self.on_registered(asked, reply).await?,
        }
        Ok(())
    }

    async fn on_registered(&mut self, asked: Vec<Key>, reply: Result<RegisterReply>) -> Result<()> {
        let admitted = self.presence.answered(self.clock.now_ms(), self.clock.random(), reply)?;
        let Some(Admitted { first, deployment, epoch, regranted }) = admitted else {
            return Ok(());
        };
        if self.attempts.registered() != Some(epoch) {
            self.work.context().tell_recoveries_anew();
            tracing::info!(
                worker = %self.options.id,
                %epoch,
                %deployment,
                regranted = regranted.len(),
                "registered"
            );
        }
        if first {
            self.sweep_spills();
        }
        self.note_deployment(&deployment).await;
        self.step(Input::Registered { epoch, asked, regranted }, None).await;
        Ok(())
    }

    async fn on_tick(&mut self) {
        while self.tasks.try_join_next().is_some() || self.asking.try_join_next().is_some() {}
        let now_ms = self.clock.now_ms();
        self.bounded.look(now_ms);
        self.attempts.pause(self.guards.waiting_for().is_some());
        if self.guards.probe_due() {
            let guards = self.guards.clone();
            self.tasks.spawn(async move { guards.probe().await });
        }
        self.step(Input::Tick, None).await;
        if self.presence.misses_leader(now_ms) {
            tracing::warn!(waited_ms = self.presence.waited_ms(now_ms), "waiting for coordinator");
        }
        if self.presence.asks_admission(now_ms, &self.attempts) {
            self.ask_admission();
        }
        if let Some(state) = self.presence.heartbeat_due(now_ms, &self.attempts) {
            self.heartbeat(state).await;
        }
        self.tell(now_ms);
    }

    /// Tells whoever watches this process how it is.
    fn tell(&mut self, now_ms: u64) {
        let Some(meters) = &mut self.meters else { return };
        let known = self.attempts.registered().filter(|_| !self.presence.is_missing_leader());
        meters.turn(known.map(|epoch| epoch.0));
        if meters.is_due(now_ms) {
            let reading = self.reading();
            let mut running = [0; 3];
            self.work.keys().for_each(|key| running[key.attempt.task.phase as usize] += 1);
            if let Some(meters) = &self.meters {
                meters.look(Seen { reading: &reading, running, stores_away: self.guards.away() });
            }
        }
    }

    fn ask_admission(&mut self) {
        let held = self.attempts.held();
        let asked =
            held.iter().map(|held| Key { job: held.job.clone(), attempt: held.attempt }).collect();
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
            wire: wire::WIRE_VERSION,
            settings: self.options.config.shared(),
            inputs: self.own_files.as_ref().map(OwnFiles::folders).unwrap_or_default(),
        };
        let version = self.presence.wire_version();
        let (requests, events) = (self.requests.clone(), self.events.0.clone());
        self.asking.spawn(async move {
            let reply = requests.register(&register, version).await;
            drop(events.send(Event::Registered { asked, reply }).await);
        });
    }

    async fn heartbeat(&mut self, state: WorkerState) {
        let Some(epoch) = self.attempts.registered() else { return };
        let health = self.health();
        let attempts = self.attempts.running().filter_map(|key| self.work.progress(key));
        let heartbeat = Heartbeat {
            worker: self.options.id.clone(),
            incarnation: self.incarnation,
            epoch,
            sequence: self.presence.next_sequence(),
            state,
            attempts: attempts.collect(),
            health,
        };
        let sent =
            self.requests.heartbeat(&heartbeat).instrument(tracing::debug_span!("heartbeat")).await;
        if let Err(error) = sent {
            tracing::warn!(%error, "a heartbeat was not sent");
        }
        tell_recoveries(&self.requests, self.recoveries()).await;
    }

    /// What is new of what was retried, job by job. Nobody is told who has not registered.
    fn recoveries(&self) -> Vec<JobRecoveries> {
        let Some(epoch) = self.attempts.registered() else { return Vec::new() };
        let message = |(job, stats): (JobId, RecoveryStats)| JobRecoveries {
            worker: self.options.id.clone(),
            incarnation: self.incarnation,
            epoch,
            job,
            kinds: stats
                .kinds()
                .map(|(trouble, counts)| Recovered { trouble: trouble.name().to_owned(), counts })
                .collect(),
        };
        self.work.context().recoveries_news().into_iter().map(message).collect()
    }

    fn reading(&self) -> Reading {
        let context = self.work.context();
        Reading {
            bytes_done: self.work.bytes_done(),
            running: self.work.keys().len(),
            store_retries: context.retry.retried(),
            throttled: self.guards.throttled(),
            mended: context.mended(self.guards.hedged()),
            ..Reading::take(self.clock.now_ms(), &self.options.data_dir)
        }
    }

    fn health(&mut self) -> Health {
        let reading = self.reading();
        let figures = self.gauge.figures(reading);
        Health { waiting_for: self.guards.waiting_for().or(figures.waiting_for), ..figures }
    }

    async fn on_stop(&mut self) {
        tracing::info!(worker = %self.options.id, "stopping: finishing what runs, taking no more");
        self.presence.stop(self.clock.now_ms());
        self.step(Input::Stop, None).await;
    }

    /// Says so, abandons what is left, and removes what that leaves, within bounds.
    async fn leave(&mut self) {
        self.bounded.end();
        self.heartbeat(WorkerState::Leaving).await;
        self.step(Input::Leave, None).await;
        let cleaned = async {
            while !self.attempts.is_idle() {
                let Some(event) = self.events.1.recv().await else { return };
                if let Event::Attempt(input @ Input::Finished { .. }) = event {
                    self.step(input, None).await;
                }
            }
        };
        if tokio::time::timeout(CLEAN_UP_TIMEOUT, cleaned).await.is_err() {
            tracing::warn!(
                "abandoned attempts did not end in time; the leader removes what they made"
            );
        }
        // Who leaves needs no answers any more; the coordinator may have gone before.
        self.events.1.close();
        self.asking.abort_all();
        let joined = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(CLEAN_UP_TIMEOUT, joined).await.is_err() {
            self.tasks.abort_all();
        }
        self.sweep_own_spills().await;
        self.requests.flush().await;
    }

    /// Removes what earlier lives of this worker left on its disk. Only once it is registered:
    /// until then another process might live under its id.
    fn sweep_spills(&mut self) {
        let spills = self.work.context().spills.clone();
        spills.is_alone();
        self.tasks.spawn(async move {
            // It can fail only by a panic, which has been reported then.
            drop(tokio::task::spawn_blocking(move || spills.clean()).await);
        });
    }

    async fn sweep_own_spills(&self) {
        let pruned = async {
            let Context { stores, spills, .. } = self.work.context();
            stores.open(&spills.root).await?.prune(spills.root.key()).await
        };
        if let Err(error) = pruned.await {
            tracing::debug!(%error, "cannot remove the folder of spills");
        }
    }
}

/// One that is lost is made up for by the next.
async fn tell_recoveries(requests: &Requests, recoveries: Vec<JobRecoveries>) {
    for message in recoveries {
        if let Err(error) = requests.recoveries(&message).await {
            tracing::debug!(%error, job = %message.job, "what was retried was not told");
        }
    }
}

/// The folders that this worker offers as input, put where its attempts find them.
async fn offer_input(
    stores: &Stores,
    options: &WorkerOptions,
    clock: Arc<dyn Clock>,
) -> Result<Option<OwnFiles>> {
    if options.input_dirs.is_empty() {
        return Ok(None);
    }
    let own = OwnFiles::new(&options.input_dirs, stores.buffers().clone(), clock)?;
    let spills = options.data_dir.canonicalize();
    let spills = spills
        .map_err(|e| Error::invalid(format!("cannot use {}: {e}", options.data_dir.display())))?;
    if let Some(folder) = own.folders().iter().find(|folder| spills.starts_with(folder)) {
        let data_dir = options.data_dir.display();
        return Err(Error::invalid(format!(
            "the data directory {data_dir} lies in the input folder {folder}, and would be read as \
                input"
        )));
    }
    stores.insert_bounded(Scheme::Worker { id: options.id.clone() }, Arc::new(own.clone())).await;
    tracing::info!(worker = %options.id, folders = ?own.folders(), "offers input");
    Ok(Some(own))
}

/// The folder for the spills of this life of the worker: its own, so that two lives never meet.
async fn spill_folder(options: &WorkerOptions, incarnation: Incarnation) -> Result<BlobUrl> {
    let folder = options
        .data_dir
        .join("spill")
        .join(options.id.as_str())
        .join(format!("{:016x}", incarnation.0));
    let refuse = |e: std::io::Error| {
        Error::invalid(format!("cannot use {} for spills: {e}", folder.display()))
    };
    let absolute = std::path::absolute(&folder).map_err(refuse)?;
    tokio::fs::create_dir_all(&absolute).await.map_err(refuse)?;
    BlobUrl::from_path(&absolute)
}
