//! What lies in a bucket below muster's own folder and belongs to nothing that is known. The leader
//! removes what it knows; the rest is found and shown here, and removed only where somebody says so
//! (P8).

use std::collections::BTreeMap;

use futures::{StreamExt, TryStreamExt, stream};
use muster_platform::store::{BlobMeta, BlobUrl, OpenUpload};
use muster_platform::stores::Stores;
use muster_protocol::ids::{DeploymentId, JobId};
use muster_protocol::names::{PROBE_PREFIX, SCRATCH_DIR};
use muster_protocol::{Error, ErrorKind, Result};
use serde::Serialize;

use super::finding::Finding;
use crate::client::Api;
use crate::output;

/// Objects and uploads that one look may find.
const LISTED_MAX: usize = 200_000;
/// Deletions side by side.
const AT_ONCE: usize = 16;
/// What changed so recently may be somebody's running job.
const RECENT_MS: u64 = 60 * 60 * 1000;

/// All below one `_muster/<deployment>/<job>`, or below another name directly in `_muster`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(super) struct Group {
    /// Path below muster's folder.
    pub(super) path: String,
    pub(super) objects: u64,
    pub(super) bytes: u64,
    /// Open uploads.
    pub(super) uploads: u64,
    /// When the newest object was written; 0 where there is none or the store does not tell.
    pub(super) newest_unix_ms: u64,
}

impl Group {
    /// Whose it is by its name.
    fn owner(&self) -> Option<(DeploymentId, JobId)> {
        let (deployment, job) = self.path.split_once('/')?;
        Some((deployment.parse().ok()?, job.parse().ok()?))
    }

    fn age_ms(&self, now_unix_ms: u64) -> u64 {
        now_unix_ms.saturating_sub(self.newest_unix_ms)
    }

    /// What it is, for people.
    pub(super) fn describe(&self, now_unix_ms: u64) -> String {
        let uploads = if self.uploads > 0 {
            format!(", {} open uploads", self.uploads)
        } else {
            String::new()
        };
        let age = match self.newest_unix_ms {
            0 => String::new(),
            _ => format!(
                ", last written {} ago",
                output::seconds(self.age_ms(now_unix_ms) / 1000 * 1000)
            ),
        };
        format!(
            "{SCRATCH_DIR}/{}: {} objects, {}{uploads}{age}",
            output::plain(&self.path),
            self.objects,
            output::bytes(self.bytes)
        )
    }

    /// Whether it was written to so recently that somebody may be at work there.
    pub(super) fn is_recent(&self, now_unix_ms: u64, recent_ms: u64) -> bool {
        self.newest_unix_ms > 0 && self.age_ms(now_unix_ms) < recent_ms
    }
}

/// What the coordinator knows of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    /// It runs, or its clean-up is not done: its scratch is the leader's.
    AtWork,
    /// It has ended and the leader has cleaned up.
    Cleaned,
    /// Nothing.
    Nothing,
}

/// Whose a group is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The leader's; hands off.
    Belongs,
    /// Nobody's that is known here, and why.
    Unknown(&'static str),
}

/// Whose a group is, as far as the deployment that leads here knows.
pub(super) fn verdict(
    group: &Group,
    ours: &DeploymentId,
    known: impl Fn(&JobId) -> Known,
) -> Verdict {
    if group.path.split('/').next().is_some_and(|first| first.starts_with(PROBE_PREFIX)) {
        return Verdict::Unknown("an interrupted muster doctor left it");
    }
    match group.owner() {
        None => Verdict::Unknown("it is not named as muster names things"),
        Some((deployment, _)) if &deployment != ours => Verdict::Unknown(
            "it is of another deployment, which may be at work elsewhere or be gone",
        ),
        Some((_, job)) => match known(&job) {
            Known::AtWork => Verdict::Belongs,
            Known::Cleaned => {
                Verdict::Unknown("its job has ended and was cleaned up; this came later")
            }
            Known::Nothing => Verdict::Unknown("its deployment knows no such job (any more)"),
        },
    }
}

/// Groups what was found by what owns it. `root` is the key of muster's folder.
pub(super) fn group(root: &str, objects: &[BlobMeta], uploads: &[OpenUpload]) -> Vec<Group> {
    let path_of = |key: &str| {
        let relative = key.strip_prefix(root).map_or(key, |rest| rest.trim_start_matches('/'));
        let mut segments = relative.split('/');
        let first = segments.next().unwrap_or_default();
        match (segments.next(), segments.next()) {
            // Only what has a name below its job's folder is scratch of a job.
            (Some(second), Some(_)) if !first.starts_with(PROBE_PREFIX) => {
                format!("{first}/{second}")
            }
            _ => first.to_owned(),
        }
    };
    let mut groups: BTreeMap<String, Group> = BTreeMap::new();
    for meta in objects {
        let path = path_of(&meta.key);
        let group =
            groups.entry(path.clone()).or_insert_with(|| Group { path, ..Group::default() });
        group.objects += 1;
        group.bytes += meta.bytes;
        group.newest_unix_ms = group.newest_unix_ms.max(meta.modified_unix_ms);
    }
    for open in uploads {
        let path = path_of(&open.key);
        let group =
            groups.entry(path.clone()).or_insert_with(|| Group { path, ..Group::default() });
        group.uploads += 1;
    }
    groups.into_values().collect()
}

/// Where all of muster's own lies in a bucket.
fn root(bucket: &BlobUrl) -> BlobUrl {
    bucket.join(SCRATCH_DIR)
}

async fn list(stores: &Stores, below: &BlobUrl) -> Result<(Vec<BlobMeta>, Vec<OpenUpload>)> {
    let store = stores.open(below).await?;
    let objects = store.list(below.key(), LISTED_MAX).await.map_err(|e| e.at(below))?;
    let uploads = store.list_uploads(below.key(), LISTED_MAX).await.map_err(|e| e.at(below))?;
    Ok((objects, uploads))
}

/// All groups of a bucket that belong to nothing known. The bucket is listed before the coordinator
/// is asked, so that a job of which anything was listed is known to it.
///
/// # Errors
/// The store's or the coordinator's; nothing is decided then.
pub(super) async fn find(
    stores: &Stores,
    bucket: &BlobUrl,
    ours: &DeploymentId,
    api: &Api,
) -> Result<Vec<(Group, &'static str)>> {
    let root = root(bucket);
    let (objects, uploads) = list(stores, &root).await?;
    let groups = group(root.key(), &objects, &uploads);
    let mut found = Vec::new();
    for group in groups {
        if let Verdict::Unknown(why) = ask(&group, ours, api).await? {
            found.push((group, why));
        }
    }
    Ok(found)
}

async fn ask(group: &Group, ours: &DeploymentId, api: &Api) -> Result<Verdict> {
    let known = match group.owner() {
        Some((deployment, job)) if &deployment == ours => match api.status(&job).await {
            Ok(status) if status.cleaned => Known::Cleaned,
            Ok(_) => Known::AtWork,
            Err(error) if error.kind == ErrorKind::NotFound => Known::Nothing,
            Err(error) => return Err(error),
        },
        _ => Known::Nothing,
    };
    Ok(verdict(group, ours, |_| known))
}

/// Removes a group, after asking once more whose it is. Gives what was removed.
///
/// # Errors
/// The store's; `Fenced` where it belongs to a job by now.
pub(super) async fn remove(
    stores: &Stores,
    bucket: &BlobUrl,
    group: &Group,
    ours: &DeploymentId,
    api: &Api,
) -> Result<String> {
    if ask(group, ours, api).await? == Verdict::Belongs {
        return Err(Error::new(
            ErrorKind::Fenced,
            format!("{} belongs to a job by now", group.path),
        ));
    }
    let below = root(bucket).join(&group.path);
    let store = stores.open(&below).await?;
    let (objects, uploads) = list(stores, &below).await?;
    let counted = (uploads.len(), objects.len());
    let abort = |open: OpenUpload| {
        let store = store.clone();
        async move { store.abort_upload(&open.key, &open.upload).await }
    };
    stream::iter(uploads.into_iter().map(abort))
        .buffer_unordered(AT_ONCE)
        .try_collect::<()>()
        .await?;
    let delete = |key: String| {
        let store = store.clone();
        async move { store.delete(&key).await }
    };
    // Something that is no folder may have the group's own name.
    let keys = objects.into_iter().map(|meta| meta.key).chain([below.key().to_owned()]);
    stream::iter(keys.map(delete)).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
    // Folders are empty now; those above are muster's own and go where nothing else is in them.
    store.prune(below.key()).await?;
    if let Some((folder, _)) = group.path.split_once('/') {
        store.prune(root(bucket).join(folder).key()).await?;
    }
    store.prune(root(bucket).key()).await?;
    Ok(format!(
        "{SCRATCH_DIR}/{}: {} objects and {} uploads removed",
        output::plain(&group.path),
        counted.1,
        counted.0
    ))
}

/// What leftovers mean.
pub(super) fn judge(found: &[(Group, &'static str)], now_unix_ms: u64) -> Vec<Finding> {
    const CHECK: &str = "leftovers";
    if found.is_empty() {
        return vec![Finding::ok(CHECK, "nothing lies in the bucket that no deployment knows")];
    }
    let finding = |(group, why): &(Group, &'static str)| {
        let advice = if group.is_recent(now_unix_ms, RECENT_MS) {
            "somebody may be at work there; if not, muster doctor --mend removes it"
        } else {
            "nobody removes it by itself; muster doctor --mend asks, and removes it"
        };
        Finding::warning(CHECK, format!("{}; {why}", group.describe(now_unix_ms)), advice)
    };
    found.iter().map(finding).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(key: &str, bytes: u64, modified_unix_ms: u64) -> BlobMeta {
        BlobMeta { key: key.to_owned(), bytes, version: String::new(), modified_unix_ms }
    }

    fn open(key: &str) -> OpenUpload {
        OpenUpload { key: key.to_owned(), upload: "u".to_owned() }
    }

    #[test]
    fn what_lies_there_is_grouped_by_job() {
        let objects = [
            meta("s/_muster/d1/j1/plan", 10, 5),
            meta("s/_muster/d1/j1/a.run", 20, 9),
            meta("s/_muster/d1/j2/plan", 1, 1),
            meta("s/_muster/doctor-1/small", 3, 2),
            meta("s/_muster/stray", 4, 2),
        ];
        let groups = group(
            "s/_muster",
            &objects,
            &[open("s/_muster/d1/j1/b.run"), open("s/_muster/d9/j/x")],
        );
        let seen: Vec<_> = groups
            .iter()
            .map(|g| (g.path.as_str(), g.objects, g.bytes, g.uploads, g.newest_unix_ms))
            .collect();
        assert_eq!(
            seen,
            [
                ("d1/j1", 2, 30, 1, 9),
                ("d1/j2", 1, 1, 0, 1),
                ("d9/j", 0, 0, 1, 0),
                ("doctor-1", 1, 3, 0, 2),
                ("stray", 1, 4, 0, 2)
            ]
        );
    }

    #[test]
    fn only_what_no_deployment_knows_is_left_over() {
        let ours: DeploymentId = "d1".parse().expect("id");
        let check = |path: &str, known: Known, expected: Option<&str>| {
            let group = Group { path: path.to_owned(), ..Group::default() };
            match (verdict(&group, &ours, |_| known), expected) {
                (Verdict::Belongs, None) => {}
                (Verdict::Unknown(why), Some(word)) => assert!(why.contains(word), "{path}: {why}"),
                (verdict, _) => panic!("{path}: {verdict:?}"),
            }
        };
        check("d1/j1", Known::AtWork, None);
        check("d1/j1", Known::Cleaned, Some("later"));
        check("d1/j1", Known::Nothing, Some("knows no such job"));
        check("d2/j1", Known::AtWork, Some("another deployment"));
        check("doctor-17", Known::AtWork, Some("doctor"));
        check("stray", Known::AtWork, Some("not named"));
        check("d1/-j", Known::AtWork, Some("not named"));
    }

    #[test]
    fn what_is_fresh_is_told_apart() {
        let group = Group {
            path: "d2/j".to_owned(),
            objects: 2,
            bytes: 3000,
            uploads: 1,
            newest_unix_ms: 10_000,
        };
        assert_eq!(
            group.describe(70_500),
            "_muster/d2/j: 2 objects, 3.00 kB, 1 open uploads, last written 1m ago"
        );
        assert!(group.is_recent(70_500, RECENT_MS) && !group.is_recent(70_500, 60_000));
        let advice = |now_unix_ms| judge(&[(group.clone(), "why")], now_unix_ms)[0].advice.clone();
        assert!(
            advice(70_500).contains("may be at work") && advice(10 * RECENT_MS).contains("asks")
        );
    }
}
