//! What may go of an OUTPUT, and that nothing else is ever touched: jobs over trees with links,
//! mounts and names of all bytes, before a witness of every change.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use muster_kernel::format::Format;
use muster_kernel::spec::SortSpec;
use muster_platform::adapters::changes::{Change, Witness};
use muster_platform::adapters::local::LocalBlobs;
use muster_platform::buffer::BufferPool;
use muster_platform::config::{Config, Profile};
use muster_platform::store::{PartAt, Scheme};
use muster_protocol::plan::{BadInputs, BadRecords, Sizing};

use super::*;
use crate::driver::clean::clean_up;
use crate::driver::fence;
use crate::driver::listing::list_input;
use crate::driver::offers::Offered;
use crate::driver::publish::{prepare, publish};
use crate::job::flow::plan;
use crate::job::io::{Leftovers, ManifestBytes, Publication, PublishedPart};

#[test]
fn a_manifest_accounts_for_what_jobs_make_alone() {
    let forged = br#"{"job":"j","parts":[{"name":"part-00000.txt","bytes":1},{"name":"../x"},
        {"name":"photo.jpg"},{"name":"/etc/passwd"},{"name":"part-00001.txt/../../x"}],
        "quarantine":[{"name":"_quarantine/split-00000.jsonl"},{"name":"_quarantine/x"}]}"#;
    let names: Vec<String> = names_of(forged).into_iter().collect();
    assert_eq!(names, ["_SUCCESS", "_quarantine/split-00000.jsonl", "part-00000.txt"]);
    for foreign in [
        &b""[..],
        b"{}",
        b"[]",
        b"{\"job\":1,\"parts\":[]}",
        b"{\"parts\":[{\"name\":\"part-00000.txt\"}]}",
    ] {
        assert!(names_of(foreign).is_empty(), "{foreign:?}");
    }
}

/// Everything that was done, in order.
#[derive(Debug, Default)]
struct Record(Mutex<Vec<(Change, PathBuf)>>);

impl Witness for Record {
    fn see(&self, change: Change, path: &Path) {
        // By what the folder is, not by how it was reached.
        let folder =
            path.parent().and_then(|folder| folder.canonicalize().ok()).unwrap_or_default();
        let path = folder.join(path.file_name().unwrap_or_default());
        self.0.lock().expect("lock").push((change, path));
    }
}

/// Numbers from a seed.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn name(&mut self) -> OsString {
        let length = 1 + self.below(12);
        let byte = |dice: &mut Self| match dice.below(255) as u8 + 1 {
            b'/' => b'\\',
            byte => byte,
        };
        let name: Vec<u8> = (0..length).map(|_| byte(self)).collect();
        OsString::from_vec(if matches!(name.as_slice(), b"." | b"..") {
            b"odd".to_vec()
        } else {
            name
        })
    }
}

/// A second place of a folder, as long as this lives.
struct Mounted(PathBuf);

impl Mounted {
    fn of(folder: &Path, at: &Path) -> Option<Self> {
        fs::create_dir(at).ok()?;
        let done = Command::new("mount").arg("--bind").arg(folder).arg(at).output().ok()?;
        done.status.success().then(|| Self(at.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let done = Command::new("umount").arg(&self.0).status();
        assert!(done.is_ok_and(|done| done.success()), "{} stays mounted", self.0.display());
    }
}

/// A tree with what is muster's and what is not.
struct Tree {
    // Dropped in this order: what is mounted goes before the folder that holds it.
    _mounted: Option<Mounted>,
    dir: tempfile::TempDir,
    dice: Dice,
    /// What others have put there while the job ran, and how many changes it had made by then.
    added: (usize, BTreeMap<PathBuf, String>),
    _sockets: Vec<UnixListener>,
}

impl Tree {
    fn grow(seed: u64) -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let mut tree = Self {
            _mounted: None,
            dir,
            dice: Dice(seed),
            added: Default::default(),
            _sockets: Vec::new(),
        };
        for (name, text) in [
            ("in/a.txt", "b\na\n"),
            ("important/part-00000.txt", "kept"),
            ("important/d1/j1/x", "kept"),
        ] {
            tree.file(name, text);
        }
        tree.file("important/split-00000.jsonl", "kept");
        if tree.dice.below(8) > 0 {
            fs::create_dir(tree.at("out")).expect("folder");
            let earlier = tree.dice.below(4);
            if earlier > 0 {
                tree.earlier_result(earlier == 1);
            }
            for _ in 0..tree.dice.below(3) {
                tree.foreign();
            }
            if tree.dice.below(50) == 0 {
                tree._mounted = Mounted::of(&tree.at("important"), &tree.at("out/bound"));
            }
            if tree.dice.below(4) == 0 {
                symlink("out", tree.at("to-out")).expect("link");
            }
        }
        tree
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().expect("dir").join(name)
    }

    fn file(&self, name: &str, text: &str) {
        fs::create_dir_all(self.at(name).parent().expect("a folder")).expect("folders");
        fs::write(self.at(name), text).expect("file");
    }

    fn earlier_result(&mut self, forged: bool) {
        let parts = 1 + self.dice.below(3);
        let mut names: Vec<String> =
            (0..parts).map(|part| names::part_name(part as u32, "txt")).collect();
        for name in &names {
            self.file(&format!("out/{name}"), "old");
        }
        if self.dice.below(3) == 0 {
            self.file("out/_quarantine/split-00000.jsonl", "old");
            names.push("_quarantine/split-00000.jsonl".to_owned());
        }
        if forged {
            names.extend(["../important/part-00000.txt", "photo.jpg", "sub/x"].map(str::to_owned));
        }
        let named: Vec<serde_json::Value> =
            names.iter().map(|name| serde_json::json!({ "name": name })).collect();
        let manifest = serde_json::json!({ "job": "old", "parts": named });
        self.file("out/_SUCCESS", &manifest.to_string());
    }

    /// Puts something into OUTPUT that muster has not made; nothing where its place is taken.
    fn foreign(&mut self) {
        let important = self.at("important");
        let odd = self.at("out").join(self.dice.name());
        let names = [
            "part-00000.txt",
            "part-00001.txt",
            "part-00007.txt",
            "_SUCCESS",
            "_quarantine",
            "_muster",
            "sub",
        ];
        let name = self.at("out").join(names[self.dice.below(names.len() as u64) as usize]);
        // What cannot be made, because its place is taken, is not.
        match self.dice.below(10) {
            0 => drop(fs::File::create_new(&odd).is_ok_and(|_| fs::write(&odd, "theirs").is_ok())),
            1 => self.file("out/.hidden", "theirs"),
            2 => self.file("out/photos/a.jpg", "theirs"),
            3 => drop(fs::create_dir(&odd)),
            4 => drop(symlink(&important, &odd)),
            5 => drop(symlink(important.join("part-00000.txt"), &name)),
            6 => drop(symlink(&important, &name)),
            7 => drop(symlink("nowhere", &name)),
            8 => drop(symlink(&odd, &odd)),
            _ => {
                if odd.as_os_str().len() < 90 {
                    self._sockets.extend(UnixListener::bind(&odd));
                }
            }
        }
    }

    /// The same while a job runs.
    fn meddle(&mut self, record: &Record) {
        let before = self.snapshot();
        self.foreign();
        let new =
            self.snapshot().into_iter().filter(|(path, _)| !before.contains_key(path)).collect();
        self.added = (record.0.lock().expect("lock").len(), new);
    }

    /// What a path is and holds, for everything below the folder.
    fn snapshot(&self) -> BTreeMap<PathBuf, String> {
        let mut found = BTreeMap::new();
        let mut folders = vec![self.at("")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                let (path, kind) = (entry.path(), entry.file_type().expect("a kind"));
                let what = if kind.is_symlink() {
                    format!("link {:?}", fs::read_link(&path))
                } else if kind.is_dir() {
                    folders.push(path.clone());
                    "folder".to_owned()
                } else if kind.is_file() {
                    format!("file {:?}", fs::read(&path))
                } else {
                    "odd".to_owned()
                };
                found.insert(path, what);
            }
        }
        found
    }

    /// What an earlier job has made, if a file of its own says so: nothing that anybody else could
    /// have put there instead.
    fn made_before(&self) -> BTreeSet<PathBuf> {
        let regular = |path: &Path| fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file());
        let success = self.at("out/_SUCCESS");
        if !regular(&success)
            || !fs::read_to_string(&success).is_ok_and(|text| text.contains("\"old\""))
        {
            return BTreeSet::new();
        }
        let names = [
            "part-00000.txt",
            "part-00001.txt",
            "part-00002.txt",
            "_quarantine/split-00000.jsonl",
            "_SUCCESS",
        ];
        let paths = names.iter().map(|name| self.at("out").join(name));
        paths
            .filter(|path| {
                regular(path) && path.parent().is_some_and(|folder| !folder.is_symlink())
            })
            .collect()
    }
}

fn spec(tree: &Tree, overwrite: bool) -> JobSpec {
    let text = |path: PathBuf| path.to_str().expect("utf-8").to_owned();
    let output = if tree.at("to-out").is_symlink() { tree.at("to-out") } else { tree.at("out") };
    JobSpec {
        job: "j1".parse().expect("job id"),
        inputs: vec![text(tree.at("in"))],
        output: text(output),
        bucket: None,
        sort: SortSpec::new(Format::lines(b'\n')),
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

/// A job's way through the file system, as far as it gets: whether it was refused.
async fn play(tree: &mut Tree, stores: &Stores, record: &Record) -> Result<()> {
    let overwrite = tree.dice.below(4) > 0;
    let spec = spec(tree, overwrite);
    let places = plan::places(&spec, None, &"d1".parse().expect("deployment id"))?;
    let config = Config::profile(Profile::Testing).expect("settings");
    let (fence, _, _) = fence::tests::leading().await;
    let listing = list_input(stores, &fence, &spec, &places, (&[], &Offered::default())).await?;
    let empty_output = (!listing.output_existed).then(|| places.output.clone());
    let plan = Arc::new(plan::make(&spec, &places, listing, &config)?);
    let pointer = stores.put_ref(&places.scratch.join("plan.1"), plan.to_bytes()?).await;
    let store = stores.open(&places.output).await?;
    let mut parts = Vec::new();
    for partition in 0..1 + tree.dice.below(3) {
        let url = places.output.join(&names::part_name(partition as u32, "txt"));
        let Ok(upload) = store.open_upload(url.key()).await else { continue };
        let mut data = stores.buffers().take(3);
        data.vec_mut().extend_from_slice(b"new");
        let tag = store
            .upload_part(url.key(), &upload, PartAt { index: 0, offset: 0 }, data.into())
            .await?;
        let checksum = muster_protocol::wire::digest(b"new");
        parts.push(PublishedPart { url, upload, tags: vec![tag], bytes: 3, checksum });
    }
    let uploads = parts.iter().map(|part| (part.url.clone(), part.upload.clone())).collect();
    let mut publication = Publication {
        output: places.output.clone(),
        job: spec.job.clone(),
        parts,
        quarantine: Vec::new(),
        manifest: ManifestBytes::Made(br#"{"job":"j1","parts":[]}"#.to_vec()),
        replaced: plan.replaced.clone(),
        overwrite,
        plan,
        sync: false,
    };
    let meddled = tree.dice.below(3);
    if meddled == 1 {
        tree.meddle(record);
    }
    let prepared = prepare(stores, &fence, &publication, &places.scratch.join("manifest.1")).await;
    if let Ok(prepared) = prepared {
        publication.manifest = ManifestBytes::Stored(prepared);
        if meddled == 2 {
            tree.meddle(record);
        }
        // It may fail; what counts is what it does.
        drop(publish(stores, &fence, &publication).await);
    }
    if let Ok(plan) = pointer {
        let Publication { output, .. } = publication;
        let leftovers = Leftovers {
            scratch: places.scratch,
            replica: None,
            plan,
            output,
            partitions: 3,
            uploads,
            empty_output,
        };
        drop(clean_up(stores, &fence, &spec.job, leftovers).await);
    }
    Ok(())
}

/// One tree. Gives whether the job was let in, and whether a mount was among what stood there.
async fn check_tree(seed: u64) -> (bool, bool) {
    let mut tree = Tree::grow(seed);
    let record = Arc::new(Record::default());
    let stores = Stores::new(
        BufferPool::new(0),
        &Config::profile(Profile::Testing).expect("settings").store,
    );
    stores
        .insert(Scheme::File, Arc::new(LocalBlobs::seen_by(BufferPool::new(0), record.clone())))
        .await;
    let (before, made_before) = (tree.snapshot(), tree.made_before());
    let played = play(&mut tree, &stores, &record).await;
    let after = tree.snapshot();
    let changes = std::mem::take(&mut *record.0.lock().expect("lock"));
    if played.is_err() {
        assert!(changes.is_empty() && before == after, "seed {seed}: {played:?}, but {changes:?}");
    }
    let mut own = made_before.clone();
    let (added_at, added) = std::mem::take(&mut tree.added);
    for (at, (change, path)) in changes.iter().enumerate() {
        let is_added = at >= added_at && added.contains_key(path);
        // A folder that is no folder of the job's, or not empty, is tried in vain; below it is seen
        // that it stands.
        assert!(
            !is_added || *change == Change::RemoveFolder,
            "seed {seed}: {change:?} {}, which somebody has put there meanwhile ({played:?})",
            path.display()
        );
        let known = own.contains(path);
        let stood = before.contains_key(path);
        let sound = match change {
            Change::Create => own.insert(path.clone()) || !stood,
            Change::PutInPlace => own.insert(path.clone()) && !stood || known,
            Change::Write | Change::TakeAway => known,
            // Nothing goes where nothing of anybody's stood.
            Change::Remove => known || !stood,
            Change::RemoveFolder => {
                let ours = path.components().any(|name| name.as_os_str() == SCRATCH_DIR);
                ours || path.ends_with("_quarantine") || path == &tree.at("out")
            }
        };
        assert!(sound, "seed {seed}: {change:?} {} ({played:?})", path.display());
    }
    // The old `_SUCCESS` says that a result is whole. It goes only where the new one can come.
    let success = tree.at("out/_SUCCESS");
    assert!(
        !made_before.contains(&success) || success.exists(),
        "seed {seed}: the old _SUCCESS went for nothing ({played:?})"
    );
    let lost = before.iter().chain(&added).find(|(path, what)| {
        let is_own = made_before.contains(*path)
            || (path.ends_with("out/_quarantine")
                && what.as_str() == "folder"
                && before.contains_key(*path));
        !is_own && after.get(*path) != Some(what)
    });
    assert_eq!(lost, None, "seed {seed}: it was somebody else's ({played:?})");
    (played.is_ok(), tree._mounted.is_some())
}

async fn check_trees(seeds: std::ops::Range<u64>) {
    let (mut let_in, mut mounted) = (0, 0);
    let count = seeds.end - seeds.start;
    for seed in seeds {
        let (was_let_in, had_mount) = check_tree(seed).await;
        let_in += u64::from(was_let_in);
        mounted += u64::from(had_mount);
    }
    // Both kinds are many, or the trees say little.
    assert!(let_in * 5 > count && let_in * 5 < count * 4, "{let_in} of {count} were let in");
    if mounted == 0 {
        say_not_run();
    }
}

#[expect(clippy::print_stdout, reason = "what cannot be run here is said")]
fn say_not_run() {
    println!("NOT RUN: trees with mounts; this user may not mount");
}

#[tokio::test]
async fn nothing_is_touched_that_no_job_has_made() {
    check_trees(0..400).await;
}

#[tokio::test]
async fn long_nothing_is_touched_in_ten_thousand_trees() {
    check_trees(1_000..11_000).await;
}
