//! The `relay` binary: reads the options, starts the logs, runs the relay and turns its end into an exit code.
//!
//! No logic lives here. Exit codes: 0 after a signal, 64 for a bad option, 69 when SQS refuses for good, the broker
//! refuses at the start, or a check fails, 1 otherwise.

use std::{env, process::ExitCode};

use anyhow::Context;
use relay::{config::Config, error::Error, signal, telemetry};
use tracing::error;

fn main() -> ExitCode {
    let config = match Config::load(env::args_os()) {
        Ok(Some(config)) => config,
        Ok(None) => return ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("{err}");
            return ExitCode::from(Error::from(err).exit_code());
        }
    };
    telemetry::init(config.log_format);
    match start(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            error!(error = format!("{err:#}"), "relay stopped");
            ExitCode::from(err.downcast_ref::<Error>().map_or(1, Error::exit_code))
        }
    }
}

fn start(config: Config) -> anyhow::Result<()> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start the async runtime")?;
    let result = runtime.block_on(async {
        if config.check {
            return Ok(relay::check::run(&config).await?);
        }
        let shutdown = signal::listen().context("cannot listen to signals")?;
        Ok(relay::run(config, shutdown).await?)
    });
    // A lookup of a name may still block a helper thread; it holds no message, so nobody waits for it.
    runtime.shutdown_background();
    result
}
