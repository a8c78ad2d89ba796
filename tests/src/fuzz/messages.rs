//! Messages between coordinator and workers: every type reads the same bytes. What is accepted
//! survives being written and read again.

use muster_protocol::wire::{
    self, Broadcast, CancelAttempt, CommandReply, Drain, Heartbeat, JobRecoveries, LeaderBeat,
    ListInputs, ListReply, Message, PhaseQuery, PhaseReply, Register, RegisterReply, Report,
    ReportReply, RunAttempt, RunReply, StoreLimits,
};

/// Whether the bytes are a message that, said in their version, is these bytes again.
fn read<T: Message + PartialEq + std::fmt::Debug>(data: &[u8]) -> bool {
    let Ok(message) = wire::decode::<T>(data) else { return false };
    // What was at its limit in another version may be beyond it in this one.
    let Ok(again) = wire::encode(&message) else { return false };
    assert_eq!(wire::decode::<T>(&again).as_ref(), Ok(&message));
    if let Ok(old) = wire::encode_for(wire::WIRE_VERSION_OLDEST, &message) {
        assert!(wire::decode::<T>(&old).is_ok(), "what is said to an older peer reads back");
    }
    data.first().is_some_and(|version| message.to_frame(*version).is_ok_and(|said| said == data))
}

/// Reads bytes as each message there is.
pub fn target(data: &[u8]) {
    is_message(data);
}

/// Whether they are one, written as this build writes it.
pub fn is_message(data: &[u8]) -> bool {
    let read = [
        read::<LeaderBeat>(data),
        read::<Register>(data),
        read::<RegisterReply>(data),
        read::<Heartbeat>(data),
        read::<RunAttempt>(data),
        read::<RunReply>(data),
        read::<CancelAttempt>(data),
        read::<Drain>(data),
        read::<CommandReply>(data),
        read::<Report>(data),
        read::<ReportReply>(data),
        read::<Broadcast>(data),
        read::<StoreLimits>(data),
        read::<JobRecoveries>(data),
        read::<ListInputs>(data),
        read::<ListReply>(data),
        read::<PhaseQuery>(data),
        read::<PhaseReply>(data),
    ];
    read.contains(&true)
}

/// The golden bytes.
pub fn seeds() -> Vec<Vec<u8>> {
    let no_message = |name: &str| {
        ["json-", "part-", "Plan", "PinnedRuns"].iter().any(|other| name.starts_with(other))
    };
    super::golden().filter(|(name, _)| !no_message(name)).map(|(_, bytes)| bytes).collect()
}
