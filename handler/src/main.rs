//! The handler's binary: command line, logs, and the chosen entry point.

use clap::Parser;
use handler::{
    bench,
    config::{BenchCommand, Cli, Command, LogFormat, LoraCommand, WeightsCommand},
    generate, lora,
    picture::CredentialError,
    runtime, weights, worker,
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
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("handler: {error:#}");
            // A certificate that cannot sign is a setting; that it cannot be read from a secret is not.
            let is_setting = error.is::<CredentialError>();
            if is_setting { ExitCode::from(EX_USAGE) } else { ExitCode::FAILURE }
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
        Command::Generate(_) | Command::Lora(_) | Command::Weights(_) | Command::Bench(_) => LogFormat::Text,
    };
    let serves = matches!(command, Command::Function(_) | Command::Worker(_));
    let default = if serves { "warn,handler=info" } else { "warn" };
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

/// Runs the command; false is its answer "no", which the output has explained.
fn run(command: &Command) -> anyhow::Result<bool> {
    match command {
        Command::Function(config) => serve(runtime::serve(config))?,
        Command::Worker(config) => serve(worker::serve(config))?,
        Command::Generate(config) => generate::run(config)?,
        Command::Weights(WeightsCommand::Pull(config)) => weights::pull(config)?,
        Command::Weights(WeightsCommand::Verify(config)) => return weights::verify(config),
        Command::Lora(LoraCommand::Inspect(config)) => return lora::inspect(config),
        Command::Bench(BenchCommand::Lora(config)) => bench::lora(config)?,
        Command::Bench(BenchCommand::Picture(config)) => bench::picture(config)?,
        Command::Bench(BenchCommand::File(config)) => bench::file(config)?,
        Command::Bench(BenchCommand::Soak(config)) => bench::soak(config)?,
    }
    Ok(true)
}

fn serve(service: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(service)
}
