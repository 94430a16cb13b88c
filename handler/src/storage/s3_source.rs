//! Reads objects from S3 by range and ETag, and decides whether an error is permanent.
//!
//! S3's error codes decide. A missing object is the task's fault; credentials, clocks and throttling are not. `AccessDenied` may be
//! either: S3 returns it for one object that nobody may read, for a missing object without s3:ListBucket, and for all objects if a role or
//! a policy is wrong. So another object of the bucket that was readable before is read again. If that works, the error is permanent.

use super::S3Client;
use crate::storage::cache::{ObjectLocation, ObjectSource, SourceError, Version};
use aws_errors::{Class, class, describe};
use aws_sdk_s3::{
    error::{ProvideErrorMetadata, SdkError},
    operation::head_object::HeadObjectOutput,
    types::{ChecksumMode, ChecksumType, ServerSideEncryption},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use futures_util::{FutureExt, future::BoxFuture};
use std::{
    collections::VecDeque,
    error::Error,
    ops::Range,
    sync::{Mutex, PoisonError},
};

/// Objects that are remembered because they were readable.
const MAX_READABLE: usize = 64;

/// Words for error messages about objects.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ErrorWording {
    /// Name of the object in permanent errors: the field or option that it comes from.
    pub(crate) permanent: &'static str,
    /// Name of the object in transient errors.
    pub(crate) transient: &'static str,
    /// Advice if no object of the bucket may be read.
    pub(crate) if_denied: &'static str,
    /// Advice if Range is ignored.
    pub(crate) if_range_ignored: &'static str,
}

/// For LoRAs.
pub(super) const LORA: ErrorWording = ErrorWording {
    permanent: "`lora_model_url`",
    transient: "LoRA",
    if_denied: "no other file of its bucket was read: check the role and the bucket's policy",
    if_range_ignored: "let --lora-part-bytes (EASEL_LORA_PART_BYTES) be no less than the file",
};

/// For textual inversions.
pub(super) const INVERSION: ErrorWording =
    ErrorWording { permanent: "`textual_inversions`", transient: "textual inversion", ..LORA };

/// For pictures to begin from.
pub(super) const IMAGE: ErrorWording =
    ErrorWording { permanent: "`image_url`", transient: "picture to begin from", ..LORA };

/// S3 as a source of the cache.
pub(crate) struct S3Source {
    s3: S3Client,
    wording: ErrorWording,
    /// Objects that were readable, at most two per bucket, the latest last.
    readable: Mutex<VecDeque<ObjectLocation>>,
}

impl S3Source {
    pub(crate) fn new(s3: S3Client, wording: ErrorWording) -> Self {
        Self { s3, wording, readable: Mutex::default() }
    }

    fn remember_readable(&self, location: &ObjectLocation) {
        let mut readable = self.readable.lock().unwrap_or_else(PoisonError::into_inner);
        if readable.back() == Some(location) {
            return;
        }
        readable.retain(|object| object != location);
        if readable.iter().filter(|object| object.bucket == location.bucket).count() > 1
            && let Some(oldest) = readable.iter().position(|object| object.bucket == location.bucket)
        {
            readable.remove(oldest);
        }
        if readable.len() >= MAX_READABLE {
            readable.pop_front();
        }
        readable.push_back(location.clone());
    }

    /// Whether another object of the bucket can be read now.
    async fn is_bucket_readable(&self, location: &ObjectLocation) -> bool {
        let other = {
            let readable = self.readable.lock().unwrap_or_else(PoisonError::into_inner);
            let is_other = |object: &&ObjectLocation| object.bucket == location.bucket && object.key != location.key;
            readable.iter().rev().find(is_other).cloned()
        };
        match other {
            Some(ObjectLocation { bucket, key }) => self.s3.first_byte(&bucket, &key).await.is_ok(),
            None => false,
        }
    }

    /// Classifies an error whose answer has an error code.
    async fn classify<E>(&self, location: &ObjectLocation, error: &SdkError<E>) -> SourceError
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        let at = self.name_of(location);
        match (class(error), error.code()) {
            (Class::Condition, _) => SourceError::Changed,
            // NotFound is the client's name for a 404 without S3's error code, which may come from a proxy.
            (Class::NoObject | Class::NoContainer, Some(code)) if code != "NotFound" => {
                SourceError::Permanent(match code {
                    "InvalidObjectState" => format!("{at} is archived: it must be restored before it can be read"),
                    "NoSuchBucket" => format!("{at} does not exist: there is no such bucket"),
                    _ => format!("{at} does not exist"),
                })
            }
            (Class::Denied, Some("AccessDenied")) if self.is_bucket_readable(location).await => SourceError::Permanent(
                format!("{at} may not be read, or does not exist; other files of its bucket may be read"),
            ),
            (Class::Denied, _) => self.transient(location, &format!("{}; {}", describe(error), self.wording.if_denied)),
            _ => self.transient(location, &describe(error)),
        }
    }

    fn transient(&self, location: &ObjectLocation, reason: &str) -> SourceError {
        SourceError::Transient(format!(
            "{} s3://{}/{}: {reason}",
            self.wording.transient, location.bucket, location.key
        ))
    }
}

impl ObjectSource for S3Source {
    fn name_of(&self, location: &ObjectLocation) -> String {
        format!("{} s3://{}/{}", self.wording.permanent, location.bucket, location.key)
    }

    fn version<'a>(&'a self, location: &'a ObjectLocation) -> BoxFuture<'a, Result<Version, SourceError>> {
        async move {
            let ObjectLocation { bucket, key } = location;
            let head = self
                .s3
                .ask(bucket, |s3| s3.head_object().bucket(bucket).key(key).checksum_mode(ChecksumMode::Enabled).send());
            let error = match head.await {
                Ok(head) => {
                    self.remember_readable(location);
                    return Ok(version(&head));
                }
                Err(error) => error,
            };
            if class(&error) == Class::Transient {
                return Err(self.transient(location, &describe(&error)));
            }
            // An answer to HEAD has no error code.
            match self.s3.first_byte(bucket, key).await {
                Ok(_) => Err(self.transient(location, &describe(&error))),
                Err(error) => Err(self.classify(location, &error).await),
            }
        }
        .boxed()
    }

    fn read<'a>(
        &'a self,
        location: &'a ObjectLocation,
        version: &'a Version,
        range: Range<u64>,
    ) -> BoxFuture<'a, Result<Vec<u8>, SourceError>> {
        async move {
            let ObjectLocation { bucket, key } = location;
            let wanted = range.end - range.start;
            let is_part = wanted < version.length;
            let got = self.s3.ask(bucket, |s3| {
                // Without the version id, which would need another permission. The ETag is enough.
                let get = s3.get_object().bucket(bucket).key(key).if_match(&version.etag);
                let part = is_part.then(|| format!("bytes={}-{}", range.start, range.end - 1));
                get.set_range(part).send()
            });
            let mut object = match got.await {
                Ok(object) => object,
                Err(error) => return Err(self.classify(location, &error).await),
            };
            // A storage that ignores If-Match returns another ETag.
            if object.e_tag.as_ref().is_some_and(|etag| *etag != version.etag) {
                return Err(SourceError::Changed);
            }
            if is_part && object.content_length.is_some_and(|length| length.unsigned_abs() > wanted) {
                let ignored =
                    "a part was asked for and the whole file came: the storage, or a proxy before it, ignores Range";
                return Err(self.transient(location, &format!("{ignored}; {}", self.wording.if_range_ignored)));
            }
            let mut bytes = Vec::with_capacity(wanted as usize);
            while let Some(chunk) = object.body.next().await {
                let chunk = chunk.map_err(|_| self.transient(location, "the answer broke off"))?;
                if (bytes.len() + chunk.len()) as u64 > wanted {
                    return Err(self.transient(location, &format!("more than the {wanted} bytes asked for")));
                }
                bytes.extend_from_slice(&chunk);
            }
            Ok(bytes)
        }
        .boxed()
    }
}

fn version(head: &HeadObjectOutput) -> Version {
    let etag = head.e_tag().unwrap_or_default().to_string();
    // A composite SHA-256 (of a multipart upload) is not that of the content, and with KMS or a customer's key the ETag is no MD5.
    let sha256 = head.checksum_sha256().filter(|_| head.checksum_type() != Some(&ChecksumType::Composite));
    let plain = matches!(head.server_side_encryption(), None | Some(ServerSideEncryption::Aes256));
    let md5 = Some(etag.trim_matches('"')).filter(|_| plain && head.sse_customer_algorithm().is_none());
    Version {
        id: head.version_id().map(str::to_string),
        length: head.content_length().unwrap_or(0).unsigned_abs(),
        sha256: sha256.and_then(|text| STANDARD.decode(text).ok()?.try_into().ok()),
        md5: md5.and_then(|digits| {
            Some(u128::from_str_radix(digits, 16).ok()?.to_be_bytes()).filter(|_| digits.len() == 32)
        }),
        etag,
    }
}

#[cfg(test)]
mod tests;
