//! Rounds of chaos: some jobs, two at once, under faults; then calm, in which every job must end,
//! with the same bytes as ever or a failure that is allowed, and leave nothing.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::time::Duration;

use serde_json::Value;

use super::cases::Case;
use super::schedule::{Crew, Schedule};
use super::stage::{Setup, Stage};
use super::watch::Watch;
use crate::harness::sandbox::files_below;
use crate::harness::{Journal, Process, Sandbox, journal, process, wait};

/// How a run of chaos is set up.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Jobs in all.
    pub jobs: usize,
    /// Seed of the faults, and of which jobs there are.
    pub seed: u64,
    /// Who is there to be struck.
    pub crew: Crew,
    /// Milliseconds between two faults, on average.
    pub pause_ms: u64,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Report {
    /// Jobs that ended with the bytes of a calm run.
    pub succeeded: u64,
    /// Jobs that ended with an allowed failure, and its words.
    pub failed: Vec<String>,
    /// What should not have been.
    pub violations: Vec<String>,
    /// Faults that struck while jobs ran, by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// Of these, in rounds in which a job failed.
    pub faults_around_failures: u64,
    /// Processes that ended by themselves.
    pub exits: BTreeMap<String, u64>,
    /// Sort and merge tasks of the jobs that succeeded.
    pub tasks: u64,
    /// Of these, committed more than once, or begun again after their commit.
    pub repeated: u64,
    /// Attempts beyond the first of their task.
    pub retries: u64,
    /// Milliseconds from the first job to the last.
    pub took_ms: u64,
}

/// Jobs between two calms.
const ROUND: usize = 4;
const AT_ONCE: usize = 2;
/// Faults strike for at most so long a job of a round; what then still runs is left in peace.
const STORM_MS: u64 = 15_000;
/// How long a healed pool may take to end every job, and to clean up after it.
pub const END_BOUND: Duration = Duration::from_secs(150);
const CLEAN_BOUND: Duration = Duration::from_secs(60);
/// Submissions of one job that may come to nothing.
const SUBMITS_MAX: u32 = 200;
const LOOK: Duration = Duration::from_millis(20);
/// A failure is allowed where it names the bound that the faults have used up.
const ALLOWED: [&str; 3] = ["tasks.attempts_max", "store.attempts_max", "phases."];

/// What lies in some place.
type List = fn(&Stage<'_>, &Sandbox) -> Vec<String>;

/// A job on its way.
struct Job<'a> {
    id: String,
    case: &'a Case,
    client: Option<Process>,
    submits: u32,
    accepted: bool,
}

/// Plays chaos; what is wrong with its jobs is in the report, not a panic.
///
/// # Panics
/// Where the pool cannot even do its jobs in calm weather.
#[track_caller]
pub fn play(sandbox: &Sandbox, settings: &Settings) -> Report {
    let mut stage = Stage::start(sandbox, Setup::new(settings.crew));
    let watch = Watch::start(&stage.nats.url());
    let mut cases = Case::all(sandbox, &stage);
    play_calm(&mut stage, &watch, &mut cases);
    let mut report = Report::default();
    let begun_ms = stage.now_ms();
    let mut done = 0;
    for round in 0.. {
        if done >= settings.jobs {
            break;
        }
        let count = ROUND.min(settings.jobs - done);
        let jobs = (done..done + count).map(|number| Job {
            id: format!("s{}-{number:04}", settings.seed),
            case: &cases[(number + settings.seed as usize) % cases.len()],
            client: None,
            submits: 0,
            accepted: false,
        });
        let schedule = Schedule::new(
            settings.seed.wrapping_mul(100_003) + round,
            settings.crew,
            settings.pause_ms,
        );
        Round { stage: &mut stage, watch: &watch, report: &mut report, sandbox }
            .play(jobs.collect(), schedule);
        done += count;
    }
    report.took_ms = stage.now_ms() - begun_ms;
    report.faults.clone_from(&stage.struck);
    report.exits.clone_from(&stage.exits);
    report
}

/// One job of each case without any fault: its parts are what all later ones must have.
#[track_caller]
fn play_calm(stage: &mut Stage<'_>, watch: &Watch, cases: &mut [Case]) {
    for case in cases {
        let id = format!("calm-{}", case.name);
        let status = to_end(stage, watch, case, &id, |_, _| {});
        assert_eq!(status["state"], "succeeded", "{status}");
        let output = case.output(stage, &id);
        output.assert_is(&case.sorted);
        case.remove_output(stage, &id);
        case.calm = Some(output.parts);
    }
}

/// Submits a job and waits until it is over, calling `act` with its status again and again; gives
/// the last one.
///
/// # Panics
/// Where it takes longer than [`END_BOUND`].
#[track_caller]
pub fn to_end(
    stage: &mut Stage<'_>,
    watch: &Watch,
    case: &Case,
    id: &str,
    mut act: impl FnMut(&mut Stage<'_>, &Value),
) -> Value {
    let mut job = Job { id: id.to_owned(), case, client: None, submits: 0, accepted: false };
    watch.add(id);
    let status = wait::until(&format!("{id} to be over"), END_BOUND, || {
        stage.tend();
        job.submit(stage);
        let status = watch.status(id);
        act(stage, &status);
        Some(status).filter(is_over)
    });
    watch.remove(id);
    status
}

/// Whether a job has ended, and nothing is left to clean up.
pub fn is_over(status: &Value) -> bool {
    let ended = ["succeeded", "failed", "cancelled"].iter().any(|end| status["state"] == *end);
    ended && status["cleaned"] == true
}

impl Job<'_> {
    /// Has a client submit it until the pool has taken it; a repeat is harmless.
    fn submit(&mut self, stage: &Stage<'_>) {
        match self.client.as_mut().map(Process::poll) {
            _ if self.accepted => {}
            None if self.submits < SUBMITS_MAX => {
                let mut command = stage.client();
                command.args(self.case.arguments(stage, &self.id));
                self.submits += 1;
                self.client =
                    Some(Process::spawn(&format!("submit-{}", self.id), command, &stage.logs()));
            }
            Some(Some(status)) => {
                self.accepted = process::exit_code(status) == 0;
                self.client = None;
            }
            None | Some(None) => {}
        }
    }
}

/// What one round is played with.
struct Round<'r, 's> {
    stage: &'r mut Stage<'s>,
    watch: &'r Watch,
    report: &'r mut Report,
    sandbox: &'r Sandbox,
}

impl Round<'_, '_> {
    fn play(mut self, jobs: Vec<Job<'_>>, schedule: Schedule) {
        let struck_before: u64 = self.stage.struck.values().sum();
        let failed_before = self.report.failed.len() + self.report.violations.len();
        let mut open: VecDeque<Job<'_>> = jobs.into();
        let mut running = Vec::new();
        let ended = self.storm(&mut open, &mut running, schedule);
        self.stage.heal_all();
        let ended = self.calm(open, running, ended);
        for job in &ended {
            self.verify(job);
        }
        self.assert_nothing_left();
        self.report.violations.extend(self.stage.bad_lines());
        if self.report.failed.len() + self.report.violations.len() > failed_before {
            self.report.faults_around_failures +=
                self.stage.struck.values().sum::<u64>() - struck_before;
        }
    }

    /// Faults, until all jobs have ended or have been disturbed for long enough.
    fn storm<'j>(
        &mut self,
        open: &mut VecDeque<Job<'j>>,
        running: &mut Vec<Job<'j>>,
        mut schedule: Schedule,
    ) -> Vec<Job<'j>> {
        let mut ended = Vec::new();
        let until_ms = self.stage.now_ms() + STORM_MS * open.len() as u64;
        let mut due_ms = self.stage.now_ms();
        let mut next = schedule.next();
        while self.stage.now_ms() < until_ms && !(open.is_empty() && running.is_empty()) {
            self.stage.tend();
            if self.stage.now_ms() >= due_ms
                && let Some(step) = next
            {
                self.stage.strike(&step);
                next = schedule.next();
                due_ms = self.stage.now_ms() + next.map_or(0, |next| next.after_ms);
            }
            self.go_on(open, running, &mut ended);
            std::thread::sleep(LOOK);
        }
        ended
    }

    /// No more faults: everything must end.
    fn calm<'j>(
        &mut self,
        mut open: VecDeque<Job<'j>>,
        mut running: Vec<Job<'j>>,
        mut ended: Vec<Job<'j>>,
    ) -> Vec<Job<'j>> {
        let bound_ms = self.stage.now_ms() + END_BOUND.as_millis() as u64;
        while !(open.is_empty() && running.is_empty()) {
            self.stage.tend();
            self.go_on(&mut open, &mut running, &mut ended);
            if self.stage.now_ms() > bound_ms {
                for job in open.drain(..).chain(running.drain(..)) {
                    let status = self.watch.status(&job.id);
                    self.violation(format!(
                        "{} ({}) has not ended: {status}",
                        job.id, job.case.name
                    ));
                    self.watch.remove(&job.id);
                }
            }
            std::thread::sleep(LOOK);
        }
        ended
    }

    /// Submits what is open while few run, and takes note of what has ended.
    fn go_on<'j>(
        &mut self,
        open: &mut VecDeque<Job<'j>>,
        running: &mut Vec<Job<'j>>,
        ended: &mut Vec<Job<'j>>,
    ) {
        while running.len() < AT_ONCE
            && let Some(job) = open.pop_front()
        {
            self.stage.note(&format!("{} ({}) is submitted", job.id, job.case.name));
            self.watch.add(&job.id);
            running.push(job);
        }
        let mut index = 0;
        while index < running.len() {
            running[index].submit(self.stage);
            if is_over(&self.watch.status(&running[index].id)) {
                let job = running.remove(index);
                self.stage.note(&format!("{} is over", job.id));
                ended.push(job);
            } else {
                index += 1;
            }
        }
    }

    /// The same bytes in the same parts, or an allowed failure and nothing.
    fn verify(&mut self, job: &Job<'_>) {
        let status = self.watch.status(&job.id);
        self.watch.remove(&job.id);
        let output = job.case.output(self.stage, &job.id);
        let named = format!("{} ({})", job.id, job.case.name);
        let error = status["error"].as_str().unwrap_or_default();
        match status["state"].as_str() {
            Some("succeeded") if output.success.is_none() || !output.others.is_empty() => {
                self.violation(format!(
                    "{named} has succeeded, but beside its parts lies {:?}",
                    output.others
                ));
            }
            Some("succeeded") if Some(&output.parts) != job.case.calm.as_ref() => {
                let same = output.concatenated() == job.case.sorted;
                self.violation(format!(
                    "{named} made other parts than the calm run; the same bytes: {same}"
                ));
            }
            Some("succeeded") => self.count(job, &status),
            Some("failed") if ALLOWED.iter().any(|allowed| error.contains(allowed)) => {
                self.report.failed.push(format!("{named}: {error}"));
                if !output.parts.is_empty() || output.success.is_some() || !output.others.is_empty()
                {
                    self.violation(format!("{named} has failed, but left an OUTPUT"));
                }
            }
            state => self.violation(format!("{named} has ended as {state:?}: {error}")),
        }
        job.case.remove_output(self.stage, &job.id);
    }

    /// Counts what a job that succeeded took, and holds its own figures against the journal and the
    /// workers' logs.
    fn count(&mut self, job: &Job<'_>, status: &Value) {
        self.report.succeeded += 1;
        self.report.retries += status["retries"].as_u64().unwrap_or(0);
        let work = Journal::read(&self.stage.nats.url()).work(&job.id);
        let begins = journal::begins_in(&self.stage.logs());
        let (repeated, late) =
            (work.repeated_tasks() as u64, work.begun_late(&begins).len() as u64);
        self.report.tasks += work.commits.len() as u64;
        self.report.repeated += repeated + late;
        if status["repeated_tasks"].as_u64() != Some(repeated) {
            self.violation(format!(
                "{} counts other repeated tasks than the {repeated} of its journal: {status}",
                job.id
            ));
        }
        // Nothing in this chaos loses an object.
        if repeated + late > 0 {
            let late = work.begun_late(&begins);
            self.violation(format!(
                "{}: {repeated} tasks were committed again, and begun again were {late:?}",
                job.id
            ));
        }
    }

    /// Nothing of an ended job lies in the bucket, in folders, or on the NATS server: who reads a
    /// stream takes its reader away.
    fn assert_nothing_left(&mut self) {
        let places: [(&str, List); 6] = [
            ("objects in scratch", |stage, _| stage.bucket.list("scratch")),
            ("open uploads", |stage, _| stage.bucket.uploads()),
            ("files in scratch", |_, sandbox| files_below(&sandbox.path("scratch"))),
            ("objects or files in outputs", |stage, sandbox| {
                [stage.bucket.list("out"), files_below(&sandbox.path("out"))].concat()
            }),
            ("spills of dead workers", |stage, _| stage.stale_spills()),
            ("streams that are not muster's, or consumers", |stage, _| {
                stage.nats.strange_streams_and_consumers()
            }),
        ];
        for (what, list) in places {
            let mut last = Vec::new();
            let bound_ms = self.stage.now_ms() + CLEAN_BOUND.as_millis() as u64;
            while self.stage.now_ms() < bound_ms {
                last = list(self.stage, self.sandbox);
                if last.is_empty() {
                    break;
                }
                self.stage.tend();
                std::thread::sleep(LOOK);
            }
            if !last.is_empty() {
                self.violation(format!("{what} were left: {last:?}"));
            }
        }
    }

    fn violation(&mut self, what: String) {
        self.stage.note(&format!("VIOLATION: {what}"));
        self.report.violations.push(what);
    }
}

impl Report {
    /// Faults in all.
    pub fn fault_count(&self) -> u64 {
        self.faults.values().sum()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (faults, around) = (self.fault_count(), self.faults_around_failures);
        writeln!(
            f,
            "{} jobs with the same bytes as in calm weather, {} allowed failures, {} violations, \
                in {} s",
            self.succeeded,
            self.failed.len(),
            self.violations.len(),
            self.took_ms / 1000
        )?;
        let survived = 100.0 * (faults - around) as f64 / faults.max(1) as f64;
        writeln!(f, "{faults} faults, {survived:.1} % of them in rounds without any failed job")?;
        for (kind, count) in &self.faults {
            writeln!(f, "  {count:>6} {kind}")?;
        }
        for (how, count) in &self.exits {
            writeln!(f, "  {count:>6} by itself: {how}")?;
        }
        writeln!(
            f,
            "{} tasks, {} attempts more, {} of committed tasks",
            self.tasks, self.retries, self.repeated
        )?;
        self.failed.iter().try_for_each(|failed| writeln!(f, "allowed: {failed}"))?;
        self.violations.iter().try_for_each(|violation| writeln!(f, "VIOLATION: {violation}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_job_is_over_when_it_has_ended_and_is_cleaned() {
        for (status, expected) in [
            (Value::Null, false),
            (json!({ "state": "merging", "cleaned": false }), false),
            (json!({ "state": "succeeded", "cleaned": false }), false),
            (json!({ "state": "succeeded", "cleaned": true }), true),
            (json!({ "state": "failed", "cleaned": true }), true),
        ] {
            assert_eq!(is_over(&status), expected, "{status}");
        }
    }
}
