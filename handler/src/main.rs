//! The handler's binary: command line, logs, and the chosen entry point.

use clap::Parser;
use handler::{
    config::{Cli, Command, LogFormat},
    generate, runtime, worker,
};
use std::{ffi::OsString, process::ExitCode};
use tracing_subscriber::{EnvFilter, fmt};

/// Exit code for a wrong command line or environment, `EX_USAGE` of sysexits.h.
const EX_USAGE: u8 = 64;

fn main() -> ExitCode {
    let cli = match Cli::try_parse_from(arguments()) {
        Ok(cli) => cli,
        Err(error) => {
            // The terminal may be gone; there is nobody else to tell.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(EX_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    log(&cli.command);
    match run(&cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("handler: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Lambda starts the binary with no arguments; that means `handler function`.
fn arguments() -> Vec<OsString> {
    let mut arguments: Vec<OsString> = std::env::args_os().collect();
    if arguments.len() <= 1 {
        arguments = vec!["handler".into(), "function".into()];
    }
    arguments
}

fn log(command: &Command) {
    let format = match command {
        Command::Function(config) => config.log_format,
        Command::Worker(config) => config.service.log_format,
        Command::Generate(_) => LogFormat::Text,
    };
    let default = if matches!(command, Command::Generate(_)) { "warn" } else { "info" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let logs = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Json => logs.json().flatten_event(true).init(),
        LogFormat::Text => logs.init(),
    }
}

fn run(command: &Command) -> anyhow::Result<()> {
    if let Command::Generate(config) = command {
        return generate::run(config);
    }
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        match command {
            Command::Function(config) => runtime::serve(config).await,
            Command::Worker(config) => worker::serve(config).await,
            Command::Generate(_) => Ok(()),
        }
    })
}
