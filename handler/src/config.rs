//! The command line and the environment of the handler. Tests build these structs; nothing else reads the environment.

mod address;
mod bench;
mod cache;
mod completions;
mod credential;
mod doctor;
mod generate;
mod lora;
mod manual;
mod model;
mod picture;
mod safety;
mod schema;
mod secret;
mod secrets;
mod signature;
mod store;
mod variables;
mod weights;
mod work;

pub use bench::{BenchCommand, BenchFileConfig, BenchLoraConfig, BenchPictureConfig, BenchSoakConfig};
pub use cache::CacheConfig;
pub use completions::CompletionsConfig;
pub use credential::{CredentialConfig, CredentialFiles, Pem};
pub use doctor::DoctorConfig;
pub use generate::{GenerateConfig, LoraFile};
pub use lora::{InspectConfig, LoraCommand};
pub use model::{DeviceKind, ModelConfig, Precision};
pub use picture::PictureConfig;
pub use safety::SafetyConfig;
pub use schema::SchemaCommand;
pub use secret::Secret;
pub use secrets::{SecretsConfig, SigningConfig, TokenConfig};
pub use signature::SignatureConfig;
pub use store::{ResultAcl, StoreConfig};
pub use variables::variables;
pub use weights::{PullConfig, Variant, VerifyConfig, WeightsCommand};
pub use work::{ErrorCodes, WorkConfig};

use address::{queue_url, socket};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::{net::SocketAddr, time::Duration};

/// Paints generation tasks with Stable Diffusion 1.5 and an artist's LoRA.
///
/// Without a subcommand it is the AWS Lambda function, configured by the environment alone.
#[derive(Debug, Parser)]
#[command(name = "handler", version, override_usage = "handler [COMMAND]", after_long_help = manual::handler())]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve SQS events through the Lambda Runtime API (what `handler` alone does).
    #[command(after_long_help = manual::service())]
    Function(ServiceConfig),
    /// Poll an SQS queue: for GPU hosts that are not Lambda.
    #[command(after_long_help = manual::service())]
    Worker(WorkerConfig),
    /// Look at everything that function and worker need: one line for each thing, with what to do about it.
    #[command(after_long_help = manual::doctor())]
    Doctor(DoctorConfig),
    /// Paint one picture from the shell.
    Generate(GenerateConfig),
    /// Fill a model folder from the hub, and check one.
    #[command(subcommand)]
    Weights(WeightsCommand),
    /// Look at LoRA files.
    #[command(subcommand)]
    Lora(LoraCommand),
    /// Measure what something costs here.
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Print the contract with the backend.
    #[command(subcommand)]
    Schema(SchemaCommand),
    /// Print a script that completes this command line in a shell.
    Completions(CompletionsConfig),
}

impl Command {
    /// What entry points share, those that take tasks from elsewhere and so have logs for programs, and traces. None of a tool.
    pub fn service(&self) -> Option<&ServiceConfig> {
        match self {
            Self::Function(service) => Some(service),
            Self::Worker(worker) => Some(&worker.service),
            Self::Doctor(_)
            | Self::Generate(_)
            | Self::Weights(_)
            | Self::Lora(_)
            | Self::Bench(_)
            | Self::Schema(_)
            | Self::Completions(_) => None,
        }
    }
}

/// What function and worker share.
#[derive(Debug, Clone, Args)]
pub struct ServiceConfig {
    /// The model.
    #[command(flatten)]
    pub model: ModelConfig,
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
    /// How tasks are worked on.
    #[command(flatten)]
    pub work: WorkConfig,
    /// How log lines look.
    #[arg(long, env = "EASEL_LOG_FORMAT", default_value = "json")]
    pub log_format: LogFormat,
}

/// Settings of `handler worker`.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Queue")]
pub struct WorkerConfig {
    /// What it shares with the function.
    #[command(flatten)]
    pub service: ServiceConfig,
    /// The queue to poll.
    #[arg(long, env = "SQS_QUEUE_URL", value_name = "URL", value_parser = queue_url)]
    pub sqs_queue_url: String,
    /// Visibility timeout of a message in work, in seconds; it is extended for as long as the work goes on.
    #[arg(long, env = "EASEL_VISIBILITY_TIMEOUT", default_value_t = 120, value_name = "SECONDS",
          value_parser = clap::value_parser!(i32).range(3..=43_200))]
    pub visibility_timeout: i32,
    /// Tasks in work at a time. With more than one, those that wait for the GPU are fetched, and those that were painted are encoded and
    /// uploaded, while it paints; tasks of one LoRA, size and number of steps are painted as one batch.
    #[arg(long, env = "EASEL_CONCURRENCY", default_value_t = 1, value_name = "COUNT",
          value_parser = clap::value_parser!(u16).range(1..=100))]
    pub concurrency: u16,
    /// Seconds without a task after which the worker ends with exit code 0, for hosts that scale to zero; 0 for never.
    #[arg(long, env = "EASEL_IDLE_EXIT", default_value_t = 0, value_name = "SECONDS")]
    pub idle_exit: u32,
    /// Where to answer /healthz, /readyz and /metrics [default: nowhere]
    #[arg(long, env = "EASEL_HEALTH_ADDR", value_name = "IP:PORT", value_parser = socket)]
    pub health_addr: Option<SocketAddr>,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// Longest time for one webhook call, as in the Python worker.
pub const WEBHOOK_TIMEOUT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_settings_are_named() {
        let error = Cli::try_parse_from(["handler", "generate", "--prompt", "x", "--out", "x.jpg"]).unwrap_err();
        assert!(error.to_string().contains("--model"), "{error}");
    }
}
