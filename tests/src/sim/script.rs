//! Kept scripts: one situation each, said in words that do not depend on how seeds become
//! decisions. `scripts/*.txt` hold them; a new file there is a new script.
//!
//! ```text
//! # What it shows.
//! bug NAME                     planted, it must be found (optional)
//! coordinators N  |  workers N
//! job ID [fixed=LEN | lines] [records=N] [keys=N] [splits=N] [partitions=N] [output=NAME]
//!        [submit=MS] [cancel=MS] [unique] [overwrite] [bucket] [replica] [torn=N]
//!        [skip | quarantine] [owned] [skip-inputs] [unreadable=N] [flaky=N] [key=N]
//! samples N                    of a partition, so that more rounds of sampling are needed
//! upload KEY                   an upload that somebody else has open there
//! TRIGGER [#N]: ACTION[; ACTION]...
//! expect ID succeeded | failed | cancelled
//! cause TEXT                   why a job may fail
//! expect mark NAME
//! ```
//!
//! `key=N` sorts by the first N bytes; `overwrite=same` lets what the job makes stand there already
//! (with `partitions=1`). Triggers: `at MS`; `on record KIND` (it lands); `on append KIND` and `on
//! call VERB TEXT` (it goes out; TEXT is part of the key); `on begin PHASE` (a worker begins an
//! attempt); `on register` (it asks to be let in). `#N` means the N-th time, `#N-M` those between,
//! `#all` every time; without it the first. Actions on what goes out: `lose call`, `lose answer`,
//! `delay MS`, `refuse`, `flip` (a call of the store, once). On an attempt: `exhaust`, `bad
//! memory`, `torn split`. On a process, which is `c1`, `w1`, `caller` (whose call or attempt it is)
//! or `leader`: `kill P MS`, `pause P MS`, `stop P`, `slow P`, `usurp P`, `resign P MS`, `drain P`,
//! `cut P nats | nats-in | nats-out | store | store-answers MS`, `isolate P MS` (cut off together
//! with a minority of the servers, which answer reads as things stood). And `stale reads MS`,
//! `forbid TEXT` (objects whose key holds it cannot be read any more), `lose run TEXT` (the store
//! loses runs whose key holds it), `cancel jN` (the N-th job, from 0).

use std::collections::BTreeMap;

use super::core::{MS, Node, Way};
use super::faults::Harm;

/// A script.
#[derive(Debug, Clone, Default)]
pub struct Script {
    /// The name of its file.
    pub name: String,
    /// What it shows.
    pub about: String,
    /// The planted bug that it must find.
    pub bug: Option<String>,
    /// How many there are.
    pub coordinators: usize,
    /// How many there are.
    pub workers: usize,
    /// So few samples of a partition.
    pub samples: Option<u32>,
    /// What clients ask for.
    pub jobs: Vec<JobLine>,
    /// Keys of uploads that are somebody else's.
    pub uploads: Vec<String>,
    rules: Vec<Rule>,
    /// How jobs must end.
    pub ends: BTreeMap<String, String>,
    /// Words of the errors that jobs may have.
    pub causes: Vec<String>,
    /// Marks that must be reached.
    pub marks: Vec<String>,
}

/// A job: words and values of its line.
#[derive(Debug, Clone, Default)]
pub struct JobLine {
    /// Its id.
    pub id: String,
    words: BTreeMap<String, String>,
}

impl JobLine {
    /// Whether a word stands there.
    pub fn says(&self, word: &str) -> bool {
        self.words.contains_key(word)
    }

    /// A number, or what it is without.
    pub fn number(&self, word: &str, otherwise: u64) -> u64 {
        self.words.get(word).and_then(|text| text.parse().ok()).unwrap_or(otherwise)
    }

    /// A text.
    pub fn text(&self, word: &str) -> Option<&str> {
        self.words.get(word).map(String::as_str)
    }
}

#[derive(Debug, Clone)]
struct Rule {
    trigger: Trigger,
    /// The how-manieth times; none is every time.
    nth: Option<std::ops::RangeInclusive<u64>>,
    seen: u64,
    actions: Vec<Action>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Trigger {
    At(u64),
    Record(String),
    Append(String),
    Call(String, String),
    Begin(String),
    Register,
}

/// What is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// To what goes out.
    Fate(Fate),
    /// To an attempt.
    Harm(Harm),
    /// To a process.
    Act(Act),
}

/// What becomes of a call or an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "their names say it")]
pub enum Fate {
    LoseCall,
    LoseAnswer,
    Refuse,
    Flip,
    DelayUs(u64),
}

/// What is done to a process; the world carries it out.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "their names say it; times are in microseconds")]
pub enum Act {
    Kill(Whom, u64),
    Pause(Whom, u64),
    Stop(Whom),
    Slow(Whom),
    Usurp(Whom),
    Resign(Whom, u64),
    Drain(Whom),
    Forbid(String),
    Cut(Whom, Vec<Way>, u64),
    Isolate(Whom, u64),
    StaleReads(u64),
    LoseRun(String),
    Cancel(usize),
}

impl Act {
    /// The same, of the process whose call or attempt it is.
    #[must_use]
    pub fn of_caller(mut self, caller: Node) -> Self {
        match &mut self {
            Act::Kill(whom, _)
            | Act::Pause(whom, _)
            | Act::Resign(whom, _)
            | Act::Isolate(whom, _)
            | Act::Drain(whom)
            | Act::Stop(whom)
            | Act::Slow(whom)
            | Act::Usurp(whom)
            | Act::Cut(whom, _, _)
                if *whom == Whom::Caller =>
            {
                *whom = Whom::Node(caller);
            }
            _ => {}
        }
        self
    }
}

/// A process.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "their names say it")]
pub enum Whom {
    Named(String),
    Caller,
    Node(Node),
    Leader,
}

/// What a script is asked when something happens.
#[derive(Debug, Clone, Copy)]
#[expect(missing_docs, reason = "their names say it")]
pub enum Happens<'a> {
    Record(&'a str),
    Append(&'a str),
    Call(&'a str, &'a str),
    Begin(&'a str),
    Register,
}

impl Trigger {
    fn is_met(&self, happens: Happens<'_>) -> bool {
        match (self, happens) {
            (Trigger::Record(kind), Happens::Record(is))
            | (Trigger::Append(kind), Happens::Append(is)) => kind == is,
            (Trigger::Call(verb, text), Happens::Call(is, key)) => {
                verb == is && key.contains(text.as_str())
            }
            (Trigger::Begin(phase), Happens::Begin(is)) => phase == is,
            (Trigger::Register, Happens::Register) => true,
            _ => false,
        }
    }
}

impl Script {
    /// What is to be done now.
    pub fn meets(&mut self, happens: Happens<'_>) -> Vec<Action> {
        let mut actions = Vec::new();
        for rule in self.rules.iter_mut().filter(|rule| rule.trigger.is_met(happens)) {
            rule.seen += 1;
            if rule.nth.as_ref().is_none_or(|nth| nth.contains(&rule.seen)) {
                actions.extend(rule.actions.iter().cloned());
            }
        }
        actions
    }

    /// What is to be done at a time, in microseconds.
    pub fn timed(&self) -> Vec<(u64, Act)> {
        let acts = self.rules.iter().filter_map(|rule| match rule.trigger {
            Trigger::At(at_us) => {
                Some(rule.actions.iter().filter_map(move |action| match action {
                    Action::Act(act) => Some((at_us, act.clone())),
                    _ => None,
                }))
            }
            _ => None,
        });
        acts.flatten().collect()
    }

    /// Reads a script.
    ///
    /// # Errors
    /// The line that cannot be read, and why.
    pub fn parse(name: &str, text: &str) -> Result<Self, String> {
        let mut script =
            Self { name: name.to_owned(), coordinators: 1, workers: 1, ..Self::default() };
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            script.take_line(line).map_err(|why| format!("{name}: '{line}': {why}"))?;
        }
        if script.about.is_empty() || script.jobs.is_empty() || script.ends.is_empty() {
            return Err(format!(
                "{name}: it must say what it shows, have a job, and expect something of it"
            ));
        }
        Ok(script)
    }

    fn take_line(&mut self, line: &str) -> Result<(), String> {
        let (word, rest) = line.split_once(' ').ok_or("one word alone")?;
        match word {
            "#" => self.about = format!("{} {rest}", self.about).trim().to_owned(),
            "cause" => self.causes.push(rest.to_owned()),
            "bug" => self.bug = Some(rest.to_owned()),
            "coordinators" => self.coordinators = number(rest)? as usize,
            "samples" => self.samples = Some(number(rest)? as u32),
            "workers" => self.workers = number(rest)? as usize,
            "upload" => self.uploads.push(rest.to_owned()),
            "job" => self.jobs.push(job_line(rest)?),
            "expect" => match rest.split_once(' ') {
                Some(("mark", mark)) => self.marks.push(mark.to_owned()),
                Some((job, end)) => drop(self.ends.insert(job.to_owned(), end.to_owned())),
                None => return Err("of what?".to_owned()),
            },
            "at" | "on" => self.rules.push(rule(line)?),
            _ => return Err("not a word of scripts".to_owned()),
        }
        Ok(())
    }
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|e| format!("{text}: {e}"))
}

fn us(text: &str) -> Result<u64, String> {
    Ok(number(text)? * MS)
}

fn job_line(text: &str) -> Result<JobLine, String> {
    const WORDS: [&str; 21] = [
        "key",
        "torn",
        "fixed",
        "lines",
        "records",
        "keys",
        "splits",
        "partitions",
        "output",
        "submit",
        "cancel",
        "unique",
        "overwrite",
        "bucket",
        "replica",
        "skip",
        "quarantine",
        "owned",
        "skip-inputs",
        "unreadable",
        "flaky",
    ];
    let mut words = text.split(' ');
    let mut line =
        JobLine { id: words.next().unwrap_or_default().to_owned(), ..JobLine::default() };
    for word in words {
        let (word, value) = word.split_once('=').unwrap_or((word, ""));
        if !WORDS.contains(&word) {
            return Err(format!("{word}: not a word of jobs"));
        }
        line.words.insert(word.to_owned(), value.to_owned());
    }
    Ok(line)
}

fn rule(line: &str) -> Result<Rule, String> {
    let (trigger, actions) = line.split_once(": ").ok_or("no action")?;
    let (trigger, nth) = match trigger.rsplit_once(" #") {
        Some((trigger, "all")) => (trigger, None),
        Some((trigger, nth)) => {
            let (first, last) = nth.split_once('-').unwrap_or((nth, nth));
            (trigger, Some(number(first)?..=number(last)?))
        }
        None => (trigger, Some(1..=1)),
    };
    let words: Vec<&str> = trigger.split(' ').collect();
    let trigger = match words.as_slice() {
        ["at", ms] => Trigger::At(us(ms)?),
        ["on", "record", kind] => Trigger::Record((*kind).to_owned()),
        ["on", "append", kind] => Trigger::Append((*kind).to_owned()),
        ["on", "call", verb, text] => Trigger::Call((*verb).to_owned(), (*text).to_owned()),
        ["on", "register"] => Trigger::Register,
        ["on", "begin", phase] => Trigger::Begin((*phase).to_owned()),
        _ => return Err("not a trigger".to_owned()),
    };
    let actions: Result<Vec<Action>, String> = actions.split("; ").map(action).collect();
    Ok(Rule { trigger, nth, seen: 0, actions: actions? })
}

fn action(text: &str) -> Result<Action, String> {
    let words: Vec<&str> = text.split(' ').collect();
    let whom = |name: &str| match name {
        "caller" => Whom::Caller,
        "leader" => Whom::Leader,
        name => Whom::Named(name.to_owned()),
    };
    Ok(match words.as_slice() {
        ["lose", "call"] => Action::Fate(Fate::LoseCall),
        ["lose", "answer"] => Action::Fate(Fate::LoseAnswer),
        ["refuse"] => Action::Fate(Fate::Refuse),
        ["flip"] => Action::Fate(Fate::Flip),
        ["delay", ms] => Action::Fate(Fate::DelayUs(us(ms)?)),
        ["exhaust"] => Action::Harm(Harm { exhausts: true, ..Harm::default() }),
        ["bad", "memory"] => Action::Harm(Harm { bad_memory: true, ..Harm::default() }),
        ["torn", "split"] => Action::Harm(Harm { torn_split: true, ..Harm::default() }),
        ["kill", name, ms] => Action::Act(Act::Kill(whom(name), us(ms)?)),
        ["pause", name, ms] => Action::Act(Act::Pause(whom(name), us(ms)?)),
        ["stop", name] => Action::Act(Act::Stop(whom(name))),
        ["slow", name] => Action::Act(Act::Slow(whom(name))),
        ["resign", name, ms] => Action::Act(Act::Resign(whom(name), us(ms)?)),
        ["drain", name] => Action::Act(Act::Drain(whom(name))),
        ["forbid", text] => Action::Act(Act::Forbid((*text).to_owned())),
        ["usurp", name] => Action::Act(Act::Usurp(whom(name))),
        ["isolate", name, ms] => Action::Act(Act::Isolate(whom(name), us(ms)?)),
        ["cut", name, way, ms] => Action::Act(Act::Cut(whom(name), ways(way)?, us(ms)?)),
        ["lose", "run", text] => Action::Act(Act::LoseRun((*text).to_owned())),
        ["cancel", job] => Action::Act(Act::Cancel(number(job.trim_start_matches('j'))? as usize)),
        ["stale", "reads", ms] => Action::Act(Act::StaleReads(us(ms)?)),
        _ => return Err(format!("{text}: not an action")),
    })
}

fn ways(text: &str) -> Result<Vec<Way>, String> {
    Ok(match text {
        "nats" => vec![Way::NatsIn, Way::NatsOut],
        "nats-in" => vec![Way::NatsIn],
        "nats-out" => vec![Way::NatsOut],
        "store" => vec![Way::StoreIn, Way::StoreOut],
        "store-answers" => vec![Way::StoreIn],
        _ => return Err(format!("{text}: not a way")),
    })
}

/// Plays a script, and says what of its expectations is not so.
///
/// # Errors
/// The violation, or what was expected and did not come.
pub fn play(script: &Script, traces: bool) -> (super::RunReport, Result<(), String>) {
    let report = super::run(&super::Setting {
        seed: 1,
        traces,
        weights: Some(super::faults::Weights::default()),
        fixed: true,
        crash_at: None,
        script: Some(script.clone()),
    });
    let kept = judge(script, &report);
    (report, kept)
}

fn judge(script: &Script, report: &super::RunReport) -> Result<(), String> {
    if let Some(violation) = &report.violation {
        return Err(violation.clone());
    }
    for (job, end) in &script.ends {
        let ended = report.ends.get(job).map_or("unknown", String::as_str);
        if ended != end {
            return Err(format!("job {job} is {ended}, not {end}"));
        }
    }
    match script.marks.iter().find(|mark| !report.reach.contains_key(mark.as_str())) {
        Some(mark) => Err(format!("'{mark}' was not reached: {:?}", report.reach)),
        None => Ok(()),
    }
}

/// All kept scripts.
///
/// # Errors
/// The folder, or a script, that cannot be read.
pub fn kept() -> Result<Vec<Script>, String> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/sim/scripts");
    let read = |e: std::io::Error| format!("{}: {e}", folder.display());
    let mut scripts = Vec::new();
    for entry in std::fs::read_dir(&folder).map_err(read)? {
        let path = entry.map_err(read)?.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        scripts.push(Script::parse(&name, &std::fs::read_to_string(&path).map_err(read)?)?);
    }
    scripts.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(scripts)
}
