//! The handler's binary: reads the command line, sets up logs and traces, and runs the command.

use anyhow::Context;
use handler::{
    cli::{
        bench::{self, BenchCommand},
        doctor::{self, DoctorConfig},
        generate,
        lora::{self, LoraCommand},
        manual::{FAILURE, SUCCESS, USAGE},
        options::{Cli, Command, SchemaCommand, variables},
    },
    entry::{lambda, worker},
    job::options::LogFormat,
    observe::trace,
    picture::CredentialError,
    storage::weights::{self, options::WeightsCommand},
    task, webhook,
};
use settings::BadVariable;
use std::{
    ffi::OsString,
    io::{self, Write},
    process::ExitCode,
    time::Duration,
};
use telemetry::{Logs, Traces};

/// How long the end of the process waits for the last spans to be sent.
const TRACES_END: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let cli = match Cli::load(arguments()) {
        Ok(cli) => cli,
        Err(error) => {
            // If standard error is closed, nobody can see it.
            let _ = error.print();
            if let Some(line) = variables(&error) {
                eprintln!("{line}");
            }
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::from(SUCCESS) };
        }
    };
    if let Err(error) = settings::check_variables(cli.command.reads()) {
        eprintln!("error: {error}");
        return ExitCode::from(USAGE);
    }
    let from_env = |_| Traces::from_env("handler", trace::SERVICE_NAME);
    let traces = match cli.command.service().map(from_env).transpose() {
        Ok(traces) => traces.flatten(),
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(USAGE);
        }
    };
    log(&cli.command, traces.as_ref());
    let ended = run(&cli.command, traces.clone());
    if let Some(traces) = traces {
        traces.end(TRACES_END);
    }
    match ended {
        Ok(true) => ExitCode::from(SUCCESS),
        Ok(false) => ExitCode::from(FAILURE),
        Err(error) => {
            eprintln!("handler: {}", service::causes(&*error));
            // A certificate that cannot sign is a usage error; a secret that cannot be read is not.
            let is_setting = error.is::<CredentialError>() || error.is::<BadVariable>();
            if is_setting { ExitCode::from(USAGE) } else { ExitCode::from(FAILURE) }
        }
    }
}

/// Lambda starts the binary without arguments; that is `handler function`.
fn arguments() -> Vec<OsString> {
    let mut arguments: Vec<OsString> = std::env::args_os().collect();
    if arguments.len() <= 1 {
        arguments = vec!["handler".into(), "function".into()];
    }
    arguments
}

fn log(command: &Command, traces: Option<&Traces>) {
    let service = command.service();
    let format = service.map_or(LogFormat::Text, |service| service.log_format);
    let filter = match command {
        _ if service.is_some() => "warn,handler=info,service=info,telemetry=info",
        // Its own lines report what is wrong.
        Command::Doctor(_) => "error",
        _ => "warn",
    };
    Logs { own: "handler", json: format == LogFormat::Json, filter }.init(traces);
}

/// Runs the command. False if it answers "no", with the reason in its output.
fn run(command: &Command, traces: Option<Traces>) -> anyhow::Result<bool> {
    match command {
        Command::Function(config) => serve(lambda::serve(config, traces))?,
        Command::Worker(config) => serve(worker::serve(config))?,
        Command::Doctor(config) => return examine(config),
        Command::Generate(config) => generate::run(config)?,
        Command::Weights(WeightsCommand::Pull(config)) => weights::pull(config)?,
        Command::Weights(WeightsCommand::Fetch(config)) => weights::fetch(config)?,
        Command::Weights(WeightsCommand::Convert(config)) => weights::convert(config)?,
        Command::Weights(WeightsCommand::Verify(config)) => return weights::verify(config),
        Command::Lora(LoraCommand::Inspect(config)) => return lora::inspect(config),
        Command::Bench(BenchCommand::Lora(config)) => bench::lora(config)?,
        Command::Bench(BenchCommand::Picture(config)) => bench::picture(config)?,
        Command::Bench(BenchCommand::File(config)) => bench::file(config)?,
        Command::Bench(BenchCommand::Safety(config)) => bench::safety(config)?,
        Command::Bench(BenchCommand::Products(config)) => bench::products(config)?,
        Command::Bench(BenchCommand::Soak(config)) => bench::soak(config)?,
        Command::Schema(SchemaCommand::Task) => print(&task::schema())?,
        Command::Schema(SchemaCommand::Cancel) => print(&task::cancel_schema())?,
        Command::Schema(SchemaCommand::Webhooks) => print(&webhook::openapi())?,
        Command::Man(config) => {
            config
                .write()
                .with_context(|| format!("{}: the manual pages cannot be written", config.folder.display()))?;
        }
        Command::Completions(config) => io::stdout().lock().write_all(&config.script())?,
    }
    Ok(true)
}

fn serve(service: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(service)
}

fn examine(config: &DoctorConfig) -> anyhow::Result<bool> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let sound = runtime.block_on(doctor::run(config));
    // Does not wait for threads that hang in a volume.
    runtime.shutdown_background();
    sound
}

fn print(document: &serde_json::Value) -> anyhow::Result<()> {
    Ok(writeln!(io::stdout().lock(), "{document:#}")?)
}
