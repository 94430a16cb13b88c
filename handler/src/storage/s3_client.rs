//! An S3 client for buckets in any region. A bucket that turns out to be in another region is called there from then on.

use aws_errors::{Class, bucket_region};
use aws_sdk_s3::{
    Client,
    config::{Config, Region},
    error::{ProvideErrorMetadata, SdkError},
    operation::get_object::{GetObjectError, GetObjectOutput},
    primitives::ByteStream,
};
use std::{
    collections::HashMap,
    error::Error,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Buckets of other regions that are remembered. Tasks may name any bucket; a forgotten one is found again.
const MAX_BUCKETS: usize = 256;

/// A client for our own region, and one for each bucket in another region.
#[derive(Debug, Clone)]
pub(crate) struct S3Client {
    own: Client,
    others: Arc<Mutex<HashMap<String, Client>>>,
}

impl S3Client {
    pub(crate) fn new(own: Client) -> Self {
        Self { own, others: Arc::default() }
    }

    /// A copy with other settings.
    pub(crate) fn with(&self, change: impl FnOnce(aws_sdk_s3::config::Builder) -> aws_sdk_s3::config::Builder) -> Self {
        Self::new(Client::from_conf(change(self.own.config().to_builder()).build()))
    }

    /// Sends a request to the bucket's region, and again if the answer says that the bucket is in another region.
    pub(crate) async fn ask<T, E, F>(&self, bucket: &str, request: impl Fn(&Client) -> F) -> Result<T, SdkError<E>>
    where
        E: ProvideErrorMetadata + Error + 'static,
        F: Future<Output = Result<T, SdkError<E>>>,
    {
        let client = self.client(bucket);
        let error = match request(&client).await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        let region = match bucket_region(&error) {
            Some(region) => Some(region.to_string()),
            None if aws_errors::class(&error) == Class::OtherRegion => self.find(bucket).await,
            None => None,
        };
        match region.filter(|region| client.config().region().map(Region::as_ref) != Some(region)) {
            Some(region) => request(&self.remember(bucket, region)).await,
            None => Err(error),
        }
    }

    /// Reads one byte of an object. Unlike HEAD, it returns an error code.
    pub(crate) async fn first_byte(
        &self,
        bucket: &str,
        key: &str,
    ) -> Result<GetObjectOutput, SdkError<GetObjectError>> {
        self.ask(bucket, |s3| s3.get_object().bucket(bucket).key(key).range("bytes=0-0").send()).await
    }

    /// The region of a bucket, if it is known to be another than ours.
    pub(crate) fn other_region(&self, bucket: &str) -> Option<String> {
        self.known().get(bucket).and_then(|client| region(client.config()))
    }

    /// Our own region.
    pub(crate) fn own_region(&self) -> Option<String> {
        region(self.own.config())
    }

    fn client(&self, bucket: &str) -> Client {
        self.known().get(bucket).unwrap_or(&self.own).clone()
    }

    /// The bucket's region, from HeadBucket, whose answers always have it.
    async fn find(&self, bucket: &str) -> Option<String> {
        match self.own.head_bucket().bucket(bucket).send().await {
            Ok(head) => head.bucket_region,
            Err(error) => bucket_region(&error).map(str::to_string),
        }
    }

    fn remember(&self, bucket: &str, region: String) -> Client {
        tracing::info!(bucket, region, "the bucket lies in another region than this process: it is asked there");
        let client = Client::from_conf(self.own.config().to_builder().region(Region::new(region)).build());
        let mut known = self.known();
        if known.len() >= MAX_BUCKETS {
            known.clear();
        }
        known.insert(bucket.to_string(), client.clone());
        client
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Client>> {
        self.others.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The beginning of an object that should be no longer than `most` bytes: all of it, or somewhat more than `most`.
///
/// # Errors
/// The answer breaks off.
pub(crate) async fn beginning(body: &mut ByteStream, most: usize) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    while let Some(chunk) = body.next().await {
        bytes.extend_from_slice(&chunk.map_err(|_| "an answer that broke off".to_string())?);
        if bytes.len() > most {
            break;
        }
    }
    Ok(bytes)
}

fn region(config: &Config) -> Option<String> {
    config.region().map(|region| region.as_ref().to_string())
}
