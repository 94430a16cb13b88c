//! A message of the queue, and what becomes of it. It is not read here.

use super::Deadline;
use crate::observe::trace::Carrier;
use std::time::{Duration, SystemTime};

/// How long a message rests after a fault, for each time it was received: a fault gets time to pass.
const REST: Duration = Duration::from_secs(5);
/// The longest rest. SQS hides a message for 12 hours at most, counted from its receipt, and of these its work has taken some.
const LONGEST_REST: Duration = Duration::from_secs(11 * 3600 + 1800);

/// A message as it came from the queue.
#[derive(Debug, Clone)]
pub struct Message {
    /// The body.
    pub body: String,
    /// The queue's id, if it says so.
    pub id: Option<String>,
    /// The trace that it belongs to.
    pub carrier: Carrier,
    /// How often the queue has handed it out, this time included; 1 if the queue did not say. Where nobody brings it again,
    /// `max_receive_count`: the backend is told of a failure on the last receive only.
    pub receive_count: u32,
    /// When the invocation that brought it ends.
    pub deadline: Deadline,
    /// When the queue got it, if it says so.
    pub sent_at: Option<SystemTime>,
}

/// What becomes of the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Done with: painted, or failed for good and the backend knows, or does not want to know.
    Consumed,
    /// Back to the queue, to be tried again or dead-lettered; to become visible again after this time.
    GivenBack(Duration),
}

impl Message {
    /// How long it rests before it is tried again.
    pub(super) fn rest(&self) -> Duration {
        REST.saturating_mul(self.receive_count)
    }

    /// How long it rests if a backend asks for time.
    pub(super) fn rest_for(&self, asked: Option<Duration>) -> Duration {
        asked.unwrap_or_default().max(self.rest()).min(LONGEST_REST)
    }

    /// Back to the queue, after that rest.
    pub(super) fn given_back(&self) -> Outcome {
        Outcome::GivenBack(self.rest())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_rests_as_long_as_the_backend_asks_and_no_longer_than_sqs_hides_it() {
        let message = Message {
            body: String::new(),
            id: None,
            carrier: Carrier::default(),
            receive_count: 2,
            deadline: Deadline::NONE,
            sent_at: None,
        };
        for (asked, seconds) in [(None, 10), (Some(3), 10), (Some(3600), 3600), (Some(u64::MAX), 41_400)] {
            assert_eq!(message.rest_for(asked.map(Duration::from_secs)), Duration::from_secs(seconds), "{asked:?}");
        }
    }
}
