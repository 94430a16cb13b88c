//! Bodies over SQS' limit: they go to S3, and a pointer to them goes to SQS.
//!
//! The pointer has the form of Amazon's Extended Client Libraries
//! (github.com/awslabs/payload-offloading-java-common-lib-for-aws), so that their receivers find the body too. Nothing
//! is deleted here, because a message may be redelivered: that is for a lifecycle rule of the bucket.

use std::{env, error::Error, time::Duration};

use aws_config::{Region, SdkConfig, retry::RetryConfig, timeout::TimeoutConfig};
use aws_errors::{Class, bucket_region, class, describe, status};
use aws_sdk_s3::{
    Client,
    error::{ProvideErrorMetadata, SdkError},
    primitives::ByteStream,
};
use bytes::Bytes;
use serde_json::json;

use crate::{
    attributes::{Attribute, AttributeValue},
    id_source::sha256,
};

const CLASS: &str = "software.amazon.payloadoffloading.PayloadS3Pointer";

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const READ_TIMEOUT: Duration = Duration::from_secs(10);
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
pub struct PayloadStore {
    s3: Client,
    bucket: String,
    region: Option<String>,
}

/// Why a payload could not be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PayloadError {
    /// What the error means.
    pub class: Class,
    /// The error code of the service or the client, and what it means.
    pub text: String,
}

impl PayloadStore {
    /// A client. Sends nothing yet.
    pub fn new(bucket: &str, shared: &SdkConfig) -> Self {
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .operation_attempt_timeout(ATTEMPT_TIMEOUT)
            .operation_timeout(ATTEMPT_TIMEOUT)
            .build();
        // A stand-in for S3 has no host names for buckets.
        let stand_in = ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"].iter().any(|name| env::var_os(name).is_some());
        let config = aws_sdk_s3::config::Builder::from(shared)
            .timeout_config(timeouts)
            // As with SQS, the flow retries, without end.
            .retry_config(RetryConfig::disabled())
            .force_path_style(stand_in)
            .build();
        let region = shared.region().map(Region::to_string);
        Self { s3: Client::from_conf(config), bucket: bucket.to_owned(), region }
    }

    /// Checks that the bucket exists.
    pub async fn probe(&self) -> Result<(), PayloadError> {
        match self.s3.head_bucket().bucket(&self.bucket).send().await {
            Ok(_) => Ok(()),
            // A role may be allowed to write objects and nothing else. The first large body will show.
            Err(err) if status(&err) == Some(403) => Ok(()),
            Err(err) => Err(self.payload_error(&err)),
        }
    }

    /// Stores a payload.
    pub async fn put(&self, payload: &Payload) -> Result<(), PayloadError> {
        let body = ByteStream::from(payload.body.clone());
        let sent = self.s3.put_object().bucket(&self.bucket).key(&payload.key).body(body).send().await;
        sent.map(drop).map_err(|err| self.payload_error(&err))
    }

    fn payload_error<E: Error + ProvideErrorMetadata + 'static>(&self, err: &SdkError<E>) -> PayloadError {
        let elsewhere = bucket_region(err).filter(|region| Some(*region) != self.region.as_deref());
        let text = match (elsewhere, &self.region) {
            // The queue is in the relay's region, so AWS_REGION cannot simply be changed.
            (Some(there), Some(here)) => {
                format!("the bucket lies in {there}, and the relay works in {here}: name a bucket of {here}")
            }
            _ => describe(err),
        };
        PayloadError { class: class(err), text }
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
