//! A bucket that the relay writes objects to.

use std::{env, error::Error, time::Duration};

use aws_config::{Region, SdkConfig, retry::RetryConfig, timeout::TimeoutConfig};
use aws_errors::{Class, bucket_region, class, describe, status};
use aws_sdk_s3::{
    Client,
    error::{ProvideErrorMetadata, SdkError},
    primitives::ByteStream,
};
use bytes::Bytes;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// A bucket.
#[derive(Debug, Clone)]
pub struct Bucket {
    s3: Client,
    name: String,
    region: Option<String>,
}

/// Why an object could not be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketError {
    /// What the error means.
    pub class: Class,
    /// What came of the request.
    pub failure: Failure,
    /// The error code of the service or the client, and what it means.
    pub text: String,
}

/// How a request failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// No answer in time.
    Timeout,
    /// No connection.
    Unreachable,
    /// An answer that is none of S3's.
    Unreadable,
    /// An answer with this status and error code.
    Answer(Option<u16>, String),
}

impl Bucket {
    /// A client that takes so long for an object at most. Sends nothing yet.
    pub fn new(name: &str, shared: &SdkConfig, attempt_timeout: Duration) -> Self {
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .operation_attempt_timeout(attempt_timeout)
            .operation_timeout(attempt_timeout)
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
        Self { s3: Client::from_conf(config), name: name.to_owned(), region }
    }

    /// Checks that the bucket exists.
    pub async fn probe(&self) -> Result<(), BucketError> {
        match self.s3.head_bucket().bucket(&self.name).send().await {
            Ok(_) => Ok(()),
            // A role may be allowed to write objects and nothing else. The first object will show.
            Err(err) if status(&err) == Some(403) => Ok(()),
            Err(err) => Err(self.error(&err)),
        }
    }

    /// Stores an object. The client sends it without a copy.
    pub async fn put(&self, key: &str, body: Bytes) -> Result<(), BucketError> {
        let sent = self.s3.put_object().bucket(&self.name).key(key).body(ByteStream::from(body)).send().await;
        sent.map(drop).map_err(|err| self.error(&err))
    }

    fn error<E: Error + ProvideErrorMetadata + 'static>(&self, err: &SdkError<E>) -> BucketError {
        let elsewhere = bucket_region(err).filter(|region| Some(*region) != self.region.as_deref());
        let text = match (elsewhere, &self.region) {
            // The queue is in the relay's region, so AWS_REGION cannot simply be changed.
            (Some(there), Some(here)) => {
                format!("the bucket lies in {there}, and the relay works in {here}: name a bucket of {here}")
            }
            _ => describe(err),
        };
        let failure = match err {
            SdkError::TimeoutError(_) => Failure::Timeout,
            SdkError::DispatchFailure(_) => Failure::Unreachable,
            SdkError::ResponseError(_) => Failure::Unreadable,
            _ => Failure::Answer(status(err), err.code().unwrap_or_default().to_owned()),
        };
        BucketError { class: class(err), failure, text }
    }
}
