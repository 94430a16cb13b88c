//! Messages over SQS' limit: the relay leaves the body in S3, and a pointer to it is what comes through the queue.
//!
//! The pointer has the form of Amazon's Extended Client Libraries (github.com/awslabs/payload-offloading-java-common-lib-for-aws).
//! Refuses every bucket but the configured one: a message must not choose what is read with our permissions.

use serde::Deserialize;
use std::borrow::Cow;

/// Largest body that is fetched, in bytes: RabbitMQ's own limit of a message.
pub const MAX_BYTES: usize = 16 * 1024 * 1024;

/// What the libraries call the pointer: now, and in their first version.
const CLASSES: [&str; 2] =
    ["software.amazon.payloadoffloading.PayloadS3Pointer", "com.amazon.sqs.javamessaging.MessageS3Pointer"];

/// Where a body lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pointer {
    /// Bucket.
    pub bucket: String,
    /// Key.
    pub key: String,
}

/// What the pointer says of the place. What else it may say is passed over, and kept nowhere.
#[derive(Deserialize)]
struct Place {
    #[serde(rename = "s3BucketName")]
    bucket: String,
    #[serde(rename = "s3Key")]
    key: String,
}

impl Pointer {
    /// The pointer that a body is; `None` if it is anything else, such as a task.
    pub fn parse(body: &str) -> Option<Self> {
        let body = body.trim_start_matches('\u{feff}').trim_start();
        // A task is an object. Most bodies are told apart by one character.
        if !body.starts_with('[') {
            return None;
        }
        let (class, Place { bucket, key }): (Cow<str>, Place) = serde_json::from_str(body).ok()?;
        CLASSES.contains(&&*class).then_some(Self { bucket, key })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_pointer_is_one() {
        let place = r#"{"s3BucketName":"b","s3Key":"k"}"#;
        let pointer = Some(Pointer { bucket: "b".into(), key: "k".into() });
        for class in CLASSES {
            assert_eq!(Pointer::parse(&format!(r#"["{class}",{place}]"#)), pointer);
            assert_eq!(Pointer::parse(&format!(" [\n\"{class}\" , {place} ]\n")), pointer);
            for other in [r#"{"s3BucketName":"b"}"#, r#"{"s3BucketName":1,"s3Key":"k"}"#, "[]", "null", "{}"] {
                assert_eq!(Pointer::parse(&format!(r#"["{class}",{other}]"#)), None, "{other}");
            }
            assert_eq!(Pointer::parse(&format!(r#"["{class}",{place},1]"#)), None);
            // Its extensions are passed over, whatever they hold.
            let more = format!(
                r#"{{"s3BucketName":"b","new":["\ud83d",1e400,{}],"s3Key":"k"}}"#,
                "[".repeat(130) + &"]".repeat(130)
            );
            assert_eq!(Pointer::parse(&format!("\u{feff}[\"{class}\",{more}]")), pointer);
        }
        for body in ["", "{}", "[", "[]", "[1]", r#"["x",{"s3BucketName":"b","s3Key":"k"}]"#, r#"{"generation_id":1}"#]
        {
            assert_eq!(Pointer::parse(body), None, "{body}");
        }
    }
}
