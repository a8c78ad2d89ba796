//! `muster verify`: order, count, checksum and duplicates as valsort reports them, in parallel over
//! ranges, from files or objects.

use std::ffi::OsString;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use muster_kernel::format::{Format, Frame, RECORD_BYTES_MAX, Torn};
use muster_kernel::order::Order;
use muster_kernel::proof::{Interval, Sums};
use muster_kernel::spec::{KeyDef, SortSpec};
use muster_kernel::split::plan_splits;
use muster_kernel::valsort::{KeyOf, Summary, Validator};
use muster_platform::buffer::BufferPool;
use muster_platform::config::{Config, Profile};
use muster_platform::store::{Access, BlobUrl, Blobs};
use muster_platform::stores::Stores;
use muster_protocol::api::Manifest;
use muster_protocol::names;
use muster_protocol::plan::OBJECTS_MAX;
use muster_protocol::{Error, ErrorKind, Result};
use serde::Serialize;

use crate::args::{LogFormat, VerifyArgs};
use crate::cmd::{self, order};
use crate::exit::Exit;
use crate::output;

/// Bytes that one task looks at.
const RANGE_BYTES: u64 = 32 << 20;
/// Bytes of one read.
const READ_BYTES: u64 = 4 << 20;
/// gensort's format, the default.
const GENSORT: Format = Format::fixed(100);
/// Largest manifest that is read.
const MANIFEST_BYTES_MAX: u64 = 64 << 20;
const IDLE_BYTES_MAX: usize = 64 << 20;

/// The keys of an order, for the validator.
#[derive(Clone)]
struct Keys(Arc<Order>);

impl KeyOf for Keys {
    fn key<'a>(&self, record: &'a [u8], scratch: &'a mut Vec<u8>) -> &'a [u8] {
        self.0.key(record, scratch)
    }
}

/// One object to look at.
struct Input {
    store: Arc<dyn Blobs>,
    url: BlobUrl,
    bytes: u64,
}

/// What a range, or all of them, turned out to be.
#[derive(Default)]
struct Checked {
    summary: Summary,
    sums: Sums,
}

#[derive(Serialize)]
struct Report {
    records: u64,
    bytes: u64,
    checksum: String,
    duplicate_keys: u64,
    unordered: u64,
    first_unordered: Option<u64>,
    in_order: bool,
    hash: String,
    matches_manifest: Option<bool>,
    order_from: OrderFrom,
}

/// Checks, prints, and fails where the data is not in order or not that of the manifest.
pub(crate) async fn run(args: VerifyArgs) -> Result<(), Exit> {
    cmd::log(LogFormat::Text, "warn");
    let limits = Config::profile(Profile::Production)?.store;
    let stores = Stores::new(BufferPool::new(IDLE_BYTES_MAX), &limits);
    let manifest = match &args.against {
        Some(text) => Some(read_manifest(&stores, &cmd::blob_url(text)?).await?),
        None if order::is_given(&args.order) => None,
        None => own_manifest(&stores, &args.paths).await?,
    };
    let (spec, from) = spec(&args, manifest.as_ref())?;
    if !args.json && from != OrderFrom::Options {
        output::error_line(&format!("muster: {}", from.told(&spec)));
    }
    let inputs = find_inputs(&stores, &args.paths).await?;
    let checked = check_all(&inputs, &spec).await?;
    let matches = manifest.as_ref().map(|manifest| manifest.sums == checked.sums);
    print(&args, &checked, matches, from);
    let held = if !checked.summary.in_order() {
        Err(Exit::failed("the data is not in order"))
    } else if let Some(manifest) = manifest.filter(|manifest| manifest.sums != checked.sums) {
        Err(Exit::failed(differs(&manifest, &checked.sums)))
    } else {
        Ok(())
    };
    if args.json { held.map_err(Exit::told) } else { held }
}

fn differs(manifest: &Manifest, seen: &Sums) -> String {
    let Sums { records, bytes, hash } = manifest.sums;
    let want = format!("{records} records, {bytes} bytes, checksum {hash:x}");
    format!(
        "the data is not that of job {}: it has {} records, {} bytes, checksum {:x}; the manifest \
            says {want}",
        manifest.job, seen.records, seen.bytes, seen.hash
    )
}

/// Who said what order is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum OrderFrom {
    Options,
    Manifest,
    Default,
}

impl OrderFrom {
    /// What is checked, for who did not say it.
    fn told(self, spec: &SortSpec) -> String {
        let format = &spec.format;
        match (self, spec.keys.len()) {
            (Self::Default, _) => {
                format!(
                    "checking {format} with the key 0:10, as gensort makes them; for text say \
                        --format lines"
                )
            }
            (_, 0) => format!("checking {format}, as _SUCCESS says"),
            (_, keys) => format!("checking {format} by {keys} key(s), as _SUCCESS says"),
        }
    }
}

/// The order to check: the given one, else the manifest's, else gensort's.
fn spec(args: &VerifyArgs, manifest: Option<&Manifest>) -> Result<(SortSpec, OrderFrom), Exit> {
    let given = &args.order;
    if let (Some(manifest), false) = (manifest, order::is_given(given)) {
        return Ok((manifest.sort.clone(), OrderFrom::Manifest));
    }
    let auto = match manifest {
        _ if order::is_of_lines(given) => Format::lines(b'\n'),
        Some(manifest) => manifest.sort.format.clone(),
        None => GENSORT,
    };
    let mut spec = order::spec(given, auto)?;
    if spec.format == GENSORT && spec.keys.is_empty() {
        spec.keys = vec![KeyDef::Range { offset: 0, len: 10 }];
    }
    Ok((spec, if order::is_given(given) { OrderFrom::Options } else { OrderFrom::Default }))
}

/// The `_SUCCESS` of the one folder that is to be checked, if muster wrote one there.
async fn own_manifest(stores: &Stores, paths: &[OsString]) -> Result<Option<Manifest>, Exit> {
    let [path] = paths else { return Ok(None) };
    let url = cmd::blob_url(path)?;
    let store = stores.open(&url).await?;
    if !url.key().ends_with('/') && store.head(url.key()).await.is_ok() {
        return Ok(None);
    }
    let url = url.join(names::SUCCESS);
    match read_manifest(stores, &url).await {
        Ok(manifest) => Ok(Some(manifest)),
        Err(error) if error.kind == ErrorKind::NotFound => Ok(None),
        // Other programs write such files, too, and leave them empty.
        Err(error) if error.kind == ErrorKind::Invalid => {
            output::error_line(&format!("muster: {url} is passed over: {error}"));
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

async fn read_manifest(stores: &Stores, url: &BlobUrl) -> Result<Manifest> {
    let store = stores.open(url).await?;
    let read = async {
        let meta = store.head(url.key()).await?;
        if meta.bytes > MANIFEST_BYTES_MAX {
            return Err(Error::invalid(format!(
                "{} bytes are too many for a manifest",
                meta.bytes
            )));
        }
        let bytes = store.read(url.key(), 0..meta.bytes, Access::Cached).await?;
        serde_json::from_slice(&bytes).map_err(|e| Error::invalid(format!("not a manifest: {e}")))
    };
    read.await.map_err(|e: Error| e.at(url))
}

async fn find_inputs(stores: &Stores, paths: &[OsString]) -> Result<Vec<Input>, Exit> {
    let mut inputs = Vec::new();
    for text in paths {
        let url = cmd::blob_url(text)?;
        let store = stores.open(&url).await?;
        match store.head(url.key()).await {
            Ok(meta) if !url.key().ends_with('/') => {
                inputs.push(Input { store, url, bytes: meta.bytes });
            }
            Err(error) if error.kind != ErrorKind::NotFound => return Err(error.into()),
            Ok(_) | Err(_) => {
                let before = inputs.len();
                for meta in store.list(url.key(), OBJECTS_MAX).await? {
                    let relative = meta
                        .key
                        .strip_prefix(url.key())
                        .unwrap_or(&meta.key)
                        .trim_start_matches('/');
                    if names::is_input_name(relative) {
                        inputs.push(Input {
                            store: store.clone(),
                            url: url.with_key(meta.key),
                            bytes: meta.bytes,
                        });
                    }
                }
                if inputs.len() == before
                    && store.list(url.key(), 1).await.is_ok_and(|found| found.is_empty())
                {
                    return Err(Exit::failed(format!("{url}: nothing is there")));
                }
            }
        }
    }
    Ok(inputs)
}

async fn check_all(inputs: &[Input], spec: &SortSpec) -> Result<Checked> {
    let order = Arc::new(Order::new(spec)?);
    let sizes: Vec<u64> = inputs.iter().map(|input| input.bytes).collect();
    let ranges: Vec<Interval> =
        plan_splits(&sizes, &spec.format, RANGE_BYTES).into_iter().flatten().collect();
    let checks =
        ranges.into_iter().map(|range| {
            let input = &inputs[range.object as usize];
            let keys = Keys(order.clone());
            async move {
                check_range(input, range, &spec.format, keys).await.map_err(|e| e.at(&input.url))
            }
        });
    let join = |all: Checked, next: Checked| async move {
        Ok(Checked { summary: all.summary.join(next.summary), sums: all.sums.plus(&next.sums) })
    };
    stream::iter(checks)
        .buffered(2 * cmd::cores() as usize)
        .try_fold(Checked::default(), join)
        .await
}

async fn check_range(
    input: &Input,
    range: Interval,
    format: &Format,
    keys: Keys,
) -> Result<Checked> {
    let mut cutter = format.cutter(range, input.bytes, Torn::Refused)?;
    let mut work = RangeCheck {
        frame: format.frame(),
        validator: Validator::new(keys),
        sums: Sums::default(),
        partial: Vec::new(),
    };
    let mut at = cutter.read_from();
    while !cutter.is_done() && at < input.bytes {
        let end = (at + READ_BYTES).min(input.bytes);
        let bytes = input.store.read(input.url.key(), at..end, Access::Cached).await?;
        at = end;
        let cut = cutter.push(&bytes);
        let taken = bytes.slice(cut.take);
        work = tokio::task::spawn_blocking(move || work.feed(&taken))
            .await
            .map_err(|e| Error::bug(format!("a check ended early: {e}")))??;
    }
    work.finish()
}

/// The check of one range, fed window by window.
struct RangeCheck {
    frame: Frame,
    validator: Validator<Keys>,
    sums: Sums,
    /// A record that the last window cut.
    partial: Vec<u8>,
}

impl RangeCheck {
    fn record(&mut self, stored: &[u8]) {
        let body = self.frame.body(stored);
        self.validator.record(body);
        self.sums.add(body);
    }

    fn feed(mut self, mut bytes: &[u8]) -> Result<Self> {
        if !self.partial.is_empty() {
            let missing = self.frame.end(self.partial.len(), bytes);
            let (head, rest) = bytes.split_at(missing.unwrap_or(bytes.len()));
            self.partial.extend_from_slice(head);
            bytes = rest;
            if missing.is_some() {
                let whole = std::mem::take(&mut self.partial);
                self.record(&whole);
            }
        }
        while let Some(len) = self.frame.end(0, bytes) {
            let (stored, rest) = bytes.split_at(len);
            self.record(stored);
            bytes = rest;
        }
        self.partial.extend_from_slice(bytes);
        if self.partial.len() as u64 > RECORD_BYTES_MAX {
            return Err(Error::invalid(format!(
                "a record is longer than {RECORD_BYTES_MAX} bytes"
            )));
        }
        Ok(self)
    }

    fn finish(mut self) -> Result<Checked> {
        if !self.partial.is_empty() {
            let last = std::mem::take(&mut self.partial);
            self.validator.record(&last);
            self.sums.add(&last);
        }
        Ok(Checked { summary: self.validator.finish(), sums: self.sums })
    }
}

fn print(args: &VerifyArgs, checked: &Checked, matches: Option<bool>, order_from: OrderFrom) {
    let summary = &checked.summary;
    if args.json {
        output::json(&Report {
            records: summary.records,
            bytes: summary.bytes,
            checksum: summary.checksum.to_string(),
            duplicate_keys: summary.duplicate_keys,
            unordered: summary.unordered,
            first_unordered: summary.first_unordered,
            in_order: summary.in_order(),
            hash: format!("{:x}", checked.sums.hash),
            matches_manifest: matches,
            order_from,
        });
        return;
    }
    output::line(&summary.to_string());
    if matches == Some(true) {
        output::line("MATCH - count, bytes and checksum are those of the manifest");
    }
}
