//! `ledger`: checks with real parts that the relay loses nothing; the logic is in `e2e::ledger`.
//!
//! Exit codes: 0 when every promise was kept, 1 when not.

use anyhow::Result;
use clap::Parser;
use e2e::{
    broker::Broker,
    ledger::{Options, run},
    paths::RunDir,
};
use std::process::ExitCode;
use tokio::sync::RwLock;

/// Publishes numbered messages with confirms through a private RabbitMQ and the real relay into an SQS stand-in, injects
/// a fault, and prints what became of them.
#[derive(Debug, Parser)]
#[command(name = "ledger", version)]
struct Cli {
    #[command(flatten)]
    options: Options,
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let Cli { options } = Cli::parse();
    let folder = RunDir::create()?;
    eprintln!("logs: {}", folder.path().display());
    println!("fault: {}\nseed: {}", options.fault, options.seed);
    let broker = RwLock::new(Broker::start(&folder, "rabbitmq-ledger").await?);
    let report = run(&folder, &broker, &options).await?;
    println!("{report}");
    let violations = report.violations();
    for violation in &violations {
        eprintln!("wrong: {violation}");
    }
    Ok(if violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
