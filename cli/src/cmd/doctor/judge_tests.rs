use super::*;

fn level(findings: &[Finding]) -> Level {
    findings.iter().map(|finding| finding.level).max().expect("a finding")
}

#[track_caller]
fn check(findings: &[Finding], expected: Level, word: &str) {
    assert_eq!(level(findings), expected, "{findings:#?}");
    let worst: Vec<_> = findings.iter().filter(|finding| finding.level == expected).collect();
    assert!(
        worst.iter().any(|finding| finding.seen.contains(word)),
        "{word:?} is not said: {worst:#?}"
    );
    for finding in findings {
        assert_eq!(
            finding.level == Level::Ok,
            finding.advice.is_empty(),
            "what to do, and only where needed: {finding:?}"
        );
    }
}

#[test]
fn versions() {
    check(&[version("2.15.1")], Level::Ok, "2.15.1");
    check(&[version("2.11.4")], Level::Problem, "older than 2.12");
}

#[test]
fn servers_of_a_list() {
    check(&[servers(3, &[])], Level::Ok, "all 3");
    let away = [("b:4222".to_owned(), "connection refused".to_owned())];
    check(
        &[servers(3, &away)],
        Level::Warning,
        "1 of 3 do not answer: b:4222 (connection refused)",
    );
}

#[test]
fn round_trips() {
    check(&[round_trip(&[900, 3, 1, 2, 4])], Level::Ok, "3 ms");
    check(&[round_trip(&[300, 400, 1])], Level::Warning, "300 ms");
    check(&[round_trip(&[])], Level::Unknown, "no request");
}

#[test]
fn accounts() {
    let account_of = |storage, max_storage| {
        let limits = crate::cmd::doctor::server::AccountLimits { max_storage };
        account(&Looked::Seen(Account { storage, streams: 3, limits }))
    };
    check(&[account_of(5, -1)], Level::Ok, "no limit");
    check(&[account_of(50, 100)], Level::Ok, "50 %");
    check(&[account_of(80, 100)], Level::Warning, "80 %");
    check(&[account_of(u64::MAX, 1)], Level::Problem, "%");
    check(&[account(&Looked::Absent("x".to_owned()))], Level::Problem, "not enabled");
    check(&[account(&Looked::Unknown("denied".to_owned()))], Level::Unknown, "denied");
}

fn journal(text: &str) -> Vec<Finding> {
    let base = r#"{
        "config": {"storage":"file","discard":"new","num_replicas":1,"max_bytes":1000},
        "state": {"messages":2,"bytes":100}
    }"#;
    let mut info: serde_json::Value = serde_json::from_str(base).expect("JSON");
    let change: serde_json::Value = serde_json::from_str(text).expect("JSON");
    for (section, fields) in change.as_object().expect("an object") {
        for (name, value) in fields.as_object().expect("an object") {
            info[section][name] = value.clone();
        }
    }
    let info: StreamInfo = serde_json::from_value(info).expect("a stream");
    stream("S", &Looked::Seen(info), Wanted { replicas: 1, is_journal: true })
}

#[test]
fn streams() {
    check(&journal("{}"), Level::Ok, "10 %");
    check(&journal(r#"{"config":{"storage":"memory"}}"#), Level::Problem, "memory");
    check(&journal(r#"{"config":{"discard":"old"}}"#), Level::Problem, "discards old");
    check(&journal(r#"{"config":{"max_age":1}}"#), Level::Problem, "by age");
    check(&journal(r#"{"config":{"persist_mode":"async"}}"#), Level::Problem, "asynchronously");
    check(&journal(r#"{"config":{"num_replicas":0}}"#), Level::Warning, "0 replicas");
    check(&journal(r#"{"config":{"max_bytes":-1}}"#), Level::Warning, "without a limit");
    check(&journal(r#"{"state":{"bytes":850}}"#), Level::Warning, "85 %");
    check(&journal(r#"{"state":{"bytes":990}}"#), Level::Problem, "99 %");
    let wanted = |is_journal| Wanted { replicas: 1, is_journal };
    check(&stream("S", &Looked::Absent(String::new()), wanted(true)), Level::Problem, "not there");
    check(&stream("S", &Looked::Absent(String::new()), wanted(false)), Level::Warning, "not there");
    check(
        &stream("S", &Looked::Unknown("denied".to_owned()), wanted(true)),
        Level::Unknown,
        "denied",
    );
}

#[test]
fn quorums() {
    check(
        &journal(r#"{"cluster":{"name":"c","leader":"a"}}"#),
        Level::Warning,
        "one replica in a cluster",
    );
    let replicas = |leader: &str, b: &str| {
        let text = format!(
            r#"{{"config":{{"num_replicas":3}},"cluster":{{"name":"c","leader":"{leader}",
                "replicas":[{{"name":"b",{b}}},{{"name":"d","current":true}}]}}}}"#
        );
        journal(&text)
    };
    check(&replicas("a", r#""current":true"#), Level::Ok, "10 %");
    check(&replicas("a", r#""current":false,"offline":true"#), Level::Warning, "offline: b");
    check(&replicas("a", r#""current":false"#), Level::Warning, "behind: b");
    check(&replicas("", r#""current":false"#), Level::Problem, "no quorum");
}

#[test]
fn syncs() {
    check(&[sync(&Sync::Always)], Level::Ok, "always");
    check(&[sync(&Sync::Every(120_000))], Level::Problem, "2m");
    check(&[sync(&Sync::Unknown("not told".to_owned()))], Level::Unknown, "not told");
}

#[test]
fn clocks() {
    let at =
        |ahead_ms, give_or_take_ms| [clock(Some(ClockDifference { ahead_ms, give_or_take_ms }))];
    check(&at(-5, 1), Level::Ok, "5 ms behind");
    check(&at(3000, 2000), Level::Ok, "3000 ms ahead");
    check(&at(-3000, 10), Level::Warning, "behind");
    check(&at(i64::MIN, 10), Level::Problem, "behind");
    check(&[clock(None)], Level::Unknown, "no time");
}

#[test]
fn coordinators() {
    let beats = |heard: &[(&str, u64)]| Beats {
        heard: heard.iter().map(|(id, epoch)| (id.parse().expect("id"), Epoch(*epoch))).collect(),
        waited_ms: 5000,
        deaf: None,
    };
    check(&coordinator(&beats(&[]), Ok(0)), Level::Problem, "5000 ms");
    check(&coordinator(&beats(&[("d1", 3), ("d1", 3)]), Ok(7)), Level::Ok, "epoch 3, knows 7 jobs");
    check(&coordinator(&beats(&[("d1", 3), ("d1", 4)]), Ok(7)), Level::Warning, "2 leaders");
    check(&coordinator(&beats(&[("d1", 3), ("d2", 4)]), Ok(7)), Level::Problem, "2 leaders");
    let silent = Error::retry("no answer");
    let refusal = Error::invalid(format!("{}: x", muster_platform::adapters::refusals::REFUSES));
    check(&coordinator(&beats(&[("d1", 3)]), Err(&silent)), Level::Problem, "no answer");
    check(
        &coordinator(&beats(&[("d1", 3)]), Err(&refusal)),
        Level::Unknown,
        "epoch 3; the NATS server refuses",
    );
    let deaf = Beats { deaf: Some("may not".to_owned()), ..Beats::default() };
    // Who may not hear it may still be answered: what a user may not see is no problem, what does
    // not answer is.
    check(&coordinator(&deaf, Ok(2)), Level::Ok, "knows 2 jobs");
    check(&coordinator(&deaf, Err(&refusal)), Level::Unknown, "may not");
    check(&coordinator(&deaf, Err(&silent)), Level::Problem, "no answer");
    check(&[unanswered("workers", &refusal)], Level::Unknown, "refuses");
}

#[test]
fn pools() {
    let worker = |state: &str, free: u64| {
        let text = format!(
            r#"{{"id":"w1","state":"{state}","host":"h","slots":1,"running":0,"memory_bytes":1,
                "rss_bytes":1,"last_heard_ms":1,"tasks_done":0,"program":"x","labels":[],
                "disk_free_bytes":{free},"disk_total_bytes":100000000000}}"#
        );
        serde_json::from_str::<WorkerStatus>(&text).expect("a worker")
    };
    let good = || worker("healthy", 1 << 40);
    check(&[workers(&[good(), good()])], Level::Ok, "2 healthy");
    check(&[workers(&[])], Level::Problem, "none lives");
    check(&[workers(&[worker("failed", 1)])], Level::Problem, "none lives");
    check(&[workers(&[good(), worker("failed", 1)])], Level::Warning, "failed are w1");
    check(&[workers(&[good(), worker("degraded", 1)])], Level::Warning, "degraded are w1");
    check(&[workers(&[good(), worker("healthy", 5)])], Level::Warning, "full at w1");
}

#[test]
fn disks() {
    check(&[disk("/d", Ok((50 << 30, 100 << 30)))], Level::Ok, "/d");
    check(&[disk("/d", Ok((5 << 30, 100 << 30)))], Level::Warning, "/d");
    check(&[disk("/d", Ok((1 << 20, 100 << 30)))], Level::Problem, "/d");
    check(&[disk("/d", Err("gone"))], Level::Problem, "gone");
}
