//! What a dead letter says of itself: its properties as they came, and headers of ours beside them.
//!
//! Refuses to lose the letter to a frame that is too small: then the original headers give way.

use std::time::{SystemTime, UNIX_EPOCH};

use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable, LongString, ShortString},
};
use tracing::warn;

use crate::message::{Origin, Poison};

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

/// Frame type, channel, length and end; class, weight, body size and flags.
const FIXED: usize = 8 + 14;
const LENGTH: usize = 4;
/// Delivery mode, priority and timestamp.
const NUMBERS: usize = 1 + 1 + 8;

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

/// The whole header frame; never less than it will take.
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
    use crate::{acker::Acks, entry_builder::EntryBuilder, message::Message, metrics::Metrics};

    fn poison(headers: FieldTable) -> Poison {
        let mut delivery = lapin::message::Delivery::mock(1, "ex".into(), "key".into(), false, vec![0xff]);
        delivery.properties = BasicProperties::default().with_headers(headers);
        Message::accept(delivery, None, &Acks::default(), &Metrics::default(), &EntryBuilder::default()).unwrap_err()
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

    #[test]
    fn what_would_route_copies_elsewhere_is_kept_under_another_name() {
        let keys = AMQPValue::FieldArray(vec![AMQPValue::LongString("elsewhere".into())].into());
        let mut original = FieldTable::default();
        for name in ["CC", "BCC", "cc"] {
            original.insert(name.into(), keys.clone());
        }
        let got = buried(original, 0);
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
