//! Options for storage: the buckets, and the LoRA cache on the volume.

use crate::storage::{
    ImageLimits,
    cache::{CacheLimits, DownloadOptions},
    result::ResultConfig,
};
use clap::{Args, ValueEnum};
use settings::{bucket, web_url};
use std::{path::PathBuf, time::Duration};
use url::Url;

/// Wait before the first retry of a part.
const FIRST_DELAY: Duration = Duration::from_millis(200);

/// Where pictures go and LoRAs come from.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Storage")]
pub struct StoreConfig {
    /// Bucket for the pictures.
    #[arg(long = "s3-bucket", env = "S3_BUCKET", default_value = "stylelicense-images", value_name = "BUCKET", value_parser = bucket)]
    pub bucket: String,
    /// Canned ACL of a picture; `none` for buckets that have ACLs disabled [default: public-read; none unless --result-urls is public]
    #[arg(long = "result-acl", env = "EASEL_RESULT_ACL")]
    pub acl: Option<ResultAcl>,
    /// Base of `result_url` [default: https://BUCKET.s3.amazonaws.com; of another endpoint, partition or name, where that bucket is]
    #[allow(rustdoc::bare_urls, reason = "--help shows it as it stands here")]
    #[arg(long = "result-base-url", env = "EASEL_RESULT_BASE_URL", value_name = "URL", value_parser = web_url)]
    pub base_url: Option<Url>,
    /// The pictures.
    #[command(flatten)]
    pub result: ResultConfig,
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
    /// Pictures to begin from.
    #[command(flatten)]
    pub images: ImageLimits,
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

/// How LoRAs are fetched and kept on the volume.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "LoRAs on the volume")]
pub struct CacheConfig {
    /// Most bytes of all kept LoRAs together; the least recently used go first.
    #[arg(long, env = "EASEL_CACHE_MAX_BYTES", default_value_t = 16 << 30, value_name = "BYTES")]
    pub cache_max_bytes: u64,
    /// Bytes of the volume that are left free.
    #[arg(long, env = "EASEL_CACHE_RESERVE_BYTES", default_value_t = 64 << 20, value_name = "BYTES")]
    pub cache_reserve_bytes: u64,
    /// LoRAs are downloaded in parts of so many bytes; a smaller file is one part.
    #[arg(long, env = "EASEL_LORA_PART_BYTES", default_value_t = 8 << 20, value_name = "BYTES",
          value_parser = clap::value_parser!(u64).range(1 << 16..=1 << 30))]
    pub lora_part_bytes: u64,
    /// Parts that are downloaded at a time.
    #[arg(long, env = "EASEL_LORA_PARALLEL_PARTS", default_value_t = 4, value_name = "COUNT",
          value_parser = clap::value_parser!(u8).range(1..=64))]
    pub lora_parallel_parts: u8,
}

impl CacheConfig {
    /// How a file is downloaded.
    pub fn download_options(&self) -> DownloadOptions {
        let Self { lora_part_bytes: part_bytes, lora_parallel_parts: parallel, .. } = *self;
        DownloadOptions { part_bytes, parallel: usize::from(parallel), first_delay: FIRST_DELAY }
    }

    /// How much of the volume the cache may use.
    pub fn limits(&self) -> CacheLimits {
        CacheLimits { bytes: self.cache_max_bytes, reserve: self.cache_reserve_bytes }
    }
}
