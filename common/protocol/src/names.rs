//! The only builder of names: NATS subjects, stream names and object paths. Nothing else in the
//! program puts one together.

use crate::ids::{AttemptId, ClaimId, DeploymentId, Epoch, JobId, WorkerId};

/// File that says a job's OUTPUT is whole.
pub const SUCCESS: &str = "_SUCCESS";
/// First path segment of everything that is muster's own in a bucket.
pub const SCRATCH_DIR: &str = "_muster";
/// The folder of the claims on an OUTPUT, within that.
const CLAIMS_DIR: &str = "claims";
/// What the name of a claim ends with.
const CLAIM_SUFFIX: &str = ".json";
/// What the names of plans begin with, below a job's scratch.
const PLAN_PREFIX: &str = "plan.";
/// Name of the micro service that is the control API.
pub const SERVICE: &str = "muster";
/// The namespace that settings start with.
pub const DEFAULT_NAMESPACE: &str = "muster";

/// The subjects and streams of one namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    namespace: String,
}

impl Names {
    /// Names below a namespace: one token of letters, digits and dashes (the settings validate it).
    pub fn new(namespace: &str) -> Self {
        Self { namespace: namespace.to_owned() }
    }

    /// The namespace itself.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Leader beats.
    pub fn leader(&self) -> String {
        format!("{}.c.leader", self.namespace)
    }

    /// The last beat of a leader that resigns.
    pub fn resigned(&self) -> String {
        format!("{}.c.resigned", self.namespace)
    }

    /// Requests to register.
    pub fn register(&self) -> String {
        format!("{}.c.register", self.namespace)
    }

    /// Requests that carry samples.
    pub fn samples(&self) -> String {
        format!("{}.c.samples", self.namespace)
    }

    /// Requests that carry reports.
    pub fn report(&self) -> String {
        format!("{}.c.report", self.namespace)
    }

    /// Requests for a job's phase.
    pub fn phase(&self) -> String {
        format!("{}.c.phase", self.namespace)
    }

    /// Whether an answer may go to a subject. Who asks chooses where the answer goes, and the
    /// leader may publish more than most: without this, a worker could have it append its answer to
    /// the journal, or purge that.
    pub fn may_answer(&self, reply: &str) -> bool {
        let own = reply
            .strip_prefix(&self.namespace)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        !reply.is_empty() && !reply.starts_with('$') && !own
    }

    /// Hints of the leader to all workers how much they may ask of the stores.
    pub fn limits(&self) -> String {
        format!("{}.c.limits", self.namespace)
    }

    /// One worker's heartbeats.
    pub fn heartbeat(&self, worker: &WorkerId) -> String {
        format!("{}.w.{worker}.hb", self.namespace)
    }

    /// All workers' heartbeats.
    pub fn heartbeats(&self) -> String {
        format!("{}.w.*.hb", self.namespace)
    }

    /// What one worker retried for single jobs.
    pub fn recoveries(&self, worker: &WorkerId) -> String {
        format!("{}.w.{worker}.rec", self.namespace)
    }

    /// What all workers retried.
    pub fn all_recoveries(&self) -> String {
        format!("{}.w.*.rec", self.namespace)
    }

    /// All commands to all workers.
    pub fn every_command(&self) -> String {
        format!("{}.w.*.cmd.*", self.namespace)
    }

    /// One kind of command to one worker.
    pub fn command(&self, worker: &WorkerId, verb: Verb) -> String {
        format!("{}.w.{worker}.cmd.{}", self.namespace, verb.as_str())
    }

    /// All commands to one worker.
    pub fn commands(&self, worker: &WorkerId) -> String {
        format!("{}.w.{worker}.cmd.*", self.namespace)
    }

    /// A job's announcements.
    pub fn broadcast(&self, job: &JobId) -> String {
        format!("{}.j.{job}.bcast", self.namespace)
    }

    /// All jobs' announcements.
    pub fn broadcasts(&self) -> String {
        format!("{}.j.*.bcast", self.namespace)
    }

    /// A job's progress, for people.
    pub fn progress(&self, job: &JobId) -> String {
        format!("{}.p.{job}", self.namespace)
    }

    /// The progress of all jobs.
    pub fn all_progress(&self) -> String {
        format!("{}.p.*", self.namespace)
    }

    /// What replies to someone of this role begin with, where each role has its own; a worker that
    /// has a user of its own has also an inbox of its own.
    pub fn inbox(&self, role: &str) -> String {
        format!("_INBOX_{}_{role}", self.namespace)
    }

    /// What the inboxes of workers with a user of their own begin with, before the id.
    pub fn own_inboxes(&self) -> String {
        self.inbox("worker")
    }

    /// What replies to a worker that has a user of its own begin with.
    pub fn own_inbox(&self, worker: &WorkerId) -> String {
        of_worker(&self.own_inboxes(), worker)
    }

    /// The journal's one subject.
    pub fn journal_subject(&self) -> String {
        format!("{}.journal", self.namespace)
    }

    /// The journal's stream.
    pub fn journal_stream(&self) -> String {
        self.stream("JOURNAL")
    }

    /// A job's events.
    pub fn event(&self, job: &JobId) -> String {
        format!("{}.e.{job}", self.namespace)
    }

    /// All jobs' events.
    pub fn events(&self) -> String {
        format!("{}.e.*", self.namespace)
    }

    /// Events of the deployment that belong to no job.
    pub fn deployment_event(&self) -> String {
        format!("{}.e", self.namespace)
    }

    /// The events' stream.
    pub fn events_stream(&self) -> String {
        self.stream("EVENTS")
    }

    /// Dead letters of a job.
    pub fn dead_letter(&self, job: &JobId) -> String {
        format!("{}.dlq.{job}", self.namespace)
    }

    /// All jobs' dead letters.
    pub fn dead_letters(&self) -> String {
        format!("{}.dlq.*", self.namespace)
    }

    /// The dead letters' stream.
    pub fn dead_letters_stream(&self) -> String {
        self.stream("DLQ")
    }

    /// One call of the control API.
    pub fn api(&self, call: &str) -> String {
        format!("{}.api.{call}", self.namespace)
    }

    /// The subject below which the control API's calls stand.
    pub fn api_root(&self) -> String {
        format!("{}.api", self.namespace)
    }

    /// The queue group of the control API: it bears the epoch, so that a paused leader holds no
    /// requests of the next one.
    pub fn api_queue(&self, epoch: Epoch) -> String {
        format!("{}-e{epoch}", self.namespace)
    }

    /// `MUSTER_JOURNAL` and its like.
    fn stream(&self, kind: &str) -> String {
        format!("{}_{kind}", self.namespace.to_ascii_uppercase().replace('-', "_"))
    }
}

/// The commands that a worker takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Run an attempt.
    Run,
    /// Abandon an attempt.
    Cancel,
    /// Take no more work.
    Drain,
    /// Say which files only this worker can read.
    List,
}

impl Verb {
    /// The last token of the command's subject.
    pub fn as_str(self) -> &'static str {
        match self {
            Verb::Run => "run",
            Verb::Cancel => "cancel",
            Verb::Drain => "drain",
            Verb::List => "list",
        }
    }

    /// The command whose subject ends in `token`.
    pub fn from_token(token: &str) -> Option<Self> {
        [Verb::Run, Verb::Cancel, Verb::Drain, Verb::List]
            .into_iter()
            .find(|verb| verb.as_str() == token)
    }
}

/// The folder of quarantined records below OUTPUT.
pub const QUARANTINE_DIR: &str = "_quarantine";

/// The scratch of one job, as a path below the scratch bucket: `_muster/<deployment>/<job>`.
pub fn scratch_path(deployment: &DeploymentId, job: &JobId) -> String {
    format!("{SCRATCH_DIR}/{deployment}/{job}")
}

/// The calls of the control API, by their last token.
pub const API_CALLS: [&str; 6] = ["submit", "status", "jobs", "cancel", "workers", "drain"];

/// What `$SRV` requests ask a micro service for.
const SERVICE_VERBS: [&str; 3] = ["PING", "INFO", "STATS"];

/// The form of a request's subject that names the worker that asks. The server lets a worker with a
/// user of its own publish this one alone, so that none can ask in the name of another.
pub fn of_worker(subject: &str, worker: &WorkerId) -> String {
    format!("{subject}.{worker}")
}

/// That form of it, for any worker.
pub fn of_any_worker(subject: &str) -> String {
    format!("{subject}.*")
}

/// The subjects on which a micro service is found and asked about itself: of all services, of those
/// named so, of one instance.
pub fn service_requests() -> Vec<String> {
    let forms = |verb| {
        [
            format!("$SRV.{verb}"),
            format!("$SRV.{verb}.{SERVICE}"),
            format!("$SRV.{verb}.{SERVICE}.*"),
        ]
    };
    SERVICE_VERBS.into_iter().flat_map(forms).collect()
}

/// The subject on which JetStream answers with a stream's configuration and state.
pub fn stream_info_request(stream: &str) -> String {
    format!("$JS.API.STREAM.INFO.{stream}")
}

/// The subject on which JetStream makes a stream.
pub fn stream_create_request(stream: &str) -> String {
    format!("$JS.API.STREAM.CREATE.{stream}")
}

/// The subject on which JetStream removes messages of a stream.
pub fn stream_purge_request(stream: &str) -> String {
    format!("$JS.API.STREAM.PURGE.{stream}")
}

/// The subject on which the leader of a stream answers with one of its messages.
pub fn stream_message_request(stream: &str) -> String {
    format!("$JS.API.STREAM.MSG.GET.{stream}")
}

/// The subjects by which a stream is read in order: consumers are made, with a filter or without,
/// asked for more, and removed. None of them is acknowledged.
pub fn consumer_requests(stream: &str) -> Vec<String> {
    vec![
        format!("$JS.API.CONSUMER.CREATE.{stream}"),
        format!("$JS.API.CONSUMER.CREATE.{stream}.>"),
        format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.*"),
        format!("$JS.API.CONSUMER.DELETE.{stream}.*"),
    ]
}

/// Whether all that `subject` stands for is within `pattern`; both may have wildcards.
pub fn covers(pattern: &str, subject: &str) -> bool {
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

/// Whether a subject is one on which JetStream is asked for something.
pub fn is_jetstream_request(subject: &str) -> bool {
    subject.starts_with("$JS.API.")
}

/// The subject on which JetStream answers with the account's limits and use.
pub const ACCOUNT_INFO_REQUEST: &str = "$JS.API.INFO";
/// The subject on which a server answers with the rights of whoever asks.
pub const USER_INFO_REQUEST: &str = "$SYS.REQ.USER.INFO";
/// The subject on which servers answer with their JetStream settings; only users of the system
/// account get an answer.
pub const JETSTREAM_SETTINGS_REQUEST: &str = "$SYS.REQ.SERVER.PING.JSZ";
/// What the names of probes begin with, which `muster doctor` makes directly below [`SCRATCH_DIR`]
/// and removes again.
pub const PROBE_PREFIX: &str = "doctor-";

/// The folder of one probe, as a path below a bucket.
pub fn probe_path(nonce: u64) -> String {
    format!("{SCRATCH_DIR}/{PROBE_PREFIX}{nonce:016x}")
}

/// The folder of the claims on an OUTPUT, below it.
pub fn claims_path() -> String {
    format!("{SCRATCH_DIR}/{CLAIMS_DIR}")
}

/// One claim below OUTPUT; `id` names deployment and job.
pub fn claim_path(id: &ClaimId) -> String {
    format!("{SCRATCH_DIR}/{CLAIMS_DIR}/{id}{CLAIM_SUFFIX}")
}

/// Whose claim a name in that folder is; none for names that no claim has.
pub fn claim_of(name: &str) -> Option<ClaimId> {
    name.strip_suffix(CLAIM_SUFFIX)?.parse().ok()
}

/// The plan's object below a job's scratch. The nonce keeps two leaders apart.
pub fn plan_path(nonce: u64) -> String {
    format!("{PLAN_PREFIX}{nonce:016x}")
}

/// Whether a name directly below a job's scratch is that of a plan.
pub fn is_plan(name: &str) -> bool {
    name.strip_prefix(PLAN_PREFIX).is_some_and(|nonce| {
        nonce.len() == 16 && nonce.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    })
}

/// The splitters' object below a job's scratch.
pub fn splitters_path(epoch: Epoch, nonce: u64) -> String {
    format!("splitters.e{epoch}.{nonce:016x}")
}

/// The pinned runs' object below a job's scratch.
pub fn runs_path(epoch: Epoch, nonce: u64) -> String {
    format!("runs.e{epoch}.{nonce:016x}")
}

/// The object below a job's scratch that holds the bytes of `_SUCCESS` until the commit.
pub fn manifest_path(epoch: Epoch, nonce: u64) -> String {
    format!("manifest.e{epoch}.{nonce:016x}")
}

/// An attempt's run below a job's scratch. It carries the whole attempt id: no two attempts ever
/// write one object.
pub fn run_path(attempt: &AttemptId) -> String {
    format!("{attempt}.run")
}

/// The malformed records that an attempt left out, below a job's scratch.
pub fn bad_records_path(attempt: &AttemptId) -> String {
    format!("{attempt}.bad.jsonl")
}

/// The quarantined records of one split, below OUTPUT.
pub fn quarantine_path(split: u32) -> String {
    format!("{QUARANTINE_DIR}/split-{split:05}.jsonl")
}

/// An attempt's samples below a job's scratch, where they are too large for a message.
pub fn samples_path(attempt: &AttemptId) -> String {
    format!("{attempt}.samples")
}

/// The name of one output part: `part-00012.txt`.
pub fn part_name(partition: u32, extension: &str) -> String {
    format!("part-{partition:05}.{extension}")
}

/// Whether a path below OUTPUT is of the form that jobs give to parts and quarantined records,
/// whatever the extension: what a manifest may name, and no more.
pub fn is_of_a_job(relative: &str) -> bool {
    let digits =
        |text: &str| (5..=10).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    let part = relative.strip_prefix("part-").and_then(|rest| rest.split_once('.'));
    let is_part = part.is_some_and(|(number, extension)| digits(number) && is_extension(extension));
    let split = relative.strip_prefix(QUARANTINE_DIR).and_then(|rest| rest.strip_prefix("/split-"));
    is_part || split.and_then(|rest| rest.strip_suffix(".jsonl")).is_some_and(digits)
}

fn is_extension(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 64
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

/// Whether a name directly below OUTPUT is one that a job gives: a part's, or the manifest's.
pub fn is_output_name(name: &str, extension: &str) -> bool {
    let number = name
        .strip_prefix("part-")
        .and_then(|rest| rest.strip_suffix(extension))
        .and_then(|rest| rest.strip_suffix('.'));
    name == SUCCESS
        || number
            .is_some_and(|number| number.len() == 5 && number.bytes().all(|b| b.is_ascii_digit()))
}

/// Whether an object name is one that jobs read: no path segment begins with `_` or `.`.
pub fn is_input_name(relative: &str) -> bool {
    relative.split('/').all(|segment| !segment.starts_with(['_', '.']))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Generation, Phase, TaskId};

    #[test]
    fn subjects_are_the_documented_ones() {
        let names = Names::new("muster");
        let worker: WorkerId = "w1".parse().expect("id");
        let job: JobId = "j1".parse().expect("id");
        let built = [
            names.leader(),
            names.register(),
            names.heartbeat(&worker),
            names.command(&worker, Verb::Run),
            names.broadcast(&job),
            names.progress(&job),
            names.journal_stream(),
            names.events_stream(),
            names.dead_letters_stream(),
        ];
        let documented = [
            "muster.c.leader",
            "muster.c.register",
            "muster.w.w1.hb",
            "muster.w.w1.cmd.run",
            "muster.j.j1.bcast",
            "muster.p.j1",
            "MUSTER_JOURNAL",
            "MUSTER_EVENTS",
            "MUSTER_DLQ",
        ];
        assert_eq!(built, documented);
        assert_eq!(Names::new("team-a").journal_stream(), "TEAM_A_JOURNAL");
    }

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

    #[test]
    fn answers_go_to_nothing_that_a_leader_may_write() {
        let names = Names::new("team-a");
        for (reply, expected) in [
            ("_INBOX.abc.1", true),
            ("_INBOX_team-a_worker.w1.abc.1", true),
            ("mine", true),
            ("team-ab.journal", true),
            ("team-a.journal", false),
            ("team-a", false),
            ("$JS.API.STREAM.PURGE.TEAM_A_JOURNAL", false),
            ("", false),
        ] {
            assert_eq!(names.may_answer(reply), expected, "{reply}");
        }
    }

    #[test]
    fn runs_carry_the_whole_attempt() {
        let task = TaskId { phase: Phase::Sort, index: 3 };
        let attempt = AttemptId { task, generation: Generation(0), epoch: Epoch(2), nonce: 1 };
        assert_eq!(run_path(&attempt), "sort-00003.g0.e2.0000000000000001.run");
    }

    #[test]
    fn output_names_are_told_from_others() {
        for (name, expected) in [
            ("part-00012.txt", true),
            ("_SUCCESS", true),
            ("part-00012.bin", false),
            ("part-012.txt", false),
            ("part-000120txt", false),
            ("other", false),
        ] {
            assert_eq!(is_output_name(name, "txt"), expected, "{name}");
        }
        assert!(is_output_name(&part_name(7, "bin"), "bin"));
    }

    #[test]
    fn hidden_names_are_no_input() {
        for (name, expected) in [
            ("a", true),
            ("a/b.txt", true),
            ("_SUCCESS", false),
            ("a/.tmp", false),
            ("_muster/x", false),
        ] {
            assert_eq!(is_input_name(name), expected, "{name}");
        }
    }

    #[test]
    fn a_manifest_names_parts_and_quarantined_records_alone() {
        for (name, expected) in [
            ("part-00012.txt", true),
            ("part-123456.csv.gz", true),
            ("_quarantine/split-00003.jsonl", true),
            ("part-012.txt", false),
            ("part-00012.", false),
            ("part-00012", false),
            ("part-00012.txt/../../x", false),
            ("../part-00012.txt", false),
            ("/part-00012.txt", false),
            ("sub/part-00012.txt", false),
            ("_quarantine/../split-00003.jsonl", false),
            ("_quarantine/x.jsonl", false),
            ("_SUCCESS", false),
            ("photo.jpg", false),
            ("", false),
        ] {
            assert_eq!(is_of_a_job(name), expected, "{name}");
        }
    }
}
