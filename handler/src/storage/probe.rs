//! Checks what S3 permits, for `handler doctor`. Leaves nothing in the bucket.

use super::Store;
use aws_errors::{Class, class, describe};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use std::error::Error;

/// An object that nobody writes, in the folder of the pictures, and an ETag that no object has.
const NAME: &str = ".easel-doctor";
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
        let (bucket, key) = (&self.bucket, format!("{}{NAME}", self.keys.folder()));
        let put = self.s3.ask(bucket, |s3| {
            let put = s3.put_object().bucket(bucket).key(&key).if_match(NO_TAG);
            self.put.apply(put).send()
        });
        match put.await {
            Err(error) => match class(&error) {
                Class::Condition | Class::Conflict | Class::NoObject => Access::Granted,
                _ => refusal(&error),
            },
            Ok(_) => match self.s3.ask(bucket, |s3| s3.delete_object().bucket(bucket).key(&key).send()).await {
                Ok(_) => Access::Unconditional,
                Err(error) => Access::Unknown(format!("{key} was written and stays: {}", describe(&error))),
            },
        }
    }

    /// The folder that all pictures are in, with a slash at its end; empty if there is none.
    pub(crate) fn results_folder(&self) -> &str {
        self.keys.folder()
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
