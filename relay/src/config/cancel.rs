//! The options of the queue with messages that cancel tasks.

use clap::{Args, value_parser};

use super::{
    Config,
    broker::{check_name, invalid},
};
use crate::{attributes::Attributes, error::ConfigError};

const QUEUE: &str = "--cancel-queue";
const BUCKET: &str = "--cancel-bucket";
/// A message of it has some thirty bytes.
const PREFETCH_BYTES: u64 = 1 << 20;

/// The queue with messages that cancel tasks, as it is given.
#[derive(Debug, Clone, Args)]
pub struct CancelQueue {
    /// A queue of the broker for messages that cancel a task, {"cancel": generation_id}: the relay itself makes the marker
    /// in S3, past all tasks that wait. Without it they come with the tasks
    #[arg(long = "cancel-queue", help_heading = "Cancelling", env = "AMQP_CANCEL_QUEUE", value_name = "QUEUE")]
    cancel_queue: Option<String>,
    /// The pictures' bucket, where the markers are. Needed with --cancel-queue
    #[arg(long = "cancel-bucket", help_heading = "Cancelling", env = "RELAY_CANCEL_BUCKET", value_name = "BUCKET", value_parser = settings::bucket)]
    cancel_bucket: Option<String>,
    /// Seconds for which a marker holds, as the function's --cancel-expiry
    #[arg(long = "cancel-expiry", help_heading = "Cancelling", env = "RELAY_CANCEL_EXPIRY", value_name = "SECONDS", default_value_t = cancellation::DEFAULT_EXPIRY,
          value_parser = value_parser!(u32).range(1..=i64::from(cancellation::MAX_EXPIRY)))]
    cancel_expiry: u32,
}

/// The queue with messages that cancel tasks, if there is one.
#[derive(Debug, Clone)]
pub struct CancelOptions {
    /// The bucket for the markers.
    pub bucket: String,
    /// Seconds for which a marker holds.
    pub expiry: u32,
    /// How the queue is relayed.
    pub relay: Config,
}

impl CancelQueue {
    /// What is to be done beside the queue of `tasks`.
    ///
    /// # Errors
    /// Options that do not fit one another.
    pub(super) fn options(&self, tasks: &Config) -> Result<Option<CancelOptions>, ConfigError> {
        let (queue, bucket) = match (&self.cancel_queue, &self.cancel_bucket) {
            (Some(queue), Some(bucket)) => (queue, bucket),
            (None, None) => return Ok(None),
            (Some(_), None) => return Err(invalid(BUCKET, format!("is missing: {QUEUE} needs it"))),
            (None, Some(_)) => return Err(invalid(QUEUE, format!("is missing: {BUCKET} is for it alone"))),
        };
        check_name(QUEUE, queue)?;
        if *queue == tasks.queue {
            let problem =
                "is the queue of the tasks, where messages that cancel one are carried like tasks; name another one";
            return Err(invalid(QUEUE, problem));
        }
        let mut relay = tasks.clone();
        relay.queue.clone_from(queue);
        (relay.cancel.cancel_queue, relay.cancel.cancel_bucket) = (None, None);
        check_name(QUEUE, &relay.dead_letter_exchange())?;
        // Nothing of it goes to SQS.
        relay.sqs_queue_url = String::new();
        (relay.message_group_id, relay.message_deduplication_id, relay.payload_bucket) = (None, None, None);
        (relay.attributes, relay.linger_ms) = (Attributes::default(), 0);
        relay.prefetch_bytes = tasks.prefetch_bytes.min(PREFETCH_BYTES);
        relay.broker.bind = Vec::new();
        Ok(Some(CancelOptions { bucket: bucket.clone(), expiry: self.cancel_expiry, relay }))
    }
}

impl Config {
    /// The queue with messages that cancel tasks, if there is one.
    ///
    /// # Errors
    /// Options that do not fit one another.
    pub fn cancels(&self) -> Result<Option<CancelOptions>, ConfigError> {
        self.cancel.options(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(extra: &[&str]) -> Result<Config, ConfigError> {
        let required =
            ["relay", "--amqp-url=amqp://h", "--sqs-queue-url=http://h/q.fifo", "--message-group-id=routing-key"];
        Ok(Config::load(required.iter().chain(extra))?.unwrap())
    }

    #[test]
    fn cancels_have_a_queue_and_a_bucket_or_neither() {
        assert!(load(&[]).unwrap().cancels().unwrap().is_none());
        let both = ["--cancel-queue=stop", "--cancel-bucket=pics"];
        let CancelOptions { bucket, expiry, relay } = load(&both).unwrap().cancels().unwrap().unwrap();
        assert_eq!((bucket.as_str(), expiry, relay.queue.as_str()), ("pics", 345_600, "stop"));
        assert_eq!((relay.dead_letter_exchange().as_str(), relay.is_fifo()), ("stop.dead-letter", false));
        let one = [&both[..], &["--dead-letter-exchange=dead", "--declare", "--bind=tasks:key"]].concat();
        let relay = load(&one).unwrap().cancels().unwrap().unwrap().relay;
        assert_eq!((relay.dead_letter_exchange().as_str(), relay.declare), ("dead", true));
        assert!(relay.bindings().unwrap().is_empty(), "the queue of cancels is bound to the tasks' exchange");
        let long = format!("--cancel-queue={}", "q".repeat(250));
        for (options, wanted) in [
            (vec!["--cancel-queue=stop"], "--cancel-bucket: is missing: --cancel-queue needs it"),
            (vec!["--cancel-bucket=pics"], "--cancel-queue: is missing: --cancel-bucket is for it alone"),
            (
                vec!["--cancel-queue=image_generation", "--cancel-bucket=pics"],
                "--cancel-queue: is the queue of the tasks",
            ),
            (vec!["--cancel-queue=", "--cancel-bucket=pics"], "--cancel-queue: must not be empty"),
            (vec![&long, "--cancel-bucket=pics"], "--cancel-queue: has 262 bytes"),
            (vec!["--cancel-queue=stop", "--cancel-bucket=s3://pics"], "--cancel-bucket"),
            (vec!["--cancel-expiry=0"], "--cancel-expiry"),
            (vec!["--cancel-expiry=1209601"], "--cancel-expiry"),
        ] {
            let text = load(&options).expect_err(wanted).to_string();
            assert!(text.contains(wanted), "{text}");
        }
    }
}
