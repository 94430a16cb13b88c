//! The demo's command line.

use crate::task;
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
    /// Whose style: the name of a LoRA in --styles
    #[arg(long, value_name = "NAME", default_value = "stained-glass", conflicts_with = "lora")]
    style: String,
    /// What the picture shows, tags with commas between them
    #[arg(
        long,
        value_name = "TAGS",
        default_value = "lighthouse,sunset,sea",
        value_delimiter = ',',
        conflicts_with = "task"
    )]
    pub(crate) tags: Vec<String>,
    /// Your own task; $WEBHOOK in it stands for the demo's webhook address, $LORA for the chosen style's s3 URL and
    /// $LORA(NAME) for another's
    #[arg(long, value_name = "FILE.json")]
    pub(crate) task: Option<PathBuf>,
    /// Folder for image.jpg and report.json
    #[arg(long, value_name = "DIR", default_value = "out/demo")]
    pub(crate) out: PathBuf,
    /// Leave everything running afterwards, until ctrl-C
    #[arg(long)]
    pub(crate) keep: bool,
    /// Serve a page on 127.0.0.1 to publish tasks, watch them and break parts, until ctrl-C; its pictures stay in --out
    #[arg(long, conflicts_with_all = ["task", "keep", "to"])]
    pub(crate) studio: bool,
    /// Model folder in the diffusers layout
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Folder of the styles
    #[arg(long, value_name = "DIR")]
    styles: Option<PathBuf>,
    /// A LoRA of your own, as a further style, and the one that is used
    #[arg(long, value_name = "FILE")]
    pub(crate) lora: Option<PathBuf>,
    /// Only publish the task, to a demo that runs with --keep: its stack.json
    #[arg(long, value_name = "stack.json")]
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

    /// Checks that the given files exist, before anything is started.
    pub(crate) fn find_files(&self) -> Result<()> {
        for (option, file) in [("--task", &self.task), ("--lora", &self.lora)] {
            if let Some(file) = file {
                fs::metadata(file).with_context(|| format!("{option} {}", file.display()))?;
            }
        }
        Ok(())
    }

    /// The folder of the styles.
    pub(crate) fn styles(&self) -> Result<&Path> {
        self.styles.as_deref().context("--styles is missing; infra/local/demo chooses one")
    }

    /// The name of the style that is used.
    pub(crate) fn style(&self) -> String {
        self.lora.as_deref().map_or_else(|| self.style.clone(), task::name)
    }
}

/// Whether a model folder is marked as untrained.
pub(crate) fn is_noise(model: &Path) -> bool {
    let index = fs::read(model.join("model_index.json")).unwrap_or_default();
    let index: Value = serde_json::from_slice(&index).unwrap_or_default();
    index["_easel_random_weights"] == Value::Bool(true)
}
