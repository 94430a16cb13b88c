//! What an error of S3, SQS or KMS means for the caller. Relay and handler share this table, and describe an error by
//! its code and a sentence from here: services repeat keys, tokens and bodies in their messages.

mod describe;
mod table;

pub use describe::{credentials, describe, describe_entry};
pub use table::{Class, classify, classify_entry, is_throttle};

use aws_smithy_runtime_api::client::{orchestrator::HttpResponse, result::SdkError};
use aws_smithy_types::error::metadata::ProvideErrorMetadata;

/// The class of a client's error. Without an answer it is [`Class::Transient`].
pub fn class<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>) -> Class {
    if matches!(error, SdkError::ConstructionFailure(_)) {
        return Class::Setup;
    }
    classify(status(error), error.code(), error.message())
}

/// The status of the answer, if there was one.
pub fn status<E>(error: &SdkError<E, HttpResponse>) -> Option<u16> {
    error.raw_response().map(|answer| answer.status().as_u16())
}

/// The bucket's region as S3 reports it, also in answers to `HEAD`, which have no body and so no code.
pub fn bucket_region<E>(error: &SdkError<E, HttpResponse>) -> Option<&str> {
    let region = error.raw_response()?.headers().get("x-amz-bucket-region")?;
    let is_region = (1..=32).contains(&region.len())
        && region.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    is_region.then_some(region)
}
