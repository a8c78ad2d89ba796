//! What asks a process to end: Ctrl-C and Ctrl-\, SIGTERM, a terminal that is gone (a lost ssh), a
//! CPU limit. All of them end it in good order.

use std::io;
use std::sync::OnceLock;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Where the kernel says what this process ignores.
const STATUS: &str = "/proc/self/status";
/// SIGXCPU and SIGXFSZ have no name in tokio.
const XCPU: i32 = 24;
const XFSZ: i32 = 25;

/// What asks to end, by the keyboard and otherwise.
pub(crate) struct EndSignals {
    keyboard: Vec<Signal>,
    others: Vec<Signal>,
}

impl EndSignals {
    /// From now on these signals no longer kill: they are what [`EndSignals::next`] gives.
    pub(crate) fn watch() -> Self {
        let watched = Self::try_watch();
        watched.unwrap_or_else(|error| {
            tracing::error!(%error, "signals cannot be watched; this process can only be killed");
            Self { keyboard: Vec::new(), others: Vec::new() }
        })
    }

    fn try_watch() -> io::Result<Self> {
        // Asked once, before the first handler stands: what is handled is no longer ignored.
        static HANGUP_IGNORED: OnceLock<bool> = OnceLock::new();
        let ignored = *HANGUP_IGNORED.get_or_init(|| {
            let status = std::fs::read_to_string(STATUS).unwrap_or_default();
            is_ignored(&status, SignalKind::hangup().as_raw_value())
        });
        let keyboard = vec![signal(SignalKind::interrupt())?, signal(SignalKind::quit())?];
        let mut others =
            vec![signal(SignalKind::terminate())?, signal(SignalKind::from_raw(XCPU))?];
        if !ignored {
            // Under nohup it is ignored: the user wants this process to outlive the terminal.
            others.push(signal(SignalKind::hangup())?);
        }
        Ok(Self { keyboard, others })
    }

    /// Waits for the next of them; true for one from the keyboard.
    pub(crate) async fn next(&mut self) -> bool {
        let any = |signals: &mut Vec<Signal>, context: &mut std::task::Context<'_>| {
            signals.iter_mut().any(|signal| signal.poll_recv(context).is_ready())
        };
        std::future::poll_fn(|context| {
            if any(&mut self.keyboard, context) {
                std::task::Poll::Ready(true)
            } else if any(&mut self.others, context) {
                std::task::Poll::Ready(false)
            } else {
                std::task::Poll::Pending
            }
        })
        .await
    }
}

/// A write beyond the file size limit (ulimit -f) fails with an error that is told, where the
/// signal would kill the process halfway.
pub(crate) fn outlive_file_size_limit() {
    if let Err(error) = signal(SignalKind::from_raw(XFSZ)) {
        tracing::warn!(%error, "a write beyond the file size limit (ulimit -f) will end this \
            process");
    }
}

/// Whether a process whose status (`/proc/self/status`) this is ignores a signal.
fn is_ignored(status: &str, number: i32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    u32::try_from(number - 1).is_ok_and(|bit| mask.checked_shr(bit).unwrap_or_default() & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read_from_the_kernel() {
        let status = "Name:\tmuster\n\
                      SigBlk:\tffffffffffffffff\n\
                      SigIgn:\t0000000000001001\n\
                      SigCgt:\t0000000000000001\n";
        for (number, expected) in
            [(1, true), (2, false), (13, true), (15, false), (0, false), (65, false), (-1, false)]
        {
            assert_eq!(is_ignored(status, number), expected, "{number}");
        }
        for unknown in ["", "SigIgn:\tnonsense\n", "SigIgn:"] {
            assert!(!is_ignored(unknown, 1), "{unknown}");
        }
    }
}
