use muster_common::adapters::memory::MemoryBlobs;
use muster_common::buffer::BufferPool;
use muster_common::config::{Config, Profile};
use muster_common::plan::{BadInputs, BadRecords, Sizing};
use muster_common::store::Scheme;
use muster_kernel::record::Format;
use muster_kernel::spec::SortSpec;

use super::*;
use crate::job::plan;

async fn stores(keys: &[&str]) -> Stores {
    let stores = Stores::new(BufferPool::new(0), &Config::profile(Profile::Testing).expect("settings").store);
    let memory = MemoryBlobs::default();
    for key in keys {
        memory.put(key, key.as_bytes().to_vec().into()).await.expect("put");
    }
    stores.insert(Scheme::Memory, Arc::new(memory)).await;
    stores
}

fn spec(inputs: &[&str], output: &str, overwrite: bool) -> JobSpec {
    JobSpec {
        job: "j1".parse().expect("job id"),
        inputs: inputs.iter().map(ToString::to_string).collect(),
        output: output.to_owned(),
        bucket: None,
        sort: SortSpec::new(Format::Lines { terminator: b'\n' }),
        auto_format: false,
        extension: "txt".to_owned(),
        overwrite,
        fsync: false,
        sizing: Sizing::default(),
        replica: None,
        bad_records: BadRecords::Fail,
        bad_inputs: BadInputs::Fail,
        settings: None,
    }
}

async fn list(keys: &[&str], spec: &JobSpec) -> Result<Listing> {
    let places = plan::places(spec, None, &"d1".parse().expect("deployment id")).expect("places");
    list_input(&stores(keys).await, spec, &places, (&[], &Offered::default())).await
}

async fn check(keys: &[&str], inputs: &[&str], expected: Result<&[&str], &str>) {
    match (list(keys, &spec(inputs, "memory:///out", false)).await, expected) {
        (Ok(listing), Ok(expected)) => {
            let found: Vec<&str> =
                listing.objects.iter().map(|object| object.url.trim_start_matches("memory:///")).collect();
            assert_eq!(found, expected, "{inputs:?}");
        }
        (Err(error), Err(expected)) => assert!(error.message.contains(expected), "{inputs:?}: {error}"),
        (found, expected) => panic!("{inputs:?}: {found:?}, not {expected:?}"),
    }
}

const KEYS: [&str; 7] = ["in/a.log", "in/b.txt", "in/sub/c.log", "in/_hidden", "in/.dot/x", "other/a.log", "only/_x"];

#[tokio::test]
async fn inputs_are_objects_folders_and_globs() {
    check(&KEYS, &["memory:///in"], Ok(&["in/a.log", "in/b.txt", "in/sub/c.log"])).await;
    check(&KEYS, &["memory:///in/"], Ok(&["in/a.log", "in/b.txt", "in/sub/c.log"])).await;
    check(&KEYS, &["memory:///in/b.txt", "memory:///in/a.log"], Ok(&["in/b.txt", "in/a.log"])).await;
    check(&KEYS, &["memory:///in/*.log"], Ok(&["in/a.log"])).await;
    check(&KEYS, &["memory:///*/a.log"], Ok(&["in/a.log", "other/a.log"])).await;
    check(&KEYS, &["memory:///in/**/*.log"], Ok(&["in/a.log", "in/sub/c.log"])).await;
    check(&KEYS, &["memory:///in/_hidden"], Ok(&["in/_hidden"])).await;
    check(&KEYS, &["memory:///in/a.log", "memory:///in/a.log"], Ok(&["in/a.log", "in/a.log"])).await;
}

#[tokio::test]
async fn what_is_not_there_is_named() {
    check(&KEYS, &["memory:///nowhere"], Err("memory:///nowhere is not there")).await;
    check(&KEYS, &["memory:///in/*.csv"], Err("no object matches")).await;
    check(&KEYS, &["memory:///only"], Err("begin with _ or .")).await;
    check(&KEYS, &["memory:///in/[a"], Err("not a valid pattern")).await;
    check(&KEYS, &["memory:///in/a.log/"], Err("is not there")).await;
}

#[tokio::test]
async fn output_must_be_apart_and_empty() {
    let check = async |keys: &[&str], spec: JobSpec, expected: &str| match list(keys, &spec).await {
        Ok(listing) => assert_eq!((listing.replaced.len().to_string().as_str(), expected), (expected, expected)),
        Err(error) => assert!(!expected.is_empty() && error.message.contains(expected), "{expected}: {error}"),
    };
    check(&KEYS, spec(&["memory:///in"], "memory:///in/out", false), "overlaps").await;
    check(&KEYS, spec(&["memory:///in/sub"], "memory:///in", false), "overlaps").await;
    check(&KEYS, spec(&["memory:///in/a.log"], "memory:///in", false), "overlaps").await;
    check(&KEYS, spec(&["memory:///in/*.log"], "memory:///in/out", false), "0").await;
    check(&KEYS, spec(&["memory:///in"], "memory:///other/a.log", false), "is an object").await;
    check(&KEYS, spec(&["memory:///in"], "memory:///other", false), "is not empty").await;
    check(&KEYS, spec(&["memory:///in"], "memory:///other", true), "1").await;
    check(
        &["in/a", "out/_muster/d0/j0/x", "out/.part-00000.txt.0011223344556677.upload"],
        spec(&["memory:///in"], "memory:///out", false),
        "0",
    )
    .await;
}

#[tokio::test]
async fn what_cannot_be_read_is_named() {
    let url: BlobUrl = "memory:///in/gone".parse().expect("url");
    let gone = PinnedObject { url: url.to_string(), bytes: 5, version: "v".to_owned() };
    let error = try_reading(&stores(&[]).await, &[gone], &Offered::default()).await.expect_err("unreadable");
    assert!(error.message.contains("memory:///in/gone cannot be read"), "{error}");
}

#[tokio::test]
async fn more_objects_than_memory_has_room_for_are_refused_with_the_number() {
    let mut limits = Config::profile(Profile::Testing).expect("settings").store;
    limits.objects_max = 2;
    let stores = Stores::new(BufferPool::new(0), &limits);
    let memory = MemoryBlobs::default();
    for key in ["in/a", "in/b", "in/c"] {
        memory.put(key, b"x".to_vec().into()).await.expect("put");
    }
    stores.insert(Scheme::Memory, Arc::new(memory)).await;
    let check = async |inputs: &[&str], sound: bool| {
        let spec = spec(inputs, "memory:///out", false);
        let places = plan::places(&spec, None, &"d1".parse().expect("deployment id")).expect("places");
        match list_input(&stores, &spec, &places, (&[], &Offered::default())).await {
            Ok(listing) => assert!(sound && listing.objects.len() == 2, "{inputs:?}"),
            Err(error) => {
                let named =
                    ["more than 2 objects", "--memory", "store.objects_max"].map(|part| error.message.contains(part));
                assert!(!sound && error.kind == ErrorKind::Invalid && named == [true; 3], "{inputs:?}: {error}");
            }
        }
    };
    check(&["memory:///in/a", "memory:///in/b"], true).await;
    check(&["memory:///in/a", "memory:///in/b", "memory:///in/c"], false).await;
    check(&["memory:///in"], false).await;
    check(&["memory:///in/*"], false).await;
}
