//! What can be looked at without any NATS: this machine's disk and memory, the store's rights, and
//! an OUTPUT.

use muster_platform::clock::SystemClock;
use muster_platform::config::Config;
use muster_platform::store::BlobUrl;
use muster_platform::stores::Stores;

use super::bucket;
use super::claims::{self, Dead};
use super::finding::Finding;
use crate::memory::Available;
use crate::output;

/// Looks at this machine and, where one is named, at an OUTPUT. `nats` says why nothing is seen of
/// a pool.
pub(super) async fn look(
    stores: &Stores,
    config: &Config,
    output: Option<&BlobUrl>,
    nats: &str,
) -> (Vec<Finding>, Option<Dead>) {
    let mut findings = vec![
        Finding::unknown(
            "nats",
            nats,
            "for a pool, name its server with --nats or NATS_URL; runs on this machine need none",
        ),
        memory(&Available::here()),
    ];
    let Some(output) = output else {
        findings.push(Finding::unknown(
            "output",
            "not looked at",
            "name one: --output PATH or URL",
        ));
        return (findings, None);
    };
    findings.extend(rights(stores, output).await);
    match claims::look(stores, config, output).await {
        Ok((seen, dead)) => {
            findings.extend(seen);
            (findings, dead)
        }
        Err(error) => {
            findings.push(Finding::problem(
                "output-claims",
                error.message,
                "check the rights on OUTPUT, and the AWS_* environment",
            ));
            (findings, None)
        }
    }
}

/// Whether OUTPUT takes what a job writes. A folder that is not there is not made for that.
async fn rights(stores: &Stores, output: &BlobUrl) -> Vec<Finding> {
    if output.file_path().is_some_and(|path| !path.is_dir()) {
        return vec![Finding::ok("output", format!("{output} is not there yet: a run makes it"))];
    }
    match bucket::probe(stores, output, &SystemClock::default()).await {
        Ok(probe) => bucket::judge(&output.to_string(), &probe),
        Err(error) => {
            vec![Finding::problem("output", error.message, "check the AWS_* environment")]
        }
    }
}

fn memory(available: &Available) -> Finding {
    let seen =
        format!("this process may use {} ({})", output::bytes(available.bytes), available.by());
    if available.bytes < crate::local::MEMORY_BYTES_MIN {
        let least = output::bytes(crate::local::MEMORY_BYTES_MIN);
        return Finding::problem(
            "memory",
            seen,
            format!("a run on this machine needs at least {least}"),
        );
    }
    Finding::ok("memory", seen)
}
