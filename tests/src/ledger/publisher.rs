//! Publishes numbered messages until the broker has confirmed each, whatever happens to the broker.
//!
//! Refuses to believe in a message without its confirmation: it is published again, as another try.

use super::tally::{Body, Tally};
use anyhow::{Context, Result, ensure};
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, PublisherConfirm,
    options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable, ShortString},
};
use std::{
    ops::Range,
    time::{Duration, Instant},
};
use tokio::time::{sleep, timeout};

const PERSISTENT: u8 = 2;
/// Longer than any alarm of the broker that a fault raises.
const CONFIRM: Duration = Duration::from_secs(60);
const CONNECT: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_millis(100);

/// What is published, and where.
#[derive(Debug, Clone)]
pub(super) struct Publishing {
    pub(super) url: String,
    pub(super) queue: String,
    pub(super) groups: u64,
    pub(super) size: usize,
    /// How many messages wait for their confirmation together.
    pub(super) window: usize,
}

/// Declares a durable queue of a type.
pub(super) async fn declare(url: &str, queue: &str, kind: &str) -> Result<()> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await.context("RabbitMQ")?;
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString(kind.into()));
    if kind == "quorum" {
        // RabbitMQ 4 drops after 20 deliveries unless told otherwise. Its -1 for "never" RabbitMQ 3 takes for a limit that
        // the first redelivery exceeds, and drops: that looks as if the relay had lost the message.
        arguments.insert("x-delivery-limit".into(), AMQPValue::LongInt(i32::MAX));
    }
    let channel = connection.create_channel().await?;
    channel.queue_declare(queue.into(), QueueDeclareOptions::durable(), arguments).await?;
    Ok(())
}

impl Publishing {
    /// Publishes `numbers`, spread over `span`, and ends when all are confirmed.
    pub(super) async fn run(&self, tally: &Tally, numbers: Range<u64>, span: Duration) {
        let (started, all) = (Instant::now(), numbers.clone().count().max(1) as u32);
        let mut pending: Vec<u64> = Vec::new();
        let mut numbers = numbers.into_iter();
        let mut channel = None;
        let mut done = 0;
        loop {
            pending.extend(numbers.by_ref().take(self.window.saturating_sub(pending.len())));
            if pending.is_empty() {
                return;
            }
            let link = match channel.take() {
                Some(link) => Ok(link),
                None => timeout(CONNECT, self.connect()).await.context("no answer").and_then(|link| link),
            };
            let sent = match &link {
                Ok((_, channel)) => self.window(tally, channel, &mut pending).await,
                Err(err) => Err(anyhow::anyhow!("{err:#}")),
            };
            match sent {
                Ok(count) => {
                    done += count;
                    channel = link.ok();
                    sleep((span * done / all).saturating_sub(started.elapsed())).await;
                }
                // The broker is on its way down or up: it tells no event, so it is asked again.
                Err(_) => sleep(AGAIN).await,
            }
        }
    }

    pub(super) async fn connect(&self) -> Result<(Connection, Channel)> {
        let connection = Connection::connect(&self.url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok((connection, channel))
    }

    /// Publishes what is pending in order; what is confirmed leaves it.
    async fn window(&self, tally: &Tally, channel: &Channel, pending: &mut Vec<u64>) -> Result<u32> {
        let mut waiting = Vec::with_capacity(pending.len());
        for &number in pending.iter() {
            match timeout(CONFIRM, self.publish(tally, channel, number)).await {
                Ok(Ok(confirmation)) => waiting.push((number, confirmation)),
                _ => break,
            }
        }
        let unsent = pending.split_off(waiting.len());
        let sent = pending.len() as u32;
        pending.clear();
        for (number, confirmation) in waiting {
            match timeout(CONFIRM, confirmation).await {
                Ok(Ok(Confirmation::Ack(None))) => tally.confirm(number),
                _ => pending.push(number),
            }
        }
        pending.extend(unsent);
        ensure!(pending.is_empty(), "not all were confirmed");
        Ok(sent)
    }

    /// Publishes one number; gives what will be its confirmation.
    pub(super) async fn publish(&self, tally: &Tally, channel: &Channel, number: u64) -> Result<PublisherConfirm> {
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let publish = tally.attempt();
        let properties = BasicProperties::default()
            .with_delivery_mode(PERSISTENT)
            .with_content_type("application/json".into())
            .with_message_id(ShortString::from(format!("p{publish}")));
        let body = self.body(number, publish);
        Ok(channel.basic_publish("".into(), self.queue.as_str().into(), options, &body, properties).await?)
    }

    fn body(&self, number: u64, publish: u64) -> Vec<u8> {
        let mut body = Body { number, publish, style_id: number % self.groups, pad: "".into() };
        let bare = serde_json::to_vec(&body).unwrap_or_default();
        body.pad = "x".repeat(self.size.saturating_sub(bare.len())).into();
        serde_json::to_vec(&body).unwrap_or_default()
    }
}
