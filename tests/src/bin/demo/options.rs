//! The demo's command line.

use anyhow::{Context, Result, ensure};
use clap::Parser;
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Sends one generation task through RabbitMQ, the relay, SQS and the function, all on this machine.
#[derive(Debug, Parser)]
#[command(name = "infra/local/demo", args_override_self = true)]
pub(crate) struct Options {
    /// Your own task; $WEBHOOK and $LORA in it stand for the demo's webhook address and its LoRA's s3 URL
    #[arg(long, value_name = "FILE.json")]
    pub(crate) task: Option<PathBuf>,
    /// Folder for image.jpg and report.json
    #[arg(long, value_name = "DIR", default_value = "out/demo")]
    pub(crate) out: PathBuf,
    /// Leave everything running afterwards, until ctrl-C
    #[arg(long)]
    pub(crate) keep: bool,
    /// Model folder in the diffusers layout
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// The LoRA that $LORA stands for
    #[arg(long, value_name = "FILE")]
    lora: Option<PathBuf>,
    /// Only publish --task, to a demo that runs with --keep: its stack.json
    #[arg(long, value_name = "stack.json", requires = "task")]
    pub(crate) to: Option<PathBuf>,
    /// How long the task may take, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 1800)]
    pub(crate) timeout: u64,
}

impl Options {
    /// The model folder.
    pub(crate) fn model(&self) -> Result<&Path> {
        let model = self.model.as_deref().context("--model is missing; infra/local/demo chooses one")?;
        ensure!(model.join("model_index.json").is_file(), "--model {}: no model_index.json there", model.display());
        Ok(model)
    }

    /// The LoRA file.
    pub(crate) fn lora(&self) -> Result<&Path> {
        let lora = self.lora.as_deref().context("--lora is missing; infra/local/demo chooses one")?;
        ensure!(lora.is_file(), "--lora {}: no such file", lora.display());
        Ok(lora)
    }
}

/// Whether a model folder says of itself that nobody has trained it.
pub(crate) fn is_noise(model: &Path) -> bool {
    let index = fs::read(model.join("model_index.json")).unwrap_or_default();
    let index: Value = serde_json::from_slice(&index).unwrap_or_default();
    index["_easel_random_weights"] == Value::Bool(true)
}
