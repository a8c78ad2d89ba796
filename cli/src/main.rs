//! The command line: parse, call, print. How jobs work is nobody's business here.

mod allocator;
mod apart;
mod args;
mod argv;
mod client;
mod cmd;
mod environment;
mod exit;
mod local;
mod memory;
mod nats_context;
mod open_files;
mod output;
mod pace;
mod progress;
mod signals;
mod temporary;

use std::ffi::OsString;

use clap::Parser;

use crate::args::{Cli, Command};
use crate::exit::Exit;

fn main() -> std::process::ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    // Known before the rest is read: wrong usage is told as an object, too.
    let json = args.iter().take_while(|arg| *arg != "--").any(|arg| arg == "--json");
    let cli = match argv::for_clap(args).map(Cli::try_parse_from) {
        Ok(Ok(cli)) => cli,
        Ok(Err(error)) => return exit::usage(error, json),
        Err(exit) => return exit.report(json),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            return Exit::failed(format!("cannot start the runtime: {error}")).report(json);
        }
    };
    let result = runtime.block_on(dispatch(cli));
    // Reads that hang in a store must not hold up the end of the process.
    runtime.shutdown_background();
    match result.and_then(|()| output::written()) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(exit) => exit.report(json),
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
