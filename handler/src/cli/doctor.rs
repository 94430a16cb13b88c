//! `handler doctor`: looks at everything that function and worker need, and prints one line for each thing on
//! standard output: how it is, and what to do about it.
//!
//! Refuses to paint, to take a message, to send the token anywhere, and to show a secret. What it writes is one file
//! in the cache's folder, which it removes, and one object in the pictures' bucket, under a condition that no object
//! fulfils.

mod backend;
mod finding;
mod machine;
mod model;
mod queue;
mod storage;

use crate::cli::options::DoctorConfig;
use finding::Finding;
use std::time::Duration;

/// For each question: to a service, to a volume.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// Looks at everything; whether nothing is wrong.
///
/// # Errors
/// Standard output is closed, or `AWS_CA_BUNDLE` has no certificates.
pub async fn run(config: &DoctorConfig) -> anyhow::Result<bool> {
    let service = &config.service;
    let mut wrong = 0;
    let mut tell = |findings: Vec<Finding>| {
        wrong += findings.iter().filter(|finding| finding.is_failure()).count();
        findings.iter().try_for_each(Finding::print)
    };
    let aws = settings::sdk_config().await?;
    tell(model::check(config, &aws).await)?;
    tell(vec![machine::gpu(&service.model).await, machine::fonts()])?;
    tell(vec![machine::cache(&service.store).await])?;
    tell(vec![storage::credentials(&aws).await])?;
    tell(vec![backend::secrets(&service.secrets, &aws).await])?;
    tell(storage::check(config, &aws).await)?;
    tell(queue::check(config, &aws).await)?;
    tell(backend::webhooks(config).await)?;
    Ok(wrong == 0)
}
