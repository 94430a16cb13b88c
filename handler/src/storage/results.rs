//! Pictures: stored with the fingerprint of their task, and looked for before one is painted again.

use super::{Store, StoreError};
use crate::{storage::options::ResultAcl, task::Format};
use aws_errors::{Class, class, describe};
use aws_sdk_s3::{primitives::ByteStream, types::ObjectCannedAcl};
use std::collections::HashMap;

/// The picture's metadata that says for which task it was painted.
const FINGERPRINT: &str = "easel-fingerprint";

impl Store {
    /// Whether every one of these pictures is there and was painted for the task with this fingerprint.
    ///
    /// # Errors
    /// Transient, if S3 does not answer.
    pub async fn stands(&self, keys: &[String], fingerprint: &str) -> Result<bool, StoreError> {
        for key in keys {
            let metadata = self
                .metadata(key)
                .await
                .map_err(|cause| StoreError::Transient(format!("picture s3://{}/{key}: {cause}", self.bucket)))?;
            if metadata.and_then(|mut metadata| metadata.remove(FINGERPRINT)).as_deref() != Some(fingerprint) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What is known of a picture, if it is there.
    async fn metadata(&self, key: &str) -> Result<Option<HashMap<String, String>>, String> {
        let bucket = &self.bucket;
        let head = self.s3.ask(bucket, |s3| s3.head_object().bucket(bucket).key(key).send()).await;
        match head.map_err(|error| (class(&error), error)) {
            Ok(head) => return Ok(head.metadata),
            Err((Class::NoObject, _)) => return Ok(None),
            Err((Class::Transient, error)) => return Err(describe(&error)),
            // It does not say why.
            Err(_) => {}
        }
        match self.s3.first_byte(bucket, key).await {
            Ok(object) => Ok(object.metadata),
            Err(error) => match class(&error) {
                // S3 denies what is not there to those who may not list.
                Class::NoObject | Class::Denied => Ok(None),
                _ => Err(describe(&error)),
            },
        }
    }

    /// The public address of a picture.
    pub fn picture_url(&self, key: &str) -> String {
        format!("{}/{key}", self.base_url)
    }

    /// Stores a picture, with the fingerprint of its task.
    ///
    /// # Errors
    /// Transient, always: a wrong bucket or missing permission is the operator's to mend, and the task is not lost meanwhile.
    pub async fn put_picture(
        &self,
        key: &str,
        bytes: Vec<u8>,
        format: Format,
        fingerprint: &str,
    ) -> Result<(), StoreError> {
        let put = self.s3.ask(&self.bucket, |s3| {
            let mut put = s3.put_object().bucket(&self.bucket).key(key);
            put = put.content_type(format.content_type()).metadata(FINGERPRINT, fingerprint);
            if self.acl == ResultAcl::PublicRead {
                put = put.acl(ObjectCannedAcl::PublicRead);
            }
            put.body(ByteStream::from(bytes.clone())).send()
        });
        put.await.map_err(|error| {
            StoreError::Transient(format!("picture upload to s3://{}/{key}: {}", self.bucket, describe(&error)))
        })?;
        Ok(())
    }
}
