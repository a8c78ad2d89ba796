//! What an attempt does in the simulation: the steps of the worker's own tasks, with the real
//! kernel in between and each read and write a call to the simulated store, so that anything may
//! happen between two of them.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::future::{self, Either};
use futures::{StreamExt, TryStreamExt, stream};

use muster_common::clock::Clock;
use muster_common::ids::AttemptId;
use muster_common::plan::{BadRecords, PLAN_BYTES_MAX, PinnedRun, PinnedRuns, Plan};
use muster_common::planted::{self, Bug};
use muster_common::store::{Access, BlobUrl, PartAt, Stores};
use muster_common::wire::{
    BadRecord, BlobRef, DamageCause, MergedPart, Outcome, RunAttempt, SortedRun, Work, digest,
};
use muster_common::{Error, ErrorKind, Result, names};
use muster_kernel::error::KernelError;
use muster_kernel::format::{SampleWindow, Torn};
use muster_kernel::merge::{MergeInput, Windows, merge};
use muster_kernel::order::Order;
use muster_kernel::part::PartWriter;
use muster_kernel::proof::{Interval, StreamHash, Sums};
use muster_kernel::run::{Piece, RecordSink, RunFooter, RunIndex, RunWriter, Sink};
use muster_kernel::sort::ChunkSorter;
use muster_kernel::splitters::{self, Splitter, sample};
use muster_worker::arrival::by_run;

use super::core::{Shared, SimClock};
use super::exec::{Flag, lock};

/// Tries of one store call, as the settings have it.
const TRIES_MAX: u32 = 6;
/// The bound of removing one thing with its repeats, and the first pause between two of them, as in
/// the program.
const REMOVAL_TIMEOUT_MS: u64 = 30_000;
const REMOVAL_PAUSE_MS: u64 = 200;
/// Rounds after the first that still take more samples than the one before, as in the program.
const ROUND_MAX: u32 = 2;
/// Indexes that a merge reads side by side, as in the program.
const INDEXES_IN_FLIGHT: usize = 8;
/// Bytes of one part of an upload: small, so that an object has several.
const PART_BYTES: usize = 3000;

/// What an attempt and its worker tell one another.
#[derive(Debug, Default)]
pub struct Signals {
    /// Abandon it.
    pub cancelled: Flag,
    /// The leader knows of its upload: go on.
    pub proceed: Flag,
    /// How far it is, and how far it has to go.
    pub bytes_done: AtomicU64,
    /// See there; 0 until that is known.
    pub bytes_total: AtomicU64,
    /// Whether its upload was reported as opened.
    pub opened: AtomicBool,
    /// The run that a merge found damaged.
    pub damaged: Mutex<Option<AttemptId>>,
    /// The input object that it cannot read, and why.
    pub unreadable: Mutex<Option<(u32, Error)>>,
    /// What it made, until that counts or is removed.
    pub results: Mutex<Vec<Leftover>>,
}

/// Something that an attempt put into the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leftover {
    /// An object.
    Object(BlobUrl),
    /// An open upload.
    Upload(BlobUrl, String),
}

/// Damage that an attempt's own machine does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Harm {
    /// It runs out of memory or disk.
    pub exhausts: bool,
    /// A record changes after it was counted.
    pub bad_memory: bool,
    /// The end of the split is never read.
    pub torn_split: bool,
}

/// One attempt.
pub struct Attempt {
    /// The worker's view of the stores.
    pub stores: Stores,
    /// The worker's clock.
    pub clock: Arc<SimClock>,
    /// For marks.
    pub shared: Shared,
    /// The order.
    pub run: RunAttempt,
    /// See there.
    pub signals: Arc<Signals>,
    /// Bytes that are sorted at once.
    pub sorter_bytes: usize,
    /// See there.
    pub harm: Harm,
}

fn abandoned() -> Error {
    Error::new(ErrorKind::Fenced, "the attempt was abandoned")
}

/// Takes what the kernel writes.
#[derive(Default)]
struct Shipped {
    buffer: Vec<u8>,
}

impl Sink for Shipped {
    type Error = Error;

    fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }

    fn flushed(&mut self) -> Result<()> {
        Ok(())
    }
}

/// The bytes of one piece, at once.
struct Whole(Option<Bytes>);

impl Windows for Whole {
    type Buf = Bytes;
    type Error = Error;

    fn next(&mut self) -> Result<Option<Bytes>> {
        Ok(self.0.take())
    }
}

struct Nowhere;

impl RecordSink for Nowhere {
    type Error = Error;

    fn push(&mut self, _stored: &[u8], _hash: u64) -> Result<()> {
        Ok(())
    }
}

struct Job {
    plan: Plan,
    order: Arc<Order>,
    positions: Vec<u64>,
}

impl Attempt {
    /// Runs to the end; a failed attempt has removed what it made. `opened` is told of a merge's
    /// upload.
    pub async fn conclude(self, opened: impl Fn(String)) -> Outcome {
        let result = match &self.run.work {
            Work::Sample { .. } => self.or_cancelled(self.sample()).await,
            Work::Sort { splitters, .. } => self.sort(splitters.as_ref()).await,
            Work::Merge { splitters, runs } => self.merge(splitters.as_ref(), runs, &opened).await,
        };
        match result {
            Ok(outcome) => outcome,
            Err(error) => {
                remove_all(&self.stores, &self.clock, &self.signals).await;
                let damaged =
                    lock(&self.signals.damaged).take().filter(|_| error.kind == ErrorKind::Corrupt);
                let unreadable = lock(&self.signals.unreadable)
                    .take()
                    .filter(|_| error.kind != ErrorKind::Fenced);
                match (damaged, unreadable) {
                    (Some(run), _) => {
                        let (split, cause) = (run.task.index, DamageCause::Store);
                        Outcome::RunDamaged { split, run, cause, error }
                    }
                    (None, Some((object, error))) => Outcome::InputUnreadable { object, error },
                    (None, None) => Outcome::Failed { error },
                }
            }
        }
    }

    async fn or_cancelled<T>(&self, io: impl Future<Output = Result<T>>) -> Result<T> {
        let cancelled = std::pin::pin!(self.signals.cancelled.wait());
        match future::select(cancelled, std::pin::pin!(io)).await {
            Either::Left(_) => Err(abandoned()),
            Either::Right((result, _)) => result,
        }
    }

    fn check(&self) -> Result<()> {
        if self.signals.cancelled.is_set() { Err(abandoned()) } else { Ok(()) }
    }

    /// A store call, tried again as settings say.
    async fn call<T, F: Future<Output = Result<T>>>(
        &self,
        mut call: impl FnMut() -> F,
    ) -> Result<T> {
        let mut tries = 1;
        loop {
            let error = match call().await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            if error.kind != ErrorKind::Retry || tries >= TRIES_MAX {
                return Err(error);
            }
            let ceiling_ms = (100_u64 << (tries - 1)).min(10_000);
            self.clock.pause(ceiling_ms / 2 + self.clock.random() % (ceiling_ms / 2 + 1)).await;
            tries += 1;
        }
    }

    async fn read(&self, url: &BlobUrl, range: std::ops::Range<u64>) -> Result<Bytes> {
        let store = self.stores.open(url).await?;
        self.call(|| store.read(url.key(), range.clone(), Access::Cached))
            .await
            .map_err(|e| e.at(url))
    }

    async fn fetch(&self, pointer: &BlobRef) -> Result<Bytes> {
        self.call(|| self.stores.get_ref(pointer, PLAN_BYTES_MAX)).await
    }

    async fn job(&self) -> Result<Job> {
        let plan = Plan::from_bytes(&self.fetch(&self.run.plan).await?)?;
        let order = Arc::new(Order::new(&plan.sort)?);
        Ok(Job { positions: plan.positions(), plan, order })
    }

    async fn splitters(&self, pointer: Option<&BlobRef>, unique: bool) -> Result<Vec<Splitter>> {
        let Some(pointer) = pointer else { return Ok(Vec::new()) };
        let decoded = splitters::decode(&self.fetch(pointer).await?)?;
        splitters::validate(&decoded, unique && !planted::is(Bug::SplitEqualKeys))?;
        Ok(decoded)
    }

    /// The attempt's split, without the objects that are to be left out.
    fn split(&self, job: &Job) -> Result<Vec<Interval>> {
        let split = job.plan.splits.get(self.run.attempt.task.index as usize);
        let skip: &[u32] = match &self.run.work {
            Work::Sample { skip } | Work::Sort { skip, .. } => skip,
            Work::Merge { .. } => &[],
        };
        let split = split.ok_or_else(|| Error::invalid("the plan has no such split"))?;
        Ok(split.iter().filter(|interval| !skip.contains(&interval.object)).copied().collect())
    }

    /// An error of reading an input object. Where trying again cannot help, the attempt ends by
    /// naming the object.
    fn unreadable(&self, object: u32, error: Error) -> Error {
        if matches!(error.kind, ErrorKind::NotFound | ErrorKind::Invalid | ErrorKind::Corrupt) {
            lock(&self.signals.unreadable).get_or_insert((object, error.clone()));
        }
        error
    }

    /// Compares size and version of the split's objects with the plan.
    async fn check_pinned(&self, job: &Job) -> Result<()> {
        for interval in self.split(job)? {
            let pinned = &job.plan.objects[interval.object as usize];
            let url: BlobUrl = pinned.url.parse()?;
            let store = self.stores.open(&url).await?;
            let meta = self.call(|| store.head(url.key())).await;
            let meta = meta.map_err(|error| self.unreadable(interval.object, error))?;
            if (meta.bytes, &meta.version) != (pinned.bytes, &pinned.version) {
                // It says more than whatever reading it has met with.
                lock(&self.signals.unreadable).take();
                return Err(Error::invalid(format!(
                    "input changed during the job: {}",
                    pinned.url
                )));
            }
        }
        Ok(())
    }

    async fn sample(&self) -> Result<Outcome> {
        let job = self.job().await?;
        self.check_pinned(&job).await?;
        // Each round takes more, as far as the program goes.
        let count =
            (job.plan.samples_per_split as usize) << self.run.attempt.generation.0.min(ROUND_MAX);
        let mut samples = Vec::new();
        for interval in self.split(&job)? {
            let pinned = &job.plan.objects[interval.object as usize];
            // As far as the first whole record, where the range has none.
            let range = interval.begin..interval.end;
            let bytes = self.read(&pinned.url.parse()?, range.clone()).await;
            let bytes = bytes.map_err(|error| self.unreadable(interval.object, error))?;
            let place = SampleWindow {
                position: job.positions[interval.object as usize] + range.start,
                object_offset: range.start,
                at_object_end: range.end == pinned.bytes,
            };
            samples.extend(sample(&job.order, &bytes, place, count));
        }
        samples.sort_unstable();
        samples.dedup();
        // At most so many of them, evenly spread.
        let found = samples.len();
        let kept = |at: usize| found <= count || (at + 1) * count / found > at * count / found;
        let samples = samples
            .into_iter()
            .enumerate()
            .filter(|(at, _)| kept(*at))
            .map(|(_, sample)| sample)
            .collect();
        Ok(Outcome::Sampled { samples })
    }

    async fn sort(&self, splitters: Option<&BlobRef>) -> Result<Outcome> {
        let prepared = async {
            let job = self.job().await?;
            let splitters = self.splitters(splitters, job.order.select().distinct).await?;
            self.check_pinned(&job).await?;
            Ok((job, splitters))
        };
        let (job, splitters) = self.or_cancelled(prepared).await?;
        if self.harm.exhausts {
            return Err(Error::exhausted("no memory for the chunk"));
        }
        let split = self.split(&job)?;
        self.signals.bytes_total.store(split.iter().map(Interval::len).sum(), Ordering::Relaxed);
        let mut chunks = Chunks::new(&job, &splitters, self.sorter_bytes);
        let mut bad = LeftOut::default();
        let mut intervals = Vec::new();
        let taken = split.len().saturating_sub(usize::from(self.harm.torn_split));
        if taken < split.len() {
            lock(&self.shared).mark("input torn");
        }
        for interval in &split[..taken] {
            let consumed =
                match self.or_cancelled(self.consume(&job, *interval, &mut chunks, &mut bad)).await
                {
                    // An object that ends too early has changed.
                    Err(error) if error.kind == ErrorKind::Corrupt => {
                        self.or_cancelled(self.check_pinned(&job)).await?;
                        return Err(error);
                    }
                    consumed => consumed?,
                };
            intervals.push(Interval {
                object: interval.object,
                begin: consumed.start,
                end: consumed.end,
            });
            self.signals.bytes_done.fetch_add(interval.len(), Ordering::Relaxed);
        }
        let spills = chunks.spills.len();
        let (sorted, index, bytes) = chunks.finish(self.harm.bad_memory)?;
        let input = sorted.plus(&bad.sums);
        if spills > 0 {
            lock(&self.shared).mark("spill");
        }
        let scratch = job.plan.scratch.parse::<BlobUrl>()?;
        let url = scratch.join(&names::run_path(&self.run.attempt));
        self.write_object(&url, &bytes).await?;
        let replica = match &job.plan.replica {
            Some(second) => {
                Some(second.parse::<BlobUrl>()?.join(&names::run_path(&self.run.attempt)))
            }
            None => None,
        };
        if let Some(replica) = &replica {
            self.write_object(replica, &bytes).await?;
        }
        let quarantine = match &bad.lines {
            lines if lines.is_empty() || job.plan.bad_records != BadRecords::Quarantine => None,
            lines => {
                let url = scratch.join(&names::bad_records_path(&self.run.attempt));
                self.write_object(&url, lines).await?;
                lock(&self.shared).mark("quarantine");
                Some(BlobRef {
                    url: url.to_string(),
                    bytes: lines.len() as u64,
                    digest: digest(lines),
                })
            }
        };
        self.or_cancelled(self.check_pinned(&job)).await?;
        let (kept, dropped) = (index.kept(), index.dropped());
        if kept.plus(&dropped) != sorted && !planted::is(Bug::DropSums) {
            return Err(Error::bug(format!(
                "{url} holds {kept} and drops {dropped}, but {sorted} were read"
            )));
        }
        Ok(Outcome::Sorted(Box::new(SortedRun {
            url: url.to_string(),
            bytes: index.file_bytes(),
            index_digest: index.digest(),
            input,
            kept,
            dropped,
            partition_bytes: index.pieces().iter().map(|piece| piece.len).collect(),
            intervals,
            spills: u32::try_from(spills).unwrap_or(u32::MAX),
            replica: replica.map(|url| url.to_string()),
            skipped: bad.sums,
            quarantine,
            bad_records: bad.listed,
        })))
    }

    async fn consume(
        &self,
        job: &Job,
        interval: Interval,
        chunks: &mut Chunks<'_>,
        bad: &mut LeftOut,
    ) -> Result<std::ops::Range<u64>> {
        let pinned = &job.plan.objects[interval.object as usize];
        let url: BlobUrl = pinned.url.parse()?;
        let lenient = job.plan.bad_records != BadRecords::Fail;
        let torn = if lenient { Torn::Taken } else { Torn::Refused };
        let mut cutter = job.order.format().cutter(interval, pinned.bytes, torn)?;
        let mut at = cutter.read_from();
        let mut begun = false;
        let mut end = interval.end;
        while at < end || (!cutter.is_done() && at < pinned.bytes) {
            // Half of it, then the rest, then bits beyond the end for the rest of the last line.
            let until = if at < end {
                (at + (end - at).div_ceil(2)).max(at + 512).min(end)
            } else {
                at + 64
            };
            let range = at..until.min(pinned.bytes);
            let bytes = self.read(&url, range.clone()).await;
            let bytes = bytes.map_err(|error| self.unreadable(interval.object, error))?;
            at = range.end;
            end = end.max(at);
            let cut = cutter.push(&bytes);
            let rest = &bytes[cut.take];
            if !rest.is_empty() && !begun {
                begun = true;
                chunks
                    .sorter
                    .begin(job.positions[interval.object as usize] + cutter.consumed().start);
            }
            chunks.feed(rest)?;
            if cutter.is_done() {
                break;
            }
        }
        loop {
            match chunks.sorter.end_object() {
                Ok(true) => return Ok(cutter.consumed()),
                Ok(false) => chunks.spill()?,
                Err(error @ KernelError::BadRecord { .. }) if lenient => {
                    let (position, held) = chunks.sorter.open_record();
                    let offset = position - job.positions[interval.object as usize];
                    bad.take(interval.object, offset, held, &error);
                    chunks.sorter.discard_open();
                    return Ok(cutter.consumed());
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Uploads a run, or what is kept beside it. Not cut short by a cancel once it is opened, as in
    /// the program: it must be known what stands.
    async fn write_object(&self, url: &BlobUrl, bytes: &[u8]) -> Result<()> {
        self.check()?;
        let store = self.stores.open(url).await?;
        let upload = self.call(|| store.open_upload(url.key())).await?;
        lock(&self.signals.results).push(Leftover::Upload(url.clone(), upload.clone()));
        let tags = self.or_cancelled(self.upload(url, &upload, bytes)).await?;
        self.call(|| store.complete_upload(url.key(), &upload, &tags, bytes.len() as u64, false))
            .await?;
        let mut results = lock(&self.signals.results);
        results.retain(|leftover| !matches!(leftover, Leftover::Upload(of, _) if of == url));
        results.push(Leftover::Object(url.clone()));
        Ok(())
    }

    async fn upload(&self, url: &BlobUrl, upload: &str, bytes: &[u8]) -> Result<Vec<String>> {
        let store = self.stores.open(url).await?;
        let mut tags = Vec::new();
        let parts = bytes.chunks(PART_BYTES);
        let empty: &[u8] = &[];
        let parts: Vec<&[u8]> = if bytes.is_empty() { vec![empty] } else { parts.collect() };
        let mut offset = 0;
        for (index, part) in (0..).zip(parts) {
            let write = || {
                let bytes = Bytes::copy_from_slice(part);
                store.upload_part(url.key(), upload, PartAt { index, offset }, bytes)
            };
            tags.push(self.call(write).await?);
            offset += part.len() as u64;
        }
        Ok(tags)
    }

    async fn merge(
        &self,
        splitters: Option<&BlobRef>,
        runs: &BlobRef,
        opened: &impl Fn(String),
    ) -> Result<Outcome> {
        let index = self.run.attempt.task.index;
        let prepared = async {
            let job = self.job().await?;
            let splitters = self.splitters(splitters, job.order.select().distinct).await?;
            let pinned = PinnedRuns::from_bytes(&self.fetch(runs).await?)?;
            lock(&self.shared).check_merge_begins(&self.run.job, &self.run.attempt, runs, &pinned);
            let runs = pinned.runs.iter().skip(usize::from(planted::is(Bug::LeaveOutRun)));
            let (of, splitters_len) = (self, splitters.len());
            let arrived: Vec<(u32, (PinnedRun, Piece))> = stream::iter(runs.cloned())
                .map(|run| async move {
                    let read = async |copy: &PinnedRun| {
                        of.piece(copy, index, splitters_len).await.map_err(missing_is_corrupt)
                    };
                    let piece = of.of_copies(&run, read).await?;
                    Ok::<_, Error>((run.attempt.task.index, (run, piece)))
                })
                .buffer_unordered(INDEXES_IN_FLIGHT)
                .try_collect()
                .await?;
            let sources: Vec<(PinnedRun, Piece)> =
                by_run(arrived).into_iter().filter(|(_, piece)| piece.len > 0).collect();
            Ok((job, splitters, sources))
        };
        let (job, splitters, sources) = self.or_cancelled(prepared).await?;
        if self.harm.exhausts {
            return Err(Error::exhausted("no memory for the merge"));
        }
        let target =
            job.plan.output.parse::<BlobUrl>()?.join(&names::part_name(index, &job.plan.extension));
        self.check()?;
        let store = self.stores.open(&target).await?;
        let upload = self.call(|| store.open_upload(target.key())).await?;
        lock(&self.signals.results).push(Leftover::Upload(target.clone(), upload.clone()));
        opened(upload.clone());
        self.signals
            .bytes_total
            .store(sources.iter().map(|(_, piece)| piece.len).sum(), Ordering::Relaxed);
        let bounds = (
            index.checked_sub(1).and_then(|below| splitters.get(below as usize)),
            splitters.get(index as usize),
        );
        let mut pieces = Vec::new();
        for (run, piece) in &sources {
            // A piece is doubted alone before it counts, as blocks are in the program.
            let read = async |copy: &PinnedRun| {
                let url: BlobUrl = copy.url.parse()?;
                let range = piece.offset..piece.offset + piece.len;
                let read = self.or_cancelled(self.read_run(copy.attempt, &url, range));
                let bytes = read.await.map_err(missing_is_corrupt)?;
                let alone = vec![MergeInput { windows: Whole(Some(bytes.clone())), piece: *piece }];
                merge(&job.order, bounds, alone, &mut Nowhere)
                    .map_err(|e: Error| e.at(format!("the run {url}")))?;
                Ok(bytes)
            };
            pieces.push(self.of_copies(run, read).await?);
            self.signals.bytes_done.fetch_add(piece.len, Ordering::Relaxed);
        }
        let input = |at: usize| MergeInput {
            windows: Whole(Some(pieces[at].clone())),
            piece: sources[at].1,
        };
        let mut out = PartWriter::new(Shipped::default(), job.order.clone());
        let merged = merge(&job.order, bounds, (0..sources.len()).map(input).collect(), &mut out);
        let tally = merged?;
        let (summary, sink) = out.finish()?;
        let tags = self.or_cancelled(self.upload(&target, &upload, &sink.buffer)).await?;
        let expected =
            sources.iter().fold(Sums::default(), |sums, (_, piece)| sums.plus(&piece.sums));
        if tally.total() != expected || tally.kept != summary.sums {
            return Err(Error::bug("a merge does not conserve"));
        }
        self.or_cancelled(async {
            self.signals.proceed.wait().await;
            Ok(())
        })
        .await?;
        Ok(Outcome::Merged(MergedPart {
            upload,
            tags,
            bytes: summary.bytes,
            checksum: summary.checksum,
            kept: tally.kept,
            dropped: tally.dropped,
            first_key: summary.first_key.unwrap_or_default(),
            last_key: summary.last_key.unwrap_or_default(),
        }))
    }

    /// What is read of a run: of each copy twice, because it may be damaged on its way only; the
    /// run is damaged when none is sound.
    async fn of_copies<T>(
        &self,
        run: &PinnedRun,
        read: impl AsyncFn(&PinnedRun) -> Result<T>,
    ) -> Result<T> {
        let second = run.replica.clone().map(|url| PinnedRun { url, ..run.clone() });
        let mut found = Error::corrupt("no copy");
        for (number, copy) in std::iter::once(run).chain(&second).enumerate() {
            for _ in 0..2 {
                match read(copy).await {
                    Err(error) if error.kind == ErrorKind::Corrupt => found = error,
                    sound => {
                        if number > 0 && sound.is_ok() {
                            lock(&self.shared).mark("replica fall-back");
                        }
                        return sound;
                    }
                }
            }
        }
        self.found_damaged(run);
        Err(found)
    }

    /// A read of a run, which its list must pin.
    async fn read_run(
        &self,
        run: AttemptId,
        url: &BlobUrl,
        range: std::ops::Range<u64>,
    ) -> Result<Bytes> {
        let split = run.task.index;
        lock(&self.shared).check_run_read(
            &self.run.job,
            &self.run.attempt,
            split,
            &url.to_string(),
        );
        self.read(url, range).await
    }

    fn found_damaged(&self, run: &PinnedRun) {
        lock(&self.signals.damaged).get_or_insert(run.attempt);
    }

    /// The piece of a partition, out of the run's own index.
    async fn piece(&self, run: &PinnedRun, partition: u32, splitters: usize) -> Result<Piece> {
        let url: BlobUrl = run.url.parse()?;
        let corrupt = |e: KernelError| Error::from(e).at(&url);
        let footer_at = run.bytes.saturating_sub(RunFooter::LEN as u64);
        let footer = self.read_run(run.attempt, &url, footer_at..run.bytes).await?;
        let footer = RunFooter::decode(&footer, run.bytes).map_err(corrupt)?;
        let bytes = self.read_run(run.attempt, &url, footer.index_offset()..footer_at).await?;
        let index = RunIndex::decode(&bytes, &footer).map_err(corrupt)?;
        if footer.index_digest() != run.index_digest {
            return Err(Error::corrupt(format!(
                "{url}: its index is not the one that was committed"
            )));
        }
        let fits = index.partitions() as usize == splitters + 1;
        let piece = index.piece(partition).filter(|_| fits);
        piece.ok_or_else(|| {
            Error::corrupt(format!("the run {url} has {} partitions", index.partitions()))
        })
    }
}

fn missing_is_corrupt(error: Error) -> Error {
    match error.kind {
        ErrorKind::NotFound => Error::corrupt(format!("the run is missing: {}", error.message)),
        _ => error,
    }
}

/// Removes what an attempt made, within the bound of the program; what cannot be removed stays
/// noted for the next try, and is left to the leader after that.
pub async fn remove_all(stores: &Stores, clock: &SimClock, signals: &Signals) {
    let list = std::mem::take(&mut *lock(&signals.results));
    for leftover in list {
        let removed = {
            let removal = std::pin::pin!(remove(stores, clock, &leftover));
            matches!(
                future::select(removal, clock.pause(REMOVAL_TIMEOUT_MS)).await,
                Either::Left((Ok(()), _))
            )
        };
        if !removed {
            lock(&signals.results).push(leftover);
        }
    }
}

async fn remove(stores: &Stores, clock: &SimClock, leftover: &Leftover) -> Result<()> {
    let (Leftover::Object(url) | Leftover::Upload(url, _)) = leftover;
    let store = stores.open(url).await?;
    let mut pause_ms = REMOVAL_PAUSE_MS;
    loop {
        let removed = match leftover {
            Leftover::Object(url) => store.delete(url.key()).await,
            Leftover::Upload(url, upload) => store.abort_upload(url.key(), upload).await,
        };
        match removed {
            Err(error) if error.kind.is_passing() => clock.pause(pause_ms).await,
            removed => return removed,
        }
        pause_ms = pause_ms.saturating_mul(2);
    }
}

/// Malformed records of a split: here only the torn ends of objects.
#[derive(Default)]
struct LeftOut {
    sums: Sums,
    listed: Vec<BadRecord>,
    lines: Vec<u8>,
}

impl LeftOut {
    fn take(&mut self, object: u32, offset: u64, held: &[u8], why: &KernelError) {
        let mut hash = StreamHash::default();
        hash.update(held);
        self.sums.add_hashed(held.len(), hash.digest());
        let record =
            BadRecord { object, offset, bytes: held.len() as u64, reason: why.to_string() };
        self.lines.extend(format!("{object} {offset} {held:02x?}\n").into_bytes());
        self.listed.push(record);
    }
}

/// A split on its way through the sorter; spills are runs in memory.
struct Chunks<'a> {
    job: &'a Job,
    splitters: &'a [Splitter],
    sorter: ChunkSorter,
    spills: Vec<(RunIndex, Bytes)>,
    input: Sums,
}

impl<'a> Chunks<'a> {
    fn new(job: &'a Job, splitters: &'a [Splitter], sorter_bytes: usize) -> Self {
        let sorter = ChunkSorter::new(job.order.clone(), sorter_bytes);
        Self { job, splitters, sorter, spills: Vec::new(), input: Sums::default() }
    }

    fn feed(&mut self, mut rest: &[u8]) -> Result<()> {
        while !rest.is_empty() {
            let fed = self.sorter.feed(rest)?;
            rest = &rest[fed..];
            if !rest.is_empty() {
                self.spill()?;
            }
        }
        Ok(())
    }

    fn spill(&mut self) -> Result<()> {
        let mut out = RunWriter::new(Shipped::default(), self.job.order.frame());
        let chunk = self.sorter.sort();
        self.input.merge(&chunk.input_sums());
        chunk.write(self.splitters, &mut out)?;
        self.sorter.reset();
        let (index, sink) = out.finish()?;
        self.spills.push((index, sink.buffer.into()));
        Ok(())
    }

    fn finish(mut self, bad_memory: bool) -> Result<(Sums, RunIndex, Vec<u8>)> {
        if self.spills.is_empty() || !self.sorter.is_empty() {
            self.spill()?;
        }
        let order = &self.job.order;
        let mut out = Forgetful {
            out: RunWriter::new(Shipped::default(), order.frame()),
            forgets: bad_memory,
        };
        for (index, _) in &self.spills {
            out.out.add_dropped(&index.dropped());
        }
        let mut dropped = Sums::default();
        for partition in 0..=self.splitters.len() {
            out.out.begin_partition()?;
            let inputs = self.spills.iter().filter_map(|(index, bytes)| {
                let piece =
                    index.piece(u32::try_from(partition).ok()?).filter(|piece| piece.len > 0)?;
                let at = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX);
                let bytes = bytes.slice(at(piece.offset)..at(piece.offset + piece.len));
                Some(MergeInput { windows: Whole(Some(bytes)), piece })
            });
            let bounds = (
                partition.checked_sub(1).and_then(|below| self.splitters.get(below)),
                self.splitters.get(partition),
            );
            dropped.merge(&merge(order, bounds, inputs.collect(), &mut out)?.dropped);
        }
        out.out.add_dropped(&dropped);
        let (index, sink) = out.out.finish()?;
        Ok((self.input, index, sink.buffer))
    }
}

/// Writes a run, and loses one record where memory is bad.
struct Forgetful {
    out: RunWriter<Shipped>,
    forgets: bool,
}

impl RecordSink for Forgetful {
    type Error = Error;

    fn push(&mut self, stored: &[u8], hash: u64) -> Result<()> {
        if std::mem::take(&mut self.forgets) {
            return Ok(());
        }
        RecordSink::push(&mut self.out, stored, hash)
    }
}
