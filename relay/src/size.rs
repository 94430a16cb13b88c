//! How many bytes the properties of a message take on the wire. Pure.
//!
//! Refuses to send anything to find out: a broker closes the connection over a frame that is too large.

use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable},
};

/// Frame type, channel, length and end; class, weight, body size and flags.
const FIXED: usize = 8 + 14;
const LENGTH: usize = 4;
/// Delivery mode, priority and timestamp.
const NUMBERS: usize = 1 + 1 + 8;

/// The whole header frame; never less than it will take.
pub(crate) fn header_frame_bytes(properties: &BasicProperties) -> usize {
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
    let entry = |(name, value): (&lapin::types::ShortString, &AMQPValue)| 1 + name.as_str().len() + value_bytes(value);
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
