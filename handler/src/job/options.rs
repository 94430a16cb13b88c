//! The options that function and worker share: those of every module that a task passes, and how tasks are worked on.

use super::{admission::SafetyConfig, secrets::SecretsConfig};
use crate::{
    engine::options::ModelConfig,
    picture::options::PictureConfig,
    storage::{options::StoreConfig, weights::options::ModelUrl},
    task::SizeLimits,
    webhook::progress::Marks,
};
use clap::{Args, ValueEnum};

/// What function and worker share.
#[derive(Debug, Clone, Args)]
pub struct ServiceConfig {
    /// The model.
    #[command(flatten)]
    pub model: ModelConfig,
    /// Where the model lies in S3, s3://BUCKET/PREFIX: what its manifest there names is fetched into --model at the start. The folder
    /// is one that handler weights pull filled and aws s3 sync brought there [default: --model is there already]
    #[arg(long, env = "EASEL_MODEL_URL", value_name = "S3-URL", help_heading = "Model")]
    pub model_url: Option<ModelUrl>,
    /// The storage.
    #[command(flatten)]
    pub store: StoreConfig,
    /// The pictures' files.
    #[command(flatten)]
    pub picture: PictureConfig,
    /// The secrets.
    #[command(flatten)]
    pub secrets: SecretsConfig,
    /// What a task may reach.
    #[command(flatten)]
    pub safety: SafetyConfig,
    /// The sizes of pictures.
    #[command(flatten)]
    pub sizes: SizeLimits,
    /// How tasks are worked on.
    #[command(flatten)]
    pub work: WorkConfig,
    /// How log lines look.
    #[arg(long, env = "EASEL_LOG_FORMAT", default_value = "json")]
    pub log_format: LogFormat,
}

impl ServiceConfig {
    /// Whether the options go together.
    ///
    /// # Errors
    /// Which do not, and why.
    pub fn check(&self) -> Result<(), String> {
        self.store.check()?;
        self.sizes.check()
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// How tasks are worked on, by function and worker alike.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Work")]
pub struct WorkConfig {
    /// How often a message is received before it is given up: the queue's maxReceiveCount. The backend is told on the last receive.
    #[arg(long, env = "EASEL_MAX_RECEIVE_COUNT", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_receive_count: u32,
    /// Seconds without a sign of life after which a task is taken over from the process that works on it; 0 for no such care: a task
    /// that is delivered twice at once is then painted twice.
    #[arg(long, env = "EASEL_CLAIM_LEASE", default_value_t = 60, value_name = "SECONDS",
          value_parser = clap::value_parser!(u32).range(..=3_600))]
    pub claim_lease: u32,
    /// Seconds for which a message that cancels a task by its id holds, also for a task that comes later; 0 for no such messages. A
    /// lifecycle rule should delete what is older under cancelled/ in the pictures' bucket.
    #[arg(long, env = "EASEL_CANCEL_EXPIRY", default_value_t = 345_600, value_name = "SECONDS",
          value_parser = clap::value_parser!(u32).range(..=1_209_600))]
    pub cancel_expiry: u32,
    /// Send the webhook `cancelled` for a task that was cancelled by its id.
    #[arg(long, env = "EASEL_CANCELLED_WEBHOOK", default_value_t = false, num_args = 0..=1, default_missing_value = "true",
          value_name = "BOOL", action = clap::ArgAction::Set)]
    pub cancelled_webhook: bool,
    /// What `error_code` says: always GENERATION_FAILED (single), or what is at fault (fine).
    #[arg(long, env = "EASEL_ERROR_CODES", default_value = "single")]
    pub error_codes: ErrorCodes,
    /// What `metadata` in the webhook `complete` holds: seed, steps and guidance scale, as the Python worker sent them (seed), or also
    /// scheduler, size, model, LoRAs, times and warnings (full).
    #[arg(long, env = "EASEL_WEBHOOK_DETAIL", default_value = "seed")]
    pub webhook_detail: WebhookDetail,
    /// At which percentages progress is sent: a list, or every:N for 0, N, 2 N and so on below 100. A cancelled task is looked for at the
    /// same ones.
    #[arg(long, env = "EASEL_PROGRESS", default_value_t, value_name = "PERCENT,…")]
    pub progress: Marks,
    /// Send a small picture of the painting with progress.
    #[arg(long, env = "EASEL_PROGRESS_PREVIEW", default_value_t = false, num_args = 0..=1, default_missing_value = "true",
          value_name = "BOOL", action = clap::ArgAction::Set)]
    pub progress_preview: bool,
    /// How many pictures are painted at once at most, where several tasks wait that differ in prompt, name and seed only; 0 for as many
    /// as the GPU's memory allows, up to 8, and one on a CPU.
    #[arg(long, env = "EASEL_BATCH", default_value_t = 0, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(..=64))]
    pub batch: u16,
    /// Write the measurements of each task to standard output in CloudWatch's embedded metric format.
    #[arg(long, env = "EASEL_EMBEDDED_METRICS", default_value_t = false, num_args = 0..=1, default_missing_value = "true",
          value_name = "BOOL", action = clap::ArgAction::Set)]
    pub embedded_metrics: bool,
}

/// What `metadata` in `complete` holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum WebhookDetail {
    /// Seed, steps and guidance scale, as the Python worker sent them.
    Seed,
    /// Also scheduler, size, model, LoRAs, times and warnings.
    Full,
}

/// What `error_code` says of a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ErrorCodes {
    /// Always `GENERATION_FAILED`, as the Python worker did.
    Single,
    /// What is at fault.
    Fine,
}
