//! Settings: one embedded file of defaults, profiles and a user's file laid over it. Unknown keys
//! are refused.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::plan::OBJECTS_MAX;
use crate::retry::{Policy, Trouble};

/// The defaults, as they are documented and embedded.
const DEFAULTS: &str = include_str!("default.toml");

/// The sections that one job may have its own settings of.
pub const JOB_SECTIONS: [&str; 5] = ["retry", "phases", "tasks", "speculation", "recovery"];

/// All settings. Every field is documented in `default.toml`; the same names stand in a user's
/// file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "default.toml, which is shown to users, documents each")]
pub struct Config {
    pub namespace: String,
    pub heartbeat: Heartbeat,
    pub leader: Leader,
    pub detector: Detector,
    pub breaker: Breaker,
    pub speculation: Speculation,
    pub recovery: Recovery,
    pub alerts: Alerts,
    pub pool: Pool,
    pub limits: Limits,
    pub nats: Nats,
    pub journal: Journal,
    pub tasks: Tasks,
    pub phases: Phases,
    pub store: Store,
    pub claim: Claim,
    pub hedge: Hedge,
    pub retry: Retry,
    pub faults: Faults,
    pub http: Http,
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
section!(Leader { silence_ms: u64 });
section!(Claim { renew_ms: u64, dead_after_ms: u64 });
section!(Detector {
    floor_ms: u64,
    ceiling_ms: u64,
    suspect_phi: u32,
    dead_phi: u32,
    acceptable_pause_ms: u64,
    deviation_min_ms: u64,
    window: u32,
    rejoin_beats: u32,
    grace_ms: u64,
});
section!(Breaker {
    failures_max: u32,
    rate_percent: u32,
    volume_min: u32,
    window_ms: u64,
    open_ms: u64,
    open_max_ms: u64,
    trial_ms: u64,
});
section!(Speculation {
    slots_percent: u32,
    done_percent: u32,
    samples_min: u32,
    factor_percent: u32,
    runtime_min_ms: u64,
    hang_ms: u64,
    slow_percent: u32,
});
section!(Recovery {
    generations_max: u32,
    repeated_max: u32,
    wave_percent: u32,
    wave_losses_min: u32,
    wave_window_ms: u64,
    rate_min_per_s: u32,
    rate_max_per_s: u32,
    step_ms: u64,
    calm_ms: u64,
});
section!(Alerts {
    raise_ms: u64,
    clear_ms: u64,
    error_rate_percent: u32,
    error_volume_min: u32,
    error_window_ms: u64,
    progress_stall_ms: u64,
    memory_percent: u32,
    disk_spare_percent: u32,
    disk_free_min_bytes: u64,
    journal_write_ms: u64,
    journal_failures: u32,
    journal_percent: u32,
    journal_backlog: u32,
    tasks_per_slot: u32,
    task_failures: u32,
});
section!(Pool { min_workers: u32, min_alive_percent: u32, forget_ms: u64 });
section!(Limits { start_per_s: u32, min_per_s: u32, step_per_s: u32, calm_ms: u64 });
section!(Nats { request_timeout_ms: u64, ping_interval_ms: u64, connect_timeout_ms: u64 });
section!(Journal {
    append_timeout_ms: u64,
    snapshot_after: u64,
    snapshots_kept: u32,
    bytes_max: u64,
    replicas: u32,
    ended_jobs_max: u32,
    ended_age_ms: u64,
});
section!(Tasks { attempts_max: u32, regrant_grace_ms: u64, command_retry_ms: u64 });
section!(Phases {
    register_ms: u64,
    sample_ms: u64,
    sort_ms: u64,
    shuffle_ms: u64,
    merge_ms: u64,
    commit_ms: u64,
    clean_ms: u64
});
section!(Store {
    connect_timeout_ms: u64,
    request_timeout_ms: u64,
    client_retries_max: u32,
    call_timeout_ms: u64,
    late_sweep_ms: u64,
    list_timeout_ms: u64,
    replica_after_ms: u64,
    objects_max: u64,
    entries_max: u64,
    depth_max: u64,
});
section!(Faults { enabled: bool });
section!(Http { stuck_ms: u64 });
section!(Retry {
    store: Policy,
    throttle: Policy,
    nats: Policy,
    abort: Policy,
    task: Policy,
    disk: Policy,
    memory: Policy,
    input: Policy,
});
section!(Job { split_bytes: u64, partition_bytes: u64 });
section!(Hedge {
    share_percent: u32,
    quantile_percent: u32,
    factor_percent: u32,
    after_min_ms: u64,
    samples_min: u32
});
section!(Worker { coordinator_wait_ms: u64, store_wait_ms: u64, drain_ms: u64 });
section!(Sizes {
    split_bytes_min: u64,
    split_bytes_max: u64,
    partition_bytes_min: u64,
    partition_bytes_max: u64,
    samples_per_partition: u32,
    sampling_rounds_max: u32,
    partition_percent_max: u32,
});

impl Retry {
    /// The policy of one kind of trouble.
    pub fn of(&self, trouble: Trouble) -> &Policy {
        match trouble {
            Trouble::Store => &self.store,
            Trouble::Throttle => &self.throttle,
            Trouble::Nats => &self.nats,
            Trouble::Abort => &self.abort,
            Trouble::Task => &self.task,
            Trouble::Disk => &self.disk,
            Trouble::Memory => &self.memory,
            Trouble::Input => &self.input,
        }
    }

    /// These policies with those of one job's settings over them: for who knows no more of the
    /// settings than this.
    ///
    /// # Errors
    /// `Invalid`, naming what is unknown or cannot work.
    pub fn for_job(&self, settings: Option<&str>) -> Result<Self> {
        let Some(settings) = settings else { return Ok(self.clone()) };
        let mut overlay: toml::Table = settings
            .parse()
            .map_err(|e| Error::invalid(format!("not valid settings of a job: {e}")))?;
        let Some(toml::Value::Table(own)) = overlay.remove("retry") else {
            return Ok(self.clone());
        };
        let mut merged = toml::Table::try_from(self)
            .map_err(|e| Error::bug(format!("settings cannot be written: {e}")))?;
        lay_over(&mut merged, own);
        let retry: Retry = merged
            .try_into()
            .map_err(|e| Error::invalid(format!("not valid settings of a job: {e}")))?;
        retry.validate()?;
        Ok(retry)
    }

    fn validate(&self) -> Result<()> {
        Trouble::ALL
            .into_iter()
            .try_for_each(|trouble| self.of(trouble).validate(&format!("retry.{trouble}")))
    }
}

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
                "[heartbeat]\ninterval_ms = 500\ndead_after_ms = 4000\n\
                 [leader]\nsilence_ms = 2500\n\
                 [tasks]\nregrant_grace_ms = 2000\n\
                 [detector]\nfloor_ms = 3000\nceiling_ms = 5000\nacceptable_pause_ms = 1000\n\
                 deviation_min_ms = 50\ngrace_ms = 1000\n\
                 [breaker]\nopen_ms = 2000\nopen_max_ms = 60000\n\
                 [speculation]\nruntime_min_ms = 5000\n\
                 [alerts]\nraise_ms = 2000\nclear_ms = 5000\n\
                 [retry.store]\npause_max_ms = 5000\n\
                 [retry.throttle]\npause_max_ms = 10000\n\
                 [retry.nats]\npause_max_ms = 5000\n"
            }
            Profile::Testing => {
                "[heartbeat]\ninterval_ms = 200\ndead_after_ms = 2000\n\
                 [leader]\nsilence_ms = 1000\n\
                 [nats]\nrequest_timeout_ms = 2000\nping_interval_ms = 2000\n\
                 [journal]\nappend_timeout_ms = 3000\n\
                 [tasks]\nregrant_grace_ms = 1000\ncommand_retry_ms = 300\n\
                 [worker]\ncoordinator_wait_ms = 60000\n\
                 [detector]\nfloor_ms = 1500\nceiling_ms = 2500\nacceptable_pause_ms = 800\n\
                 deviation_min_ms = 50\ngrace_ms = 500\n\
                 [breaker]\nopen_ms = 500\nopen_max_ms = 5000\nwindow_ms = 10000\n\
                 trial_ms = 30000\n\
                 [speculation]\nruntime_min_ms = 1000\nhang_ms = 15000\n\
                 [recovery]\nwave_window_ms = 10000\nrate_min_per_s = 10\nstep_ms = 200\n\
                 calm_ms = 3000\n\
                 [alerts]\nraise_ms = 400\nclear_ms = 1000\nprogress_stall_ms = 5000\n\
                 [claim]\nrenew_ms = 400\ndead_after_ms = 4000\n\
                 [store]\nrequest_timeout_ms = 30000\ncall_timeout_ms = 60000\n\
                 [retry.store]\npause_ms = 50\npause_max_ms = 1000\nattempts_max = 8\n\
                 [retry.throttle]\npause_ms = 100\npause_max_ms = 2000\n\
                 [retry.nats]\npause_ms = 50\npause_max_ms = 1000\n\
                 [retry.abort]\npause_ms = 50\npause_max_ms = 1000\n\
                 [retry.task]\npause_ms = 50\npause_max_ms = 1000\n\
                 [retry.disk]\npause_ms = 200\n\
                 [retry.input]\npause_ms = 50\n"
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
    /// `Invalid` where the file cannot be read, is no TOML, holds an unknown key, or a value that
    /// cannot work.
    pub fn load(profile: Profile, file: Option<&Path>) -> Result<Self> {
        let Some(file) = file else { return Self::profile(profile) };
        let text = std::fs::read_to_string(file)
            .map_err(|e| Error::invalid(format!("cannot read {}: {e}", file.display())))?;
        Self::layered(&[profile.overlay(), &text]).map_err(|e| e.at(file.display()))
    }

    /// The same settings for the deployment of another namespace.
    ///
    /// # Errors
    /// `Invalid` where it is none.
    pub fn in_namespace(self, namespace: &str) -> Result<Self> {
        let config = Self { namespace: namespace.to_owned(), ..self };
        config.validate()?;
        Ok(config)
    }

    /// Lays TOML texts over the defaults, the later over the earlier.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn layered(overlays: &[&str]) -> Result<Self> {
        let mut merged: toml::Table =
            DEFAULTS.parse().map_err(|e| Error::bug(format!("default.toml: {e}")))?;
        for text in overlays {
            let overlay: toml::Table =
                text.parse().map_err(|e| Error::invalid(format!("not valid settings: {e}")))?;
            lay_over(&mut merged, overlay);
        }
        let config: Config =
            merged.try_into().map_err(|e| Error::invalid(format!("not valid settings: {e}")))?;
        config.validate()?;
        Ok(config)
    }

    /// These settings with those of one job over them: only the sections of [`JOB_SECTIONS`].
    ///
    /// # Errors
    /// `Invalid`, naming what is no setting of a job, is unknown, or cannot work.
    pub fn for_job(&self, settings: Option<&str>) -> Result<Self> {
        let Some(settings) = settings else { return Ok(self.clone()) };
        let overlay: toml::Table = settings
            .parse()
            .map_err(|e| Error::invalid(format!("not valid settings of a job: {e}")))?;
        if let Some(foreign) = overlay.keys().find(|key| !JOB_SECTIONS.contains(&key.as_str())) {
            let own = JOB_SECTIONS.join(", ");
            return Err(Error::invalid(format!(
                "{foreign} is no setting of one job; those are in {own}"
            )));
        }
        let mut merged = toml::Table::try_from(self)
            .map_err(|e| Error::bug(format!("settings cannot be written: {e}")))?;
        lay_over(&mut merged, overlay);
        let config: Config = merged
            .try_into()
            .map_err(|e| Error::invalid(format!("not valid settings of a job: {e}")))?;
        config.validate()?;
        Ok(config)
    }

    /// What a profile and a user's file say about single jobs, as [`Config::for_job`] takes it;
    /// none where they say nothing.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn job_settings(profile: Profile, file: Option<&Path>) -> Result<Option<String>> {
        let mut merged = toml::Table::new();
        let text = match file {
            Some(file) => std::fs::read_to_string(file)
                .map_err(|e| Error::invalid(format!("cannot read {}: {e}", file.display())))?,
            None => String::new(),
        };
        for text in [profile.overlay(), &text] {
            let overlay: toml::Table =
                text.parse().map_err(|e| Error::invalid(format!("not valid settings: {e}")))?;
            lay_over(&mut merged, overlay);
        }
        merged.retain(|key, _| JOB_SECTIONS.contains(&key));
        Ok((!merged.is_empty()).then(|| merged.to_string()))
    }

    /// The settings on which a worker and its coordinator must agree, by name.
    pub fn shared(&self) -> Vec<(String, String)> {
        let Heartbeat { interval_ms, dead_after_ms } = self.heartbeat;
        [("heartbeat.interval_ms", interval_ms), ("heartbeat.dead_after_ms", dead_after_ms)]
            .map(|(name, value)| (name.to_owned(), value.to_string()))
            .to_vec()
    }

    fn validate(&self) -> Result<()> {
        let token = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let positive = [
            ("heartbeat.interval_ms", self.heartbeat.interval_ms),
            ("nats.request_timeout_ms", self.nats.request_timeout_ms),
            ("nats.connect_timeout_ms", self.nats.connect_timeout_ms),
            ("journal.append_timeout_ms", self.journal.append_timeout_ms),
            ("journal.snapshots_kept", u64::from(self.journal.snapshots_kept)),
            ("tasks.attempts_max", u64::from(self.tasks.attempts_max)),
            ("tasks.command_retry_ms", self.tasks.command_retry_ms),
            ("store.connect_timeout_ms", self.store.connect_timeout_ms),
            ("store.request_timeout_ms", self.store.request_timeout_ms),
            ("store.call_timeout_ms", self.store.call_timeout_ms),
            ("store.late_sweep_ms", self.store.late_sweep_ms),
            ("store.list_timeout_ms", self.store.list_timeout_ms),
            ("store.replica_after_ms", self.store.replica_after_ms),
            ("store.objects_max", self.store.objects_max),
            ("store.entries_max", self.store.entries_max),
            ("store.depth_max", self.store.depth_max),
            ("claim.renew_ms", self.claim.renew_ms),
            ("http.stuck_ms", self.http.stuck_ms),
            ("sizes.split_bytes_min", self.sizes.split_bytes_min),
            ("sizes.partition_bytes_min", self.sizes.partition_bytes_min),
            ("sizes.samples_per_partition", u64::from(self.sizes.samples_per_partition)),
            ("sizes.sampling_rounds_max", u64::from(self.sizes.sampling_rounds_max)),
        ];
        if let Some((name, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return Err(Error::invalid(format!("{name} must be greater than 0")));
        }
        if self.namespace.is_empty()
            || self.namespace.len() > 32
            || !self.namespace.bytes().all(token)
        {
            return Err(Error::invalid(format!(
                "namespace {:?} must be 1 to 32 of a-z 0-9 -",
                self.namespace
            )));
        }
        if self.heartbeat.dead_after_ms < 2 * self.heartbeat.interval_ms {
            return Err(Error::invalid(format!(
                "heartbeat.dead_after_ms ({}) must be at least twice heartbeat.interval_ms ({})",
                self.heartbeat.dead_after_ms, self.heartbeat.interval_ms
            )));
        }
        if self.leader.silence_ms < 2 * self.heartbeat.interval_ms {
            return Err(Error::invalid(format!(
                "leader.silence_ms ({}) must be at least twice heartbeat.interval_ms ({})",
                self.leader.silence_ms, self.heartbeat.interval_ms
            )));
        }
        if self.claim.dead_after_ms < self.claim.renew_ms.saturating_mul(4) {
            return Err(Error::invalid(format!(
                "claim.dead_after_ms ({}) must be at least four times claim.renew_ms ({})",
                self.claim.dead_after_ms, self.claim.renew_ms
            )));
        }
        if self.store.objects_max > OBJECTS_MAX as u64 {
            let given = self.store.objects_max;
            return Err(Error::invalid(format!(
                "store.objects_max ({given}) must be at most {OBJECTS_MAX}"
            )));
        }
        if self.sizes.split_bytes_min > self.sizes.split_bytes_max
            || self.sizes.partition_bytes_min > self.sizes.partition_bytes_max
        {
            return Err(Error::invalid("a size's _min is greater than its _max"));
        }
        self.retry.validate()?;
        self.validate_membership()
    }

    /// What [detector], [breaker], [speculation], [recovery] and [alerts] must keep.
    fn validate_membership(&self) -> Result<()> {
        let Config { detector, breaker, speculation, recovery, alerts, .. } = self;
        let at_least = [
            ("detector.floor_ms", detector.floor_ms, "the least", 1),
            ("detector.ceiling_ms", detector.ceiling_ms, "detector.floor_ms", detector.floor_ms),
            ("detector.suspect_phi", detector.suspect_phi.into(), "the least", 1),
            (
                "detector.dead_phi",
                detector.dead_phi.into(),
                "detector.suspect_phi",
                detector.suspect_phi.into(),
            ),
            ("detector.deviation_min_ms", detector.deviation_min_ms, "the least", 1),
            ("detector.window", detector.window.into(), "the least", 2),
            ("breaker.failures_max", breaker.failures_max.into(), "the least", 1),
            ("breaker.rate_percent", breaker.rate_percent.into(), "the least", 1),
            ("breaker.volume_min", breaker.volume_min.into(), "the least", 1),
            ("breaker.window_ms", breaker.window_ms, "the least", 10),
            ("breaker.open_ms", breaker.open_ms, "the least", 1),
            ("breaker.open_max_ms", breaker.open_max_ms, "breaker.open_ms", breaker.open_ms),
            ("breaker.trial_ms", breaker.trial_ms, "the least", 1),
            ("speculation.samples_min", speculation.samples_min.into(), "the least", 1),
            ("speculation.factor_percent", speculation.factor_percent.into(), "the least", 100),
            (
                "speculation.hang_ms",
                speculation.hang_ms,
                "speculation.runtime_min_ms",
                speculation.runtime_min_ms,
            ),
            ("recovery.wave_percent", recovery.wave_percent.into(), "the least", 1),
            ("recovery.wave_losses_min", recovery.wave_losses_min.into(), "the least", 1),
            ("recovery.wave_window_ms", recovery.wave_window_ms, "the least", 10),
            ("recovery.rate_min_per_s", recovery.rate_min_per_s.into(), "the least", 1),
            (
                "recovery.rate_max_per_s",
                recovery.rate_max_per_s.into(),
                "recovery.rate_min_per_s",
                recovery.rate_min_per_s.into(),
            ),
            ("recovery.step_ms", recovery.step_ms, "the least", 1),
            ("alerts.error_rate_percent", alerts.error_rate_percent.into(), "the least", 1),
            ("alerts.error_volume_min", alerts.error_volume_min.into(), "the least", 1),
            ("alerts.error_window_ms", alerts.error_window_ms, "the least", 10),
            ("alerts.progress_stall_ms", alerts.progress_stall_ms, "the least", 1),
            ("alerts.memory_percent", alerts.memory_percent.into(), "the least", 1),
            ("alerts.journal_write_ms", alerts.journal_write_ms, "the least", 1),
            ("alerts.journal_failures", alerts.journal_failures.into(), "the least", 1),
            ("alerts.journal_backlog", alerts.journal_backlog.into(), "the least", 1),
            ("alerts.tasks_per_slot", alerts.tasks_per_slot.into(), "the least", 1),
            ("limits.min_per_s", self.limits.min_per_s.into(), "the least", 1),
            (
                "limits.start_per_s",
                self.limits.start_per_s.into(),
                "limits.min_per_s",
                self.limits.min_per_s.into(),
            ),
            ("limits.step_per_s", self.limits.step_per_s.into(), "the least", 1),
            ("alerts.task_failures", alerts.task_failures.into(), "the least", 1),
        ];
        if let Some((name, value, bound, least)) =
            at_least.into_iter().find(|(_, value, _, least)| value < least)
        {
            return Err(Error::invalid(format!(
                "{name} ({value}) must be at least {bound} ({least})"
            )));
        }
        let at_most = [
            // Keeps the sum of squares of a window within 64 bits.
            ("detector.ceiling_ms", detector.ceiling_ms, 3_600_000),
            ("detector.dead_phi", detector.dead_phi.into(), 1000),
            ("detector.window", detector.window.into(), 1000),
            ("breaker.rate_percent", breaker.rate_percent.into(), 100),
            ("speculation.slots_percent", speculation.slots_percent.into(), 100),
            ("speculation.done_percent", speculation.done_percent.into(), 100),
            ("speculation.factor_percent", speculation.factor_percent.into(), 10_000),
            ("speculation.slow_percent", speculation.slow_percent.into(), 100),
            ("recovery.wave_percent", recovery.wave_percent.into(), 100),
            ("recovery.rate_max_per_s", recovery.rate_max_per_s.into(), 1_000_000),
            ("alerts.error_rate_percent", alerts.error_rate_percent.into(), 100),
            ("alerts.memory_percent", alerts.memory_percent.into(), 100),
            ("alerts.disk_spare_percent", alerts.disk_spare_percent.into(), 100),
            ("pool.min_alive_percent", self.pool.min_alive_percent.into(), 100),
        ];
        match at_most.into_iter().find(|(_, value, most)| value > most) {
            Some((name, value, most)) => {
                Err(Error::invalid(format!("{name} ({value}) must be at most {most}")))
            }
            None => Ok(()),
        }
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
    fn a_job_may_have_its_own() {
        let config = Config::profile(Profile::Testing).expect("profile");
        let own = config
            .for_job(Some("[tasks]\nattempts_max = 9\n[phases]\nsort_ms = 5\n"))
            .expect("settings");
        assert_eq!((own.tasks.attempts_max, own.phases.sort_ms), (9, 5));
        assert_eq!(
            (own.tasks.command_retry_ms, &own.heartbeat),
            (config.tasks.command_retry_ms, &config.heartbeat)
        );
        assert_eq!(config.for_job(None).expect("none"), config);
        for (text, expected) in [
            ("[heartbeat]\ninterval_ms = 9\n", "heartbeat is no setting of one job"),
            ("namespace = 'x'\n", "namespace"),
            ("[tasks]\nattempt_max = 9\n", "attempt_max"),
            ("[tasks]\nattempts_max = 0\n", "tasks.attempts_max"),
            ("nonsense", "not valid settings"),
        ] {
            let error = config.for_job(Some(text)).expect_err(text);
            assert!(error.message.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn who_knows_only_the_policies_takes_a_jobs_own_from_the_same_text() {
        let config = Config::profile(Profile::Testing).expect("profile");
        let check = |settings: Option<&str>| {
            let expected = config.for_job(settings).expect("settings").retry;
            assert_eq!(config.retry.for_job(settings).expect("policies"), expected, "{settings:?}");
        };
        check(None);
        check(Some("[phases]\nsort_ms = 5\n"));
        check(Some("[retry.store]\nattempts_max = 77\n[tasks]\nattempts_max = 9\n"));
        let refused = config
            .retry
            .for_job(Some("[retry.store]\njitter_percent = 101\n"))
            .expect_err("refused");
        assert!(refused.message.contains("retry.store.jitter_percent"), "{refused}");
    }

    #[test]
    fn what_a_profile_says_about_jobs_is_sent_with_them() {
        assert_eq!(Config::job_settings(Profile::Production, None).expect("settings"), None);
        let settings =
            Config::job_settings(Profile::Testing, None).expect("settings").expect("some");
        let config = Config::profile(Profile::Production)
            .expect("profile")
            .for_job(Some(&settings))
            .expect("own");
        assert_eq!(
            config.speculation,
            Config::profile(Profile::Testing).expect("profile").speculation
        );
    }

    #[test]
    fn what_cannot_work_is_refused() {
        for (text, expected) in [
            ("[tasks]\nattempt_max = 9\n", "attempt_max"),
            ("namespace = \"a.b\"", "namespace"),
            ("[tasks]\nattempts_max = 0\n", "attempts_max"),
            ("[heartbeat]\ninterval_ms = 4000\n", "dead_after_ms"),
            ("[leader]\nsilence_ms = 1500\n", "leader.silence_ms"),
            ("[detector]\nfloor_ms = 0\n", "detector.floor_ms"),
            ("[detector]\nceiling_ms = 4999\n", "detector.ceiling_ms"),
            ("[detector]\nceiling_ms = 4000000\n", "at most 3600000"),
            ("[detector]\ndead_phi = 2\n", "detector.dead_phi"),
            ("[breaker]\nopen_max_ms = 1\n", "breaker.open_max_ms"),
            ("[speculation]\nfactor_percent = 99\n", "speculation.factor_percent"),
            ("[recovery]\nrate_max_per_s = 1\n", "recovery.rate_max_per_s"),
            ("[alerts]\nmemory_percent = 101\n", "alerts.memory_percent"),
            ("[store]\ncall_timeout_ms = 0\n", "store.call_timeout_ms"),
            ("[retry.nats]\npause_ms = 0\n", "retry.nats.pause_ms"),
            ("[retry.nats]\nstrategy = \"often\"\n", "often"),
            ("[retry.nothing]\npause_ms = 5\n", "nothing"),
        ] {
            let error = Config::layered(&[text]).expect_err(text);
            assert!(error.message.contains(expected), "{text}: {error}");
        }
    }
}
