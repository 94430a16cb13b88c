//! Options of the worker.

use crate::job::options::ServiceConfig;
use clap::Args;
use settings::{queue_url, socket};
use std::net::SocketAddr;

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
