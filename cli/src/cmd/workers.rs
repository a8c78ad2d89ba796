//! `muster workers` and `muster drain`.

use muster_common::ids::{InvalidId, WorkerId};

use crate::args::{ClientArgs, DrainArgs};
use crate::cmd;
use crate::cmd::jobs::calling;
use crate::exit::Exit;
use crate::output;

/// Lists workers.
pub(crate) async fn workers(args: ClientArgs) -> Result<(), Exit> {
    let workers = cmd::api_of(&args).await?.workers().await.map_err(calling)?;
    if args.json {
        output::json(&workers);
        return Ok(());
    }
    let head = ("WORKER", "STATE", "TASKS", "DONE", "MEMORY", "USED", "HEARD");
    output::line(&format!(
        "{:<24} {:<9} {:>7} {:>6} {:>10} {:>10} {:>9}  HOST",
        head.0, head.1, head.2, head.3, head.4, head.5, head.6
    ));
    for worker in workers {
        let tasks = format!("{}/{}", worker.running, worker.slots);
        let (memory, used) = (output::bytes(worker.memory_bytes), output::bytes(worker.rss_bytes));
        let heard = output::seconds(worker.last_heard_ms);
        let labels: Vec<String> = worker.labels.iter().map(|(key, value)| format!(" {key}={value}")).collect();
        let (id, state, done) = (worker.id.to_string(), worker.state, worker.tasks_done);
        output::line(&format!(
            "{id:<24} {state:<9} {tasks:>7} {done:>6} {memory:>10} {used:>10} {heard:>9}  {}{}",
            worker.host,
            labels.concat()
        ));
    }
    Ok(())
}

/// Lets a worker finish and leave.
pub(crate) async fn drain(args: DrainArgs) -> Result<(), Exit> {
    let worker: WorkerId = args.worker.parse().map_err(|e: InvalidId| Exit::usage(e.to_string()))?;
    let status = cmd::api_of(&args.client).await?.drain(&worker).await.map_err(calling)?;
    if args.client.json {
        output::json(&status);
    } else {
        output::line(&format!(
            "{} is {}; it finishes {} running task(s) and takes no more",
            status.id, status.state, status.running
        ));
    }
    Ok(())
}
