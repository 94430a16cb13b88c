//! The properties of a dead letter: the original ones, and `x-relay-` headers beside them.
//!
//! If they do not fit into one frame together, the original headers are left out.

use std::time::{SystemTime, UNIX_EPOCH};

use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable, LongString, ShortString},
};
use tracing::warn;

use crate::message::{Envelope, Poison};

const PERSISTENT: u8 = 2;

/// Why SQS cannot carry the message, as a code.
pub const REASON: &str = "x-relay-reason";
/// The same as a sentence.
pub const DETAIL: &str = "x-relay-detail";
/// The exchange that the message was first published to.
pub const EXCHANGE: &str = "x-relay-exchange";
/// The routing key that it was first published with.
pub const ROUTING_KEY: &str = "x-relay-routing-key";
/// The queue that it was taken from.
pub const QUEUE: &str = "x-relay-queue";
/// When the relay received it.
pub const RECEIVED_AT: &str = "x-relay-received-at";
/// When the relay dead-lettered it.
pub const TIME: &str = "x-relay-time";
/// How often a relay has dead-lettered it, including this time.
pub const COUNT: &str = "x-relay-count";
/// How often the broker had delivered it before, if the broker says so.
pub const DELIVERY_COUNT: &str = "x-relay-delivery-count";
/// Set if the original headers were left out because they did not fit into one frame with ours.
pub const HEADERS_DROPPED: &str = "x-relay-headers-dropped";
/// The publisher's `CC` header.
pub const CC: &str = "x-relay-cc";
/// The publisher's `BCC` header, if the broker leaves it on the message.
pub const BCC: &str = "x-relay-bcc";
/// Headers by which RabbitMQ routes copies to further keys, and the names under which a dead letter keeps them: it must
/// not be copied to other queues.
const SENDER_SELECTED: [(&str, &str); 2] = [("CC", CC), ("BCC", BCC)];
/// Set by quorum queues.
const BROKER_DELIVERY_COUNT: &str = "x-delivery-count";

/// Frame type, channel, length and end; class, weight, body size and flags.
const FIXED: usize = 8 + 14;
const LENGTH: usize = 4;
/// Delivery mode, priority and timestamp.
const NUMBERS: usize = 1 + 1 + 8;

/// The original properties with our headers added. The broker would close the connection over a frame that is too
/// large, at each attempt: then the original headers are left out and [`HEADERS_DROPPED`] is set.
pub(super) fn properties(queue: &str, poison: &Poison, frame_max: usize) -> BasicProperties {
    let envelope = &poison.delivery.envelope;
    let original = renamed(envelope.properties.headers().clone().unwrap_or_default());
    let ours = headers(queue, poison, &original);
    let mut all = original;
    for (name, value) in ours.inner() {
        all.insert(name.clone(), value.clone());
    }
    let whole = republished(&envelope.properties, all);
    if frame_max == 0 || header_frame_bytes(&whole) <= frame_max {
        return whole;
    }
    let mut ours = ours;
    ours.insert(HEADERS_DROPPED.into(), AMQPValue::Boolean(true));
    warn!(frame_max, "the headers do not fit into one frame with ours, the dead letter goes without them");
    republished(&envelope.properties, ours)
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
    let envelope: &Envelope = &poison.delivery.envelope;
    let mut headers = FieldTable::default();
    for (name, value) in [
        (REASON, poison.reason.as_str()),
        (DETAIL, poison.reason.to_string().as_str()),
        (EXCHANGE, envelope.exchange.as_str()),
        (ROUTING_KEY, envelope.routing_key.as_str()),
        (QUEUE, queue),
    ] {
        headers.insert(name.into(), AMQPValue::LongString(LongString::from(value)));
    }
    headers.insert(RECEIVED_AT.into(), timestamp(envelope.received_at));
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

/// A header's value as a count; `None` if it is none.
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

/// The properties without those that would make the copy expire or be refused: `expiration` and `user-id`.
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

/// The size of the content header frame in bytes, or a few more.
fn header_frame_bytes(properties: &BasicProperties) -> usize {
    let texts = [
        properties.content_type(),
        properties.content_encoding(),
        properties.correlation_id(),
        properties.reply_to(),
        properties.expiration(),
        properties.message_id(),
        properties.kind(),
        properties.user_id(),
        properties.app_id(),
        properties.cluster_id(),
    ];
    let texts: usize = texts.into_iter().flatten().map(|text| 1 + text.as_str().len()).sum();
    FIXED + NUMBERS + texts + properties.headers().as_ref().map_or(0, table_bytes)
}

fn table_bytes(table: &FieldTable) -> usize {
    let entry = |(name, value): (&ShortString, &AMQPValue)| 1 + name.as_str().len() + value_bytes(value);
    LENGTH + table.inner().iter().map(entry).sum::<usize>()
}

fn value_bytes(value: &AMQPValue) -> usize {
    let content = match value {
        AMQPValue::Void => 0,
        AMQPValue::Boolean(_) | AMQPValue::ShortShortInt(_) | AMQPValue::ShortShortUInt(_) => 1,
        AMQPValue::ShortInt(_) | AMQPValue::ShortUInt(_) => 2,
        AMQPValue::LongInt(_) | AMQPValue::LongUInt(_) | AMQPValue::Float(_) => 4,
        AMQPValue::LongLongInt(_) | AMQPValue::Double(_) | AMQPValue::Timestamp(_) => 8,
        AMQPValue::DecimalValue(_) => 5,
        AMQPValue::ShortString(text) => 1 + text.as_str().len(),
        AMQPValue::LongString(text) => LENGTH + text.as_bytes().len(),
        AMQPValue::ByteArray(bytes) => LENGTH + bytes.as_slice().len(),
        AMQPValue::FieldArray(array) => LENGTH + array.as_slice().iter().map(value_bytes).sum::<usize>(),
        AMQPValue::FieldTable(table) => table_bytes(table),
    };
    1 + content
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{acker::ChannelAcks, entry_builder::EntryBuilder, message::Message, metrics::Metrics};

    fn poison(headers: FieldTable) -> Poison {
        let mut delivery = lapin::message::Delivery::mock(1, "ex".into(), "key".into(), false, vec![0xff]);
        delivery.properties = BasicProperties::default().with_headers(headers);
        Message::from_delivery(delivery, None, &ChannelAcks::default(), &Metrics::default(), &EntryBuilder::default())
            .unwrap_err()
    }

    fn dead_lettered(headers: FieldTable, frame_max: usize) -> FieldTable {
        properties("q", &poison(headers), frame_max).headers().clone().unwrap()
    }

    #[test]
    fn our_headers_are_added_to_the_original_ones() {
        let mut original = FieldTable::default();
        original.insert("kept".into(), AMQPValue::FieldTable(FieldTable::default()));
        original.insert(BROKER_DELIVERY_COUNT.into(), AMQPValue::LongLongInt(7));
        let got = dead_lettered(original.clone(), 131_072);
        let get = |name: &str| got.inner().get(name).cloned();
        assert_eq!(get("kept"), Some(AMQPValue::FieldTable(FieldTable::default())));
        assert_eq!(get(DELIVERY_COUNT), Some(AMQPValue::LongLongInt(7)));
        assert_eq!(get(EXCHANGE), Some(AMQPValue::LongString("ex".into())));
        let since_2020 = |value| matches!(value, Some(AMQPValue::Timestamp(at)) if at > 1_577_836_800);
        assert!(since_2020(get(TIME)) && since_2020(get(RECEIVED_AT)));
        assert_eq!(get(HEADERS_DROPPED), None);
    }

    #[test]
    fn the_count_continues_and_an_invalid_one_is_ignored() {
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
            assert_eq!(
                dead_lettered(original, 0).inner().get(COUNT),
                Some(&AMQPValue::LongLongInt(after)),
                "{before:?}"
            );
        }
    }

    #[test]
    fn headers_that_do_not_fit_into_a_frame_are_left_out() {
        for (bytes, dropped) in [(1_000, false), (3_000, false), (4_000, true), (200_000, true)] {
            let mut original = FieldTable::default();
            original.insert("big".into(), AMQPValue::LongString("x".repeat(bytes).into()));
            let got = dead_lettered(original, 4_096);
            assert_eq!(got.contains_key(HEADERS_DROPPED), dropped, "{bytes}");
            assert_eq!(got.contains_key("big"), !dropped, "{bytes}");
            assert!(got.contains_key(REASON));
        }
    }

    #[test]
    fn what_would_route_copies_elsewhere_is_kept_under_another_name() {
        let keys = AMQPValue::FieldArray(vec![AMQPValue::LongString("elsewhere".into())].into());
        let mut original = FieldTable::default();
        for name in ["CC", "BCC", "cc"] {
            original.insert(name.into(), keys.clone());
        }
        let got = dead_lettered(original, 0);
        for (name, want) in [("CC", false), ("BCC", false), ("cc", true), (CC, true), (BCC, true)] {
            assert_eq!(got.inner().get(name), want.then_some(&keys), "{name}");
        }
    }

    #[test]
    fn nested_values_are_counted_to_the_byte() {
        let mut inner = FieldTable::default();
        inner.insert("ab".into(), AMQPValue::LongString("xyz".into()));
        let mut table = FieldTable::default();
        table.insert("t".into(), AMQPValue::FieldTable(inner));
        table.insert("n".into(), AMQPValue::LongLongInt(1));
        // Each name with its length, a type byte before each value, four bytes before tables and long texts.
        assert_eq!(table_bytes(&table), 4 + (2 + 1 + 4 + (3 + 1 + 4 + 3)) + (2 + 1 + 8));
        let properties = BasicProperties::default().with_headers(table).with_message_id("id".into());
        assert_eq!(header_frame_bytes(&properties), 22 + 10 + 3 + 33);
    }
}
