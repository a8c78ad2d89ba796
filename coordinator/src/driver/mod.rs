//! The driver: NATS, stores, clock and journal on one side, the pure machine on the other. One
//! task, one loop: take what comes first, step the machine, carry out the effects in their order.
//! It decides nothing.
//!
//! What is published from the loop (answers, beats, progress) is sent only while the connection
//! stands and within a short bound: all of it is repeated or asked for again. Events and dead
//! letters are not, so they wait for their stream ([`crate::outbox`]). What waits (commands,
//! stores) runs in tasks of its own and comes back as an input. Records go to the journal's writer
//! in the order in which the machine gave them.
//!
//! A term ends when somebody else is known to lead ([`fence`], or an append that is refused), and a
//! loop that was paused for long asks before it does anything else. What a term leaves behind is
//! nothing: no subscription, no service, no task, no writer.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{Client, Message};
use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use serde::Serialize;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};

use muster_platform::adapters::servers::Servers;
use muster_platform::claim::Claims;
use muster_platform::clock::Clock;
use muster_platform::config::Config;
use muster_platform::faults;
use muster_platform::ledger::Ledger;
use muster_platform::stores::Stores;
use muster_platform::telemetry::Bounded;
use muster_protocol::api::Event;
use muster_protocol::ids::JobId;
use muster_protocol::names::Names;
use muster_protocol::wire::{self, LeaderBeat};
use muster_protocol::{Error, Result};

mod apart;
mod claims;
mod clean;
pub(crate) mod door;
pub(crate) mod effects;
pub(crate) mod fence;
mod formats;
mod gather;
mod listing;
mod offers;
mod own;
mod owned;
mod publish;
mod subscriptions;

use crate::api::{self, ControlApi};
use crate::election::Cause;
use crate::job::Machine;
use crate::job::io::{Effect, Input};
use crate::journal::writer::{JournalWriter, Order, Written};
use crate::metrics::Meters;
use crate::outbox::Outbox;
use door::{Door, Kind, Letter, Outgoing};
use effects::{Hands, Timeouts};
use fence::Fence;
pub(crate) use subscriptions::Subscriptions;

/// Longest pause between two looks at the clock, in milliseconds.
const TICK_MS: u64 = 100;
/// Bound of one publication from the loop.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(1);
/// Bound of each step of leaving.
const LEAVE_TIMEOUT: Duration = Duration::from_millis(800);
/// How often the journal is asked how full it is.
const ROOM_MS: u64 = 10_000;
/// How often the servers of a cluster are looked at, one by one.
const SERVERS_MS: u64 = 5_000;

/// What the driver is made of.
pub(crate) struct Parts {
    pub(crate) client: Client,
    pub(crate) ledger: Arc<dyn Ledger>,
    pub(crate) stores: Stores,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) config: Config,
    /// The servers of the cluster, where there are several.
    pub(crate) servers: Servers,
    pub(crate) machine: Machine,
    pub(crate) writer: JournalWriter,
    pub(crate) stalled: watch::Receiver<Option<String>>,
    pub(crate) subscriptions: Subscriptions,
    /// What led to this term, for the event that says so.
    pub(crate) cause: Cause,
    /// Damage to the journal that was got over.
    pub(crate) damage: Vec<String>,
    /// Where somebody watches this process.
    pub(crate) meters: Option<Arc<Meters>>,
    /// How it claims OUTPUTs.
    pub(crate) claims: Claims,
    /// What people are told for good.
    pub(crate) outbox: Outbox,
}

/// One term of one leader.
pub(crate) struct Driver {
    machine: Machine,
    clock: Arc<dyn Clock>,
    config: Config,
    hands: Hands,
    door: Door<Box<async_nats::service::Request>>,
    tasks: JoinSet<Option<Input>>,
    writer: JoinSet<()>,
    /// Unbounded here, bounded by what it holds: at most one record for each attempt under way and
    /// each job, and a snapshot.
    orders: mpsc::UnboundedSender<Order>,
    written: mpsc::UnboundedReceiver<Written>,
    stalled: watch::Receiver<Option<String>>,
    subscriptions: Subscriptions,
    api: ControlApi,
    beats: u64,
    beat_due_ms: u64,
    tick_due_ms: u64,
    fence_due_ms: u64,
    room_due_ms: u64,
    renew_due_ms: u64,
    servers_due_ms: u64,
    servers: Servers,
    looking: Option<AbortHandle>,
    connected: bool,
    /// As the machine was told last.
    stores_away: Vec<(String, String)>,
    outbox: Outbox,
    /// Becomes an error when somebody else is known to lead.
    over: watch::Receiver<Option<Error>>,
    cause: Cause,
    damage: Vec<String>,
    meters: Option<Arc<Meters>>,
    /// What is logged of malformed messages.
    bounded: Bounded,
}

/// What woke the loop.
enum Woken {
    Input(Input),
    Message(Kind, Message),
    Call(api::Call, Box<async_nats::service::Request>),
    Written(Option<Written>),
    Clock,
    Stop,
    Nothing,
}

impl Driver {
    /// Starts the control API.
    ///
    /// # Errors
    /// `Retry` where NATS does not take it.
    pub(crate) async fn start(parts: Parts) -> Result<Self> {
        let Parts {
            client,
            ledger,
            stores,
            clock,
            config,
            machine,
            writer,
            stalled,
            subscriptions,
            ..
        } = parts;
        let (cause, damage, meters, claims) =
            (parts.cause, parts.damage, parts.meters, parts.claims);
        let servers = parts.servers;
        let names = Names::new(&config.namespace);
        let api = ControlApi::start(&client, &names, machine.epoch()).await?;
        let (orders, orders_taken) = mpsc::unbounded_channel();
        let (answers, written) = mpsc::unbounded_channel();
        let mut writers = JoinSet::new();
        let standing = writer.standing();
        writers.spawn(writer.serve(orders_taken, answers));
        let timeouts = Timeouts {
            command: Duration::from_millis(config.tasks.command_retry_ms),
            page: Duration::from_millis(config.nats.request_timeout_ms),
            listing_ms: config.store.list_timeout_ms,
        };
        let now_ms = clock.now_ms();
        let timeout_ms = config.leader.silence_ms / 2;
        let fence =
            Fence::new(ledger, (&orders, standing), clock.clone(), machine.epoch(), timeout_ms)
                .claiming(claims);
        let over = fence.watch();
        let config_silence_ms = config.leader.silence_ms;
        Ok(Self {
            machine,
            door: Door::new(names.clone()),
            hands: Hands { client, names, stores, timeouts, clock: clock.clone(), fence },
            clock,
            config,
            tasks: JoinSet::new(),
            writer: writers,
            orders,
            written,
            stalled,
            subscriptions,
            api,
            beats: 0,
            beat_due_ms: now_ms,
            tick_due_ms: now_ms,
            fence_due_ms: now_ms + config_silence_ms,
            room_due_ms: now_ms,
            renew_due_ms: now_ms,
            servers_due_ms: now_ms,
            servers,
            looking: None,
            connected: true,
            stores_away: Vec::new(),
            outbox: parts.outbox,
            over,
            cause,
            damage,
            meters,
            bounded: Bounded::default(),
        })
    }

    /// Leads until it is told to stop, which it tells the stand-bys.
    ///
    /// # Errors
    /// `Fenced` where somebody else leads.
    pub(crate) async fn run(mut self, shutdown: &mut watch::Receiver<bool>) -> Result<()> {
        if let Some(meters) = &self.meters {
            meters.leads(self.machine.epoch());
        }
        let outcome = self.lead(shutdown).await;
        if let Some(meters) = &self.meters {
            meters.led(&self.machine, outcome.is_err());
        }
        self.leave(outcome.is_ok()).await;
        outcome
    }

    async fn lead(&mut self, shutdown: &mut watch::Receiver<bool>) -> Result<()> {
        let unix_ms = self.clock.unix_ms();
        self.feed(Input::Began { unix_ms }).await?;
        let kind = if self.cause.takes_over() { "took-over" } else { "first-leader" };
        let leads = self.about("info", kind, self.cause.to_string());
        self.tell(leads);
        for damage in std::mem::take(&mut self.damage) {
            let damaged = self.about("error", "journal-damaged", damage);
            self.tell(damaged);
        }
        let pause_ms = self.config.leader.silence_ms / 2;
        let mut looked_ms = self.clock.now_ms();
        loop {
            if *shutdown.borrow_and_update() {
                return Ok(());
            }
            let woken = self.wake(shutdown).await;
            let now_ms = self.clock.now_ms();
            let gap_ms = now_ms.saturating_sub(looked_ms);
            looked_ms = now_ms;
            if gap_ms > pause_ms && !self.leads_still(gap_ms, shutdown).await? {
                return Ok(());
            }
            if let Some(error) = self.hands.fence.over() {
                return Err(error);
            }
            if !self.handle(woken).await? {
                return Ok(());
            }
        }
    }

    /// An event of the deployment that the driver itself has to tell.
    fn about(&self, severity: &str, kind: &str, text: String) -> Event {
        let (severity, kind) = (severity.to_owned(), kind.to_owned());
        Event { unix_ms: 0, epoch: self.machine.epoch().0, job: None, severity, kind, text }
    }

    /// After a pause of this process: what it holds in memory and in its sockets may be of a time
    /// that is over. `false` where it is told to stop meanwhile.
    async fn leads_still(&self, gap_ms: u64, shutdown: &mut watch::Receiver<bool>) -> Result<bool> {
        tracing::warn!(
            gap_ms,
            epoch = self.machine.epoch().0,
            "this process was paused: does it lead still?"
        );
        let _waiting = self.meters.as_ref().map(|meters| meters.excuse());
        tokio::select! {
            looked = self.hands.fence.look() => looked.map(|()| true),
            _ = shutdown.wait_for(|stop| *stop) => Ok(false),
        }
    }

    /// Gives up everything that a leader has. Who resigns says so when that is done, so that a
    /// stand-by finds nobody there.
    async fn leave(self, resigns: bool) {
        let Self {
            machine,
            hands,
            mut tasks,
            mut writer,
            orders,
            subscriptions,
            api,
            beats,
            mut bounded,
            ..
        } = self;
        drop(subscriptions);
        bounded.end();
        if tokio::time::timeout(LEAVE_TIMEOUT, api.stop()).await.is_err() {
            tracing::debug!("the control API did not stop in time");
        }
        tasks.abort_all();
        let ended = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(LEAVE_TIMEOUT, ended).await.is_err() {
            tracing::debug!("a store call did not end in time; it is its task's last");
        }
        if tokio::time::timeout(LEAVE_TIMEOUT, hands.fence.leave()).await.is_err() {
            tracing::debug!("a store did not take back an upload in time");
        }
        // What is on its way into the journal arrives before others read it.
        drop(orders);
        if resigns {
            let written = async { while writer.join_next().await.is_some() {} };
            if tokio::time::timeout(LEAVE_TIMEOUT, written).await.is_err() {
                tracing::debug!("the journal did not take a last record in time");
            }
        }
        writer.shutdown().await;
        if resigns && hands.client.connection_state() == State::Connected {
            let beat = LeaderBeat {
                deployment: machine.deployment().clone(),
                epoch: machine.epoch(),
                sequence: beats,
            };
            let resign = async {
                let bytes = wire::encode_for_all(&beat)?;
                let trouble = |e: String| Error::retry(e);
                let published = hands.client.publish(hands.names.resigned(), bytes.into()).await;
                published.map_err(|e| trouble(e.to_string()))?;
                hands.client.flush().await.map_err(|e| trouble(e.to_string()))
            };
            match tokio::time::timeout(LEAVE_TIMEOUT, resign).await {
                Ok(Ok(())) => tracing::info!(epoch = machine.epoch().0, "resigned"),
                Ok(Err(error)) => tracing::debug!(%error, "the resignation was not sent"),
                Err(_) => tracing::debug!("the resignation was not sent in time"),
            }
        }
    }

    /// Waits for whatever comes first.
    async fn wake(&mut self, shutdown: &mut watch::Receiver<bool>) -> Woken {
        let pause_ms = self.due_ms().saturating_sub(self.clock.now_ms());
        let from = |kind: Kind, message: Option<Message>| {
            message.map_or(Woken::Nothing, |message| Woken::Message(kind, message))
        };
        tokio::select! {
            // A sender that is gone says that nobody can stop us any more, which is a stop too.
            changed = shutdown.changed() => {
                if changed.is_err() { Woken::Stop } else { Woken::Nothing }
            }
            // The loop looks at it before anything else.
            Ok(()) = self.over.changed() => Woken::Nothing,
            written = self.written.recv() => Woken::Written(written),
            Some(ended) = self.tasks.join_next() => match ended {
                Ok(Some(input)) => Woken::Input(input),
                _ => Woken::Nothing,
            },
            message = self.subscriptions.register.next() => from(Kind::Register, message),
            message = self.subscriptions.report.next() => from(Kind::Report, message),
            message = self.subscriptions.samples.next() => from(Kind::Report, message),
            message = self.subscriptions.phase.next() => from(Kind::Phase, message),
            message = self.subscriptions.heartbeats.next() => from(Kind::Heartbeat, message),
            message = self.subscriptions.recoveries.next() => from(Kind::Recoveries, message),
            Some((call, request)) = self.api.requests.recv() => {
                Woken::Call(call, Box::new(request))
            }
            Ok(()) = self.stalled.changed() => {
                let why = self.stalled.borrow_and_update().clone();
                Woken::Input(Input::JournalStalled { why })
            }
            () = tokio::time::sleep(Duration::from_millis(pause_ms)) => Woken::Clock,
        }
    }

    fn due_ms(&self) -> u64 {
        let timers = self.machine.next_due_ms().unwrap_or(u64::MAX);
        self.beat_due_ms.min(self.tick_due_ms).min(timers)
    }

    /// `false` when it is time to stop.
    async fn handle(&mut self, woken: Woken) -> Result<bool> {
        match woken {
            Woken::Stop => return Ok(false),
            Woken::Nothing => {}
            Woken::Input(input) => self.feed(input).await?,
            Woken::Written(Some(Written::Applied { token, sequence })) => {
                if let Some(meters) = &self.meters {
                    meters.appended(token);
                }
                self.feed(Input::Appended { token, sequence }).await?;
            }
            Woken::Written(Some(Written::Stopped { error })) => return Err(error),
            Woken::Written(None) => return Err(Error::bug("the journal's writer has ended")),
            Woken::Message(kind, message) => self.message(kind, message).await?,
            Woken::Call(call, request) => self.call(call, *request).await?,
            Woken::Clock => {}
        }
        self.look_at_clock().await?;
        Ok(true)
    }

    /// Shows that the owner of each job's claim lives. A renewal that fails is made again with the
    /// next: what follows from a claim that is lost is decided before OUTPUT changes.
    fn renew_claims(&mut self, now_ms: u64) {
        let Some(claims) = self.hands.fence.claims().cloned() else { return };
        self.renew_due_ms = now_ms + claims.renew_ms();
        for (job, output) in self.machine.outputs() {
            let (claims, stores, fence) =
                (claims.clone(), self.hands.stores.clone(), self.hands.fence.clone());
            self.tasks.spawn(async move {
                if fence.over().is_none()
                    && let Err(error) = claims.renew(&stores, &output, &job).await
                {
                    tracing::warn!(%error, %job, "the claim on OUTPUT was not renewed");
                }
                None
            });
        }
    }

    /// A claim was taken for a job that was refused after that, or was withdrawn while it was
    /// planned.
    fn withdraw_unplanned(&mut self) {
        let Some(claims) = self.hands.fence.claims().cloned() else { return };
        for job in claims.planned() {
            if self.machine.knows(&job) {
                claims.journalled(&job);
            } else if !self.machine.plans(&job) && claims.begins_withdrawal(&job) {
                let (claims, stores, fence) =
                    (claims.clone(), self.hands.stores.clone(), self.hands.fence.clone());
                self.tasks.spawn(async move {
                    if let Err(error) = claims.withdraw(&stores, &job, &fence).await {
                        tracing::warn!(%error, %job, "the claim on OUTPUT was not withdrawn");
                    }
                    None
                });
            }
        }
    }

    /// Beats and ticks when they are due, whatever woke the loop: a flood of messages must not keep
    /// the clock from being looked at.
    async fn look_at_clock(&mut self) -> Result<()> {
        let now_ms = self.clock.now_ms();
        if let Some(meters) = &self.meters {
            meters.turn();
            meters.look(now_ms, &self.machine);
        }
        if now_ms >= self.beat_due_ms {
            self.beat_due_ms = now_ms + self.config.heartbeat.interval_ms;
            self.beat().await;
        }
        if now_ms >= self.tick_due_ms
            || self.machine.next_due_ms().is_some_and(|due_ms| now_ms >= due_ms)
        {
            self.tick_due_ms = now_ms + TICK_MS;
            self.door.expire(now_ms);
            self.bounded.look(now_ms);
            let up = self.hands.client.connection_state() == State::Connected;
            if up != self.connected {
                self.connected = up;
                if up {
                    // Without a connection nothing was heard of a take-over.
                    let fence = self.hands.fence.clone();
                    self.tasks.spawn(async move { fence.look().await.err().and(None) });
                }
                self.feed(Input::Connection { up }).await?;
            }
            let away = self.hands.stores.troubles().list();
            if away != self.stores_away {
                self.stores_away.clone_from(&away);
                self.feed(Input::StoresAway { away }).await?;
            }
            self.feed(Input::Tick).await?;
        }
        self.withdraw_unplanned();
        if now_ms >= self.renew_due_ms {
            self.renew_claims(now_ms);
        }
        if now_ms >= self.room_due_ms {
            self.room_due_ms = now_ms + ROOM_MS;
            let fence = self.hands.fence.clone();
            let room = async move {
                Some(Input::JournalRoom {
                    used_percent: fence.journal_room().await?.used_percent(),
                })
            };
            self.tasks.spawn(room);
        }
        if now_ms >= self.servers_due_ms && self.servers.are_several() {
            self.servers_due_ms = now_ms + SERVERS_MS;
            let servers = self.servers.clone();
            self.tasks
                .spawn(async move { Some(Input::NatsServers { away: servers.away().await }) });
        }
        if now_ms >= self.fence_due_ms && self.looking.as_ref().is_none_or(AbortHandle::is_finished)
        {
            // Whoever took over may be gone again before it was heard; a leader with nothing to
            // write would never find out.
            self.fence_due_ms = now_ms + self.config.leader.silence_ms;
            let fence = self.hands.fence.clone();
            self.looking =
                Some(self.tasks.spawn(async move { fence.look().await.err().and(None) }));
        }
        Ok(())
    }

    async fn beat(&mut self) {
        let beat = LeaderBeat {
            deployment: self.machine.deployment().clone(),
            epoch: self.machine.epoch(),
            sequence: self.beats,
        };
        self.beats += 1;
        let subject = self.hands.names.leader();
        self.publish_frame("beat", subject, &beat).await;
    }

    async fn message(&mut self, kind: Kind, message: Message) -> Result<()> {
        let Message { subject, reply, payload, .. } = message;
        let letter = Letter { subject: &subject, reply: reply.as_ref(), payload: &payload };
        match self.door.hear(self.clock.now_ms(), kind, letter) {
            Ok(input) => self.feed(input).await,
            Err(error) => self.malformed(kind.name(), &error),
        }
    }

    fn malformed(&mut self, what: &'static str, error: &Error) -> Result<()> {
        if let Some(meters) = &self.meters {
            meters.malformed();
        }
        if self.bounded.tells(self.clock.now_ms(), what) {
            tracing::warn!(%error, "a malformed {what} was passed over");
        }
        Ok(())
    }

    async fn call(&mut self, call: api::Call, request: async_nats::service::Request) -> Result<()> {
        let async_nats::Message { subject, reply, payload, .. } = request.message.clone();
        let letter = Letter { subject: &subject, reply: reply.as_ref(), payload: &payload };
        let now = (self.clock.now_ms(), self.clock.unix_ms());
        match self.door.call(now, call, letter, Box::new(request)) {
            Ok(Ok(input)) => self.feed(input).await,
            Ok(Err(refusal)) => self.perform(refusal).await,
            Err(error) => self.malformed("request", &error),
        }
    }

    /// Steps the machine and carries out what it asks for.
    async fn feed(&mut self, input: Input) -> Result<()> {
        let effects = self.machine.step(self.clock.now_ms(), input);
        #[cfg(debug_assertions)]
        if let Err(broken) = crate::job::invariant::check(&self.machine) {
            return Err(Error::bug(format!(
                "an invariant of the job machine does not hold: {broken}"
            )));
        }
        for effect in effects {
            self.perform(effect).await?;
        }
        Ok(())
    }

    async fn perform(&mut self, effect: Effect) -> Result<()> {
        match effect {
            Effect::Append { token, record } => {
                if let Some(meters) = &self.meters {
                    meters.appends(token);
                }
                self.order(Order::Append { token, record })
            }
            Effect::PurgeJournal { before } => self.order(Order::Purge { before }),
            Effect::Reply { to, reply } => {
                let lost = !matches!(
                    self.hands.fate("answer").await,
                    faults::Message::Deliver | faults::Message::Twice
                );
                if let Some(answer) = self.door.answer(to, reply).filter(|_| !lost) {
                    let sent = send(&self.hands.client, answer);
                    let _ = tokio::time::timeout(PUBLISH_TIMEOUT, sent).await;
                }
                Ok(())
            }
            Effect::Broadcast { job, broadcast } => {
                let subject = self.hands.names.broadcast(&job);
                self.publish_frame("broadcast", subject, &broadcast).await;
                Ok(())
            }
            Effect::LimitStores(limits) => {
                self.publish_frame("broadcast", self.hands.names.limits(), &limits).await;
                Ok(())
            }
            Effect::Progress(status) => {
                let subject = self.hands.names.progress(&status.job);
                self.publish_json("progress", subject, &status).await;
                Ok(())
            }
            Effect::DeadLetter(letter) => {
                self.outbox.letter(&letter);
                Ok(())
            }
            Effect::Event(event) => {
                self.tell(event);
                Ok(())
            }
            effect => {
                self.spawn(effect);
                Ok(())
            }
        }
    }

    fn order(&self, order: Order) -> Result<()> {
        self.orders.send(order).map_err(|_| Error::bug("the journal's writer has ended"))
    }

    fn spawn(&mut self, effect: Effect) {
        let on_panic = effects::on_panic(&effect);
        let work = AssertUnwindSafe(self.hands.clone().carry_out(effect)).catch_unwind();
        self.tasks.spawn(async move { work.await.unwrap_or(on_panic) });
    }

    /// In the log, and for good.
    fn tell(&self, event: Event) {
        let event = Event { unix_ms: self.clock.unix_ms(), ..event };
        let (job, epoch) = (event.job.as_ref().map(JobId::as_str), event.epoch);
        match event.severity.as_str() {
            "error" => tracing::error!(job, epoch, kind = event.kind, "{}", event.text),
            "warning" => tracing::warn!(job, epoch, kind = event.kind, "{}", event.text),
            _ => tracing::info!(job, epoch, kind = event.kind, "{}", event.text),
        }
        self.outbox.event(&event);
    }

    async fn publish_frame<T: wire::Message>(
        &self,
        word: &'static str,
        subject: String,
        message: &T,
    ) {
        match wire::encode_for_all(message) {
            Ok(bytes) => self.publish(word, subject, bytes.into()).await,
            Err(error) => tracing::error!(%error, subject, "a message could not be encoded"),
        }
    }

    async fn publish_json<T: Serialize>(&self, word: &'static str, subject: String, message: &T) {
        match serde_json::to_vec(message) {
            Ok(bytes) => self.publish(word, subject, bytes.into()).await,
            Err(error) => tracing::error!(%error, subject, "a message could not be encoded"),
        }
    }

    /// Sends a hint. While the connection is down it would only queue up and come late.
    async fn publish(&self, word: &'static str, subject: String, bytes: Bytes) {
        if self.hands.client.connection_state() != State::Connected {
            return;
        }
        match self.hands.fate(word).await {
            faults::Message::Deliver => {}
            faults::Message::Twice => self.hand_over(subject.clone(), bytes.clone()).await,
            faults::Message::Lost | faults::Message::Refused | faults::Message::AnswerLost => {
                return;
            }
        }
        self.hand_over(subject, bytes).await;
    }

    async fn hand_over(&self, subject: String, bytes: Bytes) {
        match tokio::time::timeout(PUBLISH_TIMEOUT, self.hands.client.publish(subject, bytes)).await
        {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "a hint was not sent"),
            Err(_) => tracing::debug!("a hint was not sent in time"),
        }
    }
}

/// Sends an answer. One that is lost is asked for again.
async fn send(client: &Client, answer: Outgoing<Box<async_nats::service::Request>>) {
    let sent = match answer {
        Outgoing::Worker(subject, Ok(frame)) => client.publish(subject, frame.into()).await,
        Outgoing::Worker(_, Err(error)) => {
            return tracing::error!(%error, "an answer could not be encoded");
        }
        Outgoing::Client(request, body) => request.respond(body).await,
    };
    if let Err(error) = sent {
        tracing::debug!(%error, "an answer was not sent");
    }
}
