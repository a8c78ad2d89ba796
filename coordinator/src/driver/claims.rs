//! The claims on OUTPUT (`muster_platform::claim`) as a leader goes by them: taken when a job is
//! planned, confirmed before OUTPUT changes, renewed until it is cleaned, released then. Without a
//! [`Claims`](muster_platform::claim::Claims) at hand all of this is nothing.

use muster_platform::store::BlobUrl;
use muster_platform::stores::Stores;
use muster_protocol::Result;
use muster_protocol::ids::JobId;
use muster_protocol::wire::BlobRef;

use super::fence::Fence;

/// Claims OUTPUT for a job that is being planned.
///
/// # Errors
/// `Invalid`, naming the owner, where somebody else holds it; else as the store.
pub(super) async fn take(
    stores: &Stores,
    fence: &Fence,
    output: &BlobUrl,
    job: &JobId,
    existed: bool,
) -> Result<()> {
    match fence.claims() {
        Some(claims) => claims.take(stores, output, job, existed, fence).await,
        None => Ok(()),
    }
}

/// Gives up the claim of a job of which nothing comes.
///
/// # Errors
/// As the store.
pub(super) async fn withdraw(stores: &Stores, fence: &Fence, job: &JobId) -> Result<()> {
    match fence.claims() {
        Some(claims) => claims.withdraw(stores, job, fence).await,
        None => Ok(()),
    }
}

/// The fence for what changes a job's OUTPUT: it also looks at the claim. `publishing` is the
/// manifest in scratch, from the moment on when parts may appear.
///
/// # Errors
/// `Invalid` where somebody else holds OUTPUT; else as the store.
pub(super) async fn holding(
    stores: &Stores,
    fence: &Fence,
    (output, job): (&BlobUrl, &JobId),
    publishing: Option<&BlobRef>,
) -> Result<Fence> {
    match fence.claims() {
        Some(claims) => {
            Ok(fence.holding(claims.confirm(stores, (output, job), publishing, fence).await?))
        }
        None => Ok(fence.clone()),
    }
}

/// Whether nobody has taken OUTPUT from an ended job that is cleaned up.
///
/// # Errors
/// As the store.
pub(super) async fn is_alone(
    stores: &Stores,
    fence: &Fence,
    output: &BlobUrl,
    job: &JobId,
) -> Result<bool> {
    match fence.claims() {
        Some(claims) => claims.is_alone(stores, output, job).await,
        None => Ok(true),
    }
}

/// Removes the claim of a job of which nothing else is left.
///
/// # Errors
/// As the store.
pub(super) async fn release(
    stores: &Stores,
    fence: &Fence,
    output: &BlobUrl,
    job: &JobId,
) -> Result<()> {
    match fence.claims() {
        Some(claims) => claims.release(stores, output, job, fence).await,
        None => Ok(()),
    }
}
