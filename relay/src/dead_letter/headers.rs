//! What a dead letter says of itself: its properties as they came, and headers of ours beside them.
//!
//! Refuses to lose the letter to a frame that is too small: then the original headers give way.

use std::time::{SystemTime, UNIX_EPOCH};

use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable, LongString},
};
use tracing::warn;

use crate::{
    message::{Origin, Poison},
    size::header_frame_bytes,
};

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
/// What the publisher's `CC` asked for.
pub const CC: &str = "x-relay-cc";
/// What the publisher's `BCC` asked for, where the broker leaves it on the message.
pub const BCC: &str = "x-relay-bcc";
/// Headers by which RabbitMQ routes a message to more keys than its own: a dead letter with them would have copies in
/// queues that it never was for. Each with the name under which it is kept.
const SENDER_SELECTED: [(&str, &str); 2] = [("CC", CC), ("BCC", BCC)];
/// A quorum queue counts in it.
const BROKER_DELIVERY_COUNT: &str = "x-delivery-count";

/// The properties as they came, with our headers added. A broker answers a frame that is too large by closing the
/// connection, each time again: where ours make it so, the original headers are left out, and that is said.
pub(super) fn properties(queue: &str, poison: &Poison, frame_max: usize) -> BasicProperties {
    let origin = &poison.ticket.origin;
    let original = renamed(origin.properties.headers().clone().unwrap_or_default());
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

/// How often a relay has dead-lettered a message with these properties before.
pub(crate) fn dead_lettered_before(properties: &BasicProperties) -> u64 {
    let headers = properties.headers().as_ref();
    headers
        .and_then(|headers| headers.inner().get(COUNT))
        .and_then(count)
        .and_then(|count| count.try_into().ok())
        .unwrap_or(0)
}

fn renamed(original: FieldTable) -> FieldTable {
    let mut headers = FieldTable::default();
    for (name, value) in original.inner() {
        let kept = SENDER_SELECTED.iter().find(|(routed, _)| *routed == name.as_str()).map(|(_, kept)| (*kept).into());
        headers.insert(kept.unwrap_or_else(|| name.clone()), value.clone());
    }
    headers
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
mod tests;
