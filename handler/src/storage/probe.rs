//! Checks what S3 permits, for `handler doctor`. Leaves nothing in the bucket.

use super::Store;
use crate::storage::options::ResultAcl;
use aws_errors::{Class, class, describe};
use aws_sdk_s3::{
    error::{ProvideErrorMetadata, SdkError},
    types::ObjectCannedAcl,
};
use std::error::Error;

/// An object that nobody writes, and an ETag that no object has.
const KEY: &str = "generations/.easel-doctor";
const NO_TAG: &str = "\"easel-doctor\"";

/// What S3 permits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Access {
    Granted,
    /// Granted, but conditional requests are ignored.
    Unconditional,
    Denied,
    /// The bucket or the object does not exist.
    Missing,
    /// The bucket has ACLs disabled.
    NoAcls,
    /// No answer, or another error.
    Unknown(String),
}

impl Store {
    /// Whether pictures may be stored: tries to replace an object that does not exist. S3 checks the permission first.
    pub(crate) async fn probe_pictures(&self) -> Access {
        let bucket = &self.bucket;
        let put = self.s3.ask(bucket, |s3| {
            let mut put = s3.put_object().bucket(bucket).key(KEY).if_match(NO_TAG);
            if self.acl == ResultAcl::PublicRead {
                put = put.acl(ObjectCannedAcl::PublicRead);
            }
            put.send()
        });
        match put.await {
            Err(error) => match class(&error) {
                Class::Condition | Class::Conflict | Class::NoObject => Access::Granted,
                _ => refusal(&error),
            },
            Ok(_) => match self.s3.ask(bucket, |s3| s3.delete_object().bucket(bucket).key(KEY).send()).await {
                Ok(_) => Access::Unconditional,
                Err(error) => Access::Unknown(format!("{KEY} was written and stays: {}", describe(&error))),
            },
        }
    }

    /// Whether a bucket exists.
    pub(crate) async fn probe_bucket(&self, bucket: &str) -> Access {
        let asked = self.s3.ask(bucket, |s3| s3.head_bucket().bucket(bucket).send()).await;
        let Err(error) = asked else { return Access::Granted };
        match class(&error) {
            // Answers to HEAD do not say why.
            Class::Unclear => {
                let listed = self.s3.ask(bucket, |s3| s3.list_objects_v2().bucket(bucket).max_keys(1).send()).await;
                listed.map_or_else(|error| refusal(&error), |_| Access::Granted)
            }
            _ => refusal(&error),
        }
    }

    /// Whether an object may be read.
    pub(crate) async fn probe_object(&self, bucket: &str, key: &str) -> Access {
        self.s3.first_byte(bucket, key).await.map_or_else(|error| refusal(&error), |_| Access::Granted)
    }

    /// The region of a bucket and the region of this process, if they differ.
    pub(crate) fn other_region(&self, bucket: &str) -> Option<(String, String)> {
        Some((self.s3.other_region(bucket)?, self.s3.own_region().unwrap_or_default()))
    }
}

fn refusal<E>(error: &SdkError<E>) -> Access
where
    E: ProvideErrorMetadata + Error + 'static,
{
    match (class(error), error.code()) {
        (_, Some("AccessControlListNotSupported")) => Access::NoAcls,
        (Class::NoObject | Class::NoContainer, code) if code != Some("InvalidObjectState") => Access::Missing,
        (Class::Denied, _) => Access::Denied,
        (Class::Unsupported, _) => Access::Unconditional,
        _ => Access::Unknown(describe(error)),
    }
}
