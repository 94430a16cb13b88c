//! What `handler bench` measures.

use crate::{engine::options::ModelConfig, picture::options::CredentialFiles};
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// What to measure.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// What reading a LoRA and swapping it in and out costs.
    Lora(BenchLoraConfig),
    /// What a picture costs, stage by stage.
    Picture(BenchPictureConfig),
    /// What it costs to sign a picture, to encode it and to write its metadata. Needs no model.
    File(BenchFileConfig),
    /// Whether many tasks in a row cost the same and leave nothing behind.
    Soak(BenchSoakConfig),
}

/// Settings of `handler bench lora`.
#[derive(Debug, Clone, Args)]
pub struct BenchLoraConfig {
    /// The model.
    #[command(flatten)]
    pub model: ModelConfig,
    /// The LoRA.
    #[arg(long, value_name = "FILE")]
    pub lora: PathBuf,
    /// How often each part is measured.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub repeat: u32,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Settings of `handler bench picture`.
#[derive(Debug, Clone, Args)]
pub struct BenchPictureConfig {
    /// The model.
    #[command(flatten)]
    pub model: ModelConfig,
    /// What the picture shows.
    #[arg(long, default_value = "lighthouse sunset sea")]
    pub prompt: String,
    /// 1:1 is 512x512, 2:2 is 768x768, 1:2 is 512x1024.
    #[arg(long, default_value = "1:1", value_parser = ["1:1", "2:2", "1:2"])]
    pub aspect_ratio: String,
    /// Denoising steps.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub steps: u16,
    /// Classifier-free guidance; none at 1 and below.
    #[arg(long, default_value_t = 7.5)]
    pub guidance_scale: f64,
    /// How many pictures at once.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub num_images: u8,
    /// How often, after a first time that is shown by itself.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub repeat: u32,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Settings of `handler bench file`.
#[derive(Debug, Clone, Args)]
pub struct BenchFileConfig {
    /// A picture, JPEG or PNG, cropped to the size [default: soft waves]
    #[arg(long, value_name = "FILE")]
    pub picture: Option<PathBuf>,
    /// The name to sign with.
    #[arg(long, value_name = "NAME", default_value = "Ada Kowalska")]
    pub signature: String,
    /// What signs the file.
    #[command(flatten)]
    pub credential: CredentialFiles,
    /// 1:1 is 512x512, 2:2 is 768x768, 1:2 is 512x1024.
    #[arg(long, default_value = "1:1", value_parser = ["1:1", "2:2", "1:2"])]
    pub aspect_ratio: String,
    /// How often each part is measured.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub repeat: u32,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Settings of `handler bench soak`.
#[derive(Debug, Clone, Args)]
pub struct BenchSoakConfig {
    /// The model.
    #[command(flatten)]
    pub model: ModelConfig,
    /// LoRA files; the tasks use them in turns, and now and then none.
    #[arg(long = "lora", value_name = "FILE")]
    pub loras: Vec<PathBuf>,
    /// How many tasks. Their sizes take turns, too.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(12..=100_000))]
    pub tasks: u32,
    /// Denoising steps of each.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub steps: u16,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}
