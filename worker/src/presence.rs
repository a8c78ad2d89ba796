//! What a worker makes of its leader, as a pure machine beside [`crate::attempt`]: when it asks for
//! admission, when it sends a heartbeat, when it has waited for long enough. Time and randomness
//! come in as values.

use muster_platform::config::Config;
use muster_platform::retry::Policy;
use muster_protocol::ids::{DeploymentId, Epoch, WorkerId};
use muster_protocol::wire::{RegisterReply, WIRE_VERSION, WIRE_VERSION_OLDEST, WorkerState};
use muster_protocol::{Error, ErrorKind, Result};

use crate::Exit;
use crate::attempt::Attempts;

/// Bounds of the heartbeat interval that a leader may set, in milliseconds.
const HEARTBEAT_MS: std::ops::RangeInclusive<u64> = 50..=60_000;
/// How long a worker takes "not yet" for an answer, in times that a silent worker takes to be dead.
const REFUSED_DEAD_TIMES: u64 = 3;
/// Heartbeats after which a worker registers again, though nothing seems wrong: heartbeats are not
/// answered, so a leader that knows it no longer, or takes a former life of it for the one that
/// lives (its registration came late), could not say so.
const CONFIRM_BEATS: u64 = 30;

/// When to ask for admission.
#[derive(Debug, Default)]
struct Admission {
    in_flight: bool,
    tries: u32,
    /// Of these, those that a leader may have heard.
    unanswered: u32,
    due_ms: u64,
    /// When a leader last said that it knows this process.
    confirmed_ms: u64,
    /// Since when leaders have been saying "not yet"; a former life of this worker may take so long
    /// to be forgotten, another live process never is.
    refused_since_ms: Option<u64>,
}

/// The machine.
#[derive(Debug)]
pub struct Presence {
    worker: WorkerId,
    /// When a registration that was not admitted is repeated.
    repeat: Policy,
    dead_after_ms: u64,
    coordinator_wait_ms: u64,
    drain_ms: u64,
    deployment: Option<DeploymentId>,
    /// Whether this process has been admitted before. Knowing the deployment says nothing of it: a
    /// beat may be heard first.
    admitted: bool,
    admission: Admission,
    heartbeat_ms: u64,
    heartbeat_due_ms: u64,
    sequence: u64,
    leader_heard_ms: u64,
    /// So long a leader may be silent before it is missed.
    silence_ms: u64,
    /// Whether it was said that it is missed.
    missed: bool,
    /// When a draining worker hands back what it has.
    drain_by_ms: Option<u64>,
    /// When a stopping worker gives up on finishing.
    stop_by_ms: Option<u64>,
}

/// What an admission brings.
#[derive(Debug)]
pub struct Admitted {
    /// The first one of this process.
    pub first: bool,
    /// Which deployment.
    pub deployment: DeploymentId,
    /// The leader's term.
    pub epoch: Epoch,
    /// Of the held attempts, those that go on.
    pub regranted: Vec<muster_protocol::ids::AttemptId>,
}

impl Presence {
    /// A worker that has not said anything yet.
    pub fn new(worker: WorkerId, config: &Config, now_ms: u64) -> Self {
        Self {
            worker,
            repeat: config.retry.nats.clone(),
            dead_after_ms: config.heartbeat.dead_after_ms,
            coordinator_wait_ms: config.worker.coordinator_wait_ms,
            drain_ms: config.worker.drain_ms,
            deployment: None,
            admitted: false,
            admission: Admission::default(),
            heartbeat_ms: config.heartbeat.interval_ms,
            heartbeat_due_ms: 0,
            sequence: 0,
            leader_heard_ms: now_ms,
            silence_ms: config.leader.silence_ms,
            missed: false,
            drain_by_ms: None,
            stop_by_ms: None,
        }
    }

    /// A leader was heard.
    pub fn heard(&mut self, now_ms: u64) {
        self.leader_heard_ms = now_ms;
    }

    /// Whether it is time to say that the leader is missed: once in each absence.
    pub fn misses_leader(&mut self, now_ms: u64) -> bool {
        let missed = self.waited_ms(now_ms) > self.silence_ms;
        let begins = missed && !self.missed;
        self.missed = missed;
        begins
    }

    /// Whether the leader is missed at the moment, as of the last look
    /// ([`Presence::misses_leader`]).
    pub fn is_missing_leader(&self) -> bool {
        self.missed
    }

    /// How long no leader was heard, in milliseconds.
    pub fn waited_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.leader_heard_ms)
    }

    /// Notes which deployment leads; gives the one before, if it was another: then the journal is
    /// another one, and nothing of the old one counts.
    pub fn note_deployment(&mut self, deployment: &DeploymentId) -> Option<DeploymentId> {
        let before = self.deployment.replace(deployment.clone());
        before.filter(|before| before != deployment)
    }

    /// Admission is to be asked for as soon as may be.
    pub fn register_now(&mut self, now_ms: u64) {
        self.admission.due_ms = now_ms;
    }

    /// Whether to ask for admission now. Once it says so, it waits for [`Presence::answered`].
    pub fn asks_admission(&mut self, now_ms: u64, attempts: &Attempts) -> bool {
        let old =
            now_ms >= self.admission.confirmed_ms.saturating_add(CONFIRM_BEATS * self.heartbeat_ms);
        let due = (attempts.registered().is_none() || old) && self.admission.due_ms <= now_ms;
        let asks = due && !self.admission.in_flight;
        self.admission.in_flight |= asks;
        asks
    }

    /// The wire version to ask in: an old leader passes over what it cannot read, so after two
    /// tries in this version that somebody heard and nobody answered come two in the last.
    pub fn wire_version(&self) -> u8 {
        self.version_of(WIRE_VERSION_OLDEST, WIRE_VERSION)
    }

    fn version_of(&self, oldest: u8, newest: u8) -> u8 {
        if self.admission.unanswered % 4 < 2 { newest } else { oldest }
    }

    /// Takes what came of asking for admission; `random` spreads the next try.
    ///
    /// # Errors
    /// Where asking again cannot help, and the worker is to end.
    pub fn answered(
        &mut self,
        now_ms: u64,
        random: u64,
        reply: Result<RegisterReply>,
    ) -> Result<Option<Admitted>> {
        self.admission.in_flight = false;
        self.admission.tries += 1;
        self.admission.due_ms = now_ms + self.repeat.pause_ms(self.admission.tries, random);
        match reply {
            Ok(RegisterReply::Accepted { deployment, epoch, heartbeat_ms, regranted }) => {
                self.leader_heard_ms = now_ms;
                self.admission.confirmed_ms = now_ms;
                self.admission.tries = 0;
                self.admission.unanswered = 0;
                self.admission.refused_since_ms = None;
                self.heartbeat_ms = heartbeat_ms.clamp(*HEARTBEAT_MS.start(), *HEARTBEAT_MS.end());
                self.heartbeat_due_ms = 0;
                let first = !std::mem::replace(&mut self.admitted, true);
                Ok(Some(Admitted { first, deployment, epoch, regranted }))
            }
            Ok(RegisterReply::Refused { error })
                if error.kind.is_retryable() || error.kind == ErrorKind::Fenced =>
            {
                tracing::warn!(%error, "not admitted yet");
                self.leader_heard_ms = now_ms;
                let since_ms = *self.admission.refused_since_ms.get_or_insert(now_ms);
                let bound_ms = REFUSED_DEAD_TIMES * self.dead_after_ms;
                if now_ms.saturating_sub(since_ms) > bound_ms {
                    return Err(Error::invalid(format!(
                        "worker {} was refused for {bound_ms} ms: {error}",
                        self.worker
                    )));
                }
                Ok(None)
            }
            Ok(RegisterReply::Refused { error }) => {
                Err(error.at(format!("worker {} was refused", self.worker)))
            }
            Err(error) if error.kind == ErrorKind::Invalid => {
                self.admission.unanswered += 1;
                tracing::warn!(%error, "the answer to a registration cannot be read");
                Ok(None)
            }
            Err(error) => {
                self.admission.unanswered += u32::from(error.kind != ErrorKind::NotFound);
                tracing::warn!(%error, waited_ms = self.waited_ms(now_ms), "waiting for \
                    coordinator");
                Ok(None)
            }
        }
    }

    /// Whether a heartbeat is due, and what it says of the worker.
    pub fn heartbeat_due(&mut self, now_ms: u64, attempts: &Attempts) -> Option<WorkerState> {
        if attempts.registered().is_none() || self.heartbeat_due_ms > now_ms {
            return None;
        }
        self.heartbeat_due_ms = now_ms + self.heartbeat_ms;
        Some(if attempts.is_draining() { WorkerState::Draining } else { WorkerState::Active })
    }

    /// The number of the next heartbeat.
    pub fn next_sequence(&mut self) -> u64 {
        let sequence = self.sequence;
        self.sequence += 1;
        sequence
    }

    /// The worker is told to stop: it finishes what it has within a bound.
    pub fn stop(&mut self, now_ms: u64) {
        self.stop_by_ms = Some(now_ms + self.drain_ms);
        self.heartbeat_due_ms = 0;
    }

    /// Whether it was told to stop.
    pub fn is_stopping(&self) -> bool {
        self.stop_by_ms.is_some()
    }

    /// Whether it is time to end, and how. One that is drained hands back what it has not finished
    /// within the same bound as one that is stopped.
    pub fn end(&mut self, now_ms: u64, attempts: &Attempts) -> Option<Result<Exit>> {
        let waited_ms = self.waited_ms(now_ms);
        let idle = attempts.is_idle();
        match self.stop_by_ms {
            Some(by_ms) => (idle || now_ms >= by_ms).then_some(Ok(Exit::Stopped)),
            None if attempts.is_draining() => {
                let by_ms = *self.drain_by_ms.get_or_insert(now_ms + self.drain_ms);
                (idle || now_ms >= by_ms).then_some(Ok(Exit::Drained))
            }
            None if waited_ms >= self.coordinator_wait_ms => Some(Err(Error::retry(format!(
                "no coordinator was heard of for {waited_ms} ms (worker.coordinator_wait_ms); is \
                    one running?"
            )))),
            None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_platform::config::Profile;
    use muster_protocol::ids::Incarnation;

    fn begin() -> (Presence, Attempts) {
        let config = Config::profile(Profile::Production).expect("profile");
        let worker: WorkerId = "w".parse().expect("id");
        (
            Presence::new(worker.clone(), &config, 0),
            Attempts::new(worker, Incarnation(1), 1, config.retry.nats.clone()),
        )
    }

    #[test]
    fn a_leader_is_missed_once_in_each_absence() {
        let (mut presence, _) = begin();
        for begin_ms in [0, 100_000] {
            presence.heard(begin_ms);
            assert!(!presence.misses_leader(begin_ms + 4000));
            assert!(presence.misses_leader(begin_ms + 4001));
            assert!(!presence.misses_leader(begin_ms + 5000), "it is said once");
            presence.heard(begin_ms + 6000);
            assert!(!presence.misses_leader(begin_ms + 6001));
        }
    }

    fn refused(kind: ErrorKind) -> Result<RegisterReply> {
        Ok(RegisterReply::Refused { error: Error::new(kind, "no") })
    }

    #[test]
    fn admission_is_asked_for_once_at_a_time_and_less_and_less_often() {
        let (mut presence, attempts) = begin();
        assert!(presence.asks_admission(0, &attempts));
        assert!(!presence.asks_admission(10, &attempts), "the first is still on its way");
        assert!(presence.answered(20, 0, Err(Error::retry("lost"))).expect("it goes on").is_none());
        assert!(!presence.asks_admission(20, &attempts));
        presence.register_now(30);
        assert!(presence.asks_admission(30, &attempts));
    }

    #[test]
    fn only_a_leader_that_heard_and_did_not_answer_is_taken_for_an_old_one() {
        let (mut presence, _) = begin();
        let nobody = || Err(Error::new(ErrorKind::NotFound, "nobody listens"));
        for _ in 0..5 {
            presence.answered(0, 0, nobody()).expect("it goes on");
            assert_eq!(presence.version_of(1, 2), 2);
        }
        for expected in [2, 1, 1, 2] {
            presence.answered(0, 0, Err(Error::retry("no answer"))).expect("it goes on");
            assert_eq!(presence.version_of(1, 2), expected);
        }
    }

    #[test]
    fn it_registers_again_now_and_then() {
        let (mut presence, mut attempts) = begin();
        let deployment: DeploymentId = "d1".parse().expect("id");
        let accepted = || {
            Ok(RegisterReply::Accepted {
                deployment: deployment.clone(),
                epoch: Epoch(1),
                heartbeat_ms: 1000,
                regranted: Vec::new(),
            })
        };
        assert!(presence.asks_admission(0, &attempts));
        presence.answered(10, 0, accepted()).expect("it goes on");
        let (asked, regranted) = (Vec::new(), Vec::new());
        attempts.step(10, crate::attempt::Input::Registered { epoch: Epoch(1), asked, regranted });
        assert!(!presence.asks_admission(30_009, &attempts));
        assert!(presence.asks_admission(30_010, &attempts), "nobody may know it any more");
        assert!(!presence.asks_admission(30_011, &attempts), "one question at a time");
        presence.answered(30_020, 0, accepted()).expect("it goes on");
        assert!(
            !presence.asks_admission(60_019, &attempts)
                && presence.asks_admission(60_020, &attempts)
        );
    }

    #[test]
    fn the_first_admission_is_the_first_also_after_a_beat() {
        let (mut presence, _) = begin();
        let deployment: DeploymentId = "d1".parse().expect("id");
        presence.note_deployment(&deployment);
        let mut admit = |epoch| {
            let reply = RegisterReply::Accepted {
                deployment: deployment.clone(),
                epoch: Epoch(epoch),
                heartbeat_ms: 1000,
                regranted: Vec::new(),
            };
            presence.answered(0, 0, Ok(reply)).expect("it goes on").expect("it is admitted").first
        };
        assert_eq!((admit(1), admit(2)), (true, false));
    }

    #[test]
    fn not_yet_is_heard_within_a_bound_and_never_is_heard_at_once() {
        let (mut presence, _) = begin();
        assert!(presence.answered(0, 0, refused(ErrorKind::Retry)).is_ok());
        assert!(presence.answered(15_000, 0, refused(ErrorKind::Fenced)).is_ok());
        assert!(presence.answered(15_001, 0, refused(ErrorKind::Retry)).is_err());
        assert!(begin().0.answered(0, 0, refused(ErrorKind::Invalid)).is_err());
    }

    #[test]
    fn it_ends_when_no_leader_is_heard_or_when_it_stops_and_is_idle() {
        let (mut presence, attempts) = begin();
        assert!(presence.end(299_999, &attempts).is_none());
        assert!(presence.end(300_000, &attempts).is_some_and(|end| end.is_err()));
        presence.heard(300_000);
        assert!(presence.end(300_000, &attempts).is_none());
        presence.stop(300_000);
        assert!(
            presence.is_stopping() && presence.end(300_000, &attempts) == Some(Ok(Exit::Stopped))
        );
    }

    #[test]
    fn another_deployment_is_noticed() {
        let (mut presence, _) = begin();
        let [one, two] = ["d1", "d2"].map(|id| id.parse::<DeploymentId>().expect("id"));
        assert_eq!(presence.note_deployment(&one), None);
        assert_eq!(presence.note_deployment(&one), None);
        assert_eq!(presence.note_deployment(&two), Some(one));
    }
}
