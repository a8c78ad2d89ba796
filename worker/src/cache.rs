//! What attempts of one job read again and again, kept for the next attempt within a bound of
//! bytes: plans, splitters, lists of runs, indexes of runs.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use muster_kernel::error::KernelError;
use muster_kernel::order::Order;
use muster_kernel::run::{RunFooter, RunIndex};
use muster_kernel::splitters::{self, Splitter};
use muster_platform::retry::Retry;
use muster_platform::store::Access;
use muster_platform::stores::Stores;
use muster_protocol::plan::{PLAN_BYTES_MAX, PinnedRun, PinnedRuns, Plan};
use muster_protocol::planted::{self, Bug};
use muster_protocol::wire::{BlobRef, DamageCause};
use muster_protocol::{Error, ErrorKind, Result};
use tokio::sync::OnceCell;

use crate::transfer::{Object, Span, read};

/// What is read of a run's end in the first go; an index that is longer takes a second.
const TAIL_BYTES: u64 = 64 << 10;

/// A job as attempts use it.
pub(crate) struct Job {
    pub(crate) plan: Plan,
    pub(crate) order: Arc<Order>,
    /// Global position of each object's first byte, and the input's size.
    pub(crate) positions: Vec<u64>,
}

/// The jobs that the workers of one process know: each is read once and held once, for a plan of
/// many objects is large. Cloning shares it.
#[derive(Clone, Default)]
pub struct Jobs {
    recent: Arc<Mutex<Recent<Place>>>,
}

/// Of one job: empty until somebody has read it.
type Place = Arc<OnceCell<Arc<Job>>>;

impl fmt::Debug for Jobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jobs").field("known", &lock(&self.recent).entries.len()).finish()
    }
}

impl Jobs {
    /// The place of a job, filled or not.
    fn place(&self, pointer: &BlobRef) -> Place {
        let mut recent = lock(&self.recent);
        if let Some(place) = recent.get(&pointer.url, pointer.digest) {
            return place;
        }
        let place = Place::default();
        recent.put(&pointer.url, pointer.digest, place.clone(), pointer.bytes);
        place
    }
}

/// The caches of one worker.
pub(crate) struct Cache {
    stores: Stores,
    retry: Retry,
    jobs: Jobs,
    splitters: Mutex<Recent<Arc<Vec<Splitter>>>>,
    runs: Mutex<Recent<Arc<PinnedRuns>>>,
    indexes: Mutex<Recent<Arc<RunIndex>>>,
}

impl Cache {
    /// Empty caches of about `bytes_max` in all; what is in use stays beyond that.
    pub(crate) fn new(stores: Stores, retry: Retry, bytes_max: usize) -> Self {
        let quarter = bytes_max / 4;
        let jobs = Jobs::default();
        lock(&jobs.recent).bytes_max = quarter as u64;
        Self {
            stores,
            retry,
            jobs,
            splitters: Mutex::new(Recent::new(quarter)),
            runs: Mutex::new(Recent::new(quarter)),
            indexes: Mutex::new(Recent::new(quarter)),
        }
    }

    /// The same, with the jobs that others of this process know.
    pub(crate) fn sharing(mut self, jobs: Jobs) -> Self {
        let bytes_max = lock(&self.jobs.recent).bytes_max;
        lock(&jobs.recent).bytes_max = bytes_max;
        self.jobs = jobs;
        self
    }

    async fn fetch(&self, pointer: &BlobRef) -> Result<bytes::Bytes> {
        self.retry.call(&"the job's data", || self.stores.get_ref(pointer, PLAN_BYTES_MAX)).await
    }

    /// The job of a journalled plan.
    pub(crate) async fn job(&self, pointer: &BlobRef) -> Result<Arc<Job>> {
        let read = async || {
            let plan = Plan::from_bytes(&self.fetch(pointer).await?)?;
            let order = Arc::new(Order::new(&plan.sort)?);
            Ok::<_, Error>(Arc::new(Job { positions: plan.positions(), plan, order }))
        };
        // Whoever comes while another reads it waits for that; where that fails, it reads it
        // itself.
        let place = self.jobs.place(pointer);
        place.get_or_try_init(read).await.cloned()
    }

    /// A job's splitters, checked; none for a job of one partition.
    pub(crate) async fn splitters(
        &self,
        pointer: Option<&BlobRef>,
        unique: bool,
    ) -> Result<Arc<Vec<Splitter>>> {
        let Some(pointer) = pointer else { return Ok(Arc::default()) };
        if let Some(found) = lock(&self.splitters).get(&pointer.url, pointer.digest) {
            return Ok(found);
        }
        let decoded = splitters::decode(&self.fetch(pointer).await?)
            .map_err(|e| Error::from(e).at(&pointer.url))?;
        let unique = unique && !planted::is(Bug::SplitEqualKeys);
        splitters::validate(&decoded, unique).map_err(|e| Error::from(e).at(&pointer.url))?;
        let decoded = Arc::new(decoded);
        lock(&self.splitters).put(&pointer.url, pointer.digest, decoded.clone(), pointer.bytes);
        Ok(decoded)
    }

    /// A job's pinned runs.
    pub(crate) async fn runs(&self, pointer: &BlobRef) -> Result<Arc<PinnedRuns>> {
        if let Some(runs) = lock(&self.runs).get(&pointer.url, pointer.digest) {
            return Ok(runs);
        }
        let runs = Arc::new(PinnedRuns::from_bytes(&self.fetch(pointer).await?)?);
        lock(&self.runs).put(&pointer.url, pointer.digest, runs.clone(), pointer.bytes);
        Ok(runs)
    }

    /// The index of a pinned run, read from one of its copies.
    pub(crate) async fn index(
        &self,
        run: &PinnedRun,
        object: &Object,
    ) -> Result<Arc<RunIndex>, IndexError> {
        if let Some(index) = lock(&self.indexes).get(&run.url, run.index_digest) {
            return Ok(index);
        }
        let (index, bytes) = self.read_index(run, object).await?;
        let index = Arc::new(index);
        lock(&self.indexes).put(&run.url, run.index_digest, index.clone(), bytes);
        Ok(index)
    }

    /// The same without a look at what is known already.
    pub(crate) async fn read_index(
        &self,
        run: &PinnedRun,
        object: &Object,
    ) -> Result<(RunIndex, u64), IndexError> {
        let corrupt = |e: KernelError| {
            IndexError::Damaged(DamageCause::Store, Error::from(e).at(format!("the run {object}")))
        };
        let failed = |e: Error| match missing_is_corrupt(e, object) {
            error if error.kind == ErrorKind::Corrupt => {
                IndexError::Damaged(DamageCause::Store, error)
            }
            error => IndexError::Away(error),
        };
        let span = |begin: u64, end: u64| Span {
            object: object.clone(),
            range: begin..end,
            access: Access::Cached,
        };
        let tail_begin = run.bytes.saturating_sub(TAIL_BYTES);
        let tail = read(&self.retry, &span(tail_begin, run.bytes)).await.map_err(failed)?;
        let footer_at = tail.len().saturating_sub(RunFooter::LEN);
        let footer = RunFooter::decode(&tail[footer_at..], run.bytes).map_err(corrupt)?;
        let index_end = footer.index_offset() + u64::from(footer.index_bytes());
        let index_bytes = match footer.index_offset().checked_sub(tail_begin) {
            Some(skip) => {
                tail.slice(usize::try_from(skip).unwrap_or(footer_at).min(footer_at)..footer_at)
            }
            None => {
                read(&self.retry, &span(footer.index_offset(), index_end)).await.map_err(failed)?
            }
        };
        let index = RunIndex::decode(&index_bytes, &footer).map_err(corrupt)?;
        if footer.index_digest() != run.index_digest {
            let (found, expected) = (footer.index_digest(), run.index_digest);
            let what = format!(
                "the run {object}: its index has digest {found:016x}, but {expected:016x} was \
                    committed"
            );
            return Err(IndexError::Damaged(DamageCause::Writer, Error::corrupt(what)));
        }
        Ok((index, index_bytes.len() as u64))
    }
}

/// Why an index could not be had.
#[derive(Debug)]
pub(crate) enum IndexError {
    /// The run is missing, short or damaged; whose fault it seems.
    Damaged(DamageCause, Error),
    /// Its store does not answer.
    Away(Error),
}

/// A committed run that is not there is damaged, not unknown.
pub(crate) fn missing_is_corrupt(error: Error, run: &Object) -> Error {
    match error.kind {
        ErrorKind::NotFound => {
            Error::corrupt(format!("the run {run} is missing: {}", error.message))
        }
        _ => error,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The most recently used values, newest last, within a number of bytes.
#[derive(Default)]
struct Recent<V> {
    entries: Vec<Entry<V>>,
    bytes: u64,
    bytes_max: u64,
}

struct Entry<V> {
    url: String,
    digest: u64,
    value: V,
    bytes: u64,
}

impl<V: Clone> Recent<V> {
    fn new(bytes_max: usize) -> Self {
        Self { entries: Vec::new(), bytes: 0, bytes_max: bytes_max as u64 }
    }

    fn get(&mut self, url: &str, digest: u64) -> Option<V> {
        let at =
            self.entries.iter().position(|entry| entry.digest == digest && entry.url == url)?;
        self.entries[at..].rotate_left(1);
        self.entries.last().map(|entry| entry.value.clone())
    }

    /// Keeps `value` and lets go of the oldest; the newest stays, however large it is.
    fn put(&mut self, url: &str, digest: u64, value: V, bytes: u64) {
        if self.get(url, digest).is_some() {
            return;
        }
        self.bytes += bytes;
        self.entries.push(Entry { url: url.to_owned(), digest, value, bytes });
        while self.bytes > self.bytes_max && self.entries.len() > 1 {
            self.bytes -= self.entries.remove(0).bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_goes_first() {
        let mut recent = Recent::new(10);
        recent.put("a", 1, 'a', 4);
        recent.put("b", 2, 'b', 4);
        assert_eq!(recent.get("a", 1), Some('a'));
        recent.put("c", 3, 'c', 4);
        assert_eq!(
            (recent.get("a", 1), recent.get("b", 2), recent.get("c", 3)),
            (Some('a'), None, Some('c'))
        );
        recent.put("d", 4, 'd', 100);
        assert_eq!(
            (recent.get("d", 4), recent.get("a", 1), recent.entries.len()),
            (Some('d'), None, 1)
        );
        assert_eq!(recent.get("d", 5), None);
    }
}
