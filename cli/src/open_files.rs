//! The limit of open files: raised to what this process may have, and checked before work begins
//! rather than found in the midst of it.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::exit::Exit;

/// What a process holds open whatever it does: connections, event loops, its data folder.
const BASE: u64 = 64;
/// Most files and connections that one slot has open at once: reads and parts in flight, spills,
/// connections to the store that idle.
const PER_SLOT: u64 = 64;
/// More than this is of no use.
const WANTED_MAX: u64 = 65_536;

/// Makes room for so many slots.
///
/// # Errors
/// Where this process may not open as many files as they need.
pub(crate) fn make_room(slots: u32) -> Result<(), Exit> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = maximum.map_or(WANTED_MAX, |maximum| maximum.min(WANTED_MAX));
    let mut limit = current.unwrap_or(u64::MAX);
    if limit < wanted {
        let raised = Rlimit { current: Some(wanted), maximum };
        match setrlimit(Resource::Nofile, raised) {
            Ok(()) => limit = wanted,
            Err(error) => {
                tracing::warn!(limit, wanted, %error, "the limit of open files stays as it is");
            }
        }
    }
    check(limit, slots)
}

fn check(limit: u64, slots: u32) -> Result<(), Exit> {
    let needed = BASE + PER_SLOT * u64::from(slots);
    if limit >= needed {
        return Ok(());
    }
    Err(Exit::failed(format!(
        "this process may open {limit} files, and {slots} threads need up to {needed}: raise the \
            limit (ulimit -n), or give fewer threads"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_little_is_said_with_both_figures() {
        assert!(check(1024, 8).is_ok() && check(BASE + PER_SLOT, 1).is_ok());
        let error = format!("{:?}", check(100, 2).expect_err("too few"));
        assert!(error.contains("100 files") && error.contains("192"), "{error}");
    }
}
