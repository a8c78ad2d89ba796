//! The footer and the index of a run: as they come, and with checksums made anew. An index that is
//! accepted tiles the run up to where it begins itself.

use muster_kernel::error::KernelError;
use muster_kernel::format::Format;
use muster_kernel::run::{RunFooter, RunIndex, RunWriter, Sink};
use muster_protocol::wire;

/// Keeps what is written.
#[derive(Default)]
pub(super) struct Keep(pub(super) Vec<u8>);

impl Sink for Keep {
    type Error = KernelError;

    fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }

    fn flushed(&mut self) -> Result<(), KernelError> {
        Ok(())
    }
}

/// A run of stored records, one list a partition.
pub(super) fn run_of(format: &Format, partitions: &[&[&[u8]]]) -> (RunIndex, Vec<u8>) {
    let mut writer = RunWriter::new(Keep::default(), format.frame());
    for records in partitions {
        writer.begin_partition().expect("the sink takes all");
        records.iter().for_each(|record| writer.push(record).expect("the sink takes all"));
    }
    let (index, Keep(bytes)) = writer.finish().expect("the sink takes all");
    (index, bytes)
}

/// Reads bytes as the end of a run object.
pub fn target(data: &[u8]) {
    read(data);
    if let Some(sealed) = sealed(data) {
        read(&sealed);
    }
}

fn read(object: &[u8]) {
    let Some(at) = object.len().checked_sub(RunFooter::LEN) else {
        assert!(RunFooter::decode(object, object.len() as u64).is_err());
        return;
    };
    let Ok(footer) = RunFooter::decode(&object[at..], object.len() as u64) else { return };
    let begin = usize::try_from(footer.index_offset()).expect("an offset within the object");
    let Ok(index) = RunIndex::decode(&object[begin..at], &footer) else { return };
    assert_eq!(index.digest(), footer.index_digest(), "written again it is the same bytes");
    assert_eq!(index.file_bytes(), object.len() as u64);
    let mut next = 0;
    for piece in index.pieces() {
        assert_eq!(piece.offset, next);
        assert!(piece.len == 0 || u64::from(piece.block_payload_max) < piece.len);
        next += piece.len;
    }
    assert_eq!(next, footer.index_offset(), "the pieces are all that stands before the index");
    assert!(index.piece(index.partitions()).is_none());
    let _ = index.kept();
}

/// The same bytes under checksums that fit.
fn sealed(data: &[u8]) -> Option<Vec<u8>> {
    let mut object = data.to_vec();
    let at = object.len().checked_sub(RunFooter::LEN)?;
    let index_bytes = u32::from_le_bytes(object[at + 12..at + 16].try_into().ok()?) as usize;
    // Where a changed length has moved the end, the index is what is left before the footer.
    let offset = at.saturating_sub(index_bytes);
    let digest = wire::digest(&object[offset..at]);
    let len = object.len() as u64;
    object[at + 24..at + 32].copy_from_slice(&digest.to_le_bytes());
    object[at + 32..at + 40].copy_from_slice(&len.to_le_bytes());
    let digest = wire::digest(&object[at..at + 40]);
    object[at + 40..].copy_from_slice(&digest.to_le_bytes());
    Some(object)
}

/// Runs of no, one and several partitions.
pub fn seeds() -> Vec<Vec<u8>> {
    let lines = Format::lines(b'\n');
    let fixed = Format::fixed(4);
    [
        run_of(&lines, &[]),
        run_of(&lines, &[&[b"a\n", b"b\n"]]),
        run_of(&lines, &[&[], &[b"b\n"], &[], &[b"c\n", b"d\n"]]),
        run_of(&fixed, &[&[b"aaaa"], &[b"bbbb", b"cccc"]]),
    ]
    .map(|(_, bytes)| bytes)
    .to_vec()
}
