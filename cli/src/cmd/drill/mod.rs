//! `muster drill`: a pool of real processes on this machine sorts the same data twice, once in
//! peace and once while it is killed, stopped, cut off and fed with faults; then the proof that
//! both came to the same bytes.
//!
//! What happens follows from the seed and from the progress of the job, not from the clock. Only
//! the processes of the drill inject faults: they get settings of their own.

mod link;
mod pool;
mod proof;
mod schedule;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use muster_platform::adapters::events::{Entry, Events};
use muster_platform::adapters::nats;
use muster_platform::buffer::BufferPool;
use muster_platform::clock::{Clock, SystemClock};
use muster_platform::config::{self, Config};
use muster_platform::store::BlobUrl;
use muster_platform::stores::Stores;
use muster_protocol::api::{JobState, JobStatus};
use muster_protocol::ids::JobId;
use muster_protocol::{Error, Result};
use rustix::process::Signal;
use serde::Serialize;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use self::pool::{Pool, Setting};
use self::proof::{Claim, Evidence};
use self::schedule::{Deed, Victim, WHOLE, What};
use crate::args::{DrillArgs, LogFormat};
use crate::client::Api;
use crate::cmd;
use crate::exit::Exit;
use crate::local::server::PrivateServer;
use crate::output;

/// Tasks of a phase to aim for.
const TASKS: u64 = 24;
/// Bytes of a record that `gen` makes.
const RECORD_BYTES: u64 = 100;
/// How often the drill looks at the job.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Pause between two deeds, in milliseconds, so that each is seen for itself.
const APART_MS: u64 = 250;
/// How long a killed process stays away, in milliseconds.
const AWAY_MS: u64 = 1500;
/// How long a job may take before the drill has failed, beyond the time it was asked to take, in
/// milliseconds.
const PATIENCE_MS: u64 = 300_000;
/// How long a request waits for a leader.
const API_PATIENCE: Duration = Duration::from_secs(30);
/// How long the processes may take to come up.
const START_MS: u64 = 60_000;
/// Idle buffers of the drill's own reads.
const IDLE_BYTES_MAX: usize = 4 << 20;

/// One line of what happened.
#[derive(Debug, Clone, Serialize)]
struct Moment {
    /// Milliseconds since the shaken job was submitted.
    at_ms: u64,
    /// `deed` is the drill's own, `event` the pool's, `job` the job's.
    kind: &'static str,
    text: String,
}

/// How long the job took to move again after what was done.
#[derive(Debug, Clone, Default, Serialize)]
struct Recovery {
    times: u32,
    longest_ms: u64,
    sum_ms: u64,
}

/// What is told at the end.
#[derive(Debug, Serialize)]
struct Report<'a> {
    seed: u64,
    records: u64,
    workers: u32,
    coordinators: u32,
    timeline: &'a [Moment],
    deeds: BTreeMap<&'static str, u32>,
    injected: &'a BTreeMap<String, u64>,
    injected_total: u64,
    retries: u32,
    repeated_tasks: u32,
    recovery: &'a BTreeMap<&'static str, Recovery>,
    calm_ms: u64,
    shaken_ms: u64,
    proof: &'a [Claim],
    passed: bool,
}

/// Runs the drill.
pub(crate) async fn run(args: DrillArgs) -> Result<(), Exit> {
    cmd::log(LogFormat::Text, "error");
    let clock = SystemClock::default();
    let seed = args.seed.unwrap_or_else(|| clock.random() % 1_000_000);
    let folder = tempfile::Builder::new().prefix("muster-drill-").tempdir();
    let folder =
        folder.map_err(|e| Exit::failed(format!("cannot make a temporary folder: {e}")))?;
    let path = folder.path().to_owned();
    let result = tokio::select! {
        result = Box::pin(Drill { args, seed, clock, path: path.clone() }.run()) => result,
        _ = cmd::end_signal() => Err(Exit::interrupted("the drill was interrupted")),
    };
    if result.is_err() {
        // Its logs tell more than the line below.
        output::error_line(&format!(
            "muster: the drill's folder stays: {}",
            folder.keep().display()
        ));
    }
    result
}

struct Drill {
    args: DrillArgs,
    seed: u64,
    clock: SystemClock,
    path: PathBuf,
}

impl Drill {
    async fn run(self) -> Result<(), Exit> {
        let server = PrivateServer::start(&self.path).await?;
        let base = match &self.args.bucket {
            Some(bucket) => {
                cmd::blob_url(bucket)?.join(&format!("muster-drill-{:x}", self.clock.random()))
            }
            None => BlobUrl::from_path(&self.path)?.join("data"),
        };
        let scratch = base.join("scratch");
        let config_path = self.path.join("drill.toml");
        let text = self.settings_text();
        std::fs::write(&config_path, &text)
            .map_err(|e| Exit::failed(format!("cannot write {}: {e}", config_path.display())))?;
        let config = Config::load(config::Profile::Testing, Some(&config_path))?;
        let setting = Setting {
            folder: self.path.clone(),
            config: config_path,
            bucket: scratch.to_string(),
            nats: server.settings(),
        };
        let stores = Stores::new(BufferPool::new(IDLE_BYTES_MAX), &config.store);
        let client = nats::connect(&server.settings(), &config, "muster drill").await?;
        let api = Api::new(client.clone(), &config, API_PATIENCE);
        let hand = Hand { drill: &self, setting: &setting, api: &api, base: &base };

        self.say(&format!(
            "drill with seed {}: {} records, {} workers, {} coordinators",
            self.seed,
            output::grouped(self.args.records),
            self.args.workers,
            self.args.coordinators
        ));
        hand.muster(
            "gen",
            &[
                "gen",
                "-n",
                &self.args.records.to_string(),
                "--files",
                "4",
                "-o",
                &base.join("in").to_string(),
            ],
        )?;
        let input = proof::verify(&setting, &base.join("in").to_string())?;
        let calm = hand.calm().await?;
        let calm_ms = total_ms(&calm);
        self.say(&format!("calm run: {} in {}", calm.job, output::seconds(calm_ms)));

        let mut shaking = hand.shake(&client, &config).await?;
        let shaken = shaking.disturb().await?;
        let Shaking { pool, timeline, recovery, done, .. } = shaking;
        let injected = pool.injected();
        pool.stop();
        if shaken.state != JobState::Succeeded {
            let cause = shaken.error.as_deref().unwrap_or("no cause was recorded");
            return Err(Exit::failed(format!(
                "the job of the drill {}: {cause} (seed {})",
                shaken.state, self.seed
            )));
        }
        let outputs = (base.join("calm"), base.join("shaken"));
        let evidence = Evidence {
            input,
            calm: proof::verify(&setting, &outputs.0.to_string())?,
            shaken: proof::verify(&setting, &outputs.1.to_string())?,
            calm_manifest: proof::manifest(&stores, &outputs.0).await?,
            shaken_manifest: proof::manifest(&stores, &outputs.1).await?,
            left: proof::left_over(&stores, &scratch, &outputs.1).await?,
        };
        let claims = proof::claims(&evidence);
        let passed = claims.iter().all(|claim| claim.holds);
        let report = Report {
            seed: self.seed,
            records: self.args.records,
            workers: self.args.workers,
            coordinators: self.args.coordinators,
            timeline: &timeline,
            deeds: done,
            injected_total: injected.values().sum(),
            injected: &injected,
            retries: shaken.retries,
            repeated_tasks: shaken.repeated_tasks,
            recovery: &recovery,
            calm_ms,
            shaken_ms: total_ms(&shaken),
            proof: &claims,
            passed,
        };
        if self.args.json {
            output::json(&report);
        } else {
            print(&report);
        }
        if let Some(bucket) = &self.args.bucket {
            remove(&stores, &base).await.map_err(|e| e.at(bucket))?;
        }
        server.stop().await;
        let failed: Vec<&str> =
            claims.iter().filter(|claim| !claim.holds).map(|claim| claim.name).collect();
        if passed {
            Ok(())
        } else {
            let exit = Exit::failed(format!(
                "the proof does not hold: {} (seed {})",
                failed.join(", "),
                self.seed
            ));
            Err(if self.args.json { exit.told() } else { exit })
        }
    }

    /// Settings of all processes: small tasks, patience with what the drill does to them, and leave
    /// to inject faults.
    fn settings_text(&self) -> String {
        let task_bytes = (self.args.records * RECORD_BYTES / TASKS).max(RECORD_BYTES);
        format!(
            "[job]\nsplit_bytes = {task_bytes}\npartition_bytes = {task_bytes}\n\
             [tasks]\nattempts_max = 30\n\
             [faults]\nenabled = true\n"
        )
    }

    /// What the pool injects into itself: passing trouble all the time, and delays that make the
    /// job last.
    fn faults(&self) -> String {
        let delay_ms = (self.args.seconds * 12).max(1);
        format!(
            "seed={};\
             store.head:delay,ms={delay_ms};store.read:delay,ms={delay_ms};\
             store.part:delay,ms={delay_ms};store:error,p=0.03;store.complete:lost-ack,p=0.05;\
             store:throttle,p=0.02;store.read:flip,p=0.002;\
             bus.report:lost-ack,p=0.05;bus.report:duplicate,p=0.05;\
             bus.heartbeat:drop,p=0.05;bus.command:error,p=0.03;\
             ledger.append:lost-ack,p=0.02;task.begin:error,p=0.02;memory:refuse,p=0.01",
            self.seed
        )
    }

    fn say(&self, text: &str) {
        if !self.args.json {
            output::line(text);
        }
    }
}

/// What the two runs have in common.
struct Hand<'a> {
    drill: &'a Drill,
    setting: &'a Setting,
    api: &'a Api,
    base: &'a BlobUrl,
}

impl<'a> Hand<'a> {
    /// Runs a short `muster` command to its end.
    fn muster(&self, name: &str, arguments: &[&str]) -> Result<()> {
        let mut command = self.setting.muster(&self.setting.nats.url)?;
        let done = command.args(arguments).stdout(Stdio::null()).output();
        let done = done.map_err(|e| Error::invalid(format!("cannot run muster {name}: {e}")))?;
        if done.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&done.stderr).trim().to_owned();
        Err(Error::invalid(format!("muster {name} ended with {}: {said}", done.status)))
    }

    fn submit(&self, job: &str) -> Result<JobId> {
        let (from, to) = (self.base.join("in").to_string(), self.base.join(job).to_string());
        let config = self.setting.config.to_string_lossy().into_owned();
        let order =
            ["--format", "fixed:100", "-k", "0:10", "--profile", "testing", "--config", &config];
        let mut arguments = vec!["sort", &from, "-o", &to, "--detach", "--quiet", "--job-id", job];
        arguments.extend(order);
        self.muster("sort", &arguments)?;
        job.parse().map_err(|e| Error::bug(format!("{e}")))
    }

    async fn start(&self, name: &str, faults: Option<String>) -> Result<Pool> {
        let DrillArgs { coordinators, workers, .. } = self.drill.args;
        let mut pool = Pool::start(self.setting, name, coordinators, workers, faults).await?;
        let started_ms = self.drill.clock.now_ms();
        loop {
            if let Some((who, _)) = pool.ended().first() {
                return Err(Error::invalid(format!(
                    "{who} ended before the drill began; its log lies beside the data"
                )));
            }
            let prefix = format!("{name}-worker-");
            let listed = self.api.workers().await?;
            let up = listed.iter().filter(|worker| {
                worker.id.as_str().starts_with(&prefix) && worker.state == "healthy"
            });
            if up.count() >= workers as usize {
                return Ok(pool);
            }
            if self.drill.clock.now_ms().saturating_sub(started_ms) > START_MS {
                return Err(Error::retry(format!(
                    "{workers} workers did not register within {START_MS} ms"
                )));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// The run in peace.
    async fn calm(&self) -> Result<JobStatus> {
        let pool = self.start("calm", None).await?;
        let job = self.submit("calm")?;
        let mut silent = crate::progress::Progress::new(crate::progress::Show::Nothing);
        let status = cmd::watch::to_end(self.api, &job, &mut silent, true).await?;
        pool.stop();
        match status.state {
            JobState::Succeeded => Ok(status),
            _ => Err(Error::invalid(format!(
                "even the calm run {}: {:?}",
                status.state, status.error
            ))),
        }
    }

    /// Starts the other one.
    async fn shake(&self, client: &async_nats::Client, config: &Config) -> Result<Shaking<'a>> {
        let drill = self.drill;
        let pool = self.start("drill", Some(drill.faults())).await?;
        let (began_ms, began_unix_ms) = (drill.clock.now_ms(), drill.clock.unix_ms());
        let events = Events::open(client, config, None, Some(began_unix_ms)).await?;
        let job = self.submit("shaken")?;
        let (sender, status) = watch::channel(None);
        let (api, of) = (self.api.clone(), job.clone());
        let asking = tokio::spawn(async move {
            loop {
                // A coordinator that is away is what a drill is about; the deeds go by what was
                // said last.
                if let Ok(status) = api.status(&of).await
                    && sender.send(Some(status)).is_err()
                {
                    return;
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        });
        Ok(Shaking {
            deeds: schedule::draw(drill.seed, drill.args.kills, drill.args.workers)
                .into_iter()
                .rev()
                .collect(),
            drill,
            pool,
            events,
            status,
            _asking: AbortOnDropHandle::new(asking),
            began_ms,
            began_unix_ms,
            later: Vec::new(),
            next_deed_ms: 0,
            waiting: Vec::new(),
            progress: (0, JobState::Submitted),
            timeline: Vec::new(),
            recovery: BTreeMap::new(),
            done: BTreeMap::new(),
        })
    }
}

/// What is to be undone at a time.
enum Undo {
    Start,
    Continue,
    Mend,
}

/// The job while it is disturbed.
struct Shaking<'a> {
    drill: &'a Drill,
    pool: Pool,
    events: Events,
    status: watch::Receiver<Option<JobStatus>>,
    _asking: AbortOnDropHandle<()>,
    began_ms: u64,
    began_unix_ms: u64,
    /// Last first.
    deeds: Vec<Deed>,
    later: Vec<(u64, (bool, u32), Undo)>,
    next_deed_ms: u64,
    /// What was done since the job last moved.
    waiting: Vec<(&'static str, u64)>,
    progress: (u32, JobState),
    timeline: Vec<Moment>,
    recovery: BTreeMap<&'static str, Recovery>,
    done: BTreeMap<&'static str, u32>,
}

impl Shaking<'_> {
    fn now_ms(&self) -> u64 {
        self.drill.clock.now_ms().saturating_sub(self.began_ms)
    }

    fn tell(&mut self, at_ms: u64, kind: &'static str, text: String) {
        self.drill.say(&format!("{:>8.2} s  {kind:<5}  {text}", at_ms as f64 / 1000.0));
        self.timeline.push(Moment { at_ms, kind, text });
    }

    /// Disturbs the job until it has ended and cleaned up.
    async fn disturb(&mut self) -> Result<JobStatus> {
        let bound_ms = self.drill.args.seconds * 1000 + PATIENCE_MS;
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                entry = self.events.next() => if let Ok(Entry::Event(event)) = entry {
                    let at_ms = event.unix_ms.saturating_sub(self.began_unix_ms);
                    self.tell(at_ms, "event", format!("{}: {}", event.kind, event.text));
                },
                _ = ticks.tick() => {}
            }
            let status = self.status.borrow_and_update().clone();
            if let Some(status) = status {
                self.look_at(&status);
                if status.state.is_terminal() && status.cleaned {
                    self.undo_all()?;
                    return Ok(status);
                }
            }
            self.undo_due()?;
            self.start_ended()?;
            self.act();
            if self.now_ms() > bound_ms {
                return Err(Error::exhausted(format!(
                    "the job of the drill did not end within {bound_ms} ms (seed {})",
                    self.drill.seed
                )));
            }
        }
    }

    /// Notes how far the job is, and what it has got over.
    fn look_at(&mut self, status: &JobStatus) {
        let now = (thousandths(status), status.state);
        if now.1 != self.progress.1 {
            let at_ms = self.now_ms();
            self.tell(
                at_ms,
                "job",
                format!("{}, {} attempts beyond the first", status.state, status.retries),
            );
        }
        if now.0 > self.progress.0 {
            let at_ms = self.now_ms();
            for (what, since_ms) in self.waiting.drain(..) {
                let took_ms = at_ms.saturating_sub(since_ms);
                let recovery = self.recovery.entry(what).or_default();
                recovery.times += 1;
                recovery.sum_ms += took_ms;
                recovery.longest_ms = recovery.longest_ms.max(took_ms);
            }
        }
        self.progress = (now.0.max(self.progress.0), now.1);
    }

    /// Does what is due at this progress.
    fn act(&mut self) {
        let now_ms = self.now_ms();
        let due = self.deeds.last().is_some_and(|deed| deed.at <= self.progress.0);
        if !due || now_ms < self.next_deed_ms || self.progress.1.is_terminal() {
            return;
        }
        let Some(Deed { victim, what, .. }) = self.deeds.pop() else { return };
        self.next_deed_ms = now_ms + APART_MS;
        let Some(key) = self.pool.resolve(victim) else {
            self.tell(now_ms, "deed", format!("{what}: nobody is there to do it to"));
            return;
        };
        let (hit, after_ms, undo) = match what {
            What::Kill => (self.pool.kill(victim).map(|(name, _)| name), AWAY_MS, Undo::Start),
            What::Stop(ms) => (self.pool.signal(key, Signal::STOP), ms, Undo::Continue),
            What::Cut(ms) => (self.pool.set_cut(key, true), ms, Undo::Mend),
        };
        let Some(name) = hit else { return };
        let label = match (what, victim) {
            (What::Kill, Victim::Leader) => "leader killed",
            (What::Kill, Victim::Worker(_)) => "worker killed",
            (What::Stop(_), Victim::Leader) => "leader stopped",
            (What::Stop(_), Victim::Worker(_)) => "worker stopped",
            (What::Cut(_), Victim::Leader) => "leader cut off",
            (What::Cut(_), Victim::Worker(_)) => "worker cut off",
        };
        *self.done.entry(label).or_default() += 1;
        self.waiting.push((label, now_ms));
        self.later.push((now_ms + after_ms, key, undo));
        let role = if victim == Victim::Leader { " (leads)" } else { "" };
        self.tell(now_ms, "deed", format!("{what}: {name}{role}"));
    }

    fn undo_due(&mut self) -> Result<()> {
        let now_ms = self.now_ms();
        let (due, later) =
            std::mem::take(&mut self.later).into_iter().partition(|(at_ms, ..)| *at_ms <= now_ms);
        self.later = later;
        self.undo(due)
    }

    fn undo_all(&mut self) -> Result<()> {
        let all = std::mem::take(&mut self.later);
        self.undo(all)
    }

    fn undo(&mut self, due: Vec<(u64, (bool, u32), Undo)>) -> Result<()> {
        for (_, key, undo) in due {
            let (how, name) = match undo {
                Undo::Start => ("started again", self.pool.start_again(key)?),
                Undo::Continue => ("continued", self.pool.signal(key, Signal::CONT)),
                Undo::Mend => ("connected again", self.pool.set_cut(key, false)),
            };
            if let Some(name) = name {
                let at_ms = self.now_ms();
                self.tell(at_ms, "deed", format!("{how}: {name}"));
            }
        }
        Ok(())
    }

    /// A process that ended by itself (a coordinator that was superseded, a worker that gave up) is
    /// started again, as a supervisor would.
    fn start_ended(&mut self) -> Result<()> {
        for (who, key) in self.pool.ended() {
            let at_ms = self.now_ms();
            self.tell(at_ms, "deed", format!("ended by itself, to be started again: {who}"));
            self.later.push((at_ms + AWAY_MS, key, Undo::Start));
        }
        Ok(())
    }
}

/// How far a job is, in thousandths: the phases weigh as they take.
fn thousandths(status: &JobStatus) -> u32 {
    let share = |from: u32, to: u32| {
        let total = u64::from(status.tasks_total.max(1));
        from + u32::try_from(u64::from(to - from) * u64::from(status.tasks_done) / total)
            .unwrap_or(0)
    };
    match status.state {
        JobState::Submitted => 0,
        JobState::Sampling => share(0, 100),
        JobState::Sorting => share(100, 500),
        JobState::Merging => share(500, 950),
        JobState::Committing => 950,
        JobState::Succeeded | JobState::Failed | JobState::Cancelled => WHOLE,
    }
}

fn total_ms(status: &JobStatus) -> u64 {
    let times = status.times;
    times.plan_ms + times.sample_ms + times.sort_ms + times.merge_ms + times.commit_ms
}

async fn remove(stores: &Stores, base: &BlobUrl) -> Result<()> {
    let store = stores.open(base).await?;
    for meta in store.list(base.key(), usize::MAX).await? {
        store.delete(&meta.key).await?;
    }
    store.prune(base.key()).await
}

fn print(report: &Report<'_>) {
    let row = |name: &str, text: &str| output::line(&format!("  {name:<11} {text}"));
    output::line("");
    output::line(if report.passed { "Proof: the same bytes" } else { "Proof: DOES NOT HOLD" });
    for claim in report.proof {
        row(claim.name, &format!("{}{}", if claim.holds { "" } else { "WRONG: " }, claim.text));
    }
    let deeds: Vec<String> =
        report.deeds.iter().map(|(what, times)| format!("{times} x {what}")).collect();
    row("done to it", &if deeds.is_empty() { "nothing".to_owned() } else { deeds.join(", ") });
    row("faults", &format!("{} injected by the processes into themselves", report.injected_total));
    row(
        "repeated",
        &format!(
            "{} attempts beyond the first, {} committed tasks made again",
            report.retries, report.repeated_tasks
        ),
    );
    for (what, recovery) in report.recovery {
        let mean = recovery.sum_ms / u64::from(recovery.times.max(1));
        row(
            "recovery",
            &format!(
                "{what}: the job moved again after {mean} ms, at most {} ms",
                recovery.longest_ms
            ),
        );
    }
    row(
        "time",
        &format!(
            "{} calm, {} shaken",
            output::seconds(report.calm_ms),
            output::seconds(report.shaken_ms)
        ),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_platform::faults::FaultPlan;

    fn drill() -> Drill {
        let args = DrillArgs {
            records: 10_000,
            seed: None,
            workers: 4,
            coordinators: 2,
            kills: 4,
            seconds: 10,
            bucket: None,
            json: true,
        };
        Drill { args, seed: 7, clock: SystemClock::default(), path: PathBuf::new() }
    }

    #[test]
    fn its_faults_and_settings_are_sound() {
        let plan: FaultPlan = drill().faults().parse().expect("faults");
        assert_eq!(plan.seed, 7);
        let config = Config::layered(&[&drill().settings_text()]).expect("settings");
        assert!(config.faults.enabled);
        assert_eq!(config.job.split_bytes, 41_666);
    }
}
