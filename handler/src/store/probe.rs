//! Whether S3 would let us, for `handler doctor`. Refuses to leave anything behind.

use super::{Store, status};
use crate::{causes::causes, config::ResultAcl};
use aws_sdk_s3::{
    error::{ProvideErrorMetadata, SdkError},
    types::ObjectCannedAcl,
};
use std::error::Error;

/// An object that nobody writes, and an entity tag that no object has.
const KEY: &str = "generations/.easel-doctor";
const NO_TAG: &str = "\"easel-doctor\"";

/// What S3 would let us do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Access {
    Granted,
    /// It does not look at conditions.
    Unconditional,
    Denied,
    /// There is no such bucket or object.
    Missing,
    /// The bucket takes no ACL.
    NoAcls,
    /// No answer, or one that says something else.
    Unknown(String),
}

impl Store {
    /// Whether pictures may be stored: by a write that is to replace an object that is not there. S3 looks at the permission first.
    pub(crate) async fn probe_pictures(&self) -> Access {
        let mut put = self.s3.put_object().bucket(&self.bucket).key(KEY).if_match(NO_TAG);
        if self.acl == ResultAcl::PublicRead {
            put = put.acl(ObjectCannedAcl::PublicRead);
        }
        match put.send().await {
            Err(error) => match (status(&error), error.code()) {
                (Some(404), Some("NoSuchBucket")) => Access::Missing,
                (Some(404 | 409 | 412), _) => Access::Granted,
                _ => refusal(&error),
            },
            Ok(_) => match self.s3.delete_object().bucket(&self.bucket).key(KEY).send().await {
                Ok(_) => Access::Unconditional,
                Err(error) => Access::Unknown(format!("{KEY} was written and stays: {}", causes(&error))),
            },
        }
    }

    /// Whether a bucket is there.
    pub(crate) async fn probe_bucket(&self, bucket: &str) -> Access {
        match self.s3.head_bucket().bucket(bucket).send().await {
            Ok(_) => Access::Granted,
            Err(error) => refusal(&error),
        }
    }

    /// Whether an object may be read.
    pub(crate) async fn probe_object(&self, bucket: &str, key: &str) -> Access {
        match self.s3.head_object().bucket(bucket).key(key).send().await {
            Ok(_) => Access::Granted,
            Err(error) => refusal(&error),
        }
    }
}

fn refusal<E>(error: &SdkError<E>) -> Access
where
    E: ProvideErrorMetadata + Error + 'static,
{
    match (status(error), error.code()) {
        (_, Some("AccessControlListNotSupported")) => Access::NoAcls,
        (Some(404), _) => Access::Missing,
        (Some(401 | 403), _) => Access::Denied,
        _ => Access::Unknown(causes(error)),
    }
}
