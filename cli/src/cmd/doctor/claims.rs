//! Who claims an OUTPUT, and what dead runs have left there. Both are seen without NATS: claims lie
//! in OUTPUT itself. To mend is to claim it, as the next run would: so nothing is removed beside an
//! owner that lives, and nobody begins in the midst of it.

use std::sync::{Arc, Mutex, PoisonError};

use muster_platform::adapters::processes;
use muster_platform::claim::judge::Life;
use muster_platform::claim::{Claim, Claims, Found};
use muster_platform::clock::{Clock, SystemClock};
use muster_platform::config::Config;
use muster_platform::store::BlobUrl;
use muster_platform::stores::Stores;
use muster_protocol::ids::{InvalidId, JobId};
use muster_protocol::names;
use muster_protocol::{Error, Result};

use super::finding::Finding;
use crate::output;

const CHECK: &str = "output-claims";
const LEFT: &str = "output-leftovers";
/// The deployment that a doctor claims for: none of a journal.
const DEPLOYMENT: &str = "doctor";
/// Objects below the scratch folder that are looked at.
const LISTED_MAX: usize = 1_000_000;

/// An OUTPUT with claims of dead owners.
#[derive(Debug, Clone)]
pub(super) struct Dead {
    pub(super) output: BlobUrl,
    /// How many.
    pub(super) owners: usize,
}

/// What was told while claims were taken.
type Said = Arc<Mutex<Vec<String>>>;

/// A hand in claims, with what it says.
fn claims(config: &Config) -> Result<(Claims, JobId, Said)> {
    let bug = |e: InvalidId| Error::bug(e.to_string());
    let clock = SystemClock::default();
    let job = format!("doctor-{:08x}", clock.random() as u32).parse().map_err(bug)?;
    let said = Said::default();
    let say = {
        let said = said.clone();
        move |what: &str| said.lock().unwrap_or_else(PoisonError::into_inner).push(what.to_owned())
    };
    let owner = processes::own(true, None);
    let deployment = DEPLOYMENT.parse().map_err(bug)?;
    let claims =
        Claims::new(deployment, owner, processes::look, say, Arc::new(clock), config.claim.clone());
    Ok((claims, job, said))
}

/// Looks at the claims, for as long as an owner that lives needs to show it, and at what else lies
/// in the folder of scratch.
///
/// # Errors
/// The store's.
pub(super) async fn look(
    stores: &Stores,
    config: &Config,
    output: &BlobUrl,
) -> Result<(Vec<Finding>, Option<Dead>)> {
    let (claims, job, _) = claims(config)?;
    let found = claims.find(stores, output, &job, config.claim.renew_ms.saturating_mul(3)).await?;
    let mut findings: Vec<Finding> =
        found.iter().map(|found| judge(output, found, config)).collect();
    if found.is_empty() {
        findings.push(Finding::ok(CHECK, format!("nobody claims {output}")));
    }
    let dead = found.iter().filter(|found| found.seen.life == Life::Dead).count();
    if found.is_empty() {
        findings.push(unclaimed(stores, output).await?);
    }
    Ok((findings, (dead > 0).then(|| Dead { output: output.clone(), owners: dead })))
}

fn judge(output: &BlobUrl, found: &Found, config: &Config) -> Finding {
    let who = found.seen.claim.as_ref().map_or_else(
        || format!("a claim that this version cannot read ({})", found.seen.id),
        Claim::describe,
    );
    match found.seen.life {
        Life::Lives => Finding::ok(CHECK, format!("{output} is held by {who}; it is alive")),
        Life::Dead => {
            let left = if found.size.is_nothing() {
                "nothing but its claim".to_owned()
            } else {
                found.size.to_string()
            };
            let advice = "the next run into it removes that; so does muster doctor --output \
                --mend, which asks";
            Finding::warning(
                CHECK,
                format!("{output} was held by {who}, which is dead and has left {left}"),
                advice,
            )
        }
        Life::Unknown => {
            let bound = config.claim.dead_after_ms;
            let seen = format!(
                "{output} is claimed by {who}, which has shown no sign of life while it was watched"
            );
            Finding::unknown(
                CHECK,
                seen,
                format!("whoever wants {output} watches for {bound} ms (claim.dead_after_ms)"),
            )
        }
    }
}

/// Scratch in an OUTPUT that nobody claims: of a version without claims, or of a job whose clean-up
/// was given up.
async fn unclaimed(stores: &Stores, output: &BlobUrl) -> Result<Finding> {
    let folder = output.join(names::SCRATCH_DIR);
    let listed = stores
        .open(output)
        .await?
        .list(folder.key(), LISTED_MAX)
        .await
        .map_err(|e| e.at(&folder))?;
    if listed.is_empty() {
        return Ok(Finding::ok(LEFT, format!("nothing in {folder}")));
    }
    let bytes = listed.iter().map(|meta| meta.bytes).sum();
    let seen = format!(
        "{} objects ({}) lie in {folder}, and nobody claims {output}",
        listed.len(),
        output::bytes(bytes)
    );
    let advice = "where a pool keeps its scratch there, muster doctor --bucket beside its \
        coordinator tells whose they are; else an older version, or a clean-up that was given up, \
        has left them";
    Ok(Finding::warning(LEFT, seen, advice))
}

/// Claims OUTPUT as a run would, by which what dead runs have left goes, and gives it up again.
///
/// # Errors
/// `Invalid` where an owner lives by now; else the store's.
pub(super) async fn mend(stores: &Stores, config: &Config, dead: &Dead) -> Result<String> {
    let (claims, job, said) = claims(config)?;
    claims.take(stores, &dead.output, &job, true, &()).await?;
    claims.release(stores, &dead.output, &job, &()).await?;
    let said = said.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(if said.is_empty() {
        format!("removed the claims of {} dead owner(s) from {}", dead.owners, dead.output)
    } else {
        said.join("; ")
    })
}
