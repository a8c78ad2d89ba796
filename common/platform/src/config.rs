//! Settings: each is declared once (`settings.rs`), with its default and range and with what the
//! profiles say; a user's file is laid over that. Unknown keys are refused.

use std::path::Path;

use serde::{Deserialize, Serialize};

mod declare;
mod document;
mod settings;

use declare::{Setting, Value};
pub use document::document;
use settings::SECTIONS;
pub use settings::{
    Alerts, Breaker, Claim, Detector, Faults, Heartbeat, Hedge, Http, Job, Journal, Leader, Limits,
    Nats, Phases, Pool, Recovery, Retry, Sizes, Speculation, Store, Tasks, Worker,
};

use crate::retry::{Policy, Trouble};
use muster_protocol::error::{Error, Result};

/// The sections that one job may have its own settings of.
pub const JOB_SECTIONS: [&str; 5] = ["retry", "phases", "tasks", "speculation", "recovery"];

/// All settings, by section; the same names stand in a user's file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "each section says what it is")]
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
    /// What it says otherwise than the defaults.
    fn overlay(self) -> toml::Table {
        let number = |setting: &Setting| {
            let value = match self {
                Profile::Production => None,
                Profile::Development => setting.in_development,
                Profile::Testing => setting.in_testing,
            };
            value.map(Value::Number)
        };
        table_of(number)
    }
}

/// A table of those settings to which `value` gives one.
fn table_of(value: impl Fn(&Setting) -> Option<Value>) -> toml::Table {
    let mut all = toml::Table::new();
    for section in SECTIONS {
        let mut own = toml::Table::new();
        for setting in section.settings {
            let value = match value(setting) {
                Some(Value::Number(number)) => {
                    toml::Value::Integer(i64::try_from(number).unwrap_or(i64::MAX))
                }
                Some(Value::Flag(flag)) => toml::Value::Boolean(flag),
                Some(Value::Text(text)) => toml::Value::String(text.to_owned()),
                None => continue,
            };
            own.insert(setting.name.to_owned(), value);
        }
        // The innermost name first, each within the one before it.
        let path = section.path.split('.').filter(|name| !name.is_empty()).rev();
        let nested = |below: toml::Table, name: &str| {
            toml::Table::from_iter([(name.to_owned(), toml::Value::Table(below))])
        };
        if !own.is_empty() {
            lay_over(&mut all, path.fold(own, nested));
        }
    }
    all
}

impl Config {
    /// The defaults with a profile over them.
    ///
    /// # Errors
    /// `Invalid` where they do not fit together, which is a bug.
    pub fn profile(profile: Profile) -> Result<Self> {
        Self::laid([profile.overlay()])
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
        let own = parsed(&text).map_err(|e| e.at(file.display()))?;
        Self::laid([profile.overlay(), own]).map_err(|e| e.at(file.display()))
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
        Self::laid(overlays.iter().map(|text| parsed(text)).collect::<Result<Vec<_>>>()?)
    }

    fn laid(overlays: impl IntoIterator<Item = toml::Table>) -> Result<Self> {
        let mut merged = table_of(|setting| Some(setting.default));
        overlays.into_iter().for_each(|overlay| lay_over(&mut merged, overlay));
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
        let mut merged = profile.overlay();
        if let Some(file) = file {
            let text = std::fs::read_to_string(file)
                .map_err(|e| Error::invalid(format!("cannot read {}: {e}", file.display())))?;
            lay_over(&mut merged, parsed(&text)?);
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

    /// What is beyond the range of single settings: what they must be to one another.
    fn validate(&self) -> Result<()> {
        let token = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let namespace = &self.namespace;
        if namespace.is_empty() || namespace.len() > 32 || !namespace.bytes().all(token) {
            let what = format!("namespace {namespace:?} must be 1 to 32 of a-z 0-9 -");
            return Err(Error::invalid(what));
        }
        let table = toml::Table::try_from(self)
            .map_err(|e| Error::bug(format!("settings cannot be written: {e}")))?;
        check_ranges(&table)?;
        let least = [
            ("heartbeat.dead_after_ms", 2, "heartbeat.interval_ms"),
            ("leader.silence_ms", 2, "heartbeat.interval_ms"),
            ("claim.dead_after_ms", 4, "claim.renew_ms"),
            ("detector.ceiling_ms", 1, "detector.floor_ms"),
            ("detector.dead_phi", 1, "detector.suspect_phi"),
            ("breaker.open_max_ms", 1, "breaker.open_ms"),
            ("speculation.hang_ms", 1, "speculation.runtime_min_ms"),
            ("recovery.rate_max_per_s", 1, "recovery.rate_min_per_s"),
            ("limits.start_per_s", 1, "limits.min_per_s"),
            ("sizes.split_bytes_max", 1, "sizes.split_bytes_min"),
            ("sizes.partition_bytes_max", 1, "sizes.partition_bytes_min"),
        ];
        for (name, times, other) in least {
            let (value, bound) = (number(&table, name), number(&table, other));
            if value < bound.saturating_mul(times) {
                let so_many = if times > 1 { format!("{times} times ") } else { String::new() };
                return Err(Error::invalid(format!(
                    "{name} ({value}) must be at least {so_many}{other} ({bound})"
                )));
            }
        }
        self.retry.validate()
    }
}

fn check_ranges(table: &toml::Table) -> Result<()> {
    for section in SECTIONS {
        for setting in section.settings {
            let name = format!("{}.{}", section.path, setting.name);
            if !matches!(setting.default, Value::Number(_)) {
                continue;
            }
            let value = number(table, &name);
            let (bound, words) = match value {
                _ if value < setting.least => (setting.least, "at least"),
                _ if value > setting.most => (setting.most, "at most"),
                _ => continue,
            };
            return Err(Error::invalid(format!("{name} ({value}) must be {words} {bound}")));
        }
    }
    Ok(())
}

/// The number that a dotted name stands for.
fn number(table: &toml::Table, name: &str) -> u64 {
    let mut names = name.split('.');
    let first = names.next().and_then(|name| table.get(name));
    let value = names.try_fold(first, |value, name| Some(value?.get(name))).flatten();
    value.and_then(toml::Value::as_integer).and_then(|value| value.try_into().ok()).unwrap_or(0)
}

fn parsed(text: &str) -> Result<toml::Table> {
    text.parse().map_err(|e| Error::invalid(format!("not valid settings: {e}")))
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
