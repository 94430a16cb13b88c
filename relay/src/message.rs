//! One message on its way: what SQS will carry, where it came from, and the right to acknowledge it.
//!
//! The acker is never parted from its message: whoever settles the one holds the other.

use std::time::SystemTime;

use lapin::{
    BasicProperties,
    message::Delivery,
    types::{AMQPValue, FieldTable},
};
use telemetry::Extractor;
use tracing::{Span, info_span};

use crate::{
    acker::{Acker, Acks},
    batch::Weigh,
    budget::Held,
    entry::{Entry, Reason},
    entry_builder::EntryBuilder,
    field::Parts,
    metrics::{Metrics, Unacked},
};

/// A message that SQS can carry.
#[derive(Debug)]
pub struct Message {
    /// What goes to SQS.
    pub entry: Entry,
    /// How often it was sent in vain.
    pub attempts: u32,
    pub(crate) ticket: Ticket,
}

/// A message that SQS can never carry.
#[derive(Debug)]
pub struct Poison {
    /// The body, unchanged.
    pub body: Vec<u8>,
    /// Why.
    pub reason: Reason,
    pub(crate) ticket: Ticket,
}

/// What belongs to a delivery besides its body.
#[derive(Debug)]
pub(crate) struct Ticket {
    pub(crate) acker: Acker,
    pub(crate) unacked: Unacked,
    pub(crate) origin: Box<Origin>,
    pub(crate) span: Span,
    /// Its bytes count until it is settled.
    pub(crate) _held: Option<Held>,
}

/// Where a message came from.
#[derive(Debug)]
pub(crate) struct Origin {
    pub(crate) exchange: String,
    pub(crate) routing_key: String,
    pub(crate) properties: BasicProperties,
    pub(crate) received_at: SystemTime,
}

impl Message {
    /// Takes a delivery over.
    // The error is the other of two ordinary outcomes, and it is moved only once.
    #[allow(clippy::result_large_err)]
    pub(crate) fn accept(
        mut delivery: Delivery,
        held: Option<Held>,
        acks: &Acks,
        metrics: &Metrics,
        builder: &EntryBuilder,
    ) -> Result<Self, Poison> {
        // The client lets it grow by doubling.
        delivery.data.shrink_to_fit();
        let acker = acks.acker(&delivery);
        let message_id = delivery.properties.message_id().as_ref().map(|id| id.as_str());
        let span = info_span!("delivery", delivery.tag = delivery.delivery_tag, message.id = message_id);
        if let Some(headers) = delivery.properties.headers() {
            telemetry::adopt(&span, &Headers(headers));
        }
        // The function's spans are children of ours.
        let traced =
            telemetry::outgoing_traceparent(&span).map(|parent| with_traceparent(&delivery.properties, parent));
        let parts = Parts {
            body: "",
            exchange: delivery.exchange.as_str(),
            routing_key: delivery.routing_key.as_str(),
            properties: traced.as_ref().unwrap_or(&delivery.properties),
        };
        let checked = span.in_scope(|| builder.entry(delivery.data, parts));
        let ticket = Ticket {
            acker,
            unacked: metrics.receive(*delivery.properties.timestamp()),
            origin: Box::new(Origin {
                exchange: delivery.exchange.into(),
                routing_key: delivery.routing_key.into(),
                properties: delivery.properties,
                received_at: SystemTime::now(),
            }),
            span,
            _held: held,
        };
        match checked {
            Ok(entry) => Ok(Self { entry, attempts: 0, ticket }),
            Err((body, reason)) => Err(Poison { body, reason, ticket }),
        }
    }

    /// Gives up on SQS for this message.
    pub fn into_poison(self, reason: Reason) -> Poison {
        Poison { body: self.entry.into_body(), reason, ticket: self.ticket }
    }
}

fn with_traceparent(properties: &BasicProperties, traceparent: String) -> BasicProperties {
    let mut headers = properties.headers().clone().unwrap_or_default();
    headers.insert(telemetry::TRACEPARENT.into(), AMQPValue::LongString(traceparent.into()));
    properties.clone().with_headers(headers)
}

impl Weigh for Message {
    fn weight(&self) -> usize {
        self.entry.size()
    }

    fn lane(&self) -> Option<&str> {
        self.entry.lane()
    }
}

/// The headers that carry a trace.
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
