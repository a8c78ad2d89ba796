//! Stored splitters, and samples, which are stored in the same way. What is accepted ascends, and
//! is the same bytes when written again.

use muster_kernel::splitters::{self, Splitter};
use muster_protocol::wire;

/// Reads bytes as splitters: as they are, and under a checksum that fits.
pub fn target(data: &[u8]) {
    read(data);
    if let Some(at) = data.len().checked_sub(8) {
        let mut sealed = data.to_vec();
        let digest = wire::digest(&data[..at]);
        sealed[at..].copy_from_slice(&digest.to_le_bytes());
        read(&sealed);
    }
}

fn read(bytes: &[u8]) {
    let Ok(read) = splitters::decode(bytes) else { return };
    assert!(read.is_sorted_by(|a, b| a < b), "splitters ascend");
    assert_eq!(splitters::encode(&read), bytes);
    for partitions in [0, 1, 3, u32::MAX] {
        let unique = partitions % 2 == 0;
        let chosen = splitters::choose(read.clone(), partitions.min(1000), unique);
        assert!(splitters::validate(&chosen, unique).is_ok(), "what is chosen is valid");
        let _ = splitters::fullest_percent(&read, partitions, unique);
    }
}

/// Some of them.
pub fn seeds() -> Vec<Vec<u8>> {
    let splitter = |key: &[u8], position: u64| Splitter { key: key.to_vec(), position };
    let three = [splitter(b"", 0), splitter(b"key", 7), splitter(b"key", u64::MAX)];
    let many: Vec<Splitter> = (0..60_u8).map(|n| splitter(&[n, n], u64::from(n))).collect();
    vec![splitters::encode(&[]), splitters::encode(&three), splitters::encode(&many)]
}
