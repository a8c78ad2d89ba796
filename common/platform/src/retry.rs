//! The one retry policy of the program: how long to wait before a thing is tried again, and when to
//! give up, by kind of trouble.
//!
//! A [`Policy`] is pure: the number of tries and a random number go in, a pause comes out; the
//! coordinator's machine asks it for its timers. [`Retry`] runs calls by it and counts in
//! [`RecoveryStats`] what came of them. Settings: `[retry.<kind>]`. What outlives a single call (a
//! task, a report) is bounded by its owner, by `tasks.attempts_max`, `[phases]` or
//! `worker.coordinator_wait_ms`; its policy then gives pauses only.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use serde::{Deserialize, Serialize};

use muster_protocol::wire::Recoveries;

use crate::clock::Clock;
use crate::config;
use muster_protocol::error::{Error, ErrorKind, Result};

/// What a thing is tried again for. The names are those of the settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Trouble {
    /// A store call that failed in passing.
    Store,
    /// A store that asks for fewer requests.
    Throttle,
    /// A message that was not acknowledged.
    Nats,
    /// A revoked upload that could not be aborted.
    Abort,
    /// A task whose attempt failed.
    Task,
    /// A local disk that is full.
    Disk,
    /// Memory that was refused.
    Memory,
    /// An input object that cannot be read as it should be.
    Input,
}

impl Trouble {
    /// All of them, in the order of the settings.
    pub const ALL: [Trouble; 8] = [
        Trouble::Store,
        Trouble::Throttle,
        Trouble::Nats,
        Trouble::Abort,
        Trouble::Task,
        Trouble::Disk,
        Trouble::Memory,
        Trouble::Input,
    ];

    /// Its name, as in the settings.
    pub fn name(self) -> &'static str {
        match self {
            Trouble::Store => "store",
            Trouble::Throttle => "throttle",
            Trouble::Nats => "nats",
            Trouble::Abort => "abort",
            Trouble::Task => "task",
            Trouble::Disk => "disk",
            Trouble::Memory => "memory",
            Trouble::Input => "input",
        }
    }

    /// The one of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|trouble| trouble.name() == name)
    }

    /// Which policy serves an error of a call that is made under this one; none where repeating it
    /// changes nothing.
    fn for_error(self, kind: ErrorKind) -> Option<Trouble> {
        match (self, kind) {
            (_, ErrorKind::Throttled) => Some(Trouble::Throttle),
            (_, ErrorKind::Retry) => Some(self),
            (Trouble::Disk, ErrorKind::Exhausted) | (Trouble::Memory, ErrorKind::OutOfMemory) => {
                Some(self)
            }
            (Trouble::Input, ErrorKind::Corrupt) => Some(self),
            (Trouble::Task, kind) if kind.is_retryable() => Some(self),
            _ => None,
        }
    }
}

impl Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How pauses grow from one try to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    /// No pause.
    Immediate,
    /// The same pause each time.
    Fixed,
    /// Twice, three times, four times the first.
    Linear,
    /// Doubles each time.
    Exponential,
}

/// When to try again, and when no more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// How pauses grow.
    pub strategy: Strategy,
    /// The first pause, in milliseconds.
    pub pause_ms: u64,
    /// The longest pause, in milliseconds.
    pub pause_max_ms: u64,
    /// So much of each pause is left to chance, in percent, so that a pool does not return in one
    /// wave.
    pub jitter_percent: u32,
    /// Most tries, the first included; 0 where only `total_ms` or the owner bounds them.
    pub attempts_max: u32,
    /// Longest time from the first failure to the last try, in milliseconds; 0 is no bound.
    pub total_ms: u64,
}

impl Policy {
    /// The pause after `tries` failed tries, in milliseconds; `random` is any number.
    pub fn pause_ms(&self, tries: u32, random: u64) -> u64 {
        let before = tries.saturating_sub(1);
        let grown = match self.strategy {
            Strategy::Immediate => return 0,
            Strategy::Fixed => self.pause_ms,
            Strategy::Linear => self.pause_ms.saturating_mul(u64::from(tries.max(1))),
            Strategy::Exponential => {
                self.pause_ms.saturating_mul(1_u64.checked_shl(before).unwrap_or(u64::MAX))
            }
        };
        let ceiling = grown.min(self.pause_max_ms);
        let chance = u128::from(ceiling) * u128::from(self.jitter_percent.min(100)) / 100;
        let chance = u64::try_from(chance).unwrap_or(ceiling);
        ceiling - random % chance.saturating_add(1)
    }

    /// Whether another try is allowed after `tries` of them, `since_ms` after the first failed.
    pub fn allows(&self, tries: u32, since_ms: u64) -> bool {
        (self.attempts_max == 0 || tries < self.attempts_max)
            && (self.total_ms == 0 || since_ms < self.total_ms)
    }

    /// Refuses what cannot work; `name` is that of the section.
    ///
    /// # Errors
    /// `Invalid`, naming the setting.
    pub fn validate(&self, name: &str) -> Result<()> {
        if self.jitter_percent > 100 {
            return Err(Error::invalid(format!(
                "{name}.jitter_percent ({}) is more than 100",
                self.jitter_percent
            )));
        }
        if self.strategy != Strategy::Immediate
            && (self.pause_ms == 0 || self.pause_ms > self.pause_max_ms)
        {
            return Err(Error::invalid(format!(
                "{name}.pause_ms ({}) must be greater than 0 and at most {name}.pause_max_ms ({})",
                self.pause_ms, self.pause_max_ms
            )));
        }
        if self.strategy == Strategy::Immediate && self.attempts_max == 0 {
            return Err(Error::invalid(format!(
                "{name} is immediate, so {name}.attempts_max must bound it"
            )));
        }
        Ok(())
    }
}

/// What came of trouble, by kind. Two of them add up, whoever counted them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RecoveryStats {
    kinds: BTreeMap<Trouble, Recoveries>,
}

impl RecoveryStats {
    /// Counts another try.
    pub fn retried(&mut self, trouble: Trouble) {
        self.kinds.entry(trouble).or_default().attempts += 1;
    }

    /// Counts a success, `after_ms` after the first failure.
    pub fn recovered(&mut self, trouble: Trouble, after_ms: u64) {
        let kind = self.kinds.entry(trouble).or_default();
        kind.recovered += 1;
        kind.recovery_ms_sum = kind.recovery_ms_sum.saturating_add(after_ms);
        kind.recovery_ms_max = kind.recovery_ms_max.max(after_ms);
    }

    /// Counts something that was given up.
    pub fn gave_up(&mut self, trouble: Trouble) {
        self.kinds.entry(trouble).or_default().given_up += 1;
    }

    /// Adds what another has counted.
    pub fn merge(&mut self, other: &RecoveryStats) {
        for (trouble, more) in &other.kinds {
            let kind = self.kinds.entry(*trouble).or_default();
            kind.attempts = kind.attempts.saturating_add(more.attempts);
            kind.recovered = kind.recovered.saturating_add(more.recovered);
            kind.given_up = kind.given_up.saturating_add(more.given_up);
            kind.recovery_ms_sum = kind.recovery_ms_sum.saturating_add(more.recovery_ms_sum);
            kind.recovery_ms_max = kind.recovery_ms_max.max(more.recovery_ms_max);
        }
    }

    /// The counts of one kind.
    pub fn of(&self, trouble: Trouble) -> Recoveries {
        self.kinds.get(&trouble).copied().unwrap_or_default()
    }

    /// The kinds that there was trouble of.
    pub fn kinds(&self) -> impl Iterator<Item = (Trouble, Recoveries)> + '_ {
        self.kinds.iter().map(|(trouble, kind)| (*trouble, *kind))
    }

    /// Whether nothing was ever tried again or given up.
    pub fn is_empty(&self) -> bool {
        self.kinds.is_empty()
    }
}

impl FromIterator<(Trouble, Recoveries)> for RecoveryStats {
    fn from_iter<I: IntoIterator<Item = (Trouble, Recoveries)>>(kinds: I) -> Self {
        Self { kinds: kinds.into_iter().collect() }
    }
}

/// Makes calls by the policies. Clones count together.
#[derive(Clone)]
pub struct Retry {
    policies: Arc<config::Retry>,
    /// Those that go before them, once they are known.
    own: Arc<OnceLock<config::Retry>>,
    clock: Arc<dyn Clock>,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    stats: Mutex<RecoveryStats>,
    above: Option<Arc<Counts>>,
}

impl Counts {
    fn lock(&self) -> MutexGuard<'_, RecoveryStats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, count: impl Fn(&mut RecoveryStats)) {
        count(&mut self.lock());
        let mut above = self.above.as_ref();
        while let Some(counts) = above {
            count(&mut counts.lock());
            above = counts.above.as_ref();
        }
    }
}

/// The failures of one call so far.
#[derive(Default)]
struct Failures {
    tries: BTreeMap<Trouble, u32>,
    last: Option<Trouble>,
    since_ms: u64,
}

impl Retry {
    /// Tries by these policies, and counts from nothing.
    pub fn new(policies: config::Retry, clock: Arc<dyn Clock>) -> Self {
        Self { policies: Arc::new(policies), own: Arc::default(), clock, counts: Arc::default() }
    }

    /// The same policies with counts of their own, for instance of one job; they are added here
    /// too.
    #[must_use]
    pub fn counting_apart(&self) -> Self {
        let counts = Counts { stats: Mutex::default(), above: Some(self.counts.clone()) };
        let (policies, clock) = (self.policies.clone(), self.clock.clone());
        Self { policies, own: Arc::default(), clock, counts: Arc::new(counts) }
    }

    /// From now on, these clones of it go by the settings of one job, laid over the usual ones.
    /// They are read once: a job's settings do not change.
    ///
    /// # Errors
    /// As [`config::Retry::for_job`]; the usual policies stay.
    pub fn follow(&self, settings: Option<&str>) -> Result<()> {
        if settings.is_some() && self.own.get().is_none() {
            // Whoever else was quicker set the same.
            drop(self.own.set(self.policies.for_job(settings)?));
        }
        Ok(())
    }

    /// The clock by which it waits.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// What was counted so far.
    pub fn stats(&self) -> RecoveryStats {
        self.counts.lock().clone()
    }

    /// Store errors that were tried again so far, throttling included.
    pub fn retried(&self) -> u64 {
        let stats = self.counts.lock();
        stats.of(Trouble::Store).attempts + stats.of(Trouble::Throttle).attempts
    }

    /// The policy of one kind.
    pub fn policy(&self, trouble: Trouble) -> &Policy {
        self.own.get().unwrap_or(&self.policies).of(trouble)
    }

    /// Makes a store call until it succeeds, fails for good, or has been tried often enough; the
    /// error then names `place`.
    ///
    /// # Errors
    /// The call's last.
    pub async fn call<T, F>(
        &self,
        place: &(impl Display + Sync),
        call: impl FnMut() -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        self.call_as(Trouble::Store, place, call).await
    }

    /// As [`Retry::call`], under the policy of `trouble`; a store that throttles is waited for
    /// under its own.
    ///
    /// # Errors
    /// The call's last.
    pub async fn call_as<T, F>(
        &self,
        trouble: Trouble,
        place: &(impl Display + Sync),
        call: impl FnMut() -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        self.run(trouble, Some(place), call).await
    }

    /// As [`Retry::call`], for a store call whose error names its place already.
    ///
    /// # Errors
    /// The call's last.
    pub async fn repeat<T, F>(&self, call: impl FnMut() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        self.run(Trouble::Store, None, call).await
    }

    async fn run<T, F>(
        &self,
        trouble: Trouble,
        place: Option<&(dyn Display + Sync)>,
        mut call: impl FnMut() -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let mut failures = Failures::default();
        loop {
            match call().await {
                Ok(value) => {
                    if let Some(last) = failures.last {
                        let after_ms = self.clock.now_ms().saturating_sub(failures.since_ms);
                        self.counts.count(|stats| stats.recovered(last, after_ms));
                    }
                    return Ok(value);
                }
                Err(error) => self.pause(trouble, place, &mut failures, error).await?,
            }
        }
    }

    /// Waits before the next try, or gives the error back if there is none.
    async fn pause(
        &self,
        trouble: Trouble,
        place: Option<&(dyn Display + Sync)>,
        failures: &mut Failures,
        error: Error,
    ) -> Result<()> {
        let error = match place {
            Some(place) => error.at(place),
            None => error,
        };
        let Some(kind) = trouble.for_error(error.kind) else {
            if let Some(last) = failures.last {
                self.counts.count(|stats| stats.gave_up(last));
            }
            return Err(error);
        };
        let now_ms = self.clock.now_ms();
        if failures.last.replace(kind).is_none() {
            failures.since_ms = now_ms;
        }
        let tries = failures.tries.entry(kind).and_modify(|tries| *tries += 1).or_insert(1);
        let policy = self.policy(kind);
        let since_ms = now_ms.saturating_sub(failures.since_ms);
        if !policy.allows(*tries, since_ms) {
            self.counts.count(|stats| stats.gave_up(kind));
            let bound = if policy.attempts_max != 0 && *tries >= policy.attempts_max {
                "attempts_max"
            } else {
                "total_ms"
            };
            let message = format!("{} (tried {tries} times, retry.{kind}.{bound})", error.message);
            return Err(Error::new(error.kind, message));
        }
        self.counts.count(|stats| stats.retried(kind));
        let pause_ms = policy.pause_ms(*tries, self.clock.random());
        tracing::warn!(%error, tries, pause_ms, "waiting for the {kind}");
        self.clock.pause(pause_ms).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;
    use crate::config::{Config, Profile};

    fn policy(strategy: Strategy, jitter_percent: u32) -> Policy {
        Policy {
            strategy,
            pause_ms: 100,
            pause_max_ms: 10_000,
            jitter_percent,
            attempts_max: 5,
            total_ms: 0,
        }
    }

    #[test]
    fn pauses_follow_their_strategy_to_a_bound() {
        let check = |strategy, expected: [u64; 5]| {
            let policy = policy(strategy, 50);
            for (tries, ceiling) in [1, 2, 3, 8, 200].into_iter().zip(expected) {
                assert_eq!(policy.pause_ms(tries, 0), ceiling, "{strategy:?}, {tries} tries");
                let all = (0..200).map(|random| policy.pause_ms(tries, random * 97));
                assert!(
                    all.clone()
                        .all(|pause_ms| (ceiling - ceiling / 2..=ceiling).contains(&pause_ms))
                );
                assert!(
                    ceiling == 0 || all.max() != policy_min(&policy, tries),
                    "jitter spreads {strategy:?}"
                );
            }
        };
        fn policy_min(policy: &Policy, tries: u32) -> Option<u64> {
            (0..200).map(|random| policy.pause_ms(tries, random * 97)).min()
        }
        check(Strategy::Immediate, [0; 5]);
        check(Strategy::Fixed, [100; 5]);
        check(Strategy::Linear, [100, 200, 300, 800, 10_000]);
        check(Strategy::Exponential, [100, 200, 400, 10_000, 10_000]);
    }

    #[test]
    fn without_jitter_nothing_is_left_to_chance() {
        let policy = policy(Strategy::Exponential, 0);
        assert!((0..50).all(|random| policy.pause_ms(3, random * 7919) == 400));
    }

    #[test]
    fn bounds_hold() {
        let both = Policy { total_ms: 1000, ..policy(Strategy::Fixed, 0) };
        assert!(both.allows(4, 999));
        assert!(!both.allows(5, 0));
        assert!(!both.allows(1, 1000));
        let neither = Policy { attempts_max: 0, total_ms: 0, ..both };
        assert!(neither.allows(u32::MAX, u64::MAX));
    }

    #[test]
    fn policies_that_cannot_work_are_refused() {
        let check = |policy: &Policy, expected: &str| {
            let error = policy.validate("retry.store").expect_err(expected);
            assert!(error.message.contains(expected), "{error}");
        };
        let sound = policy(Strategy::Linear, 50);
        sound.validate("retry.store").expect("sound");
        check(&Policy { jitter_percent: 101, ..sound.clone() }, "retry.store.jitter_percent");
        check(&Policy { pause_ms: 0, ..sound.clone() }, "retry.store.pause_ms");
        check(&Policy { pause_ms: 10_001, ..sound.clone() }, "retry.store.pause_max_ms");
        check(
            &Policy { strategy: Strategy::Immediate, attempts_max: 0, ..sound },
            "retry.store.attempts_max",
        );
    }

    fn retry() -> Retry {
        let mut policies = Config::profile(Profile::Testing).expect("settings").retry;
        policies.store.attempts_max = 3;
        policies.throttle.attempts_max = 4;
        for policy in
            [&mut policies.store, &mut policies.throttle, &mut policies.disk, &mut policies.input]
        {
            (policy.pause_ms, policy.pause_max_ms) = (1, 2);
        }
        Retry::new(policies, Arc::new(ManualClock::default()))
    }

    async fn tries_of(
        retry: &Retry,
        trouble: Trouble,
        errors: &[ErrorKind],
    ) -> (usize, Option<ErrorKind>) {
        let mut made = 0;
        let result = retry
            .call_as(trouble, &"place", || {
                made += 1;
                let error = errors.get(made - 1).map(|kind| Error::new(*kind, "no"));
                async move { error.map_or(Ok(()), Err) }
            })
            .await;
        (made, result.err().map(|error| error.kind))
    }

    #[tokio::test]
    async fn passing_trouble_is_tried_again_within_bounds() {
        use ErrorKind::{Corrupt, Exhausted, OutOfMemory, Retry as Passing, Throttled};
        async fn check(
            trouble: Trouble,
            errors: &[ErrorKind],
            tries: usize,
            ends_with: Option<ErrorKind>,
        ) {
            assert_eq!(
                tries_of(&retry(), trouble, errors).await,
                (tries, ends_with),
                "{trouble} {errors:?}"
            );
        }
        check(Trouble::Store, &[], 1, None).await;
        check(Trouble::Store, &[Passing, Passing], 3, None).await;
        check(Trouble::Store, &[Passing, Passing, Passing], 3, Some(Passing)).await;
        check(Trouble::Store, &[Throttled, Throttled, Throttled], 4, None).await;
        check(Trouble::Store, &[Throttled; 9], 4, Some(Throttled)).await;
        check(Trouble::Store, &[Passing, Throttled, Passing, Throttled], 5, None).await;
        check(Trouble::Store, &[Corrupt], 1, Some(Corrupt)).await;
        check(Trouble::Store, &[Exhausted], 1, Some(Exhausted)).await;
        check(Trouble::Disk, &[Exhausted], 2, None).await;
        check(Trouble::Disk, &[OutOfMemory], 1, Some(OutOfMemory)).await;
        check(Trouble::Memory, &[OutOfMemory], 2, None).await;
        check(Trouble::Memory, &[Exhausted], 1, Some(Exhausted)).await;
        check(Trouble::Input, &[Corrupt], 2, None).await;
    }

    #[tokio::test]
    async fn what_came_of_it_is_counted_for_the_job_and_in_all() {
        use ErrorKind::{Corrupt, Retry as Passing, Throttled};
        let all = retry();
        let (one, other) = (all.counting_apart(), all.counting_apart());
        tries_of(&one, Trouble::Store, &[Passing, Passing]).await;
        tries_of(&other, Trouble::Store, &[Passing; 3]).await;
        tries_of(&other, Trouble::Store, &[Throttled]).await;
        tries_of(&other, Trouble::Store, &[Passing, Corrupt]).await;
        let counts = |retry: &Retry, trouble| {
            let kind = retry.stats().of(trouble);
            (kind.attempts, kind.recovered, kind.given_up)
        };
        assert_eq!(counts(&one, Trouble::Store), (2, 1, 0));
        assert_eq!(counts(&other, Trouble::Store), (3, 0, 2));
        assert_eq!(counts(&other, Trouble::Throttle), (1, 1, 0));
        let mut sum = one.stats();
        sum.merge(&other.stats());
        assert_eq!(sum, all.stats());
        assert_eq!(all.retried(), 6);
    }

    #[test]
    fn one_that_counts_apart_follows_a_jobs_settings_and_the_others_do_not() {
        let all = retry();
        let one = all.counting_apart();
        let clone = one.clone();
        one.follow(Some("[retry.store]\nattempts_max = 77\n")).expect("settings");
        let tries = |retry: &Retry| retry.policy(Trouble::Store).attempts_max;
        assert_eq!((tries(&one), tries(&clone)), (77, 77));
        assert_ne!(tries(&all), 77);
        assert_ne!(tries(&all.counting_apart()), 77);
        assert!(all.follow(Some("nonsense")).is_err());
    }

    #[test]
    fn the_time_to_recover_is_kept() {
        let mut stats = RecoveryStats::default();
        stats.recovered(Trouble::Nats, 30);
        stats.recovered(Trouble::Nats, 50);
        let nats = stats.of(Trouble::Nats);
        assert_eq!((nats.recovery_ms_sum, nats.recovery_ms_max), (80, 50));
        let text = serde_json::to_string(&stats).expect("json");
        assert!(text.starts_with("{\"nats\":{"), "{text}");
        assert_eq!(serde_json::from_str::<RecoveryStats>(&text).expect("json"), stats);
    }
}
