//! The journal: single entries, and the replay of several, pieces of snapshots among them. An entry
//! that is accepted reads back as it was; a state that replay gives is the state that its own
//! snapshot gives.
//!
//! An input: entries, each behind its length.

use bytes::Bytes;
use muster_coordinator::journal::fold;
use muster_coordinator::journal::record::{self, Entry, Record};
use muster_coordinator::journal::replay::{Replayed, replay};
use muster_platform::ledger;
use muster_protocol::ids::Epoch;

use super::{piece, push_piece};

/// Replays bytes: as they come, and with digests of snapshots made anew.
pub fn target(mut data: &[u8]) {
    single(data);
    let mut entries = Vec::new();
    while !data.is_empty() {
        let bytes = piece(&mut data);
        single(bytes);
        entries.push(bytes.to_vec());
    }
    all(&entries);
    let sealed: Vec<Vec<u8>> =
        entries.iter().map(|bytes| sealed(bytes).unwrap_or_else(|| bytes.clone())).collect();
    if sealed != entries {
        all(&sealed);
    }
}

fn single(bytes: &[u8]) {
    if let Ok(entry) = record::decode(bytes) {
        let _ = entry.record.kind();
        let Ok(again) = record::encode(&entry) else { return };
        assert_eq!(record::decode(&again).as_ref(), Ok(&entry));
    }
}

fn sealed(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut entry = record::decode(bytes).ok()?;
    let Record::Snapshot { digest, records, .. } = &mut entry.record else { return None };
    *digest = record::digest(records);
    record::encode(&entry).ok()
}

fn replayed(entries: &[Vec<u8>]) -> Option<Replayed> {
    let stand = |(sequence, bytes): (u64, &Vec<u8>)| ledger::Entry {
        sequence,
        bytes: Bytes::copy_from_slice(bytes),
    };
    replay((1..).zip(entries).map(stand).collect()).ok()
}

fn all(entries: &[Vec<u8>]) {
    let Some(first) = replayed(entries) else { return };
    // Contradictory histories may hold what no leader writes; what a snapshot says of them is sound
    // again.
    let Some(second) = replayed(&snapshot(&first)) else {
        panic!("a snapshot of our own cannot be read")
    };
    let Some(third) = replayed(&snapshot(&second)) else {
        panic!("a snapshot of our own cannot be read")
    };
    if second.refused.is_empty() {
        assert_eq!(
            third.durable, second.durable,
            "a snapshot gives the state that it was taken of"
        );
    }
}

fn snapshot(of: &Replayed) -> Vec<Vec<u8>> {
    let records = fold::snapshot(&of.durable, 9).expect("a snapshot");
    let epoch = of.durable.epoch;
    records
        .into_iter()
        .map(|record| record::encode(&Entry { epoch, nonce: 7, record }).expect("it fits"))
        .collect()
}

/// The golden bytes as one journal, its snapshot, and a piece of a snapshot within itself many
/// times over.
pub fn seeds() -> Vec<Vec<u8>> {
    const V1: &str = include_str!("../../../coordinator/src/journal/record/golden/v1.txt");
    let entries: Vec<Vec<u8>> = super::lines(V1).map(|(_, bytes)| bytes).collect();
    let mut seeds = vec![joined(&entries)];
    seeds.extend(entries.iter().cloned());
    // Pieces of snapshots stand alone in the golden bytes; here they follow a beginning.
    let plain = |bytes: &&Vec<u8>| {
        !matches!(record::decode(bytes), Ok(Entry { record: Record::Snapshot { .. }, .. }))
    };
    let plain: Vec<Vec<u8>> = entries.iter().filter(plain).cloned().collect();
    seeds.push(joined(&plain));
    if let Some(state) = replayed(&plain) {
        seeds.push(joined(&snapshot(&state)));
        seeds.push(joined(&[plain, snapshot(&state)].concat()));
    }
    for (part, of) in [(0, 0), (0, 2), (u32::MAX, 0), (u32::MAX - 1, u32::MAX)] {
        let record = Record::Snapshot {
            id: 1,
            part,
            of,
            digest: record::digest::<Record>(&[]),
            records: Vec::new(),
        };
        let entry = record::encode(&Entry { epoch: Epoch(1), nonce: 0, record }).expect("an entry");
        let first = Record::DeploymentCreated { deployment: "d1".parse().expect("id") };
        let first =
            record::encode(&Entry { epoch: Epoch(1), nonce: 0, record: first }).expect("an entry");
        seeds.push(joined(&[first, entry]));
    }
    seeds.push(joined(&[nested(8)]));
    seeds.push(nested(9000));
    seeds
}

fn joined(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut journal = Vec::new();
    entries.iter().for_each(|entry| push_piece(&mut journal, entry));
    journal
}

/// A piece of a snapshot that holds a piece of a snapshot, and so on, put together from the bytes
/// of a shallow one.
fn nested(depth: usize) -> Vec<u8> {
    let piece = |records| Record::Snapshot { id: 1, part: 0, of: 1, digest: 0, records };
    let entry =
        |record| record::encode(&Entry { epoch: Epoch(1), nonce: 0, record }).expect("an entry");
    let (flat, one) = (entry(piece(Vec::new())), entry(piece(vec![piece(Vec::new())])));
    let inner = flat.len() - (one.len() - flat.len());
    let (head, level) = (&flat[..inner], &one[inner..flat.len()]);
    let mut bytes = head.to_vec();
    // Each level says that one record follows, but the last.
    let mut open = level.to_vec();
    if let Some(count) = open.last_mut() {
        *count = 1;
    }
    bytes.extend(open.repeat(depth));
    bytes.extend_from_slice(level.split_last().map_or(&[][..], |(_, rest)| rest));
    bytes.push(0);
    bytes
}
