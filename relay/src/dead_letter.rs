//! Publishes poison to the dead-letter exchange, on a connection of its own.
//!
//! Refuses to acknowledge: it only says whether the broker has confirmed the copy. Without that the message stays where
//! it is. A connection of its own, because a broker short of memory stops reading from connections that publish, and
//! acknowledgements must not wait behind that.

use std::time::Duration;

use lapin::{
    BasicProperties, Channel, Confirmation, Connection,
    options::{BasicPublishOptions, ConfirmSelectOptions},
    types::{AMQPValue, FieldTable, LongString},
    uri::AMQPUri,
};
use tokio::{sync::Mutex, time::timeout};

use crate::{
    amqp,
    error::BrokerError,
    message::{Origin, Poison},
};

/// From the publish to the confirmation.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(15);
const PERSISTENT: u8 = 2;

/// The word for why SQS cannot carry the message.
pub const REASON: &str = "x-relay-reason";
/// The sentence for it.
pub const DETAIL: &str = "x-relay-detail";
/// The exchange that the message was first published to.
pub const EXCHANGE: &str = "x-relay-exchange";
/// The routing key that it was first published with.
pub const ROUTING_KEY: &str = "x-relay-routing-key";
/// The queue that it was taken from.
pub const QUEUE: &str = "x-relay-queue";

/// The way to the dead-letter exchange. Connects when it is first needed.
#[derive(Debug)]
pub struct DeadLetter {
    uri: AMQPUri,
    exchange: String,
    queue: String,
    link: Mutex<Option<Link>>,
}

#[derive(Debug)]
struct Link {
    connection: Connection,
    channel: Channel,
}

impl DeadLetter {
    /// The way from `queue` to `exchange`.
    pub fn new(uri: AMQPUri, exchange: String, queue: String) -> Self {
        Self { uri, exchange, queue, link: Mutex::new(None) }
    }

    /// Publishes a copy; `Ok` only when the broker has confirmed that a queue took it.
    ///
    /// One at a time: the client ties a returned message to whatever confirmation comes next, so with two on the way
    /// the one that reached no queue could pass for the other.
    pub async fn publish(&self, poison: &Poison) -> Result<(), BrokerError> {
        let mut slot = self.link.lock().await;
        let link = match slot.take() {
            Some(link) if link.channel.status().connected() => link,
            _ => self.connect().await?,
        };
        let sent = timeout(PUBLISH_TIMEOUT, self.send(&link.channel, poison)).await;
        let result = sent.unwrap_or(Err(BrokerError::Timeout(PUBLISH_TIMEOUT)));
        // After a failure a late confirmation could be taken for the next message's: start anew.
        match result {
            Ok(()) => *slot = Some(link),
            Err(_) => amqp::close(link.connection).await,
        }
        result
    }

    /// Ends the connection, if there is one.
    pub async fn close(&self) {
        if let Some(link) = self.link.lock().await.take() {
            amqp::close(link.connection).await;
        }
    }

    async fn connect(&self) -> Result<Link, BrokerError> {
        let connection = amqp::connect(&self.uri, "relay: dead letters").await?;
        let open = async {
            let channel = connection.create_channel().await?;
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            Ok::<_, lapin::Error>(channel)
        };
        let channel = timeout(PUBLISH_TIMEOUT, open).await.map_err(|_| BrokerError::Timeout(PUBLISH_TIMEOUT))??;
        Ok(Link { connection, channel })
    }

    async fn send(&self, channel: &Channel, poison: &Poison) -> Result<(), BrokerError> {
        let origin = &poison.ticket.origin;
        let confirmation = channel
            .basic_publish(
                self.exchange.as_str().into(),
                origin.routing_key.as_str().into(),
                BasicPublishOptions { mandatory: true, ..Default::default() },
                &poison.body,
                self.properties(poison, origin),
            )
            .await?
            .await?;
        match confirmation {
            Confirmation::Ack(None) => Ok(()),
            Confirmation::Ack(Some(_)) => Err(BrokerError::Unroutable(self.exchange.clone())),
            Confirmation::Nack(_) | Confirmation::NotRequested => Err(BrokerError::Unconfirmed),
        }
    }

    /// The properties as they came, with our headers added.
    fn properties(&self, poison: &Poison, origin: &Origin) -> BasicProperties {
        let mut headers = origin.properties.headers().clone().unwrap_or_default();
        let detail = poison.reason.to_string();
        for (name, value) in [
            (REASON, poison.reason.as_str()),
            (DETAIL, detail.as_str()),
            (EXCHANGE, origin.exchange.as_str()),
            (ROUTING_KEY, origin.routing_key.as_str()),
            (QUEUE, self.queue.as_str()),
        ] {
            headers.insert(name.into(), AMQPValue::LongString(LongString::from(value)));
        }
        republished(&origin.properties, headers)
    }
}

/// Leaves out what would make the copy vanish or be refused: its expiry, and a user that is not ours.
fn republished(original: &BasicProperties, headers: FieldTable) -> BasicProperties {
    let mut copy = BasicProperties::default().with_headers(headers).with_delivery_mode(PERSISTENT);
    macro_rules! keep {
        ($($get:ident => $with:ident),* $(,)?) => {
            $(if let Some(value) = original.$get() { copy = copy.$with(value.clone()); })*
        };
    }
    keep! {
        content_type => with_content_type,
        content_encoding => with_content_encoding,
        priority => with_priority,
        correlation_id => with_correlation_id,
        reply_to => with_reply_to,
        message_id => with_message_id,
        timestamp => with_timestamp,
        kind => with_type,
        app_id => with_app_id,
    }
    copy
}
