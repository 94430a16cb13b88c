//! The checks that relay and handler share for options and variables: no whitespace around a value, legal names of
//! buckets and queues. Also AWS clients with the configured certificates, and manual pages. A value is never shown,
//! because it may be a secret.

mod aws;
mod manual;
mod options;
mod values;
mod variables;

pub use aws::{aws_http_client, sdk_config};
pub use manual::write_manual;
pub use options::{stray_whitespace, variables};
pub use values::{BUCKET_LENGTH, bucket, is_bucket, queue_url, socket, web_url};
pub use variables::{Reads, check_variables};

/// A variable with a value that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name}: {problem}")]
pub struct BadVariable {
    /// Its name.
    pub name: &'static str,
    /// What is wrong, without its value.
    pub problem: String,
}
