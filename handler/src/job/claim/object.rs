//! A claim's object in S3: its body, and what S3's answers to writing, inspecting and deleting it mean.

use crate::storage::{S3Client, beginning};
use aws_errors::{Class, class, describe};
use aws_sdk_s3::{
    error::{ProvideErrorMetadata, SdkError},
    primitives::{ByteStream, DateTime, DateTimeFormat},
};
use std::{error::Error, time::SystemTime};
use uuid::Uuid;

/// More than a claim's body has.
const MAX_BYTES: usize = 256;

/// The bucket of the claims.
#[derive(Debug, Clone)]
pub(super) struct ClaimBucket {
    pub(super) s3: S3Client,
    pub(super) bucket: String,
}

/// The body of a claim's object: its owner, and the number of the owner's write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ClaimBody {
    pub(super) owner: Uuid,
    pub(super) count: u64,
}

/// The condition of a write.
#[derive(Debug, Clone)]
pub(super) enum Condition {
    /// The object does not exist.
    Absent,
    /// The object still has this ETag.
    Unchanged(String),
}

/// The result of a write.
#[derive(Debug)]
pub(super) enum WriteResult {
    /// Done; the object's ETag.
    Done(String),
    /// The condition does not hold; with S3's time. The cause may be this very write, if the answer to its first attempt was lost.
    Refused(Option<SystemTime>),
    /// A concurrent write got in the way.
    Conflict(String),
    /// Unknown, or a temporary error.
    Unknown(String),
    /// We have no permission to write here, or not with this header.
    Forbidden(String),
    /// The bucket has no conditional writes.
    Unsupported(String),
}

/// What an inspection finds.
#[derive(Debug)]
pub(super) enum Inspected {
    /// A claim; with its body, if it can be parsed.
    Held { tag: String, body: Option<ClaimBody>, modified: Option<SystemTime> },
    /// Nothing. Without permission to list, S3 answers AccessDenied for this, too.
    Absent(String),
}

/// The result of a deletion.
#[derive(Debug)]
pub(super) enum DeleteResult {
    /// It is gone.
    Done,
    /// Another claim may be there, or the result is unknown.
    Unknown(String),
    /// The bucket has no conditional deletions.
    Unsupported,
}

impl ClaimBucket {
    /// Writes a claim. Each write of an owner has its own count, and so its own ETag.
    pub(super) async fn write(&self, key: &str, body: ClaimBody, condition: &Condition) -> WriteResult {
        let body = format!("{} {}\n", body.owner, body.count);
        let put = self.s3.ask(&self.bucket, |s3| {
            let put = s3.put_object().bucket(&self.bucket).key(key).body(ByteStream::from(body.clone().into_bytes()));
            match condition {
                Condition::Absent => put.if_none_match("*"),
                Condition::Unchanged(tag) => put.if_match(tag),
            }
            .send()
        });
        match put.await {
            Ok(done) => WriteResult::Done(done.e_tag.unwrap_or_default()),
            Err(error) => refused(&error),
        }
    }

    /// Reads the claim.
    ///
    /// # Errors
    /// S3's code, and a sentence.
    pub(super) async fn inspect(&self, key: &str) -> Result<Inspected, String> {
        // Not HEAD: its answer has no error code.
        let got = self.s3.ask(&self.bucket, |s3| s3.get_object().bucket(&self.bucket).key(key).send()).await;
        let mut object = match got {
            Ok(object) => object,
            Err(error) => {
                return match class(&error) {
                    Class::NoObject | Class::Denied => Ok(Inspected::Absent(describe(&error))),
                    _ => Err(describe(&error)),
                };
            }
        };
        let bytes = beginning(&mut object.body, MAX_BYTES).await?;
        let modified = object.last_modified.and_then(|time| SystemTime::try_from(time).ok());
        Ok(Inspected::Held { tag: object.e_tag.unwrap_or_default(), body: ClaimBody::parse(&bytes), modified })
    }

    /// Deletes the claim if it still has the ETag `tag`; without one, in any case.
    pub(super) async fn delete(&self, key: &str, tag: Option<&str>) -> DeleteResult {
        let deleted = self.s3.ask(&self.bucket, |s3| {
            let delete = s3.delete_object().bucket(&self.bucket).key(key);
            delete.set_if_match(tag.map(str::to_string)).send()
        });
        match deleted.await {
            Ok(_) => DeleteResult::Done,
            Err(error) => match class(&error) {
                Class::NoObject => DeleteResult::Done,
                Class::Unsupported => DeleteResult::Unsupported,
                _ => DeleteResult::Unknown(describe(&error)),
            },
        }
    }
}

impl ClaimBody {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let (owner, count) = std::str::from_utf8(bytes).ok()?.trim_end().split_once(' ')?;
        Some(Self { owner: owner.parse().ok()?, count: count.parse().ok()? })
    }
}

fn refused<E>(error: &SdkError<E>) -> WriteResult
where
    E: ProvideErrorMetadata + Error + 'static,
{
    let words = describe(error);
    match class(error) {
        // NoObject: the claim to take over has just been released.
        Class::Condition | Class::NoObject => WriteResult::Refused(date(error)),
        Class::Conflict => WriteResult::Conflict(words),
        Class::Unsupported => WriteResult::Unsupported(words),
        Class::Denied | Class::Unclear | Class::Content => WriteResult::Forbidden(words),
        // S3-compatible stores answer so to headers that they do not know.
        _ if matches!(error.code(), Some("InvalidArgument" | "InvalidRequest")) => WriteResult::Forbidden(words),
        _ => WriteResult::Unknown(words),
    }
}

/// S3's time, by which the object's age is measured.
fn date<E>(error: &SdkError<E>) -> Option<SystemTime> {
    let date = error.raw_response()?.headers().get("date")?;
    SystemTime::try_from(DateTime::from_str(date, DateTimeFormat::HttpDate).ok()?).ok()
}
