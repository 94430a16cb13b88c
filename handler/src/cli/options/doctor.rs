//! Settings of `handler doctor`: those of function and worker, and what is needed to look further.

use crate::job::options::ServiceConfig;
use clap::Args;
use settings::queue_url;
use settings::web_url;
use url::Url;

/// Settings of `handler doctor`.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "What is looked at")]
pub struct DoctorConfig {
    /// What it shares with function and worker.
    #[command(flatten)]
    pub service: ServiceConfig,
    /// The queue that tasks come from.
    #[arg(long, env = "SQS_QUEUE_URL", value_name = "URL", value_parser = queue_url)]
    pub sqs_queue_url: Option<String>,
    /// The function's timeout, which the queue's visibility timeout must outlast; a worker needs none.
    #[arg(long, env = "EASEL_FUNCTION_TIMEOUT", value_name = "SECONDS")]
    pub function_timeout: Option<u32>,
    /// A backend's address as tasks have it in `webhook_url`. It is asked for its headers by HEAD, without the token.
    #[arg(long, env = "EASEL_DOCTOR_WEBHOOK_URL", value_name = "URL", value_parser = web_url)]
    pub webhook_url: Option<Url>,
    /// A LoRA as tasks have it in `lora_model_url`; S3 is asked for its headers.
    #[arg(long, env = "EASEL_DOCTOR_LORA_URL", value_name = "S3-URL")]
    pub lora_url: Option<Url>,
    /// Load the model where it would be loaded, too.
    #[arg(long)]
    pub load: bool,
    /// Hash the model's files against the manifest of `handler weights pull`, too.
    #[arg(long)]
    pub hash: bool,
}
