//! Message bodies that are too large for SQS: the relay stores the body in S3, and the queue carries a pointer to it.
//!
//! The pointer has the format of Amazon's Extended Client Libraries (github.com/awslabs/payload-offloading-java-common-lib-for-aws).
//! Only the configured bucket is read: a message must not choose what is read with our permissions.

use super::{Store, StoreError};
use aws_errors::describe;
use serde::Deserialize;
use std::borrow::Cow;

/// Largest body that is fetched, in bytes: RabbitMQ's default limit of a message.
pub const MAX_BYTES: usize = 16 * 1024 * 1024;

/// Class names of the pointer in the libraries: current, and of their first version.
const CLASSES: [&str; 2] =
    ["software.amazon.payloadoffloading.PayloadS3Pointer", "com.amazon.sqs.javamessaging.MessageS3Pointer"];

/// Where a message's body is stored.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct PayloadPointer {
    /// Bucket.
    #[serde(rename = "s3BucketName")]
    pub bucket: String,
    /// Key.
    #[serde(rename = "s3Key")]
    pub key: String,
}

impl PayloadPointer {
    /// Parses a body as a pointer; `None` if it is anything else, such as a task.
    pub fn parse(body: &str) -> Option<Self> {
        let body = body.trim_start_matches('\u{feff}').trim_start();
        // A task is a JSON object, so the first character usually decides.
        if !body.starts_with('[') {
            return None;
        }
        let (class, pointer): (Cow<str>, Self) = serde_json::from_str(body).ok()?;
        CLASSES.contains(&&*class).then_some(pointer)
    }
}

impl Store {
    /// Fetches a message's body that was too large for the queue.
    ///
    /// # Errors
    /// Permanent if the bucket is not the configured one, or the body is too large or not UTF-8. Else transient, also if the object does
    /// not exist: the bucket or the permissions may be at fault.
    pub async fn payload(&self, pointer: &PayloadPointer) -> Result<String, StoreError> {
        let PayloadPointer { bucket, key } = pointer;
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
        // Allocated at once: a buffer that grows is in memory twice while it is copied.
        let (mut body, mut bytes) = (object.body, Vec::with_capacity(length.min(MAX_BYTES)));
        while let Some(chunk) = body.next().await {
            bytes.extend_from_slice(&chunk.map_err(|_| lost("it broke off".into()))?);
            if bytes.len() > MAX_BYTES {
                let limit = MAX_BYTES;
                return Err(StoreError::Permanent(format!("the message's body in S3 has more than {limit} bytes")));
            }
        }
        String::from_utf8(bytes).map_err(|_| StoreError::Permanent("the message's body in S3 is not UTF-8".into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_pointer_is_one() {
        let location = r#"{"s3BucketName":"b","s3Key":"k"}"#;
        let pointer = Some(PayloadPointer { bucket: "b".into(), key: "k".into() });
        for class in CLASSES {
            assert_eq!(PayloadPointer::parse(&format!(r#"["{class}",{location}]"#)), pointer);
            assert_eq!(PayloadPointer::parse(&format!(" [\n\"{class}\" , {location} ]\n")), pointer);
            for other in [r#"{"s3BucketName":"b"}"#, r#"{"s3BucketName":1,"s3Key":"k"}"#, "[]", "null", "{}"] {
                assert_eq!(PayloadPointer::parse(&format!(r#"["{class}",{other}]"#)), None, "{other}");
            }
            assert_eq!(PayloadPointer::parse(&format!(r#"["{class}",{location},1]"#)), None);
            // Unknown fields are ignored.
            let more = format!(
                r#"{{"s3BucketName":"b","new":["\ud83d",1e400,{}],"s3Key":"k"}}"#,
                "[".repeat(130) + &"]".repeat(130)
            );
            assert_eq!(PayloadPointer::parse(&format!("\u{feff}[\"{class}\",{more}]")), pointer);
        }
        for body in ["", "{}", "[", "[]", "[1]", r#"["x",{"s3BucketName":"b","s3Key":"k"}]"#, r#"{"generation_id":1}"#]
        {
            assert_eq!(PayloadPointer::parse(body), None, "{body}");
        }
    }
}
