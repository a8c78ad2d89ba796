//! A worker that means harm: it has the rights of a worker on NATS and on the bucket, and says
//! whatever it likes. It can neither commit for another, nor have a result counted that cannot be
//! true, nor stop the coordinator, nor make it grow without bound; the job of the honest workers
//! ends with the same bytes.
//!
//! What P10 leaves out, and this does not try: a worker that lies consistently about the data it
//! read (that it read other records of the same number and length, say), one that takes work and
//! fails at it again and again until the tries of a task are used up, and one that damages objects
//! to which the bucket lets it write.
#![expect(clippy::print_stdout, reason = "how much it grew is a result")]

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::{Client, Subscriber};
use futures::StreamExt;
use muster_coordinator::journal::record::Record;
use muster_kernel::proof::Sums;
use muster_platform::store::BlobUrl;
use muster_protocol::Error;
use muster_protocol::ids::{AttemptId, Epoch, Incarnation, JobId, Phase, WorkerId};
use muster_protocol::names::{self, Names};
use muster_protocol::plan::Plan;
use muster_protocol::wire::{
    self, AttemptProgress, BlobRef, DamageCause, Heartbeat, HeldAttempt, MergedPart, Outcome,
    PhaseQuery, Register, RegisterReply, Report, ReportReply, RunAttempt, RunReply, SortedRun,
    WorkerState,
};
use muster_tests::harness::data::{Keys, records};
use muster_tests::harness::journal::{Journal, begins_in};
use muster_tests::harness::{
    Bucket, Gate, NatsServer, Output, Pool, Process, S3Server, Sandbox, Users, arg, oracle, wait,
};
use serde_json::Value;

const SMALL: usize = 64 << 10;
const BUCKET: &str = "data";
const RECORDS: usize = 20_000;
/// Messages of the flood, on each subject.
const FLOOD: usize = 20_000;
/// Lines that the coordinator may log in all, and refusals that its events may tell of: a few of
/// each kind in ten seconds, whatever comes.
const LINES_MAX: usize = 1_500;
const REFUSALS_TOLD_MAX: usize = 100;
/// By how much the coordinator may grow under it.
const GROWTH_BYTES_MAX: u64 = 192 << 20;

/// One that speaks for itself.
struct Hostile {
    client: Client,
    names: Names,
    id: WorkerId,
    incarnation: Incarnation,
    epoch: Epoch,
    job: JobId,
    sequence: u64,
}

impl Hostile {
    fn register(&self) -> Register {
        Register {
            worker: self.id.clone(),
            incarnation: self.incarnation,
            program: "hostile".into(),
            host: "nowhere".into(),
            slots: 1,
            memory_bytes: 1 << 30,
            labels: Vec::new(),
            draining: false,
            held: Vec::new(),
            wire: wire::WIRE_VERSION,
            settings: Vec::new(),
            inputs: Vec::new(),
        }
    }

    fn report(&self, attempt: AttemptId, outcome: Outcome) -> Report {
        let (epoch, worker, incarnation) = (self.epoch, self.id.clone(), self.incarnation);
        Report { epoch, worker, incarnation, job: self.job.clone(), attempt, outcome }
    }

    async fn ask<T: wire::Message, A: wire::Message>(&self, subject: &str, question: &T) -> A {
        let question = wire::encode(question).expect("encode");
        let asked = self.client.request(names::of_worker(subject, &self.id), question.into());
        let answer = tokio::time::timeout(wait::RUN_BOUND, asked).await.expect("an answer in time");
        wire::decode(&answer.expect("an answer").payload).expect("an answer of its kind")
    }

    async fn registers(&self, register: &Register) -> RegisterReply {
        self.ask(&self.names.register(), register).await
    }

    /// Registers as any worker does.
    async fn joins(&mut self) {
        match self.registers(&self.register()).await {
            RegisterReply::Accepted { epoch, .. } => self.epoch = epoch,
            refused => panic!("{refused:?}"),
        }
    }

    async fn reports(&self, report: &Report) -> ReportReply {
        self.ask(&self.names.report(), report).await
    }

    async fn beats(&mut self, attempts: Vec<AttemptProgress>) {
        self.sequence += 1;
        let heartbeat = Heartbeat {
            worker: self.id.clone(),
            incarnation: self.incarnation,
            epoch: self.epoch,
            sequence: self.sequence,
            state: WorkerState::Active,
            attempts,
            health: wire::Health::default(),
        };
        let bytes = wire::encode(&heartbeat).expect("encode");
        self.client
            .publish(self.names.heartbeat(&self.id), bytes.into())
            .await
            .expect("handed over");
    }

    /// Registrations that no worker makes are refused, each by name.
    async fn registers_absurdly(&self) {
        let text = || "x".repeat(100_000);
        let many = |count: usize| (0..count).map(|n| (n.to_string(), String::new())).collect();
        let folders =
            |folders: &[&str]| folders.iter().map(|folder| (*folder).to_owned()).collect();
        let sound = self.register();
        for register in [
            Register { slots: 0, ..sound.clone() },
            Register { slots: u32::MAX, ..sound.clone() },
            Register { labels: many(10_000), ..sound.clone() },
            Register { labels: vec![(text(), text())], ..sound.clone() },
            Register { settings: many(10_000), ..sound.clone() },
            Register {
                settings: vec![("heartbeat.interval_ms".into(), "1".into())],
                ..sound.clone()
            },
            Register { host: text(), ..sound.clone() },
            Register { inputs: folders(&["/a/../../etc"]), ..sound.clone() },
            Register { inputs: folders(&["relative"]), ..sound.clone() },
            Register { inputs: folders(&["/a", "/a/b"]), ..sound.clone() },
            Register { inputs: (0..1000).map(|n| format!("/{n}")).collect(), ..sound.clone() },
        ] {
            let reply = self.registers(&register).await;
            assert!(matches!(reply, RegisterReply::Refused { .. }), "{register:?}: {reply:?}");
        }
    }

    /// Nothing that is said of attempts of others, or under numbers that are not one's own, is
    /// recorded. `said` is what is said of each.
    async fn speaks_of_others(
        &self,
        others: &[AttemptId],
        said: impl Fn(&AttemptId) -> Vec<Outcome>,
    ) {
        for attempt in others {
            let later = AttemptId { epoch: Epoch(attempt.epoch.0 + 1), ..*attempt };
            let other = AttemptId { nonce: attempt.nonce ^ 1, ..*attempt };
            let outcomes = said(attempt);
            for attempt in [*attempt, later, other] {
                for outcome in outcomes.clone() {
                    let report = self.report(attempt, outcome);
                    let reply = self.reports(&report).await;
                    let committed = matches!(reply, ReportReply::Recorded { .. });
                    // Of what is recorded already, the answer says only that; that nothing is added
                    // to it, the caller checks.
                    assert!(!committed || others.contains(&attempt), "{report:?}: {reply:?}");
                    for (epoch, incarnation) in
                        [(self.epoch.0 + 1, self.incarnation.0), (self.epoch.0, 2)]
                    {
                        let (epoch, incarnation) = (Epoch(epoch), Incarnation(incarnation));
                        let reply =
                            self.reports(&Report { epoch, incarnation, ..report.clone() }).await;
                        assert!(matches!(reply, ReportReply::Reregister { .. }), "{reply:?}");
                    }
                }
            }
        }
    }

    /// Says that it holds and runs what others do: none of it becomes its own, but what is
    /// committed, which nobody can have any more.
    async fn claims(&mut self, others: &[AttemptId], committed: &[AttemptId]) {
        let held = others
            .iter()
            .map(|attempt| HeldAttempt { job: self.job.clone(), attempt: *attempt })
            .collect();
        match self.registers(&Register { held, ..self.register() }).await {
            RegisterReply::Accepted { regranted, .. } => {
                assert!(
                    regranted.iter().all(|attempt| committed.contains(attempt)),
                    "{regranted:?}"
                );
            }
            refused => panic!("{refused:?}"),
        }
        let progress = |attempt: &AttemptId| AttemptProgress {
            job: self.job.clone(),
            attempt: *attempt,
            bytes_done: u64::MAX,
            bytes_total: u64::MAX,
        };
        let progress = others.iter().map(progress).collect();
        self.beats(progress).await;
    }

    /// Takes the next attempt that it is given, while it keeps up appearances.
    async fn takes(&mut self, orders: &mut Subscriber) -> RunAttempt {
        let look = async {
            loop {
                self.beats(Vec::new()).await;
                let Ok(Some(order)) =
                    tokio::time::timeout(Duration::from_millis(100), orders.next()).await
                else {
                    continue;
                };
                let Ok(run) = wire::decode::<RunAttempt>(&order.payload) else { continue };
                let answer = wire::encode(&RunReply::Accepted).expect("encode");
                let reply = order.reply.expect("an order wants an answer");
                self.client.publish(reply, answer.into()).await.expect("handed over");
                return run;
            }
        };
        tokio::time::timeout(wait::RUN_BOUND, look).await.expect("an attempt in time")
    }

    /// Takes attempts of its own and reports of each what cannot be true.
    async fn lies(&mut self, orders: &mut Subscriber, bucket: &Bucket) {
        for number in 0..3 {
            let run = self.takes(orders).await;
            assert_eq!(run.attempt.task.phase, Phase::Sort);
            let url: BlobUrl = run.plan.url.parse().expect("a URL");
            let plan = tokio::task::block_in_place(|| bucket.get(url.key()));
            let plan = Plan::from_bytes(&plan).expect("a plan");
            let mut intervals = plan.splits[run.attempt.task.index as usize].clone();
            let bytes: u64 = intervals.iter().map(|interval| interval.end - interval.begin).sum();
            let mut sums = Sums { records: bytes / 100, bytes, hash: 1 };
            let mut place = format!("{}/{}", plan.scratch, names::run_path(&run.attempt));
            match number {
                0 => place = format!("s3://{BUCKET}/elsewhere/a.run"),
                1 => intervals[0].end = u64::MAX,
                _ => sums.records += 1,
            }
            let reply = self
                .reports(
                    &self.report(
                        run.attempt,
                        Outcome::Sorted(Box::new(lie(&place, intervals, sums))),
                    ),
                )
                .await;
            assert!(matches!(reply, ReportReply::Revoked { .. }), "lie {number}: {reply:?}");
        }
    }

    /// Takes merges of its own and reports of each what cannot be true; `foreign` is the upload of
    /// somebody else.
    async fn lies_of_merges(&mut self, orders: &mut Subscriber, foreign: &str) {
        let opened = |upload: &str| Outcome::UploadOpened { upload: upload.to_owned() };
        let elsewhere = format!("s3://{BUCKET}/elsewhere/a.run");
        let lies = [
            vec![Outcome::Merged(merged("u"))],
            vec![opened("../../made/up"), opened("a second one")],
            // The sums are of other bytes than the part is said to have.
            vec![opened(foreign), Outcome::Merged(merged(foreign))],
            vec![Outcome::Sorted(Box::new(lie(&elsewhere, Vec::new(), Sums::default())))],
        ];
        for told in lies {
            let run = self.takes(orders).await;
            assert_eq!(run.attempt.task.phase, Phase::Merge);
            let last = told.len() - 1;
            for (index, outcome) in told.into_iter().enumerate() {
                let report = self.report(run.attempt, outcome);
                let reply = self.reports(&report).await;
                let expected = match &reply {
                    ReportReply::Recorded { .. } => index < last,
                    ReportReply::Revoked { .. } => index == last,
                    _ => false,
                };
                assert!(expected, "{report:?}: {reply:?}");
            }
        }
    }

    /// Everything that it may publish to, again and again: malformed, as large as the server lets
    /// through, and what was well formed once.
    async fn floods(&self, replayed: &Report, messages: usize) {
        let own = |subject: String| names::of_worker(&subject, &self.id);
        let frame = wire::encode(replayed).expect("encode");
        let absurd =
            wire::encode(&Register { slots: u32::MAX, ..self.register() }).expect("encode");
        let question = wire::encode(&PhaseQuery { job: self.job.clone() }).expect("encode");
        let cut = frame[..frame.len() / 2].to_vec();
        let largest = self.client.server_info().max_payload - 1024;
        let giant = bytes::Bytes::from(vec![0xff_u8; largest]);
        for (subject, sound) in [
            (own(self.names.register()), &absurd),
            (own(self.names.report()), &frame),
            (own(self.names.samples()), &frame),
            (self.names.heartbeat(&self.id), &frame),
            (self.names.recoveries(&self.id), &frame),
            (self.names.phase(), &question),
        ] {
            let inbox = self.client.new_inbox();
            let shout = |bytes: bytes::Bytes| {
                self.client.publish_with_reply(subject.clone(), inbox.clone(), bytes)
            };
            for _ in 0..20 {
                shout(giant.clone()).await.expect("handed over");
            }
            let sound = bytes::Bytes::from(sound.clone());
            for number in 0..messages {
                let bytes = match number % 4 {
                    0 => bytes::Bytes::new(),
                    1 => bytes::Bytes::from(cut.clone()),
                    _ => sound.clone(),
                };
                shout(bytes).await.expect("handed over");
            }
            self.client.flush().await.expect("flush");
        }
    }
}

/// A part that cannot be: no records make so many bytes.
fn merged(upload: &str) -> MergedPart {
    MergedPart {
        upload: upload.to_owned(),
        tags: vec!["t".into()],
        bytes: 100,
        checksum: 1,
        kept: Sums::default(),
        dropped: Sums::default(),
        first_key: Vec::new(),
        last_key: Vec::new(),
    }
}

fn lie(url: &str, intervals: Vec<muster_kernel::proof::Interval>, sums: Sums) -> SortedRun {
    SortedRun {
        url: url.to_owned(),
        replica: None,
        bytes: 1000,
        index_digest: 7,
        input: sums,
        kept: sums,
        dropped: Sums::default(),
        skipped: Sums::default(),
        quarantine: None,
        bad_records: Vec::new(),
        partition_bytes: Vec::new(),
        intervals,
        spills: 0,
    }
}

/// Resident memory of a process.
fn resident_bytes(process: u32) -> u64 {
    let status =
        std::fs::read_to_string(format!("/proc/{process}/status")).expect("a process that runs");
    let line =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its resident memory");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib << 10
}

/// A job under way whose workers are held, and one more worker's user, which somebody else has.
struct Scene<'a> {
    sandbox: &'a Sandbox,
    users: Users,
    bucket: Bucket,
    data: Vec<u8>,
    pool: Pool<'a>,
    sort: Process,
    coordinator: u32,
    /// What the coordinator took before the hostile one came.
    resident_bytes: u64,
}

impl<'a> Scene<'a> {
    /// Held in the midst of a state.
    fn held_in(sandbox: &'a Sandbox, s3: &S3Server, state: &str) -> Self {
        let bucket = s3.bucket(BUCKET);
        let data = records(RECORDS, Keys::Random, 1);
        bucket.put("in", &data);
        let users = Users::make(
            sandbox,
            &["--worker", "worker-0", "--worker", "worker-1", "--worker", "hostile"],
        );
        let server = NatsServer::made(sandbox, &users.file("server.conf"));
        let mut pool = Pool::with_users(server.into(), users.clone(), "", sandbox, 2, s3, BUCKET);
        let (from, to, config) =
            (bucket.url("in"), bucket.url("out"), sandbox.small_tasks(SMALL, SMALL));
        let wish = [
            from.as_str(),
            "-o",
            &to,
            "--format",
            "fixed:100",
            "-k",
            "0:10",
            "--config",
            arg(&config),
        ];
        pool.slow_workers(Duration::from_millis(40));
        let sort = pool.start_sort("job", wish);
        pool.hold_in_the_midst_of("job", state);
        let coordinator = pool.coordinator(0).id();
        let resident_bytes = resident_bytes(coordinator);
        Self { sandbox, users, bucket, data, pool, sort, coordinator, resident_bytes }
    }

    /// Attempts of a phase that the honest workers have begun.
    fn begun(&self, phase: Phase) -> Vec<AttemptId> {
        let begins = begins_in(&self.sandbox.logs()).into_iter().map(|begin| begin.attempt);
        let begun: Vec<AttemptId> = begins.filter(|attempt| attempt.task.phase == phase).collect();
        assert!(!begun.is_empty(), "the honest workers have begun");
        begun
    }

    /// The hostile one, with what it hears of the coordinator; it has not registered.
    async fn hostile(&self) -> (Hostile, Subscriber) {
        let client = self
            .users
            .options("hostile")
            .connect(self.pool.nats.url())
            .await
            .expect("it may connect");
        let hostile = Hostile {
            client,
            names: Names::new("muster"),
            id: "hostile".parse().expect("id"),
            incarnation: Incarnation(1),
            epoch: Epoch(0),
            job: "job".parse().expect("id"),
            sequence: 0,
        };
        let orders = hostile
            .client
            .subscribe(hostile.names.commands(&hostile.id))
            .await
            .expect("its own subject");
        hostile.client.flush().await.expect("flush");
        (hostile, orders)
    }

    /// Tasks of the job that are done. The honest workers are held: what is done now was done by
    /// them.
    fn done(&self) -> Value {
        tokio::task::block_in_place(|| {
            self.pool.status("job").expect("its status")["tasks_done"].clone()
        })
    }

    /// The job ends with the right bytes, whoever made them was granted it, and the coordinator is
    /// the one that it was. Gives the journal.
    fn ends_well(mut self, said: &[&str]) -> Journal {
        let grown = resident_bytes(self.coordinator).saturating_sub(self.resident_bytes);
        println!("the coordinator has grown by {grown} bytes");
        assert!(grown < GROWTH_BYTES_MAX, "the coordinator has grown by {grown} bytes");
        self.pool.each_worker_gate(Gate::open);
        let report = self.pool.finish_sort(self.sort);
        assert_eq!(report["records"], RECORDS, "{report}");
        Output::of_bucket(&self.bucket, "out").assert_is(&oracle::fixed(&self.data, 100, 0, 10));
        assert_eq!(self.pool.coordinator(0).id(), self.coordinator);
        self.pool.coordinator(0).assert_running();
        let workers = self.pool.run(["workers", "--json"]).expect_code(0).json();
        let listed = workers.as_array().expect("a list");
        let hostile = listed.iter().find(|worker| worker["id"] == "hostile").expect("it is known");
        assert_eq!(hostile["tasks_done"], 0, "nothing counts for it: {hostile}");
        let events = self.pool.run(["events", "job"]).expect_code(0).stdout;
        for said in said {
            assert!(events.contains(said), "{said}: {events}");
        }
        self.pool
            .coordinator(0)
            .wait_for_log("a malformed request was passed over", wait::START_BOUND);
        let rest =
            self.pool.coordinator(0).wait_for_log("more of the same came", wait::START_BOUND);
        assert!(rest.contains("suppressed="), "how many there were is told: {rest}");
        let log = self.pool.coordinator(0).stderr();
        let told = self.pool.run(["events", "--json"]).expect_code(0).stdout;
        let (lines, refusals) = (log.lines().count(), told.matches(r#""worker-refused""#).count());
        println!("{lines} lines of log, {refusals} refusals told");
        assert!(lines < LINES_MAX, "{lines} lines of log");
        assert!((1..REFUSALS_TOLD_MAX).contains(&refusals), "{refusals} refusals told");
        self.pool.assert_nothing_repeated("job", &report);
        self.pool.journal()
    }
}

#[test]
fn a_hostile_worker_gains_nothing() {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    let mut scene = Scene::held_in(&sandbox, &s3, "sorting");
    let others = scene.begun(Phase::Sort);
    let said = |_: &AttemptId| {
        vec![
            Outcome::Sorted(Box::new(lie("s3://data/x", Vec::new(), Sums::default()))),
            Outcome::Merged(merged("u")),
            Outcome::UploadOpened { upload: "u".into() },
            Outcome::Failed { error: Error::corrupt("it is broken") },
        ]
    };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let (mut hostile, mut orders) = scene.hostile().await;
        hostile.registers_absurdly().await;
        hostile.joins().await;
        hostile.lies(&mut orders, &scene.bucket).await;
        let before = scene.done();
        hostile.speaks_of_others(&others, said).await;
        assert_eq!(scene.done(), before, "nothing that was said of attempts of others counts");
        let replayed =
            hostile.report(others[0], Outcome::Failed { error: Error::corrupt("again") });
        hostile.floods(&replayed, FLOOD).await;
        // It is answered in its turn: what came before is dealt with.
        let _ = hostile.reports(&replayed).await;
    });
    drop(runtime);
    assert!(scene.pool.coordinator(0).stderr().contains("worker-refused"), "it is told");
    scene.ends_well(&["is not below the job's scratch", "are not of split", "P1 (conservation)"]);
}

#[test]
fn a_hostile_worker_changes_no_part() {
    let sandbox = Sandbox::new();
    let s3 = S3Server::start(&sandbox);
    let scene = Scene::held_in(&sandbox, &s3, "merging");
    let others = scene.begun(Phase::Merge);
    // What it may have learnt from the bucket or elsewhere: which uploads are open, and whose runs
    // count.
    let journal = scene.pool.journal();
    let (mut uploads, mut run, mut committed) = (BTreeMap::new(), None, Vec::new());
    for (_, entry) in journal.entries() {
        match &entry.record {
            Record::UploadOpened { attempt, upload, .. } => {
                drop(uploads.insert(*attempt, upload.clone()));
            }
            Record::RunCommitted(of) => run = Some((of.split, of.attempt)),
            Record::PartCommitted(of) => committed.push(of.attempt),
            _ => {}
        }
    }
    let (split, run) = run.expect("merging begins when runs stand");
    let under_way = uploads.iter().find(|(attempt, _)| !committed.contains(attempt));
    let foreign = under_way.map_or("u", |(_, upload)| upload).to_owned();
    let outside = || BlobRef { url: format!("s3://{BUCKET}/in"), bytes: 1, digest: 1 };
    let said = |attempt: &AttemptId| {
        let true_id = uploads.get(attempt).map_or("u", String::as_str);
        let error = || Error::corrupt("it is broken");
        vec![
            Outcome::UploadOpened { upload: true_id.to_owned() },
            Outcome::UploadOpened { upload: "u".into() },
            Outcome::Merged(merged(true_id)),
            Outcome::Merged(merged("u")),
            Outcome::Failed { error: error() },
            Outcome::RunDamaged { split, run, cause: DamageCause::Store, error: error() },
            Outcome::SampledToScratch { samples: outside() },
            Outcome::Sorted(Box::new(lie(
                &format!("s3://{BUCKET}/in"),
                Vec::new(),
                Sums::default(),
            ))),
        ]
    };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let (mut hostile, mut orders) = scene.hostile().await;
        hostile.joins().await;
        hostile.lies_of_merges(&mut orders, &foreign).await;
        let before = scene.done();
        hostile.claims(&others, &committed).await;
        hostile.speaks_of_others(&others, said).await;
        assert_eq!(scene.done(), before, "nothing that was said of attempts of others counts");
        let replayed = hostile.report(others[0], Outcome::Merged(merged(&foreign)));
        hostile.floods(&replayed, FLOOD / 4).await;
        let _ = hostile.reports(&replayed).await;
    });
    drop(runtime);
    let bucket = s3.bucket(BUCKET);
    let journal = scene.ends_well(&[
        "its upload is not the one that it reported as opened",
        "it opened a second upload",
        "bytes, not 100",
        "the report is not one of the merge phase",
    ]);
    let begins = begins_in(&sandbox.logs());
    let parts = journal.entries().iter().filter_map(|(_, entry)| match &entry.record {
        Record::PartCommitted(part) => Some(part),
        _ => None,
    });
    for part in parts {
        let granted = |worker: &WorkerId| {
            begins
                .iter()
                .any(|begin| begin.worker == worker.as_str() && begin.attempt == part.attempt)
        };
        assert!(granted(&part.worker), "nobody who is honest was granted it: {part:?}");
    }
    wait::until("no upload to be left", wait::RUN_BOUND, || {
        bucket.uploads().is_empty().then_some(())
    });
}
