//! `muster sort`: submit, show progress, wait; here or in a pool.

use std::ffi::OsStr;
use std::io::{BufRead, IsTerminal};
use std::time::Duration;

use muster_kernel::format::Format;
use muster_platform::adapters::nats;
use muster_platform::clock::{Clock, SystemClock};
use muster_platform::config::Config;
use muster_platform::inputs;
use muster_protocol::ids::{InvalidId, JobId};
use muster_protocol::plan::{BadInputs, BadRecords, JobSpec, Sizing};
use muster_protocol::{Error, ErrorKind};

use crate::args::{OnBadInputs, OnBadRecords, SortArgs};
use crate::client::Api;
use crate::cmd::{self, order, places, single_output, watch};
use crate::exit::{self, Exit};
use crate::local::{self, LocalOptions};
use crate::memory::{self, Size};
use crate::nats_context::{self, Found};
use crate::output;
use crate::progress::{Progress, Show};

/// How long a submit waits for a leader.
const SUBMIT_PATIENCE: Duration = Duration::from_secs(300);

/// How long a submit that is interrupted may take to be withdrawn.
const WITHDRAW_TIMEOUT: Duration = Duration::from_secs(5);

/// Sorts.
pub(crate) async fn run(args: SortArgs) -> Result<(), Exit> {
    let place = &args.place;
    let pool = if place.local.is_some() {
        None
    } else {
        nats_context::find(&place.nats).map_err(|e| Exit::usage(e.message))?
    };
    // A run here is its own coordinator and workers: what they would log is what progress and the
    // closing line say.
    let level = if args.quiet { "error" } else { "warn" };
    cmd::log(args.settings.log_format, if pool.is_none() { "off" } else { level });
    refuse_misplaced(&args)?;
    single_output::refuse(&args.output.to_string_lossy())?;
    let config = cmd::settings(&args.settings, &place.nats)?;
    let show = if args.quiet || args.json { Show::Nothing } else { Show::Auto };
    match pool {
        Some(found) => {
            let spec = job_spec(&args, &config, true, task_memory_bytes(&args)?)?;
            in_pool(&args, spec, &config, &found, show).await
        }
        None => {
            let options = local_options(&args)?;
            let spec =
                job_spec(&args, &config, false, place.memory.map(|_| options.chunk_bytes()))?;
            here(&args, spec, &config, &options, show).await
        }
    }
}

fn refuse_misplaced(args: &SortArgs) -> Result<(), Exit> {
    if args.place.nats.nats.is_some() {
        for (given, option) in [
            (args.place.data_dir.is_some(), "--data-dir"),
            (args.place.threads.is_some(), "--threads"),
        ] {
            if given {
                return Err(Exit::usage(format!(
                    "{option} is for a run here; in a pool it belongs to muster worker"
                )));
            }
        }
    }
    Ok(())
}

fn job_spec(
    args: &SortArgs,
    config: &Config,
    in_pool: bool,
    task_memory_bytes: Option<u64>,
) -> Result<JobSpec, Exit> {
    let mut sort = order::spec(&args.order, Format::lines(b'\n'))?;
    sort.top = args.top;
    let inputs: Result<Vec<String>, Exit> =
        args.inputs.iter().map(|text| input(text, in_pool)).collect();
    let job: JobId = match &args.job_id {
        Some(id) => id.parse().map_err(|e: InvalidId| Exit::usage(e.to_string()))?,
        None => new_job_id()?,
    };
    let extension = sort.format.rules().extension();
    let some = |bytes: u64| Some(bytes).filter(|bytes| *bytes > 0);
    Ok(JobSpec {
        job,
        inputs: inputs?,
        output: cmd::blob_url(&args.output)?.to_string(),
        bucket: args
            .place
            .bucket
            .as_deref()
            .map(cmd::blob_url)
            .transpose()?
            .map(|url| url.to_string()),
        auto_format: order::is_auto(&args.order),
        sort,
        extension: extension.to_owned(),
        overwrite: args.overwrite,
        fsync: args.fsync || in_pool,
        sizing: Sizing {
            partitions: args.partitions,
            split_bytes: some(config.job.split_bytes),
            partition_bytes: some(config.job.partition_bytes),
            // The machine's own size shapes no plan: only a size that was asked for does.
            task_memory_bytes,
            attempts_max: None,
        },
        replica: args.replica.as_deref().map(cmd::blob_url).transpose()?.map(|url| url.to_string()),
        bad_records: match args.bad_records {
            OnBadRecords::Fail => BadRecords::Fail,
            OnBadRecords::Skip => BadRecords::Skip,
            OnBadRecords::Quarantine => BadRecords::Quarantine,
        },
        bad_inputs: match args.bad_inputs {
            OnBadInputs::Fail => BadInputs::Fail,
            OnBadInputs::Skip => BadInputs::Skip,
        },
        // A coordinator that runs here has the same settings already.
        settings: if in_pool { cmd::job_settings(&args.settings)? } else { None },
    })
}

/// An INPUT as the coordinator takes it.
fn input(argument: &OsStr, in_pool: bool) -> Result<String, Exit> {
    let text = argument.to_str().unwrap_or_default();
    match inputs::of_workers(text) {
        None => places::input(argument),
        Some(Err(error)) => Err(Exit::usage(error.message)),
        Some(Ok(_)) if !in_pool => Err(Exit::usage(format!(
            "INPUT {text} means files that the workers of a pool offer; a run here has none: name \
                the files themselves, or a pool with --nats"
        ))),
        Some(Ok(_)) => Ok(text.to_owned()),
    }
}

fn new_job_id() -> Result<JobId, Exit> {
    let clock = SystemClock::default();
    let id = format!("j{:x}-{:08x}", clock.unix_ms() / 1000, clock.random() as u32);
    id.parse().map_err(|e: InvalidId| Exit::failed(e.to_string()))
}

fn threads(args: &SortArgs) -> u32 {
    let wanted = args.place.threads.unwrap_or_else(cmd::cores);
    wanted.max(args.place.local.flatten().unwrap_or(1))
}

fn local_options(args: &SortArgs) -> Result<LocalOptions, Exit> {
    let threads = threads(args);
    Ok(LocalOptions {
        workers: args.place.local.flatten().unwrap_or(threads),
        threads,
        memory_bytes: memory::resolve(args.place.memory, local::MEMORY_BYTES_MIN)?,
        data_dir: args.place.data_dir.clone(),
        job_id_given: args.job_id.is_some(),
    })
}

/// Memory of one task in a pool, where it is said.
fn task_memory_bytes(args: &SortArgs) -> Result<Option<u64>, Exit> {
    match args.place.memory {
        None => Ok(None),
        Some(Size::Bytes(bytes)) => Ok(Some(bytes)),
        Some(Size::Percent(percent)) => Err(Exit::usage(format!(
            "--memory {percent}% is a share of this machine, on which a pool does not sort; say \
                the memory of one task there, like 1GiB"
        ))),
    }
}

async fn here(
    args: &SortArgs,
    spec: JobSpec,
    config: &Config,
    options: &LocalOptions,
    show: Show,
) -> Result<(), Exit> {
    if args.detach {
        return Err(Exit::usage(
            "--detach needs a pool: nothing would be left here to run the job",
        ));
    }
    let mut progress = Progress::new(show);
    let ended = local::run(spec, config, options, &mut progress).await;
    progress.finish();
    watch::summarise(&ended?, args.json, args.quiet, progress.warned)
}

async fn in_pool(
    args: &SortArgs,
    spec: JobSpec,
    config: &Config,
    found: &Found,
    show: Show,
) -> Result<(), Exit> {
    if let Some(name) = &found.by_default_context {
        let url = found.settings.public_url();
        output::error_line(&format!(
            "muster: sorting in the pool of the NATS context {name} ({url}), which must see these \
                paths; --local sorts here"
        ));
    }
    let client =
        nats::connect(&found.settings, config, "muster sort").await.map_err(exit::connecting)?;
    let api = Api::new(client, config, SUBMIT_PATIENCE).heeding(found.settings.refusals.clone());
    let mut progress = Progress::new(show);
    let say = |what: &str| progress.say(what);
    let status = tokio::select! {
        status = api.submit(&spec, &say) => status.map_err(submitting)?,
        _ = cmd::end_signal() => {
            progress.finish();
            return Err(withdraw(&api, &spec.job).await);
        }
    };
    if args.detach {
        if args.json {
            output::json(&status);
        } else {
            output::line(spec.job.as_str());
        }
        return Ok(());
    }
    if show == Show::Auto {
        output::error_line(&format!("job {}", spec.job));
        watch::warn(&status, &mut progress);
    }
    progress.update(&status);
    let ended = tokio::select! {
        ended = watch::to_end(&api, &spec.job, &mut progress, false) => ended,
        by_keyboard = cmd::end_signal() => {
            progress.finish();
            return Err(leave(&api, &spec.job, by_keyboard).await);
        }
    };
    progress.finish();
    watch::summarise(&ended.map_err(cmd::jobs::calling)?, args.json, args.quiet, progress.warned)
}

/// An error of submitting, where "no coordinator" leaves the choice to sort here.
fn submitting(error: Error) -> Exit {
    match error.kind {
        ErrorKind::Retry => {
            Exit::unreachable(format!("{}, or sort here with --local", error.message))
        }
        _ => cmd::jobs::calling(error),
    }
}

/// Ctrl-C before the coordinator has taken the job: it is not to begin behind the back of whoever
/// has left.
async fn withdraw(api: &Api, job: &JobId) -> Exit {
    match tokio::time::timeout(WITHDRAW_TIMEOUT, api.cancel(job)).await {
        Ok(Ok(_)) => Exit::interrupted(format!("interrupted; job {job} was withdrawn")),
        Ok(Err(error)) if error.kind == ErrorKind::NotFound => {
            Exit::interrupted(format!("interrupted before job {job} was taken"))
        }
        Ok(Err(_)) | Err(_) => Exit::interrupted(format!(
            "interrupted; whether job {job} was taken is not known: muster status {job} tells, \
                muster cancel {job} ends it"
        )),
    }
}

/// Leaves a job of a pool: asks once whether to cancel it, where somebody can answer.
async fn leave(api: &Api, job: &JobId, by_keyboard: bool) -> Exit {
    let mut cancel = false;
    if by_keyboard && std::io::stdin().is_terminal() {
        output::error_line(&format!("Cancel job {job}? Anything but y leaves it running. [y/N]"));
        let answer = tokio::task::spawn_blocking(|| {
            let mut line = String::new();
            std::io::stdin().lock().read_line(&mut line).map(|_| line)
        });
        cancel = tokio::select! {
            answer = answer => {
                matches!(answer, Ok(Ok(line)) if line.trim().eq_ignore_ascii_case("y"))
            }
            _ = cmd::end_signal() => false,
        };
    }
    if !cancel {
        return Exit::interrupted(format!("job {job} goes on; follow it with: muster watch {job}"));
    }
    match api.cancel(job).await {
        Ok(_) => Exit::interrupted(format!("job {job} is cancelled")),
        Err(error) => Exit::interrupted(format!("cancelling job {job} failed: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command, LogFormat};
    use clap::Parser;

    fn parse(line: &str) -> SortArgs {
        match Cli::try_parse_from(line.split(' ')).expect(line).command {
            Command::Sort(args) => *args,
            other => panic!("{other:?}"),
        }
    }

    fn check(line: &str) -> Result<JobSpec, Exit> {
        let args = parse(line);
        refuse_misplaced(&args)?;
        let config = Config::profile(muster_platform::config::Profile::Production)?;
        job_spec(&args, &config, false, None)
    }

    #[test]
    fn options_become_a_job() {
        let spec = check(
            "muster sort /in/a /in/b -o /out --key 2,2n -t : -s --partitions 7 \
            --job-id j-1 --overwrite",
        )
        .expect("spec");
        assert_eq!(
            (spec.job.as_str(), spec.output.as_str(), spec.inputs.len()),
            ("j-1", "file:///out", 2)
        );
        assert_eq!(
            (spec.sort.separator, spec.sort.stable, spec.sizing.partitions),
            (Some(b':'), true, Some(7))
        );
        assert!(spec.overwrite && spec.auto_format && !spec.fsync);
        assert_eq!(
            check("muster sort /in -o /out --format fixed:100 -k 0:10").expect("spec").extension,
            "bin"
        );
        let spec = check(
            "muster sort /in -o /out --bad-records quarantine --bad-inputs skip --replica \
                s3://other/x",
        );
        let spec = spec.expect("spec");
        assert_eq!((spec.bad_records, spec.bad_inputs), (BadRecords::Quarantine, BadInputs::Skip));
        assert_eq!(spec.replica.as_deref(), Some("s3://other/x"));
        assert!(Cli::try_parse_from("muster sort a -o b --bad-records maybe".split(' ')).is_err());
        assert_eq!(
            parse("muster sort --log-format json a -o b").settings.log_format,
            LogFormat::Json
        );
    }

    #[test]
    fn every_command_tells_the_version() {
        for command in ["", " sort", " verify", " worker"] {
            let told = Cli::try_parse_from(format!("muster{command} --version").split(' '));
            let told =
                told.err().unwrap_or_else(|| panic!("muster{command} --version ran a command"));
            assert_eq!(told.kind(), clap::error::ErrorKind::DisplayVersion, "{command}");
            assert!(told.to_string().contains(env!("CARGO_PKG_VERSION")), "{told}");
        }
    }

    #[test]
    fn what_is_not_built_is_refused_by_name() {
        for (options, expected) in
            [("-h", "--human-numeric-sort"), ("-V", "--version-sort"), ("--format csv", "csv")]
        {
            let exit = check(&format!("muster sort /in -o /out {options}")).expect_err(options);
            let text = format!("{exit:?}");
            assert!(text.contains(expected) && text.contains("code: 2"), "{options}: {text}");
        }
    }

    #[test]
    fn the_memory_of_a_task_in_a_pool_is_no_share_of_this_machine() {
        let of = |memory: &str| {
            task_memory_bytes(&parse(&format!("muster sort a -o b --memory {memory}")))
        };
        assert_eq!(of("1GiB").ok(), Some(Some(1 << 30)));
        let exit = format!("{:?}", of("50%").expect_err("no share"));
        assert!(
            exit.contains("code: 2") && exit.contains("--memory 50%") && exit.contains("like 1GiB"),
            "{exit}"
        );
        assert!(Cli::try_parse_from("muster sort a -o b --memory 101%".split(' ')).is_err());
    }

    #[test]
    fn files_of_workers_need_a_pool() {
        let exit = check("muster sort workers:/ -o /out").expect_err("no pool");
        assert!(
            format!("{exit:?}").contains("code: 2")
                && format!("{exit:?}").contains("a run here has none"),
            "{exit:?}"
        );
        assert_eq!(
            input("workers:/logs/*.txt".as_ref(), true).expect("input"),
            "workers:/logs/*.txt"
        );
        assert!(format!("{:?}", input("workers:/../x".as_ref(), true)).contains("code: 2"));
    }

    #[test]
    fn what_cannot_work_is_wrong_usage() {
        for options in [
            "--format fixed:0",
            "--format nonsense",
            "-t ab",
            "-k 0",
            "--format fixed:10 -k 5:6",
            "--job-id a.b",
        ] {
            let exit = check(&format!("muster sort /in -o /out {options}")).expect_err(options);
            assert!(format!("{exit:?}").contains("code: 2"), "{options}: {exit:?}");
        }
    }
}
