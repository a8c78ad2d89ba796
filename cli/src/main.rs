//! The command line: parse, call, print. How jobs work is nobody's business here.

mod allocator;
mod args;
mod client;
mod cmd;
mod environment;
mod exit;
mod local;
mod memory;
mod nats_context;
mod open_files;
mod output;
mod progress;

use clap::Parser;

use crate::args::{Cli, Command};
use crate::exit::Exit;

fn main() -> std::process::ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return exit::usage(&error),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Exit::failed(format!("cannot start the runtime: {error}")).report(),
    };
    let result = runtime.block_on(dispatch(cli));
    // Reads that hang in a store must not hold up the end of the process.
    runtime.shutdown_background();
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(exit) => exit.report(),
    }
}

async fn dispatch(cli: Cli) -> Result<(), Exit> {
    match cli.command {
        Command::Sort(args) => cmd::sort::run(*args).await,
        Command::Worker(args) => Box::pin(cmd::worker::run(args)).await,
        Command::Coordinator(args) => cmd::coordinator::run(args).await,
        Command::Jobs(args) => cmd::jobs::jobs(args).await,
        Command::Status(args) => cmd::jobs::status(args).await,
        Command::Watch(args) => cmd::jobs::watch(args).await,
        Command::Cancel(args) => cmd::jobs::cancel(args).await,
        Command::Workers(args) => cmd::workers::workers(args).await,
        Command::Drain(args) => cmd::workers::drain(args).await,
        Command::Gen(args) => cmd::r#gen::run(args).await,
        Command::Verify(args) => cmd::verify::run(args).await,
        Command::Events(args) => cmd::events::run(args).await,
        Command::Doctor(args) => cmd::doctor::run(args).await,
        Command::Rights(args) => cmd::rights::run(&args),
        Command::Completions(args) => cmd::manual::completions(&args),
        Command::Man(args) => cmd::manual::man(&args),
        Command::Drill(args) => Box::pin(cmd::drill::run(args)).await,
    }
}
