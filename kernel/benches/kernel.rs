//! What a core does, in bytes a second.
//!
//! Each group states the question it answers and checks its own result. Data is 100-byte ASCII
//! records of gensort (as lines and as fixed records), the same with skewed keys, log lines that
//! begin alike, and a file of few distinct lines.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use muster_kernel::error::KernelError;
use muster_kernel::format::{Format, Frame};
use muster_kernel::gensort::{Generator, Mode};
use muster_kernel::merge::{MergeInput, Windows, merge};
use muster_kernel::order::Order;
use muster_kernel::part::PartWriter;
use muster_kernel::proof::{Sums, record_hash};
use muster_kernel::run::{Piece, RunIndex, RunWriter, Sink};
use muster_kernel::sort::ChunkSorter;
use muster_kernel::spec::{KeyDef, SortSpec};

const RECORDS: usize = 1_000_000;
const LINES: Format = Format::lines(b'\n');

/// A ring of one buffer: what is written is dropped, its sums and length remain with the writer.
#[derive(Default)]
struct Discard(Vec<u8>);

impl Sink for Discard {
    type Error = KernelError;

    fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }

    fn flushed(&mut self) -> Result<(), KernelError> {
        if self.0.len() >= 1 << 20 {
            self.0.clear();
        }
        Ok(())
    }
}

struct Keep(Vec<u8>);

impl Sink for Keep {
    type Error = KernelError;

    fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }

    fn flushed(&mut self) -> Result<(), KernelError> {
        Ok(())
    }
}

/// Windows of 256 KiB over bytes in memory.
struct Slices<'a>(&'a [u8]);

impl<'a> Windows for Slices<'a> {
    type Buf = &'a [u8];
    type Error = KernelError;

    fn next(&mut self) -> Result<Option<&'a [u8]>, KernelError> {
        let (window, rest) = self.0.split_at(self.0.len().min(256 << 10));
        self.0 = rest;
        Ok((!window.is_empty()).then_some(window))
    }
}

struct Data {
    name: &'static str,
    spec: SortSpec,
    bytes: Vec<u8>,
}

fn gensort(skew: bool) -> Vec<u8> {
    let mut bytes = vec![0; RECORDS * 100];
    Generator::new(Mode::Ascii, skew, 0).expect("no duplicates").fill(0, &mut bytes);
    bytes
}

fn log_lines() -> Vec<u8> {
    let mut state = 1u64;
    let mut bytes = Vec::with_capacity(RECORDS * 100);
    while bytes.len() < RECORDS * 100 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let (seconds, host) = (state >> 33, state >> 50);
        let line = format!(
            "2026-01-{:02}T{:02}:{:02}:{:02}.{:03}Z host-{:03} INFO request served \
                path=/api/v1/items status=200 bytes=1234\n",
            seconds / 86_400_000 % 28 + 1,
            seconds / 3_600_000 % 24,
            seconds / 60_000 % 60,
            seconds / 1000 % 60,
            seconds % 1000,
            host % 100
        );
        bytes.extend_from_slice(line.as_bytes());
    }
    bytes
}

fn few_distinct() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(RECORDS * 100);
    for number in 0..RECORDS as u64 {
        bytes.extend_from_slice(
            format!("{:099}\n", number.wrapping_mul(0x9E37_79B9) >> 7 & 63).as_bytes(),
        );
    }
    bytes
}

fn data() -> Vec<Data> {
    let lines = SortSpec::new(LINES);
    let fixed = SortSpec {
        keys: vec![KeyDef::Range { offset: 0, len: 10 }],
        ..SortSpec::new(Format::fixed(100))
    };
    let field = SortSpec {
        keys: vec![LINES.rules().parse_key("2,2").expect("a valid key")],
        ..lines.clone()
    };
    vec![
        Data { name: "ascii lines", spec: lines.clone(), bytes: gensort(false) },
        Data { name: "ascii fixed", spec: fixed.clone(), bytes: gensort(false) },
        Data { name: "skewed fixed", spec: fixed, bytes: gensort(true) },
        Data { name: "skewed lines", spec: lines.clone(), bytes: gensort(true) },
        Data { name: "log lines", spec: lines.clone(), bytes: log_lines() },
        Data { name: "few distinct", spec: lines, bytes: few_distinct() },
        Data { name: "log lines -k2,2", spec: field, bytes: log_lines() },
    ]
}

fn sorted_run<S: Sink<Error = KernelError>>(
    sorter: &mut ChunkSorter,
    bytes: &[u8],
    sink: S,
    format: &Format,
) -> (RunIndex, S) {
    sorter.begin(0);
    assert_eq!(sorter.feed(bytes), Ok(bytes.len()), "one chunk");
    assert_eq!(sorter.end_object(), Ok(true));
    let chunk = sorter.sort();
    let mut writer = RunWriter::new(sink, format.frame());
    let tally = chunk.write(&[], &mut writer).expect("a sink that takes all");
    assert_eq!(tally.kept, chunk.input_sums());
    let done = writer.finish().expect("a sink that takes all");
    sorter.reset();
    done
}

/// How fast does one core make a run of what it has in memory: feed, sort, write?
fn run_generation(c: &mut Criterion) {
    let mut group = c.benchmark_group("run generation");
    group.sample_size(10).warm_up_time(Duration::from_millis(500));
    for data in data() {
        let order = Arc::new(Order::new(&data.spec).expect("a valid spec"));
        let mut sorter = ChunkSorter::new(order, 512 << 20);
        group.throughput(Throughput::Bytes(data.bytes.len() as u64));
        group.bench_function(BenchmarkId::from_parameter(data.name), |b| {
            b.iter(|| {
                sorted_run(&mut sorter, &data.bytes, Discard::default(), &data.spec.format).0
            });
        });
    }
    group.finish();
}

/// How fast does one core merge k runs into a part, all checks included?
fn merging(c: &mut Criterion) {
    let mut group = c.benchmark_group("merge");
    group.sample_size(10).warm_up_time(Duration::from_millis(500));
    for data in data() {
        let order = Arc::new(Order::new(&data.spec).expect("a valid spec"));
        for k in [8, 16, 64] {
            let runs = runs(&order, &data, k);
            group.throughput(Throughput::Bytes(data.bytes.len() as u64));
            group.bench_function(BenchmarkId::new(data.name, k), |b| {
                b.iter(|| merged(&order, &runs));
            });
        }
    }
    group.finish();
}

fn runs(order: &Arc<Order>, data: &Data, k: usize) -> Vec<(Vec<u8>, Piece)> {
    let mut sorter = ChunkSorter::new(order.clone(), 512 << 20);
    let mut rest = &data.bytes[..];
    let mut runs = Vec::new();
    for left in (1..=k).rev() {
        let share = rest.len() / left;
        let len = match data.spec.format.frame() {
            Frame::Fixed(len) => share - share % len as usize,
            Frame::Terminated(terminator) => {
                share + memchr::memchr(terminator, &rest[share - 1..]).expect("a last terminator")
            }
        };
        let (part, later) = rest.split_at(len);
        rest = later;
        let (index, sink) = sorted_run(&mut sorter, part, Keep(Vec::new()), &data.spec.format);
        runs.push((sink.0, index.piece(0).expect("one partition")));
    }
    runs
}

fn merged(order: &Arc<Order>, runs: &[(Vec<u8>, Piece)]) -> Sums {
    let inputs = runs
        .iter()
        .map(|(bytes, piece)| MergeInput {
            windows: Slices(&bytes[..piece.len as usize]),
            piece: *piece,
        })
        .collect();
    let mut part = PartWriter::new(Discard::default(), order.clone());
    let tally = merge(order, (None, None), inputs, &mut part).expect("sorted pieces");
    let (summary, _) = part.finish().expect("a sink that takes all");
    assert_eq!(summary.sums, tally.kept);
    summary.sums
}

/// Which hash should name a record of 98 bytes, and what does the sum of the sums cost? CRC-32 is
/// too short for P1 and shown for comparison, as is the 128-bit variant.
fn record_hashes(c: &mut Criterion) {
    let bytes = gensort(false);
    let bytes = &bytes[..1 << 20];
    let mut group = c.benchmark_group("record hash");
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    let mut bench = |name: &str, hash: fn(&[u8]) -> u64| {
        group.bench_function(name, |b| {
            b.iter(|| {
                bytes
                    .chunks_exact(98)
                    .fold(0u64, |sum, record| sum.wrapping_add(hash(black_box(record))))
            });
        });
    };
    bench("xxh3-64", record_hash);
    bench("xxh3-128", |record| xxhash_rust::xxh3::xxh3_128(record) as u64);
    bench("crc32", |record| u64::from(crc32fast::hash(record)));
    group.finish();
}

/// What do block checksums cost?
fn block_checksums(c: &mut Criterion) {
    let bytes = gensort(false);
    let bytes = &bytes[..16 << 20];
    let mut group = c.benchmark_group("block checksum");
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    let mut bench = |name: &str, hash: fn(&[u8]) -> u64| {
        group.bench_function(name, |b| {
            b.iter(|| bytes.chunks(64 << 10).fold(0u64, |sum, block| sum ^ hash(black_box(block))));
        });
    };
    bench("xxh3-64", |block| xxhash_rust::xxh3::xxh3_64_with_seed(block, 7));
    bench("crc32", |block| u64::from(crc32fast::hash(block)));
    group.finish();
}

/// Where does the time of a run go: into taking bytes in, into sorting, or into writing?
fn phases(c: &mut Criterion) {
    let mut group = c.benchmark_group("phases of a run");
    group
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(3));
    for data in data() {
        group.throughput(Throughput::Bytes(data.bytes.len() as u64));
        let order = Arc::new(Order::new(&data.spec).expect("a valid spec"));
        let mut sorter = ChunkSorter::new(order, 512 << 20);
        for phase in ["feed", "sort", "write"] {
            group.bench_function(BenchmarkId::new(data.name, phase), |b| {
                b.iter_custom(|rounds| {
                    (0..rounds).map(|_| time_of(phase, &mut sorter, &data)).sum()
                });
            });
        }
    }
    group.finish();
}

#[allow(clippy::disallowed_methods)] // A benchmark reads the clock.
fn time_of(phase: &str, sorter: &mut ChunkSorter, data: &Data) -> Duration {
    let start = Instant::now();
    sorter.begin(0);
    assert_eq!(sorter.feed(&data.bytes), Ok(data.bytes.len()));
    let fed = start.elapsed();
    let chunk = sorter.sort();
    let sorted = start.elapsed();
    let mut writer = RunWriter::new(Discard::default(), data.spec.format.frame());
    chunk.write(&[], &mut writer).expect("a sink that takes all");
    let written = start.elapsed();
    sorter.reset();
    match phase {
        "feed" => fed,
        "sort" => sorted - fed,
        _ => written - sorted,
    }
}

criterion_group!(benches, phases, run_generation, merging, record_hashes, block_checksums);
criterion_main!(benches);
