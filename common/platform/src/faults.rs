//! Faults on purpose: part of the product, so that anyone can see what a deployment survives. Off
//! unless a process is started with `--faults` and fault injection is enabled for it.
//!
//! A [`FaultPlan`] is a list of rules, parsed from a SPEC or drawn from a seed (grammar: [`spec`]).
//! [`Faults`] is such a plan at work in one process: wherever something can fail (a *site*: a store
//! call, a ledger call, a message, a step of an attempt), the code asks it and does what it says.
//! Stores and the ledger are wrapped ([`crate::adapters::faulty`]), messages ask
//! [`Faults::message`], attempts ask [`Faults::step`], memory asks [`Faults::refuses_memory`] and
//! [`Faults::damages_memory`].
//!
//! The same seed gives the same draws: every rule has a stream of its own for every site, so that a
//! draw at one does not shift those at another. How many calls there are depends on the run, of
//! course. What was done is counted and logged, one line for each fault.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::clock::Clock;
use crate::config;
use muster_protocol::error::{Error, ErrorKind, Result};
use muster_protocol::ids::Phase;
use muster_protocol::names::SCRATCH_DIR;

pub mod spec;

pub use spec::{Component, FaultPlan, Kind, Rule, Site};

/// The environment variable that enables fault injection when it is `1`.
pub const ENABLE_VARIABLE: &str = "MUSTER_ENABLE_FAULTS";

/// In which work something happens, as far as the site knows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Scope {
    /// The phase of the attempt.
    pub phase: Option<Phase>,
    /// The index of its task.
    pub task: Option<u32>,
}

/// A fault that the site itself has to act out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hit {
    /// Which.
    pub kind: Kind,
    /// Chooses what is damaged.
    pub random: u64,
}

/// What becomes of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// It goes out.
    Deliver,
    /// It goes out twice.
    Twice,
    /// It is lost, and nobody says so: an answer is waited for in vain.
    Lost,
    /// The connection refuses it.
    Refused,
    /// It arrives; the answer to it is lost.
    AnswerLost,
}

/// What a process does to itself, as a port, so that tests survive it.
pub trait Acts: Send + Sync + 'static {
    /// Ends the process at once.
    fn crash(&self);
    /// Stops the whole process for so long.
    fn pause(&self, ms: u64);
}

/// Real ends and real pauses.
#[derive(Debug)]
struct Process;

impl Acts for Process {
    fn crash(&self) {
        std::process::abort();
    }

    /// SIGSTOP to itself; a helper outside of it, which is not stopped, continues it.
    fn pause(&self, ms: u64) {
        let me = rustix::process::getpid();
        let wake =
            format!("sleep {}.{:03}; kill -CONT {}", ms / 1000, ms % 1000, me.as_raw_nonzero());
        let helper = std::process::Command::new("/bin/sh").arg("-c").arg(wake).spawn();
        match helper {
            Ok(mut helper) => {
                let stopped = rustix::process::kill_process(me, rustix::process::Signal::STOP);
                if let Err(error) = stopped {
                    tracing::warn!(%error, "the process cannot stop itself");
                }
                // It has just woken us, so it ends now; waiting leaves no zombie.
                drop(helper.wait());
            }
            Err(error) => {
                tracing::warn!(%error, "without a helper that continues it, the process does not \
                    stop itself");
            }
        }
    }
}

/// A rule with what it has done.
struct Armed {
    rule: Rule,
    met: AtomicU64,
    done: AtomicU32,
    /// Draws made at each site.
    streams: Mutex<BTreeMap<Site, u64>>,
}

/// A plan at work.
pub struct Faults {
    plan: FaultPlan,
    armed: Vec<Armed>,
    who: u64,
    clock: Arc<dyn Clock>,
    started_ms: u64,
    acts: Box<dyn Acts>,
    counts: Mutex<BTreeMap<String, u64>>,
}

impl std::fmt::Debug for Faults {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Faults").field(&self.plan.to_string()).finish()
    }
}

impl Faults {
    /// Begins to inject what a SPEC says into the process of `who` (a worker's id, or
    /// `coordinator`).
    ///
    /// # Errors
    /// `Invalid` where fault injection is enabled neither by the environment (`enabled_here`) nor
    /// by `faults.enabled`, or where the SPEC cannot be read.
    pub fn begin(
        spec: &str,
        settings: &config::Faults,
        enabled_here: bool,
        who: &str,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>> {
        if !(settings.enabled || enabled_here) {
            return Err(Error::invalid(format!(
                "--faults damages and kills on purpose, and fault injection is not enabled here; \
                    set {ENABLE_VARIABLE}=1 or the setting faults.enabled = true \
                 for this process if that is what you want"
            )));
        }
        let plan: FaultPlan = spec.parse().map_err(|e: Error| e.at("--faults"))?;
        tracing::warn!(who, %plan, "faults will be injected into this process");
        Ok(Arc::new(Self::new(plan, who, clock)))
    }

    /// A plan at work, unconditionally.
    pub fn new(plan: FaultPlan, who: &str, clock: Arc<dyn Clock>) -> Self {
        let mine = plan
            .rules
            .iter()
            .filter(|rule| rule.worker.as_ref().is_none_or(|worker| worker == who))
            .cloned();
        let armed = mine.map(|rule| Armed {
            rule,
            met: AtomicU64::new(0),
            done: AtomicU32::new(0),
            streams: Mutex::default(),
        });
        Self {
            armed: armed.collect(),
            plan,
            who: muster_protocol::wire::digest(who.as_bytes()),
            started_ms: clock.now_ms(),
            clock,
            acts: Box::new(Process),
            counts: Mutex::default(),
        }
    }

    /// The same with other deeds than a real end and a real pause.
    #[must_use]
    pub fn with_acts(mut self, acts: impl Acts) -> Self {
        self.acts = Box::new(acts);
        self
    }

    /// What is injected.
    pub fn plan(&self) -> &FaultPlan {
        &self.plan
    }

    /// What was injected so far, as `site:kind`.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Logs what was injected, as JSON; for the end of a process.
    pub fn log_counts(&self) {
        let counts = serde_json::to_string(&self.counts()).unwrap_or_default();
        tracing::warn!(counts, "faults were injected");
    }

    /// Asks at a site. Delays, pauses and crashes are done here; what is left is for the site to
    /// act out.
    pub async fn meet(&self, site: Site, scope: Scope, key: &str) -> Option<Hit> {
        for (number, armed) in self.armed.iter().enumerate() {
            let Some(random) = self.fires(number, armed, site, scope, key) else { continue };
            self.note(site, armed.rule.kind, scope, key);
            match armed.rule.kind {
                Kind::Delay => self.clock.pause(armed.rule.ms).await,
                Kind::Pause => self.acts.pause(armed.rule.ms),
                Kind::Crash => self.acts.crash(),
                Kind::Timeout => {
                    self.clock.pause(armed.rule.ms).await;
                    return Some(Hit { kind: Kind::Timeout, random });
                }
                kind => return Some(Hit { kind, random }),
            }
        }
        None
    }

    /// Asks at a step of an attempt: `begin`, `work` or `end`.
    ///
    /// # Errors
    /// The fault, where one makes the attempt fail.
    pub async fn step(&self, operation: &'static str, scope: Scope) -> Result<()> {
        let site = Site::new(Component::Task, operation);
        self.meet(site, scope, "").await.map_or(Ok(()), |hit| Err(hit.error(site, "the attempt")))
    }

    /// Asks before a message goes out.
    pub async fn message(&self, operation: &'static str) -> Message {
        let hit = self.meet(Site::new(Component::Bus, operation), Scope::default(), "").await;
        match hit.map(|hit| hit.kind) {
            None => Message::Deliver,
            Some(Kind::Duplicate) => Message::Twice,
            Some(Kind::LostAck) => Message::AnswerLost,
            Some(Kind::Error | Kind::Timeout) => Message::Refused,
            Some(_) => Message::Lost,
        }
    }

    /// Whether the memory that an attempt asks for is refused.
    pub async fn refuses_memory(&self, scope: Scope) -> bool {
        let hit = self.meet(Site::new(Component::Memory, "alloc"), scope, "").await;
        hit.is_some_and(|hit| hit.kind == Kind::Refuse)
    }

    /// Whether a record that an attempt holds in memory, summed up and not yet written, is to be
    /// damaged; the number says where.
    pub async fn damages_memory(&self, scope: Scope) -> Option<u64> {
        let hit = self.meet(Site::new(Component::Memory, "hold"), scope, "").await;
        hit.filter(|hit| hit.kind == Kind::Flip).map(|hit| hit.random)
    }

    fn fires(
        &self,
        number: usize,
        armed: &Armed,
        site: Site,
        scope: Scope,
        key: &str,
    ) -> Option<u64> {
        let rule = &armed.rule;
        let since_ms = self.clock.now_ms().saturating_sub(self.started_ms);
        let damage = matches!(rule.kind, Kind::Flip | Kind::Truncate);
        let applies = rule.site.covers(site)
            && spec::fits(rule.kind, site)
            && rule.phase.is_none_or(|phase| scope.phase == Some(phase))
            && rule.task.is_none_or(|task| scope.task == Some(task))
            && rule.key.as_ref().is_none_or(|part| key.contains(part.as_str()))
            && since_ms >= rule.from_ms
            && rule.until_ms.is_none_or(|until_ms| since_ms < until_ms)
            // Input and output carry no checksum that a reader could know: damage there is damage
            // before the program.
            && (!damage || site.component != Component::Store || key.contains(SCRATCH_DIR));
        if !applies || armed.met.fetch_add(1, Ordering::Relaxed) < rule.after {
            return None;
        }
        let drawn = {
            let mut streams = armed.streams.lock().unwrap_or_else(PoisonError::into_inner);
            let draws = streams.entry(site).or_default();
            *draws += 1;
            *draws
        };
        let label = format!("{}/{number}/{site}/{drawn}", self.who);
        let random = mix(self.plan.seed ^ muster_protocol::wire::digest(label.as_bytes()));
        if random % spec::WHOLE >= u64::from(rule.ppm) {
            return None;
        }
        let allowed = |done: u32| {
            rule.times.is_none_or(|times| done < times).then_some(done.saturating_add(1))
        };
        armed.done.fetch_update(Ordering::Relaxed, Ordering::Relaxed, allowed).ok()?;
        Some(mix(random))
    }

    fn note(&self, site: Site, kind: Kind, scope: Scope, key: &str) {
        let label = format!("{site}:{kind}");
        tracing::warn!(
            fault = label,
            phase = scope.phase.map(tracing::field::display),
            task = scope.task,
            key,
            "injected a fault"
        );
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner).entry(label).or_default() += 1;
    }
}

impl Hit {
    /// The error that a site gives for it.
    pub fn error(&self, site: Site, what: &str) -> Error {
        let kind = match self.kind {
            Kind::Throttle => ErrorKind::Throttled,
            Kind::Full => ErrorKind::Exhausted,
            Kind::Refuse => ErrorKind::OutOfMemory,
            Kind::Truncate | Kind::Flip => ErrorKind::Corrupt,
            _ => ErrorKind::Retry,
        };
        Error::new(kind, format!("{what}: injected fault {site}:{}", self.kind))
    }
}

/// SplitMix64's output function.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests;
