//! What each role does on NATS, and so what its user may do there and nothing beyond. Pure: the
//! subjects come from [`crate::names`]. From here come the settings of a nats-server (`muster
//! rights`, `deploy/nats/permissions.conf`) and what `muster doctor` says of a user.
//!
//! NATS looks at the subject that a message goes to, never at the one that the answer is to go to,
//! so whoever may ask somebody can have the answer sent anywhere. Three things follow. The
//! coordinator looks at that subject itself ([`Names::may_answer`]). Workers may not ask JetStream
//! anything, and of services only the coordinator. And what clients make JetStream say, which reads
//! the history for them, is told in the journal from what a leader wrote
//! (`FOREIGN` of the ledger).

use std::fmt::Write;

use serde::Serialize;

use crate::ids::WorkerId;
use crate::names::{self, API_CALLS, Names};

/// Answers to one request: none of muster's are in pieces.
const ANSWERS_MAX: u32 = 1;
/// How long an answer may take, in seconds: a leader forgets who asked after a minute.
const ANSWER_SECONDS_MAX: u32 = 120;

/// Who connects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// Leads or stands by.
    Coordinator,
    /// Any worker: they share a user, and each could act as another.
    Workers,
    /// The worker of this id, with a user of its own.
    Worker(WorkerId),
    /// Submits jobs and asks after them.
    Client,
    /// A client that also runs `muster doctor`, makes missing streams, and lists micro services.
    Operator,
}

/// What a role may do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rights {
    /// Subjects that it may publish to.
    pub publish: Vec<String>,
    /// Subjects that it may subscribe to, its inbox apart.
    pub subscribe: Vec<String>,
    /// What the subjects of answers to it begin with.
    pub inbox: String,
    /// Whether it may answer requests that reach it, wherever the answer is to go.
    pub allow_responses: Option<Responses>,
}

/// Bounds of answering.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Responses {
    /// Answers to one request.
    pub max: u32,
    /// How long after it, in seconds.
    pub expires_s: u32,
}

impl Role {
    /// Its word on the command line and in inboxes; workers of one user and of many have the same.
    pub fn as_str(&self) -> &'static str {
        match self {
            Role::Coordinator => "coordinator",
            Role::Workers | Role::Worker(_) => "worker",
            Role::Client => "client",
            Role::Operator => "operator",
        }
    }

    /// What it may do in a namespace.
    pub fn rights(&self, names: &Names) -> Rights {
        match self {
            Role::Coordinator => coordinator(names),
            Role::Workers => worker(names, None),
            Role::Worker(id) => worker(names, Some(id)),
            Role::Client => client(names),
            Role::Operator => operator(names),
        }
    }
}

fn coordinator(names: &Names) -> Rights {
    let journal = names.journal_stream();
    let mut publish = vec![
        names.leader(),
        names.resigned(),
        names.limits(),
        // A stand-by asks who leads.
        names.phase(),
        names.every_command(),
        names.broadcasts(),
        names.all_progress(),
        names.journal_subject(),
        names.deployment_event(),
        names.events(),
        names.dead_letters(),
        names::stream_message_request(&journal),
        names::stream_purge_request(&journal),
    ];
    publish.extend(stream_making(names));
    publish.extend(names::consumer_requests(&journal));
    let requests = [names.register(), names.samples(), names.report()];
    let mut subscribe = vec![
        names.leader(),
        names.resigned(),
        names.phase(),
        names.heartbeats(),
        names.all_recoveries(),
    ];
    subscribe.extend(
        requests.iter().flat_map(|subject| [subject.clone(), names::of_any_worker(subject)]),
    );
    subscribe.extend(API_CALLS.map(|call| names.api(call)));
    subscribe.extend(names::service_requests());
    let inbox = names.inbox(Role::Coordinator.as_str());
    Rights { publish, subscribe, inbox, allow_responses: Some(RESPONSES) }
}

fn worker(names: &Names, id: Option<&WorkerId>) -> Rights {
    let requests = [names.register(), names.samples(), names.report()];
    let mut subscribe = vec![names.leader(), names.limits(), names.broadcasts()];
    let (mut publish, inbox) = match id {
        Some(id) => {
            subscribe.push(names.commands(id));
            let own = requests
                .iter()
                .map(|subject| names::of_worker(subject, id))
                .chain([names.heartbeat(id), names.recoveries(id)]);
            (own.collect(), names.own_inbox(id))
        }
        None => {
            subscribe.push(names.every_command());
            let mut shared = Vec::from(requests);
            shared.extend([names.heartbeats(), names.all_recoveries()]);
            (shared, names.inbox("workers"))
        }
    };
    // It changes nothing, so it names nobody.
    publish.push(names.phase());
    Rights { publish, subscribe, inbox, allow_responses: Some(RESPONSES) }
}

fn client(names: &Names) -> Rights {
    let mut publish = Vec::from(API_CALLS.map(|call| names.api(call)));
    let events = names.events_stream();
    publish.push(names::stream_info_request(&events));
    publish.extend(names::consumer_requests(&events));
    let inbox = names.inbox(Role::Client.as_str());
    Rights { publish, subscribe: vec![names.all_progress()], inbox, allow_responses: None }
}

fn operator(names: &Names) -> Rights {
    let Rights { mut publish, mut subscribe, .. } = client(names);
    let more =
        [names::ACCOUNT_INFO_REQUEST, names::USER_INFO_REQUEST, names::JETSTREAM_SETTINGS_REQUEST];
    publish.extend(more.map(str::to_owned));
    publish.extend(
        stream_making(names)
            .into_iter()
            .filter(|subject| !publish.contains(subject))
            .collect::<Vec<_>>(),
    );
    publish.extend(names::service_requests());
    subscribe.push(names.leader());
    Rights {
        publish,
        subscribe,
        inbox: names.inbox(Role::Operator.as_str()),
        allow_responses: None,
    }
}

const RESPONSES: Responses = Responses { max: ANSWERS_MAX, expires_s: ANSWER_SECONDS_MAX };

/// To see whether the streams stand, and to make them.
fn stream_making(names: &Names) -> Vec<String> {
    let streams = [names.journal_stream(), names.events_stream(), names.dead_letters_stream()];
    let requests =
        |name: &String| [names::stream_info_request(name), names::stream_create_request(name)];
    streams.iter().flat_map(requests).collect()
}

impl Rights {
    /// As a block of a nats-server's settings that begins with `head`: `permissions`, or a name
    /// that users refer to.
    pub fn to_settings(&self, head: &str) -> String {
        let inbox = format!("{}.>", self.inbox);
        let mut text = format!("{head}: {{\n");
        let mut list = |name: &str, subjects: &mut dyn Iterator<Item = &String>| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "  {name}: {{ allow: [");
            for subject in subjects {
                let _ = writeln!(text, "    \"{subject}\"");
            }
            let _ = writeln!(text, "  ] }}");
        };
        list("publish", &mut self.publish.iter());
        list("subscribe", &mut self.subscribe.iter().chain([&inbox]));
        if let Some(Responses { max, expires_s }) = self.allow_responses {
            let _ =
                writeln!(text, "  allow_responses: {{ max: {max}, expires: \"{expires_s}s\" }}");
        }
        text.push_str("}\n");
        text
    }
}

/// The rights of all roles in a namespace as blocks of a nats-server's settings, named after the
/// roles; that of a worker with a user of its own is made for the id `WORKER_ID`, which is to be
/// replaced.
pub fn all_settings(namespace: &str) -> String {
    let names = &Names::new(namespace);
    let of_id = "WORKER_ID".parse().map(Role::Worker);
    let roles = [
        ("coordinator", "leads or stands by", Some(Role::Coordinator)),
        ("worker", "any worker: where all share one user", Some(Role::Workers)),
        ("worker-WORKER_ID", "the worker WORKER_ID, with a user of its own", of_id.ok()),
        ("client", "sort, jobs, status, watch, cancel, workers, drain, events", Some(Role::Client)),
        (
            "operator",
            "a client that also runs doctor and lists micro services",
            Some(Role::Operator),
        ),
    ];
    let block = |(head, what, role): (&str, &str, Option<Role>)| {
        role.map(|role| format!("\n# {what}\n{}", role.rights(names).to_settings(head)))
            .unwrap_or_default()
    };
    let head = format!("# Made by: muster rights --namespace {namespace}\n");
    std::iter::once(head).chain(roles.into_iter().map(block)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::{Verb, covers};

    fn worker_id(id: &str) -> WorkerId {
        id.parse().expect("id")
    }

    fn roles() -> Vec<Role> {
        vec![
            Role::Coordinator,
            Role::Workers,
            Role::Worker(worker_id("w1")),
            Role::Client,
            Role::Operator,
        ]
    }

    /// Who of all roles may do something, as letters.
    fn who(names: &Names, may: impl Fn(&Rights) -> bool) -> String {
        let letters = ["C", "W", "1", "c", "o"];
        roles()
            .iter()
            .zip(letters)
            .filter(|(role, _)| may(&role.rights(names)))
            .map(|(_, letter)| letter)
            .collect()
    }

    #[track_caller]
    fn check(namespace: &str, subject: &str, publishers: &str, subscribers: &str) {
        let names = Names::new(namespace);
        let may = |patterns: &[String]| patterns.iter().any(|pattern| covers(pattern, subject));
        assert_eq!(
            who(&names, |rights| may(&rights.publish)),
            publishers,
            "who publishes {subject}"
        );
        assert_eq!(
            who(&names, |rights| may(&rights.subscribe)),
            subscribers,
            "who subscribes {subject}"
        );
    }

    #[test]
    fn each_subject_has_its_publishers_and_subscribers() {
        // C coordinator, W workers of one user, 1 the worker w1, c client, o operator
        for ns in ["muster", "team-a"] {
            for (subject, publishers, subscribers) in [
                ("c.leader", "C", "CW1o"),
                ("c.resigned", "C", "C"),
                ("c.limits", "C", "W1"),
                ("c.register", "W", "C"),
                ("c.samples", "W", "C"),
                ("c.report", "W", "C"),
                ("c.register.w1", "1", "C"),
                ("c.report.w1", "1", "C"),
                ("c.samples.w2", "", "C"),
                ("c.phase", "CW1", "C"),
                ("w.w1.hb", "W1", "C"),
                ("w.w2.hb", "W", "C"),
                ("w.*.hb", "W", "C"),
                ("w.w1.rec", "W1", "C"),
                ("w.w2.rec", "W", "C"),
                ("w.w1.cmd.run", "C", "W1"),
                ("w.w2.cmd.run", "C", "W"),
                ("j.j1.bcast", "C", "W1"),
                ("p.j1", "C", "co"),
                ("journal", "C", ""),
                ("e", "C", ""),
                ("e.j1", "C", ""),
                ("dlq.j1", "C", ""),
                ("api.submit", "co", "C"),
                ("api.other", "", ""),
                (">", "", ""),
            ] {
                check(ns, &format!("{ns}.{subject}"), publishers, subscribers);
            }
        }
    }

    #[test]
    fn jetstream_and_system_are_for_those_who_need_them() {
        for (subject, publishers) in [
            ("$JS.API.>", ""),
            ("$JS.API.INFO", "o"),
            ("$JS.API.STREAM.INFO.TEAM_A_JOURNAL", "Co"),
            ("$JS.API.STREAM.CREATE.TEAM_A_JOURNAL", "Co"),
            ("$JS.API.STREAM.CREATE.OTHER", ""),
            ("$JS.API.STREAM.UPDATE.TEAM_A_JOURNAL", ""),
            ("$JS.API.STREAM.DELETE.TEAM_A_JOURNAL", ""),
            ("$JS.API.STREAM.PURGE.TEAM_A_JOURNAL", "C"),
            ("$JS.API.STREAM.PURGE.TEAM_A_EVENTS", ""),
            ("$JS.API.STREAM.MSG.GET.TEAM_A_JOURNAL", "C"),
            ("$JS.API.CONSUMER.CREATE.TEAM_A_JOURNAL", "C"),
            ("$JS.API.CONSUMER.CREATE.TEAM_A_EVENTS.x.team-a.e.j1", "co"),
            ("$JS.API.CONSUMER.MSG.NEXT.TEAM_A_EVENTS.x", "co"),
            ("$JS.API.CONSUMER.MSG.NEXT.TEAM_A_JOURNAL.x", "C"),
            ("$JS.ACK.TEAM_A_JOURNAL.x.1.1.1.1.1", ""),
            ("$SYS.REQ.USER.INFO", "o"),
            ("$SYS.REQ.ACCOUNT.MUSTER.CONNZ", ""),
        ] {
            check("team-a", subject, publishers, "");
        }
        check("team-a", "$SRV.PING", "o", "C");
        check("team-a", "$SRV.INFO.muster.abc", "o", "C");
    }

    #[test]
    fn nobody_listens_to_the_inbox_of_another() {
        let names = Names::new("muster");
        let mut all = roles();
        all.push(Role::Worker(worker_id("w2")));
        let inboxes: Vec<String> = all.iter().map(|role| role.rights(&names).inbox).collect();
        for (one, role) in all.iter().enumerate() {
            let rights = role.rights(&names);
            for (other, inbox) in inboxes.iter().enumerate() {
                let reply = format!("{inbox}.abc.1");
                let hears = rights
                    .subscribe
                    .iter()
                    .chain([&format!("{}.>", rights.inbox)])
                    .any(|p| covers(p, &reply));
                assert_eq!(hears, one == other, "{role:?} {reply}");
                assert!(
                    !rights.publish.iter().any(|pattern| covers(pattern, &reply)),
                    "{role:?} {reply}"
                );
            }
        }
    }

    #[test]
    fn who_answers_may_answer_and_nobody_else() {
        let names = Names::new("muster");
        assert_eq!(who(&names, |rights| rights.allow_responses.is_some()), "CW1");
    }

    #[test]
    fn a_worker_of_its_own_is_commanded_under_its_id() {
        let names = Names::new("muster");
        let rights = Role::Worker(worker_id("w1")).rights(&names);
        for verb in [Verb::Run, Verb::Cancel, Verb::Drain, Verb::List] {
            let subject = names.command(&worker_id("w1"), verb);
            assert!(rights.subscribe.iter().any(|pattern| covers(pattern, &subject)), "{subject}");
        }
    }

    #[test]
    fn what_is_committed_is_what_is_made() {
        let committed = include_str!("../../../deploy/nats/permissions.conf");
        let advice = "run: muster rights > deploy/nats/permissions.conf";
        assert_eq!(committed, all_settings(crate::names::DEFAULT_NAMESPACE), "{advice}");
    }

    #[test]
    fn settings_are_blocks() {
        let text = Role::Client.rights(&Names::new("muster")).to_settings("permissions");
        assert!(
            text.starts_with("permissions: {\n  publish: { allow: [\n    \"muster.api.submit\"\n"),
            "{text}"
        );
        assert!(text.contains("    \"_INBOX_muster_client.>\"\n  ] }\n}\n"), "{text}");
        let all = all_settings("muster");
        for words in [
            "\ncoordinator: {",
            "\nworker-WORKER_ID: {",
            "\"muster.w.WORKER_ID.hb\"",
            "expires: \"120s\"",
        ] {
            assert!(all.contains(words), "{words} in {all}");
        }
    }
}
