//! What the journal and the workers' logs say about finished work: that each task was committed
//! once, and that nobody began it again afterwards.
//!
//! The journal is read from its stream, entry by entry, and counted here; nothing is asked of the
//! coordinator, whose own count is what is held against it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use async_nats::ConnectOptions;
use muster_coordinator::journal::record::{self, Entry, Record};
use muster_protocol::ids::{AttemptId, Epoch, Generation, Phase, TaskId};
use muster_protocol::names::{DEFAULT_NAMESPACE, Names};
use serde_json::Value;

use super::nats::addresses;

/// How long an order that was sent before a commit may be on its way to a worker that runs: one
/// that begins later was sent after it.
const ORDER_UNDER_WAY: Duration = Duration::from_secs(5);
/// Bound of one request to the stream.
const REQUEST_BOUND: Duration = Duration::from_secs(20);

/// The journal of one deployment, oldest entry first.
#[derive(Debug, Default)]
pub struct Journal {
    entries: Vec<(SystemTime, Entry)>,
}

/// A result that counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Commit {
    /// Whose result.
    pub attempt: AttemptId,
    /// The term of the leader that committed it.
    pub epoch: Epoch,
    /// When the stream took the record.
    pub at: SystemTime,
}

/// An attempt that a worker has begun, as its log tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Begin {
    /// When.
    pub at: SystemTime,
    /// The log's name: the worker's.
    pub worker: String,
    /// Of which job.
    pub job: String,
    /// Which attempt.
    pub attempt: AttemptId,
}

/// What the journal says about the sort and merge tasks of one job.
#[derive(Debug, Default)]
pub struct Work {
    job: String,
    /// Every task that the job has.
    tasks: BTreeSet<TaskId>,
    /// Commits of each task, the first one first.
    pub commits: BTreeMap<TaskId, Vec<Commit>>,
    /// Merge attempts whose upload was journalled after their task's commit stood.
    pub opened_late: Vec<AttemptId>,
}

impl Journal {
    /// Reads the stream of a server.
    ///
    /// # Panics
    /// Where it cannot be read, or holds an entry that cannot be.
    #[track_caller]
    pub fn read(nats_url: &str) -> Self {
        Self::read_with(nats_url, ConnectOptions::new())
    }

    /// The same of a server that lets in nobody without a user who may.
    ///
    /// # Panics
    /// As [`Journal::read`].
    #[track_caller]
    pub fn read_with(nats_url: &str, options: ConnectOptions) -> Self {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let read = runtime.block_on(read_stream(nats_url, options));
        Self {
            entries: read
                .unwrap_or_else(|e| panic!("the journal at {nats_url} cannot be read: {e}")),
        }
    }

    /// A journal of these entries.
    pub fn of(entries: impl IntoIterator<Item = (SystemTime, Entry)>) -> Self {
        Self { entries: entries.into_iter().collect() }
    }

    /// Its entries with the time at which the stream took them.
    pub fn entries(&self) -> &[(SystemTime, Entry)] {
        &self.entries
    }

    /// What it says about one job. A snapshot repeats commits that stand, which are not counted
    /// again.
    pub fn work(&self, job: &str) -> Work {
        let mut work = Work { job: job.to_owned(), ..Work::default() };
        for (at, entry) in &self.entries {
            match &entry.record {
                Record::Snapshot { records, .. } => {
                    // Revoked uploads are repeated out of their order.
                    let in_order = records
                        .iter()
                        .filter(|record| !matches!(record, Record::UploadOpened { .. }));
                    in_order.for_each(|record| work.note(*at, entry.epoch, record));
                }
                record => work.note(*at, entry.epoch, record),
            }
        }
        work
    }
}

impl Work {
    fn note(&mut self, at: SystemTime, epoch: Epoch, record: &Record) {
        let tasks = |phase, count| (0..count).map(move |index| TaskId { phase, index });
        match record {
            Record::JobSubmitted(submitted) if submitted.job.as_str() == self.job => {
                self.tasks.extend(tasks(Phase::Sort, submitted.splits));
            }
            Record::BoundariesChosen { job, partitions, .. } if job.as_str() == self.job => {
                self.tasks.extend(tasks(Phase::Merge, *partitions));
            }
            Record::RunCommitted(run) if run.job.as_str() == self.job => {
                self.commit(at, epoch, run.attempt);
            }
            Record::PartCommitted(part) if part.job.as_str() == self.job => {
                self.commit(at, epoch, part.attempt);
            }
            Record::UploadOpened { job, attempt, .. } if job.as_str() == self.job => {
                let committed = self.commits.get(&attempt.task).and_then(|commits| commits.last());
                if committed.is_some_and(|commit| commit.attempt != *attempt) {
                    self.opened_late.push(*attempt);
                }
            }
            _ => {}
        }
    }

    fn commit(&mut self, at: SystemTime, epoch: Epoch, attempt: AttemptId) {
        let commits = self.commits.entry(attempt.task).or_default();
        if commits.iter().all(|commit| commit.attempt != attempt) {
            commits.push(Commit { attempt, epoch, at });
        }
    }

    /// Tasks whose committed result was made again.
    pub fn repeated_tasks(&self) -> usize {
        self.commits.values().filter(|commits| commits.len() > 1).count()
    }

    /// Attempts of a committed task that began although its commit stood: granted by a leader of a
    /// later term, which had read it, or so long after it that the order cannot have been under
    /// way. The attempt that was committed may be named again by a new leader, and is none of them.
    pub fn begun_late<'a>(&self, begins: &'a [Begin]) -> Vec<&'a Begin> {
        let late = |begin: &&Begin| {
            let commits =
                self.commits.get(&begin.attempt.task).map(Vec::as_slice).unwrap_or_default();
            let first = commits
                .first()
                .filter(|_| commits.iter().all(|commit| commit.attempt != begin.attempt));
            begin.job == self.job
                && first.is_some_and(|commit| {
                    begin.attempt.epoch > commit.epoch || begin.at > commit.at + ORDER_UNDER_WAY
                })
        };
        begins.iter().filter(late).collect()
    }

    /// Checks a job that has succeeded: every task was committed exactly once, no committed task
    /// was begun again, and the report's own count says so too.
    ///
    /// # Panics
    /// Where not.
    #[track_caller]
    pub fn assert_nothing_repeated(&self, begins: &[Begin], report: &Value) {
        let committed: BTreeSet<TaskId> = self.commits.keys().copied().collect();
        assert!(!self.tasks.is_empty(), "the journal knows no tasks of job {}", self.job);
        assert_eq!(
            committed, self.tasks,
            "the tasks with a commit, and all tasks of job {}",
            self.job
        );
        for (task, commits) in &self.commits {
            assert_eq!(commits.len(), 1, "{task} was committed more than once: {commits:?}");
        }
        assert!(
            self.opened_late.is_empty(),
            "uploads of committed parts were opened: {:?}",
            self.opened_late
        );
        let late = self.begun_late(begins);
        assert!(late.is_empty(), "committed tasks were begun again: {late:?}");
        for (task, commits) in &self.commits {
            let seen = begins
                .iter()
                .any(|begin| begin.job == self.job && begin.attempt == commits[0].attempt);
            assert!(seen, "no worker's log tells that {} of {task} began", commits[0].attempt);
        }
        assert_eq!(
            report["repeated_tasks"].as_u64(),
            Some(self.repeated_tasks() as u64),
            "{report}"
        );
    }
}

/// Attempts that workers have begun, from all logs in a folder, in the order of time.
///
/// # Panics
/// Where a log cannot be read, or a line that tells of an attempt has lost its shape.
pub fn begins_in(logs: &Path) -> Vec<Begin> {
    let mut begins = Vec::new();
    for entry in fs::read_dir(logs).expect("the folder of logs can be read").flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == "err") {
            let text = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            let worker = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            begins.extend(begins_of(&worker, &String::from_utf8_lossy(&text)));
        }
    }
    begins.sort_by_key(|begin| begin.at);
    begins
}

/// Attempts that one log tells of.
///
/// # Panics
/// Where a line that does has lost its shape.
pub fn begins_of(worker: &str, log: &str) -> Vec<Begin> {
    // A worker that is killed may leave half a line, which the next life's first line then ends.
    let whole =
        |line: &&str| line.contains(" attempt begins ") && line.matches("INFO").count() == 1;
    let begin = |line: &str| {
        let field = |name: &str| {
            line.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
        };
        let at = humantime::parse_rfc3339(line.split(' ').next()?).ok()?;
        let (job, attempt) = (field("job")?.to_owned(), parse_attempt(field("attempt")?)?);
        Some(Begin { at, worker: worker.to_owned(), job, attempt })
    };
    log.lines()
        .filter(whole)
        .map(|line| begin(line).unwrap_or_else(|| panic!("a line of {worker}: {line}")))
        .collect()
}

/// An attempt's id from its text, such as `sort-00007.g0.e3.0000000000000abc`.
fn parse_attempt(text: &str) -> Option<AttemptId> {
    let mut words = text.split('.');
    let (phase, index) = words.next()?.split_once('-')?;
    let phase = match phase {
        "sample" => Phase::Sample,
        "sort" => Phase::Sort,
        "merge" => Phase::Merge,
        _ => return None,
    };
    let generation = Generation(words.next()?.strip_prefix('g')?.parse().ok()?);
    let epoch = Epoch(words.next()?.strip_prefix('e')?.parse().ok()?);
    let nonce = u64::from_str_radix(words.next()?, 16).ok()?;
    Some(AttemptId { task: TaskId { phase, index: index.parse().ok()? }, generation, epoch, nonce })
}

async fn read_stream(
    nats_url: &str,
    options: ConnectOptions,
) -> Result<Vec<(SystemTime, Entry)>, String> {
    let client = options.connect(addresses(nats_url)).await.map_err(|e| e.to_string())?;
    let context =
        async_nats::jetstream::context::ContextBuilder::new().timeout(REQUEST_BOUND).build(client);
    let name = Names::new(DEFAULT_NAMESPACE).journal_stream();
    let stream = context.get_stream(&name).await.map_err(|e| format!("{name}: {e}"))?;
    let state = stream.get_info().await.map_err(|e| format!("{name}: {e}"))?.state;
    let mut entries = Vec::new();
    for sequence in state.first_sequence..=state.last_sequence {
        let message = match stream.get_raw_message(sequence).await {
            Ok(message) => message,
            // Purged while we read.
            Err(e)
                if matches!(
                    e.kind(),
                    async_nats::jetstream::stream::RawMessageErrorKind::NoMessageFound
                ) =>
            {
                continue;
            }
            Err(e) => return Err(format!("entry {sequence} of {name}: {e}")),
        };
        let entry = record::decode(&message.payload)
            .map_err(|e| format!("entry {sequence} of {name}: {e}"))?;
        entries.push((message.time.into(), entry));
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_coordinator::journal::record::{PartCommitted, RunCommitted};
    use muster_kernel::proof::Sums;
    use serde_json::json;

    const NO_SUMS: Sums = Sums { records: 0, bytes: 0, hash: 0 };

    fn second(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn attempt(phase: Phase, epoch: u64, nonce: u64) -> AttemptId {
        AttemptId {
            task: TaskId { phase, index: 0 },
            generation: Generation(0),
            epoch: Epoch(epoch),
            nonce,
        }
    }

    fn run(attempt: AttemptId) -> Record {
        Record::RunCommitted(Box::new(RunCommitted {
            job: "j".parse().unwrap(),
            split: 0,
            attempt,
            worker: "w".parse().unwrap(),
            url: String::new(),
            replica: None,
            bytes: 0,
            index_digest: 0,
            input: NO_SUMS,
            kept: NO_SUMS,
            dropped: NO_SUMS,
            skipped: NO_SUMS,
            quarantine: None,
            intervals: Vec::new(),
            bad_records: Vec::new(),
        }))
    }

    fn part(attempt: AttemptId) -> Record {
        Record::PartCommitted(Box::new(PartCommitted {
            job: "j".parse().unwrap(),
            partition: 0,
            attempt,
            worker: "w".parse().unwrap(),
            upload: String::new(),
            tags: Vec::new(),
            bytes: 0,
            checksum: 0,
            kept: NO_SUMS,
            dropped: NO_SUMS,
            first_key: Vec::new(),
            last_key: Vec::new(),
        }))
    }

    fn opened(attempt: AttemptId) -> Record {
        Record::UploadOpened {
            job: "j".parse().unwrap(),
            partition: 0,
            attempt,
            upload: String::new(),
        }
    }

    /// Records at second 100, 101 and so on, each of the given epoch.
    fn work(records: &[(u64, Record)]) -> Work {
        let entry = |(index, (epoch, record)): (u64, &(u64, Record))| {
            (
                second(100 + index),
                Entry { epoch: Epoch(*epoch), nonce: index, record: record.clone() },
            )
        };
        let mut work = Journal::of((0..).zip(records).map(entry)).work("j");
        work.tasks = [Phase::Sort, Phase::Merge].map(|phase| TaskId { phase, index: 0 }).into();
        work
    }

    fn begin(at: u64, attempt: AttemptId) -> Begin {
        Begin { at: second(at), worker: "w".into(), job: "j".into(), attempt }
    }

    /// Whether the check finds something: with a report that says so many repeated tasks.
    fn is_refused(work: &Work, begins: &[Begin], reported: u64) -> bool {
        let report = json!({ "repeated_tasks": reported });
        std::panic::catch_unwind(|| work.assert_nothing_repeated(begins, &report)).is_err()
    }

    #[test]
    fn a_repetition_of_any_kind_is_found() {
        let (sort, merge) = (attempt(Phase::Sort, 1, 1), attempt(Phase::Merge, 1, 2));
        let calm = vec![(1, run(sort)), (1, opened(merge)), (1, part(merge))];
        let begins = vec![begin(99, sort), begin(100, merge)];
        assert!(!is_refused(&work(&calm), &begins, 0));

        // The figure itself.
        assert!(is_refused(&work(&calm), &begins, 1));
        // A task without a commit, or without any sign of having been run.
        assert!(is_refused(&work(&calm[..1]), &begins, 0));
        assert!(is_refused(&work(&calm), &begins[..1], 0));
        // A second commit, of a run and of a part.
        for (phase, again) in [(Phase::Sort, run as fn(AttemptId) -> Record), (Phase::Merge, part)]
        {
            let mut twice = calm.clone();
            twice.push((2, again(attempt(phase, 2, 9))));
            assert_eq!(work(&twice).repeated_tasks(), 1);
            assert!(is_refused(&work(&twice), &begins, 1), "a second commit in {phase}");
        }
        // An upload for a part that is committed.
        let mut late = calm.clone();
        late.push((1, opened(attempt(Phase::Merge, 1, 9))));
        assert!(is_refused(&work(&late), &begins, 0));
        // An attempt that a later leader granted, or that began long after.
        for (epoch, at) in [(2, 101), (1, 200)] {
            let mut more = begins.clone();
            more.push(begin(at, attempt(Phase::Sort, epoch, 9)));
            assert!(is_refused(&work(&calm), &more, 0), "epoch {epoch} at {at}");
        }
    }

    #[test]
    fn what_was_under_way_is_no_repetition() {
        let (sort, merge) = (attempt(Phase::Sort, 1, 1), attempt(Phase::Merge, 1, 2));
        let calm = vec![(2, run(sort)), (2, opened(merge)), (2, part(merge))];
        let others = [attempt(Phase::Sort, 1, 8), attempt(Phase::Sort, 2, 9)];
        let begins = vec![
            begin(98, sort),
            begin(99, others[0]),
            begin(101, others[1]),
            begin(100, merge),
            begin(300, merge),
        ];
        assert!(
            !is_refused(&work(&calm), &begins, 0),
            "attempts that were granted before the commit"
        );
        // A snapshot repeats what stands.
        let mut more = calm;
        more.push((
            2,
            Record::Snapshot {
                id: 1,
                part: 0,
                of: 1,
                digest: 0,
                records: vec![opened(attempt(Phase::Merge, 1, 3)), run(sort), part(merge)],
            },
        ));
        assert!(!is_refused(&work(&more), &begins, 0));
    }

    #[test]
    fn begins_are_read_from_a_log() {
        let log = "2026-01-02T03:04:05.000006Z  INFO worker starts worker=w\n\
            2026-01-02T03:04:05.000007Z  INFO attempt begins job=j phase=sort \
            attempt=sort-00007.g1.e3.0000000000000abc epoch=4\n\
            2026-01-02T03:04:06.000007Z  INFO attempt beg2026-01-02T03:04:07.000007Z  INFO worker \
            starts worker=w\n";
        let found = begins_of("w", log);
        let expected = AttemptId {
            task: TaskId { phase: Phase::Sort, index: 7 },
            generation: Generation(1),
            epoch: Epoch(3),
            nonce: 0xabc,
        };
        assert_eq!(
            found.iter().map(|begin| (begin.job.as_str(), begin.attempt)).collect::<Vec<_>>(),
            [("j", expected)]
        );
    }
}
