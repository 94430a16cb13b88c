//! Where pictures go and LoRAs come from.

mod cache;

pub use cache::CacheConfig;

use clap::{Args, ValueEnum};
use settings::{bucket, web_url};
use std::path::PathBuf;
use url::Url;

/// Where pictures go and LoRAs come from.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Storage")]
pub struct StoreConfig {
    /// Bucket for the pictures.
    #[arg(long = "s3-bucket", env = "S3_BUCKET", default_value = "stylelicense-images", value_name = "BUCKET", value_parser = bucket)]
    pub bucket: String,
    /// Canned ACL of a picture; `none` for buckets that have ACLs disabled.
    #[arg(long = "result-acl", env = "EASEL_RESULT_ACL", default_value = "public-read")]
    pub acl: ResultAcl,
    /// Base of `result_url` [default: https://BUCKET.s3.amazonaws.com; of another endpoint, partition or name, where that bucket is]
    #[allow(rustdoc::bare_urls, reason = "--help shows it as it stands here")]
    #[arg(long = "result-base-url", env = "EASEL_RESULT_BASE_URL", value_name = "URL", value_parser = web_url)]
    pub base_url: Option<Url>,
    /// Address buckets by path and not by host [default: true if AWS_ENDPOINT_URL, AWS_ENDPOINT_URL_S3 or the profile names an endpoint]
    #[arg(long = "s3-path-style", env = "EASEL_S3_PATH_STYLE", value_name = "BOOL")]
    pub path_style: Option<bool>,
    /// Folder in which LoRAs are kept between tasks.
    #[arg(long, env = "EASEL_CACHE_DIR", default_value = "/tmp/easel", value_name = "DIR")]
    pub cache_dir: PathBuf,
    /// Bucket in which the relay leaves messages over SQS' limit; without it, a message that points into S3 is refused.
    #[arg(long, env = "EASEL_PAYLOAD_BUCKET", value_name = "BUCKET", value_parser = bucket)]
    pub payload_bucket: Option<String>,
    /// Largest LoRA file accepted, in bytes.
    #[arg(long, env = "EASEL_MAX_LORA_BYTES", default_value_t = 1 << 30, value_name = "BYTES")]
    pub max_lora_bytes: u64,
    /// How they are fetched and kept.
    #[command(flatten)]
    pub cache: CacheConfig,
}

/// Canned ACL of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ResultAcl {
    /// Everybody may read.
    PublicRead,
    /// No ACL header: the bucket's policy decides.
    None,
}
