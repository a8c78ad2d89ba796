//! Who leads, decided purely: what was heard and the time go in, what to do comes out.
//!
//! ```text
//!   start ──▶ reading ──▶ asking ──nobody answers──▶ beginning ──▶ (a term)
//!                            │                           ▲             │
//!                      somebody does                     │            over
//!                            ▼                           │             │
//!                        watching ◀──────────────────────┼─────────────┘
//!                            │                           │
//!       silence, or nobody there, or a resignation       │
//!                            ▼                           │
//!                         poised ──after a jitter──▶ reading
//! ```
//!
//! Nothing here makes anybody a leader: that is the append of an epoch to the journal, which only
//! one of many can do. This machine decides when to try, so that tries are neither late nor
//! needless. **Silence** is time in which this process ran, was connected, and heard no sign of the
//! leader; time in which it was itself paused or cut off says nothing about anybody else. After
//! half of the silence it *asks*, on a subject that only a leader listens to: an answer is a sign
//! of life, and "no such listener" is known at once, so the end of a process is noticed sooner than
//! a leader that hangs.

use std::fmt;

use muster_protocol::ids::{DeploymentId, Epoch};

/// Part of the silence that a try may be put off by, drawn anew each time: stand-bys that hear the
/// same silence do not all try at once.
const JITTER_PARTS: u64 = 8;
/// Part of the silence that one gap between two steps may last before it counts as this process's
/// own pause.
const PAUSE_PARTS: u64 = 4;

/// Bounds of the election.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// So long a leader that is there may be silent, in milliseconds.
    pub silence_ms: u64,
    /// How often a leader gives a sign, in milliseconds: as often a stand-by asks.
    pub beat_ms: u64,
}

/// A sign of one leader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sign {
    /// Its deployment; unknown where the sign does not carry it.
    pub deployment: Option<DeploymentId>,
    /// Its term.
    pub epoch: Epoch,
}

/// A fact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Time has passed. Comes several times in the time that counts as a pause.
    Tick,
    /// This process's own connection.
    Connection {
        /// Whether it stands.
        up: bool,
    },
    /// A leader's beat; none where it is of a version that cannot be read, which is a sign of life
    /// all the same.
    Beat(Option<Sign>),
    /// A leader has ended in good order.
    Resigned(Sign),
    /// What came of [`Effect::Ask`].
    Asked(Answer),
    /// What came of [`Effect::ReadJournal`].
    JournalRead {
        /// The journal's deployment; none where it is empty.
        deployment: Option<DeploymentId>,
        /// The newest term in it; 0 where it is empty.
        epoch: Epoch,
    },
    /// A try failed, or the term that it began is over.
    Lost {
        /// The newest term known of by then.
        epoch: Epoch,
    },
}

/// What a question for the leader came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The leader of this term answers.
    Leads(Epoch),
    /// Nobody listens there.
    Nobody,
    /// No answer: somebody listens and is silent, or the network is.
    Silence,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Ask who leads, on a subject that only a leader listens to.
    Ask,
    /// Read the journal; a reading under way is begun anew.
    ReadJournal,
    /// Drop the reading, or what was read: somebody leads.
    Forget,
    /// Append an epoch after what was read.
    Begin(Cause),
    /// A leader of a term not seen before is there, and this process stands by.
    Follow(Epoch),
}

/// Why it is time to lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// This process has just begun and nobody leads. With the newest term in the journal.
    Start(Epoch),
    /// The leader's process has gone without a word.
    Gone {
        /// Its term.
        epoch: Epoch,
        /// How long nothing was heard of it, in milliseconds.
        silent_ms: u64,
    },
    /// The leader is there, or was, and gives no sign.
    Silent {
        /// Its term.
        epoch: Epoch,
        /// How long nothing was heard of it, in milliseconds.
        silent_ms: u64,
    },
    /// The leader has resigned.
    Resigned {
        /// Its term.
        epoch: Epoch,
    },
}

impl Cause {
    /// Whether somebody led before.
    pub fn takes_over(self) -> bool {
        self != Self::Start(Epoch(0))
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start(Epoch(0)) => write!(f, "the first leader of a new deployment"),
            Self::Start(epoch) => write!(f, "restart after epoch {epoch}: nobody was leading"),
            Self::Gone { epoch, silent_ms } => {
                write!(
                    f,
                    "took over from epoch {epoch}: its coordinator is gone, nothing was heard for \
                        {silent_ms} ms"
                )
            }
            Self::Silent { epoch, silent_ms } => {
                write!(f, "took over from epoch {epoch}: nothing was heard for {silent_ms} ms")
            }
            Self::Resigned { epoch } => write!(f, "took over from epoch {epoch}: it has resigned"),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Nothing has been done yet.
    New,
    /// The first reading: who led last is not known before.
    FirstReading,
    /// The journal is read and nothing was heard of a leader: is one there?
    FirstAsking,
    /// Somebody leads, or led.
    Watching,
    /// It is time, but for the jitter.
    Poised { at_ms: u64, cause: Cause },
    /// Reading what to go on from.
    Reading { cause: Cause },
    /// The epoch is being appended, or this process leads.
    Beginning,
}

/// The machine of one process, for all of its life.
#[derive(Debug)]
pub struct Election {
    settings: Settings,
    /// SplitMix64 from the seed.
    dice: u64,
    now_ms: Option<u64>,
    connected: bool,
    stage: Stage,
    deployment: Option<DeploymentId>,
    /// The newest term known of.
    epoch: Epoch,
    /// The term that was last said to be followed.
    followed: Option<Epoch>,
    /// Silence so far.
    quiet_ms: u64,
    asking: bool,
    /// Silence at which to ask next.
    ask_at_quiet_ms: u64,
    out: Vec<Effect>,
}

impl Election {
    /// A process that has just begun, and is connected.
    pub fn new(settings: Settings, seed: u64) -> Self {
        Self {
            settings,
            dice: seed,
            now_ms: None,
            connected: true,
            stage: Stage::New,
            deployment: None,
            epoch: Epoch(0),
            followed: None,
            quiet_ms: 0,
            asking: false,
            ask_at_quiet_ms: 0,
            out: Vec::new(),
        }
    }

    /// The newest term known of.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Takes one fact and gives what follows, in order. `now_ms` is a clock that never goes back.
    pub fn step(&mut self, now_ms: u64, input: Input) -> Vec<Effect> {
        self.pass_time(now_ms);
        match input {
            Input::Tick => {}
            Input::Connection { up } => self.connection(up),
            Input::Beat(Some(sign)) => self.heard(sign),
            Input::Beat(None) => self.alive(),
            Input::Resigned(sign) => self.resigned(&sign),
            Input::Asked(answer) => self.asked(answer),
            Input::JournalRead { deployment, epoch } => self.journal_read(deployment, epoch),
            Input::Lost { epoch } => {
                self.epoch = self.epoch.max(epoch);
                self.followed = None;
                self.watch_anew();
            }
        }
        self.look_at_time();
        std::mem::take(&mut self.out)
    }

    fn half_ms(&self) -> u64 {
        self.settings.silence_ms / 2
    }

    fn now_ms(&self) -> u64 {
        self.now_ms.unwrap_or(0)
    }

    fn pass_time(&mut self, now_ms: u64) {
        let before_ms = self.now_ms.unwrap_or(now_ms);
        self.now_ms = Some(now_ms.max(before_ms));
        let gap_ms = now_ms.saturating_sub(before_ms);
        if gap_ms > self.settings.silence_ms / PAUSE_PARTS {
            // What was sent meanwhile may still be on its way to us: at least half of the silence
            // is to be heard anew.
            self.quiet_ms = self.quiet_ms.min(self.half_ms());
            self.ask_at_quiet_ms = self.quiet_ms;
            if let Stage::Poised { .. } = self.stage {
                self.stage = Stage::Watching;
            }
        } else if self.connected {
            self.quiet_ms = self.quiet_ms.saturating_add(gap_ms);
        }
    }

    fn look_at_time(&mut self) {
        if !self.connected {
            return;
        }
        match self.stage {
            Stage::New => {
                self.stage = Stage::FirstReading;
                self.out.push(Effect::ReadJournal);
            }
            Stage::Watching => {
                let (epoch, silent_ms) = (self.epoch, self.quiet_ms);
                if silent_ms >= self.settings.silence_ms {
                    self.poise(Cause::Silent { epoch, silent_ms });
                } else if silent_ms >= self.half_ms().max(self.ask_at_quiet_ms) && !self.asking {
                    self.ask();
                }
            }
            Stage::Poised { at_ms, cause } if self.now_ms() >= at_ms => {
                self.stage = Stage::Reading { cause };
                self.out.push(Effect::ReadJournal);
            }
            _ => {}
        }
    }

    fn ask(&mut self) {
        self.asking = true;
        self.ask_at_quiet_ms = self.quiet_ms.saturating_add(self.settings.beat_ms);
        self.out.push(Effect::Ask);
    }

    fn poise(&mut self, cause: Cause) {
        let jitter_ms = self.draw() % (self.settings.silence_ms / JITTER_PARTS + 1);
        self.stage = Stage::Poised { at_ms: self.now_ms().saturating_add(jitter_ms), cause };
    }

    fn draw(&mut self) -> u64 {
        self.dice = self.dice.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.dice;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A connection that comes back knows nothing of what was said without it.
    fn connection(&mut self, up: bool) {
        self.connected = up;
        self.quiet_ms = 0;
        self.ask_at_quiet_ms = 0;
        if !up {
            self.back_to(match self.stage {
                Stage::New | Stage::FirstReading | Stage::FirstAsking => Stage::New,
                Stage::Beginning => Stage::Beginning,
                _ => Stage::Watching,
            });
        }
    }

    /// Goes back, and forgets what was read on the way.
    fn back_to(&mut self, stage: Stage) {
        if let Stage::FirstReading | Stage::FirstAsking | Stage::Reading { .. } = self.stage
            && stage != self.stage
        {
            self.out.push(Effect::Forget);
        }
        self.stage = stage;
    }

    fn watch_anew(&mut self) {
        self.quiet_ms = 0;
        self.ask_at_quiet_ms = 0;
        self.back_to(Stage::Watching);
    }

    /// Whether a sign is of a term that is over: it says nothing about who leads now.
    fn is_old(&self, sign: &Sign) -> bool {
        let foreign = sign.deployment.is_some()
            && self.deployment.is_some()
            && sign.deployment != self.deployment;
        !foreign && sign.epoch < self.epoch
    }

    fn heard(&mut self, sign: Sign) {
        if self.is_old(&sign) {
            return;
        }
        self.epoch = sign.epoch;
        self.deployment = sign.deployment.or_else(|| self.deployment.take());
        if self.stage != Stage::Beginning && self.followed != Some(self.epoch) {
            self.followed = Some(self.epoch);
            self.out.push(Effect::Follow(self.epoch));
        }
        self.alive();
    }

    fn alive(&mut self) {
        if self.stage != Stage::Beginning {
            self.watch_anew();
        }
    }

    fn resigned(&mut self, sign: &Sign) {
        let waiting =
            matches!(self.stage, Stage::Watching | Stage::FirstReading | Stage::FirstAsking);
        if waiting && self.connected && !self.is_old(sign) {
            self.epoch = sign.epoch;
            self.back_to(Stage::Watching);
            self.poise(Cause::Resigned { epoch: sign.epoch });
        }
    }

    fn asked(&mut self, answer: Answer) {
        self.asking = false;
        let (epoch, silent_ms) = (self.epoch, self.quiet_ms);
        match (answer, self.stage) {
            // It leads under a term that is over, and has not noticed: whoever waited for its beat
            // would wait for ever.
            (Answer::Leads(epoch), Stage::FirstAsking)
                if self.is_old(&Sign { deployment: None, epoch }) =>
            {
                self.watch_anew();
            }
            (Answer::Leads(epoch), _) => self.heard(Sign { deployment: None, epoch }),
            (Answer::Nobody, Stage::FirstAsking) if self.connected => {
                self.stage = Stage::Beginning;
                self.out.push(Effect::Begin(Cause::Start(epoch)));
            }
            (Answer::Nobody, Stage::Watching) if self.connected && silent_ms >= self.half_ms() => {
                self.poise(Cause::Gone { epoch, silent_ms });
            }
            (Answer::Silence, Stage::FirstAsking) => self.watch_anew(),
            _ => {}
        }
    }

    fn journal_read(&mut self, deployment: Option<DeploymentId>, epoch: Epoch) {
        let same =
            deployment.is_none() || self.deployment.is_none() || deployment == self.deployment;
        let newer = same && epoch > self.epoch;
        match self.stage {
            Stage::FirstReading => {
                self.deployment = deployment.or_else(|| self.deployment.take());
                self.epoch = epoch;
                self.stage = Stage::FirstAsking;
                self.ask();
            }
            // Somebody has begun since: whose silence was heard does not matter any more.
            Stage::Reading { .. } if newer => {
                self.epoch = epoch;
                self.watch_anew();
            }
            Stage::Reading { cause } => {
                self.stage = Stage::Beginning;
                self.out.push(Effect::Begin(cause));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
#[path = "election_tests.rs"]
mod tests;
