//! Messages that cancel tasks, from a queue of their own. The relay itself makes the marker in S3 of each, so that it is there before the
//! task's turn comes, however many tasks wait in SQS.
//!
//! The queue is relayed like the other: a message is acknowledged once its marker is stored, and one that cancels nothing is
//! dead-lettered. What the message and the marker look like is in the crate `cancellation`, which the function uses, too.

use std::time::Duration;

use aws_config::SdkConfig;
use aws_errors::Class;
use cancellation::{Cancel, key, marker};
use futures_util::future::join_all;

use crate::{
    bucket::{Bucket, BucketError, Failure},
    config::CancelOptions,
    entry::{Entry, PoisonReason},
    error::Stop,
    metrics::{
        RetryCause,
        cause::{self, TIMEOUT, UNREACHABLE, UNREADABLE},
    },
    sink::{Probe, Sink, Verdict},
};

/// For a marker, which has some twenty bytes.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(15);
const S3: &str = "S3";

/// Stores the marker of each task that is cancelled.
#[derive(Debug, Clone)]
pub struct MarkerSink {
    bucket: Bucket,
    lifetime: Duration,
}

impl MarkerSink {
    /// Markers as configured. Sends nothing yet.
    pub fn new(options: &CancelOptions, shared: &SdkConfig) -> Self {
        let lifetime = Duration::from_secs(options.expiry.into());
        Self { bucket: Bucket::new(&options.bucket, shared, ATTEMPT_TIMEOUT), lifetime }
    }

    /// Checks that the bucket exists.
    pub(crate) async fn look(&self) -> Result<(), BucketError> {
        self.bucket.probe().await
    }

    async fn note(&self, body: &str) -> Verdict {
        let generation_id = match Cancel::parse(body) {
            Some(Ok(cancel)) => cancel.generation_id,
            Some(Err(bad)) => return Verdict::Poison(PoisonReason::CancelsNothing(bad.to_string())),
            None => {
                let other = "it has no `cancel`, or is no JSON object; tasks go to the other queue";
                return Verdict::Poison(PoisonReason::CancelsNothing(other.to_owned()));
            }
        };
        match self.bucket.put(&key(generation_id), marker(self.lifetime).into_bytes().into()).await {
            Ok(()) => Verdict::Accepted,
            Err(err) => {
                let text = format!("--cancel-bucket: {}", err.text);
                Verdict::Retry { cause: RetryCause::new(label(&err.failure), text), answered: Some(false) }
            }
        }
    }
}

fn label(failure: &Failure) -> &'static str {
    match failure {
        Failure::Timeout => TIMEOUT,
        Failure::Unreachable => UNREACHABLE,
        Failure::Unreadable => UNREADABLE,
        Failure::Answer(status, code) => cause::label(*status, code),
    }
}

impl Sink for MarkerSink {
    async fn probe(&self) -> Probe {
        match self.look().await {
            Ok(()) => Probe::Ready(None),
            Err(err) if matches!(err.class, Class::NoContainer | Class::NoObject | Class::OtherRegion) => {
                Probe::Stop(Stop { service: S3, why: format!("--cancel-bucket: {}", err.text) })
            }
            Err(err) => Probe::Unreachable(format!("--cancel-bucket: {}", err.text)),
        }
    }

    fn service(&self) -> &'static str {
        S3
    }

    async fn send(&self, entries: &[&Entry]) -> Vec<Verdict> {
        join_all(entries.iter().map(|entry| self.note(entry.body()))).await
    }
}
