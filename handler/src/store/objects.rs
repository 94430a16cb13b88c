//! LoRA files in S3, by range and only of one ETag.

use super::status;
use crate::cache::{Place, Source, SourceError, Version};
use aws_sdk_s3::{
    Client,
    error::{DisplayErrorContext, ProvideErrorMetadata, SdkError},
    operation::head_object::HeadObjectOutput,
    types::{ChecksumMode, ChecksumType, ServerSideEncryption},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use futures_util::{FutureExt, future::BoxFuture};
use std::{error::Error, ops::Range};

/// S3 as the cache sees it.
pub(super) struct Objects {
    s3: Client,
}

impl Objects {
    pub(super) fn new(s3: Client) -> Self {
        Self { s3 }
    }
}

impl Source for Objects {
    fn version<'a>(&'a self, place: &'a Place) -> BoxFuture<'a, Result<Version, SourceError>> {
        async move {
            let head = self.s3.head_object().bucket(&place.bucket).key(&place.key);
            let head = head.checksum_mode(ChecksumMode::Enabled).send().await;
            Ok(version(&head.map_err(|error| fault(place, &error))?))
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
            // Without the version's id: asking for one needs a permission of its own, and the ETag says as much.
            let mut get = self.s3.get_object().bucket(&place.bucket).key(&place.key).if_match(&version.etag);
            let wanted = range.end - range.start;
            if wanted < version.length {
                get = get.range(format!("bytes={}-{}", range.start, range.end - 1));
            }
            let mut body = get.send().await.map_err(|error| fault(place, &error))?.body;
            let mut bytes = Vec::with_capacity(wanted as usize);
            while let Some(chunk) = body.next().await {
                let chunk = chunk.map_err(|error| transient(place, &error))?;
                if (bytes.len() + chunk.len()) as u64 > wanted {
                    return Err(transient(place, &format!("more than the {wanted} bytes asked for")));
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

/// Missing, forbidden and misnamed objects will not come back by trying again.
fn fault<E>(place: &Place, error: &SdkError<E>) -> SourceError
where
    E: ProvideErrorMetadata + Error + 'static,
{
    let Place { bucket, key } = place;
    match status(error) {
        Some(404) => SourceError::Permanent(format!("`lora_model_url` s3://{bucket}/{key} does not exist")),
        Some(403) => SourceError::Permanent(format!("`lora_model_url` s3://{bucket}/{key} may not be read")),
        Some(400) => SourceError::Permanent(format!("`lora_model_url` s3://{bucket}/{key} is refused by S3")),
        Some(412) => SourceError::Changed,
        _ => transient(place, &DisplayErrorContext(error)),
    }
}

fn transient(place: &Place, reason: &impl std::fmt::Display) -> SourceError {
    SourceError::Transient(format!("LoRA s3://{}/{}: {reason}", place.bucket, place.key))
}
