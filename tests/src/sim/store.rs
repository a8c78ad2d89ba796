//! The simulated object store: objects and multipart uploads, calls that take a while, are refused,
//! lose their answers or arrive late, and bytes that rot.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll};

use async_trait::async_trait;
use bytes::Bytes;

use muster_platform::etag;
use muster_platform::store::{Access, BlobMeta, Blobs, Completed, OpenUpload, PartAt};
use muster_platform::survey::{Survey, Wanted};
use muster_protocol::ids::{Phase, WorkerId};
use muster_protocol::{Error, ErrorKind, Result};

use super::core::{Core, Event, MS, Node, Ops, S, Shared, Way};
use super::dice::Dice;
use super::exec::{behalf, lock};
use super::jobs::url;
use super::script::{Fate, Happens};

/// After so long a caller gives up.
const TIME_OUT_US: u64 = 10 * S;

/// In a million reads of an object that cannot be read now and then, so many fail.
const FAILS_SOMETIMES: u32 = 300_000;

/// A call.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the names are those of the port")]
pub enum Call {
    List { prefix: String },
    Head { key: String },
    Read { key: String, range: Range<u64> },
    Put { key: String, bytes: Bytes },
    Open { key: String },
    Part { key: String, upload: String, index: u32, bytes: Bytes },
    Complete { key: String, upload: String, tags: usize, bytes: u64 },
    Abort { key: String, upload: String },
    ListUploads { prefix: String },
    Delete { key: String },
}

/// An answer.
#[derive(Debug)]
#[expect(missing_docs, reason = "the names are those of the port")]
pub enum Answer {
    Metas(Vec<BlobMeta>),
    Meta(BlobMeta),
    Bytes(Bytes),
    Done,
    Text(String),
    Uploads(Vec<OpenUpload>),
    Completed(Completed),
}

/// An object that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unreadable {
    /// How that is said.
    pub kind: ErrorKind,
    /// Whether every read fails, or only some.
    pub always: bool,
}

impl Unreadable {
    /// What a reader is told.
    pub fn error(self, key: &str) -> Error {
        let text = super::jobs::UNREADABLE
            .iter()
            .find(|(kind, _)| *kind == self.kind)
            .map_or("", |(_, text)| text);
        Error::new(self.kind, format!("{key}: {text}"))
    }
}

/// Below this lie the disks of workers, which no network leads to.
const DISKS: &str = "disk/";

/// Where the simulated store has a path of a worker's own disk.
pub fn disk_key(worker: &WorkerId, path: &str) -> String {
    format!("{DISKS}{worker}{path}")
}

/// Who made something, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Made {
    /// The process; none for what stood there before the run.
    pub by: Option<(Node, u32)>,
    /// When.
    pub at_us: u64,
    /// Whether its maker was told.
    pub known: bool,
}

/// An object.
#[derive(Debug, Clone)]
pub struct Object {
    /// What it holds.
    pub bytes: Bytes,
    /// Its version: a tag that follows from its bytes, as S3 has it.
    pub version: String,
    /// Where it comes from.
    pub made: Made,
}

/// An open multipart upload.
#[derive(Debug, Clone)]
pub struct Upload {
    /// What it would make appear.
    pub key: String,
    /// Its parts.
    pub parts: BTreeMap<u32, Bytes>,
    /// Where it comes from.
    pub made: Made,
}

impl Upload {
    /// The object that it would make appear.
    pub fn whole(&self) -> Vec<u8> {
        self.parts.values().flat_map(|part| part.iter().copied()).collect()
    }
}

/// The store.
pub struct SimStore {
    dice: Dice,
    ops: Ops<Call, Result<Answer>>,
    /// Objects by key.
    pub objects: BTreeMap<String, Object>,
    /// Open uploads by id.
    pub uploads: BTreeMap<String, Upload>,
    /// Which process opened an upload, by id, also of those that are closed.
    pub openers: BTreeMap<String, (Node, u32)>,
    counter: u64,
    /// Whether the tag of an uploaded object follows from those of its parts, as with AWS, or from
    /// its bytes alone, as with others.
    tags_of_parts: bool,
    /// Keys and upload ids that are not this deployment's to remove.
    pub foreign: BTreeSet<String>,
    /// Runs that were damaged.
    pub rotted: BTreeSet<String>,
    /// Input that cannot be read.
    pub unreadable: BTreeMap<String, Unreadable>,
    /// Of that, what somebody has tried to read.
    pub tried: BTreeSet<String>,
    /// Calls of workers to their own disks.
    local: BTreeSet<u64>,
    /// What stood in an OUTPUT and was changed by name, by a call that came after its caller had
    /// given up: a limit that `docs/design/leader.md` names.
    pub changed_late: BTreeSet<String>,
    /// Manifests that were written so late: each may stand beside parts of another job.
    pub written_late: BTreeSet<String>,
}

/// Whether a key lies below a folder.
fn inside(prefix: &str, key: &str) -> bool {
    let prefix = prefix.trim_end_matches('/');
    prefix.is_empty() || key.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'))
}

fn is_scratch(key: &str) -> bool {
    key.split('/').any(|segment| segment == muster_protocol::names::SCRATCH_DIR)
}

fn is_run(key: &str) -> bool {
    is_scratch(key) && key.ends_with(".run")
}

fn not_found(what: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("{what} is not there"))
}

fn late(what: &str) -> Error {
    Error::retry(format!("{what}: the store has not answered for {} s", TIME_OUT_US / S))
}

impl Call {
    fn verb(&self) -> &'static str {
        match self {
            Call::List { .. } => "list",
            Call::Head { .. } => "head",
            Call::Read { .. } => "read",
            Call::Put { .. } => "put",
            Call::Open { .. } => "open",
            Call::Part { .. } => "part",
            Call::Complete { .. } => "complete",
            Call::Abort { .. } => "abort",
            Call::ListUploads { .. } => "uploads",
            Call::Delete { .. } => "delete",
        }
    }

    /// Whether others may see what it does.
    fn changes(&self) -> bool {
        matches!(
            self,
            Call::Put { .. } | Call::Complete { .. } | Call::Abort { .. } | Call::Delete { .. }
        )
    }

    fn key(&self) -> &str {
        match self {
            Call::List { prefix } | Call::ListUploads { prefix } => prefix,
            Call::Head { key }
            | Call::Read { key, .. }
            | Call::Put { key, .. }
            | Call::Open { key }
            | Call::Part { key, .. }
            | Call::Complete { key, .. }
            | Call::Abort { key, .. }
            | Call::Delete { key } => key,
        }
    }
}

impl SimStore {
    /// An empty store.
    pub fn new(seed: u64) -> Self {
        Self {
            dice: Dice::of(seed, "store"),
            ops: Ops::default(),
            objects: BTreeMap::new(),
            uploads: BTreeMap::new(),
            openers: BTreeMap::new(),
            counter: 0,
            tags_of_parts: Dice::of(seed, "tags").below(2) == 0,
            foreign: BTreeSet::new(),
            rotted: BTreeSet::new(),
            unreadable: BTreeMap::new(),
            tried: BTreeSet::new(),
            local: BTreeSet::new(),
            changed_late: BTreeSet::new(),
            written_late: BTreeSet::new(),
        }
    }

    /// Puts an object there that is not of this run.
    pub fn place(&mut self, key: &str, bytes: Vec<u8>) {
        let made = Made { by: None, at_us: 0, known: true };
        let object = Object { version: etag::of_bytes(&bytes), bytes: bytes.into(), made };
        self.objects.insert(key.to_owned(), object);
    }

    /// Opens an upload that is not of this run.
    pub fn place_upload(&mut self, key: &str) -> String {
        self.counter += 1;
        let id = format!("upload-{}", self.counter);
        let made = Made { by: None, at_us: 0, known: true };
        self.uploads
            .insert(id.clone(), Upload { key: key.to_owned(), parts: BTreeMap::new(), made });
        id
    }

    /// Whether something is on its way that may make something.
    pub fn is_changing(&self) -> bool {
        let makes = |call: &Call| {
            matches!(call, Call::Open { .. } | Call::Put { .. } | Call::Complete { .. })
        };
        self.ops.under_way().any(makes)
    }

    fn list(&self, prefix: &str) -> Vec<BlobMeta> {
        let found = self.objects.iter().filter(|(key, _)| inside(prefix, key));
        found.map(|(key, object)| meta(key, object)).collect()
    }

    /// Fails for an object that cannot be read, or not this time.
    fn try_access(&mut self, key: &str) -> Result<()> {
        let Some(unreadable) = self.unreadable.get(key).copied() else { return Ok(()) };
        if !unreadable.always && !self.dice.chance(FAILS_SOMETIMES) {
            return Ok(());
        }
        self.tried.insert(key.to_owned());
        Err(unreadable.error(key))
    }

    fn read(&self, key: &str, range: &Range<u64>) -> Result<Bytes> {
        let object = self.objects.get(key).ok_or_else(|| not_found(key))?;
        let length = object.bytes.len() as u64;
        if range.end > length && !range.is_empty() {
            return Err(Error::corrupt(format!(
                "{key} ends at {length}, but bytes up to {} were asked for",
                range.end
            )));
        }
        let at = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX);
        Ok(if range.is_empty() {
            Bytes::new()
        } else {
            object.bytes.slice(at(range.start)..at(range.end))
        })
    }

    fn put(&mut self, key: String, bytes: Bytes, made: Made) {
        let version = etag::of_bytes(&bytes);
        self.objects.insert(key, Object { bytes, version, made });
    }

    fn complete(
        &mut self,
        key: &str,
        upload: &str,
        tags: usize,
        bytes: u64,
        made: Made,
    ) -> Result<Completed> {
        let Some(open) = self.uploads.get(upload) else {
            let stands =
                self.objects.get(key).is_some_and(|object| object.bytes.len() as u64 == bytes);
            return if stands { Ok(Completed::Unsure) } else { Err(not_found(upload)) };
        };
        let numbered = (0..u32::try_from(tags).unwrap_or(u32::MAX)).eq(open.parts.keys().copied());
        if open.key != key || !numbered {
            return Err(Error::invalid(format!("the parts of {upload} are not those of its tags")));
        }
        let whole = open.whole();
        if whole.len() as u64 != bytes {
            return Err(Error::corrupt(format!(
                "the upload of {key} has {} bytes, not {bytes}",
                whole.len()
            )));
        }
        let of_parts: Vec<String> = open.parts.values().map(|part| etag::of_bytes(part)).collect();
        let version = etag::of_parts(&of_parts).filter(|_| self.tags_of_parts);
        let version = version.unwrap_or_else(|| etag::of_bytes(&whole));
        self.uploads.remove(upload);
        self.objects.insert(key.to_owned(), Object { bytes: whole.into(), version, made });
        Ok(Completed::Now)
    }
}

fn meta(key: &str, object: &Object) -> BlobMeta {
    let (bytes, version) = (object.bytes.len() as u64, object.version.clone());
    BlobMeta {
        key: key.to_owned(),
        bytes,
        version,
        modified_unix_ms: 1_700_000_000_000 + object.made.at_us / 1000,
    }
}

impl Core {
    fn begin_store(&mut self, node: Node, call: Call) -> u64 {
        let (key, verb) = (call.key().to_owned(), call.verb());
        if let (Call::Read { .. }, true, Some(of)) = (&call, is_run(&key), behalf())
            && of.attempt.task.phase == Phase::Merge
        {
            self.check_run_read(&of.job, &of.attempt, &url(&key));
        }
        let reads = matches!(call, Call::Read { .. });
        self.check_authority(node, &call);
        let far_us = self.isolates(node, call.changes() && !is_scratch(&key));
        let op = self.store.ops.begin((node, self.nodes[node].life), self.now_us, call);
        let slow = self.nodes[node].slow;
        let weights = self.weights.clone();
        let dice = &mut self.store.dice;
        let go_us = dice.within(300, 6 * MS) * slow + far_us;
        let (refuse, lose_answer, lose_call, late_call) = (
            dice.chance(weights.refuse),
            dice.chance(weights.lose_answer),
            dice.chance(weights.lose_call),
            dice.chance(weights.late_call),
        );
        let (short, long_us) = (dice.chance(weights.short_read), dice.within(S, 25 * S));
        let soon = dice.chance(500_000);
        if let (Some(fate), _) = self.meets(Happens::Call(verb, &key), node) {
            self.store_fate(op, fate, &key, go_us);
            return op;
        }
        if key.starts_with(DISKS) {
            self.store.local.insert(op);
            self.after(go_us / 8, Event::StoreApply(op));
        } else if refuse {
            self.answer_store(op, Err(Error::retry(format!("{key}: 503 SlowDown"))), go_us);
        } else if lose_call || self.is_cut(node, Way::StoreOut) {
            self.answer_store(op, Err(late(&key)), TIME_OUT_US);
        } else if lose_answer {
            self.preset_store(op, Err(Error::retry(format!("{key}: the connection was reset"))));
            self.after(go_us, Event::StoreApply(op));
        } else if late_call {
            // Half of them after the caller has given up.
            let long_us = if soon { long_us / 5 } else { long_us };
            if long_us > TIME_OUT_US {
                self.preset_store(op, Err(late(&key)));
                self.after(TIME_OUT_US, Event::StoreAnswer(op));
            }
            self.after(long_us, Event::StoreApply(op));
        } else if reads && short {
            self.answer_store(
                op,
                Err(Error::corrupt(format!("{key}: the body ended early"))),
                go_us,
            );
        } else {
            self.after(go_us, Event::StoreApply(op));
        }
        op
    }

    fn store_fate(&mut self, op: u64, fate: Fate, key: &str, go_us: u64) {
        match fate {
            Fate::LoseCall => self.answer_store(op, Err(late(key)), TIME_OUT_US),
            Fate::LoseAnswer => {
                self.preset_store(
                    op,
                    Err(Error::retry(format!("{key}: the connection was reset"))),
                );
                self.after(go_us, Event::StoreApply(op));
            }
            Fate::Refuse => {
                self.answer_store(op, Err(Error::retry(format!("{key}: 503 SlowDown"))), go_us);
            }
            Fate::Flip => {
                self.flips.insert(op);
                self.after(go_us, Event::StoreApply(op));
            }
            Fate::DelayUs(delay_us) => {
                if delay_us > TIME_OUT_US {
                    self.preset_store(op, Err(late(key)));
                    self.after(TIME_OUT_US, Event::StoreAnswer(op));
                }
                self.after(delay_us, Event::StoreApply(op));
            }
        }
    }

    fn preset_store(&mut self, op: u64, answer: Result<Answer>) {
        if let Some(op) = self.store.ops.get_mut(op) {
            op.answer = Some(answer);
        }
    }

    fn answer_store(&mut self, op: u64, answer: Result<Answer>, pause_us: u64) {
        if let Some(op) = self.store.ops.get_mut(op) {
            op.call = None;
            op.answer = Some(answer);
        }
        self.after(pause_us, Event::StoreAnswer(op));
    }

    /// A call reaches the store.
    pub fn apply_store(&mut self, op: u64) {
        let Some(waiting) = self.store.ops.get_mut(op) else { return };
        let (node, life, gave_up) = (waiting.node, waiting.life, waiting.arrived);
        let known = waiting.answer.is_none() && !waiting.arrived;
        let Some(call) = waiting.call.take() else { return };
        // A call that was right when it was sent, and on its way while somebody took over, is one
        // that no fence holds back.
        let overtaken = waiting.sent_us < self.ledger.newest_us;
        let late = overtaken || gave_up || self.nodes[node].life != life || !self.nodes[node].up;
        self.check_store_call(node, &call, late);
        let made = Made { by: Some((node, life)), at_us: self.now_us, known };
        let mut answer = self.carry_out_call(made, call);
        if let (true, Ok(Answer::Bytes(bytes))) = (self.flips.remove(&op), &mut answer) {
            *bytes = flipped(bytes, &mut self.store.dice);
        }
        let back_us = self.store.dice.within(300, 6 * MS) * self.nodes[node].slow;
        if let Some(waiting) = self.store.ops.get_mut(op).filter(|waiting| !waiting.arrived) {
            waiting.answer.get_or_insert(answer);
            self.after(back_us, Event::StoreAnswer(op));
        }
    }

    fn carry_out_call(&mut self, made: Made, call: Call) -> Result<Answer> {
        let flip = self.weights.flip_read;
        let store = &mut self.store;
        match call {
            Call::List { prefix } => Ok(Answer::Metas(store.list(&prefix))),
            Call::Head { key } => store
                .objects
                .get(&key)
                .map(|object| Answer::Meta(meta(&key, object)))
                .ok_or_else(|| not_found(&key)),
            Call::Read { key, range } => {
                store.try_access(&key)?;
                let bytes = store.read(&key, &range)?;
                // Only scratch has checksums of our own; a lie about input is the store's to
                // prevent.
                let flips = is_scratch(&key) && !bytes.is_empty() && store.dice.chance(flip);
                Ok(Answer::Bytes(if flips { flipped(&bytes, &mut store.dice) } else { bytes }))
            }
            Call::Put { key, bytes } => {
                store.put(key, bytes, made);
                Ok(Answer::Done)
            }
            Call::Open { key } => {
                store.counter += 1;
                let id = format!("upload-{}", store.counter);
                store.openers.extend(made.by.map(|process| (id.clone(), process)));
                store.uploads.insert(id.clone(), Upload { key, parts: BTreeMap::new(), made });
                Ok(Answer::Text(id))
            }
            Call::Part { key, upload, index, bytes } => {
                let open = store.uploads.get_mut(&upload).filter(|open| open.key == key);
                let tag = etag::of_bytes(&bytes);
                open.ok_or_else(|| not_found(&upload))?.parts.insert(index, bytes);
                Ok(Answer::Text(tag))
            }
            Call::Complete { key, upload, tags, bytes } => {
                let before = store.objects.get(&key).map(|object| object.bytes.clone());
                let completed = store.complete(&key, &upload, tags, bytes, made);
                let same = before.is_some_and(|before| {
                    store.objects.get(&key).is_some_and(|now| now.bytes == before)
                });
                if tags > 1 {
                    self.mark(if is_run(&key) {
                        "run of several parts"
                    } else {
                        "output of several parts"
                    });
                }
                match &completed {
                    Ok(Completed::Now) if same && !is_scratch(&key) => {
                        self.mark("identical overwrite");
                    }
                    Ok(Completed::Now) => self.rot(&key),
                    Ok(Completed::Unsure) => self.mark("upload gone, object stands"),
                    Err(_) => self.mark("zombie upload completion refused"),
                }
                completed.map(Answer::Completed)
            }
            Call::Abort { upload, .. } => {
                store.uploads.remove(&upload);
                Ok(Answer::Done)
            }
            Call::ListUploads { prefix } => {
                let below = store
                    .uploads
                    .iter()
                    .filter(|(_, open)| open.key == prefix || inside(&prefix, &open.key));
                let mut found: Vec<OpenUpload> = below
                    .map(|(id, open)| OpenUpload { key: open.key.clone(), upload: id.clone() })
                    .collect();
                found.sort();
                Ok(Answer::Uploads(found))
            }
            Call::Delete { key } => {
                store.objects.remove(&key);
                Ok(Answer::Done)
            }
        }
    }

    /// A run that was just written may be damaged for good.
    fn rot(&mut self, key: &str) {
        let rot = self.weights.rot;
        if !is_run(key) || !self.store.dice.chance(rot) {
            return;
        }
        self.mark("run damaged");
        let store = &mut self.store;
        store.rotted.insert(key.to_owned());
        let how = store.dice.below(3);
        if let Some(object) = store.objects.get_mut(key) {
            let cut = object.bytes.len() / 2;
            match how {
                0 => object.bytes = flipped(&object.bytes, &mut store.dice),
                1 => object.bytes = object.bytes.slice(..cut),
                _ => drop(store.objects.remove(key)),
            }
        }
        self.line(&"store", &format!("{key} is damaged"));
    }

    /// An answer reaches its caller, or is lost on the way.
    pub fn store_answers(&mut self, op: u64) {
        let Some(node) = self.store.ops.get_mut(op).map(|op| op.node) else { return };
        if !self.store.local.remove(&op)
            && self.is_cut(node, Way::StoreIn)
            && let Some(op) = self.store.ops.get_mut(op)
            && let Some(Ok(Answer::Text(id))) = op.answer.replace(Err(late("the object")))
            && let Some(upload) = self.store.uploads.get_mut(&id)
        {
            upload.made.known = false;
        }
        self.store.ops.arrive(op);
    }
}

fn flipped(bytes: &Bytes, dice: &mut Dice) -> Bytes {
    let mut bytes = bytes.to_vec();
    let at = usize::try_from(dice.below(bytes.len() as u64)).unwrap_or_default();
    if let Some(byte) = bytes.get_mut(at) {
        *byte ^= 1 << dice.below(8);
    }
    bytes.into()
}

/// A process's connection to the store.
pub struct StorePort {
    /// The world.
    pub shared: Shared,
    /// Whose.
    pub node: Node,
    /// What stands before its keys: nothing, or the way to its own disk.
    pub base: String,
}

struct Calling {
    shared: Shared,
    node: Node,
    call: Option<Call>,
    op: u64,
}

impl Future for Calling {
    type Output = Result<Answer>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<Answer>> {
        let shared = self.shared.clone();
        let core = &mut *lock(&shared);
        if let Some(call) = self.call.take() {
            self.op = core.begin_store(self.node, call);
        }
        core.store
            .ops
            .poll(self.op, context)
            .map(|answer| answer.unwrap_or_else(|| Err(late("the object"))))
    }
}

impl Drop for Calling {
    /// Whoever waited has gone, with its process or its term: it never hears what came of the call.
    fn drop(&mut self) {
        if let Some(op) = lock(&self.shared).store.ops.get_mut(self.op) {
            op.arrived = true;
        }
    }
}

impl StorePort {
    fn key(&self, key: &str) -> String {
        format!("{}{key}", self.base)
    }

    fn call(&self, call: Call) -> Calling {
        Calling { shared: self.shared.clone(), node: self.node, call: Some(call), op: 0 }
    }
}

fn bug<T>(answer: &Answer) -> Result<T> {
    Err(Error::bug(format!("the simulated store gave {answer:?}, which was not asked for")))
}

#[async_trait]
impl Blobs for StorePort {
    async fn list(&self, prefix: &str, _limit: usize) -> Result<Vec<BlobMeta>> {
        match self.call(Call::List { prefix: prefix.to_owned() }).await? {
            Answer::Metas(metas) => Ok(metas),
            other => bug(&other),
        }
    }

    async fn survey(&self, wanted: &Wanted) -> Result<Survey> {
        wanted.choose(self.list(wanted.base(), wanted.bounds().objects).await?)
    }

    async fn head(&self, key: &str) -> Result<BlobMeta> {
        match self.call(Call::Head { key: self.key(key) }).await? {
            Answer::Meta(meta) => Ok(meta),
            other => bug(&other),
        }
    }

    async fn read(&self, key: &str, range: Range<u64>, _access: Access) -> Result<Bytes> {
        match self.call(Call::Read { key: self.key(key), range }).await? {
            Answer::Bytes(bytes) => Ok(bytes),
            other => bug(&other),
        }
    }

    async fn put(&self, key: &str, bytes: Bytes) -> Result<()> {
        self.call(Call::Put { key: key.to_owned(), bytes }).await.map(drop)
    }

    async fn open_upload(&self, key: &str) -> Result<String> {
        match self.call(Call::Open { key: key.to_owned() }).await? {
            Answer::Text(id) => Ok(id),
            other => bug(&other),
        }
    }

    async fn upload_part(
        &self,
        key: &str,
        upload: &str,
        at: PartAt,
        bytes: Bytes,
    ) -> Result<String> {
        let (key, upload) = (key.to_owned(), upload.to_owned());
        // Of its own: what comes is a part of a large buffer.
        let bytes = Bytes::copy_from_slice(&bytes);
        match self.call(Call::Part { key, upload, index: at.index, bytes }).await? {
            Answer::Text(tag) => Ok(tag),
            other => bug(&other),
        }
    }

    async fn complete_upload(
        &self,
        key: &str,
        upload: &str,
        tags: &[String],
        bytes: u64,
        _sync: bool,
    ) -> Result<Completed> {
        let (key, upload) = (key.to_owned(), upload.to_owned());
        match self.call(Call::Complete { key, upload, tags: tags.len(), bytes }).await? {
            Answer::Completed(completed) => Ok(completed),
            other => bug(&other),
        }
    }

    async fn abort_upload(&self, key: &str, upload: &str) -> Result<()> {
        self.call(Call::Abort { key: key.to_owned(), upload: upload.to_owned() }).await.map(drop)
    }

    async fn list_uploads(&self, prefix: &str, _limit: usize) -> Result<Vec<OpenUpload>> {
        match self.call(Call::ListUploads { prefix: prefix.to_owned() }).await? {
            Answer::Uploads(uploads) => Ok(uploads),
            other => bug(&other),
        }
    }

    async fn delete(&self, key: &str) -> Result<()> {
        self.call(Call::Delete { key: key.to_owned() }).await.map(drop)
    }

    async fn prune(&self, _prefix: &str) -> Result<()> {
        Ok(())
    }
}

impl Core {
    /// Who waits for a call, while somebody does.
    pub fn store_caller(&mut self, op: u64) -> Option<Node> {
        self.store.ops.get_mut(op).map(|op| op.node)
    }
}
