//! Many owners of one OUTPUT: runs of one machine and of others that claim it, write parts, die,
//! sleep and wake, over a store that is slow, fails and answers late. What decides and does is the
//! program's own (`muster_platform::claim`); what is played here is a run around it: scratch,
//! parts,
//! `_SUCCESS`, clean-up.
//!
//! **Invariants**: whoever holds OUTPUT is alone, but for owners from whom it was taken; it is
//! taken from none that lives and shows it; nothing in OUTPUT is changed by anybody else, and no
//! scratch of an owner that lives is removed; a `_SUCCESS` stands beside the parts that it names
//! and no others of those names. In the end one more run finds its turn within a bound, and leaves
//! its own result and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt;

use muster_platform::adapters::memory::MemoryBlobs;
use muster_platform::buffer::BufferPool;
use muster_platform::claim::judge::Known;
use muster_platform::claim::{Claims, Owner, Process};
use muster_platform::clock::{Clock, Pause};
use muster_platform::config::{Config, Profile};
use muster_platform::retry::Retry;
use muster_platform::store::{
    Access, BlobMeta, BlobUrl, Blobs, Completed, OpenUpload, PartAt, Scheme,
};
use muster_platform::stores::Stores;
use muster_platform::survey::{Survey, Wanted};
use muster_protocol::ids::JobId;
use muster_protocol::names;
use muster_protocol::{Error, Result};

use super::dice::Dice;
use super::exec::{Executor, Flag, lock};

/// What many seeds together must have met with.
pub const MARKS: [&str; 10] = [
    "a run has succeeded",
    "refused by an owner that lives",
    "taken from a process that is gone",
    "taken from an owner that was silent",
    "an owner woke and had lost it",
    "what a dead run had left was removed",
    "killed while it removed what another had left",
    "killed while it published",
    "fell asleep while it published",
    "two drew at once",
];

const MS: u64 = 1000;
/// Runs of one seed, at most.
const OWNERS_MAX: u64 = 5;
/// No seed takes longer.
const LIMIT_US: u64 = 600_000 * MS;
/// Nothing more goes wrong from here on, but for what is on its way.
const CALM_US: u64 = 60_000 * MS;
/// Who sleeps for so long may be taken for dead: the bound, less what passes between two renewals
/// and on the way.
const SILENT_US: u64 = 2500 * MS;
/// What passes between a look at the claims and what follows from it.
const LOOKS_US: u64 = 3000 * MS;
const OUTPUT: &str = "out";

/// What one seed came to.
#[derive(Debug, Default)]
pub struct Report {
    /// What was broken.
    pub violation: Option<String>,
    /// What was met with.
    pub reach: BTreeSet<&'static str>,
    /// What happened, one line each.
    pub trace: Vec<String>,
}

/// Something at a time. `life` tells whether the process that it belongs to is still that one.
enum Event {
    Start(usize),
    Kill(usize),
    Sleep(usize, u64),
    /// A call reaches the store.
    Apply(usize, Box<dyn FnOnce() + Send>),
    Wake(usize, Arc<Flag>),
}

/// Where a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    NotBegun,
    Claims,
    Holds,
    Publishes,
    Ended,
}

struct Run {
    job: JobId,
    deployment: String,
    /// Others of this machine see its process.
    here: bool,
    overwrites: bool,
    alive: bool,
    stage: Stage,
    /// Its claim is known to it to be its own.
    holds: bool,
    overruled: bool,
    asleep_until_us: u64,
    /// How long it slept.
    slept_us: u64,
    succeeded: bool,
    error: Option<String>,
}

struct World {
    now_us: u64,
    sequence: u64,
    queue: BTreeMap<(u64, u64), Event>,
    dice: Dice,
    faults: Faults,
    runs: Vec<Run>,
    store: Arc<MemoryBlobs>,
    report: Report,
    traces: bool,
}

/// Weights of one seed.
struct Faults {
    error: u32,
    kill: u32,
    sleep: u32,
    slow_us: u64,
}

type Shared = Arc<Mutex<World>>;

impl World {
    fn after(&mut self, pause_us: u64, event: Event) {
        self.sequence += 1;
        self.queue.insert((self.now_us + pause_us, self.sequence), event);
    }

    fn line(&mut self, text: impl FnOnce() -> String) {
        if self.traces {
            let line = format!("{:>10} {}", self.now_us / MS, text());
            self.report.trace.push(line);
        }
    }

    fn violate(&mut self, why: String) {
        self.line(|| format!("VIOLATION {why}"));
        self.report.violation.get_or_insert(why);
    }

    fn mark(&mut self, mark: &'static str) {
        self.report.reach.insert(mark);
    }

    /// An owner that is alone by right.
    fn holders(&self) -> impl Iterator<Item = usize> {
        (0..self.runs.len()).filter(|at| {
            let run = &self.runs[*at];
            run.alive && run.holds && !run.overruled
        })
    }

    /// A call that changes something is about to be applied.
    fn check_change(&mut self, by: usize, change: &Change) {
        let key = change.key().to_owned();
        let Some(name) = key.strip_prefix("out/") else { return };
        let (scratch, claim) =
            (name.strip_prefix("_muster/d"), name.strip_prefix("_muster/claims/"));
        if let Some(id) = claim.and_then(names::claim_of) {
            return self.note_claim(by, &id.to_string(), change);
        }
        if let Some(of) =
            scratch.and_then(|rest| rest.split('/').next()).and_then(|of| of.parse::<usize>().ok())
        {
            let theirs = &self.runs[of];
            if matches!(change, Change::Delete(_)) && of != by && theirs.alive && !theirs.overruled
            {
                self.violate(format!("run {by} removes {key} of run {of}, which lives"));
            }
            return;
        }
        if !self.runs[by].alive {
            return;
        }
        let others: Vec<usize> = self.holders().filter(|at| *at != by).collect();
        if let Some(other) = others.first() {
            self.violate(format!("run {by} changes {key}, which run {other} holds"));
        }
    }

    fn note_claim(&mut self, by: usize, id: &str, change: &Change) {
        let Change::Put(_, bytes) = change else { return };
        let Ok(text) = serde_json::from_slice::<serde_json::Value>(bytes) else { return };
        if text["ticket"] == 0 {
            // It stands back in line, if it held OUTPUT before.
            self.runs[by].holds = false;
        }
        let overruled: Vec<String> = text["overruled"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|of| of["id"].as_str().map(str::to_owned))
            .collect();
        let drawing = (0..self.runs.len())
            .filter(|at| self.runs[*at].stage == Stage::Claims && self.runs[*at].alive);
        if drawing.count() > 1 {
            self.mark("two drew at once");
        }
        for at in 0..self.runs.len() {
            let name = format!("{}.{}", self.runs[at].deployment, self.runs[at].job);
            if name == id || !overruled.contains(&name) || self.runs[at].overruled {
                continue;
            }
            self.runs[at].overruled = true;
            let run = &self.runs[at];
            // It slept for about as long as the bound, and what was seen of it may be older than
            // its waking.
            let silent = run.slept_us > SILENT_US && self.now_us < run.asleep_until_us + LOOKS_US;
            let both_here = run.here && self.runs[by].here;
            let lawful = !run.alive || run.stage == Stage::Ended || (!both_here && silent);
            let (alive, stage) = (run.alive, run.stage);
            if !lawful {
                self.violate(format!(
                    "run {by} takes OUTPUT from run {at}, which lives ({stage:?})"
                ));
            }
            self.mark(if alive {
                "taken from an owner that was silent"
            } else if both_here {
                "taken from a process that is gone"
            } else {
                "taken from an owner that was silent"
            });
        }
    }

    /// After each change of OUTPUT: whoever sees a `_SUCCESS` must find what it names.
    fn check_whole(&mut self) {
        let read = |key: &str| {
            let meta = self.store.head(key).now_or_never()?.ok()?;
            self.store.read(key, 0..meta.bytes, Access::Cached).now_or_never()?.ok()
        };
        let Some(success) = read("out/_SUCCESS") else { return };
        let text = String::from_utf8_lossy(&success).into_owned();
        let Ok(manifest) = serde_json::from_str::<serde_json::Value>(&text) else { return };
        let whose = manifest["job"].as_str().unwrap_or_default().to_owned();
        let parts = manifest["parts"].as_array().cloned().unwrap_or_default();
        for part in parts {
            let name = part["name"].as_str().unwrap_or_default();
            let stands = read(&format!("out/{name}"))
                .map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
            if stands.as_deref() != Some(&content(&whose, name)) {
                return self
                    .violate(format!("_SUCCESS of {whose} stands beside {name} with {stands:?}"));
            }
        }
    }
}

fn content(job: &str, name: &str) -> String {
    format!("{name} of {job}")
}

/// What a call changes.
#[derive(Debug, Clone)]
enum Change {
    Nothing,
    Put(String, Bytes),
    Delete(String),
}

impl Change {
    fn key(&self) -> &str {
        match self {
            Self::Nothing => "",
            Self::Put(key, _) | Self::Delete(key) => key,
        }
    }
}

/// The store as one run sees it.
struct SimBlobs {
    shared: Shared,
    at: usize,
}

impl SimBlobs {
    async fn call<T: Send + 'static>(
        &self,
        change: Change,
        work: impl FnOnce(&MemoryBlobs) -> Option<Result<T>> + Send + 'static,
    ) -> Result<T> {
        let (slot, flag) = (Arc::new(Mutex::new(None)), Arc::new(Flag::default()));
        {
            let world = &mut *lock(&self.shared);
            let (error, slow_us) = (world.faults.error, world.faults.slow_us);
            let (there_us, back_us) =
                (world.dice.within(200, slow_us), world.dice.within(200, slow_us));
            let calm = world.now_us >= CALM_US;
            let (before, after) =
                (!calm && world.dice.chance(error), !calm && world.dice.chance(error));
            let (shared, slot, flag, at) =
                (self.shared.clone(), slot.clone(), flag.clone(), self.at);
            let apply = Box::new(move || {
                let world = &mut *lock(&shared);
                let lost = || Error::retry("injected: no answer");
                let done = if before {
                    Err(lost())
                } else {
                    world.check_change(at, &change);
                    let store = world.store.clone();
                    let done = work(&store)
                        .unwrap_or_else(|| Err(Error::bug("a store in memory answers at once")));
                    if !matches!(change, Change::Nothing) {
                        world.line(|| format!("run {at}: {}", brief(&change)));
                        world.check_whole();
                    }
                    if after { Err(lost()) } else { done }
                };
                *lock(&slot) = Some(done);
                world.after(back_us, Event::Wake(at, flag));
            });
            world.after(there_us, Event::Apply(self.at, apply));
        }
        flag.wait().await;
        let done = lock(&slot).take();
        done.unwrap_or_else(|| Err(Error::bug("an answer without a call")))
    }
}

fn brief(change: &Change) -> String {
    match change {
        Change::Nothing => String::new(),
        Change::Put(key, bytes) => {
            format!("writes {key} {}", String::from_utf8_lossy(bytes).trim())
        }
        Change::Delete(key) => format!("deletes {key}"),
    }
}

#[async_trait]
impl Blobs for SimBlobs {
    async fn list(&self, prefix: &str, limit: usize) -> Result<Vec<BlobMeta>> {
        let prefix = prefix.to_owned();
        self.call(Change::Nothing, move |store| store.list(&prefix, limit).now_or_never()).await
    }

    async fn survey(&self, _wanted: &Wanted) -> Result<Survey> {
        Err(Error::bug("runs here read no input"))
    }

    async fn head(&self, key: &str) -> Result<BlobMeta> {
        let key = key.to_owned();
        self.call(Change::Nothing, move |store| store.head(&key).now_or_never()).await
    }

    async fn read(&self, key: &str, range: Range<u64>, access: Access) -> Result<Bytes> {
        let key = key.to_owned();
        self.call(Change::Nothing, move |store| store.read(&key, range, access).now_or_never())
            .await
    }

    async fn put(&self, key: &str, bytes: Bytes) -> Result<()> {
        let (change, key) = (Change::Put(key.to_owned(), bytes.clone()), key.to_owned());
        self.call(change, move |store| store.put(&key, bytes).now_or_never()).await
    }

    async fn open_upload(&self, _key: &str) -> Result<String> {
        Err(Error::bug("runs here write whole objects"))
    }

    async fn upload_part(
        &self,
        _key: &str,
        _upload: &str,
        _at: PartAt,
        _data: Bytes,
    ) -> Result<String> {
        Err(Error::bug("runs here write whole objects"))
    }

    async fn complete_upload(
        &self,
        _key: &str,
        _upload: &str,
        _tags: &[String],
        _bytes: u64,
        _sync: bool,
    ) -> Result<Completed> {
        Err(Error::bug("runs here write whole objects"))
    }

    async fn abort_upload(&self, _key: &str, _upload: &str) -> Result<()> {
        Ok(())
    }

    async fn list_uploads(&self, _prefix: &str, _limit: usize) -> Result<Vec<OpenUpload>> {
        Ok(Vec::new())
    }

    async fn delete(&self, key: &str) -> Result<()> {
        let (change, key) = (Change::Delete(key.to_owned()), key.to_owned());
        self.call(change, move |store| store.delete(&key).now_or_never()).await
    }

    async fn prune(&self, _prefix: &str) -> Result<()> {
        Ok(())
    }
}

/// One run's clock. All go alike: clocks of two owners are never compared, so a skew would change
/// nothing.
struct SimClock {
    shared: Shared,
    at: usize,
}

impl Clock for SimClock {
    fn now_ms(&self) -> u64 {
        lock(&self.shared).now_us / MS
    }

    fn unix_ms(&self) -> u64 {
        1_700_000_000_000 + self.now_ms()
    }

    fn random(&self) -> u64 {
        lock(&self.shared).dice.next()
    }

    fn pause(&self, ms: u64) -> Pause {
        let flag = Arc::new(Flag::default());
        lock(&self.shared).after(ms * MS, Event::Wake(self.at, flag.clone()));
        Box::pin(async move { flag.wait().await })
    }
}

/// What a run has at hand.
#[derive(Clone)]
struct Hands {
    shared: Shared,
    at: usize,
    stores: Stores,
    clock: Arc<SimClock>,
    claims: Claims,
    output: BlobUrl,
    job: JobId,
    deployment: String,
    overwrites: bool,
}

impl Hands {
    fn stage(&self, stage: Stage) {
        let world = &mut *lock(&self.shared);
        world.runs[self.at].stage = stage;
        world.line(|| format!("run {}: {stage:?}", self.at));
    }

    /// A run from its beginning to its end.
    async fn run(self) {
        self.stage(Stage::Claims);
        let ended = self.sort().await;
        let world = &mut *lock(&self.shared);
        let at = self.at;
        world.line(|| format!("run {at} ends: {ended:?}"));
        let run = &mut world.runs[at];
        run.stage = Stage::Ended;
        run.holds = false;
        match ended {
            Ok(()) => {
                run.succeeded = true;
                world.mark("a run has succeeded");
            }
            Err(error) => {
                let marks = [
                    ("is held by", "refused by an owner that lives"),
                    ("has lost its claim", "an owner woke and had lost it"),
                ];
                let met = marks
                    .into_iter()
                    .filter(|(words, _)| error.message.contains(words))
                    .map(|(_, mark)| mark);
                met.for_each(|mark| world.mark(mark));
                world.runs[at].error = Some(error.message);
            }
        }
    }

    fn holds(&self, holds: bool) {
        lock(&self.shared).runs[self.at].holds = holds;
    }

    /// It has had its turn.
    fn has_output(&self) {
        let world = &mut *lock(&self.shared);
        let others: Vec<usize> = world.holders().filter(|at| *at != self.at).collect();
        // One that slept since it had its turn, and lost it, finds that out before it changes
        // anything.
        let overruled = world.runs[self.at].overruled;
        if let Some(other) = others.first().filter(|_| !overruled) {
            let text = format!("run {} has OUTPUT, and run {other} too", self.at);
            world.violate(text);
        }
        world.runs[self.at].holds = true;
    }

    async fn sort(&self) -> Result<()> {
        self.claims.take(&self.stores, &self.output, &self.job, true, &()).await?;
        self.has_output();
        self.stage(Stage::Holds);
        let worked = self.work().await;
        self.holds(false);
        let cleaned = self.clean().await;
        worked.and(cleaned)
    }

    async fn work(&self) -> Result<()> {
        let store = self.stores.open(&self.output).await?;
        let before = contents(&store).await?;
        if !before.is_empty() && !self.overwrites {
            return Err(Error::invalid("OUTPUT is not empty"));
        }
        let scratch = self.output.join(&format!("_muster/{}/{}", self.deployment, self.job));
        let (runs, parts) = {
            let world = &mut *lock(&self.shared);
            (world.dice.within(1, 3), world.dice.within(1, 4))
        };
        for run in 0..runs {
            store
                .put(scratch.join(&format!("run-{run}")).key(), Bytes::from_static(b"run"))
                .await?;
            self.work_for_a_while().await;
        }
        let names: Vec<String> =
            (0..parts).map(|part| names::part_name(part as u32, "txt")).collect();
        let manifest = manifest(&self.job, &names);
        let kept = self.stores.put_ref(&scratch.join("manifest"), manifest.clone()).await?;
        let held =
            self.claims.confirm(&self.stores, (&self.output, &self.job), Some(&kept), &()).await?;
        self.has_output();
        self.publishes();
        let success = self.output.join(names::SUCCESS);
        // As the program looks once more: what has come since is somebody's who published while
        // this one slept.
        let since = contents(&store).await?;
        let foreign = since.iter().filter(|stands| !before.contains(stands));
        if foreign.into_iter().any(|(key, _)| !self.overwrites || key == success.key()) {
            return Err(Error::invalid("something has come into OUTPUT"));
        }
        if since.iter().any(|(key, _)| key == success.key()) {
            held.check().await?;
            store.delete(success.key()).await?;
        }
        for name in &names {
            // As long as a large part takes: whoever looked before it must look again.
            self.work_for_a_while().await;
            held.check().await?;
            store
                .put(self.output.join(name).key(), content(self.job.as_str(), name).into())
                .await?;
        }
        self.work_for_a_while().await;
        held.check().await?;
        store.put(success.key(), manifest.into()).await?;
        let replaced =
            |key: &String| *key != success.key() && !names.iter().any(|name| key.ends_with(name));
        for (key, version) in before.iter().filter(|(key, _)| replaced(key)) {
            held.check().await?;
            match store.head(key).await {
                Ok(meta) if meta.version == *version => store.delete(key).await?,
                _ => {}
            }
        }
        Ok(())
    }

    async fn work_for_a_while(&self) {
        let pause_ms = lock(&self.shared).dice.within(1, 1500);
        self.clock.pause(pause_ms).await;
    }

    /// It is known to hold OUTPUT, and begins to change it: a sleep from here on is the one that
    /// may do harm.
    fn publishes(&self) {
        self.stage(Stage::Publishes);
        let world = &mut *lock(&self.shared);
        if world.now_us < CALM_US && world.dice.chance(world.faults.sleep) {
            let (pause_us, sleep_us) =
                (world.dice.within(0, 3000 * MS), world.dice.within(100 * MS, 12_000 * MS));
            world.after(pause_us, Event::Sleep(self.at, sleep_us));
        }
    }

    async fn clean(&self) -> Result<()> {
        let store = self.stores.open(&self.output).await?;
        let scratch = self.output.join(&format!("_muster/{}/{}", self.deployment, self.job));
        for meta in store.list(scratch.key(), 1000).await? {
            store.delete(&meta.key).await?;
        }
        self.claims.release(&self.stores, &self.output, &self.job, &()).await
    }

    /// As a leader does beside all else.
    async fn renew(self) {
        loop {
            self.clock.pause(self.claims.renew_ms()).await;
            if lock(&self.shared).runs[self.at].stage == Stage::Ended {
                return;
            }
            // It is tried again with the next.
            if let Err(error) = self.claims.renew(&self.stores, &self.output, &self.job).await {
                lock(&self.shared).line(|| format!("run {}: {error}", self.at));
            }
        }
    }
}

/// What stands in OUTPUT, with its versions.
async fn contents(store: &Arc<dyn Blobs>) -> Result<Vec<(String, String)>> {
    let listed = store.list(OUTPUT, 1000).await?;
    let content = listed.into_iter().filter(|meta| !meta.key.starts_with("out/_muster"));
    Ok(content.map(|meta| (meta.key, meta.version)).collect())
}

fn manifest(job: &JobId, parts: &[String]) -> Vec<u8> {
    let parts = parts.iter().map(|name| {
        let bytes = content(job.as_str(), name);
        let checksum = format!("{:016x}", muster_protocol::wire::digest(bytes.as_bytes()));
        serde_json::json!({
            "name": name, "bytes": bytes.len(), "checksum": checksum, "records": 1,
            "first_key": "", "last_key": "", "key_encoding": "text",
            "hash": "0000000000000000",
        })
    });
    let sums = serde_json::json!({ "records": 0, "bytes": 0, "hash": "0000000000000000" });
    let sort = muster_kernel::spec::SortSpec::new(muster_kernel::format::Format::lines(b'\n'));
    let whole = serde_json::json!({
        "version": 2, "job": job.as_str(), "sort": sort, "parts": parts.collect::<Vec<_>>(),
        "sums": sums, "input": sums, "dropped": sums, "retries": 0, "repeated_tasks": 0,
        "times": { "plan_ms": 0, "sample_ms": 0, "sort_ms": 0, "merge_ms": 0, "commit_ms": 0 },
    });
    serde_json::to_vec(&whole).unwrap_or_default()
}

/// Plays one seed.
pub fn run(seed: u64, traces: bool) -> Report {
    let mut dice = Dice::of(seed, "claims");
    let faults = Faults {
        error: dice.pick(&[0, 0, 20_000, 100_000]),
        kill: dice.pick(&[0, 300_000, 700_000]),
        sleep: dice.pick(&[0, 300_000, 700_000]),
        slow_us: dice.pick(&[2 * MS, 20 * MS, 120 * MS]),
    };
    let store = Arc::new(MemoryBlobs::default());
    let all_here = dice.chance(400_000);
    let count = dice.within(2, OWNERS_MAX) as usize;
    let mut runs = Vec::new();
    for at in 0..=count {
        runs.push(Run {
            job: format!("j{at}").parse().unwrap_or_else(|e| unreachable!("{e}")),
            deployment: format!("d{at}"),
            here: all_here || dice.chance(500_000),
            overwrites: at == count || dice.chance(600_000),
            alive: true,
            stage: Stage::NotBegun,
            holds: false,
            overruled: false,
            asleep_until_us: 0,
            slept_us: 0,
            succeeded: false,
            error: None,
        });
    }
    let together = dice.chance(500_000);
    let mut world = World {
        now_us: 0,
        sequence: 0,
        queue: BTreeMap::new(),
        dice,
        faults,
        runs,
        store,
        report: Report::default(),
        traces,
    };
    for at in 0..count {
        let begins_us =
            if together { world.dice.within(0, 5 * MS) } else { world.dice.within(0, 15_000 * MS) };
        world.after(begins_us, Event::Start(at));
        if world.dice.chance(world.faults.kill) {
            let pause_us = begins_us + world.dice.within(0, 6000 * MS);
            world.after(pause_us, Event::Kill(at));
        }
        if world.dice.chance(world.faults.sleep) {
            let pause_us = begins_us + world.dice.within(0, 4000 * MS);
            let sleep_us = world.dice.within(100 * MS, 12_000 * MS);
            world.after(pause_us, Event::Sleep(at, sleep_us));
        }
    }
    // When all have ended or died, one more finds OUTPUT free within the bound, and leaves nothing
    // of others.
    world.after(2 * CALM_US, Event::Start(count));
    let shared = Arc::new(Mutex::new(world));
    play(&shared, count);
    let world = &mut *lock(&shared);
    judge_end(world, count);
    std::mem::take(&mut world.report)
}

fn play(shared: &Shared, count: usize) {
    let mut executor = Executor::default();
    loop {
        let event = {
            let world = &mut *lock(shared);
            if world.report.violation.is_some() || world.runs[count].stage == Stage::Ended {
                return;
            }
            let Some(((at_us, _), event)) = world.queue.pop_first() else { return };
            world.now_us = at_us;
            if at_us > LIMIT_US {
                return world.violate("liveness: it does not end".to_owned());
            }
            event
        };
        match event {
            Event::Start(at) => start(shared, &mut executor, at),
            Event::Kill(at) => kill(shared, &mut executor, at),
            Event::Sleep(at, sleep_us) => {
                let world = &mut *lock(shared);
                if world.runs[at].alive && world.runs[at].stage != Stage::Ended {
                    // Of two sleeps with hardly a moment between them nobody sees that moment.
                    let (now_us, run) = (world.now_us, &mut world.runs[at]);
                    let again = run.slept_us > 0 && now_us < run.asleep_until_us + LOOKS_US;
                    run.slept_us = if again { run.slept_us + sleep_us } else { sleep_us };
                    run.asleep_until_us = run.asleep_until_us.max(now_us + sleep_us);
                    if world.runs[at].stage == Stage::Publishes {
                        world.mark("fell asleep while it published");
                    }
                    world.line(|| format!("run {at} sleeps for {} ms", sleep_us / MS));
                }
            }
            Event::Apply(at, apply) => {
                // What a process of this machine has asked of its file system is done, or is not,
                // when the process is gone.
                let dropped = {
                    let run = &lock(shared).runs[at];
                    !run.alive && run.here
                };
                if !dropped {
                    apply();
                }
            }
            Event::Wake(at, flag) => {
                let world = &mut *lock(shared);
                let until_us = world.runs[at].asleep_until_us;
                if until_us > world.now_us {
                    let pause_us = until_us - world.now_us;
                    world.after(pause_us, Event::Wake(at, flag));
                } else {
                    flag.set();
                }
            }
        }
        executor.run();
    }
}

fn start(shared: &Shared, executor: &mut Executor, at: usize) {
    let hands = {
        let (job, deployment, here, overwrites) = {
            let run = &lock(shared).runs[at];
            (run.job.clone(), run.deployment.clone(), run.here, run.overwrites)
        };
        let config = Config::profile(Profile::Testing).unwrap_or_else(|e| unreachable!("{e}"));
        let clock = Arc::new(SimClock { shared: shared.clone(), at });
        let retry = Retry::new(config.retry.clone(), clock.clone());
        let stores = Stores::new(BufferPool::new(0), &config.store).retrying(retry);
        let blobs = Arc::new(SimBlobs { shared: shared.clone(), at });
        stores.insert(Scheme::Memory, blobs).now_or_never();
        let owner = Owner {
            host: "h".to_owned(),
            process: Process {
                pid: at as u32,
                start: 1,
                boot: u8::from(here).to_string(),
                namespace: String::new(),
            },
            run_here: true,
            ..Owner::default()
        };
        let (seen, said) = (shared.clone(), shared.clone());
        let look = move |own: &Process, other: &Process| {
            let world = lock(&seen);
            match world.runs.get(other.pid as usize) {
                Some(run) if own.boot == "1" && other.boot == "1" => {
                    // A process that has ended is gone too.
                    let there = run.alive && run.stage != Stage::Ended;
                    if there { Known::There } else { Known::Gone }
                }
                _ => Known::Unknown,
            }
        };
        let say = move |_: &str| lock(&said).mark("what a dead run had left was removed");
        let id = deployment.parse().unwrap_or_else(|e| unreachable!("{e}"));
        let claims = Claims::new(id, owner, look, say, clock.clone(), config.claim.clone());
        let output = format!("memory:///{OUTPUT}").parse().unwrap_or_else(|e| unreachable!("{e}"));
        Hands {
            shared: shared.clone(),
            at,
            stores,
            clock,
            claims,
            output,
            job,
            deployment,
            overwrites,
        }
    };
    executor.spawn(at, hands.clone().renew());
    executor.spawn(at, hands.run());
}

fn kill(shared: &Shared, executor: &mut Executor, at: usize) {
    let world = &mut *lock(shared);
    if world.runs[at].stage == Stage::Ended {
        return;
    }
    executor.kill(at);
    world.runs[at].alive = false;
    if world.runs[at].stage == Stage::Publishes {
        world.mark("killed while it published");
    }
    let dead_before = (0..world.runs.len()).any(|other| other != at && world.runs[other].overruled);
    if world.runs[at].stage == Stage::Claims && dead_before {
        world.mark("killed while it removed what another had left");
    }
    world.line(|| format!("run {at} is killed"));
}

fn judge_end(world: &mut World, last: usize) {
    if world.report.violation.is_some() {
        return;
    }
    if !world.runs[last].succeeded {
        let why = world.runs[last].error.clone().unwrap_or_default();
        return world.violate(format!("liveness: the last run did not succeed: {why}"));
    }
    for at in 0..last {
        let run = &world.runs[at];
        if run.alive && run.stage != Stage::Ended && run.stage != Stage::NotBegun {
            let stage = run.stage;
            return world.violate(format!("liveness: run {at} has not ended: {stage:?}"));
        }
    }
    let listed = world
        .store
        .list(OUTPUT, 1000)
        .now_or_never()
        .and_then(|listed| listed.ok())
        .unwrap_or_default();
    let keys: Vec<String> = listed.into_iter().map(|meta| meta.key).collect();
    if let Some(key) = keys.iter().find(|key| key.starts_with("out/_muster")) {
        return world.violate(format!("{key} is left in OUTPUT"));
    }
    let job = world.runs[last].job.clone();
    for key in keys.iter().filter(|key| *key != "out/_SUCCESS") {
        let stands =
            world.store.head(key).now_or_never().and_then(|meta| meta.ok()).map(|meta| meta.bytes);
        let name = key.rsplit('/').next().unwrap_or_default();
        if stands != Some(content(job.as_str(), name).len() as u64) {
            return world.violate(format!("{key} is left beside the last run's parts"));
        }
    }
}

/// Seeds, until one is broken.
pub fn many(from: u64, seeds: u64) -> (BTreeMap<&'static str, u64>, Option<(u64, String)>) {
    let mut reach = BTreeMap::new();
    for seed in from..from.saturating_add(seeds) {
        let report = run(seed, false);
        report.reach.iter().for_each(|mark| *reach.entry(*mark).or_insert(0) += 1);
        if let Some(violation) = report.violation {
            return (reach, Some((seed, violation)));
        }
    }
    (reach, None)
}

/// Within how many seeds a planted bug is found, and by what.
#[cfg(feature = "planted-bugs")]
pub fn find(bug: muster_protocol::planted::Bug, seeds_max: u64) -> Option<(u64, String)> {
    muster_protocol::planted::plant(Some(bug));
    let (_, found) = many(0, seeds_max);
    muster_protocol::planted::plant(None);
    found.map(|(seed, violation)| (seed + 1, violation))
}
