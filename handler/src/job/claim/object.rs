//! A claim's object in S3: what it says, and what S3's answers to a write, a look and a deletion mean.

use crate::storage::S3Client;
use aws_errors::{Class, class, describe};
use aws_sdk_s3::{
    error::{ProvideErrorMetadata, SdkError},
    primitives::{ByteStream, DateTime, DateTimeFormat},
};
use std::{error::Error, time::SystemTime};
use uuid::Uuid;

/// More than a claim has.
const MOST_BYTES: usize = 256;

/// Where claims lie.
#[derive(Debug, Clone)]
pub(super) struct Objects {
    pub(super) s3: S3Client,
    pub(super) bucket: String,
}

/// What a claim says: whose it is, and which of its owner's writes this one was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) owner: Uuid,
    pub(super) count: u64,
}

/// Under which condition a claim is written.
#[derive(Debug, Clone)]
pub(super) enum Condition {
    /// There is none.
    Absent,
    /// It is still the one with this entity tag.
    Unchanged(String),
}

/// What became of a write.
#[derive(Debug)]
pub(super) enum Written {
    /// Done; the object has this entity tag.
    Done(String),
    /// The condition does not hold; with S3's time. It may be the write itself that made it so, if the answer to its first try was lost.
    Refused(Option<SystemTime>),
    /// Another write was in the way.
    Conflict(String),
    /// Nobody knows, or it is refused for now.
    Unknown(String),
    /// We may not write here, or not so.
    Forbidden(String),
    /// The bucket knows no conditional writes.
    Unsupported(String),
}

/// What lies there.
#[derive(Debug)]
pub(super) enum Look {
    /// A claim; whose, if it says so.
    Held { tag: String, mark: Option<Mark>, modified: Option<SystemTime> },
    /// Nothing; or we may not see it, which S3 says of what is not there, too, to those who may not list.
    Nothing(String),
}

/// What became of a deletion.
#[derive(Debug)]
pub(super) enum Deleted {
    /// It is gone.
    Done,
    /// Something else may lie there, or nobody knows.
    Unknown(String),
    /// The bucket knows no conditional deletions.
    Unsupported,
}

impl Objects {
    /// Writes a claim. Each write of an owner has another count, and so another entity tag.
    pub(super) async fn write(&self, key: &str, mark: Mark, condition: &Condition) -> Written {
        let body = format!("{} {}\n", mark.owner, mark.count);
        let put = self.s3.ask(&self.bucket, |s3| {
            let put = s3.put_object().bucket(&self.bucket).key(key).body(ByteStream::from(body.clone().into_bytes()));
            match condition {
                Condition::Absent => put.if_none_match("*"),
                Condition::Unchanged(tag) => put.if_match(tag),
            }
            .send()
        });
        match put.await {
            Ok(done) => Written::Done(done.e_tag.unwrap_or_default()),
            Err(error) => refused(&error),
        }
    }

    /// What lies there now.
    ///
    /// # Errors
    /// S3 does not say.
    pub(super) async fn look(&self, key: &str) -> Result<Look, String> {
        // Not HEAD: an answer to that has no error code.
        let got = self.s3.ask(&self.bucket, |s3| s3.get_object().bucket(&self.bucket).key(key).send()).await;
        let mut object = match got {
            Ok(object) => object,
            Err(error) => {
                return match class(&error) {
                    Class::NoObject | Class::Denied => Ok(Look::Nothing(describe(&error))),
                    _ => Err(describe(&error)),
                };
            }
        };
        let mut bytes = Vec::new();
        while let Some(chunk) = object.body.next().await {
            bytes.extend_from_slice(&chunk.map_err(|_| "an answer that broke off".to_string())?);
            if bytes.len() > MOST_BYTES {
                break;
            }
        }
        let modified = object.last_modified.and_then(|time| SystemTime::try_from(time).ok());
        Ok(Look::Held { tag: object.e_tag.unwrap_or_default(), mark: Mark::parse(&bytes), modified })
    }

    /// Deletes a claim, if it is still the one with this entity tag; without one, whatever lies there.
    pub(super) async fn delete(&self, key: &str, tag: Option<&str>) -> Deleted {
        let deleted = self.s3.ask(&self.bucket, |s3| {
            let delete = s3.delete_object().bucket(&self.bucket).key(key);
            delete.set_if_match(tag.map(str::to_string)).send()
        });
        match deleted.await {
            Ok(_) => Deleted::Done,
            Err(error) => match class(&error) {
                Class::NoObject => Deleted::Done,
                Class::Unsupported => Deleted::Unsupported,
                _ => Deleted::Unknown(describe(&error)),
            },
        }
    }
}

impl Mark {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let (owner, count) = std::str::from_utf8(bytes).ok()?.trim_end().split_once(' ')?;
        Some(Self { owner: owner.parse().ok()?, count: count.parse().ok()? })
    }
}

fn refused<E>(error: &SdkError<E>) -> Written
where
    E: ProvideErrorMetadata + Error + 'static,
{
    let words = describe(error);
    match class(error) {
        // What was to be taken over has just been let go of.
        Class::Condition | Class::NoObject => Written::Refused(date(error)),
        Class::Conflict => Written::Conflict(words),
        Class::Unsupported => Written::Unsupported(words),
        Class::Denied | Class::Unclear | Class::Content => Written::Forbidden(words),
        // What stands in for S3 says so of headers that it does not know.
        _ if matches!(error.code(), Some("InvalidArgument" | "InvalidRequest")) => Written::Forbidden(words),
        _ => Written::Unknown(words),
    }
}

/// The clock of whoever answered, by which the object's age can be told.
fn date<E>(error: &SdkError<E>) -> Option<SystemTime> {
    let date = error.raw_response()?.headers().get("date")?;
    SystemTime::try_from(DateTime::from_str(date, DateTimeFormat::HttpDate).ok()?).ok()
}
