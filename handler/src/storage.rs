//! S3: pictures go up; LoRAs, large messages and models come down.

mod address;
pub mod cache;
#[cfg(test)]
pub(crate) mod loopback;
mod loras;
mod objects;
pub mod options;
mod payload;
pub mod pointer;
mod probe;
mod regional;
mod results;
pub mod weights;

pub(crate) use objects::{Objects, Wording};
pub(crate) use probe::Access;
pub(crate) use regional::Regional;

use crate::{
    observe::{CacheMetrics, report::Found},
    storage::{
        cache::{Cache, SourceError},
        options::{ResultAcl, StoreConfig},
    },
    task::LoraRef,
};
use address::{Place, endpoint};
use aws_config::{SdkConfig, timeout::TimeoutConfig};
use aws_sdk_s3::{Client, config::Builder};
use diffusion::lora::Lora;
use loras::Loras;
use objects::LORA;
use std::{sync::Arc, time::Duration};

/// Why storage failed, named by what is to be done.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Will not get better: the task fails.
    #[error("{0}")]
    Permanent(String),
    /// May get better: the queue tries again.
    #[error("{0}")]
    Transient(String),
}

/// Buckets and the LoRA cache.
pub struct Store {
    s3: Regional,
    bucket: String,
    acl: ResultAcl,
    base_url: String,
    payload_bucket: Option<String>,
    loras: Loras<Objects>,
}

impl Store {
    /// Sets the client up; nothing is sent.
    pub fn new(config: &StoreConfig, aws: &SdkConfig) -> Self {
        let place = Place::of(config, aws);
        let s3 = client(aws, config.path_style);
        let base = config.base_url.as_ref().map(|url| url.as_str().trim_end_matches('/').to_string());
        let (folder, limits) = (config.cache_dir.join("loras"), config.cache.limits());
        let cache = Cache::new(Objects::new(s3.clone(), LORA), folder, config.cache.parts(), limits);
        Self {
            s3,
            bucket: config.bucket.clone(),
            acl: config.acl,
            base_url: base.unwrap_or_else(|| place.url()),
            payload_bucket: config.payload_bucket.clone(),
            loras: Loras::new(cache, config.max_lora_bytes),
        }
    }

    /// The bucket of the pictures, and the way there.
    pub(crate) fn pictures(&self) -> (&Regional, &str) {
        (&self.s3, &self.bucket)
    }

    /// The client, for other buckets.
    pub(crate) fn s3(&self) -> Regional {
        self.s3.clone()
    }

    /// Where the addresses of pictures begin.
    pub(crate) fn base_url(&self) -> &str {
        &self.base_url
    }

    /// What was counted of the LoRAs' files.
    pub fn tally(&self) -> &CacheMetrics {
        self.loras.tally()
    }

    /// A LoRA, from memory, from the volume or from S3, and from which.
    ///
    /// # Errors
    /// Permanent if it does not exist, is too large, is no LoRA, or may not be read where other objects of its bucket may; else transient.
    pub async fn lora(&self, wanted: &LoraRef) -> Result<(Arc<Lora>, Found), StoreError> {
        self.loras.get(&wanted.bucket, &wanted.key).await
    }
}

/// A client of S3 as variables and profile say, and `--s3-path-style` if it is given. Nothing is sent.
pub(crate) fn client(aws: &SdkConfig, path_style: Option<bool>) -> Regional {
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(Duration::from_secs(5))
        .read_timeout(Duration::from_secs(30))
        .operation_attempt_timeout(Duration::from_secs(120))
        .operation_timeout(Duration::from_secs(300))
        .build();
    // What stands in for S3 has no names of hosts for buckets.
    let path_style = path_style.unwrap_or_else(|| endpoint(aws).is_some());
    Regional::new(Client::from_conf(Builder::from(aws).force_path_style(path_style).timeout_config(timeouts).build()))
}

impl From<SourceError> for StoreError {
    fn from(error: SourceError) -> Self {
        match error {
            SourceError::Permanent(reason) => Self::Permanent(reason),
            SourceError::Transient(reason) => Self::Transient(reason),
            SourceError::Changed => Self::Transient(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests;
