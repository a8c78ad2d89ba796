//! Who may change one OUTPUT: a claim that lies in OUTPUT itself, where every process that sees
//! that place sees it too, whichever deployment, host or path it comes by.
//!
//! A claim is a small object of its own name, `OUTPUT/_muster/claims/<deployment>.<job>.json`,
//! which its owner alone writes. Who holds OUTPUT is decided by Lamport's bakery over listings of
//! that folder: whoever wants it writes a claim without a ticket, draws one higher than all it
//! sees, and holds OUTPUT once nobody before it lives. So all that is asked of a store is that it
//! lists and reads what was written; conditional writes, locks and exclusive creation, in which
//! stores differ, are not needed.
//!
//! ```text
//! claim.rs      what a claim says, as bytes
//! judge.rs      who lives, who holds, what may go: pure
//! hold.rs       takes, renews, confirms, releases
//! leftovers.rs  removes what a dead run here has left
//! ```
//!
//! **Dead or alive.** A run here names its process; whoever is of the same boot and process
//! namespace asks the system, and knows at once. Every other owner changes its claim every
//! `claim.renew_ms`, and whoever wants OUTPUT watches by its own clock: what has not changed for
//! `claim.dead_after_ms` is dead. Clocks of two hosts are never compared. Whoever takes OUTPUT from
//! a dead owner names it in its own claim (`overruled`) before it touches anything. An owner that
//! was only asleep finds that before its next change, and stops.

use serde::{Deserialize, Serialize};

use muster_protocol::error::{Error, Result};
use muster_protocol::ids::ClaimId;
use muster_protocol::wire::BlobRef;

mod hold;
pub mod judge;
mod leftovers;
#[cfg(test)]
mod tests;

pub use hold::{Claims, Found, Held, Permit};
pub use leftovers::{Removed, remove_dead};

/// Version of the claim's layout.
const VERSION: u32 = 1;
/// Largest claim that is read, in bytes.
pub const CLAIM_BYTES_MAX: u64 = 64 << 10;
/// Claims are filled up with blanks to a multiple of this: one that is read while it is renewed has
/// the length that was seen.
const FILL_BYTES: usize = 1024;
/// Claims that one folder may hold.
pub const CLAIMS_MAX: usize = 10_000;
/// Owners that one claim overrules at most, and marks of uploads that it names.
const NAMED_MAX: usize = 256;
/// Longest text of an owner, in bytes.
const TEXT_BYTES_MAX: usize = 256;
/// Highest ticket. Each new one is higher by one than those that stand, so nobody draws this.
const TICKET_MAX: u64 = 1 << 40;

/// A process, as others of the same boot and process namespace can look for it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// When it began, in ticks since the boot: numbers are used again.
    pub start: u64,
    /// The boot's random id.
    pub boot: String,
    /// The process namespace.
    pub namespace: String,
}

/// Who makes claims: one process.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Owner {
    /// Its host's name, for people.
    pub host: String,
    /// The process.
    pub process: Process,
    /// Whether the job ends with this process: a run here. A pool's job goes on with the next
    /// leader.
    pub run_here: bool,
    /// Version of the program.
    pub program: String,
    /// What the temporary names of this process's uploads begin with: 8 hex digits.
    pub mark: Option<String>,
}

/// One claim of an owner, which may make another later: that has a higher ticket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ticket {
    /// Whose.
    pub id: ClaimId,
    /// Its place in the order; 0 where its claim could not be read.
    pub ticket: u64,
}

/// What a claim says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Of this layout.
    pub version: u32,
    /// Whose it is; its name says the same.
    pub id: ClaimId,
    /// Its place in the order; 0 while it is being drawn.
    pub ticket: u64,
    /// Changes with each renewal.
    pub beat: u64,
    /// Who renews it.
    pub owner: Owner,
    /// When OUTPUT was claimed, in milliseconds since the Unix epoch, by the owner's clock; for
    /// people.
    pub since_unix_ms: u64,
    /// Dead owners from whom OUTPUT was taken.
    pub overruled: Vec<Ticket>,
    /// Marks of the uploads of all processes that had this claim.
    pub marks: Vec<String>,
    /// The manifest in scratch, from the moment on when parts begin to appear.
    pub publishing: Option<BlobRef>,
}

impl Claim {
    /// As it is written.
    ///
    /// # Errors
    /// `Bug` where it cannot be encoded.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec(self)
            .map_err(|e| Error::bug(format!("a claim cannot be written: {e}")))?;
        bytes.resize((bytes.len() + 1).next_multiple_of(FILL_BYTES) - 1, b' ');
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// Reads one that stands under this name. It comes from whoever can write there, so all of it
    /// is bounded.
    ///
    /// # Errors
    /// `Invalid` where it is none that a build of this layout writes.
    pub fn from_bytes(name: &ClaimId, bytes: &[u8]) -> Result<Self> {
        let no_claim =
            |why: &str| Error::invalid(format!("the claim {name} cannot be read: {why}"));
        if bytes.len() as u64 > CLAIM_BYTES_MAX {
            return Err(no_claim("it is too long"));
        }
        let claim: Claim = serde_json::from_slice(bytes).map_err(|e| no_claim(&e.to_string()))?;
        let Owner { host, process, program, mark, .. } = &claim.owner;
        let texts = [host, &process.boot, &process.namespace, program];
        let is_mark =
            |mark: &String| mark.len() == 8 && mark.bytes().all(|b| b.is_ascii_hexdigit());
        let sound = claim.version == VERSION
            && claim.id == *name
            && claim.ticket < TICKET_MAX
            && texts
                .iter()
                .all(|text| text.len() <= TEXT_BYTES_MAX && !text.contains(char::is_control))
            && claim.overruled.len() <= NAMED_MAX
            && claim.marks.len() <= NAMED_MAX
            && claim.marks.iter().chain(mark).all(is_mark)
            && claim
                .publishing
                .as_ref()
                .is_none_or(|kept| kept.url.len() <= muster_protocol::plan::TEXT_BYTES_MAX);
        if sound { Ok(claim) } else { Err(no_claim("it says what no claim of this version says")) }
    }

    /// Who holds it, for people.
    pub fn describe(&self) -> String {
        let Owner { host, process, run_here, .. } = &self.owner;
        let since = humantime::format_rfc3339_seconds(
            std::time::UNIX_EPOCH
                + std::time::Duration::from_millis(self.since_unix_ms.min(253_402_300_799_000)),
        );
        let ClaimId { deployment, job } = &self.id;
        let whose = if *run_here {
            format!("job {job} of process {} on host {host}", process.pid)
        } else {
            format!(
                "job {job} of deployment {deployment} (coordinator: process {} on host {host})",
                process.pid
            )
        };
        format!("{whose} since {since}")
    }
}
