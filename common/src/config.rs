//! Settings: one embedded file of defaults, profiles and a user's file laid over it. Unknown keys are refused.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The defaults, as they are documented and embedded.
const DEFAULTS: &str = include_str!("default.toml");

/// All settings. Every field is documented in `default.toml`; the same names stand in a user's file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "default.toml, which is shown to users, documents each")]
pub struct Config {
    pub namespace: String,
    pub heartbeat: Heartbeat,
    pub nats: Nats,
    pub journal: Journal,
    pub tasks: Tasks,
    pub phases: Phases,
    pub store: Store,
    pub worker: Worker,
    pub sizes: Sizes,
    pub job: Job,
}

macro_rules! section {
    ($name:ident { $($field:ident: $kind:ty),* $(,)? }) => {
        /// A section of the settings; `default.toml` documents each field.
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        #[expect(missing_docs, reason = "default.toml, which is shown to users, documents each")]
        pub struct $name { $(pub $field: $kind),* }
    };
}

section!(Heartbeat { interval_ms: u64, dead_after_ms: u64 });
section!(Nats { request_timeout_ms: u64, ping_interval_ms: u64 });
section!(Journal { append_timeout_ms: u64, snapshot_after: u64, bytes_max: u64, replicas: u32, ended_jobs_max: u32 });
section!(Tasks { attempts_max: u32, regrant_grace_ms: u64, command_retry_ms: u64 });
section!(Phases { register_ms: u64, sample_ms: u64, sort_ms: u64, merge_ms: u64 });
section!(Store { attempts_max: u32 });
section!(Job { split_bytes: u64, partition_bytes: u64 });
section!(Worker { coordinator_wait_ms: u64, drain_ms: u64 });
section!(Sizes {
    split_bytes_min: u64,
    split_bytes_max: u64,
    partition_bytes_min: u64,
    partition_bytes_max: u64,
    samples_per_partition: u32,
});

/// Named sets of settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Profile {
    /// The defaults.
    #[default]
    Production,
    /// Quicker to notice, for a machine at hand.
    Development,
    /// Quick heartbeats and short waits, for tests.
    Testing,
}

impl Profile {
    fn overlay(self) -> &'static str {
        match self {
            Profile::Production => "",
            Profile::Development => {
                "[heartbeat]\ninterval_ms = 500\ndead_after_ms = 4000\n[tasks]\nregrant_grace_ms = 2000\n"
            }
            Profile::Testing => {
                "[heartbeat]\ninterval_ms = 200\ndead_after_ms = 2000\n[nats]\nrequest_timeout_ms = 2000\nping_interval_ms = 2000\n\
                 [journal]\nappend_timeout_ms = 3000\n[tasks]\nregrant_grace_ms = 1000\ncommand_retry_ms = 300\n\
                 [worker]\ncoordinator_wait_ms = 60000\n"
            }
        }
    }
}

impl Config {
    /// The defaults with a profile over them.
    ///
    /// # Errors
    /// `Bug` where the embedded file is broken.
    pub fn profile(profile: Profile) -> Result<Self> {
        Self::layered(&[profile.overlay()])
    }

    /// The defaults, a profile, then a user's file.
    ///
    /// # Errors
    /// `Invalid` where the file cannot be read, is no TOML, holds an unknown key, or a value that cannot work.
    pub fn load(profile: Profile, file: Option<&Path>) -> Result<Self> {
        let Some(file) = file else { return Self::profile(profile) };
        let text = std::fs::read_to_string(file)
            .map_err(|e| Error::invalid(format!("cannot read {}: {e}", file.display())))?;
        Self::layered(&[profile.overlay(), &text]).map_err(|e| e.at(file.display()))
    }

    /// Lays TOML texts over the defaults, the later over the earlier.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn layered(overlays: &[&str]) -> Result<Self> {
        let mut merged: toml::Table = DEFAULTS.parse().map_err(|e| Error::bug(format!("default.toml: {e}")))?;
        for text in overlays {
            let overlay: toml::Table = text.parse().map_err(|e| Error::invalid(format!("not valid settings: {e}")))?;
            lay_over(&mut merged, overlay);
        }
        let config: Config = merged.try_into().map_err(|e| Error::invalid(format!("not valid settings: {e}")))?;
        config.validate()?;
        Ok(config)
    }

    fn validate(&self) -> Result<()> {
        let token = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let positive = [
            ("heartbeat.interval_ms", self.heartbeat.interval_ms),
            ("nats.request_timeout_ms", self.nats.request_timeout_ms),
            ("journal.append_timeout_ms", self.journal.append_timeout_ms),
            ("tasks.attempts_max", u64::from(self.tasks.attempts_max)),
            ("tasks.command_retry_ms", self.tasks.command_retry_ms),
            ("store.attempts_max", u64::from(self.store.attempts_max)),
            ("sizes.split_bytes_min", self.sizes.split_bytes_min),
            ("sizes.partition_bytes_min", self.sizes.partition_bytes_min),
            ("sizes.samples_per_partition", u64::from(self.sizes.samples_per_partition)),
        ];
        if let Some((name, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return Err(Error::invalid(format!("{name} must be greater than 0")));
        }
        if self.namespace.is_empty() || self.namespace.len() > 32 || !self.namespace.bytes().all(token) {
            return Err(Error::invalid(format!("namespace {:?} must be 1 to 32 of a-z 0-9 -", self.namespace)));
        }
        if self.heartbeat.dead_after_ms < 2 * self.heartbeat.interval_ms {
            return Err(Error::invalid(format!(
                "heartbeat.dead_after_ms ({}) must be at least twice heartbeat.interval_ms ({})",
                self.heartbeat.dead_after_ms, self.heartbeat.interval_ms
            )));
        }
        if self.sizes.split_bytes_min > self.sizes.split_bytes_max
            || self.sizes.partition_bytes_min > self.sizes.partition_bytes_max
        {
            return Err(Error::invalid("a size's _min is greater than its _max"));
        }
        Ok(())
    }
}

/// Lays one table over another, section by section.
fn lay_over(base: &mut toml::Table, overlay: toml::Table) {
    for (key, value) in overlay {
        match (base.get_mut(&key), value) {
            (Some(toml::Value::Table(below)), toml::Value::Table(above)) => lay_over(below, above),
            (_, value) => drop(base.insert(key, value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_sound_in_every_profile() {
        for profile in [Profile::Production, Profile::Development, Profile::Testing] {
            let config = Config::profile(profile).expect("profile");
            assert!(config.heartbeat.dead_after_ms >= 2 * config.heartbeat.interval_ms);
        }
    }

    #[test]
    fn a_users_file_goes_over_the_defaults() {
        let config = Config::layered(&["[tasks]\nattempts_max = 9\n"]).expect("settings");
        assert_eq!(config.tasks.attempts_max, 9);
        assert_eq!(config.namespace, "muster");
    }

    #[test]
    fn what_cannot_work_is_refused() {
        for (text, expected) in [
            ("[tasks]\nattempt_max = 9\n", "attempt_max"),
            ("namespace = \"a.b\"", "namespace"),
            ("[tasks]\nattempts_max = 0\n", "attempts_max"),
            ("[heartbeat]\ninterval_ms = 4000\n", "dead_after_ms"),
        ] {
            let error = Config::layered(&[text]).expect_err(text);
            assert!(error.message.contains(expected), "{text}: {error}");
        }
    }
}
