//! Traces: the span of a message goes on where its publisher's ended, and what SQS carries goes on where ours is.
//!
//! Knows only where AMQP carries a trace; the rest is [`telemetry`]'s.

use lapin::types::{AMQPValue, FieldTable};
use telemetry::Extractor;
use tracing::Span;

/// Unless the environment says otherwise.
pub const SERVICE_NAME: &str = "easel-relay";

/// Ties a message's span to the trace that its headers name. Must come before anything else is done with the span.
pub(crate) fn adopt(span: &Span, headers: &Option<FieldTable>) {
    if let Some(headers) = headers {
        telemetry::adopt(span, &Headers(headers));
    }
}

struct Headers<'a>(&'a FieldTable);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        match self.0.inner().get(key)? {
            AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok(),
            AMQPValue::ShortString(text) => Some(text.as_str()),
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        self.0.inner().keys().map(|key| key.as_str()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapin::types::LongString;
    use telemetry::TRACEPARENT;

    #[test]
    fn a_header_is_read_if_it_is_a_text() {
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        for (value, read) in [
            (AMQPValue::LongString(LongString::from(text)), Some(text)),
            (AMQPValue::ShortString(text.into()), Some(text)),
            (AMQPValue::LongString(LongString::from(b"\xff\xfe".to_vec())), None),
            (AMQPValue::LongLongInt(1), None),
            (AMQPValue::Void, None),
        ] {
            let mut table = FieldTable::default();
            table.insert(TRACEPARENT.into(), value);
            assert_eq!(Headers(&table).get(TRACEPARENT), read);
            assert_eq!(Headers(&table).keys(), [TRACEPARENT]);
        }
    }
}
