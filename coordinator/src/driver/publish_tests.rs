//! Publishing and cleaning up over a store in memory.

use muster_kernel::format::Format;
use muster_kernel::spec::SortSpec;
use muster_platform::adapters::memory::MemoryBlobs;
use muster_platform::buffer::BufferPool;
use muster_platform::config::{Config, Profile};
use muster_platform::store::Scheme;
use muster_protocol::plan::{BadRecords, Plan};

use super::*;
use crate::driver::clean::clean_up;
use crate::driver::fence;
use crate::job::io::Leftovers;

struct Bench {
    stores: Stores,
    memory: Arc<MemoryBlobs>,
    fence: Fence,
}

impl Bench {
    async fn new(keys: &[&str]) -> Self {
        let memory = Arc::new(MemoryBlobs::default());
        for key in keys {
            memory.put(key, key.as_bytes().to_vec().into()).await.expect("put");
        }
        let stores = Stores::new(
            BufferPool::new(0),
            &Config::profile(Profile::Testing).expect("settings").store,
        );
        stores.insert(Scheme::Memory, memory.clone()).await;
        let (fence, _, _) = fence::tests::leading().await;
        Self { stores, memory, fence }
    }

    async fn upload(&self, key: &str, text: &str) -> (String, Vec<String>) {
        let upload = self.memory.open_upload(key).await.expect("open");
        let mut data = self.stores.buffers().take(text.len());
        data.vec_mut().extend_from_slice(text.as_bytes());
        let tag = self
            .memory
            .upload_part(key, &upload, PartAt { index: 0, offset: 0 }, data.into())
            .await
            .expect("part");
        (upload, vec![tag])
    }

    async fn keys(&self) -> Vec<String> {
        self.memory.list("", 100).await.expect("list").into_iter().map(|meta| meta.key).collect()
    }

    async fn text(&self, key: &str) -> String {
        let bytes = self.memory.head(key).await.expect("head").bytes;
        let read = self.memory.read(key, 0..bytes, Access::Cached).await.expect("read");
        String::from_utf8(read.to_vec()).expect("text")
    }

    async fn pinned(&self, key: &str) -> PinnedObject {
        let meta = self.memory.head(key).await.expect("head");
        PinnedObject { url: url(key).to_string(), bytes: meta.bytes, version: meta.version }
    }
}

fn url(key: &str) -> BlobUrl {
    format!("memory:///{key}").parse().expect("url")
}

async fn publication(bench: &Bench, sync: bool) -> Publication {
    let (upload, tags) = bench.upload("out/part-00000.txt", "new").await;
    let part = PublishedPart {
        url: url("out/part-00000.txt"),
        upload,
        tags,
        bytes: 3,
        checksum: wire::digest(b"new"),
    };
    let mut replaced = Vec::new();
    for key in ["out/_SUCCESS", "out/part-00000.txt", "out/part-00001.txt"] {
        replaced.push(bench.pinned(key).await);
    }
    let job = "j1".parse().expect("job id");
    Publication {
        output: url("out"),
        job,
        parts: vec![part],
        quarantine: Vec::new(),
        manifest: ManifestBytes::Made(b"{}".to_vec()),
        replaced,
        overwrite: true,
        plan: Arc::new(plan(Vec::new())),
        sync,
    }
}

/// The plan of a job without input.
fn plan(uploads_before: Vec<String>) -> Plan {
    Plan {
        job: "j1".parse().expect("job id"),
        sort: SortSpec::new(Format::lines(b'\n')),
        objects: Vec::new(),
        splits: Vec::new(),
        partitions: 1,
        sample_seed: 0,
        samples_per_split: 1,
        output: url("out").to_string(),
        extension: "txt".to_owned(),
        scratch: url("s/_muster/d1/j1").to_string(),
        replaced: Vec::new(),
        uploads_before,
        fsync: false,
        attempts_max: 1,
        replica: None,
        bad_records: BadRecords::Fail,
        settings: None,
        left_out: Vec::new(),
    }
}

/// Parts with these contents, over nothing.
async fn publication_of(bench: &Bench, texts: &[&str], sync: bool) -> Publication {
    let mut parts = Vec::new();
    for (at, text) in texts.iter().enumerate() {
        let url = url(&format!("out/part-{at:05}.txt"));
        let (upload, tags) = bench.upload(url.key(), text).await;
        let (bytes, checksum) = (text.len() as u64, wire::digest(text.as_bytes()));
        parts.push(PublishedPart { url, upload, tags, bytes, checksum });
    }
    Publication { parts, replaced: Vec::new(), ..publication(&Bench::new(&OLD).await, sync).await }
}

const OLD: [&str; 4] = ["out/_SUCCESS", "out/part-00000.txt", "out/part-00001.txt", "elsewhere"];

#[tokio::test]
async fn a_commit_replaces_and_can_be_repeated() {
    for sync in [false, true] {
        let bench = Bench::new(&OLD).await;
        let publication = publication(&bench, sync).await;
        for _ in 0..2 {
            publish(&bench.stores, &bench.fence, &publication).await.expect("publish");
            assert_eq!(bench.keys().await, ["elsewhere", "out/_SUCCESS", "out/part-00000.txt"]);
            assert_eq!(
                &bench.memory.read("out/part-00000.txt", 0..3, Access::Cached).await.expect("read")
                    [..],
                b"new"
            );
        }
        assert_eq!(bench.memory.open_uploads(), 0);
    }
}

#[tokio::test]
async fn malformed_records_are_copied_before_the_output_is_whole() {
    let bench = Bench::new(&OLD).await;
    let mut publication = publication(&bench, false).await;
    let lines: Vec<u8> = (0..20 << 20).map(|at: u32| (at / 7) as u8).collect();
    let pointer = bench.stores.put_ref(&url("s/a.bad.jsonl"), lines.clone()).await.expect("put");
    let to = url("out/_quarantine/split-00000.jsonl");
    publication.quarantine = vec![(pointer.clone(), to.clone())];
    for _ in 0..2 {
        publish(&bench.stores, &bench.fence, &publication).await.expect("publish");
        let copied =
            bench.memory.read(to.key(), 0..lines.len() as u64, Access::Cached).await.expect("read");
        assert!(copied == lines, "the same bytes");
    }
    assert_eq!(bench.memory.open_uploads(), 0);
    // One that is not what was committed is not taken for it, and then OUTPUT is not whole.
    let mut damaged = publication.clone();
    for key in ["out/_SUCCESS", to.key()] {
        bench.memory.delete(key).await.expect("delete");
    }
    damaged.quarantine[0].0.digest ^= 1;
    let error = publish(&bench.stores, &bench.fence, &damaged).await.expect_err("damaged");
    assert!(error.message.contains("a.bad.jsonl"), "{error}");
    assert!(!bench.keys().await.contains(&"out/_SUCCESS".to_owned()));
    assert_eq!(bench.memory.open_uploads(), 0);
}

#[tokio::test]
async fn what_has_changed_since_the_plan_stays() {
    let bench = Bench::new(&OLD).await;
    let publication = publication(&bench, false).await;
    bench.memory.put("out/part-00001.txt", "somebody's".into()).await.expect("put");
    publish(&bench.stores, &bench.fence, &publication).await.expect("publish");
    assert!(bench.keys().await.contains(&"out/part-00001.txt".to_owned()));
}

#[tokio::test]
async fn a_lost_upload_is_not_taken_for_a_part() {
    let bench = Bench::new(&OLD).await;
    let publication = publication(&bench, false).await;
    bench
        .memory
        .abort_upload("out/part-00000.txt", &publication.parts[0].upload)
        .await
        .expect("abort");
    let error = publish(&bench.stores, &bench.fence, &publication).await.expect_err("lost");
    assert!(error.message.contains("part-00000.txt") && error.message.contains("lost"), "{error}");
    assert!(!bench.keys().await.contains(&"out/_SUCCESS".to_owned()), "no mixture looks whole");
}

/// As `muster sort s3://b/in -o s3://b/out --overwrite` does the second time: the store gives the
/// same bytes the same tag, and nothing tells new from old.
#[tokio::test]
async fn the_same_bytes_again_are_no_lost_upload() {
    let bench = Bench::new(&[]).await;
    for (turn, sync) in [(0, false), (1, false), (2, true)] {
        let mut publication = publication_of(&bench, &["same", "also the same"], sync).await;
        publication.manifest = ManifestBytes::Made(format!("{{{turn}}}").into_bytes());
        for key in bench.keys().await {
            publication.replaced.push(bench.pinned(&key).await);
        }
        // The second time as the next leader does it, after the first has been killed right after
        // it.
        for _ in 0..2 {
            publish(&bench.stores, &bench.fence, &publication).await.expect("publish");
            assert_eq!(
                bench.keys().await,
                ["out/_SUCCESS", "out/part-00000.txt", "out/part-00001.txt"]
            );
        }
        // And after one that was killed before it could write `_SUCCESS`.
        bench.memory.delete("out/_SUCCESS").await.expect("delete");
        publish(&bench.stores, &bench.fence, &publication).await.expect("publish");
        assert_eq!(bench.text("out/_SUCCESS").await, format!("{{{turn}}}"));
        assert_eq!(bench.memory.open_uploads(), 0);
    }
}

/// The upload is gone, and an object of its length stands: it is the part only if it has its bytes.
#[tokio::test]
async fn an_object_of_equal_length_is_not_taken_for_a_part() {
    for (stands, sound) in [("two", true), ("owt", false), ("twos", false)] {
        let bench = Bench::new(&[]).await;
        let publication = publication_of(&bench, &["one", "two"], false).await;
        let part = &publication.parts[1];
        bench.memory.abort_upload(part.url.key(), &part.upload).await.expect("abort");
        bench.memory.put(part.url.key(), stands.into()).await.expect("put");
        let published = publish(&bench.stores, &bench.fence, &publication).await;
        assert_eq!(published.is_ok(), sound, "{stands}: {published:?}");
        if let Err(error) = published {
            assert!(error.message.contains("part-00001.txt"), "{error}");
            assert!(!bench.keys().await.contains(&"out/_SUCCESS".to_owned()));
        }
        assert_eq!(bench.text(part.url.key()).await, stands, "what stands is left as it is");
    }
}

/// Nothing may be replaced that has come since the request was taken, with `--overwrite` or
/// without: it is seen before anything has changed.
#[tokio::test]
async fn what_somebody_has_put_into_output_since_is_seen_before_anything_changes() {
    for name in ["part-00001.txt", "_SUCCESS", "_quarantine/split-00000.jsonl"] {
        let bench = Bench::new(&[]).await;
        let mut publication = publication_of(&bench, &["one", "two"], false).await;
        let lines = bench.stores.put_ref(&url("s/a.bad.jsonl"), b"{}".to_vec()).await.expect("put");
        publication.quarantine = vec![(lines, url("out/_quarantine/split-00000.jsonl"))];
        let kept = url("s/manifest");
        let prepared = prepare(&bench.stores, &bench.fence, &publication, &kept)
            .await
            .expect("nothing stands there");
        publication.manifest = ManifestBytes::Stored(prepared);
        let key = format!("out/{name}");
        bench.memory.put(&key, "xyz".into()).await.expect("put");
        let before = bench.keys().await;
        for overwrite in [false, true] {
            publication.overwrite = overwrite;
            let seen = [
                prepare(&bench.stores, &bench.fence, &publication, &kept).await.map(drop),
                publish(&bench.stores, &bench.fence, &publication).await.map(drop),
            ];
            for seen in seen {
                let error = seen.expect_err(name);
                assert!(
                    error.kind == ErrorKind::Invalid && error.message.contains(&key),
                    "{error}"
                );
            }
            assert_eq!(
                (bench.keys().await, bench.memory.open_uploads()),
                (before.clone(), 2),
                "{name}"
            );
            assert_eq!(bench.text(&key).await, "xyz");
        }
    }
}

/// A leader that takes over amid the publication finds parts that its predecessor has completed:
/// they are the job's own.
#[tokio::test]
async fn parts_of_an_earlier_try_are_the_jobs_own() {
    for quarantined in [false, true] {
        let bench = Bench::new(&[]).await;
        let mut publication = publication_of(&bench, &["one", "two", ""], false).await;
        if quarantined {
            let lines =
                bench.stores.put_ref(&url("s/a.bad.jsonl"), b"{}".to_vec()).await.expect("put");
            let to = url("out/_quarantine/split-00000.jsonl");
            bench.memory.put(to.key(), "{}".into()).await.expect("put");
            publication.quarantine = vec![(lines, to)];
        }
        publication.overwrite = false;
        for part in [&publication.parts[0], &publication.parts[2]] {
            let done = bench
                .memory
                .complete_upload(part.url.key(), &part.upload, &part.tags, part.bytes, false)
                .await;
            done.expect("complete");
        }
        publish(&bench.stores, &bench.fence, &publication).await.expect("publish");
        let whole = bench.keys().await;
        assert!(
            whole.contains(&"out/_SUCCESS".to_owned())
                && whole.contains(&"out/part-00001.txt".to_owned())
        );
        assert_eq!(bench.memory.open_uploads(), 0);
    }
}

/// When a part turns out to be lost others may stand already: by then no `_SUCCESS` says that
/// OUTPUT is whole.
#[tokio::test]
async fn the_old_success_goes_before_the_first_part_stands() {
    let bench = Bench::new(&["out/_SUCCESS", "out/part-00000.txt"]).await;
    let mut publication = publication_of(&bench, &["one", "two"], false).await;
    for old in ["out/_SUCCESS", "out/part-00000.txt"] {
        publication.replaced.push(bench.pinned(old).await);
    }
    let lost = &publication.parts[1];
    bench.memory.abort_upload(lost.url.key(), &lost.upload).await.expect("abort");
    publish(&bench.stores, &bench.fence, &publication).await.expect_err("lost");
    assert_eq!(bench.keys().await, ["out/part-00000.txt"]);
    assert_eq!(bench.text("out/part-00000.txt").await, "one");
}

/// Every leader writes what was kept when the commit was decided, and nothing where that cannot be
/// had.
#[tokio::test]
async fn the_manifest_is_the_one_that_was_kept() {
    let bench = Bench::new(&[]).await;
    let mut publication = publication_of(&bench, &["one"], false).await;
    let kept = prepare(&bench.stores, &bench.fence, &publication, &url("s/manifest"))
        .await
        .expect("prepare");
    assert_eq!(bench.keys().await, ["s/manifest"], "OUTPUT has not changed");
    publication.manifest = ManifestBytes::Stored(kept.clone());
    bench.memory.put("s/manifest", "[]".into()).await.expect("put");
    let error =
        publish(&bench.stores, &bench.fence, &publication).await.expect_err("not what was kept");
    assert!(
        error.message.contains("s/manifest") && error.message.contains("manifest that was kept"),
        "{error}"
    );
    assert_eq!(
        (bench.keys().await.len(), bench.memory.open_uploads()),
        (1, 1),
        "nothing is touched"
    );
    bench.memory.put("s/manifest", "{}".into()).await.expect("put");
    publish(&bench.stores, &bench.fence, &publication).await.expect("publish");
    assert_eq!(bench.text("out/_SUCCESS").await, "{}");
}

/// A leader that was stopped and wakes after another has finished: it must not take the new
/// `_SUCCESS` away, nor anything else.
#[tokio::test]
async fn who_no_longer_leads_touches_nothing() {
    let bench = Bench::new(&OLD).await;
    let publication = publication(&bench, false).await;
    let (fence, ledger, clock) = fence::tests::leading().await;
    fence.check().await.expect("leads");
    ledger.begin(muster_protocol::ids::Epoch(5)).await;
    clock.advance_ms(60_000);
    let error = publish(&bench.stores, &fence, &publication).await.expect_err("fenced");
    assert_eq!(error.kind, ErrorKind::Fenced);
    assert_eq!(bench.keys().await.len(), OLD.len());
    assert_eq!(bench.memory.open_uploads(), 1);
    let leftovers = Leftovers {
        scratch: url("out"),
        replica: None,
        plan: bench.stores.put_ref(&url("plan"), b"x".to_vec()).await.expect("put"),
        output: url("out"),
        partitions: 1,
        uploads: vec![(url("out/part-00000.txt"), publication.parts[0].upload.clone())],
        empty_output: None,
    };
    assert_eq!(
        clean_up(&bench.stores, &fence, &"j1".parse().expect("job"), leftovers)
            .await
            .expect_err("fenced")
            .kind,
        ErrorKind::Fenced
    );
    assert_eq!((bench.keys().await.len(), bench.memory.open_uploads()), (OLD.len() + 1, 1));
}

/// A predecessor that is deposed in this instant may just have written it. To remove it would make
/// a whole result look unfinished.
#[tokio::test]
async fn no_success_is_removed_but_the_one_that_stood_when_the_job_was_submitted() {
    let bench = Bench::new(&OLD).await;
    let (store, success) =
        (bench.stores.open(&url("out")).await.expect("store"), url("out/_SUCCESS"));
    let old = bench.pinned(success.key()).await;
    bench.memory.put(success.key(), "{}".into()).await.expect("put");
    for pinned in [None, Some(&old)] {
        remove_old(&store, &bench.fence, &success, pinned).await.expect("nothing to remove");
        assert_eq!(bench.text(success.key()).await, "{}");
    }
    let old = bench.pinned(success.key()).await;
    remove_old(&store, &bench.fence, &success, Some(&old)).await.expect("removed");
    assert!(!bench.keys().await.contains(&success.key().to_owned()));
}

/// An answer of the fence serves for a moment; another leader may have begun in it, and may see the
/// old `_SUCCESS`.
#[tokio::test]
async fn the_new_success_is_written_only_by_who_has_asked_anew() {
    for sync in [false, true] {
        let bench = Bench::new(&[]).await;
        let publication = publication_of(&bench, &["one"], sync).await;
        let (fence, ledger, _) = fence::tests::leading().await;
        fence.check().await.expect("leads");
        ledger.begin(muster_protocol::ids::Epoch(5)).await;
        let error = publish(&bench.stores, &fence, &publication).await.expect_err("fenced");
        assert_eq!(error.kind, ErrorKind::Fenced);
        assert_eq!(bench.keys().await, ["out/part-00000.txt"], "what it was sure of, and no more");
        assert_eq!(bench.memory.open_uploads(), 0, "nobody else knows the one for it");
    }
}

#[tokio::test]
async fn clean_up_leaves_only_what_is_not_the_jobs() {
    let bench = Bench::new(&["s/_muster/d1/j1/a.run", "s/_muster/d1/j2/b.run", "out/other"]).await;
    let theirs = bench.memory.open_upload("out/part-00000.txt").await.expect("open");
    let plan = plan(vec![theirs.clone()]);
    let pointer = bench
        .stores
        .put_ref(&url("s/_muster/d1/j1/plan.1"), plan.to_bytes().expect("bytes"))
        .await
        .expect("put");
    let (known, _) = bench.upload("out/part-00000.txt", "x").await;
    let (unknown, _) = bench.upload("out/part-00000.txt", "x").await;
    bench.upload("s/_muster/d1/j1/b.run", "x").await;
    let (another, _) = bench.upload("out/photo.jpg", "x").await;
    let leftovers = Leftovers {
        scratch: url("s/_muster/d1/j1"),
        replica: None,
        plan: pointer,
        output: url("out"),
        partitions: 1,
        uploads: vec![(url("out/part-00000.txt"), known)],
        empty_output: None,
    };
    for _ in 0..2 {
        clean_up(&bench.stores, &bench.fence, &"j1".parse().expect("job"), leftovers.clone())
            .await
            .expect("clean up");
        assert_eq!(bench.keys().await, ["out/other", "s/_muster/d1/j2/b.run"]);
        let open: Vec<String> = bench
            .memory
            .list_uploads("", 10)
            .await
            .expect("list")
            .into_iter()
            .map(|open| open.upload)
            .collect();
        assert!(
            open.contains(&theirs) && open.contains(&another) && !open.contains(&unknown),
            "{open:?}"
        );
        assert_eq!(open.len(), 2);
    }
}

#[tokio::test]
async fn what_came_late_goes_and_nothing_else() {
    let bench = Bench::new(&[
        "out/_muster/d1/j1/sort.run",
        "out/_muster/d1/j2/sort.run",
        "out/part-00000.txt",
    ])
    .await;
    bench.upload("out/_muster/d1/j1/other.run", "late").await;
    bench.upload("out/part-00000.txt", "somebody's").await;
    let scratch = [url("out/_muster/d1/j1")];
    for found in [2, 0] {
        let swept = crate::driver::clean::sweep_late(&bench.stores, &bench.fence, &scratch).await;
        assert_eq!(swept.expect("sweep"), found);
    }
    assert_eq!(bench.keys().await, ["out/_muster/d1/j2/sort.run", "out/part-00000.txt"]);
    assert_eq!(bench.memory.open_uploads(), 1);
}

#[tokio::test]
async fn an_upload_that_no_store_has_given_is_gone() {
    let bench = Bench::new(&[]).await;
    let folder = tempfile::tempdir().expect("folder");
    let part = BlobUrl::from_path(&folder.path().join("part-00000.txt")).expect("url");
    let store = bench.stores.open(&part).await.expect("store");
    let upload = store.open_upload(part.key()).await.expect("open");
    for made_up in ["u", "../../made/up", ".part-00001.txt.0123456789abcdef.upload"] {
        crate::driver::clean::abort(&bench.stores, &bench.fence, &part, made_up)
            .await
            .expect(made_up);
    }
    let open = async || store.list_uploads(part.key(), 10).await.expect("list").len();
    assert_eq!(open().await, 1, "what is open stays");
    crate::driver::clean::abort(&bench.stores, &bench.fence, &part, &upload).await.expect("abort");
    assert_eq!(open().await, 0);
}

/// A store whose user may write and read, but neither delete nor abort nor list uploads.
struct Denying(Arc<MemoryBlobs>);

fn denied<T>() -> Result<T> {
    Err(Error::invalid("access denied"))
}

#[async_trait::async_trait]
impl Blobs for Denying {
    async fn list(&self, prefix: &str, limit: usize) -> Result<Vec<BlobMeta>> {
        self.0.list(prefix, limit).await
    }

    async fn survey(
        &self,
        wanted: &muster_platform::survey::Wanted,
    ) -> Result<muster_platform::survey::Survey> {
        self.0.survey(wanted).await
    }

    async fn head(&self, key: &str) -> Result<BlobMeta> {
        self.0.head(key).await
    }

    async fn read(
        &self,
        key: &str,
        range: std::ops::Range<u64>,
        access: Access,
    ) -> Result<bytes::Bytes> {
        self.0.read(key, range, access).await
    }

    async fn put(&self, key: &str, bytes: bytes::Bytes) -> Result<()> {
        self.0.put(key, bytes).await
    }

    async fn open_upload(&self, key: &str) -> Result<String> {
        self.0.open_upload(key).await
    }

    async fn upload_part(
        &self,
        key: &str,
        upload: &str,
        at: PartAt,
        data: bytes::Bytes,
    ) -> Result<String> {
        self.0.upload_part(key, upload, at, data).await
    }

    async fn complete_upload(
        &self,
        key: &str,
        upload: &str,
        tags: &[String],
        bytes: u64,
        sync: bool,
    ) -> Result<Completed> {
        self.0.complete_upload(key, upload, tags, bytes, sync).await
    }

    async fn abort_upload(&self, _key: &str, _upload: &str) -> Result<()> {
        denied()
    }

    async fn list_uploads(
        &self,
        _prefix: &str,
        _limit: usize,
    ) -> Result<Vec<muster_platform::store::OpenUpload>> {
        denied()
    }

    async fn delete(&self, _key: &str) -> Result<()> {
        denied()
    }

    async fn prune(&self, _prefix: &str) -> Result<()> {
        denied()
    }
}

#[tokio::test]
async fn what_may_not_be_deleted_is_named_and_no_reason_to_go_on() {
    let runs: Vec<String> = (0..400).map(|at| format!("s/_muster/d1/j1/{at:03}.run")).collect();
    let bench = Bench::new(&runs.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let pointer = url("s/_muster/d1/j1/plan.1");
    let pointer = bench
        .stores
        .put_ref(&pointer, plan(Vec::new()).to_bytes().expect("bytes"))
        .await
        .expect("put");
    let (upload, _) = bench.upload("out/part-00000.txt", "x").await;
    bench.stores.insert(Scheme::Memory, Arc::new(Denying(bench.memory.clone()))).await;
    let leftovers = Leftovers {
        scratch: url("s/_muster/d1/j1"),
        replica: None,
        plan: pointer,
        output: url("out"),
        partitions: 1,
        uploads: vec![(url("out/part-00000.txt"), upload)],
        empty_output: None,
    };
    let unremoved = clean_up(&bench.stores, &bench.fence, &"j1".parse().expect("job"), leftovers)
        .await
        .expect("it ends");
    // The upload, 400 runs, the plan, and three folders that could not be looked into.
    assert_eq!(unremoved.count, 405, "{unremoved:?}");
    let warning = unremoved.warning().expect("a warning");
    let words = [
        "out/part-00000.txt",
        "s/_muster/d1/j1/",
        "and 402 more",
        "access denied",
        "doctor --mend",
    ];
    assert!(words.iter().all(|word| warning.contains(word)), "{warning}");
}

#[tokio::test]
async fn an_old_success_that_may_not_be_deleted_leaves_everything_as_it_is() {
    let bench = Bench::new(&OLD).await;
    let publication = publication(&bench, false).await;
    bench.stores.insert(Scheme::Memory, Arc::new(Denying(bench.memory.clone()))).await;
    let error = publish(&bench.stores, &bench.fence, &publication).await.expect_err("refused");
    assert!(error.message.contains("out/_SUCCESS cannot be removed: access denied"), "{error}");
    assert_eq!(
        bench.keys().await,
        ["elsewhere", "out/_SUCCESS", "out/part-00000.txt", "out/part-00001.txt"]
    );
    assert_eq!(bench.text("out/part-00000.txt").await, "out/part-00000.txt");
}

#[tokio::test]
async fn output_that_leads_to_the_input_by_now_is_not_touched() {
    let dir = tempfile::tempdir().expect("dir");
    let at = |name: &str| BlobUrl::from_path(&dir.path().join(name)).expect("url").to_string();
    std::fs::create_dir(dir.path().join("d")).expect("folder");
    std::fs::write(dir.path().join("d/a.txt"), "b\na\n").expect("file");
    let bench = Bench::new(&OLD).await;
    let mut publication = publication(&bench, false).await;
    let objects = vec![PinnedObject { url: at("d/a.txt"), bytes: 4, version: "1".to_owned() }];
    publication.plan = Arc::new(Plan {
        objects,
        output: at("out"),
        scratch: at("out/_muster/d1/j1"),
        ..plan(vec![])
    });
    let kept = url("s/_muster/d1/j1/manifest");
    std::os::unix::fs::symlink(dir.path().join("d"), dir.path().join("out")).expect("link");
    let prepared = prepare(&bench.stores, &bench.fence, &publication, &kept).await.map(drop);
    for refused in [prepared, publish(&bench.stores, &bench.fence, &publication).await.map(drop)] {
        let error = refused.expect_err("OUTPUT is the input's folder");
        assert!(
            error.kind == ErrorKind::Invalid && error.message.contains("overlaps INPUT"),
            "{error}"
        );
    }
    assert_eq!(
        bench.keys().await,
        ["elsewhere", "out/_SUCCESS", "out/part-00000.txt", "out/part-00001.txt"]
    );
    assert_eq!(bench.text("out/part-00000.txt").await, "out/part-00000.txt");
}
