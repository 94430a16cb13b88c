//! What relay and handler ask of their options and variables alike: no whitespace around a value, names that SQS and S3 know, and AWS
//! clients as the variables say. A value is never shown: it may be a secret.

mod aws;
mod options;
mod values;
mod variables;

pub use aws::sdk_config;
pub use options::{stray_whitespace, variables};
pub use values::{BUCKET_LENGTH, bucket, is_bucket, queue_url, socket, web_url};
pub use variables::{Reads, check_variables};

/// A variable that a person must correct.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name}: {problem}")]
pub struct BadVariable {
    /// Its name.
    pub name: &'static str,
    /// What is wrong, without its value.
    pub problem: String,
}
