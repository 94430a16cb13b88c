//! S3 wherever a bucket lies: one that says that it is in another region is asked there from then on.

use aws_errors::{Class, bucket_region};
use aws_sdk_s3::{
    Client,
    config::{Config, Region},
    error::{ProvideErrorMetadata, SdkError},
    operation::get_object::{GetObjectError, GetObjectOutput},
};
use std::{
    collections::HashMap,
    error::Error,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Buckets elsewhere that are remembered. Tasks may name any bucket; one that is forgotten says again where it lies.
const REMEMBERED: usize = 256;

/// A client for our own region, and one for each bucket that is elsewhere.
#[derive(Debug, Clone)]
pub(crate) struct Regional {
    home: Client,
    elsewhere: Arc<Mutex<HashMap<String, Client>>>,
}

impl Regional {
    pub(crate) fn new(home: Client) -> Self {
        Self { home, elsewhere: Arc::default() }
    }

    /// The same with settings of its own.
    pub(crate) fn with(&self, change: impl FnOnce(aws_sdk_s3::config::Builder) -> aws_sdk_s3::config::Builder) -> Self {
        Self::new(Client::from_conf(change(self.home.config().to_builder()).build()))
    }

    /// Asks where the bucket lies; a second time, if the first answer says that it lies elsewhere.
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

    /// One byte of an object. An answer to `HEAD` has no body and so no error code; this one's has.
    pub(crate) async fn first_byte(
        &self,
        bucket: &str,
        key: &str,
    ) -> Result<GetObjectOutput, SdkError<GetObjectError>> {
        self.ask(bucket, |s3| s3.get_object().bucket(bucket).key(key).range("bytes=0-0").send()).await
    }

    /// Where a bucket lies, if it has said that it is not in our region.
    pub(crate) fn elsewhere(&self, bucket: &str) -> Option<String> {
        self.known().get(bucket).and_then(|client| region(client.config()))
    }

    /// Our own region.
    pub(crate) fn home(&self) -> Option<String> {
        region(self.home.config())
    }

    fn client(&self, bucket: &str) -> Client {
        self.known().get(bucket).unwrap_or(&self.home).clone()
    }

    /// The bucket's region, from a request whose every answer says it.
    async fn find(&self, bucket: &str) -> Option<String> {
        match self.home.head_bucket().bucket(bucket).send().await {
            Ok(head) => head.bucket_region,
            Err(error) => bucket_region(&error).map(str::to_string),
        }
    }

    fn remember(&self, bucket: &str, region: String) -> Client {
        tracing::info!(bucket, region, "the bucket lies in another region than this process: it is asked there");
        let client = Client::from_conf(self.home.config().to_builder().region(Region::new(region)).build());
        let mut known = self.known();
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert(bucket.to_string(), client.clone());
        client
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Client>> {
        self.elsewhere.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn region(config: &Config) -> Option<String> {
    config.region().map(|region| region.as_ref().to_string())
}
