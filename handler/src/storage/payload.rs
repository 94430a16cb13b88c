//! Bodies of messages that were too large for the queue, from the configured bucket and no other.

use super::{Store, StoreError};
use crate::storage::pointer::{self, Pointer};
use aws_errors::describe;

impl Store {
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
        let object = self.s3.ask(bucket, |s3| s3.get_object().bucket(bucket).key(key).send()).await;
        let object = object.map_err(|error| lost(describe(&error)))?;
        let length = object.content_length.and_then(|length| usize::try_from(length).ok()).unwrap_or_default();
        // In one piece: a buffer that grows is for a moment there twice.
        let (mut body, mut bytes) = (object.body, Vec::with_capacity(length.min(pointer::MAX_BYTES)));
        while let Some(chunk) = body.next().await {
            bytes.extend_from_slice(&chunk.map_err(|_| lost("it broke off".into()))?);
            if bytes.len() > pointer::MAX_BYTES {
                let limit = pointer::MAX_BYTES;
                return Err(StoreError::Permanent(format!("the message's body in S3 has more than {limit} bytes")));
            }
        }
        String::from_utf8(bytes).map_err(|_| StoreError::Permanent("the message's body in S3 is not UTF-8".into()))
    }
}
