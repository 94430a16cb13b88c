//! Whether S3 would let us, for `handler doctor`. Nothing is left behind.

use super::Store;
use crate::storage::options::ResultAcl;
use aws_errors::{Class, class, describe};
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

    /// Whether a bucket is there.
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

    /// In which region a bucket lies, and in which this process is, if they are two.
    pub(crate) fn elsewhere(&self, bucket: &str) -> Option<(String, String)> {
        Some((self.s3.elsewhere(bucket)?, self.s3.home().unwrap_or_default()))
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
