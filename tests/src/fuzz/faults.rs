//! The SPEC of faults. What is accepted reads back as it was.

use muster_platform::faults::FaultPlan;

/// Reads bytes as a SPEC.
pub fn target(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(plan) = text.parse::<FaultPlan>() {
        let _ = plan.summary();
        let again: FaultPlan = plan.to_string().parse().expect("what was read, read again");
        assert_eq!(again, plan);
    }
}

/// Some of each kind, and drawn ones.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = [
        "store.put:delay,p=0.05,ms=200",
        "seed=7;task.begin:crash,phase=sort,task=3,worker=w1,times=1;bus:drop,after=5",
        "seed=18446744073709551615",
        "memory.alloc:fail,from=1,until=2,key=a",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec();
    seeds.extend((0..20).map(|seed| FaultPlan::from_seed(seed).to_string().into_bytes()));
    seeds
}
