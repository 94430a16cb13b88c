//! What a task may reach: the hosts of its webhooks, and the buckets of its LoRAs.

use crate::{buckets::BucketPattern, network::HostPattern};
use clap::Args;

/// What a task may reach.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "What a task may reach")]
pub struct SafetyConfig {
    /// Hosts that webhooks may go to, and no others: api.example.org, or .example.org for all under it; :port narrows an entry
    /// down [default: every host with a public address]
    #[arg(long, env = "EASEL_WEBHOOK_HOSTS", value_name = "HOST,…", value_delimiter = ',')]
    pub webhook_hosts: Vec<HostPattern>,
    /// Let webhooks go to private, loopback and link-local addresses too, if there is no --webhook-hosts.
    #[arg(long, env = "EASEL_ALLOW_PRIVATE_WEBHOOKS")]
    pub allow_private_webhooks: bool,
    /// Buckets that LoRAs may come from, and no others; *-loras means all that end so [default: every bucket that may be read]
    #[arg(long, env = "EASEL_LORA_BUCKETS", value_name = "BUCKET,…", value_delimiter = ',')]
    pub lora_buckets: Vec<BucketPattern>,
}
