//! Bodies over SQS' limit: they go to S3, and a pointer to them goes to SQS.
//!
//! The pointer has the form of Amazon's Extended Client Libraries
//! (github.com/awslabs/payload-offloading-java-common-lib-for-aws), so that their receivers find the body too. Nothing
//! is deleted here, because a message may be redelivered: that is for a lifecycle rule of the bucket.

use std::time::Duration;

use aws_config::SdkConfig;
use bytes::Bytes;
use serde_json::json;

use crate::{
    attributes::{Attribute, AttributeValue},
    bucket::{Bucket, BucketError},
    id_source::sha256,
};

const CLASS: &str = "software.amazon.payloadoffloading.PayloadS3Pointer";

/// Enough for RabbitMQ's largest message, 16 MiB, over a slow line.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(60);

/// A body that goes to S3.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload {
    /// The key, made from the body alone: the same message sent again overwrites itself.
    pub key: String,
    /// The body. The client sends it without a copy.
    pub body: Bytes,
}

impl Payload {
    /// The payload of a body.
    pub fn new(body: Vec<u8>) -> Self {
        Self { key: format!("payloads/{}", sha256(&body)), body: body.into() }
    }

    /// The attribute by which receivers recognize a pointer: the length of the body in bytes.
    pub fn size_attribute(&self) -> Attribute {
        Attribute { name: "ExtendedPayloadSize".into(), value: AttributeValue::Number(self.body.len().to_string()) }
    }

    /// The body of the SQS message that points to it.
    pub fn pointer(&self, bucket: &str) -> String {
        json!([CLASS, { "s3BucketName": bucket, "s3Key": self.key }]).to_string()
    }
}

/// The bucket for payloads.
#[derive(Debug, Clone)]
pub struct PayloadStore(Bucket);

impl PayloadStore {
    /// A client. Sends nothing yet.
    pub fn new(bucket: &str, shared: &SdkConfig) -> Self {
        Self(Bucket::new(bucket, shared, ATTEMPT_TIMEOUT))
    }

    /// Checks that the bucket exists.
    pub async fn probe(&self) -> Result<(), BucketError> {
        self.0.probe().await
    }

    /// Stores a payload.
    pub async fn put(&self, payload: &Payload) -> Result<(), BucketError> {
        self.0.put(&payload.key, payload.body.clone()).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pointer_is_the_extended_clients() {
        let payload = Payload::new(b"abc".to_vec());
        let key = "payloads/ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(payload.key, key);
        assert_eq!(
            payload.pointer("b"),
            format!(
                "[\"software.amazon.payloadoffloading.PayloadS3Pointer\",{{\"s3BucketName\":\"b\",\"s3Key\":\"{key}\"}}]"
            )
        );
    }
}
