//! `handler lora`: what a LoRA file is, and whether it would load.

use clap::{Args, Subcommand};
use diffusion::lora::Report;
use std::path::PathBuf;

/// What to do with LoRA files.
#[derive(Debug, Subcommand)]
pub enum LoraCommand {
    /// Say what a LoRA file is, and whether it would load. The exit code is 0 if it would, else 1.
    Inspect(InspectConfig),
}

/// Settings of `handler lora inspect`.
#[derive(Debug, Clone, Args)]
pub struct InspectConfig {
    /// The LoRA, or a folder with one and its adapter_config.json.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Check it against this model folder or checkpoint; only the headers of its files are read.
    #[arg(long, value_name = "MODEL")]
    pub model: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Prints what a file is. Returns whether it would load.
///
/// # Errors
/// The file cannot be read, or `--model` is no model folder.
pub fn inspect(config: &InspectConfig) -> anyhow::Result<bool> {
    let report = Report::of_file(&config.file, config.model.as_deref())?;
    if config.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{report}");
    }
    Ok(report.would_load)
}
