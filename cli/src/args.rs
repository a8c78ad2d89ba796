//! The command line as clap sees it. Scripts rely on it: names stay.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::memory;

/// Sorts data larger than a machine on a pool of workers that share nothing but a NATS server and a
/// bucket.
#[derive(Debug, Parser)]
#[command(
    name = "muster",
    version,
    propagate_version = true,
    about,
    max_term_width = 110,
    after_help = "Exit codes: 0 succeeded, 1 failed or not in order, 2 wrong usage, 3 nothing to \
        connect to, 130 interrupted."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Sort INPUT into parts below OUTPUT; without NATS settings it all runs here
    Sort(Box<SortArgs>),
    /// Start a worker; it takes tasks of any coordinator on its NATS server
    Worker(WorkerArgs),
    /// Start a coordinator, which leads jobs
    Coordinator(CoordinatorArgs),
    /// List jobs
    Jobs(ClientArgs),
    /// Say where a job stands
    Status(JobArgs),
    /// Follow a job to its end
    Watch(JobArgs),
    /// End a job; its OUTPUT stays as it was
    Cancel(JobArgs),
    /// List workers
    Workers(ClientArgs),
    /// Let a worker finish what it has and take no more
    Drain(DrainArgs),
    /// Generate records as gensort 1.5 does, byte for byte
    Gen(GenArgs),
    /// Check order, count, checksum and duplicates as valsort does
    Verify(VerifyArgs),
    /// Show the history of a job, or of all that happened
    Events(EventsArgs),
    /// Find what is wrong with NATS, the bucket, the clock, the disk or the pool, and how to mend
    /// it
    Doctor(DoctorArgs),
    /// Run a job while processes are killed, stopped and cut off, and prove that it came to the
    /// same bytes
    Drill(DrillArgs),
    /// Print what a role may do on NATS, as permissions of a nats-server
    ///
    /// Without --role those of all roles, as blocks named after them; that of a worker with a user
    /// of its own is for the id WORKER_ID, which is to be replaced. With --role a block
    /// "permissions" that goes into a user of the server's settings. deploy/nats/make.sh makes
    /// whole settings of them.
    Rights(RightsArgs),
    /// Print completions for a shell
    ///
    /// bash: `muster completions bash > /etc/bash_completion.d/muster`; zsh: into a folder of
    /// `fpath`, as `_muster`; fish: `~/.config/fish/completions/muster.fish`.
    Completions(CompletionsArgs),
    /// Print the manual page, or write a page for each command into a folder
    Man(ManArgs),
}

#[derive(Debug, Args)]
pub(crate) struct RightsArgs {
    /// Of this role alone
    #[arg(long, value_enum, value_name = "ROLE")]
    pub(crate) role: Option<RightsRole>,
    /// With --role worker: of the worker of this id, which has a user of its own; else of any
    /// worker
    #[arg(long, value_name = "WORKER", requires = "role")]
    pub(crate) id: Option<String>,
    /// The deployment's namespace, as in its settings
    #[arg(long, value_name = "NS", default_value = muster_protocol::names::DEFAULT_NAMESPACE)]
    pub(crate) namespace: String,
    /// Settings of a nats-server, or JSON
    #[arg(long, value_enum, default_value_t)]
    pub(crate) format: RightsFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RightsRole {
    Coordinator,
    Worker,
    Client,
    Operator,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum RightsFormat {
    #[default]
    Nats,
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// Which shell
    #[arg(value_enum)]
    pub(crate) shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// Folder for the pages muster.1, muster-sort.1 and so on, like /usr/local/share/man/man1; it
    /// is made where it is missing
    #[arg(value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
}

/// Run a job while processes are killed, stopped and cut off, and prove that it came to the same
/// bytes.
///
/// A private pool of real processes is started on this machine: a nats-server, coordinators and
/// workers. It sorts generated records once in peace and once while a schedule drawn from the seed
/// kills (-9), stops (SIGSTOP) and cuts its processes off, and they inject passing faults into
/// themselves. Exit code 0 says that the job succeeded and that every claim of the proof holds.
#[derive(Debug, Args)]
pub(crate) struct DrillArgs {
    /// How many records of 100 bytes
    #[arg(
        short = 'n', value_name = "RECORDS", default_value_t = 200_000,
        value_parser = clap::value_parser!(u64).range(1..=1_000_000_000)
    )]
    pub(crate) records: u64,
    /// What happens is drawn from this; else from a random one, which is printed
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// How many workers
    #[arg(
        long, value_name = "N", default_value_t = 4,
        value_parser = clap::value_parser!(u32).range(1..=64)
    )]
    pub(crate) workers: u32,
    /// How many coordinators; all but one stand by
    #[arg(
        long, value_name = "N", default_value_t = 2,
        value_parser = clap::value_parser!(u32).range(1..=5)
    )]
    pub(crate) coordinators: u32,
    /// How many processes are killed; half as many are stopped, and as many again cut off
    #[arg(
        long, value_name = "N", default_value_t = 4,
        value_parser = clap::value_parser!(u32).range(0..=100)
    )]
    pub(crate) kills: u32,
    /// How long the disturbed job should take, about: calls to the store are slowed for it
    #[arg(
        long, value_name = "N", default_value_t = 10,
        value_parser = clap::value_parser!(u64).range(1..=3600)
    )]
    pub(crate) seconds: u64,
    /// Where the data lies, like s3://bucket/prefix; else a temporary folder
    #[arg(long, value_name = "URL")]
    pub(crate) bucket: Option<String>,
    /// Print one JSON object at the end
    #[arg(long)]
    pub(crate) json: bool,
}

/// Where NATS is, and which deployment there is meant.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct NatsArgs {
    /// NATS server, like nats://host:4222; else NATS_URL and its like, else a NATS context
    #[arg(long, value_name = "URL")]
    pub(crate) nats: Option<String>,
    /// Namespace of the deployment, where several share a NATS server; else MUSTER_NAMESPACE, else
    /// the setting namespace (--config), else muster
    #[arg(long, value_name = "NS")]
    pub(crate) namespace: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ClientArgs {
    #[command(flatten)]
    pub(crate) nats: NatsArgs,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct JobArgs {
    /// The job's id
    pub(crate) job: String,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// The job's id; else events of all jobs and of the deployment itself
    pub(crate) job: Option<String>,
    /// Go on with what happens from now on, until interrupted
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// Only what happened within this time, like 30min or 2h
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) since: Option<std::time::Duration>,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    pub(crate) nats: NatsArgs,
    /// Where the coordinator keeps scratch, like s3://bucket/prefix; tried with a few objects that
    /// are removed again
    #[arg(long, value_name = "URL")]
    pub(crate) bucket: Option<String>,
    /// Folder whose disk is looked at; else that for temporary files
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// An OUTPUT to look at, a path or s3://bucket/prefix: who claims it, what runs that were
    /// killed have left, unfinished uploads (which are in no listing). Needs no NATS
    #[arg(long, value_name = "URL")]
    pub(crate) output: Option<String>,
    /// The NATS server's monitoring port; else 8222 on its host
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) monitor: Option<String>,
    /// Make streams that are missing, remove scratch that no deployment knows, and from --output
    /// what dead runs have left and unfinished uploads, each only when confirmed
    #[arg(long)]
    pub(crate) mend: bool,
    /// Confirm everything
    #[arg(long, requires = "mend")]
    pub(crate) yes: bool,
    /// With --yes: leave scratch that was written to within this time, for somebody may be at work
    /// there (uploads into --output have no known time: 0s aborts them)
    #[arg(
        long, value_name = "DURATION", default_value = "1h", requires = "mend",
        value_parser = humantime::parse_duration
    )]
    pub(crate) older_than: std::time::Duration,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) settings: SettingsArgs,
}

#[derive(Debug, Args)]
pub(crate) struct DrainArgs {
    /// The worker's id
    pub(crate) worker: String,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum LogFormat {
    #[default]
    Text,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Profile {
    Development,
    Testing,
    #[default]
    Production,
}

/// What becomes of malformed records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum OnBadRecords {
    #[default]
    Fail,
    Skip,
    Quarantine,
}

/// What becomes of input objects that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum OnBadInputs {
    #[default]
    Fail,
    Skip,
}

/// Settings that every long-running command takes.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct SettingsArgs {
    /// Settings to lay over the defaults (TOML)
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Heartbeats, time-outs and waits for this use
    #[arg(long, value_enum, default_value_t)]
    pub(crate) profile: Profile,
    /// How log lines look
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub(crate) log_format: LogFormat,
}

/// Where health and metrics are served.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct HttpArgs {
    /// Serve /healthz, /readyz and /metrics here, like 127.0.0.1:9464; a port alone means this
    /// machine only, port 0 one that is free and logged
    #[arg(long, value_name = "ADDR", value_parser = parse_http)]
    pub(crate) http: Option<SocketAddr>,
}

/// What `--help` says of `--faults`.
const FAULTS_HELP: &str = concat!(
    "Inject faults into this process. Refused unless MUSTER_ENABLE_FAULTS=1 is set or the setting \
        faults.enabled is true: it damages and kills on purpose.\n\n",
    include_str!("../../common/platform/src/faults/grammar.txt")
);

#[derive(Debug, Args)]
pub(crate) struct WorkerArgs {
    #[command(flatten)]
    pub(crate) nats: NatsArgs,
    /// A name that stays the same over restarts; else MUSTER_WORKER_ID, else one is made and kept
    /// in the data directory
    #[arg(long)]
    pub(crate) id: Option<String>,
    /// Folder for the identity and for what does not fit in memory; else a temporary one
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Memory of this process, like 4GiB, or a share like 50%; else half of what it may use (the
    /// machine's memory, or the least limit of its memory cgroups)
    #[arg(long, value_name = "SIZE", value_parser = memory::parse)]
    pub(crate) memory: Option<memory::Size>,
    /// Tasks at once; else one a core
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) threads: Option<u32>,
    /// A label of this worker, for people; with critical=true what is wrong with it is an error,
    /// not a warning
    #[arg(long = "label", value_name = "K=V", value_parser = parse_label)]
    pub(crate) labels: Vec<(String, String)>,
    /// A folder that this worker alone can read: `muster sort workers:/` reads what lies in it. May
    /// be repeated; links below it are not followed, but named
    #[arg(long, value_name = "DIR")]
    pub(crate) input_dir: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) http: HttpArgs,
    /// Inject faults into this process, where that is enabled (see --help)
    #[arg(long, value_name = "SPEC", long_help = FAULTS_HELP)]
    pub(crate) faults: Option<String>,
    #[command(flatten)]
    pub(crate) settings: SettingsArgs,
}

#[derive(Debug, Args)]
pub(crate) struct CoordinatorArgs {
    #[command(flatten)]
    pub(crate) nats: NatsArgs,
    /// Without effect, for scripts that say it: a coordinator keeps nothing on its own disk
    #[arg(long, value_name = "DIR", hide = true)]
    pub(crate) data_dir: Option<PathBuf>,
    /// Where scratch goes for jobs that do not say it themselves, like s3://bucket/prefix
    #[arg(long, value_name = "URL")]
    pub(crate) bucket: Option<String>,
    #[command(flatten)]
    pub(crate) http: HttpArgs,
    /// Inject faults into this process, where that is enabled (see --help)
    #[arg(long, value_name = "SPEC", long_help = FAULTS_HELP)]
    pub(crate) faults: Option<String>,
    #[command(flatten)]
    pub(crate) settings: SettingsArgs,
}

/// Sort INPUT into parts below OUTPUT.
///
/// OUTPUT is a folder or a prefix: it gets part-00000.EXT and so on, which read one after the other
/// are the sorted data, and _SUCCESS when all of it is there. The letters have the meaning of
/// sort(1) under LC_ALL=C, so help is --help alone here.
#[derive(Debug, Args)]
#[command(version, disable_help_flag = true, disable_version_flag = true)]
pub(crate) struct SortArgs {
    /// Files, folders, prefixes and globs; what exists is no glob, whatever its name; names
    /// beginning with _ or . are not read from folders. In a pool workers:/ is what workers offer
    /// with --input-dir, workers:/PATH some of it
    #[arg(required = true, value_name = "INPUT")]
    pub(crate) inputs: Vec<OsString>,
    /// Folder or prefix for the parts; must be empty or absent without --overwrite
    #[arg(short, long, value_name = "OUTPUT")]
    pub(crate) output: OsString,

    #[command(flatten)]
    pub(crate) order: OrderArgs,
    #[command(flatten)]
    pub(crate) place: PlaceArgs,

    /// Keep only the first N of the order; with -u the first N of what that keeps
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) top: Option<u64>,
    /// How many output parts to aim for; else by the size of the input
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) partitions: Option<u32>,
    /// Replace the result of an earlier sort in OUTPUT, once the new one is whole; anything else
    /// there refuses the job
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// Sync the output to disk before saying that it is there
    #[arg(long)]
    pub(crate) fsync: bool,
    /// The job's id; a repeat with the same id is the same job
    #[arg(long, value_name = "ID")]
    pub(crate) job_id: Option<String>,
    /// Return as soon as the job is accepted; see muster watch
    #[arg(long)]
    pub(crate) detach: bool,
    /// What becomes of malformed records: the job fails, leaves them out, or keeps them below
    /// OUTPUT/_quarantine
    #[arg(long, value_enum, value_name = "WHAT", default_value_t)]
    pub(crate) bad_records: OnBadRecords,
    /// What becomes of input objects that cannot be read, and of entries of folders that are no
    /// files (dangling links, sockets, pipes): the job fails, or leaves them out as a whole and
    /// names them
    #[arg(long, value_enum, value_name = "WHAT", default_value_t)]
    pub(crate) bad_inputs: OnBadInputs,
    /// A second store for what is sorted and not yet merged, like s3://other/prefix: what the first
    /// loses is read there
    #[arg(long, value_name = "URL")]
    pub(crate) replica: Option<String>,

    /// Print one JSON object at the end
    #[arg(long)]
    pub(crate) json: bool,
    /// Print errors only
    #[arg(long)]
    pub(crate) quiet: bool,
    #[command(flatten)]
    pub(crate) settings: SettingsArgs,
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
    /// Print version
    #[arg(long, action = clap::ArgAction::Version)]
    version: Option<bool>,
}

/// What order; shared by `sort` and `verify`.
#[derive(Debug, Clone, Args)]
pub(crate) struct OrderArgs {
    /// auto, lines or fixed:LEN. auto in sort: lines, and what looks like another format is
    /// refused. auto in verify: as the folder's _SUCCESS says, else lines where a letter or key of
    /// lines is given, else gensort's fixed:100 with -k 0:10
    #[arg(long, value_name = "FORMAT", default_value = "auto")]
    pub(crate) format: String,
    /// Lines: as in sort(1), F[.C][LETTERS][,F[.C][LETTERS]]; fixed: OFFSET:LEN
    #[arg(short, long = "key", value_name = "KEY")]
    pub(crate) keys: Vec<String>,
    /// Byte between fields; else the change from non-blank to blank (\0 is NUL)
    #[arg(short = 't', long = "field-separator", value_name = "SEP")]
    pub(crate) separator: Option<OsString>,
    /// Compare by numeric value
    #[arg(short = 'n', long = "numeric-sort")]
    pub(crate) numeric: bool,
    /// Descending
    #[arg(short = 'r', long)]
    pub(crate) reverse: bool,
    /// Leave lines with equal keys in the order of the input
    #[arg(short = 's', long)]
    pub(crate) stable: bool,
    /// Keep only the first of lines with equal keys
    #[arg(short = 'u', long)]
    pub(crate) unique: bool,
    /// Lines end with NUL, not newline
    #[arg(short = 'z', long = "zero-terminated")]
    pub(crate) zero: bool,
    /// Count positions from the first non-blank
    #[arg(short = 'b', long = "ignore-leading-blanks")]
    pub(crate) blanks: bool,
    /// Compare lower case as upper case
    #[arg(short = 'f', long = "ignore-case")]
    pub(crate) fold: bool,
    /// Compare blanks, letters and digits only
    #[arg(short = 'd', long = "dictionary-order")]
    pub(crate) dictionary: bool,
    /// Compare printable characters only
    #[arg(short = 'i', long = "ignore-nonprinting")]
    pub(crate) nonprinting: bool,
    /// As sort(1) has it: numeric is -n
    #[arg(long = "sort", value_name = "WORD", hide = true)]
    pub(crate) sort_word: Option<String>,
    /// Letters of sort(1) that are kept for its meaning and not built yet
    #[arg(short = 'g', long = "general-numeric-sort", hide = true)]
    pub(crate) general: bool,
    #[arg(short = 'h', long = "human-numeric-sort", hide = true)]
    pub(crate) human: bool,
    #[arg(short = 'M', long = "month-sort", hide = true)]
    pub(crate) month: bool,
    #[arg(short = 'R', long = "random-sort", hide = true)]
    pub(crate) random: bool,
    #[arg(short = 'V', long = "version-sort", hide = true)]
    pub(crate) version_sort: bool,
}

/// Where a sort runs.
#[derive(Debug, Clone, Args)]
pub(crate) struct PlaceArgs {
    /// Run here, with a private NATS server, a coordinator and this many workers; else one a core
    #[arg(
        long,
        value_name = "WORKERS",
        num_args = 0..=1,
        require_equals = true,
        conflicts_with = "nats",
        value_parser = clap::value_parser!(u32).range(1..=1024)
    )]
    pub(crate) local: Option<Option<u32>>,
    #[command(flatten)]
    pub(crate) nats: NatsArgs,
    /// Where scratch goes, like s3://bucket/prefix; else the coordinator's choice, else below
    /// OUTPUT
    #[arg(long, value_name = "URL")]
    pub(crate) bucket: Option<String>,
    /// Memory of this process when it runs here, like 4GiB, or a share like 50%; else half of what
    /// it may use (the machine's memory, or the least limit of its memory cgroups). In a pool: of
    /// one task, to size tasks by
    #[arg(long, value_name = "SIZE", value_parser = memory::parse)]
    pub(crate) memory: Option<memory::Size>,
    /// Tasks at once when it runs here; else one a core
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) threads: Option<u32>,
    /// Folder for a local run's state: the same command with the same folder resumes a run that was
    /// killed
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct GenArgs {
    /// How many records of 100 bytes
    #[arg(short = 'n', value_name = "RECORDS")]
    pub(crate) records: u64,
    /// File or object to write; a folder or prefix with --files
    #[arg(short, long, value_name = "OUTPUT")]
    pub(crate) output: String,
    /// Printable records that end in CR LF
    #[arg(long)]
    pub(crate) ascii: bool,
    /// Skewed keys, as gensort -s
    #[arg(long)]
    pub(crate) skew: bool,
    /// Number of the first record
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed_record: u64,
    /// Cut the records into this many files
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) files: Option<u32>,
    /// Share of records that take one of 16 hot keys (not in gensort)
    #[arg(
        long, value_name = "PERCENT", default_value_t = 0,
        value_parser = clap::value_parser!(u8).range(0..=100)
    )]
    pub(crate) duplicates: u8,
    /// Print one JSON object at the end
    #[arg(long)]
    pub(crate) json: bool,
}

/// Check order, count, checksum and duplicates as valsort does.
///
/// A folder that muster sorted is checked by the format and keys in its _SUCCESS, and against the
/// sums there. Where options say what order is meant, they hold instead. Anything else is taken for
/// gensort's records of 100 bytes with a key of 10 (--format fixed:100 -k 0:10), unless a letter or
/// key of lines is given: for text say --format lines.
#[derive(Debug, Args)]
#[command(version, disable_help_flag = true, disable_version_flag = true)]
pub(crate) struct VerifyArgs {
    /// Files, objects, folders and prefixes, in order
    #[arg(required = true, value_name = "PATH")]
    pub(crate) paths: Vec<OsString>,
    #[command(flatten)]
    pub(crate) order: OrderArgs,
    /// A _SUCCESS whose count, bytes and checksum the data must have
    #[arg(long, value_name = "MANIFEST")]
    pub(crate) against: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
    /// Print version
    #[arg(long, action = clap::ArgAction::Version)]
    version: Option<bool>,
}

/// `512MiB`, `4G`, `1000`: as bytesize reads it.
/// `IP:PORT`; a port alone, with or without a colon, means the loopback address.
fn parse_http(text: &str) -> Result<SocketAddr, String> {
    let port = text.strip_prefix("localhost:").or(text.strip_prefix(':')).unwrap_or(text);
    if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) {
        let port = port.parse().map_err(|e| format!("{e}; a port is 0 to 65535"))?;
        return Ok(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port));
    }
    text.parse().map_err(|_| {
        "write it as IP:PORT, like 127.0.0.1:9464 or [::]:9464, or as a port alone".to_owned()
    })
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() && text.len() <= 256 => {
            Ok((key.to_owned(), value.to_owned()))
        }
        _ => Err("write it as KEY=VALUE, at most 256 bytes".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn http_addresses_are_of_this_machine_unless_said_otherwise() {
        for (text, expected) in [
            ("9464", Some("127.0.0.1:9464")),
            (":9464", Some("127.0.0.1:9464")),
            ("localhost:9464", Some("127.0.0.1:9464")),
            ("0", Some("127.0.0.1:0")),
            ("0.0.0.0:80", Some("0.0.0.0:80")),
            ("[::1]:9", Some("[::1]:9")),
            ("", None),
            (":", None),
            ("70000", None),
            ("127.0.0.1", None),
            ("host:80", None),
            ("http://127.0.0.1:80", None),
        ] {
            assert_eq!(
                parse_http(text).ok().map(|address| address.to_string()).as_deref(),
                expected,
                "{text}"
            );
        }
    }
}
