//! How many messages wait in each queue, and what relay and function are doing: what RabbitMQ, SQS, the relay's health endpoint and the
//! function's process say of themselves. A part that does not answer is shown as such.

use super::{faults::RestartingFunction, record::FunctionState, settings::CANCELS, tasks::TaskStore};
use crate::{
    aws::{Aws, Queue},
    broker::Publisher,
    relay::Relay,
    stack::QUEUE,
};
use serde::Serialize;
use serde_json::Value;
use std::{convert::Infallible, time::Duration};
use tokio::time::{MissedTickBehavior, interval};

/// How often the parts are asked while a page is open.
const PERIOD: Duration = Duration::from_secs(1);

/// What is asked.
#[derive(Debug)]
pub struct Monitor<'a> {
    /// A channel of its own: an error of the broker closes it.
    pub broker: &'a Publisher,
    /// SQS.
    pub aws: &'a Aws,
    /// Its queue of tasks.
    pub queue: &'a Queue,
    /// The relay.
    pub relay: &'a Relay,
    /// The function.
    pub function: &'a RestartingFunction,
}

/// The state of all parts.
#[derive(Debug, Serialize)]
struct Parts {
    queues: Queues,
    relay: RelayState,
    function: FunctionState,
}

/// Messages in each queue; none where the part does not answer.
#[derive(Debug, Serialize)]
struct Queues {
    /// Ready in RabbitMQ's queue of tasks.
    broker: Option<u32>,
    /// Ready in RabbitMQ's queue of messages that cancel tasks.
    cancels: Option<u32>,
    /// Received by the relay and not acknowledged yet.
    relay: Option<u32>,
    /// Visible in SQS.
    waiting: Option<u32>,
    /// Received by the function and not deleted yet.
    in_flight: Option<u32>,
    /// In the dead-letter queue of SQS.
    dead: Option<u32>,
}

/// What the relay's health endpoint says.
#[derive(Debug, Serialize)]
struct RelayState {
    /// The status of `/readyz`.
    status: Option<u16>,
    /// Its body.
    says: Value,
    /// Tasks that SQS took from it.
    sent: Option<u64>,
    /// Markers of cancelled tasks that S3 took from it.
    markers: Option<u64>,
}

impl Monitor<'_> {
    /// Asks the parts while a page is open, and updates the store.
    pub async fn run(&self, tasks: &TaskStore) -> Infallible {
        let mut ticks = interval(PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if tasks.has_followers() {
                tasks.set_parts(serde_json::to_value(self.ask().await).unwrap_or_default());
            }
        }
    }

    async fn ask(&self) -> Parts {
        let metrics = self.relay.metrics().await.unwrap_or_default();
        let metric = |name: &str| number(&metrics, name);
        let (sqs, dead, readyz) = tokio::join!(
            self.aws.depth(&self.queue.url),
            self.aws.depth(&self.queue.dead_letter_url),
            self.relay.readiness(),
        );
        // One after the other on one channel.
        let broker = self.broker.ready_count(QUEUE).await.ok();
        let cancels = self.broker.ready_count(CANCELS).await.ok();
        let (status, says) = readyz.map_or((None, Value::Null), |(status, says)| (Some(status), says));
        Parts {
            queues: Queues {
                broker,
                cancels,
                relay: metric("relay_unacked_messages").and_then(|held| held.try_into().ok()),
                waiting: sqs.as_ref().ok().map(|(visible, _)| *visible),
                in_flight: sqs.as_ref().ok().map(|(_, hidden)| *hidden),
                dead: dead.ok().map(|(visible, hidden)| visible + hidden),
            },
            relay: RelayState {
                status,
                says,
                sent: metric("relay_sent_total"),
                markers: metric("relay_cancel_stored_total"),
            },
            function: self.function.state(),
        }
    }
}

/// A whole number in the text of a scrape.
fn number(metrics: &str, name: &str) -> Option<u64> {
    metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_found_by_its_whole_name() {
        let text =
            "# TYPE relay_sent counter\nrelay_sent_total 7\nrelay_sent_total_more 9\nrelay_unacked_messages 2\n# EOF\n";
        assert_eq!(number(text, "relay_sent_total"), Some(7));
        assert_eq!(number(text, "relay_unacked_messages"), Some(2));
        assert_eq!(number(text, "relay_sent"), None);
    }
}
