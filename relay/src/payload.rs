//! Bodies over SQS' limit: they go to S3, and a pointer to them goes to SQS.
//!
//! The pointer has the form of Amazon's Extended Client Libraries (github.com/awslabs/payload-offloading-java-common-lib-for-aws),
//! so that their receivers find the body too. Refuses to delete: a message may be delivered again; the bucket's lifecycle
//! rule is for that.

use std::{env, error::Error, time::Duration};

use aws_config::{SdkConfig, retry::RetryConfig, timeout::TimeoutConfig};
use aws_sdk_s3::{
    Client,
    error::{ProvideErrorMetadata, SdkError},
    primitives::ByteStream,
};
use serde_json::json;

use crate::{
    attributes::{Attribute, Value},
    field::sha256,
};

const CLASS: &str = "software.amazon.payloadoffloading.PayloadS3Pointer";

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// Enough for RabbitMQ's largest message, 16 MiB, over a slow line.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(60);

/// What lies in S3 for one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload {
    /// The key, made of the body alone: the same message sent again overwrites itself.
    pub key: String,
    /// The body.
    pub body: Vec<u8>,
}

impl Payload {
    /// The payload of a body.
    pub fn new(body: Vec<u8>) -> Self {
        Self { key: format!("payloads/{}", sha256(&body)), body }
    }

    /// The attribute by which receivers know a pointer: the body's bytes.
    pub fn size_attribute(&self) -> Attribute {
        Attribute { name: "ExtendedPayloadSize".into(), value: Value::Number(self.body.len().to_string()) }
    }

    /// What goes to SQS in its place.
    pub fn pointer(&self, bucket: &str) -> String {
        json!([CLASS, { "s3BucketName": bucket, "s3Key": self.key }]).to_string()
    }
}

/// The bucket for payloads.
#[derive(Debug, Clone)]
pub struct PayloadStore {
    s3: Client,
    bucket: String,
}

/// Why a payload could not be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unstored {
    /// The bucket is not there, or may not be written to.
    pub for_good: bool,
    /// The error code, of the service or of the client.
    pub code: String,
    /// The sentence for it.
    pub message: String,
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
        // What stands in for S3 has no names of hosts for buckets.
        let stand_in = ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"].iter().any(|name| env::var_os(name).is_some());
        let config = aws_sdk_s3::config::Builder::from(shared)
            .timeout_config(timeouts)
            // As with SQS, the flow retries, without end.
            .retry_config(RetryConfig::disabled())
            .force_path_style(stand_in)
            .build();
        Self { s3: Client::from_conf(config), bucket: bucket.to_owned() }
    }

    /// Whether payloads could be stored: the bucket is there.
    pub async fn probe(&self) -> Result<(), Unstored> {
        match self.s3.head_bucket().bucket(&self.bucket).send().await {
            Ok(_) => Ok(()),
            // A role may be allowed to write objects and nothing else. The first large body will tell.
            Err(err) if status(&err) == Some(403) => Ok(()),
            Err(err) => Err(unstored(&err)),
        }
    }

    /// Stores a payload.
    pub async fn put(&self, payload: &Payload) -> Result<(), Unstored> {
        let body = ByteStream::from(payload.body.clone());
        let sent = self.s3.put_object().bucket(&self.bucket).key(&payload.key).body(body).send().await;
        sent.map(drop).map_err(|err| unstored(&err))
    }
}

fn status<E>(err: &SdkError<E>) -> Option<u16> {
    err.raw_response().map(|response| response.status().as_u16())
}

fn unstored<E: Error + ProvideErrorMetadata + 'static>(err: &SdkError<E>) -> Unstored {
    let code = err.code().unwrap_or("Unreachable").to_owned();
    let message = err.message().map_or_else(|| err.to_string(), str::to_owned);
    Unstored { for_good: matches!(status(err), Some(403 | 404)), code, message }
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
