//! The proof at the end of a drill: what stands in OUTPUT is what the calm run made of the same
//! input, and nothing else is left.

use std::process::Stdio;

use muster_platform::store::{Access, BlobUrl};
use muster_platform::stores::Stores;
use muster_protocol::api::Manifest;
use muster_protocol::{Error, Result};
use serde::Serialize;
use serde_json::Value;

use super::pool::Setting;

/// Objects that a look for leftovers lists.
const LISTED_MAX: usize = 10_000;
/// Largest manifest that is read.
const MANIFEST_BYTES_MAX: u64 = 64 << 20;

/// What `muster verify` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Seen {
    pub(super) records: u64,
    pub(super) checksum: String,
    pub(super) in_order: bool,
}

/// Runs `muster verify`, in a process of its own as a user would.
pub(super) fn verify(setting: &Setting, path: &str) -> Result<Seen> {
    let mut command = setting.muster(&setting.nats.url)?;
    let done = command.args(["verify", path, "--json"]).stderr(Stdio::inherit()).output();
    let done = done.map_err(|e| Error::invalid(format!("cannot run muster verify: {e}")))?;
    let report: Value = serde_json::from_slice(&done.stdout).map_err(|e| {
        Error::invalid(format!("muster verify {path} ended with {}: {e}", done.status))
    })?;
    Ok(Seen {
        records: report["records"].as_u64().unwrap_or_default(),
        checksum: report["checksum"].as_str().unwrap_or_default().to_owned(),
        in_order: report["in_order"] == true,
    })
}

/// The manifest of an output.
pub(super) async fn manifest(stores: &Stores, output: &BlobUrl) -> Result<Manifest> {
    let url = output.join(muster_protocol::names::SUCCESS);
    let store = stores.open(&url).await?;
    let bytes = store.head(url.key()).await?.bytes.min(MANIFEST_BYTES_MAX);
    let text = store.read(url.key(), 0..bytes, Access::Cached).await?;
    serde_json::from_slice(&text).map_err(|e| Error::invalid(format!("{url} is no manifest: {e}")))
}

/// One claim, and whether it holds.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Claim {
    pub(super) name: &'static str,
    pub(super) holds: bool,
    pub(super) text: String,
}

/// What is compared.
pub(super) struct Evidence {
    pub(super) input: Seen,
    pub(super) calm: Seen,
    pub(super) shaken: Seen,
    pub(super) calm_manifest: Manifest,
    pub(super) shaken_manifest: Manifest,
    /// Objects in scratch and open uploads that nobody needs any more.
    pub(super) left: Vec<String>,
}

/// The claims of the proof.
pub(super) fn claims(evidence: &Evidence) -> Vec<Claim> {
    let Evidence { input, calm, shaken, calm_manifest, shaken_manifest, left } = evidence;
    let claim = |name, holds, text: String| Claim { name, holds, text };
    let parts = |manifest: &Manifest| {
        let of = |part: &muster_protocol::api::ManifestPart| {
            (part.name.clone(), part.bytes, part.checksum.clone())
        };
        manifest.parts.iter().map(of).collect::<Vec<_>>()
    };
    let same = parts(calm_manifest) == parts(shaken_manifest);
    vec![
        claim(
            "records",
            shaken.records == input.records,
            format!("{} of {} that went in", shaken.records, input.records),
        ),
        claim(
            "checksum",
            shaken.checksum == input.checksum && shaken.checksum == calm.checksum,
            format!("{}; input {}, calm run {}", shaken.checksum, input.checksum, calm.checksum),
        ),
        claim(
            "order",
            shaken.in_order && calm.in_order,
            if shaken.in_order {
                "ascending over all parts".to_owned()
            } else {
                "NOT ascending".to_owned()
            },
        ),
        claim(
            "bytes",
            same,
            format!(
                "{} parts, {} those of the calm run",
                shaken_manifest.parts.len(),
                if same { "byte by byte" } else { "NOT" }
            ),
        ),
        claim(
            "left over",
            left.is_empty(),
            if left.is_empty() {
                "nothing in scratch, no open upload".to_owned()
            } else {
                left.join(", ")
            },
        ),
    ]
}

/// What lies in scratch, and which uploads to the output are open.
pub(super) async fn left_over(
    stores: &Stores,
    scratch: &BlobUrl,
    output: &BlobUrl,
) -> Result<Vec<String>> {
    let mut left: Vec<String> = Vec::new();
    let store = stores.open(scratch).await?;
    left.extend(store.list(scratch.key(), LISTED_MAX).await?.into_iter().map(|meta| meta.key));
    left.extend(
        store.list_uploads(scratch.key(), LISTED_MAX).await?.into_iter().map(|open| open.key),
    );
    let uploads = stores.open(output).await?.list_uploads(output.key(), LISTED_MAX).await?;
    left.extend(uploads.into_iter().map(|open| format!("upload of {}", open.key)));
    Ok(left)
}
