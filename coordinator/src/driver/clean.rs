//! Removes what an ended job leaves: its uploads, then all of its scratch, then folders that are
//! empty now.
//!
//! Nothing else is touched. In scratch the job's own prefix is all its own. In OUTPUT, which is
//! claimed by this job alone, an open upload to a part's name is its own unless the plan pins it as
//! older: it may be that of a worker that died before it could report it. The plan goes last, so
//! that a repeat still knows.

use std::collections::BTreeSet;

use futures::{StreamExt, TryStreamExt, stream};

use muster_platform::store::{BlobUrl, OpenUpload, Scheme};
use muster_platform::stores::Stores;
use muster_protocol::ids::JobId;
use muster_protocol::names::{self, SCRATCH_DIR};
use muster_protocol::plan::{PLAN_BYTES_MAX, Plan};
use muster_protocol::planted::{self, Bug};
use muster_protocol::{ErrorKind, Result};

use super::claims;
use super::fence::Fence;
use super::publish::{AT_ONCE, refused, remove};
use crate::job::io::{Leftovers, Unremoved};

/// Objects that one listing of scratch may give.
const LISTED_MAX: usize = 1_000_000;
/// Open uploads that one listing may give.
pub(super) const UPLOADS_MAX: usize = 100_000;

/// Removes the leftovers, and says what the store refuses to remove: no repeat would change that.
/// Harmless where that has happened before.
///
/// # Errors
/// `Fenced` where somebody else leads; else the first error of the store that may pass, naming the
/// object.
pub(super) async fn clean_up(
    stores: &Stores,
    fence: &Fence,
    job: &JobId,
    leftovers: Leftovers,
) -> Result<Unremoved> {
    // Whoever has taken OUTPUT from this job has uploads there that nobody here knows.
    let alone = claims::is_alone(stores, fence, &leftovers.output, job).await?;
    let mut unremoved = abort_all(stores, fence, leftovers.uploads.clone()).await?;
    if alone
        && let Some(plan) = plan_of(stores, &leftovers).await?
        && plan.knows_uploads_before()
    {
        match unknown_uploads(stores, &leftovers, &plan).await {
            Ok(unknown) => unremoved.join(abort_all(stores, fence, unknown).await?),
            // There may be none; whether there are, nobody can see.
            Err(error) if error.kind == ErrorKind::Invalid => {
                tracing::warn!(%error, output = %leftovers.output, "open uploads cannot be looked \
                    for");
            }
            Err(error) => return Err(error),
        }
    }
    let Leftovers { scratch, replica, plan, output, empty_output, .. } = leftovers;
    if let Some(replica) = replica {
        unremoved.join(sweep(stores, fence, &replica, &plan.url).await?);
    }
    unremoved.join(sweep(stores, fence, &scratch, &plan.url).await?);
    let released = claims::release(stores, fence, &output, job).await;
    refused(&mut unremoved, &output, released)?;
    if let Some(output) = empty_output.filter(|_| alone) {
        // The job made these, and no others: what else somebody has put there stays, an empty
        // folder too.
        for folder in [output.join(names::QUARANTINE_DIR), output] {
            fence.check().await?;
            let removed = stores.open(&folder).await?.remove_folder(folder.key()).await;
            refused(&mut unremoved, &folder, removed)?;
        }
    }
    Ok(unremoved)
}

/// Removes what has come to the scratches of a job since they were cleaned, and says how much that
/// was.
///
/// # Errors
/// As [`clean_up`].
pub(super) async fn sweep_late(
    stores: &Stores,
    fence: &Fence,
    scratches: &[BlobUrl],
) -> Result<u64> {
    let mut found = 0;
    for scratch in scratches {
        let store = stores.open(scratch).await?;
        let open = match store.list_uploads(scratch.key(), UPLOADS_MAX).await {
            // What this user may not see, it cannot have missed the first time only.
            Err(error) if error.kind == ErrorKind::Invalid => 0,
            open => open.map_err(|e| e.at(scratch))?.len(),
        };
        let left = store.list(scratch.key(), LISTED_MAX).await.map_err(|e| e.at(scratch))?.len();
        let unremoved = if open + left > 0 {
            sweep(stores, fence, scratch, "").await?
        } else {
            Unremoved::default()
        };
        found += ((open + left) as u64).saturating_sub(unremoved.count);
    }
    Ok(found)
}

/// Removes all of a scratch, one object of it last, and says what the store refuses to remove.
async fn sweep(stores: &Stores, fence: &Fence, scratch: &BlobUrl, last: &str) -> Result<Unremoved> {
    let store = stores.open(scratch).await?;
    let mut unremoved = Unremoved::default();
    match store.list_uploads(scratch.key(), UPLOADS_MAX).await {
        Ok(open) => {
            let open =
                open.into_iter().map(|open| (scratch.with_key(open.key), open.upload)).collect();
            unremoved.join(abort_all(stores, fence, open).await?);
        }
        Err(error) if error.kind == ErrorKind::Invalid => {
            tracing::warn!(%error, %scratch, "open uploads cannot be looked for");
        }
        Err(error) => return Err(error.at(scratch)),
    }
    let by_age = planted::is(Bug::CleanByAge);
    let all = if by_age {
        scratch.key().rsplit_once('/').map_or("", |(above, _)| above)
    } else {
        scratch.key()
    };
    let left = match store.list(all, LISTED_MAX).await {
        Err(error) if error.kind == ErrorKind::Invalid => {
            unremoved.note(scratch, &error);
            return Ok(unremoved);
        }
        left => left.map_err(|e| e.at(scratch))?,
    };
    let urls: Vec<BlobUrl> = left.into_iter().map(|meta| scratch.with_key(meta.key)).collect();
    let (last, others) = urls.into_iter().partition(|url| url.to_string() == last);
    unremoved.join(remove(&store, fence, others).await?);
    unremoved.join(remove(&store, fence, last).await?);
    fence.check().await?;
    for folder in folders(scratch) {
        let pruned = store.prune(folder.key()).await;
        refused(&mut unremoved, &folder, pruned)?;
    }
    Ok(unremoved)
}

/// The job's plan; none where it is gone, and with it all that an earlier try has removed, or where
/// it is damaged.
async fn plan_of(stores: &Stores, leftovers: &Leftovers) -> Result<Option<Plan>> {
    match stores
        .get_ref(&leftovers.plan, PLAN_BYTES_MAX)
        .await
        .and_then(|bytes| Plan::from_bytes(&bytes))
    {
        Ok(plan) => Ok(Some(plan)),
        Err(error) if error.kind.is_passing() => Err(error),
        Err(error) => {
            tracing::debug!(%error, url = leftovers.plan.url, "no plan to compare open uploads \
                with");
            Ok(None)
        }
    }
}

/// Uploads to the job's parts that nobody has reported.
async fn unknown_uploads(
    stores: &Stores,
    leftovers: &Leftovers,
    plan: &Plan,
) -> Result<Vec<(BlobUrl, String)>> {
    let Leftovers { output, partitions, .. } = leftovers;
    let store = stores.open(output).await?;
    let mut asked = vec![output.clone()];
    if matches!(output.scheme(), Scheme::S3 { .. }) {
        asked.extend(own_objects(output, *partitions, plan));
    }
    let ask = |url: BlobUrl| {
        let store = store.clone();
        async move { store.list_uploads(url.key(), UPLOADS_MAX).await.map_err(|e| e.at(&url)) }
    };
    let open: BTreeSet<OpenUpload> = stream::iter(asked.into_iter().map(ask))
        .buffer_unordered(AT_ONCE)
        .try_fold(BTreeSet::new(), collect)
        .await?;
    let own: BTreeSet<String> =
        own_objects(output, *partitions, plan).map(|url| url.key().to_owned()).collect();
    let before: BTreeSet<&String> = plan.uploads_before.iter().collect();
    let trusts = planted::is(Bug::TrustListing);
    let quarantine = output.join(names::QUARANTINE_DIR);
    let is_own =
        |key: &String| own.contains(key) || quarantine.contains(&output.with_key(key.clone()));
    let fresh = open
        .into_iter()
        .filter(|open| (trusts || !before.contains(&open.upload)) && is_own(&open.key));
    Ok(fresh.map(|open| (output.with_key(open.key), open.upload)).collect())
}

/// All that a job may have begun to upload into OUTPUT. Some stores list open uploads by the whole
/// key only, so each is asked for.
fn own_objects(output: &BlobUrl, partitions: u32, plan: &Plan) -> impl Iterator<Item = BlobUrl> {
    plan.output_names(partitions).map(|name| output.join(&name))
}

async fn collect(
    mut all: BTreeSet<OpenUpload>,
    some: Vec<OpenUpload>,
) -> Result<BTreeSet<OpenUpload>> {
    all.extend(some);
    Ok(all)
}

/// Aborts uploads, and says which of them the store refuses to abort.
async fn abort_all(
    stores: &Stores,
    fence: &Fence,
    uploads: Vec<(BlobUrl, String)>,
) -> Result<Unremoved> {
    let abort_one = |(url, upload): (BlobUrl, String)| async move {
        let aborted = abort(stores, fence, &url, &upload).await;
        (format!("the upload {upload} to {url}"), aborted)
    };
    let mut unremoved = Unremoved::default();
    let mut aborted = stream::iter(uploads.into_iter().map(abort_one)).buffer_unordered(AT_ONCE);
    while let Some((what, aborted)) = aborted.next().await {
        refused(&mut unremoved, &what, aborted)?;
    }
    Ok(unremoved)
}

/// Aborts one upload. A store that no longer knows it has nothing left of it.
///
/// Its id is a worker's word, and a store may refuse one that it cannot have given otherwise than
/// as unknown, each time anew; whoever waits for the end of that upload would wait until the
/// phase's time-out. So what a store refuses to abort counts as gone if no such upload is open
/// under that very key.
pub(super) async fn abort(
    stores: &Stores,
    fence: &Fence,
    url: &BlobUrl,
    upload: &str,
) -> Result<()> {
    fence.check().await?;
    let store = stores.open(url).await?;
    let Err(error) = store.abort_upload(url.key(), upload).await else { return Ok(()) };
    if error.kind == ErrorKind::NotFound {
        return Ok(());
    }
    match store.list_uploads(url.key(), UPLOADS_MAX).await {
        Ok(open) if open.iter().all(|open| open.upload != upload) => {
            tracing::debug!(%error, %url, "no such upload is open");
            Ok(())
        }
        // What cannot be listed may be open.
        _ => Err(error.at(url)),
    }
}

/// The job's scratch, and the folders above it that are muster's own:
/// `…/_muster/<deployment>/<job>`, innermost first.
fn folders(scratch: &BlobUrl) -> Vec<BlobUrl> {
    let mut folders = vec![scratch.clone()];
    let mut key = scratch.key();
    while let Some((parent, _)) = key.rsplit_once('/') {
        if !parent.split('/').any(|segment| segment == SCRATCH_DIR) || folders.len() == 3 {
            break;
        }
        folders.push(scratch.with_key(parent));
        key = parent;
    }
    folders
}

#[cfg(test)]
mod tests {
    use muster_kernel::format::Format;
    use muster_kernel::spec::SortSpec;
    use muster_protocol::plan::BadRecords;

    use super::*;

    fn plan(splits: usize, bad_records: BadRecords) -> Plan {
        Plan {
            job: "j1".parse().expect("job id"),
            sort: SortSpec::new(Format::lines(b'\n')),
            objects: Vec::new(),
            splits: vec![Vec::new(); splits],
            partitions: 1,
            sample_seed: 0,
            samples_per_split: 1,
            output: "s3://bucket/out".to_owned(),
            extension: "txt".to_owned(),
            scratch: "s3://bucket/_muster/d1/j1".to_owned(),
            replaced: Vec::new(),
            uploads_before: Vec::new(),
            fsync: false,
            attempts_max: 1,
            replica: None,
            bad_records,
            settings: None,
            left_out: Vec::new(),
        }
    }

    #[test]
    fn every_object_of_the_job_is_asked_for_open_uploads() {
        let output: BlobUrl = "s3://bucket/out".parse().expect("url");
        let keys = |partitions: u32, plan: &Plan| -> Vec<String> {
            own_objects(&output, partitions, plan).map(|url| url.key().to_owned()).collect()
        };
        let all = [
            "out/part-00000.txt",
            "out/part-00001.txt",
            "out/_SUCCESS",
            "out/_quarantine/split-00000.jsonl",
        ];
        assert_eq!(keys(2, &plan(1, BadRecords::Quarantine)), all);
        assert_eq!(keys(2, &plan(1, BadRecords::Skip)), all[..3]);
        assert_eq!(keys(0, &plan(1, BadRecords::Fail)), ["out/_SUCCESS"]);
        assert_eq!(keys(50_000, &plan(9, BadRecords::Quarantine)).len(), 50_010);
    }

    #[test]
    fn only_own_folders_are_pruned() {
        let scratch: BlobUrl = "/data/out/_muster/d1/j1".parse().expect("url");
        let keys: Vec<String> = folders(&scratch).iter().map(|url| url.key().to_owned()).collect();
        assert_eq!(keys, ["data/out/_muster/d1/j1", "data/out/_muster/d1", "data/out/_muster"]);
    }
}
