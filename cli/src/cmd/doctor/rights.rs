//! What a NATS user may do, from the permissions that the server tells it. Pure.

use muster_common::ids::{JobId, WorkerId};
use muster_common::names::{self, Names, Verb};
use serde::Deserialize;

use super::finding::Finding;

/// The server's answer to a user that asks who it is.
#[derive(Debug, Default, Deserialize)]
pub(super) struct UserInfo {
    #[serde(default)]
    pub(super) user: String,
    #[serde(default)]
    pub(super) account: String,
    /// None where there are no bounds.
    #[serde(default)]
    pub(super) permissions: Option<Permissions>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Permissions {
    #[serde(default)]
    publish: Subjects,
    #[serde(default)]
    subscribe: Subjects,
}

#[derive(Debug, Default, Deserialize)]
struct Subjects {
    #[serde(default)]
    allow: Vec<String>,
    #[serde(default)]
    deny: Vec<String>,
}

impl Subjects {
    fn allows(&self, subject: &str) -> bool {
        let covered = |patterns: &[String]| patterns.iter().any(|pattern| covers(subject_of(pattern), subject));
        (self.allow.is_empty() || covered(&self.allow)) && !covered(&self.deny)
    }
}

/// A pattern without the queue that may follow it.
fn subject_of(pattern: &str) -> &str {
    pattern.split_whitespace().next().unwrap_or_default()
}

/// Whether all that `subject` stands for is within `pattern`; both may have wildcards.
fn covers(pattern: &str, subject: &str) -> bool {
    let (mut pattern, mut subject) = (pattern.split('.'), subject.split('.'));
    loop {
        match (pattern.next(), subject.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some("*"), Some(token)) if token != ">" => {}
            (Some(wanted), Some(token)) if wanted == token => {}
            _ => return false,
        }
    }
}

/// What a role does on NATS.
struct Role {
    name: &'static str,
    publish: Vec<String>,
    subscribe: Vec<String>,
}

fn roles(names: &Names) -> Vec<Role> {
    let job: JobId = "j".parse().expect("a sound id");
    let worker: WorkerId = "w".parse().expect("a sound id");
    let journal_info = names::stream_info_request(&names.journal_stream());
    vec![
        Role {
            name: "client",
            publish: vec![names.api("submit"), names.api("status")],
            subscribe: vec![names.progress(&job)],
        },
        Role {
            name: "worker",
            publish: vec![names.register(), names.report(), names.samples(), names.phase(), names.heartbeat(&worker)],
            subscribe: vec![names.leader(), names.commands(&worker)],
        },
        Role {
            name: "coordinator",
            publish: vec![
                names.leader(),
                names.journal_subject(),
                names.broadcast(&job),
                names.deployment_event(),
                names.command(&worker, Verb::Run),
                journal_info,
            ],
            subscribe: vec![names.register(), names.report(), names.heartbeats(), names.api("submit")],
        },
    ]
}

/// Which roles this user can take.
pub(super) fn judge(info: Result<&UserInfo, &str>, names: &Names) -> Finding {
    const CHECK: &str = "nats-permissions";
    let info = match info {
        Ok(info) => info,
        Err(why) => {
            let advice = "the server does not tell this user its rights (it may publish to $SYS.REQ.USER.INFO?); try the commands themselves";
            return Finding::unknown(CHECK, why, advice);
        }
    };
    let who = if info.user.is_empty() { "this user".to_owned() } else { format!("user {:?}", info.user) };
    let account = if info.account.is_empty() { String::new() } else { format!(" of account {:?}", info.account) };
    let Some(permissions) = &info.permissions else {
        return Finding::ok(CHECK, format!("{who}{account} may do everything there"));
    };
    let (mut can, mut cannot) = (Vec::new(), Vec::new());
    for role in roles(names) {
        let published = role.publish.iter().find(|subject| !permissions.publish.allows(subject));
        let subscribed = role.subscribe.iter().find(|subject| !permissions.subscribe.allows(subject));
        match (published, subscribed) {
            (None, None) => can.push(role.name),
            (Some(subject), _) => cannot.push(format!("{} (may not publish {subject})", role.name)),
            (None, Some(subject)) => cannot.push(format!("{} (may not subscribe {subject})", role.name)),
        }
    }
    if can.is_empty() {
        let seen = format!("{who}{account} can be neither {}", cannot.join(" nor "));
        return Finding::problem(CHECK, seen, "give the user the rights of its role on the NATS server");
    }
    let not = if cannot.is_empty() { String::new() } else { format!("; not {}", cannot.join(", ")) };
    Finding::ok(CHECK, format!("{who}{account} can be {}{not}", can.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    #[test]
    fn patterns_cover_subjects() {
        for (pattern, subject, expected) in [
            ("muster.>", "muster.api.submit", true),
            ("muster.>", "muster", false),
            ("muster.*.submit", "muster.api.submit", true),
            ("muster.w.*.hb", "muster.w.*.hb", true),
            ("muster.w.a.hb", "muster.w.*.hb", false),
            (">", "a", true),
            ("a", "a.b", false),
            ("a.*", "a.>", false),
        ] {
            assert_eq!(covers(pattern, subject), expected, "{pattern} {subject}");
        }
    }

    fn check(permissions: &str, level: Level, words: &[&str]) {
        let info: UserInfo = serde_json::from_str(permissions).expect("JSON");
        let finding = judge(Ok(&info), &Names::new("muster"));
        assert_eq!(finding.level, level, "{finding:?}");
        assert!(words.iter().all(|word| finding.seen.contains(word)), "{finding:?}");
    }

    #[test]
    fn roles_follow_from_rights() {
        check(r#"{"user":"u","account":"A"}"#, Level::Ok, &["everything", "\"A\""]);
        let worker = r#"{"user":"w","permissions":{"publish":{"allow":["muster.c.>","muster.w.w.hb"],"deny":["muster.c.leader"]},
            "subscribe":{"allow":["muster.c.leader","muster.w.w.cmd.*","_INBOX.>"]}}}"#;
        check(worker, Level::Ok, &["can be worker", "not client", "coordinator (may not publish muster.c.leader)"]);
        check(r#"{"permissions":{"publish":{"allow":["x"]}}}"#, Level::Problem, &["neither client"]);
        check(
            r#"{"permissions":{"publish":{"deny":["muster.journal"]}}}"#,
            Level::Ok,
            &["client, worker", "muster.journal"],
        );
    }
}
