//! The handler's binary: command line, logs, and the chosen entry point.

use clap::Parser;
use handler::{
    config::{Cli, Command, LogFormat},
    generate, runtime, worker,
};
use std::{
    ffi::OsString,
    io::{self, IsTerminal},
    process::ExitCode,
};
use tracing::{Level, Metadata};
use tracing_subscriber::{EnvFilter, Layer, filter::filter_fn, fmt, layer::SubscriberExt, util::SubscriberInitExt};

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
    let default = if matches!(command, Command::Generate(_)) { "warn" } else { "warn,handler=info" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let lines = fmt::layer().with_writer(io::stderr);
    let lines = match format {
        LogFormat::Json => lines.json().flatten_event(true).with_span_list(false).boxed(),
        LogFormat::Text => lines.with_ansi(io::stderr().is_terminal()).boxed(),
    };
    tracing_subscriber::registry().with(lines.with_filter(filter_fn(may_log))).with(filter).init();
}

/// Below INFO the HTTP and AWS clients print bodies and authorization headers, so nobody but us logs there.
fn may_log(metadata: &Metadata<'_>) -> bool {
    let own = metadata.target() == "handler" || metadata.target().starts_with("handler::");
    own || *metadata.level() <= Level::INFO
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
