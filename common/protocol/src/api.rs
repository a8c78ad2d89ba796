//! The control API's JSON: what clients send to the micro service and what it answers.
//!
//! Calls: `submit` ([`crate::plan::JobSpec`] → [`JobStatus`]), `status` ([`JobQuery`] →
//! [`JobStatus`]), `jobs` (empty → list of [`JobStatus`]), `cancel` ([`JobQuery`] → [`JobStatus`]),
//! `workers` (empty → list of [`WorkerStatus`]), `drain` ([`WorkerQuery`] → [`WorkerStatus`]).
//! Errors come as the micro service protocol's error headers: code 400 for a request that cannot
//! work, 404 for what is not known, 409 for a conflict, 503 for "later".

use std::fmt;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};

use muster_kernel::proof::Sums;

use crate::ids::{JobId, Phase, WorkerId};
use crate::wire::Mended;

/// Names a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobQuery {
    /// Which.
    pub job: JobId,
}

/// Names a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerQuery {
    /// Which.
    pub worker: WorkerId,
}

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Accepted; its input is being listed.
    Submitted,
    /// Sample tasks run.
    Sampling,
    /// Sort tasks run.
    Sorting,
    /// Merge tasks run.
    Merging,
    /// The commit is decided and being carried out; it can no longer be cancelled.
    Committing,
    /// OUTPUT is whole.
    Succeeded,
    /// Ended with a cause; OUTPUT is as it was.
    Failed,
    /// Ended by its user; OUTPUT is as it was.
    Cancelled,
}

impl JobState {
    /// Whether nothing follows.
    pub fn is_terminal(self) -> bool {
        matches!(self, JobState::Succeeded | JobState::Failed | JobState::Cancelled)
    }

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            JobState::Submitted => "submitted",
            JobState::Sampling => "sampling",
            JobState::Sorting => "sorting",
            JobState::Merging => "merging",
            JobState::Committing => "committing",
            JobState::Succeeded => "succeeded",
            JobState::Failed => "failed",
            JobState::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What is known of a job; also what `muster.p.<job>` carries.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobStatus {
    /// Which.
    pub job: JobId,
    /// Where it stands.
    pub state: JobState,
    /// The phase at hand, if tasks run.
    pub phase: Option<Phase>,
    /// Committed tasks of that phase.
    pub tasks_done: u32,
    /// Tasks of that phase.
    pub tasks_total: u32,
    /// Bytes done of that phase, running attempts included.
    pub bytes_done: u64,
    /// Bytes of that phase.
    pub bytes_total: u64,
    /// Input bytes of the job.
    pub input_bytes: u64,
    /// Workers that are registered and alive.
    pub workers: u32,
    /// Attempts that run now.
    pub attempts_running: u32,
    /// Attempts beyond the first of their task, whatever the reason.
    pub retries: u32,
    /// Tasks whose committed result was made again.
    pub repeated_tasks: u32,
    /// Second attempts of slow tasks, begun under this leader.
    #[serde(default)]
    pub speculations: u32,
    /// Names of the alerts that are raised about the job and about the deployment.
    #[serde(default)]
    pub alerts: Vec<String>,
    /// What the job waits for, where it does not move.
    pub waiting_for: Option<String>,
    /// Why it failed.
    pub error: Option<String>,
    /// URL of OUTPUT.
    pub output: String,
    /// Output parts; known from the boundaries on.
    pub parts: u32,
    /// Sums of the input, once the sort barrier is passed.
    pub sums: Option<Sums>,
    /// Sums of what `-u` dropped.
    pub dropped: Option<Sums>,
    /// How long each phase took, in milliseconds; 0 where not yet known.
    pub times: PhaseTimes,
    /// Whether scratch and unfinished uploads are gone; true only after the end.
    pub cleaned: bool,
    /// Submission time, milliseconds since the Unix epoch.
    pub submitted_unix_ms: u64,
    /// Sums of the malformed records that were left out.
    #[serde(default, skip_serializing_if = "is_default")]
    pub skipped: Sums,
    /// The first of those records, as far as this leader has seen them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bad_records: Vec<BadPlace>,
    /// The first input objects that were left out as a whole.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped_objects: Vec<SkippedObject>,
    /// How many were left out.
    #[serde(default, skip_serializing_if = "is_default")]
    pub skipped_objects_total: u32,
    /// What failed on the way, and how it was got over.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub recoveries: Vec<Recovery>,
    /// What whoever asked for the job should know of its input; as long as the leader that planned
    /// it leads it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Where a malformed record stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadPlace {
    /// Its object.
    pub object: String,
    /// Offset of its first byte.
    pub offset: u64,
    /// Its length in bytes.
    pub bytes: u64,
    /// What is wrong with it.
    pub reason: String,
}

/// An input object that was left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedObject {
    /// Its URL; its number in the plan where the plan is no longer at hand.
    pub object: String,
    /// Who could not read it, and why.
    pub reason: String,
}

/// How one kind of trouble went.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovery {
    /// A word: `worker-lost`, `attempt-failed`, `run-damaged`, `input-unreadable`, `store-trouble`;
    /// and `retried-store` and its like for what workers tried again by themselves, by the names of
    /// `[retry.<kind>]`.
    pub kind: String,
    /// How often it was met with, and another try made.
    pub attempts: u32,
    /// How often that helped.
    pub recovered: u32,
    /// How often it was given up.
    pub given_up: u32,
    /// Milliseconds from trouble to recovery, in all.
    pub took_ms_sum: u64,
    /// The longest of them.
    pub took_ms_max: u64,
}

/// A job that failed, as it goes to the dead letters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// Milliseconds since the Unix epoch.
    pub unix_ms: u64,
    /// The term of the leader that says it.
    pub epoch: u64,
    /// Which job.
    pub job: JobId,
    /// Why it failed, with task, object and place.
    pub error: String,
    /// The first input objects that were left out.
    pub skipped_objects: Vec<SkippedObject>,
    /// Every attempt without a result that still counted, task by task, in order.
    pub attempts: Vec<FailedAttempt>,
}

/// An attempt without a result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedAttempt {
    /// The task: `sort-00003`.
    pub task: String,
    /// Its generation.
    pub generation: u32,
    /// The whole attempt id.
    pub attempt: String,
    /// Who ran it.
    pub worker: WorkerId,
    /// What could be done about it.
    pub kind: String,
    /// What went wrong, with the worker's host.
    pub error: String,
    /// When this leader heard of it, milliseconds since the Unix epoch; none where a former one
    /// did.
    pub unix_ms: Option<u64>,
}

/// Milliseconds spent in each phase as the leader saw it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseTimes {
    /// Listing and planning.
    pub plan_ms: u64,
    /// Sampling.
    pub sample_ms: u64,
    /// Sorting.
    pub sort_ms: u64,
    /// Merging.
    pub merge_ms: u64,
    /// From the decision to `_SUCCESS`.
    pub commit_ms: u64,
}

/// What is known of a worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// Who.
    pub id: WorkerId,
    /// `healthy`, `degraded`, `failed`, `draining`, `drained` or `left`.
    pub state: String,
    /// Host name.
    pub host: String,
    /// Attempts it can run at once.
    pub slots: u32,
    /// Attempts it runs.
    pub running: u32,
    /// Its memory budget in bytes.
    pub memory_bytes: u64,
    /// Resident memory in bytes at its last heartbeat.
    pub rss_bytes: u64,
    /// Milliseconds since anything was heard of it.
    pub last_heard_ms: u64,
    /// Tasks it has finished since it registered.
    pub tasks_done: u32,
    /// Its program's version.
    pub program: String,
    /// Labels.
    pub labels: Vec<(String, String)>,
    /// CPU that its process used over the last interval, in thousandths of the cores it may use.
    #[serde(default)]
    pub cpu_permille: u32,
    /// Bytes of running attempts that it did in a second, over the last interval.
    #[serde(default)]
    pub bytes_per_s: u64,
    /// Free bytes of the disk of its data folder; 0 with a total of 0 where it does not tell.
    #[serde(default)]
    pub disk_free_bytes: u64,
    /// All bytes of that disk.
    #[serde(default)]
    pub disk_total_bytes: u64,
    /// Attempts that failed and store errors that were retried in the last five minutes.
    #[serde(default)]
    pub errors_5min: u32,
    /// Store errors that were retried since its process began.
    #[serde(default)]
    pub store_retries: u64,
    /// How often stores told it to slow down since its process began.
    #[serde(default)]
    pub throttled: u64,
    /// What it waits for, where it does not move.
    #[serde(default)]
    pub waiting_for: Option<String>,
    /// Troubles of reading that it got over by itself, since its process began.
    #[serde(default)]
    pub mended: Mended,
    /// Why it is not healthy.
    #[serde(default)]
    pub cause: Option<String>,
    /// Names of the alerts that are raised about it.
    #[serde(default)]
    pub alerts: Vec<String>,
}

/// The manifest in `_SUCCESS`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this format.
    pub version: u32,
    /// The job.
    pub job: JobId,
    /// Format, keys and flags.
    pub sort: muster_kernel::spec::SortSpec,
    /// The parts in order.
    pub parts: Vec<ManifestPart>,
    /// Sums over all parts.
    pub sums: Sums,
    /// Sums of the input.
    pub input: Sums,
    /// Sums of what `-u` dropped.
    pub dropped: Sums,
    /// Attempts beyond the first of their task.
    pub retries: u32,
    /// Tasks whose committed result was made again.
    pub repeated_tasks: u32,
    /// How long the phases took.
    pub times: PhaseTimes,
    /// Sums of the malformed records that were left out.
    #[serde(default, skip_serializing_if = "is_default")]
    pub skipped: Sums,
    /// The first of those records, as far as the leader that committed has seen them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bad_records: Vec<BadPlace>,
    /// Where they are kept, below OUTPUT.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub quarantine: Vec<QuarantineFile>,
    /// Input objects that were left out as a whole.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped_objects: Vec<SkippedObject>,
    /// What failed on the way, and how it was got over.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub recoveries: Vec<Recovery>,
}

/// Quarantined records of one split in a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuarantineFile {
    /// Its name below OUTPUT.
    pub name: String,
    /// Its length in bytes.
    pub bytes: u64,
    /// XXH3-64 of its bytes, as 16 hex digits.
    pub checksum: String,
}

/// How comparison keys are written in a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyEncoding {
    /// As they are.
    Text,
    /// As base64 with padding: bytes that are no text, or keys that are encoded (of several parts,
    /// numeric, reversed).
    Base64,
}

impl KeyEncoding {
    /// Writes two keys, of at most `bytes_max` bytes each, the same way. A character that was cut
    /// there is left out.
    pub fn write(keys: [&[u8]; 2], bytes_max: usize) -> (Self, [String; 2]) {
        match keys.map(|key| readable(key, bytes_max)) {
            [Some(first), Some(last)] => (Self::Text, [first.to_owned(), last.to_owned()]),
            _ => (Self::Base64, keys.map(|key| BASE64_STANDARD.encode(key))),
        }
    }
}

/// A key as text, if it is one: UTF-8 without control characters, tabs apart.
fn readable(key: &[u8], bytes_max: usize) -> Option<&str> {
    let text = match std::str::from_utf8(key) {
        Ok(text) => text,
        Err(cut) if cut.error_len().is_none() && key.len() >= bytes_max => {
            std::str::from_utf8(&key[..cut.valid_up_to()]).ok()?
        }
        Err(_) => return None,
    };
    (!text.chars().any(|c| c.is_control() && c != '\t')).then_some(text)
}

/// One part in a manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ManifestPart {
    /// Its name below OUTPUT.
    pub name: String,
    /// Records in it.
    pub records: u64,
    /// Its length in bytes.
    pub bytes: u64,
    /// First comparison key, truncated.
    pub first_key: String,
    /// Last comparison key, truncated.
    pub last_key: String,
    /// How the two are written.
    pub key_encoding: KeyEncoding,
    /// XXH3-64 of its bytes, as 16 hex digits.
    pub checksum: String,
    /// Sum of the record hashes, as hex.
    pub hash: String,
}

/// One line of a job's history, for people (stream of events).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Milliseconds since the Unix epoch.
    pub unix_ms: u64,
    /// The term of the leader that says it.
    pub epoch: u64,
    /// The job, where it belongs to one.
    pub job: Option<JobId>,
    /// `info`, `warning` or `error`.
    pub severity: String,
    /// A stable word for the kind: `phase-began`, `worker-lost`, `attempt-failed` and so on.
    pub kind: String,
    /// One line for people.
    pub text: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_text_where_they_are_text() {
        let check = |keys: [&[u8]; 2], encoding, expected: [&str; 2]| {
            assert_eq!(
                KeyEncoding::write(keys, 8),
                (encoding, expected.map(str::to_owned)),
                "{keys:?}"
            );
        };
        check([b"", b""], KeyEncoding::Text, ["", ""]);
        check([b"a\tb", "z\u{e9}".as_bytes()], KeyEncoding::Text, ["a\tb", "z\u{e9}"]);
        // Cut within a character, and wrong within.
        check([b"a", b"1234567\xC3"], KeyEncoding::Text, ["a", "1234567"]);
        check([b"a", b"123456\xC3"], KeyEncoding::Base64, ["YQ==", "MTIzNDU2ww=="]);
        check([b"a", b"b\0"], KeyEncoding::Base64, ["YQ==", "YgA="]);
        check([b"\xff", b"b"], KeyEncoding::Base64, ["/w==", "Yg=="]);
    }

    /// jq and its like take numbers for floating ones: of 2^64 - 1 they make 18446744073709552000.
    #[test]
    fn checksums_in_json_are_texts() {
        let sums = Sums { records: 3, bytes: 7, hash: u64::MAX - 1 };
        let json = serde_json::to_string(&sums).expect("encodes");
        assert_eq!(json, r#"{"records":3,"bytes":7,"hash":"fffffffffffffffe"}"#);
        assert_eq!(serde_json::from_str::<Sums>(&json).expect("reads"), sums, "{json}");
        for hash in [r#""""#, r#""+1""#, r#""10000000000000000""#, "1", "null"] {
            let json = format!(r#"{{"records":3,"bytes":7,"hash":{hash}}}"#);
            assert!(serde_json::from_str::<Sums>(&json).is_err(), "{json}");
        }
    }
}
