use muster_kernel::spec::SortSpec;
use muster_platform::config::Profile;
use muster_protocol::plan::{BadInputs, BadRecords, PinnedObject, Sizing};

use super::*;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn spec() -> JobSpec {
    JobSpec {
        job: "j1".parse().expect("job id"),
        inputs: vec!["/in".to_owned()],
        output: "/out".to_owned(),
        bucket: None,
        sort: SortSpec::new(Format::fixed(1)),
        auto_format: false,
        extension: "dat".to_owned(),
        overwrite: false,
        fsync: false,
        sizing: Sizing::default(),
        replica: None,
        bad_records: BadRecords::Fail,
        bad_inputs: BadInputs::Fail,
        settings: None,
    }
}

fn listing(sizes: &[u64]) -> Listing {
    let object = |(n, &bytes): (usize, &u64)| PinnedObject {
        url: format!("file:///in/{n}"),
        bytes,
        version: "v".to_owned(),
    };
    Listing {
        objects: sizes.iter().enumerate().map(object).collect(),
        left_out: Vec::new(),
        warnings: Vec::new(),
        replaced: Vec::new(),
        uploads_before: Vec::new(),
        output_existed: false,
    }
}

fn plan_of(spec: &JobSpec, sizes: &[u64]) -> Result<Plan> {
    let deployment = "d1".parse().expect("deployment id");
    let config = Config::profile(Profile::Production)?;
    make(spec, &places(spec, None, &deployment)?, listing(sizes), &config)
}

#[test]
fn tasks_are_a_sixteenth_within_bounds() {
    let check = |total: u64, splits: usize, partitions: u32| {
        let plan = plan_of(&spec(), &[total]).expect("plan");
        assert_eq!((plan.splits.len(), plan.partitions), (splits, partitions), "{total} bytes");
    };
    check(0, 0, 1);
    check(1, 1, 1);
    check(64 * MIB, 1, 1);
    check(65 * MIB, 2, 2);
    check(GIB, 16, 16);
    check(4 * GIB, 16, 16);
    check(64 * GIB, 64, 64);
}

#[test]
fn the_request_sets_sizes() {
    let check = |sizing: Sizing, splits: usize, partitions: u32| {
        let spec = JobSpec { sizing: sizing.clone(), ..spec() };
        let plan = plan_of(&spec, &[GIB]).expect("plan");
        assert_eq!((plan.splits.len(), plan.partitions), (splits, partitions), "{sizing:?}");
    };
    check(Sizing { partitions: Some(5), ..Sizing::default() }, 16, 5);
    check(Sizing { split_bytes: Some(GIB / 4), ..Sizing::default() }, 4, 16);
    check(Sizing { partition_bytes: Some(GIB / 2), ..Sizing::default() }, 16, 2);
    check(Sizing { task_memory_bytes: Some(32 * MIB), ..Sizing::default() }, 52, 16);
}

#[test]
fn what_does_not_fit_is_refused() {
    let check = |change: fn(&mut JobSpec), sizes: &[u64], expected: &str| {
        let mut spec = spec();
        change(&mut spec);
        let error = plan_of(&spec, sizes).expect_err(expected);
        assert!(error.message.contains(expected), "{expected}: {error}");
    };
    check(|spec| spec.sort.format = Format::fixed(100), &[200, 250], "file:///in/1 has 250 bytes");
    check(|spec| spec.sizing.split_bytes = Some(1), &[GIB], "sort tasks");
    check(|_| {}, &[u64::MAX, 2], "2^64");
}

#[test]
fn the_same_input_gives_the_same_plan() {
    let first = plan_of(&spec(), &[GIB, 5, 0, 77]).expect("plan");
    assert_eq!(first, plan_of(&spec(), &[GIB, 5, 0, 77]).expect("plan"));
    let samples = u64::from(first.samples_per_split) * first.splits.len() as u64;
    assert!(samples >= u64::from(first.partitions) * 256, "{samples}");
}

#[test]
fn splits_of_many_small_objects_stay_reportable() {
    let pieces: Vec<Interval> =
        (0..25).map(|object| Interval { object, begin: 0, end: 1 }).collect();
    let cut = limit_pieces(vec![pieces.clone(), pieces[..3].to_vec()], 10);
    assert_eq!(cut.iter().map(Vec::len).collect::<Vec<_>>(), [10, 10, 5, 3]);
    assert_eq!(cut[..3].concat(), pieces, "in order");
}

#[test]
fn scratch_goes_to_the_jobs_bucket_then_the_coordinators_then_below_output() {
    let deployment = "d1".parse().expect("deployment id");
    let bucket: BlobUrl = "s3://theirs/x".parse().expect("url");
    let check = |own: Option<&str>, coordinators: Option<&BlobUrl>, expected: &str| {
        let spec = JobSpec { bucket: own.map(str::to_owned), ..spec() };
        assert_eq!(
            places(&spec, coordinators, &deployment).expect("places").scratch.to_string(),
            expected
        );
    };
    check(None, None, "file:///out/_muster/d1/j1");
    check(None, Some(&bucket), "s3://theirs/x/_muster/d1/j1");
    check(Some("/mine"), Some(&bucket), "file:///mine/_muster/d1/j1");
}

#[test]
fn consumed_intervals_must_be_the_splits() {
    let spec = JobSpec { sort: SortSpec::new(Format::lines(b'\n')), ..spec() };
    let spec = JobSpec { sizing: Sizing { split_bytes: Some(100), ..Sizing::default() }, ..spec };
    let plan = plan_of(&spec, &[150, 50]).expect("plan");
    assert_eq!(plan.splits.len(), 2);
    let check = |split: u32, intervals: &[(u32, u64, u64)], sound: bool| {
        let intervals: Vec<Interval> =
            intervals.iter().map(|&(object, begin, end)| Interval { object, begin, end }).collect();
        assert_eq!(check_intervals(&plan, split, &intervals).is_ok(), sound, "{intervals:?}");
    };
    check(0, &[(0, 0, 100)], true);
    check(0, &[(0, 0, 107)], true);
    check(1, &[(0, 107, 150), (1, 0, 50)], true);
    check(1, &[(0, 99, 150)], false);
    check(0, &[(1, 0, 50)], false);
    check(1, &[(1, 0, 51)], false);
    check(1, &[(1, 9, 3)], false);
    check(7, &[(0, 0, 1)], false);
    check(0, &[], true);
}

#[test]
fn splitters_are_fewer_where_keys_are_few() {
    let samples = |keys: &[&str]| {
        keys.iter()
            .map(|key| Splitter { key: key.as_bytes().to_vec(), position: 1 })
            .collect::<Vec<_>>()
    };
    assert_eq!(
        splitters(samples(&["a", "b", "c", "d"]), 2, false).expect("splitters").splitters.len(),
        1
    );
    assert_eq!(splitters(samples(&["a"; 9]), 4, true).expect("splitters").splitters.len(), 1);
    assert!(splitters(Vec::new(), 4, true).expect("splitters").splitters.is_empty());
}

#[test]
fn splits_keep_to_one_owner_and_tile_as_ever() {
    let object = |(url, bytes): &(&str, u64)| PinnedObject {
        url: (*url).to_owned(),
        bytes: *bytes,
        version: "v".to_owned(),
    };
    let of = [
        ("file:///a", 100),
        ("worker://w1/a", 30),
        ("worker://w1/b", 0),
        ("worker://w1/c", 170),
        ("worker://w2/a", 10),
        ("file:///b", 10),
    ];
    let listing = Listing { objects: of.iter().map(object).collect(), ..listing(&[]) };
    let spec = JobSpec { sizing: Sizing { split_bytes: Some(100), ..Sizing::default() }, ..spec() };
    let config = Config::profile(Profile::Production).expect("config");
    let places = places(&spec, None, &"d1".parse().expect("id")).expect("places");
    let plan = make(&spec, &places, listing, &config).expect("plan");
    let owners: Vec<Option<&str>> =
        (0..plan.splits.len() as u32).map(|split| plan.owner(split)).collect();
    assert_eq!(owners, [None, Some("w1"), Some("w1"), Some("w2"), None]);
    let sizes: Vec<u64> = of.iter().map(|(_, bytes)| *bytes).collect();
    let intervals: Vec<Interval> = plan.splits.iter().flatten().copied().collect();
    muster_kernel::proof::tiles(&intervals, &sizes).expect("tiles");
    let stored = plan.to_bytes().expect("bytes");
    assert_eq!(Plan::from_bytes(&stored).expect("plan"), plan);
    let mixed = Plan { splits: vec![plan.splits.concat()], ..plan };
    let error = Plan::from_bytes(&mixed.to_bytes().expect("bytes")).expect_err("mixed");
    assert!(error.message.contains("no single worker can read"), "{error}");
}
