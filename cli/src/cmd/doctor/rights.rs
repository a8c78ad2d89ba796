//! What a NATS user may do, from the permissions that the server tells it. Pure.

use muster_protocol::ids::WorkerId;
use muster_protocol::names::{Names, covers};
use muster_protocol::rights::{Rights, Role};
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
        let covered = |patterns: &[String]| {
            patterns.iter().any(|pattern| covers(subject_of(pattern), subject))
        };
        (self.allow.is_empty() || covered(&self.allow)) && !covered(&self.deny)
    }
}

/// A pattern without the queue that may follow it.
fn subject_of(pattern: &str) -> &str {
    pattern.split_whitespace().next().unwrap_or_default()
}

/// The first of a role's rights that this user lacks, in words.
fn lacks(permissions: &Permissions, rights: &Rights) -> Option<String> {
    let denied = |subjects: &Subjects, wanted: &[String]| {
        wanted.iter().find(|wanted| !subjects.allows(wanted)).cloned()
    };
    let published = denied(&permissions.publish, &rights.publish)
        .map(|subject| format!("may not publish {subject}"));
    published.or_else(|| {
        denied(&permissions.subscribe, &rights.subscribe).map(|s| format!("may not subscribe {s}"))
    })
}

/// The workers that a user is made for: those whose heartbeats it may publish.
fn named_workers<'a>(
    permissions: &'a Permissions,
    names: &'a Names,
) -> impl Iterator<Item = WorkerId> + 'a {
    let ids = permissions.publish.allow.iter().flat_map(|subject| subject.split('.'));
    ids.filter_map(|token| token.parse().ok())
        .filter(|id: &WorkerId| permissions.publish.allow.contains(&names.heartbeat(id)))
}

/// What a user can be of the roles, and what not and why.
fn roles(permissions: &Permissions, names: &Names) -> (Vec<String>, Vec<String>) {
    let (mut can, mut cannot) = (Vec::new(), Vec::new());
    for role in [Role::Client, Role::Workers, Role::Coordinator, Role::Operator] {
        let named = named_workers(permissions, names).map(Role::Worker);
        let forms = std::iter::once(role.clone()).chain(named.filter(|_| role == Role::Workers));
        let looked: Vec<_> =
            forms.map(|form| (lacks(permissions, &form.rights(names)), form)).collect();
        match (looked.iter().find(|(lacking, _)| lacking.is_none()), &looked[0].0) {
            (Some((_, Role::Worker(id))), _) => can.push(format!("worker {id}")),
            (Some(_), _) => can.push(role.as_str().to_owned()),
            (None, why) => {
                cannot.push(format!("{} ({})", role.as_str(), why.as_deref().unwrap_or_default()));
            }
        }
    }
    (can, cannot)
}

/// Which roles this user can take.
pub(super) fn judge(info: Result<&UserInfo, &str>, names: &Names) -> Finding {
    const CHECK: &str = "nats-permissions";
    let info = match info {
        Ok(info) => info,
        Err(why) => {
            let advice = "the server does not tell this user its rights (it may publish to \
                $SYS.REQ.USER.INFO?); try the commands themselves";
            return Finding::unknown(CHECK, why, advice);
        }
    };
    let who =
        if info.user.is_empty() { "this user".to_owned() } else { format!("user {:?}", info.user) };
    let account = if info.account.is_empty() {
        String::new()
    } else {
        format!(" of account {:?}", info.account)
    };
    let Some(permissions) = &info.permissions else {
        return Finding::ok(CHECK, format!("{who}{account} may do everything there"));
    };
    let (can, cannot) = roles(permissions, names);
    if can.is_empty() {
        let seen = format!("{who}{account} can be neither {}", cannot.join(" nor "));
        return Finding::problem(
            CHECK,
            seen,
            "give the user the rights of its role on the NATS server",
        );
    }
    let not =
        if cannot.is_empty() { String::new() } else { format!("; not {}", cannot.join(", ")) };
    Finding::ok(CHECK, format!("{who}{account} can be {}{not}", can.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    fn check(permissions: &str, level: Level, words: &[&str]) {
        let info: UserInfo = serde_json::from_str(permissions).expect("JSON");
        let finding = judge(Ok(&info), &Names::new("muster"));
        assert_eq!(finding.level, level, "{finding:?}");
        assert!(words.iter().all(|word| finding.seen.contains(word)), "{finding:?}");
    }

    #[test]
    fn roles_follow_from_rights() {
        check(r#"{"user":"u","account":"A"}"#, Level::Ok, &["everything", "\"A\""]);
        for (role, words) in [
            (Role::Workers, ["can be worker;", "coordinator (may not publish muster.c.leader)"]),
            (
                Role::Worker("w1".parse().expect("id")),
                ["can be worker w1;", "client (may not publish muster.api.submit)"],
            ),
            (
                Role::Coordinator,
                ["can be coordinator;", "client (may not publish muster.api.submit)"],
            ),
            (Role::Client, ["can be client;", "operator (may not publish $JS.API.INFO)"]),
            (
                Role::Operator,
                ["can be client, operator;", "worker (may not publish muster.c.register)"],
            ),
        ] {
            let Rights { publish, subscribe, .. } = role.rights(&Names::new("muster"));
            let allowed = serde_json::json!({
                "publish": { "allow": publish },
                "subscribe": { "allow": subscribe },
            });
            check(&serde_json::json!({ "permissions": allowed }).to_string(), Level::Ok, &words);
        }
        check(
            r#"{"permissions":{"publish":{"allow":["x"]}}}"#,
            Level::Problem,
            &["neither client"],
        );
        check(
            r#"{"permissions":{"publish":{"deny":["muster.journal"]}}}"#,
            Level::Ok,
            &["client, worker, operator", "muster.journal"],
        );
    }
}
