//! Logging: structured, to stderr, as text or JSON. Fixed fields: `job phase task attempt worker
//! epoch`.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::FmtSpan;

use crate::quiet::Quiet;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Log lines about what others send as often as they like, within the bound of [`Quiet`].
#[derive(Debug, Default)]
pub struct Bounded {
    quiet: Quiet,
}

impl Bounded {
    /// Whether a line of this kind is to be written; if not, it is counted.
    pub fn tells(&mut self, now_ms: u64, kind: &'static str) -> bool {
        self.look(now_ms);
        self.quiet.tells(now_ms, kind)
    }

    /// Writes how many lines were left out, where a period is over.
    pub fn look(&mut self, now_ms: u64) {
        for (kind, suppressed) in self.quiet.over(now_ms) {
            tracing::warn!(
                kind,
                suppressed,
                "more of the same came, and was not logged one by one"
            );
        }
    }

    /// The same at the end, whether a period is over or not.
    pub fn end(&mut self) {
        self.look(u64::MAX);
    }
}

/// Sends log lines of this process to `writer`. `MUSTER_LOG` sets the filter (as `RUST_LOG` does
/// elsewhere); else `level` holds for muster, and `warn` for its libraries unless `level` is `off`.
/// With `MUSTER_LOG_SPANS=1` each span (an attempt, an append to the journal, a heartbeat, a
/// report) that ends writes a line with its times. A second call changes nothing.
pub fn init<W>(format: LogFormat, level: &str, writer: W)
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let ours =
        ["muster", "muster_platform", "muster_protocol", "muster_coordinator", "muster_worker"];
    let libraries = if level == "off" { "off" } else { "warn" };
    // What fails there comes back as an error; besides, they warn of whatever stands in ~/.aws that
    // is none of ours.
    let quiet = ["aws_config", "aws_runtime"];
    let levels = ours.map(|name| (name, level)).into_iter().chain(quiet.map(|name| (name, "off")));
    let default = levels
        .fold(libraries.to_owned(), |filter, (name, level)| format!("{filter},{name}={level}"));
    let (filter, refused) = match EnvFilter::try_from_env("MUSTER_LOG") {
        Ok(filter) => (filter, None),
        Err(error) => (EnvFilter::new(default), std::env::var_os("MUSTER_LOG").map(|_| error)),
    };
    let spans = std::env::var_os("MUSTER_LOG_SPANS").is_some_and(|value| value == "1");
    let ends = if spans { FmtSpan::CLOSE } else { FmtSpan::NONE };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_span_events(ends)
        .with_writer(writer);
    // A line that cannot be written (the terminal is gone, the disk is full) would be told by
    // eprintln!, which panics where stderr is what fails.
    let builder = builder.log_internal_errors(false);
    // An error means that logging was set up before, as it is by an embedding program or another
    // test.
    drop(match format {
        LogFormat::Text => {
            builder.with_target(false).with_ansi(std::io::stderr().is_terminal()).try_init()
        }
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    });
    if let Some(error) = refused {
        tracing::warn!(%error, "MUSTER_LOG is no filter, and left alone");
    }
}
