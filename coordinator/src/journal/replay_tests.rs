//! Journals over the memory ledger, damaged one entry at a time.

use bytes::Bytes;
use muster_platform::adapters::memory::MemoryLedger;
use muster_platform::ledger::{Appended, Ledger};
use muster_protocol::ErrorKind;
use muster_protocol::ids::DeploymentId;
use muster_protocol::wire::Message;

use super::super::fold::{compact, snapshot};
use super::*;

/// Entries as they would stand: two snapshots with records around them.
struct Bench {
    ledger: MemoryLedger,
    durable: Durable,
    /// Sequence numbers of the pieces of each snapshot.
    pieces: Vec<Vec<u64>>,
    /// Whether the fence asks after each piece.
    asks: bool,
    /// In which version it writes.
    version: u8,
}

impl Bench {
    async fn new() -> Self {
        let mut bench = Self {
            ledger: MemoryLedger::default(),
            durable: Durable::default(),
            pieces: Vec::new(),
            asks: false,
            version: 1,
        };
        let deployment: DeploymentId = "d1".parse().expect("id");
        bench.write(Record::DeploymentCreated { deployment }).await;
        bench.epoch(1).await;
        bench.snapshot(11).await;
        bench.epoch(2).await;
        bench.epoch(3).await;
        bench.snapshot(12).await;
        bench.epoch(4).await;
        bench
    }

    async fn write(&mut self, record: Record) -> u64 {
        let epoch = match record {
            Record::EpochBegan { epoch, .. } => epoch,
            _ => self.durable.epoch,
        };
        let entry = Entry { epoch, nonce: 7, record };
        if !matches!(entry.record, Record::Snapshot { .. }) {
            self.durable.apply(&entry.record).expect("a sound record");
        }
        let last = self.ledger.last_sequence().await.expect("last");
        let bytes: Bytes = entry.to_frame(self.version).expect("encode").into();
        match self.ledger.append(last, bytes).await {
            Appended::Applied { sequence } => sequence,
            other => panic!("{other:?}"),
        }
    }

    async fn epoch(&mut self, epoch: u64) {
        self.write(Record::EpochBegan { epoch: Epoch(epoch), nonce: epoch }).await;
    }

    /// A snapshot of three pieces: its records, and two pieces without any.
    async fn snapshot(&mut self, id: u64) {
        let whole = snapshot(&self.durable, id).expect("snapshot");
        assert_eq!(whole.len(), 1);
        let mut sequences = Vec::new();
        for part in 0..3 {
            let records = if part == 0 { compact(&self.durable) } else { Vec::new() };
            let digest = record::digest(&records);
            sequences.push(self.write(Record::Snapshot { id, part, of: 3, digest, records }).await);
            if self.asks {
                self.write(Record::StillLeads).await;
            }
        }
        self.pieces.push(sequences);
    }

    async fn entries(&self) -> Vec<ledger::Entry> {
        self.ledger.read_from(1).await.expect("read")
    }

    /// The entries, one of them changed.
    async fn damaged(&self, sequence: u64, damage: impl Fn(&mut Vec<u8>)) -> Vec<ledger::Entry> {
        let mut entries = self.entries().await;
        let entry = entries.iter_mut().find(|entry| entry.sequence == sequence).expect("entry");
        let mut bytes = entry.bytes.to_vec();
        damage(&mut bytes);
        entry.bytes = bytes.into();
        entries
    }
}

/// Cuts what can be cut without touching the head of a piece.
fn truncate(bytes: &mut Vec<u8>) {
    bytes.truncate(bytes.len() - 2);
}

#[tokio::test]
async fn a_sound_journal_gives_its_state() {
    let bench = Bench::new().await;
    let replayed = replay(bench.entries().await).expect("replay");
    assert_eq!(replayed.durable, bench.durable);
    assert_eq!((replayed.refused.len(), replayed.damage.len()), (0, 0));
    assert_eq!(replayed.snapshots, [bench.pieces[0][0], bench.pieces[1][0]]);
    assert_eq!(
        replay(Vec::new()).expect("replay").durable,
        Durable::default(),
        "so does an empty one"
    );
}

/// What a fence has asked stands among all else, and says nothing about it.
#[tokio::test]
async fn what_a_fence_has_asked_changes_nothing() {
    let mut bench = Bench { asks: true, ..Bench::new().await };
    let before = bench.durable.clone();
    bench.write(Record::StillLeads).await;
    assert_eq!(bench.durable, before);
    bench.snapshot(13).await;
    bench.epoch(5).await;
    let first = bench.pieces[2][0];
    let replayed = replay(bench.entries().await).expect("replay");
    assert_eq!((&replayed.durable, replayed.snapshots.last()), (&bench.durable, Some(&first)));
    // With nothing before it, the snapshot alone gives the state.
    bench.ledger.purge_before(first).await.expect("purge");
    let replayed = replay(bench.entries().await).expect("replay");
    assert_eq!((replayed.durable, replayed.snapshots), (bench.durable, vec![first]));
    assert_eq!((replayed.refused.len(), replayed.damage.len()), (0, 0));
}

#[tokio::test]
async fn a_damaged_snapshot_is_made_up_for() {
    let bench = Bench::new().await;
    for pieces in &bench.pieces {
        for piece in pieces {
            let flip_last: fn(&mut Vec<u8>) =
                |bytes| bytes.iter_mut().last().into_iter().for_each(|byte| *byte ^= 0x41);
            for damage in [truncate, flip_last] {
                let replayed = replay(bench.damaged(*piece, damage).await).expect("replay");
                assert_eq!(replayed.durable, bench.durable, "piece {piece}");
                assert_eq!(replayed.refused, Vec::<String>::new());
                assert_eq!(replayed.damage.len(), 1, "{:?}", replayed.damage);
                assert!(
                    replayed.damage[0].contains(&format!("entry {piece}")),
                    "{:?}",
                    replayed.damage
                );
                assert_eq!(replayed.snapshots.len(), 1);
            }
        }
    }
}

#[tokio::test]
async fn after_a_purge_an_older_snapshot_serves() {
    let bench = Bench::new().await;
    bench.ledger.purge_before(bench.pieces[0][0]).await.expect("purge");
    let replayed = replay(bench.damaged(bench.pieces[1][1], truncate).await).expect("replay");
    assert_eq!(replayed.durable, bench.durable);
    // Without any, nothing is known.
    bench.ledger.purge_before(bench.pieces[1][0]).await.expect("purge");
    let error = replay(bench.damaged(bench.pieces[1][1], truncate).await).expect_err("lost");
    assert!(
        error.kind == ErrorKind::Corrupt && error.message.contains("none of its snapshots"),
        "{error}"
    );
}

#[tokio::test]
async fn a_damaged_record_counts_unless_a_snapshot_follows() {
    let bench = Bench::new().await;
    let newest = bench.pieces[1][0];
    for entry in bench.entries().await {
        let sequence = entry.sequence;
        if bench.pieces.concat().contains(&sequence) {
            continue;
        }
        let replayed = replay(bench.damaged(sequence, |bytes| bytes.truncate(2)).await);
        if sequence < newest {
            assert_eq!(replayed.expect("replay").durable, bench.durable);
        } else {
            let error = replayed.expect_err("refused");
            assert_eq!(error.kind, ErrorKind::Corrupt);
            assert!(error.message.contains(&format!("entry {sequence} ")), "{error}");
        }
        let mut entries = bench.entries().await;
        entries.retain(|entry| entry.sequence != sequence);
        let last = entries.last().map(|entry| entry.sequence);
        match replay(entries) {
            Ok(replayed) if sequence < newest => assert_eq!(replayed.durable, bench.durable),
            // A record that is cut off at the end cannot be missed: the stream's next number tells
            // the writer.
            Ok(_) => assert_eq!(last, Some(sequence - 1)),
            Err(error) => assert!(error.message.contains(&format!("entry {sequence} ")), "{error}"),
        }
    }
}

#[tokio::test]
async fn a_newer_build_is_told_from_damage() {
    let bench = Bench::new().await;
    for entry in bench.entries().await {
        let error =
            replay(bench.damaged(entry.sequence, |bytes| bytes[0] = JOURNAL_VERSION + 1).await);
        let error = error.expect_err("refused");
        assert!(
            error.kind == ErrorKind::Invalid && error.message.contains("newer build"),
            "{error}"
        );
    }
}

/// A build of the next version reads what this one wrote, before and after its own.
#[tokio::test]
async fn a_journal_that_an_older_build_began_gives_the_same_state() {
    let old = Bench::new().await;
    let replayed = replay_up_to(2, old.entries().await).expect("replay");
    assert_eq!((replayed.durable, replayed.damage.len()), (old.durable.clone(), 0));
    let mut bench = Bench { version: 2, ..old };
    bench.epoch(5).await;
    let both = bench.entries().await;
    assert_eq!(both.iter().map(|entry| entry.bytes[0]).max(), Some(2));
    let replayed = replay_up_to(2, both.clone()).expect("replay");
    assert_eq!((&replayed.durable, replayed.damage.len()), (&bench.durable, 0));
    bench.snapshot(13).await;
    bench.epoch(6).await;
    let replayed = replay_up_to(2, bench.entries().await).expect("replay");
    assert_eq!((&replayed.durable, replayed.snapshots.len()), (&bench.durable, 3));
    // A damaged piece is known as one in either version.
    for piece in [bench.pieces[1][1], bench.pieces[2][1]] {
        let replayed = replay_up_to(2, bench.damaged(piece, truncate).await).expect("replay");
        assert_eq!((&replayed.durable, replayed.damage.len()), (&bench.durable, 1));
    }
    let error = replay_up_to(1, both).expect_err("newer");
    assert!(
        error.kind == ErrorKind::Invalid
            && error.message.contains("newer build (version 2, this one reads up to version 1)"),
        "{error}"
    );
}

#[tokio::test]
async fn what_no_leader_wrote_is_passed_over() {
    let bench = Bench::new().await;
    let all = bench.entries().await;
    for at in 0..=all.len() {
        let mut entries = all.clone();
        entries.insert(at, ledger::Entry { sequence: 0, bytes: ledger::FOREIGN });
        for (index, entry) in entries.iter_mut().enumerate() {
            entry.sequence = index as u64 + 1;
        }
        let replayed = replay(entries).expect("replay");
        assert_eq!(replayed.durable, bench.durable, "before entry {at}");
        assert_eq!(
            (replayed.refused.len(), replayed.damage.len()),
            (0, 1),
            "{:?}",
            replayed.damage
        );
    }
    let alone = vec![ledger::Entry { sequence: 1, bytes: ledger::FOREIGN }];
    assert_eq!(
        replay(alone).expect("replay").durable,
        Durable::default(),
        "a journal may begin after it"
    );
}

/// Every byte of the newest snapshot, flipped in turn: the state is the same, or nobody leads.
#[tokio::test]
async fn no_flipped_byte_of_a_snapshot_gives_another_state() {
    let bench = Bench::new().await;
    let piece = bench.pieces[1][0];
    let len = bench
        .entries()
        .await
        .iter()
        .find(|entry| entry.sequence == piece)
        .expect("entry")
        .bytes
        .len();
    let mut resumed = 0;
    for at in 0..len {
        match replay(bench.damaged(piece, |bytes| bytes[at] ^= 0xff).await) {
            Ok(replayed) => {
                assert_eq!(replayed.durable, bench.durable, "byte {at}");
                resumed += 1;
            }
            Err(error) => {
                assert!(matches!(error.kind, ErrorKind::Corrupt | ErrorKind::Invalid), "{error}");
            }
        }
    }
    assert!(resumed > len / 2, "{resumed} of {len}");
}

#[test]
fn a_piece_with_the_last_number_there_is_completes_nothing() {
    for (part, of) in [(u32::MAX, 0), (u32::MAX, u32::MAX), (0, 0)] {
        let piece = Record::Snapshot {
            id: 1,
            part,
            of,
            digest: record::digest::<Record>(&[]),
            records: Vec::new(),
        };
        let first = Record::DeploymentCreated { deployment: "d1".parse().expect("id") };
        let entries = (1..).zip([first, piece]).map(|(sequence, record)| {
            let bytes =
                record::encode(&Entry { epoch: Epoch(0), nonce: 0, record }).expect("encode");
            ledger::Entry { sequence, bytes: Bytes::from(bytes) }
        });
        let replayed = replay(entries.collect()).expect("a journal that can be read");
        assert!(
            replayed.durable.deployment.is_some() && replayed.snapshots.is_empty(),
            "piece {part} of {of}"
        );
    }
}
