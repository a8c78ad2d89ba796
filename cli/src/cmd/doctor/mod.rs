//! `muster doctor`: looks at everything that a deployment stands on, says what is wrong and what to
//! do, and mends what it may.
//!
//! `server`, `bucket`, `leftovers` and `uploads` look; `judge` and `rights` say what it means,
//! purely; this file goes through the checks in order, prints, and asks before it mends. It changes
//! nothing but a probe of its own in the bucket, which it removes, unless `--mend` is given and
//! what is to be mended is confirmed.

mod bucket;
mod claims;
mod finding;
mod here;
mod judge;
mod leftovers;
mod rights;
mod server;
mod uploads;

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;

use muster_platform::adapters::servers::Servers;
use muster_platform::adapters::{journal, nats};
use muster_platform::buffer::BufferPool;
use muster_platform::clock::{Clock, SystemClock};
use muster_platform::config::Config;
use muster_platform::store::BlobUrl;
use muster_platform::stores::Stores;
use muster_protocol::ids::DeploymentId;
use muster_protocol::names::Names;
use serde::Serialize;

use self::finding::{Finding, Level};
use self::judge::{Beats, Wanted};
use self::leftovers::Group;
use self::server::{Looked, Nats};
use crate::args::{DoctorArgs, LogFormat};
use crate::client::Api;
use crate::cmd;
use crate::exit::{self, Exit};
use crate::nats_context;
use crate::output;

/// How long a coordinator that beats may take to answer.
const API_PATIENCE: Duration = Duration::from_secs(5);
/// Idle buffers of this process.
const IDLE_BYTES_MAX: usize = 32 << 20;

/// What can be mended, and in whose place a mended finding stands.
enum Ailment {
    /// Streams that ought to stand.
    Streams(Vec<String>),
    /// Scratch that nobody knows.
    Leftover(Group),
    /// Uploads into an OUTPUT that nobody finishes.
    Uploads(uploads::Found),
    /// Claims of dead owners on an OUTPUT, and what those have left there.
    Dead(claims::Dead),
}

/// Everything that was seen.
struct Patient {
    clock: SystemClock,
    config: Config,
    nats: Nats,
    api: Api,
    stores: Stores,
    bucket: Option<BlobUrl>,
    output: Option<BlobUrl>,
    ours: Option<DeploymentId>,
    findings: Vec<Finding>,
    ailments: Vec<Ailment>,
}

#[derive(Serialize)]
struct Report<'a> {
    findings: &'a [Finding],
    problems: usize,
    warnings: usize,
    mended: &'a [String],
}

/// Goes through all checks; fails where one is a problem.
pub(crate) async fn run(args: DoctorArgs) -> Result<(), Exit> {
    // What the server refuses is a finding, not an error.
    cmd::log(LogFormat::Text, "error,muster_platform::adapters::refusals=off");
    let config = cmd::settings(&args.settings, &args.nats)?;
    let named = nats_context::find(&args.nats).map_err(|e| Exit::usage(e.message))?.is_some();
    let settings = nats_context::find_or_default(&args.nats).map_err(|e| Exit::usage(e.message))?;
    let bucket = args.bucket.as_deref().map(cmd::blob_url).transpose()?;
    let output = args.output.as_deref().map(cmd::blob_url).transpose()?;
    let client = match nats::connect_to_any(&settings, &config, "muster doctor").await {
        Ok(client) => client,
        // Nobody has named a server: what can be seen here is looked at.
        Err(_) if !named && bucket.is_none() => {
            let nats = format!("no server is named, and none answers at {}", settings.public_url());
            return without_nats(&args, &config, output, &nats).await;
        }
        Err(error) => return Err(exit::connecting(error)),
    };
    let mut patient = Patient {
        clock: SystemClock::default(),
        api: Api::new(client.clone(), &config, API_PATIENCE).heeding(settings.refusals.clone()),
        stores: Stores::new(BufferPool::new(IDLE_BYTES_MAX), &config.store),
        config,
        nats: Nats { client, refusals: settings.refusals.clone() },
        bucket,
        output,
        ours: None,
        findings: Vec::new(),
        ailments: Vec::new(),
    };
    let shown = if args.json { Show::Nothing } else { Show::Lines };
    patient.look_at_servers(&Servers::of(&settings)).await;
    patient.look_at_nats(&settings.public_url(), args.monitor.as_deref()).await;
    patient.look_at_pool().await;
    patient.look_at_disk(args.data_dir.as_deref());
    patient.look_at_bucket().await;
    patient.look_at_output().await;
    if shown == Show::Lines {
        patient.findings.iter().for_each(print);
    }
    let mended = if args.mend { patient.mend(args.yes, args.older_than).await } else { Vec::new() };
    report(&patient.findings, &mended, &args)
}

/// Looks at what is here, where there is no NATS.
async fn without_nats(
    args: &DoctorArgs,
    config: &Config,
    output: Option<BlobUrl>,
    nats: &str,
) -> Result<(), Exit> {
    let stores = Stores::new(BufferPool::new(IDLE_BYTES_MAX), &config.store);
    let (mut findings, dead) = here::look(&stores, config, output.as_ref(), nats).await;
    findings.insert(1, disk(args.data_dir.as_deref()));
    if !args.json {
        findings.iter().for_each(print);
    }
    let mut mended = Vec::new();
    if let Some(dead) = dead.filter(|_| args.mend) {
        let question = question_of(&dead);
        match confirmed(&question, args.yes, false).await {
            Ok(true) => match claims::mend(&stores, config, &dead).await {
                Ok(what) => mended.push(what),
                Err(error) => {
                    output::error_line(&format!("muster: {question}: {error}"));
                    findings.push(Finding::problem("mend", error.message, "it can be tried again"));
                }
            },
            Ok(false) => {}
            Err(why) => output::error_line(&format!("muster: not done: {question}: {why}")),
        }
    }
    report(&findings, &mended, args)
}

fn question_of(dead: &claims::Dead) -> String {
    format!("remove what {} dead owner(s) have left in {}", dead.owners, dead.output)
}

/// Prints what was mended, and everything where it is to be one object; fails where something is a
/// problem.
fn report(findings: &[Finding], mended: &[String], args: &DoctorArgs) -> Result<(), Exit> {
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    let (problems, warnings) = (count(Level::Problem), count(Level::Warning));
    if args.json {
        output::json(&Report { findings, problems, warnings, mended });
    } else {
        mended.iter().for_each(|what| output::line(&format!("mended   {what}")));
    }
    if problems > 0 {
        let exit = Exit::failed(format!(
            "{problems} problem(s), {warnings} warning(s); each says what to do"
        ));
        return Err(if args.json { exit.told() } else { exit });
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Show {
    Lines,
    Nothing,
}

fn print(finding: &Finding) {
    let level = finding.level.as_str();
    output::line(&format!("{level:<8} {}: {}", finding.check, output::plain(&finding.seen)));
    if !finding.advice.is_empty() {
        output::line(&format!("{:<8} -> {}", "", finding.advice));
    }
}

impl Patient {
    /// Connected to one of a cluster, nobody would miss another.
    async fn look_at_servers(&mut self, servers: &Servers) {
        if servers.are_several() {
            let away = servers.away().await;
            self.findings.push(judge::servers(servers.count(), &away));
        }
    }

    async fn look_at_nats(&mut self, url: &str, monitor: Option<&str>) {
        let names = Names::new(&self.config.namespace);
        let version = self.nats.client.server_info().version;
        self.findings.push(Finding::ok("nats", format!("connected to {url}")));
        self.findings.push(judge::version(&version));
        let rights = server::rights(&self.nats).await;
        self.findings.push(rights::judge(rights.as_ref().map_err(String::as_str), &names));
        let account = server::account(&self.nats).await;
        self.findings.push(judge::account(&account));
        let journal_stream = names.journal_stream();
        let (trips, difference) = server::trips(&self.nats, &journal_stream, &self.clock).await;
        self.findings.push(judge::round_trip(&trips));
        self.findings.push(judge::clock(difference));
        if matches!(account, Looked::Absent(_)) {
            return;
        }
        self.findings.push(judge::sync(&server::sync(&self.nats, monitor, url).await));
        let mut missing = Vec::new();
        for name in [&journal_stream, &names.events_stream(), &names.dead_letters_stream()] {
            let looked = server::stream(&self.nats, name).await;
            let wanted = Wanted {
                replicas: self.config.journal.replicas,
                is_journal: *name == journal_stream,
            };
            self.findings.extend(judge::stream(name, &looked, wanted));
            if matches!(looked, Looked::Absent(_)) {
                missing.push(name.clone());
            }
        }
        if !missing.is_empty() {
            self.ailments.push(Ailment::Streams(missing));
        }
    }

    async fn look_at_pool(&mut self) {
        let names = Names::new(&self.config.namespace);
        let interval = Duration::from_millis(self.config.heartbeat.interval_ms);
        let bound = Duration::from_millis(self.config.heartbeat.dead_after_ms);
        let beats: Beats = server::beats(&self.nats, &names, &self.clock, interval, bound).await;
        self.ours = beats.newest().map(|(deployment, _)| deployment.clone());
        if self.ours.is_none() && beats.deaf.is_none() {
            self.findings.extend(judge::coordinator(&beats, Ok(0)));
            return;
        }
        // Who may not hear the beat may still ask.
        let jobs = self.api.jobs().await;
        self.findings.extend(judge::coordinator(&beats, jobs.as_ref().map(Vec::len)));
        if jobs.is_err() {
            return;
        }
        match self.api.workers().await {
            Ok(workers) => self.findings.push(judge::workers(&workers)),
            Err(error) => self.findings.push(judge::unanswered("workers", &error)),
        }
    }

    fn look_at_disk(&mut self, data_dir: Option<&Path>) {
        self.findings.push(disk(data_dir));
    }

    async fn look_at_bucket(&mut self) {
        let Some(bucket) = self.bucket.clone() else {
            let advice = "say where the coordinator keeps its scratch: --bucket URL";
            self.findings.push(Finding::unknown("bucket", "not looked at", advice));
            return;
        };
        match bucket::probe(&self.stores, &bucket, &self.clock).await {
            Ok(probe) => self.findings.extend(bucket::judge(&bucket.to_string(), &probe)),
            Err(error) => {
                self.findings.push(Finding::problem(
                    "bucket",
                    error.message,
                    "check the AWS_* environment",
                ));
                return;
            }
        }
        let Some(ours) = self.ours.clone() else {
            let advice = "only beside a coordinator whose beat is heard can be told what nobody \
                knows: see what is said of it";
            self.findings.push(Finding::unknown("leftovers", "no coordinator is heard of", advice));
            return;
        };
        match leftovers::find(&self.stores, &bucket, &ours, &self.api).await {
            Ok(found) => {
                self.findings.extend(leftovers::judge(&found, self.clock.unix_ms()));
                self.ailments.extend(found.into_iter().map(|(group, _)| Ailment::Leftover(group)));
            }
            Err(error) => {
                self.findings.push(Finding::unknown(
                    "leftovers",
                    error.message,
                    "look again later",
                ));
            }
        }
    }

    async fn look_at_output(&mut self) {
        let Some(output) = self.output.clone() else { return };
        match claims::look(&self.stores, &self.config, &output).await {
            Ok((findings, dead)) => {
                self.findings.extend(findings);
                self.ailments.extend(dead.map(Ailment::Dead));
            }
            Err(error) => {
                let advice = "check the rights on OUTPUT, and the AWS_* environment";
                self.findings.push(Finding::problem("output-claims", error.message, advice));
            }
        }
        match uploads::find(&self.stores, &output, &self.api).await {
            Ok(found) => {
                self.findings.push(uploads::judge(&found));
                if !found.uploads.is_empty() && found.writer == uploads::Writer::Nobody {
                    self.ailments.push(Ailment::Uploads(found));
                }
            }
            Err(error) => {
                let advice =
                    "check the AWS_* environment; the user needs s3:ListBucketMultipartUploads";
                self.findings.push(Finding::problem("output-uploads", error.message, advice));
            }
        }
    }

    /// Mends what is confirmed, and says what.
    async fn mend(&mut self, yes: bool, older_than: Duration) -> Vec<String> {
        let mut mended = Vec::new();
        let older_than_ms = u64::try_from(older_than.as_millis()).unwrap_or(u64::MAX);
        for ailment in std::mem::take(&mut self.ailments) {
            let now_unix_ms = self.clock.unix_ms();
            let (question, recent) = match &ailment {
                Ailment::Streams(names) => {
                    (format!("make the stream(s) {}", names.join(", ")), false)
                }
                Ailment::Dead(dead) => (question_of(dead), false),
                Ailment::Leftover(group) => (
                    format!("remove {}", group.describe(now_unix_ms)),
                    group.is_recent(now_unix_ms, older_than_ms),
                ),
                Ailment::Uploads(found) => {
                    let question = format!(
                        "abort {} unfinished uploads into {}",
                        found.uploads.len(),
                        found.output
                    );
                    // Stores do not tell when an upload was opened.
                    (question, older_than_ms > 0)
                }
            };
            match confirmed(&question, yes, recent).await {
                Ok(true) => {}
                Ok(false) => continue,
                Err(why) => {
                    output::error_line(&format!("muster: not done: {question}: {why}"));
                    continue;
                }
            }
            let done = match &ailment {
                Ailment::Streams(names) => self.make_streams(names).await,
                Ailment::Leftover(group) => self.remove(group).await,
                Ailment::Dead(dead) => claims::mend(&self.stores, &self.config, dead).await,
                Ailment::Uploads(found) => uploads::abort(&self.stores, found, &self.api).await,
            };
            match done {
                Ok(what) => mended.push(what),
                Err(error) => {
                    let finding = Finding::problem("mend", error.message, "it can be tried again");
                    output::error_line(&format!("muster: {question}: {}", finding.seen));
                    self.findings.push(finding);
                }
            }
        }
        mended
    }

    async fn make_streams(&mut self, names: &[String]) -> muster_protocol::Result<String> {
        journal::ensure_streams(&self.nats.client, &self.config).await?;
        let checks: Vec<String> = names.iter().map(|name| format!("stream-{name}")).collect();
        for finding in self.findings.iter_mut().filter(|finding| checks.contains(&finding.check)) {
            *finding = Finding::ok(finding.check.clone(), "it was missing and has been made");
        }
        Ok(format!("made the stream(s) {}", names.join(", ")))
    }

    async fn remove(&self, group: &Group) -> muster_protocol::Result<String> {
        let (Some(bucket), Some(ours)) = (&self.bucket, &self.ours) else {
            return Err(muster_protocol::Error::bug("leftovers without bucket or coordinator"));
        };
        leftovers::remove(&self.stores, bucket, group, ours, &self.api).await
    }
}

fn disk(data_dir: Option<&Path>) -> Finding {
    let path: PathBuf = data_dir.map_or_else(std::env::temp_dir, Path::to_owned);
    let space = space(&path);
    let text = path.display().to_string();
    judge::disk(&text, space.as_ref().copied().map_err(String::as_str))
}

/// Whether somebody wants it: `--yes`, or a y at the terminal.
///
/// # Errors
/// Why nobody could be asked.
async fn confirmed(question: &str, yes: bool, recent: bool) -> Result<bool, String> {
    if yes {
        return if recent {
            Err("it was written to recently, and somebody may be at work there; --older-than 0s \
                means it"
                .to_owned())
        } else {
            Ok(true)
        };
    }
    if !std::io::stdin().is_terminal() {
        return Err("there is no terminal to ask at; --yes does it without asking".to_owned());
    }
    let warning = if recent { " (written to recently: somebody may be at work there)" } else { "" };
    output::error_line(&format!("{question}{warning}? y/N"));
    let answer = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).map(|_| line)
    });
    match answer.await {
        Ok(Ok(line)) => Ok(matches!(line.trim(), "y" | "Y" | "yes")),
        Ok(Err(e)) => Err(e.to_string()),
        Err(e) => Err(e.to_string()),
    }
}

/// Free and all bytes of the disk that a folder, or the first that is there above it, lies on.
fn space(path: &Path) -> Result<(u64, u64), String> {
    let there = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let stat = rustix::fs::statvfs(there).map_err(|e| e.to_string())?;
    Ok((stat.f_bavail.saturating_mul(stat.f_frsize), stat.f_blocks.saturating_mul(stat.f_frsize)))
}
