//! `muster jobs`, `status`, `watch` and `cancel`.

use muster_protocol::ErrorKind;
use muster_protocol::api::JobStatus;
use muster_protocol::ids::JobId;
use serde::Serialize;

use crate::args::{ClientArgs, JobArgs, LogFormat};
use crate::client::Api;
use crate::cmd::workers::Shares;
use crate::cmd::{self, history, watch};
use crate::exit::Exit;
use crate::output;
use crate::progress::{Progress, Show};

fn job_id(args: &JobArgs) -> Result<JobId, Exit> {
    args.job.parse().map_err(|e: muster_protocol::ids::InvalidId| Exit::usage(e.to_string()))
}

/// Errors of a call, where "no coordinator", or one that says "later" all the time, means that
/// there is nothing to connect to.
pub(crate) fn calling(error: muster_protocol::Error) -> Exit {
    if error.kind.is_passing() { Exit::unreachable(error.message) } else { error.into() }
}

async fn with_api(args: &JobArgs) -> Result<(Api, JobId), Exit> {
    let job = job_id(args)?;
    Ok((cmd::api_of(&args.client).await?, job))
}

/// Lists jobs, the newest first.
pub(crate) async fn jobs(args: ClientArgs) -> Result<(), Exit> {
    let jobs = cmd::api_of(&args).await?.jobs().await.map_err(calling)?;
    if args.json {
        output::json(&jobs);
        return Ok(());
    }
    output::line(&format!(
        "{:<24} {:<11} {:>10} {:>11} {:>7}  OUTPUT",
        "JOB", "STATE", "INPUT", "TASKS", "RETRIES"
    ));
    for job in jobs {
        let tasks = if job.tasks_total > 0 {
            format!("{}/{}", job.tasks_done, job.tasks_total)
        } else {
            "-".to_owned()
        };
        let (id, state) = (job.job.to_string(), job.state.to_string());
        output::line(&format!(
            "{id:<24} {state:<11} {:>10} {tasks:>11} {:>7}  {}",
            output::bytes(job.input_bytes),
            job.retries,
            job.output
        ));
    }
    Ok(())
}

/// Prints where a job stands.
pub(crate) async fn status(args: JobArgs) -> Result<(), Exit> {
    let job = job_id(&args)?;
    cmd::log(LogFormat::Text, "warn");
    let (client, config, refusals) = cmd::connect(&args.client.nats).await?;
    let api = cmd::api_on(&client, &config, refusals.clone());
    let status = match api.status(&job).await {
        // Refused requests are no jobs, and ended ones are forgotten in the end; what became of
        // them stays told for longer.
        Err(error) if error.kind == ErrorKind::NotFound => {
            return Err(match history::end_of(&client, &config, &refusals, &job).await {
                Some(end) => Exit::failed(end),
                None => error.into(),
            });
        }
        known => known.map_err(calling)?,
    };
    let pool = Shares::of(&api.workers().await.map_err(calling)?);
    print_status(&status, Some(pool), args.client.json);
    Ok(())
}

/// Follows a job to its end; the exit code is the job's.
pub(crate) async fn watch(args: JobArgs) -> Result<(), Exit> {
    let (api, job) = with_api(&args).await?;
    let mut progress = Progress::new(if args.client.json { Show::Nothing } else { Show::Auto });
    let end = tokio::select! {
        end = watch::to_end(&api, &job, &mut progress, false) => end,
        _ = cmd::end_signal() => {
            progress.finish();
            return Err(Exit::interrupted(format!("no longer watching; the job goes on: muster \
                watch {job}")));
        }
    };
    progress.finish();
    let status = end.map_err(calling)?;
    watch::summarise(&status, args.client.json, false, progress.warned)
}

/// Ends a job.
pub(crate) async fn cancel(args: JobArgs) -> Result<(), Exit> {
    let (api, job) = with_api(&args).await?;
    let status = api.cancel(&job).await.map_err(calling)?;
    print_status(&status, None, args.client.json);
    Ok(())
}

/// A job's status with the state of the pool beside it, as `--json` prints it.
#[derive(Serialize)]
struct WithPool<'a> {
    #[serde(flatten)]
    status: &'a JobStatus,
    #[serde(skip_serializing_if = "Option::is_none")]
    pool: Option<Shares>,
}

fn print_status(status: &JobStatus, pool: Option<Shares>, json: bool) {
    if json {
        output::json(&WithPool { status, pool });
        return;
    }
    output::line(&format!("job       {}", status.job));
    output::line(&format!("state     {}", status.state));
    output::line(&format!("output    {}", status.output));
    output::line(&format!("input     {}", output::bytes(status.input_bytes)));
    if let Some(phase) = status.phase {
        let (done, total) = (output::bytes(status.bytes_done), output::bytes(status.bytes_total));
        output::line(&format!(
            "phase     {phase}: tasks {}/{}, {done} of {total}",
            status.tasks_done, status.tasks_total
        ));
    }
    if status.state.is_terminal() {
        watch::print_results(status);
    } else {
        output::line(&format!(
            "workers   {}, running attempts {}",
            status.workers, status.attempts_running
        ));
    }
    if let Some(pool) = pool {
        output::line(&format!("pool      {pool}"));
    }
    let (retries, repeated, second) = (status.retries, status.repeated_tasks, status.speculations);
    if !status.state.is_terminal() {
        output::line(&format!(
            "retries   {retries}, repeated tasks {repeated}, second attempts {second}"
        ));
    }
    if !status.alerts.is_empty() {
        output::line(&format!("alerts    {}", status.alerts.join(", ")));
    }
    if let Some(what) = &status.waiting_for {
        output::line(&format!("waiting   for {what}"));
    }
    if let Some(error) = &status.error {
        output::line(&format!("error     {error}"));
    }
}
