//! The `relay` binary: reads the options, starts the logs, runs the relay and turns its end into an exit code.
//!
//! The exit codes are in `error.rs`.

use std::{env, process::ExitCode, time::Duration};

use anyhow::Context;
use relay::{
    amqp::STACK_BYTES,
    config::{Config, LogFormat},
    error::{ConfigError, Error},
};
use service::Asked;
use settings::Reads;
use telemetry::{Logs, Traces};
use tracing::error;

/// Unless `OTEL_SERVICE_NAME` is set.
const SERVICE_NAME: &str = "easel-relay";
const MIN_STACK: &str = "RUST_MIN_STACK";
/// The AMQP client also returns each error that it logs, and the relay logs it then.
const LOG_FILTER: &str = "warn,relay=info,service=info,telemetry=info,lapin=off";

fn main() -> ExitCode {
    set_thread_stack_size();
    let config = match Config::load(env::args_os()) {
        Ok(Some(config)) => config,
        Ok(None) => return ExitCode::SUCCESS,
        Err(err) => return usage_error(err),
    };
    if let Err(bad) = settings::check_variables(Reads::Services) {
        return usage_error(bad.into());
    }
    let traces = match Traces::from_env("relay", SERVICE_NAME) {
        Ok(traces) => traces,
        Err(err) => return usage_error(ConfigError::Invalid { option: err.option, problem: err.problem }),
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
        // The relay has already used a part of the shutdown timeout.
        let used = asked.get().map_or(Duration::ZERO, |asked| asked.elapsed());
        traces.end(limit.saturating_sub(used));
    }
    code
}

/// The AMQP client starts its own thread, so its stack can only be set through the default of all threads.
#[allow(unsafe_code)]
fn set_thread_stack_size() {
    if env::var_os(MIN_STACK).is_none() {
        // SAFETY: no other thread is running yet.
        unsafe { env::set_var(MIN_STACK, STACK_BYTES.to_string()) };
    }
}

fn usage_error(err: ConfigError) -> ExitCode {
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
        let shutdown =
            service::on_signal(asked, "unacknowledged messages are settled").context("cannot listen to signals")?;
        Ok(relay::run(config, shutdown).await?)
    });
    // A DNS lookup may still block a helper thread. It holds no message, so do not wait for it.
    runtime.shutdown_background();
    result
}
