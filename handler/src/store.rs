//! S3: pictures go up, LoRAs come down. LoRAs are kept on the volume, keyed by bucket, key and ETag, so that two styles with
//! one file name never meet and a replaced file is fetched again.

use crate::{
    claim::Claims,
    config::{ResultAcl, StoreConfig},
    lora::{Lora, LoraError},
    payload::{self, Pointer},
    task::{Format, LoraRef},
};
use aws_config::{SdkConfig, timeout::TimeoutConfig};
use aws_sdk_s3::{
    Client,
    config::Builder,
    error::{DisplayErrorContext, ProvideErrorMetadata, SdkError},
    primitives::ByteStream,
    types::ObjectCannedAcl,
};
use sha2::{Digest, Sha256};
use std::{
    error::Error,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{fs, io::AsyncWriteExt, sync::Mutex};
use uuid::Uuid;

/// The picture's metadata that says for which task it was painted.
const FINGERPRINT: &str = "easel-fingerprint";
/// LoRAs kept parsed in memory.
const PARSED_LORAS: usize = 4;

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
    s3: Client,
    bucket: String,
    acl: ResultAcl,
    base_url: String,
    cache: PathBuf,
    payload_bucket: Option<String>,
    max_lora_bytes: u64,
    parsed: Mutex<Vec<(String, Arc<Lora>)>>,
}

impl Store {
    /// Sets the client up; nothing is sent.
    pub fn new(config: &StoreConfig, aws: &SdkConfig) -> Self {
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(Duration::from_secs(5))
            .read_timeout(Duration::from_secs(30))
            .operation_attempt_timeout(Duration::from_secs(120))
            .operation_timeout(Duration::from_secs(300))
            .build();
        let stand_in = ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"].iter().any(|name| std::env::var_os(name).is_some());
        let path_style = config.path_style.unwrap_or(stand_in);
        let s3 = Builder::from(aws).force_path_style(path_style).timeout_config(timeouts).build();
        let base = config.base_url.as_ref().map(|url| url.as_str().trim_end_matches('/').to_string());
        Self {
            s3: Client::from_conf(s3),
            bucket: config.bucket.clone(),
            acl: config.acl,
            base_url: base.unwrap_or_else(|| format!("https://{}.s3.amazonaws.com", config.bucket)),
            cache: config.cache_dir.join("loras"),
            payload_bucket: config.payload_bucket.clone(),
            max_lora_bytes: config.max_lora_bytes,
            parsed: Mutex::default(),
        }
    }

    /// The claims on generations, in the bucket of their pictures.
    pub fn claims(&self, lease: Duration) -> Claims {
        Claims::new(self.s3.clone(), self.bucket.clone(), lease)
    }

    /// Whether every one of these pictures is there and was painted for the task with this fingerprint.
    ///
    /// # Errors
    /// Transient, if S3 does not answer.
    pub async fn stands(&self, keys: &[String], fingerprint: &str) -> Result<bool, StoreError> {
        for key in keys {
            let found = match self.s3.head_object().bucket(&self.bucket).key(key).send().await {
                Ok(head) => head.metadata().and_then(|metadata| metadata.get(FINGERPRINT)).cloned(),
                // S3 says "forbidden" for what is not there to those who may not list.
                Err(error) if matches!(status(&error), Some(403 | 404)) => None,
                Err(error) => {
                    let cause = DisplayErrorContext(&error);
                    return Err(StoreError::Transient(format!("picture s3://{}/{key}: {cause}", self.bucket)));
                }
            };
            if found.as_deref() != Some(fingerprint) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The public address of a picture.
    pub fn picture_url(&self, key: &str) -> String {
        format!("{}/{key}", self.base_url)
    }

    /// Stores a picture, with the fingerprint of its task.
    ///
    /// # Errors
    /// Transient, always: a wrong bucket or missing permission is the operator's to mend, and the task is not lost meanwhile.
    pub async fn put_picture(
        &self,
        key: &str,
        bytes: Vec<u8>,
        format: Format,
        fingerprint: &str,
    ) -> Result<(), StoreError> {
        let mut put = self.s3.put_object().bucket(&self.bucket).key(key);
        put = put.content_type(format.content_type()).metadata(FINGERPRINT, fingerprint);
        if self.acl == ResultAcl::PublicRead {
            put = put.acl(ObjectCannedAcl::PublicRead);
        }
        put.body(ByteStream::from(bytes)).send().await.map_err(|error| {
            StoreError::Transient(format!(
                "picture upload to s3://{}/{key}: {}",
                self.bucket,
                DisplayErrorContext(&error)
            ))
        })?;
        Ok(())
    }

    /// A message's body that was too large for the queue.
    ///
    /// # Errors
    /// Permanent if the bucket is another than the configured one, or what lies there is too large or no text; else
    /// transient, also if nothing lies there: it may be the bucket's or the permissions' fault.
    pub async fn payload(&self, pointer: &Pointer) -> Result<String, StoreError> {
        let Pointer { bucket, key } = pointer;
        if self.payload_bucket.as_ref() != Some(bucket) {
            let allowed =
                self.payload_bucket.as_ref().map_or("none is allowed".into(), |name| format!("only {name} is allowed"));
            return Err(StoreError::Permanent(format!(
                "the message points to bucket {bucket}, {allowed} (--payload-bucket)"
            )));
        }
        let lost = |error: String| StoreError::Transient(format!("the message's body, s3://{bucket}/{key}: {error}"));
        let object = self.s3.get_object().bucket(bucket).key(key).send().await;
        let object = object.map_err(|error| lost(DisplayErrorContext(&error).to_string()))?;
        let (mut body, mut bytes) = (object.body, Vec::new());
        while let Some(chunk) = body.next().await {
            bytes.extend_from_slice(&chunk.map_err(|error| lost(error.to_string()))?);
            if bytes.len() > payload::MAX_BYTES {
                let limit = payload::MAX_BYTES;
                return Err(StoreError::Permanent(format!("the message's body in S3 has more than {limit} bytes")));
            }
        }
        String::from_utf8(bytes).map_err(|_| StoreError::Permanent("the message's body in S3 is not UTF-8".into()))
    }

    /// A LoRA, from memory, from the volume or from S3.
    ///
    /// # Errors
    /// Permanent if it does not exist, is too large, may not be read, or is no LoRA; else transient.
    pub async fn lora(&self, wanted: &LoraRef) -> Result<Arc<Lora>, StoreError> {
        let LoraRef { bucket, key, .. } = wanted;
        let head = self.s3.head_object().bucket(bucket).key(key).send().await;
        let head = head.map_err(|error| lora_fault(wanted, &error))?;
        let (length, limit) = (head.content_length().unwrap_or(0), self.max_lora_bytes);
        if length.unsigned_abs() > limit {
            let reason = format!("`lora_model_url` s3://{bucket}/{key} has {length} bytes, the limit is {limit}");
            return Err(StoreError::Permanent(reason));
        }
        let etag = head.e_tag().unwrap_or_default();
        let name = hex(&Sha256::digest([bucket.as_str(), key, etag].join("\0")));
        let mut parsed = self.parsed.lock().await;
        if let Some(index) = parsed.iter().position(|(known, _)| *known == name) {
            let entry = parsed.remove(index);
            parsed.push(entry);
            return Ok(parsed[parsed.len() - 1].1.clone());
        }
        let lora = Arc::new(self.read_or_fetch(wanted, &name).await?);
        if parsed.len() == PARSED_LORAS {
            parsed.remove(0);
        }
        parsed.push((name, lora.clone()));
        Ok(lora)
    }

    /// Reads the cached file; one that is absent or unreadable is fetched.
    async fn read_or_fetch(&self, wanted: &LoraRef, name: &str) -> Result<Lora, StoreError> {
        let path = self.cache.join(format!("{name}.safetensors"));
        if let Ok(lora) = parse(&path).await {
            tracing::debug!(lora.cached = true, "LoRA");
            return Ok(lora);
        }
        self.fetch(wanted, &path).await?;
        parse(&path).await.map_err(|error| {
            let LoraRef { bucket, key, .. } = wanted;
            let reason = format!("`lora_model_url` s3://{bucket}/{key}: {error}");
            if !error.is_permanent() { StoreError::Transient(reason) } else { StoreError::Permanent(reason) }
        })
    }

    /// Downloads beside the final place and renames, so that no other process sees half a file.
    async fn fetch(&self, wanted: &LoraRef, path: &Path) -> Result<(), StoreError> {
        let LoraRef { bucket, key, .. } = wanted;
        let io = |error: std::io::Error| StoreError::Transient(format!("LoRA cache {}: {error}", self.cache.display()));
        let object = self.s3.get_object().bucket(bucket).key(key).send().await;
        let mut body = object.map_err(|error| lora_fault(wanted, &error))?.body;
        fs::create_dir_all(&self.cache).await.map_err(io)?;
        let partial = path.with_extension(format!("{}.partial", Uuid::new_v4()));
        let received = async {
            let mut file = fs::File::create(&partial).await.map_err(io)?;
            let mut room = self.max_lora_bytes;
            while let Some(chunk) = body.next().await {
                let chunk =
                    chunk.map_err(|error| StoreError::Transient(format!("LoRA s3://{bucket}/{key}: {error}")))?;
                room = room.checked_sub(chunk.len() as u64).ok_or_else(|| {
                    StoreError::Permanent(format!(
                        "`lora_model_url` s3://{bucket}/{key} grew over the limit while it was read"
                    ))
                })?;
                file.write_all(&chunk).await.map_err(io)?;
            }
            file.sync_all().await.map_err(io)?;
            fs::rename(&partial, path).await.map_err(io)
        }
        .await;
        if received.is_err() {
            // The download failed already; a left-over is only untidy.
            let _ = fs::remove_file(&partial).await;
        }
        received
    }
}

async fn parse(path: &Path) -> Result<Lora, LoraError> {
    let path = path.to_owned();
    let parsed = tokio::task::spawn_blocking(move || Lora::read(&path)).await;
    parsed.unwrap_or_else(|error| Err(LoraError::Device(candle_core::Error::msg(error))))
}

/// Missing, forbidden and misnamed objects will not come back by trying again.
fn lora_fault<E>(wanted: &LoraRef, error: &SdkError<E>) -> StoreError
where
    E: ProvideErrorMetadata + Error + 'static,
{
    let LoraRef { bucket, key, .. } = wanted;
    match status(error) {
        Some(404) => StoreError::Permanent(format!("`lora_model_url` s3://{bucket}/{key} does not exist")),
        Some(403) => StoreError::Permanent(format!("`lora_model_url` s3://{bucket}/{key} may not be read")),
        Some(400) => StoreError::Permanent(format!("`lora_model_url` s3://{bucket}/{key} is refused by S3")),
        _ => StoreError::Transient(format!("LoRA s3://{bucket}/{key}: {}", DisplayErrorContext(error))),
    }
}

fn status<E>(error: &SdkError<E>) -> Option<u16> {
    error.raw_response().map(|answer| answer.status().as_u16())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
