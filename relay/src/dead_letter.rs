//! Publishes poison to the dead-letter exchange, on a connection of its own.
//!
//! Refuses to acknowledge: it only says whether the broker has confirmed the copy. Without that the message stays where
//! it is. A connection of its own, because a broker short of memory stops reading from connections that publish, and
//! acknowledgements must not wait behind that.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use lapin::{
    BasicProperties, Channel, Confirmation, Connection,
    options::{BasicPublishOptions, ConfirmSelectOptions},
    types::{AMQPValue, FieldTable, LongString},
};
use tokio::{sync::Mutex, time::timeout};

use tracing::warn;

use crate::{
    amqp::{self, Broker},
    config::Config,
    error::BrokerError,
    message::{Origin, Poison},
    size::header_frame_bytes,
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
/// When the relay got it.
pub const RECEIVED_AT: &str = "x-relay-received-at";
/// When the relay gave it up.
pub const TIME: &str = "x-relay-time";
/// How often a relay has given it up, this time counted.
pub const COUNT: &str = "x-relay-count";
/// How often the broker had delivered it before, where it says so.
pub const DELIVERY_COUNT: &str = "x-relay-delivery-count";
/// Set when the original headers were left out, because with ours they would not fit into one frame.
pub const HEADERS_DROPPED: &str = "x-relay-headers-dropped";
/// A quorum queue counts in it.
const BROKER_DELIVERY_COUNT: &str = "x-delivery-count";

/// The way to the dead-letter exchange. Connects when it is first needed.
#[derive(Debug)]
pub struct DeadLetter {
    broker: Arc<Broker>,
    exchange: String,
    queue: String,
    prefetch: usize,
    link: Mutex<Option<Link>>,
    stuck: AtomicUsize,
    stall_told: AtomicBool,
}

/// One message that could not be buried yet.
#[derive(Debug)]
pub(crate) struct Stuck<'a>(&'a AtomicUsize);

#[derive(Debug)]
struct Link {
    connection: Connection,
    channel: Channel,
}

impl DeadLetter {
    /// The way from the configured queue to its exchange.
    pub fn new(config: &Config, broker: Arc<Broker>) -> Self {
        Self {
            broker,
            exchange: config.dead_letter_exchange(),
            queue: config.queue.clone(),
            prefetch: config.prefetch.into(),
            link: Mutex::new(None),
            stuck: AtomicUsize::new(0),
            stall_told: AtomicBool::new(false),
        }
    }

    /// Counts a message that could not be buried, until the answer is dropped. When such messages fill the prefetch, the
    /// broker delivers nothing more: they may be neither lost nor given back without an end, so that is told, once.
    pub(crate) fn stuck(&self) -> Stuck<'_> {
        let count = self.stuck.fetch_add(1, Ordering::Relaxed) + 1;
        if count >= self.prefetch && !self.stall_told.swap(true, Ordering::Relaxed) {
            warn!(
                messages = count,
                amqp.exchange = self.exchange,
                "every message that the broker may have out here waits for the dead-letter exchange: the relay stands \
                 still until the exchange takes them"
            );
        }
        Stuck(&self.stuck)
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
        let sent = timeout(PUBLISH_TIMEOUT, self.send(&link, poison)).await;
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
        let connection = self.broker.connect("relay: dead letters").await?;
        let open = async {
            let channel = connection.create_channel().await?;
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            Ok::<_, lapin::Error>(channel)
        };
        let channel = timeout(PUBLISH_TIMEOUT, open).await.map_err(|_| BrokerError::Timeout(PUBLISH_TIMEOUT))??;
        Ok(Link { connection, channel })
    }

    async fn send(&self, link: &Link, poison: &Poison) -> Result<(), BrokerError> {
        let origin: &Origin = &poison.ticket.origin;
        let frame_max = link.connection.configuration().frame_max() as usize;
        let confirmation = link
            .channel
            .basic_publish(
                self.exchange.as_str().into(),
                origin.routing_key.as_str().into(),
                BasicPublishOptions { mandatory: true, ..Default::default() },
                &poison.body,
                properties(&self.queue, poison, frame_max),
            )
            .await?
            .await?;
        match confirmation {
            Confirmation::Ack(None) => Ok(()),
            Confirmation::Ack(Some(_)) => Err(BrokerError::Unroutable(self.exchange.clone())),
            Confirmation::Nack(_) | Confirmation::NotRequested => Err(BrokerError::Unconfirmed),
        }
    }
}

impl Drop for Stuck<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The properties as they came, with our headers added. A broker answers a frame that is too large by closing the
/// connection, each time again: where ours make it so, the original headers are left out, and that is said.
fn properties(queue: &str, poison: &Poison, frame_max: usize) -> BasicProperties {
    let origin = &poison.ticket.origin;
    let original = origin.properties.headers().clone().unwrap_or_default();
    let ours = headers(queue, poison, &original);
    let mut all = original;
    for (name, value) in ours.inner() {
        all.insert(name.clone(), value.clone());
    }
    let whole = republished(&origin.properties, all);
    if frame_max == 0 || header_frame_bytes(&whole) <= frame_max {
        return whole;
    }
    let mut ours = ours;
    ours.insert(HEADERS_DROPPED.into(), AMQPValue::Boolean(true));
    warn!(frame_max, "the headers do not fit into one frame with ours, the dead letter goes without them");
    republished(&origin.properties, ours)
}

fn headers(queue: &str, poison: &Poison, original: &FieldTable) -> FieldTable {
    let origin: &Origin = &poison.ticket.origin;
    let mut headers = FieldTable::default();
    for (name, value) in [
        (REASON, poison.reason.as_str()),
        (DETAIL, poison.reason.to_string().as_str()),
        (EXCHANGE, origin.exchange.as_str()),
        (ROUTING_KEY, origin.routing_key.as_str()),
        (QUEUE, queue),
    ] {
        headers.insert(name.into(), AMQPValue::LongString(LongString::from(value)));
    }
    headers.insert(RECEIVED_AT.into(), timestamp(origin.received_at));
    headers.insert(TIME.into(), timestamp(SystemTime::now()));
    let before = original.inner().get(COUNT).and_then(count).unwrap_or(0);
    headers.insert(COUNT.into(), AMQPValue::LongLongInt(before.saturating_add(1)));
    if let Some(deliveries) = original.inner().get(BROKER_DELIVERY_COUNT).and_then(count) {
        headers.insert(DELIVERY_COUNT.into(), AMQPValue::LongLongInt(deliveries));
    }
    headers
}

fn timestamp(time: SystemTime) -> AMQPValue {
    AMQPValue::Timestamp(time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}

/// A header that counts; `None` for anything else that somebody may have put there.
fn count(value: &AMQPValue) -> Option<i64> {
    let count = match *value {
        AMQPValue::ShortShortInt(count) => count.into(),
        AMQPValue::ShortShortUInt(count) => count.into(),
        AMQPValue::ShortInt(count) => count.into(),
        AMQPValue::ShortUInt(count) => count.into(),
        AMQPValue::LongInt(count) => count.into(),
        AMQPValue::LongUInt(count) => count.into(),
        AMQPValue::LongLongInt(count) => count,
        _ => return None,
    };
    (count >= 0).then_some(count)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{acker::Acks, message::Message, metrics::Metrics, recipe::Recipe};

    fn poison(headers: FieldTable) -> Poison {
        let mut delivery = lapin::message::Delivery::mock(1, "ex".into(), "key".into(), false, vec![0xff]);
        delivery.properties = BasicProperties::default().with_headers(headers);
        Message::accept(delivery, &Acks::default(), &Metrics::default(), &Recipe::default()).unwrap_err()
    }

    fn buried(headers: FieldTable, frame_max: usize) -> FieldTable {
        properties("q", &poison(headers), frame_max).headers().clone().unwrap()
    }

    #[test]
    fn ours_come_beside_what_was_there() {
        let mut original = FieldTable::default();
        original.insert("kept".into(), AMQPValue::FieldTable(FieldTable::default()));
        original.insert(BROKER_DELIVERY_COUNT.into(), AMQPValue::LongLongInt(7));
        let got = buried(original.clone(), 131_072);
        let get = |name: &str| got.inner().get(name).cloned();
        assert_eq!(get("kept"), Some(AMQPValue::FieldTable(FieldTable::default())));
        assert_eq!(get(DELIVERY_COUNT), Some(AMQPValue::LongLongInt(7)));
        assert_eq!(get(EXCHANGE), Some(AMQPValue::LongString("ex".into())));
        let since_2020 = |value| matches!(value, Some(AMQPValue::Timestamp(at)) if at > 1_577_836_800);
        assert!(since_2020(get(TIME)) && since_2020(get(RECEIVED_AT)));
        assert_eq!(get(HEADERS_DROPPED), None);
    }

    #[test]
    fn the_count_goes_on_and_nonsense_counts_as_none() {
        for (before, after) in [
            (None, 1),
            (Some(AMQPValue::LongLongInt(1)), 2),
            (Some(AMQPValue::ShortShortUInt(255)), 256),
            (Some(AMQPValue::LongLongInt(i64::MAX)), i64::MAX),
            (Some(AMQPValue::LongLongInt(-5)), 1),
            (Some(AMQPValue::LongString("many".into())), 1),
            (Some(AMQPValue::Void), 1),
        ] {
            let mut original = FieldTable::default();
            before.clone().map(|value| original.insert(COUNT.into(), value));
            assert_eq!(buried(original, 0).inner().get(COUNT), Some(&AMQPValue::LongLongInt(after)), "{before:?}");
        }
    }

    #[test]
    fn headers_that_do_not_fit_into_a_frame_are_left_out() {
        for (bytes, dropped) in [(1_000, false), (3_000, false), (4_000, true), (200_000, true)] {
            let mut original = FieldTable::default();
            original.insert("big".into(), AMQPValue::LongString("x".repeat(bytes).into()));
            let got = buried(original, 4_096);
            assert_eq!(got.contains_key(HEADERS_DROPPED), dropped, "{bytes}");
            assert_eq!(got.contains_key("big"), !dropped, "{bytes}");
            assert!(got.contains_key(REASON));
        }
    }
}
