//! Files in S3, by range and only of one ETag; and whose fault it is when one cannot be read.
//!
//! S3's error codes decide. A file that is not there is the task's fault; credentials, clocks and throttles are not. `AccessDenied` may
//! be either: S3 says it of one file that nobody may read, of a missing file to those who may not list, and of everything if a role or a
//! policy is wrong. So another file of the same bucket that could be read before is read again: if that works, it is this file's fault.

use super::Regional;
use crate::storage::cache::{Place, Source, SourceError, Version};
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

/// Files that are remembered because they could be read.
const WITNESSES: usize = 64;

/// How messages speak of files: by the field or option that names them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wording {
    /// What stands before the address of a file that is at fault.
    pub(crate) file: &'static str,
    /// The same where S3 is at fault, or the way from there.
    pub(crate) passing: &'static str,
    /// What to do where nothing of a bucket may be read.
    pub(crate) if_denied: &'static str,
    /// What to do where ranges are ignored.
    pub(crate) if_whole: &'static str,
}

/// Of LoRAs, which tasks name.
pub(super) const LORA: Wording = Wording {
    file: "`lora_model_url`",
    passing: "LoRA",
    if_denied: "no other file of its bucket was read: check the role and the bucket's policy",
    if_whole: "let --lora-part-bytes (EASEL_LORA_PART_BYTES) be no less than the file",
};

/// S3 as the cache sees it.
pub(crate) struct Objects {
    s3: Regional,
    wording: Wording,
    /// Two at most of a bucket; the latest is the last.
    witnesses: Mutex<VecDeque<Place>>,
}

impl Objects {
    pub(crate) fn new(s3: Regional, wording: Wording) -> Self {
        Self { s3, wording, witnesses: Mutex::default() }
    }

    fn testify(&self, place: &Place) {
        let mut witnesses = self.witnesses.lock().unwrap_or_else(PoisonError::into_inner);
        if witnesses.back() == Some(place) {
            return;
        }
        witnesses.retain(|witness| witness != place);
        if witnesses.iter().filter(|witness| witness.bucket == place.bucket).count() > 1
            && let Some(oldest) = witnesses.iter().position(|witness| witness.bucket == place.bucket)
        {
            witnesses.remove(oldest);
        }
        if witnesses.len() >= WITNESSES {
            witnesses.pop_front();
        }
        witnesses.push_back(place.clone());
    }

    /// Whether another file of the bucket can be read now.
    async fn is_bucket_readable(&self, place: &Place) -> bool {
        let witness = {
            let witnesses = self.witnesses.lock().unwrap_or_else(PoisonError::into_inner);
            let other = |witness: &&Place| witness.bucket == place.bucket && witness.key != place.key;
            witnesses.iter().rev().find(other).cloned()
        };
        match witness {
            Some(Place { bucket, key }) => self.s3.first_byte(&bucket, &key).await.is_ok(),
            None => false,
        }
    }

    /// What an error whose answer has a code means.
    async fn fault<E>(&self, place: &Place, error: &SdkError<E>) -> SourceError
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        let at = self.name_of(place);
        match (class(error), error.code()) {
            (Class::Condition, _) => SourceError::Changed,
            // An answer without S3's code may be anybody's; the client calls that one NotFound.
            (Class::NoObject | Class::NoContainer, Some(code)) if code != "NotFound" => {
                SourceError::Permanent(match code {
                    "InvalidObjectState" => format!("{at} is archived: it must be restored before it can be read"),
                    "NoSuchBucket" => format!("{at} does not exist: there is no such bucket"),
                    _ => format!("{at} does not exist"),
                })
            }
            (Class::Denied, Some("AccessDenied")) if self.is_bucket_readable(place).await => SourceError::Permanent(
                format!("{at} may not be read, or does not exist; other files of its bucket may be read"),
            ),
            (Class::Denied, _) => self.transient(place, &format!("{}; {}", describe(error), self.wording.if_denied)),
            _ => self.transient(place, &describe(error)),
        }
    }

    fn transient(&self, place: &Place, reason: &str) -> SourceError {
        SourceError::Transient(format!("{} s3://{}/{}: {reason}", self.wording.passing, place.bucket, place.key))
    }
}

impl Source for Objects {
    fn name_of(&self, place: &Place) -> String {
        format!("{} s3://{}/{}", self.wording.file, place.bucket, place.key)
    }

    fn version<'a>(&'a self, place: &'a Place) -> BoxFuture<'a, Result<Version, SourceError>> {
        async move {
            let Place { bucket, key } = place;
            let head = self
                .s3
                .ask(bucket, |s3| s3.head_object().bucket(bucket).key(key).checksum_mode(ChecksumMode::Enabled).send());
            let error = match head.await {
                Ok(head) => {
                    self.testify(place);
                    return Ok(version(&head));
                }
                Err(error) => error,
            };
            if class(&error) == Class::Transient {
                return Err(self.transient(place, &describe(&error)));
            }
            // An answer to HEAD has no code.
            match self.s3.first_byte(bucket, key).await {
                Ok(_) => Err(self.transient(place, &describe(&error))),
                Err(error) => Err(self.fault(place, &error).await),
            }
        }
        .boxed()
    }

    fn read<'a>(
        &'a self,
        place: &'a Place,
        version: &'a Version,
        range: Range<u64>,
    ) -> BoxFuture<'a, Result<Vec<u8>, SourceError>> {
        async move {
            let Place { bucket, key } = place;
            let wanted = range.end - range.start;
            let is_part = wanted < version.length;
            let got = self.s3.ask(bucket, |s3| {
                // Without the version's id: asking for one needs a permission of its own, and the ETag says as much.
                let get = s3.get_object().bucket(bucket).key(key).if_match(&version.etag);
                let part = is_part.then(|| format!("bytes={}-{}", range.start, range.end - 1));
                get.set_range(part).send()
            });
            let mut object = match got.await {
                Ok(object) => object,
                Err(error) => return Err(self.fault(place, &error).await),
            };
            // What does not look at the condition says so by another tag.
            if object.e_tag.as_ref().is_some_and(|etag| *etag != version.etag) {
                return Err(SourceError::Changed);
            }
            if is_part && object.content_length.is_some_and(|length| length.unsigned_abs() > wanted) {
                let ignored =
                    "a part was asked for and the whole file came: the storage, or a proxy before it, ignores Range";
                return Err(self.transient(place, &format!("{ignored}; {}", self.wording.if_whole)));
            }
            let mut bytes = Vec::with_capacity(wanted as usize);
            while let Some(chunk) = object.body.next().await {
                let chunk = chunk.map_err(|_| self.transient(place, "the answer broke off"))?;
                if (bytes.len() + chunk.len()) as u64 > wanted {
                    return Err(self.transient(place, &format!("more than the {wanted} bytes asked for")));
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
    // Of an upload in parts S3 keeps a checksum of checksums, and of a file under a key of KMS or the customer's no MD5.
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
