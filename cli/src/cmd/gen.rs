//! `muster gen`: gensort's records, made in parallel, to files or objects.

use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use muster_kernel::gensort::{Generator, Mode, RECORD_BYTES};
use muster_platform::buffer::BufferPool;
use muster_platform::clock::{Clock, SystemClock};
use muster_platform::config::{Config, Profile};
use muster_platform::store::{BlobUrl, Blobs, PartAt};
use muster_platform::stores::Stores;
use muster_protocol::{Error, Result};
use serde::Serialize;

use crate::args::{GenArgs, LogFormat};
use crate::cmd;
use crate::exit::Exit;
use crate::output;
use crate::signals::EndSignals;

/// Records of one part: 8,192,000 bytes, a multiple of the alignment that direct I/O asks for.
const PART_RECORDS: u64 = 81_920;
/// Parts larger than this are for objects beyond what the part count of S3 allows.
const PARTS_MAX: u64 = 9_000;
/// Idle buffers to keep: what the parts in flight use.
const IDLE_BYTES_MAX: usize = 256 << 20;
/// Small files written at once.
const FILES_AT_ONCE: usize = 4;

#[derive(Serialize)]
struct Summary {
    records: u64,
    bytes: u64,
    files: u64,
    output: String,
    seconds: f64,
}

/// One file's share of the records.
struct Share {
    url: BlobUrl,
    first: u64,
    records: u64,
}

/// Generates the records.
pub(crate) async fn run(args: GenArgs) -> Result<(), Exit> {
    cmd::log(LogFormat::Text, "warn");
    let mode = if args.ascii { Mode::Ascii } else { Mode::Binary };
    let generator =
        Generator::new(mode, args.skew, args.duplicates).map_err(|e| Exit::usage(e.to_string()))?;
    let last = args.seed_record.checked_add(args.records);
    last.ok_or_else(|| Exit::usage("the record numbers would exceed 64 bits"))?;
    let url = cmd::blob_url(&args.output)?;
    let clock = SystemClock::default();
    let limits = Config::profile(Profile::Production)?.store;
    let stores = Stores::new(BufferPool::new(IDLE_BYTES_MAX), &limits);
    let store = stores.open(&url).await?;
    let shares = shares(&args, &url);
    let files = shares.len() as u64;
    let at_once = if files > 1 { FILES_AT_ONCE } else { 1 };
    // From here on no signal kills: an upload that was opened is given up.
    let mut signals = EndSignals::watch();
    crate::signals::outlive_file_size_limit();
    let writer = Writer {
        store: &*store,
        buffers: stores.buffers(),
        generator,
        ended: AtomicBool::new(false),
    };
    let written = async {
        let all = stream::iter(shares.iter().map(|share| writer.write_file(share)))
            .buffer_unordered(at_once);
        // Each ends by itself, so that none leaves an upload open.
        let ends: Vec<Result<()>> = all.collect().await;
        ends.into_iter().collect::<Result<()>>()
    };
    tokio::pin!(written);
    tokio::select! {
        done = &mut written => done?,
        _ = signals.next() => {
            writer.ended.store(true, Ordering::Relaxed);
            return Err(tokio::select! {
                _ = written => Exit::interrupted(format!("interrupted; nothing unfinished is left \
                    in {url}")),
                _ = signals.next() => Exit::interrupted(format!("interrupted twice; an unfinished \
                    upload may be left in {url}")),
            });
        }
    }
    report(&args, &url, files, clock.now_ms());
    Ok(())
}

/// Cuts the records into files as evenly as whole records allow.
fn shares(args: &GenArgs, url: &BlobUrl) -> Vec<Share> {
    let Some(files) = args.files.map(u64::from) else {
        return vec![Share { url: url.clone(), first: args.seed_record, records: args.records }];
    };
    let (each, longer) = (args.records / files, args.records % files);
    let extension = if args.ascii { "txt" } else { "bin" };
    let mut first = args.seed_record;
    (0..files)
        .map(|file| {
            let records = each + u64::from(file < longer);
            let share =
                Share { url: url.join(&format!("gen-{file:05}.{extension}")), first, records };
            first += records;
            share
        })
        .collect()
}

/// Writes files. One that has failed or was told to end lets the others end, and leaves no upload
/// behind.
struct Writer<'a> {
    store: &'a dyn Blobs,
    buffers: &'a BufferPool,
    generator: Generator,
    /// Nothing more is begun.
    ended: AtomicBool,
}

impl Writer<'_> {
    fn go_on(&self) -> Result<()> {
        if self.ended.load(Ordering::Relaxed) {
            Err(Error::invalid("it was ended"))
        } else {
            Ok(())
        }
    }

    async fn write_file(&self, share: &Share) -> Result<()> {
        self.go_on()?;
        let small = share.records <= PART_RECORDS;
        let written =
            if small { self.write_small(share).await } else { self.write_large(share).await };
        if written.is_err() {
            self.ended.store(true, Ordering::Relaxed);
        }
        written.map_err(|e| e.at(&share.url))
    }

    async fn write_small(&self, share: &Share) -> Result<()> {
        let mut bytes = vec![0; share.records as usize * RECORD_BYTES];
        self.generator.fill(share.first.into(), &mut bytes);
        self.store.put(share.url.key(), Bytes::from(bytes)).await
    }

    async fn write_large(&self, share: &Share) -> Result<()> {
        let (store, key) = (self.store, share.url.key());
        let part_records = PART_RECORDS * share.records.div_ceil(PART_RECORDS * PARTS_MAX);
        let parts = share.records.div_ceil(part_records);
        let upload = store.open_upload(key).await?;
        let at_once = 2 * cmd::cores() as usize;
        let part = |index: u64| self.write_part(share, &upload, (index, part_records));
        let tags: Result<Vec<String>> =
            stream::iter((0..parts).map(part)).buffered(at_once).try_collect().await;
        let total = share.records * RECORD_BYTES as u64;
        let done = match tags {
            Ok(tags) => store.complete_upload(key, &upload, &tags, total, false).await.map(drop),
            Err(error) => Err(error),
        };
        if done.is_err() {
            // The first error is the one to report; what an abort cannot remove, the store's own
            // rules will.
            drop(store.abort_upload(key, &upload).await);
        }
        done
    }

    async fn write_part(
        &self,
        share: &Share,
        upload: &str,
        (index, part_records): (u64, u64),
    ) -> Result<String> {
        self.go_on()?;
        let skipped = index * part_records;
        let bytes = part_records.min(share.records - skipped) as usize * RECORD_BYTES;
        let (mut buffer, first) = (self.buffers.take(bytes), u128::from(share.first + skipped));
        let generator = self.generator;
        let filled = tokio::task::spawn_blocking(move || {
            let vec = buffer.vec_mut();
            let start = vec.len();
            vec.resize(start + bytes, 0);
            generator.fill(first, &mut vec[start..]);
            buffer
        });
        let buffer =
            filled.await.map_err(|e| Error::bug(format!("a generator ended early: {e}")))?;
        let at = PartAt { index: index as u32, offset: skipped * RECORD_BYTES as u64 };
        self.store.upload_part(share.url.key(), upload, at, buffer.into()).await
    }
}

fn report(args: &GenArgs, url: &BlobUrl, files: u64, millis: u64) {
    let bytes = args.records * RECORD_BYTES as u64;
    if args.json {
        let seconds = millis as f64 / 1000.0;
        output::json(&Summary {
            records: args.records,
            bytes,
            files,
            output: url.to_string(),
            seconds,
        });
    } else {
        let (count, size) = (output::grouped(args.records), output::bytes(bytes));
        let (time, rate) = (output::seconds(millis), output::rate(bytes, millis));
        output::line(&format!(
            "wrote {count} records, {size}, {files} file(s) to {url} in {time} ({rate})"
        ));
    }
}
