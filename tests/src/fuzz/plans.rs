//! Plans and lists of pinned runs. Whatever reads back can be measured without overflow, and reads
//! back again.

use muster_kernel::order::Order;
use muster_platform::store::BlobUrl;
use muster_protocol::plan::{PinnedRuns, Plan};

/// Reads bytes as a plan and as a list of runs.
pub fn target(data: &[u8]) {
    if let Ok(plan) = Plan::from_bytes(data) {
        let positions = plan.positions();
        assert!(positions.is_sorted(), "positions ascend");
        assert_eq!(positions.last(), Some(&plan.input_bytes()));
        for split in (0..=plan.splits.len()).filter_map(|split| u32::try_from(split).ok()) {
            let _ = (plan.split_bytes(split), plan.owner(split));
        }
        let _ = Order::new(&plan.sort);
        for url in [&plan.output, &plan.scratch] {
            let _ = url.parse::<BlobUrl>();
        }
        let again = plan.to_bytes().expect("what was read can be written");
        assert_eq!(Plan::from_bytes(&again).as_ref(), Ok(&plan));
    }
    if let Ok(runs) = PinnedRuns::from_bytes(data) {
        let again = runs.to_bytes().expect("what was read can be written");
        assert_eq!(PinnedRuns::from_bytes(&again).as_ref(), Ok(&runs));
    }
}

/// The golden bytes.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<_> = super::golden()
        .filter(|(name, _)| matches!(*name, "Plan" | "PinnedRuns"))
        .map(|(_, bytes)| bytes)
        .collect();
    let plans: Vec<Plan> = seeds.iter().filter_map(|bytes| Plan::from_bytes(bytes).ok()).collect();
    for mut plan in plans {
        // Two objects of different workers.
        plan.objects = vec![plan.objects[0].clone(), plan.objects[0].clone()];
        plan.objects[0].url = "worker://w1/data/a".to_owned();
        plan.objects[1].url = "worker://w2/data/b".to_owned();
        plan.splits.push(vec![muster_kernel::proof::Interval { object: 1, begin: 0, end: 1000 }]);
        seeds.push(plan.to_bytes().expect("a plan"));
        // More bytes than can be counted: in all, and in one split that reads the same over and
        // over.
        plan.objects[0].bytes = u64::MAX;
        seeds.push(plan.to_bytes().expect("a plan"));
        plan.objects.truncate(1);
        plan.splits =
            vec![vec![muster_kernel::proof::Interval { object: 0, begin: 0, end: u64::MAX }; 2]];
        seeds.push(plan.to_bytes().expect("a plan"));
    }
    seeds
}
