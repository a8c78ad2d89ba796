//! Stands by: feeds what is heard of a leader to [`crate::election`], and carries out what it asks
//! for, until this process leads.
//!
//! A stand-by holds no subscription that a leader answers on: who asks there learns at once whether
//! somebody leads. It subscribes just before it appends its epoch, so that two that start together
//! see one another.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{Client, Message, RequestErrorKind, Subscriber};
use futures::StreamExt;
use tokio::sync::watch;

use muster_platform::clock::Clock;
use muster_platform::config::Config;
use muster_platform::ledger::Ledger;
use muster_protocol::api::Event;
use muster_protocol::ids::{Epoch, JobId};
use muster_protocol::names::Names;
use muster_protocol::wire::{self, LeaderBeat, PhaseQuery, PhaseReply};
use muster_protocol::{Error, ErrorKind, Result};

use crate::driver::Subscriptions;
use crate::election::{Answer, Cause, Effect, Election, Input, Settings, Sign};
use crate::journal::writer::{Candidate, JournalWriter, Replayed};
use crate::metrics::Meters;
use crate::outbox::Outbox;

/// Looks at the clock in the time that would count as a pause.
const TICKS_A_PAUSE: u64 = 8;
/// Bound of one subscription.
pub(crate) const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after a subscription that NATS did not take.
const SUBSCRIBE_PAUSE: Duration = Duration::from_millis(500);
/// A job that no client can submit: a leader says of it that nothing runs, and under which epoch it
/// says so.
const NO_JOB: &str = "who-leads";

/// One process's place in the election, for all of its life.
pub(crate) struct StandBy {
    client: Client,
    ledger: Arc<dyn Ledger>,
    clock: Arc<dyn Clock>,
    config: Config,
    names: Names,
    election: Election,
    meters: Option<Arc<Meters>>,
    outbox: Outbox,
}

/// What a leader begins with.
pub(crate) struct Elected {
    pub(crate) writer: JournalWriter,
    pub(crate) replayed: Replayed,
    pub(crate) subscriptions: Subscriptions,
    pub(crate) stalled: watch::Receiver<Option<String>>,
    pub(crate) cause: Cause,
}

/// The journal as it was read, and what its writer waits for.
struct Read {
    candidate: Candidate,
    stalled: watch::Receiver<Option<String>>,
}

type Pending<T> = Option<Pin<Box<dyn Future<Output = T> + Send>>>;

/// What is under way.
#[derive(Default)]
struct Work {
    asking: Pending<Answer>,
    reading: Pending<Result<Read>>,
    read: Option<Read>,
}

impl StandBy {
    pub(crate) fn new(
        client: Client,
        ledger: Arc<dyn Ledger>,
        clock: Arc<dyn Clock>,
        config: Config,
        meters: Option<Arc<Meters>>,
        outbox: Outbox,
    ) -> Self {
        let settings = Settings {
            silence_ms: config.leader.silence_ms,
            beat_ms: config.heartbeat.interval_ms,
        };
        let names = Names::new(&config.namespace);
        let election = Election::new(settings, clock.random());
        Self { client, ledger, clock, config, names, election, meters, outbox }
    }

    /// Waits until this process leads; gives none where it is told to stop.
    ///
    /// # Errors
    /// `Invalid` where the journal cannot be read by this build.
    pub(crate) async fn wait(
        &mut self,
        shutdown: &mut watch::Receiver<bool>,
    ) -> Result<Option<Elected>> {
        tokio::select! {
            elected = self.until_elected() => elected.map(Some),
            // A sender that is gone says that nobody can stop us any more, which is a stop too.
            _ = shutdown.wait_for(|stop| *stop) => Ok(None),
        }
    }

    /// A term is over, by somebody else's doing or by trouble.
    pub(crate) fn stepped_down(&mut self, epoch: Epoch, error: &Error) {
        self.election.step(self.clock.now_ms(), Input::Lost { epoch });
        if error.kind == ErrorKind::Fenced {
            self.outbox.deposed();
        }
        self.announce(epoch, "warning", "stepped-down", error.message.clone());
    }

    /// The newest term known of.
    pub(crate) fn epoch(&self) -> Epoch {
        self.election.epoch()
    }

    /// A term is over by a bug of ours. Who watches is told, with what this process does about it.
    pub(crate) fn failed(&mut self, epoch: Epoch, error: &Error, pause_ms: u64) {
        let text = format!(
            "epoch {epoch} ends by a bug of this program: {}; jobs stay as the journal has them, \
                and this coordinator does not try to lead for {} s",
            error.message,
            pause_ms / 1000
        );
        tracing::error!(epoch = epoch.0, kind = "leader-failed", "{text}");
        if let Some(meters) = &self.meters {
            meters.stands_by(epoch);
        }
        self.election.step(self.clock.now_ms(), Input::Lost { epoch });
        self.announce(epoch, "error", "leader-failed", text);
    }

    async fn until_elected(&mut self) -> Result<Elected> {
        let meters = self.meters.clone();
        let subscribing = meters.as_ref().map(|meters| meters.excuse());
        let mut beats = subscribe_waiting(&self.client, &self.names.leader()).await;
        let mut resignations = subscribe_waiting(&self.client, &self.names.resigned()).await;
        drop(subscribing);
        let mut work = Work::default();
        let tick_ms = (self.config.leader.silence_ms / 4 / TICKS_A_PAUSE).clamp(10, 100);
        let mut ticks = tokio::time::interval(Duration::from_millis(tick_ms));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut connected = true;
        loop {
            let input = tokio::select! {
                Some(beat) = beats.next() => Input::Beat(sign(&beat)),
                Some(beat) = resignations.next() => match sign(&beat) {
                    Some(sign) => Input::Resigned(sign),
                    None => continue,
                },
                answer = until(&mut work.asking) => Input::Asked(answer),
                read = until(&mut work.reading) => {
                    let read = read?;
                    let found = &read.candidate.replayed().durable;
                    let (deployment, epoch) = (found.deployment.clone(), found.epoch);
                    let input = Input::JournalRead { deployment, epoch };
                    work.read = Some(read);
                    input
                }
                _ = ticks.tick() => {
                    let up = self.client.connection_state() == State::Connected;
                    if up == connected { Input::Tick } else {
                        connected = up;
                        Input::Connection { up }
                    }
                }
            };
            if let Some(meters) = &meters {
                meters.turn();
            }
            for effect in self.election.step(self.clock.now_ms(), input) {
                if let Some(elected) = self.carry_out(effect, &mut work).await? {
                    return Ok(elected);
                }
            }
        }
    }

    async fn carry_out(&mut self, effect: Effect, work: &mut Work) -> Result<Option<Elected>> {
        match effect {
            Effect::Ask => work.asking = Some(Box::pin(self.ask())),
            Effect::ReadJournal => {
                work.read = None;
                work.reading = Some(Box::pin(self.read()));
            }
            Effect::Forget => (work.read, work.reading) = (None, None),
            Effect::Follow(epoch) => {
                tracing::info!(epoch = epoch.0, "standing by");
                if let Some(meters) = &self.meters {
                    meters.stands_by(epoch);
                }
                self.announce(
                    epoch,
                    "info",
                    "stand-by",
                    format!("a coordinator stands by epoch {epoch}"),
                );
            }
            Effect::Begin(cause) => return self.begin(cause, work.read.take()).await,
        }
        Ok(None)
    }

    /// Tries to begin an epoch. Whoever is beaten to it stands by again.
    async fn begin(&mut self, cause: Cause, read: Option<Read>) -> Result<Option<Elected>> {
        let Some(Read { candidate, stalled }) = read else {
            return Err(Error::bug("an epoch was to begin on a journal that was not read"));
        };
        let epoch = candidate.replayed().durable.epoch;
        tracing::info!(%cause, "trying to lead");
        let meters = self.meters.clone();
        let _waiting = meters.as_ref().map(|meters| meters.excuse());
        let begun: Result<Elected> = async {
            let subscriptions = Subscriptions::new(&self.client, &self.names).await?;
            let (writer, replayed) = candidate.begin().await?;
            Ok(Elected { writer, replayed, subscriptions, stalled, cause })
        }
        .await;
        match begun {
            Ok(elected) => Ok(Some(elected)),
            Err(error) if matches!(error.kind, ErrorKind::Fenced | ErrorKind::Retry) => {
                tracing::info!(%error, "standing by: this try to lead came to nothing");
                self.election.step(self.clock.now_ms(), Input::Lost { epoch });
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn ask(&self) -> impl Future<Output = Answer> + Send + use<> {
        let (client, subject) = (self.client.clone(), self.names.phase());
        let bound = Duration::from_millis(self.config.leader.silence_ms / 2);
        async move {
            let asked = async {
                let job: JobId = NO_JOB.parse().map_err(|e| Error::bug(format!("{e}")))?;
                let question = wire::encode_for_all(&PhaseQuery { job })?;
                match client.request(subject, question.into()).await {
                    Ok(reply) => match wire::decode(&reply.payload)? {
                        PhaseReply::Running { epoch, .. } | PhaseReply::Idle { epoch } => {
                            Ok(Answer::Leads(epoch))
                        }
                    },
                    Err(e) if e.kind() == RequestErrorKind::NoResponders => Ok(Answer::Nobody),
                    Err(e) => Err(Error::retry(e.to_string())),
                }
            };
            match tokio::time::timeout(bound, asked).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(error)) => {
                    tracing::debug!(%error, "who leads could not be asked");
                    Answer::Silence
                }
                Err(_) => Answer::Silence,
            }
        }
    }

    fn read(&self) -> impl Future<Output = Result<Read>> + Send + use<> {
        let (sender, stalled) = watch::channel(None);
        let append_timeout = Duration::from_millis(self.config.journal.append_timeout_ms);
        let reading =
            JournalWriter::read(self.ledger.clone(), self.clock.clone(), append_timeout, sender);
        async move { Ok(Read { candidate: reading.await?, stalled }) }
    }

    fn announce(&self, epoch: Epoch, severity: &str, kind: &str, text: String) {
        let (unix_ms, severity, kind) =
            (self.clock.unix_ms(), severity.to_owned(), kind.to_owned());
        self.outbox.event(&Event { unix_ms, epoch: epoch.0, job: None, severity, kind, text });
    }
}

/// Who gave a beat; none where it cannot be read.
fn sign(beat: &Message) -> Option<Sign> {
    match wire::decode::<LeaderBeat>(&beat.payload) {
        Ok(LeaderBeat { deployment, epoch, .. }) => {
            Some(Sign { deployment: Some(deployment), epoch })
        }
        Err(error) => {
            tracing::debug!(%error, "a leader's beat cannot be read");
            None
        }
    }
}

/// What something under way comes to; never, where nothing is.
async fn until<T>(pending: &mut Pending<T>) -> T {
    match pending {
        Some(future) => {
            let output = future.await;
            *pending = None;
            output
        }
        None => std::future::pending().await,
    }
}

async fn subscribe_waiting(client: &Client, subject: &str) -> Subscriber {
    loop {
        match tokio::time::timeout(SUBSCRIBE_TIMEOUT, client.subscribe(subject.to_owned())).await {
            Ok(Ok(subscriber)) => return subscriber,
            Ok(Err(error)) => {
                tracing::warn!(
                    %error,
                    subject,
                    "waiting for NATS: it does not take a subscription"
                );
            }
            Err(_) => tracing::warn!(subject, "waiting for NATS: it does not take a subscription"),
        }
        tokio::time::sleep(SUBSCRIBE_PAUSE).await;
    }
}
