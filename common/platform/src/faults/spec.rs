//! The grammar of faults.
//!
#![doc = concat!("```text\n", include_str!("grammar.txt"), "```")]
//!
//! Damage (flip, truncate) touches what lies in scratch and spills, which carry checksums, and what
//! a sort holds in memory, whose records are summed up; input and output have none that a reader
//! could know.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use muster_protocol::error::{Error, Result};
use muster_protocol::ids::Phase;

/// The grammar, for help.
pub const GRAMMAR: &str = include_str!("grammar.txt");
/// Certainty, in millionths.
pub(super) const WHOLE: u64 = 1_000_000;
/// Rules of one plan.
const RULES_MAX: usize = 64;
/// Longest SPEC in bytes.
const SPEC_BYTES_MAX: usize = 16 << 10;
/// Longest delay, time-out or pause, in milliseconds.
const MS_MAX: u64 = 3_600_000;

/// A part of the program that can be disturbed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Component {
    /// The object store.
    Store,
    /// A worker's own disk.
    Disk,
    /// The journal.
    Ledger,
    /// Messages over NATS.
    Bus,
    /// Steps of an attempt.
    Task,
    /// An attempt's memory.
    Memory,
}

const STORE: &[&str] = &[
    "list", "head", "read", "put", "open", "part", "complete", "abort", "uploads", "delete",
    "prune",
];
const DISK: &[&str] = &[
    "list", "head", "read", "put", "open", "part", "complete", "abort", "uploads", "delete",
    "prune", "write",
];
const BUS: &[&str] = &[
    "register",
    "report",
    "samples",
    "heartbeat",
    "answer",
    "beat",
    "command",
    "broadcast",
    "event",
    "progress",
];

impl Component {
    const ALL: [Component; 6] = [
        Component::Store,
        Component::Disk,
        Component::Ledger,
        Component::Bus,
        Component::Task,
        Component::Memory,
    ];

    fn name(self) -> &'static str {
        match self {
            Component::Store => "store",
            Component::Disk => "disk",
            Component::Ledger => "ledger",
            Component::Bus => "bus",
            Component::Task => "task",
            Component::Memory => "memory",
        }
    }

    fn operations(self) -> &'static [&'static str] {
        match self {
            Component::Store => STORE,
            Component::Disk => DISK,
            Component::Ledger => &["append", "read", "purge"],
            Component::Bus => BUS,
            Component::Task => &["begin", "work", "end"],
            Component::Memory => &["alloc", "hold"],
        }
    }
}

/// Where something can fail: a component, or one operation of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Site {
    /// Which component.
    pub component: Component,
    /// Which operation; in a rule none stands for all.
    pub operation: Option<&'static str>,
}

impl Site {
    /// One operation.
    pub fn new(component: Component, operation: &'static str) -> Self {
        Self { component, operation: Some(operation) }
    }

    /// Whether a rule for this site means `other`.
    pub(super) fn covers(self, other: Site) -> bool {
        let writes = ["put", "open", "part", "complete"];
        self.component == other.component
            && match (self.operation, other.operation) {
                (None, _) => true,
                (Some("write"), Some(operation)) => writes.contains(&operation),
                (Some(mine), operation) => operation == Some(mine),
            }
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.component.name())?;
        self.operation.map_or(Ok(()), |operation| write!(f, ".{operation}"))
    }
}

impl FromStr for Site {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (component, operation) =
            text.split_once('.').map_or((text, None), |(name, rest)| (name, Some(rest)));
        let names = || Component::ALL.map(Component::name).join(", ");
        let component = Component::ALL.into_iter().find(|known| known.name() == component);
        let component = component.ok_or_else(|| {
            Error::invalid(format!("{text:?} is no place for a fault; there are {}", names()))
        })?;
        let Some(operation) = operation else { return Ok(Self { component, operation: None }) };
        let known = component.operations().iter().copied().find(|known| *known == operation);
        let known = known.ok_or_else(|| {
            let all = component.operations().join(", ");
            Error::invalid(format!(
                "{} has no operation {operation:?}; it has {all}",
                component.name()
            ))
        })?;
        Ok(Self { component, operation: Some(known) })
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $variant:ident $name:literal),* $(,)?) => {
        /// What goes wrong.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Kind { $($(#[$doc])* $variant),* }

        impl Kind {
            const ALL: &[Kind] = &[$(Kind::$variant),*];

            fn name(self) -> &'static str {
                match self { $(Kind::$variant => $name),* }
            }
        }
    };
}

kinds! {
    /// It happens later.
    Delay "delay",
    /// It does not happen, in passing.
    Error "error",
    /// It does not happen, and takes its time.
    Timeout "timeout",
    /// It happens, its answer is lost.
    LostAck "lost-ack",
    /// The store asks for fewer requests.
    Throttle "throttle",
    /// No space is left.
    Full "full",
    /// One bit is wrong.
    Flip "flip",
    /// The end is missing.
    Truncate "truncate",
    /// The message is lost without a word.
    Drop "drop",
    /// The message arrives twice.
    Duplicate "duplicate",
    /// Memory is refused.
    Refuse "refuse",
    /// The process ends.
    Crash "crash",
    /// The process stops for a time.
    Pause "pause",
    /// A promise of our own code is broken: a panic.
    Bug "bug",
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whether a kind makes sense at one operation. A rule for a whole component acts where it does.
pub(super) fn fits(kind: Kind, site: Site) -> bool {
    use Component::{Bus, Disk, Ledger, Memory, Store, Task};
    let operation =
        |names: &[&str]| site.operation.is_none_or(|operation| names.contains(&operation));
    match (kind, site.component) {
        (Kind::Crash | Kind::Pause | Kind::Delay, _) => true,
        (Kind::Refuse, Memory) => operation(&["alloc"]),
        (Kind::Flip, Memory) => operation(&["hold"]),
        (Kind::Refuse, _) => false,
        (Kind::Bug, Ledger) => operation(&["append"]),
        (Kind::Bug, _) | (_, Memory) => false,
        (Kind::Error, _) => true,
        (Kind::Drop | Kind::Duplicate, component) => component == Bus,
        (Kind::Timeout, component) => component != Task,
        (Kind::LostAck, Store | Disk) => {
            operation(&["put", "open", "part", "complete", "abort", "delete", "write"])
        }
        (Kind::LostAck, Ledger) => operation(&["append", "purge"]),
        (Kind::LostAck, Bus) => operation(&["register", "report", "samples", "command"]),
        (Kind::Throttle, component) => component == Store,
        (Kind::Full, Store | Disk) => operation(&["put", "open", "part", "complete", "write"]),
        (Kind::Full, Ledger) => operation(&["append"]),
        (Kind::Flip | Kind::Truncate, Store | Disk) => operation(&["read", "put", "part", "write"]),
        _ => false,
    }
}

/// One fault, with when and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Where.
    pub site: Site,
    /// What.
    pub kind: Kind,
    /// How likely, in millionths.
    pub ppm: u32,
    /// How long it takes, in milliseconds.
    pub ms: u64,
    /// Only in this phase.
    pub phase: Option<Phase>,
    /// Only in this task.
    pub task: Option<u32>,
    /// Only in this process: a worker's id, or `coordinator`.
    pub worker: Option<String>,
    /// Only for objects whose key holds this.
    pub key: Option<String>,
    /// How often at most.
    pub times: Option<u32>,
    /// So many occasions pass first.
    pub after: u64,
    /// Not before, in milliseconds from the start.
    pub from_ms: u64,
    /// No more from then on.
    pub until_ms: Option<u64>,
}

impl Rule {
    /// A fault that always happens.
    ///
    /// # Errors
    /// `Invalid` where the kind makes no sense at the site.
    pub fn new(site: Site, kind: Kind) -> Result<Self> {
        if !fits(kind, site) {
            return Err(Error::invalid(format!("{kind} makes no sense at {site}")));
        }
        Ok(Self {
            site,
            kind,
            ppm: WHOLE as u32,
            ms: default_ms(kind),
            phase: None,
            task: None,
            worker: None,
            key: None,
            times: None,
            after: 0,
            from_ms: 0,
            until_ms: None,
        })
    }

    fn set(&mut self, name: &str, value: &str) -> Result<()> {
        let bad = |what: &str| Error::invalid(format!("{name}={value}: {what}"));
        let number = || value.parse::<u64>().map_err(|_| bad("not a whole number"));
        let small = || value.parse::<u32>().map_err(|_| bad("not a whole number below 2^32"));
        let millis = || {
            number()
                .and_then(|ms| if ms <= MS_MAX { Ok(ms) } else { Err(bad("more than an hour")) })
        };
        match name {
            "p" => {
                let sound = parse_ppm(value);
                self.ppm = sound.ok_or_else(|| {
                    bad("not a probability between 0 and 1, with at most 6 decimals")
                })?;
            }
            "ms" => self.ms = millis()?,
            "phase" => {
                self.phase =
                    Some(parse_phase(value).ok_or_else(|| bad("not one of sample, sort, merge"))?);
            }
            "task" => self.task = Some(small()?),
            "times" => self.times = Some(small()?),
            "after" => self.after = number()?,
            "from" => self.from_ms = millis()?,
            "until" => self.until_ms = Some(millis()?),
            "worker" if !value.is_empty() => self.worker = Some(value.to_owned()),
            "key" if !value.is_empty() => self.key = Some(value.to_owned()),
            _ => return Err(bad("no such option, or no value")),
        }
        Ok(())
    }
}

fn default_ms(kind: Kind) -> u64 {
    if kind == Kind::Pause { 5000 } else { 1000 }
}

fn parse_phase(text: &str) -> Option<Phase> {
    [Phase::Sample, Phase::Sort, Phase::Merge].into_iter().find(|phase| phase.to_string() == text)
}

/// `0.05` as millionths, without rounding.
fn parse_ppm(text: &str) -> Option<u32> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole)
        || !digits(decimals)
        || decimals.len() > 6
        || whole.len() > 1
        || text == "."
        || text.is_empty()
    {
        return None;
    }
    let whole: u32 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let decimals: u32 = format!("{decimals:0<6}").parse().ok()?;
    let ppm = whole.checked_mul(WHOLE as u32)?.checked_add(decimals)?;
    (u64::from(ppm) <= WHOLE).then_some(ppm)
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.site, self.kind)?;
        if u64::from(self.ppm) != WHOLE {
            write!(f, ",p=0.{:06}", self.ppm)?;
        }
        if self.ms != default_ms(self.kind) {
            write!(f, ",ms={}", self.ms)?;
        }
        let option = |f: &mut fmt::Formatter<'_>, name: &str, value: Option<&dyn fmt::Display>| {
            value.map_or(Ok(()), |value| write!(f, ",{name}={value}"))
        };
        option(f, "phase", self.phase.as_ref().map(|phase| phase as &dyn fmt::Display))?;
        option(f, "task", self.task.as_ref().map(|task| task as &dyn fmt::Display))?;
        option(f, "worker", self.worker.as_ref().map(|worker| worker as &dyn fmt::Display))?;
        option(f, "key", self.key.as_ref().map(|key| key as &dyn fmt::Display))?;
        option(f, "times", self.times.as_ref().map(|times| times as &dyn fmt::Display))?;
        option(f, "after", (self.after > 0).then_some(&self.after as &dyn fmt::Display))?;
        option(f, "from", (self.from_ms > 0).then_some(&self.from_ms as &dyn fmt::Display))?;
        option(f, "until", self.until_ms.as_ref().map(|until| until as &dyn fmt::Display))
    }
}

impl FromStr for Rule {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut items = text.split(',').map(str::trim);
        let head = items.next().unwrap_or_default();
        let (site, kind) = match head.split_once(':') {
            Some((site, kind)) => (site.parse()?, kind),
            None => (Site { component: Component::Task, operation: None }, head),
        };
        let found = Kind::ALL.iter().copied().find(|known| known.name() == kind);
        let alone = matches!(found, Some(Kind::Crash | Kind::Pause)) || head.contains(':');
        let kind = found.filter(|_| alone).ok_or_else(|| {
            let all: Vec<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
            Error::invalid(format!(
                "{head:?} is no fault; write it as SITE:KIND, with KIND one of {}",
                all.join(", ")
            ))
        })?;
        let mut rule = Rule::new(site, kind)?;
        for item in items {
            let (name, value) = item.split_once('=').ok_or_else(|| {
                Error::invalid(format!("{item:?} in {text:?} is not of the form NAME=VALUE"))
            })?;
            rule.set(name.trim(), value.trim())?;
        }
        Ok(rule)
    }
}

/// What is to be injected.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FaultPlan {
    /// Where all draws come from.
    pub seed: u64,
    /// The faults; all that apply are asked, in this order.
    pub rules: Vec<Rule>,
}

/// What a seed draws from: passing trouble that a job is to survive, with the highest probability
/// of each in percent.
const DRAWN: &[(&str, u64)] = &[
    ("store.read:error", 5),
    ("store.part:error", 5),
    ("store.part:lost-ack", 3),
    ("store.open:error", 3),
    ("store.complete:lost-ack", 5),
    ("store:throttle", 3),
    ("store:delay,ms=300", 10),
    ("store.read:timeout,ms=500", 3),
    ("store.read:flip", 1),
    ("disk.write:full,times=2", 3),
    ("disk.read:flip", 1),
    ("memory:refuse,times=1", 3),
    ("memory.hold:flip,times=1", 3),
    ("bus.report:lost-ack", 10),
    ("bus.report:duplicate", 20),
    ("bus:drop", 5),
    ("bus:delay,ms=200", 10),
    ("ledger.append:lost-ack", 3),
    ("ledger.append:error", 3),
    ("task.begin:error,times=2", 5),
];

impl FaultPlan {
    /// A plan drawn from a seed: four to eight kinds of passing trouble, each with a probability of
    /// its own.
    pub fn from_seed(seed: u64) -> Self {
        let mut state = seed;
        let mut draw = |below: u64| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            super::mix(state) % below.max(1)
        };
        let mut left: Vec<_> = DRAWN.to_vec();
        let count = 4 + draw(5);
        let rules = (0..count).filter_map(|_| {
            let at = usize::try_from(draw(left.len() as u64)).ok()?;
            let (text, percent_max) = left.swap_remove(at);
            let mut rule: Rule = text.parse().ok()?;
            rule.ppm = 1000 + u32::try_from(draw(percent_max * 10_000 - 1000)).unwrap_or_default();
            Some(rule)
        });
        Self { seed, rules: rules.collect() }
    }

    /// How many rules there are of each site and kind, for a summary.
    pub fn summary(&self) -> BTreeMap<String, usize> {
        let mut summary = BTreeMap::new();
        for rule in &self.rules {
            *summary.entry(format!("{}:{}", rule.site, rule.kind)).or_default() += 1;
        }
        summary
    }
}

impl fmt::Display for FaultPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed={}", self.seed)?;
        self.rules.iter().try_for_each(|rule| write!(f, ";{rule}"))
    }
}

impl FromStr for FaultPlan {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text.len() > SPEC_BYTES_MAX {
            return Err(Error::invalid(format!(
                "{} bytes of faults; at most {SPEC_BYTES_MAX} are read",
                text.len()
            )));
        }
        let mut items: Vec<&str> =
            text.split(';').map(str::trim).filter(|item| !item.is_empty()).collect();
        let seed = match items.first().and_then(|item| item.strip_prefix("seed=")) {
            Some(number) => {
                let seed = number
                    .trim()
                    .parse()
                    .map_err(|_| Error::invalid(format!("seed={number}: not a whole number")))?;
                items.remove(0);
                Some(seed)
            }
            None => None,
        };
        if items.len() > RULES_MAX {
            return Err(Error::invalid(format!(
                "{} faults; at most {RULES_MAX} are taken",
                items.len()
            )));
        }
        match (seed, items.is_empty()) {
            (None, true) => Err(Error::invalid(
                "no fault is named; write SITE:KIND, or seed=N for a drawn plan",
            )),
            (Some(seed), true) => Ok(Self::from_seed(seed)),
            (seed, false) => {
                let rules: Result<Vec<Rule>> = items.into_iter().map(str::parse).collect();
                Ok(Self { seed: seed.unwrap_or_default(), rules: rules? })
            }
        }
    }
}
