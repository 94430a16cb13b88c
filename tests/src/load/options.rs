//! The options of one run.

use clap::Args;
use std::time::Duration;

/// The options of one run.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// How many tasks to publish
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
    pub tasks: u32,
    /// How many workers to keep running
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub workers: u16,
    /// Kill a worker with -9 each time so many seconds have passed, half as many to half again as many; 0 for never
    #[arg(long, default_value_t = 0, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(..=3_600))]
    pub kill_every: u64,
    /// Kill so many times at most
    #[arg(long, default_value_t = u64::MAX, hide_default_value = true)]
    pub kills: u64,
    /// The share of requests to S3 and SQS, and of webhooks, that are refused, lose their answer or stall, from 0 to 0.9
    #[arg(long, default_value_t = 0.0, value_name = "SHARE", value_parser = share)]
    pub fault_rate: f64,
    /// How long an answer that comes too late takes at most, in seconds; 6 at least
    #[arg(long, default_value_t = 35, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(6..=600))]
    pub latest: u64,
    /// Repeats the choices of chance of an earlier run
    #[arg(long, default_value_t = u64::from(std::process::id()))]
    pub seed: u64,
    /// How long to wait for the last task before what is missing counts as neither complete nor failed, in seconds
    #[arg(long, default_value_t = 3_600, value_name = "SECONDS")]
    pub patience: u64,
}

impl Options {
    pub(super) fn latest(&self) -> Duration {
        Duration::from_secs(self.latest)
    }

    pub(super) fn patience(&self) -> Duration {
        Duration::from_secs(self.patience)
    }
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=0.9).contains(share));
    share.ok_or_else(|| "must be a number from 0 to 0.9".into())
}
