//! From the entries of a journal to the state that a leader goes on from: the newest good snapshot,
//! and the records after it.
//!
//! What stands before that snapshot does not matter, whatever its condition. After it, a damaged
//! piece of a later snapshot is passed over, since a snapshot says nothing that the records before
//! it do not say. A damaged or missing record is another matter: what it decided is not known, and
//! nobody may lead on a guess.
//!
//! What no leader appended says nothing and is passed over, wherever it stands.
//!
//! A piece is known to be damaged by its digest, and to be a piece by what stands at its head. The
//! server keeps checksums of its own over every record, so damage that still reads as a sound
//! record is not looked for here.

use muster_platform::ledger;
use muster_protocol::ids::Epoch;
use muster_protocol::{Error, Result};

use super::fold::Fold;
use super::record::{self, Entry, JOURNAL_VERSION, Record};
use crate::job::ledger::durable::Durable;

/// What a journal comes to.
#[derive(Debug)]
pub struct Replayed {
    /// The state that it gives.
    pub durable: Durable,
    /// Entries that contradicted it and were passed over.
    pub refused: Vec<String>,
    /// Where the good snapshots begin, the oldest first.
    pub snapshots: Vec<u64>,
    /// Damage that was got over, in words.
    pub damage: Vec<String>,
}

/// One entry, as far as it can be read.
enum Seen {
    Good(Entry),
    /// A piece of a snapshot that is not what it was.
    DamagedPiece,
    /// No leader appended it.
    Foreign,
    Damaged(Error),
}

/// Replays entries, which are in order.
///
/// # Errors
/// `Invalid` where a newer build wrote one of them; `Corrupt` where a record is damaged or missing
/// that no snapshot makes up for. The message names its place.
pub fn replay(entries: Vec<ledger::Entry>) -> Result<Replayed> {
    replay_up_to(JOURNAL_VERSION, entries)
}

/// Replays as a build does which knows versions up to `newest`.
fn replay_up_to(newest: u8, entries: Vec<ledger::Entry>) -> Result<Replayed> {
    let mut seen = Vec::with_capacity(entries.len());
    for entry in entries {
        seen.push((entry.sequence, see(newest, entry.sequence, &entry.bytes)?));
    }
    let snapshots = good_snapshots(&seen);
    let begin = match snapshots.last() {
        Some(&(index, _)) => index,
        None => first_record(&seen)?,
    };
    let mut damage = Vec::new();
    for (sequence, _) in seen[..begin].iter().filter(|(_, seen)| !matches!(seen, Seen::Good(_))) {
        damage.push(format!("entry {sequence} is damaged; a later snapshot makes up for it"));
    }
    let mut fold = Fold::default();
    let mut awaited = None;
    for (sequence, seen) in seen.drain(begin..) {
        if let Some(missing) = awaited.filter(|awaited| *awaited != sequence) {
            return Err(unreadable(missing, "it is missing"));
        }
        awaited = Some(sequence + 1);
        match seen {
            Seen::Good(entry) => fold.push(entry),
            Seen::DamagedPiece => {
                damage.push(format!(
                    "entry {sequence}, a piece of a snapshot, is damaged; what \
                        stands before it serves"
                ));
            }
            Seen::Foreign => {
                damage.push(format!(
                    "entry {sequence} is not of a coordinator's making and is \
                    passed over; who may publish there, or ask JetStream for something?"
                ));
            }
            Seen::Damaged(error) => return Err(unreadable(sequence, &error.message)),
        }
    }
    let (durable, refused) = fold.finish();
    let snapshots = snapshots.into_iter().map(|(_, sequence)| sequence).collect();
    Ok(Replayed { durable, refused, snapshots, damage })
}

fn unreadable(sequence: u64, why: &str) -> Error {
    Error::corrupt(format!(
        "the journal's entry {sequence} cannot be read ({why}), and no later snapshot makes up for \
            it: nobody can lead on this journal; restore its stream from a copy"
    ))
}

fn see(newest: u8, sequence: u64, bytes: &[u8]) -> Result<Seen> {
    if bytes == ledger::FOREIGN {
        return Ok(Seen::Foreign);
    }
    if let Some(version) = bytes.first().filter(|version| **version > newest) {
        return Err(Error::invalid(format!(
            "the journal's entry {sequence} was written by a newer build (version {version}, this \
                one reads up to version {newest}): update this coordinator"
        )));
    }
    Ok(match record::decode(bytes) {
        Ok(Entry { record: Record::Snapshot { digest, records, .. }, .. })
            if record::digest(&records) != digest =>
        {
            Seen::DamagedPiece
        }
        Ok(entry) => Seen::Good(entry),
        Err(_) if is_piece(bytes) => Seen::DamagedPiece,
        Err(error) => Seen::Damaged(error),
    })
}

/// Whether bytes that cannot be read begin as a piece of a snapshot does, in every version so far.
fn is_piece(bytes: &[u8]) -> bool {
    let body = bytes.get(1..).unwrap_or_default();
    let empty = Record::Snapshot { id: 0, part: 0, of: 0, digest: 0, records: Vec::new() };
    let variant =
        |bytes: &[u8]| postcard::take_from_bytes::<u32>(bytes).ok().map(|(variant, _)| variant);
    let head = postcard::take_from_bytes::<(Epoch, u64, u32, u64, u32, u32)>(body).ok();
    let expected = postcard::to_stdvec(&empty).ok().and_then(|bytes| variant(&bytes));
    head.is_some_and(|((_, _, found, _, part, of), _)| Some(found) == expected && part < of)
}

/// Snapshots of which all pieces stand and are good: index and sequence number of the first piece
/// of each.
fn good_snapshots(seen: &[(u64, Seen)]) -> Vec<(usize, u64)> {
    let mut found = Vec::new();
    // The snapshot at hand: its id, the next piece's number and place, and where it begins.
    let mut at_hand: Option<(u64, u32, u64, (usize, u64))> = None;
    for (index, (sequence, seen)) in seen.iter().enumerate() {
        at_hand = match seen {
            Seen::Good(Entry { record: Record::Snapshot { id, part, of, .. }, .. }) => {
                let begin = match at_hand {
                    _ if *part == 0 => Some((index, *sequence)),
                    Some((known, next, place, begin))
                        if (known, next, place) == (*id, *part, *sequence) =>
                    {
                        Some(begin)
                    }
                    _ => None,
                };
                match part.checked_add(1) {
                    Some(next) if next == *of => {
                        found.extend(begin);
                        None
                    }
                    next => {
                        next.and_then(|next| begin.map(|begin| (*id, next, sequence + 1, begin)))
                    }
                }
            }
            Seen::Good(Entry { record: Record::StillLeads, .. }) => at_hand
                .filter(|(_, _, place, _)| place == sequence)
                .map(|(id, next, place, begin)| (id, next, place + 1, begin)),
            _ => None,
        };
    }
    found
}

/// Where a journal without a good snapshot begins: with its first record, if that is still there.
/// What is foreign may stand before it, or alone.
fn first_record(seen: &[(u64, Seen)]) -> Result<usize> {
    match seen.iter().find(|(_, seen)| !matches!(seen, Seen::Foreign)) {
        None => Ok(0),
        Some((_, Seen::Good(Entry { record: Record::DeploymentCreated { .. }, .. }))) => Ok(0),
        Some((sequence, Seen::Damaged(error))) => Err(unreadable(*sequence, &error.message)),
        Some((sequence, _)) => Err(Error::corrupt(format!(
            "the journal begins with entry {sequence}, and none of its snapshots is whole: what \
                was decided before it is lost, and nobody can lead on it; restore its stream from \
                a copy"
        ))),
    }
}

#[cfg(test)]
#[path = "replay_tests.rs"]
mod tests;
