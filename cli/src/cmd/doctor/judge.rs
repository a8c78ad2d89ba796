//! What figures mean: figures in, findings out. Pure; who gathers them stands in `server.rs`,
//! `bucket.rs` and `mod.rs`.

use std::collections::BTreeSet;

use muster_platform::adapters::nats::{SERVER_VERSION_OLDEST, is_new_enough};
use muster_platform::adapters::refusals;
use muster_protocol::Error;
use muster_protocol::api::WorkerStatus;
use muster_protocol::ids::{DeploymentId, Epoch};

use super::finding::{Finding, Level};
use super::server::{Account, Looked, StreamInfo, Sync};
use crate::output;

/// Shares of a limit, in percent, at which a stream or an account is nearly full, and as good as
/// full.
const NEARLY_FULL_PERCENT: u64 = 80;
const FULL_PERCENT: u64 = 95;
/// A round trip to NATS beyond this slows every commit.
const ROUND_TRIP_SLOW_MS: u64 = 250;
/// Clocks that differ by more make times in logs and events hard to compare.
const CLOCK_WARN_MS: u64 = 2000;
/// S3 refuses signatures of clocks that differ by more.
const CLOCK_BOUND_MS: u64 = 15 * 60 * 1000;
/// Least free space in a data folder, and the share of it all, in percent.
const DISK_BYTES_MIN: u64 = 1 << 30;
const DISK_PERCENT_MIN: u64 = 10;
/// Below this nothing can be spilled.
const DISK_BYTES_NONE: u64 = 64 << 20;

pub(super) fn version(version: &str) -> Finding {
    let (major, minor) = SERVER_VERSION_OLDEST;
    if is_new_enough(version) {
        return Finding::ok("nats-version", format!("nats-server {version}"));
    }
    let seen = format!("nats-server {version} is older than {major}.{minor}");
    Finding::problem("nats-version", seen, "muster refuses this server: upgrade nats-server")
}

/// The servers of a list, each looked at by itself: those that do not answer, and why.
pub(super) fn servers(count: usize, away: &[(String, String)]) -> Finding {
    const CHECK: &str = "nats-servers";
    if away.is_empty() {
        return Finding::ok(CHECK, format!("all {count} of the list answer"));
    }
    let named: Vec<String> = away.iter().map(|(server, why)| format!("{server} ({why})")).collect();
    let seen = format!("{} of {count} do not answer: {}", away.len(), named.join(", "));
    Finding::warning(
        CHECK,
        seen,
        "jobs go on with the others while most of them are there: start it again, or take it off \
            the list",
    )
}

/// The median of some round trips.
pub(super) fn round_trip(trips_ms: &[u64]) -> Finding {
    let mut sorted = trips_ms.to_vec();
    sorted.sort_unstable();
    let Some(median) = sorted.get(sorted.len() / 2).copied() else {
        return Finding::unknown(
            "nats-round-trip",
            "no request was answered",
            "see the other findings",
        );
    };
    let seen = format!("{median} ms (median of {})", sorted.len());
    if median > ROUND_TRIP_SLOW_MS {
        return Finding::warning(
            "nats-round-trip",
            seen,
            "every commit waits for it: run coordinator and clients nearer to NATS",
        );
    }
    Finding::ok("nats-round-trip", seen)
}

pub(super) fn account(account: &Looked<Account>) -> Finding {
    const CHECK: &str = "jetstream";
    let account = match account {
        Looked::Seen(account) => account,
        Looked::Absent(why) => {
            return Finding::problem(
                CHECK,
                format!("not enabled: {why}"),
                "enable JetStream on the server and for this account: jetstream \
                    { store_dir: ..., sync_interval: always }",
            );
        }
        Looked::Unknown(why) => {
            return Finding::unknown(CHECK, why, "this user may not ask; a coordinator's user can");
        }
    };
    let used = account.storage;
    let Some(limit) = u64::try_from(account.limits.max_storage).ok().filter(|limit| *limit > 0)
    else {
        let seen = format!(
            "enabled, {} in {} streams, no limit for the account",
            output::bytes(used),
            account.streams
        );
        return Finding::ok(CHECK, seen);
    };
    let percent = percent(used, limit);
    let seen = format!(
        "enabled, {} of {} used ({percent} %), {} streams",
        output::bytes(used),
        output::bytes(limit),
        account.streams
    );
    let advice = "a full account stops commits: raise its storage limit, or remove streams that \
        nobody needs";
    filled(CHECK, percent, seen, advice)
}

fn percent(used: u64, limit: u64) -> u64 {
    u64::try_from(u128::from(used) * 100 / u128::from(limit.max(1))).unwrap_or(u64::MAX)
}

fn filled(check: impl Into<String>, percent: u64, seen: String, advice: &str) -> Finding {
    match percent {
        FULL_PERCENT.. => Finding::problem(check, seen, advice),
        NEARLY_FULL_PERCENT.. => Finding::warning(check, seen, advice),
        _ => Finding::ok(check, seen),
    }
}

/// What is wanted of a stream.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    pub(super) replicas: u32,
    /// The journal must refuse rather than forget.
    pub(super) is_journal: bool,
}

/// The settings, fill and quorum of one stream.
pub(super) fn stream(name: &str, looked: &Looked<StreamInfo>, wanted: Wanted) -> Vec<Finding> {
    let check = format!("stream-{name}");
    let info = match looked {
        Looked::Seen(info) => info,
        Looked::Absent(_) => {
            let seen = format!("the stream {name} is not there");
            let level = if wanted.is_journal { Level::Problem } else { Level::Warning };
            return vec![Finding::new(
                check,
                level,
                seen,
                "a coordinator makes it when it starts; so does muster doctor --mend",
            )];
        }
        Looked::Unknown(why) => {
            return vec![Finding::unknown(
                check,
                why,
                "this user may not ask; a coordinator's user can",
            )];
        }
    };
    let mut findings = Vec::new();
    let mut wrong =
        |what: String, advice: &str| findings.push(Finding::problem(check.clone(), what, advice));
    let config = &info.config;
    if config.storage != "file" {
        wrong(
            format!("keeps its messages in {}", config.storage),
            "it is lost when the server restarts: make it anew with file storage, while no job \
                runs",
        );
    }
    if wanted.is_journal && config.discard != "new" {
        wrong(
            format!("discards {} messages when it is full", config.discard),
            "commits could be forgotten: nats stream edit --discard new",
        );
    }
    if wanted.is_journal && config.max_age_ns > 0 {
        wrong(
            "forgets messages by age".to_owned(),
            "commits could be forgotten: nats stream edit --max-age 0",
        );
    }
    if config.persist_mode.as_deref() == Some("async") {
        wrong(
            "is persisted asynchronously".to_owned(),
            "what was acknowledged can be lost: set persist_mode to default",
        );
    }
    if config.num_replicas < wanted.replicas {
        let seen =
            format!("{} replicas, but the settings want {}", config.num_replicas, wanted.replicas);
        findings.push(Finding::warning(
            check.clone(),
            seen,
            "losing one server stops or loses it: nats stream edit --replicas",
        ));
    } else if config.num_replicas == 1 && info.servers() > 1 {
        let seen = format!("one replica in a cluster ({})", info.cluster_name());
        findings.push(Finding::warning(
            check.clone(),
            seen,
            "losing that server stops it: set journal.replicas = 3 and nats stream edit --replicas \
                3",
        ));
    }
    findings.extend(quorum(&check, info));
    let state = &info.state;
    let filled_by = format!("{} in {} messages", output::bytes(state.bytes), state.messages);
    findings.push(match u64::try_from(config.max_bytes).ok().filter(|max| *max > 0) {
        Some(max) if wanted.is_journal => {
            let percent = percent(state.bytes, max);
            let seen = format!("{filled_by}, {percent} % of {}", output::bytes(max));
            filled(
                check,
                percent,
                seen,
                "a full journal refuses jobs and commits: raise its size with nats stream edit \
                    --max-bytes",
            )
        }
        Some(_) => Finding::ok(check, filled_by),
        None => Finding::warning(
            check,
            format!("{filled_by}, without a limit"),
            "it can fill the account: set one with nats stream edit --max-bytes",
        ),
    });
    findings
}

fn quorum(check: &str, info: &StreamInfo) -> Option<Finding> {
    let cluster = info.cluster.as_ref()?;
    if cluster.leader.as_deref().unwrap_or_default().is_empty() && !cluster.replicas.is_empty() {
        return Some(Finding::problem(
            check,
            "has no leader: no quorum",
            "no commit is possible: start the NATS servers that are missing",
        ));
    }
    let gone: Vec<&str> = cluster
        .replicas
        .iter()
        .filter(|peer| peer.offline)
        .map(|peer| peer.name.as_str())
        .collect();
    let behind: Vec<&str> = cluster
        .replicas
        .iter()
        .filter(|peer| !peer.offline && !peer.current)
        .map(|peer| peer.name.as_str())
        .collect();
    if !gone.is_empty() {
        let seen = format!("replicas are offline: {}", gone.join(", "));
        return Some(Finding::warning(
            check,
            seen,
            "the next loss stops commits: start them again",
        ));
    }
    (!behind.is_empty()).then(|| {
        let seen = format!("replicas are behind: {}", behind.join(", "));
        Finding::warning(
            check,
            seen,
            "they catch up by themselves; if they do not, look at their disks",
        )
    })
}

pub(super) fn sync(sync: &Sync) -> Finding {
    const CHECK: &str = "nats-sync";
    match sync {
        Sync::Always => Finding::ok(CHECK, "sync_interval: always"),
        Sync::Every(ms) => Finding::problem(
            CHECK,
            format!("the server syncs every {}", output::seconds(*ms)),
            "commits of that time are lost when the host loses power: set jetstream \
                { sync_interval: always }",
        ),
        Sync::Unknown(why) => Finding::unknown(
            CHECK,
            why,
            "check that the server's settings say jetstream { sync_interval: always }; --monitor \
                HOST:PORT asks its monitoring port",
        ),
    }
}

/// How much later the server's clock is than ours, give or take.
#[derive(Debug, Clone, Copy)]
pub(super) struct ClockDifference {
    pub(super) ahead_ms: i64,
    pub(super) give_or_take_ms: u64,
}

pub(super) fn clock(seen: Option<ClockDifference>) -> Finding {
    const CHECK: &str = "clock";
    let Some(ClockDifference { ahead_ms, give_or_take_ms }) = seen else {
        return Finding::unknown(
            CHECK,
            "NATS tells no time to this user",
            "compare clocks by hand; run an NTP client everywhere",
        );
    };
    let sure_ms = ahead_ms.unsigned_abs().saturating_sub(give_or_take_ms);
    let which = if ahead_ms < 0 { "behind" } else { "ahead of" };
    let seen = format!(
        "the NATS server's clock is {} ms {which} this one (± {give_or_take_ms} ms)",
        ahead_ms.unsigned_abs()
    );
    match sure_ms {
        CLOCK_BOUND_MS.. => Finding::problem(
            CHECK,
            seen,
            "stores refuse signatures of clocks that differ by 15 minutes: run an NTP client",
        ),
        CLOCK_WARN_MS.. => Finding::warning(
            CHECK,
            seen,
            "nothing is decided by it, but times of events and logs do not agree: run an NTP \
                client",
        ),
        _ => Finding::ok(CHECK, seen),
    }
}

/// Beats that were heard, in order.
#[derive(Debug, Default)]
pub(super) struct Beats {
    pub(super) heard: Vec<(DeploymentId, Epoch)>,
    pub(super) waited_ms: u64,
    /// Why nothing could be heard, where that is so.
    pub(super) deaf: Option<String>,
}

impl Beats {
    /// The deployment of whoever leads by the newest epoch.
    pub(super) fn newest(&self) -> Option<&(DeploymentId, Epoch)> {
        self.heard.iter().max_by_key(|(_, epoch)| epoch.0)
    }
}

/// Whether a coordinator leads, and whether it answers.
pub(super) fn coordinator(beats: &Beats, answers: Result<usize, &Error>) -> Vec<Finding> {
    const CHECK: &str = "coordinator";
    const ANOTHER: &str = "this user may not ask; the user of a client or an operator can";
    if let Some(why) = &beats.deaf {
        return vec![match answers {
            Ok(jobs) => Finding::ok(
                CHECK,
                format!("answers, knows {jobs} jobs; its beat is not this user's to hear"),
            ),
            Err(error) if refusals::is_refusal(error) => Finding::unknown(CHECK, why, ANOTHER),
            Err(error) => Finding::problem(
                CHECK,
                format!("does not answer: {}", error.message),
                "jobs do not move: look whether one runs, start one with muster coordinator",
            ),
        }];
    }
    let Some((deployment, epoch)) = beats.newest() else {
        let seen = format!("no leader's beat within {} ms", beats.waited_ms);
        return vec![Finding::problem(
            CHECK,
            seen,
            "jobs do not move: start one with muster coordinator (workers wait for it)",
        )];
    };
    let leaders: BTreeSet<(&DeploymentId, u64)> =
        beats.heard.iter().map(|(id, epoch)| (id, epoch.0)).collect();
    let mut findings = Vec::new();
    if leaders.len() > 1 {
        let seen = format!("{} leaders beat: {leaders:?}", leaders.len());
        let deployments: BTreeSet<&DeploymentId> = leaders.iter().map(|(id, _)| *id).collect();
        findings.push(if deployments.len() > 1 {
            Finding::problem(
                CHECK,
                seen,
                "two deployments share one namespace: give one of them another (setting namespace)",
            )
        } else {
            Finding::warning(
                CHECK,
                seen,
                "an older leader still beats; the journal refuses what it writes, and it steps \
                    down by itself",
            )
        });
    }
    findings.push(match answers {
        Ok(jobs) => Finding::ok(
            CHECK,
            format!("leads deployment {deployment} in epoch {}, knows {jobs} jobs", epoch.0),
        ),
        Err(error) if refusals::is_refusal(error) => {
            let seen =
                format!("leads deployment {deployment} in epoch {}; {}", epoch.0, error.message);
            Finding::unknown(CHECK, seen, ANOTHER)
        }
        Err(error) => Finding::problem(
            CHECK,
            format!(
                "beats (deployment {deployment}, epoch {}), but does not answer: {}",
                epoch.0, error.message
            ),
            "look at its log; it may wait for the journal",
        ),
    });
    findings
}

/// What a coordinator that answers was asked in vain.
pub(super) fn unanswered(check: &str, error: &Error) -> Finding {
    Finding::unknown(check, error.message.clone(), "ask again, or as another user: muster workers")
}

pub(super) fn workers(workers: &[WorkerStatus]) -> Finding {
    const CHECK: &str = "workers";
    let shares = super::super::workers::Shares::of(workers);
    let names = |state: &str| {
        let named: Vec<&str> = workers
            .iter()
            .filter(|worker| worker.state == state)
            .take(5)
            .map(|worker| worker.id.as_str())
            .collect();
        named.join(", ")
    };
    if shares.total == shares.failed {
        return Finding::problem(
            CHECK,
            format!("none lives ({shares})"),
            "jobs wait for workers: start some with muster worker",
        );
    }
    if shares.failed > 0 {
        return Finding::warning(
            CHECK,
            format!("{shares}: failed are {}", names("failed")),
            "their work has gone to others; look at their logs and hosts",
        );
    }
    if shares.degraded > 0 {
        return Finding::warning(
            CHECK,
            format!("{shares}: degraded are {}", names("degraded")),
            "they are silent or slow at the moment: look at load, disk and network of their hosts",
        );
    }
    let pressed: Vec<&str> = workers
        .iter()
        .filter(|worker| worker.disk_total_bytes > 0 && worker.disk_free_bytes < DISK_BYTES_NONE)
        .map(|worker| worker.id.as_str())
        .take(5)
        .collect();
    if !pressed.is_empty() {
        return Finding::warning(
            CHECK,
            format!("{shares}; the disk is full at {}", pressed.join(", ")),
            "sort tasks that must spill fail there: make room in --data-dir",
        );
    }
    Finding::ok(CHECK, shares.to_string())
}

/// Room for temporary files.
pub(super) fn disk(path: &str, space: Result<(u64, u64), &str>) -> Finding {
    const CHECK: &str = "disk";
    let (free, total) = match space {
        Ok(space) => space,
        Err(why) => {
            return Finding::problem(
                CHECK,
                format!("{path}: {why}"),
                "a worker here could not spill: choose another --data-dir",
            );
        }
    };
    let seen = format!("{path}: {} of {} free", output::bytes(free), output::bytes(total));
    if free < DISK_BYTES_NONE {
        return Finding::problem(
            CHECK,
            seen,
            "a worker here cannot spill: make room, or choose another --data-dir",
        );
    }
    if free < DISK_BYTES_MIN || percent(free, total) < DISK_PERCENT_MIN {
        return Finding::warning(
            CHECK,
            seen,
            "a sort task spills what does not fit in memory: make room",
        );
    }
    Finding::ok(CHECK, seen)
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
