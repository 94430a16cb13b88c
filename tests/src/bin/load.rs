//! `load`: checks with real parts that every task ends once, with its own picture; the logic is in `e2e::load`.
//!
//! Exit codes: 0 when every promise was kept, 1 when not.

use anyhow::{Result, ensure};
use clap::Parser;
use e2e::{
    aws::Aws,
    broker::Broker,
    load::{Options, run},
    paths::{RunDir, repo},
};
use std::{path::PathBuf, process::ExitCode};

/// Publishes numbered tasks through a private RabbitMQ, the real relay and an SQS and S3 stand-in to real workers, kills
/// workers, lets S3 and webhooks fail, and prints what became of the tasks.
#[derive(Debug, Parser)]
#[command(name = "load", version)]
struct Cli {
    #[command(flatten)]
    options: Options,
    /// What to paint with: a folder that `toy-model` made
    #[arg(long, value_name = "DIR", default_value_os_t = repo().join(".cache/toy-model"))]
    model: PathBuf,
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let Cli { options, model } = Cli::parse();
    ensure!(
        model.join("lora.safetensors").is_file(),
        "{} holds no toy model: run target/debug/toy-model --out {0}",
        model.display()
    );
    let folder = RunDir::create()?;
    eprintln!("logs: {}", folder.path().display());
    println!("seed: {}", options.seed);
    let (broker, aws) = tokio::try_join!(Broker::start(&folder, "rabbitmq-load"), Aws::start(&folder))?;
    let report = run(&folder, &broker, &aws, &model, &options).await?;
    println!("{report}");
    let violations = report.violations();
    for violation in &violations {
        eprintln!("wrong: {violation}");
    }
    Ok(if violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
