//! S3: uploads pictures; downloads LoRAs, pictures to begin from, large messages and models.

mod address;
pub mod cache;
#[cfg(test)]
pub(crate) mod fake_s3;
mod images;
mod loras;
pub mod options;
pub mod payload;
mod probe;
mod result;
mod result_key;
mod s3_client;
mod s3_source;
pub mod weights;

pub use images::{ImageLimits, ReadError, read as read_image};
pub(crate) use probe::Access;
pub use result::{ResultConfig, ResultUrls};
pub use result_key::KeyTemplate;
pub(crate) use s3_client::{S3Client, beginning};
pub(crate) use s3_source::{ErrorWording, S3Source};

use crate::{
    observe::{CacheMetrics, report::Found},
    storage::{
        cache::{Cache, SourceError},
        options::StoreConfig,
        result::PutOptions,
    },
    task::{Checked, Format, ImageRef, InversionRef, LoraRef, Task},
};
use address::{ResultAddress, endpoint};
use aws_config::{SdkConfig, timeout::TimeoutConfig};
use aws_errors::{Class, class, describe};
use aws_sdk_s3::{Client, config::Builder, presigning::PresigningConfig, primitives::ByteStream};
use diffusion::{
    lora::Lora,
    prompt::inversion::{MAX_BYTES, TextualInversion},
};
use image::RgbImage;
use images::Images;
use loras::ParsedCache;
use s3_source::{IMAGE, INVERSION, LORA};
use std::{collections::HashMap, sync::Arc, time::Duration};

/// Metadata of a picture with the fingerprint of its task.
const FINGERPRINT: &str = "easel-fingerprint";
/// Metadata of a picture that was checked: the safety mode, and whether it was flagged.
const SAFETY: &str = "easel-safety";
const NSFW: &str = "easel-nsfw";

/// Why storage failed, by what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Trying again does not help: the task fails.
    #[error("{0}")]
    Permanent(String),
    /// Trying again may help: the message goes back to the queue.
    #[error("{0}")]
    Transient(String),
}

/// The buckets of the service, and the LoRA cache.
pub struct Store {
    s3: S3Client,
    bucket: String,
    put: PutOptions,
    urls: ResultUrls,
    keys: KeyTemplate,
    base_url: String,
    payload_bucket: Option<String>,
    loras: ParsedCache<S3Source, Lora>,
    inversions: ParsedCache<S3Source, TextualInversion>,
    images: Images,
}

impl Store {
    /// Sets up the client. Sends nothing.
    pub fn new(config: &StoreConfig, aws: &SdkConfig) -> Self {
        let address = ResultAddress::of(config, aws);
        let s3 = client(aws, config.path_style);
        let base = config.base_url.as_ref().map(|url| url.as_str().trim_end_matches('/').to_string());
        let (folder, limits) = (config.cache_dir.join("loras"), config.cache.limits());
        let options = config.cache.download_options();
        let cache = |wording| Cache::new(S3Source::new(s3.clone(), wording), folder.clone(), options, limits);
        let loras = ParsedCache::new(cache(LORA), config.max_lora_bytes);
        // In the same folder, so that one limit holds for both.
        let inversions = ParsedCache::new(cache(INVERSION).counting_in(loras.cache_metrics()), MAX_BYTES);
        let images = Images::new(S3Source::new(s3.clone(), IMAGE), options, config.images);
        Self {
            s3,
            bucket: config.bucket.clone(),
            put: PutOptions::new(config),
            urls: config.result.result_urls,
            keys: config.result.result_key.clone(),
            base_url: base.unwrap_or_else(|| address.url()),
            payload_bucket: config.payload_bucket.clone(),
            loras,
            inversions,
            images,
        }
    }

    /// The client, and the bucket of the pictures.
    pub(crate) fn pictures(&self) -> (&S3Client, &str) {
        (&self.s3, &self.bucket)
    }

    /// The client, for other buckets.
    pub(crate) fn s3(&self) -> S3Client {
        self.s3.clone()
    }

    /// Base of the pictures' addresses.
    pub(crate) fn base_url(&self) -> &str {
        &self.base_url
    }

    /// Counters of the LoRA cache.
    pub fn cache_metrics(&self) -> &CacheMetrics {
        self.loras.cache_metrics()
    }

    /// A LoRA, and whether it came from memory, the volume or S3.
    ///
    /// # Errors
    /// Permanent if it does not exist, is too large, is not a LoRA, or may not be read while another object of its bucket may; else
    /// transient.
    pub async fn lora(&self, wanted: &LoraRef) -> Result<(Arc<Lora>, Found), StoreError> {
        self.loras.get(&wanted.bucket, &wanted.key).await
    }

    /// A textual inversion.
    ///
    /// # Errors
    /// As [`Store::lora`].
    pub async fn inversion(&self, wanted: &InversionRef) -> Result<Arc<TextualInversion>, StoreError> {
        Ok(self.inversions.get(&wanted.bucket, &wanted.key).await?.0)
    }

    /// A picture to begin from, as it fills that width and height. Nothing of it is kept.
    ///
    /// # Errors
    /// Permanent if it does not exist, is too large, is no picture, or may not be read while another object of its bucket may; else
    /// transient.
    pub async fn image(&self, wanted: &ImageRef, size: (usize, usize)) -> Result<RgbImage, StoreError> {
        self.images.get(wanted, size).await
    }

    /// What the safety checker said of these pictures, if all are stored and belong to the task with this fingerprint; empty if not all
    /// of them were checked.
    ///
    /// # Errors
    /// Transient, if S3 gives no clear answer.
    pub async fn stored_pictures(
        &self,
        keys: &[String],
        fingerprint: &str,
    ) -> Result<Option<Vec<Checked>>, StoreError> {
        let mut checked = Vec::new();
        for key in keys {
            let metadata = self
                .metadata(key)
                .await
                .map_err(|cause| StoreError::Transient(format!("picture s3://{}/{key}: {cause}", self.bucket)))?;
            let Some(metadata) = metadata else { return Ok(None) };
            if metadata.get(FINGERPRINT).map(String::as_str) != Some(fingerprint) {
                return Ok(None);
            }
            checked.extend(check_of(&metadata));
        }
        Ok(Some(if checked.len() == keys.len() { checked } else { Vec::new() }))
    }

    /// The metadata of a picture; `None` if it is not stored.
    async fn metadata(&self, key: &str) -> Result<Option<HashMap<String, String>>, String> {
        let bucket = &self.bucket;
        let head = self.s3.ask(bucket, |s3| s3.head_object().bucket(bucket).key(key).send()).await;
        match head.map_err(|error| (class(&error), error)) {
            Ok(head) => return Ok(head.metadata),
            Err((Class::NoObject, _)) => return Ok(None),
            Err((Class::Transient, error)) => return Err(describe(&error)),
            // Answers to HEAD do not say why.
            Err(_) => {}
        }
        match self.s3.first_byte(bucket, key).await {
            Ok(object) => Ok(object.metadata),
            Err(error) => match class(&error) {
                // Without s3:ListBucket, S3 also denies access to objects that do not exist.
                Class::NoObject | Class::Denied => Ok(None),
                _ => Err(describe(&error)),
            },
        }
    }

    /// The keys of a task's pictures, in their order.
    pub fn result_keys(&self, task: &Task) -> Vec<String> {
        self.keys.keys(task)
    }

    /// The address of a stored picture for the backend. A signed one is valid from now on, for as long as the credentials that signed
    /// it.
    ///
    /// # Errors
    /// Transient, if it cannot be signed.
    pub async fn picture_url(&self, key: &str) -> Result<String, StoreError> {
        match self.urls {
            ResultUrls::Public => Ok(format!("{}/{key}", self.base_url)),
            ResultUrls::S3 => Ok(format!("s3://{}/{key}", self.bucket)),
            ResultUrls::Presigned(valid) => {
                let unsigned = |why: String| StoreError::Transient(format!("signing the address of a picture: {why}"));
                let config = PresigningConfig::expires_in(valid).map_err(|error| unsigned(error.to_string()))?;
                let bucket = &self.bucket;
                let signed =
                    self.s3.ask(bucket, |s3| s3.get_object().bucket(bucket).key(key).presigned(config.clone()));
                Ok(signed.await.map_err(|error| unsigned(describe(&error)))?.uri().to_string())
            }
        }
    }

    /// Stores a picture, with the fingerprint of its task and what the safety checker said.
    ///
    /// # Errors
    /// Always transient: the operator must fix a wrong bucket or a missing permission, and the task must not be lost meanwhile.
    pub async fn put_picture(
        &self,
        key: &str,
        bytes: Vec<u8>,
        format: Format,
        fingerprint: &str,
        checked: Option<Checked>,
    ) -> Result<(), StoreError> {
        let put = self.s3.ask(&self.bucket, |s3| {
            let mut put = s3.put_object().bucket(&self.bucket).key(key);
            put = put.content_type(format.content_type()).metadata(FINGERPRINT, fingerprint);
            if let Some(Checked { mode, nsfw }) = checked {
                put = put.metadata(SAFETY, mode.name()).metadata(NSFW, nsfw.to_string());
            }
            self.put.apply(put).body(ByteStream::from(bytes.clone())).send()
        });
        put.await.map_err(|error| {
            StoreError::Transient(format!("picture upload to s3://{}/{key}: {}", self.bucket, describe(&error)))
        })?;
        Ok(())
    }
}

/// What a stored picture's metadata says of its check.
fn check_of(metadata: &HashMap<String, String>) -> Option<Checked> {
    Some(Checked { mode: metadata.get(SAFETY)?.parse().ok()?, nsfw: metadata.get(NSFW)?.parse().ok()? })
}

/// An S3 client by environment, profile and `--s3-path-style`. Sends nothing.
pub(crate) fn client(aws: &SdkConfig, path_style: Option<bool>) -> S3Client {
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(Duration::from_secs(5))
        .read_timeout(Duration::from_secs(30))
        .operation_attempt_timeout(Duration::from_secs(120))
        .operation_timeout(Duration::from_secs(300))
        .build();
    // Other S3 implementations usually have no host names for buckets.
    let path_style = path_style.unwrap_or_else(|| endpoint(aws).is_some());
    S3Client::new(Client::from_conf(Builder::from(aws).force_path_style(path_style).timeout_config(timeouts).build()))
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
