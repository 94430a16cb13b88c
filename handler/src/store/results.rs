//! Pictures: stored with the fingerprint of their task, and looked for before one is painted again.

use super::{Store, StoreError, status};
use crate::{config::ResultAcl, task::Format};
use aws_sdk_s3::{error::DisplayErrorContext, primitives::ByteStream, types::ObjectCannedAcl};

/// The picture's metadata that says for which task it was painted.
const FINGERPRINT: &str = "easel-fingerprint";

impl Store {
    /// Whether every one of these pictures is there and was painted for the task with this fingerprint.
    ///
    /// # Errors
    /// Transient, if S3 does not answer.
    pub async fn stands(&self, keys: &[String], fingerprint: &str) -> Result<bool, StoreError> {
        for key in keys {
            let found = match self.s3.head_object().bucket(&self.bucket).key(key).send().await {
                Ok(head) => head.metadata().and_then(|metadata| metadata.get(FINGERPRINT)).cloned(),
                // S3 says "forbidden" for what is not there to those who may not list.
                Err(error) if matches!(status(&error), Some(403 | 404)) => None,
                Err(error) => {
                    let cause = DisplayErrorContext(&error);
                    return Err(StoreError::Transient(format!("picture s3://{}/{key}: {cause}", self.bucket)));
                }
            };
            if found.as_deref() != Some(fingerprint) {
                return Ok(false);
            }
        }
        Ok(true)
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
        let mut put = self.s3.put_object().bucket(&self.bucket).key(key);
        put = put.content_type(format.content_type()).metadata(FINGERPRINT, fingerprint);
        if self.acl == ResultAcl::PublicRead {
            put = put.acl(ObjectCannedAcl::PublicRead);
        }
        put.body(ByteStream::from(bytes)).send().await.map_err(|error| {
            StoreError::Transient(format!(
                "picture upload to s3://{}/{key}: {}",
                self.bucket,
                DisplayErrorContext(&error)
            ))
        })?;
        Ok(())
    }
}
