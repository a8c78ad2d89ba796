//! What claims mean, purely: who lives, who holds OUTPUT, and what of a dead owner may go.

use std::collections::BTreeMap;

use super::{Claim, ClaimId, Owner, Process, Ticket};
use muster_protocol::planted::{self, Bug};

/// What the system says of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// It is gone for good: of this boot and process namespace, and no process of that number and
    /// start is there.
    Gone,
    /// It is there.
    There,
    /// It is of another boot or process namespace, or cannot be looked at.
    Unknown,
}

/// Whether an owner lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// Its process is there, or its claim has changed while it was watched.
    Lives,
    /// Its process is gone, or its claim has not changed for longer than the bound.
    Dead,
    /// It has not been watched for long enough.
    Unknown,
}

/// A claim that stands beside one's own.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Its name.
    pub id: ClaimId,
    /// What it says; none where it cannot be read. Whoever wrote that is watched as any other.
    pub claim: Option<Claim>,
    /// Whether its owner lives.
    pub life: Life,
}

impl Seen {
    /// This very claim.
    pub fn ticket(&self) -> Ticket {
        Ticket { id: self.id.clone(), ticket: self.claim.as_ref().map_or(0, |claim| claim.ticket) }
    }
}

/// What follows from the claims that stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// OUTPUT is one's own.
    Hold,
    /// These are dead: they are to be named in one's own claim, then all is looked at again.
    Overrule(Vec<Ticket>),
    /// This one holds it, or will.
    Refuse(ClaimId),
    /// This one has taken it from oneself.
    Lost(ClaimId),
    /// It is not known yet.
    Wait,
}

/// What was seen of the claims, by one's own clock: for each its version, and since when.
#[derive(Debug, Default)]
pub struct Watch {
    seen: BTreeMap<ClaimId, (String, u64, bool)>,
}

impl Watch {
    /// Whether an owner lives whose claim has this version, by a look that was begun at the first
    /// of these times and answered at the second; the third is the bound of silence. What passes
    /// within a look counts for nobody's silence: whoever looks may have been asleep.
    pub fn life(
        &mut self,
        id: &ClaimId,
        version: &str,
        owner: Option<&Owner>,
        known: Known,
        (asked_ms, seen_ms, dead_after_ms): (u64, u64, u64),
    ) -> Life {
        let run_here = owner.is_some_and(|owner| owner.run_here);
        match known {
            Known::Gone if run_here => return Life::Dead,
            Known::There if run_here => return Life::Lives,
            _ => {}
        }
        let (last, since_ms, changed) =
            self.seen.entry(id.clone()).or_insert_with(|| (version.to_owned(), seen_ms, false));
        if last != version {
            (*last, *since_ms, *changed) = (version.to_owned(), seen_ms, true);
        }
        if asked_ms.saturating_sub(*since_ms) > dead_after_ms {
            Life::Dead
        } else if *changed {
            Life::Lives
        } else if planted::is(Bug::SilenceIsDeath) {
            Life::Dead
        } else {
            Life::Unknown
        }
    }
}

/// A ticket after all that stand.
pub fn next_ticket(others: &[Seen]) -> u64 {
    others
        .iter()
        .filter_map(|seen| seen.claim.as_ref())
        .map(|claim| claim.ticket)
        .max()
        .unwrap_or(0)
        + 1
}

/// Who has taken OUTPUT from the owner of this claim. Whether that one lives does not matter: it
/// may have changed OUTPUT before it died.
pub fn overruled_by<'a>(me: &Claim, others: &'a [Seen]) -> Option<&'a Seen> {
    let is_me = |gone: &Ticket| gone.id == me.id && gone.ticket == me.ticket;
    others
        .iter()
        .find(|seen| seen.claim.as_ref().is_some_and(|claim| claim.overruled.iter().any(is_me)))
}

/// What follows for the owner of `me`, which has its ticket.
pub fn decide(me: &Claim, others: &[Seen]) -> Decision {
    if let Some(by) = overruled_by(me, others) {
        return Decision::Lost(by.id.clone());
    }
    let standing = || others.iter().filter(|seen| !me.overruled.contains(&seen.ticket()));
    let mut waits = false;
    for seen in standing().filter(|seen| seen.life != Life::Dead) {
        // One that cannot be read may have come before.
        let ticket = seen.claim.as_ref().map(|claim| claim.ticket);
        let choosing = ticket == Some(0) && !planted::is(Bug::PassOverChoosing);
        let before =
            ticket.is_none_or(|ticket| ticket > 0 && (ticket, &seen.id) < (me.ticket, &me.id));
        if before && seen.life == Life::Lives {
            return Decision::Refuse(seen.id.clone());
        }
        waits |= choosing || before;
    }
    let dead: Vec<Ticket> =
        standing().filter(|seen| seen.life == Life::Dead).map(Seen::ticket).collect();
    match (dead.is_empty(), waits) {
        (false, _) => Decision::Overrule(dead),
        (true, true) => Decision::Wait,
        (true, false) => Decision::Hold,
    }
}

/// What may go of a dead owner, besides its claim: of a run here what it made, for nobody goes on
/// with it. What a pool has made is that pool's to remove.
pub fn may_remove(seen: &Seen, holder: &Claim) -> bool {
    let dead_run = seen.claim.as_ref().is_some_and(|claim| claim.owner.run_here);
    dead_run
        && seen.id != holder.id
        && (holder.overruled.contains(&seen.ticket()) || planted::is(Bug::CleanBesideOwners))
}

/// What the system says of a process, as far as it is this system's: `there` tells whether a
/// process of that number and start is there.
pub fn known(
    own: &Process,
    other: &Process,
    there: impl FnOnce(&Process) -> Option<bool>,
) -> Known {
    let same = !own.boot.is_empty() && own.boot == other.boot && own.namespace == other.namespace;
    match same.then(|| there(other)).flatten() {
        Some(true) => Known::There,
        Some(false) => Known::Gone,
        None => Known::Unknown,
    }
}
