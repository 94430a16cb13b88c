//! One message in the relay: its entry for SQS, what came with the delivery, and its acker.
//!
//! The acker stays with its message, so whoever settles the message has it.

use std::time::SystemTime;

use lapin::{
    BasicProperties,
    message::Delivery,
    types::{AMQPValue, FieldTable},
};
use telemetry::Extractor;
use tracing::{Span, info_span};

use crate::{
    acker::{Acker, ChannelAcks},
    batch::BatchItem,
    budget::HeldBytes,
    entry::{Entry, PoisonReason},
    entry_builder::EntryBuilder,
    id_source::MessageParts,
    metrics::{Metrics, Unacked},
};

/// A message that SQS can carry.
#[derive(Debug)]
pub struct Message {
    /// What goes to SQS.
    pub entry: Entry,
    /// How many attempts have failed.
    pub attempts: u32,
    pub(crate) delivery: DeliveryContext,
}

/// A message that SQS can never carry.
#[derive(Debug)]
pub struct Poison {
    /// The body, unchanged.
    pub body: Vec<u8>,
    /// Why.
    pub reason: PoisonReason,
    pub(crate) delivery: DeliveryContext,
}

/// What belongs to a delivery besides its body, until it is settled.
#[derive(Debug)]
pub(crate) struct DeliveryContext {
    pub(crate) acker: Acker,
    pub(crate) unacked: Unacked,
    pub(crate) envelope: Box<Envelope>,
    pub(crate) span: Span,
    /// Counts its bytes until it is settled.
    pub(crate) _held: Option<HeldBytes>,
}

/// How a message was published, and when it was received.
#[derive(Debug)]
pub(crate) struct Envelope {
    pub(crate) exchange: String,
    pub(crate) routing_key: String,
    pub(crate) properties: BasicProperties,
    pub(crate) received_at: SystemTime,
}

impl Message {
    /// Turns a delivery into a message, or into poison if SQS cannot carry it.
    // The error is an ordinary outcome, and it is moved only once.
    #[allow(clippy::result_large_err)]
    pub(crate) fn from_delivery(
        mut delivery: Delivery,
        held: Option<HeldBytes>,
        acks: &ChannelAcks,
        metrics: &Metrics,
        builder: &EntryBuilder,
    ) -> Result<Self, Poison> {
        // The client grows the buffer by doubling it.
        delivery.data.shrink_to_fit();
        let acker = acks.acker(&delivery);
        let message_id = delivery.properties.message_id().as_ref().map(|id| id.as_str());
        let span = info_span!("delivery", delivery.tag = delivery.delivery_tag, message.id = message_id);
        if let Some(headers) = delivery.properties.headers() {
            telemetry::adopt(&span, &Headers(headers));
        }
        // So that the function's spans become children of this one.
        let traced =
            telemetry::outgoing_traceparent(&span).map(|parent| with_traceparent(&delivery.properties, parent));
        let parts = MessageParts {
            body: "",
            exchange: delivery.exchange.as_str(),
            routing_key: delivery.routing_key.as_str(),
            properties: traced.as_ref().unwrap_or(&delivery.properties),
        };
        let checked = span.in_scope(|| builder.entry(delivery.data, parts));
        let context = DeliveryContext {
            acker,
            unacked: metrics.receive(*delivery.properties.timestamp()),
            envelope: Box::new(Envelope {
                exchange: delivery.exchange.into(),
                routing_key: delivery.routing_key.into(),
                properties: delivery.properties,
                received_at: SystemTime::now(),
            }),
            span,
            _held: held,
        };
        match checked {
            Ok(entry) => Ok(Self { entry, attempts: 0, delivery: context }),
            Err((body, reason)) => Err(Poison { body, reason, delivery: context }),
        }
    }

    /// The message as poison, for `reason`.
    pub fn into_poison(self, reason: PoisonReason) -> Poison {
        Poison { body: self.entry.into_body(), reason, delivery: self.delivery }
    }
}

fn with_traceparent(properties: &BasicProperties, traceparent: String) -> BasicProperties {
    let mut headers = properties.headers().clone().unwrap_or_default();
    headers.insert(telemetry::TRACEPARENT.into(), AMQPValue::LongString(traceparent.into()));
    properties.clone().with_headers(headers)
}

impl BatchItem for Message {
    fn size(&self) -> usize {
        self.entry.size()
    }

    fn lane(&self) -> Option<&str> {
        self.entry.lane()
    }
}

/// Headers in which a publisher's trace arrives.
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
