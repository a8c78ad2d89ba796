//! Messages between coordinator and workers: every type reads the same bytes. What is accepted
//! survives being written and read again.

use muster_common::wire::{
    self, Broadcast, CancelAttempt, CommandReply, Drain, Heartbeat, JobRecoveries, LeaderBeat,
    ListInputs, ListReply, Message, PhaseQuery, PhaseReply, Register, RegisterReply, Report,
    ReportReply, RunAttempt, RunReply, StoreLimits,
};

fn read<T: Message + PartialEq + std::fmt::Debug>(data: &[u8]) {
    let Ok(message) = wire::decode::<T>(data) else { return };
    // What was at its limit in another version may be beyond it in this one.
    let Ok(again) = wire::encode(&message) else { return };
    assert_eq!(wire::decode::<T>(&again).as_ref(), Ok(&message));
    if let Ok(old) = wire::encode_for(wire::WIRE_VERSION_OLDEST, &message) {
        assert!(wire::decode::<T>(&old).is_ok(), "what is said to an older peer reads back");
    }
}

/// Reads bytes as each message there is.
pub fn target(data: &[u8]) {
    read::<LeaderBeat>(data);
    read::<Register>(data);
    read::<RegisterReply>(data);
    read::<Heartbeat>(data);
    read::<RunAttempt>(data);
    read::<RunReply>(data);
    read::<CancelAttempt>(data);
    read::<Drain>(data);
    read::<CommandReply>(data);
    read::<Report>(data);
    read::<ReportReply>(data);
    read::<Broadcast>(data);
    read::<StoreLimits>(data);
    read::<JobRecoveries>(data);
    read::<ListInputs>(data);
    read::<ListReply>(data);
    read::<PhaseQuery>(data);
    read::<PhaseReply>(data);
}

/// The golden bytes.
pub fn seeds() -> Vec<Vec<u8>> {
    super::golden().filter(|(name, _)| !name.starts_with("json-")).map(|(_, bytes)| bytes).collect()
}
