//! The `relay` binary: reads the options, starts the logs, runs the relay and turns its end into an exit code.
//!
//! No logic lives here. The exit codes are those of `exit.rs`.

use std::{env, process::ExitCode, time::Duration};

use anyhow::Context;
use relay::{
    amqp::STACK_BYTES,
    config::{Config, ConfigError, LogFormat},
    error::Error,
    signal::{self, Asked},
};
use settings::Reads;
use telemetry::{Logs, Traces};
use tracing::error;

/// Unless `OTEL_SERVICE_NAME` is set.
const SERVICE_NAME: &str = "easel-relay";
const MIN_STACK: &str = "RUST_MIN_STACK";
/// The AMQP client reports each failure that it also returns; ours is the line that counts.
const LOG_FILTER: &str = "warn,relay=info,telemetry=info,lapin=off";

fn main() -> ExitCode {
    deepen_stacks();
    let config = match Config::load(env::args_os()) {
        Ok(Some(config)) => config,
        Ok(None) => return ExitCode::SUCCESS,
        Err(err) => return refuse(err),
    };
    if let Err(bad) = settings::check_variables(Reads::Services) {
        return refuse(bad.into());
    }
    let traces = match Traces::from_env("relay", SERVICE_NAME) {
        Ok(traces) => traces,
        Err(err) => return refuse(ConfigError::Invalid { option: err.option, problem: err.problem }),
    };
    let json = config.log_format == LogFormat::Json;
    Logs { own: "relay", json, filter: LOG_FILTER }.init(traces.as_ref());
    let limit = config.shutdown_timeout();
    let asked = Asked::default();
    let code = match start(config, &asked) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            error!(error = format!("{err:#}"), "relay stopped");
            ExitCode::from(err.downcast_ref::<Error>().map_or(1, Error::exit_code))
        }
    };
    if let Some(traces) = traces {
        // The ended relay has used up a part of it.
        let used = asked.get().map_or(Duration::ZERO, |asked| asked.elapsed());
        traces.end(limit.saturating_sub(used));
    }
    code
}

/// The client starts its thread itself, so that the stack of all threads is the only one that can be set.
#[allow(unsafe_code)]
fn deepen_stacks() {
    if env::var_os(MIN_STACK).is_none() {
        // SAFETY: no other thread runs yet.
        unsafe { env::set_var(MIN_STACK, STACK_BYTES.to_string()) };
    }
}

fn refuse(err: ConfigError) -> ExitCode {
    eprintln!("{err}");
    ExitCode::from(Error::from(err).exit_code())
}

fn start(config: Config, asked: &Asked) -> anyhow::Result<()> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start the async runtime")?;
    let result = runtime.block_on(async {
        if config.check {
            return Ok(relay::check::run(&config).await?);
        }
        let shutdown = signal::listen(asked).context("cannot listen to signals")?;
        Ok(relay::run(config, shutdown).await?)
    });
    // A lookup of a name may still block a helper thread; it holds no message, so nobody waits for it.
    runtime.shutdown_background();
    result
}
