use muster_platform::config::{Config, Profile};
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::job::pool::policies::breaker::State;

const GB: u64 = 1 << 30;

fn settings() -> Settings {
    Config::profile(Profile::Production).expect("profile").alerts
}

fn worker() -> WorkerId {
    "w1".parse().expect("id")
}

fn well() -> WorkerFigures {
    WorkerFigures {
        liveness: Liveness::Healthy,
        silence_ms: 300,
        errors: Totals { ended: 100, failed: 0 },
        slow: false,
        speed_percent: 100,
        memory_used_bytes: GB,
        memory_bytes: 2 * GB,
        disk_free_bytes: Some(100 * GB),
        disk_needed_bytes: 10 * GB,
        failures_in_a_row: 0,
        critical: false,
    }
}

fn names(transitions: &[Transition]) -> Vec<String> {
    let name = |transition: &Transition| match transition {
        Transition::Raised(alert) => format!("raised {} {}", alert.severity.as_str(), alert.id()),
        Transition::Cleared(alert, lasted_ms) => {
            format!("cleared {} after {lasted_ms}", alert.id())
        }
    };
    transitions.iter().map(name).collect()
}

/// Gives these figures each second, and returns what came out with its second.
fn hold(
    alerts: &mut Alerts,
    from_s: u64,
    seconds: u64,
    figures: &WorkerFigures,
) -> Vec<(u64, String)> {
    let mut seen = Vec::new();
    for second in from_s..from_s + seconds {
        let transitions = alerts.worker(&settings(), second * 1000, &worker(), figures);
        seen.extend(names(&transitions).into_iter().map(|name| (second, name)));
    }
    seen
}

#[test]
fn all_is_well() {
    let mut alerts = Alerts::new();
    assert!(hold(&mut alerts, 0, 100, &well()).is_empty());
    let unknown = WorkerFigures {
        memory_bytes: 0,
        disk_free_bytes: None,
        errors: Totals::default(),
        ..well()
    };
    assert!(hold(&mut alerts, 100, 100, &unknown).is_empty());
    assert!(alerts.deployment(&settings(), 0, &DeploymentFigures::default()).is_empty());
    assert_eq!(alerts.raised().count(), 0);
    assert!(alerts.entries.is_empty());
}

#[test]
fn every_rule_of_a_worker_is_raised_and_cleared() {
    for (id, raised_s, bad) in [
        ("worker-down", 0, WorkerFigures { liveness: Liveness::Dead, ..well() }),
        ("high-error-rate", 0, WorkerFigures { errors: Totals { ended: 10, failed: 2 }, ..well() }),
        ("slow-progress", 0, WorkerFigures { slow: true, speed_percent: 20, ..well() }),
        ("memory-high", 5, WorkerFigures { memory_used_bytes: 19 * GB / 10, ..well() }),
        ("disk-low", 5, WorkerFigures { disk_free_bytes: Some(12 * GB - 1), ..well() }),
        (
            "disk-low",
            5,
            WorkerFigures { disk_free_bytes: Some(1000), disk_needed_bytes: 0, ..well() },
        ),
        ("task-failures", 0, WorkerFigures { failures_in_a_row: 3, ..well() }),
    ] {
        let mut alerts = Alerts::new();
        let raised = vec![(raised_s, format!("raised warning {id}:worker:w1"))];
        assert_eq!(hold(&mut alerts, 0, 10, &bad), raised);
        assert_eq!(alerts.raised().map(Alert::id).collect::<Vec<_>>(), [format!("{id}:worker:w1")]);
        let cleared =
            vec![(40, format!("cleared {id}:worker:w1 after {}", 40_000 - raised_s * 1000))];
        assert_eq!(hold(&mut alerts, 10, 50, &well()), cleared);
        assert!(alerts.entries.is_empty(), "{id}");
        // A critical worker's alerts are errors.
        let critical = hold(&mut Alerts::new(), 0, 10, &WorkerFigures { critical: true, ..bad });
        assert_eq!(critical, [(raised_s, format!("raised error {id}:worker:w1"))]);
    }
}

#[test]
fn every_rule_of_the_deployment_and_of_a_job_is_raised() {
    let calm = DeploymentFigures { slots: 4, ..DeploymentFigures::default() };
    for (expected, figures) in [
        ("raised warning journal-slow", DeploymentFigures { journal_write_ms: 1001, ..calm }),
        (
            "raised error journal-failing",
            DeploymentFigures { journal_failures_in_a_row: 1, ..calm },
        ),
        ("raised error journal-full", DeploymentFigures { journal_used_percent: 80, ..calm }),
        ("raised warning journal-backlog", DeploymentFigures { journal_waiting: 1000, ..calm }),
        ("raised warning task-backlog", DeploymentFigures { tasks_waiting: 4001, ..calm }),
    ] {
        let mut alerts = Alerts::new();
        let first = alerts.deployment(&settings(), 0, &figures);
        let second = alerts.deployment(&settings(), 5000, &figures);
        assert_eq!(names(&[first, second].concat()), [expected]);
    }
    let job: JobId = "j1".parse().expect("id");
    for (expected, figures) in [
        (
            "raised warning slow-progress:job:j1",
            JobFigures { idle_ms: 60_000, failures_in_a_row: 0 },
        ),
        ("raised warning task-failures:job:j1", JobFigures { idle_ms: 0, failures_in_a_row: 3 }),
    ] {
        assert_eq!(names(&Alerts::new().job(&settings(), 0, &job, &figures)), [expected]);
    }
}

#[test]
fn limits_are_where_they_are_said_to_be() {
    let fine = [
        WorkerFigures { liveness: Liveness::Suspect, ..well() },
        WorkerFigures { liveness: Liveness::Rejoined, ..well() },
        WorkerFigures { errors: Totals { ended: 4, failed: 4 }, ..well() },
        WorkerFigures { errors: Totals { ended: 100, failed: 19 }, ..well() },
        WorkerFigures { memory_used_bytes: 90, memory_bytes: 100, ..well() },
        WorkerFigures { disk_free_bytes: Some(12 * GB), ..well() },
        WorkerFigures { failures_in_a_row: 2, ..well() },
    ];
    for figures in fine {
        assert!(hold(&mut Alerts::new(), 0, 100, &figures).is_empty(), "{figures:?}");
    }
    let bad = WorkerFigures { memory_used_bytes: 901, memory_bytes: 1000, ..well() };
    assert_eq!(hold(&mut Alerts::new(), 0, 100, &bad).len(), 1);
}

#[test]
fn a_figure_at_its_limit_does_not_flap() {
    let mut alerts = Alerts::new();
    let memory =
        |percent| WorkerFigures { memory_used_bytes: percent, memory_bytes: 100, ..well() };
    let mut seen = Vec::new();
    for second in 0..600 {
        seen.extend(hold(&mut alerts, second, 1, &memory(if second % 8 < 6 { 92 } else { 88 })));
    }
    assert_eq!(seen, [(5, "raised warning memory-high:worker:w1".to_owned())]);
    // Good for a moment now and then is not good.
    for second in 600..1200 {
        seen.extend(hold(&mut alerts, second, 1, &memory(if second % 25 == 0 { 91 } else { 50 })));
    }
    assert_eq!(seen.len(), 1);
    // And bad for a moment now and then is not bad.
    let mut alerts = Alerts::new();
    for second in 0..600 {
        assert!(
            hold(&mut alerts, second, 1, &memory(if second % 5 == 0 { 50 } else { 99 })).is_empty()
        );
    }
}

#[test]
fn what_is_gone_is_cleared_and_forgotten() {
    let mut alerts = Alerts::new();
    hold(
        &mut alerts,
        0,
        1,
        &WorkerFigures { liveness: Liveness::Dead, memory_used_bytes: 2 * GB, ..well() },
    );
    let other: WorkerId = "w2".parse().expect("id");
    alerts.worker(&settings(), 0, &other, &WorkerFigures { liveness: Liveness::Dead, ..well() });
    let gone = alerts.forget(7000, &Subject::Worker(worker()));
    assert_eq!(names(&gone), ["cleared worker-down:worker:w1 after 7000"]);
    assert_eq!(alerts.raised().map(Alert::id).collect::<Vec<_>>(), ["worker-down:worker:w2"]);
    assert_eq!(alerts.entries.len(), 1, "what was pending is forgotten too");
}

#[test]
fn classes_follow_detector_breaker_and_speed() {
    let open = State::Open { until_ms: 1 };
    for (liveness, breaker, slow, expected) in [
        (Liveness::Healthy, State::Closed, false, Class::Healthy),
        (Liveness::Rejoined, State::Closed, false, Class::Healthy),
        (Liveness::Healthy, State::Closed, true, Class::Degraded),
        (Liveness::Rejoined, State::Closed, true, Class::Degraded),
        (Liveness::Suspect, State::Closed, false, Class::Degraded),
        (Liveness::Healthy, State::HalfOpen, false, Class::Degraded),
        (Liveness::Healthy, open, false, Class::Failed),
        (Liveness::Suspect, open, true, Class::Failed),
        (Liveness::Dead, State::Closed, false, Class::Failed),
        (Liveness::Dead, State::HalfOpen, true, Class::Failed),
    ] {
        assert_eq!(
            class(liveness, breaker, slow, false),
            expected,
            "{liveness:?} {breaker:?} {slow}"
        );
        // Without its store even a quick worker is not healthy.
        let waits = expected.max(Class::Degraded);
        assert_eq!(
            class(liveness, breaker, slow, true),
            waits,
            "{liveness:?} {breaker:?} {slow}, without its store"
        );
    }
    let shares = Shares::count([Class::Healthy, Class::Failed, Class::Healthy, Class::Degraded]);
    assert_eq!(shares, Shares { healthy: 2, degraded: 1, failed: 1 });
    assert_eq!((shares.percent(Class::Healthy), shares.percent(Class::Failed)), (50, 25));
    assert_eq!(Shares::default().percent(Class::Healthy), 0);
}

#[test]
fn a_label_makes_a_worker_critical() {
    let label = |key: &str, value: &str| [(key.to_owned(), value.to_owned())];
    assert!(is_critical(&label("critical", "true")) && is_critical(&label("critical", "")));
    assert!(!is_critical(&label("critical", "false")) && !is_critical(&label("zone", "critical")));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the figures: raised and cleared take turns for each id, a clearing comes `clear_ms`
    /// after the last bad figure at the earliest, and what is listed is what is raised.
    #[test]
    fn transitions_take_turns(
        steps in vec((0u64..20_000, any::<bool>(), 0u64..=100, 0u32..6), 1..200),
    ) {
        let (settings, mut alerts) = (settings(), Alerts::new());
        let (mut now, mut up, mut bad_ms) = (0, BTreeMap::new(), 0);
        for (pause, alive, memory, failures) in steps {
            now += pause;
            let liveness = if alive { Liveness::Healthy } else { Liveness::Dead };
            let figures = WorkerFigures {
                liveness,
                memory_used_bytes: memory,
                memory_bytes: 100,
                failures_in_a_row: failures,
                ..well()
            };
            if !alive {
                bad_ms = now;
            }
            for transition in alerts.worker(&settings, now, &worker(), &figures) {
                match transition {
                    Transition::Raised(alert) => {
                        prop_assert!(up.insert(alert.id(), alert).is_none());
                    }
                    Transition::Cleared(alert, lasted_ms) => {
                        prop_assert_eq!(lasted_ms, now - alert.raised_ms);
                        prop_assert!(
                            alert.rule != Rule::WorkerDown || now >= bad_ms + settings.clear_ms
                        );
                        prop_assert_eq!(up.remove(&alert.id()), Some(alert));
                    }
                }
            }
            let listed: Vec<&Alert> = alerts.raised().collect();
            prop_assert_eq!(listed.len(), up.len());
            prop_assert!(listed.into_iter().all(|alert| up.get(&alert.id()) == Some(alert)));
        }
    }
}
