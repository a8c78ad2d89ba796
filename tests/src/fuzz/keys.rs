//! Orders as JSON, keys as text, and the keys of records under them. Keys of one record are the
//! same each time, and records sort by key as the naive sort of the kernel says.
//!
//! An input: an order as JSON, a key as text, and records, each behind its length.

use muster_kernel::format::{Format, Frame};
use muster_kernel::order::Order;
use muster_kernel::reference::sort_reference;
use muster_kernel::spec::{KeyDef, SortSpec};

use super::{piece, push_piece};

/// Records of one length are not made longer than this: what holds them must fit their length
/// anyway.
const FIXED_MAX: u32 = 4096;

/// Reads an order and sorts by it.
pub fn target(mut data: &[u8]) {
    let (spec, key) = (piece(&mut data), piece(&mut data));
    let parsed = std::str::from_utf8(key).ok();
    for format in [Format::lines(b'\n'), Format::fixed(100)] {
        if let Some(Ok(key)) = parsed.map(|text| format.rules().parse_key(text)) {
            sorted(&SortSpec { keys: vec![key], ..SortSpec::new(format) }, data);
        }
    }
    if let Ok(spec) = serde_json::from_slice::<SortSpec>(spec) {
        sorted(&spec, data);
    }
}

fn sorted(spec: &SortSpec, bytes: &[u8]) {
    let Ok(order) = Order::new(spec) else { return };
    let stored = match spec.format.frame() {
        Frame::Fixed(len) if len > FIXED_MAX => return,
        Frame::Fixed(len) => bytes[..bytes.len() - bytes.len() % len as usize].to_vec(),
        Frame::Terminated(terminator) if bytes.last().is_some_and(|last| *last != terminator) => {
            [bytes, &[terminator]].concat()
        }
        Frame::Terminated(_) => bytes.to_vec(),
    };
    let mut records = Vec::new();
    let mut rest = stored.as_slice();
    while let Some(len) = order.frame().end(0, rest).filter(|_| !rest.is_empty()) {
        let (record, behind) = rest.split_at(len);
        let mut scratch = Vec::new();
        let key = order.key(order.frame().body(record), &mut scratch).to_vec();
        let mut used = b"left over".to_vec();
        assert_eq!(order.key(order.frame().body(record), &mut used), key);
        records.push((key, record));
        rest = behind;
    }
    records.sort_by(|a, b| a.0.cmp(&b.0));
    if spec.unique {
        records.dedup_by(|b, a| a.0 == b.0);
    }
    let ours: Vec<u8> = records.iter().flat_map(|(_, record)| record.iter().copied()).collect();
    let naive = sort_reference(spec, std::slice::from_ref(&stored))
        .expect("a valid order of whole records");
    assert_eq!(ours, naive, "sorted by key it is as the naive sort has it");
}

/// Orders of each kind, with records to which they matter.
pub fn seeds() -> Vec<Vec<u8>> {
    let lines = Format::lines(b'\n');
    let text: &[u8] = b"b 10 x\na 9\n\n  c -1.5,Q\nA 9\nb,10;y\n7\x80\xff\0 3\na 9\n";
    let mut seeds = Vec::new();
    let mut push = |spec: &SortSpec, key: &str, records: &[u8]| {
        let mut seed = Vec::new();
        push_piece(&mut seed, &serde_json::to_vec(spec).expect("an order"));
        push_piece(&mut seed, key.as_bytes());
        seed.extend_from_slice(records);
        seeds.push(seed);
    };
    for key in [
        "1",
        "2,2n",
        "1.2,1.3r",
        "2nr,3",
        "1.1b,2.0b",
        "1f,1",
        "2d",
        "1i,1.9",
        "4294967295.4294967295",
    ] {
        let parsed = lines.rules().parse_key(key).expect("a key");
        let spec = SortSpec { keys: vec![parsed.clone(), parsed], ..SortSpec::new(lines.clone()) };
        push(&spec, key, text);
        push(&SortSpec { separator: Some(b','), unique: true, ..spec.clone() }, key, text);
        let mut reversed = SortSpec { stable: true, ..spec };
        reversed.global.reverse = true;
        push(&reversed, key, text);
    }
    let fixed = Format::fixed(8);
    let key = fixed.rules().parse_key("1:3").expect("a key");
    let spec = SortSpec {
        keys: vec![key.clone(), KeyDef::Range { offset: 6, len: 2 }],
        ..SortSpec::new(fixed)
    };
    push(&spec, "1:3", b"00000000abcdefghabcdEFGHzzzzzzzz");
    let mut reversed = SortSpec { keys: vec![key], ..spec };
    reversed.global.reverse = true;
    push(&reversed, "4294967295:4294967295", b"00000000abcdefghabcdEFGHzzzzzzzz");
    seeds
}
