//! A message of the queue, not parsed yet, and how long it waits before a retry.

use super::Deadline;
use crate::observe::trace::Carrier;
use std::time::{Duration, SystemTime};

/// The delay before a retry, multiplied by the receive count, so that a temporary error has time to pass.
const RETRY_DELAY: Duration = Duration::from_secs(5);
/// The longest delay. SQS hides a message for at most 12 hours from its receipt, and the work has taken some of them.
const MAX_RETRY_DELAY: Duration = Duration::from_secs(11 * 3600 + 1800);

/// A message as it came from the queue.
#[derive(Debug, Clone)]
pub struct Message {
    /// The body.
    pub body: String,
    /// The message id, if the queue gave one.
    pub id: Option<String>,
    /// The trace context that it carries.
    pub carrier: Carrier,
    /// How often the queue has delivered it, this time included; 1 if the queue does not say. An entry point without redelivery sets
    /// `max_receive_count`, because only then the backend is notified of a temporary failure.
    pub receive_count: u32,
    /// When the invocation that delivered it ends.
    pub deadline: Deadline,
    /// When it was sent to the queue, if the queue says so.
    pub sent_at: Option<SystemTime>,
}

impl Message {
    /// How long it waits before it is visible again.
    pub(super) fn retry_delay(&self) -> Duration {
        RETRY_DELAY.saturating_mul(self.receive_count)
    }

    /// The same, at least as long as a backend's Retry-After asks for.
    pub(super) fn retry_delay_for(&self, asked: Option<Duration>) -> Duration {
        asked.unwrap_or_default().max(self.retry_delay()).min(MAX_RETRY_DELAY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_retry_delay_is_what_the_backend_asks_for_within_the_limit_of_sqs() {
        let message = Message {
            body: String::new(),
            id: None,
            carrier: Carrier::default(),
            receive_count: 2,
            deadline: Deadline::NONE,
            sent_at: None,
        };
        for (asked, seconds) in [(None, 10), (Some(3), 10), (Some(3600), 3600), (Some(u64::MAX), 41_400)] {
            assert_eq!(
                message.retry_delay_for(asked.map(Duration::from_secs)),
                Duration::from_secs(seconds),
                "{asked:?}"
            );
        }
    }
}
