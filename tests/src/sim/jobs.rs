//! The jobs of a run: what clients ask for, the input that stands there, and who alone can read it.

use std::collections::BTreeMap;

use muster_kernel::format::{Format, Frame};
use muster_kernel::reference::sort_reference;
use muster_kernel::spec::{KeyDef, SortSpec};
use muster_platform::store::BlobUrl;
use muster_protocol::ids::WorkerId;
use muster_protocol::plan::{BadInputs, BadRecords, JobSpec, Sizing};
use muster_protocol::{ErrorKind, names};

use super::core::{Core, MS, S};
use super::dice::Dice;
use super::oracle::InputObject;
use super::script::{JobLine, Script};
use super::store::Unreadable;
use super::world::BUCKET;

/// The folder that workers offer.
pub const OFFERED: &str = "/data";
/// The cause of what cannot be read for want of rights, and of what is damaged.
pub const UNREADABLE: [(ErrorKind, &str); 2] =
    [(ErrorKind::Invalid, "access denied"), (ErrorKind::Corrupt, "it cannot be decoded")];

/// A client and its job.
pub struct Client {
    /// What it asks for.
    pub spec: JobSpec,
    /// What stood in OUTPUT before.
    pub before: BTreeMap<String, Vec<u8>>,
    /// When it asks for it.
    pub submit_us: u64,
    /// When it gives it up.
    pub cancel_us: Option<u64>,
    /// Whether the job is known.
    pub accepted: bool,
    /// Why there is none.
    pub refused: Option<String>,
    /// Its last request.
    pub request: u64,
}

/// An object in the bucket of all jobs.
pub fn url(key: &str) -> String {
    format!("s3://{BUCKET}/{key}")
}

/// Bytes of a record that tell it from others: the rest of a long one is the same everywhere.
pub const TELLING_BYTES: u64 = 12;
/// Records of a job whose records are long.
const LONG_RECORDS: u64 = 60;

/// Input of a job: records over a small alphabet, so that many keys are equal.
fn draw_input(dice: &mut Dice, format: &Format) -> Vec<Vec<u8>> {
    let objects = dice.within(1, 3);
    let mut records = dice.pick(&[0, 1, 20, 60, 60, 200, 600]);
    if format.frame().body_len().is_some_and(|len| len > TELLING_BYTES) {
        records = records.min(LONG_RECORDS);
    }
    let letters = dice.pick(&[2, 4, 26]);
    let mut made = Vec::new();
    for _ in 0..objects {
        let mut bytes = Vec::new();
        for _ in 0..dice.below(records / objects + 1) {
            match format.frame() {
                Frame::Fixed(len) => {
                    let telling = len.min(TELLING_BYTES as u32);
                    bytes.extend((0..telling).map(|_| b'a' + dice.below(letters) as u8));
                    bytes.resize(bytes.len() + (len - telling) as usize, b'-');
                }
                Frame::Terminated(terminator) => {
                    let length = dice.below(14);
                    bytes.extend((0..length).map(|_| b'a' + dice.below(letters) as u8));
                    bytes.push(terminator);
                }
            }
        }
        made.push(bytes);
    }
    made
}

/// What of the jobs' input is not as usual.
struct Trouble {
    dice: Dice,
    /// Workers that offer files, in some runs.
    owners: Vec<WorkerId>,
}

impl Trouble {
    fn draw(seed: u64, workers: &[WorkerId]) -> Self {
        let mut dice = Dice::of(seed, "inputs");
        let mut owners = Vec::new();
        if dice.below(4) == 0 {
            for _ in 0..dice.within(1, 3) {
                owners.push(workers[dice.below(workers.len() as u64) as usize].clone());
            }
        }
        Self { dice, owners }
    }

    /// Who alone can read each object.
    fn owners_of(&mut self, objects: usize) -> Vec<Option<WorkerId>> {
        let dice = &mut self.dice;
        let mixed = dice.below(3) == 0;
        if self.owners.is_empty() || dice.below(3) == 0 {
            return vec![None; objects];
        }
        let mut draw = |_| {
            let owner = self.owners[dice.below(self.owners.len() as u64) as usize].clone();
            (!mixed || dice.below(2) == 0).then_some(owner)
        };
        (0..objects).map(&mut draw).collect()
    }

    /// Some objects cannot be read, always or now and then.
    fn spoil(&mut self, core: &mut Core, client: &Client) {
        let dice = &mut self.dice;
        let (rounds, shares) = match client.spec.bad_inputs {
            BadInputs::Skip => (dice.within(1, 2), [2, 3]),
            BadInputs::Fail => (dice.below(7) / 6, [0, 1]),
        };
        for _ in 0..rounds {
            let keys = core.oracle.keys_of(&client.spec.job);
            let key = keys[dice.below(keys.len() as u64) as usize].clone();
            let (kind, _) = dice.pick(&UNREADABLE);
            let always = dice.below(shares[1]) < shares[0];
            core.store.unreadable.insert(key, Unreadable { kind, always });
        }
    }
}

/// The jobs of a seed.
pub fn draw_clients(core: &mut Core, seed: u64, workers: &[WorkerId]) -> Vec<Client> {
    let mut dice = Dice::of(seed, "jobs");
    let mut trouble = Trouble::draw(seed, workers);
    let jobs = dice.pick(&[1, 1, 2, 3]);
    let shared_bucket = dice.below(2) == 0;
    foreign(core, "scratch/_muster/dother/j9/sort-00000.g0.e1.0000000000000001.run");
    let mut clients: Vec<Client> = Vec::new();
    let mut long = Dice::of(seed, "long");
    for job in 0..jobs {
        let format = if long.below(24) == 0 {
            // So long that runs have several blocks, and parts are written in pieces.
            Format::fixed(long.within(2000, 9000) as u32)
        } else if dice.below(2) == 0 {
            Format::fixed(dice.within(4, 12) as u32)
        } else {
            Format::lines(b'\n')
        };
        let mut sort = SortSpec::new(format);
        if let Format::Fixed(_) = sort.format
            && dice.below(2) == 0
        {
            sort.keys =
                vec![KeyDef::Range { offset: dice.below(2) as u32, len: dice.within(1, 2) as u32 }];
        }
        sort.unique = dice.below(3) == 0;
        sort.top = (dice.below(6) == 0).then(|| dice.within(1, 20));
        let mut input = draw_input(&mut dice, &sort.format);
        let lenient = dice.pick(&[
            BadRecords::Fail,
            BadRecords::Fail,
            BadRecords::Skip,
            BadRecords::Quarantine,
        ]);
        let torn = dice.within(1, 3) as usize;
        let replica = dice.below(4) == 0;
        let again = job > 0 && dice.below(4) == 0;
        let output = if again { clients[0].spec.output.clone() } else { url(&format!("out{job}")) };
        let overwrite = again || dice.below(4) == 0;
        let mut before = BTreeMap::new();
        if !again && overwrite {
            place_old(core, &format!("out{job}"), &mut before);
        } else if again {
            before = clients[0].before.clone();
        }
        if dice.below(4) == 0 {
            let upload = core.store.place_upload(&format!("out{job}/part-00000.dat"));
            core.store.foreign.insert(upload);
        }
        let total: usize = input.iter().map(Vec::len).sum();
        let splits = dice.within(1, 6);
        let spec = JobSpec {
            job: format!("j{job}")
                .parse()
                .unwrap_or_else(|_| unreachable!("a plain name is a job id")),
            inputs: Vec::new(),
            output,
            bucket: shared_bucket.then(|| url("scratch")),
            sort,
            auto_format: false,
            extension: "dat".to_owned(),
            overwrite,
            fsync: dice.below(4) == 0,
            sizing: Sizing {
                partitions: Some(dice.within(1, 5) as u32),
                split_bytes: Some((total as u64 / splits).max(16)),
                ..Sizing::default()
            },
            replica: replica.then(|| url("second")),
            bad_records: lenient,
            bad_inputs: trouble.dice.pick(&[BadInputs::Fail, BadInputs::Fail, BadInputs::Skip]),
            settings: None,
        };
        if overwrite && !again && spec.sizing.partitions == Some(1) {
            place_result(core, &spec, &input, &mut before);
        }
        if let (Format::Fixed(_), true, Some(last)) =
            (&spec.sort.format, lenient != BadRecords::Fail, input.last_mut())
        {
            last.extend(std::iter::repeat_n(b'!', torn));
        }
        let submit_us = dice.below(3 * S);
        let cancel_us = (dice.below(6) == 0).then(|| submit_us + dice.below(5 * S));
        let owners = trouble.owners_of(input.len());
        let made = client(core, job, spec, (input, &owners), before, (submit_us, cancel_us));
        trouble.spoil(core, &made);
        clients.push(made);
    }
    clients
}

/// What stands in OUTPUT before is what the job is going to make, as if it had been run before: its
/// one part, byte for byte.
fn place_result(
    core: &mut Core,
    spec: &JobSpec,
    input: &[Vec<u8>],
    before: &mut BTreeMap<String, Vec<u8>>,
) {
    let Ok(result) = sort_reference(&spec.sort, input) else { return };
    let output = spec.output.parse::<BlobUrl>().map(|url| url.key().to_owned()).unwrap_or_default();
    let key = format!("{output}/{}", names::part_name(0, &spec.extension));
    core.store.place(&key, result.clone());
    before.insert(key, result);
}

/// What an earlier job has left in OUTPUT, whose `_SUCCESS` names it.
fn place_old(core: &mut Core, output: &str, before: &mut BTreeMap<String, Vec<u8>>) {
    let parts = ["part-00000.dat", "part-00099.dat"];
    let named: Vec<String> = parts.iter().map(|name| format!(r#"{{"name":"{name}"}}"#)).collect();
    let success = format!(r#"{{"job":"old","parts":[{}]}}"#, named.join(","));
    let old = parts
        .map(|name| (name, format!("old {name}")))
        .into_iter()
        .chain([(names::SUCCESS, success)]);
    for (name, text) in old {
        let key = format!("{output}/{name}");
        core.store.place(&key, text.clone().into_bytes());
        core.store.foreign.insert(key.clone());
        before.insert(key, text.into_bytes());
    }
}

fn foreign(core: &mut Core, key: &str) {
    core.store.place(key, b"somebody else's".to_vec());
    core.store.foreign.insert(key.to_owned());
}

fn client(
    core: &mut Core,
    job: usize,
    mut spec: JobSpec,
    (input, owners): (Vec<Vec<u8>>, &[Option<WorkerId>]),
    before: BTreeMap<String, Vec<u8>>,
    (submit_us, cancel_us): (u64, Option<u64>),
) -> Client {
    let place = |number: usize, owner: Option<&WorkerId>| {
        let name = format!("in{job}/{number}");
        let Some(owner) = owner else { return (name.clone(), url(&name)) };
        let path = format!("{OFFERED}/{name}");
        let of_worker =
            BlobUrl::of_worker(owner, &path).map(|url| url.to_string()).unwrap_or_default();
        (super::store::disk_key(owner, &path), of_worker)
    };
    let mut objects = Vec::new();
    for (number, bytes) in input.into_iter().enumerate() {
        let owner = owners.get(number).cloned().flatten();
        let (key, url) = place(number, owner.as_ref());
        core.store.place(&key, bytes.clone());
        core.store.foreign.insert(key.clone());
        objects.push(InputObject { key, url, bytes, owner });
    }
    // As they are listed: by worker, then by path; a job names the files of workers first.
    objects.sort_by_key(|object| {
        (object.owner.is_none(), object.owner.as_ref().map(ToString::to_string))
    });
    spec.inputs.extend(
        objects.iter().any(|object| object.owner.is_some()).then(|| format!("workers:/in{job}")),
    );
    spec.inputs.extend(
        objects.iter().any(|object| object.owner.is_none()).then(|| url(&format!("in{job}"))),
    );
    // Who offers files is asked once it has registered; before, nobody offers any.
    let late_us = if objects.iter().any(|object| object.owner.is_some()) { 3 * S } else { 0 };
    let (submit_us, cancel_us) =
        (submit_us + late_us, cancel_us.map(|cancel_us| cancel_us + late_us));
    core.oracle.expects(&spec, objects);
    Client { spec, before, submit_us, cancel_us, accepted: false, refused: None, request: 0 }
}

/// The job of sweeps: 24 records in two objects, three splits, two partitions.
pub fn fixed_client(core: &mut Core) -> Vec<Client> {
    let record = |n: u32| format!("{:04}", (n * 7919) % 24).into_bytes();
    let input = vec![(0..12).flat_map(record).collect(), (12..24).flat_map(record).collect()];
    let spec = JobSpec {
        job: "j0".parse().unwrap_or_else(|_| unreachable!("a plain name is a job id")),
        inputs: Vec::new(),
        output: url("out0"),
        bucket: None,
        sort: SortSpec::new(Format::fixed(4)),
        auto_format: false,
        extension: "dat".to_owned(),
        overwrite: false,
        fsync: false,
        sizing: Sizing { partitions: Some(2), split_bytes: Some(32), ..Sizing::default() },
        replica: None,
        bad_records: BadRecords::Fail,
        bad_inputs: BadInputs::Fail,
        settings: None,
    };
    vec![client(core, 0, spec, (input, &[]), BTreeMap::new(), (0, None))]
}

/// The jobs of a script: records of the same length, in two objects.
pub fn script_clients(core: &mut Core, script: &Script) -> Vec<Client> {
    foreign(core, "scratch/_muster/dother/j9/sort-00000.g0.e1.0000000000000001.run");
    for key in &script.uploads {
        let upload = core.store.place_upload(key);
        core.store.foreign.insert(upload);
    }
    script.jobs.iter().enumerate().map(|(number, line)| script_client(core, number, line)).collect()
}

fn script_client(core: &mut Core, number: usize, line: &JobLine) -> Client {
    let len = line.number("fixed", 4).max(1);
    let (records, keys) = (line.number("records", 24), line.number("keys", 10_000).max(1));
    let terminator = line.says("lines").then_some(b'\n');
    let record = |n: u64| {
        let text =
            format!("{:0width$}", n.wrapping_mul(7919) % 10_000 % keys, width = len as usize);
        text.into_bytes().into_iter().chain(terminator).collect::<Vec<u8>>()
    };
    let half = records.div_ceil(2);
    let torn = std::iter::repeat_n(b'!', line.number("torn", 0) as usize);
    let input: Vec<Vec<u8>> = vec![
        (0..half).flat_map(record).collect(),
        (half..records).flat_map(record).chain(torn).collect(),
    ];
    let total: u64 = input.iter().map(|object| object.len() as u64).sum();
    let format = if line.says("lines") { Format::lines(b'\n') } else { Format::fixed(len as u32) };
    let mut sort = SortSpec::new(format);
    sort.unique = line.says("unique");
    if line.says("key") {
        sort.keys = vec![KeyDef::Range { offset: 0, len: line.number("key", 1) as u32 }];
    }
    let name = line.text("output").map_or_else(|| format!("out{number}"), str::to_owned);
    let mut before = BTreeMap::new();
    if line.says("overwrite") {
        place_old(core, &name, &mut before);
    }
    let ms = |word: &str| line.text(word).map(|_| line.number(word, 0) * MS);
    let spec = JobSpec {
        job: line.id.parse().unwrap_or_else(|_| unreachable!("a script names its jobs plainly")),
        inputs: Vec::new(),
        output: url(&name),
        bucket: line.says("bucket").then(|| url("scratch")),
        sort,
        auto_format: false,
        extension: "dat".to_owned(),
        overwrite: line.says("overwrite"),
        fsync: false,
        sizing: Sizing {
            partitions: Some(line.number("partitions", 2) as u32),
            split_bytes: Some((total / line.number("splits", 3).max(1)).max(16)),
            ..Sizing::default()
        },
        replica: line.says("replica").then(|| url("second")),
        bad_records: match (line.says("skip"), line.says("quarantine")) {
            (true, _) => BadRecords::Skip,
            (_, true) => BadRecords::Quarantine,
            _ => BadRecords::Fail,
        },
        bad_inputs: if line.says("skip-inputs") { BadInputs::Skip } else { BadInputs::Fail },
        settings: None,
    };
    if line.text("overwrite") == Some("same") {
        place_result(core, &spec, &input, &mut before);
    }
    let owner =
        |at: usize| format!("w{}", at + 1).parse::<WorkerId>().ok().filter(|_| line.says("owned"));
    let owners: Vec<Option<WorkerId>> = (0..input.len()).map(owner).collect();
    let times = (ms("submit").unwrap_or(0), ms("cancel"));
    let made = client(core, number, spec, (input, &owners), before, times);
    for (word, always) in [("unreadable", true), ("flaky", false)] {
        let Some(at) = line.text(word).and_then(|text| text.parse::<usize>().ok()) else {
            continue;
        };
        if let Some(key) = core.oracle.keys_of(&made.spec.job).get(at).cloned() {
            core.store.unreadable.insert(key, Unreadable { kind: ErrorKind::Corrupt, always });
        }
    }
    made
}
