//! Manifests, bodies of the control API, and the settings of a job, which a request carries as
//! TOML. What is accepted reads back as it was.

use std::sync::OnceLock;

use muster_platform::config::{Config, Profile};
use muster_protocol::api::{
    DeadLetter, Event, JobQuery, JobStatus, Manifest, WorkerQuery, WorkerStatus,
};
use muster_protocol::plan::JobSpec;
use serde::Serialize;
use serde::de::DeserializeOwned;

fn read<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(data: &[u8]) -> Option<T> {
    let read: T = serde_json::from_slice(data).ok()?;
    let again = serde_json::to_vec(&read).expect("what was read can be written");
    assert_eq!(serde_json::from_slice::<T>(&again).expect("what was written can be read"), read);
    Some(read)
}

/// Reads bytes as each of them.
pub fn target(data: &[u8]) {
    if let Some(spec) = read::<JobSpec>(data) {
        let _ = muster_kernel::order::Order::new(&spec.sort);
        settings(spec.settings.as_deref());
    }
    read::<JobQuery>(data);
    read::<WorkerQuery>(data);
    read::<Manifest>(data);
    read::<JobStatus>(data);
    read::<Vec<JobStatus>>(data);
    read::<WorkerStatus>(data);
    read::<Event>(data);
    read::<DeadLetter>(data);
    // Seeds and mutations of settings are no JSON.
    if data.first() == Some(&b'[') {
        settings(std::str::from_utf8(data).ok());
    }
}

fn settings(text: Option<&str>) {
    static OWN: OnceLock<Config> = OnceLock::new();
    let own = OWN.get_or_init(|| Config::profile(Profile::Testing).expect("the defaults"));
    let whole = own.for_job(text);
    // A worker knows no more of the settings than the retry policies; what the leader has accepted
    // it must accept too.
    if whole.is_ok() {
        assert!(own.retry.for_job(text).is_ok());
    }
}

/// The golden bytes, and others of each kind.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = super::golden()
        .filter(|(name, _)| name.starts_with("json-"))
        .map(|(_, bytes)| bytes)
        .collect();
    seeds.extend(
        [
            r#"{"job":"j1"}"#,
            r#"{"worker":"w1"}"#,
            r#"{"unix_ms":1,"epoch":2,"job":null,
                "severity":"info","kind":"took-over","text":"it"}"#,
            r#"{"unix_ms":1,"epoch":2,"job":"j1","error":"e",
                "skipped_objects":[{"object":"o","reason":"r"}],"attempts":[]}"#,
            "[tasks]\nattempts_max = 3\n",
            "[retry.store]\npause_ms = 10\npause_max_ms = 18446744073709551615\n\
             [phases]\nsort_ms = 5\n",
            "[retry.store]\nattempts_max = 9223372036854775807\n",
        ]
        .map(|text| text.as_bytes().to_vec()),
    );
    seeds.push([b"[".repeat(4000), b"]".repeat(4000)].concat());
    seeds.push([&b"[retry]\na = "[..], &b"[".repeat(3000)].concat());
    seeds.push(b"{\"a\":".repeat(800));
    seeds
}
